//! The doorbell of one JavaScript thread: how bytes cross into JavaScript (N30–N32).
//!
//! Each call has an [`OpenCall`], a queue that its task fills. A call that gets something joins the line of ready calls
//! and rings the bell, unless it rang already: at most one call into JavaScript is pending, however many streams
//! there are. JavaScript then asks for a batch, which empties every queue in the line at once, and is one Buffer:
//!
//! ```text
//! batch = more:u32 { call:u32 kind:u32 length:u32 payload } *       little-endian
//! ```
//!
//! One Buffer, because making JavaScript values is the cost of crossing: a Buffer made here is ten times as dear as a
//! view made there.
//!
//! The queue is bounded. Its `held` counts the bytes that wait on either side of the border. JavaScript reports taken
//! bytes ([`Bell::taken`]) in steps, so the count is never too low. At [`HIGH`] the task stops reading its upstream,
//! below [`LOW`] it goes on (N31).

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::feed::{Fed, Feed};
use super::outlet::Outlet;

/// Bytes waiting in a stream at which its upstream is no longer read.
pub(crate) const HIGH: usize = 64 * 1024;
/// Bytes waiting in a stream below which its upstream is read again.
pub(crate) const LOW: usize = 32 * 1024;
/// Bytes at which a batch ends; the rest comes in the next turn of the event loop, so that turns stay short (N32, N54).
const BATCH_BYTES: usize = 256 * 1024;
/// The same, counted in calls: each costs JavaScript a promise, a write, or a head (about 50 µs).
const BATCH_SLOTS: usize = 32;

/// The kind of a message to JavaScript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MessageKind {
    /// Bytes of the answer, in order.
    Data = 0,
    /// JSON: the answer begins; the facts before its first byte.
    Head = 1,
    /// JSON: the answer is over; the last message of its call.
    End = 2,
    /// JSON: the call failed before its answer began; the last message of its call.
    Fail = 3,
    /// JSON: an event outside of any call (see [`super::notifier`]).
    Notice = 4,
    /// Nothing: the request's body is wanted again, after [`Bell::feed`] had enough.
    More = 5,
}

impl MessageKind {
    fn is_last(self) -> bool {
        matches!(self, Self::End | Self::Fail)
    }
}

/// The bell and every open call of one JavaScript thread.
#[derive(Clone)]
pub(crate) struct Bell(Arc<BellState>);

struct BellState {
    /// Calls into JavaScript, one turn of its event loop later.
    ring: Box<dyn Fn() + Send + Sync>,
    /// A ring is on its way, or JavaScript has said that it comes again by itself.
    rung: AtomicBool,
    // Bound: calls with something for JavaScript | an open call each | none: one call is in it once
    ready: Mutex<VecDeque<Arc<OpenCall>>>,
    // Bound: open calls of a JavaScript thread | a call that JavaScript made each | it goes with its end
    open: Mutex<HashMap<u32, Arc<OpenCall>>>,
    /// The thread is going away: no ring any more.
    silent: AtomicBool,
}

