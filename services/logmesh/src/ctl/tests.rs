//! The command line as people type it.

use clap::Parser;

use crate::Args;

fn parse(line: &str) -> Result<Args, clap::Error> {
    Args::try_parse_from(std::iter::once("logmesh").chain(line.split_whitespace()))
}

#[test]
fn the_command_line_of_the_design_is_understood() {
    use clap::CommandFactory;
    Args::command().debug_assert();
    for line in [
        "rules apply -f rules.yaml",
        "rules list --json",
        "rules get nginx",
        "rules delete rules/nginx",
        "rules apply -f rules.yaml --author ann --reason why",
        "rules list --filter topic=web",
        "rules history nginx --json",
        "rules preview -f rules.yaml --json",
        "rules apply -f rules.yaml --wait 30s",
        "rules status nginx",
        "rules rollback nginx --to 7 --reason worse",
        "rules import --etcd 10.0.0.1:2379,10.0.0.2:2379 --dry-run",
        "rules import --etcd https://etcd:2379 --prefix /seed/ --etcd-user root --etcd-ca ca.pem",
        "agents list",
        "agents list --filter env=prod",
        "agents get web-1",
        "agents watch",
        "agents watch --filter online=false",
        "agents label web-1 role=web env-",
        "agents forget web-1",
        "search error --since 15m",
        "search error --from 2026-01-31T12:00:00Z --to now-1h --limit 5000 --topic a --topic b",
        "search error --from 2026-01-31 --to 2026-02-01",
        "search * --count",
        "search error --facet host.name --limit 20 --since 15m",
        "tail level:error",
        "audit --topic nginx --agent web-1",
        "audit --no-dead-letters",
        "audit --repair --streams --known-losses known.json",
        "deadletters list --topic nginx",
        "deadletters list --summary",
        "deadletters list --reason bad",
        "deadletters redrive --topic nginx --reason bad --id a --id b",
        "replay start --topic nginx --from 2026-01-31T12:00:00Z --to now-1h --rate 500 --into nginx-again",
        "replay start --topic a --stream 00112233445566778899aabbccddeeff --start-offset 5 --end-offset 9 --id one",
        "replay list --json",
        "replay get one",
        "replay pause one",
        "replay resume one",
        "replay cancel one",
        "status",
        "ctl status",
        "ctl rules list",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn options_of_all_commands_may_stand_anywhere() {
    for line in [
        "--server a:1 rules list",
        "rules --server a:1 list",
        "rules list --server a:1",
        "ctl rules list --server a:1",
        "ctl status --server a:1",
    ] {
        let args = parse(line).unwrap();
        assert_eq!(args.common.server, "a:1", "{line}");
    }
    assert_eq!(parse("status").unwrap().common.server, "127.0.0.1:7400");
}

#[test]
fn wrong_usage_is_refused() {
    for line in [
        "search",
        "search x --since 1x",
        "search x --since 1h --from now-1h",
        "search x --from yesterday",
        "search x --limit 0",
        "search x --facet host.name --count",
        "search x --facet",
        "search x --topic Not/Good",
        "rules get ../etc",
        "rules apply",
        "rules history",
        "rules rollback x",
        "rules import",
        "rules rollback x --to 0",
        "rules apply -f rules.yaml --wait soon",
        "agents",
        "agents label web-1",
        "agents label web-1 role",
        "agents label web-1 =web",
        "audit --agent ../x",
        "deadletters redrive",
        "deadletters list --summary --reason x",
        "replay start",
        "replay start --topic a --start-offset 5",
    ] {
        assert!(parse(line).unwrap_err().use_stderr(), "{line}");
    }
}
