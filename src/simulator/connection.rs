//! A connection of the simulator: counted while it is open, and reset instead of closed when a scenario says so.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::state::SimShared;

#[derive(Debug)]
pub(super) struct SimConnection {
    /// 1 for the first connection.
    pub number: u64,
    reset: AtomicBool,
    shared: Arc<SimShared>,
}

impl SimConnection {
    pub fn open(shared: Arc<SimShared>) -> Self {
        let number = shared.state().connection_opened();
        Self { number, reset: AtomicBool::new(false), shared }
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
