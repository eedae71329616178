//! Account and token records as they lie in the store: tolerant read, exact write-back (R7–R13, R19–R27).
//!
//! Another program writes the same records, so a record is never decoded into a struct and encoded again. It is read
//! into an [`Account`] or a [`Token`], which hold only what is understood, and changed by [`patch`], which replaces the
//! bytes of single values and leaves every other byte unchanged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::secret::Secret;

pub mod client_key;
pub mod import;
mod note;
mod read;
mod standing;
mod token_file;

pub use super::json::object::{Json, Limits, Object, RECORD, Unusable, quote};
pub use note::Note;
use read::MAX_INTEGER;
pub use read::{rfc3339, time};
pub use standing::Standing;
pub use token_file::{RefusedHash, Registration, TokenFile, id_of_path};

/// The tolerant reading of an account record (R70). Absent fields have their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The hash field; a `uuid` inside the record is ignored.
    pub id: String,
    /// `isHealthy`, `isDisabled`, `needsRefresh` and the last failure.
    pub standing: Standing,
    /// Successful requests; 0 to 10^14 − 1.
    pub usage_count: u64,
    /// When the account was last used.
    pub last_used: Option<Timestamp>,
    /// Failed refreshes, as another program counts them.
    pub refresh_count: u64,
    /// When the last refresh or check ended well.
    pub last_health_check_time: Option<Timestamp>,
    /// Names of models that this account can't serve (R7).
    pub not_supported_models: Vec<String>,
    /// Where the token record lies, as found: `redis:tokens:claude-kiro-oauth:{uuid}` (R45).
    pub token_file_path: Option<String>,
    /// Kiro's address for this account, with `{{region}}` or `{region}` in it; see
    /// [`endpoint`](crate::proto::address::endpoint).
    pub base_url: Option<String>,
    /// Address of social refresh, likewise.
    pub refresh_url: Option<String>,
    /// Address of IdC refresh, likewise.
    pub refresh_idc_url: Option<String>,
    /// This account's proxy; its URL may hold a password.
    pub proxy_url: Option<Secret>,
    /// Left by a predecessor: used only when the token record has none.
    pub region: Option<String>,
    /// Left by a predecessor: used only when the token record has none.
    pub profile_arn: Option<String>,
    /// For display only; may be empty.
    pub custom_name: Option<String>,
    /// Whether the record names a credential store of another program (`KIRO_OAUTH_CREDS_*`), which is not read.
    pub has_foreign_credentials: bool,
    /// 64 lower-case hex digits in place of K16's (R70): an imported account keeps the one it had.
    pub machine_id: Option<String>,
    /// Accounts with the lowest number are taken first; absent is 0, a fraction is cut off.
    pub priority: i64,
    /// Requests that may run at once on it (N86); 0: no limit.
    pub concurrency_limit: u32,
    /// Requests that may wait for it beyond that (N86).
    pub queue_limit: u32,
    /// Fields that were found and count as absent, by name (R70).
    pub ignored: Vec<&'static str>,
}

impl Account {
    /// Reads a record. An error makes this one account unusable: left out and never written (R9).
    pub fn parse(record: &[u8], id: &str) -> Result<Self, Unusable> {
        let object = Object::parse(record, RECORD)?;
        let mut account = Self { id: id.to_owned(), ..Self::default() };
        // In the order of the text: of a doubled name the last one counts (R10).
        for (name, value) in object.members() {
            account.read(&name, value);
        }
        Ok(account)
    }

    /// Whether none of `names`, the client's name of a model and the known name behind it, is excluded (R7).
    pub fn supports(&self, names: &[&str]) -> bool {
        !self.not_supported_models.iter().any(|excluded| names.contains(&excluded.as_str()))
    }

    fn read(&mut self, name: &str, value: Json<'_>) {
        match name {
            "isHealthy" => self.standing.healthy = read::boolean(value).unwrap_or(true),
            "isDisabled" => self.standing.disabled = read::boolean(value).unwrap_or(false),
            "usageCount" => self.usage_count = read::count(value),
            "errorCount" => self.standing.error_count = read::count(value),
            "lastUsed" => self.last_used = read::time(value),
            "lastErrorTime" => self.standing.last_error = read::time(value),
            "lastErrorMessage" => self.standing.note = read::text(value).as_deref().map(Note::parse),
            "scheduledRecoveryTime" => self.standing.recovery = read::time(value),
            "needsRefresh" => self.standing.stale = read::boolean(value).unwrap_or(false),
            "refreshCount" => self.refresh_count = read::count(value),
            "lastHealthCheckTime" => self.last_health_check_time = read::time(value),
            "notSupportedModels" => self.not_supported_models = read::names(value),
            "KIRO_TOKEN_FILE_PATH" => self.token_file_path = read::text(value),
            "KIRO_BASE_URL" => self.base_url = read::text(value),
            "KIRO_REFRESH_URL" => self.refresh_url = read::text(value),
            "KIRO_REFRESH_IDC_URL" => self.refresh_idc_url = read::text(value),
            "PROXY_URL" => self.proxy_url = read::text(value).map(Secret::new),
            "region" => self.region = read::text(value),
            "profileArn" => self.profile_arn = read::text(value),
            "customName" => self.custom_name = value.string().map(Into::into),
            "machineId" => {
                let found = read::text(value);
                let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                self.machine_id = found.clone().filter(|id| id.len() == 64 && id.bytes().all(digit));
                ignore(&mut self.ignored, "machineId", found.is_some() && self.machine_id.is_none());
            }
            "priority" => self.priority = read::integer(value),
            "concurrencyLimit" => self.concurrency_limit = u32::try_from(read::count(value)).unwrap_or(u32::MAX),
            "queueLimit" => self.queue_limit = u32::try_from(read::count(value)).unwrap_or(u32::MAX),
            _ if name.starts_with("KIRO_OAUTH_CREDS_") => {
                self.has_foreign_credentials |= read::text(value).is_some();
            }
            _ => {}
        }
    }
}

/// A doubled name is read again: only its last value says whether the field is ignored.
fn ignore(ignored: &mut Vec<&'static str>, name: &'static str, is_ignored: bool) {
    ignored.retain(|known| *known != name);
    if is_ignored {
        ignored.push(name);
    }
}

