//! Leases: which account a request gets, how it waits in line, and what it reports through its [`Lease`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::line::{Needs, Number};
use super::{
    AccountId, AccountView, AttemptEnd, Fit, Inner, Inside, Lease, Load, Pool, PoolSlot, Purpose, Settings, Waiter,
    between,
};
use crate::error::Code;
use crate::policy::brake;
use crate::policy::health::{FailedAttempt, HealthState, Rules};
use crate::policy::later;
use crate::policy::learned::{Learned, Lesson};
use crate::policy::outcome::{Event, Outcome};
use crate::policy::select::{self, Candidate, Strategy, Tier, Unselectable};
use crate::program::said;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::secret::Secret;

/// A retry is worthwhile when an account comes back within this time (M85).
const SOON: Duration = Duration::from_secs(120);
/// How long a request may wait for accounts whose records let requests wait (N86), if `KIRO_ACCOUNT_WAIT` isn't longer.
const QUEUE_WAIT: Duration = Duration::from_secs(60);
/// The least time between two timed checks of the line.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

/// What a pool of accounts without a profile says.
const NO_PROFILE: &str = "No account has a Kiro profile; see `kiro-server accounts check`";

/// The account that a request wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// The client's model name and the known name it resolves to (R7).
    pub model_names: &'a [&'a str],
    /// Accounts that this request has tried.
    pub exclude: &'a [AccountId],
    /// The key of [`Strategy::Sticky`].
    pub conversation_id: &'a str,
    /// The accounts that the conversation prefers, in order: its home, then former ones (R101).
    pub homes: &'a [AccountId],
    /// The model's `kiro_id`: accounts that refused it lately are left out (K88). Empty: none is.
    pub kiro_id: &'a str,
    /// How well an account fits, beside its health; none: all fit alike.
    pub fit: Option<&'a Fit>,
    /// Only this account, in any state except during a `Retry-After` (N5). Its lease records no outcome.
    pub only: Option<&'a str>,
}

/// No account can take the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAccount {
    /// Why.
    pub why: Why,
    /// Until the soonest account is back; none: no account will come back, and M61 says 60 s.
    pub retry_after: Option<Duration>,
}

/// Why no account can take a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no first snapshot yet (R54).
    NotLoaded,
    /// The pool is empty or missing, and that is certain (R56).
    Empty {
        /// Where accounts are expected: the full key, or what kind of file.
        place: Arc<str>,
        /// What brings one there.
        cure: &'static str,
    },
    /// No account can serve now, or none serves the model.
    Unavailable,
    /// The same, for two minutes or more (M85).
    OutOfService(Outlook),
    /// The remaining accounts have no profile for now (K78).
    NoProfile,
    /// All askable accounts have refused the model (K88).
    Model,
    /// This request has tried all accounts.
    Exhausted,
    /// All usable accounts are at their limit, or half-open with their one request on the way.
    Busy,
    /// The same, limits of account records among them, and as many requests wait as these records allow (N86).
    Full,
    /// All usable accounts have had their requests of this minute (K92).
    Paced,
    /// The pinned account is not in the pool.
    Unknown,
    /// The pinned account has a running `Retry-After` (N5).
    Limited,
    /// The pinned account has no readable record or no credential.
    Unusable,
}

/// Why no account serves for a while, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// When the soonest account is back; none: when a person acts.
    pub until: Option<Timestamp>,
    /// Of the accounts that serve the model: how many are in each state, by its word.
    pub states: BTreeMap<&'static str, usize>,
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.states.is_empty() {
            return f.write_str("No account serves this model: see notSupportedModels in their records");
        }
        if self.states.len() == 1 && self.states.contains_key("no-profile") {
            return f.write_str(&said(NO_PROFILE));
        }
        match self.until {
            Some(until) => write!(f, "No account can serve before {until:.0} (")?,
            None => f.write_str("No account can serve until a person acts (")?,
        }
        for (n, (state, count)) in self.states.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            let words = match *state {
                "quota" => "out of quota",
                "cooling" => "resting",
                "no-profile" => "without a profile",
                other => other,
            };
            write!(f, "{comma}{count} {words}")?;
        }
        f.write_str(&said("): see `kiro-server accounts list`, or add an account"))
    }
}

