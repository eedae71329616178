//! What the simulator remembers: scripted answers, refreshed tokens, counters, the last requests.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::accounts::RefreshAnswer;
use super::scenario::{Fields, Scenario};

/// So many of the streams that the client closed are kept, and so many of the answers that were none.
const ENDS: usize = 1024;
/// So many requests are kept, and so many bytes of their bodies.
const REQUESTS: usize = 64;
const BODIES: usize = 32 << 20;

/// What a scripted answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    Chat,
    Usage,
    Profiles,
    Models,
}

#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    /// Locked for a few lines, never across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Answers prompts that ask for nothing else.
    pub default: Option<Scenario>,
    scripts: HashMap<(Endpoint, String), Queue<Option<Scenario>>>,
    refresh_scripts: HashMap<String, Queue<Option<RefreshAnswer>>>,
    /// Refresh tokens that were replaced.
    pub retired: HashSet<String>,
    /// Counts refreshed tokens, so that each is another one.
    pub issued: u64,
    connections_open: u64,
    in_flight: u64,
    pub counts: Counts,
}

/// What happened since the start or the last reset.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub requests: BTreeMap<String, u64>,
    pub calls_by_token: BTreeMap<String, u64>,
    pub refresh_calls: BTreeMap<String, u64>,
    /// Every successful refresh, in order.
    pub refreshed: Vec<Value>,
    connections_accepted: u64,
    connections_open_max: u64,
    in_flight_max: u64,
    completed: u64,
    cut: u64,
    answered_otherwise: u64,
    closed_by_client: u64,
    events: u64,
    closes: VecDeque<Value>,
    /// Chat requests that were answered with something else than a stream.
    refusals: VecDeque<Value>,
    last: VecDeque<Recorded>,
    last_bytes: usize,
}

/// A request as it came.
#[derive(Debug)]
pub(super) struct Recorded {
    pub connection: u64,
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl State {
    /// Queues answers: `{"token","on"?,"scenarios"}`, `{"refresh_token","answers"}` or `{"default"}`, each with
    /// `times` or `forever`; or a list of these.
    pub fn script(&mut self, script: Value) -> Result<(), String> {
        let map = match script {
            Value::Array(scripts) => return scripts.into_iter().try_for_each(|script| self.script(script)),
            Value::Object(map) => map,
            other => return Err(format!("a script is an object or a list of them, not {other}")),
        };
        let mut fields = Fields::new("script", map);
        let times = fields.positive("times")?.unwrap_or(1);
        let forever: bool = fields.take("forever")?.unwrap_or(false);
        if let Some(default) = fields.take::<Value>("default")? {
            fields.finish()?;
            self.default = optional(default, Scenario::from_value)?;
        } else if let Some(refresh_token) = fields.take::<String>("refresh_token")? {
            let answers: Vec<Value> = fields.need("answers")?;
            fields.finish()?;
            let answers = answers.into_iter().map(|answer| optional(answer, RefreshAnswer::from_value));
            let answers = answers.collect::<Result<Vec<_>, _>>()?;
            self.refresh_scripts.entry(refresh_token).or_default().append(answers, times, forever);
        } else {
            let token: String = fields.need("token")?;
            let endpoint = match fields.take::<String>("on")?.as_deref() {
                None | Some("chat") => Endpoint::Chat,
                Some("usage") => Endpoint::Usage,
                Some("profiles") => Endpoint::Profiles,
                Some("models") => Endpoint::Models,
                Some(other) => return Err(format!("`script.on` is chat, usage, profiles or models, not `{other}`")),
            };
            let scenarios: Vec<Value> = fields.need("scenarios")?;
            fields.finish()?;
            let scenarios = scenarios.into_iter().map(|scenario| optional(scenario, Scenario::from_value));
            let scenarios = scenarios.collect::<Result<Vec<_>, _>>()?;
            self.scripts.entry((endpoint, token)).or_default().append(scenarios, times, forever);
        }
        Ok(())
    }

    /// The next scripted answer for a token; `Some(None)` is one that was scripted to be as usual.
    pub fn scripted(&mut self, endpoint: Endpoint, token: &str) -> Option<Option<Scenario>> {
        self.scripts.get_mut(&(endpoint, token.to_owned()))?.next()
    }

    /// As [`scripted`](Self::scripted), for a refresh token.
    pub fn scripted_refresh(&mut self, refresh_token: &str) -> Option<Option<RefreshAnswer>> {
        self.refresh_scripts.get_mut(refresh_token)?.next()
    }

    /// Forgets everything but what is open.
    pub fn reset(&mut self) {
        let State { connections_open, in_flight, .. } = *self;
        let counts = Counts { connections_open_max: connections_open, in_flight_max: in_flight, ..Counts::default() };
        *self = State { connections_open, in_flight, counts, ..State::default() };
    }

    pub fn connection_opened(&mut self) -> u64 {
        self.counts.connections_accepted += 1;
        self.connections_open += 1;
        self.counts.connections_open_max = self.counts.connections_open_max.max(self.connections_open);
        self.counts.connections_accepted
    }

    pub fn connection_closed(&mut self) {
        self.connections_open -= 1;
    }

    pub fn record(&mut self, request: Recorded) {
        let counts = &mut self.counts;
        counts.last_bytes += request.body.len();
        counts.last.push_back(request);
        while counts.last.len() > REQUESTS || (counts.last_bytes > BODIES && counts.last.len() > 1) {
            if let Some(oldest) = counts.last.pop_front() {
                counts.last_bytes -= oldest.body.len();
            }
        }
    }

    /// Everything as JSON; with `bodies`, the last requests too.
    pub fn stats(&self, bodies: bool) -> Value {
        let counts = &self.counts;
        let mut stats = json!({
            "simulated": true,
            "requests": counts.requests,
            "calls_by_token": counts.calls_by_token,
            "streams": {
                "open": self.in_flight,
                "open_max": counts.in_flight_max,
                "completed": counts.completed,
                "cut": counts.cut,
                "answered_otherwise": counts.answered_otherwise,
                "closed_by_client": counts.closed_by_client,
                "events": counts.events,
            },
            "connections": {
                "open": self.connections_open,
                "open_max": counts.connections_open_max,
                "accepted": counts.connections_accepted,
            },
            "closed_by_client": counts.closes,
            "answered_otherwise": counts.refusals,
            "refresh_calls": counts.refresh_calls,
            "refreshed": counts.refreshed,
        });
        if bodies {
            stats["last"] = counts.last.iter().map(Recorded::as_json).collect();
        }
        stats
    }
}

impl Recorded {
    fn as_json(&self) -> Value {
        let headers: Map<String, Value> =
            self.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        json!({
            "connection": self.connection,
            "method": self.method,
            "target": self.target,
            "headers": headers,
            "body": String::from_utf8_lossy(&self.body),
        })
    }
}

/// Answers in their order.
#[derive(Debug)]
struct Queue<T> {
    answers: VecDeque<T>,
    /// The last one is given again and again.
    forever: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { answers: VecDeque::new(), forever: false }
    }
}

