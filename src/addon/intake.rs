//! `login` and `importAccounts`: accounts come in while the gateway runs.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use napi_derive::napi;
use serde_json::{Value, json};

use super::bell::{MessageKind, OpenCall};
use super::call::{self, fail, unless_cancelled};
use super::live::LiveGateway;
use super::message;
use crate::accounts::import::{Choice, Import, ImportError, ImportResult, Imported, checked_name};
use crate::accounts::keep::{KeepError, Kept, Login, keep, takes_writes};
use crate::accounts::sign_in::{SignInClient, SignedIn};
use crate::accounts::source::{Reading, gather};
use crate::error::{Code, Error};
use crate::proto::kiro::sign_in::{DeviceCode, SignIn, SignInError};
use crate::proto::record::rfc3339;
use crate::store::StoreError;

/// The options of `login` as lib/gateway.js has checked them.
/// @internal
#[napi(object, object_to_js = false)]
pub struct NativeLogin {
    pub method: String,
    pub start_url: Option<String>,
    pub region: Option<String>,
    pub name: Option<String>,
    pub replace: Option<String>,
    pub force: bool,
    pub check: bool,
}

/// The options of `importAccounts` as lib/gateway.js has checked them.
/// @internal
#[napi(object, object_to_js = false)]
pub struct NativeImport {
    pub base: Option<String>,
    pub only: Option<u32>,
    pub key: Option<String>,
    pub name: Option<String>,
    pub dry_run: bool,
    pub offline: bool,
}

/// A sign-in by device code: its code as the head of the call, the account at its end. Aborting ends the wait for the
/// person; a login that has come is kept all the same (R89).
pub(super) async fn login(slot: Arc<OpenCall>, gateway: LiveGateway, wanted: NativeLogin) {
    let waited = unless_cancelled(&slot, wait(&slot, &gateway, &wanted)).await;
    let signed_in = match waited {
        Some(Ok(signed_in)) => signed_in,
        Some(Err(error)) => return fail(&slot, &error, None),
        None => return fail(&slot, &call::cancelled(), None),
    };
    match kept(&gateway, signed_in, wanted).await {
        Ok(kept) => slot.post(MessageKind::End, message::text(&login_result(&kept))),
        Err(error) => fail(&slot, &error, None),
    }
}

async fn wait(slot: &Arc<OpenCall>, gateway: &LiveGateway, wanted: &NativeLogin) -> Result<SignedIn, Error> {
    let intake = gateway.intake()?;
    let who = SignIn::named(&wanted.method, wanted.start_url.clone(), wanted.region.clone());
    let who = who.map_err(|(field, problem)| invalid(format!("options.{}: {problem}", camel(field))))?;
    if let Some(name) = &wanted.name {
        checked_name(name).map_err(|problem| invalid(format!("options.name: {problem}")))?;
    }
    if let Some(id) = &wanted.replace
        && !gateway.accounts().iter().any(|account| *account.id == **id)
    {
        return Err(Error::new(Code::NotFound, "Unknown account"));
    }
    takes_writes(intake.store, Timestamp::now()).await.map_err(of_store)?;
    let begun = SignInClient::new(intake.upstream, intake.config).map_err(of_sign_in)?.begin(who).await;
    let begun = begun.map_err(of_sign_in)?;
    slot.post(MessageKind::Head, message::text(&code(&begun.code)));
    let lifetime = begun.code.lifetime;
    begun.finish(lifetime).await.map_err(of_sign_in)
}

async fn kept(gateway: &LiveGateway, signed_in: SignedIn, wanted: NativeLogin) -> Result<Kept, Error> {
    let login = Login {
        record: signed_in.record,
        name: wanted.name.and_then(|name| checked_name(&name).ok()),
        replace: wanted.replace.as_deref(),
        force: wanted.force,
        no_check: !wanted.check,
        warnings: Vec::new(),
    };
    keep(gateway.intake()?, login, Timestamp::now()).await.map_err(|error| match error {
        KeepError::Store(error) => of_store(error),
        KeepError::Refused(problem) => Error::new(Code::AccountUnauthorized, problem),
    })
}

