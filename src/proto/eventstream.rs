//! AWS event-stream frames: a bounded decoder, and the encoder of the simulator.
//!
//! ```text
//! total u32 | headers_len u32 | prelude CRC u32 | headers | payload | message CRC u32      big endian
//! └────────────── 12 bytes ──────────────┘                            └ of all before it
//! ```
//!
//! [`Decoder::push`] takes the chunks as HTTP delivers them, [`Decoder::next`] hands out the frames, and
//! [`Decoder::finish`] says whether the stream ended on a frame boundary. A frame borrows its bytes from the pushed
//! chunk; only a frame that the network cut is copied together. `Ok(None)` means that bytes are missing, `Err` that
//! they can never become a frame; after an `Err` nothing more is decoded (K27).

use bytes::Bytes;
use crc32fast::Hasher;
use std::collections::VecDeque;
use std::fmt;

/// Bytes of the prelude, its own checksum included. They are checked as soon as they are there (K25).
pub const PRELUDE: usize = 12;
/// What a frame holds besides headers and payload: the prelude and the message checksum.
pub const OVERHEAD: usize = 16;
/// Largest frame a [`Decoder`] accepts unless told otherwise, and the largest one [`encode`] makes: 16 MiB (K26).
pub const MAX_FRAME: usize = 16 << 20;
/// Largest header section, in bytes: 128 KiB (K26).
pub const MAX_HEADERS: usize = 128 << 10;
/// Longest header name that [`encode`] writes, in bytes: its length is one byte (K24).
pub const MAX_NAME: usize = 255;
/// Longest string or byte value that [`encode`] writes, in bytes (K24). Reading takes what the length field allows.
pub const MAX_VALUE: usize = i16::MAX as usize;

/// A buffer for cut frames is kept for the next one up to this size and given back above it.
const KEEP_CUT_BUFFER: usize = 4 << 10;
/// Header sections up to this size, in bytes, are remembered. Kiro's are smaller.
const KNOWN_HEADERS: usize = 256;
/// A cut frame up to this size gets its buffer at once; a larger one grows with what really arrives, so that a
/// length alone costs no memory.
const RESERVE_AT_ONCE: usize = 64 << 10;

/// Decodes a stream of frames, wherever the network cut it.
///
/// ```
/// use bytes::Bytes;
/// use kiro_messages::proto::eventstream::{Decoder, HeaderValue, encode};
///
/// let mut wire = Vec::new();
/// encode(&[(":event-type", HeaderValue::Text("assistantResponseEvent"))], b"{\"content\":\"hi\"}", &mut wire)?;
///
/// let mut decoder = Decoder::new();
/// decoder.push(Bytes::from(wire));
/// while let Some(frame) = decoder.next()? {
///     assert_eq!(frame.text(":event-type"), Some("assistantResponseEvent"));
///     assert_eq!(frame.payload(), b"{\"content\":\"hi\"}");
/// }
/// decoder.finish()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    /// The chunk being read; the bytes before `at` are done.
    chunk: Bytes,
    at: usize,
    /// Chunks pushed before the one at hand was drained.
    waiting: VecDeque<Bytes>,
    /// The beginning of a frame that no chunk holds whole.
    cut: Vec<u8>,
    /// `cut` holds a whole frame, which was handed out.
    cut_is_served: bool,
    /// Where in the stream the next frame begins.
    offset: u64,
    max_frame: usize,
    /// The header section checked last: the frames of a stream are alike, and the same bytes need no second look.
    known_headers: Vec<u8>,
    checksum: Checksum,
    failure: Option<FrameError>,
}

impl Decoder {
    /// A decoder that accepts frames of up to [`MAX_FRAME`] bytes.
    pub fn new() -> Self {
        Self::with_max_frame(MAX_FRAME)
    }

    /// A decoder that accepts frames of up to `bytes` bytes, everything counted. Values under [`OVERHEAD`] refuse
    /// every frame.
    pub fn with_max_frame(bytes: usize) -> Self {
        Self {
            chunk: Bytes::new(),
            at: 0,
            waiting: VecDeque::new(),
            cut: Vec::new(),
            cut_is_served: false,
            offset: 0,
            max_frame: bytes,
            known_headers: Vec::new(),
            checksum: Checksum::default(),
            failure: None,
        }
    }