/// The current limits of one account; 0: no limit.
#[derive(Clone, Copy)]
pub(super) struct AccountLimits {
    in_flight: u32,
    per_minute: u32,
}

/// A request in line. When it is dropped, it leaves; a lease that it was given in this moment goes to the next request,
/// because `place` is dropped after that.
struct InLine<'a> {
    pool: &'a Pool,
    number: Number,
    place: oneshot::Receiver<Lease>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut inside = self.pool.inside();
        inside.line.leave(&self.number);
        self.pool.count_line(&inside);
    }
}

impl NoAccount {
    /// Whether trying again soon is useless (M85).
    pub fn is_lasting(&self) -> bool {
        matches!(self.why, Why::OutOfService(_))
    }

    /// The client's error (contract/messages.md).
    pub fn code(&self) -> Code {
        match &self.why {
            Why::NotLoaded => Code::StoreUnavailable,
            Why::Empty { .. }
            | Why::Unavailable
            | Why::OutOfService(_)
            | Why::NoProfile
            | Why::Exhausted
            | Why::Busy => Code::NoAccount,
            // A pinned request's account (N5, N8).
            Why::Unusable => Code::AccountUnauthorized,
            Why::Model | Why::Unknown => Code::NotFound,
            Why::Paced | Why::Limited | Why::Full => Code::RateLimited,
        }
    }
}

impl fmt::Display for NoAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.why {
            Why::NotLoaded => "The account store has not been reached yet",
            Why::Empty { place, cure } => return write!(f, "There are no accounts in {place}: {}", said(cure)),
            Why::Unavailable | Why::Exhausted | Why::Busy => "No healthy accounts available",
            Why::OutOfService(outlook) => return outlook.fmt(f),
            Why::NoProfile => return f.write_str(&said(NO_PROFILE)),
            Why::Model => "No account serves this model",
            Why::Full => "All accounts are at their concurrencyLimit, and their queues are full",
            Why::Paced => "All accounts have had their requests of this minute",
            Why::Unknown => "Unknown account",
            Why::Limited => "The account is rate limited",
            Why::Unusable => "The account has no usable credential",
        })
    }
}

impl Pool {
    /// Takes an account for one attempt without waiting.
    pub fn select(&self, wanted: &Wanted<'_>) -> Result<Lease, NoAccount> {
        let now = self.now();
        let mut inside = self.inside();
        self.select_in(&mut inside, wanted, now)
    }

    /// Takes an account for an attempt. It waits while one may become free in time: one at its limit, one that is
    /// half-open with its request on the way, or one whose rest or full minute ends in time. A request waits at most
    /// `KIRO_ACCOUNT_WAIT` from its first attempt, which began to look for an account at `since`; a minute where account
    /// records have limits of their own (N86). First come, first served. With a full line, or when no account can come
    /// in time, it fails at once.
    pub async fn acquire(&self, wanted: &Wanted<'_>, since: Instant) -> Result<Lease, NoAccount> {
        // Those in line choose first. A pinned request neither waits for the line nor blocks it (N5).
        if wanted.only.is_none() {
            self.serve_line();
        }
        let (mut waiting, served, deadline) = {
            let now = self.now();
            let mut inside = self.inside();
            let mut refused = match self.select_in(&mut inside, wanted, now) {
                Ok(lease) => return Ok(lease),
                Err(refused) => refused,
            };
            let Settings { mut account_wait, mut max_waiting, .. } = self.0.settings;
            if refused.why == Why::Busy
                && let Some(places) = inside.queue()
            {
                refused.why = Why::Full;
                if places > 0 {
                    account_wait = account_wait.max(QUEUE_WAIT);
                    max_waiting = max_waiting.min(places);
                }
            }
            let deadline = since + account_wait;
            let wait = deadline.saturating_duration_since(Instant::now());
            let in_time = match refused.why {
                Why::Busy | Why::Full | Why::NotLoaded => true,
                Why::Unavailable | Why::OutOfService(_) | Why::NoProfile | Why::Paced => {
                    refused.retry_after.is_some_and(|back| back <= wait)
                }
                Why::Empty { .. } | Why::Model | Why::Exhausted | Why::Unknown | Why::Limited | Why::Unusable => false,
            };
            if wait.is_zero() || !in_time || inside.line.len() >= max_waiting {
                return Err(refused);
            }
            let (sender, place) = oneshot::channel();
            let waiter = Waiter {
                conversation_id: wanted.conversation_id.to_owned(),
                homes: wanted.homes.to_vec(),
                fit: wanted.fit.cloned(),
                place: sender,
            };
            let number = inside.line.join(wanted.needs(), waiter);
            self.count_line(&inside);
            // A place that came back before this request joined the line was offered to nobody.
            fence(Ordering::SeqCst);
            (InLine { pool: self, number, place }, self.serve_in(&mut inside, now), deadline)
        };
        hand_over(served);
        self.0.counters.waits.fetch_add(1, Ordering::Relaxed);
        match tokio::time::timeout_at(deadline, &mut waiting.place).await {
            Ok(lease) => lease.map_err(|_| Why::Unavailable.into()),
            // A lease that came at the same moment is still taken.
            Err(_) => waiting.place.try_recv().or_else(|_| self.select(wanted)),
        }
    }

