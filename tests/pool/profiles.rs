//! Which profile an account has, and what it is asked with.

use std::sync::Arc;
use std::time::Duration;

use kiro_messages::credentials::LookUp;
use kiro_messages::policy::health::HealthState;
use kiro_messages::policy::learned::{Lesson, Variant};
use kiro_messages::proto::kiro::profile::{AccountKind, BUILDER_ID_PROFILE};
use kiro_messages::proto::kiro::route::Shape;
use redis::Commands as _;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::accounts::{put_account, token, token_key};
use super::address::{Address, Call, grant};
use super::clock::{Time, eventually};
use super::instance::{Instance, LIVE};
use super::redis_server::RedisServer;

const E1: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1";
pub const E2: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";
const C: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/CCCC";
pub const ENTERPRISE: &str = r#"{"accessToken":"live","refreshToken":"r","expiresAt":"2026-11-24T10:00:00.000Z","authMethod":"IdC","clientId":"c","clientSecret":"s","startUrl":"https://d-1.awsapps.com/start"}"#;
/// As the existing Node.js service writes it.
const UNSURE: &str = r#"{"accessToken":"live","refreshToken":"r","expiresAt":"2026-11-24T10:00:00.000Z","authMethod":"builder-id","clientId":"c","clientSecret":"s"}"#;
const NOT_BUILDER_ID: &str = r#"{"message":"AWS Builder ID is not supported for this operation."}"#;
const IMPROPER: &str = r#"{"message":"Improperly formed request.","reason":null}"#;
const NOT_AUTHORIZED: &str = r#"{"message":"User is not authorized to make this call."}"#;

/// A world of regions on one port: `{region}.localhost` is Kiro's host, `oidc-{region}.localhost` that of refresh. The
/// account lies in Redis already.
pub async fn regional(server: &RedisServer, time: &Time, address: &Address) -> Instance {
    let port = address.url.rsplit(':').next().unwrap();
    let upstream = format!("http://{{region}}.localhost:{port}/generateAssistantResponse");
    let refresh = format!("http://oidc-{{region}}.localhost:{port}/token");
    Instance::start(server, time, &[("upstreamUrl", &upstream), ("idcRefreshUrl", &refresh)]).await
}

impl Call {
    /// The first label of its host.
    pub fn region(&self) -> &str {
        self.headers["host"].to_str().unwrap().split('.').next().unwrap()
    }
}

impl Address {
    /// Where calls went, in order; of look-ups, refreshes or usage.
    pub fn regions(&self, path: &str) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.path.starts_with(path)).map(|call| call.region().to_owned()).collect()
    }
}

fn profiles(arns: &[&str]) -> (u16, String) {
    let list: Vec<_> = arns.iter().map(|arn| serde_json::json!({ "arn": arn, "status": "ACTIVE" })).collect();
    (200, serde_json::json!({ "profiles": list }).to_string())
}

