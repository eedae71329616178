//! Which request gets which answer.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::accounts::{self, SimAccount};
use super::check::{self, Prompt};
use super::connection::SimConnection;
use super::mcp;
use super::player::Player;
use super::portal;
use super::reasoning;
use super::refresh::{RefreshMethod, refresh_request};
use super::reply::HttpReply;
use super::scenario::{Reply, RequestFacts, Scenario};
use super::sign_in;
use super::stage::Stage;
use super::state::{CallCount, ChatEnd, ChatFlight, Recorded, SimShared};
use super::wire::{ClientCall, IdeVersion, Wire, header};
use super::world::SimWorld;
use crate::proto::kiro::route::{Operation, Shape};
use crate::server::query_value;

/// A larger request body is refused with 413.
const MAX_BODY: usize = 64 << 20;
/// The beginning of a scenario in a prompt.
const MARK: &str = "[[sim ";

type SimResponse = Response<Either<Full<Bytes>, Player>>;

/// Answers one request. An error ends the connection without an answer.
pub(super) async fn answer(
    request: Request<Incoming>,
    shared: Arc<SimShared>,
    connection: Arc<SimConnection>,
) -> io::Result<SimResponse> {
    let is_runtime = Wire::read(request.method(), request.uri().path(), request.headers()).shape() == Shape::Runtime;
    Ok(match judge(request, shared, connection).await? {
        Judged::Reply(reply) if is_runtime => full(reply.named_in_body()),
        Judged::Reply(reply) => full(reply),
        Judged::Stream(response) => response.map(Either::Right),
    })
}

/// The answer to a request.
enum Judged {
    Reply(HttpReply),
    Stream(Response<Player>),
}

async fn judge(
    request: Request<Incoming>,
    shared: Arc<SimShared>,
    connection: Arc<SimConnection>,
) -> io::Result<Judged> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let name = name_of(&head.method, &path, &head.headers);
    if path.starts_with("/_sim/") {
        let body = read(body).await?;
        let query = head.uri.query().unwrap_or_default();
        return Ok(Judged::Reply(body.map_or_else(|refused| refused, |body| control(&name, query, &body, &shared))));
    }
    // Counted from the head on: a client that goes away while it sends is counted too.
    let token = bearer(&head.headers).map(str::to_owned);
    let mut world = match world_of(token.as_deref(), &shared) {
        Ok(world) => world,
        Err(message) => return Ok(Judged::Reply(mistake(&message))),
    };
    let mut wire = Wire::read(&head.method, &path, &head.headers);
    if !world.is_today {
        wire = wire.old(&head.method, &path);
    }
    let refreshes = refresh_of(&head.method, &path);
    let flight =
        (wire.call == Some(Operation::Chat)).then(|| ChatFlight::start(&shared, token.as_deref().unwrap_or_default()));
    let headers = text_headers(&head.headers);
    count_head(&shared, name, refreshes, &wire, wire.target().unwrap_or(&path), &headers);
    let body = match read(body).await? {
        Ok(body) => body,
        Err(refused) => return Ok(Judged::Reply(refused)),
    };
    shared.state().record(Recorded {
        connection: connection.number,
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers,
        body: body.clone(),
    });

    let caller = caller_of(refreshes, &wire);
    let call = refreshes.map_or(wire.call.map_or("", Operation::as_str), |_| "refresh");
    let names = [wire.host.as_str(), wire.region.as_deref().unwrap_or_default(), call];
    let version = match caller.map(|caller| world.client(caller, &names, &head.headers)).transpose() {
        Ok(version) => version.flatten(),
        Err(refused) => return Ok(answered(flight, refused)),
    };
    if let Some(reply) = signs_in(&head, &body, &wire, &shared) {
        return reply.map(Judged::Reply).ok_or_else(|| hang_up(&connection, false));
    }
    if let Some(method) = refreshes {
        return refresh(method, (&head.headers, &body), &wire, &shared, &connection).await;
    }
    if world.is_today
        && let Some(refused) = wire.refusal(&head.method, &path, &head.headers)
    {
        return Ok(answered(flight, refused));
    }
    let Some(call) = wire.call else { return Ok(answered(flight, unknown(&head.method, &path))) };
    let Some(token) = token else { return Ok(answered(flight, accounts::no_bearer())) };
    if shared.state().has_expired(&token, &world) {
        return Ok(answered(flight, accounts::expired()));
    }
    let account = match SimAccount::of(&token) {
        Ok(account) => account,
        Err(message) => return Ok(answered(flight, mistake(&message))),
    };
    let request = ServiceCall {
        token: &token,
        call,
        wire: &wire,
        version,
        body: &body,
        query: head.uri.query().unwrap_or_default(),
        token_type: header(&head.headers, "tokentype"),
        mcp_arn: header(&head.headers, "x-amzn-kiro-profile-arn"),
        account,
    };
    match flight {
        Some(flight) => stream(&request, world, flight, &shared, connection).await,
        None => service(&request, &mut world, &shared, &connection).await,
    }
}

