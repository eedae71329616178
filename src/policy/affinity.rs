//! Which account a conversation stays with, and which account made which thought (R101, R102, TR44, K130).
//!
//! Only memory and rules: `now` is an argument. The gateway keeps the shared half in the store.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

/// Key of a conversation (R101).
pub type Key = [u8; 16];
/// An account's id.
pub type AccountId = Arc<str>;

/// Conversations that are remembered, for [`KEPT`] after their last turn (R102).
const CONVERSATIONS: usize = 65_536;
const KEPT: Duration = Duration::from_secs(3_600);
/// Accounts of a conversation beside its home (R101).
const OLDER: usize = 3;
/// Age at which the shared note of a conversation's home is written again (R102).
const SHARED_AGAIN: Duration = Duration::from_secs(600);
/// Signatures that are remembered, and for how long (TR44).
const SIGNATURES: usize = 16_384;
const SIGNATURES_KEPT: Duration = Duration::from_secs(4 * 3_600);
/// Conversations whose signatures were refused, and for how long that is remembered (K130).
const REFUSALS: usize = 4_096;

/// A turn's account in relation to its conversation: the label of `kiro_affinity_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Its home.
    Home,
    /// A former home.
    Older,
    /// Another account, although the conversation has a home.
    Moved,
    /// The conversation wasn't known.
    New,
}

impl Turn {
    /// The word in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Older => "older",
            Self::Moved => "moved",
            Self::New => "new",
        }
    }
}

/// Conversations and signatures of this process, bounded in number and time; the oldest go first.
#[derive(Debug)]
pub struct Affinity {
    // Bound: conversations with their accounts | CONVERSATIONS | the one whose last turn is oldest goes
    conversations: Recent<Key, ConversationHomes>,
    // Bound: signatures of thoughts with their makers | SIGNATURES | the oldest goes
    signatures: Recent<u64, Made>,
    // Bound: conversations whose signatures were refused | REFUSALS | the oldest goes
    refusals: Recent<Key, ()>,
}

#[derive(Debug, Clone)]
struct ConversationHomes {
    /// The home first, then at most [`OLDER`] former ones, the newest first.
    accounts: Vec<AccountId>,
    /// When its home was last written to the store.
    shared: Option<Timestamp>,
}

#[derive(Debug)]
struct Made {
    account: AccountId,
    kiro_id: Arc<str>,
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            conversations: Recent::new(CONVERSATIONS, KEPT),
            signatures: Recent::new(SIGNATURES, SIGNATURES_KEPT),
            refusals: Recent::new(REFUSALS, KEPT),
        }
    }
}

impl Affinity {
    /// The accounts of a conversation: its home, then former ones, the newest first. Empty: it is unknown.
    pub fn accounts(&self, key: &Key, now: Timestamp) -> &[AccountId] {
        self.conversations.get(key, now).map_or(&[], |(_, conversation)| &conversation.accounts)
    }

    /// Another process knows the home of a conversation that this one doesn't know.
    pub fn learned(&mut self, key: Key, home: AccountId, now: Timestamp) {
        if self.conversations.get(&key, now).is_none() {
            self.conversations.put(key, ConversationHomes { accounts: vec![home], shared: Some(now) }, now);
        }
    }

    /// A turn got its first content from this account, which is the home from now on. With `passing`, when only a limit
    /// kept the turn from its home, the home stays. True: the home must be written to the store.
    pub fn turn(&mut self, key: Key, account: &AccountId, passing: bool, now: Timestamp) -> (Turn, bool) {
        let known = self.conversations.get(&key, now).map(|(_, conversation)| conversation.clone());
        let turn = match known.as_ref().map(|known| known.accounts.iter().position(|one| one == account)) {
            None => Turn::New,
            Some(Some(0)) => Turn::Home,
            Some(Some(_)) => Turn::Older,
            Some(None) => Turn::Moved,
        };
        let mut conversation = known.unwrap_or(ConversationHomes { accounts: Vec::new(), shared: None });
        let moves = matches!(turn, Turn::New) || matches!(turn, Turn::Older | Turn::Moved) && !passing;
        if moves {
            conversation.accounts.retain(|one| one != account);
            conversation.accounts.insert(0, account.clone());
            conversation.accounts.truncate(1 + OLDER);
        }
        let share = moves || conversation.shared.is_none_or(|at| is_past(at, SHARED_AGAIN, now));
        if share {
            conversation.shared = Some(now);
        }
        self.conversations.put(key, conversation, now);
        (turn, share)
    }

    /// An account made these signatures with this model.
    pub fn made(&mut self, signatures: &[u64], account: &AccountId, kiro_id: &Arc<str>, now: Timestamp) {
        for signature in signatures {
            self.signatures.put(*signature, Made { account: account.clone(), kiro_id: kiro_id.clone() }, now);
        }
    }

