//! The members of etcd: one connection to the member in use, and the next member when that one doesn't answer.
//!
//! A request that isn't known to be undone is sent again only where doing it twice is the same as once; a write whose
//! fate is unknown is told to the caller instead.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use etcd_client::{Channel, Client, ConnectOptions, Error};
use logmesh_runtime::Tls;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tracing::info;

use crate::Settings;
use crate::error::{Failure, Kind};

/// A connection with an open stream is asked for a sign of life this often, and given up after this wait: a silent member is
/// noticed after their sum, within the 10 s that the trait promises. etcd takes pings more often than every 5 s, or
/// without an open stream, for an attack and hangs up.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest wait for a connection. It must leave time for another member within the default timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes under way on a stream, and on a connection. So many times more that 64 watches that nobody reads don't block
/// the requests beside them.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The pause while a new leader is elected.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);

/// Whether a request may be done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It makes no difference: a read, the end of a lease.
    Harmless,
    /// It does: a write.
    Never,
}

/// All members, and which of them is in use.
pub(crate) struct Cluster {
    members: Vec<Member>,
    /// The member to ask, an index.
    chosen: AtomicUsize,
    /// The member that answered last.
    answered: AtomicUsize,
    timeout: Duration,
}

struct Member {
    name: String,
    endpoint: Endpoint,
    options: ConnectOptions,
    slot: Mutex<Slot>,
}

/// The connection of a member, made when it's first wanted.
#[derive(Default)]
struct Slot {
    client: Option<Client>,
    /// Counts the connections made.
    made: u64,
}

impl Cluster {
    /// Reads the files of `tls` and nothing else; connections are made by the first request.
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let tls = settings.tls.enabled.then(|| client_tls(&settings.tls)).transpose()?;
        let connect = |endpoint: &String| Member::new(settings, endpoint, tls.as_ref());
        let members = settings.endpoints.iter().map(connect).collect::<anyhow::Result<_>>()?;
        let (chosen, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Self { members, chosen, answered, timeout: settings.timeout.0 })
    }

    /// The names of the members.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// The name of a member.
    pub(crate) fn name(&self, index: usize) -> &str {
        &self.members[index].name
    }

    /// Makes a request of a member, or of the next ones where that helps, and is done within the timeout.
    pub(crate) async fn call<T, F>(&self, repeat: Repeat, request: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_member(repeat, request).await.map(|(_, answer)| answer)
    }

    /// The same, and says which member answered.
    pub(crate) async fn call_member<T, F>(
        &self,
        repeat: Repeat,
        request: impl Fn(Client) -> F,
    ) -> Result<(usize, T), Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + self.timeout;
        let (mut tried, mut leaderless) = (0, false);
        loop {
            let index = self.chosen.load(Ordering::Relaxed);
            let left = deadline.saturating_duration_since(Instant::now());
            let failure = match self.members[index].ask(self.share(repeat, left), &request).await {
                Ok(answer) => {
                    self.has_answered(index);
                    return Ok((index, answer));
                }
                Err(failure) => failure,
            };
            if failure.is_of_the_member() {
                self.leave(index);
            }
            tried += 1;
            let again = failure.was_not_done() || (failure.kind == Kind::Lost && repeat == Repeat::Harmless);
            leaderless |= failure.kind == Kind::NoLeader;
            // A connection that broke while nobody looked is worth a second try, also of the only member.
            let all_tried = tried >= self.members.len().max(2);
            if !again || (all_tried && !leaderless) || Instant::now() + ELECTION_PAUSE >= deadline {
                return Err(failure);
            }
            if leaderless && tried % self.members.len() == 0 {
                tokio::time::sleep(ELECTION_PAUSE).await;
            }
        }
    }

    /// How long one member may take, so that there's time for another one.
    fn share(&self, repeat: Repeat, left: Duration) -> Duration {
        match (repeat, self.members.len()) {
            (Repeat::Never, _) | (_, 1) => left,
            (Repeat::Harmless, members) => left.min(self.timeout / u32::try_from(members.min(3)).unwrap_or(3)),
        }
    }

    /// Goes to the member after this one, unless somebody else has already.
    pub(crate) fn leave(&self, index: usize) {
        let next = (index + 1) % self.members.len();
        // A failure means that somebody else has done it.
        self.chosen.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed).unwrap_or_default();
    }

    fn has_answered(&self, index: usize) {
        if self.answered.swap(index, Ordering::Relaxed) != index {
            info!(member = %self.members[index].name, "using another member of etcd");
        }
    }
}

impl Member {
    fn new(settings: &Settings, address: &str, tls: Option<&ClientTlsConfig>) -> anyhow::Result<Self> {
        let uri = settings.uri(address)?;
        let name = uri.authority().map_or_else(|| address.to_owned(), ToString::to_string);
        let mut endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT.min(settings.timeout.0))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls.clone()).context("tls")?;
        }
        // A member that was cut off from the others says so, instead of answering from the past.
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
            options = options.with_user(user, password);
        }
        Ok(Self { name, endpoint, options, slot: Mutex::default() })
    }

    /// Makes a request, and once more with a new connection if the token of this one has ended.
    async fn ask<T, F>(&self, limit: Duration, request: &impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let failed = |error| Failure::new(&self.name, error);
        let mut used = 0;
        let asked = async {
            let (made, client) = self.client().await.map_err(failed)?;
            used = made;
            match request(client).await.map_err(failed) {
                Err(failure) if failure.kind == Kind::StaleToken => self.slot.lock().await.forget(made),
                result => return result,
            }
            let (made, client) = self.client().await.map_err(failed)?;
            used = made;
            request(client).await.map_err(failed)
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(result) => result,
            Err(_) => {
                // Whatever it hangs on, a new connection doesn't. Who holds the slot is making one.
                if let Ok(mut slot) = self.slot.try_lock() {
                    slot.forget(used);
                }
                Err(Failure::silent(&self.name, limit))
            }
        }
    }

    /// The connection, with its number. It's made and logged in by one caller while others wait.
    async fn client(&self) -> Result<(u64, Client), Error> {
        let mut slot = self.slot.lock().await;
        if let Some(client) = &slot.client {
            return Ok((slot.made, client.clone()));
        }
        let channel = Channel::Tonic(self.endpoint.connect_lazy());
        let client = Client::from_channel(channel, Some(self.options.clone())).await?;
        slot.made += 1;
        slot.client = Some(client.clone());
        Ok((slot.made, client))
    }
}

impl Slot {
    /// Makes the next request open a new connection, unless that has been done since `made`.
    fn forget(&mut self, made: u64) {
        if self.made == made {
            self.client = None;
        }
    }
}

fn client_tls(tls: &Tls) -> anyhow::Result<ClientTlsConfig> {
    let read = |path: &std::path::Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut config = match &tls.ca_file {
        Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(file)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
        config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(config)
}
