//! `rules preview`: what rules would do, before they're applied.

use std::path::Path;

use logmesh_proto::config::v1::{AgentPreview, FilePreview, PreviewRuleRequest, PreviewRuleResponse};
use logmesh_rules::RuleSpec;
use serde_json::{Value, json};

use super::{Client, load};
use crate::ctl::failure::note;
use crate::ctl::output::{Output, bytes, count};
use crate::ctl::{Failure, Outcome, Session, request};

/// Agents of one page: they're asked at the same time, so that one that doesn't answer holds up no page but its own.
const PAGE: i32 = 250;

/// The most files that are listed for people, over all agents; `--json` shows all that agents sent.
const FILES: usize = 40;

/// What a rule would do, from all pages.
#[derive(Debug, Default)]
struct Found {
    agents: Vec<AgentPreview>,
    matched: u32,
    unreachable: Vec<String>,
}

/// Shows each rule of a file by itself, against what agents run now. Wanting: one that is connected would refuse it, or
/// didn't look.
pub(super) async fn preview(file: &Path, client: &mut Client, session: &mut Session) -> Outcome {
    let specs = load(file)?;
    let mut wanting = false;
    for (place, spec) in specs.iter().enumerate() {
        let found = ask(client, spec).await?;
        wanting |= !found.unreachable.is_empty() || found.agents.iter().any(|agent| agent.online && !agent.answered);
        for server in &found.unreachable {
            let text = format!("logmesh: config service {server} did not answer: its agents were not asked");
            note(&text, session.out.raw());
        }
        if session.out.json {
            session.out.json(&to_json(&spec.name, &found))?;
            continue;
        }
        if place > 0 {
            session.out.line("")?;
        }
        show(&spec.name, &found, &mut session.out)?;
    }
    if wanting { Err(Failure::Wanting) } else { Ok(()) }
}

async fn ask(client: &mut Client, spec: &RuleSpec) -> Result<Found, Failure> {
    let (mut found, mut page_token) = (Found::default(), String::new());
    loop {
        let ask = PreviewRuleRequest { rule: Some(spec.into()), page_size: PAGE, page_token, this_server_only: false };
        let page = client.preview_rule(request(ask)).await?.into_inner();
        let PreviewRuleResponse { agents, next_page_token, matched_agents, unreachable_servers } = page;
        found.agents.extend(agents);
        found.matched = matched_agents.max(u32::try_from(found.agents.len()).unwrap_or(u32::MAX));
        found.unreachable.extend(unreachable_servers);
        page_token = next_page_token;
        if page_token.is_empty() {
            found.unreachable.sort();
            found.unreachable.dedup();
            return Ok(found);
        }
    }
}

fn show(name: &str, found: &Found, out: &mut Output) -> Outcome {
    let sum = |count: fn(&AgentPreview) -> u64| found.agents.iter().map(count).sum::<u64>();
    let (files, size, new) = (sum(|one| one.files), bytes(sum(|one| one.bytes)), sum(|one| one.new_files));
    let answered = found.agents.iter().filter(|agent| agent.answered).count();
    out.line(&format!(
        "{name}: {} selected, {answered} answered, {files} files, {size}, {new} files that no rule has",
        count(found.matched.into(), "agent")
    ))?;
    if found.agents.is_empty() {
        return Ok(());
    }
    let rows: Vec<[String; 6]> = found.agents.iter().map(row).collect();
    out.table(["AGENT", "FILES", "BYTES", "NEW", "NOT READ", "SAYS"], &rows)?;
    let changes: Vec<[String; 4]> = found
        .agents
        .iter()
        .flat_map(|agent| {
            let row = |change: &logmesh_proto::config::v1::OwnerChange| {
                [agent.agent_id.clone(), change.files.to_string(), change.present_owner.clone(), change.owner.clone()]
            };
            agent.owner_changes.iter().map(row).collect::<Vec<_>>()
        })
        .collect();
    if !changes.is_empty() {
        out.line("")?;
        out.line("files that would go to another rule:")?;
        out.table(["AGENT", "FILES", "FROM", "TO"], &changes)?;
    }
    show_files(found, out)
}

fn row(agent: &AgentPreview) -> [String; 6] {
    let says = match (agent.online, agent.incomplete) {
        _ if !agent.error.is_empty() => agent.error.clone(),
        (_, true) => "there was no time to see all files".to_owned(),
        _ => String::new(),
    };
    let number = |count: u64| if agent.answered { count.to_string() } else { "-".to_owned() };
    [
        agent.agent_id.clone(),
        number(agent.files),
        if agent.answered { bytes(agent.bytes) } else { "-".to_owned() },
        number(agent.new_files),
        number(agent.refused_files),
        says,
    ]
}

