//! `rules import`: reads a logagent's tree from etcd, and makes a rule of each entry through the server.

use std::path::PathBuf;

use logmesh_proto::config::v1::{CreateRuleRequest, Rule};
use logmesh_rules::{RuleSpec, SeedRule, Violation, read_seed, seed_host};
use logmesh_runtime::Tls;
use logmesh_store::{ConfigStore, Entry};
use logmesh_store_etcd::{EtcdStore, Settings};
use serde_json::json;
use tonic::Code;

use super::history::NoteArgs;
use super::{Client, find, to_spec};
use crate::ctl::{Failure, Outcome, Session, request};

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// The members of the etcd, host:port, with commas between; https://host:port for TLS
    #[arg(long, value_name = "ENDPOINTS", value_delimiter = ',', required = true)]
    etcd: Vec<String>,
    /// Where the tree lies: its keys are PREFIX<ip>/log_config
    #[arg(long, value_name = "PREFIX", default_value = "/logagent/")]
    prefix: String,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// etcd's user; the password comes from LOGMESH_ETCD__PASSWORD
    #[arg(long, value_name = "USER")]
    etcd_user: Option<String>,
    /// The authority that signed etcd's certificate [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    #[command(flatten)]
    note: NoteArgs,
}

impl ImportArgs {
    fn settings(&self) -> Settings {
        let enabled = self.etcd_ca.is_some() || self.etcd.iter().any(|endpoint| endpoint.starts_with("https://"));
        let password = self.etcd_user.as_ref().map(|_| std::env::var("LOGMESH_ETCD__PASSWORD").unwrap_or_default());
        Settings {
            endpoints: self.etcd.clone(),
            user: self.etcd_user.clone(),
            password,
            tls: Tls { enabled, ca_file: self.etcd_ca.clone(), ..Tls::default() },
            ..Settings::default()
        }
    }
}

pub(super) async fn import(args: &ImportArgs, client: &mut Client, session: &mut Session) -> Outcome {
    let usage = |error: anyhow::Error| Failure::Usage(format!("--etcd: {error:#}"));
    let store = EtcdStore::new(&args.settings()).map_err(usage)?;
    let tree = store.list(&args.prefix).await.map_err(|error| Failure::Gone(format!("--etcd: {error}")))?;
    let mut import = Import { args, client, session, seen: 0, broken: 0 };
    for entry in &tree.entries {
        import.key(entry).await?;
    }
    import.finish()
}

/// An import under way.
struct Import<'a> {
    args: &'a ImportArgs,
    client: &'a mut Client,
    session: &'a mut Session,
    seen: usize,
    broken: usize,
}

impl Import<'_> {
    async fn key(&mut self, Entry { key, versioned }: &Entry) -> Outcome {
        let Some(host) = seed_host(&self.args.prefix, key) else { return Ok(()) };
        self.seen += 1;
        let entries = match host.and_then(|ip| read_seed(ip, &versioned.value)) {
            Ok(entries) => entries,
            Err(found) => return self.broken(key, &found),
        };
        for entry in entries.rules {
            self.entry(key, entry).await?;
        }
        entries.broken.iter().flat_map(|broken| &broken.problems).try_for_each(|found| self.broken(key, found))
    }

    async fn entry(&mut self, key: &str, SeedRule { field, rule }: SeedRule) -> Outcome {
        let create = CreateRuleRequest {
            rule: Some(rule.spec().into()),
            validate_only: self.args.dry_run,
            note: Some(self.args.note.note(&format!("imported from {key}"))),
        };
        let name = rule.name.as_str();
        match self.client.create_rule(request(create)).await {
            Ok(_) => self.done(key, &field, name, if self.args.dry_run { "to be created" } else { "created" }),
            Err(status) if status.code() == Code::AlreadyExists => {
                let present = find(self.client, name).await?;
                self.done(key, &field, name, compared(present.as_ref(), rule.spec())?)
            }
            Err(status) if status.code() == Code::InvalidArgument => {
                self.broken(key, &Violation { field, description: logmesh_grpc::describe(&status) })
            }
            Err(status) => Err(status.into()),
        }
    }

    fn done(&mut self, key: &str, field: &str, name: &str, result: &str) -> Outcome {
        if self.session.out.json {
            self.session.out.json(&json!({"key": key, "field": field, "name": name, "result": result}))?;
        } else {
            self.session.out.line(&format!("{key} {field}: {name} {result}"))?;
        }
        Ok(())
    }

    fn broken(&mut self, key: &str, Violation { field, description }: &Violation) -> Outcome {
        self.broken += 1;
        if self.session.out.json {
            let broken = json!({"key": key, "field": field, "result": "broken", "error": description});
            self.session.out.json(&broken)?;
        } else {
            let field = if field.is_empty() { String::new() } else { format!(" {field}") };
            self.session.out.line(&format!("{key}{field}: broken: {description}"))?;
        }
        Ok(())
    }

    /// Says 1 if something is broken, and a word where there is no tree at all.
    fn finish(self) -> Outcome {
        if self.seen == 0 {
            let prefix = &self.args.prefix;
            let text =
                format!("logmesh: there is no key {prefix}<ip>/log_config in this etcd; --prefix names another place");
            crate::ctl::failure::note(&text, false);
        }
        if self.broken > 0 { Err(Failure::Wanting) } else { Ok(()) }
    }
}

/// What is said of a rule that is there already.
fn compared(present: Option<&Rule>, imported: &RuleSpec) -> Result<&'static str, Failure> {
    Ok(match present.map(to_spec).transpose()? {
        Some(spec) if spec == *imported => "unchanged",
        Some(_) => "kept: it was changed since it was made",
        None => "deleted meanwhile",
    })
}
