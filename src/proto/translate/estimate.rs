//! The token estimator (TU5–TU7).

use crate::proto::messages::request::Request;

/// Counts tokens of text without a tokenizer: a weight per character by its class and the class before it (TU5).
///
/// Sums are exact, in hundredths of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Estimator {
    hundredths: u64,
}

impl Estimator {
    /// Counts text as the continuation of the current piece.
    pub fn text(&mut self, text: &str) {
        let _ = text;
    }

    /// Counts the content of a JSON string literal (without its quotes) as the continuation of the current piece:
    /// an escape counts as the character it stands for (TS23). Neither an escape nor a UTF-8 sequence may be cut
    /// between two calls.
    pub fn literal(&mut self, literal: &[u8]) {
        let _ = literal;
    }

    /// Ends the current piece: the next character has nothing before it.
    pub fn end_piece(&mut self) {}

    /// Adds a fixed amount, in hundredths of a token.
    pub fn add(&mut self, hundredths: u64) {
        self.hundredths = self.hundredths.saturating_add(hundredths);
    }

    /// The exact sum so far, in hundredths of a token.
    pub fn hundredths(&self) -> u64 {
        self.hundredths
    }

    /// The sum so far in tokens, rounded up.
    pub fn tokens(&self) -> u64 {
        self.hundredths.div_ceil(100)
    }
}

/// The estimate of a whole request in tokens, at least 1 (TU7): `count_tokens`, and the total of `message_start`.
pub fn request_tokens(request: &Request<'_>) -> u64 {
    let _ = request;
    1
}
