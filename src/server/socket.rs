//! A client's socket: how long we wait for a client that doesn't read, how we tell a half-closed connection from a dead
//! one, and how much we read after an early answer.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use super::exchange::Current;

/// An interim answer that every client must skip (RFC 9110, 15.2).
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// The first and the longest pause between two checks whether a client that closed its half is still there.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_secs(10);
/// The longest while nobody reads what it sends.
const WAITING_LOOK: Duration = Duration::from_millis(250);
/// Most bytes of one read. hyper's buffer of 8 KiB stays with the connection, and grows to 128 KiB when reads fill what
/// hyper wants to read, which is a power of two.
const READ: u64 = 8 * 1024 - 1;
/// Bytes that are read and discarded at a time.
const DISCARDED: usize = 16 * 1024;

/// A TCP connection whose writes may stand still for `KIRO_WRITE_TIMEOUT`: when the client takes no byte for longer,
/// the write fails with [`io::ErrorKind::TimedOut`].
///
/// A full socket takes more only when a third of some megabytes is free again; a client that reads 10 KB a second needs
/// minutes for that. So the system's own count of unsent bytes ([`unsent`]) decides, where there is one.
///
/// The timer starts only when the socket is full. When it fires, it is set again if bytes were taken meanwhile.
pub(crate) struct ClientSocket {
    stream: TcpStream,
    /// Zero: no limit.
    limit: Duration,
    /// Since when the client has taken nothing.
    since: Option<Instant>,
    /// The unsent bytes at that time.
    unsent: Option<u32>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl ClientSocket {
    pub(crate) fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, since: None, unsent: None, timer: None }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn within_limit<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.since = None;
            return written;
        }
        if self.limit.is_zero() {
            return Poll::Pending;
        }
        let since = match self.since {
            Some(since) => since,
            None => {
                self.unsent = unsent(&self.stream);
                *self.since.insert(Instant::now())
            }
        };
        let mut due = since + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                let left = unsent(&self.stream);
                if left >= self.unsent {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client reads nothing (KIRO_WRITE_TIMEOUT)",
                    )));
                }
                self.unsent = left;
                due = *self.since.insert(Instant::now()) + self.limit;
            }
            timer.as_mut().reset(due);
        }
    }
}

/// Whether the system still has the connection.
///
/// # Errors
/// What the system knows of its end.
pub(crate) fn connected(socket: &SockRef<'_>) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // Fails when the reset was seen by a write.
    socket.peer_addr().map(drop)
}

