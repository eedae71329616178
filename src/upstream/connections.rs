//! Connections to upstream: made, kept while they are idle, given up in time (K67).

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::proto::address::is_localhost;

/// Idle connections are given up before upstream does so at about 60 s (K67).
pub(super) const POOL_IDLE: Duration = Duration::from_secs(15);
/// What a burst of streams leaves behind is given up sooner, but for a few.
const SURPLUS_IDLE: Duration = Duration::from_secs(5);
const KEPT_IDLE: usize = 2;
pub(super) const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// The server at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ServerOrigin {
    secure: bool,
    authority: Authority,
}

impl ServerOrigin {
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        Some(Self { secure, authority: uri.authority()?.clone() })
    }
}

/// Makes connections and keeps the idle ones.
pub(super) struct Connections {
    connector: HttpConnector<Resolver>,
    tls: TlsConnector,
    /// For TCP and TLS together; zero: none.
    timeout: Duration,
    opened: AtomicU64,
    /// The one used last is at the end and is used next, so that the others may grow old.
    idle: Mutex<HashMap<ServerOrigin, Vec<Idle>>>,
}

struct Idle {
    io: Socket,
    since: Instant,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum ConnectError {
    Late,
    /// In the system's or the TLS library's words.
    Refused(String),
}

impl ConnectError {
    /// For people.
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Late => LATE,
            Self::Refused(why) => why,
        }
    }
}

/// Why there is no connection when it took too long.
pub(super) const LATE: &str = "connecting took longer than KIRO_CONNECT_TIMEOUT";

impl Connections {
    pub(super) fn new(tls: rustls::ClientConfig, timeout: Duration) -> Self {
        let connector = set_up(HttpConnector::new_with_resolver(Resolver::default()), timeout);
        let tls = TlsConnector::from(std::sync::Arc::new(tls));
        Self { connector, tls, timeout, opened: AtomicU64::new(0), idle: Mutex::default() }
    }

    /// An idle connection that is still open as far as one can know.
    pub(super) fn idle(&self, origin: &ServerOrigin) -> Option<Socket> {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(origin)?;
        while let Some(Idle { mut io, since }) = kept.pop() {
            if now - since < POOL_IDLE && io.is_quiet() {
                return Some(io);
            }
        }
        None
    }

    /// Takes a connection back on which nothing is under way.
    pub(super) fn keep(&self, origin: &ServerOrigin, io: Socket) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Idle { io, since: Instant::now() };
        match idle.get_mut(origin) {
            Some(kept) => kept.push(entry),
            None => drop(idle.insert(origin.clone(), vec![entry])),
        }
    }

    /// Closes idle connections that are too old, or that upstream has closed; to be called once a second.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, kept| {
            let mut surplus = kept.len().saturating_sub(KEPT_IDLE);
            kept.retain_mut(|Idle { io, since }| {
                let limit = if surplus > 0 { SURPLUS_IDLE } else { POOL_IDLE };
                surplus = surplus.saturating_sub(1);
                now - *since < limit && io.is_quiet()
            });
            kept.shrink_to(2 * kept.len());
            !kept.is_empty()
        });
    }

    /// Connections opened since the start.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Whether a connection can be made, to probe a proxy: no TLS, and nothing is sent.
    pub(super) async fn answers(&self, uri: &Uri) -> bool {
        let mut connector = self.connector.clone();
        std::future::poll_fn(|cx| connector.poll_ready(cx)).await.is_ok() && connector.call(uri.clone()).await.is_ok()
    }

    pub(super) async fn connect(&self, origin: &ServerOrigin, uri: &Uri) -> Result<Socket, ConnectError> {
        let connecting = async {
            let mut connector = self.connector.clone();
            let refused = |error: &dyn std::error::Error| ConnectError::Refused(root_cause(error));
            std::future::poll_fn(|cx| connector.poll_ready(cx)).await.map_err(|e| refused(&e))?;
            let tcp = connector.call(uri.clone()).await.map_err(|e| refused(&e))?.into_inner();
            self.opened.fetch_add(1, Ordering::Relaxed);
            if !origin.secure {
                return Ok(Socket::Plain(tcp));
            }
            let host = origin.authority.host().trim_start_matches('[').trim_end_matches(']');
            let name = ServerName::try_from(host.to_owned()).map_err(|e| refused(&e))?;
            let secured = self.tls.connect(name, tcp).await.map_err(|e| refused(&e))?;
            Ok(Socket::Tls(Box::new(secured)))
        };
        if self.timeout.is_zero() {
            return connecting.await;
        }
        tokio::time::timeout(self.timeout, connecting).await.unwrap_or(Err(ConnectError::Late))
    }
}

