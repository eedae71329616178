//! The record of one request: times, metrics, its span, its summary with the log line, and the bytes for its dump. The
//! flow reports events; this module decides what is recorded of them.
//!
//! It has two parts: an [`AttemptLog`] travels with the attempts, a [`Witness`] stays with the stream. They meet when the
//! request ends.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::dump::{Recording, Tape};
use super::job::RequestJob;
use super::outside::{now, wall_clock};
use super::shared::Shared;
use super::summary::{RequestHead, RequestOutcome, Summary, SummaryCell};
use super::trace::Trace;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::policy::affinity::Turn;
use crate::pool::{AccountId, Lease};
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::request::Parts;
use crate::proto::kiro::route::Shape;
use crate::proto::pipeline::Report;
use crate::secret::Secret;

/// The part that stays with the stream.
pub(super) struct Witness {
    summary: Arc<SummaryCell>,
    /// Its span; gone with the end, which sends it.
    trace: Option<Trace>,
    /// The downstream bytes, for `KIRO_DEBUG_DUMP_DIR`; none without it.
    tape: Option<Box<Tape>>,
    began: Instant,
    first_event: Option<Duration>,
    first_content: Option<Duration>,
    /// Time spent waiting for upstream or the caller.
    waited: Duration,
    /// The beginning of the present wait.
    waiting_since: Option<Instant>,
    /// Bytes that went downstream.
    bytes: u64,
}

/// The part that travels with the attempts.
pub(super) struct AttemptLog {
    /// The account of the last attempt.
    account: Option<AccountId>,
    /// Time spent waiting for upstream that no [`Witness`] has taken over yet.
    waited: Duration,
    /// The result of earlier thinking is counted: once a request.
    reasoning_counted: bool,
    /// For `KIRO_DEBUG_DUMP_DIR`; none without it.
    recording: Option<Box<Recording>>,
}

/// How a request ended.
pub(super) struct RequestEnd<'e> {
    pub(super) outcome: RequestOutcome,
    pub(super) error: Option<Error>,
    pub(super) report: &'e Report,
    /// None when it ended while an attempt was being opened.
    pub(super) attempts: Option<Attempted<'e>>,
    /// Bytes that are ready for the client and not counted yet: events, or a whole message.
    pub(super) events: &'e [u8],
    pub(super) message: Option<&'e [u8]>,
}

/// The result of a request's attempts.
pub(super) struct Attempted<'e> {
    pub(super) log: &'e mut AttemptLog,
    /// Accounts tried.
    pub(super) accounts: u32,
    /// The shape of the last attempt.
    pub(super) shape: Option<Shape>,
}

impl Witness {
    /// `began`: when the request arrived.
    pub(super) fn begin(job: &RequestJob, began: Instant) -> Self {
        let head = RequestHead {
            request_id: job.request_id.clone(),
            client_request_id: job.client_request_id.clone(),
            key: job.key.clone(),
            model: job.client_model.clone(),
            row: job.model.clone(),
            streaming: job.facts.streaming,
            upstream: job.shared.upstream_word(),
        };
        let summary = Arc::new(SummaryCell::new(head, job.ignored.clone()));
        let trace = job.trace.get_or_init(|| Trace::begin(&summary, job.trace_parent.as_deref())).clone();
        if job.facts.streaming {
            job.shared.metrics.streams_open.inc();
        }
        Self {
            summary,
            trace: Some(trace),
            tape: job.shared.dumps.as_ref().map(|dumps| Box::new(dumps.tape())),
            began,
            first_event: None,
            first_content: None,
            waited: Duration::ZERO,
            waiting_since: None,
            bytes: 0,
        }
    }

    pub(super) fn summary(&self) -> &Arc<SummaryCell> {
        &self.summary
    }

    /// The request waits for upstream, or for a caller that is slow to read. Reads no clock when it waits already.
    pub(super) fn waits(&mut self) {
        if self.waiting_since.is_none() {
            self.waiting_since = Some(now());
        }
    }

