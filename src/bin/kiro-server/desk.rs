//! The tools of a command: the store, with pool and credentials like a server's, but at rest.
//!
//! A server's pool reads the store, takes tickets, renews tokens and probes accounts by itself. A command must do only
//! what it was asked for. So pool and credentials are closed before the store is reached and before their tasks have
//! run; from then on only the command's own calls happen. That order needs the runtime with one thread.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kiro_messages::accounts::Intake;
use kiro_messages::config::{Config, StoreKind, UpstreamKind};
use kiro_messages::credentials::Credentials;
use kiro_messages::files;
use kiro_messages::gateway::store_config;
use kiro_messages::pool::{AccountInfo, Hooks, Pool};
use kiro_messages::proto::record::{Account, RECORD, Token, TokenFile};
use kiro_messages::simulator::{self, Attached};
use kiro_messages::store::{RawAccount, Status, Store, StoreError};
use kiro_messages::upstream::Upstream;
use tokio::time::Instant;

use super::output::{CommandFailure, short};

/// How long a store may take to answer. The connect timeout is shorter (R2).
const REACH_WITHIN: Duration = Duration::from_secs(10);
/// How long running refreshes and writes may take at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(20);
/// Least length of a prefix of an id.
pub const MIN_PREFIX: usize = 4;

/// A store with its accounts.
pub struct Desk {
    pub config: Config,
    pub store: Store,
    pub pool: Pool,
    pub credentials: Credentials,
    pub upstream: Arc<Upstream>,
    _simulated: Option<Attached>,
}

/// An account in the store and in the pool.
pub struct DeskAccount {
    pub raw: RawAccount,
    pub info: AccountInfo,
    /// None: the record can't be read.
    pub account: Option<Account>,
    /// None: there is no token record, or it can't be read.
    pub token: Option<Token>,
}

impl Desk {
    /// Prepares everything without connecting to the store.
    pub async fn prepare(mut config: Config) -> Result<Self, CommandFailure> {
        let simulated = match config.upstream {
            UpstreamKind::Kiro => None,
            UpstreamKind::Simulator => {
                let attached = simulator::attach(&mut config).await;
                Some(attached.map_err(|error| CommandFailure::new(format!("the simulated upstream: {error}")))?)
            }
        };
        config.redis_pool_size = 1;
        let upstream = Arc::new(Upstream::new(&config)?);
        let store =
            Store::connect(&store_config(&config)).await.map_err(|error| CommandFailure::usage(error.to_string()))?;
        let pool = Pool::start(store.clone(), &config, Arc::new(Timestamp::now), Hooks::default());
        let credentials = Credentials::start(pool.clone(), upstream.clone(), &config);
        pool.close(Duration::from_secs(1)).await;
        credentials.close(Duration::from_secs(1)).await;
        Ok(Self { config, store, pool, credentials, upstream, _simulated: simulated })
    }

    /// Waits until the store can be used. The first refusal counts, unless `KIRO_STORE_WAIT` gives it longer.
    pub async fn reach(&self) -> Result<(), StoreError> {
        let started = Instant::now();
        let (patient, within) = (self.config.store_wait, REACH_WITHIN.max(self.config.store_wait));
        let mut status = self.store.watch();
        loop {
            let now = status.borrow_and_update().clone();
            let why = match now {
                Status::Connected | Status::WritesRefused(_) => return Ok(()),
                Status::Connecting(why) => why,
                Status::Away(why) => Some(why),
            };
            let limit = if why.is_some() { patient } else { within };
            let left = limit.saturating_sub(started.elapsed());
            if tokio::time::timeout(left, status.changed()).await.is_err() {
                match why {
                    Some(why) => return Err(why),
                    // The next operation says what is wrong.
                    None => return self.store.load().await.map(|_| ()),
                }
            }
        }
    }

