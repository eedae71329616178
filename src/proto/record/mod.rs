//! Account and token records as they lie in the store: tolerant read, exact write-back (R7–R13, R19–R27).
//!
//! Another program writes the same records, so a record is never decoded into a struct and encoded again. It is read
//! into an [`Account`] or a [`Token`], which hold only what is understood, and changed by [`patch`], which replaces the
//! bytes of single values and leaves every other byte as it was found.

use std::fmt;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::secret::Secret;

mod note;
mod object;
mod read;
mod token_file;

pub use note::Note;
pub use object::{Json, Limits, Object, RECORD, Unusable, quote};
pub use token_file::{RefusedHash, Registration, TokenFile, id_of_path};

/// Integers are written below this (R25): another writer's JSON keeps 14 significant digits.
const MAX_INTEGER: u64 = 99_999_999_999_999;

/// The tolerant reading of an account record (§3). Absent fields have their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The hash field; a `uuid` inside the record is ignored.
    pub id: String,
    /// Default true.
    pub is_healthy: bool,
    /// Default false. Set by a person.
    pub is_disabled: bool,
    /// Successful requests; 0 to 10^14 − 1.
    pub usage_count: u64,
    /// Failures since the last success; 0 to 10^14 − 1.
    pub error_count: u64,
    /// When the account was last used.
    pub last_used: Option<Timestamp>,
    /// When the last failure happened.
    pub last_error_time: Option<Timestamp>,
    /// What the last failure was; see [`Account::note`]. Counts only while the account is not healthy (R15).
    pub last_error_message: Option<String>,
    /// When a quota resets. Counts only while the account is not healthy (R15).
    pub scheduled_recovery_time: Option<Timestamp>,
    /// Default false. Its access token should be renewed.
    pub needs_refresh: bool,
    /// Refreshes tried in vain, as another program counts them.
    pub refresh_count: u64,
    /// When the last refresh or check ended well.
    pub last_health_check_time: Option<Timestamp>,
    /// Names of models that this account can't serve (R7).
    pub not_supported_models: Vec<String>,
    /// Where the token record lies, as found: `redis:tokens:claude-kiro-oauth:{uuid}` (R45).
    pub token_file_path: Option<String>,
    /// Kiro's address for this account, with `{{region}}` or `{region}` in it; see [`endpoint`].
    pub base_url: Option<String>,
    /// Address of social refresh, likewise.
    pub refresh_url: Option<String>,
    /// Address of IdC refresh, likewise.
    pub refresh_idc_url: Option<String>,
    /// This account's proxy.
    pub proxy_url: Option<String>,
    /// Left by a predecessor: used only when the token record has none.
    pub region: Option<String>,
    /// Left by a predecessor: used only when the token record has none.
    pub profile_arn: Option<String>,
    /// For display only; may be empty.
    pub custom_name: Option<String>,
    /// Whether the record names a credential store of another program (`KIRO_OAUTH_CREDS_*`), which is not read.
    pub has_foreign_credentials: bool,
}

impl Account {
    /// Reads a record. An error makes this one account unusable: left out and never written (R9).
    pub fn parse(record: &[u8], id: &str) -> Result<Self, Unusable> {
        let object = Object::parse(record, RECORD)?;
        let mut account = Self::new(id);
        // In the order of the text: of a doubled name the last one counts (R10).
        for (name, value) in object.members() {
            account.read(&name, value);
        }
        Ok(account)
    }

    /// What `lastErrorMessage` says while it counts, which is while the account is not healthy (R15).
    pub fn note(&self) -> Option<Note> {
        if self.is_healthy { None } else { self.last_error_message.as_deref().map(Note::parse) }
    }

    /// Whether none of `names`, the client's name of a model and the known name behind it, is excluded (R7).
    pub fn supports(&self, names: &[&str]) -> bool {
        !self.not_supported_models.iter().any(|excluded| names.contains(&excluded.as_str()))
    }

    fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            is_healthy: true,
            is_disabled: false,
            usage_count: 0,
            error_count: 0,
            last_used: None,
            last_error_time: None,
            last_error_message: None,
            scheduled_recovery_time: None,
            needs_refresh: false,
            refresh_count: 0,
            last_health_check_time: None,
            not_supported_models: Vec::new(),
            token_file_path: None,
            base_url: None,
            refresh_url: None,
            refresh_idc_url: None,
            proxy_url: None,
            region: None,
            profile_arn: None,
            custom_name: None,
            has_foreign_credentials: false,
        }
    }

    fn read(&mut self, name: &str, value: Json<'_>) {
        match name {
            "isHealthy" => self.is_healthy = read::boolean(value).unwrap_or(true),
            "isDisabled" => self.is_disabled = read::boolean(value).unwrap_or(false),
            "usageCount" => self.usage_count = read::count(value),
            "errorCount" => self.error_count = read::count(value),
            "lastUsed" => self.last_used = read::time(value),
            "lastErrorTime" => self.last_error_time = read::time(value),
            "lastErrorMessage" => self.last_error_message = read::text(value),
            "scheduledRecoveryTime" => self.scheduled_recovery_time = read::time(value),
            "needsRefresh" => self.needs_refresh = read::boolean(value).unwrap_or(false),
            "refreshCount" => self.refresh_count = read::count(value),
            "lastHealthCheckTime" => self.last_health_check_time = read::time(value),
            "notSupportedModels" => self.not_supported_models = read::names(value),
            "KIRO_TOKEN_FILE_PATH" => self.token_file_path = read::text(value),
            "KIRO_BASE_URL" => self.base_url = read::text(value),
            "KIRO_REFRESH_URL" => self.refresh_url = read::text(value),
            "KIRO_REFRESH_IDC_URL" => self.refresh_idc_url = read::text(value),
            "PROXY_URL" => self.proxy_url = read::text(value),
            "region" => self.region = read::text(value),
            "profileArn" => self.profile_arn = read::text(value),
            "customName" => self.custom_name = value.string().map(Into::into),
            _ if name.starts_with("KIRO_OAUTH_CREDS_") => {
                self.has_foreign_credentials |= read::text(value).is_some();
            }
            _ => {}
        }
    }
}

/// The tolerant reading of a token record (§4). `None` is absent, which an empty string is too.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Token {
    /// The bearer token; absent counts as expired.
    pub access_token: Option<Secret>,
    /// Absent: this token can't be refreshed.
    pub refresh_token: Option<Secret>,
    /// When the access token expires; absent or unparsable counts as expired (R43).
    pub expires_at: Option<Timestamp>,
    /// `authMethod` as found; what it means is [`Token::method`].
    pub auth_method: Option<String>,
    /// The profile sent upstream.
    pub profile_arn: Option<String>,
    /// As found; see [`Token::region`].
    pub region: Option<String>,
    /// As found; see [`Token::idc_region`].
    pub idc_region: Option<String>,
    /// Client registration of IdC.
    pub client_id: Option<Secret>,
    /// Client registration of IdC.
    pub client_secret: Option<Secret>,
    /// `ksk_…`: bearer as it is, never refreshed.
    pub kiro_api_key: Option<Secret>,
}

impl Token {
    /// Reads a record; an error makes its account unusable (R9).
    pub fn parse(record: &[u8]) -> Result<Self, Unusable> {
        let object = Object::parse(record, RECORD)?;
        let mut token = Self::default();
        for (name, value) in object.members() {
            token.read(&name, value);
        }
        Ok(token)
    }

    /// How this credential is renewed (R8, K51).
    pub fn method(&self) -> Method {
        if self.kiro_api_key.is_some() {
            return Method::ApiKey;
        }
        match self.auth_method.as_deref() {
            Some("social") => Method::Social,
            Some(text) if is_idc(text) => Method::Idc,
            _ if self.client_id.is_some() && self.client_secret.is_some() => Method::Idc,
            _ => Method::Social,
        }
    }

    /// Whether `authMethod` holds a word that is not known, so that [`Token::method`] is a guess worth a warning (K51).
    pub fn has_unknown_method(&self) -> bool {
        let known = |text: &str| text == "social" || is_idc(text);
        self.kiro_api_key.is_none() && self.auth_method.as_deref().is_some_and(|text| !known(text))
    }

    /// Region of the Kiro host and of social refresh; default `us-east-1`.
    pub fn region(&self) -> &str {
        self.region.as_deref().unwrap_or(DEFAULT_REGION)
    }

    /// Region of the OIDC host; default [`Token::region`].
    pub fn idc_region(&self) -> &str {
        self.idc_region.as_deref().unwrap_or_else(|| self.region())
    }

