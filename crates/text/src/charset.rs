//! Encodings: where lines end in them, and how their bytes become text.
//!
//! In UTF-16 a line feed is the code unit 0x000A, at an even offset from the stream's start. In all other encodings of
//! the WHATWG's standard it is the byte 0x0A and that byte is nothing else: second and later bytes of their characters
//! are 0x30 or more. So the bytes of a line can be cut out before anything is decoded. Encodings that carry a state over
//! the end of a line (ISO-2022-JP) are decoded line by line: each line begins in the encoding's first state, as the
//! standard for mail that they were made for demands of them.

use std::borrow::Cow;

use encoding_rs::{BIG5, EUC_JP, EUC_KR, Encoding, GB18030, GBK, ISO_2022_JP, SHIFT_JIS, UTF_8, UTF_16BE, UTF_16LE};

/// An encoding of the WHATWG's standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charset(&'static Encoding);

impl Charset {
    /// What is read as it is.
    pub const UTF_8: Self = Self(UTF_8);

    /// The encoding of a label such as `gbk` or `latin1`; `None`: there is none of that name that can be read.
    pub fn for_label(label: &str) -> Option<Self> {
        Encoding::for_label_no_replacement(label.as_bytes()).map(Self)
    }

    /// What the byte-order mark at the start of a file says; `None`: there is none.
    pub fn of_mark(head: &[u8]) -> Option<Self> {
        Encoding::for_bom(head).map(|(encoding, _)| Self(encoding))
    }

    /// Its name in the standard: a label of itself.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// True if its text needs no decoding.
    pub fn is_utf8(self) -> bool {
        self.0 == UTF_8
    }

    /// True if its code units have two bytes, and NUL bytes are nothing odd.
    pub fn is_utf16(self) -> bool {
        self.0 == UTF_16LE || self.0 == UTF_16BE
    }

    /// The length of the first line of `data` with its line feed; `None`: no line ends in it. `offset` is where `data`
    /// begins in its stream.
    pub fn line_end(self, data: &[u8], offset: u64) -> Option<usize> {
        if !self.is_utf16() {
            return memchr::memchr(b'\n', data).map(|at| at + 1);
        }
        memchr::memchr_iter(b'\n', data).find_map(|at| self.feed_end(data, at, offset))
    }

    /// The place after the last line feed of `data`; `None`: there is none in it.
    pub fn last_line_end(self, data: &[u8], offset: u64) -> Option<usize> {
        if !self.is_utf16() {
            return memchr::memrchr(b'\n', data).map(|at| at + 1);
        }
        memchr::memrchr_iter(b'\n', data).find_map(|at| self.feed_end(data, at, offset))
    }

    /// True if `data` ends with a line feed.
    pub fn ends_line(self, data: &[u8], offset: u64) -> bool {
        if !self.is_utf16() {
            return data.last() == Some(&b'\n');
        }
        let at = data.len().wrapping_sub(if self.0 == UTF_16LE { 2 } else { 1 });
        data.get(at) == Some(&b'\n') && self.feed_end(data, at, offset).is_some()
    }

    /// Where the line feed ends of which the byte 0x0A at `at` is one half, if it is.
    fn feed_end(self, data: &[u8], at: usize, offset: u64) -> Option<usize> {
        let is_even = (offset + at as u64).is_multiple_of(2);
        match self.0 == UTF_16LE {
            true => (is_even && data.get(at + 1) == Some(&0)).then_some(at + 2),
            false => (!is_even && at > 0 && data[at - 1] == 0).then_some(at + 1),
        }
    }

    /// The greatest length of at most `data.len()` that ends no character in its middle; `data` begins with a character.
    /// Never 0 unless `data` is empty. ISO-2022-JP alone may be cut where it isn't in its first state.
    pub fn whole_characters(self, data: &[u8], offset: u64) -> usize {
        let length = data.len();
        let kept = if self.is_utf8() {
            whole_utf8(data)
        } else if self.is_utf16() {
            let even = length - ((offset + length as u64) % 2) as usize;
            let high = if self.0 == UTF_16LE { even.checked_sub(1) } else { even.checked_sub(2) };
            let is_pair = high.and_then(|at| data.get(at)).is_some_and(|byte| (0xD8..0xDC).contains(byte));
            if is_pair { even.saturating_sub(2) } else { even }
        } else {
            self.whole_double_byte(data)
        };
        if kept == 0 { length } else { kept }
    }

