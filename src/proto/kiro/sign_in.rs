//! Shapes of the device sign-in (K93–K96): the requests, the meaning of the answers, and the record they make (R88).
//!
//! Two dialects: AWS's OIDC host for Builder ID and IAM Identity Center, with seconds and OAuth error words, and Kiro's own
//! host for Google and GitHub, with milliseconds and a `status`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::profile::is_arn;
use super::token::{DEFAULT_LIFETIME, lifetime_of};
use crate::proto::address::origin;
use crate::proto::record::{Object, RECORD, Unusable, is_region, rfc3339};
use crate::secret::Secret;

/// Where a Builder ID signs in, and in which region.
pub const BUILDER_ID_START: &str = "https://view.awsapps.com/start";
/// The region of Builder IDs and of Kiro's own sign-in.
pub const HOME_REGION: &str = "us-east-1";
/// Where an Identity Center is looked for, in this order (K94).
pub const IDENTITY_CENTER_REGIONS: [&str; 14] = [
    "us-east-1",
    "eu-west-1",
    "eu-central-1",
    "us-east-2",
    "us-west-2",
    "eu-west-2",
    "eu-west-3",
    "eu-north-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-northeast-1",
    "ap-south-1",
    "sa-east-1",
    "ca-central-1",
];
/// What a registration asks for; the first three alone after `invalid_scope` (K93).
pub const SCOPES: [&str; 5] = [
    "codewhisperer:completions",
    "codewhisperer:analysis",
    "codewhisperer:conversations",
    "codewhisperer:transformations",
    "codewhisperer:taskassist",
];
/// How many of [`SCOPES`] every host takes.
pub const BASIC_SCOPES: usize = 3;
/// Names of the client at Kiro's own host, the second one after a refusal (K96).
pub const SOCIAL_CLIENTS: [&str; 2] = ["Kiro-CLI", "kiro-cli"];

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// Of a code whose answer doesn't say (K94).
const DEFAULT_CODE_LIFETIME: Duration = Duration::from_secs(600);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_CODE_LIFETIME: Duration = Duration::from_secs(3600);
/// Longest start URL (R77).
const MAX_START_URL: usize = 2_048;
/// Longest text that is shown to a person.
const MAX_SHOWN: usize = 512;

/// Who signs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignIn {
    /// An AWS Builder ID.
    BuilderId,
    /// A user of an organisation's IAM Identity Center.
    IdentityCenter {
        /// `https://d-….awsapps.com/start` and the like.
        start_url: String,
        /// Its region; none: it is looked for.
        region: Option<String>,
    },
    /// Google.
    Google,
    /// GitHub.
    Github,
}

/// What is wrong with a choice of [`SignIn::named`]: the field, and a sentence.
pub type WrongChoice = (&'static str, String);

impl SignIn {
    /// Who signs in with a device code, by the words of people and programs: `builder-id`, `google`, `github`, `idc` with a
    /// start URL and, if it isn't to be looked for, its region.
    ///
    /// # Errors
    /// The field that is wrong, `method`, `start-url` or `region`, and why.
    pub fn named(method: &str, start_url: Option<String>, region: Option<String>) -> Result<Self, WrongChoice> {
        if region.as_ref().is_some_and(|region| !is_region(region)) {
            return Err(("region", "no region's name, such as eu-west-1".to_owned()));
        }
        let is_address = |url: &String| {
            let is_printable = url.bytes().all(|byte| byte.is_ascii_graphic());
            url.starts_with("https://") && !origin(url).is_empty() && url.len() <= MAX_START_URL && is_printable
        };
        if start_url.as_ref().is_some_and(|url| !is_address(url)) {
            let example = "an https:// address, such as https://d-1234567890.awsapps.com/start";
            return Err(("start-url", example.to_owned()));
        }
        match (method, start_url) {
            ("builder-id" | "google" | "github", None) if region.is_some() => {
                Err(("region", format!("it belongs to idc, not to {method}")))
            }
            ("builder-id", None) => Ok(Self::BuilderId),
            ("google", None) => Ok(Self::Google),
            ("github", None) => Ok(Self::Github),
            ("idc", Some(start_url)) if start_url.trim_end_matches(['/', '#']) == BUILDER_ID_START => {
                Ok(Self::BuilderId)
            }
            ("idc", Some(start_url)) => Ok(Self::IdentityCenter { start_url, region }),
            ("idc", None) => {
                Err(("start-url", "idc needs it, the address at which the organisation signs in".to_owned()))
            }
            ("builder-id" | "google" | "github", Some(_)) => {
                Err(("start-url", format!("it belongs to idc, not to {method}")))
            }
            _ => Err(("method", "builder-id, google, github or idc".to_owned())),
        }
    }

    /// The name for people.
    pub fn title(&self) -> &'static str {
        match self {
            Self::BuilderId => "AWS Builder ID",
            Self::IdentityCenter { .. } => "IAM Identity Center",
            Self::Google => "Google",
            Self::Github => "GitHub",
        }
    }

    /// `loginProvider` at Kiro's own host; `GitHub` would be refused (K96).
    pub fn provider(&self) -> Option<&'static str> {
        match self {
            Self::Google => Some("Google"),
            Self::Github => Some("Github"),
            Self::BuilderId | Self::IdentityCenter { .. } => None,
        }
    }

    /// Where an AWS sign-in begins.
    pub fn start_url(&self) -> Option<&str> {
        match self {
            Self::BuilderId => Some(BUILDER_ID_START),
            Self::IdentityCenter { start_url, .. } => Some(start_url),
            Self::Google | Self::Github => None,
        }
    }
}