/// The answer to a call of a sign-in; none inside: the connection ends.
fn signs_in(head: &Parts, body: &[u8], wire: &Wire, shared: &SimShared) -> Option<Option<HttpReply>> {
    let mut state = shared.state();
    if let Some(reply) = portal::answer((&head.method, &head.uri), &head.headers, body, &mut state) {
        return Some(Some(reply));
    }
    let call = sign_in::call_of(head.uri.path(), body)?;
    Some(sign_in::answer(call, &head.headers, body, wire.region.as_deref(), &mut state))
}

/// A request's name in the counters: its target when the path says nothing.
fn name_of(method: &Method, path: &str, headers: &HeaderMap) -> String {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).map(operation);
    match target {
        Some(operation) if path == "/" => format!("{method} / {operation}"),
        _ => format!("{method} {path}"),
    }
}

fn unknown(method: &Method, path: &str) -> HttpReply {
    let message = format!("the simulator has no {method} {path}");
    HttpReply::error(404, "UnknownOperationException", None, &message)
}

fn refresh_of(method: &Method, path: &str) -> Option<RefreshMethod> {
    match path {
        "/refreshToken" => Some(RefreshMethod::Social),
        "/token" => Some(RefreshMethod::Idc),
        "/idp/token" => Some(RefreshMethod::External),
        _ => None,
    }
    .filter(|_| method == Method::POST)
}

/// The call whose client version is checked; an organisation's provider checks none.
fn caller_of(refreshes: Option<RefreshMethod>, wire: &Wire) -> Option<ClientCall> {
    match (refreshes, wire.call) {
        (Some(RefreshMethod::Social), _) => Some(ClientCall::SocialRefresh),
        (Some(RefreshMethod::Idc), _) => Some(ClientCall::IdcRefresh),
        (Some(RefreshMethod::External), _) => None,
        (None, call) => call.map(|call| ClientCall::Service(wire.shape(), call)),
    }
}

/// The world of an access token: a preset that it names may change it.
fn world_of(token: Option<&str>, shared: &SimShared) -> Result<Arc<SimWorld>, String> {
    let Some(token) = token else { return Ok(Arc::clone(&shared.state().world)) };
    let mut world = shared.state().world_of(token);
    if let Some(Ok(Scenario { world: Some(change), .. })) = by_token(token) {
        Arc::make_mut(&mut world).change(change)?;
    }
    Ok(world)
}

fn count_head(
    shared: &SimShared,
    name: String,
    refreshes: Option<RefreshMethod>,
    wire: &Wire,
    target: &str,
    headers: &[(String, String)],
) {
    let counts = &mut shared.state().counts;
    *counts.requests.entry(name).or_default() += 1;
    let counted = match (refreshes, wire.call) {
        (Some(method), _) => Some(("refresh", method.as_str())),
        (None, call) => call.map(|call| (wire.shape().as_str(), call.as_str())),
    };
    if let Some((shape, call)) = counted {
        let count = counts.shapes.entry(shape).or_default().entry(call).or_default();
        count.head(&wire.name, target, headers);
    }
}

