//! What a signal does to `kiro-server`, from outside; also while nobody reads what it says.
#![cfg(all(unix, feature = "server"))]
#![expect(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// SIGTERM the moment it says that it listens: the handlers must be there before it says so. A supervisor then sees a
/// clean end and not a death by signal.
#[test]
fn a_signal_right_after_the_start_is_a_clean_end() {
    let store = std::env::temp_dir().join(format!("kiro-stop-{}.json", std::process::id()));
    let store_setting = format!("file:{}", store.display());
    let serve = ["--port", "0", "--upstream", "simulator", "--store", &store_setting];
    let simulate = ["simulate", "--listen", "127.0.0.1:0"];
    for _ in 0..20 {
        for args in [&serve[..], &simulate[..]] {
            let mut server = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
                .args(args)
                .env("KIRO_LOG_FORMAT", "json")
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // A shell that stands ready, since starting one takes longer than the gap that is looked for.
            let mut killer = Command::new("sh")
                .args(["-c", "read _; kill -TERM $0", &server.id().to_string()])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
            assert!(said.any(|line| line.contains("\"address\"")), "{args:?} listens");
            killer.stdin.take().unwrap().write_all(b"\n").unwrap();
            let rest: Vec<_> = said.collect();
            assert!(killer.wait().unwrap().success());
            assert_eq!(server.wait().unwrap().code(), Some(0), "{args:?} said {rest:?}");
        }
    }
    std::fs::remove_file(store).ok();
}

/// A server whose standard error is a pipe, of which only the beginning was read.
struct Muted {
    child: Child,
    said: BufReader<ChildStderr>,
    address: String,
    _folder: tempfile::TempDir,
}

impl Muted {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("file:{}", folder.path().join("store.json").display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
            .args(["--port", "0", "--upstream", "simulator", "--store", &store])
            .env("KIRO_LOG_FORMAT", "json")
            .env("KIRO_GRACEFUL_TIMEOUT", "20s")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("\"listening\"") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "it listens");
        }
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = line["address"].as_str().unwrap().to_owned();
        Self { child, said, address, _folder: folder }
    }

    /// A connection, and its first answer's status when `text` was sent on it.
    fn open(&self, text: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8(status.to_vec()).unwrap())
    }

    fn ask(&self, text: &str) -> String {
        let (mut stream, mut answer) = self.open(text);
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn dropped(&self) -> u64 {
        let metrics = self.ask("GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let line = metrics.lines().find_map(|line| line.strip_prefix("kiro_log_lines_dropped_total "));
        line.unwrap_or_else(|| panic!("no such metric: {metrics}")).parse().unwrap()
    }

    /// Has it say more than the pipe and its own buffer hold.
    fn fill(&self) {
        // Each is a line, and a hundred of them an answer that is read in one go.
        let many = "GET /nope HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
        let last = "GET /nope HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let began = Instant::now();
        let before = self.dropped();
        while self.dropped() == before {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing is ever dropped");
            let answers = self.ask(&format!("{many}{last}"));
            assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 101, "not each was answered");
        }
    }

    fn signal(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }

    fn code(&mut self, within: Duration) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < within, "it goes on after {within:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Muted {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn messages(scenario: &str) -> String {
    let text = format!("[[sim {scenario}]]");
    let body = serde_json::json!({
        "model": "claude-sonnet-4-5", "max_tokens": 64, "stream": true,
        "messages": [{ "role": "user", "content": text }],
    })
    .to_string();
    let length = body.len();
    format!(
        "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// A reader that doesn't read the log holds up nothing but the log. Lines that don't fit are counted, and reported once
/// somebody reads again; SIGTERM drains all the same.
#[test]
fn an_unread_log_stops_nothing() {
    let mut server = Muted::start();
    server.fill();
    for _ in 0..3 {
        let answer = server.ask(&messages(r#"{ "text": "{n}", "count": 20, "gap_ms": 5 }"#));
        assert!(answer.ends_with("data: {\"type\":\"message_stop\"}\n\n\r\n0\r\n\r\n"), "{answer}");
    }
    let dropped = server.dropped();
    assert!(dropped > 0);

    // Somebody reads again: whole lines, and a word about those that are missing.
    let mut line = String::new();
    let told = loop {
        line.clear();
        assert_ne!(server.said.read_line(&mut line).unwrap(), 0, "it ended");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if let Some(count) = line["dropped"].as_u64() {
            break count;
        }
    };
    assert_eq!(told, dropped);

    server.fill();
    let (mut stream, status) = server.open(&messages(r#"{ "text": "{n}", "count": 10, "gap_ms": 200 }"#));
    assert_eq!(status, "HTTP/1.1 200");
    server.signal();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("data: {\"type\":\"message_stop\"}\n\n\r\n0\r\n\r\n"), "{rest}");
    assert_eq!(server.code(Duration::from_secs(15)), Some(0));
}

/// The second signal ends at once, whatever hangs.
#[test]
fn a_second_signal_ends_at_once_while_nobody_reads_the_log() {
    let mut server = Muted::start();
    server.fill();
    let (_stream, status) = server.open(&messages(r#"{ "text": "a", "end": "hang" }"#));
    assert_eq!(status, "HTTP/1.1 200");
    server.signal();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(server.child.try_wait().unwrap(), None, "it didn't wait for the stream");
    server.signal();
    assert_eq!(server.code(Duration::from_secs(4)), Some(1));
}
