//! The Node.js service's pool file as the store: R95–R100, R104, R107.
#![cfg(feature = "gateway")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiro_messages::proto::record::{Account, Entry, Fingerprint, Token};
use kiro_messages::secret::Secret;
use kiro_messages::store::{
    Cas, RawAccount, Saved, Status, Store, StoreConfig, StoreErrorKind, TokenKey, UnsavedToken,
};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

#[path = "support/modes.rs"]
mod modes;
#[path = "support/records.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod records;

#[cfg(all(unix, feature = "server"))]
#[path = "store_service/server.rs"]
mod server;

use modes::{assert_mode, set_mode};
use records::*;

/// A token file as the service writes it, in camelCase, with members that we don't know.
const CAMEL: &str = "{\n    \"accessToken\": \"old\",\n    \"refreshToken\": \"refresh-1\",\n    \"expiresAt\": \"2026-11-23T10:00:00.000Z\",\n    \"authMethod\": \"social\",\n    \"note\": [1, 2.50, \"\\u00e4\"],\n    \"region\": \"us-east-1\"\n}\n";
/// The same in snake_case, its time as a number.
const SNAKE: &str = "{\"access_token\":\"old\", \"refresh_token\":\"refresh-1\",\"expires_at\":1767225600000,\"auth_method\":\"social\",\"x\":{}}";
const CLIENT: &str = "{\"clientId\":\"c\",\"clientSecret\":\"s\",\"expiresAt\":\"2027-01-01T00:00:00.000Z\"}";
const IDC: &str = "{\"accessToken\":\"old\",\"refreshToken\":\"refresh-1\",\"expiresAt\":\"2026-11-23T10:00:00Z\",\"authMethod\":\"IdC\",\"region\":\"eu-west-1\"}";

/// A service's folder.
struct Installation {
    folder: TempDir,
}

