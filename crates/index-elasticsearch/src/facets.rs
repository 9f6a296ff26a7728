//! Counts the values of a field, by Elasticsearch's `terms`: in the field itself where the value has one, and among our
//! own terms where it may lie there (see [`crate::template::place`]). What both count is added up.

use std::collections::BTreeMap;

use logmesh_index::facets::{FacetPart, FacetSum, PART_VALUES, check, value_text};
use logmesh_index::query::field::{ATTRIBUTES, Kind, TOPIC};
use logmesh_index::{Facets, IndexError, MAX_FACETS, Selection};
use logmesh_types::TopicName;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::Inner;
use crate::catalog::Catalog;
use crate::client::unavailable;
use crate::form::value_term;
use crate::scope::NAMED_BYTES;
use crate::search::MAX_INDICES;
use crate::template::{ANY_LABEL, LABELS, Place, VALUES, place};

/// The longest regular expression that Elasticsearch takes, in characters (`index.max_regex_length`).
const MAX_REGEXP: usize = 1_000;

#[derive(Deserialize)]
struct Answered<'a> {
    /// None where no index was asked.
    #[serde(borrow, default)]
    aggregations: BTreeMap<String, Terms<'a>>,
}

#[derive(Deserialize)]
struct Terms<'a> {
    doc_count_error_upper_bound: i64,
    sum_other_doc_count: u64,
    #[serde(borrow)]
    buckets: Vec<Bucket<'a>>,
}

#[derive(Deserialize)]
struct Bucket<'a> {
    /// Read as it's written: `serde_json` may be off by the last bit of a number.
    #[serde(borrow)]
    key: &'a RawValue,
    key_as_string: Option<String>,
    doc_count: u64,
}

/// Where the values of a field lie: in a field of Elasticsearch's, or after a prefix there.
struct Source {
    field: String,
    prefix: String,
}

impl Source {
    fn terms(&self, size: usize) -> Value {
        let mut terms = json!({ "field": self.field, "size": size, "shard_size": PART_VALUES });
        if !self.prefix.is_empty() {
            terms["include"] = beginning_with(&self.prefix).into();
        }
        json!({ "terms": terms })
    }
}

impl Inner {
    pub(crate) async fn facets(&self, selection: &Selection, field: &str, limit: usize) -> Result<Facets, IndexError> {
        let limit = limit.clamp(1, MAX_FACETS);
        let catalog = self.catalog().await?;
        let asked = |topic: &TopicName| selection.topics.is_empty() || selection.topics.contains(topic);
        check(field, catalog.iter().filter(|(topic, _)| asked(topic)))?;
        let mut sum = FacetSum::default();
        if field == TOPIC {
            sum.add(self.topic_counts(selection).await?);
        } else {
            for (place, part) in self.by_place(selection, field, &catalog) {
                self.count_values(&part, field, place, limit, &mut sum).await?;
            }
        }
        Ok(sum.finish(limit))
    }

    /// The documents of each topic.
    async fn topic_counts(&self, selection: &Selection) -> Result<FacetPart, IndexError> {
        let Some(scope) = self.scope(selection).await? else { return Ok(FacetPart::default()) };
        let indices = json!({ "terms": { "field": "_index", "size": MAX_INDICES } });
        let body =
            json!({ "query": scope.query, "size": 0, "track_total_hits": false, "aggs": { "indices": indices } });
        let answer = self.ask(&scope.indices, body).await?;
        let terms = answer.json::<Answered<'_>>()?.aggregations.remove("indices");
        let mut counts: BTreeMap<TopicName, u64> = BTreeMap::new();
        for bucket in terms.iter().flat_map(|terms| &terms.buckets) {
            // An index of somebody else's that is named like one of ours has no topic.
            if let Some(topic) = self.names.topic_of(&bucket.text(Kind::Keyword)?) {
                *counts.entry(topic).or_default() += bucket.doc_count;
            }
        }
        let values = counts.into_iter().map(|(topic, count)| (topic.to_string(), count)).collect();
        Ok(FacetPart { values, ..FacetPart::default() })
    }

    /// The selection in parts in each of which the field lies in one place: one request can't count numbers in one index
    /// and texts in another.
    fn by_place(&self, selection: &Selection, field: &str, catalog: &Catalog) -> Vec<(Place, Selection)> {
        let mut groups: Vec<(Place, Vec<TopicName>)> = Vec::new();
        for (topic, types) in catalog {
            if selection.topics.is_empty() || selection.topics.contains(topic) {
                let place = place(field, types);
                match groups.iter_mut().find(|(other, _)| *other == place) {
                    Some((_, topics)) => topics.push(topic.clone()),
                    None => groups.push((place, vec![topic.clone()])),
                }
            }
        }
        if let ([(place, _)], true) = (&groups[..], selection.topics.is_empty()) {
            return vec![(*place, selection.clone())];
        }
        let parts = groups
            .into_iter()
            .flat_map(|(place, topics)| self.named_in_url(topics).into_iter().map(move |topics| (place, topics)));
        parts.map(|(place, topics)| (place, Selection { topics, ..selection.clone() })).collect()
    }

    /// The topics in parts that a request can name: else it would go to all indices.
    fn named_in_url(&self, topics: Vec<TopicName>) -> Vec<Vec<TopicName>> {
        let mut parts: Vec<Vec<TopicName>> = Vec::new();
        let mut bytes = 0;
        for topic in topics {
            let added = self.names.indices(&topic).len() + 1;
            match parts.last_mut() {
                Some(part) if bytes + added <= NAMED_BYTES => {
                    bytes += added;
                    part.push(topic);
                }
                _ => {
                    bytes = added;
                    parts.push(vec![topic]);
                }
            }
        }
        parts
    }

