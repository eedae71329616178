//! No handshake in the way of a person: what a turn after a pause, and one with a long request, waits for.

use std::time::{Duration, Instant};

use kiro_messages::simulator::Simulator;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::distance::Distance;
use super::tls::text;
use super::world::{KEY, World, base};

const HOST: &str = "q.us-east-1.localhost";
const ROUND_TRIP: Duration = Duration::from_millis(80);

/// A streamed request with this text, up to its first bytes, and then to its end.
async fn turn(world: &World, words: &str) -> Duration {
    let mut body = base();
    body["stream"] = json!(true);
    body["messages"] = json!([{ "role": "user", "content": words }]);
    let began = Instant::now();
    let request = world.http.post(world.url("/v1/messages")).header("x-api-key", KEY).body(body.to_string());
    let mut reply = request.send().await.unwrap();
    assert_eq!(reply.status(), 200);
    let mut all = String::from_utf8(reply.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    let first = began.elapsed();
    while let Some(more) = reply.chunk().await.unwrap() {
        all.push_str(std::str::from_utf8(&more).unwrap());
    }
    assert!(all.contains("event: message_stop"), "{all}");
    first
}

/// A series of `/metrics`.
fn series(world: &World, name: &str) -> u64 {
    let text = world.gateway.metrics();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} in {text}"))
}

/// The calls of the background would be counted, too.
const QUIET: [(&str, &str); 2] = [("KIRO_MODEL_DISCOVERY", "off"), ("KIRO_USAGE_INTERVAL", "0s")];

const BY_REQUEST: &str = "kiro_upstream_connects_total{reason=\"request\"}";
const AHEAD: &str = "kiro_upstream_connects_total{reason=\"ahead\"}";
const FAILED: &str = "kiro_upstream_ahead_failures_total";
const IDLE: &str = "kiro_upstream_idle_connections";

/// The pauses are longer than a connection is kept, so that the one which is used was opened ahead. At full size the
/// settings are the real ones, and Kiro's host drops idle connections after its real 60 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_after_a_pause_waits_for_no_handshake_k67_k143() {
    let full = std::env::var_os("KIRO_TEST_FULL_SIZE").is_some();
    let (keep, idle_ms, pauses) = if full { ("55s", 60_000, vec![40, 100]) } else { ("3s", 3_300, vec![2, 7]) };
    let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let kiro = simulator.world(json!({ "idle_ms": idle_ms })).unwrap().spawn().unwrap();
    let far = Distance::start(kiro.addr(), HOST, ROUND_TRIP).await;
    let url = format!("https://{HOST}:{}/generateAssistantResponse", far.port());
    let certificate = far.certificate();
    let options = [
        ("KIRO_UPSTREAM_URL", url.as_str()),
        ("NODE_EXTRA_CA_CERTS", text(&certificate)),
        ("KIRO_UPSTREAM_API", "q"),
        QUIET[0],
        QUIET[1],
        ("KIRO_UPSTREAM_KEEP_IDLE", keep),
    ];
    let world = World::new(&options).await;
    let cold = turn(&world, "the first").await;
    let mut warm = Vec::new();
    for n in 0..5 {
        warm.push(turn(&world, &format!("warm {n}")).await);
    }
    warm.sort();
    let warm = warm[2];
    assert!(cold >= warm + ROUND_TRIP + ROUND_TRIP / 2, "cold {cold:?}, warm {warm:?}: no distance");
    for pause in pauses {
        sleep(Duration::from_secs(pause)).await;
        let (handshakes, by_request) = (far.handshakes(), series(&world, BY_REQUEST));
        let first = turn(&world, &format!("after {pause} s")).await;
        println!("after {pause} s: first event {first:?}, warm {warm:?}, cold {cold:?}");
        assert!(first <= warm + ROUND_TRIP, "after {pause} s: {first:?}, warm {warm:?}, cold {cold:?}");
        assert_eq!(series(&world, BY_REQUEST), by_request, "a handshake in the turn after {pause} s");
        // One ahead may come in the same moment.
        assert!(far.handshakes() <= handshakes + 1);
    }
    assert_eq!((series(&world, BY_REQUEST), series(&world, FAILED)), (1, 0));
    assert!(series(&world, AHEAD) >= 1);
    assert!((1..=4).contains(&series(&world, IDLE)), "{}", series(&world, IDLE));
}

/// A connection that has sent the head of a request, and its beginning.
struct Upload {
    client: TcpStream,
    rest: Vec<u8>,
}

impl Upload {
    async fn begin(world: &World, words: &str, length: usize) -> Self {
        let mut body = base();
        body["messages"] = json!([{ "role": "user", "content": format!("{words} {}", "x".repeat(length)) }]);
        let body = body.to_string();
        let length = body.len();
        let mut client = TcpStream::connect(world.listening.address()).await.unwrap();
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-api-key: {KEY}\r\ncontent-length: {length}\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&body.as_bytes()[..4096]).await.unwrap();
        Self { client, rest: body.as_bytes()[4096..].to_vec() }
    }

    async fn end(mut self) {
        self.client.write_all(&self.rest).await.unwrap();
        let mut answer = String::new();
        self.client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// The connection is there before the rest of the body, and the request takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_request_has_its_connection_opened_while_it_arrives_k143() {
    let world = World::new(&QUIET).await;
    let accepted = || world.simulated.control().stats()["connections"]["accepted"].as_u64().unwrap();
    let short = Upload::begin(&world, "short", 8 * 1024).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(accepted(), 0);
    for words in ["the first", "the second"] {
        let upload = Upload::begin(&world, words, 100 * 1024).await;
        let late = Instant::now() + Duration::from_secs(20);
        while series(&world, IDLE) == 0 {
            assert!(Instant::now() < late, "none was opened");
            sleep(Duration::from_millis(10)).await;
        }
        upload.end().await;
        assert_eq!((accepted(), series(&world, AHEAD), series(&world, BY_REQUEST)), (1, 1, 0), "{words}");
    }
    short.end().await;
    assert_eq!(series(&world, BY_REQUEST), 0);
}
