//! A refresh in another region than the record says (K76).

use std::time::Duration;

use kiro_messages::policy::health::HealthState;

use super::accounts::{put_account, record, token};
use super::address::{Address, grant};
use super::clock::{Time, eventually};
use super::profiles::{E2, ENTERPRISE, regional};
use super::redis_server::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_is_granted_in_another_region_k76_p23_p24() {
    let table = [
        (
            format!(r#""idcRegion":"us-east-1","profileArn":"{E2}""#),
            "oidc-eu-central-1",
            r#"{"error":"invalid_grant"}"#,
            &["oidc-us-east-1", "oidc-eu-central-1"][..],
            r#""idcRegion":"us-east-1""#,
        ),
        (
            r#""region":"ap-southeast-1""#.to_owned(),
            "oidc-eu-west-1",
            r#"{"__type":"InvalidRequestRegionException","region":"eu-west-1"}"#,
            &["oidc-ap-southeast-1", "oidc-eu-west-1"],
            r#""idcRegion":"eu-west-1""#,
        ),
    ];
    for (more, right, refusal, expected, saved) in table {
        let server = RedisServer::start();
        let (mut redis, time) = (server.connection(), Time::new());
        let address = Address::start(move |call| {
            let granted = call.region() == right;
            async move { if granted { (200, grant("new", None)) } else { (400, refusal.to_owned()) } }
        })
        .await;
        let record = ENTERPRISE.replace("11-24T", "11-22T").replacen('{', &format!("{{{more},"), 1);
        put_account(&mut redis, "a1", "{}", &record);
        let one = regional(&server, &time, &address).await;
        assert_eq!(one.token_of("a1").await.unwrap(), "new");
        assert_eq!(address.regions("/token"), expected);
        eventually("saved", Duration::from_secs(5), || token(&mut redis, "a1").contains("new")).await;
        let after = token(&mut redis, "a1");
        assert!(after.contains(saved) && after.matches("idcRegion").count() == 1, "{after}");
        time.pass(3600);
        one.pool.reload().await.unwrap();
        one.credentials.refresh("a1").await.unwrap();
        assert_eq!(address.regions("/token").last().map(String::as_str), Some(right), "remembered");
        assert_eq!(address.regions("/token").len(), expected.len() + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_is_tried_in_four_regions_and_ejected_k76_p25() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address =
        Address::start(|_| async { (400, r#"{"error":"invalid_grant","region":"eu-north-1"}"#.to_owned()) }).await;
    let more = format!(r#"{{"idcRegion":"eu-west-1","region":"ap-southeast-1","profileArn":"{E2}","#);
    let record = ENTERPRISE.replace("11-24T", "11-22T").replacen('{', &more, 1);
    put_account(&mut redis, "a1", "{}", &record);
    let one = regional(&server, &time, &address).await;
    one.token_of("a1").await.unwrap_err();
    let tried = ["oidc-eu-west-1", "oidc-eu-north-1", "oidc-ap-southeast-1", "oidc-eu-central-1"];
    assert_eq!(address.regions("/token"), tried);
    assert_eq!(one.state("a1"), HealthState::Ejected);
    one.written().await;
    let marked = self::record(&mut redis, "a1");
    assert!(marked.contains("in eu-west-1, eu-north-1, ap-southeast-1, eu-central-1; log in again"), "{marked}");
}

/// K60 stands above K76: a region that could still say yes keeps the account from being ejected.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_region_is_not_a_refusal_k76() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| {
        let refused = call.region() == "oidc-eu-west-1";
        async move { if refused { (400, r#"{"error":"invalid_grant"}"#.to_owned()) } else { (503, String::new()) } }
    })
    .await;
    let record = ENTERPRISE.replace("11-24T", "11-22T").replacen('{', r#"{"idcRegion":"eu-west-1","#, 1);
    put_account(&mut redis, "a1", "{}", &record);
    let one = regional(&server, &time, &address).await;
    one.token_of("a1").await.unwrap_err();
    assert_ne!(one.state("a1"), HealthState::Ejected);
}