fn set_up<R>(mut connector: HttpConnector<R>, timeout: Duration) -> HttpConnector<R> {
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    // Shared out among the addresses of the host, so that the first one can't use it up.
    connector.set_connect_timeout((!timeout.is_zero()).then_some(timeout));
    connector
}

/// The system's resolver, but for `*.localhost`, which is this machine without asking anybody (K12, RFC 6761).
#[derive(Clone)]
pub(super) struct Resolver(GaiResolver);

impl Default for Resolver {
    fn default() -> Self {
        Self(GaiResolver::new())
    }
}

impl Resolver {
    pub(super) async fn resolve(mut self, name: &str) -> io::Result<Vec<SocketAddr>> {
        // `localhost` itself may have other addresses.
        if is_localhost(name) && name.trim_end_matches('.').contains('.') {
            return Ok(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        }
        let name = name.parse::<Name>().map_err(io::Error::other)?;
        Ok(self.0.call(name).await?.collect())
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move { Ok(resolver.resolve(name.as_str()).await?.into_iter()) })
    }
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses = Self::resolve(resolver, name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// The innermost cause: outer ones say "error trying to connect", which is known. System and TLS words, no URL.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let words = cause.to_string();
    words.chars().take(MOST_WORDS).collect()
}

/// Characters of a cause that are kept.
const MOST_WORDS: usize = 200;

/// A connection, with or without TLS.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Nothing came and nothing was closed, as far as the runtime has heard: no system call unless it has heard something.
    fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        // With TLS this takes in session tickets, which are no data.
        self.poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, pieces),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{array, future};

    use tokio::net::TcpSocket;
    use tokio::time::timeout;

    use super::*;

    /// A name with two addresses.
    #[derive(Clone)]
    struct Two([SocketAddr; 2]);

    impl Service<Name> for Two {
        type Response = array::IntoIter<SocketAddr, 2>;
        type Error = io::Error;
        type Future = future::Ready<io::Result<Self::Response>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Name) -> Self::Future {
            future::ready(Ok(self.0.into_iter()))
        }
    }

    /// An address that takes no connection and refuses none, as long as what is given back lives.
    async fn silent(address: SocketAddr) -> Option<(tokio::net::TcpListener, Vec<TcpStream>)> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while waiting.len() < 100 {
            match timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
                Ok(connected) => waiting.push(connected.unwrap()),
                Err(_) => return Some((listener, waiting)),
            }
        }
        None
    }

    #[tokio::test]
    async fn names_below_localhost_are_this_machine_k12() {
        let resolved = |name: &'static str| async move { Resolver::default().resolve(name).await };
        for name in ["eu-central-1.localhost", "A.B.LOCALHOST", "x.localhost."] {
            assert_eq!(resolved(name).await.unwrap(), [SocketAddr::from((Ipv4Addr::LOCALHOST, 0))], "{name}");
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connector = set_up(HttpConnector::new_with_resolver(Resolver::default()), Duration::from_secs(4));
        let port = listener.local_addr().unwrap().port();
        let uri = format!("http://q.us-gov-west-1.localhost:{port}/").parse::<Uri>().unwrap();
        assert_eq!(connector.call(uri).await.unwrap().inner().peer_addr().unwrap(), listener.local_addr().unwrap());
        assert!(!is_localhost("localhost.example.org") && !is_localhost("xlocalhost"));
    }

    /// K68: the time for connecting is for all addresses of a host.
    #[tokio::test]
    async fn an_address_that_is_silent_leaves_time_for_the_next_k68() {
        let Some((dead, _waiting)) = silent((Ipv4Addr::LOCALHOST, 0).into()).await else { return };
        let first = dead.local_addr().unwrap();
        let second = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), first.port()));
        let live = tokio::net::TcpListener::bind(second).await.unwrap();
        let limit = Duration::from_secs(4);
        let mut connector = set_up(HttpConnector::new_with_resolver(Two([first, second])), limit);
        let uri = format!("http://kiro.test:{}/", first.port()).parse::<Uri>().unwrap();
        let connected = timeout(limit, connector.call(uri)).await.expect("in time").unwrap();
        assert_eq!(connected.inner().peer_addr().unwrap(), live.local_addr().unwrap());
    }
}
