//! Order, pages, times, bars and spans.

use std::time::Duration;

use logmesh_types::{ByteRange, UnixNanos};

use super::{Doc, Fixture, NOON, Opened, selection, slice, stream, topic};
use crate::{EventSpan, Hit, IndexError, IndexReader, IndexWriter, Order, Outcome, PageLimit, Selection, StreamSum};

async fn offsets<F: Fixture>(opened: &Opened<'_, F>, order: Order) -> Vec<i64> {
    let page = opened.index.search(&selection("*"), order, PageLimit::hits(100), None).await.unwrap();
    page.hits.iter().map(super::documents::offset_of).collect()
}

/// By time to the nanosecond, then by stream and offset.
pub async fn hits_come_in_order(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let [low, high] = if stream(1) < stream(2) { [stream(1), stream(2)] } else { [stream(2), stream(1)] };
    opened
        .create([
            Doc::new(1, "x").of(high).at(5).build(),
            Doc::new(2, "x").of(low).at(5).build(),
            Doc::new(3, "x").of(low).at(5).build(),
            Doc::new(4, "x").of(high).at(6).in_slice(slice("logs", "2026-01-30")).build(),
            Doc::new(5, "x").of(low).at(4).in_slice(slice("other", "2026-02-01")).build(),
        ])
        .await;
    assert_eq!(offsets(&opened, Order::OldestFirst).await, [5, 2, 3, 1, 4]);
    assert_eq!(offsets(&opened, Order::NewestFirst).await, [4, 3, 2, 1, 5]);
}

/// All pages after the given token.
async fn pages<F: Fixture>(
    opened: &Opened<'_, F>,
    order: Order,
    size: usize,
    mut token: Option<String>,
) -> Vec<Vec<Hit>> {
    let mut pages = Vec::new();
    loop {
        let page = opened.index.search(&selection("x"), order, PageLimit::hits(size), token.as_deref()).await.unwrap();
        pages.push(page.hits);
        token = page.next_page_token;
        if token.is_none() {
            return pages;
        }
    }
}

/// Page after page gives every hit once, in order, and the last page says that it is.
pub async fn pages_join_up(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let doc = |n: i64| {
        Doc::new(n, "x")
            .of(stream(n as u64 % 3))
            .at(n / 4)
            .in_slice(slice("logs", &format!("2026-01-{:02}", n % 3 + 1)))
    };
    for bulk in 0..4 {
        opened.create((bulk * 10..bulk * 10 + 10).map(|n| doc(n).build())).await;
    }
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let all = opened.index.search(&selection("x"), order, PageLimit::hits(1_000), None).await.unwrap();
        assert_eq!((all.hits.len(), all.total, all.next_page_token), (40, 40, None));
        for size in [1, 7, 10, 39, 40] {
            let pages = pages(&opened, order, size, None).await;
            assert_eq!(pages.len(), 40_usize.div_ceil(size));
            assert!(pages.iter().rev().skip(1).all(|page| page.len() == size));
            assert_eq!(pages.concat(), all.hits);
        }
        let small = PageLimit { hits: 40, bytes: 1 };
        let first = opened.index.search(&selection("x"), order, small, None).await.unwrap();
        let second =
            opened.index.search(&selection("x"), order, small, first.next_page_token.as_deref()).await.unwrap();
        assert_eq!([first.hits, second.hits].concat(), all.hits[..2], "one hit comes whatever its size");
    }
    let none = opened.index.search(&selection("nothing"), Order::NewestFirst, PageLimit::hits(10), None).await.unwrap();
    assert_eq!((none.hits.len(), none.total, none.next_page_token), (0, 0, None));
}

/// Documents that nothing but their slices tells from each other each come once.
pub async fn pages_tell_slices_apart(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let dates = ["2026-01-29", "2026-01-30", "2026-01-31"];
    opened.create(dates.map(|date| Doc::new(1, "x").in_slice(slice("logs", date)).build())).await;
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let pages = pages(&opened, order, 1, None).await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
    }
}

