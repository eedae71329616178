//! The response half as one sans-IO object: upstream bytes in, SSE bytes out.
//!
//! ```text
//!  chunk ─▶ Decoder ─Frame─▶ kiro::Event ─▶ Response (TS) ─StreamEvent─▶ Sse, appended to the driver's buffer
//!                                                                     └▶ Fold, one message at the end
//! ```
//!
//! ```
//! use bytes::{Bytes, BytesMut};
//! use kiro_messages::proto::eventstream::{HeaderValue, encode};
//! use kiro_messages::proto::pipeline::{Mode, Pipeline, Settings, Step, UsageSplit};
//!
//! let mut upstream = Vec::new();
//! let headers = [
//!     (":message-type", HeaderValue::Text("event")),
//!     (":event-type", HeaderValue::Text("assistantResponseEvent")),
//! ];
//! encode(&headers, br#"{"content":"Hi"}"#, &mut upstream)?;
//!
//! let mut pipeline = Pipeline::new(Settings {
//!     message_id: "msg_1".into(),
//!     request_id: "req_1".into(),
//!     model: "claude-sonnet-4-5".into(),
//!     thinking: false,
//!     drop_thinking_text: false,
//!     tool_names: Default::default(),
//!     window: 172_500,
//!     usage_window: 172_500,
//!     usage_split: UsageSplit::Ratio,
//!     input_estimate: 10,
//!     mode: Mode::Stream,
//!     extras: Default::default(),
//! });
//! let mut out = BytesMut::new();
//! assert_eq!(pipeline.push(Bytes::from(upstream), &mut out), Step::Continue);
//! assert_eq!(pipeline.finish(&mut out), Step::Done);
//! assert!(out.starts_with(b"event: message_start\ndata: {"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use bytes::{Bytes, BytesMut};

use super::eventstream::{Decoder, Flaw, FrameError};
use super::kiro::event::Reader;
use super::kiro::fault::Fault;
use super::messages::error::ApiError;
use super::messages::event::Sink;
use super::messages::response::Fold;
use super::messages::search::SearchOutcome;
use super::messages::sse::Sse;
use super::said::KnownSecrets;
use super::translate::stream::Response;

pub use super::messages::event::{StopReason, Usage};
pub use super::translate::stop::StopSequences;
pub use super::translate::stream::{Committed, Extras, Mode, SearchCall, Settings, Step, signature_key};
pub use super::translate::structured::AnswerCheck;
pub use super::translate::usage::{Measured, UsageSplit};

/// What a response was like, for the log and the metrics. Counts go over all attempts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Why the answer ended; none while it runs and after a failure.
    pub stop_reason: Option<StopReason>,
    /// As in `message_delta`; before that, the figures as of now.
    pub usage: Usage,
    /// Frames decoded.
    pub frames: u64,
    /// Upstream bytes fed, those after the end of the answer included.
    pub bytes_in: u64,
    /// Frames whose checksum was wrong.
    pub crc_failures: u64,
    /// Events that aren't in the model, by name: at most 16 names of at most 64 characters.
    pub unknown_events: Vec<(String, u64)>,
    /// Payloads with invalid UTF-8 (TS2).
    pub invalid_utf8: u64,
    /// Content events that had no place: signatures without a thought, pieces of finished tools (TS6).
    pub ignored_events: u64,
    /// The exception that came after a complete answer and was taken for its end (TS17): worth a warning.
    pub ghost: Option<Fault>,
    /// The answer ended well without any content (K41): worth a warning.
    pub empty: bool,
    /// `usage` of the last meteringEvent: credits, never converted to tokens (TU9).
    pub credits: Option<f64>,
    /// Searches that upstream answered (TU10).
    pub searches: u32,
    /// The answer ended with the body alone, without counts, percentage and credits (TU9): it may be a cut.
    pub without_end: bool,
    /// Upstream's count and its percentage, when the answer had both (A187).
    pub measured: Option<Measured>,
    /// The [`signature_key`] of each signed or redacted thought that was delivered, in order, at most 64 (TR44).
    pub signatures: Vec<u64>,
}

/// Feeds decoder, translator and output with upstream's bytes; pure. A driver, a test or a fuzz target needs nothing
/// else.
///
/// After a [`Step::Fault`] it takes nothing more until [`restart`](Self::restart) or [`give_up`](Self::give_up); after
/// the end it swallows everything, so that the driver may read the body to its end (K70).
#[derive(Debug)]
pub struct Pipeline {
    decoder: Decoder,
    reader: Reader,
    response: Response,
    output: Output,
    counts: Counts,
}

#[derive(Debug)]
enum Output {
    Sse,
    /// Events whose blocks are needed again for the next round (TS33).
    SseAndFold(Fold),
    Fold(Fold),
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    frames: u64,
    bytes_in: u64,
    crc_failures: u64,
}

impl Pipeline {
    /// A pipeline in which nothing has happened.
    pub fn new(settings: Settings) -> Self {
        let output = match settings.mode {
            Mode::Stream if settings.extras.search || settings.extras.structured.is_some() => {
                Output::SseAndFold(Fold::default())
            }
            Mode::Stream => Output::Sse,
            Mode::Fold => Output::Fold(Fold::default()),
        };
        Self {
            decoder: Decoder::new(),
            reader: Reader::default(),
            response: Response::new(settings),
            output,
            counts: Counts::default(),
        }
    }

