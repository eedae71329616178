//! What changes while it runs: the client key, the models file, the log level. A bad file changes nothing and says so.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::place::{FAR, Server, add_account, social};
use crate::redis_server::RedisServer;
use crate::settings::models;
use crate::world::{base, with};

async fn within(seconds: u64, what: &str, server: &Server, key: &str, body: &Value, status: u16) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let reply = server.ask(key, body).await.status().as_u16();
        if reply == status {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {reply} after {seconds} s\n{}", server.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// R57: the key of the store's `config` is read again every 5 s; a broken or empty `config` never opens the door.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_counts_within_5_s_r57() {
    let redis = RedisServer::start();
    let mut connection = redis.connection();
    add_account(&mut connection, "aiclient:", 0, &social("access-1", FAR));
    let mut set = |config: &str| {
        redis::cmd("SET").arg("aiclient:config").arg(config).query::<()>(&mut connection).unwrap();
    };
    set(r#"{"apiKey":"first-key"}"#);
    let server = Server::start(&[], &[("REDIS_URL", &redis.url())]);
    within(10, "the first key", &server, "first-key", &base(), 200).await;
    set(r#"{"apiKey":"second-key"}"#);
    within(10, "the second key", &server, "second-key", &base(), 200).await;
    assert_eq!(server.ask("first-key", &base()).await.status(), 401);
    let (from, _) = server.lines_from(0, "changed", |line| line["message"] == "the client key was changed");
    set("not json");
    tokio::time::sleep(Duration::from_millis(6000)).await;
    assert_eq!(server.ask("", &base()).await.status(), 401);
    assert_eq!(server.ask("second-key", &base()).await.status(), 200);
    let after = server.lines();
    assert!(after[from + 1..].iter().all(|line| !line.contains("client key was changed")), "{}", after.join("\n"));
    assert!(!after.join("\n").contains("second-key"));
}

/// R54, R57: a store that can't be read tells no key: nobody is served until it does, and then only with the key in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_repaired_after_the_start_is_never_open_r57() {
    let folder = tempfile::tempdir().unwrap();
    let pool = folder.path().join("pool.json");
    std::fs::write(&pool, "{\"accounts\":{").unwrap();
    let server = Server::start(&[], &[("KIRO_STORE", &format!("file:{}", pool.display()))]);
    assert_eq!(server.ask("", &base()).await.status(), 503);
    // More than one look at the key.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let good = json!({
        "accounts": { "a1": {} }, "tokens": { "a1": social("access-1", FAR) }, "config": { "apiKey": "the-key" },
    });
    std::fs::write(folder.path().join("next"), good.to_string()).unwrap();
    std::fs::rename(folder.path().join("next"), &pool).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match server.ask("", &base()).await.status().as_u16() {
            401 => break,
            status => assert_eq!(status, 503, "served without its key"),
        }
        assert!(Instant::now() < deadline, "{}", server.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    within(10, "the key", &server, "the-key", &base(), 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_reads_the_models_file_and_the_log_level() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(place("models.json"), models("claude-one")).unwrap();
    std::fs::write(place("kiro.toml"), "log-level = \"info\"\nmax-attempts = 2\n").unwrap();
    let arguments = ["--config", &place("kiro.toml"), "--models-file", &place("models.json")];
    let server = Server::start(&arguments, &[]);
    let named = |name: &str| with(json!({ "model": name }));
    within(10, "the first table", &server, "", &named("claude-one"), 200).await;

    // A file that is no table: the old one stays, and one line says so.
    std::fs::write(place("models.json"), "[{]").unwrap();
    server.line("bad table", |line| line["level"] == "ERROR" && line["message"] == "the model table was not replaced");
    assert_eq!(server.ask("", &named("claude-one")).await.status(), 200);
    std::fs::write(place("models.json"), models("claude-two")).unwrap();
    within(10, "the second table", &server, "", &named("claude-two"), 200).await;
    server.line("new table", |line| line["message"] == "the model table was reloaded");

    // A file that can't be read: nothing changes.
    std::fs::write(place("kiro.toml"), "log-level = \"loud\"\n").unwrap();
    server.signal("-HUP");
    let bad = server.line("bad level", |line| line["message"] == "the configuration was not replaced");
    assert!(bad["error"].as_str().unwrap().contains("\"loud\" is not allowed"), "{bad}");
    assert_eq!(bad["level"], "ERROR");

    std::fs::write(place("kiro.toml"), "log-level = \"debug\"\nmax-attempts = 5\n").unwrap();
    server.signal("-HUP");
    let changed = server.line("changed", |line| line["message"] == "the log level was changed");
    assert_eq!((&changed["from"], &changed["to"]), (&json!("info"), &json!("debug")));
    let waits = server.line("needs a start", |line| line["settings"] == "KIRO_MAX_ATTEMPTS");
    assert_eq!(waits["level"], "WARN");

    std::fs::write(place("kiro.toml"), "log-level = \"error\"\nmax-attempts = 5\n").unwrap();
    let count = server.lines().len();
    server.signal("-HUP");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.ask("", &named("claude-two")).await.status(), 200);
    assert_eq!(server.lines().len(), count, "at `error` a good request is not logged");
}

/// What a reload says: a changed secret waits for a restart like everything else, what was said at the start is what it is
/// compared with, and a broken file's line isn't repeated.
#[test]
fn a_reload_names_settings_that_wait_for_a_restart_and_shows_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kiro.toml").display().to_string();
    let write =
        |key: &str, conns: u32| std::fs::write(&file, format!("api-key = \"{key}\"\nmax-conns = {conns}\n")).unwrap();
    write("sekret-1", 10);
    let server = Server::start(&["--config", &file], &[]);
    let again = |what: &str, is: &dyn Fn(&Value) -> bool| {
        let from = server.lines().len();
        server.signal("-HUP");
        server.lines_from(from, what, is).1
    };
    write("sekret-2", 10);
    again("a new key", &|line| line["settings"] == "KIRO_API_KEY");
    write("sekret-2", 20);
    again("a new key and a limit", &|line| line["settings"] == "KIRO_API_KEY,KIRO_MAX_CONNS");
    again("the same again", &|line| line["settings"] == "KIRO_API_KEY,KIRO_MAX_CONNS");
    write("sekret-1", 10);
    let read = again("as at the start", &|line| line["message"] == "the configuration was read again");
    assert_eq!((&read["level"], &read["log_level"]), (&json!("INFO"), &json!("info")));
    std::fs::write(&file, "api-key = \"sekret-3\n").unwrap();
    let broken = again("a broken file", &|line| line["message"] == "the configuration was not replaced");
    assert!(broken["error"].as_str().unwrap().contains("line 1, column "), "{broken}");
    let lines = server.lines();
    let after = lines.iter().rposition(|line| line.contains("was read again")).unwrap();
    assert!(lines[after..].iter().all(|line| !line.contains("next start")), "{}", lines.join("\n"));
    assert!(!lines.join("\n").contains("sekret"), "{}", lines.join("\n"));
}
