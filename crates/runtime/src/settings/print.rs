//! `--print-config`: every value in force, and where it came from.

use figment::Figment;
use figment::value::{Empty, Num, Value};

use super::place::Place;

/// A value whose key ends so is never shown.
const SECRETS: [&str; 4] = ["password", "secret", "token", "api_key"];

/// `key = value  # place`, by key.
pub(super) fn lines(sources: &Figment) -> String {
    let mut text = String::new();
    if let Ok(values) = sources.extract::<Value>() {
        flatten(sources, &mut Vec::new(), &values, &mut text);
    }
    text
}

fn flatten(sources: &Figment, key: &mut Vec<String>, value: &Value, text: &mut String) {
    match value {
        Value::Dict(_, inner) if !inner.is_empty() => {
            for (name, value) in inner {
                key.push(name.clone());
                flatten(sources, key, value, text);
                key.pop();
            }
        }
        _ => {
            let place = sources.get_metadata(value.tag()).map_or(Place::Default, Place::of);
            let shown = if is_secret(key) && !is_unset(value) { "(hidden)".to_owned() } else { show(value) };
            let source = if place == Place::Default { "default".to_owned() } else { place.at(key, None) };
            text.push_str(&format!("{} = {shown}  # {source}\n", key.join(".")));
        }
    }
}

/// The value as TOML would write it.
fn show(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Char(_, character) => format!("{:?}", character.to_string()),
        Value::Bool(_, value) => value.to_string(),
        Value::Num(_, number) => show_number(number),
        Value::Empty(..) => "(not set)".to_owned(),
        Value::Array(_, values) => format!("[{}]", values.iter().map(show).collect::<Vec<_>>().join(", ")),
        Value::Dict(_, inner) => {
            let fields = inner.iter().map(|(key, value)| match is_secret(std::slice::from_ref(key)) {
                true => format!("{key} = (hidden)"),
                false => format!("{key} = {}", show(value)),
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

fn show_number(number: &Num) -> String {
    match (number.to_i128(), number.to_u128(), number.to_f64()) {
        (Some(number), ..) => number.to_string(),
        (_, Some(number), _) => number.to_string(),
        (.., Some(number)) => number.to_string(),
        _ => "(not a number)".to_owned(),
    }
}

fn is_secret(key: &[String]) -> bool {
    key.last().is_some_and(|name| SECRETS.iter().any(|ending| name.to_lowercase().ends_with(ending)))
}

fn is_unset(value: &Value) -> bool {
    matches!(value, Value::Empty(_, Empty::None | Empty::Unit))
        || matches!(value, Value::String(_, text) if text.is_empty())
}
