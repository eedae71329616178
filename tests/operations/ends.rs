//! How a start is refused, and how a server ends, when what it depends on doesn't answer.

use std::net::TcpStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For want of file descriptors a server can be for a night: that is a line now and then, not twenty a second.
#[test]
fn connections_that_can_not_be_taken_do_not_fill_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$0\" --port 0", env!("CARGO_BIN_EXE_kiro-server")]);
    command.env_clear().env("KIRO_UPSTREAM", "simulator").stderr(std::fs::File::create(&log).unwrap());
    let _running = Running(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    let line = |what: &str| loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if let Some(line) = text.lines().find(|line| line.contains(what)) {
            break serde_json::from_str::<Value>(line).unwrap();
        }
        assert!(Instant::now() < deadline, "no line `{what}` in {text}");
        std::thread::sleep(Duration::from_millis(10));
    };
    let address = line("\"listening\"")["address"].as_str().unwrap().to_owned();
    let held: Vec<_> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    line("accepting a connection failed");
    std::thread::sleep(Duration::from_secs(1));
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(text.matches("accepting a connection failed").count(), 1, "{text}");
    drop(held);
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
