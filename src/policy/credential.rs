//! One account's credential in this process, and the decisions about the records in the store.
//!
//! Records come in, decisions go out. [`crate::credentials`] makes the calls, and its `model` tries these decisions in all orders.
//!
//! The token in hand is [`Origin::Theirs`] or [`Origin::Ours`]:
//!
//! ```text
//!             granted: what was spent is older from now on
//!   Theirs ───────────────────────────────────────────────▶ Ours ──┐ granted; written over what is older,
//!     ▲ ▲                                                    │ ▲   │ however long that takes
//!     │ └── adopted: neither spent here nor what ours ───────┘ └───┘
//!     │     grew out of, so somebody else's
//!     └──── adopted: of two of theirs the store's counts
//! ```
//!
//! Before an account is given up, the token that an adoption replaced is tried once more: a store that lost its last
//! second, or a late write of an old record, looks like another program's refresh.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use crate::proto::kiro::token::{Grant, Refusal};
use crate::proto::record::{Entry, Fingerprint, Method, Token, TokenKey, Unusable};
use crate::secret::Secret;

use super::health::HealthState;
use super::unsaved::UnsavedToken;
use super::{doubled, later};

/// An access token that lives no longer than this is refreshed before the request goes out (R38).
pub(crate) const BLOCKING_MARGIN: Duration = Duration::from_secs(10);
/// How long after a success there is no background refresh (R37).
const QUIET_AFTER_SUCCESS: Duration = Duration::from_secs(60);
/// A forced refresh adopts a success that is not older than this (R38).
const FORCED_ADOPTS: Duration = Duration::from_secs(30);
/// How often a refresh token that another program dropped is put back at most (R46).
const PUT_BACK_EVERY: Duration = Duration::from_secs(60);
/// The time left at which background refresh starts while the store is away, when a rotated token can't be saved (R52).
const LAST_MINUTE: Duration = Duration::from_secs(60);
/// How often an account that waits for its quota is refreshed, so that its refresh token doesn't age out (R37).
const QUOTA_REFRESH_EVERY: Duration = Duration::from_secs(86_400);
/// How many spent refresh tokens are remembered once the store has ours (R48), and the bound until then.
const REMEMBERED: usize = 32;
const REMEMBERED_UNSAVED: usize = 1_024;
/// How many refresh tokens that an adoption replaced are kept as a last resort.
const MOST_BEFORE: usize = 3;
/// A token of ours that lives no longer than four times [`BLOCKING_MARGIN`] serves for three quarters of its life.
const SHORT_LIFE_MARGIN: f64 = 0.25;
/// A doubtful or unknown refusal is believed at this one in a row (K59, K61).
const BELIEVED_AT: u32 = 3;
/// Doubtful refusals count when they are at least this far apart (K59).
const DOUBTS_APART: Duration = Duration::from_secs(60);
/// The first and the longest pause after a failed refresh (K60).
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The pause after a refresh that could not connect.
const UNREACHED_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// One account's credential in this process. No `Debug`: it holds whole token records.
pub(crate) struct Credential {
    key: TokenKey,
    /// The store's record as last seen; none: no record (R45).
    seen: Option<(Bytes, Token)>,
    /// The token in use: the store's, or a newer one.
    token: Token,
    origin: Origin,
    /// Fingerprints of the refresh tokens that this process spent, the last at the end (R48).
    // Bound: per account: fingerprints of refresh tokens that were used up | REMEMBERED_UNSAVED | the oldest goes
    spent: VecDeque<Fingerprint>,
    /// The refresh tokens that the store's have replaced, the last at the end. Kept until a refresh succeeds.
    // Bound: per account: refresh tokens that the store's replaced | MOST_BEFORE | the oldest goes
    before: VecDeque<Secret>,
    /// A profile that was looked up and that no record of the store has shown yet (K79).
    learned: Option<FoundProfile>,
    /// 0.8 to 1.0, drawn for each token, so that instances don't refresh at the same time (R37).
    spread: f64,
    last_success: Option<Timestamp>,
    put_back: Option<Timestamp>,
    trouble: Trouble,
}

/// Where the token in hand comes from. That decides what a different one in the store means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// From the store: the store's current token counts.
    Theirs,
    /// From a refresh of this process: the tokens that it grew out of are older.
    Ours {
        /// It is refreshed when it lives no longer than this: [`BLOCKING_MARGIN`], less for a short-lived one.
        margin: Duration,
    },
}

/// Failures since the last token.
#[derive(Default)]
struct Trouble {
    failures: u32,
    not_before: Option<Timestamp>,
    refusals: Option<Refusals>,
}

#[derive(Clone, Copy, Debug)]
struct Refusals {
    kind: Refusal,
    count: u32,
    last: Timestamp,
}

/// A profile that was found, and the regions to write with it when the record has none (K79).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundProfile {
    pub(crate) arn: String,
    pub(crate) region: Option<String>,
    pub(crate) idc_region: Option<String>,
    /// The record's ARN before: none, or one of Kiro's fixed ones.
    replaces: Option<String>,
}

impl FoundProfile {
    fn put_on(&self, token: &mut Token) {
        token.profile_arn = Some(self.arn.clone());
        token.region = token.region.take().or_else(|| self.region.clone());
        token.idc_region = token.idc_region.take().or_else(|| self.idc_region.clone());
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let arn = Some(Entry::ProfileArn(self.arn.clone()));
        let regions = [self.region.clone().map(Entry::Region), self.idc_region.clone().map(Entry::IdcRegion)];
        std::iter::once(arn).chain(regions).flatten()
    }
}