    /// Takes this account for a person's question (K62), in any state. A running `Retry-After` doesn't hold it back,
    /// because it is another call. The lease records nothing.
    ///
    /// # Errors
    /// [`Why::NotLoaded`], [`Why::Unknown`], [`Why::Unusable`].
    pub fn visit(&self, id: &str) -> Result<Lease, NoAccount> {
        let now = self.now();
        let mut inside = self.inside();
        if !inside.loaded {
            return Err(Why::NotLoaded.into());
        }
        Ok(self.lease(inside.usable(id, now)?, now, Purpose::Pinned))
    }

    /// An account for a background call (K125): it takes no place and records nothing. None: the account is gone or
    /// can't be used.
    pub(crate) fn look_in(&self, id: &str) -> Option<Lease> {
        let mut lease = self.visit(id).ok()?;
        // Its place goes back at once.
        lease.load.in_flight.fetch_sub(1, Ordering::AcqRel);
        lease.load = Arc::new(Load { in_flight: AtomicU32::new(1), ..Load::default() });
        Some(lease)
    }

    /// The account that would be the best one to ask now, without taking it: for a call beside a conversation (K135).
    /// None that rests.
    pub(crate) fn candidate(&self, wanted: &Wanted<'_>) -> Option<AccountId> {
        let now = self.now();
        let mut inside = self.inside();
        let limits = self.limits(&mut inside, now);
        let candidates = inside.slots.values().filter_map(|slot| {
            let candidate = slot.candidate(wanted, limits, self.0.settings.rules, now);
            let tier = select::rank(&candidate, limits.in_flight).ok().filter(|tier| !tier.is_last_resort())?;
            Some((tier, candidate))
        });
        let candidates: Vec<_> = candidates.collect();
        let (_, best) = candidates.get(select::choose(&candidates, Strategy::LeastBusy, 0, "")?)?;
        Some(inside.slots.get_key_value(best.id)?.0.clone())
    }

    /// Until when the pool is slowed down because several accounts are under suspicion (K92); none: it isn't.
    pub fn brake(&self) -> Option<Timestamp> {
        let now = self.now();
        let mut inside = self.inside();
        self.brake_in(&mut inside, now)
    }

