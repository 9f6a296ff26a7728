//! An agent is had read again by whichever server it is connected to, whoever is asked.

mod common;

use common::{Server, agent, meet, next, start, start_beside};
use logmesh_config::Settings;
use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{
    AnswerCommandRequest, RangeRead, RangesRead, ReadAgainRequest, ReadAgainResponse, ReadOutcome, StreamRange,
    WatchConfigResponse,
};
use tonic::{Code, Status, Streaming};

fn request(agent: &str) -> ReadAgainRequest {
    ReadAgainRequest {
        agent_id: agent.to_owned(),
        stream_id: "0".repeat(32),
        topic: "logs".to_owned(),
        ranges: vec![StreamRange { start_offset: 3, end_offset: 9 }],
        this_server_only: false,
    }
}

async fn ask(server: &Server, request: ReadAgainRequest) -> Result<ReadAgainResponse, Status> {
    server.fleet().read_again(request).await.map(tonic::Response::into_inner)
}

/// Answers the next command, which must be for these ranges, as the agent would.
async fn answer(server: &Server, config: &mut Streaming<WatchConfigResponse>, id: &str, read: RangeRead) {
    loop {
        let Some(Update::Command(command)) = next(config).await.update else { continue };
        let Some(Kind::ReadRanges(asked)) = &command.kind else { panic!("{command:?}") };
        assert_eq!((&asked.topic[..], &asked.ranges), ("logs", &request(id).ranges));
        let answer = AnswerCommandRequest {
            agent_id: id.to_owned(),
            session: "s".to_owned(),
            command_id: command.id.clone(),
            error: String::new(),
            answer: Some(Answer::RangesRead(RangesRead { ranges: vec![read] })),
        };
        server.agents().answer_command(answer).await.expect("taken");
        return;
    }
}

#[tokio::test]
async fn the_server_that_has_the_agent_asks_it() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    meet(&two, 2).await;
    let mut config = two.agents().watch_config(agent("web", "s", &[])).await.expect("a stream").into_inner();
    next(&mut config).await;
    let outcome = ReadOutcome::Sent.into();
    let read = RangeRead { start_offset: 3, end_offset: 9, outcome, detail: String::new(), events: 2 };
    for server in [&two, &one] {
        let (answered, ()) = tokio::join!(ask(server, request("web")), answer(&two, &mut config, "web", read.clone()));
        assert_eq!(answered.expect("an answer").ranges, std::slice::from_ref(&read));
    }
    let here = ReadAgainRequest { this_server_only: true, ..request("web") };
    assert_eq!(ask(&one, here).await.expect_err("it's elsewhere").code(), Code::Unavailable);
}

#[tokio::test]
async fn who_is_away_or_unheard_of_is_told() {
    let server = start().await;
    let mut config = server.agents().watch_config(agent("web", "s", &[])).await.expect("a stream").into_inner();
    next(&mut config).await;
    drop(config);
    let away = loop {
        let error = ask(&server, request("web")).await.expect_err("nobody answers");
        // Until its end is noticed it is asked in vain.
        if error.message().contains("not connected") {
            break error;
        }
    };
    assert_eq!(away.code(), Code::Unavailable);
    assert_eq!(ask(&server, request("nobody")).await.expect_err("unknown").code(), Code::NotFound);
    let bad: [fn(&mut ReadAgainRequest); 3] =
        [|asked| asked.ranges.clear(), |asked| asked.topic = "No/Good".into(), |asked| asked.stream_id.clear()];
    for change in bad {
        let mut asked = request("web");
        change(&mut asked);
        assert_eq!(ask(&server, asked).await.expect_err("bad").code(), Code::InvalidArgument);
    }
}
