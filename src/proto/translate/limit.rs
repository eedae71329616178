//! `max_tokens`, where the gateway keeps it (M83).

/// How much longer than `max_tokens` the estimate may be, in percent: it may itself be wrong by an eighth.
const TOLERANCE: u64 = 125;
/// Up to so many tokens nothing is tolerated.
const EXACT: u64 = 16;
/// The room that one more word and the blank before it need, in hundredths of a token.
const WORD: u64 = 97;
/// A word that goes on for so much longer is cut within, in hundredths of a token.
const LONGEST_WORD: u64 = 1_600;

/// The end of an answer's text by our estimate. Figures are hundredths of a token.
#[derive(Debug, Clone, Copy)]
pub struct TokenLimit {
    /// The estimate over which each character is looked at.
    near: u64,
    most: u64,
    /// The most that the usage shows of an answer that ended here.
    shown: u64,
    /// The output that doesn't count.
    beside: u64,
    /// A word has gone out.
    word: bool,
}

impl TokenLimit {
    /// No limit.
    pub const NONE: Self = Self { near: u64::MAX, most: u64::MAX, shown: u64::MAX, beside: 0, word: true };

    /// The limit for a request's `max_tokens`.
    pub fn of(max_tokens: Option<u64>) -> Self {
        match max_tokens {
            None => Self::NONE,
            Some(tokens @ ..=EXACT) => {
                Self { near: 0, most: tokens * 100, shown: tokens * 100, beside: 0, word: false }
            }
            Some(tokens) => {
                let most = tokens.saturating_mul(TOLERANCE);
                Self { near: most - WORD, most, shown: tokens.saturating_mul(100), beside: 0, word: true }
            }
        }
    }

    /// Whether a text that makes the estimate this high needs no look.
    #[inline]
    pub fn is_far(&self, estimate: u64) -> bool {
        estimate <= self.near
    }

    /// Whether nothing more may begin.
    pub fn is_over(&self, estimate: u64) -> bool {
        estimate > self.most
    }

    /// Whether the text ends before this character, by the estimate of all before it. It ends between two words, and
    /// never before the first one. Each ideograph is a word.
    pub fn ends_before(&mut self, next: char, estimate: u64) -> bool {
        let is_border = next.is_whitespace() || next >= '\u{2e80}';
        let ends = self.word
            && if is_border {
                estimate.saturating_add(WORD) > self.most
            } else {
                estimate > self.most.saturating_add(LONGEST_WORD)
            };
        self.word |= !next.is_whitespace();
        ends
    }

    /// The output that the usage shows when the answer ended here, in tokens: no more than was asked for.
    pub fn shown(&self, estimate: u64) -> u64 {
        estimate.min(self.shown).div_ceil(100)
    }

    /// What of the estimate counts for `max_tokens`.
    pub fn counted(&self, estimate: u64) -> u64 {
        estimate.saturating_sub(self.beside)
    }

    /// Output that doesn't count was added to the estimate.
    pub fn leave_out(&mut self, hundredths: u64) {
        self.beside = self.beside.saturating_add(hundredths);
        self.most = self.most.saturating_add(hundredths);
        self.shown = self.shown.saturating_add(hundredths);
        if self.near > 0 {
            self.near = self.near.saturating_add(hundredths);
        }
    }
}
