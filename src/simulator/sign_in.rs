//! The device sign-in (K93–K96), played as strictly as the real ones are known to be.

use http::HeaderMap;
use serde_json::{Value, json};

use super::reply::HttpReply;
use super::scripted_sign_in::SimSignIn;
use super::state::SimState;

/// The path of a sign-in's call, if it is one; `/token` is one with the device grant.
pub(super) fn call_of(path: &str, body: &[u8]) -> Option<&'static str> {
    const PATHS: [&str; 4] =
        ["/client/register", "/device_authorization", "/oauth/device/authorization", "/oauth/device/poll"];
    let is_device = |body: &Value| body["grantType"].as_str().is_some_and(|grant| grant.ends_with(":device_code"));
    match path {
        "/token" if serde_json::from_slice(body).is_ok_and(|body| is_device(&body)) => Some("/token"),
        path => PATHS.into_iter().find(|known| *known == path),
    }
}

/// The answer; none: the connection ends.
pub(super) fn answer(
    call: &str,
    headers: &HeaderMap,
    body: &[u8],
    region: Option<&str>,
    state: &mut SimState,
) -> Option<HttpReply> {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return Some(refused("invalid_request")) };
    let social = call.starts_with("/oauth/");
    let agent = headers.get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let is_known = if social { agent == "Kiro-CLI" } else { agent.contains(" api/sso-oidc#") };
    if !is_known {
        return Some(refused("invalid_request"));
    }
    let sign_in = &mut state.sign_in;
    Some(match call {
        "/client/register" => register(sign_in, &body),
        "/device_authorization" => start(sign_in, &body, region),
        "/oauth/device/authorization" => social_start(sign_in, &body),
        _ => return poll(state, &body, social),
    })
}

fn register(sign_in: &SimSignIn, body: &Value) -> HttpReply {
    let scopes = body["scopes"].as_array().map_or(0, Vec::len);
    let is_right = body["clientName"] == "Kiro IDE"
        && body["clientType"] == "public"
        && body["grantTypes"] == json!(["urn:ietf:params:oauth:grant-type:device_code", "refresh_token"])
        && body.get("issuerUrl").is_none();
    match scopes {
        _ if !is_right => refused("invalid_request"),
        4.. if sign_in.basic_scopes => refused("invalid_scope"),
        3.. => HttpReply::json(
            200,
            &json!({
                "clientId": "sim-client", "clientSecret": "sim-client-secret", "clientIdIssuedAt": 1_790_000_000,
                "clientSecretExpiresAt": 4_070_908_800_u64,
            }),
        ),
        _ => refused("invalid_scope"),
    }
}

fn start(sign_in: &mut SimSignIn, body: &Value, region: Option<&str>) -> HttpReply {
    let start_url = body["startUrl"].as_str().unwrap_or_default();
    let home = if start_url == "https://view.awsapps.com/start" { "us-east-1" } else { sign_in.region.as_str() };
    let is_registered = body["clientId"] == "sim-client" && body["clientSecret"] == "sim-client-secret";
    if !is_registered || !start_url.starts_with("https://") || region.is_some_and(|region| region != home) {
        return refused("invalid_request");
    }
    sign_in.is_usually(match start_url {
        "https://view.awsapps.com/start" => "sim-acct-builder",
        _ => "sim-acct-enterprise",
    });
    let uri = sign_in.uri.clone().unwrap_or_else(|| format!("{start_url}/#/device?user_code=ABCD-EFGH"));
    HttpReply::json(
        200,
        &json!({
            "deviceCode": "sim-device-code", "userCode": "ABCD-EFGH", "verificationUri": format!("{start_url}/#/device"),
            "verificationUriComplete": uri, "expiresIn": 600, "interval": sign_in.interval,
        }),
    )
}

fn social_start(sign_in: &mut SimSignIn, body: &Value) -> HttpReply {
    let client = if sign_in.old_client { "kiro-cli" } else { "Kiro-CLI" };
    let provider = body["loginProvider"].as_str().unwrap_or_default();
    if body["clientId"] != client || !matches!(provider, "Google" | "Github") {
        return HttpReply::json(400, &json!({ "message": "Invalid request" }));
    }
    sign_in.provider.get_or_insert_with(|| provider.to_owned());
    let uri = sign_in.uri.clone().unwrap_or_else(|| "https://app.kiro.dev/device?user_code=ABCD-EFGH".to_owned());
    HttpReply::json(
        200,
        &json!({
            "deviceCode": "sim-device-code", "userCode": "ABCD-EFGH", "verificationUri": "https://app.kiro.dev/device",
            "verificationUriComplete": uri, "expiresInMilliseconds": 600_000,
            "intervalInMilliseconds": sign_in.interval * 1_000.0,
        }),
    )
}

fn poll(state: &mut SimState, body: &Value, social: bool) -> Option<HttpReply> {
    let is_known = body["deviceCode"] == "sim-device-code";
    let client = if state.sign_in.old_client { "kiro-cli" } else { "Kiro-CLI" };
    let is_ours = if social { body["clientId"] == client } else { body["clientSecret"] == "sim-client-secret" };
    if !is_known || !is_ours {
        return Some(refused("invalid_grant"));
    }
    let next = state.sign_in.next();
    let word = match next.as_str() {
        "drop" => return None,
        "500" => return Some(HttpReply::json(500, &json!({ "message": "Internal server error" }))),
        "pending" => "authorization_pending",
        "expired" => "expired_token",
        "denied" if social => "invalid_token",
        "denied" => "access_denied",
        "no-token" => "authorized",
        other => other,
    };
    Some(match (word, social) {
        ("ok", _) => HttpReply::json(200, &tokens(state, social)),
        ("authorized", false) => HttpReply::json(200, &json!({ "tokenType": "Bearer" })),
        (word, true) => HttpReply::json(200, &json!({ "status": word, "accessToken": null, "refreshToken": null })),
        (word, false) => refused(word),
    })
}

/// Of the account that signs in; refresh tokens are as long as real ones.
pub(super) fn tokens(state: &mut SimState, social: bool) -> Value {
    state.issued += 1;
    let SimSignIn { account, provider, .. } = &state.sign_in;
    let account = account.clone().unwrap_or_else(|| "sim-acct-social".to_owned());
    let token = format!("{account}.login{}", state.issued);
    let mut tokens = json!({
        "accessToken": token, "refreshToken": format!("{token}{}", "x".repeat(100)), "expiresIn": 3600,
    });
    if social {
        tokens["status"] = "authorized".into();
        tokens["identityProvider"] = provider.clone().into();
        tokens["profileArn"] = crate::proto::kiro::profile::SOCIAL_PROFILE.into();
    } else {
        tokens["tokenType"] = "Bearer".into();
    }
    tokens
}

pub(super) fn refused(error: &str) -> HttpReply {
    let said = format!("Refused for someone@example.org (simulator: {error})");
    let status = if error == "invalid_client" { 401 } else { 400 };
    HttpReply::json(status, &json!({ "error": error, "error_description": said }))
}