impl Bell {
    pub(crate) fn new(ring: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(BellState {
            ring: Box::new(ring),
            rung: AtomicBool::new(false),
            ready: Mutex::default(),
            open: Mutex::default(),
            silent: AtomicBool::new(false),
        }))
    }

    /// A place for the messages of call number `id`. The number is JavaScript's; it is free again after the last
    /// message.
    pub(crate) fn open(&self, id: u32) -> Arc<OpenCall> {
        let slot = Arc::new(OpenCall {
            id,
            bell: self.clone(),
            queue: Mutex::default(),
            room: Notify::new(),
            feed: Mutex::default(),
            way: Mutex::default(),
            cancelled: CancellationToken::new(),
        });
        let mut open = lock(&self.0.open);
        if self.0.silent.load(Ordering::Acquire) {
            slot.cancelled.cancel();
        } else {
            open.insert(id, slot.clone());
        }
        drop(open);
        slot
    }

    /// Ends a call: its task drops the upstream request, its waiting bytes are discarded (N33).
    pub(crate) fn cancel(&self, id: u32) {
        if let Some(slot) = self.find(id) {
            slot.cancel();
        }
    }

    /// JavaScript has handed on `bytes` of a call.
    pub(crate) fn taken(&self, id: u32, bytes: usize) {
        if let Some(slot) = self.find(id) {
            slot.taken(bytes);
        }
    }

    /// The next bytes of a call's request. They are dropped when the call has an answer already. False: no more of them
    /// until [`MessageKind::More`].
    pub(crate) fn feed(&self, id: u32, bytes: Bytes) -> bool {
        let Some(slot) = self.find(id) else { return true };
        let fed = lock(&slot.feed).as_ref().map(|feed| feed.push(bytes));
        if fed == Some(Fed::Unwanted) {
            slot.fed();
        }
        fed != Some(Fed::Enough)
    }

    /// A call's request is complete.
    pub(crate) fn fed(&self, id: u32) {
        if let Some(slot) = self.find(id) {
            slot.fed();
        }
    }

    /// Answers [`OpenCall::way`]: a call's answer goes to a socket, or comes here when there is none.
    pub(crate) fn lead(&self, id: u32, outlet: Option<Outlet>) {
        if let Some(way) = self.find(id).and_then(|slot| lock(&slot.way).take()) {
            // A call that was cancelled meanwhile waits no longer.
            let _gone = way.send(outlet);
        }
    }

    /// Writes the next batch to `out`, which is empty when nothing waits.
    ///
    /// `again` says that JavaScript will ask again without being rung as long as it gets something.
    pub(crate) fn drain(&self, out: &mut Vec<u8>, again: bool) {
        out.clear();
        if !again {
            // Before looking: every post from here on rings anew.
            self.0.rung.store(false, Ordering::SeqCst);
        }
        loop {
            let mut slots = 0;
            let mut more = false;
            loop {
                if slots == BATCH_SLOTS || out.len() >= BATCH_BYTES {
                    more = !lock(&self.0.ready).is_empty();
                    break;
                }
                let Some(slot) = lock(&self.0.ready).pop_front() else { break };
                if out.is_empty() {
                    out.extend_from_slice(&0_u32.to_le_bytes());
                }
                slots += 1;
                if slot.write_to(out) {
                    lock(&self.0.open).remove(&slot.id);
                }
            }
            if more {
                self.0.rung.store(true, Ordering::SeqCst);
                if let Some(first) = out.first_mut() {
                    *first = 1;
                }
                return;
            }
            if !again || slots > 0 {
                return;
            }
            // Nothing there: JavaScript waits for the next ring. A post may have come between the look and the store.
            self.0.rung.store(false, Ordering::SeqCst);
            if lock(&self.0.ready).is_empty() || self.0.rung.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }

    /// The JavaScript thread ends: every call is cancelled, nothing calls into it any more (N50).
    pub(crate) fn silence(&self) {
        self.0.silent.store(true, Ordering::Release);
        let open: Vec<_> = lock(&self.0.open).drain().map(|(_, slot)| slot).collect();
        lock(&self.0.ready).clear();
        for slot in open {
            slot.cancel();
        }
    }

    fn find(&self, id: u32) -> Option<Arc<OpenCall>> {
        lock(&self.0.open).get(&id).cloned()
    }

    fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::SeqCst) && !self.0.silent.load(Ordering::Acquire) {
            (self.0.ring)();
        }
    }
}

/// One call's queue towards JavaScript.
pub(crate) struct OpenCall {
    id: u32,
    bell: Bell,
    queue: Mutex<MessageQueue>,
    room: Notify,
    /// Takes the request's body, until it is complete.
    feed: Mutex<Option<Feed>>,
    /// Takes JavaScript's answer to a streamed head.
    way: Mutex<Option<oneshot::Sender<Option<Outlet>>>>,
    cancelled: CancellationToken,
}

#[derive(Default)]
struct MessageQueue {
    messages: VecDeque<(MessageKind, Bytes)>,
    /// Bytes of [`MessageKind::Data`] that were posted and not yet reported as taken.
    held: usize,
    /// In the line of ready calls.
    ready: bool,
    /// The task waits for room.
    stopped: bool,
}

impl OpenCall {
    /// Puts a message into the queue. Bytes for a cancelled call are dropped.
    pub(crate) fn post(self: &Arc<Self>, kind: MessageKind, payload: Bytes) {
        let mut queue = lock(&self.queue);
        if kind == MessageKind::Data {
            if self.cancelled.is_cancelled() {
                return;
            }
            queue.held += payload.len();
        }
        queue.messages.push_back((kind, payload));
        if mem::replace(&mut queue.ready, true) {
            return;
        }
        drop(queue);
        let mut ready = lock(&self.bell.0.ready);
        // The thread is gone, and the line would keep its bell, which keeps the line (N54).
        if self.bell.0.silent.load(Ordering::Acquire) {
            return;
        }
        ready.push_back(self.clone());
        drop(ready);
        self.bell.ring();
    }

