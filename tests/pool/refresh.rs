//! Refreshing a token: what is sent, what comes of the answer, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kiro_messages::config::{Face, RawConfig};
use kiro_messages::credentials::RefreshError;
use kiro_messages::error::Code;
use kiro_messages::gateway::Gateway;
use kiro_messages::policy::health::HealthState;
use kiro_messages::pool::{Hooks, PoolEvent, Wanted};
use kiro_messages::proto::kiro::fault::FaultKind;
use kiro_messages::proto::kiro::token::Refusal;
use kiro_messages::secret::Secret;
use redis::Commands as _;
use tokio::time::{Instant, sleep, timeout};

use super::accounts::{POOL, put_account, record, token};
use super::address::{Address, grant, refused};
use super::clock::{Time, eventually, t0};
use super::instance::{Instance, LIVE, expired, lock_key, usage};
use super::redis_server::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_id_refresh_keeps_the_record_case_22_k9_k100() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let before = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":1767225600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","startUrl":"https://x.awsapps.com/start","n":[]}"#;
    put_account(
        &mut redis,
        "a1",
        &format!(
            r#"{{"needsRefresh":true,"refreshCount":2,"KIRO_REFRESH_IDC_URL":"{}/token?r={{region}}"}}"#,
            address.url
        ),
        before,
    );
    let one = Instance::start(&server, &time, &[]).await;
    eventually("the refresh", Duration::from_secs(5), || token(&mut redis, "a1") != before).await;
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-2","expiresAt":1795431600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","startUrl":"https://x.awsapps.com/start","n":[]}"#
    );
    eventually("lock gone", Duration::from_secs(1), || !redis.exists::<_, bool>(lock_key("a1")).unwrap()).await;
    one.written().await;
    let after = record(&mut redis, "a1");
    let healthy = r#""lastHealthCheckTime":"2026-11-23T10:00:00.000Z"}"#;
    assert!(after.starts_with(r#"{"needsRefresh":false,"refreshCount":0,"#) && after.ends_with(healthy), "{after}");
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!((address.calls(), one.state("a1")), (1, HealthState::Healthy));
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!(call.path, "/token?r=us-east-1");
    assert_eq!(
        call.body,
        serde_json::json!({"refreshToken":"refresh-1","clientId":"c","clientSecret":"s","grantType":"refresh_token"})
    );
    let header = |name: &str| call.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("accept"), Some("application/json"));
    // K100: no version and no machine id.
    assert_eq!(header("x-amz-user-agent").unwrap(), "aws-sdk-js/3.980.0 KiroIDE");
    assert!(header("user-agent").unwrap().ends_with("api/sso-oidc#3.980.0 m/E KiroIDE"));
    assert_eq!(header("amz-sdk-request"), Some("attempt=1; max=4"));
    assert!(header("authorization").is_none() && header("accept-encoding").is_none());
    let told = one.events.lock().unwrap().clone();
    assert!(matches!(&told[..], [PoolEvent::TokenRefreshed { id, .. }] if &**id == "a1"), "{told:?}");
    one.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_social_refresh_learns_the_profile_and_keeps_the_refresh_token_case_23_k8_trap_35() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let answer = r#"{"accessToken":"new","expiresIn":3600,"profileArn":"arn:x"}"#;
    let address = Address::start(move |_| async move { (200, answer.to_owned()) }).await;
    let before = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T10:00:00Z","authMethod":"social","profileArn":""}"#;
    put_account(&mut redis, "a1", &format!(r#"{{"KIRO_REFRESH_URL":"{}/refreshToken"}}"#, address.url), before);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new", "an expired token is refreshed before the request goes out");
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some("arn:x"));
    eventually("saved", Duration::from_secs(5), || token(&mut redis, "a1") != before).await;
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-1","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social","profileArn":"arn:x"}"#
    );
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!((call.path.as_str(), &call.body), ("/refreshToken", &serde_json::json!({"refreshToken":"refresh-1"})));
    let machine = one.pool.account("a1").unwrap().machine_id().to_owned();
    assert_eq!(
        call.headers["user-agent"].to_str().unwrap(),
        format!("KiroIDE-{}-{machine}", kiro_messages::proto::kiro::client_identity::VERSION)
    );
    assert!(!call.headers.contains_key("x-amz-user-agent"));
}

