//! The memory of a request's attempts, and the step after a failed one: another attempt, or the client's error.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::account_attempts::AccountAttempts;
use super::job::RequestJob;
use super::outside::now;
use super::pictures::large_pictures;
use super::shared::Shared;
use super::translation::{Translation, Variation};
use super::witness::{AttemptLog, Attempted};
use crate::config::Config;
use crate::error::{AccountFailure, Code, Error};
use crate::policy::health::lasting_mark;
use crate::policy::retry::{AttemptLimits, Budget, MOST_ACCOUNTS, Remedy, Verdict};
use crate::pool::{AccountId, AttemptEnd, Lease};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::translate::fault::{PromptSize, api_error};
use crate::proto::translate::pictures::{PictureForm, Pictures};
use crate::proto::translate::request::LeaveOut;

/// How the next attempt begins.
pub(super) enum NextAttempt {
    /// Select an account, after a pause.
    Select { after: Duration },
    /// The same account, after the remedy.
    Again { lease: Lease, remedy: Remedy, fault: Fault },
    /// Any account, for the fallback's model (TR36).
    Instead(Arc<RequestJob>),
    /// The same account, for the next round (TS33).
    NextRound { lease: Lease },
}

/// The memory of a request's attempts. On the heap, because it moves from state to state.
pub(super) struct Attempts {
    pub(super) budget: Budget,
    /// When the first attempt went out (K137).
    pub(super) began: Option<Instant>,
    pub(super) tried: Vec<AccountId>,
    /// The attempts on the present account.
    pub(super) current: AccountAttempts,
    /// Accounts of this API region are passed over (K105).
    pub(super) other_than_region: Option<String>,
    /// When the first attempt looked for an account: the bound of all waits starts there.
    pub(super) looked: Option<Instant>,
    rng: fastrand::Rng,
    /// The parts that every account's body leaves out (TR31).
    pub(super) leave_out: LeaveOut,
    /// The body to send when it isn't the job's.
    other: Option<Box<(Variation, Translation)>>,
    /// The large pictures, once they are known (TR67).
    pub(super) pictures: Option<Pictures>,
    /// In place of [`RequestJob::written`] and [`RequestJob::meant`], when another process knows the conversation's home (R102).
    pub(super) home: Option<Box<(AccountId, Translation)>>,
    /// See [`Wanted::homes`]; none before the first selection.
    pub(super) homes: Option<Vec<AccountId>>,
    /// The last account had no token to send.
    tokenless: bool,
    pub(super) log: AttemptLog,
}

impl Attempts {
    pub(super) fn new(config: &Config, pinned: bool, rng: fastrand::Rng, log: AttemptLog) -> Box<Self> {
        let limits = AttemptLimits {
            attempts: config.max_attempts,
            accounts: if pinned { 1 } else { MOST_ACCOUNTS },
            time: config.failover_time,
        };
        Box::new(Self {
            budget: Budget::new(limits),
            began: None,
            tried: Vec::new(),
            current: AccountAttempts::default(),
            other_than_region: None,
            looked: None,
            rng,
            leave_out: LeaveOut::default(),
            other: None,
            pictures: None,
            home: None,
            homes: None,
            tokenless: false,
            log,
        })
    }

