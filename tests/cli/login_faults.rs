//! `accounts login` when something goes wrong around it: a login that has come is never lost, one that hasn't come leaves
//! nothing, and the command ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use redis::Commands as _;
use serde_json::{Value, json};

use super::{FAR, POOL, Place, RedisServer};

/// A command that runs, and what it says.
struct Running {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
}

impl Place {
    /// A sign-in of a Builder ID. Its answers to polls are `polls`, a second apart.
    fn begins_login(&self, polls: &Value, environment: &[(&str, &str)]) -> Running {
        self.upstream.control().script(json!({ "device": polls })).unwrap();
        self.begins("builder-id", &self.upstream.url(), environment)
    }

    fn begins_at(&self, url: &str, environment: &[(&str, &str)]) -> Running {
        self.begins("builder-id", url, environment)
    }

    fn begins(&self, method: &str, url: &str, environment: &[(&str, &str)]) -> Running {
        let more = environment.iter().find(|(name, _)| *name == "ARGUMENTS").map_or("", |(_, more)| *more);
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
            .args(["accounts", "login", method, "--no-check"])
            .args(more.split_whitespace())
            .env_clear()
            .env("HOME", self.folder.path().join("home"))
            .env(self.store.0, &self.store.1)
            .env("KIRO_IDC_REFRESH_URL", format!("{url}/token"))
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::create_dir_all(self.folder.path().join("home")).unwrap();
        let out = child.stdout.take().map(BufReader::new);
        Running { child, out }
    }

    fn is_empty(&self) -> bool {
        self.run(&["accounts", "list", "--json"]).with_code(0).json()["accounts"].as_array().unwrap().is_empty()
    }
}

impl Running {
    /// The code is shown: from now on the person is waited for.
    fn shows_its_code(mut self) -> Self {
        let mut said = String::new();
        while !said.contains("  Code   ") {
            assert!(self.out.as_mut().unwrap().read_line(&mut said).unwrap() > 0, "{said}");
        }
        self
    }

    /// Nobody reads what it says.
    fn unread(mut self) -> Self {
        self.out = None;
        self
    }

    fn signal(self, signal: &str) -> Self {
        let done = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
        self
    }

    /// Exit code and what it said, within the time.
    #[track_caller]
    fn ends(mut self, within: Duration) -> (Option<i32>, String) {
        let end = Instant::now() + within;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "it hangs");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        if let Some(mut out) = self.out.take() {
            out.read_to_string(&mut said).unwrap();
        }
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

const SOON: Duration = Duration::from_secs(30);

/// A sign-in host of AWS whose every token takes its time, or is another one.
fn host(token: Value, after: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let token = token.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if reader.read_line(&mut head).unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = if head.contains("/client/register") {
                    json!({ "clientId": "c", "clientSecret": "s" })
                } else if head.contains("/device_authorization") {
                    let uri = "https://view.awsapps.com/start";
                    json!({ "deviceCode": "d", "userCode": "ABCD", "verificationUri": uri, "interval": 1 })
                } else {
                    std::thread::sleep(after);
                    token
                };
                let answer = answer.to_string();
                let length = answer.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}");
                // The other side may have gone.
                stream.write_all(answer.as_bytes()).unwrap_or_default();
            });
        }
    });
    url
}

#[test]
fn a_login_that_the_store_does_not_take_is_left_in_a_private_file_r89() {
    let place = Place::with_file();
    let folder = place.folder.path().join("pool");
    std::fs::create_dir(&folder).unwrap();
    let store = format!("file:{}", folder.join("pool.json").display());
    let login = place.begins_login(&json!(["pending", "ok"]), &[("KIRO_STORE", &store)]).shows_its_code();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the folder's place").unwrap();
    let (code, said) = login.ends(SOON);
    assert_eq!(code, Some(1), "{said}");
    assert!(!said.contains("sim-acct") && !said.contains("sim-client"), "{said}");
    let path = said.split("--from ").nth(1).and_then(|rest| rest.split('`').next()).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // The error says how to save the login.
    let saved = place.run(&["accounts", "add", "--from", path, "--offline"]).with_code(0);
    assert!(saved.out.contains("added account"), "{}", saved.out);
    let pool = std::fs::read_to_string(place.folder.path().join("pool.json")).unwrap();
    for member in [
        "sim-acct-builder.login1",
        "\"clientId\":\"sim-client\"",
        "\"idcRegion\":\"us-east-1\"",
        "registrationExpiresAt",
    ] {
        assert!(pool.contains(member), "{member}: {pool}");
    }
}

#[test]
fn a_redis_that_goes_away_and_comes_back_takes_the_login_r89() {
    let mut server = RedisServer::start();
    let place = Place::with_redis(&server);
    let login = place.begins_login(&json!(["pending", "pending", "ok"]), &[]).shows_its_code();
    server.kill();
    std::thread::sleep(Duration::from_secs(5));
    server.restart();
    let (code, said) = login.ends(SOON);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(server.connection().hlen::<_, usize>(POOL).unwrap(), 1);
}

#[test]
fn a_redis_that_comes_back_takes_a_login_in_anothers_place_r87_r89() {
    let mut server = RedisServer::start();
    let place = Place::with_redis(&server);
    let id = place.add(&place.social("old.json", "sim-acct-social", "r", FAR));
    place.upstream.control().script(json!({ "device": ["pending", "ok"] })).unwrap();
    let login = place.begins("builder-id", &place.upstream.url(), &[("ARGUMENTS", &format!("--replace {id}"))]);
    let login = login.shows_its_code();
    server.shutdown_save();
    std::thread::sleep(Duration::from_secs(4));
    server.restart();
    let (code, said) = login.ends(SOON);
    assert_eq!(code, Some(0), "{said}");
    let kept: String = server.connection().get(format!("aiclient:tokens:claude-kiro-oauth:{id}")).unwrap();
    assert!(kept.contains("sim-acct-builder.login1"), "{kept}");
}