/// Some of the files, those first that change hands or wouldn't be read.
fn show_files(found: &Found, out: &mut Output) -> Outcome {
    let mut files: Vec<(&str, &FilePreview)> =
        found.agents.iter().flat_map(|agent| agent.sample.iter().map(|file| (agent.agent_id.as_str(), file))).collect();
    if files.is_empty() {
        return Ok(());
    }
    files.sort_by_key(|(_, file)| file.problem.is_empty() && !changes_hands(file));
    let row = |(agent, file): &(&str, &FilePreview)| {
        let says = match (file.problem.as_str(), file.present_owner.as_str()) {
            ("", "") => format!("new to {}", file.owner),
            ("", present) if changes_hands(file) => format!("{present} -> {}", file.owner),
            ("", present) => format!("stays with {present}"),
            (problem, _) => problem.to_owned(),
        };
        [(*agent).to_owned(), bytes(file.bytes), says, file.path.clone()]
    };
    let rows: Vec<[String; 4]> = files.iter().take(FILES).map(row).collect();
    out.line("")?;
    out.line("some of the files:")?;
    Ok(out.table(["AGENT", "BYTES", "OWNER", "PATH"], &rows)?)
}

fn changes_hands(file: &FilePreview) -> bool {
    !file.present_owner.is_empty() && file.present_owner != file.owner
}

fn to_json(name: &str, found: &Found) -> Value {
    json!({
        "rule": name,
        "matched_agents": found.matched,
        "unreachable_servers": found.unreachable,
        "agents": found.agents.iter().map(agent_json).collect::<Vec<_>>(),
    })
}

fn agent_json(agent: &AgentPreview) -> Value {
    let changes = agent.owner_changes.iter();
    let changes = changes
        .map(|change| json!({"present_owner": change.present_owner, "owner": change.owner, "files": change.files}));
    let files = agent.sample.iter().map(|file| {
        json!({
            "path": file.path,
            "bytes": file.bytes,
            "present_owner": file.present_owner,
            "owner": file.owner,
            "problem": file.problem,
        })
    });
    json!({
        "agent_id": agent.agent_id,
        "online": agent.online,
        "answered": agent.answered,
        "error": agent.error,
        "files": agent.files,
        "bytes": agent.bytes,
        "new_files": agent.new_files,
        "refused_files": agent.refused_files,
        "incomplete": agent.incomplete,
        "owner_changes": changes.collect::<Vec<_>>(),
        "sample": files.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use logmesh_proto::config::v1::OwnerChange;

    use super::*;

    #[test]
    fn a_preview_shows_who_gets_what() {
        let file = |path: &str, present_owner: &str, problem: &str| FilePreview {
            path: path.into(),
            bytes: 2048,
            present_owner: present_owner.into(),
            owner: "rules/new".into(),
            problem: problem.into(),
        };
        let change = OwnerChange { present_owner: "rules/old".into(), owner: "rules/new".into(), files: 2 };
        let web = AgentPreview {
            agent_id: "web-1".into(),
            online: true,
            answered: true,
            files: 3,
            bytes: 6144,
            new_files: 1,
            refused_files: 1,
            sample: vec![file("/a", "", ""), file("/b", "rules/old", ""), file("/c", "", "BINARY")],
            owner_changes: vec![change],
            ..AgentPreview::default()
        };
        let off =
            AgentPreview { agent_id: "web-2".into(), error: "it is not connected".into(), ..AgentPreview::default() };
        let found = Found { agents: vec![web, off], matched: 2, unreachable: vec![] };
        let (mut out, captured) = Output::captured(false, false);
        show("rules/new", &found, &mut out).unwrap();
        let expected = "\
rules/new: 2 agents selected, 1 answered, 3 files, 6.0 KiB, 1 files that no rule has
AGENT  FILES  BYTES    NEW  NOT READ  SAYS
web-1  3      6.0 KiB  1    1
web-2  -      -        -    -         it is not connected

files that would go to another rule:
AGENT  FILES  FROM       TO
web-1  2      rules/old  rules/new

some of the files:
AGENT  BYTES    OWNER                   PATH
web-1  2.0 KiB  rules/old -> rules/new  /b
web-1  2.0 KiB  BINARY                  /c
web-1  2.0 KiB  new to rules/new        /a
";
        assert_eq!(captured.text(), expected);
        assert_eq!(to_json("rules/new", &found)["agents"][0]["owner_changes"][0]["files"], 2);
    }
}
