//! Kiro events to Messages events: the state machine (TS).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::estimate::Estimator;
use super::fault::{PromptSize, api_error};
use super::limit::TokenLimit;
use super::search;
use super::stop::{StopScanner, StopSequences};
use super::structured::{AnswerCheck, Rejected};
use super::thinking::{Span, Spans, TagScanner};
use super::tools::ToolNames;
use super::usage::{Measured, Reported, UsageSplit};
use crate::proto::json::Completeness;
use crate::proto::json::Literal;
use crate::proto::kiro::event::{Content, Event, Input, Reasoning, Telemetry, Text, Tool, UnusualStop};
use crate::proto::kiro::fault::Fault;
use crate::proto::messages::error::{ApiError, ErrorType};
use crate::proto::messages::event::{Block, Delta, Piece, Sink, StopReason, StreamEvent, Usage};
use crate::proto::messages::search::{SearchCode, SearchOutcome, WEB_SEARCH};

mod held;
mod text;

/// The limit of the queue behind an unfinished tool (TS14), in bytes; each event counts `QUEUED_OVERHEAD` bytes more. A
/// longer queue fails the answer (TS42).
pub const MAX_QUEUE: usize = 1 << 20;
/// Bytes that a waiting event counts beside its strings.
const QUEUED_OVERHEAD: usize = 128;
/// The longest signature that is sent (TS25), in bytes.
const MAX_SIGNATURE: usize = 256 << 10;
/// How many signatures of one answer are kept for the replay (TR44).
const MAX_SIGNATURES: usize = 64;
/// How many finished tool ids are remembered (TS25).
const MAX_FINISHED: usize = 1_024;
/// How many unknown event names are counted, and how many characters of each are kept.
const MAX_UNKNOWN: usize = 16;
const MAX_UNKNOWN_CHARS: usize = 64;
const REPLACEMENT: &str = "\u{fffd}";

/// The facts of a request that its response needs.
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
    /// The client said `display: omitted`: text of thoughts that upstream sends all the same isn't delivered (TS28).
    pub drop_thinking_text: bool,
    /// Upstream's tool names back to the client's (TR20).
    pub tool_names: ToolNames,
    /// The model's window in tokens, in errors (M62).
    pub window: u64,
    /// The window that upstream's percentage refers to, in tokens (TU2, K123).
    pub usage_window: u64,
    /// How an input total is shown (TU3).
    pub usage_split: UsageSplit,
    /// Our estimate of the request in tokens (TU7).
    pub input_estimate: u64,
    /// The form of the output.
    pub mode: Mode,
    /// Features that few requests ask for.
    pub extras: Extras,
}

/// Features of an answer that few requests ask for; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Anthropic's web search is declared: the gateway answers calls of `web_search` (TS30).
    pub search: bool,
    /// What `context_management` has done to the request, a JSON object (M77).
    pub context_management: Option<String>,
    /// They end the answer (M82).
    pub stop_sequences: Option<Arc<StopSequences>>,
    /// The text must be JSON that passes this check (TR62, TS37).
    pub structured: Option<AnswerCheck>,
    /// The answer ends near so many tokens of text and tool input, because upstream doesn't keep `max_tokens` (M83).
    pub max_tokens: Option<u64>,
}

/// The form of a response's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// SSE bytes, as they come (`stream: true`).
    Stream,
    /// One message at the end (`stream: false`, TS24); nothing is written before it.
    Fold,
}

/// The driver's next step after an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Feed on. Input behind a fault or a failure is swallowed with this step too: each fault is reported once.
    Continue,
    /// Upstream failed before the commit: nothing was sent to the client. Only a restart or giving up may follow
    /// (TS19).
    Fault(Fault),
    /// The answer is complete; further input is swallowed, with the same step.
    Done,
    /// Upstream's answer has ended and its searches are open: their outcomes come next
    /// ([`Response::searched`], TS31). Further input is swallowed.
    Searches,
    /// The message goes on with another upstream answer (TS31). Its request is the client's with the blocks so far as
    /// one more assistant message (TS33).
    NextRound,
    /// Neither the first reply nor the second was the JSON that was asked for (TS37): only giving up may follow. It isn't
    /// a fault of the account's.
    Unfit,
    /// The folded message became longer than [`MAX_FOLDED`] and was dropped. It isn't a fault of upstream's.
    ///
    /// [`MAX_FOLDED`]: crate::proto::messages::response::MAX_FOLDED
    TooLong,
    /// Upstream failed after the commit: the answer ended with an `error` event ([`Mode::Fold`]: without one).
    Failed(Fault),
}

/// A content block was sent: no second account may answer (TS20, M9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed;

impl std::fmt::Display for Committed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the response is committed")
    }
}

impl std::error::Error for Committed {}

/// Counts of the translation, for the log and the metrics, over all attempts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Events that aren't in the model, by name: at most 16 names of at most 64 characters.
    pub unknown_events: Vec<(String, u64)>,
    /// Content events that had no place: signatures without a thought, pieces of finished tools (TS6).
    pub ignored_events: u64,
    /// `usage` of the last meteringEvent, in its own unit (credits), if it is a finite number that isn't negative
    /// (TU9).
    pub credits: Option<f64>,
    /// The [`signature_key`] of each delivered thought that is signed or redacted, in order, at most `MAX_SIGNATURES`.
    pub signatures: Vec<u64>,
    /// The exception that came after a complete answer and was taken for its end (TS17).
    pub ghost: Option<Fault>,
}

/// One response: events in, stream events out, over all its attempts.
#[derive(Debug)]
pub struct Response {
    settings: Settings,
    state: State,
    /// Scans text for thinking tags while tag mode is on (TS9).
    tags: Option<TagScanner>,
    spans: Spans,
    /// The surrogate half that the last text of a kind ended with (TS2).
    half: Option<(HalfIn, u16)>,
    queue: Queue,
    finished: Finished,
    /// The index of the open block, else of the next one (TS4).
    index: u32,
    rounds: RoundsSoFar,
    /// Tool blocks that the client runs.
    tool_blocks: u64,
    reported: Reported,
    /// An event that isn't a fault came in this attempt (K41).
    heard: bool,
    /// A usage event came (K36).
    usage_seen: bool,
    /// The last content event was a tool's `stop:true` (K36).
    stopped: bool,
    /// The notes behind the last content: see [`Response::is_at_rest`].
    rest: Option<Rest>,
    /// A tool's input ended in its middle, or upstream's output limit was reached (TS15, TS42).
    truncated: bool,
    /// What upstream said of the end, where that outweighs all else (TS38).
    unusual: Option<StopReason>,
    /// Upstream's output limit ended it (TS16).
    limited: bool,
    output: Estimator,
    /// Looks for stop sequences (M82).
    stops: Option<Box<StopScanner>>,
    /// Where `max_tokens` ends the text (M83).
    limit: TokenLimit,
    /// We end the answer here; upstream hasn't.
    cut: Option<Cut>,
    /// The text so far, while it may still become the JSON that was asked for (TS37).
    held: Option<String>,
    ended: Option<(StopReason, Usage)>,
    tally: Tally,
    /// The raw copy of TS23 is on. Off only to measure its gain.
    raw_copy: bool,
}