/// The result of a snapshot's token record.
#[derive(Default)]
pub(crate) struct TokenChange {
    /// The store holds an older token than we do: write this (R46, R48).
    pub(crate) write_back: Option<UnsavedToken>,
    /// The record has just disappeared; the access token in hand serves to its end (R45).
    pub(crate) lost: bool,
}

impl Credential {
    /// An empty credential.
    pub(crate) fn new(key: TokenKey) -> Self {
        Self {
            key,
            seen: None,
            token: Token::default(),
            origin: Origin::Theirs,
            spent: VecDeque::new(),
            before: VecDeque::new(),
            learned: None,
            spread: 1.0,
            last_success: None,
            put_back: None,
            trouble: Trouble::default(),
        }
    }

    pub(crate) fn key(&self) -> &TokenKey {
        &self.key
    }

    /// The tokens that the store's have replaced.
    #[cfg(test)]
    pub(crate) fn before(&self) -> &VecDeque<Secret> {
        &self.before
    }

    /// The token in use.
    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    /// The record's bytes as the store had them last.
    pub(crate) fn seen(&self) -> Option<&Bytes> {
        self.seen.as_ref().map(|(bytes, _)| bytes)
    }

    pub(crate) fn fingerprint(&self) -> Option<String> {
        self.token.refresh_token.as_ref().map(|token| Fingerprint::of(token).short())
    }