    /// A chunk has come, or the end.
    pub(super) fn heard(&mut self, at: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += at - since;
        }
    }

    /// The attempts have brought an answer, or failed.
    pub(super) fn attempted(&mut self, log: &mut AttemptLog) {
        self.waited += std::mem::take(&mut log.waited);
    }

    /// An event came; only the first one counts.
    pub(super) fn event(&mut self, at: Instant) {
        self.first_event.get_or_insert(at - self.began);
    }

    /// The first content came. `turn`: the account's relation to the conversation; none without affinity.
    pub(super) fn content(&mut self, at: Instant, turn: Option<Turn>) {
        self.first_content = Some(at - self.began);
        self.summary.turned(turn);
    }

    /// Content has come.
    pub(super) fn has_content(&self) -> bool {
        self.first_content.is_some()
    }

    /// Events go downstream.
    pub(super) fn sent(&mut self, events: &[u8]) {
        self.bytes += events.len() as u64;
        if let Some(tape) = &mut self.tape {
            tape.add(events);
        }
    }

    pub(super) fn has_concluded(&self) -> bool {
        self.summary.ended().is_some()
    }

    /// The request has ended: once only.
    pub(super) fn conclude(&mut self, shared: &Shared, end: RequestEnd<'_>) {
        let RequestEnd { outcome, error, report, attempts, events, message } = end;
        if self.summary.is_streamed() {
            shared.metrics.streams_open.dec();
        }
        let complete = outcome == RequestOutcome::Complete;
        let duration = self.began.elapsed();
        let account = attempts.as_ref().and_then(|attempts| attempts.log.account.as_ref());
        let summary = Summary {
            outcome,
            stop_reason: report.stop_reason.map(|reason| reason.as_str()),
            usage: complete.then_some(report.usage),
            credits: report.credits.filter(|_| complete),
            searches: Some(report.searches).filter(|searches| *searches > 0),
            account_id: account.map(ToString::to_string),
            attempts: attempts.as_ref().map_or(0, |attempts| attempts.accounts),
            bytes: self.bytes + (events.len() + message.map_or(0, <[u8]>::len)) as u64,
            first_event: self.first_event,
            first_content: self.first_content,
            duration,
            overhead: duration.saturating_sub(self.waited),
            error,
        };
        if let Some(trace) = self.trace.take() {
            trace.end(&summary);
        }
        let shape = attempts.as_ref().and_then(|attempts| attempts.shape).unwrap_or(Shape::Q);
        self.summary.conclude(&shared.metrics, &shared.ends, report, shape, summary);
        let recording = attempts.and_then(|attempts| attempts.log.recording.take());
        if let (RequestOutcome::Error, Some(recording), Some(mut tape)) = (outcome, recording, self.tape.take())
            && let Some(dumps) = &shared.dumps
        {
            tape.add(events);
            dumps.write(recording, *tape, self.summary.line(), wall_clock());
        }
    }
}

impl AttemptLog {
    pub(super) fn new(recording: Option<Box<Recording>>) -> Self {
        Self { account: None, waited: Duration::ZERO, reasoning_counted: false, recording }
    }

    /// Another account is tried.
    pub(super) fn tries(&mut self, account: &AccountId) {
        self.account = Some(account.clone());
    }

    /// Measures a wait for upstream: an answer, a token, profiles. Pinned by the caller, so that it lies in memory
    /// once.
    pub(super) async fn wait<T>(&mut self, upstream: Pin<&mut impl Future<Output = T>>) -> T {
        let asked = now();
        let answer = upstream.await;
        self.waited += asked.elapsed();
        answer
    }

    /// The request is sent to an account, until the head of the answer is there.
    pub(super) async fn call<T>(
        &mut self,
        job: &RequestJob,
        account: &str,
        shape: Shape,
        call: Pin<&mut impl Future<Output = Result<T, Fault>>>,
    ) -> Result<T, Fault> {
        let span = job.trace.get().map(|trace| trace.attempt(account));
        let answer = self.wait(call).await;
        if let Some(span) = span {
            span.end(&answer);
        }
        job.shared.metrics.count_attempt(Some(shape), answer.as_ref().err().map(|fault| fault.kind));
        answer
    }

    /// Records the request to the account.
    pub(super) fn sends(&mut self, body: &Parts, token: &Secret) {
        if let Some(recording) = &mut self.recording {
            recording.sent(body, token);
        }
    }

    /// A chunk of the answer came.
    pub(super) fn chunk(&mut self, chunk: &[u8]) {
        if let Some(recording) = &mut self.recording {
            recording.heard(chunk);
        }
    }

    /// The attempt failed.
    pub(super) fn failed(&mut self, lease: &Lease, fault: &Fault) {
        if let Some(recording) = &mut self.recording {
            recording.failed(lease.account().short_id(), fault);
        }
    }

    /// Counts the result of earlier thinking: `sent`, `left_out`.
    pub(super) fn reasoning(&mut self, metrics: &Metrics, result: &'static str) {
        if !std::mem::replace(&mut self.reasoning_counted, true) {
            metrics.count_reasoning(result);
        }
    }
}
