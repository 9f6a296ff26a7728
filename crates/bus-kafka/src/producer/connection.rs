//! A connection to one broker: TCP, TLS and login, and frames over it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use logmesh_runtime::Tls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::sasl;
use super::wire::{Api, Reader, Request};
use crate::settings::Settings;

/// How long it may take until a broker can be asked something.
const SETUP: Duration = Duration::from_secs(5);

/// The largest answer that is read: the partitions of one topic, some 50 bytes each, are the most there is.
const MAX_ANSWER: usize = 4 << 20;

/// What is read at a time: most answers.
const READ: usize = 8 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that is logged in.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    received: BytesMut,
    client: String,
    /// Of the last request.
    number: i32,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to `host:port` and logs in, within five seconds.
    pub(super) async fn open(address: &str, settings: &Settings) -> anyhow::Result<Self> {
        let opened = timeout(SETUP, Self::set_up(address, settings)).await;
        opened.unwrap_or_else(|_| Err(anyhow!("no connection within {SETUP:?}"))).with_context(|| address.to_owned())
    }

    async fn set_up(address: &str, settings: &Settings) -> anyhow::Result<Self> {
        let (host, _) = address.rsplit_once(':').context("not host:port")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = connect(address).await.context("cannot connect")?;
        let stream: Box<dyn Stream> = if settings.tls.enabled {
            let tls = settings.tls.clone();
            // The files are read for each connection, so that certificates may be renewed.
            let config = tokio::task::spawn_blocking(move || client_config(&tls)).await??;
            let name = ServerName::try_from(host.to_owned())?;
            Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.context("TLS")?)
        } else {
            Box::new(tcp)
        };
        let client = settings.client.get("client.id").map_or("logmesh", String::as_str).to_owned();
        let mut connection = Self { stream, received: BytesMut::new(), client, number: 0 };
        if let Some(login) = &settings.sasl {
            sasl::log_in(&mut connection, login).await.context("SASL")?;
        }
        Ok(connection)
    }

    /// Begins a request; its number is that of the answer.
    pub(super) fn request(&mut self, api: Api) -> (i32, Request) {
        self.number = self.number.wrapping_add(1);
        (self.number, Request::new(api, self.number, &self.client))
    }

    /// Sends one request and waits for its answer. Whoever stops waiting must drop the connection.
    pub(super) async fn ask(&mut self, api: Api, fill: impl FnOnce(&mut Request)) -> anyhow::Result<Bytes> {
        let (number, mut request) = self.request(api);
        fill(&mut request);
        self.send(&request.finish()).await?;
        let (answered, answer) = self.answer().await?;
        ensure!(answered == number, "an answer to another question");
        Ok(answer)
    }

    pub(super) async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await?;
        self.stream.flush().await
    }

    /// The next answer, with the number of its request. Loses nothing if it is dropped.
    pub(super) async fn answer(&mut self) -> anyhow::Result<(i32, Bytes)> {
        loop {
            if let Some(len) = self.received.first_chunk::<4>() {
                let len = u32::from_be_bytes(*len) as usize;
                ensure!((4..=MAX_ANSWER).contains(&len), "an answer of {len} bytes");
                if self.received.len() >= 4 + len {
                    self.received.advance(4);
                    let mut answer = self.received.split_to(len).freeze();
                    let number = Reader(&answer).i32()?;
                    answer.advance(4);
                    return Ok((number, answer));
                }
            }
            self.received.reserve(READ);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                bail!("the broker closed the connection");
            }
        }
    }
}

/// Tries each address that the name has. One behind which nobody answers leaves time for the others.
async fn connect(address: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::other("the name has no address");
    let addresses: Vec<SocketAddr> = lookup_host(address).await?.collect();
    let patience = SETUP / (addresses.len() as u32 + 1);
    for address in addresses {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_keepalive(true)?;
        match timeout(patience, socket.connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failed = error,
            Err(late) => failed = io::Error::new(io::ErrorKind::TimedOut, late),
        }
    }
    Err(failed)
}

fn client_config(tls: &Tls) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).with_context(|| file.display().to_string())?;
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    ensure!(!roots.is_empty(), "there is no authority to trust; set tls.ca_file");
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots);
    match (&tls.cert_file, &tls.key_file) {
        (Some(certificate), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).with_context(|| key.display().to_string())?;
            Ok(config.with_client_auth_cert(certificates(certificate)?, private)?)
        }
        _ => Ok(config.with_no_client_auth()),
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    all.with_context(|| file.display().to_string())
}
