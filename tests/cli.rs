//! The built `kiro-server` as an operator uses it: `accounts …` and `doctor` on a real Redis, a file and the simulator.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kiro_messages::simulator::{Running, Simulator};
use redis::Commands as _;
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "cli/login.rs"]
mod login;
#[path = "cli/login_faults.rs"]
mod login_faults;
#[path = "cli/orphans.rs"]
mod orphans;
#[path = "cli/portal.rs"]
mod portal;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/redis_server.rs"]
mod redis_server;

use redis_server::RedisServer;

const POOL: &str = "aiclient:pools:claude-kiro-oauth";
const FAR: &str = "2099-01-01T00:00:00.000Z";
const PAST: &str = "2020-01-01T00:00:00.000Z";

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}:\n{}{}", self.out, self.err))
    }
}

/// A folder, a simulated upstream, a store.
struct Place {
    folder: TempDir,
    upstream: Running,
    store: (&'static str, String),
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    fn with_file() -> Self {
        let mut place = Self::new(("KIRO_STORE", String::new()));
        place.store.1 = format!("file:{}", place.folder.path().join("pool.json").display());
        place
    }

    fn with_redis(server: &RedisServer) -> Self {
        Self::new(("REDIS_URL", server.url()))
    }

    fn new(store: (&'static str, String)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let upstream = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap().spawn().unwrap();
        drop(entered);
        Self { folder: tempfile::tempdir().unwrap(), upstream, store, _runtime: runtime }
    }

    fn run(&self, arguments: &[&str]) -> Said {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Said {
        let url = self.upstream.url();
        let output = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
            .args(arguments)
            .env_clear()
            .env("HOME", self.folder.path())
            .env(self.store.0, &self.store.1)
            .env("KIRO_UPSTREAM_URL", format!("{url}/generateAssistantResponse"))
            .env("KIRO_SOCIAL_REFRESH_URL", format!("{url}/refreshToken"))
            .env("KIRO_IDC_REFRESH_URL", format!("{url}/token"))
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// A social token file; its refresh token is as long as real ones.
    fn social(&self, name: &str, access: &str, refresh: &str, expires_at: &str) -> String {
        let token = json!({
            "accessToken": access, "refreshToken": long(refresh), "expiresAt": expires_at, "authMethod": "social",
        });
        self.write(name, &token)
    }

    fn write(&self, name: &str, value: &Value) -> String {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    }

    fn add(&self, file: &str) -> String {
        let said = self.run(&["accounts", "add", "--from", file, "--offline", "--json"]).with_code(0);
        said.json()["id"].as_str().unwrap().to_owned()
    }

    fn accounts(&self) -> Vec<Value> {
        self.run(&["accounts", "list", "--json"]).with_code(0).json()["accounts"].as_array().unwrap().clone()
    }

    /// The messages of a doctor's checks with this status.
    fn doctor(&self, status: &str, code: i32) -> Vec<String> {
        let report = self.run(&["doctor", "--json"]).with_code(code).json();
        assert_eq!(report["ok"], code == 0);
        let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == status);
        checks.map(|check| format!("{}: {} → {}", check["check"], check["message"], check["cure"])).collect()
    }
}

/// Puts accounts with their token records into the file store.
fn fill(place: &Place, accounts: &[(&str, Value, Value)]) {
    let records: serde_json::Map<_, _> =
        accounts.iter().map(|(id, account, _)| ((*id).to_owned(), account.clone())).collect();
    let tokens: serde_json::Map<_, _> =
        accounts.iter().map(|(id, _, token)| ((*id).to_owned(), token.clone())).collect();
    let path = place.write("pool.json", &json!({ "accounts": records, "tokens": tokens }));
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// A live token record with `more` in it.
fn token(more: Value) -> Value {
    let mut token = json!({ "accessToken": "a", "refreshToken": long("r"), "expiresAt": FAR, "authMethod": "social" });
    token.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    token
}

/// An IdC record with its client.
fn idc(more: Value) -> Value {
    let mut record = token(json!({ "authMethod": "IdC", "clientId": "c", "clientSecret": "s" }));
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

const BUILDER_ID_PROFILE: &str = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX";
const E2: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";

#[test]
fn list_shows_kind_region_and_profile_r75() {
    let place = Place::with_file();
    let start = "https://view.awsapps.com/start";
    let rows = [
        ("api-key-1", json!({ "kiroApiKey": "ksk_x", "profileArn": E2 }), "api-key", "api-key", "us-east-1", "none"),
        ("builder-1", idc(json!({ "startUrl": start })), "idc (builder-id)", "builder-id", "us-east-1", "service"),
        (
            "enterpr-1",
            idc(json!({ "startUrl": "https://d-1.awsapps.com/start", "profileArn": E2, "region": "sa-east-1" })),
            "idc (enterprise)",
            "enterprise",
            "eu-central-1",
            "own",
        ),
        (
            "enterpr-2",
            idc(json!({ "provider": "Enterprise", "apiRegion": "eu-central-1" })),
            "idc (enterprise)",
            "enterprise",
            "eu-central-1",
            "missing",
        ),
        ("external1", token(json!({ "authMethod": "okta" })), "external", "external", "us-east-1", "missing"),
        ("social-01", token(json!({ "region": "eu-west-3" })), "social", "social", "us-east-1", "service"),
        ("unsure-01", idc(json!({})), "idc", "unsure", "us-east-1", "missing"),
    ];
    let accounts = rows.clone().map(|(id, record, ..)| (id, json!({}), record));
    fill(&place, &accounts);
    let listed = place.accounts();
    let table = place.run(&["accounts", "list"]).with_code(0).out;
    assert_eq!(listed.len(), rows.len());
    for ((id, _, shown, kind, region, profile), account) in rows.iter().zip(&listed) {
        let method = shown.split(' ').next().unwrap();
        let wanted = json!([id, method, kind, region, profile]);
        let members = ["id", "method", "kind", "region", "profile"].map(|name| account[name].clone());
        assert_eq!(json!(members), wanted);
        let row = table.lines().find(|line| line.starts_with(&id[..8])).unwrap();
        assert_eq!(row.split("  ").filter(|cell| !cell.is_empty()).nth(2).map(str::trim), Some(*shown), "{row}");
    }
    assert!(!table.contains("arn:"), "the ARN is shown by no list");
}

/// Each of Kiro's hosts by its name, all of them the simulator.
fn open(place: &Place) -> [(&'static str, String); 3] {
    let port = place.upstream.addr().port();
    let host = |name: &str, path: &str| format!("http://{name}.{{region}}.localhost:{port}{path}");
    [
        ("KIRO_UPSTREAM_URL", host("q", "/generateAssistantResponse")),
        ("KIRO_RUNTIME_URL", host("runtime", "/")),
        ("KIRO_MANAGEMENT_URL", host("management", "")),
    ]
}

impl Place {
    fn run_open(&self, arguments: &[&str]) -> Said {
        let open = open(self);
        self.run_with(arguments, &open.each_ref().map(|(name, value)| (*name, value.as_str())))
    }
}

#[test]
fn check_shows_shape_search_models_and_lessons_k119_k125() {
    let place = Place::with_file();
    let id = place.add(&place.social("t.json", "a", "r", FAR));
    let check = |arguments: &[&str]| place.run_open(&[&["accounts", "check"], arguments].concat()).with_code(0);
    let all = check(&[]).out;
    assert!(all.contains("SHAPE  SEARCH  MODELS") && all.contains("q      yes     "), "{all}");
    assert!(!all.contains("Models, as"), "only for an account that is named:\n{all}");
    let one = check(&[&id[..6]]).out;
    assert!(one.contains("Shapes: q answers · runtime answers"), "{one}");
    assert!(
        one.contains("claude-opus-5.5") && one.contains("1000000") && one.contains("low medium high xhigh max"),
        "{one}"
    );
    let json = |place: &Place| {
        let said = place.run_open(&["accounts", "check", "--json"]).with_code(0).json();
        said["accounts"][0].clone()
    };
    let account = json(&place);
    assert_eq!((&account["shape"], &account["search"], &account["learned"]), (&json!("q"), &json!(true), &json!([])));
    let models = account["models"].as_array().unwrap();
    let of = |id: &str| models.iter().find(|model| model["id"] == id).unwrap();
    assert_eq!(
        (&of("claude-haiku-4.5")["window"], &of("claude-opus-5.5")["max_output"]),
        (&json!(200_000), &json!(128_000))
    );

    let refused = |call: &str| {
        json!({ "rules": [{ "when": { "call": call }, "http": { "status": 403, "type": "AccessDeniedException",
            "message": "User d-1234567890.x is not authorized to access this resource." } }] })
    };
    for (world, shape, search, words) in [
        (json!("gone-q"), json!("runtime"), json!(true), "q doesn't answer: Endpoint 410"),
        (json!("gone-runtime"), json!("q"), json!(true), "runtime doesn't answer: Endpoint 410"),
        (refused("mcp"), json!("q"), json!(false), "Web search: no: Forbidden 403"),
        (refused("models"), json!("q"), json!(true), "Models: not known, the embedded table serves: Forbidden 403"),
    ] {
        place.upstream.control().world(Value::Null).unwrap();
        place.upstream.control().world(world.clone()).unwrap();
        let account = json(&place);
        assert_eq!((&account["shape"], &account["search"]), (&shape, &search), "{world} {account}");
        assert_eq!(account["models"].is_null(), world == refused("models"), "{account}");
        let one = check(&[&id[..6]]).out;
        assert!(one.contains(words) && !one.contains("d-1234567890"), "{world}\n{one}");
    }
    let asked = place.upstream.control().stats()["requests"].clone();
    assert!(asked["POST /generateAssistantResponse"].is_null(), "no conversation is made: {asked}");
}

/// Who is suspended isn't told to be without a profile.
#[test]
fn a_suspended_account_does_not_count_as_without_profiles_k79() {
    let place = Place::with_file();
    fill(&place, &[("enterpri1", json!({}), idc(json!({ "accessToken": "sim-suspended", "provider": "Enterprise" })))]);
    let said = place.run_with(&["accounts", "check"], &[("KIRO_LOG_LEVEL", "warn")]).with_code(1);
    let all = format!("{}{}", said.out, said.err);
    assert!(all.contains("Suspended (HTTP 403") && all.contains("can't be looked up"), "{all}");
    assert!(!all.contains("administrator must add"), "{all}");
}

/// An account without a profile of its own can't mend one in its record.
#[test]
fn the_cure_of_a_missing_profile_is_the_accounts_k80() {
    let place = Place::with_file();
    fill(
        &place,
        &[
            ("api-key-1", json!({}), json!({ "kiroApiKey": "sim-acct-key.k" })),
            ("social-01", json!({}), token(json!({ "profileArn": E2 }))),
        ],
    );
    let refused = json!({ "rules": [{ "when": { "call": "usage" }, "http": { "status": 400, "type": "ValidationException",
        "message": "profileArn is required for this request." } }] });
    place.upstream.control().world(refused).unwrap();
    let said = place.run(&["accounts", "check", "--json"]).with_code(1).json();
    let cure = |n: usize| said["accounts"][n]["error"]["cure"].as_str().unwrap();
    assert!(cure(0).contains("doctor --live") && cure(1).contains("correct or remove profileArn"), "{said:#}");
}

/// What upstream answered is kept for the next call, and told.
#[test]
fn check_shows_the_lessons_of_the_answers_k125_r72() {
    let place = Place::with_file();
    fill(
        &place,
        &[
            ("builder-1", json!({}), idc(json!({ "accessToken": "sim-acct-builder.x" }))),
            ("enterpri1", json!({}), idc(json!({ "accessToken": "sim-acct-enterprise.x", "provider": "Enterprise" }))),
            ("resting-1", cooling("server error"), token(json!({}))),
        ],
    );
    let said = place.run_open(&["accounts", "check", "--json"]).with_code(0).json();
    let learned: Vec<&Value> = said["accounts"].as_array().unwrap().iter().map(|account| &account["learned"]).collect();
    assert_eq!(learned, [&json!(["an AWS Builder ID"]), &json!(["1 profile is listed"]), &Value::Null], "{said:#}");
    let resting = &said["accounts"][2];
    assert!(
        resting["ok"] == true && resting["shape"].is_null(),
        "one that rests is only asked for its usage: {resting}"
    );
    let table = place.run_open(&["accounts", "check", "builder-1"]).with_code(0).out;
    assert!(table.contains("Learned: an AWS Builder ID"), "{table}");
}

/// A record that rests for so long that the test doesn't see its end.
fn cooling(cause: &str) -> Value {
    let until = "2098-01-01T00:00:00.000Z";
    let until = if cause.starts_with("suspicious") { soon(20) } else { until.to_owned() };
    json!({ "isHealthy": false, "errorCount": 3, "lastErrorTime": soon(0),
        "lastErrorMessage": format!("cool-down until {until}: {cause}") })
}

/// So many minutes from now.
fn soon(minutes: i64) -> String {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
    at.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string()
}

#[test]
fn doctor_says_how_accounts_are_served_k108_k120_k125() {
    let place = Place::with_file();
    place.add(&place.social("t.json", "a", "r", FAR));
    let fine = place.run_open(&["doctor"]).with_code(0).out;
    for words in [
        "✓  shapes            q answers · runtime answers (us-east-1, account ",
        "✓  web search        Kiro offers it, declared as here (us-east-1, account ",
        "models listed by Kiro just now (us-east-1, account ",
    ] {
        assert!(fine.contains(words), "{words}:\n{fine}");
    }
    for (world, words, code) in [
        ("gone-q", "·  shapes            q doesn't answer: Endpoint 410", 0),
        ("2025-12", "·  shapes            q answers · runtime doesn't answer: Endpoint 404", 0),
        ("old-version-q", "✗  shapes            q refuses our client version · runtime answers", 1),
        ("gone-runtime", "·  shapes            q answers · runtime doesn't answer: Endpoint 410", 0),
        ("new-model", "of which the embedded table doesn't know claude-opus-9.9", 0),
        (
            "old-version",
            "✗  shapes            q refuses our client version · runtime refuses our client version (us-east-1",
            1,
        ),
    ] {
        place.upstream.control().world(Value::Null).unwrap();
        place.upstream.control().world(world).unwrap();
        let said = place.run_open(&["doctor"]).with_code(code).out;
        assert!(said.contains(words), "{world}:\n{said}");
    }
}

/// What Kiro says of the account that it asks as isn't passed over, and nothing more is asked then.
#[test]
fn doctor_shows_kiros_words_about_an_account() {
    let place = Place::with_file();
    for (token_name, words) in [("sim-suspended", "Suspended, status 403"), ("sim-401", "TokenRejected, status 401")] {
        fill(&place, &[("account-1", json!({}), token(json!({ "accessToken": token_name })))]);
        place.upstream.control().reset();
        let wrong = place.doctor("wrong", 1);
        let said = wrong.iter().any(|line| line.contains(words) && line.contains("accounts check` says what to do"));
        assert!(said, "{wrong:#?}");
        let shapes = &place.upstream.control().stats()["shapes"]["q"];
        assert!(shapes["mcp"].is_null() && shapes["models"].is_null(), "{shapes}");
    }
}

/// A host that nobody misses is no fault; the last one is.
#[test]
fn doctor_asks_every_host_k120() {
    let place = Place::with_file();
    place.add(&place.social("t.json", "a", "r", FAR));
    let dead = format!("http://q.us-east-1.localhost:{}", redis_server::free_port());
    let [_, runtime, management] = open(&place);
    let upstream = format!("{dead}/generateAssistantResponse");
    let some = [("KIRO_UPSTREAM_URL", &*upstream), (runtime.0, &*runtime.1), (management.0, &*management.1)];
    let said = place.run_with(&["doctor"], &some).with_code(0).out;
    assert!(said.contains(&format!("·  upstream          {dead}: ")) && said.contains("takes its place"), "{said}");
    assert!(said.contains("✓  upstream          http://management.us-east-1.localhost:"), "{said}");
    let none = [("KIRO_UPSTREAM_URL", &*upstream), ("KIRO_UPSTREAM_API", "q"), (runtime.0, &*runtime.1)];
    let said = place.run_with(&["doctor"], &none).with_code(1).out;
    assert!(said.contains(&format!("✗  upstream          {dead}: ")), "{said}");
}

/// What `doctor` learns of a profile on its way isn't written: it changes nothing.
#[test]
fn doctor_writes_no_profile_k80_k138() {
    let place = Place::with_file();
    fill(&place, &[("enterpri1", json!({}), idc(json!({ "accessToken": "sim-acct-enterprise.x" })))]);
    place.upstream.control().world("usage-needs-arn").unwrap();
    let before = pool_of(place.folder.path());
    place.run_open(&["doctor"]).with_code(0);
    assert_eq!(pool_of(place.folder.path()), before);
    place.run_open(&["accounts", "check"]).with_code(0);
    assert_ne!(pool_of(place.folder.path()), before, "a check keeps it");
}

/// R76: each line, with its cure.
#[test]
fn doctor_names_region_profile_registration_and_suspicion_r76() {
    let place = Place::with_file();
    let start = "https://d-1.awsapps.com/start";
    let enterprise = |more: Value| {
        let mut record = idc(json!({ "startUrl": start, "accessToken": "sim-acct-enterprise.x" }));
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        record
    };
    let none = || json!({});
    for (account, record, status, wanted) in [
        (
            none(),
            enterprise(json!({ "region": "ap-southeast-2" })),
            "note",
            "Kiro doesn't answer in its region ap-southeast-2 (KIRO_API_REGIONS), so us-east-1 is asked; \
             `kiro-server accounts check` looks for its profile",
        ),
        (
            none(),
            enterprise(json!({ "profileArn": BUILDER_ID_PROFILE })),
            "wrong",
            "its record holds Kiro's fixed profile of other accounts, which is never sent for it\" → \"`kiro-server \
             accounts check` looks for its own and puts that in its place",
        ),
        (
            json!({ "profileArn": BUILDER_ID_PROFILE }),
            enterprise(json!({})),
            "wrong",
            "its record holds Kiro's fixed profile of other accounts",
        ),
        (
            none(),
            enterprise(json!({ "profileArn": E2, "registrationExpiresAt": soon(5 * 24 * 60 + 60) })),
            "note",
            "its client registration ends in 5 days: sign in again before",
        ),
        (
            none(),
            token(
                json!({ "authMethod": "external_idp", "tokenEndpoint": "https://sso.example.org/t", "clientId": "c" }),
            ),
            "wrong",
            "tokenEndpoint: host sso.example.org is not allowed; add it to KIRO_EXTERNAL_IDP_HOSTS",
        ),
        (
            json!({ "KIRO_BASE_URL": "http://relay.localhost:9/hush?key=hush", "KIRO_REFRESH_URL": "http://127.0.0.1:9/hush" }),
            token(json!({ "accessToken": "sim-acct-social.x" })),
            "note",
            "KIRO_BASE_URL of its own: http://relay.localhost:9, KIRO_REFRESH_URL of its own: http://127.0.0.1:9",
        ),
        (
            json!({ "KIRO_BASE_URL": "http://us-east-1.localhost:9/" }),
            enterprise(json!({ "profileArn": E2 })),
            "wrong",
            "its profile is in eu-central-1, but its address goes to us-east-1",
        ),
    ] {
        fill(&place, &[("account-1", account, record)]);
        let report = place.run(&["doctor", "--json"]).json();
        let lines = report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == status);
        let lines: Vec<String> = lines.map(|check| format!("{} → {}", check["message"], check["cure"])).collect();
        assert!(lines.iter().any(|line| line.replace("\\", "").contains(wanted)), "{wanted}: {lines:#?}");
        assert!(!report.to_string().contains("hush"), "{report:#}");
    }
    // What is as it should be draws no such line.
    fill(
        &place,
        &[(
            "account-1",
            none(),
            enterprise(json!({ "profileArn": E2, "region": "ap-southeast-2", "idcRegion": "sa-east-1",
            "registrationExpiresAt": soon(30 * 24 * 60) })),
        )],
    );
    let lines = place.run(&["doctor"]).out;
    assert!(!["KIRO_API_REGIONS", "fixed profile", "registration"].iter().any(|word| lines.contains(word)), "{lines}");

    let suspicious = || (cooling("suspicious activity (1)"), token(json!({})));
    let [one, two] = [suspicious(), suspicious()];
    fill(&place, &[("suspect-1", one.0.clone(), one.1.clone())]);
    let alone = place.run(&["doctor"]).out;
    assert!(alone.contains("suspicious, back in") && !alone.contains("whole pool is slowed"), "{alone}");
    fill(&place, &[("suspect-1", one.0, one.1), ("suspect-2", two.0, two.1)]);
    let wrong = place.doctor("wrong", 1);
    let both = "Kiro finds the activity of 2 accounts suspicious: the whole pool is slowed down";
    assert!(wrong.iter().any(|line| line.contains(both) && line.contains("send fewer requests")), "{wrong:#?}");
}

/// R71, R76: only in a pool that a Node.js service can share.
#[test]
fn doctor_names_what_the_node_js_service_cant_serve_r76() {
    let server = RedisServer::start();
    let place = Place::with_redis(&server);
    let mut redis = server.connection();
    for (record, wanted) in [
        (json!({ "kiroApiKey": "ksk_x" }), Some("REDIS_KEY_PREFIX")),
        (
            token(json!({ "authMethod": "okta", "clientId": "c", "tokenEndpoint": "https://org.okta.com/t" })),
            Some("REDIS_KEY_PREFIX"),
        ),
        (token(json!({ "authMethod": null })), Some("write authMethod `social`")),
        (token(json!({ "authMethod": "Social" })), Some("write authMethod `social`")),
        (token(json!({})), None),
        (idc(json!({ "provider": "Enterprise", "profileArn": E2 })), None),
    ] {
        let _: () = redis.hset(POOL, "account-1", "{}").unwrap();
        let _: () = redis.set("aiclient:tokens:claude-kiro-oauth:account-1", record.to_string()).unwrap();
        let report = place.run(&["doctor", "--json"]).json();
        let lines = report["checks"].as_array().unwrap().iter().filter(|check| check["check"] == "account");
        let lines: String = lines.map(|check| format!("{} {}", check["message"], check["cure"])).collect();
        match wanted {
            Some(cure) => assert!(lines.contains("Node.js service") && lines.contains(cure), "{record}: {lines}"),
            None => assert!(!lines.contains("Node.js"), "{record}: {lines}"),
        }
    }
    let place = Place::with_file();
    fill(&place, &[("account-1", json!({}), json!({ "kiroApiKey": "ksk_x" }))]);
    assert!(!place.run(&["doctor"]).out.contains("Node.js"), "no other service reads a file");
}

fn long(token: &str) -> String {
    format!("{token}.{}", "x".repeat(120))
}

fn pool_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path.join("pool.json")).unwrap()).unwrap()
}

#[test]
fn add_takes_a_token_file_with_its_registration_r80() {
    let place = Place::with_file();
    place.write("sso/hash1.json", &json!({ "clientId": "cid", "clientSecret": "cs", "expiresAt": FAR }));
    let token = json!({
        "accessToken": "a", "refreshToken": long("r"), "expiresAt": FAR, "authMethod": "IdC",
        "clientIdHash": "hash1", "region": "eu-west-1",
    });
    let file = place.write("sso/kiro-auth-token.json", &token);
    let said = place.run(&["accounts", "add", "--from", &file, "--name", "work", "--json"]).with_code(0).json();
    assert_eq!((&said["added"], &said["method"], &said["name"]), (&json!(true), &json!("idc"), &json!("work")));
    assert_eq!(said["profile"], "found", "K64: looked up once");
    let id = said["id"].as_str().unwrap();
    let pool = pool_of(place.folder.path());
    let record = &pool["tokens"][id];
    assert_eq!((&record["clientId"], &record["clientSecret"]), (&json!("cid"), &json!("cs")));
    assert_eq!(
        (&record["idcRegion"], &record["region"]),
        (&json!("eu-west-1"), &json!("us-east-1")),
        "K79: the region of its profile"
    );
    assert!(record["profileArn"].as_str().unwrap().starts_with("arn:"), "{record}");
    assert_eq!(pool["accounts"][id]["customName"], "work");
}

#[test]
fn the_default_file_lies_in_the_home_folder_r79() {
    let place = Place::with_file();
    let said = place.run(&["accounts", "add"]).with_code(1);
    assert!(said.err.contains(".aws/sso/cache/kiro-auth-token.json: not found"), "{}", said.err);
    place.social(".aws/sso/cache/kiro-auth-token.json", "a", "r", FAR);
    place.run(&["accounts", "add", "--offline"]).with_code(0);
    assert_eq!(place.accounts().len(), 1);
}

#[test]
fn an_account_is_not_added_twice_r62() {
    let server = RedisServer::start();
    for place in [Place::with_file(), Place::with_redis(&server)] {
        let id = place.add(&place.social("t.json", "a", "r", FAR));
        let again = place.run(&["accounts", "add", "--from", &place.social("u.json", "b", "r", FAR), "--json"]);
        let again = again.with_code(1).json();
        assert_eq!(again, json!({ "added": false, "id": id, "duplicate": true }));
        assert_eq!(place.accounts().len(), 1);
    }
}

#[test]
fn a_sqlite_file_and_other_files_are_refused_with_a_reason_r86() {
    let place = Place::with_file();
    let file = place.folder.path().join("data.sqlite3");
    std::fs::write(&file, b"SQLite format 3\0\x10\0").unwrap();
    let said = place.run(&["accounts", "add", "--from", file.to_str().unwrap()]).with_code(1);
    assert!(said.err.contains("can't be read as SQLite"), "{}", said.err);
    let missing =
        place.write("m.json", &json!({ "refreshToken": long("r"), "authMethod": "IdC", "clientIdHash": "no" }));
    let said = place.run(&["accounts", "add", "--from", &missing]).with_code(1);
    assert!(said.err.contains("no.json is missing; log in again in Kiro"), "{}", said.err);
    let other = place.write("o.json", &json!({ "x": 1 }));
    place.run(&["accounts", "add", "--from", &other]).with_code(1);
    // What it would add could never serve.
    for (file, why) in [
        (json!({ "accessToken": 5 }), "holds no token"),
        (json!({ "accessToken": "", "refreshToken": ["r"] }), "holds no token"),
        (json!({ "refreshToken": long("r"), "region": "../x" }), "no region's name"),
        (json!({ "refreshToken": long("r"), "pad": "x".repeat(2 << 20) }), "longer than 1048576 bytes"),
    ] {
        let said = place.run(&["accounts", "add", "--from", &place.write("n.json", &file)]).with_code(1);
        assert!(said.err.contains(why) && said.err.contains("n.json"), "{}", said.err);
    }
    assert_eq!(place.accounts(), Vec::<Value>::new());
}

#[test]
fn check_renews_an_expired_token_and_shows_a_bar_k62() {
    let server = RedisServer::start();
    for place in [Place::with_file(), Place::with_redis(&server)] {
        let id = place.add(&place.social("t.json", "old", "r", PAST));
        let said = place.run(&["accounts", "check"]).with_code(0);
        assert!(said.out.contains("140.75 of 1550  ██░░"), "{}", said.out);
        assert!(said.out.contains("token renewed") && said.out.contains(&id[..8]), "{}", said.out);
        let account = &place.run(&["accounts", "check", &id[..6], "--json"]).with_code(0).json()["accounts"][0];
        assert_eq!((&account["used"], &account["limit"]), (&json!(140.75), &json!(1550.0)));
        assert_eq!(account["token_renewed"], false, "the renewed token was saved: {account}");
        assert_eq!(account["id"], id[..8]);
        let refreshes = place.upstream.control().stats()["refresh_calls"][long("r")].clone();
        assert_eq!(refreshes, 1);
        assert_eq!(place.accounts()[0]["uses"], 0, "asking is no use of the account");
    }
}

#[test]
fn check_ejects_only_what_is_suspended_or_rejected_k62() {
    let place = Place::with_file();
    for (name, access, refresh, expires_at) in [
        ("suspended", "sim-suspended", "r1", FAR),
        ("dead", "a", "sim-refresh-dead", PAST),
        ("down", "a2", "sim-refresh-500", PAST),
        ("fine", "a3", "r4", FAR),
    ] {
        let file = place.social(&format!("{name}.json"), access, refresh, expires_at);
        place.run(&["accounts", "add", "--offline", "--from", &file, "--name", name]).with_code(0);
    }
    let checked = place.run(&["accounts", "check", "--json"]).with_code(1).json();
    let listed = place.accounts();
    for (name, ok, state) in [
        ("suspended", false, "ejected"),
        ("dead", false, "ejected"),
        ("down", false, "healthy"),
        ("fine", true, "healthy"),
    ] {
        let of = |list: &[Value]| list.iter().find(|account| account["name"] == name).unwrap().clone();
        let check = of(checked["accounts"].as_array().unwrap());
        assert_eq!(check["ok"], ok, "{check}");
        assert_eq!(check["error"].is_null(), ok, "{check}");
        assert_eq!(of(&listed)["state"], state, "{name}");
    }
}

#[test]
fn disable_enable_and_remove_go_by_a_unique_prefix() {
    let server = RedisServer::start();
    for place in [Place::with_file(), Place::with_redis(&server)] {
        let id = place.add(&place.social("t.json", "a", "r", FAR));
        place.run(&["accounts", "disable", &id[..3]]).with_code(2);
        place.run(&["accounts", "disable", "nobody"]).with_code(1);
        let said = place.run(&["accounts", "disable", &id[..4], "--json"]).with_code(0).json();
        assert_eq!(said, json!({ "id": &id[..8], "was": "healthy", "state": "disabled" }));
        assert_eq!(place.accounts()[0]["state"], "disabled");
        place.run(&["accounts", "enable", &id]).with_code(0);
        assert_eq!(place.accounts()[0]["state"], "healthy");
        let said = place.run(&["accounts", "remove", &id[..8], "--json"]).with_code(0).json();
        assert_eq!(said, json!({ "id": &id[..8], "removed": true, "came_back": false }));
        assert_eq!(place.accounts(), Vec::<Value>::new());
    }
    let left: Vec<String> = server.connection().keys("*").unwrap();
    assert_eq!(left, ["aiclient:pool-types"], "token and index went with the account");
}

#[test]
fn an_ambiguous_prefix_changes_nothing() {
    let server = RedisServer::start();
    let place = Place::with_redis(&server);
    for id in ["abcd1111", "abcd2222"] {
        let _: () = server.connection().hset(POOL, id, "{}").unwrap();
    }
    let said = place.run(&["accounts", "remove", "abcd"]).with_code(1);
    assert!(said.err.contains("2 accounts begin with that"), "{}", said.err);
    assert_eq!(place.accounts().len(), 2);
}

#[test]
fn enable_lifts_a_mark_r15() {
    let server = RedisServer::start();
    let place = Place::with_redis(&server);
    let id = place.add(&place.social("t.json", "a", "r", FAR));
    let ejected = json!({
        "uuid": id, "isHealthy": false, "errorCount": 10, "lastErrorTime": PAST, "lastErrorMessage": "ejected: suspended", "x": [],
    });
    let _: () = server.connection().hset(POOL, &id, ejected.to_string()).unwrap();
    let said = place.run(&["accounts", "enable", &id, "--json"]).with_code(0).json();
    assert_eq!((&said["was"], &said["state"]), (&json!("ejected"), &json!("healthy")));
    let record: String = server.connection().hget(POOL, &id).unwrap();
    assert!(record.contains(r#""x":[]"#), "unknown members stay: {record}");
}

#[test]
fn remove_says_when_the_account_came_back() {
    let server = RedisServer::start();
    let place = Place::with_redis(&server);
    let id = place.add(&place.social("t.json", "a", "r", FAR));
    let mut redis = server.connection();
    let record: String = redis.hget(POOL, &id).unwrap();
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            while redis.hexists::<_, _, bool>(POOL, &id).unwrap() {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _: () = redis.hset(POOL, &id, &record).unwrap();
        });
        place.run(&["accounts", "remove", &id])
    });
    assert!(said.with_code(1).out.contains("came back: a Node.js service has it in memory"));
}

#[test]
fn a_token_file_as_store_is_listed_and_checked_but_not_changed_r67() {
    let mut place = Place::with_file();
    let file = place.social("kiro.json", "a", "r", FAR);
    let before = std::fs::read(&file).unwrap();
    place.store.1 = format!("file:{file}");
    let id = place.accounts()[0]["id"].as_str().unwrap().to_owned();
    place.run(&["accounts", "check", &id]).with_code(0);
    for action in ["disable", "enable", "remove"] {
        let said = place.run(&["accounts", action, &id]).with_code(1);
        assert!(said.err.contains("is a token file of Kiro and stands for one account"), "{}", said.err);
    }
    let other = place.social("other.json", "b", "r2", FAR);
    place.run(&["accounts", "add", "--from", &other]).with_code(1);
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn commands_take_no_tickets_and_leave_others_alone() {
    let server = RedisServer::start();
    let place = Place::with_redis(&server);
    place.add(&place.social("a.json", "a", "r1", PAST));
    let second = place.add(&place.social("b.json", "b", "r2", PAST));
    for arguments in [vec!["accounts", "list"], vec!["accounts", "check", &second], vec!["doctor"]] {
        place.run(&arguments).with_code(0);
    }
    assert!(!server.connection().exists::<_, bool>("aiclient:kiro:round-robin-counter").unwrap());
    let calls = place.upstream.control().stats()["refresh_calls"].clone();
    assert_eq!(calls, json!({ long("r2"): 1 }), "only the account that was named is renewed");
}

#[test]
fn doctor_is_content_with_a_good_store() {
    let server = RedisServer::start();
    for place in [Place::with_file(), Place::with_redis(&server)] {
        place.add(&place.social("t.json", "a", "r", FAR));
        assert_eq!(place.doctor("wrong", 0), Vec::<String>::new());
        assert!(place.run(&["doctor"]).with_code(0).out.ends_with("All is fine.\n"));
    }
}

/// The default is below no floor and taken; an old one fails twice, by its number and by Kiro's answer, each with the cure.
#[test]
fn doctor_looks_into_the_state_folder_r51() {
    let place = Place::with_file();
    place.add(&place.social("one.json", "sim-ok.1", "r", FAR));
    let doctor = |state: &str, code| {
        let said = place.run_with(&["doctor"], &[("KIRO_STATE_DIR", state)]).with_code(code).out;
        said.lines().filter(|line| line.contains("state folder")).map(str::to_owned).collect::<Vec<_>>()
    };
    let unset = place.run(&["doctor"]).with_code(0).out;
    assert!(unset.contains("KIRO_STATE_DIR is not set: a renewed token that can't be saved is lost"), "{unset}");
    let state = place.folder.path().join("state");
    let folder = state.to_str().unwrap();
    let empty = doctor(folder, 0);
    assert!(empty[0].starts_with('✓') && empty[0].ends_with("can be written, no token waits there"), "{empty:?}");
    assert!(!state.exists(), "it changes nothing");

    let pool = unset.lines().find_map(|line| line.strip_prefix("✓  pool ")?.split_once(": 1 accounts")).unwrap();
    let name = pool.0.trim();
    let id = place.accounts()[0]["id"].as_str().unwrap().to_owned();
    let kept = |store: &str| {
        let token = json!({ "accessToken": "a", "refreshToken": "next", "expiresAt": FAR });
        json!({ "store": store, "account": id, "key": id, "replaces": [], "token": token })
    };
    place.write("state/1.token.json", &kept(name));
    place.write("state/2.token.json", &kept("another"));
    let waiting = doctor(folder, 0);
    let own = format!("1 token waits ({}), which a server with these settings saves", &id[..8]);
    assert!(waiting[0].contains(&own) && waiting[0].contains("1 token waits of other stores"), "{waiting:?}");
    place.write("state/3.token.json", &json!([]));
    let broken = doctor(folder, 1);
    assert!(broken[0].contains("3.token.json: no JSON object → remove the file"), "{broken:?}");
    assert!(broken[1].contains(&own), "{broken:?}");
    assert!(["1", "2", "3"].iter().all(|name| state.join(format!("{name}.token.json")).exists()), "it renews nothing");

    let file = place.write("file", &json!({}));
    let refused = doctor(&file, 1);
    assert!(refused[0].starts_with('✗') && refused[0].contains("can't be written: "), "{refused:?}");
    assert!(refused[0].contains("→ make KIRO_STATE_DIR a folder that this user may write"), "{refused:?}");
}

#[test]
fn doctor_asks_whether_kiro_takes_the_client_version_a185_k108() {
    let place = Place::with_file();
    place.add(&place.social("t.json", "a", "r", FAR));
    let fine = place.run(&["doctor"]).with_code(0).out;
    assert!(fine.contains("is taken in us-east-1"), "{fine}");
    let old = place.run_with(&["doctor"], &[("KIRO_CLIENT_VERSION", "0.8.140")]).with_code(1).out;
    assert!(old.contains("0.8.140 is refused by Kiro since 2026-11-09"), "{old}");
    assert!(
        old.contains("0.8.140 is refused by usage in us-east-1") && old.contains("set KIRO_CLIENT_VERSION="),
        "{old}"
    );
}

#[test]
fn doctor_names_what_is_wrong_with_each_account() {
    let server = RedisServer::start();
    let place = Place::with_redis(&server);
    let mut redis = server.connection();
    let far = |more: Value| {
        let mut token =
            json!({ "accessToken": "a", "refreshToken": long("r"), "expiresAt": FAR, "authMethod": "social" });
        token.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Some(token)
    };
    for (id, account, token, wanted) in [
        ("short-01", json!({}), far(json!({ "refreshToken": "cut" })), "has only 3 characters: a truncated paste"),
        ("dots-001", json!({}), far(json!({ "refreshToken": long("ab...cd") })), "holds `...`: a truncated paste"),
        ("region-1", json!({}), far(json!({ "region": "Mars!" })), "region: not a region's name"),
        ("creds-01", json!({ "KIRO_OAUTH_CREDS_FILE_PATH": "/x" }), None, "KIRO_OAUTH_CREDS_*"),
        ("naked-01", json!({}), None, "it has no token record"),
        ("ended-01", json!({}), far(json!({ "refreshToken": null, "expiresAt": PAST })), "there is no refresh token"),
        ("idc-0001", json!({}), far(json!({ "authMethod": "IdC" })), "no client registration"),
        (
            "idc-0002",
            json!({}),
            // Digits in a string are a time too (R12).
            far(
                json!({ "authMethod": "IdC", "clientId": "c", "clientSecret": "s", "registrationExpiresAt": "1577836800000" }),
            ),
            "its client registration expired",
        ),
        (
            "eject-01",
            json!({ "isHealthy": false, "lastErrorMessage": "ejected: Suspended" }),
            far(json!({})),
            "ejected: Suspended\" → \"ask Kiro's support",
        ),
        ("plain-01", json!({ "KIRO_BASE_URL": "http://example.org" }), far(json!({})), "KIRO_BASE_URL is ignored"),
    ] {
        let _: () = redis.del(POOL).unwrap();
        let _: () = redis.hset(POOL, id, account.to_string()).unwrap();
        if let Some(token) = token {
            let _: () = redis.set(format!("aiclient:tokens:claude-kiro-oauth:{id}"), token.to_string()).unwrap();
        }
        let wrong = place.doctor("wrong", 1);
        assert!(wrong.iter().any(|line| line.contains(wanted) && !line.ends_with("null")), "{id}: {wrong:#?}");
    }
}

#[test]
fn doctor_names_the_pool_under_the_default_prefix_and_pool_types_r1() {
    let server = RedisServer::start();
    let place = Place::with_redis(&server);
    place.add(&place.social("t.json", "a", "r", FAR));
    let report = place.run_with(&["doctor"], &[("REDIS_KEY_PREFIX", "other:")]).with_code(1);
    assert!(report.out.contains("is empty, but aiclient:pools:claude-kiro-oauth exists"), "{}", report.out);
    let mut redis = server.connection();
    let _: () = redis.srem("aiclient:pool-types", "claude-kiro-oauth").unwrap();
    let _: () = redis.sadd("aiclient:pool-types", "gemini-cli-oauth").unwrap();
    let wrong = place.doctor("wrong", 1);
    assert!(wrong[0].contains("pool-types lacks claude-kiro-oauth"), "{wrong:?}");
}

#[test]
fn doctor_names_missing_rights_r3() {
    let server = RedisServer::start();
    let mut place = Place::with_redis(&server);
    place.add(&place.social("t.json", "a", "r", FAR));
    let all = "~aiclient:* on >pw +hgetall +hget +hset +get +set +del +evalsha +eval +script|load +hello +select +ping +client +sismember";
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("kiro");
    all.split(' ').for_each(|rule| {
        user.arg(rule);
    });
    user.exec(&mut server.connection()).unwrap();
    place.store.1 = server.url().replace("redis://", "redis://kiro:pw@");
    let wrong = place.doctor("wrong", 1);
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].contains("not allowed: INCRBY aiclient:kiro:round-robin-counter"), "{wrong:#?}");
    let notes = place.doctor("note", 1);
    assert!(notes.iter().any(|note| note.contains("HSETNX") && note.contains("SADD")), "{notes:#?}");
}

