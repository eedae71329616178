//! One error with blame, verdict and a stable code.
//!
//! Its projections (code, status, API error type, origin, whether to try again) are one row each of a match without a
//! wildcard, so a new code must say all of them; `tests` hold the table of contract/node.md.

use std::fmt;
use std::time::Duration;

use crate::config::ConfigError;
use crate::proto::kiro::fault::FaultKind;
use crate::proto::messages::error::{ApiError, Cause, ErrorType};
use crate::proto::messages::request::RequestError;
use crate::proto::record::Note;

/// A stable code; programs branch on it (N40).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Shape of the request, or upstream's 400.
    InvalidRequest,
    /// The prompt doesn't fit the model's window.
    PromptTooLong,
    /// Client key missing or wrong.
    Authentication,
    /// Model, route or account unknown.
    NotFound,
    /// Body over the limit.
    RequestTooLarge,
    /// Every attempt was rate limited.
    RateLimited,
    /// The caller went away.
    Cancelled,
    /// Upstream failed or refused the accounts tried.
    Upstream,
    /// The last attempt ran into a time limit.
    UpstreamTimeout,
    /// A defect of ours.
    Internal,
    /// Upstream refuses this program's client version (K106).
    ClientRefused,
    /// No account can be selected.
    NoAccount,
    /// There is no first snapshot of the store yet.
    StoreUnavailable,
    /// Upstream has no capacity, `KIRO_MAX_CONNS` is reached, or there is no memory for a body (M90).
    Overloaded,
    /// Pinned calls: the account's token was rejected.
    AccountUnauthorized,
    /// Pinned calls: the account may not do this.
    AccountForbidden,
    /// Pinned calls: the account is suspended.
    AccountSuspended,
    /// Pinned calls: the account's quota is used up.
    QuotaExhausted,
    /// Call after close.
    Closed,
    /// A mistake in the configuration.
    Config,
}

/// Who must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The caller.
    Client,
    /// Kiro, or an account there.
    Upstream,
    /// This process or its store.
    Internal,
}

impl Code {
    /// Every code, for tables and documentation.
    pub const ALL: [Code; 20] = [
        Code::InvalidRequest,
        Code::PromptTooLong,
        Code::Authentication,
        Code::NotFound,
        Code::RequestTooLarge,
        Code::RateLimited,
        Code::Cancelled,
        Code::Upstream,
        Code::UpstreamTimeout,
        Code::Internal,
        Code::ClientRefused,
        Code::NoAccount,
        Code::StoreUnavailable,
        Code::Overloaded,
        Code::AccountUnauthorized,
        Code::AccountForbidden,
        Code::AccountSuspended,
        Code::QuotaExhausted,
        Code::Closed,
        Code::Config,
    ];

    /// `KIRO_…`, the code as JavaScript and logs have it.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status, always 400–599.
    pub fn status(self) -> u16 {
        self.row().1
    }

    /// Anthropic's error type.
    pub fn error_type(self) -> ErrorType {
        self.row().2
    }

    /// Who has to act.
    pub fn origin(self) -> Origin {
        self.row().3
    }

    /// Whether the same call may succeed later.
    pub fn retryable(self) -> bool {
        self.row().4
    }

