//! Upstream's failures, classified by a total function (K42–K45).

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::proto::said::{KnownSecrets, Said};

/// An upstream failure: its class, and what health, retry and the log need to know about it.
///
/// `message` is upstream's own text without secrets ([`Said`]). It may hold support links and the like, which aren't for
/// clients. So [`Display`](std::fmt::Display) leaves it out, and a client sees it only by way of
/// [`api_error`](crate::proto::translate::fault::api_error) (K48).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The row of K45's table.
    pub kind: FaultKind,
    /// The HTTP status upstream answered with; none for in-band and network faults.
    pub status: Option<u16>,
    /// Upstream's `reason`, or the reason token found in a body that isn't JSON (K42); at most 1,000 characters.
    pub reason: Option<Said>,
    /// Upstream's message, at most 1,000 characters; for our own findings a sentence of ours. K48 says when clients see
    /// it.
    pub message: Said,
    /// `retry-after` as it came (K46).
    pub retry_after: Option<RetryAfter>,
}

/// How a [`Fault::message`] begins when the account had no access token to send: the rest says why.
pub const NO_TOKEN: &str = "no access token: ";

/// What an exception or error frame says (K36–K38).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    /// `ContentLengthExceededException`: the output limit, no fault (K37).
    OutputLimit,
    /// Everything else, classified as if it had come as an HTTP error (K38).
    Fault(Fault),
}

/// `retry-after` as upstream may write it (K46).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// A number of seconds.
    Seconds(u64),
    /// A point in time.
    At(Timestamp),
}

impl RetryAfter {
    /// How long to wait from `now`; zero for a date that has passed.
    pub fn wait(self, now: Timestamp) -> Duration {
        match self {
            Self::Seconds(seconds) => Duration::from_secs(seconds),
            Self::At(at) => Duration::try_from(at.duration_since(now)).unwrap_or_default(),
        }
    }
}

/// The classes of faults, in the order of K45's table. What each means for the account, for the next attempt and
/// for the client are total functions over this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// Upstream refuses this program's client version (K104).
    ClientVersion,
    /// The prompt doesn't fit into the model's window.
    PromptTooLong,
    /// The body is too large for upstream.
    TooLarge,
    /// Upstream doesn't know the model id.
    UnknownModel,
    /// The signature of a thinking block in the history was refused.
    ThinkingSignature,
    /// A member of `additionalModelRequestFields`, or all of it, was refused (K128).
    ModelFields,
    /// `profileArn` is missing or wrong.
    ProfileArn,
    /// Any other request that no account could serve.
    BadRequest,
    /// The access token was refused.
    TokenRejected,
    /// The account is suspended.
    Suspended,
    /// The account may not do this.
    Forbidden,
    /// The month's quota is used up.
    QuotaMonth,
    /// The day's quota is used up.
    QuotaDay,
    /// Upstream suspects the account of abuse.
    Suspicious,
    /// The model has no capacity; no account is to blame.
    ModelCapacity,
    /// Too many requests of this account.
    RateLimited,
    /// Upstream failed.
    ServerError,
    /// Reset, cut, no event: the connection stood.
    Network,
    /// No connection can be made from this machine: the host's name, TCP, TLS, or the proxy before it (K119). Nothing of the
    /// account was sent, so it says nothing about the account.
    Unreachable,
    /// Connect, first event or idle time ran out.
    Timeout,
    /// Upstream doesn't speak the protocol: invalid frame, unknown message type, broken payload.
    Protocol,
    /// Our address is wrong.
    Endpoint,
}

impl FaultKind {
    /// Every kind, in the order of K45's table.
    pub const ALL: [Self; 22] = [
        Self::ClientVersion,
        Self::PromptTooLong,
        Self::TooLarge,
        Self::UnknownModel,
        Self::ThinkingSignature,
        Self::ModelFields,
        Self::ProfileArn,
        Self::BadRequest,
        Self::TokenRejected,
        Self::Suspended,
        Self::Forbidden,
        Self::QuotaMonth,
        Self::QuotaDay,
        Self::Suspicious,
        Self::ModelCapacity,
        Self::RateLimited,
        Self::ServerError,
        Self::Network,
        Self::Unreachable,
        Self::Timeout,
        Self::Protocol,
        Self::Endpoint,
    ];