    fn read(&mut self, name: &str, value: Json<'_>) {
        let secret = |value| read::text(value).map(Secret::new);
        match name {
            "accessToken" => self.access_token = secret(value),
            "refreshToken" => self.refresh_token = secret(value),
            "expiresAt" => self.expires_at = read::time(value),
            "authMethod" => self.auth_method = read::text(value),
            "profileArn" => self.profile_arn = read::text(value),
            "region" => self.region = read::text(value),
            "idcRegion" => self.idc_region = read::text(value),
            "clientId" => self.client_id = secret(value),
            "clientSecret" => self.client_secret = secret(value),
            "kiroApiKey" => self.kiro_api_key = secret(value),
            _ => {}
        }
    }
}

/// The region of a token record that names none.
pub const DEFAULT_REGION: &str = "us-east-1";

fn is_idc(auth_method: &str) -> bool {
    ["idc", "builder-id", "iam"].iter().any(|known| auth_method.eq_ignore_ascii_case(known))
}

/// How a credential is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Kiro's own refresh address (K52).
    Social,
    /// The OIDC address with a client registration (K53).
    Idc,
    /// An API key: no refresh, no expiry.
    ApiKey,
}

impl Method {
    /// `social`, `idc` or `api-key`, as tables and logs show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Social => "social",
            Self::Idc => "idc",
            Self::ApiKey => "api-key",
        }
    }
}

/// One field of a patch and the value it shall have. The order of the variants is the order of R26.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `isHealthy`
    IsHealthy(bool),
    /// `isDisabled`
    IsDisabled(bool),
    /// `errorCount`
    ErrorCount(u64),
    /// `lastErrorTime`
    LastErrorTime(Option<Timestamp>),
    /// `lastErrorMessage`; a [`Note`] writes the marks.
    LastErrorMessage(Option<Note>),
    /// `scheduledRecoveryTime`
    ScheduledRecoveryTime(Option<Timestamp>),
    /// `usageCount`
    UsageCount(u64),
    /// `lastUsed`
    LastUsed(Timestamp),
    /// `needsRefresh`
    NeedsRefresh(bool),
    /// `refreshCount`
    RefreshCount(u64),
    /// `lastHealthCheckTime`
    LastHealthCheckTime(Timestamp),
    /// `accessToken`
    AccessToken(Secret),
    /// `refreshToken`
    RefreshToken(Secret),
    /// `expiresAt`, written in the form found: a number stays epoch milliseconds, all else becomes R24.
    ExpiresAt(Timestamp),
    /// `profileArn`
    ProfileArn(String),
}

/// The record with `entries` in it, every other byte as it was (R19). `None` when nothing changes (R20).
///
/// An entry that equals the tolerant reading is dropped, so `"isHealthy":"true"` stays when true is wanted. New fields
/// are appended in the order of R26, whatever the order of `entries`. A record that is unusable, or would be one
/// afterwards, is an error and must not be written (R9).
pub fn patch(record: &[u8], entries: &[Entry]) -> Result<Option<Vec<u8>>, Unusable> {
    let object = Object::parse(record, RECORD)?;
    // Of a doubled entry the last one counts: the sort is stable and `dedup` keeps the first.
    let mut wanted: Vec<&Entry> = entries.iter().rev().collect();
    wanted.sort_by_key(|entry| entry.rank());
    wanted.dedup_by_key(|entry| entry.rank());
    let mut edits = Vec::new();
    for entry in wanted {
        // Null is absent (R10), so an entry sees the same reading for both.
        let found = object.last(entry.name());
        if !entry.equals(found.filter(|value| !value.is_null())) {
            edits.push((entry.name(), entry.render(found)));
        }
    }
    if edits.is_empty() {
        return Ok(None);
    }
    let patched = object.with(edits);
    if patched.len() > RECORD.bytes {
        return Err(Unusable::TooLong { limit: RECORD.bytes });
    }
    Ok(Some(patched))
}

