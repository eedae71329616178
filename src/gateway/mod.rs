//! One request from start to end: parse → select → send → retry until the commit → drive the pipeline → report.
//!
//! A [`Gateway`] is what both faces share. Its life: [`Gateway::start`], any number of [`Gateway::stream`] and
//! [`Gateway::create`], [`Gateway::close`]. Two gateways in one process share nothing.
//!
//! # Cancel safety
//! Dropping the future of a call, or the [`MessageStream`] it gave, drops the upstream request within the same moment:
//! the connection is closed, the in-flight places are free, the account's health is untouched (K50, K70).

mod account;
mod attempt;
mod budget;
mod catalogue;
mod conversations;
mod dump;
mod ends;
mod hand;
mod keys;
#[cfg(test)]
#[path = "../../tests/support/log.rs"]
mod log;
mod models;
mod status;
mod stream;
mod summary;
mod trace;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use attempt::{Facts, Job, Trail};
use budget::Budget;
use catalogue::Discovery;
use conversations::{Conversations, learn_secret};
use dump::Dumps;
use ends::Ends;
pub use keys::KeyCheck;
use keys::Keys;
use models::ModelsFile;
pub use status::{AccountStatus, Status as GatewayStatus};
pub use stream::{Cutter, MessageStream, OpenRequest};
use stream::{MAX_HELD, Slot};
use summary::Refused;
pub use summary::{Outcome, Summary, SummaryCell};

use crate::config::{Config, StoreKind, UpstreamKind, is_below_floor};
use crate::credentials::Credentials;
use crate::error::{Code, Error};
use crate::metrics::{Metrics, Scrape};
use crate::policy::marks::Circuit;
use crate::policy::names::PassedNames;
use crate::pool::{AccountInfo, Hooks, Lease, Pool, Stood, short};
use crate::proto::kiro::client_identity;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::messages::request::{Display, Purpose, Request, RequestError, SystemMode};
use crate::proto::pipeline::{Mode, Pipeline, Settings};
use crate::proto::record::rfc3339;
use crate::proto::translate::estimate::request_tokens;
use crate::proto::translate::ids::Ids;
use crate::proto::translate::model::{Model, Models, Naming};
use crate::store::{Clock, RedisConfig, Status, Store, StoreConfig, StoreError, StoreErrorKind};
use crate::upstream::Upstream;

/// How often the client key and the models file are looked at again (R57).
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// How often idle upstream connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// While the store hasn't been reached, it is asked for the key this often.
const FIRST_KEY_INTERVAL: Duration = Duration::from_millis(100);
/// What streams get to write their `error` event after the grace time, here and in the faces.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// From this many bytes on, work on a request takes a millisecond or more.
const LONG: usize = 512 * 1024;

/// Does work over `bytes` of a request. The streams that share the thread don't wait for long work: the runtime moves
/// them to another thread.
fn over<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let is_shared = || Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes >= LONG && is_shared() { tokio::task::block_in_place(work) } else { work() }
}

/// A client's request, with the operator's system text in it (N13).
fn read_request<'a>(body: &'a [u8], system: Option<&(SystemMode, String)>) -> Result<Request<'a>, RequestError> {
    let mut request = Request::parse(body, Purpose::Messages)?;
    if let Some((mode, text)) = system {
        request.apply_system(*mode, text);
    }
    Ok(request)
}

/// The pool, the upstream and everything between, shared by all calls. Cheap to clone.
///
/// A gateway that is dropped without [`Gateway::close`] lives until its streams end and then goes without the final
/// flush.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    /// Ends the background task with the last clone.
    _watch: Arc<DropGuard>,
}