/// Why a sign-in failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignInError {
    /// The error's word, for programs.
    pub word: String,
    /// A sentence for people. It holds nothing of upstream's texts.
    pub message: String,
}

impl SignInError {
    /// With this word and sentence.
    pub fn new(word: &str, message: impl Into<String>) -> Self {
        Self { word: word.to_owned(), message: message.into() }
    }

    /// The answer can't be read.
    pub fn unreadable() -> Self {
        Self::new("unreadable", "Kiro's sign-in sent an answer that can't be read")
    }

    /// The host said no, with this word.
    pub fn refused(word: String) -> Self {
        Self { message: format!("Kiro's sign-in was refused: {word}"), word }
    }

    /// The person said no.
    pub fn denied() -> Self {
        Self::new("access_denied", "the sign-in was refused in the browser")
    }

    /// The code's time is over.
    pub fn expired() -> Self {
        Self::new("expired_token", "the code has expired; run the command again")
    }

    /// Nobody came within the time that was given.
    pub fn late() -> Self {
        Self::new("expired_token", "nobody signed in within the time; run the command again")
    }
}

/// A client registered for one sign-in: its refresh token is bound to it (K93).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Never empty.
    pub client_id: Secret,
    /// Never empty.
    pub client_secret: Secret,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// The page that a person must open, and how long it is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCode {
    /// What is polled with.
    pub device_code: Secret,
    /// Typed in the browser.
    pub user_code: String,
    /// Where.
    pub uri: String,
    /// The same with the code in it.
    pub uri_complete: String,
    /// Until it expires.
    pub lifetime: Duration,
    /// Between two polls, at least a second.
    pub interval: Duration,
}

/// The result of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Signed in.
    Done(Tokens),
    /// Not yet.
    Pending,
    /// Not yet, and ask 5 s later from now on.
    SlowDown,
    /// The host failed in passing: ask again later.
    Passing,
    /// Another status than 200 of Kiro's own host, below 500: three in a row end the sign-in.
    Refused(u16),
    /// It is over.
    Failed(SignInError),
}

/// The tokens of a sign-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Never empty.
    pub access_token: Secret,
    /// Absent: the account ends with its access token.
    pub refresh_token: Option<Secret>,
    /// Of the access token.
    pub lifetime: Duration,
    /// Of a social account.
    pub profile_arn: Option<String>,
    /// The provider that a social account really used.
    pub provider: Option<String>,
}

/// `POST /client/register` (K93). A new one for each sign-in, without `issuerUrl`: a fixed one breaks Identity Center.
pub fn register_body(scopes: &[&str]) -> Value {
    json!({
        "clientName": "Kiro IDE", "clientType": "public", "scopes": scopes, "grantTypes": [DEVICE_GRANT, "refresh_token"],
    })
}

