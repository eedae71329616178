//! Routes, keys, SSE bodies and drain: the HTTP face (contract/messages.md).
//!
//! [`handle`] answers one request, whichever face accepted it: `kiro-server`, `listen()` in the addon, or `handler()`
//! on a Node.js server. [`listen`] accepts connections and drains them at the end.

mod body;
mod debug;
mod events;
mod exchange;
mod listen;
mod query;
mod route;
mod site;
mod socket;
mod status;
mod tls;

use std::borrow::Cow;
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::Instant;

use body::EVENT_STREAM;
pub use body::{ResponseBody, Sse};
pub use debug::{Debugging, debug};
pub use listen::{Listening, bind, listen, serve};
pub(crate) use query::query_value;
use route::Route;
#[cfg(feature = "addon")]
pub(crate) use socket::{ClientSocket, connected, unsent};
pub use tls::Tls;

use crate::error::{Code, Error};
use crate::gateway::{
    Body, Call, Gateway, KeyCheck, KeyHolder, KeyPlace, Leniency, LoggedRequest, NamedKey, SummaryCell, client_key_hash,
};
use crate::proto::messages::error::{ApiError, ErrorType};
use crate::proto::messages::request::{Ignored, SystemMode};

/// From so many bytes on a body takes more than the round trip that it takes to connect.
const LONG_BODY: u64 = 32 * 1024;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METRICS_TEXT: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The face's knowledge about a request beyond its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peer {
    /// The connection comes from a loopback address: `/metrics` and `/status` need no key then.
    pub loopback: bool,
    /// Served even without a configured client key, because the server listens on a loopback address.
    pub keyless: bool,
    /// The caller has checked the key, or needs none (`handler({auth:'none'})`).
    pub trusted: bool,
}

impl Peer {
    /// Whether nothing says whose request it is, because no key is configured.
    fn is_nobody(self, gateway: &Gateway) -> bool {
        gateway.is_open() && !self.trusted
    }
}

/// Additions of the program around a handler; they travel in the request's extensions.
#[derive(Clone, Default)]
pub struct Terms {
    /// Operator's system text (N13). For messages only: an estimate counts what the client sent.
    pub system: Option<(SystemMode, String)>,
    /// Sees the body of a messages request before it is answered.
    pub hear: Option<Hear>,
    /// Gets the facts of a message's answer as soon as it has one (N84).
    pub summary: Option<SummarySlot>,
    /// What need not be in the request.
    pub lenient: Leniency,
}

/// The type of [`Terms::summary`].
pub type SummarySlot = Arc<OnceLock<Arc<SummaryCell>>>;

/// The type of [`Terms::hear`].
pub type Hear = Arc<dyn Fn(&Bytes) + Send + Sync>;

/// Answers one request. Dropping the returned future or the response's body cancels everything it started (M10).
pub async fn handle<B>(gateway: &Gateway, request: Request<B>, peer: Peer) -> Response<ResponseBody>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let request_id = gateway.new_request_id();
    let head_only = request.method() == Method::HEAD;
    let route = Route::of(request.uri().path());
    let said = TurnedAway {
        route: route.as_ref().map_or("other", Route::word),
        client_request_id: client_request_id(&request),
    };
    let mut response = match answer(gateway, request, route, peer, &request_id).await {
        Ok(response) => response,
        Err(refusal) => {
            if !refusal.is_told {
                let line = LoggedRequest {
                    request_id: &request_id,
                    client_request_id: said.client_request_id.as_deref(),
                    key: refusal.key.as_deref(),
                };
                gateway.turned_away(said.route, line, refusal.error.status);
            }
            refusal.response(&request_id)
        }
    };
    finish_headers(&mut response, &request_id, !peer.is_nobody(gateway));
    if gateway.is_simulated() {
        // With KIRO_UPSTREAM=simulator every answer says so.
        response.headers_mut().insert("x-kiro-upstream", HeaderValue::from_static("simulator"));
    }
    if head_only {
        // Like GET, without the body (M8).
        *response.body_mut() = ResponseBody::empty();
    }
    response
}

/// The log line's facts of a request that was turned away.
struct TurnedAway {
    route: &'static str,
    client_request_id: Option<String>,
}

