//! Whole processes: `kiro-server`s on one Redis, the simulated upstream beside them, and steady load on all of them.
//!
//! `KIRO_TEST_SERVER` names another binary than the one that this test was built with (`npm run soak:pool`: the release one).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiro_messages::proto::record::Account;
use kiro_messages::simulator::PROFILE_ARN;
use redis::Commands as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

#[path = "accounts.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod accounts;
#[path = "../../examples/load/client.rs"]
pub mod client;
#[path = "node_service.rs"]
pub mod node_service;
#[path = "redis_server.rs"]
pub mod redis_server;

pub use accounts::{POOL, token_key};
use client::{Client, Face, Outcome, Plan};
use node_service::NodeService;
use redis_server::RedisServer;

pub const KEY: &str = "client-key-1";
/// Starting a process on a busy machine takes that long at most.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);

/// The full size of every test here takes minutes: `npm run soak:pool`. `npm test` runs smaller ones of the longest.
pub fn full_size() -> bool {
    std::env::var_os("KIRO_TEST_FULL_SIZE").is_some()
}

/// A line of figures. It is shown for a test that passes, too: written past libtest's capture.
pub fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "  {line}").expect("standard output");
}

/// `kiro-server`, built with this test or named by `KIRO_TEST_SERVER`.
pub fn binary() -> PathBuf {
    std::env::var_os("KIRO_TEST_SERVER").map_or_else(|| env!("CARGO_BIN_EXE_kiro-server").into(), PathBuf::from)
}

