//! Sessions that other programs keep, read as accounts (R78–R86). Bytes in, records out.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Method, Object, RECORD, Token, TokenFile, is_region, quote, token_id_of_path};
use crate::proto::address::percent_encoded;
use crate::proto::kiro::external::Hosts;
use crate::proto::kiro::profile::{BUILDER_ID_PROFILE, SOCIAL_PROFILE, is_arn};

/// Longest source in bytes, databases excepted (R86).
pub const MAX_SOURCE: usize = 64 << 20;
/// Accounts that one source may hold (R86).
pub const MAX_ACCOUNTS: usize = 10_000;
/// How a SQLite database begins.
pub const SQLITE: &[u8] = b"SQLite format 3\0";
/// Longest name that is taken over.
const MAX_NAME: usize = 100;
/// The existing Node.js service's list of Kiro accounts; others have its name with a suffix (R83).
const SERVICE_LIST: &str = "claude-kiro-oauth";

/// The kind of a source, by its content and never by its name (R79).
pub enum Source {
    /// A database, to be read as [`kiro_cli`] says.
    Sqlite,
    /// A pool of this program, which `--store` uses.
    Pool,
    /// A token file of the Kiro IDE, or its like (R80).
    TokenFile,
    /// The existing Node.js service's pool file (R83).
    Service {
        /// Its accounts of Kiro.
        accounts: Vec<ServiceAccount>,
        /// Accounts of other providers, which are left alone.
        others: usize,
    },
    /// Credentials, one or many (R84), or API keys one a line.
    Credentials {
        /// Each as it was read.
        found: Vec<FoundAccount>,
        /// Members that are set and not taken over.
        left: Vec<String>,
    },
}

/// One account of a source.
pub struct FoundAccount {
    /// The account's name, key or number in its source.
    pub label: String,
    /// The account as it is imported; else why it can't be.
    pub taken: Result<ImportedAccount, String>,
}

