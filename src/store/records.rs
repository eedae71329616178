//! What goes into a store and comes out: accounts, their changes, and whose login is whose.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use jiff::Timestamp;

use crate::proto::record::{ByteCount, Token, TokenKey};

/// Fields and records of the hash of named client keys, unparsed (R109).
pub type KeyFields = Vec<(Vec<u8>, Bytes)>;
/// Selection tickets reserved from the shared counter: first to last, end excluded (R36).
pub type Tickets = Range<u64>;

/// One account's records, unparsed. `Debug` shows only sizes, here and in every type that holds records.
#[derive(Clone, PartialEq, Eq)]
pub struct RawAccount {
    /// The hash field: 1–128 bytes of printable ASCII (R13).
    pub id: String,
    /// The account record (R70).
    pub account: Bytes,
    /// The token record's key and bytes; `None` without one (R45).
    pub token: Option<(TokenKey, Bytes)>,
}

/// The result of a compare-and-set (R21).
#[derive(Clone, PartialEq, Eq)]
pub enum Cas {
    /// The new bytes are there.
    Written,
    /// Something else was there; nothing was written. These bytes are there.
    Conflict(Bytes),
    /// Nothing was there; nothing was written (R23).
    Absent,
}

/// One compare-and-set of an account record.
#[derive(Clone)]
pub struct Change {
    /// Which account.
    pub id: String,
    /// The expected bytes.
    pub old: Bytes,
    /// The new bytes.
    pub new: Bytes,
}

/// An account to add (R62).
pub struct NewAccount {
    /// A fresh uuid v4.
    pub id: String,
    /// For display.
    pub custom_name: Option<String>,
    /// When it is added.
    pub added_at: Timestamp,
    /// The whole token record.
    pub token: Vec<u8>,
    /// Further members of the account record from an import, as raw JSON (R78).
    pub members: Vec<(&'static str, String)>,
}

/// The result of `accounts add`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// The account is there.
    New,
    /// An account with this refresh token exists already; nothing was written.
    Duplicate {
        /// Its id.
        id: String,
    },
}

/// Whose login is whose, by refresh token and API key.
#[derive(Default)]
pub struct KnownLogins(HashMap<String, String>);

impl KnownLogins {
    /// Of the accounts of a store. A record that can't be read knows none.
    pub fn of<'a>(accounts: impl IntoIterator<Item = &'a RawAccount>) -> Self {
        let mut known = Self::default();
        for account in accounts {
            if let Some(token) = account.token.as_ref().and_then(|(_, record)| Token::parse(record).ok()) {
                known.add(&account.id, &token);
            }
        }
        known
    }

    /// This account has that login.
    pub fn add(&mut self, id: &str, token: &Token) {
        for secret in [&token.refresh_token, &token.kiro_api_key].into_iter().flatten() {
            self.0.entry(secret.expose().to_owned()).or_insert_with(|| id.to_owned());
        }
    }

    /// The account that has this login.
    pub fn duplicate_of(&self, token: &Token) -> Option<&str> {
        let secrets = [&token.refresh_token, &token.kiro_api_key];
        secrets.into_iter().flatten().find_map(|secret| self.0.get(secret.expose())).map(String::as_str)
    }
}

impl fmt::Debug for RawAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|(key, record)| (key, ByteCount(record)));
        f.debug_struct("RawAccount")
            .field("id", &self.id)
            .field("account", &ByteCount(&self.account))
            .field("token", &token)
            .finish()
    }
}

impl fmt::Debug for Cas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written => f.write_str("Written"),
            Self::Conflict(record) => f.debug_tuple("Conflict").field(&ByteCount(record)).finish(),
            Self::Absent => f.write_str("Absent"),
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new) = (ByteCount(&self.old), ByteCount(&self.new));
        f.debug_struct("Change").field("id", &self.id).field("old", &old).field("new", &new).finish()
    }
}

impl fmt::Debug for NewAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAccount")
            .field("id", &self.id)
            .field("token", &ByteCount(&self.token))
            .finish_non_exhaustive()
    }
}
