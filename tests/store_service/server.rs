//! `kiro-server` as a process on a service's pool file and the simulated upstream.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use kiro_messages::simulator::{PROFILE_ARN, Running, Simulator};
use serde_json::{Value, json};

use super::Installation;

const PAST: &str = "2020-01-01T00:00:00.000Z";
const KEY: &str = "the-services-key";

/// A running server and its log; killed on drop.
struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
}

fn command(here: &Installation, upstream: &Running, store: &str) -> Command {
    let url = upstream.url();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
    command
        .env_clear()
        .current_dir(here.folder.path())
        .env("KIRO_STORE", store)
        .env("KIRO_PORT", "0")
        .env("KIRO_LOG_FORMAT", "json")
        .env("KIRO_AFFINITY", "off")
        .env("KIRO_ACCOUNT_CACHE_TTL", "100ms")
        .env("KIRO_UPSTREAM_URL", format!("{url}/generateAssistantResponse"))
        .env("KIRO_SOCIAL_REFRESH_URL", format!("{url}/refreshToken"))
        .stdin(Stdio::null());
    command
}

impl Server {
    fn start(here: &Installation, upstream: &Running) -> Self {
        let mut command = command(here, upstream, "aiclient:configs/provider_pools.json");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::<Mutex<String>>::default();
        let (told, listening) = mpsc::channel();
        let (written, errors) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()));
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let parsed = serde_json::from_str::<Value>(&line).unwrap_or_default();
                if parsed["message"] == "listening" {
                    // Nobody waits any more: the log goes on all the same.
                    let _ = told.send(parsed["address"].as_str().unwrap_or_default().to_owned());
                }
                written.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let address = listening.recv_timeout(Duration::from_secs(30));
        let address = address.unwrap_or_else(|_| panic!("it doesn't listen:\n{}", log.lock().unwrap()));
        Self { child, address, log }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks with a text of its own; status and the stream's text.
