//! Response bodies. A stream's body *is* the upstream body with the transcoder inside: no task, no channel.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Frame, SizeHint};

use crate::gateway::{Cutter, MessageStream};

/// The body of an answer.
pub struct Body(Kind);

enum Kind {
    Full(Bytes),
    Stream(Box<MessageStream>),
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
            Kind::Full(_) => None,
            Kind::Stream(stream) => Some(stream.cutter()),
        }
    }

    /// The stream inside, for a face that delivers it in another way than HTTP.
    pub fn into_stream(self) -> Result<MessageStream, Bytes> {
        match self.0 {
            Kind::Full(bytes) => Err(bytes),
            Kind::Stream(stream) => Ok(*stream),
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Stream(stream) => stream.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(_) => SizeHint::default(),
        }
    }
}
