//! `accounts add --from PATH`: sessions of other programs become accounts, and nothing of them changes or is shown
//! (R78–R86; cases P71 and P72).
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[cfg(unix)]
#[path = "import/hostile.rs"]
mod hostile;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use base64::Engine as _;
use redis::Commands as _;
use redis_server::RedisServer;
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

const FAR: &str = "2099-01-01T00:00:00.000Z";
const BUILDER_ID: &str = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX";
const OWN: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";
const POOL: &str = "aiclient:pools:claude-kiro-oauth";
const ENDPOINT: &str = "https://login.microsoftonline.com/t/oauth2/v2.0/token";

/// What must never be in any output: every secret, address and code of the inputs holds this word.
const HUSH: &str = "hush";

struct Place {
    folder: TempDir,
    redis: Option<String>,
}

struct Said {
    code: i32,
    all: String,
    out: String,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), redis: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, name: &str, value: &Value) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, value.to_string()).unwrap();
        path
    }

    /// Runs `accounts ARGUMENTS` and checks that nothing secret is printed.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Said {
        let store = self.redis.clone().unwrap_or_else(|| format!("file:{}", self.path("pool.json").display()));
        let name = if self.redis.is_some() { "REDIS_URL" } else { "KIRO_STORE" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.arg("accounts").args(arguments).env_clear().env("HOME", self.folder.path().join("home"));
        let output = command.env(name, store).env("TMPDIR", self.path("tmp/x").parent().unwrap()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        let all = format!("{out}{err}");
        assert!(!all.contains(HUSH), "something secret was told:\n{all}");
        Said { code: output.status.code().unwrap(), all, out }
    }

    #[track_caller]
    fn add(&self, path: &Path, more: &[&str], code: i32) -> Said {
        let path = path.display().to_string();
        let said = self.run(&[&["add", "--offline", "--from", &path], more].concat());
        assert_eq!(said.code, code, "{}", said.all);
        said
    }

    /// Account and token records, by the order of their refresh tokens or keys.
    fn pool(&self) -> Vec<(Value, Value)> {
        let Ok(text) = fs::read(self.path("pool.json")) else { return Vec::new() };
        let pool: Value = serde_json::from_slice(&text).unwrap();
        let accounts = pool["accounts"].as_object().unwrap();
        let mut all: Vec<_> =
            accounts.iter().map(|(id, account)| (account.clone(), pool["tokens"][id].clone())).collect();
        all.sort_by_key(|(_, token)| format!("{}{}", token["refreshToken"], token["kiroApiKey"]));
        all
    }
}

/// As long as a real token.
fn secret(name: &str) -> String {
    format!("{HUSH}-{name}-{}", "x".repeat(120))
}

/// Bytes and times of every file of a folder.
fn state(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: PathBuf| {
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        (path.clone(), (fs::read(&path).unwrap(), modified))
    };
    entries.filter(|path| path.is_file()).map(file).collect()
}

fn token_row(name: &str) -> String {
    json!({
        "access_token": secret("a"), "refresh_token": secret(name), "expires_at": "2099-01-01T00:00:00.123456789Z",
        "region": "eu-west-2", "start_url": "https://hush.awsapps.com/start", "oauth_flow": "DeviceCode", "scopes": ["s"],
    })
    .to_string()
}

fn registration_row() -> String {
    json!({ "client_id": secret("id"), "client_secret": secret("secret"), "client_secret_expires_at": FAR }).to_string()
}

fn external_row() -> String {
    json!({
        "access_token": secret("a"), "refresh_token": secret("3"), "expires_at": FAR, "issuer_url": ENDPOINT,
        "token_endpoint": ENDPOINT, "client_id": secret("client"),
    })
    .to_string()
}

const TABLES: &str =
    "CREATE TABLE auth_kv (key TEXT PRIMARY KEY, value TEXT); CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB);";

/// A database with its log open, half of it in the log.
fn database(path: &Path, rows: &[(&str, String)], profile: &str) -> Connection {
    let open = Connection::open(path).unwrap();
    open.execute_batch(&format!("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; {TABLES}")).unwrap();
    open.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    for (key, value) in rows {
        open.execute("INSERT INTO auth_kv VALUES (?1, ?2)", [*key, value]).unwrap();
    }
    let profile = json!({ "arn": profile, "profile_name": "p" }).to_string();
    open.execute("INSERT INTO state VALUES ('api.codewhisperer.profile', ?1)", [profile.as_bytes()]).unwrap();
    open
}

