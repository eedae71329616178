//! Effort, one scale on both sides: `output_config.effort` of a client (M27), the levels of an upstream model (TR39).

use serde::Deserialize;

/// How much a model thinks, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// No reasoning at all; clients ask for it in another way.
    None,
    /// `low`.
    Low,
    /// `medium`.
    Medium,
    /// `high`.
    High,
    /// `xhigh`.
    XHigh,
    /// `max`.
    Max,
}

impl Effort {
    /// All of them, least first.
    pub const ALL: [Self; 6] = [Self::None, Self::Low, Self::Medium, Self::High, Self::XHigh, Self::Max];

    /// The efforts a client may ask for (M27), least first.
    pub const ASKED: [Self; 5] = [Self::Low, Self::Medium, Self::High, Self::XHigh, Self::Max];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::XHigh => "xhigh",
            Self::Max => "max",
        }
    }

    /// The effort of a word on the wire.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effort| effort.as_str() == word)
    }
}