/// The imported parts of an account.
pub struct ImportedAccount {
    /// Its id in the source, when it may be one here (R13).
    pub id: Option<String>,
    /// For display.
    pub name: Option<String>,
    /// Further members of the account record, raw JSON.
    pub members: Vec<(&'static str, String)>,
    /// The token record.
    pub token: Vec<u8>,
}

/// An account of the Node.js service's pool file, and where its credential is.
pub struct ServiceAccount {
    /// Name, uuid or number.
    pub label: String,
    /// Its `uuid`.
    pub id: Option<String>,
    /// Its `customName`.
    pub name: Option<String>,
    /// Further members of the account record, raw JSON.
    pub members: Vec<(&'static str, String)>,
    /// Where its token is.
    pub place: Place,
}

/// Where the Node.js service keeps an account's token (R83).
pub enum Place {
    /// A token file, as the record spells its path with `/` in it.
    File(String),
    /// The token file's content itself.
    Inline(Vec<u8>),
    /// Why it can't be read.
    Nowhere(String),
}

/// Recognises a source (R79).
///
/// # Errors
/// Why it isn't one: the JSON breaks off, or the content is unknown.
pub fn recognise(bytes: &[u8]) -> Result<Source, String> {
    const UNKNOWN: &str = "no token file, kiro-cli database, pool file or credential list";
    if bytes.starts_with(SQLITE) {
        return Ok(Source::Sqlite);
    }
    if [[0xff, 0xfe], [0xfe, 0xff]].iter().any(|mark| bytes.starts_with(mark)) {
        return Err("is UTF-16: save it as UTF-8".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| UNKNOWN.to_owned())?;
    let text = text.trim_start_matches('\u{feff}').trim();
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    if first.is_some_and(|line| line.starts_with("ksk_")) {
        return api_keys(text);
    }
    if !text.starts_with(['{', '[']) {
        return Err(UNKNOWN.to_owned());
    }
    // serde's message may quote a piece of the text, so ours gives only the place.
    let value: Value = serde_json::from_str(text)
        .map_err(|error| format!("line {}, column {}: no JSON from here on", error.line(), error.column()))?;
    match &value {
        Value::Object(object) => match object.get("accounts") {
            Some(Value::Object(_)) => Ok(Source::Pool),
            Some(Value::Array(list)) => credentials(list),
            _ if object.iter().any(|(name, list)| is_service_list(name) && list.is_array()) => service(object),
            _ if is_credential(object) => {
                const OF_GATEWAYS: [&str; 6] =
                    ["authRegion", "apiRegion", "machineId", "priority", "disabled", "proxyUrl"];
                if OF_GATEWAYS.iter().any(|name| object.contains_key(*name)) {
                    credentials(std::slice::from_ref(&value))
                } else {
                    Ok(Source::TokenFile)
                }
            }
            _ => Err(UNKNOWN.to_owned()),
        },
        Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_object) => credentials(list),
        _ => Err(UNKNOWN.to_owned()),
    }
}

fn is_credential(object: &Map<String, Value>) -> bool {
    let names = ["accessToken", "refreshToken", "kiroApiKey", "access_token", "refresh_token", "kiro_api_key"];
    names.iter().any(|name| object.get(*name).is_some_and(|value| !value.is_null()))
}

fn api_keys(text: &str) -> Result<Source, String> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let found = lines.map(|(at, key)| {
        let is_key = key.starts_with("ksk_") && key.bytes().all(|byte| byte.is_ascii_graphic());
        let taken = if is_key {
            let token = format!("{{\"authMethod\":\"api_key\",\"kiroApiKey\":{}}}", quote(key)).into_bytes();
            Ok(ImportedAccount { id: None, name: None, members: Vec::new(), token })
        } else {
            Err("no API key".to_owned())
        };
        FoundAccount { label: format!("line {}", at + 1), taken }
    });
    let found: Vec<_> = found.collect();
    within_limit(found.len())?;
    Ok(Source::Credentials { found, left: Vec::new() })
}

fn within_limit(accounts: usize) -> Result<(), String> {
    if accounts > MAX_ACCOUNTS { Err(format!("holds more than {MAX_ACCOUNTS} accounts")) } else { Ok(()) }
}

/// A member's text in the first of several spellings; empty is absent.
fn text<'v>(object: &'v Map<String, Value>, names: &[&str]) -> Option<&'v str> {
    names.iter().find_map(|name| object.get(*name)?.as_str().filter(|text| !text.is_empty()))
}

fn label_of(object: &Map<String, Value>, names: &[&str], at: usize) -> String {
    let named = text(object, names).map(display_name).filter(|name| !name.is_empty());
    named.unwrap_or_else(|| format!("account {}", at + 1))
}

/// A name without control characters, cut to a length that lists can show.
fn display_name(name: &str) -> String {
    name.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

fn credentials(list: &[Value]) -> Result<Source, String> {
    within_limit(list.len())?;
    let mut left = Vec::new();
    let found = list.iter().enumerate().map(|(at, value)| {
        // An e-mail address may name an account, but it may not stand in an error.
        let label = value
            .as_object()
            .map_or_else(|| format!("account {}", at + 1), |object| label_of(object, &["nickname", "label"], at));
        FoundAccount { label, taken: credential(value, &mut left) }
    });
    let found = found.collect();
    Ok(Source::Credentials { found, left })
}

/// As R11 reads it: the Node.js service's UI saves every field as text.
fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(is)) => *is,
        Some(Value::String(text)) => text == "1" || text.eq_ignore_ascii_case("true"),
        Some(Value::Number(number)) => number.as_f64() == Some(1.0),
        _ => false,
    }
}

