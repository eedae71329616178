//! What large requests take: while they wait for their answers, while those stream, and afterwards.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::life::Server;
use super::redis_server::free_port;
use super::world::base;

#[path = "../../benches/inputs/conversation.rs"]
mod conversation;

const BODY: usize = 1 << 20;
const REQUESTS: usize = 40;

/// Memory of a process in bytes, by the names of `/proc/PID/status`.
fn memory(server: &Server, name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// The largest resident size begins anew.
fn forget_peak(server: &Server) {
    fs::write(format!("/proc/{}/clear_refs", server.child.id()), "5").unwrap();
}

/// A request of about [`BODY`] bytes as Claude Code makes them: long results, with what JSON escapes in code. `number`
/// makes it a conversation of its own.
fn large(scenario: &Value, number: usize) -> String {
    let line = "    if (a < b && c > \"d\") { return `${x}\\n`; } // é\n";
    let odd = "</script>";
    let mut messages = Vec::new();
    for turn in 0..BODY / 20_000 {
        let text = format!("{number}.{turn}{odd}\n{}", line.repeat(20_000 / (line.len() + 8)));
        messages.push(json!({ "role": "user", "content": text }));
        messages.push(json!({ "role": "assistant", "content": "go on" }));
    }
    messages.push(json!({ "role": "user", "content": format!("[[sim {scenario}]]") }));
    let mut body = base();
    body["stream"] = json!(true);
    body["messages"] = json!(messages);
    post(&body.to_string().replace("</script>", "\\u003c\\/script>"))
}

/// A request of about [`BODY`] bytes with 40 tools and many calls of them.
fn agents(scenario: &Value, number: usize) -> String {
    let mut body = conversation::conversation(BODY);
    body["messages"][0]["content"] = json!(format!("{number}"));
    let last = body["messages"].as_array_mut().unwrap().last_mut().unwrap();
    let text = json!({ "type": "text", "text": format!("[[sim {scenario}]]") });
    last["content"].as_array_mut().unwrap().push(text);
    post(&body.to_string())
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Reads until this text has come.
fn until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while memchr::memmem::find(&text, wanted.as_bytes()).is_none() {
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn upstream() -> (Server, String) {
    let upstream = Server::simulate(&format!("127.0.0.1:{}", free_port()));
    let url = format!("http://{}/generateAssistantResponse", upstream.address);
    (upstream, url)
}

fn metric(server: &Server, name: &str) -> f64 {
    let text = ask(server, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
}

fn wait_for(server: &Server, name: &str, enough: impl Fn(f64) -> bool) {
    let began = Instant::now();
    while !enough(metric(server, name)) {
        assert!(began.elapsed() < Duration::from_secs(120), "{name}: {}", metric(server, name));
        sleep(Duration::from_millis(50));
    }
}

/// Within ten seconds no more than so many bytes are resident.
fn goes_back(server: &Server, most: usize) {
    let began = Instant::now();
    while memory(server, "VmRSS:") > most {
        assert!(began.elapsed() < Duration::from_secs(10), "{} bytes of {most}", memory(server, "VmRSS:"));
        sleep(Duration::from_millis(100));
    }
}

/// The whole answer.
fn ask(server: &Server, request: &str) -> String {
    let mut answer = String::new();
    send(server.address, request).read_to_string(&mut answer).unwrap();
    answer
}

/// Bars of a release build: 1.25 bodies, 60 KiB a stream, 25 MB afterwards. A debug build has larger futures and stacks.
#[test]
fn large_requests_are_held_once_and_not_at_all_after_the_first_content_k121_m90_m92() {
    const SPARE: usize = 24 << 20;
    const KEPT: usize = 20 << 20;
    let (_upstream, url) = upstream();
    let server = Server::start_upstream(&url);
    server.is_ready();
    until(&mut send(server.address, &large(&json!({ "text": "first" }), 0)), "message_stop");
    let idle = memory(&server, "VmRSS:");

    // No answer comes: each body may be needed for another attempt.
    forget_peak(&server);
    let silent = json!({ "head_ms": 600_000 });
    let requests: Vec<_> = (1..=REQUESTS).map(|number| agents(&silent, number)).collect();
    let bytes: usize = requests.iter().map(String::len).sum();
    let waiting: Vec<_> = requests.iter().map(|request| send(server.address, request)).collect();
    wait_for(&server, "kiro_requests_in_flight", |value| value >= REQUESTS as f64);
    // Translated, and counted as what they take.
    wait_for(&server, "kiro_request_memory_bytes", |value| value < 1.2 * bytes as f64);
    assert!(metric(&server, "kiro_request_memory_bytes") > 0.95 * bytes as f64);
    let peak = memory(&server, "VmHWM:").saturating_sub(idle);
    assert!(peak < bytes * 5 / 4 + SPARE, "{peak} bytes at the most for {bytes} of bodies");
    drop(waiting);
    wait_for(&server, "kiro_request_memory_bytes", |value| value == 0.0);

    let endless = json!({ "text": "first", "end": "hang" });
    let mut open = Vec::new();
    for number in 1..=REQUESTS {
        let mut stream = send(server.address, &large(&endless, 1000 + number));
        until(&mut stream, "first");
        open.push(stream);
    }
    assert_eq!(metric(&server, "kiro_request_memory_bytes"), 0.0, "a stream holds its request");
    goes_back(&server, idle + REQUESTS * (100 << 10) + KEPT);
    drop(open);
    wait_for(&server, "kiro_requests_in_flight", |value| value == 0.0);
    goes_back(&server, idle + KEPT);
}

/// Each needs a share of 16 MiB while it is read, so that two fit.
#[test]
fn all_bodies_together_keep_within_the_bound_m90() {
    const MOST: usize = 40 << 20;
    const LENGTH: usize = 8 << 20;
    let server = Server::start(&["--port", "0"], &[("KIRO_MAX_REQUEST_MEMORY", "40MiB"), ("KIRO_BODY_TIMEOUT", "60s")]);
    server.is_ready();
    let mut body = base();
    body["messages"] = json!([{ "role": "user", "content": "x".repeat(LENGTH) }]);
    let request = post(&body.to_string()).replace("/v1/messages ", "/v1/messages/count_tokens ");
    let whole = [request.as_bytes()].concat();
    let answered = |request: &str| {
        let answer = ask(&server, request);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    answered(&request);
    forget_peak(&server);
    let idle = memory(&server, "VmRSS:");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| answered(&request));
        }
        // Without content-length: in steps.
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let head = head.split("content-length").next().unwrap();
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        scope.spawn(move || answered(&chunked));
    });
    assert!(metric(&server, "kiro_request_memory_waits_total{result=\"waited\"}") > 0.0);
    assert_eq!(metric(&server, "kiro_request_memory_bytes"), 0.0);
    let peak = memory(&server, "VmHWM:").saturating_sub(idle);
    assert!(peak < MOST + (16 << 20), "{peak} bytes at the most, {} were sent", 13 * whole.len());
}

#[test]
fn a_request_waits_for_room_and_is_refused_after_a_while_m90() {
    let server = Server::start(&["--port", "0"], &[("KIRO_MAX_REQUEST_MEMORY", "64KiB"), ("KIRO_BODY_TIMEOUT", "2s")]);
    server.is_ready();
    let request = |scenario: &Value, number: usize| {
        let mut body = base();
        body["stream"] = json!(true);
        body["messages"] =
            json!([{ "role": "user", "content": format!("{}{number}[[sim {scenario}]]", "x".repeat(40_000)) }]);
        post(&body.to_string())
    };
    let mut held = send(server.address, &request(&json!({ "first_ms": 4000, "text": "first" }), 1));
    wait_for(&server, "kiro_requests_in_flight", |value| value == 1.0);
    let began = Instant::now();
    let refused = ask(&server, &request(&json!({}), 2));
    assert!(began.elapsed() >= Duration::from_millis(1900));
    assert!(refused.starts_with("HTTP/1.1 529") && refused.contains("overloaded_error"), "{refused}");
    assert!(refused.contains("retry-after: 5\r\n") && refused.contains("KIRO_MAX_REQUEST_MEMORY"), "{refused}");
    sleep(Duration::from_millis(300));
    // Room comes with the first content of the other's answer.
    let waits = ask(&server, &request(&json!({ "text": "second" }), 3));
    assert!(waits.contains("message_stop"), "{waits}");
    until(&mut held, "message_stop");
    assert_eq!(metric(&server, "kiro_request_memory_waits_total{result=\"refused\"}"), 1.0);
}

/// A streaming request whose text has so many bytes before its scenario.
fn request(scenario: &Value, length: usize) -> String {
    let mut body = base();
    body["stream"] = json!(true);
    body["messages"] = json!([{ "role": "user", "content": format!("{}[[sim {scenario}]]", "x".repeat(length)) }]);
    post(&body.to_string())
}

/// Until so many bodies have had to wait.
fn waited(server: &Server, count: f64) {
    wait_for(server, "kiro_request_memory_waits_total{result=\"waited\"}", |n| n == count);
}

/// A client that only has nothing more to say stays in front, until `held` frees its room; so many have waited before.
fn stays_in_front(server: &Server, sent: &str, before: f64, held: TcpStream, answer: &str) {
    let mut stays = send(server.address, sent);
    waited(server, before + 1.0);
    stays.shutdown(std::net::Shutdown::Write).unwrap();
    let mut behind = send(server.address, &request(&json!({ "text": "small" }), 1));
    waited(server, before + 2.0);
    behind.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(behind.read(&mut [0]).is_err(), "it overtook");
    held.shutdown(std::net::Shutdown::Both).unwrap();
    drop(held);
    behind.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    until(&mut stays, answer);
    until(&mut behind, "message_stop");
}

/// It would stand in front of those that fit.
#[test]
fn a_client_that_leaves_while_it_waits_for_room_frees_its_place_at_once_m10_m90() {
    let server = Server::start(&["--port", "0"], &[("KIRO_MAX_REQUEST_MEMORY", "64KiB"), ("KIRO_BODY_TIMEOUT", "60s")]);
    server.is_ready();
    let waits = |count: f64| waited(&server, count);
    let held = send(server.address, &request(&json!({ "first_ms": 60_000, "text": "first" }), 40_000));
    wait_for(&server, "kiro_requests_in_flight", |value| value == 1.0);
    let large = request(&json!({ "text": "large" }), 30_000);
    let leaves = send(server.address, &large);
    waits(1.0);
    let mut small = send(server.address, &request(&json!({ "text": "small" }), 1));
    waits(2.0);
    drop(leaves);
    let left = Instant::now();
    until(&mut small, "message_stop");
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
    stays_in_front(&server, &large, 2.0, held, "large");
}

/// A body without `content-length` that waits for more stands in front of all others, and holds what it has.
#[test]
fn a_client_that_leaves_while_its_body_waits_to_grow_frees_its_share_at_once_m10_m90() {
    let server =
        Server::start(&["--port", "0"], &[("KIRO_MAX_REQUEST_MEMORY", "400KiB"), ("KIRO_BODY_TIMEOUT", "60s")]);
    server.is_ready();
    let small = request(&json!({ "text": "small" }), 1);
    let waits = |count: f64| waited(&server, count);
    let held = send(server.address, &request(&json!({ "first_ms": 60_000, "text": "first" }), 180_000));
    // Translated: there is room for a body's first step, and not for its second.
    wait_for(&server, "kiro_request_memory_bytes", |bytes| bytes > 0.0 && bytes < 250_000.0);
    let grows = request(&json!({ "text": "grown" }), 90_000);
    let (head, body) = grows.split_once("\r\n\r\n").unwrap();
    let head = head.split("content-length").next().unwrap();
    let begun = |body: &str| format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len());
    let whole = begun(body) + "0\r\n\r\n";
    // The second has sent what can't be held, and nothing of it is left in the socket.
    for (left, sent) in [&whole, &begun(&body[..70_000])].into_iter().enumerate() {
        let leaves = send(server.address, sent);
        waits(2.0 * left as f64 + 1.0);
        let mut behind = send(server.address, &small);
        waits(2.0 * left as f64 + 2.0);
        drop(leaves);
        let left = Instant::now();
        until(&mut behind, "message_stop");
        assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
    }
    stays_in_front(&server, &whole, 4.0, held, "grown");
}

