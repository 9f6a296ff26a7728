//! Where the store's keys lie in etcd: each behind the same prefix.

use std::fmt;

/// The prefix of the settings.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    prefix: String,
}

/// Keys from `start` on and before `end`, in etcd's spelling.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyRange {
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
}

/// "To the last key" as the end of a range, and "from the first key" as its start.
const EDGE: [u8; 1] = [0];

impl Space {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// The key as it is in etcd.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The key as the store's callers know it; `None` if it can't be one of theirs.
    pub(crate) fn strip(&self, key: Vec<u8>) -> Option<String> {
        let mut key = String::from_utf8(key).ok()?;
        if !key.starts_with(&self.prefix) {
            return None;
        }
        key.drain(..self.prefix.len());
        Some(key)
    }

    /// Every key that begins with `prefix`.
    pub(crate) fn range(&self, prefix: &str) -> KeyRange {
        let mut end = self.key(prefix).into_bytes();
        if end.is_empty() {
            return KeyRange { start: EDGE.to_vec(), end: EDGE.to_vec() };
        }
        let start = end.clone();
        // Text never holds the byte 255, so the last one can be raised.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        KeyRange { start, end }
    }
}

impl KeyRange {
    /// What is left after `key`.
    pub(crate) fn after(mut self, mut key: Vec<u8>) -> Self {
        key.push(0);
        self.start = key;
        self
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start.escape_ascii(), self.end.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_as_they_were() {
        let space = Space::new("/staging".to_owned());
        let stored = space.key("/logmesh/ключ");
        assert_eq!(stored, "/staging/logmesh/ключ");
        assert_eq!(space.strip(stored.into_bytes()).as_deref(), Some("/logmesh/ключ"));
        assert_eq!(space.strip(b"/other/k".to_vec()), None);
        assert_eq!(space.strip(vec![0xff]), None);
    }

    #[test]
    fn a_range_holds_its_prefix_and_nothing_else() {
        let range = Space::new("/m".to_owned()).range("/a/");
        assert_eq!((range.start.as_slice(), range.end.as_slice()), (&b"/m/a/"[..], &b"/m/a0"[..]));
        let everything = Space::new(String::new()).range("");
        assert_eq!((everything.start, everything.end), (vec![0], vec![0]));
        assert_eq!(range.after(b"/m/a/k".to_vec()).start, b"/m/a/k\0");
    }
}
