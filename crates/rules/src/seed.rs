//! The tree of a logagent, which logmesh grew from: `{prefix}{ip}/log_config` holds a JSON array of what one host collects,
//! `[{"service": …, "log_path": …, "topic": …, "send_rate": …}]`. Read here as rules, one for each entry.
//!
//! What the fields mean is what the seed's code does with them (`docs/decisions/0013`): `log_path` is one file, no glob;
//! it's read from its end when it's first seen; `send_rate` is lines per second, 0 or less for no limit.

use std::collections::BTreeMap;
use std::net::IpAddr;

use logmesh_types::{NameError, RuleName};
use serde_json::{Map, Value};

use crate::rule::Rule;
use crate::spec::{Pace, RuleSpec, StartAt, Violation};

/// What a key of the tree ends with.
const LOG_CONFIG: &str = "/log_config";

/// What the fields of problems begin with.
const ENTRIES: &str = "log_config";

/// Digits of the path's hash in a rule's name.
const HASH_DIGITS: usize = 8;

/// The entries of one key.
#[derive(Debug)]
pub struct SeedEntries {
    /// The rules, by their place in the array.
    pub rules: Vec<SeedRule>,
    /// The other entries.
    pub broken: Vec<BrokenEntry>,
}

/// An entry as a rule.
#[derive(Debug)]
pub struct SeedRule {
    /// Its place: `log_config[2]`.
    pub field: String,
    /// The rule.
    pub rule: Rule,
}

/// An entry that can't be a rule.
#[derive(Debug)]
pub struct BrokenEntry {
    /// The name that its rule would have; none if not even that is known.
    pub name: Option<RuleName>,
    /// What is wrong with it, by field: `log_config[2].log_path`.
    pub problems: Vec<Violation>,
}

/// The host that a key beneath `prefix` configures; `None` for keys that hold something else.
///
/// # Errors
/// When the key has no address where the host's should be.
pub fn seed_host(prefix: &str, key: &str) -> Option<Result<IpAddr, Violation>> {
    let host = key.strip_prefix(prefix)?.strip_suffix(LOG_CONFIG)?;
    let found = host.parse::<IpAddr>().ok().filter(|ip| ip.to_string() == host);
    Some(found.ok_or_else(|| {
        let description =
            format!("{host:?} in the key is not an IP address as hosts write their own, such as 10.0.0.7");
        Violation { field: String::new(), description }
    }))
}

/// What the names of all rules of the tree begin with.
pub const SEED_NAMES: &str = "rules/seed-";

/// The beginning that the names of a host's rules share with those of no other host, with `rules/`.
pub fn seed_names(ip: IpAddr) -> String {
    format!("{SEED_NAMES}{}-", ip.to_string().replace(':', "_"))
}

/// Reads the value of a host's key.
///
/// # Errors
/// When all of it is unreadable: no JSON, or no array. An entry that's wrong by itself is among the broken ones.
pub fn read_seed(ip: IpAddr, value: &[u8]) -> Result<SeedEntries, Violation> {
    let whole = |description: String| Violation { field: ENTRIES.to_owned(), description };
    let array = match serde_json::from_slice(value) {
        Ok(Value::Array(array)) => array,
        // The seed takes it for an empty array.
        Ok(Value::Null) => Vec::new(),
        Ok(other) => return Err(whole(format!("is {}, not an array of objects", kind(&other)))),
        Err(error) => return Err(whole(format!("is not JSON: {error}"))),
    };
    let (mut good, mut broken) = (BTreeMap::new(), Vec::new());
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (place, entry) in array.iter().enumerate() {
        match read_entry(ip, place, entry) {
            Ok(rule) => {
                // Of entries with one path the seed obeys the last.
                if let Some(before) = places.insert(rule.name.to_string(), place) {
                    good.remove(&before);
                    let description = format!("is named again by {ENTRIES}[{place}], which counts");
                    let field = format!("{ENTRIES}[{before}].log_path");
                    broken.push(BrokenEntry { name: None, problems: vec![Violation { field, description }] });
                }
                good.insert(place, rule);
            }
            Err(found) => broken.push(found),
        }
    }
    let rule = |(place, rule)| SeedRule { field: format!("{ENTRIES}[{place}]"), rule };
    Ok(SeedEntries { rules: good.into_iter().map(rule).collect(), broken })
}

