//! Every metric in one table ([`METRICS`]).
//!
//! Names follow Prometheus' conventions, units are base units. A gateway has a registry of its own, so that two gateways in
//! one process share nothing. Counters of a stream add up in the stream and are published at its end: nothing here is
//! touched per delta. A scrape reads the counters of pool, store and credentials ([`Scrape`]).

mod histogram;
mod process;
mod table;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Metric, Registry, Unit};

pub use histogram::{Histogram, Observed};
pub(crate) use process::memory_allowed;
pub use table::{Description, Label, METRICS, MetricKind};

use crate::error::Code;
use crate::policy::affinity::Turn;
use crate::policy::learned::Credits;
use crate::proto::kiro::fault::FaultKind;
use crate::proto::kiro::route::Shape;
use crate::proto::record::client_key::OTHER;

type Count = Counter<u64, AtomicU64>;
type LevelGauge = Gauge<i64, AtomicI64>;

/// Buckets in seconds for durations that a person waits for.
const WAITING: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Buckets in seconds for durations of a machine's steps.
const WORKING: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Names of unknown events that get a series of their own (contract/kiro.md, "Events").
const UNKNOWN_NAMES: usize = 16;
/// Models that get a series of their own for refused fields.
const REFUSED_MODELS: usize = 64;
/// Client keys that get a series of their own.
const CLIENT_KEYS: usize = 100;

/// Log lines that the process's writer dropped. A process has one log, so all its gateways show the same number.
pub static LOG_LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// How a request ended, for `kiro_requests_total`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// `complete`, `error`, `cancelled`, `refused`.
    pub outcome: &'static str,
    /// The known name of the model; `unknown` when the request named none of the table.
    pub model: String,
}

/// Labels of `kiro_tokens_total`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TokenLabels {
    /// As in [`RequestLabels`].
    pub model: String,
    /// `input`, `output`.
    pub direction: &'static str,
}

/// Labels of `kiro_http_refused_total`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RefusedLabels {
    /// The kind of route, never the path.
    pub route: &'static str,
    /// The HTTP status.
    pub status: u16,
}