pub(crate) struct Shared {
    config: Config,
    store: Store,
    pool: Pool,
    credentials: Credentials,
    upstream: Arc<Upstream>,
    /// The file's table, or the embedded one.
    table: Mutex<Models>,
    /// What names are resolved by: the table, and what only accounts' catalogues have.
    models: ArcSwap<Models>,
    /// `None`: `KIRO_MODEL_DISCOVERY=off`.
    discovery: Option<Arc<Discovery>>,
    /// Names that pass to upstream by a rule and not by the table (TR36, K89).
    names: Mutex<PassedNames>,
    keys: Keys,
    conversations: Arc<Conversations>,
    metrics: Metrics,
    ends: Ends,
    /// `KIRO_DEBUG_DUMP_DIR`.
    dumps: Option<Dumps>,
    /// What is held of answers, all together (TS25).
    answers: Budget,
    in_flight: Arc<AtomicUsize>,
    streams: Streams,
    closing: AtomicBool,
    closed: CancellationToken,
    began: Instant,
    /// When an account of another region was last tried for the client version (K105).
    other_region: Mutex<Option<Instant>>,
}

/// What a call says beyond its body.
#[derive(Debug, Clone)]
pub struct Call {
    /// The id of the request; `[A-Za-z0-9._-]{1,128}`, else a new one is made.
    pub request_id: Option<String>,
    /// The client's own id, which is logged and nothing more.
    pub client_request_id: Option<String>,
    /// The header `x-claude-code-session-id` (TR48).
    pub session: Option<String>,
    /// The header `x-session-id`, which a gateway in front of this one can set (TR48).
    pub gateway_session: Option<String>,
    /// [`client_key_hash`] of the client key that was presented: conversations of two keys never meet (TR48).
    pub client_key: Option<[u8; 32]>,
    /// Use this account only, without selection and failover (N5).
    pub account_id: Option<String>,
    /// Operator's system text (N13).
    pub system: Option<(SystemMode, String)>,
    /// Record the outcome on the account.
    pub record: bool,
    /// The header `traceparent` (W3C), which follows a request over several programs (feature `otel`).
    pub trace_parent: Option<String>,
}

/// The target of the spans that feature `otel` makes.
#[cfg(feature = "otel")]
pub const TRACE_TARGET: &str = trace::TARGET;

impl Default for Call {
    fn default() -> Self {
        Self {
            request_id: None,
            client_request_id: None,
            session: None,
            gateway_session: None,
            client_key: None,
            account_id: None,
            system: None,
            record: true,
            trace_parent: None,
        }
    }
}

/// How [`Call::client_key`] names a key.
pub fn client_key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// The answer to a request, in the form it asked for.
pub enum Answer {
    /// `stream: true`.
    Stream(Box<MessageStream>),
    /// `stream` absent or false.
    Message(Message),
}

/// A folded answer.
#[derive(Debug, Clone)]
pub struct Message {
    /// The message as JSON (M51, M52).
    pub body: Bytes,
    /// What is known of the request.
    pub summary: Arc<SummaryCell>,
}

/// A model as `/v1/models` lists it (M66).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// Always `model`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The name to ask for.
    pub id: String,
    /// For people.
    pub display_name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Context window in tokens.
    pub max_input_tokens: u64,
    /// Most output tokens.
    pub max_tokens: u64,
}

/// The body of `GET /health`.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// `healthy`, or `degraded`: it serves, but something is wrong.
    pub status: &'static str,
    /// `connected` or `disconnected`; for the embedded file store too.
    pub redis: &'static str,
    /// What the snapshot holds.
    pub accounts: AccountCounts,
    /// Seconds since the start.
    pub uptime: u64,
    /// Version of this program.
    pub version: &'static str,
    /// `simulator` while answers are simulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'static str>,
    /// Every upstream host that was called: `closed`, `half-open` or `open` (K120).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, &'static str>,
    /// What upstream says of our client version.
    #[serde(rename = "clientVersion")]
    pub client_version: ClientVersion,
    /// Refreshed tokens that wait to be saved: ended now, without `KIRO_STATE_DIR`, the process would take these logins
    /// with it.
    #[serde(rename = "unsavedTokens")]
    pub unsaved_tokens: usize,
    /// `KIRO_STATE_DIR`, where they are kept meanwhile: `off` where there is none, `ok`, or `broken` when the last one
    /// could not be kept.
    pub journal: &'static str,
    /// Whether a request would be served now, as far as can be known without sending one: status 200, else 503.
    #[serde(skip)]
    pub can_serve: bool,
}

