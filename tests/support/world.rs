//! A gateway on the simulator and a private Redis, behind a real listener.

use kiro_messages::config::{Config, Face, RawConfig};
use kiro_messages::gateway::Gateway;
use kiro_messages::server::{Listening, listen};
use kiro_messages::simulator::{self, Attached};
use serde_json::{Value, json};

use super::redis_server::RedisServer;

#[path = "accounts.rs"]
#[expect(dead_code, reason = "shared with other tests")]
pub mod accounts;
use accounts::{POOL, add_account};

pub const KEY: &str = "client-key-1";

/// A gateway on the simulator and a private Redis, behind a real listener.
pub struct World {
    pub gateway: Gateway,
    pub listening: Listening,
    pub simulated: Attached,
    pub http: reqwest::Client,
    redis: RedisServer,
}

impl World {
    pub async fn new(options: &[(&str, &str)]) -> Self {
        Self::with_tokens(&["access-1"], options).await
    }

    pub async fn with_tokens(tokens: &[&str], options: &[(&str, &str)]) -> Self {
        Self::build(tokens, "2099-01-01T00:00:00.000Z", options).await
    }

    pub async fn with_expired(tokens: &[&str]) -> Self {
        Self::build(tokens, "2020-01-01T00:00:00.000Z", &[]).await
    }

    /// As [`World::with_expired`], with options.
    pub async fn with_expired_and(tokens: &[&str], options: &[(&str, &str)]) -> Self {
        Self::build(tokens, "2020-01-01T00:00:00.000Z", options).await
    }

    /// In another world than today's from the start: hosts' names are set then.
    pub async fn in_world(world: &Value, options: &[(&str, &str)]) -> Self {
        Self::build_in(world, &["access-1"], "2099-01-01T00:00:00.000Z", options).await
    }

    async fn build(tokens: &[&str], expires_at: &str, options: &[(&str, &str)]) -> Self {
        Self::build_in(&json!([]), tokens, expires_at, options).await
    }

