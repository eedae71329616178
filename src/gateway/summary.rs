//! How one request went: for the log line, the metrics and the caller.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::dump::Dumps;
use super::ends::AnswerEnds;
use super::outside::{now, wall_clock};
use crate::error::{Code, Error};
use crate::metrics::Metrics;
use crate::policy::affinity::Turn;
use crate::pool::short;
use crate::proto::kiro::route::Shape;
use crate::proto::messages::event::Usage;
use crate::proto::messages::request::Ignored;
use crate::proto::pipeline::Report;
use crate::proto::translate::model::Model;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The answer is whole.
    Complete,
    /// It failed, before or after the first byte.
    Error,
    /// The caller went away.
    Cancelled,
}

impl RequestOutcome {
    /// The word in logs, metrics and JavaScript.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is known of a request before it is sent.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) request_id: String,
    pub(super) client_request_id: Option<String>,
    /// The name of the client's key; none: the single one, or nobody asked for one.
    pub(super) key: Option<Arc<str>>,
    /// The model as the client named it.
    pub(super) model: String,
    pub(super) row: Arc<Model>,
    pub(super) streaming: bool,
    /// `simulator` while answers are simulated.
    pub(super) upstream: Option<&'static str>,
}

/// The facts of one request from its beginning, and its summary once it has ended.
#[derive(Debug)]
pub struct SummaryCell {
    head: RequestHead,
    /// The model that answers in its place (TR36).
    instead: OnceLock<Arc<Model>>,
    /// The window that upstream's percentage refers to, by the table (K123) or by the account's catalogue, in tokens.
    usage_window: AtomicU64,
    /// The account's relation to the conversation, once it answered (R101).
    turn: OnceLock<Turn>,
    /// Features of the request without effect, as far as that is known by now (M80).
    ignored: Mutex<Ignored>,
    ended: OnceLock<Summary>,
}

/// The result of a request.
#[derive(Debug, Clone)]
pub struct Summary {
    /// How it ended.
    pub outcome: RequestOutcome,
    /// `end_turn`, `tool_use`, `max_tokens`; none when it failed.
    pub stop_reason: Option<&'static str>,
    /// Token counts as the client got them; none when it failed.
    pub usage: Option<Usage>,
    /// Credits that Kiro metered; none when the request failed, or when Kiro gave no figure (TU9).
    pub credits: Option<f64>,
    /// Web searches that Kiro answered; none without any (K135).
    pub searches: Option<u32>,
    /// The account of the last attempt.
    pub account_id: Option<String>,
    /// Accounts tried.
    pub attempts: u32,
    /// Bytes handed downstream.
    pub bytes: u64,
    /// From arrival to the first upstream event.
    pub first_event: Option<Duration>,
    /// From arrival to the first content.
    pub first_content: Option<Duration>,
    /// From arrival to the end.
    pub duration: Duration,
    /// The part of [`Summary::duration`] that was spent here, waiting for neither upstream nor the caller.
    pub overhead: Duration,
    /// Why it failed.
    pub error: Option<Error>,
}

impl SummaryCell {
    /// `ignored`: features of the request without effect, before it is sent.
    pub(super) fn new(head: RequestHead, ignored: Ignored) -> Self {
        Self {
            usage_window: head.row.usage_window().into(),
            head,
            instead: OnceLock::new(),
            turn: OnceLock::new(),
            ignored: Mutex::new(ignored),
            ended: OnceLock::new(),
        }
    }

    /// The answering account's relation to the conversation; none without affinity.
    pub(super) fn turned(&self, turn: Option<Turn>) {
        if let Some(turn) = turn {
            self.turn.get_or_init(|| turn);
        }
    }