/// The answer to [`register_body`].
///
/// # Errors
/// The word of the refusal.
pub fn read_registration(status: u16, error_type: Option<&str>, body: &[u8]) -> Result<Registration, SignInError> {
    let answer = object(body);
    if status != 200 {
        return Err(refusal(status, error_type, &answer));
    }
    let secret = |name| text(&answer, name).map(Secret::new).ok_or_else(SignInError::unreadable);
    let end = answer.get("clientSecretExpiresAt").and_then(Value::as_i64).filter(|end| *end > 0);
    Ok(Registration {
        client_id: secret("clientId")?,
        client_secret: secret("clientSecret")?,
        expires_at: end.and_then(|end| Timestamp::from_second(end).ok()),
    })
}

/// `POST /device_authorization` (K94).
pub fn device_body(registration: &Registration, start_url: &str) -> Value {
    json!({
        "clientId": registration.client_id.expose(), "clientSecret": registration.client_secret.expose(),
        "startUrl": start_url,
    })
}

/// The answer to [`device_body`], in seconds.
///
/// # Errors
/// The word of the refusal, or an address that isn't AWS's: it is opened in somebody's browser.
pub fn read_device(status: u16, error_type: Option<&str>, body: &[u8]) -> Result<DeviceCode, SignInError> {
    let answer = object(body);
    if status != 200 {
        return Err(refusal(status, error_type, &answer));
    }
    let allowed = [".awsapps.com", ".amazonaws.com", ".amazonaws-us-gov.com", ".aws"];
    code(&answer, ["expiresIn", "interval"], 1.0, |host| allowed.iter().any(|suffix| host.ends_with(suffix)))
}

/// `POST /token` with the device grant (K95).
pub fn poll_body(registration: &Registration, code: &DeviceCode) -> Value {
    json!({
        "clientId": registration.client_id.expose(), "clientSecret": registration.client_secret.expose(),
        "deviceCode": code.device_code.expose(), "grantType": DEVICE_GRANT,
    })
}

/// The answer to [`poll_body`]: K95's table.
pub fn read_poll(status: u16, error_type: Option<&str>, body: &[u8]) -> Poll {
    let answer = object(body);
    match status {
        200 => tokens(&answer).map_or_else(|| Poll::Failed(no_token()), Poll::Done),
        429 | 500.. => Poll::Passing,
        _ => match word(error_type, &answer).as_str() {
            "authorization_pending" => Poll::Pending,
            "slow_down" => Poll::SlowDown,
            "expired_token" => Poll::Failed(SignInError::expired()),
            "access_denied" => Poll::Failed(SignInError::denied()),
            _ => Poll::Failed(refusal(status, error_type, &answer)),
        },
    }
}

/// `POST /oauth/device/authorization` (K96).
pub fn social_device_body(client: &str, provider: &str) -> Value {
    json!({ "clientId": client, "loginProvider": provider })
}

/// The answer to [`social_device_body`], in milliseconds.
///
/// # Errors
/// As [`read_device`]; the address must be Kiro's own.
pub fn read_social_device(status: u16, body: &[u8]) -> Result<DeviceCode, SignInError> {
    let answer = object(body);
    if status != 200 {
        return Err(refusal(status, None, &answer));
    }
    code(&answer, ["expiresInMilliseconds", "intervalInMilliseconds"], 0.001, |host| host == "app.kiro.dev")
}

/// `POST /oauth/device/poll` (K96), with the client of the start.
pub fn social_poll_body(client: &str, code: &DeviceCode) -> Value {
    json!({ "deviceCode": code.device_code.expose(), "clientId": client })
}

/// The answer to [`social_poll_body`]: K96's table.
pub fn read_social_poll(status: u16, body: &[u8]) -> Poll {
    let answer = object(body);
    match status {
        200 => {}
        400..=499 if status != 429 => return Poll::Refused(status),
        _ => return Poll::Passing,
    }
    if let Some(tokens) = tokens(&answer) {
        return Poll::Done(tokens);
    }
    match text(&answer, "status").unwrap_or_default().to_ascii_lowercase().as_str() {
        "authorization_pending" => Poll::Pending,
        "slow_down" => Poll::SlowDown,
        "expired_token" => Poll::Failed(SignInError::expired()),
        "authorized" | "" => Poll::Failed(no_token()),
        other => Poll::Failed(SignInError::new(&shown_word(other), "Kiro's sign-in was refused")),
    }
}

