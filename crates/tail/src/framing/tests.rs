//! Framing as a function of the bytes, for each kind of it.

use proptest::prelude::*;

use super::*;

/// As much as a chunk holds.
const CHUNK: Room = Room { bytes: usize::MAX, events: MAX_CHUNK_EVENTS };

fn framing(spec: FramingSpec) -> Framing {
    Framing::new(&spec).unwrap()
}

fn joined(pattern: Pattern) -> Framing {
    framing(FramingSpec { pattern: Some(pattern), ..FramingSpec::default() })
}

fn start() -> Framing {
    joined(Pattern::Start(r"^\d".into()))
}

fn container() -> Framing {
    framing(FramingSpec { container: true, ..FramingSpec::default() })
}

/// Frames the start of a stream.
fn head(framing: &Framing, data: &[u8], end: End, room: Room) -> Framed {
    let charset = framing.charset_of(data);
    frame(framing, Window { bytes: data, at: 0, offset: 0, charset, end }, room)
}

fn lengths(framing: &Framing, data: impl AsRef<[u8]>, end: End) -> Vec<u32> {
    head(framing, data.as_ref(), end, CHUNK).lengths.unwrap_or_default()
}

/// What a reader gives out: where events end, which of them are continuations, and which were cut.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    ends: Vec<usize>,
    continuations: Vec<usize>,
    cut: Vec<usize>,
}

/// Frames all of `data` as a reader does that gets `read(n)` bytes at its n-th read.
fn read(framing: &Framing, data: &[u8], end: End, mut read: impl FnMut() -> usize, room: Room) -> Read {
    let charset = framing.charset_of(data);
    let (mut at, mut visible, mut result) = (0, 0, Read::default());
    loop {
        let all = visible == data.len();
        let stop = visible.min(at + MAX_EVENT_BYTES);
        let back = at.min(framing.look_back());
        let end = if all && stop == data.len() { end } else { End::Open };
        let window = Window { bytes: &data[at - back..stop], at: back, offset: at as u64, charset, end };
        let framed = frame(framing, window, room);
        result.continuations.extend(framed.continuations.iter().map(|index| result.ends.len() + *index as usize));
        if framed.long.is_some() {
            // The rest of the line is sought, and not framed.
            let whole = charset.line_end(&data[at..], at as u64).unwrap_or(data.len() - at);
            result.cut.push(result.ends.len());
            at += whole;
            visible = visible.max(at);
            result.ends.push(at);
            continue;
        }
        if framed.bytes == 0 && all {
            return result;
        }
        match &framed.lengths {
            Some(lengths) => result.ends.extend(lengths.iter().scan(at, |sum, n| {
                *sum += *n as usize;
                Some(*sum)
            })),
            None => result.ends.extend(memchr::memchr_iter(b'\n', &data[at..at + framed.bytes]).map(|i| at + i + 1)),
        }
        at += framed.bytes;
        visible = (visible + read().max(1)).min(data.len());
    }
}

fn ends(framing: &Framing, data: &[u8], end: End, step: usize) -> Vec<usize> {
    read(framing, data, end, || step, CHUNK).ends
}

#[test]
fn lines_end_at_lf_and_empty_lines_count() {
    let lines = Framing::default();
    let framed = head(&lines, b"a\r\n\nbc\nrest", End::Open, CHUNK);
    assert_eq!(framed, Framed { bytes: 7, events: 3, lines: 3, ..Framed::default() });
    assert_eq!(head(&lines, b"rest", End::Open, CHUNK), Framed::default());
    assert_eq!(lengths(&lines, b"rest", End::Cut), [4]);
    assert_eq!(head(&lines, b"", End::Cut, CHUNK), Framed::default());
}

#[test]
fn room_is_kept_but_one_event_always_goes() {
    let framed = head(&Framing::default(), b"aaaa\nbb\ncc\n", End::Open, Room { bytes: 1, events: 9 });
    assert_eq!(framed.bytes, 5);
    let framed = head(&Framing::default(), b"a\nb\nc\n", End::Open, Room { bytes: 99, events: 2 });
    assert_eq!((framed.bytes, framed.events), (4, 2));
    let framed = head(&start(), b"1a\n b\n2\n3\n4", End::Open, Room { bytes: 1, events: 9 });
    assert_eq!((framed.bytes, framed.events, framed.lines), (6, 1, 2));
}

