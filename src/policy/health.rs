//! The state of an account's health and its transitions.
//!
//! ```text
//!             ×1, ×1, ×1 or 429                     end of the rest
//!   healthy ───────────────────▶ cooling(until) ───────────────────▶ half-open
//!      ▲  │ 402, quota             ▲                                  │   │
//!      │  ├──────────▶ quota(until)│──── the next longer rest ◀────── ×1  │
//!      │  └ suspended, dead token ▶ ejected (until a person acts, R47)    │
//!      └────────────────────────── success (R28) ◀────────────────────────┘
//! ```
//!
//! Pure: `now` is an argument. A [`Health`] is this process's belief about one account: the record of the last snapshot
//! ([`Standing`]) with our changes since, and facts that only this process knows (R58): failures in a row, the length
//! of the next rest, a running `Retry-After`.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::outcome::{Event, LONGEST_FOREIGN_REST, Outcome, may_heal};
use super::suspicion::{SUSPICION, suspicion, suspicion_of};
use super::{doubled, later};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::record::{Note, Standing};

/// The state of an account (R15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// Switched off by a person.
    Disabled,
    /// Its record can't be read or it has no credential.
    Unusable,
    /// Its quota is used up until then. Never selected.
    Quota {
        /// When it is renewed.
        until: Timestamp,
    },
    /// Out until a person acts. Never selected.
    Ejected,
    /// Kiro has no profile for it, as far as this process knows (K78). Not selected.
    NoProfile {
        /// When it is looked for again.
        until: Timestamp,
    },
    /// Rests.
    Cooling {
        /// The end of the rest.
        until: Timestamp,
    },
    /// Gets one request at a time; success heals.
    HalfOpen,
    /// Its token needs a refresh: only when no healthy account is left.
    Stale,
    /// Selected as it comes.
    Healthy,
}

impl HealthState {
    /// The end of a rest, of a used-up quota or of the time without a profile, for people and for `Retry-After`.
    pub fn until(self) -> Option<Timestamp> {
        match self {
            Self::Quota { until } | Self::Cooling { until } | Self::NoProfile { until } => Some(until),
            Self::Disabled | Self::Unusable | Self::Ejected | Self::HalfOpen | Self::Stale | Self::Healthy => None,
        }
    }

    /// Whether an account in this state gets requests.
    pub const fn is_served(self) -> bool {
        matches!(self, Self::Healthy | Self::HalfOpen | Self::Stale)
    }

    /// Every word of [`HealthState::as_str`], in the order of the metric.
    pub const WORDS: [&'static str; 9] =
        ["healthy", "half-open", "stale", "cooling", "no-profile", "quota", "ejected", "disabled", "unusable"];

    /// The word in `AccountInfo.state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Unusable => "unusable",
            Self::Quota { .. } => "quota",
            Self::Ejected => "ejected",
            Self::NoProfile { .. } => "no-profile",
            Self::Cooling { .. } => "cooling",
            Self::HalfOpen => "half-open",
            Self::Stale => "stale",
            Self::Healthy => "healthy",
        }
    }
}

/// The lengths of rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `KIRO_HEALTH_COOLDOWN`: a rest without `Retry-After`. Each further one before the next success is twice as long,
    /// up to [`LONGEST_REST`].
    pub cool_down: Duration,
}

/// The longest rest we give, except for [`SUSPICIOUS_RESTS`], and the longest `Retry-After` we obey (R18).
pub const LONGEST_REST: Duration = Duration::from_secs(3600);
/// The shortest `Retry-After` we obey (`RateLimited`, K45).
pub const SHORTEST_REST: Duration = Duration::from_secs(1);
/// The rests of an account that upstream suspects, by step; the last one for every step after it (K91). Each ±10 %.
pub const SUSPICIOUS_RESTS: [Duration; 5] = [
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(12 * 3600),
    Duration::from_secs(24 * 3600),
];
/// [`LONGEST_FOREIGN_REST`] of a suspected account: the longest of [`SUSPICIOUS_RESTS`], 10 %, and a margin (R16).
pub const LONGEST_SUSPICIOUS_REST: Duration = Duration::from_secs(27 * 3600);
/// Failures in a row that start a cool-down (K45).
pub const FAILURES_IN_A_ROW: u32 = 3;
/// How long after the end of its rest a marked account waits for a request before it is probed (R17).
pub const PROBE_AFTER: Duration = Duration::from_secs(60);

/// Whether a counted fault of this kind may as well be upstream's or the network's. It says little about the account,
/// so its rest gives way when no other account is left.
pub const fn is_soft(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::ServerError | FaultKind::Network | FaultKind::Timeout | FaultKind::Protocol)
}

/// What a fault does to its account: the column "account" of K45.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing is written.
    Nothing,
    /// ×1.
    Counted,
    /// Rests, at least this long.
    Rest(Duration),
    /// Out until the first of next month.
    QuotaMonth,
    /// Out until the next UTC midnight.
    QuotaDay,
    /// Out until a person acts.
    Eject,
}

/// The column "account" of K45. `refreshed`: this attempt went out with a token from a forced refresh,
/// made because upstream had rejected the one before.
pub fn effect(kind: FaultKind, refreshed: bool, rules: Rules) -> Effect {
    match kind {
        FaultKind::ClientVersion
        | FaultKind::PromptTooLong
        | FaultKind::TooLarge
        | FaultKind::UnknownModel
        | FaultKind::ThinkingSignature
        | FaultKind::ModelFields
        | FaultKind::ProfileArn
        | FaultKind::BadRequest
        | FaultKind::ModelCapacity
        // Counted on the host (K119) and on the way: a dead network or proxy of this machine isn't the account's fault.
        | FaultKind::Unreachable
        | FaultKind::Endpoint => Effect::Nothing,
        FaultKind::TokenRejected if !refreshed => Effect::Nothing,
        FaultKind::TokenRejected
        | FaultKind::Forbidden
        | FaultKind::ServerError
        | FaultKind::Network
        | FaultKind::Timeout
        | FaultKind::Protocol => Effect::Counted,
        FaultKind::Suspended => Effect::Eject,
        FaultKind::QuotaMonth => Effect::QuotaMonth,
        FaultKind::QuotaDay => Effect::QuotaDay,
        FaultKind::Suspicious => Effect::Rest(SUSPICIOUS_RESTS[0]),
        FaultKind::RateLimited => Effect::Rest(rules.cool_down),
    }
}