/// A process of `kiro-server` that listens; killed on drop.
pub struct Process {
    child: Child,
    address: String,
    said: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Nothing of the caller's own set-up reaches it.
    pub fn start(arguments: &[&str], environment: &[(String, String)]) -> Self {
        let mut child = Command::new(binary())
            .args(arguments)
            .env_clear()
            .env("KIRO_LOG_FORMAT", "json")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kiro-server starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (listens, listening) = mpsc::channel();
        let keep = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines {
                if let Some(address) = line.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next()) {
                    // Said once; later lines find nobody who waits.
                    let _heard = listens.send(address.to_owned());
                }
                keep.lock().unwrap().push(line);
            }
        });
        let address = listening.recv_timeout(LISTENS_WITHIN);
        let address = address.unwrap_or_else(|_| panic!("{arguments:?} does not listen: {:#?}", said.lock().unwrap()));
        Self { child, address, said }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its log so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    /// Its log without the lines of requests that went well.
    pub fn trouble(&self) -> Vec<String> {
        let fine = |line: &String| line.contains("\"request_id\"") && line.contains("\"stop_reason\":\"end_turn\"");
        self.said().into_iter().filter(|line| !fine(line)).collect()
    }

    /// Uses that it told to be uncertain: their reply was lost and another process has written since (R22).
    pub fn given_up(&self) -> u64 {
        let lines = self.said().into_iter().filter(|line| line.contains("uses count as written"));
        lines.map(|line| serde_json::from_str::<Value>(&line).unwrap()["uses"].as_u64().unwrap()).sum()
    }

    /// When it said this so far, in ms since 1970.
    pub fn said_at(&self, message: &str) -> Vec<i64> {
        let lines = self.said();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told = lines.filter(|line| line["message"] == message);
        told.map(|line| line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond())
            .collect()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, as a supervisor ends it; it must end well.
    pub async fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let code = tokio::task::block_in_place(|| self.child.wait().unwrap().code());
        assert_eq!(code, Some(0), "{:#?}", self.said());
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        resident.unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One Redis with accounts.
pub struct Stage {
    pub redis: RedisServer,
    pub http: reqwest::Client,
    folder: tempfile::TempDir,
}

impl Stage {
    pub fn new(redis: RedisServer) -> Self {
        // reqwest wants a TLS provider even for plain http; another test of this process may have been first.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { redis, http, folder: tempfile::tempdir().unwrap() }
    }

    /// With so many ordinary accounts: [`id`], [`access`].
    pub fn with_accounts(count: usize) -> Self {
        let stage = Self::new(RedisServer::start());
        for n in 0..count {
            stage.add(n, &json!({ "uuid": id(n), "isHealthy": true, "usageCount": 0, "errorCount": 0 }).to_string());
        }
        stage
    }

    /// An account record as text, with a token that lives long.
    pub fn add(&self, n: usize, record: &str) {
        let mut redis = self.redis.connection();
        redis.hset::<_, _, _, ()>(POOL, id(n), record).unwrap();
        self.set_token(n, &token(n, &access(n), "2099-01-01T00:00:00.000Z"));
    }

    pub fn set_token(&self, n: usize, token: &Value) {
        self.redis.connection().set::<_, _, ()>(token_key(&id(n)), token.to_string()).unwrap();
    }

    pub fn token(&self, n: usize) -> Value {
        let text: String = self.redis.connection().get(token_key(&id(n))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The account records as they lie there.
    pub fn records(&self) -> BTreeMap<String, String> {
        self.redis.connection().hgetall(POOL).unwrap()
    }

    pub fn account(&self, n: usize) -> Account {
        Account::parse(self.records()[&id(n)].as_bytes(), &id(n)).unwrap()
    }

    /// All usage counts together. Not by HGETALL, by which tests recognise others' snapshots.
    pub fn usage(&self) -> u64 {
        let all: Vec<String> = self.redis.connection().hvals(POOL).unwrap();
        all.iter().map(|record| Account::parse(record.as_bytes(), "a").unwrap().usage_count).sum()
    }

    /// A simulated upstream in a process of its own.
    pub async fn upstream(&self) -> Upstream {
        let process = tokio::task::block_in_place(|| Process::start(&["simulate", "--listen", "127.0.0.1:0"], &[]));
        Upstream { process, http: self.http.clone() }
    }

    /// Two servers that answer, each with its upstream (or both with one).
    pub async fn servers(&self, upstreams: [&Upstream; 2], options: &[(&str, &str)]) -> [Server; 2] {
        [self.server(upstreams[0], options).await, self.server(upstreams[1], options).await]
    }

    /// The Node.js service on the same Redis.
    pub fn node_service(&self, upstream: &Upstream) -> NodeService {
        NodeService::start(&self.redis.url(), &upstream.process.url("/refreshToken"))
    }

    /// A server with a file store: what Redis goes through is nothing to it.
    pub async fn bystander(&self, upstream: &Upstream) -> Server {
        let account = json!({ "uuid": id(0) });
        let token = token(0, "bystander", "2099-01-01T00:00:00.000Z");
        let content = json!({ "accounts": { id(0): account }, "tokens": { id(0): token } });
        let path = self.folder.path().join("bystander.json");
        std::fs::write(&path, content.to_string()).unwrap();
        let store = format!("file:{}", path.display());
        self.server(upstream, &[("KIRO_STORE", &store)]).await
    }

    /// A server that answers.
    pub async fn server(&self, upstream: &Upstream, options: &[(&str, &str)]) -> Server {
        let place = [
            ("REDIS_URL", self.redis.url()),
            ("KIRO_PORT", "0".to_owned()),
            ("KIRO_API_KEY", KEY.to_owned()),
            ("KIRO_UPSTREAM_URL", upstream.process.url("/generateAssistantResponse")),
            ("KIRO_SOCIAL_REFRESH_URL", upstream.process.url("/refreshToken")),
            ("KIRO_IDC_REFRESH_URL", upstream.process.url("/token")),
        ];
        let said = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut environment: Vec<(String, String)> = said.collect();
        environment.extend(
            place
                .into_iter()
                .filter(|(name, _)| options.iter().all(|(other, _)| other != name))
                .map(|(name, value)| (name.to_owned(), value)),
        );
        let process = tokio::task::block_in_place(|| Process::start(&[], &environment));
        let server = Server { process, http: self.http.clone() };
        let health = || async { server.health().await.is_some_and(|health| health["accounts"]["total"] != 0) };
        eventually("the server has its accounts", LISTENS_WITHIN, health).await;
        server
    }
}

/// A simulated upstream in a process of its own (docs/simulator.md).
pub struct Upstream {
    pub process: Process,
    http: reqwest::Client,
}

impl Upstream {
    pub async fn stats(&self) -> Value {
        let response = self.http.get(self.process.url("/_sim/stats")).send().await.unwrap();
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    }

    pub async fn script(&self, script: Value) {
        self.control("script", script.to_string()).await;
    }

    /// Forgets scripts, tokens and counters.
    pub async fn reset(&self) {
        self.control("reset", String::new()).await;
    }

    /// Chat requests with this access token.
    pub async fn calls(&self, token: &str) -> u64 {
        self.stats().await["calls_by_token"][token].as_u64().unwrap_or(0)
    }

    async fn control(&self, name: &str, body: String) {
        let sent = self.http.post(self.process.url(&format!("/_sim/{name}"))).body(body).send().await.unwrap();
        assert_eq!(sent.status(), 200, "{}", sent.text().await.unwrap());
    }
}

/// A `kiro-server`.
pub struct Server {
    pub process: Process,
    http: reqwest::Client,
}

impl Server {
    /// What `/health` says, with any status; none when nothing answers.
    pub async fn health(&self) -> Option<Value> {
        let response = self.http.get(self.process.url("/health")).send().await.ok()?;
        serde_json::from_str(&response.text().await.ok()?).ok()
    }

    pub async fn is_connected(&self) -> bool {
        self.health().await.is_some_and(|health| health["redis"] == "connected")
    }

    /// Streams of so many events with so long a gap.
    pub fn plan(&self, events: u64, gap: Duration) -> Plan {
        Plan {
            authority: self.process.address().to_owned(),
            face: Face::Messages,
            events,
            burst: None,
            first: Duration::ZERO,
            gap,
            prompt: 0,
            conversation: false,
            key: Some(KEY.to_owned()),
            timeout: Duration::from_secs(120),
        }
    }
}

/// One request of a [`Load`].
#[derive(Debug)]
pub struct Shot {
    /// Which plan.
    pub to: usize,
    pub began: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// Requests at a steady rate, in turn by each plan, whatever becomes of those before.
pub struct Load {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    shots: Arc<Mutex<Vec<Shot>>>,
}

impl Load {
    /// Until [`Load::stop`].
    pub fn start(plans: &[Plan], per_second: f64) -> Self {
        Self::turns(plans, per_second, (0..plans.len()).cycle().take(usize::MAX))
    }

    /// By these plans in this order, then it ends by itself.
    pub fn turns(plans: &[Plan], per_second: f64, turns: impl Iterator<Item = usize> + Send + 'static) -> Self {
        Self::at_most(usize::MAX, plans, per_second, turns)
    }

    /// The same, but slower when so many have not ended yet: nobody gets ahead of the others by more.
    pub fn at_most(
        open: usize,
        plans: &[Plan],
        per_second: f64,
        turns: impl Iterator<Item = usize> + Send + 'static,
    ) -> Self {
        let (stop, shots) = (CancellationToken::new(), Arc::<Mutex<Vec<Shot>>>::default());
        let idle: Vec<Arc<Mutex<Vec<Client>>>> = plans.iter().map(|_| Arc::default()).collect();
        let (plans, kept, stopped) = (plans.to_vec(), Arc::clone(&shots), stop.clone());
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            let began = Instant::now();
            for (n, to) in turns.enumerate() {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    () = sleep_until(began + Duration::from_secs_f64(n as f64 / per_second)) => {}
                }
                while running.try_join_next().is_some() {}
                while running.len() >= open {
                    running.join_next().await;
                }
                let (idle, shots) = (Arc::clone(&idle[to]), Arc::clone(&kept));
                let waiting = idle.lock().unwrap().pop();
                let mut client = waiting.unwrap_or_else(|| Client::new(plans[to].clone()));
                running.spawn(async move {
                    let began = Instant::now();
                    let outcome = client.stream(|| ()).await;
                    idle.lock().unwrap().push(client);
                    shots.lock().unwrap().push(Shot { to, began, ended: Instant::now(), outcome });
                });
            }
            while running.join_next().await.is_some() {}
        });
        Self { stop, task, shots }
    }

    /// The same at the highest of `per_second`, its half and its quarter that this machine keeps up with, a debug build
    /// on a busy one: what an overload does is another test's matter. After `warm`; with the rate and the requests made
    /// while looking for it.
    pub async fn keeping_up(plans: &[Plan], per_second: f64, warm: Duration) -> (Self, f64, Vec<Shot>) {
        let (mut rate, mut earlier) = (per_second, Vec::new());
        loop {
            let load = Self::start(plans, rate);
            sleep(warm).await;
            let begun = warm.as_secs_f64() * rate * 0.9;
            if load.nine_of_ten(begun as usize) < 100.0 || rate <= per_second / 4.0 {
                return (load, rate, earlier);
            }
            earlier.extend(load.stop().await);
            rate /= 2.0;
        }
    }

    /// The time to the first event that nine of ten of the requests so far stayed under, in milliseconds; a request
    /// that hasn't ended counts as late.
    fn nine_of_ten(&self, begun: usize) -> f64 {
        let shots = self.shots.lock().unwrap();
        let ended = shots.len();
        let at = first_event(shots.iter().map(|shot| &shot.outcome), (0.9 * begun as f64 / ended as f64).min(1.0));
        if ended * 10 < begun * 9 { f64::INFINITY } else { at }
    }

    /// Requests that have ended so far.
    pub fn ended(&self) -> usize {
        self.shots.lock().unwrap().len()
    }

    /// No further request; those under way end.
    pub async fn stop(self) -> Vec<Shot> {
        self.stop.cancel();
        self.all().await
    }

    /// When the last one of its turns has ended.
    pub async fn all(self) -> Vec<Shot> {
        self.task.await.unwrap();
        std::mem::take(&mut self.shots.lock().unwrap())
    }
}

/// No request may fail; else it says how, and what the servers said.
#[track_caller]
pub fn none_failed<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, servers: impl IntoIterator<Item = &'a Server>) {
    let mut failures = BTreeMap::<&str, usize>::new();
    for failure in outcomes.into_iter().filter_map(|outcome| outcome.failure.as_deref()) {
        *failures.entry(failure).or_default() += 1;
    }
    let trouble = || servers.into_iter().map(|server| server.process.trouble()).collect::<Vec<_>>();
    assert!(failures.is_empty(), "failed requests: {failures:?} {:#?}", trouble());
}

