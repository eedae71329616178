//! The running answers: their limit, their list, and how they are ended from outside.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::task::AtomicWaker;
use serde::Serialize;
use tokio::time::Instant;

use super::keys::KeyPlace;
use super::summary::SummaryCell;
use crate::memory;
use crate::pool::{AccountId, short};

/// The gateway's handle of a stream: to end it at shutdown, and to list it.
pub(super) struct StreamHandle {
    pub(super) cut: AtomicBool,
    pub(super) waker: AtomicWaker,
    summary: Arc<SummaryCell>,
    began: Instant,
    /// The account whose answer is being read; none while an attempt is being opened.
    reading: Mutex<Option<AccountId>>,
}

impl StreamHandle {
    pub(super) fn new(summary: Arc<SummaryCell>, began: Instant) -> Self {
        Self { cut: AtomicBool::new(false), waker: AtomicWaker::new(), summary, began, reading: Mutex::default() }
    }

    pub(super) fn opens(&self) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn reads(&self, account: &AccountId) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = Some(account.clone());
    }

    fn seen(&self) -> OpenRequest {
        let account = self.reading.lock().unwrap_or_else(PoisonError::into_inner).clone();
        OpenRequest {
            request_id: self.summary.request_id().to_owned(),
            kiro_model: self.summary.kiro_model().to_owned(),
            stream: self.summary.is_streamed(),
            phase: if account.is_some() { "reading" } else { "opening" },
            account: account.map(|id| short(&id).to_owned()),
            age_ms: self.began.elapsed().as_millis() as u64,
        }
    }

    /// Ends the stream with an `error` event at its next poll.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// A running request for an answer.
#[derive(Debug, Clone, Serialize)]
pub struct OpenRequest {
    /// The id of the request.
    pub request_id: String,
    /// The model as upstream names it.
    pub kiro_model: String,
    /// Whether it is streamed.
    pub stream: bool,
    /// `opening`: an account is selected or asked; `reading`: the answer is being read.
    pub phase: &'static str,
    /// The first 8 characters of the account that answers.
    pub account: Option<String>,
    /// Milliseconds since it arrived.
    pub age_ms: u64,
}

/// Ends one stream from outside with an `error` event, as shutdown does. It keeps nothing alive.
pub struct Cutter(pub(super) Arc<StreamHandle>);

impl Cutter {
    /// Ends it at its next poll; a stream that is over stays as it is.
    pub fn cut(&self) {
        self.0.cut();
    }
}

/// The open streams, so that shutdown can reach them. Touched only at their beginning and end.
#[derive(Default)]
pub(super) struct OpenStreams {
    next: AtomicU64,
    // Bound: running streams | KIRO_MAX_CONNS | a further request gets 529
    open: Mutex<HashMap<u64, Arc<StreamHandle>>>,
}

impl OpenStreams {
    pub(super) fn add(&self, summary: Arc<SummaryCell>, began: Instant) -> (u64, Arc<StreamHandle>) {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(StreamHandle::new(summary, began));
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(key, handle.clone());
        (key, handle)
    }

    pub(super) fn remove(&self, key: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    pub(super) fn cut_all(&self) {
        for handle in self.all() {
            handle.cut();
        }
    }

    /// The oldest first.
    pub(super) fn seen(&self) -> Vec<OpenRequest> {
        let mut open: Vec<OpenRequest> = self.all().iter().map(|handle| handle.seen()).collect();
        open.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
        open
    }

    fn all(&self) -> Vec<Arc<StreamHandle>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// What a stream takes, with its connections.
const OF_A_STREAM: usize = 24 * 1024;

/// A place among the requests in flight (`KIRO_MAX_CONNS`).
pub(super) struct Permit {
    in_flight: Arc<AtomicUsize>,
    /// And among those of its client's key.
    _of_key: Option<Arc<KeyPlace>>,
}

impl Permit {
    pub(super) fn take(in_flight: &Arc<AtomicUsize>, limit: usize, of_key: Option<Arc<KeyPlace>>) -> Option<Self> {
        let taken = in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1));
        taken.ok().map(|_| Self { in_flight: in_flight.clone(), _of_key: of_key })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        memory::freed(OF_A_STREAM);
    }
}
