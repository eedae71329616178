//! Makes connections: TCP, a proxy's tunnel, TLS.

use std::future::ready;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::proxy::{SocksV4, SocksV5};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tower::{Service, service_fn};

use super::connections::Socket;
use super::exchange::{SendProgress, WireRequest, ask};
use super::route::{Proxy, Route, is_secure};
use crate::proto::address::is_localhost;

/// Idle connections are looked after by TCP itself: a dead one is found within half a minute, and a router on the way
/// doesn't forget a live one (K67).
pub(super) const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
const TCP_KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const TCP_KEEPALIVE_PROBES: u32 = 3;

/// Makes connections.
pub(super) struct Connector {
    tcp: HttpConnector<Resolver>,
    tls: TlsConnector,
    /// For TCP, the proxy and TLS together; zero: none.
    timeout: Duration,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct ConnectError {
    /// For people, in the words of the system, the TLS library or the SOCKS library.
    pub(super) why: String,
    /// The proxy answers, but makes no connection for us.
    pub(super) refused: bool,
}

impl<E: std::error::Error> From<E> for ConnectError {
    fn from(error: E) -> Self {
        Self { why: root_cause(&error), refused: false }
    }
}

impl Connector {
    pub(super) fn new(tls: rustls::ClientConfig, timeout: Duration) -> Self {
        let tcp = set_up(HttpConnector::new_with_resolver(Resolver::default()), timeout);
        Self { tcp, tls: TlsConnector::from(Arc::new(tls)), timeout }
    }

    /// `opened` counts it.
    pub(super) async fn connect(&self, route: &Route, opened: &AtomicU64) -> Result<Socket, ConnectError> {
        let connecting = self.make(route, opened);
        if self.timeout.is_zero() {
            return connecting.await;
        }
        let late = || io::Error::other("connecting took longer than KIRO_CONNECT_TIMEOUT").into();
        tokio::time::timeout(self.timeout, connecting).await.unwrap_or_else(|_| Err(late()))
    }

    async fn make(&self, route: &Route, opened: &AtomicU64) -> Result<Socket, ConnectError> {
        let to = route.proxy.as_ref().map_or(&route.server, |proxy| &proxy.uri);
        let mut io = self.tcp(to).await?;
        opened.fetch_add(1, Ordering::Relaxed);
        if let Some(proxy) = &route.proxy {
            io = self.through(proxy, io, route).await?;
        }
        if is_secure(&route.server) { self.secured(&route.server, io).await } else { Ok(io) }
    }

    async fn through(&self, proxy: &Proxy, mut io: Socket, route: &Route) -> Result<Socket, ConnectError> {
        if proxy.is_socks() {
            return socks(proxy, io, &route.server).await;
        }
        if is_secure(&proxy.uri) {
            io = self.secured(&proxy.uri, io).await?;
        }
        if route.forwarder().is_none() {
            tunnel(proxy, &mut io, &route.server).await?;
        }
        Ok(io)
    }

    async fn tcp(&self, to: &Uri) -> Result<Socket, ConnectError> {
        let mut connector = self.tcp.clone();
        std::future::poll_fn(|cx| connector.poll_ready(cx)).await?;
        let tcp = connector.call(to.clone()).await?.into_inner();
        Ok(Box::new(tcp))
    }

    async fn secured(&self, server: &Uri, io: Socket) -> Result<Socket, ConnectError> {
        let name = ServerName::try_from(host_of(server).to_owned())?;
        Ok(Box::new(self.tls.connect(name, io).await?))
    }
}

/// Asks a web proxy for a tunnel. Bytes behind the head of its answer are dropped: they can't be the server's, which
/// waits for the client.
async fn tunnel(proxy: &Proxy, io: &mut Socket, server: &Uri) -> Result<(), ConnectError> {
    let to = authority_of(server, host_of(server));
    let mut headers = HeaderMap::new();
    proxy.sign(&mut headers);
    let wire = WireRequest::new(&Method::CONNECT, &to, &to, &headers, Vec::new().into());
    let answered = ask(io, &wire, &SendProgress::default()).await.map_err(|broken| match broken.unanswered {
        true => io::Error::other("the proxy closed the connection"),
        false => io::Error::other("the proxy gave no valid HTTP answer"),
    })?;
    match answered.response.status() {
        status if status.is_success() => Ok(()),
        status => Err(ConnectError { why: format!("the proxy answered {status}"), refused: true }),
    }
}

/// Asks a SOCKS proxy for a connection. The scheme says who resolves the host's name.
async fn socks(proxy: &Proxy, io: Socket, server: &Uri) -> Result<Socket, ConnectError> {
    let scheme = proxy.uri.scheme_str().unwrap_or_default();
    let is_v4 = scheme.starts_with("socks4");
    let mut host = host_of(server).to_owned();
    if matches!(scheme, "socks4" | "socks5") {
        let found = Resolver::default().resolve(&host).await?;
        let carried = found.iter().find(|address| address.is_ipv4() || !is_v4);
        host = carried.ok_or_else(|| io::Error::other("SOCKS4 carries no address of the host"))?.ip().to_string();
    }
    let server = format!("https://{}", authority_of(server, &host)).parse::<Uri>()?;
    // Otherwise the library would make the connection itself.
    let mut io = Some(TokioIo::new(io));
    let made = service_fn(move |_: Uri| ready(io.take().ok_or(io::ErrorKind::NotConnected)));
    let through = proxy.uri.clone();
    let tunnelled = match proxy.login.clone() {
        _ if is_v4 => SocksV4::new(through, made).call(server).await,
        Some((user, password)) => SocksV5::new(through, made).with_auth(user, password).call(server).await,
        None => SocksV5::new(through, made).call(server).await,
    };
    tunnelled.map(TokioIo::into_inner).map_err(|error| ConnectError { why: error.to_string(), refused: true })
}

/// The host without an IPv6 address's brackets.
fn host_of(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// The server's port.
fn authority_of(server: &Uri, host: &str) -> String {
    let port = server.port_u16().unwrap_or(if is_secure(server) { 443 } else { 80 });
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn set_up<R>(mut connector: HttpConnector<R>, timeout: Duration) -> HttpConnector<R> {
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector.set_keepalive_interval(Some(TCP_KEEPALIVE_EVERY));
    connector.set_keepalive_retries(Some(TCP_KEEPALIVE_PROBES));
    // The time is shared among the host's addresses, so that the first one can't use it up.
    connector.set_connect_timeout((!timeout.is_zero()).then_some(timeout));
    connector
}

/// The system's resolver, except for `*.localhost`, which is this machine without a query (K12, RFC 6761).
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

/// The innermost cause; outer ones only say "error trying to connect". Words of the system or of TLS, no URL.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let words = cause.to_string();
    words.chars().take(MOST_WORDS).collect()
}

/// Characters of a cause that are kept.
const MOST_WORDS: usize = 200;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{array, future};

    use tokio::net::{TcpSocket, TcpStream};
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

    /// An address that neither accepts nor refuses a connection while the result lives.
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
    async fn names_below_localhost_lead_to_this_machine_k12() {
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

    /// K68: all addresses of a host share the time for connecting.
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