/// The mark, longer than a rest, that a pinned request's fault would leave on an account without failures. A pinned
/// request leaves no mark itself; its caller does (N8).
pub fn lasting_mark(fault: &Fault, now: Timestamp) -> Option<Note> {
    match effect(fault.kind, false, Rules { cool_down: Duration::ZERO }) {
        Effect::Eject => Some(Note::Ejected { cause: cause(fault) }),
        Effect::QuotaMonth => Some(Note::Quota { until: next_month(now), cause: cause(fault) }),
        Effect::QuotaDay => Some(Note::Quota { until: next_midnight(now), cause: cause(fault) }),
        Effect::Nothing | Effect::Counted | Effect::Rest(_) => None,
    }
}

/// How far an attempt had come when it ended in a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptEnd {
    /// It went out with a token from a forced refresh of this request.
    pub refreshed: bool,
    /// Content had been handed downstream.
    pub committed: bool,
}

/// The attempt that a fault ended: with the fault and the account's health it decides the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// When it was started.
    pub started: Timestamp,
    /// How far it had come.
    pub end: AttemptEnd,
    /// Several accounts have the same fault now: it is upstream's, and counts on no account.
    pub alike: bool,
    /// By how many thousandths a suspicious rest differs from its length, −100 to 100 (K91).
    pub spread: i16,
}

/// One account's health in this process.
#[derive(Clone, Debug)]
pub struct Health {
    standing: Standing,
    /// End of the rest that the standing asks for, capped when first seen (R16).
    rest_ends: Option<Timestamp>,
    /// A `Retry-After` that upstream gave to this process (R18): until when it holds, and since when.
    held: Option<Hold>,
    /// Counted failures in a row.
    streak: u32,
    /// When it last refused for its own reasons without getting a mark, since the last success (R105).
    refused: Option<Timestamp>,
    /// Rests since the last success: the exponent of the next one.
    rests: u32,
    /// The step of [`SUSPICIOUS_RESTS`] that upstream's suspicion has reached, counted from 1; 0: none. Only a
    /// conversation that ends well resets it (K91).
    suspicion: u32,
    /// When the account was last asked for anything (R17).
    asked: Option<Timestamp>,
    /// The fingerprint of the refresh token in the record (R47).
    fingerprint: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Timestamp,
    until: Timestamp,
}

impl Health {
    /// Why the account rests or is ejected: the cause of our own mark. What another program wrote is not repeated (R6).
    pub fn cause(&self) -> Option<&str> {
        match self.standing.note.as_ref()? {
            Note::CoolDown { cause, .. } | Note::Quota { cause, .. } | Note::Ejected { cause } => Some(cause),
            Note::Plain(_) => None,
        }
    }

    /// The health of an account that this process sees for the first time.
    pub fn new(standing: Standing, rules: Rules, now: Timestamp) -> Self {
        let rest_ends = rest_ends(&standing, rules, now);
        let suspicion = suspicion(&standing);
        Self {
            standing,
            rest_ends,
            held: None,
            streak: 0,
            refused: None,
            rests: 0,
            suspicion,
            asked: None,
            fingerprint: None,
        }
    }

    /// The fingerprint of the refresh token in the token record, the first 8 hex digits of its SHA-256. An account
    /// ejected for another one is half-open (R47), and waits for a request from `now` on (R17).
    pub fn set_fingerprint(&mut self, fingerprint: Option<String>, now: Timestamp) {
        if self.fingerprint != fingerprint {
            self.fingerprint = fingerprint;
            self.asked(now);
        }
    }

    /// A new snapshot has this record, with our unwritten changes on top. `ours_stands`: the host program writes our
    /// mark and may not have done so yet (R35); then only fields that no mark touches are taken over. Otherwise Redis
    /// wins (R18).
    pub fn observe(&mut self, record: &Standing, ours_stands: bool, rules: Rules, now: Timestamp) {
        if ours_stands {
            self.standing.disabled = record.disabled;
            self.standing.stale = record.stale;
            return;
        }
        if *record == self.standing {
            return;
        }
        if record.healthy && !self.standing.healthy {
            (self.streak, self.rests, self.suspicion) = (0, 0, 0);
        }
        // Our rests always name the step (K91): a lower step was written after another process's success.
        if let Some(note @ Note::CoolDown { .. }) = record.mark() {
            self.suspicion = suspicion_of(note);
        }
        let same_mark = !record.healthy
            && !self.standing.healthy
            && record.last_error == self.standing.last_error
            && record.note == self.standing.note;
        if !same_mark {
            self.rest_ends = rest_ends(record, rules, now);
        }
        self.standing.clone_from(record);
    }

    /// This process's belief about the record.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The account's state: the first row of R15 that matches. `usable`: its records are readable and
    /// hold a credential.
    pub fn state(&self, usable: bool, now: Timestamp) -> HealthState {
        let Standing { healthy, disabled, stale, recovery, .. } = self.standing;
        if disabled {
            return HealthState::Disabled;
        }
        if !usable {
            return HealthState::Unusable;
        }
        if let Some(until) = recovery.filter(|until| !healthy && *until > now) {
            return HealthState::Quota { until };
        }
        if !healthy && self.is_ejected() {
            return HealthState::Ejected;
        }
        let rest = self.rest_ends.filter(|_| !healthy);
        let hold = self.held.map(|held| held.until);
        match rest.max(hold).filter(|until| *until > now) {
            Some(until) => HealthState::Cooling { until },
            None if !healthy => HealthState::HalfOpen,
            None if stale => HealthState::Stale,
            None => HealthState::Healthy,
        }
    }