/// Whether upstream takes this program's client version (K107).
#[derive(Debug, Clone, Serialize)]
pub struct ClientVersion {
    /// `KIRO_CLIENT_VERSION`.
    pub value: String,
    /// Some host refuses it.
    pub refused: bool,
    /// Since when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// How many accounts there are.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AccountCounts {
    /// In the snapshot.
    pub total: usize,
    /// That would be asked now: in a state to serve, with a token or one refresh away from it, and reachable from here.
    pub healthy: usize,
}

impl Gateway {
    /// Connects the store, takes the first snapshot, builds the upstream client.
    ///
    /// With `KIRO_STORE_WAIT` 0 it returns at once, and calls fail with [`Code::StoreUnavailable`] until the snapshot
    /// is there (R54).
    ///
    /// # Errors
    /// [`Code::Config`] for what can't work, a store that refuses us (R49) among it; [`Code::StoreUnavailable`] when
    /// there is no snapshot in time.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, Self::wall_clock(), Hooks::default()).await
    }

    /// As [`Gateway::start`], with a clock of the caller's (tests that own the time) and with ears for what happens to
    /// accounts.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with(config: Config, clock: Clock, hooks: Hooks) -> Result<Self, Error> {
        let (models_file, models) = match config.models_file.as_deref().map(ModelsFile::open).transpose()? {
            Some((file, models)) => (Some(file), models),
            None => (None, Models::embedded().clone()),
        };
        let models = models.with_naming(naming(&config));
        let upstream = Arc::new(Upstream::new(&config)?);
        let folder = config.debug_dump_dir.as_deref();
        let dumps = folder.map(|folder| Dumps::new(folder, config.api_key.iter().cloned().collect())).transpose()?;
        let store =
            Store::connect(&store_config(&config)).await.map_err(|e| Error::new(Code::Config, e.to_string()))?;
        let pool = Pool::start(store.clone(), &config, clock, hooks);
        let credentials = Credentials::start(pool.clone(), upstream.clone(), &config);
        let keys = Keys::new(config.api_key.as_ref());
        let discovery = config.model_discovery.then(Arc::<Discovery>::default);
        let shared = Arc::new(Shared {
            store,
            pool,
            credentials,
            upstream,
            table: Mutex::new(models.clone()),
            models: ArcSwap::from_pointee(models),
            discovery: discovery.clone(),
            names: Mutex::default(),
            keys,
            conversations: Arc::new(Conversations::new(&config)),
            metrics: Metrics::new(),
            ends: Ends::default(),
            dumps,
            answers: Budget::new(MAX_HELD),
            in_flight: Arc::default(),
            streams: Streams::default(),
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
            began: now(),
            other_region: Mutex::default(),
            config,
        });
        let stop = CancellationToken::new();
        spawn(look_around(Arc::downgrade(&shared), models_file, stop.clone()));
        if let Some(discovery) = discovery {
            spawn(catalogue::discover(Arc::downgrade(&shared), discovery, stop.clone()));
        }
        if shared.config.id_secret.is_none() {
            let learning = stop.clone().run_until_cancelled_owned(learn_secret(Arc::downgrade(&shared)));
            spawn(async move { learning.await.unwrap_or_default() });
        }
        spawn(sweep(Arc::downgrade(&shared.upstream), stop.clone()));
        let gateway = Self { shared, _watch: Arc::new(stop.drop_guard()) };
        if is_below_floor(&gateway.shared.config.client_version) {
            tracing::error!(
                version = gateway.shared.config.client_version,
                floor = client_identity::VERSION_FLOOR,
                "Kiro refuses this KIRO_CLIENT_VERSION"
            );
        }
        gateway.wait_for_snapshot().await?;
        Ok(gateway)
    }

    /// The clock on the wall, for [`Gateway::start_with`].
    pub fn wall_clock() -> Clock {
        Arc::new(wall_clock)
    }

    async fn wait_for_snapshot(&self) -> Result<(), Error> {
        let wait = self.shared.config.store_wait;
        if wait.is_zero() {
            return Ok(());
        }
        tokio::select! {
            taken = tokio::time::timeout(wait, self.shared.pool.first_snapshot()) => {
                if taken.is_ok() {
                    return Ok(());
                }
            }
            refused = self.shared.pool.refused() => return Err(Error::new(Code::Config, refused.to_string())),
        }
        let why = match self.shared.store.status() {
            Status::Connecting(Some(error)) | Status::Away(error) | Status::WritesRefused(error) => error.to_string(),
            _ => "no answer yet".to_owned(),
        };
        Err(Error::new(Code::StoreUnavailable, format!("the store could not be reached within {wait:?}: {why}")))
    }

    /// Answers a request in the form that it asks for (`stream`).
    ///
    /// # Errors
    /// Everything that can be known before the first event, and for a folded answer everything.
    pub async fn messages(&self, body: Bytes, call: Call) -> Result<Answer, Error> {
        self.run(body, call, None).await
    }

    /// Streams an answer, whatever `stream` says. Resolves when the status is known: at the first upstream event, or
    /// after `KIRO_EARLY_HEADERS`. Until then it fails over silently.
    ///
    /// # Errors
    /// Everything that can be known before the first event.
    pub fn stream(
        &self,
        body: Bytes,
        call: Call,
    ) -> impl Future<Output = Result<Box<MessageStream>, Error>> + Send + 'static {
        let gateway = self.clone();
        async move {
            match gateway.run(body, call, Some(true)).await? {
                Answer::Stream(stream) => Ok(stream),
                Answer::Message(_) => Err(Error::new(Code::Internal, "a stream was asked for")),
            }
        }
    }

    /// The folded answer, whatever `stream` says.
    ///
    /// # Errors
    /// Any failure, also after content has begun.
    pub fn create(&self, body: Bytes, call: Call) -> impl Future<Output = Result<Message, Error>> + Send + 'static {
        let gateway = self.clone();
        async move {
            match gateway.run(body, call, Some(false)).await? {
                Answer::Message(message) => Ok(message),
                Answer::Stream(_) => Err(Error::new(Code::Internal, "a message was asked for")),
            }
        }
    }

    async fn run(&self, body: Bytes, call: Call, streaming: Option<bool>) -> Result<Answer, Error> {
        let arrived = now();
        let request_id = self.request_id(call.request_id.clone());
        let client_request_id = call.client_request_id.clone();
        self.shared.conversations.settled().await;
        let begun = over(body.len(), || self.begin(&body, call, streaming, request_id.clone(), arrived));
        let (mut stream, job, request) = begun.map_err(|refused| {
            refused.conclude(&self.shared, &body, &request_id, client_request_id.as_deref(), arrived.elapsed())
        })?;
        // The request goes out first; its tokens are counted while upstream thinks (TU7).
        stream.kick().await;
        let estimate = over(body.len(), || {
            let estimate = *job.estimate.get_or_init(|| request_tokens(&request));
            drop(request);
            estimate
        });
        stream.set_input_estimate(estimate);
        let streaming = job.facts.streaming;
        drop(job);
        if streaming {
            stream.status().await?;
            return Ok(Answer::Stream(stream));
        }
        let body = stream.fold().await?;
        Ok(Answer::Message(Message { body, summary: stream.summary() }))
    }

    /// Everything that can be said about a request before an account is asked.
    fn begin<'b>(
        &self,
        body: &'b Bytes,
        call: Call,
        streaming: Option<bool>,
        request_id: String,
        arrived: Instant,
    ) -> Result<(Box<MessageStream>, Arc<Job>, Request<'b>), Refused> {
        self.open()?;
        let shared = &self.shared;
        self.fits(body)?;
        let request = read_request(body, call.system.as_ref())?;
        let client_model = request.model().to_owned();
        let refuse = |error: Error, model: Option<&Model>| Refused {
            error,
            client_model: Some(client_model.clone()),
            known_model: model.map(|model| model.label().to_owned()),
        };
        let streaming = streaming.unwrap_or_else(|| request.stream());
        let ids = shared.ids(&request, &call);
        let meant = shared.meant(&request, &ids, call.account_id.as_deref());
        let translated = shared
            .translate(&request, &ids, meant.as_ref(), hand::Variation::default(), false)
            .map_err(|error| refuse(error, None))?;
        if !translated.dropped_server_tools.is_empty() {
            tracing::warn!(
                tools = summary::loggable_kinds(&translated.dropped_server_tools),
                "tools that run on Anthropic's side were dropped (M49)"
            );
        }
        shared.tell_passing(&translated.model);
        let Some(permit) = Permit::take(&shared.in_flight, shared.config.max_conns) else {
            let error = Error::new(Code::Overloaded, "too many requests in flight (KIRO_MAX_CONNS)");
            return Err(refuse(error, Some(&translated.model)));
        };
        let written = attempt::Written::of(&translated);
        let pipeline = Pipeline::new(Settings {
            message_id: random_id("msg_"),
            request_id: request_id.clone(),
            model: client_model.clone(),
            thinking: translated.thinking,
            drop_thinking_text: request.display == Some(Display::Omitted),
            tool_names: translated.tool_names,
            window: translated.model.window,
            usage_window: shared.ends.usage_window(&translated.model.kiro_id, translated.model.usage_window()),
            usage_split: shared.config.usage_split,
            input_estimate: 0,
            mode: if streaming { Mode::Stream } else { Mode::Fold },
        });
        let pinned = call.account_id.is_some();
        let job = Arc::new(Job {
            shared: shared.clone(),
            client_body: body.clone(),
            system: call.system.clone(),
            written,
            meant,
            ids,
            has_history: request.has_history(),
            asked: translated.asked,
            client_model,
            request_id,
            client_request_id: call.client_request_id,
            facts: Facts {
                streaming,
                pinned: call.account_id.is_some(),
                record: call.record,
                window: translated.model.window,
            },
            model: translated.model,
            account_id: call.account_id,
            is_fallback: false,
            estimate: OnceLock::new(),
            trace: OnceLock::new(),
            trace_parent: call.trace_parent,
        });
        let recording = shared.dumps.as_ref().map(|dumps| dumps.record(body));
        let trail = Trail::new(&shared.config, pinned, fastrand::Rng::new(), recording);
        let stream = MessageStream::new(shared.clone(), pipeline, job.clone(), trail, permit, arrived);
        Ok((stream, job, request))
    }

    /// The local estimate of `count_tokens` (TU7); nothing is sent anywhere.
    ///
    /// # Errors
    /// The request is too large or not valid, or its model unknown; the gateway is closed.
    pub fn count_tokens(&self, body: &[u8]) -> Result<u64, Error> {
        self.open()?;
        self.fits(body)?;
        over(body.len(), || {
            let request = Request::parse(body, Purpose::CountTokens)?;
            // Everything that a request can be refused for is found by translating it.
            self.shared.translate(&request, &Ids::default(), None, hand::Variation::default(), false)?;
            Ok(request_tokens(&request))
        })
    }

    /// The models of `/v1/models`, newest first; only names that begin with `claude`, unless `KIRO_MODELS_LIST=all`.
    pub fn list_models(&self) -> Vec<ModelInfo> {
        let all = self.shared.config.models_list_all;
        catalogue::shown(&self.shared.models.load(), &self.shared.pool.catalogues(), all)
    }

    /// One model, under the name that was asked for: aliases resolve to themselves (M67).
    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        let found = self.shared.models.load().resolve(name, None).filter(|found| !found.row.passed)?;
        Some(catalogue::shown_as(name, &found.row, &self.shared.pool.catalogues()))
    }

    /// Whether one of the offered client keys is right (M2).
    pub fn check_key<'a>(&self, offered: impl Iterator<Item = &'a str>) -> KeyCheck {
        self.shared.keys.check(offered)
    }

    /// Whether the store was reached and no client key is configured anywhere.
    pub fn is_open(&self) -> bool {
        self.shared.keys.is_open()
    }

    /// Resolves when it is known whether there is a client key.
    pub async fn key_known(&self) {
        while !self.shared.keys.is_known() {
            tokio::time::sleep(FIRST_KEY_INTERVAL).await;
        }
    }

    /// M11, for callers that hold the whole body.
    fn fits(&self, body: &[u8]) -> Result<(), Error> {
        let limit = self.max_request_body();
        if body.len() <= limit {
            return Ok(());
        }
        Err(Error::new(Code::RequestTooLarge, format!("request body is over {limit} bytes")))
    }

    /// Resolves when the store refuses to tell the client key before it was known once: the start has failed then
    /// (R49).
    pub async fn key_refused(&self) -> StoreError {
        while !self.shared.keys.is_known() {
            if let Some(error) = self.shared.keys.refusal() {
                return error.clone();
            }
            tokio::time::sleep(FIRST_KEY_INTERVAL).await;
        }
        std::future::pending().await
    }

    /// `KIRO_MAX_REQUEST_BODY`, bytes.
    pub fn max_request_body(&self) -> usize {
        self.shared.config.max_request_body
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The accounts, from memory, without secrets.
    pub fn accounts(&self) -> Vec<AccountInfo> {
        self.shared.pool.accounts()
    }

    /// Whether calls are taken at all.
    pub(crate) fn open(&self) -> Result<(), Error> {
        if self.shared.closing.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    /// The pool, for callers that need more than [`Gateway::accounts`].
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// The store, for the command line.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// The requests for an answer that run now, the oldest first.
    pub fn open_requests(&self) -> Vec<OpenRequest> {
        let mut open: Vec<OpenRequest> = self.shared.streams.all().iter().map(|slot| slot.seen()).collect();
        open.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
        open
    }

    /// Whether answers are simulated.
    pub fn is_simulated(&self) -> bool {
        self.shared.upstream_word().is_some()
    }

    /// `req_` and 24 characters (M5).
    pub fn new_request_id(&self) -> String {
        random_id("req_")
    }

    /// The caller's own id of a request if it is `[A-Za-z0-9._-]{1,128}`, else a new one.
    pub fn request_id(&self, own: Option<String>) -> String {
        let fits = |id: &String| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        own.filter(fits).unwrap_or_else(|| self.new_request_id())
    }

    /// From memory.
    pub fn health(&self) -> Health {
        let shared = &self.shared;
        let connected = shared.store.status().is_connected();
        let counts = shared.pool.counts();
        let gate = shared.upstream.gate().status();
        let able = shared.pool.able(|view| !shared.is_cut_off(view));
        let serves = able.serving + able.last_resort > 0;
        let can_serve = shared.pool.is_ready() && serves && shared.keys.is_known() && !gate.shut;
        let fine = matches!(shared.store.status(), Status::Connected)
            && able.serving > 0
            && !shared.pool.is_doubtful()
            && gate.refused_for.is_none();
        Health {
            status: if can_serve && fine { "healthy" } else { "degraded" },
            redis: if connected { "connected" } else { "disconnected" },
            accounts: AccountCounts { total: counts.total, healthy: able.serving },
            uptime: shared.began.elapsed().as_secs(),
            version: env!("CARGO_PKG_VERSION"),
            upstream: shared.upstream_word(),
            hosts: shared.hosts().map(|(host, circuit)| (host, circuit.as_str())).collect(),
            client_version: ClientVersion {
                value: shared.config.client_version.clone(),
                refused: gate.refused_for.is_some(),
                since: gate
                    .refused_for
                    .map(|ago| rfc3339(wall_clock() - jiff::SignedDuration::try_from(ago).unwrap_or_default())),
            },
            unsaved_tokens: shared.pool.queued_writes().1,
            journal: match shared.pool.journal_works() {
                None => "off",
                Some(true) => "ok",
                Some(false) => "broken",
            },
            can_serve,
        }
    }

    /// A face turned a request away before the gateway saw it: unknown path, wrong key, body too large. Counts it and
    /// writes its log line. `route` is a word of ours, never what the client wrote.
    pub fn turned_away(&self, route: &'static str, request_id: &str, client_request_id: Option<&str>, status: u16) {
        self.shared.metrics.count_refused(route, status);
        summary::turned_away(route, request_id, client_request_id, status);
    }

    /// Every metric as OpenMetrics text.
    pub fn metrics(&self) -> String {
        let shared = &self.shared;
        let counters = shared.pool.counters();
        let latency = shared.store.latency();
        shared.metrics.text(Scrape {
            in_flight: self.in_flight(),
            waiting: shared.pool.counts().waiting,
            waits: counters.waits.load(Ordering::Relaxed),
            connects: shared.upstream.connects(),
            states: shared.pool.states().to_vec(),
            braked: shared.pool.brake().is_some(),
            account_in_flight: shared.account_in_flight(),
            refreshes: shared.credentials.counters().outcomes().to_vec(),
            snapshots: (counters.snapshots.load(Ordering::Relaxed), counters.snapshot_failures.load(Ordering::Relaxed)),
            redis: Some(latency.observed()),
            redis_errors: latency.errors(),
            redis_connected: shared.store.status().is_connected(),
            queued: shared.pool.queued_writes(),
            tasks: tokio::runtime::Handle::try_current().ok().map(|runtime| runtime.metrics().num_alive_tasks()),
            simulated: self.is_simulated(),
            client_version: shared.config.client_version.clone(),
            hosts: shared.hosts().map(|(host, circuit)| (host, circuit.gauge())).collect(),
            version_refusals: shared.upstream.gate().status().counts,
        })
    }

    /// Resolves when [`Gateway::close`] is called: what would go on for ever ends then.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.closed.clone().cancelled_owned()
    }

    /// No new calls; open streams may finish within `grace`, then each ends with an SSE `error` event; then everything
    /// pending is written. Idempotent.
    pub async fn close(&self, grace: Duration) {
        let shared = &self.shared;
        shared.closing.store(true, Ordering::Release);
        shared.closed.cancel();
        let deadline = now() + grace;
        if !shared.idle_by(deadline).await {
            shared.streams.cut_all();
            if !shared.idle_by(now() + LAST_WORDS).await {
                tracing::warn!(streams = self.in_flight(), "streams that nobody reads are dropped");
            }
        }
        let left = deadline.saturating_duration_since(now()).max(LAST_WORDS);
        shared.credentials.close(left).await;
        let pending = shared.pool.close(left).await;
        if !pending.accounts.is_empty() || !pending.tokens.is_empty() {
            let prefixes = |ids: &[String]| ids.iter().map(|id| short(id).to_owned()).collect::<Vec<_>>().join(",");
            tracing::error!(
                accounts = prefixes(&pending.accounts),
                tokens = prefixes(&pending.tokens),
                "could not be written to the store any more"
            );
        }
    }
}

