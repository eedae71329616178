//! Records as they were changed in memory, over a store that is only read (R110).

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use bytes::Bytes;

use super::records::Cas;

/// Changed records, at most one for each record of the store.
#[derive(Default)]
pub(super) struct Changes {
    // Bound: with a simulated upstream: changed account records | an account each | a newer change replaces it
    pub(super) accounts: HashMap<String, Changed>,
    // Bound: with a simulated upstream: changed token records | an account each | a newer change replaces it
    pub(super) tokens: HashMap<String, Changed>,
}

pub(super) struct Changed {
    /// The store's record that it was made on.
    on: Bytes,
    now: Bytes,
}

/// The record as it is here. A change that was made on another record is gone.
pub(super) fn seen(changes: &mut HashMap<String, Changed>, id: &str, record: &mut Bytes) {
    if let Slot::Occupied(changed) = changes.entry(id.to_owned()) {
        if changed.get().on == *record {
            *record = changed.get().now.clone();
        } else {
            changed.remove();
        }
    }
}

pub(super) fn compare_and_set(
    changes: &mut HashMap<String, Changed>,
    id: &str,
    found: Option<Bytes>,
    old: &[u8],
    new: &[u8],
) -> Cas {
    let Some(on) = found else { return Cas::Absent };
    let mut current = on.clone();
    seen(changes, id, &mut current);
    if current != old {
        return Cas::Conflict(current);
    }
    changes.insert(id.to_owned(), Changed { on, now: Bytes::copy_from_slice(new) });
    Cas::Written
}