async fn ask(http: &reqwest::Client, server: &Server, number: usize) -> (u16, String) {
    let body = json!({
        "model": "claude-sonnet-4-5", "max_tokens": 64, "stream": true,
        "messages": [{ "role": "user", "content": format!("question {number}") }],
    });
    let request = http.post(format!("http://{}/v1/messages", server.address)).header("x-api-key", KEY);
    let response = request.body(body.to_string()).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn eventually(what: &str, server: &Server, mut check: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !check().await {
        assert!(began.elapsed() < Duration::from_secs(30), "not within 30 s: {what}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A token file with members that we don't know; the number is the account's.
fn token(number: usize) -> String {
    format!(
        "{{\n  \"accessToken\": \"sim-ok.0.old{number}\",\n  \"refreshToken\": \"old{number}\",\n  \"expiresAt\": \"{PAST}\",\n  \"authMethod\": \
         \"social\",\n  \"profileArn\": \"{PROFILE_ARN}\",\n  \"note\": [1, 2.50, \"\\u00e4\"]\n}}\n"
    )
}

fn pool(accounts: usize) -> String {
    let record = |number: usize| {
        json!({
            "uuid": format!("3988b973-0000-4000-8000-00000000000{number}"), "customName": format!("account {number}"),
            "KIRO_OAUTH_CREDS_FILE_PATH": format!("configs\\kiro\\{number}\\t.json"), "usageCount": 5, "mine": [1],
        })
    };
    let records: Vec<_> = (0..accounts).map(record).collect();
    serde_json::to_string_pretty(&json!({ "gemini-cli-oauth": [], "claude-kiro-oauth": records })).unwrap()
}

fn file_of(number: usize) -> String {
    format!("configs/kiro/{number}/t.json")
}

/// The text without the values that a refresh brings.
fn around(text: &str) -> Vec<String> {
    let granted = ["\"accessToken\"", "\"refreshToken\"", "\"expiresAt\""];
    let cut = |line: &str| {
        let name = granted.into_iter().find(|name| line.contains(name));
        name.map_or_else(|| line.to_owned(), |name| format!("  {name}: …"))
    };
    text.lines().map(cut).collect()
}

fn installation(accounts: usize) -> Installation {
    let here = Installation::new(&pool(accounts));
    here.write("configs/config.json", &json!({ "REQUIRED_API_KEY": KEY }).to_string());
    (0..accounts).for_each(|number| here.write(&file_of(number), &token(number)));
    here
}

fn upstream() -> Running {
    let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    simulator.world(json!(["one-time-tokens-600"])).unwrap().spawn().unwrap()
}

/// A slip in the service's configuration is named, and mended without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_configuration_is_named_r57() {
    let (here, upstream, http) = (installation(1), upstream(), http());
    for (text, what) in [("{\"REQ", "line 1 column 5"), ("[]", "no JSON object")] {
        here.write("configs/config.json", text);
        let server = Server::start(&here, &upstream);
        eventually("the file is named", &server, async || {
            let (status, told) = ask(&http, &server, 1).await;
            assert_eq!(status, 503);
            told.contains("config.json") && told.contains(what) && told.contains("KIRO_API_KEY")
        })
        .await;
        let said = |log: &str| log.matches("the client key can't be read, and nobody is served").count();
        eventually("the log says it", &server, async || said(&server.log()) > 0).await;
        here.write("configs/config.json", &json!({ "REQUIRED_API_KEY": KEY }).to_string());
        eventually("it serves", &server, async || ask(&http, &server, 2).await.0 == 200).await;
        // The old key goes on.
        here.write("configs/config.json", text);
        let still = "the one known before stays in force";
        eventually("it is named again", &server, async || server.log().contains(still)).await;
        assert_eq!(ask(&http, &server, 3).await.0, 200);
        assert_eq!(said(&server.log()), 1, "once: {}", server.log());
    }
}

fn http() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Two servers on the files of one service, all tokens expired, 50 requests at once.
#[tokio::test(flavor = "multi_thread")]
async fn two_servers_refresh_each_token_file_once_and_follow_the_pool_r59_r96_r98_r99() {
    let (here, upstream, http) = (installation(3), upstream(), http());
    let servers = [Server::start(&here, &upstream), Server::start(&here, &upstream)];
    for server in &servers {
        let health = async || http.get(format!("http://{}/health", server.address)).send().await.unwrap().status();
        eventually("the store is read", server, async || health().await == 200).await;
    }
    let asked = (0..50).map(|number| ask(&http, &servers[number % 2], number));
    for (status, text) in futures_util::future::join_all(asked).await {
        assert!(status == 200 && text.contains("message_stop"), "{status} {text}\n{}", servers[0].log());
    }
    let refreshed = |number: usize| upstream.control().accounts()[format!("old{number}")]["refreshes"].as_u64();
    eventually("every token is renewed and saved", &servers[0], async || {
        (0..3).all(|number| {
            refreshed(number) == Some(1) && here.read(&file_of(number)).contains(&format!("\"old{number}~"))
        })
    })
    .await;
    for number in 0..3 {
        let (file, state) = (here.read(&file_of(number)), &upstream.control().accounts()[format!("old{number}")]);
        assert_eq!(around(&file), around(&token(number)));
        assert!(file.contains(&format!("\"refreshToken\": {}", state["refresh_token"])), "{file} {state}");
        assert!(file.contains(&format!("\"accessToken\": {}", state["access_token"])), "{file} {state}");
        assert_eq!((&state["refreshes"], &state["dead_refreshes"]), (&json!(1), &json!(0)), "{}", servers[0].log());
    }
    assert_eq!(here.read("configs/provider_pools.json"), pool(3));

    // The service is just writing its file, for far too long; then there is an account more.
    here.write("configs/provider_pools.json", &pool(4)[..300]);
    here.write(&file_of(3), &token(3));
    let end = Instant::now() + Duration::from_secs(1);
    let mut number = 50;
    while Instant::now() < end {
        let (status, text) = ask(&http, &servers[number % 2], number).await;
        assert_eq!(status, 200, "{text}");
        number += 1;
    }
    here.write("configs/provider_pools.json", &pool(4));
    eventually("the new account serves", &servers[0], async || {
        number += 1;
        assert_eq!(ask(&http, &servers[number % 2], number).await.0, 200);
        refreshed(3) == Some(1) && here.read(&file_of(3)).contains("\"old3~")
    })
    .await;
    assert_eq!(around(&here.read(&file_of(3))), around(&token(3)));
    assert_eq!(here.read("configs/provider_pools.json"), pool(4));
    for server in &servers {
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}

/// R104: what a person meets who names the file in the wrong way, or wants to add accounts here.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_where_accounts_are_changed_r104() {
    let (here, upstream) = (installation(2), upstream());
    let run = |store: &str, arguments: &[&str]| {
        let output = command(&here, &upstream, store).args(arguments).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    };
    let (file, service) = ("file:configs/provider_pools.json", "aiclient:configs/provider_pools.json");
    let path = here.path(&file_of(0));
    let add: &[&str] = &["accounts", "add", "--from", path.to_str().unwrap(), "--offline"];
    for arguments in [&[][..], add, &["accounts", "list"], &["doctor"]] {
        let (code, text) = run(file, arguments);
        assert!(code != 0 && text.contains("aiclient:"), "{arguments:?}: {text}");
    }
    for arguments in [
        add,
        &["accounts", "remove", "3988b973-0000-4000-8000-000000000000"],
        &["accounts", "disable", "3988b973-0000-4000-8000-000000000000"],
        &["accounts", "login", "google"],
        &["accounts", "restore", "3988b973-0000-4000-8000-000000000009"],
    ] {
        let (code, text) = run(service, arguments);
        assert!(code == 1 && text.contains("in that service"), "{arguments:?}: {text}");
    }
    let (code, text) = run(service, &["accounts", "list", "--json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &list["store"], list["accounts"].as_array().unwrap().len()),
        (0, &json!("aiclient"), 2),
        "{text}"
    );
    let (_, text) = run(service, &["doctor"]);
    assert!(text.contains("which is never written") && text.contains("accounts are added in that service"), "{text}");
    assert_eq!(here.read("configs/provider_pools.json"), pool(2));
    assert_eq!(here.read(&file_of(0)), token(0));
}

/// Two records of the pool name one token file: a copied account, say. They are one login, whose limits count once.
#[test]
fn doctor_names_accounts_that_share_a_token_file_r76() {
    let (here, runtime) = (installation(3), tokio::runtime::Runtime::new().unwrap());
    let upstream = runtime.block_on(async { upstream() });
    let doctor = || {
        let output = command(&here, &upstream, "aiclient:configs/provider_pools.json").arg("doctor").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!doctor().contains("one login"), "{}", doctor());
    let mut pools: Value = serde_json::from_str(&pool(3)).unwrap();
    pools["claude-kiro-oauth"][2]["KIRO_OAUTH_CREDS_FILE_PATH"] = json!("configs\\kiro\\0\\t.json");
    here.write("configs/provider_pools.json", &pools.to_string());
    let text = doctor();
    let line = text.lines().find(|line| line.contains("one login")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.starts_with('✗') && line.contains("2 accounts have one login, in configs"), "{line}");
    assert!(line.contains("(account 0), 3988b973 (account 2)") && line.contains("in the Node.js service"), "{line}");
    // The same login in a file of its own.
    here.write(&file_of(1), &token(0));
    assert!(doctor().contains("3 accounts have one login: "), "{}", doctor());
}
