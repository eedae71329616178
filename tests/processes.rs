//! `kiro-server` as processes on a real Redis and the simulated upstream: cases of the store that no
//! room shows alone (40, 42, 47, 48), start-up, and the log of an outage.
#![cfg(all(unix, feature = "server"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiro_messages::config::SETTINGS;
use kiro_messages::simulator::{PROFILE_ARN, Running, Simulator};
use redis::Commands as _;
use serde_json::{Value, json};

#[path = "support/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/redis_server.rs"]
mod redis_server;

use cluster::Cluster;
use redis_server::RedisServer;

const POOL: &str = "aiclient:pools:claude-kiro-oauth";
const FAR: &str = "2099-01-01T00:00:00.000Z";
const PAST: &str = "2020-01-01T00:00:00.000Z";
const KEY: &str = "client-key-1";

/// A Redis, a simulated upstream, a client.
struct Place {
    redis: RedisServer,
    upstream: Running,
    http: reqwest::Client,
}

impl Place {
    /// Needs a tokio runtime.
    fn new() -> Self {
        Self::in_world(&[])
    }

    /// The upstream is so (docs/simulator.md).
    fn in_world(world: &[&str]) -> Self {
        let redis = RedisServer::start();
        let upstream = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let upstream = upstream.world(json!(world)).unwrap().spawn().unwrap();
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { redis, upstream, http }
    }

    /// With a password that every new connection needs, and a connection that has it.
    fn with_password(password: &str) -> (Self, redis::Connection, String) {
        let place = Self::new();
        let mut admin = place.redis.connection();
        redis::cmd("CONFIG").arg(&["SET", "requirepass", password]).query::<()>(&mut admin).unwrap();
        let url = format!("redis://:{password}@127.0.0.1:{}", place.redis.port());
        (place, admin, url)
    }

    fn account(&self, id: &str, record: &Value, token: &Value) {
        let mut redis = self.redis.connection();
        redis.set::<_, _, ()>(format!("aiclient:tokens:claude-kiro-oauth:{id}"), token.to_string()).unwrap();
        redis.hset::<_, _, _, ()>(POOL, id, record.to_string()).unwrap();
    }