#[test]
fn a_store_that_takes_no_writes_is_known_before_anybody_signs_in_r89() {
    let server = RedisServer::start_with(&["--min-replicas-to-write", "1"]);
    let place = Place::with_redis(&server);
    let (code, said) = place.begins_login(&json!(["ok"]), &[]).ends(SOON);
    assert_eq!(code, Some(1));
    assert!(said.contains("store") && !said.contains("Code"), "{said}");
    // A program reads its one line.
    let said = place.run(&["accounts", "login", "builder-id", "--json"]).with_code(1).json();
    assert_eq!((&said["event"], &said["error"]), (&json!("failed"), &json!("store")));
    let calls = place.upstream.control().stats_with_bodies();
    assert!(calls["last"].as_array().unwrap().is_empty(), "{calls}");
}

#[test]
fn a_newcomer_without_redis_is_told_what_to_name_r56() {
    let mut place = Place::with_file();
    // Another setting in the place of the store's.
    place.store = ("KIRO_REDIS_POOL_SIZE", "1".to_owned());
    if TcpListener::bind("127.0.0.1:6379").is_err() {
        return; // Somebody's Redis is there.
    }
    let said = place.run(&["accounts", "login", "builder-id"]).with_code(1);
    assert!(said.err.contains("--store file:") && said.err.contains("REDIS_URL"), "{}", said.err);
}

#[test]
fn a_code_that_nobody_can_see_is_not_waited_for_k95() {
    let place = Place::with_file();
    for method in ["builder-id", "external"] {
        place.upstream.control().script(json!({ "device": vec!["pending"; 50] })).unwrap();
        let login = place.begins(method, &place.upstream.url(), &[]).unread();
        let (code, said) = login.ends(Duration::from_secs(10));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("standard output"), "{said}");
    }
    assert!(place.is_empty());
}

#[cfg(unix)]
#[test]
fn what_is_pasted_is_read_up_to_a_bound_k97() {
    let place = Place::with_file();
    let store = format!("file:{}", place.folder.path().join("pool.json").display());
    for (file, words) in [("/dev/zero", "isn't the address"), ("/dev/null", "no address was pasted")] {
        let login = Command::new("sh")
            .args(["-c", "ulimit -v 2000000; exec \"$@\" < $FILE", "sh", env!("CARGO_BIN_EXE_kiro-server")])
            .args(["accounts", "login", "external", "--paste"])
            .env_clear()
            .envs([("FILE", file), ("KIRO_STORE", &store), ("HOME", "/nonexistent"), ("PATH", "/usr/bin:/bin")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (code, said) = Running { child: login, out: None }.ends(SOON);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn whatever_ends_the_command_keeps_nothing_before_the_login_has_come_p68() {
    let place = Place::with_file();
    for signal in ["-INT", "-TERM", "-HUP"] {
        let login = place.begins_login(&json!(vec!["pending"; 50]), &[]).shows_its_code().signal(signal);
        assert_eq!(login.ends(Duration::from_secs(5)).0, Some(130), "{signal}");
    }
    assert!(place.is_empty());
}

#[cfg(unix)]
#[test]
fn whatever_ends_the_command_takes_no_login_that_has_come_r89() {
    let mut server = RedisServer::start();
    let place = Place::with_redis(&server);
    let login = place.begins_login(&json!(["pending", "ok"]), &[]).shows_its_code();
    server.kill();
    while place.polls() < 2 {
        std::thread::sleep(Duration::from_millis(20));
    }
    // It has come, and waits for the store.
    std::thread::sleep(Duration::from_millis(500));
    let login = login.signal("-INT").signal("-TERM").signal("-HUP");
    std::thread::sleep(Duration::from_secs(1));
    server.restart();
    let (code, said) = login.unread().ends(SOON);
    assert!(code.is_some(), "{said}");
    assert_eq!(server.connection().hlen::<_, usize>(POOL).unwrap(), 1);
}

#[test]
fn a_login_that_comes_with_the_last_poll_counts_k95() {
    let place = Place::with_file();
    let token = json!({ "accessToken": "at", "refreshToken": "r".repeat(120) });
    let url = host(token, Duration::from_secs(3));
    let environment = [("KIRO_IDC_REFRESH_URL", format!("{url}/token"))];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    place.run_with(&["accounts", "login", "builder-id", "--no-check", "--timeout", "2s"], &environment).with_code(0);
    assert_eq!(place.accounts().len(), 1);
}

#[test]
fn what_can_be_no_token_is_not_kept_k95() {
    let place = Place::with_file();
    let url = host(json!({ "accessToken": "a\u{1b}[31m\n", "refreshToken": "r" }), Duration::ZERO);
    let (code, said) = place.begins_at(&url, &[]).ends(SOON);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("answered without a token") && !said.contains('\u{1b}'), "{said}");
    assert!(place.is_empty());
}

impl Place {
    fn polls(&self) -> usize {
        let stats = self.upstream.control().stats_with_bodies();
        stats["last"].as_array().unwrap().iter().filter(|call| call["target"] == "/token").count()
    }
}
