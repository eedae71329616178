//! The sign-in with a browser (K97, K98): Kiro's portal, an organisation's provider, and the exchange of their codes.

use http::{HeaderMap, Method, Uri};
use serde_json::{Value, json};

use super::reply::HttpReply;
use super::scripted_sign_in::WAYS;
use super::sign_in::{refused, tokens};
use super::state::SimState;
use crate::proto::kiro::portal::{PORTS, RETURN_PATHS};

const CLIENT: &str = "sim-idp-client";
const SCOPES: &str = "openid offline_access codewhisperer:conversations";

/// The answer to a browser or to an exchange; none: the call is another one.
pub(super) fn answer(
    (method, uri): (&Method, &Uri),
    headers: &HeaderMap,
    body: &[u8],
    state: &mut SimState,
) -> Option<HttpReply> {
    let query = Query::of(uri.query().unwrap_or_default().as_bytes());
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    Some(match (method.as_str(), uri.path()) {
        ("GET", "/signin") => page(&query, host, state),
        ("POST", "/oauth/token") => exchange(headers, body, state),
        ("GET", "/idp/.well-known/openid-configuration") => HttpReply::json(
            200,
            &json!({
                "issuer": format!("http://{host}/idp"), "authorization_endpoint": format!("http://{host}/idp/authorize"),
                "token_endpoint": format!("http://{host}/idp/token"),
            }),
        ),
        ("GET", "/idp/authorize") => authorize(&query, state),
        ("POST", "/idp/token") => {
            let form = Query::of(body);
            (form.text("grant_type") == "authorization_code").then(|| provider_exchange(&form, headers, state))?
        }
        _ => return None,
    })
}

/// The portal's page. It returns to its known ports and nowhere else.
fn page(query: &Query, host: &str, state: &mut SimState) -> HttpReply {
    let redirect_uri = query.text("redirect_uri");
    let port = redirect_uri.strip_prefix("http://localhost:").and_then(|port| port.parse::<u16>().ok());
    let is_sound = port.is_some_and(|port| PORTS.contains(&port))
        && query.text("code_challenge_method") == "S256"
        && query.text("code_challenge").len() == 43
        && query.text("redirect_from") == "kirocli"
        && !query.text("state").is_empty();
    if !is_sound {
        return refused("invalid_request");
    }
    let way = state.portal.way.clone().unwrap_or_else(|| WAYS[0].to_owned());
    let mut back = vec![("login_option", way.clone()), ("state", query.text("state").to_owned())];
    match way.as_str() {
        "google" | "github" => {
            state.sign_in.signs_in(if way == "google" { "Google" } else { "Github" });
            let promised = format!("{redirect_uri}{}?login_option={way}", RETURN_PATHS[0]);
            back.push(("code", state.portal.open(query.text("code_challenge").to_owned(), promised)));
        }
        "external_idp" => back.extend([
            ("issuer_url", format!("http://{host}/idp")),
            ("client_id", CLIENT.to_owned()),
            ("scopes", SCOPES.to_owned()),
            ("login_hint", "someone@example.org".to_owned()),
        ]),
        "awsidc" => {
            let start_url = state.portal.start_url.clone();
            back.push(("issuer_url", start_url.unwrap_or_else(|| "https://d-sim.awsapps.com/start".to_owned())));
            back.push(("idc_region", state.sign_in.region().to_owned()));
        }
        "denied" => back = vec![("state", query.text("state").to_owned()), ("error", "access_denied".to_owned())],
        _ => {}
    }
    let back = form_urlencoded::Serializer::new(String::new()).extend_pairs(back).finish();
    let back = format!("{redirect_uri}{}?{back}", RETURN_PATHS[0]).replace('&', "&amp;");
    html(&format!("<a id=\"sign-in\" href=\"{back}\">Sign in</a>"))
}

fn html(content: &str) -> HttpReply {
    let text =
        format!("<!doctype html><html lang=\"en\"><title>Simulated sign-in</title><body>{content}</body></html>\n");
    HttpReply {
        status: 200,
        headers: vec![("content-type".to_owned(), "text/html; charset=utf-8".to_owned())],
        body: text.into(),
    }
}

/// Of a Google or GitHub user's code.
fn exchange(headers: &HeaderMap, body: &[u8], state: &mut SimState) -> HttpReply {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return refused("invalid_request") };
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let is_cli = headers.get("user-agent").is_some_and(|agent| agent == "Kiro-CLI");
    if !is_cli || !state.portal.close(&text("code"), &text("code_verifier"), &text("redirect_uri")) {
        return refused("invalid_grant");
    }
    let mut answer = tokens(state, true);
    if let Some(members) = answer.as_object_mut() {
        members.retain(|name, _| matches!(name.as_str(), "accessToken" | "refreshToken" | "expiresIn" | "profileArn"));
    }
    HttpReply::json(200, &answer)
}

/// The provider's page: who gets here is signed in at once.
fn authorize(query: &Query, state: &mut SimState) -> HttpReply {
    let redirect_uri = query.text("redirect_uri");
    let is_ours = PORTS.iter().any(|port| redirect_uri == format!("http://localhost:{port}{}", RETURN_PATHS[0]));
    let is_sound = is_ours
        && query.text("response_type") == "code"
        && query.text("client_id") == CLIENT
        && query.text("scope") == SCOPES
        && query.text("code_challenge_method") == "S256";
    if !is_sound {
        return refused("invalid_request");
    }
    let code = state.portal.open(query.text("code_challenge").to_owned(), redirect_uri.to_owned());
    let back = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("code", code.as_str()), ("state", query.text("state"))])
        .finish();
    HttpReply { status: 302, headers: Vec::new(), body: "".into() }.with("location", &format!("{redirect_uri}?{back}"))
}

fn provider_exchange(form: &Query, headers: &HeaderMap, state: &mut SimState) -> HttpReply {
    let is_form = headers.get("content-type").is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    let is_ours = is_form && form.text("client_id") == CLIENT;
    if !is_ours || !state.portal.close(form.text("code"), form.text("code_verifier"), form.text("redirect_uri")) {
        return refused("invalid_grant");
    }
    state.sign_in.is_usually("sim-acct-external");
    let tokens = tokens(state, false);
    HttpReply::json(
        200,
        &json!({
            "access_token": tokens["accessToken"], "refresh_token": tokens["refreshToken"], "expires_in": 3600,
            "token_type": "Bearer", "scope": SCOPES,
        }),
    )
}

/// Members of a query or a form.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    /// Empty where there is none.
    fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}
