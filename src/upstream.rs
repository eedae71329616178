//! The HTTP client towards Kiro: built once, timeouts by name (kiro-upstream.md sections 3 and 13).
//!
//! HTTP/1.1 with keep-alive, because one HTTP/2 connection carries about a hundred streams and the pool opens only one.
//! Dropping a response body closes its connection at once (K70); reading it to its end gives the connection back.
//!
//! A stream drives its own connection: one task reads from upstream and writes downstream, and nothing is woken in
//! between (docs/performance.md has the figures). Accounts with a proxy go through `reqwest`, as do token refresh and
//! everything else that isn't a stream.

mod connections;
mod exchange;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use connections::{ConnectError, Connections, Origin, POOL_IDLE, TCP_KEEPALIVE};
use exchange::{Wire, exchange};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::{Method, Request, Response, Uri};
use http_body::{Body as _, Frame, SizeHint};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{Code, Error};
use crate::proto::kiro::fault::Fault;
use crate::secret::Secret;

/// Error bodies are read to this size and for this long (K42).
const MAX_ERROR_BODY: usize = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The Node.js version that Kiro's own client says it runs on (`{N}` in kiro-upstream.md section 3).
const NODE_VERSION: &str = "22.22.0";
/// Proxies of accounts get a client each; of more than this many, the one that was asked for longest ago is given up.
const MAX_PROXIES: usize = 1024;

/// A request that goes through a proxy is handed to the HTTP client in pieces, so that it is seen to move.
const PIECE: usize = 64 * 1024;

/// The body of an upstream answer. Dropping it before its end closes the connection (K70).
pub struct Body {
    kind: BodyKind,
    sent: Instant,
}

enum BodyKind {
    Direct(exchange::Body),
    Proxied(reqwest::Body),
}

/// The body ended before its end.
#[derive(Debug)]
pub struct Cut;

impl Body {
    /// When the request's last byte went out: from then on the first event is waited for (K68).
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// The next bytes, none at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        match &mut self.kind {
            BodyKind::Direct(body) => body.poll_chunk(cx).map(|chunk| chunk.map(|read| read.map_err(|_| Cut))),
            BodyKind::Proxied(body) => loop {
                return match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(chunk) => Poll::Ready(Some(Ok(chunk))),
                        // Trailers.
                        Err(_) => continue,
                    },
                    Some(Err(_)) => Poll::Ready(Some(Err(Cut))),
                    None => Poll::Ready(None),
                };
            },
        }
    }

    /// Whether it is known that nothing more comes.
    pub fn is_ended(&self) -> bool {
        match &self.kind {
            BodyKind::Direct(body) => body.is_ended(),
            BodyKind::Proxied(body) => body.is_end_stream(),
        }
    }

    /// The next bytes, none at the end and none after a cut.
    async fn chunk(&mut self) -> Option<Bytes> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await?.ok()
    }
}

/// Clients towards Kiro, one per proxy, all with the same limits.
pub struct Upstream {
    /// Where no proxy stands between.
    connections: Arc<Connections>,
    /// `KIRO_PROXY_URL` is set: everything goes through `plain`.
    through_proxy: bool,
    plain: Client,
    proxied: Mutex<Proxied>,
    tls: rustls::ClientConfig,
    connect_timeout: Duration,
    first_event_timeout: Duration,
    identity: Identity,
}

/// The clients of accounts' own proxies.
#[derive(Default)]
struct Proxied {
    /// By the proxy's URL, each with the turn in which it was last asked for.
    clients: HashMap<String, (Client, u64)>,
    turns: u64,
    /// Connections that clients opened which were given up since.
    connects: u64,
}

/// Where and as whom one attempt goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The resolved URL of `generateAssistantResponse`.
    pub url: String,
    /// The bearer token.
    pub token: Secret,
    /// The account's machine id (K16).
    pub machine_id: String,
    /// Whether the token is an API key, which is said in a header of its own.
    pub api_key: bool,
    /// The account's own proxy.
    pub proxy: Option<String>,
}

/// What the headers say about the client (section 3): constants of this process.
#[derive(Debug, Clone)]
pub struct Identity {
    version: String,
    os: String,
}

#[derive(Clone)]
struct Client {
    client: reqwest::Client,
    /// The same, but each request makes a connection of its own (K69).
    fresh: reqwest::Client,
    connects: Arc<AtomicU64>,
}

