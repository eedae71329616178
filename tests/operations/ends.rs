//! How a start is refused, and how a server ends, when what it depends on doesn't answer.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::place::{FAR, Server, account_id, add_account, scene, social};
use crate::redis_server::RedisServer;

/// A full disk under the log takes neither the exit code nor the process's manners.
#[test]
#[cfg(target_os = "linux")]
fn a_mistake_that_can_not_be_written_keeps_its_exit_code() {
    for arguments in [["--host", "nonsense"], ["--store", "nonsense"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        let ended = command.args(arguments).env_clear().stdout(Stdio::null()).stderr(full).status().unwrap();
        assert_eq!(ended.code(), Some(2), "{arguments:?}");
    }
}

/// A start that fails never says that it listens, and serves nobody.
#[test]
fn an_address_for_profiles_that_is_taken_ends_the_start_before_it_listens() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut server = Server::spawn(&["--profile", &address], &[]);
    assert_eq!(server.ended(), 2);
    let lines = server.lines().join("\n");
    assert!(lines.contains("KIRO_PROFILE_ADDR") && !lines.contains("listening"), "{lines}");
}

/// R49: NOPERM ends the start with that word, for the client key too: without it every request would be answered 503.
#[test]
fn a_client_key_that_may_not_be_read_ends_the_start_r49() {
    let redis = RedisServer::start();
    add_account(&mut redis.connection(), "aiclient:", 0, &social("access-1", FAR));
    let mut acl = redis::cmd("ACL");
    let rights = ["SETUSER", "service", "on", ">pw", "~aiclient:[^c]*", "&*", "+@all"];
    acl.arg(&rights).query::<()>(&mut redis.connection()).unwrap();
    let url = redis.url().replace("redis://", "redis://service:pw@");
    let mut server = Server::spawn(&[], &[("REDIS_URL", &url)]);
    assert_eq!(server.ended(), 2);
    let lines = server.lines().join("\n");
    assert!(lines.contains("the client key can't be read: store refused access: NOPERM"), "{lines}");
}

/// A file that hangs when it is read again, on another machine say, keeps nobody from ending the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_config_file_does_not_delay_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kiro.toml");
    std::fs::write(&file, "").unwrap();
    let mut server = Server::start(&["--config", file.to_str().unwrap()], &[]);
    std::fs::remove_file(&file).unwrap();
    // Opening a pipe that nobody writes into waits.
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    server.signal("-HUP");
    assert_eq!(server.ask("", &scene(&json!({ "text": "a" }))).await.status(), 200);
    server.signal("-TERM");
    assert_eq!(server.ended(), 0);
    server.line("stopped", |line| line["message"] == "stopped");
}

/// A start that fails while a token is being renewed loses none: upstream doesn't know the old refresh token any more.
#[test]
fn a_start_that_fails_saves_the_token_that_is_being_renewed() {
    let (redis, folder) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let renewals = TcpListener::bind("127.0.0.1:0").unwrap();
    add_account(&mut redis.connection(), "aiclient:", 1, &social("access-1", "2020-01-01T00:00:00Z"));
    // The certificate is read while the port is opened: a pipe holds the start there.
    let certificate = folder.path().join("cert.pem");
    assert!(Command::new("mkfifo").arg(&certificate).status().unwrap().success());
    let certificate = certificate.to_str().unwrap();
    let mut server = Server::spawn(
        &["--tls-cert", certificate, "--tls-key", certificate],
        &[
            ("REDIS_URL", &redis.url()),
            ("KIRO_UPSTREAM", "kiro"),
            ("KIRO_UPSTREAM_URL", "http://127.0.0.1:9/nobody"),
            ("KIRO_SOCIAL_REFRESH_URL", &format!("http://{}/refreshToken", renewals.local_addr().unwrap())),
        ],
    );
    let (mut renewal, _) = renewals.accept().unwrap();
    std::fs::write(certificate, "nonsense").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let renewed = json!({ "accessToken": "access-2", "refreshToken": "refresh-2", "expiresIn": 3600 }).to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", renewed.len());
    renewal.write_all(format!("{head}{renewed}").as_bytes()).unwrap();
    assert_eq!(server.ended(), 2);
    assert!(server.lines().join("\n").contains("KIRO_TLS_CERT"), "{}", server.lines().join("\n"));
    let key = format!("aiclient:tokens:claude-kiro-oauth:{}", account_id(1));
    let token: String = redis::cmd("GET").arg(key).query(&mut redis.connection()).unwrap();
    assert!(token.contains("refresh-2"), "{token}");
}

/// For want of file descriptors a server can be for a night: that is a line now and then, not twenty a second.
#[test]
fn failed_accepts_do_not_fill_the_log() {
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
