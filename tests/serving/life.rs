//! How `kiro-server` begins, drains, ends and is replaced.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::json;

use super::allow_open_files;
use super::redis_server::RedisServer;
use super::world::accounts::add_account as add_stored_account;
use super::world::{World, base, events, kinds};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// `kiro-server` on the simulator, with a store of its own.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    /// From its start until it said that it listens.
    took: Duration,
    _folder: tempfile::TempDir,
}

impl Server {
    pub fn start(options: &[&str], env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("file:{}", folder.path().join("store.json").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.args(["--upstream", "simulator"]).args(options).envs(env.iter().copied());
        if !options.contains(&"--store") {
            command.args(["--store", &store]);
        }
        Self::run(command, folder)
    }

    /// The simulated upstream alone.
    pub fn simulate(address: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.args(["simulate", "--listen", address]);
        Self::run(command, tempfile::tempdir().unwrap())
    }

    /// A server in front of an upstream that is there.
    pub fn start_upstream(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let id = "00000000-0000-4000-8000-000000000000";
        let token = json!({
            "accessToken": "access-1", "refreshToken": "refresh-1", "authMethod": "social",
            "expiresAt": "2099-01-01T00:00:00.000Z", "profileArn": kiro_messages::simulator::PROFILE_ARN,
        });
        let store = json!({ "accounts": { id: { "uuid": id, "isHealthy": true } }, "tokens": { id: token } });
        let path = folder.path().join("store.json");
        std::fs::write(&path, store.to_string()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let store = format!("file:{}", path.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.args(["--port", "0", "--store", &store, "--upstream-url", url]);
        Self::run(command, folder)
    }

    fn run(mut command: Command, folder: tempfile::TempDir) -> Self {
        command.env("KIRO_LOG_FORMAT", "json").stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = said.find(|line| line.contains("\"address\"")).expect("it listens");
        let took = began.elapsed();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = line["address"].as_str().unwrap().parse().unwrap();
        // Nobody else reads what it says, and a full pipe would stop it.
        spawn(move || said.for_each(drop));
        Self { child, address, took, _folder: folder }
    }

    /// The first snapshot is there.
    pub fn is_ready(&self) {
        while !request(self.address, HEALTH).unwrap().starts_with("HTTP/1.1 200 ") {
            sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Its exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it didn't end within {limit:?}");
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// One request on a connection of its own; the status, or what went wrong.
fn request(address: SocketAddr, text: &str) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A request on a connection that is kept; whether the answer was the last on it.
fn ask_again(connection: &mut Option<BufReader<TcpStream>>, address: SocketAddr) -> Result<bool, std::io::Error> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => BufReader::new(TcpStream::connect(address)?),
    };
    stream.get_mut().write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let (mut length, mut close, mut line) = (0, false, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(std::io::Error::other)?,
            Some(("connection", "close")) => close = true,
            _ if line == "\r\n" => break,
            _ => {}
        }
    }
    std::io::copy(&mut stream.by_ref().take(length), &mut std::io::sink())?;
    if !close {
        *connection = Some(stream);
    }
    Ok(close)
}

pub fn messages(scenario: &serde_json::Value) -> String {
    let mut body = base();
    body["stream"] = json!(true);
    body["messages"] = json!([{ "role": "user", "content": format!("[[sim {scenario}]]") }]);
    let body = body.to_string();
    format!(
        "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn add_account(redis: &RedisServer) {
    let id = "00000000-0000-4000-8000-000000000000";
    let token = json!({
        "accessToken": "access-1", "refreshToken": "refresh-1", "authMethod": "social",
        "expiresAt": "2099-01-01T00:00:00.000Z", "profileArn": kiro_messages::simulator::PROFILE_ARN,
    });
    add_stored_account(&mut redis.connection(), id, &json!({}), &token);
}

/// From the start of the process to its word that it listens: at most 100 ms beyond what the system takes to start it at
/// all, which is long for a debug build on a machine that is busy. The fastest of several.
#[test]
fn start_to_listening_takes_100_ms_at_most() {
    let (mut bare, mut fastest) = (Duration::MAX, Duration::MAX);
    for _ in 0..30 {
        let began = Instant::now();
        let version = Command::new(env!("CARGO_BIN_EXE_kiro-server")).arg("--version").output().unwrap();
        assert!(version.status.success());
        bare = bare.min(began.elapsed());
        let mut server = Server::start(&["--port", "0"], &[]);
        fastest = fastest.min(server.took);
        server.signal("TERM");
        assert_eq!(server.wait(Duration::from_secs(20)), Some(0));
        if fastest <= bare + Duration::from_millis(100) {
            return;
        }
    }
    panic!("the fastest start took {fastest:?}, of which {bare:?} for the process alone");
}

/// Before the first snapshot it listens and says 503; with the snapshot 200, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_503_before_the_first_snapshot() {
    let mut redis = RedisServer::start();
    redis.kill();
    let mut server = Server::start(&["--port", "0", "--store", "redis", "--redis-url", &redis.url()], &[]);
    let answer = request(server.address, HEALTH).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let answer = request(server.address, &messages(&json!({ "text": "x" }))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after"), "{answer}");
    redis.restart();
    add_account(&redis);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !request(server.address, HEALTH).unwrap().starts_with("HTTP/1.1 200 ") {
        assert!(Instant::now() < deadline, "it doesn't notice that the store is there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(20)), Some(0));
}

/// 200 open streams: all end whole within the grace time, and from the first moment nobody new is let in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_200_streams_end_and_nobody_new_in() {
    allow_open_files();
    let world = World::new(&[]).await;
    let held =
        join_all((0..200).map(|_| async { world.hold(&json!({ "text": "{n}", "count": 20, "gap_ms": 500 })).await }))
            .await;
    assert_eq!(world.gateway.in_flight(), 200);
    let address = world.listening.address();
    world.listening.refuse(Duration::ZERO);
    let deadline = Instant::now() + Duration::from_secs(2);
    // The listener is gone within a moment, and stays so.
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "new connections are taken");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let grace = Duration::from_secs(30);
    let streams = join_all(held.into_iter().map(super::world::Held::rest));
    let (_, _, whole) = tokio::join!(world.listening.drain(), world.gateway.close(grace), streams);
    for text in &whole {
        let all = events(text);
        assert_eq!(kinds(&all).last(), Some(&"message_stop"), "{text}");
        assert_eq!(kinds(&all).iter().filter(|kind| **kind == "content_block_delta").count(), 20);
    }
    assert_eq!(world.listening.connections(), 0);
}

/// The first SIGTERM waits for streams, the second doesn't.
#[test]
fn a_second_signal_ends_at_once() {
    let mut server = Server::start(&["--port", "0"], &[("KIRO_GRACEFUL_TIMEOUT", "60s")]);
    server.is_ready();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(messages(&json!({ "text": "a", "end": "hang" })).as_bytes()).unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    server.signal("TERM");
    sleep(Duration::from_millis(3000));
    assert_eq!(server.child.try_wait().unwrap(), None, "it didn't wait for the stream");
    let began = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(10)), Some(1));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// systemd hears when it is ready and when it stops (`Type=notify`).
#[test]
fn systemd_is_notified() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hear = || {
        let mut text = [0; 256];
        let count = socket.recv(&mut text).unwrap();
        String::from_utf8(text[..count].to_vec()).unwrap()
    };
    let mut server = Server::start(&["--port", "0"], &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!(hear().trim(), "READY=1");
    server.signal("TERM");
    assert_eq!(hear().trim(), "STOPPING=1");
    assert_eq!(server.wait(Duration::from_secs(20)), Some(0));
}

/// A socket that children inherit.
fn inheritable() -> (TcpListener, String) {
    let socket = kiro_messages::server::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
    fcntl_setfd(&socket, FdFlags::empty()).unwrap();
    let number = socket.as_raw_fd().to_string();
    (socket, number)
}

/// Socket activation, and with it a restart without downtime: the socket stays open over both processes, so every request
/// is answered by the one or the other.
#[test]
fn a_restart_on_a_handed_down_socket_fails_no_request() {
    let (socket, number) = inheritable();
    let env = [("LISTEN_FDS", "1"), ("LISTEN_FDS_FIRST_FD", number.as_str())];
    let first = Server::start(&["--port", "1"], &env);
    assert_eq!(first.address, socket.local_addr().unwrap(), "the handed down socket wins over the configuration");
    replaced_under_load(first, || Server::start(&[], &env));
}

/// `KIRO_REUSE_PORT`: the new server has a socket of its own on the port, and the old one closes its socket in the middle of
/// the load.
#[test]
fn a_restart_beside_on_the_port_fails_no_request() {
    let first = Server::start(&["--port", "0", "--reuse-port"], &[]);
    let port = first.address.port().to_string();
    replaced_under_load(first, || Server::start(&["--port", &port, "--reuse-port"], &[]));
}

/// Three times a new server takes the old one's place, under continuous load of new connections, streams that are open
/// longer than that takes, and a connection that is kept. Nothing may fail.
fn replaced_under_load(first: Server, start: impl Fn() -> Server) {
    let address = first.address;
    let over = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(Mutex::new(Vec::new()));
    // One request after the other, each on a connection of its own.
    let client = |text: String, whole: &'static str| {
        let (over, failed) = (over.clone(), failed.clone());
        spawn(move || {
            let mut served = 0;
            while !over.load(Ordering::Relaxed) {
                match request(address, &text) {
                    Ok(answer) if answer.contains(whole) => served += 1,
                    other => failed.lock().unwrap().push(format!("{other:?}")),
                }
            }
            served
        })
    };
    let stream = |count: usize, gap: u64| messages(&json!({ "text": "{n}", "count": count, "gap_ms": gap }));
    let short: Vec<_> = (0..16).map(|_| client(stream(5, 10), "message_stop")).collect();
    // The streams that a server has open when it is asked to stop.
    let long: Vec<_> = (0..16).map(|_| client(stream(10, 100), "message_stop")).collect();
    // As many connections as can be made.
    let quick: Vec<_> = (0..4).map(|_| client(HEALTH.to_owned(), "HTTP/1.1 200 ")).collect();
    // A connection that is kept, on which requests follow each other.
    let kept = {
        let (over, failed) = (over.clone(), failed.clone());
        spawn(move || {
            let mut connection = None;
            let mut closes = 0;
            while !over.load(Ordering::Relaxed) {
                match ask_again(&mut connection, address) {
                    Ok(closed) => closes += usize::from(closed),
                    Err(error) => failed.lock().unwrap().push(format!("kept: {error}")),
                }
                sleep(Duration::from_millis(20));
            }
            closes
        })
    };
    let mut current = first;
    for _ in 0..3 {
        sleep(Duration::from_millis(400));
        let mut replaced = std::mem::replace(&mut current, start());
        replaced.signal("TERM");
        assert_eq!(replaced.wait(Duration::from_secs(30)), Some(0));
    }
    sleep(Duration::from_millis(400));
    over.store(true, Ordering::Relaxed);
    let sum =
        |clients: Vec<std::thread::JoinHandle<usize>>| clients.into_iter().map(|c| c.join().unwrap()).sum::<usize>();
    let (short, long, quick) = (sum(short), sum(long), sum(quick));
    let kept = kept.join().unwrap();
    assert!(failed.lock().unwrap().is_empty(), "{short}, {long}, {quick} served, and then {failed:?}");
    assert_eq!(kept, 3, "each server that went said so on the connection");
    assert!(short > 30 && long > 16 && quick > 100, "{short}, {long}, {quick}");
}

/// `KIRO_REUSE_PORT`: two servers on one port, and when one has gone the other still serves.
#[test]
fn two_servers_share_a_port() {
    let mut first = Server::start(&["--port", "0", "--reuse-port"], &[]);
    let port = first.address.port().to_string();
    let second = Server::start(&["--port", &port, "--reuse-port"], &[]);
    assert_eq!(first.address, second.address);
    second.is_ready();
    first.signal("TERM");
    assert_eq!(first.wait(Duration::from_secs(20)), Some(0));
    for _ in 0..20 {
        let answer = request(second.address, &messages(&json!({ "text": "x" }))).unwrap();
        assert!(answer.contains("message_stop"), "{answer}");
    }
}
