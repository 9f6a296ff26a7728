//! A TCP proxy on loopback with the weather of real networks: slow, deaf, cut, closed in one direction.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

/// What happens to bytes under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weather {
    /// They pass.
    #[default]
    Clear,
    /// Each portion waits so long.
    Slow(Duration),
    /// Connections are taken and held, and nothing passes.
    Deaf,
}

/// How often a held portion looks whether it may pass.
const LOOK: Duration = Duration::from_millis(20);

/// The most bytes that are read at a time.
const PORTION: usize = 64 << 10;

/// See the module. It ends, with all its connections, when it's dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    weather: Mutex<Weather>,
    /// Both ends of each connection: the caller's, the server's.
    connections: Mutex<Vec<(TcpStream, TcpStream)>>,
    ends: AtomicBool,
}

impl Proxy {
    /// A proxy before the server at `host:port`, which needn't be there yet.
    pub fn before(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            weather: Mutex::default(),
            connections: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        let accepting = spawn(move || accepting.accept(&listener));
        Self { address, shared, accepting: Some(accepting) }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.shared.shut(|caller, server| {
            drop(caller.shutdown(Shutdown::Both));
            drop(server.shutdown(Shutdown::Both));
        });
    }

    /// Closes all connections in the direction of the server; answers still come.
    pub fn half_close(&self) {
        self.shared.shut(|_, server| drop(server.shutdown(Shutdown::Write)));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address)); // wakes the listener up
        self.cut();
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for caller in listener.incoming() {
            if self.ends.load(Ordering::SeqCst) {
                return;
            }
            let Ok(caller) = caller else { continue };
            // A server that is away: the caller sees its connection end.
            let Ok(server) = TcpStream::connect(&self.upstream) else { continue };
            drop((caller.set_nodelay(true), server.set_nodelay(true)));
            let ends = [&caller, &server, &caller, &server, &caller, &server].map(TcpStream::try_clone);
            let [Ok(a), Ok(b), Ok(c), Ok(d), Ok(e), Ok(f)] = ends else { continue };
            self.connections.lock().unwrap_or_else(PoisonError::into_inner).push((a, b));
            let (up, down) = (Arc::clone(self), Arc::clone(self));
            spawn(move || up.pump(c, d));
            spawn(move || down.pump(f, e));
        }
    }

    /// Passes on what comes, until one end is gone.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut portion = vec![0; PORTION];
        while let Ok(count @ 1..) = from.read(&mut portion) {
            self.hold();
            if to.write_all(&portion[..count]).is_err() {
                break;
            }
        }
        drop(to.shutdown(Shutdown::Write));
    }

    /// Waits as long as the weather wants.
    fn hold(&self) {
        loop {
            let weather = *self.weather.lock().unwrap_or_else(PoisonError::into_inner);
            match weather {
                Weather::Clear => return,
                Weather::Slow(pause) => return sleep(pause),
                Weather::Deaf if self.ends.load(Ordering::SeqCst) => return,
                Weather::Deaf => sleep(LOOK),
            }
        }
    }

    fn shut(&self, how: impl Fn(&TcpStream, &TcpStream)) {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner));
        connections.iter().for_each(|(caller, server)| how(caller, server));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut back = stream.try_clone().unwrap();
                spawn(move || std::io::copy(&mut &stream, &mut back));
            }
        });
        address
    }

    fn say(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(text)?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn it_passes_holds_and_cuts() {
        let proxy = Proxy::before(&echo());
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(say(&mut stream, b"clear").unwrap(), b"clear");
        proxy.set(Weather::Deaf);
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        say(&mut stream, b"deaf").unwrap_err();
        proxy.set(Weather::Clear);
        stream.set_read_timeout(None).unwrap();
        let mut late = [0; 4];
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"deaf", "held, not lost");
        proxy.cut();
        assert!(say(&mut stream, b"cut").is_err());

        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(say(&mut stream, b"again").unwrap(), b"again");
        proxy.half_close();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "the server heard the end, and ended");
    }

    #[test]
    fn a_server_that_is_away_ends_the_connection() {
        let away = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let proxy = Proxy::before(&away);
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert!(say(&mut stream, b"anybody?").is_err());
    }
}
