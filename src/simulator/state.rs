//! The simulator's memory: scripted answers, refreshed tokens, counters, the last requests.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::accounts::identity;
use super::check::{Block, Prompt};
use super::fields::Fields;
use super::refresh_answer::RefreshAnswer;
use super::scenario::Scenario;
use super::scripted_sign_in::{SimPortal, SimSignIn};
use super::world::SimWorld;
use crate::proto::kiro::route::Operation;

/// How many streams that the client closed are kept, and how many refusals.
const ENDS: usize = 1024;
/// How many requests are kept, and how many bytes of their bodies.
const REQUESTS: usize = 64;
const BODIES: usize = 32 << 20;
/// How many conversations have their prompts remembered, and how many ids are counted for each call.
const CONVERSATIONS: usize = 4096;
const IDS: usize = 1024;
/// How many successful refreshes are kept, and for how many refresh tokens calls are counted.
const REFRESHES: usize = 16_384;
/// Number of refreshes after which access tokens that have ended are forgotten.
const SWEPT_EVERY: u64 = 256;

#[derive(Debug, Default)]
pub(super) struct SimShared(Mutex<SimState>);

impl SimShared {
    /// Locked for a few lines, never across an await.
    pub fn state(&self) -> MutexGuard<'_, SimState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(super) struct SimState {
    /// The world of all accounts without one of their own.
    pub world: Arc<SimWorld>,
    /// The one that a reset goes back to.
    started: Arc<SimWorld>,
    /// The differences of the world for an account.
    worlds: HashMap<String, Vec<Value>>,
    /// The answer to prompts without a scenario.
    pub default: Option<Scenario>,
    /// By account and conversation: the prompt of the last request.
    prompts: HashMap<(String, String), Vec<Block>>,
    prompts_in_order: VecDeque<(String, String)>,
    scripts: HashMap<(Operation, String), StagedAnswers<Option<Scenario>>>,
    refresh_scripts: HashMap<String, StagedAnswers<Option<RefreshAnswer>>>,
    /// By the first refresh token of each account, whose successors keep it in front.
    logins: BTreeMap<String, Login>,
    /// Access tokens that end, if the world says so.
    alive: HashMap<String, Instant>,
    /// Credits that chat answers have cost, by account.
    spent: HashMap<String, f64>,
    /// How a person signs in.
    pub sign_in: SimSignIn,
    pub portal: SimPortal,
    /// Counts refreshed tokens, so that each is another one.
    pub issued: u64,
    connections_open: u64,
    in_flight: u64,
    pub counts: SimCounts,
}

/// Counters since the start or the last reset.
#[derive(Debug, Default)]
pub(super) struct SimCounts {
    pub requests: BTreeMap<String, u64>,
    /// By shape and call; `refresh` has the two kinds of refresh.
    pub shapes: BTreeMap<&'static str, BTreeMap<&'static str, CallCount>>,
    pub calls_by_token: BTreeMap<String, u64>,
    refresh_calls: BTreeMap<String, u64>,
    /// The last successful refreshes, in order.
    refreshed: VecDeque<Value>,
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

/// Counters of one call of one shape.
#[derive(Debug, Default)]
pub(super) struct CallCount {
    count: u64,
    headers: Vec<(String, String)>,
    members: Vec<String>,
    targets: BTreeMap<String, u64>,
    hosts: BTreeMap<String, u64>,
    conversations: BTreeMap<String, u64>,
    models: BTreeMap<String, u64>,
    reasoning: u64,
    cache_points: u64,
    fields: Option<Value>,
    queries: VecDeque<String>,
}

impl CallCount {
    /// Counts a request by its head; its headers are the last ones from then on.
    pub fn head(&mut self, host: &str, target: &str, headers: &[(String, String)]) {
        self.count += 1;
        self.headers = headers.to_vec();
        *self.hosts.entry(host.to_owned()).or_default() += 1;
        *self.targets.entry(target.to_owned()).or_default() += 1;
    }