    fn affinity(&self) -> Option<&'static str> {
        self.turn.get().map(|turn| turn.as_str())
    }

    /// The id of the request.
    pub fn request_id(&self) -> &str {
        &self.head.request_id
    }

    /// The name of the client's key; none without a named one.
    pub fn key(&self) -> Option<&str> {
        self.head.key.as_deref()
    }

    /// The model as the client named it.
    pub fn model(&self) -> &str {
        &self.head.model
    }

    /// The model as upstream names it.
    pub fn kiro_model(&self) -> &str {
        &self.row().kiro_id
    }

    /// The model's first known name.
    pub(super) fn known_model(&self) -> &str {
        self.row().label()
    }

    /// Features of the request without effect (M80); complete once the answer begins.
    pub fn ignored(&self) -> Ignored {
        self.ignored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds one that only the attempts have shown.
    pub fn ignores(&self, path: &str) {
        self.ignored.lock().unwrap_or_else(PoisonError::into_inner).add(path);
    }

    fn row(&self) -> &Model {
        self.instead.get().unwrap_or(&self.head.row)
    }

    /// Upstream has refused the model that was asked for, and this one answers (TR36).
    pub(super) fn answers_as(&self, row: &Arc<Model>) {
        self.instead.get_or_init(|| row.clone());
    }

    /// The window that upstream's percentage refers to, in tokens, before the lessons of earlier answers.
    pub(super) fn usage_window(&self) -> u64 {
        self.usage_window.load(Ordering::Relaxed)
    }

    /// The account that answers has another window than the table.
    pub(super) fn set_usage_window(&self, tokens: u64) {
        self.usage_window.store(tokens, Ordering::Relaxed);
    }

    /// Whether it is streamed.
    pub fn is_streamed(&self) -> bool {
        self.head.streaming
    }

    /// Its result; none while it runs.
    pub fn ended(&self) -> Option<&Summary> {
        self.ended.get()
    }

    /// Keeps the result, counts it and writes the one log line. Only the first end counts. `shape`: of the last
    /// attempt.
    pub(super) fn conclude(
        &self,
        metrics: &Metrics,
        ends: &AnswerEnds,
        report: &Report,
        shape: Shape,
        summary: Summary,
    ) {
        if self.ended.set(summary).is_err() {
            return;
        }
        let Some(summary) = self.ended.get() else { return };
        metrics.count_request(summary.outcome.as_str(), self.known_model(), summary.error.as_ref().map(Error::code));
        metrics.duration.observe(summary.duration);
        if let Some(first) = summary.first_event {
            metrics.first_event.observe(first);
        }
        if let Some(first) = summary.first_content {
            metrics.first_content.observe(first);
        }
        if summary.outcome != RequestOutcome::Cancelled && summary.attempts > 0 {
            metrics.overhead.observe(summary.overhead);
        }
        let (input, output) = summary.tokens();
        if summary.usage.is_some() {
            metrics.count_tokens(self.known_model(), input, output);
        }
        if let Some(credits) = summary.credits {
            metrics.count_credits(self.known_model(), credits);
        }
        if let Some(measured) = report.measured {
            ends.learn(self.kiro_model(), measured, self.usage_window());
        }
        if summary.outcome == RequestOutcome::Complete {
            if report.without_end {
                metrics.count_without_end(shape);
            }
            if ends.ended(shape, report.without_end, now()) {
                tracing::warn!(
                    request_id = self.head.request_id,
                    shape = shape.as_str(),
                    "an answer ended without usage, unlike those before it: it may have been cut"
                );
            }
        }
        metrics.frames.inc_by(report.frames);
        metrics.upstream_bytes.inc_by(report.bytes_in);
        metrics.downstream_bytes.inc_by(summary.bytes);
        metrics.crc_failures.inc_by(report.crc_failures);
        metrics.count_unknown_events(&report.unknown_events);

        let status = summary.status();
        if let Some(ghost) = &report.ghost {
            tracing::warn!(request_id = self.head.request_id, fault = ?ghost.kind, "an exception came after the complete answer");
        }
        // The members that docs/operations.md lists, and no others.
        tracing::info!(
            request_id = self.head.request_id,
            client_request_id = self.head.client_request_id.as_deref().and_then(loggable),
            key = self.key(),
            account = summary.account_id.as_deref().map(short),
            model = loggable(self.model()),
            kiro_model = self.kiro_model(),
            upstream = self.head.upstream,
            stream = self.is_streamed(),
            status,
            code = summary.error.as_ref().map(|e| e.code().as_str()),
            shape = shape.as_str(),
            stop_reason = summary.stop_reason,
            attempts = summary.attempts,
            affinity = self.affinity(),
            input_tokens = input,
            output_tokens = output,
            credits = summary.credits,
            searches = summary.searches,
            ttfe_ms = summary.first_event.map(|d| d.as_millis() as u64),
            duration_ms = summary.duration.as_millis() as u64,
            bytes = summary.bytes,
            "request"
        );
    }
}

impl SummaryCell {
    /// The log line of a request that has ended, for its dump.
    pub(super) fn line(&self) -> Value {
        let mut line = json!({
            "request_id": self.head.request_id,
            "client_request_id": self.head.client_request_id.as_deref().and_then(loggable),
            "key": self.key(),
            "model": loggable(self.model()),
            "kiro_model": self.kiro_model(),
            "upstream": self.head.upstream,
            "stream": self.is_streamed(),
        });
        if let Some(summary) = self.ended() {
            let (input, output) = summary.tokens();
            line["account"] = json!(summary.account_id.as_deref().map(short));
            line["status"] = json!(summary.status());
            line["code"] = json!(summary.error.as_ref().map(|error| error.code().as_str()));
            line["message"] = json!(summary.error.as_ref().map(Error::message));
            line["stop_reason"] = json!(summary.stop_reason);
            line["attempts"] = json!(summary.attempts);
            line["affinity"] = json!(self.affinity());
            line["input_tokens"] = json!(input);
            line["output_tokens"] = json!(output);
            line["credits"] = json!(summary.credits);
            line["searches"] = json!(summary.searches);
            line["ttfe_ms"] = json!(summary.first_event.map(|d| d.as_millis() as u64));
            line["duration_ms"] = json!(summary.duration.as_millis() as u64);
            line["bytes"] = json!(summary.bytes);
        }
        line
    }
}

