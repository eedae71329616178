//! One request and its answer on a connection. The waiting caller drives it: no task, no channel, no buffer of its own
//! while it waits. `ureq-proto`, which does no IO, parses answers. Their bytes lie in a buffer that all streams of a
//! thread share, until the body's bytes are cut out of it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use ureq_proto::BodyMode;
use ureq_proto::client::state::{RecvBody, RecvResponse};
use ureq_proto::client::{Call, RecvBodyResult, RecvResponseResult, SendRequestResult};

use super::connections::{Connections, Socket};
use super::route::Route;
use crate::proto::kiro::request::Parts;

/// Most bytes of one read.
const READ: usize = 16 * 1024;
/// Most bytes of an answer's head, and of the parts between two pieces of a body, such as a chunk's size or trailers.
const MAX_HEAD: usize = 64 * 1024;
/// Most pieces of one write.
const PIECES: usize = 64;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// A request as it goes over the wire.
pub(super) struct WireRequest {
    head: Vec<u8>,
    body: Parts,
}

/// How much of a request is out.
#[derive(Default)]
struct Cursor {
    /// The piece that goes on: the head, then the body's segments.
    place: usize,
    /// Bytes of it that are out.
    at: usize,
}

impl WireRequest {
    /// `target`: the request target of RFC 9112, 3.2. `headers` hold the body's length.
    pub(super) fn new(method: &Method, target: &str, host: &str, headers: &HeaderMap, body: Parts) -> Self {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n").into_bytes();
        for (name, value) in headers {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(piece);
            }
        }
        head.extend_from_slice(b"\r\n");
        Self { head, body }
    }

    fn piece(&self, place: usize) -> Option<&[u8]> {
        match place.checked_sub(1) {
            None => Some(&self.head),
            Some(segment) => self.body.segment(segment).map(|segment| &**segment),
        }
    }

    /// The unsent rest, as much of it as one write takes.
    fn left(&self, cursor: &Cursor) -> ([IoSlice<'_>; PIECES], usize) {
        let mut left = [IoSlice::new(&[]); PIECES];
        let (mut count, mut at) = (0, cursor.at);
        for place in cursor.place.. {
            let (Some(piece), Some(slot)) = (self.piece(place), left.get_mut(count)) else { break };
            if at < piece.len() {
                *slot = IoSlice::new(&piece[at..]);
                count += 1;
            }
            at = 0;
        }
        (left, count)
    }

    /// So many bytes more are out.
    fn advance(&self, cursor: &mut Cursor, bytes: usize) {
        cursor.at += bytes;
        while let Some(piece) = self.piece(cursor.place)
            && cursor.at >= piece.len()
        {
            cursor.at -= piece.len();
            cursor.place += 1;
        }
    }
}

/// When a byte of the request last went out; none while there is no connection.
#[derive(Default)]
pub(super) struct SendProgress(Mutex<Option<Instant>>);

