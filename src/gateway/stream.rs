//! One answer on its way: a sans-IO pipeline. Polling the stream feeds it from the upstream body.
//!
//! A stream has no task and no channel: the caller's body *is* the upstream body with the transcoder inside. One poll
//! reads at most one upstream chunk, and returns all of its output as one `Bytes` (M56).
//!
//! ```text
//!   Opening ──200──▶ Reading ──end of body──▶ Ended
//!      ▲                │ fault before the commit, another attempt is left
//!      └────────────────┘
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::time::{Instant, Sleep};

use super::attempt::{Attempts, NextAttempt, error_of};
use super::budget::{ByteBudget, ByteShare};
use super::job::{Facts, RequestJob};
use super::open::{Opened, open};
use super::open_streams::{Cutter, Permit, StreamHandle};
use super::outside::now;
use super::rounds::Rounds;
use super::shared::Shared;
use super::summary::{RequestOutcome, SummaryCell};
use super::witness::{RequestEnd, Witness};
use crate::error::{Code, Error};
use crate::pool::Lease;
use crate::proto::kiro::fault::Fault;
use crate::proto::pipeline::{Pipeline, Step};
use crate::upstream::{Cut, UpstreamBody};

/// When only the end of an answer's body is missing, we end the answer after this silence.
const REST: Duration = Duration::from_secs(5);
/// Room for `message_start` or the end. The SSE of a chunk itself is about as long as its frames.
const OUT_SPARE: usize = 512;
/// Most bytes that all answers together hold (TS25): folded messages until the client has them, events that wait behind
/// a tool, incomplete frames.
const MAX_HELD: usize = 512 << 20;
/// An answer that holds no more isn't counted: `KIRO_MAX_CONNS` bounds those.
const HELD_STEP: usize = 256 << 10;
/// The `retry-after` of an answer that found no room.
const ROOM_AFTER: Duration = Duration::from_secs(5);

/// What all answers of a gateway share.
pub(super) fn held_budget() -> ByteBudget {
    ByteBudget::new(MAX_HELD)
}

/// The SSE bytes of one answer: each item holds whole events, at least one.
///
/// Never fails: a failure after the first event is one `event: error`, and then the end (M53). Dropping it cancels the
/// upstream request at once, frees the account's in-flight place and changes nothing on the account (K50, K70).
pub struct MessageStream {
    shared: Arc<Shared>,
    pipeline: Pipeline,
    phase: Phase,
    out: BytesMut,
    timer: Pin<Box<Sleep>>,
    began: Instant,
    /// When bytes last went downstream.
    wrote: Instant,
    /// When a chunk last came from upstream.
    heard: Instant,
    /// The inputs of further attempts, the request's bytes among them; dropped at the commit.
    job: Option<Arc<RequestJob>>,
    facts: Facts,
    estimate: u64,
    /// The estimate is known, and with it the counts of `message_start`.
    counted: bool,
    /// What a message of several upstream answers needs; none where one answer is all.
    rounds: Option<Box<Rounds>>,
    /// How many of the pipeline's signatures are remembered with their account.
    made: usize,
    handle: Arc<StreamHandle>,
    handle_key: u64,
    witness: Witness,
    failure: Option<Error>,
    /// The whole message, when it isn't streamed.
    folded: Option<Vec<u8>>,
    /// Its share of [`MAX_HELD`].
    held: ByteShare,
    /// Last, so that closing waits until everything above is gone.
    _permit: Permit,
}

enum Phase {
    /// Selecting an account, sending, waiting for the head of the answer.
    Opening(Pin<Box<dyn Future<Output = Opened> + Send>>),
    /// Reading the body of an event stream.
    Reading(Box<Reading>),
    /// Upstream's answer is over, and its searches aren't (TS31).
    Searching {
        lease: Lease,
        attempts: Box<Attempts>,
    },
    /// The answer is complete; the rest of the body is read so that the connection can be used again (K70).
    Draining(UpstreamBody),
    Ended,
}

struct Reading {
    body: UpstreamBody,
    lease: Lease,
    attempts: Box<Attempts>,
    frames_before: u64,
    heard_event: bool,
}