fn client_request_id<B>(request: &Request<B>) -> Option<String> {
    request.headers().get("x-request-id").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The answer to a request that is unanswered when its server ends.
fn shutting_down(gateway: &Gateway) -> Response<ResponseBody> {
    unread(gateway, Error::new(Code::Closed, "the server is shutting down").into())
}

/// The answer to a request without a host, or with two: a proxy and this server may read different requests (RFC 9112,
/// 3.2).
fn without_one_host(gateway: &Gateway) -> Response<ResponseBody> {
    let message = "host: a request must have this header exactly once";
    unread(gateway, HttpError::new(400, ErrorType::InvalidRequest, message))
}

/// The answer to a request that is refused unread.
fn unread(gateway: &Gateway, refusal: HttpError) -> Response<ResponseBody> {
    let request_id = gateway.new_request_id();
    let mut response = refusal.response(&request_id);
    finish_headers(&mut response, &request_id, !gateway.is_open());
    response
}

/// An error answer.
struct HttpError {
    error: ApiError,
    /// The gateway has written its log line.
    is_told: bool,
    /// The name of the client's key, where its limits are the reason.
    key: Option<Arc<str>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl HttpError {
    fn new(status: u16, kind: ErrorType, message: impl Into<String>) -> Self {
        let headers = if (400..429).contains(&status) {
            vec![(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"))]
        } else {
            Vec::new()
        };
        Self { error: ApiError::with_status(status, kind, message), is_told: false, key: None, headers }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn response(self, request_id: &str) -> Response<ResponseBody> {
        let mut response = json(self.error.status, self.error.body(request_id));
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<Error> for HttpError {
    fn from(error: Error) -> Self {
        let headers = error
            .headers()
            .into_iter()
            .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?)))
            .collect();
        Self { error: error.api_error(), is_told: false, key: None, headers }
    }
}

async fn answer<B>(
    gateway: &Gateway,
    request: Request<B>,
    route: Option<Route>,
    peer: Peer,
    request_id: &str,
) -> Result<Response<ResponseBody>, HttpError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let is_for_the_operator = route.as_ref().is_some_and(Route::is_for_the_operator);
    if peer.is_nobody(gateway) {
        refuse_strangers(gateway, &request)?;
    }
    if request.method() == Method::OPTIONS {
        return Ok(preflight(request.headers()));
    }
    // Checks in the order of M1: path, method, key, size, JSON, fields, model, capacity, upstream.
    let Some(route) = route else {
        return Err(HttpError::new(404, ErrorType::NotFound, "unknown path"));
    };
    if !route.allows(request.method()) {
        let allow = HeaderValue::from_static(route.allow());
        return Err(
            HttpError::new(405, ErrorType::InvalidRequest, "method not allowed here").with(http::header::ALLOW, allow)
        );
    }
    let is_home = is_for_the_operator && peer.loopback && !site::is_from_elsewhere(&request);
    let mut holder = None;
    if route.needs_key() && !peer.trusted && !is_home {
        holder = check_key(gateway, &request, &route, peer.keyless)?;
    }
    match route {
        Route::Messages => messages(gateway, request, request_id, holder).await,
        Route::CountTokens => {
            let lenient = request.extensions().get::<Terms>().map(|terms| terms.lenient.clone()).unwrap_or_default();
            let body = read_body(gateway, request).await?;
            Ok(json(200, to_json(&gateway.count_in_turn(&body, &lenient).await?.json())?))
        }
        Route::Models => Ok(json(200, models_page(gateway, request.uri().query().unwrap_or_default())?)),
        Route::Model(id) => match gateway.model(&id) {
            Some(model) => Ok(json(200, to_json(&model)?)),
            None => Err(HttpError::new(404, ErrorType::NotFound, format!("model: unknown model '{}'", printable(&id)))),
        },
        Route::Health => {
            let health = gateway.health();
            Ok(json(if health.can_serve { 200 } else { 503 }, to_json(&health)?))
        }
        // Liveness: a process supervisor may restart a process that doesn't answer here.
        Route::Live => Ok(json(200, br#"{"status":"alive"}"#.to_vec())),
        Route::Metrics => {
            let mut response = Response::new(ResponseBody::full(gateway.metrics().into_bytes()));
            response.headers_mut().insert(CONTENT_TYPE, METRICS_TEXT);
            Ok(response)
        }
        Route::Status => Ok(status::page()),
        Route::StatusEvents => Ok(status::events(gateway)),
        // The body is dropped unread: telemetry of a client must not fail loudly (C38).
        Route::EventLogging => Ok(json(200, br#"{"success":true}"#.to_vec())),
        Route::Root => Ok(json(
            200,
            to_json(&serde_json::json!({ "name": "kiro-messages", "version": env!("CARGO_PKG_VERSION") }))?,
        )),
    }
}

async fn messages<B>(
    gateway: &Gateway,
    mut request: Request<B>,
    request_id: &str,
    holder: Option<KeyHolder>,
) -> Result<Response<ResponseBody>, HttpError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    // Before the body is read: a client over its limit costs nothing.
    let key_place = holder.as_ref().and_then(|holder| holder.named.as_ref()).map(|key| enter(gateway, key));
    let key_place = key_place.transpose()?.map(Arc::new);
    let Terms { system, hear, lenient, summary } = request.extensions_mut().remove().unwrap_or_default();
    let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let call = Call {
        request_id: Some(request_id.to_owned()),
        client_request_id: client_request_id(&request),
        trace_parent: text("traceparent"),
        session: text("x-claude-code-session-id"),
        gateway_session: text("x-session-id"),
        client_key: holder.map(|holder| holder.digest).or_else(|| first_key(&request)),
        key_place,
        system,
        lenient,
        ..Call::default()
    };
    if announced(request.headers()).is_some_and(|length| length >= LONG_BODY) {
        gateway.expects_request();
    }
    let body = read_body(gateway, request).await?;
    if let Some(hear) = hear {
        hear(body.bytes());
    }
    let answer = gateway.messages(body, call).await;
    let answer = answer.map_err(|error| HttpError { is_told: true, ..error.into() })?;
    if let Some(told) = summary {
        told.get_or_init(|| answer.summary());
    }
    match answer {
        crate::gateway::Answer::Stream(stream) => {
            let ignored = stream.summary().ignored();
            let mut response = Response::new(ResponseBody::stream(stream));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, EVENT_STREAM);
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
            say_ignored(&ignored, headers);
            Ok(response)
        }
        crate::gateway::Answer::Message(message) => {
            let ignored = message.summary.ignored();
            let mut response = Response::new(ResponseBody::full(message.body));
            response.headers_mut().insert(CONTENT_TYPE, JSON);
            say_ignored(&ignored, response.headers_mut());
            Ok(response)
        }
    }
}

/// The length that a body says it has.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Names the features of the request that have no effect (M80).
fn say_ignored(ignored: &Ignored, headers: &mut HeaderMap) {
    if let Some(value) = ignored.header().and_then(|value| HeaderValue::try_from(value).ok()) {
        headers.insert(HeaderName::from_static("x-kiro-ignored"), value);
    }
}

/// Reads a body up to the limit (M11), which is checked by `content-length` first, else while reading. A larger body
/// isn't read to its end, so the connection can't be used again. Nothing is read before there is room for it (M90).
async fn read_body<B>(gateway: &Gateway, request: Request<B>) -> Result<Body, HttpError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let limit = gateway.max_request_body();
    let too_large = || {
        HttpError::new(413, ErrorType::RequestTooLarge, format!("request body is over {limit} bytes"))
            .with(CONNECTION, HeaderValue::from_static("close"))
    };
    let announced = announced(request.headers());
    if announced.is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    // For compressed bytes the parser would only say that they aren't JSON (M4).
    let is_plain = |encoding: &HeaderValue| encoding.as_bytes().eq_ignore_ascii_case(b"identity");
    if !request.headers().get_all(CONTENT_ENCODING).iter().all(is_plain) {
        return Err(HttpError::new(400, ErrorType::InvalidRequest, "content-encoding: not supported"));
    }
    let no_room = |error: Error| HttpError::from(error).with(CONNECTION, HeaderValue::from_static("close"));
    let memory = gateway.request_memory();
    let mut whole = memory.buffer(announced.map(|bytes| bytes as usize)).await.map_err(no_room)?;
    let mut body = request.into_body();
    let mut pace = BodyPace::new(gateway.config().body_timeout);
    while let Some(frame) = pace.keep(body.frame()).await? {
        let frame = frame.map_err(|_| HttpError::new(400, ErrorType::InvalidRequest, "body: ended before its end"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.length() + data.len() > limit {
            return Err(too_large());
        }
        whole.push(&data).await.map_err(no_room)?;
        // The wait for room is not the client's pause.
        pace.got(data.len());
    }
    Ok(whole.finish())
}

/// How long a body may take (`KIRO_BODY_TIMEOUT`). No pause may be longer. After that time its average must be at least
/// [`BodyPace::SLOWEST`]: else a client that sends a byte a second would hold a connection for a year.
struct BodyPace {
    /// Zero: no limit.
    limit: Duration,
    began: Instant,
    heard: Instant,
    bytes: u64,
}

impl BodyPace {
    /// Bytes a second.
    const SLOWEST: u64 = 1024;

    fn new(limit: Duration) -> Self {
        let now = Instant::now();
        Self { limit, began: now, heard: now, bytes: 0 }
    }

    fn got(&mut self, bytes: usize) {
        self.heard = Instant::now();
        self.bytes += bytes as u64;
    }

    async fn keep<T>(&self, next: impl Future<Output = T>) -> Result<T, HttpError> {
        if self.limit.is_zero() {
            return Ok(next.await);
        }
        let due = self.began + Duration::from_millis(self.bytes * 1000 / Self::SLOWEST);
        tokio::time::timeout_at(self.heard.min(due) + self.limit, next).await.map_err(|_| {
            HttpError::new(408, ErrorType::InvalidRequest, "body: came too slowly (KIRO_BODY_TIMEOUT)")
                .with(CONNECTION, HeaderValue::from_static("close"))
        })
    }
}

/// Without a client key only programs of this machine are served, and no web page of another site. `--allow-anonymous`
/// accepts every name in `Host`, since other machines call it too; pages of other sites stay refused.
fn refuse_strangers<B>(gateway: &Gateway, request: &Request<B>) -> Result<(), HttpError> {
    let message = if site::is_of_another_site(request.headers()) {
        "no client key is configured here, so no other site's pages are served (set KIRO_API_KEY)"
    } else if !gateway.config().allow_anonymous && !site::is_called_by_loopback_name(request) {
        "no client key is configured here, so it is served as localhost only (set KIRO_API_KEY)"
    } else {
        return Ok(());
    };
    Err(Error::new(Code::Authentication, message).into())
}

/// The four places of a client key (M2).
fn offered_keys<B>(request: &Request<B>) -> [Option<Cow<'_, str>>; 4] {
    let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let query = request.uri().query().and_then(|q| query_value(q, "key"));
    [
        text("x-api-key").map(Cow::from),
        bearer.map(Cow::from),
        text("x-goog-api-key").map(Cow::from),
        query.map(Cow::from),
    ]
}

/// What tells clients apart where no key is asked for.
fn first_key<B>(request: &Request<B>) -> Option<[u8; 32]> {
    offered_keys(request).into_iter().flatten().next().map(|key| client_key_hash(&key))
}

/// Takes a place under the limits of a client's key (M88).
fn enter(gateway: &Gateway, key: &Arc<NamedKey>) -> Result<KeyPlace, HttpError> {
    gateway.enter(key).map_err(|reached| {
        let what = if reached.which == "rpm" { "requests a minute" } else { "requests at once" };
        let message = format!("this key may send {} {what}", reached.limit);
        let seconds = reached.retry_after.as_millis().div_ceil(1000).clamp(1, 60);
        let seconds = HeaderValue::from(u16::try_from(seconds).unwrap_or(60));
        let mut refusal = HttpError::new(429, ErrorType::RateLimit, message).with(RETRY_AFTER, seconds);
        refusal.key = Some(key.name().clone());
        refusal
    })
}

/// Checks the client key: one right key in any of the four places is enough (M2). None: no key is asked for.
fn check_key<B>(
    gateway: &Gateway,
    request: &Request<B>,
    route: &Route,
    keyless: bool,
) -> Result<Option<KeyHolder>, HttpError> {
    let offered = offered_keys(request);
    // A person at a browser can send no header but this one.
    let is_page = matches!(route, Route::Status | Route::StatusEvents);
    let password = if is_page { status::password(request.headers()) } else { None };
    let said = || offered.iter().flatten().map(|key| &**key).chain(password.as_deref());
    match gateway.check_key(said()) {
        KeyCheck::Right(holder) => Ok(Some(holder)),
        KeyCheck::Open if keyless || gateway.config().allow_anonymous => Ok(None),
        KeyCheck::Open => {
            Err(Error::new(Code::Authentication, "no client key is configured here, so only this machine is served")
                .into())
        }
        KeyCheck::Wrong => {
            let none = said().next().is_none();
            let message = if none { "x-api-key: field required" } else { "invalid x-api-key" };
            let refusal = HttpError::from(Error::new(Code::Authentication, message));
            Err(if is_page { refusal.with(http::header::WWW_AUTHENTICATE, status::CHALLENGE) } else { refusal })
        }
        KeyCheck::Unknown => {
            let message = match gateway.key_problem() {
                Some(problem) => format!("the client key can't be read: {problem}; correct that, or set KIRO_API_KEY"),
                None => "the client key isn't known yet: the store hasn't been reached".to_owned(),
            };
            Err(Error::new(Code::StoreUnavailable, message)
                .with_retry_after(Some(std::time::Duration::from_secs(1)))
                .into())
        }
    }
}

/// The answer to a preflight (M7). A fixed list of headers would break SDKs in browsers, which send headers of their
/// own.
fn preflight(headers: &HeaderMap) -> Response<ResponseBody> {
    const FIXED: HeaderValue =
        HeaderValue::from_static("x-api-key, authorization, anthropic-version, anthropic-beta, content-type");
    let asked = headers.get("access-control-request-headers").filter(|value| {
        value.len() <= 2048
            && value.to_str().is_ok_and(|list| {
                !list.is_empty()
                    && list.split(',').all(|name| {
                        let name = name.trim();
                        !name.is_empty() && HeaderName::from_bytes(name.as_bytes()).is_ok()
                    })
            })
    });
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let out = response.headers_mut();
    out.insert("access-control-allow-headers", asked.cloned().unwrap_or(FIXED));
    out.insert("access-control-allow-methods", HeaderValue::from_static("GET, POST, HEAD, OPTIONS"));
    out.insert("access-control-max-age", HeaderValue::from_static("86400"));
    response
}

/// `shared`: any web page that has the key may use the answer (M7). Without a key none may.
fn finish_headers(response: &mut Response<ResponseBody>, request_id: &str, shared: bool) {
    const EXPOSED: HeaderValue = HeaderValue::from_static("request-id, retry-after, x-should-retry, x-kiro-ignored");
    let headers = response.headers_mut();
    if shared {
        headers.insert("access-control-allow-origin", HeaderValue::from_static("*"));
        headers.insert("access-control-expose-headers", EXPOSED);
    } else {
        for name in ["access-control-allow-headers", "access-control-allow-methods", "access-control-max-age"] {
            headers.remove(name);
        }
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, value);
    }
}

fn json(status: u16, body: Vec<u8>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, HttpError> {
    serde_json::to_vec(value).map_err(|_| Error::new(Code::Internal, "the answer could not be written").into())
}

/// A page of the models, newest first; cursors are ids of the list (M66).
fn models_page(gateway: &Gateway, query: &str) -> Result<Vec<u8>, HttpError> {
    let bad = |message: &str| HttpError::new(400, ErrorType::InvalidRequest, message);
    let limit = match query_value(query, "limit") {
        None => 20,
        Some(text) => match text.parse::<usize>() {
            Ok(n @ 1..=1000) => n,
            _ => return Err(bad("limit: must be between 1 and 1000")),
        },
    };
    let (after, before) = (query_value(query, "after_id"), query_value(query, "before_id"));
    if after.is_some() && before.is_some() {
        return Err(bad("before_id: not together with after_id"));
    }
    let all = gateway.list_models();
    let place = |cursor: &str, name: &str| {
        all.iter().position(|m| m.id == cursor).ok_or_else(|| bad(&format!("{name}: unknown model")))
    };
    let (range, has_more) = if let Some(cursor) = before {
        let end = place(&cursor, "before_id")?;
        let start = end.saturating_sub(limit);
        (start..end, start > 0)
    } else {
        let start = match after {
            Some(cursor) => place(&cursor, "after_id")? + 1,
            None => 0,
        };
        let end = (start + limit).min(all.len());
        (start..end, end < all.len())
    };
    let data = &all[range];
    to_json(&serde_json::json!({
        "data": data,
        "has_more": has_more,
        "first_id": data.first().map(|m| &m.id),
        "last_id": data.last().map(|m| &m.id),
    }))
}

/// A client's value is repeated only when it is a short name (M19).
fn printable(text: &str) -> String {
    if text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic()) { text.to_owned() } else { "…".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preflight_echoes_only_valid_names_m7() {
        let ask = |list: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("access-control-request-headers", HeaderValue::from_str(list).unwrap());
            preflight(&headers).headers()["access-control-allow-headers"].to_str().unwrap().to_owned()
        };
        assert_eq!(ask("x-stainless-os, x-api-key"), "x-stainless-os, x-api-key");
        assert!(ask("x y").starts_with("x-api-key, "));
        assert!(ask(&"x,".repeat(2000)).starts_with("x-api-key, "));
    }
}
