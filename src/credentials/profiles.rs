//! Which profiles an account has (K79). One task for each account asks every region of its partition, page by page.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::policy::learned::Lesson;
use crate::policy::renewal::LookUp;
use crate::pool::{AccountId, AccountView, Lease, short};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::profile::region_of;
use crate::proto::kiro::route::{Operation, Shape};
use crate::secret::Secret;

use super::{Cause, Credentials};

/// How long a request waits for a look-up.
const WAITED_FOR: Duration = Duration::from_secs(10);
const MAX_PAGES: usize = 10;
/// A longer ARN is ignored. In bytes.
const MAX_ARN: usize = 2048;

/// A profile that an account may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedProfile {
    /// At most 2,048 printable characters.
    pub arn: Arc<str>,
    /// What its organisation calls it.
    pub name: Option<String>,
}

impl Credentials {
    /// The account's profiles in every region that may know one, for a person who asks. Nothing is remembered of them.
    ///
    /// # Errors
    /// No region listed one, and one of them gave no answer: its fault.
    pub async fn profiles(&self, lease: &Lease) -> Result<Vec<ListedProfile>, Fault> {
        let bearer = self.access_token(lease).await?;
        let mut view = lease.account().clone();
        let regions: Vec<String> = view.profile_regions().into_iter().map(str::to_owned).collect();
        let mut found = Vec::<ListedProfile>::new();
        let mut silent = None;
        for region in regions {
            match self.list(&mut view, &bearer, &region).await {
                Ok(profiles) => {
                    let known = |profile: &ListedProfile| found.iter().any(|known| known.arn == profile.arn);
                    let new: Vec<_> = profiles.into_iter().filter(|profile| !known(profile)).collect();
                    found.extend(new);
                }
                Err(fault) if matches!(fault.status, Some(403 | 404)) => {}
                Err(fault) => silent = Some(fault),
            }
        }
        match silent.filter(|_| found.is_empty()) {
            Some(fault) => Err(fault),
            None => Ok(found),
        }
    }

    /// Asks for the account's profiles, unless that was done lately; waits at most 10 s and joins a look-up under way. The
    /// lease sees the account as it is afterwards.
    pub async fn look_up_profiles(&self, lease: &mut Lease) -> LookUp {
        let id = lease.account().id().clone();
        let ended = self.look_up(&id).await;
        lease.renew_view();
        ended
    }

    pub(super) async fn look_up(&self, id: &AccountId) -> LookUp {
        let now = self.0.pool.now();
        let joined = self.0.pool.with_slot(id, |slot, _| {
            let running =
                |flight: &watch::Receiver<Option<LookUp>>| flight.borrow().is_none() && flight.has_changed().is_ok();
            if let Some(flight) = slot.look_up.clone().filter(running) {
                return Some(flight);
            }
            if !slot.account.may_look_up(now) {
                return None;
            }
            let (done, flight) = watch::channel(None);
            slot.look_up = Some(flight.clone());
            let (credentials, id) = (self.clone(), id.clone());
            self.0.tasks.spawn(async move {
                let ended = credentials.ask_everywhere(&id).await;
                done.send_replace(Some(ended));
            });
            Some(flight)
        });
        let Some(mut flight) = joined.flatten() else { return LookUp::NotAsked };
        match tokio::time::timeout(WAITED_FOR, flight.wait_for(Option::is_some)).await {
            Ok(Ok(ended)) => ended.unwrap_or(LookUp::Unanswered),
            Ok(Err(_)) | Err(_) => LookUp::Unanswered,
        }
    }