fn read_entry(ip: IpAddr, place: usize, entry: &Value) -> Result<Rule, BrokenEntry> {
    let Value::Object(fields) = entry else {
        let description = format!("is {}, not an object", kind(entry));
        let problems = vec![Violation { field: format!("{ENTRIES}[{place}]"), description }];
        return Err(BrokenEntry { name: None, problems });
    };
    let mut entry = Entry { fields, place, problems: Vec::new() };
    let (path, topic) = (entry.text("log_path"), entry.text("topic"));
    let (service, rate) = (entry.text("service"), entry.rate());
    entry.require("log_path", &path);
    entry.require("topic", &topic);
    let name = (!path.is_empty()).then(|| name(ip, &path)).transpose().ok().flatten();
    let (Some(name), true) = (&name, entry.problems.is_empty()) else {
        return Err(BrokenEntry { name, problems: entry.problems });
    };
    let spec = RuleSpec {
        name: name.to_string(),
        selector: format!("ip={ip}"),
        paths: vec![literal(&path)],
        topic,
        service: Some(service).filter(|service| !service.is_empty()),
        pace: Pace { bytes_per_second: None, lines_per_second: rate },
        start_at: StartAt::End,
        ..RuleSpec::default()
    };
    spec.compile().map_err(|found| {
        let ours = |field: &str| match field.split(['[', '.']).next() {
            Some("paths") => "log_path".to_owned(),
            Some("pace") => "send_rate".to_owned(),
            _ => field.to_owned(),
        };
        let here = |found: Violation| Violation { field: entry.field(&ours(&found.field)), ..found };
        BrokenEntry { name: Some(name.clone()), problems: found.0.into_iter().map(here).collect() }
    })
}

/// An object of the array, and what was found wrong with it.
struct Entry<'a> {
    fields: &'a Map<String, Value>,
    place: usize,
    problems: Vec<Violation>,
}

impl Entry<'_> {
    fn field(&self, name: &str) -> String {
        format!("{ENTRIES}[{}].{name}", self.place)
    }

    fn wrong(&mut self, name: &str, description: String) {
        self.problems.push(Violation { field: self.field(name), description });
    }

    /// A field's value; none if it's missing or null. As in Go, a name may be written in any case.
    fn get(&self, name: &str) -> Option<&Value> {
        let any_case = || self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        self.fields.get(name).or_else(any_case).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> String {
        match self.get(name) {
            Some(Value::String(text)) => return text.clone(),
            Some(other) => self.wrong(name, format!("is {}, not a string", kind(other))),
            None => {}
        }
        String::new()
    }

    /// Lines per second; none for no limit.
    fn rate(&mut self) -> Option<u64> {
        let value = self.get("send_rate")?;
        if let Some(rate) = value.as_u64() {
            return Some(rate).filter(|rate| *rate > 0);
        }
        if value.as_i64().is_none() {
            self.wrong("send_rate", format!("is {}, not a whole number of lines per second", kind(value)));
        }
        None
    }

    fn require(&mut self, name: &str, text: &str) {
        let known = self.field(name);
        if text.is_empty() && !self.problems.iter().any(|problem| problem.field == known) {
            let what = if self.get(name).is_some() { "is empty" } else { "is missing" };
            self.wrong(name, what.to_owned());
        }
    }
}

/// A name that stays while the host and the path do: what the seed tells its files apart by.
fn name(ip: IpAddr, path: &str) -> Result<RuleName, NameError> {
    let hash = &blake3::hash(path.as_bytes()).to_hex()[..HASH_DIGITS];
    let names = seed_names(ip);
    let names = names.strip_prefix("rules/").unwrap_or(&names);
    let file = path.rsplit('/').next().unwrap_or_default();
    let word = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-') => c,
        _ => '-',
    };
    let room = logmesh_types::limits::MAX_NAME_BYTES.saturating_sub(names.len() + 1 + HASH_DIGITS);
    let file: String = file.chars().map(word).take(room).collect();
    format!("{names}{file}-{hash}").parse()
}

