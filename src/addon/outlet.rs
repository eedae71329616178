//! The path around JavaScript: it writes to the client's socket of a node:http response from here.
//!
//! node:http writes the head of a streamed answer and ends it. The bytes between go to a duplicate of its socket's
//! descriptor, in HTTP/1.1 chunks when the head says so. Then an event costs the JavaScript thread nothing. Through
//! `res.write` it would cost a system call on that thread, which alone is more than everything else together.
//!
//! It needs a bare socket behind `res.write` (lib/response.js, `descriptor`): TLS, HTTP/2, a compression middleware, a
//! wrapped `write`, a socket time-out and every system but Unix take the doorbell.

use std::io::{self, Write as _};
use std::net;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::server::{self, ClientSocket};

/// A buffer that grew beyond this is given back: streams are many.
const KEPT: usize = 8 * 1024;
/// How the system says that the other side has ended, while bytes still wait in front of that.
#[cfg(target_os = "linux")]
const END: PollFlags = PollFlags::RDHUP;
#[cfg(not(target_os = "linux"))]
const END: PollFlags = PollFlags::HUP;

/// Where a streamed answer's bytes go.
pub(crate) struct Outlet {
    socket: net::TcpStream,
    chunked: bool,
}

impl Outlet {
    /// Duplicates the descriptor of a connected TCP socket that doesn't block.
    pub(crate) fn new(descriptor: RawFd, chunked: bool) -> io::Result<Self> {
        if descriptor < 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        // SAFETY: node:http has the descriptor open while the call that brought it here runs on its thread. We keep a
        // duplicate of our own, which nobody else closes.
        #[expect(unsafe_code, reason = "Node.js gives its descriptor as a number; there is no other way to borrow one")]
        let theirs = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let socket = net::TcpStream::from(theirs.try_clone_to_owned()?);
        // Refuses anything but an open TCP connection.
        socket.peer_addr()?;
        Ok(Self { socket, chunked })
    }

    /// Must be called on the runtime. Within `limit` the client has to take something ([`ClientSocket`]).
    pub(crate) fn open(self, limit: Duration) -> io::Result<Writer> {
        let socket = ClientSocket::new(TcpStream::from_std(self.socket)?, limit);
        Ok(Writer { socket, chunked: self.chunked, framed: Vec::new() })
    }
}

/// Bytes that the system has yet to send on a descriptor of node:http; none when it doesn't say.
pub(crate) fn unsent(descriptor: RawFd) -> Option<u32> {
    server::unsent(&borrow(descriptor)?)
}

/// What the system knows of the client on a descriptor of node:http of which nobody reads: it is `there`, has `ended`
/// its half, or is `gone`. A client that left has ended its half, too: only what is sent to it tells the two apart (M10).
pub(crate) fn presence(descriptor: RawFd) -> &'static str {
    let Some(theirs) = borrow(descriptor) else { return "there" };
    if server::connected(&SockRef::from(&theirs)).is_err() {
        return "gone";
    }
    let mut polled = [PollFd::new(&theirs, PollFlags::IN | END)];
    let asked = poll(&mut polled, Some(&Timespec::default()));
    if asked.is_ok() && polled.iter().any(|socket| socket.revents().contains(END)) { "ended" } else { "there" }
}

/// Not to be kept.
fn borrow<'a>(descriptor: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: as in `Outlet::new`, for the length of the call.
    #[expect(unsafe_code, reason = "as in `Outlet::new`")]
    (descriptor >= 0).then(|| unsafe { BorrowedFd::borrow_raw(descriptor) })
}

/// Writes to an [`Outlet`].
pub(crate) struct Writer {
    socket: ClientSocket,
    chunked: bool,
    framed: Vec<u8>,
}