impl Upstream {
    /// Builds the clients' common parts and the client of `KIRO_PROXY_URL`, or of no proxy.
    ///
    /// # Errors
    /// [`Code::Config`] when the proxy's URL or the file of certificate authorities can't be used.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let tls = tls_config(config)?;
        let proxy = config.proxy_url.as_ref().map(|secret| secret.expose().to_owned());
        let plain = Client::new(&tls, config.connect_timeout, proxy.as_deref())
            .map_err(|e| Error::new(Code::Config, format!("KIRO_PROXY_URL: {e}")))?;
        Ok(Self {
            connections: Arc::new(Connections::new(tls.clone(), config.connect_timeout)),
            through_proxy: proxy.is_some(),
            plain,
            proxied: Mutex::default(),
            tls,
            connect_timeout: config.connect_timeout,
            first_event_timeout: config.first_event_timeout,
            identity: Identity { version: config.client_version.clone(), os: operating_system() },
        })
    }

    /// The client of an account's token refresh and usage calls.
    ///
    /// # Errors
    /// The account's proxy URL can't be used: fault `Network`, which names the field.
    pub fn client(&self, proxy: Option<&str>) -> Result<reqwest::Client, Fault> {
        Ok(self.client_through(proxy)?.client)
    }

    /// Connections opened since the start, over all proxies.
    pub fn connects(&self) -> u64 {
        let proxied = self.proxied.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = proxied.clients.values().map(|(client, _)| client).chain([&self.plain]);
        let through = clients.map(|client| client.connects.load(Ordering::Relaxed)).sum::<u64>();
        self.connections.opened() + through + proxied.connects
    }

    /// What the user-agent headers say.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Closes idle connections that are too old (K67); to be called once a second.
    pub fn sweep(&self) {
        self.connections.sweep();
    }

    /// Sends one request and waits for the head of the answer. It comes in time when it comes within
    /// `KIRO_FIRST_EVENT_TIMEOUT` of the request's last byte; on its way no byte may take longer than that after the one
    /// before (K68). The request's body comes in parts that follow each other.
    ///
    /// A reused connection that dies before any byte of the answer is no attempt: the request goes out once more (K69).
    ///
    /// # Errors
    /// Anything but a 200 with an event stream, classified (K42–K45).
    pub async fn generate(&self, target: &Target, body: Vec<Bytes>) -> Result<Body, Fault> {
        let mut headers = self.identity.generate_headers(target)?;
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.iter().map(Bytes::len).sum::<usize>()));
        let progress = Arc::<Progress>::default();
        let sent = async {
            if target.proxy.is_some() || self.through_proxy {
                self.generate_proxied(target, headers, body, &progress).await
            } else {
                self.generate_directly(target, headers, body, &progress).await
            }
        };
        let response = self.in_time(sent, &progress).await?;
        let (parts, body) = response.into_parts();
        let kind = header(&parts.headers, "content-type").and_then(|kind| kind.split(';').next());
        let body = Body { kind: body, sent: progress.last().unwrap_or_else(Instant::now) };
        if parts.status == 200
            && kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/vnd.amazon.eventstream"))
        {
            return Ok(body);
        }
        let text = read_error_body(body).await;
        Err(Fault::from_http(
            parts.status.as_u16(),
            header(&parts.headers, "x-amzn-errortype"),
            header(&parts.headers, "retry-after"),
            &text,
            target.api_key,
        ))
    }

    /// Making the connection has a time of its own; without that one, this one counts.
    async fn in_time<T>(
        &self,
        sending: impl Future<Output = Result<T, Fault>>,
        progress: &Progress,
    ) -> Result<T, Fault> {
        let limit = self.first_event_timeout;
        if limit.is_zero() {
            return sending.await;
        }
        let connecting = !self.connect_timeout.is_zero();
        let mut sending = pin!(sending);
        let mut deadline = Instant::now() + limit;
        loop {
            if let Ok(answer) = tokio::time::timeout_at(deadline, &mut sending).await {
                return answer;
            }
            let now = Instant::now();
            deadline = match progress.last() {
                Some(last) if last + limit > now => last + limit,
                // The first byte isn't out before now, so that this comes too soon rather than too late.
                None if connecting => now + limit,
                _ => return Err(Fault::timeout("no answer within KIRO_FIRST_EVENT_TIMEOUT")),
            };
        }
    }

    async fn generate_directly(
        &self,
        target: &Target,
        headers: HeaderMap,
        body: Vec<Bytes>,
        progress: &Progress,
    ) -> Result<Response<BodyKind>, Fault> {
        let unusable = |_| Fault::network("the upstream URL can't be used");
        let uri: Uri = target.url.parse().map_err(|_| unusable(()))?;
        let origin = Origin::of(&uri).ok_or_else(|| unusable(()))?;
        let wire = || {
            let mut request = Request::new(());
            *request.method_mut() = Method::POST;
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            add_invocation_id(request.headers_mut());
            Wire::new(request, body.clone()).map_err(|_| Fault::network("the request can't be put on the wire"))
        };
        let broken = || Fault::network("the connection broke before the answer began");
        if let Some(io) = self.connections.idle(&origin) {
            match exchange(io, &wire()?, self.connections.clone(), origin.clone(), progress).await {
                Ok(response) => return Ok(response.map(BodyKind::Direct)),
                // An old connection that upstream had given up.
                Err(broke) if broke.unanswered => {}
                Err(_) => return Err(broken()),
            }
        }
        let io = self.connections.connect(&origin, &uri).await.map_err(|error| match error {
            ConnectError::Late => Fault::timeout("connecting took longer than KIRO_CONNECT_TIMEOUT"),
            ConnectError::Refused(why) => {
                tracing::warn!(host = uri.host(), why, "upstream can't be reached");
                Fault::network("could not connect")
            }
        })?;
        match exchange(io, &wire()?, self.connections.clone(), origin.clone(), progress).await {
            Ok(response) => Ok(response.map(BodyKind::Direct)),
            Err(_) => Err(broken()),
        }
    }

    async fn generate_proxied(
        &self,
        target: &Target,
        headers: HeaderMap,
        body: Vec<Bytes>,
        progress: &Arc<Progress>,
    ) -> Result<Response<BodyKind>, Fault> {
        let client = self.client_through(target.proxy.as_deref())?;
        let send = |client: &reqwest::Client| {
            let mut headers = headers.clone();
            add_invocation_id(&mut headers);
            let body = reqwest::Body::wrap(Parts::new(body.clone(), progress.clone()));
            client.post(&target.url).headers(headers).body(body).send()
        };
        let connected = Arc::<AtomicBool>::default();
        let response = match CONNECTED.scope(connected.clone(), send(&client.client)).await {
            // This request made no connection, so it went over an old one that upstream had given up.
            Err(error) if died_unanswered(&error) && !connected.load(Ordering::Relaxed) => send(&client.fresh).await,
            other => other,
        };
        let response = response.map_err(|error| send_fault(&error))?;
        Ok(Response::<reqwest::Body>::from(response).map(BodyKind::Proxied))
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

impl Proxied {
    /// What goes through it now goes on.
    fn give_one_up(&mut self) {
        let oldest = self.clients.iter().min_by_key(|(_, (_, asked))| *asked).map(|(proxy, _)| proxy.clone());
        if let Some((client, _)) = oldest.and_then(|proxy| self.clients.remove(&proxy)) {
            self.connects += client.connects.load(Ordering::Relaxed);
        }
    }
}

impl Client {
    fn new(tls: &rustls::ClientConfig, connect_timeout: Duration, proxy: Option<&str>) -> Result<Self, reqwest::Error> {
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

impl Identity {
    /// `x-amz-user-agent` (section 3).
    pub fn amz_user_agent(&self, machine_id: &str) -> String {
        format!("aws-sdk-js/1.0.0 KiroIDE-{}-{machine_id}", self.version)
    }

    /// `user-agent` of everything but social refresh (section 3).
    pub fn user_agent(&self, machine_id: &str) -> String {
        format!(
            "aws-sdk-js/1.0.0 ua/2.1 os/{} lang/js md/nodejs#{NODE_VERSION} api/codewhispererruntime#1.0.0 m/E KiroIDE-{}-{machine_id}",
            self.os, self.version
        )
    }

    /// `user-agent` of social refresh (section 3).
    pub fn social_user_agent(&self, machine_id: &str) -> String {
        format!("KiroIDE-{}-{machine_id}", self.version)
    }

    fn generate_headers(&self, target: &Target) -> Result<HeaderMap, Fault> {
        let text = |value: String| {
            HeaderValue::from_str(&value).map_err(|_| Fault::network("a header value of the account is not printable"))
        };
        let mut bearer = text(format!("Bearer {}", target.token.expose()))?;
        bearer.set_sensitive(true);
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(AUTHORIZATION, bearer);
        if target.api_key {
            headers.insert(HeaderName::from_static("tokentype"), HeaderValue::from_static("API_KEY"));
        }
        headers.insert(HeaderName::from_static("x-amz-user-agent"), text(self.amz_user_agent(&target.machine_id))?);
        headers.insert(USER_AGENT, text(self.user_agent(&target.machine_id))?);
        headers.insert(HeaderName::from_static("amz-sdk-request"), HeaderValue::from_static("attempt=1; max=1"));
        headers.insert(HeaderName::from_static("x-amzn-kiro-agent-mode"), HeaderValue::from_static("vibe"));
        Ok(headers)
    }
}

/// When a byte of the request last went out; none while there is no connection.
#[derive(Default)]
struct Progress(Mutex<Option<Instant>>);

impl Progress {
    fn moved(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn last(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request body in parts that follow each other. Its length is known, so it is not sent in chunks.
struct Parts {
    left: VecDeque<Bytes>,
    progress: Arc<Progress>,
}

impl Parts {
    fn new(parts: Vec<Bytes>, progress: Arc<Progress>) -> Self {
        Self { left: parts.into_iter().filter(|part| !part.is_empty()).collect(), progress }
    }
}

impl http_body::Body for Parts {
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

/// Reads what an error answer says, bounded in size and time; what was read before a limit counts (K42).
async fn read_error_body(mut body: Body) -> BytesMut {
    let mut text = BytesMut::new();
    let read = async {
        while let Some(chunk) = body.chunk().await
            && text.len() < MAX_ERROR_BODY
        {
            let room = MAX_ERROR_BODY - text.len();
            text.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
    };
    // Running out of time is no failure: the status alone classifies.
    tokio::time::timeout(ERROR_BODY_TIMEOUT, read).await.unwrap_or_default();
    text
}

/// One a sending (section 3).
fn add_invocation_id(headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        headers.insert(HeaderName::from_static("amz-sdk-invocation-id"), id);
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn send_fault(error: &reqwest::Error) -> Fault {
    // reqwest's own text names the URL, which may hold the region only; causes are system words.
    if error.is_timeout() {
        Fault::timeout("connecting took longer than KIRO_CONNECT_TIMEOUT")
    } else if error.is_connect() {
        Fault::network("could not connect")
    } else {
        Fault::network("the connection broke before the answer began")
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

fn tls_config(config: &Config) -> Result<rustls::ClientConfig, Error> {
    let mut roots =
        rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.iter().map(TrustAnchor::to_owned).collect() };
    if let Some(file) = &config.extra_ca_certs {
        let refuse =
            |what: String| Error::new(Code::Config, format!("NODE_EXTRA_CA_CERTS: {}: {what}", file.display()));
        let certs = CertificateDer::pem_file_iter(file).map_err(|e| refuse(e.to_string()))?;
        for cert in certs {
            let cert = cert.map_err(|e| refuse(e.to_string()))?;
            roots.add(cert).map_err(|e| refuse(e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Code::Internal, format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// `linux#6.1.0`, `macos#…`, `windows#…` (`{OS}` in section 3), read once at start so that it never wanders (K16).
fn operating_system() -> String {
    #[cfg(unix)]
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let release = "10.0.22631".to_owned();
    let name = match std::env::consts::OS {
        "macos" => "macos",
        "windows" => "windows",
        _ => "linux",
    };
    let printable: String = release.chars().filter(|c| c.is_ascii_graphic()).collect();
    format!("{name}#{printable}")
}

tokio::task_local! {
    /// Whether the request made a connection, so that a failure can be told from one on a reused connection (K69).
    static CONNECTED: Arc<AtomicBool>;
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
            // At the end, where the request's own task comes only if no older connection was there before: this one is
            // finished in the background then. Nobody asks outside of a stream's request.
            CONNECTED.try_with(|connected| connected.store(true, Ordering::Relaxed)).unwrap_or_default();
            connection
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Face, RawConfig};

    fn upstream() -> Upstream {
        Upstream::new(&RawConfig::default().resolve(Face::Server).unwrap()).unwrap()
    }

    fn target(api_key: bool) -> Target {
        Target {
            url: "https://q.us-east-1.amazonaws.com/generateAssistantResponse".into(),
            token: Secret::new("t"),
            machine_id: "ab".repeat(32),
            api_key,
            proxy: None,
        }
    }

    #[test]
    fn k4_k14_trap_22_headers_are_those_of_section_3() {
        let upstream = upstream();
        let headers = upstream.identity.generate_headers(&target(false)).unwrap();
        let m = "ab".repeat(32);
        assert_eq!(headers["x-amz-user-agent"], format!("aws-sdk-js/1.0.0 KiroIDE-0.8.140-{m}"));
        let agent = headers["user-agent"].to_str().unwrap();
        assert!(
            agent.starts_with("aws-sdk-js/1.0.0 ua/2.1 os/") && agent.ends_with(&format!("m/E KiroIDE-0.8.140-{m}"))
        );
        assert!(agent.contains(" lang/js md/nodejs#22.22.0 api/codewhispererruntime#1.0.0 "));
        assert_eq!(headers["authorization"], "Bearer t");
        assert!(headers["authorization"].is_sensitive());
        assert!(!headers.contains_key("tokentype") && !headers.contains_key("accept-encoding"));
        assert_eq!(upstream.identity.generate_headers(&target(true)).unwrap()["tokentype"], "API_KEY");
    }

    /// Reads one request from a connection, answers with an empty event stream, and gives its head and body.
    async fn answer_one(listener: &tokio::net::TcpListener) -> (String, Vec<u8>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        let head_end = loop {
            assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0, "the request ends in its head");
            if let Some(at) = memchr::memmem::find(&read, b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8(read[..head_end].to_vec()).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        let length: usize = length.parse().unwrap();
        let mut body = read.split_off(head_end);
        while body.len() < length {
            assert_ne!(socket.read_buf(&mut body).await.unwrap(), 0, "the request ends in its body");
        }
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\nconnection: close\r\n\r\n";
        socket.write_all(answer.as_bytes()).await.unwrap();
        (head, body)
    }

    #[tokio::test]
    async fn k20_k121_all_parts_go_out_with_content_length() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { url: format!("http://{}/", listener.local_addr().unwrap()), ..target(false) };
        let upstream = upstream();
        // Small enough for one write, and larger than what the HTTP client gathers.
        for head in [Bytes::from_static(b"{\"a\":1"), Bytes::from(vec![b'x'; 3 << 20])] {
            // As many as a body has, and more than one write takes.
            for tail in [&["", "}"][..], &[",\"b\":2", ",\"c\":3", ",\"d\":4", ",\"profileArn\":\"arn\"", "}"]] {
                let parts =
                    std::iter::once(head.clone()).chain(tail.iter().map(|part| Bytes::from_static(part.as_bytes())));
                let (parts, tail) = (parts.collect(), tail.concat().into_bytes());
                let (answer, (seen, body)) = tokio::join!(upstream.generate(&target, parts), answer_one(&listener));
                assert!(answer.is_ok(), "{:?}", answer.err());
                assert!(seen.contains(&format!("\r\ncontent-length: {}\r\n", head.len() + tail.len())), "{seen}");
                assert!(!seen.contains("transfer-encoding"), "{seen}");
                assert!(body == [&head[..], &tail].concat(), "the body changed on its way");
            }
        }
    }

    /// K68: the first event is waited for from the request's last byte on. A long request that is slow to go out is none
    /// that isn't answered; one that gets stuck on its way is.
    #[tokio::test]
    async fn k68_the_wait_for_the_first_event_begins_with_the_last_byte() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        const LIMIT: Duration = Duration::from_millis(800);
        const LENGTH: usize = 24 << 20;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let body = [Bytes::from(vec![b'x'; LENGTH]), Bytes::new()];
        let through = [None, Some(url.clone())];
        for (proxy, stuck) in through.into_iter().flat_map(|proxy| [(proxy.clone(), false), (proxy, true)]) {
            let target = Target { url: url.clone(), proxy, ..target(false) };
            let upstream = Upstream { first_event_timeout: LIMIT, ..upstream() };
            let began = Instant::now();
            let (over, is_over) = tokio::sync::oneshot::channel();
            let generate = async {
                let answer = upstream.generate(&target, body.to_vec()).await;
                over.send(()).unwrap_or_default();
                answer
            };
            let reads = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut piece = vec![0; 2 << 20];
                // All of it takes longer than the limit, no piece does.
                for _ in 0..if stuck { 1 } else { LENGTH / piece.len() } {
                    socket.read_exact(&mut piece).await.unwrap();
                    tokio::time::sleep(LIMIT / 8).await;
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\n\r\n";
                if !stuck {
                    socket.write_all(head.as_bytes()).await.unwrap();
                }
                is_over.await.unwrap();
            };
            let (answer, ()) = tokio::join!(generate, reads);
            match (stuck, answer) {
                // The system takes some of it in advance.
                (false, Ok(body)) => assert!(began.elapsed() > LIMIT && body.sent() > began + LIMIT / 4),
                (true, Err(fault)) => assert_eq!(fault.kind, crate::proto::kiro::fault::FaultKind::Timeout),
                (_, Ok(_)) => panic!("stuck, and answered"),
                (_, Err(fault)) => panic!("{}", fault.message),
            }
        }
    }

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

    #[test]
    fn k16_trap_26_the_operating_system_is_the_same_at_every_reading() {
        assert_eq!(operating_system(), operating_system());
        assert!(operating_system().contains('#'));
    }
}