    /// Its name, HTTP status, Anthropic's type, who has to act, and whether the same call may succeed later.
    const fn row(self) -> (&'static str, u16, ErrorType, Origin, bool) {
        match self {
            Code::InvalidRequest => ("KIRO_INVALID_REQUEST", 400, ErrorType::InvalidRequest, Origin::Client, false),
            Code::PromptTooLong => ("KIRO_PROMPT_TOO_LONG", 400, ErrorType::InvalidRequest, Origin::Client, false),
            Code::Authentication => ("KIRO_AUTHENTICATION", 401, ErrorType::Authentication, Origin::Client, false),
            Code::NotFound => ("KIRO_NOT_FOUND", 404, ErrorType::NotFound, Origin::Client, false),
            Code::RequestTooLarge => ("KIRO_REQUEST_TOO_LARGE", 413, ErrorType::RequestTooLarge, Origin::Client, false),
            Code::RateLimited => ("KIRO_RATE_LIMITED", 429, ErrorType::RateLimit, Origin::Upstream, true),
            Code::Cancelled => ("KIRO_CANCELLED", 499, ErrorType::Api, Origin::Client, false),
            Code::Upstream => ("KIRO_UPSTREAM", 500, ErrorType::Api, Origin::Upstream, true),
            Code::UpstreamTimeout => ("KIRO_UPSTREAM_TIMEOUT", 504, ErrorType::Timeout, Origin::Upstream, true),
            Code::Internal => ("KIRO_INTERNAL", 500, ErrorType::Api, Origin::Internal, false),
            Code::ClientRefused => ("KIRO_CLIENT_REFUSED", 500, ErrorType::Api, Origin::Internal, false),
            Code::NoAccount => ("KIRO_NO_ACCOUNT", 503, ErrorType::Overloaded, Origin::Internal, true),
            Code::StoreUnavailable => ("KIRO_STORE_UNAVAILABLE", 503, ErrorType::Overloaded, Origin::Internal, true),
            Code::Overloaded => ("KIRO_OVERLOADED", 529, ErrorType::Overloaded, Origin::Upstream, true),
            Code::AccountUnauthorized => {
                ("KIRO_ACCOUNT_UNAUTHORIZED", 401, ErrorType::Authentication, Origin::Upstream, false)
            }
            Code::AccountForbidden => ("KIRO_ACCOUNT_FORBIDDEN", 403, ErrorType::Permission, Origin::Upstream, false),
            Code::AccountSuspended => ("KIRO_ACCOUNT_SUSPENDED", 403, ErrorType::Permission, Origin::Upstream, false),
            Code::QuotaExhausted => ("KIRO_QUOTA_EXHAUSTED", 402, ErrorType::Billing, Origin::Upstream, false),
            Code::Closed => ("KIRO_CLOSED", 503, ErrorType::Overloaded, Origin::Client, false),
            Code::Config => ("KIRO_CONFIG", 500, ErrorType::Api, Origin::Client, false),
        }
    }

    /// The code that a final fault of an unpinned request ends in (K45, column "client").
    pub fn of_fault(kind: FaultKind) -> Code {
        match kind {
            FaultKind::ClientVersion => Code::ClientRefused,
            FaultKind::PromptTooLong => Code::PromptTooLong,
            FaultKind::TooLarge => Code::RequestTooLarge,
            FaultKind::UnknownModel => Code::NotFound,
            FaultKind::ThinkingSignature | FaultKind::ModelFields | FaultKind::BadRequest => Code::InvalidRequest,
            FaultKind::QuotaMonth | FaultKind::QuotaDay => Code::NoAccount,
            FaultKind::Suspicious | FaultKind::RateLimited => Code::RateLimited,
            FaultKind::ModelCapacity => Code::Overloaded,
            FaultKind::Timeout => Code::UpstreamTimeout,
            FaultKind::ProfileArn
            | FaultKind::TokenRejected
            | FaultKind::Suspended
            | FaultKind::Forbidden
            | FaultKind::ServerError
            | FaultKind::Network
            | FaultKind::Unreachable
            | FaultKind::Protocol
            | FaultKind::Endpoint => Code::Upstream,
        }
    }

    /// The code that a fault of a pinned call ends in, where it differs (contract/node.md).
    pub fn of_pinned_fault(kind: FaultKind) -> Code {
        match kind {
            FaultKind::TokenRejected => Code::AccountUnauthorized,
            FaultKind::Forbidden => Code::AccountForbidden,
            FaultKind::Suspended => Code::AccountSuspended,
            FaultKind::QuotaMonth | FaultKind::QuotaDay => Code::QuotaExhausted,
            other => Code::of_fault(other),
        }
    }
}

