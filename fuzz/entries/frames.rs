//! The frame decoder against itself and against `aws-smithy-eventstream` (K2): the entry of the fuzz target `frames`
//! and of `tests/eventstream_oracle.rs`.

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder, write_message_to};
use aws_smithy_types::DateTime;
use aws_smithy_types::event_stream::{Header, HeaderValue as TheirValue, Message};
use aws_smithy_types::str_bytes::StrBytes;
use bytes::{Buf, Bytes};
use kiro_messages::proto::eventstream::{Decoder, Flaw, Frame, FrameError, HeaderValue, OVERHEAD, PRELUDE, encode};

/// Any bytes. The first says how to read the others: as they are, as frames whose checksums are put right (chance
/// never hits one), or as the recipe of well-formed frames.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else { return };
    match mode % 4 {
        0 => {
            check(rest, 1 + usize::from(mode / 4));
        }
        1 | 2 => {
            let mut wire = rest.to_vec();
            repair(&mut wire, mode % 4 == 2);
            check(&wire, 1 + usize::from(mode / 4));
        }
        _ => {
            let mut recipe = Recipe(rest);
            let mut wire = Vec::new();
            while let Some(message) = recipe.message() {
                wire.extend(both_encoders(&message));
            }
            assert_eq!(check(&wire, 1 + usize::from(mode / 4)).end, Ok(()), "what was encoded is accepted");
        }
    }
}

/// The frames of a stream, and how it ended.
#[derive(Debug, PartialEq)]
pub struct Reading {
    pub frames: Vec<Message>,
    pub end: Result<(), FrameError>,
}

/// Our reading of `wire`, after these checks: pieces of `size` bytes give the same as the whole, and the other decoder
/// agrees, but for the differences K2 allows.
pub fn check(wire: &[u8], size: usize) -> Reading {
    let ours = read(wire, wire.len().max(1));
    assert_eq!(read(wire, size), ours, "in pieces of {size}");
    let Reading { frames, end } = &ours;
    let (their_frames, their_end) = read_with_smithy(wire);
    let same_frames = *frames == their_frames;
    match (end, their_end) {
        (Ok(()), TheirEnd::Boundary) | (Err(FrameError::Incomplete { .. }), TheirEnd::Inside) => assert!(same_frames),
        // Our caps (K26): they may read on.
        (Err(FrameError::Invalid { flaw: Flaw::FrameTooLarge { .. } | Flaw::HeadersTooLarge { .. }, .. }), _) => {
            assert!(their_frames.starts_with(frames));
        }
        (Err(FrameError::Invalid { .. }), TheirEnd::Refused) => assert!(same_frames),
        // Our early look at the prelude (K25): they still wait for the frame.
        (Err(FrameError::Invalid { flaw, .. }), TheirEnd::Inside) => {
            assert!(same_frames && matches!(flaw, Flaw::PreludeChecksum { .. } | Flaw::Lengths { .. }), "{flaw:?}");
        }
        (ours, theirs) => panic!("we say {ours:?}, smithy {theirs:?}"),
    }
    ours
}

/// The frame of `message`, after this check: both encoders write the same bytes, or both refuse. Sizes over our own
/// caps (K26) are not for this function.
pub fn both_encoders(message: &Message) -> Vec<u8> {
    let mut theirs = Vec::new();
    let accepted = write_message_to(message, &mut theirs).is_ok();
    let headers: Vec<_> =
        message.headers().iter().map(|header| (header.name().as_str(), our_value(header.value()))).collect();
    let mut ours = Vec::new();
    let result = encode(&headers, message.payload(), &mut ours);
    assert_eq!(result.is_ok(), accepted, "{result:?}");
    if !accepted {
        assert!(ours.is_empty());
        return ours;
    }
    assert_eq!(ours, theirs);
    ours
}

/// Puts the checksums of `wire` right, frame after frame as far as the lengths make sense; with `lengths`, makes
/// them make sense first.
pub fn repair(wire: &mut [u8], lengths: bool) {
    let mut rest = wire;
    while rest.len() >= OVERHEAD {
        if lengths {
            let total = OVERHEAD + usize::from(rest[3]) % (rest.len() - OVERHEAD + 1);
            let headers = usize::from(rest[7]) % (total - OVERHEAD + 1);
            rest[..4].copy_from_slice(&(total as u32).to_be_bytes());
            rest[4..8].copy_from_slice(&(headers as u32).to_be_bytes());
        }
        let total = (&rest[..]).get_u32() as usize;
        let checksum = crc32fast::hash(&rest[..8]);
        rest[8..PRELUDE].copy_from_slice(&checksum.to_be_bytes());
        if total < OVERHEAD || total > rest.len() {
            return;
        }
        let checksum = crc32fast::hash(&rest[..total - 4]);
        rest[total - 4..total].copy_from_slice(&checksum.to_be_bytes());
        rest = &mut rest[total..];
    }
}