impl Shared {
    fn hosts(&self) -> impl Iterator<Item = (String, Circuit)> {
        self.upstream.hosts(self.pool.now()).into_iter()
    }

    /// Whether an account of another region may be tried for the client version: at most once a minute (K105).
    fn may_try_other_region(&self) -> bool {
        let mut last = self.other_region.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let may = last.is_none_or(|last| now - last >= Duration::from_secs(60));
        if may {
            *last = Some(now);
        }
        may
    }

    async fn idle_by(&self, deadline: Instant) -> bool {
        while self.in_flight.load(Ordering::Acquire) > 0 {
            if now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Requests in flight by short id; accounts that share one are taken together.
    fn account_in_flight(&self) -> Vec<(String, u32)> {
        let mut all = BTreeMap::<String, u32>::new();
        for account in self.pool.accounts() {
            *all.entry(short(&account.id).to_owned()).or_default() += account.in_flight;
        }
        all.into_iter().collect()
    }

    fn upstream_word(&self) -> Option<&'static str> {
        (self.config.upstream == UpstreamKind::Simulator).then_some("simulator")
    }

    fn report_success(&self, lease: Lease, record: bool) {
        if let Some(discovery) = &self.discovery {
            discovery.used(lease.account().id());
        }
        if record {
            lease.succeeded();
        }
    }

    fn report_fault(&self, lease: Lease, fault: &Fault, record: bool, stood: Stood) {
        let outcome = if record {
            lease.failed(fault, stood)
        } else {
            lease.noted(fault);
            None
        };
        if fault.kind == FaultKind::Unreachable {
            // The log says once that the way is gone.
            return tracing::debug!(account = lease.account().short_id(), "an attempt could not be sent");
        }
        tracing::warn!(
            account = lease.account().short_id(),
            fault = ?fault.kind,
            status = fault.status,
            reason = fault.reason.as_deref(),
            committed = stood.committed,
            recorded = outcome.is_some(),
            "an attempt failed"
        );
    }
}

/// The streams that are open, so that shutdown can reach them. Touched at their beginning and end only.
#[derive(Default)]
struct Streams {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Slot>>>,
}

impl Streams {
    fn add(&self, summary: Arc<SummaryCell>, began: Instant) -> (u64, Arc<Slot>) {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot::new(summary, began));
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(key, slot.clone());
        (key, slot)
    }