    /// Counts the content of a chat request.
    pub fn prompt(&mut self, prompt: &Prompt) {
        self.members.clone_from(&prompt.members);
        self.reasoning += prompt.thoughts.len() as u64;
        self.cache_points += prompt.cache_points as u64;
        self.fields.clone_from(&prompt.fields);
        for (ids, id) in [(&mut self.conversations, &prompt.conversation_id), (&mut self.models, &prompt.model)] {
            if let Some(id) = id
                && (ids.len() < IDS || ids.contains_key(id))
            {
                *ids.entry(id.clone()).or_default() += 1;
            }
        }
    }

    /// The members of any other body.
    pub fn members(&mut self, body: &Value) {
        self.members = body.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
    }

    pub fn query(&mut self, query: &str) {
        if self.queries.len() == IDS {
            self.queries.pop_front();
        }
        self.queries.push_back(query.to_owned());
    }

    fn as_json(&self) -> Value {
        let headers: Map<String, Value> =
            self.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        json!({
            "count": self.count, "headers": headers, "members": self.members, "targets": self.targets,
            "hosts": self.hosts, "conversations": self.conversations, "models": self.models,
            "reasoning": self.reasoning, "cache_points": self.cache_points, "fields": self.fields,
            "queries": self.queries,
        })
    }
}

/// One account's refresh tokens; only the last one works, and only once.
#[derive(Debug, Default)]
struct Login {
    refreshes: u64,
    /// Refused calls with a refresh token that was used up.
    dead_refreshes: u64,
    /// Refused calls with an access token that has ended.
    expired_calls: u64,
    /// The refresh token that works.
    last: String,
    access_token: Option<String>,
    /// When it was refreshed last, in ms since 1970.
    refreshed_ms: i64,
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

impl SimState {
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
        } else if let Some(world) = fields.take::<Value>("world")? {
            let account: Option<String> = fields.take("token")?;
            fields.finish()?;
            self.set_world(account, world)?;
        } else if let Some(polls) = fields.take::<Vec<String>>("device")? {
            self.sign_in = SimSignIn::read(polls, &mut fields)?;
            fields.finish()?;
        } else if let Some(way) = fields.take::<String>("portal")? {
            self.portal = SimPortal::read(way, &mut fields)?;
            self.sign_in = SimSignIn::read(Vec::new(), &mut fields)?;
            fields.finish()?;
        } else if let Some(refresh_token) = fields.take::<String>("refresh_token")? {
            let answers: Vec<Value> = fields.need("answers")?;
            fields.finish()?;
            let answers = answers.into_iter().map(|answer| optional(answer, RefreshAnswer::from_value));
            let answers = answers.collect::<Result<Vec<_>, _>>()?;
            self.refresh_scripts.entry(refresh_token).or_default().append(answers, times, forever);
        } else {
            let token: String = fields.need("token")?;
            let call = match fields.take::<String>("on")?.as_deref() {
                None | Some("chat") => Operation::Chat,
                Some("usage") => Operation::Usage,
                Some("profiles") => Operation::Profiles,
                Some("models") => Operation::Models,
                Some("mcp") => Operation::Mcp,
                Some(other) => {
                    return Err(format!("`script.on` is chat, usage, profiles, models or mcp, not `{other}`"));
                }
            };
            let scenarios: Vec<Value> = fields.need("scenarios")?;
            fields.finish()?;
            let scenarios = scenarios.into_iter().map(|scenario| optional(scenario, Scenario::from_value));
            let scenarios = scenarios.collect::<Result<Vec<_>, _>>()?;
            self.scripts.entry((call, token)).or_default().append(scenarios, times, forever);
        }
        Ok(())
    }

    /// The next scripted answer for a token; `Some(None)` is one that was scripted to be as usual.
    pub fn scripted(&mut self, call: Operation, token: &str) -> Option<Option<Scenario>> {
        self.scripts.get_mut(&(call, token.to_owned()))?.next()
    }

    /// Changes the world: of one account, or of all who have none of their own. Null takes a change back.
    fn set_world(&mut self, account: Option<String>, change: Value) -> Result<(), String> {
        match account {
            Some(token) if change.is_null() => {
                self.worlds.remove(identity(&token));
            }
            Some(token) => {
                SimWorld::clone(&self.world).change(change.clone())?;
                self.worlds.entry(identity(&token).to_owned()).or_default().push(change);
            }
            None if change.is_null() => self.world = Arc::clone(&self.started),
            None => {
                let mut world = SimWorld::clone(&self.world);
                world.change(change)?;
                self.world = Arc::new(world);
            }
        }
        Ok(())
    }