/// The tolerant reading of a token record (R70). `None` is absent, which an empty string is too.
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
    /// Where an external provider refreshes its tokens. Nothing is ever sent there unchecked (K84).
    pub token_endpoint: Option<String>,
    /// The external provider.
    pub issuer_url: Option<String>,
    /// Scopes of an external login, joined by a space.
    pub scopes: Option<String>,
    /// Where an IdC user signed in: it tells a Builder ID from an organisation (K73).
    pub start_url: Option<String>,
    /// `Google`, `Github`, `BuilderId`, `Enterprise`, `ExternalIdp`, in any case.
    pub provider: Option<String>,
    /// When the client registration of IdC ends.
    pub registration_expires_at: Option<Timestamp>,
    /// Region of the Kiro host, as found; counts only when it is one in which Kiro answers (K74).
    pub api_region: Option<String>,
    /// Fields that were found and count as absent, by name: too long, or not printable ASCII (R77).
    pub ignored: Vec<&'static str>,
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

    /// The fields that a refresh brings: tokens, end and profile, those that are present.
    pub fn granted(&self) -> impl Iterator<Item = Entry> {
        [
            self.access_token.clone().map(Entry::AccessToken),
            self.refresh_token.clone().map(Entry::RefreshToken),
            self.expires_at.map(Entry::ExpiresAt),
            self.profile_arn.clone().map(Entry::ProfileArn),
        ]
        .into_iter()
        .flatten()
    }

    /// How this credential is renewed (R71).
    pub fn method(&self) -> Method {
        if self.kiro_api_key.is_some() {
            return Method::ApiKey;
        }
        let has = |field: &Option<Secret>| field.is_some();
        self.auth_method.as_deref().and_then(method_of).unwrap_or_else(|| {
            if has(&self.client_id) && has(&self.client_secret) {
                Method::Idc
            } else if has(&self.client_id) && self.token_endpoint.is_some() {
                Method::External
            } else {
                Method::Social
            }
        })
    }

    /// Whether `authMethod` holds an unknown word, so that [`Token::method`] is a guess worth a warning (K51).
    pub fn has_unknown_method(&self) -> bool {
        self.kiro_api_key.is_none() && self.auth_method.as_deref().is_some_and(|text| method_of(text).is_none())
    }

    /// Whether the record has what its method needs for a refresh (R74).
    pub fn can_refresh(&self) -> bool {
        self.refresh_token.is_some()
            && match self.method() {
                Method::Social => true,
                Method::Idc => self.client_id.is_some() && self.client_secret.is_some(),
                Method::External => self.client_id.is_some() && self.token_endpoint.is_some(),
                Method::ApiKey => false,
            }
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
            "tokenEndpoint" => self.token_endpoint = self.bounded("tokenEndpoint", read::text(value), MAX_URL),
            "issuerUrl" => self.issuer_url = self.bounded("issuerUrl", read::text(value), MAX_URL),
            "startUrl" => self.start_url = self.bounded("startUrl", read::text(value), MAX_URL),
            "scopes" => self.scopes = self.bounded("scopes", read::words(value), MAX_SCOPES),
            "provider" => self.provider = read::text(value),
            "registrationExpiresAt" => self.registration_expires_at = read::time(value),
            "apiRegion" => self.api_region = read::text(value),
            _ => {}
        }
    }

    /// A text that is not too long and printable; else the field counts as absent (R77).
    fn bounded(&mut self, name: &'static str, found: Option<String>, limit: usize) -> Option<String> {
        let is_sound = |text: &String| text.len() <= limit && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let sound = found.clone().filter(is_sound);
        ignore(&mut self.ignored, name, found.is_some() && sound.is_none());
        sound
    }
}

/// Names a token record and its lock: the id in `tokens:claude-kiro-oauth:{id}`.
///
/// Mostly the account's own id; another one after the Node.js service gave the account a new id (R45).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenKey(Arc<str>);

impl TokenKey {
    /// The key of an account's own id.
    pub fn of(account_id: &str) -> Self {
        Self(account_id.into())
    }

    /// The id in the key.
    pub fn id(&self) -> &str {
        &self.0
    }
}

/// A record's length for `Debug`, without its content (R6).
pub struct ByteCount<'a>(pub &'a [u8]);

impl fmt::Debug for ByteCount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Longest URL of a token record, longest list of scopes (R77).
const MAX_URL: usize = 2048;
const MAX_SCOPES: usize = 4096;

/// The region of a token record that names none.
pub const DEFAULT_REGION: &str = "us-east-1";

/// What a word of `authMethod` means, in any case and with `-` for `_` (R71); none: not known.
fn method_of(auth_method: &str) -> Option<Method> {
    match auth_method.trim().to_ascii_lowercase().replace('-', "_").as_str() {
        "social" => Some(Method::Social),
        "idc" | "builder_id" | "iam" => Some(Method::Idc),
        "external_idp" | "external" | "azuread" | "azure" | "entra" | "entra_id" | "microsoft" | "m365"
        | "office365" | "okta" => Some(Method::External),
        "api_key" | "apikey" => Some(Method::ApiKey),
        _ => None,
    }
}

/// How a credential is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Kiro's own refresh address (K52).
    Social,
    /// The OIDC address with a client registration (K53).
    Idc,
    /// An organisation's own identity provider, such as Entra ID or Okta (K82).
    External,
    /// An API key: no refresh, no expiry.
    ApiKey,
}

impl Method {
    /// `social`, `idc`, `external` or `api-key`, as tables and logs show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Social => "social",
            Self::Idc => "idc",
            Self::External => "external",
            Self::ApiKey => "api-key",
        }
    }
}

/// One field of a patch and its new value. The order of the variants is the order of R26.
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
    /// `region`
    Region(String),
    /// `idcRegion`
    IdcRegion(String),
}

/// The record with `entries` in it, every other byte unchanged (R19). `None` when nothing changes (R20).
///
/// An entry that equals the tolerant reading is dropped, so `"isHealthy":"true"` stays when true is wanted. New fields
/// are appended in the order of R26, whatever the order of `entries`. A record that is unusable, or would be one
/// afterwards, is an error and must not be written (R9).
pub fn patch(record: &[u8], entries: &[Entry]) -> Result<Option<Vec<u8>>, Unusable> {
    let object = Object::parse(record, RECORD)?;
    // In the order of R26; of a doubled entry the last one counts.
    let wanted: BTreeMap<u8, _> = entries.iter().map(Entry::row).map(|(at, name, value)| (at, (name, value))).collect();
    edit(&object, wanted.into_values())
}

