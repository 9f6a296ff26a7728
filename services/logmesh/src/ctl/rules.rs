//! `rules apply|list|get|delete`; the others are in modules of their own.

mod history;
mod import;
mod preview;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::config::v1::{
    ChangeNote, DeleteRuleRequest, GetRuleRequest, ListRulesRequest, Rule, RuleProblem, UpdateRuleRequest,
};
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::time::unix_nanos;
use logmesh_rules::{Document, RuleSpec};
use logmesh_types::{RuleName, Span, UnixNanos};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use history::NoteArgs;

use super::failure::note;
use super::output::{age, time};
use super::{Failure, LIST_PAGE, Outcome, Session, agents, request};

/// The largest file of rules that is read, in bytes; the reader of rules refuses less.
const MAX_FILE_BYTES: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct RulesArgs {
    #[command(subcommand)]
    command: RulesCommand,
}

#[derive(Debug, clap::Subcommand)]
enum RulesCommand {
    /// Make or change the rules of a YAML file; all of them are checked before the first is applied
    Apply {
        /// The file, one or several YAML documents; - reads standard input
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        file: PathBuf,
        /// Wait so long for all connected agents that the rules are for; 1 and their names if some don't run them then
        #[arg(long, value_name = "SPAN")]
        wait: Option<Span>,
        #[command(flatten)]
        note: NoteArgs,
    },
    /// Show who runs a rule, counted, and who doesn't, with the reason and the field
    Status {
        /// Its name; rules/ before it may be left out
        #[arg(value_parser = rule_name)]
        name: RuleName,
    },
    /// Show what the rules of a YAML file would do, each by itself: which agents, which files, whose files now. Changes nothing
    Preview {
        /// The file, one or several YAML documents; - reads standard input
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        file: PathBuf,
    },
    /// Show rules, and on stderr what should be one and can't be served
    List {
        /// Only those that it selects: 'topic=web AND NOT exists(origin)'
        #[arg(long, value_name = "FILTER", default_value = "")]
        filter: String,
    },
    /// Show one rule as YAML, to be changed and applied again
    Get {
        /// Its name; rules/ before it may be left out
        #[arg(value_parser = rule_name)]
        name: RuleName,
    },
    /// Remove a rule; what it collected stays
    Delete {
        /// Its name; rules/ before it may be left out
        #[arg(value_parser = rule_name)]
        name: RuleName,
        #[command(flatten)]
        note: NoteArgs,
    },
    /// Show what became of a rule, the newest change first; deleted ones too
    History {
        /// Its name; rules/ before it may be left out
        #[arg(value_parser = rule_name)]
        name: RuleName,
    },
    /// Give a rule the state of an earlier revision again; deleted ones too
    Rollback {
        /// Its name; rules/ before it may be left out
        #[arg(value_parser = rule_name)]
        name: RuleName,
        /// The revision, as history shows it
        #[arg(long, value_name = "REV", value_parser = clap::value_parser!(i64).range(1..))]
        to: i64,
        #[command(flatten)]
        note: NoteArgs,
    },
    /// Make rules of a logagent's tree in etcd; what was collected by it goes on
    Import(import::ImportArgs),
}

fn rule_name(text: &str) -> Result<RuleName, String> {
    text.parse().map_err(|error: logmesh_types::NameError| error.to_string())
}

type Client = RuleServiceClient<Channel>;

pub(super) async fn run(args: RulesArgs, session: &mut Session) -> Outcome {
    let mut client = RuleServiceClient::new(session.channel.clone());
    match args.command {
        RulesCommand::Apply { file, wait, note } => apply(&file, &note.note(""), wait, &mut client, session).await,
        RulesCommand::Status { name } => rollout::status(&name, session).await,
        RulesCommand::Preview { file } => preview::preview(&file, &mut client, session).await,
        RulesCommand::List { filter } => list(&filter, &mut client, session).await,
        RulesCommand::Get { name } => get(&name, &mut client, session).await,
        RulesCommand::Delete { name, note } => delete(&name, note.note(""), &mut client, session).await,
        RulesCommand::Import(args) => import::import(&args, &mut client, session).await,
        RulesCommand::History { name } => history::history(&name, &mut client, session).await,
        RulesCommand::Rollback { name, to, note } => history::rollback(&name, to, &note, &mut client, session).await,
    }
}

