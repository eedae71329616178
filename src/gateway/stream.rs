//! One answer on its way: a sans-IO pipeline. Polling the stream feeds it from the upstream body.
//!
//! There is no task and no channel a stream: the caller's body *is* the upstream body with the transcoder inside. One
//! poll reads at most one upstream chunk and hands out everything that the chunk gave as one `Bytes` (M56).
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

use super::attempt::{Trail, error_of};
use super::budget::Share;
use super::dump::Tape;
use super::job::{Facts, Job};
use super::open::{Next, Opened, open};
use super::open_streams::{Cutter, Permit, Slot};
use super::summary::{Outcome, Summary, SummaryCell};
use super::trace::Trace;
use super::{Shared, now};
use crate::error::{Code, Error};
use crate::pool::Lease;
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::route::Shape;
use crate::proto::pipeline::{Pipeline, Step};
use crate::upstream::{Body, Cut};

/// When only the end of an answer's body is missing, we end the answer after this silence.
const REST: Duration = Duration::from_secs(5);
/// Beside what a chunk of frames becomes, about as many bytes of SSE, there is room for `message_start` or the end.
const OUT_SPARE: usize = 512;
/// What all answers together may make us hold, in bytes (TS25): messages that are put together until the client has them,
/// what waits behind a tool, frames that aren't whole.
pub(super) const MAX_HELD: usize = 512 << 20;
/// An answer that holds no more is not counted: `KIRO_MAX_CONNS` bounds these.
const HELD_STEP: usize = 256 << 10;
/// When an answer that found no room may be asked for again.
const ROOM_AFTER: Duration = Duration::from_secs(5);

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
    times: Times,
    /// What further attempts need; gone with the commit, and with it the request's bytes.
    job: Option<Arc<Job>>,
    facts: Facts,
    estimate: u64,
    /// The estimate is there, and with it what `message_start` says.
    counted: bool,
    bytes: u64,
    slot: Arc<Slot>,
    slot_key: u64,
    summary: Arc<SummaryCell>,
    /// What went downstream, for `KIRO_DEBUG_DUMP_DIR`; none without it.
    tape: Option<Box<Tape>>,
    /// Its span; gone with the end, which sends it.
    trace: Option<Trace>,
    failure: Option<Error>,
    /// The whole message, when it isn't streamed.
    folded: Option<Vec<u8>>,
    /// Its part of what may be held ([`MAX_HELD`]).
    held: Share,
    /// Last, so that closing waits until everything above is gone.
    _permit: Permit,
}

enum Phase {
    /// Selecting an account, sending, waiting for the head of the answer.
    Opening(Pin<Box<dyn Future<Output = Opened> + Send>>),
    /// Reading the body of an event stream.
    Reading(Box<Reading>),
    /// The answer is complete; the rest of the body is read so that the connection can be used again (K70).
    Draining(Body),
    Ended,
}

struct Reading {
    body: Body,
    lease: Lease,
    trail: Box<Trail>,
    frames_before: u64,
    heard_event: bool,
}

struct Times {
    began: Instant,
    /// When bytes last went downstream.
    wrote: Instant,
    /// When a chunk last came from upstream.
    heard: Instant,
    first_event: Option<Duration>,
    first_content: Option<Duration>,
    /// Time in which somebody else was waited for, upstream or the caller.
    waited: Duration,
    /// Since when, between two chunks.
    waiting_since: Option<Instant>,
}

impl Times {
    fn begin(began: Instant) -> Self {
        Self {
            began,
            wrote: began,
            heard: began,
            first_event: None,
            first_content: None,
            waited: Duration::ZERO,
            waiting_since: None,
        }
    }

    /// A chunk has come, or the end.
    fn hear(&mut self, now: Instant) {
        self.heard = now;
        if let Some(since) = self.waiting_since.take() {
            self.waited += now - since;
        }
    }
}