    /// The name in logs, metrics and golden files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientVersion => "ClientVersion",
            Self::PromptTooLong => "PromptTooLong",
            Self::TooLarge => "TooLarge",
            Self::UnknownModel => "UnknownModel",
            Self::ThinkingSignature => "ThinkingSignature",
            Self::ModelFields => "ModelFields",
            Self::ProfileArn => "ProfileArn",
            Self::BadRequest => "BadRequest",
            Self::TokenRejected => "TokenRejected",
            Self::Suspended => "Suspended",
            Self::Forbidden => "Forbidden",
            Self::QuotaMonth => "QuotaMonth",
            Self::QuotaDay => "QuotaDay",
            Self::Suspicious => "Suspicious",
            Self::ModelCapacity => "ModelCapacity",
            Self::RateLimited => "RateLimited",
            Self::ServerError => "ServerError",
            Self::Network => "Network",
            Self::Unreachable => "Unreachable",
            Self::Timeout => "Timeout",
            Self::Protocol => "Protocol",
            Self::Endpoint => "Endpoint",
        }
    }
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Fault {
    /// Why the account had no access token to send; none for a fault of a call that went out.
    pub fn tokenless(&self) -> Option<&str> {
        self.message.strip_prefix(NO_TOKEN)
    }

    /// The word for the log: nobody has rejected a token that wasn't sent.
    pub fn word(&self) -> &'static str {
        match self.kind {
            FaultKind::TokenRejected if self.tokenless().is_some() => "NoToken",
            kind => kind.as_str(),
        }
    }

    /// Classifies an answer that isn't an event stream: any status, also 200 with another content type (K44).
    ///
    /// `error_type_header` is `x-amzn-errortype`, `retry_after` the header of that name, `body` at most the 64 KiB that
    /// the driver reads (K42), `known` what the call was made with. An account that signs with an API key has no token to
    /// refresh: what would be `TokenRejected` is `Forbidden` for it.
    pub fn from_http(
        status: u16,
        error_type_header: Option<&str>,
        retry_after: Option<&str>,
        body: &[u8],
        api_key_account: bool,
        known: &KnownSecrets,
    ) -> Self {
        let report = ErrorBody::read(error_type_header, body, known);
        let kind = report.classify(status);
        let fault = Self {
            kind,
            status: Some(status),
            reason: report.reason,
            message: report.message,
            retry_after: retry_after.and_then(parse_retry_after),
        };
        if api_key_account { fault.for_api_key_account() } else { fault }
    }

    /// Reset, cut, no event.
    pub fn network(message: impl Into<Said>) -> Self {
        Self::ours(FaultKind::Network, message)
    }

    /// Name, connection, TLS or proxy: the request never went out. The message is our own and holds no secret; it names
    /// the way, and clients see it.
    pub fn unreachable(message: impl Into<Said>) -> Self {
        Self::ours(FaultKind::Unreachable, message)
    }

    /// Connect, first event or idle time ran out.
    pub fn timeout(message: impl Into<Said>) -> Self {
        Self::ours(FaultKind::Timeout, message)
    }

    /// Invalid frame, unknown message type, broken payload.
    pub fn protocol(message: impl Into<Said>) -> Self {
        Self::ours(FaultKind::Protocol, message)
    }

    /// `invalidStateEvent`.
    pub(crate) fn invalid_state(reason: Option<String>, message: String) -> Self {
        Self { reason: reason.map(Said::from), ..Self::ours(FaultKind::ServerError, message) }
    }

    /// Whether upstream's message holds these words, in any case: for finer distinctions than the class.
    pub fn says(&self, words: &str) -> bool {
        self.message.to_ascii_lowercase().contains(words)
    }

    /// The same fault of an account that signs with an API key: there is no token to refresh, so a rejected one is
    /// `Forbidden`. For in-band exceptions, which are classified before the account is known.
    #[must_use]
    pub fn for_api_key_account(mut self) -> Self {
        if self.kind == FaultKind::TokenRejected {
            self.kind = FaultKind::Forbidden;
        }
        self
    }

    /// The same fault without the call's secrets. For faults of the stream, which are read before the account is known.
    #[must_use]
    pub(crate) fn knowing(mut self, known: &KnownSecrets) -> Self {
        self.message = Said::new(self.message.as_str(), known);
        self.reason = self.reason.map(|reason| Said::new(reason.as_str(), known));
        self
    }

    fn ours(kind: FaultKind, message: impl Into<Said>) -> Self {
        Self { kind, status: None, reason: None, message: message.into(), retry_after: None }
    }
}

impl Exception {
    /// An exception frame: `name` is `:exception-type`, `payload` its JSON. Its status is the modelled one of the name,
    /// else 500 (K43).
    pub fn from_frame(name: Option<&str>, payload: &[u8]) -> Self {
        Self::classify(ErrorBody::read(name, payload, &KnownSecrets::default()))
    }