    /// Replaces [`Settings::input_estimate`]; to be called before `message_start` is out.
    pub fn set_input_estimate(&mut self, tokens: u64) {
        self.response.set_input_estimate(tokens);
    }

    /// Replaces the window that the percentage of context refers to, in tokens: the answering account may have another
    /// one (K126).
    pub fn set_usage_window(&mut self, tokens: u64) {
        self.response.set_usage_window(tokens);
    }

    /// Replaces [`Extras::max_tokens`]; to be called before an attempt's first chunk.
    pub fn set_max_tokens(&mut self, tokens: Option<u64>) {
        self.response.set_max_tokens(tokens);
    }

    /// The secrets of the call that comes next: no fault and no report shows any of them.
    pub fn set_known(&mut self, known: KnownSecrets) {
        self.reader.set_known(known);
    }

    /// Takes one upstream chunk and appends all SSE that it gives to `out`. [`Step::Fault`] and [`Step::Failed`] are
    /// returned once. The output of the frames before a broken one stays (K27).
    pub fn push(&mut self, chunk: Bytes, out: &mut BytesMut) -> Step {
        self.counts.bytes_in += chunk.len() as u64;
        let Self { decoder, reader, response, output, counts } = self;
        if let Some(step) = response.swallows() {
            return step;
        }
        decoder.push(chunk);
        let (step, fold) = match output {
            Output::Sse => return drive(decoder, reader, response, counts, &mut Sse(out)),
            Output::SseAndFold(fold) => {
                let mut both = AnySink::SseAndFold(Sse(out), fold);
                (drive(decoder, reader, response, counts, &mut both), fold)
            }
            Output::Fold(fold) => (drive(decoder, reader, response, counts, fold), fold),
        };
        if !fold.is_too_long() {
            return self.stepped(step);
        }
        *fold = Fold::default();
        response.drop_answer();
        Step::TooLong
    }

    /// The searches that the model has called since the last time, in order.
    pub fn take_searches(&mut self) -> &[SearchCall] {
        self.response.take_searches()
    }

    /// After [`Step::Searches`]: the outcomes of the round's searches, in order. `may_go_on`: another upstream answer may
    /// follow; without it the message pauses where only searches were called (TS35).
    pub fn searched(&mut self, outcomes: &[SearchOutcome], may_go_on: bool, out: &mut BytesMut) -> Step {
        let step = self.with_sink(out, |response, mut sink| response.searched(outcomes, may_go_on, &mut sink));
        self.stepped(step)
    }

    /// The next round is another stream of frames.
    fn stepped(&mut self, step: Step) -> Step {
        if step == Step::NextRound {
            self.begin_stream();
        }
        step
    }

    /// After [`Step::NextRound`]: the messages that go behind the client's (TS33), as JSON objects with commas between.
    pub fn next_messages(&mut self) -> Vec<u8> {
        let content = match &self.output {
            Output::Sse => &[],
            Output::SseAndFold(fold) | Output::Fold(fold) => fold.content(),
        };
        match self.response.rejected() {
            Some(rejected) => rejected.messages(content),
            None => [b"{\"role\":\"assistant\",\"content\":[", content, b"]}"].concat(),
        }
    }

    /// Upstream's body ended properly (K30). Bytes left over are a broken frame (K39).
    pub fn finish(&mut self, out: &mut BytesMut) -> Step {
        match self.decoder.finish() {
            Ok(()) => {
                let step = self.with_sink(out, |response, mut sink| response.end(&mut sink));
                self.stepped(step)
            }
            Err(error) => self.abort(Fault::protocol(error.to_string()), out),
        }
    }

    /// Upstream's body ended in any other way: reset, time-out (TS1 `Cut`).
    pub fn abort(&mut self, fault: Fault, out: &mut BytesMut) -> Step {
        self.with_sink(out, |response, mut sink| response.cut(fault, &mut sink))
    }

    /// The server stops: a started stream ends with an `overloaded_error` (TS18, M64). Upstream made no fault, so no
    /// step is returned.
    pub fn shutdown(&mut self, out: &mut BytesMut) {
        self.with_sink(out, |response, mut sink| response.shutdown(&mut sink));
    }

    /// `message_start` ahead of the first event (TS22). [`Mode::Fold`]: nothing.
    pub fn early_start(&mut self, out: &mut BytesMut) {
        if self.streams() {
            self.with_sink(out, |response, mut sink| response.early_start(&mut sink));
        }
    }

    /// A `ping`, where one may stand (TS22). [`Mode::Fold`]: nothing.
    pub fn ping(&mut self, out: &mut BytesMut) {
        if self.streams() {
            self.with_sink(out, |response, mut sink| response.ping(&mut sink));
        }
    }

