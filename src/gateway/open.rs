//! Opens an answer: selects an account, sends, and repeats until an event stream begins or the attempts end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::account_attempts::NoProfile;
use super::attempt::{Attempts, NextAttempt};
use super::job::RequestJob;
use super::outside::now;
use super::translation::Variation;
use crate::error::{AccountFailure, Code, Error};
use crate::policy::learned::Lesson;
use crate::policy::retry::Remedy;
use crate::pool::{Fit, Lease, NoAccount, Wanted, Why};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::route::Operation;
use crate::proto::said::KnownSecrets;
use crate::proto::translate::pictures::PictureForm;
use crate::secret::Secret;
use crate::upstream::{ChatTarget, UpstreamBody};

/// The result of [`open`].
pub(super) enum Opened {
    /// An event stream begins. `job` is the one that it answers (TR36).
    Body { body: UpstreamBody, known: KnownSecrets, lease: Lease, attempts: Box<Attempts>, job: Arc<RequestJob> },
    /// No attempt is left.
    Failed { error: Error, attempts: Box<Attempts> },
}

/// Tries accounts until an event stream begins.
pub(super) async fn open(mut job: Arc<RequestJob>, mut attempts: Box<Attempts>, mut next: NextAttempt) -> Opened {
    loop {
        if let NextAttempt::Instead(other) = next {
            job = other;
            attempts.begin_anew();
            next = NextAttempt::Select { after: Duration::ZERO };
        }
        match attempt(&job, &mut attempts, next).await {
            Ok((body, known, lease)) => return Opened::Body { body, known, lease, attempts, job },
            Err(NoAnswer::Again(again)) => next = again,
            Err(NoAnswer::Failed(error)) => return Opened::Failed { error, attempts },
        }
    }
}

/// One attempt: chooses account and form, sends, and judges what came back.
async fn attempt(
    job: &Arc<RequestJob>,
    attempts: &mut Attempts,
    next: NextAttempt,
) -> Result<(UpstreamBody, KnownSecrets, Lease), NoAnswer> {
    let (lease, token) = prepare(job, attempts, next).await?;
    let leave_out = attempts.leave_out(job, lease.account().id());
    let chosen = match attempts.current.choose(job, &lease, leave_out) {
        Ok(chosen) => chosen,
        Err(NoProfile) => {
            lease.learn(Lesson::NoProfile { asked: true });
            return Err(attempts.unusable(job, lease, no_profile()).into());
        }
    };
    attempts.look_at_pictures(job, chosen.variation.pictures).await;
    attempts.write(job, chosen.variation)?;
    attempts.count_reasoning(job);
    let account = lease.account();
    let body = attempts.written(job).body.parts(&chosen.form());
    attempts.log.sends(&body, &token);
    let target = ChatTarget {
        url: chosen.url.to_string(),
        token,
        machine_id: account.machine_id().to_owned(),
        token_type: account.token_type(),
        shape: chosen.shape,
        proxy: account.proxy_url().map(|url| url.expose().to_owned()),
        account: account.id().clone(),
    };
    if attempts.began.is_none() {
        job.shared.upstream.chosen(&target.url, target.proxy.as_deref());
    }
    attempts.began.get_or_insert_with(now);
    attempts.budget.called();
    let call = pin!(job.shared.upstream.generate(&target, body));
    let answer = attempts.log.call(job, account.short_id(), chosen.shape, call).await;
    let heard = answer.as_ref().map(|_| ());
    // An account's own proxy that can't be reached says nothing about the host.
    if target.proxy.is_none() || heard.err().is_none_or(|fault| fault.kind != FaultKind::Unreachable) {
        job.shared.upstream.heard(Operation::Chat, &chosen.way(), account.short_id(), heard, job.shared.pool.now());
    }
    match answer {
        Ok(body) => {
            attempts.current.passed(job, &lease);
            Ok((body, target.known(), lease))
        }
        Err(fault) => Err(attempts.judge(job, lease, fault).into()),
    }
}

/// The account has no profile to send.
fn no_profile() -> Fault {
    let message = "the account has no Kiro profile".into();
    Fault { kind: FaultKind::ProfileArn, status: None, reason: None, message, retry_after: None }
}

/// The step after an attempt without an answer.
enum NoAnswer {
    /// Another attempt.
    Again(NextAttempt),
    /// The error that the client gets.
    Failed(Error),
}

impl From<Result<NextAttempt, Error>> for NoAnswer {
    fn from(judged: Result<NextAttempt, Error>) -> Self {
        judged.map_or_else(Self::Failed, Self::Again)
    }
}

