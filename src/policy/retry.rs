//! The verdict after a fault: stop, the same account once more, the next account.
//!
//! A request has a [`Budget`]. Attempts that failed for upstream's reasons are counted against `KIRO_MAX_ATTEMPTS`; an
//! account's own refusal isn't (K137). All accounts and repairs together make at most [`MOST_CALLS`] chat calls, and no
//! account is begun after `KIRO_FAILOVER_TIME`. The budget remembers the fault with which each account ended;
//! [`Budget::answer`] picks the client's (K47).
//!
//! The order of judgement is that of K137: first the meaning of the fault, then repairs that leave something out of the
//! body, then the other wire shape, then the next account.
//!
//! Wait before the next account: none, but after `ModelCapacity`, where every account asks the same model:
//! `d = min(200 ms · 2ⁿ, 2 s)` with n = earlier `ModelCapacity` faults of this request, and of that a random part
//! between `d/2` and `d`.

use std::time::Duration;

use super::doubled;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::route::Shape;

/// First wait after `ModelCapacity`.
pub const CAPACITY_WAIT: Duration = Duration::from_millis(200);
/// Longest wait after `ModelCapacity`.
pub const CAPACITY_WAIT_MAX: Duration = Duration::from_secs(2);
/// Chat calls of one request, repairs and all accounts together (K118).
pub const MOST_CALLS: u32 = 8;
/// Accounts that one request asks at the most (K137).
pub const MOST_ACCOUNTS: u32 = 8;

/// What the driver does after a fault before the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The fault is the answer.
    Stop,
    /// The same account once more, after the remedy. Uses up no attempt.
    SameAccount(Remedy),
    /// Another account.
    NextAccount {
        /// How long to wait before.
        after: Duration,
    },
    /// One account of another API region, if there is one (K105).
    OtherRegion,
}

/// The change with which the same account is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// One forced, single-flight refresh of the access token.
    RefreshToken,
    /// Leave `reasoningContent` out of the history (TR31).
    WithoutReasoning,
    /// Send other `additionalModelRequestFields` (K129), or none.
    OtherFields,
    /// The row's other model id (K123).
    OtherModelId,
    /// Another variant of the profile (K78).
    NextVariant,
    /// Without the members that some accounts refuse (K116).
    SmallForm,
    /// Without `additionalModelRequestFields`, although the refusal didn't name them (K116).
    WithoutFields,
    /// Without cache points (K131).
    WithoutCachePoints,
    /// Without signed thinking that has no text (TR44).
    WithoutEmptyThoughts,
    /// With the keywords of tools' schemas that every upstream knows (TR64).
    BareSchemas,
    /// With large pictures made smaller, then without those of history (TR67).
    SmallerPictures,
    /// GovCloud's other host name (K81).
    OtherHost,
    /// The other wire shape (K118, K119).
    OtherShape,
}

/// The facts of the attempt that ended in a fault, and the alternatives to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The wire shape that was used.
    pub shape: Shape,
    /// The account's token can be refreshed; an API key can't.
    pub refreshable: bool,
    /// The body held `reasoningContent`.
    pub reasoning: bool,
    /// It held a signed thought without text.
    pub empty_thoughts: bool,
    /// It held `additionalModelRequestFields`.
    pub fields: bool,
    /// It held a cache point.
    pub cache_points: bool,
    /// A tool's schema held keywords that TR64 can leave out.
    pub schema_keywords: bool,
    /// It held pictures that could be smaller, or left out.
    pub pictures: bool,
    /// It was K116's small form.
    pub small: bool,
    /// Upstream has begun a stream with this variant of the profile before (K78).
    pub variant_proven: bool,
    /// Another variant of the profile can be sent (K78).
    pub variant_left: bool,
    /// The host has another name (K81).
    pub host_left: bool,
    /// The account has another wire shape that this request hasn't used for it.
    pub shape_left: bool,
    /// The model has another id that this request hasn't used.
    pub model_id_left: bool,
    /// Content has been handed downstream: no second account, whatever happened.
    pub committed: bool,
}

