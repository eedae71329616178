//! `Secret`: a string that never shows itself.

use std::fmt;

use serde::Deserialize;

/// A credential: access token, refresh token, client secret, API key.
///
/// No `Display`, no `Serialize`; `Debug` prints `Secret(…)`. The only way to the text is [`Secret::expose`].
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
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
        Self(text)
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