impl MessageStream {
    /// `began`: when the request arrived. On the heap, since it is handed on from future to future.
    pub(super) fn new(
        shared: Arc<Shared>,
        pipeline: Pipeline,
        job: Arc<RequestJob>,
        attempts: Box<Attempts>,
        rounds: Option<Box<Rounds>>,
        permit: Permit,
        began: Instant,
    ) -> Box<Self> {
        let witness = Witness::begin(&job, began);
        let (handle_key, handle) = shared.streams.add(witness.summary().clone(), began);
        let facts = job.facts;
        let timer = Box::pin(tokio::time::sleep_until(began + Duration::from_secs(3600)));
        let held = shared.answers.share();
        let mut stream = Box::new(Self {
            phase: Phase::Opening(Box::pin(open(job.clone(), attempts, NextAttempt::Select { after: Duration::ZERO }))),
            shared,
            pipeline,
            out: BytesMut::new(),
            timer,
            began,
            wrote: began,
            heard: began,
            job: Some(job),
            facts,
            estimate: 0,
            counted: false,
            rounds,
            made: 0,
            handle,
            handle_key,
            witness,
            held,
            failure: None,
            folded: None,
            _permit: permit,
        });
        stream.arm(began);
        stream
    }

    /// The id of the request, which stands in `request-id` and in error bodies.
    pub fn request_id(&self) -> &str {
        self.witness.summary().request_id()
    }

    /// The facts of the stream; complete when it has ended.
    pub fn summary(&self) -> Arc<SummaryCell> {
        self.witness.summary().clone()
    }

    /// Ends it from outside.
    pub fn cutter(&self) -> Cutter {
        Cutter(self.handle.clone())
    }

