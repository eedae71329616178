//! Attempts: select an account, send, judge what came back, until a body begins or it is time to give up.

use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::dump::Recording;
use super::hand::{Hand, NoProfile, Variation};
use super::trace::Trace;
use super::{Shared, now, over, read_request};
use crate::config::Config;
use crate::error::{Code, Error, Plight};
use crate::policy::health::lasting_mark;
use crate::policy::learned::Lesson;
use crate::policy::retry::{Budget, Limits, MOST_ACCOUNTS, Remedy, Verdict};
use crate::pool::{AccountId, AccountView, Fit, Lease, NoAccount, Stood, Wanted, Why};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::request::Body as KiroBody;
use crate::proto::kiro::route::{Call, Shape};
use crate::proto::messages::request::{Request, SystemMode};
use crate::proto::said::Known;
use crate::proto::translate::estimate::request_tokens;
use crate::proto::translate::fault::{PromptSize, api_error};
use crate::proto::translate::fields::Asked;
use crate::proto::translate::ids::Ids;
use crate::proto::translate::model::Model;
use crate::proto::translate::request::{Context, LeaveOut, Replay, Translated, translate};
use crate::upstream::{Body, Target};

/// What stays the same over all attempts of one request.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    /// The client's bytes, for the one case in which they are translated again (TR31).
    pub(super) client_body: Bytes,
    pub(super) system: Option<(SystemMode, String)>,
    /// The request with the thoughts of `meant`.
    pub(super) written: Written,
    /// The account that the reasoning is written for (TR45).
    pub(super) meant: Option<AccountId>,
    pub(super) ids: Ids,
    /// The request has an assistant message: its conversation may be known elsewhere (R102).
    pub(super) has_history: bool,
    /// For the fields of each attempt (TR40).
    pub(super) asked: Asked,
    pub(super) model: Arc<Model>,
    /// The model as the client named it.
    pub(super) client_model: String,
    pub(super) request_id: String,
    pub(super) client_request_id: Option<String>,
    /// A pinned account (N5): no selection, no failover.
    pub(super) account_id: Option<String>,
    /// Upstream has refused the name, and the model is `KIRO_MODEL_FALLBACK`'s (TR36).
    pub(super) is_fallback: bool,
    pub(super) facts: Facts,
    /// The request's span, once its stream is there.
    pub(super) trace: OnceLock<Trace>,
    pub(super) trace_parent: Option<String>,
    /// The estimate of the request in tokens, once it is known (TU7).
    pub(super) estimate: OnceLock<u64>,
}

/// One translation of the request.
pub(super) struct Written {
    pub(super) body: KiroBody,
    /// It holds `reasoningContent`.
    pub(super) reasoning: bool,
    /// It holds reasoning without text.
    pub(super) empty_thoughts: bool,
    /// Reasoning was kept back that isn't the account's (TR44).
    withheld: bool,
    /// So many cache points are in it.
    pub(super) cache_points: usize,
}

impl Written {
    pub(super) fn of(translated: &Translated) -> Self {
        Self {
            body: translated.body.clone(),
            reasoning: translated.sent_reasoning,
            empty_thoughts: translated.sent_empty_thoughts,
            withheld: translated.withheld_reasoning,
            cache_points: translated.sent_cache_points,
        }
    }

    /// Whether the request reads otherwise in this variation.
    fn differs(&self, job: &Job, variation: Variation) -> bool {
        (variation.leave_out.reasoning && self.reasoning)
            || (variation.leave_out.empty_thoughts && self.empty_thoughts)
            || variation.cache_points < self.cache_points
            || (variation.other_model_id && job.model.alt.is_some())
    }
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