async fn delete(name: &RuleName, note: ChangeNote, client: &mut Client, session: &mut Session) -> Outcome {
    let delete = DeleteRuleRequest { name: name.to_string(), note: Some(note), ..Default::default() };
    client.delete_rule(request(delete)).await?;
    if session.out.json {
        session.out.json(&json!({"name": name.as_str(), "deleted": true}))?;
    } else {
        session.out.line(&format!("{name} deleted"))?;
    }
    Ok(())
}

async fn apply(
    file: &Path,
    note: &ChangeNote,
    wait: Option<Span>,
    client: &mut Client,
    session: &mut Session,
) -> Outcome {
    let specs = load(file)?;
    for spec in &specs {
        update(client, spec, note, true).await?;
    }
    let mut applied = Vec::new();
    for spec in &specs {
        let before = find(client, &spec.name).await?;
        let after = update(client, spec, note, false).await?;
        let done = match before {
            None => "created",
            Some(before) if before.revision == after.revision => "unchanged",
            Some(_) => "updated",
        };
        if session.out.json {
            session.out.json(&with(to_json(&after)?, "result", done.into()))?;
        } else {
            session.out.line(&format!("{} {done} (revision {})", after.name, after.revision))?;
        }
        applied.push(after);
    }
    tell_unselected(&specs, session).await?;
    match wait {
        Some(Span(within)) => {
            session.out.flush()?;
            rollout::wait(&applied, within, session).await
        }
        None => Ok(()),
    }
}

/// Says which rules select none of the agents that are known: mostly a mistyped label.
async fn tell_unselected(specs: &[RuleSpec], session: &Session) -> Outcome {
    let agents = agents::all(&mut FleetServiceClient::new(session.channel.clone())).await?;
    let labels: Vec<BTreeMap<String, String>> =
        agents.into_iter().map(|agent| agent.labels.into_iter().collect()).collect();
    for rule in specs.iter().filter_map(|spec| spec.compile().ok()) {
        if !labels.iter().any(|labels| rule.selector.matches(labels)) {
            let (name, known) = (&rule.name, labels.len());
            let text = format!(
                "logmesh: {name} selects none of the {known} agents that are known; see `agents list` for labels"
            );
            note(&text, false);
        }
    }
    Ok(())
}

/// The rules of a file, checked.
fn load(file: &Path) -> Result<Vec<RuleSpec>, Failure> {
    let shown = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let text = read(file).map_err(|error| Failure::Usage(format!("cannot read {shown}: {error}")))?;
    check(&shown, &text).map_err(Failure::Usage)
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let source: Box<dyn Read> =
        if file == Path::new("-") { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(file)?) };
    source.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The rules of a file, checked, or everything that is wrong with it, each with file, line and column.
