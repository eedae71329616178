//! Pool and credentials on a real `redis-server`, with a refresh address of the test's own: acceptance cases of
//! contract/cases.md by number.
#![cfg(feature = "gateway")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use kiro_messages::config::{Config, Face, RawConfig};
use kiro_messages::credentials::{Credentials, LookUp, RefreshError};
use kiro_messages::error::Code;
use kiro_messages::gateway::Gateway;
use kiro_messages::policy::health::{Event, Outcome, State};
use kiro_messages::policy::learned::{Lesson, Variant};
use kiro_messages::pool::{Hooks, Pool, PoolEvent, Stood, Wanted, Why};
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::proto::kiro::profile::{BUILDER_ID_PROFILE, Kind};
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::kiro::token::Refusal;
use kiro_messages::secret::Secret;
use kiro_messages::store::{Clock, RedisConfig, RedisServer as Server, Store, StoreConfig};
use kiro_messages::upstream::Upstream;
use redis::Commands as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

#[allow(dead_code, reason = "shared with other tests")]
#[path = "support/redis_server.rs"]
mod redis_server;

use redis_server::RedisServer;

const POOL: &str = "aiclient:pools:claude-kiro-oauth";
const COUNTER: &str = "aiclient:kiro:round-robin-counter";
/// A token that lives for a day after T0.
const LIVE: &str =
    r#"{"accessToken":"live","refreshToken":"r","expiresAt":"2026-11-24T10:00:00.000Z","authMethod":"social"}"#;

fn t0() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

fn token_key(id: &str) -> String {
    format!("aiclient:tokens:claude-kiro-oauth:{id}")
}

fn lock_key(id: &str) -> String {
    format!("aiclient:token-lock:claude-kiro-oauth:{id}")
}

/// A wall clock that the test moves.
#[derive(Clone)]
struct Time(Arc<AtomicI64>);

impl Time {
    fn new() -> Self {
        Self(Arc::new(AtomicI64::new(t0().as_millisecond())))
    }

    fn clock(&self) -> Clock {
        let millis = self.0.clone();
        Arc::new(move || Timestamp::from_millisecond(millis.load(Ordering::Relaxed)).unwrap())
    }

    fn set(&self, text: &str) {
        self.0.store(text.parse::<Timestamp>().unwrap().as_millisecond(), Ordering::Relaxed);
    }

    fn pass(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1000, Ordering::Relaxed);
    }
}

/// A refresh call as the address saw it.
struct Call {
    path: String,
    headers: HeaderMap,
    body: serde_json::Value,
}

type Reply = Pin<Box<dyn Future<Output = (u16, String)> + Send>>;
type Answer = Arc<dyn Fn(Arc<Call>) -> Reply + Send + Sync>;

