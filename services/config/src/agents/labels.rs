//! The labels that the centre gives agents, and forgetting an agent.

use std::collections::BTreeMap;

use logmesh_grpc::{aborted, failed_precondition, internal, not_found, resource_exhausted};
use logmesh_proto::fleet::v1::{Agent, UpdateAgentRequest};
use logmesh_store::{Precondition, Revision, StoreError};
use logmesh_types::AgentId;
use logmesh_types::limits::MAX_NAME_BYTES;
use tonic::Status;
use tracing::info;

use super::merged::{Fleet, incomplete};
use super::stored::{HOSTS_OWN, StoredAgent};
use crate::error::{bad_field, store};
use crate::keys;
use crate::limits::{MAX_AGENT_BYTES, MAX_LABEL_BYTES, MAX_LABELS, REVISION_WAIT, UPDATE_ATTEMPTS};

impl Fleet {
    /// Changes the centre's labels of an agent; answers with the agent when they are in force here.
    pub(crate) async fn update(&self, id: &AgentId, request: &UpdateAgentRequest) -> Result<Agent, Status> {
        check(request)?;
        for _ in 0..UPDATE_ATTEMPTS {
            if let Some(revision) = self.try_update(id, request).await? {
                self.wait_for(revision).await;
                return self.agent(id).await.0.ok_or_else(|| missing(id));
            }
        }
        Err(aborted("CONFLICT", format!("others keep changing agent {id}; try again")))
    }

    /// `None` if somebody else wrote in between.
    async fn try_update(&self, id: &AgentId, request: &UpdateAgentRequest) -> Result<Option<Revision>, Status> {
        let key = keys::agent(id);
        let held = self.store.get(&key).await.map_err(store)?;
        let mut record = match &held {
            Some(held) => serde_json::from_slice(&held.value).unwrap_or_default(),
            None => self.record_of(id).await?,
        };
        let before = record.clone();
        record.labels.retain(|key, _| !request.remove_labels.contains(key));
        record.labels.extend(request.set_labels.clone());
        if let (true, Some(held)) = (record == before, &held) {
            return Ok(Some(held.mod_revision));
        }
        if record.labels.len() > MAX_LABELS {
            let message = format!("the centre gives an agent at most {MAX_LABELS} labels");
            return Err(resource_exhausted("TOO_MANY_LABELS", message));
        }
        let json = serde_json::to_vec(&record).map_err(internal)?;
        if json.len() > 2 * MAX_AGENT_BYTES {
            return Err(resource_exhausted("TOO_MANY_LABELS", format!("the labels of agent {id} are too long")));
        }
        let condition = held.map_or(Precondition::MustNotExist, |held| Precondition::RevisionIs(held.mod_revision));
        match self.store.put(&key, json.into(), condition).await {
            Ok(revision) => {
                info!(agent = %id, %revision, labels = ?record.labels, "agent labelled");
                Ok(Some(revision))
            }
            Err(StoreError::PreconditionFailed { .. }) => Ok(None),
            Err(error) => Err(store(error)),
        }
    }

    /// The record of an agent that was seen and isn't in the store yet.
    async fn record_of(&self, id: &AgentId) -> Result<StoredAgent, Status> {
        let (agent, unreachable) = self.agent(id).await;
        let agent = agent.ok_or_else(|| match unreachable.is_empty() {
            true => missing(id),
            false => incomplete(&format!("no agent {id} is known here"), &unreachable),
        })?;
        let time = |time: Option<&prost_types::Timestamp>| {
            time.map(|time| logmesh_proto::time::unix_nanos(time).to_string()).unwrap_or_default()
        };
        Ok(StoredAgent {
            host_labels: agent.host_labels,
            labels: BTreeMap::new(),
            version: agent.version,
            first_seen: time(agent.connect_time.as_ref()),
            last_seen: time(agent.last_seen_time.as_ref()),
        })
    }

    /// Forgets an agent that isn't connected to any server.
    pub(crate) async fn forget(&self, id: &AgentId) -> Result<(), Status> {
        let (agent, unreachable) = self.agent(id).await;
        if agent.as_ref().is_some_and(|agent| agent.online) {
            let message = format!("agent {id} is connected and would be back at once; stop it first");
            return Err(failed_precondition("AGENT_CONNECTED", message));
        }
        if !unreachable.is_empty() {
            return Err(incomplete(&format!("agent {id} may be connected elsewhere"), &unreachable));
        }
        if agent.is_none() {
            return Err(missing(id));
        }
        if self.store.get(&keys::agent(id)).await.map_err(store)?.is_some() {
            let revision = self.store.delete(&keys::agent(id), Precondition::None).await.map_err(store)?;
            self.wait_for(revision).await;
        }
        self.registry.forget(id);
        info!(agent = %id, "agent forgotten");
        Ok(())
    }

    /// Waits until what the store keeps of agents is known as of a revision, or for a short time: a store that is slow to
    /// tell doesn't undo what was written.
    async fn wait_for(&self, revision: Revision) {
        let known = tokio::time::timeout(REVISION_WAIT, self.kept.wait(revision)).await;
        tracing::trace!(%revision, known = known.is_ok(), "waited for the store to tell");
    }
}

fn check(request: &UpdateAgentRequest) -> Result<(), Status> {
    for (key, value) in &request.set_labels {
        let field = format!("set_labels[{key:?}]");
        if HOSTS_OWN.contains(&key.as_str()) {
            return Err(bad_field(&field, "is what the host says of itself, and can't be set"));
        }
        if key.is_empty() || key.len() > MAX_NAME_BYTES || value.len() > MAX_LABEL_BYTES {
            let limits =
                format!("is not a key of 1 to {MAX_NAME_BYTES} bytes with a value of at most {MAX_LABEL_BYTES}");
            return Err(bad_field(&field, limits));
        }
        if request.remove_labels.contains(key) {
            return Err(bad_field(&field, "is also among those to remove"));
        }
    }
    Ok(())
}

fn missing(id: &AgentId) -> Status {
    not_found("AGENT_NOT_FOUND", format!("no agent {id} is known"))
}
