//! What goes out as an account's profile and where it goes: cases P1–P19, through the real
//! gateway, against the simulated upstream with a host for each region.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/accounts.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod accounts;
#[path = "accounts/external.rs"]
mod external;
#[path = "support/log.rs"]
mod log;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use kiro_messages::config::{Face, RawConfig};
use kiro_messages::error::Error;
use kiro_messages::gateway::{Call, Gateway};
use kiro_messages::pool::Hooks;
use kiro_messages::proto::kiro::profile::{BUILDER_ID_PROFILE, SOCIAL_PROFILE};
use kiro_messages::simulator::{Running, Simulator};
use serde_json::{Value, json};

use accounts::add_account;
use log::Log;
use redis_server::RedisServer;

const E1: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1";
const E2: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";

struct World {
    gateway: Gateway,
    upstream: Running,
    redis: RedisServer,
    /// Seconds that the gateway's clock is ahead.
    ahead: Arc<AtomicI64>,
}

/// A call as upstream saw it: what was called, in which region, with which profile.
type Seen = (&'static str, String, String);

impl World {
    /// An account for each token record, with the members of all added. `{port}` in them and in options is upstream's.
    async fn new(tokens: &[Value], options: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        let upstream = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap().spawn().unwrap();
        for (n, token) in tokens.iter().enumerate() {
            let id = id(n);
            let mut all = json!({ "expiresAt": "2099-01-01T00:00:00.000Z" });
            let token = token.to_string().replace("{port}", &upstream.addr().port().to_string());
            all.as_object_mut().unwrap().extend(serde_json::from_str::<serde_json::Map<_, _>>(&token).unwrap());
            add_account(&mut redis.connection(), &id, &json!({}), &all);
        }
        let port = upstream.addr().port();
        let mut said = vec![
            ("REDIS_URL", redis.url()),
            ("KIRO_API_KEY", "key".to_owned()),
            ("KIRO_STORE_WAIT", "5s".to_owned()),
            ("KIRO_UPSTREAM_URL", format!("http://q.{{region}}.localhost:{port}/generateAssistantResponse")),
            ("KIRO_SOCIAL_REFRESH_URL", format!("http://auth.{{region}}.localhost:{port}/refreshToken")),
            ("KIRO_IDC_REFRESH_URL", format!("http://oidc.{{region}}.localhost:{port}/token")),
        ];
        said.extend(options.iter().map(|(name, value)| (*name, value.replace("{port}", &port.to_string()))));
        let raw = RawConfig::from_env(said.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let ahead = Arc::<AtomicI64>::default();
        let (real, by) = (Gateway::wall_clock(), ahead.clone());
        let clock = Arc::new(move || real() + SignedDuration::from_secs(by.load(Ordering::Relaxed)));
        let config = raw.resolve(Face::Server).unwrap();
        let gateway = Gateway::start_with(config, clock, Hooks::default()).await.unwrap();
        Self { gateway, upstream, redis, ahead }
    }

    /// Time passes for accounts, not for connections.
    fn pass(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    async fn asks(&self) -> Result<(), Error> {
        self.says("hello").await
    }

    /// Another conversation each time, so that it goes to the next account.
    async fn asks_anew(&self) -> Result<(), Error> {
        let text = format!("hello {}", self.upstream.control().stats()["streams"]["completed"]);
        self.says(&text).await
    }

    async fn says(&self, text: &str) -> Result<(), Error> {
        let body = json!({
            "model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [{ "role": "user", "content": text }],
        });
        self.gateway.create(body.to_string().into(), Call::default()).await.map(drop)
    }

    /// Calls so far: chats, look-ups and refreshes, without catalogues.
    fn seen(&self) -> Vec<Seen> {
        let stats = self.upstream.control().stats_with_bodies();
        let seen = |call: &Value| {
            let target = call["target"].as_str().unwrap();
            let host = call["headers"]["host"].as_str().unwrap();
            let mut labels = host.split('.');
            let what = match (labels.next().unwrap(), call["headers"]["x-amz-target"].as_str()) {
                ("oidc" | "auth", _) => "refresh",
                (_, Some(name)) if name.ends_with("ListAvailableProfiles") => "profiles",
                _ if target == "/generateAssistantResponse" => "chat",
                _ => return None,
            };
            let body: Value = serde_json::from_str(call["body"].as_str().unwrap_or("{}")).unwrap_or_default();
            let arn = match body["profileArn"].as_str().unwrap_or("-") {
                BUILDER_ID_PROFILE => "B",
                SOCIAL_PROFILE => "S",
                arn => arn.rsplit('/').next().unwrap(),
            };
            Some((what, labels.next().unwrap().to_owned(), arn.to_owned()))
        };
        stats["last"].as_array().unwrap().iter().filter_map(seen).collect()
    }

    #[track_caller]
    fn saw(&self, expected: &[(&str, &str, &str)]) {
        let seen = self.seen();
        let seen: Vec<_> = seen.iter().map(|(what, region, arn)| (*what, region.as_str(), arn.as_str())).collect();
        assert_eq!(seen, expected);
    }

    fn token(&self, n: usize) -> Value {
        let mut get = redis::cmd("GET");
        let key = format!("aiclient:tokens:claude-kiro-oauth:{}", id(n));
        let text: String = get.arg(key).query(&mut self.redis.connection()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn account(&self, n: usize) -> Value {
        let mut get = redis::cmd("HGET");
        let text: String =
            get.arg("aiclient:pools:claude-kiro-oauth").arg(id(n)).query(&mut self.redis.connection()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn state(&self, n: usize) -> &'static str {
        self.gateway.accounts()[n].state.as_str()
    }

    async fn eventually(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is(self) {
            assert!(Instant::now() < deadline, "not within 10 s: {what}: {:?}", self.seen());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn id(n: usize) -> String {
    format!("{n:08}-0000-4000-8000-000000000000")
}

fn idc(access: &str, more: Value) -> Value {
    let mut record = json!({
        "accessToken": access, "refreshToken": access, "authMethod": "IdC", "clientId": "c", "clientSecret": "s",
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

fn builder(access: &str) -> Value {
    idc(access, json!({ "provider": "BuilderId" }))
}

fn enterprise(access: &str, more: Value) -> Value {
    let mut record = idc(access, json!({ "startUrl": "https://d-1.awsapps.com/start" }));
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

const EAST: &str = "us-east-1";
const EUROPE: &str = "eu-central-1";

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_id_goes_out_with_kiros_own_profile_p1_k77() {
    let world = World::new(&[builder("sim-acct-builder")], &[]).await;
    let before = world.token(0);
    world.asks().await.unwrap();
    world.asks().await.unwrap();
    world.saw(&[("chat", EAST, "B"), ("chat", EAST, "B")]);
    assert_eq!(world.token(0), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_variant_costs_one_more_call_once_p2_k78() {
    let world = World::new(&[builder("sim-acct-builder-strict")], &[]).await;
    world.asks().await.unwrap();
    world.asks().await.unwrap();
    world.saw(&[("chat", EAST, "B"), ("chat", EAST, "-"), ("chat", EAST, "-")]);
    assert_eq!(world.state(0), "healthy");
    world.eventually("counted", |world| world.account(0)["usageCount"] == 2).await;
    assert!(world.account(0)["lastErrorTime"].is_null(), "no health field");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_variant_left_the_state_is_no_profile_not_a_failure_p3_k78() {
    let options = [("KIRO_BUILDER_ID_PROFILE_ARN", "")];
    let world =
        World::new(&[builder("sim-acct-builder"), json!({ "accessToken": "x", "authMethod": "social" })], &options)
            .await;
    for _ in 0..4 {
        world.asks().await.unwrap();
    }
    let mine: Vec<Seen> = world.seen().into_iter().filter(|(_, _, arn)| arn == "-").collect();
    assert_eq!(mine.len(), 1, "asked once, and for 10 min no more: {:?}", world.seen());
    assert_eq!((world.state(0), world.state(1)), ("no-profile", "healthy"));
    assert!(world.account(0)["errorCount"].is_null(), "{}", world.account(0));

    // Alone: M85's answer from the first request on, 503 in the last two minutes, and then it is asked again.
    let alone = World::new(&[builder("sim-acct-builder")], &options).await;
    let mut passed = 0;
    for (seconds, status, calls) in
        [(0, 500, 1), (1, 500, 1), (470, 500, 1), (490, 503, 1), (590, 503, 1), (601, 500, 2)]
    {
        alone.pass(seconds - passed);
        passed = seconds;
        let error = alone.asks().await.unwrap_err();
        let kind = if status == 500 { "api_error" } else { "overloaded_error" };
        assert_eq!((error.status(), error.error_type().as_str()), (status, kind), "after {seconds} s: {error:?}");
        let given_up = error.headers().contains(&("x-should-retry", "false".to_owned()));
        assert!(given_up || status == 503, "after {seconds} s: {error:?}");
        let back = error.retry_after().unwrap().as_secs();
        let expected = if calls == 2 { 600 } else { u64::try_from(600 - seconds).unwrap() };
        assert!(back.abs_diff(expected) <= 5, "after {seconds} s: {back}, not {expected}");
        assert_eq!(alone.state(0), "no-profile");
        alone.saw(&vec![("chat", EAST, "-"); calls]);
    }
    assert!(alone.account(0)["errorCount"].is_null(), "{}", alone.account(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_social_account_has_its_own_and_kiros_profile_p4_p5_k77() {
    let world = World::new(&[json!({ "accessToken": "sim-acct-social", "authMethod": "social" })], &[]).await;
    world.asks().await.unwrap();
    world.saw(&[("chat", EAST, "S")]);
    let own = json!({ "accessToken": "sim-acct-social", "authMethod": "social", "profileArn": E1 });
    let world = World::new(&[own], &[]).await;
    world.asks().await.unwrap();
    world.saw(&[("chat", EAST, "EEEE1"), ("chat", EAST, "S")]);
    assert_eq!(world.token(0)["profileArn"], E1, "as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enterprise_profile_in_another_region_is_found_before_the_first_attempt_p6_k79() {
    let world = World::new(&[enterprise("sim-acct-enterprise-eu-central-1", json!({}))], &[]).await;
    world.asks().await.unwrap();
    world.saw(&[("profiles", EAST, "-"), ("profiles", EUROPE, "-"), ("chat", EUROPE, "EEEE2")]);
    world.eventually("kept", |world| world.token(0)["profileArn"] == E2).await;
    let token = world.token(0);
    assert_eq!((&token["region"], &token["idcRegion"]), (&json!(EUROPE), &json!(EAST)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_tells_builder_ids_of_the_node_service_from_enterprises_p7_p8_k73() {
    let world = World::new(&[idc("sim-acct-enterprise", json!({ "authMethod": "builder-id" }))], &[]).await;
    world.asks().await.unwrap();
    world.saw(&[("profiles", EAST, "-"), ("profiles", EUROPE, "-"), ("chat", EAST, "EEEE1")]);
    world.eventually("kept", |world| world.token(0)["profileArn"] == E1).await;

    let world = World::new(&[idc("sim-acct-builder", json!({ "authMethod": "builder-id" }))], &[]).await;
    let before = world.token(0);
    world.asks().await.unwrap();
    world.saw(&[("profiles", EAST, "-"), ("chat", EAST, "B")]);
    assert_eq!(world.token(0), before);
    assert_eq!(world.gateway.accounts()[0].kind.as_str(), "builder-id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_profile_in_an_enterprise_record_never_goes_out_p9_k77() {
    let world =
        World::new(&[enterprise("sim-acct-enterprise", json!({ "profileArn": BUILDER_ID_PROFILE }))], &[]).await;
    world.asks().await.unwrap();
    world.saw(&[("profiles", EAST, "-"), ("profiles", EUROPE, "-"), ("chat", EAST, "EEEE1")]);
    world.eventually("in its place", |world| world.token(0)["profileArn"] == E1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_arn_names_the_region_p10_p12_k74() {
    let record = json!({ "region": "ap-southeast-2", "profileArn": E1, "expiresAt": "2020-01-01T00:00:00.000Z" });
    let world = World::new(&[enterprise("sim-acct-enterprise", record)], &[]).await;
    world.asks().await.unwrap();
    world.eventually("refreshed", |world| world.seen().len() >= 2).await;
    let seen = world.seen();
    assert_eq!(seen[0], ("refresh", "ap-southeast-2".to_owned(), "-".to_owned()));
    assert_eq!(seen[1], ("chat", EAST.to_owned(), "EEEE1".to_owned()));
    let record = json!({ "region": EAST, "profileArn": E2 });
    let world = World::new(&[enterprise("sim-acct-enterprise-eu-central-1", record)], &[]).await;
    world.asks().await.unwrap();
    world.saw(&[("chat", EUROPE, "EEEE2")]);
}

/// Reported records: the region of the sign-in and that of the profile differ, and the token has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_and_its_profile_may_be_in_different_regions_k74_k75_k79() {
    let looked_up = [("profiles", EAST, "-"), ("profiles", EUROPE, "-"), ("chat", EUROPE, "EEEE2")];
    for (account, more, home, calls) in [
        (
            "sim-acct-enterprise",
            json!({ "region": "ap-southeast-1", "idcRegion": "ap-southeast-1", "profileArn": E1 }),
            "ap-southeast-1",
            &[("chat", EAST, "EEEE1")][..],
        ),
        (
            "sim-acct-enterprise-eu-central-1",
            json!({ "region": EAST, "profileArn": E2 }),
            EAST,
            &[("chat", EUROPE, "EEEE2")],
        ),
        ("sim-acct-enterprise-eu-central-1", json!({ "region": "eu-north-1" }), "eu-north-1", &looked_up),
    ] {
        let mut record = idc(account, more);
        record["expiresAt"] = json!("2020-01-01T00:00:00.000Z");
        let world = World::new(&[record], &[]).await;
        world.asks().await.unwrap();
        world.saw(&[&[("refresh", home, "-")], calls].concat());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_profiles_the_proven_one_is_kept_p13_k78() {
    let world = World::new(&[enterprise("sim-acct-enterprise2", json!({}))], &[]).await;
    world.asks().await.unwrap();
    world.asks().await.unwrap();
    world.saw(&[
        ("profiles", EAST, "-"),
        ("profiles", EUROPE, "-"),
        ("chat", EAST, "AAAA1"),
        ("chat", EAST, "CCCC3"),
        ("chat", EAST, "CCCC3"),
    ]);
    let kept = |world: &World| world.token(0)["profileArn"].as_str().is_some_and(|arn| arn.ends_with("/CCCC3"));
    world.eventually("kept", kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_lists_nothing_is_asked_without_a_profile_k77_k79() {
    let nobody = enterprise("sim-acct-noprofile", json!({ "region": "ap-southeast-2" }));
    let world = World::new(&[nobody, json!({ "accessToken": "x", "authMethod": "social" })], &[]).await;
    for _ in 0..3 {
        world.asks().await.unwrap();
    }
    let mine: Vec<Seen> = world.seen().into_iter().filter(|(_, _, arn)| arn == "-").collect();
    let expected = [("profiles", EAST), ("profiles", EUROPE), ("chat", EAST)];
    assert_eq!(mine.iter().map(|(what, region, _)| (*what, region.as_str())).collect::<Vec<_>>(), expected);
}

/// ListAvailableProfiles gives no answer: the account is asked without a profile, and for a minute no more.
#[tokio::test]
async fn with_an_unknown_profile_it_is_asked_once_a_minute_without_one_p11_k74_k78_k79() {
    let log = Log::listen();
    let nobody = enterprise("sim-acct-enterprise", json!({ "region": "ap-southeast-2" }));
    let world = World::new(&[nobody, json!({ "accessToken": "x", "authMethod": "social" })], &[]).await;
    let away = json!({ "on": "profiles", "token": "sim-acct-enterprise", "forever": true, "scenarios": [
        { "http": { "status": 503, "message": "Service Unavailable" } },
    ] });
    world.upstream.control().script(away).unwrap();
    let mine = || world.seen().into_iter().filter(|(_, _, arn)| arn == "-").map(|(what, region, _)| (what, region));
    let once =
        [("profiles", EAST), ("profiles", EUROPE), ("chat", EAST)].map(|(what, region)| (what, region.to_owned()));
    for _ in 0..4 {
        world.asks_anew().await.unwrap();
    }
    assert_eq!(mine().collect::<Vec<_>>(), once, "look-ups without an answer, and one call without an ARN");
    assert_eq!((world.state(0), world.state(1)), ("no-profile", "healthy"));
    world.pass(55);
    for _ in 0..2 {
        world.asks_anew().await.unwrap();
    }
    assert_eq!(mine().count(), 3, "not before a minute: {:?}", world.seen());
    world.pass(6);
    let looked = |world: &World| world.seen().iter().filter(|(what, ..)| *what == "profiles").count();
    world.eventually("K64 again", |world| looked(world) == 4).await;
    assert!(world.account(0)["errorCount"].is_null(), "no failure is counted: {}", world.account(0));
    assert_eq!(log.lines("ap-southeast-2").len(), 1, "{:?}", log.lines(""));
}

#[tokio::test]
async fn every_variant_refused_by_a_403_is_a_failure_p17_k78() {
    let log = Log::listen();
    let world = World::new(&[builder("refused"), json!({ "accessToken": "x", "authMethod": "social" })], &[]).await;
    let no = json!({ "http": { "status": 403, "message": "User is not authorized to make this call." } });
    let forever = json!({ "token": "refused", "scenarios": [no], "forever": true });
    world.upstream.control().script(forever).unwrap();
    world.asks_anew().await.unwrap();
    world.asks_anew().await.unwrap();
    let mine = world.seen();
    let count = |arn: &str| mine.iter().filter(|(_, _, found)| found == arn).count();
    assert_eq!((count("S"), count("B"), count("-")), (2, 1, 1), "{mine:?}");
    world.eventually("counted", |world| world.account(0)["errorCount"] == 1).await;
    let told = log.lines("KIRO_CLIENT_VERSION");
    assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("account=\"00000000\""), "{told:?}");
}

/// A Node.js service that rewrites the whole pool: the account goes, its token record stays. A removal by `accounts remove`
/// takes both, and nothing is said.
#[tokio::test]
async fn an_account_that_goes_without_its_token_record_is_warned_about_once_r106() {
    let log = Log::listen();
    let three = ["a", "b", "c"].map(|token| json!({ "accessToken": token, "authMethod": "social" }));
    let world = World::new(&three, &[("KIRO_ACCOUNT_CACHE_TTL", "50ms")]).await;
    let mut redis = world.redis.connection();
    let pool = "aiclient:pools:claude-kiro-oauth";
    let ids: Vec<String> = redis::cmd("HKEYS").arg(pool).query(&mut redis).unwrap();
    let gone = ids.iter().find(|id| id.starts_with("00000001")).unwrap();
    let removed = ids.iter().find(|id| id.starts_with("00000002")).unwrap();
    redis::cmd("HDEL").arg(pool).arg(&[gone, removed]).exec(&mut redis).unwrap();
    redis::cmd("DEL").arg(format!("aiclient:tokens:claude-kiro-oauth:{removed}")).exec(&mut redis).unwrap();
    world.eventually("told", |_| !log.lines("their token records are still there").is_empty()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let told = log.lines("their token records are still there");
    assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("accounts=\"00000001\""), "{told:?}");
}

/// In front of the simulator as Kiro's own hosts are: a proxy that finds no host `q.`, and TLS.
async fn fips_only(upstream: std::net::SocketAddr, folder: &std::path::Path) -> (String, Arc<Mutex<Vec<String>>>) {
    let fips = "q-fips.us-gov-west-1.amazonaws.com".to_owned();
    let made = rcgen::generate_simple_self_signed([fips.clone()]).unwrap();
    std::fs::write(folder.join("ca.pem"), made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = asked.clone();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut client, _)) = proxy.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let host = head.strip_prefix("CONNECT ").unwrap().split(':').next().unwrap().to_owned();
            log.lock().unwrap().push(host.clone());
            if host != fips {
                client.write_all(b"HTTP/1.1 502 no such host\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                continue;
            }
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut secured = acceptor.accept(client).await.unwrap();
                let mut server = tokio::net::TcpStream::connect(upstream).await.unwrap();
                // The side that ends first ends both.
                let _ended = tokio::io::copy_bidirectional(&mut secured, &mut server).await;
            });
        }
    });
    (url, asked)
}

/// K81 from end to end: Kiro's own host names, TLS, and a name that isn't found.
#[tokio::test(flavor = "multi_thread")]
async fn govclouds_other_host_is_tried_and_remembered_p26_k81() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap().spawn().unwrap();
    let (proxy, asked) = fips_only(upstream.addr(), folder.path()).await;
    let ca = folder.path().join("ca.pem").display().to_string();
    let options = [
        ("KIRO_UPSTREAM_URL", kiro_messages::config::DEFAULT_UPSTREAM_URL),
        ("KIRO_PROXY_URL", proxy.as_str()),
        ("NODE_EXTRA_CA_CERTS", ca.as_str()),
        ("KIRO_MODEL_DISCOVERY", "off"),
        ("KIRO_USAGE_INTERVAL", "0s"),
    ];
    let gov = "arn:aws-us-gov:codewhisperer:us-gov-west-1:111122223333:profile/GGGG1";
    let mut world = World::new(&[enterprise("access-gov", json!({ "profileArn": gov }))], &options).await;
    world.upstream = upstream;
    for _ in 0..3 {
        world.asks().await.unwrap();
    }
    world.saw(&[("chat", "us-gov-west-1", "GGGG1"); 3]);
    let asked = asked.lock().unwrap().clone();
    let (first, others) = asked.split_first().unwrap();
    assert_eq!(first, "q.us-gov-west-1.amazonaws.com");
    assert!(!others.is_empty() && others.iter().all(|host| host.starts_with("q-fips.us-gov-west-1.")), "{asked:?}");
    assert_eq!(world.state(0), "healthy");
    assert!(world.account(0)["errorCount"].as_u64().unwrap_or(0) == 0, "{}", world.account(0));
}

/// The world `no-service-arn`: Kiro's own ARN is refused, and the account goes without one.
#[tokio::test(flavor = "multi_thread")]
async fn a_world_that_refuses_kiros_own_profile_k77_k78() {
    let pool = [builder("one"), json!({ "accessToken": "two", "authMethod": "social" })];
    let world = World::new(&pool, &[]).await;
    world.upstream.control().world(json!("no-service-arn")).unwrap();
    for _ in 0..6 {
        world.asks_anew().await.unwrap();
    }
    let seen = world.seen();
    let count = |arn: &str| seen.iter().filter(|(what, _, found)| *what == "chat" && found == arn).count();
    assert_eq!((count("B"), count("S"), count("-")), (1, 1, 6), "one call more for each account, once: {seen:?}");
    for n in 0..pool.len() {
        assert_eq!(world.state(n), "healthy");
        assert!(world.account(n)["errorCount"].as_u64().unwrap_or(0) == 0, "{}", world.account(n));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_token_is_refreshed_once_and_then_the_variant_is_another_p18_k78() {
    let world = World::new(&[builder("sim-acct-builder-strict-token")], &[]).await;
    world.asks().await.unwrap();
    let seen = world.seen();
    let chats: Vec<&str> = seen.iter().filter(|(what, ..)| *what == "chat").map(|(_, _, arn)| arn.as_str()).collect();
    assert_eq!(chats, ["B", "B", "-"]);
    assert_eq!(seen.iter().filter(|(what, ..)| *what == "refresh").count(), 1);
    assert_eq!(world.state(0), "healthy");
    assert!(world.account(0)["errorCount"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_has_no_profile_p19_k77() {
    let world = World::new(&[json!({ "kiroApiKey": "sim-acct-key", "profileArn": E1 })], &[]).await;
    world.asks().await.unwrap();
    world.saw(&[("chat", EAST, "-")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_look_up_once_p20_k79() {
    let world = World::new(&[enterprise("sim-acct-enterprise", json!({}))], &[]).await;
    let asked = futures_util::future::join_all((0..40).map(|_| world.asks())).await;
    assert!(asked.iter().all(Result::is_ok), "{asked:?}");
    let stats = world.upstream.control().stats();
    assert_eq!(stats["calls_by_token"]["sim-acct-enterprise"], 40);
    let looked: Vec<Seen> = world.seen().into_iter().filter(|(what, ..)| *what == "profiles").collect();
    assert_eq!(looked.len(), 2, "{looked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proven_profile_that_is_refused_is_a_failure_p16_k78() {
    let world = World::new(
        &[
            enterprise("sim-acct-enterprise.one", json!({ "profileArn": E1 })),
            json!({ "accessToken": "x", "authMethod": "social" }),
        ],
        &[("KIRO_AFFINITY", "off")],
    )
    .await;
    world.asks().await.unwrap();
    world.asks().await.unwrap();
    let refused = json!({ "http": { "status": 403, "message": "User is not authorized to make this call." } });
    let script = json!({ "token": "sim-acct-enterprise.one", "scenarios": [refused] });
    world.upstream.control().script(script).unwrap();
    let before = world.seen().len();
    world.asks().await.unwrap();
    world.asks().await.unwrap();
    let after: Vec<Seen> = world.seen().split_off(before);
    assert!(after.iter().all(|(what, ..)| *what == "chat"), "nobody is asked for profiles: {after:?}");
    assert_eq!(after.iter().filter(|(_, _, arn)| arn == "EEEE1").count(), 1, "{after:?}");
    world.eventually("counted", |world| world.account(0)["errorCount"] == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_a_person_writes_counts_at_once_p21_r72() {
    let world = World::new(
        &[enterprise("sim-acct-enterprise-eu-central-1", json!({ "profileArn": E2 }))],
        &[("KIRO_ACCOUNT_CACHE_TTL", "100ms")],
    )
    .await;
    world.asks().await.unwrap();
    let mut record = world.token(0);
    record["profileArn"] = json!(E1);
    let mut set = redis::cmd("SET");
    set.arg(format!("aiclient:tokens:claude-kiro-oauth:{}", id(0))).arg(record.to_string());
    set.query::<()>(&mut world.redis.connection()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    // The account isn't in that region: what goes out is what counts here.
    while !world.seen().contains(&("chat", EAST.to_owned(), "EEEE1".to_owned())) {
        assert!(Instant::now() < deadline, "{:?}", world.seen());
        drop(world.asks().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_arn_counts_as_absent_p28_k77() {
    for none in [json!(""), Value::Null, json!(5)] {
        let world = World::new(&[json!({ "accessToken": "x", "authMethod": "social", "profileArn": none })], &[]).await;
        world.asks().await.unwrap();
        world.saw(&[("chat", EAST, "S")]);
    }
}

/// A fresh pool in the existing Node.js service's formats: every kind answers its first request, and none is marked.
#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_pool_of_every_kind_serves_without_any_help_k73_k77_k79() {
    let node = |access: &str| json!({ "accessToken": access, "refreshToken": "r", "authMethod": "builder-id", "clientId": "c", "clientSecret": "s" });
    let pool = [
        json!({ "accessToken": "sim-acct-social", "refreshToken": "r", "authMethod": "social" }),
        node("sim-acct-builder"),
        node("sim-acct-enterprise-eu-central-1"),
        json!({ "kiroApiKey": "sim-acct-key" }),
    ];
    let world = World::new(&pool, &[("KIRO_AFFINITY", "off")]).await;
    for n in 0..8 {
        world.asks().await.unwrap_or_else(|error| panic!("request {n}: {error}"));
    }
    for n in 0..pool.len() {
        assert_eq!(world.state(n), "healthy", "{n}");
        assert!(world.account(n)["errorCount"].as_u64().unwrap_or(0) == 0, "{n}");
    }
    let seen = world.seen();
    for used in [("chat", EAST, "S"), ("chat", EAST, "B"), ("chat", EUROPE, "EEEE2"), ("chat", EAST, "-")] {
        let used = (used.0, used.1.to_owned(), used.2.to_owned());
        assert_eq!(seen.iter().filter(|call| **call == used).count(), 2, "{used:?} in {seen:?}");
    }
}
