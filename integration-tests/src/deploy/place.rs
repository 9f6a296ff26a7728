//! Where things of containers lie on this machine: names, ports and paths in a text are replaced by those of here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use logmesh_testing::servers::free_port_with;
use regex::{Captures, Regex};

use super::{Alias, Container};

/// Ports and folders of instances; each gets its own when it's first asked for.
#[derive(Debug)]
pub(crate) struct Places {
    folder: PathBuf,
    aliases: BTreeMap<String, Alias>,
    host_paths: Vec<String>,
    ports: RefCell<BTreeMap<(String, u16), u16>>,
    address: Regex,
}

impl Places {
    pub(crate) fn new(folder: &Path, containers: &[Container], aliases: BTreeMap<String, Alias>) -> Self {
        let sources = containers.iter().flat_map(|container| container.mounts.values());
        let mut host_paths: Vec<String> = sources.filter(|source| source.starts_with('/')).cloned().collect();
        host_paths.sort_by_key(|path| std::cmp::Reverse(path.len()));
        host_paths.dedup();
        let address = Regex::new(r"([A-Za-z0-9][A-Za-z0-9.-]*):(\d{2,5})\b").expect("a regular expression");
        Self { folder: folder.to_owned(), aliases, host_paths, ports: RefCell::default(), address }
    }

    /// The port here of an instance's port.
    pub(crate) fn port(&self, instance: &str, port: u16) -> u16 {
        let mut ports = self.ports.borrow_mut();
        // Programs derive one from another: the next one, or the one of the metrics.
        for step in [0, 1, 100] {
            let before = port.checked_sub(step).and_then(|port| ports.get(&(instance.to_owned(), port)));
            if let Some(known) = before {
                return known + step;
            }
        }
        let fresh = free_port_with(100);
        ports.insert((instance.to_owned(), port), fresh);
        fresh
    }

    /// Where a folder of the host, or a volume, lies here.
    pub(crate) fn folder(&self, source: &str) -> PathBuf {
        match source.strip_prefix('/') {
            Some(path) => self.folder.join("host").join(path),
            None => self.folder.join("volumes").join(source),
        }
    }

    /// Where an instance's mounted file lies here.
    pub(crate) fn file(&self, instance: &str, path: &str) -> PathBuf {
        self.folder.join("files").join(instance).join(path.trim_start_matches('/'))
    }

    /// The text with what it names as it is here, seen from an instance.
    pub(crate) fn here(&self, instance: &str, container: &Container, text: &str) -> String {
        let mut text = text.to_owned();
        for path in container.files.keys() {
            text = replace_path(&text, path, &self.file(instance, path));
        }
        for (target, source) in container.mounts.iter().rev() {
            text = replace_path(&text, target, &self.folder(source));
        }
        // What one container says of the host's files, for another that reads them.
        for path in &self.host_paths {
            text = replace_path(&text, path, &self.folder(path));
        }
        let address = |found: &Captures<'_>| {
            let port: u16 = found[2].parse().expect("a port");
            match &found[1] {
                "0.0.0.0" | "127.0.0.1" | "localhost" => format!("127.0.0.1:{}", self.port(instance, port)),
                name => match self.aliases.get(name) {
                    Some(Alias { container, ports }) => {
                        let port = *ports.get(&port).unwrap_or(&port);
                        format!("127.0.0.1:{}", self.port(&super::machine::instance(container, 0), port))
                    }
                    None => found[0].to_owned(),
                },
            }
        };
        self.address.replace_all(&text, address).into_owned()
    }
}

/// Replaces a path where it stands as one, with what lies beneath it.
fn replace_path(text: &str, path: &str, by: &Path) -> String {
    let mut result = String::new();
    let mut rest = text;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    while let Some(at) = rest.find(path) {
        let (before, after) = (&rest[..at], &rest[at + path.len()..]);
        let preceding = if before.is_empty() { result.as_str() } else { before };
        let begins = !preceding.ends_with(is_part);
        let ends = !after.starts_with(|c: char| c != '/' && is_part(c));
        result.push_str(before);
        if begins && ends {
            result.push_str(&by.display().to_string());
        } else {
            result.push_str(path);
        }
        rest = after;
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_text_names_is_replaced_and_nothing_else() {
        let container = Container {
            mounts: BTreeMap::from([("/data".into(), "v".into()), ("/var/log".into(), "/var/log".into())]),
            ..Container::default()
        };
        let alias = Alias { container: "etcd".into(), ports: BTreeMap::from([(80, 2379)]) };
        let places =
            Places::new(Path::new("/t"), std::slice::from_ref(&container), BTreeMap::from([("store".into(), alias)]));
        let here = |text: &str| places.here("me-1", &container, text);
        assert_eq!(
            here("--dir=/data /data/x /database /x/data /var/log/**"),
            "--dir=/t/volumes/v /t/volumes/v/x /database /x/data /t/host/var/log/**"
        );
        let (own, store) = (places.port("me-1", 7402), places.port("etcd-1", 2379));
        assert_eq!(here("0.0.0.0:7402 http://store:80/x"), format!("127.0.0.1:{own} http://127.0.0.1:{store}/x"));
        assert_eq!(places.port("me-1", 7502), own + 100);
        assert_ne!(places.port("me-2", 7402), own);
        assert_eq!(here("other:7402 65532:65532"), "other:7402 65532:65532");
    }
}
