//! `accounts login` with a browser: cases P65–P67, P69, through the real command, the real listener and the simulated
//! portal. A few lines of HTTP play the browser; the real one is in tests/deploy/sign-in.test.mjs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::{FAR, Place, Said, open};

/// The ports are fixed: one test at a time.
static PORTS: Mutex<()> = Mutex::new(());

fn ports() -> MutexGuard<'static, ()> {
    PORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A login that waits for a browser.
struct RunningLogin {
    child: Child,
    out: BufReader<ChildStdout>,
    /// All of its output so far.
    said: String,
}

impl RunningLogin {
    fn at(place: &Place, arguments: &[&str]) -> Self {
        let url = place.upstream.url();
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
            .args(["accounts", "login", "--json"])
            .args(arguments)
            .env_clear()
            .env("HOME", place.folder.path())
            .env(place.store.0, &place.store.1)
            .envs(open(place))
            .env("KIRO_SOCIAL_REFRESH_URL", format!("{url}/refreshToken"))
            .env("KIRO_IDC_REFRESH_URL", format!("{url}/token"))
            .env("KIRO_PORTAL_URL", format!("{url}/signin"))
            .env("KIRO_EXTERNAL_IDP_HOSTS", &url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out, said: String::new() }
    }

    /// The next line, which is an event.
    fn event(&mut self, name: &str) -> Value {
        let start = self.said.len();
        self.out.read_line(&mut self.said).unwrap();
        let line: Value = serde_json::from_str(&self.said[start..]).unwrap_or_else(|_| panic!("{}", self.said));
        assert_eq!(line["event"], name, "{line}");
        line
    }

    fn page(&mut self) -> String {
        self.event("page")["url"].as_str().unwrap().to_owned()
    }

    fn paste(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn end(mut self) -> Said {
        drop(self.child.stdin.take());
        self.out.read_to_string(&mut self.said).unwrap();
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Said { code: self.child.wait().unwrap().code().unwrap(), out: self.said, err }
    }
}

struct Page {
    status: u16,
    head: String,
    body: String,
}

impl Page {
    fn header(&self, name: &str) -> Option<&str> {
        let start = format!("{name}: ");
        self.head.lines().find_map(|line| line.to_ascii_lowercase().starts_with(&start).then(|| &line[start.len()..]))
    }

    /// Where the portal's link leads.
    fn link(&self) -> String {
        let (_, rest) = self.body.split_once("href=\"").unwrap_or_else(|| panic!("{} {}", self.status, self.body));
        rest.split('"').next().unwrap().replace("&amp;", "&")
    }
}

fn get(url: &str) -> Page {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host.replace("localhost", "127.0.0.1")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Page { status, head: head.to_owned(), body: body.to_owned() }
}

impl Place {
    fn chooses(&self, script: Value) {
        self.upstream.control().script(script).unwrap();
    }

    fn last_body(&self, target: &str) -> String {
        let stats = self.upstream.control().stats_with_bodies();
        let calls = stats["last"].as_array().unwrap().iter();
        calls.rev().find(|call| call["target"] == target).unwrap()["body"].as_str().unwrap().to_owned()
    }

    fn token_records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("pool.json")).unwrap();
        let pool: Value = serde_json::from_str(&text).unwrap();
        pool["tokens"].as_object().unwrap().values().cloned().collect()
    }
}

/// Nothing that only the two sides may know is shown.
#[track_caller]
fn is_silent(said: &Said) {
    for secret in ["sim-acct", "sim-code", "verifier", "someone%40example.org", "someone@example.org"] {
        assert!(!said.out.contains(secret) && !said.err.contains(secret), "{secret}: {}{}", said.out, said.err);
    }
}

#[test]
fn a_wrong_state_is_waited_past_and_the_right_one_signs_in_p65_k97() {
    let _alone = ports();
    let place = Place::with_file();
    place.chooses(json!({ "portal": "github" }));
    let mut login = RunningLogin::at(&place, &["external"]);
    let portal = get(&login.page());
    let link = portal.link();
    let (origin, _) = link.split_once("/oauth/").unwrap();
    assert_eq!(get(&format!("{origin}/favicon.ico")).status, 404);
    assert_eq!(get(&format!("{origin}/oauth/callback?login_option=github&code=x&state=wrong")).status, 400);
    let done = get(&link);
    assert_eq!((done.status, done.header("cache-control")), (200, Some("no-store")));
    assert!(!done.body.contains("sim-code") && done.body.contains("You can close this page"), "{}", done.body);
    let said = login.end().with_code(0);
    is_silent(&said);
    let exchange: Value = serde_json::from_str(&place.last_body("/oauth/token")).unwrap();
    assert_eq!(exchange["redirect_uri"], format!("{origin}/oauth/callback?login_option=github"));
    assert_eq!(exchange["code_verifier"].as_str().unwrap().len(), 43);
    let record = &place.token_records()[0];
    assert_eq!((&record["authMethod"], &record["provider"]), (&json!("social"), &json!("Github")));
    // The port is free again.
    assert!(TcpListener::bind(origin.replace("http://localhost", "127.0.0.1")).is_ok());
}

