//! The HTTP client towards Kiro: built once, timeouts by name (K67–K72, K103, K113, K143).
//!
//! HTTP/1.1 with keep-alive, because one HTTP/2 connection carries about a hundred streams and the pool opens only one.
//! Dropping a response body closes its connection at once (K70); reading it to its end gives the connection back.
//!
//! A stream drives its own connection, through a proxy too: one task reads from upstream and writes downstream, and
//! nothing is woken in between (docs/performance.md has the figures). `reqwest` makes the other calls: token refresh,
//! usage and the sign-in.

mod ahead;
mod clients;
mod connections;
mod connector;
mod exchange;
mod gate;
mod identity;
mod probes;
mod route;
mod ways;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clients::{Clients, unusable_proxy};
use connections::Connections;
use connector::Connector;
pub(crate) use connector::root_cause;
pub use exchange::Cut;
use exchange::{AnswerBody, SendProgress, WireRequest, exchange};
pub use gate::{Gate, GateStatus};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Response, Uri};
pub(crate) use identity::add_invocation_id;
use identity::operating_system;
pub use identity::{CallAuth, Identity};
use jiff::Timestamp;
use route::{Proxy, Route};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use tokio::time::Instant;
use ways::RestingWays;

use crate::config::Config;
use crate::error::{Code, Error};
use crate::policy::marks::{Circuit, Marks, Way};
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::request::Parts;
use crate::proto::kiro::route::{Operation, Shape};
use crate::proto::said::KnownSecrets;
use crate::secret::Secret;

/// Most bytes of an error body that are read, and the longest time for it (K42).
const MAX_ERROR_BODY: usize = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of an upstream answer. Dropping it before its end closes the connection (K70).
pub struct UpstreamBody {
    answer: AnswerBody,
    sent: Instant,
}

impl UpstreamBody {
    /// When the request's last byte went out: the wait for the first event begins there (K68).
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// The next bytes, none at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        self.answer.poll_chunk(cx)
    }

    /// Whether its end is already known.
    pub fn is_ended(&self) -> bool {
        self.answer.is_ended()
    }

    /// The next bytes, none at the end and none after a cut.
    async fn chunk(&mut self) -> Option<Bytes> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await?.ok()
    }
}

/// The calls of Kiro, with the same limits through every proxy.
pub struct Upstream {
    connector: Connector,
    connections: Arc<Connections>,
    clients: Clients,
    /// Connections since the start, for a request each.
    opened: Arc<AtomicU64>,
    /// Those that no request waited for, and how many couldn't be made.
    opened_ahead: AtomicU64,
    failed_ahead: AtomicU64,
    /// `KIRO_PROXY_URL`.
    proxy: Option<Arc<Proxy>>,
    connect_timeout: Duration,
    first_event_timeout: Duration,
    identity: Identity,
    gate: Gate,
    marks: Mutex<Marks>,
    reached: RestingWays,
}

/// Address and identity of one attempt.
#[derive(Debug, Clone)]
pub struct ChatTarget {
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

impl ChatTarget {
    /// The secrets of the call, which are removed from error texts.
    pub fn known(&self) -> KnownSecrets {
        KnownSecrets::of_call(&self.token, &self.machine_id, &self.account)
    }
}

impl Upstream {
    /// Builds the clients' common parts and the client of `KIRO_PROXY_URL`, or of no proxy.
    ///
    /// # Errors
    /// [`Code::Config`] when the proxy's URL or the file of certificate authorities can't be used.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let tls = tls_config(config)?;
        let opened = Arc::<AtomicU64>::default();
        let timeout = config.connect_timeout;
        let url = config.proxy_url.as_ref().map(Secret::expose);
        let refuse = |what: &str| Error::new(Code::Config, format!("KIRO_PROXY_URL: {what}"));
        Ok(Self {
            connector: Connector::new(tls.clone(), timeout),
            connections: Arc::new(Connections::new(config.keep_idle)),
            clients: Clients::new(tls, timeout, url, opened.clone()).map_err(|e| refuse(&e.to_string()))?,
            opened,
            opened_ahead: AtomicU64::new(0),
            failed_ahead: AtomicU64::new(0),
            proxy: match url.map(Proxy::parse) {
                None => None,
                Some(Some(proxy)) => Some(Arc::new(proxy)),
                Some(None) => return Err(refuse("can't be used")),
            },
            connect_timeout: timeout,
            first_event_timeout: config.first_event_timeout,
            identity: Identity {
                version: config.client_version.clone(),
                agent_version: config.client_agent_version.clone(),
                os: operating_system(),
            },
            gate: Gate::new(&config.client_version),
            marks: Mutex::default(),
            reached: RestingWays::new(),
        })
    }