/// Looks up and gives the answer and the account as it is then.
async fn looked_up(one: &Instance) -> (LookUp, Arc<kiro_messages::pool::AccountView>) {
    let mut lease = one.pool.visit("a1").unwrap();
    let ended = one.credentials.look_up_profiles(&mut lease).await;
    (ended, lease.account().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_in_another_region_is_found_kept_and_used_k6_k64_k79_p6() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        match (call.path.as_str(), call.region()) {
            ("/token", _) => (200, grant("new", Some("refresh-2"))),
            (_, "eu-central-1") => profiles(&[E2]),
            _ => profiles(&[]),
        }
    })
    .await;
    put_account(&mut redis, "a1", "{}", ENTERPRISE);
    let one = regional(&server, &time, &address).await;
    assert!(one.pool.account("a1").unwrap().wants_profiles());
    let (ended, view) = looked_up(&one).await;
    assert_eq!((ended, view.profile_arn(), view.region()), (LookUp::Found, Some(E2), "eu-central-1"));
    assert_eq!(address.regions("/"), ["us-east-1", "eu-central-1"]);
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!((call.path.as_str(), &call.body), ("/", &serde_json::json!({"maxResults":10})));
    assert_eq!(call.headers["x-amz-target"], "AmazonCodeWhispererService.ListAvailableProfiles");
    assert_eq!(call.headers["content-type"], "application/x-amz-json-1.0");
    assert_eq!(looked_up(&one).await.0, LookUp::NotAsked, "10 min after an answer");
    one.written().await;
    let expected = ENTERPRISE.strip_suffix('}').unwrap();
    let expected = format!(r#"{expected},"profileArn":"{E2}","region":"eu-central-1","idcRegion":"us-east-1"}}"#);
    assert_eq!(token(&mut redis, "a1"), expected);
    one.pool.reload().await.unwrap();
    assert_eq!(one.pool.account("a1").unwrap().kind(), AccountKind::Enterprise);
    one.credentials.refresh("a1").await.unwrap();
    assert_eq!(address.regions("/token"), ["oidc-us-east-1"]);
    assert!(one.pool.accounts()[0].cause.is_none() && one.state("a1") == HealthState::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_shows_the_kind_of_a_record_of_the_node_service_k73_k79_p7_p8_p9() {
    let fixed = ENTERPRISE.replacen('{', &format!(r#"{{"profileArn":"{BUILDER_ID_PROFILE}","#), 1);
    let table = [
        (UNSURE.to_owned(), profiles(&[E1]), LookUp::Found, AccountKind::Enterprise, Some(E1), true),
        (
            UNSURE.to_owned(),
            (403, NOT_BUILDER_ID.to_owned()),
            LookUp::BuilderId,
            AccountKind::BuilderId,
            Some(BUILDER_ID_PROFILE),
            false,
        ),
        (fixed, profiles(&[E1]), LookUp::Found, AccountKind::Enterprise, Some(E1), true),
    ];
    for (n, (record, answer, expected, kind, arn, kept)) in table.into_iter().enumerate() {
        let server = RedisServer::start();
        let (mut redis, time) = (server.connection(), Time::new());
        let address = Address::start(move |call| {
            let answer = if call.region() == "us-east-1" { answer.clone() } else { profiles(&[]) };
            async move { answer }
        })
        .await;
        put_account(&mut redis, "a1", "{}", &record);
        let one = regional(&server, &time, &address).await;
        assert_eq!(one.pool.account("a1").unwrap().profile_arn(), None, "{n}: nothing goes out before it is asked");
        let (ended, view) = looked_up(&one).await;
        assert_eq!((ended, view.kind(), view.profile_arn()), (expected, kind, arn), "{n}");
        assert_eq!(address.calls(), if kept { 2 } else { 1 }, "{n}: one region is enough for a Builder ID");
        one.written().await;
        let saved = token(&mut redis, "a1");
        assert_eq!(saved.contains(E1), kept, "{n}: {saved}");
        assert!(!(kept && saved.contains(BUILDER_ID_PROFILE)) && (kept || saved == record), "{n}: {saved}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_without_an_answer_is_repeated_after_a_minute_once_for_all_k79_p11_p20() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async {
        sleep(Duration::from_millis(50)).await;
        (503, String::new())
    })
    .await;
    put_account(&mut redis, "a1", "{}", &ENTERPRISE.replace("startUrl", r#"region":"ap-southeast-2","startUrl"#));
    let one = Arc::new(regional(&server, &time, &address).await);
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let one = one.clone();
        requests.spawn(async move { looked_up(&one).await.0 });
    }
    let ended: Vec<LookUp> = requests.join_all().await;
    assert!(ended.contains(&LookUp::Unanswered) && !ended.contains(&LookUp::Found));
    assert_eq!(address.regions("/"), ["us-east-1", "eu-central-1"], "exactly one call a region");
    time.pass(59);
    assert_eq!(looked_up(&one).await.0, LookUp::NotAsked);
    time.pass(1);
    looked_up(&one).await;
    assert_eq!(address.calls(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_are_read_and_the_proven_profile_is_kept_k79_p13_p14_p15() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        if call.region() != "us-east-1" {
            return (403, NOT_AUTHORIZED.to_owned());
        }
        let answer = match call.body.get("nextToken").and_then(|next| next.as_str()) {
            None => serde_json::json!({ "profiles": [{ "arn": E2, "status": "INACTIVE" }], "nextToken": "2" }),
            Some("2") => serde_json::json!({ "profiles": [{ "arn": E1, "status": "ACTIVE" }], "nextToken": "3" }),
            _ => serde_json::json!({ "profiles": [{ "arn": C }, { "arn": E1 }], "nextToken": "" }),
        };
        (200, answer.to_string())
    })
    .await;
    put_account(&mut redis, "a1", "{}", ENTERPRISE);
    let one = regional(&server, &time, &address).await;
    let (ended, view) = looked_up(&one).await;
    assert_eq!((ended, address.calls()), (LookUp::Found, 4));
    let listed = [Variant::Listed(E1.into()), Variant::Listed(C.into()), Variant::None];
    assert_eq!(view.variants(), listed);
    one.written().await;
    assert_eq!(token(&mut redis, "a1"), ENTERPRISE, "which of them is right isn't known yet");
    let lease = one.pool.visit("a1").unwrap();
    lease.learn(Lesson::VariantRefused { shape: Shape::Q, variant: listed[0].clone(), by_400: false });
    let next = lease.learned(|learned, now| learned.next_variant(Shape::Q, &listed, now).cloned());
    assert_eq!(next, Some(listed[1].clone()));
    lease.learn(Lesson::VariantProven(Shape::Q, listed[1].clone()));
    one.written().await;
    assert!(token(&mut redis, "a1").contains(C));
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some(C));
    // Our own write changes nothing of what was learned.
    one.pool.reload().await.unwrap();
    let own = [Variant::Own(C.into())];
    assert!(lease.learned(|learned, _| learned.is_proven(Shape::Q, &own[0])));
    // P21: somebody else's does.
    let by_hand = token(&mut redis, "a1").replace(C, E2);
    redis.set::<_, _, ()>(token_key("a1"), by_hand).unwrap();
    one.pool.reload().await.unwrap();
    let view = one.pool.account("a1").unwrap();
    assert_eq!((view.profile_arn(), view.region()), (Some(E2), "eu-central-1"));
    assert!(lease.learned(|learned, now| learned.listed().is_empty() && learned.may_ask_profiles(now)));
}

/// The background asks for accounts without an ARN by itself, one a second.
#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_looked_up_in_the_background_k79() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { profiles(&[E1]) }).await;
    let expired = ENTERPRISE.replace("2026-11-24", "2026-11-22");
    for (id, record) in [("a1", ENTERPRISE), ("a2", LIVE), ("a3", &expired)] {
        put_account(&mut redis, id, r#"{"isDisabled":false}"#, record);
    }
    let one = regional(&server, &time, &address).await;
    eventually("found", Duration::from_secs(5), || {
        one.pool.account("a1").is_some_and(|view| view.profile_arn() == Some(E1))
    })
    .await;
    let asked = address.regions("/");
    assert_eq!(asked.iter().filter(|region| !region.starts_with("oidc")).count(), 2, "not the social one: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_goes_on_without_the_profile_and_remembers_it_k80_p22() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        if call.path.contains("profileArn") { (400, IMPROPER.to_owned()) } else { (200, "{}".to_owned()) }
    })
    .await;
    put_account(&mut redis, "a1", "{}", &ENTERPRISE.replacen('{', &format!(r#"{{"profileArn":"{E1}","#), 1));
    let one = regional(&server, &time, &address).await;
    let lease = one.pool.visit("a1").unwrap();
    one.credentials.usage_limits(&lease).await.unwrap();
    assert_eq!(address.calls(), 2, "with and without");
    one.credentials.usage_limits(&lease).await.unwrap();
    assert_eq!(address.calls(), 3, "at once without");
    assert_eq!(one.state("a1"), HealthState::Healthy);
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some(E1), "it says nothing of conversations");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_without_a_profile_is_asked_in_another_region_and_with_the_fixed_one_k80() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        let key = call.headers["authorization"] == "Bearer ksk_1";
        match (call.path.contains("profileArn"), call.region()) {
            (false, "eu-central-1") if key => (200, "{}".to_owned()),
            (true, _) if !key => (200, "{}".to_owned()),
            _ => (403, NOT_AUTHORIZED.to_owned()),
        }
    })
    .await;
    put_account(&mut redis, "a1", "{}", r#"{"kiroApiKey":"ksk_1"}"#);
    put_account(&mut redis, "a2", "{}", LIVE);
    let one = regional(&server, &time, &address).await;
    one.credentials.usage_limits(&one.pool.visit("a1").unwrap()).await.unwrap();
    assert_eq!(address.regions("/getUsage"), ["us-east-1", "eu-central-1"]);
    one.credentials.usage_limits(&one.pool.visit("a2").unwrap()).await.unwrap();
    let path = address.calls.lock().unwrap().last().unwrap().path.clone();
    assert!(path.contains("699475941385"), "a social account's fixed one comes last: {path}");
    assert!(address.calls() <= 2 + 4);
}
