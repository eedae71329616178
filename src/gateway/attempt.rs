//! Attempts: select an account, send, judge what came back, until a body begins or it is time to give up.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::dump::Recording;
use super::trace::Trace;
use super::{Shared, now, over, read_request};
use crate::config::Config;
use crate::error::{Code, Error, Plight};
use crate::policy::health::lasting_mark;
use crate::policy::retry::{Budget, Limits, MOST_ACCOUNTS, Remedy, Sent, Verdict};
use crate::pool::{AccountId, Lease, NoAccount, Stood, Wanted, Why};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::request::{Body as KiroBody, Form};
use crate::proto::kiro::route::Shape;
use crate::proto::messages::request::{Request, SystemMode};
use crate::proto::translate::estimate::request_tokens;
use crate::proto::translate::fault::{PromptSize, api_error};
use crate::proto::translate::fields::{Abilities, RefusedFields, model_fields};
use crate::proto::translate::model::Model;
use crate::proto::translate::request::{Context, LeaveOut, MAX_CACHE_POINTS, Translated, translate};
use crate::upstream::{Body, Target};

/// What stays the same over all attempts of one request.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    /// The client's bytes, for the one case in which they are translated again (TR31).
    pub(super) client_body: Bytes,
    pub(super) system: Option<(SystemMode, String)>,
    pub(super) session: Option<String>,
    pub(super) continuation_id: String,
    pub(super) kiro: KiroBody,
    pub(super) model_fields: Option<String>,
    pub(super) sent_reasoning: bool,
    pub(super) conversation_id: String,
    pub(super) model: Arc<Model>,
    /// The model as the client named it.
    pub(super) client_model: String,
    pub(super) request_id: String,
    pub(super) client_request_id: Option<String>,
    /// A pinned account (N5): no selection, no failover.
    pub(super) account_id: Option<String>,
    pub(super) facts: Facts,
    /// The request's span, once its stream is there.
    pub(super) trace: OnceLock<Trace>,
    pub(super) trace_parent: Option<String>,
    /// The estimate of the request in tokens, once it is known (TU7).
    pub(super) estimate: OnceLock<u64>,
}

/// What is left of a request after the commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) streaming: bool,
    pub(super) pinned: bool,
    pub(super) record: bool,
    pub(super) window: u64,
}

impl Facts {
    pub(super) fn prompt_size(self, estimate: u64) -> PromptSize {
        PromptSize { estimate, window: self.window }
    }
}

impl Job {
    /// The error of a pinned request names its account.
    fn named(&self, error: Error) -> Error {
        match &self.account_id {
            Some(id) => error.with_account(id),
            None => error,
        }
    }

    /// What an account may be unable to serve (R7).
    fn model_names(&self) -> [&str; 2] {
        [self.client_model.as_str(), self.model.names.first().map_or("", String::as_str)]
    }

    /// The estimate of the request in tokens. It is made while upstream thinks; an answer that was faster has it made here.
    fn tokens(&self) -> u64 {
        *self.estimate.get_or_init(|| {
            over(self.client_body.len(), || {
                let Ok(request) = read_request(&self.client_body, self.system.as_ref()) else { return 0 };
                request_tokens(&request)
            })
        })
    }

    /// The Kiro request without any `reasoningContent` (TR31).
    fn without_reasoning(&self) -> Result<KiroBody, Error> {
        over(self.client_body.len(), || {
            let request = read_request(&self.client_body, self.system.as_ref())?;
            Ok(self
                .shared
                .translate(&request, self.session.as_deref(), &self.conversation_id, &self.continuation_id, true)?
                .body)
        })
    }
}