/// How far the output has come (TS3).
#[derive(Debug)]
enum State {
    /// Nothing sent.
    Idle,
    /// message_start sent, no block yet.
    Open,
    Text,
    Think {
        /// Goes out before the block closes (TS8).
        signature: Signature,
        /// Its block was opened downstream. A block of a signature alone (TS27) is opened and closed at once when the
        /// signature is whole.
        sent: bool,
    },
    Tool(OpenTool),
    /// No block open, at least one was.
    Gap,
    /// Upstream's answer is over, and its searches aren't (TS31).
    Searching,
    /// A fault before the commit was reported: only a restart or giving up may follow (TS19).
    Faulted {
        started: bool,
    },
    Done,
    Failed {
        started: bool,
    },
}

/// Why we ended an answer that upstream would have continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The stop sequence of this index came.
    Sequence(usize),
    MaxTokens,
}

impl Cut {
    const fn stop_reason(self) -> StopReason {
        match self {
            Self::Sequence(_) => StopReason::StopSequence,
            Self::MaxTokens => StopReason::MaxTokens,
        }
    }
}

#[derive(Debug)]
enum Signature {
    Pending(String),
    /// Over [`MAX_SIGNATURE`]: not sent.
    TooLong,
}

/// A tool that upstream has begun. Its block opens with the first input that isn't blank, or with its `stop` (TS42), so
/// that a client can't run a call that was cut before.
#[derive(Debug)]
struct OpenTool {
    id: Arc<str>,
    /// As upstream named it.
    name: String,
    input: Completeness,
    /// A byte of input came.
    any_input: bool,
    /// The search that it calls (TS30); none where the client runs the tool.
    search: Option<SearchCall>,
    /// Its block was opened downstream.
    sent: bool,
    /// Its `stop` came in the middle of its input: it gets no more input, and nothing may follow it (TS42).
    torn: bool,
}

/// The upstream answers of one message (TS31). Everything else in a [`Response`] is about the present one.
#[derive(Debug, Default)]
struct RoundsSoFar {
    /// Of the first block of the present one.
    first_index: u32,
    /// What the earlier ones used (TU10).
    earlier: Usage,
    /// What of it counts for `max_tokens` (M83), in hundredths of a token.
    counted: u64,
    /// What the earlier ones cost (TU9).
    credits: Option<f64>,
    /// The searches of the present one, in order.
    searches: Vec<SearchCall>,
    /// How many of them the driver has taken.
    taken: usize,
    /// Searches that upstream answered, in all rounds.
    answered: u32,
    /// The reply that wasn't the JSON that was asked for (TS37).
    rejected: Option<Rejected>,
}

/// A search that the model has called (TS30).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchCall {
    /// `srvtoolu_…`.
    id: Arc<str>,
    /// The input as JSON text; cut where it is longer than any query.
    pub input: String,
}

/// The most that is kept of a search's input, in bytes.
const MAX_SEARCH_INPUT: usize = 16 << 10;

/// The key under which a signature, or the data of a redacted thought, is remembered (TR44): the first 64 bits of its
/// SHA-256.
pub fn signature_key(signature: &str) -> u64 {
    let digest = Sha256::digest(signature.as_bytes());
    digest.iter().take(8).fold(0, |key, &byte| key << 8 | u64::from(byte))
}

/// Texts that halves of surrogate pairs may belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HalfIn {
    Text,
    Thought,
    Input,
}

impl Response {
    /// A response in which nothing has happened.
    pub fn new(settings: Settings) -> Self {
        Self {
            state: State::Idle,
            tags: settings.thinking.then(TagScanner::default),
            stops: settings.extras.stop_sequences.clone().map(|stops| Box::new(StopScanner::new(stops))),
            limit: TokenLimit::of(settings.extras.max_tokens),
            cut: None,
            held: settings.extras.structured.is_some().then(String::new),
            settings,
            spans: Spans::default(),
            half: None,
            queue: Queue::default(),
            finished: Finished::default(),
            rest: None,
            index: 0,
            rounds: RoundsSoFar::default(),
            tool_blocks: 0,
            reported: Reported::default(),
            heard: false,
            usage_seen: false,
            stopped: false,
            truncated: false,
            unusual: None,
            limited: false,
            output: Estimator::default(),
            ended: None,
            tally: Tally::default(),
            raw_copy: true,
        }
    }

    /// Decodes and escapes instead of copying (TS23): only to measure the difference.
    pub fn without_raw_copy(mut self) -> Self {
        self.raw_copy = false;
        self
    }

    /// The settings that it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Replaces [`Settings::input_estimate`]; to be called before `message_start` is out.
    pub fn set_input_estimate(&mut self, tokens: u64) {
        self.settings.input_estimate = tokens;
    }

    /// Replaces [`Settings::usage_window`]: the account that answers may have another one (K126).
    pub fn set_usage_window(&mut self, tokens: u64) {
        self.settings.usage_window = tokens;
    }

    /// Replaces [`Extras::max_tokens`]; to be called before an attempt's first event.
    pub fn set_max_tokens(&mut self, tokens: Option<u64>) {
        // What earlier rounds have used up is gone.
        let tokens = tokens.map(|tokens| tokens.saturating_sub(self.rounds.counted / 100).max(1));
        self.settings.extras.max_tokens = tokens;
        self.limit = TokenLimit::of(tokens);
    }

    /// Takes one event (TS6).
    #[inline]
    pub fn event(&mut self, event: Event<'_>, sink: &mut impl Sink) -> Step {
        if let Some(step) = self.swallows() {
            return step;
        }
        match event {
            Event::Content(content) => {
                self.hear(sink);
                self.content(content, sink)
            }
            Event::Telemetry(note) => {
                self.hear(sink);
                self.note(note);
                Step::Continue
            }
            Event::OutputLimit => {
                // In Idle too (TS16).
                self.hear(sink);
                self.truncated = true;
                self.limited = true;
                self.complete(sink)
            }
            Event::Exception(fault) if self.is_complete_answer() => {
                self.tally.ghost = Some(fault);
                self.complete(sink)
            }
            Event::Exception(fault) | Event::Fault(fault) => self.fail(fault, sink),
        }
    }

    /// Upstream's body ended properly on a frame boundary (TS1 `End`).
    pub fn end(&mut self, sink: &mut impl Sink) -> Step {
        match self.swallows() {
            Some(step) => step,
            // An early start (TS22) isn't an event (K41).
            None if !self.heard => self.fail(Fault::network("the stream ended without any event"), sink),
            None => self.complete(sink),
        }
    }

    /// Upstream's body ended in any other way (TS1 `Cut`).
    pub fn cut(&mut self, fault: Fault, sink: &mut impl Sink) -> Step {
        match self.swallows() {
            Some(step) => step,
            None => self.fail(fault, sink),
        }
    }

    /// The step for every further input while inputs have no effect: after the end, and between a fault and its retry
    /// or error.
    #[inline]
    pub fn swallows(&self) -> Option<Step> {
        match self.state {
            State::Done => Some(Step::Done),
            State::Failed { .. } | State::Faulted { .. } | State::Searching => Some(Step::Continue),
            _ => None,
        }
    }

    /// `message_start` ahead of the first event, also between two attempts (TS22).
    pub fn early_start(&mut self, sink: &mut impl Sink) {
        match self.state {
            State::Idle => self.start(sink),
            State::Faulted { started: false } => {
                self.start(sink);
                self.state = State::Faulted { started: true };
            }
            _ => {}
        }
    }

    /// A `ping`, from `message_start` to the end (TS22).
    pub fn ping(&mut self, sink: &mut impl Sink) {
        if self.is_started() && !self.is_ended() {
            sink.event(StreamEvent::Ping);
        }
    }