#[test]
fn a_start_pattern_joins_until_the_next_start() {
    let data = b" head\n1a\n b\r\n\n2c\n3d";
    assert_eq!(lengths(&start(), data, End::Open), [6, 8]);
    assert_eq!(head(&start(), data, End::Open, CHUNK).lines, 4);
    assert_eq!(lengths(&start(), data, End::Cut), [6, 8, 3, 2]);
}

#[test]
fn a_continue_pattern_joins_what_matches() {
    let indented = joined(Pattern::Continue(r"^\s".into()));
    let data = b"a\n at x\n\tat y\nb\nc\n d";
    assert_eq!(lengths(&indented, data, End::Open), [14, 2], "the next line isn't there yet");
    assert_eq!(lengths(&indented, data, End::Cut), [14, 2, 4]);
}

#[test]
fn an_end_pattern_ends_at_once() {
    let statements = joined(Pattern::End(";$".into()));
    assert_eq!(lengths(&statements, b"select\n1;\r\nx;\ny\n", End::Open), [11, 3], "no wait for the next line");
    assert_eq!(lengths(&statements, b"a\nb", End::Cut), [3]);
}

#[test]
fn pieces_of_a_container_s_line_are_joined() {
    let cri = |iostream: &str, tag: &str, text: &str| format!("2026-01-31T12:00:00Z {iostream} {tag} {text}\n");
    let docker =
        |text: &str| format!("{{\"log\":\"{text}\",\"stream\":\"stdout\",\"time\":\"2026-01-31T12:00:00.5Z\"}}\n");
    let (half, rest) = (cri("stdout", "P", "a"), cri("stdout", "F", "b"));
    let other = cri("stderr", "F", "x");
    let n = |text: &str| text.len() as u32;
    assert_eq!(lengths(&container(), format!("{half}{rest}{other}"), End::Open), [n(&half) + n(&rest), n(&other)]);
    let framed = head(&container(), format!("{half}{other}{rest}{rest}").as_bytes(), End::Open, CHUNK);
    assert_eq!(framed.lengths.unwrap(), [n(&half), n(&other), n(&rest), n(&rest)]);
    assert_eq!(framed.continuations, [2]);
    let (half, rest) = (docker("a"), docker(r"b\n"));
    assert_eq!(
        lengths(&container(), format!("{half}{rest}neither\n{rest}"), End::Open),
        [n(&half) + n(&rest), 8, n(&rest)]
    );
    assert_eq!(lengths(&container(), &half, End::Open), [0; 0], "more of it may come");
    assert_eq!(lengths(&container(), &half, End::Cut), [n(&half)]);
}

#[test]
fn patterns_see_what_a_container_wrote() {
    let spec = FramingSpec { container: true, pattern: Some(Pattern::Start(r"^\d".into())), ..FramingSpec::default() };
    let cri = |iostream: &str, text: &str| format!("2026-01-31T12:00:00Z {iostream} F {text}\n");
    let lines =
        [cri("stdout", "1a"), cri("stdout", " b"), cri("stdout", "2c"), cri("stderr", " d"), cri("stdout", "3")];
    let n: Vec<u32> = lines.iter().map(|line| line.len() as u32).collect();
    assert_eq!(lengths(&framing(spec), lines.concat(), End::Open), [n[0] + n[1], n[2], n[3]]);
}

#[test]
fn the_encoding_is_the_rule_s_or_the_mark_s() {
    let of = |label: Option<&str>, head: &[u8]| {
        let spec = FramingSpec { encoding: label.map(str::to_owned), ..FramingSpec::default() };
        framing(spec).charset_of(head).name()
    };
    assert_eq!([of(None, b"abc"), of(None, b"\xff\xfea"), of(None, b"\xfe\xff\0")], ["UTF-8", "UTF-16LE", "UTF-16BE"]);
    assert_eq!(of(Some("gbk"), b"\xff\xfea"), "GBK");
    assert_eq!([of(Some("utf-16"), b"a\0\n"), of(Some("utf-16"), b"\xfe\xff\0")], ["UTF-16LE", "UTF-16BE"]);
    assert_eq!(container().charset_of(b"\xff\xfea").name(), "UTF-8");
}