impl MessageStream {
    /// `began`: when the request arrived. On the heap, since it is handed on from future to future.
    pub(super) fn new(
        shared: Arc<Shared>,
        pipeline: Pipeline,
        job: Arc<Job>,
        trail: Box<Trail>,
        permit: Permit,
        began: Instant,
    ) -> Box<Self> {
        let summary = Arc::new(SummaryCell::of(&job));
        let trace = job.trace.get_or_init(|| Trace::begin(&summary, job.trace_parent.as_deref())).clone();
        let (slot_key, slot) = shared.streams.add(summary.clone(), began);
        if job.facts.streaming {
            shared.metrics.streams_open.inc();
        }
        let facts = job.facts;
        let tape = shared.dumps.as_ref().map(|dumps| Box::new(dumps.tape()));
        let timer = Box::pin(tokio::time::sleep_until(began + Duration::from_secs(3600)));
        let held = shared.answers.share();
        let mut stream = Box::new(Self {
            phase: Phase::Opening(Box::pin(open(job.clone(), trail, Next::Select { after: Duration::ZERO }))),
            shared,
            pipeline,
            out: BytesMut::new(),
            timer,
            times: Times::begin(began),
            job: Some(job),
            facts,
            estimate: 0,
            counted: false,
            bytes: 0,
            slot,
            slot_key,
            summary,
            held,
            tape,
            trace: Some(trace),
            failure: None,
            folded: None,
            _permit: permit,
        });
        stream.arm(began);
        stream
    }

    /// The id of the request, which stands in `request-id` and in error bodies.
    pub fn request_id(&self) -> &str {
        self.summary.request_id()
    }

    /// What is known of the stream, complete when it has ended.
    pub fn summary(&self) -> Arc<SummaryCell> {
        self.summary.clone()
    }

    /// What ends it from outside.
    pub fn cutter(&self) -> Cutter {
        Cutter(self.slot.clone())
    }