#[test]
fn an_organisations_own_provider_takes_two_pages_and_one_visit_k98_r88() {
    let _alone = ports();
    let place = Place::with_file();
    place.chooses(json!({ "portal": "external_idp" }));
    let mut login = RunningLogin::at(&place, &["external"]);
    let first = get(&get(&login.page()).link());
    assert_eq!(first.status, 302);
    let provider = get(first.header("location").unwrap());
    assert_eq!(provider.status, 302, "{}", provider.body);
    let done = get(provider.header("location").unwrap());
    assert!(done.body.contains("Almost done"), "{}", done.body);
    let said = login.end().with_code(0);
    is_silent(&said);
    let record = &place.token_records()[0];
    let members: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = ["accessToken", "refreshToken", "expiresAt", "authMethod", "provider", "clientId", "tokenEndpoint"];
    assert_eq!(members[..7], wanted);
    assert_eq!(members[7..9], ["issuerUrl", "scopes"]);
    assert_eq!((&record["authMethod"], &record["provider"]), (&json!("external_idp"), &json!("ExternalIdp")));
    // Its profile was found, too.
    assert!(record["profileArn"].as_str().unwrap().contains(":profile/"), "{record}");
}

#[test]
fn a_provider_on_a_foreign_host_is_sent_nothing_k98_k84() {
    let _alone = ports();
    let place = Place::with_file();
    place.chooses(json!({ "portal": "external_idp" }));
    // The portal itself answers under another name of this machine, which is not in the list.
    let mut login = RunningLogin::at(&place, &["external"]);
    let page = login.page().replace("127.0.0.1", "localhost");
    let failed = get(&get(&page).link());
    assert!(failed.body.contains("Not signed in"), "{}", failed.body);
    let said = login.end().with_code(1);
    assert!(said.out.contains("issuer_url: must be https://HOST/"), "{}", said.out);
    let stats = place.upstream.control().stats_with_bodies();
    assert!(!stats.to_string().contains("/.well-known/"), "{stats}");
    assert!(place.accounts().is_empty());
}

#[test]
fn an_aws_login_goes_on_with_a_device_code_in_the_same_browser_k97() {
    let _alone = ports();
    let place = Place::with_file();
    place.chooses(json!({ "portal": "builderid" }));
    let mut login = RunningLogin::at(&place, &["external"]);
    let onwards = get(&get(&login.page()).link());
    assert_eq!(onwards.header("location"), Some("https://view.awsapps.com/start/#/device?user_code=ABCD-EFGH"));
    assert_eq!(login.event("code")["user_code"], "ABCD-EFGH");
    login.end().with_code(0);
    assert_eq!(place.token_records()[0]["authMethod"], "builder-id");
}

#[test]
fn a_refusal_in_the_browser_ends_the_sign_in_k97() {
    let _alone = ports();
    let place = Place::with_file();
    place.chooses(json!({ "portal": "denied" }));
    let mut login = RunningLogin::at(&place, &["external"]);
    assert!(get(&get(&login.page()).link()).body.contains("Not signed in"));
    let said = login.end().with_code(1);
    assert!(said.out.contains("the sign-in was refused in the browser"), "{}", said.out);
    assert!(place.accounts().is_empty());
}

#[test]
fn ten_taken_ports_are_named_p66_k97() {
    let _alone = ports();
    let place = Place::with_file();
    let known = [3128, 4649, 6588, 8008, 9091, 49153, 50153, 51153, 52153, 53153];
    // One that somebody else has is as good.
    let taken: Vec<_> = known.iter().map(|port| TcpListener::bind(("127.0.0.1", *port))).collect();
    let said = RunningLogin::at(&place, &["external"]).end().with_code(1);
    for port in known {
        assert!(said.out.contains(&port.to_string()), "{}", said.out);
    }
    drop(taken);
}

#[test]
fn an_address_is_pasted_and_rubbish_three_times_ends_it_p67_k97() {
    let place = Place::with_file();
    place.chooses(json!({ "portal": "google" }));
    let mut login = RunningLogin::at(&place, &["--paste"]);
    let link = get(&login.page()).link();
    assert!(link.starts_with("http://localhost:3128/oauth/callback?"), "{link}");
    login.paste("what is this");
    login.paste(&format!("  {link} "));
    let said = login.end().with_code(0);
    is_silent(&said);
    assert!(said.err.contains("paste it again"), "{}", said.err);
    assert_eq!(place.token_records()[0]["provider"], "Google");

    let mut login = RunningLogin::at(&place, &["--paste"]);
    login.page();
    for rubbish in ["x", "http://localhost:3128/oauth/callback?state=other&code=c", "y"] {
        login.paste(rubbish);
    }
    let said = login.end().with_code(1);
    assert!(said.out.contains("wrong_paste"), "{}", said.out);

    let mut login = RunningLogin::at(&place, &["--paste"]);
    login.page();
    assert!(login.end().with_code(1).out.contains("nothing_pasted"));
    assert_eq!(place.accounts().len(), 1);
}

