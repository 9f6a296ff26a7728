//! Whether a topic that somebody asks about is one: a misspelt name mustn't look like one that holds nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::config::v1::{ListRulesRequest, Rule};
use logmesh_types::TopicName;
use tokio::time::timeout;
use tonic::Status;
use tracing::debug;

use crate::status::{not_found, unavailable};
use crate::upstream::Upstream;

/// How long config may take to say whether a rule writes to a topic.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The most topics of one request that config is asked about; what is beyond passes.
const MAX_ASKED: usize = 16;

/// Rules that config is asked for at a time.
const RULES_PAGE: i32 = 1_000;

/// The most topics that are named in place of one that isn't there.
const NAMED: usize = 10;

/// Refuses a topic that is neither `there` nor any rule's: NOT_FOUND, with what may have been meant. UNAVAILABLE if it isn't `there`
/// and no config service says which rules there are: who asks for work on a topic must not be told that it is done.
pub async fn check_topic(topic: &TopicName, there: &BTreeSet<TopicName>, config: &Upstream) -> Result<(), Status> {
    if there.contains(topic) {
        return Ok(());
    }
    match is_of_a_rule(topic, config).await {
        Ok(true) => Ok(()),
        Ok(false) => refuse_topics(&[no_topic(topic.as_str(), there)]),
        Err(status) => {
            let why = crate::describe(&status);
            let text = format!(
                "there is no topic {topic} yet, and whether a rule writes to it can't be known now: {why}; \
                 check the name, or try again when a config service answers"
            );
            Err(unavailable("CONFIG_UNAVAILABLE", text))
        }
    }
}

/// Refuses the topics of which [`missing_topics`] said something.
pub fn refuse_topics(missing: &[String]) -> Result<(), Status> {
    if missing.is_empty() { Ok(()) } else { Err(not_found("TOPIC_NOT_FOUND", missing.join("; "))) }
}

/// For each topic that is neither `there` nor any rule's a sentence that says so, and what may have been meant. While no config
/// service says which rules there are, a topic passes: what can't be known is no reason to refuse a search.
pub async fn missing_topics(wanted: &[TopicName], there: &BTreeSet<TopicName>, config: &Upstream) -> Vec<String> {
    let mut missing = Vec::new();
    for topic in wanted.iter().filter(|topic| !there.contains(*topic)).take(MAX_ASKED) {
        match is_of_a_rule(topic, config).await {
            Ok(true) => {}
            Ok(false) => missing.push(no_topic(topic.as_str(), there)),
            Err(status) => debug!(error = %crate::describe(&status), "config does not say which rules there are"),
        }
    }
    missing
}

/// True if a rule writes to the topic; an error if no config service says so in time.
async fn is_of_a_rule(topic: &TopicName, config: &Upstream) -> Result<bool, Status> {
    let ask = ListRulesRequest { page_size: 1, filter: format!("topic=\"{topic}\""), ..Default::default() };
    let answer = timeout(ANSWER_TIMEOUT, RuleServiceClient::new(config.clone()).list_rules(ask)).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("config gives no answer"))??;
    Ok(!answer.into_inner().rules.is_empty())
}

/// The topics that rules write to; an error if no config service says so in time.
pub async fn topics_of_rules(config: &Upstream) -> Result<BTreeSet<TopicName>, Status> {
    let rules = timeout(ANSWER_TIMEOUT, rules(config, "")).await;
    let rules = rules.map_err(|_| Status::deadline_exceeded("config gives no answer"))??;
    Ok(rules.iter().filter_map(|rule| rule.topic.parse().ok()).collect())
}

/// All rules that the filter lets through, page by page; see `ListRulesRequest`.
pub async fn rules(config: &Upstream, filter: &str) -> Result<Vec<Rule>, Status> {
    let mut client = RuleServiceClient::new(config.clone());
    let (mut rules, mut page_token) = (Vec::new(), String::new());
    loop {
        let ask = ListRulesRequest { page_size: RULES_PAGE, page_token, filter: filter.to_owned() };
        let page = client.list_rules(ask).await?.into_inner();
        rules.extend(page.rules);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(rules);
        }
    }
}

/// `there is no topic ngnix; did you mean nginx?`
pub fn no_topic(topic: &str, there: &BTreeSet<TopicName>) -> String {
    let near = there.iter().map(|other| (distance(topic, other.as_str()), other)).min();
    let meant = match near {
        None => "there is none yet".to_owned(),
        // A third of the letters, or one: more than that is another name.
        Some((steps, other)) if steps <= (topic.len() / 3).max(1) => format!("did you mean {other}?"),
        Some(_) => {
            let names: Vec<&str> = there.iter().take(NAMED).map(TopicName::as_str).collect();
            let more = if there.len() > NAMED { ", …" } else { "" };
            format!("there are {}{more}", names.join(", "))
        }
    };
    format!("there is no topic {topic}; {meant}")
}

/// How many bytes must be put in, left out or changed to make one of the other (Levenshtein's distance).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, a) in one.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = line + 1;
        for (column, b) in other.bytes().enumerate() {
            let changed = corner + usize::from(a != b);
            corner = row[column + 1];
            row[column + 1] = changed.min(corner + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Choice;

    fn topics(names: &[&str]) -> BTreeSet<TopicName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn what_may_have_been_meant_is_named() {
        let said = |wanted: &str, there: &[&str]| no_topic(wanted, &topics(there));
        assert_eq!(said("ngnx", &["app", "nginx", "nginx-access"]), "there is no topic ngnx; did you mean nginx?");
        assert_eq!(said("payments", &["app", "nginx"]), "there is no topic payments; there are app, nginx");
        assert_eq!(said("a", &[]), "there is no topic a; there is none yet");
        let many: Vec<String> = (10..30).map(|n| format!("service-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(said("web", &many).ends_with("service-18, service-19, …"), "{}", said("web", &many));
    }

    #[test]
    fn distances_are_the_fewest_changes() {
        for (one, other, steps) in
            [("", "", 0), ("", "abc", 3), ("abc", "abc", 0), ("ngnix", "nginx", 2), ("kitten", "sitting", 3)]
        {
            assert_eq!((distance(one, other), distance(other, one)), (steps, steps), "{one} {other}");
        }
    }

    #[tokio::test]
    async fn what_nobody_can_say_is_no_fault_and_no_success() {
        let away = Upstream::new("config", Choice::First);
        let (wanted, there) = (["there".parse().unwrap(), "who-knows".parse().unwrap()], topics(&["there"]));
        assert_eq!(missing_topics(&wanted, &there, &away).await, [] as [String; 0]);
        check_topic(&wanted[0], &there, &away).await.unwrap();
        let refused = check_topic(&wanted[1], &there, &away).await.unwrap_err();
        assert_eq!(crate::reason(&refused).as_deref(), Some("CONFIG_UNAVAILABLE"));
        assert!(refused.message().contains("no config is registered"), "{refused}");
    }
}