impl SendProgress {
    pub(super) fn moved(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn last(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body ended before its end.
#[derive(Debug)]
pub struct Cut;

/// Why an exchange has no answer.
#[derive(Debug)]
pub(super) struct Broken {
    /// Not a byte of an answer came (K69).
    pub(super) unanswered: bool,
}

/// The head of an answer, and the state of its connection.
pub(super) struct Answered {
    pub(super) response: Response<()>,
    call: Call<RecvResponse>,
    /// Bytes that came together with the head.
    rest: Vec<u8>,
    /// The whole request went out.
    all: bool,
}

/// Sends a request and resolves with the head of the answer. An early refusal (by size, say) that comes before the
/// request is out is an answer too: then no more is sent, and the connection isn't used again. After an early success
/// upstream reads on, so the request is finished first.
pub(super) async fn ask(io: &mut Socket, wire: &WireRequest, progress: &SendProgress) -> Result<Answered, Broken> {
    progress.moved();
    let mut call = receiving().map_err(|_| Broken { unanswered: false })?;
    let mut sent = Cursor::default();
    let mut flushed = false;
    let mut writes = true;
    let mut heard = false;
    let mut seen = Vec::new();
    let mut early = None;
    let response = std::future::poll_fn(|cx| {
        while writes && !flushed {
            let (left, count) = wire.left(&sent);
            let wrote = match count {
                0 => Pin::new(&mut *io).poll_flush(cx).map_ok(|()| {
                    flushed = true;
                    progress.moved();
                }),
                _ => Pin::new(&mut *io).poll_write_vectored(cx, &left[..count]).map(|wrote| match wrote {
                    Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        wire.advance(&mut sent, n);
                        progress.moved();
                        Ok(())
                    }
                    Err(error) => Err(error),
                }),
            };
            match wrote {
                Poll::Ready(Ok(())) => {}
                // Perhaps it has answered before it closed. The write fails before the runtime knows of bytes to read:
                // they, or the end, are still to come.
                Poll::Ready(Err(_)) => writes = false,
                Poll::Pending => break,
            }
        }
        let head = match early.take() {
            Some(head) => head,
            None => ready!(poll_head(io, &mut call, &mut seen, &mut heard, cx))?,
        };
        if head.0.status().is_success() && writes && !flushed {
            early = Some(head);
            return Poll::Pending;
        }
        Poll::Ready(Ok(head))
    })
    .await;
    let (response, read_on) = response.map_err(|()| Broken { unanswered: !heard })?;
    seen.drain(..read_on);
    Ok(Answered { response, call, rest: seen, all: flushed })
}

/// One request and its answer; from then on the body drives the connection.
pub(super) async fn exchange(
    mut io: Socket,
    wire: &WireRequest,
    home: Arc<Connections>,
    route: Route,
    progress: &SendProgress,
) -> Result<Response<AnswerBody>, Broken> {
    let Answered { response, call, rest, all } = ask(&mut io, wire, progress).await?;
    let state = match call.proceed() {
        Some(RecvResponseResult::RecvBody(mut call)) => {
            call.stop_on_chunk_boundary(true);
            BodyState::Reading(Box::new(BodyReader { call, io, rest }))
        }
        Some(RecvResponseResult::Cleanup(call)) => {
            if all && rest.is_empty() && !call.must_close_connection() {
                home.keep(&route, io);
            }
            BodyState::Ended
        }
        Some(RecvResponseResult::Redirect(_)) => BodyState::Ended,
        None => return Err(Broken { unanswered: false }),
    };
    let body = AnswerBody { state, reusable: all, home, route };
    Ok(response.map(|()| body))
}

/// The receiving half of a call, made without the request, whose headers would otherwise stay in memory as long as the
/// stream. Only HEAD and CONNECT have answers of another shape.
fn receiving() -> Result<Call<RecvResponse>, ureq_proto::Error> {
    let mut call = Call::new(Request::new(()))?.proceed();
    let mut unused = [0; 64];
    call.write(&mut unused)?;
    match call.proceed()? {
        Some(SendRequestResult::RecvResponse(call)) => Ok(call),
        _ => Err(ureq_proto::Error::OutputOverflow),
    }
}

/// The head of the answer, and how many bytes of `seen` it took.
fn poll_head(
    io: &mut Socket,
    call: &mut Call<RecvResponse>,
    seen: &mut Vec<u8>,
    heard: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<(Response<()>, usize), ()>> {
    BUFFER.with_borrow_mut(|buffer| {
        loop {
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut *io).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => seen.extend_from_slice(read.filled()),
                Poll::Ready(_) => return Poll::Ready(Err(())),
                Poll::Pending => return Poll::Pending,
            }
            *heard = true;
            loop {
                match call.try_response(seen, false) {
                    Ok((used, Some(response))) => return Poll::Ready(Ok((response, used))),
                    Ok((0, None)) => break,
                    // An informational answer.
                    Ok((used, None)) => drop(seen.drain(..used)),
                    // So is this one, which the library accepts only without headers.
                    Err(ureq_proto::Error::HeadersWith100) => match memchr::memmem::find(seen, b"\r\n\r\n") {
                        Some(end) => drop(seen.drain(..end + 4)),
                        None => return Poll::Ready(Err(())),
                    },
                    Err(_) => return Poll::Ready(Err(())),
                }
            }
            if seen.len() > MAX_HEAD {
                return Poll::Ready(Err(()));
            }
        }
    })
}

/// The body of an answer. Dropping it before its end closes the connection (K70); at its end the connection goes back.
pub(super) struct AnswerBody {
    state: BodyState,
    reusable: bool,
    home: Arc<Connections>,
    route: Route,
}

enum BodyState {
    Reading(Box<BodyReader>),
    Ended,
}

struct BodyReader {
    call: Call<RecvBody>,
    io: Socket,
    /// Bytes that are read but incomplete; nearly always empty.
    rest: Vec<u8>,
}

impl AnswerBody {
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state, BodyState::Ended)
    }

    /// The next bytes, none at the end.
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let BodyState::Reading(reading) = &mut self.state else { return Poll::Ready(None) };
        let polled = BUFFER.with_borrow_mut(|buffer| reading.poll(cx, buffer));
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(chunk)) => {
                if reading.call.can_proceed() && !reading.is_close_delimited() {
                    self.end();
                }
                Poll::Ready((!chunk.is_empty()).then_some(Ok(chunk)))
            }
            Poll::Ready(Err(BodyEnd::Closed)) if reading.is_close_delimited() => {
                self.state = BodyState::Ended;
                Poll::Ready(None)
            }
            Poll::Ready(Err(_)) => {
                self.state = BodyState::Ended;
                Poll::Ready(Some(Err(Cut)))
            }
        }
    }

    fn end(&mut self) {
        let BodyState::Reading(reading) = std::mem::replace(&mut self.state, BodyState::Ended) else { return };
        let BodyReader { call, io, rest } = *reading;
        let clean = matches!(call.proceed(), Some(RecvBodyResult::Cleanup(call)) if !call.must_close_connection());
        if clean && self.reusable && rest.is_empty() {
            self.home.keep(&self.route, io);
        }
    }
}

