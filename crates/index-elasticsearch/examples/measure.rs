//! Measures Elasticsearch as the index, on a server that it starts:
//! `cargo run --release -p logmesh-index-elasticsearch --example measure [BULKS] [DOCS]`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for developers")]

use std::time::{Duration, Instant};

use logmesh_index::query::Query;
use logmesh_index::{IndexReader, IndexWriter, NewDoc, Order, PageLimit, Selection, Slice};
use logmesh_index_elasticsearch::{ElasticIndex, Settings};
use logmesh_testing::servers::Elasticsearch;
use logmesh_types::{DocId, StreamId, UnixNanos};

const DAY: i64 = 1_769_860_800_000_000_000;

fn doc(number: u64) -> NewDoc {
    let stream = StreamId::derive(&"web-1".parse().unwrap(), number % 16, 0, 0);
    let time = UnixNanos(DAY + number as i64 * 1_000_000);
    let status = [200, 200, 200, 404, 500][number as usize % 5];
    let body = format!(
        "{{\"@timestamp\":\"{time}\",\"message\":\"10.0.{}.{} - - GET /api/v1/items/{number} HTTP/1.1 {status} {}\",\
         \"log.file.path\":\"/var/log/nginx/access.log\",\"log.offset\":{},\"host.name\":\"web-{}\",\"labels.role\":\"web\",\
         \"logmesh.stream\":\"{stream}\",\"logmesh.offset\":{},\"logmesh.length\":80,\"logmesh.rule\":\"rules/nginx\",\
         \"logmesh.revision\":3,\"attributes.status\":{status}}}",
        number / 250 % 250,
        number % 250,
        number * 7 % 10_000,
        number * 80,
        number % 16,
        number * 80,
    );
    let slice = Slice { topic: "nginx".parse().unwrap(), date: "2026-01-31".to_owned() };
    NewDoc { slice: slice.into(), id: DocId::of_event(&stream, number * 80, b"x"), body: body.into() }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().unwrap());
    let (bulks, size) = (args.next().unwrap_or(100), args.next().unwrap_or(5_000));
    let server = Elasticsearch::start(&[("ES_JAVA_OPTS", "-XX:TieredStopAtLevel=4"), ("ES_HEAP", "2g")]);
    let urls = vec![format!("http://{}", server.address())];
    let index = ElasticIndex::new(Settings { urls, replicas: 0, ..Settings::default() }).unwrap();
    println!("body: {} bytes", doc(123_456).body.len());
    let mut next = 0;
    // The first bulks warm the server up.
    for (bulks, size) in [(bulks, size), (bulks, size), (50, 1), (50, 100)] {
        let mut times = Vec::new();
        for _ in 0..bulks {
            let docs: Vec<NewDoc> = (next..next + size).map(doc).collect();
            next += size;
            let start = Instant::now();
            index.write(docs).await.unwrap();
            times.push(start.elapsed());
        }
        let total: Duration = times.iter().sum();
        println!(
            "bulks of {size}: {:.0} docs/s, bulk p50 {:?} p99 {:?} max {:?}",
            (bulks * size) as f64 / total.as_secs_f64(),
            percentile(&mut times, 50),
            percentile(&mut times, 99),
            percentile(&mut times, 100),
        );
    }
    index.refresh().await.unwrap();
    let selection =
        |text: &str| Selection { query: Query::parse(text).unwrap(), from: None, to: None, topics: Vec::new() };
    for text in
        ["*", "items", "404", "host.name:web-1 500", "1234*", "attributes.status:>=500", "NOT items", "10.0.1.*"]
    {
        let start = Instant::now();
        let page = index.search(&selection(text), Order::NewestFirst, PageLimit::hits(100), None).await.unwrap();
        println!("search {text}: {:?}, {} of {}", start.elapsed(), page.hits.len(), page.total);
    }
    let start = Instant::now();
    let one = index.contains(&"nginx".parse().unwrap(), &[doc(5).id]).await.unwrap();
    println!("contains one id, {one:?}: {:?}", start.elapsed());
    let ids: Vec<DocId> = (0..5_000).map(|number| doc(number * 7 % next).id).collect();
    let start = Instant::now();
    let found = index.contains(&"nginx".parse().unwrap(), &ids).await.unwrap();
    println!("contains {} ids: {:?}", found.iter().filter(|found| **found).count(), start.elapsed());
}
