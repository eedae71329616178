//! Token files of the Kiro IDE and CLI, read as a token record and written back in their own form (R67–R68).

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Entry, Json, Method, Object, RECORD, Token, Unusable, edit, hex, method_of, quote, read};
use crate::secret::Secret;

/// A file whose top level holds a token instead of accounts (R67).
pub struct TokenFile<'a> {
    object: Object<'a>,
}

/// A member's name in the IDE's spelling and in the CLI's.
type Spellings = (&'static str, &'static str);

const ACCESS_TOKEN: Spellings = ("accessToken", "access_token");
const REFRESH_TOKEN: Spellings = ("refreshToken", "refresh_token");
const EXPIRES_AT: Spellings = ("expiresAt", "expires_at");
const PROFILE_ARN: Spellings = ("profileArn", "profile_arn");
const AUTH_METHOD: Spellings = ("authMethod", "auth_method");
/// Another name for the end of a token (R80).
const EXPIRED: Spellings = ("expired", "expired");
const PROVIDER: Spellings = ("provider", "socialProvider");
const CLIENT_ID_HASH: Spellings = ("clientIdHash", "client_id_hash");
const CLIENT_ID: Spellings = ("clientId", "client_id");
const CLIENT_SECRET: Spellings = ("clientSecret", "client_secret");
const KIRO_API_KEY: Spellings = ("kiroApiKey", "kiro_api_key");
const TOKEN_ENDPOINT: Spellings = ("tokenEndpoint", "token_endpoint");
const ISSUER_URL: Spellings = ("issuerUrl", "issuer_url");
const START_URL: Spellings = ("startUrl", "start_url");
const API_REGION: Spellings = ("apiRegion", "api_region");
const IDC_REGION: Spellings = ("idcRegion", "idc_region");
const REGISTRATION_EXPIRES_AT: Spellings = ("registrationExpiresAt", "registration_expires_at");
/// The members that a refresh brings.
const GRANTED: [Spellings; 4] = [ACCESS_TOKEN, REFRESH_TOKEN, EXPIRES_AT, PROFILE_ARN];

impl<'a> TokenFile<'a> {
    /// Reads a file. `None` for a JSON object of another kind; an error for anything else, and for one that is too
    /// large (R9).
    pub fn parse(file: &'a [u8]) -> Result<Option<Self>, Unusable> {
        let file = Self { object: Object::parse(file, RECORD)? };
        Ok(Self::is_one(&file.object).then_some(file))
    }

    /// Whether this is a token file, whatever its length and depth: one that [`TokenFile::parse`] refuses isn't a pool
    /// either.
    pub fn is_one(file: &Object<'_>) -> bool {
        let present = |name: &str| file.last(name).is_some_and(|value| !value.is_null());
        let holds_token = |names: &Spellings| present(names.0) || present(names.1);
        [ACCESS_TOKEN, REFRESH_TOKEN, KIRO_API_KEY].iter().any(holds_token) && file.last("accounts").is_none()
    }

    /// The name of the client registration's file in the same folder, when the credentials lie there.
    ///
    /// An error when `clientIdHash` is anything but `[A-Za-z0-9_-]{1,128}`: it would leave the folder.
    pub fn registration_file(&self) -> Result<Option<String>, RefusedHash> {
        if !self.lacks_client() {
            return Ok(None);
        }
        let Some(hash) = self.text(CLIENT_ID_HASH) else { return Ok(None) };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if (1..=128).contains(&hash.len()) && hash.bytes().all(plain) {
            Ok(Some(format!("{hash}.json")))
        } else {
            Err(RefusedHash)
        }
    }

    /// Whether it is an IdC login whose client must lie in another file.
    pub fn lacks_client(&self) -> bool {
        let has_own = self.text(CLIENT_ID).is_some() && self.text(CLIENT_SECRET).is_some();
        !has_own && self.method() == Method::Idc
    }

    /// The token record that this file stands for (R67), the registration copied in.
    ///
    /// `profile_arn` is one that was learnt and that the file has no member for. For IdC `region` becomes `idcRegion`:
    /// the Kiro host stays in `us-east-1`.
    pub fn record(&self, registration: Option<&Registration>, profile_arn: Option<&str>) -> Vec<u8> {
        let method = self.method();
        let text = |names| self.text(names).map(|text| quote(&text));
        // A word that isn't known stays, so that it is warned of (K51).
        let auth_method = self.text(AUTH_METHOD);
        let auth_method = match (auth_method, method) {
            (Some(found), _) => Some(found),
            (None, Method::Idc) => Some("IdC".to_owned()),
            (None, Method::Social) => Some("social".to_owned()),
            (None, Method::External) => Some("external_idp".to_owned()),
            (None, Method::ApiKey) => None,
        };
        let (region, own) = (text(("region", "region")), text(IDC_REGION));
        // A record of ours, or of a gateway that tells them apart, names both.
        let (region, idc_region) = match own {
            Some(own) => (region, Some(own)),
            None if method == Method::Idc => (None, region),
            None => (region, None),
        };
        let ends = || self.find(REGISTRATION_EXPIRES_AT).map(|end| end.raw().to_owned());
        let registered =
            |own: Spellings, value: Option<&Secret>| text(own).or_else(|| value.map(|id| quote(id.expose())));
        let fields = [
            ("accessToken", text(ACCESS_TOKEN)),
            ("refreshToken", text(REFRESH_TOKEN)),
            ("expiresAt", self.find(EXPIRES_AT).or_else(|| self.find(EXPIRED)).map(|value| value.raw().to_owned())),
            ("authMethod", auth_method.map(|method| quote(&method))),
            ("provider", text(PROVIDER)),
            ("profileArn", text(PROFILE_ARN).or_else(|| profile_arn.map(quote))),
            ("region", region),
            ("idcRegion", idc_region),
            ("clientId", registered(CLIENT_ID, registration.map(|found| &found.client_id))),
            ("clientSecret", registered(CLIENT_SECRET, registration.map(|found| &found.client_secret))),
            ("registrationExpiresAt", registration.and_then(|found| found.expires_at_raw.clone()).or_else(ends)),
            ("kiroApiKey", text(KIRO_API_KEY)),
            ("tokenEndpoint", text(TOKEN_ENDPOINT)),
            ("issuerUrl", text(ISSUER_URL)),
            ("scopes", self.find(("scopes", "scopes")).map(|value| value.raw().to_owned())),
            ("startUrl", text(START_URL)),
            ("apiRegion", text(API_REGION)),
        ];
        let members = fields.into_iter().filter_map(|(name, value)| Some(format!("\"{name}\":{}", value?)));
        format!("{{{}}}", members.collect::<Vec<_>>().join(",")).into_bytes()
    }

