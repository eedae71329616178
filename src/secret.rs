//! `Secret`: a string that never shows itself.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

/// A credential: access token, refresh token, client secret, API key.
///
/// No `Display`, no `Serialize`; `Debug` prints `Secret(…)`. The only way to the text is [`Secret::expose`]. Clones share it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into().into())
    }

    /// The text itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty, which counts as absent.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Arc<str>> for Secret {
    fn from(text: Arc<str>) -> Self {
        Self(text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("ksk_1")), "Secret(…)");
        assert!(!format!("{:#?}", Some(Secret::new("ksk_1"))).contains("ksk"));
    }
}
