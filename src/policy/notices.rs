//! What is worth waking somebody for, and how often it is said.
//!
//! Every few seconds the state of each subject (an account, the pool, the client version, the store) is compared with
//! what was last said of it. What differs is said, at most once in [`PAUSE`] for each kind and subject; what had to be
//! left out is said later, if it still differs then. So nothing is queued, and the receiver always hears the last word.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The same kind is said of the same subject at most once in this time.
pub const PAUSE: Duration = Duration::from_secs(300);
/// A store that is away for less isn't spoken of.
pub const AWAY: Duration = Duration::from_secs(60);

/// What a notice is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The account with this id.
    Account(String),
    /// All accounts together.
    Pool,
    /// The version with which we present ourselves to Kiro.
    ClientVersion,
    /// Redis, or the file.
    Store,
}

/// How a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// Nothing is wrong.
    Fine,
    /// An account is out until a person acts.
    Ejected,
    /// Kiro has suspended the account.
    Suspended,
    /// An account's quota is used up.
    OutOfQuota,
    /// An account rests because Kiro suspects it.
    Suspicious,
    /// No account can serve.
    Empty,
    /// Fewer accounts than wanted can serve.
    Low,
    /// Kiro refuses the client version.
    Refused,
    /// The store can't be reached.
    Lost,
}

impl Condition {
    /// The `kind` of a notice that says so of this subject.
    pub fn kind(self, of: &Subject) -> &'static str {
        match (self, of) {
            (Self::Ejected, _) => "account_ejected",
            (Self::Suspended, _) => "account_suspended",
            (Self::OutOfQuota, _) => "account_out_of_quota",
            (Self::Suspicious, _) => "account_suspicious",
            (Self::Empty, _) => "pool_empty",
            (Self::Low, _) => "pool_low",
            (Self::Refused, _) => "client_version_refused",
            (Self::Lost, _) => "store_lost",
            (Self::Fine, Subject::Account(_)) => "account_back",
            (Self::Fine, Subject::Pool) => "pool_back",
            (Self::Fine, Subject::ClientVersion) => "client_version_taken",
            (Self::Fine, Subject::Store) => "store_back",
        }
    }
}

/// Every kind of notice, for documents and tests.
pub const KINDS: [&str; 12] = [
    "account_ejected",
    "account_suspended",
    "account_out_of_quota",
    "account_suspicious",
    "account_back",
    "pool_empty",
    "pool_low",
    "pool_back",
    "client_version_refused",
    "client_version_taken",
    "store_lost",
    "store_back",
];

/// The present state.
#[derive(Debug, Default)]
pub struct Facts {
    /// Every account of the pool. None: its state says nothing new, such as a short rest after a rate limit.
    pub accounts: BTreeMap<String, Option<Condition>>,
    /// Accounts that can serve now.
    pub serving: usize,
    /// Fewer are too few (`KIRO_WEBHOOK_MIN_ACCOUNTS`).
    pub wanted: usize,
    /// Kiro refuses the client version.
    pub version_refused: bool,
    /// The store can't be reached.
    pub store_away: bool,
}

/// What was said of one subject.
#[derive(Debug)]
struct NoticeHistory {
    last: Condition,
    /// When each condition was last said.
    at: Vec<(Condition, Duration)>,
}

impl NoticeHistory {
    fn may_say(&self, condition: Condition, now: Duration) -> bool {
        let said = self.at.iter().find(|(said, _)| *said == condition);
        said.is_none_or(|(_, at)| now.saturating_sub(*at) >= PAUSE)
    }

    fn say(&mut self, condition: Condition, now: Duration) {
        self.last = condition;
        self.at.retain(|(said, _)| *said != condition);
        self.at.push((condition, now));
    }
}

/// What was said so far. One entry for each account of the pool and three more; each holds at most one time for each
/// condition.
#[derive(Debug, Default)]
pub struct Notices {
    // Bound: what was told to the webhook | an account each, and three more | it goes with its account
    told: HashMap<Subject, NoticeHistory>,
    away_since: Option<Duration>,
    began: bool,
}

