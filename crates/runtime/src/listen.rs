//! Opening a port, with errors that say what to do, and the rule that nothing is offered off loopback by accident.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// A port couldn't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address can be reached by other machines, and nothing protects it.
    #[error(
        "{addr} can be reached from other machines, and without TLS and authentication anybody could read and write \
         there; listen on 127.0.0.1 instead, or accept that with --insecure"
    )]
    Exposed {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// Somebody has the port.
    #[error(
        "cannot listen on {addr} for {what}: the port is in use, perhaps by another logmesh; stop that one or choose \
         another address"
    )]
    InUse {
        /// What was to be offered there.
        what: &'static str,
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The system refused.
    #[error("cannot listen on {addr} for {what}")]
    Refused {
        /// What was to be offered there.
        what: &'static str,
        /// The address asked for.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Refuses an address that other machines can reach, unless the operator said `--insecure`. (TLS and authentication will
/// be the other way to get past this.)
pub fn check_exposure(addr: SocketAddr, insecure: bool) -> Result<(), ListenError> {
    if insecure || addr.ip().to_canonical().is_loopback() { Ok(()) } else { Err(ListenError::Exposed { addr }) }
}

/// Whether `host:port` or a URL names this machine.
pub fn is_local(address: &str) -> bool {
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or(authority);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The address by which this machine reaches a listener of its own: one on all interfaces is reached over loopback.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

/// Opens a TCP port to offer `what`, after [`check_exposure`]. Port 0 takes a free one; the listener knows which.
pub async fn listen(what: &'static str, addr: SocketAddr, insecure: bool) -> Result<TcpListener, ListenError> {
    check_exposure(addr, insecure)?;
    TcpListener::bind(addr).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { what, addr },
        _ => ListenError::Refused { what, addr, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_open_by_default() {
        for addr in ["127.0.0.1:7400", "127.8.8.8:1", "[::1]:7400", "[::ffff:127.0.0.1]:7400"] {
            check_exposure(addr.parse().unwrap(), false).unwrap();
        }
        for addr in ["0.0.0.0:7400", "[::]:7400", "10.0.0.7:7400"] {
            let error = check_exposure(addr.parse().unwrap(), false).unwrap_err().to_string();
            assert!(error.contains(addr) && error.contains("--insecure"), "{error}");
            check_exposure(addr.parse().unwrap(), true).unwrap();
        }
    }

    #[test]
    fn an_unspecified_address_is_reached_over_loopback() {
        for (listen, reached) in
            [("127.0.0.1:7400", "127.0.0.1:7400"), ("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1")]
        {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), reached);
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = listen("metrics", "127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        let addr = first.local_addr().unwrap();
        let error = listen("gRPC", addr, false).await.unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }));
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}