#[test]
fn doctor_names_a_missing_store_or_upstream() {
    let mut place = Place::with_file();
    place.store = ("REDIS_URL", format!("redis://user:hush@127.0.0.1:{}", redis_server::free_port()));
    let dead = format!("http://127.0.0.1:{}/", redis_server::free_port());
    let said = place.run_with(&["doctor"], &[("KIRO_UPSTREAM_URL", &dead), ("KIRO_HOST", "0.0.0.0")]).with_code(1);
    assert!(said.out.contains("✗  store") && said.out.contains("connection refused"), "{}", said.out);
    assert!(said.out.contains(&format!("✗  upstream        {}", dead.trim_end_matches('/'))), "{}", said.out);
    assert!(!said.out.contains("hush") && !said.err.contains("hush"));
    let said = place.run(&["accounts", "list"]).with_code(1);
    assert!(said.err.contains("connection refused") && !said.err.contains("hush"), "{}", said.err);
}

#[test]
fn doctor_looks_at_the_key_the_models_and_the_files_mode() {
    let place = Place::with_file();
    place.add(&place.social("t.json", "a", "r", FAR));
    let open = place.run_with(&["doctor"], &[("KIRO_HOST", "0.0.0.0")]).with_code(1);
    assert!(open.out.contains("✗  client key"), "{}", open.out);
    place.run_with(&["doctor"], &[("KIRO_HOST", "0.0.0.0"), ("KIRO_API_KEY", "k")]).with_code(0);
    let models = place.write("models.json", &json!({ "no": "table" }));
    let said = place.run_with(&["doctor"], &[("KIRO_MODELS_FILE", &models)]).with_code(1);
    assert!(said.out.contains("✗  models"), "{}", said.out);
    #[cfg(unix)]
    {
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
        std::fs::set_permissions(place.folder.path().join("pool.json"), mode).unwrap();
        assert!(place.doctor("wrong", 1)[0].contains("can be read by others"));
    }
}