    async fn ask_everywhere(&self, id: &AccountId) -> LookUp {
        let pool = &self.0.pool;
        let unanswered = |after: Option<SignedDuration>| {
            pool.learn(id, Lesson::ProfilesUnanswered(after));
            LookUp::Unanswered
        };
        let Some(mut view) = pool.account(id) else { return LookUp::Unanswered };
        let Ok(mut bearer) = self.bearer(id).await else { return unanswered(None) };
        let regions: Vec<String> = view.profile_regions().into_iter().map(str::to_owned).collect();
        let (mut asked, mut found) = (Vec::new(), Vec::<Arc<str>>::new());
        let (mut refreshed, mut is_silent, mut after) = (false, false, None);
        'regions: for region in regions {
            let first = view.shapes(&region).first().copied().unwrap_or(Shape::Q);
            let url = view.url(first, Operation::Profiles, &region);
            // An address without a region in it is the same everywhere.
            if asked.contains(&url) {
                continue;
            }
            asked.push(url);
            loop {
                let fault = match self.list(&mut view, &bearer, &region).await {
                    Ok(profiles) => {
                        found.extend(profiles.into_iter().map(|profile| profile.arn));
                        break;
                    }
                    Err(fault) => fault,
                };
                if fault.status == Some(403) && is_about_builder_ids(&fault) {
                    pool.learn(id, Lesson::IsBuilderId);
                    tracing::info!(account = short(id), "the account is an AWS Builder ID");
                    return LookUp::BuilderId;
                }
                if fault.kind == FaultKind::TokenRejected && !refreshed {
                    refreshed = true;
                    let renewed = self.renew(id, Cause::Rejected(bearer.clone())).await;
                    match (renewed, self.bearer(id).await) {
                        (Ok(()), Ok(token)) => bearer = token,
                        _ => return unanswered(None),
                    }
                    continue;
                }
                if fault.kind == FaultKind::Suspended {
                    // The refusal concerns the account, not its profiles.
                    is_silent = true;
                    break 'regions;
                }
                match fault.status {
                    Some(429) => {
                        is_silent = true;
                        let wait = fault.retry_after.map(|after| after.wait(pool.now()));
                        after = wait.and_then(|wait| SignedDuration::try_from(wait).ok());
                        break 'regions;
                    }
                    Some(401 | 403 | 404) => {}
                    _ => {
                        let kind = fault.kind.as_str();
                        tracing::debug!(account = short(id), region, kind, "profiles can't be looked up here");
                        is_silent = true;
                    }
                }
                break;
            }
        }
        if found.is_empty() && is_silent {
            tracing::warn!(account = short(id), "the account's profiles can't be looked up");
            return unanswered(after);
        }
        self.found(id, &view, found)
    }

    /// Remembers the profiles that were found; one alone is kept in the token record.
    fn found(&self, id: &AccountId, view: &AccountView, mut found: Vec<Arc<str>>) -> LookUp {
        let pool = &self.0.pool;
        let mut seen = Vec::new();
        found.retain(|arn| {
            !seen.contains(arn) && {
                seen.push(arn.clone());
                true
            }
        });
        // The region that the records name comes first; the others stay in the order of the answers.
        found.sort_by_key(|arn| region_of(arn) != view.named_region());
        let only = match found.as_slice() {
            [only] => Some(only.to_string()),
            _ => None,
        };
        let profiles = found.len();
        pool.learn(id, Lesson::Profiles(found));
        if profiles == 0 {
            tracing::warn!(
                account = short(id),
                "no profile: the organisation's administrator must add this user to one"
            );
            return LookUp::Nothing;
        }
        tracing::info!(account = short(id), profiles, "the account's profiles were found");
        // Of several profiles one is written once it has proven right.
        if let Some(arn) = only {
            pool.keep_profile(id, arn);
        }
        LookUp::Found
    }

    /// The active profiles of one region.
    async fn list(
        &self,
        view: &mut Arc<AccountView>,
        bearer: &Secret,
        region: &str,
    ) -> Result<Vec<ListedProfile>, Fault> {
        let mut profiles = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let body = |shape: Shape| {
                let mut body = match shape {
                    Shape::Q => json!({ "maxResults": 10 }),
                    Shape::Runtime => json!({}),
                };
                if let Some(next) = &next {
                    body["nextToken"] = next.as_str().into();
                }
                body.to_string()
            };
            let request = |client: &reqwest::Client, shape: Shape, url: &str| client.post(url).body(body(shape));
            let answer = self.0.ask_somehow(view, bearer, Operation::Profiles, region, &request).await?;
            let answer: Value = serde_json::from_slice(&answer).map_err(|_| Fault::protocol("profiles: not JSON"))?;
            let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
            for profile in answer.get("profiles").and_then(Value::as_array).into_iter().flatten() {
                let active = text(profile, "status").is_none_or(|status| status.eq_ignore_ascii_case("ACTIVE"));
                let sound =
                    |arn: &String| (1..=MAX_ARN).contains(&arn.len()) && arn.bytes().all(|b| b.is_ascii_graphic());
                let arn = text(profile, "arn").filter(|_| active).filter(sound);
                let name = text(profile, "profileName");
                profiles.extend(arn.map(|arn| ListedProfile { arn: arn.into(), name }));
            }
            next = text(&answer, "nextToken").filter(|next| !next.is_empty());
            if next.is_none() {
                break;
            }
        }
        Ok(profiles)
    }
}

fn is_about_builder_ids(fault: &Fault) -> bool {
    fault.message.to_ascii_lowercase().contains("builder id is not supported")
}
