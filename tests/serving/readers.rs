//! Clients that read slowly, not at all, or have closed their half of the connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::world::{KEY, World, events, kinds, with};

/// More than all buffers between hold.
fn flood() -> Value {
    json!({ "text": "x".repeat(2000), "count": 20_000 })
}

fn messages(scenario: &Value, stream: bool) -> String {
    request("1.1", scenario, stream)
}

fn request(version: &str, scenario: &Value, stream: bool) -> String {
    let content = format!("[[sim {scenario}]]");
    let body = with(
        json!({ "stream": stream, "max_tokens": 1_000_000_000, "messages": [{ "role": "user", "content": content }] }),
    )
    .to_string();
    let length = body.len();
    format!("POST /v1/messages HTTP/{version}\r\nhost: a\r\nx-api-key: {KEY}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// A client with a small buffer.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.connect(address).await.unwrap()
}

/// Nothing is left of a request.
async fn is_over(world: &World, within: Duration) {
    let began = Instant::now();
    while world.gateway.in_flight() > 0 || world.listening.connections() > 0 {
        assert!(
            began.elapsed() < within,
            "{} requests and {} connections after {within:?}",
            world.gateway.in_flight(),
            world.listening.connections()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn unharmed(world: &World) {
    let account = &world.accounts()[0];
    assert_eq!((&account["isHealthy"], account["errorCount"].as_u64().unwrap_or(0)), (&json!(true), 0), "{account}");
}

/// `KIRO_WRITE_TIMEOUT`: a place and a call of upstream aren't held by who takes no byte. It is the
/// client that is gone (499), not the account that failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_is_dropped() {
    let world = World::new(&[("KIRO_WRITE_TIMEOUT", "700ms")]).await;
    let address = world.listening.address();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut client = narrow(address).await;
        client.write_all(messages(&flood(), true).as_bytes()).await.unwrap();
        client.read_exact(&mut [0; 12]).await.unwrap();
        held.push(client);
    }
    assert_eq!(world.gateway.in_flight(), 4);
    is_over(&world, Duration::from_secs(20)).await;
    let metrics = world.http.get(world.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let cancelled = metrics.lines().find(|line| line.starts_with("kiro_requests_total{outcome=\"cancelled\""));
    assert!(cancelled.is_some_and(|line| line.ends_with(" 4")), "{cancelled:?}");
    unharmed(&world);
}

/// One who takes something within each time-out is waited for, however long it all takes: also one who takes so little
/// that a full socket doesn't take more for most of a time-out. TCP itself doesn't tell of less: with a full buffer the
/// client's system opens the window again when a sixteenth of it, up to 400 KB, is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_never_cut() {
    const LIMIT: Duration = Duration::from_secs(3);
    let world = World::new(&[("KIRO_WRITE_TIMEOUT", "3s")]).await;
    let read = async |piece: usize| {
        let mut client = TcpStream::connect(world.listening.address()).await.unwrap();
        client.write_all(messages(&flood(), true).as_bytes()).await.unwrap();
        let began = Instant::now();
        let mut piece = vec![0; piece];
        while began.elapsed() < 3 * LIMIT {
            client.read_exact(&mut piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        client
    };
    let clients = tokio::join!(read(256 * 1024), read(96 * 1024));
    assert_eq!(world.gateway.in_flight(), 2);
    drop(clients);
    is_over(&world, Duration::from_secs(5)).await;
    unharmed(&world);
}

/// `nc -N` closes its half when it has sent its request, and reads on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_half_gets_the_whole_answer() {
    let world = World::new(&[]).await;
    let scenario =
        json!({ "steps": [{ "wait_ms": 300 }, { "text": "first" }, { "wait_ms": 300 }, { "text": "last" }] });
    for (stream, more) in [(true, ""), (false, ""), (true, "\r\n"), (false, "\r\n")] {
        let mut client = TcpStream::connect(world.listening.address()).await.unwrap();
        client.write_all((messages(&scenario, stream) + more).as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("last"), "{text}");
        assert!(!stream || text.ends_with("data: {\"type\":\"message_stop\"}\n\n\r\n0\r\n\r\n"), "{text}");
    }
    // In the middle of an answer, too: what is asked whether somebody is there is a `ping`.
    let mut client = TcpStream::connect(world.listening.address()).await.unwrap();
    client.write_all(messages(&scenario, true).as_bytes()).await.unwrap();
    let mut text = String::new();
    while !text.contains("first") {
        let mut piece = [0; 4096];
        let count = client.read(&mut piece).await.unwrap();
        text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
    }
    client.shutdown().await.unwrap();
    client.read_to_string(&mut text).await.unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1;
    let lines: String = body.split("\r\n").filter(|line| usize::from_str_radix(line, 16).is_err()).collect();
    let all = events(&lines);
    let kinds = kinds(&all);
    assert_eq!((kinds.first(), kinds.last()), (Some(&"message_start"), Some(&"message_stop")), "{text}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "ping").count(), 1, "{kinds:?}");

    // More than fits into the connection at once, and the end of the input comes long before the end of the answer.
    let mut client = narrow(world.listening.address()).await;
    client.write_all(messages(&json!({ "text": "y".repeat(2000), "count": 4000 }), false).as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    let body = text.rsplit_once("\r\n\r\n").unwrap().1;
    let message: Value = serde_json::from_str(body).unwrap();
    assert_eq!(message["content"][0]["text"].as_str().unwrap().len(), 8_000_000);
    is_over(&world, Duration::from_secs(5)).await;
}

/// M10: the server tells a client that is gone from one that closed its sending half, at once: before the answer and in
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_gone_is_noticed_at_once_m10() {
    let world = World::new(&[]).await;
    let silent = json!({ "steps": [{ "wait_ms": 60_000 }, { "text": "x" }] });
    // What follows a request isn't read before its answer, and hides the end.
    let next = "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for (version, stream, more) in
        [("1.1", true, ""), ("1.1", false, ""), ("1.0", false, ""), ("1.1", true, "\r\n"), ("1.1", false, next)]
    {
        let mut client = TcpStream::connect(world.listening.address()).await.unwrap();
        client.write_all((request(version, &silent, stream) + more).as_bytes()).await.unwrap();
        while world.upstream_calls() == 0 || world.gateway.in_flight() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(client);
        is_over(&world, Duration::from_millis(500)).await;
    }
    let mut client = TcpStream::connect(world.listening.address()).await.unwrap();
    client.write_all(messages(&json!({ "text": "first", "end": "hang" }), true).as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.windows(5).any(|window| window == b"first") {
        client.read_buf(&mut text).await.unwrap();
    }
    drop(client);
    is_over(&world, Duration::from_millis(500)).await;
    unharmed(&world);
}
