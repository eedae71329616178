//! Response bodies. A stream's body *is* the upstream body with the transcoder inside: no task, no channel.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderValue;
use http_body::{Frame, SizeHint};
use tokio_util::sync::CancellationToken;

use super::events::Events;
use super::exchange::Answering;
use crate::gateway::{Cutter, MessageStream};

/// The content type of both streams.
pub(super) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
/// Sent in a stream to learn whether the client is still there.
const PING: Bytes = Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n");

/// The body of an answer.
pub struct ResponseBody {
    kind: ResponseBodyKind,
    /// Tells the connection when the body ends.
    answering: Option<Answering>,
    /// The stream's first bytes are out, `message_start` among them.
    begun: bool,
}

enum ResponseBodyKind {
    Full(Bytes),
    Stream(Box<MessageStream>),
    Status(Box<Events>),
}

/// SSE bytes, for a face that delivers them in another way than HTTP; each item holds whole events.
pub enum Sse {
    /// An answer.
    Message(Box<MessageStream>),
    /// The numbers of the status page.
    Status(Box<Events>),
}

impl ResponseBody {
    fn of(kind: ResponseBodyKind) -> Self {
        Self { kind, answering: None, begun: false }
    }

    /// No bytes.
    pub fn empty() -> Self {
        Self::of(ResponseBodyKind::Full(Bytes::new()))
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::of(ResponseBodyKind::Full(bytes.into()))
    }

    /// The SSE bytes of a stream, as they come.
    pub fn stream(stream: Box<MessageStream>) -> Self {
        Self::of(ResponseBodyKind::Stream(stream))
    }

    /// Ends the stream inside from outside.
    pub fn cutter(&self) -> Option<Cutter> {
        match &self.kind {
            // The numbers of the status page end with the gateway by themselves.
            ResponseBodyKind::Full(_) | ResponseBodyKind::Status(_) => None,
            ResponseBodyKind::Stream(stream) => Some(stream.cutter()),
        }
    }

    /// The numbers of the status page, as they come.
    pub(super) fn status(events: Events) -> Self {
        Self::of(ResponseBodyKind::Status(Box::new(events)))
    }

    /// Ends the status page's numbers when `stop` is cancelled; they never end by themselves. Answers aren't touched.
    pub(super) fn until(&mut self, stop: &CancellationToken) {
        if let ResponseBodyKind::Status(events) = &mut self.kind {
            events.until(stop);
        }
    }

    /// Makes this the answer to the connection's request.
    pub(super) fn attend(&mut self, answering: Answering) {
        self.answering = Some(answering);
    }

    /// The stream inside, or the bytes.
    pub fn into_stream(self) -> Result<Sse, Bytes> {
        match self.kind {
            ResponseBodyKind::Full(bytes) => Err(bytes),
            ResponseBodyKind::Stream(stream) => Ok(Sse::Message(stream)),
            ResponseBodyKind::Status(events) => Ok(Sse::Status(events)),
        }
    }
}

impl Stream for Sse {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match &mut *self {
            Self::Message(stream) => Pin::new(stream.as_mut()).poll_next(cx),
            Self::Status(events) => Pin::new(events.as_mut()).poll_next(cx),
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        match &mut this.kind {
            ResponseBodyKind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            ResponseBodyKind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            ResponseBodyKind::Stream(stream) => {
                let mut polled = Pin::new(stream.as_mut()).poll_next(cx);
                if polled.is_ready() {
                    this.begun = true;
                } else if this.begun && this.answering.as_ref().is_some_and(Answering::is_ping_due) {
                    polled = Poll::Ready(Some(PING));
                }
                polled.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
            ResponseBodyKind::Status(events) => {
                Pin::new(events.as_mut()).poll_next(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ResponseBodyKind::Full(bytes) => bytes.is_empty(),
            ResponseBodyKind::Stream(stream) => stream.is_ended(),
            ResponseBodyKind::Status(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseBodyKind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ResponseBodyKind::Stream(_) | ResponseBodyKind::Status(_) => SizeHint::default(),
        }
    }
}