    /// The world to begin with, and to go back to at a reset.
    pub fn start_in(&mut self, world: SimWorld) {
        self.world = Arc::new(world);
        self.started = Arc::clone(&self.world);
    }

    /// The world of an access token's account.
    pub fn world_of(&self, token: &str) -> Arc<SimWorld> {
        let Some(changes) = self.worlds.get(identity(token)) else { return Arc::clone(&self.world) };
        let mut world = SimWorld::clone(&self.world);
        for change in changes {
            // Each was checked when it was set. In another world it may not fit, and then changes nothing.
            world.change(change.clone()).unwrap_or_default();
        }
        Arc::new(world)
    }

    /// Credits that the account's answers have cost.
    pub fn spent(&self, token: &str) -> f64 {
        self.spent.get(identity(token)).copied().unwrap_or(0.0)
    }

    /// Counts the cost of an answer.
    pub fn spend(&mut self, token: &str, credits: f64) {
        let account = identity(token);
        if self.spent.len() < IDS || self.spent.contains_key(account) {
            *self.spent.entry(account.to_owned()).or_default() += credits;
        }
    }

    /// Characters of a prompt that the account's conversation has not seen, and those that it has; remembers it.
    pub fn seen(&mut self, token: &str, prompt: &Prompt) -> (u64, u64) {
        let conversation = prompt.conversation_id.clone().unwrap_or_default();
        let key = (identity(token).to_owned(), conversation);
        let known = self
            .prompts
            .get(&key)
            .map_or(0, |before| before.iter().zip(&prompt.blocks).take_while(|(before, now)| before == now).count());
        let chars = |blocks: &[Block]| blocks.iter().map(|block| block.len).sum();
        let (known, new) = prompt.blocks.split_at(known);
        let counted = (chars(new), chars(known));
        if self.prompts.insert(key.clone(), prompt.blocks.clone()).is_none() {
            self.prompts_in_order.push_back(key);
            if self.prompts_in_order.len() > CONVERSATIONS
                && let Some(oldest) = self.prompts_in_order.pop_front()
            {
                self.prompts.remove(&oldest);
            }
        }
        counted
    }

    /// Counts a call with a refresh token.
    pub fn refresh_called(&mut self, used: &str) {
        let calls = &mut self.counts.refresh_calls;
        if calls.len() < REFRESHES || calls.contains_key(used) {
            *calls.entry(used.to_owned()).or_default() += 1;
        }
    }

    /// Whether a refresh token was used up; counts it.
    pub fn is_spent(&mut self, used: &str) -> bool {
        let login = self.login(used);
        let is_spent = login.last != used;
        login.dead_refreshes += u64::from(is_spent);
        is_spent
    }

    /// `used` was granted: from here on only `next` works, if there is one.
    pub fn refreshed(&mut self, used: &str, next: Option<&str>, access_token: Option<&str>, life: Option<Duration>) {
        let login = self.login(used);
        login.refreshes += 1;
        login.last = next.unwrap_or(used).to_owned();
        login.access_token = access_token.map(str::to_owned);
        login.refreshed_ms = Timestamp::now().as_millisecond();
        if let (Some(token), Some(life)) = (access_token, life) {
            let now = Instant::now();
            if self.issued.is_multiple_of(SWEPT_EVERY) {
                self.alive.retain(|_, end| *end > now);
            }
            self.alive.insert(token.to_owned(), now + life);
        }
        let refreshes = &mut self.counts.refreshed;
        if refreshes.len() == REFRESHES {
            refreshes.pop_front();
        }
        refreshes.push_back(json!({ "used": used, "refresh_token": next, "access_token": access_token }));
    }

    /// Whether a refreshed access token has ended, in a world where tokens end; counts it.
    pub fn has_expired(&mut self, token: &str, world: &SimWorld) -> bool {
        let root = identity(token);
        if world.token_life.is_none() || root == token || self.alive.get(token).is_some_and(|end| *end > Instant::now())
        {
            return false;
        }
        if let Some(login) = self.logins.get_mut(root) {
            login.expired_calls += 1;
        }
        true
    }