/// A request of Kiro's services, as far as it is read.
struct ServiceCall<'a> {
    token: &'a str,
    call: Operation,
    wire: &'a Wire,
    version: Option<IdeVersion>,
    body: &'a [u8],
    query: &'a str,
    token_type: Option<&'a str>,
    mcp_arn: Option<&'a str>,
    account: Option<SimAccount<'a>>,
}

impl ServiceCall<'_> {
    /// The refusal for the account's kind, region or profile.
    fn refused(&self, arn: Option<&str>, world: &SimWorld) -> Option<HttpReply> {
        let account = self.account?;
        account.admits(self.call, self.wire.region.as_deref(), arn, self.token_type, world).err()
    }

    /// The answer of a script, the token or the world. None: as usual, perhaps in another world.
    fn scenario(
        &self,
        world: &mut Arc<SimWorld>,
        arn: Option<&str>,
        prompt: Option<&Prompt>,
        shared: &SimShared,
    ) -> Result<Option<Scenario>, String> {
        let (wire, version, body_len) = (self.wire, self.version, self.body.len());
        let facts = RequestFacts { wire, version, profile_arn: arn, prompt, body_len };
        let scripted = shared.state().scripted(self.call, self.token);
        let by_account = match scripted {
            Some(scripted) => scripted,
            // The token's differences of the world were applied before.
            None => by_token(self.token)
                .transpose()?
                .map(|scenario| Scenario { world: None, ..scenario })
                .filter(|scenario| scenario.covers(self.call)),
        };
        if let Some(scenario) = by_account
            && scenario.applies(&facts)
        {
            if let Some(change) = &scenario.world {
                Arc::make_mut(world).change(change.clone())?;
            }
            if !scenario.is_usual() {
                return Ok(Some(scenario));
            }
        }
        Ok(world.rules.iter().find(|rule| rule.covers(self.call) && rule.applies(&facts)).cloned())
    }
}

/// Everything but chat.
async fn service(
    request: &ServiceCall<'_>,
    world: &mut Arc<SimWorld>,
    shared: &Arc<SimShared>,
    connection: &SimConnection,
) -> io::Result<Judged> {
    let json: Value = serde_json::from_slice(request.body).unwrap_or_default();
    let in_body = json["profileArn"].as_str();
    let arn = match request.call {
        Operation::Usage => query_value(request.query, "profileArn"),
        Operation::Mcp => request.mcp_arn.or(in_body).map(str::to_owned),
        _ => in_body.map(str::to_owned).or_else(|| query_value(request.query, "profileArn")),
    };
    counted(shared, request.wire, request.call, |count| count.members(&json));
    match request.scenario(world, arn.as_deref(), None, shared) {
        Err(message) => return Ok(Judged::Reply(mistake(&message))),
        Ok(None) => {}
        Ok(Some(scenario)) => {
            tokio::time::sleep(scenario.head).await;
            return match scenario.reply {
                Reply::Http(reply) => Ok(Judged::Reply(reply)),
                Reply::Drop { reset } => Err(hang_up(connection, reset)),
                Reply::Stream(_) | Reply::Usual => {
                    Ok(Judged::Reply(HttpReply::failure(400, "scenario: only chat answers with a stream")))
                }
            };
        }
    }
    let number = |key: &str| json[key].as_str().map(str::to_owned).or_else(|| query_value(request.query, key));
    let start = number("nextToken").and_then(|token| token.parse().ok()).unwrap_or(0);
    if request.call == Operation::Profiles
        && let Some(account) = request.account
    {
        let region = request.wire.region.as_deref();
        return Ok(Judged::Reply(account.list_profiles(region, request.token_type, start, world)));
    }
    if let Some(refused) = request.refused(arn.as_deref(), world) {
        return Ok(Judged::Reply(refused));
    }
    Ok(Judged::Reply(match request.call {
        Operation::Profiles => accounts::profiles(request.token),
        Operation::Models => {
            let asked = json["maxResults"].as_u64().and_then(|asked| usize::try_from(asked).ok());
            let asked = asked.or_else(|| query_value(request.query, "maxResults")?.parse().ok());
            accounts::models(asked.unwrap_or(50).clamp(1, 100), start, world)
        }
        Operation::Mcp => {
            if request.wire.shape() == Shape::Runtime && request.mcp_arn != in_body {
                let message = "Improperly formed request. (simulator: the ARN belongs in header and body)";
                return Ok(Judged::Reply(HttpReply::error(
                    400,
                    "ValidationException",
                    Some("REQUEST_BODY_INVALID"),
                    message,
                )));
            }
            let answer = mcp::answer(&json, world);
            if let Some(query) = &answer.query {
                counted(shared, request.wire, request.call, |count| count.query(query));
            }
            tokio::time::sleep(answer.wait).await;
            answer.reply
        }
        Operation::Usage | Operation::Chat => {
            let quota = world.credits.map(|credits| (shared.state().spent(request.token), credits));
            accounts::usage(request.token, arn.as_deref(), quota)
        }
    }))
}