    /// Everything, and the store reached.
    pub async fn open(config: Config) -> Result<Self, CommandFailure> {
        let is_named = config.store_said;
        let desk = Self::prepare(config).await?;
        match desk.reach().await {
            Ok(()) => Ok(desk),
            // A newcomer without Redis gets this far first.
            Err(error) if error.is_away() && !is_named => Err(CommandFailure::new(format!(
                "{error}: no store is named, so it was Redis on this machine. Name a file, as in --store file:pool.json or \
                 KIRO_STORE=file:pool.json, or your Redis with REDIS_URL"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// What accounts are brought in with.
    pub fn intake(&self) -> Intake<'_> {
        let Self { config, store, pool, credentials, upstream, .. } = self;
        Intake { config, store, pool, credentials, upstream }
    }

    /// Reads the accounts, sorted by id.
    pub async fn accounts(&self) -> Result<Vec<DeskAccount>, StoreError> {
        let raw = self.store.load().await?;
        self.pool.reload().await?;
        let infos = self.pool.accounts();
        let mut infos: HashMap<_, _> = infos.into_iter().map(|info| (info.id.clone(), info)).collect();
        let entry = |raw: RawAccount| {
            // It was removed between the two reads.
            let info = infos.remove(&*raw.id)?;
            let account = Account::parse(&raw.account, &raw.id).ok();
            let token = raw.token.as_ref().and_then(|(_, record)| Token::parse(record).ok());
            Some(DeskAccount { raw, info, account, token })
        };
        Ok(raw.into_iter().filter_map(entry).collect())
    }

    /// Waits for running refreshes and writes.
    pub async fn close(self) -> Result<(), CommandFailure> {
        self.credentials.close(CLOSE_WITHIN).await;
        let pending = self.pool.flush(Duration::from_secs(5)).await;
        let mut lost: Vec<&str> = pending.accounts.iter().chain(&pending.tokens).map(|id| short(id)).collect();
        lost.sort_unstable();
        lost.dedup();
        if lost.is_empty() {
            return Ok(());
        }
        Err(CommandFailure::new(format!("could not be written to the store: what changed on {}", lost.join(", "))))
    }
}

/// The one account that an id or a unique prefix of at least 4 characters names.
pub fn find<'a>(accounts: &'a [DeskAccount], text: &str) -> Result<&'a DeskAccount, CommandFailure> {
    if let Some(exact) = accounts.iter().find(|entry| entry.raw.id == text) {
        return Ok(exact);
    }
    if text.chars().count() < MIN_PREFIX {
        return Err(CommandFailure::usage(format!(
            "an account is named by its id or at least its first {MIN_PREFIX} characters"
        )));
    }
    let mut found = accounts.iter().filter(|entry| entry.raw.id.starts_with(text));
    match (found.next(), found.count()) {
        (Some(one), 0) => Ok(one),
        (Some(_), more) => {
            Err(CommandFailure::new(format!("{} accounts begin with that; give more characters", more + 1)))
        }
        (None, _) => Err(CommandFailure::new("no such account; `kiro-server accounts list` shows them")),
    }
}

/// Refuses changes that a Kiro token file or the Node.js service's pool file as store can't keep (R67, R104).
pub fn refuse_fixed_store(config: &Config, what: &str) -> Result<(), CommandFailure> {
    match &config.store {
        StoreKind::File(path) if is_token_file(path) => Err(CommandFailure::new(format!(
            "{} is a token file of Kiro and stands for one account, which can't be {what}: its marks live in a server's memory \
             only. Name another store (--store file:PATH, or Redis) and take the file into it with `kiro-server accounts add`",
            path.display()
        ))),
        _ => refuse_service_pool(config, what),
    }
}

/// Refuses changes to accounts that a Node.js service keeps (R104).
pub fn refuse_service_pool(config: &Config, what: &str) -> Result<(), CommandFailure> {
    let StoreKind::Aiclient(path) = &config.store else { return Ok(()) };
    Err(CommandFailure::new(format!(
        "{} is the Node.js service's and is never written: an account can't be {what} here, but in that service (its UI, or \
         its files while it is stopped)",
        path.display()
    )))
}

/// Whether the file holds one Kiro token instead of a pool. One that isn't there or can't be read holds none.
pub fn is_token_file(path: &Path) -> bool {
    // A longer file is no token file.
    files::read(path, RECORD.bytes as u64 + 1).is_ok_and(|text| matches!(TokenFile::parse(&text), Ok(Some(_))))
}
