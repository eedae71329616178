//! Accepts connections, serves them, and drains them at the end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
#[cfg(target_os = "linux")]
use socket2::SockFilter;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exchange::{Current, Rest};
use super::socket::{self, ClientSocket, Halves};
use super::{Peer, ResponseBody, Tls, handle, shutting_down, without_one_host};
use crate::gateway::{Gateway, LAST_WORDS};

/// Pause after a failed accept, for example when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pause between log lines about failed accepts: a line for each would fill a disk in a night.
const ACCEPT_TOLD: Duration = Duration::from_secs(10);
/// A TLS handshake takes two turns. A client that needs longer than this is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds of a request head: number of headers, and bytes. As many bytes may also lie between us and a slow client, in
/// each direction.
const MAX_HEADERS: usize = 100;
const MAX_BUFFER: usize = 64 * 1024;
/// Connections that may wait to be accepted. With the system's own 128, some of a few hundred that come at once are
/// dropped and try again a second later.
const BACKLOG: i32 = 4096;
/// With `KIRO_REUSE_PORT`, how long a server that stops still takes connections whose handshake has begun: one round
/// trip. A handshake that begins meanwhile gets no answer; the client's system tries again a second later.
const HANDSHAKES: Duration = Duration::from_millis(100);
/// A client may have its answer before it has sent its request. The rest is read for this long, until a pause, from
/// this many clients at once. A request of 32 MiB in that time is 9 Mbit/s.
const LATE: Duration = Duration::from_secs(30);
const LATE_PAUSE: Duration = Duration::from_secs(3);
const MAX_LATE: usize = 512;
/// The same for a client that is turned away because every place is taken.
const TURNED_AWAY: Duration = Duration::from_millis(500);
/// The answer to a client that comes when every place is taken (`KIRO_MAX_CLIENT_CONNS`).
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 109\r\n\r\n\
    {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"too many connections (KIRO_MAX_CLIENT_CONNS)\"}}";

/// A server that accepts connections on a task of its own.
pub struct Listening {
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    state: Arc<ServerState>,
}

/// The state that all connections share. Only `stopping` is read while one runs.
struct ServerState {
    gateway: Gateway,
    tls: Option<Arc<Tls>>,
    connections: AtomicUsize,
    max_connections: usize,
    header_timeout: Duration,
    write_timeout: Duration,
    /// Bytes of a request that are read after its answer: twice the largest body.
    unread_bytes: u64,
    /// Places for connections that have their answer and still send.
    late: Semaphore,
    /// Read for each delta, without a lock: the tokens have one that all connections share.
    stopping: AtomicBool,
    linger: OnceLock<Duration>,
    shutdown: Shutdown,
    tasks: TaskTracker,
}

impl ServerState {
    /// Waits for the time that idle connections are kept once new ones are refused.
    async fn lingered(&self) {
        tokio::time::sleep(self.linger.get().copied().unwrap_or_default()).await;
    }

    async fn leaving(&self) {
        self.shutdown.stop.cancelled().await;
        self.lingered().await;
    }
}

/// The steps in which a server stops.
#[derive(Default)]
struct Shutdown {
    /// No new connections; running requests may finish.
    stop: CancellationToken,
    /// Streams end with an `error` event, requests that have no answer yet with 503.
    cut: CancellationToken,
    /// Connections are dropped.
    abort: CancellationToken,
}

/// Binds and starts to accept, with TLS when the configuration names a certificate.
///
/// # Errors
/// The address can't be bound, or the certificate can't be used.
pub async fn listen(gateway: Gateway, address: SocketAddr) -> io::Result<Listening> {
    let reuse_port = gateway.config().reuse_port;
    serve(gateway, vec![bind(address, reuse_port)?])
}

/// Binds a socket. It doesn't listen before it is served. With `reuse_port` several processes may listen on the address
/// at the same time.
///
/// # Errors
/// The system's error, for example that the address is in use.
pub fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // As `TcpListener::bind` does: a restart must not wait for old connections. On Windows the option means something
    // else.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(reuse_port)?;
    #[cfg(not(unix))]
    if reuse_port {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "KIRO_REUSE_PORT: not on this system"));
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Listens and accepts on sockets that [`bind`] or systemd has bound; at least one.
///
/// # Errors
/// A socket can't be used, or the certificate can't.
pub fn serve(gateway: Gateway, listeners: Vec<StdListener>) -> io::Result<Listening> {
    let first =
        listeners.first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no socket to listen on"))?;
    let address = first.local_addr()?;
    let config = gateway.config();
    let tls = match &config.tls {
        Some(files) => Some(Arc::new(Tls::load(files).map_err(|e| io::Error::other(e.message().to_owned()))?)),
        None => None,
    };
    let state = Arc::new(ServerState {
        tls: tls.clone(),
        connections: AtomicUsize::new(0),
        max_connections: config.max_client_conns,
        header_timeout: config.header_timeout,
        write_timeout: config.write_timeout,
        unread_bytes: 2 * gateway.max_request_body() as u64,
        late: Semaphore::new(MAX_LATE),
        stopping: AtomicBool::new(false),
        linger: OnceLock::new(),
        shutdown: Shutdown::default(),
        tasks: TaskTracker::new(),
        gateway,
    });
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let siblings = state.gateway.config().reuse_port && is_own(&listener)?;
        SockRef::from(&listener).listen(BACKLOG)?;
        let keyless = listener.local_addr()?.ip().to_canonical().is_loopback();
        let listener = TcpListener::from_std(listener)?;
        state.tasks.spawn(accept(listener, keyless, siblings, state.clone()));
    }
    Ok(Listening { address, tls, state })
}