    /// An error frame: `:error-code` and `:error-message`, no payload.
    pub fn from_error_frame(code: Option<&str>, message: Option<&str>) -> Self {
        Self::classify(ErrorBody::read(code, message.unwrap_or_default().as_bytes(), &KnownSecrets::default()))
    }

    fn classify(report: ErrorBody<'_>) -> Self {
        if report.names.iter().any(|name| short_name(name) == "ContentLengthExceededException") {
            return Self::OutputLimit;
        }
        let kind = report.classify(500);
        Self::Fault(Fault { kind, status: None, reason: report.reason, message: report.message, retry_after: None })
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.as_str())?;
        if let Some(status) = self.status {
            write!(f, ", status {status}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ", reason {reason}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// K46: seconds or an HTTP date; anything else is ignored. A date may have its two old forms too (RFC 9110, 5.6.7).
pub fn parse_retry_after(header: &str) -> Option<RetryAfter> {
    let header = header.trim();
    if !header.is_empty() && header.bytes().all(|byte| byte.is_ascii_digit()) {
        return header.parse().ok().map(RetryAfter::Seconds);
    }
    if let Ok(zoned) = jiff::fmt::rfc2822::parse(header) {
        return Some(RetryAfter::At(zoned.timestamp()));
    }
    let old_form = |format| jiff::civil::DateTime::strptime(format, header).ok();
    let date = old_form("%A, %d-%b-%y %H:%M:%S GMT").or_else(|| old_form("%a %b %e %H:%M:%S %Y"))?;
    date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| RetryAfter::At(zoned.timestamp()))
}

/// Bytes that are read of an error body, or of the payload of an exception frame (K42).
const MAX_BODY: usize = 64 * 1024;

/// A character that no readable text has: the body is compressed, or in another encoding.
fn is_unreadable(c: char) -> bool {
    c == char::REPLACEMENT_CHARACTER || (c.is_control() && !matches!(c, '\t' | '\r' | '\n'))
}

/// The contents of an error body, before it is classified.
struct ErrorBody<'a> {
    /// Exception names, the first source first.
    names: Vec<Cow<'a, str>>,
    reason: Option<Said>,
    /// Upstream's message; empty where the body has none that a person could read.
    message: Said,
    /// The text that the message patterns search: the message, else the whole body.
    text: String,
}

impl<'a> ErrorBody<'a> {
    fn read(name: Option<&'a str>, body: &[u8], known: &KnownSecrets) -> Self {
        let mut names: Vec<Cow<'a, str>> = name.map(Cow::Borrowed).into_iter().collect();
        let text = String::from_utf8_lossy(body.get(..MAX_BODY).unwrap_or(body));
        let Ok(Value::Object(top)) = serde_json::from_str::<Value>(&text) else {
            let reason = reason_token(&text).map(Said::from);
            let readable = !text.trim_start().starts_with(['<', '{', '[']) && !text.chars().any(is_unreadable);
            let message = if readable { Said::new(text.trim(), known) } else { Said::default() };
            return Self { names, reason, message, text: text.into_owned() };
        };
        let inner = top.get("error").and_then(Value::as_object);
        let member = |key: &str| {
            let found = top.get(key).and_then(Value::as_str);
            found.or_else(|| inner.and_then(|inner| inner.get(key)).and_then(Value::as_str)).map(str::to_owned)
        };
        names.extend(["__type", "code"].into_iter().filter_map(member).map(Cow::Owned));
        let reason = member("reason").filter(|reason| !reason.is_empty()).map(|reason| Said::new(reason, known));
        match member("message").or_else(|| member("Message")) {
            Some(message) => Self { names, reason, message: Said::new(message.as_str(), known), text: message },
            None => Self { names, reason, text: text.into_owned(), message: Said::default() },
        }
    }

    /// In the order of K43: first patterns, reason, the other patterns in the rows of the effective status and of "any
    /// status", the status alone.
    fn classify(&self, status: u16) -> FaultKind {
        let status = self.names.iter().find_map(|name| modelled_status(name)).unwrap_or(status);
        let text = self.searched();
        let pattern = |rows: &[Pattern]| {
            let row =
                rows.iter().find(|(at, words, _)| at.holds(status) && words.iter().all(|word| text.contains(word)));
            row.map(|(_, _, kind)| *kind)
        };
        pattern(&FIRST_PATTERNS)
            .or_else(|| self.reason.as_deref().and_then(kind_of_reason))
            .or_else(|| pattern(&PATTERNS))
            .unwrap_or_else(|| kind_of_status(status))
    }