#[test]
fn both_addresses_of_an_organisation_are_pasted_k98() {
    let place = Place::with_file();
    place.chooses(json!({ "portal": "external_idp" }));
    let mut login = RunningLogin::at(&place, &["external", "--paste"]);
    let link = get(&login.page()).link();
    login.paste(&link);
    let provider = get(&login.page());
    login.paste(provider.header("location").unwrap());
    login.end().with_code(0);
    assert_eq!(place.token_records()[0]["authMethod"], "external_idp");
}

#[test]
fn a_login_takes_the_place_of_another_credential_p69_r73_r87() {
    let place = Place::with_file();
    let registered = json!({
        "accessToken": "sim-acct-builder.old", "refreshToken": "r".repeat(120), "expiresAt": FAR, "authMethod": "IdC",
        "clientId": "c-old", "clientSecret": "s-old", "provider": "BuilderId",
    });
    let id = place.add(&place.write("t.json", &registered));
    let pool = place.folder.path().join("pool.json");
    // A member of another program, and the mark of an ejection.
    let text = std::fs::read_to_string(&pool).unwrap();
    let text = text.replacen("\"clientId\"", "\"theirs\": 1.50,\"clientId\"", 1);
    let text = text.replacen("\"isHealthy\":true", "\"isHealthy\":false,\"lastErrorMessage\":\"ejected: x\"", 1);
    std::fs::write(&pool, text).unwrap();

    place.chooses(json!({ "device": ["ok"], "provider": "Google", "account": "sim-acct-social" }));
    let said = place.run_open(&["accounts", "login", "google", "--replace", &id[..8]]).with_code(0);
    assert!(said.out.contains(&format!("✓ signed in anew: account {} (social)", &id[..8])), "{}", said.out);
    let account = &place.accounts()[0];
    assert_eq!((&account["id"], &account["state"]), (&json!(id), &json!("healthy")));
    let record = &place.token_records()[0];
    for gone in ["clientId", "clientSecret"] {
        assert_eq!(record.get(gone), None, "{record}");
    }
    assert_eq!((&record["authMethod"], record["theirs"].to_string()), (&json!("social"), "1.50".to_owned()));
    let said = place.run_open(&["accounts", "login", "google", "--replace", "ffffffff"]).with_code(1);
    assert!(said.err.contains("no such account"), "{}", said.err);
}

#[test]
fn another_users_login_replaces_nobody_unless_forced_r87() {
    let place = Place::with_file();
    let token = json!({
        "accessToken": "sim-acct-social.old", "refreshToken": "r".repeat(120), "expiresAt": FAR, "authMethod": "social",
    });
    let path = place.write("t.json", &token);
    place.run(&["accounts", "add", "--from", &path, "--name", "somebody@example.org", "--offline"]).with_code(0);
    let id = place.accounts()[0]["id"].as_str().unwrap().to_owned();
    place.chooses(json!({ "device": ["ok"], "account": "sim-acct-social" }));
    let said = place.run_open(&["accounts", "login", "google", "--replace", &id]).with_code(1);
    assert!(said.err.contains("another user signed in") && !said.err.contains('@'), "{}", said.err);
    assert_eq!(place.token_records()[0]["accessToken"], "sim-acct-social.old");
    place.chooses(json!({ "device": ["ok"], "account": "sim-acct-social" }));
    place.run_open(&["accounts", "login", "google", "--replace", &id, "--force"]).with_code(0);
    assert_ne!(place.token_records()[0]["accessToken"], "sim-acct-social.old");
}

#[test]
fn a_second_social_account_by_device_code_is_warned_about_k96() {
    let place = Place::with_file();
    place.chooses(json!({ "device": ["ok"] }));
    let first = place.run_open(&["accounts", "login", "google"]).with_code(0);
    assert!(!first.out.contains("warning"), "{}", first.out);
    place.chooses(json!({ "device": ["ok"] }));
    let second = place.run_open(&["accounts", "login", "github"]).with_code(0);
    let (warning, code) = (second.out.find("--browser goes another way").unwrap(), second.out.find("Code").unwrap());
    assert!(warning < code, "it can still be heeded: {}", second.out);
    assert_eq!(place.accounts().len(), 2);
}