impl Sent {
    /// A plain request of an account without alternatives.
    pub const PLAIN: Self = Self {
        shape: Shape::Q,
        refreshable: true,
        reasoning: false,
        empty_thoughts: false,
        fields: false,
        cache_points: false,
        schema_keywords: false,
        pictures: false,
        small: false,
        variant_proven: true,
        variant_left: false,
        host_left: false,
        shape_left: false,
        model_id_left: false,
        committed: false,
    };
}

/// The limits of a request's attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptLimits {
    /// `KIRO_MAX_ATTEMPTS`: accounts that failed for upstream's reasons.
    pub attempts: u32,
    /// Accounts of any outcome: [`MOST_ACCOUNTS`], or 1 for a pinned request (N5).
    pub accounts: u32,
    /// `KIRO_FAILOVER_TIME`; zero: none.
    pub time: Duration,
}

/// A request's progress through its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its limits.
    pub limits: AttemptLimits,
    /// Chat calls made.
    pub calls: u32,
    /// Accounts asked, this one included.
    pub accounts: u32,
    /// Accounts that failed for upstream's reasons, this one not included.
    pub failed: u32,
    /// The time since the first attempt.
    pub elapsed: Duration,
    /// This account's token was refreshed for this request.
    pub token_refreshed: bool,
    /// Repairs of `additionalModelRequestFields` (K129).
    pub field_repairs: u32,
    /// `ModelCapacity` faults before this one.
    pub capacity_faults: u32,
    /// An account was `Suspicious` before (K90).
    pub suspicious: bool,
    /// The pool's brake is on (K92).
    pub brake: bool,
    /// Another API region was tried for the client version (K105).
    pub other_region_tried: bool,
}

/// Whether a fault is an account's own refusal, which uses up no attempt (K137).
pub const fn is_accounts_own(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::TokenRejected
            | FaultKind::Forbidden
            | FaultKind::Suspended
            | FaultKind::QuotaMonth
            | FaultKind::QuotaDay
            | FaultKind::RateLimited
            | FaultKind::Suspicious
            | FaultKind::ProfileArn
            | FaultKind::UnknownModel
    )
}

/// The verdict on one fault: a total function of it and of the request's progress.
pub fn verdict(fault: &Fault, progress: &Progress, sent: &Sent, rng: &mut fastrand::Rng) -> Verdict {
    if sent.committed || progress.calls >= MOST_CALLS {
        return Verdict::Stop;
    }
    if let Some(remedy) = remedy(fault, progress, sent) {
        return Verdict::SameAccount(remedy);
    }
    match fault.kind {
        FaultKind::ClientVersion if !progress.other_region_tried && progress.limits.accounts > 1 => {
            Verdict::OtherRegion
        }
        FaultKind::ClientVersion
        | FaultKind::PromptTooLong
        | FaultKind::TooLarge
        | FaultKind::ThinkingSignature
        | FaultKind::ModelFields
        | FaultKind::BadRequest => Verdict::Stop,
        // Repeating a throttled request on another account has led to locked accounts (K92).
        FaultKind::RateLimited | FaultKind::Suspicious if progress.brake => Verdict::Stop,
        FaultKind::Suspicious if progress.suspicious => Verdict::Stop,
        FaultKind::ModelCapacity => next(fault.kind, progress, capacity_wait(progress.capacity_faults, rng)),
        FaultKind::UnknownModel
        | FaultKind::ProfileArn
        | FaultKind::TokenRejected
        | FaultKind::Suspended
        | FaultKind::Forbidden
        | FaultKind::QuotaMonth
        | FaultKind::QuotaDay
        | FaultKind::Suspicious
        | FaultKind::RateLimited
        | FaultKind::ServerError
        | FaultKind::Network
        | FaultKind::Unreachable
        | FaultKind::Timeout
        | FaultKind::Protocol
        | FaultKind::Endpoint => next(fault.kind, progress, Duration::ZERO),
    }
}