/// A failed pinned call's verdict on its account, for a program that keeps the accounts' state itself (N8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountFailure {
    /// There is no such account.
    Unknown,
    /// There is no access token: no credential, or its refresh failed for now.
    NoToken,
    /// It is out until a person acts or its quota is renewed; with the mark that says so.
    Marked(Note),
}

/// Why a call failed. The message is one sentence for a person and holds no secret (M63, N41).
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    message: String,
    retry_after: Option<Duration>,
    lasting: bool,
    fault: Option<FaultKind>,
    account: Option<String>,
    account_failure: Option<AccountFailure>,
    cause: Option<Cause>,
}

impl Error {
    /// An error of this code with this sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            retry_after: None,
            lasting: false,
            fault: None,
            account: None,
            account_failure: None,
            cause: None,
        }))
    }

    /// Adds when a retry is worthwhile.
    #[must_use]
    pub fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.0.retry_after = after;
        self
    }

    /// Marks an early retry as pointless: `500 api_error` instead of the code's own 503, which clients retry whatever
    /// the headers say (M85).
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.0.lasting = true;
        self
    }

    /// Adds the upstream fault that it ended in.
    #[must_use]
    pub fn with_fault(mut self, kind: FaultKind) -> Self {
        self.0.fault = Some(kind);
        self
    }

    /// Adds the account that was asked by name.
    #[must_use]
    pub fn with_account(mut self, id: &str) -> Self {
        self.0.account = Some(id.to_owned());
        self
    }

    /// Adds the failure's verdict on that account.
    #[must_use]
    pub fn with_account_failure(mut self, account_failure: Option<AccountFailure>) -> Self {
        self.0.account_failure = account_failure;
        self
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        if self.0.lasting { 500 } else { self.0.code.status() }
    }

    /// Anthropic's error type.
    pub fn error_type(&self) -> ErrorType {
        if self.0.lasting { ErrorType::Api } else { self.0.code.error_type() }
    }

    /// Who has to act.
    pub fn origin(&self) -> Origin {
        self.0.code.origin()
    }

    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        !self.0.lasting && self.0.code.retryable()
    }

    /// When a retry is worthwhile, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The upstream fault it ended in, if there was one.
    pub fn fault(&self) -> Option<FaultKind> {
        self.0.fault
    }

    /// The whole id of the account that was asked by name, for the caller that named it.
    pub fn account(&self) -> Option<&str> {
        self.0.account.as_deref()
    }

    /// The failure's verdict on that account.
    pub fn account_failure(&self) -> Option<&AccountFailure> {
        self.0.account_failure.as_ref()
    }

    /// As the Messages API says it.
    pub fn api_error(&self) -> ApiError {
        let error = ApiError::with_status(self.status(), self.error_type(), self.0.message.clone());
        ApiError { cause: self.0.cause, ..error }
    }

    /// The headers that belong to the answer beside the usual ones: `retry-after` and `x-should-retry` (M61,
    /// M85).
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        match self.0.code.status() {
            503 if self.0.lasting => {
                headers.push(("retry-after", self.wait_seconds().to_string()));
                headers.push(("x-should-retry", "false".to_owned()));
            }
            500 if self.0.lasting => headers.push(("x-should-retry", "false".to_owned())),
            _ if self.0.code == Code::ClientRefused => headers.push(("x-should-retry", "false".to_owned())),
            400 | 401 | 402 | 403 | 404 | 405 | 413 => headers.push(("x-should-retry", "false".to_owned())),
            529 if self.0.retry_after.is_some() => headers.push(("retry-after", self.wait_seconds().to_string())),
            429 | 503 => {
                let seconds = self.wait_seconds();
                headers.push(("retry-after", seconds.to_string()));
                if seconds > 60 {
                    headers.push(("x-should-retry", "false".to_owned()));
                }
            }
            _ => {}
        }
        headers
    }

    /// `retry-after`: whole seconds, from 1 to an hour (M61).
    fn wait_seconds(&self) -> u128 {
        self.0.retry_after.unwrap_or(Duration::from_secs(60)).as_millis().div_ceil(1000).clamp(1, 3600)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        let code = match error.kind {
            ErrorType::NotFound => Code::NotFound,
            ErrorType::RequestTooLarge => Code::RequestTooLarge,
            _ => Code::InvalidRequest,
        };
        let mut refused = Error::new(code, error.to_string());
        refused.0.cause = error.cause;
        refused
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::new(Code::Config, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of contract/node.md.
    #[test]
    fn codes_follow_the_table_of_the_contract() {
        let table = [
            ("KIRO_INVALID_REQUEST", 400, "invalid_request_error", false),
            ("KIRO_PROMPT_TOO_LONG", 400, "invalid_request_error", false),
            ("KIRO_AUTHENTICATION", 401, "authentication_error", false),
            ("KIRO_NOT_FOUND", 404, "not_found_error", false),
            ("KIRO_REQUEST_TOO_LARGE", 413, "request_too_large", false),
            ("KIRO_RATE_LIMITED", 429, "rate_limit_error", true),
            ("KIRO_CANCELLED", 499, "api_error", false),
            ("KIRO_UPSTREAM", 500, "api_error", true),
            ("KIRO_UPSTREAM_TIMEOUT", 504, "timeout_error", true),
            ("KIRO_INTERNAL", 500, "api_error", false),
            ("KIRO_CLIENT_REFUSED", 500, "api_error", false),
            ("KIRO_NO_ACCOUNT", 503, "overloaded_error", true),
            ("KIRO_STORE_UNAVAILABLE", 503, "overloaded_error", true),
            ("KIRO_OVERLOADED", 529, "overloaded_error", true),
            ("KIRO_ACCOUNT_UNAUTHORIZED", 401, "authentication_error", false),
            ("KIRO_ACCOUNT_FORBIDDEN", 403, "permission_error", false),
            ("KIRO_ACCOUNT_SUSPENDED", 403, "permission_error", false),
            ("KIRO_QUOTA_EXHAUSTED", 402, "billing_error", false),
            ("KIRO_CLOSED", 503, "overloaded_error", false),
            ("KIRO_CONFIG", 500, "api_error", false),
        ];
        let ours: Vec<_> =
            Code::ALL.iter().map(|c| (c.as_str(), c.status(), c.error_type().as_str(), c.retryable())).collect();
        assert_eq!(ours, table);
    }

    #[test]
    fn messages_to_clients_are_bounded_ts25() {
        // The list of a large model table, say (M20).
        let known = vec!["claude-x"; 1_000].join(", ");
        let kind = ErrorType::NotFound;
        let sentence = format!("unknown model 'x'. Known: {known}");
        let refused = Error::from(RequestError { kind, path: "model".into(), sentence, cause: None });
        let told = refused.api_error();
        assert_eq!((told.status, told.message.chars().count()), (404, 1_000));
        assert!(told.message.starts_with("model: unknown model 'x'. Known: claude-x, "));
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up_and_bounded_m61() {
        let after = |d: Option<Duration>| Error::new(Code::NoAccount, "x").with_retry_after(d).headers();
        assert_eq!(after(Some(Duration::from_millis(6_001))), [("retry-after", "7".to_owned())]);
        assert_eq!(after(Some(Duration::ZERO)), [("retry-after", "1".to_owned())]);
        assert_eq!(after(None), [("retry-after", "60".to_owned())]);
        let long = after(Some(Duration::from_secs(9999)));
        assert_eq!(long, [("retry-after", "3600".to_owned()), ("x-should-retry", "false".to_owned())]);
    }
}