    /// Counts what lies in one place.
    async fn count_values(
        &self,
        selection: &Selection,
        field: &str,
        place: Place,
        limit: usize,
        sum: &mut FacetSum,
    ) -> Result<(), IndexError> {
        let sources = sources(field, place)?;
        let Some(scope) = self.scope(selection).await? else { return Ok(()) };
        let mut size = PART_VALUES;
        let answer = loop {
            let aggs: Value =
                sources.iter().enumerate().map(|(at, source)| (at.to_string(), source.terms(size))).collect();
            let body = json!({ "query": scope.query, "size": 0, "track_total_hits": false, "aggs": aggs });
            let answer = self.ask(&scope.indices, body).await.map_err(older_mapping)?;
            if !answer.too_large || size <= limit {
                break answer;
            }
            // Very long values.
            size = (size / 8).max(limit);
        };
        let kind = if let Place::Field(kind) = place { kind } else { Kind::Keyword };
        let mut found = answer.json::<Answered<'_>>()?.aggregations;
        for (at, source) in sources.iter().enumerate() {
            if let Some(terms) = found.remove(&at.to_string()) {
                sum.add(terms.part(kind, &source.prefix)?);
            }
        }
        Ok(())
    }
}

/// An index of the first version of our mapping has nothing to count [`VALUES`] by.
fn older_mapping(error: IndexError) -> IndexError {
    match error {
        IndexError::Unsupported { reason } if reason.contains(VALUES) => {
            let reason = format!("an index made by an older logmesh cannot count it: choose newer topics ({reason})");
            IndexError::NotCountable { reason }
        }
        other => other,
    }
}

/// Where the values of a field lie that has this place: where [`crate::translate`] looks for them, too.
fn sources(name: &str, place: Place) -> Result<Vec<Source>, IndexError> {
    let own = match place {
        Place::Field(_) | Place::Label => Some(name),
        Place::Derived if name == LABELS => Some(ANY_LABEL),
        Place::Derived => None,
    };
    let mut sources: Vec<Source> =
        own.map(|field| Source { field: field.to_owned(), prefix: String::new() }).into_iter().collect();
    if matches!(place, Place::Field(_)) && !name.starts_with(ATTRIBUTES) {
        return Ok(sources);
    }
    let prefix = value_term(name, "");
    if beginning_with(&prefix).len() > MAX_REGEXP {
        let reason = format!("its name is too long for Elasticsearch: {} bytes", name.len());
        return Err(IndexError::NotCountable { reason });
    }
    // What stands before the first NUL of a term is its path.
    if !name.contains('\0') {
        sources.push(Source { field: VALUES.to_owned(), prefix });
    }
    Ok(sources)
}

/// A regular expression of Lucene's for the texts that begin so.
fn beginning_with(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + ".*"
}

impl Terms<'_> {
    fn part(self, kind: Kind, prefix: &str) -> Result<FacetPart, IndexError> {
        let mut values = Vec::with_capacity(self.buckets.len());
        for bucket in &self.buckets {
            let text = bucket.text(kind)?;
            let value = text.strip_prefix(prefix).ok_or_else(|| unavailable("a value has not the prefix asked for"))?;
            values.push((value_text(kind, value).into_owned(), bucket.doc_count));
        }
        let error = u64::try_from(self.doc_count_error_upper_bound).unwrap_or_default();
        Ok(FacetPart { values, left_out: self.sum_other_doc_count, error })
    }
}

impl Bucket<'_> {
    /// The key as we write it.
    fn text(&self, kind: Kind) -> Result<String, IndexError> {
        if let Some(text) = &self.key_as_string {
            return Ok(text.clone());
        }
        let raw = self.key.get();
        if raw.starts_with('"') {
            return serde_json::from_str(raw).map_err(|error| unavailable(format!("a value can't be read: {error}")));
        }
        Ok(value_text(kind, raw).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use logmesh_index::{FieldType, FieldTypes};

    use super::*;

    #[test]
    fn nothing_in_a_name_means_anything_to_the_regular_expression() {
        assert_eq!(beginning_with("a.b_c"), "a\\.b\\_c.*");
        assert_eq!(beginning_with("ä \"<1>@\0"), "ä \\\"\\<1\\>\\@\0.*");
    }

    #[test]
    fn values_are_looked_for_where_they_may_lie() {
        let types: FieldTypes = [("status".to_owned(), FieldType::Long)].into();
        let fields = |name: &str| -> Vec<String> {
            sources(name, place(name, &types)).unwrap().into_iter().map(|source| source.field).collect()
        };
        assert_eq!(fields("host.name"), ["host.name"]);
        assert_eq!(fields("log.offset"), ["log.offset"]);
        assert_eq!(fields("attributes.status"), ["attributes.status", VALUES]);
        assert_eq!(fields("attributes.other"), [VALUES]);
        assert_eq!(fields("labels.role"), ["labels.role", VALUES]);
        assert_eq!(fields("labels"), [ANY_LABEL, VALUES]);
        assert_eq!(fields("parsed"), [VALUES]);
        assert_eq!(fields("a\0b"), Vec::<String>::new());
        let long = format!("parsed.{}", "x".repeat(MAX_REGEXP));
        assert!(matches!(sources(&long, Place::Derived), Err(IndexError::NotCountable { .. })));
    }
}