/// What refusals leave on the account, and from which one on they are believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refresh_leaves_its_mark_k57_k58_k59_k61_r41() {
    let table = [
        // method, status, body, how many it takes, message
        ("social", 400, r#"{"message":"Invalid refresh token"}"#, 1, "refresh token rejected ({}) in us-east-1"),
        ("IdC", 400, r#"{"error":"invalid_grant"}"#, 1, "refresh token rejected ({}) in eu-west-1"),
        ("IdC", 401, r#"{"error":"invalid_client"}"#, 1, "client registration expired ({})"),
        ("social", 401, r#"{"message":"Bad credentials"}"#, 3, "refresh token rejected ({}) in us-east-1"),
        ("social", 404, r#"{"message":"Not found"}"#, 3, "refresh token rejected ({}) in us-east-1"),
    ];
    for (n, (method, status, body, believed_at, message)) in table.into_iter().enumerate() {
        let server = RedisServer::start();
        let (mut redis, time) = (server.connection(), Time::new());
        let address = Address::start(move |_| async move { (status, body.to_owned()) }).await;
        let own = format!(r#"{{"KIRO_REFRESH_URL":"{0}/r","KIRO_REFRESH_IDC_URL":"{0}/r"}}"#, address.url);
        let token = format!(
            r#"{{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"{method}","region":"eu-north-1","idcRegion":"eu-west-1","clientId":"c","clientSecret":"s"}}"#
        );
        put_account(&mut redis, "a1", &own, &token);
        let one = Instance::start(&server, &time, &[]).await;
        for refusal in 1..=believed_at {
            // An unknown answer (K61) counts however soon it comes, that of the background refresh too.
            if status != 404 {
                assert_ne!(one.state("a1"), HealthState::Ejected, "{n}: before refusal {refusal}");
            }
            one.credentials.refresh("a1").await.unwrap_err();
            one.credentials.refresh("a1").await.unwrap_err();
            time.pass(61);
        }
        assert_eq!(one.state("a1"), HealthState::Ejected, "{n}");
        assert!(address.calls() >= believed_at, "{n}");
        one.written().await;
        let marked = record(&mut redis, "a1");
        let message = format!("ejected: {}; log in again", message.replace("{}", "bd473e5d"));
        assert!(marked.contains(&message) && marked.contains(r#""errorCount":10"#), "{n}: {marked}");
    }
}

/// Trap 34: a slow refresh of one account doesn't delay another.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_refresh_side_by_side_and_outlive_their_callers_r39_trap_34() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        let slow = call.body["refreshToken"] == "slow";
        if slow {
            sleep(Duration::from_millis(800)).await;
        }
        (200, grant(if slow { "slow-new" } else { "fast-new" }, None))
    })
    .await;
    let (record, old) = expired(&address);
    put_account(&mut redis, "a1", &record, &old.replace("refresh-1", "slow"));
    put_account(&mut redis, "a2", &record, &old.replace("refresh-1", "fast"));
    let one = Instance::start(&server, &time, &[]).await;
    let left = timeout(Duration::from_millis(100), one.token_of("a1")).await;
    assert!(left.is_err(), "this client goes away");
    let begun = Instant::now();
    assert_eq!(one.token_of("a2").await.unwrap(), "fast-new");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    eventually("saved all the same", Duration::from_secs(2), || token(&mut redis, "a1").contains("slow-new")).await;
    assert_eq!(address.calls(), 2);
}

/// R38, K56: upstream rejected a token that was live by its expiry.
#[tokio::test(flavor = "multi_thread")]
async fn a_forced_refresh_is_made_once_and_adopts_those_of_others_r38_k56_trap_36() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let address = Address::start(move |_| {
        let n = counted.fetch_add(1, Ordering::Relaxed) + 1;
        async move { (200, grant(&format!("new-{n}"), None)) }
    })
    .await;
    let own = format!(r#"{{"KIRO_REFRESH_URL":"{}/r"}}"#, address.url);
    put_account(&mut redis, "a1", &own, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let two = Instance::start(&server, &time, &[]).await;
    let mut leases = Vec::new();
    for instance in [&one, &one, &two] {
        let lease = instance.pool.select(&Wanted::default()).unwrap();
        assert_eq!(instance.credentials.access_token(&lease).await.unwrap().expose(), "live");
        leases.push(lease);
    }
    let (first, second) =
        tokio::join!(one.credentials.force_refresh(&leases[0]), one.credentials.force_refresh(&leases[1]));
    assert_eq!((first.unwrap().expose(), second.unwrap().expose()), ("new-1", "new-1"));
    assert_eq!(two.credentials.force_refresh(&leases[2]).await.unwrap().expose(), "new-1", "read again under the lock");
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(one.credentials.force_refresh(&leases[0]).await.unwrap().expose(), "new-1", "within 30 s");
    time.pass(31);
    assert_eq!(one.credentials.force_refresh(&leases[0]).await.unwrap().expose(), "new-2");
    time.pass(31);
    assert_eq!(one.credentials.refresh("a1").await.unwrap(), Some(t0() + jiff::SignedDuration::from_secs(3662)));
    assert_eq!(one.credentials.refresh("a1").await.unwrap(), Some(t0() + jiff::SignedDuration::from_secs(3662)));
    assert_eq!(count.load(Ordering::Relaxed), 3);
    assert_eq!(one.credentials.refresh("a9").await, Err(RefreshError::Gone));
}

/// K60, R42: a passing failure is a fault of the attempt; the next one doesn't hammer the address.
#[tokio::test(flavor = "multi_thread")]
async fn a_passing_failure_pauses_k60_r42() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { (503, "busy".to_owned()) }).await;
    let (record, old) = expired(&address);
    put_account(&mut redis, "a1", &record, old);
    let one = Instance::start(&server, &time, &[]).await;
    // A person's doesn't wait for the end of a pause, which the background may have begun by now.
    let first = one.credentials.refresh("a1").await.unwrap_err();
    assert_eq!((first, first.fault().kind), (RefreshError::Refused(Refusal::Passing), FaultKind::ServerError));
    let calls = address.calls();
    let second = one.token_of("a1").await.unwrap_err();
    // Nothing was asked, so that nothing comes of it.
    assert_eq!((second.kind, address.calls()), (FaultKind::Unreachable, calls));
    assert_eq!(one.state("a1"), HealthState::Healthy, "the attempt's report decides");
    time.pass(60);
    one.token_of("a1").await.unwrap_err();
    assert!(address.calls() > calls);
}

/// K51: an API key is the bearer, and nothing is refreshed.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_account_needs_no_refresh_k51() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"needsRefresh":true}"#, r#"{"kiroApiKey":"ksk_1","refreshToken":"r"}"#);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "ksk_1");
    assert!(one.pool.account("a1").unwrap().is_api_key());
    let lease = one.pool.select(&Wanted::default()).unwrap();
    one.credentials.access_token(&lease).await.unwrap();
    assert_eq!(one.credentials.force_refresh(&lease).await.unwrap_err().kind, FaultKind::Forbidden);
}

/// R71, K84: the refresh token of an external account belongs to a third party, and is posted to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_external_account_is_sent_r71_k84() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { (200, r#"{"accessToken":"new"}"#.to_owned()) }).await;
    let own = format!(
        r#"{{"KIRO_BASE_URL":"{0}/x","KIRO_REFRESH_URL":"{0}/y","KIRO_REFRESH_IDC_URL":"{0}/z","needsRefresh":true}}"#,
        address.url
    );
    let external =
        r#"{"authMethod":"AzureAD","accessToken":"a","refreshToken":"secret","clientId":"c","clientSecret":"s"}"#;
    put_account(&mut redis, "a1", &own, external);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.state("a1"), HealthState::Unusable);
    assert_eq!(one.pool.accounts()[0].problem.as_deref(), Some("tokenEndpoint: missing"));
    assert_eq!(one.pool.accounts()[0].method.as_str(), "external");
    assert_eq!(one.credentials.refresh("a1").await, Err(RefreshError::NotRefreshable));
    one.pool.visit("a1").unwrap_err();
    sleep(Duration::from_millis(1_300)).await;
    assert_eq!(address.calls(), 0);
    assert_eq!(token(&mut redis, "a1"), external);
}