/// A chat request: chooses the scenario and plays it.
async fn stream(
    request: &ServiceCall<'_>,
    mut world: Arc<SimWorld>,
    mut flight: ChatFlight,
    shared: &Arc<SimShared>,
    connection: Arc<SimConnection>,
) -> io::Result<Judged> {
    let prompt = check::read(request.body, world.is_today.then(|| request.wire.shape()));
    if let Ok(prompt) = &prompt {
        counted(shared, request.wire, Operation::Chat, |count| count.prompt(prompt));
    }
    let readable = prompt.as_ref().ok();
    let arn = readable.and_then(|prompt| prompt.profile_arn.as_deref());
    let chosen = match request.scenario(&mut world, arn, readable, shared) {
        Ok(Some(scenario)) => Ok(scenario),
        Ok(None) => {
            let prompt = match &prompt {
                Ok(prompt) => prompt,
                Err(refused) => return Ok(answered(Some(flight), refused.clone())),
            };
            let is_dry = world.credits.is_some_and(|credits| shared.state().spent(request.token) >= credits);
            if let Some(refused) = is_dry.then(accounts::used_up).or_else(|| refused(request, prompt, &world)) {
                return Ok(answered(Some(flight), refused));
            }
            let (wire, version, body_len) = (request.wire, request.version, request.body.len());
            let facts = RequestFacts { wire, version, profile_arn: arn, prompt: Some(prompt), body_len };
            let usual = || shared.state().default.clone().unwrap_or_else(Scenario::demo);
            match by_prompt(&prompt.content) {
                Some(Ok(scenario)) if !scenario.applies(&facts) => Ok(Scenario::demo()),
                Some(Ok(scenario)) => {
                    let changed = scenario.world.clone().map(|change| Arc::make_mut(&mut world).change(change));
                    changed.unwrap_or(Ok(())).map(|()| if scenario.is_usual() { usual() } else { scenario })
                }
                Some(Err(message)) => Err(message),
                None => Ok(usual()),
            }
        }
        Err(message) => Err(message),
    };
    let scenario = match chosen {
        Ok(scenario) => scenario,
        Err(message) => return Ok(answered(Some(flight), mistake(&message))),
    };
    if !scenario.head.is_zero() {
        tokio::time::sleep(scenario.head).await;
    }
    match scenario.reply {
        Reply::Http(reply) => Ok(answered(Some(flight), reply)),
        Reply::Drop { reset } => {
            flight.land(ChatEnd::Cut);
            Err(hang_up(&connection, reset))
        }
        Reply::Usual => Ok(answered(Some(flight), HttpReply::failure(400, "scenario: it answers nothing"))),
        Reply::Stream(mut script) => {
            let prompt = prompt.unwrap_or_default();
            let (new, known) = shared.state().seen(request.token, &prompt);
            let price = if world.discount { 0.1 } else { 1.0 };
            let credits = (new as f64 + known as f64 * price) / 1000.0;
            if world.credits.is_some() {
                shared.state().spend(request.token, credits);
            }
            let first = reasoning::last(&prompt);
            let staged = script.stage(&Stage {
                world: &world,
                has_initial_response: request.wire.shape() == Shape::Runtime,
                thought: reasoning::asked(&prompt, &world),
                sign: &|before| reasoning::sign(request.token, &prompt, if before.is_empty() { first } else { before }),
                credits,
                window: prompt.model.as_deref().and_then(|id| world.model(id)).map_or(200_000, |model| model.window),
            });
            if let Err(message) = staged {
                return Ok(answered(Some(flight), mistake(&message)));
            }
            let mut response = Response::builder()
                .header("content-type", "application/vnd.amazon.eventstream")
                .header("x-amzn-requestid", uuid::Uuid::new_v4().to_string());
            if let Some(id) = prompt.conversation_id {
                response = response.header("x-amzn-codewhisperer-conversation-id", id);
            }
            let response = response.body(Player::new(script, connection, flight)).map_err(io::Error::other)?;
            Ok(Judged::Stream(response))
        }
    }
}