/// One credential, in the form that several Rust gateways keep (R84).
fn credential(value: &Value, left: &mut Vec<String>) -> Result<ImportedAccount, String> {
    const LEFT: [&str; 4] = ["id", "groups", "endpoint", "subscriptionTitle"];
    let object = value.as_object().ok_or("no JSON object")?;
    for name in LEFT {
        if object.get(name).is_some_and(|value| !value.is_null()) && !left.iter().any(|known| known == name) {
            left.push(name.to_owned());
        }
    }
    // An account manager's export keeps the credential one level further down.
    let mut merged = object.clone();
    if let Some(Value::Object(inner)) = merged.remove("credentials") {
        merged.extend(inner);
    }
    if let Some(region) = text(&merged, &["authRegion", "auth_region"]).map(str::to_owned) {
        merged.insert("region".to_owned(), region.into());
    }
    let token = record_of(merged.clone())?;
    let mut members = Vec::new();
    match proxy_of(&merged)?.as_deref() {
        // There is no way past KIRO_PROXY_URL for one account.
        Some("direct") if !left.iter().any(|known| known == DIRECT) => left.push(DIRECT.to_owned()),
        Some("direct") | None => {}
        Some(proxy) => members.push(("PROXY_URL", quote(proxy))),
    }
    if is_true(merged.get("disabled")) {
        members.push(("isDisabled", "true".to_owned()));
    }
    if let Some(machine_id) = text(&merged, &["machineId", "machine_id"]) {
        members.push(("machineId", quote(&machine_id.to_ascii_lowercase())));
    }
    if let Some(priority) = merged.get("priority").and_then(Value::as_i64) {
        members.push(("priority", priority.to_string()));
    }
    let name = text(&merged, &["nickname", "label", "email"]).map(display_name).filter(|name| !name.is_empty());
    Ok(ImportedAccount { id: None, name, members, token })
}

/// The token record of a credential: what the IDE's token file would give (R67).
fn record_of(members: Map<String, Value>) -> Result<Vec<u8>, String> {
    inline(Value::Object(members).to_string().as_bytes())
}

/// What an entry says that wants no proxy at all.
const DIRECT: &str = "proxyUrl: direct";
const PROXY_WANTED: &str =
    "begins with http://, https://, socks5://, socks5h://, socks4:// or socks4a://, and a host follows";

/// Whether an account's calls could go through it: with another one they would fail.
fn is_proxy(url: &str) -> bool {
    const SCHEMES: [&str; 6] = ["http", "https", "socks5", "socks5h", "socks4", "socks4a"];
    let host = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme)?.strip_prefix("://"));
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// `proxyUrl` with user and password in it.
fn proxy_of(object: &Map<String, Value>) -> Result<Option<String>, String> {
    let Some(url) = text(object, &["proxyUrl", "proxy_url"]) else { return Ok(None) };
    if url == "direct" {
        return Ok(Some(url.to_owned()));
    }
    if !is_proxy(url) {
        return Err(format!("proxyUrl: {PROXY_WANTED}"));
    }
    let Some(user) = text(object, &["proxyUsername", "proxy_username"]) else { return Ok(Some(url.to_owned())) };
    let (scheme, rest) = url.split_once("://").ok_or("proxyUrl: no URL")?;
    if rest.contains('@') {
        return Err("proxyUrl: has a user of its own beside proxyUsername".to_owned());
    }
    let password = text(object, &["proxyPassword", "proxy_password"]).unwrap_or_default();
    Ok(Some(format!("{scheme}://{}:{}@{rest}", percent_encoded(user), percent_encoded(password))))
}