    /// Prepares for another attempt (TS20). It keeps only whether message_start is out, the earlier rounds, and the
    /// tally.
    ///
    /// # Errors
    /// After the commit, and after the end.
    pub fn restart(&mut self) -> Result<(), Committed> {
        if self.is_committed() || self.is_ended() {
            return Err(Committed);
        }
        self.begin_answer();
        Ok(())
    }

    /// Forgets everything of the present upstream answer.
    fn begin_answer(&mut self) {
        let fresh = Self::new(self.settings.clone());
        let old = std::mem::replace(self, fresh);
        if old.is_started() {
            self.state = State::Open;
        }
        self.index = old.rounds.first_index;
        self.rounds = old.rounds;
        self.tally = old.tally;
        self.raw_copy = old.raw_copy;
    }

    /// The searches that have been called since the last time, in order, with the id of each.
    pub fn take_searches(&mut self) -> &[SearchCall] {
        let from = std::mem::replace(&mut self.rounds.taken, self.rounds.searches.len());
        self.rounds.searches.get(from..).unwrap_or_default()
    }

    /// After [`Step::Searches`]: the outcomes of the round's searches, in order; one that is missing counts as failed.
    /// `may_go_on`: another upstream answer may follow; without it the message pauses where only searches were called
    /// (TS35).
    pub fn searched(&mut self, outcomes: &[SearchOutcome], may_go_on: bool, sink: &mut impl Sink) -> Step {
        if !matches!(self.state, State::Searching) {
            return self.swallows().unwrap_or(Step::Continue);
        }
        for (place, call) in std::mem::take(&mut self.rounds.searches).iter().enumerate() {
            let outcome = outcomes.get(place).unwrap_or(&Err(SearchCode::Unavailable));
            self.rounds.answered += u32::from(outcome.is_ok());
            sink.event(StreamEvent::BlockStart {
                index: self.index,
                block: Block::SearchResults { id: &call.id, outcome },
            });
            self.stop_block(sink);
        }
        self.state = State::Gap;
        match self.stop_reason_now() {
            StopReason::EndTurn if may_go_on => self.begin_round(),
            StopReason::EndTurn => self.stop(StopReason::PauseTurn, sink),
            reason => self.stop(reason, sink),
        }
    }

    /// Another upstream answer of the same message follows (TS31).
    fn begin_round(&mut self) -> Step {
        self.rounds.earlier = self.settled_usage();
        self.rounds.counted += self.limit.counted(self.output.hundredths());
        self.rounds.credits = self.credits();
        (self.rounds.first_index, self.rounds.taken) = (self.index, 0);
        self.begin_answer();
        self.tally.credits = None;
        Step::NextRound
    }

    /// No further attempt: a started stream ends with the error (TS18, TS19). Open text and thoughts are closed before
    /// it, because clients continue from them. A tool stays open, because clients run closed tools (TS42).
    pub fn give_up(&mut self, error: &ApiError, sink: &mut impl Sink) {
        if self.is_ended() {
            return;
        }
        if let State::Tool(open) = &self.state {
            self.index += u32::from(open.sent);
        } else if self.is_committed() {
            self.boundary(sink);
            self.close_block(sink);
        }
        if self.is_started() {
            sink.event(StreamEvent::Error { error, request_id: &self.settings.request_id });
        }
        self.state = State::Failed { started: self.is_started() };
    }

    /// Ends it without an event: the caller says why.
    pub fn drop_answer(&mut self) {
        self.queue.clear();
        self.state = State::Failed { started: self.is_started() };
        self.ended = None;
    }

    /// The server stops (TS18, M64): gives up with an `overloaded_error`.
    pub fn shutdown(&mut self, sink: &mut impl Sink) {
        self.give_up(&ApiError::new(ErrorType::Overloaded, "The server is shutting down."), sink);
    }

    /// `message_start` is out.
    pub fn is_started(&self) -> bool {
        !matches!(self.state, State::Idle | State::Faulted { started: false } | State::Failed { started: false })
    }

    /// Bytes that wait behind an open tool or for the outcome of searches.
    pub fn held(&self) -> usize {
        let text = self.held.as_ref().map_or(0, String::len);
        let rejected = self.rounds.rejected.as_ref().map_or(0, |rejected| rejected.reply.len());
        self.queue.bytes
            + text
            + rejected
            + self.rounds.searches.iter().map(|call| call.input.len() + QUEUED_OVERHEAD).sum::<usize>()
    }

    /// A content block of the present upstream answer was opened (TS34); after the end, any block.
    pub fn is_committed(&self) -> bool {
        match &self.state {
            State::Text | State::Think { .. } | State::Gap | State::Searching => true,
            State::Tool(open) => open.sent || self.index > self.rounds.first_index,
            State::Done | State::Failed { .. } => self.index > 0,
            State::Idle | State::Open | State::Faulted { .. } => false,
        }
    }

    /// No more output follows.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Done | State::Failed { .. })
    }

    /// Why the answer ended; none while it runs and after a failure.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.ended.map(|(reason, _)| reason)
    }

    /// The figures of `message_delta`; before it, those as of now.
    pub fn usage(&self) -> Usage {
        self.ended.map_or_else(|| self.settled_usage(), |(_, usage)| usage)
    }

    /// The body ended the answer, and neither counts nor credits nor a percentage had come: it may have been cut (TU9).
    pub fn is_without_end(&self) -> bool {
        self.ended.is_some() && !self.usage_seen && self.tally.ghost.is_none() && !self.limited && self.cut.is_none()
    }

    /// The answer looks complete: it has content, no tool is open, and usage and credits came behind the last content,
    /// as at the end of every answer seen so far. Usually only the end of the body follows.
    #[inline]
    pub fn is_at_rest(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| {
            rest.used
                && rest.metered
                && rest.output == self.output
                && self.half.is_none()
                && (matches!(self.state, State::Text | State::Think { .. } | State::Gap) || self.holds_text())
        })
    }

    /// The credits of all rounds, as far as upstream said them (TU9).
    pub fn credits(&self) -> Option<f64> {
        let of_all = [self.rounds.credits, self.tally.credits];
        of_all.iter().any(Option::is_some).then(|| of_all.iter().flatten().sum())
    }

    /// Searches that upstream answered.
    pub fn searches(&self) -> u32 {
        self.rounds.answered
    }

    /// Upstream's total token count and its percentage, when the answer had both: together they give the window that
    /// the percentage refers to.
    pub fn measured(&self) -> Option<Measured> {
        self.reported.measured()
    }

    /// Counts for the log and the metrics.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// Inputs.
impl Response {
    /// The first event that isn't a fault sends message_start (TS5).
    #[inline]
    fn hear(&mut self, sink: &mut impl Sink) {
        self.heard = true;
        if matches!(self.state, State::Idle) {
            self.start(sink);
        }
    }

    fn start(&mut self, sink: &mut impl Sink) {
        let Settings { message_id, model, usage_split, input_estimate, .. } = &self.settings;
        sink.event(StreamEvent::MessageStart { id: message_id, model, usage: usage_split.split(*input_estimate) });
        self.state = State::Open;
    }

    /// A content event: takes effect, or waits behind an open tool (TS14).
    #[inline]
    fn content(&mut self, content: Content<'_>, sink: &mut impl Sink) -> Step {
        // The common case: a plain copy.
        if let Content::Text(Text::Literal(literal)) = content
            && matches!(self.state, State::Text)
            && self.copies_text()
        {
            if self.stops.as_ref().is_some_and(|stops| !stops.passes(literal.as_bytes())) {
                return self.scanned(literal, sink);
            }
            let mut output = self.output.clone();
            output.literal(literal.as_bytes());
            if self.limit.is_far(output.hundredths()) {
                self.output = output;
                sink.event(StreamEvent::BlockDelta { index: self.index, delta: Delta::Text(Piece::Literal(literal)) });
                return Step::Continue;
            }
        }
        self.any_content(content, sink)
    }

