//! Calls through a proxy, by `reqwest`: a client for each proxy, which also serves token refresh and usage.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::HeaderMap;
use http_body::{Frame, SizeHint};

use super::connections::{LATE, POOL_IDLE, Resolver, TCP_KEEPALIVE, root_cause};
use super::ways::{Probe, RestingWays, probe_uri};
use super::{ChatTarget, SendProgress, Upstream, UpstreamBodyKind, host_of};
use crate::proto::kiro::fault::Fault;

/// Most clients for accounts' proxies: beyond it, the one that was used longest ago goes.
const MAX_PROXIES: usize = 1024;

/// A request that goes through a proxy is handed to the HTTP client in pieces, so that it is seen to move.
const PIECE: usize = 64 * 1024;

/// The clients of accounts' own proxies.
#[derive(Default)]
pub(super) struct ProxyClients {
    /// By the proxy's URL, each with the turn in which it was last asked for.
    pub(super) clients: HashMap<String, (Client, u64)>,
    turns: u64,
    /// Connections that clients opened which were given up since.
    pub(super) connects: u64,
}

#[derive(Clone)]
pub(super) struct Client {
    pub(super) client: reqwest::Client,
    /// The same, but each request makes a connection of its own (K69).
    fresh: reqwest::Client,
    pub(super) connects: Arc<AtomicU64>,
}

impl ProxyClients {
    /// Drops the client that was used longest ago; its open calls go on.
    fn give_one_up(&mut self) {
        let oldest = self.clients.iter().min_by_key(|(_, (_, asked))| *asked).map(|(proxy, _)| proxy.clone());
        if let Some((client, _)) = oldest.and_then(|proxy| self.clients.remove(&proxy)) {
            self.connects += client.connects.load(Ordering::Relaxed);
        }
    }
}

impl Client {
    pub(super) fn new(
        tls: &rustls::ClientConfig,
        connect_timeout: Duration,
        proxy: Option<&str>,
    ) -> Result<Self, reqwest::Error> {
        let connects = Arc::new(AtomicU64::new(0));
        let build = |idle: usize| {
            let mut builder = reqwest::Client::builder()
                .http1_only()
                .tls_backend_preconfigured(tls.clone())
                .tcp_nodelay(true)
                .tcp_keepalive(TCP_KEEPALIVE)
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(idle)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                .no_proxy()
                .dns_resolver(Arc::new(Resolver::default()))
                .connector_layer(CountConnects(connects.clone()));
            if !connect_timeout.is_zero() {
                builder = builder.connect_timeout(connect_timeout);
            }
            if let Some(proxy) = proxy {
                builder = builder.proxy(reqwest::Proxy::all(proxy)?);
            }
            builder.build()
        };
        Ok(Self { client: build(usize::MAX)?, fresh: build(0)?, connects })
    }
}

impl Upstream {
    /// The client of an account's token refresh and usage calls.
    ///
    /// # Errors
    /// The account's proxy URL can't be used: fault `Network`, which names the field.
    pub fn client(&self, proxy: Option<&str>) -> Result<reqwest::Client, Fault> {
        Ok(self.client_through(proxy)?.client)
    }

    pub(super) async fn generate_proxied(
        &self,
        target: &ChatTarget,
        headers: impl Fn() -> Result<HeaderMap, Fault>,
        body: Vec<Bytes>,
        progress: &Arc<SendProgress>,
    ) -> Result<Response<UpstreamBodyKind>, Fault> {
        let client = self.client_through(target.proxy.as_deref())?;
        let send = |client: &reqwest::Client| {
            let body = reqwest::Body::wrap(ProxiedRequestBody::new(body.clone(), progress.clone()));
            Ok(client.post(&target.url).headers(headers()?).body(body).send())
        };
        let way = self.way(host_of(&target.url), target.proxy.as_deref());
        let began = self.reached.may_try(&way)?;
        let connected =
            Arc::new(RequestConnection { made: AtomicBool::new(false), way, reached: self.reached.clone() });
        let response = match CONNECTED.scope(connected.clone(), send(&client.client)?).await {
            // This request made no connection, so it went over an old one that upstream had given up.
            Err(error) if died_unanswered(&error) && !connected.made.load(Ordering::Relaxed) => {
                send(&client.fresh)?.await
            }
            other => other,
        };
        let way = &connected.way;
        let response = response.map_err(|error| {
            // Nothing but connecting has a time of its own here.
            if !error.is_connect() && !error.is_timeout() {
                return Fault::network("the connection broke before the answer began");
            }
            let why = if error.is_timeout() { LATE.to_owned() } else { root_cause(&error) };
            let proxy = target.proxy.as_deref().or(self.proxy.as_deref()).and_then(probe_uri);
            self.reached.failed(way, &why, began, proxy.map(Probe::Proxy))
        })?;
        self.reached.made(way);
        Ok(Response::<reqwest::Body>::from(response).map(UpstreamBodyKind::Proxied))
    }