    /// The same request for the model of `KIRO_MODEL_FALLBACK`, once upstream has refused a name that passed (TR36).
    /// None without one.
    fn fallback(&self) -> Option<Arc<Self>> {
        if !self.model.passed || self.shared.config.model_fallback.is_none() {
            return None;
        }
        let translated = over(self.client_body.len(), || {
            let request = read_request(&self.client_body, self.system.as_ref()).ok()?;
            self.shared.translate(&request, &self.ids, self.meant.as_ref(), Variation::default(), true).ok()
        })?;
        Some(Arc::new(Self {
            shared: self.shared.clone(),
            client_body: self.client_body.clone(),
            system: self.system.clone(),
            written: Written::of(&translated),
            meant: self.meant.clone(),
            ids: self.ids.clone(),
            has_history: self.has_history,
            asked: translated.asked,
            client_model: self.client_model.clone(),
            request_id: self.request_id.clone(),
            client_request_id: self.client_request_id.clone(),
            account_id: self.account_id.clone(),
            is_fallback: true,
            facts: Facts { window: translated.model.window, ..self.facts },
            model: translated.model,
            trace: self.trace.clone(),
            trace_parent: self.trace_parent.clone(),
            estimate: self.estimate.clone(),
        }))
    }

    /// A name that was passed on by a rule, and that nobody serves, is answered at once for a while (K89, TR36).
    fn refuse_name(&self) {
        if self.model.passed && !self.facts.pinned {
            let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.refuse(&self.model.kiro_id, self.shared.pool.now());
        }
    }

    /// What an account may be unable to serve (R7).
    fn model_names(&self) -> [&str; 2] {
        [self.client_model.as_str(), self.model.names.first().map_or("", String::as_str)]
    }

    /// The estimate of the request in tokens. It is made while upstream thinks; an answer that was faster has it made
    /// here.
    fn tokens(&self) -> u64 {
        *self.estimate.get_or_init(|| {
            over(self.client_body.len(), || {
                let Ok(request) = read_request(&self.client_body, self.system.as_ref()) else { return 0 };
                request_tokens(&request)
            })
        })
    }

    /// The Kiro request in a variation, with the thoughts of this account.
    fn write(&self, variation: Variation, account: Option<&AccountId>) -> Result<Written, Error> {
        over(self.client_body.len(), || {
            let request = read_request(&self.client_body, self.system.as_ref())?;
            let translated = self.shared.translate(&request, &self.ids, account, variation, self.is_fallback)?;
            Ok(Written::of(&translated))
        })
    }
}

impl Shared {
    /// Translates with the settings and the model table of now; `as_fallback`: upstream has refused the name (TR36).
    pub(super) fn translate(
        &self,
        request: &Request<'_>,
        ids: &Ids,
        account: Option<&AccountId>,
        variation: Variation,
        as_fallback: bool,
    ) -> Result<Translated, Error> {
        let mut models = self.models.load_full();
        if as_fallback || self.is_refused_name(&models, request.model()) {
            models = Arc::new(models.refusing_unknown());
        }
        let context = Context {
            models: &models,
            fallback: self.config.model_fallback.as_deref(),
            system_text: self.config.system_text,
            cache_points: self.config.cache_points,
            cache_limit: variation.cache_points,
            ids,
            replay: Replay::Nothing,
            leave_out: variation.leave_out,
            other_model_id: variation.other_model_id,
        };
        let mut translated =
            self.with_replay(&ids.key, account, |replay| translate(request, &Context { replay, ..context }))?;
        if !self.config.forward_max_tokens {
            translated.asked.max_tokens = None;
        }
        Ok(translated)
    }
}

/// What a request remembers of its attempts. On the heap: it is handed on from state to state.
pub(super) struct Trail {
    budget: Budget,
    /// When the first attempt went out (K137).
    began: Option<Instant>,
    tried: Vec<AccountId>,
    /// The account in hand.
    hand: Hand,
    /// Accounts of these API regions are passed over (K105).
    other_than_region: Option<String>,
    /// When the first attempt looked for an account: all waits of a request together are bounded.
    looked: Option<Instant>,
    rng: fastrand::Rng,
    /// What every account's body leaves out (TR31).
    leave_out: LeaveOut,
    /// The body to send when it isn't the job's.
    other: Option<Box<(Variation, Written)>>,
    /// In place of [`Job::written`] and [`Job::meant`], when another process knows the conversation's home (R102).
    home: Option<Box<(AccountId, Written)>>,
    /// See [`Wanted::homes`]; none before the first selection.
    homes: Option<Vec<AccountId>>,
    /// What became of earlier thinking is counted once a request.
    reasoning_counted: bool,
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
    /// Any account, for another model than the one that was asked for (TR36).
    Instead(Arc<Job>),
}