/// The answer to the exchange of the portal's code (K97); other programs saw it in snake_case.
///
/// # Errors
/// The word of the refusal.
pub fn read_social_exchange(status: u16, body: &[u8]) -> Result<Tokens, SignInError> {
    let mut answer = object(body);
    if status != 200 {
        return Err(refusal(status, None, &answer));
    }
    if let Some(members) = answer.as_object_mut() {
        const SNAKE: [(&str, &str); 4] = [
            ("access_token", "accessToken"),
            ("refresh_token", "refreshToken"),
            ("expires_in", "expiresIn"),
            ("profile_arn", "profileArn"),
        ];
        for (snake, camel) in SNAKE {
            if let Some(value) = members.remove(snake) {
                members.entry(camel).or_insert(value);
            }
        }
    }
    tokens(&answer).ok_or_else(no_token)
}

/// The token record of a sign-in, members in the order of R88, absent ones left out.
pub fn record(
    who: &SignIn,
    tokens: &Tokens,
    registration: Option<&Registration>,
    region: &str,
    now: Timestamp,
) -> Vec<u8> {
    let (method, provider) = match who {
        SignIn::BuilderId => ("builder-id", "BuilderId"),
        SignIn::IdentityCenter { .. } => ("IdC", "Enterprise"),
        SignIn::Google | SignIn::Github => {
            ("social", tokens.provider.as_deref().or(who.provider()).unwrap_or_default())
        }
    };
    let further = match (who.start_url(), registration) {
        (Some(start_url), Some(registration)) => vec![
            ("startUrl", Some(start_url.to_owned())),
            ("idcRegion", Some(region.to_owned())),
            ("clientId", Some(registration.client_id.expose().to_owned())),
            ("clientSecret", Some(registration.client_secret.expose().to_owned())),
            ("registrationExpiresAt", registration.expires_at.map(rfc3339)),
        ],
        _ => vec![("profileArn", tokens.profile_arn.clone()), ("region", Some(HOME_REGION.to_owned()))],
    };
    record_of(tokens, (method, provider), further, now)
}

pub(super) fn record_of(
    tokens: &Tokens,
    (method, provider): (&str, &str),
    further: Vec<(&str, Option<String>)>,
    now: Timestamp,
) -> Vec<u8> {
    let end = now.checked_add(tokens.lifetime).unwrap_or(Timestamp::MAX);
    let mut members = vec![
        ("accessToken", Some(tokens.access_token.expose().to_owned())),
        ("refreshToken", tokens.refresh_token.as_ref().map(|token| token.expose().to_owned())),
        ("expiresAt", Some(rfc3339(end))),
        ("authMethod", Some(method.to_owned())),
        ("provider", Some(provider.to_owned())),
    ];
    members.extend(further);
    let members = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::String(value?))));
    Value::Object(members.collect::<Map<_, _>>()).to_string().into_bytes()
}

/// Members of a token record that belong to a credential: of another login they are removed (R87).
const CREDENTIAL_MEMBERS: [&str; 18] = [
    "accessToken",
    "refreshToken",
    "expiresAt",
    "authMethod",
    "provider",
    "startUrl",
    "idcRegion",
    "clientId",
    "clientSecret",
    "clientIdHash",
    "registrationExpiresAt",
    "tokenEndpoint",
    "issuerUrl",
    "scopes",
    "kiroApiKey",
    "profileArn",
    "region",
    "apiRegion",
];

/// A token record with the credential of a new login in the place of its own; unknown members stay (R73, R87).
///
/// # Errors
/// One of the records isn't a JSON object within the limits.
pub fn with_credential(old: &[u8], new: &[u8]) -> Result<Vec<u8>, Unusable> {
    let login = Object::parse(new, RECORD)?;
    let mut record = old.to_vec();
    for name in CREDENTIAL_MEMBERS.iter().filter(|name| login.last(name).is_none()) {
        record = Object::parse(&record, RECORD)?.without(name);
    }
    let object = Object::parse(&record, RECORD)?;
    let edits: Vec<_> = login.members().map(|(name, value)| (name.into_owned(), value.raw().to_owned())).collect();
    Ok(object.with(edits.iter().map(|(name, value)| (name.as_str(), value.clone()))))
}

fn object(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or(Value::Null)
}

