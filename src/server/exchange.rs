//! The one request that runs on a connection: the state that both sides of hyper share.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderMap, Request, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::gateway::Cutter;

/// Most bytes, and the longest time, of an unwanted request that is read to keep the connection.
const SMALL: usize = 256 * 1024;
const SOON: Duration = Duration::from_secs(1);

/// State that a connection shares with its current answer. There is one answer at a time. Only [`Current::cut`] is
/// called from another task than the connection's.
#[derive(Default)]
pub(super) struct Current {
    /// Ends the running stream.
    cutter: Mutex<Option<Cutter>>,
    /// The part of the request that the answer left unread.
    rest: Mutex<Option<Incoming>>,
    /// A request has come and its answer hasn't ended.
    answering: AtomicBool,
    /// The next bytes of its body are asked for. Not so before the first, nor while those that came wait for room.
    reading: AtomicBool,
    /// All of the request has come.
    received: AtomicBool,
    /// HTTP/1.1
    modern: AtomicBool,
    /// hyper has the head of the answer.
    begun: AtomicBool,
    /// A `ping` is due in the answer.
    ping: AtomicBool,
    /// A request wasn't read to its end, so no other can follow it.
    unread: AtomicBool,
}

impl Current {
    /// A request has come. Its new body reports its progress here.
    pub(super) fn begin(self: &Arc<Self>, request: Request<Incoming>) -> Request<Upload> {
        self.modern.store(request.version() == Version::HTTP_11, Ordering::Relaxed);
        self.received.store(request.body().is_end_stream(), Ordering::Relaxed);
        self.reading.store(false, Ordering::Relaxed);
        self.begun.store(false, Ordering::Relaxed);
        self.ping.store(false, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
        request.map(|body| Upload { body: Some(body), current: self.clone() })
    }

    /// The head of the answer goes out. The answer has ended when the returned guard is dropped.
    pub(super) fn answer(self: &Arc<Self>, cutter: Option<Cutter>) -> Answering {
        *lock(&self.cutter) = cutter;
        self.begun.store(true, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// Ends the stream that is under way.
    pub(super) fn cut(&self) {
        if let Some(cutter) = lock(&self.cutter).take() {
            cutter.cut();
        }
    }

    /// A request has come whole, and its answer hasn't ended.
    pub(super) fn is_answering(&self) -> bool {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        is(&self.answering) && is(&self.received) && is(&self.modern)
    }

    /// A request has come whose body, or the rest of it, waits to be read.
    pub(super) fn is_waiting(&self) -> bool {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        is(&self.answering) && is(&self.modern) && !is(&self.received) && !is(&self.reading) && !is(&self.begun)
    }

    /// Has a `ping` sent within the answer. False when its head is still to come.
    pub(super) fn ping(&self) -> bool {
        let begun = self.begun.load(Ordering::Relaxed);
        self.ping.store(begun, Ordering::Relaxed);
        begun
    }

    /// Reads the unread part of the request, if it is small and comes soon. False: the connection must end with the
    /// answer.
    pub(super) async fn read_rest(&self, headers: Rest) -> bool {
        let Some(mut body) = lock(&self.rest).take() else { return true };
        self.reading.store(true, Ordering::Relaxed);
        // A client that waits for `100 Continue` must not get it.
        let is_welcome = !headers.expects && body.size_hint().lower() <= SMALL as u64;
        let whole = async {
            let mut left = SMALL;
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return false };
                let length = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(length) {
                    Some(rest) => left = rest,
                    None => return false,
                }
            }
            true
        };
        let read = is_welcome && tokio::time::timeout(SOON, whole).await == Ok(true);
        self.received.store(read, Ordering::Relaxed);
        self.unread.store(!read, Ordering::Relaxed);
        read
    }

    /// The connection ended with a request that wasn't read to its end.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }
}

/// The headers that decide how the rest of a request is read.
pub(super) struct Rest {
    expects: bool,
}

impl Rest {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self { expects: headers.contains_key(EXPECT) }
    }
}

/// The body of a request.
pub(super) struct Upload {
    body: Option<Incoming>,
    current: Arc<Current>,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || body.is_end_stream() {
            self.current.received.store(true, Ordering::Relaxed);
        }
        self.current.reading.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.current.received.load(Ordering::Relaxed) {
            *lock(&self.current.rest) = self.body.take();
        }
    }
}

/// An answer that isn't over.
pub(super) struct Answering(Arc<Current>);

impl Answering {
    /// Whether a `ping` is due. Asking resets it.
    pub(super) fn is_ping_due(&self) -> bool {
        self.0.ping.load(Ordering::Relaxed) && self.0.ping.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
