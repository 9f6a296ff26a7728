//! Indices that aren't mapped as ours are: somebody made them before us, or wrote to them, and Elasticsearch guessed what
//! their fields are.

use std::collections::BTreeMap;

use logmesh_index::{FieldTypes, IndexError};
use reqwest::Method;
use serde_json::Value;

use crate::Inner;
use crate::client::Body;
use crate::template::{ID, mappings};
use crate::topic::LENIENT;

/// What pages are sorted by and sums are made of, but the time: sorted by, one guessed type of it is as good as ours.
const FIELDS: [&str; 4] = ["logmesh.stream", "logmesh.offset", "logmesh.length", ID];

impl Inner {
    /// Why these indices can't answer a request that others of ours can: the first that is mapped otherwise. `None` if none is, or
    /// that can't be told now.
    pub(crate) async fn mapped_otherwise(&self, indices: &str) -> Option<IndexError> {
        let path = format!("{indices}/_mapping/field/{}?{LENIENT}", FIELDS.join(","));
        let answer = self.client.call(Method::GET, &path, Body::None).await.ok()?;
        let held: BTreeMap<String, Value> = answer.json().ok()?;
        let ours = &mappings(&FieldTypes::new())["properties"];
        held.iter().find_map(|(index, held)| otherwise(index, &held["mappings"], ours))
    }
}

fn otherwise(index: &str, held: &Value, ours: &Value) -> Option<IndexError> {
    let (field, is, should) = FIELDS.iter().find_map(|field| {
        // Under the last part of the field's name, whatever Elasticsearch takes that to be.
        let mapping = held[field]["mapping"].as_object()?.values().next()?;
        let (is, should) = (mapping["type"].as_str()?, ours[field]["type"].as_str()?);
        (is != should).then_some((field, is, should))
    })?;
    let reason = format!(
        "{index}: its field {field} is of type {is}, not {should}; delete that index, then `logmesh audit --repair` writes its \
         lines again, and `logmesh replay start --topic …` what was sent without a stream, as far as the bus holds it (copy \
         it first if neither the bus nor the files hold all of it any more)"
    );
    Some(IndexError::Mapping { reason })
}