impl Summary {
    /// The status that the answer had, or would have had when it was too late for one; 499: the caller went away.
    pub fn status(&self) -> u16 {
        match (self.outcome, &self.error) {
            (RequestOutcome::Complete, _) => 200,
            (RequestOutcome::Cancelled, _) => 499,
            (RequestOutcome::Error, Some(error)) => error.status(),
            (RequestOutcome::Error, None) => 500,
        }
    }

    /// Input (cached tokens too) and output, as the client got them; zero when it failed.
    pub(super) fn tokens(&self) -> (u64, u64) {
        let usage = self.usage.unwrap_or_default();
        let input = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens;
        (input, usage.output_tokens)
    }
}

/// A client's own text in a log line: short and printable, or not at all.
fn loggable(text: &str) -> Option<&str> {
    (text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic())).then_some(text)
}

/// Types of tools in a log line: each once, and only a few. They are the client's own text too.
pub(super) fn loggable_kinds(kinds: &[String]) -> String {
    const MOST: usize = 8;
    let mut told: Vec<&str> = Vec::with_capacity(MOST);
    for kind in kinds.iter().map(|kind| loggable(kind).unwrap_or("…")) {
        if told.len() == MOST {
            break;
        }
        if !told.contains(&kind) {
            told.push(kind);
        }
    }
    told.join(",")
}

/// What a log line says of a request that got no stream.
#[derive(Debug, Clone, Copy)]
pub struct LoggedRequest<'a> {
    /// Its id.
    pub request_id: &'a str,
    /// The client's own id, as it came.
    pub client_request_id: Option<&'a str>,
    /// The name of the client's key.
    pub key: Option<&'a str>,
}

/// A request for an answer that was refused before an account was selected.
pub(super) struct RefusedRequest {
    pub(super) error: Error,
    /// The model as the client named it, once that could be read.
    pub(super) client_model: Option<String>,
    /// The model's known name.
    pub(super) known_model: Option<String>,
}

impl<E: Into<Error>> From<E> for RefusedRequest {
    fn from(error: E) -> Self {
        Self { error: error.into(), client_model: None, known_model: None }
    }
}

impl RefusedRequest {
    /// Counts it and writes its log line, and its dump when the request itself is wrong. `upstream`: `simulator` while
    /// answers are simulated.
    pub(super) fn conclude(
        self,
        metrics: &Metrics,
        dumps: Option<&Dumps>,
        upstream: Option<&'static str>,
        body: &Bytes,
        told: LoggedRequest<'_>,
        took: Duration,
    ) -> Error {
        let Self { error, client_model, known_model } = self;
        let LoggedRequest { request_id, client_request_id, key } = told;
        metrics.count_request("refused", known_model.as_deref().unwrap_or("unknown"), Some(error.code()));
        tracing::info!(
            request_id,
            client_request_id = client_request_id.and_then(loggable),
            key,
            model = client_model.as_deref().and_then(loggable),
            upstream,
            status = error.status(),
            code = error.code().as_str(),
            attempts = 0,
            duration_ms = took.as_millis() as u64,
            bytes = 0,
            "request"
        );
        if let Some(dumps) = dumps
            && matches!(error.code(), Code::InvalidRequest | Code::PromptTooLong | Code::NotFound)
        {
            let line = json!({
                "request_id": request_id,
                "client_request_id": client_request_id.and_then(loggable),
                "key": key,
                "model": client_model.as_deref().and_then(loggable),
                "upstream": upstream,
                "status": error.status(),
                "code": error.code().as_str(),
                "message": error.message(),
                "attempts": 0,
                "duration_ms": took.as_millis() as u64,
            });
            dumps.write(dumps.record(body), dumps.tape(), line, wall_clock());
        }
        error
    }
}

/// The log line of a request that a face turned away.
pub(super) fn turned_away(route: &'static str, told: LoggedRequest<'_>, status: u16) {
    let LoggedRequest { request_id, client_request_id, key } = told;
    tracing::info!(
        request_id,
        client_request_id = client_request_id.and_then(loggable),
        key,
        route,
        status,
        "turned away"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_names_few_short_types_m49() {
        let told = |kinds: &[&str]| loggable_kinds(&kinds.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            told(&["web_search_20250305", "bash_20250124", "bash_20250124"]),
            "web_search_20250305,bash_20250124"
        );
        let prompt = "x".repeat(129);
        assert_eq!(told(&[&prompt, "a text of\nthe client's", "a_1"]), "…,a_1");
        let many: Vec<String> = (0..100_000).map(|n| format!("t_{n}")).collect();
        assert_eq!(loggable_kinds(&many), "t_0,t_1,t_2,t_3,t_4,t_5,t_6,t_7");
    }
}