impl Listening {
    /// The bound address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate, when TLS is spoken.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Refuses new connections at once. Open ones get `connection: close` with their next answer; idle ones are closed
    /// after
    /// `linger`, because a request may be on its way on them.
    pub fn refuse(&self, linger: Duration) {
        // Only the first call counts.
        let _linger = self.state.linger.get_or_init(|| linger);
        self.state.stopping.store(true, Ordering::Release);
        self.state.shutdown.stop.cancel();
    }

    /// Refuses new connections at once, lets running requests end, and resolves when the last connection is closed. The
    /// gateway bounds the time of streams ([`Gateway::close`]): call both side by side.
    pub async fn drain(&self) {
        self.refuse(Duration::ZERO);
        self.state.tasks.close();
        self.state.tasks.wait().await;
    }

    /// The same for a server whose gateway lives on: running requests may finish within `grace`. Then streams end with
    /// an
    /// `error` event and others with 503. A second later the remaining connections are dropped.
    pub async fn close(&self, grace: Duration) {
        if tokio::time::timeout(grace, self.drain()).await.is_ok() {
            return;
        }
        self.state.shutdown.cut.cancel();
        if tokio::time::timeout(LAST_WORDS, self.drain()).await.is_ok() {
            return;
        }
        self.abort();
        self.state.tasks.wait().await;
    }

    /// Drops every connection now.
    pub fn abort(&self) {
        self.refuse(Duration::ZERO);
        self.state.shutdown.cut.cancel();
        self.state.shutdown.abort.cancel();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.refuse(Duration::ZERO);
    }
}

/// Whether this process opened the socket. One from systemd listens already and belongs to other processes too.
#[cfg(target_os = "linux")]
fn is_own(listener: &StdListener) -> io::Result<bool> {
    SockRef::from(listener).is_listener().map(|listens| !listens)
}

#[cfg(not(target_os = "linux"))]
fn is_own(_: &StdListener) -> io::Result<bool> {
    Ok(true)
}

/// Accepts the connections of a listener. After a failure, for example without free file descriptors, it waits and
/// retries.
pub(super) struct Accepting<'a> {
    listener: &'a TcpListener,
    what: &'static str,
    told: Option<Instant>,
}

impl<'a> Accepting<'a> {
    /// `what` names the connections in the log.
    pub(super) fn new(listener: &'a TcpListener, what: &'static str) -> Self {
        Self { listener, what, told: None }
    }

    pub(super) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    if self.told.is_none_or(|told| told.elapsed() >= ACCEPT_TOLD) {
                        tracing::warn!(%error, "accepting a {} failed", self.what);
                        self.told = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Accepts until the server stops. `siblings`: other sockets may listen on the address, and the system spreads
/// connections over all.
async fn accept(listener: TcpListener, keyless: bool, siblings: bool, state: Arc<ServerState>) {
    let last = async {
        state.shutdown.stop.cancelled().await;
        if siblings && turn_away(&listener) {
            tokio::time::sleep(HANDSHAKES).await;
        }
    };
    let all = async {
        let mut accepting = Accepting::new(&listener, "connection");
        loop {
            let (stream, from) = accepting.next().await;
            state.tasks.spawn(connection(stream, peer(from, keyless), state.clone()));
        }
    };
    tokio::select! {
        biased;
        () = last => {}
        () = all => {}
    }
    // Serve the connections that have come: the system would reset those that still wait here.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, from)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            state.tasks.spawn(connection(stream, peer(from, keyless), state.clone()));
        }
    }
}

