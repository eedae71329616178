//! Folding a stream of events into one message.

use bytes::BufMut;
use serde_json::value::RawValue;

use super::event::{Block, Delta, Piece, Sink, StreamEvent};
use super::sse::{
    write_context_management, write_piece, write_search_results, write_search_use, write_stop, write_usage,
};
use crate::proto::json::{self, Completeness};

/// The longest folded message, in bytes. A longer answer must be streamed.
pub const MAX_FOLDED: usize = 64 << 20;

/// Folds the events of a stream into the non-streaming answer (TS24, M51): blocks in order, deltas concatenated. Text
/// stays JSON from the payload to the message; only a tool's input is parsed.
#[derive(Debug, Default)]
pub struct Fold {
    /// The message as JSON, as far as it came.
    message: Vec<u8>,
    /// Where the blocks begin in it.
    content_from: usize,
    blocks: usize,
    open: Open,
    complete: bool,
}

/// The block that is open.
#[derive(Debug, Default)]
enum Open {
    #[default]
    None,
    Text,
    Thinking {
        signature: String,
    },
    Redacted,
    Results,
    Tool {
        /// Where the block begins in the message, the comma before it included.
        from: usize,
        input: String,
        completeness: Completeness,
    },
}

impl Fold {
    /// The message as JSON: `{id, type, role, model, content, stop_reason, stop_sequence, usage}`. None before the last
    /// event, after an error, and when it was taken before.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.complete).then(|| std::mem::take(&mut self.message))
    }

    /// The blocks so far, as the elements of a JSON array; the open one is not whole.
    pub fn content(&self) -> &[u8] {
        self.message.get(self.content_from..).unwrap_or_default()
    }

    /// It holds more than [`MAX_FOLDED`].
    pub fn is_too_long(&self) -> bool {
        let open = match &self.open {
            Open::Thinking { signature } => signature.len(),
            Open::Tool { input, .. } => input.len(),
            Open::None | Open::Text | Open::Redacted | Open::Results => 0,
        };
        self.message.len() + open > MAX_FOLDED
    }

    /// Bytes of memory that it holds.
    pub fn held(&self) -> usize {
        let open = match &self.open {
            Open::Thinking { signature } => signature.capacity(),
            Open::Tool { input, .. } => input.capacity(),
            Open::None | Open::Text | Open::Redacted | Open::Results => 0,
        };
        self.message.capacity() + open
    }

    fn open(&mut self, block: Block<'_>) {
        let from = self.message.len();
        if self.blocks > 0 {
            self.message.put_u8(b',');
        }
        self.blocks += 1;
        self.open = match block {
            Block::Text => {
                self.message.put_slice(b"{\"type\":\"text\",\"text\":\"");
                Open::Text
            }
            Block::Thinking => {
                self.message.put_slice(b"{\"type\":\"thinking\",\"thinking\":\"");
                Open::Thinking { signature: String::new() }
            }
            Block::RedactedThinking { data } => {
                self.message.put_slice(b"{\"type\":\"redacted_thinking\",\"data\":\"");
                json::escape(data, &mut self.message);
                Open::Redacted
            }
            Block::ToolUse { id, name } => {
                self.message.put_slice(b"{\"type\":\"tool_use\",\"id\":\"");
                json::escape(id, &mut self.message);
                self.message.put_slice(b"\",\"name\":\"");
                json::escape(name, &mut self.message);
                self.message.put_slice(b"\",\"input\":");
                Open::Tool { from, input: String::new(), completeness: Completeness::default() }
            }
            Block::SearchUse { id } => {
                write_search_use(id, &mut self.message);
                Open::Tool { from, input: String::new(), completeness: Completeness::default() }
            }
            Block::SearchResults { id, outcome } => {
                write_search_results(id, outcome, &mut self.message);
                Open::Results
            }
        };
    }

    fn delta(&mut self, delta: Delta<'_>) {
        match (delta, &mut self.open) {
            (Delta::Text(piece) | Delta::Thinking(piece), _) => write_piece(piece, &mut self.message),
            (Delta::Signature(whole), Open::Thinking { signature }) => whole.clone_into(signature),
            (Delta::InputJson(piece), Open::Tool { input, completeness, .. }) => match piece {
                Piece::Plain(text) => {
                    completeness.text(text);
                    input.push_str(text);
                }
                Piece::Literal(literal) => {
                    completeness.literal(literal);
                    input.push_str(&literal.decode());
                }
            },
            (Delta::Signature(_) | Delta::InputJson(_), _) => {}
        }
    }

    fn close(&mut self) {
        match std::mem::take(&mut self.open) {
            Open::None => {}
            Open::Text | Open::Redacted => self.message.put_slice(b"\"}"),
            Open::Results => self.message.put_u8(b'}'),
            Open::Thinking { signature } => {
                self.message.put_slice(b"\",\"signature\":\"");
                json::escape(&signature, &mut self.message);
                self.message.put_slice(b"\"}");
            }
            Open::Tool { input, completeness, .. } if completeness.is_complete() => {
                write_input(&input, &mut self.message);
                self.message.put_u8(b'}');
            }
            Open::Tool { from, .. } => {
                // M51: half an input must not look whole.
                self.message.truncate(from);
                self.blocks -= 1;
            }
        }
    }
}