impl Entry {
    /// The name of the field in the record.
    pub fn name(&self) -> &'static str {
        match self {
            Self::IsHealthy(_) => "isHealthy",
            Self::IsDisabled(_) => "isDisabled",
            Self::ErrorCount(_) => "errorCount",
            Self::LastErrorTime(_) => "lastErrorTime",
            Self::LastErrorMessage(_) => "lastErrorMessage",
            Self::ScheduledRecoveryTime(_) => "scheduledRecoveryTime",
            Self::UsageCount(_) => "usageCount",
            Self::LastUsed(_) => "lastUsed",
            Self::NeedsRefresh(_) => "needsRefresh",
            Self::RefreshCount(_) => "refreshCount",
            Self::LastHealthCheckTime(_) => "lastHealthCheckTime",
            Self::AccessToken(_) => "accessToken",
            Self::RefreshToken(_) => "refreshToken",
            Self::ExpiresAt(_) => "expiresAt",
            Self::ProfileArn(_) => "profileArn",
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::IsHealthy(_) => 0,
            Self::IsDisabled(_) => 1,
            Self::ErrorCount(_) => 2,
            Self::LastErrorTime(_) => 3,
            Self::LastErrorMessage(_) => 4,
            Self::ScheduledRecoveryTime(_) => 5,
            Self::UsageCount(_) => 6,
            Self::LastUsed(_) => 7,
            Self::NeedsRefresh(_) => 8,
            Self::RefreshCount(_) => 9,
            Self::LastHealthCheckTime(_) => 10,
            Self::AccessToken(_) => 11,
            Self::RefreshToken(_) => 12,
            Self::ExpiresAt(_) => 13,
            Self::ProfileArn(_) => 14,
        }
    }

    /// Whether the tolerant reading of what was found is already this value (R20).
    fn equals(&self, found: Option<Json<'_>>) -> bool {
        let boolean = |default| found.and_then(read::boolean).unwrap_or(default);
        let count = || found.map_or(0, read::count);
        let time = || found.and_then(read::time);
        let text = || found.and_then(read::text);
        match self {
            Self::IsHealthy(wanted) => boolean(true) == *wanted,
            Self::IsDisabled(wanted) | Self::NeedsRefresh(wanted) => boolean(false) == *wanted,
            Self::ErrorCount(wanted) | Self::UsageCount(wanted) | Self::RefreshCount(wanted) => {
                count() == (*wanted).min(MAX_INTEGER)
            }
            Self::LastErrorTime(wanted) | Self::ScheduledRecoveryTime(wanted) => same_time(time(), *wanted),
            Self::LastUsed(wanted) | Self::LastHealthCheckTime(wanted) | Self::ExpiresAt(wanted) => {
                same_time(time(), Some(*wanted))
            }
            Self::LastErrorMessage(wanted) => text() == wanted.as_ref().map(Note::to_string),
            Self::AccessToken(wanted) | Self::RefreshToken(wanted) => text().as_deref() == Some(wanted.expose()),
            Self::ProfileArn(wanted) => text().as_deref() == Some(wanted),
        }
    }

    fn render(&self, found: Option<Json<'_>>) -> String {
        let time = |time: &Timestamp| quote(&rfc3339(*time));
        match self {
            Self::IsHealthy(wanted) | Self::IsDisabled(wanted) | Self::NeedsRefresh(wanted) => wanted.to_string(),
            Self::ErrorCount(wanted) | Self::UsageCount(wanted) | Self::RefreshCount(wanted) => {
                (*wanted).min(MAX_INTEGER).to_string()
            }
            Self::LastErrorTime(wanted) | Self::ScheduledRecoveryTime(wanted) => {
                wanted.as_ref().map_or_else(|| "null".to_owned(), time)
            }
            Self::LastUsed(wanted) | Self::LastHealthCheckTime(wanted) => time(wanted),
            Self::ExpiresAt(wanted) => match found.and_then(Json::number) {
                Some(_) => wanted.as_millisecond().to_string(),
                None => time(wanted),
            },
            Self::LastErrorMessage(wanted) => {
                wanted.as_ref().map_or_else(|| "null".to_owned(), |note| quote(&note.to_string()))
            }
            Self::AccessToken(wanted) | Self::RefreshToken(wanted) => quote(wanted.expose()),
            Self::ProfileArn(wanted) => quote(wanted),
        }
    }
}

/// A time is written with milliseconds, so a finer one equals what would be written for it.
fn same_time(found: Option<Timestamp>, wanted: Option<Timestamp>) -> bool {
    found == wanted
        || found.is_some() && found == wanted.and_then(|time| Timestamp::from_millisecond(time.as_millisecond()).ok())
}

/// `YYYY-MM-DDTHH:MM:SS.sssZ`, cut to milliseconds (R24).
pub fn rfc3339(time: Timestamp) -> String {
    let millis = Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time);
    format!("{millis:.3}")
}

/// Whether a hash field can be an account's id: 1–128 bytes of printable ASCII (R13).
pub fn is_account_id(field: &[u8]) -> bool {
    (1..=128).contains(&field.len()) && field.iter().all(|byte| (b' '..=b'~').contains(byte))
}