/// What is written between two pages moves nothing that was there.
pub async fn pages_stay_put_under_writes(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened.create((0..20).map(|n| Doc::new(n * 10, "x").build())).await;
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let all = opened.index.search(&selection("x"), order, PageLimit::hits(1_000), None).await.unwrap().hits;
        let first = opened.index.search(&selection("x"), order, PageLimit::hits(6), None).await.unwrap();
        let new = if order == Order::NewestFirst { 1 } else { 2 };
        opened.create((0..20).map(|n| Doc::new(n * 10 + new, "x").build())).await;
        let rest = pages(&opened, order, 6, first.next_page_token).await.concat();
        let seen: Vec<Hit> = first.hits.into_iter().chain(rest).filter(|hit| all.contains(hit)).collect();
        assert_eq!(seen, all);
    }
}

/// A token of another search, or none at all, is refused.
pub async fn a_page_token_belongs_to_its_search(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened.create((0..3).map(|n| Doc::new(n, "x").build())).await;
    let page = opened.index.search(&selection("x"), Order::NewestFirst, PageLimit::hits(1), None).await.unwrap();
    let token = page.next_page_token.unwrap();
    let later = Selection { from: Some(NOON), ..selection("x") };
    for (selection, order, token) in [
        (selection("x OR y"), Order::NewestFirst, token.as_str()),
        (selection("x"), Order::OldestFirst, token.as_str()),
        (later, Order::NewestFirst, token.as_str()),
        (selection("x"), Order::NewestFirst, "nonsense"),
        (selection("x"), Order::NewestFirst, ""),
    ] {
        let refused = opened.index.search(&selection, order, PageLimit::hits(1), Some(token)).await;
        assert!(matches!(refused, Err(IndexError::BadPageToken)), "{token}: {refused:?}");
    }
}

/// From is included, to is not, both to the nanosecond.
pub async fn times_bound_a_search(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened.create((0..5).map(|n| Doc::new(n, "x").at(n).build())).await;
    opened.create((5..8).map(|n| Doc::new(n, "x").at(n).in_slice(slice("logs", "2026-01-30")).build())).await;
    let between = |from: Option<i64>, to: Option<i64>| Selection {
        from: from.map(|nanos| UnixNanos(NOON.0 + nanos)),
        to: to.map(|nanos| UnixNanos(NOON.0 + nanos)),
        ..selection("x")
    };
    assert_eq!(opened.find_in(&between(Some(2), Some(6))).await, [2, 3, 4, 5]);
    assert_eq!(opened.find_in(&between(Some(6), None)).await, [6, 7]);
    assert_eq!(opened.find_in(&between(None, Some(1))).await, [0]);
    assert_eq!(opened.find_in(&between(Some(0), Some(8))).await.len(), 8);
    assert!(opened.find_in(&between(Some(8), None)).await.is_empty());
    assert!(opened.find_in(&between(Some(4), Some(4))).await.is_empty());
}

/// Bars begin at multiples of the interval, before 1970 too; empty ones are left out, and too many refused.
pub async fn bars_count_documents(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let second = 1_000_000_000;
    let times = [0, 1, 59 * second, 60 * second, 180 * second - 1, 7 * 86_400 * second];
    opened.create(times.iter().zip(0..).map(|(nanos, n)| Doc::new(n, "x").at(*nanos).build())).await;
    opened.create([Doc::new(90, "x").at(-NOON.0 - 1).build()]).await;
    let bars = opened.index.histogram(&selection("x"), Duration::from_secs(60)).await.unwrap();
    let minute = |n: i64| NOON.0 + n * 60 * second;
    let expected = [(-60 * second, 1), (minute(0), 3), (minute(1), 1), (minute(2), 1), (minute(7 * 1_440), 1)];
    assert_eq!(bars.iter().map(|bar| (bar.start.0, bar.count)).collect::<Vec<_>>(), expected);

    let last = Selection { from: Some(UnixNanos(NOON.0 + 60 * second)), ..selection("x") };
    let bars = opened.index.histogram(&last, Duration::from_secs(3_600)).await.unwrap();
    assert_eq!(bars.iter().map(|bar| bar.count).collect::<Vec<_>>(), [2, 1]);

    opened.create((0..10_001).map(|n| Doc::new(1_000 + n, "y").at(n).build())).await;
    let refused = opened.index.histogram(&selection("y"), Duration::from_nanos(1)).await;
    assert!(matches!(refused, Err(IndexError::Unsupported { .. })));
    let zero = opened.index.histogram(&selection("x"), Duration::ZERO).await;
    assert!(matches!(zero, Err(IndexError::Unsupported { .. })));
}