/// A quantile of the times to the first event, in milliseconds.
pub fn first_event<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, share: f64) -> f64 {
    let first = outcomes.into_iter().filter_map(|outcome| outcome.first_event);
    let mut first: Vec<f64> = first.map(|time| time.as_secs_f64() * 1e3).collect();
    first.sort_by(f64::total_cmp);
    let place = ((first.len() as f64 * share).ceil() as usize).max(1) - 1;
    first.get(place).copied().unwrap_or(f64::NAN)
}

/// The median time to the first event and its standard error, in milliseconds. The error says how much of a difference
/// is the machine's: 1.25 standard deviations (a quartile range is 1.35 of them) over the root of the number.
pub fn median_first_event<'a>(outcomes: impl IntoIterator<Item = &'a Outcome> + Clone) -> (f64, f64) {
    let at = |share| first_event(outcomes.clone(), share);
    let number = outcomes.clone().into_iter().filter(|outcome| outcome.first_event.is_some()).count();
    (at(0.5), 1.25 * (at(0.75) - at(0.25)) / 1.35 / (number as f64).sqrt())
}

/// The id of an account; in the order of their numbers.
pub fn id(n: usize) -> String {
    format!("{n:08}-0000-4000-8000-000000000000")
}

/// Its access token, as long as it wasn't refreshed.
pub fn access(n: usize) -> String {
    format!("access-{n}")
}

/// A social token record.
pub fn token(n: usize, access_token: &str, expires_at: &str) -> Value {
    json!({
        "accessToken": access_token, "refreshToken": format!("refresh-{n}"), "expiresAt": expires_at,
        "authMethod": "social", "profileArn": PROFILE_ARN, "region": "us-east-1",
    })
}

/// So many seconds from now, as records have it.
pub fn in_seconds(seconds: f64) -> String {
    let then = jiff::Timestamp::now() + jiff::SignedDuration::from_secs_f64(seconds);
    then.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// Waits until it is so; the answer is how long that took.
pub async fn eventually<F: Future<Output = bool>>(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> F,
) -> Duration {
    let began = Instant::now();
    while !check().await {
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}
