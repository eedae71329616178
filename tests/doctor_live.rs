//! `kiro-server doctor --live` (K138–K141): in today's world all is as expected; in each world that differs exactly the
//! check that is about it says so (D22); and neither output nor report holds what went in (D23).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::process::Command;
use std::sync::Mutex;

use kiro_messages::simulator::{Running, Simulator};
use serde_json::{Value, json};
use tempfile::TempDir;

const FAR: &str = "2099-01-01T00:00:00.000Z";
const ACCOUNT: &str = "3988b973-63a3-4a5d-8b4e-0c6f1f1a2b3c";
const SECOND: &str = "8cd648cb-0b5e-4d0a-9e57-6a1d2f3b4c5d";
/// One that the simulated Kiro takes.
const SIMULATED: &str = "arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED";
/// One that names somebody.
const ARN: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/SECRETPROFILE";
const TOKEN: &str = "access-token-that-nobody-may-see";
const REFRESH: &str = "refresh-token-that-nobody-may-see";

struct Place {
    folder: TempDir,
    upstream: Running,
    _runtime: tokio::runtime::Runtime,
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Place {
    /// One account in a file, in front of a Kiro of this world.
    fn new(world: &Value, token: &str, arn: Option<&str>) -> Self {
        Self::with(world, &[(ACCOUNT, token)], arn)
    }

    /// Two accounts with these tokens.
    fn of_two(world: &Value, tokens: [&str; 2]) -> Self {
        Self::with(world, &[(ACCOUNT, tokens[0]), (SECOND, tokens[1])], Some(SIMULATED))
    }

    fn with(world: &Value, accounts: &[(&str, &str)], arn: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let simulator = if world.is_null() { simulator } else { simulator.world(world.clone()).unwrap() };
        let upstream = simulator.spawn().unwrap();
        drop(entered);
        let folder = tempfile::tempdir().unwrap();
        let mut pool = json!({ "accounts": {}, "tokens": {} });
        for (id, token) in accounts {
            let mut record = json!({
                "accessToken": token, "refreshToken": REFRESH, "expiresAt": FAR, "authMethod": "social",
            });
            if let Some(arn) = arn {
                record["profileArn"] = json!(arn);
            }
            pool["accounts"][id] = json!({ "uuid": id, "isHealthy": true });
            pool["tokens"][id] = record;
        }
        let path = folder.path().join("pool.json");
        std::fs::write(&path, pool.to_string()).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self { folder, upstream, _runtime: runtime }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Said {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Said {
        let port = self.upstream.addr().port();
        let output = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
            .args(["doctor", "--live"])
            .args(arguments)
            .env_clear()
            .env("HOME", self.folder.path())
            .env("KIRO_STORE", format!("file:{}", self.file("pool.json")))
            .env("KIRO_UPSTREAM_URL", format!("http://q.{{region}}.localhost:{port}/generateAssistantResponse"))
            .env("KIRO_RUNTIME_URL", format!("http://runtime.{{region}}.localhost:{port}/"))
            .env("KIRO_MANAGEMENT_URL", format!("http://management.{{region}}.localhost:{port}"))
            .env("KIRO_SOCIAL_REFRESH_URL", format!("http://127.0.0.1:{port}/refreshToken"))
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        self.json_with(arguments, &[])
    }

    fn json_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, Value) {
        let said = self.run_with(&[arguments, &["--yes", "--json"]].concat(), environment);
        let json = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}:\n{}{}", said.out, said.err));
        (said.code, json)
    }
}

/// The checks whose verdict is neither ok nor that nothing was learnt, each with it.
fn found(report: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (word(&line["check"]), word(&line["verdict"])))
        .filter(|(_, verdict)| !matches!(verdict.as_str(), "ok" | "not run"))
        .collect()
}

