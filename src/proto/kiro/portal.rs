//! The sign-in through Kiro's portal (K97), and at an organisation's own provider (K98): the addresses that a browser
//! opens, what it comes back with, and the exchange of a code for tokens.
//!
//! A page is opened with the hash of a secret (PKCE) and a `state`; the code that comes back is of use only to the
//! program that has the secret.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::external::{self, Hosts, form};
use super::sign_in::{BUILDER_ID_START, HOME_REGION, SignIn, SignInError, Tokens, record_of, shown_word};
use super::token::Grant;
use crate::proto::record::is_region;
use crate::secret::Secret;

/// `KIRO_PORTAL_URL`, unless it says otherwise.
pub const DEFAULT_PORTAL_URL: &str = "https://app.kiro.dev/signin";
/// Ports of this machine that the portal sends a browser back to; it refuses others. Organisations register the first.
pub const PORTS: [u16; 10] = [3128, 4649, 6588, 8008, 9091, 49153, 50153, 51153, 52153, 53153];
/// Paths on which a browser comes back.
pub const RETURN_PATHS: [&str; 2] = ["/oauth/callback", "/signin/callback"];
/// Longest texts that come back (R77).
const MAX_URL: usize = 2_048;
const MAX_SCOPES: usize = 4_096;

/// What one page is opened with: the secret, and the word that its answer must repeat.
pub struct Proof {
    verifier: Secret,
    state: String,
}

/// What the portal came back with.
#[derive(Debug, PartialEq, Eq)]
pub enum Returned {
    /// Google or GitHub: a code for `POST /oauth/token`.
    Social {
        /// Which of them.
        who: SignIn,
        /// To be exchanged.
        code: Secret,
        /// What the exchange must repeat.
        redirect_uri: String,
    },
    /// AWS: a device code is asked for, here.
    Aws {
        /// Builder ID or an Identity Center.
        who: SignIn,
    },
    /// An organisation's own provider: a second page.
    Organisation(Organisation),
}

/// An organisation's own provider, as the portal names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Organisation {
    /// Without a slash at its end; its host is not checked yet (K84).
    pub issuer_url: String,
    /// Kiro's client there.
    pub client_id: Secret,
    /// Divided by spaces.
    pub scopes: String,
    login_hint: Option<String>,
    audience: Option<String>,
}

/// Where an organisation's provider is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    authorization: String,
    /// `POST` with [`exchange_form`].
    pub token: String,
}

/// A call that isn't the answer that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Another path: 404.
    Elsewhere,
    /// Not with our `state`: 400.
    State,
}

impl Proof {
    /// From random bytes.
    pub fn new(verifier: [u8; 32], state: [u8; 16]) -> Self {
        Self { verifier: Secret::new(URL_SAFE_NO_PAD.encode(verifier)), state: URL_SAFE_NO_PAD.encode(state) }
    }

    /// What the exchange proves the page with.
    pub fn verifier(&self) -> &Secret {
        &self.verifier
    }

    fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.verifier.expose().as_bytes()))
    }
}

/// The portal's page.
pub fn page(portal: &str, proof: &Proof, port: u16) -> String {
    let (redirect_uri, challenge) = (local(port), proof.challenge());
    let query = form([
        ("state", proof.state.as_str()),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
        ("redirect_uri", &redirect_uri),
        ("redirect_from", "kirocli"),
    ]);
    format!("{portal}?{query}")
}

/// Reads what the browser came back with, path and query of its call. The inner error ends the sign-in.
///
/// # Errors
/// It isn't the answer to this page.
pub fn returned(target: &str, proof: &Proof, port: u16) -> Result<Result<Returned, SignInError>, Miss> {
    let (path, answer) = Answer::of(target, proof)?;
    Ok(answer.sound().and_then(|answer| {
        let option = answer.text("login_option").unwrap_or_default();
        match option {
            "google" | "github" => Ok(Returned::Social {
                who: if option == "google" { SignIn::Google } else { SignIn::Github },
                code: answer.code()?,
                redirect_uri: format!("{}{path}?login_option={option}", local(port)),
            }),
            "builderid" => Ok(Returned::Aws { who: SignIn::BuilderId }),
            "awsidc" => {
                let start_url = answer.address("issuer_url")?;
                let region = answer.text("idc_region").unwrap_or(HOME_REGION);
                if !is_region(region) {
                    return Err(SignInError::unreadable());
                }
                let center = SignIn::IdentityCenter { region: Some(region.to_owned()), start_url: start_url.clone() };
                Ok(Returned::Aws { who: if start_url == BUILDER_ID_START { SignIn::BuilderId } else { center } })
            }
            "external_idp" => {
                let scopes = answer.text("scopes").unwrap_or_default();
                let is_printable =
                    scopes.len() <= MAX_SCOPES && scopes.bytes().all(|byte| (0x20..0x7f).contains(&byte));
                let client_id = answer.text("client_id").filter(|id| id.len() <= MAX_URL && is_printable);
                Ok(Returned::Organisation(Organisation {
                    issuer_url: answer.address("issuer_url")?.trim_end_matches('/').to_owned(),
                    client_id: Secret::new(client_id.ok_or_else(SignInError::unreadable)?),
                    scopes: scopes.to_owned(),
                    login_hint: answer.text("login_hint").map(str::to_owned),
                    audience: answer.text("audience").map(str::to_owned),
                }))
            }
            other => Err(SignInError::new("unknown_provider", unknown_provider(&shown_word(other)))),
        }
    }))
}

