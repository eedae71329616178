//! The client key: configured, or read from the store (R57, M2).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Gateway, Shared};
use crate::secret::Secret;
use crate::store::{StoreError, StoreErrorKind};

/// How often the store is asked for the key while it hasn't been reached.
pub(super) const FIRST_KEY_INTERVAL: Duration = Duration::from_millis(100);

/// The result of comparing a client's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyCheck {
    /// One of the offered keys is right.
    Right,
    /// No key is configured anywhere. Who can reach the server decides whether that is allowed.
    Open,
    /// None of them is.
    Wrong,
    /// The store hasn't been reached, so the key isn't known.
    Unknown,
}

/// The key that clients need.
pub(super) struct Keys {
    /// `KIRO_API_KEY`; beats the store.
    fixed: Option<Digested>,
    found: ArcSwapOption<Digested>,
    reached: AtomicBool,
    refused: OnceLock<StoreError>,
}

/// Digests have one length, so comparing them tells nothing about the length of a key.
struct Digested([u8; 32]);

impl Digested {
    fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

impl Keys {
    pub(super) fn new(fixed: Option<&Secret>) -> Self {
        let fixed = fixed.map(|key| Digested::of(key.expose()));
        Self { fixed, found: ArcSwapOption::empty(), reached: AtomicBool::new(false), refused: OnceLock::new() }
    }

    /// Whether the store has to be asked.
    pub(super) fn asks_store(&self) -> bool {
        self.fixed.is_none()
    }

    /// Takes the store's key. A known key is replaced only by another key, so an evicted or broken `config` never opens
    /// the server. True when the key has changed.
    pub(super) fn heard(&self, key: Option<&Secret>) -> bool {
        let mut changed = false;
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            let key = Digested::of(key.expose());
            changed = self.found.load().as_ref().is_some_and(|known| known.0 != key.0);
            self.found.store(Some(std::sync::Arc::new(key)));
        }
        self.reached.store(true, Ordering::Release);
        changed
    }

    /// The store refuses to show it. True when that is new and no key is known yet (R49).
    pub(super) fn refused(&self, error: &StoreError) -> bool {
        !self.is_known() && self.refused.set(error.clone()).is_ok()
    }

    /// Why the store refuses, while no key is known.
    pub(super) fn refusal(&self) -> Option<&StoreError> {
        if self.is_known() { None } else { self.refused.get() }
    }

    /// Whether no key is known although the store was reached.
    pub(super) fn is_open(&self) -> bool {
        self.fixed.is_none() && self.reached.load(Ordering::Acquire) && self.found.load().is_none()
    }

    /// Whether the key is known.
    pub(super) fn is_known(&self) -> bool {
        self.fixed.is_some() || self.reached.load(Ordering::Acquire)
    }

    pub(super) fn check<'a>(&self, offered: impl Iterator<Item = &'a str>) -> KeyCheck {
        let found = self.found.load();
        let Some(wanted) = self.fixed.as_ref().or(found.as_deref()) else {
            return if self.is_known() { KeyCheck::Open } else { KeyCheck::Unknown };
        };
        // Every offered key is compared, also after a match.
        let right = offered.fold(false, |right, key| bool::from(Digested::of(key).0.ct_eq(&wanted.0)) | right);
        if right { KeyCheck::Right } else { KeyCheck::Wrong }
    }
}

impl Gateway {
    /// Whether one of the offered client keys is right (M2).
    pub fn check_key<'a>(&self, offered: impl Iterator<Item = &'a str>) -> KeyCheck {
        self.shared.keys.check(offered)
    }

    /// Whether the store was reached and no client key is configured anywhere.
    pub fn is_open(&self) -> bool {
        self.shared.keys.is_open()
    }

    /// Resolves when it is known whether there is a client key.
    pub async fn key_known(&self) {
        while !self.shared.keys.is_known() {
            tokio::time::sleep(FIRST_KEY_INTERVAL).await;
        }
    }

    /// Resolves when the store refuses to show the client key and none is known yet: the start has failed then (R49).
    pub async fn key_refused(&self) -> StoreError {
        while !self.shared.keys.is_known() {
            if let Some(error) = self.shared.keys.refusal() {
                return error.clone();
            }
            tokio::time::sleep(FIRST_KEY_INTERVAL).await;
        }
        std::future::pending().await
    }
}

impl Shared {
    pub(super) async fn look_for_key(&self) {
        if !self.keys.asks_store() {
            return;
        }
        match self.store.client_key().await {
            Ok(key) => {
                if self.keys.heard(key.as_ref()) {
                    tracing::info!("the client key was changed");
                }
            }
            Err(error) if error.kind() == StoreErrorKind::Refused && self.keys.refused(&error) => {
                tracing::error!(%error, "the client key could not be read");
            }
            // A store that can't be read, a broken file too, doesn't mean that no key is set (R54, R57).
            Err(error) => tracing::debug!(%error, "the client key could not be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &Keys, offered: &[&str]) -> KeyCheck {
        keys.check(offered.iter().copied())
    }

    #[test]
    fn a_configured_key_beats_the_store() {
        let keys = Keys::new(Some(&Secret::new("k1")));
        keys.heard(Some(&Secret::new("k2")));
        assert_eq!(check(&keys, &["k1"]), KeyCheck::Right);
        assert_eq!(check(&keys, &["k2", ""]), KeyCheck::Wrong);
        assert_eq!(check(&keys, &[]), KeyCheck::Wrong);
        assert_eq!(check(&keys, &["x", "k1"]), KeyCheck::Right);
    }

    /// R57, case 41.
    #[test]
    fn a_known_key_is_replaced_only_by_another_key() {
        let keys = Keys::new(None);
        assert_eq!(check(&keys, &["k1"]), KeyCheck::Unknown);
        keys.heard(Some(&Secret::new("k1")));
        assert_eq!(check(&keys, &["k1"]), KeyCheck::Right);
        assert!(!keys.heard(None) && !keys.heard(Some(&Secret::new(""))) && !keys.heard(Some(&Secret::new("k1"))));
        assert_eq!(check(&keys, &[""]), KeyCheck::Wrong);
        assert_eq!(check(&keys, &["k1"]), KeyCheck::Right);
        assert!(keys.heard(Some(&Secret::new("k3"))));
        assert_eq!(check(&keys, &["k1"]), KeyCheck::Wrong);
    }

    #[test]
    fn without_any_key_it_is_open() {
        let keys = Keys::new(None);
        keys.heard(None);
        assert!(keys.is_open());
        assert_eq!(check(&keys, &["anything"]), KeyCheck::Open);
    }
}
