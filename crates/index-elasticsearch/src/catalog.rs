//! Which topics there are and what fields they declare, as Elasticsearch tells it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use logmesh_index::{FieldTypes, IndexError};
use logmesh_types::TopicName;
use reqwest::Method;
use serde_json::Value;

use crate::Inner;
use crate::client::Body;
use crate::template;

/// How long the catalog is taken for true: another process may make a topic meanwhile.
const FRESH: Duration = Duration::from_secs(1);

/// The topics that have an index or a template, with their declared fields.
pub(crate) type Catalog = BTreeMap<TopicName, FieldTypes>;

/// The catalog as it was last read.
#[derive(Debug, Default)]
pub(crate) struct CachedCatalog(Mutex<Cached>);

#[derive(Debug, Default)]
struct Cached {
    catalog: Option<(Instant, Arc<Catalog>)>,
    /// How often it was forgotten: what was read before that isn't kept.
    forgotten: u64,
}

impl CachedCatalog {
    /// Makes the next use read it anew.
    pub(crate) fn forget(&self) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.catalog = None;
        cached.forgotten += 1;
    }

    fn get(&self) -> Result<Arc<Catalog>, u64> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &cached.catalog {
            Some((at, catalog)) if at.elapsed() < FRESH => Ok(catalog.clone()),
            _ => Err(cached.forgotten),
        }
    }

    fn put(&self, forgotten: u64, at: Instant, catalog: Arc<Catalog>) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.forgotten == forgotten {
            cached.catalog = Some((at, catalog));
        }
    }
}

impl Inner {
    pub(crate) async fn catalog(&self) -> Result<Arc<Catalog>, IndexError> {
        let forgotten = match self.catalog.get() {
            Ok(catalog) => return Ok(catalog),
            Err(forgotten) => forgotten,
        };
        let at = Instant::now();
        let all = format!("{}?", self.names.all_indices());
        let (indices, templates) = tokio::try_join!(self.index_names(&all), self.templates())?;
        let mut catalog: Catalog = indices
            .iter()
            .filter_map(|name| self.names.topic_of(name))
            .map(|topic| (topic, FieldTypes::new()))
            .collect();
        catalog.extend(templates);
        let catalog = Arc::new(catalog);
        self.catalog.put(forgotten, at, catalog.clone());
        Ok(catalog)
    }

    /// The indices of a pattern, which may have parameters.
    pub(crate) async fn index_names(&self, pattern: &str) -> Result<Vec<String>, IndexError> {
        let path = format!("_resolve/index/{pattern}filter_path=indices.name");
        let answer = self.client.call(Method::GET, &path, Body::None).await?;
        if answer.status == 404 {
            return Ok(Vec::new());
        }
        let found: Value = answer.json()?;
        let indices = found["indices"].as_array().into_iter().flatten();
        Ok(indices.filter_map(|index| index["name"].as_str().map(str::to_owned)).collect())
    }

    async fn templates(&self) -> Result<Catalog, IndexError> {
        let wanted = "index_templates.name,index_templates.index_template._meta.logmesh";
        let path = format!("_index_template/{}?filter_path={wanted}", self.names.all_templates());
        let answer = self.client.call(Method::GET, &path, Body::None).await?;
        if answer.status == 404 {
            return Ok(Catalog::new());
        }
        let found: Value = answer.json()?;
        let templates = found["index_templates"].as_array().into_iter().flatten();
        let read = |template: &Value| {
            let topic = self.names.topic_of_template(template["name"].as_str()?)?;
            Some((topic, template::declared(&template["index_template"])?.fields))
        };
        Ok(templates.filter_map(read).collect())
    }
}