fn unknown_provider(word: &str) -> String {
    match word {
        "" => "the portal names no way to sign in".to_owned(),
        word => format!("the portal names a way to sign in that this version doesn't know: {word}"),
    }
}

/// `POST {auth host}/oauth/token`, as JSON. The answer is read as a poll's.
pub fn social_exchange(code: &Secret, redirect_uri: &str, proof: &Proof) -> Value {
    json!({ "code": code.expose(), "code_verifier": proof.verifier.expose(), "redirect_uri": redirect_uri })
}

/// Where a provider says what it offers.
pub fn discovery_url(issuer_url: &str) -> String {
    format!("{issuer_url}/.well-known/openid-configuration")
}

/// Reads what a provider offers. Each of its addresses must be one that K84 allows.
///
/// # Errors
/// The sentence that names the field.
pub fn read_discovery(status: u16, body: &[u8], hosts: &Hosts) -> Result<Endpoints, SignInError> {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let address = |name: &str| {
        let url = answer.get(name).and_then(Value::as_str).filter(|_| status == 200);
        let url = url.ok_or_else(|| {
            SignInError::new("unreadable", format!("the organisation's provider names no {name} (HTTP {status})"))
        })?;
        hosts.check(name, url).map_err(|error| SignInError::new("refused_host", error))?;
        Ok(url.to_owned())
    };
    Ok(Endpoints { authorization: address("authorization_endpoint")?, token: address("token_endpoint")? })
}

/// The provider's page.
pub fn organisation_page(endpoints: &Endpoints, organisation: &Organisation, proof: &Proof, port: u16) -> String {
    let (redirect_uri, challenge) = (organisation_redirect(port), proof.challenge());
    let further = [("login_hint", &organisation.login_hint), ("audience", &organisation.audience)];
    let further = further.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
    let query = form(
        [
            ("response_type", "code"),
            ("client_id", organisation.client_id.expose()),
            ("redirect_uri", &redirect_uri),
            ("scope", &organisation.scopes),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("state", &proof.state),
        ]
        .into_iter()
        .chain(further),
    );
    let join = if endpoints.authorization.contains('?') { '&' } else { '?' };
    format!("{}{join}{query}", endpoints.authorization)
}

/// The code that the provider's page came back with. The inner error ends the sign-in.
///
/// # Errors
/// It isn't the answer to this page.
pub fn organisation_returned(target: &str, proof: &Proof) -> Result<Result<Secret, SignInError>, Miss> {
    let (_, answer) = Answer::of(target, proof)?;
    Ok(answer.sound().and_then(|answer| answer.code()))
}

/// The form that the provider's `token_endpoint` is sent.
pub fn exchange_form(organisation: &Organisation, code: &Secret, proof: &Proof, port: u16) -> String {
    form([
        ("grant_type", "authorization_code"),
        ("code", code.expose()),
        ("client_id", organisation.client_id.expose()),
        ("redirect_uri", &organisation_redirect(port)),
        ("code_verifier", proof.verifier.expose()),
    ])
}

/// The answer to [`exchange_form`].
///
/// # Errors
/// What the provider's refusal says, without its own text (K82).
pub fn read_exchange(status: u16, body: &[u8], now: Timestamp) -> Result<Grant, SignInError> {
    external::read_answer(status, body, now).map_err(|refused| {
        let word = refused.code.unwrap_or_else(|| format!("status_{status}"));
        SignInError { message: format!("the organisation's provider refused the sign-in: {word}"), word }
    })
}

fn local(port: u16) -> String {
    format!("http://localhost:{port}")
}

fn organisation_redirect(port: u16) -> String {
    format!("{}{}", local(port), RETURN_PATHS[0])
}

/// The members of a call back.
struct Answer(Vec<(String, String)>);