fn text<'v>(answer: &'v Value, name: &str) -> Option<&'v str> {
    answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn tokens(answer: &Value) -> Option<Tokens> {
    // It must fit a header: what doesn't could never serve.
    let token = |name| text(answer, name).filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
    Some(Tokens {
        access_token: Secret::new(token("accessToken")?),
        refresh_token: text(answer, "refreshToken").map(Secret::new),
        lifetime: lifetime_of(answer.get("expiresIn")).unwrap_or(DEFAULT_LIFETIME),
        profile_arn: text(answer, "profileArn").filter(|arn| is_arn(arn)).map(str::to_owned),
        provider: text(answer, "identityProvider").filter(|name| is_word(name)).map(str::to_owned),
    })
}

fn no_token() -> SignInError {
    SignInError::new("no_token", "Kiro's sign-in answered without a token")
}

/// A code whose address may be shown: https, and a host that is `allowed`.
fn code(
    answer: &Value,
    [lifetime, interval]: [&str; 2],
    unit: f64,
    allowed: impl Fn(&str) -> bool,
) -> Result<DeviceCode, SignInError> {
    let shown = |name| {
        let shown = text(answer, name).ok_or_else(SignInError::unreadable)?;
        let plain = shown.len() <= MAX_SHOWN && shown.bytes().all(|byte| byte.is_ascii_graphic());
        plain.then(|| shown.to_owned()).ok_or_else(SignInError::unreadable)
    };
    let uri = shown("verificationUri")?;
    let uri_complete = match text(answer, "verificationUriComplete") {
        Some(_) => shown("verificationUriComplete")?,
        None => uri.clone(),
    };
    for shown in [&uri, &uri_complete] {
        let host = origin(shown).strip_prefix("https://").map(str::to_ascii_lowercase).unwrap_or_default();
        let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
        if !plain || !allowed(&host) {
            return Err(SignInError::new(
                "foreign_address",
                "the sign-in names an address that isn't its own: it isn't shown, since it would be opened in a browser",
            ));
        }
    }
    let time = |name, or: Duration| {
        let time = answer.get(name).and_then(Value::as_f64).filter(|time| *time > 0.0);
        time.and_then(|time| Duration::try_from_secs_f64((time * unit).min(86_400.0)).ok()).unwrap_or(or)
    };
    Ok(DeviceCode {
        device_code: Secret::new(text(answer, "deviceCode").ok_or_else(SignInError::unreadable)?),
        user_code: shown("userCode")?,
        uri,
        uri_complete,
        lifetime: time(lifetime, DEFAULT_CODE_LIFETIME).min(LONGEST_CODE_LIFETIME),
        interval: time(interval, DEFAULT_INTERVAL).max(SHORTEST_INTERVAL),
    })
}

/// The error's word: `error` of the body, or the exception's name.
fn word(error_type: Option<&str>, answer: &Value) -> String {
    let exception = |name: &str| {
        let name = name.split(':').next().unwrap_or(name);
        name.rsplit('#').next().unwrap_or(name).to_owned()
    };
    let word = text(answer, "error").map(str::to_owned);
    let word = word.or_else(|| error_type.or_else(|| text(answer, "__type")).map(exception)).unwrap_or_default();
    shown_word(match word.as_str() {
        "AuthorizationPendingException" => "authorization_pending",
        "SlowDownException" => "slow_down",
        "ExpiredTokenException" => "expired_token",
        "AccessDeniedException" => "access_denied",
        "InvalidScopeException" => "invalid_scope",
        other => other,
    })
}

fn refusal(status: u16, error_type: Option<&str>, answer: &Value) -> SignInError {
    let word = word(error_type, answer);
    let word = if word.is_empty() { format!("status_{status}") } else { word };
    SignInError::refused(word)
}

/// An error's word as it may be shown: letters, digits and `_`.
pub(super) fn shown_word(word: &str) -> String {
    if is_word(word) { word.to_owned() } else { String::new() }
}

