//! All documents that an Elasticsearch holds, asked of itself: a judge doesn't take our own search's word for what is there.

use std::sync::mpsc::{SyncSender, sync_channel};

use serde_json::{Value, json};

use crate::cluster::http;

/// Each reads a part of the documents. With two cores for all, more are no quicker.
const READERS: usize = 2;

/// Documents of a page.
const PAGE: usize = 2_000;

/// Pages that wait to be taken. So many, and one for each reader, are held at most.
const WAITING: usize = 4;

/// How long Elasticsearch keeps what it gives pages of, from one page to the next.
const KEPT: &str = "10m";

/// Calls `look` with each document of the indices, on threads of its own, and `take` with what that gave, on this one. All
/// are of one moment; their order is none.
///
/// Panics if Elasticsearch doesn't answer, or only in part.
pub fn each<T: Send>(address: &str, indices: &str, look: impl Fn(&Value) -> T + Sync, take: impl FnMut(T)) {
    ask(address, &format!("/{indices}/_refresh"), "");
    let moment = ask(address, &format!("/{indices}/_pit?keep_alive={KEPT}"), "")["id"].take();
    std::thread::scope(|scope| {
        let (sender, pages) = sync_channel(WAITING);
        for reader in 0..READERS {
            let (sender, moment, look) = (sender.clone(), &moment, &look);
            scope.spawn(move || read(address, moment, reader, look, &sender));
        }
        drop(sender);
        pages.into_iter().flatten().for_each(take);
    });
}

fn read<T>(address: &str, moment: &Value, reader: usize, look: impl Fn(&Value) -> T, pages: &SyncSender<Vec<T>>) {
    let mut search = json!({
        "pit": { "id": moment, "keep_alive": KEPT }, "slice": { "id": reader, "max": READERS },
        "size": PAGE, "sort": ["_shard_doc"], "track_total_hits": false,
    });
    loop {
        let mut page = ask(address, "/_search?allow_partial_search_results=false", &search.to_string());
        assert!(page["timed_out"] == false && page["_shards"]["failed"] == 0, "half an answer: {}", page["_shards"]);
        let Value::Array(mut hits) = page["hits"]["hits"].take() else { panic!("no hits: {page}") };
        let Some(last) = hits.last_mut() else { return };
        search["search_after"] = last["sort"].take();
        // Whoever takes them may have given up.
        if pages.send(hits.into_iter().map(|hit| look(&as_written(hit))).collect()).is_err() {
            return;
        }
    }
}

/// The document as it was sent, one that Elasticsearch refused lies within another; with its `_id` and `_index`.
fn as_written(mut hit: Value) -> Value {
    let mut document = hit["_source"].take();
    if let Some(body) = document["logmesh.derived"]["body"].as_str() {
        document = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {body}"));
    }
    ["_id", "_index"].into_iter().for_each(|key| document[key] = hit[key].take());
    document
}

fn ask(address: &str, path: &str, body: &str) -> Value {
    let answer = http(address, "POST", path, body).unwrap_or_else(|error| panic!("{path}: {error}"));
    let body = answer.strip_prefix("HTTP/1.1 200").and_then(|answer| Some(answer.split_once("\r\n\r\n")?.1));
    let body = body.unwrap_or_else(|| panic!("{path}: {answer}"));
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error} in an answer of {} bytes", body.len()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use logmesh_testing::servers;

    use super::*;

    #[test]
    fn each_document_comes_once_as_it_was_written() {
        let address = servers::elasticsearch().address();
        let count = PAGE * 3 + 1;
        let source = |number: usize| match number % 10 {
            0 => json!({ "logmesh.derived": { "body": json!({ "n": number }).to_string() }, "n": [1] }),
            _ => json!({ "n": number, "text": "\u{1f468} \u{e9}" }),
        };
        for (index, from) in [("documents-a", 0), ("documents-b", count)] {
            let lines: Vec<String> =
                (from..from + count).map(|n| format!("{{\"index\":{{\"_id\":\"{n}\"}}}}\n{}\n", source(n))).collect();
            let answer = http(&address, "POST", &format!("/{index}/_bulk"), &lines.concat()).unwrap();
            assert!(answer.contains("\"errors\":false"), "{answer}");
        }
        let (mut found, mut numbers) = (0, BTreeSet::new());
        each(
            &address,
            "documents-*",
            |document| {
                let number = document["n"].as_u64().unwrap();
                let index = if number < count as u64 { "documents-a" } else { "documents-b" };
                assert_eq!((&document["_id"], &document["_index"]), (&number.to_string().into(), &index.into()));
                number
            },
            |number| {
                found += 1;
                numbers.insert(number);
            },
        );
        assert_eq!(found, count * 2);
        assert!(numbers.into_iter().eq(0..count as u64 * 2));
    }

    #[test]
    fn an_error_is_no_answer() {
        let address = servers::elasticsearch().address();
        let fails = std::panic::catch_unwind(|| each(&address, "nowhere", |_| (), |()| ()));
        assert!(fails.is_err());
    }
}