impl Notices {
    /// What is to be said at `now` (any clock that doesn't go back), at most `room` of it; the rest comes next time. How
    /// the accounts are at the first call is no news.
    pub fn look(&mut self, facts: &Facts, now: Duration, room: usize) -> Vec<(Subject, Condition)> {
        let first = !std::mem::replace(&mut self.began, true);
        self.told.retain(|subject, _| match subject {
            Subject::Account(id) => facts.accounts.contains_key(id),
            Subject::Pool | Subject::ClientVersion | Subject::Store => true,
        });
        let mut all = vec![
            (Subject::Store, self.store(facts.store_away, now)),
            (Subject::ClientVersion, Some(if facts.version_refused { Condition::Refused } else { Condition::Fine })),
            (Subject::Pool, Some(pool(facts))),
        ];
        let accounts = facts.accounts.iter().map(|(id, condition)| (Subject::Account(id.clone()), *condition));
        all.extend(accounts);
        let mut news = Vec::new();
        for (subject, condition) in all {
            let Some(condition) = condition else { continue };
            // An account that comes later is new in its state, too.
            let is_known_so = first && matches!(subject, Subject::Account(_));
            let before = if is_known_so { condition } else { Condition::Fine };
            let told =
                self.told.entry(subject.clone()).or_insert_with(|| NoticeHistory { last: before, at: Vec::new() });
            if told.last != condition && news.len() < room && told.may_say(condition, now) {
                told.say(condition, now);
                news.push((subject, condition));
            }
        }
        news
    }

    fn store(&mut self, away: bool, now: Duration) -> Option<Condition> {
        if !away {
            self.away_since = None;
            return Some(Condition::Fine);
        }
        let since = *self.away_since.get_or_insert(now);
        (now.saturating_sub(since) >= AWAY).then_some(Condition::Lost)
    }
}