    fn select_in(&self, inside: &mut Inside, wanted: &Wanted<'_>, now: Timestamp) -> Result<Lease, NoAccount> {
        if !inside.loaded {
            return Err(Why::NotLoaded.into());
        }
        if let Some(only) = wanted.only {
            return self.pinned(inside, only, now);
        }
        let limits = self.limits(inside, now);
        let mut ranked = Vec::with_capacity(inside.slots.len());
        let mut refused = Obstacles::default();
        let (mut passing, mut limited) = (false, false);
        for slot in inside.slots.values() {
            let candidate = slot.candidate(wanted, limits, self.0.settings.rules, now);
            let rank = select::rank(&candidate, limits.in_flight);
            let at_limit = rank.is_err_and(Unselectable::is_limit);
            passing |= wanted.homes.first() == Some(&slot.account.view.id) && at_limit;
            limited |= at_limit && matches!(candidate.state, HealthState::Healthy | HealthState::Stale);
            match rank {
                Ok(tier) => ranked.push((tier, candidate)),
                Err(refusal) => refused.add(refusal),
            }
        }
        // Resting accounts are taken only when no other could serve, not while others are merely busy.
        if limited {
            ranked.retain(|(tier, _)| !matches!(tier, Tier::Resting(_)));
        }
        let strategy = self.0.settings.strategy;
        let kept = select::keep(&ranked, wanted.homes);
        let ticket = if kept.is_some() || ranked.is_empty() || strategy == Strategy::Sticky {
            0
        } else {
            let (ticket, fetch) = inside.tickets.take();
            if fetch {
                self.0.refill.notify_one();
            }
            ticket
        };
        let chosen = kept
            .or_else(|| select::choose(&ranked, strategy, ticket, wanted.conversation_id))
            .and_then(|index| ranked.get(index))
            .and_then(|(tier, candidate)| Some((*tier, inside.slots.get_key_value(candidate.id)?.0.clone())));
        let Some((tier, id)) = chosen else {
            if inside.slots.is_empty() {
                let Settings { shown, cure, .. } = &self.0.settings;
                return Err(Why::Empty { place: shown.clone(), cure }.into());
            }
            return Err(refused.no_account(inside, wanted, now));
        };
        if matches!(tier, Tier::Stale | Tier::Blocking | Tier::StaleBlocking) {
            self.0.refresh.notify_one();
        }
        match inside.slots.get_mut(&id) {
            Some(slot) => {
                slot.account.sends(self.0.settings.remembered, now);
                let mut lease = self.lease(slot, now, Purpose::Request);
                lease.passing = passing;
                Ok(lease)
            }
            None => Err(Why::Unavailable.into()),
        }
    }

    fn pinned(&self, inside: &mut Inside, id: &str, now: Timestamp) -> Result<Lease, NoAccount> {
        let slot = inside.usable(id, now)?;
        if let Some(until) = slot.account.health.held_until(now) {
            return Err(NoAccount { why: Why::Limited, retry_after: Some(between(now, until)) });
        }
        slot.account.sends(self.0.settings.remembered, now);
        Ok(self.lease(slot, now, Purpose::Pinned))
    }

    pub(super) fn lease(&self, slot: &mut PoolSlot, now: Timestamp, purpose: Purpose) -> Lease {
        let half_open = purpose != Purpose::Pinned && slot.account.state(now) == HealthState::HalfOpen;
        slot.load.in_flight.fetch_add(1, Ordering::AcqRel);
        // The one request of a half-open account. Others come only as a last resort, and don't get the flag.
        let half_open = half_open && !slot.load.probing.swap(true, Ordering::AcqRel);
        // Only a request that may heal counts: a host program that tests an account by name must not keep the probe
        // away (R17, N5).
        if purpose != Purpose::Pinned {
            slot.account.health.asked(now);
        }
        Lease {
            pool: self.clone(),
            view: slot.account.view.clone(),
            load: slot.load.clone(),
            started: now,
            half_open,
            passing: false,
            purpose,
            bearer: Mutex::new(None),
        }
    }

    /// Serves the line, first come, first served.
    pub(super) fn serve_line(&self) {
        fence(Ordering::SeqCst);
        if self.0.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        let now = self.now();
        let served = self.serve_in(&mut self.inside(), now);
        hand_over(served);
    }

    /// The caller hands over the result after the lock.
    fn serve_in(&self, inside: &mut Inside, now: Timestamp) -> Vec<(Waiter, Lease)> {
        let mut line = std::mem::take(&mut inside.line);
        let served = line.serve(|needs, waiter| {
            let model_names: Vec<&str> = needs.model_names.iter().map(String::as_str).collect();
            let wanted = Wanted {
                model_names: &model_names,
                exclude: &needs.exclude,
                conversation_id: &waiter.conversation_id,
                kiro_id: &needs.kiro_id,
                homes: &waiter.homes,
                fit: waiter.fit.as_ref(),
                only: needs.only.as_deref(),
            };
            self.select_in(inside, &wanted, now).ok()
        });
        inside.line = line;
        self.count_line(inside);
        let due = if inside.line.is_empty() { None } else { self.soonest_change(inside, now) };
        if due != inside.line_due {
            inside.line_due = due;
            self.0.line_moved.notify_one();
        }
        served
    }

    fn count_line(&self, inside: &Inside) {
        self.0.waiting.store(inside.line.len(), Ordering::Release);
    }