#[test]
fn patterns_see_decoded_text() {
    let pattern = || Some(Pattern::Start("^你".into()));
    let gbk = framing(FramingSpec { pattern: pattern(), encoding: Some("gbk".into()), ..FramingSpec::default() });
    assert_eq!(lengths(&gbk, b"\xc4\xe3\n \xba\xc3\n\xc4\xe3", End::Cut), [7, 2]);
    let marked = framing(FramingSpec { pattern: pattern(), ..FramingSpec::default() });
    let utf16: Vec<u8> = "\u{feff}你\n 好\n你\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert_eq!(lengths(&marked, utf16, End::Cut), [12, 4]);
}

#[test]
fn a_long_line_is_split_at_fixed_places() {
    let mut data = vec![b'x'; 2 * MAX_EVENT_BYTES + 10];
    data.push(b'\n');
    for framing in [Framing::default(), start(), container()] {
        assert_eq!(ends(&framing, &data, End::Cut, 300_000), [MAX_EVENT_BYTES, 2 * MAX_EVENT_BYTES, data.len()]);
    }
}

#[test]
fn no_character_is_split() {
    let small = |most| framing(FramingSpec { max_event_bytes: most, ..FramingSpec::default() });
    assert_eq!(ends(&small(4), "ab€cd\n".as_bytes(), End::Open, 1), [2, 6, 8]);
    let utf16: Vec<u8> = "\u{feff}a😀b\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(ends(&small(7), &utf16, End::Open, 1), [4, 10, 12]);
}

#[test]
fn a_line_that_is_too_long_is_cut_where_the_rule_says_so() {
    let spec = FramingSpec { max_event_bytes: 4, cut: true, ..FramingSpec::default() };
    let got = read(&framing(spec), b"ab\n0123456789\ncd\nabcd\n", End::Open, || 3, CHUNK);
    assert_eq!(got, Read { ends: vec![3, 14, 17, 22], continuations: vec![], cut: vec![1, 3] });
}

#[test]
fn an_endless_event_is_cut_after_a_line() {
    let data = b" 234567\n".repeat(MAX_EVENT_BYTES / 8 + 3);
    assert_eq!(ends(&start(), &data, End::Cut, 99_999), [MAX_EVENT_BYTES, data.len()]);
    let data = b" 23456789\n".repeat(MAX_EVENT_BYTES / 10 + 3);
    assert_eq!(ends(&start(), &data, End::Cut, 99_999), [MAX_EVENT_BYTES / 10 * 10, data.len()]);
}

#[test]
fn continuations_are_told_by_the_bytes() {
    let continues = |framing: &Framing, before: &[u8], data: &[u8]| {
        let bytes = [before, data].concat();
        let at = before.len();
        let window = Window { bytes: &bytes, at, offset: at as u64, charset: Charset::UTF_8, end: End::Cut };
        frame(framing, window, CHUNK).continuations.first() == Some(&0)
    };
    let lines = Framing::default();
    assert!(!continues(&lines, b"", b"a\n"));
    assert!(!continues(&lines, b"\n", b"a\n"));
    assert!(continues(&lines, b"a", b"a\n"));
    assert!(continues(&lines, b"a", b"a"));
    assert!(continues(&start(), b"\n", b" a\n"));
    assert!(!continues(&start(), b"\n", b"1a\n"));
    assert!(continues(&joined(Pattern::Continue("^ ".into())), b"\n", b" a\n"));
    let statements = joined(Pattern::End(";$".into()));
    assert!(continues(&statements, b"x\n", b"a;\n"));
    assert!(!continues(&statements, b"x;\n", b"a;\n"));
    assert!(continues(&container(), b"2026-01-31T12:00:00Z stdout P a\n", b"2026-01-31T12:00:00Z stdout F b\n"));
    assert!(!continues(&container(), b"2026-01-31T12:00:00Z stdout P a\n", b"2026-01-31T12:00:00Z stderr F b\n"));
}

