//! A shared budget of bytes. Each holder has a share, which returns to the budget when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The limit of all shares together, in bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ByteBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    taken: AtomicUsize,
}

/// One holder's part of a [`ByteBudget`].
#[derive(Debug)]
pub(super) struct ByteShare {
    budget: ByteBudget,
    mine: usize,
}

impl ByteBudget {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Inner { most, taken: AtomicUsize::new(0) }))
    }

    /// An empty share.
    pub(super) fn share(&self) -> ByteShare {
        ByteShare { budget: self.clone(), mine: 0 }
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }
}

impl ByteShare {
    /// Takes more bytes. False: the budget is used up, and nothing has changed.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let Inner { most, taken } = &*self.budget.0;
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| sum <= most);
        let fits = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if fits {
            self.mine += bytes;
        }
        fits
    }

    /// Grows or shrinks so that `bytes` fit, in steps of `step`. Up to one step costs nothing, so that a small holder
    /// touches no shared counter. False: the budget is used up, and nothing has changed.
    pub(super) fn fit(&mut self, bytes: usize, step: usize) -> bool {
        let wanted = if bytes <= step { 0 } else { bytes.div_ceil(step).saturating_mul(step) };
        if wanted > self.mine {
            return self.take(wanted - self.mine);
        }
        if wanted < self.mine {
            self.budget.0.taken.fetch_sub(self.mine - wanted, Ordering::Relaxed);
            self.mine = wanted;
        }
        true
    }

    /// Whether it holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.mine == 0
    }

    /// Moves all of it to a new holder.
    pub(super) fn hand_over(&mut self) -> Self {
        Self { budget: self.budget.clone(), mine: std::mem::take(&mut self.mine) }
    }

    /// Returns all of it.
    pub(super) fn give_back(&mut self) {
        self.budget.0.taken.fetch_sub(std::mem::take(&mut self.mine), Ordering::Relaxed);
    }
}

impl Drop for ByteShare {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_return_and_never_exceed_the_budget() {
        let budget = ByteBudget::new(100);
        let (mut one, mut other) = (budget.share(), budget.share());
        assert!(one.take(60) && !other.take(41) && !other.take(usize::MAX) && other.take(40));
        assert_eq!(budget.taken(), 100);
        let handed = one.hand_over();
        drop(one);
        assert_eq!(budget.taken(), 100, "the share moves with the bytes");
        drop(handed);
        other.give_back();
        assert_eq!((budget.taken(), other.is_empty()), (0, true));
    }

    #[test]
    fn a_small_holder_takes_nothing_from_the_budget_ts25() {
        let budget = ByteBudget::new(100);
        let mut share = budget.share();
        for (bytes, taken) in [(10, 0), (11, 20), (20, 20), (95, 100), (31, 40), (10, 0)] {
            assert!(share.fit(bytes, 10));
            assert_eq!(budget.taken(), taken, "{bytes}");
        }
        assert!(!share.fit(101, 10) && share.is_empty());
    }
}
