//! Tokens from upstream that the store doesn't hold yet: the newest for each account (R51).
//!
//! ```text
//!   keep() ──▶ waiting ──(due)──▶ on its way ──▶ saved, or overtaken by somebody else's: gone
//!                 ▲  └─(a while)─▶ journal ◀── after a failure, at once; taken out when it is gone
//!                 └── not written, or a newer one came meanwhile
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::unsaved::UnsavedToken;

/// A token whose write takes longer than this goes into the journal meanwhile.
const JOURNAL_AFTER: Duration = Duration::from_millis(250);

/// Tokens that go into the journal at once: each is synced, and the store may take the others meanwhile.
const JOURNALED: usize = 8;

/// Identifies one of an account's tokens; each newer token gets another.
pub(crate) type Generation = u64;

/// The tokens that wait, by account.
#[derive(Default)]
pub(crate) struct WaitingTokens {
    // Bound: refreshed tokens that wait for the store | an account each | a newer one replaces it
    tokens: HashMap<String, WaitingToken>,
    generations: Generation,
    /// There is a journal.
    journals: bool,
    /// Tokens that an earlier process left in the journal, until the account's record is seen.
    // Bound: tokens that an earlier process left in `KIRO_STATE_DIR` | a file there each | it goes when its account is seen
    left_over: HashMap<String, UnsavedToken>,
    /// Entries to be removed from the journal.
    done: Vec<(String, UnsavedToken)>,
}

struct WaitingToken {
    token: UnsavedToken,
    due: Instant,
    /// Number of writers with a token of this account on its way.
    busy: u32,
    generation: Generation,
    /// When it goes into the journal; none: it is there, or needn't be.
    journal_at: Option<Instant>,
}

impl WaitingTokens {
    /// With a journal that holds these tokens of an earlier process.
    pub(crate) fn with_journal(left_over: HashMap<String, UnsavedToken>) -> Self {
        Self { journals: true, left_over, ..Self::default() }
    }

    /// Keeps a token. A newer one replaces an older one; a profile alone is merged, so that it can't push out a rotated
    /// token.
    pub(crate) fn keep(&mut self, account: &str, token: UnsavedToken, now: Instant) {
        self.generations += 1;
        let generation = self.generations;
        let joins = |entry: &WaitingToken| entry.token.key == token.key && !token.brings_a_token();
        let (token, busy) = match self.tokens.remove(account) {
            Some(entry) if joins(&entry) => (entry.token.with(token.entries), entry.busy),
            before => (token, before.map_or(0, |entry| entry.busy)),
        };
        let journal_at = (self.journals && token.brings_a_token()).then(|| now + JOURNAL_AFTER);
        self.tokens.insert(account.to_owned(), WaitingToken { token, due: now, busy, generation, journal_at });
    }

    /// Whether a token of the account waits.
    pub(crate) fn waits(&self, account: &str) -> bool {
        self.tokens.contains_key(account)
    }

    /// The account's token, for the caller to write now and to report with [`WaitingTokens::settle`].
    pub(crate) fn take(&mut self, account: &str) -> Option<(UnsavedToken, Generation)> {
        let entry = self.tokens.get_mut(account)?;
        entry.busy += 1;
        Some((entry.token.clone(), entry.generation))
    }

    /// The result of a write. A token that got no answer leaves again after `retry`, a newer one at once.
    pub(crate) fn settle(
        &mut self,
        account: &str,
        generation: Generation,
        answered: bool,
        now: Instant,
        retry: Duration,
    ) {
        let Some(entry) = self.tokens.get_mut(account) else { return };
        entry.busy = entry.busy.saturating_sub(1);
        if entry.generation != generation {
            entry.due = now;
        } else if !answered {
            entry.due = now + retry;
            entry.journal_at = entry.journal_at.map(|_| now);
        } else if let Some(entry) = self.tokens.remove(account)
            && self.journals
            && entry.token.brings_a_token()
        {
            self.done.push((account.to_owned(), entry.token));
        }
    }

    /// The token that an earlier process left for this account. Returned once.
    pub(crate) fn left_over(&mut self, account: &str) -> Option<UnsavedToken> {
        if self.left_over.is_empty() { None } else { self.left_over.remove(account) }
    }

    /// The store has a newer token than the one left over.
    pub(crate) fn forget(&mut self, account: &str, left_over: UnsavedToken) {
        self.done.push((account.to_owned(), left_over));
    }

    /// The tokens that go into the journal now, those to be removed from it, and when more is due.
    pub(crate) fn journal_work(&mut self, now: Instant) -> (Kept, Kept, Option<Instant>) {
        let (mut keep, mut next) = (Vec::new(), None);
        for (account, entry) in &mut self.tokens {
            match entry.journal_at {
                Some(at) if at <= now && keep.len() < JOURNALED => {
                    entry.journal_at = None;
                    keep.push((account.clone(), entry.token.clone()));
                }
                Some(at) => next = Some(next.map_or(at, |next: Instant| next.min(at))),
                None => {}
            }
        }
        (keep, std::mem::take(&mut self.done), next)
    }

    /// All waiting tokens.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &UnsavedToken)> {
        let waits = self.tokens.iter().map(|(account, entry)| (account, &entry.token));
        waits.chain(&self.left_over)
    }

    /// The accounts whose tokens wait.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = &String> {
        self.tokens.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The due times of the tokens that aren't being written.
    pub(crate) fn dues(&self) -> impl Iterator<Item = (Instant, &String)> {
        self.tokens.iter().filter(|(_, entry)| entry.busy == 0).map(|(account, entry)| (entry.due, account))
    }

    /// Whether the account's token has been tried since then, or is gone.
    pub(crate) fn was_tried(&self, account: &str, since: Instant) -> bool {
        self.tokens.get(account).is_none_or(|entry| entry.busy == 0 && entry.due > since)
    }

    /// All waiting tokens leave now.
    pub(crate) fn all_due(&mut self, now: Instant) {
        for entry in self.tokens.values_mut() {
            entry.due = entry.due.min(now);
            entry.journal_at = entry.journal_at.map(|at| at.min(now));
        }
    }
}

/// Tokens by account.
pub(crate) type Kept = Vec<(String, UnsavedToken)>;
