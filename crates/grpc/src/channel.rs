//! Channels to other services.

use tonic::transport::{Channel, Endpoint};

use crate::limits;

/// The text isn't an address of a server.
#[derive(Debug, thiserror::Error)]
#[error("{addr:?} is not a server's address; write host:port, such as 127.0.0.1:7400")]
pub struct AddressError {
    addr: String,
}

/// A channel to `host:port` or `http://host:port`. It connects when it is first used, and again whenever the connection is
/// lost; a peer that falls silent is noticed within 15 s.
pub fn channel(addr: &str) -> Result<Channel, AddressError> {
    Ok(endpoint(addr)?
        .connect_timeout(limits::CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .http2_max_header_list_size(limits::MAX_HEADER_BYTES)
        .connect_lazy())
}

/// Refuses what [`channel`] would.
pub fn check_address(addr: &str) -> Result<(), AddressError> {
    endpoint(addr).map(drop)
}

fn endpoint(addr: &str) -> Result<Endpoint, AddressError> {
    let bad = || AddressError { addr: addr.to_owned() };
    let uri = if addr.contains("://") { addr.to_owned() } else { format!("http://{addr}") };
    let endpoint = Endpoint::from_shared(uri).map_err(|_| bad())?;
    let uri = endpoint.uri();
    let whole = uri.scheme_str() == Some("http") && uri.port_u16().is_some() && matches!(uri.path(), "" | "/");
    if whole { Ok(endpoint) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["127.0.0.1:7400", "http://gateway.example:7402", "[::1]:7400", "http://localhost:1/"] {
            endpoint(good).unwrap();
        }
        for bad in ["", "localhost", "localhost:port", "ftp://a:1", "a:1/path", "http://", "a b:1", "a:70000"] {
            let error = endpoint(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("host:port"), "{error}");
        }
    }
}