    /// Their result.
    pub(super) fn attempted(&mut self) -> Attempted<'_> {
        let shape = self.current.chosen().map(|chosen| chosen.shape);
        Attempted { accounts: self.budget.accounts(), shape, log: &mut self.log }
    }

    /// The step after a fault before the commit: another attempt, or the client's error.
    pub(super) fn judge(&mut self, job: &Arc<RequestJob>, lease: Lease, fault: Fault) -> Result<NextAttempt, Error> {
        let fault = weighed(job, fault);
        let written = self.written(job);
        let sent = self.current.sent(job, &lease, written, self.pictures.as_ref());
        self.log.failed(&lease, &fault);
        let stood = self.stood(false);
        let elapsed = self.elapsed();
        // A throttled request isn't repeated on another account (K92).
        let braked =
            matches!(fault.kind, FaultKind::RateLimited | FaultKind::Suspicious) && job.shared.pool.brake().is_some();
        match self.budget.fault(fault.clone(), &sent, elapsed, braked, &mut self.rng) {
            Verdict::SameAccount(remedy) => {
                self.current.remedy(job, &lease, remedy, &fault);
                Ok(NextAttempt::Again { lease, remedy, fault })
            }
            verdict => {
                let fault = self.current.given_up(job, &lease, fault);
                // Two accounts have refused the model and none has served it: no further account is asked (K89).
                let mut verdict = verdict;
                if fault.kind == FaultKind::UnknownModel && job.model.passed && !job.facts.pinned {
                    let (refusals, served) = job.shared.pool.model_votes(&job.model.kiro_id);
                    if refusals >= 2 && !served {
                        job.refuse_name();
                        verdict = Verdict::Stop;
                    }
                }
                if verdict == Verdict::OtherRegion {
                    let region = self.current.chosen().map(|chosen| chosen.region.clone());
                    self.other_than_region = region.filter(|_| job.shared.may_try_other_region());
                    if self.other_than_region.is_none() {
                        job.shared.report_fault(lease, &fault, job.facts.record, stood);
                        return Err(self.answer(job));
                    }
                }
                job.shared.report_fault(lease, &fault, job.facts.record, stood);
                self.follow(job, verdict)
            }
        }
    }

    /// The account couldn't be asked: it has no token or no profile to send. The refresh has marked the account already
    /// (R41, R45), so a rejected token doesn't count again here.
    pub(super) fn unusable(&mut self, job: &Arc<RequestJob>, lease: Lease, fault: Fault) -> Result<NextAttempt, Error> {
        self.tokenless = true;
        self.log.failed(&lease, &fault);
        job.shared.report_fault(lease, &fault, job.facts.record, AttemptEnd::default());
        let elapsed = self.elapsed();
        let verdict = self.budget.account_failed(fault, elapsed);
        self.follow(job, verdict)
    }

    fn follow(&mut self, job: &Arc<RequestJob>, verdict: Verdict) -> Result<NextAttempt, Error> {
        match verdict {
            Verdict::NextAccount { after } => Ok(NextAttempt::Select { after }),
            Verdict::OtherRegion => Ok(NextAttempt::Select { after: Duration::ZERO }),
            Verdict::Stop | Verdict::SameAccount(_) => self.give_up(job),
        }
    }

    /// Another account is tried.
    pub(super) fn tries(&mut self, account: &AccountId) {
        self.tried.push(account.clone());
        self.log.tries(account);
        self.budget.next_account();
        self.current = AccountAttempts::default();
    }

    /// Ends the attempts with their error. A name that upstream has refused continues as the model of
    /// `KIRO_MODEL_FALLBACK` (TR36).
    pub(super) fn give_up(&mut self, job: &RequestJob) -> Result<NextAttempt, Error> {
        let refused = self.budget.answer().is_some_and(|fault| fault.kind == FaultKind::UnknownModel);
        let is_served = || !job.facts.pinned && job.shared.pool.model_votes(&job.model.kiro_id).1;
        let instead = (refused && self.budget.may_call() && !is_served()).then(|| job.fallback()).flatten();
        instead.map(NextAttempt::Instead).ok_or_else(|| self.answer(job))
    }

    /// Forgets the attempts with the first model: they say nothing about the next one.
    pub(super) fn begin_anew(&mut self) {
        self.budget.begin_anew();
        self.tried.clear();
        self.other_than_region = None;
        (self.other, self.home, self.homes) = (None, None, None);
    }

    /// The next round goes to the same account first (TS33).
    pub(super) fn begin_round(&mut self, account: &AccountId) {
        self.begin_anew();
        self.budget.begin_round();
        self.leave_out = LeaveOut::default();
        (self.began, self.looked) = (None, None);
        self.tried.push(account.clone());
        self.current = AccountAttempts::default();
    }

    /// The time since the first attempt.
    fn elapsed(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// The error that sums up the attempts so far (K47).
    pub(super) fn answer(&self, job: &RequestJob) -> Error {
        match self.budget.answer() {
            // Eight accounts have refused, others weren't asked, and the model has been served before (K88).
            Some(fault)
                if fault.kind == FaultKind::UnknownModel
                    && !job.facts.pinned
                    && job.shared.pool.model_votes(&job.model.kiro_id).1 =>
            {
                Error::new(Code::Overloaded, "The accounts that serve this model were not reached; try again")
            }
            Some(fault) => {
                if let Some(refused) =
                    self.pictures.as_ref().filter(|_| names_picture(fault)).and_then(Pictures::refusal)
                {
                    return job.named(Error::from(refused).with_fault(fault.kind));
                }
                let (prompt, pinned) = (job.facts.prompt_size(job.tokens()), job.account_id.as_deref());
                let error = error_of(&job.shared, fault, prompt, pinned, &job.model_names());
                let account_failure =
                    job.account_id.as_deref().and_then(|id| self.account_failure(&job.shared, id, fault));
                error.with_account_failure(account_failure)
            }
            None => Error::new(Code::Internal, "no attempt was made"),
        }
    }

    /// The failure of a pinned request's account.
    fn account_failure(&self, shared: &Shared, id: &str, fault: &Fault) -> Option<AccountFailure> {
        if self.tokenless || fault.kind == FaultKind::TokenRejected {
            // A refresh that was refused for good has ejected the account.
            return Some(shared.pool.ejection(id).map_or(AccountFailure::NoToken, AccountFailure::Marked));
        }
        lasting_mark(fault, shared.pool.now()).map(AccountFailure::Marked)
    }

    /// Asks upstream which profiles the present account has (K79).
    pub(super) async fn look_up_profiles(&mut self, job: &RequestJob, lease: &mut Lease) {
        self.current.profiles_asked = true;
        self.log.wait(pin!(job.shared.credentials.look_up_profiles(lease))).await;
    }

    /// The circumstances that a fault is reported with.
    pub(super) fn stood(&self, committed: bool) -> AttemptEnd {
        AttemptEnd { refreshed: self.budget.token_refreshed(), committed }
    }

    /// No further attempt follows: drops everything that only one would need.
    pub(super) fn commit(&mut self) {
        self.other = None;
        self.pictures = None;
        self.home = None;
        self.homes = None;
        self.tried = Vec::new();
    }

    /// The window that the percentage of context refers to on the last attempt's account, in tokens (K126).
    pub(super) fn usage_window(&self) -> Option<u64> {
        self.current.chosen().map(|chosen| chosen.usage_window)
    }

    /// `max_tokens`, where the gateway keeps it for the last attempt (M83).
    pub(super) fn kept_max_tokens(&self) -> Option<u64> {
        self.current.chosen().and_then(|chosen| chosen.kept_max_tokens)
    }

    /// The translation that went out last.
    pub(super) fn written<'t>(&'t self, job: &'t RequestJob) -> &'t Translation {
        let variation = self.current.chosen().map(|chosen| chosen.variation).unwrap_or_default();
        match &self.other {
            Some(other) if other.0 == variation => &other.1,
            _ => self.first_written(job),
        }
    }

    /// The translation that leaves nothing out.
    fn first_written<'t>(&'t self, job: &'t RequestJob) -> &'t Translation {
        self.home.as_ref().map_or(&job.written, |home| &home.1)
    }

    /// The account whose thoughts are in it.
    pub(super) fn meant<'t>(&'t self, job: &'t RequestJob) -> Option<&'t AccountId> {
        self.home.as_ref().map(|home| &home.0).or(job.meant.as_ref())
    }

    /// The parts that the body for this account leaves out. Thoughts of another account never go out (TR45).
    pub(super) fn leave_out(&self, job: &RequestJob, account: &AccountId) -> LeaveOut {
        let reasoning = self.leave_out.reasoning || self.meant(job) != Some(account);
        LeaveOut { reasoning, ..self.leave_out }
    }

    pub(super) fn count_reasoning(&mut self, job: &RequestJob) {
        let first = self.first_written(job);
        let result = match self.written(job).reasoning {
            true => "sent",
            false if first.reasoning || first.withheld => "left_out",
            false => return,
        };
        self.log.reasoning(&job.shared.metrics, result);
    }

    /// Looks for large pictures, once a request, before they could go out in another form (TR67).
    pub(super) async fn look_at_pictures(&mut self, job: &Arc<RequestJob>, form: PictureForm) {
        if form != PictureForm::AsTheyAre && self.pictures.is_none() {
            self.pictures = Some(self.log.wait(pin!(large_pictures(job))).await);
        }
    }

    /// The pictures that went out in another form, for the client (M80).
    pub(super) fn changed_pictures(&self) -> impl Iterator<Item = String> {
        let form = self.current.chosen().map(|chosen| chosen.variation.pictures).unwrap_or_default();
        self.pictures.iter().flat_map(move |pictures| pictures.changes(form))
    }

    /// Prepares the translation of the next attempt. The request is translated again only when no kept translation
    /// fits.
    pub(super) fn write(&mut self, job: &RequestJob, variation: Variation) -> Result<(), Error> {
        let pictures = self.pictures.as_ref();
        let there = variation == Variation::default() || self.other.as_ref().is_some_and(|other| other.0 == variation);
        // Parts that aren't in the body needn't be left out.
        if !there && self.first_written(job).differs(&job.model, variation, pictures) {
            self.other = Some(Box::new((variation, job.write(variation, pictures, self.meant(job))?)));
        }
        Ok(())
    }
}