/// A refresh address on loopback.
struct Address {
    url: String,
    calls: Arc<Mutex<Vec<Arc<Call>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Address {
    async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Arc<Call>) -> R + Send + Sync + 'static,
        R: Future<Output = (u16, String)> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::<Mutex<Vec<_>>>::default();
        let seen = calls.clone();
        let answer: Answer = Arc::new(move |call| Box::pin(answer(call)));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (seen, answer) = (seen.clone(), answer.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let call = Arc::new(Call {
                            path: parts.uri.to_string(),
                            headers: parts.headers,
                            body: serde_json::from_slice(&body).unwrap_or_default(),
                        });
                        seen.lock().unwrap().push(call.clone());
                        let (status, text) = answer(call).await;
                        let response = Response::builder().status(status).body(Full::new(Bytes::from(text)));
                        Ok::<_, std::convert::Infallible>(response.unwrap())
                    }
                });
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A client that goes away is the client's business.
                    let _ = connection.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { url, calls, task }
    }

    /// Grants `new` and `refresh-2`, for an hour.
    async fn granting() -> Self {
        Self::start(|_| async { (200, grant("new", Some("refresh-2"))) }).await
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn used(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter_map(|call| Some(call.body.get("refreshToken")?.as_str()?.to_owned())).collect()
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn grant(access: &str, refresh: Option<&str>) -> String {
    let refresh = refresh.map(|refresh| format!(r#","refreshToken":"{refresh}""#)).unwrap_or_default();
    format!(r#"{{"accessToken":"{access}"{refresh},"expiresIn":3600}}"#)
}

fn refused() -> (u16, String) {
    (400, r#"{"error":"invalid_grant","error_description":"Invalid refresh token provided"}"#.to_owned())
}

/// One process, as far as the store can tell.
struct Instance {
    pool: Pool,
    credentials: Credentials,
    events: Arc<Mutex<Vec<PoolEvent>>>,
}

impl Instance {
    async fn start(server: &RedisServer, time: &Time, options: &[(&str, &str)]) -> Self {
        Self::hosted(server, time, options, None).await
    }

    /// With a host program that may record outcomes itself.
    async fn hosted(
        server: &RedisServer,
        time: &Time,
        options: &[(&str, &str)],
        record: Option<kiro_messages::pool::Recorder>,
    ) -> Self {
        let store = StoreConfig::Redis(RedisConfig {
            server: Server::Url(Secret::new(server.url())),
            key_prefix: "aiclient:".to_owned(),
            connections: 2,
        });
        let store = Store::connect(&store).await.unwrap();
        let config = config(options);
        let events = Arc::<Mutex<Vec<_>>>::default();
        let heard = events.clone();
        let hooks = Hooks { record, event: Some(Arc::new(move |event| heard.lock().unwrap().push(event))) };
        let pool = Pool::start(store, &config, time.clock(), hooks);
        timeout(Duration::from_secs(5), pool.first_snapshot()).await.expect("a first snapshot");
        let upstream = Arc::new(Upstream::new(&config).unwrap());
        let credentials = Credentials::start(pool.clone(), upstream, &config);
        Self { pool, credentials, events }
    }

    fn state(&self, id: &str) -> State {
        self.pool.accounts().into_iter().find(|info| &*info.id == id).expect("the account").state
    }

    fn selected(&self) -> String {
        self.pool.select(&Wanted::default()).unwrap().account().id().to_string()
    }

    /// The token for one request of account `id`.
    async fn token_of(&self, id: &str) -> Result<String, Fault> {
        let wanted = Wanted { only: Some(id), ..Wanted::default() };
        let lease = self.pool.select(&wanted).map_err(|none| Fault::network(none.to_string()))?;
        self.credentials.access_token(&lease).await.map(|token| token.expose().to_owned())
    }

    /// Everything pending is in the store.
    async fn written(&self) {
        let left = self.pool.flush(Duration::from_secs(5)).await;
        assert!(left.is_empty(), "{left:?}");
    }

    async fn close(self) {
        self.credentials.close(Duration::from_secs(20)).await;
        assert!(self.pool.close(Duration::from_secs(5)).await.is_empty());
    }
}

fn config(options: &[(&str, &str)]) -> Config {
    let mut raw = RawConfig::default();
    for (name, value) in options {
        raw.set_option(name, value).unwrap();
    }
    raw.resolve(Face::Server).unwrap()
}

fn fault(kind: FaultKind, status: u16) -> Fault {
    Fault { kind, status: Some(status), reason: None, message: Default::default(), retry_after: None }
}

/// An account with its token, as they lie in Redis.
fn account(redis: &mut redis::Connection, id: &str, record: &str, token: &str) {
    redis.set::<_, _, ()>(token_key(id), token).unwrap();
    redis.hset::<_, _, _, ()>(POOL, id, record).unwrap();
}

fn record(redis: &mut redis::Connection, id: &str) -> String {
    redis.hget(POOL, id).unwrap()
}

fn token(redis: &mut redis::Connection, id: &str) -> String {
    redis.get(token_key(id)).unwrap()
}

async fn eventually(what: &str, within: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !check() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// What the reset button of the Node.js service's UI writes (R15).
fn ui_reset(redis: &mut redis::Connection, id: &str) {
    let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_str(&record(redis, id)).unwrap();
    for (name, value) in [
        ("isHealthy", serde_json::json!(true)),
        ("errorCount", serde_json::json!(0)),
        ("refreshCount", serde_json::json!(0)),
        ("needsRefresh", serde_json::json!(false)),
        ("lastErrorTime", serde_json::Value::Null),
    ] {
        fields.insert(name.to_owned(), value);
    }
    redis.hset::<_, _, _, ()>(POOL, id, serde_json::to_string(&fields).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_12_r58_a_rest_is_seen_by_the_other_instance_which_probes_after_it() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"uuid":"a1"}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let two = Instance::start(&server, &time, &[]).await;
    let lease = one.pool.select(&Wanted::default()).unwrap();
    lease.failed(&fault(FaultKind::RateLimited, 429), Stood::default());
    drop(lease);
    let marked = Instant::now();
    let gone = || two.pool.select(&Wanted::default()).is_err_and(|none| none.why == Why::Unavailable);
    eventually("the second instance leaves the account out", Duration::from_millis(5_100), gone).await;
    println!("seen by the other instance after {:?}", marked.elapsed());
    assert_eq!(
        record(&mut redis, "a1"),
        r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"cool-down until 2026-11-23T10:01:00.000Z: 429 rate limited","lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );
    time.pass(60);
    assert_eq!(two.state("a1"), State::HalfOpen);
    let probe = two.pool.select(&Wanted::default()).unwrap();
    assert!(two.pool.select(&Wanted::default()).is_err());
    probe.succeeded();
    assert_eq!(two.state("a1"), State::Healthy);
    two.written().await;
    one.pool.reload().await.unwrap();
    assert_eq!(one.state("a1"), State::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_13_a_good_request_heals() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let before = r#"{"uuid":"a1","isHealthy":false,"errorCount":3,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:01:00.000Z: 429 rate limited","scheduledRecoveryTime":null,"usageCount":41}"#;
    account(&mut redis, "a1", before, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    one.pool.select(&Wanted::default()).unwrap().succeeded();
    one.written().await;
    assert_eq!(
        record(&mut redis, "a1"),
        r#"{"uuid":"a1","isHealthy":true,"errorCount":0,"lastErrorTime":null,"lastErrorMessage":null,"scheduledRecoveryTime":null,"usageCount":42,"lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn case_14_a_stream_from_before_the_rest_only_counts() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"usageCount":7}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let stream = one.pool.select(&Wanted::default()).unwrap();
    time.pass(1);
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::RateLimited, 429), Stood::default());
    time.pass(1);
    stream.succeeded();
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(after.contains(r#""isHealthy":false"#) && after.contains(r#""usageCount":8"#), "{after}");
    one.pool.reload().await.unwrap();
    assert!(matches!(one.state("a1"), State::Cooling { .. }));
}

/// K91: the step stands in the record, so that a process that starts anew goes on from it.
#[tokio::test(flavor = "multi_thread")]
async fn k91_p53_a_new_process_goes_on_from_the_step_of_the_last_one() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"uuid":"a1"}"#, LIVE.replace("2026-11-24", "2027-11-24").as_str());
    for (step, minutes) in [(1, 30), (2, 120), (3, 360), (4, 720), (5, 1440), (6, 1440)] {
        let process = Instance::start(&server, &time, &[]).await;
        let began = Timestamp::from_millisecond(time.0.load(Ordering::Relaxed)).unwrap();
        let lease = process.pool.select(&Wanted::default()).unwrap();
        lease.failed(&fault(FaultKind::Suspicious, 429), Stood::default());
        drop(lease);
        process.written().await;
        process.pool.reload().await.unwrap();
        let message: serde_json::Value = serde_json::from_str(&record(&mut redis, "a1")).unwrap();
        let message = message["lastErrorMessage"].as_str().unwrap().to_owned();
        let State::Cooling { until } = process.state("a1") else { panic!("{message}") };
        assert_eq!(message, format!("cool-down until {until:.3}: suspicious activity ({step})"));
        let rest = until.duration_since(began).as_secs();
        assert!((minutes * 54..=minutes * 66).contains(&rest), "step {step}: {rest} s");
        time.pass(rest + 1);
        assert_eq!(process.state("a1"), State::HalfOpen, "R16");
        assert!(process.pool.probes_due().is_empty());
        process.close().await;
    }
    let process = Instance::start(&server, &time, &[]).await;
    process.pool.select(&Wanted::default()).unwrap().succeeded();
    process.written().await;
    let healed: serde_json::Value = serde_json::from_str(&record(&mut redis, "a1")).unwrap();
    assert_eq!(
        (&healed["isHealthy"], &healed["lastErrorMessage"]),
        (&serde_json::json!(true), &serde_json::Value::Null)
    );
}

/// The step in a record's mark; 0: it tells of none.
fn step_of(record: &serde_json::Value) -> u32 {
    let message = record["lastErrorMessage"].as_str().filter(|_| record["isHealthy"] == false).unwrap_or("");
    let after = message.split_once("suspicious activity (").map(|(_, after)| after);
    after.and_then(|after| after.split_once(')')).map_or(0, |(step, _)| step.parse().unwrap())
}

/// Whether a server error is why it rests: it is asked while nobody else is left.
fn rests_softly(process: &Instance) -> bool {
    let cause = process.pool.accounts().into_iter().find_map(|account| account.cause);
    cause.is_some_and(|cause| cause.ends_with("server error"))
}

/// Two processes, streams that outlive rests, faults of all kinds, snapshots and writes in any order. Whatever happens:
/// a process that saw a refusal offers the account to nobody until its rest is over or somebody healed it (R105); a rest's
/// wave is one step, no step is lost but by a conversation that ended well, and no probe is one (K91).
#[tokio::test(flavor = "multi_thread")]
async fn k91_r105_any_order_of_outcomes_snapshots_and_processes() {
    const RESTS: [i64; 5] = [30, 120, 360, 720, 1440];
    let server = RedisServer::start();
    let mut redis = server.connection();
    let token = LIVE.replace("2026-11-24", "2036-11-24");
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let time = Time::new();
        account(&mut redis, "a1", r#"{"uuid":"a1"}"#, &token);
        let options = [("accountCacheTtlMs", "3600000"), ("suspicionBrake", "off")];
        let processes =
            [Instance::start(&server, &time, &options).await, Instance::start(&server, &time, &options).await];
        let mut open: Vec<(usize, kiro_messages::pool::Lease)> = Vec::new();
        let mut before = 0;
        for round in 0..12 {
            let place = format!("seed {seed}, round {round}");
            let (mut healed, mut suspected) = (false, false);
            // Since when a process has known of a mark of its own that nobody lifted.
            let mut refused = [false; 2];
            for _ in 0..rng.usize(5..40) {
                let p = rng.usize(0..2);
                let process = &processes[p];
                match rng.u8(0..10) {
                    0..=3 => {
                        if let Ok(lease) = process.pool.select(&Wanted::default()) {
                            assert!(!refused[p], "{place}: offered after a refusal");
                            open.push((p, lease));
                        }
                    }
                    4..=6 if !open.is_empty() => {
                        let (p, lease) = open.swap_remove(rng.usize(0..open.len()));
                        let kind = match rng.u8(0..8) {
                            0..=3 => FaultKind::Suspicious,
                            4 => FaultKind::RateLimited,
                            5 => FaultKind::ServerError,
                            6 => FaultKind::Forbidden,
                            _ => {
                                if let Some(Outcome { event: Event::Success { heals: true, .. }, .. }) =
                                    lease.succeeded()
                                {
                                    (healed, refused[p]) = (true, false);
                                }
                                continue;
                            }
                        };
                        let outcome = lease.failed(&fault(kind, 429), Stood::default());
                        let rests = matches!(processes[p].state("a1"), State::Cooling { .. });
                        suspected |= kind == FaultKind::Suspicious && outcome.is_some();
                        refused[p] |= outcome.is_some() && rests && !rests_softly(&processes[p]);
                    }
                    7 => process.written().await,
                    8 => {
                        process.pool.reload().await.unwrap();
                        // Another process may have healed it.
                        refused[p] &= matches!(process.state("a1"), State::Cooling { .. }) && !rests_softly(process);
                        assert!(healed || !refused[p] || process.pool.select(&Wanted::default()).is_err(), "{place}");
                    }
                    _ => {
                        for probe in process.pool.probes_due() {
                            probe.succeeded();
                        }
                        // Twenty seconds a round at most: no rest ends in it.
                        time.0.fetch_add(rng.i64(0..500), Ordering::Relaxed);
                    }
                }
            }
            for process in &processes {
                process.written().await;
            }
            for process in &processes {
                process.pool.reload().await.unwrap();
            }
            let told: serde_json::Value = serde_json::from_str(&record(&mut redis, "a1")).unwrap();
            let step = step_of(&told);
            if healed {
                assert!(step <= before.max(1) + 1, "{place}: {before} to {step}: {told}");
            } else {
                assert!(step == before || step == before + 1, "{place}: {before} to {step}: {told}");
                assert!(step > 0 || !suspected, "{place}: {told}");
            }
            before = step;
            let now = Timestamp::from_millisecond(time.0.load(Ordering::Relaxed)).unwrap();
            let states = processes.each_ref().map(|process| process.state("a1"));
            assert_eq!(states[0].as_str(), states[1].as_str(), "{place}: {told}");
            if let State::Cooling { until } = states[0] {
                let longest = RESTS[usize::try_from(step.clamp(1, 5)).unwrap() - 1] * 66;
                let rest = until.duration_since(now).as_secs();
                assert!(rest <= longest.max(3600), "{place}: {rest} s in step {step}");
                if !healed && told["lastErrorMessage"].as_str().unwrap().contains(": suspicious activity") {
                    assert!(rest >= longest / 66 * 54 - 60, "{place}: {rest} s in step {step}: {told}");
                }
                time.0.fetch_add((rest + 61) * 1000, Ordering::Relaxed);
            }
        }
        drop(open);
        for process in processes {
            process.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_15_case_16_quota_lasts_to_the_turn_of_the_month_or_a_reset() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"uuid":"a1","isHealthy":true,"errorCount":0}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::QuotaMonth, 402), Stood::default());
    one.written().await;
    assert_eq!(
        record(&mut redis, "a1"),
        r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z","lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );
    one.pool.reload().await.unwrap();
    let none = one.pool.select(&Wanted::default()).unwrap_err();
    assert_eq!((none.is_lasting(), none.retry_after), (true, None), "M85");
    ui_reset(&mut redis, "a1");
    one.pool.reload().await.unwrap();
    assert_eq!(one.state("a1"), State::Healthy, "case 16");
    time.set("2026-12-07T08:00:00Z");
    redis.set::<_, _, ()>(token_key("a1"), LIVE.replace("2026-11-24", "2027-11-24")).unwrap();
    one.pool.reload().await.unwrap();
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::QuotaMonth, 402), Stood::default());
    one.written().await;
    let december = record(&mut redis, "a1");
    assert!(december.contains(r#""scheduledRecoveryTime":"2027-01-01T00:00:00.000Z""#), "{december}");
}

#[tokio::test(flavor = "multi_thread")]
async fn case_17_a_suspended_account_is_out_until_a_person_acts() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", "{}", &LIVE.replace("2026-11-24", "2036-11-24"));
    let one = Instance::start(&server, &time, &[]).await;
    let mut suspended = fault(FaultKind::Suspended, 403);
    suspended.reason = Some("TEMPORARILY_SUSPENDED".into());
    one.pool.select(&Wanted::default()).unwrap().failed(&suspended, Stood::default());
    one.written().await;
    let marked = record(&mut redis, "a1");
    let message = r#""lastErrorMessage":"ejected: 403 suspended (TEMPORARILY_SUSPENDED)""#;
    assert!(marked.contains(r#""errorCount":10"#) && marked.contains(message), "{marked}");
    assert!(matches!(&one.events.lock().unwrap()[..], [PoolEvent::Ejected { id, .. }] if &**id == "a1"));
    time.set("2028-01-01T00:00:00Z");
    one.pool.reload().await.unwrap();
    assert_eq!(one.state("a1"), State::Ejected);
    ui_reset(&mut redis, "a1");
    one.pool.reload().await.unwrap();
    assert_eq!(one.selected(), "a1");
}

#[tokio::test(flavor = "multi_thread")]
async fn case_18_one_of_twenty_probes() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"isHealthy":false}"#, LIVE);
    account(&mut redis, "a2", "{}", LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let pool = one.pool.clone();
        tasks.spawn(async move { pool.select(&Wanted::default()).unwrap() });
    }
    let leases = tasks.join_all().await;
    assert_eq!(leases.iter().filter(|lease| &**lease.account().id() == "a1").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_20_round_robin_by_the_shared_counter() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a2", "a3", "a1"] {
        account(&mut redis, id, "{}", LIVE);
    }
    let one = Instance::start(&server, &time, &[]).await;
    let turns: Vec<_> = (0..6).map(|_| one.selected()).collect();
    assert_eq!(turns, ["a1", "a2", "a3", "a1", "a2", "a3"]);
    assert_eq!(redis.get::<_, String>(COUNTER).unwrap(), "64");
    let two = Instance::start(&server, &time, &[]).await;
    assert_eq!(two.selected(), "a2", "ticket 64");
    assert_eq!(redis.get::<_, String>(COUNTER).unwrap(), "128");
    for _ in 0..300 {
        one.selected();
        sleep(Duration::from_micros(200)).await;
    }
    let counter: u64 = redis.get(COUNTER).unwrap();
    assert!((384..=512).contains(&counter), "306 + 1 tickets in blocks of 64: {counter}");
}

#[tokio::test(flavor = "multi_thread")]
async fn case_21_an_unusable_counter_is_left_alone() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a1", "a2", "a3"] {
        account(&mut redis, id, "{}", LIVE);
    }
    redis.set::<_, _, ()>(COUNTER, "abc").unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    let turns: Vec<_> = (0..200).map(|_| one.selected()).collect();
    assert!(turns.chunks(3).all(|three| three.iter().zip(["a1", "a2", "a3"]).all(|(got, wanted)| got == wanted)));
    assert_eq!(redis.get::<_, String>(COUNTER).unwrap(), "abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn case_22_k9_k100_a_builder_id_refresh_keeps_the_record() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let before = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":1767225600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","startUrl":"https://x.awsapps.com/start","n":[]}"#;
    account(
        &mut redis,
        "a1",
        &format!(
            r#"{{"needsRefresh":true,"refreshCount":2,"KIRO_REFRESH_IDC_URL":"{}/token?r={{region}}"}}"#,
            address.url
        ),
        before,
    );
    let one = Instance::start(&server, &time, &[]).await;
    eventually("the refresh", Duration::from_secs(5), || token(&mut redis, "a1") != before).await;
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-2","expiresAt":1795431600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","startUrl":"https://x.awsapps.com/start","n":[]}"#
    );
    eventually("lock gone", Duration::from_secs(1), || !redis.exists::<_, bool>(lock_key("a1")).unwrap()).await;
    one.written().await;
    let after = record(&mut redis, "a1");
    let healthy = r#""lastHealthCheckTime":"2026-11-23T10:00:00.000Z"}"#;
    assert!(after.starts_with(r#"{"needsRefresh":false,"refreshCount":0,"#) && after.ends_with(healthy), "{after}");
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!((address.calls(), one.state("a1")), (1, State::Healthy));
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!(call.path, "/token?r=us-east-1");
    assert_eq!(
        call.body,
        serde_json::json!({"refreshToken":"refresh-1","clientId":"c","clientSecret":"s","grantType":"refresh_token"})
    );
    let header = |name: &str| call.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("accept"), Some("application/json"));
    // K100: no version and no machine id.
    assert_eq!(header("x-amz-user-agent").unwrap(), "aws-sdk-js/3.980.0 KiroIDE");
    assert!(header("user-agent").unwrap().ends_with("api/sso-oidc#3.980.0 m/E KiroIDE"));
    assert_eq!(header("amz-sdk-request"), Some("attempt=1; max=4"));
    assert!(header("authorization").is_none() && header("accept-encoding").is_none());
    let told = one.events.lock().unwrap().clone();
    assert!(matches!(&told[..], [PoolEvent::TokenRefreshed { id, .. }] if &**id == "a1"), "{told:?}");
    one.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_23_k8_trap_35_a_social_refresh_learns_the_profile_and_keeps_the_refresh_token() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let answer = r#"{"accessToken":"new","expiresIn":3600,"profileArn":"arn:x"}"#;
    let address = Address::start(move |_| async move { (200, answer.to_owned()) }).await;
    let before = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T10:00:00Z","authMethod":"social","profileArn":""}"#;
    account(&mut redis, "a1", &format!(r#"{{"KIRO_REFRESH_URL":"{}/refreshToken"}}"#, address.url), before);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new", "an expired token is refreshed before the request goes out");
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some("arn:x"));
    eventually("saved", Duration::from_secs(5), || token(&mut redis, "a1") != before).await;
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-1","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social","profileArn":"arn:x"}"#
    );
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!((call.path.as_str(), &call.body), ("/refreshToken", &serde_json::json!({"refreshToken":"refresh-1"})));
    let machine = one.pool.account("a1").unwrap().machine_id().to_owned();
    assert_eq!(
        call.headers["user-agent"].to_str().unwrap(),
        format!("KiroIDE-{}-{machine}", kiro_messages::proto::kiro::client_identity::VERSION)
    );
    assert!(!call.headers.contains_key("x-amz-user-agent"));
}

fn expired(address: &Address) -> (String, &'static str) {
    (
        format!(r#"{{"KIRO_REFRESH_URL":"{}/r"}}"#, address.url),
        r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"social","region":"us-east-1"}"#,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn case_24_r59_k56_three_instances_refresh_once_under_three_hundred_requests() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async {
        sleep(Duration::from_millis(300)).await;
        (200, grant("new", Some("refresh-2")))
    })
    .await;
    let (record, token) = expired(&address);
    account(&mut redis, "a1", &record, token);
    let instances = [0; 3].map(|_| Instance::start(&server, &time, &[])).into_iter().collect::<Vec<_>>();
    let mut started = Vec::new();
    for instance in instances {
        started.push(Arc::new(instance.await));
    }
    let mut requests = JoinSet::new();
    let begun = Instant::now();
    for n in 0..300 {
        let instance = started[n % 3].clone();
        requests.spawn(async move { instance.token_of("a1").await });
    }
    let tokens = requests.join_all().await;
    assert!(tokens.iter().all(|token| token.as_deref() == Ok("new")), "{tokens:?}");
    println!("300 requests on 3 instances: {} refresh call(s), {:?}", address.calls(), begun.elapsed());
    assert_eq!(address.calls(), 1);
}

/// While a request waits for the lock, a snapshot brings the token of the one who held it: there is nothing left to do.
#[tokio::test(flavor = "multi_thread")]
async fn r40_r59_a_token_that_a_snapshot_brought_meanwhile_is_not_refreshed_again() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token) = expired(&address);
    account(&mut redis, "a1", &record, token);
    redis.set_ex::<_, _, ()>(lock_key("a1"), "1795427974000-other", 20).unwrap();
    let one = Arc::new(Instance::start(&server, &time, &[]).await);
    let waiting = tokio::spawn({
        let one = one.clone();
        async move { one.token_of("a1").await }
    });
    sleep(Duration::from_millis(100)).await;
    let theirs = token.replace("old", "theirs").replace("refresh-1", "refresh-2").replace("09:00:00", "11:00:00");
    redis.set::<_, _, ()>(token_key("a1"), theirs).unwrap();
    one.pool.reload().await.unwrap();
    redis.del::<_, ()>(lock_key("a1")).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "theirs");
    assert_eq!(address.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_25_r59_a_dead_holder_of_the_lock_stops_nobody_with_a_live_token() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token) = expired(&address);
    // Expires in 2 minutes: due for a background refresh, and live.
    account(&mut redis, "a1", &record, &token.replace("09:00:00", "10:02:00"));
    // What is left of a holder that died 26 s ago.
    redis.set_ex::<_, _, ()>(lock_key("a1"), "1795427974000-dead", 4).unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    let begun = Instant::now();
    while address.calls() == 0 {
        let asked = Instant::now();
        assert_eq!(one.token_of("a1").await.unwrap(), "old");
        assert!(asked.elapsed() < Duration::from_millis(50), "{:?}", asked.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(9), "4 s of lock and a look every second");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(3), "not before the lock was free");
    eventually("the new token", Duration::from_secs(1), || {
        one.credentials.credential("a1").unwrap().access_token == Some(Secret::new("new"))
    })
    .await;
}

/// The address does something to Redis while the refresh call is under way, then grants.
async fn meddling(server: &RedisServer, meddle: impl Fn(&mut redis::Connection) + Send + Sync + 'static) -> Address {
    let redis = Arc::new(Mutex::new(server.connection()));
    let meddle = Arc::new(meddle);
    Address::start(move |_| {
        let (redis, meddle) = (redis.clone(), meddle.clone());
        async move {
            meddle(&mut redis.lock().unwrap());
            (200, grant("new", Some("refresh-2")))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn case_26_somebody_changes_the_region_during_the_call() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = meddling(&server, |redis| {
        let record = token(redis, "a1").replace("us-east-1", "eu-west-1");
        redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-2","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social","region":"eu-west-1"}"#
    );
    assert_eq!(one.credentials.credential("a1").unwrap().region(), "eu-west-1");
}

/// R40 step 5: the answer names no profile, so the one that somebody has just put into the record is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn r40_somebody_changes_the_profile_during_the_call() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = meddling(&server, |redis| {
        let record = token(redis, "a1").replace("arn:old", "arn:new");
        redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    account(&mut redis, "a1", &record, &before.replace("us-east-1\"", "us-east-1\",\"profileArn\":\"arn:old\""));
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-2","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social","region":"us-east-1","profileArn":"arn:new"}"#
    );
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some("arn:new"));
}

/// R40 step 4: what the record says under the lock decides where the refresh goes, not what the last snapshot said.
#[tokio::test(flavor = "multi_thread")]
async fn r40_k10_a_refresh_goes_where_the_record_says_by_then() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let own = format!(
        r#"{{"KIRO_REFRESH_URL":"{0}/social/{{{{region}}}}","KIRO_REFRESH_IDC_URL":"{0}/idc/{{region}}"}}"#,
        address.url
    );
    account(&mut redis, "a1", &own, LIVE);
    account(&mut redis, "a2", &own, LIVE);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "3600000")]).await;
    // Somebody logs in again, another way and elsewhere.
    let login = r#"{"accessToken":"t","refreshToken":"refresh-1","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"IdC","clientId":"c","clientSecret":"s","idcRegion":"eu-west-1"}"#;
    redis.set::<_, _, ()>(token_key("a1"), login).unwrap();
    redis.set::<_, _, ()>(token_key("a2"), login.replace("eu-west-1", "evil.example.org/")).unwrap();
    assert!(one.credentials.refresh("a1").await.unwrap().is_some());
    assert_eq!(address.calls.lock().unwrap()[0].path, "/idc/eu-west-1");
    assert_eq!(one.credentials.refresh("a2").await, Err(RefreshError::NotRefreshable), "K11");
    assert_eq!(address.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_27_somebody_rotates_the_token_during_the_call() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let theirs = r#"{"accessToken":"theirs","refreshToken":"refresh-9","expiresAt":"2026-11-23T12:00:00.000Z","authMethod":"social"}"#;
    let address = meddling(&server, move |redis| redis.set::<_, _, ()>(token_key("a1"), theirs).unwrap()).await;
    let (record, before) = expired(&address);
    account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "theirs");
    assert_eq!(token(&mut redis, "a1"), theirs, "untouched");
    assert_eq!(one.credentials.counters().conflicts.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_28_the_account_is_deleted_during_the_call() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = meddling(&server, |redis| {
        redis.hdel::<_, _, ()>(POOL, "a1").unwrap();
        redis.del::<_, ()>(token_key("a1")).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    account(&mut redis, "a1", &record, before);
    account(&mut redis, "a2", "{}", LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new", "the running request may use it");
    one.close().await;
    assert!(!redis.hexists::<_, _, bool>(POOL, "a1").unwrap());
    assert!(!redis.exists::<_, bool>(token_key("a1")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn case_29_r41_a_rejected_refresh_token_ejects_until_there_is_another() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { refused() }).await;
    let (before, old) = expired(&address);
    account(&mut redis, "a1", &before, old);
    let one = Instance::start(&server, &time, &[]).await;
    let fault = one.token_of("a1").await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::TokenRejected);
    assert_eq!(address.used(), ["refresh-1"]);
    one.written().await;
    let ejected = "ejected: refresh token rejected (bd473e5d) in us-east-1; log in again";
    let marked = record(&mut redis, "a1");
    assert!(marked.contains(ejected) && marked.contains(r#""errorCount":10"#), "{marked}");
    assert_eq!(one.state("a1"), State::Ejected);
    time.pass(1_000_000);
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(address.calls(), 1, "ejected accounts are not refreshed");
    let new = LIVE.replace("\"r\"", "\"refresh-2\"").replace("2026-11-24", "2027-11-24");
    redis.set::<_, _, ()>(token_key("a1"), new).unwrap();
    eventually("half-open", Duration::from_secs(6), || one.state("a1") == State::HalfOpen).await;
    one.pool.select(&Wanted::default()).unwrap().succeeded();
    assert_eq!(one.state("a1"), State::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_30_r41_rejected_but_the_record_holds_another_token_by_now() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let other = Mutex::new(server.connection());
    let address = Address::start(move |call| {
        let first = call.body["refreshToken"] == "refresh-1";
        if first {
            let mut redis = other.lock().unwrap();
            let record = token(&mut redis, "a1").replace("refresh-1", "refresh-2");
            redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
        }
        async move { if first { refused() } else { (200, grant("new", Some("refresh-3"))) } }
    })
    .await;
    let (before, old) = expired(&address);
    account(&mut redis, "a1", &before, old);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(address.used(), ["refresh-1", "refresh-2"]);
    one.written().await;
    assert!(token(&mut redis, "a1").contains("refresh-3"));
    assert!(!record(&mut redis, "a1").contains("ejected"));
}

/// Each refresh goes well, and still there is no token that lives: its record is there all the same.
#[tokio::test(flavor = "multi_thread")]
async fn r45_a_token_that_ends_at_once_is_not_called_missing() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let turn = AtomicUsize::new(0);
    let address = meddling(&server, move |redis| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let theirs = format!(
            r#"{{"accessToken":"theirs","refreshToken":"theirs-{turn}","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"social"}}"#
        );
        redis.set::<_, _, ()>(token_key("a1"), theirs).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    let fault = one.token_of("a1").await.unwrap_err();
    assert!(fault.message.ends_with("another program put one there that has ended"), "{}", fault.message);
    assert_eq!((address.calls(), one.credentials.counters().conflicts.load(Ordering::Relaxed)), (3, 3));
    one.close().await;

    // Saving takes a while, and by then the new token has ended.
    let slow = meddling(&server, |redis| {
        redis::cmd("CLIENT").arg("PAUSE").arg(500).arg("WRITE").exec(redis).unwrap();
    })
    .await;
    let (record, before) = expired(&slow);
    account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    let (credentials, passing) = (one.credentials.clone(), time.clone());
    let ageing = tokio::spawn(async move {
        for refreshed in 1..=3 {
            while credentials.counters().refreshed.load(Ordering::Relaxed) < refreshed {
                sleep(Duration::from_millis(1)).await;
            }
            passing.pass(7_200);
        }
    });
    let fault = one.token_of("a1").await.unwrap_err();
    assert!(fault.message.ends_with("each new one ended before it could be used"), "{}", fault.message);
    ageing.await.unwrap();
    assert_eq!(slow.calls(), 3);
}

/// R41: one look at the record after a refusal tells whether there is another token, and is what goes out next.
#[tokio::test(flavor = "multi_thread")]
async fn r41_a_refusal_reads_the_record_once() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let (other, seen) = (Mutex::new(server.connection()), Arc::<Mutex<Vec<String>>>::default());
    let reads = seen.clone();
    let address = Address::start(move |call| {
        let used = call.body["refreshToken"].as_str().unwrap().to_owned();
        let turn = used.strip_prefix("refresh-").unwrap().parse::<u32>().unwrap();
        let mut redis = other.lock().unwrap();
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut *redis).unwrap();
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls=")?.split(',').next());
        reads.lock().unwrap().push(calls.unwrap_or("0").to_owned());
        if turn < 3 {
            let record = token(&mut redis, "a1").replace(&used, &format!("refresh-{}", turn + 1));
            redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
        }
        redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut *redis).unwrap();
        async move { if turn < 3 { refused() } else { (200, grant("new", Some("refresh-9"))) } }
    })
    .await;
    let (before, old) = expired(&address);
    account(&mut redis, "a1", &before, old);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "3600000")]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(address.used(), ["refresh-1", "refresh-2", "refresh-3"]);
    assert_eq!(seen.lock().unwrap()[1..], ["1", "1"], "reads from a refusal to the next call");
}

#[tokio::test(flavor = "multi_thread")]
async fn case_31_a_late_replay_is_overwritten_within_one_snapshot() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, before) = expired(&address);
    account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "300")]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    let ours = token(&mut redis, "a1");
    redis.set::<_, _, ()>(token_key("a1"), before).unwrap();
    eventually("ours again", Duration::from_secs(1), || token(&mut redis, "a1") == ours).await;
    assert_eq!((one.token_of("a1").await.unwrap().as_str(), address.calls()), ("new", 1));
    // Counted once Redis has answered, which is after the record can be seen.
    let counted = || one.pool.counters().tokens_written_back.load(Ordering::Relaxed);
    eventually("counted", Duration::from_secs(1), || counted() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_32_a_dropped_refresh_token_is_patched_back_once() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", "{}", &LIVE.replace("\"r\"", "\"refresh-1\""));
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "200")]).await;
    let without = LIVE.replace(r#""refreshToken":"r","#, "").replace("live", "live-2");
    redis.set::<_, _, ()>(token_key("a1"), &without).unwrap();
    let patched = format!(r#"{},"refreshToken":"refresh-1"}}"#, without.strip_suffix('}').unwrap());
    eventually("patched back", Duration::from_secs(2), || token(&mut redis, "a1") == patched).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "live-2");
    redis.set::<_, _, ()>(token_key("a1"), &without).unwrap();
    sleep(Duration::from_millis(800)).await;
    assert_eq!(token(&mut redis, "a1"), without, "at most once a minute");
}