/// Has the system drop attempts to connect to this socket, and says whether it will. A connection whose handshake isn't
/// over when the socket closes is reset by Linux, although a sibling listens (but with `net.ipv4.tcp_migrate_req`).
#[cfg(target_os = "linux")]
fn turn_away(listener: &TcpListener) -> bool {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    // Classic BPF, which sees a segment from its TCP header on: SYN without ACK is dropped, all else passes.
    let filter = [
        SockFilter::new(0x30, 0, 0, FLAGS),     // the byte of the flags
        SockFilter::new(0x54, 0, 0, SYN | ACK), // and
        SockFilter::new(0x15, 0, 1, SYN),       // if equal
        SockFilter::new(0x06, 0, 0, 0),         // drop
        SockFilter::new(0x06, 0, 0, u32::MAX),  // pass
    ];
    let attached = SockRef::from(listener).attach_filter(&filter);
    if let Err(error) = &attached {
        tracing::warn!(%error, "KIRO_REUSE_PORT: who connects in this moment may be reset (SO_ATTACH_FILTER)");
    }
    attached.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn turn_away(_: &TcpListener) -> bool {
    false
}

fn peer(from: SocketAddr, keyless: bool) -> Peer {
    Peer { loopback: from.ip().to_canonical().is_loopback(), keyless, trusted: false }
}

/// A place among the open connections.
struct ConnectionPermit(Arc<ServerState>);

impl ConnectionPermit {
    fn take(state: &Arc<ServerState>) -> Option<Self> {
        let place = Self(state.clone());
        // Dropped at once when there is one too many.
        (state.connections.fetch_add(1, Ordering::Relaxed) < state.max_connections).then_some(place)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(stream: TcpStream, peer: Peer, state: Arc<ServerState>) {
    // Nagle's algorithm would hold a small event back until the one before is acknowledged: 44 ms on loopback.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let mut socket = ClientSocket::new(stream, state.write_timeout);
    let Some(place) = ConnectionPermit::take(&state) else {
        tracing::debug!("a connection was turned away (KIRO_MAX_CLIENT_CONNS)");
        if state.tls.is_none() {
            // A few bytes into an empty buffer. A client that doesn't read them sees the end.
            let _best_effort = socket.write_all(FULL).await;
            let _best_effort = socket.shutdown().await;
            Box::pin(late(socket, &state, TURNED_AWAY)).await;
        }
        return;
    };
    let (socket, sends_on) = match &state.tls {
        None => {
            let current = Arc::default();
            let sends_on = speak(Halves::new(&mut socket, &current), peer, &state, &current).await;
            (socket, sends_on)
        }
        // On the heap: connections without TLS need not be as big as those with it.
        Some(tls) => match Box::pin(speak_tls(tls, socket, peer, &state)).await {
            Some(spoken) => spoken,
            None => return,
        },
    };
    drop(place);
    if sends_on {
        Box::pin(late(socket, &state, LATE)).await;
    }
}

/// The same under TLS; `None` when the handshake fails.
async fn speak_tls(tls: &Tls, socket: ClientSocket, peer: Peer, state: &ServerState) -> Option<(ClientSocket, bool)> {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)) => shaken,
        // Like an idle connection.
        () = state.leaving() => return None,
    };
    match shaken {
        Ok(Ok(mut stream)) => {
            let current = Arc::default();
            let sends_on = speak(Halves::new(&mut stream, &current), peer, state, &current).await;
            Some((stream.into_inner().0, sends_on))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake");
            None
        }
        Err(_) => {
            tracing::debug!("TLS handshake: too slow");
            None
        }
    }
}

/// Reads on for a while after an early answer, so that a reset doesn't destroy the answer. The client takes a place
/// here instead of one among the connections. When all places are taken, the connection is closed at once.
async fn late(socket: ClientSocket, state: &ServerState, within: Duration) {
    let Ok(_place) = state.late.try_acquire() else { return };
    let leaving = async {
        state.leaving().await;
        tokio::time::sleep(LATE_PAUSE).await;
    };
    tokio::select! {
        () = socket::discard(socket.into_inner(), LATE_PAUSE, state.unread_bytes) => {}
        () = tokio::time::sleep(within) => {}
        () = leaving => {}
        () = state.shutdown.abort.cancelled() => {}
    }
}

