//! The pool's notices to JavaScript, by the doorbell: events for listeners (N22), outcomes for `recordOutcome` (R35).
//!
//! An outcome goes to JavaScript and is kept here until JavaScript says whether it has recorded it. The gateway writes
//! those that JavaScript didn't record or doesn't answer for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::bell::{MessageKind, OpenCall};
use super::message;
use crate::policy::outcome::{Event, Outcome};
use crate::pool::{AccountId, Hooks, Pool, PoolEvent};
use crate::proto::record::{Note, rfc3339};

/// Notices that may wait for a busy JavaScript thread. Beyond that the gateway writes outcomes itself and drops events.
const MAX_WAITING: usize = 4096;

/// One gateway's line to its JavaScript thread. Ends with the pool that it serves.
pub(crate) struct Notifier {
    slot: Arc<OpenCall>,
    /// JavaScript has a `recordOutcome`.
    records: AtomicBool,
    asked: Mutex<OpenQuestions>,
}

#[derive(Default)]
struct OpenQuestions {
    last: u32,
    /// Outcomes that JavaScript hasn't answered for.
    // Bound: outcomes that JavaScript hasn't answered for | MAX_WAITING | the gateway writes further ones itself
    waiting: HashMap<u32, (AccountId, Outcome)>,
    /// JavaScript can't answer any more.
    deaf: bool,
}

impl Notifier {
    pub(crate) fn new(slot: Arc<OpenCall>, records: bool) -> Arc<Self> {
        Arc::new(Self { slot, records: AtomicBool::new(records), asked: Mutex::default() })
    }

    pub(crate) fn hooks(self: &Arc<Self>) -> Hooks {
        let (recorder, listener) = (self.clone(), self.clone());
        Hooks {
            record: Some(Arc::new(move |id, outcome| recorder.ask(id, outcome))),
            event: Some(Arc::new(move |event| listener.tell(&event))),
        }
    }

    /// JavaScript has a `recordOutcome` from now on.
    pub(crate) fn record(&self) {
        self.records.store(true, Ordering::Release);
    }

    /// JavaScript has an outcome: recorded, or to be written by the gateway. Each is answered once.
    pub(crate) fn answered(&self, number: u32, recorded: bool, pool: &Pool) {
        let outcome = self.asked().waiting.remove(&number);
        if let Some((id, outcome)) = outcome.filter(|_| !recorded) {
            pool.write(&id, &outcome);
        }
    }

    /// Waits until JavaScript has answered for everything, at most `within`; the gateway writes the rest.
    pub(crate) async fn settle(&self, pool: &Pool, within: Duration) {
        let deadline = now() + within;
        while !self.asked().waiting.is_empty() && now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.write_waiting(pool);
    }

    /// The gateway's object is gone in JavaScript, and with it the listener that records (N54).
    pub(crate) fn deafen(&self, pool: &Pool) {
        self.asked().deaf = true;
        self.write_waiting(pool);
    }

    fn write_waiting(&self, pool: &Pool) {
        let waiting = std::mem::take(&mut self.asked().waiting);
        for (id, outcome) in waiting.into_values() {
            pool.write(&id, &outcome);
        }
    }

    /// True: JavaScript is asked, and answers with [`Notifier::answered`].
    fn ask(&self, id: &AccountId, outcome: &Outcome) -> bool {
        if !self.records.load(Ordering::Acquire) {
            return false;
        }
        let Some(mut notice) = outcome_json(id, outcome) else { return false };
        let mut asked = self.asked();
        if asked.deaf || self.slot.is_cancelled() || asked.waiting.len() >= MAX_WAITING {
            return false;
        }
        asked.last = asked.last.wrapping_add(1);
        let number = asked.last;
        asked.waiting.insert(number, (id.clone(), outcome.clone()));
        drop(asked);
        notice["number"] = json!(number);
        self.slot.post(MessageKind::Notice, message::text(&notice));
        true
    }

    fn tell(&self, event: &PoolEvent) {
        if self.slot.is_cancelled() {
            return;
        }
        if self.slot.waiting() >= MAX_WAITING {
            tracing::warn!("an event is dropped: the JavaScript thread is busy");
            return;
        }
        self.slot.post(MessageKind::Notice, message::text(&event_json(event)));
    }

    fn asked(&self) -> MutexGuard<'_, OpenQuestions> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.slot.post(MessageKind::End, bytes::Bytes::new());
    }
}

/// `Outcome` of index.d.ts, times in milliseconds; none for outcomes that only we can write: a bare use, a refresh.
fn outcome_json(id: &AccountId, outcome: &Outcome) -> Option<Value> {
    let mut notice = match &outcome.event {
        Event::Success { heals, half_open, probe } => {
            json!({ "kind": "success", "heals": heals, "halfOpen": half_open, "probe": probe })
        }
        Event::Fault { mark: Some(mark), .. } => match mark {
            Note::Plain(cause) => json!({ "kind": "failure", "cause": cause }),
            Note::CoolDown { until, .. } => {
                json!({ "kind": "coolDown", "until": until.as_millisecond(), "message": mark.to_string() })
            }
            Note::Quota { until, .. } => {
                json!({ "kind": "quota", "until": until.as_millisecond(), "message": mark.to_string() })
            }
            Note::Ejected { .. } => json!({ "kind": "ejected", "message": mark.to_string() }),
        },
        Event::Fault { mark: None, .. } | Event::Refreshed { .. } => return None,
    };
    notice["accountId"] = json!(&**id);
    notice["at"] = json!(outcome.at.as_millisecond());
    Some(notice)
}

/// The name of an event, and its listeners' argument.
fn event_json(event: &PoolEvent) -> Value {
    match event {
        PoolEvent::Ejected { id, message } => {
            json!({ "event": "accountEjected", "value": { "accountId": &**id, "message": message } })
        }
        PoolEvent::TokenRefreshed { id, expires_at, method } => json!({
            "event": "tokenRefreshed",
            "value": { "accountId": &**id, "expiresAt": expires_at.map(rfc3339), "method": method.as_str() },
        }),
        PoolEvent::ModelReplaced { name, instead } => {
            json!({ "event": "modelReplaced", "value": { "model": name, "instead": instead } })
        }
        PoolEvent::StoreLost { cause } => json!({ "event": "storeLost", "value": { "cause": cause } }),
        PoolEvent::StoreBack { away, written } => json!({
            "event": "storeBack",
            "value": { "awayMs": u64::try_from(away.as_millis()).unwrap_or(u64::MAX), "written": written },
        }),
    }
}

fn now() -> Instant {
    Instant::now()
}