/// R45: the account has a new id, its token lies under the old one.
#[tokio::test(flavor = "multi_thread")]
async fn case_33_a_renamed_account_refreshes_into_its_old_token_key() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, before) = expired(&address);
    redis.set::<_, _, ()>(token_key("old-id"), before).unwrap();
    let path = r#"{"KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:old-id","#;
    redis.hset::<_, _, _, ()>(POOL, "new-id", record.replacen('{', path, 1)).unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("new-id").await.unwrap(), "new");
    assert!(token(&mut redis, "old-id").contains("refresh-2"));
    assert!(!redis.exists::<_, bool>(token_key("new-id")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn case_34_a_rewrite_of_the_pool_under_load_is_not_noticed() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a1", "a2"] {
        account(&mut redis, id, "{}", LIVE);
    }
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    let (served, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load = {
        let (pool, served, failed) = (one.pool.clone(), served.clone(), failed.clone());
        tokio::spawn(async move {
            loop {
                match pool.select(&Wanted::default()) {
                    Ok(lease) => {
                        lease.succeeded();
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                sleep(Duration::from_millis(1)).await;
            }
        })
    };
    sleep(Duration::from_millis(300)).await;
    let fields: BTreeMap<String, String> = redis.hgetall(POOL).unwrap();
    redis.del::<_, ()>(POOL).unwrap();
    sleep(Duration::from_millis(300)).await;
    assert!(one.pool.is_doubtful() && !redis.exists::<_, bool>(POOL).unwrap(), "never written back");
    for (id, record) in &fields {
        redis.hset::<_, _, _, ()>(POOL, id, record).unwrap();
    }
    eventually("certain again", Duration::from_secs(2), || !one.pool.is_doubtful()).await;
    load.abort();
    println!("served {} requests over the rewrite", served.load(Ordering::Relaxed));
    assert!(served.load(Ordering::Relaxed) > 20 && failed.load(Ordering::Relaxed) == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_35_r56_a_pool_deleted_for_good_is_served_for_a_minute() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", "{}", LIVE);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    redis.del::<_, ()>(POOL).unwrap();
    eventually("noticed", Duration::from_secs(2), || one.pool.is_doubtful()).await;
    time.pass(59);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(one.selected(), "a1");
    time.pass(1);
    eventually("believed", Duration::from_secs(2), || one.pool.select(&Wanted::default()).is_err()).await;
    let none = one.pool.select(&Wanted::default()).unwrap_err().to_string();
    assert!(none.contains(POOL) && none.contains("accounts add"), "{none}");
}

/// Redis came up without its data, was stopped again, and gets it back from elsewhere: two empty reads with an outage
/// between them are no minute of empty reads.
#[tokio::test(flavor = "multi_thread")]
async fn r55_an_outage_between_empty_reads_does_not_count() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", "{}", LIVE);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    redis.del::<_, ()>(POOL).unwrap();
    eventually("noticed", Duration::from_secs(2), || one.pool.is_doubtful()).await;
    server.shutdown_save();
    eventually("lost", Duration::from_secs(5), || !one.pool.is_doubtful()).await;
    time.pass(120);
    server.restart();
    eventually("noticed again", Duration::from_secs(5), || one.pool.is_doubtful()).await;
    assert_eq!(one.selected(), "a1");
    time.pass(60);
    eventually("believed", Duration::from_secs(2), || one.pool.select(&Wanted::default()).is_err()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_38_a_token_that_expires_while_redis_is_down() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token_text) = expired(&address);
    account(&mut redis, "a1", &record, &token_text.replace("09:00:00", "10:10:00"));
    let one = Arc::new(Instance::start(&server, &time, &[]).await);
    assert_eq!(one.token_of("a1").await.unwrap(), "old");
    server.shutdown_save();
    time.set("2026-11-23T10:08:00Z");
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(
        (one.token_of("a1").await.unwrap().as_str(), address.calls()),
        ("old", 0),
        "R52: more than 60 s are left"
    );
    time.set("2026-11-23T10:10:00Z");
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let one = one.clone();
        requests.spawn(async move { one.token_of("a1").await });
    }
    assert!(requests.join_all().await.iter().all(|token| token.as_deref() == Ok("new")));
    assert_eq!(address.calls(), 1);
    server.restart();
    let back = Instant::now();
    let mut redis = server.connection();
    let expected =
        token_text.replace("\"old\"", "\"new\"").replace("refresh-1", "refresh-2").replace("09:00:00", "11:10:00");
    eventually("saved after the return", Duration::from_secs(3), || token(&mut redis, "a1") == expected).await;
    println!("saved {:?} after the return", back.elapsed());
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
}

/// What refusals leave on the account, and from which one on they are believed.
#[tokio::test(flavor = "multi_thread")]
async fn k57_k58_k59_k61_r41_what_a_refused_refresh_leaves() {
    let table = [
        // method, status, body, how many it takes, message
        ("social", 400, r#"{"message":"Invalid refresh token"}"#, 1, "refresh token rejected ({}) in us-east-1"),
        ("IdC", 400, r#"{"error":"invalid_grant"}"#, 1, "refresh token rejected ({}) in eu-west-1"),
        ("IdC", 401, r#"{"error":"invalid_client"}"#, 1, "client registration expired ({})"),
        ("social", 401, r#"{"message":"Bad credentials"}"#, 3, "refresh token rejected ({}) in us-east-1"),
        ("social", 404, r#"{"message":"Not found"}"#, 3, "refresh token rejected ({}) in us-east-1"),
    ];
    for (n, (method, status, body, believed_at, message)) in table.into_iter().enumerate() {
        let server = RedisServer::start();
        let (mut redis, time) = (server.connection(), Time::new());
        let address = Address::start(move |_| async move { (status, body.to_owned()) }).await;
        let own = format!(r#"{{"KIRO_REFRESH_URL":"{0}/r","KIRO_REFRESH_IDC_URL":"{0}/r"}}"#, address.url);
        let token = format!(
            r#"{{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"{method}","region":"eu-north-1","idcRegion":"eu-west-1","clientId":"c","clientSecret":"s"}}"#
        );
        account(&mut redis, "a1", &own, &token);
        let one = Instance::start(&server, &time, &[]).await;
        for refusal in 1..=believed_at {
            // An unknown answer (K61) counts however soon it comes, that of the background refresh too.
            if status != 404 {
                assert_ne!(one.state("a1"), State::Ejected, "{n}: before refusal {refusal}");
            }
            one.credentials.refresh("a1").await.unwrap_err();
            one.credentials.refresh("a1").await.unwrap_err();
            time.pass(61);
        }
        assert_eq!(one.state("a1"), State::Ejected, "{n}");
        assert!(address.calls() >= believed_at, "{n}");
        one.written().await;
        let marked = record(&mut redis, "a1");
        let message = format!("ejected: {}; log in again", message.replace("{}", "bd473e5d"));
        assert!(marked.contains(&message) && marked.contains(r#""errorCount":10"#), "{n}: {marked}");
    }
}

/// R41 while the store is away: somebody may have rotated the token without our seeing it.
#[tokio::test(flavor = "multi_thread")]
async fn r52_a_refusal_is_not_believed_while_redis_is_down() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { refused() }).await;
    let (record, token) = expired(&address);
    account(&mut redis, "a1", &record, &token.replace("09:00:00", "10:10:00"));
    let one = Instance::start(&server, &time, &[]).await;
    server.kill();
    time.set("2026-11-23T10:11:00Z");
    one.token_of("a1").await.unwrap_err();
    assert!(address.calls() >= 1);
    assert_eq!(one.state("a1"), State::Healthy, "not ejected");
}

/// Trap 34: a slow refresh of one account doesn't delay another.
#[tokio::test(flavor = "multi_thread")]
async fn r39_trap_34_credentials_refresh_side_by_side_and_outlive_their_callers() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        let slow = call.body["refreshToken"] == "slow";
        if slow {
            sleep(Duration::from_millis(800)).await;
        }
        (200, grant(if slow { "slow-new" } else { "fast-new" }, None))
    })
    .await;
    let (record, old) = expired(&address);
    account(&mut redis, "a1", &record, &old.replace("refresh-1", "slow"));
    account(&mut redis, "a2", &record, &old.replace("refresh-1", "fast"));
    let one = Instance::start(&server, &time, &[]).await;
    let left = timeout(Duration::from_millis(100), one.token_of("a1")).await;
    assert!(left.is_err(), "this client goes away");
    let begun = Instant::now();
    assert_eq!(one.token_of("a2").await.unwrap(), "fast-new");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    eventually("saved all the same", Duration::from_secs(2), || token(&mut redis, "a1").contains("slow-new")).await;
    assert_eq!(address.calls(), 2);
}

/// R38, K56: upstream rejected a token that was live by its expiry.
#[tokio::test(flavor = "multi_thread")]
async fn r38_k56_trap_36_a_forced_refresh_is_made_once_and_adopts_what_others_did() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let address = Address::start(move |_| {
        let n = counted.fetch_add(1, Ordering::Relaxed) + 1;
        async move { (200, grant(&format!("new-{n}"), None)) }
    })
    .await;
    let own = format!(r#"{{"KIRO_REFRESH_URL":"{}/r"}}"#, address.url);
    account(&mut redis, "a1", &own, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let two = Instance::start(&server, &time, &[]).await;
    let mut leases = Vec::new();
    for instance in [&one, &one, &two] {
        let lease = instance.pool.select(&Wanted::default()).unwrap();
        assert_eq!(instance.credentials.access_token(&lease).await.unwrap().expose(), "live");
        leases.push(lease);
    }
    let (first, second) =
        tokio::join!(one.credentials.force_refresh(&leases[0]), one.credentials.force_refresh(&leases[1]));
    assert_eq!((first.unwrap().expose(), second.unwrap().expose()), ("new-1", "new-1"));
    assert_eq!(two.credentials.force_refresh(&leases[2]).await.unwrap().expose(), "new-1", "read again under the lock");
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(one.credentials.force_refresh(&leases[0]).await.unwrap().expose(), "new-1", "within 30 s");
    time.pass(31);
    assert_eq!(one.credentials.force_refresh(&leases[0]).await.unwrap().expose(), "new-2");
    time.pass(31);
    assert_eq!(one.credentials.refresh("a1").await.unwrap(), Some(t0() + jiff::SignedDuration::from_secs(3662)));
    assert_eq!(one.credentials.refresh("a1").await.unwrap(), Some(t0() + jiff::SignedDuration::from_secs(3662)));
    assert_eq!(count.load(Ordering::Relaxed), 3);
    assert_eq!(one.credentials.refresh("a9").await, Err(RefreshError::Gone));
}

/// K60, R42: a passing failure is a fault of the attempt; the next one doesn't hammer the address.
#[tokio::test(flavor = "multi_thread")]
async fn k60_r42_a_passing_failure_pauses() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { (503, "busy".to_owned()) }).await;
    let (record, old) = expired(&address);
    account(&mut redis, "a1", &record, old);
    let one = Instance::start(&server, &time, &[]).await;
    // A person's doesn't wait for the end of a pause, which the background may have begun by now.
    let first = one.credentials.refresh("a1").await.unwrap_err();
    assert_eq!((first, first.fault().kind), (RefreshError::Refused(Refusal::Passing), FaultKind::ServerError));
    let calls = address.calls();
    let second = one.token_of("a1").await.unwrap_err();
    // Nothing was asked, so that nothing comes of it.
    assert_eq!((second.kind, address.calls()), (FaultKind::Unreachable, calls));
    assert_eq!(one.state("a1"), State::Healthy, "the attempt's report decides");
    time.pass(60);
    one.token_of("a1").await.unwrap_err();
    assert!(address.calls() > calls);
}

/// K51: an API key is the bearer, and nothing is refreshed.
#[tokio::test(flavor = "multi_thread")]
async fn k51_an_api_key_account_needs_no_refresh() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"needsRefresh":true}"#, r#"{"kiroApiKey":"ksk_1","refreshToken":"r"}"#);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "ksk_1");
    assert!(one.pool.account("a1").unwrap().is_api_key());
    let lease = one.pool.select(&Wanted::default()).unwrap();
    one.credentials.access_token(&lease).await.unwrap();
    assert_eq!(one.credentials.force_refresh(&lease).await.unwrap_err().kind, FaultKind::Forbidden);
}

/// R71, K84: the refresh token of an external account belongs to a third party, and is posted to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn r71_k84_nothing_of_an_external_account_is_sent() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { (200, r#"{"accessToken":"new"}"#.to_owned()) }).await;
    let own = format!(
        r#"{{"KIRO_BASE_URL":"{0}/x","KIRO_REFRESH_URL":"{0}/y","KIRO_REFRESH_IDC_URL":"{0}/z","needsRefresh":true}}"#,
        address.url
    );
    let external =
        r#"{"authMethod":"AzureAD","accessToken":"a","refreshToken":"secret","clientId":"c","clientSecret":"s"}"#;
    account(&mut redis, "a1", &own, external);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.state("a1"), State::Unusable);
    assert!(one.pool.accounts()[0].problem.as_deref().unwrap().starts_with("external identity provider"));
    assert_eq!(one.pool.accounts()[0].method.as_str(), "external");
    assert_eq!(one.credentials.refresh("a1").await, Err(RefreshError::NotRefreshable));
    one.pool.visit("a1").unwrap_err();
    sleep(Duration::from_millis(1_300)).await;
    assert_eq!(address.calls(), 0);
    assert_eq!(token(&mut redis, "a1"), external);
}