impl Sink for Fold {
    fn event(&mut self, event: StreamEvent<'_>) {
        match event {
            StreamEvent::MessageStart { id, model, .. } => {
                self.message.put_slice(b"{\"id\":\"");
                json::escape(id, &mut self.message);
                self.message.put_slice(b"\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"");
                json::escape(model, &mut self.message);
                self.message.put_slice(b"\",\"content\":[");
                self.content_from = self.message.len();
            }
            StreamEvent::BlockStart { block, .. } => self.open(block),
            StreamEvent::BlockDelta { delta, .. } => self.delta(delta),
            StreamEvent::BlockStop { .. } => self.close(),
            StreamEvent::MessageDelta { stop_reason, stop_sequence, usage, searches, context_management } => {
                self.message.put_slice(b"],\"stop_reason\":\"");
                write_stop(stop_reason, stop_sequence, &mut self.message);
                self.message.put_slice(b",\"usage\":");
                write_usage(usage, searches, &mut self.message);
                write_context_management(context_management, &mut self.message);
                self.message.put_u8(b'}');
            }
            StreamEvent::MessageStop => self.complete = true,
            StreamEvent::Ping => {}
            // The whole result is that error, never a partial message (TS24).
            StreamEvent::Error { .. } => *self = Self::default(),
        }
    }
}

/// The input as it came, without blanks between its tokens, if it is an object; else it is kept as text (TS24).
fn write_input(input: &str, message: &mut Vec<u8>) {
    match serde_json::from_str::<&RawValue>(input) {
        Ok(value) if value.get().starts_with('{') => {
            message.put_slice(json::compact(&json::without_lone_halves(value.get())).as_bytes());
        }
        _ => {
            message.put_slice(b"{\"raw_arguments\":\"");
            json::escape(input, message);
            message.put_slice(b"\"}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> String {
        let mut out = Vec::new();
        write_input(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn input_that_is_an_object_keeps_order_and_numbers_ts24() {
        assert_eq!(input(" { \"b\" : 1.0 , \"a\" : 1e3 } "), r#"{"b":1.0,"a":1e3}"#);
        assert_eq!(input(r#"{"s":"\ud83d"}"#), r#"{"s":"\ufffd"}"#);
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(input(&deep), deep);
    }

    #[test]
    fn anything_else_is_kept_as_text_ts24() {
        assert_eq!(input("{\"k\":}"), r#"{"raw_arguments":"{\"k\":}"}"#);
        assert_eq!(input("[1]"), r#"{"raw_arguments":"[1]"}"#);
    }
}
