//! Topics, appends and reads without a group.

use logmesh_types::{UnixNanos, limits};

use super::*;
use crate::{Offset, Records, partition_of};

/// Records of one key are in one partition, in the order of the calls, at growing offsets, however many are under way.
pub async fn keeps_the_order_of_a_key(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 4, KEEP).await;
    let records: Vec<_> =
        (0..1_000).map(|n| record(&format!("key-{}", n % 20), &format!("{}:{n:04}", n % 20))).collect();
    let positions = append_all(&*bus, &topic, records).await;
    for key in 0..20 {
        let of_key: Vec<_> = positions.iter().skip(key).step_by(20).collect();
        assert!(of_key.windows(2).all(|two| two[0].partition == two[1].partition && two[0].offset < two[1].offset));
        let all = read_all(&*bus, &at(&topic, of_key[0].partition), NextOffset(0)).await;
        let prefix = format!("{key}:");
        let found: Vec<_> = values(&all).into_iter().filter(|value| value.starts_with(&prefix)).collect();
        assert_eq!(found.len(), 50);
        assert!(found.is_sorted());
    }
}

/// Records that are appended together lie one after the other, and the outcome is the last one's. What can't be taken ends
/// them: its error is that of all, though those before it are stored.
pub async fn appends_many_as_one(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let all_of = |values: &[&str]| {
        let mut records = Records::new(Bytes::from("k"), Vec::new(), 0);
        values.iter().for_each(|value| records.value().extend(value.as_bytes()));
        records
    };
    let written: Vec<String> = (0..3_000).map(|n| format!("{n:04}{}", "x".repeat(1_000))).collect();
    let written: Vec<&str> = written.iter().map(String::as_str).collect();
    let last = soon("an append", bus.append_all(&topic, all_of(&written)).await.unwrap()).await.unwrap();
    assert_eq!(last, Position { partition: 0, offset: Offset(2_999) });
    let all = read_all(&*bus, &at(&topic, 0), NextOffset(0)).await;
    assert_eq!(values(&all), written);

    let too_large = "x".repeat(limits::MAX_RECORD_BYTES + 1);
    let is_too_large = |error: BusError| matches!(error, BusError::RecordTooLarge { .. });
    let after_one = bus.append_all(&topic, all_of(&["before", &too_large, "after"])).await.unwrap();
    assert!(is_too_large(soon("an append", after_one).await.unwrap_err()));
    assert!(bus.append_all(&topic, all_of(&[&too_large, "after"])).await.is_err_and(is_too_large));
    let rest = read_all(&*bus, &at(&topic, 0), NextOffset(3_000)).await;
    assert_eq!(values(&rest), ["before"]);
    assert!(bus.append_all(&topic, Records::default()).await.unwrap().await.unwrap_err().retryable());
}

/// The partition is the one that [`partition_of`] names, and offsets begin at 0 without holes.
pub async fn chooses_the_partition_by_key(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 3, KEEP).await;
    let positions = append_all(&*bus, &topic, (0..60).map(|n| record(&n.to_string(), "x"))).await;
    let mut next = [0; 3];
    for (n, position) in positions.iter().enumerate() {
        assert_eq!(position.partition, partition_of(n.to_string().as_bytes(), 3));
        let expected = &mut next[position.partition as usize];
        assert_eq!(position.offset, Offset(*expected));
        *expected += 1;
    }
    for (partition, high) in next.into_iter().enumerate() {
        let marks = bus.watermarks(&at(&topic, partition as u32)).await.unwrap();
        assert_eq!((marks.low, marks.high), (NextOffset(0), NextOffset(high)));
    }
}

/// Key, value, headers and time come back as they were given; without a time a record gets the present one.
pub async fn keeps_records_whole(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let headers = vec![("a".into(), Bytes::from_static(b"\x00\xff")), ("b".into(), Bytes::new())];
    let time = UnixNanos(1_700_000_000_123_000_000);
    let full = NewRecord {
        key: Bytes::from_static(b"\x01key"),
        value: Bytes::from(vec![7; 300_000]),
        headers: headers.clone(),
        timestamp: Some(time),
    };
    let before = UnixNanos::now();
    append_all(&*bus, &topic, [full.clone(), NewRecord::default()]).await;
    let all = read_all(&*bus, &at(&topic, 0), NextOffset(0)).await;
    assert_eq!((&all[0].key, &all[0].value, &all[0].headers), (&full.key, &full.value, &headers));
    assert_eq!(all[0].timestamp, time);
    assert_eq!(all[0].header("a").unwrap().as_ref(), b"\x00\xff");
    assert!(all[1].key.is_empty() && all[1].value.is_empty() && all[1].headers.is_empty());
    assert!(all[1].timestamp.0 / 1_000_000 >= before.0 / 1_000_000);
}