    fn remove(&self, key: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    fn cut_all(&self) {
        for slot in self.all() {
            slot.cut();
        }
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// A place among the requests in flight (`KIRO_MAX_CONNS`).
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(in_flight: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let taken = in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1));
        taken.ok().map(|_| Self(in_flight.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Closes upstream connections that were idle for too long, and looks whether ways that rest are open again.
async fn sweep(upstream: Weak<Upstream>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        let Some(upstream) = upstream.upgrade() else { return };
        upstream.sweep();
        upstream.look_at_ways().await;
    }
}

/// Looks at what may change while we run: the client key and the models file.
async fn look_around(shared: Weak<Shared>, mut models_file: Option<ModelsFile>, stop: CancellationToken) {
    loop {
        let pause = {
            let Some(shared) = shared.upgrade() else { return };
            shared.look_for_key().await;
            if let Some(models) = models_file.as_mut().and_then(ModelsFile::look) {
                shared.set_table(models.with_naming(naming(&shared.config)));
            }
            if shared.keys.is_known() { WATCH_INTERVAL } else { FIRST_KEY_INTERVAL }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Shared {
    async fn look_for_key(&self) {
        if !self.keys.asks_store() {
            return;
        }
        match self.store.client_key().await {
            Ok(key) => {
                if self.keys.heard(key.as_ref()) {
                    tracing::info!("the client key was changed");
                }
            }
            Err(error) if error.kind() == StoreErrorKind::Refused && self.keys.refused(&error) => {
                tracing::error!(%error, "the client key could not be read");
            }
            // A store that can't be read, a broken file too, doesn't mean that no key is set (R54, R57).
            Err(error) => tracing::debug!(%error, "the client key could not be read"),
        }
    }
}

/// Which store a configuration names, and how to reach it.
pub fn store_config(config: &Config) -> StoreConfig {
    match &config.store {
        StoreKind::File(path) => StoreConfig::File(path.clone()),
        StoreKind::Redis => StoreConfig::Redis(RedisConfig {
            server: config.redis.clone(),
            key_prefix: config.redis_key_prefix.clone(),
            connections: config.redis_pool_size,
        }),
    }
}

/// What names mean by the settings (TR36, TR38).
fn naming(config: &Config) -> Naming {
    Naming { refuse_unknown: !config.model_unknown_passes, auto: config.model_auto.clone() }
}

fn closed() -> Error {
    Error::new(Code::Closed, "the gateway is closed")
}

fn random_id(prefix: &str) -> String {
    let mut id = String::with_capacity(prefix.len() + 24);
    id.push_str(prefix);
    id.extend((0..24).map(|_| fastrand::alphanumeric()));
    id
}

fn random_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the gateway is where the wall clock enters")]
fn wall_clock() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "the gateway's background tasks; they end with the gateway")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
