//! Puts the accounts that [`source`] found into the store (R62, R78, R86).
//!
//! # Cancellation
//! Dropping [`Import::add`] leaves the accounts that were added so far.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::source::{self, Gathered};
use super::{Intake, ProfileSource};
use crate::config::{Config, StoreKind, UpstreamKind};
use crate::proto::record::import::{Checked, FoundAccount, ImportedAccount, check};
use crate::proto::record::{Method, Token, TokenKey, is_account_id, rfc3339};
use crate::secret::Secret;
use crate::store::{Added, KnownLogins, NewAccount, StoreError};

const MAX_NAME: usize = 100;
/// How many accounts are written at a time: the file store rewrites its file each time.
const AT_A_TIME: usize = 500;
/// Kiro's refresh tokens are longer (contract/accounts.md, "Tokens").
const SHORTEST_REFRESH_TOKEN: usize = 100;
/// The times by which a program that keeps the pool in memory may have written it back without the new accounts (R106).
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// Which accounts of a source to take, and how.
#[derive(Default)]
pub struct Choice<'a> {
    /// Only the n-th, counted from 1.
    pub only: Option<usize>,
    /// Only the account with this name or key.
    pub key: Option<&'a str>,
    /// The name of the account, in place of its source's.
    pub name: Option<String>,
    /// Nothing is written.
    pub dry: bool,
    /// Kiro isn't asked for the profile.
    pub offline: bool,
}

/// An account with the name that it has in its source, checked; or why it can't be added.
type Prepared = (String, Result<(ImportedAccount, Checked), String>);

/// Accounts that are ready to be added.
pub struct Import {
    ready: Vec<Prepared>,
    is_single: bool,
    is_shared: bool,
    notes: Vec<String>,
    name: Option<String>,
    dry: bool,
    asks: bool,
    now: Timestamp,
}

/// The result for one account.
pub enum ImportResult {
    /// It is in the store, or would be.
    Added(AddedAccount),
    /// It was there already, as this account.
    Duplicate(String),
    /// Why it wasn't added.
    Failed(String),
}

/// An account of a [`ImportResult`].
pub struct AddedAccount {
    /// None: it would be added.
    pub id: Option<String>,
    /// As in the store.
    pub name: Option<String>,
    /// Its token record.
    pub token: Token,
    /// The state of its profile.
    pub profile: ProfileSource,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// The result of an import.
pub struct Imported {
    /// Each account, with the name or number that it has in its source.
    pub reports: Vec<(String, ImportResult)>,
    /// The source was one token file: messages need no names.
    pub is_single: bool,
    /// Notes on all of them.
    pub notes: Vec<String>,
    /// Nothing was written.
    pub dry: bool,
}

impl Import {
    /// Checks the accounts that were found (R86). Nothing is written yet.
    ///
    /// # Errors
    /// `choice` picks none, or gives several accounts one name; the source's only account can't be taken over.
    pub fn prepare(
        gathered: Gathered,
        choice: Choice<'_>,
        config: &Config,
        now: Timestamp,
    ) -> Result<Self, ImportError> {
        let Gathered { found, is_single, is_shared, notes } = gathered;
        let found = chosen(found, &choice)?;
        if choice.name.is_some() && found.len() > 1 {
            return Err(ImportError::Usage("there is more than one account to name: pick one of them".to_owned()));
        }
        // Many accounts would be many calls at once: the server asks for one a second (K79).
        let asks = found.len() == 1 && !choice.offline;
        let mut ready = Vec::new();
        for (label, found) in found {
            let checked = found.taken.and_then(|taken| checked(taken, config, now));
            match checked {
                Err(why) if is_single => return Err(ImportError::Failed(format!("{label}: {why}"))),
                checked => ready.push((label, checked)),
            }
        }
        Ok(Self { ready, is_single, is_shared, notes, name: choice.name, dry: choice.dry, asks, now })
    }

    /// Whether the source is one token file: messages need no names.
    pub fn is_single(&self) -> bool {
        self.is_single
    }

    /// Adds them, some hundred at a time; `seen` hears of each, in their order.
    ///
    /// # Errors
    /// The store can't be read, or `seen` fails. What was added so far stays. An account that the store doesn't take has
    /// its own report.
    pub async fn add<E: From<StoreError>>(
        mut self,
        intake: Intake<'_>,
        mut seen: impl FnMut(&str, &ImportResult) -> Result<(), E>,
    ) -> Result<Imported, E> {
        let mut known = Known::of(intake).await?;
        let mut reports = Vec::new();
        let mut ready = std::mem::take(&mut self.ready).into_iter();
        loop {
            let some: Vec<_> = ready.by_ref().take(AT_A_TIME).collect();
            if some.is_empty() {
                break;
            }
            for (label, report) in self.add_some(intake, &mut known, some).await {
                seen(&label, &report)?;
                reports.push((label, report));
            }
        }
        let mut notes = self.notes;
        let is_any = reports.iter().any(|(_, report)| matches!(report, ImportResult::Added(_)));
        if self.is_shared && is_any && !self.is_single {
            notes.push(
                "these sessions are shared with the program that made them: the first to renew a refresh token may log the \
                 other out"
                    .to_owned(),
            );
        }
        Ok(Imported { reports, is_single: self.is_single, notes, dry: self.dry })
    }

