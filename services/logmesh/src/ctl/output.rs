//! What the client prints: aligned text for people, or one JSON document a line.
//!
//! Log lines, paths and labels are other people's text. Without `--raw` no control character of theirs reaches the
//! terminal, in JSON neither (there as `\uXXXX`, which is the same value).

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};

use logmesh_types::UnixNanos;
use prost_types::Timestamp;
use serde_json::Value;

/// Where and how to print.
pub(super) struct Output {
    sink: Box<dyn Write + Send>,
    pub(super) json: bool,
    raw: bool,
}

impl Output {
    /// Prints to stdout.
    pub(super) fn stdout(json: bool, raw: bool) -> Self {
        Self { sink: Box::new(BufWriter::new(io::stdout())), json, raw }
    }

    /// Prints to where the test can read it.
    #[cfg(test)]
    pub(super) fn captured(json: bool, raw: bool) -> (Self, tests::Captured) {
        let captured = tests::Captured::default();
        (Self { sink: Box::new(captured.clone()), json, raw }, captured)
    }

    /// Whether text is printed as it is.
    pub(super) fn raw(&self) -> bool {
        self.raw
    }

    /// One line for people.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        let text = if self.raw { Cow::Borrowed(text) } else { escape(text) };
        writeln!(self.sink, "{text}")
    }

    /// Several lines for people, escaped one by one.
    pub(super) fn lines(&mut self, text: &str) -> io::Result<()> {
        text.lines().try_for_each(|line| self.line(line))
    }

    /// One JSON document on its line.
    pub(super) fn json(&mut self, value: &Value) -> io::Result<()> {
        self.json_text(&value.to_string())
    }

    /// A JSON document given as text, on one line.
    pub(super) fn json_text(&mut self, text: &str) -> io::Result<()> {
        let text = if self.raw { Cow::Borrowed(text) } else { escape_json(text) };
        writeln!(self.sink, "{text}")
    }

    /// Rows under a header, in aligned columns.
    pub(super) fn table<const N: usize>(&mut self, header: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
        let cells = |row: &[String; N]| row.each_ref().map(|cell| self.show(cell).into_owned());
        let rows: Vec<[String; N]> = rows.iter().map(cells).collect();
        let widths: [usize; N] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(header[column].len())
        });
        for row in std::iter::once(header.map(str::to_owned)).chain(rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(self.sink, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn show<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.raw { Cow::Borrowed(text) } else { escape(text) }
    }

    /// Sends on what was printed so far.
    pub(super) fn flush(&mut self) -> Result<(), super::Failure> {
        self.sink.flush().map_err(super::Failure::Output)
    }
}

/// True for what can steer a terminal or turn text around: C0, DEL, C1, bidi controls, and the separators that some
/// readers take for the end of a line.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with every unsafe character as `\n`, `\t`, `\r` or `\u{1b}`.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().fold(String::with_capacity(text.len() + 16), |mut escaped, c| {
        if is_unsafe(c) {
            escaped.extend(c.escape_default())
        } else {
            escaped.push(c)
        }
        escaped
    });
    Cow::Owned(escaped)
}

/// Our own text of several lines that quotes others': escaped but for the ends of its lines.
pub(super) fn escape_lines(text: &str) -> Cow<'_, str> {
    Cow::Owned(text.split('\n').map(escape).collect::<Vec<_>>().join("\n"))
}

/// JSON text with every unsafe character as `\uXXXX`; between values, where none can be quoted, as a space.
fn escape_json(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            // Within strings JSON has these escaped already.
            '\n' | '\r' | '\t' => escaped.push(' '),
            c if is_unsafe(c) => escaped.push_str(&format!("\\u{:04x}", c as u32)),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// A number of bytes for people, `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    let mut size = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} PiB")
}

/// How long ago a time was, for people: `3s`, `5m`, `2h`, `9d`; `-` if there is none.
pub(super) fn age(time: Option<&Timestamp>, now: UnixNanos) -> String {
    let Some(time) = time else {
        return "-".to_owned();
    };
    let seconds = now.0.saturating_sub(logmesh_proto::time::unix_nanos(time).0).max(0) / 1_000_000_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A time as JSON: RFC 3339, or null.
pub(super) fn time(time: Option<&Timestamp>) -> Value {
    time.map_or(Value::Null, |time| logmesh_proto::time::unix_nanos(time).to_string().into())
}

/// A name of a proto enum without its prefix, in lower case: `RULE_STATE_APPLIED` is `applied`.
pub(super) fn state(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// `1 file`, `2 files`, `3 copies`.
pub(super) fn count(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was printed.
    #[derive(Clone, Default)]
    pub(in crate::ctl) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(in crate::ctl) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn tables_are_aligned_whatever_is_in_them() {
        let (mut out, captured) = Output::captured(false, false);
        let rows = [["a".into(), "1".into()], ["b\u{1b}c".into(), "22".into()], ["ü".into(), "".into()]];
        out.table(["NAME", "N"], &rows).unwrap();
        assert_eq!(captured.text(), "NAME      N\na         1\nb\\u{1b}c  22\nü\n");
    }

    #[test]
    fn nothing_in_a_line_steers_the_terminal() {
        let nasty = "a\u{1b}[2Jb\u{9b}31mc\u{202e}d\r\n\u{7f}\t\u{2066}ü";
        assert_eq!(escape(nasty), r"a\u{1b}[2Jb\u{9b}31mc\u{202e}d\r\n\u{7f}\t\u{2066}ü");
        assert!(matches!(escape("plain ü"), Cow::Borrowed(_)));
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let value = serde_json::json!({"message": "a\u{1b}b\u{9b}c\u{202e}d\u{7f}\n"});
        let text = escape_json(&value.to_string()).into_owned();
        assert!(!text.contains(is_unsafe));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert_eq!(escape_json("{\n\"a\":\t1}"), "{ \"a\": 1}");
    }

    #[test]
    fn one_is_not_several() {
        assert_eq!([0, 1, 2].map(|number| count(number, "copy")), ["0 copies", "1 copy", "2 copies"]);
        assert_eq!([1, 2].map(|number| count(number, "gap")), ["1 gap", "2 gaps"]);
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!((bytes(0).as_str(), bytes(1023).as_str(), bytes(1536).as_str()), ("0 B", "1023 B", "1.5 KiB"));
        let now = UnixNanos(1_000_000 * 1_000_000_000);
        let at = |seconds: i64| age(Some(&Timestamp { seconds: 1_000_000 - seconds, nanos: 0 }), now);
        assert_eq!((at(3), at(300), at(86_400), at(999_999)), ("3s".into(), "5m".into(), "24h".into(), "11d".into()));
        assert_eq!(at(-5), "0s", "a clock that is ahead");
        assert_eq!(age(None, now), "-");
    }
}
