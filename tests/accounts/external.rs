//! Accounts of an organisation's own identity provider: cases P29–P40.

use serde_json::{Value, json};

use super::log::Log;
use super::{EAST, World, id};

const HOSTS: [(&str, &str); 1] = [("KIRO_EXTERNAL_IDP_HOSTS", "http://idp.localhost:{port}")];
const ENDED: &str = "2020-01-01T00:00:00.000Z";

fn external(more: Value) -> Value {
    let mut record = json!({
        "accessToken": "sim-acct-external", "refreshToken": "sim-acct-external", "authMethod": "external_idp",
        "clientId": "client-1", "tokenEndpoint": "http://idp.localhost:{port}/idp/token",
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

impl World {
    async fn external(more: Value) -> Self {
        Self::new(&[external(more)], &HOSTS).await
    }

    fn answers(&self, answers: Value) {
        let script = json!({ "refresh_token": "sim-acct-external", "answers": answers });
        self.upstream.control().script(script).unwrap();
    }

    /// Refreshes at the provider as it saw them.
    fn forms(&self) -> Vec<String> {
        let stats = self.upstream.control().stats_with_bodies();
        let calls = stats["last"].as_array().unwrap().iter();
        let forms = calls.filter(|call| call["target"] == "/idp/token");
        forms.map(|call| call["body"].as_str().unwrap().to_owned()).collect()
    }

    /// Seconds until the access token in the record ends.
    fn lives(&self) -> i64 {
        let end: jiff::Timestamp = self.token(0)["expiresAt"].as_str().unwrap().parse().unwrap();
        end.as_second() - jiff::Timestamp::now().as_second()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_names_the_kind_of_its_token_p29_k83() {
    let world = World::external(json!({})).await;
    world.asks().await.unwrap();
    world.saw(&[("profiles", EAST, "-"), ("profiles", "eu-central-1", "-"), ("chat", EAST, "EEEE1")]);
    for call in world.upstream.control().stats_with_bodies()["last"].as_array().unwrap() {
        assert_eq!(call["headers"]["tokentype"], "EXTERNAL_IDP", "{call}");
    }
    world.eventually("kept", |world| world.token(0)["profileArn"].is_string()).await;
    let account = &world.gateway.accounts()[0];
    assert_eq!((account.method.as_str(), account.kind.as_str()), ("external", "external"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_gets_only_the_form_p30_k82() {
    let world = World::external(json!({ "expiresAt": ENDED })).await;
    world.answers(json!([{ "expires_in": "3599" }]));
    world.asks().await.unwrap();
    // The simulated provider refuses any header and any member that isn't its business.
    let form = "grant_type=refresh_token&refresh_token=sim-acct-external&client_id=client-1";
    assert_eq!(world.forms(), [form]);
    world.eventually("saved", |world| world.token(0)["refreshToken"] == "sim-acct-external~1").await;
    assert!((3590..=3599).contains(&world.lives()), "{}", world.lives());
    assert!(world.token(0).get("clientSecret").is_none() && world.token(0).get("idToken").is_none());
}

/// A reported record of Entra ID: another gateway posted its refresh token to Kiro's own refresh host.
#[tokio::test(flavor = "multi_thread")]
async fn a_providers_token_goes_to_nobody_but_the_provider_k82_k83_k84() {
    let world = World::external(json!({
        "provider": "AzureAD", "scopes": "openid", "expiresAt": ENDED, "region": EAST, "profileArn": super::E1,
    }))
    .await;
    world.asks().await.unwrap();
    let form = "grant_type=refresh_token&refresh_token=sim-acct-external&client_id=client-1&scope=openid";
    assert_eq!(world.forms(), [form]);
    world.saw(&[("chat", EAST, "EEEE1")]);
    let calls = world.upstream.control().stats_with_bodies();
    for call in calls["last"].as_array().unwrap() {
        assert_eq!(call["headers"]["host"].as_str().unwrap().starts_with("idp."), call["target"] == "/idp/token");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_token_may_stand_in_the_token_p31_k82_k86() {
    use base64::Engine as _;
    let world = World::external(json!({ "expiresAt": ENDED })).await;
    let end = jiff::Timestamp::now().as_second() + 1200;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{end}}}"#));
    let answer = json!({ "access_token": format!("h.{claims}.s"), "refresh_token": null, "expires_in": null });
    world.answers(json!([answer]));
    world.asks().await.unwrap_or_default();
    world.eventually("saved", |world| world.token(0)["expiresAt"] != ENDED).await;
    assert_eq!(world.token(0)["refreshToken"], "sim-acct-external");
    assert!((1190..=1200).contains(&world.lives()), "{}", world.lives());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_scope_is_left_out_once_p32_k82() {
    let world = World::external(json!({ "expiresAt": ENDED, "scopes": "openid offline_access" })).await;
    world.answers(json!([{ "status": 400, "error": "invalid_scope" }, {}]));
    world.asks().await.unwrap();
    let form = "grant_type=refresh_token&refresh_token=sim-acct-external&client_id=client-1";
    assert_eq!(world.forms(), [format!("{form}&scope=openid+offline_access"), form.to_owned()]);
}

#[tokio::test]
async fn only_the_number_of_a_providers_text_is_kept_p33_k82() {
    let log = Log::listen();
    let world = World::external(json!({ "expiresAt": ENDED })).await;
    let said = "AADSTS700082: The refresh token of user@example.org of Contoso has expired.";
    world.answers(json!([{ "status": 400, "error": "invalid_grant", "message": said }]));
    let error = world.asks().await.unwrap_err();
    assert_eq!(world.forms().len(), 1);
    world.eventually("ejected", |world| world.account(0)["isHealthy"] == false).await;
    let record = world.account(0);
    let mark = record["lastErrorMessage"].as_str().unwrap();
    assert!(mark.starts_with("ejected: refresh token rejected ("), "{mark}");
    assert!(mark.ends_with(", AADSTS700082; log in again"), "{mark}");
    for text in [record.to_string(), format!("{error:?} {error}"), log.lines("").join("\n")] {
        assert!(!text.contains("user@example.org") && !text.contains("Contoso"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_provider_is_asked_again_p34_p37_k82() {
    // Near its end, but live: it serves while the provider can't be had.
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(120)).to_string();
    for answer in [json!({ "status": 503, "message": "later" }), json!({ "status": 302, "message": "elsewhere" })] {
        let world = World::external(json!({ "expiresAt": soon })).await;
        world.answers(json!([answer, {}]));
        world.asks().await.unwrap();
        world.eventually("asked again", |world| world.forms().len() == 2).await;
        world.eventually("saved", |world| world.token(0)["refreshToken"] == "sim-acct-external~1").await;
        assert_eq!(world.state(0), "healthy");
    }
}

/// The address is checked again in the very record with which the refresh is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_was_changed_in_the_store_gets_nothing_p36_k84() {
    let world =
        World::new(&[external(json!({ "expiresAt": ENDED }))], &[HOSTS[0], ("KIRO_ACCOUNT_CACHE_TTL", "1h")]).await;
    assert_eq!(world.state(0), "healthy");
    let mut token = world.token(0);
    let port = world.upstream.addr().port();
    token["tokenEndpoint"] = format!("http://evil.localhost:{port}/idp/token").into();
    let key = format!("aiclient:tokens:claude-kiro-oauth:{}", id(0));
    redis::cmd("SET").arg(key).arg(token.to_string()).query::<()>(&mut world.redis.connection()).unwrap();
    world.asks().await.unwrap_err();
    assert!(world.forms().is_empty(), "{:?}", world.forms());
    let world = World::external(json!({ "tokenEndpoint": "http://evil.localhost:{port}/idp/token" })).await;
    let problem = world.gateway.accounts()[0].problem.clone().unwrap();
    assert!(problem.starts_with("tokenEndpoint: must be https://"), "{problem}");
}

/// P40: nobody who can write to the store may widen the list.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_cannot_add_a_provider_p40_k84() {
    let world = World::new(
        &[external(json!({ "KIRO_EXTERNAL_IDP_HOSTS": "http://idp.localhost:{port}" }))],
        &[("KIRO_ACCOUNT_CACHE_TTL", "50ms")],
    )
    .await;
    let hosts = format!("http://idp.localhost:{}", world.upstream.addr().port());
    let config = json!({ "KIRO_EXTERNAL_IDP_HOSTS": hosts, "externalIdpHosts": hosts }).to_string();
    redis::cmd("SET").arg("aiclient:config").arg(config).query::<()>(&mut world.redis.connection()).unwrap();
    world.asks().await.unwrap_err();
    // By now config and accounts were read again.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    world.asks().await.unwrap_err();
    assert_eq!(world.state(0), "unusable");
    assert!(world.seen().is_empty() && world.forms().is_empty());
}