    fn login(&mut self, refresh_token: &str) -> &mut Login {
        let root = refresh_token.split('~').next().unwrap_or(refresh_token);
        let first = || Login { last: refresh_token.to_owned(), ..Login::default() };
        self.logins.entry(root.to_owned()).or_insert_with(first)
    }

    /// The state of each account's refresh tokens.
    pub fn accounts(&self) -> Value {
        let account = |login: &Login| {
            json!({
                "refreshes": login.refreshes, "dead_refreshes": login.dead_refreshes,
                "expired_calls": login.expired_calls, "refresh_token": login.last,
                "access_token": login.access_token, "refreshed_ms": login.refreshed_ms,
            })
        };
        self.logins.iter().map(|(root, login)| (root.clone(), account(login))).collect::<Map<_, _>>().into()
    }

    /// As [`scripted`](Self::scripted), for a refresh token.
    pub fn scripted_refresh(&mut self, refresh_token: &str) -> Option<Option<RefreshAnswer>> {
        self.refresh_scripts.get_mut(refresh_token)?.next()
    }

    /// Forgets everything except open connections and answers.
    pub fn reset(&mut self) {
        let SimState { connections_open, in_flight, .. } = *self;
        let counts =
            SimCounts { connections_open_max: connections_open, in_flight_max: in_flight, ..SimCounts::default() };
        let started = Arc::clone(&self.started);
        *self = SimState {
            connections_open,
            in_flight,
            counts,
            world: Arc::clone(&started),
            started,
            ..SimState::default()
        };
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
        let calls = |calls: &BTreeMap<&'static str, CallCount>| -> Map<String, Value> {
            calls.iter().map(|(call, count)| ((*call).to_owned(), count.as_json())).collect()
        };
        let shapes: Map<String, Value> =
            counts.shapes.iter().map(|(shape, counted)| ((*shape).to_owned(), calls(counted).into())).collect();
        let mut stats = json!({
            "simulated": true,
            "world": self.world.names,
            "requests": counts.requests,
            "shapes": shapes,
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
struct StagedAnswers<T> {
    answers: VecDeque<T>,
    /// The last one is given again and again.
    forever: bool,
}

impl<T> Default for StagedAnswers<T> {
    fn default() -> Self {
        Self { answers: VecDeque::new(), forever: false }
    }
}

impl<T: Clone> StagedAnswers<T> {
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
pub(super) enum ChatEnd {
    /// Everything was handed out.
    Completed,
    /// As the scenario wanted.
    Cut,
    /// With an answer that isn't a stream.
    Answered,
    /// The client went away before the end.
    ClosedByClient,
}

/// A chat request on its way. Counters are touched at its start and its end only.
#[derive(Debug)]
pub(super) struct ChatFlight {
    /// Events handed out.
    pub events: u64,
    token: String,
    since: Instant,
    landed: bool,
    shared: Arc<SimShared>,
}

impl ChatFlight {
    pub fn start(shared: &Arc<SimShared>, token: &str) -> Self {
        let mut state = shared.state();
        state.in_flight += 1;
        state.counts.in_flight_max = state.counts.in_flight_max.max(state.in_flight);
        *state.counts.calls_by_token.entry(token.to_owned()).or_default() += 1;
        drop(state);
        Self { events: 0, token: token.to_owned(), since: Instant::now(), landed: false, shared: Arc::clone(shared) }
    }

    /// Counts the end, once. Called before the last bytes go out, so that a client that has read them sees final
    /// counters.
    pub fn land(&mut self, outcome: ChatEnd) {
        if std::mem::replace(&mut self.landed, true) {
            return;
        }
        let mut state = self.shared.state();
        state.in_flight -= 1;
        let counts = &mut state.counts;
        counts.events += self.events;
        match outcome {
            ChatEnd::Completed => counts.completed += 1,
            ChatEnd::Cut => counts.cut += 1,
            ChatEnd::Answered => {
                counts.answered_otherwise += 1;
                keep(&mut counts.refusals, self.ended());
            }
            ChatEnd::ClosedByClient => {
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

impl Drop for ChatFlight {
    fn drop(&mut self) {
        self.land(ChatEnd::ClosedByClient);
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