impl From<Error> for NoAnswer {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// An account with a token that can be sent.
async fn prepare(
    job: &Arc<RequestJob>,
    attempts: &mut Attempts,
    next: NextAttempt,
) -> Result<(Lease, Secret), NoAnswer> {
    let (lease, refresh) = match next {
        NextAttempt::Select { after } => {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let mut lease = select(job, attempts).await?;
            attempts.tries(lease.account().id());
            if lease.account().wants_profiles() {
                attempts.look_up_profiles(job, &mut lease).await;
            }
            (lease, false)
        }
        NextAttempt::Again { mut lease, remedy, fault } => {
            lease.sends_again();
            match remedy {
                Remedy::OtherHost => lease.renew_view(),
                Remedy::WithoutReasoning => {
                    job.shared.conversations.signatures_refused(&job.ids.key);
                    job.shared.metrics.count_reasoning("refused");
                    attempts.leave_out.reasoning = true;
                }
                Remedy::SmallerPictures => {
                    attempts.look_at_pictures(job, PictureForm::Fitted).await;
                    if !attempts.current.makes_pictures_smaller(attempts.pictures.as_ref()) {
                        // None is large: the fault stands.
                        return Err(attempts.judge(job, lease, fault).into());
                    }
                }
                Remedy::NextVariant => {
                    if attempts.current.may_ask_profiles(&lease) {
                        attempts.look_up_profiles(job, &mut lease).await;
                    }
                    if !attempts.current.has_way(&lease) {
                        // No variant is left: the fault stands (K78).
                        return Err(attempts.judge(job, lease, fault).into());
                    }
                }
                Remedy::RefreshToken
                | Remedy::OtherShape
                | Remedy::OtherFields
                | Remedy::OtherModelId
                | Remedy::SmallForm
                | Remedy::WithoutFields
                | Remedy::WithoutCachePoints
                | Remedy::WithoutEmptyThoughts
                | Remedy::BareSchemas => {}
            }
            (lease, remedy == Remedy::RefreshToken)
        }
        NextAttempt::NextRound { lease } => {
            lease.sends_again();
            (lease, false)
        }
        NextAttempt::Instead(_) => return Err(NoAnswer::Again(next)),
    };
    // From memory, unless it has expired or was refused.
    let credentials = &job.shared.credentials;
    let token = match refresh {
        true => attempts.log.wait(pin!(credentials.force_refresh(&lease))).await,
        false => attempts.log.wait(pin!(credentials.access_token(&lease))).await,
    };
    match token {
        Ok(token) => Ok((lease, token)),
        // Without a token the account is out for this request.
        Err(mut fault) => {
            if refresh && job.facts.pinned {
                // The caller chose the account, so the error says that the token was rejected, however the refresh
                // failed (N8).
                fault.kind = FaultKind::TokenRejected;
            }
            Err(attempts.unusable(job, lease, fault).into())
        }
    }
}

/// The accounts of the request's conversation (R101). Where only another process knows its home (R102), the request is
/// translated again if thoughts were left out that may be that account's.
async fn look_for_homes(job: &RequestJob, attempts: &mut Attempts) -> Result<(), Error> {
    let mut homes = job.shared.conversations.homes(&job.ids.key);
    if homes.is_empty()
        && job.has_history
        && !job.facts.pinned
        && let Some(home) = job.shared.conversations.home_elsewhere(&job.ids.key).await
    {
        if job.written.withheld && job.meant.as_ref() != Some(&home) {
            attempts.home = Some(Box::new((home.clone(), job.write(Variation::default(), None, Some(&home))?)));
        }
        homes.push(home);
    }
    attempts.homes = Some(homes);
    Ok(())
}

async fn select(job: &RequestJob, attempts: &mut Attempts) -> Result<Lease, NoAnswer> {
    let shared = &job.shared;
    if attempts.homes.is_none() {
        look_for_homes(job, attempts).await?;
    }
    let elsewhere = attempts.other_than_region.as_deref().map(|region| shared.pool.accounts_in_region(region));
    let exclude = elsewhere.map(|mut there| {
        there.extend_from_slice(&attempts.tried);
        there
    });
    let fit = fit(job);
    let wanted = Wanted {
        model_names: &job.model_names(),
        exclude: exclude.as_deref().unwrap_or(&attempts.tried),
        kiro_id: &job.model.kiro_id,
        conversation_id: &job.ids.conversation,
        homes: attempts.homes.as_deref().unwrap_or_default(),
        fit: Some(&fit),
        only: job.account_id.as_deref(),
    };
    let since = *attempts.looked.get_or_insert_with(now);
    let none = match shared.pool.acquire(&wanted, since).await {
        Ok(lease) => return Ok(lease),
        Err(none) => none,
    };
    // Other accounts were tried and failed: their fault is the answer, not that no account is left. But a request that
    // used up the last account gets the next request's error (M85), unless it was a rate limit (K47).
    let nobody_has_it = matches!(none.why, Why::Model | Why::Exhausted);
    match attempts.budget.answer().map(|fault| fault.kind) {
        // Every asked account has refused the model: 404, unless an account that may serve it only rests (K88).
        Some(FaultKind::UnknownModel) if nobody_has_it => {
            job.refuse_name();
            Err(attempts.give_up(job).into())
        }
        // All accounts have refused the model in earlier requests.
        None if nobody_has_it => Err(match job.fallback() {
            Some(instead) => NoAnswer::Again(NextAttempt::Instead(instead)),
            None => NoAnswer::Failed(job.named(no_account(&none))),
        }),
        Some(kind)
            if kind != FaultKind::UnknownModel && (Code::of_fault(kind) == Code::RateLimited || !none.is_lasting()) =>
        {
            Err(NoAnswer::Failed(attempts.answer(job)))
        }
        _ => Err(NoAnswer::Failed(job.named(no_account(&none)))),
    }
}

/// Ranks accounts: those whose fresh catalogue lacks the model come after the others (K127). Then come those whose
/// every shape refused our client version lately (K109), and last those that this machine can't reach.
fn fit(job: &RequestJob) -> Fit {
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
    let account_failure = match none.why {
        Why::Unknown => Some(AccountFailure::Unknown),
        Why::Unusable => Some(AccountFailure::NoToken),
        _ => None,
    };
    let error = Error::new(none.code(), none.to_string())
        .with_retry_after(none.retry_after)
        .with_account_failure(account_failure);
    if none.is_lasting() { error.lasting() } else { error }
}
