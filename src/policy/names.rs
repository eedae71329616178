//! Names that pass to upstream by rule and not by the table (TR36): which of them were refused (K89), and which of them
//! the log has named.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// How long a name that was refused is answered without a call.
const REFUSED: SignedDuration = SignedDuration::from_mins(10);
/// Time between two warnings about a name.
const TOLD: SignedDuration = SignedDuration::from_hours(24);
/// Most names of either kind.
const MOST_NAMES: usize = 256;

/// The memory of names that passed.
#[derive(Debug, Clone, Default)]
pub struct PassedNames {
    refused: DatedNames,
    told: DatedNames,
}

impl PassedNames {
    /// Every askable account has refused it, or two have and none has ever served it.
    pub fn refuse(&mut self, kiro_id: &str, now: Timestamp) {
        self.refused.note(kiro_id, now + REFUSED);
    }

    /// An account has answered with it.
    pub fn serves(&mut self, kiro_id: &str) {
        self.refused.forget(kiro_id);
    }

    /// Whether it is answered without a call.
    pub fn is_refused(&self, kiro_id: &str, now: Timestamp) -> bool {
        self.refused.has(kiro_id, now)
    }

    /// Whether no name is refused.
    pub fn is_none_refused(&self) -> bool {
        self.refused.0.is_empty()
    }

    /// The name goes upstream. True: worth a warning, once a day for each name.
    pub fn passes(&mut self, kiro_id: &str, now: Timestamp) -> bool {
        let is_new = !self.told.has(kiro_id, now);
        if is_new {
            self.told.note(kiro_id, now + TOLD);
        }
        is_new
    }
}

/// Names, each until its time, in the order in which they came; the oldest goes first.
#[derive(Debug, Clone, Default)]
// Bound: names of models that passed: told, and refused | MOST_NAMES | the oldest goes
struct DatedNames(VecDeque<(String, Timestamp)>);

impl DatedNames {
    fn note(&mut self, name: &str, until: Timestamp) {
        self.forget(name);
        if self.0.len() == MOST_NAMES {
            self.0.pop_front();
        }
        self.0.push_back((name.to_owned(), until));
    }

    fn forget(&mut self, name: &str) {
        self.0.retain(|(noted, _)| noted != name);
    }

    fn has(&self, name: &str, now: Timestamp) -> bool {
        self.0.iter().any(|(noted, until)| noted == name && now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + 60 * minutes).unwrap()
    }

    #[test]
    fn refused_names_are_bounded_and_expire_k89_p48() {
        let mut names = PassedNames::default();
        for n in 0..1000 {
            names.refuse(&format!("claude-a-{n}"), at(0));
        }
        assert_eq!(names.refused.0.len(), 256);
        assert!(names.is_refused("claude-a-999", at(9)) && !names.is_refused("claude-a-999", at(10)));
        assert!(!names.is_refused("claude-a-0", at(0)));
        names.serves("claude-a-999");
        assert!(!names.is_refused("claude-a-999", at(0)));
        names.refuse("claude-a-998", at(5));
        assert!(names.is_refused("claude-a-998", at(14)) && names.refused.0.len() == 255);
    }

    #[test]
    fn a_name_is_warned_about_once_a_day_tr36() {
        let mut names = PassedNames::default();
        let day = 24 * 60;
        assert!(names.passes("claude-opus-6", at(0)) && names.passes("claude-opus-7", at(0)));
        assert!(!names.passes("claude-opus-6", at(1)) && !names.passes("claude-opus-6", at(day - 1)));
        assert!(names.passes("claude-opus-6", at(day)), "the next day, however often it went out");
        assert!(!names.passes("claude-opus-6", at(day + 1)));
        for n in 0..1000 {
            names.passes(&format!("claude-a-{n}"), at(0));
        }
        assert_eq!(names.told.0.len(), 256);
    }
}
