//! What an open stream holds. The bar is 5,000 streams in a release build (`npm run soak`); this is its small sister.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use super::life::{Server, messages};
use super::redis_server::free_port;

const STREAMS: usize = 300;
/// 32 in a release build; the futures of a debug build are bigger.
const MOST_A_STREAM: u64 = 40 * 1024;
/// Upstream connections that are kept warm, and those of calls in the background.
const WARM: usize = 6;

#[test]
#[cfg(target_os = "linux")]
fn open_streams_take_bounded_memory_and_files() {
    // In a process of its own, so that its memory isn't counted.
    let port = free_port().to_string();
    let upstream = Server::simulate(&format!("127.0.0.1:{port}"));
    let url = format!("http://{}/generateAssistantResponse", upstream.address);
    let mut server = Server::start_upstream(&url);
    server.is_ready();
    let id = server.child.id();
    let resident = || {
        let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap();
        let line = text.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    };
    let files = || fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
    let endless = json!({ "text": "first", "end": "hang" });
    let short = json!({ "steps": [{ "text": "first" }, { "wait_ms": 1500 }, { "text": "last" }] });
    let stream = |scenario: &serde_json::Value| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(messages(scenario).as_bytes()).unwrap();
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !text.windows(5).any(|window| window == b"first") {
            let count = stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&buffer[..count]);
        }
        stream
    };
    let finish = |mut stream: TcpStream| {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("message_stop"), "{rest}");
    };
    finish(stream(&short));
    let (memory, before) = (resident(), files());
    let open: Vec<_> = (0..STREAMS).map(|_| stream(&endless)).collect();
    let each = resident().saturating_sub(memory) / STREAMS as u64;
    assert!(files() >= before + 2 * STREAMS - WARM, "{} files are open, {before} were", files());
    let back = || {
        let ended = Instant::now();
        while files() > before + WARM {
            assert!(ended.elapsed() < Duration::from_secs(10), "{} files are open, {before} were", files());
            sleep(Duration::from_millis(50));
        }
    };
    // Clients that go away take their upstream connections with them; what ends well leaves them to be used again.
    drop(open);
    back();
    let open: Vec<_> = (0..40).map(|_| stream(&short)).collect();
    open.into_iter().for_each(finish);
    back();
    assert!(each <= MOST_A_STREAM, "{each} bytes a stream");
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(20)), Some(0));
}