    async fn add_some(
        &self,
        intake: Intake<'_>,
        known: &mut Known,
        some: Vec<Prepared>,
    ) -> Vec<(String, ImportResult)> {
        let mut reports = Vec::new();
        let mut new = Vec::new();
        for (label, checked) in some {
            let report = match checked {
                Ok((taken, checked)) => self.one(intake, known, taken, checked, &mut new).await,
                Err(why) => ImportResult::Failed(why),
            };
            reports.push((label, report));
        }
        let mut added = intake.store.add_accounts(&new).await.into_iter();
        for (_, report) in &mut reports {
            let ImportResult::Added(account @ AddedAccount { id: Some(_), .. }) = report else { continue };
            match added.next() {
                Some(Ok(Added::New)) => account.profile = self.profile_of(intake, account).await,
                Some(Ok(Added::Duplicate { id })) => *report = ImportResult::Duplicate(id),
                Some(Err(error)) => *report = ImportResult::Failed(error.to_string()),
                None => *report = ImportResult::Failed("the store gave no answer".to_owned()),
            }
        }
        reports
    }

    /// The result for an account, and the records to write for it.
    async fn one(
        &self,
        intake: Intake<'_>,
        known: &mut Known,
        taken: ImportedAccount,
        checked: Checked,
        new: &mut Vec<NewAccount>,
    ) -> ImportResult {
        let Checked { record, token, warnings } = checked;
        let name = self.name.clone().or(taken.name);
        if let Some(id) = known.logins.duplicate_of(&token) {
            return ImportResult::Duplicate(id.to_owned());
        }
        let id = match taken.id.filter(|id| is_account_id(id.as_bytes()) && !known.ids.contains(id)) {
            // A token record without an account may be a newer one of this login: it is left alone.
            Some(id) => match intake.store.read_token(&TokenKey::of(&id), self.now).await {
                Ok(None) => id,
                Ok(Some(_)) => fresh_id(),
                Err(error) => return ImportResult::Failed(error.to_string()),
            },
            None => fresh_id(),
        };
        known.logins.add(&id, &token);
        known.ids.insert(id.clone());
        let profile = ProfileSource::of(&token);
        if self.dry {
            return ImportResult::Added(AddedAccount { id: None, name, token, profile, warnings });
        }
        let (custom_name, members) = (name.clone(), taken.members);
        new.push(NewAccount { id: id.clone(), custom_name, added_at: self.now, token: record, members });
        ImportResult::Added(AddedAccount { id: Some(id), name, token, profile, warnings })
    }

    async fn profile_of(&self, intake: Intake<'_>, account: &AddedAccount) -> ProfileSource {
        match &account.id {
            Some(id) if self.asks => intake.look_up_profile(id, &account.token, self.now).await,
            _ => account.profile,
        }
    }
}

fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Nothing is imported, for this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportError {
    /// The source can't meet the choice.
    Usage(String),
    /// The source's only account can't be taken over.
    Failed(String),
}

/// The accounts that `only` and `key` select, each with its name.
fn chosen(found: Vec<FoundAccount>, choice: &Choice<'_>) -> Result<Vec<(String, FoundAccount)>, ImportError> {
    let all = found.len();
    let named = found.into_iter().enumerate().filter(|(at, found)| {
        choice.only.is_none_or(|only| only == at + 1) && choice.key.is_none_or(|key| key == found.label)
    });
    let named: Vec<_> = named.map(|(at, found)| (source::shown(&found.label, at), found)).collect();
    if named.is_empty() {
        return Err(ImportError::Failed(format!("none of the {all} accounts is that one")));
    }
    Ok(named)
}

fn checked(taken: ImportedAccount, config: &Config, now: Timestamp) -> Result<(ImportedAccount, Checked), String> {
    let mut checked = check(taken.token.clone(), &config.external_idp_hosts, now)?;
    if let Some(refresh_token) = &checked.token.refresh_token {
        // A provider's own tokens may be short (R86).
        let short_one = truncated(refresh_token, config).filter(|_| checked.token.method() != Method::External);
        checked.warnings.extend(short_one);
    } else if checked.token.method() != Method::ApiKey {
        checked.warnings.push("it has no refresh token: it serves until its access token ends".to_owned());
    }
    Ok((taken, checked))
}

/// Warns when a refresh token looks like a truncated paste (contract/accounts.md, "Tokens"). The simulator's are short.
pub fn truncated(refresh_token: &Secret, config: &Config) -> Option<String> {
    let length = refresh_token.expose().chars().count();
    if config.upstream == UpstreamKind::Simulator {
        None
    } else if refresh_token.expose().contains("...") {
        Some("its refresh token holds `...`: a truncated paste".to_owned())
    } else {
        (length < SHORTEST_REFRESH_TOKEN)
            .then(|| format!("its refresh token has only {length} characters: a truncated paste"))
    }
}

/// A name for an account, trimmed.
///
/// # Errors
/// The name isn't allowed; the error says what is.
pub fn checked_name(name: &str) -> Result<String, String> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(format!("1 to {MAX_NAME} printable characters"));
    }
    Ok(name.to_owned())
}