    /// The maker of the last known signature among these.
    pub fn maker(&self, signatures: impl DoubleEndedIterator<Item = u64>, now: Timestamp) -> Option<&AccountId> {
        signatures.rev().find_map(|signature| self.signatures.get(&signature, now)).map(|(_, made)| &made.account)
    }

    /// Whether a signature may go upstream in a turn of this conversation on this account (TR44): the account made it
    /// with this model, or its maker is unknown and the account is the conversation's home. After a refusal, earlier
    /// and unknown signatures of the conversation stay here (K130).
    pub fn may_replay(&self, key: &Key, account: &str, kiro_id: &str, signature: u64, now: Timestamp) -> bool {
        let refused = self.refusals.get(key, now).map(|(at, ())| at);
        match self.signatures.get(&signature, now) {
            Some((at, made)) => {
                *made.account == *account && *made.kiro_id == *kiro_id && refused.is_none_or(|refused| at > refused)
            }
            None => refused.is_none() && self.accounts(key, now).first().is_some_and(|home| **home == *account),
        }
    }

    /// Upstream refused the signatures of a conversation (K130).
    pub fn refused(&mut self, key: Key, now: Timestamp) {
        self.refusals.put(key, (), now);
    }
}

fn is_past(at: Timestamp, after: Duration, now: Timestamp) -> bool {
    now.duration_since(at) > jiff::SignedDuration::try_from(after).unwrap_or(jiff::SignedDuration::MAX)
}

/// The newest entries, bounded in number, each for a time.
#[derive(Debug)]
struct Recent<K, V> {
    most: usize,
    kept: Duration,
    entries: HashMap<K, Remembered<V>>,
    /// By the turn in which they were put.
    order: BTreeMap<u64, K>,
    turn: u64,
}

#[derive(Debug)]
struct Remembered<V> {
    turn: u64,
    at: Timestamp,
    value: V,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    fn new(most: usize, kept: Duration) -> Self {
        Self { most, kept, entries: HashMap::new(), order: BTreeMap::new(), turn: 0 }
    }

    /// The value and when it was put.
    fn get(&self, key: &K, now: Timestamp) -> Option<(Timestamp, &V)> {
        let entry = self.entries.get(key).filter(|entry| !is_past(entry.at, self.kept, now))?;
        Some((entry.at, &entry.value))
    }

