//! `accounts login`: cases P57–P64, P68, P70, through the real command against the simulated sign-in.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Place, Said, open};

impl Place {
    fn signs_in(&self, script: Value) -> &Self {
        self.upstream.control().script(script).unwrap();
        self
    }

    fn login(&self, arguments: &[&str]) -> Said {
        self.run(&[&["accounts", "login"], arguments].concat())
    }

    /// The bodies that came to a path, in order.
    fn sent(&self, path: &str) -> Vec<Value> {
        let stats = self.upstream.control().stats_with_bodies();
        let calls = stats["last"].as_array().unwrap().iter().filter(|call| call["target"] == path);
        calls.map(|call| serde_json::from_str(call["body"].as_str().unwrap()).unwrap()).collect()
    }

    /// The token record of the only account.
    fn kept(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("pool.json")).unwrap();
        let pool: Value = serde_json::from_str(&text).unwrap();
        let tokens = pool["tokens"].as_object().unwrap();
        assert_eq!(tokens.len(), 1, "{text}");
        tokens.values().next().unwrap().to_string()
    }

    fn keeps_nothing(&self) {
        assert!(self.accounts().is_empty());
    }
}

/// Nothing that was sent or granted may be in what is shown.
#[track_caller]
fn is_silent(said: &Said) {
    for secret in ["sim-acct", "sim-client", "sim-device-code", "someone@example.org", "arn:aws"] {
        assert!(!said.out.contains(secret) && !said.err.contains(secret), "{secret}: {}{}", said.out, said.err);
    }
}

#[test]
fn a_builder_id_signs_in_by_device_code_p57_k93_k94_k95_r88() {
    let place = Place::with_file();
    place.signs_in(json!({ "device": ["pending", "slow_down", "ok"] }));
    let began = Instant::now();
    let said = place.login(&["builder-id", "--name", "mine"]).with_code(0);
    // A second each, and five more after slow_down.
    assert!(began.elapsed() >= Duration::from_secs(8), "{:?}", began.elapsed());
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[0], "Sign in to AWS Builder ID");
    assert_eq!(lines[2], "  Open   https://view.awsapps.com/start/#/device?user_code=ABCD-EFGH");
    assert_eq!(lines[3], "  Code   ABCD-EFGH");
    let account = &place.accounts()[0];
    let id = account["id"].as_str().unwrap();
    let done = format!("✓ signed in: account {} (builder-id), ", &id[..8]);
    assert!(lines.last().unwrap().starts_with(&done) && said.out.contains(" credits"), "{}", said.out);
    assert_eq!((&account["name"], &account["state"]), (&json!("mine"), &json!("healthy")));
    is_silent(&said);

    let register = &place.sent("/client/register")[0];
    assert_eq!(register["scopes"].as_array().unwrap().len(), 5);
    assert!(register.get("issuerUrl").is_none());
    assert_eq!(place.sent("/device_authorization")[0]["startUrl"], "https://view.awsapps.com/start");
    assert_eq!(place.sent("/token").len(), 3);
    let kept = place.kept();
    let end = kept.find("\"expiresAt\":\"").unwrap() + "\"expiresAt\":\"".len();
    let shown = format!("{}…{}", &kept[..end], &kept[end + "2026-11-29T01:00:00.000Z".len()..]);
    let refresh = format!("sim-acct-builder.login1{}", "x".repeat(100));
    assert_eq!(
        shown,
        format!(
            r#"{{"accessToken":"sim-acct-builder.login1","refreshToken":"{refresh}","expiresAt":"…","authMethod":"builder-id","provider":"BuilderId","startUrl":"https://view.awsapps.com/start","idcRegion":"us-east-1","clientId":"sim-client","clientSecret":"sim-client-secret","registrationExpiresAt":"2099-01-01T00:00:00.000Z"}}"#
        )
    );
}

#[test]
fn a_refused_list_of_scopes_is_cut_to_three_p58_k93() {
    let place = Place::with_file();
    place.signs_in(json!({ "device": ["ok"], "basic_scopes": true }));
    place.login(&["builder-id", "--no-check"]).with_code(0);
    let scopes: Vec<_> =
        place.sent("/client/register").iter().map(|body| body["scopes"].as_array().unwrap().len()).collect();
    assert_eq!(scopes, [5, 3]);
}

#[test]
fn a_refused_sign_in_keeps_nothing_p59_p64_k95_k96() {
    let place = Place::with_file();
    for (polls, uri, method, sentence) in [
        (json!(["denied"]), None, "builder-id", "the sign-in was refused in the browser"),
        (json!(["expired"]), None, "builder-id", "the code has expired; run the command again"),
        (json!(["no-token"]), None, "builder-id", "Kiro's sign-in answered without a token"),
        (json!(["expired"]), None, "google", "the code has expired; run the command again"),
        (json!(["denied"]), None, "github", "Kiro's sign-in was refused"),
        (json!([]), Some("https://evil.example/device"), "google", "the sign-in names an address that isn't its own"),
        (
            json!([]),
            Some("https://evil.example/device"),
            "builder-id",
            "the sign-in names an address that isn't its own",
        ),
    ] {
        let mut script = json!({ "device": polls });
        script.as_object_mut().unwrap().extend(uri.map(|uri: &str| ("uri".to_owned(), uri.into())));
        place.signs_in(script);
        let said = place.login(&[method]).with_code(1);
        assert!(said.err.contains(sentence), "{polls} {method}: {}", said.err);
        assert!(!said.out.contains("evil") && !said.err.contains("evil"), "{}{}", said.out, said.err);
        is_silent(&said);
        place.keeps_nothing();
    }
}

