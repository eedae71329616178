//! The options of a call.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::keys::KeyPlace;
use crate::proto::messages::request::{Purpose, SystemMode};

/// The options of a call, beside its body.
#[derive(Debug, Clone)]
pub struct Call {
    /// The id of the request; `[A-Za-z0-9._-]{1,128}`, else a new one is made.
    pub request_id: Option<String>,
    /// The client's own id, which is only logged.
    pub client_request_id: Option<String>,
    /// The header `x-claude-code-session-id` (TR48).
    pub session: Option<String>,
    /// The header `x-session-id`, which a gateway in front of this one can set (TR48).
    pub gateway_session: Option<String>,
    /// [`client_key_hash`] of the client key that was presented: conversations of two keys never meet (TR48).
    pub client_key: Option<[u8; 32]>,
    /// The place that a named client key gave it (M88).
    pub key_place: Option<Arc<KeyPlace>>,
    /// Use this account only, without selection and failover (N5).
    pub account_id: Option<String>,
    /// Operator's system text (N13).
    pub system: Option<(SystemMode, String)>,
    /// Record the outcome on the account.
    pub record: bool,
    /// What need not be in the request.
    pub lenient: Leniency,
    /// The header `traceparent` (W3C), which follows a request over several programs (feature `otel`).
    pub trace_parent: Option<String>,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            request_id: None,
            client_request_id: None,
            session: None,
            gateway_session: None,
            client_key: None,
            key_place: None,
            account_id: None,
            system: None,
            record: true,
            lenient: Leniency::default(),
            trace_parent: None,
        }
    }
}

/// What a host program lets its clients leave to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leniency {
    /// The model for every name that isn't known (N90); none: `KIRO_MODEL_FALLBACK` alone.
    pub model: Option<Arc<str>>,
    /// A missing `max_tokens` is the model's maximum (N96).
    pub max_tokens: bool,
    /// Names of its own and the models that they stand for, the first of a name counts (N98).
    pub names: Arc<[(String, String)]>,
}

impl Leniency {
    pub(crate) const fn purpose(&self) -> Purpose {
        if self.max_tokens { Purpose::Lenient } else { Purpose::Messages }
    }

    /// The model that a name of the host program's stands for.
    pub(crate) fn meant(&self, name: &str) -> Option<&str> {
        self.names.iter().find(|(own, _)| own == name).map(|(_, model)| model.as_str())
    }
}

/// How [`Call::client_key`] names a key.
pub fn client_key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}