    fn put(&mut self, key: K, value: V, now: Timestamp) {
        self.turn += 1;
        if let Some(before) = self.entries.insert(key, Remembered { turn: self.turn, at: now, value }) {
            self.order.remove(&before.turn);
        }
        self.order.insert(self.turn, key);
        // Expired entries go a few at a time, surplus ones at once.
        for _ in 0..2 {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            let is_old = self.entries.get(oldest).is_none_or(|entry| is_past(entry.at, self.kept, now));
            if !is_old && self.entries.len() <= self.most {
                break;
            }
            if let Some((_, oldest)) = self.order.pop_first() {
                self.entries.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [1; 16];
    const OTHER: Key = [2; 16];

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn id(name: &str) -> AccountId {
        name.into()
    }

    fn names(affinity: &Affinity, now: Timestamp) -> Vec<String> {
        affinity.accounts(&KEY, now).iter().map(|id| id.to_string()).collect()
    }

    #[test]
    fn a_conversation_keeps_its_home_and_three_older_accounts_r101() {
        let mut affinity = Affinity::default();
        assert!(affinity.accounts(&KEY, at(0)).is_empty());
        let turns: Vec<_> = ["a", "a", "b", "c", "d", "e", "c"]
            .iter()
            .map(|one| affinity.turn(KEY, &id(one), false, at(1)).0)
            .collect();
        use Turn::{Home, Moved, New, Older};
        assert_eq!(turns, [New, Home, Moved, Moved, Moved, Moved, Older]);
        assert_eq!(names(&affinity, at(1)), ["c", "e", "d", "b"]);
        assert!(affinity.accounts(&OTHER, at(1)).is_empty());
    }

    #[test]
    fn a_limit_does_not_move_a_conversation_r101() {
        let mut affinity = Affinity::default();
        affinity.turn(KEY, &id("a"), false, at(0));
        affinity.turn(KEY, &id("b"), false, at(0));
        assert_eq!(affinity.turn(KEY, &id("c"), true, at(1)), (Turn::Moved, false));
        assert_eq!(affinity.turn(KEY, &id("a"), true, at(1)), (Turn::Older, false));
        assert_eq!(names(&affinity, at(1)), ["b", "a"]);
        // A new conversation has no home yet: `passing` changes nothing.
        assert_eq!(affinity.turn(OTHER, &id("c"), true, at(1)), (Turn::New, true));
    }

    #[test]
    fn a_home_is_kept_an_hour_after_the_last_turn_r102() {
        let mut affinity = Affinity::default();
        affinity.turn(KEY, &id("a"), false, at(0));
        assert_eq!(affinity.turn(KEY, &id("a"), false, at(3_600)).0, Turn::Home);
        assert_eq!(names(&affinity, at(7_200)), ["a"]);
        assert!(names(&affinity, at(7_201)).is_empty());
        assert_eq!(affinity.turn(KEY, &id("b"), false, at(7_201)).0, Turn::New);
    }

    #[test]
    fn a_home_is_shared_at_the_first_answer_at_a_move_and_every_ten_minutes_r102() {
        let mut affinity = Affinity::default();
        let shared: Vec<_> = [(0, "a"), (1, "a"), (2, "b"), (600, "b"), (603, "b"), (604, "b")]
            .iter()
            .map(|(second, one)| affinity.turn(KEY, &id(one), false, at(*second)).1)
            .collect();
        assert_eq!(shared, [true, false, true, false, true, false]);
        // A home from the store isn't written back, and never replaces a known one.
        affinity.learned(OTHER, id("c"), at(0));
        assert_eq!(affinity.turn(OTHER, &id("c"), false, at(1)), (Turn::Home, false));
        affinity.learned(KEY, id("c"), at(604));
        assert_eq!(names(&affinity, at(604)), ["b", "a"]);
    }

    #[test]
    fn conversations_signatures_and_refusals_are_bounded_r102_tr44_k130() {
        let mut affinity = Affinity::default();
        let key = |n: usize| (n as u128).to_be_bytes();
        for n in 0..=CONVERSATIONS {
            affinity.turn(key(n), &id("a"), false, at(0));
            if n == 1 {
                affinity.turn(key(0), &id("a"), false, at(0));
            }
        }
        // The least recently used one went.
        assert!(affinity.accounts(&key(1), at(0)).is_empty() && !affinity.accounts(&key(0), at(0)).is_empty());
        assert_eq!((affinity.conversations.entries.len(), affinity.conversations.order.len()), (65_536, 65_536));
        let many: Vec<u64> = (0..20_000).collect();
        affinity.made(&many, &id("a"), &"m".into(), at(0));
        assert_eq!((affinity.signatures.entries.len(), affinity.signatures.order.len()), (16_384, 16_384));
        for n in 0..5_000 {
            affinity.refused(key(n), at(0));
        }
        assert_eq!((affinity.refusals.entries.len(), affinity.refusals.order.len()), (4_096, 4_096));
        // Expired entries go by and by.
        for n in 0..2_048 {
            affinity.refused(key(10_000 + n), at(3_601));
        }
        assert_eq!(affinity.refusals.entries.len(), 2_048);
    }

    #[test]
    fn a_signature_goes_to_its_maker_only_tr44() {
        let mut affinity = Affinity::default();
        affinity.turn(KEY, &id("a"), false, at(0));
        affinity.made(&[7], &id("a"), &"m".into(), at(0));
        affinity.made(&[8], &id("b"), &"m".into(), at(1));
        let may = |account: &str, model: &str, signature: u64, now: i64| {
            affinity.may_replay(&KEY, account, model, signature, at(now))
        };
        assert!(may("a", "m", 7, 1) && may("b", "m", 8, 1));
        assert!(!may("b", "m", 7, 1) && !may("a", "m", 8, 1), "another account");
        assert!(!may("a", "n", 7, 1), "another model");
        // Its maker is unknown: the home may get it.
        assert!(may("a", "m", 9, 1) && !may("b", "m", 9, 1));
        assert!(!affinity.may_replay(&OTHER, "a", "m", 9, at(1)), "affinity doesn't know the conversation");
        assert_eq!(affinity.maker([8, 7, 9].into_iter(), at(1)), Some(&id("a")));
        assert_eq!(affinity.maker([9].into_iter(), at(1)), None);
        // Four hours.
        affinity.turn(OTHER, &id("a"), false, at(14_401));
        assert_eq!(affinity.maker([7].into_iter(), at(14_400)), Some(&id("a")));
        assert_eq!(affinity.maker([7].into_iter(), at(14_401)), None);
    }

    #[test]
    fn signatures_from_before_a_refusal_are_not_sent_again_k130() {
        let mut affinity = Affinity::default();
        affinity.turn(KEY, &id("a"), false, at(0));
        affinity.made(&[7], &id("a"), &"m".into(), at(0));
        affinity.refused(KEY, at(10));
        affinity.made(&[8], &id("a"), &"m".into(), at(11));
        let may = |key: &Key, signature: u64, now: i64| affinity.may_replay(key, "a", "m", signature, at(now));
        assert!(!may(&KEY, 7, 11), "made before");
        assert!(!may(&KEY, 9, 11), "not known");
        assert!(may(&KEY, 8, 11), "made since");
        assert!(may(&OTHER, 7, 11), "another conversation");
        assert!(!may(&KEY, 7, 3_610) && may(&KEY, 7, 3_611), "an hour");
    }
}
