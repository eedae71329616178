//! The tokens that this process refreshes now: a change of the file waits for them a little (R66).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The tokens that are being refreshed.
#[derive(Clone, Debug, Default)]
pub(super) struct Refreshing(Arc<Expected>);

#[derive(Debug, Default)]
struct Expected {
    // Bound: file store: tokens that are being refreshed | an account each | it goes with the refresh
    ids: Mutex<HashSet<String>>,
    /// A change came, or a refresh ended. Wakes the next writer.
    arrived: Notify,
}

/// A running refresh, until it is dropped.
#[derive(Debug)]
pub(in crate::store) struct UnderWay {
    id: String,
    refreshing: Refreshing,
}

impl Refreshing {
    pub(super) fn ids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change came.
    pub(super) fn arrive(&self) {
        self.0.arrived.notify_one();
    }

    /// Resolves when a change comes, or a refresh ends.
    pub(super) async fn arrived(&self) {
        self.0.arrived.notified().await;
    }

    pub(super) fn begin(&self, id: &str) -> UnderWay {
        self.ids().insert(id.to_owned());
        UnderWay { id: id.to_owned(), refreshing: self.clone() }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.refreshing.ids().remove(&self.id);
        self.refreshing.0.arrived.notify_one();
    }
}