    /// Whether it has ended.
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended) && self.out.is_empty()
    }

    /// Begins the work, so that upstream can think while the caller does something else. The answer isn't read before
    /// [`MessageStream::set_input_estimate`].
    pub(super) fn kick(&mut self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|cx| {
            // The next poll finds its result.
            let _ready: Poll<()> = self.advance(cx);
            Poll::Ready(())
        })
    }

    pub(super) fn set_input_estimate(&mut self, tokens: u64) {
        self.estimate = tokens;
        self.counted = true;
        self.pipeline.set_input_estimate(tokens);
    }

    /// Resolves when the status is known: bytes are there, or the stream has failed before any.
    pub(super) async fn status(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.advance(cx)).await;
        match self.failure.take() {
            Some(error) if !self.pipeline.is_started() => Err(error),
            _ => Ok(()),
        }
    }

    /// Other requests of the same message may follow.
    pub(super) fn has_rounds(&self) -> bool {
        self.rounds.is_some()
    }

    /// Whether the answer goes out as events; else it is one message.
    pub(super) fn is_streamed(&self) -> bool {
        self.facts.streaming
    }

    /// Drives a folding pipeline to its end.
    pub(super) async fn message(mut self: Box<Self>) -> Result<FoldedMessage, Error> {
        std::future::poll_fn(|cx| self.advance(cx)).await;
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let whole = self.folded.take();
        let whole = whole.ok_or_else(|| Error::new(Code::Internal, "the answer could not be put together"))?;
        let body = match self.held.is_empty() {
            true => whole.into(),
            false => Bytes::from_owner(HeldMessage { message: whole, _held: self.held.hand_over() }),
        };
        Ok(FoldedMessage { body, summary: self.summary() })
    }

    /// Works until there are bytes to hand out, or the end.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let done = self.work(cx);
        // While an attempt is being opened, its own log measures the wait.
        if matches!(self.phase, Phase::Reading(_) | Phase::Searching { .. }) {
            self.witness.waits();
        }
        done
    }

    fn work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.out.is_empty() || matches!(self.phase, Phase::Ended) {
                return Poll::Ready(());
            }
            // Before upstream is polled: an upstream that always has bytes ready must not outlive the grace time.
            if self.handle.cut.load(Ordering::Acquire) && !matches!(self.phase, Phase::Draining(_)) {
                self.on_shutdown();
                continue;
            }
            let searched = self.rounds.as_mut().is_none_or(|rounds| rounds.poll(cx).is_ready());
            let ready = match &mut self.phase {
                Phase::Opening(opening) => match opening.as_mut().poll(cx) {
                    Poll::Ready(opened) => {
                        self.on_opened(opened);
                        true
                    }
                    Poll::Pending => false,
                },
                Phase::Reading(_) if !self.counted => return Poll::Pending,
                Phase::Reading(reading) => match reading.body.poll_chunk(cx) {
                    Poll::Ready(chunk) => {
                        self.on_chunk(chunk);
                        true
                    }
                    Poll::Pending => false,
                },
                Phase::Searching { .. } => {
                    if searched {
                        self.on_searched();
                    }
                    searched
                }
                Phase::Draining(body) => {
                    // Reads the bytes that have already arrived.
                    if !matches!(body.poll_chunk(cx), Poll::Ready(Some(Ok(_)))) {
                        self.phase = Phase::Ended;
                    }
                    true
                }
                Phase::Ended => true,
            };
            if ready {
                continue;
            }
            // Timers wait too: message_start needs the count (TU8).
            if !self.counted {
                return Poll::Pending;
            }
            self.handle.waker.register(cx.waker());
            if self.handle.cut.load(Ordering::Acquire) {
                continue;
            }
            ready!(self.poll_timer(cx));
        }
    }

    fn on_opened(&mut self, opened: Opened) {
        match opened {
            Opened::Body { body, known, lease, mut attempts, job } => {
                self.pipeline.set_known(known);
                self.witness.attempted(&mut attempts.log);
                self.heard = now();
                let summary = self.witness.summary();
                if job.is_fallback {
                    summary.answers_as(&job.model);
                    self.facts = job.facts;
                    if let Some(rounds) = &mut self.rounds {
                        rounds.continues(job.clone());
                    }
                    self.job = Some(job);
                }
                attempts.changed_pictures().for_each(|path| summary.ignores(&path));
                self.handle.reads(lease.account().id());
                self.pipeline.set_max_tokens(attempts.kept_max_tokens());
                if let Some(window) = attempts.usage_window().filter(|window| *window != summary.usage_window()) {
                    summary.set_usage_window(window);
                    let learnt = self.shared.ends.usage_window(summary.kiro_model(), window);
                    self.pipeline.set_usage_window(learnt);
                }
                self.phase = Phase::Reading(Box::new(Reading {
                    body,
                    lease,
                    attempts,
                    frames_before: self.pipeline.frames(),
                    heard_event: false,
                }));
                self.arm(self.heard);
            }
            Opened::Failed { error, mut attempts } => {
                self.witness.attempted(&mut attempts.log);
                self.fail(error, Some(&mut attempts));
            }
        }
    }

    fn on_chunk(&mut self, chunk: Option<Result<Bytes, Cut>>) {
        self.heard = now();
        self.witness.heard(self.heard);
        let step = match chunk {
            Some(Ok(chunk)) => {
                if let Phase::Reading(reading) = &mut self.phase {
                    reading.attempts.log.chunk(&chunk);
                }
                self.out.reserve(chunk.len() + chunk.len() / 4 + OUT_SPARE);
                self.pipeline.push(chunk, &mut self.out)
            }
            None => self.pipeline.finish(&mut self.out),
            Some(Err(_)) => self.pipeline.abort(Fault::network("the answer was cut"), &mut self.out),
        };
        let fits = self.held.fit(self.pipeline.held(), HELD_STEP);
        if !fits && matches!(step, Step::Continue) {
            let message = if self.facts.streaming {
                "The answers that are under way take all the memory there is for them: try again."
            } else {
                "The answers that are being put together take all the memory there is for them: try again, or ask with \
                 \"stream\": true."
            };
            return self.stop(Error::new(Code::Overloaded, message).with_retry_after(Some(ROOM_AFTER)));
        }
        self.on_step(step);
    }

    fn on_step(&mut self, step: Step) {
        let Phase::Reading(reading) = &mut self.phase else { return };
        if !reading.heard_event && self.pipeline.frames() > reading.frames_before {
            reading.heard_event = true;
            self.witness.event(self.heard);
            // From here on the timer is for pings, no longer for the first event. An event without output doesn't delay
            // the next ping (TS22).
            if !self.out.is_empty() {
                self.wrote = self.heard;
            }
            self.arm(self.heard);
        }
        if self.job.is_some() && self.pipeline.is_committed() {
            self.on_commit();
        }
        if let (Some(rounds), Phase::Reading(reading)) = (&mut self.rounds, &self.phase) {
            for call in self.pipeline.take_searches() {
                rounds.search(call, reading.lease.account().id());
            }
        }
        match step {
            Step::Continue => {
                if self.pipeline.is_at_rest() {
                    self.arm(self.heard);
                }
            }
            Step::Done => {
                if let Some((lease, attempts, body)) = self.answered() {
                    self.on_done(lease, attempts);
                    if !body.is_ended() {
                        self.phase = Phase::Draining(body);
                    }
                }
            }
            Step::Searches => {
                if let Some((lease, attempts, _)) = self.answered() {
                    self.phase = Phase::Searching { lease, attempts };
                }
            }
            Step::NextRound => {
                if let Some((lease, attempts, _)) = self.answered() {
                    self.begin_round(lease, attempts);
                }
            }
            Step::Unfit => {
                let message = "The model's reply was no JSON that is valid against the schema of output_config.format, \
                               twice; ask again, or with a simpler schema.";
                self.stop(Error::new(Code::Upstream, message));
            }
            Step::TooLong => {
                let message = match self.facts.streaming {
                    true => "The answer is longer than 64 MiB, the most that is kept for further searches.",
                    false => {
                        "The answer is longer than 64 MiB, the most that is put together without `stream`: ask with \
                         \"stream\": true."
                    }
                };
                self.stop(Error::new(Code::Upstream, message).lasting());
            }
            Step::Failed(fault) => self.on_failed(fault),
            Step::Fault(fault) => self.on_fault(fault),
        }
    }

    /// The first content of a round came: it belongs to this account, and the inputs of further attempts are dropped.
    fn on_commit(&mut self) {
        let (Phase::Reading(reading), Some(job)) = (&mut self.phase, self.job.take()) else { return };
        let lease = &reading.lease;
        // A message is one turn of its conversation, however many rounds it has.
        if !self.witness.has_content() {
            let turn = match job.facts.pinned {
                true => None,
                false => self.shared.conversations.took_turn(&job.ids.key, lease.account().id(), lease.is_passing()),
            };
            if let Some(turn) = turn {
                self.shared.metrics.count_affinity(turn);
            }
            self.witness.content(self.heard, turn);
        }
        reading.attempts.commit();
    }

    /// Takes apart the answer that has ended well.
    fn answered(&mut self) -> Option<(Lease, Box<Attempts>, UpstreamBody)> {
        let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Ended) else { return None };
        let Reading { body, lease, attempts, .. } = *reading;
        let signatures = &self.pipeline.report().signatures;
        let new = signatures.get(self.made..).unwrap_or_default();
        self.shared.conversations.made(new, lease.account().id(), self.witness.summary().kiro_model());
        self.made = signatures.len();
        Some((lease, attempts, body))
    }

    fn on_done(&mut self, lease: Lease, mut attempts: Box<Attempts>) {
        if !self.facts.streaming {
            self.folded = self.pipeline.message();
        }
        self.shared.report_success(lease, self.facts.record);
        self.conclude(RequestOutcome::Complete, Some(&mut attempts), None);
    }

    /// The round's searches have ended: their results go out, and the message goes on or ends (TS31).
    fn on_searched(&mut self) {
        let Phase::Searching { lease, attempts } = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
        let Some(rounds) = &mut self.rounds else { return };
        self.heard = now();
        self.witness.heard(self.heard);
        let (outcomes, may_go_on) = (rounds.take_outcomes(), rounds.may_go_on());
        let step = self.pipeline.searched(&outcomes, may_go_on, &mut self.out);
        if !self.out.is_empty() {
            self.wrote = self.heard;
        }
        match step {
            Step::NextRound => self.begin_round(lease, attempts),
            _ => self.on_done(lease, attempts),
        }
    }

    /// Sends the next request of the same message (TS33).
    fn begin_round(&mut self, lease: Lease, mut attempts: Box<Attempts>) {
        let account = lease.account().id().clone();
        let next = match &mut self.rounds {
            Some(rounds) => rounds.next(&self.pipeline.next_messages(), &account),
            None => Err(Error::new(Code::Internal, "the message has one round")),
        };
        match next {
            Ok(job) => {
                self.set_input_estimate(job.tokens());
                self.job = Some(job.clone());
                attempts.begin_round(&account);
                self.handle.opens();
                self.phase = Phase::Opening(Box::pin(open(job, attempts, NextAttempt::NextRound { lease })));
                self.arm(self.heard);
            }
            Err(error) => self.fail(error, Some(&mut attempts)),
        }
    }

    /// The answer broke off after the commit.
    fn on_failed(&mut self, fault: Fault) {
        let Some((lease, mut attempts, fault)) = self.broken_off(fault) else { return };
        attempts.log.failed(&lease, &fault);
        let pinned = self.facts.pinned.then(|| lease.account().id().clone());
        self.shared.report_fault(lease, &fault, self.facts.record, attempts.stood(true));
        let summary = self.witness.summary();
        let names = [summary.model(), summary.known_model()];
        let prompt = self.facts.prompt_size(self.estimate);
        let error = error_of(&self.shared, &fault, prompt, pinned.as_deref(), &names);
        self.fail(error, Some(&mut attempts));
    }

    /// The answer broke off before the commit: another attempt may be left.
    fn on_fault(&mut self, fault: Fault) {
        let Some((lease, mut attempts, fault)) = self.broken_off(fault) else { return };
        let Some(job) = self.job.clone() else {
            return self
                .fail(Error::new(Code::Internal, "a fault before the commit came after it"), Some(&mut attempts));
        };
        match attempts.judge(&job, lease, fault) {
            Ok(next) => match self.pipeline.restart() {
                Ok(()) => {
                    self.handle.opens();
                    self.phase = Phase::Opening(Box::pin(open(job, attempts, next)));
                }
                Err(_) => self.fail(Error::new(Code::Internal, "restart after the commit"), Some(&mut attempts)),
            },
            Err(error) => self.fail(error, Some(&mut attempts)),
        }
    }

    /// Takes apart the answer that broke off. The pipeline doesn't know the account: a rejected API key in the stream
    /// becomes
    /// `Forbidden` here, because there is nothing to refresh (K45).
    fn broken_off(&mut self, fault: Fault) -> Option<(Lease, Box<Attempts>, Fault)> {
        let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Ended) else { return None };
        let Reading { lease, attempts, .. } = *reading;
        let fault = if lease.account().is_api_key() { fault.for_api_key_account() } else { fault };
        self.shared.metrics.count_attempt(None, Some(fault.kind));
        Some((lease, attempts, fault))
    }

    /// The end without success: a status while nothing was sent, else the SSE `error` event, unless the pipeline has
    /// written one.
    fn fail(&mut self, error: Error, attempts: Option<&mut Attempts>) {
        self.phase = Phase::Ended;
        self.pipeline.give_up(&error.api_error(), &mut self.out);
        self.conclude(RequestOutcome::Error, attempts, Some(error.clone()));
        self.failure = Some(error);
    }

    /// Ends it by our own decision: the account stays as it is, and the connection is closed with the body.
    fn stop(&mut self, error: Error) {
        let mut attempts = self.take_trail();
        self.fail(error, attempts.as_deref_mut());
    }

    fn on_shutdown(&mut self) {
        self.pipeline.shutdown(&mut self.out);
        self.stop(Error::new(Code::Closed, "the server is shutting down"));
    }

    /// Ends the phase and returns its attempts; none while one is being opened.
    fn take_trail(&mut self) -> Option<Box<Attempts>> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Reading(reading) => Some(reading.attempts),
            Phase::Searching { attempts, .. } => Some(attempts),
            Phase::Opening(_) | Phase::Draining(_) | Phase::Ended => None,
        }
    }

    /// One timer for everything. Chunks only delay deadlines, so it is armed again when it fires and not per chunk.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = now();
            self.on_time(now);
            self.arm(now);
            if !self.out.is_empty() || !matches!(self.phase, Phase::Reading(_)) {
                // A restarted attempt must be polled too.
                return Poll::Ready(());
            }
        }
    }

    fn on_time(&mut self, now: Instant) {
        let config = &self.shared.config;
        let late = match &self.phase {
            Phase::Reading(reading) => {
                let first = config.first_event_timeout;
                let idle = config.idle_timeout;
                if !reading.heard_event && !first.is_zero() && now >= reading.body.sent() + first {
                    Some("no event within KIRO_FIRST_EVENT_TIMEOUT")
                } else if !idle.is_zero() && now >= self.heard + idle {
                    Some("silence beyond KIRO_IDLE_TIMEOUT")
                } else {
                    None
                }
            }
            _ => None,
        };
        if matches!(self.phase, Phase::Reading(_)) && self.pipeline.is_at_rest() && now >= self.heard + self.rest() {
            let step = self.pipeline.finish(&mut self.out);
            return self.on_step(step);
        }
        if let Some(what) = late {
            let step = self.pipeline.abort(Fault::timeout(what), &mut self.out);
            return self.on_step(step);
        }
        if !self.facts.streaming || matches!(self.phase, Phase::Ended | Phase::Draining(_)) {
            return;
        }
        if !self.pipeline.is_started() {
            if !config.early_headers.is_zero() && now >= self.began + config.early_headers {
                self.pipeline.early_start(&mut self.out);
                self.wrote = now;
            }
        } else if !config.ping_interval.is_zero() && now >= self.wrote + config.ping_interval {
            self.pipeline.ping(&mut self.out);
            self.wrote = now;
        }
    }

    /// [`REST`], or less when the idle limit is shorter.
    fn rest(&self) -> Duration {
        let idle = self.shared.config.idle_timeout;
        if idle.is_zero() { REST } else { REST.min(idle) }
    }

    fn arm(&mut self, now: Instant) {
        let config = &self.shared.config;
        let mut next = now + Duration::from_secs(3600);
        let mut until = |limit: Duration, since: Instant| {
            if !limit.is_zero() {
                next = next.min(since + limit);
            }
        };
        if self.facts.streaming {
            if self.pipeline.is_started() {
                until(config.ping_interval, self.wrote);
            } else {
                until(config.early_headers, self.began);
            }
        }
        if let Phase::Reading(reading) = &self.phase {
            until(config.idle_timeout, self.heard);
            if !reading.heard_event {
                until(config.first_event_timeout, reading.body.sent());
            }
            if self.pipeline.is_at_rest() {
                until(self.rest(), self.heard);
            }
        }
        self.timer.as_mut().reset(next.max(now + Duration::from_millis(1)));
    }

    fn conclude(&mut self, outcome: RequestOutcome, attempts: Option<&mut Attempts>, error: Option<Error>) {
        self.shared.streams.remove(self.handle_key);
        (self.job, self.rounds) = (None, None);
        let end = RequestEnd {
            outcome,
            error,
            report: &self.pipeline.report(),
            attempts: attempts.map(Attempts::attempted),
            events: &self.out,
            message: self.folded.as_deref(),
        };
        self.witness.conclude(&self.shared, end);
    }
}

/// A folded answer.
#[derive(Debug, Clone)]
pub struct FoldedMessage {
    /// The message as JSON (M51, M52).
    pub body: Bytes,
    /// The facts of the request.
    pub summary: Arc<SummaryCell>,
}

/// A folded answer that counts until the client has it.
struct HeldMessage {
    message: Vec<u8>,
    _held: ByteShare,
}

impl AsRef<[u8]> for HeldMessage {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Stream for MessageStream {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let this = self.get_mut();
        ready!(this.advance(cx));
        if this.out.is_empty() {
            return Poll::Ready(None);
        }
        if let Phase::Reading(_) = this.phase {
            // After a timer's output `wrote` is later already.
            this.wrote = this.wrote.max(this.heard);
        }
        this.witness.sent(&this.out);
        // The whole buffer goes: between two chunks a stream holds none.
        Poll::Ready(Some(std::mem::take(&mut this.out).freeze()))
    }
}

impl Drop for MessageStream {
    fn drop(&mut self) {
        if !self.witness.has_concluded() {
            let mut attempts = self.take_trail();
            self.conclude(RequestOutcome::Cancelled, attempts.as_deref_mut(), None);
        }
    }
}