impl Shared {
    /// Translates with the settings and the model table of now.
    pub(super) fn translate(
        &self,
        request: &Request<'_>,
        session: Option<&str>,
        random_conversation_id: &str,
        continuation_id: &str,
        without_reasoning: bool,
    ) -> Result<Translated, Error> {
        let models = self.models.load();
        let context = Context {
            models: &models,
            fallback: self.config.model_fallback.as_deref(),
            system_text: self.config.system_text,
            cache_points: self.config.cache_points,
            cache_limit: MAX_CACHE_POINTS,
            session_header: session,
            random_conversation_id,
            continuation_id,
            leave_out: LeaveOut { reasoning: without_reasoning, ..LeaveOut::default() },
        };
        let mut translated = translate(request, &context)?;
        if !self.config.forward_max_tokens {
            translated.asked.max_tokens = None;
            let abilities = Abilities::of(&translated.model, None, RefusedFields::default());
            translated.model_fields = model_fields(&translated.asked, &abilities);
        }
        Ok(translated)
    }
}

/// What a request remembers of its attempts.
pub(super) struct Trail {
    budget: Budget,
    /// When the first attempt went out (K137).
    began: Option<Instant>,
    tried: Vec<AccountId>,
    /// The profile of the account in hand was looked up for this request.
    profile_looked_up: bool,
    /// When the first attempt looked for an account: all waits of a request together are bounded.
    looked: Option<Instant>,
    rng: fastrand::Rng,
    /// The body to send when it isn't the job's (TR31).
    plain: Option<KiroBody>,
    account: Option<String>,
    /// The last account had no token to send.
    tokenless: bool,
    /// Time in which upstream was waited for.
    waited: Duration,
    /// For `KIRO_DEBUG_DUMP_DIR`; none without it.
    pub(super) recording: Option<Box<Recording>>,
}

/// How the next attempt begins.
pub(super) enum Next {
    /// Select an account, after a pause.
    Select { after: Duration },
    /// The same account, after the remedy.
    Again { lease: Lease, remedy: Remedy, fault: Fault },
}

/// What [`open`] came to.
pub(super) enum Opened {
    /// An event stream begins.
    Body { body: Body, lease: Lease, trail: Trail },
    /// It is over before it began.
    Failed { error: Error, trail: Trail },
}

impl Trail {
    pub(super) fn new(config: &Config, pinned: bool, rng: fastrand::Rng, recording: Option<Box<Recording>>) -> Self {
        let limits = Limits {
            attempts: config.max_attempts,
            accounts: if pinned { 1 } else { MOST_ACCOUNTS },
            time: config.failover_time,
        };
        Self {
            budget: Budget::new(limits),
            began: None,
            tried: Vec::new(),
            profile_looked_up: false,
            looked: None,
            rng,
            plain: None,
            account: None,
            tokenless: false,
            waited: Duration::ZERO,
            recording,
        }
    }

    /// The account of the last attempt (its first 8 characters are all that leaves the store) and the accounts tried.
    pub(super) fn account_and_attempts(&self) -> (Option<&str>, u32) {
        (self.account.as_deref(), self.budget.accounts())
    }

    /// Time in which upstream was waited for since this was last asked: answers, tokens, profiles.
    pub(super) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// What follows a fault before the commit: another attempt, or the error that the client gets.
    pub(super) fn judge(&mut self, job: &Arc<Job>, lease: Lease, fault: Fault) -> Result<Next, Error> {
        let sent = Sent {
            refreshable: !lease.account().is_api_key(),
            reasoning: job.sent_reasoning && self.plain.is_none(),
            variant_left: !self.profile_looked_up,
            ..Sent::PLAIN
        };
        self.note(&lease, &fault);
        let stood = self.stood(false);
        let elapsed = self.elapsed();
        match self.budget.fault(fault.clone(), &sent, elapsed, false, &mut self.rng) {
            Verdict::SameAccount(remedy) => Ok(Next::Again { lease, remedy, fault }),
            verdict => {
                job.shared.report_fault(lease, &fault, job.facts.record, stood);
                self.follow(job, verdict)
            }
        }
    }

    /// The account couldn't be asked at all: its token could not be had. What that leaves on the account is the refresh's
    /// to say (R41, R45), so a rejected token doesn't count here, whatever was refreshed before.
    fn unusable(&mut self, job: &Arc<Job>, lease: Lease, fault: Fault) -> Result<Next, Error> {
        self.tokenless = true;
        self.note(&lease, &fault);
        job.shared.report_fault(lease, &fault, job.facts.record, Stood::default());
        let elapsed = self.elapsed();
        let verdict = self.budget.account_failed(fault, elapsed);
        self.follow(job, verdict)
    }

