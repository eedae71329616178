//! A token from upstream that the store doesn't hold yet, and the records that it may be written on.

use std::fmt;

use bytes::Bytes;

use crate::proto::record::{self, ByteCount, Entry, Fingerprint, Token, TokenKey};
use crate::secret::Secret;

/// A refreshed token that must reach the store (R40 step 6).
#[derive(Clone)]
pub struct UnsavedToken {
    /// The token record's key.
    pub key: TokenKey,
    /// The record that was read under the lock. Empty for a token from the journal, which goes on the store's current
    /// record.
    pub base: Bytes,
    /// The refresh tokens that this one replaces: that of `base`, and all that were spent since.
    pub replaces: Vec<Fingerprint>,
    /// The fields of the refresh: access token, refresh token, expiry, profile.
    pub entries: Vec<Entry>,
}

impl UnsavedToken {
    /// Whether it holds more than a profile and its regions.
    pub(crate) fn brings_a_token(&self) -> bool {
        let is_found = |entry: &Entry| matches!(entry, Entry::ProfileArn(_) | Entry::Region(_) | Entry::IdcRegion(_));
        !self.entries.iter().all(is_found)
    }

    /// Adds entries; of a doubled one the last is written.
    pub(crate) fn with(mut self, entries: Vec<Entry>) -> Self {
        self.entries.extend(entries);
        self
    }

    /// What to do with it on this record of the store.
    pub(crate) fn on(&self, record: Bytes) -> OnRecord {
        let Ok(token) = Token::parse(&record) else { return OnRecord::Settled(Saved::Unusable) };
        if !self.goes_on(&token) {
            return OnRecord::Settled(Saved::Rotated(record));
        }
        match record::patch(&record, &self.entries) {
            Ok(Some(patched)) => OnRecord::Write(patched.into()),
            // An earlier try, whose reply was lost, had succeeded.
            Ok(None) => OnRecord::Settled(Saved::Written(record)),
            Err(_) => OnRecord::Settled(Saved::Unusable),
        }
    }

    /// Whether it may be written on the store's current record: nobody else has rotated the refresh token. A missing
    /// refresh token was dropped by the Node.js service, whose own refresh brought none (R46). Adopting that record
    /// would lose the only token that can be refreshed.
    pub(crate) fn goes_on(&self, record: &Token) -> bool {
        let ours = self.refresh_token();
        match &record.refresh_token {
            Some(theirs) => Some(theirs) == ours || self.replaces.contains(&Fingerprint::of(theirs)),
            None => {
                let dropped = record.access_token.is_some() && record.kiro_api_key.is_none();
                self.replaces.is_empty() || dropped && ours.is_some()
            }
        }
    }

    /// Whether it is that token, or has grown out of it.
    pub(crate) fn supersedes(&self, earlier: &Self) -> bool {
        let spent =
            |token: &Secret| Some(token) == self.refresh_token() || self.replaces.contains(&Fingerprint::of(token));
        earlier.refresh_token().is_some_and(spent)
    }

    pub(crate) fn refresh_token(&self) -> Option<&Secret> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::RefreshToken(token) => Some(token),
            _ => None,
        })
    }
}

/// What to do with an unsaved token on a record.
pub enum OnRecord {
    /// Replace the record by this one, by compare-and-set.
    Write(Bytes),
    /// Write nothing.
    Settled(Saved),
}

/// The result of saving a refreshed token (R40 step 6).
#[derive(Clone, PartialEq, Eq)]
pub enum Saved {
    /// Saved; this is the record now.
    Written(Bytes),
    /// Somebody else rotated the refresh token: ours is dropped; use this record.
    Rotated(Bytes),
    /// The account was removed; nothing was written.
    Absent,
    /// The record isn't a JSON object any more; nothing was written (R9).
    Unusable,
}

impl fmt::Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(record) => f.debug_tuple("Written").field(&ByteCount(record)).finish(),
            Self::Rotated(record) => f.debug_tuple("Rotated").field(&ByteCount(record)).finish(),
            Self::Absent => f.write_str("Absent"),
            Self::Unusable => f.write_str("Unusable"),
        }
    }
}

impl fmt::Debug for UnsavedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnsavedToken")
            .field("key", &self.key)
            .field("base", &ByteCount(&self.base))
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}