/// Bytes that the system has yet to send, or that the other side hasn't acknowledged. Only Linux tells.
#[cfg(target_os = "linux")]
pub(crate) fn unsent(socket: &impl AsFd) -> Option<u32> {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: SIOCOUTQ (tcp(7)) writes one int to the address it is given.
    #[expect(unsafe_code, reason = "no crate has this one of the socket's ioctls")]
    let left = unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Getter::<SIOCOUTQ, i32>::new()) };
    left.ok().and_then(|left| u32::try_from(left).ok())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn unsent<T>(_: &T) -> Option<u32> {
    None
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut (&mut self.stream).take(READ)).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.within_limit(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.within_limit(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What speaks with a client.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Its client may close its half (`nc -N`), and gets its answer.
    const HALVES: bool;

    fn stream(&self) -> &TcpStream;
}

impl Wire for ClientSocket {
    const HALVES: bool = true;

    fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl Wire for TlsStream<ClientSocket> {
    const HALVES: bool = false;

    fn stream(&self) -> &TcpStream {
        &self.get_ref().0.stream
    }
}

/// A connection whose client may close its half, or be gone.
///
/// One that is gone looks the same, and its upstream call must end at once (M10). Only bytes sent to it tell the
/// two apart: a dead client's system resets the connection. So after a half-close we send something: a `ping` within a
/// stream, `100 Continue` before the head of an answer. HTTP/1.0 has neither, and TLS has no half-close: there it is
/// the end.
///
/// Nobody reads the socket while a request waits to be read (M90), nor while hyper has bytes that came behind the
/// request that it answers (an empty line, the next request). Then the end is asked for.
pub(super) struct Halves<'a, W> {
    socket: &'a mut W,
    current: &'a Arc<Current>,
    /// The other half is closed.
    closed: bool,
    /// A probe was sent to learn whether the client is there.
    probed: bool,
    /// hyper has more to write than the system took.
    unwritten: bool,
    /// hyper has asked for input since it flushed last, as it does each time that it wants any.
    read: bool,
    look: Option<(Pin<Box<Sleep>>, Duration)>,
}

impl<'a, W: Wire> Halves<'a, W> {
    pub(super) fn new(socket: &'a mut W, current: &'a Arc<Current>) -> Self {
        Self { socket, current, closed: false, probed: false, unwritten: false, read: false, look: None }
    }

    /// Whether the end must be kept from hyper, which would end the connection and the answer with it.
    fn must_go_on(&self) -> bool {
        self.unwritten || self.current.is_answering()
    }

    /// Nobody reads the socket, and somebody waits for an answer.
    fn is_unread(&self) -> bool {
        self.current.is_waiting() || (!self.read && self.current.is_answering())
    }

    /// Sends something: a dead client's system answers with a reset.
    fn probe(&mut self) -> io::Result<()> {
        if self.current.ping() || self.unwritten {
            return Ok(());
        }
        // Nothing of an answer was sent, so the whole of it fits.
        match self.socket.stream().try_write(INTERIM) {
            Ok(count) if count == INTERIM.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        }
    }

    /// Pending until the client is gone altogether. It polls with a timer: the end of the input, once there, hides
    /// every later event of the socket, and what isn't read hides the end.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.probed && self.sees_end(cx) {
                if !W::HALVES {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                self.probed = true;
                self.look = None;
                self.probe()?;
            }
            connected(&SockRef::from(self.socket.stream()))?;
            let (look, pause) =
                self.look.get_or_insert_with(|| (Box::pin(sleep_until(Instant::now() + FIRST_LOOK)), FIRST_LOOK));
            ready!(look.as_mut().poll(cx));
            *pause = (*pause * 3).min(if self.probed { LAST_LOOK } else { WAITING_LOOK });
            look.as_mut().reset(Instant::now() + *pause);
        }
    }

    /// The client has closed its half, as the system says it with the bytes that wait before the end.
    fn sees_end(&self, cx: &mut Context<'_>) -> bool {
        let ready = pin!(self.socket.stream().ready(Interest::READABLE));
        matches!(ready.poll(cx), Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    fn wrote(&mut self, cx: &Context<'_>, offered: usize, written: &Poll<io::Result<usize>>) {
        let was = std::mem::replace(&mut self.unwritten, !matches!(written, Poll::Ready(Ok(n)) if *n == offered));
        if self.closed && was && !self.unwritten {
            // The end that was kept from hyper can be seen now.
            cx.waker().wake_by_ref();
        }
    }
}

impl<W: Wire> AsyncRead for Halves<'_, W> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.read = true;
        if !W::HALVES {
            return Pin::new(&mut *self.socket).poll_read(cx, buf);
        }
        if !self.closed {
            let before = buf.filled().len();
            ready!(Pin::new(&mut *self.socket).poll_read(cx, buf))?;
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            self.closed = true;
            // hyper hands on the last bytes of a request, but doesn't know yet that they are the last. One turn later
            // it does.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.must_go_on() {
            return Poll::Ready(Ok(()));
        }
        if !self.probed {
            self.probed = true;
            self.probe()?;
        }
        self.poll_gone(cx)
    }
}

impl<W: Wire> AsyncWrite for Halves<'_, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.socket).poll_write(cx, bytes);
        self.wrote(cx, bytes.len(), &written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.socket).poll_write_vectored(cx, parts);
        self.wrote(cx, parts.iter().map(|part| part.len()).sum(), &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_unread = self.is_unread();
        self.read = false;
        if is_unread && let Poll::Ready(gone) = self.poll_gone(cx) {
            return Poll::Ready(gone);
        }
        Pin::new(&mut *self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.socket).poll_shutdown(cx)
    }
}

/// Reads what a client still sends and throws it away, until the client closes, `pause` passes without a byte, or
/// `bytes` have come. Closed with bytes unread, the system resets the connection, and the client loses the answer (RFC
/// 9112, 9.6).
pub(super) async fn discard(mut stream: TcpStream, pause: Duration, mut bytes: u64) {
    let mut buffer = vec![0; DISCARDED];
    while bytes > 0 {
        match tokio::time::timeout(pause, stream.read(&mut buffer)).await {
            Ok(Ok(count @ 1..)) => bytes = bytes.saturating_sub(count as u64),
            _ => return,
        }
    }
}
