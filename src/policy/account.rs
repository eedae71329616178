//! An account in memory: its record, its view, its health, its credential, the lessons of its answers.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::credential::{Credential, TokenChange};
use super::health::{Health, HealthState, Rules};
use super::later;
use super::learned::Learned;
use super::view::{self, AccountId, AccountView, Addresses, Sources, Urls, Viewed};
use crate::proto::record::{Account, Method, Standing, Token, TokenKey, Unusable};
use crate::secret::Secret;

/// The time that `KIRO_ACCOUNT_RPM` counts in (K92).
const MINUTE: Duration = Duration::from_secs(60);

/// One account as this process knows it.
pub(crate) struct PoolAccount {
    /// The account record as the store has it.
    pub(crate) record: Bytes,
    /// The parsed record; while the record is unreadable, the last readable one.
    pub(crate) account: Option<Account>,
    token_record: Option<(TokenKey, Bytes)>,
    pub(crate) view: Arc<AccountView>,
    /// Addresses that a host program's configuration names for this account (N4).
    pub(crate) lent: Addresses,
    /// The same for all accounts (N94).
    pub(crate) lent_to_all: Arc<Addresses>,
    /// Why the account is unusable, naming the record or the field: of the account record, the token record, the view.
    problems: [Option<String>; 3],
    warnings: Vec<String>,
    pub(crate) health: Health,
    pub(crate) credential: Credential,
    /// When its last conversations were sent, for the limits of K92.
    // Bound: per account: when its last conversations were sent | KIRO_ACCOUNT_RPM, or the brake's limit | the oldest goes
    sent: VecDeque<Timestamp>,
    /// The end of the suspicious rest that the brake has counted.
    suspected: Option<Timestamp>,
    /// The ARN that upstream rejected; an empty one when none was sent.
    pub(crate) arn_rejected: Option<String>,
    /// The lessons of its answers (R72).
    pub(crate) learned: Learned,
}

impl PoolAccount {
    /// An account without a record yet.
    pub(crate) fn new(id: &AccountId, urls: &Arc<Urls>, rules: Rules, now: Timestamp) -> Self {
        let view = view::of_token(id, &Token::default(), urls);
        Self {
            record: Bytes::new(),
            account: None,
            token_record: None,
            view: Arc::new(view),
            lent: Addresses::default(),
            lent_to_all: Arc::default(),
            problems: [None, None, None],
            warnings: Vec::new(),
            health: Health::new(Standing::default(), rules, now),
            credential: Credential::new(TokenKey::of(id)),
            sent: VecDeque::new(),
            suspected: None,
            arn_rejected: None,
            learned: Learned::default(),
        }
    }

    /// Takes the store's account record. An unreadable one makes the account unusable (R9).
    pub(crate) fn take_record(&mut self, record: Bytes, parsed: Result<Account, Unusable>) {
        self.problems[0] = parsed.as_ref().err().map(|error| format!("account record: {error}"));
        self.account = parsed.ok().or(self.account.take());
        self.record = record;
    }

    /// The account record, if the store's is readable.
    pub(crate) fn readable(&self) -> Option<&Account> {
        self.account.as_ref().filter(|_| self.problems[0].is_none())
    }

    pub(crate) fn has_token_record(&self, record: Option<&(TokenKey, Bytes)>) -> bool {
        self.token_record.as_ref() == record
    }

    /// Takes the store's token record (R46, R48).
    pub(crate) fn take_token(
        &mut self,
        record: Option<(TokenKey, Bytes)>,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> TokenChange {
        self.token_record.clone_from(&record);
        let observed = self.credential.observe(record, now, rng);
        self.problems[1] = observed.as_ref().err().map(|error| format!("token record: {error}"));
        observed.unwrap_or_default()
    }

    pub(crate) fn state(&self, now: Timestamp) -> HealthState {
        match self.health.state(self.is_usable(now), now) {
            served if served.is_served() => {
                self.learned.no_profile_until(now).map_or(served, |until| HealthState::NoProfile { until })
            }
            other => other,
        }
    }

    /// When its access token expires; none for API keys.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        self.credential.token().expires_at.filter(|_| self.view.method != Method::ApiKey)
    }