/// Answers the requests of a connection until it ends. True: the client has its answer and may still be sending that
/// request.
async fn speak(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    peer: Peer,
    state: &ServerState,
    current: &Arc<Current>,
) -> bool {
    let service = service_fn(|request| answer(request, peer, state, current));
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_buf_size(MAX_BUFFER);
    builder.timer(TokioTimer::new());
    builder.header_read_timeout((!state.header_timeout.is_zero()).then_some(state.header_timeout));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut stop = pin!(state.shutdown.stop.cancelled());
    let mut asked = false;
    let ended = std::future::poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        // Polled once: that registers the wake-up.
        let stopping = if asked { state.stopping.load(Ordering::Acquire) } else { stop.as_mut().poll(cx).is_ready() };
        asked = true;
        if stopping { Poll::Ready(None) } else { Poll::Pending }
    });
    let ended = match ended.await {
        Some(ended) => ended,
        None => {
            // On the heap: few connections get this far.
            let ending = Box::pin(async {
                let shutdown = &state.shutdown;
                tokio::select! {
                    ended = connection.as_mut() => return ended,
                    () = state.lingered() => {}
                    () = shutdown.cut.cancelled() => {}
                }
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => return ended,
                    () = shutdown.cut.cancelled() => current.cut(),
                }
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = shutdown.abort.cancelled() => Ok(()),
                }
            });
            ending.await
        }
    };
    match ended {
        Ok(()) => current.is_unread(),
        Err(error) => {
            // Clients disconnect in many ways; none is worth a log line.
            tracing::debug!(%error, "connection ended");
            // hyper has answered what it couldn't read.
            error.is_parse()
        }
    }
}

/// On the heap, and gone when the head of the answer is there: hyper keeps the room of a service's future as long as
/// the connection.
fn answer<'a>(
    request: Request<Incoming>,
    peer: Peer,
    state: &'a ServerState,
    current: &'a Arc<Current>,
) -> Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + 'a>> {
    Box::pin(async move {
        // hyper ignores the content-length of a chunked request and doesn't say whether there was one. A proxy in front
        // may have used it, so the connection ends after the answer (RFC 9112, 6.1).
        let chunked = request.headers().contains_key(TRANSFER_ENCODING);
        let cut = &state.shutdown.cut;
        let ambiguous = request.version() == Version::HTTP_11 && request.headers().get_all(HOST).iter().count() != 1;
        let rest = Rest::of(request.headers());
        let request = current.begin(request);
        let mut response = tokio::select! {
            biased;
            () = cut.cancelled() => shutting_down(&state.gateway),
            () = std::future::ready(()), if ambiguous => without_one_host(&state.gateway),
            response = handle(&state.gateway, request, peer) => response,
        };
        response.body_mut().until(&state.shutdown.stop);
        let is_read = current.read_rest(rest).await;
        let answering = current.answer(ResponseBody::cutter(response.body()));
        response.body_mut().attend(answering);
        if cut.is_cancelled() {
            current.cut();
        }
        if chunked || ambiguous || !is_read || state.stopping.load(Ordering::Acquire) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_one_too_many_is_well_formed() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(error["error"]["type"], "overloaded_error");
    }

    /// A server that stops on a shared port serves the clients that have connected, and loses none that connect now.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_client_that_is_turned_away_reaches_the_sibling() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let ours = bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let address = ours.local_addr().unwrap();
        assert!(is_own(&ours).unwrap());
        SockRef::from(&ours).listen(BACKLOG).unwrap();
        assert!(!is_own(&ours).unwrap(), "one that listens is somebody's");
        ours.set_nonblocking(true).unwrap();
        let mut early = std::net::TcpStream::connect(address).unwrap();
        let sibling = bind(address, true).unwrap();
        SockRef::from(&sibling).listen(BACKLOG).unwrap();

        let ours = TcpListener::from_std(ours).unwrap();
        assert!(turn_away(&ours));
        let late: Vec<_> =
            (0..16).map(|_| std::thread::spawn(move || std::net::TcpStream::connect(address).unwrap())).collect();
        std::thread::sleep(HANDSHAKES);
        io::Write::write_all(&mut early, b"x").unwrap();
        let ours = ours.into_std().unwrap();
        let (mut taken, _) = ours.accept().unwrap();
        assert_eq!(ours.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "one came after it");
        drop(ours);
        taken.set_nonblocking(false).unwrap();
        io::Read::read_exact(&mut taken, &mut [0]).unwrap();
        let late: Vec<_> = late.into_iter().map(|client| client.join().unwrap().local_addr().unwrap()).collect();
        let mut served: Vec<_> = late.iter().map(|_| sibling.accept().unwrap().1).collect();
        served.sort();
        assert_eq!(served, {
            let mut late = late;
            late.sort();
            late
        });
    }
}
