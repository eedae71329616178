//! The way of an answer's text: stop sequences (M82), `max_tokens` (M83), out.

use std::borrow::Cow;

use super::{Cut, Response, State, Step};
use crate::proto::messages::event::{Block, Delta, Piece, Sink, StreamEvent};

impl Response {
    /// Outside of thoughts and tools: a piece of the answer's text.
    pub(super) fn text_delta(&mut self, piece: Piece<'_>, sink: &mut impl Sink) {
        if self.cut.is_some() {
            return;
        }
        // Not earlier than the first text, not later than it either, even if all of it is held.
        if !matches!(self.state, State::Text) {
            self.close_other_block(sink);
        }
        let Some(mut stops) = self.stops.take() else { return self.limited_text(piece, sink) };
        let (free, hit) = stops.take(piece);
        if !free.is_empty() {
            self.limited_text(free, sink);
        }
        self.stops = Some(stops);
        if let Some(index) = hit {
            self.cut = self.cut.or(Some(Cut::Sequence(index)));
        }
    }

    /// Text that no stop sequence takes away.
    fn limited_text(&mut self, piece: Piece<'_>, sink: &mut impl Sink) {
        let before = self.output.clone();
        self.count(piece);
        if self.limit.is_far(self.output.hundredths()) {
            return self.put_text(piece, sink);
        }
        self.output = before;
        let text = text_of(piece);
        let mut end = text.len();
        for (at, next) in text.char_indices() {
            if self.limit.ends_before(next, self.output.hundredths()) {
                end = at;
                self.cut = Some(Cut::MaxTokens);
                break;
            }
            self.output.text(&text[at..at + next.len_utf8()]);
        }
        match &text[..end] {
            "" => {}
            _ if end == text.len() => self.put_text(piece, sink),
            head => self.put_text(Piece::Plain(head), sink),
        }
    }

    fn put_text(&mut self, piece: Piece<'_>, sink: &mut impl Sink) {
        if self.held.is_some() {
            return self.hold(&text_of(piece));
        }
        if !matches!(self.state, State::Text) {
            self.open_block(Block::Text, State::Text, sink);
        }
        sink.event(StreamEvent::BlockDelta { index: self.index, delta: Delta::Text(piece) });
    }

    /// Text begins: a thought that is open ends.
    fn close_other_block(&mut self, sink: &mut impl Sink) {
        if !matches!(self.state, State::Open | State::Gap) {
            self.close_block(sink);
        }
    }

    /// The text ends without a stop sequence: what was held for one goes out.
    pub(super) fn flush_stops(&mut self, sink: &mut impl Sink) {
        let held = self.stops.as_mut().map(|stops| stops.flush()).unwrap_or_default();
        if !held.is_empty() && self.cut.is_none() {
            self.limited_text(Piece::Plain(&held), sink);
        }
    }

    pub(super) fn holds_text(&self) -> bool {
        self.stops.as_ref().is_some_and(|stops| stops.holds())
            || self.held.as_ref().is_some_and(|text| !text.is_empty())
    }

    /// The step after a content event.
    pub(super) fn go_on(&mut self, sink: &mut impl Sink) -> Step {
        if self.cut.is_none() {
            return Step::Continue;
        }
        self.tally.ignored_events += self.queue.clear();
        self.complete(sink)
    }

    /// No block may begin behind the limit, and inside of a tool's input the limit has no effect (M83, TS42).
    pub(super) fn is_cut_between_blocks(&mut self) -> bool {
        if self.limit.is_over(self.output.hundredths()) {
            self.cut = self.cut.or(Some(Cut::MaxTokens));
        }
        self.cut.is_some()
    }

    /// Counts a piece of a thought: `max_tokens` as we keep it is for text and tools.
    pub(super) fn count_beside(&mut self, piece: Piece<'_>) {
        let before = self.output.hundredths();
        self.count(piece);
        self.limit.leave_out(self.output.hundredths() - before);
    }

    /// The sequence that ended the answer.
    pub(super) fn stop_sequence(&self) -> Option<&str> {
        match self.cut? {
            Cut::Sequence(index) => self.stops.as_ref()?.sequences().get(index),
            Cut::MaxTokens => None,
        }
    }
}

fn text_of(piece: Piece<'_>) -> Cow<'_, str> {
    match piece {
        Piece::Plain(text) => Cow::Borrowed(text),
        Piece::Literal(literal) => literal.decode(),
    }
}