/// A read ends at its bytes but gives one record at least, begins where it is told, and is empty at the end.
pub async fn reads_by_size(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let value = "v".repeat(1_000);
    append_all(&*bus, &topic, (0..10).map(|_| record("k", &value))).await;
    let at = at(&topic, 0);
    assert_eq!(bus.read(&at, NextOffset(0), 1).await.unwrap().len(), 1);
    let some = bus.read(&at, NextOffset(3), 3_500).await.unwrap();
    assert!((1..=4).contains(&some.len()), "{}", some.len());
    assert_eq!(some[0].offset.0, 3);
    assert_eq!(read_all(&*bus, &at, NextOffset(0)).await.len(), 10);
    assert!(bus.read(&at, NextOffset(10), 1 << 20).await.unwrap().is_empty());
}

/// A wait ends with the record it waits for, at once if it is there, and with its time.
pub async fn waits_for_a_record(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let at = at(&topic, 0);
    soon("a wait for nothing", bus.wait(&at, NextOffset(0), Duration::from_millis(50))).await.unwrap();
    let waiting = bus.wait(&at, NextOffset(1), PATIENCE * 10);
    let appending = async { append_all(&*bus, &topic, [record("k", "0"), record("k", "1")]).await };
    let (waited, _) = soon("a wait", futures::future::join(waiting, appending)).await;
    waited.unwrap();
    assert_eq!(values(&bus.read(&at, NextOffset(1), 1).await.unwrap()), ["1"]);
    soon("a wait for what is there", bus.wait(&at, NextOffset(0), PATIENCE * 10)).await.unwrap();
}

/// A time finds the first record that is as late or later, also where times went back; after the last, the end.
pub async fn seeks_by_time(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let at = at(&topic, 0);
    let base = 1_700_000_000_000i64;
    let time = |millis: i64| UnixNanos((base + millis) * 1_000_000);
    assert_eq!(bus.offset_at(&at, time(0)).await.unwrap(), NextOffset(0));
    let mut millis: Vec<i64> = (0..500).map(|n| n * 100).collect();
    millis[200] = 0;
    let stamped = millis.iter().map(|ms| NewRecord { timestamp: Some(time(*ms)), ..record("k", "v") });
    append_all(&*bus, &topic, stamped).await;
    for wanted in [-5, 0, 1, 100, 19_900, 19_901, 20_000, 20_001, 49_899, 49_900, 49_901] {
        let expected = millis.iter().position(|ms| *ms >= wanted).unwrap_or(millis.len());
        let found = bus.offset_at(&at, time(wanted)).await.unwrap();
        assert_eq!(found, NextOffset(expected as u64), "at {wanted} ms");
    }
}

/// A record over the limit is refused for good and does not harm the next one.
pub async fn refuses_what_is_too_large(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let large = NewRecord { value: Bytes::from(vec![0; limits::MAX_RECORD_BYTES + 1]), ..NewRecord::default() };
    let error = match bus.append(&topic, large).await {
        Err(error) => error,
        Ok(append) => append.await.unwrap_err(),
    };
    assert!(matches!(error, BusError::RecordTooLarge { .. }), "{error}");
    assert!(!error.retryable());
    let largest = NewRecord { value: Bytes::from(vec![1; limits::MAX_RECORD_BYTES]), ..NewRecord::default() };
    let positions = append_all(&*bus, &topic, [largest, record("", "next")]).await;
    assert_eq!(positions.iter().map(|position| position.offset).collect::<Vec<_>>(), [Offset(0), Offset(1)]);
}

