//! `KIRO_DEBUG_DUMP_DIR`: what a failed request leaves behind.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use kiro_messages::gateway::{Call, Gateway};
use kiro_messages::proto::eventstream::Decoder;
use serde_json::{Value, json};

use crate::place::{Place, config, simulator, within_10_s};
use crate::redis_server::RedisServer;
use crate::settings::with_stream;
use crate::world::{base, with};

fn dumps(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> =
        entries.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect();
    all.sort();
    all
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_request_is_five_files() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a/b");
    let place = Place::with(&["access-token-1"], &[("KIRO_DEBUG_DUMP_DIR", dir.to_str().unwrap())]).await;
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    // A good request leaves nothing.
    place.ask(base()).await.unwrap();
    // The prompt holds what must not be written down.
    let scenario = json!({ "text": "half an answer", "end": "corrupt_crc" });
    let prompt = format!("my key is sk-ant-api03-secretsecret, my token access-token-1 [[sim {scenario}]]");
    let body = with(json!({ "stream": true, "messages": [{ "role": "user", "content": prompt }] }));
    let call = Call { client_request_id: Some("../../evil".into()), ..Call::default() };
    let mut stream = place.gateway.stream(body.to_string().into(), call).await.unwrap();
    let mut heard = Vec::new();
    while let Some(bytes) = stream.next().await {
        heard.extend_from_slice(&bytes);
    }
    within_10_s("a dump", || dumps(&dir).len() == 1).await;
    let dump = dumps(&dir).remove(0);
    let name = dump.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("20") && name.contains("Z-") && !name.contains("evil"), "{name}");
    assert_eq!(std::fs::metadata(&dump).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(names(&dump), ["frames.bin", "kiro-request.json", "request.json", "stream.sse", "summary.json"]);
    for name in names(&dump) {
        let path = dump.join(&name);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        assert!(!text.contains("access-token-1") && !text.contains("secretsecret"), "{name}: {text}");
    }
    let said = json_of(&dump.join("request.json"));
    let content = said["messages"][0]["content"].as_str().unwrap();
    assert!(content.starts_with("my key is [redacted], my token [redacted] "), "{content}");
    assert!(json_of(&dump.join("kiro-request.json"))["conversationState"].is_object());
    // The frames are what upstream sent: the decoder reads the first and stumbles over the broken one.
    let mut decoder = Decoder::new();
    decoder.push(std::fs::read(dump.join("frames.bin")).unwrap().into());
    let mut good = 0;
    let broken = loop {
        match decoder.next() {
            Ok(Some(_)) => good += 1,
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(good >= 1 && broken, "{good} frames");
    assert_eq!(std::fs::read(dump.join("stream.sse")).unwrap(), heard);
    let summary = json_of(&dump.join("summary.json"));
    assert_eq!((&summary["status"], &summary["code"]), (&json!(500), &json!("KIRO_UPSTREAM")));
    assert_eq!((&summary["account"], &summary["attempts"]), (&json!("00000000"), &json!(1)));
    assert_eq!(summary["failed_attempts"][0]["kind"], "Protocol");
    assert_eq!(summary["left_out"], json!([]));
}

/// Each attempt is listed, the last one's bytes are kept; a refused request has no Kiro request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attempt_is_listed_and_the_last_ones_bytes_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let options = [("KIRO_DEBUG_DUMP_DIR", folder.path().to_str().unwrap())];
    let place = Place::with(&["sim-500.1", "sim-429.2"], &options).await;
    place.ask(base()).await.unwrap_err();
    within_10_s("a dump", || dumps(folder.path()).len() == 1).await;
    let dump = dumps(folder.path()).remove(0);
    assert_eq!(names(&dump), ["kiro-request.json", "request.json", "summary.json"]);
    let summary = json_of(&dump.join("summary.json"));
    let mut kinds: Vec<&str> =
        summary["failed_attempts"].as_array().unwrap().iter().map(|fault| fault["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["RateLimited", "ServerError"], "{summary}");

    place.ask(json!({ "model": "claude-sonnet-4-5" })).await.unwrap_err();
    within_10_s("another dump", || dumps(folder.path()).len() == 2).await;
    let dump = dumps(folder.path()).remove(1);
    assert_eq!(names(&dump), ["request.json", "summary.json"]);
    assert_eq!(json_of(&dump.join("summary.json"))["code"], "KIRO_INVALID_REQUEST");
}

/// A hundred stay; what isn't ours is left alone; a caller that goes away leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_hundred_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let options = [("KIRO_DEBUG_DUMP_DIR", folder.path().to_str().unwrap())];
    let place = Place::new(&options).await;
    let mut left = place
        .gateway
        .stream(with_stream(&json!({ "text": "a", "end": "hang" })).to_string().into(), Call::default())
        .await
        .unwrap();
    assert!(left.next().await.is_some());
    drop(left);
    for n in 0..105 {
        let body = json!({ "model": "claude-sonnet-4-5", "n": n });
        place.ask(body).await.unwrap_err();
        // One at a time: more than a few at once are not written.
        let wanted = (n + 1).min(100) + 1;
        within_10_s("the dump", || names(folder.path()).iter().filter(|name| !name.starts_with('.')).count() == wanted)
            .await;
    }
    let ours = || dumps(folder.path()).into_iter().filter(|path| path.is_dir());
    // It is written before the oldest goes.
    let is_last = |path: PathBuf| json_of(&path.join("request.json"))["n"] == 104;
    within_10_s("the last dump", || ours().count() == 100 && ours().next_back().is_some_and(is_last)).await;
    let all: Vec<PathBuf> = ours().collect();
    assert!(folder.path().join("notes.txt").exists());
    assert!(json_of(&all[0].join("request.json"))["n"].as_u64() >= Some(4), "the oldest went");
}

/// A folder that can't be is a mistake in the configuration, said at the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_folder_is_refused_at_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = file.path().join("x").display().to_string();
    let redis = RedisServer::start();
    let error = Gateway::start(config(&redis, &simulator(), &[("KIRO_DEBUG_DUMP_DIR", &below)])).await.err().unwrap();
    assert!(error.message().starts_with("KIRO_DEBUG_DUMP_DIR: "), "{}", error.message());
}
