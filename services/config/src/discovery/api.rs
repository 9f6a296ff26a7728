//! `logmesh.discovery.v1.DiscoveryService`.

use std::sync::Arc;
use std::time::Duration;

use logmesh_grpc::resource_exhausted;
use logmesh_proto::discovery::v1::discovery_service_server::DiscoveryService;
use logmesh_proto::discovery::v1::{
    CampaignRequest, CampaignResponse, Endpoint, Leader, ListLeadersRequest, ListLeadersResponse, RegisterRequest,
    RegisterResponse, WatchEndpointsRequest, WatchEndpointsResponse,
};
use logmesh_runtime::Tasks;
use logmesh_store::{ConfigStore, ConfigWatcher, Entry, PrefixState, Revision};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::campaign::Campaign;
use super::endpoint::{Endpoints, entry};
use super::register::Registration;
use crate::error::{bad_field, store};
use crate::keys;
use crate::limits::{FIRST_MESSAGE, MAX_ENDPOINTS};
use crate::push::{Push, Stream};
use crate::revision::on_wire;
use crate::settings::Settings;

/// The API of discovery.
#[derive(Clone, Debug)]
pub(crate) struct DiscoveryApi {
    store: Arc<dyn ConfigStore>,
    endpoints: watch::Receiver<Arc<Endpoints>>,
    ttl: Duration,
    push: Push,
}

impl DiscoveryApi {
    pub(crate) fn start(store: Arc<dyn ConfigStore>, settings: &Settings, push: Push, tasks: &Tasks) -> Self {
        let (watcher, driver) = ConfigWatcher::new(store.clone(), keys::ENDPOINTS);
        let (sender, endpoints) = watch::channel(Arc::new(Endpoints::default()));
        let token = tasks.token();
        tasks.spawn("config-endpoints", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = driver => {}
                () = publish(watcher.subscribe(), sender) => {}
            }
            Ok(())
        });
        Self { store, endpoints, ttl: settings.endpoint_ttl.0, push }
    }

    /// All endpoints, as they come and go.
    pub(crate) fn endpoints(&self) -> watch::Receiver<Arc<Endpoints>> {
        self.endpoints.clone()
    }
}

async fn publish(mut states: watch::Receiver<Arc<PrefixState>>, endpoints: watch::Sender<Arc<Endpoints>>) {
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        endpoints.send_replace(Arc::new(Endpoints::read(&state)));
    }
}

#[tonic::async_trait]
impl DiscoveryService for DiscoveryApi {
    type RegisterStream = Stream<RegisterResponse>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let permit = self.push.admit()?;
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE, messages.message()).await;
        let first = first.map_err(|_| bad_field("endpoint", "no first message came in time"))??;
        let endpoint = first.and_then(|first| first.endpoint).ok_or_else(|| bad_field("endpoint", "is missing"))?;
        let (key, value) = entry(&endpoint)?;
        let known = self.endpoints.borrow().clone();
        if known.all.len() >= MAX_ENDPOINTS && !known.all.contains_key(&key) {
            let message = format!("{MAX_ENDPOINTS} endpoints are registered, which is the limit");
            return Err(resource_exhausted("TOO_MANY_ENDPOINTS", message));
        }
        let registration = Registration::write(self.store.clone(), (key, value), self.ttl).await.map_err(store)?;
        Ok(Response::new(registration.into_stream(messages, self.push.token.clone(), permit)))
    }

    type WatchEndpointsStream = Stream<WatchEndpointsResponse>;

    async fn watch_endpoints(
        &self,
        request: Request<WatchEndpointsRequest>,
    ) -> Result<Response<Self::WatchEndpointsStream>, Status> {
        let kind = request.into_inner().kind;
        let mut shown: Option<Vec<Endpoint>> = None;
        let show = move |endpoints: &Endpoints| {
            let wanted = endpoints.all.values().filter(|endpoint| kind.is_empty() || endpoint.kind == kind);
            let wanted: Vec<Endpoint> = wanted.cloned().collect();
            if endpoints.revision == Revision(0) || shown.as_ref() == Some(&wanted) {
                return None;
            }
            shown = Some(wanted.clone());
            let revision = on_wire(endpoints.revision);
            Some(WatchEndpointsResponse { endpoints: wanted, revision })
        };
        Ok(Response::new(self.push.states(self.endpoints.clone(), show)?))
    }

    async fn list_leaders(&self, _: Request<ListLeadersRequest>) -> Result<Response<ListLeadersResponse>, Status> {
        let held = self.store.list(keys::LEADERS).await.map_err(store)?;
        let leader = |entry: Entry| {
            Some(Leader {
                name: entry.key.strip_prefix(keys::LEADERS)?.to_owned(),
                holder: String::from_utf8_lossy(&entry.versioned.value).into_owned(),
                revision: on_wire(entry.versioned.mod_revision),
            })
        };
        let leaders = held.entries.into_iter().filter_map(leader).collect();
        Ok(Response::new(ListLeadersResponse { leaders }))
    }

    type CampaignStream = Stream<CampaignResponse>;

    async fn campaign(
        &self,
        request: Request<Streaming<CampaignRequest>>,
    ) -> Result<Response<Self::CampaignStream>, Status> {
        let permit = self.push.admit()?;
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE, messages.message()).await;
        let first = first.map_err(|_| bad_field("office", "no first message came in time"))??;
        let first = first.ok_or_else(|| bad_field("office", "is missing"))?;
        let campaign = Campaign::begin(self.store.clone(), &first, self.ttl)?;
        Ok(Response::new(campaign.into_stream(messages, self.push.token.clone(), permit)))
    }
}
