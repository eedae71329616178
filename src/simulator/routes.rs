//! Which request gets which answer.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method as HttpMethod, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::accounts::{self, Method, PROFILE_ARN};
use super::check;
use super::connection::Connection;
use super::player::Player;
use super::scenario::{HttpReply, Reply, Scenario, When};
use super::state::{Endpoint, Flight, Outcome, Recorded, Shared};

/// A larger request body is refused with 413.
const MAX_BODY: usize = 64 << 20;
/// Where a prompt holds a scenario.
const MARK: &str = "[[sim ";

type Answer = Response<Either<Full<Bytes>, Player>>;

/// Answers one request. An error ends the connection without an answer.
pub(super) async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    connection: Arc<Connection>,
) -> io::Result<Answer> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).map(operation);
    let name = match target {
        Some(operation) if path == "/" => format!("{} / {operation}", head.method),
        _ => format!("{} {path}", head.method),
    };
    if path.starts_with("/_sim/") {
        let body = read(body).await?;
        let query = head.uri.query().unwrap_or_default();
        return Ok(full(body.map_or_else(|refused| refused, |body| control(&name, query, &body, &shared))));
    }
    // Counted from the head on: a client that goes away while it sends is counted too.
    let token = bearer(&head.headers).map(str::to_owned);
    let chat = path == "/generateAssistantResponse" || target == Some("GenerateAssistantResponse");
    let flight =
        (chat && head.method == HttpMethod::POST).then(|| Flight::start(&shared, token.as_deref().unwrap_or_default()));
    *shared.state().counts.requests.entry(name).or_default() += 1;
    let body = match read(body).await? {
        Ok(body) => body,
        Err(refused) => return Ok(full(refused)),
    };
    shared.state().record(Recorded {
        connection: connection.number,
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: text_headers(&head.headers),
        body: body.clone(),
    });

    if let Some(flight) = flight {
        let Some(token) = token else { return Ok(answered(flight, accounts::no_bearer())) };
        return stream(&token, &body, flight, &shared, connection).await;
    }
    let method = match (&head.method, path.as_str()) {
        (&HttpMethod::POST, "/refreshToken") => Some(Method::Social),
        (&HttpMethod::POST, "/token") => Some(Method::Idc),
        _ => None,
    };
    if let Some(method) = method {
        return refresh(method, &body, &shared, &connection).await;
    }
    let endpoint = match (&head.method, path.as_str(), target) {
        (&HttpMethod::GET, "/getUsageLimits", _) => Endpoint::Usage,
        (&HttpMethod::GET, "/ListAvailableModels", _) | (&HttpMethod::POST, "/", Some("ListAvailableModels")) => {
            Endpoint::Models
        }
        (&HttpMethod::POST, "/", Some("ListAvailableProfiles")) => Endpoint::Profiles,
        _ => {
            let message = format!("the simulator has no {} {path}", head.method);
            return Ok(full(HttpReply::error(404, "UnknownOperationException", None, &message)));
        }
    };
    let Some(token) = token else { return Ok(full(accounts::no_bearer())) };
    let scripted = shared.state().scripted(endpoint, &token);
    let scenario = match scripted {
        Some(scripted) => scripted,
        None => match by_token(&token) {
            Some(preset) => preset.ok().filter(|scenario| scenario.everywhere),
            None => None,
        },
    };
    if let Some(scenario) = scenario {
        tokio::time::sleep(scenario.head).await;
        return match scenario.reply {
            Reply::Http(reply) => Ok(full(reply)),
            Reply::Drop { reset } => Err(hang_up(&connection, reset)),
            Reply::Stream(_) => Ok(full(HttpReply::failure(400, "scenario: only chat answers with a stream"))),
        };
    }
    Ok(full(match endpoint {
        Endpoint::Profiles => accounts::profiles(&token),
        Endpoint::Models => accounts::models(),
        Endpoint::Usage | Endpoint::Chat => {
            accounts::usage(&token, query_value(head.uri.query().unwrap_or_default(), "profileArn").as_deref())
        }
    }))
}