    /// As [`Charset::whole_characters`] for encodings in which only the first byte of a character tells its length.
    fn whole_double_byte(self, data: &[u8]) -> usize {
        let Some(length_of) = double_byte(self.0) else { return data.len() };
        let mut at = 0;
        while let Some(first) = data.get(at) {
            // A first byte with what can't follow it is an error of one byte, as the standard has it.
            let wanted = match data.get(at + 1) {
                Some(second) => length_of(*first, *second),
                None => length_of(*first, 0xFE),
            };
            if at + wanted > data.len() {
                break;
            }
            at += wanted;
        }
        at
    }

    /// An event's bytes without the byte-order mark, if it is the first of its stream, and without the last LF or CRLF.
    pub fn content(self, event: &[u8], offset: u64) -> &[u8] {
        let marked =
            if offset == 0 { Encoding::for_bom(event).filter(|(encoding, _)| *encoding == self.0) } else { None };
        let mark = marked.map_or(0, |(_, length)| length);
        let (event, offset) = (&event[mark..], offset + mark as u64);
        if !self.is_utf16() {
            let line = event.strip_suffix(b"\n").unwrap_or(event);
            return if line.len() < event.len() { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        }
        if !self.ends_line(event, offset) {
            return event;
        }
        let line = &event[..event.len() - 2];
        let feed: &[u8] = if self.0 == UTF_16LE { b"\r\0" } else { b"\0\r" };
        line.strip_suffix(feed).unwrap_or(line)
    }

    /// The text of `bytes`, which begin at `offset` of their stream, and whether it says all that they say: what can't
    /// be decoded becomes U+FFFD.
    pub fn decode(self, bytes: &[u8], offset: u64) -> (Cow<'_, str>, bool) {
        if self.is_utf16() && !offset.is_multiple_of(2) && !bytes.is_empty() {
            // The first byte is the second half of a code unit that time cut in two.
            let (rest, _) = self.0.decode_without_bom_handling(&bytes[1..]);
            return (Cow::Owned(format!("\u{fffd}{rest}")), false);
        }
        let (text, had_errors) = self.0.decode_without_bom_handling(bytes);
        (text, !had_errors)
    }

    /// How many lines of `data` hold what can't be decoded; `data` begins at `offset` of its stream.
    ///
    /// Text of ASCII costs no more than a look at it.
    pub fn garbled_lines(self, data: &[u8], offset: u64) -> usize {
        if self.is_utf8() {
            return garbled_utf8(data);
        }
        // ISO-2022-JP alone writes other characters in bytes of ASCII.
        if !self.is_utf16() && self.0 != ISO_2022_JP && data.is_ascii() {
            return 0;
        }
        let (mut rest, mut at, mut garbled) = (data, offset, 0);
        while !rest.is_empty() {
            let length = self.line_end(rest, at).unwrap_or(rest.len());
            garbled += usize::from(!self.decode(&rest[..length], at).1);
            (rest, at) = (&rest[length..], at + length as u64);
        }
        garbled
    }
}

fn garbled_utf8(mut data: &[u8]) -> usize {
    let mut garbled = 0;
    while let Err(error) = std::str::from_utf8(data) {
        garbled += 1;
        let rest = &data[error.valid_up_to()..];
        let Some(end) = memchr::memchr(b'\n', rest) else { break };
        data = &rest[end + 1..];
    }
    garbled
}

/// The length of a character by its first two bytes, where it isn't always 1.
fn double_byte(encoding: &'static Encoding) -> Option<fn(u8, u8) -> usize> {
    if encoding == GBK || encoding == GB18030 {
        Some(|first, second| match (first, second) {
            (0x81..=0xFE, 0x30..=0x39) => 4,
            (0x81..=0xFE, 0x40..) => 2,
            _ => 1,
        })
    } else if encoding == BIG5 || encoding == EUC_KR {
        Some(|first, second| if matches!((first, second), (0x81..=0xFE, 0x40..)) { 2 } else { 1 })
    } else if encoding == SHIFT_JIS {
        Some(|first, second| if matches!((first, second), (0x81..=0x9F | 0xE0..=0xFC, 0x40..)) { 2 } else { 1 })
    } else if encoding == EUC_JP {
        Some(|first, second| match (first, second) {
            (0x8F, 0xA1..) => 3,
            (0x8E | 0xA1..=0xFE, 0xA1..) => 2,
            _ => 1,
        })
    } else {
        None
    }
}

/// The length of `data` without a character at its end that isn't whole.
fn whole_utf8(data: &[u8]) -> usize {
    for back in 1..=data.len().min(3) {
        let start = data.len() - back;
        let needed = match data[start] {
            0x80..0xC0 => continue,
            0xC0..0xE0 => 2,
            0xE0..0xF0 => 3,
            0xF0.. => 4,
            _ => 1,
        };
        return if needed > back { start } else { data.len() };
    }
    data.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_that_say_nothing_are_counted() {
        let count = |label: &str, data: &[u8]| Charset::for_label(label).unwrap().garbled_lines(data, 0);
        let gbk = b"\xc4\xe3\xba\xc3\nplain\n\xc4\xe3\n";
        assert_eq!((count("utf-8", gbk), count("gbk", gbk), count("latin1", gbk)), (2, 0, 0));
        assert_eq!(count("utf-8", "gr\u{fc}n\n\u{fffd}\n".as_bytes()), 0);
        assert_eq!(count("utf-8", b"\xff\xff\n\xff"), 2, "a line counts once, one without an end too");
        assert_eq!(count("gbk", b"a\n\x81\n"), 1);
        assert_eq!(count("iso-2022-jp", b"\x1b$Bx\n"), 1);
        let utf16: Vec<u8> = "a\u{10a}b\n".encode_utf16().chain([0xD800, 0x0A]).flat_map(u16::to_le_bytes).collect();
        assert_eq!(count("utf-16le", &utf16), 1);
    }

    /// Labels of every encoding of the standard.
    const ALL: [&str; 39] = [
        "utf-8",
        "ibm866",
        "iso-8859-2",
        "iso-8859-3",
        "iso-8859-4",
        "iso-8859-5",
        "iso-8859-6",
        "iso-8859-7",
        "iso-8859-8",
        "iso-8859-8-i",
        "iso-8859-10",
        "iso-8859-13",
        "iso-8859-14",
        "iso-8859-15",
        "iso-8859-16",
        "koi8-r",
        "koi8-u",
        "macintosh",
        "windows-874",
        "windows-1250",
        "windows-1251",
        "windows-1252",
        "windows-1253",
        "windows-1254",
        "windows-1255",
        "windows-1256",
        "windows-1257",
        "windows-1258",
        "x-mac-cyrillic",
        "gbk",
        "gb18030",
        "big5",
        "euc-jp",
        "iso-2022-jp",
        "shift_jis",
        "euc-kr",
        "utf-16be",
        "utf-16le",
        "x-user-defined",
    ];

    fn charset(label: &str) -> Charset {
        Charset::for_label(label).unwrap()
    }

    fn utf16(text: &str, label: &str) -> Vec<u8> {
        let unit = |unit: u16| if label == "utf-16le" { unit.to_le_bytes() } else { unit.to_be_bytes() };
        text.encode_utf16().flat_map(unit).collect()
    }

    #[test]
    fn labels_are_those_of_the_standard() {
        assert_eq!(charset("latin1").name(), "windows-1252");
        assert_eq!(charset(" GBK ").name(), "GBK");
        assert_eq!(charset("utf-16").name(), "UTF-16LE");
        for bad in ["", "utf-7", "klingon", "replacement", "iso-2022-kr"] {
            assert_eq!(Charset::for_label(bad), None, "{bad}");
        }
        for label in ALL {
            assert_eq!(charset(charset(label).name()), charset(label));
        }
    }

    #[test]
    fn the_byte_0x0a_is_a_line_feed_and_nothing_else() {
        for label in ALL.into_iter().filter(|label| !label.starts_with("utf-16")) {
            let charset = charset(label);
            assert_eq!(charset.decode(b"\n", 0), (Cow::Borrowed("\n"), true), "{label}");
            // After whatever may begin a character of two, three or four bytes, too.
            for lead in 0x80..=0xffu8 {
                for before in [vec![lead], vec![lead, 0x30], vec![lead, 0x81], vec![lead, 0x30, 0x81]] {
                    let text = charset.decode(&[before, b"\n".to_vec()].concat(), 0).0.into_owned();
                    assert!(text.ends_with('\n'), "{label}: {lead:x} gives {text:?}");
                }
            }
        }
    }

    #[test]
    fn utf_16_lines_end_at_even_offsets() {
        for label in ["utf-16le", "utf-16be"] {
            let charset = charset(label);
            // U+0A0A, U+0A00, U+000A and their neighbours.
            let data = utf16("a\u{a0a}\u{a00}\u{100}\u{a0a}\u{a}b\r\n\n", label);
            assert_eq!(charset.line_end(&data, 0), Some(12), "{label}");
            assert_eq!(charset.line_end(&data[12..], 12), Some(6));
            assert_eq!(charset.last_line_end(&data, 2), Some(20));
            assert_eq!(charset.last_line_end(&data[..19], 0), Some(18));
            assert!(charset.ends_line(&data, 0) && !charset.ends_line(&data[..17], 0));
            assert_eq!(charset.line_end(&data[1..], 1), Some(11), "the parity is the stream's");
            assert_eq!(charset.content(&data[12..18], 12), utf16("b", label));
            assert_eq!(charset.content(&data[18..], 18), b"");
        }
    }

    #[test]
    fn the_mark_is_not_part_of_the_first_line() {
        assert_eq!(Charset::of_mark(b"\xff\xfea\0"), Some(charset("utf-16le")));
        assert_eq!(Charset::of_mark(b"\xfe"), None);
        assert_eq!(Charset::UTF_8.content(b"\xef\xbb\xbfa\r\n", 0), b"a");
        assert_eq!(Charset::UTF_8.content(b"\xef\xbb\xbfa\r\n", 3), b"\xef\xbb\xbfa");
        assert_eq!(charset("utf-16le").content(b"\xff\xfea\0\n\0", 0), b"a\0");
        assert_eq!(charset("gbk").content(b"\xff\xfea\n", 0), b"\xff\xfea");
    }

    #[test]
    fn text_is_decoded_and_loss_is_told() {
        assert_eq!(charset("gbk").decode(b"\xc4\xe3\xba\xc3", 0), (Cow::Borrowed("你好"), true));
        assert_eq!(charset("latin1").decode(b"caf\xe9", 0), (Cow::Borrowed("café"), true));
        assert!(!charset("gbk").decode(b"\xc4", 0).1);
        assert_eq!(charset("utf-16le").decode(b"\0b\0", 7), (Cow::Borrowed("\u{fffd}b"), false));
        assert_eq!(charset("utf-16be").decode(b"\xd8\0\0a", 0), (Cow::Borrowed("\u{fffd}a"), false));
    }

    #[test]
    fn no_character_is_cut_in_two() {
        for (label, text) in [
            ("gbk", "a日志中文"),
            ("gb18030", "日😀ä"),
            ("big5", "a功蓋三分國"),
            ("shift_jis", "aﾊﾛｰ日本語表示"),
            ("euc-jp", "a日本語ﾊﾛ"),
            ("euc-kr", "a한국어뷁"),
            ("utf-8", "aé日😀"),
        ] {
            let charset = charset(label);
            let (bytes, _, lost) = charset.0.encode(text);
            assert!(!lost, "{label}");
            let bytes = bytes.repeat(3);
            for length in 4..=bytes.len() {
                let kept = charset.whole_characters(&bytes[..length], 0);
                assert!(kept + 3 >= length, "{label} {length}");
                let (head, head_whole) = charset.decode(&bytes[..kept], 0);
                let (rest, rest_whole) = charset.decode(&bytes[kept..], kept as u64);
                assert!(
                    head_whole && rest_whole && format!("{head}{rest}") == text.repeat(3),
                    "{label} {length} {kept}"
                );
            }
        }
        // JIS X 0212, which is read and never written: three bytes.
        assert_eq!(charset("euc-jp").whole_characters(b"a\x8f\xb0", 0), 1);
        assert_eq!(charset("euc-jp").whole_characters(b"a\x8f\xb0\xa1", 0), 4);
    }

    proptest! {
        #[test]
        fn a_text_cut_short_is_the_text_s_start(text in "[a-zäß€😀\u{a0a}]{1,20}", most in 4usize..40) {
            for label in ["utf-8", "utf-16le", "utf-16be"] {
                let data = if label == "utf-8" { text.clone().into_bytes() } else { utf16(&text, label) };
                let window = &data[..most.min(data.len())];
                let kept = charset(label).whole_characters(window, 4);
                prop_assert!(window.len() - kept < 4);
                let (start, faithful) = charset(label).decode(&window[..kept], 4);
                prop_assert!(faithful && text.starts_with(&*start), "{label}: {start:?}");
            }
        }
    }
}
