//! What container runtimes wrap around a line: Docker's JSON and the format of Kubernetes' CRI.
//!
//! ```text
//! {"log":"text\n","stream":"stdout","time":"2026-01-31T12:00:00.000000005Z"}
//! 2026-01-31T12:00:00.000000005Z stdout F text
//! ```
//!
//! Both break long lines (over 16 KiB, mostly) into pieces: Docker's have no line feed at the end of their text, CRI's
//! are marked `P`. Which of the two a line is, or neither, is told by its bytes alone.

use std::borrow::Cow;

use serde::Deserialize;

/// Where a container wrote a line to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iostream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Iostream {
    /// `stdout` or `stderr`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    fn read(name: &[u8]) -> Option<Self> {
        match name {
            b"stdout" => Some(Self::Stdout),
            b"stderr" => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// A line, unwrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Where it was written to.
    pub iostream: Iostream,
    /// More of the line follows in the next one of this `iostream`.
    pub partial: bool,
    /// When it was written, as the runtime says it: not checked.
    pub time: Cow<'a, str>,
    /// What was written, without the line feed.
    pub text: Cow<'a, [u8]>,
}

#[derive(Deserialize)]
struct Docker<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

/// Unwraps a line, with or without its LF. `None`: it has neither form, and is to be taken as it is.
pub fn unwrap(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.first() == Some(&b'{') { docker(line) } else { cri(line) }
}

fn docker(line: &[u8]) -> Option<Line<'_>> {
    let Docker { log, stream, time } = serde_json::from_slice(line).ok()?;
    let iostream = Iostream::read(stream.as_bytes())?;
    let partial = !log.ends_with('\n');
    let text = match log {
        Cow::Borrowed(log) => Cow::Borrowed(log.as_bytes()),
        Cow::Owned(mut log) => {
            log.truncate(log.len() - usize::from(!partial));
            Cow::Owned(log.into_bytes())
        }
    };
    Some(Line { iostream, partial, time, text })
}

fn cri(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok().filter(|time| is_like_a_time(time))?;
    let iostream = Iostream::read(parts.next()?)?;
    // The first of the tags, which colons separate, says whether the line is whole.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    let text = Cow::Borrowed(parts.next().unwrap_or_default());
    Some(Line { iostream, partial, time: Cow::Borrowed(time), text })
}

/// True for what has the form of `2026-01-31T12:00:00Z`.
fn is_like_a_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    (20..=40).contains(&bytes.len())
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && (bytes[4], bytes[7], bytes[10], bytes[13]) == (b'-', b'-', b'T', b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-31T12:00:00.000000005Z";

    fn parts(line: &str) -> Option<(Iostream, bool, String)> {
        let line = unwrap(line.as_bytes())?;
        assert_eq!(line.time, TIME);
        Some((line.iostream, line.partial, String::from_utf8(line.text.into_owned()).unwrap()))
    }

    #[test]
    fn docker_s_json_is_unwrapped() {
        let line = |log: &str| {
            format!("{{\"log\":\"{log}\",\"stream\":\"stderr\",\"attrs\":{{\"a\":\"b\"}},\"time\":\"{TIME}\"}}\n")
        };
        assert_eq!(parts(&line(r"a \u00e4\r\n")), Some((Iostream::Stderr, false, "a ä\r".into())));
        assert_eq!(parts(&line("half")), Some((Iostream::Stderr, true, "half".into())));
        assert_eq!(parts(&line(r"back\\n")), Some((Iostream::Stderr, true, r"back\n".into())));
        assert_eq!(parts(&line(r"\n")), Some((Iostream::Stderr, false, String::new())));
    }

    #[test]
    fn cri_lines_are_unwrapped() {
        assert_eq!(parts(&format!("{TIME} stdout F a b\n")), Some((Iostream::Stdout, false, "a b".into())));
        assert_eq!(parts(&format!("{TIME} stderr P a ")), Some((Iostream::Stderr, true, "a ".into())));
        assert_eq!(parts(&format!("{TIME} stdout F:x  a")), Some((Iostream::Stdout, false, " a".into())));
        assert_eq!(parts(&format!("{TIME} stdout F")), Some((Iostream::Stdout, false, String::new())));
        assert_eq!(&*unwrap(format!("{TIME} stdout F \u{0}").as_bytes()).unwrap().text, b"\0");
    }

    #[test]
    fn what_is_neither_is_told() {
        for line in [
            "",
            "\n",
            "{",
            "plain",
            "{\"log\":\"a\"}",
            "{\"log\":5,\"stream\":\"stdout\",\"time\":\"\"}",
            "{\"log\":\"a\",\"stream\":\"file\",\"time\":\"x\"}",
            "yesterday stdout F a",
            "2026-01-31T12:00:00Z stdin F a",
            "2026-01-31T12:00:00Z stdout X a",
            "2026-01-31T12:00:00Z stdout",
            "{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"2026\"} trailing",
        ] {
            assert_eq!(unwrap(line.as_bytes()), None, "{line:?}");
        }
    }
}
