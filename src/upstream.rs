//! The HTTP client towards Kiro: built once, timeouts by name (K67–K72, K103, K113).
//!
//! HTTP/1.1 with keep-alive, because one HTTP/2 connection carries about a hundred streams and the pool opens only one.
//! Dropping a response body closes its connection at once (K70); reading it to its end gives the connection back.
//!
//! A stream drives its own connection: one task reads from upstream and writes downstream, and nothing is woken in
//! between (docs/performance.md has the figures). Accounts with a proxy go through `reqwest`, as do token refresh and
//! everything else that isn't a stream.

mod connections;
mod exchange;
mod gate;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use connections::{Connections, LATE, Origin, POOL_IDLE, Resolver, TCP_KEEPALIVE, root_cause};
use exchange::{Wire, exchange};
pub use gate::{Gate, GateStatus};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::{Method, Request, Response, Uri};
use http_body::{Body as _, Frame, SizeHint};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{Code, Error};
use crate::policy::marks::{Circuit, Marks, Way};
use crate::policy::reach::Reach;
use crate::proto::kiro::client_identity as client;
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::route::{Call, Shape};
use crate::proto::said::{Known, Said};
use crate::secret::Secret;

/// Error bodies are read to this size and for this long (K42).
const MAX_ERROR_BODY: usize = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Proxies of accounts get a client each; of more than this many, the one that was asked for longest ago is given up.
const MAX_PROXIES: usize = 1024;

/// How long ways that rest are looked at, once a second.
const LOOK_WITHIN: Duration = Duration::from_millis(900);

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
    gate: Gate,
    marks: Mutex<Marks>,
    reached: Arc<Reached>,
    /// `KIRO_PROXY_URL` without its credentials.
    proxy: Option<String>,
}

/// Which ways no connection can be made on.
struct Reached {
    began: Instant,
    inside: Mutex<(Reach, HashMap<String, Probe>)>,
}

/// Where to look whether a way is open again.
#[derive(Clone)]
enum Probe {
    Host(Origin, Uri),
    Proxy(Uri),
}

impl Reached {
    fn new() -> Self {
        Self { began: Instant::now(), inside: Mutex::default() }
    }

    fn inside(&self) -> MutexGuard<'_, (Reach, HashMap<String, Probe>)> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection may be tried, and since when.
    fn may_try(&self, way: &str) -> Result<Duration, Fault> {
        let now = self.began.elapsed();
        self.inside().0.may_try(way, now).map(|()| now).map_err(|why| no_way(way, &why))
    }

    fn failed(&self, way: &str, why: &str, began: Duration, probe: Option<Probe>) -> Fault {
        // A proxy's words, or a certificate's.
        let why = Said::from(why);
        let why = why.as_str();
        let mut inside = self.inside();
        let (reach, probes) = &mut *inside;
        if reach.failed(way, why, began, self.began.elapsed()) {
            // Ways are forgotten when there are too many.
            probes.retain(|way, _| reach.rests(way).is_some());
            probes.extend(probe.map(|probe| (way.to_owned(), probe)));
            drop(inside);
            tracing::warn!(way, why, "no connection can be made: requests that need one fail at once until it can");
        }
        no_way(way, why)
    }

    fn made(&self, way: &str) {
        let mut inside = self.inside();
        let away = inside.0.made(way, self.began.elapsed());
        if let Some(away) = away {
            inside.1.remove(way);
            drop(inside);
            let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(way, away_ms, "connections can be made again");
        }
    }
}

/// Nothing was sent: the fault names the way, and marks no account.
fn no_way(way: &str, why: &str) -> Fault {
    Fault::unreachable(format!("{way}: {why}"))
}

/// The name of a way: its host, and the proxy before it without credentials.
fn way_of(host: &str, proxy: Option<&str>) -> String {
    match proxy {
        None => host.to_owned(),
        Some(proxy) => format!("{host} through the proxy {proxy}"),
    }
}

