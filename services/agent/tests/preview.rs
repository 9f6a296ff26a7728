//! What an agent answers when it's asked which files a rule would match.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

mod mesh;

use logmesh_proto::config::v1::{FilePreview, OwnerChange, Rule};
use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::{AnswerCommandRequest, Command, FilesPreview, PreviewFiles};
use logmesh_testing::wait_for_async;

use mesh::host::{Host, arrived};
use mesh::{Centre, Gateway, LIMIT, Mode};

/// Asks and waits for the answer.
async fn ask(centre: &Centre, id: &str, rule: Rule) -> AnswerCommandRequest {
    let kind = Kind::PreviewFiles(PreviewFiles { rule: Some(rule) });
    centre.commands.send_modify(|commands| commands.push(Command { id: id.into(), kind: Some(kind) }));
    wait_for_async("the answer", LIMIT, || async {
        let answers = centre.answers.lock().unwrap();
        answers.iter().find(|answer| answer.command_id == id).cloned().ok_or(format!("{answers:?}"))
    })
    .await
}

fn found(answer: AnswerCommandRequest) -> FilesPreview {
    match answer.answer {
        Some(Answer::FilesPreview(found)) => found,
        other => panic!("{other:?}: {}", answer.error),
    }
}

#[tokio::test]
async fn a_rule_s_files_are_shown_before_it_is_applied() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.append("b.txt", "12345");
    host.start(&[&server]);
    centre.tell(vec![host.rule("low", 1, "*.log")], &[]);
    arrived(&gateway, &["one\n"]).await;
    let rule = Rule { priority: 5, ..host.rule("new", 0, "*") };
    let answer = ask(&centre, "1", rule).await;
    assert_eq!((answer.agent_id.as_str(), answer.session.is_empty()), ("host-1", false));
    let file = |name: &str, bytes, present_owner: &str| FilePreview {
        path: host.path(name).display().to_string(),
        bytes,
        present_owner: present_owner.into(),
        owner: "rules/new".into(),
        problem: String::new(),
    };
    let change = OwnerChange { present_owner: "rules/low".into(), owner: "rules/new".into(), files: 1 };
    let expected = FilesPreview {
        files: 2,
        bytes: 9,
        new_files: 1,
        sample: vec![file("a.log", 4, "rules/low"), file("b.txt", 5, "")],
        owner_changes: vec![change],
        ..FilesPreview::default()
    };
    assert_eq!(found(answer), expected);

    // What would be refused is said as it would be then.
    let outside = Rule { paths: vec![host.path("*").display().to_string(), "/etc/*".into()], ..host.rule("x", 0, "") };
    let refused = ask(&centre, "2", outside).await;
    assert!(refused.error.starts_with("NOT_ALLOWED: paths[1]: /etc/*"), "{}", refused.error);
    let broken = ask(&centre, "3", Rule { paths: vec!["[".into()], ..host.rule("x", 0, "") }).await;
    assert!(broken.error.starts_with("INVALID_RULE: paths[0]"), "{}", broken.error);
    // Nothing was collected for being asked about.
    host.append("a.log", "two\n");
    arrived(&gateway, &["one\ntwo\n"]).await;
    host.stop().await;
}