impl<T: Clone> Queue<T> {
    fn append(&mut self, answers: Vec<T>, times: usize, forever: bool) {
        for _ in 0..times {
            self.answers.extend(answers.iter().cloned());
        }
        self.forever = forever;
    }

    fn next(&mut self) -> Option<T> {
        if self.forever && self.answers.len() == 1 { self.answers.front().cloned() } else { self.answers.pop_front() }
    }
}

/// How a chat request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Everything was handed out.
    Completed,
    /// As the scenario wanted.
    Cut,
    /// With something else than a stream.
    Answered,
    /// The client went away before.
    ClosedByClient,
}

/// A chat request on its way. Counters are touched at its start and its end only.
#[derive(Debug)]
pub(super) struct Flight {
    /// Events handed out.
    pub events: u64,
    token: String,
    since: Instant,
    landed: bool,
    shared: Arc<Shared>,
}

impl Flight {
    pub fn start(shared: &Arc<Shared>, token: &str) -> Self {
        let mut state = shared.state();
        state.in_flight += 1;
        state.counts.in_flight_max = state.counts.in_flight_max.max(state.in_flight);
        *state.counts.calls_by_token.entry(token.to_owned()).or_default() += 1;
        drop(state);
        Self { events: 0, token: token.to_owned(), since: Instant::now(), landed: false, shared: Arc::clone(shared) }
    }

    /// Counts the end, once. Called before the last bytes go out: who has read them sees the counters as they shall
    /// be.
    pub fn land(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.landed, true) {
            return;
        }
        let mut state = self.shared.state();
        state.in_flight -= 1;
        let counts = &mut state.counts;
        counts.events += self.events;
        match outcome {
            Outcome::Completed => counts.completed += 1,
            Outcome::Cut => counts.cut += 1,
            Outcome::Answered => {
                counts.answered_otherwise += 1;
                keep(&mut counts.refusals, self.ended());
            }
            Outcome::ClosedByClient => {
                counts.closed_by_client += 1;
                keep(&mut counts.closes, self.ended());
            }
        }
    }

    fn ended(&self) -> Value {
        json!({
            "token": self.token,
            "after_ms": self.since.elapsed().as_millis() as u64,
            "at_ms": Timestamp::now().as_millisecond(),
            "events": self.events,
        })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.land(Outcome::ClosedByClient);
    }
}

fn keep(ends: &mut VecDeque<Value>, end: Value) {
    if ends.len() == ENDS {
        ends.pop_front();
    }
    ends.push_back(end);
}

fn optional<T>(value: Value, read: impl FnOnce(Value) -> Result<T, String>) -> Result<Option<T>, String> {
    if value.is_null() { Ok(None) } else { read(value).map(Some) }
}