    /// Takes the next bytes of the stream, of any number (K28). The chunk is kept as it is until its frames were
    /// handed out. Drain with [`next`](Self::next) after each push: what is pushed without it piles up.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() || self.failure.is_some() {
            return;
        }
        if self.at == self.chunk.len() && self.waiting.is_empty() {
            self.chunk = chunk;
            self.at = 0;
        } else {
            self.waiting.push_back(chunk);
        }
    }

    /// The next whole frame, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// Any [`FrameError`] but `Incomplete`; from then on the same one at every call (K27). Frames handed out before
    /// it keep their effect.
    #[expect(clippy::should_implement_trait, reason = "the frame borrows from the decoder, which Iterator can't say")]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        if self.cut_is_served {
            self.release_cut();
        }
        match self.locate() {
            Ok(None) => Ok(None),
            Ok(Some((place, prelude))) => {
                self.offset += prelude.total as u64;
                let bytes = match place {
                    Place::Chunk(start) => &self.chunk[start..start + prelude.total],
                    Place::Cut => &self.cut[..],
                };
                Ok(Some(Frame::split(bytes, &prelude)))
            }
            Err(flaw) => {
                let failure = FrameError::Invalid { offset: self.offset, flaw };
                self.chunk = Bytes::new();
                self.at = 0;
                self.waiting = VecDeque::new();
                self.cut = Vec::new();
                self.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// Says whether the stream ended on a frame boundary. Call it at the end of the body, after the last
    /// [`next`](Self::next).
    ///
    /// # Errors
    /// `Incomplete` when bytes are left over (K27), or the error that `next` gave.
    pub fn finish(&self) -> Result<(), FrameError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        match self.buffered() {
            0 => Ok(()),
            have => Err(FrameError::Incomplete { offset: self.offset, have }),
        }
    }

    /// Bytes that were pushed and belong to no frame handed out so far.
    pub fn buffered(&self) -> usize {
        let cut = if self.cut_is_served { 0 } else { self.cut.len() };
        cut + (self.chunk.len() - self.at) + self.waiting.iter().map(Bytes::len).sum::<usize>()
    }

    /// Finds and checks the next frame. The bytes of a frame that isn't whole move to `cut`, so that the chunk's
    /// memory is free while upstream is silent.
    fn locate(&mut self) -> Result<Option<(Place, Prelude)>, Flaw> {
        while self.cut.is_empty() {
            let rest = &self.chunk[self.at..];
            let prelude = Prelude::read(rest, self.max_frame, &self.checksum)?;
            if let Some(prelude) = prelude
                && rest.len() >= prelude.total
            {
                check(&rest[..prelude.total], &prelude, &self.checksum, &mut self.known_headers)?;
                let start = self.at;
                self.at += prelude.total;
                return Ok(Some((Place::Chunk(start), prelude)));
            }
            if !rest.is_empty() {
                let wanted = prelude.map_or(PRELUDE, |prelude| prelude.total);
                self.take(wanted);
            } else if !self.next_chunk() {
                return Ok(None);
            }
        }
        loop {
            let prelude = Prelude::read(&self.cut, self.max_frame, &self.checksum)?;
            if let Some(prelude) = prelude
                && self.cut.len() == prelude.total
            {
                check(&self.cut, &prelude, &self.checksum, &mut self.known_headers)?;
                self.cut_is_served = true;
                return Ok(Some((Place::Cut, prelude)));
            }
            if self.at == self.chunk.len() && !self.next_chunk() {
                return Ok(None);
            }
            let wanted = prelude.map_or(PRELUDE, |prelude| prelude.total);
            self.take(wanted - self.cut.len());
        }
    }

    /// Moves up to `wanted` bytes of the chunk to the cut frame.
    fn take(&mut self, wanted: usize) {
        let taken = wanted.min(self.chunk.len() - self.at);
        self.cut.reserve(if wanted <= RESERVE_AT_ONCE { wanted } else { taken });
        self.cut.extend_from_slice(&self.chunk[self.at..self.at + taken]);
        self.at += taken;
    }

    /// Lets go of the drained chunk; false when no other one waits.
    fn next_chunk(&mut self) -> bool {
        self.chunk = self.waiting.pop_front().unwrap_or_default();
        self.at = 0;
        !self.chunk.is_empty()
    }

    fn release_cut(&mut self) {
        self.cut_is_served = false;
        if self.cut.capacity() > KEEP_CUT_BUFFER {
            self.cut = Vec::new();
        } else {
            self.cut.clear();
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// One whole, checked frame: checksums, lengths and headers are right.
#[derive(Clone, Copy, PartialEq)]
pub struct Frame<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The headers in their order on the wire.
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: self.headers }
    }

    /// The string header `name`, say `:event-type` (K29). Of two headers with one name the first counts (K24); one
    /// of another type doesn't count.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.headers;
        while let Ok((header, after)) = RawHeader::read(rest) {
            if header.name == name.as_bytes() {
                return match header.value()? {
                    HeaderValue::Text(text) => Some(text),
                    _ => None,
                };
            }
            rest = after;
        }
        None
    }

    /// The header section as it lies in the chunk. Frames with the same one have the same headers.
    pub fn raw_headers(&self) -> &'a [u8] {
        self.headers
    }

    /// The payload, as it lies in the chunk.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    fn split(bytes: &'a [u8], prelude: &Prelude) -> Self {
        let (headers, payload) = bytes[PRELUDE..prelude.total - 4].split_at(prelude.headers);
        Self { headers, payload }
    }
}

impl fmt::Debug for Frame<'_> {
    /// Headers and the payload's length; the payload is the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Frame");
        self.headers().for_each(|header| {
            out.field(header.name, &header.value);
        });
        out.field("payload_len", &self.payload.len()).finish()
    }
}

/// One header of a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header<'a> {
    /// 0 to 255 bytes.
    pub name: &'a str,
    /// The typed value.
    pub value: HeaderValue<'a>,
}