impl Writer {
    /// Resolves when the kernel has taken all of `bytes`: that is the back-pressure (N16). One write, unless the socket is
    /// full.
    ///
    /// Not cancel safe: dropped half-way, the answer can't go on.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        // An empty chunk would end the answer.
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.chunked {
            return self.socket.write_all(&bytes).await;
        }
        self.framed.clear();
        write!(self.framed, "{:x}\r\n", bytes.len())?;
        self.framed.extend_from_slice(&bytes);
        self.framed.extend_from_slice(b"\r\n");
        drop(bytes);
        self.socket.write_all(&self.framed).await?;
        if self.framed.capacity() > KEPT {
            self.framed = Vec::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn connection() -> (net::TcpStream, net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (server, client)
    }

    #[tokio::test]
    async fn chunks_are_framed_and_an_empty_one_never_ends_the_answer() {
        let (server, mut client) = connection();
        let mut writer = Outlet::new(server.as_raw_fd(), true).unwrap().open(Duration::ZERO).unwrap();
        for bytes in [&b"one"[..], b"", b"four-and-more-12"] {
            writer.write(Bytes::from_static(bytes)).await.unwrap();
        }
        drop((writer, server));
        let mut read = String::new();
        client.read_to_string(&mut read).unwrap();
        assert_eq!(read, "3\r\none\r\n10\r\nfour-and-more-12\r\n");
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for_and_nothing_is_lost_n16() {
        let (server, mut client) = connection();
        let mut writer = Outlet::new(server.as_raw_fd(), false).unwrap().open(Duration::ZERO).unwrap();
        let all: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
        let sent = Bytes::from(all.clone());
        let mut writing = Box::pin(writer.write(sent));
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut writing).await.is_err(), "nobody reads");
        let length = all.len();
        let reading = std::thread::spawn(move || {
            let mut read = vec![0; length];
            client.read_exact(&mut read).unwrap();
            read
        });
        writing.await.unwrap();
        assert!(reading.join().unwrap() == all);
    }

    #[tokio::test]
    async fn a_client_that_left_is_an_error_n17() {
        let (server, client) = connection();
        let mut writer = Outlet::new(server.as_raw_fd(), true).unwrap().open(Duration::ZERO).unwrap();
        drop(client);
        let mut failed = false;
        for _ in 0..100 {
            failed |= writer.write(Bytes::from_static(b"x")).await.is_err();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(failed);
    }

    /// `KIRO_WRITE_TIMEOUT`: counted from the last byte that was taken.
    #[tokio::test]
    async fn a_client_that_takes_nothing_is_an_error_and_a_slow_one_is_not() {
        let (server, mut client) = connection();
        let mut writer = Outlet::new(server.as_raw_fd(), false).unwrap().open(Duration::from_millis(300)).unwrap();
        let reading = std::thread::spawn(move || {
            let mut read = vec![0; 2_000_000];
            for _ in 0..8 {
                std::thread::sleep(Duration::from_millis(100));
                client.read_exact(&mut read).unwrap();
            }
            client
        });
        let error = writer.write(Bytes::from(vec![7; 64_000_000])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let _client = reading.join().unwrap();
    }

    #[test]
    fn a_client_of_whom_nobody_reads_is_there_or_has_ended_or_is_gone_m90_n17() {
        let becomes = |server: &net::TcpStream, wanted| {
            let mut looks = (0..1000).map(|_| {
                std::thread::sleep(Duration::from_millis(5));
                presence(server.as_raw_fd())
            });
            assert!(looks.any(|is| is == wanted), "{wanted}");
        };
        let (mut server, mut client) = connection();
        client.write_all(b"unread").unwrap();
        assert_eq!(presence(server.as_raw_fd()), "there");
        client.shutdown(net::Shutdown::Write).unwrap();
        becomes(&server, "ended");
        server.write_all(b"probe").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(presence(server.as_raw_fd()), "ended", "it takes the probe");
        drop(client);
        becomes(&server, "gone");
        assert_eq!(presence(server.as_raw_fd()), "gone", "the error is told once");
        assert_eq!(presence(-1), "there");
    }

    #[test]
    fn anything_but_a_connected_socket_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(Outlet::new(-1, true).is_err());
        assert!(Outlet::new(listener.as_raw_fd(), true).is_err());
    }
}