/// The object with these values in it; `None` when it has them already.
fn edit<'a>(
    object: &Object<'_>,
    wanted: impl Iterator<Item = (&'static str, Wanted<'a>)>,
) -> Result<Option<Vec<u8>>, Unusable> {
    let mut edits = Vec::new();
    for (name, wanted) in wanted {
        // Null is absent (R10), so a value sees the same reading for both.
        let found = object.last(name);
        if !wanted.equals(found.filter(|value| !value.is_null())) {
            edits.push((name, wanted.render(found)));
        }
    }
    if edits.is_empty() {
        return Ok(None);
    }
    let text = object.with(edits);
    if text.len() > RECORD.bytes {
        return Err(Unusable::TooLong { limit: RECORD.bytes });
    }
    Ok(Some(text))
}

impl Entry {
    /// What lifts a mark (cool-down, quota, ejection), as the Node.js service's UI does (R15).
    pub const NO_MARK: [Self; 5] = [
        Self::IsHealthy(true),
        Self::ErrorCount(0),
        Self::LastErrorTime(None),
        Self::LastErrorMessage(None),
        Self::ScheduledRecoveryTime(None),
    ];

    /// The name of the field in the record.
    pub fn name(&self) -> &'static str {
        self.row().1
    }

    /// Its place in the order of writing, the name of its field, and the value.
    fn row(&self) -> (u8, &'static str, Wanted<'_>) {
        match self {
            Self::IsHealthy(wanted) => (0, "isHealthy", Wanted::Boolean(*wanted, true)),
            Self::IsDisabled(wanted) => (1, "isDisabled", Wanted::Boolean(*wanted, false)),
            Self::ErrorCount(wanted) => (2, "errorCount", Wanted::Count(*wanted)),
            Self::LastErrorTime(wanted) => (3, "lastErrorTime", Wanted::Time(*wanted)),
            Self::LastErrorMessage(wanted) => {
                (4, "lastErrorMessage", Wanted::Text(wanted.as_ref().map(|note| note.to_string().into())))
            }
            Self::ScheduledRecoveryTime(wanted) => (5, "scheduledRecoveryTime", Wanted::Time(*wanted)),
            Self::UsageCount(wanted) => (6, "usageCount", Wanted::Count(*wanted)),
            Self::LastUsed(wanted) => (7, "lastUsed", Wanted::Time(Some(*wanted))),
            Self::NeedsRefresh(wanted) => (8, "needsRefresh", Wanted::Boolean(*wanted, false)),
            Self::RefreshCount(wanted) => (9, "refreshCount", Wanted::Count(*wanted)),
            Self::LastHealthCheckTime(wanted) => (10, "lastHealthCheckTime", Wanted::Time(Some(*wanted))),
            Self::AccessToken(wanted) => (11, "accessToken", Wanted::Text(Some(wanted.expose().into()))),
            Self::RefreshToken(wanted) => (12, "refreshToken", Wanted::Text(Some(wanted.expose().into()))),
            Self::ExpiresAt(wanted) => (13, "expiresAt", Wanted::Expiry(*wanted)),
            Self::ProfileArn(wanted) => (14, "profileArn", Wanted::Text(Some(wanted.into()))),
            Self::Region(wanted) => (15, "region", Wanted::Text(Some(wanted.into()))),
            Self::IdcRegion(wanted) => (16, "idcRegion", Wanted::Text(Some(wanted.into()))),
        }
    }
}

/// The value that an entry gives its field. None: null.
enum Wanted<'a> {
    /// And what absence means.
    Boolean(bool, bool),
    Count(u64),
    Time(Option<Timestamp>),
    /// Milliseconds where the record has a number.
    Expiry(Timestamp),
    Text(Option<Cow<'a, str>>),
}

impl Wanted<'_> {
    /// Whether the tolerant reading of the found value already equals this one (R20).
    fn equals(&self, found: Option<Json<'_>>) -> bool {
        let is_time = |wanted| same_time(found.and_then(read::time), wanted);
        match self {
            Self::Boolean(wanted, absent) => found.and_then(read::boolean).unwrap_or(*absent) == *wanted,
            Self::Count(wanted) => found.map_or(0, read::count) == (*wanted).min(MAX_INTEGER),
            Self::Time(wanted) => is_time(*wanted),
            Self::Expiry(wanted) => is_time(Some(*wanted)),
            Self::Text(wanted) => found.and_then(read::text).as_deref() == wanted.as_deref(),
        }
    }

    fn render(&self, found: Option<Json<'_>>) -> String {
        match self {
            Self::Boolean(wanted, _) => wanted.to_string(),
            Self::Count(wanted) => (*wanted).min(MAX_INTEGER).to_string(),
            Self::Expiry(wanted) if found.and_then(Json::number).is_some() => wanted.as_millisecond().to_string(),
            Self::Time(Some(wanted)) | Self::Expiry(wanted) => quote(&rfc3339(*wanted)),
            Self::Text(Some(wanted)) => quote(wanted),
            Self::Time(None) | Self::Text(None) => "null".to_owned(),
        }
    }
}

/// Times are written with milliseconds, so two times are the same when their milliseconds are.
fn same_time(found: Option<Timestamp>, wanted: Option<Timestamp>) -> bool {
    found == wanted
        || found.is_some() && found == wanted.and_then(|time| Timestamp::from_millisecond(time.as_millisecond()).ok())
}

/// Whether a hash field can be an account's id: 1–128 bytes of printable ASCII (R13).
pub fn is_account_id(field: &[u8]) -> bool {
    (1..=128).contains(&field.len()) && field.iter().all(|byte| (b' '..=b'~').contains(byte))
}

/// The first 8 characters of an account's id: all of it that leaves the store (R6).
pub fn short(id: &str) -> &str {
    id.char_indices().nth(8).map_or(id, |(end, _)| id.get(..end).unwrap_or(id))
}