/// The spans of a stream come by their place, over all slices, bounded by where they begin and how many are wanted.
pub async fn spans_tell_where_documents_lie(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let doc = |offset: i64| {
        Doc::new(offset, "x").in_slice(slice("logs", if offset < 30 { "2026-02-01" } else { "2026-01-31" }))
    };
    opened.create([40, 0, 20, 10, 30].map(|offset| doc(offset).build())).await;
    // The same bytes once more, as another day's document.
    let again = doc(10).in_slice(slice("logs", "2026-02-02"));
    let others = [doc(50).of(stream(2)), doc(60).in_slice(slice("other", "2026-01-31"))].map(|doc| doc.build());
    let written = [vec![again.build()], others.to_vec()].concat();
    // Not settled: from 0 on, spans show what was written before.
    assert_eq!(opened.index.write(written).await.unwrap(), [Outcome::Created, Outcome::Created, Outcome::Created]);

    let spans = async |from, limit| opened.index.spans(&topic("logs"), &stream(1), from, limit).await.unwrap();
    let starts = |spans: &[EventSpan]| spans.iter().map(|span| span.range.start).collect::<Vec<_>>();
    let all = spans(0, 100).await;
    assert_eq!(starts(&all), [0, 10, 10, 20, 30, 40]);
    assert_eq!(all[3], EventSpan { range: ByteRange::new(20, 30), id: Some(doc(20).id()) });
    assert_eq!(starts(&spans(10, 100).await), [10, 10, 20, 30, 40]);
    assert_eq!(starts(&spans(11, 2).await), [20, 30]);
    assert!(spans(41, 100).await.is_empty());
    assert!(spans(u64::MAX, 100).await.is_empty());
    assert!(opened.index.spans(&topic("logs"), &stream(9), 0, 100).await.unwrap().is_empty());
}

/// The sums of streams are those of their documents, slice by slice, as far as is asked.
pub async fn sums_tell_what_documents_come_to(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let day = |offset: i64| slice("logs", if offset < 30 { "2026-02-01" } else { "2026-01-31" });
    let doc = |offset: i64| Doc::new(offset, "x").in_slice(day(offset));
    let far = 1 << 32;
    let others = [doc(50).of(stream(2)), doc(60).in_slice(slice("other", "2026-01-31"))].map(|doc| doc.build());
    let mut written: Vec<_> = [0, 10, 20, 30, far, far + 10].iter().map(|offset| doc(*offset).build()).collect();
    written.extend(others);
    written.push(doc(10).in_slice(slice("logs", "2026-02-02")).build());
    // Not settled: sums count what was written before.
    assert!(opened.index.write(written).await.unwrap().iter().all(|outcome| *outcome == Outcome::Created));

    let sums = async |asked: &[(u64, u64)]| {
        let asked: Vec<_> = asked.iter().map(|(number, before)| (stream(*number), *before)).collect();
        let mut sums = opened.index.sums(&topic("logs"), &asked).await.unwrap();
        sums.iter_mut().for_each(|slices| slices.sort());
        sums
    };
    let of = |places: &[i64]| {
        let mut sum = StreamSum::default();
        places.iter().for_each(|at| sum.add(ByteRange::new(*at as u64, *at as u64 + 10)));
        sum
    };
    let all = [of(&[0, 10, 20]), of(&[10]), of(&[30, far, far + 10])];
    let asked = sums(&[(2, u64::MAX), (9, u64::MAX), (1, u64::MAX)]).await;
    assert_eq!(asked, [vec![of(&[50])], vec![], all.to_vec()]);
    assert_eq!(sums(&[(1, 10)]).await, [vec![of(&[0])]]);
    assert_eq!(sums(&[(1, 11)]).await, [vec![of(&[0, 10]), of(&[10])]]);
    assert_eq!(sums(&[(1, 0)]).await, [vec![]]);
    assert!(sums(&[]).await.is_empty());
    let many: Vec<(u64, u64)> = (1..1_200).map(|number| (number, u64::MAX)).collect();
    let many = sums(&many).await;
    assert_eq!((many.len(), &many[0][..], &many[1][..]), (1_199, &all[..], &[of(&[50])][..]));
    assert!(many[2..].iter().all(Vec::is_empty));
    assert_eq!(opened.index.sums(&topic("nothing"), &[(stream(1), 5)]).await.unwrap(), [vec![]]);
}