/// Host and port of a proxy's URL, and nothing else of it.
fn proxy_of(url: &str) -> String {
    let authority = url.parse::<Uri>().ok().and_then(|uri| uri.authority().cloned());
    authority.map_or_else(
        || "of the account".to_owned(),
        |authority| match authority.port() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        },
    )
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
    /// The resolved URL of the chat call.
    pub url: String,
    /// Which wire shape the URL speaks.
    pub shape: Shape,
    /// The bearer token.
    pub token: Secret,
    /// The account's machine id (K16).
    pub machine_id: String,
    /// The header `tokentype`: the kind of token, where upstream needs it.
    pub token_type: Option<&'static str>,
    /// The account's own proxy.
    pub proxy: Option<String>,
    /// The account's whole id, which isn't sent.
    pub account: Arc<str>,
}

impl Target {
    /// What upstream may repeat, and nobody else may hear.
    pub fn known(&self) -> Known {
        Known::of_call(&self.token, &self.machine_id, &self.account)
    }
}

/// What the headers say about the client (K103): constants of this process.
#[derive(Debug, Clone)]
pub struct Identity {
    version: String,
    agent_version: String,
    os: String,
}

/// As whom a call is made.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The bearer token.
    pub token: &'a Secret,
    /// The header `tokentype`; none for social and IdC accounts.
    pub token_type: Option<&'a str>,
    /// The account's machine id (K16).
    pub machine_id: &'a str,
    /// The profile's ARN, which only [`Call::Mcp`] has in a header.
    pub profile_arn: Option<&'a str>,
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
            identity: Identity {
                version: config.client_version.clone(),
                agent_version: config.client_agent_version.clone(),
                os: operating_system(),
            },
            gate: Gate::new(&config.client_version),
            marks: Mutex::default(),
            reached: Arc::new(Reached::new()),
            proxy: proxy.as_deref().map(proxy_of),
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

    /// Whether our client version is taken. It hears the end of each call.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Which of these ways to go: the first that nothing is said against (K118); none only for no way at all.
    pub fn choose(&self, ways: &[Way<'_>], refused: impl Fn(Shape) -> bool, now: Timestamp) -> Option<usize> {
        self.marks().choose(ways, refused, now)
    }

    /// The shapes and API regions that refused our client version lately (K109).
    pub fn gates(&self, now: Timestamp) -> Vec<(Shape, String)> {
        self.marks().gates(now)
    }

    /// A call ended: what it tells of its host and of our client version. `account`: the first characters of its id.
    pub fn heard(&self, call: Call, way: &Way<'_>, account: &str, outcome: Result<(), &Fault>, now: Timestamp) {
        self.gate.heard(call.as_str(), way.host, outcome);
        let change = self.marks().heard(way, account, outcome.err().map(|fault| fault.kind), now);
        match change {
            Some(Circuit::Closed) => tracing::info!(host = way.host, "upstream's host serves again"),
            Some(state) => tracing::warn!(
                host = way.host,
                state = state.as_str(),
                fault = outcome.err().map(|fault| fault.kind.as_str()),
                "upstream's host is left alone for a while, where there is another way"
            ),
            None => {}
        }
    }

    /// Every host that was called, with the state of its circuit (K120).
    pub fn hosts(&self, now: Timestamp) -> Vec<(String, Circuit)> {
        self.marks().hosts(now)
    }

    /// Whether no connection can be made to this URL from here, by this proxy of an account or the one of the
    /// configuration: a request that needs one fails at once.
    pub fn is_cut_off(&self, url: &str, proxy: Option<&str>) -> bool {
        self.reached.inside().0.rests(&self.way(host_of(url), proxy)).is_some()
    }

    /// Whether any way rests; nearly always none does.
    pub fn is_any_cut_off(&self) -> bool {
        self.reached.inside().0.resting().next().is_some()
    }

    /// The name of a way: the host, and the proxy before it, an account's own or that of the configuration.
    pub(crate) fn way(&self, host: &str, proxy: Option<&str>) -> String {
        let own = proxy.map(proxy_of);
        way_of(host, own.as_deref().or(self.proxy.as_deref()))
    }

    /// Looks whether ways that rest are open again, so that a server which gets no requests finds out, too; to be
    /// called once a second. Ends within that.
    pub async fn look_at_ways(&self) {
        let resting: Vec<(String, Probe)> = {
            let inside = self.reached.inside();
            inside.1.iter().map(|(way, probe)| (way.clone(), probe.clone())).collect()
        };
        let looks = resting.into_iter().map(|(way, probe)| async move {
            match probe {
                Probe::Host(origin, uri) => {
                    let Ok(io) = self.connections.connect(&origin, &uri).await else { return };
                    self.connections.keep(&origin, io);
                }
                Probe::Proxy(uri) => {
                    if !self.connections.answers(&uri).await {
                        return;
                    }
                }
            }
            self.reached.made(&way);
        });
        let all = futures_util::future::join_all(looks);
        tokio::time::timeout(LOOK_WITHIN, all).await.map(drop).unwrap_or_default();
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// `KIRO_FIRST_EVENT_TIMEOUT` of the request's last byte; on its way no byte may take longer than that after the
    /// one before (K68). The request's body comes in parts that follow each other.
    ///
    /// A reused connection that dies before any byte of the answer is no attempt: the request goes out once more (K69).
    ///
    /// # Errors
    /// Anything but a 200 with an event stream, classified (K42–K45).
    pub async fn generate(&self, target: &Target, body: Vec<Bytes>) -> Result<Body, Fault> {
        let caller = Caller {
            token: &target.token,
            token_type: target.token_type,
            machine_id: &target.machine_id,
            profile_arn: None,
        };
        let length = body.iter().map(Bytes::len).sum::<usize>();
        // Of one sending: a second one has an id of its own.
        let headers = || {
            let mut headers = self.identity.headers(target.shape, Call::Chat, &caller)?;
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            add_invocation_id(&mut headers);
            Ok(headers)
        };
        let progress = Arc::<Progress>::default();
        let sent = async {
            if target.proxy.is_some() || self.through_proxy {
                // On the heap: the way that most calls take needs a third of its room.
                Box::pin(self.generate_proxied(target, headers, body, &progress)).await
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
            target.token_type == Some("API_KEY"),
            &target.known(),
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
        headers: impl Fn() -> Result<HeaderMap, Fault>,
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
            *request.headers_mut() = headers()?;
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
        let way = way_of(host_of(&target.url), None);
        let began = self.reached.may_try(&way)?;
        let io = Box::pin(self.connections.connect(&origin, &uri)).await.map_err(|error| {
            self.reached.failed(&way, error.why(), began, Some(Probe::Host(origin.clone(), uri.clone())))
        })?;
        self.reached.made(&way);
        match exchange(io, &wire()?, self.connections.clone(), origin.clone(), progress).await {
            Ok(response) => Ok(response.map(BodyKind::Direct)),
            Err(_) => Err(broken()),
        }
    }

    async fn generate_proxied(
        &self,
        target: &Target,
        headers: impl Fn() -> Result<HeaderMap, Fault>,
        body: Vec<Bytes>,
        progress: &Arc<Progress>,
    ) -> Result<Response<BodyKind>, Fault> {
        let client = self.client_through(target.proxy.as_deref())?;
        let send = |client: &reqwest::Client| {
            let body = reqwest::Body::wrap(Parts::new(body.clone(), progress.clone()));
            Ok(client.post(&target.url).headers(headers()?).body(body).send())
        };
        let way = self.way(host_of(&target.url), target.proxy.as_deref());
        let began = self.reached.may_try(&way)?;
        let connected = Arc::new(Connected { made: AtomicBool::new(false), way, reached: self.reached.clone() });
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

impl Identity {
    /// `user-agent` and `x-amz-user-agent` of a call with an access token (K103).
    pub fn agents(&self, shape: Shape, call: Call, machine_id: &str) -> [String; 2] {
        let Self { version, agent_version, .. } = self;
        let (sdk, api, mode) = match (call, shape) {
            (Call::Chat | Call::Mcp, Shape::Q) => (client::STREAMING_SDK, "codewhispererstreaming", "E"),
            (Call::Chat | Call::Mcp, Shape::Runtime) => (client::SERVICE_SDK, "kiroruntime", "N"),
            (Call::Usage, _) | (Call::Models | Call::Profiles, Shape::Q) => {
                (client::SERVICE_SDK, "codewhispererruntime", "N,E")
            }
            (Call::Models | Call::Profiles, Shape::Runtime) => (client::SERVICE_SDK, "kirocontrolplanebearer", "N,E"),
        };
        let mut ide = ["KiroIDE-", version, "-", machine_id].concat();
        if shape == Shape::Runtime && call != Call::Usage {
            ide.push_str("-KAS/");
            ide.push_str(agent_version);
        }
        [self.sdk_agent(sdk, api, mode, &ide), ["aws-sdk-js/", sdk, " ", &ide].concat()]
    }

    /// `user-agent` and `x-amz-user-agent` of the OIDC host (K100): no version, no machine id.
    pub fn oidc_agents(&self) -> [String; 2] {
        let sdk = client::OIDC_SDK;
        [self.sdk_agent(sdk, "sso-oidc", "E", "KiroIDE"), format!("aws-sdk-js/{sdk} KiroIDE")]
    }

    /// `user-agent` of social refresh (K103).
    pub fn social_user_agent(&self, machine_id: &str) -> String {
        format!("KiroIDE-{}-{machine_id}", self.version)
    }

    /// `user-agent` of a refresh at an organisation's own provider (K82): no machine id.
    pub fn provider_user_agent(&self) -> String {
        format!("KiroIDE-{}", self.version)
    }

    fn sdk_agent(&self, sdk: &str, api: &str, mode: &str, ide: &str) -> String {
        let Self { os, .. } = self;
        let (name, node) = ("aws-sdk-js/", client::NODE);
        // Made for every call, and cheaper than `format!`.
        [name, sdk, " ua/2.1 os/", os, " lang/js md/nodejs#", node, " api/", api, "#", sdk, " m/", mode, " ", ide]
            .concat()
    }

    /// Every header of a call but `content-length` and `amz-sdk-invocation-id` (K113).
    ///
    /// # Errors
    /// A value of the account can't stand in a header: fault `Network`.
    pub fn headers(&self, shape: Shape, call: Call, caller: &Caller<'_>) -> Result<HeaderMap, Fault> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        const AWS_JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.0");
        let text = |value: &str| {
            HeaderValue::from_str(value).map_err(|_| Fault::network("a header value of the account is not printable"))
        };
        let named = HeaderName::from_static;
        let mut headers = HeaderMap::with_capacity(14);
        match (call, shape) {
            (Call::Usage, _) => {}
            (Call::Chat | Call::Mcp, Shape::Q) => drop(headers.insert(CONTENT_TYPE, JSON)),
            _ => drop(headers.insert(CONTENT_TYPE, AWS_JSON)),
        }
        if shape == Shape::Q || call == Call::Usage {
            headers.insert(ACCEPT, JSON);
        }
        let mut bearer = text(&format!("Bearer {}", caller.token.expose()))?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
        if let Some(kind) = caller.token_type {
            headers.insert(named("tokentype"), text(kind)?);
        }
        if let Some(target) = target(shape, call) {
            headers.insert(named("x-amz-target"), HeaderValue::from_static(target));
        }
        let [user_agent, amz_user_agent] = self.agents(shape, call, caller.machine_id);
        headers.insert(named("x-amz-user-agent"), text(&amz_user_agent)?);
        headers.insert(USER_AGENT, text(&user_agent)?);
        let tries =
            if shape == Shape::Runtime && call != Call::Usage { "attempt=1; max=3" } else { "attempt=1; max=1" };
        headers.insert(named("amz-sdk-request"), HeaderValue::from_static(tries));
        match (call, shape) {
            (Call::Chat, Shape::Q) => {
                headers.insert(named("x-amzn-kiro-agent-mode"), HeaderValue::from_static("vibe"));
            }
            (Call::Chat, Shape::Runtime) => {
                headers.insert(named("x-kiro-attempt"), HeaderValue::from_static("1;max=3"));
                headers.insert(named("x-amzn-kiro-client-attribution"), HeaderValue::from_static("kiro-ide"));
            }
            _ => {}
        }
        if call == Call::Mcp
            && let Some(arn) = caller.profile_arn
        {
            headers.insert(named("x-amzn-kiro-profile-arn"), text(arn)?);
        }
        Ok(headers)
    }
}

/// The host and port of a URL, as it stands there.
pub fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// `x-amz-target` of the calls that go to the root path (K111).
fn target(shape: Shape, call: Call) -> Option<&'static str> {
    match (shape, call) {
        (Shape::Q, Call::Models) => Some("AmazonCodeWhispererService.ListAvailableModels"),
        (Shape::Q, Call::Profiles) => Some("AmazonCodeWhispererService.ListAvailableProfiles"),
        (Shape::Runtime, Call::Chat) => Some("KiroRuntimeService.GenerateAssistantResponse"),
        (Shape::Runtime, Call::Mcp) => Some("KiroRuntimeService.InvokeMCP"),
        (Shape::Runtime, Call::Models) => Some("KiroControlPlaneBearerService.ListAvailableModels"),
        (Shape::Q, Call::Chat | Call::Mcp) | (_, Call::Usage) | (Shape::Runtime, Call::Profiles) => None,
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

/// Where a proxy's host takes connections.
fn probe_uri(proxy: &str) -> Option<Uri> {
    format!("http://{}", proxy_of(proxy)).parse().ok()
}

/// One a sending (K113).
pub(crate) fn add_invocation_id(headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        headers.insert(HeaderName::from_static("amz-sdk-invocation-id"), id);
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
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

/// `linux#6.1.0`, `darwin#…`, `win32#…`: Node.js's names (`{OS}` in K103), read once at start so that it never wanders
/// (K16).
fn operating_system() -> String {
    #[cfg(unix)]
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let release = "10.0.22631".to_owned();
    let name = match std::env::consts::OS {
        "macos" => "darwin",
        "windows" => "win32",
        _ => "linux",
    };
    let printable: String = release.chars().filter(|c| c.is_ascii_graphic()).collect();
    format!("{name}#{printable}")
}

tokio::task_local! {
    /// Whether the request made a connection: a failure on a reused one means something else (K69).
    static CONNECTED: Arc<Connected>;
}

/// What a request through a proxy hears of its connection.
struct Connected {
    made: AtomicBool,
    way: String,
    reached: Arc<Reached>,
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
            let tell = |connected: &Arc<Connected>| {
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
    use super::*;
    use crate::config::{Face, RawConfig};

    fn upstream() -> Upstream {
        Upstream::new(&RawConfig::default().resolve(Face::Server).unwrap()).unwrap()
    }

    fn target(api_key: bool) -> Target {
        Target {
            account: "account-1".into(),
            url: "https://q.us-east-1.amazonaws.com/generateAssistantResponse".into(),
            token: Secret::new("t"),
            machine_id: "ab".repeat(32),
            shape: Shape::Q,
            token_type: api_key.then_some("API_KEY"),
            proxy: None,
        }
    }

    /// A81: each row of K103 and K113 exactly.
    #[test]
    fn headers_of_every_call_a81_k4_k14_k103_k111_k113_trap_22() {
        let identity = Identity { version: "V".into(), agent_version: "G".into(), os: "linux#6.1".into() };
        let token = Secret::new("t");
        let caller = Caller { token: &token, token_type: None, machine_id: "M", profile_arn: Some("arn") };
        let node = client::NODE;
        let agent = |sdk: &str, api: &str, mode: &str, ide: &str| {
            format!("aws-sdk-js/{sdk} ua/2.1 os/linux#6.1 lang/js md/nodejs#{node} api/{api}#{sdk} m/{mode} {ide}")
        };
        let q_chat = agent("1.0.34", "codewhispererstreaming", "E", "KiroIDE-V-M");
        let runtime_chat = agent("1.0.0", "kiroruntime", "N", "KiroIDE-V-M-KAS/G");
        let service = agent("1.0.0", "codewhispererruntime", "N,E", "KiroIDE-V-M");
        let control = agent("1.0.0", "kirocontrolplanebearer", "N,E", "KiroIDE-V-M-KAS/G");
        let (q, kas) = ("aws-sdk-js/1.0.34 KiroIDE-V-M", "aws-sdk-js/1.0.0 KiroIDE-V-M-KAS/G");
        let plain = "aws-sdk-js/1.0.0 KiroIDE-V-M";
        let (json, aws) = (Some("application/json"), Some("application/x-amz-json-1.0"));
        let one = "attempt=1; max=1";
        let three = "attempt=1; max=3";
        type Row<'a> =
            (Shape, Call, &'a str, &'a str, Option<&'a str>, Option<&'a str>, &'a str, &'a [(&'a str, &'a str)]);
        let table: [Row<'_>; 10] = [
            (Shape::Q, Call::Chat, &q_chat, q, json, json, one, &[("x-amzn-kiro-agent-mode", "vibe")]),
            (Shape::Q, Call::Mcp, &q_chat, q, json, json, one, &[("x-amzn-kiro-profile-arn", "arn")]),
            (Shape::Q, Call::Usage, &service, plain, None, json, one, &[]),
            (
                Shape::Q,
                Call::Models,
                &service,
                plain,
                aws,
                json,
                one,
                &[("x-amz-target", "AmazonCodeWhispererService.ListAvailableModels")],
            ),
            (
                Shape::Q,
                Call::Profiles,
                &service,
                plain,
                aws,
                json,
                one,
                &[("x-amz-target", "AmazonCodeWhispererService.ListAvailableProfiles")],
            ),
            (
                Shape::Runtime,
                Call::Chat,
                &runtime_chat,
                kas,
                aws,
                None,
                three,
                &[
                    ("x-amz-target", "KiroRuntimeService.GenerateAssistantResponse"),
                    ("x-kiro-attempt", "1;max=3"),
                    ("x-amzn-kiro-client-attribution", "kiro-ide"),
                ],
            ),
            (
                Shape::Runtime,
                Call::Mcp,
                &runtime_chat,
                kas,
                aws,
                None,
                three,
                &[("x-amz-target", "KiroRuntimeService.InvokeMCP"), ("x-amzn-kiro-profile-arn", "arn")],
            ),
            (Shape::Runtime, Call::Usage, &service, plain, None, json, one, &[]),
            (
                Shape::Runtime,
                Call::Models,
                &control,
                kas,
                aws,
                None,
                three,
                &[("x-amz-target", "KiroControlPlaneBearerService.ListAvailableModels")],
            ),
            (Shape::Runtime, Call::Profiles, &control, kas, aws, None, three, &[]),
        ];
        for (shape, call, user_agent, amz, content_type, accept, tries, more) in table {
            let headers = identity.headers(shape, call, &caller).unwrap();
            let has = |name: &str| header(&headers, name);
            let what = format!("{shape} {}", call.as_str());
            assert_eq!((has("user-agent"), has("x-amz-user-agent")), (Some(user_agent), Some(amz)), "{what}");
            assert_eq!((has("content-type"), has("accept")), (content_type, accept), "{what}");
            assert_eq!((has("amz-sdk-request"), has("authorization")), (Some(tries), Some("Bearer t")), "{what}");
            assert!(headers["authorization"].is_sensitive());
            for (name, value) in more {
                assert_eq!(has(name), Some(*value), "{what}");
            }
            let common = 4 + usize::from(content_type.is_some()) + usize::from(accept.is_some());
            assert_eq!(headers.len(), common + more.len(), "{what}: {headers:?}");
        }
        let keyed = Caller { token_type: Some("API_KEY"), ..caller };
        assert_eq!(identity.headers(Shape::Q, Call::Chat, &keyed).unwrap()["tokentype"], "API_KEY");
        let oidc = agent("3.980.0", "sso-oidc", "E", "KiroIDE");
        assert_eq!(identity.oidc_agents(), [oidc, "aws-sdk-js/3.980.0 KiroIDE".to_owned()]);
        assert_eq!(identity.social_user_agent("M"), "KiroIDE-V-M");
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
    async fn all_parts_go_out_with_content_length_k20_k121() {
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

    /// K68: the first event is waited for from the request's last byte on. A long request that is slow to go out is
    /// none that isn't answered; one that gets stuck on its way is.
    #[tokio::test]
    async fn the_wait_for_the_first_event_begins_with_the_last_byte_k68() {
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
    fn the_operating_system_is_the_same_at_every_reading_k16_trap_26() {
        assert_eq!(operating_system(), operating_system());
        assert!(operating_system().contains('#'));
    }
}
