//! Every row of the configuration table is set, and its effect seen. A row without a test fails `every_setting_has_a_test`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kiro_messages::config::SETTINGS;
use kiro_messages::error::Code;
use kiro_messages::gateway::{Call, Gateway};
use kiro_messages::proto::kiro::route::Shape;
use serde_json::{Value, json};

use crate::place::{FAR, Place, Server, add_account, client, config, scene, simulator, social, within_10_s};
use crate::redis_server::RedisServer;
use crate::world::{KEY, STREAM, World, base, events, kinds, with};

macro_rules! effects {
    ($( $setting:ident: $test:ident => $effect:block )*) => {
        const HERE: &[&str] = &[$(stringify!($setting)),*];
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() $effect
        )*
    };
}

/// Rows whose effect another file's test sees.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("KIRO_USAGE_INTERVAL", "tests/credits.rs", "the_interval_is_a_setting_and_off_asks_nobody_k146"),
    ("KIRO_WEBHOOK_URL", "tests/webhook.rs", "a_dead_account_is_told_of_once_and_signed"),
    ("KIRO_WEBHOOK_SECRET", "tests/webhook.rs", "a_dead_account_is_told_of_once_and_signed"),
    ("KIRO_WEBHOOK_MIN_ACCOUNTS", "tests/webhook.rs", "too_few_accounts_are_told_of"),
    ("KIRO_MAX_CLIENT_CONNS", "tests/serving/limits.rs", "connections_are_capped"),
    ("KIRO_API_KEYS_FILE", "tests/operations/keys.rs", "a_key_in_a_file_is_rotated_without_a_break_r108"),
    ("KIRO_MAX_REQUEST_MEMORY", "tests/serving/bodies.rs", "a_request_waits_for_room_and_is_refused_after_a_while_m90"),
    ("KIRO_HEADER_TIMEOUT", "tests/serving/limits.rs", "clients_with_slow_heads_are_dropped"),
    ("KIRO_BODY_TIMEOUT", "tests/serving/limits.rs", "clients_with_slow_bodies_are_dropped"),
    ("KIRO_WRITE_TIMEOUT", "tests/serving/readers.rs", "a_client_that_reads_nothing_is_dropped"),
    ("KIRO_TLS_CERT", "tests/serving/tls.rs", "the_server_speaks_tls_and_takes_a_new_certificate"),
    ("KIRO_TLS_KEY", "tests/serving/tls.rs", "the_server_speaks_tls_and_takes_a_new_certificate"),
    ("KIRO_PORTAL_URL", "tests/cli/portal.rs", "a_wrong_state_is_waited_past_and_the_right_one_signs_in_p65_k97"),
    ("KIRO_STATE_DIR", "tests/refresh_outage.rs", "a_restart_while_the_store_takes_no_writes_loses_no_login_r51"),
    ("KIRO_ACCOUNT_RPM", "tests/gateway.rs", "conversations_a_minute_over_http_k92_p56"),
    (
        "KIRO_SUSPICION_BRAKE",
        "src/pool/tests.rs",
        "the_brake_is_seen_in_the_first_snapshot_and_can_be_switched_off_k92",
    ),
    ("KIRO_IMAGE_FIT", "tests/pictures.rs", "fitting_can_be_always_and_off_tr67"),
    (
        "KIRO_WEB_SEARCH_TIMEOUT",
        "tests/web_search.rs",
        "a_search_that_fails_is_a_block_and_harms_nobody_a150_a156_k135_k136_m71",
    ),
    ("KIRO_REUSE_PORT", "tests/serving/life.rs", "two_servers_share_a_port"),
];

#[test]
fn every_setting_has_a_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for setting in SETTINGS {
        let elsewhere = ELSEWHERE.iter().find(|(name, ..)| *name == setting.env);
        if let Some((name, file, test)) = elsewhere {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            assert!(text.contains(&format!("fn {test}(")), "{name}: no test {test} in {file}");
            assert!(text.contains(name), "{name}: {file} doesn't set it");
        } else {
            assert!(HERE.contains(&setting.env), "{} is set by no test: add its effect here", setting.env);
        }
    }
    for name in HERE {
        assert!(SETTINGS.iter().any(|setting| setting.env == *name), "{name} is no setting");
    }
}