    /// Until when a `Retry-After` holds that upstream gave to this process; pinned requests obey it too (N5).
    pub fn held_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.held.map(|held| held.until).filter(|until| *until > now)
    }

    /// The mark of an account that is out until a person acts.
    pub fn ejection(&self) -> Option<&Note> {
        self.standing.mark().filter(|_| self.is_ejected())
    }

    /// Whether upstream has called it suspicious since the last conversation that ended well: no probe heals it (K91).
    pub fn is_suspected(&self) -> bool {
        self.suspicion > 0
    }

    /// The end and the beginning of the suspicious rest in its record, which this or another process has made (K92).
    pub fn suspected(&self) -> Option<(Timestamp, Timestamp)> {
        match self.standing.mark()? {
            Note::CoolDown { until, cause } if cause.starts_with(SUSPICION) => {
                Some((*until, self.standing.last_error?))
            }
            _ => None,
        }
    }

    /// How often it has rested in a row, if it rests (or is half-open) because of a soft fault of ours. When no other
    /// account is left it is tried all the same, the one with the fewest rests first. None: it doesn't rest, or for a
    /// better reason, such as a running `Retry-After` or a suspicion.
    pub fn rests_softly(&self, now: Timestamp) -> Option<u32> {
        let Some(Note::CoolDown { cause, .. }) = self.standing.mark() else { return None };
        let soft = is_soft_cause(cause) && self.held_until(now).is_none() && !self.is_suspected();
        soft.then_some(self.rests)
    }

    /// A request goes to the account: the wait for a probe begins again (R17).
    pub fn asked(&mut self, now: Timestamp) {
        self.asked = self.asked.max(Some(now));
    }

    /// Whether a half-open account that an instance of ours marked has waited long enough for a request (R17). A
    /// suspected account waits for a conversation (K91).
    pub fn probe_due(&self, now: Timestamp) -> bool {
        let marked = self.standing.mark().is_some_and(|note| !matches!(note, Note::Plain(_)));
        let since = self.rest_ends.max(self.standing.recovery).max(self.asked);
        marked && !self.is_suspected() && since.is_none_or(|since| later(since, PROBE_AFTER) <= now)
    }

    /// Whether it refused for its own reasons lately, without a success since. As long as our shortest rest it is
    /// offered only to requests that can't have another account (R105).
    pub fn refused_lately(&self, rules: Rules, now: Timestamp) -> bool {
        self.refused.is_some_and(|refused| later(refused, rules.cool_down) > now)
    }

    /// A conversation went well. A ghost exception (K36) is a success too, and so is a probe, if it may heal.
    pub fn success(&mut self, started: Timestamp, now: Timestamp) -> Outcome {
        let heals = may_heal(started, self.standing.last_error, now);
        let half_open = heals && !self.standing.healthy;
        // Whenever it was started: a good end between two failures separates them. Otherwise no stream that lasts
        // longer than the time between two failures would ever heal.
        self.streak = 0;
        if heals {
            (self.rests, self.suspicion, self.refused) = (0, 0, None);
            self.standing.heal();
        }
        if self.held.is_some_and(|held| started >= held.since) {
            self.held = None;
        }
        Outcome { at: now, started, event: Event::Success { heals, half_open, probe: false } }
    }

    /// The attempt ended in a fault. None: nothing is to be written (K49).
    ///
    /// The rest is `Retry-After` (1 s to 1 h) when upstream gave one, else `cool_down · 2ⁿ` up to 1 h with n = rests
    /// since the last success. A half-open account rests again at its first failure. An attempt that was under way when
    /// the account was marked adds nothing: it never weakens a mark, and prolongs a rest only when upstream said so.
    pub fn fault(&mut self, fault: &Fault, attempt: FailedAttempt, rules: Rules, now: Timestamp) -> Option<Outcome> {
        let effect = match effect(fault.kind, attempt.end.refreshed, rules) {
            Effect::Counted if attempt.alike && is_soft(fault.kind) => Effect::Nothing,
            other => other,
        };
        let mark = self.judge(effect, fault, attempt, rules, now);
        if let Some(mark) = &mark {
            self.apply(mark, now);
        }
        (mark.is_some() || attempt.end.committed).then_some(Outcome {
            at: now,
            started: attempt.started,
            event: Event::Fault { mark, used: attempt.end.committed },
        })
    }

    /// A refresh was refused for good (R41).
    pub fn eject(&mut self, cause: String, now: Timestamp) -> Outcome {
        let mark = Note::Ejected { cause };
        self.apply(&mark, now);
        Outcome { at: now, started: now, event: Event::Fault { mark: Some(mark), used: false } }
    }

    /// A refresh succeeded.
    pub fn refreshed(&mut self, now: Timestamp) -> Outcome {
        let asked = std::mem::replace(&mut self.standing.stale, false);
        Outcome { at: now, started: now, event: Event::Refreshed { asked } }
    }

    /// `Retry-After` of a pinned request: it binds this process, and nothing is written (N5).
    pub fn hold(&mut self, fault: &Fault, now: Timestamp) {
        let limited = matches!(fault.kind, FaultKind::RateLimited | FaultKind::Suspicious);
        if let Some(rest) = retry_after(fault, now).filter(|_| limited) {
            let until = later(now, rest).max(self.held.map_or(now, |held| held.until));
            self.held = Some(Hold { since: now, until });
        }
    }

    fn judge(
        &mut self,
        effect: Effect,
        fault: &Fault,
        attempt: FailedAttempt,
        rules: Rules,
        now: Timestamp,
    ) -> Option<Note> {
        let started = attempt.started;
        let marked = !self.standing.healthy;
        // The attempt was under way when the account was marked.
        let late = marked && self.standing.last_error.is_some_and(|at| started < at);
        let ejected = marked && self.is_ejected();
        let quota = self.standing.recovery.filter(|until| marked && *until > now);
        let rests_until = self.rest_ends.filter(|until| marked && !ejected && *until > now);
        let out = ejected || quota.is_some();
        match effect {
            Effect::Nothing => None,
            Effect::Eject => (!ejected).then(|| Note::Ejected { cause: cause(fault) }),
            Effect::QuotaMonth | Effect::QuotaDay => {
                let until = if effect == Effect::QuotaDay { next_midnight(now) } else { next_month(now) };
                (!ejected && quota.is_none_or(|standing| until > standing))
                    .then(|| Note::Quota { until, cause: cause(fault) })
            }
            Effect::Rest(least) => {
                let said = retry_after(fault, now);
                self.hold(fault, now);
                if out {
                    return None;
                }
                if fault.kind == FaultKind::Suspicious {
                    return self.suspect(said, attempt, rests_until, now);
                }
                if rests_until.is_some() && said.is_none() {
                    return None;
                }
                let until = later(now, said.unwrap_or_else(|| self.next_rest(least, marked, late)));
                if rests_until.is_some_and(|standing| until <= later(standing, SHORTEST_REST)) {
                    return None;
                }
                if !late {
                    self.rests = self.rests.saturating_add(1);
                }
                Some(Note::CoolDown { until, cause: self.cause_of(fault) })
            }
            Effect::Counted => {
                if out || rests_until.is_some() {
                    return None;
                }
                self.streak = self.streak.saturating_add(1);
                if matches!(fault.kind, FaultKind::Forbidden | FaultKind::TokenRejected) {
                    self.refused = Some(now);
                }
                if !marked && self.streak < FAILURES_IN_A_ROW {
                    return Some(Note::Plain(cause(fault)));
                }
                let rest = self.next_rest(rules.cool_down, marked, late);
                if !late {
                    self.rests = self.rests.saturating_add(1);
                }
                Some(Note::CoolDown { until: later(now, rest), cause: self.cause_of(fault) })
            }
        }
    }

    /// A suspicious rest (K91). An attempt that started before the end of the present suspicious rest belongs to it,
    /// whichever process made the mark: it never makes a step, and prolongs the rest only when upstream says so.
    fn suspect(
        &mut self,
        said: Option<Duration>,
        attempt: FailedAttempt,
        rests_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Note> {
        let same = self.suspicion > 0 && rests_until.is_some_and(|until| attempt.started < until);
        let until = if same {
            let until = later(now, said?);
            if rests_until.is_some_and(|standing| until <= later(standing, SHORTEST_REST)) {
                return None;
            }
            until
        } else {
            self.suspicion = self.suspicion.saturating_add(1);
            let step = usize::try_from(self.suspicion).unwrap_or(usize::MAX).min(SUSPICIOUS_RESTS.len());
            let rest = SUSPICIOUS_RESTS.get(step.saturating_sub(1)).copied().unwrap_or(LONGEST_REST);
            let spread = u32::try_from(1000 + i32::from(attempt.spread.clamp(-100, 100))).unwrap_or(1000);
            later(now, said.unwrap_or_default().max(rest * spread / 1000)).max(rests_until.unwrap_or(now))
        };
        Some(Note::CoolDown { until, cause: format!("{SUSPICION} ({})", self.suspicion) })
    }

    /// [`cause`] of another rest, with the step of the suspicion, so that a restart doesn't lose it (K91).
    fn cause_of(&self, fault: &Fault) -> String {
        match self.suspicion {
            0 => cause(fault),
            step => format!("{}, after {SUSPICION} ({step})", cause(fault)),
        }
    }

    /// `least · 2ⁿ`, at most an hour. A half-open account without known rests counts as having had one.
    fn next_rest(&self, least: Duration, marked: bool, late: bool) -> Duration {
        let n = match (marked, late) {
            (true, true) => self.rests.saturating_sub(1),
            (true, false) => self.rests.max(1),
            (false, _) => self.rests,
        };
        doubled(least, n, LONGEST_REST)
    }

    /// Applies the mark to this process's belief at once, as it will change the record.
    fn apply(&mut self, mark: &Note, now: Timestamp) {
        self.standing.fail(1, now, Some(mark.clone()));
        self.rest_ends = match mark {
            Note::Plain(_) => return,
            Note::CoolDown { until, .. } => Some(*until),
            Note::Quota { .. } | Note::Ejected { .. } => None,
        };
        self.streak = 0;
    }

    fn is_ejected(&self) -> bool {
        let Some(note @ Note::Ejected { .. }) = &self.standing.note else { return false };
        match (note.rejected_fingerprint(), self.fingerprint.as_deref()) {
            (Some(rejected), Some(current)) => rejected.eq_ignore_ascii_case(current),
            _ => true,
        }
    }
}

