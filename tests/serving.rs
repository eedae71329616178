//! The server's connections from outside: what is refused, what is bounded, how it begins and how it ends.
#![cfg(all(unix, feature = "server"))]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

#[path = "serving/bodies.rs"]
mod bodies;
#[path = "support/distance.rs"]
mod distance;
#[path = "serving/handshakes.rs"]
mod handshakes;
#[path = "serving/life.rs"]
mod life;
#[path = "serving/limits.rs"]
mod limits;
#[path = "serving/open.rs"]
mod open;
#[path = "serving/readers.rs"]
mod readers;
#[path = "serving/sites.rs"]
mod sites;
#[path = "serving/tls.rs"]
mod tls;
#[path = "serving/uploads.rs"]
mod uploads;
#[path = "serving/wire.rs"]
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Two files a connection, and the system's usual limit is 1,024.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// Sends bytes as they are, and reads until the other side closes, or is silent for so long.
async fn raw(address: SocketAddr, bytes: &[u8], silence: Duration) -> Raw {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may cut a refused client off while it still sends.
    let _sent = stream.write_all(bytes).await;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match tokio::time::timeout(silence, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return Raw { text: String::from_utf8_lossy(&text).into_owned(), closed: true },
            Ok(Ok(count)) => text.extend_from_slice(&buffer[..count]),
            Err(_) => return Raw { text: String::from_utf8_lossy(&text).into_owned(), closed: false },
        }
    }
}

struct Raw {
    text: String,
    closed: bool,
}

impl Raw {
    fn status(&self) -> Option<u16> {
        self.text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    fn answers(&self) -> usize {
        self.text.matches("HTTP/1.1 ").count()
    }
}
