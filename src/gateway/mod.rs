//! One request from start to end: parse → select → send → retry until the commit → drive the pipeline → report.
//!
//! Both faces share a [`Gateway`]. Its life: [`Gateway::start`], any number of [`Gateway::stream`] and
//! [`Gateway::create`], [`Gateway::close`]. Two gateways in one process share nothing.
//!
//! # Cancel safety
//! Dropping the future of a call, or the [`MessageStream`] it gave, drops the upstream request within the same moment:
//! the connection is closed, the in-flight places are free, the account's health is untouched (K50, K70).

mod account;
mod account_attempts;
mod attempt;
mod background;
mod begin;
mod bodies;
mod budget;
mod call;
mod catalogue;
mod conversations;
mod credits;
mod dump;
mod ends;
mod heavy;
mod job;
mod keys;
#[cfg(test)]
#[path = "../../tests/support/log.rs"]
mod log;
mod models;
mod open;
mod open_streams;
mod outside;
mod pictures;
mod rounds;
mod search;
mod shapes;
mod shared;
mod status;
mod stream;
mod structured;
mod summary;
mod trace;
mod translation;
mod turns;
mod webhook;
mod witness;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use background::{naming, sweep, watch_keys_and_models};
pub use bodies::Body;
use bodies::RequestMemory;
pub use call::{Call, Leniency, client_key_hash};
pub use catalogue::ModelInfo;
use conversations::{Conversations, learn_secret};
use dump::Dumps;
use ends::AnswerEnds;
use heavy::{LONG, run_heavy};
pub use keys::{KeyCheck, KeyHolder, KeyLimit, KeyPlace, KeyStatus, NamedKey};
use keys::{Keys, KeysFile};
use models::ModelsFile;
use open_streams::OpenStreams;
pub use open_streams::{Cutter, OpenRequest};
use outside::{now, random_id, spawn};
use search::Searches;
pub use shared::Gateway;
use shared::Shared;
pub use status::{AccountCounts, AccountStatus, ClientVersion, GatewayStatus, Health};
use stream::held_budget;
pub use stream::{FoldedMessage, MessageStream};
use structured::check_of;
pub use summary::{LoggedRequest, RequestOutcome, Summary, SummaryCell};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use turns::{Turns, ask_in_turn};
pub use webhook::Webhook;

use crate::accounts::Intake;
use crate::config::{Config, StoreKind, is_below_floor};
use crate::credentials::Credentials;
use crate::error::{Code, Error};
use crate::memory::{self, give_back_when_quiet};
use crate::metrics::{Metrics, memory_allowed};
use crate::pool::{AccountInfo, Hooks, Pool, Wanted};
use crate::proto::kiro::client_identity;
use crate::proto::messages::request::Purpose;
use crate::proto::translate::edits::edit;
use crate::proto::translate::estimate::request_tokens;
use crate::proto::translate::model::Models;
use crate::proto::translate::request::resolve_model;
use crate::store::{Clock, Pending, RedisConfig, Status, Store, StoreConfig, StoreError};
use crate::upstream::Upstream;

/// The time in which streams write their `error` event after the grace time, here and in the faces.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a start that waits for the snapshot waits for the client keys beyond it.
const KEYS_WAIT: Duration = Duration::from_millis(500);

/// The target of the spans that feature `otel` makes.
#[cfg(feature = "otel")]
pub const TRACE_TARGET: &str = trace::TARGET;

/// The answer to a request, in the form it asked for.
pub enum Answer {
    /// `stream: true`.
    Stream(Box<MessageStream>),
    /// `stream` absent or false.
    Message(FoldedMessage),
}

impl Answer {
    /// The facts of the request.
    pub fn summary(&self) -> Arc<SummaryCell> {
        match self {
            Self::Stream(stream) => stream.summary(),
            Self::Message(message) => message.summary.clone(),
        }
    }
}