fn check(file: &str, text: &str) -> Result<Vec<RuleSpec>, String> {
    let documents = logmesh_rules::parse_yaml(text).map_err(|error| format!("{file}: {error}"))?;
    if documents.is_empty() {
        return Err(format!("{file}: holds no rule"));
    }
    let (mut specs, mut faults, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    for document in documents {
        match document.spec.compile() {
            Ok(rule) if names.insert(rule.name.clone()) => specs.push(rule.spec().clone()),
            Ok(rule) => faults.push(fault(file, &document, "name", &format!("{} is in this file twice", rule.name))),
            Err(found) => {
                let found = found.0.iter().map(|one| fault(file, &document, &one.field, &one.description));
                faults.extend(found);
            }
        }
    }
    if faults.is_empty() { Ok(specs) } else { Err(faults.join("\n")) }
}

fn fault(file: &str, document: &Document, field: &str, description: &str) -> String {
    let place =
        document.place(field).map_or_else(String::new, |(line, column)| format!("line {line}, column {column}: "));
    format!("{file}: {place}{field}: {description}")
}

async fn update(client: &mut Client, spec: &RuleSpec, note: &ChangeNote, validate_only: bool) -> Result<Rule, Failure> {
    let (rule, note) = (Some(spec.into()), Some(note.clone()));
    let update = UpdateRuleRequest { rule, update_mask: None, allow_missing: true, validate_only, note };
    Ok(client.update_rule(request(update)).await?.into_inner())
}

async fn find(client: &mut Client, name: &str) -> Result<Option<Rule>, Failure> {
    match client.get_rule(request(GetRuleRequest { name: name.to_owned() })).await {
        Ok(rule) => Ok(Some(rule.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

async fn list(filter: &str, client: &mut Client, session: &mut Session) -> Outcome {
    let (mut rows, mut page_token) = (Vec::new(), String::new());
    let now = UnixNanos::now();
    loop {
        let page = ListRulesRequest { page_size: LIST_PAGE, page_token, filter: filter.to_owned() };
        let page = client.list_rules(request(page)).await?.into_inner();
        page.problems.iter().for_each(tell_problem);
        for rule in &page.rules {
            if session.out.json {
                session.out.json(&to_json(rule)?)?;
            } else {
                rows.push(row(rule, now));
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if !session.out.json {
        session.out.table(["NAME", "TOPIC", "PRIORITY", "REVISION", "CHANGED", "SELECTOR", "PATHS"], &rows)?;
    }
    Ok(())
}

/// Says on stderr what should be a rule and can't be served.
fn tell_problem(problem: &RuleProblem) {
    let RuleProblem { key, field, message } = problem;
    let field = if field.is_empty() { String::new() } else { format!(" {field}") };
    note(&format!("logmesh: {key}:{field} {message}"), false);
}

fn row(rule: &Rule, now: UnixNanos) -> [String; 7] {
    [
        rule.name.clone(),
        rule.topic.clone(),
        rule.priority.to_string(),
        rule.revision.to_string(),
        age(rule.update_time.as_ref(), now),
        if rule.selector.is_empty() { "(all agents)".to_owned() } else { rule.selector.clone() },
        rule.paths.join(" "),
    ]
}

async fn get(name: &RuleName, client: &mut Client, session: &mut Session) -> Outcome {
    let rule = client.get_rule(request(GetRuleRequest { name: name.to_string() })).await?.into_inner();
    if session.out.json {
        session.out.json(&to_json(&rule)?)?;
        return Ok(());
    }
    let yaml = logmesh_rules::to_yaml(&to_spec(&rule)?).map_err(|error| Failure::Garbled(error.to_string()))?;
    let changed = rule.update_time.as_ref().map_or("-".to_owned(), |time| unix_nanos(time).to_string());
    session.out.line(&format!("# revision {}, changed {changed}", rule.revision))?;
    if !rule.origin.is_empty() {
        session.out.line(&format!("# from the etcd key {}: read-only here until it is imported", rule.origin))?;
    }
    Ok(session.out.lines(&yaml)?)
}

fn to_spec(rule: &Rule) -> Result<RuleSpec, Failure> {
    RuleSpec::try_from(rule).map_err(|found| Failure::Garbled(format!("{}: {found}", rule.name)))
}

/// The rule as it is written, and what the server adds.
fn to_json(rule: &Rule) -> Result<Value, Failure> {
    let spec = serde_json::to_value(to_spec(rule)?).map_err(|error| Failure::Garbled(error.to_string()))?;
    let spec = with(spec, "revision", rule.revision.into());
    let spec = with(spec, "etag", rule.etag.as_str().into());
    let spec = if rule.origin.is_empty() { spec } else { with(spec, "origin", rule.origin.as_str().into()) };
    let spec = with(spec, "create_time", time(rule.create_time.as_ref()));
    Ok(with(spec, "update_time", time(rule.update_time.as_ref())))
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_file_is_said_with_its_place() {
        let text = "name: a\ntopic: t\npaths: [/a, b]\n---\nname: a\ntopic: x.books\npaths:\n  - /c\n";
        let said = check("rules.yaml", text).unwrap_err();
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            lines[0].starts_with("rules.yaml: line 3, column 13: paths[1]: \"b\" is not an absolute path"),
            "{said}"
        );
        assert!(lines[1].starts_with("rules.yaml: line 6, column 8: topic: x.books is a topic"), "{said}");
        let twice = "name: a\ntopic: t\npaths: [/a]\n---\nname: rules/a\ntopic: t\npaths: [/a]\n";
        assert_eq!(check("f", twice).unwrap_err(), "f: line 5, column 7: name: rules/a is in this file twice");
        assert_eq!(check("f", "\n").unwrap_err(), "f: holds no rule");
    }

    #[test]
    fn json_of_a_rule_holds_what_the_server_adds() {
        let rule = Rule {
            name: "rules/a".into(),
            topic: "t".into(),
            paths: vec!["/a".into()],
            revision: 7,
            etag: "e".into(),
            ..Rule::default()
        };
        let expected = json!({"name": "rules/a", "topic": "t", "paths": ["/a"], "revision": 7, "etag": "e",
            "create_time": null, "update_time": null});
        assert_eq!(to_json(&rule).unwrap(), expected);
    }
}
