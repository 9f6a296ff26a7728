//! Selectors as people write them, against an evaluator that is too simple to be wrong.

#![allow(clippy::unwrap_used)] // a test

use logmesh_rules::{Labels, Selector};
use proptest::prelude::*;

/// A selector's meaning, and nothing of how it's written.
#[derive(Clone, Debug)]
enum Meaning {
    Is(u8, u8),
    IsNot(u8, u8),
    In(u8, Vec<u8>),
    NotIn(u8, Vec<u8>),
    Exists(u8),
    Not(Box<Meaning>),
    And(Box<Meaning>, Box<Meaning>),
    Or(Box<Meaning>, Box<Meaning>),
}

impl Meaning {
    /// What it says of a host whose label `k{n}` is `v{labels[n]}`, or missing.
    fn holds(&self, labels: &[Option<u8>]) -> bool {
        let label = |key: &u8| labels[usize::from(*key)];
        match self {
            Self::Is(key, value) => label(key) == Some(*value),
            Self::IsNot(key, value) => label(key) != Some(*value),
            Self::In(key, values) => values.iter().any(|value| label(key) == Some(*value)),
            Self::NotIn(key, values) => values.iter().all(|value| label(key) != Some(*value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Not(inner) => !inner.holds(labels),
            Self::And(left, right) => left.holds(labels) && right.holds(labels),
            Self::Or(left, right) => left.holds(labels) || right.holds(labels),
        }
    }

    /// How tightly it holds together when it's written: OR, AND, the rest.
    fn strength(&self) -> u8 {
        match self {
            Self::Or(..) => 0,
            Self::And(..) => 1,
            _ => 2,
        }
    }

    /// A text with this meaning; `style` is what is left to the writer's taste.
    fn write(&self, style: &mut impl Iterator<Item = bool>) -> String {
        let mut taste =
            |one: &'static str, other: &'static str| if style.next().unwrap_or_default() { one } else { other };
        let list = |values: &[u8]| values.iter().map(|value| format!("v{value}")).collect::<Vec<_>>().join(", ");
        match self {
            Self::Is(key, value) => format!("k{key}{}v{value}", taste("=", " == ")),
            Self::IsNot(key, value) => {
                let quote = taste("", "\"");
                format!("k{key}!={quote}v{value}{quote}")
            }
            Self::In(key, values) => format!("k{key} {} ({})", taste("in", "IN"), list(values)),
            Self::NotIn(key, values) => format!("k{key} {}({})", taste("notin", "NOTIN "), list(values)),
            Self::Exists(key) => format!("{}(k{key})", taste("exists", "EXISTS ")),
            Self::Not(inner) => {
                let not = taste("!", "NOT ");
                format!("{not}{}", inner.inside(2, style))
            }
            Self::And(left, right) => {
                let and = taste(" and ", " AND ");
                format!("{}{and}{}", left.inside(1, style), right.inside(1, style))
            }
            Self::Or(left, right) => {
                let or = taste(" or ", " OR ");
                format!("{}{or}{}", left.inside(0, style), right.inside(0, style))
            }
        }
    }

    /// As a part of what binds with `least`: in parentheses where it must be, and now and then where it needn't.
    fn inside(&self, least: u8, style: &mut impl Iterator<Item = bool>) -> String {
        let extra = style.next().unwrap_or_default() && style.next().unwrap_or_default();
        let text = self.write(style);
        if self.strength() < least || extra { format!("({text})") } else { text }
    }
}

fn meaning() -> impl Strategy<Value = Meaning> {
    let (key, value) = (0..4u8, 0..3u8);
    let values = prop::collection::vec(value.clone(), 1..3);
    let leaf = prop_oneof![
        (key.clone(), value.clone()).prop_map(|(key, value)| Meaning::Is(key, value)),
        (key.clone(), value).prop_map(|(key, value)| Meaning::IsNot(key, value)),
        (key.clone(), values.clone()).prop_map(|(key, values)| Meaning::In(key, values)),
        (key.clone(), values).prop_map(|(key, values)| Meaning::NotIn(key, values)),
        key.prop_map(Meaning::Exists),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        let pair = (inner.clone().prop_map(Box::new), inner.clone().prop_map(Box::new));
        prop_oneof![
            inner.prop_map(|inner| Meaning::Not(Box::new(inner))),
            pair.clone().prop_map(|(left, right)| Meaning::And(left, right)),
            pair.prop_map(|(left, right)| Meaning::Or(left, right)),
        ]
    })
}

proptest! {
    /// Whatever is written selects what it means; commas between requirements are AND around all of them.
    #[test]
    fn a_selector_means_what_it_says(
        parts in prop::collection::vec(meaning(), 1..4),
        style in prop::collection::vec(any::<bool>(), 64),
        hosts in prop::collection::vec(prop::collection::vec(prop::option::of(0..3u8), 4), 8),
    ) {
        let mut style = style.into_iter();
        let text = parts.iter().map(|part| part.write(&mut style)).collect::<Vec<_>>().join(", ");
        let selector: Selector = text.parse().unwrap();
        for host in hosts {
            let present = host.iter().enumerate().filter_map(|(key, value)| Some((key, (*value)?)));
            let labels: Labels = present.map(|(key, value)| (format!("k{key}"), format!("v{value}"))).collect();
            let expected = parts.iter().all(|part| part.holds(&host));
            prop_assert_eq!(selector.matches(&labels), expected, "{} on {:?}", text, labels);
            let printed: Selector = selector.to_string().parse().unwrap();
            prop_assert_eq!(printed.matches(&labels), expected);
        }
    }
}
