//! Which route a path names.

use http::Method;

use super::query::percent_decoded;

/// The existing service's prefix; every route below it is the same as without it.
const PREFIX: &str = "/claude-kiro-oauth";

/// A known path (contract/messages.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Messages,
    CountTokens,
    Models,
    Model(String),
    Health,
    Live,
    Metrics,
    Status,
    StatusEvents,
    EventLogging,
    Root,
}

impl Route {
    pub(super) fn of(path: &str) -> Option<Self> {
        let path = match path.strip_prefix(PREFIX) {
            Some("") => "/",
            Some(rest) if rest.starts_with('/') => rest,
            _ => path,
        };
        // A base address that ends in `/v1` already is the commonest mistake (M84).
        let path = path.strip_prefix("/v1").filter(|rest| rest.starts_with("/v1/")).unwrap_or(path);
        Some(match path {
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/models" => Self::Models,
            "/health" => Self::Health,
            "/health/live" => Self::Live,
            "/metrics" => Self::Metrics,
            "/status" => Self::Status,
            "/status/events" => Self::StatusEvents,
            _ if path.starts_with("/api/event_logging/") => Self::EventLogging,
            // The newest Claude Code asks for these first (C40).
            "/" | "/api/hello" => Self::Root,
            _ => {
                let id = path.strip_prefix("/v1/models/")?;
                if id.is_empty() || id.contains('/') {
                    return None;
                }
                // SDKs escape what a path can't hold, such as the brackets of `[1m]`.
                Self::Model(percent_decoded(id)?)
            }
        })
    }

    /// The kind of route, for logs and metrics: never what the client wrote.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::Models | Self::Model(_) => "models",
            Self::Metrics => "metrics",
            Self::Status | Self::StatusEvents => "status",
            Self::Health | Self::Live | Self::EventLogging | Self::Root => "other",
        }
    }

    pub(super) fn allows(&self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }

    pub(super) fn allow(&self) -> &'static str {
        match self {
            Self::Messages | Self::CountTokens | Self::EventLogging => "POST, OPTIONS",
            Self::Models
            | Self::Model(_)
            | Self::Health
            | Self::Live
            | Self::Metrics
            | Self::Status
            | Self::StatusEvents
            | Self::Root => "GET, HEAD, OPTIONS",
        }
    }

    /// Whether it needs a client key (M2): preflight, `HEAD /`, `/health`, `/health/live` and event logging don't.
    pub(super) fn needs_key(&self) -> bool {
        !matches!(self, Self::Health | Self::Live | Self::EventLogging | Self::Root)
    }

    /// Whether it shows this server to its operator: on the same machine it needs no key (M2).
    pub(super) fn is_for_the_operator(&self) -> bool {
        matches!(self, Self::Metrics | Self::Status | Self::StatusEvents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_routes_also_behind_a_prefix_or_a_doubled_v1_m84() {
        assert_eq!(Route::of("/v1/messages"), Some(Route::Messages));
        assert_eq!(Route::of("/claude-kiro-oauth/v1/messages"), Some(Route::Messages));
        assert_eq!(Route::of("/claude-kiro-oauthx/v1/messages"), None);
        assert_eq!(Route::of("/v1/models/claude-sonnet-4-5"), Some(Route::Model("claude-sonnet-4-5".into())));
        assert_eq!(Route::of("/v1/models/claude-opus-5%5B1m%5D"), Some(Route::Model("claude-opus-5[1m]".into())));
        assert_eq!(Route::of("/v1/models/a%2"), None);
        assert_eq!(Route::of("/nope"), None);
        assert_eq!(Route::of("/v1/v1/messages"), Some(Route::Messages));
        assert_eq!(Route::of("/claude-kiro-oauth/v1/v1/messages/count_tokens"), Some(Route::CountTokens));
        assert_eq!(Route::of("/v1/v1/v1/messages"), None);
        assert_eq!(Route::of("/api/event_logging/v2/batch"), Some(Route::EventLogging));
        assert!(!Route::Messages.allows(&Method::GET) && Route::Root.allows(&Method::HEAD));
    }
}
