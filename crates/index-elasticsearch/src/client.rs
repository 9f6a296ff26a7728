//! Calls to Elasticsearch: which node, who we are, how long, and what an answer means.
//!
//! Plain `reqwest`, because the `elasticsearch` crate (9.1.0-alpha.1) can't keep what our TLS settings promise: it always
//! trusts the public authorities that were compiled in, beside those of `ca_file`. It has no time-out for connecting and no
//! failover either, and of its 89,000 generated lines a bulk of bytes needs none. See `docs/decisions`.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use logmesh_index::IndexError;
use logmesh_runtime::telemetry::chain;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Certificate, Identity, Method, Response, Url};
use serde::Deserialize;
use serde_json::Value;

use crate::settings::Settings;

/// The most bytes of one answer that are read.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a connection may take to be made before another node is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node that failed is left out while there are others.
const LEFT_OUT: Duration = Duration::from_secs(10);
/// How long a call goes on asking a server that answers 503, and how often.
const STARTING: Duration = Duration::from_secs(5);
const STARTING_STEP: Duration = Duration::from_millis(100);
/// How much of what the server says is shown.
const SHOWN_CHARS: usize = 600;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// A pool of connections to the nodes.
pub(crate) struct Client {
    http: reqwest::Client,
    nodes: Vec<Node>,
    next: AtomicUsize,
    authorization: Option<HeaderValue>,
    timeout: Duration,
    started: Instant,
}

struct Node {
    url: Url,
    /// Milliseconds after [`Client::started`] until which it's left out.
    left_out_until: AtomicU64,
}

/// What is sent.
pub(crate) enum Body {
    None,
    Json(Value),
    Lines(Bytes),
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The body; cut if `too_large`.
    pub(crate) body: Bytes,
    /// The body is larger than is ever read.
    pub(crate) too_large: bool,
}

