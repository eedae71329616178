//! Conversations: their ids, their accounts, and the makers of their thoughts (R101–R103, TR44, TR48, K130).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::call::Call;
use super::outside::{random_uuid, spawn};
use crate::config::{Config, StoreKind};
use crate::policy::affinity::{Affinity, Turn};
use crate::policy::select::Strategy;
use crate::pool::{AccountId, Pool};
use crate::proto::messages::request::Request;
use crate::proto::translate::ids::{ClientContext, ConversationKey, IdContext, IdSecret, Ids, ids, signatures};
use crate::proto::translate::request::Replay;
use crate::store::Store;

/// How long a request waits for another process's note of a home (R102).
const STORE_WAIT: Duration = Duration::from_millis(20);
/// How long requests right after the start wait for the secret of the ids.
const SECRET_WAIT: Duration = Duration::from_millis(100);
/// Pauses before the store is asked again for the secret of the ids: short ones right after the start, while it
/// connects.
const SECRET_SOON: Duration = Duration::from_millis(20);
const SECRET_AGAIN: Duration = Duration::from_secs(1);

/// This process's memory of conversations.
pub(super) struct Conversations {
    store: Store,
    pool: Pool,
    memory: Mutex<Affinity>,
    /// The secret of R103; a random one until the store's is read.
    secret: ArcSwap<IdSecret>,
    /// Whether the secret is settled: the store was asked once, or needn't be.
    settled: watch::Sender<bool>,
    /// `KIRO_AFFINITY=conversation`; off under the strategy `sticky`, which keeps accounts by itself.
    stay: bool,
    /// `KIRO_CONVERSATION_ID=derive`.
    derive: bool,
    /// Homes are noted for other processes. A file store belongs to this process alone.
    shares: bool,
}

impl Conversations {
    pub(super) fn new(config: &Config, store: Store, pool: Pool) -> Self {
        let secret = match &config.id_secret {
            Some(secret) => IdSecret::of_text(secret.expose()),
            None => IdSecret::of_text(&random_secret()),
        };
        Self {
            store,
            pool,
            memory: Mutex::default(),
            secret: ArcSwap::from_pointee(secret),
            settled: watch::Sender::new(config.id_secret.is_some()),
            stay: config.affinity && config.strategy != Strategy::Sticky,
            derive: config.derive_conversation_id,
            shares: matches!(config.store, StoreKind::Redis),
        }
    }

    /// Waits until the secret of the ids is settled: only right after the start, and at most [`SECRET_WAIT`].
    pub(super) async fn settled(&self) {
        if !*self.settled.borrow() {
            let mut settled = self.settled.subscribe();
            // The ids of a request that comes too early change once.
            let _late = tokio::time::timeout(SECRET_WAIT, settled.wait_for(|settled| *settled)).await;
        }
    }

    /// The ids of a request (TR48, TR49, R101).
    pub(super) fn ids(&self, request: &Request<'_>, call: &Call) -> Ids {
        let random = (!self.derive).then(|| [random_uuid(), random_uuid()]);
        let caller = ClientContext {
            session: call.session.as_deref(),
            gateway_session: call.gateway_session.as_deref(),
            key: call.client_key,
        };
        let random = random.as_ref().map(|ids| ids.each_ref().map(String::as_str));
        ids(request, &IdContext { secret: &self.secret.load(), caller, random })
    }

    /// The account for which the reasoning of a request is written (TR45): a pinned one, the conversation's home, else
    /// the maker of its last thought.
    pub(super) fn meant(&self, request: &Request<'_>, ids: &Ids, pinned: Option<&str>) -> Option<AccountId> {
        let now = self.pool.now();
        let memory = self.memory();
        let home = || memory.accounts(&ids.key.0, now).first().cloned();
        pinned.map(AccountId::from).or_else(home).or_else(|| memory.maker(signatures(request), now).cloned())
    }

    /// The accounts that a conversation's turn prefers: its home, then former ones (R101).
    pub(super) fn homes(&self, key: &ConversationKey) -> Vec<AccountId> {
        if !self.stay {
            return Vec::new();
        }
        self.memory().accounts(&key.0, self.pool.now()).to_vec()
    }

    /// The home of a conversation that this process doesn't know, as another process has noted it (R102). Takes 20 ms
    /// at most.
    pub(super) async fn home_elsewhere(&self, key: &ConversationKey) -> Option<AccountId> {
        if !self.stay {
            return None;
        }
        let asked = tokio::time::timeout(STORE_WAIT, self.store.home(&key.to_string())).await;
        let home = AccountId::from(asked.ok()?.ok()??);
        // An account that was removed meanwhile isn't a home.
        self.pool.account(&home)?;
        self.memory().learned(key.0, home.clone(), self.pool.now());
        Some(home)
    }

    /// A turn got its first content from an account. `passing`: only a limit kept it from its home.
    pub(super) fn took_turn(&self, key: &ConversationKey, account: &AccountId, passing: bool) -> Option<Turn> {
        if !self.stay {
            return None;
        }
        let (turn, share) = self.memory().turn(key.0, account, passing, self.pool.now());
        if share && self.shares {
            let (store, key, account) = (self.store.clone(), key.to_string(), account.clone());
            spawn(async move {
                if let Err(error) = store.keep_home(&key, &account).await {
                    tracing::debug!(%error, "a conversation's account was not noted");
                }
            });
        }
        Some(turn)
    }

    /// Remembers the signatures of an account's good answer (TR44).
    pub(super) fn made(&self, signatures: &[u64], account: &AccountId, kiro_id: &str) {
        if !signatures.is_empty() {
            self.memory().made(signatures, account, &kiro_id.into(), self.pool.now());
        }
    }

    /// Upstream refused the signatures of a conversation (K130).
    pub(super) fn signatures_refused(&self, key: &ConversationKey) {
        self.memory().refused(key.0, self.pool.now());
    }

    /// Runs `work` with the rule for replays to this account (TR44).
    pub(super) fn with_replay<T>(
        &self,
        key: &ConversationKey,
        account: Option<&AccountId>,
        work: impl FnOnce(Replay<'_>) -> T,
    ) -> T {
        let Some(account) = account else { return work(Replay::Nothing) };
        let now = self.pool.now();
        let may = |kiro_id: &str, signature: u64| self.memory().may_replay(&key.0, account, kiro_id, signature, now);
        work(Replay::Those(&may))
    }

    fn memory(&self) -> MutexGuard<'_, Affinity> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 64 hex digits of which 244 bits are random.
fn random_secret() -> String {
    [random_uuid(), random_uuid()].concat().replace('-', "")
}

/// Asks the store for the secret of the ids until it answers (R103).
pub(super) async fn learn_secret(conversations: Weak<Conversations>) {
    let fresh = random_secret();
    for asked in 0_u32.. {
        let Some(store) = conversations.upgrade().map(|conversations| conversations.store.clone()) else { return };
        let told = store.id_secret(&fresh).await;
        let Some(conversations) = conversations.upgrade() else { return };
        if let Ok(secret) = &told {
            conversations.secret.store(Arc::new(IdSecret::of_text(secret.expose())));
        }
        let is_early = asked < 50;
        if told.is_ok() || !is_early {
            conversations.settled.send_replace(true);
        }
        match told {
            Ok(_) => return,
            Err(error) if asked == 50 => {
                tracing::warn!(%error, "the store gives no secret for derived ids: ids change")
            }
            Err(_) => {}
        }
        drop((store, conversations));
        tokio::time::sleep(if is_early { SECRET_SOON } else { SECRET_AGAIN }).await;
    }
}
