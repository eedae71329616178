//! Response bodies. A stream's body *is* the upstream body with the transcoder inside: no task, no channel.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Frame, SizeHint};
use tokio_util::sync::CancellationToken;

use super::status::Events;
use crate::gateway::{Cutter, MessageStream};

/// The body of an answer.
pub struct Body(Kind);

enum Kind {
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

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self(Kind::Full(Bytes::new()))
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Kind::Full(bytes.into()))
    }

    /// The SSE bytes of a stream, as they come.
    pub fn stream(stream: MessageStream) -> Self {
        Self(Kind::Stream(Box::new(stream)))
    }

    /// What ends the stream inside from outside.
    pub fn cutter(&self) -> Option<Cutter> {
        match &self.0 {
            // The numbers of the status page end with the gateway by themselves.
            Kind::Full(_) | Kind::Status(_) => None,
            Kind::Stream(stream) => Some(stream.cutter()),
        }
    }

    /// The numbers of the status page, as they come.
    pub(super) fn status(events: Events) -> Self {
        Self(Kind::Status(Box::new(events)))
    }

    /// Ends what would go on for ever when `stop` is cancelled; answers aren't touched.
    pub(super) fn until(&mut self, stop: &CancellationToken) {
        if let Kind::Status(events) = &mut self.0 {
            events.until(stop);
        }
    }

    /// The stream inside, or the bytes.
    pub fn into_stream(self) -> Result<Sse, Bytes> {
        match self.0 {
            Kind::Full(bytes) => Err(bytes),
            Kind::Stream(stream) => Ok(Sse::Message(stream)),
            Kind::Status(events) => Ok(Sse::Status(events)),
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

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Stream(stream) => {
                Pin::new(stream.as_mut()).poll_next(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
            Kind::Status(events) => {
                Pin::new(events.as_mut()).poll_next(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Stream(stream) => stream.is_ended(),
            Kind::Status(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(_) | Kind::Status(_) => SizeHint::default(),
        }
    }
}