/// K62, R17: an account that nobody asks is asked for its usage, and a good answer heals it.
#[tokio::test(flavor = "multi_thread")]
async fn r17_k5_a_marked_account_without_traffic_is_probed_and_healed() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { (200, r#"{"usageBreakdownList":[]}"#.to_owned()) }).await;
    let own = format!(r#"{{"KIRO_BASE_URL":"{}/generateAssistantResponse","usageCount":5}}"#, address.url);
    account(&mut redis, "a1", &own, &LIVE.replacen('{', r#"{"profileArn":"arn:aws:x/y","#, 1));
    let one = Instance::start(&server, &time, &[]).await;
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::RateLimited, 429), Stood::default());
    one.written().await;
    assert!(record(&mut redis, "a1").contains(r#""isHealthy":false"#));
    time.pass(119);
    sleep(Duration::from_millis(1_300)).await;
    assert_eq!(address.calls(), 0);
    time.pass(1);
    eventually("healed", Duration::from_secs(4), || one.state("a1") == State::Healthy).await;
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(after.contains(r#""usageCount":5"#) && after.contains(r#""isHealthy":true"#), "{after}");
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!(
        call.path,
        "/getUsageLimits?isEmailRequired=true&origin=AI_EDITOR&resourceType=AGENTIC_REQUEST&profileArn=arn%3Aaws%3Ax%2Fy"
    );
    assert_eq!(call.headers["authorization"], "Bearer live");
    assert!(!call.headers.contains_key("content-type"));
}

const E1: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1";
const E2: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";
const C: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/CCCC";
const ENTERPRISE: &str = r#"{"accessToken":"live","refreshToken":"r","expiresAt":"2026-11-24T10:00:00.000Z","authMethod":"IdC","clientId":"c","clientSecret":"s","startUrl":"https://d-1.awsapps.com/start"}"#;
/// As the existing Node.js service writes it.
const UNSURE: &str = r#"{"accessToken":"live","refreshToken":"r","expiresAt":"2026-11-24T10:00:00.000Z","authMethod":"builder-id","clientId":"c","clientSecret":"s"}"#;
const NOT_BUILDER_ID: &str = r#"{"message":"AWS Builder ID is not supported for this operation."}"#;
const IMPROPER: &str = r#"{"message":"Improperly formed request.","reason":null}"#;
const NOT_AUTHORIZED: &str = r#"{"message":"User is not authorized to make this call."}"#;

/// A world of regions on one port: `{region}.localhost` is Kiro's host, `oidc-{region}.localhost` that of refresh. The
/// account lies in Redis already.
async fn regional(server: &RedisServer, time: &Time, address: &Address) -> Instance {
    let port = address.url.rsplit(':').next().unwrap();
    let upstream = format!("http://{{region}}.localhost:{port}/generateAssistantResponse");
    let refresh = format!("http://oidc-{{region}}.localhost:{port}/token");
    Instance::start(server, time, &[("upstreamUrl", &upstream), ("idcRefreshUrl", &refresh)]).await
}

impl Call {
    /// The first label of its host.
    fn region(&self) -> &str {
        self.headers["host"].to_str().unwrap().split('.').next().unwrap()
    }
}

impl Address {
    /// Where calls went, in order; of look-ups, refreshes or usage.
    fn regions(&self, path: &str) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.path.starts_with(path)).map(|call| call.region().to_owned()).collect()
    }
}

fn profiles(arns: &[&str]) -> (u16, String) {
    let list: Vec<_> = arns.iter().map(|arn| serde_json::json!({ "arn": arn, "status": "ACTIVE" })).collect();
    (200, serde_json::json!({ "profiles": list }).to_string())
}

/// Looks up and gives the answer and the account as it is then.
async fn looked_up(one: &Instance) -> (LookUp, Arc<kiro_messages::pool::AccountView>) {
    let mut lease = one.pool.visit("a1").unwrap();
    let ended = one.credentials.look_up_profiles(&mut lease).await;
    (ended, lease.account().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn k6_k64_k79_p6_a_profile_in_another_region_is_found_kept_and_used() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        match (call.path.as_str(), call.region()) {
            ("/token", _) => (200, grant("new", Some("refresh-2"))),
            (_, "eu-central-1") => profiles(&[E2]),
            _ => profiles(&[]),
        }
    })
    .await;
    account(&mut redis, "a1", "{}", ENTERPRISE);
    let one = regional(&server, &time, &address).await;
    assert!(one.pool.account("a1").unwrap().wants_profiles());
    let (ended, view) = looked_up(&one).await;
    assert_eq!((ended, view.profile_arn(), view.region()), (LookUp::Found, Some(E2), "eu-central-1"));
    assert_eq!(address.regions("/"), ["us-east-1", "eu-central-1"]);
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!((call.path.as_str(), &call.body), ("/", &serde_json::json!({"maxResults":10})));
    assert_eq!(call.headers["x-amz-target"], "AmazonCodeWhispererService.ListAvailableProfiles");
    assert_eq!(call.headers["content-type"], "application/x-amz-json-1.0");
    assert_eq!(looked_up(&one).await.0, LookUp::NotAsked, "10 min after an answer");
    one.written().await;
    let expected = ENTERPRISE.strip_suffix('}').unwrap();
    let expected = format!(r#"{expected},"profileArn":"{E2}","region":"eu-central-1","idcRegion":"us-east-1"}}"#);
    assert_eq!(token(&mut redis, "a1"), expected);
    one.pool.reload().await.unwrap();
    assert_eq!(one.pool.account("a1").unwrap().kind(), Kind::Enterprise);
    one.credentials.refresh("a1").await.unwrap();
    assert_eq!(address.regions("/token"), ["oidc-us-east-1"]);
    assert!(one.pool.accounts()[0].cause.is_none() && one.state("a1") == State::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn k73_k79_p7_p8_p9_what_a_record_of_the_node_service_turns_out_to_be() {
    let fixed = ENTERPRISE.replacen('{', &format!(r#"{{"profileArn":"{BUILDER_ID_PROFILE}","#), 1);
    let table = [
        (UNSURE.to_owned(), profiles(&[E1]), LookUp::Found, Kind::Enterprise, Some(E1), true),
        (
            UNSURE.to_owned(),
            (403, NOT_BUILDER_ID.to_owned()),
            LookUp::BuilderId,
            Kind::BuilderId,
            Some(BUILDER_ID_PROFILE),
            false,
        ),
        (fixed, profiles(&[E1]), LookUp::Found, Kind::Enterprise, Some(E1), true),
    ];
    for (n, (record, answer, expected, kind, arn, kept)) in table.into_iter().enumerate() {
        let server = RedisServer::start();
        let (mut redis, time) = (server.connection(), Time::new());
        let address = Address::start(move |call| {
            let answer = if call.region() == "us-east-1" { answer.clone() } else { profiles(&[]) };
            async move { answer }
        })
        .await;
        account(&mut redis, "a1", "{}", &record);
        let one = regional(&server, &time, &address).await;
        assert_eq!(one.pool.account("a1").unwrap().profile_arn(), None, "{n}: nothing goes out before it is asked");
        let (ended, view) = looked_up(&one).await;
        assert_eq!((ended, view.kind(), view.profile_arn()), (expected, kind, arn), "{n}");
        assert_eq!(address.calls(), if kept { 2 } else { 1 }, "{n}: one region is enough for a Builder ID");
        one.written().await;
        let saved = token(&mut redis, "a1");
        assert_eq!(saved.contains(E1), kept, "{n}: {saved}");
        assert!(!(kept && saved.contains(BUILDER_ID_PROFILE)) && (kept || saved == record), "{n}: {saved}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k79_p11_p20_who_gives_no_answer_is_asked_again_after_a_minute_and_once_for_all() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async {
        sleep(Duration::from_millis(50)).await;
        (503, String::new())
    })
    .await;
    account(&mut redis, "a1", "{}", &ENTERPRISE.replace("startUrl", r#"region":"ap-southeast-2","startUrl"#));
    let one = Arc::new(regional(&server, &time, &address).await);
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let one = one.clone();
        requests.spawn(async move { looked_up(&one).await.0 });
    }
    let ended: Vec<LookUp> = requests.join_all().await;
    assert!(ended.contains(&LookUp::Unanswered) && !ended.contains(&LookUp::Found));
    assert_eq!(address.regions("/"), ["us-east-1", "eu-central-1"], "exactly one call a region");
    time.pass(59);
    assert_eq!(looked_up(&one).await.0, LookUp::NotAsked);
    time.pass(1);
    looked_up(&one).await;
    assert_eq!(address.calls(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn k79_p13_p14_p15_pages_states_and_the_profile_that_is_proven() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        if call.region() != "us-east-1" {
            return (403, NOT_AUTHORIZED.to_owned());
        }
        let answer = match call.body.get("nextToken").and_then(|next| next.as_str()) {
            None => serde_json::json!({ "profiles": [{ "arn": E2, "status": "INACTIVE" }], "nextToken": "2" }),
            Some("2") => serde_json::json!({ "profiles": [{ "arn": E1, "status": "ACTIVE" }], "nextToken": "3" }),
            _ => serde_json::json!({ "profiles": [{ "arn": C }, { "arn": E1 }], "nextToken": "" }),
        };
        (200, answer.to_string())
    })
    .await;
    account(&mut redis, "a1", "{}", ENTERPRISE);
    let one = regional(&server, &time, &address).await;
    let (ended, view) = looked_up(&one).await;
    assert_eq!((ended, address.calls()), (LookUp::Found, 4));
    let listed = [Variant::Listed(E1.into()), Variant::Listed(C.into()), Variant::None];
    assert_eq!(view.variants(), listed);
    one.written().await;
    assert_eq!(token(&mut redis, "a1"), ENTERPRISE, "which of them is right isn't known yet");
    let lease = one.pool.visit("a1").unwrap();
    lease.learn(Lesson::VariantRefused { shape: Shape::Q, variant: listed[0].clone(), by_400: false });
    let next = lease.learned(|learned, now| learned.next_variant(Shape::Q, &listed, now).cloned());
    assert_eq!(next, Some(listed[1].clone()));
    lease.learn(Lesson::VariantProven(Shape::Q, listed[1].clone()));
    one.written().await;
    assert!(token(&mut redis, "a1").contains(C));
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some(C));
    // Our own write changes nothing of what was learned.
    one.pool.reload().await.unwrap();
    let own = [Variant::Own(C.into())];
    assert!(lease.learned(|learned, _| learned.is_proven(Shape::Q, &own[0])));
    // P21: somebody else's does.
    let by_hand = token(&mut redis, "a1").replace(C, E2);
    redis.set::<_, _, ()>(token_key("a1"), by_hand).unwrap();
    one.pool.reload().await.unwrap();
    let view = one.pool.account("a1").unwrap();
    assert_eq!((view.profile_arn(), view.region()), (Some(E2), "eu-central-1"));
    assert!(lease.learned(|learned, now| learned.listed().is_empty() && learned.may_ask_profiles(now)));
}

/// The background asks for accounts without an ARN by itself, one a second.
#[tokio::test(flavor = "multi_thread")]
async fn k79_profiles_are_looked_up_in_the_background() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { profiles(&[E1]) }).await;
    let expired = ENTERPRISE.replace("2026-11-24", "2026-11-22");
    for (id, record) in [("a1", ENTERPRISE), ("a2", LIVE), ("a3", &expired)] {
        account(&mut redis, id, r#"{"isDisabled":false}"#, record);
    }
    let one = regional(&server, &time, &address).await;
    eventually("found", Duration::from_secs(5), || {
        one.pool.account("a1").is_some_and(|view| view.profile_arn() == Some(E1))
    })
    .await;
    let asked = address.regions("/");
    assert_eq!(asked.iter().filter(|region| !region.starts_with("oidc")).count(), 2, "not the social one: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn k80_p22_usage_goes_on_without_the_profile_and_remembers_it() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        if call.path.contains("profileArn") { (400, IMPROPER.to_owned()) } else { (200, "{}".to_owned()) }
    })
    .await;
    account(&mut redis, "a1", "{}", &ENTERPRISE.replacen('{', &format!(r#"{{"profileArn":"{E1}","#), 1));
    let one = regional(&server, &time, &address).await;
    let lease = one.pool.visit("a1").unwrap();
    one.credentials.usage_limits(&lease).await.unwrap();
    assert_eq!(address.calls(), 2, "with and without");
    one.credentials.usage_limits(&lease).await.unwrap();
    assert_eq!(address.calls(), 3, "at once without");
    assert_eq!(one.state("a1"), State::Healthy);
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some(E1), "it says nothing of conversations");
}

#[tokio::test(flavor = "multi_thread")]
async fn k80_usage_without_a_profile_is_asked_in_another_region_and_with_the_fixed_one() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        let key = call.headers["authorization"] == "Bearer ksk_1";
        match (call.path.contains("profileArn"), call.region()) {
            (false, "eu-central-1") if key => (200, "{}".to_owned()),
            (true, _) if !key => (200, "{}".to_owned()),
            _ => (403, NOT_AUTHORIZED.to_owned()),
        }
    })
    .await;
    account(&mut redis, "a1", "{}", r#"{"kiroApiKey":"ksk_1"}"#);
    account(&mut redis, "a2", "{}", LIVE);
    let one = regional(&server, &time, &address).await;
    one.credentials.usage_limits(&one.pool.visit("a1").unwrap()).await.unwrap();
    assert_eq!(address.regions("/getUsage"), ["us-east-1", "eu-central-1"]);
    one.credentials.usage_limits(&one.pool.visit("a2").unwrap()).await.unwrap();
    let path = address.calls.lock().unwrap().last().unwrap().path.clone();
    assert!(path.contains("699475941385"), "a social account's fixed one comes last: {path}");
    assert!(address.calls() <= 2 + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn k76_p23_p24_a_refresh_is_granted_in_another_region() {
    let table = [
        (
            format!(r#""idcRegion":"us-east-1","profileArn":"{E2}""#),
            "oidc-eu-central-1",
            r#"{"error":"invalid_grant"}"#,
            &["oidc-us-east-1", "oidc-eu-central-1"][..],
            r#""idcRegion":"us-east-1""#,
        ),
        (
            r#""region":"ap-southeast-1""#.to_owned(),
            "oidc-eu-west-1",
            r#"{"__type":"InvalidRequestRegionException","region":"eu-west-1"}"#,
            &["oidc-ap-southeast-1", "oidc-eu-west-1"],
            r#""idcRegion":"eu-west-1""#,
        ),
    ];
    for (more, right, refusal, expected, saved) in table {
        let server = RedisServer::start();
        let (mut redis, time) = (server.connection(), Time::new());
        let address = Address::start(move |call| {
            let granted = call.region() == right;
            async move { if granted { (200, grant("new", None)) } else { (400, refusal.to_owned()) } }
        })
        .await;
        let record = ENTERPRISE.replace("11-24T", "11-22T").replacen('{', &format!("{{{more},"), 1);
        account(&mut redis, "a1", "{}", &record);
        let one = regional(&server, &time, &address).await;
        assert_eq!(one.token_of("a1").await.unwrap(), "new");
        assert_eq!(address.regions("/token"), expected);
        eventually("saved", Duration::from_secs(5), || token(&mut redis, "a1").contains("new")).await;
        let after = token(&mut redis, "a1");
        assert!(after.contains(saved) && after.matches("idcRegion").count() == 1, "{after}");
        time.pass(3600);
        one.pool.reload().await.unwrap();
        one.credentials.refresh("a1").await.unwrap();
        assert_eq!(address.regions("/token").last().map(String::as_str), Some(right), "remembered");
        assert_eq!(address.regions("/token").len(), expected.len() + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k76_p25_a_dead_token_is_tried_in_four_regions_and_ejected() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address =
        Address::start(|_| async { (400, r#"{"error":"invalid_grant","region":"eu-north-1"}"#.to_owned()) }).await;
    let more = format!(r#"{{"idcRegion":"eu-west-1","region":"ap-southeast-1","profileArn":"{E2}","#);
    let record = ENTERPRISE.replace("11-24T", "11-22T").replacen('{', &more, 1);
    account(&mut redis, "a1", "{}", &record);
    let one = regional(&server, &time, &address).await;
    one.token_of("a1").await.unwrap_err();
    let tried = ["oidc-eu-west-1", "oidc-eu-north-1", "oidc-ap-southeast-1", "oidc-eu-central-1"];
    assert_eq!(address.regions("/token"), tried);
    assert_eq!(one.state("a1"), State::Ejected);
    one.written().await;
    let marked = self::record(&mut redis, "a1");
    assert!(marked.contains("in eu-west-1, eu-north-1, ap-southeast-1, eu-central-1; log in again"), "{marked}");
}

/// K60 stands above K76: whoever could still say yes keeps the account from being ejected.
#[tokio::test(flavor = "multi_thread")]
async fn k76_a_region_that_is_busy_is_no_refusal() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| {
        let refused = call.region() == "oidc-eu-west-1";
        async move { if refused { (400, r#"{"error":"invalid_grant"}"#.to_owned()) } else { (503, String::new()) } }
    })
    .await;
    let record = ENTERPRISE.replace("11-24T", "11-22T").replacen('{', r#"{"idcRegion":"eu-west-1","#, 1);
    account(&mut redis, "a1", "{}", &record);
    let one = regional(&server, &time, &address).await;
    one.token_of("a1").await.unwrap_err();
    assert_ne!(one.state("a1"), State::Ejected);
}

/// Bar of the pool: what rests is met by nobody, and is back within a second after its rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_rest_concerns_one_account_only() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    for n in 0..20 {
        account(&mut redis, &format!("a{n:02}"), "{}", &LIVE.replace("2026-11-24", "2099-11-24"));
    }
    // The real clock: the rest is 2 s by Retry-After.
    let time = Time::new();
    let clock = time.clone();
    let ticking = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(10)).await;
            clock.0.fetch_add(10, Ordering::Relaxed);
        }
    });
    let one = Instance::start(&server, &time, &[]).await;
    let mut limited = fault(FaultKind::RateLimited, 429);
    limited.retry_after = Some(kiro_messages::proto::kiro::fault::RetryAfter::Seconds(2));
    let (mut met, mut rested, mut back) = (0, None, None);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) && back.is_none() {
        let lease = one.pool.select(&Wanted::default()).unwrap();
        if &**lease.account().id() == "a07" {
            match rested {
                None => {
                    lease.failed(&limited, Stood::default());
                    rested = Some(time.0.load(Ordering::Relaxed));
                }
                Some(since) if time.0.load(Ordering::Relaxed) - since < 2_000 => met += 1,
                Some(since) => {
                    lease.succeeded();
                    back = Some(time.0.load(Ordering::Relaxed) - since);
                }
            }
        } else {
            lease.succeeded();
        }
        sleep(Duration::from_millis(5)).await;
    }
    ticking.abort();
    println!("met while resting: {met}; back after {back:?} ms of a rest of 2000 ms");
    assert_eq!(met, 0);
    assert!(back.is_some_and(|after| (2_000..3_000).contains(&after)), "{back:?}");
}

/// Each outage is told once at its beginning and once at its end, when what waited for it is written.
#[tokio::test(flavor = "multi_thread")]
async fn r50_store_lost_and_store_back_are_told_once_each() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a1", "a2"] {
        account(&mut redis, id, r#"{"usageCount":1}"#, LIVE);
    }
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    let events = || one.events.lock().unwrap().clone();
    assert!(events().is_empty(), "the first connection is no return: {:?}", events());
    for outage in 1..=2 {
        server.shutdown_save();
        let told = outage * 2;
        eventually("the loss", Duration::from_secs(5), || events().len() == told - 1).await;
        let lost = events()[told - 2].clone();
        assert!(matches!(&lost, PoolEvent::StoreLost { cause } if cause.contains("store away")), "{lost:?}");
        for _ in 0..10 {
            one.pool.select(&Wanted::default()).unwrap().succeeded();
        }
        sleep(Duration::from_millis(700)).await;
        server.restart();
        eventually("the return", Duration::from_secs(8), || events().len() == told).await;
        let back = events()[told - 1].clone();
        let PoolEvent::StoreBack { away, written } = back else { panic!("{back:?}") };
        assert_eq!(written, 2, "both accounts had something to be written");
        assert!((Duration::from_millis(700)..Duration::from_secs(20)).contains(&away), "{away:?}");
        let mut redis = server.connection();
        let counts: u64 = ["a1", "a2"].map(|id| usage(&record(&mut redis, id))).iter().sum();
        assert_eq!(counts, 2 + 10 * outage as u64, "written before it was told");
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(events().len(), 4);
}

fn usage(record: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(record).unwrap()["usageCount"].as_u64().unwrap()
}

/// A mark that Redis has not taken yet is on top of every snapshot (R18), and what others write is seen beneath it.
#[tokio::test(flavor = "multi_thread")]
async fn r18_a_mark_that_is_not_written_yet_stands() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"uuid":"a1","errorCount":2}"#, LIVE);
    account(&mut redis, "a2", r#"{"uuid":"a2"}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").query::<()>(&mut redis).unwrap();
    for _ in 0..2 {
        one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::RateLimited, 429), Stood::default());
    }
    sleep(Duration::from_millis(200)).await;
    for _ in 0..3 {
        one.pool.reload().await.unwrap();
        assert!(matches!(one.state("a1"), State::Cooling { .. }), "{:?}", one.state("a1"));
    }
    assert!(!record(&mut redis, "a1").contains("cool-down"), "Redis has not got it");
    // Somebody else does something heavier, and switches the other one off.
    let quota = r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:05.000Z","lastErrorMessage":"quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z"}"#;
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0").query::<()>(&mut redis).unwrap();
    redis.hset::<_, _, _, ()>(POOL, "a1", quota).unwrap();
    redis.hset::<_, _, _, ()>(POOL, "a2", r#"{"uuid":"a2","isDisabled":true}"#).unwrap();
    one.pool.reload().await.unwrap();
    assert!(matches!(one.state("a1"), State::Quota { .. }), "{:?}", one.state("a1"));
    assert_eq!(one.state("a2"), State::Disabled);
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(after.contains("quota exhausted"), "{after}");
    one.pool.reload().await.unwrap();
    assert!(matches!(one.state("a1"), State::Quota { .. }), "a lighter mark doesn't replace a heavier one");
}

/// What a host program records itself is not written by us, and what it gives back is written once (R35, N18).
#[tokio::test(flavor = "multi_thread")]
async fn r35_n18_outcomes_are_handed_over_and_taken_back() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"uuid":"a1","usageCount":1}"#, LIVE);
    let seen = Arc::<Mutex<Vec<Outcome>>>::default();
    let shown = seen.clone();
    let record_it: kiro_messages::pool::Recorder = Arc::new(move |_, outcome| {
        shown.lock().unwrap().push(outcome.clone());
        true
    });
    let one = Instance::hosted(&server, &time, &[], Some(record_it)).await;
    let last = || seen.lock().unwrap().last().cloned().unwrap();
    let before = record(&mut redis, "a1");
    let select = || one.pool.select(&Wanted::default()).unwrap();
    let id: kiro_messages::pool::AccountId = "a1".into();

    select().succeeded();
    let Outcome { at, event: Event::Success { heals: true, half_open: false, probe: false }, .. } = last() else {
        panic!("{:?}", last())
    };
    assert_eq!(at, t0());
    one.written().await;
    assert_eq!(record(&mut redis, "a1"), before, "the host writes it");
    one.pool.write(&id, &last());
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 2, "the host declined");

    // After the commit: the mark is the host's, the use is ours, whoever writes the mark.
    select().failed(&fault(FaultKind::ServerError, 500), Stood { refreshed: false, committed: true });
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 3);
    assert!(!record(&mut redis, "a1").contains("server error"));
    one.pool.write(&id, &last());
    one.written().await;
    let marked = record(&mut redis, "a1");
    assert!(usage(&marked) == 3 && marked.contains(r#""lastErrorMessage":"500 server error""#), "{marked}");
    let outcomes = seen.lock().unwrap().len();
    select().failed(&fault(FaultKind::ModelCapacity, 429), Stood { refreshed: false, committed: true });
    assert_eq!(seen.lock().unwrap().len(), outcomes, "there is nothing for a host to call");
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 4);

    // A success that must not heal is told as such, and declined it is a bare count.
    let stream = select();
    time.pass(1);
    select().failed(&fault(FaultKind::RateLimited, 429), Stood::default());
    let Event::Fault { mark: Some(mark), used: false } = last().event else { panic!("{:?}", last()) };
    assert_eq!(mark.to_string(), "cool-down until 2026-11-23T10:01:01.000Z: 429 rate limited");
    one.pool.write(&id, &last());
    time.pass(1);
    stream.succeeded();
    let late = last();
    assert!(matches!(late.event, Event::Success { heals: false, half_open: false, .. }), "{late:?}");
    one.pool.write(&id, &late);
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(usage(&after) == 5 && after.contains(r#""isHealthy":false"#) && after.contains("cool-down"), "{after}");

    // Pinned requests are nobody's to record (N5).
    let outcomes = seen.lock().unwrap().len();
    let pinned = Wanted { only: Some("a1"), ..Wanted::default() };
    one.pool.select(&pinned).unwrap().succeeded();
    one.pool.select(&pinned).unwrap().failed(&fault(FaultKind::Suspended, 403), Stood::default());
    assert_eq!(seen.lock().unwrap().len(), outcomes);
}

/// A probe whose bearer token is rejected is cured like any attempt: one forced refresh, and once more.
#[tokio::test(flavor = "multi_thread")]
async fn r17_a_probe_refreshes_a_rejected_token() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        let asks = call.path.starts_with("/getUsageLimits");
        let bearer = call.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        match bearer.as_deref() {
            Some("Bearer new") if asks => (200, r#"{"usageBreakdownList":[]}"#.to_owned()),
            _ if asks => (401, r#"{"message":"Unauthorized"}"#.to_owned()),
            _ => (200, grant("new", Some("refresh-2"))),
        }
    })
    .await;
    let own = format!(
        r#"{{"KIRO_BASE_URL":"{0}/g","KIRO_REFRESH_URL":"{0}/r","isHealthy":false,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:01:00.000Z: 429 rate limited"}}"#,
        address.url
    );
    account(&mut redis, "a1", &own, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    time.pass(61);
    eventually("healed", Duration::from_secs(5), || one.state("a1") == State::Healthy).await;
    assert_eq!(address.used(), ["r"]);
    one.written().await;
    assert!(record(&mut redis, "a1").contains(r#""isHealthy":true"#));
}

/// The codes of contract/node.md for questions about one account; only `Suspended` leaves a mark (K62).
#[tokio::test(flavor = "multi_thread")]
async fn k62_questions_about_one_account_have_pinned_codes() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        if let Some(token) = call.body.get("refreshToken").and_then(|token| token.as_str()) {
            return match token {
                "dead" => refused(),
                "busy" => (503, String::new()),
                token => (200, grant(&format!("fresh-{token}"), None)),
            };
        }
        let bearer = call.headers["authorization"].to_str().unwrap().trim_start_matches("Bearer ").to_owned();
        let body = |reason: &str| format!(r#"{{"message":"for user d-12345","reason":"{reason}"}}"#);
        match bearer.as_str() {
            "ok" | "fresh-once" => (200, r#"{"daysUntilReset":3,"unknown":[]}"#.to_owned()),
            "forbidden" => (403, body("FEATURE_NOT_SUPPORTED")),
            "suspended" => (403, body("TEMPORARILY_SUSPENDED")),
            "quota" => (402, body("MONTHLY_REQUEST_COUNT")),
            "limited" => (429, body("USER_REQUEST_RATE_EXCEEDED")),
            "broken" => (500, body("")),
            _ => (401, body("")),
        }
    })
    .await;
    let own = format!(r#"{{"KIRO_BASE_URL":"{0}/g","KIRO_REFRESH_URL":"{0}/r","usageCount":1}}"#, address.url);
    let table = [
        ("a-ok", "ok", "r", Ok(()), Ok(())),
        ("a-forbidden", "forbidden", "r", Err(Code::AccountForbidden), Ok(())),
        ("a-suspended", "suspended", "r", Err(Code::AccountSuspended), Ok(())),
        ("a-quota", "quota", "r", Err(Code::QuotaExhausted), Ok(())),
        ("a-limited", "limited", "r", Err(Code::RateLimited), Ok(())),
        ("a-broken", "broken", "r", Err(Code::Upstream), Ok(())),
        ("a-once", "old", "once", Ok(()), Ok(())),
        ("a-twice", "old", "twice", Err(Code::AccountUnauthorized), Ok(())),
        ("a-dead", "old", "dead", Err(Code::AccountUnauthorized), Err(Code::AccountUnauthorized)),
        ("a-busy", "old", "busy", Err(Code::Upstream), Err(Code::Upstream)),
    ];
    for (id, access, refresh, ..) in &table {
        let token = LIVE.replace("\"live\"", &format!("\"{access}\"")).replace("\"r\"", &format!("\"{refresh}\""));
        account(&mut redis, id, &own, &token.replacen('{', r#"{"profileArn":"arn:x","#, 1));
    }
    account(&mut redis, "b-key", &own, r#"{"kiroApiKey":"ok"}"#);
    account(&mut redis, "b-key-bad", &own, r#"{"kiroApiKey":"ksk_bad"}"#);
    redis.hset::<_, _, _, ()>(POOL, "b-none", &own).unwrap();
    account(&mut redis, "b-off", &own.replacen('{', r#"{"isDisabled":true,"#, 1), &LIVE.replace("\"live\"", "\"ok\""));

    let mut raw = RawConfig::default();
    raw.set_option("redisUrl", &server.url()).unwrap();
    raw.set_option("storeWaitMs", "5000").unwrap();
    let gateway =
        Gateway::start_with(raw.resolve(Face::Server).unwrap(), time.clock(), Hooks::default()).await.unwrap();
    let code = |answer: Result<Bytes, kiro_messages::error::Error>| {
        answer.map(drop).map_err(|error| {
            assert!(!error.message().contains("d-12345") && !error.message().contains("dead"), "{error}");
            error.code()
        })
    };
    assert_eq!(gateway.usage_limits("a-ok").await.unwrap(), r#"{"daysUntilReset":3,"unknown":[]}"#, "as it came");
    for (id, _, _, usage, _) in &table {
        assert_eq!(code(gateway.usage_limits(id).await), *usage, "{id}");
    }
    assert_eq!(code(gateway.usage_limits("b-off").await), Ok(()), "whatever its state");
    assert_eq!(code(gateway.usage_limits("b-key").await), Ok(()));
    assert_eq!(code(gateway.usage_limits("b-key-bad").await), Err(Code::AccountForbidden));
    assert_eq!(code(gateway.usage_limits("b-none").await), Err(Code::AccountUnauthorized));
    assert_eq!(code(gateway.usage_limits("x").await), Err(Code::NotFound));
    for (id, _, _, _, refreshed) in &table {
        time.pass(61);
        let answer = gateway.refresh(id).await;
        assert_eq!(answer.as_ref().map(drop).map_err(|error| error.code()), *refreshed, "{id}: {answer:?}");
        if let Ok(expires_at) = answer {
            assert!(expires_at.is_some(), "{id}");
        }
    }
    assert_eq!(gateway.refresh("b-key").await.unwrap(), None, "nothing to refresh");
    assert_eq!(gateway.refresh("b-none").await.unwrap_err().code(), Code::AccountUnauthorized);
    assert_eq!(gateway.refresh("x").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(gateway.credential("a-once").unwrap().access_token, Some(Secret::new("fresh-once")));
    assert!(gateway.credential("x").is_none() && gateway.credential("b-none").is_none());

    assert!(gateway.pool().flush(Duration::from_secs(5)).await.is_empty());
    for info in gateway.accounts() {
        let after = record(&mut redis, &info.id);
        let marked = after.contains("isHealthy") || after.contains("lastError");
        let ejected = ["a-suspended", "a-dead"].contains(&&*info.id);
        assert_eq!((marked, usage(&after)), (ejected, 1), "{}: {after}", info.id);
    }
    gateway.close(Duration::from_secs(1)).await;
    assert_eq!(gateway.usage_limits("a-ok").await.unwrap_err().code(), Code::Closed);
    assert_eq!(gateway.refresh("a-ok").await.unwrap_err().code(), Code::Closed);
}

/// Selection, the token, the end of a stream: nothing of a request reaches for the store.
#[tokio::test(flavor = "multi_thread")]
async fn r5_no_call_of_a_request_waits_for_the_store() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for n in 0..20 {
        account(&mut redis, &format!("a{n:02}"), "{}", LIVE);
    }
    let one = Instance::start(&server, &time, &[]).await;
    server.freeze();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for n in 0..500 {
        let asked = Instant::now();
        let lease = one.pool.select(&Wanted::default()).unwrap();
        assert_eq!(one.credentials.access_token(&lease).await.unwrap().expose(), "live");
        if n % 50 == 0 {
            lease.failed(&fault(FaultKind::ServerError, 500), Stood::default());
        } else {
            lease.succeeded();
        }
        slowest = slowest.max(asked.elapsed());
    }
    println!("500 requests on a frozen Redis: {:?}, the slowest {slowest:?}", begun.elapsed());
    server.thaw();
    assert!(begun.elapsed() < Duration::from_millis(900), "one command alone would wait for 1 s");
    one.written().await;
}

/// A snapshot is taken whole or not at all, and a changed token record is adopted.
#[tokio::test(flavor = "multi_thread")]
async fn r14_a_failed_read_keeps_the_snapshot() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", "{}", LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    redis.rename::<_, _, ()>(POOL, "aside").unwrap();
    redis.set::<_, _, ()>(POOL, "no hash").unwrap();
    one.pool.reload().await.unwrap_err();
    assert_eq!(one.selected(), "a1");
    redis.rename::<_, _, ()>("aside", POOL).unwrap();
    account(&mut redis, "a2", "{}", LIVE);
    redis.set::<_, _, ()>(token_key("a1"), LIVE.replace("live", "theirs").replace("\"r\"", "\"r2\"")).unwrap();
    one.pool.reload().await.unwrap();
    assert_eq!(one.token_of("a1").await.unwrap(), "theirs");
    assert_eq!(one.pool.counts().healthy, 2);
}

/// The Node.js service sets counts back at its start (E2, E3): ours come on top of what is there, and nothing is repaired.
#[tokio::test(flavor = "multi_thread")]
async fn r34_counts_that_were_set_back_are_not_repaired() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    account(&mut redis, "a1", r#"{"usageCount":50}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    for _ in 0..3 {
        one.pool.select(&Wanted::default()).unwrap().succeeded();
    }
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 53);
    redis.hset::<_, _, _, ()>(POOL, "a1", r#"{"usageCount":0,"errorCount":0}"#).unwrap();
    one.pool.select(&Wanted::default()).unwrap().succeeded();
    one.written().await;
    one.pool.reload().await.unwrap();
    assert_eq!(usage(&record(&mut redis, "a1")), 1);
}

/// A blocking refresh is bounded where another process holds the lock and doesn't come to an end (R40 step 2).
#[tokio::test(flavor = "multi_thread")]
async fn r44_a_blocking_refresh_waits_20_s_for_another_process() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token) = expired(&address);
    account(&mut redis, "a1", &record, token);
    redis.set_ex::<_, _, ()>(lock_key("a1"), "1795427974000-slow", 60).unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    let begun = Instant::now();
    let fault = one.token_of("a1").await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Timeout);
    assert!(fault.message.ends_with("another process is still refreshing it"), "{}", fault.message);
    let waited = begun.elapsed();
    assert!((Duration::from_secs(19)..Duration::from_secs(28)).contains(&waited), "{waited:?}");
    assert_eq!(address.calls(), 0);
}

/// A profile that is found while a rotated token waits to be saved doesn't push it out (K64, R51).
#[tokio::test(flavor = "multi_thread")]
async fn r51_k64_a_profile_joins_the_token_that_waits() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        match call.body.get("refreshToken") {
            Some(_) => (200, grant("new", Some("refresh-2"))),
            None => (200, r#"{"profiles":[{"arn":"arn:found"}]}"#.to_owned()),
        }
    })
    .await;
    let (record, before) = expired(&address);
    let own = record.replacen('{', &format!(r#"{{"KIRO_BASE_URL":"{}/g","#, address.url), 1);
    let own = own.replace("KIRO_REFRESH_URL", "KIRO_REFRESH_IDC_URL");
    let idc = before.replace(r#""social""#, r#""idc","clientId":"c","clientSecret":"s""#);
    account(&mut redis, "a1", &own, &idc.replace("09:00:00", "10:10:00"));
    let one = Instance::start(&server, &time, &[]).await;
    server.shutdown_save();
    time.set("2026-11-23T10:10:00Z");
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    let mut lease = one.pool.visit("a1").unwrap();
    // In the background it may have been found already.
    one.credentials.look_up_profiles(&mut lease).await;
    assert_eq!(lease.account().profile_arn(), Some("arn:found"));
    server.restart();
    let mut redis = server.connection();
    eventually("both saved", Duration::from_secs(5), || {
        let saved = token(&mut redis, "a1");
        saved.contains("refresh-2") && saved.contains(r#""accessToken":"new""#) && saved.contains("arn:found")
    })
    .await;
}

/// A server that reads requests and answers each as it is told; none: it closes without an answer.
struct Wire {
    url: String,
    heard: Arc<Mutex<Vec<(usize, String)>>>,
}

impl Wire {
    /// `answer` gets the number of the connection and of the request on it.
    async fn start(answer: impl Fn(usize, usize) -> Option<String> + Send + Sync + 'static) -> Self {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/generateAssistantResponse", listener.local_addr().unwrap());
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let (kept, answer) = (heard.clone(), Arc::new(answer));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((mut socket, _)) = listener.accept().await else { return };
                let (kept, answer) = (kept.clone(), answer.clone());
                tokio::spawn(async move {
                    for request in 0.. {
                        let mut text = String::new();
                        // The test's bodies are `{}`.
                        while !text.ends_with("\r\n\r\n{}") {
                            let mut bytes = [0; 4096];
                            match socket.read(&mut bytes).await {
                                Ok(count @ 1..) => text.push_str(std::str::from_utf8(&bytes[..count]).unwrap()),
                                _ => return,
                            }
                        }
                        kept.lock().unwrap().push((connection, text));
                        let Some(answer) = answer(connection, request) else { return };
                        socket.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self { url, heard }
    }

    async fn ask(&self, upstream: &Upstream) -> Result<(), Fault> {
        let target = kiro_messages::upstream::Target {
            account: "account-1".into(),
            url: self.url.clone(),
            token: Secret::new("bearer"),
            machine_id: "m".into(),
            shape: kiro_messages::proto::kiro::route::Shape::Q,
            token_type: None,
            proxy: None,
        };
        let mut body = upstream.generate(&target, vec![Bytes::from_static(b"{}")]).await?;
        while let Some(chunk) = std::future::poll_fn(|cx| body.poll_chunk(cx)).await {
            chunk.map_err(|_| Fault::network("cut"))?;
        }
        Ok(())
    }

    fn connections(&self) -> Vec<usize> {
        self.heard.lock().unwrap().iter().map(|(connection, _)| *connection).collect()
    }
}

const EMPTY_STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ncontent-length: 0\r\n\r\n";

/// K69: a connection that upstream has given up is no attempt; one that dies when it is new is.
#[tokio::test(flavor = "multi_thread")]
async fn k69_a_reused_connection_that_dies_unanswered_is_replaced() {
    let upstream = Upstream::new(&config(&[])).unwrap();
    let old =
        Wire::start(|connection, request| (connection > 0 || request == 0).then(|| EMPTY_STREAM.to_owned())).await;
    old.ask(&upstream).await.unwrap();
    old.ask(&upstream).await.unwrap();
    assert_eq!(old.connections(), [0, 0, 1], "once more, on a fresh connection");
    let ids: Vec<String> = old.heard.lock().unwrap().iter().map(|(_, text)| text.clone()).collect();
    let id = |text: &str| text.lines().find(|line| line.starts_with("amz-sdk-invocation-id")).unwrap().to_owned();
    assert_ne!(id(&ids[1]), id(&ids[2]), "K113: new per attempt");

    let upstream = Upstream::new(&config(&[])).unwrap();
    let fresh = Wire::start(|_, _| None).await;
    assert_eq!(fresh.ask(&upstream).await.unwrap_err().kind, FaultKind::Network);
    assert_eq!(fresh.connections(), [0]);
}

/// K13: whoever answers with another address doesn't get the token there.
#[tokio::test(flavor = "multi_thread")]
async fn k13_redirects_are_never_followed() {
    let elsewhere = Wire::start(|_, _| Some(EMPTY_STREAM.to_owned())).await;
    let upstream = Upstream::new(&config(&[])).unwrap();
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let to = elsewhere.url.clone();
        let here =
            Wire::start(move |_, _| Some(format!("HTTP/1.1 {status}\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")))
                .await;
        here.ask(&upstream).await.unwrap_err();
    }
    assert!(elsewhere.heard.lock().unwrap().is_empty());
}

/// Acceptance case 48, for these rooms: no secret in anything that can be printed.
#[tokio::test(flavor = "multi_thread")]
async fn case_48_nothing_that_can_be_printed_holds_a_secret() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let token = r#"{"accessToken":"S3CRET-a","refreshToken":"S3CRET-r","expiresAt":"2026-11-24T10:00:00.000Z","clientSecret":"S3CRET-c"}"#;
    account(&mut redis, "a1", r#"{"PROXY_URL":"http://u:S3CRET-p@127.0.0.1:1"}"#, token);
    let one = Instance::start(&server, &time, &[]).await;
    let lease = one.pool.select(&Wanted::default()).unwrap();
    one.credentials.access_token(&lease).await.unwrap();
    let shown = format!(
        "{:?} {:?} {:?} {:?} {:?}",
        one.pool,
        lease,
        one.pool.accounts(),
        one.credentials.credential("a1"),
        one.credentials.counters()
    );
    assert!(!shown.contains("S3CRET"), "{shown}");
}
