//! The store's content, read in the background and taken in as a whole (R14), and when an empty pool is believed (R55).

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{AccountId, Inner, Inside, Pool, PoolEvent, PoolSlot, Settings, short, tickets};
use crate::policy::later;
use crate::program;
use crate::proto::record::{Account, TokenKey, Unusable};
use crate::store::{RawAccount, Status, StoreError, StoreErrorKind, UnsavedToken, Writer};

/// How often an empty pool is polled, for [`EMPTY_LOOK_FOR`] (R55).
pub(super) const EMPTY_LOOK_EVERY: Duration = Duration::from_millis(250);
const EMPTY_LOOK_FOR: Duration = Duration::from_secs(2);
/// When an empty pool is believed (R55).
const EMPTY_BELIEVED: Duration = Duration::from_secs(60);
/// Removed accounts of one snapshot whose token records are read.
const MOST_GONE: usize = 100;
/// The pause after a failed read; a store that is back is read at once (R53).
const RETRY_READ: Duration = Duration::from_secs(1);
/// How long a mark that the host program writes for us outweighs a snapshot (R18, R35).
pub(super) const HOST_WRITES_WITHIN: Duration = Duration::from_secs(2);
/// The pause before the next block after an unusable counter (R36).
const COUNTER_PAUSE: Duration = Duration::from_secs(60);
/// How long the event for the end of an outage waits for the pending writes (R53).
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(2);

