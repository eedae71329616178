//! OpenTelemetry spans (feature `otel`), with the attributes of the GenAI semantic conventions: one span for each
//! request, and inside it one for each call of upstream. No prompt, no answer, no whole account id.

#[cfg(not(feature = "otel"))]
pub(super) use off::Trace;
#[cfg(feature = "otel")]
pub(super) use on::{TARGET, Trace};

#[cfg(feature = "otel")]
mod on {
    use std::collections::HashMap;

    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing::field::Empty;
    use tracing::{Span, info_span};
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use crate::gateway::summary::{Summary, SummaryCell};
    use crate::pool::short;
    use crate::proto::kiro::fault::Fault;

    /// The target of the spans; the exporter takes only these.
    pub(crate) const TARGET: &str = "kiro_messages::gateway::trace";

    /// The conventions leave the name of an unknown provider free.
    const PROVIDER: &str = "aws.kiro";

    /// The span of one request.
    #[derive(Clone)]
    pub(crate) struct Trace(Span);

    /// The span of one call of upstream.
    pub(crate) struct AttemptSpan(Span);

    impl Trace {
        /// `parent`: the client's `traceparent` (W3C), as it came.
        pub(crate) fn begin(cell: &SummaryCell, parent: Option<&str>) -> Self {
            let span = info_span!(
                target: TARGET,
                "chat",
                otel.name = format!("chat {}", cell.known_model()),
                otel.kind = "server",
                otel.status_code = Empty,
                error.r#type = Empty,
                gen_ai.operation.name = "chat",
                gen_ai.provider.name = PROVIDER,
                // The older name of the same attribute, which many viewers still use.
                gen_ai.system = PROVIDER,
                gen_ai.request.model = cell.known_model(),
                gen_ai.response.model = cell.kiro_model(),
                gen_ai.response.finish_reasons = Empty,
                gen_ai.usage.input_tokens = Empty,
                gen_ai.usage.output_tokens = Empty,
                gen_ai.request.stream = cell.is_streamed(),
                http.response.status_code = Empty,
                kiro.request_id = cell.request_id(),
                kiro.account = Empty,
                kiro.attempts = Empty,
                kiro.first_event_ms = Empty,
                kiro.overhead_us = Empty,
            );
            if let Some(parent) = parent {
                let carrier = HashMap::from([("traceparent".to_owned(), parent.to_owned())]);
                // A span without a subscriber has no context; that is no failure.
                let _set = span.set_parent(TraceContextPropagator::new().extract(&carrier));
            }
            Self(span)
        }

        pub(crate) fn attempt(&self, account: &str) -> AttemptSpan {
            AttemptSpan(info_span!(
                target: TARGET,
                parent: &self.0,
                "generateAssistantResponse",
                otel.kind = "client",
                otel.status_code = Empty,
                error.r#type = Empty,
                http.request.method = "POST",
                http.response.status_code = Empty,
                kiro.account = account,
            ))
        }

        /// The request has ended; the span goes out with the last clone.
        pub(crate) fn end(&self, summary: &Summary) {
            let span = &self.0;
            let (input, output) = summary.tokens();
            span.record("http.response.status_code", summary.status());
            span.record("kiro.attempts", summary.attempts);
            span.record("kiro.overhead_us", summary.overhead.as_micros() as u64);
            if let Some(account) = &summary.account_id {
                span.record("kiro.account", short(account));
            }
            if let Some(first) = summary.first_event {
                span.record("kiro.first_event_ms", first.as_millis() as u64);
            }
            if summary.usage.is_some() {
                span.record("gen_ai.usage.input_tokens", input);
                span.record("gen_ai.usage.output_tokens", output);
            }
            if let Some(reason) = summary.stop_reason {
                span.record("gen_ai.response.finish_reasons", reason);
            }
            if let Some(error) = &summary.error {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", error.code().as_str());
            }
        }
    }

    impl AttemptSpan {
        /// The head of an answer came, or a fault.
        pub(crate) fn end<T>(self, answer: &Result<T, Fault>) {
            match answer {
                Ok(_) => {
                    self.0.record("http.response.status_code", 200);
                }
                Err(fault) => {
                    self.0.record("otel.status_code", "ERROR");
                    self.0.record("error.type", fault.kind.as_str());
                    if let Some(status) = fault.status {
                        self.0.record("http.response.status_code", status);
                    }
                }
            }
        }
    }
}

#[cfg(not(feature = "otel"))]
mod off {
    use crate::gateway::summary::{Summary, SummaryCell};
    use crate::proto::kiro::fault::Fault;

    #[derive(Clone)]
    pub(crate) struct Trace;
    pub(crate) struct AttemptSpan;

    impl Trace {
        pub(crate) fn begin(_cell: &SummaryCell, _parent: Option<&str>) -> Self {
            Self
        }

        pub(crate) fn attempt(&self, _account: &str) -> AttemptSpan {
            AttemptSpan
        }

        pub(crate) fn end(&self, _summary: &Summary) {}
    }

    impl AttemptSpan {
        pub(crate) fn end<T>(self, _answer: &Result<T, Fault>) {}
    }
}
