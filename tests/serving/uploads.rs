//! Answers that come before the end of their request: they arrive, whatever the client still sends, and nobody holds a
//! place that way.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::tls::{Certificate, text};
use super::world::{KEY, World};
use super::{allow_open_files, raw};

const BODY: usize = 28 * 1024 * 1024;

/// Sends all of it, and only then looks whether there is an answer, as Python's http.client does.
fn send_all(address: SocketAddr, head: &str, body: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(head.as_bytes())?;
    let piece = vec![b' '; 256 * 1024];
    let mut left = body;
    while left > 0 {
        let next = left.min(piece.len());
        stream.write_all(&piece[..next])?;
        left -= next;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_answers_to_big_uploads_arrive() {
    let world = World::new(&[]).await;
    let address = world.listening.address();
    let post = |path: &str, key: &str, more: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\n{more}content-length: {length}\r\n\r\n")
    };
    let over = 40 * 1024 * 1024;
    for (status, head, body) in [
        (401, post("/v1/messages", "wrong", "", BODY), BODY),
        (404, post("/v1/nope", KEY, "", BODY), BODY),
        (405, post("/v1/models", KEY, "", BODY), BODY),
        (400, post("/v1/messages", KEY, "content-encoding: gzip\r\n", BODY), BODY),
        (400, post("/v1/messages", KEY, "host: b\r\n", BODY), BODY),
        (413, post("/v1/messages", KEY, "", over), over),
        (200, post("/api/event_logging/batch", "", "", BODY), BODY),
    ] {
        for _ in 0..3 {
            let head = head.clone();
            let answer = tokio::task::spawn_blocking(move || send_all(address, &head, body)).await.unwrap();
            let answer = answer.unwrap_or_else(|error| panic!("{status}: {error}"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
            assert!(answer.contains("connection: close"), "{answer}");
        }
    }
    // Without a length, and more than there may be.
    let head =
        format!("POST /v1/messages HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunks = format!("{head}{:x}\r\n", over);
    let answer = tokio::task::spawn_blocking(move || send_all(address, &chunks, over)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // A head that nobody can read.
    let head = format!("GET /health HTTP/1.1\r\nhost: a\r\nx-big: {}\r\n\r\n", "y".repeat(2_000_000));
    let got = raw(address, head.as_bytes(), Duration::from_secs(5)).await;
    assert_eq!((got.status(), got.closed), (Some(431), true), "{}", got.text);
    assert_eq!(world.gateway.in_flight(), 0);
}

/// A small request that was answered early is read to its end, and the connection goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_upload_keeps_its_connection() {
    let world = World::new(&[]).await;
    let body = "x".repeat(10_000);
    let post = format!("POST /nope HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let last = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let got = raw(world.listening.address(), format!("{post}{post}{last}").as_bytes(), Duration::from_secs(5)).await;
    assert_eq!((got.answers(), got.closed), (3, true), "{}", got.text);
    assert!(got.text.contains("HTTP/1.1 200 "), "{}", got.text);
}

/// Who waits for a word before it sends hears it when its request is wanted, else the answer at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_continue_is_answered_yes_or_no_m3() {
    let world = World::new(&[]).await;
    let ask = |key: &str, length: usize| {
        format!(
            "POST /v1/messages/count_tokens HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\nexpect: 100-continue\r\n\
             content-length: {length}\r\n\r\n"
        )
    };
    let body = super::world::base().to_string();
    for (key, length, status) in [("wrong", body.len(), 401), (KEY, 100_000_000, 413)] {
        let began = Instant::now();
        let got = raw(world.listening.address(), ask(key, length).as_bytes(), Duration::from_secs(5)).await;
        assert_eq!((got.status(), got.answers(), got.closed), (Some(status), 1, true), "{}", got.text);
        assert!(got.text.contains("connection: close"), "{}", got.text);
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    }
    let mut stream = tokio::net::TcpStream::connect(world.listening.address()).await.unwrap();
    stream.write_all(ask(KEY, body.len()).as_bytes()).await.unwrap();
    let mut word = [0; 25];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
}

/// A client that has its answer holds no place among the connections, whether or not it still sends, and is closed
/// soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answered_upload_holds_no_place() {
    allow_open_files();
    let world = World::new(&[("KIRO_MAX_CLIENT_CONNS", "20")]).await;
    let address = world.listening.address();
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: a\r\nx-api-key: wrong\r\ncontent-length: {BODY}\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..600 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 401");
        held.push(stream);
    }
    let began = Instant::now();
    while world.listening.connections() > 0 {
        assert!(began.elapsed() < Duration::from_secs(2), "{} places are held", world.listening.connections());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Silent ones are closed after a pause: what they send then comes back as a reset.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for mut stream in held {
        let _first = stream.write_all(b"x").await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(stream.write_all(b"x").await.is_err(), "it is still read");
    }
    // Nor is the end of the server held up.
    let mut late = tokio::net::TcpStream::connect(address).await.unwrap();
    late.write_all(head.as_bytes()).await.unwrap();
    late.read_exact(&mut [0; 12]).await.unwrap();
    let began = Instant::now();
    world.listening.drain().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// The bar: 28 MB with a wrong key from Node.js's `fetch`, 100 times: 100 × 401. And over TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_uploads_of_node_js_get_their_401() {
    const SCRIPT: &str = "
        const [url, times] = process.argv.slice(1), body = Buffer.alloc(28 * 1024 * 1024, 32), seen = {}
        for (let n = 0; n < Number(times); n++) {
          const said = await fetch(url, { method: 'POST', headers: { 'x-api-key': 'wrong' }, body }).then(
            async (answer) => `${answer.status} ${(await answer.json()).error.type}`,
            (error) => String(error.cause?.code ?? error),
          )
          seen[said] = (seen[said] ?? 0) + 1
        }
        process.stdout.write(JSON.stringify(seen))";
    let node = async |world: &World, scheme: &str, times: usize, authority: &str| {
        let url = format!("{scheme}://{}/v1/messages", world.listening.address());
        let mut command = Command::new("node");
        command.args(["--input-type=module", "-e", SCRIPT, &url, &times.to_string()]);
        command.env("NODE_EXTRA_CA_CERTS", authority).stderr(Stdio::inherit());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let world = World::new(&[]).await;
    assert_eq!(node(&world, "http", 100, "").await, r#"{"401 authentication_error":100}"#);
    let certificate = Certificate::new();
    let (cert, key) = (certificate.cert(), certificate.key());
    let world = World::new(&[("KIRO_TLS_CERT", text(&cert)), ("KIRO_TLS_KEY", text(&key))]).await;
    assert_eq!(node(&world, "https", 20, text(&cert)).await, r#"{"401 authentication_error":20}"#);
}
