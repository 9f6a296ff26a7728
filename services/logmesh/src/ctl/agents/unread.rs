//! Files that rules match and agents don't read.

use std::collections::{BTreeMap, BTreeSet};

use logmesh_proto::fleet::v1::{Agent, RuleStatus};

use crate::ctl::output::count;

/// The reason of files that wait on purpose: their rule's `ignore_older` says so.
const ON_PURPOSE: &str = "IGNORED_OLDER";

/// The most names in a line.
const NAMED: usize = 3;

/// How many there are, and why.
#[derive(Debug, Default)]
pub(in crate::ctl) struct Unread {
    pub(in crate::ctl) files: u64,
    /// Those of them of which the agent gave the reason.
    pub(in crate::ctl) by_reason: BTreeMap<String, u64>,
    /// Whose they are: rules, or agents.
    names: BTreeSet<String>,
}

impl Unread {
    /// Those of all agents, named by rule, but for those that wait on purpose.
    pub(in crate::ctl) fn of_agents(agents: &[Agent]) -> Self {
        let mut unread = Self::default();
        for rule in agents.iter().flat_map(|agent| &agent.rules) {
            unread.add(&rule.name, rule, false);
        }
        unread
    }

    /// Those of one rule on an agent, under a name; with or without those that wait on purpose.
    pub(in crate::ctl) fn add(&mut self, name: &str, rule: &RuleStatus, on_purpose: bool) {
        let Some(effect) = &rule.effect else { return };
        let counted = |reason: &String| on_purpose || reason != ON_PURPOSE;
        let left_out: u64 = effect
            .refused_by_reason
            .iter()
            .filter(|(reason, _)| !counted(reason))
            .map(|(_, files)| u64::from(*files))
            .sum();
        let files = u64::from(effect.files_refused).saturating_sub(left_out);
        if files == 0 {
            return;
        }
        self.files += files;
        self.names.insert(name.to_owned());
        for (reason, files) in effect.refused_by_reason.iter().filter(|(reason, _)| counted(reason)) {
            *self.by_reason.entry(reason.clone()).or_default() += u64::from(*files);
        }
    }

    /// `3 files match rules/a and aren't read (2 BINARY, 1 NOT_ALLOWED)`.
    pub(in crate::ctl) fn of_rules(&self) -> String {
        format!("{} match {} and aren't read{}", self.count(), self.names(), self.reasons())
    }

    /// `3 files match and aren't read on web-1 (2 BINARY, 1 NOT_ALLOWED)`.
    pub(in crate::ctl) fn on_agents(&self) -> String {
        format!("{} match and aren't read on {}{}", self.count(), self.names(), self.reasons())
    }

    fn count(&self) -> String {
        count(self.files, "file")
    }

    fn names(&self) -> String {
        let mut names = self.names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        if let Some(more) = self.names.len().checked_sub(NAMED).filter(|more| *more > 0) {
            names.push_str(&format!(" and {more} more"));
        }
        names
    }

    fn reasons(&self) -> String {
        let reasons: Vec<String> = self.by_reason.iter().map(|(reason, files)| format!("{files} {reason}")).collect();
        if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use logmesh_proto::fleet::v1::RuleEffect;

    use super::*;

    #[test]
    fn files_are_counted_by_reason_and_those_that_wait_on_purpose_are_left_out() {
        let refused_by_reason = [("BINARY".to_owned(), 2), ("IGNORED_OLDER".to_owned(), 40)].into();
        let effect = RuleEffect { files_refused: 42, refused_by_reason, ..RuleEffect::default() };
        let rule = RuleStatus { name: "rules/a".into(), effect: Some(effect), ..RuleStatus::default() };
        let old = RuleEffect { files_refused: 1, ..RuleEffect::default() };
        let older = RuleStatus { name: "rules/b".into(), effect: Some(old), ..RuleStatus::default() };
        let clean = RuleStatus { name: "rules/c".into(), ..RuleStatus::default() };
        let agent = Agent { rules: vec![rule.clone(), older, clean], ..Agent::default() };
        let unread = Unread::of_agents(&[agent]);
        assert_eq!(unread.of_rules(), "3 files match rules/a, rules/b and aren't read (2 BINARY)");
        let mut on_agents = Unread::default();
        ["a", "b", "c", "d"].iter().for_each(|agent| on_agents.add(agent, &rule, true));
        let said = "168 files match and aren't read on a, b, c and 1 more (8 BINARY, 160 IGNORED_OLDER)";
        assert_eq!(on_agents.on_agents(), said);
        assert_eq!(Unread::of_agents(&[]).files, 0);
    }
}