    /// Connections opened since the start for a request each, over all proxies.
    pub fn connects(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// The client of an account's token refresh and usage calls.
    ///
    /// # Errors
    /// The account's proxy URL can't be used: fault `Network`, which names the field.
    pub fn client(&self, proxy: Option<&str>) -> Result<reqwest::Client, Fault> {
        self.clients.through(proxy)
    }

    /// A client for an address that isn't Kiro's: without a proxy, and it follows no redirection.
    ///
    /// # Errors
    /// [`Code::Config`]: it can't be made.
    pub fn outside_client(&self) -> Result<reqwest::Client, Error> {
        self.clients.direct().map_err(|error| Error::new(Code::Config, error.to_string()))
    }

    /// Whether upstream takes our client version.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The place of the way to use: the first without a mark against it (K118). None only when `ways` is empty.
    pub fn choose(&self, ways: &[Way<'_>], refused: impl Fn(Shape) -> bool, now: Timestamp) -> Option<usize> {
        self.marks().choose(ways, refused, now)
    }

    /// The shapes and API regions that refused our client version lately (K109).
    pub fn gates(&self, now: Timestamp) -> Vec<(Shape, String)> {
        self.marks().gates(now)
    }

    /// A call ended: notes its lessons about the host and our client version. `account`: the first characters of its
    /// id.
    pub fn heard(&self, call: Operation, way: &Way<'_>, account: &str, outcome: Result<(), &Fault>, now: Timestamp) {
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

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The identity in the user-agent headers.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Closes idle connections that are too old (K67). Call it once a second.
    pub fn sweep(&self) {
        self.connections.sweep();
    }

    /// Sends one request and waits for the head of the answer, at most `KIRO_FIRST_EVENT_TIMEOUT` after the request's
    /// last byte. While the request goes out, no pause between two bytes may be longer than that (K68). The request's
    /// body comes in consecutive segments.
    ///
    /// A reused connection that dies before any byte of the answer isn't an attempt: the request goes out once more
    /// (K69).
    ///
    /// # Errors
    /// Anything but a 200 with an event stream, classified (K42–K45).
    pub async fn generate(&self, target: &ChatTarget, body: Parts) -> Result<UpstreamBody, Fault> {
        let caller = CallAuth {
            token: &target.token,
            token_type: target.token_type,
            machine_id: &target.machine_id,
            profile_arn: None,
        };
        let length = body.size();
        // Each sending has another id.
        let headers = || {
            let mut headers = self.identity.headers(target.shape, Operation::Chat, &caller)?;
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            add_invocation_id(&mut headers);
            Ok(headers)
        };
        let progress = SendProgress::default();
        let sent = self.send(target, headers, body, &progress);
        let response = self.in_time(sent, &progress).await?;
        let (parts, body) = response.into_parts();
        let kind = header(&parts.headers, "content-type").and_then(|kind| kind.split(';').next());
        let body = UpstreamBody { answer: body, sent: progress.last().unwrap_or_else(Instant::now) };
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

    /// Waits for the head of the answer (K68). Connecting has its own limit; without that, this one applies.
    async fn in_time<T>(
        &self,
        sending: impl Future<Output = Result<T, Fault>>,
        progress: &SendProgress,
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
                // Nothing is sent yet, so the limit begins now at the earliest.
                None if connecting => now + limit,
                _ => return Err(Fault::timeout("no answer within KIRO_FIRST_EVENT_TIMEOUT")),
            };
        }
    }

    /// The parsed URL, and the way to it.
    fn route(&self, url: &str, proxy: Option<&str>) -> Result<(Uri, Route), Fault> {
        let unusable = || Fault::network("the upstream URL can't be used");
        let uri: Uri = url.parse().map_err(|_| unusable())?;
        let proxy = match proxy {
            None => self.proxy.clone(),
            Some(url) => Some(Arc::new(Proxy::parse(url).ok_or_else(unusable_proxy)?)),
        };
        let route = Route::new(&uri, proxy).ok_or_else(unusable)?;
        Ok((uri, route))
    }

    async fn send(
        &self,
        target: &ChatTarget,
        headers: impl Fn() -> Result<HeaderMap, Fault>,
        body: Parts,
        progress: &SendProgress,
    ) -> Result<Response<AnswerBody>, Fault> {
        let (uri, route) = self.route(&target.url, target.proxy.as_deref())?;
        let authority = uri.authority().map_or("", Authority::as_str);
        let wire = || -> Result<WireRequest, Fault> {
            let mut headers = headers()?;
            let target = match route.forwarder() {
                Some(proxy) => {
                    proxy.sign(&mut headers);
                    uri.to_string()
                }
                None => uri.path_and_query().map_or_else(|| "/".to_owned(), PathAndQuery::to_string),
            };
            Ok(WireRequest::new(&Method::POST, &target, authority, &headers, body.clone()))
        };
        let broken = || Fault::network("the connection broke before the answer began");
        if let Some((io, age)) = self.connections.idle(&route) {
            match exchange(io, &wire()?, self.connections.clone(), route.clone(), progress).await {
                Ok(response) => return Ok(response),
                // An old connection that upstream had given up.
                Err(broke) if broke.unanswered => self.connections.died(&route, age),
                Err(_) => return Err(broken()),
            }
        }
        let began = self.reached.may_try(&route)?;
        let io = Box::pin(self.connector.connect(&route, &self.opened))
            .await
            .map_err(|error| self.reached.failed(&route, &error, began))?;
        self.reached.made(&route);
        let wire = wire()?;
        exchange(io, &wire, self.connections.clone(), route, progress).await.map_err(|_| broken())
    }
}

/// The host and port of a URL, as it stands there.
pub fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Reads the body of an error answer, bounded in size and time; the part before a limit counts (K42).
async fn read_error_body(mut body: UpstreamBody) -> BytesMut {
    let mut text = BytesMut::new();
    let read = async {
        while let Some(chunk) = body.chunk().await
            && text.len() < MAX_ERROR_BODY
        {
            let room = MAX_ERROR_BODY - text.len();
            text.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
    };
    // A timeout isn't a failure here: then the status alone classifies.
    tokio::time::timeout(ERROR_BODY_TIMEOUT, read).await.unwrap_or_default();
    text
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Face, RawConfig};

    pub(super) fn upstream() -> Upstream {
        Upstream::new(&RawConfig::default().resolve(Face::Server).unwrap()).unwrap()
    }

    fn target(api_key: bool) -> ChatTarget {
        ChatTarget {
            account: "account-1".into(),
            url: "https://q.us-east-1.amazonaws.com/generateAssistantResponse".into(),
            token: Secret::new("t"),
            machine_id: "ab".repeat(32),
            shape: Shape::Q,
            token_type: api_key.then_some("API_KEY"),
            proxy: None,
        }
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
        let target = ChatTarget { url: format!("http://{}/", listener.local_addr().unwrap()), ..target(false) };
        let upstream = upstream();
        // Small enough for one write, and larger than what the HTTP client gathers.
        for head in [Bytes::from_static(b"{\"a\":1"), Bytes::from(vec![b'x'; 3 << 20])] {
            // As many as a body has, and more than one write takes.
            for tail in [&["", "}"][..], &[",\"b\":2"; 200]] {
                let parts =
                    std::iter::once(head.clone()).chain(tail.iter().map(|part| Bytes::from_static(part.as_bytes())));
                let (parts, tail) = (parts.collect::<Vec<_>>(), tail.concat().into_bytes());
                let (answer, (seen, body)) =
                    tokio::join!(upstream.generate(&target, parts.into()), answer_one(&listener));
                assert!(answer.is_ok(), "{:?}", answer.err());
                assert!(seen.contains(&format!("\r\ncontent-length: {}\r\n", head.len() + tail.len())), "{seen}");
                assert!(!seen.contains("transfer-encoding"), "{seen}");
                assert!(body == [&head[..], &tail].concat(), "the body changed on its way");
            }
        }
    }

    /// K68: the wait for the first event begins with the request's last byte. A long request that goes out slowly isn't
    /// a timeout; one that gets stuck on its way is.
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
            let target = ChatTarget { url: url.clone(), proxy, ..target(false) };
            let upstream = Upstream { first_event_timeout: LIMIT, ..upstream() };
            let began = Instant::now();
            let (over, is_over) = tokio::sync::oneshot::channel();
            let generate = async {
                let answer = upstream.generate(&target, body.to_vec().into()).await;
                over.send(()).unwrap_or_default();
                answer
            };
            let reads = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut piece = vec![0; 2 << 20];
                // The whole takes longer than the limit, but no piece does.
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
}