fn pool(facts: &Facts) -> Condition {
    match facts.serving {
        0 => Condition::Empty,
        serving if serving < facts.wanted => Condition::Low,
        _ => Condition::Fine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(accounts: &[(&str, Option<Condition>)]) -> Facts {
        let accounts = accounts.iter().map(|(id, condition)| ((*id).to_owned(), *condition)).collect();
        Facts { accounts, serving: 5, ..Facts::default() }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn kinds(news: &[(Subject, Condition)]) -> Vec<&'static str> {
        news.iter().map(|(subject, condition)| condition.kind(subject)).collect()
    }

    #[test]
    fn a_change_is_said_once() {
        let mut notices = Notices::default();
        let fine = facts(&[("a", Some(Condition::Fine))]);
        let out = facts(&[("a", Some(Condition::Ejected))]);
        assert_eq!(notices.look(&fine, secs(0), 9), []);
        assert_eq!(kinds(&notices.look(&out, secs(1), 9)), ["account_ejected"]);
        assert_eq!(notices.look(&out, secs(2), 9), []);
        assert_eq!(notices.look(&out, secs(10_000), 9), []);
        assert_eq!(kinds(&notices.look(&fine, secs(10_001), 9)), ["account_back"]);
    }

    #[test]
    fn how_accounts_are_at_the_start_is_no_news_but_an_empty_pool_is() {
        let mut notices = Notices::default();
        let out = Facts { serving: 0, ..facts(&[("a", Some(Condition::Ejected))]) };
        assert_eq!(kinds(&notices.look(&out, secs(0), 9)), ["pool_empty"]);
        let more = facts(&[("a", Some(Condition::Fine)), ("b", Some(Condition::Suspended))]);
        assert_eq!(kinds(&notices.look(&more, secs(1), 9)), ["pool_back", "account_back", "account_suspended"]);
    }

    #[test]
    fn a_flapping_account_is_said_once_in_five_minutes_and_its_last_word_comes() {
        let mut notices = Notices::default();
        let state = |n: u64| if n.is_multiple_of(2) { Condition::Fine } else { Condition::Ejected };
        notices.look(&facts(&[("a", Some(state(0)))]), secs(0), 9);
        let mut said = Vec::new();
        for n in 1..=290 {
            said.extend(notices.look(&facts(&[("a", Some(state(n)))]), secs(n), 9));
        }
        assert_eq!(kinds(&said), ["account_ejected", "account_back"]);
        // It stays out: that is said as soon as it may be.
        let out = facts(&[("a", Some(Condition::Ejected))]);
        let later: Vec<_> = (291..700).flat_map(|n| notices.look(&out, secs(n), 9)).collect();
        assert_eq!(kinds(&later), ["account_ejected"]);
    }

    #[test]
    fn what_says_nothing_new_changes_nothing() {
        let mut notices = Notices::default();
        notices.look(&facts(&[("a", Some(Condition::Fine))]), secs(0), 9);
        assert_eq!(notices.look(&facts(&[("a", None)]), secs(1), 9), []);
        let quota = facts(&[("a", Some(Condition::OutOfQuota))]);
        assert_eq!(kinds(&notices.look(&quota, secs(2), 9)), ["account_out_of_quota"]);
        assert_eq!(notices.look(&facts(&[("a", None)]), secs(3), 9), []);
        // A removed account is forgotten.
        assert_eq!(notices.look(&facts(&[]), secs(4), 9), []);
        assert_eq!(notices.told.len(), 3);
    }

    #[test]
    fn a_store_is_lost_after_a_minute_and_back_only_then() {
        let mut notices = Notices::default();
        let away = Facts { store_away: true, ..facts(&[]) };
        for n in 0..59 {
            assert_eq!(notices.look(&away, secs(n), 9), []);
        }
        assert_eq!(notices.look(&facts(&[]), secs(59), 9), [], "nobody heard that it was away");
        notices.look(&away, secs(60), 9);
        assert_eq!(kinds(&notices.look(&away, secs(120), 9)), ["store_lost"]);
        assert_eq!(kinds(&notices.look(&facts(&[]), secs(130), 9)), ["store_back"]);
    }

    #[test]
    fn too_few_accounts_and_a_refused_version_are_said() {
        let mut notices = Notices::default();
        let mut now = Facts { wanted: 6, version_refused: true, ..facts(&[]) };
        assert_eq!(kinds(&notices.look(&now, secs(0), 9)), ["client_version_refused", "pool_low"]);
        now.version_refused = false;
        now.serving = 6;
        assert_eq!(kinds(&notices.look(&now, secs(1), 9)), ["client_version_taken", "pool_back"]);
    }

    #[test]
    fn a_thousand_ejections_wait_for_room_and_none_is_said_twice() {
        let mut notices = Notices::default();
        let all = |condition| {
            let accounts = (0..1_000).map(|n| (format!("{n:04}"), Some(condition))).collect();
            Facts { accounts, serving: 5, ..Facts::default() }
        };
        notices.look(&all(Condition::Fine), secs(0), 9);
        let out = all(Condition::Ejected);
        let mut said = Vec::new();
        for n in 1..60 {
            let news = notices.look(&out, secs(n), 64);
            assert!(news.len() <= 64);
            said.extend(news);
        }
        said.sort();
        said.dedup();
        assert_eq!(said.len(), 1_000);
    }

    #[test]
    fn every_kind_is_listed() {
        use Condition::*;
        let subjects = [Subject::Account(String::new()), Subject::Pool, Subject::ClientVersion, Subject::Store];
        let all = [Fine, Ejected, Suspended, OutOfQuota, Suspicious, Empty, Low, Refused, Lost];
        for kind in subjects.iter().flat_map(|of| all.iter().map(move |condition| condition.kind(of))) {
            assert!(KINDS.contains(&kind), "{kind}");
        }
    }
}