    /// Tells the recording, if there is one.
    pub(super) fn note(&mut self, lease: &Lease, fault: &Fault) {
        if let Some(recording) = &mut self.recording {
            recording.failed(lease.account().short_id(), fault);
        }
    }

    fn follow(&mut self, job: &Arc<Job>, verdict: Verdict) -> Result<Next, Error> {
        match verdict {
            Verdict::NextAccount { after } => Ok(Next::Select { after }),
            Verdict::Stop | Verdict::SameAccount(_) | Verdict::OtherRegion => Err(self.answer(job)),
        }
    }

    /// Since the first attempt.
    fn elapsed(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// The error that the attempts so far add up to (K47).
    fn answer(&self, job: &Job) -> Error {
        match self.budget.answer() {
            Some(fault) => {
                let (prompt, pinned) = (job.facts.prompt_size(job.tokens()), job.account_id.as_deref());
                let error = error_of(&job.shared, fault, prompt, pinned, &job.model_names());
                let plight = job.account_id.as_deref().and_then(|id| self.plight(&job.shared, id, fault));
                job.named(error).with_plight(plight)
            }
            None => Error::new(Code::Internal, "no attempt was made"),
        }
    }

    /// What a pinned request learned of its account.
    fn plight(&self, shared: &Shared, id: &str, fault: &Fault) -> Option<Plight> {
        if self.tokenless || fault.kind == FaultKind::TokenRejected {
            // A refresh that was refused for good has ejected the account.
            return Some(shared.pool.ejection(id).map_or(Plight::NoToken, Plight::Marked));
        }
        lasting_mark(fault, shared.pool.now()).map(Plight::Marked)
    }

    /// What a fault is reported with.
    pub(super) fn stood(&self, committed: bool) -> Stood {
        Stood { refreshed: self.budget.token_refreshed(), committed }
    }

    /// No further attempt will be made: what it would have needed goes.
    pub(super) fn commit(&mut self) {
        self.plain = None;
        self.tried = Vec::new();
    }
}

/// A fault as an error of ours; a rate limit says when the soonest account that serves the model is back (K47), that of a
/// pinned request when its own is.
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
    Error::new(code, api_error(fault, prompt).message).with_retry_after(after).with_fault(fault.kind)
}

/// Tries accounts until an event stream begins.
pub(super) async fn open(job: Arc<Job>, mut trail: Trail, mut next: Next) -> Opened {
    loop {
        let (lease, token) = match prepare(&job, &mut trail, next).await {
            Ok(ready) => ready,
            Err(Stumble::Over(error)) => return Opened::Failed { error, trail },
            Err(Stumble::Next(again)) => {
                next = again;
                continue;
            }
        };
        let account = lease.account();
        let form = Form {
            shape: Shape::Q,
            small: false,
            model_fields: job.model_fields.as_deref(),
            profile_arn: account.profile_arn(),
        };
        let body = trail.plain.as_ref().unwrap_or(&job.kiro).parts(&form);
        if let Some(recording) = &mut trail.recording {
            recording.sent(&body, &token);
        }
        let target = Target {
            url: account.generate_url().to_owned(),
            token,
            machine_id: account.machine_id().to_owned(),
            token_type: account.is_api_key().then_some("API_KEY"),
            shape: Shape::Q,
            proxy: account.proxy_url().map(|url| url.expose().to_owned()),
        };
        let asked = now();
        trail.began.get_or_insert(asked);
        trail.budget.called();
        let span = job.trace.get().map(|trace| trace.attempt(account.short_id()));
        let answer = job.shared.upstream.generate(&target, body).await;
        if let Some(span) = span {
            span.end(&answer);
        }
        trail.waited += asked.elapsed();
        job.shared.metrics.count_attempt(answer.as_ref().err().map(|fault| fault.kind));
        match answer {
            Ok(body) => return Opened::Body { body, lease, trail },
            Err(fault) => match trail.judge(&job, lease, fault) {
                Ok(again) => next = again,
                Err(error) => return Opened::Failed { error, trail },
            },
        }
    }
}