#[test]
fn a_failing_host_is_asked_again_p60_k95() {
    let place = Place::with_file();
    place.signs_in(json!({ "device": ["500", "drop", "ok"] }));
    place.login(&["builder-id", "--no-check"]).with_code(0);
    assert_eq!(place.accounts().len(), 1);
    assert!(place.sent("/token").len() >= 3);
}

#[test]
fn an_identity_center_is_found_by_itself_p61_k94_r89() {
    let place = Place::with_file();
    let account = "sim-acct-enterprise-eu-central-1";
    place.signs_in(json!({ "device": ["ok"], "region": "eu-west-2", "account": account }));
    let oidc = format!("http://oidc.{{region}}.localhost:{}/token", place.upstream.addr().port());
    let environment = open(&place);
    let mut environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(("KIRO_IDC_REFRESH_URL", &oidc));
    let url = "https://x.awsapps.com/start";
    let said = place.run_with(&["accounts", "login", "idc", "--start-url", url], &environment).with_code(0);
    assert!(said.out.starts_with("Sign in to IAM Identity Center\n"), "{}", said.out);
    is_silent(&said);
    // us-east-1, eu-west-1, eu-central-1, us-east-2, us-west-2, eu-west-2: each with a registration of its own.
    assert_eq!((place.sent("/client/register").len(), place.sent("/device_authorization").len()), (6, 6));
    let kept: Value = serde_json::from_str(&place.kept()).unwrap();
    assert_eq!((&kept["idcRegion"], &kept["region"]), (&json!("eu-west-2"), &json!("eu-central-1")));
    assert_eq!((&kept["provider"], &kept["startUrl"]), (&json!("Enterprise"), &json!(url)));
    assert!(kept["profileArn"].as_str().unwrap().ends_with("/EEEE2"), "{kept}");
}

#[test]
fn a_wrong_command_sends_nothing_p62_p70() {
    let place = Place::with_file();
    for (arguments, words) in [
        (&["idc", "--start-url", "https://x.awsapps.com/start", "--region", "nowhere"][..], "--region"),
        (&["idc", "--start-url", "http://x.awsapps.com/start"], "--start-url"),
        (&["idc", "--start-url", "https://x.awsapps.com/start\u{1b}[31m"], "--start-url"),
        (&["idc", "--start-url", "https:///start"], "--start-url"),
        (&["google", "--region", "eu-west-1"], "--region"),
        (&["idc"], "--start-url"),
        (&["google", "--start-url", "https://x.awsapps.com/start"], "--start-url"),
        (&["okta"], "builder-id"),
        (&["builder-id", "--timeout", "soon"], "duration"),
        (&[], "name who signs in"),
    ] {
        let said = place.login(arguments).with_code(2);
        assert!(said.err.contains(words), "{arguments:?}: {}", said.err);
    }
    assert!(place.upstream.control().stats_with_bodies()["last"].as_array().unwrap().is_empty());
}

#[test]
fn github_by_the_older_name_of_the_client_p63_k96() {
    let place = Place::with_file();
    place.signs_in(json!({ "device": ["pending", "ok"], "old_client": true }));
    let said = place.login(&["github"]).with_code(0);
    is_silent(&said);
    let starts = place.sent("/oauth/device/authorization");
    let clients: Vec<_> = starts.iter().map(|body| body["clientId"].clone()).collect();
    assert_eq!(clients, ["Kiro-CLI", "kiro-cli"]);
    assert!(starts.iter().all(|body| body["loginProvider"] == "Github"));
    assert!(place.sent("/oauth/device/poll").iter().all(|body| body["clientId"] == "kiro-cli"));
    let kept: Value = serde_json::from_str(&place.kept()).unwrap();
    let members: Vec<_> = kept.as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = ["accessToken", "refreshToken", "expiresAt", "authMethod", "provider", "profileArn", "region"];
    assert_eq!((members, &kept["provider"]), (wanted.to_vec(), &json!("Github")));
}

#[test]
fn programs_get_a_json_object_a_line_p70() {
    let place = Place::with_file();
    place.signs_in(json!({ "device": ["ok"] }));
    let said = place.login(&["google", "--json"]).with_code(0);
    is_silent(&said);
    let lines: Vec<Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [code, done] = &lines[..] else { panic!("{}", said.out) };
    assert_eq!((&code["event"], &code["user_code"]), (&json!("code"), &json!("ABCD-EFGH")));
    assert_eq!((&done["event"], &done["kind"], &done["warnings"]), (&json!("done"), &json!("social"), &json!([])));
    place.signs_in(json!({ "device": ["expired"] }));
    let said = place.login(&["google", "--json"]).with_code(1);
    let failed: Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
    assert_eq!((&failed["event"], &failed["error"]), (&json!("failed"), &json!("expired_token")));
    let said = place.login(&["google", "--json", "--timeout", "300ms"]).with_code(1);
    assert!(said.out.contains("nobody signed in within the time"), "{}", said.out);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_nothing_p68() {
    let place = Place::with_file();
    place.signs_in(json!({ "device": vec!["pending"; 50] }));
    let url = place.upstream.url();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
        .args(["accounts", "login", "builder-id"])
        .env_clear()
        .env(place.store.0, &place.store.1)
        .env("KIRO_IDC_REFRESH_URL", format!("{url}/token"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while place.sent("/token").is_empty() {
        assert!(Instant::now() < deadline, "nobody polls");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    place.keeps_nothing();
}
