//! Starts the pool: its settings out of the configuration, and its tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lease::keep_time;
use super::line::Line;
use super::snapshot::{background, watch_store};
use super::{Counters, Hooks, Inner, Inside, Pool, Settings, tickets};
use crate::config::{Config, DEFAULT_RUNTIME_URL, DEFAULT_UPSTREAM_URL, StoreKind};
use crate::policy::alike::Alike;
use crate::policy::brake::{Brake, PER_MINUTE};
use crate::policy::health::Rules;
use crate::policy::view::Urls;
use crate::store::journal::Journal;
use crate::store::writer::Writer;
use crate::store::{Clock, Store};

/// The least time between two reads of all accounts.
const SHORTEST_CACHE_TTL: Duration = Duration::from_millis(50);

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let cap = config.max_inflight_per_account.unwrap_or(0);
        Self {
            strategy: config.strategy,
            max_in_flight: u32::try_from(cap).unwrap_or(u32::MAX),
            per_minute: config.account_rpm,
            brake: config.suspicion_brake,
            remembered: config.account_rpm.max(if config.suspicion_brake { PER_MINUTE } else { 0 }),
            account_wait: config.account_wait,
            max_waiting: config.max_conns,
            cache_ttl: config.account_cache_ttl.max(SHORTEST_CACHE_TTL),
            rules: Rules { cool_down: config.health_cooldown },
            urls: Arc::new(Urls {
                runtime: config.runtime_url.clone(),
                management: config.management_url.clone(),
                shapes: config.upstream_api,
                pinned: config.upstream_url != DEFAULT_UPSTREAM_URL && config.runtime_url == DEFAULT_RUNTIME_URL,
                generate: config.upstream_url.clone(),
                social_refresh: config.social_refresh_url.clone(),
                idc_refresh: config.idc_refresh_url.clone(),
                external_hosts: config.external_idp_hosts.clone(),
                api_regions: config.api_regions.clone(),
                builder_id_profile: Some(config.builder_id_profile_arn.as_str())
                    .filter(|arn| !arn.is_empty())
                    .map(Arc::from),
                social_profile: Some(config.social_profile_arn.as_str()).filter(|arn| !arn.is_empty()).map(Arc::from),
            }),
            place: match &config.store {
                StoreKind::Redis => format!("{}pools:claude-kiro-oauth", config.redis_key_prefix).into(),
                StoreKind::File(path) | StoreKind::Aiclient(path) => path.to_string_lossy().into(),
            },
            shown: match &config.store {
                StoreKind::Redis => format!("{}pools:claude-kiro-oauth", config.redis_key_prefix).into(),
                StoreKind::File(_) => "the account file".into(),
                StoreKind::Aiclient(_) => "the pool file".into(),
            },
            cure: config.store.cure(),
        }
    }
}

impl Pool {
    /// Starts the pool: a background task reads the store at once and then every `KIRO_ACCOUNT_CACHE_TTL`. Needs a
    /// tokio runtime. [`Pool::first_snapshot`] waits for the first successful read.
    pub fn start(store: Store, config: &Config, clock: Clock, hooks: Hooks) -> Self {
        let stop = CancellationToken::new();
        let pool = Self(Arc::new(Inner {
            state: Mutex::new(Inside {
                loaded: false,
                slots: BTreeMap::new(),
                empty_since: None,
                empty_told: false,
                gone: Vec::new(),
                lent: Arc::default(),
                tickets: tickets::Book::new(),
                alike: Alike::default(),
                brake: Brake::default(),
                brake_told: false,
                line: Line::default(),
                line_due: None,
                rng: fastrand::Rng::new(),
            }),
            waiting: AtomicUsize::new(0),
            line_moved: Arc::default(),
            reading: tokio::sync::Mutex::new(()),
            loaded: watch::Sender::new(false),
            refused: watch::Sender::new(None),
            refill: Arc::default(),
            counter_told: AtomicBool::new(false),
            only_looks: AtomicBool::new(false),
            refresh: Arc::default(),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            _stop_on_drop: stop.clone().drop_guard(),
            writer: Writer::with_journal(
                store.clone(),
                clock.clone(),
                config.state_dir.as_deref().map(|folder| Journal::new(folder, &store.pool_name())),
            ),
            store,
            clock,
            settings: Settings::from(config),
            hooks,
        }));
        // A token that is cancelled before the first poll keeps everything from running.
        let reading = background(Arc::downgrade(&pool.0));
        pool.0.tasks.spawn(stop.clone().run_until_cancelled_owned(reading));
        let (status, writer) = (pool.0.store.watch(), pool.0.writer.clone());
        let watching = watch_store(Arc::downgrade(&pool.0), status, writer);
        let keeping_time = keep_time(Arc::downgrade(&pool.0), pool.0.line_moved.clone());
        pool.0.tasks.spawn(stop.clone().run_until_cancelled_owned(keeping_time));
        pool.0.tasks.spawn(stop.run_until_cancelled_owned(watching));
        pool
    }
}