    pub(crate) fn is_usable(&self, now: Timestamp) -> bool {
        self.problem().is_none() && self.credential.is_usable(now)
    }

    pub(crate) fn problem(&self) -> Option<&str> {
        self.problems.iter().flatten().next().map(String::as_str)
    }

    pub(crate) fn viewed(&self, token: &Token, urls: &Arc<Urls>) -> Viewed {
        let (account, lent, learned) = (self.account.as_ref(), &self.lent.or(&self.lent_to_all), &self.learned);
        view::view(&self.view.id, &Sources { account, lent, token, learned, urls })
    }

    /// A hash of the fields on which the lessons depend (R72).
    pub(crate) fn identity(&self) -> u64 {
        let (token, account) = (self.credential.token(), self.account.as_ref());
        let secret = |field: &Option<Secret>| field.as_ref().map(|secret| secret.expose().to_owned());
        let mut hasher = DefaultHasher::new();
        let named = [&token.auth_method, &token.provider, &token.start_url, &token.profile_arn, &token.region];
        (named, &token.idc_region, &token.api_region).hash(&mut hasher);
        (secret(&token.client_id), secret(&token.kiro_api_key)).hash(&mut hasher);
        account.map(|account| (&account.profile_arn, &account.region)).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether its profiles may be looked up (K79).
    pub(crate) fn may_look_up(&self, now: Timestamp) -> bool {
        self.view.kind().has_profiles() && self.learned.may_ask_profiles(now)
    }

    /// We changed the record ourselves: the lessons stay (R72).
    pub(crate) fn goes_on(&mut self) {
        self.learned.goes_on_with(self.identity());
    }

    /// Makes the view again after a change of record or token. Returns the newly ignored fields.
    pub(crate) fn review(&mut self, urls: &Arc<Urls>, now: Timestamp) -> Vec<String> {
        self.learned.belongs_to(self.identity());
        let viewed = self.viewed(self.credential.token(), urls);
        self.problems[2] = viewed.problem;
        let before = std::mem::replace(&mut self.warnings, viewed.warnings);
        let arn = viewed.view.profile_arn().filter(|arn| !arn.is_empty());
        if arn.is_some() && arn != self.arn_rejected.as_deref() {
            self.arn_rejected = None;
        }
        if viewed.view != *self.view {
            self.view = Arc::new(viewed.view);
        }
        self.health.set_fingerprint(self.credential.fingerprint(), now);
        self.warnings.iter().filter(|warning| !before.contains(warning)).cloned().collect()
    }

    /// When the account turned suspicious, here or in another process; each time once.
    pub(crate) fn turned_suspicious(&mut self) -> Option<Timestamp> {
        let (until, at) = self.health.suspected()?;
        (self.suspected.replace(until) != Some(until)).then_some(at)
    }

    pub(crate) fn supports(&self, model_names: &[&str]) -> bool {
        self.account.as_ref().is_none_or(|account| account.supports(model_names))
    }

    /// Whether it has refused the model lately (K88).
    pub(crate) fn has_refused(&self, kiro_id: &str, now: Timestamp) -> bool {
        !kiro_id.is_empty() && self.learned.refuses_model(kiro_id, now)
    }

    pub(crate) fn serves(&self, model_names: &[&str], kiro_id: &str, now: Timestamp) -> bool {
        self.supports(model_names) && !self.has_refused(kiro_id, now)
    }

    /// A conversation is sent to it: it counts in its minute (K92). The last `most` are kept.
    pub(crate) fn sends(&mut self, most: u32, now: Timestamp) {
        self.sent.push_back(now);
        while self.sent.len() > usize::try_from(most).unwrap_or(usize::MAX) {
            self.sent.pop_front();
        }
    }

    /// When its first place in the minute is free again; none: there is a free one.
    pub(crate) fn paced_until(&self, per_minute: u32, now: Timestamp) -> Option<Timestamp> {
        let limit = usize::try_from(per_minute).ok().filter(|limit| *limit > 0)?;
        let oldest = *self.sent.get(self.sent.len().checked_sub(limit)?)?;
        Some(later(oldest, MINUTE)).filter(|free| oldest <= now && *free > now)
    }
}