#[test]
fn a_database_is_read_with_its_log_open_and_locked_and_stays_as_it_is_p71_r78_r82_r85() {
    let place = Place::new();
    let path = place.path("cli/data.sqlite3");
    let rows = [
        ("kirocli:odic:token", token_row("1")),
        ("kirocli:odic:device-registration", registration_row()),
        ("kirocli:external-idp:token", external_row()),
        ("codewhisperer:odic:token", token_row("stale")),
    ];
    let open = database(&path, &rows, OWN);
    assert!(fs::metadata(place.path("cli/data.sqlite3-wal")).unwrap().len() > 1000, "part of it is in the log");
    // A writer holds it.
    open.execute_batch("BEGIN IMMEDIATE; INSERT INTO auth_kv VALUES ('kirocli:social:token', '{}')").unwrap();
    let before = state(path.parent().unwrap());
    let said = place.add(&path, &["--dry-run"], 0);
    assert!(said.all.contains("2 would be added, 0 already there, 0 failed"), "{}", said.all);
    assert!(place.pool().is_empty(), "a dry run writes nothing");
    let said = place.add(&path, &[], 0);
    assert!(said.all.contains("2 added, 0 already there, 0 failed"), "{}", said.all);
    assert!(said.all.contains("the first to renew a refresh token"), "R85: {}", said.all);
    assert!(state(path.parent().unwrap()) == before, "bytes and times are as before");
    assert_eq!(fs::read_dir(place.path("tmp/x").parent().unwrap()).unwrap().count(), 0, "no copy stays");
    let pool = place.pool();
    let (idc, external) = (&pool[0].1, &pool[1].1);
    assert_eq!((&idc["authMethod"], &idc["idcRegion"]), (&json!("IdC"), &json!("eu-west-2")));
    assert_eq!(idc["startUrl"], "https://hush.awsapps.com/start");
    assert_eq!((&idc["registrationExpiresAt"], &idc["clientId"]), (&json!(FAR), &json!(secret("id"))));
    assert_eq!((&idc["profileArn"], &idc["region"]), (&json!(OWN), &Value::Null));
    assert_eq!((&external["authMethod"], &external["tokenEndpoint"]), (&json!("external_idp"), &json!(ENDPOINT)));
    let again = place.add(&path, &[], 1);
    assert!(again.all.contains("0 added, 2 already there, 0 failed"), "{}", again.all);
    assert_eq!(place.pool().len(), 2);
}

#[test]
fn kiros_fixed_profile_is_not_taken_over_and_one_row_can_be_picked_p71_r78_r82() {
    let place = Place::new();
    let path = place.path("cli/data.sqlite3");
    let rows = [
        ("kirocli:odic:token", token_row("1")),
        ("kirocli:odic:device-registration", registration_row()),
        ("kirocli:external-idp:token", external_row()),
    ];
    let _open = database(&path, &rows, BUILDER_ID);
    place.add(&path, &["--key", "kirocli:odic:token"], 0);
    place.add(&path, &["--only", "7"], 1);
    let pool = place.pool();
    assert_eq!((pool.len(), &pool[0].1["profileArn"]), (1, &Value::Null));
}

#[test]
fn databases_that_cant_be_taken_over_say_why_p71_r82_r86() {
    let place = Place::new();
    let missing = place.path("c/data.sqlite3");
    let open = database(&missing, &[("kirocli:odic:token", token_row("1"))], OWN);
    open.execute("INSERT INTO auth_kv VALUES ('kirocli:social:token', 'hush')", []).unwrap();
    let said = place.add(&missing, &[], 1).all;
    assert!(said.contains("client registration missing (kirocli:odic:device-registration): sign in again"), "{said}");
    assert!(said.contains("kirocli:social:token: no JSON"), "{said}");
    for (name, sql, why) in [
        ("d.sqlite3", "CREATE TABLE other (x)", "no table auth_kv: is this kiro-cli's database?"),
        ("e.sqlite3", "CREATE TABLE auth_kv (key TEXT)", "table auth_kv has no columns key and value"),
        ("f.sqlite3", TABLES, "holds no token: sign in again"),
    ] {
        let path = place.path(name);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let said = place.add(&path, &[], 1).all;
        assert!(said.contains(why) && said.contains(name), "{said}");
    }
    fs::write(place.path("g.sqlite3"), b"").unwrap();
    assert!(place.add(&place.path("g.sqlite3"), &[], 1).all.contains("no token file, kiro-cli database"));
    fs::write(place.path("h.sqlite3"), [b"SQLite format 3\0", &[7; 4000][..]].concat()).unwrap();
    assert!(place.add(&place.path("h.sqlite3"), &[], 1).all.contains("h.sqlite3: can't be read as SQLite"));
    assert!(place.pool().is_empty());
}