    fn record(&self, id: &str) -> Value {
        let text: String = self.redis.connection().hget(POOL, id).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn token(&self, id: &str) -> Value {
        let text: String = self.redis.connection().get(format!("aiclient:tokens:claude-kiro-oauth:{id}")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The binary with the settings of this place; the environment beats them.
    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let url = self.upstream.url();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command
            .args(arguments)
            .env_clear()
            .env("REDIS_URL", self.redis.url())
            .env("KIRO_UPSTREAM_URL", format!("{url}/generateAssistantResponse"))
            .env("KIRO_SOCIAL_REFRESH_URL", format!("{url}/refreshToken"))
            .env("KIRO_IDC_REFRESH_URL", format!("{url}/token"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null());
        command
    }

    /// A server that says where it listens.
    fn serve(&self, environment: &[(&str, &str)]) -> Server {
        let mut with_port = vec![("KIRO_PORT", "0"), ("KIRO_LOG_FORMAT", "json")];
        with_port.extend(environment.iter().copied());
        Server::start(self.command(&[], &with_port))
    }

    /// Runs to the end; what it said on both outputs.
    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
        let output = self.command(arguments, environment).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    }

    async fn ask(&self, server: &Server, body: &Value) -> (u16, String) {
        self.ask_with_key(server, body, KEY).await
    }

    async fn ask_with_key(&self, server: &Server, body: &Value, key: &str) -> (u16, String) {
        let request = self.http.post(server.url("/v1/messages")).header("x-api-key", key).body(body.to_string());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn get(&self, server: &Server, path: &str) -> (u16, String) {
        let response = self.http.get(server.url(path)).header("x-api-key", KEY).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

/// A running `kiro-server` and its log.
struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::<Mutex<String>>::default();
        let (told, listening) = std::sync::mpsc::channel();
        let written = log.clone();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let address = serde_json::from_str::<Value>(&line).ok();
                let address = address.filter(|line| line["message"] == "listening");
                if let Some(address) = address.and_then(|line| line["address"].as_str().map(str::to_owned)) {
                    // Nobody waits any more: the log goes on all the same.
                    let _ = told.send(address);
                }
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let address = listening.recv_timeout(Duration::from_secs(20));
        let address = address.unwrap_or_else(|_| panic!("it doesn't listen:\n{}", log.lock().unwrap()));
        Self { child, address: address.replace("0.0.0.0", "127.0.0.1"), log, reader: Some(reader) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn count(&self, words: &str) -> usize {
        self.log().lines().filter(|line| line.contains(words)).count()
    }

    /// Ends by itself, within the time.
    fn ended(&mut self, within: Duration) -> i32 {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "still there after {within:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and the whole log.
    fn stop(self) -> String {
        let (code, _, log) = self.stopped();
        assert_eq!(code, 0, "{log}");
        log
    }

    /// SIGTERM: the exit code, how long the end took, and the whole log.
    fn stopped(mut self) -> (i32, Duration, String) {
        let began = Instant::now();
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let code = self.ended(Duration::from_secs(20));
        let took = began.elapsed();
        self.reader.take().unwrap().join().unwrap();
        (code, took, self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn social(access: &str, refresh: &str) -> Value {
    json!({
        "accessToken": access, "refreshToken": refresh, "expiresAt": FAR, "authMethod": "social", "profileArn": PROFILE_ARN,
    })
}

fn message() -> Value {
    json!({ "model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [{ "role": "user", "content": "hi" }] })
}

async fn eventually(what: &str, within: Duration, mut check: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !check().await {
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// R54, R56: a server that starts before its Redis.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_redis_listens_and_serves_when_redis_comes_case_40_r54() {
    let mut place = Place::new();
    place.account("a1", &json!({ "uuid": "a1" }), &social("access-1", "r1"));
    place.redis.connection().set::<_, _, ()>("aiclient:config", json!({ "apiKey": KEY }).to_string()).unwrap();
    place.redis.shutdown_save();
    let server = place.serve(&[("KIRO_HOST", "0.0.0.0")]);
    for _ in 0..3 {
        let (status, text) = place.ask(&server, &message()).await;
        assert_eq!(status, 503, "{text}");
        assert_eq!(place.get(&server, "/v1/models").await.0, 503, "the key is not known");
        let (status, health) = place.get(&server, "/health").await;
        let health: Value = serde_json::from_str(&health).unwrap();
        assert_eq!((status, &health["redis"]), (503, &json!("disconnected")), "{health}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(server.count("the store can't be reached yet"), 1, "{}", server.log());
    place.redis.restart();
    let took =
        eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    println!("served {took:?} after Redis took connections");
    assert!(took < Duration::from_millis(2_500), "1 s on an idle machine: {took:?}");
    assert_eq!(place.get(&server, "/health").await.0, 200);
    assert_eq!(place.ask_with_key(&server, &message(), "another").await.0, 401);
    server.stop();
}

/// R57: an open address needs a key, or somebody who says that it doesn't.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_client_key_an_open_address_is_refused_case_42_r57() {
    let mut place = Place::new();
    place.account("a1", &json!({ "uuid": "a1" }), &social("access-1", "r1"));
    place.redis.connection().set::<_, _, ()>("aiclient:config", "{}").unwrap();
    let open = [("KIRO_HOST", "0.0.0.0"), ("KIRO_PORT", "0")];
    let (code, said) = place.run(&[], &open);
    assert!(code == 2 && said.contains("no client key: set KIRO_API_KEY"), "{code}: {said}");
    assert!(!said.contains("listening"), "{said}");
    let anonymous = place.serve(&[("KIRO_HOST", "0.0.0.0"), ("KIRO_ALLOW_ANONYMOUS", "true")]);
    eventually("served", Duration::from_secs(5), async || place.ask(&anonymous, &message()).await.0 == 200).await;
    eventually("the warning", Duration::from_secs(2), async || {
        anonymous.count("everybody who can reach the address is served") == 1
    })
    .await;
    anonymous.stop();
    let local = place.serve(&[]);
    eventually("loopback", Duration::from_secs(5), async || place.ask(&local, &message()).await.0 == 200).await;
    local.stop();
    // It was not there at the start: the port is open, nobody is served, and the start fails when it is known.
    place.redis.shutdown_save();
    let mut late = place.serve(&open);
    assert_eq!(place.ask(&late, &message()).await.0, 503);
    place.redis.restart();
    assert_eq!(late.ended(Duration::from_secs(10)), 2, "{}", late.log());
}

/// R49: a refused start names its reason; R56, R1: an empty pool is reported with its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_names_the_fault_of_its_store_r49_r1_r56() {
    let (place, mut admin, with_password) = Place::with_password("hush-redis");
    let port = place.redis.port();
    for (password, word) in [("", "NOAUTH"), (":wrong@", "WRONGPASS")] {
        let url = format!("redis://{password}127.0.0.1:{port}");
        let (code, said) = place.run(&[], &[("REDIS_URL", &url), ("KIRO_PORT", "0")]);
        assert!(code == 2 && said.contains(word) && !said.contains("wrong"), "{code}: {said}");
    }
    let user = ["SETUSER", "poor", "on", ">pw", "~*", "+@all", "-hgetall"];
    redis::cmd("ACL").arg(&user).query::<()>(&mut admin).unwrap();
    let url = format!("redis://poor:pw@127.0.0.1:{port}");
    let (code, said) = place.run(&[], &[("REDIS_URL", &url), ("KIRO_PORT", "0")]);
    assert!(code == 2 && said.contains("NOPERM"), "{code}: {said}");

    admin.hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    let server = place.serve(&[("REDIS_URL", &with_password), ("REDIS_KEY_PREFIX", "mine:"), ("KIRO_API_KEY", KEY)]);
    let both = async || server.count(POOL) == 1 && server.count("mine:pools:claude-kiro-oauth") == 1;
    eventually("both keys are named", Duration::from_secs(5), both).await;
    let (status, text) = place.ask(&server, &message()).await;
    assert!(status == 503 && text.contains("mine:pools:claude-kiro-oauth") && text.contains("accounts add"), "{text}");
    assert!(text.contains("overloaded_error"), "{text}");
    assert_eq!(place.get(&server, "/health").await.0, 503);
    let log = server.stop();
    assert!(!log.contains("hush-redis"), "{log}");
}

/// A proxy that passes connections on to 127.0.0.1 and keeps what clients say.
struct Forwarder {
    port: u16,
    heard: Arc<Mutex<String>>,
}

impl Forwarder {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<String>>::default();
        let kept = heard.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let kept = kept.clone();
                std::thread::spawn(move || {
                    let mut bytes = [0; 8192];
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        kept.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
                        if to.write_all(&bytes[..count]).is_err() {
                            return;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
                let (mut from, mut to) = (server, client);
                std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
            }
        });
        Self { port: own, heard }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accounts_own_proxy_and_addresses_case_47() {
    let place = Place::new();
    let upstream = place.upstream.addr().port();
    let proxy = Forwarder::to(upstream);
    let own = json!({
        "uuid": "a1", "PROXY_URL": format!("http://me:hush-proxy@127.0.0.1:{}", proxy.port),
        "KIRO_BASE_URL": format!("http://127.0.0.1:{upstream}/generateAssistantResponse?of={{{{region}}}}"),
    });
    let mut token = social("access-1", "r1");
    // The profile says the region (K74).
    token["profileArn"] = json!(PROFILE_ARN.replace("us-east-1", "eu-central-1"));
    place.account("a1", &own, &token);
    let server = place.serve(&[("KIRO_API_KEY", KEY)]);
    eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    let heard = proxy.heard.lock().unwrap().clone();
    let line = format!("POST http://127.0.0.1:{upstream}/generateAssistantResponse?of=eu-central-1 HTTP/1.1\r\n");
    assert!(heard.contains(&line), "{heard}");
    assert!(heard.to_lowercase().contains("proxy-authorization: basic "), "{heard}");
    server.stop();

    // Not https and not on loopback: ignored, with one warning.
    place.account("a1", &json!({ "KIRO_BASE_URL": "http://example.org", "KIRO_REFRESH_URL": "" }), &token);
    let server = place.serve(&[("KIRO_API_KEY", KEY), ("KIRO_ACCOUNT_CACHE_TTL", "100ms")]);
    eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.count("KIRO_BASE_URL"), 1, "{}", server.log());
    let log = server.stop();
    assert!(!log.contains("hush-proxy"), "{log}");
}

/// One line when Redis is lost, one when it is back, and none in between (R50).
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_two_lines_of_log_r50() {
    let mut place = Place::new();
    for n in 0..3 {
        place.account(&format!("a{n}"), &json!({}), &social(&format!("access-{n}"), &format!("r{n}")));
    }
    let server = place.serve(&[("KIRO_API_KEY", KEY), ("KIRO_ACCOUNT_CACHE_TTL", "200ms")]);
    eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let before = server.log().lines().count();
    place.redis.shutdown_save();
    for _ in 0..10 {
        assert_eq!(place.ask(&server, &message()).await.0, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (status, health) = place.get(&server, "/health").await;
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!((status, &health["status"], &health["redis"]), (200, &json!("degraded"), &json!("disconnected")));
    place.redis.restart();
    let used =
        |place: &Place| (0..3).map(|n| place.record(&format!("a{n}"))["usageCount"].as_u64().unwrap_or(0)).sum::<u64>();
    eventually("counters written", Duration::from_secs(10), async || used(&place) == 11).await;
    eventually("told", Duration::from_secs(10), async || server.count("the store is back") == 1).await;
    let log: Vec<String> = server.log().lines().skip(before).map(str::to_owned).collect();
    // Besides each request's own line.
    let rest: Vec<_> = log.iter().filter(|line| !line.contains("request_id")).collect();
    assert_eq!(rest.len(), 2, "{rest:#?}");
    assert!(rest[0].contains("the store is lost") && rest[1].contains("the store is back"), "{rest:#?}");
    server.stop();
}

/// The cure of a missing profile, from the look-up to the token record; at most once in 10 minutes. The records are the
/// existing Node.js service's, which say `builder-id` of enterprise accounts too.
/// Root may write everywhere: as root the server runs as somebody else.
fn unprivileged(command: &mut Command) {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::process::CommandExt as _;
    if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        command.uid(65_534).gid(65_534);
    }
}

/// A refresh that can't be saved would log the account's owner out.
#[tokio::test(flavor = "multi_thread")]
async fn no_refresh_is_begun_on_a_read_only_file_r52_r66() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut place = Place::new();
    let mut runs = place.command(&["--version"], &[]);
    unprivileged(&mut runs);
    if !runs.stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: the binary can't be run by another user here");
        return;
    }
    let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    place.upstream = simulator.world(json!(["one-time-tokens-600"])).unwrap().spawn().unwrap();
    let count = |what: &str| place.upstream.control().accounts()["old0"][what].as_u64().unwrap_or(0);
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let around = tempfile::tempdir().unwrap();
    set_mode(around.path(), 0o755);
    let (folder, state) = (around.path().join("pool"), around.path().join("state"));
    let file = folder.join("pool.json");
    for folder in [&folder, &state] {
        std::fs::create_dir(folder).unwrap();
        set_mode(folder, 0o777);
    }
    let token = json!({
        "accessToken": "sim-ok.0", "refreshToken": "old0", "authMethod": "social", "expiresAt": PAST, "profileArn": PROFILE_ARN,
    });
    let pool = json!({ "accounts": { "a1": {} }, "tokens": { "a1": token } }).to_string();
    std::fs::write(&file, &pool).unwrap();
    set_mode(&file, 0o644);
    let store = format!("file:{}", file.display());
    let serve = |state: Option<&Path>| {
        let mut said =
            vec![("KIRO_PORT", "0"), ("KIRO_LOG_FORMAT", "json"), ("KIRO_API_KEY", KEY), ("KIRO_STORE", &*store)];
        said.extend(state.map(|state| ("KIRO_STATE_DIR", state.to_str().unwrap())));
        let mut command = place.command(&[], &said);
        command.env_remove("REDIS_URL");
        unprivileged(&mut command);
        Server::start(command)
    };

    set_mode(&folder, 0o555);
    let server = serve(None);
    for _ in 0..3 {
        let (_, text) = place.ask(&server, &message()).await;
        assert!(text.contains("the store is read-only") && !text.contains("pool.json"), "{text}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!((count("refreshes"), count("dead_refreshes")), (0, 0), "{}", server.log());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), pool);
    let told = server.log();
    assert_eq!(told.matches("no token is refreshed").count(), 1, "{told}");
    assert!(told.contains("permission denied") && told.contains("pool.json"), "{told}");
    assert!(told.contains("NoToken") && !told.contains("TokenRejected"), "nobody has rejected a token: {told}");
    assert_eq!(place.get(&server, "/health").await.0, 503, "no account has a token");
    drop(server);

    // A folder that can't keep the token is as none, and is named at the start.
    let blocked = around.path().join("blocked");
    std::fs::write(&blocked, "").unwrap();
    let server = serve(Some(&blocked));
    assert!(server.log().contains("KIRO_STATE_DIR can't be written"), "{}", server.log());
    let (_, text) = place.ask(&server, &message()).await;
    assert!(text.contains("the store is read-only"), "{text}");
    assert!(place.get(&server, "/health").await.1.contains("\"journal\":\"broken\""));
    assert_eq!((count("refreshes"), count("dead_refreshes")), (0, 0), "{}", server.log());
    drop(server);

    // Where a folder keeps the token, it is refreshed; and it is in the file as soon as that may be written.
    let server = serve(Some(&state));
    assert_eq!(place.ask(&server, &message()).await.0, 200, "{}", server.log());
    let kept = || {
        std::fs::read_dir(&state)
            .unwrap()
            .flatten()
            .filter(|file| file.path().extension().is_some_and(|end| end == "json"))
            .count()
    };
    eventually("the token is kept", Duration::from_secs(20), async || kept() == 1).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), pool);
    set_mode(&folder, 0o777);
    let saved = || std::fs::read_to_string(&file).unwrap().contains("\"old0~1\"");
    let end = Instant::now() + Duration::from_secs(20);
    while !(saved() && kept() == 0) {
        assert!(Instant::now() < end, "the token isn't saved: {}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((count("refreshes"), count("dead_refreshes")), (1, 0), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_profile_is_looked_up_and_kept_k64_k78_k79() {
    let place = Place::new();
    let without = |access: &str| {
        json!({ "accessToken": access, "refreshToken": "r", "expiresAt": FAR, "authMethod": "builder-id",
                "clientId": "c", "clientSecret": "s" })
    };
    place.account("a1", &json!({}), &without("sim-profile-arn.one"));
    let server = place.serve(&[("KIRO_API_KEY", KEY)]);
    eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    eventually("saved", Duration::from_secs(5), async || place.token("a1")["profileArn"] == PROFILE_ARN).await;
    let stats = place.upstream.control().stats();
    assert_eq!(stats["calls_by_token"]["sim-profile-arn.one"], 1, "looked up before the first call: {stats}");
    server.stop();
    assert_eq!(place.record("a1")["usageCount"], 1, "one use, and no failure: {}", place.record("a1"));
    assert_eq!(place.record("a1").get("errorCount"), None);

    // No profile is found: an error says so, nothing is written, and no second look-up follows.
    place
        .upstream
        .control()
        .script(json!({ "token": "sim-builder-id.two", "scenarios": ["profile-arn"], "forever": true }))
        .unwrap();
    place.account("a1", &json!({ "uuid": "a1" }), &without("sim-builder-id.two"));
    let server = place.serve(&[("KIRO_API_KEY", KEY)]);
    eventually("refused", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 500).await;
    let (status, text) = place.ask(&server, &message()).await;
    assert!(status == 500 && text.contains("profile") && text.contains("api_error"), "{text}");
    let looked = place.http.get(format!("{}/_sim/stats?bodies=1", place.upstream.url())).send().await.unwrap();
    let looked: Value = serde_json::from_str(&looked.text().await.unwrap()).unwrap();
    let looked = looked["last"].as_array().unwrap().iter().filter(|call| {
        call["headers"]["x-amz-target"] == "AmazonCodeWhispererService.ListAvailableProfiles"
            && call["headers"]["authorization"] == "Bearer sim-builder-id.two"
    });
    assert!(looked.count() <= 2, "one region tells that it is a Builder ID account");
    assert_eq!(place.record("a1"), json!({ "uuid": "a1" }), "no health field is touched (K49)");
    server.stop();
}

/// 3 processes on a Cluster: one refresh under 300 requests, turns, and counts that add up.
#[tokio::test(flavor = "multi_thread")]
async fn three_processes_on_a_cluster_case_44_case_20_case_24() {
    let (place, cluster) = (Place::new(), Cluster::start());
    let mut redis = cluster.connection();
    let mut add = |n: u32, token: &Value| {
        let id = format!("a{n}");
        redis.set::<_, _, ()>(format!("aiclient:tokens:claude-kiro-oauth:{id}"), token.to_string()).unwrap();
        redis.hset::<_, _, _, ()>(POOL, id, json!({ "note": [] }).to_string()).unwrap();
    };
    let mut expired = social("old", "r1");
    expired["expiresAt"] = json!(PAST);
    // The background refresh has no time to be first: the servers meet it with their first requests.
    add(1, &expired);
    let url = cluster.url();
    let environment = [
        ("REDIS_URL", url.as_str()),
        ("KIRO_API_KEY", KEY),
        ("KIRO_ACCOUNT_CACHE_TTL", "200ms"),
        ("KIRO_AFFINITY", "off"),
    ];
    let servers: Vec<Server> = (0..3).map(|_| place.serve(&environment)).collect();
    let body = message();
    for server in &servers {
        let ready = async || place.get(server, "/health").await.0 == 200;
        eventually("the first snapshot", Duration::from_secs(10), ready).await;
    }
    let asked = (0..300).map(|n| place.ask(&servers[n % 3], &body));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(place.upstream.control().stats()["refresh_calls"], json!({ "r1": 1 }), "case 24");

    for n in 2..=6 {
        add(n, &social(&format!("access-{n}"), &format!("r{n}")));
    }
    for server in &servers {
        let six = async || place.get(server, "/health").await.1.contains(r#""total":6"#);
        eventually("six accounts", Duration::from_secs(5), six).await;
    }
    let before = place.upstream.control().stats()["calls_by_token"].clone();
    let in_turn = async |server: &Server| {
        for _ in 0..30 {
            assert_eq!(place.ask(server, &body).await.0, 200);
        }
    };
    futures_util::future::join_all(servers.iter().map(in_turn)).await;
    let after = place.upstream.control().stats()["calls_by_token"].clone();
    for (token, calls) in after.as_object().unwrap() {
        let calls = calls.as_u64().unwrap() - before[token].as_u64().unwrap_or(0);
        assert!(token == "old" || (12..=18).contains(&calls), "each in its turn (case 20): {after}");
    }
    for server in servers {
        server.stop();
    }
    let records: Vec<(String, String)> = redis.hgetall(POOL).unwrap();
    let uses: u64 = records
        .iter()
        .map(|(_, record)| serde_json::from_str::<Value>(record).unwrap()["usageCount"].as_u64().unwrap())
        .sum();
    assert_eq!(uses, 390, "{records:?}");
    assert!(records.iter().all(|(_, record)| record.starts_with(r#"{"note":[]"#)), "{records:?}");
}

/// R57 at the door: which key is taken, when a change takes effect, and that an evicted one stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_key_follows_config_case_41_r57() {
    let place = Place::new();
    place.account("a1", &json!({}), &social("access-1", "r1"));
    let mut redis = place.redis.connection();
    redis.set::<_, _, ()>("aiclient:config", r#"{"REQUIRED_API_KEY":"k1","apiKey":"k2"}"#).unwrap();
    let server = place.serve(&[]);
    let status = async |key: &str| place.ask_with_key(&server, &message(), key).await.0;
    eventually("k1", Duration::from_secs(5), async || status("k1").await == 200).await;
    assert_eq!((status("k2").await, status("").await), (401, 401));
    redis.set::<_, _, ()>("aiclient:config", r#"{"REQUIRED_API_KEY":"k3"}"#).unwrap();
    let took = eventually("k1 is refused", Duration::from_secs(8), async || status("k1").await == 401).await;
    println!("a changed key counts after {took:?}");
    assert!(took < Duration::from_millis(6_500), "5.1 s on an idle machine: {took:?}");
    assert_eq!(status("k3").await, 200);
    redis.del::<_, ()>("aiclient:config").unwrap();
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    assert_eq!((status("k3").await, status("").await), (200, 401));
    server.stop();
}

/// The Node.js service rewrites the pool under load: nobody fails, and nothing is said of an empty pool.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_of_the_pool_is_not_noticed_case_34_r55() {
    let place = Place::new();
    for n in 0..3 {
        place.account(&format!("a{n}"), &json!({}), &social(&format!("access-{n}"), &format!("r{n}")));
    }
    let server = place.serve(&[("KIRO_API_KEY", KEY), ("KIRO_AFFINITY", "off"), ("KIRO_ACCOUNT_CACHE_TTL", "100ms")]);
    eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    let mut redis = place.redis.connection();
    // On a thread of its own: a slow request must not make the gap longer.
    let rewrite = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        redis.rename::<_, _, ()>(POOL, "aside").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        redis.rename::<_, _, ()>("aside", POOL).unwrap();
    });
    let body = message();
    let mut served = 1_u64;
    while !rewrite.is_finished() || served < 10 {
        assert_eq!(place.ask(&server, &body).await.0, 200);
        served += 1;
    }
    rewrite.join().unwrap();
    let log = server.stop();
    println!("served {served} requests over the rewrite");
    assert!(!log.contains("empty") && !log.contains(r#""level":"WARN""#), "{log}");
    let uses: u64 = (0..3).map(|n| place.record(&format!("a{n}"))["usageCount"].as_u64().unwrap()).sum();
    assert_eq!(uses, served, "what was counted meanwhile is written afterwards");
}

/// SIGKILL: of what was counted only the last second may be missing, in Redis and in a file. Three times each, since the
/// writer's phase is drawn.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_at_most_a_second_of_counts_r31() {
    /// What writing itself may take on a busy machine.
    const WRITING: Duration = Duration::from_millis(300);
    let folder = tempfile::tempdir().unwrap();
    let mut body = message();
    body["messages"][0]["content"] = json!(r#"[[sim {"steps":[{"text":"x"}]}]]"#);
    for in_file in [false, true] {
        for turn in 0..3_u32 {
            let place = Place::new();
            let file = folder.path().join(format!("{turn}.json"));
            let file_store = format!("file:{}", file.display());
            let mut said = vec![("KIRO_API_KEY", KEY)];
            if in_file {
                let pool = json!({ "accounts": { "a1": {} }, "tokens": { "a1": social("access-1", "r1") } });
                std::fs::write(&file, pool.to_string()).unwrap();
                said.push(("KIRO_STORE", &file_store));
            } else {
                place.account("a1", &json!({}), &social("access-1", "r1"));
            }
            let mut server = place.serve(&said);
            eventually("served", Duration::from_secs(5), async || place.ask(&server, &body).await.0 == 200).await;
            let mut ended = vec![Instant::now()];
            let until = Instant::now() + Duration::from_millis(2_500 + u64::from(turn) * 270);
            while Instant::now() < until {
                assert_eq!(place.ask(&server, &body).await.0, 200);
                ended.push(Instant::now());
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            server.child.kill().unwrap();
            let killed = Instant::now();
            server.child.wait().unwrap();
            let record = if in_file {
                let pool: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
                pool["accounts"]["a1"].clone()
            } else {
                place.record("a1")
            };
            let counted = record["usageCount"].as_u64().unwrap_or(0);
            let before = |span| ended.iter().filter(|end| killed - **end >= span).count() as u64;
            let (all, must) = (before(Duration::ZERO), before(Duration::from_secs(1) + WRITING));
            println!("file {in_file}: {all} uses, {counted} counted, {must} of them long enough ago");
            assert!(must >= 20, "too slow a machine to see anything: {must}");
            assert!((must..=all).contains(&counted), "file {in_file}: {counted} of {all} counted, {must} must be");
        }
    }
}

/// Redis refuses writes: served, `degraded`, and written when it takes them again.
#[tokio::test(flavor = "multi_thread")]
async fn refused_writes_are_a_degraded_service_case_39_r49() {
    let place = Place::new();
    place.account("a1", &json!({}), &social("access-1", "r1"));
    let server = place.serve(&[("KIRO_API_KEY", KEY)]);
    eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    let mut redis = place.redis.connection();
    let mut limit =
        |bytes: &str| redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).query::<()>(&mut redis).unwrap();
    limit("1");
    let health = async || {
        let (status, health) = place.get(&server, "/health").await;
        let health: Value = serde_json::from_str(&health).unwrap();
        (status, health["status"].as_str().unwrap().to_owned(), health["redis"].as_str().unwrap().to_owned())
    };
    let told = (200, "degraded".to_owned(), "connected".to_owned());
    eventually("degraded", Duration::from_secs(5), async || {
        assert_eq!(place.ask(&server, &message()).await.0, 200);
        health().await == told
    })
    .await;
    limit("0");
    eventually("healthy", Duration::from_secs(5), async || health().await.1 == "healthy").await;
    assert_eq!(server.count("the store takes no writes"), 1);
    assert_eq!(server.count("the store takes writes again"), 1);
    let served = place.upstream.control().stats()["calls_by_token"]["access-1"].clone();
    server.stop();
    assert_eq!(place.record("a1")["usageCount"], served);
}

/// Redis is gone and nothing streams: counts and marks are worth a few seconds of the grace time, in which it may come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_redis_is_short_and_writes_when_it_comes_back_r33() {
    for comes_back in [false, true] {
        let mut place = Place::new();
        place.account("a1", &json!({}), &social("access-1", "r1"));
        let server = place.serve(&[("KIRO_API_KEY", KEY), ("KIRO_GRACEFUL_TIMEOUT", "18s")]);
        eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
        place.redis.shutdown_save();
        assert_eq!(place.ask(&server, &message()).await.0, 200, "from memory");
        let served = place.upstream.control().stats()["calls_by_token"]["access-1"].clone();
        let stop = tokio::task::spawn_blocking(|| server.stopped());
        if comes_back {
            tokio::time::sleep(Duration::from_secs(3)).await;
            place.redis.restart();
        }
        let (code, took, log) = stop.await.unwrap();
        println!("comes back: {comes_back}, took {took:?}");
        assert_eq!(code, 0, "{log}");
        assert!((3..11).contains(&took.as_secs()), "{took:?}: {log}");
        assert_eq!(log.contains("outcomes could not be written"), !comes_back, "{log}");
        if comes_back {
            assert_eq!(place.record("a1")["usageCount"], served, "{log}");
        }
    }
}

/// A refreshed token that nobody else holds is worth all of the grace time, and its loss a status of its own. What
/// `KIRO_STATE_DIR` keeps is neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_loses_a_login_waits_and_exits_with_3_r33_r51() {
    let folder = tempfile::tempdir().unwrap();
    for (state, exits) in [(folder.path().to_str(), 0), (None, 3)] {
        let mut place = Place::in_world(&["one-time-tokens-1"]);
        let mut token = social("access-1", "r1");
        token["expiresAt"] = json!(PAST);
        place.account("a1", &json!({}), &token);
        let mut environment = vec![("KIRO_API_KEY", KEY), ("KIRO_GRACEFUL_TIMEOUT", "12s")];
        environment.extend(state.map(|state| ("KIRO_STATE_DIR", state)));
        let server = place.serve(&environment);
        eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
        place.redis.kill();
        // The token ends, and a new one has nowhere to go.
        eventually("unsaved", Duration::from_secs(5), async || {
            assert_eq!(place.ask(&server, &message()).await.0, 200);
            let health: Value = serde_json::from_str(&place.get(&server, "/health").await.1).unwrap();
            health["unsavedTokens"] == 1
        })
        .await;
        let (code, took, log) = server.stopped();
        println!("state: {state:?}, took {took:?}");
        assert_eq!(code, exits, "{log}");
        assert_eq!(log.contains("this account must log in again"), exits != 0, "{log}");
        assert_eq!(log.contains("waits in KIRO_STATE_DIR"), exits == 0, "{log}");
        assert_eq!((11..16).contains(&took.as_secs()), exits != 0, "{took:?}: {log}");
    }
}

/// Caps and waiting: who finds every account at its cap waits its turn, and without a wait hears when to come back.
#[tokio::test(flavor = "multi_thread")]
async fn at_their_limit_requests_wait_or_hear_when_to_come_back() {
    let place = Place::new();
    place.account("a1", &json!({}), &social("access-1", "r1"));
    let mut body = message();
    body["messages"][0]["content"] = json!(r#"[[sim {"steps":[{"wait_ms":100},{"text":"x"}]}]]"#);
    let cap = [("KIRO_API_KEY", KEY), ("KIRO_MAX_INFLIGHT_PER_ACCOUNT", "1")];
    let waiting = place.serve(&[cap[0], cap[1], ("KIRO_ACCOUNT_WAIT", "30s")]);
    eventually("served", Duration::from_secs(5), async || place.ask(&waiting, &body).await.0 == 200).await;
    let answers = futures_util::future::join_all((0..10).map(|_| place.ask(&waiting, &body))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(place.upstream.control().stats()["streams"]["open_max"], 1, "never two at a time");
    waiting.stop();
    let at_once = place.serve(&cap);
    eventually("served", Duration::from_secs(5), async || place.ask(&at_once, &body).await.0 == 200).await;
    let send = || place.http.post(at_once.url("/v1/messages")).header("x-api-key", KEY).body(body.to_string()).send();
    let answers = futures_util::future::join_all((0..5).map(|_| send())).await;
    let refused: Vec<_> = answers.into_iter().map(Result::unwrap).filter(|answer| answer.status() != 200).collect();
    assert_eq!(refused.len(), 4);
    for answer in refused {
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        assert!(answer.text().await.unwrap().contains("No healthy accounts available"));
    }
    at_once.stop();
}

/// Of many requests one goes to a half-open account, and its success brings the account back.
#[tokio::test(flavor = "multi_thread")]
async fn one_request_probes_a_half_open_account_case_18() {
    let place = Place::new();
    place.account("a1", &json!({ "isHealthy": false }), &social("access-1", "r1"));
    place.account("a2", &json!({}), &social("access-2", "r2"));
    let server = place.serve(&[("KIRO_API_KEY", KEY)]);
    let ready = async || place.get(&server, "/health").await.1.contains(r#""healthy":2"#);
    eventually("the first snapshot", Duration::from_secs(5), ready).await;
    let mut body = message();
    body["messages"][0]["content"] = json!(r#"[[sim {"steps":[{"wait_ms":1000},{"text":"x"}]}]]"#);
    let answers = futures_util::future::join_all((0..20).map(|_| place.ask(&server, &body))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    assert_eq!(place.upstream.control().stats()["calls_by_token"], json!({ "access-1": 1, "access-2": 19 }));
    let healed = async || place.record("a1")["isHealthy"] == true;
    eventually("healed", Duration::from_secs(5), healed).await;
    server.stop();
}

/// `sticky`: a conversation stays on its account.
#[tokio::test(flavor = "multi_thread")]
async fn a_sticky_conversation_stays_on_its_account() {
    let place = Place::new();
    for n in 0..5 {
        place.account(&format!("a{n}"), &json!({}), &social(&format!("access-{n}"), &format!("r{n}")));
    }
    let server = place.serve(&[("KIRO_API_KEY", KEY), ("KIRO_STRATEGY", "sticky")]);
    let ready = async || place.get(&server, "/health").await.1.contains(r#""healthy":5"#);
    eventually("the first snapshot", Duration::from_secs(5), ready).await;
    for session in 0..8 {
        let session = format!("0000000{session}-0000-4000-8000-000000000000");
        let before = place.upstream.control().stats()["calls_by_token"].clone();
        for _ in 0..4 {
            let request = place.http.post(server.url("/v1/messages")).header("x-api-key", KEY);
            let request = request.header("x-claude-code-session-id", &session).body(message().to_string());
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
        let after = place.upstream.control().stats()["calls_by_token"].clone();
        let moved = after.as_object().unwrap().iter().filter(|(token, calls)| before[token.as_str()] != **calls);
        assert_eq!(moved.count(), 1, "{before} {after}");
    }
    let used = place.upstream.control().stats()["calls_by_token"].as_object().unwrap().len();
    assert!(used > 1, "conversations are spread");
    server.stop();
}

/// Each attempt carries the profile of its own account, also after failover.
#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_carries_its_own_profile_trap_23() {
    let place = Place::new();
    for (id, access, arn) in
        [("a1", "sim-429.one", "arn:one"), ("a2", "sim-500.two", "arn:two"), ("a3", "three", "arn:three")]
    {
        let mut token = social(access, id);
        token["profileArn"] = json!(arn);
        place.account(id, &json!({}), &token);
    }
    let server = place.serve(&[("KIRO_API_KEY", KEY), ("KIRO_AFFINITY", "off")]);
    for _ in 0..3 {
        eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    }
    let stats = place.http.get(format!("{}/_sim/stats?bodies=1", place.upstream.url())).send().await.unwrap();
    let stats: Value = serde_json::from_str(&stats.text().await.unwrap()).unwrap();
    let sent: std::collections::BTreeSet<(String, String)> = stats["last"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|call| call["target"] == "/generateAssistantResponse")
        .map(|call| {
            let body: Value = serde_json::from_str(call["body"].as_str().unwrap()).unwrap();
            (
                call["headers"]["authorization"].as_str().unwrap().to_owned(),
                body["profileArn"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected =
        [("Bearer sim-429.one", "arn:one"), ("Bearer sim-500.two", "arn:two"), ("Bearer three", "arn:three")];
    assert_eq!(sent.into_iter().collect::<Vec<_>>(), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(stats["calls_by_token"]["sim-429.one"], 1, "trap 27: never on the same account again");
    server.stop();
}

/// No cap of connections below the goal.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_streams_run_at_once_trap_21() {
    let place = Place::new();
    place.account("a1", &json!({}), &social("access-1", "r1"));
    let server = place.serve(&[("KIRO_API_KEY", KEY)]);
    eventually("served", Duration::from_secs(5), async || place.ask(&server, &message()).await.0 == 200).await;
    let mut body = message();
    body["stream"] = json!(true);
    body["messages"][0]["content"] = json!(r#"[[sim {"text":"first","end":"hang"}]]"#);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let request = place.http.post(server.url("/v1/messages")).header("x-api-key", KEY).body(body.to_string());
        streams.spawn(async move {
            let mut response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            while let Some(chunk) = response.chunk().await.unwrap() {
                if chunk.windows(5).any(|bytes| bytes == b"first") {
                    return response;
                }
            }
            panic!("it ended");
        });
    }
    let open = streams.join_all().await;
    assert_eq!(open.len(), 500);
    assert_eq!(place.upstream.control().stats()["streams"]["open"], 500, "all at once");
    drop(open);
    let closed = async || place.upstream.control().stats()["streams"]["open"] == 0;
    eventually("all are closed", Duration::from_secs(10), closed).await;
    server.stop();
    assert_eq!(place.record("a1")["usageCount"], 1, "cancelled ones leave nothing (K50)");
}

/// Every fault, refresh and question with marked secrets, everything logged, and then everything that was said anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_anywhere_case_48_r6_trap_42() {
    let (place, mut redis, url) = Place::with_password("hush-redis");
    let mut add = |id: &str, record: Value, token: Value| {
        redis.set::<_, _, ()>(format!("aiclient:tokens:claude-kiro-oauth:{id}"), token.to_string()).unwrap();
        redis.hset::<_, _, _, ()>(POOL, id, record.to_string()).unwrap();
    };
    let presets = [
        "400",
        "401",
        "403",
        "403-invalid-token",
        "suspended",
        "402",
        "429",
        "500",
        "503",
        "529",
        "drop",
        "cut-early",
        "empty",
        "corrupt",
        "profile-arn",
        "suspicious",
        "ok",
    ];
    for (n, preset) in presets.iter().enumerate() {
        let token = json!({
            "accessToken": format!("sim-{preset}.hush-access-{n}"), "refreshToken": format!("hush-refresh-{n}"),
            "expiresAt": FAR, "authMethod": "social", "profileArn": PROFILE_ARN, "unknown": "hush-unknown",
        });
        add(&format!("p{n}-{preset}"), json!({ "note": "hush-note" }), token);
    }
    for (n, refresh) in ["dead", "401", "500", "keep", "404", "no-access-token", "drop"].iter().enumerate() {
        let token = json!({
            "accessToken": format!("hush-old-{n}"), "refreshToken": format!("sim-refresh-{refresh}.hush-{n}"),
            "expiresAt": PAST, "authMethod": "IdC", "clientId": "hush-client", "clientSecret": "hush-secret",
        });
        add(&format!("r{n}-{refresh}"), json!({}), token);
    }
    add("key", json!({ "PROXY_URL": "http://me:hush-proxy@127.0.0.1:1" }), json!({ "kiroApiKey": "ksk_hush-key" }));
    add("broken", json!({}), json!(["hush-broken"]));
    add("region", json!({ "region": "hush region" }), json!({ "accessToken": "hush-a", "region": "hush region" }));
    let dumps = tempfile::tempdir().unwrap();
    let mut environment = vec![
        ("REDIS_URL", url.as_str()),
        ("KIRO_API_KEY", "hush-client-key"),
        ("KIRO_LOG_LEVEL", "trace"),
        ("KIRO_MAX_ATTEMPTS", "30"),
    ];
    let dumping = SETTINGS.iter().any(|setting| setting.env == "KIRO_DEBUG_DUMP_DIR");
    if dumping {
        environment.push(("KIRO_DEBUG_DUMP_DIR", dumps.path().to_str().unwrap()));
    }
    let server = place.serve(&environment);
    let mut said = String::new();
    let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
    for n in 0..60 {
        let mut body = message();
        body["stream"] = json!(n % 2 == 0);
        // Another conversation each time: one stays with its account.
        body["messages"][0]["content"] = json!(format!("hush-prompt {n}"));
        let key = if n % 7 == 6 { "hush-wrong-key" } else { "hush-client-key" };
        let (status, text) = place.ask_with_key(&server, &body, key).await;
        *statuses.entry(status).or_default() += 1;
        said.push_str(&text);
    }
    for path in ["/health", "/metrics", "/v1/models"] {
        let request = place.http.get(server.url(path)).header("x-api-key", "hush-client-key");
        said.push_str(&request.send().await.unwrap().text().await.unwrap());
    }
    println!("{statuses:?}");
    assert!(statuses.contains_key(&200) && statuses.contains_key(&401), "{statuses:?}");
    for arguments in [
        &["doctor"][..],
        &["doctor", "--json"],
        &["accounts", "list"],
        &["accounts", "list", "--json"],
        &["accounts", "check"],
        &["accounts", "check", "--json", "--refresh"],
        &["--print-config"],
    ] {
        let (_, text) = place.run(arguments, &environment);
        assert!(!text.is_empty());
        said.push_str(&text);
    }
    let log = server.stop();
    assert!(log.lines().count() > 60, "it did log");
    said.push_str(&log);
    let dumped = files(dumps.path());
    println!("{} bytes said, {} files dumped", said.len(), dumped.len());
    assert_eq!(dumping, !dumped.is_empty());
    let prompt = said.lines().find(|line| line.contains("hush-prompt"));
    assert!(prompt.is_none(), "prompt text: {prompt:?}");
    for (name, text) in dumped {
        said.push_str(&name);
        // A dump may hold the prompt: that is what it is for.
        said.push_str(&text.replace("hush-prompt", ""));
    }
    for line in said.lines() {
        assert!(!line.contains("hush"), "{line}");
    }
}

/// Names and texts of all files below a folder.
fn files(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((
                path.display().to_string(),
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned(),
            ));
        }
    }
    found
}