impl Answer {
    fn of<'t>(target: &'t str, proof: &Proof) -> Result<(&'t str, Self), Miss> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if !RETURN_PATHS.contains(&path) {
            return Err(Miss::Elsewhere);
        }
        let answer = Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect());
        if answer.text("state") != Some(&proof.state) {
            return Err(Miss::State);
        }
        Ok((path, answer))
    }

    fn sound(self) -> Result<Self, SignInError> {
        match self.text("error") {
            None => Ok(self),
            Some("access_denied") => Err(SignInError::denied()),
            Some(word) => Err(SignInError::refused(match shown_word(word) {
                word if word.is_empty() => "error".to_owned(),
                word => word,
            })),
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    fn code(&self) -> Result<Secret, SignInError> {
        self.text("code").map(Secret::new).ok_or_else(SignInError::unreadable)
    }

    fn address(&self, name: &str) -> Result<String, SignInError> {
        let url = self.text(name).filter(|url| url.len() <= MAX_URL && url.bytes().all(|byte| byte.is_ascii_graphic()));
        url.map(str::to_owned).ok_or_else(SignInError::unreadable)
    }
}

/// The token record of a sign-in at an organisation's own provider (R88).
pub fn organisation_record(organisation: &Organisation, token_endpoint: &str, grant: Grant, now: Timestamp) -> Vec<u8> {
    let Grant { access_token, refresh_token, lifetime, .. } = grant;
    let tokens = Tokens { access_token, refresh_token, lifetime, profile_arn: None, provider: None };
    let further = vec![
        ("clientId", Some(organisation.client_id.expose().to_owned())),
        ("tokenEndpoint", Some(token_endpoint.to_owned())),
        ("issuerUrl", Some(organisation.issuer_url.clone())),
        ("scopes", Some(organisation.scopes.clone()).filter(|scopes| !scopes.is_empty())),
    ];
    record_of(&tokens, ("external_idp", "ExternalIdp"), further, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        Proof::new([7; 32], [9; 16])
    }

    const STATE: &str = "CQkJCQkJCQkJCQkJCQkJCQ";

    fn back(query: &str) -> Result<Result<Returned, SignInError>, Miss> {
        returned(&format!("/oauth/callback?state={STATE}&{query}"), &proof(), 4649)
    }

    #[test]
    fn the_page_of_the_portal_holds_the_hash_and_not_the_secret_k97() {
        let page = page(DEFAULT_PORTAL_URL, &proof(), 3128);
        assert_eq!(
            page,
            "https://app.kiro.dev/signin?state=CQkJCQkJCQkJCQkJCQkJCQ&code_challenge=3Ev4DHdHPRMPoN6GukAY_pi7IUAF5qWJHRK6kURvnoE&code_challenge_method=S256&redirect_uri=http%3A%2F%2Flocalhost%3A3128&redirect_from=kirocli"
        );
        assert!(!page.contains(proof().verifier().expose()));
    }

    #[test]
    fn each_way_that_the_portal_knows_k97() {
        let Ok(Ok(Returned::Social { who, code, redirect_uri })) = back("login_option=github&code=c%2B1") else {
            panic!()
        };
        assert_eq!((who, code.expose()), (SignIn::Github, "c+1"));
        assert_eq!(redirect_uri, "http://localhost:4649/oauth/callback?login_option=github");
        assert_eq!(
            social_exchange(&code, &redirect_uri, &proof()).to_string(),
            r#"{"code":"c+1","code_verifier":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc","redirect_uri":"http://localhost:4649/oauth/callback?login_option=github"}"#
        );
        let aws = |query: &str| match back(query) {
            Ok(Ok(Returned::Aws { who })) => who,
            other => panic!("{other:?}"),
        };
        assert_eq!(aws("login_option=builderid&issuer_url=https://x&idc_region=y"), SignIn::BuilderId);
        assert_eq!(
            aws("login_option=awsidc&issuer_url=https://d-1.awsapps.com/start&idc_region=eu-west-2"),
            SignIn::IdentityCenter {
                start_url: "https://d-1.awsapps.com/start".into(),
                region: Some("eu-west-2".into())
            }
        );
        let Ok(Ok(Returned::Organisation(organisation))) = back(
            "login_option=external_idp&issuer_url=https://org.okta.com/&client_id=k&scopes=openid%20offline_access",
        ) else {
            panic!()
        };
        assert_eq!(organisation.issuer_url, "https://org.okta.com");
        assert_eq!(discovery_url(&organisation.issuer_url), "https://org.okta.com/.well-known/openid-configuration");
    }

    #[test]
    fn what_isnt_the_answer_is_waited_past_k97_p65() {
        let read = |target: &str| returned(target, &proof(), 3128).map(drop);
        assert_eq!(read("/favicon.ico"), Err(Miss::Elsewhere));
        assert_eq!(read("/oauth/callback"), Err(Miss::State));
        assert_eq!(read("/oauth/callback?state=x&code=c&login_option=google"), Err(Miss::State));
        assert_eq!(organisation_returned("/signin/callback?code=c", &proof()), Err(Miss::State));
        assert!(returned(&format!("/signin/callback?state={STATE}&login_option=builderid"), &proof(), 1).is_ok());
    }

    #[test]
    fn a_way_back_that_ends_the_sign_in_k97() {
        let word = |query: &str| match back(query) {
            Ok(Err(error)) => error.word,
            other => panic!("{other:?}"),
        };
        assert_eq!(word("error=access_denied&error_description=someone@example.org"), "access_denied");
        assert_eq!(word("error=server_error"), "server_error");
        assert_eq!(word("error=a%20b"), "error");
        assert_eq!(word("login_option=google"), "unreadable");
        assert_eq!(word("login_option=awsidc&issuer_url=https://x&idc_region=nowhere"), "unreadable");
        assert_eq!(word("login_option=external_idp&issuer_url=https://x"), "unreadable");
        assert_eq!(word("login_option=new_one"), "unknown_provider");
        assert_eq!(word("x=y"), "unknown_provider");
    }

    #[test]
    fn an_organisations_provider_is_asked_only_where_it_may_be_k98_k84() {
        let hosts = Hosts::default();
        let discovery = |authorization: &str, token: &str| {
            let body = json!({ "authorization_endpoint": authorization, "token_endpoint": token }).to_string();
            read_discovery(200, body.as_bytes(), &hosts).map_err(|error| error.message)
        };
        let okta = "https://org.okta.com/oauth2/v1";
        let endpoints = discovery(&format!("{okta}/authorize?x=1"), &format!("{okta}/token")).unwrap();
        let organisation = Organisation {
            issuer_url: "https://org.okta.com".into(),
            client_id: Secret::new("k"),
            scopes: "openid offline_access".into(),
            login_hint: Some("a@example.org".into()),
            audience: None,
        };
        assert_eq!(
            organisation_page(&endpoints, &organisation, &proof(), 3128),
            "https://org.okta.com/oauth2/v1/authorize?x=1&response_type=code&client_id=k&redirect_uri=http%3A%2F%2Flocalhost%3A3128%2Foauth%2Fcallback&scope=openid+offline_access&code_challenge=3Ev4DHdHPRMPoN6GukAY_pi7IUAF5qWJHRK6kURvnoE&code_challenge_method=S256&state=CQkJCQkJCQkJCQkJCQkJCQ&login_hint=a%40example.org"
        );
        assert_eq!(
            exchange_form(&organisation, &Secret::new("c"), &proof(), 3128),
            "grant_type=authorization_code&code=c&client_id=k&redirect_uri=http%3A%2F%2Flocalhost%3A3128%2Foauth%2Fcallback&code_verifier=BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"
        );
        let evil = discovery("https://org.okta.com/a", "https://evil.example/t").unwrap_err();
        assert_eq!(evil, "token_endpoint: host evil.example is not allowed; add it to KIRO_EXTERNAL_IDP_HOSTS");
        assert!(discovery("http://org.okta.com/a", "https://org.okta.com/t").is_err());
        assert!(read_discovery(404, b"{}", &hosts).unwrap_err().message.contains("HTTP 404"));
        let refused = read_exchange(
            400,
            br#"{"error":"invalid_grant","error_description":"AADSTS7 a@b.c"}"#,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(refused.unwrap_err().message, "the organisation's provider refused the sign-in: AADSTS7");
    }

    #[test]
    fn the_record_of_an_organisations_sign_in_r88() {
        let now = "2026-11-29T00:00:00Z".parse().unwrap();
        let organisation = Organisation {
            issuer_url: "https://org.okta.com".to_owned(),
            client_id: Secret::new("k"),
            scopes: "openid".to_owned(),
            login_hint: None,
            audience: None,
        };
        let grant = Grant {
            access_token: Secret::new("a"),
            refresh_token: None,
            lifetime: std::time::Duration::from_secs(60),
            profile_arn: None,
            idc_region: None,
        };
        assert_eq!(
            String::from_utf8(organisation_record(&organisation, "https://org.okta.com/t", grant, now)).unwrap(),
            r#"{"accessToken":"a","expiresAt":"2026-11-29T00:01:00.000Z","authMethod":"external_idp","provider":"ExternalIdp","clientId":"k","tokenEndpoint":"https://org.okta.com/t","issuerUrl":"https://org.okta.com","scopes":"openid"}"#
        );
    }
}