    fn client_through(&self, proxy: Option<&str>) -> Result<Client, Fault> {
        let Some(proxy) = proxy else { return Ok(self.plain.clone()) };
        let mut proxied = self.proxied.lock().unwrap_or_else(PoisonError::into_inner);
        proxied.turns += 1;
        let turn = proxied.turns;
        if let Some((client, asked)) = proxied.clients.get_mut(proxy) {
            *asked = turn;
            return Ok(client.clone());
        }
        let client = Client::new(&self.tls, self.connect_timeout, Some(proxy))
            .map_err(|_| Fault::network("the account's PROXY_URL can't be used"))?;
        if proxied.clients.len() >= MAX_PROXIES {
            proxied.give_one_up();
        }
        proxied.clients.insert(proxy.to_owned(), (client.clone(), turn));
        Ok(client)
    }
}

/// A request body in parts that follow each other. Its length is known, so it is not sent in chunks.
struct ProxiedRequestBody {
    left: VecDeque<Bytes>,
    progress: Arc<SendProgress>,
}

impl ProxiedRequestBody {
    fn new(parts: Vec<Bytes>, progress: Arc<SendProgress>) -> Self {
        Self { left: parts.into_iter().filter(|part| !part.is_empty()).collect(), progress }
    }
}

impl http_body::Body for ProxiedRequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.progress.moved();
        let Some(part) = self.left.front_mut() else { return Poll::Ready(None) };
        let piece = part.split_to(part.len().min(PIECE));
        if part.is_empty() {
            self.left.pop_front();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.iter().map(|part| part.len() as u64).sum())
    }
}

/// Whether the request was sent on a connection that gave no byte of an answer.
fn died_unanswered(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(hyper) = error.downcast_ref::<hyper::Error>()
            && (hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed())
        {
            return true;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
            if matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected) {
                return true;
            }
        }
        cause = error.source();
    }
    false
}

tokio::task_local! {
    /// Whether the request made a connection: a failure on a reused one means something else (K69).
    static CONNECTED: Arc<RequestConnection>;
}

/// Whether a request through a proxy made a connection, and on which way.
struct RequestConnection {
    made: AtomicBool,
    way: String,
    reached: Arc<RestingWays>,
}

/// Counts connections, and tells the request that waited for one.
#[derive(Clone)]
struct CountConnects(Arc<AtomicU64>);

impl<S> tower_layer::Layer<S> for CountConnects {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counted { inner, connects: self.0.clone() }
    }
}

#[derive(Clone)]
struct Counted<S> {
    inner: S,
    connects: Arc<AtomicU64>,
}

impl<S, R> tower_service::Service<R> for Counted<S>
where
    S: tower_service::Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.connects.fetch_add(1, Ordering::Relaxed);
        let connecting = self.inner.call(request);
        Box::pin(async move {
            let connection = connecting.await;
            // Only now: where an older connection became free first, this one is finished in the background, outside of
            // the request's task, and is not the request's.
            let tell = |connected: &Arc<RequestConnection>| {
                connected.made.store(true, Ordering::Relaxed);
                if connection.is_ok() {
                    connected.reached.made(&connected.way);
                }
            };
            CONNECTED.try_with(tell).unwrap_or_default();
            connection
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::upstream;
    use super::*;

    /// `PROXY_URL` may change as often as it likes: a pool of proxies with a name for each session in it does.
    #[test]
    fn a_new_proxy_takes_the_place_of_the_one_used_longest_ago() {
        let upstream = upstream();
        let url = |n: usize| format!("http://session-{n}:p@127.0.0.1:3128");
        let ours = || upstream.client_through(Some(&url(0))).map(|client| client.connects).unwrap();
        let first = ours();
        first.fetch_add(7, Ordering::Relaxed);
        for n in 1..=MAX_PROXIES + 1 {
            assert!(upstream.client(Some(&url(n))).is_ok(), "{n}");
            assert!(n > MAX_PROXIES || Arc::ptr_eq(&first, &ours()), "it is in use");
        }
        assert_eq!(upstream.proxied.lock().unwrap().clients.len(), MAX_PROXIES);
        for n in 1..=MAX_PROXIES {
            upstream.client(Some(&url(n))).unwrap();
        }
        assert!(!Arc::ptr_eq(&first, &ours()));
        assert_eq!(upstream.connects(), 7, "none is forgotten");
    }
}