#[test]
fn todays_world_is_as_expected_d22_k139() {
    let place = Place::new(&Value::Null, TOKEN, Some(SIMULATED));
    let before = std::fs::read(place.file("pool.json")).unwrap();
    let (code, report) = place.json(&[]);
    let lines = report["checks"].as_array().unwrap();
    assert!(lines.iter().all(|line| line["verdict"] == "ok"), "{report:#}");
    assert_eq!((code, lines.len(), &report["ok"]), (0, 19, &json!(true)));
    let requests = report["requests"].as_u64().unwrap();
    assert!((18..=36).contains(&requests), "{requests}: a second account takes up to four more");
    assert_eq!(std::fs::read(place.file("pool.json")).unwrap(), before, "K138: no record is touched");

    let text = place.run(&["--yes", "--only", "shapes, usage,limits"]);
    assert_eq!(text.code, 0, "{}{}", text.out, text.err);
    assert!(text.out.contains("✓ shapes") && text.out.contains("✓ limits") && text.out.contains("requests were made"));
    assert!(text.err.contains("at most 40 requests, up to 8 of them as large as they can be"), "{}", text.err);
    let small = place.run(&["--yes", "--only", "usage"]);
    assert!(small.err.contains("at most 40 small requests"), "{}", small.err);
}