    /// A piece of the open text in which a stop sequence may begin or go on.
    #[inline(never)]
    fn scanned(&mut self, literal: Literal<'_>, sink: &mut impl Sink) -> Step {
        self.rest = None;
        self.text_delta(Piece::Literal(literal), sink);
        self.go_on(sink)
    }

    fn any_content(&mut self, content: Content<'_>, sink: &mut impl Sink) -> Step {
        // Notes (TS7, TS8).
        if content.is_empty() || (matches!(content, Content::Reasoning(_)) && !self.settings.thinking) {
            return Step::Continue;
        }
        self.rest = None;
        if let State::Tool(open) = &self.state {
            if open.torn {
                self.tally.ignored_events += 1;
                return Step::Continue;
            }
            let waits = match &content {
                Content::Tool(tool) => *tool.id != *open.id && !self.finished.contains(&tool.id),
                Content::Text(_) | Content::Reasoning(_) => true,
            };
            if waits {
                self.queue.push(content.into_owned());
                self.drain(sink);
                return match self.queue.is_full() {
                    true => self.fail(Fault::protocol("too much waits behind an unfinished tool"), sink),
                    false => self.go_on(sink),
                };
            }
        }
        self.apply(content, sink);
        self.drain(sink);
        self.go_on(sink)
    }

    fn note(&mut self, note: Telemetry) {
        match note {
            Telemetry::ContextUsage { percentage } => {
                self.usage_seen = true;
                self.rests(percentage.is_some(), false);
                self.reported.percentage = percentage.or(self.reported.percentage);
            }
            Telemetry::Metadata { counts, percentage, stop } => {
                self.usage_seen = true;
                match stop {
                    Some(UnusualStop::MaxTokens) => self.truncated = true,
                    Some(UnusualStop::Filtered) => self.unusual = Some(StopReason::Refusal),
                    Some(UnusualStop::WindowExceeded) => self.unusual = Some(StopReason::WindowExceeded),
                    None => {}
                }
                self.rests(percentage.is_some() || counts.is_some(), false);
                self.reported.percentage = percentage.or(self.reported.percentage);
                let counts = counts.map(|counts| Usage {
                    input_tokens: counts.uncached_input,
                    cache_creation_input_tokens: counts.cache_write,
                    cache_read_input_tokens: counts.cache_read,
                    output_tokens: counts.output,
                });
                self.reported.counts = counts.or(self.reported.counts);
            }
            Telemetry::Metering { usage } => {
                self.usage_seen = true;
                self.rests(false, true);
                let credits = usage.filter(|usage| usage.is_finite() && *usage >= 0.0);
                self.tally.credits = credits.or(self.tally.credits);
            }
            Telemetry::Known => {}
            Telemetry::Unknown(name) => self.tally.count_unknown(&name),
        }
    }

    /// Whether an exception now comes after a complete answer (TS17). Events queue only while a tool is open.
    fn is_complete_answer(&self) -> bool {
        match &self.state {
            State::Text | State::Think { .. } | State::Gap => self.usage_seen || self.stopped,
            State::Tool(open) => open.torn,
            State::Open => self.usage_seen && self.holds_text(),
            _ => false,
        }
    }

    /// A note came that stands at the end of answers.
    fn rests(&mut self, used: bool, metered: bool) {
        let rest = self.rest.take().filter(|rest| rest.output == self.output);
        let rest = rest.unwrap_or_else(|| Rest { used: false, metered: false, output: self.output.clone() });
        self.rest = Some(Rest { used: rest.used | used, metered: rest.metered | metered, ..rest });
    }

    /// Upstream failed: before the commit the retry policy decides, after it the client gets the error (TS18, TS19).
    fn fail(&mut self, fault: Fault, sink: &mut impl Sink) -> Step {
        if !self.is_committed() {
            self.state = State::Faulted { started: self.is_started() };
            return Step::Fault(fault);
        }
        let prompt = PromptSize { estimate: self.settings.input_estimate, window: self.settings.window };
        self.give_up(&api_error(&fault, prompt), sink);
        Step::Failed(fault)
    }

    /// The answer has ended: closes what is open and says why it stopped (TS15).
    fn complete(&mut self, sink: &mut impl Sink) -> Step {
        self.drain(sink);
        while let State::Tool(open) = &self.state {
            if open.input.is_complete() {
                self.finish_tool(sink);
                self.drain(sink);
            } else {
                self.end_torn(sink);
            }
        }
        self.boundary(sink);
        self.close_block(sink);
        let stop_reason = self.stop_reason_now();
        if let Some(step) = self.judge_held(stop_reason, sink) {
            return step;
        }
        // At a limit the message ends at once: nothing may follow half a tool (TS42).
        if !self.rounds.searches.is_empty() && matches!(stop_reason, StopReason::EndTurn | StopReason::ToolUse) {
            self.state = State::Searching;
            return Step::Searches;
        }
        self.stop(stop_reason, sink)
    }

    /// Why it would stop here.
    fn stop_reason_now(&self) -> StopReason {
        match (self.cut, self.unusual) {
            (Some(cut), _) => cut.stop_reason(),
            (None, Some(unusual)) => unusual,
            (None, None) if self.truncated => StopReason::MaxTokens,
            (None, None) if self.tool_blocks > 0 => StopReason::ToolUse,
            (None, None) => StopReason::EndTurn,
        }
    }

    fn stop(&mut self, stop_reason: StopReason, sink: &mut impl Sink) -> Step {
        let usage = self.settled_usage();
        let searches = self.settings.extras.search.then_some(self.rounds.answered);
        let context_management = self.settings.extras.context_management.as_deref();
        let stop_sequence = self.stop_sequence();
        sink.event(StreamEvent::MessageDelta { stop_reason, stop_sequence, usage, searches, context_management });
        sink.event(StreamEvent::MessageStop);
        self.ended = Some((stop_reason, usage));
        self.state = State::Done;
        Step::Done
    }

    fn settled_usage(&self) -> Usage {
        // Any content counts at least one token, even a redacted thought (M59).
        let least = u64::from(self.is_committed());
        let Settings { usage_window: window, input_estimate, usage_split, .. } = self.settings;
        let output = match self.cut {
            Some(Cut::MaxTokens) => self.limit.shown(self.output.hundredths()),
            _ => self.output.tokens(),
        };
        let output = output.max(least);
        let usage = self.reported.settle(window, input_estimate, output, usage_split);
        self.rounds.earlier.plus(Usage { output_tokens: usage.output_tokens.max(least), ..usage })
    }
}

/// The queue behind an open tool (TS14).
impl Response {
    /// Empties the queue until an unfinished tool is open. All waiting events of a tool are one entry, so the queue
    /// holds none of the open tool's.
    fn drain(&mut self, sink: &mut impl Sink) {
        while !self.queue.is_empty() && self.cut.is_none() {
            match &self.state {
                State::Tool(open) if !open.input.is_complete() => return,
                State::Tool(_) => self.finish_tool(sink),
                _ => match self.queue.pop() {
                    Some(LaterContent::Content(content)) => self.apply(content, sink),
                    Some(LaterContent::Tool { id, name, pieces }) => self.apply_pieces(&id, &name, pieces, sink),
                    None => {}
                },
            }
        }
    }

