//! The response half as one sans-IO object: upstream bytes in, SSE bytes out.

use bytes::{Bytes, BytesMut};

use super::kiro::fault::Fault;
use super::messages::error::ApiError;
use super::translate::tools::ToolNames;

pub use super::messages::event::{StopReason, Usage};
pub use super::translate::usage::UsageSplit;

/// What one response needs to know about its request.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `msg_…`, the `id` of the message.
    pub message_id: String,
    /// `req_…`, in `error` events.
    pub request_id: String,
    /// The model as the client named it, echoed.
    pub model: String,
    /// Thinking is on (TR12): native reasoning becomes blocks, tags are looked for.
    pub thinking: bool,
    /// Upstream's tool names back to the client's (TR20).
    pub tool_names: ToolNames,
    /// The model's window in tokens (TU4).
    pub window: u64,
    /// How an input total is shown (TU3).
    pub usage_split: UsageSplit,
    /// Our estimate of the request in tokens (TU7).
    pub input_estimate: u64,
    /// What comes out.
    pub mode: Mode,
}

/// What comes out of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// SSE bytes, as they come (`stream: true`).
    Stream,
    /// One message at the end (`stream: false`, TS24); nothing is ever written to `out`.
    Fold,
}

/// What the driver has to do after it fed the pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: feed on. Also what a failed pipeline says to further input, which it swallows.
    Continue,
    /// Upstream failed before the commit; the client was told nothing of it. Only [`Pipeline::restart`] or
    /// [`Pipeline::give_up`] follows (TS19).
    Fault(Fault),
    /// The answer is complete; further input is swallowed.
    Done,
    /// Upstream failed after the commit: the answer ended with an `error` event ([`Mode::Fold`]: there is none).
    Failed(Fault),
}

/// A content block was handed downstream: no second account (TS20, M9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed;

impl std::fmt::Display for Committed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the response is committed")
    }
}

impl std::error::Error for Committed {}

/// What a response was like, for the log and the metrics. Counts go over all attempts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Why the answer ended; none while it runs and when it failed.
    pub stop_reason: Option<StopReason>,
    /// As in `message_delta`; before that, what it would be now.
    pub usage: Usage,
    /// Frames decoded.
    pub frames: u64,
    /// Upstream bytes fed.
    pub bytes_in: u64,
    /// Frames whose checksum was wrong.
    pub crc_failures: u64,
    /// Events we know nothing about, by name: at most 16 names of at most 64 characters.
    pub unknown_events: Vec<(String, u64)>,
    /// Payloads with invalid UTF-8 (TS2).
    pub invalid_utf8: u64,
    /// Content events that had no place: signatures without a thought, pieces of finished tools (TS6).
    pub ignored_events: u64,
    /// The exception that came after a complete answer and was taken for its end (TS17).
    pub ghost: Option<Fault>,
    /// The answer ended well without any content (K41).
    pub empty: bool,
    /// `usage` of the last meteringEvent, in its own unit (credits).
    pub metering: Option<f64>,
}

/// Feeds decoder, translator and output with upstream's bytes; pure. All that a driver, a test or a fuzz target needs.
#[derive(Debug)]
pub struct Pipeline {
    settings: Settings,
}

impl Pipeline {
    /// A pipeline in which nothing has happened.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Replaces [`Settings::input_estimate`]; to be called before `message_start` is out.
    pub fn set_input_estimate(&mut self, tokens: u64) {
        self.settings.input_estimate = tokens;
    }

    /// Takes one upstream chunk and appends all SSE that it gives to `out`.
    pub fn push(&mut self, chunk: Bytes, out: &mut BytesMut) -> Step {
        let _ = (chunk, out);
        Step::Continue
    }

    /// Upstream's body ended properly (K30).
    pub fn finish(&mut self, out: &mut BytesMut) -> Step {
        let _ = out;
        Step::Continue
    }

    /// Upstream's body ended in any other way: reset, time-out (TS1 `Cut`).
    pub fn abort(&mut self, fault: Fault, out: &mut BytesMut) -> Step {
        let _ = out;
        Step::Fault(fault)
    }

    /// We are about to stop: ends a started stream with an `overloaded_error` (TS18, M64). No fault of upstream's, so
    /// there is nothing to report.
    pub fn shutdown(&mut self, out: &mut BytesMut) {
        let _ = out;
    }

    /// `message_start` ahead of the first event (TS22).
    pub fn early_start(&mut self, out: &mut BytesMut) {
        let _ = out;
    }

    /// A `ping`, where one may stand (TS22).
    pub fn ping(&mut self, out: &mut BytesMut) {
        let _ = out;
    }

    /// Makes ready for another account's answer (TS20).
    ///
    /// # Errors
    /// When a content block was opened.
    pub fn restart(&mut self) -> Result<(), Committed> {
        Ok(())
    }

    /// No further attempt (TS19): a started stream ends with `error`, an unstarted one is the caller's to answer.
    pub fn give_up(&mut self, error: &ApiError, out: &mut BytesMut) {
        let _ = (error, out);
    }

    /// `message_start` is out ([`Mode::Fold`]: would be).
    pub fn is_started(&self) -> bool {
        false
    }

    /// A content block was opened: the answer belongs to this account.
    pub fn is_committed(&self) -> bool {
        false
    }

    /// Nothing more will come out.
    pub fn is_ended(&self) -> bool {
        false
    }

    /// What the response was like so far.
    pub fn report(&self) -> Report {
        Report::default()
    }

    /// The folded message as JSON, once, after [`Step::Done`]; [`Mode::Stream`]: none.
    pub fn message(&mut self) -> Option<Vec<u8>> {
        None
    }
}