/// The Kiro accounts of the Node.js service's pool file (R83).
fn service(file: &Map<String, Value>) -> Result<Source, String> {
    let lists = file.iter().filter_map(|(name, list)| Some((name, list.as_array()?)));
    let (ours, others): (Vec<_>, Vec<_>) = lists.partition(|(name, _)| is_service_list(name));
    let list: Vec<_> = ours.into_iter().flat_map(|(_, list)| list).collect();
    within_limit(list.len())?;
    let others = others.into_iter().map(|(_, list)| list.len()).sum();
    let empty = Map::new();
    let account = |(at, value): (usize, &Value)| {
        let object = value.as_object().unwrap_or(&empty);
        let mut members = Vec::new();
        if is_true(object.get("isDisabled")) {
            members.push(("isDisabled", "true".to_owned()));
        }
        for name in ["PROXY_URL", "KIRO_BASE_URL", "KIRO_REFRESH_URL", "KIRO_REFRESH_IDC_URL"] {
            if let Some(value) = text(object, &[name]) {
                members.push((name, quote(value)));
            }
        }
        if let Some(Value::Array(models)) = object.get("notSupportedModels")
            && models.iter().all(Value::is_string)
            && !models.is_empty()
        {
            members.push(("notSupportedModels", Value::Array(models.clone()).to_string()));
        }
        ServiceAccount {
            label: label_of(object, &["customName", "uuid"], at),
            id: text(object, &["uuid"]).map(str::to_owned),
            name: text(object, &["customName"]).map(display_name),
            members,
            place: match text(object, &["PROXY_URL"]) {
                Some(proxy) if !is_proxy(proxy) => Place::Nowhere(format!("PROXY_URL: {PROXY_WANTED}")),
                _ => place_of(object),
            },
        }
    };
    Ok(Source::Service { accounts: list.into_iter().enumerate().map(account).collect(), others })
}

/// Whether a list of the Node.js service's pool file holds accounts of Kiro: its type, or one with a suffix (R95).
pub fn is_service_list(name: &str) -> bool {
    name.strip_prefix(SERVICE_LIST).is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('-'))
}

/// The folder that relative paths of a pool file begin in: `base`, else the one above its `configs` (R83).
pub fn service_root(pool: &Path, base: Option<&Path>) -> PathBuf {
    let folder = pool.parent().unwrap_or(Path::new(""));
    let above = || folder.file_name().is_some_and(|name| name == "configs").then(|| folder.parent()).flatten();
    base.or_else(above).unwrap_or(folder).to_owned()
}

/// Where the token of a record of the Node.js service's pool file is (R83).
pub fn place_of_record(record: &[u8]) -> Place {
    match serde_json::from_slice(record) {
        Ok(Value::Object(object)) => place_of(&object),
        _ => Place::Nowhere("is no JSON object".to_owned()),
    }
}

fn place_of(object: &Map<String, Value>) -> Place {
    if let Some(path) = text(object, &["KIRO_OAUTH_CREDS_FILE_PATH"]) {
        return Place::File(path.replace('\\', "/"));
    }
    if let Some(encoded) = text(object, &["KIRO_OAUTH_CREDS_BASE64"]) {
        let encoded: String = encoded.split_ascii_whitespace().collect();
        let decoded = STANDARD.decode(&encoded).or_else(|_| STANDARD_NO_PAD.decode(&encoded));
        return decoded.map_or_else(|_| Place::Nowhere("KIRO_OAUTH_CREDS_BASE64: no base64".to_owned()), Place::Inline);
    }
    match text(object, &["KIRO_TOKEN_FILE_PATH"]).and_then(token_id_of_path) {
        Some(_) => Place::Nowhere("this record's token is in Redis: use the pool there".to_owned()),
        None => Place::Nowhere("names no credential: KIRO_OAUTH_CREDS_FILE_PATH or KIRO_OAUTH_CREDS_BASE64".to_owned()),
    }
}

/// The token record in a token file's JSON that stands in another file (R83).
///
/// # Errors
/// Why it isn't one.
pub fn inline(json: &[u8]) -> Result<Vec<u8>, String> {
    let file = TokenFile::parse(json).map_err(|error| error.to_string())?;
    Ok(file.ok_or("holds no token: sign in again")?.record(None, None))
}

/// Where kiro-cli and Amazon Q keep each kind of session, the newer key first (R82).
const KIRO_CLI_KINDS: [(&str, &[&str]); 3] = [
    ("odic", &["kirocli:odic", "kirocli:oidc", "codewhisperer:odic", "codewhisperer:oidc"]),
    ("social", &["kirocli:social", "codewhisperer:social"]),
    ("external-idp", &["kirocli:external-idp", "codewhisperer:external-idp"]),
];
const KIRO_CLI_STATE: [&str; 3] = ["api.codewhisperer.profile", "auth.idc.region", "auth.idc.start-url"];