    /// Ready as soon as the queue may take more: at once below [`HIGH`], else when it has gone below [`LOW`].
    ///
    /// Cancel safe.
    pub(crate) async fn room(&self) {
        if lock(&self.queue).held < HIGH {
            return;
        }
        loop {
            let notified = self.room.notified();
            {
                let mut queue = lock(&self.queue);
                if queue.held < LOW {
                    queue.stopped = false;
                    return;
                }
                queue.stopped = true;
            }
            notified.await;
        }
    }

    /// Messages that JavaScript hasn't fetched.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.queue).messages.len()
    }

    /// Whether the call was cancelled, or its thread is going away.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Ready when the call was cancelled.
    pub(crate) async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Where [`Bell::feed`] sends the request's body.
    pub(crate) fn feed_by(&self, feed: Feed) {
        *lock(&self.feed) = Some(feed);
    }

    /// Posts the head of a streamed answer. Returns the socket that its bytes go to; `None`: this queue.
    pub(crate) async fn way(self: &Arc<Self>, head: Bytes) -> Option<Outlet> {
        let (way, answer) = oneshot::channel();
        *lock(&self.way) = Some(way);
        self.post(MessageKind::Head, head);
        answer.await.ok().flatten()
    }

    fn fed(&self) {
        *lock(&self.feed) = None;
    }

    fn cancel(&self) {
        self.cancelled.cancel();
        lock(&self.queue).messages.retain(|(kind, _)| *kind != MessageKind::Data);
    }

    fn taken(&self, bytes: usize) {
        let mut queue = lock(&self.queue);
        queue.held = queue.held.saturating_sub(bytes);
        if queue.stopped && queue.held < LOW {
            queue.stopped = false;
            self.room.notify_one();
        }
    }

    /// Empties the queue into a batch, neighbouring bytes as one message. True when that was the call's last message.
    fn write_to(&self, out: &mut Vec<u8>) -> bool {
        let messages = {
            let mut queue = lock(&self.queue);
            queue.ready = false;
            mem::take(&mut queue.messages)
        };
        let mut last = false;
        let mut data_at = None;
        for (kind, payload) in messages {
            last |= kind.is_last();
            match data_at.filter(|_| kind == MessageKind::Data) {
                Some(at) => {
                    out.extend_from_slice(&payload);
                    write_length(out, at);
                }
                None => {
                    let at = out.len();
                    for word in [self.id, kind as u32, 0] {
                        out.extend_from_slice(&word.to_le_bytes());
                    }
                    out.extend_from_slice(&payload);
                    write_length(out, at);
                    data_at = (kind == MessageKind::Data).then_some(at);
                }
            }
        }
        last
    }
}

const HEADER: usize = 12;

/// Sets the length of the message whose header lies at `at` and whose payload is the rest of `out`.
fn write_length(out: &mut [u8], at: usize) {
    let length = u32::try_from(out.len() - at - HEADER).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(at + 8..at + HEADER) {
        field.copy_from_slice(&length.to_le_bytes());
    }
}