    fn apply_pieces(&mut self, id: &str, name: &str, pieces: Vec<Part>, sink: &mut impl Sink) {
        for (input, stop) in pieces {
            if matches!(&self.state, State::Tool(open) if open.torn) {
                self.tally.ignored_events += 1;
            } else {
                let (id, name) = (Cow::Borrowed(id), Cow::Borrowed(name));
                self.apply(Content::Tool(Tool { id, name, input, stop }), sink);
            }
        }
    }

    /// Applies one content event. An open tool only ever gets its own.
    fn apply(&mut self, content: Content<'_>, sink: &mut impl Sink) {
        match content {
            _ if self.cut.is_some() => self.tally.ignored_events += 1,
            Content::Text(text) => {
                self.stopped = false;
                self.text(&text, sink);
            }
            Content::Reasoning(reasoning) => {
                self.stopped = false;
                self.reasoning(reasoning, sink);
            }
            Content::Tool(tool) if self.is_finished(&tool.id) => self.tally.ignored_events += 1,
            Content::Tool(tool) => {
                self.stopped = tool.stop;
                self.tool(tool, sink);
            }
        }
    }
}

/// Text and thinking.
impl Response {
    fn is_finished(&self, id: &str) -> bool {
        !matches!(&self.state, State::Tool(open) if *open.id == *id) && self.finished.contains(id)
    }

    /// Whether the raw copy may be used (TS23): tag mode is off, and no half of a surrogate pair waits. (Events queue
    /// only behind a tool.)
    #[inline]
    fn copies_text(&self) -> bool {
        self.raw_copy && self.tags.is_none() && self.half.is_none()
    }

    fn text(&mut self, text: &Text<'_>, sink: &mut impl Sink) {
        self.flush_half_but(HalfIn::Text, sink);
        if let Text::Literal(literal) = *text
            && self.copies_text()
        {
            return self.text_delta(Piece::Literal(literal), sink);
        }
        let mut half = self.half.take().map(|(_, half)| half);
        let decoded = text.decode(&mut half);
        self.half = half.map(|half| (HalfIn::Text, half));
        self.plain_text(&decoded, sink);
    }

    /// Decoded text, through the scanner in tag mode.
    fn plain_text(&mut self, text: &str, sink: &mut impl Sink) {
        match &mut self.tags {
            Some(scanner) => {
                scanner.text(text, &mut self.spans);
                self.pass_spans(sink);
            }
            None if text.is_empty() => {}
            None => self.text_delta(Piece::Plain(text), sink),
        }
    }

    /// Passes on the scanner's output.
    fn pass_spans(&mut self, sink: &mut impl Sink) {
        let mut spans = std::mem::take(&mut self.spans);
        for (span, text) in spans.iter() {
            match span {
                Span::Text => self.text_delta(Piece::Plain(text), sink),
                Span::Thinking => self.thinking_delta(Piece::Plain(text), sink),
                Span::End if matches!(self.state, State::Think { .. }) => self.close_block(sink),
                Span::End => {}
            }
        }
        spans.clear();
        self.spans = spans;
    }

    fn thinking_delta(&mut self, piece: Piece<'_>, sink: &mut impl Sink) {
        if self.settings.drop_thinking_text {
            // The text before it and the text behind it stay two, as they would be around a thought.
            self.close_block(sink);
            return self.count_beside(piece);
        }
        if !matches!(self.state, State::Think { .. }) {
            self.close_block(sink);
            if self.is_cut_between_blocks() {
                return;
            }
            let state = State::Think { signature: Signature::Pending(String::new()), sent: true };
            self.open_block(Block::Thinking, state, sink);
        }
        self.count_beside(piece);
        sink.event(StreamEvent::BlockDelta { index: self.index, delta: Delta::Thinking(piece) });
    }

    /// Text, signature, redacted thought, in this order (TS8).
    fn reasoning(&mut self, reasoning: Reasoning<'_>, sink: &mut impl Sink) {
        if self.tags.is_some() {
            self.boundary(sink);
            self.tags = None;
        }
        if let Some(text) = reasoning.text {
            if matches!(&self.state, State::Think { signature, .. } if !signature.is_empty()) {
                self.close_block(sink);
            }
            self.flush_half_but(HalfIn::Thought, sink);
            self.thought(&text, sink);
        }
        if let Some(piece) = reasoning.signature {
            self.signature(&piece, sink);
        }
        if let Some(data) = reasoning.redacted {
            self.boundary(sink);
            self.close_block(sink);
            self.tally.keep_signature(&data);
            self.open_block(Block::RedactedThinking { data: &data }, State::Gap, sink);
            self.stop_block(sink);
        }
    }

    /// A piece of a signature: of the open thought, or of one without text (TS27). One behind padding begins the next
    /// segment (TS29).
    fn signature(&mut self, piece: &str, sink: &mut impl Sink) {
        match &mut self.state {
            State::Think { signature, .. } if !signature.is_followed_by(piece) => signature.push(piece),
            _ => {
                self.flush_half(sink);
                self.close_block(sink);
                let mut signature = Signature::Pending(String::new());
                signature.push(piece);
                self.state = State::Think { signature, sent: false };
            }
        }
    }

    fn thought(&mut self, text: &Text<'_>, sink: &mut impl Sink) {
        if let Text::Literal(literal) = *text
            && self.raw_copy
            && self.half.is_none()
        {
            return self.thinking_delta(Piece::Literal(literal), sink);
        }
        let mut half = self.half.take().map(|(_, half)| half);
        let decoded = text.decode(&mut half);
        if !decoded.is_empty() {
            self.thinking_delta(Piece::Plain(&decoded), sink);
        }
        // Only now: closing the block before, which may have happened for this thought, would have taken the half for
        // its own.
        self.half = half.map(|half| (HalfIn::Thought, half));
    }

    /// Ends the scanner's run before a tool block, native reasoning, the end or a fault (TS12).
    fn boundary(&mut self, sink: &mut impl Sink) {
        self.flush_half(sink);
        let Some(scanner) = &mut self.tags else { return };
        scanner.boundary(&mut self.spans);
        self.pass_spans(sink);
        // In tag mode every open thought is a tagged one.
        if matches!(self.state, State::Think { .. }) {
            self.close_block(sink);
        }
    }

    /// Drops a waiting surrogate half of another kind of text: its partner can't come any more.
    #[inline]
    fn flush_half_but(&mut self, kind: HalfIn, sink: &mut impl Sink) {
        if self.half.is_some_and(|(of, _)| of != kind) {
            self.flush_half(sink);
        }
    }

    fn flush_half(&mut self, sink: &mut impl Sink) {
        match self.half.take() {
            None => {}
            Some((HalfIn::Text, _)) => self.plain_text(REPLACEMENT, sink),
            Some((HalfIn::Thought, _)) => self.thinking_delta(Piece::Plain(REPLACEMENT), sink),
            Some((HalfIn::Input, _)) => self.input_delta(Piece::Plain(REPLACEMENT), sink),
        }
    }
}

/// Tools (TS13).
impl Response {
    fn tool(&mut self, tool: Tool<'_>, sink: &mut impl Sink) {
        // An open tool is always this one: the events of others wait.
        if !matches!(self.state, State::Tool(_)) {
            self.boundary(sink);
            self.close_block(sink);
            if self.is_cut_between_blocks() {
                return;
            }
            let is_search = self.settings.extras.search && tool.name == WEB_SEARCH;
            self.state = State::Tool(OpenTool {
                search: is_search.then(|| SearchCall {
                    id: search::use_id(&tool.id, &self.settings.message_id).into(),
                    input: String::new(),
                }),
                id: tool.id.into(),
                name: tool.name.into_owned(),
                input: Completeness::default(),
                any_input: false,
                sent: false,
                torn: false,
            });
        }
        match &tool.input {
            Input::Nothing => {}
            Input::Piece(text) => self.input(text, sink),
            Input::Whole(json) => match &self.state {
                State::Tool(OpenTool { any_input: false, .. }) => self.input_delta(Piece::Plain(json), sink),
                _ => self.tally.ignored_events += 1,
            },
        }
        if tool.stop {
            self.finish_tool(sink);
        }
    }

