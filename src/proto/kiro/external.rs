//! Accounts of an external identity provider, Entra ID, Okta and others (K82–K86): which hosts may get a refresh token,
//! and the shapes of that refresh.
//!
//! The provider's address comes from the account's record, which others write. So [`Hosts::check`] runs before every
//! request, on exactly the address that the request goes to.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::token::{DEFAULT_LIFETIME, Grant, Refusal, lifetime_of};
use crate::proto::address::{is_loopback, origin};
use crate::proto::record::Token;
use crate::secret::Secret;

/// The built-in providers' hosts (K84). A leading dot makes a suffix.
const PROVIDERS: [&str; 7] = [
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    ".okta.com",
    ".okta-emea.com",
    ".oktapreview.com",
    ".okta-gov.com",
];
/// A longer address is refused (K84). In bytes.
const MAX_ADDRESS: usize = 2_048;

/// The hosts that an external account's refresh token may be sent to: the built-in providers, and those of
/// `KIRO_EXTERNAL_IDP_HOSTS` (K84).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Names, suffixes that begin with a dot, and origins on loopback.
    more: Vec<String>,
    /// The built-in providers don't count.
    only: bool,
}

impl Hosts {
    /// Reads `KIRO_EXTERNAL_IDP_HOSTS`: a comma list of host names (`sso.example.org`), suffixes of at least two labels
    /// (`.auth.example.org`) and, for tests, `http://127.0.0.1:PORT` or `http://NAME.localhost:PORT`. `only:` in front
    /// replaces the built-in list. None: an entry has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (only, list) = match text.trim().strip_prefix("only:") {
            Some(list) => (true, list),
            None => (false, text),
        };
        if list.trim().is_empty() {
            return (!only).then(Self::default);
        }
        let entries = list.split(',').map(|entry| entry.trim().to_ascii_lowercase());
        let more: Vec<_> = entries.map(|entry| is_entry(&entry).then_some(entry)).collect::<Option<_>>()?;
        Some(Self { more, only })
    }

    /// Adds an origin on this machine, for a simulated provider; any other is left out.
    pub fn add_loopback(&mut self, origin: &str) {
        self.more.extend(Some(origin.to_ascii_lowercase()).filter(|origin| is_entry(origin)));
    }

    /// Whether an external account has what it needs (K85), and its refresh token may be sent where its record says.
    ///
    /// # Errors
    /// The sentence that names the field.
    pub fn admit(&self, token: &Token) -> Result<(), String> {
        if token.client_id.is_none() {
            return Err("clientId: missing".to_owned());
        }
        let endpoint = token.token_endpoint.as_deref().ok_or("tokenEndpoint: missing")?;
        self.check("tokenEndpoint", endpoint)
    }

    /// Whether a refresh token may be sent to this address, which is `field` of a record.
    ///
    /// # Errors
    /// The sentence that says why not, with the cure.
    pub fn check(&self, field: &str, url: &str) -> Result<(), String> {
        if url.len() > MAX_ADDRESS {
            return Err(format!("{field}: longer than {MAX_ADDRESS} characters"));
        }
        if self.more.iter().any(|entry| entry.contains("://") && origin(url).eq_ignore_ascii_case(entry)) {
            return Ok(());
        }
        let Some(host) = https_host(url) else {
            return Err(format!("{field}: must be https://HOST/… without port, user name and fragment"));
        };
        let built_in = PROVIDERS.iter().copied().filter(|_| !self.only);
        if built_in.chain(self.more.iter().map(String::as_str)).any(|allowed| matches(&host, allowed)) {
            return Ok(());
        }
        Err(format!("{field}: host {host} is not allowed; add it to KIRO_EXTERNAL_IDP_HOSTS"))
    }
}

/// Whether a host is the one allowed, or below an allowed suffix.
fn matches(host: &str, allowed: &str) -> bool {
    if allowed.starts_with('.') { host.len() > allowed.len() && host.ends_with(allowed) } else { host == allowed }
}

fn is_entry(entry: &str) -> bool {
    if let Some(authority) = entry.strip_prefix("http://") {
        let host = authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host);
        return host.is_some_and(is_loopback);
    }
    match entry.strip_prefix('.') {
        Some(suffix) => is_name(suffix),
        None => is_name(entry),
    }
}

/// Host of an https address that K84 takes: lower case, a name of the DNS, no port but 443.
fn https_host(url: &str) -> Option<String> {
    let sound = url.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#'));
    let scheme = url.get(..8)?;
    let authority = origin(url).get(8..)?;
    if !sound || !scheme.eq_ignore_ascii_case("https://") || authority.contains('@') {
        return None;
    }
    let host = authority.strip_suffix(":443").unwrap_or(authority).to_ascii_lowercase();
    is_name(&host).then_some(host)
}

/// A name of at least two labels whose last one isn't a number: no address, no single label, no dot at the end.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    let top = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.contains('.')
        && name.split('.').all(is_label)
        && top.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// The form that a refresh posts (K82). None when the record lacks `clientId` or `refreshToken`.