/// SHA-256 of a refresh token, by which tokens are told apart without being shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a refresh token.
    pub fn of(refresh_token: &Secret) -> Self {
        Self(Sha256::digest(refresh_token.expose().as_bytes()).into())
    }

    /// The first 8 hex digits, as ejection messages have them (R41).
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }

    /// The first 32 hex digits, the name in `kiro:refresh-index:{h}` (§2).
    pub fn index(&self) -> String {
        hex(&self.0[..16])
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new account's record (R62): healthy, unused, its token under `token_id`.
pub fn new_account(id: &str, token_id: &str, added_at: Timestamp, custom_name: Option<&str>) -> Vec<u8> {
    let mut record = format!(
        r#"{{"uuid":{},"KIRO_TOKEN_FILE_PATH":{},"checkModel":"kiro","isHealthy":true,"usageCount":0,"errorCount":0,"addedAt":"{}""#,
        quote(id),
        quote(&format!("{TOKEN_PATH}{token_id}")),
        rfc3339(added_at),
    );
    if let Some(name) = custom_name {
        record.push_str(",\"customName\":");
        record.push_str(&quote(name));
    }
    record.push('}');
    record.into_bytes()
}

/// What `KIRO_TOKEN_FILE_PATH` begins with when it names a token key of the shared store.
const TOKEN_PATH: &str = "redis:tokens:claude-kiro-oauth:";

/// The id in `KIRO_TOKEN_FILE_PATH` when that names a token key (R45).
pub fn token_id_of_path(path: &str) -> Option<&str> {
    path.strip_prefix(TOKEN_PATH).filter(|id| is_account_id(id.as_bytes()))
}

/// An address of an account with its region filled in (§3); `None` when it must be ignored.
///
/// It must be https, or http on a loopback host, without user information; a region is letters, digits and `-`.
pub fn endpoint(template: &str, region: &str) -> Option<String> {
    if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return None;
    }
    let url = template.replace("{{region}}", region).replace("{region}", region);
    let loopback = |host: &str| host == "localhost" || host == "[::1]" || is_loopback_v4(host);
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some((_, port)) if !port.ends_with(']') => return None,
        _ => authority,
    };
    let plain = |c: char| c.is_ascii_graphic() && c != '\\';
    let sound = !host.is_empty() && !authority.contains(['@', '{', '}']) && url.chars().all(plain);
    let allowed = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") && loopback(host);
    (sound && allowed).then_some(url)
}

fn is_loopback_v4(host: &str) -> bool {
    host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// The client key in the value of the `config` key (R57): the first of `REQUIRED_API_KEY`, `apiKey` that is a
/// non-empty string; a number counts as its digits. `None` when there is none or the value is not a JSON object.
pub fn client_key(config: &[u8]) -> Option<Secret> {
    let object = Object::parse(config, Limits { bytes: 16 << 20, ..RECORD }).ok()?;
    ["REQUIRED_API_KEY", "apiKey"].iter().find_map(|name| {
        let value = object.last(name)?;
        let text = value.string().map(Into::into).or_else(|| value.number().map(str::to_owned))?;
        (!text.is_empty()).then(|| Secret::new(text))
    })
}

/// Fuzz entry: no input panics, what is patched stays readable, and nothing but the patched value changes.
#[doc(hidden)]
pub fn fuzz_record(data: &[u8]) {
    let account = Account::parse(data, "fuzz");
    let token = Token::parse(data);
    assert_eq!(account.is_ok(), token.is_ok(), "both need the same: an object");
    let Ok(account) = account else {
        assert!(patch(data, &[Entry::UsageCount(1)]).is_err(), "an unusable record is never written");
        return;
    };
    let wanted = account.usage_count.saturating_add(1);
    let entries = [Entry::UsageCount(wanted), Entry::IsHealthy(!account.is_healthy)];
    match patch(data, &entries) {
        Ok(patched) => {
            let patched = patched.unwrap_or_default();
            let again = Account::parse(&patched, "fuzz");
            assert!(again.is_ok_and(|again| {
                again.usage_count == wanted.min(MAX_INTEGER) && again.is_healthy != account.is_healthy
            }));
            assert_eq!(patch(&patched, &entries), Ok(None), "a patch applied twice changes nothing more");
        }
        Err(error) => assert!(matches!(error, Unusable::TooLong { .. }), "{error}"),
    }
    if let Ok(Some(file)) = TokenFile::parse(data) {
        assert!(Token::parse(&file.record(None, None)).is_ok());
    }
    let _key = client_key(data);
}