/// The codes of contract/node.md for questions about one account; only `Suspended` leaves a mark (K62).
#[tokio::test(flavor = "multi_thread")]
async fn questions_about_one_account_have_pinned_codes_k62() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        if let Some(token) = call.body.get("refreshToken").and_then(|token| token.as_str()) {
            return match token {
                "dead" => refused(),
                "busy" => (503, String::new()),
                token => (200, grant(&format!("fresh-{token}"), None)),
            };
        }
        let bearer = call.headers["authorization"].to_str().unwrap().trim_start_matches("Bearer ").to_owned();
        let body = |reason: &str| format!(r#"{{"message":"for user d-12345","reason":"{reason}"}}"#);
        match bearer.as_str() {
            "ok" | "fresh-once" => (200, r#"{"daysUntilReset":3,"unknown":[]}"#.to_owned()),
            "forbidden" => (403, body("FEATURE_NOT_SUPPORTED")),
            "suspended" => (403, body("TEMPORARILY_SUSPENDED")),
            "quota" => (402, body("MONTHLY_REQUEST_COUNT")),
            "limited" => (429, body("USER_REQUEST_RATE_EXCEEDED")),
            "broken" => (500, body("")),
            _ => (401, body("")),
        }
    })
    .await;
    let own = format!(r#"{{"KIRO_BASE_URL":"{0}/g","KIRO_REFRESH_URL":"{0}/r","usageCount":1}}"#, address.url);
    let table = [
        ("a-ok", "ok", "r", Ok(()), Ok(())),
        ("a-forbidden", "forbidden", "r", Err(Code::AccountForbidden), Ok(())),
        ("a-suspended", "suspended", "r", Err(Code::AccountSuspended), Ok(())),
        ("a-quota", "quota", "r", Err(Code::QuotaExhausted), Ok(())),
        ("a-limited", "limited", "r", Err(Code::RateLimited), Ok(())),
        ("a-broken", "broken", "r", Err(Code::Upstream), Ok(())),
        ("a-once", "old", "once", Ok(()), Ok(())),
        ("a-twice", "old", "twice", Err(Code::AccountUnauthorized), Ok(())),
        ("a-dead", "old", "dead", Err(Code::AccountUnauthorized), Err(Code::AccountUnauthorized)),
        ("a-busy", "old", "busy", Err(Code::Upstream), Err(Code::Upstream)),
    ];
    for (id, access, refresh, ..) in &table {
        let token = LIVE.replace("\"live\"", &format!("\"{access}\"")).replace("\"r\"", &format!("\"{refresh}\""));
        put_account(&mut redis, id, &own, &token.replacen('{', r#"{"profileArn":"arn:x","#, 1));
    }
    put_account(&mut redis, "b-key", &own, r#"{"kiroApiKey":"ok"}"#);
    put_account(&mut redis, "b-key-bad", &own, r#"{"kiroApiKey":"ksk_bad"}"#);
    redis.hset::<_, _, _, ()>(POOL, "b-none", &own).unwrap();
    put_account(
        &mut redis,
        "b-off",
        &own.replacen('{', r#"{"isDisabled":true,"#, 1),
        &LIVE.replace("\"live\"", "\"ok\""),
    );

    let mut raw = RawConfig::default();
    raw.set_option("redisUrl", &server.url()).unwrap();
    raw.set_option("storeWaitMs", "5000").unwrap();
    let gateway =
        Gateway::start_with(raw.resolve(Face::Server).unwrap(), time.clock(), Hooks::default()).await.unwrap();
    let code = |answer: Result<Bytes, kiro_messages::error::Error>| {
        answer.map(drop).map_err(|error| {
            assert!(!error.message().contains("d-12345") && !error.message().contains("dead"), "{error}");
            error.code()
        })
    };
    assert_eq!(gateway.usage_limits("a-ok").await.unwrap(), r#"{"daysUntilReset":3,"unknown":[]}"#, "as it came");
    for (id, _, _, usage, _) in &table {
        assert_eq!(code(gateway.usage_limits(id).await), *usage, "{id}");
    }
    assert_eq!(code(gateway.usage_limits("b-off").await), Ok(()), "whatever its state");
    assert_eq!(code(gateway.usage_limits("b-key").await), Ok(()));
    assert_eq!(code(gateway.usage_limits("b-key-bad").await), Err(Code::AccountForbidden));
    assert_eq!(code(gateway.usage_limits("b-none").await), Err(Code::AccountUnauthorized));
    assert_eq!(code(gateway.usage_limits("x").await), Err(Code::NotFound));
    for (id, _, _, _, refreshed) in &table {
        time.pass(61);
        let answer = gateway.refresh(id).await;
        assert_eq!(answer.as_ref().map(drop).map_err(|error| error.code()), *refreshed, "{id}: {answer:?}");
        if let Ok(expires_at) = answer {
            assert!(expires_at.is_some(), "{id}");
        }
    }
    assert_eq!(gateway.refresh("b-key").await.unwrap(), None, "nothing to refresh");
    assert_eq!(gateway.refresh("b-none").await.unwrap_err().code(), Code::AccountUnauthorized);
    assert_eq!(gateway.refresh("x").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(gateway.credential("a-once").unwrap().access_token, Some(Secret::new("fresh-once")));
    assert!(gateway.credential("x").is_none() && gateway.credential("b-none").is_none());

    assert!(gateway.pool().flush(Duration::from_secs(5)).await.is_empty());
    for info in gateway.accounts() {
        let after = record(&mut redis, &info.id);
        let marked = after.contains("isHealthy") || after.contains("lastError");
        let ejected = ["a-suspended", "a-dead"].contains(&&*info.id);
        assert_eq!((marked, usage(&after)), (ejected, 1), "{}: {after}", info.id);
    }
    gateway.close(Duration::from_secs(1)).await;
    assert_eq!(gateway.usage_limits("a-ok").await.unwrap_err().code(), Code::Closed);
    assert_eq!(gateway.refresh("a-ok").await.unwrap_err().code(), Code::Closed);
}

/// Acceptance case 48, for these rooms: no secret in anything that can be printed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_can_be_printed_holds_a_secret_case_48() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let token = r#"{"accessToken":"S3CRET-a","refreshToken":"S3CRET-r","expiresAt":"2026-11-24T10:00:00.000Z","clientSecret":"S3CRET-c"}"#;
    put_account(&mut redis, "a1", r#"{"PROXY_URL":"http://u:S3CRET-p@127.0.0.1:1"}"#, token);
    let one = Instance::start(&server, &time, &[]).await;
    let lease = one.pool.select(&Wanted::default()).unwrap();
    one.credentials.access_token(&lease).await.unwrap();
    let shown = format!(
        "{:?} {:?} {:?} {:?} {:?}",
        one.pool,
        lease,
        one.pool.accounts(),
        one.credentials.credential("a1"),
        one.credentials.counters()
    );
    assert!(!shown.contains("S3CRET"), "{shown}");
}
