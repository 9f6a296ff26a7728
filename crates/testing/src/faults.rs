//! A door before a real Elasticsearch that gives some bulks, or some of their items, another end than the server would:
//! what a real one can't be made to answer. Everything else goes through as it comes.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One document of a bulk.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its id.
    pub id: String,
    /// Its source, as it was sent.
    pub body: String,
}

/// What becomes of a bulk.
#[derive(Clone, Debug)]
pub enum End {
    /// It goes through.
    Pass,
    /// Nothing is written; each item is answered with this status.
    All(u16),
    /// Items with a status and a type of error are not written but answered so; the others go through.
    Items(Vec<Option<(u16, &'static str)>>),
    /// The connection is closed before anything is written.
    Refused,
    /// All is written, and the connection is closed in the middle of the answer.
    Cut,
    /// All is written, and the connection is closed without an answer.
    Lost,
}

type Plan = Box<dyn FnMut(&[Item]) -> End + Send>;

/// The door. It serves until it's dropped.
pub struct Door {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    server: String,
    plan: Mutex<Plan>,
    seen: Mutex<Vec<(Vec<Item>, End)>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a door at {} before {}", self.address, self.shared.server)
    }
}

impl Door {
    /// Opens a door before the server at `host:port`; every bulk passes.
    pub async fn open(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let pass: Plan = Box::new(|_| End::Pass);
        let shared = Shared { server: server.to_owned(), plan: Mutex::new(pass), seen: Mutex::default() };
        let shared = Arc::new(shared);
        let serving = shared.clone();
        // Ends with the door: nobody has to hear of it.
        #[allow(clippy::disallowed_methods, reason = "this is for tests")]
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = serving.clone();
                // A connection that ends badly is what is asked for.
                tokio::spawn(async move { serve(client, &shared).await.unwrap_or_default() });
            }
        });
        Self { address, shared, task }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Decides from now on what becomes of each bulk.
    pub fn plan(&self, plan: impl FnMut(&[Item]) -> End + Send + 'static) {
        *lock(&self.shared.plan) = Box::new(plan);
    }

    /// The bulks since the last call, and what became of each.
    pub fn take_seen(&self) -> Vec<(Vec<Item>, End)> {
        std::mem::take(&mut *lock(&self.shared.seen))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One message of HTTP/1.1 with a `Content-Length`.
struct Message {
    head: String,
    body: Vec<u8>,
}

async fn serve(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    while let Some(mut request) = read(&mut client, &mut Vec::new()).await? {
        let first = request.head.lines().next().unwrap_or_default().to_owned();
        if !first.contains("/_bulk?") {
            let answer = ask(&shared.server, &request).await?;
            write(&mut client, &answer).await?;
            continue;
        }
        let lines: Vec<String> = String::from_utf8_lossy(&request.body).lines().map(str::to_owned).collect();
        let items: Vec<Item> = lines.chunks_exact(2).map(item).collect();
        let end = (lock(&shared.plan))(&items);
        lock(&shared.seen).push((items.clone(), end.clone()));
        match end {
            End::Refused => return Ok(()),
            End::Pass => write(&mut client, &ask(&shared.server, &request).await?).await?,
            End::Lost => {
                ask(&shared.server, &request).await?;
                return Ok(());
            }
            End::Cut => {
                let answer = ask(&shared.server, &request).await?;
                client.write_all(answer.head.as_bytes()).await?;
                client.write_all(&answer.body[..answer.body.len() / 2]).await?;
                return client.flush().await;
            }
            End::All(status) => {
                let faults = vec![Some((status, "es_rejected_execution_exception")); items.len()];
                write(&mut client, &merge(&faults, &[])).await?;
            }
            End::Items(faults) => {
                let kept = lines.chunks_exact(2).zip(&faults).filter(|(_, fault)| fault.is_none());
                request.body = kept.map(|(pair, _)| format!("{}\n{}\n", pair[0], pair[1])).collect::<String>().into();
                let answered = match request.body.is_empty() {
                    true => Vec::new(),
                    false => {
                        let answer = ask(&shared.server, &request).await?;
                        let answer: Value = serde_json::from_slice(&answer.body).map_err(io::Error::other)?;
                        answer["items"].as_array().cloned().unwrap_or_default()
                    }
                };
                write(&mut client, &merge(&faults, &answered)).await?;
            }
        }
    }
    Ok(())
}

fn item(pair: &[String]) -> Item {
    let action: Value = serde_json::from_str(&pair[0]).unwrap_or_default();
    Item { id: action["create"]["_id"].as_str().unwrap_or_default().to_owned(), body: pair[1].clone() }
}

/// The server's answers, with the faults in between.
fn merge(faults: &[Option<(u16, &'static str)>], answered: &[Value]) -> Message {
    let mut answered = answered.iter().cloned();
    let items: Vec<Value> = faults
        .iter()
        .filter_map(|fault| match fault {
            None => answered.next(),
            Some((status, kind)) => {
                let error = json!({ "type": kind, "reason": format!("{kind}, by the door") });
                Some(json!({ "create": { "status": status, "error": error } }))
            }
        })
        .collect();
    let head = "HTTP/1.1 200 OK\r\nX-elastic-product: Elasticsearch\r\nContent-Type: application/json\r\n".to_owned();
    Message { head, body: json!({ "items": items }).to_string().into_bytes() }.with_length()
}

impl Message {
    /// With the length of its body in the head, and the blank line after it.
    fn with_length(self) -> Self {
        let kept = self.head.lines().filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !line.is_empty() && !["content-length", "transfer-encoding", "connection"].contains(&name.as_str())
        });
        let head: String = kept.map(|line| format!("{line}\r\n")).collect();
        Self { head: format!("{head}Content-Length: {}\r\n\r\n", self.body.len()), body: self.body }
    }
}

async fn write(to: &mut TcpStream, message: &Message) -> io::Result<()> {
    to.write_all(message.head.as_bytes()).await?;
    to.write_all(&message.body).await?;
    to.flush().await
}

/// Asks the server, on a connection of its own.
async fn ask(server: &str, request: &Message) -> io::Result<Message> {
    let mut connection = TcpStream::connect(server).await?;
    let asked = Message { head: request.head.clone(), body: request.body.clone() }.with_length();
    write(&mut connection, &asked).await?;
    let is_head = request.head.starts_with("HEAD ");
    let answer =
        if is_head { read_head(&mut connection).await? } else { read(&mut connection, &mut Vec::new()).await? };
    Ok(answer.ok_or(io::ErrorKind::UnexpectedEof)?.with_length())
}

/// An answer without a body, whatever length it names.
async fn read_head(from: &mut TcpStream) -> io::Result<Option<Message>> {
    let mut buffer = Vec::new();
    let end = read_until_blank(from, &mut buffer).await?;
    Ok(end.map(|end| Message { head: String::from_utf8_lossy(&buffer[..end]).into_owned(), body: Vec::new() }))
}

/// Reads a message; `None` if the connection has ended.
async fn read(from: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Message>> {
    let Some(end) = read_until_blank(from, buffer).await? else { return Ok(None) };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut body = buffer.split_off(end);
    let field = |name: &str| {
        let of_name = |line: &&str| line.to_ascii_lowercase().starts_with(name);
        head.lines().find(of_name).and_then(|line| line.split(':').nth(1)).map(|value| value.trim().to_owned())
    };
    if field("transfer-encoding").is_some() {
        while !body.ends_with(b"0\r\n\r\n") {
            more(from, &mut body).await?;
        }
        body = unchunked(&body);
    } else {
        let length: usize = field("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        while body.len() < length {
            more(from, &mut body).await?;
        }
    }
    Ok(Some(Message { head, body }))
}

async fn read_until_blank(from: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        if from.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn more(from: &mut TcpStream, body: &mut Vec<u8>) -> io::Result<()> {
    match from.read_buf(body).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// A chunked body of HTTP/1.1 as one piece, up to where it ends or is broken off.
pub fn unchunked(body: &[u8]) -> Vec<u8> {
    let (mut rest, mut whole) = (body, Vec::new());
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..at]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size.filter(|size| *size > 0 && at + 4 + size <= rest.len()) else { break };
        whole.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
    whole
}