/// SHA-256 of a refresh token: tells tokens apart without showing them.
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

    /// All 64 hex digits.
    pub fn whole(&self) -> String {
        hex(&self.0)
    }

    /// From 64 hex digits.
    pub fn parse(digits: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if digits.len() != 64 || !digits.is_ascii() {
            return None;
        }
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(2 * place..2 * place + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The first 32 hex digits, the name in `kiro:refresh-index:{h}` (R62).
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
    let digit = |half: u8| char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// A new account's record (R62): healthy, unused, its token under `token_id`, with `more` members of an import (R78), their
/// values raw JSON.
pub fn new_account(
    id: &str,
    token_id: &str,
    added_at: Timestamp,
    custom_name: Option<&str>,
    more: &[(&str, String)],
) -> Vec<u8> {
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
    for (name, value) in more {
        record.push_str(&format!(",{}:{value}", quote(name)));
    }
    record.push('}');
    record.into_bytes()
}

/// The beginning of a `KIRO_TOKEN_FILE_PATH` that names a token key of the shared store.
const TOKEN_PATH: &str = "redis:tokens:claude-kiro-oauth:";

/// The id in `KIRO_TOKEN_FILE_PATH` when that names a token key (R45).
pub fn token_id_of_path(path: &str) -> Option<&str> {
    path.strip_prefix(TOKEN_PATH).filter(|id| is_account_id(id.as_bytes()))
}

/// Whether it is a region's name: `^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$` (K11).
pub fn is_region(text: &str) -> bool {
    let mut parts = text.split('-');
    let lower = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let head = parts.next().is_some_and(|part| part.len() == 2 && lower(part));
    let number =
        parts.next_back().is_some_and(|part| (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()));
    let mut middle = parts.peekable();
    head && number && middle.peek().is_some() && middle.all(lower)
}

/// The client key in the value of the `config` key (R57): the first of `REQUIRED_API_KEY`, `apiKey` that is a
/// non-empty string; a number counts as its digits. `None` without one, or when the value is not a JSON object.
pub fn client_key(config: &[u8]) -> Option<Secret> {
    let object = Object::parse(config, Limits { bytes: 16 << 20, ..RECORD }).ok()?;
    ["REQUIRED_API_KEY", "apiKey"].iter().find_map(|name| {
        let value = object.last(name)?;
        let text = value.string().map(Into::into).or_else(|| value.number().map(str::to_owned))?;
        (!text.is_empty()).then(|| Secret::new(text))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn t0() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The record after `count` successes that needed no healing (R29).
    fn after_successes(record: &str, count: u64) -> String {
        let account = Account::parse(record.as_bytes(), "a1").unwrap();
        let entries = [Entry::LastUsed(t0()), Entry::UsageCount(account.usage_count + count)];
        String::from_utf8(patch(record.as_bytes(), &entries).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn unknown_fields_and_big_numbers_stay_case_01() {
        assert_eq!(
            after_successes(
                r#"{"uuid":"a1","notSupportedModels":[],"big":12345678901234567890,"usageCount":5,"note":"x\/y","z":{"keep":[1,2.5,[]]}}"#,
                3
            ),
            r#"{"uuid":"a1","notSupportedModels":[],"big":12345678901234567890,"usageCount":8,"note":"x\/y","z":{"keep":[1,2.5,[]]},"lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn strings_are_read_as_values_and_spaces_stay_case_02_r20() {
        assert_eq!(
            after_successes(r#"{ "usageCount" : "5" , "isHealthy" : "true" }"#, 1),
            r#"{ "usageCount" : 6 , "isHealthy" : "true","lastUsed":"2026-11-23T10:00:00.000Z" }"#
        );
        let record = br#"{ "usageCount" : "5" , "isHealthy" : "true" }"#;
        assert_eq!(patch(record, &[Entry::IsHealthy(true), Entry::UsageCount(5)]), Ok(None), "R20");
    }

    #[test]
    fn of_a_doubled_key_the_last_counts_case_03() {
        assert_eq!(
            after_successes(r#"{"usageCount":1,"usageCount":7}"#, 1),
            r#"{"usageCount":1,"usageCount":8,"lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn names_are_compared_unescaped_case_04() {
        assert_eq!(
            after_successes(r#"{"usage\u0043ount":1}"#, 1),
            r#"{"usage\u0043ount":2,"lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn an_empty_record_is_a_healthy_account_case_05() {
        assert!(Account::parse(b"{}", "a1").unwrap().standing.healthy);
        assert_eq!(after_successes("{}", 1), r#"{"usageCount":1,"lastUsed":"2026-11-23T10:00:00.000Z"}"#);
    }

    #[test]
    fn a_record_changed_by_another_programs_json_serves_every_model_case_06() {
        let record = r#"{"big":1.2345678901235e+19,"notSupportedModels":{},"usageCount":6,"note":"x/y","uuid":"a1"}"#;
        assert!(Account::parse(record.as_bytes(), "a1").unwrap().supports(&["claude-sonnet-4-5"]));
        assert_eq!(
            after_successes(record, 1),
            r#"{"big":1.2345678901235e+19,"notSupportedModels":{},"usageCount":7,"note":"x/y","uuid":"a1","lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn a_broken_record_is_never_written_case_07() {
        for record in ["[]", "null", "not json", ""] {
            assert!(Account::parse(record.as_bytes(), "a1").is_err(), "{record}");
            assert!(Token::parse(record.as_bytes()).is_err(), "{record}");
            assert!(patch(record.as_bytes(), &[Entry::UsageCount(1)]).is_err(), "{record}");
        }
        let two_mebibytes = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
        assert!(matches!(patch(two_mebibytes.as_bytes(), &[Entry::UsageCount(1)]), Err(Unusable::TooLong { .. })));
        let full = format!("{{\"a\":\"{}\"}}", "x".repeat((1 << 20) - 8));
        assert!(Account::parse(full.as_bytes(), "a1").is_ok());
        assert!(patch(full.as_bytes(), &[Entry::UsageCount(1)]).is_err(), "a write must not make it unusable");
    }

    #[test]
    fn healing_resets_the_fields_of_a_failure_case_13() {
        let record = r#"{"uuid":"a1","isHealthy":false,"errorCount":3,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:01:00.000Z: 429 rate limited","scheduledRecoveryTime":null,"usageCount":41}"#;
        let entries = [
            Entry::UsageCount(42),
            Entry::LastUsed(t0()),
            Entry::ScheduledRecoveryTime(None),
            Entry::LastErrorMessage(None),
            Entry::LastErrorTime(None),
            Entry::ErrorCount(0),
            Entry::IsHealthy(true),
        ];
        assert_eq!(
            String::from_utf8(patch(record.as_bytes(), &entries).unwrap().unwrap()).unwrap(),
            r#"{"uuid":"a1","isHealthy":true,"errorCount":0,"lastErrorTime":null,"lastErrorMessage":null,"scheduledRecoveryTime":null,"usageCount":42,"lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn a_quota_mark_appends_in_the_fixed_order_case_15_r26() {
        let record = br#"{"uuid":"a1","isHealthy":true,"errorCount":0}"#;
        let until = time("2026-12-01T00:00:00Z");
        let entries = [
            Entry::LastUsed(t0()),
            Entry::ScheduledRecoveryTime(Some(until)),
            Entry::LastErrorMessage(Some(Note::Quota { until, cause: "MONTHLY_REQUEST_COUNT".into() })),
            Entry::IsHealthy(false),
            Entry::LastErrorTime(Some(t0())),
            Entry::ErrorCount(1),
        ];
        assert_eq!(
            String::from_utf8(patch(record, &entries).unwrap().unwrap()).unwrap(),
            r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z","lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn last_error_time_is_read_in_every_spelling_case_19() {
        let read = |value: &str| {
            Account::parse(format!(r#"{{"lastErrorTime":{value}}}"#).as_bytes(), "a1").unwrap().standing.last_error
        };
        assert_eq!(read("\"2026-11-23T18:00:00+08:00\""), Some(t0()));
        assert_eq!(read("1795428000000"), Some(t0()));
        assert_eq!(read("\"1795428000000\""), Some(t0()));
        assert_eq!(read("\"\""), None);
    }

    #[test]
    fn a_numeric_expiry_stays_a_number_case_22() {
        let record = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":1767225600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","startUrl":"https://x.awsapps.com/start","n":[]}"#;
        assert_eq!(Token::parse(record.as_bytes()).unwrap().method(), Method::Idc);
        let entries = [
            Entry::AccessToken("new".to_owned().into()),
            Entry::RefreshToken("refresh-2".to_owned().into()),
            Entry::ExpiresAt(time("2026-11-23T11:00:00Z")),
        ];
        assert_eq!(
            String::from_utf8(patch(record.as_bytes(), &entries).unwrap().unwrap()).unwrap(),
            r#"{"accessToken":"new","refreshToken":"refresh-2","expiresAt":1795431600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","startUrl":"https://x.awsapps.com/start","n":[]}"#
        );
    }

    #[test]
    fn expiry_as_text_gets_milliseconds_and_an_empty_profile_a_value_case_23() {
        let record = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T10:00:00Z","authMethod":"social","profileArn":""}"#;
        let token = Token::parse(record.as_bytes()).unwrap();
        assert_eq!((token.method(), token.profile_arn, token.expires_at), (Method::Social, None, Some(t0())));
        let entries = [
            Entry::AccessToken("new".to_owned().into()),
            Entry::RefreshToken("refresh-1".to_owned().into()),
            Entry::ExpiresAt(time("2026-11-23T11:00:00Z")),
            Entry::ProfileArn("arn:x".into()),
        ];
        assert_eq!(
            String::from_utf8(patch(record.as_bytes(), &entries).unwrap().unwrap()).unwrap(),
            r#"{"accessToken":"new","refreshToken":"refresh-1","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social","profileArn":"arn:x"}"#
        );
    }

    #[test]
    fn a_missing_refresh_token_is_appended_case_32() {
        let entries = [Entry::RefreshToken("refresh-1".to_owned().into())];
        assert_eq!(
            patch(br#"{"accessToken":"a","n":1}"#, &entries),
            Ok(Some(br#"{"accessToken":"a","n":1,"refreshToken":"refresh-1"}"#.to_vec()))
        );
    }

    #[test]
    fn the_method_follows_its_word_then_the_fields_present_r8_r71() {
        let method = |text: &str| Token::parse(text.as_bytes()).unwrap().method();
        let registered = r#""clientId":"c","clientSecret":"s""#;
        for word in ["idc", "IdC", "builder-id", "Builder-ID", "IAM"] {
            assert_eq!(method(&format!(r#"{{"authMethod":"{word}"}}"#)), Method::Idc, "{word}");
        }
        assert_eq!(method(&format!(r#"{{"authMethod":"social",{registered}}}"#)), Method::Social);
        assert_eq!(method(&format!(r#"{{"authMethod":"Social",{registered}}}"#)), Method::Social);
        assert_eq!(method(r#"{"authMethod":"other","clientId":"c","clientSecret":""}"#), Method::Social);
        assert_eq!(method("{}"), Method::Social);
        assert_eq!(method(&format!("{{{registered}}}")), Method::Idc);
        assert_eq!(method(r#"{"authMethod":"idc","kiroApiKey":"ksk_1"}"#), Method::ApiKey);
        assert!(Token::parse(br#"{"authMethod":"saml"}"#).unwrap().has_unknown_method());
        assert!(!Token::parse(br#"{"authMethod":"IDC"}"#).unwrap().has_unknown_method());
    }

    #[test]
    fn regions_default_one_to_another() {
        let token = |text: &str| Token::parse(text.as_bytes()).unwrap();
        assert_eq!((token("{}").region(), token("{}").idc_region()), ("us-east-1", "us-east-1"));
        let both = token(r#"{"region":"us-east-1","idcRegion":"eu-west-1"}"#);
        assert_eq!((both.region(), both.idc_region()), ("us-east-1", "eu-west-1"));
        assert_eq!(token(r#"{"region":"eu-west-1","idcRegion":""}"#).idc_region(), "eu-west-1");
    }

    #[test]
    fn null_and_empty_are_absent_and_null_is_not_written_twice_r10() {
        let token = Token::parse(br#"{"accessToken":null,"refreshToken":"","clientId":"c","clientId":null}"#).unwrap();
        assert_eq!(token, Token::default());
        let record = br#"{"lastErrorTime":null,"isHealthy":null,"errorCount":null}"#;
        assert_eq!(
            patch(record, &[Entry::LastErrorTime(None), Entry::IsHealthy(true), Entry::ErrorCount(0)]),
            Ok(None)
        );
        assert_eq!(
            patch(record, &[Entry::ErrorCount(1)]).unwrap().unwrap(),
            br#"{"lastErrorTime":null,"isHealthy":null,"errorCount":1}"#
        );
    }

    #[test]
    fn every_word_of_auth_method_is_read_and_a_missing_one_is_guessed_r71_p41() {
        let method = |record: &str| Token::parse(record.as_bytes()).unwrap().method();
        let words = [
            (Method::Social, &["social", "Social"][..]),
            (Method::Idc, &["idc", "IdC", "builder-id", "BUILDER_ID", "iam"]),
            (
                Method::External,
                &[
                    "external_idp",
                    "External-IdP",
                    "external",
                    "AzureAD",
                    "azure",
                    "entra",
                    "entra-id",
                    "Entra_ID",
                    "microsoft",
                    "m365",
                    "office365",
                    "okta",
                ],
            ),
            (Method::ApiKey, &["api_key", "API-KEY", "apikey"]),
        ];
        for (expected, words) in words {
            for word in words {
                assert_eq!(method(&format!(r#"{{"authMethod":"{word}"}}"#)), expected, "{word}");
            }
        }
        assert_eq!(method(r#"{"tokenEndpoint":"https://x/t","clientId":"c"}"#), Method::External);
        assert_eq!(method(r#"{"tokenEndpoint":"https://x/t","clientId":"c","clientSecret":"s"}"#), Method::Idc);
        let idc = r#"{"authMethod":"IdC","tokenEndpoint":"https://x/t","clientId":"c","clientSecret":"s"}"#;
        assert_eq!(method(idc), Method::Idc, "AWS's registration answers a tokenEndpoint too");
        assert_eq!(method(r#"{"authMethod":"saml","clientId":"c"}"#), Method::Social);
        assert!(Token::parse(br#"{"authMethod":"saml"}"#).unwrap().has_unknown_method());
        assert!(!Token::parse(br#"{"authMethod":"okta"}"#).unwrap().has_unknown_method());
        assert_eq!(method(r#"{"authMethod":"okta","kiroApiKey":"ksk_1"}"#), Method::ApiKey);
    }

    #[test]
    fn further_fields_are_read_up_to_their_lengths_r70_r77() {
        let url = |length: usize| format!("https://x/{}", "a".repeat(length - 10));
        let record = format!(
            r#"{{"tokenEndpoint":"{}","issuerUrl":"{}","startUrl":"https://\u00e9","scopes":["a","b"],"provider":"Enterprise",
               "registrationExpiresAt":1795428000,"apiRegion":"eu-central-1"}}"#,
            url(2048),
            url(2049)
        );
        let token = Token::parse(record.as_bytes()).unwrap();
        assert_eq!(token.token_endpoint.as_deref().map(str::len), Some(2048));
        assert_eq!((token.issuer_url.as_deref(), token.start_url.as_deref()), (None, None));
        assert_eq!(token.ignored, ["issuerUrl", "startUrl"]);
        assert_eq!((token.scopes.as_deref(), token.provider.as_deref()), (Some("a b"), Some("Enterprise")));
        assert_eq!((token.registration_expires_at, token.api_region.as_deref()), (Some(t0()), Some("eu-central-1")));
        let long = format!(r#"{{"scopes":"{}","startUrl":"","startUrl":"https://x"}}"#, "a".repeat(4097));
        let token = Token::parse(long.as_bytes()).unwrap();
        assert_eq!((token.scopes.as_deref(), token.start_url.as_deref()), (None, Some("https://x")));
        assert_eq!(token.ignored, ["scopes"]);

        let id = "0123456789abcdef".repeat(4);
        let account = |text: &str| Account::parse(text.as_bytes(), "a1").unwrap();
        let found = account(&format!(r#"{{"machineId":"{id}","priority":"7.9"}}"#));
        assert_eq!((found.machine_id, found.priority, found.ignored.len()), (Some(id.clone()), 7, 0));
        for bad in [id.to_uppercase(), id[1..].to_owned(), format!("{id}0")] {
            let found = account(&format!(r#"{{"machineId":"{bad}","priority":-2}}"#));
            assert_eq!((found.machine_id, found.priority), (None, -2));
            assert_eq!(found.ignored, ["machineId"]);
        }
        assert_eq!(account(r#"{"priority":[]}"#).priority, 0);
    }

    #[test]
    fn a_refresh_needs_the_fields_of_its_method_r74() {
        let can = |record: &str| Token::parse(record.as_bytes()).unwrap().can_refresh();
        assert!(can(r#"{"authMethod":"social","refreshToken":"r"}"#));
        assert!(can(r#"{"authMethod":"idc","refreshToken":"r","clientId":"c","clientSecret":"s"}"#));
        assert!(!can(r#"{"authMethod":"idc","refreshToken":"r","clientId":"c"}"#));
        assert!(can(r#"{"authMethod":"okta","refreshToken":"r","clientId":"c","tokenEndpoint":"https://x/t"}"#));
        assert!(!can(r#"{"authMethod":"okta","refreshToken":"r","clientId":"c"}"#));
        assert!(!can(r#"{"kiroApiKey":"k","refreshToken":"r"}"#) && !can("{}"));
    }

    #[test]
    fn an_external_file_keeps_its_method_and_its_addresses_r81() {
        let text = r#"{"accessToken":"a","refreshToken":"r","clientIdHash":"0a1b","client_id":"c","tokenEndpoint":"https://x/t","scopes":["s","t"],"issuerUrl":"https://x"}"#;
        let file = token_file(text);
        assert_eq!(file.registration_file(), Ok(None), "no registration of AWS");
        let token = Token::parse(&file.record(None, None)).unwrap();
        assert_eq!((token.method(), token.token_endpoint.as_deref()), (Method::External, Some("https://x/t")));
        assert_eq!((token.scopes.as_deref(), token.issuer_url.as_deref()), (Some("s t"), Some("https://x")));
        let named = token_file(r#"{"accessToken":"a","authMethod":"azure","region":"eu-west-1"}"#);
        let token = Token::parse(&named.record(None, None)).unwrap();
        assert_eq!((token.method(), token.region()), (Method::External, "eu-west-1"));
    }

    #[test]
    fn a_note_counts_only_while_unhealthy_r15() {
        let read = |healthy: bool| {
            let text = format!(r#"{{"isHealthy":{healthy},"lastErrorMessage":"ejected: suspended"}}"#);
            Account::parse(text.as_bytes(), "a1").unwrap().standing.mark().cloned()
        };
        assert_eq!(read(true), None);
        assert_eq!(read(false), Some(Note::Ejected { cause: "suspended".into() }));
    }

    #[test]
    fn times_have_milliseconds_and_integers_14_digits_r24_r25() {
        assert_eq!(rfc3339(t0()), "2026-11-23T10:00:00.000Z");
        assert_eq!(rfc3339(time("2026-11-23T10:00:00.9999Z")), "2026-11-23T10:00:00.999Z");
        assert_eq!(patch(b"{}", &[Entry::UsageCount(u64::MAX)]).unwrap().unwrap(), br#"{"usageCount":99999999999999}"#);
        assert_eq!(patch(br#"{"usageCount":123456789012345678}"#, &[Entry::UsageCount(u64::MAX)]), Ok(None));
        let finer = time("2026-11-23T10:00:00.0004Z");
        assert_eq!(patch(br#"{"lastUsed":"2026-11-23T10:00:00.000Z"}"#, &[Entry::LastUsed(finer)]), Ok(None));
    }

    #[test]
    fn of_a_doubled_entry_the_last_one_is_written() {
        let entries = [Entry::UsageCount(1), Entry::IsHealthy(false), Entry::UsageCount(2)];
        assert_eq!(patch(b"{}", &entries).unwrap().unwrap(), br#"{"isHealthy":false,"usageCount":2}"#);
    }

    #[test]
    fn the_client_key_is_found_in_config_case_41() {
        let key = |config: &str| client_key(config.as_bytes()).map(|key| key.expose().to_owned());
        assert_eq!(key(r#"{"REQUIRED_API_KEY":"k1","apiKey":"k2"}"#).as_deref(), Some("k1"));
        assert_eq!(key(r#"{"REQUIRED_API_KEY":"","apiKey":"k2"}"#).as_deref(), Some("k2"));
        assert_eq!(key(r#"{"REQUIRED_API_KEY":123456}"#).as_deref(), Some("123456"));
        for config in ["{}", "", "[]", "broken", r#"{"apiKey":null}"#, r#"{"apiKey":true}"#, r#"{"apiKey":["k"]}"#] {
            assert_eq!(key(config), None, "{config}");
        }
    }

    #[test]
    fn ids_are_printable_ascii() {
        assert!(is_account_id(b"a1") && is_account_id(&[b'x'; 128]));
        for bad in [&b""[..], &[b'x'; 129], b"a\n", "é".as_bytes(), b"\x7f"] {
            assert!(!is_account_id(bad));
        }
    }

    #[test]
    fn fingerprints_name_tokens_without_showing_them() {
        let fingerprint = Fingerprint::of(&Secret::new("refresh-1"));
        assert_eq!(fingerprint.short(), "bd473e5d");
        assert!(fingerprint.index().starts_with("bd473e5d") && fingerprint.index().len() == 32);
    }

    #[test]
    fn a_new_account_reads_as_healthy_and_points_to_its_token_r62() {
        let record = new_account("a1", "a1", t0(), Some("my \"one\""), &[]);
        assert_eq!(
            String::from_utf8(record.clone()).unwrap(),
            r#"{"uuid":"a1","KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:a1","checkModel":"kiro","isHealthy":true,"usageCount":0,"errorCount":0,"addedAt":"2026-11-23T10:00:00.000Z","customName":"my \"one\""}"#
        );
        let account = Account::parse(&record, "a1").unwrap();
        assert_eq!(account.token_file_path.as_deref().and_then(token_id_of_path), Some("a1"));
    }

    #[test]
    fn debug_shows_no_token() {
        let token = Token::parse(br#"{"accessToken":"hush1","refreshToken":"hush2","clientSecret":"hush3","clientId":"hush4","kiroApiKey":"hush5"}"#);
        let entries = [Entry::AccessToken("hush6".to_owned().into()), Entry::RefreshToken("hush7".to_owned().into())];
        assert!(!format!("{token:?} {entries:?}").contains("hush"));
    }

    fn token_file(text: &str) -> TokenFile<'_> {
        TokenFile::parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn an_ide_file_reads_as_a_record_and_is_written_in_place_case_46() {
        let text = r#"{
  "accessToken": "old", "refreshToken": "refresh-1", "expiresAt": "2026-11-23T10:00:00.000Z",
  "clientIdHash": "0a1b", "authMethod": "IdC", "provider": "Enterprise", "region": "eu-west-1", "n": []
}"#;
        let file = token_file(text);
        assert_eq!(file.registration_file(), Ok(Some("0a1b.json".to_owned())));
        let registration =
            Registration::parse(br#"{"clientId":"c","clientSecret":"s","expiresAt":"2027-01-01T00:00:00Z"}"#);
        let record = file.record(registration.as_ref(), Some("arn:learnt"));
        assert_eq!(
            String::from_utf8(record.clone()).unwrap(),
            r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T10:00:00.000Z","authMethod":"IdC","provider":"Enterprise","profileArn":"arn:learnt","idcRegion":"eu-west-1","clientId":"c","clientSecret":"s","registrationExpiresAt":"2027-01-01T00:00:00Z"}"#
        );
        let token = Token::parse(&record).unwrap();
        assert_eq!((token.method(), token.region(), token.idc_region()), (Method::Idc, "us-east-1", "eu-west-1"));
        assert_eq!(file.with_token(&token), Ok(None));

        let entries = [
            Entry::AccessToken("new".to_owned().into()),
            Entry::RefreshToken("refresh-2".to_owned().into()),
            Entry::ExpiresAt(time("2026-11-23T11:00:00Z")),
        ];
        let refreshed = Token::parse(&patch(&record, &entries).unwrap().unwrap()).unwrap();
        let written = String::from_utf8(file.with_token(&refreshed).unwrap().unwrap()).unwrap();
        let expected = text.replace("\"old\"", "\"new\"").replace("refresh-1", "refresh-2").replace("T10:", "T11:");
        assert_eq!(written, expected);
    }

    #[test]
    fn a_hash_that_leaves_the_folder_is_refused_case_46() {
        for hash in ["../x", "a/b", "a.b", "a b", &"x".repeat(129)] {
            let text = format!(r#"{{"accessToken":"a","authMethod":"IdC","clientIdHash":"{hash}"}}"#);
            assert_eq!(token_file(&text).registration_file(), Err(RefusedHash), "{hash}");
        }
    }

    #[test]
    fn snake_case_files_keep_their_spelling_r67() {
        let text = r#"{"access_token":"old","expires_at":1795428000000,"client_id":"c","client_secret":"s","region":"eu-west-1"}"#;
        let file = token_file(text);
        assert_eq!(file.registration_file(), Ok(None));
        let record = file.record(None, None);
        let token = Token::parse(&record).unwrap();
        assert_eq!((token.method(), token.idc_region(), token.expires_at), (Method::Idc, "eu-west-1", Some(t0())));
        let refreshed = Token {
            access_token: Some(Secret::new("new")),
            refresh_token: Some(Secret::new("refresh-2")),
            expires_at: Some(time("2026-11-23T11:00:00Z")),
            profile_arn: Some("arn:x".into()),
            ..token
        };
        assert_eq!(
            String::from_utf8(file.with_token(&refreshed).unwrap().unwrap()).unwrap(),
            r#"{"access_token":"new","expires_at":1795431600000,"client_id":"c","client_secret":"s","region":"eu-west-1","refresh_token":"refresh-2"}"#
        );
    }

    #[test]
    fn social_and_api_key_files_r67() {
        let social = token_file(
            r#"{"accessToken":"a","refreshToken":"r","authMethod":"social","provider":"Google","region":"eu-west-1","profileArn":"arn:x"}"#,
        );
        let token = Token::parse(&social.record(None, None)).unwrap();
        assert_eq!(
            (token.method(), token.region(), token.profile_arn.as_deref()),
            (Method::Social, "eu-west-1", Some("arn:x"))
        );
        assert!(social.has_profile_member());
        let key = token_file(r#"{"kiroApiKey":"ksk_1"}"#);
        assert_eq!(Token::parse(&key.record(None, None)).unwrap().method(), Method::ApiKey);
        for other in [r#"{"accounts":{},"accessToken":"a"}"#, r#"{"accounts":{}}"#, "{}"] {
            assert!(TokenFile::parse(other.as_bytes()).unwrap().is_none(), "{other}");
        }
        assert_eq!(id_of_path("/a").len(), 36);
        assert_ne!(id_of_path("/a"), id_of_path("/b"));
    }

    /// Any JSON value, with text and white space as another program may write them.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|value| value.to_string()),
            "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,12})?([eE][+-]?[0-9]{1,3})?",
            "[a-z \u{e9}\u{1f600}]{0,12}".prop_map(|text| quote(&text)),
            Just(r#""\u00e9\/\ud83d\ude00\ud800\"\\""#.to_owned()),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" , "))),
                proptest::collection::vec(("[a-z]{0,4}", inner), 0..4).prop_map(|members| {
                    let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
                    format!("{{{}}}", members.join(",\n"))
                }),
            ]
        })
    }

    fn member() -> impl Strategy<Value = (String, String)> {
        let names = prop_oneof![
            "[a-zA-Z_]{0,10}",
            Just("usageCount".to_owned()),
            Just("isHealthy".to_owned()),
            Just("lastUsed".to_owned()),
            Just("last\\u0055sed".to_owned()),
            Just("errorCount".to_owned()),
        ];
        (names, json())
    }

    /// The members of an object that a patch of `names` may not touch, in order, as raw text.
    fn untouched(record: &[u8], names: &[&str]) -> Vec<(String, String)> {
        let object = Object::parse(record, RECORD).unwrap();
        let members: Vec<_> = object.members().collect();
        let is_last = |index: usize| !members[index + 1..].iter().any(|(name, _)| *name == members[index].0);
        (0..members.len())
            .filter(|index| !(names.contains(&members[*index].0.as_ref()) && is_last(*index)))
            .map(|index| (members[index].0.to_string(), members[index].1.raw().to_owned()))
            .collect()
    }

    /// The text in front of each top-level value, and behind the last one.
    fn around_values(record: &[u8]) -> Vec<String> {
        let mut gaps = Vec::new();
        let mut end = 0;
        for (_, value) in Object::parse(record, RECORD).unwrap().members() {
            let start = value.raw().as_ptr() as usize - record.as_ptr() as usize;
            gaps.push(String::from_utf8(record[end..start].to_vec()).unwrap());
            end = start + value.raw().len();
        }
        gaps.push(String::from_utf8(record[end..].to_vec()).unwrap());
        gaps
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_patch_changes_its_values_and_no_other_byte_r19(
            members in proptest::collection::vec(member(), 0..12),
            glue in "[ \n\t]{0,3}",
            usage in 0..=MAX_INTEGER,
            healthy in any::<bool>(),
            millis in 0_i64..4_000_000_000_000,
        ) {
            let members: Vec<_> = members.iter().map(|(name, value)| format!("{glue}\"{name}\"{glue}:{glue}{value}{glue}")).collect();
            let record = format!("{glue}{{{glue}{}{glue}}}{glue}", members.join(",")).into_bytes();
            let used = Timestamp::from_millisecond(millis).unwrap();
            let entries = [Entry::UsageCount(usage), Entry::IsHealthy(healthy), Entry::LastUsed(used)];
            let names = ["usageCount", "isHealthy", "lastUsed"];
            match patch(&record, &entries).unwrap() {
                None => {
                    let account = Account::parse(&record, "p").unwrap();
                    prop_assert_eq!((account.usage_count, account.standing.healthy), (usage, healthy));
                }
                Some(patched) => {
                    let account = Account::parse(&patched, "p").unwrap();
                    prop_assert_eq!((account.usage_count, account.standing.healthy), (usage, healthy));
                    prop_assert_eq!(account.last_used.map(Timestamp::as_millisecond), Some(millis));
                    prop_assert_eq!(untouched(&record, &names), untouched(&patched, &names));
                    prop_assert_eq!(patch(&patched, &entries), Ok(None));
                    let (before, after) = (around_values(&record), around_values(&patched));
                    let (tail, fronts) = before.split_last().unwrap();
                    prop_assert_eq!(fronts, &after[..fronts.len()], "names, spaces and commas stay");
                    // Into an empty object the members go right behind its brace.
                    let tail = if fronts.is_empty() { tail.split_once('{').unwrap().1 } else { tail };
                    prop_assert_eq!(Some(tail), after.last().map(String::as_str), "and so does the end");
                }
            }
            let valid = serde_json::from_slice::<serde_json::Value>(&record).is_ok();
            let lone_surrogate = String::from_utf8_lossy(&record).contains("\\ud800");
            prop_assert!(valid || lone_surrogate);
        }
    }
}