type OneLabel = Vec<(&'static str, String)>;
/// Labels whose values are all words of ours.
type Words<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Count>,
    request_errors: Family<Words<1>, Count>,
    refused: Family<RefusedLabels, Count>,
    tokens: Family<TokenLabels, Count>,
    credits: Family<OneLabel, Counter<f64, AtomicU64>>,
    without_end: Family<Words<1>, Count>,
    attempts: Family<Words<1>, Count>,
    shapes: Family<Words<2>, Count>,
    fields_refused: Family<OneLabel, Count>,
    // Bound: models with a series of their own for refused fields | REFUSED_MODELS | further ones are counted as `other`
    refused_models: Mutex<Vec<String>>,
    client_keys: Family<OneLabel, Count>,
    client_keys_refused: Family<OneLabel, Count>,
    // Bound: named client keys with series of their own | CLIENT_KEYS | further ones are counted as `other`
    client_key_names: Mutex<HashSet<String>>,
    affinity: Family<Words<1>, Count>,
    reasoning: Family<Words<1>, Count>,
    searches: Family<Words<1>, Count>,
    notices: Family<Words<1>, Count>,
    usage_asks: Family<Words<1>, Count>,
    search_seconds: Histogram,
    unknown_events: Family<OneLabel, Count>,
    // Bound: names of unknown events with a series of their own | UNKNOWN_NAMES | further ones are counted as `other`
    unknown_names: Mutex<Vec<String>>,
    /// Answers by outcome, for the status.
    outcomes: [(&'static str, AtomicU64); 4],
    /// Running streams.
    pub streams_open: LevelGauge,
    /// From a request's arrival to its first upstream event.
    pub first_event: Histogram,
    /// From a request's arrival to its first content.
    pub first_content: Histogram,
    /// From a request's arrival to the end of its answer.
    pub duration: Histogram,
    /// The gateway's own share of a request's time.
    pub overhead: Histogram,
    /// Event-stream frames decoded.
    pub frames: Count,
    /// Bytes read from upstream.
    pub upstream_bytes: Count,
    /// Bytes of SSE and JSON handed downstream.
    pub downstream_bytes: Count,
    /// Frames whose checksum was wrong.
    pub crc_failures: Count,
}

/// Counters of the other modules at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Running requests for an answer.
    pub in_flight: usize,
    /// Requests that wait for an account.
    pub waiting: usize,
    /// Requests that had to wait.
    pub waits: u64,
    /// Bytes that request bodies take.
    pub request_memory: usize,
    /// Requests that found no room for their bodies, by what became of them.
    pub request_memory_waits: [(&'static str, u64); 2],
    /// Connections opened towards upstream for a request each.
    pub connects: u64,
    /// Those that were opened ahead of need, and those that couldn't be.
    pub connects_ahead: (u64, u64),
    /// Idle connections towards upstream.
    pub idle_connections: usize,
    /// Accounts by state.
    pub states: Vec<(&'static str, usize)>,
    /// Requests in flight by account, by the first 8 characters of the id.
    pub account_in_flight: Vec<(String, u32)>,
    /// Known credits, by the same name.
    pub credits: Vec<(String, Credits)>,
    /// Accounts in service whose credits aren't known.
    pub without_credits: usize,
    /// Whether the brake on suspicion is on (K92).
    pub braked: bool,
    /// Token refreshes by outcome.
    pub refreshes: Vec<(&'static str, u64)>,
    /// Snapshots read, and reads that failed.
    pub snapshots: (u64, u64),
    /// Durations of the store's commands.
    pub redis: Option<Observed>,
    /// Commands that failed.
    pub redis_errors: u64,
    /// Whether the store can be read.
    pub redis_connected: bool,
    /// Account records and tokens that wait to be written.
    pub queued: (usize, usize),
    /// Tasks alive in the runtime.
    pub tasks: Option<usize>,
    /// Whether answers are simulated.
    pub simulated: bool,
    /// `KIRO_CLIENT_VERSION`.
    pub client_version: String,
    /// Hosts of upstream, with the gauge of their circuits.
    pub hosts: Vec<(String, i64)>,
    /// Refusals of it, by call and host.
    pub version_refusals: Vec<(&'static str, String, u64)>,
}

impl Metrics {
    /// A fresh registry with every metric in it.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            requests: add(&mut registry, &table::REQUESTS, Family::default()),
            request_errors: add(&mut registry, &table::REQUEST_ERRORS, Family::default()),
            refused: add(&mut registry, &table::REFUSED, Family::default()),
            tokens: add(&mut registry, &table::TOKENS, Family::default()),
            credits: add(&mut registry, &table::CREDITS, Family::default()),
            without_end: add(&mut registry, &table::WITHOUT_END, Family::default()),
            streams_open: add(&mut registry, &table::STREAMS_OPEN, LevelGauge::default()),
            first_event: add(&mut registry, &table::FIRST_EVENT, Histogram::new(WAITING)),
            first_content: add(&mut registry, &table::FIRST_CONTENT, Histogram::new(WAITING)),
            duration: add(&mut registry, &table::DURATION, Histogram::new(WAITING)),
            overhead: add(&mut registry, &table::OVERHEAD, Histogram::new(WORKING)),
            attempts: add(&mut registry, &table::ATTEMPTS, Family::default()),
            shapes: add(&mut registry, &table::SHAPES, Family::default()),
            fields_refused: add(&mut registry, &table::FIELDS_REFUSED, Family::default()),
            refused_models: Mutex::default(),
            client_keys: add(&mut registry, &table::CLIENT_KEYS, Family::default()),
            client_keys_refused: add(&mut registry, &table::CLIENT_KEYS_REFUSED, Family::default()),
            client_key_names: Mutex::default(),
            affinity: add(&mut registry, &table::AFFINITY, Family::default()),
            reasoning: add(&mut registry, &table::REASONING, Family::default()),
            searches: add(&mut registry, &table::SEARCHES, Family::default()),
            notices: add(&mut registry, &table::NOTICES, Family::default()),
            usage_asks: add(&mut registry, &table::USAGE_ASKS, Family::default()),
            search_seconds: add(&mut registry, &table::SEARCH_SECONDS, Histogram::new(WAITING)),
            frames: add(&mut registry, &table::FRAMES, Count::default()),
            upstream_bytes: add(&mut registry, &table::UPSTREAM_READ, Count::default()),
            downstream_bytes: add(&mut registry, &table::DOWNSTREAM_WRITTEN, Count::default()),
            crc_failures: add(&mut registry, &table::CRC_FAILURES, Count::default()),
            unknown_events: add(&mut registry, &table::UNKNOWN_EVENTS, Family::default()),
            unknown_names: Mutex::default(),
            outcomes: ["complete", "error", "cancelled", "refused"].map(|word| (word, AtomicU64::new(0))),
            registry,
        };
        // Series of alerts must exist before the event: a series that begins at 1 has no rate.
        for code in Code::ALL {
            drop(metrics.request_errors.get_or_create(&[("code", code.as_str())]));
        }
        for shape in Shape::ALL {
            drop(metrics.without_end.get_or_create(&[("shape", shape.as_str())]));
        }
        for turn in [Turn::Home, Turn::Older, Turn::Moved, Turn::New] {
            drop(metrics.affinity.get_or_create(&[("result", turn.as_str())]));
        }
        for result in ["sent", "left_out", "refused"] {
            drop(metrics.reasoning.get_or_create(&[("result", result)]));
        }
        for outcome in ["ok", "unavailable", "too_many_requests", "invalid_tool_input"] {
            drop(metrics.searches.get_or_create(&[("outcome", outcome)]));
        }
        for outcome in ["sent", "failed"] {
            drop(metrics.notices.get_or_create(&[("outcome", outcome)]));
        }
        for outcome in ["ok", "failed"] {
            drop(metrics.usage_asks.get_or_create(&[("outcome", outcome)]));
        }
        drop(metrics.attempts.get_or_create(&[("outcome", "ok")]));
        let refused = vec![("model", "other".to_owned()), ("member", "all".to_owned())];
        drop(metrics.fields_refused.get_or_create(&refused));
        let other = ("key", OTHER.to_owned());
        drop(metrics.client_keys.get_or_create(&vec![other.clone()]));
        for limit in ["max_inflight", "rpm"] {
            drop(metrics.client_keys_refused.get_or_create(&vec![other.clone(), ("limit", limit.to_owned())]));
        }
        for kind in FaultKind::ALL {
            drop(metrics.attempts.get_or_create(&[("outcome", kind.as_str())]));
        }
        metrics
    }

    /// Counts a request for an answer at its end.
    pub fn count_request(&self, outcome: &'static str, model: &str, error: Option<Code>) {
        self.requests.get_or_create(&RequestLabels { outcome, model: model.to_owned() }).inc();
        if let Some(code) = error {
            self.request_errors.get_or_create(&[("code", code.as_str())]).inc();
        }
        if let Some((_, count)) = self.outcomes.iter().find(|(word, _)| *word == outcome) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the tokens of a complete answer.
    pub fn count_tokens(&self, model: &str, input: u64, output: u64) {
        for (direction, tokens) in [("input", input), ("output", output)] {
            self.tokens.get_or_create(&TokenLabels { model: model.to_owned(), direction }).inc_by(tokens);
        }
    }

    /// Counts the credits of a complete answer (TU9).
    pub fn count_credits(&self, model: &str, credits: f64) {
        self.credits.get_or_create(&vec![("model", model.to_owned())]).inc_by(credits);
    }

    /// Counts a complete answer without any usage at its end (TU9).
    pub fn count_without_end(&self, shape: Shape) {
        self.without_end.get_or_create(&[("shape", shape.as_str())]).inc();
    }

    /// Counts an HTTP request that was turned away before the gateway saw it.
    pub fn count_refused(&self, route: &'static str, status: u16) {
        self.refused.get_or_create(&RefusedLabels { route, status }).inc();
    }

    /// Counts a call of upstream; none: an event stream began.
    pub fn count_attempt(&self, shape: Option<Shape>, fault: Option<FaultKind>) {
        let outcome = fault.map_or("ok", FaultKind::as_str);
        self.attempts.get_or_create(&[("outcome", outcome)]).inc();
        if let Some(shape) = shape {
            self.shapes.get_or_create(&[("shape", shape.as_str()), ("outcome", outcome)]).inc();
        }
    }

    /// Counts a member of `additionalModelRequestFields` that upstream refused (K129).
    pub fn count_fields_refused(&self, model: &str, member: &str) {
        let mut models = self.refused_models.lock().unwrap_or_else(PoisonError::into_inner);
        let known = models.iter().any(|known| known == model);
        if !known && models.len() < REFUSED_MODELS {
            models.push(model.to_owned());
        }
        let model = if known || models.last().is_some_and(|last| last == model) { model } else { "other" };
        self.fields_refused.get_or_create(&vec![("model", model.to_owned()), ("member", member.to_owned())]).inc();
    }

    /// Counts a request for an answer under a named client key (M88); `refused`: the limit that is reached.
    pub fn count_client_key(&self, name: &str, refused: Option<&'static str>) {
        let mut names = self.client_key_names.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shown = names.contains(name) || (names.len() < CLIENT_KEYS && names.insert(name.to_owned()));
        drop(names);
        let key = ("key", if is_shown { name } else { OTHER }.to_owned());
        match refused {
            None => self.client_keys.get_or_create(&vec![key]).inc(),
            Some(limit) => self.client_keys_refused.get_or_create(&vec![key, ("limit", limit.to_owned())]).inc(),
        };
    }

    /// Counts an answer by its account's relation to the conversation (R101).
    pub fn count_affinity(&self, turn: Turn) {
        self.affinity.get_or_create(&[("result", turn.as_str())]).inc();
    }

    /// Counts a web search: `ok`, or its error code (K135).
    pub fn count_search(&self, outcome: &'static str, took: std::time::Duration) {
        self.searches.get_or_create(&[("outcome", outcome)]).inc();
        self.search_seconds.observe(took);
    }

    /// Counts a notice to `KIRO_WEBHOOK_URL`.
    pub fn count_notice(&self, is_sent: bool) {
        self.notices.get_or_create(&[("outcome", if is_sent { "sent" } else { "failed" })]).inc();
    }

    /// Counts a question about an account's usage (K146).
    pub fn count_usage_ask(&self, is_answered: bool) {
        self.usage_asks.get_or_create(&[("outcome", if is_answered { "ok" } else { "failed" })]).inc();
    }

    /// Counts a request with signed thinking in its history: `sent`, `left_out`, `refused` (TR44).
    pub fn count_reasoning(&self, result: &'static str) {
        self.reasoning.get_or_create(&[("result", result)]).inc();
    }

    /// Counts events of unknown types by name.
    pub fn count_unknown_events(&self, events: &[(String, u64)]) {
        for (name, count) in events {
            let name = self.known_unknown(name);
            self.unknown_events.get_or_create(&vec![("event", name)]).inc_by(*count);
        }
    }

    /// The name itself while there are few names: upstream must not fill our memory or a Prometheus.
    fn known_unknown(&self, name: &str) -> String {
        let fits = name.len() <= 64 && !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let mut names = self.unknown_names.lock().unwrap_or_else(PoisonError::into_inner);
        if fits && !names.iter().any(|known| known == name) && names.len() < UNKNOWN_NAMES {
            names.push(name.to_owned());
        }
        if names.iter().any(|known| known == name) { name.to_owned() } else { "other".to_owned() }
    }

    /// Requests for an answer since the start, by outcome.
    pub fn outcomes(&self) -> [(&'static str, u64); 4] {
        [0, 1, 2, 3].map(|place| {
            let (word, count) = &self.outcomes[place];
            (*word, count.load(Ordering::Relaxed))
        })
    }

    /// Everything as OpenMetrics text.
    pub fn text(&self, scrape: Scrape) -> String {
        let mut text = String::with_capacity(16 * 1024);
        let mut rest = Registry::default();
        rest.register_collector(Box::new(scrape));
        match encode_registry(&mut text, &self.registry).and_then(|()| encode(&mut text, &rest)) {
            Ok(()) => text,
            // Writing into a String can't fail; an error of the library shows in the text.
            Err(error) => format!("# {error}\n"),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, description: &Description, metric: M) -> M {
    let (name, unit) = description.parts();
    match unit {
        // The library puts a full stop behind the help.
        Some(unit) => registry.register_with_unit(name, description.help, unit_of(unit), metric.clone()),
        None => registry.register(name, description.help, metric.clone()),
    }
    metric
}

fn unit_of(word: &str) -> Unit {
    match word {
        "seconds" => Unit::Seconds,
        _ => Unit::Bytes,
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(&mut encoder);
        out.gauge(&table::IN_FLIGHT, self.in_flight as i64)?;
        out.gauge(&table::WAITING, self.waiting as i64)?;
        out.counter(&table::WAITS, self.waits)?;
        out.gauge(&table::REQUEST_MEMORY, self.request_memory as i64)?;
        out.counters(&table::REQUEST_MEMORY_WAITS, "result", &self.request_memory_waits)?;
        let (ahead, failed) = self.connects_ahead;
        out.counters(&table::CONNECTS, "reason", &[("request", self.connects), ("ahead", ahead)])?;
        out.counter(&table::AHEAD_FAILED, failed)?;
        out.gauge(&table::IDLE, self.idle_connections as i64)?;
        let states = self.states.iter().map(|(state, count)| (vec![("state", (*state).to_owned())], *count as i64));
        out.gauges(&table::ACCOUNTS, states)?;
        let accounts =
            self.account_in_flight.iter().map(|(id, count)| (vec![("account", id.clone())], i64::from(*count)));
        out.gauges(&table::ACCOUNT_IN_FLIGHT, accounts)?;
        let credits = |of: fn(&Credits) -> Option<f64>| {
            let known = self.credits.iter().filter_map(move |(id, credits)| Some((id, of(credits)?)));
            known.map(|(id, value)| (vec![("account", id.clone())], value))
        };
        out.gauges(&table::CREDITS_USED, credits(|known| Some(known.used)))?;
        out.gauges(&table::CREDITS_LIMIT, credits(|known| known.limit))?;
        out.gauges(&table::CREDITS_RESET, credits(|known| Some(known.resets_at?.as_second() as f64)))?;
        out.gauge(&table::CREDITS_UNKNOWN, self.without_credits as i64)?;
        out.gauge(&table::BRAKE, i64::from(self.braked))?;
        out.counters(&table::REFRESHES, "outcome", &self.refreshes)?;
        out.counters(&table::SNAPSHOTS, "outcome", &[("ok", self.snapshots.0), ("failed", self.snapshots.1)])?;
        if let Some(redis) = &self.redis {
            redis.encode(out.begin(&table::REDIS_DURATION)?)?;
        }
        out.counter(&table::REDIS_ERRORS, self.redis_errors)?;
        out.gauge(&table::REDIS_CONNECTED, i64::from(self.redis_connected))?;
        let queued = [("account", self.queued.0), ("token", self.queued.1)];
        let queued = queued.map(|(kind, count)| (vec![("kind", kind.to_owned())], count as i64));
        out.gauges(&table::REDIS_QUEUED, queued.into_iter())?;
        if let Some(tasks) = self.tasks {
            out.gauge(&table::TASKS, tasks as i64)?;
        }
        let upstream = if self.simulated { "simulator" } else { "kiro" };
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("upstream", upstream.to_owned())];
        out.gauges(&table::BUILD_INFO, std::iter::once((build, 1)))?;
        let hosts = self.hosts.iter().map(|(host, state)| (vec![("host", host.clone())], *state));
        out.gauges(&table::HOSTS, hosts)?;
        let version = vec![("version", self.client_version.clone())];
        out.gauges(&table::VERSION_INFO, std::iter::once((version, 1)))?;
        let mut refused = out.begin(&table::VERSION_REFUSED)?;
        for (call, host, count) in &self.version_refusals {
            let labels = vec![("call", (*call).to_owned()), ("host", host.clone())];
            ConstCounter::new(*count).encode(refused.encode_family(&labels)?)?;
        }
        out.counter(&table::LOG_DROPPED, LOG_LINES_DROPPED.load(Ordering::Relaxed))?;
        let Some(process) = process::read() else { return Ok(()) };
        ConstCounter::new(process.cpu_seconds).encode(out.begin(&table::CPU)?)?;
        out.gauge(&table::RESIDENT, process.resident_bytes as i64)?;
        out.gauge(&table::VIRTUAL, process.virtual_bytes as i64)?;
        out.gauge(&table::OPEN_FDS, process.open_fds as i64)?;
        if let Some(most) = process.max_fds {
            out.gauge(&table::MAX_FDS, most as i64)?;
        }
        out.gauge(&table::THREADS, process.threads)?;
        ConstGauge::new(process.started).encode(out.begin(&table::START_TIME)?)
    }
}

/// Writes values that are read at the scrape.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn begin(&mut self, description: &Description) -> Result<MetricEncoder<'_>, fmt::Error> {
        let (name, unit) = description.parts();
        let unit: Option<&'static Unit> = unit.map(|word| match unit_of(word) {
            Unit::Seconds => &Unit::Seconds,
            _ => &Unit::Bytes,
        });
        let kind = match description.kind {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Gauge => MetricType::Gauge,
            MetricKind::Histogram => MetricType::Histogram,
        };
        // `register` puts a full stop behind the help; here it is ours to do.
        let help = format!("{}.", description.help);
        self.0.encode_descriptor(name, &help, unit, kind)
    }

    fn gauge(&mut self, description: &Description, value: i64) -> fmt::Result {
        ConstGauge::new(value).encode(self.begin(description)?)
    }

    fn counter(&mut self, description: &Description, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.begin(description)?)
    }

    fn gauges<V>(&mut self, description: &Description, values: impl Iterator<Item = (OneLabel, V)>) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        let mut encoder = self.begin(description)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters(&mut self, description: &Description, label: &'static str, values: &[(&str, u64)]) -> fmt::Result {
        let mut encoder = self.begin(description)?;
        for (word, value) in values {
            let labels = vec![(label, (*word).to_owned())];
            ConstCounter::new(*value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape() -> Scrape {
        Scrape {
            states: vec![("healthy", 1)],
            account_in_flight: vec![("01234567".into(), 1)],
            credits: vec![(
                "01234567".into(),
                Credits {
                    used: 1.5,
                    limit: Some(2.0),
                    resets_at: Some(jiff::Timestamp::UNIX_EPOCH),
                    asked_at: jiff::Timestamp::UNIX_EPOCH,
                },
            )],
            refreshes: vec![("refreshed", 1)],
            redis: Some(Observed { bounds: vec![1.0], counts: vec![1, 0], sum: 0.5 }),
            tasks: Some(1),
            version_refusals: vec![("chat", "h".into(), 1)],
            hosts: vec![("h".into(), 0)],
            ..Scrape::default()
        }
    }

    /// Every metric is there with its help and type, its labels are those of the table, and nothing else is there.
    #[test]
    fn the_text_shows_every_metric_of_the_table_and_no_other() {
        let metrics = Metrics::new();
        metrics.count_request("complete", "m", None);
        metrics.count_request("refused", "unknown", Some(Code::NotFound));
        metrics.count_refused("other", 404);
        metrics.count_tokens("m", 1, 2);
        metrics.count_credits("m", 0.05);
        metrics.count_attempt(Some(Shape::Q), Some(FaultKind::RateLimited));
        metrics.count_fields_refused("m", "effort");
        metrics.count_unknown_events(&[("newEvent".into(), 1)]);
        let text = metrics.text(scrape());
        let mut families: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        for metric in METRICS {
            let family = metric.name.strip_suffix("_total").unwrap_or(metric.name);
            assert!(text.contains(&format!("# HELP {family} {}.\n", metric.help)), "{family} has no help in {text}");
            assert!(text.contains(&format!("# TYPE {family} {}\n", metric.kind.as_str())), "{family} has no type");
            let series = match metric.kind {
                MetricKind::Histogram => format!("{}_bucket", metric.name),
                MetricKind::Counter | MetricKind::Gauge => metric.name.to_owned(),
            };
            let line = text
                .lines()
                .find(|line| line.strip_prefix(series.as_str()).is_some_and(|rest| rest.starts_with([' ', '{'])));
            let line = line.unwrap_or_else(|| panic!("{series} has no series in {text}"));
            let labels: Vec<&str> = line
                .split_once('{')
                .and_then(|(_, rest)| rest.split_once('}'))
                .map(|(labels, _)| labels.split(',').filter_map(|pair| pair.split('=').next()).collect())
                .unwrap_or_default();
            let mut described: Vec<&str> = metric.labels.iter().map(|label| label.name).collect();
            described.extend((metric.kind == MetricKind::Histogram).then_some("le"));
            assert_eq!(labels, described, "{line}");
            families.retain(|name| *name != family);
        }
        assert!(families.is_empty(), "not in the table: {families:?}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn units_and_suffixes_are_split_off() {
        assert_eq!(table::CPU.parts(), ("process_cpu", Some("seconds")));
        assert_eq!(table::RESIDENT.parts(), ("process_resident_memory", Some("bytes")));
        assert_eq!(table::ACCOUNTS.parts(), ("kiro_accounts", None));
    }

    /// At most 16 names of unknown events (contract/kiro.md, "Events").
    #[test]
    fn unknown_events_have_sixteen_names_at_most() {
        let metrics = Metrics::new();
        let many: Vec<(String, u64)> = (0..40).map(|n| (format!("event{n}"), 1)).collect();
        metrics.count_unknown_events(&many);
        metrics.count_unknown_events(&many);
        metrics.count_unknown_events(&[("bad\"name\n".into(), 1), ("x".repeat(65), 1)]);
        let text = metrics.text(Scrape::default());
        let series: Vec<&str> = text.lines().filter(|line| line.starts_with("kiro_unknown_events_total{")).collect();
        assert_eq!(series.len(), 17, "{series:?}");
        assert!(series.contains(&"kiro_unknown_events_total{event=\"other\"} 50"), "{series:?}");
        assert!(series.contains(&"kiro_unknown_events_total{event=\"event3\"} 2"), "{series:?}");
    }
}