/// Whether upstream names a picture as what it refuses.
fn names_picture(fault: &Fault) -> bool {
    matches!(fault.reason.as_deref(), Some("IMAGE_SIZE_EXCEEDED" | "IMAGE_DIMENSION_EXCEEDED"))
}

/// A bare "Improperly formed request." may be a prompt that is too long: then clients must hear that, to compact it (TS41).
fn weighed(job: &RequestJob, mut fault: Fault) -> Fault {
    /// The largest body that was seen to pass, in bytes [report].
    const LARGEST_BODY: usize = 1_060 * 1024;
    let is_bare = fault.kind == FaultKind::BadRequest
        && fault.reason.is_none()
        && fault.message.trim().trim_end_matches('.').eq_ignore_ascii_case("improperly formed request");
    if is_bare && (job.client_body.len() > LARGEST_BODY || job.tokens() > job.facts.window) {
        fault.kind = FaultKind::PromptTooLong;
    }
    fault
}

/// A fault as the client's error. A rate limit names the time when the soonest account that serves the model is back
/// (K47); that of a pinned request, when its own account is.
pub(super) fn error_of(
    shared: &Shared,
    fault: &Fault,
    prompt: PromptSize,
    pinned: Option<&str>,
    model_names: &[&str],
) -> Error {
    let code = if pinned.is_some() { Code::of_pinned_fault(fault.kind) } else { Code::of_fault(fault.kind) };
    let after = match (code, pinned) {
        (Code::RateLimited, Some(account)) => shared.pool.return_of(account),
        (Code::RateLimited | Code::NoAccount, _) => shared.pool.soonest_return(model_names),
        _ => None,
    };
    let error = Error::new(code, api_error(fault, prompt).message).with_retry_after(after).with_fault(fault.kind);
    match pinned {
        Some(account) => error.with_account(account),
        None => error,
    }
}

impl Shared {
    /// Whether an account of another region may be tried for the client version: at most once a minute (K105).
    fn may_try_other_region(&self) -> bool {
        let mut last = self.other_region.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let may = last.is_none_or(|last| now - last >= Duration::from_secs(60));
        if may {
            *last = Some(now);
        }
        may
    }

    pub(super) fn report_success(&self, lease: Lease, record: bool) {
        for turns in [&self.discovery, &self.usage].into_iter().flatten() {
            turns.used(lease.account().id());
        }
        if record {
            lease.succeeded();
        }
    }

    pub(super) fn report_fault(&self, lease: Lease, fault: &Fault, record: bool, stood: AttemptEnd) {
        let outcome = if record {
            lease.failed(fault, stood)
        } else {
            lease.noted(fault);
            None
        };
        if fault.kind == FaultKind::Unreachable {
            // The log says once that the way is gone.
            return tracing::debug!(account = lease.account().short_id(), "an attempt could not be sent");
        }
        tracing::warn!(
            account = lease.account().short_id(),
            fault = %fault.word(),
            why = fault.tokenless(),
            status = fault.status,
            reason = fault.reason.as_deref(),
            committed = stood.committed,
            recorded = outcome.is_some(),
            "an attempt failed"
        );
    }
}
