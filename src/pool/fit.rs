//! How well an account fits a request.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use crate::policy::learned::Learned;
use crate::policy::view::AccountView;

/// How well an account fits a request, 0 the best, equal for equally good ones: an account whose catalogue lacks the
/// model comes after those that have it (K127), one whose every shape is marked after both (K109). It excludes no
/// account. It runs under the pool's lock, for every account, with the account's lessons: it must be quick and must not
/// call the pool.
#[derive(Clone)]
pub struct Fit(Arc<FitOf>);

type FitOf = dyn Fn(&AccountView, &Learned, Timestamp) -> u8 + Send + Sync;

impl Fit {
    /// The function.
    pub fn new(fit: impl Fn(&AccountView, &Learned, Timestamp) -> u8 + Send + Sync + 'static) -> Self {
        Self(Arc::new(fit))
    }

    pub(super) fn of(&self, view: &AccountView, learned: &Learned, now: Timestamp) -> u8 {
        (self.0)(view, learned, now)
    }
}

impl fmt::Debug for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fit")
    }
}
