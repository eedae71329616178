//! The embedded file store: cases of the store by number, R63–R68.
#![cfg(feature = "gateway")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kiro_messages::policy::outcome::Outcome;
use kiro_messages::proto::record::{self, Account, Entry, Fingerprint, Method, Note, Token};
use kiro_messages::secret::Secret;
use kiro_messages::store::{
    Added, Cas, NewAccount, Saved, Status, Store, StoreConfig, StoreErrorKind, TokenKey, UnsavedToken, Writer, import,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

#[path = "support/modes.rs"]
mod modes;
#[path = "support/records.rs"]
mod records;

use modes::{assert_mode, set_mode};
use records::*;

fn nameless(id: &str, token: &str) -> NewAccount {
    NewAccount { custom_name: None, ..new_account(id, token) }
}

/// A folder with a file in it.
fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    write(&path, text);
    (folder, path)
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    set_mode(path, 0o600);
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

async fn open(path: &Path) -> Store {
    Store::connect(&StoreConfig::File(path.to_owned())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_patched_inside_the_file_case_01_case_02_case_03_case_04_case_05_r19() {
    for (case, before, count, after) in PATCHED {
        let around = |record: &str| {
            format!(
                "{{\n \"mine\": [1],\n \"accounts\": {{ \"a0\": {{ }},\n  \"a1\": {record} }},\n \"tokens\":{{}}\n}}\n"
            )
        };
        let (_folder, path) = file("pool.json", &around(before));
        let store = open(&path).await;
        record(&store, std::iter::repeat_n(success(), count)).await;
        assert_eq!(read(&path), around(after), "case {case}");
        assert_mode(&path, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_records_stay_untouched_case_07() {
    let text = r#"{"accounts":{"b1":[],"b2":null,"b3":"x","good":{}},"tokens":{"good":{"accessToken":"a"}}}"#;
    let (_folder, path) = file("pool.json", text);
    let store = open(&path).await;
    let all = store.load().await.unwrap();
    let usable: Vec<_> = all.iter().filter(|raw| Account::parse(&raw.account, &raw.id).is_ok()).collect();
    assert_eq!((all.len(), usable.len(), usable[0].id.as_str()), (4, 1, "good"));
    assert_eq!(usable[0].token.as_ref().unwrap().0, TokenKey::of("good"));
    for id in ["b1", "b2", "b3", "good", "gone"] {
        record_of(id, &store, [success()]).await;
    }
    assert_eq!(
        read(&path),
        text.replace(r#""good":{},"#, "").replace(r#""good":{}}"#, &format!("\"good\":{{\"usageCount\":1,{USED}}}}}"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_and_a_quota_are_written_case_13_case_15() {
    let (_folder, path) = file(
        "pool.json",
        r#"{"accounts":{"a1":{"isHealthy":false,"errorCount":3,"lastErrorTime":"2026-11-23T09:00:00Z"}}}"#,
    );
    let store = open(&path).await;
    record(&store, [success()]).await;
    assert_eq!(
        read(&path),
        format!(
            r#"{{"accounts":{{"a1":{{"isHealthy":true,"errorCount":0,"lastErrorTime":null,"usageCount":1,{USED}}}}}}}"#
        )
    );
    let until = "2026-12-01T00:00:00Z".parse().unwrap();
    record(&store, [Outcome::marked(t0(), t0(), Note::Quota { until, cause: "MONTHLY_REQUEST_COUNT".into() })]).await;
    assert!(read(&path).contains(r#""isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z""#));
}

fn pool(token: &str) -> String {
    format!(r#"{{"accounts":{{"a1":{{}}}},"tokens":{{"a1":{token}}}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_compared_and_set_case_22_case_26_case_27_case_28() {
    let (_folder, path) = file("pool.json", &pool(TOKEN));
    let store = open(&path).await;
    let key = TokenKey::of("a1");
    let base = store.read_token(&key, t0()).await.unwrap().unwrap();
    assert!(matches!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Written(_)));
    let expected =
        TOKEN.replace("old", "new").replace("refresh-1", "refresh-2").replace("1767225600000", "1795431600000");
    assert_eq!(read(&path), pool(&expected), "case 22");

    write(&path, &pool(&TOKEN.replace("us-east-1", "eu-west-1")));
    let Saved::Written(saved) = store.save_token(&refreshed(&key, &base)).await.unwrap() else { panic!("case 26") };
    assert_eq!(Token::parse(&saved).unwrap().region(), "eu-west-1");

    let theirs = pool(&TOKEN.replace("refresh-1", "refresh-9"));
    write(&path, &theirs);
    assert!(matches!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Rotated(_)));
    assert_eq!(read(&path), theirs, "case 27");

    write(&path, r#"{"accounts":{},"tokens":{}}"#);
    assert_eq!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Absent);
    record(&store, [Outcome::refreshed(t0())]).await;
    assert_eq!(read(&path), r#"{"accounts":{},"tokens":{}}"#, "case 28");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_account_keeps_its_token_case_33() {
    let text = r#"{"accounts":{"new-id":{"KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:old-id"}},"tokens":{"old-id":{"accessToken":"a"}}}"#;
    let (_folder, path) = file("pool.json", text);
    let store = open(&path).await;
    assert_eq!(store.load().await.unwrap()[0].token.as_ref().unwrap().0, TokenKey::of("old-id"));
    assert!(store.remove_account("new-id").await.unwrap());
    assert_eq!(read(&path), r#"{"accounts":{},"tokens":{}}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_key_in_the_file_case_41() {
    let (_folder, path) = file("pool.json", r#"{"config":{"REQUIRED_API_KEY":"k1","apiKey":"k2"}}"#);
    let store = open(&path).await;
    assert_eq!(store.client_key().await.unwrap(), Some(Secret::new("k1")));
    write(&path, r#"{"config":{"apiKey":"k2-longer"}}"#);
    assert_eq!(store.client_key().await.unwrap(), Some(Secret::new("k2-longer")));
    write(&path, "{}");
    assert_eq!(store.client_key().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_an_empty_pool_and_add_creates_it_r63() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep").join("pool.json");
    let store = open(&path).await;
    assert_eq!(store.status(), Status::Connected);
    assert_eq!(store.load().await.unwrap(), []);
    assert_eq!(
        store.compare_and_set_account("a1", b"{}", b"{ }").await.unwrap_err().kind(),
        StoreErrorKind::Away,
        "no folder"
    );
    assert_eq!(store.add_account(&nameless("a1", r#"{"refreshToken":"r"}"#)).await.unwrap(), Added::New);
    assert_eq!(
        read(&path),
        r#"{"accounts":{"a1":{"uuid":"a1","KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:a1","checkModel":"kiro","isHealthy":true,"usageCount":0,"errorCount":0,"addedAt":"2026-11-23T10:00:00.000Z"}},"tokens":{"a1":{"refreshToken":"r"}}}"#
    );
    assert_mode(&path, 0o600);
    assert_eq!(store.status(), Status::Connected);
    let again = store.add_account(&nameless("a2", r#"{"refreshToken":"r"}"#)).await.unwrap();
    assert_eq!(again, Added::Duplicate { id: "a1".into() });
    assert!(store.patch_account("a1", &[Entry::IsDisabled(true)]).await.unwrap());
    assert!(Account::parse(&store.load().await.unwrap()[0].account, "a1").unwrap().standing.disabled);
    assert!(store.remove_account("a1").await.unwrap());
    assert!(!store.remove_account("a1").await.unwrap());
    assert_eq!(read(&path), r#"{"accounts":{},"tokens":{}}"#);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_symbolic_link_is_followed_and_stays_r64() {
    let (folder, path) = file("pool.json", &pool("{}"));
    set_mode(&path, 0o644);
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    std::os::unix::fs::symlink("pool.json", &first).unwrap();
    std::os::unix::fs::symlink(&first, &second).unwrap();
    let store = open(&second).await;
    record(&store, [success()]).await;
    assert!(second.is_symlink() && first.is_symlink() && !path.is_symlink());
    assert!(read(&path).contains("usageCount"));
    assert_mode(&path, 0o600);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with("tmp")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn left_over_temporary_files_are_removed_after_an_hour_r64() {
    let (folder, path) = file("pool.json", "{}");
    let old = folder.path().join(".pool.json.0000000000000001.kiro-tmp");
    let young = folder.path().join(".pool.json.0000000000000002.kiro-tmp");
    let other = folder.path().join(".other.json.0000000000000001.kiro-tmp");
    for name in [&old, &young, &other] {
        write(name, "x");
    }
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3700);
    for name in [&old, &other] {
        std::fs::File::options().write(true).open(name).unwrap().set_modified(long_ago).unwrap();
    }
    let _store = open(&path).await;
    assert_eq!((old.exists(), young.exists(), other.exists()), (false, true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_from_outside_are_seen_and_kept_r65() {
    let (_folder, path) = file("pool.json", r#"{"accounts":{"a1":{}}}"#);
    let (server, line) = (open(&path).await, open(&path).await);
    let writer = Writer::spawn(server.clone(), clock());
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    assert_eq!(line.add_account(&nameless("a2", r#"{"refreshToken":"r"}"#)).await.unwrap(), Added::New);
    assert!(line.patch_account("a1", &[Entry::IsDisabled(true)]).await.unwrap());
    // The writer's guess of the record is stale now.
    writer.record("a1", &success());
    writer.record("a2", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    let all = server.load().await.unwrap();
    let read: Vec<_> = all.iter().map(|raw| Account::parse(&raw.account, &raw.id).unwrap()).collect();
    assert_eq!((read[0].usage_count, read[0].standing.disabled, read[1].usage_count), (2, true, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_named_by_its_mistake_and_never_overwritten_r65() {
    let (_folder, path) = file("pool.json", &pool(TOKEN));
    let store = open(&path).await;
    assert_eq!(store.load().await.unwrap().len(), 1);
    let broken = "{\n \"accounts\": {\"a1\": {\"accessToken\": \"hush\"}\n";
    write(&path, broken);
    let error = store.load().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Broken);
    assert!(error.to_string().ends_with("pool.json not JSON at line 3, column 1"), "{error}");
    assert!(!format!("{error:?}").contains("hush"));
    assert!(!store.status().is_connected());
    let writer = Writer::spawn(store.clone(), clock());
    writer.record("a1", &success());
    assert!(!writer.flush(Duration::from_millis(300)).await.is_empty());
    assert_eq!(
        store.compare_and_set_token(&TokenKey::of("a1"), TOKEN.as_bytes(), b"{}").await.unwrap_err().kind(),
        StoreErrorKind::Broken
    );
    assert_eq!(store.add_account(&nameless("a2", "{}")).await.unwrap_err().kind(), StoreErrorKind::Broken);
    assert_eq!(read(&path), broken);
    write(&path, &pool(TOKEN));
    wait_for(&store, Status::is_connected, Duration::from_secs(2)).await;
    assert!(writer.flush(Duration::from_secs(2)).await.is_empty());
    assert!(read(&path).contains("usageCount"));
}

/// Opening a pipe waits for a writer, and a device never ends: neither may hold up the start.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_or_device_is_an_outage_until_it_is_a_file_r54_r65() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pool.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [&*pipe, Path::new("/dev/zero")] {
        let store = tokio::time::timeout(Duration::from_secs(5), open(path)).await.expect("nothing is waited for");
        assert!(
            matches!(store.status(), Status::Connecting(Some(error)) if error.to_string().ends_with(": is not a file"))
        );
    }
    let store = open(&pipe).await;
    std::fs::remove_file(&pipe).unwrap();
    write(&pipe, &pool(TOKEN));
    wait_for(&store, |status| *status == Status::Connected, Duration::from_secs(3)).await;
    assert_eq!(store.load().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_the_files_place_ends_the_start_r54_r63() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    for config in [StoreConfig::File(path.clone()), StoreConfig::Aiclient(path)] {
        let error = Store::connect(&config).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config);
        assert!(error.to_string().contains(" is a folder: name a file in KIRO_STORE"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_refresh_lock_is_one_per_account_and_frees_itself_r65() {
    let (_folder, path) = file("pool.json", "{}");
    let (ours, theirs) = (open(&path).await, open(&path).await);
    let key = TokenKey::of("a1");
    let lock = ours.lock(&key, t0()).await.unwrap().unwrap();
    assert!(theirs.lock(&key, t0()).await.unwrap().is_none());
    assert!(ours.lock(&key, t0()).await.unwrap().is_none());
    assert!(theirs.lock(&TokenKey::of("a2"), t0()).await.unwrap().is_some());
    // Writes don't wait for a refresh.
    assert_eq!(theirs.add_account(&nameless("a1", r#"{"refreshToken":"r"}"#)).await.unwrap(), Added::New);
    ours.unlock(lock).await.unwrap();
    let lock = theirs.lock(&key, t0()).await.unwrap().unwrap();
    drop(lock);
    assert!(ours.lock(&key, t0()).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_is_an_outage_r66() {
    let (folder, path) = file("pool.json", &pool(TOKEN));
    let store = open(&path).await;
    let writer = Writer::spawn(store.clone(), clock());
    // The test may run as root, which no permission stops; a folder in the lock's place does.
    let obstacle = folder.path().join("pool.json.lock");
    std::fs::create_dir(&obstacle).unwrap();
    let key = TokenKey::of("a1");
    let unsaved = refreshed(&key, TOKEN.as_bytes());
    let error = store.save_token(&unsaved).await.unwrap_err();
    assert!(error.is_away() && !error.is_perhaps_done(), "{error}");
    writer.keep_token("a1", unsaved);
    writer.record("a1", &success());
    assert!(matches!(store.status(), Status::Away(_)));
    assert_eq!(store.load().await.unwrap().len(), 1, "reads go on");
    assert!(matches!(store.status(), Status::Away(_)), "and don't make it whole");
    let left = writer.flush(Duration::from_millis(300)).await;
    assert_eq!((left.accounts.len(), left.tokens.len()), (1, 1));
    std::fs::remove_dir(&obstacle).unwrap();
    wait_for(&store, |status| *status == Status::Connected, Duration::from_secs(3)).await;
    assert!(writer.flush(Duration::from_secs(3)).await.is_empty());
    assert!(read(&path).contains("refresh-2") && read(&path).contains("usageCount"));
}

/// A process that was stopped in the middle of a write sits on the lock: what waits to be written must not take the
/// threads that reads need, and all others in the process, down to looking up a host's name.
#[test]
fn writes_that_wait_for_the_lock_do_not_delay_reads_r66() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(4).build().unwrap();
    let (folder, path) = file("pool.json", &pool(TOKEN));
    let lock = std::fs::File::create(folder.path().join("pool.json.lock")).unwrap();
    lock.lock().unwrap();
    runtime.block_on(async {
        let store = open(&path).await;
        let saves: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.save_token(&refreshed(&TokenKey::of("a1"), TOKEN.as_bytes())).await })
            })
            .collect();
        sleep(Duration::from_millis(100)).await;
        let read = tokio::time::timeout(Duration::from_secs(3), store.load()).await;
        assert_eq!(read.expect("a read doesn't wait for writes").unwrap().len(), 1);
        drop(lock);
        for save in saves {
            assert!(matches!(save.await.unwrap().unwrap(), Saved::Written(_)));
        }
    });
}

/// Whoever closed a gateway may remove its folder.
#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_caller_are_waited_for_at_the_end_r63() {
    let (folder, path) = file("pool.json", &pool(TOKEN));
    let lock = std::fs::File::create(folder.path().join("pool.json.lock")).unwrap();
    lock.lock().unwrap();
    let store = open(&path).await;
    let token = refreshed(&TokenKey::of("a1"), TOKEN.as_bytes());
    assert!(
        tokio::time::timeout(Duration::from_millis(50), store.save_token(&token)).await.is_err(),
        "the lock is held"
    );
    let mut idle = std::pin::pin!(store.idle());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut idle).await.is_err(), "it isn't written yet");
    drop(lock);
    idle.await;
    assert!(read(&path).contains("\"new\""), "{}", read(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_are_written_at_once_and_counters_with_others_r66() {
    let (_folder, path) = file("pool.json", r#"{"accounts":{"a1":{},"a2":{}}}"#);
    let store = open(&path).await;
    let writer = Writer::spawn(store, clock());
    let started = Instant::now();
    writer.record("a1", &success());
    let until = time("10:01:00");
    writer.record("a2", &Outcome::marked(t0(), t0(), Note::CoolDown { until, cause: "429".into() }));
    while writer.pending().accounts.contains(&"a2".to_owned()) {
        assert!(started.elapsed() < Duration::from_secs(1));
        sleep(Duration::from_millis(2)).await;
    }
    while !writer.pending().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(10)).await;
    }
}

const CASE_45_FILE: &str = "KIRO_TEST_CASE_45_FILE";
const CASE_45_NUMBER: &str = "KIRO_TEST_CASE_45_NUMBER";
const PROCESSES: usize = 4;
const WRITERS: usize = 50;

/// 50 writers, each the only one to refresh its account; says what it saved, until somebody kills it.
#[test]
#[ignore = "a process of case_45"]
fn a_process_case_45() {
    let Ok(path) = std::env::var(CASE_45_FILE) else { return };
    let number = std::env::var(CASE_45_NUMBER).unwrap();
    let path = PathBuf::from(path);
    let said =
        std::fs::File::options().append(true).create(true).open(path.with_extension(format!("said-{number}"))).unwrap();
    let said = Arc::new(std::sync::Mutex::new(said));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(&path).await;
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let (store, said) = (store.clone(), Arc::clone(&said));
            let key = TokenKey::of(&format!("a{number}-{writer}"));
            tasks.push(tokio::spawn(async move {
                loop {
                    let base = store.read_token(&key, t0()).await.unwrap().unwrap();
                    let used = Token::parse(&base).unwrap().refresh_token.unwrap();
                    let next = used.expose().parse::<u64>().unwrap() + 1;
                    let entries = vec![Entry::RefreshToken(Secret::new(next.to_string()))];
                    let unsaved =
                        UnsavedToken { key: key.clone(), base, replaces: vec![Fingerprint::of(&used)], entries };
                    if let Ok(saved) = store.save_token(&unsaved).await {
                        assert!(matches!(saved, Saved::Written(_)), "{saved:?}");
                        // One write: a kill cuts no line that the next process would continue.
                        let line = format!("{} {next}\n", key.id());
                        said.lock().unwrap().write_all(line.as_bytes()).unwrap();
                    }
                }
            }));
        }
        // They end only when one of them fails or somebody kills the process.
        let (failed, ..) = futures_util::future::select_all(tasks).await;
        failed.unwrap();
    });
}

/// The last number that each writer said it saved.
fn said(folder: &Path) -> HashMap<String, u64> {
    let mut said: HashMap<String, u64> = HashMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        if entry.extension().is_some_and(|extension| extension.to_string_lossy().starts_with("said-")) {
            let text = read(&entry);
            // A line cut by a kill says nothing.
            for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
                let Some((id, number)) = line.split_once(' ') else { continue };
                let number: u64 = number.parse().unwrap();
                let last = said.entry(id.to_owned()).or_default();
                *last = number.max(*last);
            }
        }
    }
    said
}

#[test]
fn writers_that_die_lose_nothing_case_45() {
    let accounts: Vec<String> =
        (0..PROCESSES).flat_map(|process| (0..WRITERS).map(move |writer| format!("a{process}-{writer}"))).collect();
    let tokens: Vec<String> =
        accounts.iter().map(|id| format!("\"{id}\":{{\"refreshToken\":\"0\",\"n\":[]}}")).collect();
    let records: Vec<String> = accounts.iter().map(|id| format!("\"{id}\":{{}}")).collect();
    let text = format!("{{\"accounts\":{{{}}},\n\"tokens\":{{{}}}}}\n", records.join(","), tokens.join(","));
    let (folder, path) = file("pool.json", &text);

    let done = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let reader = std::thread::spawn({
        let (path, done, reads) = (path.clone(), Arc::clone(&done), Arc::clone(&reads));
        move || {
            while !done.load(Ordering::SeqCst) {
                let text = std::fs::read(&path).unwrap();
                let value: serde_json::Value = serde_json::from_slice(&text).expect("valid JSON at every moment");
                assert_eq!(value["tokens"].as_object().unwrap().len(), PROCESSES * WRITERS);
                assert_mode(&path, 0o600);
                reads.fetch_add(1, Ordering::SeqCst);
            }
        }
    });

    let exe = std::env::current_exe().unwrap();
    let start = |number: usize| -> Child {
        Command::new(&exe)
            .args(["--exact", "a_process_case_45", "--ignored", "--quiet"])
            .env(CASE_45_FILE, &path)
            .env(CASE_45_NUMBER, number.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut children: Vec<Child> = (0..PROCESSES).map(start).collect();
    let mut random = fastrand::Rng::with_seed(45);
    let mut kills = 0;
    let started = std::time::Instant::now();
    // On a disk with slow fsync it takes longer to save so many.
    let enough = || said(folder.path()).values().sum::<u64>() > 100;
    while started.elapsed() < Duration::from_secs(5) || !enough() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(random.u64(100..400)));
        let number = random.usize(0..PROCESSES);
        assert!(children[number].try_wait().unwrap().is_none(), "a process ended by itself");
        children[number].kill().unwrap();
        children[number].wait().unwrap();
        kills += 1;
        children[number] = start(number);
    }
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    done.store(true, Ordering::SeqCst);
    reader.join().unwrap();

    let said = said(folder.path());
    let saved: serde_json::Value = serde_json::from_str(&read(&path)).unwrap();
    for id in &accounts {
        let found: u64 = saved["tokens"][id]["refreshToken"].as_str().unwrap().parse().unwrap();
        let said = said.get(id).copied().unwrap_or(0);
        assert!(found >= said, "{id} holds {found} although {said} was saved");
    }
    let total: u64 = said.values().sum();
    println!("case 45: {total} tokens saved, {kills} kills, {} reads", reads.load(Ordering::SeqCst));
    assert!(total > 100 && kills > 10 && reads.load(Ordering::SeqCst) > 100, "{total} {kills}");
}

const IDE_FILE: &str = r#"{
  "accessToken": "old",
  "refreshToken": "refresh-1",
  "expiresAt": "2026-11-23T10:00:00.000Z",
  "clientIdHash": "0a1b",
  "authMethod": "IdC",
  "provider": "Enterprise",
  "region": "eu-west-1",
  "other": []
}"#;
const SIBLING: &str = r#"{"clientId":"c","clientSecret":"s","expiresAt":"2027-01-01T00:00:00Z"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_ide_file_is_refreshed_in_place_case_46() {
    let (folder, path) = file("kiro-auth-token.json", IDE_FILE);
    let sibling = folder.path().join("0a1b.json");
    write(&sibling, SIBLING);
    let store = open(&path).await;
    let all = store.load().await.unwrap();
    assert_eq!((all.len(), all[0].id.len()), (1, 36));
    assert_eq!(all[0].id, record::id_of_path(path.to_str().unwrap()));
    let (key, listed) = all[0].token.clone().unwrap();
    let base = store.read_token(&key, t0()).await.unwrap().unwrap();
    assert_eq!(base, listed);
    let token = Token::parse(&base).unwrap();
    assert_eq!((token.method(), token.region(), token.idc_region()), (Method::Idc, "us-east-1", "eu-west-1"));
    assert_eq!((token.client_id, token.client_secret), (Some(Secret::new("c")), Some(Secret::new("s"))));

    let Saved::Written(saved) = store.save_token(&refreshed(&key, &base)).await.unwrap() else { panic!("not written") };
    let expected = IDE_FILE.replace("\"old\"", "\"new\"").replace("refresh-1", "refresh-2").replace("T10:", "T11:");
    assert_eq!(read(&path), expected);
    assert_eq!(read(&sibling), SIBLING);
    assert_mode(&path, 0o600);
    assert_eq!(store.read_token(&key, t0()).await.unwrap().unwrap(), saved);

    // Somebody logged in anew in the IDE: the record shows it, and a refresh of the old token doesn't undo it.
    write(&path, &IDE_FILE.replace("refresh-1", "refresh-9"));
    assert!(matches!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Rotated(_)));
    assert!(read(&path).contains("refresh-9"));

    // Counters and marks of such an account live in memory.
    let before = read(&path);
    record_of(&all[0].id, &store, [success(), success()]).await;
    assert_eq!(read(&path), before);
    assert_eq!(Account::parse(&store.load().await.unwrap()[0].account, "x").unwrap().usage_count, 2);
    assert_eq!(store.compare_and_set_account("other", b"{}", b"{ }").await.unwrap(), Cas::Absent);
    assert_eq!(store.add_account(&nameless("a2", "{}")).await.unwrap_err().kind(), StoreErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_is_refused_missing_or_over_is_named_case_46() {
    let (folder, path) = file("kiro-auth-token.json", &IDE_FILE.replace("0a1b", "../x"));
    write(&folder.path().join("x.json"), SIBLING);
    let store = open(&path).await;
    let all = store.load().await.unwrap();
    let (key, listed) = all[0].token.clone().unwrap();
    assert_eq!(Token::parse(&listed).unwrap().client_id, None, "the access token serves on");
    let error = store.read_token(&key, t0()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Registration);
    assert!(error.to_string().contains("clientIdHash is refused"), "{error}");

    write(&path, IDE_FILE);
    let error = store.read_token(&key, t0()).await.unwrap_err();
    assert!(error.to_string().ends_with("0a1b.json is missing; log in again in Kiro"), "{error}");
    let sibling = folder.path().join("0a1b.json");
    write(&sibling, &SIBLING.replace("2027-01-01", "2026-11-01"));
    let error = store.read_token(&key, t0()).await.unwrap_err();
    assert!(error.to_string().ends_with("0a1b.json has expired; log in again in Kiro"), "{error}");
    write(&sibling, "{}");
    assert_eq!(store.read_token(&key, t0()).await.unwrap_err().kind(), StoreErrorKind::Registration);
    write(&sibling, SIBLING);
    assert!(store.read_token(&key, t0()).await.unwrap().is_some(), "read again at each refresh");
    assert_eq!(store.status(), Status::Connected, "one account's trouble is no outage");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learned_profile_stays_in_memory_when_the_file_has_no_member_for_it_r68() {
    let text = r#"{"accessToken":"old","refreshToken":"refresh-1","authMethod":"social"}"#;
    let (_folder, path) = file("kiro-auth-token.json", text);
    let store = open(&path).await;
    let (key, base) = store.load().await.unwrap()[0].token.clone().unwrap();
    let patched = record::patch(&base, &[Entry::ProfileArn("arn:x".into())]).unwrap().unwrap();
    assert_eq!(store.compare_and_set_token(&key, &base, &patched).await.unwrap(), Cas::Written);
    assert_eq!(read(&path), text);
    let again = store.load().await.unwrap()[0].token.clone().unwrap().1;
    assert_eq!(Token::parse(&again).unwrap().profile_arn.as_deref(), Some("arn:x"));
}

#[test]
fn an_import_copies_the_registration_r80() {
    let (folder, path) = file("kiro-auth-token.json", IDE_FILE);
    let error = import(&path, t0()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Registration);
    write(&folder.path().join("0a1b.json"), SIBLING);
    let imported = import(&path, t0()).unwrap();
    assert_eq!(imported.method, Method::Idc);
    assert_eq!(
        String::from_utf8(imported.token).unwrap(),
        r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T10:00:00.000Z","authMethod":"IdC","provider":"Enterprise","idcRegion":"eu-west-1","clientId":"c","clientSecret":"s","registrationExpiresAt":"2027-01-01T00:00:00Z"}"#
    );
    write(&path, "SQLite format 3\0");
    assert!(import(&path, t0()).unwrap_err().to_string().contains("only JSON token files can be read"));
    write(&path, r#"{"accounts":{}}"#);
    assert_eq!(import(&path, t0()).unwrap_err().kind(), StoreErrorKind::Broken);
    assert_eq!(import(&folder.path().join("none"), t0()).unwrap_err().kind(), StoreErrorKind::Away);
}

/// Changes that wait for their turn are written together.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_changes_are_written_in_one_go_r65() {
    let records: Vec<String> = (0..200).map(|n| format!(r#""a{n}":{{"refreshToken":"r{n}"}}"#)).collect();
    let all = records.join(",");
    let (_folder, path) = file("pool.json", &format!(r#"{{"accounts":{{{all}}},"tokens":{{{all}}}}}"#));
    let store = open(&path).await;
    let before: u64 = store.latency().observed().count();
    let changes = (0..200).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let (old, new) = (format!(r#"{{"refreshToken":"r{n}"}}"#), format!(r#"{{"refreshToken":"s{n}"}}"#));
            let (id, key) = (format!("a{n}"), TokenKey::of(&format!("a{n}")));
            let token = store.compare_and_set_token(&key, old.as_bytes(), new.as_bytes());
            let account = store.compare_and_set_account(&id, old.as_bytes(), new.as_bytes());
            let (token, account) = tokio::join!(token, account);
            (token.unwrap(), account.unwrap())
        })
    });
    for change in changes.collect::<Vec<_>>() {
        assert_eq!(change.await.unwrap(), (Cas::Written, Cas::Written));
    }
    let rewrites = store.latency().observed().count() - before;
    assert!(rewrites <= 40, "{rewrites} rewrites for 400 changes");
    let text = read(&path);
    assert!((0..200).all(|n| text.matches(&format!(r#""s{n}""#)).count() == 2) && !text.contains(r#":"r"#), "{text}");
}

/// A refreshed token waits a moment for those that are about to come, and for nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_refreshes_under_way_are_written_together_r66() {
    let records: Vec<String> = (0..3).map(|n| format!(r#""a{n}":{TOKEN}"#)).collect();
    let (_folder, path) = file("pool.json", &format!(r#"{{"accounts":{{}},"tokens":{{{}}}}}"#, records.join(",")));
    let store = open(&path).await;
    let keys: Vec<TokenKey> = (0..3).map(|n| TokenKey::of(&format!("a{n}"))).collect();
    let save = |n: usize| {
        let (store, unsaved) = (store.clone(), refreshed(&keys[n], TOKEN.as_bytes()));
        tokio::spawn(async move { store.save_token(&unsaved).await.unwrap() })
    };
    let saved = || read(&path).matches("refresh-2").count();

    let mut locks = Vec::new();
    for key in &keys {
        locks.push(store.lock(key, t0()).await.unwrap().unwrap());
    }
    let first = save(0);
    sleep(Duration::from_millis(10)).await;
    let second = save(1);
    sleep(Duration::from_millis(10)).await;
    drop(locks.pop());
    for save in [first, second] {
        assert!(matches!(save.await.unwrap(), Saved::Written(_)));
        assert_eq!(saved(), 2, "one file holds both: the third refresh brought nothing");
    }

    // Nothing else is under way: at once. The quickest of some, on a machine that may be busy.
    drop(locks);
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        write(&path, &pool(TOKEN).replace("a1", "a2"));
        let _lock = store.lock(&keys[2], t0()).await.unwrap().unwrap();
        let began = Instant::now();
        assert!(matches!(save(2).await.unwrap(), Saved::Written(_)));
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < Duration::from_millis(90), "{quickest:?}");

    // A refresh that hangs holds nobody up for long.
    write(&path, &pool(TOKEN).replace("a1", "a2"));
    let _hangs = store.lock(&keys[0], t0()).await.unwrap().unwrap();
    let saved = tokio::time::timeout(Duration::from_secs(10), save(2)).await;
    assert!(matches!(saved.unwrap().unwrap(), Saved::Written(_)));
}
