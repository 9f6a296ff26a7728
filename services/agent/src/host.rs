//! What the agent says of the machine it runs on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::Context;
use logmesh_runtime::files;
use logmesh_types::AgentId;

use crate::settings::{MAX_ADDRESSES, Settings};

const MACHINE_ID: &str = "/etc/machine-id";

/// Who the agent is and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub id: AgentId,
    /// Drawn at each start.
    pub session: String,
    pub host: String,
    pub ips: Vec<String>,
}

impl Identity {
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let id = match &settings.id {
            Some(id) => id.clone(),
            None => derived_id(Path::new(MACHINE_ID), &settings.state_dir)?,
        };
        Ok(Self {
            id,
            session: random_text()?,
            host: settings
                .host
                .clone()
                .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned()),
            ips: if settings.ips.is_empty() {
                addresses()
            } else {
                settings.ips.iter().map(IpAddr::to_string).collect()
            },
        })
    }

    /// All labels, the owner's and those of the machine, for selectors.
    pub(crate) fn labels(&self, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut labels = own.clone();
        labels.insert("host".into(), self.host.clone());
        labels.insert("os".into(), std::env::consts::OS.into());
        labels.insert("ip".into(), self.ips.join(","));
        labels
    }
}

/// An id from the machine's (hashed: that one is confidential), or else one that is drawn once and kept in the state.
fn derived_id(machine_id: &Path, state_dir: &Path) -> anyhow::Result<AgentId> {
    let machine = std::fs::read_to_string(machine_id).unwrap_or_default();
    let mut text = machine.trim().to_owned();
    if text.is_empty() || text == "uninitialized" {
        let path = state_dir.join("agent-id");
        text = match std::fs::read_to_string(&path) {
            // An empty one was never kept: all agents with it would share one id.
            Ok(kept) if !kept.trim().is_empty() => kept,
            _ => {
                let drawn = random_text()?;
                std::fs::create_dir_all(state_dir)
                    .and_then(|()| files::replace(&path, drawn.as_bytes()))
                    .with_context(|| format!("cannot keep the agent's id in {}", path.display()))?;
                drawn
            }
        };
    }
    let hash = blake3::derive_key("logmesh agent id v1", text.trim().as_bytes());
    let id: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(id.parse()?)
}

fn random_text() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot draw a random id")?;
    Ok(text.trim().to_owned())
}

/// The machine's addresses beyond loopback and link.
fn addresses() -> Vec<String> {
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let all = parse_v4(&v4).map(IpAddr::V4).chain(parse_v6(&v6).map(IpAddr::V6));
    let unique: BTreeSet<IpAddr> = all.collect();
    unique.into_iter().take(MAX_ADDRESSES).map(|ip| ip.to_string()).collect()
}

/// The local addresses in the kernel's routing trie: each a line `|-- 10.0.0.7` before a line `/32 host LOCAL`.
fn parse_v4(text: &str) -> impl Iterator<Item = Ipv4Addr> {
    let lines = text.lines().map(str::trim);
    lines.clone().zip(lines.skip(1)).filter_map(|(line, next)| {
        let ip: Ipv4Addr = line.strip_prefix("|-- ")?.parse().ok()?;
        (next == "/32 host LOCAL" && !ip.is_loopback() && !ip.is_link_local()).then_some(ip)
    })
}

/// Lines of 32 hex digits, index, prefix length, scope (0: global), flags, name.
fn parse_v6(text: &str) -> impl Iterator<Item = Ipv6Addr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let bits = u128::from_str_radix(words.next()?, 16).ok()?;
        (words.nth(2)? == "00").then(|| Ipv6Addr::from_bits(bits))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_derived_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("machine-id");
        std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
        let id = derived_id(&file, dir.path()).unwrap();
        assert_eq!(id, derived_id(&file, dir.path()).unwrap());
        assert!(!id.as_str().contains("01234567"), "the machine's id isn't told");
        let none = dir.path().join("none");
        let drawn = derived_id(&none, dir.path()).unwrap();
        assert_eq!(drawn, derived_id(&none, dir.path()).unwrap());
        assert_ne!(drawn, id);
    }

    #[test]
    fn a_container_is_told_of_the_host_it_runs_on() {
        let ips = vec![IpAddr::from([10, 0, 0, 7])];
        let settings = Settings { host: Some("node-7".into()), ips, ..Settings::default() };
        let labels = Identity::new(&settings).unwrap().labels(&settings.labels);
        assert_eq!((labels["host"].as_str(), labels["ip"].as_str()), ("node-7", "10.0.0.7"));
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let trie = "Local:\n  +-- 0.0.0.0/0\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 172.16.0.2\n        /32 host LOCAL\n     |-- 172.16.0.3\n        /32 link BROADCAST\n";
        assert_eq!(parse_v4(trie).collect::<Vec<_>>(), [Ipv4Addr::new(172, 16, 0, 2)]);
        let v6 = "20010db8000000000000000000000001 02 40 00 80 eth0\nfe800000000000000000000000000001 02 40 20 80 eth0\n00000000000000000000000000000001 01 80 10 80 lo\n";
        assert_eq!(parse_v6(v6).map(|ip| ip.to_string()).collect::<Vec<_>>(), ["2001:db8::1"]);
    }
}