    async fn build_in(world: &Value, tokens: &[&str], expires_at: &str, options: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        let mut connection = redis.connection();
        for (n, token) in tokens.iter().enumerate() {
            let id = format!("0000000{n}-0000-4000-8000-000000000000");
            let token = json!({
                "accessToken": token, "refreshToken": format!("refresh-{n}"), "authMethod": "social",
                "expiresAt": expires_at, "profileArn": simulator::PROFILE_ARN,
            });
            add_account(&mut connection, &id, &json!({}), &token);
        }
        let mut all = vec![
            ("REDIS_URL", redis.url()),
            ("KIRO_API_KEY", KEY.to_owned()),
            ("KIRO_UPSTREAM", "simulator".to_owned()),
            ("KIRO_STORE_WAIT", "5s".to_owned()),
        ];
        all.retain(|(name, _)| options.iter().all(|(other, _)| other != name));
        all.extend(options.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let said = RawConfig::from_env(all.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let mut config: Config = said.resolve(Face::Server).unwrap();
        let given = config.clone();
        let simulated = simulator::attach_in(&mut config, world.clone()).await.unwrap();
        if options.iter().any(|(name, _)| *name == "KIRO_UPSTREAM_URL") {
            config.upstream_url = given.upstream_url;
            config.runtime_url = given.runtime_url;
            config.management_url = given.management_url;
        }
        if options.iter().any(|(name, _)| *name == "KIRO_SOCIAL_REFRESH_URL") {
            config.social_refresh_url = given.social_refresh_url;
        }
        let gateway = Gateway::start(config).await.unwrap();
        let listening = listen(gateway.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        // reqwest wants a TLS provider even for plain http; another test of this process may have been first.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { gateway, listening, simulated, http, redis }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listening.address())
    }

    /// Requests for an answer that reached upstream.
    pub fn upstream_calls(&self) -> u64 {
        let stats = self.simulated.control().stats();
        stats["calls_by_token"].as_object().map_or(0, |calls| calls.values().filter_map(Value::as_u64).sum())
    }

    /// The account records as they lie in Redis, in the order of their ids.
    pub fn accounts(&self) -> Vec<Value> {
        let mut command = redis::cmd("HGETALL");
        let all: std::collections::BTreeMap<String, String> =
            command.arg(POOL).query(&mut self.redis.connection()).unwrap();
        all.values().map(|text| serde_json::from_str(text).unwrap()).collect()
    }

    /// A connection of the test's own.
    pub fn redis_connection(&self) -> redis::Connection {
        self.redis.connection()
    }

    /// Sets the shared `config` record.
    pub fn set_config(&self, text: &str) {
        redis::cmd("SET").arg("aiclient:config").arg(text).query::<()>(&mut self.redis.connection()).unwrap();
    }

    /// A stream that has begun: its first chunk was read.
    pub async fn hold(&self, scenario: &Value) -> Held {
        let mut body = with(STREAM());
        body["messages"] = json!([{ "role": "user", "content": format!("[[sim {scenario}]]") }]);
        let request = self.http.post(self.url("/v1/messages")).header("x-api-key", KEY).body(body.to_string());
        let mut response = request.send().await.unwrap();
        let mut seen = String::new();
        while !seen.contains("content_block_delta") {
            seen.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().unwrap()));
        }
        Held { response, seen }
    }

    /// A request whose prompt asks the simulator for this scenario.
    pub async fn scene(&self, scenario: &Value, changes: Value) -> Reply {
        let mut body = with(changes);
        body["messages"] = json!([{ "role": "user", "content": format!("[[sim {scenario}]]") }]);
        self.messages(&body).await
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        let sent = self.http.post(self.url(path)).header("x-api-key", KEY).body(body).send().await.unwrap();
        Reply::read(sent).await
    }

    pub async fn messages(&self, body: &Value) -> Reply {
        self.post("/v1/messages", body.to_string()).await
    }
}

/// A stream in the middle.
pub struct Held {
    response: reqwest::Response,
    seen: String,
}

impl Held {
    /// The whole text, when it has ended.
    pub async fn rest(mut self) -> String {
        while let Some(chunk) = self.response.chunk().await.unwrap() {
            self.seen.push_str(&String::from_utf8_lossy(&chunk));
        }
        self.seen
    }
}

pub struct Reply {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Reply {
    /// M5, M7: every answer has its id, and may be read by a browser.
    pub async fn read(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let id = headers["request-id"].to_str().unwrap();
        let is_id = |id: &str| id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        assert!(id.strip_prefix("req_").is_some_and(is_id), "{id}");
        assert_eq!(headers["access-control-allow-origin"], "*");
        assert_eq!(headers["access-control-expose-headers"], "request-id, retry-after, x-should-retry, x-kiro-ignored");
        Self { status, headers, text: response.text().await.unwrap_or_default() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// A71: an error has its id in the header and in the body.
    #[track_caller]
    pub fn is_error(&self, case: &str, status: u16, kind: &str, begins: &str) {
        let body = self.json();
        assert_eq!((self.status, body["error"]["type"].as_str()), (status, Some(kind)), "{case}: {}", self.text);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(begins), "{case}: {message:?} does not begin with {begins:?}");
        assert_eq!(body["type"], "error", "{case}");
        assert_eq!(Some(self.headers["request-id"].to_str().unwrap()), body["request_id"].as_str(), "{case}");
        assert_eq!(self.headers["content-type"], "application/json", "{case}");
        assert_eq!(self.headers["access-control-allow-origin"], "*", "{case}");
    }
}

pub fn base() -> Value {
    json!({ "model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [{ "role": "user", "content": "hi" }] })
}

/// The base request with some members replaced; `null` in `remove` takes one away.
pub fn with(changes: Value) -> Value {
    let mut body = base();
    for (key, value) in changes.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

pub fn without(key: &str) -> Value {
    let mut body = base();
    body.as_object_mut().unwrap().remove(key);
    body
}

pub fn content(blocks: Value) -> Value {
    with(json!({ "messages": [{ "role": "user", "content": blocks }] }))
}

/// The `data` of each event of an SSE text, in order.
pub fn events(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n"), "the stream ends in mid-event: {text:?}");
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

pub fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

pub const STREAM: fn() -> Value = || json!({ "stream": true });