#[test]
fn a_bad_spec_is_refused_with_its_field() {
    let fault = |spec: FramingSpec| Framing::new(&spec).unwrap_err().0;
    let with = |pattern: Pattern| FramingSpec { pattern: Some(pattern), ..FramingSpec::default() };
    assert_eq!(fault(with(Pattern::Start("(".into()))), "multiline.start_pattern");
    assert_eq!(fault(with(Pattern::End(r"(\w{1000}){1000}".into()))), "multiline.end_pattern");
    assert_eq!(fault(FramingSpec { encoding: Some("klingon".into()), ..FramingSpec::default() }), "encoding");
}

#[test]
fn a_spec_is_kept_as_before_where_it_says_no_more_than_before() {
    let json = |spec: &FramingSpec| serde_json::to_string(spec).unwrap();
    assert_eq!(json(&FramingSpec::default()), "{}");
    let old: FramingSpec = serde_json::from_str(r#"{"start_pattern":"^x"}"#).unwrap();
    assert_eq!(old, FramingSpec { pattern: Some(Pattern::Start("^x".into())), ..FramingSpec::default() });
    let new = FramingSpec {
        pattern: Some(Pattern::End("x".into())),
        max_event_bytes: 5000,
        cut: true,
        container: true,
        encoding: Some("gbk".into()),
    };
    assert_eq!(serde_json::from_str::<FramingSpec>(&json(&new)).unwrap(), new);
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::sample::select(vec!["\n", "\r\n", "1", "ab", " x\n", "2b\n", "7", ";\n", "€", "😀"]);
    let runtime = prop::sample::select(vec![
        "2026-01-31T12:00:00Z stdout F 1a\n",
        "2026-01-31T12:00:00Z stdout P  b\n",
        "2026-01-31T12:00:00Z stderr P ;\n",
        "2026-01-31T12:00:00Z stderr F c;\n",
        "{\"log\":\"1d\\n\",\"stream\":\"stdout\",\"time\":\"2026\"}\n",
        "{\"log\":\" e\",\"stream\":\"stderr\",\"time\":\"2026\"}\n",
    ]);
    let encode = |(texts, kind): (Vec<&str>, u8)| {
        let text = texts.concat();
        match kind {
            0 => format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect(),
            1 => format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_be_bytes).collect(),
            _ => text.into_bytes(),
        }
    };
    (prop::collection::vec(prop_oneof![text, runtime], 0..50), 0..4u8).prop_map(encode)
}

prop_compose! {
    fn any_spec()(
        pattern in prop::option::of(prop_oneof![
            Just(Pattern::Start(r"^\d".into())),
            Just(Pattern::Continue(r"^\s".into())),
            Just(Pattern::End(";$".into())),
        ]),
        most in prop_oneof![Just(MAX_EVENT_BYTES), 5..100usize],
        (cut, container) in any::<(bool, bool)>(),
        encoding in prop::option::of(prop::sample::select(vec!["utf-16le", "utf-16be", "gbk", "utf-8"])),
    ) -> FramingSpec {
        FramingSpec { pattern, max_event_bytes: most, cut, container, encoding: encoding.map(str::to_owned) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Any split of the bytes into reads, and any room, gives the same events, marked alike.
    #[test]
    fn framing_depends_on_bytes_alone(
        data in pieces(),
        spec in any_spec(),
        reads in prop::collection::vec(1usize..40, 1..40),
        bytes in 1usize..50,
        number in 1usize..5,
        cut: bool,
    ) {
        let end = if cut { End::Cut } else { End::Open };
        let framing = framing(spec);
        let whole = read(&framing, &data, end, || usize::MAX / 2, CHUNK);
        let mut turn = reads.iter().cycle();
        let split = read(&framing, &data, end, || *turn.next().unwrap(), Room { bytes, events: number });
        prop_assert_eq!(&whole, &split);
        // Nothing is between events, and after a cut nothing is left.
        prop_assert!(whole.ends.is_sorted_by(|a, b| a < b));
        prop_assert!(!cut || whole.ends.last().copied().unwrap_or(0) == data.len());
    }
}