    /// The exception names are searched as well: `ExpiredToken` is one.
    fn searched(&self) -> String {
        let mut text = self.text.to_ascii_lowercase();
        for name in &self.names {
            text.push('\n');
            text.push_str(&name.to_ascii_lowercase());
        }
        text
    }
}

/// The status that the model gives an exception, by its name in any spelling: `ns#NameException:http://…`.
fn modelled_status(name: &str) -> Option<u16> {
    Some(match short_name(name) {
        "ValidationException" => 400,
        "ServiceQuotaExceededException" => 402,
        "AccessDeniedException" => 403,
        "ResourceNotFoundException" => 404,
        "ConflictException" => 409,
        "ThrottlingException" => 429,
        "InternalServerException" => 500,
        "ServiceUnavailableException" => 503,
        _ => return None,
    })
}

/// The name without the namespace in front of `#` and without what follows a `:` (K15, K43).
fn short_name(name: &str) -> &str {
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    name.rsplit_once('#').map_or(name, |(_, name)| name).trim()
}

/// The reason tokens of K45, each with its row. A reason counts at any status (K43).
const REASONS: [(&str, FaultKind); 34] = [
    ("CONTENT_LENGTH_EXCEEDS_THRESHOLD", FaultKind::PromptTooLong),
    ("PROMPT_TOO_LONG", FaultKind::PromptTooLong),
    ("INVALID_MODEL_ID", FaultKind::UnknownModel),
    ("THINKING_SIGNATURE_INVALID", FaultKind::ThinkingSignature),
    ("REQUEST_BODY_INVALID", FaultKind::BadRequest),
    ("REQUEST_BODY_INVALID_JSON", FaultKind::BadRequest),
    ("TOOL_CONFIG_MISSING", FaultKind::BadRequest),
    ("TOOL_DUPLICATE", FaultKind::BadRequest),
    ("TOOL_SCHEMA_INVALID", FaultKind::BadRequest),
    ("TOOL_USE_RESULT_MISMATCH", FaultKind::BadRequest),
    ("INVALID_CONVERSATION_ID", FaultKind::BadRequest),
    ("INVALID_KMS_GRANT", FaultKind::BadRequest),
    ("IMAGE_COUNT_EXCEEDED", FaultKind::BadRequest),
    ("IMAGE_DIMENSION_EXCEEDED", FaultKind::BadRequest),
    ("IMAGE_FORMAT_UNSUPPORTED", FaultKind::BadRequest),
    ("IMAGE_MIME_MISMATCH", FaultKind::BadRequest),
    ("IMAGE_SIZE_EXCEEDED", FaultKind::BadRequest),
    ("DOCUMENT_COUNT_EXCEEDED", FaultKind::BadRequest),
    ("DOCUMENT_DUPLICATE_NAME", FaultKind::BadRequest),
    ("DOCUMENT_MAXIMUM_PAGES_EXCEEDED", FaultKind::BadRequest),
    ("DOCUMENT_MODEL_NOT_SUPPORTED", FaultKind::BadRequest),
    ("DOCUMENT_PASSWORD_PROTECTED", FaultKind::BadRequest),
    ("DOCUMENT_SIZE_EXCEEDED", FaultKind::BadRequest),
    ("CONVERSATION_LIMIT_EXCEEDED", FaultKind::BadRequest),
    ("TEMPORARILY_SUSPENDED", FaultKind::Suspended),
    ("FEATURE_NOT_SUPPORTED", FaultKind::Forbidden),
    ("MONTHLY_REQUEST_COUNT", FaultKind::QuotaMonth),
    ("OVERAGE_REQUEST_LIMIT_EXCEEDED", FaultKind::QuotaMonth),
    ("DAILY_REQUEST_COUNT", FaultKind::QuotaDay),
    ("INSUFFICIENT_MODEL_CAPACITY", FaultKind::ModelCapacity),
    ("MODEL_TEMPORARILY_UNAVAILABLE", FaultKind::ModelCapacity),
    ("USER_REQUEST_RATE_EXCEEDED", FaultKind::RateLimited),
    ("SERVICE_REQUEST_RATE_EXCEEDED", FaultKind::RateLimited),
    ("CREDIT_CONSUMPTION_RATE_EXCEEDED", FaultKind::RateLimited),
];

fn kind_of_reason(reason: &str) -> Option<FaultKind> {
    REASONS.iter().find(|(token, _)| *token == reason).map(|(_, kind)| *kind)
}

/// K42: the first known reason token that stands in a text as a whole word.
fn reason_token(text: &str) -> Option<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.into_iter().find(|word| kind_of_reason(word).is_some())
}