/// A header's value: the ten types of the format; true and false are one here (K23).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeaderValue<'a> {
    /// Types 0 (true) and 1 (false).
    Bool(bool),
    /// Type 2.
    I8(i8),
    /// Type 3.
    I16(i16),
    /// Type 4.
    I32(i32),
    /// Type 5.
    I64(i64),
    /// Type 6.
    Bytes(&'a [u8]),
    /// Type 7.
    Text(&'a str),
    /// Type 8: milliseconds since 1970.
    Timestamp(i64),
    /// Type 9.
    Uuid([u8; 16]),
}

impl<'a> From<&'a str> for HeaderValue<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

/// The headers of a frame, in order.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        // The section was checked before the frame was handed out: an error here is its end.
        let (header, rest) = RawHeader::read(self.rest).ok()?;
        self.rest = rest;
        Some(Header { name: std::str::from_utf8(header.name).ok()?, value: header.value()? })
    }
}

/// Why a stream of frames ended badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// What came can never become a frame.
    Invalid {
        /// Where the frame begins, in bytes from the start of the stream.
        offset: u64,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// The stream ended inside a frame. Only [`Decoder::finish`] says so.
    Incomplete {
        /// Where the frame begins, in bytes from the start of the stream.
        offset: u64,
        /// How many of its bytes came.
        have: usize,
    },
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The prelude's checksum doesn't match its lengths.
    PreludeChecksum {
        /// As the frame says.
        stated: u32,
        /// As its bytes give.
        computed: u32,
    },
    /// `total` is under 16, or the header section doesn't fit into it, or is a single byte.
    Lengths {
        /// The whole frame, in bytes.
        total: u32,
        /// The header section, in bytes.
        headers: u32,
    },
    /// The frame is larger than the decoder accepts.
    FrameTooLarge {
        /// The whole frame, in bytes.
        total: u32,
        /// The decoder's limit, in bytes.
        limit: usize,
    },
    /// The header section is larger than [`MAX_HEADERS`].
    HeadersTooLarge {
        /// The header section, in bytes.
        headers: u32,
    },
    /// The message checksum doesn't match.
    MessageChecksum {
        /// As the frame says.
        stated: u32,
        /// As its bytes give.
        computed: u32,
    },
    /// A header runs past the end of the header section.
    HeaderPastEnd,
    /// A header's type isn't one of the ten.
    HeaderType(u8),
    /// A header's name or string isn't UTF-8.
    HeaderUtf8,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { offset, flaw } => write!(f, "invalid frame at byte {offset}: {flaw}"),
            Self::Incomplete { offset, have } => {
                write!(f, "the stream ended inside the frame at byte {offset}, {have} bytes into it")
            }
        }
    }
}

impl std::error::Error for FrameError {}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PreludeChecksum { stated, computed } => {
                write!(f, "prelude checksum is {stated:08x}, its bytes give {computed:08x}")
            }
            Self::Lengths { total, headers } => {
                write!(f, "{headers} bytes of headers don't fit a frame of {total} bytes")
            }
            Self::FrameTooLarge { total, limit } => write!(f, "{total} bytes are over the limit of {limit}"),
            Self::HeadersTooLarge { headers } => {
                write!(f, "{headers} bytes of headers are over the limit of {MAX_HEADERS}")
            }
            Self::MessageChecksum { stated, computed } => {
                write!(f, "message checksum is {stated:08x}, its bytes give {computed:08x}")
            }
            Self::HeaderPastEnd => f.write_str("a header runs past the end of the header section"),
            Self::HeaderType(kind) => write!(f, "a header is of the unknown type {kind}"),
            Self::HeaderUtf8 => f.write_str("a header's name or string is not UTF-8"),
        }
    }
}