enum BodyEnd {
    Closed,
    Broken,
}

impl BodyReader {
    fn is_close_delimited(&self) -> bool {
        self.call.body_mode() == BodyMode::CloseDelimited
    }

    /// Bytes of the body; none only at its end.
    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<Bytes, BodyEnd>> {
        if !self.rest.is_empty() {
            // Bytes that came together with the head, or before a pause.
            let rest = std::mem::take(&mut self.rest);
            let chunk = self.decode(&rest)?;
            if !chunk.is_empty() || self.has_ended() {
                return Poll::Ready(Ok(chunk));
            }
        }
        loop {
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut self.io).poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(BodyEnd::Broken)),
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(Err(BodyEnd::Closed)),
                Poll::Ready(Ok(())) => {}
            }
            let chunk = if self.rest.is_empty() {
                self.decode(read.filled())?
            } else {
                let mut both = std::mem::take(&mut self.rest);
                both.extend_from_slice(read.filled());
                self.decode(&both)?
            };
            if !chunk.is_empty() || self.has_ended() {
                return Poll::Ready(Ok(chunk));
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.call.can_proceed() && !self.is_close_delimited()
    }

    /// The size at the beginning of a chunk that has extensions, and the whole line, by their lengths. Extensions mean
    /// nothing to us (RFC 9112, 7.1.1), and the library refuses long ones.
    fn extended_size(&self, input: &[u8]) -> Option<(usize, usize)> {
        if !self.call.is_on_chunk_boundary() {
            return None;
        }
        let end = memchr::memchr(b'\n', input)?;
        let size = memchr::memchr(b';', &input[..end])?;
        input[..end].ends_with(b"\r").then_some((size, end + 1))
    }

    /// Cuts the body's bytes out of `input`, and keeps an incomplete piece for the next read.
    fn decode(&mut self, input: &[u8]) -> Result<Bytes, BodyEnd> {
        let mut out = vec![0; input.len()];
        let (mut used, mut filled) = (0, 0);
        while used < input.len() && !self.has_ended() {
            let left = &input[used..];
            let read = match self.extended_size(left) {
                Some((size, line)) => {
                    let plain = [&left[..size], b"\r\n"].concat();
                    self.call
                        .read(&plain, &mut [])
                        .map(|(took, _)| if took == plain.len() { (line, 0) } else { (0, 0) })
                }
                None => self.call.read(left, &mut out[filled..]),
            };
            let (took, gave) = match read {
                Ok(read) => read,
                // The bytes before it are handed on first; the error comes again at the next read.
                Err(_) if filled > 0 => break,
                Err(_) => return Err(BodyEnd::Broken),
            };
            if took == 0 {
                break;
            }
            used += took;
            filled += gave;
        }
        if input.len() - used > MAX_HEAD {
            return Err(BodyEnd::Broken);
        }
        self.rest.extend_from_slice(&input[used..]);
        out.truncate(filled);
        Ok(out.into())
    }
}
