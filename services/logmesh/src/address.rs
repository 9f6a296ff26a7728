//! Addresses of this process: the one that it listens on isn't always one that others can call.

use std::net::SocketAddr;

/// How far the port of `/metrics` lies above the gRPC port, unless it is set.
const ADMIN_PORT_OFFSET: u16 = 100;

/// The address of the operator's port, unless it is set. Port 0 stays 0: any free one.
pub(crate) fn admin(listen: SocketAddr) -> SocketAddr {
    let port = if listen.port() == 0 { 0 } else { listen.port().saturating_add(ADMIN_PORT_OFFSET) };
    SocketAddr::new(listen.ip(), port)
}

/// The address at which others find a server that listens so, and reaches itself at `server`: on all interfaces, this host's name is what other hosts can reach.
pub(crate) fn advertised(listen: SocketAddr, server: &str) -> String {
    if listen.ip().is_unspecified() { format!("{}:{}", host_name(), port_of(server)) } else { server.to_owned() }
}

fn port_of(server: &str) -> &str {
    server.rsplit_once(':').map_or(server, |(_, port)| port)
}

/// This host's name, as the system has it.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