/// Appends one frame to `out`.
///
/// # Errors
/// [`EncodeError`] when something is longer than the format or our own limits allow (K24, K26); `out` is then as it
/// was before.
pub fn encode(headers: &[(&str, HeaderValue<'_>)], payload: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let encoded = encode_after(start, headers, payload, out);
    if encoded.is_err() {
        out.truncate(start);
    }
    encoded
}

/// Why a frame can't be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// A header name is longer than [`MAX_NAME`].
    NameTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A string or byte value is longer than [`MAX_VALUE`].
    ValueTooLong {
        /// The header it belongs to.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// The header section is longer than [`MAX_HEADERS`].
    HeadersTooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// The whole frame is longer than [`MAX_FRAME`].
    FrameTooLarge {
        /// Its length in bytes.
        len: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTooLong { len } => write!(f, "a header name of {len} bytes is over the limit of {MAX_NAME}"),
            Self::ValueTooLong { name, len } => {
                write!(f, "the value of header {name:?} has {len} bytes, over the limit of {MAX_VALUE}")
            }
            Self::HeadersTooLarge { len } => {
                write!(f, "{len} bytes of headers are over the limit of {MAX_HEADERS}")
            }
            Self::FrameTooLarge { len } => write!(f, "a frame of {len} bytes is over the limit of {MAX_FRAME}"),
        }
    }
}

impl std::error::Error for EncodeError {}

/// Where the frame found lies.
enum Place {
    /// In the chunk, from this byte on.
    Chunk(usize),
    /// In `cut`, which it fills.
    Cut,
}

/// The checked lengths of a frame.
#[derive(Clone, Copy)]
struct Prelude {
    total: usize,
    headers: usize,
}

/// The checksum of nothing. One is made for each stream and copied for each frame: making it asks what the CPU can do.
#[derive(Clone, Default)]
struct Checksum(Hasher);

impl Checksum {
    #[inline]
    fn of(&self, bytes: &[u8]) -> u32 {
        let mut hasher = self.0.clone();
        hasher.update(bytes);
        hasher.finalize()
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checksum")
    }
}

impl Prelude {
    /// Reads and checks the first 12 bytes as soon as they have arrived: a corrupt length must not make us buffer (K25,
    /// K26). `None` before that.
    #[inline]
    fn read(bytes: &[u8], max_frame: usize, checksum: &Checksum) -> Result<Option<Self>, Flaw> {
        let Some(prelude) = bytes.first_chunk::<PRELUDE>() else { return Ok(None) };
        let [t0, t1, t2, t3, h0, h1, h2, h3, c0, c1, c2, c3] = *prelude;
        let stated = u32::from_be_bytes([c0, c1, c2, c3]);
        let computed = checksum.of(&prelude[..8]);
        if stated != computed {
            return Err(Flaw::PreludeChecksum { stated, computed });
        }
        let total = u32::from_be_bytes([t0, t1, t2, t3]);
        let headers = u32::from_be_bytes([h0, h1, h2, h3]);
        if total as usize > max_frame {
            return Err(Flaw::FrameTooLarge { total, limit: max_frame });
        }
        if (total as usize) < OVERHEAD || headers as usize > total as usize - OVERHEAD || headers == 1 {
            return Err(Flaw::Lengths { total, headers });
        }
        if headers as usize > MAX_HEADERS {
            return Err(Flaw::HeadersTooLarge { headers });
        }
        Ok(Some(Self { total: total as usize, headers: headers as usize }))
    }
}

/// Checks the rest of a whole frame: message checksum (K22), then every header (K24).
#[inline]
fn check(frame: &[u8], prelude: &Prelude, checksum: &Checksum, known_headers: &mut Vec<u8>) -> Result<(), Flaw> {
    let (covered, stated) = frame.split_at(prelude.total - 4);
    let stated = stated.iter().fold(0, |value, &byte| value << 8 | u32::from(byte));
    let computed = checksum.of(covered);
    if stated != computed {
        return Err(Flaw::MessageChecksum { stated, computed });
    }
    let headers = &covered[PRELUDE..PRELUDE + prelude.headers];
    if headers == &known_headers[..] {
        return Ok(());
    }
    let mut rest = headers;
    while !rest.is_empty() {
        let (header, after) = RawHeader::read(rest)?;
        if !is_utf8(header.name) || (header.kind == TEXT && !is_utf8(header.value)) {
            return Err(Flaw::HeaderUtf8);
        }
        rest = after;
    }
    if headers.len() <= KNOWN_HEADERS {
        known_headers.clear();
        known_headers.extend_from_slice(headers);
    }
    Ok(())
}

#[inline]
fn is_utf8(bytes: &[u8]) -> bool {
    bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()
}

const TRUE: u8 = 0;
const FALSE: u8 = 1;
const I8: u8 = 2;
const I16: u8 = 3;
const I32: u8 = 4;
const I64: u8 = 5;
const BYTES: u8 = 6;
const TEXT: u8 = 7;
const TIMESTAMP: u8 = 8;
const UUID: u8 = 9;

/// A header's place in the section, not yet checked for UTF-8.
struct RawHeader<'a> {
    name: &'a [u8],
    kind: u8,
    /// The value's bytes, without the length of types 6 and 7.
    value: &'a [u8],
}

impl<'a> RawHeader<'a> {
    /// The first header of `section`, and what follows it. Fails at the end of the section too.
    #[inline]
    fn read(section: &'a [u8]) -> Result<(Self, &'a [u8]), Flaw> {
        let (&name_len, rest) = section.split_first().ok_or(Flaw::HeaderPastEnd)?;
        let (name, rest) = rest.split_at_checked(usize::from(name_len)).ok_or(Flaw::HeaderPastEnd)?;
        let (&kind, rest) = rest.split_first().ok_or(Flaw::HeaderPastEnd)?;
        let (len, rest) = match kind {
            TRUE | FALSE => (0, rest),
            I8 => (1, rest),
            I16 => (2, rest),
            I32 => (4, rest),
            I64 | TIMESTAMP => (8, rest),
            BYTES | TEXT => {
                let (len, rest) = rest.split_first_chunk().ok_or(Flaw::HeaderPastEnd)?;
                (usize::from(u16::from_be_bytes(*len)), rest)
            }
            UUID => (16, rest),
            unknown => return Err(Flaw::HeaderType(unknown)),
        };
        let (value, rest) = rest.split_at_checked(len).ok_or(Flaw::HeaderPastEnd)?;
        Ok((Self { name, kind, value }, rest))
    }

    /// The typed value; `None` for what `check` refuses.
    fn value(&self) -> Option<HeaderValue<'a>> {
        Some(match self.kind {
            TRUE => HeaderValue::Bool(true),
            FALSE => HeaderValue::Bool(false),
            I8 => HeaderValue::I8(i8::from_be_bytes(self.value.try_into().ok()?)),
            I16 => HeaderValue::I16(i16::from_be_bytes(self.value.try_into().ok()?)),
            I32 => HeaderValue::I32(i32::from_be_bytes(self.value.try_into().ok()?)),
            I64 => HeaderValue::I64(i64::from_be_bytes(self.value.try_into().ok()?)),
            BYTES => HeaderValue::Bytes(self.value),
            TEXT => HeaderValue::Text(std::str::from_utf8(self.value).ok()?),
            TIMESTAMP => HeaderValue::Timestamp(i64::from_be_bytes(self.value.try_into().ok()?)),
            UUID => HeaderValue::Uuid(self.value.try_into().ok()?),
            _ => return None,
        })
    }
}