/// The estimate of a request (TU7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// Tokens, after the edits of `context_management`.
    pub input_tokens: u64,
    /// Tokens before them; none without `context_management` (M77).
    pub original: Option<u64>,
}

impl TokenCount {
    /// The answer of `count_tokens`.
    pub fn json(self) -> serde_json::Value {
        let mut answer = serde_json::json!({ "input_tokens": self.input_tokens });
        if let Some(original) = self.original {
            answer["context_management"] = serde_json::json!({ "original_input_tokens": original });
        }
        answer
    }
}

/// Asks the accounts that are used for their models and for their usage.
fn ask_used_accounts(shared: &Arc<Shared>, stop: &CancellationToken) {
    let weak = Arc::downgrade(shared);
    if let Some(turns) = shared.discovery.clone() {
        let weak = weak.clone();
        spawn(ask_in_turn(turns, stop.clone(), move |id| catalogue::ask(weak.clone(), id)));
    }
    if let Some(turns) = shared.usage.clone() {
        spawn(ask_in_turn(turns, stop.clone(), move |id| credits::ask(weak.clone(), id)));
    }
}

impl Gateway {
    /// Connects the store, takes the first snapshot, builds the upstream client.
    ///
    /// With `KIRO_STORE_WAIT` 0 it returns at once, and calls fail with [`Code::StoreUnavailable`] until the snapshot
    /// is there (R54).
    ///
    /// # Errors
    /// [`Code::Config`] when the configuration can't work, also when the store refuses us (R49);
    /// [`Code::StoreUnavailable`] when there is no snapshot in time.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, Self::wall_clock(), Hooks::default()).await
    }

    /// As [`Gateway::start`], with the caller's clock (tests own the time) and hooks for what happens to accounts.
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
        // A folder that can't be written is named before a token needs it (R51).
        pool.try_journal().await;
        let credentials = Credentials::start(pool.clone(), upstream.clone(), &config);
        let keys = Keys::new(&config);
        let keys_file = match config.api_keys_file.as_deref().map(KeysFile::open).transpose()? {
            Some((file, named)) => {
                keys.set_file(named);
                Some(file)
            }
            None => None,
        };
        let conversations = Arc::new(Conversations::new(&config, store.clone(), pool.clone()));
        let searches = Searches::new(&config, pool.clone(), credentials.clone(), upstream.clone());
        let turns = |pace| Arc::new(Turns::new(pace));
        let discovery = config.model_discovery.then(|| turns(catalogue::PACE));
        let every = config.usage_interval;
        let usage = (!every.is_zero()).then(|| turns(credits::pace(every)));
        let shared = Arc::new(Shared {
            store,
            pool,
            credentials,
            upstream,
            table: Mutex::new(models.clone()),
            models: ArcSwap::from_pointee(models),
            discovery,
            usage,
            names: Mutex::default(),
            keys,
            conversations,
            metrics: Metrics::new(),
            ends: AnswerEnds::default(),
            dumps,
            answers: held_budget(),
            requests: RequestMemory::new(request_memory(&config), config.body_timeout),
            heavy_places: Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from).max(2)),
            in_flight: Arc::default(),
            streams: OpenStreams::default(),
            searches,
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
            began: now(),
            picture_places: Arc::new(Semaphore::new(pictures::AT_A_TIME)),
            other_region: Mutex::default(),
            config,
        });
        let stop = CancellationToken::new();
        spawn(watch_keys_and_models(Arc::downgrade(&shared), keys_file, models_file, stop.clone()));
        ask_used_accounts(&shared, &stop);
        if shared.config.id_secret.is_none() {
            let learning = stop.clone().run_until_cancelled_owned(learn_secret(Arc::downgrade(&shared.conversations)));
            spawn(async move { learning.await.unwrap_or_default() });
        }
        if let Some(webhook) = Webhook::of(&shared.config, &shared.upstream)? {
            spawn(webhook::watch(Arc::downgrade(&shared), webhook, stop.clone()));
        }
        let giving_back = stop.clone().run_until_cancelled_owned(give_back_when_quiet());
        spawn(async move { giving_back.await.unwrap_or_default() });
        spawn(sweep(Arc::downgrade(&shared), shared.upstream.clone(), stop.clone()));
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

    /// The system's clock, for [`Gateway::start_with`].
    pub fn wall_clock() -> Clock {
        Arc::new(outside::wall_clock)
    }

    async fn wait_for_snapshot(&self) -> Result<(), Error> {
        let wait = self.shared.config.store_wait;
        if wait.is_zero() {
            return Ok(());
        }
        tokio::select! {
            taken = tokio::time::timeout(wait, self.shared.pool.first_snapshot()) => {
                if taken.is_ok() {
                    // They come with it. One that the store doesn't show keeps nobody waiting.
                    tokio::time::timeout(KEYS_WAIT, self.key_known()).await.unwrap_or_default();
                    return Ok(());
                }
            }
            refused = self.shared.pool.refused() => return Err(Error::new(Code::Config, refused.to_string())),
        }
        let why = match self.shared.store.status() {
            Status::Connecting(Some(error)) | Status::Away(error) | Status::WritesRefused(error) => error.to_string(),
            _ => "no answer yet".to_owned(),
        };
        let named = match self.shared.config.store {
            StoreKind::Redis => format!(
                " Redis is looked for at {}: REDIS_URL names another one, KIRO_STORE=file:PATH does without",
                self.shared.config.redis.shown()
            ),
            _ => String::new(),
        };
        Err(Error::new(
            Code::StoreUnavailable,
            format!("the store could not be reached within {wait:?}: {why}.{named}"),
        ))
    }

    /// Answers a request in the form that it asks for (`stream`).
    ///
    /// # Errors
    /// Everything that can be known before the first event, and for a folded answer everything.
    pub async fn messages(&self, body: Body, call: Call) -> Result<Answer, Error> {
        let mut stream = self.run(body, call, None).await?;
        if stream.is_streamed() {
            stream.status().await?;
            return Ok(Answer::Stream(stream));
        }
        Ok(Answer::Message(stream.message().await?))
    }

    /// Streams an answer, whatever `stream` says. Resolves when the status is known: at the first upstream event, or
    /// after `KIRO_EARLY_HEADERS`. Until then it fails over silently.
    ///
    /// # Errors
    /// Everything that can be known before the first event.
    pub fn stream(
        &self,
        body: Body,
        call: Call,
    ) -> impl Future<Output = Result<Box<MessageStream>, Error>> + Send + 'static {
        let gateway = self.clone();
        async move {
            let mut stream = gateway.run(body, call, Some(true)).await?;
            stream.status().await?;
            Ok(stream)
        }
    }

    /// The folded answer, whatever `stream` says.
    ///
    /// # Errors
    /// Any failure, also after content has begun.
    pub fn create(
        &self,
        body: Body,
        call: Call,
    ) -> impl Future<Output = Result<FoldedMessage, Error>> + Send + 'static {
        let gateway = self.clone();
        async move { gateway.run(body, call, Some(false)).await?.message().await }
    }

    /// Sends a request, and counts its tokens. `streaming`: instead of what the request asks for.
    async fn run(&self, body: Body, call: Call, streaming: Option<bool>) -> Result<Box<MessageStream>, Error> {
        let arrived = now();
        let request_id = self.request_id(call.request_id.clone());
        let client_request_id = call.client_request_id.clone();
        let key = call.key_place.clone();
        self.shared.conversations.settled().await;
        let place = self.heavy_place(body.bytes().len()).await;
        let bytes = body.bytes();
        let begun = run_heavy(bytes.len(), || self.begin(bytes, call, streaming, request_id.clone(), arrived));
        let (mut stream, job, request) = begun.map_err(|refused| {
            let told = LoggedRequest {
                request_id: &request_id,
                client_request_id: client_request_id.as_deref(),
                key: key.as_deref().map(|place| &**place.name()),
            };
            let Shared { metrics, dumps, .. } = &*self.shared;
            let upstream = self.shared.upstream_word();
            refused.conclude(metrics, dumps.as_ref(), upstream, bytes, told, arrived.elapsed())
        })?;
        // The request goes out first; its tokens are counted while upstream thinks (TU7).
        stream.kick().await;
        let estimate = run_heavy(bytes.len(), || {
            let estimate = *job.estimate.get_or_init(|| request_tokens(&request));
            drop(request);
            if bytes.len() >= LONG {
                memory::give_back_now();
            }
            estimate
        });
        stream.set_input_estimate(estimate);
        drop(place);
        // The next round's request holds the body once more (TS33).
        if !stream.has_rounds() {
            body.translated(job.written.body.copied(bytes));
        }
        Ok(stream)
    }

    /// A request is coming in whose body takes a while: the connection that it probably needs is opened meanwhile (K143).
    pub(crate) fn expects_request(&self) {
        let pool = &self.shared.pool;
        self.shared.upstream.expects(|| {
            let view = pool.account(&pool.candidate(&Wanted::default())?)?;
            let region = view.region();
            let shape = *view.shapes(region).first()?;
            let proxy = view.proxy_url().map(|url| url.expose().to_owned());
            Some((view.chat_url(shape, region).to_string(), proxy))
        });
    }

    /// A place for work over a long body; none for a short one.
    async fn heavy_place(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        if bytes < LONG {
            return None;
        }
        // It is never closed.
        self.shared.heavy_places.acquire().await.ok()
    }

    /// Where the bodies of requests are read into.
    pub(crate) fn request_memory(&self) -> &RequestMemory {
        &self.shared.requests
    }

    /// The local estimate of `count_tokens` (TU7); nothing is sent anywhere.
    ///
    /// # Errors
    /// The request is too large or not valid, or its model unknown; the gateway is closed.
    pub fn count_tokens(&self, body: &[u8]) -> Result<TokenCount, Error> {
        self.count_tokens_for(body, &Leniency::default())
    }

    /// The same in turn with other long bodies.
    pub(crate) async fn count_in_turn(&self, body: &Body, lenient: &Leniency) -> Result<TokenCount, Error> {
        let _place = self.heavy_place(body.bytes().len()).await;
        self.count_tokens_for(body.bytes(), lenient)
    }

    /// The same for the clients of a host program.
    ///
    /// # Errors
    /// As [`Gateway::count_tokens`].
    pub fn count_tokens_for(&self, body: &[u8], lenient: &Leniency) -> Result<TokenCount, Error> {
        self.open()?;
        self.fits(body)?;
        run_heavy(body.len(), || {
            let mut request = self.shared.parse(body, lenient, Purpose::CountTokens)?;
            let original = request.has_edits().then(|| request_tokens(&request));
            edit(&mut request);
            // What else would refuse it as a message (M65): its model's name (TR6), its schema (TR62).
            let models = self.shared.models_for(request.model(), false);
            resolve_model(&request, &models, self.shared.fallback(lenient))?;
            check_of(&request)?;
            Ok(TokenCount { input_tokens: request_tokens(&request), original })
        })
    }

    /// `KIRO_MAX_REQUEST_BODY`, bytes.
    pub fn max_request_body(&self) -> usize {
        self.shared.config.max_request_body
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Whether one of the offered client keys is right (M2).
    pub fn check_key<'a>(&self, offered: impl Iterator<Item = &'a str>) -> KeyCheck {
        self.shared.keys.check(offered, || self.shared.pool.now())
    }

    /// Takes a place for a request for an answer under a named key's limits, and counts it (M88).
    ///
    /// # Errors
    /// A limit is reached.
    pub fn enter(&self, key: &Arc<NamedKey>) -> Result<KeyPlace, KeyLimit> {
        let entered = key.enter(now() - self.shared.began);
        self.shared.metrics.count_client_key(key.name(), entered.as_ref().err().map(|limit| limit.which));
        entered
    }

    /// Whether the store was reached and no client key is configured anywhere.
    pub fn is_open(&self) -> bool {
        self.shared.keys.is_open()
    }

    /// Why the store's client key isn't known although the store can be reached: the file, and what is wrong.
    pub fn key_problem(&self) -> Option<String> {
        self.shared.keys.problem()
    }

    /// Resolves when it is known whether there is a client key.
    pub async fn key_known(&self) {
        self.shared.keys.known().await;
    }

    /// Resolves when the store refuses to show the client key and none is known yet: the start has failed then (R49).
    pub async fn key_refused(&self) -> StoreError {
        self.shared.keys.when_refused().await
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// The running requests for an answer, the oldest first.
    pub fn open_requests(&self) -> Vec<OpenRequest> {
        self.shared.streams.seen()
    }

    /// The accounts, from memory, without secrets.
    pub fn accounts(&self) -> Vec<AccountInfo> {
        self.shared.pool.accounts()
    }

    /// The pool, for callers that need more than [`Gateway::accounts`].
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// What accounts are brought in with while the gateway runs. They serve with the next snapshot.
    ///
    /// # Errors
    /// The gateway is closed.
    pub fn intake(&self) -> Result<Intake<'_>, Error> {
        self.open()?;
        let Shared { config, store, pool, credentials, upstream, .. } = &*self.shared;
        Ok(Intake { config, store, pool, credentials, upstream })
    }

    /// The store, for the command line.
    pub fn store(&self) -> &Store {
        &self.shared.store
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

    /// A face turned a request away before the gateway saw it: unknown path, wrong key, body too large. Counts it and
    /// writes its log line. `route` is a word of ours, never what the client wrote.
    pub fn turned_away(&self, route: &'static str, told: LoggedRequest<'_>, status: u16) {
        self.shared.metrics.count_refused(route, status);
        summary::turned_away(route, told, status);
    }

    /// Resolves when [`Gateway::close`] is called, for tasks that never end by themselves.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.closed.clone().cancelled_owned()
    }

    /// No new calls; open streams may finish within `grace`, then each ends with an SSE `error` event; then everything
    /// pending is written. Returns what could not be. Idempotent.
    pub async fn close(&self, grace: Duration) -> Pending {
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
        let left = || deadline.saturating_duration_since(now()).max(LAST_WORDS);
        shared.credentials.close(left()).await;
        // The pool's writer says what it could not write (R33).
        shared.pool.close(left()).await
    }
}

impl Shared {
    async fn idle_by(&self, deadline: Instant) -> bool {
        while self.in_flight.load(Ordering::Acquire) > 0 {
            if now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

/// Which store a configuration names, and how to reach it.
pub fn store_config(config: &Config) -> StoreConfig {
    let named = match &config.store {
        StoreKind::File(path) => StoreConfig::File(path.clone()),
        StoreKind::Aiclient(path) => StoreConfig::Aiclient(path.clone()),
        StoreKind::Redis => StoreConfig::Redis(RedisConfig {
            server: config.redis.clone(),
            key_prefix: config.redis_key_prefix.clone(),
            connections: config.redis_pool_size,
        }),
    };
    if config.store_only_read { StoreConfig::Simulated(Box::new(named)) } else { named }
}

/// `KIRO_MAX_REQUEST_MEMORY`, else a quarter of what this process may take.
fn request_memory(config: &Config) -> usize {
    /// Where the system doesn't say what there is.
    const UNKNOWN: u64 = 1 << 30;
    let a_quarter = || usize::try_from(memory_allowed().unwrap_or(UNKNOWN) / 4).unwrap_or(usize::MAX);
    config.max_request_memory.unwrap_or_else(a_quarter)
}