pub fn refresh_form(token: &Token, with_scope: bool) -> Option<String> {
    let refresh_token = token.refresh_token.as_ref()?.expose();
    let client_id = token.client_id.as_ref()?.expose();
    let scope = token.scopes.as_deref().filter(|_| with_scope).map(|scope| ("scope", scope));
    Some(form(
        [("grant_type", "refresh_token"), ("refresh_token", refresh_token), ("client_id", client_id)]
            .into_iter()
            .chain(scope),
    ))
}

/// `application/x-www-form-urlencoded`.
pub fn form<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(members).finish()
}

/// Why an external provider gave no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderRefusal {
    /// What it means for the account.
    pub refusal: Refusal,
    /// It refuses the scope: ask once more without one.
    pub without_scope: bool,
    /// `AADSTS` and digits. Nothing else of the text is kept: it names tenants and users.
    pub code: Option<String>,
}

/// Classifies the answer to a refresh or to the exchange of a code (K82).
///
/// # Errors
/// The refusal, and what it means for the account.
pub fn read_answer(status: u16, body: &[u8], now: Timestamp) -> Result<Grant, ProviderRefusal> {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |name: &str| answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let refused =
        |refusal| ProviderRefusal { refusal, without_scope: false, code: text("error_description").and_then(code) };
    if status == 200 {
        let access_token = text("access_token").ok_or_else(|| refused(Refusal::Unknown))?;
        let lifetime = lifetime_of(answer.get("expires_in")).or_else(|| lifetime_of_jwt(access_token, now));
        return Ok(Grant {
            access_token: Secret::new(access_token),
            refresh_token: text("refresh_token").map(Secret::new),
            lifetime: lifetime.unwrap_or(DEFAULT_LIFETIME),
            profile_arn: None,
            idc_region: None,
        });
    }
    Err(match (status, text("error").unwrap_or_default()) {
        (429 | 500..=599, _) => refused(Refusal::Passing),
        (_, "temporarily_unavailable" | "slow_down") => refused(Refusal::Passing),
        (400, "invalid_grant") => refused(Refusal::Rejected),
        (400..=499, "interaction_required" | "login_required" | "consent_required") => refused(Refusal::Rejected),
        (400 | 401, "invalid_client" | "unauthorized_client") => refused(Refusal::ClientRefused),
        (400..=499, "invalid_scope") => ProviderRefusal { without_scope: true, ..refused(Refusal::Unknown) },
        _ => refused(Refusal::Unknown),
    })
}

/// `AADSTS700082` of a longer text.
fn code(text: &str) -> Option<String> {
    let rest = text.split("AADSTS").nth(1)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).take(12).collect();
    (!digits.is_empty()).then(|| format!("AADSTS{digits}"))
}