/// The accounts that the store had before, and those added since.
struct Known {
    ids: HashSet<String>,
    logins: KnownLogins,
}

impl Known {
    async fn of(intake: Intake<'_>) -> Result<Self, StoreError> {
        let all = intake.store.load().await?;
        let logins = KnownLogins::of(&all);
        Ok(Self { logins, ids: all.into_iter().map(|account| account.id).collect() })
    }
}

impl Imported {
    /// The whole ids of the accounts that were added.
    pub fn ids(&self) -> Vec<String> {
        let ids = self.reports.iter().filter_map(|(_, report)| match report {
            ImportResult::Added(account) => account.id.clone(),
            ImportResult::Duplicate(_) | ImportResult::Failed(_) => None,
        });
        ids.collect()
    }

    /// How many were added, were there already, and failed.
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for (_, report) in &self.reports {
            counts[match report {
                ImportResult::Added(_) => 0,
                ImportResult::Duplicate(_) => 1,
                ImportResult::Failed(_) => 2,
            }] += 1;
        }
        counts
    }

    /// One object for programs: that of the only account, or a list with totals. No secret is in it, and no mail address.
    pub fn json(&self) -> Value {
        if let ([(_, report)], true) = (self.reports.as_slice(), self.is_single) {
            return report.json(&self.notes);
        }
        let [added, duplicates, failed] = self.counts();
        let accounts = self.reports.iter().map(|(label, report)| {
            let mut account = report.json(&[]);
            account["source"] = json!(label);
            account
        });
        json!({
            "accounts": accounts.collect::<Vec<_>>(), "added": if self.dry { 0 } else { added },
            "duplicates": duplicates, "failed": failed, "warnings": self.notes,
        })
    }
}

impl ImportResult {
    fn json(&self, notes: &[String]) -> Value {
        match self {
            Self::Failed(why) => json!({ "added": false, "error": why }),
            Self::Duplicate(id) => json!({ "added": false, "id": id, "duplicate": true }),
            Self::Added(account) => {
                let method = account.token.method();
                let mut value = json!({
                    "added": account.id.is_some(),
                    "id": account.id,
                    "name": account.shown_name(),
                    "method": method.as_str(),
                    "expires_at": account.expires_at().map(rfc3339),
                    "profile": account.profile,
                    "warnings": account.warnings.iter().chain(notes).collect::<Vec<_>>(),
                });
                if account.id.is_none() {
                    value["would_add"] = json!(true);
                }
                value
            }
        }
    }
}

impl AddedAccount {
    /// When its access token expires; an API key never does.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.token.expires_at.filter(|_| self.token.method() != Method::ApiKey)
    }

    /// A mail address is a fine name in lists, which its owner reads; here it could end up in a log.
    pub fn shown_name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| !name.contains('@'))
    }
}

/// The accounts that another program has removed from the pool meanwhile: reads it after 2 s and 10 s (R106). No other
/// program rewrites the file store that way.
///
/// # Errors
/// The store can't be read.
pub async fn vanished(intake: Intake<'_>, ids: &[String]) -> Result<Vec<String>, StoreError> {
    if ids.is_empty() || !matches!(intake.config.store, StoreKind::Redis) {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    for wait in LOOK_AGAIN {
        tokio::time::sleep(wait).await;
        let there = intake.store.read_accounts(&names).await?;
        let gone: Vec<_> =
            ids.iter().zip(&there).filter(|(_, found)| found.is_none()).map(|(id, _)| id.clone()).collect();
        if !gone.is_empty() {
            return Ok(gone);
        }
    }
    Ok(Vec::new())
}

/// The warning about an account that vanished.
pub fn of_vanished(id: &str) -> String {
    let short = crate::proto::record::short(id);
    format!(
        "account {short} is gone again: a Node.js service that has the pool in memory wrote it back without it. Let that \
         service reload its pool, or restart it, then `{} accounts restore {short}`",
        crate::program::command()
    )
}