fn code(code: &DeviceCode) -> Value {
    json!({
        "userCode": code.user_code, "verificationUri": code.uri, "verificationUriComplete": code.uri_complete,
        "expiresAt": rfc3339(Timestamp::now().checked_add(code.lifetime).unwrap_or(Timestamp::MAX)),
    })
}

fn login_result(kept: &Kept) -> Value {
    let usage = kept.usage.as_ref();
    json!({
        "account": message::account(&kept.info),
        "plan": usage.and_then(|usage| usage.plan.as_deref()),
        "used": usage.map(|usage| usage.used),
        "limit": usage.and_then(|usage| usage.limit),
        "warnings": kept.warnings,
    })
}

fn of_sign_in(error: SignInError) -> Error {
    let code = match error.word.as_str() {
        "network" | "unreadable" | "proxy" => Code::Upstream,
        _ => Code::AccountUnauthorized,
    };
    Error::new(code, error.message)
}

fn of_store(error: StoreError) -> Error {
    Error::new(Code::StoreUnavailable, format!("the store can't be used: {error}"))
}

fn invalid(problem: String) -> Error {
    Error::new(Code::InvalidRequest, problem)
}

/// `start-url` as JavaScript has it.
fn camel(field: &str) -> String {
    let mut words = field.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (head, rest) = word.split_at(1);
        name + &head.to_ascii_uppercase() + rest
    })
}

/// The accounts of a file or a folder (R78). A SQLite database is refused: its library isn't here.
pub(super) async fn import(gateway: LiveGateway, path: String, wanted: NativeImport) -> Result<Bytes, Error> {
    let intake = gateway.intake()?;
    let now = Timestamp::now();
    let name = wanted.name.as_deref().map(checked_name).transpose();
    let name = name.map_err(|problem| invalid(format!("options.name: {problem}")))?;
    let base = wanted.base.map(PathBuf::from);
    let read = tokio::task::spawn_blocking(move || {
        gather(Some(path.as_ref()), Reading { base: base.as_deref(), now, database: None })
    });
    let gathered = read.await.map_err(|_| Error::new(Code::Internal, "the source could not be read"))?;
    let choice = Choice {
        only: wanted.only.map(|only| only as usize),
        key: wanted.key.as_deref(),
        name,
        dry: wanted.dry_run,
        offline: wanted.offline,
    };
    let import = Import::prepare(gathered.map_err(invalid)?, choice, intake.config, now);
    let import = import.map_err(|(ImportError::Usage(problem) | ImportError::Failed(problem))| invalid(problem))?;
    let imported = import.add::<StoreError>(intake, |_, _| Ok(())).await.map_err(of_store)?;
    // They serve at once; a store that went away now has them all the same.
    if let Err(error) = intake.pool.reload().await {
        tracing::warn!(%error, "the store can't be read after an import");
    }
    Ok(message::text(&import_result(&imported)))
}

fn import_result(imported: &Imported) -> Value {
    let account = |(source, report): &(String, ImportResult)| match report {
        ImportResult::Failed(error) => json!({ "source": source, "outcome": "failed", "error": error }),
        ImportResult::Duplicate(id) => json!({ "source": source, "outcome": "duplicate", "id": id }),
        ImportResult::Added(account) => json!({
            "source": source,
            "outcome": if imported.dry { "would-add" } else { "added" },
            "id": account.id,
            "name": account.name,
            "method": account.token.method().as_str(),
            "expiresAt": account.expires_at().map(rfc3339),
            "warnings": account.warnings.iter().map(|text| text.as_str().into()).chain(account.profile.advice()).collect::<Vec<_>>(),
        }),
    };
    json!({ "accounts": imported.reports.iter().map(account).collect::<Vec<_>>(), "warnings": imported.notes })
}
