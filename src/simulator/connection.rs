//! A connection of the simulator: counted while it is open, and reset instead of closed when a scenario says so.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::state::SimShared;

#[derive(Debug)]
pub(super) struct SimConnection {
    /// 1 for the first connection.
    pub number: u64,
    reset: AtomicBool,
    /// Since when no request runs; none while one does.
    idle: Mutex<Option<Instant>>,
    shared: Arc<SimShared>,
}

/// A request runs, to the end of its answer.
pub(super) struct Busy(Arc<SimConnection>);

impl Busy {
    pub fn until_end_of<B>(self, body: B) -> Answering<B> {
        Answering { body, _busy: self }
    }
}

/// The body of an answer, which keeps its connection busy.
pub(super) struct Answering<B> {
    body: B,
    _busy: Busy,
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle() = Some(Instant::now());
    }
}

impl SimConnection {
    pub fn open(shared: Arc<SimShared>) -> Self {
        let number = shared.state().connection_opened();
        Self { number, reset: AtomicBool::new(false), idle: Mutex::new(Some(Instant::now())), shared }
    }

    fn idle(&self) -> MutexGuard<'_, Option<Instant>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> Busy {
        *self.idle() = None;
        Busy(self.clone())
    }

    /// Resolves when no request has run for the time of the world that the connection was opened in.
    pub async fn idled(&self) {
        let limit = self.shared.state().world.idle;
        let mut due = Instant::now() + limit;
        while due > Instant::now() {
            sleep_until(due).await;
            due = self.idle().unwrap_or_else(Instant::now) + limit;
        }
    }

    /// The client shall see a reset when the connection closes.
    pub fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }
}

impl Drop for SimConnection {
    fn drop(&mut self) {
        self.shared.state().connection_closed();
    }
}

/// The socket of a connection.
pub(super) struct Io {
    socket: TcpStream,
    connection: Arc<SimConnection>,
}

impl Io {
    pub fn new(socket: TcpStream, connection: Arc<SimConnection>) -> Self {
        Self { socket, connection }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.connection.reset.load(Ordering::Relaxed) {
            // Closing with a linger time of zero sends a reset. If the socket is gone, so is the client.
            let _best_effort = self.socket.set_zero_linger();
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
