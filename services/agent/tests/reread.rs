//! What was lost behind a gateway is read again at the centre's word, and nothing of what is new waits for it.

#![allow(clippy::unwrap_used)] // a test, its helpers too

mod mesh;

use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::{AnswerCommandRequest, Command, ReadOutcome, ReadRanges, StreamRange};
use logmesh_testing::wait_for_async;
use mesh::host::{Host, arrived};
use mesh::{Centre, Gateway, LIMIT, Mode};

/// Asks for ranges and waits for the answer.
async fn ask(centre: &Centre, id: &str, stream_id: &str, ranges: &[(u64, u64)]) -> AnswerCommandRequest {
    let range =
        |(start_offset, end_offset): &(u64, u64)| StreamRange { start_offset: *start_offset, end_offset: *end_offset };
    let (topic, ranges) = ("logs".to_owned(), ranges.iter().map(range).collect());
    let kind = Kind::ReadRanges(ReadRanges { stream_id: stream_id.to_owned(), topic, ranges });
    centre.commands.send_modify(|commands| commands.push(Command { id: id.into(), kind: Some(kind) }));
    wait_for_async("the answer", LIMIT, || async {
        let answers = centre.answers.lock().unwrap();
        answers.iter().find(|answer| answer.command_id == id).cloned().ok_or(format!("{answers:?}"))
    })
    .await
}

/// What became of each range: its ends, the outcome and the events.
fn outcomes(answer: AnswerCommandRequest) -> Vec<(u64, u64, ReadOutcome, u64)> {
    let Some(Answer::RangesRead(read)) = answer.answer else { panic!("{answer:?}") };
    read.ranges.iter().map(|one| (one.start_offset, one.end_offset, one.outcome(), one.events)).collect()
}

/// The chunks that came once more, by their places.
fn repeated(gateway: &Gateway) -> Vec<(u64, String)> {
    let chunks = gateway.chunks.lock().unwrap();
    let repeated = chunks.iter().filter(|chunk| chunk.repeated);
    repeated.map(|chunk| (chunk.start_offset, String::from_utf8_lossy(&chunk.data).into_owned())).collect()
}

#[tokio::test]
async fn ranges_are_pushed_once_more_and_no_checkpoint_moves() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\ntwo\nthree\nfour\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &["one\ntwo\nthree\nfour\n"]).await;
    let path = host.path("a.log").display().to_string();
    let acked = |centre: &Centre| centre.stream(&path).filter(|stream| stream.acked_offset == 19);
    let stream =
        wait_for_async("the report", LIMIT, || async { acked(&centre).ok_or("none".to_owned()) }).await.stream_id;

    let answer = ask(&centre, "1", &stream, &[(0, 4), (8, 19), (19, 25)]).await;
    let expected =
        [(0, 4, ReadOutcome::Sent, 1), (8, 19, ReadOutcome::Sent, 2), (19, 25, ReadOutcome::NotCollected, 0)];
    assert_eq!(outcomes(answer), expected);
    assert_eq!(repeated(&gateway), [(0, "one\n".to_owned()), (8, "three\nfour\n".to_owned())]);

    // A refusal is told, and what is new goes on.
    gateway.mode.send_replace(Mode::Refuse);
    assert_eq!(outcomes(ask(&centre, "2", &stream, &[(4, 8)]).await), [(4, 8, ReadOutcome::Refused, 0)]);
    gateway.mode.send_replace(Mode::Ack);
    host.append("a.log", "five\n");
    wait_for_async("what is new", LIMIT, || async {
        let chunks = gateway.chunks.lock().unwrap();
        let new = chunks.iter().filter(|chunk| !chunk.repeated && chunk.start_offset == 19).count();
        if new == 1 { Ok(()) } else { Err(format!("{new} times")) }
    })
    .await;

    std::fs::remove_file(host.path("a.log")).unwrap();
    assert_eq!(outcomes(ask(&centre, "3", &stream, &[(0, 4)]).await), [(0, 4, ReadOutcome::Gone, 0)]);
    let nobody = "0".repeat(32);
    assert_eq!(outcomes(ask(&centre, "4", &nobody, &[(0, 4)]).await), [(0, 4, ReadOutcome::Gone, 0)]);
    assert!(ask(&centre, "5", &stream, &[(4, 0)]).await.error.contains("not in order"));
    host.stop().await;
}
