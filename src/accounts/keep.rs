//! Puts a login into the store: as a new account, or in the place of another account's credential (R87–R89).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Intake;
use crate::files;
use crate::pool::AccountInfo;
use crate::program;
use crate::proto::kiro::sign_in::with_credential;
use crate::proto::kiro::usage::Usage;
use crate::proto::record::{Account, Entry, Token, TokenKey, short};
use crate::store::{Added, NewAccount, Store, StoreError};

/// How long the calls behind a sign-in may take (R89).
const AFTER: Duration = Duration::from_secs(30);
/// The longest wait to learn which user signs in, before another account's credential is replaced.
const WHO_WITHIN: Duration = Duration::from_secs(15);
/// The longest wait for a store that went away while the person signed in, and the pause between tries.
const STORE_WITHIN: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// A login, and the place to keep it.
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
    /// Notes from before the sign-in.
    pub warnings: Vec<String>,
}

/// An account with its new login.
pub struct Kept {
    /// As the pool sees it.
    pub info: AccountInfo,
    /// Its usage; none where Kiro wasn't asked or gave no answer.
    pub usage: Option<Usage>,
    /// The login replaced another credential.
    pub replaced: bool,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Why a login couldn't be kept.
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

impl fmt::Display for KeepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl KeepError {
    fn gone() -> Self {
        Self::Refused("the account was removed meanwhile".to_owned())
    }
}

/// Checks that the store takes writes now. Called before a person signs in, because a login that the store refuses
/// would be lost.
///
/// # Errors
/// The store takes no writes; the error says why.
pub async fn takes_writes(store: &Store, now: Timestamp) -> Result<(), StoreError> {
    // A lock that belongs to no account: every refresh begins with such a write (R40).
    match store.lock(&TokenKey::of("login"), now).await? {
        Some(lock) => store.unlock(lock).await,
        None => Ok(()),
    }
}

/// Puts the account into the store before any other call to Kiro, so that no token is lost (R89). One question comes
/// first: whether the login is another user's than the credential that it replaces. A login that the store refuses is
/// left in a file.
///
/// # Errors
/// The store can't be used; the account to replace isn't there, or another user's.
pub async fn keep(intake: Intake<'_>, login: Login<'_>, now: Timestamp) -> Result<Kept, KeepError> {
    let Login { record, name, replace, force, no_check, mut warnings } = login;
    let token = Token::parse(&record).map_err(|error| KeepError::Refused(format!("the login's record: {error}")))?;
    if token.refresh_token.is_none() {
        warnings.push("no refresh token came: the account ends with its access token".to_owned());
    }
    let stored = match replace {
        Some(id) if !force && is_another_user(intake, id, &token).await => {
            return Err(KeepError::Refused(
                "another user signed in than the one whose account this is: nothing was changed. `force` puts this login in \
                 its place"
                    .to_owned(),
            ));
        }
        Some(id) => patiently(|| put_in_place(intake, id, &record)).await.map(|()| id.to_owned()),
        None => add(intake, name, &record, now, &mut warnings).await,
    };
    let id = stored.map_err(|error| leave(intake, &record, &error))?;
    let mut usage = None;
    if !no_check {
        let looked = tokio::time::timeout(AFTER, look(intake, &id, &token, now, &mut warnings)).await;
        usage = looked.unwrap_or_default();
    }
    let reloaded = patiently(|| async { Ok(intake.pool.reload().await?) }).await;
    reloaded.map_err(|error| {
        KeepError::Refused(format!("account {} is in the store, which went away then: {error}", short(&id)))
    })?;
    let info = intake.pool.accounts().into_iter().find(|info| *info.id == *id).ok_or_else(KeepError::gone)?;
    Ok(Kept { info, usage, replaced: replace.is_some(), warnings })
}

/// Tries again while the store is away.
async fn patiently<T, F: Future<Output = Result<T, KeepError>>>(work: impl Fn() -> F) -> Result<T, KeepError> {
    let end = Instant::now() + STORE_WITHIN;
    loop {
        match work().await {
            Err(KeepError::Store(error)) if error.is_away() && Instant::now() < end => {
                tokio::time::sleep(TRY_AGAIN).await
            }
            done => return done,
        }
    }
}

async fn add(
    intake: Intake<'_>,
    name: Option<String>,
    record: &[u8],
    now: Timestamp,
    warnings: &mut Vec<String>,
) -> Result<String, KeepError> {
    let id = uuid::Uuid::new_v4().to_string();
    let (token, members) = (record.to_vec(), Vec::new());
    let new = NewAccount { id: id.clone(), custom_name: name, added_at: now, token, members };
    match patiently(|| async { Ok(intake.store.add_account(&new).await?) }).await? {
        // An earlier try was written, and its answer was lost.
        Added::Duplicate { id: other } if other != id => {
            warnings.push("it was there already: nothing was added".to_owned());
            Ok(other)
        }
        Added::New | Added::Duplicate { .. } => Ok(id),
    }
}

/// Leaves a login that the store refuses in a token file that only its owner can read: upstream gives the tokens once.
fn leave(intake: Intake<'_>, record: &[u8], error: &KeepError) -> KeepError {
    let name = format!("kiro-login-{}.json", uuid::Uuid::new_v4().simple());
    let folders = [intake.config.state_dir.clone(), std::env::home_dir(), Some(std::env::temp_dir())];
    let paths = folders.into_iter().flatten().filter(|folder| folder.is_absolute()).map(|folder| folder.join(&name));
    let left = paths.into_iter().find(|path: &PathBuf| files::create_private(path, record).is_ok());
    KeepError::Refused(match left {
        Some(path) => format!(
            "{error}. The login is in {path}: `{command} accounts add --from {path}` takes it over; then delete that file",
            path = path.display(),
            command = program::command()
        ),
        None => format!("{error}. The login could not be left in a file either, and is lost: sign in again"),
    })
}

/// Looks up profile and plan of the new account; a missing one is a warning.
async fn look(
    intake: Intake<'_>,
    id: &str,
    token: &Token,
    now: Timestamp,
    warnings: &mut Vec<String>,
) -> Option<Usage> {
    let profile = intake.look_up_profile(id, token, now).await;
    warnings.extend(profile.advice().map(Into::into));
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

/// Whether the login is another user's, where both users are known (R87): the old one by the account's name or its
/// token, the new one by the login's.
async fn is_another_user(intake: Intake<'_>, id: &str, token: &Token) -> bool {
    let email = |usage: bytes::Bytes| Usage::parse(&usage)?.email;
    // The next step handles a store that went away.
    let account = intake.store.read_account(id).await.ok().flatten();
    let named = account.and_then(|account| Account::parse(&account, id).ok()?.custom_name);
    let old = async {
        match named.filter(|name| name.contains('@')) {
            Some(email) => Some(email),
            None => email(intake.credentials.usage_limits(&intake.pool.visit(id).ok()?).await.ok()?),
        }
    };
    let new = async { email(intake.credentials.usage_of(token).await?) };
    let both = async { tokio::join!(old, new) };
    match tokio::time::timeout(WHO_WITHIN, both).await.unwrap_or_default() {
        (Some(old), Some(new)) => !old.trim().eq_ignore_ascii_case(new.trim()),
        _ => false,
    }
}

/// Writes the login's members into the token record, clears the account's marks and enables it.
async fn put_in_place(intake: Intake<'_>, id: &str, record: &[u8]) -> Result<(), KeepError> {
    let refused = |what: &str| KeepError::Refused(format!("account {}: {what}", short(id)));
    let all = intake.store.load().await?;
    let raw = all.into_iter().find(|raw| raw.id == id).ok_or_else(KeepError::gone)?;
    let account = Account::parse(&raw.account, id).map_err(|error| refused(&format!("its record {error}")))?;
    let (key, old) = raw.token.ok_or_else(|| refused("it has no token record: remove it and sign in anew"))?;
    let marks = if account.standing.healthy { &[][..] } else { &Entry::NO_MARK };
    let lifted = [&[Entry::IsDisabled(false)], marks].concat();
    let is_there = intake.store.edit_token(&key, old, |old| with_credential(old, record).map(Some)).await?
        && intake.store.patch_account(id, &lifted).await?;
    if is_there { Ok(()) } else { Err(KeepError::gone()) }
}