    fn input(&mut self, text: &Text<'_>, sink: &mut impl Sink) {
        if let State::Tool(open) = &mut self.state {
            // Half a surrogate pair that still waits counts too.
            open.any_input = true;
        }
        if let Text::Literal(literal) = *text
            && self.raw_copy
            && self.half.is_none()
        {
            return self.input_delta(Piece::Literal(literal), sink);
        }
        let mut half = self.half.take().map(|(_, half)| half);
        let decoded = text.decode(&mut half);
        self.half = half.map(|half| (HalfIn::Input, half));
        if !decoded.is_empty() {
            self.input_delta(Piece::Plain(&decoded), sink);
        }
    }

    fn input_delta(&mut self, piece: Piece<'_>, sink: &mut impl Sink) {
        let State::Tool(open) = &mut self.state else { return };
        open.any_input = true;
        match piece {
            Piece::Plain(text) => open.input.text(text),
            Piece::Literal(literal) => open.input.literal(literal),
        }
        if !open.sent {
            // A block with only blanks would be `{}` to some clients.
            if open.input.is_blank() {
                return;
            }
            open.sent = true;
            if let Some(text) = self.held.take() {
                put_block(&mut self.index, &text, sink);
            }
            let name = self.settings.tool_names.client_name(&open.name);
            let block = match &open.search {
                Some(call) => Block::SearchUse { id: &call.id },
                None => {
                    self.tool_blocks += 1;
                    Block::ToolUse { id: &open.id, name }
                }
            };
            sink.event(StreamEvent::BlockStart { index: self.index, block });
            self.output.text(name);
            self.output.end_piece();
        }
        if let Some(SearchCall { input, .. }) = &mut open.search
            && input.len() < MAX_SEARCH_INPUT
        {
            match piece {
                Piece::Plain(text) => input.push_str(text),
                Piece::Literal(literal) => input.push_str(&literal.decode()),
            }
        }
        self.count(piece);
        sink.event(StreamEvent::BlockDelta { index: self.index, delta: Delta::InputJson(piece) });
    }

    /// The open tool's `stop` came, or its input is whole and something else begins: `{}` when it has no input.
    fn finish_tool(&mut self, sink: &mut impl Sink) {
        self.flush_half(sink);
        if matches!(&self.state, State::Tool(open) if open.input.is_blank()) {
            self.input_delta(Piece::Plain("{}"), sink);
        }
        match &mut self.state {
            // It stays open, so that a fault can still keep clients from running it.
            State::Tool(open) if !open.input.is_complete() => {
                open.torn = true;
                self.tally.ignored_events += self.queue.clear();
            }
            _ => {
                self.close_block(sink);
                self.is_cut_between_blocks();
            }
        }
    }

    /// The answer ends in the middle of the open tool's input (TS42). The block is closed, so that clients see
    /// `max_tokens` and continue in smaller steps. The queue behind it is dropped, because some clients run a call when
    /// the next block begins. A block that wasn't opened is left out.
    fn end_torn(&mut self, sink: &mut impl Sink) {
        self.flush_half(sink);
        self.truncated = true;
        self.tally.ignored_events += self.queue.clear();
        match &self.state {
            State::Tool(open) if !open.sent => self.nothing_sent(),
            _ => self.close_block(sink),
        }
    }
}

/// Blocks (TS4).
impl Response {
    fn open_block(&mut self, block: Block<'_>, state: State, sink: &mut impl Sink) {
        sink.event(StreamEvent::BlockStart { index: self.index, block });
        self.state = state;
    }

    /// Closes the open block, if there is one, and drops everything held for it.
    fn close_block(&mut self, sink: &mut impl Sink) {
        if self.stops.is_some() {
            self.flush_stops(sink);
        }
        if !matches!(self.state, State::Text | State::Think { .. } | State::Tool(_)) {
            return;
        }
        if self.half.is_some_and(|(kind, _)| kind != HalfIn::Text) {
            self.flush_half(sink);
        }
        match std::mem::replace(&mut self.state, State::Gap) {
            State::Think { signature: Signature::Pending(signature), sent } if !signature.is_empty() => {
                if !sent {
                    sink.event(StreamEvent::BlockStart { index: self.index, block: Block::Thinking });
                }
                sink.event(StreamEvent::BlockDelta { index: self.index, delta: Delta::Signature(&signature) });
                self.tally.keep_signature(&signature);
            }
            // Only a signature, and it is too long.
            State::Think { sent: false, .. } => return self.nothing_sent(),
            State::Tool(open) => {
                self.rounds.searches.extend(open.search.filter(|_| open.input.is_complete()));
                self.finished.add(open.id);
            }
            _ => {}
        }
        self.stop_block(sink);
    }

    /// The block that was begun had no content.
    fn nothing_sent(&mut self) {
        self.state = if self.index > self.rounds.first_index { State::Gap } else { State::Open };
    }

    fn stop_block(&mut self, sink: &mut impl Sink) {
        sink.event(StreamEvent::BlockStop { index: self.index });
        self.index += 1;
        self.output.end_piece();
    }

    /// Counts a delivered piece, once (TU6).
    fn count(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Plain(text) => self.output.text(text),
            Piece::Literal(literal) => self.output.literal(literal.as_bytes()),
        }
    }
}

/// A whole text block.
fn put_block(index: &mut u32, text: &str, sink: &mut impl Sink) {
    if text.is_empty() {
        return;
    }
    let delta = Delta::Text(Piece::Plain(text));
    sink.event(StreamEvent::BlockStart { index: *index, block: Block::Text });
    sink.event(StreamEvent::BlockDelta { index: *index, delta });
    sink.event(StreamEvent::BlockStop { index: *index });
    *index += 1;
}

impl Signature {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Pending(signature) if signature.is_empty())
    }

    /// Whether the piece begins another signature: this one ended in base64 padding, which stands at the very end only
    /// (TS29). Padding may itself come in two pieces.
    fn is_followed_by(&self, piece: &str) -> bool {
        matches!(self, Self::Pending(signature) if signature.ends_with('=')) && !piece.bytes().all(|byte| byte == b'=')
    }

    fn push(&mut self, piece: &str) {
        match self {
            Self::Pending(signature) if signature.len() + piece.len() <= MAX_SIGNATURE => signature.push_str(piece),
            _ => *self = Self::TooLong,
        }
    }
}

/// The notes at the end of an answer.
#[derive(Debug)]
struct Rest {
    /// Counts, or a percentage.
    used: bool,
    /// Credits.
    metered: bool,
    /// The output count at that time: when it has grown, this isn't the end.
    output: Estimator,
}

/// Ids of tools that have ended, the last [`MAX_FINISHED`] of them.
#[derive(Debug, Default)]
struct Finished {
    known: BTreeSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
}

impl Finished {
    fn contains(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    fn add(&mut self, id: Arc<str>) {
        if self.order.len() == MAX_FINISHED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.insert(id.clone());
        self.order.push_back(id);
    }
}

/// Content that waits behind an open tool, in order; the pieces of one tool together, at the place of its first.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(LaterContent, usize)>,
    /// The entry of each waiting tool by its id, counted from the very first entry.
    places: BTreeMap<Arc<str>, usize>,
    /// Entries that have left.
    left: usize,
    bytes: usize,
}