    /// A snapshot has this token record. Adopted, unless it is older than what we hold (R48).
    pub(crate) fn observe(
        &mut self,
        record: Option<(TokenKey, Bytes)>,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> Result<TokenChange, Unusable> {
        let Some((key, bytes)) = record else {
            let lost = self.seen.take().is_some();
            return Ok(TokenChange { write_back: None, lost });
        };
        let token = match &self.seen {
            Some((seen, token)) if *seen == bytes => token.clone(),
            _ => Token::parse(&bytes)?,
        };
        self.key = key;
        let write_back = match self.compare(&token) {
            Age::Same => {
                self.keep_ours(&token);
                None
            }
            Age::Newer => {
                self.take_theirs(token.clone(), rng);
                None
            }
            Age::WithoutRefreshToken => self.put_back(&token, &bytes, now, rng),
            Age::Older => {
                let unsaved = self.ours_on(&token, bytes.clone());
                self.keep_ours(&token);
                Some(unsaved)
            }
        };
        self.lies_in_store(bytes, token);
        Ok(TokenChange { write_back, lost: false })
    }

    /// An earlier process got this token and could not save it. If the store has nothing newer, it is used; the return
    /// value must be written.
    pub(crate) fn take_left_over(&mut self, left_over: &UnsavedToken, rng: &mut fastrand::Rng) -> Option<UnsavedToken> {
        let (bytes, record) = self.seen.clone()?;
        if self.is_ours() || record.refresh_token == left_over.refresh_token().cloned() || !left_over.goes_on(&record) {
            return None;
        }
        let patched = crate::proto::record::patch(&bytes, &left_over.entries).ok()??;
        self.take(Token::parse(&patched).ok()?, rng);
        self.origin = Origin::Ours { margin: BLOCKING_MARGIN };
        self.spent = left_over.replaces.iter().cloned().collect();
        Some(self.ours_on(&record, bytes))
    }

    /// Notes the store's record. Once it has our own refresh token, the oldest spent ones are forgotten.
    fn lies_in_store(&mut self, bytes: Bytes, record: Token) {
        if record.refresh_token == self.token.refresh_token {
            self.forget_spent(REMEMBERED);
        }
        self.seen = Some((bytes, record));
    }

    fn forget_spent(&mut self, but: usize) {
        self.spent.drain(..self.spent.len().saturating_sub(but));
    }

    /// How a record in the store compares with what we hold (R46, R48).
    fn compare(&self, record: &Token) -> Age {
        let ours = self.token.refresh_token.as_ref();
        if record.kiro_api_key.is_some() || self.token.kiro_api_key.is_some() {
            return if *record == self.token { Age::Same } else { Age::Newer };
        }
        let (Some(theirs), Some(ours)) = (record.refresh_token.as_ref(), ours) else {
            let dropped = ours.is_some() && record.access_token.is_some();
            return if dropped { Age::WithoutRefreshToken } else { Age::Newer };
        };
        if theirs == ours {
            return match (record.expires_at, self.token.expires_at) {
                // Of two tokens from others the store's counts, even when it expires sooner.
                (Some(theirs), Some(ours)) if theirs < ours && self.is_ours() => Age::Older,
                _ if record.access_token == self.token.access_token && record.expires_at == self.token.expires_at => {
                    Age::Same
                }
                _ => Age::Newer,
            };
        }
        if self.is_behind_ours(theirs) { Age::Older } else { Age::Newer }
    }

    /// Whether the token in hand comes from a refresh of this process.
    pub(crate) fn is_ours(&self) -> bool {
        self.origin != Origin::Theirs
    }

    /// Whether our token has grown out of this one: it was spent here, or it lay in the store when ours came, however
    /// many refreshes ago, and still does.
    fn is_behind_ours(&self, theirs: &Secret) -> bool {
        let lay_there = |(_, seen): &(Bytes, Token)| seen.refresh_token.as_ref() == Some(theirs);
        self.is_ours() && self.seen.as_ref().is_some_and(lay_there) || self.spent.contains(&Fingerprint::of(theirs))
    }

    /// Uses somebody else's token from here on.
    fn adopt(&mut self, bytes: Bytes, token: Token, rng: &mut fastrand::Rng) {
        self.take_theirs(token.clone(), rng);
        self.lies_in_store(bytes, token);
    }

    /// Uses the record's token when somebody else refreshed: it is live, and `is_met_by` says that it differs from the
    /// one to be replaced.
    pub(crate) fn adopt_refreshed(
        &mut self,
        bytes: Bytes,
        record: Token,
        is_met_by: impl Fn(&Secret) -> bool,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> bool {
        let live = record.expires_at.is_some_and(|end| end > later(now, BLOCKING_MARGIN));
        if !live || !record.access_token.as_ref().is_some_and(is_met_by) {
            return false;
        }
        match self.compare(&record) {
            Age::Newer => self.adopt(bytes, record, rng),
            // A snapshot has adopted it already.
            Age::Same => {}
            Age::Older | Age::WithoutRefreshToken => return false,
        }
        true
    }

    /// The token to refresh with on this record: the record's, with our refresh token when its own is older or missing
    /// (R46, R48). Tokens `refused` a moment ago aren't tried again; replaced ones are the last resort. None: nothing
    /// is left.
    pub(crate) fn to_spend(&self, record: &Token, refused: &[Secret]) -> Option<Token> {
        let ours = matches!(self.compare(record), Age::Older | Age::WithoutRefreshToken);
        let ours = self.token.refresh_token.clone().filter(|_| ours);
        let first = ours.or(record.refresh_token.clone());
        if refused.is_empty() {
            return Some(Token { refresh_token: first, ..record.clone() });
        }
        let left = first.into_iter().chain(self.before.iter().rev().cloned()).find(|token| !refused.contains(token))?;
        Some(Token { refresh_token: Some(left), ..record.clone() })
    }

    /// The bearer token, when it needs no refresh first: an API key, an access token that lives for more than 10 s (a
    /// short-lived one of ours: for a quarter of its life), or one that can't be refreshed and is used until upstream
    /// rejects it (R43).
    pub(crate) fn live(&self, now: Timestamp) -> Option<&Secret> {
        if let Some(key) = &self.token.kiro_api_key {
            return Some(key);
        }
        let margin = match self.origin {
            Origin::Ours { margin } => margin,
            Origin::Theirs => BLOCKING_MARGIN,
        };
        let lives = match self.token.expires_at {
            Some(end) => end > later(now, margin),
            None => false,
        };
        let refreshable = self.token.refresh_token.is_some();
        self.token.access_token.as_ref().filter(|_| lives || (!refreshable && self.seen.is_some()))
    }

    /// Whether there is any credential (R15, "unusable"): without a record, only a live access token (R45).
    pub(crate) fn is_usable(&self, now: Timestamp) -> bool {
        match &self.seen {
            Some(_) => {
                let token = &self.token;
                token.kiro_api_key.is_some() || token.access_token.is_some() || token.can_refresh()
            }
            None => self.live(now).is_some(),
        }
    }

    /// Whether a background refresh should start now (R37, R52). `asked_for`: the record says `needsRefresh`, whatever else
    /// keeps the account from being stale.
    pub(crate) fn is_due(
        &self,
        state: HealthState,
        asked_for: bool,
        store_away: bool,
        threshold: Duration,
        now: Timestamp,
    ) -> bool {
        let refreshable = self.token.method() != Method::ApiKey && self.token.refresh_token.is_some();
        if !refreshable || self.seen.is_none() || self.is_pausing(now) {
            return false;
        }
        let quiet = |since: Option<Timestamp>, pause| since.is_none_or(|since| later(since, pause) <= now);
        if self.last_success.is_some_and(|at| is_near(at, now, QUIET_AFTER_SUCCESS)) {
            return false;
        }
        let expires_within = |margin| self.token.expires_at.is_none_or(|end| end <= later(now, margin));
        match state {
            HealthState::Disabled | HealthState::Unusable | HealthState::Ejected => false,
            _ if store_away => expires_within(LAST_MINUTE),
            HealthState::Quota { .. } => quiet(self.last_success.max(self.token.expires_at), QUOTA_REFRESH_EVERY),
            HealthState::NoProfile { .. }
            | HealthState::Cooling { .. }
            | HealthState::HalfOpen
            | HealthState::Stale
            | HealthState::Healthy => asked_for || expires_within(threshold.mul_f64(self.spread)),
        }
    }

    /// Whether a refresh must wait after failures (K60).
    pub(crate) fn is_pausing(&self, now: Timestamp) -> bool {
        self.trouble.not_before.is_some_and(|at| at > now && at <= later(now, LONGEST_PAUSE))
    }

    /// A forced refresh so soon after a success adopts it (R38).
    pub(crate) fn succeeded_lately(&self, now: Timestamp) -> bool {
        self.last_success.is_some_and(|at| is_near(at, now, FORCED_ADOPTS))
    }

    /// A refresh with `used` was granted: the new values serve from here on, saved or not (R40 step 5). `base` is the
    /// record read under the lock; the return value must be saved on it.
    pub(crate) fn granted(
        &mut self,
        used: &Secret,
        base: (Bytes, Token),
        grant: Grant,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> UnsavedToken {
        let (bytes, record) = base;
        let in_record = record.refresh_token.clone();
        let mut token = record.clone();
        token.access_token = Some(grant.access_token);
        // Rounded as it will be read back: a finer time would look newer than its own record.
        let end = later(now, grant.lifetime);
        token.expires_at = Some(Timestamp::from_millisecond(end.as_millisecond()).unwrap_or(end));
        let rotated = grant.refresh_token.filter(|new| new != used);
        if rotated.is_some() {
            self.forget_spent(REMEMBERED_UNSAVED - 1);
            self.spent.push_back(Fingerprint::of(used));
        }
        token.refresh_token = Some(rotated.unwrap_or_else(|| used.clone()));
        let told = grant.profile_arn;
        token.profile_arn = told.clone().or(token.profile_arn);
        let region = grant.idc_region.filter(|_| token.idc_region.is_none());
        token.idc_region = region.clone().or(token.idc_region);
        self.take(token, rng);
        self.origin = Origin::Ours { margin: BLOCKING_MARGIN.min(grant.lifetime.mul_f64(SHORT_LIFE_MARGIN)) };
        self.before.clear();
        self.seen = Some((bytes.clone(), record));
        self.last_success = Some(now);
        self.trouble = Trouble::default();
        // Any other profile is the record's own, and somebody may have changed it by the time of the write.
        let ours = |entry: &Entry| told.is_some() || self.learned.is_some() || !matches!(entry, Entry::ProfileArn(_));
        let mut entries: Vec<Entry> = self.entries().into_iter().filter(ours).collect();
        entries.extend(region.map(Entry::IdcRegion));
        self.unsaved(bytes, in_record.as_ref(), entries)
    }

    /// The token to be written on `base`, whose refresh token is `in_record`, or on the store's record at that time.
    fn unsaved(&self, base: Bytes, in_record: Option<&Secret>, entries: Vec<Entry>) -> UnsavedToken {
        let replaces = self.spent.iter().cloned().chain(in_record.map(Fingerprint::of)).collect();
        UnsavedToken { key: self.key.clone(), base, replaces, entries }
    }

    /// The record in the store is now this.
    pub(crate) fn saved(&mut self, bytes: Bytes) {
        if let Ok(token) = Token::parse(&bytes) {
            // The fields that somebody else changed meanwhile, such as the region.
            self.keep_ours(&token);
            self.lies_in_store(bytes, token);
        }
    }

    /// The store holds this instead of our token, and ours hasn't grown out of it. It is used, unless a snapshot has
    /// brought a newer one meanwhile.
    pub(crate) fn replaced_by(&mut self, bytes: Bytes, rng: &mut fastrand::Rng) {
        if let Ok(record) = Token::parse(&bytes)
            && self.compare(&record) == Age::Newer
        {
            self.adopt(bytes, record, rng);
        }
    }

    /// The refresh failed for now: the next one comes after `1 s · 2ⁿ`, at most 60 s, less a random part of up to half.
    pub(crate) fn failed(&mut self, now: Timestamp, rng: &mut fastrand::Rng) {
        let trouble = &mut self.trouble;
        let whole = doubled(FIRST_PAUSE, trouble.failures, LONGEST_PAUSE);
        trouble.failures = trouble.failures.saturating_add(1);
        trouble.not_before = Some(later(now, whole.mul_f64(0.5 + rng.f64() / 2.0)));
    }

    /// The refresh could not connect: nothing was sent and nothing spent, so the next one comes soon. When the network
    /// is back the account serves within a second.
    pub(crate) fn unreached(&mut self, now: Timestamp) {
        self.trouble.failures = self.trouble.failures.max(1);
        self.trouble.not_before = Some(later(now, UNREACHED_PAUSE));
    }

    /// A new token could not be saved, so none was asked for. The next try comes without a pause. True: it is the first.
    pub(crate) fn cannot_save(&mut self) -> bool {
        let first = self.trouble.failures == 0;
        self.trouble.failures = self.trouble.failures.max(1);
        first
    }

    /// Whether a request could be sent now: with a live token, or after a refresh that may start now.
    pub(crate) fn can_serve(&self, now: Timestamp) -> bool {
        self.live(now).is_some() || (self.trouble.failures == 0 && self.token.can_refresh())
    }

    /// The refresh was refused. True: believed, the account is to be ejected (K57–K59, K61).
    pub(crate) fn refused(&mut self, kind: Refusal, now: Timestamp) -> bool {
        match kind {
            Refusal::Rejected | Refusal::RegistrationExpired | Refusal::ClientRefused => true,
            Refusal::Passing | Refusal::ClientVersion => false,
            Refusal::Doubtful | Refusal::Unknown => {
                let count = match self.trouble.refusals {
                    Some(before) if before.kind != kind => 1,
                    Some(before) if kind == Refusal::Doubtful && later(before.last, DOUBTS_APART) > now => {
                        return false;
                    }
                    Some(before) => before.count.saturating_add(1),
                    None => 1,
                };
                self.trouble.refusals = Some(Refusals { kind, count, last: now });
                count >= BELIEVED_AT
            }
        }
    }

    /// The profile that the look-up found (K79), to be saved. When the record has no region, the profile's is written
    /// with it, and then the identity region in use too, because readers of the record fall back to `region`.
    pub(crate) fn learned_profile(
        &mut self,
        arn: String,
        region: Option<String>,
        idc_region: &str,
    ) -> Option<UnsavedToken> {
        let base = self.seen()?.clone();
        let region = region.filter(|_| self.token.region.is_none());
        let idc_region = region.as_ref().filter(|_| self.token.idc_region.is_none()).map(|_| idc_region.to_owned());
        let found = FoundProfile { arn, region, idc_region, replaces: self.token.profile_arn.clone() };
        found.put_on(&mut self.token);
        let entries = found.entries().collect();
        self.learned = Some(found);
        let in_record = self.seen.as_ref().and_then(|(_, token)| token.refresh_token.clone());
        Some(self.unsaved(base, in_record.as_ref(), entries))
    }

    /// Our token, to be written on a record of the store.
    fn ours_on(&self, record: &Token, base: Bytes) -> UnsavedToken {
        self.unsaved(base, record.refresh_token.as_ref(), self.entries())
    }

    fn entries(&self) -> Vec<Entry> {
        self.token.granted().chain(self.learned.iter().flat_map(FoundProfile::entries)).collect()
    }

    /// The record lost its refresh token (R46). Its access token is newer than ours; our refresh token goes back in.
    fn put_back(
        &mut self,
        record: &Token,
        base: &Bytes,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> Option<UnsavedToken> {
        let ours = self.token.refresh_token.clone()?;
        if *record != (Token { refresh_token: None, ..self.token.clone() }) {
            self.take(Token { refresh_token: Some(ours.clone()), ..record.clone() }, rng);
        }
        if self.put_back.is_some_and(|at| later(at, PUT_BACK_EVERY) > now) {
            return None;
        }
        self.put_back = Some(now);
        Some(self.unsaved(base.clone(), Some(&ours), vec![Entry::RefreshToken(ours.clone())]))
    }

    /// Takes all fields of the record except those that a refresh brings.
    fn keep_ours(&mut self, record: &Token) {
        let ours = std::mem::take(&mut self.token);
        self.token = Token {
            access_token: ours.access_token,
            refresh_token: ours.refresh_token,
            expires_at: ours.expires_at,
            profile_arn: record.profile_arn.clone().or(ours.profile_arn),
            ..record.clone()
        };
        self.overlay(record.profile_arn.as_ref());
    }

    /// The found profile counts until the store's record has it, or has changed its ARN otherwise.
    fn overlay(&mut self, in_record: Option<&String>) {
        self.learned = self.learned.take().filter(|found| found.replaces.as_ref() == in_record);
        if let Some(found) = &self.learned {
            found.put_on(&mut self.token);
        }
    }

    fn take_theirs(&mut self, token: Token, rng: &mut fastrand::Rng) {
        if let Some(ours) = self.token.refresh_token.clone()
            && token.refresh_token.as_ref().is_some_and(|theirs| *theirs != ours)
        {
            self.before.retain(|before| *before != ours);
            self.before.push_back(ours);
            self.before.drain(..self.before.len().saturating_sub(MOST_BEFORE));
        }
        self.take(token, rng);
    }

    fn take(&mut self, token: Token, rng: &mut fastrand::Rng) {
        if token.access_token != self.token.access_token || token.refresh_token != self.token.refresh_token {
            self.spread = 1.0 - 0.2 * rng.f64();
            // A new login or another process's success: our pauses and doubts concerned the old token.
            self.trouble = Trouble::default();
            self.origin = Origin::Theirs;
        }
        let in_record = token.profile_arn.clone();
        self.token = token;
        self.overlay(in_record.as_ref());
    }
}

/// How a token record compares with what we hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// The same tokens.
    Same,
    /// From somebody else: adopt it.
    Newer,
    /// Adopt it, but put our refresh token back in (R46).
    WithoutRefreshToken,
    /// A late write of a token that we have used up: write ours again (R48).
    Older,
}

/// Whether it was less than `within` ago. The wall clock may have been set back since: a time ahead of it by more than
/// `within` doesn't count.
fn is_near(at: Timestamp, now: Timestamp, within: Duration) -> bool {
    now.duration_since(at).unsigned_abs() < within
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        "2026-11-23T10:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
    }

    fn rng() -> fastrand::Rng {
        fastrand::Rng::with_seed(7)
    }

    fn record(access: &str, refresh: &str, expires: i64) -> String {
        format!(r#"{{"accessToken":"{access}","refreshToken":"{refresh}","expiresAt":"{}"}}"#, at(expires))
    }

    fn seen(credential: &mut Credential, record: &str, now: i64) -> TokenChange {
        let bytes = Bytes::copy_from_slice(record.as_bytes());
        credential.observe(Some((TokenKey::of("a1"), bytes)), at(now), &mut rng()).unwrap()
    }

    fn holding(record: &str) -> Credential {
        let mut credential = Credential::new(TokenKey::of("a1"));
        assert!(seen(&mut credential, record, 0).write_back.is_none());
        credential
    }

    fn grant(access: &str, refresh: Option<&str>) -> Grant {
        let refresh_token = refresh.map(Secret::new);
        Grant {
            access_token: Secret::new(access),
            refresh_token,
            lifetime: Duration::from_secs(3600),
            profile_arn: None,
            idc_region: None,
        }
    }

    /// A refresh with the token in hand, saved unless `lost`.
    fn refresh(credential: &mut Credential, access: &str, rotated: Option<&str>, now: i64, lost: bool) -> UnsavedToken {
        let bytes = credential.seen().unwrap().clone();
        let token = Token::parse(&bytes).unwrap();
        let used = credential.token().refresh_token.clone().unwrap();
        let unsaved = credential.granted(&used, (bytes, token), grant(access, rotated), at(now), &mut rng());
        if !lost {
            let saved = crate::proto::record::patch(&unsaved.base, &unsaved.entries).unwrap().unwrap();
            credential.saved(saved.into());
        }
        unsaved
    }

    fn access(credential: &Credential) -> &str {
        credential.token().access_token.as_ref().unwrap().expose()
    }

    fn refresh_token(credential: &Credential) -> &str {
        credential.token().refresh_token.as_ref().unwrap().expose()
    }

    #[test]
    fn a_token_is_live_only_for_more_than_ten_seconds_r38_r43_trap_37() {
        let credential = holding(&record("a", "r", 100));
        assert!(credential.live(at(89)).is_some());
        assert!(credential.live(at(90)).is_none());
        let without_end = holding(r#"{"accessToken":"a","refreshToken":"r"}"#);
        assert!(without_end.live(at(0)).is_none(), "R43: absent counts as expired");
        let unrefreshable = holding(r#"{"accessToken":"a"}"#);
        assert_eq!(unrefreshable.live(at(1_000_000)).unwrap().expose(), "a", "R43: used until upstream rejects it");
        let key = holding(r#"{"kiroApiKey":"ksk_1","accessToken":"a","refreshToken":"r"}"#);
        assert_eq!(key.live(at(0)).unwrap().expose(), "ksk_1");
        assert!(!key.is_due(HealthState::Healthy, false, false, Duration::from_secs(300), at(0)));
        assert!(!holding("{}").is_usable(at(0)));
    }

    #[test]
    fn a_lost_record_serves_to_the_end_of_its_access_token_r45() {
        let mut credential = holding(&record("a", "r", 100));
        let lost = credential.observe(None, at(1), &mut rng()).unwrap();
        assert!(lost.lost && credential.is_usable(at(80)) && !credential.is_usable(at(90)));
        assert!(!credential.observe(None, at(2), &mut rng()).unwrap().lost, "told once");
        assert!(
            !credential.is_due(HealthState::Healthy, false, false, Duration::from_secs(300), at(50)),
            "nothing to refresh in"
        );
        seen(&mut credential, &record("b", "r2", 100), 3);
        assert_eq!(access(&credential), "b");
    }

    /// Acceptance case 31.
    #[test]
    fn a_late_replay_of_a_used_up_token_is_overwritten_r48() {
        let old = record("old", "refresh-1", 0);
        let mut credential = holding(&old);
        refresh(&mut credential, "new", Some("refresh-2"), 0, false);
        let with_region = old.replace('{', r#"{"region":"eu-west-1","#);
        let unsaved = seen(&mut credential, &with_region, 5).write_back.expect("ours is written again");
        assert_eq!((access(&credential), refresh_token(&credential)), ("new", "refresh-2"));
        assert_eq!(credential.token().region.as_deref(), Some("eu-west-1"), "other fields are the record's");
        assert_eq!(unsaved.base.as_ref(), with_region.as_bytes());
        assert!(unsaved.replaces.contains(&Fingerprint::of(&Secret::new("refresh-1"))));
        let written = crate::proto::record::patch(&unsaved.base, &unsaved.entries).unwrap().unwrap();
        assert!(
            seen(&mut credential, &String::from_utf8(written).unwrap(), 6).write_back.is_none(),
            "then there is peace"
        );
    }

    #[test]
    fn thirty_two_spent_tokens_are_remembered_and_others_are_adopted_r48() {
        let mut credential = holding(&record("t0", "refresh-0", 0));
        for n in 1..=33 {
            refresh(&mut credential, &format!("t{n}"), Some(&format!("refresh-{n}")), n, false);
        }
        for n in 1..=32 {
            assert!(seen(&mut credential, &record("x", &format!("refresh-{n}"), 9), 9).write_back.is_some(), "{n}");
        }
        assert_eq!(refresh_token(&credential), "refresh-33");
        refresh(&mut credential, "t34", Some("refresh-34"), 34, false);
        assert!(seen(&mut credential, &record("x", "refresh-0", 9_999), 9).write_back.is_none());
        assert_eq!(refresh_token(&credential), "refresh-0");
    }

    /// While nothing can be written, the store's token is older than ours, however many refreshes ago.
    #[test]
    fn the_record_that_ours_grew_out_of_stays_older_r48_r51() {
        let mut credential = holding(&record("t0", "refresh-0", 0));
        for n in 1..=2_000 {
            refresh(&mut credential, &format!("t{n}"), Some(&format!("refresh-{n}")), n, true);
        }
        assert!(credential.spent.len() <= REMEMBERED_UNSAVED);
        for n in [1_500, 1_999] {
            assert!(seen(&mut credential, &record("x", &format!("refresh-{n}"), 9), 9).write_back.is_some(), "{n}");
        }
        let mut credential = holding(&record("t0", "refresh-0", 0));
        for n in 1..=2_000 {
            refresh(&mut credential, &format!("t{n}"), Some(&format!("refresh-{n}")), n, true);
            assert!(seen(&mut credential, &record("t0", "refresh-0", 0), n).write_back.is_some(), "{n}");
        }
        assert_eq!(refresh_token(&credential), "refresh-2000");
        refresh(&mut credential, "t2001", Some("refresh-2001"), 2_001, false);
        seen(&mut credential, &record("t2001", "refresh-2001", 5_601), 2_002);
        assert_eq!(credential.spent.len(), REMEMBERED, "saved: the rest is forgotten");
    }

    #[test]
    fn a_token_that_lives_for_seconds_is_used_for_most_of_them_r38() {
        let mut credential = holding(&record("old", "r", 0));
        let bytes = credential.seen().unwrap().clone();
        let base = (bytes.clone(), Token::parse(&bytes).unwrap());
        let grant = Grant { lifetime: Duration::from_secs(4), ..grant("short", None) };
        credential.granted(&Secret::new("r"), base, grant, at(0), &mut rng());
        assert!(credential.live(at(2)).is_some() && credential.live(at(3)).is_none());
    }

    #[test]
    fn a_clock_that_was_set_back_holds_no_refresh_up_r37_r38_k60() {
        let mut credential = holding(&record("old", "r", 0));
        refresh(&mut credential, "new", None, 0, false);
        assert!(
            credential.succeeded_lately(at(29))
                && credential.succeeded_lately(at(-1))
                && !credential.succeeded_lately(at(30))
        );
        assert!(!credential.succeeded_lately(at(-7_200)), "a success in two hours is none");
        let is_due = |credential: &Credential, now| {
            credential.is_due(HealthState::Stale, true, false, Duration::from_secs(300), at(now))
        };
        assert!(!is_due(&credential, 59) && is_due(&credential, 60) && is_due(&credential, -7_200));
        credential.failed(at(0), &mut rng());
        assert!(credential.is_pausing(at(0)) && !credential.is_pausing(at(-7_200)) && is_due(&credential, -7_200));
    }

    #[test]
    fn the_same_refresh_token_with_an_earlier_end_is_older_r48() {
        let mut credential = holding(&record("old", "r", 0));
        refresh(&mut credential, "new", None, 0, true);
        assert_eq!(
            (access(&credential), refresh_token(&credential)),
            ("new", "r"),
            "K54: no refresh token erases nothing"
        );
        assert!(seen(&mut credential, &record("old", "r", 0), 5).write_back.is_some(), "an unsaved token is saved");
        assert_eq!(access(&credential), "new");
        assert!(seen(&mut credential, &record("newer", "r", 9_000), 6).write_back.is_none());
        assert_eq!(access(&credential), "newer", "somebody else's later one is adopted");
    }

    /// A forced refresh may bring a token that ends before the one that upstream rejected.
    #[test]
    fn a_token_of_others_never_overwrites_a_token_of_others_r48() {
        let mut credential = holding(&record("long", "r", 86_400));
        assert!(seen(&mut credential, &record("short", "r", 3_600), 1).write_back.is_none());
        assert_eq!(access(&credential), "short");
    }

    #[test]
    fn a_token_that_does_not_rotate_is_not_used_up() {
        let mut credential = holding(&record("old", "r", 0));
        refresh(&mut credential, "new", Some("r"), 0, false);
        assert!(credential.spent.is_empty());
    }

    /// Acceptance case 32.
    #[test]
    fn a_dropped_refresh_token_is_put_back_at_most_once_a_minute_r46() {
        let mut credential = holding(&record("a", "refresh-1", 100));
        let dropped = format!(r#"{{"accessToken":"b","expiresAt":"{}"}}"#, at(9_000));
        let unsaved = seen(&mut credential, &dropped, 0).write_back.unwrap();
        assert_eq!(unsaved.entries, [Entry::RefreshToken(Secret::new("refresh-1"))]);
        assert_eq!(
            (access(&credential), refresh_token(&credential)),
            ("b", "refresh-1"),
            "its access token is the newer one"
        );
        assert!(seen(&mut credential, &dropped, 59).write_back.is_none());
        assert!(seen(&mut credential, &dropped, 60).write_back.is_some());
    }

    /// A profile that could not be saved before the next refresh is saved with it; once it was, it is the record's.
    #[test]
    fn a_profile_that_was_found_outlives_a_refresh_k64_r51() {
        let mut credential = holding(&record("a", "r", 0));
        assert!(credential.learned_profile("arn:found".to_owned(), None, "us-east-1").is_some());
        let unsaved = refresh(&mut credential, "b", None, 0, true);
        assert!(unsaved.entries.contains(&Entry::ProfileArn("arn:found".to_owned())));
        assert_eq!(credential.token().profile_arn.as_deref(), Some("arn:found"));
        refresh(&mut credential, "c", None, 100, false);
        seen(&mut credential, &record("c", "r", 3700), 110);
        let unsaved = refresh(&mut credential, "d", None, 200, true);
        assert!(!unsaved.entries.iter().any(|entry| matches!(entry, Entry::ProfileArn(_))), "somebody took it out");
    }

    /// The regions go with it where the record has none, and stay in hand until the record has them.
    #[test]
    fn a_found_profile_takes_its_regions_along_and_replaces_a_fixed_one_k79_p6_p9() {
        let mut credential = holding(&record("a", "r", 100));
        let unsaved =
            credential.learned_profile("arn:E2".to_owned(), Some("eu-central-1".to_owned()), "us-east-1").unwrap();
        let written = crate::proto::record::patch(&unsaved.base, &unsaved.entries).unwrap().unwrap();
        let expected = record("a", "r", 100)
            .replace('}', r#","profileArn":"arn:E2","region":"eu-central-1","idcRegion":"us-east-1"}"#);
        assert_eq!(String::from_utf8(written.clone()).unwrap(), expected);
        seen(&mut credential, &record("a", "r", 100), 1);
        let regions =
            |credential: &Credential| (credential.token().region.clone(), credential.token().idc_region.clone());
        let ours = (Some("eu-central-1".to_owned()), Some("us-east-1".to_owned()));
        assert_eq!((credential.token().profile_arn.as_deref(), regions(&credential)), (Some("arn:E2"), ours.clone()));
        seen(&mut credential, &String::from_utf8(written).unwrap(), 2);
        assert_eq!((credential.learned.clone(), regions(&credential)), (None, ours));

        let fixed = record("a", "r", 100).replace('}', r#","profileArn":"arn:B","region":"us-east-1"}"#);
        let mut credential = holding(&fixed);
        let unsaved =
            credential.learned_profile("arn:E1".to_owned(), Some("eu-central-1".to_owned()), "us-east-1").unwrap();
        assert_eq!(unsaved.entries, [Entry::ProfileArn("arn:E1".to_owned())], "its region is the record's own");
        seen(&mut credential, &fixed, 1);
        assert_eq!(credential.token().profile_arn.as_deref(), Some("arn:E1"));
        seen(&mut credential, &fixed.replace("arn:B", "arn:by-hand"), 2);
        assert_eq!(credential.token().profile_arn.as_deref(), Some("arn:by-hand"), "somebody else's");
    }

    #[test]
    fn the_region_of_a_grant_is_written_when_the_record_has_none_k76_p24() {
        let told = |record: &str| {
            let mut credential = holding(record);
            let bytes = credential.seen().unwrap().clone();
            let token = Token::parse(&bytes).unwrap();
            let used = credential.token().refresh_token.clone().unwrap();
            let grant = Grant { idc_region: Some("eu-west-1".to_owned()), ..grant("b", None) };
            let unsaved = credential.granted(&used, (bytes, token), grant, at(0), &mut rng());
            (unsaved.entries.contains(&Entry::IdcRegion("eu-west-1".to_owned())), credential.token().idc_region.clone())
        };
        assert_eq!(told(&record("a", "r", 0)), (true, Some("eu-west-1".to_owned())));
        let has = record("a", "r", 0).replace('}', r#","idcRegion":"us-east-1"}"#);
        assert_eq!(told(&has), (false, Some("us-east-1".to_owned())), "P23: another one stays");
    }

    #[test]
    fn a_background_refresh_is_due_before_the_token_ends_r37_k55() {
        let threshold = Duration::from_secs(300);
        let due = |credential: &Credential, state, away, now| {
            credential.is_due(state, state == HealthState::Stale, away, threshold, at(now))
        };
        let mut credential = holding(&record("a", "r", 3600));
        assert!(
            !due(&credential, HealthState::Healthy, false, 3299) && due(&credential, HealthState::Healthy, false, 3361)
        );
        credential.spread = 1.0;
        assert!(due(&credential, HealthState::Healthy, false, 3300));
        credential.spread = 0.8;
        assert!(
            !due(&credential, HealthState::Healthy, false, 3300) && due(&credential, HealthState::Healthy, false, 3360)
        );
        assert!(due(&credential, HealthState::Stale, false, 0), "needsRefresh");
        let until = at(1_000_000);
        for never in [HealthState::Disabled, HealthState::Unusable, HealthState::Ejected] {
            assert!(!due(&credential, never, false, 5_000), "{never:?}");
        }
        assert!(!due(&credential, HealthState::Quota { until }, false, 3600 + 86_399), "once a day");
        assert!(due(&credential, HealthState::Quota { until }, false, 3600 + 86_400));
        assert!(
            !due(&credential, HealthState::Healthy, true, 3539) && due(&credential, HealthState::Healthy, true, 3540),
            "R52"
        );
        assert!(!due(&credential, HealthState::Stale, true, 0));
        refresh(&mut credential, "b", None, 3400, false);
        assert!(
            !due(&credential, HealthState::Stale, false, 3459) && due(&credential, HealthState::Stale, false, 3460),
            "quiet for a minute"
        );
    }

    #[test]
    fn thresholds_of_instances_differ_by_up_to_a_fifth_r37() {
        let mut rng = fastrand::Rng::with_seed(1);
        let spreads: Vec<f64> = (0..200)
            .map(|n| {
                let mut credential = Credential::new(TokenKey::of("a"));
                credential.take(Token::parse(record(&n.to_string(), "r", 1).as_bytes()).unwrap(), &mut rng);
                credential.spread
            })
            .collect();
        assert!(spreads.iter().all(|spread| (0.8..=1.0).contains(spread)));
        assert!(spreads.iter().any(|s| *s < 0.84) && spreads.iter().any(|s| *s > 0.96));
    }

    #[test]
    fn pauses_double_to_a_minute_and_end_with_a_success_k60() {
        let mut credential = holding(&record("a", "r", 0));
        let mut rng = rng();
        for whole in [1, 2, 4, 8, 16, 32, 60, 60] {
            credential.failed(at(0), &mut rng);
            let pause = credential.trouble.not_before.unwrap().duration_since(at(0)).as_secs_f64();
            assert!((f64::from(whole) / 2.0..=f64::from(whole)).contains(&pause), "{whole}: {pause}");
        }
        assert!(
            credential.is_pausing(at(0))
                && !credential.is_due(HealthState::Healthy, false, false, Duration::ZERO, at(0))
        );
        refresh(&mut credential, "b", None, 0, false);
        assert!(!credential.is_pausing(at(0)) && credential.trouble.failures == 0);
    }

    #[test]
    fn clear_refusals_are_believed_at_once_and_doubtful_ones_at_the_third_k57_to_k61() {
        let mut credential = holding(&record("a", "r", 0));
        assert!(
            credential.refused(Refusal::Rejected, at(0)) && credential.refused(Refusal::RegistrationExpired, at(0))
        );
        assert!((0..9).all(|n| !credential.refused(Refusal::Passing, at(n))));
        let doubts = [0, 30, 60, 100, 120].map(|now| credential.refused(Refusal::Doubtful, at(now)));
        assert_eq!(doubts, [false, false, false, false, true], "the third, 60 s apart or more");
        let unknown = [200, 201, 202].map(|now| credential.refused(Refusal::Unknown, at(now)));
        assert_eq!(unknown, [false, false, true]);
        credential.refused(Refusal::Doubtful, at(300));
        assert!(!credential.refused(Refusal::Unknown, at(301)), "in a row");
        refresh(&mut credential, "b", None, 302, false);
        assert!(credential.trouble.refusals.is_none());
    }

    #[test]
    fn a_broken_record_changes_nothing_in_hand() {
        let mut credential = holding(&record("a", "r", 100));
        let broken = Some((TokenKey::of("a1"), Bytes::from_static(b"[]")));
        assert!(credential.observe(broken, at(0), &mut rng()).is_err());
        assert_eq!(access(&credential), "a");
    }
}