fn is_word(word: &str) -> bool {
    word.len() <= 64 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration() -> Registration {
        let end = Timestamp::from_second(1_800_000_000).ok();
        Registration { client_id: Secret::new("c"), client_secret: Secret::new("s"), expires_at: end }
    }

    #[test]
    fn a_client_is_registered_for_each_sign_in_k93() {
        assert_eq!(
            register_body(&SCOPES[..BASIC_SCOPES]).to_string(),
            r#"{"clientName":"Kiro IDE","clientType":"public","scopes":["codewhisperer:completions","codewhisperer:analysis","codewhisperer:conversations"],"grantTypes":["urn:ietf:params:oauth:grant-type:device_code","refresh_token"]}"#
        );
        let body = br#"{"clientId":"c","clientSecret":"s","clientIdIssuedAt":1,"clientSecretExpiresAt":1800000000}"#;
        assert_eq!(read_registration(200, None, body), Ok(registration()));
        assert_eq!(read_registration(200, None, b"{}"), Err(SignInError::unreadable()));
        let refused = read_registration(400, Some("InvalidScopeException:http://x"), b"{}").unwrap_err();
        assert_eq!(refused.word, "invalid_scope");
        assert_eq!(read_registration(400, None, br#"{"error":"invalid_scope"}"#).unwrap_err().word, "invalid_scope");
    }

    fn device(uri: &str) -> Result<DeviceCode, SignInError> {
        let body = json!({
            "deviceCode": "d", "userCode": "ABCD-EFGH", "verificationUri": "https://device.sso.us-east-1.amazonaws.com/",
            "verificationUriComplete": uri, "expiresIn": 601, "interval": 0.2,
        });
        read_device(200, None, body.to_string().as_bytes())
    }

    #[test]
    fn what_is_shown_is_an_address_of_the_sign_in_itself_k94_k96_p64() {
        let code = device("https://view.awsapps.com/start/#/device?user_code=ABCD-EFGH").unwrap();
        assert_eq!((code.lifetime, code.interval), (Duration::from_secs(601), Duration::from_secs(1)));
        for uri in [
            "https://evil.example/",
            "https://evil.example/.awsapps.com",
            "http://view.awsapps.com/",
            "https://view.awsapps.com@evil.example/",
            "https://view.awsapps.com.evil.example/",
            "https://view.awsapps.com:8443/",
            "https://awsapps.com.evil/\u{1b}[2J",
        ] {
            let error = device(uri).unwrap_err();
            assert!(!error.message.contains("evil"), "{uri}: {error:?}");
        }
        let social = |host: &str| {
            let uri = format!("https://{host}/device?user_code=AB");
            let body = json!({
                "deviceCode": "d", "userCode": "AB", "verificationUri": uri, "verificationUriComplete": uri,
                "expiresInMilliseconds": 300_000, "intervalInMilliseconds": 5_000,
            });
            read_social_device(200, body.to_string().as_bytes())
        };
        let code = social("app.kiro.dev").unwrap();
        assert_eq!((code.lifetime, code.interval), (Duration::from_secs(300), Duration::from_secs(5)));
        assert_eq!(social("app.kiro.dev.evil.example").unwrap_err().word, "foreign_address");
    }

    #[test]
    fn every_answer_to_a_poll_k95_p59() {
        let read = |status, kind, body: &str| read_poll(status, kind, body.as_bytes());
        let error = |word: &str| format!(r#"{{"error":"{word}","error_description":"for user@example.org"}}"#);
        assert_eq!(read(400, None, &error("authorization_pending")), Poll::Pending);
        assert_eq!(read(400, Some("SlowDownException"), ""), Poll::SlowDown);
        for (status, body) in [(429, ""), (500, "x"), (503, "")] {
            assert_eq!(read(status, None, body), Poll::Passing);
        }
        for (status, body, word, message) in [
            (400, error("expired_token"), "expired_token", "the code has expired; run the command again"),
            (400, error("access_denied"), "access_denied", "the sign-in was refused in the browser"),
            (401, error("invalid_client"), "invalid_client", "Kiro's sign-in was refused: invalid_client"),
            (404, String::new(), "status_404", "Kiro's sign-in was refused: status_404"),
            (400, error("a b\\u001b"), "status_400", "Kiro's sign-in was refused: status_400"),
            (200, "{}".into(), "no_token", "Kiro's sign-in answered without a token"),
        ] {
            assert_eq!(read(status, None, &body), Poll::Failed(SignInError::new(word, message)), "{status} {body}");
        }
        let Poll::Done(tokens) = read(200, None, r#"{"accessToken":"a","expiresIn":900}"#) else { panic!() };
        assert_eq!((tokens.refresh_token, tokens.lifetime), (None, Duration::from_secs(900)));
    }

    #[test]
    fn every_answer_to_a_social_poll_k96_p63() {
        let read = |status, body: &str| read_social_poll(status, body.as_bytes());
        assert_eq!(read(200, r#"{"status":"authorization_pending","accessToken":null}"#), Poll::Pending);
        assert_eq!(read(200, r#"{"status":"slow_down"}"#), Poll::SlowDown);
        assert_eq!((read(404, ""), read(429, ""), read(502, "")), (Poll::Refused(404), Poll::Passing, Poll::Passing));
        let failed = |body: &str| match read(200, body) {
            Poll::Failed(error) => error.word,
            other => panic!("{other:?}"),
        };
        assert_eq!(failed(r#"{"status":"expired_token"}"#), "expired_token");
        assert_eq!(failed(r#"{"status":"invalid_token"}"#), "invalid_token");
        assert_eq!(failed(r#"{"status":"authorized"}"#), "no_token");
        let Poll::Done(tokens) =
            read(200, r#"{"status":"whatever","accessToken":"a","refreshToken":"r","identityProvider":"Google"}"#)
        else {
            panic!()
        };
        assert_eq!((tokens.lifetime, tokens.provider.as_deref()), (DEFAULT_LIFETIME, Some("Google")));
    }

    #[test]
    fn a_login_replaces_the_credential_and_leaves_the_rest_r73_r87_p69() {
        let replaced =
            |old: &str, new: &str| String::from_utf8(with_credential(old.as_bytes(), new.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            replaced(
                r#"{"clientId":"c", "note": 1.50,"accessToken":"old","clientId":"d","clientSecret":"s"}"#,
                r#"{"accessToken":"new","authMethod":"social"}"#
            ),
            r#"{"note": 1.50,"accessToken":"new","authMethod":"social"}"#
        );
        assert_eq!(replaced("{}", r#"{"accessToken":"new"}"#), r#"{"accessToken":"new"}"#);
        assert!(with_credential(b"broken", b"{}").is_err());
    }

    #[test]
    fn the_exchange_is_read_in_both_spellings_k97() {
        for body in [
            r#"{"accessToken":"a","refreshToken":"r","expiresIn":60,"profileArn":"arn:aws:codewhisperer:x"}"#,
            r#"{"access_token":"a","refresh_token":"r","expires_in":60,"profile_arn":"arn:aws:codewhisperer:x"}"#,
        ] {
            let tokens = read_social_exchange(200, body.as_bytes()).unwrap();
            assert_eq!((tokens.access_token.expose(), tokens.lifetime.as_secs()), ("a", 60));
            assert_eq!(
                (tokens.refresh_token, tokens.profile_arn),
                (Some(Secret::new("r")), Some("arn:aws:codewhisperer:x".into()))
            );
        }
        assert_eq!(read_social_exchange(200, b"{}").unwrap_err().word, "no_token");
        assert_eq!(read_social_exchange(400, br#"{"error":"invalid_grant"}"#).unwrap_err().word, "invalid_grant");
    }

    #[test]
    fn the_records_of_a_sign_in_r88() {
        let now: Timestamp = "2026-11-29T00:00:00Z".parse().unwrap();
        let tokens = Tokens {
            access_token: Secret::new("a"),
            refresh_token: Some(Secret::new("r")),
            lifetime: Duration::from_secs(3600),
            profile_arn: Some("arn:x".into()),
            provider: None,
        };
        let made = |who: &SignIn, registration: Option<&Registration>, region: &str| {
            String::from_utf8(record(who, &tokens, registration, region, now)).unwrap()
        };
        assert_eq!(
            made(&SignIn::BuilderId, Some(&registration()), HOME_REGION),
            r#"{"accessToken":"a","refreshToken":"r","expiresAt":"2026-11-29T01:00:00.000Z","authMethod":"builder-id","provider":"BuilderId","startUrl":"https://view.awsapps.com/start","idcRegion":"us-east-1","clientId":"c","clientSecret":"s","registrationExpiresAt":"2027-01-15T08:00:00.000Z"}"#
        );
        let center = SignIn::IdentityCenter { start_url: "https://x.awsapps.com/start".into(), region: None };
        let made_there = made(&center, Some(&registration()), "eu-west-2");
        assert!(made_there.contains(r#""authMethod":"IdC","provider":"Enterprise","startUrl":"https://x.awsapps.com/start","idcRegion":"eu-west-2""#));
        assert_eq!(
            made(&SignIn::Github, None, HOME_REGION),
            r#"{"accessToken":"a","refreshToken":"r","expiresAt":"2026-11-29T01:00:00.000Z","authMethod":"social","provider":"Github","profileArn":"arn:x","region":"us-east-1"}"#
        );
    }
}