    fn soonest_change(&self, inside: &mut Inside, now: Timestamp) -> Option<Timestamp> {
        let limits = self.limits(inside, now);
        let ends = |slot: &PoolSlot| {
            slot.account.state(now).until().or_else(|| slot.account.paced_until(limits.per_minute, now))
        };
        inside.slots.values().filter_map(ends).chain(inside.brake.until(now)).min()
    }

    /// Logs once that the brake is on, and once that it is off.
    pub(super) fn brake_in(&self, inside: &mut Inside, now: Timestamp) -> Option<Timestamp> {
        let until = inside.brake.until(now);
        if let Some(until) = until
            && !inside.brake_told
        {
            tracing::warn!("several accounts are under suspicion: requests are slowed down until {until:.0}");
        } else if until.is_none() && inside.brake_told {
            tracing::info!("no account turned suspicious lately: requests are not slowed down any more");
        }
        inside.brake_told = until.is_some();
        until
    }

    fn limits(&self, inside: &mut Inside, now: Timestamp) -> AccountLimits {
        let Settings { max_in_flight, per_minute, .. } = self.0.settings;
        let least = |limit, other| if limit == 0 { other } else { u32::min(limit, other) };
        match self.brake_in(inside, now) {
            None => AccountLimits { in_flight: max_in_flight, per_minute },
            Some(_) => AccountLimits {
                in_flight: least(max_in_flight, brake::IN_FLIGHT),
                per_minute: least(per_minute, brake::PER_MINUTE),
            },
        }
    }
}

impl Lease {
    /// Whether only a limit kept the request from its conversation's home: the conversation stays there (R101).
    pub fn is_passing(&self) -> bool {
        self.passing
    }

    /// The account.
    pub fn account(&self) -> &Arc<AccountView> {
        &self.view
    }

    /// When the attempt was started (R28).
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// Whether the request was sent to this account by name (N5).
    pub fn is_pinned(&self) -> bool {
        self.purpose == Purpose::Pinned
    }

    /// The token that this attempt goes out with.
    pub(crate) fn hand_out(&self, bearer: &Secret) {
        *self.bearer.lock().unwrap_or_else(PoisonError::into_inner) = Some(bearer.clone());
    }

