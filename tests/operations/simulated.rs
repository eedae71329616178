//! `KIRO_UPSTREAM=simulator` beside real logins: they stay what they are.

use std::process::Command;

use serde_json::{Value, json};

use crate::place::{Server, add_account, social};
use crate::redis_server::RedisServer;
use crate::world::base;

const PAST: &str = "2020-01-01T00:00:00.000Z";

/// Every file below a folder, with its bytes.
fn files(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), std::fs::read(&path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_real_logins_stays_as_it_is_r110() {
    let folder = tempfile::tempdir().unwrap();
    let pool = folder.path().join("accounts.json");
    let text = json!({ "accounts": { "a1": {} }, "tokens": { "a1": social("old", PAST) } }).to_string();
    std::fs::write(&pool, &text).unwrap();
    let store = format!("file:{}", pool.display());
    let before = files(folder.path());
    {
        let server = Server::start(&[], &[("KIRO_STORE", &store)]);
        for _ in 0..3 {
            // The first answer needs a refresh, the later ones its token.
            assert_eq!(server.ask("", &base()).await.status(), 200, "{}", server.lines().join("\n"));
        }
        server
            .line("only read", |line| line["message"].as_str().unwrap_or_default().contains("the store is only read"));
        let refreshed = |line: &String| line.contains("\"token refreshed\"");
        assert_eq!(server.lines().iter().filter(|line| refreshed(line)).count(), 1);
        // Counters are written within a second.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    for command in [["accounts", "check"].as_slice(), &["accounts", "disable", "a1"], &["accounts", "remove", "a1"]] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        run.args(command).env_clear().env("KIRO_UPSTREAM", "simulator").env("KIRO_STORE", &store);
        let said = String::from_utf8(run.output().unwrap().stderr).unwrap();
        assert!(command[1] == "check" || said.contains("unset KIRO_UPSTREAM"), "{command:?}: {said}");
    }
    assert_eq!(files(folder.path()), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_there_is_not_made_r110() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}", folder.path().join("accounts.json").display());
    let server = Server::start(&[], &[("KIRO_STORE", &store)]);
    assert_eq!(server.ask("", &base()).await.status(), 200);
    drop(server);
    assert_eq!(files(folder.path()), []);
}

/// The store is read as it changes, and what waits in `KIRO_STATE_DIR` for the real store is left there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_read_and_not_written_r110() {
    let redis = RedisServer::start();
    let mut connection = redis.connection();
    add_account(&mut connection, "aiclient:", 0, &social("old", PAST));
    let state = tempfile::tempdir().unwrap();
    let options = [("REDIS_URL", redis.url()), ("KIRO_STATE_DIR", state.path().display().to_string())];
    let options: Vec<(&str, &str)> = options.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut everything = || -> Vec<(String, Value)> {
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        keys.sort();
        let dump = |key: String| {
            let bytes: Vec<u8> = redis::cmd("DUMP").arg(&key).query(&mut connection).unwrap();
            (key, json!(bytes))
        };
        keys.into_iter().map(dump).collect()
    };
    let before = everything();
    let server = Server::start(&[], &options);
    for _ in 0..3 {
        assert_eq!(server.ask("", &base()).await.status(), 200, "{}", server.lines().join("\n"));
    }
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(everything(), before);
    assert_eq!(files(state.path()), []);
}
