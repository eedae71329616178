//! Accepting connections, and letting them go.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Body, Peer, handle, shutting_down};
use crate::gateway::{Cutter, Gateway};

/// A client that sends no complete head for so long is let go.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What streams get to write their `error` event after the grace time.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Connections that may wait to be accepted; the system's own 128 drops some of a few hundred that come at once, and each
/// of those tries again a second later.
const BACKLOG: u32 = 4096;

/// A server that accepts connections on a task of its own.
pub struct Listening {
    address: SocketAddr,
    doors: Doors,
    tasks: TaskTracker,
}

/// How a server ends, each step after the one before.
#[derive(Clone, Default)]
struct Doors {
    /// Nothing new; what runs may finish.
    stop: CancellationToken,
    /// Streams end with an `error` event, requests that have no answer yet with 503.
    cut: CancellationToken,
    /// Connections are dropped.
    abort: CancellationToken,
}

/// Binds and starts to accept.
///
/// # Errors
/// The address can't be bound.
pub async fn listen(gateway: Gateway, address: SocketAddr) -> io::Result<Listening> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As `TcpListener::bind` does: a restart must not wait for old connections. On Windows it would mean something else.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    let doors = Doors::default();
    let tasks = TaskTracker::new();
    let keyless = address.ip().to_canonical().is_loopback();
    tasks.spawn(accept(listener, gateway, keyless, doors.clone(), tasks.clone()));
    Ok(Listening { address, doors, tasks })
}

impl Listening {
    /// The bound address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses new connections at once, lets requests that run come to their end, and resolves when the last connection
    /// is closed. The gateway bounds how long streams may take ([`Gateway::close`]): call both side by side.
    pub async fn drain(&self) {
        self.doors.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The same for a server whose gateway lives on: requests that run may finish within `grace`, then streams end with an
    /// `error` event, others with 503, and connections that are still there a second later are dropped.
    pub async fn close(&self, grace: Duration) {
        if tokio::time::timeout(grace, self.drain()).await.is_ok() {
            return;
        }
        self.doors.cut.cancel();
        if tokio::time::timeout(LAST_WORDS, self.drain()).await.is_ok() {
            return;
        }
        self.abort();
        self.tasks.wait().await;
    }

    /// Drops every connection now.
    pub fn abort(&self) {
        for step in [&self.doors.stop, &self.doors.cut, &self.doors.abort] {
            step.cancel();
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.doors.stop.cancel();
    }
}

async fn accept(listener: TcpListener, gateway: Gateway, keyless: bool, doors: Doors, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = doors.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let loopback = from.ip().to_canonical().is_loopback();
                let peer = Peer { loopback, keyless, trusted: false };
                tasks.spawn(connection(stream, peer, gateway.clone(), doors.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, gateway: Gateway, doors: Doors) {
    // Without it a small event waits for the acknowledgement of the one before: 44 ms on loopback.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    // One answer at a time on a connection: what would end its stream.
    let current = Mutex::<Option<Cutter>>::default();
    let cut_current = || {
        if let Some(cutter) = current.lock().unwrap_or_else(PoisonError::into_inner).take() {
            cutter.cut();
        }
    };
    let service = service_fn(|request| {
        let (gateway, doors, current) = (&gateway, &doors, &current);
        async move {
            let mut response = tokio::select! {
                biased;
                () = doors.cut.cancelled() => shutting_down(gateway),
                response = handle(gateway, request, peer) => response,
            };
            response.body_mut().until(&doors.stop);
            *current.lock().unwrap_or_else(PoisonError::into_inner) = Body::cutter(response.body());
            if doors.cut.is_cancelled() {
                cut_current();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // One token at a time, so that a delta's wake-up looks at no more than one.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = doors.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = doors.cut.cancelled() => {
                    cut_current();
                    tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = doors.abort.cancelled() => return,
                    }
                }
            }
        }
    };
    if let Err(error) = ended {
        // Clients go away in many ways; none of them is news.
        tracing::debug!(%error, "connection ended");
    }
}
