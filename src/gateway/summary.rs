//! What one request was like: for the log line, the metrics and whoever asks for it.

use std::sync::OnceLock;
use std::time::Duration;

use super::Shared;
use super::attempt::Job;
use crate::error::Error;
use crate::metrics::RequestLabels;
use crate::pool::short;
use crate::proto::messages::event::Usage;
use crate::proto::pipeline::Report;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is whole.
    Complete,
    /// It failed, before or after the first byte.
    Error,
    /// The caller went away.
    Cancelled,
}

impl Outcome {
    /// The word in logs, metrics and JavaScript.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is known of one request from its beginning, and what came of it, once it has ended.
#[derive(Debug)]
pub struct SummaryCell {
    request_id: String,
    client_request_id: Option<String>,
    model: String,
    kiro_model: String,
    known_model: String,
    streaming: bool,
    ended: OnceLock<Summary>,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// `end_turn`, `tool_use`, `max_tokens`; none when it failed.
    pub stop_reason: Option<&'static str>,
    /// Token counts as the client was told; none when it failed.
    pub usage: Option<Usage>,
    /// The account of the last attempt.
    pub account_id: Option<String>,
    /// Accounts tried.
    pub attempts: u32,
    /// Bytes handed downstream.
    pub bytes: u64,
    /// From arrival to the first upstream event.
    pub first_event: Option<Duration>,
    /// From arrival to the end.
    pub duration: Duration,
    /// Why it failed.
    pub error: Option<Error>,
}

impl SummaryCell {
    pub(super) fn of(job: &Job) -> Self {
        Self {
            request_id: job.request_id.clone(),
            client_request_id: job.client_request_id.clone(),
            model: job.client_model.clone(),
            kiro_model: job.model.kiro_id.clone(),
            known_model: job.model.names.first().cloned().unwrap_or_default(),
            streaming: job.facts.streaming,
            ended: OnceLock::new(),
        }
    }

    /// The id of the request.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The model as the client named it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The model as upstream names it.
    pub fn kiro_model(&self) -> &str {
        &self.kiro_model
    }

    /// What came of it; none while it runs.
    pub fn ended(&self) -> Option<&Summary> {
        self.ended.get()
    }

    /// Keeps the end, counts it and writes the one log line. Only the first end counts.
    pub(super) fn conclude(&self, shared: &Shared, report: &Report, summary: Summary) {
        if self.ended.set(summary).is_err() {
            return;
        }
        let Some(summary) = self.ended.get() else { return };
        let metrics = &shared.metrics;
        let labels = RequestLabels { outcome: summary.outcome.as_str(), model: self.known_model.clone() };
        metrics.requests.get_or_create(&labels).inc();
        metrics.duration.observe(summary.duration.as_secs_f64());
        if let Some(first) = summary.first_event {
            metrics.first_event.observe(first.as_secs_f64());
        }
        metrics.frames.inc_by(report.frames);
        metrics.upstream_bytes.inc_by(report.bytes_in);
        metrics.downstream_bytes.inc_by(summary.bytes);
        metrics.frame_failures.inc_by(report.crc_failures);
        metrics.unknown_events.inc_by(report.unknown_events.iter().map(|(_, count)| count).sum());

        let status = match (summary.outcome, &summary.error) {
            (Outcome::Complete, _) => 200,
            (Outcome::Cancelled, _) => 499,
            (Outcome::Error, Some(error)) => error.status(),
            (Outcome::Error, None) => 500,
        };
        let usage = summary.usage.unwrap_or_default();
        if let Some(ghost) = &report.ghost {
            tracing::warn!(request_id = self.request_id, fault = ?ghost.kind, "an exception came after the complete answer");
        }
        tracing::info!(
            request_id = self.request_id,
            client_request_id = self.client_request_id,
            account = summary.account_id.as_deref().map(short),
            model = self.model,
            kiro_model = self.kiro_model,
            upstream = shared.upstream_word(),
            stream = self.streaming,
            status,
            code = summary.error.as_ref().map(|e| e.code().as_str()),
            stop_reason = summary.stop_reason,
            attempts = summary.attempts,
            input_tokens = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens,
            output_tokens = usage.output_tokens,
            ttfe_ms = summary.first_event.map(|d| d.as_millis() as u64),
            duration_ms = summary.duration.as_millis() as u64,
            bytes = summary.bytes,
            "request"
        );
    }
}
