//! What these tests stand on: a gateway in this process, and the built server as a process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiro_messages::config::{Config, Face, RawConfig};
use kiro_messages::error::Error;
use kiro_messages::gateway::{Call, Gateway};
use kiro_messages::simulator::{PROFILE_ARN, Running, Simulator};
use serde_json::{Value, json};

use super::redis_server::RedisServer;

pub const FAR: &str = "2099-01-01T00:00:00.000Z";

/// A Redis with accounts, a simulated upstream and a gateway on both.
pub struct Place {
    pub gateway: Gateway,
    pub upstream: Running,
    pub redis: RedisServer,
}

impl Place {
    /// One account, `access-1`.
    pub async fn new(options: &[(&str, &str)]) -> Self {
        Self::with(&["access-1"], options).await
    }

    /// An account for each access token.
    pub async fn with(tokens: &[&str], options: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        for (n, token) in tokens.iter().enumerate() {
            add_account(&mut redis.connection(), "aiclient:", n, &social(token, FAR));
        }
        Self::on(redis, options).await
    }

    /// On a Redis that is there.
    pub async fn on(redis: RedisServer, options: &[(&str, &str)]) -> Self {
        let upstream = simulator();
        let gateway = Gateway::start(config(&redis, &upstream, options)).await.unwrap();
        Self { gateway, upstream, redis }
    }

    pub async fn ask(&self, body: Value) -> Result<Value, Error> {
        let message = self.gateway.create(body.to_string().into(), Call::default()).await?;
        Ok(serde_json::from_slice(&message.body).unwrap())
    }

    /// A request that upstream answers with this scenario.
    pub async fn scene(&self, scenario: &Value) -> Result<Value, Error> {
        self.ask(scene(scenario)).await
    }

    /// The last chat request as upstream saw it: headers, and the body as text.
    pub fn last_request(&self) -> Value {
        let stats = self.upstream.control().stats_with_bodies();
        let is_chat = |call: &&Value| call["body"].as_str().unwrap().contains("\"conversationState\"");
        stats["last"].as_array().unwrap().iter().rfind(is_chat).unwrap().clone()
    }

    pub fn calls(&self, token: &str) -> u64 {
        self.upstream.control().stats()["calls_by_token"][token].as_u64().unwrap_or(0)
    }
}

pub fn simulator() -> Running {
    Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap().spawn().unwrap()
}

/// The configuration of a gateway on these two; `options` beat what would be said.
pub fn config(redis: &RedisServer, upstream: &Running, options: &[(&str, &str)]) -> Config {
    let url = upstream.url();
    let mut all = vec![
        ("REDIS_URL", redis.url()),
        ("KIRO_API_KEY", super::world::KEY.to_owned()),
        ("KIRO_STORE_WAIT", "5s".to_owned()),
        ("KIRO_UPSTREAM_URL", format!("{url}/generateAssistantResponse")),
        ("KIRO_SOCIAL_REFRESH_URL", format!("{url}/refreshToken")),
        ("KIRO_IDC_REFRESH_URL", format!("{url}/token")),
    ];
    all.retain(|(name, _)| options.iter().all(|(other, _)| other != name));
    all.extend(options.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let raw = RawConfig::from_env(all.into_iter().map(|(name, value)| (name.to_owned(), value)));
    raw.resolve(Face::Server).unwrap()
}

pub fn account_id(n: usize) -> String {
    format!("{n:08}-0000-4000-8000-000000000000")
}

pub fn social(access: &str, expires_at: &str) -> Value {
    json!({
        "accessToken": access, "refreshToken": format!("refresh-{access}"), "authMethod": "social",
        "expiresAt": expires_at, "profileArn": PROFILE_ARN,
    })
}

pub fn add_account(connection: &mut redis::Connection, prefix: &str, n: usize, token: &Value) {
    let id = account_id(n);
    let mut set = redis::pipe();
    set.set(format!("{prefix}tokens:claude-kiro-oauth:{id}"), token.to_string()).ignore();
    set.hset(format!("{prefix}pools:claude-kiro-oauth"), &id, json!({ "uuid": id, "isHealthy": true }).to_string());
    set.query::<redis::Value>(connection).unwrap();
}

pub fn scene(scenario: &Value) -> Value {
    super::world::with(json!({ "messages": [{ "role": "user", "content": format!("[[sim {scenario}]]") }] }))
}

/// Asks again and again, for at most 10 s.
pub async fn within_10_s(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The built server as a process; killed when it is dropped.
pub struct Server {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts it and waits for its line `listening`. It listens on a free port and has one simulated account.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let server = Self::spawn(arguments, environment);
        server.line("listening", |line| line["message"] == "listening");
        server
    }

    pub fn spawn(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
            .args(arguments)
            .env_clear()
            .env("KIRO_PORT", "0")
            .env("KIRO_UPSTREAM", "simulator")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let (stderr, heard) = (child.stderr.take().unwrap(), lines.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        Self { child, lines }
    }

    /// The first log line of this kind, waited for up to 20 s.
    pub fn line(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.lines_from(0, what, is).1
    }

    /// The first log line of this kind from the `from`th on, and its place.
    pub fn lines_from(&self, from: usize, what: &str, is: impl Fn(&Value) -> bool) -> (usize, Value) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let lines = self.lines();
            let json = |line: &String| serde_json::from_str::<Value>(line).ok();
            let found =
                lines.iter().enumerate().skip(from).find_map(|(n, line)| json(line).filter(&is).map(|l| (n, l)));
            if let Some(found) = found {
                return found;
            }
            assert!(Instant::now() < deadline, "no line `{what}` in\n{}", lines.join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    pub fn address(&self) -> String {
        let line = self.line("listening", |line| line["message"] == "listening");
        line["address"].as_str().unwrap().to_owned()
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Its exit code, waited for up to 20 s.
    pub fn ended(&mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.lines().join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a request for an answer.
    pub async fn ask(&self, key: &str, body: &Value) -> reqwest::Response {
        let sent = client().post(format!("http://{}/v1/messages", self.address())).header("x-api-key", key);
        sent.body(body.to_string()).send().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}