/// Making a topic again does nothing; another number of partitions or kind of cleanup is refused; new retention is
/// taken over.
pub async fn makes_a_topic_once(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 2, KEEP).await;
    append_all(&*bus, &topic, [record("k", "v")]).await;
    let spec = bus.topic(&topic).await.unwrap().unwrap();
    assert_eq!(spec, TopicSpec { name: topic.clone(), partitions: 2, cleanup: KEEP });
    bus.ensure_topic(&spec).await.unwrap();
    for wrong in [TopicSpec { partitions: 3, ..spec.clone() }, TopicSpec { cleanup: Cleanup::Compact, ..spec.clone() }]
    {
        let error = bus.ensure_topic(&wrong).await.unwrap_err();
        assert!(matches!(error, BusError::TopicDiffers { .. }), "{error}");
    }
    let day = Some(Duration::from_secs(86_400));
    let kept = TopicSpec { cleanup: Cleanup::Delete { max_age: day, max_bytes: Some(1 << 30) }, ..spec };
    bus.ensure_topic(&kept).await.unwrap();
    // A broker of Kafka's may hear of it a little after the one that was asked.
    let heard = async {
        while bus.topic(&topic).await.unwrap().as_ref() != Some(&kept) || !bus.topics().await.unwrap().contains(&kept) {
            tokio::task::yield_now().await;
        }
    };
    soon("what the topic is", heard).await;
    let marks = (bus.watermarks(&at(&topic, 0)).await.unwrap(), bus.watermarks(&at(&topic, 1)).await.unwrap());
    assert_eq!(marks.0.high.0 + marks.1.high.0, 1);
}

/// What isn't there is said to be unknown.
pub async fn knows_only_its_topics(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let absent: TopicName = fixture.unique("absent").parse().unwrap();
    assert_eq!(bus.topic(&absent).await.unwrap(), None);
    assert!(bus.topics().await.unwrap().iter().all(|spec| spec.name != absent));
    for nowhere in [at(&absent, 0), at(&topic, 1)] {
        let error = bus.read(&nowhere, NextOffset(0), 1).await.unwrap_err();
        assert!(matches!(error, BusError::UnknownPartition { .. }), "{error}");
        let error = bus.watermarks(&nowhere).await.unwrap_err();
        assert!(matches!(error, BusError::UnknownPartition { .. }), "{error}");
    }
    let error = match bus.append(&absent, record("k", "v")).await {
        Err(error) => error,
        Ok(append) => append.await.unwrap_err(),
    };
    assert!(matches!(error, BusError::UnknownPartition { .. }), "{error}");
}

/// Of each key the latest record is there; after an empty value, none that has a value.
pub async fn compacts_by_key(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, Cleanup::Compact).await;
    let mut records = Vec::new();
    for round in 0..5 {
        records.extend((0..10).map(|key| record(&format!("key-{key}"), &format!("{key}:{round}"))));
    }
    records.push(record("key-3", ""));
    append_all(&*bus, &topic, records).await;
    let bus = fixture.reopen(bus).await;
    let all = read_all(&*bus, &at(&topic, 0), NextOffset(0)).await;
    assert!(all.windows(2).all(|two| two[0].offset < two[1].offset));
    for key in 0..10 {
        let name = format!("key-{key}");
        let latest = all.iter().rev().find(|record| record.key == name.as_bytes());
        match latest {
            Some(record) if key == 3 => assert!(record.value.is_empty()),
            Some(record) => assert_eq!(record.value, format!("{key}:4").as_bytes()),
            None => assert_eq!(key, 3),
        }
    }
    assert_eq!(bus.watermarks(&at(&topic, 0)).await.unwrap().high, NextOffset(51));
}

/// Topics, records, watermarks, the index by time and commits are there after a restart, and offsets go on.
pub async fn keeps_everything_over_a_restart(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 2, KEEP).await;
    let group = fixture.unique("g");
    let positions = append_all(&*bus, &topic, (0..100).map(|n| record(&n.to_string(), &n.to_string()))).await;
    let mut members = [Member::join(&*bus, &group, std::slice::from_ref(&topic)).await];
    drive("reading", &mut members, |members| members[0].read.len() == 100).await;
    members[0].commit_all().await;
    drop(members);

    let bus = fixture.reopen(bus).await;
    assert_eq!(bus.topic(&topic).await.unwrap().unwrap().partitions, 2);
    let mut found = 0;
    for partition in 0..2 {
        let at = at(&topic, partition);
        let records = read_all(&*bus, &at, NextOffset(0)).await;
        let marks = bus.watermarks(&at).await.unwrap();
        assert_eq!(marks.high.0, records.len() as u64);
        assert_eq!(bus.committed(&group, &at).await.unwrap(), Some(marks.high));
        assert_eq!(bus.offset_at(&at, records[10].timestamp).await.unwrap().0 / 11, 0);
        found += records.len();
    }
    assert_eq!(found, 100);
    let more = append_all(&*bus, &topic, [record("0", "more")]).await;
    let before = positions.iter().filter(|position| position.partition == more[0].partition).count();
    assert_eq!(more[0].offset, Offset(before as u64));
}
