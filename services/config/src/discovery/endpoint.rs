//! An endpoint: checked as it comes in, and as it lies in the store.

use std::collections::BTreeMap;

use logmesh_proto::discovery::v1::Endpoint;
use logmesh_store::{PrefixState, Revision};
use logmesh_types::AgentId;
use serde::{Deserialize, Serialize};
use tonic::Status;

use crate::error::bad_field;
use crate::keys;
use crate::limits::MAX_ADDRESS_BYTES;

/// The value of an endpoint's key.
#[derive(Debug, Serialize, Deserialize)]
struct StoredEndpoint {
    kind: String,
    id: String,
    address: String,
}

/// All endpoints at one revision, in the order of kind and id.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    pub(crate) revision: Revision,
    pub(crate) all: BTreeMap<String, Endpoint>,
}

impl Endpoints {
    /// Reads the endpoints; one that can't be read is left out.
    pub(crate) fn read(state: &PrefixState) -> Self {
        let endpoint = |value: &[u8]| {
            let StoredEndpoint { kind, id, address } = serde_json::from_slice(value).ok()?;
            Some(Endpoint { kind, id, address })
        };
        let all = state.entries.iter().filter_map(|(key, held)| Some((key.clone(), endpoint(&held.value)?)));
        Self { revision: state.revision, all: all.collect() }
    }
}

/// The key and the value of an endpoint that was checked.
pub(crate) fn entry(endpoint: &Endpoint) -> Result<(String, Vec<u8>), Status> {
    check(endpoint)?;
    let Endpoint { kind, id, address } = endpoint.clone();
    let key = keys::endpoint(&kind, &id);
    let value = serde_json::to_vec(&StoredEndpoint { kind, id, address }).map_err(logmesh_grpc::internal)?;
    Ok((key, value))
}

fn check(endpoint: &Endpoint) -> Result<(), Status> {
    // The same characters as in an agent's id, so that a key has one slash for each part.
    for (field, name) in [("endpoint.kind", &endpoint.kind), ("endpoint.id", &endpoint.id)] {
        if name.parse::<AgentId>().is_err() {
            return Err(bad_field(field, "is not 1 to 64 of a-z, 0-9, '.', '_' and '-'"));
        }
    }
    let address = &endpoint.address;
    let port =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    let plain = address.len() <= MAX_ADDRESS_BYTES && address.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if plain && port.is_some_and(|port| port > 0) {
        return Ok(());
    }
    Err(bad_field("endpoint.address", format!("{address:?} is not host:port")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let endpoint = |kind: &str, id: &str, address: &str| {
            entry(&Endpoint { kind: kind.into(), id: id.into(), address: address.into() })
        };
        for address in ["127.0.0.1:7402", "[::1]:1", "gateway-1.example:65535"] {
            assert_eq!(endpoint("gateway", "g-1", address).unwrap().0, "/logmesh/v1/endpoints/gateway/g-1");
        }
        for address in ["", "host", ":80", "host:0", "host:65536", "ho st:1", "http://host:1"] {
            assert!(endpoint("gateway", "g", address).unwrap_err().message().starts_with("endpoint.address"));
        }
        for name in ["", "a/b", "A", &"x".repeat(65)] {
            endpoint(name, "g", "h:1").unwrap_err();
            endpoint("gateway", name, "h:1").unwrap_err();
        }
    }
}