    /// The token that was handed out last.
    pub(crate) fn handed_out(&self) -> Option<Secret> {
        self.bearer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in a lesson (R72).
    pub fn learn(&self, lesson: Lesson) {
        self.pool.learn(&self.view.id, lesson);
    }

    /// Reads the account's lessons; empty ones if it has left the pool.
    pub fn learned<T>(&self, read: impl Fn(&Learned, Timestamp) -> T) -> T {
        let now = self.pool.now();
        let known = self.pool.with_slot(&self.view.id, |slot, _| read(&slot.account.learned, now));
        known.unwrap_or_else(|| read(&Learned::default(), now))
    }

    /// The same conversation goes out once more on this account: it counts in its minute (K92).
    pub fn sends_again(&self) {
        let now = self.pool.now();
        self.pool.with_slot(&self.view.id, |slot, _| slot.account.sends(self.pool.0.settings.remembered, now));
    }

    /// Sees the account as it is now: after its profile was looked up.
    pub(crate) fn renew_view(&mut self) {
        if let Some(view) = self.pool.account(&self.view.id) {
            self.view = view;
        }
    }

    /// The attempt has ended well; a ghost exception (K36) is a success too. Returns the recorded outcome.
    pub fn succeeded(&self) -> Option<Outcome> {
        if self.is_pinned() {
            return None;
        }
        let probe = self.purpose == Purpose::Probe;
        let outcome = self.pool.settle(&self.view.id, |slot, _, now| {
            if probe && slot.account.health.is_suspected() {
                return None;
            }
            slot.account.arn_rejected = None;
            let mut outcome = slot.account.health.success(self.started, now);
            if let Event::Success { probe: told, .. } = &mut outcome.event {
                *told = probe;
            }
            Some(outcome)
        });
        if outcome.is_none() && !probe {
            // The account left the snapshot while its stream ran; if its record still exists, the use counts.
            let at = self.pool.now();
            self.pool.0.writer.record(&self.view.id, &Outcome::success(at, self.started));
        }
        outcome
    }

    /// The attempt ended in a fault that isn't recorded. A `Retry-After` (N5) and a rejected profile ARN bind this
    /// process all the same.
    pub fn noted(&self, fault: &Fault) {
        let now = self.pool.now();
        self.pool.with_slot(&self.view.id, |slot, _| self.note(slot, fault, now));
    }

    fn note(&self, slot: &mut PoolSlot, fault: &Fault, now: Timestamp) {
        if fault.kind == FaultKind::ProfileArn {
            slot.account.arn_rejected = Some(self.view.profile_arn().unwrap_or_default().to_owned());
        }
        slot.account.health.hold(fault, now);
    }

    /// A person's question was answered with `Suspended`: the one mark that such a question leaves (K62).
    pub fn suspended(&self, fault: &Fault) -> Option<Outcome> {
        let rules = self.pool.0.settings.rules;
        self.pool.settle(&self.view.id, |slot, _, now| {
            let end = AttemptEnd::default();
            let attempt = FailedAttempt { started: self.started, end, alike: false, spread: 0 };
            slot.account.health.fault(fault, attempt, rules, now)
        })
    }

    /// The attempt ended in a fault. Returns the recorded outcome; none when the account isn't to blame (K49).
    pub fn failed(&self, fault: &Fault, end: AttemptEnd) -> Option<Outcome> {
        let rules = self.pool.0.settings.rules;
        if self.is_pinned() {
            self.noted(fault);
            return None;
        }
        if end.committed && self.pool.account(&self.view.id).is_none() {
            self.pool.0.writer.record(&self.view.id, &Outcome::used(self.pool.now()));
        }
        let alike = self.pool.is_alike(&self.view.id, fault);
        self.pool.settle(&self.view.id, |slot, rng, now| {
            self.note(slot, fault, now);
            let attempt = FailedAttempt { started: self.started, end, alike, spread: rng.i16(-100..=100) };
            slot.account.health.fault(fault, attempt, rules, now)
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.half_open {
            self.load.probing.store(false, Ordering::Release);
        }
        self.pool.serve_line();
    }
}

/// The reasons that kept accounts from a request.
#[derive(Default)]
struct Obstacles {
    busy: bool,
    excluded: bool,
    /// When the first account with a full minute is free again.
    paced: Option<Timestamp>,
    /// Some refused the model; others may serve it when they are back (K88).
    said_no: bool,
    resting: bool,
    without_profile: bool,
}

impl Obstacles {
    fn add(&mut self, refusal: Unselectable) {
        match refusal {
            Unselectable::Busy | Unselectable::Probing => self.busy = true,
            Unselectable::Paced(until) => self.paced = Some(self.paced.map_or(until, |soonest| soonest.min(until))),
            Unselectable::Excluded => self.excluded = true,
            Unselectable::SaidNo => self.said_no = true,
            Unselectable::State(HealthState::NoProfile { .. }) => self.without_profile = true,
            Unselectable::State(HealthState::Cooling { .. } | HealthState::Quota { .. }) => self.resting = true,
            Unselectable::Model | Unselectable::State(_) => {}
        }
    }

    fn no_account(&self, inside: &Inside, wanted: &Wanted<'_>, now: Timestamp) -> NoAccount {
        let Self { busy, excluded, paced, said_no, resting, without_profile } = *self;
        let why = if busy {
            Why::Busy
        } else if paced.is_some() {
            Why::Paced
        } else if said_no && !resting && !without_profile && !excluded {
            Why::Model
        } else if let Some(outlook) = inside.outlook(wanted, now) {
            Why::OutOfService(outlook)
        } else if excluded {
            Why::Exhausted
        } else if without_profile && !resting {
            Why::NoProfile
        } else {
            Why::Unavailable
        };
        let retry_after = match (&why, paced) {
            (Why::Busy, _) => Some(Duration::from_secs(1)),
            (Why::Paced, Some(until)) => Some(between(now, until)),
            _ => inside.soonest(wanted.model_names, wanted.kiro_id, now),
        };
        NoAccount { why, retry_after }
    }
}

impl From<Why> for NoAccount {
    fn from(why: Why) -> Self {
        Self { why, retry_after: None }
    }
}

impl Inside {
    /// The account with this id, if a request can go to it by name.
    fn usable(&mut self, id: &str, now: Timestamp) -> Result<&mut PoolSlot, Why> {
        let slot = self.slots.get_mut(id).ok_or(Why::Unknown)?;
        if slot.account.is_usable(now) { Ok(slot) } else { Err(Why::Unusable) }
    }

    /// Why no account that serves these models is back within [`SOON`]; none: one is (M85).
    fn outlook(&self, wanted: &Wanted<'_>, now: Timestamp) -> Option<Outlook> {
        let mut outlook = Outlook::default();
        for slot in self.slots.values().filter(|slot| slot.account.serves(wanted.model_names, wanted.kiro_id, now)) {
            let state = slot.account.state(now);
            match (state, state.until()) {
                (state, _) if state.is_served() => return None,
                // The next request will ask it.
                (HealthState::Cooling { .. }, _) if slot.account.health.rests_softly(now).is_some() => return None,
                (_, Some(until)) if until <= later(now, SOON) => return None,
                (_, until) => outlook.until = [outlook.until, until].into_iter().flatten().min(),
            }
            *outlook.states.entry(state.as_str()).or_default() += 1;
        }
        Some(outlook)
    }

    /// How many requests may wait by the records of accounts with a `concurrencyLimit` (N86); none: no record has one.
    fn queue(&self) -> Option<usize> {
        let limited = self.slots.values().filter_map(|slot| slot.account.readable());
        let limited = limited.filter(|record| record.concurrency_limit > 0 && !record.standing.disabled);
        limited.map(|record| record.queue_limit as usize).reduce(usize::saturating_add)
    }

    /// Until the soonest account that serves these models is back; a second when one is back already.
    pub(super) fn soonest(&self, model_names: &[&str], kiro_id: &str, now: Timestamp) -> Option<Duration> {
        let back = |slot: &PoolSlot| match slot.account.state(now) {
            HealthState::Cooling { until } | HealthState::NoProfile { until } => Some(between(now, until)),
            state => state.is_served().then_some(Duration::from_secs(1)),
        };
        self.slots.values().filter(|slot| slot.account.serves(model_names, kiro_id, now)).filter_map(back).min()
    }
}

impl PoolSlot {
    fn candidate<'a>(
        &'a self,
        wanted: &Wanted<'_>,
        limits: AccountLimits,
        rules: Rules,
        now: Timestamp,
    ) -> Candidate<'a> {
        let account = &self.account;
        Candidate {
            id: &account.view.id,
            state: account.state(now),
            live_token: account.credential.live(now).is_some(),
            arn_rejected: account.arn_rejected.is_some(),
            model_unsupported: !account.supports(wanted.model_names),
            model_refused: account.has_refused(wanted.kiro_id, now),
            fit: wanted.fit.map_or(0, |fit| fit.of(&account.view, &account.learned, now)),
            priority: account.account.as_ref().map_or(0, |record| record.priority),
            excluded: wanted.exclude.contains(&account.view.id),
            in_flight: self.load.in_flight.load(Ordering::Acquire),
            cap: account.readable().map_or(0, |record| record.concurrency_limit),
            probing: self.load.probing.load(Ordering::Acquire),
            paced_until: account.paced_until(limits.per_minute, now),
            refused_lately: account.health.refused_lately(rules, now),
            rests_softly: account.health.rests_softly(now),
        }
    }
}

impl Wanted<'_> {
    fn needs(&self) -> Needs {
        let mut exclude = self.exclude.to_vec();
        exclude.sort_unstable();
        Needs {
            model_names: self.model_names.iter().map(|&name| name.to_owned()).collect(),
            kiro_id: self.kiro_id.to_owned(),
            exclude,
            only: self.only.map(str::to_owned),
        }
    }
}

fn hand_over(served: Vec<(Waiter, Lease)>) {
    for (waiter, lease) in served {
        // A request that has gone meanwhile passes it on.
        drop(waiter.place.send(lease));
    }
}

/// Serves the line when an account may have become free by time alone.
pub(super) async fn keep_time(pool: Weak<Inner>, line_moved: Arc<Notify>) {
    loop {
        let due = {
            let Some(pool) = pool.upgrade().map(Pool) else { return };
            let now = pool.now();
            let mut inside = pool.inside();
            if inside.line.is_empty() {
                inside.line_due = None;
            }
            inside.line_due.map(|due| between(now, due).max(SHORTEST_SLEEP))
        };
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = line_moved.notified() => continue,
            () = sleep => {}
        }
        if let Some(pool) = pool.upgrade() {
            Pool(pool).serve_line();
        }
    }
}