fn encode_after(
    start: usize,
    headers: &[(&str, HeaderValue<'_>)],
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    out.extend_from_slice(&[0; PRELUDE]);
    for (name, value) in headers {
        let name_len = u8::try_from(name.len()).map_err(|_| EncodeError::NameTooLong { len: name.len() })?;
        out.push(name_len);
        out.extend_from_slice(name.as_bytes());
        match *value {
            HeaderValue::Bool(true) => out.push(TRUE),
            HeaderValue::Bool(false) => out.push(FALSE),
            HeaderValue::I8(value) => put(out, I8, &value.to_be_bytes()),
            HeaderValue::I16(value) => put(out, I16, &value.to_be_bytes()),
            HeaderValue::I32(value) => put(out, I32, &value.to_be_bytes()),
            HeaderValue::I64(value) => put(out, I64, &value.to_be_bytes()),
            HeaderValue::Bytes(bytes) => put_sized(out, BYTES, name, bytes)?,
            HeaderValue::Text(text) => put_sized(out, TEXT, name, text.as_bytes())?,
            HeaderValue::Timestamp(value) => put(out, TIMESTAMP, &value.to_be_bytes()),
            HeaderValue::Uuid(value) => put(out, UUID, &value),
        }
    }
    let headers_len = out.len() - start - PRELUDE;
    if headers_len > MAX_HEADERS {
        return Err(EncodeError::HeadersTooLarge { len: headers_len });
    }
    let len = headers_len.saturating_add(payload.len()).saturating_add(OVERHEAD);
    let too_large = EncodeError::FrameTooLarge { len };
    if len > MAX_FRAME {
        return Err(too_large);
    }
    let (Ok(total), Ok(headers_len)) = (u32::try_from(len), u32::try_from(headers_len)) else { return Err(too_large) };

    out.extend_from_slice(payload);
    let frame = &mut out[start..];
    frame[..4].copy_from_slice(&total.to_be_bytes());
    frame[4..8].copy_from_slice(&headers_len.to_be_bytes());
    let prelude_checksum = crc32fast::hash(&frame[..8]);
    frame[8..PRELUDE].copy_from_slice(&prelude_checksum.to_be_bytes());
    let message_checksum = crc32fast::hash(frame);
    out.extend_from_slice(&message_checksum.to_be_bytes());
    Ok(())
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.extend_from_slice(value);
}

fn put_sized(out: &mut Vec<u8>, kind: u8, name: &str, value: &[u8]) -> Result<(), EncodeError> {
    match u16::try_from(value.len()) {
        Ok(len) if value.len() <= MAX_VALUE => {
            put(out, kind, &len.to_be_bytes());
            out.extend_from_slice(value);
            Ok(())
        }
        _ => Err(EncodeError::ValueTooLong { name: name.to_owned(), len: value.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// K22's vectors, read back by AWS's npm client.
    const EMPTY: &str = "000000100000000005c248eb7d98c8ff";
    const EVENT: &str = "0000007c0000005c3bddcf780d3a6d6573736167652d747970650700056576656e740b3a6576656e742d74797065070016\
        617373697374616e74526573706f6e73654576656e740d3a636f6e74656e742d747970650700106170706c69636174696f6e2f6a736f6e7b22\
        636f6e74656e74223a226869227da9c4c06f";
    const EVENT_HEADERS: [(&str, HeaderValue<'static>); 3] = [
        (":message-type", HeaderValue::Text("event")),
        (":event-type", HeaderValue::Text("assistantResponseEvent")),
        (":content-type", HeaderValue::Text("application/json")),
    ];
    const ALL_TYPES: [(&str, HeaderValue<'static>); 14] = [
        ("true", HeaderValue::Bool(true)),
        ("false", HeaderValue::Bool(false)),
        ("i8", HeaderValue::I8(-8)),
        ("i16", HeaderValue::I16(i16::MIN)),
        ("i32", HeaderValue::I32(-32)),
        ("i64", HeaderValue::I64(i64::MIN)),
        ("bytes", HeaderValue::Bytes(&[0, 255, 128])),
        ("no bytes", HeaderValue::Bytes(&[])),
        ("text", HeaderValue::Text("é😀")),
        ("no text", HeaderValue::Text("")),
        ("", HeaderValue::Text("nameless")),
        ("time", HeaderValue::Timestamp(-1)),
        ("uuid", HeaderValue::Uuid([7; 16])),
        ("text", HeaderValue::Text("second of its name")),
    ];

    fn unhex(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
    }

    fn encoded(headers: &[(&str, HeaderValue<'_>)], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(headers, payload, &mut out).unwrap();
        out
    }

    /// A frame of exactly these lengths and bytes, with right checksums, however wrong the rest is.
    fn forged(total: u32, headers_len: u32, body: &[u8]) -> Vec<u8> {
        let mut frame = [total.to_be_bytes(), headers_len.to_be_bytes()].concat();
        frame.extend(crc32fast::hash(&frame).to_be_bytes());
        frame.extend_from_slice(body);
        frame.extend(crc32fast::hash(&frame).to_be_bytes());
        frame
    }

    /// A frame with this header section, right in everything else.
    fn with_section(section: &[u8]) -> Vec<u8> {
        forged((section.len() + OVERHEAD) as u32, section.len() as u32, section)
    }

    /// Everything a frame holds, owned, so that frames of different splits can be compared.
    type Owned = (Vec<(String, String)>, Vec<u8>);

    fn owned(frame: &Frame<'_>) -> Owned {
        let headers = frame.headers().map(|header| (header.name.to_owned(), format!("{:?}", header.value))).collect();
        (headers, frame.payload().to_vec())
    }

    /// The frames before the end or the failure, and how it ended.
    fn decode(chunks: impl IntoIterator<Item = Vec<u8>>) -> (Vec<Owned>, Result<(), FrameError>) {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for chunk in chunks {
            decoder.push(Bytes::from(chunk));
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => frames.push(owned(&frame)),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(decoder.next(), Err(error.clone()), "an error stays (K27)");
                        assert_eq!(decoder.finish(), Err(error.clone()));
                        return (frames, Err(error));
                    }
                }
            }
        }
        (frames, decoder.finish())
    }

    fn flaw(wire: Vec<u8>) -> Flaw {
        match decode([wire]) {
            (frames, Err(FrameError::Invalid { offset: 0, flaw })) if frames.is_empty() => flaw,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Three frames, long and short, with UTF-8 to cut.
    fn sample() -> Vec<u8> {
        let mut wire = encoded(&EVENT_HEADERS, "{\"content\":\"é😀\"}".as_bytes());
        wire.extend(unhex(EMPTY));
        wire.extend(encoded(&ALL_TYPES, &[9; 40]));
        wire
    }

    #[test]
    fn frames_of_the_vectors_are_read_and_written_trap_01_k22() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        assert_eq!(encoded(&[], b""), unhex(EMPTY));
        assert_eq!(decode([unhex(EMPTY)]), (vec![(vec![], vec![])], Ok(())));

        let event = unhex(EVENT);
        assert_eq!(event.len(), 124);
        assert_eq!(encoded(&EVENT_HEADERS, b"{\"content\":\"hi\"}"), event);
        let mut decoder = Decoder::new();
        decoder.push(Bytes::from(event));
        let frame = decoder.next().unwrap().unwrap();
        assert_eq!(frame.text(":event-type"), Some("assistantResponseEvent"));
        assert_eq!(frame.text(":message-type"), Some("event"));
        assert_eq!(frame.text(":exception-type"), None);
        assert_eq!(frame.payload(), b"{\"content\":\"hi\"}");
        let headers: Vec<_> = frame.headers().map(|header| (header.name, header.value)).collect();
        assert_eq!(headers, EVENT_HEADERS);
    }

    #[test]
    fn all_ten_types_in_order_and_the_first_of_a_name_k23_k24() {
        let mut decoder = Decoder::new();
        decoder.push(Bytes::from(encoded(&ALL_TYPES, b"")));
        let frame = decoder.next().unwrap().unwrap();
        let headers: Vec<_> = frame.headers().map(|header| (header.name, header.value)).collect();
        assert_eq!(headers, ALL_TYPES);
        assert_eq!(frame.text("text"), Some("é😀"));
        assert_eq!(frame.text(""), Some("nameless"));
        assert_eq!(frame.text("uuid"), None, "not a string");
        assert_eq!(frame.text("absent"), None);
    }

    #[test]
    fn reads_what_the_lengths_allow_k24() {
        let mut section = vec![255];
        section.extend([b'n'; 255]);
        section.extend([TEXT, 255, 255]);
        section.extend([b'v'; 65_535]);
        let mut decoder = Decoder::new();
        decoder.push(Bytes::from(with_section(&section)));
        let frame = decoder.next().unwrap().unwrap();
        assert_eq!(frame.text(&"n".repeat(255)).map(str::len), Some(65_535));
    }

    #[test]
    fn invalid_headers_are_refused_k24() {
        assert_eq!(flaw(with_section(&[1, b'a', 10])), Flaw::HeaderType(10));
        assert_eq!(flaw(with_section(&[1, b'a', 255, 0])), Flaw::HeaderType(255));
        assert_eq!(flaw(with_section(&[0])), Flaw::Lengths { total: 17, headers: 1 });
        assert_eq!(flaw(with_section(&[1, 0xff, TRUE])), Flaw::HeaderUtf8);
        assert_eq!(flaw(with_section(&[1, b'a', TEXT, 0, 2, 0xc3, 0x28])), Flaw::HeaderUtf8);
        assert_eq!(flaw(with_section(&[2, b'a'])), Flaw::HeaderPastEnd);
        assert_eq!(flaw(with_section(&[1, b'a'])), Flaw::HeaderPastEnd);
        assert_eq!(flaw(with_section(&[1, b'a', TEXT, 0])), Flaw::HeaderPastEnd);
        assert_eq!(flaw(with_section(&[1, b'a', TEXT, 0, 1])), Flaw::HeaderPastEnd);
        assert_eq!(flaw(with_section(&[0, TRUE, 0])), Flaw::HeaderPastEnd, "a good header, then one byte");
        for (kind, len) in [(I8, 1), (I16, 2), (I32, 4), (I64, 8), (TIMESTAMP, 8), (UUID, 16)] {
            let mut section = vec![1, b'a', kind];
            section.extend(vec![0; len - 1]);
            assert_eq!(flaw(with_section(&section)), Flaw::HeaderPastEnd, "type {kind}");
        }
        // The bytes behind the section are payload, but a header that runs into them is still invalid.
        assert_eq!(flaw(forged(24, 2, &[3, b'a', b'b', b'c', TRUE, 0, 0, 0])), Flaw::HeaderPastEnd);
    }

    #[test]
    fn impossible_and_excessive_lengths_are_refused_k26() {
        for total in [0, 1, 12, 15] {
            assert_eq!(flaw(forged(total, 0, &[])), Flaw::Lengths { total, headers: 0 });
        }
        assert_eq!(flaw(forged(16, 2, &[])), Flaw::Lengths { total: 16, headers: 2 });
        assert_eq!(flaw(forged(20, u32::MAX, &[0; 4])), Flaw::Lengths { total: 20, headers: u32::MAX });
        let headers = MAX_HEADERS as u32 + 1;
        assert_eq!(flaw(forged(headers + 16, headers, &[])), Flaw::HeadersTooLarge { headers });
        let total = MAX_FRAME as u32 + 1;
        assert_eq!(flaw(forged(total, 0, &[])), Flaw::FrameTooLarge { total, limit: MAX_FRAME });

        let mut decoder = Decoder::with_max_frame(20);
        decoder.push(Bytes::from(encoded(&[], b"1234")));
        assert_eq!(decoder.next().unwrap().unwrap().payload(), b"1234");
        decoder.push(Bytes::from(encoded(&[], b"12345")));
        let too_large = FrameError::Invalid { offset: 20, flaw: Flaw::FrameTooLarge { total: 21, limit: 20 } };
        assert_eq!(decoder.next(), Err(too_large));
    }

    /// Trap 2: the length 0xFFFFFFFF, with a right and a wrong checksum.
    #[test]
    fn a_corrupt_length_fails_at_byte_12_k25() {
        let good = forged(u32::MAX, 0, &[]);
        let mut bad = good.clone();
        bad[11] ^= 1;
        for (wire, too_large) in [(good, true), (bad, false)] {
            for whole in [true, false] {
                let mut decoder = Decoder::new();
                for byte in &wire[..11] {
                    decoder.push(Bytes::copy_from_slice(&[*byte]));
                    if !whole {
                        assert_eq!(decoder.next(), Ok(None));
                    }
                }
                assert_eq!(decoder.next(), Ok(None));
                decoder.push(Bytes::copy_from_slice(&wire[11..12]));
                let Err(FrameError::Invalid { offset: 0, flaw }) = decoder.next() else { panic!("accepted") };
                assert_eq!(matches!(flaw, Flaw::FrameTooLarge { .. }), too_large);
                assert_eq!(matches!(flaw, Flaw::PreludeChecksum { .. }), !too_large);
                assert_eq!(decoder.buffered(), 0, "nothing is kept after a failure");
            }
        }
    }

    #[test]
    fn every_bit_of_a_frame_is_covered_by_a_checksum() {
        let event = unhex(EVENT);
        for bit in 0..event.len() * 8 {
            let mut wire = event.clone();
            wire[bit / 8] ^= 1 << (bit % 8);
            let (frames, end) = decode([wire]);
            assert_eq!(frames, [], "bit {bit}");
            assert!(matches!(end, Err(FrameError::Invalid { offset: 0, .. })), "bit {bit}: {end:?}");
        }
    }

    #[test]
    fn every_split_gives_the_same_frames_k28() {
        let wire = sample();
        let whole = decode([wire.clone()]);
        assert_eq!((whole.0.len(), &whole.1), (3, &Ok(())));
        for size in 1..=wire.len() {
            assert_eq!(decode(wire.chunks(size).map(<[u8]>::to_vec)), whole, "chunks of {size}");
        }
        for first in 0..=wire.len() {
            for second in first..=wire.len() {
                let chunks = [&wire[..first], &wire[first..second], &wire[second..]];
                assert_eq!(decode(chunks.map(<[u8]>::to_vec)), whole, "cut at {first} and {second}");
            }
        }
        let with_empty_chunks = wire.iter().flat_map(|byte| [vec![], vec![*byte], vec![]]);
        assert_eq!(decode(with_empty_chunks), whole);
    }

    #[test]
    fn chunks_may_be_pushed_ahead_k28() {
        let wire = sample();
        for size in 1..=wire.len() {
            let mut decoder = Decoder::new();
            wire.chunks(size).for_each(|chunk| decoder.push(Bytes::copy_from_slice(chunk)));
            assert_eq!(decoder.buffered(), wire.len());
            let mut frames = 0;
            while decoder.next().unwrap().is_some() {
                frames += 1;
            }
            assert_eq!((frames, decoder.finish()), (3, Ok(())), "chunks of {size}");
        }
    }

    #[test]
    fn every_truncation_is_incomplete_and_keeps_the_frames_before_k27() {
        let wire = sample();
        let whole = decode([wire.clone()]).0;
        let second = encoded(&EVENT_HEADERS, "{\"content\":\"é😀\"}".as_bytes()).len();
        let starts = [0, second, second + OVERHEAD, wire.len()];
        for len in 0..=wire.len() {
            for size in [1, 7, wire.len()] {
                let complete = starts.iter().filter(|&&start| start <= len).count() - 1;
                let (frames, end) = decode(wire[..len].chunks(size).map(<[u8]>::to_vec));
                assert_eq!(frames, whole[..complete], "{len} bytes");
                let (offset, have) = (starts[complete] as u64, len - starts[complete]);
                let expected = if have == 0 { Ok(()) } else { Err(FrameError::Incomplete { offset, have }) };
                assert_eq!(end, expected, "{len} bytes in chunks of {size}");
            }
        }
    }

    /// Traps 3 and 4: no resynchronising, and the frames before a bad one count.
    #[test]
    fn frames_before_an_invalid_one_count_and_none_after_it_k27() {
        let good = unhex(EVENT);
        let mut bad = good.clone();
        bad[100] ^= 1;
        let wire = [good.clone(), good.clone(), bad, good.clone()].concat();
        for size in [1, 13, 124, 125, 300, wire.len()] {
            let (frames, end) = decode(wire.chunks(size).map(<[u8]>::to_vec));
            assert_eq!(frames.len(), 2, "chunks of {size}");
            assert!(matches!(
                end,
                Err(FrameError::Invalid { offset: 248, flaw: Flaw::MessageChecksum { computed, stated } }) if computed != stated
            ));
        }
        let mut decoder = Decoder::new();
        decoder.push(Bytes::from_static(&[0xff; 12]));
        assert!(decoder.next().is_err());
        decoder.push(Bytes::from(good));
        assert!(decoder.next().is_err(), "a good frame after a bad one");
        assert_eq!(decoder.buffered(), 0);
    }

    /// Trap 9: a frame far above any read buffer.
    #[test]
    fn a_2_mib_payload_passes_and_its_buffer_is_given_back() {
        let payload = vec![b'x'; 2 << 20];
        let wire = encoded(&EVENT_HEADERS, &payload);
        let mut decoder = Decoder::new();
        for chunk in wire.chunks(16 << 10) {
            assert_eq!(decoder.next(), Ok(None));
            decoder.push(Bytes::copy_from_slice(chunk));
        }
        assert!(decoder.next().unwrap().is_some_and(|frame| frame.payload() == payload));
        assert_eq!(decoder.buffered(), 0);
        assert_eq!(decoder.next(), Ok(None));
        assert_eq!(decoder.cut.capacity(), 0);
        assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn a_length_alone_costs_no_memory() {
        let mut decoder = Decoder::new();
        decoder.push(Bytes::from(forged(MAX_FRAME as u32, 0, &[0; 100])));
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.cut.capacity() <= 512, "{}", decoder.cut.capacity());
    }

    #[test]
    fn a_payload_lies_in_the_pushed_chunk_and_a_silent_stream_holds_none() {
        let mut wire = unhex(EVENT);
        wire.extend(unhex(EVENT));
        wire.truncate(200);
        let chunk = Bytes::from(wire);
        let mut decoder = Decoder::new();
        decoder.push(chunk.clone());
        let payload = decoder.next().unwrap().unwrap().payload().as_ptr();
        assert_eq!(payload, chunk[104..].as_ptr());
        assert!(!chunk.is_unique(), "the frames of the chunk are not all read");
        assert_eq!(decoder.next(), Ok(None));
        assert!(chunk.is_unique(), "the cut frame's bytes were copied, the chunk let go");
        assert_eq!(decoder.buffered(), 76);
    }

    #[test]
    fn the_encoder_refuses_what_is_too_long() {
        let mut out = b"before".to_vec();
        let long = "n".repeat(256);
        let name = encode(&[(&long, HeaderValue::Bool(true))], b"", &mut out);
        assert_eq!(name, Err(EncodeError::NameTooLong { len: 256 }));
        let bytes = vec![0; 32_768];
        let value = encode(&[("a", HeaderValue::I8(1)), ("v", HeaderValue::Bytes(&bytes))], b"", &mut out);
        assert_eq!(value, Err(EncodeError::ValueTooLong { name: "v".to_owned(), len: 32_768 }));
        let many = [("v", HeaderValue::Bytes(&bytes[1..])); 5];
        let headers = encode(&many, b"", &mut out);
        assert_eq!(headers, Err(EncodeError::HeadersTooLarge { len: 5 * (32_767 + 5) }));
        let frame = encode(&[], &vec![0; MAX_FRAME - OVERHEAD + 1], &mut out);
        assert_eq!(frame, Err(EncodeError::FrameTooLarge { len: MAX_FRAME + 1 }));
        assert_eq!(out, b"before", "nothing is left of a refused frame");

        encode(&many[..3], &[0; 100], &mut out).unwrap();
        assert_eq!(decode([out.split_off(6)]).0.len(), 1);
        assert_eq!(decode([encoded(&[], &vec![0; MAX_FRAME - OVERHEAD])]).1, Ok(()));
    }

    #[test]
    fn errors_name_the_place() {
        let mut wire = unhex(EVENT);
        wire.extend([0xff; 12]);
        let error = decode([wire]).1.unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid frame at byte 124: prelude checksum is ffffffff, its bytes give 2144df1c"
        );
        let error = decode([unhex(EMPTY)[..5].to_vec()]).1.unwrap_err();
        assert_eq!(error.to_string(), "the stream ended inside the frame at byte 0, 5 bytes into it");
    }
}