impl Installation {
    fn new(pool: &str) -> Self {
        let here = Self { folder: tempfile::tempdir().unwrap() };
        here.write("configs/provider_pools.json", pool);
        here
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pool(&self) -> PathBuf {
        self.path("configs/provider_pools.json")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    async fn open(&self) -> Store {
        Store::connect(&StoreConfig::Aiclient(self.pool())).await.unwrap()
    }
}

/// A pool of one account whose token is in a file.
fn one(path: &str) -> String {
    json!({ "claude-kiro-oauth": [{ "uuid": "a1", "KIRO_OAUTH_CREDS_FILE_PATH": path }] }).to_string()
}

fn ids(accounts: &[RawAccount]) -> Vec<&str> {
    accounts.iter().map(|account| account.id.as_str()).collect()
}

fn token_of(account: &RawAccount) -> Token {
    Token::parse(&account.token.as_ref().unwrap().1).unwrap()
}

fn account_of(account: &RawAccount) -> Account {
    Account::parse(&account.account, &account.id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_kiro_and_of_suffixed_types_keep_their_ids_r95() {
    let pool = "\u{feff}{\n  \"gemini-cli-oauth\": [{\"uuid\":\"g1\"}],\n  \"claude-kiro-oauth-work\": [\n    {\"uuid\":\"w1\", \"customName\":\"work\", \"big\": 12345678901234567890}\n  ],\n  \"claude-kiro-oauth\": [{\"uuid\":\"a1\",\"usageCount\":7,\"isDisabled\":\"true\"}, {\"customName\":\"nobody\"}, {\"uuid\":\"w1\",\"customName\":\"second\"}, 5],\n  \"claude-kiro-oauths\": [{\"uuid\":\"other\"}]\n}\n";
    let here = Installation::new(pool);
    let all = here.open().await.load().await.unwrap();
    assert_eq!(ids(&all), ["a1", "w1"]);
    assert_eq!(account_of(&all[0]).usage_count, 7);
    assert_eq!(account_of(&all[1]).custom_name.as_deref(), Some("work"));
    // The record is the file's, byte for byte.
    assert_eq!(all[1].account, "{\"uuid\":\"w1\", \"customName\":\"work\", \"big\": 12345678901234567890}");
    assert!(all.iter().all(|account| account.token.is_none()));
    assert_eq!(here.read("configs/provider_pools.json"), pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_followed_and_a_half_written_file_is_not_believed_r96() {
    let here = Installation::new(&one("configs/kiro/t.json"));
    here.write("configs/kiro/t.json", CAMEL);
    let store = here.open().await;
    assert_eq!(store.status(), Status::Connected);
    let two = json!({ "claude-kiro-oauth": [{ "uuid": "a1" }, { "uuid": "a2" }] }).to_string();

    // Rewritten in place, and caught in between: empty, then half of it.
    let (pool, text) = (here.pool(), two.clone());
    here.write("configs/provider_pools.json", "");
    let writing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(15));
        std::fs::write(&pool, &text[..text.len() / 2]).unwrap();
        std::thread::sleep(Duration::from_millis(15));
        std::fs::write(&pool, &text).unwrap();
    });
    // A slow machine needs more than one look; nothing but the old and the whole new pool is ever believed.
    let seen = loop {
        match store.load().await {
            Ok(seen) => break seen,
            Err(error) => assert_eq!(error.kind(), StoreErrorKind::Broken),
        }
    };
    assert_eq!(ids(&seen), ["a1", "a2"]);
    assert_eq!(store.status(), Status::Connected);
    writing.join().unwrap();

    // Renamed into place, of the same length.
    let renamed = two.replace("a2", "b7");
    here.write("configs/new.json", &renamed);
    std::fs::rename(here.path("configs/new.json"), here.pool()).unwrap();
    assert_eq!(ids(&store.load().await.unwrap()), ["a1", "b7"]);

    // Broken for good: away until it is mended, and named with its place.
    here.write("configs/provider_pools.json", "{\n  \"claude-kiro-oauth\": [ {\"uuid\": \"a1\"");
    let error = store.load().await.unwrap_err();
    assert!(error.to_string().contains("provider_pools.json not JSON at line 2"), "{error}");
    assert!(matches!(store.status(), Status::Away(_)));
    std::fs::remove_file(here.pool()).unwrap();
    assert!(store.load().await.unwrap_err().to_string().contains("not found"));
    here.write("configs/provider_pools.json", &one("configs/kiro/t.json"));
    let all = store.load().await.unwrap();
    assert_eq!(store.status(), Status::Connected);

    // A token file that is just being written counts with its last content; one of another login is taken.
    for half in ["", "{", "{}", "{\"accessTok", "null"] {
        here.write("configs/kiro/t.json", half);
        assert_eq!(store.load().await.unwrap(), all, "{half}");
    }
    here.write("configs/kiro/t.json", &CAMEL.replace("refresh-1", "refresh-9"));
    let token = token_of(&store.load().await.unwrap()[0]);
    assert_eq!(token.refresh_token, Some(Secret::new("refresh-9")));
    std::fs::remove_file(here.path("configs/kiro/t.json")).unwrap();
    assert!(store.load().await.unwrap()[0].token.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_files_are_found_where_the_service_keeps_them_r97() {
    let far = tempfile::tempdir().unwrap();
    let absolute = far.path().join("t.json");
    std::fs::write(&absolute, CAMEL).unwrap();
    let record = |uuid: &str, path: &str| json!({ "uuid": uuid, "KIRO_OAUTH_CREDS_FILE_PATH": path });
    let list = json!([
        record("a1", "./configs/kiro/1/t.json"),
        record("a2", "configs\\kiro\\2\\t.json"),
        record("a3", absolute.to_str().unwrap()),
        record("a4", "configs/kiro/4/t.json"),
        record("a5", "configs/kiro/5/t.json"),
        record("a6", "configs/kiro/missing/me@example.org.json"),
    ]);
    let here = Installation::new(&json!({ "claude-kiro-oauth": list }).to_string());
    here.write("configs/kiro/1/t.json", CAMEL);
    here.write("configs/kiro/2/t.json", SNAKE);
    here.write("configs/kiro/4/t.json", IDC);
    here.write("configs/kiro/4/client.json", CLIENT);
    here.write("configs/kiro/5/t.json", &IDC.replace("\"authMethod\"", "\"clientIdHash\":\"h\",\"authMethod\""));
    here.write("configs/kiro/5/one.json", CLIENT);
    let store = here.open().await;
    let all = store.load().await.unwrap();
    for account in &all[..3] {
        let token = token_of(account);
        assert_eq!(token.refresh_token, Some(Secret::new("refresh-1")), "{}", account.id);
    }
    for account in &all[3..5] {
        let token = token_of(account);
        assert_eq!((token.client_id, token.client_secret), (Some(Secret::new("c")), Some(Secret::new("s"))));
    }
    assert!(all[5].token.is_none());
    // Two clients: which one is meant, nobody knows.
    here.write("configs/kiro/5/two.json", CLIENT);
    let (key, _) = all[4].token.clone().unwrap();
    let error = store.read_token(&key, t0()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Registration);
    assert!(error.to_string().contains("more than one client registration"), "{error}");
    // A client that has ended is named at the refresh.
    here.write("configs/kiro/4/client.json", &CLIENT.replace("2027", "2025"));
    let (key, _) = all[3].token.clone().unwrap();
    assert!(store.read_token(&key, t0()).await.unwrap_err().to_string().contains("expired"));
    assert_eq!(store.orphans().await.unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_is_written_into_the_token_file_in_its_own_spelling_r98() {
    for (text, ends) in [(CAMEL, "2026-11-23T11:00:00.000Z"), (SNAKE, "1795431600000")] {
        let here = Installation::new(&one("configs/kiro/t.json"));
        here.write("configs/kiro/t.json", text);
        set_mode(&here.path("configs/kiro/t.json"), 0o640);
        let store = here.open().await;
        let (key, base) = store.load().await.unwrap()[0].token.clone().unwrap();
        let lock = store.lock(&key, t0()).await.unwrap().unwrap();
        assert!(store.lock(&key, t0()).await.unwrap().is_none(), "the lock is taken");
        // A second server on the same file, as this store or as a token file, sees the lock.
        let token_file = StoreConfig::File(here.path("configs/kiro/t.json"));
        let beside = Store::connect(&token_file).await.unwrap();
        let (its_key, _) = beside.load().await.unwrap()[0].token.clone().unwrap();
        assert!(beside.lock(&its_key, t0()).await.unwrap().is_none());
        assert!(here.open().await.lock(&key, t0()).await.unwrap().is_none());
        let Saved::Written(saved) = store.save_token(&refreshed(&key, &base)).await.unwrap() else { panic!("unsaved") };
        store.unlock(lock).await.unwrap();
        let expected = text
            .replace("\"old\"", "\"new\"")
            .replace("refresh-1", "refresh-2")
            .replace("2026-11-23T10:00:00.000Z", ends)
            .replace("1767225600000", ends);
        assert_eq!(here.read("configs/kiro/t.json"), expected);
        // The service may run as another user.
        assert_mode(&here.path("configs/kiro/t.json"), 0o640);
        assert_eq!(store.read_token(&key, t0()).await.unwrap().unwrap(), saved);
        assert_eq!(here.read("configs/provider_pools.json"), one("configs/kiro/t.json"));

        // Somebody logged in anew: a refresh of the old token doesn't undo it.
        let theirs = text.replace("refresh-1", "refresh-9");
        here.write("configs/kiro/t.json", &theirs);
        assert!(matches!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Rotated(_)));
        assert_eq!(here.read("configs/kiro/t.json"), theirs);

        // The service gave the account another id while its token was refreshed: the token isn't lost.
        here.write("configs/kiro/t.json", text);
        let base = store.read_token(&key, t0()).await.unwrap().unwrap();
        let renamed = one("configs/kiro/t.json").replace("a1", "b1");
        here.write("configs/provider_pools.json", &renamed);
        assert!(matches!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Written(_)));
        assert_eq!(here.read("configs/kiro/t.json"), expected);
        assert_eq!(store.load().await.unwrap()[0].token.as_ref().unwrap().0, key);
    }
}

/// What happens to one token file, in any order.
#[derive(Clone, Debug)]
enum Step {
    /// This server reads the record and asks upstream with it.
    Begin(usize),
    /// It saves what came.
    Save(usize),
    /// The service writes a token of its own, or the one that is there, anew: with a rename or in place.
    Foreign { rotates: bool, renames: bool },
    /// The service edits a member that isn't ours.
    Edit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..2_usize).prop_map(Step::Begin),
        (0..2_usize).prop_map(Step::Save),
        (any::<bool>(), any::<bool>()).prop_map(|(rotates, renames)| Step::Foreign { rotates, renames }),
        Just(Step::Edit),
    ];
    proptest::collection::vec(step, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two servers and the service on one file. Each token names the one that it grew out of; one that was replaced is
    /// spent. What lies in the file at the end is never older than what lay there before.
    #[test]
    fn a_newer_token_is_never_overwritten_and_none_is_lost_r98(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        runtime.block_on(interleave(steps));
    }
}

async fn interleave(steps: Vec<Step>) {
    let here = Installation::new(&one("configs/kiro/t.json"));
    here.write("configs/kiro/t.json", CAMEL);
    let stores = [here.open().await, here.open().await];
    let mut begun: [Option<UnsavedToken>; 2] = [None, None];
    let (mut made, mut lies, mut edits) = (1, "refresh-1".to_owned(), 0);
    for step in steps {
        let file = here.read("configs/kiro/t.json");
        assert!(file.contains(&format!("\"{lies}\"")), "{file}");
        match step {
            Step::Begin(who) => {
                let (its_key, _) = stores[who].load().await.unwrap()[0].token.clone().unwrap();
                let base = stores[who].read_token(&its_key, t0()).await.unwrap().unwrap();
                let used = Token::parse(&base).unwrap().refresh_token.unwrap();
                assert_eq!(used.expose(), lies, "a changed file is seen at once");
                made += 1;
                begun[who] = Some(UnsavedToken {
                    key: its_key,
                    base,
                    replaces: vec![Fingerprint::of(&used)],
                    entries: vec![
                        Entry::AccessToken(Secret::new(format!("access-{made}"))),
                        Entry::RefreshToken(Secret::new(format!("refresh-{made}"))),
                        Entry::ExpiresAt(time("11:00:00")),
                    ],
                });
            }
            Step::Save(who) => {
                let Some(unsaved) = begun[who].take() else { continue };
                let ours = Token::parse(&unsaved.base).unwrap().refresh_token.unwrap();
                let new = unsaved.entries.iter().find_map(|entry| match entry {
                    Entry::RefreshToken(token) => Some(token.expose().to_owned()),
                    _ => None,
                });
                match stores[who].save_token(&unsaved).await.unwrap() {
                    Saved::Written(_) => {
                        assert_eq!(ours.expose(), lies, "a token that somebody replaced was replaced again");
                        lies = new.unwrap();
                    }
                    Saved::Rotated(theirs) => {
                        assert_ne!(ours.expose(), lies, "nobody had replaced it");
                        assert_eq!(Token::parse(&theirs).unwrap().refresh_token.unwrap().expose(), lies);
                    }
                    other => panic!("{other:?}"),
                }
            }
            Step::Foreign { rotates, renames } => {
                made += u32::from(rotates);
                let next = if rotates { format!("refresh-{made}") } else { lies.clone() };
                let text = file.replace(&format!("\"{lies}\""), &format!("\"{next}\""));
                lies = next;
                let name = if renames { "configs/kiro/new.json" } else { "configs/kiro/t.json" };
                here.write(name, &text);
                if renames {
                    std::fs::rename(here.path(name), here.path("configs/kiro/t.json")).unwrap();
                }
            }
            Step::Edit => {
                edits += 1;
                here.write("configs/kiro/t.json", &file.replace("\"note\": [", &format!("\"note\": [{edits}, ")));
            }
        }
    }
    let file = here.read("configs/kiro/t.json");
    let notes: String = (1..=edits).rev().map(|edit| format!("{edit}, ")).collect();
    assert!(file.contains(&format!("\"note\": [{notes}1, 2.50, \"\\u00e4\"]")), "{file}");
    assert!(file.contains(&format!("\"{lies}\"")), "{file}");
    assert_eq!(here.read("configs/provider_pools.json"), one("configs/kiro/t.json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_and_counts_live_in_memory_under_the_services_own_r99() {
    let pool = |record: &str| format!("{{\"claude-kiro-oauth\":[{{\"uuid\":\"a1\",{record}}}]}}");
    let before = pool("\"isHealthy\":true,\"usageCount\":5,\"errorCount\":0,\"needsRefresh\":true");
    let here = Installation::new(&before);
    let store = here.open().await;
    let now = async || account_of(&store.load().await.unwrap()[0]);
    record(&store, [success(), success()]).await;
    assert_eq!((now().await.usage_count, now().await.standing.healthy), (7, true));
    let marks = [Entry::IsHealthy(false), Entry::ErrorCount(1), Entry::NeedsRefresh(false)];
    assert!(store.patch_account("a1", &marks).await.unwrap());
    assert_eq!(here.read("configs/provider_pools.json"), before);
    assert!(!now().await.standing.healthy);

    // The service counts a use of its own: the mark stays, and its count counts.
    here.write("configs/provider_pools.json", &before.replace(":5", ":6"));
    let account = now().await;
    assert_eq!((account.usage_count, account.standing.healthy, account.standing.stale), (6, false, false));
    // It changes a part of the mark: all of the mark is its own then, and only that.
    here.write("configs/provider_pools.json", &before.replace("\"errorCount\":0", "\"errorCount\":2"));
    let account = now().await;
    assert_eq!((account.standing.healthy, account.standing.stale), (true, false));
    // Another process knows nothing of it.
    let other = account_of(&here.open().await.load().await.unwrap()[0]);
    assert_eq!((other.usage_count, other.standing.stale), (5, true));
    // An account that is gone takes its marks along.
    here.write("configs/provider_pools.json", "{\"claude-kiro-oauth\":[{\"uuid\":\"a2\"}]}");
    assert_eq!(ids(&store.load().await.unwrap()), ["a2"]);
    assert_eq!(store.compare_and_set_account("a1", b"{}", b"{ }").await.unwrap(), Cas::Absent);
    here.write("configs/provider_pools.json", &before);
    assert!(now().await.standing.stale);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_inside_the_pool_file_is_read_alone_r100() {
    let encoded = STANDARD.encode(CAMEL);
    let pool = json!({ "claude-kiro-oauth": [
        { "uuid": "a1", "KIRO_OAUTH_CREDS_BASE64": encoded }, { "uuid": "a2", "KIRO_OAUTH_CREDS_BASE64": "no base64!" },
    ] });
    let here = Installation::new(&pool.to_string());
    let store = here.open().await;
    let all = store.load().await.unwrap();
    let (key, base) = all[0].token.clone().unwrap();
    assert_eq!(token_of(&all[0]).access_token, Some(Secret::new("old")));
    assert_eq!(store.read_token(&key, t0()).await.unwrap().unwrap(), base);
    assert!(store.lock(&key, t0()).await.unwrap_err().is_read_only());
    assert!(store.save_token(&refreshed(&key, &base)).await.unwrap_err().is_read_only());
    assert!(all[1].token.is_none());
    let error = store.read_token(&TokenKey::of("a2"), t0()).await.unwrap_err();
    assert!(error.to_string().contains("KIRO_OAUTH_CREDS_BASE64: no base64"), "{error}");
    assert_eq!(here.read("configs/provider_pools.json"), pool.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_program_is_never_written_r104() {
    let service = json!({ "claude-kiro-oauth": [{ "uuid": "a1" }] });
    let spoilt = json!({ "claude-kiro-oauth": [], "accounts": {}, "tokens": {} });
    for (content, names) in [
        (service, "KIRO_STORE=aiclient:PATH"),
        (spoilt, "KIRO_STORE=aiclient:PATH"),
        (json!({ "gemini-cli-oauth": [{}] }), "KIRO_STORE=aiclient:PATH"),
        (json!({ "REQUIRED_API_KEY": "k" }), "another program's file"),
    ] {
        let here = Installation::new(&content.to_string());
        let error = Store::connect(&StoreConfig::File(here.pool())).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config);
        assert!(error.to_string().contains(names), "{error}");
        assert_eq!(here.read("configs/provider_pools.json"), content.to_string());
        // Not even where it came into the place of a store that is open.
        let store = {
            std::fs::write(here.pool(), "{\"accounts\":{\"a1\":{}}}").unwrap();
            Store::connect(&StoreConfig::File(here.pool())).await.unwrap()
        };
        here.write("configs/provider_pools.json", &content.to_string());
        assert!(store.add_account(&new_account("a2", TOKEN)).await.is_err());
        assert!(store.compare_and_set_account("a1", b"{}", b"{ }").await.is_err());
        assert_eq!(here.read("configs/provider_pools.json"), content.to_string());
    }
    let here = Installation::new(&one("t.json"));
    let store = here.open().await;
    for error in [
        store.add_account(&new_account("a2", TOKEN)).await.unwrap_err(),
        store.remove_account("a1").await.unwrap_err(),
        store.lock(&TokenKey::of("login"), t0()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Config);
        assert!(error.to_string().contains("in that service"), "{error}");
    }
    assert_eq!(here.read("configs/provider_pools.json"), one("t.json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_own_client_key_is_used_r107() {
    let here = Installation::new(&one("t.json"));
    let store = here.open().await;
    assert_eq!(store.client_key().await.unwrap(), None);
    here.write("configs/config.json", "{\"REQUIRED_API_KEY\":\"its-key\"}");
    assert_eq!(store.client_key().await.unwrap(), Some(Secret::new("its-key")));
    here.write("configs/config.json", "{\"REQUIRED_API");
    assert_eq!(store.client_key().await.unwrap_err().kind(), StoreErrorKind::Broken);
    let secret = store.id_secret("fresh").await.unwrap();
    assert_eq!(here.open().await.id_secret("another").await.unwrap(), secret);
}