/// Each preset world, and the one check that finds it.
#[test]
fn each_world_that_differs_is_found_d22_k141() {
    let worlds: Vec<(Value, &str, &str)> = [
        ("old-version", "version", "wrong"),
        ("old-version-q", "version", "differs"),
        ("old-version-runtime", "version", "differs"),
        ("old-version-usage", "version", "differs"),
        ("any-version", "gate", "differs"),
        ("any-client", "gate", "differs"),
        ("gone-q", "shapes", "differs"),
        ("gone-runtime", "shapes", "differs"),
        ("deprecated-q", "shapes", "differs"),
        ("wrong-app", "shapes", "differs"),
        ("no-continuation", "runtime-members", "differs"),
        ("no-silent-fields", "runtime-members", "differs"),
        ("usage-without-arn", "usage", "differs"),
        ("usage-needs-arn", "usage", "differs"),
        ("free-tier", "catalogue", "differs"),
        ("new-model", "catalogue", "differs"),
        ("other-windows", "catalogue", "differs"),
        ("no-schemas", "catalogue", "differs"),
        ("no-thinking", "reasoning", "differs"),
        ("no-signature", "reasoning", "differs"),
        ("signature-only", "reasoning", "differs"),
        ("segments", "reasoning", "differs"),
        ("no-fields", "effort", "differs"),
        ("fields-strict", "effort", "differs"),
        ("no-xhigh", "effort", "differs"),
        ("no-max-tokens", "max-tokens", "differs"),
        ("plain-schemas", "tool-schemas", "differs"),
        ("no-result-images", "result-image", "wrong"),
        ("no-documents", "document", "wrong"),
        ("no-cache-points", "cache-point", "differs"),
        ("no-discount", "credits", "differs"),
        ("signature-bound", "replay", "differs"),
        ("no-replay", "replay", "differs"),
        ("search-down", "search", "differs"),
        ("no-end-events", "end-order", "differs"),
        ("other-end-order", "end-order", "differs"),
        ("usage-window", "percentage", "differs"),
    ]
    .map(|(world, check, verdict)| (json!(world), check, verdict))
    .into();
    let wrong = Mutex::new(Vec::new());
    let left = Mutex::new(worlds);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let Some((world, check, verdict)) = left.lock().unwrap().pop() else { return };
                    let (code, report) = Place::new(&world, TOKEN, Some(SIMULATED)).json(&[]);
                    let wanted = vec![(check.to_owned(), verdict.to_owned())];
                    if found(&report) != wanted || code != i32::from(verdict == "wrong") {
                        let seen: Vec<String> = report["checks"]
                            .as_array()
                            .unwrap()
                            .iter()
                            .filter(|line| line["verdict"] != "ok")
                            .map(|line| format!("{} {}: {}", line["check"], line["verdict"], line["seen"]))
                            .collect();
                        wrong.lock().unwrap().push(format!("{world} → {code} {}", seen.join("\n    ")));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The limits run only when they are named.
#[test]
fn small_limits_are_found_d22_k139() {
    for (world, words) in [("small-bodies", "body of 135"), ("small-pictures", "picture of 250000 passes")] {
        let (code, report) = Place::new(&json!(world), TOKEN, Some(SIMULATED)).json(&["--only", "limits"]);
        assert_eq!(found(&report), [("limits".to_owned(), "differs".to_owned())], "{report:#}");
        assert_eq!(code, 0);
        assert!(report["checks"][0]["seen"].as_str().unwrap().contains(words), "{report:#}");
        assert!(report["requests"].as_u64().unwrap() <= 10, "{report:#}");
    }
}

/// The limit that was reported is shown; nothing rests on it.
#[test]
fn the_reported_limit_of_bodies_is_asked_on_both_sides_d22_k139() {
    for (world, words) in
        [(Value::Null, "body of 1086459 passes too"), (json!("body-limit"), "body of 1086459 is refused")]
    {
        let (code, report) = Place::new(&world, TOKEN, Some(SIMULATED)).json(&["--only", "limits"]);
        let seen = report["checks"][0]["seen"].as_str().unwrap();
        assert!(code == 0 && found(&report).is_empty(), "{report:#}");
        assert!(seen.contains("body of 1085435 passes") && seen.contains(words), "{seen}");
    }
}

/// Counts that fit the table's window are as expected.
#[test]
fn counts_that_fit_are_as_expected_d22_k139() {
    let (code, report) = Place::new(&json!("token-usage"), TOKEN, Some(SIMULATED)).json(&["--only", "percentage"]);
    assert_eq!((code, found(&report)), (0, Vec::new()));
    assert!(report["checks"][0]["seen"].as_str().unwrap().contains("the table has 200000"), "{report:#}");
}

/// Only a second account shows what is bound to the first one: its signed thoughts, and the discount of its cache.
#[test]
fn a_second_account_finds_what_is_bound_to_the_first_d22_k141() {
    let two = |world: Value, tokens, only: &[&str]| {
        let place = Place::of_two(&world, tokens);
        let before = std::fs::read(place.file("pool.json")).unwrap();
        let said = place.json(&[&["--account", ACCOUNT, "--second", &SECOND[..4]], only].concat());
        assert_eq!(std::fs::read(place.file("pool.json")).unwrap(), before, "K138: no record is touched");
        said
    };
    let seen = |report: &Value, check: &str| {
        let line = report["checks"].as_array().unwrap().iter().find(|line| line["check"] == check).unwrap();
        line["seen"].as_str().unwrap().to_owned()
    };
    let (code, report) = two(Value::Null, [TOKEN, "another"], &[]);
    assert_eq!((code, found(&report), &report["second_account"]), (0, Vec::new(), &json!(true)), "{report:#}");
    assert!(report["requests"].as_u64().unwrap() <= 40, "{report:#}");
    assert!(seen(&report, "replay").contains("on another account: ThinkingSignature 400"), "{report:#}");
    assert!(seen(&report, "credits").contains("without affinity, on the second account, "), "{report:#}");

    let (code, report) = two(json!("signature-free"), [TOKEN, "another"], &[]);
    assert_eq!((code, found(&report)), (0, vec![("replay".to_owned(), "differs".to_owned())]), "{report:#}");

    // The same account of Kiro twice in the pool: what one has seen is cheaper on the other.
    let (code, report) = two(Value::Null, [TOKEN, TOKEN], &["--only", "credits"]);
    assert_eq!((code, found(&report)), (0, vec![("credits".to_owned(), "differs".to_owned())]), "{report:#}");

    // Alone it says what it didn't ask.
    let (_, report) = Place::new(&Value::Null, TOKEN, Some(SIMULATED)).json(&["--only", "credits,replay"]);
    for check in ["credits", "replay"] {
        assert!(seen(&report, check).contains("not asked, `--second ID` names"), "{report:#}");
    }
    // What is said of the second account ends it, too.
    let (code, report) = two(Value::Null, [TOKEN, "sim-429"], &["--only", "credits,document"]);
    assert_eq!((code, &report["ok"]), (1, &json!(false)), "{report:#}");
    assert!(
        report["stopped"].as_str().unwrap().contains("as the second account: the account is rate limited"),
        "{report:#}"
    );
    let place = Place::of_two(&Value::Null, [TOKEN, "another"]);
    assert_eq!(place.run(&["--yes", "--account", ACCOUNT, "--second", ACCOUNT]).code, 2);
}

/// A record of the Node.js service says neither its kind nor its profile: it is looked up as for a request, and not written.
#[test]
fn accounts_without_a_profile_in_their_record_are_as_expected_d22_k77() {
    for token in
        ["sim-acct-builder.x", "sim-acct-enterprise.x", "sim-acct-enterprise-eu-central-1.x", "sim-acct-enterprise2.x"]
    {
        let place = Place::new(&Value::Null, token, None);
        let path = place.file("pool.json");
        let mut pool: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let record = pool["tokens"][ACCOUNT].as_object_mut().unwrap();
        record.extend(
            [("authMethod", "builder-id"), ("clientId", "c"), ("clientSecret", "s")]
                .map(|(k, v)| (k.to_owned(), json!(v))),
        );
        std::fs::write(&path, pool.to_string()).unwrap();
        let (code, report) = place.json(&[]);
        let differs = match token {
            "sim-acct-enterprise2.x" => vec![("profile".to_owned(), "differs".to_owned())],
            _ => Vec::new(),
        };
        assert_eq!((code, found(&report)), (0, differs), "{token} {report:#}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), pool.to_string(), "K138: no record is touched");
    }
}

/// What no account needs to have isn't taken for a difference of something else: the next model of the style is asked.
#[test]
fn an_account_without_the_plain_model_is_asked_for_another_one_k139() {
    let world = json!({ "models": ["claude-sonnet-4.5", "claude-opus-5.5"] });
    let (code, report) = Place::new(&world, TOKEN, Some(SIMULATED)).json(&[]);
    assert_eq!((code, found(&report)), (0, vec![("catalogue".to_owned(), "differs".to_owned())]), "{report:#}");
    assert!(!report.to_string().contains("UnknownModel"), "{report:#}");
}

/// A refusal says nothing of the version, and its cure is the account's.
#[test]
fn a_refused_account_is_not_taken_for_another_kiro_k139() {
    let (code, report) = Place::new(&Value::Null, "sim-403-invalid-token", Some(SIMULATED)).json(&[]);
    let line = |check: &str| report["checks"].as_array().unwrap().iter().find(|line| line["check"] == check).unwrap();
    assert_eq!(
        (code, &line("version")["verdict"], &line("gate")["verdict"]),
        (1, &json!("not run"), &json!("not run"))
    );
    assert!(line("shapes")["means"].as_str().unwrap().contains("accounts check --refresh"), "{report:#}");
    for check in ["document", "cache-point", "tool-schemas", "credits"] {
        assert_eq!(line(check)["verdict"], "not run", "{report:#}");
    }
}

/// The first variant is refused, and the one behind it taken; or none is.
#[test]
fn variants_of_the_profile_that_are_refused_are_found_d22_k139() {
    let none = [("KIRO_SOCIAL_PROFILE_ARN", "")];
    for (world, environment, verdict, code) in [
        ("no-service-arn", &[][..], "differs", 0),
        ("needs-arn", &[][..], "ok", 0),
        ("needs-arn-runtime", &none[..], "differs", 0),
        ("needs-arn", &none[..], "wrong", 1),
    ] {
        let place = Place::new(&json!(world), TOKEN, None);
        let (said, report) = place.json_with(&["--only", "shapes,profile,document"], environment);
        let verdicts: Vec<&str> =
            report["checks"].as_array().unwrap().iter().map(|line| line["verdict"].as_str().unwrap()).collect();
        let document = if verdict == "wrong" { "not run" } else { "ok" };
        assert_eq!((verdicts, said), (vec!["ok", verdict, document], code), "{world} {report:#}");
    }
}

/// An answer about the account itself ends the run: nothing more is asked.
#[test]
fn it_stops_at_a_refusal_of_the_account_d22_k138() {
    for (preset, words) in [
        ("429", "rate limited"),
        ("402", "quota"),
        ("suspicious", "suspicious"),
        ("suspended", "suspended"),
        // It may come inside of a stream, too.
        ("exception-ThrottlingException", "rate limited"),
    ] {
        let place = Place::new(&Value::Null, &format!("sim-{preset}"), Some(SIMULATED));
        let before = std::fs::read(place.file("pool.json")).unwrap();
        let (code, report) = place.json(&["--only", "shapes,usage,search,document"]);
        assert_eq!((code, &report["ok"], &report["requests"]), (1, &json!(false), &json!(1)), "{preset} {report:#}");
        assert!(report["stopped"].as_str().unwrap().contains(words), "{preset} {report:#}");
        assert!(report["checks"].as_array().unwrap().iter().all(|line| line["verdict"] == "not run"));
        assert_eq!(std::fs::read(place.file("pool.json")).unwrap(), before, "K138: no mark, no counter");
        let said = place.run(&["--yes", "--only", "shapes"]);
        assert!(said.code == 1 && said.out.contains("It stopped before its end") && said.out.contains(words));
        assert!(said.out.ends_with("Nothing was learnt.\n") && said.out.contains("1 request was made"), "{}", said.out);
    }
}

/// D23: nothing that went in, or that upstream says of the account, stands in the report or in the table.
#[test]
fn the_report_holds_nothing_secret_d23_k140() {
    let told = "User d-9067aa11bb.4455 of arn:aws:codewhisperer:us-east-1:111122223333:profile/SECRETPROFILE, \
                someone@example.org, account 111122223333, isn't allowed";
    let refused =
        json!({ "http": { "status": 403, "type": "AccessDeniedException", "message": told }, "everywhere": true });
    let worlds = [Value::Null, json!({ "rules": [refused] })];
    for world in worlds {
        let place = Place::new(&world, TOKEN, Some(ARN));
        let file = place.file("report.json");
        let json = place.run(&["--yes", "--json", "--report", &file]);
        let text = place.run(&["--yes"]);
        let report = std::fs::read_to_string(&file).unwrap();
        serde_json::from_str::<Value>(&report).unwrap();
        for (name, said) in [("report", &report), ("json", &json.out), ("text", &text.out), ("stderr", &text.err)] {
            for secret in [
                TOKEN,
                REFRESH,
                ACCOUNT,
                ARN,
                "SECRETPROFILE",
                "111122223333",
                "d-9067",
                "someone@",
                "quick brown fox",
                "Answer with the one word",
                "9.11",
                "rust programming",
            ] {
                assert!(!said.contains(secret), "{name} holds {secret}:\n{said}");
            }
        }
        assert!(report.contains(env!("CARGO_PKG_VERSION")) && report.contains("2026-11"));
    }
}

/// An account that rests or is out isn't bothered while another one serves.
#[test]
fn the_first_account_in_service_is_asked_k138() {
    let place = Place::of_two(&Value::Null, [TOKEN, "another"]);
    let path = place.file("pool.json");
    let mut pool: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (id, healthy) in [(ACCOUNT, false), (SECOND, true)] {
        pool["accounts"][id] = json!({ "isHealthy": healthy, "lastErrorMessage": "ejected: Suspended" });
    }
    std::fs::write(&path, pool.to_string()).unwrap();
    let said = place.run(&["--yes", "--only", "usage"]);
    assert!(said.code == 0 && said.err.contains("as account 8cd648cb"), "{}{}", said.out, said.err);
}

/// Without --yes and without anybody to ask, nothing is sent; unknown checks and flags without --live are mistakes.
#[test]
fn it_asks_for_consent_first_k138() {
    let place = Place::new(&Value::Null, TOKEN, Some(ARN));
    let said = place.run(&[]);
    assert_eq!(said.code, 2, "{}{}", said.out, said.err);
    assert!(said.err.contains("--yes"), "{}", said.err);
    let unknown = place.run(&["--yes", "--only", "shape"]);
    assert!(unknown.code == 2 && unknown.err.contains("runtime-members"), "{}", unknown.err);
    let other = place.run(&["--yes", "--account", "ffff"]);
    assert_eq!(other.code, 1, "{}", other.err);
    assert_eq!(place.upstream.control().stats()["requests"].as_u64().unwrap_or(0), 0);
}