enum Stumble {
    Next(Next),
    Over(Error),
}

impl From<Result<Next, Error>> for Stumble {
    fn from(judged: Result<Next, Error>) -> Self {
        match judged {
            Ok(next) => Stumble::Next(next),
            Err(error) => Stumble::Over(error),
        }
    }
}

/// An account with a token that can be sent.
async fn prepare(job: &Arc<Job>, trail: &mut Trail, next: Next) -> Result<(Lease, crate::secret::Secret), Stumble> {
    let shared = &job.shared;
    match next {
        Next::Select { after } => {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let lease = select(job, trail).await.map_err(Stumble::Over)?;
            trail.tried.push(lease.account().id().clone());
            trail.account = Some(lease.account().id().to_string());
            trail.budget.next_account();
            trail.profile_looked_up = false;
            with_token(job, trail, lease).await
        }
        Next::Again { lease, remedy: Remedy::WithoutReasoning, .. } => {
            trail.plain = Some(job.without_reasoning().map_err(Stumble::Over)?);
            with_token(job, trail, lease).await
        }
        Next::Again { lease, remedy: Remedy::RefreshToken, .. } => {
            let asked = now();
            let token = shared.credentials.force_refresh(&lease).await;
            trail.waited += asked.elapsed();
            match token {
                Ok(token) => Ok((lease, token)),
                // The refresh's own fault: the account is out for this request.
                Err(mut fault) => {
                    if job.facts.pinned {
                        // N8: whoever chose the account hears that its token was rejected, however the refresh failed.
                        fault.kind = FaultKind::TokenRejected;
                    }
                    Err(trail.unusable(job, lease, fault).into())
                }
            }
        }
        Next::Again { lease, remedy: Remedy::NextVariant, fault } => {
            trail.profile_looked_up = true;
            let asked = now();
            let found = shared.credentials.look_up_profile(lease).await;
            trail.waited += asked.elapsed();
            match found {
                Ok(lease) => with_token(job, trail, lease).await,
                // No profile to be had: the fault stands (K64).
                Err(lease) => Err(trail.judge(job, lease, fault).into()),
            }
        }
        // Nothing else is offered yet.
        Next::Again { lease, fault, .. } => Err(trail.judge(job, lease, fault).into()),
    }
}

/// The account's token, from memory; one that has expired is refreshed first, which is waiting for upstream too.
async fn with_token(
    job: &Arc<Job>,
    trail: &mut Trail,
    lease: Lease,
) -> Result<(Lease, crate::secret::Secret), Stumble> {
    let asked = now();
    let token = job.shared.credentials.access_token(&lease).await;
    trail.waited += asked.elapsed();
    match token {
        Ok(token) => Ok((lease, token)),
        Err(fault) => Err(trail.unusable(job, lease, fault).into()),
    }
}

async fn select(job: &Job, trail: &mut Trail) -> Result<Lease, Error> {
    let shared = &job.shared;
    let wanted = Wanted {
        model_names: &job.model_names(),
        exclude: &trail.tried,
        conversation_id: &job.conversation_id,
        only: job.account_id.as_deref(),
        ..Wanted::default()
    };
    let since = *trail.looked.get_or_insert_with(now);
    match shared.pool.acquire(&wanted, since).await {
        Ok(lease) => Ok(lease),
        // Other accounts were tried and failed: that is the answer, not that none is left. But who used up the last one
        // hears what the next request will hear (M85), unless it was a rate limit (K47).
        Err(none) => match trail.budget.answer().map(|fault| Code::of_fault(fault.kind)) {
            Some(code) if code == Code::RateLimited || !none.is_lasting() => Err(trail.answer(job)),
            _ => Err(job.named(no_account(&none))),
        },
    }
}

pub(super) fn no_account(none: &NoAccount) -> Error {
    let plight = match none.why {
        Why::Unknown => Some(Plight::Unknown),
        Why::Unusable => Some(Plight::NoToken),
        _ => None,
    };
    let error = Error::new(none.code(), none.to_string()).with_retry_after(none.retry_after).with_plight(plight);
    if none.is_lasting() { error.lasting() } else { error }
}