/// A chat request: chooses the scenario and plays it.
async fn stream(
    token: &str,
    body: &[u8],
    mut flight: Flight,
    shared: &Arc<Shared>,
    connection: Arc<Connection>,
) -> io::Result<Answer> {
    let prompt = check::read(body);
    let applies = |scenario: &Scenario| match (&prompt, scenario.when) {
        (_, When::Always) => true,
        (Ok(prompt), When::Reasoning) => prompt.has_reasoning,
        (Ok(prompt), When::NoProfileArn) => prompt.profile_arn.as_deref() != Some(PROFILE_ARN),
        (Err(_), _) => false,
    };
    let scripted = shared.state().scripted(Endpoint::Chat, token);
    let by_account = match scripted {
        Some(scripted) => scripted.map(Ok),
        None => by_token(token),
    };
    let chosen = match by_account {
        Some(Err(message)) => Err(message),
        Some(Ok(scenario)) if applies(&scenario) => Ok(scenario),
        _ => match &prompt {
            Err(refused) => return Ok(answered(flight, refused.clone())),
            Ok(prompt) => match by_prompt(&prompt.content) {
                Some(Ok(scenario)) if !applies(&scenario) => Ok(Scenario::demo()),
                Some(scenario) => scenario,
                None => Ok(shared.state().default.clone().unwrap_or_else(Scenario::demo)),
            },
        },
    };
    let scenario = match chosen {
        Ok(scenario) => scenario,
        Err(message) => {
            let refused = HttpReply::error(400, "ValidationException", Some("SIMULATOR_SCENARIO"), &message);
            return Ok(answered(flight, refused));
        }
    };
    if !scenario.head.is_zero() {
        tokio::time::sleep(scenario.head).await;
    }
    match scenario.reply {
        Reply::Http(reply) => Ok(answered(flight, reply)),
        Reply::Drop { reset } => {
            flight.land(Outcome::Cut);
            Err(hang_up(&connection, reset))
        }
        Reply::Stream(script) => {
            let mut response = Response::builder()
                .header("content-type", "application/vnd.amazon.eventstream")
                .header("x-amzn-requestid", uuid::Uuid::new_v4().to_string());
            if let Some(id) = prompt.ok().and_then(|prompt| prompt.conversation_id) {
                response = response.header("x-amzn-codewhisperer-conversation-id", id);
            }
            response.body(Either::Right(Player::new(script, connection, flight))).map_err(io::Error::other)
        }
    }
}

async fn refresh(method: Method, body: &[u8], shared: &Arc<Shared>, connection: &Connection) -> io::Result<Answer> {
    let request = accounts::refresh_request(method, body, &mut shared.state());
    let request = match request {
        Ok(request) => request,
        Err(refused) => return Ok(full(refused)),
    };
    tokio::time::sleep(request.answer.wait).await;
    if request.answer.drop {
        return Err(hang_up(connection, false));
    }
    Ok(full(request.answer.reply(method, &request.refresh_token, &mut shared.state())))
}

/// `/_sim/…`.
fn control(name: &str, query: &str, body: &[u8], shared: &Shared) -> HttpReply {
    match name {
        "GET /_sim/stats" => {
            let bodies = query_value(query, "bodies").is_some_and(|value| value != "0");
            HttpReply::json(200, &shared.state().stats(bodies))
        }
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
    if matches!(name, "ok" | "no-profile" | "builder-id") {
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

fn answered(mut flight: Flight, reply: HttpReply) -> Answer {
    flight.land(Outcome::Answered);
    full(reply)
}

fn full(reply: HttpReply) -> Answer {
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

fn hang_up(connection: &Connection, reset: bool) -> io::Error {
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

/// The value of `key` in a query, percent-decoded.
fn query_value(query: &str, key: &str) -> Option<String> {
    let (_, value) = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key)?;
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b'+' => decoded.push(b' '),
            other => decoded.push(other),
        }
    }
    String::from_utf8(decoded).ok()
}