#[derive(Debug)]
enum LaterContent {
    Content(Content<'static>),
    Tool { id: Arc<str>, name: String, pieces: Vec<Part> },
}

/// A piece of a tool: its input, and whether it is the last.
type Part = (Input<'static>, bool);

impl Queue {
    fn push(&mut self, content: Content<'static>) {
        let cost = content.len() + QUEUED_OVERHEAD;
        self.bytes += cost;
        let Content::Tool(Tool { id, name, input, stop }) = content else {
            self.waiting.push_back((LaterContent::Content(content), cost));
            return;
        };
        let place = self.places.get(&*id).and_then(|place| self.waiting.get_mut(place.wrapping_sub(self.left)));
        if let Some((LaterContent::Tool { pieces, .. }, all)) = place {
            pieces.push((input, stop));
            *all += cost;
            return;
        }
        let id: Arc<str> = id.into();
        self.places.insert(id.clone(), self.left + self.waiting.len());
        self.waiting.push_back((LaterContent::Tool { id, name: name.into_owned(), pieces: vec![(input, stop)] }, cost));
    }

    fn pop(&mut self) -> Option<LaterContent> {
        let (first, cost) = self.waiting.pop_front()?;
        self.left += 1;
        self.bytes -= cost;
        if let LaterContent::Tool { id, .. } = &first {
            self.places.remove(id);
        }
        Some(first)
    }

    /// Drops everything, and returns how many events it held.
    fn clear(&mut self) -> u64 {
        let events = |(waiting, _): &(LaterContent, usize)| match waiting {
            LaterContent::Content(_) => 1,
            LaterContent::Tool { pieces, .. } => pieces.len() as u64,
        };
        let count = self.waiting.iter().map(events).sum();
        *self = Self::default();
        count
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn is_full(&self) -> bool {
        self.bytes > MAX_QUEUE
    }
}

impl Tally {
    fn keep_signature(&mut self, signature: &str) {
        if self.signatures.len() < MAX_SIGNATURES {
            self.signatures.push(signature_key(signature));
        }
    }

    fn count_unknown(&mut self, name: &str) {
        let name = name.char_indices().nth(MAX_UNKNOWN_CHARS).map_or(name, |(at, _)| &name[..at]);
        if let Some((_, count)) = self.unknown_events.iter_mut().find(|(known, _)| known == name) {
            *count += 1;
        } else if self.unknown_events.len() < MAX_UNKNOWN {
            self.unknown_events.push((name.to_owned(), 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the events in short form.
    #[derive(Default)]
    struct Log(Vec<String>);

    impl Sink for Log {
        fn event(&mut self, event: StreamEvent<'_>) {
            let piece = |piece: Piece<'_>| match piece {
                Piece::Plain(text) => text.to_owned(),
                Piece::Literal(literal) => literal.decode().into_owned(),
            };
            self.0.push(match event {
                StreamEvent::MessageStart { .. } => "start".into(),
                StreamEvent::BlockStart { index, .. } => format!("+{index}"),
                StreamEvent::BlockDelta { delta: Delta::Signature(text), .. } => format!("signature of {}", text.len()),
                StreamEvent::BlockDelta { delta: Delta::Text(text) | Delta::Thinking(text), .. } => piece(text),
                StreamEvent::BlockDelta { delta: Delta::InputJson(text), .. } => piece(text),
                StreamEvent::BlockStop { index } => format!("-{index}"),
                StreamEvent::MessageDelta { stop_reason, .. } => stop_reason.as_str().into(),
                StreamEvent::MessageStop => "stop".into(),
                StreamEvent::Ping => "ping".into(),
                StreamEvent::Error { error, .. } => format!("!{}", error.kind),
            });
        }
    }

    fn response(thinking: bool) -> Response {
        Response::new(Settings {
            message_id: "msg_1".into(),
            request_id: "req_1".into(),
            model: "claude-sonnet-4-5".into(),
            thinking,
            drop_thinking_text: false,
            tool_names: ToolNames::default(),
            window: 172_500,
            usage_window: 172_500,
            usage_split: UsageSplit::Ratio,
            input_estimate: 10,
            mode: Mode::Stream,
            extras: Extras::default(),
        })
    }

    fn text(text: &str) -> Event<'_> {
        Event::Content(Content::Text(Text::Raw(text.into())))
    }

    fn tool<'a>(id: &'a str, input: &'a str, stop: bool) -> Event<'a> {
        let input = Input::Piece(Text::Raw(input.into()));
        Event::Content(Content::Tool(Tool { id: id.into(), name: "f".into(), input, stop }))
    }

    fn reasoning<'a>(text: Option<&'a str>, signature: Option<&'a str>) -> Event<'a> {
        let text = text.map(|text| Text::Raw(text.into()));
        Event::Content(Content::Reasoning(Reasoning { text, signature: signature.map(Into::into), redacted: None }))
    }

    /// TS14, TS25, TS42: over 1 MiB behind an unfinished tool the answer fails, and the tool isn't closed.
    #[test]
    fn a_queue_over_its_limit_fails_the_answer_ts25_ts42() {
        let mut response = response(false);
        let mut log = Log::default();
        response.event(tool("a", "{", false), &mut log);
        let waiting = "x".repeat(MAX_QUEUE / 4 - QUEUED_OVERHEAD);
        for _ in 0..4 {
            assert_eq!(response.event(text(&waiting), &mut log), Step::Continue);
        }
        assert_eq!(log.0, ["start", "+0", "{"]);
        assert!(matches!(response.event(text("y"), &mut log), Step::Failed(_)));
        assert_eq!(log.0[3..], ["!api_error"]);
        assert_eq!(response.event(tool("a", "}", true), &mut log), Step::Continue);
        assert_eq!(response.end(&mut log), Step::Continue);
        assert!(response.is_committed() && response.stop_reason().is_none());
    }

    /// TS42: a tool of which no input came commits nothing; another account may still answer.
    #[test]
    fn a_held_head_commits_nothing_ts42() {
        for blanks in ["", " \n"] {
            let mut response = response(false);
            let mut log = Log::default();
            response.event(tool("a", blanks, false), &mut log);
            assert!(response.is_started() && !response.is_committed());
            response.ping(&mut log);
            assert!(matches!(response.cut(Fault::network("cut"), &mut log), Step::Fault(_)));
            response.restart().unwrap();
            response.event(tool("b", "{}", true), &mut log);
            response.end(&mut log);
            assert_eq!(log.0, ["start", "ping", "+0", "{}", "-0", "tool_use", "stop"]);
        }
    }

    /// TS25: a signature over 256 KiB isn't sent.
    #[test]
    fn the_signature_is_bounded_ts25() {
        for (length, sent) in [(MAX_SIGNATURE, true), (MAX_SIGNATURE + 1, false)] {
            let mut response = response(true);
            let mut log = Log::default();
            response.event(reasoning(Some("t"), None), &mut log);
            response.event(reasoning(None, Some(&"s".repeat(length - 1))), &mut log);
            response.event(reasoning(None, Some("s")), &mut log);
            response.end(&mut log);
            assert_eq!(log.0.contains(&format!("signature of {length}")), sent);
            assert_eq!(log.0.iter().any(|event| event.starts_with("signature")), sent);
            assert_eq!(log.0.last().unwrap(), "stop");
        }
    }

    /// TS25, TS27: one that is alone and too long leaves nothing behind.
    #[test]
    fn a_signature_alone_that_is_too_long_opens_nothing_ts27() {
        let mut response = response(true);
        let mut log = Log::default();
        response.event(reasoning(None, Some(&"s".repeat(MAX_SIGNATURE + 1))), &mut log);
        response.event(text("x"), &mut log);
        response.end(&mut log);
        assert_eq!(log.0, ["start", "+0", "x", "-0", "end_turn", "stop"]);
    }

    /// TR44: delivered signatures are remembered in order (`Report::signatures`).
    #[test]
    fn the_report_holds_the_keys_of_signatures_tr44() {
        let mut response = response(true);
        let mut log = Log::default();
        response.event(reasoning(Some("t"), Some("abc")), &mut log);
        let redacted = Reasoning { redacted: Some("abc".into()), ..Reasoning::default() };
        response.event(Event::Content(Content::Reasoning(redacted)), &mut log);
        response.event(reasoning(Some("unsigned"), None), &mut log);
        response.end(&mut log);
        // SHA-256 of "abc" begins so.
        assert_eq!(response.tally().signatures, [0xba78_16bf_8f01_cfea; 2]);
        for n in 0..100 {
            response.tally.keep_signature(&n.to_string());
        }
        assert_eq!(response.tally().signatures.len(), MAX_SIGNATURES);
    }

    /// TU9: an answer that may have been cut is recognised.
    #[test]
    fn an_answer_without_any_usage_is_reported_tu9() {
        let ended = |events: &[Event<'_>]| {
            let mut response = response(false);
            let mut log = Log::default();
            for event in events {
                response.event(event.clone(), &mut log);
            }
            response.end(&mut log);
            (response.is_without_end(), response.tally().credits)
        };
        assert_eq!(ended(&[text("x")]), (true, None));
        assert_eq!(ended(&[text("x"), Event::Telemetry(Telemetry::Metering { usage: Some(0.5) })]), (false, Some(0.5)));
        assert_eq!(ended(&[text("x"), Event::Telemetry(Telemetry::Metering { usage: Some(f64::NAN) })]), (false, None));
        assert_eq!(ended(&[text("x"), Event::Telemetry(Telemetry::ContextUsage { percentage: None })]), (false, None));
        assert_eq!(ended(&[text("x"), Event::OutputLimit]), (false, None), "it says itself why it ends");
        assert_eq!(ended(&[tool("a", "{}", true), Event::Exception(Fault::network("x"))]), (false, None));
    }

    /// TS25: the last 1,024 finished tools are remembered.
    #[test]
    fn finished_ids_are_bounded_ts25() {
        let mut response = response(false);
        let mut log = Log::default();
        for id in 0..=MAX_FINISHED {
            response.event(tool(&id.to_string(), "{}", true), &mut log);
        }
        assert_eq!((response.finished.order.len(), response.finished.known.len()), (MAX_FINISHED, MAX_FINISHED));
        let before = log.0.len();
        response.event(tool("1", "{}", true), &mut log);
        assert_eq!((log.0.len(), response.tally().ignored_events), (before, 1));
        response.event(tool("0", "{}", true), &mut log);
        assert!(log.0.len() > before, "the oldest was forgotten");
    }

    /// TS25: at most 64 bytes of blanks and one surrogate half wait; and at most 16 unknown names of 64
    /// characters.
    #[test]
    fn unknown_event_names_are_bounded() {
        let mut response = response(false);
        let mut log = Log::default();
        for number in 0..20 {
            let name = format!("{number:02}{}", "é".repeat(100));
            for _ in 0..2 {
                response.event(Event::Telemetry(Telemetry::Unknown(name.as_str().into())), &mut log);
            }
        }
        let unknown = &response.tally().unknown_events;
        assert_eq!(unknown.len(), MAX_UNKNOWN);
        assert!(unknown.iter().all(|(name, count)| name.chars().count() == MAX_UNKNOWN_CHARS && *count == 2));
    }

    /// TS14, TS25: an event searches neither the finished tools nor the waiting ones one by one.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test measures")]
    fn many_tools_cost_no_more_each_than_few_ts14_ts25() {
        let mut response = response(false);
        let mut log = Log::default();
        let began = std::time::Instant::now();
        for n in 0..40_000 {
            response.event(tool(&n.to_string(), "{}", true), &mut log);
        }
        response.event(tool("open", "{", false), &mut log);
        for n in 0..6_000 {
            response.event(tool(&format!("w{n}"), "{", false), &mut log);
        }
        for n in 0..1_000 {
            response.event(tool(&format!("w{n}"), "}", true), &mut log);
        }
        response.event(tool("open", "}", true), &mut log);
        assert_eq!(response.tool_blocks, 40_000 + 1 + 1_001, "as far as the first one that isn't whole");
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }

    /// TS6, `Done` and `Failed` swallow all: no input changes anything or is reported twice.
    #[test]
    fn the_end_swallows_everything_ts3() {
        let events = [
            text("x"),
            tool("a", "{}", true),
            reasoning(Some("t"), Some("s")),
            Event::Telemetry(Telemetry::Known),
            Event::OutputLimit,
            Event::Exception(Fault::network("x")),
            Event::Fault(Fault::protocol("x")),
        ];
        let endings: [fn(&mut Response, &mut Log); 4] = [
            |response, log| drop(response.end(log)),
            |response, log| drop(response.cut(Fault::network("cut"), log)),
            |response, log| response.shutdown(log),
            |response, log| response.give_up(&ApiError::new(ErrorType::Api, "m"), log),
        ];
        for ending in endings {
            let mut response = response(true);
            let mut log = Log::default();
            response.event(text("x"), &mut log);
            ending(&mut response, &mut log);
            assert!(response.is_ended() && response.is_committed() && response.is_started());
            let (told, usage) = (log.0.clone(), response.usage());
            let answer = response.swallows().unwrap();
            for event in &events {
                assert_eq!(response.event(event.clone(), &mut log), answer);
            }
            assert_eq!(response.end(&mut log), answer);
            assert_eq!(response.cut(Fault::timeout("idle"), &mut log), answer);
            response.shutdown(&mut log);
            response.early_start(&mut log);
            response.ping(&mut log);
            assert_eq!(response.restart(), Err(Committed));
            assert_eq!((log.0, response.usage()), (told, usage));
        }
    }

    /// TS19, TS20: a fault before the commit waits for a restart, and takes nothing in the meantime.
    #[test]
    fn a_fault_waits_for_a_restart_ts19() {
        let mut response = response(false);
        let mut log = Log::default();
        let fault = Fault::protocol("broken");
        assert_eq!(response.event(Event::Fault(fault.clone()), &mut log), Step::Fault(fault));
        assert_eq!(response.event(text("lost"), &mut log), Step::Continue);
        assert_eq!(response.end(&mut log), Step::Continue);
        assert!(!response.is_started() && !response.is_ended() && log.0.is_empty());
        response.restart().unwrap();
        response.event(text("x"), &mut log);
        assert_eq!(log.0, ["start", "+0", "x"]);
        assert_eq!(response.restart(), Err(Committed));
    }

    /// Giving up in Idle writes nothing: the caller answers with a status (TS19).
    #[test]
    fn giving_up_unstarted_writes_nothing_ts19() {
        let mut response = response(false);
        let mut log = Log::default();
        response.give_up(&ApiError::new(ErrorType::Api, "m"), &mut log);
        assert!(response.is_ended() && !response.is_started() && !response.is_committed() && log.0.is_empty());
    }
}