    /// Prepares for another account's answer (TS20).
    ///
    /// # Errors
    /// When a content block was opened, and after the end.
    pub fn restart(&mut self) -> Result<(), Committed> {
        self.response.restart()?;
        self.begin_stream();
        Ok(())
    }

    fn begin_stream(&mut self) {
        self.decoder = Decoder::new();
        self.reader.begin_stream();
    }

    /// No further attempt (TS19): a started stream ends with `error`, an unstarted one is the caller's to answer.
    pub fn give_up(&mut self, error: &ApiError, out: &mut BytesMut) {
        self.with_sink(out, |response, mut sink| response.give_up(error, &mut sink));
    }

    /// `message_start` is out ([`Mode::Fold`]: would be).
    pub fn is_started(&self) -> bool {
        self.response.is_started()
    }

    /// Only the end of the body is missing: the answer has content, no tool is open, and usage and credits came behind
    /// it.
    #[inline]
    pub fn is_at_rest(&self) -> bool {
        self.response.is_at_rest() && self.decoder.finish().is_ok()
    }

    /// A content block was opened: the answer belongs to this account (TS3, M9).
    pub fn is_committed(&self) -> bool {
        self.response.is_committed()
    }

    /// No more output follows.
    pub fn is_ended(&self) -> bool {
        self.response.is_ended()
    }

    /// Frames decoded so far, over all attempts.
    pub fn frames(&self) -> u64 {
        self.counts.frames
    }

    /// The report so far.
    pub fn report(&self) -> Report {
        let tally = self.response.tally();
        let stop_reason = self.response.stop_reason();
        Report {
            stop_reason,
            usage: self.response.usage(),
            frames: self.counts.frames,
            bytes_in: self.counts.bytes_in,
            crc_failures: self.counts.crc_failures,
            unknown_events: tally.unknown_events.clone(),
            invalid_utf8: self.reader.invalid_utf8(),
            ignored_events: tally.ignored_events,
            ghost: tally.ghost.clone(),
            empty: stop_reason.is_some_and(|reason| reason != StopReason::StopSequence)
                && !self.response.is_committed(),
            credits: self.response.credits(),
            searches: self.response.searches(),
            without_end: self.response.is_without_end(),
            measured: self.response.measured(),
            signatures: tally.signatures.clone(),
        }
    }

    /// Bytes of the answer that are held: the folded message, events that wait behind a tool, an incomplete frame.
    pub fn held(&self) -> usize {
        let folded = match &self.output {
            Output::Sse => 0,
            Output::SseAndFold(fold) | Output::Fold(fold) => fold.held(),
        };
        folded + self.response.held() + self.decoder.buffered()
    }

    /// The folded message as JSON, once, after [`Step::Done`]; [`Mode::Stream`]: none.
    pub fn message(&mut self) -> Option<Vec<u8>> {
        match &mut self.output {
            Output::Sse | Output::SseAndFold(_) => None,
            Output::Fold(fold) => fold.take(),
        }
    }

    /// Decodes and escapes instead of the raw copy (TS23). The events are the same; benchmarks and property tests
    /// compare the two.
    #[doc(hidden)]
    #[must_use]
    pub fn without_raw_copy(mut self) -> Self {
        self.response = self.response.without_raw_copy();
        self
    }

    fn streams(&self) -> bool {
        !matches!(self.output, Output::Fold(_))
    }

    fn with_sink<T>(&mut self, out: &mut BytesMut, input: impl FnOnce(&mut Response, AnySink<'_>) -> T) -> T {
        let sink = match &mut self.output {
            Output::Sse => AnySink::Sse(Sse(out)),
            Output::SseAndFold(fold) => AnySink::SseAndFold(Sse(out), fold),
            Output::Fold(fold) => AnySink::Fold(fold),
        };
        input(&mut self.response, sink)
    }
}

/// Processes every whole frame.
fn drive(
    decoder: &mut Decoder,
    reader: &mut Reader,
    response: &mut Response,
    counts: &mut Counts,
    sink: &mut impl Sink,
) -> Step {
    loop {
        let event = match decoder.next() {
            Ok(Some(frame)) => {
                counts.frames += 1;
                reader.event(&frame)
            }
            Ok(None) => return Step::Continue,
            Err(error) => {
                if let FrameError::Invalid {
                    flaw: Flaw::PreludeChecksum { .. } | Flaw::MessageChecksum { .. }, ..
                } = error
                {
                    counts.crc_failures += 1;
                }
                return response.cut(Fault::protocol(error.to_string()), sink);
            }
        };
        match response.event(event, sink) {
            Step::Continue => {}
            step => return step,
        }
    }
}

/// The sink of the rarer inputs, which share one compiled copy of the code.
enum AnySink<'a> {
    Sse(Sse<'a>),
    SseAndFold(Sse<'a>, &'a mut Fold),
    Fold(&'a mut Fold),
}

impl Sink for AnySink<'_> {
    fn event(&mut self, event: super::messages::event::StreamEvent<'_>) {
        match self {
            Self::Sse(sse) => sse.event(event),
            Self::SseAndFold(sse, fold) => {
                sse.event(event);
                fold.event(event);
            }
            Self::Fold(fold) => fold.event(event),
        }
    }
}