impl Pool {
    /// Resolves with the first snapshot (R54).
    pub async fn first_snapshot(&self) {
        let mut loaded = self.0.loaded.subscribe();
        // The sender lives as long as `self`.
        if loaded.wait_for(|loaded| *loaded).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the first snapshot has come.
    pub fn is_ready(&self) -> bool {
        *self.0.loaded.borrow()
    }

    /// Whether the store's pool reads empty and that isn't believed yet (R55): `degraded`.
    pub fn is_doubtful(&self) -> bool {
        self.inside().empty_since.is_some()
    }

    /// Reads the store now, beside the background task's reads. One read at a time.
    ///
    /// # Errors
    /// The store is away or broken; the old snapshot stays.
    pub async fn reload(&self) -> Result<(), StoreError> {
        let _one = self.0.reading.lock().await;
        let since = Instant::now();
        match self.0.store.load().await {
            Ok(accounts) => {
                self.0.counters.snapshots.fetch_add(1, Ordering::Relaxed);
                let starts_empty = accounts.is_empty() && !self.is_ready();
                let gone = std::mem::take(&mut self.inside().gone);
                self.take_in(accounts, since);
                self.tell_of_orphans(gone).await;
                if starts_empty {
                    self.tell_of_an_empty_start().await;
                }
                Ok(())
            }
            Err(error) => {
                self.0.counters.snapshot_failures.fetch_add(1, Ordering::Relaxed);
                if error.kind() == StoreErrorKind::Refused {
                    self.0.refused.send_replace(Some(error.clone()));
                }
                if error.is_away() {
                    // A failed read interrupts the minute of empty reads (R55).
                    self.inside().empty_since = None;
                }
                Err(error)
            }
        }
    }

    /// Resolves when the store refuses us (NOAUTH, WRONGPASS, NOPERM) before the first snapshot: the start has failed
    /// (R49). Pending for ever after the first snapshot.
    pub async fn refused(&self) -> StoreError {
        let (mut status, mut reads) = (self.0.store.watch(), self.0.refused.subscribe());
        loop {
            if self.is_ready() {
                return std::future::pending().await;
            }
            let connecting = match &*status.borrow_and_update() {
                Status::Connecting(Some(error)) if error.kind() == StoreErrorKind::Refused => Some(error.clone()),
                _ => None,
            };
            if let Some(error) = connecting.or_else(|| reads.borrow_and_update().clone()) {
                return error;
            }
            tokio::select! {
                Ok(()) = status.changed() => {}
                Ok(()) = reads.changed() => {}
                () = self.first_snapshot() => {}
            }
        }
    }

    /// Accounts that the last snapshot missed, and whose token records are still there: a program that removes an
    /// account on purpose removes both (R106). A snapshot later, so that a removal that is under way is over.
    async fn tell_of_orphans(&self, gone: Vec<(AccountId, TokenKey)>) {
        if !self.0.store.removes_tokens() {
            return;
        }
        let mut orphans = Vec::new();
        for (id, key) in gone {
            let is_there = self.0.store.read_token(&key, self.now()).await.is_ok_and(|token| token.is_some());
            if is_there && !self.inside().slots.contains_key(&id) {
                orphans.push(short(&id).to_owned());
            }
        }
        if !orphans.is_empty() {
            tracing::warn!(
                accounts = orphans.join(" "),
                "removed from the pool, but their token records are still there: a program that keeps the pool in memory may \
                 have written it back without them. Let it reload its pool, then `{} accounts restore`",
                program::command()
            );
        }
    }

    async fn tell_of_an_empty_start(&self) {
        let Settings { place, cure, .. } = &self.0.settings;
        tracing::warn!(place = &**place, "there are no accounts; {}", program::said(cure));
        // The Node.js service takes its prefix only from its own configuration (R1).
        if let Ok(Some(elsewhere)) = self.0.store.pool_under_default_prefix().await {
            tracing::warn!(elsewhere, "there are accounts under the default prefix: look at REDIS_KEY_PREFIX");
        }
    }

    /// Takes in the store's content as a whole (R14). Changed records are parsed before the lock is taken.
    pub(super) fn take_in(&self, accounts: Vec<RawAccount>, since: Instant) {
        let now = self.now();
        let known: HashMap<AccountId, Bytes> =
            self.inside().slots.iter().map(|(id, slot)| (id.clone(), slot.account.record.clone())).collect();
        let parse = |raw: &RawAccount| match known.get(raw.id.as_str()) {
            Some(record) if *record == raw.account => None,
            _ => Some(Account::parse(&raw.account, &raw.id)),
        };
        let accounts: Vec<_> = accounts.into_iter().map(|raw| (parse(&raw), raw)).collect();
        let mut tokens = Vec::new();
        let mut inside = self.inside();
        if accounts.is_empty() && !inside.slots.is_empty() {
            let empty_since = *inside.empty_since.get_or_insert(now);
            // A mere rewrite of the pool is over by then and needs no log line.
            if later(empty_since, EMPTY_LOOK_FOR) <= now && !std::mem::replace(&mut inside.empty_told, true) {
                tracing::warn!("the pool reads empty; the last snapshot serves on until that is certain");
            }
            if later(empty_since, EMPTY_BELIEVED) > now {
                return;
            }
            tracing::error!("the pool is empty");
        } else if inside.empty_told {
            tracing::info!("the pool is back");
        }
        inside.empty_told = false;
        inside.empty_since = None;
        let mut before = std::mem::take(&mut inside.slots);
        for (parsed, raw) in accounts {
            let (id, slot) = match before.remove_entry(raw.id.as_str()) {
                Some((id, slot)) => (id, slot),
                None => {
                    let id = AccountId::from(raw.id.as_str());
                    let mut slot = PoolSlot::new(&id, &self.0.settings, now);
                    slot.account.lent_to_all = inside.lent.clone();
                    (id, slot)
                }
            };
            inside.slots.insert(id, slot);
            let Inside { slots, rng, .. } = &mut *inside;
            let Some(slot) = slots.get_mut(raw.id.as_str()) else { continue };
            if let Some(unsaved) = slot.take_in(raw, parsed, since, &self.0, now, rng) {
                tokens.push((slot.account.view.id.clone(), unsaved));
            }
        }
        inside.gone =
            before.into_iter().map(|(id, slot)| (id, slot.account.credential.key().clone())).take(MOST_GONE).collect();
        if self.0.settings.brake {
            let Inside { slots, brake, .. } = &mut *inside;
            let turned = slots
                .values_mut()
                .filter_map(|slot| Some((slot.account.turned_suspicious()?, slot.account.view.id.clone())));
            let mut turned: Vec<_> = turned.collect();
            turned.sort();
            turned.iter().for_each(|(at, id)| brake.turned(id, *at, now));
        }
        self.brake_in(&mut inside, now);
        inside.loaded = true;
        drop(inside);
        if self.0.only_looks.load(Ordering::Relaxed) {
            tokens.clear();
        }
        for (id, unsaved) in tokens {
            self.0.counters.tokens_written_back.fetch_add(1, Ordering::Relaxed);
            // Not at each read while the store takes no writes.
            if !self.0.writer.token_waits(&id) {
                tracing::info!(
                    account = short(&id),
                    "the store holds an older token than we do: ours is written again"
                );
            }
            self.0.writer.keep_token(&id, unsaved);
        }
        self.0.loaded.send_if_modified(|loaded| !std::mem::replace(loaded, true));
        self.serve_line();
    }

    /// When the store should be read again after a good read.
    pub(super) fn pace(&self) -> Duration {
        let now = self.now();
        match self.inside().empty_since {
            Some(since) if later(since, EMPTY_LOOK_FOR) > now => EMPTY_LOOK_EVERY.min(self.0.settings.cache_ttl),
            _ => self.0.settings.cache_ttl,
        }
    }
}

impl PoolSlot {
    /// Takes in a snapshot's records of this account. Returns a token that must be written back (R46, R48). An
    /// unreadable record makes only this account unusable (R9).
    fn take_in(
        &mut self,
        raw: RawAccount,
        parsed: Option<Result<Account, Unusable>>,
        since: Instant,
        pool: &Inner,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> Option<UnsavedToken> {
        let account = &mut self.account;
        let changed = parsed.is_some() || !account.has_token_record(raw.token.as_ref());
        if let Some(parsed) = parsed {
            account.take_record(raw.account, parsed);
        }
        if let Some(record) = account.readable() {
            // Our changes that aren't written yet, or were written after this read, go on top (R18). A host program's
            // writes in our place aren't known here.
            let by_host = self.host_marked.is_some_and(|marked| marked + HOST_WRITES_WITHIN > since);
            let ours = pool.writer.overlaid(record, since);
            let standing = ours.unwrap_or_else(|| record.standing.clone());
            account.health.observe(&standing, by_host, pool.settings.rules, now);
        }
        let mut observed = account.take_token(raw.token, now, rng);
        if let Some(left_over) = pool.writer.left_over(&account.view.id) {
            match account.credential.take_left_over(&left_over, rng) {
                Some(unsaved) => observed.write_back = Some(unsaved),
                None if pool.only_looks.load(Ordering::Relaxed) => {}
                None => pool.writer.forget(&account.view.id, left_over),
            }
        }
        if observed.lost {
            tracing::warn!(account = account.view.short_id(), "no token record: its access token serves to its end");
        }
        if changed {
            self.review(&pool.settings.urls, now);
            if let Some(problem) = self.account.problem() {
                tracing::warn!(account = self.account.view.short_id(), problem, "account unusable");
                pool.counters.unusable_records.fetch_add(1, Ordering::Relaxed);
            }
        }
        observed.write_back
    }
}

/// Reads the store and reserves tickets, for as long as the pool lives.
pub(super) async fn background(pool: Weak<Inner>) {
    let Some((mut status, refill)) = pool.upgrade().map(|inner| (inner.store.watch(), inner.refill.clone())) else {
        return;
    };
    // If the store is reachable, the first block is there before the first request asks for a ticket.
    let connected = tokio::time::timeout(RETRY_READ, status.wait_for(Status::is_connected)).await.is_ok();
    let first = if connected { reserve_block(&pool).await } else { Some(RETRY_READ) };
    tokio::select! {
        () = read_store(pool.clone(), status) => {}
        () = reserve_tickets(pool, refill, first) => {}
    }
}

/// Reports once that the store is lost and once that it is back (R50), and its other states for the operator.
pub(super) async fn watch_store(pool: Weak<Inner>, mut status: watch::Receiver<Status>, writer: Writer) {
    let mut lost: Option<(Instant, u64)> = None;
    let (mut waited, mut refused) = (false, false);
    loop {
        let now = status.borrow_and_update().clone();
        if let Status::Connecting(Some(error)) = &now
            && !std::mem::replace(&mut waited, true)
        {
            tracing::warn!(%error, "the store can't be reached yet; it is tried again for ever");
        }
        match (&now, lost) {
            (Status::Away(error), None) => {
                lost = Some((Instant::now(), writer.written()));
                tracing::warn!(%error, "the store is lost; accounts and tokens come from memory");
                tell(&pool, PoolEvent::StoreLost { cause: error.to_string() });
            }
            (Status::Connected | Status::WritesRefused(_), Some((since, before))) => {
                let away = since.elapsed();
                // The waiting records first. A store that is lost again meanwhile is reported as lost.
                let mut again = status.clone();
                tokio::select! {
                    () = writer.caught_up(CAUGHT_UP_WITHIN) => {}
                    _ = again.wait_for(|status| !status.is_connected()) => {}
                }
                let written = writer.written().saturating_sub(before);
                let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(away_ms, written, "the store is back");
                tell(&pool, PoolEvent::StoreBack { away, written });
                lost = None;
            }
            _ => {}
        }
        match &now {
            Status::WritesRefused(error) if !refused => {
                refused = true;
                tracing::warn!(%error, "the store takes no writes; what is to be written waits");
            }
            Status::Connected if std::mem::take(&mut refused) => tracing::info!("the store takes writes again"),
            _ => {}
        }
        if now.is_connected() && std::mem::take(&mut waited) {
            tracing::info!("the store is reached");
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn tell(pool: &Weak<Inner>, event: PoolEvent) {
    if let Some(inner) = pool.upgrade() {
        Pool(inner).tell(event);
    }
}

async fn read_store(pool: Weak<Inner>, mut status: watch::Receiver<Status>) {
    let mut told = false;
    loop {
        let Some(pool) = pool.upgrade().map(Pool) else { return };
        let started = Instant::now();
        let next = match pool.reload().await {
            Ok(()) => {
                told = false;
                started + pool.pace()
            }
            Err(error) => {
                // The watcher of the store's state logs that it is away.
                if !error.is_away() && !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "the accounts can't be read; the last snapshot serves on");
                }
                started + RETRY_READ
            }
        };
        drop(pool);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // The store is back: the snapshot must be fresh at once (R53).
                    if status.borrow_and_update().is_connected() {
                        break;
                    }
                }
            }
        }
    }
}

/// Fetches blocks of tickets when asked to (R36).
async fn reserve_tickets(pool: Weak<Inner>, refill: Arc<Notify>, mut pause: Option<Duration>) {
    loop {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let Some(inner) = pool.upgrade() else { return };
        if pause.is_some() {
            Pool(inner).inside().tickets.fetched(None);
        } else {
            drop(inner);
        }
        refill.notified().await;
        pause = reserve_block(&pool).await;
    }
}

/// Fetches one block. Returns the pause before the next try after a failure.
async fn reserve_block(pool: &Weak<Inner>) -> Option<Duration> {
    let pool = pool.upgrade()?;
    match pool.store.reserve_tickets(tickets::BLOCK).await {
        Ok(block) => {
            pool.counters.ticket_blocks.fetch_add(1, Ordering::Relaxed);
            Pool(pool).inside().tickets.fetched(Some(block));
            None
        }
        Err(error) if error.kind() == StoreErrorKind::Counter => {
            if !pool.counter_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "the round-robin counter is unusable; tickets are counted locally");
            }
            Some(COUNTER_PAUSE)
        }
        // The store's own line says that it is away.
        Err(_) => Some(RETRY_READ),
    }
}
