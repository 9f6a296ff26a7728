//! The three backends of services that run apart, and whether they are there.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use logmesh_bus_kafka::KafkaBus;
use logmesh_index_elasticsearch::ElasticIndex;
use logmesh_runtime::{Readiness, RetryPolicy, Tasks};
use logmesh_store_etcd::EtcdStore;
use tracing::{info, warn};

use super::settings::Settings;

/// How often a backend that answers is asked whether it's there.
const LOOK: Duration = Duration::from_secs(2);

/// How often one that doesn't answer is asked.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(500), max: Duration::from_secs(5) };

/// Opens backends, none of which need be reachable yet, and shows in the readiness whether they are.
pub(super) struct Backends<'a> {
    pub(super) settings: &'a Settings,
    pub(super) readiness: &'a Readiness,
    pub(super) tasks: &'a Tasks,
}

impl Backends<'_> {
    pub(super) fn store(&self) -> anyhow::Result<Arc<EtcdStore>> {
        let store = Arc::new(EtcdStore::new(&self.settings.etcd).context("etcd")?);
        let pinged = store.clone();
        self.follow("store", "etcd", move || ping(pinged.clone(), |store| async move { store.ping().await }));
        Ok(store)
    }

    pub(super) fn bus(&self) -> anyhow::Result<Arc<KafkaBus>> {
        let bus = Arc::new(KafkaBus::new(self.settings.kafka.clone()).context("kafka")?);
        let pinged = bus.clone();
        self.follow("bus", "Kafka", move || ping(pinged.clone(), |bus| async move { bus.ping().await }));
        Ok(bus)
    }

    pub(super) fn index(&self) -> anyhow::Result<Arc<ElasticIndex>> {
        let index = Arc::new(ElasticIndex::new(self.settings.elasticsearch.clone()).context("elasticsearch")?);
        let pinged = index.clone();
        self.follow("index", "Elasticsearch", move || ping(pinged.clone(), |index| async move { index.ping().await }));
        Ok(index)
    }

    fn follow<F>(&self, component: &'static str, name: &'static str, ask: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), String>> + Send,
    {
        let (readiness, token) = (self.readiness.clone(), self.tasks.token());
        readiness.set(component, false, format!("{name} has not answered yet"));
        self.tasks.spawn(component, async move {
            let (mut attempt, mut known) = (0, None);
            loop {
                let answer = tokio::select! {
                    answer = ask() => answer,
                    () = token.cancelled() => return Ok(()),
                };
                if known != Some(answer.is_ok()) {
                    match &answer {
                        Ok(()) => info!("{name} answers"),
                        Err(reason) => {
                            warn!(%reason, "{name} does not answer; waiting for it, and nothing is lost meanwhile")
                        }
                    }
                }
                known = Some(answer.is_ok());
                let more = match answer {
                    Ok(()) => {
                        attempt = 0;
                        readiness.set(component, true, "");
                        tokio::select! { () = token.cancelled() => false, () = tokio::time::sleep(LOOK) => true }
                    }
                    Err(reason) => {
                        readiness.set(component, false, format!("{name}: {reason}"));
                        attempt += 1;
                        RETRY.pause(attempt, &token).await
                    }
                };
                if !more {
                    return Ok(());
                }
            }
        });
    }
}

/// Asks a backend, whose error is wanted as text only.
async fn ping<B, E: Display, F: Future<Output = Result<(), E>>>(
    backend: B,
    ask: impl Fn(B) -> F,
) -> Result<(), String> {
    ask(backend).await.map_err(|error| error.to_string())
}
