//! Stream events as SSE bytes.

use bytes::{BufMut, BytesMut};

use super::error::write_error;
use super::event::{Block, Delta, Piece, Sink, StopReason, StreamEvent, Usage};
use super::search::{SearchOutcome, write_content};
use crate::proto::json;

/// Appends each event to a buffer: `event: TYPE\ndata: JSON\n\n`, compact, members in the order of TV1 (TS21).
///
/// Fixed parts are constants; a text delta is a few copies.
#[derive(Debug)]
pub struct Sse<'o>(pub &'o mut BytesMut);

impl Sink for Sse<'_> {
    #[inline]
    fn event(&mut self, event: StreamEvent<'_>) {
        write(event, self.0);
    }
}

#[inline]
fn write(event: StreamEvent<'_>, out: &mut BytesMut) {
    match event {
        StreamEvent::BlockDelta { index, delta } => write_delta(index, delta, out),
        StreamEvent::BlockStart { index, block } => write_block_start(index, block, out),
        StreamEvent::BlockStop { index } => {
            out.put_slice(b"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":");
            write_number(u64::from(index), out);
            out.put_slice(b"}\n\n");
        }
        StreamEvent::MessageStart { id, model, usage } => {
            out.put_slice(b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"");
            json::escape(id, out);
            out.put_slice(b"\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"");
            json::escape(model, out);
            out.put_slice(b"\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":");
            write_usage(usage, None, out);
            out.put_slice(b"}}\n\n");
        }
        StreamEvent::MessageDelta { stop_reason, stop_sequence, usage, searches, context_management } => {
            out.put_slice(b"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"");
            write_stop(stop_reason, stop_sequence, out);
            out.put_slice(b"},\"usage\":");
            write_usage(usage, searches, out);
            write_context_management(context_management, out);
            out.put_slice(b"}\n\n");
        }
        StreamEvent::MessageStop => out.put_slice(b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
        StreamEvent::Ping => out.put_slice(b"event: ping\ndata: {\"type\":\"ping\"}\n\n"),
        StreamEvent::Error { error, request_id } => {
            out.put_slice(b"event: error\ndata: ");
            write_error(error, request_id, out);
            out.put_slice(b"\n\n");
        }
    }
}

/// The four counts as an object (TU1), and the count of searches (TU10).
pub(super) fn write_usage(usage: Usage, searches: Option<u32>, out: &mut impl BufMut) {
    out.put_slice(b"{\"input_tokens\":");
    write_number(usage.input_tokens, out);
    out.put_slice(b",\"cache_creation_input_tokens\":");
    write_number(usage.cache_creation_input_tokens, out);
    out.put_slice(b",\"cache_read_input_tokens\":");
    write_number(usage.cache_read_input_tokens, out);
    out.put_slice(b",\"output_tokens\":");
    write_number(usage.output_tokens, out);
    if let Some(searches) = searches {
        out.put_slice(b",\"server_tool_use\":{\"web_search_requests\":");
        write_number(u64::from(searches), out);
        out.put_slice(b",\"web_fetch_requests\":0}");
    }
    out.put_slice(b"}");
}

/// The member of M77.
pub(super) fn write_context_management(report: Option<&str>, out: &mut impl BufMut) {
    if let Some(report) = report {
        out.put_slice(b",\"context_management\":");
        out.put_slice(report.as_bytes());
    }
}

/// From inside the quotes of `stop_reason`'s value to the end of `stop_sequence`'s.
pub(super) fn write_stop(reason: StopReason, sequence: Option<&str>, out: &mut impl BufMut) {
    out.put_slice(reason.as_str().as_bytes());
    match sequence {
        None => out.put_slice(b"\",\"stop_sequence\":null"),
        Some(sequence) => {
            out.put_slice(b"\",\"stop_sequence\":\"");
            json::escape(sequence, out);
            out.put_slice(b"\"");
        }
    }
}

/// The content of a string literal.
pub(super) fn write_piece(piece: Piece<'_>, out: &mut impl BufMut) {
    match piece {
        Piece::Plain(text) => json::escape(text, out),
        Piece::Literal(literal) => out.put_slice(literal.as_bytes()),
    }
}

fn write_delta(index: u32, delta: Delta<'_>, out: &mut BytesMut) {
    out.put_slice(b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":");
    write_number(u64::from(index), out);
    let piece = match delta {
        Delta::Text(piece) => {
            out.put_slice(b",\"delta\":{\"type\":\"text_delta\",\"text\":\"");
            piece
        }
        Delta::Thinking(piece) => {
            out.put_slice(b",\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"");
            piece
        }
        Delta::Signature(signature) => {
            out.put_slice(b",\"delta\":{\"type\":\"signature_delta\",\"signature\":\"");
            Piece::Plain(signature)
        }
        Delta::InputJson(piece) => {
            out.put_slice(b",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"");
            piece
        }
    };
    write_piece(piece, out);
    out.put_slice(b"\"}}\n\n");
}

fn write_block_start(index: u32, block: Block<'_>, out: &mut BytesMut) {
    out.put_slice(b"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":");
    write_number(u64::from(index), out);
    out.put_slice(b",\"content_block\":");
    match block {
        Block::Text => out.put_slice(b"{\"type\":\"text\",\"text\":\"\"}"),
        Block::Thinking => out.put_slice(b"{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}"),
        Block::RedactedThinking { data } => {
            out.put_slice(b"{\"type\":\"redacted_thinking\",\"data\":\"");
            json::escape(data, out);
            out.put_slice(b"\"}");
        }
        Block::ToolUse { id, name } => {
            out.put_slice(b"{\"type\":\"tool_use\",\"id\":\"");
            json::escape(id, out);
            out.put_slice(b"\",\"name\":\"");
            json::escape(name, out);
            out.put_slice(b"\",\"input\":{}}");
        }
        Block::SearchUse { id } => {
            write_search_use(id, out);
            out.put_slice(b"{}}");
        }
        Block::SearchResults { id, outcome } => {
            write_search_results(id, outcome, out);
            out.put_slice(b"}");
        }
    }
    out.put_slice(b"}\n\n");
}

/// A search's use block up to its input (TS30).
pub(super) fn write_search_use(id: &str, out: &mut impl BufMut) {
    out.put_slice(b"{\"type\":\"server_tool_use\",\"id\":\"");
    json::escape(id, out);
    out.put_slice(b"\",\"name\":\"web_search\",\"caller\":{\"type\":\"direct\"},\"input\":");
}

/// A search's result block up to its last brace (TS32).
pub(super) fn write_search_results(id: &str, outcome: &SearchOutcome, out: &mut impl BufMut) {
    out.put_slice(b"{\"type\":\"web_search_tool_result\",\"tool_use_id\":\"");
    json::escape(id, out);
    out.put_slice(b"\",\"caller\":{\"type\":\"direct\"},\"content\":");
    write_content(outcome, out);
}

fn write_number(number: u64, out: &mut impl BufMut) {
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
}