/// Every key that [`kiro_cli`] looks at.
pub fn kiro_cli_keys() -> impl Iterator<Item = String> {
    let prefixes = KIRO_CLI_KINDS.iter().flat_map(|(_, prefixes)| prefixes.iter());
    let of_sessions = prefixes.flat_map(|prefix| ["token", "device-registration"].map(|end| format!("{prefix}:{end}")));
    of_sessions.chain(KIRO_CLI_STATE.map(str::to_owned))
}

/// Accounts of kiro-cli's or Amazon Q's database: the rows of `auth_kv` and of `state`, key and value (R82).
pub fn kiro_cli(auth: &[(String, Vec<u8>)], state: &[(String, Vec<u8>)]) -> Vec<FoundAccount> {
    let mut found = Vec::new();
    for (kind, prefixes) in KIRO_CLI_KINDS {
        // A row of `codewhisperer:` beside one of `kirocli:` is a stale copy.
        let row = prefixes.iter().find_map(|prefix| Some((*prefix, value_of(auth, &format!("{prefix}:token"))?)));
        let Some((prefix, value)) = row else { continue };
        let label = format!("{prefix}:token");
        let taken = session(kind, prefix, value, auth, state).map(|token| ImportedAccount {
            id: None,
            name: None,
            members: Vec::new(),
            token,
        });
        found.push(FoundAccount { label, taken });
    }
    found
}

fn value_of<'v>(rows: &'v [(String, Vec<u8>)], key: &str) -> Option<&'v [u8]> {
    rows.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_slice())
}

fn object_of(key: &str, value: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(value) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(format!("{key}: no JSON")),
    }
}

fn session(
    kind: &str,
    prefix: &str,
    value: &[u8],
    auth: &[(String, Vec<u8>)],
    state: &[(String, Vec<u8>)],
) -> Result<Vec<u8>, String> {
    let mut members = object_of(&format!("{prefix}:token"), value)?;
    // The values of `state` are JSON; older versions wrote plain text.
    let stated = |key: &str| {
        let raw = value_of(state, key)?;
        let plain = || std::str::from_utf8(raw).ok().filter(|text| !text.contains(['"', '{'])).map(str::to_owned);
        serde_json::from_slice::<String>(raw).ok().or_else(plain).filter(|text| !text.is_empty())
    };
    let start_url = text(&members, &["startUrl", "start_url"]).map(str::to_owned);
    match kind {
        "odic" => {
            members.insert("authMethod".to_owned(), "IdC".into());
            if text(&members, &["region"]).is_none()
                && let Some(region) = stated("auth.idc.region")
            {
                members.insert("region".to_owned(), region.into());
            }
            if start_url.is_none()
                && let Some(url) = stated("auth.idc.start-url")
            {
                members.insert("startUrl".to_owned(), url.into());
            }
            let key = format!("{prefix}:device-registration");
            let registration = value_of(auth, &key).map(|value| object_of(&key, value)).transpose()?;
            let both = registration.as_ref().and_then(|found| {
                Some((text(found, &["clientId", "client_id"])?, text(found, &["clientSecret", "client_secret"])?))
            });
            let Some((id, secret)) = both else {
                return Err(format!("client registration missing ({key}): sign in again with kiro-cli"));
            };
            members.insert("clientId".to_owned(), id.into());
            members.insert("clientSecret".to_owned(), secret.into());
        }
        "social" => {
            members.insert("authMethod".to_owned(), "social".into());
        }
        _ => {
            members.insert("authMethod".to_owned(), "external_idp".into());
        }
    }
    if kind != "social"
        && text(&members, &["profileArn", "profile_arn"]).is_none()
        && let Some(profile) = value_of(state, "api.codewhisperer.profile")
        && let Ok(Value::Object(profile)) = serde_json::from_slice(profile)
        && let Some(arn) = text(&profile, &["arn"]).filter(|arn| ![BUILDER_ID_PROFILE, SOCIAL_PROFILE].contains(arn))
    {
        members.insert("profileArn".to_owned(), arn.into());
    }
    let record = record_of(members)?;
    let key = format!("{prefix}:device-registration");
    let ends = value_of(auth, &key).filter(|_| kind == "odic").and_then(|value| object_of(&key, value).ok());
    let ends = ends.and_then(|found| {
        ["clientSecretExpiresAt", "client_secret_expires_at"].iter().find_map(|name| found.get(*name).cloned())
    });
    match ends.filter(|end| !end.is_null()) {
        Some(end) => {
            let object = Object::parse(&record, RECORD).map_err(|error| error.to_string())?;
            Ok(object.with([("registrationExpiresAt", end.to_string())]))
        }
        None => Ok(record),
    }
}