/// The end of the rest in a record, as seen now (R16).
fn rest_ends(standing: &Standing, rules: Rules, now: Timestamp) -> Option<Timestamp> {
    let since = standing.last_error.filter(|_| !standing.healthy)?;
    let end = match standing.note {
        Some(Note::CoolDown { until, .. }) if until > since => until,
        _ => later(since, rules.cool_down),
    };
    let longest = match &standing.note {
        Some(Note::CoolDown { cause, .. }) if cause.starts_with(SUSPICION) => LONGEST_SUSPICIOUS_REST,
        _ => LONGEST_FOREIGN_REST,
    };
    Some(end.min(later(now, longest)))
}

/// A fault's cause in `lastErrorMessage`: status and class, and upstream's reason if it is a plain token. Never
/// upstream's message, which holds user ids and ARNs (R27, K48).
fn cause(fault: &Fault) -> String {
    let reason = fault.reason.as_deref().filter(|reason| {
        !reason.is_empty() && reason.len() <= 64 && reason.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
    });
    let words = match fault.kind {
        FaultKind::QuotaMonth => return reason.unwrap_or("MONTHLY_REQUEST_COUNT").to_owned(),
        FaultKind::QuotaDay => return reason.unwrap_or("DAILY_REQUEST_COUNT").to_owned(),
        FaultKind::ClientVersion => "client version refused",
        FaultKind::PromptTooLong => "prompt too long",
        FaultKind::TooLarge => "request too large",
        FaultKind::UnknownModel => "unknown model",
        FaultKind::ThinkingSignature => "thinking signature refused",
        FaultKind::ModelFields => "model fields refused",
        FaultKind::ProfileArn => "profile ARN refused",
        FaultKind::BadRequest => "bad request",
        FaultKind::TokenRejected => "bearer token rejected",
        FaultKind::Suspended => "suspended",
        FaultKind::Forbidden => "forbidden",
        FaultKind::Suspicious => SUSPICION,
        FaultKind::ModelCapacity => "no model capacity",
        FaultKind::RateLimited => "rate limited",
        FaultKind::Unreachable => "host can't be reached",
        FaultKind::ServerError | FaultKind::Network | FaultKind::Timeout | FaultKind::Protocol => {
            soft_words(fault.kind)
        }
        FaultKind::Endpoint => "endpoint refused",
    };
    let status = fault.status.map(|status| format!("{status} ")).unwrap_or_default();
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("{status}{words}{reason}")
}

const fn soft_words(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Network => "network error",
        FaultKind::Timeout => "timeout",
        FaultKind::Protocol => "protocol error",
        _ => "server error",
    }
}

/// Whether this is the [`cause`] of a soft fault.
fn is_soft_cause(cause: &str) -> bool {
    let words = cause.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    FaultKind::ALL.into_iter().any(|kind| is_soft(kind) && words.starts_with(soft_words(kind)))
}

/// `Retry-After` as a rest: 1 s to 1 h.
fn retry_after(fault: &Fault, now: Timestamp) -> Option<Duration> {
    Some(fault.retry_after?.wait(now).clamp(SHORTEST_REST, LONGEST_REST))
}

fn next_midnight(now: Timestamp) -> Timestamp {
    let day = 86_400;
    Timestamp::from_second((now.as_second().div_euclid(day) + 1) * day).unwrap_or(Timestamp::MAX)
}

