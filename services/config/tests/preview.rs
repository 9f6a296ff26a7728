//! What a rule would do, asked of agents that are connected, away, slow or of another opinion.

mod common;

use common::{Server, agent, meet, next, rule, start, start_beside};
use logmesh_config::Settings;
use logmesh_proto::config::v1::{AgentPreview, FilePreview, PreviewRuleRequest, PreviewRuleResponse};
use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{AnswerCommandRequest, Command, FilesPreview, WatchConfigResponse};
use tonic::{Code, Streaming};

type Config = Streaming<WatchConfigResponse>;

async fn connect(server: &Server, id: &str, labels: &[(&str, &str)]) -> Config {
    let mut config = server.agents().watch_config(agent(id, "s", labels)).await.expect("a stream").into_inner();
    next(&mut config).await;
    config
}

/// The next command of a stream.
async fn command(config: &mut Config) -> Command {
    loop {
        if let Some(Update::Command(command)) = next(config).await.update {
            return command;
        }
    }
}

async fn answer(server: &Server, id: &str, command: &Command, answer: Result<FilesPreview, &str>) -> Result<(), Code> {
    let (answer, error) = match answer {
        Ok(found) => (Some(Answer::FilesPreview(found)), String::new()),
        Err(error) => (None, error.to_owned()),
    };
    let (agent_id, session, command_id) = (id.to_owned(), "s".to_owned(), command.id.clone());
    let request = AnswerCommandRequest { agent_id, session, command_id, error, answer };
    server.agents().answer_command(request).await.map(drop).map_err(|status| status.code())
}

async fn preview(server: &Server, selector: &str) -> PreviewRuleResponse {
    let request = PreviewRuleRequest { rule: Some(rule("new", selector)), ..Default::default() };
    server.rules().preview_rule(request).await.expect("a preview").into_inner()
}

fn by_id<'a>(preview: &'a PreviewRuleResponse, id: &str) -> &'a AgentPreview {
    preview.agents.iter().find(|agent| agent.agent_id == id).expect("it was selected")
}

#[tokio::test]
async fn agents_answer_for_their_hosts_and_who_does_not_is_named() {
    let server = start().await;
    let mut web = connect(&server, "web", &[("role", "web")]).await;
    let mut refuses = connect(&server, "refuses", &[("role", "web")]).await;
    let _slow = connect(&server, "slow", &[("role", "web")]).await;
    drop(connect(&server, "gone", &[("role", "web")]).await);
    let _other = connect(&server, "other", &[("role", "db")]).await;
    let agents = async {
        let (asked, refused) = (command(&mut web).await, command(&mut refuses).await);
        let Some(Kind::PreviewFiles(files)) = &asked.kind else { panic!("{asked:?}") };
        assert_eq!(files.rule.as_ref().map(|rule| rule.name.as_str()), Some("rules/new"));
        let sample = vec![FilePreview { path: "/x".repeat(5_000), ..Default::default() }; 50];
        let found = FilesPreview { files: 3, bytes: 12, new_files: 1, sample, ..Default::default() };
        assert_eq!(answer(&server, "web", &refused, Ok(found.clone())).await, Err(Code::NotFound), "of another agent");
        answer(&server, "web", &asked, Ok(found)).await.expect("taken");
        assert_eq!(answer(&server, "web", &asked, Err("again")).await, Err(Code::NotFound), "answered already");
        answer(&server, "refuses", &refused, Err("NOT_ALLOWED: paths[0]: no")).await.expect("taken");
    };
    let (preview, ()) = tokio::join!(preview(&server, "role=web"), agents);
    assert_eq!((preview.matched_agents, preview.agents.len(), &preview.next_page_token[..]), (4, 4, ""));
    let web = by_id(&preview, "web");
    assert!(web.online && web.answered && web.error.is_empty());
    assert_eq!((web.files, web.bytes, web.new_files, web.sample.len()), (3, 12, 1, 20));
    assert_eq!(web.sample[0].path.len(), 4096);
    let said =
        |id: &str| (by_id(&preview, id).online, by_id(&preview, id).answered, by_id(&preview, id).error.as_str());
    assert_eq!(said("refuses"), (true, false, "NOT_ALLOWED: paths[0]: no"));
    assert_eq!(said("slow"), (true, false, "it did not answer in time"));
    assert_eq!(said("gone"), (false, false, "it is not connected"));
}

#[tokio::test]
async fn previews_come_in_pages_and_bad_rules_not_at_all() {
    let server = start().await;
    for id in ["a", "b", "c"] {
        drop(connect(&server, id, &[]).await);
    }
    let page = async |page_token: &str| {
        let request = PreviewRuleRequest {
            rule: Some(rule("new", "")),
            page_size: 2,
            page_token: page_token.into(),
            ..Default::default()
        };
        let page = server.rules().preview_rule(request).await.expect("a page").into_inner();
        assert_eq!(page.matched_agents, 3);
        (page.agents.into_iter().map(|agent| agent.agent_id).collect::<Vec<_>>(), page.next_page_token)
    };
    assert_eq!(page("").await, (vec!["a".into(), "b".into()], "b".into()));
    assert_eq!(page("b").await, (vec!["c".into()], String::new()));
    let only_here = PreviewRuleRequest { rule: Some(rule("new", "")), this_server_only: true, ..Default::default() };
    let here = server.rules().preview_rule(only_here).await.expect("a page").into_inner();
    assert_eq!(
        (here.matched_agents, here.agents.len()),
        (0, 0),
        "of those that aren't connected another server may know more"
    );

    let bad = PreviewRuleRequest { rule: Some(rule("new", "role in")), ..Default::default() };
    let status = server.rules().preview_rule(bad).await.expect_err("a bad selector");
    let said = logmesh_grpc::describe(&status);
    assert!(status.code() == Code::InvalidArgument && said.contains("rule.selector"), "{said}");
    let none = server.rules().preview_rule(PreviewRuleRequest::default()).await.expect_err("no rule");
    assert_eq!(none.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn agents_of_another_server_are_asked_by_that_one() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    meet(&two, 2).await;
    let mut here = connect(&one, "here", &[]).await;
    let mut there = connect(&two, "there", &[]).await;
    let found = |files| FilesPreview { files, ..FilesPreview::default() };
    let agents = async {
        let (first, second) = (command(&mut here).await, command(&mut there).await);
        answer(&one, "here", &first, Ok(found(1))).await.expect("taken");
        answer(&two, "there", &second, Ok(found(2))).await.expect("taken");
    };
    let (preview, ()) = tokio::join!(preview(&one, ""), agents);
    let seen: Vec<_> = preview.agents.iter().map(|one| (one.agent_id.as_str(), one.answered, one.files)).collect();
    assert_eq!(seen, [("here", true, 1), ("there", true, 2)]);
    assert!(preview.matched_agents == 2 && preview.unreachable_servers.is_empty(), "{preview:?}");
}