#[test]
fn a_database_of_the_sqlite3_program_is_read_r82() {
    let place = Place::new();
    let path = place.path("data.sqlite3");
    let made = Command::new("sqlite3").arg(&path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let Ok(mut made) = made else {
        // The other tests make theirs with the library.
        eprintln!("skipped: there is no sqlite3 program");
        return;
    };
    let row = |key: &str, value: String| format!("INSERT INTO auth_kv VALUES ('{key}', CAST('{value}' AS BLOB));");
    let social =
        json!({ "accessToken": secret("a"), "refreshToken": secret("s"), "expiresAt": FAR, "provider": "Github" });
    let sql = format!("PRAGMA journal_mode=DELETE; {TABLES} {}", row("codewhisperer:social:token", social.to_string()));
    std::io::Write::write_all(&mut made.stdin.take().unwrap(), sql.as_bytes()).unwrap();
    assert!(made.wait().unwrap().success());
    place.add(&path, &[], 0);
    let token = &place.pool()[0].1;
    assert_eq!((&token["authMethod"], &token["provider"]), (&json!("social"), &json!("Github")));
}

/// The Node.js service's folder: (a) of P72.
fn service(place: &Place) -> PathBuf {
    let social = |name: &str| json!({ "accessToken": secret("a"), "refreshToken": secret(name), "expiresAt": FAR, "authMethod": "social", "socialProvider": "Google" });
    place.write("svc/configs/kiro/one.json", &social("1"));
    place.write(
        "svc/configs/idc/two.json",
        &json!({ "refreshToken": secret("2"), "authMethod": "IdC", "expired": FAR }),
    );
    place.write(
        "svc/configs/idc/client.json",
        &json!({ "clientId": secret("id"), "clientSecret": secret("cs"), "expiresAt": "2099-01-01T00:00:00" }),
    );
    let inline = base64::engine::general_purpose::STANDARD.encode(social("3").to_string());
    let accounts = json!([
        { "uuid": "6f1c0d2e-0000-4000-8000-000000000001", "customName": "first", "isDisabled": true, "usageCount": 77,
          "isHealthy": false, "KIRO_OAUTH_CREDS_FILE_PATH": "./configs/kiro/one.json", "notSupportedModels": ["m"] },
        { "uuid": "6f1c0d2e-0000-4000-8000-000000000002", "KIRO_OAUTH_CREDS_FILE_PATH": "configs\\idc\\two.json",
          "PROXY_URL": "http://hush:hush@127.0.0.1:1" },
        { "uuid": "6f1c0d2e-0000-4000-8000-000000000003", "customName": "hush@example.org", "KIRO_OAUTH_CREDS_BASE64": inline },
    ]);
    let team = json!([{ "customName": "lost", "KIRO_OAUTH_CREDS_FILE_PATH": "./configs/kiro/none.json" }]);
    // A type with a suffix is Kiro's too, a longer word isn't.
    place.write(
        "svc/configs/provider_pools.json",
        &json!({ "gemini-cli-oauth": [{}], "claude-kiro-oauth": accounts, "claude-kiro-oauth-team": team, "claude-kiro-oauthx": [{}] }),
    )
}

#[test]
fn a_pool_file_of_the_nodejs_service_is_taken_over_under_its_ids_p72_r78_r83() {
    let place = Place::new();
    let path = service(&place);
    let before = state(path.parent().unwrap());
    // A folder is the file that is found in it (R79).
    let said = place.add(&place.path("svc"), &[], 1);
    assert!(
        said.all.contains("lost: not added: ") && said.all.contains("none.json not found; is the base folder right?")
    );
    assert!(said.all.contains("2 accounts of other providers were left alone"), "{}", said.all);
    assert!(said.all.contains("3 added, 0 already there, 1 failed"), "{}", said.all);
    let pool = place.pool();
    let ids: Vec<_> = pool.iter().map(|(account, _)| account["uuid"].as_str().unwrap()).collect();
    assert!(ids.iter().enumerate().all(|(at, id)| id.ends_with(&(at + 1).to_string())), "{ids:?}");
    let (first, token) = &pool[0];
    assert_eq!((&first["isDisabled"], &first["customName"]), (&json!(true), &json!("first")));
    assert_eq!((&first["usageCount"], &first["isHealthy"]), (&json!(0), &json!(true)), "health is not taken over");
    assert_eq!((&first["notSupportedModels"], &token["provider"]), (&json!(["m"]), &json!("Google")));
    let (second, token) = &pool[1];
    assert_eq!(second["PROXY_URL"], "http://hush:hush@127.0.0.1:1");
    assert_eq!((&token["clientId"], &token["expiresAt"]), (&json!(secret("id")), &json!(FAR)));
    assert!(state(path.parent().unwrap()) == before);
    let again = place.add(&path, &["--json"], 1);
    let again: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((&again["added"], &again["duplicates"], &again["failed"]), (&json!(0), &json!(3), &json!(1)));
    place.add(&path, &["--base", place.path("elsewhere/x").to_str().unwrap()], 1);
}

#[test]
fn a_list_of_credentials_keeps_proxy_machine_and_regions_p72_r84() {
    let place = Place::new();
    let machine = "ab".repeat(32);
    let list = json!([
        { "id": 7, "refreshToken": secret("1"), "authMethod": "IdC", "clientId": secret("c"), "clientSecret": secret("s"),
          "expiresAt": FAR, "authRegion": "eu-west-1", "region": "us-east-1", "apiRegion": "eu-central-1", "machineId": machine,
          "priority": 3, "disabled": true, "nickname": "desk" },
        { "credentials": { "refreshToken": secret("2"), "authMethod": "external_idp", "clientId": secret("c"),
          "tokenEndpoint": ENDPOINT }, "email": "hush@example.org" },
        { "kiroApiKey": format!("ksk_{HUSH}"), "proxyUrl": "http://127.0.0.1:1", "proxyUsername": "hush@x", "proxyPassword": "hush:/" },
        { "refreshToken": secret("4"), "authMethod": "external_idp", "clientId": "c", "tokenEndpoint": "https://evil.example/t" },
        { "refreshToken": secret("5"), "region": "evil.org/x" },
        { "refreshToken": secret("6"), "authMethod": "IdC" },
        { "refreshToken": "", "label": "hush@example.org" },
        { "refreshToken": secret("8"), "authMethod": "external_idp", "clientId": "c" },
    ]);
    let path = place.write("credentials.json", &list);
    let said = place.add(&path, &[], 1).all;
    for why in [
        "account 4: not added: tokenEndpoint: host evil.example is not allowed; add it to KIRO_EXTERNAL_IDP_HOSTS",
        "account 5: not added: region: not a region's name",
        "account 6: not added: client registration missing",
        "account 7: not added: holds no token: sign in again",
        "account 8: not added: tokenEndpoint: missing",
        "not taken over: id",
        "3 added, 0 already there, 5 failed",
    ] {
        assert!(said.contains(why), "{why}\n{said}");
    }
    let pool = place.pool();
    let idc = pool.iter().find(|(_, token)| token["authMethod"] == "IdC").unwrap();
    assert_eq!((&idc.1["idcRegion"], &idc.1["apiRegion"]), (&json!("eu-west-1"), &json!("eu-central-1")));
    assert_eq!((&idc.0["machineId"], &idc.0["priority"]), (&json!(machine), &json!(3)));
    assert_eq!((&idc.0["isDisabled"], &idc.0["customName"]), (&json!(true), &json!("desk")));
    let key = pool.iter().find(|(_, token)| token["kiroApiKey"].is_string()).unwrap();
    assert_eq!(key.0["PROXY_URL"], "http://hush%40x:hush%3A%2F@127.0.0.1:1");
    // One object is a list of one.
    let one = json!({ "refreshToken": secret("9"), "authMethod": "social", "apiRegion": "us-east-1" });
    place.add(&place.write("one.json", &one), &[], 0);
    assert_eq!(place.pool().len(), 4);
}

#[test]
fn api_keys_one_a_line_and_folders_of_token_files_are_many_accounts_r79() {
    let place = Place::new();
    fs::write(place.path("keys.txt"), format!("ksk_{HUSH}1\n\n# mine\nksk_{HUSH}2\nhush\n")).unwrap();
    let said = place.add(&place.path("keys.txt"), &[], 1).all;
    assert!(said.contains("line 5: not added: no API key") && said.contains("2 added"), "{said}");
    for name in ["a", "b"] {
        place.write(&format!("folder/{name}.json"), &json!({ "refreshToken": secret(name), "authMethod": "social" }));
    }
    place.write("folder/c.json", &json!({ "clientId": "c", "clientSecret": secret("c") }));
    let said = place.add(&place.path("folder"), &[], 0).all;
    assert!(said.contains("2 added"), "{said}");
    place.write("none/c.json", &json!({ "clientId": "c" }));
    assert!(place.add(&place.path("none"), &[], 1).all.contains("none: holds nothing that can be taken over"));
}

#[test]
fn a_broken_source_is_refused_with_its_mistake_r79_r86() {
    let place = Place::new();
    for (text, why) in [
        ("{\"accounts\":{}}", "is a pool of this program: name it as the store, file:"),
        ("{\n  \"refreshToken\": \"hush", "line 2, column"),
        ("hello", "no token file, kiro-cli database, pool file or credential list"),
        ("[1]", "no token file, kiro-cli database, pool file or credential list"),
    ] {
        fs::write(place.path("x"), text).unwrap();
        let said = place.add(&place.path("x"), &[], 1).all;
        assert!(said.contains(why), "{why}\n{said}");
    }
    assert!(
        place
            .add(&place.folder.path().join("no"), &[], 1)
            .all
            .contains("no: not found: name a file or folder that is there")
    );
    assert!(place.add(Path::new("/dev/null"), &[], 1).all.contains("is no file"));
    let said = place.run(&["add"]);
    assert!(said.all.contains("kiro-auth-token.json: not found, nor ") && said.all.contains("kiro-cli/data.sqlite3"));
}

#[test]
fn the_database_is_the_second_default_and_the_ides_profile_is_found_r79_r80() {
    let place = Place::new();
    let path = place.path("home/.local/share/kiro-cli/data.sqlite3");
    let _open = database(&path, &[("kirocli:external-idp:token", external_row())], BUILDER_ID);
    assert_eq!(place.run(&["add", "--offline"]).code, 0);
    let file =
        json!({ "refreshToken": secret("1"), "authMethod": "IdC", "clientId": "c", "clientSecret": secret("s") });
    place.write("home/.aws/sso/cache/kiro-auth-token.json", &file);
    place.write("home/.config/Kiro/User/globalStorage/kiro.kiroagent/profile.json", &json!({ "arn": OWN }));
    assert_eq!(place.run(&["add", "--offline"]).code, 0);
    assert_eq!(place.pool()[0].1["profileArn"], OWN);
}

#[test]
fn an_account_that_another_program_drops_is_reported_and_restored_r62() {
    let server = RedisServer::start();
    let mut place = Place::new();
    place.redis = Some(server.url());
    let path = place.write("one.json", &json!({ "refreshToken": secret("1"), "authMethod": "social" }));
    let url = server.url();
    let rewrites = std::thread::spawn(move || {
        // The Node.js service's way: the pool as it has it in memory.
        let mut redis = redis::Client::open(url).unwrap().get_connection().unwrap();
        for _ in 0..200 {
            if redis.hlen::<_, usize>(POOL).unwrap() > 0 {
                std::thread::sleep(std::time::Duration::from_millis(500));
                return redis.del::<_, ()>(POOL).unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("nothing was added");
    });
    let said = place.run(&["add", "--from", path.to_str().unwrap(), "--json"]);
    rewrites.join().unwrap();
    assert_eq!(said.code, 1, "{}", said.all);
    let said: Value = serde_json::from_str(&said.out).unwrap();
    let note = said["warnings"].as_array().unwrap().last().unwrap().as_str().unwrap();
    let id = said["id"].as_str().unwrap();
    let restore = format!("accounts restore {}`", &id[..8]);
    assert!(note.contains("is gone again") && note.contains(&restore), "{note}");
    assert_eq!(place.run(&["restore", &id[..8]]).code, 0);
    assert!(server.connection().hexists::<_, _, bool>(POOL, id).unwrap());
    assert!(place.run(&["restore", id]).all.contains("is there"));
    assert!(place.run(&["restore", "nobody"]).all.contains("has no token record any more"));
}