/// Each holds 128 KiB of 300 and needs all there is: one is refused, so that the other can go on.
#[test]
fn chunked_bodies_that_both_grow_do_not_wait_for_each_other_m90() {
    let server = Server::start(&["--port", "0"], &[("KIRO_MAX_REQUEST_MEMORY", "300KiB"), ("KIRO_BODY_TIMEOUT", "0")]);
    server.is_ready();
    let mut body = base();
    body["messages"] = json!([{ "role": "user", "content": "x".repeat(160_000) }]);
    let body = body.to_string();
    let (begin, rest) = body.split_at(60_000);
    let head = "POST /v1/messages/count_tokens HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let begun = format!("{head}{:x}\r\n{begin}\r\n", begin.len());
    let mut both = [send(server.address, &begun), send(server.address, &begun)];
    wait_for(&server, "kiro_request_memory_bytes", |value| value == f64::from(2 * 128 * 1024));
    for client in &mut both {
        client.write_all(format!("{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len()).as_bytes()).unwrap();
    }
    let mut statuses = both.each_mut().map(|client| until(client, "\r\n")[9..12].to_owned());
    statuses.sort_unstable();
    assert_eq!(statuses, ["200", "529"]);
    drop(both);
    wait_for(&server, "kiro_request_memory_bytes", |value| value == 0.0);
}

#[test]
fn a_message_of_several_rounds_counts_its_body_twice_m90_ts33() {
    let server = Server::start(&["--port", "0"], &[]);
    server.is_ready();
    let mut body = base();
    body["stream"] = json!(true);
    body["output_config"] = json!({ "format": { "type": "json_schema", "schema": { "type": "object" } } });
    let scenario = json!({ "text": "{", "end": "hang" });
    body["messages"] = json!([{ "role": "user", "content": format!("{}[[sim {scenario}]]", "x".repeat(100_000)) }]);
    let body = body.to_string();
    let mut stream = send(server.address, &post(&body));
    until(&mut stream, "message_start");
    assert!(metric(&server, "kiro_request_memory_bytes") >= 2.0 * body.len() as f64);
    drop(stream);
    wait_for(&server, "kiro_request_memory_bytes", |value| value == 0.0);
}

/// The awkwardest JSON that is taken: as many small blocks as may be, escapes everywhere, and the rest one text. The bar
/// of a release build is three times its size.
#[test]
fn awkward_json_takes_a_few_times_its_size_m91() {
    const LENGTH: usize = 28 << 20;
    let (_upstream, url) = upstream();
    let server = Server::start_upstream(&url);
    server.is_ready();
    let block = r#"{"type":"text","text":"\u003c"}"#;
    let most = (1 << 20) / 5 - 100;
    let blocks = vec![block; most].join(", ");
    let rest = r"\u003ca\/".repeat((LENGTH - blocks.len()) / 9);
    let body = format!(
        r#"{{"model":"claude-sonnet-4-5","max_tokens":1,"messages":[{{"role":"user","content":[{blocks},{{"type":"text","text":"{rest}"}}]}}]}}"#
    );
    let counted = |body: &str| ask(&server, &post(body).replace("/v1/messages ", "/v1/messages/count_tokens "));
    counted("{}");
    let idle = memory(&server, "VmRSS:");
    forget_peak(&server);
    let answer = ask(&server, &post(&body));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let peak = memory(&server, "VmHWM:").saturating_sub(idle);
    assert!(peak < 4 * body.len(), "{peak} bytes for {}", body.len());
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(100), "]".repeat(100));
    let many = vec![deep; 20_000].join(",");
    let refused = counted(&body.replacen(block, &many, 1));
    assert!(refused.contains("more than 1048576 JSON values"), "{refused}");
}