/// At which effective status a pattern counts.
#[derive(Clone, Copy)]
enum At {
    Any,
    One(u16),
    /// At the statuses with which a client's version is refused (K104).
    Gate,
    /// At the statuses with which a host says that it is given up (K119).
    GivenUp,
}

impl At {
    const fn holds(self, status: u16) -> bool {
        match self {
            Self::Any => true,
            Self::One(at) => at == status,
            Self::Gate => matches!(status, 400 | 403 | 426),
            Self::GivenUp => matches!(status, 403 | 404 | 410 | 500..=599),
        }
    }
}

/// Effective status, all of these words, row.
type Pattern = (At, &'static [&'static str], FaultKind);

/// Looked for before the reason, which may be `REQUEST_BODY_INVALID` for several of them (K43, K104, K128, K130).
const FIRST_PATTERNS: [Pattern; 9] = [
    (At::Gate, &["version of kiro", "no longer supported"], FaultKind::ClientVersion),
    (At::Gate, &["version of kiro", "update to the latest"], FaultKind::ClientVersion),
    (At::One(400), &["invalid `signature`"], FaultKind::ThinkingSignature),
    (At::One(400), &["invalid signature in thinking"], FaultKind::ThinkingSignature),
    (At::One(400), &["bound to a different conversation"], FaultKind::ThinkingSignature),
    (At::One(400), &["block that preceded this one"], FaultKind::ThinkingSignature),
    (At::One(400), &["differs from the one this block was created with"], FaultKind::ThinkingSignature),
    (At::One(400), &["additionalmodelrequestfields"], FaultKind::ModelFields),
    // Whatever status AWS's protocol gives it.
    (At::Any, &["unknownoperationexception"], FaultKind::Endpoint),
];

/// The message patterns of K45 in the table's order, those of two words before those of one (K90).
const PATTERNS: [Pattern; 23] = [
    (At::One(400), &["prompt is too long"], FaultKind::PromptTooLong),
    (At::One(400), &["input is too long"], FaultKind::PromptTooLong),
    (At::One(400), &["context limit exceeded"], FaultKind::PromptTooLong),
    (At::Any, &["failed to buffer the request body"], FaultKind::TooLarge),
    (At::One(400), &["invalid model"], FaultKind::UnknownModel),
    (At::One(400), &["select a different model"], FaultKind::UnknownModel),
    (At::One(400), &["profilearn is required"], FaultKind::ProfileArn),
    (At::One(400), &["invalid profilearn"], FaultKind::ProfileArn),
    (At::Any, &["expected toolresult blocks"], FaultKind::BadRequest),
    (At::One(403), &["suspended", "security precaution"], FaultKind::Suspended),
    (At::One(403), &["temporarily is suspended"], FaultKind::Suspended),
    (At::One(403), &["is temporarily suspended"], FaultKind::Suspended),
    (At::One(403), &["bearer token", "invalid"], FaultKind::TokenRejected),
    (At::One(403), &["bearer token", "expired"], FaultKind::TokenRejected),
    (At::One(403), &["expiredtoken"], FaultKind::TokenRejected),
    (At::One(403), &["invalid token"], FaultKind::TokenRejected),
    (At::One(429), &["suspicious activity"], FaultKind::Suspicious),
    (At::Any, &["request was throttled"], FaultKind::RateLimited),
    (At::Any, &["high volume of traffic"], FaultKind::ModelCapacity),
    (At::Any, &["unexpectedly high load"], FaultKind::ModelCapacity),
    (At::GivenUp, &["deprecated"], FaultKind::Endpoint),
    (At::GivenUp, &["deactivated"], FaultKind::Endpoint),
    (At::GivenUp, &["no longer available"], FaultKind::Endpoint),
];

/// K45: the effective status alone, for every status there is.
const fn kind_of_status(status: u16) -> FaultKind {
    match status {
        400 => FaultKind::BadRequest,
        401 => FaultKind::TokenRejected,
        402 => FaultKind::QuotaMonth,
        403 | 409 => FaultKind::Forbidden,
        408 => FaultKind::ServerError,
        413 => FaultKind::TooLarge,
        429 => FaultKind::RateLimited,
        529 => FaultKind::ModelCapacity,
        // A redirect is never followed (K13): the address is wrong.
        300..=499 => FaultKind::Endpoint,
        500..=599 => FaultKind::ServerError,
        // K44: a 200 that isn't an event stream and says nothing we know.
        _ => FaultKind::Protocol,
    }
}