/// A panic elsewhere leaves these queues whole: each is changed in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::FutureExt as _;

    use super::*;

    fn bell() -> (Bell, Arc<AtomicUsize>) {
        let rings = Arc::new(AtomicUsize::new(0));
        let count = rings.clone();
        (Bell::new(move || _ = count.fetch_add(1, Ordering::SeqCst)), rings)
    }

    fn batch(bell: &Bell, again: bool) -> (bool, Vec<(u32, u32, Vec<u8>)>) {
        let mut out = Vec::new();
        bell.drain(&mut out, again);
        if out.is_empty() {
            return (false, Vec::new());
        }
        let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().unwrap());
        let mut messages = Vec::new();
        let mut at = 4;
        while at < out.len() {
            let length = word(at + 8) as usize;
            messages.push((word(at), word(at + 4), out[at + HEADER..at + HEADER + length].to_vec()));
            at += HEADER + length;
        }
        (word(0) != 0, messages)
    }

    #[test]
    fn one_ring_for_all_streams_and_one_batch_for_all_they_hold_n30() {
        let (bell, rings) = bell();
        let (a, b) = (bell.open(7), bell.open(8));
        a.post(MessageKind::Head, Bytes::from_static(b"{}"));
        a.post(MessageKind::Data, Bytes::from_static(b"one"));
        b.post(MessageKind::Data, Bytes::from_static(b"x"));
        a.post(MessageKind::Data, Bytes::from_static(b"two"));
        assert_eq!(rings.load(Ordering::SeqCst), 1);
        let (more, messages) = batch(&bell, false);
        assert!(!more);
        assert_eq!(messages, [(7, 1, b"{}".to_vec()), (7, 0, b"onetwo".to_vec()), (8, 0, b"x".to_vec())]);
        assert_eq!(batch(&bell, false), (false, vec![]));
        b.post(MessageKind::Data, Bytes::from_static(b"y"));
        assert_eq!(rings.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn while_javascript_comes_by_itself_nothing_rings_and_nothing_is_lost() {
        let (bell, rings) = bell();
        let slot = bell.open(1);
        slot.post(MessageKind::Data, Bytes::from_static(b"a"));
        assert_eq!(batch(&bell, true).1.len(), 1);
        slot.post(MessageKind::Data, Bytes::from_static(b"b"));
        assert_eq!(rings.load(Ordering::SeqCst), 1);
        assert_eq!(batch(&bell, true).1, [(1, 0, b"b".to_vec())]);
        assert_eq!(batch(&bell, true).1, []);
        slot.post(MessageKind::Data, Bytes::from_static(b"c"));
        assert_eq!(rings.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_batch_is_bounded_and_says_that_there_is_more() {
        let (bell, rings) = bell();
        let slots: Vec<_> = (0..BATCH_SLOTS as u32 + 1).map(|id| bell.open(id)).collect();
        for slot in &slots {
            slot.post(MessageKind::Data, Bytes::from_static(b"x"));
        }
        let (more, messages) = batch(&bell, false);
        assert!(more);
        assert_eq!(messages.len(), BATCH_SLOTS);
        let (more, messages) = batch(&bell, false);
        assert!(!more);
        assert_eq!(messages.len(), 1);
        assert_eq!(rings.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_full_queue_has_no_room_until_it_is_below_the_low_mark_n31() {
        let (bell, _) = bell();
        let slot = bell.open(1);
        assert_eq!(slot.room().now_or_never(), Some(()));
        slot.post(MessageKind::Data, Bytes::from(vec![0; HIGH]));
        assert_eq!(slot.room().now_or_never(), None);
        batch(&bell, false);
        let mut room = Box::pin(slot.room());
        assert_eq!(room.as_mut().now_or_never(), None, "drained is not taken");
        bell.taken(1, HIGH - LOW);
        assert_eq!(room.as_mut().now_or_never(), None);
        bell.taken(1, 1);
        assert_eq!(room.as_mut().now_or_never(), Some(()));
    }

    #[test]
    fn a_cancelled_call_drops_its_bytes_and_still_ends_n33() {
        let (bell, _) = bell();
        let slot = bell.open(1);
        slot.post(MessageKind::Data, Bytes::from_static(b"a"));
        bell.cancel(1);
        assert_eq!(slot.cancelled().now_or_never(), Some(()));
        slot.post(MessageKind::Data, Bytes::from_static(b"b"));
        slot.post(MessageKind::End, Bytes::from_static(b"{}"));
        assert_eq!(batch(&bell, false).1, [(1, 2, b"{}".to_vec())]);
        assert!(bell.find(1).is_none());
    }

    #[test]
    fn a_silent_bell_cancels_what_is_open_and_rings_no_more_n50() {
        let (bell, rings) = bell();
        let slot = bell.open(1);
        bell.silence();
        assert!(slot.cancelled.is_cancelled());
        slot.post(MessageKind::End, Bytes::from_static(b"{}"));
        assert!(bell.open(2).cancelled.is_cancelled());
        assert_eq!(rings.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_silent_bell_is_freed_with_the_calls_that_outlived_it_n50_n54() {
        let (bell, rings) = bell();
        let slot = bell.open(1);
        bell.silence();
        slot.post(MessageKind::End, Bytes::from_static(b"{}"));
        bell.open(2).post(MessageKind::End, Bytes::from_static(b"{}"));
        drop((bell, slot));
        assert_eq!(Arc::strong_count(&rings), 1, "the ring, with what it calls in JavaScript, is gone");
    }
}