/// The remedy for the fault on the same account, if there is one.
fn remedy(fault: &Fault, progress: &Progress, sent: &Sent) -> Option<Remedy> {
    let other_shape = || sent.shape_left.then_some(Remedy::OtherShape);
    let next_variant = || sent.variant_left.then_some(Remedy::NextVariant);
    match fault.kind {
        FaultKind::Unreachable if sent.host_left => Some(Remedy::OtherHost),
        FaultKind::ClientVersion | FaultKind::Unreachable | FaultKind::Endpoint => other_shape(),
        FaultKind::ThinkingSignature => sent.reasoning.then_some(Remedy::WithoutReasoning),
        FaultKind::ModelFields => (sent.fields && progress.field_repairs < 2).then_some(Remedy::OtherFields),
        FaultKind::UnknownModel => sent.model_id_left.then_some(Remedy::OtherModelId),
        // The runtime host refuses accounts without an ARN that the other one serves (K119).
        FaultKind::ProfileArn => next_variant().or_else(|| {
            (sent.shape == Shape::Runtime && fault.says("profilearn is required")).then(other_shape).flatten()
        }),
        FaultKind::Forbidden if fault.says("does not support this application") => other_shape(),
        FaultKind::Forbidden if fault.says("not authorized to make this call") && !sent.variant_proven => {
            next_variant()
        }
        FaultKind::TokenRejected if !progress.token_refreshed && sent.refreshable => Some(Remedy::RefreshToken),
        FaultKind::TokenRejected if !sent.variant_proven => next_variant(),
        FaultKind::PromptTooLong => (sent.pictures && may_be_of_pictures(fault)).then_some(Remedy::SmallerPictures),
        FaultKind::BadRequest => {
            let body_refused = fault.reason.as_deref() == Some("REQUEST_BODY_INVALID");
            let improper = fault.says("improperly formed request");
            let runtime = sent.shape == Shape::Runtime && body_refused;
            let schema_refused = fault.reason.as_deref() == Some("TOOL_SCHEMA_INVALID")
                || fault.says("invalid tool use format")
                || (fault.says("tool") && fault.says("schema"));
            [
                (runtime && !sent.small, Remedy::SmallForm),
                (runtime && sent.fields, Remedy::WithoutFields),
                (improper && sent.cache_points, Remedy::WithoutCachePoints),
                ((improper || body_refused) && sent.empty_thoughts, Remedy::WithoutEmptyThoughts),
                (schema_refused && sent.schema_keywords, Remedy::BareSchemas),
                (sent.pictures && may_be_of_pictures(fault), Remedy::SmallerPictures),
                (runtime && sent.shape_left, Remedy::OtherShape),
            ]
            .into_iter()
            .find_map(|(fits, remedy)| fits.then_some(remedy))
        }
        _ => None,
    }
}

/// Whether a refusal may be about the size of a picture (TR67). A bare one has that class only when the request is too
/// long by our own count (TS41).
fn may_be_of_pictures(fault: &Fault) -> bool {
    match fault.reason.as_deref() {
        Some(reason) => {
            ["CONTENT_LENGTH_EXCEEDS_THRESHOLD", "IMAGE_SIZE_EXCEEDED", "IMAGE_DIMENSION_EXCEEDED"].contains(&reason)
        }
        None => fault.kind == FaultKind::PromptTooLong && fault.says("improperly formed request"),
    }
}

