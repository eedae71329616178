//! The way of a request's body from JavaScript to its reader (N16).
//!
//! JavaScript feeds what its client sends, as long as the reader keeps up. Past [`HIGH`] it is told to stop, and to go on
//! when less than [`LOW`] waits: a body that waits for its share of the memory (M90) is left with its client, where it
//! counts nowhere.

use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Bytes waiting that don't stop JavaScript. Node.js reads so many at once: a reader that keeps up has one read before it.
const HIGH: usize = 64 * 1024;
/// Bytes waiting below which it goes on.
const LOW: usize = 32 * 1024;

/// JavaScript's end. The body is complete when it is dropped.
pub(crate) struct Feed {
    chunks: UnboundedSender<Bytes>,
    backlog: Arc<Mutex<Backlog>>,
}

/// The reader's end: the body of a request.
pub(crate) struct Incoming {
    chunks: UnboundedReceiver<Bytes>,
    backlog: Arc<Mutex<Backlog>>,
    /// Tells JavaScript to go on.
    go_on: Box<dyn Fn() + Send + Sync>,
}

/// What has been fed and isn't read.
#[derive(Default)]
struct Backlog {
    bytes: usize,
    stopped: bool,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// The next one is welcome.
    Welcome,
    /// No more until `go_on`.
    Enough,
    /// Nobody reads: there is an answer already.
    Unwanted,
}

/// Both ends. `go_on` is called once for each [`Fed::Enough`], unless the reader is dropped.
pub(crate) fn feed(go_on: impl Fn() + Send + Sync + 'static) -> (Feed, Incoming) {
    let (sender, receiver) = unbounded_channel();
    let backlog = Arc::<Mutex<Backlog>>::default();
    let feed = Feed { chunks: sender, backlog: backlog.clone() };
    (feed, Incoming { chunks: receiver, backlog, go_on: Box::new(go_on) })
}

impl Feed {
    pub(crate) fn push(&self, bytes: Bytes) -> Fed {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        backlog.bytes += bytes.len();
        if self.chunks.send(bytes).is_err() {
            return Fed::Unwanted;
        }
        backlog.stopped = backlog.bytes > HIGH;
        if backlog.stopped { Fed::Enough } else { Fed::Welcome }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = self.chunks.poll_recv(cx);
        if let Poll::Ready(Some(bytes)) = &polled {
            let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
            backlog.bytes -= bytes.len();
            let goes_on = backlog.bytes < LOW && mem::take(&mut backlog.stopped);
            drop(backlog);
            if goes_on {
                (self.go_on)();
            }
        }
        polled.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn a_reader_that_lags_stops_its_feed_and_calls_for_more_once_n16() {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let (feed, mut body) = feed(move || _ = count.fetch_add(1, Ordering::SeqCst));
        let chunk = || Bytes::from(vec![0; HIGH]);
        let mut read = || body.frame().now_or_never().flatten().is_some();
        assert_eq!(feed.push(chunk()), Fed::Welcome);
        assert_eq!(feed.push(chunk()), Fed::Enough);
        assert!(read());
        assert_eq!(calls.load(Ordering::SeqCst), 0, "a whole read still waits");
        assert!(read() && !read());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(feed.push(chunk()), Fed::Welcome);
        assert!(read());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        drop(body);
        assert_eq!(feed.push(chunk()), Fed::Unwanted);
    }
}