/// Kiro's refusal of a readable chat request: size, account, model, fields, signatures.
fn refused(request: &ServiceCall<'_>, prompt: &Prompt, world: &SimWorld) -> Option<HttpReply> {
    if world.max_body.is_some_and(|max| request.body.len() > max) {
        return Some(HttpReply::error(400, "ValidationException", None, "Improperly formed request."));
    }
    if let Some(refused) = request.refused(prompt.profile_arn.as_deref(), world) {
        return Some(refused);
    }
    if !world.is_today {
        return None;
    }
    let Some(model) = world.model(prompt.model.as_deref().unwrap_or_default()) else {
        let message = "Invalid model. Please select a different model to continue.";
        return Some(HttpReply::error(400, "ValidationException", Some("INVALID_MODEL_ID"), message));
    };
    if let Some(Err(message)) = prompt.fields.as_ref().map(|fields| model.judge(fields, &world.fields_refused)) {
        return Some(HttpReply::error(400, "ValidationException", Some("REQUEST_BODY_INVALID"), &message));
    }
    reasoning::judge(request.token, prompt, world.bind).err()
}

fn counted(shared: &SimShared, wire: &Wire, call: Operation, count: impl FnOnce(&mut CallCount)) {
    let counts = &mut shared.state().counts;
    count(counts.shapes.entry(wire.shape().as_str()).or_default().entry(call.as_str()).or_default());
}

/// A mistake in a scenario.
fn mistake(message: &str) -> HttpReply {
    HttpReply::error(400, "ValidationException", Some("SIMULATOR_SCENARIO"), message)
}

async fn refresh(
    method: RefreshMethod,
    (headers, body): (&HeaderMap, &[u8]),
    wire: &Wire,
    shared: &Arc<SimShared>,
    connection: &SimConnection,
) -> io::Result<Judged> {
    let request = refresh_request(method, headers, body, wire.region.as_deref(), &mut shared.state());
    let request = match request {
        Ok(request) => request,
        Err(refused) => return Ok(Judged::Reply(refused)),
    };
    let takes = shared.state().world.refresh_takes;
    tokio::time::sleep(takes + request.answer.wait).await;
    if request.answer.drop {
        return Err(hang_up(connection, false));
    }
    let reply = request.answer.reply(method, &request.refresh_token, &mut shared.state());
    if request.answer.lose {
        return Err(hang_up(connection, false));
    }
    Ok(Judged::Reply(reply))
}