/// Runs a command that can write nothing but empty files, as on a full disk.
#[cfg(target_os = "linux")]
fn on_a_full_disk(place: &Place, arguments: &[&str], environment: &[(&str, &str)]) -> Said {
    let url = place.upstream.url();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_kiro-server")])
        .args(arguments)
        .env_clear()
        .env(place.store.0, &place.store.1)
        .env("KIRO_UPSTREAM_URL", format!("{url}/generateAssistantResponse"))
        .env("KIRO_SOCIAL_REFRESH_URL", format!("{url}/refreshToken"))
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A full disk takes an empty file, and loses a login.
#[cfg(target_os = "linux")]
#[test]
fn on_a_full_disk_no_token_is_spent_and_doctor_says_so_r66() {
    let place = Place::with_file();
    let id = place.add(&place.social("t.json", "sim-ok.a", "sim-keep.a", PAST));
    let said = on_a_full_disk(&place, &["accounts", "check", "--refresh", &id], &[]);
    assert_eq!(place.upstream.control().stats()["refreshed"], json!([]), "{}{}", said.out, said.err);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    let state = place.folder.path().join("state").display().to_string();
    let said = on_a_full_disk(&place, &["doctor"], &[("KIRO_STATE_DIR", &state)]).with_code(1);
    assert!(said.out.contains("✗  store") && said.out.contains("no file can be written in"), "{}", said.out);
    assert!(said.out.contains("✗  state folder") && said.out.contains("✓  pool"), "{}", said.out);
    let mut left = std::fs::read_dir(place.folder.path()).unwrap().flatten();
    assert!(!left.any(|entry| entry.file_name().to_string_lossy().contains("doctor")));
    place.run(&["accounts", "check", "--refresh", &id]).with_code(0);
}

/// At night, while the store takes no writes.
#[cfg(unix)]
#[test]
fn doctor_reports_and_writes_nothing_while_tokens_wait_r51() {
    let place = Place::with_file();
    let id = place.add(&place.social("t.json", "sim-ok.a", "r", PAST));
    let state = place.folder.path().join("state");
    let kept = || {
        let files = std::fs::read_dir(&state).unwrap().flatten();
        files.filter(|file| file.file_name().to_string_lossy().ends_with(".token.json")).count()
    };
    let with_state = [("KIRO_STATE_DIR", state.to_str().unwrap())];
    let lock = std::fs::File::open(place.folder.path().join("pool.json.lock")).unwrap();
    lock.lock().unwrap();
    place.run_with(&["accounts", "check", "--refresh", &id], &with_state);
    assert_eq!(kept(), 1);
    let said = place.run_with(&["doctor"], &with_state);
    assert!(said.out.contains("✓  store") && said.out.contains("1 token waits ("), "{}{}", said.out, said.err);
    drop(lock);
    let before = std::fs::read(place.folder.path().join("pool.json")).unwrap();
    place.run_with(&["doctor"], &with_state).with_code(0);
    assert_eq!((std::fs::read(place.folder.path().join("pool.json")).unwrap(), kept()), (before, 1));
}

#[test]
fn doctor_names_a_place_for_the_store_that_is_none() {
    let mut place = Place::with_file();
    place.add(&place.social("t.json", "a", "r", FAR));
    let folder = place.folder.path().display().to_string();
    for path in [&*folder, &format!("{folder}/pool.json/pool.json"), "/proc/none/pool.json"] {
        place.store.1 = format!("file:{path}");
        let wrong = place.doctor("wrong", 1);
        let says = |line: &String| {
            ["can be written in", "is a folder", "not a directory"].iter().any(|words| line.contains(words))
        };
        assert!(wrong.iter().any(says), "{wrong:#?}");
    }
}

/// Case 48: what commands print.
#[test]
fn no_token_and_no_whole_id_is_printed_case_48() {
    let place = Place::with_file();
    let secrets = ["hush-access", "hush-refresh"];
    let file = place.social("t.json", secrets[0], secrets[1], FAR);
    let said = place.run(&["accounts", "add", "--from", &file, "--offline"]).with_code(0);
    let id = place.accounts()[0]["id"].as_str().unwrap().to_owned();
    let mut all = format!("{}{}", said.out, said.err);
    for arguments in [
        vec!["accounts", "list"],
        vec!["accounts", "check"],
        vec!["accounts", "check", "--json", "--refresh"],
        vec!["accounts", "disable", &id],
        vec!["accounts", "enable", &id, "--json"],
        vec!["doctor"],
        vec!["doctor", "--json"],
        vec!["accounts", "remove", &id],
    ] {
        let said = place.run_with(&arguments, &[("KIRO_LOG_LEVEL", "debug")]);
        all.push_str(&said.out);
        all.push_str(&said.err);
    }
    assert!(all.contains(&id[..8]));
    for secret in [secrets[0], secrets[1], &id] {
        assert!(!all.contains(secret), "{secret} in\n{all}");
    }
}

#[test]
fn an_empty_pool_of_the_service_is_filled_there_r56_r104() {
    let place = Place::with_file();
    let file = place.folder.path().join("provider_pools.json");
    std::fs::write(&file, r#"{"claude-kiro-oauth":[]}"#).unwrap();
    let store = format!("aiclient:{}", file.display());
    for (arguments, code) in [(["accounts", "list"], 0), (["accounts", "check"], 1), (["doctor", "--json"], 1)] {
        let said = place.run_with(&arguments, &[("KIRO_STORE", &store)]).with_code(code);
        let all = said.out + &said.err;
        assert!(
            all.contains("add one in the Node.js service") && !all.contains("accounts add"),
            "{arguments:?}: {all}"
        );
        assert!(all.contains("provider_pools.json"), "{all}");
    }
}

#[test]
fn flags_stand_before_or_behind_a_subcommand() {
    let place = Place::with_file();
    let other = format!("file:{}", place.folder.path().join("other.json").display());
    for arguments in [vec!["--store", &other, "accounts", "list"], vec!["accounts", "list", "--store", &other]] {
        let said = place.run(&arguments).with_code(0);
        assert!(said.out.contains("no accounts in") && said.out.contains("other.json"), "{}", said.out);
    }
    place.run(&["accounts"]).with_code(2);
    let said = place.run_with(&["doctor"], &[("KIRO_PORT", "many")]).with_code(2);
    assert!(said.err.contains("KIRO_PORT"), "{}", said.err);
}

#[test]
fn the_simulator_needs_nothing() {
    let place = Place::with_file();
    let command = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kiro-server")).args(arguments).env_clear().output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    drop(place);
    let (code, out) = command(&["accounts", "check", "--upstream", "simulator"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("simulated"), "{out}");
    let (code, out) = command(&["doctor", "--upstream", "simulator"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("every answer is made up"), "{out}");
}

#[test]
fn health_asks_the_server_that_the_settings_name() {
    struct Served(std::process::Child);
    impl Drop for Served {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
    let place = Place::with_file();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let serve = |port: &str, tls: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.env_clear().env(place.store.0, &place.store.1).env("KIRO_LOG_LEVEL", "off").envs(tls.iter().copied());
        Served(command.args(["--port", port]).spawn().unwrap())
    };
    let port = free();
    let ask = |arguments: &[&str]| place.run_with(&[&["health"], arguments].concat(), &[("KIRO_PORT", &port)]);
    let until = |code: i32, ask: &dyn Fn() -> Said| {
        let begun = std::time::Instant::now();
        loop {
            let said = ask();
            if (said.code == code && !said.out.is_empty()) || begun.elapsed() > Duration::from_secs(20) {
                return said.with_code(code);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let alone = ask(&[]).with_code(1);
    assert!(alone.err.contains(&format!("http://127.0.0.1:{port}/health")), "{}", alone.err);

    let _server = serve(&port, &[]);
    let said = until(1, &|| ask(&[]));
    assert_eq!(said.out, "degraded, can't serve: store connected, 0 of 0 accounts in service\n");
    place.add(&place.social("token.json", "access", "refresh", FAR));
    assert_eq!(until(0, &|| ask(&[])).out, "healthy: store connected, 1 of 1 accounts in service\n");
    assert_eq!(ask(&["--json"]).with_code(0).json()["status"], "healthy");
    // Listening everywhere, asked on loopback; and by address.
    ask(&["--host", "0.0.0.0"]).with_code(0);
    ask(&["--url", &format!("http://127.0.0.1:{port}/")]).with_code(0);
    let said = ask(&["--port", "0"]).with_code(2);
    assert!(said.err.contains("--url"), "{}", said.err);
    let said = ask(&["--url", "localhost"]).with_code(2);
    assert!(said.err.contains("such as http://127.0.0.1:8081"), "{}", said.err);

    // With TLS its certificate is for another name, and who is asked for by address must show the right one.
    let made = rcgen::generate_simple_self_signed(["example.org".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = place.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (file("cert.pem", made.cert.pem()), file("key.pem", made.signing_key.serialize_pem()));
    let port = free();
    let tls = [("KIRO_TLS_CERT", cert.as_str()), ("KIRO_TLS_KEY", key.as_str()), ("KIRO_PORT", port.as_str())];
    let _server = serve(&port, &tls);
    until(0, &|| place.run_with(&["health"], &tls));
    let said = place.run_with(&["health", "--url", &format!("https://127.0.0.1:{port}")], &[]).with_code(1);
    assert!(said.err.contains("certificate"), "{}", said.err);
}