    /// The file with the values of a refreshed record in it, in the spelling and form found (R68).
    ///
    /// `None` when nothing changes. A `profileArn` is written only where the file has that member. An error when the
    /// file could not be read any more (R9).
    pub fn with_token(&self, token: &Token) -> Result<Option<Vec<u8>>, Unusable> {
        let has = |name| self.object.last(name).is_some();
        let is_snake = has(ACCESS_TOKEN.1) || has(REFRESH_TOKEN.1);
        let granted: Vec<Entry> = token.granted().collect();
        let wanted = granted.iter().filter_map(|entry| {
            let (_, name, wanted) = entry.row();
            let (camel, snake) = GRANTED.into_iter().find(|names| names.0 == name)?;
            match (has(camel), has(snake)) {
                (false, false) if camel == PROFILE_ARN.0 => None,
                (false, found) if found || is_snake => Some((snake, wanted)),
                _ => Some((camel, wanted)),
            }
        });
        edit(&self.object, wanted)
    }

    /// Whether the file has a member for a profile, so that one that was learnt can be kept in it.
    pub fn has_profile_member(&self) -> bool {
        [PROFILE_ARN.0, PROFILE_ARN.1].iter().any(|name| self.object.last(name).is_some())
    }

    /// As R71. A `clientIdHash` counts as a client registration, but not beside a `tokenEndpoint`: an external login
    /// has none.
    fn method(&self) -> Method {
        if self.text(KIRO_API_KEY).is_some() {
            return Method::ApiKey;
        }
        let external = self.text(TOKEN_ENDPOINT).is_some() && self.text(CLIENT_ID).is_some();
        let registered = self.text(CLIENT_ID).is_some() && self.text(CLIENT_SECRET).is_some();
        let hashed = self.text(CLIENT_ID_HASH).is_some();
        self.text(AUTH_METHOD).as_deref().and_then(method_of).unwrap_or(match (registered, external, hashed) {
            (true, _, _) | (false, false, true) => Method::Idc,
            (false, true, _) => Method::External,
            (false, false, false) => Method::Social,
        })
    }

    fn find(&self, names: Spellings) -> Option<Json<'a>> {
        let present = |name| self.object.last(name).filter(|value| !value.is_null());
        present(names.0).or_else(|| present(names.1))
    }

    fn text(&self, names: Spellings) -> Option<String> {
        self.find(names).and_then(read::text)
    }
}

/// `clientIdHash` isn't a file name of the same folder (R67).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedHash;

/// An OIDC client registration, as Kiro keeps it beside its token file.
#[derive(Clone, Debug)]
pub struct Registration {
    /// `clientId`
    pub client_id: Secret,
    /// `clientSecret`
    pub client_secret: Secret,
    /// `expiresAt`; absent or unparsable counts as valid.
    pub expires_at: Option<Timestamp>,
    /// The JSON value of `expiresAt` as found.
    expires_at_raw: Option<String>,
}

impl Registration {
    /// Reads a registration file; `None` when it is no JSON object or lacks the id or the secret.
    pub fn parse(file: &[u8]) -> Option<Self> {
        let file = TokenFile { object: Object::parse(file, RECORD).ok()? };
        let expires_at = file.find(EXPIRES_AT);
        Some(Self {
            client_id: file.text(CLIENT_ID).map(Secret::new)?,
            client_secret: file.text(CLIENT_SECRET).map(Secret::new)?,
            expires_at: expires_at.and_then(read::time).or_else(|| read::timestamp(&zoned(expires_at)?)),
            expires_at_raw: expires_at.map(|value| match zoned(Some(value)) {
                Some(utc) if read::time(value).is_none() && read::timestamp(&utc).is_some() => quote(&utc),
                _ => value.raw().to_owned(),
            }),
        })
    }
}

/// A time without a zone, as UTC (R80).
fn zoned(value: Option<Json<'_>>) -> Option<String> {
    Some(format!("{}Z", value?.string()?.trim()))
}

/// The id of the one account in a token file: SHA-256 of its absolute path, 32 hex digits in uuid form (R67).
pub fn id_of_path(absolute_path: &str) -> String {
    let digits = hex(&Sha256::digest(absolute_path.as_bytes())[..16]);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}
