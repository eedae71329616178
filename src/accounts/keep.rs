//! A login goes into the store: as an account of its own, or in the place of another one's credential (R87–R89).

use std::time::Duration;

use jiff::Timestamp;

use super::{Intake, ProfileSource};
use crate::pool::AccountInfo;
use crate::proto::kiro::sign_in::with_credential;
use crate::proto::kiro::usage::Usage;
use crate::proto::record::{Account, Entry, Token, short};
use crate::store::{Added, Cas, NewAccount, StoreError};

/// How long the calls behind a sign-in may take (R89).
const AFTER: Duration = Duration::from_secs(30);
/// How long it may take to learn who signs in, before another account's credential is replaced.
const WHO_WITHIN: Duration = Duration::from_secs(15);
/// A record that somebody else changes at the same moment is read and written again, this often.
const MAX_TRIES: usize = 5;

/// What is kept, and where.
pub struct Login<'a> {
    /// The token record of the sign-in (R88).
    pub record: Vec<u8>,
    /// The name of a new account.
    pub name: Option<String>,
    /// The whole id of the account whose credential is replaced.
    pub replace: Option<&'a str>,
    /// Another user may take that account's place.
    pub force: bool,
    /// Kiro isn't asked for profile and plan.
    pub no_check: bool,
    /// What the sign-in itself had to say.
    pub warnings: Vec<String>,
}

/// An account that has signed in.
pub struct Kept {
    /// As the pool sees it.
    pub info: AccountInfo,
    /// What it has used; none where Kiro wasn't asked or gave no answer.
    pub usage: Option<Usage>,
    /// It took the place of another credential.
    pub replaced: bool,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Why a login could not be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepError {
    /// The store.
    Store(StoreError),
    /// A sentence for people.
    Refused(String),
}

impl From<StoreError> for KeepError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl KeepError {
    fn gone() -> Self {
        Self::Refused("the account was removed meanwhile".to_owned())
    }
}

/// The account is in the store before anything else is asked of Kiro, so that no token is lost (R89); only whether another
/// user signs in is asked before his predecessor's credential goes.
///
/// # Errors
/// The store can't be used; the account to replace isn't there, or another user's.
pub async fn keep(intake: Intake<'_>, login: Login<'_>, now: Timestamp) -> Result<Kept, KeepError> {
    let Login { record, name, replace, force, no_check, mut warnings } = login;
    let token = Token::parse(&record).map_err(|error| KeepError::Refused(format!("the login's record: {error}")))?;
    let id = match replace {
        Some(id) => {
            if !force {
                same_user(intake, id, &token).await?;
            }
            put_in_place(intake, id, &record).await?;
            id.to_owned()
        }
        None => {
            let id = uuid::Uuid::new_v4().to_string();
            let new =
                NewAccount { id: id.clone(), custom_name: name, added_at: now, token: record, members: Vec::new() };
            match intake.store.add_account(&new).await? {
                Added::Duplicate { id } => {
                    warnings.push("it was there already: nothing was added".to_owned());
                    id
                }
                Added::New => id,
            }
        }
    };
    let mut usage = None;
    if !no_check {
        let looked = tokio::time::timeout(AFTER, look(intake, &id, &token, now, &mut warnings)).await;
        usage = looked.unwrap_or_default();
    }
    intake.pool.reload().await?;
    let info = intake.pool.accounts().into_iter().find(|info| *info.id == *id).ok_or_else(KeepError::gone)?;
    Ok(Kept { info, usage, replaced: replace.is_some(), warnings })
}

/// Profile and plan of the new account; what isn't found is a warning.
async fn look(
    intake: Intake<'_>,
    id: &str,
    token: &Token,
    now: Timestamp,
    warnings: &mut Vec<String>,
) -> Option<Usage> {
    let profile = match ProfileSource::of(token) {
        ProfileSource::Skipped => intake.look_up_profile(id, token, now).await,
        known => known,
    };
    warnings.extend(profile.advice().map(str::to_owned));
    intake.pool.reload().await.ok()?;
    let lease = intake.pool.visit(id).ok()?;
    match intake.credentials.usage_limits(&lease).await {
        Ok(answer) => Usage::parse(&answer),
        Err(fault) => {
            warnings.push(format!("its usage could not be asked for: {}", fault.kind.as_str()));
            None
        }
    }
}

/// Refuses another user where both are known (R87): the old one by the account's name or by its own token, the new one by
/// the login's.
async fn same_user(intake: Intake<'_>, id: &str, token: &Token) -> Result<(), KeepError> {
    let email = |usage: bytes::Bytes| Usage::parse(&usage)?.email;
    let account = intake.store.read_account(id).await?.ok_or_else(KeepError::gone)?;
    let named = Account::parse(&account, id).ok().and_then(|account| account.custom_name);
    let old = async {
        match named.filter(|name| name.contains('@')) {
            Some(email) => Some(email),
            None => email(intake.credentials.usage_limits(&intake.pool.visit(id).ok()?).await.ok()?),
        }
    };
    let new = async { email(intake.credentials.usage_of(token).await?) };
    let both = async { tokio::join!(old, new) };
    let (Some(old), Some(new)) = tokio::time::timeout(WHO_WITHIN, both).await.unwrap_or_default() else {
        return Ok(());
    };
    if old.trim().eq_ignore_ascii_case(new.trim()) {
        return Ok(());
    }
    Err(KeepError::Refused(
        "another user signed in than the one whose account this is: nothing was changed. --force replaces him"
            .to_owned(),
    ))
}

/// The login's members in the token record, and no mark on the account, which is enabled.
async fn put_in_place(intake: Intake<'_>, id: &str, record: &[u8]) -> Result<(), KeepError> {
    let refused = |what: &str| KeepError::Refused(format!("account {}: {what}", short(id)));
    let all = intake.store.load().await?;
    let raw = all.into_iter().find(|raw| raw.id == id).ok_or_else(KeepError::gone)?;
    let account = Account::parse(&raw.account, id).map_err(|error| refused(&format!("its record {error}")))?;
    let (key, mut old) = raw.token.ok_or_else(|| refused("it has no token record: remove it and sign in anew"))?;
    for _ in 0..MAX_TRIES {
        let new = with_credential(&old, record).map_err(|error| refused(&format!("its token record {error}")))?;
        match intake.store.compare_and_set_token(&key, &old, &new).await? {
            Cas::Written => {
                let marks = if account.is_healthy { &[][..] } else { &Entry::NO_MARK };
                let lifted = [&[Entry::IsDisabled(false)], marks].concat();
                return if intake.store.patch_account(id, &lifted).await? { Ok(()) } else { Err(KeepError::gone()) };
            }
            Cas::Absent => return Err(KeepError::gone()),
            Cas::Conflict(current) => old = current,
        }
    }
    Err(refused("its token record changes faster than it can be written: try again"))
}