fn next_month(now: Timestamp) -> Timestamp {
    let today = now.to_zoned(TimeZone::UTC).date();
    let (year, month) = if today.month() == 12 { (today.year() + 1, 1) } else { (today.year(), today.month() + 1) };
    Date::new(year, month, 1)
        .and_then(|first| first.to_zoned(TimeZone::UTC))
        .map_or(Timestamp::MAX, |midnight| midnight.timestamp())
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Outcomes;
    use super::*;
    use crate::proto::kiro::fault::RetryAfter;

    const RULES: Rules = Rules { cool_down: Duration::from_secs(60) };

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn t0() -> Timestamp {
        at("2026-11-23T10:00:00.000Z")
    }

    fn secs(seconds: i64) -> Timestamp {
        t0() + jiff::SignedDuration::from_secs(seconds)
    }

    fn good() -> Standing {
        Standing::default()
    }

    fn bad(last_error: Option<Timestamp>, message: &str) -> Standing {
        let note = (!message.is_empty()).then(|| Note::parse(message));
        Standing { healthy: false, error_count: 1, last_error, note, ..good() }
    }

    fn health(standing: Standing) -> Health {
        let mut health = Health::new(standing, RULES, t0());
        health.set_fingerprint(Some("bd473e5d".into()), t0());
        health
    }

    fn fault(kind: FaultKind) -> Fault {
        Fault { kind, status: None, reason: None, message: "user 12345 arn:aws:x".into(), retry_after: None }
    }

    fn limited(retry_after: RetryAfter) -> Fault {
        Fault { status: Some(429), retry_after: Some(retry_after), ..fault(FaultKind::RateLimited) }
    }

    fn attempt(started: Timestamp) -> FailedAttempt {
        FailedAttempt { started, end: AttemptEnd::default(), alike: false, spread: 0 }
    }

    fn mark(outcome: Option<Outcome>) -> Option<Note> {
        match outcome?.event {
            Event::Fault { mark, .. } => mark,
            Event::Success { .. } | Event::Refreshed { .. } => None,
        }
    }

    /// The column "account" of K45, row by row.
    #[test]
    fn every_fault_has_its_effect_on_the_account_k43_r29() {
        let at_t0 = |kind, refreshed| {
            let mut health = health(good());
            let attempt = FailedAttempt { end: AttemptEnd { refreshed, committed: false }, ..attempt(t0()) };
            let outcome = health.fault(&fault(kind), attempt, RULES, t0());
            (
                mark(outcome).map(|mark| mark.to_string()),
                health.state(true, t0()).as_str(),
                health.standing().error_count,
            )
        };
        let until = at("2026-11-23T10:01:00Z");
        let table = [
            (FaultKind::ClientVersion, None, "healthy", 0),
            (FaultKind::PromptTooLong, None, "healthy", 0),
            (FaultKind::TooLarge, None, "healthy", 0),
            (FaultKind::UnknownModel, None, "healthy", 0),
            (FaultKind::ThinkingSignature, None, "healthy", 0),
            (FaultKind::ModelFields, None, "healthy", 0),
            (FaultKind::ProfileArn, None, "healthy", 0),
            (FaultKind::BadRequest, None, "healthy", 0),
            (FaultKind::TokenRejected, None, "healthy", 0),
            (FaultKind::Suspended, Some("ejected: suspended".to_owned()), "ejected", 10),
            (FaultKind::Forbidden, Some("forbidden".to_owned()), "healthy", 1),
            (
                FaultKind::QuotaMonth,
                Some("quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT".to_owned()),
                "quota",
                1,
            ),
            (
                FaultKind::QuotaDay,
                Some("quota exhausted until 2026-11-24T00:00:00.000Z: DAILY_REQUEST_COUNT".to_owned()),
                "quota",
                1,
            ),
            (
                FaultKind::Suspicious,
                Some("cool-down until 2026-11-23T10:30:00.000Z: suspicious activity (1)".to_owned()),
                "cooling",
                1,
            ),
            (FaultKind::ModelCapacity, None, "healthy", 0),
            (FaultKind::RateLimited, Some(format!("cool-down until {until:.3}: rate limited")), "cooling", 1),
            (FaultKind::ServerError, Some("server error".to_owned()), "healthy", 1),
            (FaultKind::Network, Some("network error".to_owned()), "healthy", 1),
            (FaultKind::Unreachable, None, "healthy", 0),
            (FaultKind::Timeout, Some("timeout".to_owned()), "healthy", 1),
            (FaultKind::Protocol, Some("protocol error".to_owned()), "healthy", 1),
            (FaultKind::Endpoint, None, "healthy", 0),
        ];
        assert_eq!(table.each_ref().map(|row| row.0), FaultKind::ALL, "a row is missing");
        for (kind, message, state, errors) in table {
            assert_eq!(at_t0(kind, false), (message, state, errors), "{kind}");
        }
        assert_eq!(
            at_t0(FaultKind::TokenRejected, true),
            (Some("bearer token rejected".to_owned()), "healthy", 1),
            "×1 when rejected again after the refresh"
        );
    }

    /// R15: first match wins.
    #[test]
    fn the_first_matching_state_counts_r16() {
        let quota = Standing {
            recovery: Some(secs(5)),
            ..bad(Some(t0()), "quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT")
        };
        let table = [
            (Standing { disabled: true, ..quota.clone() }, HealthState::Disabled),
            (quota.clone(), HealthState::Quota { until: secs(5) }),
            (
                Standing { recovery: Some(secs(5)), ..bad(Some(t0()), "ejected: suspended") },
                HealthState::Quota { until: secs(5) },
            ),
            (bad(Some(t0()), "ejected: suspended"), HealthState::Ejected),
            (
                bad(Some(secs(-60)), "cool-down until 2026-11-23T10:00:30.000Z: x"),
                HealthState::Cooling { until: secs(30) },
            ),
            (
                bad(Some(secs(-30)), "cool-down until 2026-11-23T09:00:00.000Z: x"),
                HealthState::Cooling { until: secs(30) },
            ),
            (bad(Some(secs(-30)), "cool-down until soon"), HealthState::Cooling { until: secs(30) }),
            (bad(Some(secs(-30)), "Refresh failed: 401"), HealthState::Cooling { until: secs(30) }),
            (bad(Some(secs(-60)), ""), HealthState::HalfOpen),
            (bad(None, ""), HealthState::HalfOpen),
            (bad(None, "cool-down until 2026-11-23T10:00:30.000Z: x"), HealthState::HalfOpen),
            (Standing { stale: true, ..bad(Some(secs(-60)), "") }, HealthState::HalfOpen),
            (Standing { stale: true, ..good() }, HealthState::Stale),
            (good(), HealthState::Healthy),
            (Standing { healthy: true, ..quota }, HealthState::Healthy),
            (Standing { healthy: true, ..bad(Some(t0()), "ejected: suspended") }, HealthState::Healthy),
        ];
        for (standing, state) in table {
            assert_eq!(health(standing.clone()).state(true, t0()), state, "{standing:?}");
        }
        assert_eq!(health(good()).state(false, t0()), HealthState::Unusable);
    }

    #[test]
    fn a_wrong_clock_elsewhere_locks_nobody_r16() {
        for standing in
            [bad(Some(at("2030-01-01T00:00:00Z")), ""), bad(Some(t0()), "cool-down until 2030-01-01T00:00:00.000Z: x")]
        {
            let mut health = health(standing.clone());
            let end = HealthState::Cooling { until: secs(65 * 60) };
            assert_eq!(health.state(true, t0()), end);
            health.observe(&standing, false, RULES, secs(60 * 60));
            assert_eq!(health.state(true, secs(60 * 60)), end, "the cap counts from when the mark was first seen");
            assert_eq!(health.state(true, secs(65 * 60)), HealthState::HalfOpen);
        }
    }

    #[test]
    fn three_in_a_row_rest_and_rests_double_until_a_success() {
        let mut health = health(good());
        let mut now = t0();
        let fail = |health: &mut Health, now: &mut Timestamp| {
            *now = later(*now, Duration::from_secs(1));
            mark(health.fault(&fault(FaultKind::ServerError), attempt(*now), RULES, *now)).unwrap()
        };
        let rest = |mark: Note, now: Timestamp| match mark {
            Note::CoolDown { until, .. } => until.duration_since(now).as_secs(),
            other => panic!("{other:?}"),
        };
        assert!(matches!(fail(&mut health, &mut now), Note::Plain(_)));
        assert!(matches!(fail(&mut health, &mut now), Note::Plain(_)));
        health.success(now, now);
        assert_eq!(health.standing(), &good());
        assert!(matches!(fail(&mut health, &mut now), Note::Plain(_)));
        assert!(matches!(fail(&mut health, &mut now), Note::Plain(_)));
        let mut seconds = Vec::new();
        for _ in 0..8 {
            let mark = fail(&mut health, &mut now);
            let length = rest(mark, now);
            seconds.push(length);
            let end = later(now, Duration::from_secs(length.unsigned_abs()));
            assert_eq!(health.state(true, end - Duration::from_millis(1)), HealthState::Cooling { until: end });
            assert_eq!(health.state(true, end), HealthState::HalfOpen);
            now = end;
        }
        assert_eq!(seconds, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        let healed = health.success(now, now);
        assert_eq!(healed.event, Event::Success { heals: true, half_open: true, probe: false });
        fail(&mut health, &mut now);
        fail(&mut health, &mut now);
        assert_eq!(rest(fail(&mut health, &mut now), now), 60, "a success starts anew");
    }

    #[test]
    fn a_half_open_account_of_another_process_rests_longer_at_once() {
        let mut health = health(bad(Some(secs(-60)), "500"));
        let mark = mark(health.fault(&fault(FaultKind::Timeout), attempt(t0()), RULES, t0()));
        assert_eq!(mark, Some(Note::CoolDown { until: secs(120), cause: "timeout".into() }));
    }

    #[test]
    fn retry_after_is_obeyed_between_a_second_and_an_hour() {
        for (said, seconds) in [
            (RetryAfter::Seconds(0), 1),
            (RetryAfter::Seconds(7), 7),
            (RetryAfter::Seconds(86_400), 3600),
            (RetryAfter::At(secs(90)), 90),
            (RetryAfter::At(secs(-90)), 1),
        ] {
            let mut health = health(good());
            health.fault(&limited(said), attempt(t0()), RULES, t0());
            assert_eq!(health.state(true, t0()), HealthState::Cooling { until: secs(seconds) }, "{said:?}");
        }
    }

    #[test]
    fn redis_wins_except_over_retry_after_and_unwritten_marks_r18() {
        let mut plain = health(good());
        plain.fault(&fault(FaultKind::RateLimited), attempt(t0()), RULES, t0());
        plain.observe(&good(), true, RULES, secs(1));
        assert_eq!(plain.state(true, secs(1)), HealthState::Cooling { until: secs(60) }, "not written yet: stands");
        plain.observe(&Standing { disabled: true, ..good() }, true, RULES, secs(1));
        assert_eq!(plain.state(true, secs(1)), HealthState::Disabled);
        plain.observe(&good(), false, RULES, secs(2));
        assert_eq!(plain.state(true, secs(2)), HealthState::Healthy, "healed by somebody");
        assert_eq!((plain.streak, plain.rests), (0, 0));

        let mut held = health(good());
        held.fault(&limited(RetryAfter::Seconds(30)), attempt(t0()), RULES, t0());
        held.observe(&good(), false, RULES, secs(2));
        assert_eq!(held.state(true, secs(2)), HealthState::Cooling { until: secs(30) });
        assert_eq!(held.held_until(secs(2)), Some(secs(30)));
        assert_eq!(held.state(true, secs(30)), HealthState::Healthy);
    }

    /// Acceptance case 14: a long stream that ends well doesn't lift a rest that began while it ran.
    #[test]
    fn a_success_heals_only_failures_from_before_its_start_r28() {
        let mut health = health(good());
        health.fault(&fault(FaultKind::RateLimited), attempt(t0()), RULES, t0());
        let outcome = health.success(secs(-1), secs(10));
        assert_eq!(outcome.event, Event::Success { heals: false, half_open: false, probe: false });
        assert_eq!(health.state(true, secs(10)), HealthState::Cooling { until: secs(60) });
        let outcome = health.success(t0(), secs(70));
        assert_eq!(outcome.event, Event::Success { heals: true, half_open: true, probe: false });
        assert_eq!(health.state(true, secs(70)), HealthState::Healthy);
        assert_eq!(
            health.success(secs(70), secs(71)).event,
            Event::Success { heals: true, half_open: false, probe: false },
            "nothing stands in its way"
        );
    }

    #[test]
    fn a_pinned_requests_fault_names_the_lasting_mark_n8() {
        let mark = |kind| lasting_mark(&fault(kind), t0()).map(|note| note.to_string());
        assert!(mark(FaultKind::Suspended).unwrap().starts_with("ejected: "));
        assert!(mark(FaultKind::QuotaMonth).unwrap().starts_with("quota exhausted until "));
        assert_eq!(
            lasting_mark(&fault(FaultKind::QuotaDay), t0()),
            Some(Note::Quota { until: next_midnight(t0()), cause: "DAILY_REQUEST_COUNT".into() })
        );
        for kind in [FaultKind::RateLimited, FaultKind::TokenRejected, FaultKind::Network, FaultKind::BadRequest] {
            assert_eq!(mark(kind), None, "{kind:?}");
        }
    }

    /// Ten requests are on the way when the first 429 comes: one mark, one rest.
    #[test]
    fn a_burst_of_faults_is_one_mark() {
        let mut health = health(good());
        assert!(mark(health.fault(&fault(FaultKind::RateLimited), attempt(secs(-5)), RULES, t0())).is_some());
        for n in 1..10 {
            let kind = if n % 2 == 0 { FaultKind::RateLimited } else { FaultKind::Network };
            assert_eq!(health.fault(&fault(kind), attempt(secs(-5)), RULES, secs(n)), None);
        }
        assert_eq!(health.state(true, secs(10)), HealthState::Cooling { until: secs(60) });
        let longer = health.fault(&limited(RetryAfter::Seconds(120)), attempt(secs(-5)), RULES, secs(10));
        assert!(matches!(mark(longer), Some(Note::CoolDown { until, .. }) if until == secs(130)));
        let suspected = health.fault(&fault(FaultKind::Suspicious), attempt(secs(-5)), RULES, secs(11));
        assert!(matches!(mark(suspected), Some(Note::CoolDown { until, .. }) if until == secs(11 + 1800)));
        let committed = FailedAttempt { end: AttemptEnd { refreshed: false, committed: true }, ..attempt(secs(-5)) };
        assert_eq!(
            health.fault(&fault(FaultKind::Network), committed, RULES, secs(12)).unwrap().event,
            Event::Fault { mark: None, used: true },
            "after the commit the use counts in any case"
        );
    }

    #[test]
    fn a_weaker_mark_never_replaces_a_stronger_one() {
        let order = [FaultKind::RateLimited, FaultKind::QuotaDay, FaultKind::QuotaMonth, FaultKind::Suspended];
        for (i, strong) in order.into_iter().enumerate() {
            for (j, weak) in order.into_iter().enumerate() {
                let mut health = health(good());
                health.fault(&fault(strong), attempt(t0()), RULES, t0());
                let state = health.state(true, secs(1));
                let second = health.fault(&fault(weak), attempt(t0()), RULES, secs(1));
                assert_eq!(second.is_some(), j > i, "{strong} then {weak}");
                assert_eq!(health.state(true, secs(1)) == state, j <= i);
            }
        }
    }

    /// Acceptance case 15, and its turn of the year.
    #[test]
    fn quota_comes_back_with_the_month_and_the_day() {
        for (now, month, day) in [
            ("2026-11-23T10:00:00.000Z", "2026-12-01T00:00:00Z", "2026-11-24T00:00:00Z"),
            ("2026-12-31T23:59:59.999Z", "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("2028-02-01T00:00:00.000Z", "2028-03-01T00:00:00Z", "2028-02-02T00:00:00Z"),
        ] {
            assert_eq!(next_month(at(now)), at(month));
            assert_eq!(next_midnight(at(now)), at(day));
        }
        let mut health = health(good());
        health.fault(&fault(FaultKind::QuotaMonth), attempt(t0()), RULES, t0());
        assert_eq!(
            health.state(true, at("2026-11-30T23:59:59.999Z")),
            HealthState::Quota { until: at("2026-12-01T00:00:00Z") }
        );
        assert_eq!(health.state(true, at("2026-12-01T00:00:00Z")), HealthState::HalfOpen);
    }

    /// Acceptance cases 16, 17: what the UI's reset writes brings an account back from quota and ejection.
    #[test]
    fn a_reset_in_the_ui_counts_r15() {
        for kind in [FaultKind::QuotaMonth, FaultKind::Suspended] {
            let mut health = health(good());
            health.fault(&fault(kind), attempt(t0()), RULES, t0());
            let left_behind = Standing { healthy: true, error_count: 0, last_error: None, ..health.standing().clone() };
            assert_ne!(health.state(true, secs(1)), HealthState::Healthy);
            health.observe(&left_behind, false, RULES, secs(1));
            assert_eq!(health.state(true, secs(1)), HealthState::Healthy, "{kind}");
        }
    }

    /// Acceptance case 29.
    #[test]
    fn a_new_refresh_token_makes_an_ejected_account_half_open_r47() {
        for cause in [
            "refresh token rejected (bd473e5d) in us-east-1; log in again",
            "client registration expired (bd473e5d); log in again",
        ] {
            let mut health = health(good());
            health.eject(cause.into(), t0());
            assert_eq!(health.state(true, secs(1_000_000)), HealthState::Ejected);
            health.set_fingerprint(Some("00000000".into()), t0());
            assert_eq!(health.state(true, secs(1)), HealthState::HalfOpen);
            let failed = mark(health.fault(&fault(FaultKind::Forbidden), attempt(secs(1)), RULES, secs(1)));
            assert!(matches!(failed, Some(Note::CoolDown { .. })), "{failed:?}");
        }
        let mut suspended = health(bad(Some(t0()), "ejected: suspended"));
        suspended.set_fingerprint(Some("00000000".into()), t0());
        assert_eq!(suspended.state(true, secs(1)), HealthState::Ejected);
    }

    #[test]
    fn a_marked_account_without_traffic_is_probed_a_minute_after_its_rest_r17() {
        let mut health = health(good());
        health.fault(&fault(FaultKind::RateLimited), attempt(t0()), RULES, t0());
        assert!(!health.probe_due(secs(119)));
        assert!(health.probe_due(secs(120)));
        health.asked(secs(100));
        assert!(!health.probe_due(secs(159)));
        assert!(health.probe_due(secs(160)));
        health.success(secs(160), secs(161));
        assert!(!health.probe_due(secs(100_000)));
        assert!(!Health::new(bad(Some(t0()), "Refresh failed"), RULES, t0()).probe_due(secs(100_000)), "not our mark");
    }

    fn suspicious() -> Fault {
        Fault { status: Some(429), ..fault(FaultKind::Suspicious) }
    }

    /// Acceptance case P53. The step survives a restart, another process, and another fault in between.
    #[test]
    fn suspicious_rests_grow_from_restart_to_restart_k91_p53() {
        let mut health = health(good());
        let mut now = t0();
        for (step, minutes) in [(1, 30), (2, 120), (3, 360), (4, 720), (5, 1440), (6, 1440)] {
            let mark = mark(health.fault(&suspicious(), attempt(now), RULES, now)).unwrap();
            let until = later(now, Duration::from_secs(minutes * 60));
            assert_eq!(mark, Note::CoolDown { until, cause: format!("suspicious activity ({step})") });
            assert_eq!(health.suspected(), Some((until, now)));
            let written = Note::parse(&mark.to_string());
            // Another process sees the record, or this one after a restart.
            let standing = Standing { note: Some(written), ..health.standing().clone() };
            health = Health::new(standing, RULES, now);
            assert_eq!(
                health.state(true, until - Duration::from_millis(1)),
                HealthState::Cooling { until },
                "R16: 27 h"
            );
            assert_eq!(health.state(true, until), HealthState::HalfOpen);
            now = until;
            // Its one real request fails for another reason: the step stays.
            let failed = mark_of(health.fault(&fault(FaultKind::ServerError), attempt(now), RULES, now));
            assert_eq!(failed, format!("server error, after suspicious activity ({step})"));
            health = Health::new(health.standing().clone(), RULES, now);
            assert!(health.is_suspected());
            now = later(now, Duration::from_secs(3600));
        }
        health.success(now, now);
        assert!(!health.is_suspected());
        let first = health.fault(&suspicious(), attempt(now), RULES, now);
        assert_eq!(mark_of(first), "suspicious activity (1)", "a conversation that ended well resets it");
    }

    fn mark_of(outcome: Option<Outcome>) -> String {
        match mark(outcome) {
            Some(Note::CoolDown { cause, .. }) => cause,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn suspicious_rests_vary_by_a_tenth_and_retry_after_only_lengthens_them_k91() {
        for (spread, said, seconds) in [
            (-100, None, 1620),
            (0, None, 1800),
            (100, None, 1980),
            (0, Some(7), 1800),
            (0, Some(3000), 3000),
            (0, Some(86_400), 3600),
        ] {
            let mut health = health(good());
            let suspected = Fault { retry_after: said.map(RetryAfter::Seconds), ..suspicious() };
            health.fault(&suspected, FailedAttempt { spread, ..attempt(t0()) }, RULES, t0());
            assert_eq!(health.state(true, t0()), HealthState::Cooling { until: secs(seconds) }, "{spread}, {said:?}");
        }
    }

    /// Requests that were on the way when the mark was made, here or elsewhere, belong to it.
    #[test]
    fn a_wave_of_suspicion_is_one_step_k91() {
        let mut here = health(good());
        let mark = mark(here.fault(&suspicious(), attempt(secs(-5)), RULES, t0())).unwrap();
        let mut there = health(good());
        there.observe(here.standing(), false, RULES, secs(1));
        for health in [&mut here, &mut there] {
            for started in [secs(-5), secs(1)] {
                assert_eq!(health.fault(&suspicious(), attempt(started), RULES, secs(2)), None);
            }
            let longer = Fault { retry_after: Some(RetryAfter::Seconds(3600)), ..suspicious() };
            let longer = health.fault(&longer, attempt(secs(1)), RULES, secs(3));
            assert_eq!(mark_of(longer), "suspicious activity (1)");
            assert_eq!(health.state(true, secs(3)), HealthState::Cooling { until: secs(3603) });
        }
        // A longer rest of another kind isn't shortened, but the suspicion is written.
        let mut limited = health(good());
        limited.fault(&self::limited(RetryAfter::Seconds(3600)), attempt(t0()), RULES, t0());
        let suspected = limited.fault(&suspicious(), attempt(t0()), RULES, secs(1));
        assert!(matches!(self::mark(suspected), Some(Note::CoolDown { until, .. }) if until == secs(3600)));
        assert!(matches!(mark, Note::CoolDown { until, .. } if until == secs(1800)));
    }

    #[test]
    fn a_record_names_the_step_of_a_suspicion_and_a_reset_lifts_it_k91() {
        for (message, step) in [
            ("cool-down until 2026-11-23T12:00:00.000Z: suspicious activity (3)", 3),
            ("cool-down until 2026-11-23T12:00:00.000Z: 429 suspicious activity", 1),
            ("cool-down until 2026-11-23T12:00:00.000Z: suspicious activity (x)", 1),
            ("cool-down until 2026-11-23T12:00:00.000Z: timeout, after suspicious activity (4)", 4),
            ("cool-down until 2026-11-23T12:00:00.000Z: 429 rate limited", 0),
            ("suspicious activity (2)", 0),
        ] {
            let mut health = health(bad(Some(t0()), message));
            assert_eq!(health.suspicion, step, "{message}");
            assert!(!health.probe_due(secs(100_000)) || step == 0, "no probe: {message}");
            health.observe(&good(), false, RULES, secs(1));
            assert!(!health.is_suspected(), "`accounts enable`: {message}");
        }
        let far = "cool-down until 2026-11-25T10:00:00.000Z: suspicious activity (5)";
        let end = secs(27 * 3600);
        assert_eq!(health(bad(Some(t0()), far)).state(true, t0()), HealthState::Cooling { until: end }, "R16");
        let other = "cool-down until 2026-11-25T10:00:00.000Z: timeout, after suspicious activity (5)";
        assert_eq!(health(bad(Some(t0()), other)).state(true, t0()), HealthState::Cooling { until: secs(65 * 60) });
    }

    #[test]
    fn a_pinned_request_leaves_only_retry_after_n5() {
        let mut health = health(good());
        health.hold(&fault(FaultKind::RateLimited), t0());
        assert_eq!(health.held_until(t0()), None);
        health.hold(&limited(RetryAfter::Seconds(5)), t0());
        assert_eq!(health.held_until(t0()), Some(secs(5)));
        assert_eq!(health.standing(), &good());
    }

    /// Health and record judge an outcome by the same rules, so that the next snapshot brings nothing new.
    #[test]
    fn the_standing_in_memory_is_what_the_record_becomes_r18_r29() {
        let mut random = fastrand::Rng::with_seed(11);
        for round in 0..2000 {
            let (mut health, mut record, mut now) = (health(good()), good(), t0());
            for step in 0..random.usize(1..12) {
                now = later(now, Duration::from_secs(random.u64(1..5000)));
                let attempt = attempt(later(now, Duration::from_secs(random.u64(0..40))) - Duration::from_secs(40));
                let kind = FaultKind::ALL[random.usize(..FaultKind::ALL.len())];
                let outcome = match random.u8(0..4) {
                    0 => Some(health.success(attempt.started, now)),
                    _ => health.fault(&fault(kind), attempt, RULES, now),
                };
                if let Some(outcome) = &outcome {
                    Outcomes::from(outcome).judge(&mut record, now);
                }
                assert_eq!(health.standing(), &record, "round {round}, step {step}: {outcome:?}");
            }
        }
    }

    #[test]
    fn messages_hold_none_of_upstreams_words_r27() {
        let mut with_reason = fault(FaultKind::Forbidden);
        with_reason.status = Some(403);
        with_reason.reason = Some("FEATURE_NOT_SUPPORTED".into());
        assert_eq!(cause(&with_reason), "403 forbidden (FEATURE_NOT_SUPPORTED)");
        with_reason.reason = Some("user abc said arn:aws:x".into());
        assert_eq!(cause(&with_reason), "403 forbidden");
    }
}