    /// Whether nothing more will come.
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended) && self.out.is_empty()
    }

    /// Begins the work, so that upstream can think while the caller does something else. Nothing of the answer is read
    /// before [`MessageStream::set_input_estimate`], however soon it is there.
    pub(super) fn kick(&mut self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|cx| {
            // Whatever comes of it is kept for the next poll.
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

    /// Drives a folding pipeline to its end.
    pub(super) async fn fold(&mut self) -> Result<Bytes, Error> {
        std::future::poll_fn(|cx| self.advance(cx)).await;
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let whole = self.folded.take();
        let whole = whole.ok_or_else(|| Error::new(Code::Internal, "the answer could not be put together"))?;
        if self.held.is_empty() {
            return Ok(whole.into());
        }
        Ok(Bytes::from_owner(Whole { message: whole, _held: self.held.hand_over() }))
    }

    /// Works until there are bytes to hand out, or the end.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let done = self.work(cx);
        // From here to the next chunk upstream is waited for, or the caller, who may be slow to take what it got. What
        // is waited for while an attempt is opened, the attempt knows itself. Polls that find nothing ask no clock.
        if self.times.waiting_since.is_none() && matches!(self.phase, Phase::Reading(_)) {
            self.times.waiting_since = Some(now());
        }
        done
    }

    fn work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.out.is_empty() || matches!(self.phase, Phase::Ended) {
                return Poll::Ready(());
            }
            // Before upstream is asked, so that one that always has bytes ready can't outlive the grace time.
            if self.slot.cut.load(Ordering::Acquire) && !matches!(self.phase, Phase::Draining(_)) {
                self.on_shutdown();
                continue;
            }
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
                Phase::Draining(body) => {
                    // What is already there is read; nobody waits for more.
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
            // Nor does the clock run: message_start says what was counted (TU8), however early it is due.
            if !self.counted {
                return Poll::Pending;
            }
            self.slot.waker.register(cx.waker());
            if self.slot.cut.load(Ordering::Acquire) {
                continue;
            }
            ready!(self.poll_timer(cx));
        }
    }

    fn on_opened(&mut self, opened: Opened) {
        match opened {
            Opened::Body { body, known, lease, mut trail, job } => {
                self.pipeline.set_known(known);
                self.times.waited += trail.take_waited();
                self.times.heard = now();
                if job.is_fallback {
                    self.summary.answers_as(&job.model);
                    self.facts = job.facts;
                    self.job = Some(job);
                }
                self.slot.reads(lease.account().id());
                if let Some(window) = trail.usage_window().filter(|window| *window != self.summary.usage_window()) {
                    self.summary.set_usage_window(window);
                    let learnt = self.shared.ends.usage_window(self.summary.kiro_model(), window);
                    self.pipeline.set_usage_window(learnt);
                }
                self.phase = Phase::Reading(Box::new(Reading {
                    body,
                    lease,
                    trail,
                    frames_before: self.pipeline.frames(),
                    heard_event: false,
                }));
                self.arm(self.times.heard);
            }
            Opened::Failed { error, mut trail } => {
                self.times.waited += trail.take_waited();
                self.fail(error, Some(&mut trail));
            }
        }
    }

    fn on_chunk(&mut self, chunk: Option<Result<Bytes, Cut>>) {
        self.times.hear(now());
        let step = match chunk {
            Some(Ok(chunk)) => {
                if let Phase::Reading(reading) = &mut self.phase
                    && let Some(recording) = &mut reading.trail.recording
                {
                    recording.heard(&chunk);
                }
                self.out.reserve(chunk.len() + chunk.len() / 4 + OUT_SPARE);
                self.pipeline.push(chunk, &mut self.out)
            }
            None => self.pipeline.finish(&mut self.out),
            Some(Err(_)) => self.pipeline.abort(Fault::network("the answer was cut"), &mut self.out),
        };
        let fits = self.held.fit(self.pipeline.held(), HELD_STEP);
        if !fits && matches!(step, Step::Continue) {
            return self.on_no_room();
        }
        self.on_step(step);
    }

    /// Nobody's fault: the account stays as it is, and the connection is closed with the body.
    fn on_no_room(&mut self) {
        let message = if self.facts.streaming {
            "The answers that are under way take all the memory there is for them: try again."
        } else {
            "The answers that are being put together take all the memory there is for them: try again, or ask with \
             \"stream\": true."
        };
        let error = Error::new(Code::Overloaded, message).with_retry_after(Some(ROOM_AFTER));
        let mut trail = self.take_trail();
        self.fail(error, trail.as_deref_mut());
    }

    fn on_step(&mut self, step: Step) {
        let Phase::Reading(reading) = &mut self.phase else { return };
        if !reading.heard_event && self.pipeline.frames() > reading.frames_before {
            reading.heard_event = true;
            if self.times.first_event.is_none() {
                self.times.first_event = Some(self.times.heard - self.times.began);
            }
            // From here on pings count instead of the wait for the first event. An event that gave nothing, with
            // message_start out since long, is no reason to wait longer for the next one (TS22).
            if !self.out.is_empty() {
                self.times.wrote = self.times.heard;
            }
            self.arm(self.times.heard);
        }
        if self.times.first_content.is_none() && self.pipeline.is_committed() {
            if let (Phase::Reading(reading), Some(job)) = (&self.phase, &self.job)
                && !job.facts.pinned
            {
                let account = reading.lease.account().id();
                self.summary.turned(self.shared.took_turn(&job.ids.key, account, reading.lease.is_passing()));
            }
            self.times.first_content = Some(self.times.heard - self.times.began);
        }
        match step {
            Step::Continue => {
                if self.pipeline.is_at_rest() {
                    self.arm(self.times.heard);
                }
                if self.job.is_some() && self.pipeline.is_committed() {
                    self.job = None;
                    if let Phase::Reading(reading) = &mut self.phase {
                        reading.trail.commit();
                    }
                }
            }
            Step::Done => {
                let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
                let Reading { body, lease, mut trail, .. } = *reading;
                if !self.facts.streaming {
                    self.folded = self.pipeline.message();
                }
                let signatures = &self.pipeline.report().signatures;
                self.shared.made(signatures, lease.account().id(), self.summary.kiro_model());
                self.shared.report_success(lease, self.facts.record);
                self.conclude(Outcome::Complete, Some(&mut trail), None);
                if !body.is_ended() {
                    self.phase = Phase::Draining(body);
                }
            }
            // Nobody's fault: the account stays as it is, and the connection is closed with the body.
            Step::TooLong => {
                let mut trail = self.take_trail();
                let message = "The answer is longer than 64 MiB, the most that is put together without `stream`: ask with \
                               \"stream\": true.";
                let error = Error::new(Code::Upstream, message).lasting();
                self.conclude(Outcome::Error, trail.as_deref_mut(), Some(error.clone()));
                self.failure = Some(error);
            }
            Step::Failed(fault) => {
                let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
                let Reading { lease, mut trail, .. } = *reading;
                let fault = of_account(&lease, fault);
                trail.note(&lease, &fault);
                self.shared.metrics.count_attempt(None, Some(fault.kind));
                let pinned = self.facts.pinned.then(|| lease.account().id().clone());
                self.shared.report_fault(lease, &fault, self.facts.record, trail.stood(true));
                let names = [self.summary.model(), self.summary.known_model()];
                let prompt = self.facts.prompt_size(self.estimate);
                let mut error = error_of(&self.shared, &fault, prompt, pinned.as_deref(), &names);
                if let Some(account) = &pinned {
                    error = error.with_account(account);
                }
                self.conclude(Outcome::Error, Some(&mut trail), Some(error.clone()));
                self.failure = Some(error);
            }
            Step::Fault(fault) => {
                let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
                let Reading { lease, mut trail, .. } = *reading;
                let fault = of_account(&lease, fault);
                self.shared.metrics.count_attempt(None, Some(fault.kind));
                let Some(job) = self.job.clone() else {
                    return self
                        .fail(Error::new(Code::Internal, "a fault before the commit came after it"), Some(&mut trail));
                };
                match trail.judge(&job, lease, fault) {
                    Ok(next) => match self.pipeline.restart() {
                        Ok(()) => {
                            self.slot.opens();
                            self.phase = Phase::Opening(Box::pin(open(job, trail, next)));
                        }
                        Err(_) => self.fail(Error::new(Code::Internal, "restart after the commit"), Some(&mut trail)),
                    },
                    Err(error) => self.fail(error, Some(&mut trail)),
                }
            }
        }
    }

    /// The end without success: a status while nothing was sent, else the SSE `error` event.
    fn fail(&mut self, error: Error, trail: Option<&mut Trail>) {
        self.phase = Phase::Ended;
        self.pipeline.give_up(&error.api_error(), &mut self.out);
        self.conclude(Outcome::Error, trail, Some(error.clone()));
        self.failure = Some(error);
    }

    fn on_shutdown(&mut self) {
        // Not the account's fault: nothing is reported on it.
        self.pipeline.shutdown(&mut self.out);
        let mut trail = self.take_trail();
        let error = Error::new(Code::Closed, "the server is shutting down");
        self.conclude(Outcome::Error, trail.as_deref_mut(), Some(error.clone()));
        self.failure = Some(error);
    }

    /// Ends the phase; what is known of the attempts is in its hands, unless one is just being opened.
    fn take_trail(&mut self) -> Option<Box<Trail>> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Reading(reading) => Some(reading.trail),
            Phase::Opening(_) | Phase::Draining(_) | Phase::Ended => None,
        }
    }

    /// One timer for everything. Chunks only move deadlines away, so it is armed when it fires and not per chunk.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = now();
            self.on_time(now);
            self.arm(now);
            if !self.out.is_empty() || !matches!(self.phase, Phase::Reading(_)) {
                // A restarted attempt has to be polled too.
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
                } else if !idle.is_zero() && now >= self.times.heard + idle {
                    Some("silence beyond KIRO_IDLE_TIMEOUT")
                } else {
                    None
                }
            }
            _ => None,
        };
        if matches!(self.phase, Phase::Reading(_))
            && self.pipeline.is_at_rest()
            && now >= self.times.heard + self.rest()
        {
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
            if !config.early_headers.is_zero() && now >= self.times.began + config.early_headers {
                self.pipeline.early_start(&mut self.out);
                self.times.wrote = now;
            }
        } else if !config.ping_interval.is_zero() && now >= self.times.wrote + config.ping_interval {
            self.pipeline.ping(&mut self.out);
            self.times.wrote = now;
        }
    }

    /// No later than silence is a fault.
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
                until(config.ping_interval, self.times.wrote);
            } else {
                until(config.early_headers, self.times.began);
            }
        }
        if let Phase::Reading(reading) = &self.phase {
            until(config.idle_timeout, self.times.heard);
            if !reading.heard_event {
                until(config.first_event_timeout, reading.body.sent());
            }
            if self.pipeline.is_at_rest() {
                until(self.rest(), self.times.heard);
            }
        }
        self.timer.as_mut().reset(next.max(now + Duration::from_millis(1)));
    }

    fn conclude(&mut self, outcome: Outcome, trail: Option<&mut Trail>, error: Option<Error>) {
        if self.facts.streaming {
            self.shared.metrics.streams_open.dec();
        }
        self.shared.streams.remove(self.slot_key);
        self.job = None;
        let report = self.pipeline.report();
        let (account, attempts) = trail.as_deref().map_or((None, 0), Trail::account_and_attempts);
        let shape = trail.as_deref().and_then(Trail::shape).unwrap_or(Shape::Q);
        let complete = outcome == Outcome::Complete;
        let duration = self.times.began.elapsed();
        let summary = Summary {
            outcome,
            stop_reason: report.stop_reason.map(|reason| reason.as_str()),
            usage: complete.then_some(report.usage),
            credits: report.credits.filter(|_| complete),
            account_id: account.map(str::to_owned),
            attempts,
            bytes: self.bytes + self.out.len() as u64 + self.folded.as_ref().map_or(0, |message| message.len() as u64),
            first_event: self.times.first_event,
            first_content: self.times.first_content,
            duration,
            overhead: duration.saturating_sub(self.times.waited),
            error,
        };
        if let Some(trace) = self.trace.take() {
            trace.end(&summary);
        }
        self.summary.conclude(&self.shared, &report, shape, summary);
        let recording = trail.and_then(|trail| trail.recording.take());
        if let (Outcome::Error, Some(recording), Some(mut tape)) = (outcome, recording, self.tape.take())
            && let Some(dumps) = &self.shared.dumps
        {
            tape.add(&self.out);
            dumps.write(recording, *tape, self.summary.line(&self.shared), super::wall_clock());
        }
    }
}

/// A folded answer that counts until the client has it.
struct Whole {
    message: Vec<u8>,
    _held: Share,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

/// The pipeline doesn't know whose stream it reads: an API key that is rejected in the stream is `Forbidden`, since
/// there is nothing to refresh (K45).
fn of_account(lease: &Lease, fault: Fault) -> Fault {
    if lease.account().is_api_key() { fault.for_api_key_account() } else { fault }
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
            // Later, if it is what was due and no chunk's.
            this.times.wrote = this.times.wrote.max(this.times.heard);
        }
        this.bytes += this.out.len() as u64;
        if let Some(tape) = &mut this.tape {
            tape.add(&this.out);
        }
        // The whole buffer goes: between two chunks a stream holds none.
        Poll::Ready(Some(std::mem::take(&mut this.out).freeze()))
    }
}

impl Drop for MessageStream {
    fn drop(&mut self) {
        if self.summary.ended().is_none() {
            let mut trail = self.take_trail();
            self.conclude(Outcome::Cancelled, trail.as_deref_mut(), None);
        }
    }
}
