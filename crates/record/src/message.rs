//! What an event says: its bytes decoded, and unwrapped if a container runtime wrote them.

use std::borrow::Cow;

use logmesh_proto::ingest::v1::{Chunk, DataFormat};
use logmesh_text::Charset;
use logmesh_text::container::{self, Iostream};
use logmesh_types::UnixNanos;

use crate::chunk::EventSlice;

/// How a chunk's events are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    charset: Charset,
    pub(crate) container: bool,
}

/// What an event says.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) text: Cow<'a, str>,
    /// The bytes of the text, where it doesn't say all that they say.
    pub(crate) original: Option<Cow<'a, [u8]>>,
    /// What the runtime says of its first line.
    pub(crate) written: Option<Written>,
}

/// What a container runtime notes with a line.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) iostream: Iostream,
    /// `None`: it's no time that a document could have.
    pub(crate) time: Option<UnixNanos>,
}

impl Reading {
    /// Of a chunk that was checked.
    pub(crate) fn of(chunk: &Chunk) -> Self {
        let charset = Charset::for_label(&chunk.encoding).unwrap_or(Charset::UTF_8);
        Self { charset, container: chunk.format == i32::from(DataFormat::Container) }
    }

    /// Reads an event.
    pub(crate) fn message<'a>(&self, event: &EventSlice<'a>) -> Message<'a> {
        if self.container {
            return unwrapped(event.bytes);
        }
        let (bytes, offset) = (self.charset.content(event.bytes, event.range.start), event.range.start);
        let (text, faithful) = match self.charset.is_utf8() {
            true => text_of(Cow::Borrowed(bytes)),
            false => self.charset.decode(bytes, offset),
        };
        Message { text, original: (!faithful).then_some(Cow::Borrowed(bytes)), written: None }
    }
}

/// The text of UTF-8, and whether it says all.
fn text_of(bytes: Cow<'_, [u8]>) -> (Cow<'_, str>, bool) {
    match bytes {
        Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => (Cow::Borrowed(text), true),
            Err(_) => (String::from_utf8_lossy(bytes), false),
        },
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => (Cow::Owned(text), true),
            Err(error) => (Cow::Owned(String::from_utf8_lossy(error.as_bytes()).into_owned()), false),
        },
    }
}

/// The text of an event's lines, pieces joined; a line that no runtime wrote is taken as it is.
fn unwrapped(event: &[u8]) -> Message<'_> {
    let mut joined = Vec::with_capacity(event.len());
    let mut written = None;
    for line in event.split_inclusive(|byte| *byte == b'\n') {
        let Some(found) = container::unwrap(line) else {
            joined.extend_from_slice(line);
            continue;
        };
        joined.extend_from_slice(&found.text);
        if !found.partial {
            joined.push(b'\n');
        }
        written.get_or_insert_with(|| Written { iostream: found.iostream, time: time_of(&found.time) });
    }
    joined.truncate(Charset::UTF_8.content(&joined, u64::MAX).len());
    match String::from_utf8(joined) {
        Ok(text) => Message { text: Cow::Owned(text), original: None, written },
        Err(error) => {
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            Message { text: Cow::Owned(text), original: Some(Cow::Owned(error.into_bytes())), written }
        }
    }
}

fn time_of(text: &str) -> Option<UnixNanos> {
    // `now-1h` is a time too, elsewhere.
    text.starts_with(|first: char| first.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The longest name that is taken from a path: no file name is longer.
const MAX_NAME_BYTES: usize = 255;

/// What the path of a container's file says of the container: names of fields and their values.
pub(crate) fn fields_of_path(path: &str) -> Vec<(&'static str, &str)> {
    let fields = pod_log(path).or_else(|| container_log(path)).or_else(|| docker_log(path)).unwrap_or_default();
    fields.into_iter().filter(|(_, value)| !value.is_empty() && value.len() <= MAX_NAME_BYTES).collect()
}

/// `…/pods/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log`, with whatever rotation adds.
fn pod_log(path: &str) -> Option<Vec<(&'static str, &str)>> {
    let mut parts = path.rsplit('/');
    let (file, container, pod) = (parts.next()?, parts.next()?, parts.next()?);
    (parts.next()? == "pods").then_some(())?;
    let (restarts, _) = file.split_once(".log")?;
    restarts.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    let (namespace, pod) = pod.split_once('_')?;
    let (pod, uid) = pod.split_once('_')?;
    Some(vec![
        ("k8s.namespace.name", namespace),
        ("k8s.pod.name", pod),
        ("k8s.pod.uid", uid),
        ("k8s.container.name", container),
        ("k8s.container.restart_count", restarts),
    ])
}

/// `…/containers/POD_NAMESPACE_CONTAINER-ID.log`.
fn container_log(path: &str) -> Option<Vec<(&'static str, &str)>> {
    let (folder, file) = path.rsplit_once('/')?;
    folder.ends_with("/containers").then_some(())?;
    let (names, _) = file.rsplit_once(".log")?;
    let (pod, rest) = names.split_once('_')?;
    let (namespace, rest) = rest.split_once('_')?;
    let (container, id) = rest.rsplit_once('-').filter(|(_, id)| is_id(id))?;
    Some(vec![
        ("k8s.namespace.name", namespace),
        ("k8s.pod.name", pod),
        ("k8s.container.name", container),
        ("container.id", id),
    ])
}

/// `…/containers/ID/ID-json.log`, with whatever rotation adds.
fn docker_log(path: &str) -> Option<Vec<(&'static str, &str)>> {
    let mut parts = path.rsplit('/');
    let (file, id) = (parts.next()?, parts.next()?);
    let is_its_file = file.strip_prefix(id).is_some_and(|rest| rest.starts_with("-json.log"));
    (parts.next()? == "containers" && is_its_file && is_id(id)).then(|| vec![("container.id", id)])
}

/// True for what runtimes name containers by.
fn is_id(text: &str) -> bool {
    text.len() >= 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_pod_and_container() {
        let id = "0123456789abcdef".repeat(4);
        let joined = |path: &str| -> Vec<String> {
            fields_of_path(path).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        let pod = [
            "k8s.namespace.name=shop",
            "k8s.pod.name=web-5d",
            "k8s.pod.uid=2f-9",
            "k8s.container.name=app",
            "k8s.container.restart_count=3",
        ];
        assert_eq!(joined("/var/log/pods/shop_web-5d_2f-9/app/3.log"), pod);
        assert_eq!(joined("/var/log/pods/shop_web-5d_2f-9/app/3.log.20260131-120000"), pod);
        assert_eq!(
            joined(&format!("/var/log/containers/web-5d_shop_my-app-{id}.log")),
            [
                "k8s.namespace.name=shop",
                "k8s.pod.name=web-5d",
                "k8s.container.name=my-app",
                &format!("container.id={id}")
            ]
        );
        assert_eq!(joined(&format!("/var/lib/docker/containers/{id}/{id}-json.log.1")), [format!("container.id={id}")]);
        for other in
            ["", "/", "app.log", "/var/log/pods/a/b/c.log", "/var/log/containers/x.log", "/x/pods/a_b_c/d/e.log"]
        {
            assert_eq!(joined(other), [""; 0], "{other}");
        }
        let long = "n".repeat(300);
        assert_eq!(joined(&format!("/pods/a_b_c/{long}/0.log")).len(), 4);
    }
}