effects! {
    KIRO_HOST: host => {
        // Linux listens on all of 127.0.0.0/8; elsewhere the IPv6 loopback has to do.
        let host = if cfg!(target_os = "linux") { "127.0.0.2" } else { "::1" };
        let server = Server::start(&["--host", host], &[]);
        assert!(server.address().contains(host), "{}", server.address());
        assert_eq!(server.ask("", &base()).await.status(), 200);
    }
    KIRO_PORT: port => {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server::start(&[], &[("KIRO_PORT", &free.to_string())]);
        assert_eq!(server.address(), format!("127.0.0.1:{free}"));
        let zero = Server::start(&["--port", "0"], &[("KIRO_PORT", &free.to_string())]);
        assert!(!zero.address().ends_with(":0") && zero.address() != server.address(), "{}", zero.address());
    }
    KIRO_API_KEY: api_key => {
        let server = Server::start(&[], &[("KIRO_API_KEY", "k-1")]);
        assert_eq!(server.ask("k-1", &base()).await.status(), 200);
        assert_eq!(server.ask("k-2", &base()).await.status(), 401);
    }
    KIRO_ALLOW_ANONYMOUS: allow_anonymous => {
        let mut refused = Server::spawn(&["--host", "0.0.0.0"], &[]);
        assert_eq!(refused.ended(), 2);
        let said = refused.lines().join("\n");
        assert!(said.contains("no client key") && said.contains("--allow-anonymous"), "{said}");
        let server = Server::start(&["--host", "0.0.0.0", "--allow-anonymous"], &[]);
        let address = server.address().replace("0.0.0.0", "127.0.0.1");
        let reply = client().post(format!("http://{address}/v1/messages")).body(base().to_string()).send().await.unwrap();
        assert_eq!(reply.status(), 200);
    }
    REDIS_URL: redis_url => {
        let place = Place::with(&["a", "b", "c"], &[]).await;
        assert_eq!(place.gateway.accounts().len(), 3);
    }
    REDIS_HOST: redis_host => {
        let redis = RedisServer::start();
        add_account(&mut redis.connection(), "aiclient:", 0, &social("access-1", FAR));
        let port = redis.port().to_string();
        let options = |host| [("REDIS_URL", ""), ("REDIS_HOST", host), ("REDIS_PORT", port.as_str()), ("KIRO_STORE_WAIT", "3s")];
        // Nobody listens on 127.0.0.2, so the host is what makes the difference.
        let refused = Gateway::start(config(&redis, &simulator(), &options("127.0.0.2"))).await.err().unwrap();
        assert_eq!(refused.code(), Code::StoreUnavailable);
        let place = Place::on(redis, &options("localhost")).await;
        assert_eq!(place.gateway.accounts().len(), 1);
    }
    REDIS_PORT: redis_port => {
        let redis = RedisServer::start();
        add_account(&mut redis.connection(), "aiclient:", 0, &social("access-1", FAR));
        let port = redis.port().to_string();
        let place = Place::on(redis, &[("REDIS_URL", ""), ("REDIS_PORT", &port)]).await;
        assert_eq!(place.gateway.accounts().len(), 1);
    }
    REDIS_PASSWORD: redis_password => {
        let redis = RedisServer::start();
        let mut connection = redis.connection();
        add_account(&mut connection, "aiclient:", 0, &social("access-1", FAR));
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("pw-1").query::<()>(&mut connection).unwrap();
        let port = redis.port().to_string();
        let options = |word| [("REDIS_URL", ""), ("REDIS_PORT", port.as_str()), ("REDIS_PASSWORD", word), ("KIRO_STORE_WAIT", "3s")];
        let refused = Gateway::start(config(&redis, &simulator(), &options("wrong"))).await.err().unwrap();
        assert!(!refused.message().contains("wrong"), "{}", refused.message());
        let upstream = simulator();
        let gateway = Gateway::start(config(&redis, &upstream, &options("pw-1"))).await.unwrap();
        assert_eq!(gateway.accounts().len(), 1);
    }
    REDIS_DB: redis_db => {
        let redis = RedisServer::start();
        let mut connection = redis.connection();
        redis::cmd("SELECT").arg(5).query::<()>(&mut connection).unwrap();
        add_account(&mut connection, "aiclient:", 0, &social("access-1", FAR));
        let port = redis.port().to_string();
        let place = Place::on(redis, &[("REDIS_URL", ""), ("REDIS_PORT", &port), ("REDIS_DB", "5")]).await;
        assert_eq!(place.gateway.accounts().len(), 1);
    }
    REDIS_KEY_PREFIX: redis_key_prefix => {
        let redis = RedisServer::start();
        add_account(&mut redis.connection(), "other:", 0, &social("access-1", FAR));
        let place = Place::on(redis, &[("REDIS_KEY_PREFIX", "other:")]).await;
        assert_eq!(place.gateway.accounts().len(), 1);
    }
    KIRO_REDIS_POOL_SIZE: redis_pool_size => {
        let place = Place::new(&[("KIRO_REDIS_POOL_SIZE", "7")]).await;
        let connections = || {
            let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut place.redis.connection()).unwrap();
            // Those over TCP are the gateway's; the test's own comes by the socket.
            list.lines().filter(|line| !line.contains("redis.sock")).count()
        };
        within_10_s("seven connections", || connections() == 7).await;
    }
    KIRO_STORE: store => {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pool.json");
        let id = crate::place::account_id(0);
        let pool = json!({ "accounts": { &id: { "uuid": &id } }, "tokens": { &id: social("from-the-file", FAR) } });
        std::fs::write(&file, pool.to_string()).unwrap();
        let place = Place::new(&[("KIRO_STORE", &format!("file:{}", file.display())), ("REDIS_URL", "")]).await;
        place.ask(base()).await.unwrap();
        assert_eq!(place.calls("from-the-file"), 1);
    }
    KIRO_STORE_WAIT: store_wait => {
        let redis = RedisServer::start();
        let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("redis://{nowhere}");
        let began = Instant::now();
        let late = Gateway::start(config(&redis, &simulator(), &[("REDIS_URL", &url), ("KIRO_STORE_WAIT", "400ms")])).await;
        let late = late.err().unwrap();
        assert_eq!(late.code(), Code::StoreUnavailable);
        assert!(late.message().contains(&url) && late.message().contains("KIRO_STORE=file:PATH"), "{late:?}");
        assert!((Duration::from_millis(400)..Duration::from_secs(4)).contains(&began.elapsed()), "{:?}", began.elapsed());
        let at_once = Gateway::start(config(&redis, &simulator(), &[("REDIS_URL", &url), ("KIRO_STORE_WAIT", "0s")])).await;
        assert!(!at_once.unwrap().health().can_serve);
    }
    KIRO_UPSTREAM: upstream => {
        let server = Server::start(&["--upstream", "simulator"], &[]);
        let reply = server.ask("", &base()).await;
        assert_eq!(reply.headers()["x-kiro-upstream"], "simulator");
        assert!(reply.text().await.unwrap().contains("\"stop_reason\":\"end_turn\""));
    }
    KIRO_UPSTREAM_URL: upstream_url => {
        let other = simulator();
        let place = Place::new(&[("KIRO_UPSTREAM_URL", &format!("{}/generateAssistantResponse", other.url()))]).await;
        place.ask(base()).await.unwrap();
        assert_eq!(other.control().stats()["calls_by_token"]["access-1"], 1);
        assert_eq!(place.calls("access-1"), 0);
    }
    KIRO_SOCIAL_REFRESH_URL: social_refresh_url => {
        let redis = RedisServer::start();
        add_account(&mut redis.connection(), "aiclient:", 0, &social("old", "2020-01-01T00:00:00.000Z"));
        let other = simulator();
        let place = Place::on(redis, &[("KIRO_SOCIAL_REFRESH_URL", &format!("{}/refreshToken", other.url()))]).await;
        place.ask(base()).await.unwrap();
        assert_eq!(other.control().stats()["refresh_calls"]["refresh-old"], 1);
    }
    KIRO_IDC_REFRESH_URL: idc_refresh_url => {
        let redis = RedisServer::start();
        let token = json!({
            "accessToken": "old", "refreshToken": "refresh-old", "expiresAt": "2020-01-01T00:00:00.000Z",
            "authMethod": "idc", "clientId": "c", "clientSecret": "s",
        });
        add_account(&mut redis.connection(), "aiclient:", 0, &token);
        let other = simulator();
        let place = Place::on(redis, &[("KIRO_IDC_REFRESH_URL", &format!("{}/token", other.url()))]).await;
        place.ask(base()).await.unwrap();
        assert_eq!(other.control().stats()["refresh_calls"]["refresh-old"], 1);
    }
    KIRO_UPSTREAM_API: upstream_api => {
        let place = Place::new(&[("KIRO_UPSTREAM_API", "runtime,q")]).await;
        assert_eq!(place.gateway.config().upstream_api, [Shape::Runtime, Shape::Q]);
    }
    KIRO_RUNTIME_URL: runtime_url => {
        let place = Place::new(&[("KIRO_RUNTIME_URL", "http://runtime.{region}.localhost:1/")]).await;
        assert_eq!(place.gateway.config().runtime_url, "http://runtime.{region}.localhost:1/");
    }
    KIRO_MANAGEMENT_URL: management_url => {
        let place = Place::new(&[("KIRO_MANAGEMENT_URL", "http://management.{region}.localhost:1")]).await;
        assert_eq!(place.gateway.config().management_url, "http://management.{region}.localhost:1");
    }
    KIRO_API_REGIONS: api_regions => {
        let place = Place::new(&[("KIRO_API_REGIONS", "us-east-1, ap-south-1")]).await;
        assert_eq!(place.gateway.config().api_regions, ["us-east-1", "ap-south-1"]);
        for wrong in ["us-east-1,", "evil.org/x", "*"] {
            let mut refused = Server::spawn(&[], &[("KIRO_API_REGIONS", wrong)]);
            assert_eq!(refused.ended(), 2, "{wrong}");
            assert!(refused.lines().join("\n").contains("KIRO_API_REGIONS"), "{wrong}");
        }
    }
    // P38, P39; what it allows: tests/accounts/external.rs.
    KIRO_EXTERNAL_IDP_HOSTS: external_idp_hosts => {
        let place = Place::new(&[("KIRO_EXTERNAL_IDP_HOSTS", "only:sso.example.org")]).await;
        let check = |url| place.gateway.config().external_idp_hosts.check("tokenEndpoint", url);
        assert_eq!(check("https://sso.example.org/t"), Ok(()));
        check("https://login.microsoftonline.com/t").unwrap_err();
        for wrong in ["*", ".com", "10.0.0.1", "http://example.org"] {
            let mut refused = Server::spawn(&[], &[("KIRO_EXTERNAL_IDP_HOSTS", wrong)]);
            assert_eq!(refused.ended(), 2, "{wrong}");
            let said = refused.lines().join("\n");
            assert!(said.contains("KIRO_EXTERNAL_IDP_HOSTS") && said.contains("host names"), "{wrong}: {said}");
        }
    }
    KIRO_BUILDER_ID_PROFILE_ARN: builder_id_profile_arn => {
        let place = Place::new(&[("KIRO_BUILDER_ID_PROFILE_ARN", "")]).await;
        assert_eq!(place.gateway.config().builder_id_profile_arn, "", "empty is a value: none is sent");
        let mut refused = Server::spawn(&[], &[("KIRO_BUILDER_ID_PROFILE_ARN", "arn:aws:s3:::x")]);
        assert_eq!(refused.ended(), 2);
    }
    KIRO_SOCIAL_PROFILE_ARN: social_profile_arn => {
        let arn = "arn:aws:codewhisperer:us-east-1:1:profile/X";
        let place = Place::new(&[("KIRO_SOCIAL_PROFILE_ARN", arn)]).await;
        assert_eq!(place.gateway.config().social_profile_arn, arn);
    }
    KIRO_FAILOVER_TIME: failover_time => {
        let place = Place::with(&["sim-403.1", "sim-403.2"], &[("KIRO_FAILOVER_TIME", "1ms")]).await;
        place.ask(base()).await.unwrap_err();
        assert_eq!(place.calls("sim-403.1") + place.calls("sim-403.2"), 1);
    }
    KIRO_CLIENT_VERSION: client_version => {
        let place = Place::new(&[("KIRO_CLIENT_VERSION", "9.8.7")]).await;
        place.ask(base()).await.unwrap();
        let agent = place.last_request()["headers"]["user-agent"].as_str().unwrap().to_owned();
        assert!(agent.contains("KiroIDE-9.8.7-"), "{agent}");
    }
    KIRO_CLIENT_AGENT_VERSION: client_agent_version => {
        let place = Place::new(&[("KIRO_CLIENT_AGENT_VERSION", "9.8.7")]).await;
        // Shape `runtime` says it.
        assert_eq!(place.gateway.config().client_agent_version, "9.8.7");
    }
    KIRO_PROXY_URL: proxy_url => {
        let proxy = Witness::plain();
        let place = Place::new(&[("KIRO_PROXY_URL", &proxy.url("http")), ("KIRO_MAX_ATTEMPTS", "1")]).await;
        let _refused_by_the_witness = place.ask(base()).await;
        assert!(proxy.saw(), "nobody came to the proxy");
        assert_eq!(place.calls("access-1"), 0);
    }
    NODE_EXTRA_CA_CERTS: extra_ca_certs => {
        let folder = tempfile::tempdir().unwrap();
        let upstream = Witness::tls(folder.path());
        let url = upstream.url("https");
        let options = [("KIRO_UPSTREAM_URL", url.as_str()), ("KIRO_MAX_ATTEMPTS", "1")];
        let _not_trusted = Place::new(&options).await.ask(base()).await;
        assert!(!upstream.saw(), "a certificate of nobody was believed");
        let file = folder.path().join("server.crt").display().to_string();
        let trusting = [options[0], options[1], ("NODE_EXTRA_CA_CERTS", file.as_str())];
        let _refused_by_the_witness = Place::new(&trusting).await.ask(base()).await;
        assert!(upstream.saw(), "the file's certificate was not believed");
    }
    KIRO_MAX_CONNS: max_conns => {
        let place = Place::new(&[("KIRO_MAX_CONNS", "1")]).await;
        let held = hold(&place.gateway, &json!({ "text": "a", "end": "hang" })).await;
        let refused = place.ask(base()).await.unwrap_err();
        assert_eq!((refused.code(), refused.status()), (Code::Overloaded, 529));
        drop(held);
        place.ask(base()).await.unwrap();
    }
    KIRO_MAX_INFLIGHT_PER_ACCOUNT: max_inflight_per_account => {
        let place = Place::with(&["a", "b"], &[("KIRO_MAX_INFLIGHT_PER_ACCOUNT", "1")]).await;
        let hang = json!({ "text": "a", "end": "hang" });
        let _held = (hold(&place.gateway, &hang).await, hold(&place.gateway, &hang).await);
        assert_eq!((place.calls("a"), place.calls("b")), (1, 1));
        assert_eq!(place.ask(base()).await.unwrap_err().code(), Code::NoAccount);
    }
    KIRO_STRATEGY: strategy => {
        let busy = Place::with(&["a", "b"], &[("KIRO_STRATEGY", "least-busy")]).await;
        let _held = hold(&busy.gateway, &json!({ "text": "a", "end": "hang" })).await;
        for _ in 0..4 {
            busy.ask(base()).await.unwrap();
        }
        let mut calls = [busy.calls("a"), busy.calls("b")];
        calls.sort_unstable();
        assert_eq!(calls, [1, 4], "least-busy: the account with an open stream got more");

        let sticky = Place::with(&["a", "b", "c"], &[("KIRO_STRATEGY", "sticky")]).await;
        let body = with(json!({ "metadata": { "user_id": "user_x_account__session_0b0e1fb2-1c2c-4f3e-9a6b-4a4c1d2e3f40" } }));
        for _ in 0..6 {
            sticky.ask(body.clone()).await.unwrap();
        }
        let calls = [sticky.calls("a"), sticky.calls("b"), sticky.calls("c")];
        assert!(calls.contains(&6), "sticky: one conversation went to {calls:?}");
    }
    KIRO_MAX_ATTEMPTS: max_attempts => {
        let place = Place::with(&["sim-500.1", "sim-500.2", "sim-500.3", "sim-500.4"], &[("KIRO_MAX_ATTEMPTS", "2")]).await;
        assert_eq!(place.ask(base()).await.unwrap_err().code(), Code::Upstream);
        let calls: u64 = (1..=4).map(|n| place.calls(&format!("sim-500.{n}"))).sum();
        assert_eq!(calls, 2);
    }
    KIRO_HEALTH_COOLDOWN: health_cooldown => {
        let place = Place::with(&["sim-429"], &[("KIRO_HEALTH_COOLDOWN", "7s")]).await;
        assert_eq!(place.ask(base()).await.unwrap_err().code(), Code::RateLimited);
        let account = &place.gateway.status().accounts[0];
        assert_eq!(account.state, "cooling");
        assert!(account.rests_seconds.is_some_and(|rest| (5..=8).contains(&rest)), "{account:?}");
    }
    KIRO_ACCOUNT_WAIT: account_wait => {
        let options = [("KIRO_ACCOUNT_WAIT", "9s"), ("KIRO_MAX_INFLIGHT_PER_ACCOUNT", "1")];
        let place = Place::new(&options).await;
        let held = hold(&place.gateway, &json!({ "text": "a", "end": "hang" })).await;
        let (asked, ()) = tokio::join!(place.ask(base()), async {
            within_10_s("somebody waits", || place.gateway.status().waiting == 1).await;
            drop(held);
        });
        asked.unwrap();
    }
    KIRO_ACCOUNT_CACHE_TTL: account_cache_ttl => {
        // So slow that only the long default could hide it.
        let slow = Place::new(&[("KIRO_ACCOUNT_CACHE_TTL", "1h")]).await;
        let quick = Place::new(&[("KIRO_ACCOUNT_CACHE_TTL", "100ms")]).await;
        for place in [&slow, &quick] {
            add_account(&mut place.redis.connection(), "aiclient:", 1, &social("access-2", FAR));
        }
        within_10_s("the new account is seen", || quick.gateway.accounts().len() == 2).await;
        assert_eq!(slow.gateway.accounts().len(), 1);
    }
    KIRO_REFRESH_THRESHOLD: refresh_threshold => {
        // A day from now: far beyond the default of 5 minutes.
        let tomorrow = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string();
        let start = async |threshold: &str| {
            let redis = RedisServer::start();
            add_account(&mut redis.connection(), "aiclient:", 0, &social("old", &tomorrow));
            Place::on(redis, &[("KIRO_REFRESH_THRESHOLD", threshold)]).await
        };
        let calls = |place: &Place| place.upstream.control().stats()["refresh_calls"]["refresh-old"].as_u64();
        let (late, early) = (start("5m").await, start("48h").await);
        within_10_s("it is refreshed in the background", || calls(&early).is_some()).await;
        assert_eq!(calls(&late), None);
    }
    KIRO_CONNECT_TIMEOUT: connect_timeout => {
        // It takes connections and never says a word of TLS.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/x", silent.local_addr().unwrap());
        let place = Place::new(&[("KIRO_UPSTREAM_URL", &url), ("KIRO_CONNECT_TIMEOUT", "300ms"), ("KIRO_MAX_ATTEMPTS", "1")]).await;
        let began = Instant::now();
        assert_eq!(place.ask(base()).await.unwrap_err().code(), Code::Upstream);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    KIRO_FIRST_EVENT_TIMEOUT: first_event_timeout => {
        let place = Place::with(&["sim-silent"], &[("KIRO_FIRST_EVENT_TIMEOUT", "300ms")]).await;
        let began = Instant::now();
        assert_eq!(place.ask(base()).await.unwrap_err().code(), Code::UpstreamTimeout);
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
    KIRO_UPSTREAM_KEEP_IDLE: upstream_keep_idle => {
        for (keep, connections) in [("0", 3), ("55s", 1)] {
            let quiet = [("KIRO_MODEL_DISCOVERY", "off"), ("KIRO_USAGE_INTERVAL", "0s")];
            let place = Place::new(&[[("KIRO_UPSTREAM_KEEP_IDLE", keep)].as_slice(), &quiet].concat()).await;
            for n in 0..3 {
                place.ask(with(json!({ "messages": [{ "role": "user", "content": format!("turn {n}") }] }))).await.unwrap();
            }
            assert_eq!(place.upstream.control().stats()["connections"]["accepted"], connections, "{keep}");
        }
    }
    KIRO_IDLE_TIMEOUT: idle_timeout => {
        let place = Place::with(&["sim-stall"], &[("KIRO_IDLE_TIMEOUT", "300ms")]).await;
        let began = Instant::now();
        assert_eq!(place.ask(base()).await.unwrap_err().code(), Code::UpstreamTimeout);
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
    KIRO_EARLY_HEADERS: early_headers => {
        let world = World::new(&[("KIRO_EARLY_HEADERS", "100ms")]).await;
        let body = with_stream(&json!({ "text": "late", "first_ms": 3000 }));
        let began = Instant::now();
        let request = world.http.post(world.url("/v1/messages")).header("x-api-key", KEY).body(body.to_string());
        let mut reply = request.send().await.unwrap();
        assert!(reply.chunk().await.unwrap().unwrap().starts_with(b"event: message_start"));
        assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    }
    KIRO_PING_INTERVAL: ping_interval => {
        let world = World::new(&[("KIRO_PING_INTERVAL", "100ms")]).await;
        let steps = json!({ "steps": [{ "text": "a" }, { "wait_ms": 700 }, { "text": "b" }] });
        let reply = world.scene(&steps, STREAM()).await;
        let pings = kinds(&events(&reply.text)).iter().filter(|kind| **kind == "ping").count();
        assert!(pings >= 3, "{}", reply.text);
    }
    KIRO_MAX_REQUEST_BODY: max_request_body => {
        let world = World::new(&[("KIRO_MAX_REQUEST_BODY", "1KiB")]).await;
        let body = with(json!({ "messages": [{ "role": "user", "content": "x".repeat(1024) }] }));
        assert_eq!(world.messages(&body).await.status, 413);
        assert_eq!(world.messages(&base()).await.status, 200);
    }
    KIRO_USAGE_SPLIT: usage_split => {
        let scenario = json!({ "text": "a", "usage": false });
        let cached = |answer: Value| answer["usage"]["cache_read_input_tokens"].as_u64().unwrap();
        let long = json!({ "messages": [{ "role": "user", "content": format!("{} [[sim {scenario}]]", "word ".repeat(400)) }] });
        let split = Place::new(&[("KIRO_USAGE_SPLIT", "ratio")]).await.ask(with(long.clone())).await.unwrap();
        let none = Place::new(&[("KIRO_USAGE_SPLIT", "none")]).await.ask(with(long)).await.unwrap();
        assert!(cached(split.clone()) > 0, "{split}");
        assert_eq!(cached(none.clone()), 0, "{none}");
    }
    KIRO_MODELS_FILE: models_file => {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("models.json");
        std::fs::write(&file, models("claude-next-1")).unwrap();
        let settings = [("KIRO_MODELS_FILE", file.to_str().unwrap()), ("KIRO_MODEL_UNKNOWN", "refuse")];
        let place = Place::new(&settings).await;
        place.ask(with(json!({ "model": "claude-next-1" }))).await.unwrap();
        assert_eq!(place.ask(base()).await.unwrap_err().code(), Code::NotFound);
        let sent: Value = serde_json::from_str(place.last_request()["body"].as_str().unwrap()).unwrap();
        assert!(sent.to_string().contains("\"modelId\":\"claude-opus-5.5\""), "{sent}");
    }
    KIRO_MODEL_FALLBACK: model_fallback => {
        let unknown = || with(json!({ "model": "claude-of-tomorrow" }));
        assert_eq!(Place::new(&[]).await.ask(unknown()).await.unwrap_err().code(), Code::NotFound);
        let place = Place::new(&[("KIRO_MODEL_FALLBACK", "claude-sonnet-4-5")]).await;
        assert_eq!(place.ask(unknown()).await.unwrap()["model"], "claude-of-tomorrow");
    }
    KIRO_MODEL_UNKNOWN: model_unknown => {
        let unknown = || with(json!({ "model": "claude-poet-7-1-20270101" }));
        let refusing = Place::new(&[("KIRO_MODEL_UNKNOWN", "refuse")]).await;
        assert_eq!(refusing.ask(unknown()).await.unwrap_err().code(), Code::NotFound);
        let passing = Place::new(&[]).await;
        // Whether it is one is for upstream to say.
        let _served = passing.ask(unknown()).await;
        let sent = passing.last_request()["body"].as_str().unwrap().to_owned();
        assert!(sent.contains(r#""modelId":"claude-poet-7.1""#), "{sent}");
    }
    KIRO_MODEL_AUTO: model_auto => {
        for (said, model) in [("auto", "auto"), ("claude-sonnet-4-5", "claude-sonnet-4.5")] {
            let place = Place::new(&[("KIRO_MODEL_AUTO", said)]).await;
            place.ask(with(json!({ "model": "auto" }))).await.unwrap();
            let sent = place.last_request()["body"].as_str().unwrap().to_owned();
            assert!(sent.contains(&format!(r#""modelId":"{model}""#)), "{said}: {sent}");
        }
    }
    KIRO_WEB_SEARCH: web_search => {
        let tool = json!({ "type": "web_search_20250305", "name": "web_search" });
        for (word, declared) in [("on", true), ("off", false)] {
            let place = Place::new(&[("KIRO_WEB_SEARCH", word)]).await;
            place.ask(with(json!({ "tools": [{ "name": "f" }, tool] }))).await.unwrap();
            let body = place.last_request()["body"].as_str().unwrap().to_owned();
            assert_eq!(body.contains(r#""name":"web_search""#), declared, "{word}: {body}");
            let alone = with(json!({ "tools": [tool] }));
            assert_eq!(place.ask(alone.clone()).await.is_ok(), declared, "{word}");
            assert_eq!(place.gateway.count_tokens(alone.to_string().as_bytes()).is_ok(), declared, "{word}");
        }
    }
    KIRO_WEB_SEARCH_MAX_ROUNDS: web_search_max_rounds => {
        let place = Place::new(&[("KIRO_WEB_SEARCH_MAX_ROUNDS", "1")]).await;
        let search = json!({ "tools": [{ "name": "web_search", "input": { "query": "x" } }] });
        let request = json!({
            "tools": [{ "type": "web_search_20250305", "name": "web_search" }],
            "messages": [{ "role": "user", "content": format!("x [[sim {search}]]") }],
        });
        let answer = place.ask(with(request)).await.unwrap();
        assert_eq!(answer["stop_reason"], "pause_turn", "{answer}");
        assert_eq!(answer["content"][1]["type"], "web_search_tool_result", "{answer}");
    }
    KIRO_MODEL_DISCOVERY: model_discovery => {
        // What no account has isn't listed, once that is known.
        let file = json!([
            { "kiro_id": "claude-sonnet-4.5", "names": ["claude-sonnet-4-5"], "display_name": "d", "created": "2025-09-29T00:00:00Z", "window": 1, "max_output": 1 },
            { "kiro_id": "claude-nobodys", "names": ["claude-nobodys"], "display_name": "d", "created": "2025-09-29T00:00:00Z", "window": 1, "max_output": 1 },
        ]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let table = ("KIRO_MODELS_FILE", path.to_str().unwrap());
        let lists = |place: &Place, id: &str| place.gateway.list_models().iter().any(|model| model.id == id);
        let (on, off) = (Place::new(&[table]).await, Place::new(&[table, ("KIRO_MODEL_DISCOVERY", "off")]).await);
        assert!(lists(&on, "claude-nobodys"), "nobody was asked before the first answer");
        for place in [&on, &off] {
            place.ask(base()).await.unwrap();
        }
        within_10_s("the catalogue", || !lists(&on, "claude-nobodys") && lists(&on, "claude-sonnet-4-5")).await;
        assert!(on.gateway.model("claude-sonnet-4-5").unwrap().max_input_tokens > 1, "the account's figure");
        assert!(lists(&off, "claude-nobodys"));
    }
    KIRO_MODELS_LIST: models_list => {
        let listed = async |word| {
            let models = Place::new(&[("KIRO_MODELS_LIST", word)]).await.gateway.list_models();
            models.iter().any(|model| model.id == "gpt-5.6-sol")
        };
        assert!(listed("all").await && !listed("claude").await);
    }
    KIRO_MAX_TOKENS: max_tokens => {
        let body = || with(json!({ "model": "claude-opus-5-5", "max_tokens": 64_000 }));
        for (word, sent) in [("forward", true), ("ignore", false)] {
            let place = Place::new(&[("KIRO_MAX_TOKENS", word)]).await;
            place.ask(body()).await.unwrap();
            let body = place.last_request()["body"].as_str().unwrap().to_owned();
            assert_eq!(body.contains(r#""additionalModelRequestFields":{"max_tokens":64000}"#), sent, "{word}: {body}");
            let answer = place.ask(with(json!({ "max_tokens": 1 }))).await.unwrap();
            assert_eq!(answer["stop_reason"], if sent { "max_tokens" } else { "end_turn" }, "{word}: {answer}");
        }
    }
    KIRO_CACHE_POINTS: cache_points => {
        let block = json!([{ "type": "text", "text": "long", "cache_control": { "type": "ephemeral" } }]);
        let body = || with(json!({ "messages": [{ "role": "user", "content": block }] }));
        for (word, points) in [("off", 0), ("on", 1), ("client", 1), ("auto", 2)] {
            let place = Place::new(&[("KIRO_CACHE_POINTS", word)]).await;
            let mut body = body();
            body["system"] = json!("S");
            place.ask(body).await.unwrap();
            let sent = place.last_request()["body"].as_str().unwrap().to_owned();
            assert_eq!(sent.matches("cachePoint").count(), points, "{word}: {sent}");
        }
    }
    KIRO_AFFINITY: affinity => {
        for (word, stays) in [("conversation", true), ("off", false)] {
            let place = Place::with(&["access-1", "access-2"], &[("KIRO_AFFINITY", word)]).await;
            for _ in 0..4 {
                place.ask(base()).await.unwrap();
            }
            let calls = place.calls("access-1");
            assert_eq!(calls == 0 || calls == 4, stays, "{word}: {calls}");
        }
    }
    KIRO_CONVERSATION_ID: conversation_id => {
        for (word, same) in [("derive", true), ("random", false)] {
            let place = Place::new(&[("KIRO_CONVERSATION_ID", word)]).await;
            let mut sent = Vec::new();
            for _ in 0..2 {
                place.ask(base()).await.unwrap();
                sent.push(place.last_request()["body"].clone());
            }
            assert_eq!(sent[0] == sent[1], same, "{word}: {sent:?}");
        }
    }
    KIRO_ID_SECRET: id_secret => {
        let mut sent = Vec::new();
        for secret in ["a secret of ours 1", "a secret of ours 1", "a secret of ours 2"] {
            let place = Place::new(&[("KIRO_ID_SECRET", secret)]).await;
            place.ask(base()).await.unwrap();
            sent.push(place.last_request()["body"].clone());
        }
        assert!(sent[0] == sent[1] && sent[1] != sent[2], "{sent:?}");
        assert_eq!(Server::spawn(&[], &[("KIRO_ID_SECRET", "15 characters..")]).ended(), 2);
    }
    KIRO_SYSTEM_TEXT: system_text => {
        for (word, text) in [("pair", r#""content":"S""#), ("fold", r#""content":"S\n\nhi""#)] {
            let place = Place::new(&[("KIRO_SYSTEM_TEXT", word)]).await;
            place.ask(with(json!({ "system": "S", "messages": [{ "role": "user", "content": "hi" }] }))).await.unwrap();
            let sent = place.last_request()["body"].as_str().unwrap().to_owned();
            assert!(sent.contains(text), "{word}: {sent}");
        }
    }
    KIRO_GRACEFUL_TIMEOUT: graceful_timeout => {
        let mut server = Server::start(&[], &[("KIRO_GRACEFUL_TIMEOUT", "500ms")]);
        let mut reply = server.ask("", &with_stream(&json!({ "text": "a", "end": "hang" }))).await;
        assert!(reply.chunk().await.unwrap().is_some());
        let began = Instant::now();
        server.signal("-TERM");
        let mut rest = String::new();
        while let Some(chunk) = reply.chunk().await.unwrap() {
            rest.push_str(&String::from_utf8_lossy(&chunk));
        }
        assert!(rest.contains("event: error") && rest.contains("overloaded_error"), "{rest}");
        assert_eq!(server.ended(), 0);
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
    KIRO_LOG_LEVEL: log_level => {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let quiet = Server::spawn(&["--log-level", "error"], &[("KIRO_PORT", &free.port().to_string())]);
        let talking = Server::start(&[], &[("KIRO_LOG_LEVEL", "debug")]);
        assert_eq!(talking.ask("", &base()).await.text().await.unwrap().matches("end_turn").count(), 1);
        talking.line("a request", |line| line["message"] == "request" && line["level"] == "INFO");
        within_10_s("the quiet one listens", || std::net::TcpStream::connect(free).is_ok()).await;
        let asked = client().post(format!("http://{free}/v1/messages")).body(base().to_string());
        assert_eq!(asked.send().await.unwrap().status(), 200);
        assert!(quiet.lines().is_empty(), "{:?}", quiet.lines());
    }
    KIRO_LOG_FORMAT: log_format => {
        let server = Server::spawn(&["--log-format", "pretty"], &[]);
        within_10_s("a line for people", || server.lines().iter().any(|line| line.contains("listening"))).await;
        assert!(server.lines().iter().all(|line| !line.starts_with('{')), "{:?}", server.lines());
    }
    KIRO_PROFILE_ADDR: profile_addr => {
        let server = Server::start(&["--profile", "127.0.0.1:0"], &[]);
        let line = server.line("where", |line| line["message"].as_str().is_some_and(|text| text.contains("/debug")));
        let url = format!("http://{}/debug/tasks", line["address"].as_str().unwrap());
        let tasks: Value = serde_json::from_str(&client().get(url).send().await.unwrap().text().await.unwrap()).unwrap();
        assert!(tasks["tasks_alive"].as_u64().unwrap() >= 1, "{tasks}");
    }
    KIRO_DEBUG_DUMP_DIR: debug_dump_dir => {
        let folder = tempfile::tempdir().unwrap();
        let dumps = folder.path().join("dumps");
        let place = Place::with(&["sim-400"], &[("KIRO_DEBUG_DUMP_DIR", dumps.to_str().unwrap())]).await;
        place.ask(base()).await.unwrap_err();
        within_10_s("a dump", || std::fs::read_dir(&dumps).unwrap().count() == 1).await;
    }
}

pub fn models(name: &str) -> String {
    json!([{ "kiro_id": "claude-opus-5.5", "names": [name], "display_name": "Next", "created": "2026-11-01T00:00:00Z", "window": 172_500, "max_output": 64_000 }]).to_string()
}

pub fn with_stream(scenario: &Value) -> Value {
    let mut body = scene(scenario);
    body["stream"] = json!(true);
    body
}

/// A stream whose first bytes have come.
pub async fn hold(gateway: &Gateway, scenario: &Value) -> Box<kiro_messages::gateway::MessageStream> {
    let mut stream = gateway.stream(with_stream(scenario).to_string().into(), Call::default()).await.unwrap();
    assert!(stream.next().await.is_some());
    stream
}

/// Somebody who takes connections, notes that an HTTP request came, and answers it with a 400.
struct Witness {
    address: std::net::SocketAddr,
    saw: Arc<AtomicBool>,
}

impl Witness {
    fn plain() -> Self {
        Self::start(hear)
    }

    /// With a certificate for 127.0.0.1 that it signed itself, `server.crt` in the folder.
    fn tls(folder: &std::path::Path) -> Self {
        let made = std::process::Command::new("openssl")
            .args(
                "req -x509 -newkey rsa:2048 -nodes -keyout server.key -out server.crt -days 2 -subj /CN=upstream"
                    .split(' '),
            )
            .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
            .current_dir(folder)
            .output()
            .expect("this test needs openssl on the PATH: apt-get install openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        use rustls::pki_types::pem::PemObject;
        let cert = rustls::pki_types::CertificateDer::from_pem_file(folder.join("server.crt")).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        let config = Arc::new(config);
        Self::start(move |stream, saw| {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            hear(rustls::StreamOwned::new(session, stream), saw);
        })
    }

    fn start(take: impl Fn(std::net::TcpStream, &AtomicBool) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let saw = Arc::new(AtomicBool::new(false));
        let seen = saw.clone();
        // Ends with the test's process.
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| take(stream, &seen)));
        Self { address, saw }
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}/generateAssistantResponse", self.address)
    }

    fn saw(&self) -> bool {
        self.saw.load(Ordering::SeqCst)
    }
}

fn hear(mut stream: impl Read + Write, saw: &AtomicBool) {
    let mut head = [0; 4];
    if stream.read_exact(&mut head).is_ok() && head == *b"POST" {
        saw.store(true, Ordering::SeqCst);
        let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _gone = stream.flush();
    }
}