/// What our decoder makes of `wire` in pieces of `size` bytes.
fn read(wire: &[u8], size: usize) -> Reading {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in wire.chunks(size) {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(as_message(&frame)),
                Ok(None) => break,
                Err(error) => return Reading { frames, end: Err(error) },
            }
        }
        assert!(decoder.buffered() <= wire.len());
    }
    Reading { frames, end: decoder.finish() }
}

#[derive(Debug)]
enum TheirEnd {
    Boundary,
    Inside,
    Refused,
}

fn read_with_smithy(wire: &[u8]) -> (Vec<Message>, TheirEnd) {
    let mut decoder = MessageFrameDecoder::new();
    let mut buffer = Bytes::copy_from_slice(wire);
    let mut frames = Vec::new();
    loop {
        // It takes the prelude out of the buffer at once.
        let boundary = buffer.is_empty();
        match decoder.decode_frame(&mut buffer) {
            Ok(DecodedFrame::Complete(message)) => frames.push(message),
            Ok(DecodedFrame::Incomplete) => {
                return (frames, if boundary { TheirEnd::Boundary } else { TheirEnd::Inside });
            }
            Err(_) => return (frames, TheirEnd::Refused),
        }
    }
}

fn as_message(frame: &Frame<'_>) -> Message {
    let headers = frame.headers().map(|header| Header::new(header.name.to_owned(), their_value(header.value)));
    let headers: Vec<_> = headers.collect();
    for header in &headers {
        let first = headers.iter().find(|other| other.name() == header.name()).map(Header::value);
        let text = first.and_then(|value| value.as_string().ok()).map(StrBytes::as_str);
        assert_eq!(frame.text(header.name().as_str()), text, "the first of a name, if it is a string");
    }
    Message::new_from_parts(headers, Bytes::copy_from_slice(frame.payload()))
}

fn their_value(value: HeaderValue<'_>) -> TheirValue {
    match value {
        HeaderValue::Bool(value) => TheirValue::Bool(value),
        HeaderValue::I8(value) => TheirValue::Byte(value),
        HeaderValue::I16(value) => TheirValue::Int16(value),
        HeaderValue::I32(value) => TheirValue::Int32(value),
        HeaderValue::I64(value) => TheirValue::Int64(value),
        HeaderValue::Bytes(value) => TheirValue::ByteArray(Bytes::copy_from_slice(value)),
        HeaderValue::Text(value) => TheirValue::String(value.to_owned().into()),
        HeaderValue::Timestamp(value) => TheirValue::Timestamp(DateTime::from_millis(value)),
        HeaderValue::Uuid(value) => TheirValue::Uuid(u128::from_be_bytes(value)),
    }
}

fn our_value(value: &TheirValue) -> HeaderValue<'_> {
    match value {
        TheirValue::Bool(value) => HeaderValue::Bool(*value),
        TheirValue::Byte(value) => HeaderValue::I8(*value),
        TheirValue::Int16(value) => HeaderValue::I16(*value),
        TheirValue::Int32(value) => HeaderValue::I32(*value),
        TheirValue::Int64(value) => HeaderValue::I64(*value),
        TheirValue::ByteArray(value) => HeaderValue::Bytes(value),
        TheirValue::String(value) => HeaderValue::Text(value.as_str()),
        TheirValue::Timestamp(value) => HeaderValue::Timestamp(value.to_millis().expect("made from milliseconds")),
        TheirValue::Uuid(value) => HeaderValue::Uuid(value.to_be_bytes()),
        other => panic!("a type of header value that this test doesn't know: {other:?}"),
    }
}

/// Reads messages out of arbitrary bytes, until they run out.
struct Recipe<'a>(&'a [u8]);

impl Recipe<'_> {
    fn message(&mut self) -> Option<Message> {
        let headers = self.byte()? % 8;
        let headers = (0..headers).map_while(|_| Some(Header::new(self.text()?, self.value()?))).collect();
        let len = self.byte()?;
        Some(Message::new_from_parts(headers, Bytes::copy_from_slice(self.take(usize::from(len)))))
    }

    fn value(&mut self) -> Option<TheirValue> {
        Some(match self.byte()? % 9 {
            0 => TheirValue::Bool(self.byte()? % 2 == 0),
            1 => TheirValue::Byte(self.byte()? as i8),
            2 => TheirValue::Int16(self.number()? as i16),
            3 => TheirValue::Int32(self.number()? as i32),
            4 => TheirValue::Int64(self.number()? as i64),
            5 => TheirValue::ByteArray(Bytes::from(self.text()?)),
            6 => TheirValue::String(self.text()?.into()),
            7 => TheirValue::Timestamp(DateTime::from_millis(self.number()? as i32 as i64)),
            _ => TheirValue::Uuid(self.number()?),
        })
    }

    /// Up to 300 bytes, so that some names are too long.
    fn text(&mut self) -> Option<String> {
        let len = usize::from(self.byte()?);
        let text = String::from_utf8_lossy(self.take(len)).into_owned();
        Some(if len == 255 { text.repeat(20) } else { text })
    }

    fn number(&mut self) -> Option<u128> {
        let bytes = self.take(16);
        (!bytes.is_empty()).then(|| bytes.iter().fold(0, |number, &byte| number << 8 | u128::from(byte)))
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