/// What [`open`] came to.
pub(super) enum Opened {
    /// An event stream begins. The job is the one that it answers (TR36).
    Body { body: Body, known: Known, lease: Lease, trail: Box<Trail>, job: Arc<Job> },
    /// It is over before it began.
    Failed { error: Error, trail: Box<Trail> },
}

impl Trail {
    pub(super) fn new(
        config: &Config,
        pinned: bool,
        rng: fastrand::Rng,
        recording: Option<Box<Recording>>,
    ) -> Box<Self> {
        let limits = Limits {
            attempts: config.max_attempts,
            accounts: if pinned { 1 } else { MOST_ACCOUNTS },
            time: config.failover_time,
        };
        Box::new(Self {
            budget: Budget::new(limits),
            began: None,
            tried: Vec::new(),
            hand: Hand::default(),
            other_than_region: None,
            looked: None,
            rng,
            leave_out: LeaveOut::default(),
            other: None,
            home: None,
            homes: None,
            reasoning_counted: false,
            account: None,
            tokenless: false,
            waited: Duration::ZERO,
            recording,
        })
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
        let written = self.written(job);
        let sent = self.hand.sent(job, &lease, written);
        self.note(&lease, &fault);
        let stood = self.stood(false);
        let elapsed = self.elapsed();
        // K92: a request that was throttled isn't repeated from elsewhere.
        let braked =
            matches!(fault.kind, FaultKind::RateLimited | FaultKind::Suspicious) && job.shared.pool.brake().is_some();
        match self.budget.fault(fault.clone(), &sent, elapsed, braked, &mut self.rng) {
            Verdict::SameAccount(remedy) => {
                self.hand.remedy(job, &lease, remedy, &fault);
                Ok(Next::Again { lease, remedy, fault })
            }
            verdict => {
                let fault = self.hand.given_up(job, &lease, fault);
                // K89: two have said no and none ever yes, so that nobody else is asked.
                let mut verdict = verdict;
                if fault.kind == FaultKind::UnknownModel && job.model.passed && !job.facts.pinned {
                    let (refusals, served) = job.shared.pool.model_votes(&job.model.kiro_id);
                    if refusals >= 2 && !served {
                        job.refuse_name();
                        verdict = Verdict::Stop;
                    }
                }
                if verdict == Verdict::OtherRegion {
                    let region = self.hand.chosen().map(|chosen| chosen.region.clone());
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

    /// The account couldn't be asked at all: its token could not be had. What that leaves on the account is the
    /// refresh's to say (R41, R45), so a rejected token doesn't count here, whatever was refreshed before.
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
            Verdict::OtherRegion => Ok(Next::Select { after: Duration::ZERO }),
            Verdict::Stop | Verdict::SameAccount(_) => self.over(job),
        }
    }

    /// Nobody else is asked: the error that the attempts add up to. A name that upstream has refused goes on as the
    /// model of `KIRO_MODEL_FALLBACK` (TR36).
    fn over(&mut self, job: &Job) -> Result<Next, Error> {
        let refused = self.budget.answer().is_some_and(|fault| fault.kind == FaultKind::UnknownModel);
        let is_served = || !job.facts.pinned && job.shared.pool.model_votes(&job.model.kiro_id).1;
        let instead = (refused && self.budget.may_call() && !is_served()).then(|| job.fallback()).flatten();
        instead.map(Next::Instead).ok_or_else(|| self.answer(job))
    }

    /// Another model is asked for: what was found out about the first one says nothing of it.
    fn begin_anew(&mut self) {
        self.budget.begin_anew();
        self.tried.clear();
        self.other_than_region = None;
        (self.other, self.home, self.homes) = (None, None, None);
    }

    /// Since the first attempt.
    fn elapsed(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// The error that the attempts so far add up to (K47).
    fn answer(&self, job: &Job) -> Error {
        match self.budget.answer() {
            // K88: eight have said no, others weren't asked, and the model has been served.
            Some(fault)
                if fault.kind == FaultKind::UnknownModel
                    && !job.facts.pinned
                    && job.shared.pool.model_votes(&job.model.kiro_id).1 =>
            {
                Error::new(Code::Overloaded, "The accounts that serve this model were not reached; try again")
            }
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

    /// Asks which profiles the account in hand has (K79), which is waiting for upstream too.
    async fn look_up_profiles(&mut self, job: &Job, lease: &mut Lease) {
        self.hand.profiles_asked = true;
        let asked = now();
        job.shared.credentials.look_up_profiles(lease).await;
        self.waited += asked.elapsed();
    }

    /// What a fault is reported with.
    pub(super) fn stood(&self, committed: bool) -> Stood {
        Stood { refreshed: self.budget.token_refreshed(), committed }
    }

    /// No further attempt will be made: what it would have needed goes.
    pub(super) fn commit(&mut self) {
        self.other = None;
        self.home = None;
        self.homes = None;
        self.tried = Vec::new();
    }

    /// The shape of the last attempt.
    pub(super) fn shape(&self) -> Option<Shape> {
        self.hand.chosen().map(|chosen| chosen.shape)
    }

    /// What the percentage of context refers to on the account of the last attempt (K126).
    pub(super) fn usage_window(&self) -> Option<u64> {
        self.hand.chosen().map(|chosen| chosen.usage_window)
    }

    /// The translation that went out last.
    fn written<'t>(&'t self, job: &'t Job) -> &'t Written {
        let variation = self.hand.chosen().map(|chosen| chosen.variation).unwrap_or_default();
        match &self.other {
            Some(other) if other.0 == variation => &other.1,
            _ => self.first_written(job),
        }
    }

    /// The translation that leaves nothing out.
    fn first_written<'t>(&'t self, job: &'t Job) -> &'t Written {
        self.home.as_ref().map_or(&job.written, |home| &home.1)
    }

    /// The account whose thoughts are in it.
    fn meant<'t>(&'t self, job: &'t Job) -> Option<&'t AccountId> {
        self.home.as_ref().map(|home| &home.0).or(job.meant.as_ref())
    }

    /// What the body for this account leaves out: thoughts that another one made stay here (TR45).
    fn leave_out(&self, job: &Job, account: &AccountId) -> LeaveOut {
        let reasoning = self.leave_out.reasoning || self.meant(job) != Some(account);
        LeaveOut { reasoning, ..self.leave_out }
    }

    fn count_reasoning(&mut self, job: &Job) {
        let first = self.first_written(job);
        let result = match self.written(job).reasoning {
            true => "sent",
            false if first.reasoning || first.withheld => "left_out",
            false => return,
        };
        if !std::mem::replace(&mut self.reasoning_counted, true) {
            job.shared.metrics.count_reasoning(result);
        }
    }

    /// Has the translation of the next attempt ready. The request is translated again only for one that isn't there.
    fn write(&mut self, job: &Job, variation: Variation) -> Result<(), Error> {
        let there = variation == Variation::default() || self.other.as_ref().is_some_and(|other| other.0 == variation);
        // What isn't in the body can't be left out of it.
        if !there && self.first_written(job).differs(job, variation) {
            self.other = Some(Box::new((variation, job.write(variation, self.meant(job))?)));
        }
        Ok(())
    }
}

/// A fault as an error of ours; a rate limit says when the soonest account that serves the model is back (K47), that of
/// a pinned request when its own is.
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
pub(super) async fn open(mut job: Arc<Job>, mut trail: Box<Trail>, mut next: Next) -> Opened {
    loop {
        if let Next::Instead(other) = next {
            job = other;
            trail.begin_anew();
            next = Next::Select { after: Duration::ZERO };
        }
        let (lease, token) = match prepare(&job, &mut trail, next).await {
            Ok(ready) => ready,
            Err(Stumble::Over(error)) => return Opened::Failed { error, trail },
            Err(Stumble::Next(again)) => {
                next = again;
                continue;
            }
        };
        let leave_out = trail.leave_out(&job, lease.account().id());
        let chosen = match trail.hand.choose(&job, &lease, leave_out) {
            Ok(chosen) => chosen,
            Err(NoProfile) => {
                lease.learn(Lesson::NoProfile { asked: true });
                match trail.unusable(&job, lease, no_profile()) {
                    Ok(again) => next = again,
                    Err(error) => return Opened::Failed { error, trail },
                }
                continue;
            }
        };
        if let Err(error) = trail.write(&job, chosen.variation) {
            return Opened::Failed { error, trail };
        }
        trail.count_reasoning(&job);
        let account = lease.account();
        let body = trail.written(&job).body.parts(&chosen.form());
        if let Some(recording) = &mut trail.recording {
            recording.sent(&body, &token);
        }
        let target = Target {
            url: chosen.url.to_string(),
            token,
            machine_id: account.machine_id().to_owned(),
            token_type: account.token_type(),
            shape: chosen.shape,
            proxy: account.proxy_url().map(|url| url.expose().to_owned()),
            account: account.id().clone(),
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
        job.shared.metrics.count_attempt(Some(chosen.shape), answer.as_ref().err().map(|fault| fault.kind));
        let heard = answer.as_ref().map(|_| ());
        // What keeps an account's own proxy from being reached is no host's matter.
        if target.proxy.is_none() || heard.err().is_none_or(|fault| fault.kind != FaultKind::Unreachable) {
            job.shared.upstream.heard(Call::Chat, &chosen.way(), account.short_id(), heard, job.shared.pool.now());
        }
        if answer.is_ok() {
            trail.hand.passed(&job, &lease);
        }
        match answer {
            Ok(body) => return Opened::Body { body, known: target.known(), lease, trail, job },
            Err(fault) => match trail.judge(&job, lease, fault) {
                Ok(again) => next = again,
                Err(error) => return Opened::Failed { error, trail },
            },
        }
    }
}

/// The account has nothing that could be sent as its profile.
fn no_profile() -> Fault {
    let message = "the account has no Kiro profile".into();
    Fault { kind: FaultKind::ProfileArn, status: None, reason: None, message, retry_after: None }
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
    if let Next::Again { lease, .. } = &next {
        lease.sends_again();
    }
    match next {
        Next::Select { after } => {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let mut lease = select(job, trail).await?;
            trail.tried.push(lease.account().id().clone());
            trail.account = Some(lease.account().id().to_string());
            trail.budget.next_account();
            trail.hand = Hand::default();
            if lease.account().wants_profiles() {
                trail.look_up_profiles(job, &mut lease).await;
            }
            with_token(job, trail, lease).await
        }
        Next::Instead(_) => Err(Stumble::Next(next)),
        Next::Again { mut lease, remedy: Remedy::OtherHost, .. } => {
            lease.renew_view();
            with_token(job, trail, lease).await
        }
        Next::Again { lease, remedy: Remedy::WithoutReasoning, .. } => {
            job.shared.signatures_refused(&job.ids.key);
            job.shared.metrics.count_reasoning("refused");
            trail.leave_out.reasoning = true;
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
                        // N8: the caller chose the account, so it hears that the token was rejected, however the
                        // refresh failed.
                        fault.kind = FaultKind::TokenRejected;
                    }
                    Err(trail.unusable(job, lease, fault).into())
                }
            }
        }
        Next::Again { mut lease, remedy: Remedy::NextVariant, fault } => {
            if trail.hand.may_ask_profiles(&lease) {
                trail.look_up_profiles(job, &mut lease).await;
            }
            if trail.hand.has_way(&lease) {
                with_token(job, trail, lease).await
            } else {
                // No variant is left: the fault stands (K78).
                Err(trail.judge(job, lease, fault).into())
            }
        }
        Next::Again {
            lease,
            remedy:
                Remedy::OtherShape
                | Remedy::OtherFields
                | Remedy::OtherModelId
                | Remedy::SmallForm
                | Remedy::WithoutFields
                | Remedy::WithoutCachePoints
                | Remedy::WithoutEmptyThoughts,
            ..
        } => with_token(job, trail, lease).await,
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

/// The accounts of the request's conversation (R101). Where only another process knows its home (R102), the request is
/// written anew if thoughts were kept back that may be that account's.
async fn look_for_homes(job: &Job, trail: &mut Trail) -> Result<(), Error> {
    let mut homes = job.shared.homes(&job.ids.key);
    if homes.is_empty()
        && job.has_history
        && !job.facts.pinned
        && let Some(home) = job.shared.home_elsewhere(&job.ids.key).await
    {
        if job.written.withheld && job.meant.as_ref() != Some(&home) {
            trail.home = Some(Box::new((home.clone(), job.write(Variation::default(), Some(&home))?)));
        }
        homes.push(home);
    }
    trail.homes = Some(homes);
    Ok(())
}

async fn select(job: &Job, trail: &mut Trail) -> Result<Lease, Stumble> {
    let shared = &job.shared;
    if trail.homes.is_none() {
        look_for_homes(job, trail).await.map_err(Stumble::Over)?;
    }
    let elsewhere = trail.other_than_region.as_deref().map(|region| shared.pool.accounts_in_region(region));
    let exclude = elsewhere.map(|mut there| {
        there.extend_from_slice(&trail.tried);
        there
    });
    let fit = fit(job);
    let wanted = Wanted {
        model_names: &job.model_names(),
        exclude: exclude.as_deref().unwrap_or(&trail.tried),
        kiro_id: &job.model.kiro_id,
        conversation_id: &job.ids.conversation,
        homes: trail.homes.as_deref().unwrap_or_default(),
        fit: Some(&fit),
        only: job.account_id.as_deref(),
    };
    let since = *trail.looked.get_or_insert_with(now);
    let none = match shared.pool.acquire(&wanted, since).await {
        Ok(lease) => return Ok(lease),
        Err(none) => none,
    };
    // Other accounts were tried and failed: that is the answer, not that no account is left. But the request that used
    // up the last one hears what the next request will hear (M85), unless it was a rate limit (K47).
    let nobody_has_it = matches!(none.why, Why::Model | Why::Exhausted);
    match trail.budget.answer().map(|fault| fault.kind) {
        // Whoever was asked has said no to the model: 404, unless somebody who might serve it only rests (K88).
        Some(FaultKind::UnknownModel) if nobody_has_it => {
            job.refuse_name();
            Err(trail.over(job).into())
        }
        // All of them have said so to earlier requests.
        None if nobody_has_it => Err(match job.fallback() {
            Some(instead) => Stumble::Next(Next::Instead(instead)),
            None => Stumble::Over(job.named(no_account(&none))),
        }),
        Some(kind)
            if kind != FaultKind::UnknownModel && (Code::of_fault(kind) == Code::RateLimited || !none.is_lasting()) =>
        {
            Err(Stumble::Over(trail.answer(job)))
        }
        _ => Err(Stumble::Over(job.named(no_account(&none)))),
    }
}

impl Shared {
    /// Whether no connection can be made from here on any way of the account.
    pub(super) fn is_cut_off(&self, view: &AccountView) -> bool {
        let proxy = view.proxy_url().map(|url| url.expose());
        let region = view.region();
        let mut shapes = view.shapes(region).iter();
        self.upstream.is_any_cut_off()
            && shapes.all(|shape| self.upstream.is_cut_off(&view.chat_url(*shape, region), proxy))
    }
}

/// Accounts whose fresh catalogue lacks the model come after those that have it (K127), those whose every shape refused
/// our client version lately after both (K109), and those that can't be reached from here after all.
fn fit(job: &Job) -> Fit {
    let gates = job.shared.upstream.gates(job.shared.pool.now());
    let model = job.model.clone();
    let shared = Arc::downgrade(&job.shared);
    let cut_off = job.shared.upstream.is_any_cut_off();
    Fit::new(move |view, learned, now| {
        let refused = || {
            let region = view.region();
            view.shapes(region).iter().all(|shape| gates.iter().any(|(of, there)| of == shape && there == region))
        };
        let lacks = learned.lacks_model(&model.kiro_id, model.alt.as_deref(), now);
        let gone = cut_off && shared.upgrade().is_some_and(|shared| shared.is_cut_off(view));
        u8::from(lacks) + 2 * u8::from(!gates.is_empty() && refused()) + 4 * u8::from(gone)
    })
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