/// Why a node gave no answer.
struct Failure {
    reason: String,
    /// Another node may be asked within the same call.
    try_another: bool,
    /// The server is there, and says that something isn't yet.
    starting: bool,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_idle_timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        let tls = &settings.tls;
        if let Some(file) = &tls.ca_file {
            let pem = std::fs::read(file).with_context(|| format!("tls.ca_file: {}", file.display()))?;
            let authorities = Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("tls.ca_file: {} is no PEM file of certificates", file.display()))?;
            anyhow::ensure!(!authorities.is_empty(), "tls.ca_file: {} holds no certificate", file.display());
            builder = builder.tls_built_in_root_certs(false);
            builder = authorities.into_iter().fold(builder, |builder, one| builder.add_root_certificate(one));
        }
        if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
            let mut pem = std::fs::read(cert).with_context(|| format!("tls.cert_file: {}", cert.display()))?;
            pem.push(b'\n');
            pem.extend(std::fs::read(key).with_context(|| format!("tls.key_file: {}", key.display()))?);
            builder = builder.identity(Identity::from_pem(&pem).context("tls.cert_file and tls.key_file")?);
        }
        let node = |text: &String| {
            let mut url: Url = text.parse().with_context(|| format!("urls: {text:?}"))?;
            let path = url.path().trim_end_matches('/').to_owned() + "/";
            url.set_path(&path);
            anyhow::Ok(Node { url, left_out_until: AtomicU64::new(0) })
        };
        Ok(Self {
            http: builder.build().context("the HTTP client")?,
            nodes: settings.urls.iter().map(node).collect::<Result<_, _>>()?,
            next: AtomicUsize::new(0),
            authorization: authorization(settings)?,
            timeout: settings.request_timeout.0,
            started: Instant::now(),
        })
    }

    /// One call, within the request time-out. `path` has no slash at its beginning.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`] if no node answered.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Body) -> Result<Answer, IndexError> {
        self.call_within(self.timeout, method, path, body).await
    }

    /// [`Client::call`] with a time-out of its own, over all nodes that are tried.
    pub(crate) async fn call_within(
        &self,
        timeout: Duration,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Answer, IndexError> {
        // A bulk is megabytes: whoever sends it tries again in its own time.
        let mut starting = !matches!(body, Body::Lines(_));
        let (body, content_type) = match body {
            Body::None => (Bytes::new(), None),
            Body::Json(value) => (Bytes::from(value.to_string()), Some(JSON)),
            Body::Lines(bytes) => (bytes, Some(NDJSON)),
        };
        let begin = Instant::now();
        let end = begin + timeout;
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut reasons: Vec<String> = Vec::new();
        let mut candidates = self.candidates(first).into_iter();
        loop {
            let Some(node) = candidates.next() else {
                // An index that was just made, or whose node just started, answers 503 until its shards are there.
                let soon = Instant::now() + STARTING_STEP;
                if !starting || soon > end.min(begin + STARTING) {
                    break;
                }
                tokio::time::sleep(STARTING_STEP).await;
                candidates = self.candidates(first).into_iter();
                reasons.clear();
                continue;
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let url = node.url.join(path).map_err(|error| unavailable(format!("{path}: {error}")))?;
            let mut request = self.http.request(method.clone(), url).timeout(left).body(body.clone());
            if let Some(content_type) = &content_type {
                request = request.header(CONTENT_TYPE, content_type);
            }
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            match send(request).await {
                Ok(answer) => {
                    node.left_out_until.store(0, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => {
                    node.left_out_until.store(self.millis() + LEFT_OUT.as_millis() as u64, Ordering::Relaxed);
                    reasons.push(failure.reason);
                    starting &= failure.starting;
                    if !failure.try_another {
                        break;
                    }
                }
            }
        }
        Err(unavailable(reasons.join("; ")))
    }

    /// The nodes in the order to be tried: round them, those that failed lately last.
    fn candidates(&self, first: usize) -> Vec<&Node> {
        let now = self.millis();
        let (before, after) = self.nodes.split_at(first % self.nodes.len().max(1));
        let (mut up, down): (Vec<&Node>, Vec<&Node>) =
            after.iter().chain(before).partition(|node| node.left_out_until.load(Ordering::Relaxed) <= now);
        up.extend(down);
        up
    }

    fn millis(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn authorization(settings: &Settings) -> anyhow::Result<Option<HeaderValue>> {
    let text = if !settings.api_key.is_empty() {
        let encoded = match settings.api_key.contains(':') {
            true => BASE64.encode(settings.api_key.as_bytes()),
            false => settings.api_key.clone(),
        };
        format!("ApiKey {encoded}")
    } else if !settings.user.is_empty() {
        format!("Basic {}", BASE64.encode(format!("{}:{}", settings.user, settings.password).as_bytes()))
    } else {
        return Ok(None);
    };
    let mut value = HeaderValue::from_str(&text).context("api_key")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

async fn send(request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
    // What was sent may have been done. Every call of ours may be made twice, so another node may be asked; but not after
    // a time-out, which has used up the call's time.
    let failed = |error: reqwest::Error| Failure {
        try_another: error.is_connect() || !error.is_timeout(),
        starting: false,
        reason: chain(&error.without_url()),
    };
    let response = request.send().await.map_err(failed)?;
    let status = response.status().as_u16();
    let (body, too_large) = read(response).await.map_err(failed)?;
    match status {
        // A node that starts or stops, or a proxy whose node is gone.
        502 | 503 => Err(Failure { reason: describe(status, &body), try_another: true, starting: status == 503 }),
        _ => Ok(Answer { status, body, too_large }),
    }
}

async fn read(mut response: Response) -> Result<(Bytes, bool), reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Ok((body.freeze(), true));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body.freeze(), false))
}

pub(crate) fn unavailable(reason: impl Into<String>) -> IndexError {
    IndexError::Unavailable { reason: format!("Elasticsearch: {}", reason.into()) }
}

impl Answer {
    pub(crate) fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The type of the error that it tells.
    pub(crate) fn error_type(&self) -> String {
        let error = serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        error["error"]["type"].as_str().unwrap_or_default().to_owned()
    }

    /// The body read as `T`.
    ///
    /// # Errors
    /// What the status means: 400 is a request that the server can't do ([`IndexError::Unsupported`]), everything else
    /// passes with time or with an operator's help.
    pub(crate) fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, IndexError> {
        if !self.is_ok() {
            return Err(self.error());
        }
        if self.too_large {
            return Err(unavailable(format!("an answer has more than {MAX_ANSWER_BYTES} bytes")));
        }
        serde_json::from_slice(&self.body).map_err(|error| unavailable(format!("an answer can't be read: {error}")))
    }

    /// What an answer that isn't one of success means.
    pub(crate) fn error(&self) -> IndexError {
        let reason = describe(self.status, &self.body);
        match self.status {
            400 => IndexError::Unsupported { reason },
            401 | 403 => unavailable(format!(
                "{reason} (look at user, password or api_key, and at the privileges: create_index, manage, create_doc, \
                 read, view_index_metadata on the indices (delete for repairs of doubles), manage_index_templates and monitor on the cluster)"
            )),
            _ => unavailable(reason),
        }
    }
}

/// The status and what the server says of it, the innermost reason first.
fn describe(status: u16, body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &answer["error"];
    let inner = innermost(&error["failed_shards"][0]["reason"]).or_else(|| innermost(error));
    let text = match inner {
        Some(reason) => reason.to_owned(),
        None => String::from_utf8_lossy(body).trim().to_owned(),
    };
    let shown: String = text.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("status {status}: {shown}")
}

fn innermost(error: &Value) -> Option<&str> {
    innermost_of(error, 8)
}

fn innermost_of(error: &Value, depth: usize) -> Option<&str> {
    let deeper = depth.checked_sub(1).and_then(|depth| innermost_of(error.get("caused_by")?, depth));
    deeper.or_else(|| error.get("reason")?.as_str())
}

impl fmt::Debug for Client {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| node.url.as_str())).finish()
    }
}