/// The time to the `exp` of a JWT, which is read and not verified: it is the provider's own answer.
fn lifetime_of_jwt(token: &str, now: Timestamp) -> Option<Duration> {
    use base64::Engine as _;
    let payload = token.split('.').nth(1)?;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let seconds = claims.get("exp")?.as_i64()?.checked_sub(now.as_second())?;
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    const NOT_HTTPS: &str = "tokenEndpoint: must be https://HOST/… without port, user name and fragment";

    fn check(hosts: &str, url: &str) -> Result<(), String> {
        Hosts::parse(hosts).unwrap().check("tokenEndpoint", url)
    }

    #[test]
    fn a_refresh_token_goes_only_to_allowed_hosts_k84_p35_p38() {
        for url in [
            "https://login.microsoftonline.com/tenant/oauth2/v2.0/token",
            "https://LOGIN.microsoftonline.com/t",
            "https://login.microsoftonline.com:443/t",
            "https://login.microsoftonline.us/t",
            "https://login.partner.microsoftonline.cn/t",
            "https://org.okta.com/oauth2/v1/token",
            "https://a.b.okta-gov.com/t?x=1",
        ] {
            assert_eq!(check("", url), Ok(()), "{url}");
            assert!(check("only:sso.example.org", url).is_err(), "{url}");
        }
        for url in [
            "http://login.microsoftonline.com/t",
            "https://10.0.0.1/t",
            "https://[::1]/t",
            "https://login.microsoftonline.com@evil.org/t",
            "https://login.microsoftonline.com:8443/t",
            "https://login.microsoftonline.com./t",
            "https://login.microsoftonline.com\\@evil.org/t",
            "https://login.microsoftonline.com/t#x",
            "https://münchen.okta.com/t",
            "https://localhost/t",
            "file:///x",
            "https://",
            "",
        ] {
            assert_eq!(check("", url), Err(NOT_HTTPS.into()), "{url}");
        }
        for (url, host) in [
            ("https://evil-okta.com/t", "evil-okta.com"),
            ("https://okta.com/t", "okta.com"),
            ("https://okta.com.evil.org/t", "okta.com.evil.org"),
            ("https://sso.example.org/t", "sso.example.org"),
        ] {
            let sentence = format!("tokenEndpoint: host {host} is not allowed; add it to KIRO_EXTERNAL_IDP_HOSTS");
            assert_eq!(check("", url), Err(sentence), "{url}");
        }
        let long = format!("https://org.okta.com/{}", "x".repeat(3_000));
        assert_eq!(check("", &long), Err("tokenEndpoint: longer than 2048 characters".into()));
    }

    #[test]
    fn further_hosts_can_be_allowed_k84_p38_p39() {
        let more = "sso.example.org, .auth.example.org,http://127.0.0.1:99,http://idp.localhost:98";
        for url in [
            "https://sso.example.org/t",
            "https://a.auth.example.org/t",
            "http://127.0.0.1:99/idp/token",
            "http://IDP.localhost:98/t",
            "https://org.okta.com/t",
        ] {
            assert_eq!(check(more, url), Ok(()), "{url}");
        }
        for url in
            ["https://auth.example.org/t", "http://127.0.0.1:98/t", "http://127.0.0.1/t", "http://sso.example.org/t"]
        {
            assert!(check(more, url).is_err(), "{url}");
        }
        for list in [
            "*",
            ".com",
            "com",
            "10.0.0.1",
            "[::1]",
            "http://example.org",
            "https://example.org",
            "a.b,",
            "only:",
            "-a.b",
            "a..b",
            "sso.example.org:8443",
            "user@sso.example.org",
            "*.example.org",
        ] {
            assert_eq!(Hosts::parse(list), None, "{list}");
        }
    }

    #[test]
    fn the_form_holds_four_members_in_order_k82() {
        let record = r#"{"authMethod":"okta","refreshToken":"r+1","clientId":"c","scopes":["openid","offline_access"],
                         "tokenEndpoint":"https://org.okta.com/t","clientSecret":"never sent"}"#;
        let token = Token::parse(record.as_bytes()).unwrap();
        let form = |with_scope| refresh_form(&token, with_scope).unwrap();
        assert_eq!(form(false), "grant_type=refresh_token&refresh_token=r%2B1&client_id=c");
        assert_eq!(form(true), format!("{}&scope=openid+offline_access", form(false)));
        assert_eq!(refresh_form(&Token::parse(b"{\"clientId\":\"c\"}").unwrap(), false), None);
    }

    #[test]
    fn a_providers_grant_is_read_k82_p30_p31() {
        let now: Timestamp = "2026-11-29T00:00:00Z".parse().unwrap();
        let read = |body: &str| read_answer(200, body.as_bytes(), now);
        let grant = read(r#"{"access_token":"a","refresh_token":"r","expires_in":"3599","id_token":"i"}"#).unwrap();
        assert_eq!((grant.access_token, grant.refresh_token), (Secret::new("a"), Some(Secret::new("r"))));
        assert_eq!(grant.lifetime, Duration::from_secs(3599));
        let claims = format!(r#"{{"exp":{}}}"#, now.as_second() + 1200);
        let jwt = format!("h.{}.s", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims));
        let grant = read(&format!(r#"{{"access_token":"{jwt}"}}"#)).unwrap();
        assert_eq!((grant.refresh_token, grant.lifetime), (None, Duration::from_secs(1200)));
        assert_eq!(read(r#"{"access_token":"opaque"}"#).unwrap().lifetime, DEFAULT_LIFETIME);
        for broken in ["", "[]", r#"{"access_token":""}"#, r#"{"accessToken":"a"}"#, r#"{"id_token":"a"}"#] {
            assert_eq!(read(broken).unwrap_err().refusal, Refusal::Unknown, "{broken}");
        }
    }

    #[test]
    fn each_refusal_of_a_provider_has_its_meaning_k82_p33() {
        use Refusal::{ClientRefused, Passing, Rejected, Unknown};
        let now = Timestamp::UNIX_EPOCH;
        let expired = r#"{"error":"invalid_grant","error_description":"AADSTS700082: … user@example.org …"}"#;
        let refused = read_answer(400, expired.as_bytes(), now).unwrap_err();
        let code = Some("AADSTS700082".to_owned());
        assert_eq!(refused, ProviderRefusal { refusal: Rejected, without_scope: false, code });
        for (status, error, refusal) in [
            (403, "interaction_required", Rejected),
            (400, "login_required", Rejected),
            (401, "consent_required", Rejected),
            (401, "invalid_grant", Unknown),
            (401, "invalid_client", ClientRefused),
            (400, "unauthorized_client", ClientRefused),
            (429, "x", Passing),
            (503, "invalid_grant", Passing),
            (400, "temporarily_unavailable", Passing),
            (400, "slow_down", Passing),
            (404, "", Unknown),
            (302, "", Unknown),
        ] {
            let refused = read_answer(status, format!(r#"{{"error":"{error}"}}"#).as_bytes(), now).unwrap_err();
            assert_eq!(refused, ProviderRefusal { refusal, without_scope: false, code: None }, "{status} {error}");
        }
        let scope = read_answer(400, br#"{"error":"invalid_scope"}"#, now).unwrap_err();
        assert!(scope.without_scope && scope.refusal == Unknown);
    }
}