/// `/_sim/…`.
fn control(name: &str, query: &str, body: &[u8], shared: &SimShared) -> HttpReply {
    match name {
        "GET /_sim/stats" => {
            let bodies = query_value(query, "bodies").is_some_and(|value| value != "0");
            HttpReply::json(200, &shared.state().stats(bodies))
        }
        "GET /_sim/accounts" => HttpReply::json(200, &shared.state().accounts()),
        "POST /_sim/reset" => {
            shared.state().reset();
            HttpReply::json(200, &Value::Object(serde_json::Map::new()))
        }
        "POST /_sim/script" => {
            let script = serde_json::from_slice(body).map_err(|error| format!("script is not JSON: {error}"));
            match script.and_then(|script| shared.state().script(script)) {
                Ok(()) => HttpReply::json(200, &Value::Object(serde_json::Map::new())),
                Err(message) => HttpReply::failure(400, &message),
            }
        }
        other => HttpReply::failure(404, &format!("the simulator has no {other}")),
    }
}

/// The preset that an access token names: `sim-NAME` or `sim-NAME.anything`. None for `sim-ok`, for the tokens that
/// steer profiles, and for all others.
fn by_token(token: &str) -> Option<Result<Scenario, String>> {
    let name = token.strip_prefix("sim-")?.split('.').next()?;
    if matches!(name, "ok" | "no-profile" | "builder-id") || name.starts_with("acct-") {
        return None;
    }
    Some(Scenario::preset(name).unwrap_or_else(|| Err(format!("no preset is called `{name}`"))))
}

/// The scenario in the last `[[sim …]]` of a prompt.
fn by_prompt(content: &str) -> Option<Result<Scenario, String>> {
    let rest = content[content.rfind(MARK)?..].strip_prefix(MARK)?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    Some(match values.next() {
        Some(Ok(value)) if rest[values.byte_offset()..].trim_start().starts_with("]]") => Scenario::from_value(value),
        Some(Ok(_)) => Err("the scenario in the prompt doesn't end with `]]`".to_owned()),
        Some(Err(error)) => Err(format!("the scenario in the prompt is not JSON: {error}")),
        None => Err("the scenario in the prompt is empty".to_owned()),
    })
}

fn answered(flight: Option<ChatFlight>, reply: HttpReply) -> Judged {
    if let Some(mut flight) = flight {
        flight.land(ChatEnd::Answered);
    }
    Judged::Reply(reply)
}

fn full(reply: HttpReply) -> SimResponse {
    let mut response = Response::new(Either::Left(Full::new(reply.body)));
    // Statuses and headers of scenarios were checked when they were read.
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        let parsed = (http::HeaderName::try_from(name), http::HeaderValue::try_from(with_date(&value)));
        if let (Ok(name), Ok(value)) = parsed {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// `{date+N}` becomes the HTTP date N seconds from now.
fn with_date(value: &str) -> String {
    let date = || {
        let seconds = value.strip_prefix("{date+")?.strip_suffix('}')?.parse().ok()?;
        let then = Timestamp::now().checked_add(SignedDuration::from_secs(seconds)).ok()?;
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&then).ok()
    };
    date().unwrap_or_else(|| value.to_owned())
}

fn hang_up(connection: &SimConnection, reset: bool) -> io::Error {
    if reset {
        connection.reset_on_close();
    }
    io::Error::other("the scenario drops the connection")
}

async fn read(body: Incoming) -> io::Result<Result<Bytes, HttpReply>> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(Ok(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(Err(HttpReply::failure(413, "Request Entity Too Large"))),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ").filter(|token| !token.is_empty())
}

/// `AmazonCodeWhispererService.ListAvailableProfiles` → `ListAvailableProfiles`.
fn operation(target: &str) -> &str {
    target.rsplit('.').next().unwrap_or(target)
}

fn text_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
