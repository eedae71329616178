//! Names that were passed on to upstream in vain (K89, TR36).

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// How long such a name is answered without a call.
const NAME_REFUSED: SignedDuration = SignedDuration::from_mins(10);
/// Most such names.
const MOST_NAMES: usize = 256;

/// Names that were passed on to upstream by a rule and not by the table (TR36, K89).
#[derive(Debug, Clone, Default)]
pub struct RefusedNames {
    /// In order of their refusal.
    names: VecDeque<(String, Timestamp)>,
}

impl RefusedNames {
    /// Every account that could be asked has said no, or two have and none ever yes.
    pub fn refuse(&mut self, kiro_id: &str, now: Timestamp) {
        self.serves(kiro_id);
        if self.names.len() == MOST_NAMES {
            self.names.pop_front();
        }
        self.names.push_back((kiro_id.to_owned(), now + NAME_REFUSED));
    }

    /// An account has answered with it.
    pub fn serves(&mut self, kiro_id: &str) {
        self.names.retain(|(name, _)| name != kiro_id);
    }

    /// Whether it is answered without a call.
    pub fn is_refused(&self, kiro_id: &str, now: Timestamp) -> bool {
        self.names.iter().any(|(name, until)| name == kiro_id && now < *until)
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + 60 * minutes).unwrap()
    }

    #[test]
    fn k89_p48_refused_names_have_a_bound_and_a_time() {
        let mut names = RefusedNames::default();
        for n in 0..1000 {
            names.refuse(&format!("claude-a-{n}"), at(0));
        }
        assert_eq!(names.names.len(), 256);
        assert!(names.is_refused("claude-a-999", at(9)) && !names.is_refused("claude-a-999", at(10)));
        assert!(!names.is_refused("claude-a-0", at(0)));
        names.serves("claude-a-999");
        assert!(!names.is_refused("claude-a-999", at(0)));
        names.refuse("claude-a-998", at(5));
        assert!(names.is_refused("claude-a-998", at(14)) && names.names.len() == 255);
    }
}
