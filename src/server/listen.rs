//! Accepting connections, and letting them go.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Peer, handle};
use crate::gateway::Gateway;

/// A client that sends no complete head for so long is let go.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that may wait to be accepted; the system's own 128 drops some of a few hundred that come at once, and each
/// of those tries again a second later.
const BACKLOG: u32 = 4096;

/// A server that accepts connections on a task of its own.
pub struct Listening {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
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
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(accept(listener, gateway, stop.clone(), tasks.clone()));
    Ok(Listening { address, stop, tasks })
}

impl Listening {
    /// The bound address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses new connections at once, lets requests that run come to their end, and resolves when the last connection
    /// is closed. The gateway bounds how long streams may take ([`Gateway::close`]): call both side by side.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, gateway: Gateway, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                tasks.spawn(connection(stream, peer, gateway.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, gateway: Gateway, stop: CancellationToken) {
    // Without it a small event waits for the acknowledgement of the one before: 44 ms on loopback.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let peer = Peer { loopback: peer.ip().to_canonical().is_loopback(), trusted: false };
    let service = service_fn(|request| {
        let gateway = &gateway;
        async move { Ok::<_, Infallible>(handle(gateway, request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        // Clients go away in many ways; none of them is news.
        tracing::debug!(%error, "connection ended");
    }
}