/// The glob that matches this path and no other.
fn literal(path: &str) -> String {
    let mut glob = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\') {
            glob.push('\\');
        }
        glob.push(c);
    }
    glob
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn ip() -> IpAddr {
        "10.0.0.7".parse().unwrap()
    }

    fn read(value: &Value) -> SeedEntries {
        read_seed(ip(), value.to_string().as_bytes()).unwrap()
    }

    fn problems(entries: &SeedEntries) -> Vec<String> {
        let problems = entries.broken.iter().flat_map(|broken| &broken.problems);
        problems.map(|found| format!("{}: {}", found.field, found.description)).collect()
    }

    #[test]
    fn an_entry_means_what_the_seed_does_with_it() {
        let entry = json!([{"service": "shop", "log_path": "/app/log/a.log", "topic": "nginx_log", "send_rate": 1000}]);
        let entries = read(&entry);
        let spec = entries.rules[0].rule.spec();
        assert!(spec.name.starts_with("rules/seed-10.0.0.7-a.log-"), "{}", spec.name);
        let expected = RuleSpec {
            name: spec.name.clone(),
            selector: "ip=10.0.0.7".into(),
            paths: vec!["/app/log/a.log".into()],
            topic: "nginx_log".into(),
            service: Some("shop".into()),
            pace: Pace { bytes_per_second: None, lines_per_second: Some(1000) },
            start_at: StartAt::End,
            ..RuleSpec::default()
        };
        assert_eq!((spec, problems(&entries)), (&expected, vec![]));
    }

    #[test]
    fn what_the_seed_lets_be_left_out_may_be() {
        for rate in [json!(null), json!(0), json!(-5)] {
            let entries = read(&json!([{"LOG_PATH": "/a", "Topic": "t", "send_rate": rate, "more": [1]}]));
            assert_eq!(entries.rules[0].rule.spec().pace, Pace::default(), "{entries:?}");
        }
        assert!(read(&json!(null)).rules.is_empty());
    }

    #[test]
    fn each_broken_entry_is_named_by_its_field() {
        let entries = read(&json!([
            {"log_path": "/ok", "topic": "t"},
            7,
            {"topic": "t"},
            {"log_path": "", "topic": "Not Good"},
            {"log_path": "relative.log", "topic": "x.dead", "service": "a\nb"},
            {"log_path": ["/a"], "topic": 1, "service": {}, "send_rate": "fast"},
            {"log_path": "/a", "topic": "t", "send_rate": 1.5},
            {"log_path": "/ok", "topic": "other"},
        ]));
        let told = problems(&entries);
        let starts = [
            "log_config[1]: is a number, not an object",
            "log_config[2].log_path: is missing",
            "log_config[3].log_path: is empty",
            "log_config[4].log_path: \"relative.log\" is not an absolute path",
            "log_config[4].topic: x.dead is a topic that logmesh keeps",
            "log_config[4].service: is not 1 to",
            "log_config[5].log_path: is an array, not a string",
            "log_config[5].topic: is a number, not a string",
            "log_config[5].service: is an object, not a string",
            "log_config[5].send_rate: is a string, not a whole number",
            "log_config[6].send_rate: is a number, not a whole number",
            "log_config[0].log_path: is named again by log_config[7], which counts",
        ];
        assert_eq!(told.len(), starts.len(), "{told:#?}");
        for (told, start) in told.iter().zip(starts) {
            assert!(told.starts_with(start), "{told} is not {start}");
        }
        let named = entries.broken.iter().filter(|broken| broken.name.is_some()).count();
        assert_eq!(named, 2, "those of which a path is known");
        let topics: Vec<&str> = entries.rules.iter().map(|entry| entry.rule.topic.as_str()).collect();
        assert_eq!(
            (topics, entries.rules[0].field.as_str()),
            (vec!["other"], "log_config[7]"),
            "of two entries with one path the last counts, as in the seed"
        );
    }

    #[test]
    fn a_value_that_is_no_array_is_told_as_a_whole() {
        for (value, told) in
            [("[{", "is not JSON: EOF"), ("{}", "is an object, not an array"), ("", "is not JSON: EOF")]
        {
            let found = read_seed(ip(), value.as_bytes()).unwrap_err();
            assert!(found.field == "log_config" && found.description.starts_with(told), "{found:?}");
        }
    }

    #[test]
    fn keys_name_their_host() {
        let host = |key: &str| seed_host("/logagent/", key).map(|found| found.map(|ip| ip.to_string()));
        assert_eq!(host("/logagent/10.0.0.7/log_config"), Some(Ok("10.0.0.7".into())));
        assert_eq!(host("/logagent/fe80::1/log_config"), Some(Ok("fe80::1".into())));
        for other in ["/logagent/10.0.0.7", "/logagent/x/other", "/other/10.0.0.7/log_config", "/logagent/log_config"] {
            assert_eq!(host(other), None, "{other}");
        }
        for bad in ["/logagent/web-1/log_config", "/logagent/fe80:0::1/log_config", "/logagent//log_config"] {
            assert!(host(bad).unwrap().unwrap_err().description.contains("is not an IP address"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_the_reader_panic(value in any::<Vec<u8>>(), json in "[\\[\\]{}\":,a-z_0-9. -]{0,40}") {
            drop(read_seed(ip(), &value));
            drop(read_seed(ip(), json.as_bytes()));
        }

        /// Whatever stands among them, good entries are served, and each broken one is told by its own field.
        #[test]
        fn broken_entries_spoil_no_other(
            broken in prop::collection::vec(prop::option::of(prop::sample::select(vec![
                json!(null), json!({}), json!({"log_path": "/x"}), json!({"log_path": "x", "topic": "t"}),
                json!({"log_path": "/x", "topic": "T"}), json!({"log_path": 7, "topic": "t"}), json!("text"),
                json!({"log_path": "/x/../y", "topic": "t"}), json!({"log_path": "/x", "topic": "t", "send_rate": []}),
            ])), 0..12),
        ) {
            let good = |place: usize| json!({"log_path": format!("/log/{place}"), "topic": "t", "send_rate": place});
            let array: Vec<Value> =
                broken.iter().enumerate().map(|(place, entry)| entry.clone().unwrap_or_else(|| good(place))).collect();
            let entries = read(&Value::Array(array));
            let expected: Vec<String> = (broken.iter().enumerate())
                .filter(|(_, entry)| entry.is_none()).map(|(place, _)| format!("/log/{place}")).collect();
            let served: Vec<String> = entries.rules.iter().map(|entry| entry.rule.spec().paths[0].clone()).collect();
            prop_assert_eq!(served, expected);
            for (place, entry) in broken.iter().enumerate() {
                let told = problems(&entries).iter().any(|found| found.starts_with(&format!("log_config[{place}]")));
                prop_assert_eq!(told, entry.is_some(), "{}: {:?}", place, entries.broken);
            }
        }

        /// A rule takes the file of its path and no other, under a name that only host and path decide.
        #[test]
        fn a_path_is_itself_whatever_is_in_it(
            file in "[a-zA-Z0-9 *?\\[\\]{}\\\\!,_.é-]{1,40}", other in "[a-z*?]{1,6}", host in any::<[u8; 16]>(), four in any::<bool>(),
        ) {
            prop_assume!(file != "." && file != "..");
            let ip = if four { IpAddr::from([host[0], host[1], host[2], host[3]]) } else { IpAddr::from(host) };
            let path = format!("/var/log/{file}");
            let rules = |before: &str| {
                let entry = |path: &str| json!({"log_path": path, "topic": "t"});
                let value = json!([entry(before), entry(&path)]).to_string();
                read_seed(ip, value.as_bytes()).unwrap().rules.into_iter().map(|entry| entry.rule).collect::<Vec<_>>()
            };
            let rule = rules("/a").pop().unwrap();
            prop_assert!(rule.paths[0].matches(Path::new(&path)), "{}", rule.paths[0].as_str());
            prop_assert_eq!(rule.paths[0].matches(&Path::new("/var/log").join(&other)), file == other);
            prop_assert!(rule.name.as_str().starts_with(&seed_names(ip)) && rule.name.id().len() <= 64);
            prop_assert_eq!(&rules("/b").pop().unwrap().name, &rule.name);
            prop_assert_eq!(rules(&format!("/var/log/{file}x"))[0].name == rule.name, false);
        }
    }
}
