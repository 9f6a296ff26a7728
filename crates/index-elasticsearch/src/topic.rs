//! Topics and slices: their templates and indices are made, added to and removed here.

use logmesh_index::{FieldTypes, IndexError, Slice};
use logmesh_types::TopicName;
use reqwest::Method;
use serde_json::{Value, json};

use crate::Inner;
use crate::client::{Answer, Body, unavailable};
use crate::names::Names;
use crate::template::{self, Declared};

/// Addressing indices by a pattern that may match none.
pub(crate) const LENIENT: &str = "ignore_unavailable=true&allow_no_indices=true";

impl Inner {
    /// Declares fields of a topic, and puts its template there if it's missing or another. Answers all of its fields.
    pub(crate) async fn ensure_topic(&self, topic: &TopicName, fields: &FieldTypes) -> Result<FieldTypes, IndexError> {
        // One at a time, so that none takes another's fields out again.
        let mut known = self.declared.lock().await;
        let held = self.held_template(topic).await?.unwrap_or_default();
        let mut all = held.fields.clone();
        for (name, kind) in known.get(topic).into_iter().flatten().chain(fields) {
            let was = *all.entry(name.clone()).or_insert(*kind);
            if was != *kind {
                let reason = format!("field {name} of topic {topic} is declared as {was:?} and can't become {kind:?}");
                return Err(IndexError::Unsupported { reason });
            }
        }
        let pattern = self.names.indices(topic);
        let template = template::template(&pattern, template::settings(&self.settings), &all);
        let digest = template::declared(&template).unwrap_or_default().digest;
        if held.digest != digest {
            if held.fields != all {
                // The indices first: killed in between, the template is still the old one and all is done again.
                let mapping = json!({ "properties": { "attributes": template::attributes(&all) } });
                self.change(Method::PUT, &format!("{pattern}/_mapping?{LENIENT}"), mapping).await?;
            }
            let path = format!("_index_template/{}", self.names.template(topic));
            self.change(Method::PUT, &path, template).await?;
            self.catalog.forget();
        }
        known.insert(topic.clone(), all.clone());
        Ok(all)
    }

    /// The template of a topic, if there is one of ours.
    pub(crate) async fn held_template(&self, topic: &TopicName) -> Result<Option<Declared>, IndexError> {
        let path =
            format!("_index_template/{}?filter_path=index_templates.index_template._meta", self.names.template(topic));
        let answer = self.client.call(Method::GET, &path, Body::None).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let found: Value = answer.json()?;
        Ok(template::declared(&found["index_templates"][0]["index_template"]))
    }

    /// Makes the index of a slice, and the alias that it's written through.
    pub(crate) async fn make_index(&self, topic: &TopicName, index: &str) -> Result<(), IndexError> {
        let fields = self.ensure_topic(topic, &FieldTypes::new()).await?;
        let alias = Names::alias(index);
        let settings = json!({ "index": template::settings(&self.settings) });
        let body =
            json!({ "settings": settings, "mappings": template::mappings(&fields), "aliases": { alias.as_str(): {} } });
        let answer = self.client.call(Method::PUT, index, Body::Json(body)).await?;
        self.catalog.forget();
        if answer.is_ok() {
            return Ok(());
        }
        if answer.error_type() == "resource_already_exists_exception" {
            // Another made it just now, or it came back from a snapshot without its alias.
            return self.change(Method::PUT, &format!("{index}/_alias/{alias}"), json!({})).await;
        }
        // Nothing here depends on a document: the most shards that a node may have, say, is an operator's affair.
        Err(match answer.error() {
            IndexError::Unsupported { reason } => unavailable(format!("index {index} can't be made: {reason}")),
            other => other,
        })
    }

    pub(crate) async fn slices(&self, topic: &TopicName) -> Result<Vec<String>, IndexError> {
        // An index that was closed takes room all the same.
        let pattern = format!("{}?expand_wildcards=open,closed&", self.names.indices(topic));
        let indices = self.index_names(&pattern).await?;
        let mut dates: Vec<String> = indices.iter().filter_map(|index| self.names.date_of(topic, index)).collect();
        dates.sort_unstable();
        Ok(dates)
    }

    pub(crate) async fn delete_slice(&self, slice: &Slice) -> Result<(), IndexError> {
        let Some(index) = self.names.index(slice) else { return Ok(()) };
        let answer = self.client.call(Method::DELETE, &index, Body::None).await?;
        self.catalog.forget();
        match answer.status {
            404 => Ok(()),
            _ => acknowledged(&answer),
        }
    }

    /// Makes what was written findable.
    pub(crate) async fn refresh(&self, indices: &str) -> Result<(), IndexError> {
        let answer = self.client.call(Method::POST, &format!("{indices}/_refresh?{LENIENT}"), Body::None).await?;
        let done: Value = answer.json()?;
        match done["_shards"]["failed"].as_u64() {
            Some(0) => Ok(()),
            _ => Err(unavailable(format!("not all shards of {indices} were refreshed"))),
        }
    }

    async fn change(&self, method: Method, path: &str, body: Value) -> Result<(), IndexError> {
        acknowledged(&self.client.call(method, path, Body::Json(body)).await?)
    }
}

fn acknowledged(answer: &Answer) -> Result<(), IndexError> {
    let done: Value = answer.json()?;
    match done["acknowledged"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(unavailable("not all nodes have taken a change of an index yet")),
    }
}