/// A token record that may be written, and the warnings about it (R86).
pub struct Checked {
    /// The record.
    pub record: Vec<u8>,
    /// Its reading.
    pub token: Token,
    /// Sentences for the person who adds it.
    pub warnings: Vec<String>,
}

/// Checks an imported record before anything is written: R71, R74, R77, K11 and K84 (R86).
///
/// # Errors
/// Why its account could never serve.
pub fn check(record: Vec<u8>, hosts: &Hosts, now: Timestamp) -> Result<Checked, String> {
    let mut record = record;
    let mut warnings = Vec::new();
    let mut token = Token::parse(&record).map_err(|error| error.to_string())?;
    if let Some(arn) = &token.profile_arn
        && !is_arn(arn)
    {
        warnings.push("its profileArn is none of Kiro's and was not taken over".to_owned());
        record = Object::parse(&record, RECORD).map_err(|error| error.to_string())?.without("profileArn");
        token = Token::parse(&record).map_err(|error| error.to_string())?;
    }
    let method = token.method();
    for (field, region) in [("region", &token.region), ("region", &token.idc_region), ("apiRegion", &token.api_region)]
    {
        // K74 judges the other region fields: they may hold a provider's own region.
        if method != Method::External && region.as_deref().is_some_and(|region| !is_region(region)) {
            return Err(format!("{field}: not a region's name"));
        }
    }
    for (field, secret) in [("accessToken", &token.access_token), ("kiroApiKey", &token.kiro_api_key)] {
        if secret.as_ref().is_some_and(|secret| !secret.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(format!("{field}: fits no header"));
        }
    }
    let live = token.access_token.is_some() && token.expires_at.is_some_and(|end| end > now);
    match method {
        Method::ApiKey if token.kiro_api_key.is_none() => return Err("kiroApiKey: missing".to_owned()),
        Method::ApiKey => {}
        _ if token.refresh_token.is_none() && !live => return Err("holds no token: sign in again".to_owned()),
        Method::Idc if token.client_id.is_none() || token.client_secret.is_none() => {
            return Err("client registration missing".to_owned());
        }
        Method::External => hosts.admit(&token)?,
        Method::Idc | Method::Social => {}
    }
    if token.has_unknown_method() {
        warnings.push(format!("its authMethod is not known: taken for {}", method.as_str()));
        // Other programs that read the pool guess differently (R8).
        let word = if method == Method::Idc { "IdC" } else { method.as_str() };
        record = Object::parse(&record, RECORD).map_err(|error| error.to_string())?.with([("authMethod", quote(word))]);
    }
    if token.registration_expires_at.is_some_and(|end| end <= now) {
        warnings.push("its client registration has expired: the next refresh may be refused".to_owned());
    }
    warnings.extend(token.ignored.iter().map(|field| format!("its {field} is ignored: too long, or not printable")));
    Ok(Checked { record, token, warnings })
}
