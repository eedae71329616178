//! Every metric in one table.
//!
//! Names follow Prometheus' conventions, units are base units. A gateway has a registry of its own, so that two gateways in
//! one process share nothing. Counters of a stream add up in the stream and are published at its end: nothing here is
//! touched per delta.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

/// Labels of `kiro_requests`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// `complete`, `error`, `cancelled`, `refused`.
    pub outcome: &'static str,
    /// The known name of the model; `unknown` when the request named none of the table.
    pub model: String,
}

/// Labels of `kiro_upstream_attempts`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct AttemptLabels {
    /// `ok`, or the fault's kind.
    pub outcome: String,
}

/// Labels of `kiro_accounts`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabels {
    /// A state of redis-contract.md section 6.
    pub state: &'static str,
}

/// The metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    /// Requests by outcome and model, counted at their end.
    pub requests: Family<RequestLabels, Count>,
    /// Streams that are open now.
    pub streams_open: Level,
    /// From the request's arrival to the first upstream event.
    pub first_event: Histogram,
    /// From the request's arrival to its end.
    pub duration: Histogram,
    /// Calls of upstream by how they ended.
    pub attempts: Family<AttemptLabels, Count>,
    /// Accounts by state, set when the text is asked for.
    pub accounts: Family<StateLabels, Level>,
    /// 1 while the store can be reached.
    pub store_connected: Level,
    /// Event-stream frames decoded.
    pub frames: Count,
    /// Bytes read from upstream.
    pub upstream_bytes: Count,
    /// Bytes of SSE and JSON handed downstream.
    pub downstream_bytes: Count,
    /// Streams that ended in a frame that could not be decoded.
    pub frame_failures: Count,
    /// Events of a type that we don't know.
    pub unknown_events: Count,
}

impl Metrics {
    /// A fresh registry with every metric in it.
    pub fn new() -> Self {
        let seconds = || {
            Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0])
        };
        let metrics = Self {
            registry: Registry::with_prefix("kiro"),
            requests: Family::default(),
            streams_open: Level::default(),
            first_event: seconds(),
            duration: seconds(),
            attempts: Family::default(),
            accounts: Family::default(),
            store_connected: Level::default(),
            frames: Count::default(),
            upstream_bytes: Count::default(),
            downstream_bytes: Count::default(),
            frame_failures: Count::default(),
            unknown_events: Count::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("requests", "Requests by outcome and model", self.requests.clone());
        r.register("streams_open", "Streams open now", self.streams_open.clone());
        r.register_with_unit("first_event", "Arrival to first upstream event", Unit::Seconds, self.first_event.clone());
        r.register_with_unit("request_duration", "Arrival to end", Unit::Seconds, self.duration.clone());
        r.register("upstream_attempts", "Calls of upstream by how they ended", self.attempts.clone());
        r.register("accounts", "Accounts by state", self.accounts.clone());
        r.register("store_connected", "1 while the store can be reached", self.store_connected.clone());
        r.register("frames", "Event-stream frames decoded", self.frames.clone());
        r.register_with_unit("upstream_read", "Bytes read from upstream", Unit::Bytes, self.upstream_bytes.clone());
        r.register_with_unit(
            "downstream_written",
            "Bytes handed downstream",
            Unit::Bytes,
            self.downstream_bytes.clone(),
        );
        r.register("frame_failures", "Streams that ended in a broken frame", self.frame_failures.clone());
        r.register("unknown_events", "Events of an unknown type", self.unknown_events.clone());
        self
    }

    /// The registry as Prometheus text.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(4096);
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a String can't fail; if the library thinks otherwise, say so where it is read.
            Err(error) => format!("# {error}\n"),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_holds_every_metric() {
        let metrics = Metrics::new();
        metrics.requests.get_or_create(&RequestLabels { outcome: "complete", model: "m".into() }).inc();
        let text = metrics.text();
        assert!(text.contains("kiro_requests_total{outcome=\"complete\",model=\"m\"} 1"), "{text}");
        for name in
            ["kiro_streams_open", "kiro_first_event_seconds", "kiro_frames_total", "kiro_upstream_read_bytes_total"]
        {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
}