fn next(kind: FaultKind, progress: &Progress, after: Duration) -> Verdict {
    let limits = &progress.limits;
    let attempt_left = is_accounts_own(kind) || progress.failed + 1 < limits.attempts;
    let in_time = limits.time.is_zero() || progress.elapsed < limits.time;
    if attempt_left && in_time && progress.accounts < limits.accounts {
        Verdict::NextAccount { after }
    } else {
        Verdict::Stop
    }
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Budget {
    progress: Progress,
    ended: Vec<Fault>,
}

impl Budget {
    /// A fresh budget.
    pub fn new(limits: AttemptLimits) -> Self {
        let progress = Progress {
            limits,
            calls: 0,
            accounts: 0,
            failed: 0,
            elapsed: Duration::ZERO,
            token_refreshed: false,
            field_repairs: 0,
            capacity_faults: 0,
            suspicious: false,
            brake: false,
            other_region_tried: false,
        };
        Self { progress, ended: Vec::new() }
    }

    /// An account was selected.
    pub fn next_account(&mut self) {
        self.progress.accounts = self.progress.accounts.saturating_add(1);
        self.progress.token_refreshed = false;
    }

    /// A chat call goes out.
    pub fn called(&mut self) {
        self.progress.calls = self.progress.calls.saturating_add(1);
    }

    /// Whether another chat call may be made (K118).
    pub fn may_call(&self) -> bool {
        self.progress.calls < MOST_CALLS
    }

    /// Another model is asked for (TR36): the faults so far don't count for the answer any more. The used-up budget
    /// does.
    pub fn begin_anew(&mut self) {
        self.ended.clear();
    }

    /// The next upstream answer of the same message (TS34): its faults and calls are its own.
    pub fn begin_round(&mut self) {
        let accounts = self.progress.accounts;
        *self = Self::new(self.progress.limits);
        self.progress.limits.accounts = self.progress.limits.accounts.saturating_add(accounts);
        self.progress.accounts = accounts;
    }

    /// Accounts asked so far.
    pub fn accounts(&self) -> u32 {
        self.progress.accounts
    }

    /// Whether the account in hand got a new token by a forced refresh: a second `TokenRejected` is then its failure.
    pub fn token_refreshed(&self) -> bool {
        self.progress.token_refreshed
    }

    /// The attempt ended in a fault, `elapsed` after the first one began; `brake`: the pool's is on (K92). When its
    /// remedy can't be applied, call this again with the remaining alternatives.
    pub fn fault(
        &mut self,
        fault: Fault,
        sent: &Sent,
        elapsed: Duration,
        brake: bool,
        rng: &mut fastrand::Rng,
    ) -> Verdict {
        self.progress.elapsed = elapsed;
        self.progress.brake = brake;
        let verdict = verdict(&fault, &self.progress, sent, rng);
        match verdict {
            Verdict::SameAccount(Remedy::RefreshToken) => self.progress.token_refreshed = true,
            Verdict::SameAccount(Remedy::OtherFields) => self.progress.field_repairs += 1,
            Verdict::SameAccount(_) => {}
            Verdict::Stop | Verdict::NextAccount { .. } | Verdict::OtherRegion => {
                self.progress.other_region_tried |= verdict == Verdict::OtherRegion;
                self.end(fault);
            }
        }
        verdict
    }

    /// The account can't be asked at all: it has no access token (R42) or no profile (K78). The next one, or stop.
    pub fn account_failed(&mut self, fault: Fault, elapsed: Duration) -> Verdict {
        self.progress.elapsed = elapsed;
        // A missing token counts as the account's own refusal, whatever the cause (K137).
        let verdict = next(FaultKind::TokenRejected, &self.progress, Duration::ZERO);
        self.ended.push(fault);
        verdict
    }

    fn end(&mut self, fault: Fault) {
        match fault.kind {
            FaultKind::ModelCapacity => self.progress.capacity_faults = self.progress.capacity_faults.saturating_add(1),
            FaultKind::Suspicious => self.progress.suspicious = true,
            _ => {}
        }
        if !is_accounts_own(fault.kind) {
            self.progress.failed = self.progress.failed.saturating_add(1);
        }
        self.ended.push(fault);
    }

    /// The client's fault when accounts or attempts have run out (K47): the last one; among mixed causes the last that
    /// isn't a rate limit. If it is a rate limit, every account ended in one, and the `Retry-After` is the time until
    /// the soonest account is back. None when no account was asked.
    pub fn answer(&self) -> Option<&Fault> {
        let limited = |fault: &&Fault| matches!(fault.kind, FaultKind::RateLimited | FaultKind::Suspicious);
        self.ended.iter().rfind(|fault| !limited(fault)).or(self.ended.last())
    }
}

fn capacity_wait(earlier: u32, rng: &mut fastrand::Rng) -> Duration {
    let whole = doubled(CAPACITY_WAIT, earlier, CAPACITY_WAIT_MAX);
    whole.mul_f64(0.5 + rng.f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use crate::proto::said::Said;

    use super::*;

    const LIMITS: AttemptLimits = AttemptLimits { attempts: 3, accounts: MOST_ACCOUNTS, time: Duration::from_secs(15) };
    const NEXT: Verdict = Verdict::NextAccount { after: Duration::ZERO };

    fn rng() -> fastrand::Rng {
        fastrand::Rng::with_seed(7)
    }

    fn fault(kind: FaultKind) -> Fault {
        Fault { kind, status: None, reason: None, message: Said::default(), retry_after: None }
    }

    fn said(kind: FaultKind, reason: Option<&str>, message: &str) -> Fault {
        Fault { reason: reason.map(Said::from), message: message.into(), ..fault(kind) }
    }

    fn progress() -> Progress {
        let mut budget = Budget::new(LIMITS);
        budget.next_account();
        budget.called();
        budget.progress
    }

    fn judged(fault: &Fault, progress: &Progress, sent: &Sent) -> Verdict {
        verdict(fault, progress, sent, &mut rng())
    }

    /// The column "verdict" of K45, row by row: with everything that a remedy needs, and without.
    #[test]
    fn every_fault_has_its_verdict_k45_k49_k90_k119_trap_27() {
        use Remedy::{NextVariant, OtherFields, OtherModelId, OtherShape, RefreshToken, WithoutReasoning};
        let same = Verdict::SameAccount;
        let table = [
            (FaultKind::ClientVersion, same(OtherShape), Verdict::OtherRegion),
            (FaultKind::PromptTooLong, Verdict::Stop, Verdict::Stop),
            (FaultKind::TooLarge, Verdict::Stop, Verdict::Stop),
            (FaultKind::UnknownModel, same(OtherModelId), NEXT),
            (FaultKind::ThinkingSignature, same(WithoutReasoning), Verdict::Stop),
            (FaultKind::ModelFields, same(OtherFields), Verdict::Stop),
            (FaultKind::ProfileArn, same(NextVariant), NEXT),
            (FaultKind::BadRequest, Verdict::Stop, Verdict::Stop),
            (FaultKind::TokenRejected, same(RefreshToken), NEXT),
            (FaultKind::Suspended, NEXT, NEXT),
            (FaultKind::Forbidden, NEXT, NEXT),
            (FaultKind::QuotaMonth, NEXT, NEXT),
            (FaultKind::QuotaDay, NEXT, NEXT),
            (FaultKind::Suspicious, NEXT, NEXT),
            (FaultKind::RateLimited, NEXT, NEXT),
            (FaultKind::ServerError, NEXT, NEXT),
            (FaultKind::Network, NEXT, NEXT),
            (FaultKind::Unreachable, same(OtherShape), NEXT),
            (FaultKind::Timeout, NEXT, NEXT),
            (FaultKind::Protocol, NEXT, NEXT),
            (FaultKind::Endpoint, same(OtherShape), NEXT),
        ];
        let all = Sent {
            reasoning: true,
            empty_thoughts: true,
            fields: true,
            cache_points: true,
            variant_left: true,
            shape_left: true,
            model_id_left: true,
            ..Sent::PLAIN
        };
        let nothing = Sent { refreshable: false, ..Sent::PLAIN };
        for kind in FaultKind::ALL {
            let Some((_, first, second)) = table.iter().find(|row| row.0 == kind) else {
                assert_eq!(kind, FaultKind::ModelCapacity, "a row is missing");
                continue;
            };
            assert_eq!(judged(&fault(kind), &progress(), &all), *first, "{kind}");
            assert_eq!(judged(&fault(kind), &progress(), &nothing), *second, "{kind}, nothing to remedy it with");
            let committed = Sent { committed: true, ..all };
            assert_eq!(judged(&fault(kind), &progress(), &committed), Verdict::Stop, "{kind} after the commit");
            let spent = Progress { calls: MOST_CALLS, ..progress() };
            assert_eq!(judged(&fault(kind), &spent, &all), Verdict::Stop, "{kind} after eight calls");
        }
    }

    /// K116, K131, TR44, K119: a body that is refused without a reason, in their order.
    #[test]
    fn a_refused_body_is_repaired_in_a_fixed_order_k116_k119_k131() {
        let refused = said(FaultKind::BadRequest, Some("REQUEST_BODY_INVALID"), "Improperly formed request.");
        let mut sent = Sent {
            shape: Shape::Runtime,
            fields: true,
            cache_points: true,
            empty_thoughts: true,
            shape_left: true,
            ..Sent::PLAIN
        };
        let mut verdicts = Vec::new();
        for _ in 0..6 {
            let verdict = judged(&refused, &progress(), &sent);
            verdicts.push(verdict);
            match verdict {
                Verdict::SameAccount(Remedy::SmallForm) => sent.small = true,
                Verdict::SameAccount(Remedy::WithoutFields) => sent.fields = false,
                Verdict::SameAccount(Remedy::WithoutCachePoints) => sent.cache_points = false,
                Verdict::SameAccount(Remedy::WithoutEmptyThoughts) => sent.empty_thoughts = false,
                Verdict::SameAccount(Remedy::OtherShape) => sent.shape_left = false,
                _ => {}
            }
        }
        use Remedy::{OtherShape, SmallForm, WithoutCachePoints, WithoutEmptyThoughts, WithoutFields};
        let remedies = [SmallForm, WithoutFields, WithoutCachePoints, WithoutEmptyThoughts, OtherShape];
        let expected: Vec<_> = remedies.map(Verdict::SameAccount).into_iter().chain([Verdict::Stop]).collect();
        assert_eq!(verdicts, expected);
        // A133: on q, without anything to leave out.
        let improper = said(FaultKind::BadRequest, None, "Improperly formed request.");
        let q = Sent { shape: Shape::Q, shape_left: true, fields: true, ..Sent::PLAIN };
        assert_eq!(judged(&improper, &progress(), &q), Verdict::Stop);
        let points = Sent { cache_points: true, ..q };
        assert_eq!(judged(&improper, &progress(), &points), Verdict::SameAccount(Remedy::WithoutCachePoints));
        let other = said(FaultKind::BadRequest, None, "Invalid tool use format.");
        assert_eq!(judged(&other, &progress(), &points), Verdict::Stop);
    }

    #[test]
    fn a_refused_schema_goes_out_bare_once_tr64() {
        let keywords = Sent { schema_keywords: true, shape_left: true, cache_points: true, ..Sent::PLAIN };
        for (reason, message, again) in [
            (Some("TOOL_SCHEMA_INVALID"), "", true),
            (None, "Invalid tool use format.", true),
            (None, "The Tool f has an invalid input Schema.", true),
            (Some("TOOL_DUPLICATE"), "Two tools have one name.", false),
            (None, "The value doesn't match the schema.", false),
        ] {
            let refused = said(FaultKind::BadRequest, reason, message);
            let verdict = if again { Verdict::SameAccount(Remedy::BareSchemas) } else { Verdict::Stop };
            assert_eq!(judged(&refused, &progress(), &keywords), verdict, "{message}");
            let bare = Sent { schema_keywords: false, ..keywords };
            assert_eq!(judged(&refused, &progress(), &bare), Verdict::Stop, "{message}");
        }
    }

    #[test]
    fn a_refusal_that_may_be_about_pictures_asks_for_smaller_ones_tr67_ts41() {
        let pictures = Sent { pictures: true, shape_left: true, schema_keywords: true, ..Sent::PLAIN };
        for (kind, reason, message, again) in [
            (FaultKind::PromptTooLong, Some("CONTENT_LENGTH_EXCEEDS_THRESHOLD"), "Input is too long.", true),
            (FaultKind::PromptTooLong, None, "Improperly formed request.", true),
            (FaultKind::PromptTooLong, None, "prompt is too long: 213432 tokens > 200000 maximum", false),
            (FaultKind::PromptTooLong, Some("PROMPT_TOO_LONG"), "", false),
            (FaultKind::BadRequest, Some("IMAGE_SIZE_EXCEEDED"), "", true),
            (FaultKind::BadRequest, Some("IMAGE_DIMENSION_EXCEEDED"), "", true),
            (FaultKind::BadRequest, Some("IMAGE_COUNT_EXCEEDED"), "", false),
            (FaultKind::BadRequest, None, "Improperly formed request.", false),
        ] {
            let refused = said(kind, reason, message);
            let verdict = if again { Verdict::SameAccount(Remedy::SmallerPictures) } else { Verdict::Stop };
            assert_eq!(judged(&refused, &progress(), &pictures), verdict, "{reason:?} {message}");
            let without = Sent { pictures: false, ..pictures };
            assert_eq!(judged(&refused, &progress(), &without), Verdict::Stop, "{reason:?} {message}");
        }
    }

    /// K78: what a 403 means depends on whether the variant was proven.
    #[test]
    fn a_403_asks_for_another_variant_only_while_none_is_proven_k78() {
        let unproven = Sent { variant_proven: false, variant_left: true, ..Sent::PLAIN };
        let not_authorized = said(FaultKind::Forbidden, None, "User is not authorized to make this call.");
        let next_variant = Verdict::SameAccount(Remedy::NextVariant);
        assert_eq!(judged(&not_authorized, &progress(), &unproven), next_variant);
        let proven = Sent { variant_proven: true, ..unproven };
        assert_eq!(judged(&not_authorized, &progress(), &proven), NEXT);
        assert_eq!(judged(&fault(FaultKind::Forbidden), &progress(), &unproven), NEXT);
        let token = fault(FaultKind::TokenRejected);
        assert_eq!(judged(&token, &progress(), &unproven), Verdict::SameAccount(Remedy::RefreshToken));
        let refreshed = Progress { token_refreshed: true, ..progress() };
        assert_eq!(judged(&token, &refreshed, &unproven), next_variant);
        assert_eq!(judged(&token, &refreshed, &proven), NEXT);
        let app = said(FaultKind::Forbidden, None, "Your subscription does not support this application.");
        let shape_left = Sent { shape_left: true, ..Sent::PLAIN };
        assert_eq!(judged(&app, &progress(), &shape_left), Verdict::SameAccount(Remedy::OtherShape));
        let required = said(FaultKind::ProfileArn, None, "profileArn is required for this request.");
        assert_eq!(judged(&required, &progress(), &shape_left), NEXT, "q has no host to go to");
        let runtime = Sent { shape: Shape::Runtime, ..shape_left };
        assert_eq!(judged(&required, &progress(), &runtime), Verdict::SameAccount(Remedy::OtherShape));
    }

    /// K137: an account's own refusal uses up no attempt; eight accounts and a time bound it.
    #[test]
    fn an_accounts_own_refusal_uses_up_no_attempt_k137_d20_d21() {
        let run = |kind: FaultKind, limits: AttemptLimits, each: Duration| {
            let mut budget = Budget::new(limits);
            let mut asked = 0;
            loop {
                budget.next_account();
                budget.called();
                asked += 1;
                let sent = Sent { refreshable: false, ..Sent::PLAIN };
                match budget.fault(fault(kind), &sent, each * asked, false, &mut rng()) {
                    Verdict::NextAccount { .. } => {}
                    _ => return asked,
                }
            }
        };
        for kind in FaultKind::ALL {
            let expected = match kind {
                FaultKind::Suspicious => 2,
                kind if is_accounts_own(kind) => 8,
                FaultKind::ServerError
                | FaultKind::Network
                | FaultKind::Unreachable
                | FaultKind::Timeout
                | FaultKind::Protocol
                | FaultKind::Endpoint
                | FaultKind::ModelCapacity => 3,
                _ => 1,
            };
            assert_eq!(run(kind, LIMITS, Duration::ZERO), expected, "{kind}");
        }
        let pinned = AttemptLimits { accounts: 1, ..LIMITS };
        assert!(FaultKind::ALL.into_iter().all(|kind| run(kind, pinned, Duration::ZERO) == 1));
        let short = AttemptLimits { time: Duration::from_secs(1), ..LIMITS };
        assert_eq!(run(FaultKind::Forbidden, short, Duration::from_millis(300)), 4);
        let mut braked = Budget::new(LIMITS);
        braked.next_account();
        let limited = fault(FaultKind::RateLimited);
        assert_eq!(braked.fault(limited, &Sent::PLAIN, Duration::ZERO, true, &mut rng()), Verdict::Stop);
    }

    #[test]
    fn model_capacity_waits_longer_each_time() {
        for (n, whole) in [(0, 200), (1, 400), (2, 800), (3, 1600), (4, 2000), (40, 2000)] {
            let progress = Progress { capacity_faults: n, ..progress() };
            let mut rng = rng();
            for _ in 0..100 {
                let capacity = fault(FaultKind::ModelCapacity);
                let Verdict::NextAccount { after } = verdict(&capacity, &progress, &Sent::PLAIN, &mut rng) else {
                    panic!("no next account");
                };
                assert!((whole / 2..=whole).contains(&after.as_millis()), "{n}: {after:?}");
            }
        }
    }

    #[test]
    fn the_budget_counts_accounts_and_remedies_per_account() {
        let mut budget = Budget::new(AttemptLimits { accounts: 2, ..LIMITS });
        let end = |budget: &mut Budget| {
            budget.fault(fault(FaultKind::TokenRejected), &Sent::PLAIN, Duration::ZERO, false, &mut rng())
        };
        assert_eq!(budget.answer(), None);
        for last in [false, true] {
            budget.next_account();
            assert_eq!(end(&mut budget), Verdict::SameAccount(Remedy::RefreshToken));
            assert!(budget.token_refreshed());
            assert_eq!(end(&mut budget), if last { Verdict::Stop } else { NEXT });
        }
        assert_eq!((budget.accounts(), budget.ended.len()), (2, 2), "a remedied attempt is no ended one");
        let mut pinned = Budget::new(AttemptLimits { accounts: 1, ..LIMITS });
        pinned.next_account();
        assert_eq!(pinned.account_failed(fault(FaultKind::Timeout), Duration::ZERO), Verdict::Stop);
    }

    /// K81: before the other shape.
    #[test]
    fn govclouds_other_host_comes_before_the_other_shape_p26_k81() {
        let sent = Sent { host_left: true, shape_left: true, ..Sent::PLAIN };
        let gone = fault(FaultKind::Unreachable);
        assert_eq!(judged(&gone, &progress(), &sent), Verdict::SameAccount(Remedy::OtherHost));
        let both = Sent { host_left: false, ..sent };
        assert_eq!(judged(&gone, &progress(), &both), Verdict::SameAccount(Remedy::OtherShape));
        let refused = fault(FaultKind::Endpoint);
        assert_eq!(judged(&refused, &progress(), &sent), Verdict::SameAccount(Remedy::OtherShape));
    }

    #[test]
    fn only_one_account_of_another_region_is_tried_k105() {
        let mut budget = Budget::new(LIMITS);
        let gate = |budget: &mut Budget, shape_left| {
            let sent = Sent { shape_left, ..Sent::PLAIN };
            budget.fault(fault(FaultKind::ClientVersion), &sent, Duration::ZERO, false, &mut rng())
        };
        budget.next_account();
        assert_eq!(gate(&mut budget, true), Verdict::SameAccount(Remedy::OtherShape));
        assert_eq!(gate(&mut budget, false), Verdict::OtherRegion);
        budget.next_account();
        assert_eq!(gate(&mut budget, false), Verdict::Stop);
    }

    #[test]
    fn the_last_fault_that_is_no_rate_limit_is_the_answer_k47() {
        use FaultKind::{ModelCapacity, RateLimited, ServerError, Suspicious, Timeout};
        for (ended, answer) in [
            (vec![ServerError, Timeout], Timeout),
            (vec![Timeout, RateLimited], Timeout),
            (vec![Timeout, ModelCapacity, Suspicious, RateLimited], ModelCapacity),
            (vec![RateLimited, ServerError], ServerError),
            (vec![RateLimited, Suspicious], Suspicious),
            (vec![RateLimited], RateLimited),
        ] {
            let mut budget = Budget::new(LIMITS);
            for kind in &ended {
                budget.next_account();
                budget.fault(fault(*kind), &Sent::PLAIN, Duration::ZERO, false, &mut rng());
            }
            assert_eq!(budget.answer().map(|fault| fault.kind), Some(answer), "{ended:?}");
        }
    }
}
