//! What an attempt does to its account's record (R29), and how several are merged while they wait to be written (R28,
//! R30).

use std::time::Duration;

use jiff::Timestamp;

use super::later;
use super::suspicion::{SUSPICION, carry_suspicion, suspicion};
use crate::proto::record::{Account, Entry, Note, Standing};

/// Longest time that a rest in a record counts after this process saw it: a wrong clock elsewhere can't lock an account
/// (R16). Five minutes more than the longest rest that any instance writes.
pub const LONGEST_FOREIGN_REST: Duration = Duration::from_secs(65 * 60);

/// What one event changes in an account's record (R29). Made here, written by the store's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When it happened; becomes `lastUsed`, `lastErrorTime`, `lastHealthCheckTime`.
    pub at: Timestamp,
    /// When its attempt was started; `at` for an event without one.
    pub started: Timestamp,
    /// What happened.
    pub event: Event,
}

impl Outcome {
    /// An attempt that ended well, of an account that was in service.
    pub fn success(at: Timestamp, started: Timestamp) -> Self {
        Self { at, started, event: Event::Success { heals: true, half_open: false, probe: false } }
    }

    /// A use that heals nothing: its attempt started before the account's last failure.
    pub fn used(at: Timestamp) -> Self {
        Self { at, started: at, event: Event::Success { heals: false, half_open: false, probe: false } }
    }

    /// A failure before the commit that leaves this mark.
    pub fn marked(at: Timestamp, started: Timestamp, mark: Note) -> Self {
        Self { at, started, event: Event::Fault { mark: Some(mark), used: false } }
    }

    /// A new access token of an account whose record asked for one.
    pub fn refreshed(at: Timestamp) -> Self {
        Self { at, started: at, event: Event::Refreshed { asked: true } }
    }

    /// Whether a host program that records outcomes itself is shown it (R35).
    pub fn is_shown(&self) -> bool {
        match &self.event {
            Event::Success { heals, probe, .. } => *heals || !probe,
            Event::Fault { mark, .. } => mark.is_some(),
            Event::Refreshed { .. } => false,
        }
    }
}

/// The rows of R29 that touch an account's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `usageCount` += 1, `lastUsed`; heals a record whose `lastErrorTime` is not later than `started` (R28).
    Success {
        /// It may heal whatever the record shows. False: its attempt started before the account's last failure, so it
        /// is a use and nothing else (R28).
        heals: bool,
        /// It brought an account back that was out of rotation.
        half_open: bool,
        /// It was a probe (R17): it heals, but isn't a use of the account.
        probe: bool,
    },
    /// A fault that marks the account, a fault after the commit, or both.
    Fault {
        /// Its `lastErrorMessage`: [`Note::Plain`] is a counted failure (×1), the others are marks. None when the
        /// account isn't to blame.
        mark: Option<Note>,
        /// After the commit: `usageCount` += 1 and `lastUsed` too.
        used: bool,
    },
    /// The access token was refreshed: `needsRefresh:false, refreshCount:0, lastHealthCheckTime`.
    Refreshed {
        /// The record asked for it (`needsRefresh`), and other instances look at that.
        asked: bool,
    },
}

/// `errorCount` of an ejected account (R29).
const EJECTED_ERROR_COUNT: u64 = 10;

/// Any number of outcomes of one account, as one change: first the heal, then the failure behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    uses: u64,
    last_used: Option<Timestamp>,
    /// Start of the latest successful attempt.
    heal: Option<Timestamp>,
    /// Start of the latest probe with a good answer.
    probed: Option<Timestamp>,
    failure: Option<Failure>,
    refreshed: Option<Timestamp>,
    /// One of the refreshes was asked for.
    asked: bool,
}

/// Failures that no later success has healed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    count: u64,
    at: Timestamp,
    /// Cause of the latest counted one.
    cause: Option<String>,
    mark: Option<DatedNote>,
}

/// A cool-down, quota or ejection note and the attempt it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DatedNote {
    note: Note,
    /// When it was set.
    at: Timestamp,
    started_at: Timestamp,
}

impl Outcomes {
    /// This change, then `newer` (R30): counts add up, the latest mark stays, a heal cancels the older failures.
    pub fn then(self, newer: Self) -> Self {
        let mut failure = self.failure;
        // Else the attempt started before that failure and proves nothing about what came after it (R28).
        let cures = |started_at: &Timestamp| failure.as_ref().is_none_or(|failure| failure.at <= *started_at);
        let (healed, probed) = (newer.heal.filter(cures), newer.probed.filter(cures));
        if healed.is_some() || probed.is_some() {
            failure = None;
        }
        failure = match (failure, newer.failure) {
            (Some(older), Some(newer)) => Some(older.then(newer)),
            (older, newer) => newer.or(older),
        };
        Self {
            uses: self.uses.saturating_add(newer.uses),
            last_used: self.last_used.max(newer.last_used),
            heal: self.heal.max(healed),
            probed: self.probed.max(probed),
            failure,
            refreshed: self.refreshed.max(newer.refreshed),
            asked: self.asked || newer.asked,
        }
    }

    /// Makes `account` what its record will be once this change is written at `now`. True: it heals a failure that the
    /// record shows.
    pub fn apply(&self, account: &mut Account, now: Timestamp) -> bool {
        account.usage_count = account.usage_count.saturating_add(self.uses);
        account.last_used = account.last_used.max(self.last_used);
        account.last_health_check_time = account.last_health_check_time.max(self.refreshed);
        if self.refreshed.is_some() {
            account.refresh_count = 0;
        }
        self.judge(&mut account.standing, now)
    }

    /// [`Outcomes::apply`] to the health fields alone.
    pub fn judge(&self, standing: &mut Standing, now: Timestamp) -> bool {
        let probed = self.probed.filter(|_| suspicion(standing) == 0);
        let heals = self.heal.max(probed).is_some_and(|started_at| is_curable(standing, started_at, now));
        if heals {
            standing.heal();
        }
        if let Some(failure) = &self.failure {
            failure.apply(standing, now);
        }
        standing.stale &= self.refreshed.is_none();
        heals
    }

    /// How much it adds to `usageCount`.
    pub fn uses(&self) -> u64 {
        self.uses
    }

    /// Without the counts: for a write that perhaps happened (R22), where a count may be lost but never doubled.
    pub fn without_counts(mut self) -> Self {
        self.uses = 0;
        if let Some(failure) = &mut self.failure {
            failure.count = 0;
        }
        self
    }

    /// Whether other instances wait for it: it leaves at once, not with the counters (R31).
    pub fn is_urgent(&self) -> bool {
        self.is_mark() || self.asked
    }

    /// Whether it takes the account out of rotation.
    pub fn is_mark(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.mark.is_some())
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&Outcome> for Outcomes {
    fn from(outcome: &Outcome) -> Self {
        let Outcome { at, started: started_at, ref event } = *outcome;
        let used = Self { uses: 1, last_used: Some(at), ..Self::default() };
        match event {
            Event::Success { probe: true, .. } => Self { probed: Some(started_at), ..Self::default() },
            Event::Success { heals, .. } => Self { heal: heals.then_some(started_at), ..used },
            Event::Refreshed { asked } => Self { refreshed: Some(at), asked: *asked, ..Self::default() },
            Event::Fault { mark, used: true } => Self { failure: Failure::of(mark.as_ref(), at, started_at), ..used },
            Event::Fault { mark, used: false } => {
                let failure = Failure::of(mark.as_ref(), at, started_at);
                Self { last_used: failure.as_ref().map(|_| at), failure, ..Self::default() }
            }
        }
    }
}

/// The fields that have another value in `after` than in `record` (R24, R28).
pub fn entries(record: &Account, after: &Account) -> Vec<Entry> {
    let (old, new) = (&record.standing, &after.standing);
    let fields = [
        (new.healthy != old.healthy).then_some(Entry::IsHealthy(new.healthy)),
        (new.error_count != old.error_count).then_some(Entry::ErrorCount(new.error_count)),
        (new.last_error != old.last_error).then_some(Entry::LastErrorTime(new.last_error)),
        (new.note != old.note).then(|| Entry::LastErrorMessage(new.note.clone())),
        (new.recovery != old.recovery).then_some(Entry::ScheduledRecoveryTime(new.recovery)),
        (after.usage_count != record.usage_count).then_some(Entry::UsageCount(after.usage_count)),
        (new.stale != old.stale).then_some(Entry::NeedsRefresh(new.stale)),
        (after.refresh_count != record.refresh_count).then_some(Entry::RefreshCount(after.refresh_count)),
        after.last_used.filter(|_| after.last_used != record.last_used).map(Entry::LastUsed),
        after
            .last_health_check_time
            .filter(|_| after.last_health_check_time != record.last_health_check_time)
            .map(Entry::LastHealthCheckTime),
    ];
    fields.into_iter().flatten().collect()
}

impl Standing {
    /// R29, "heal": isHealthy, errorCount, lastErrorTime, lastErrorMessage, scheduledRecoveryTime.
    pub(super) fn heal(&mut self) {
        let Self { disabled, stale, .. } = *self;
        *self = Self { disabled, stale, ..Self::default() };
    }

    /// `count` failures, the last one at `at`, and what they leave (R29): the cause of a counted one, or a mark.
    pub(super) fn fail(&mut self, count: u64, at: Timestamp, note: Option<Note>) {
        self.error_count = self.error_count.saturating_add(count);
        self.last_error = self.last_error.max(Some(at));
        if note.as_ref().is_some_and(|note| !matches!(note, Note::Plain(_))) {
            self.healthy = false;
            self.recovery = None;
        }
        match note {
            Some(Note::Quota { until, .. }) => self.recovery = Some(until),
            Some(Note::Ejected { .. }) => self.error_count = EJECTED_ERROR_COUNT,
            _ => {}
        }
        self.note = note.or_else(|| self.note.take());
    }
}

fn is_curable(standing: &Standing, started_at: Timestamp, now: Timestamp) -> bool {
    let is_ill = !standing.healthy || standing.error_count != 0 || standing.last_error.is_some();
    is_ill && may_heal(started_at, standing.last_error, now)
}

/// Whether a success whose attempt began at `started` proves anything about the account after its last failure (R28). A
/// `lastErrorTime` further ahead than R16 believes comes from a wrong clock and doesn't count.
pub(super) fn may_heal(started: Timestamp, last_error: Option<Timestamp>, now: Timestamp) -> bool {
    last_error.is_none_or(|failed| failed <= started || failed > later(now, LONGEST_FOREIGN_REST))
}

impl Failure {
    fn of(mark: Option<&Note>, at: Timestamp, started_at: Timestamp) -> Option<Self> {
        let (cause, mark) = match mark? {
            Note::Plain(cause) => (Some(cause.clone()), None),
            note => (None, Some(DatedNote { note: note.clone(), at, started_at })),
        };
        Some(Self { count: 1, at, cause, mark })
    }

    fn then(self, newer: Self) -> Self {
        let mark = match (self.mark, newer.mark) {
            (Some(older), Some(newer)) => Some(if newer.replaces(&older.note, Some(self.at)) { newer } else { older }),
            (older, newer) => newer.or(older),
        };
        Self {
            count: self.count.saturating_add(newer.count),
            at: self.at.max(newer.at),
            cause: newer.cause.or(self.cause),
            mark,
        }
    }

    fn apply(&self, standing: &mut Standing, now: Timestamp) {
        let running = running_mark(standing, self.at);
        let note = match &self.mark {
            // It ended while it waited to be written: only its count is left (R51).
            Some(DatedNote { note: Note::CoolDown { until, .. }, .. }) if *until <= now => {
                standing.error_count = standing.error_count.saturating_add(self.count);
                return;
            }
            Some(mark) if running.as_ref().is_none_or(|running| mark.replaces(running, standing.last_error)) => {
                Some(standing.mark().map_or_else(|| mark.note.clone(), |old| carry_suspicion(&mark.note, old)))
            }
            Some(_) => None,
            None => self.cause.clone().filter(|_| running.is_none()).map(Note::Plain),
        };
        standing.fail(self.count, self.at, note);
    }
}

impl DatedNote {
    /// Whether this mark replaces another in a record whose last failure was at `since`: when it is heavier or equal,
    /// when its attempt started after that failure, or when it was set after the other's end.
    fn replaces(&self, standing: &Note, since: Option<Timestamp>) -> bool {
        // Only a heavier mark may replace a running suspicious rest with an earlier end (K91).
        if let (Note::CoolDown { until: ours, .. }, Note::CoolDown { until, cause }) = (&self.note, standing)
            && cause.starts_with(SUSPICION)
            && *until > self.at
            && ours < until
        {
            return false;
        }
        weight(&self.note) >= weight(standing)
            || since.is_none_or(|since| self.started_at >= since)
            || is_over(standing, self.at)
    }
}

/// The mark in a record that still keeps its account out at `at`.
fn running_mark(standing: &Standing, at: Timestamp) -> Option<Note> {
    if standing.healthy {
        return None;
    }
    let note = standing.note.clone().filter(|note| weight(note) > 0 && !is_over(note, at));
    // A quota counts by its field, whatever the message says (R15).
    let quota = standing.recovery.filter(|until| *until > at);
    match (note, quota) {
        (Some(note), quota) if quota.is_none() || weight(&note) >= 2 => Some(note),
        (_, Some(until)) => Some(Note::Quota { until, cause: String::new() }),
        (_, None) => None,
    }
}

fn weight(note: &Note) -> u8 {
    match note {
        Note::Plain(_) => 0,
        Note::CoolDown { .. } => 1,
        Note::Quota { .. } => 2,
        Note::Ejected { .. } => 3,
    }
}

fn is_over(note: &Note, at: Timestamp) -> bool {
    match note {
        Note::CoolDown { until, .. } | Note::Quota { until, .. } => *until <= at,
        Note::Ejected { .. } => false,
        Note::Plain(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::proto::record::patch;

    fn time(text: &str) -> Timestamp {
        format!("2026-11-23T{text}Z").parse().unwrap()
    }

    fn t0() -> Timestamp {
        time("10:00:00")
    }

    fn merged(outcomes: impl IntoIterator<Item = Outcome>) -> Outcomes {
        outcomes.into_iter().fold(Outcomes::default(), |before, outcome| before.then((&outcome).into()))
    }

    fn written_at(record: &str, outcomes: impl IntoIterator<Item = Outcome>, now: Timestamp) -> String {
        let account = Account::parse(record.as_bytes(), "a1").unwrap();
        let mut after = account.clone();
        merged(outcomes).apply(&mut after, now);
        let patched = patch(record.as_bytes(), &entries(&account, &after)).unwrap();
        patched.map_or_else(|| record.to_owned(), |patched| String::from_utf8(patched).unwrap())
    }

    fn written(record: &str, outcomes: impl IntoIterator<Item = Outcome>) -> String {
        written_at(record, outcomes, t0())
    }

    fn success() -> Outcome {
        Outcome::success(t0(), t0())
    }

    fn counted(at: Timestamp, started_at: Timestamp) -> Outcome {
        Outcome::marked(at, started_at, Note::Plain("503 busy".into()))
    }

    fn cool_down(at: Timestamp, started_at: Timestamp, until: Timestamp) -> Outcome {
        Outcome::marked(at, started_at, Note::CoolDown { until, cause: "429 rate limited".into() })
    }

    fn ejected(at: Timestamp) -> Outcome {
        Outcome::marked(at, at, Note::Ejected { cause: "suspended".into() })
    }

    const USED: &str = r#""lastUsed":"2026-11-23T10:00:00.000Z""#;

    fn probe(started: Timestamp) -> Outcome {
        Outcome { at: t0(), started, event: Event::Success { heals: true, half_open: true, probe: true } }
    }

    #[test]
    fn a_fault_after_the_commit_counts_its_use_too_n18() {
        let after = |mark| Outcome { at: t0(), started: t0(), event: Event::Fault { mark, used: true } };
        let used = format!(r#"{{"usageCount":1,{USED}}}"#);
        assert_eq!(written("{}", [after(None)]), used);
        assert_eq!(written("{}", [Outcome::used(t0())]), used);
        let failed = written("{}", [after(Some(Note::Plain("500 server error".into())))]);
        assert!(failed.contains(r#""usageCount":1"#) && failed.contains(r#""errorCount":1"#), "{failed}");
        let nothing = Outcome { at: t0(), started: t0(), event: Event::Fault { mark: None, used: false } };
        assert!(Outcomes::from(&nothing).is_empty());
    }

    #[test]
    fn successes_add_up_case_01() {
        assert_eq!(
            written(r#"{"usageCount":5,"n":[]}"#, [success(), success(), success()]),
            format!(r#"{{"usageCount":8,"n":[],{USED}}}"#)
        );
    }

    #[test]
    fn a_cool_down_marks_case_12() {
        let until = time("10:01:00");
        assert_eq!(
            written("{}", [cool_down(t0(), t0(), until)]),
            format!(
                r#"{{"isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"cool-down until 2026-11-23T10:01:00.000Z: 429 rate limited",{USED}}}"#
            )
        );
    }

    #[test]
    fn a_success_heals_case_13() {
        let record = r#"{"uuid":"a1","isHealthy":false,"errorCount":3,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:01:00.000Z: 429 rate limited","scheduledRecoveryTime":null,"usageCount":41}"#;
        assert_eq!(
            written(record, [success()]),
            r#"{"uuid":"a1","isHealthy":true,"errorCount":0,"lastErrorTime":null,"lastErrorMessage":null,"scheduledRecoveryTime":null,"usageCount":42,"lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
        let probe = probe(t0());
        assert!(written(record, [probe.clone()]).contains(r#""isHealthy":true"#));
        assert!(written(record, [probe]).contains(r#""usageCount":41"#));
    }

    #[test]
    fn a_probe_does_not_heal_an_account_under_suspicion_k91() {
        let probe = probe(t0());
        for cause in ["suspicious activity (2)", "500 server error, after suspicious activity (2)"] {
            let record = format!(
                r#"{{"isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:30:00.000Z: {cause}"}}"#
            );
            assert_eq!(written(&record, [probe.clone()]), record);
            assert!(
                written(&record, [success(), probe.clone()]).contains(r#""isHealthy":true"#),
                "a conversation does"
            );
        }
    }

    /// Another process that hasn't seen the mark neither shortens the rest nor loses the step.
    #[test]
    fn a_process_that_has_not_seen_a_suspicion_never_weakens_it_k91() {
        let suspected = |until: &str| {
            format!(
                r#"{{"isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T{until}.000Z: suspicious activity (3)"}}"#
            )
        };
        let message =
            |record: &str| Account::parse(record.as_bytes(), "a1").unwrap().standing.note.unwrap().to_string();
        let first =
            |until| Outcome::marked(t0(), t0(), Note::CoolDown { until, cause: "suspicious activity (1)".into() });
        let (runs, over) = (suspected("15:00:00"), suspected("09:59:00"));
        for mark in [cool_down(t0(), t0(), time("10:01:00")), first(time("10:30:00"))] {
            assert_eq!(
                message(&written(&runs, [mark])),
                "cool-down until 2026-11-23T15:00:00.000Z: suspicious activity (3)"
            );
        }
        assert_eq!(
            message(&written(&over, [cool_down(t0(), t0(), time("10:01:00"))])),
            "cool-down until 2026-11-23T10:01:00.000Z: 429 rate limited, after suspicious activity (3)"
        );
        assert_eq!(
            message(&written(&over, [first(time("10:30:00"))])),
            "cool-down until 2026-11-23T10:30:00.000Z: suspicious activity (3)"
        );
        assert_eq!(
            message(&written(&over, [success(), first(time("10:30:00"))])),
            "cool-down until 2026-11-23T10:30:00.000Z: suspicious activity (1)",
            "after a success it begins anew"
        );
        assert!(written(&runs, [ejected(t0())]).contains("ejected: suspended"), "what is heavier stands");
    }

    #[test]
    fn a_stream_that_began_before_the_failure_does_not_heal_case_14() {
        let failed = cool_down(time("10:00:05"), time("10:00:04"), time("10:01:05"));
        let ended = Outcome::success(time("10:00:10"), time("10:00:00"));
        let in_order = written_at("{}", [failed.clone(), ended.clone()], time("10:00:10"));
        assert!(in_order.contains(r#""isHealthy":false"#) && in_order.contains(r#""usageCount":1"#), "{in_order}");
        let first = written_at("{}", [failed], time("10:00:05"));
        let apart = written_at(&first, [ended], time("10:00:10"));
        let read = |record: &str| Account::parse(record.as_bytes(), "a1").unwrap();
        assert_eq!(read(&apart), read(&in_order), "written apart or together");
    }

    #[test]
    fn a_quota_mark_case_15() {
        let until = "2026-12-01T00:00:00Z".parse().unwrap();
        let quota = Outcome::marked(t0(), t0(), Note::Quota { until, cause: "MONTHLY_REQUEST_COUNT".into() });
        assert_eq!(
            written(r#"{"uuid":"a1","isHealthy":true,"errorCount":0}"#, [quota]),
            r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z","lastUsed":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn an_ejection_has_ten_errors_case_17() {
        let ejected = written(r#"{"errorCount":3}"#, [ejected(t0())]);
        assert!(ejected.starts_with(r#"{"errorCount":10,"isHealthy":false"#), "{ejected}");
        assert!(ejected.contains(r#""lastErrorMessage":"ejected: suspended""#));
    }

    #[test]
    fn a_heal_cancels_older_failures_and_no_younger_ones_r28_r30() {
        let healed = Outcome::success(time("10:00:20"), time("10:00:10"));
        let older = cool_down(time("10:00:05"), time("10:00:04"), time("10:01:05"));
        let younger = counted(time("10:00:30"), time("10:00:29"));
        let result = written_at(r#"{"errorCount":7}"#, [older, healed, younger], time("10:00:30"));
        assert_eq!(
            result,
            r#"{"errorCount":1,"lastErrorTime":"2026-11-23T10:00:30.000Z","lastErrorMessage":"503 busy","usageCount":1,"lastUsed":"2026-11-23T10:00:30.000Z"}"#
        );
    }

    #[test]
    fn a_stale_recovery_time_goes_with_a_cool_down_r15() {
        let record = r#"{"isHealthy":true,"scheduledRecoveryTime":"2026-12-01T00:00:00.000Z"}"#;
        let result = written(record, [cool_down(t0(), t0(), time("10:01:00"))]);
        assert!(result.contains(r#""scheduledRecoveryTime":null"#), "{result}");
    }

    #[test]
    fn times_never_go_backwards_r24() {
        let record = r#"{"lastUsed":"2026-11-23T11:00:00Z","lastErrorTime":"2026-11-23T11:00:00Z","errorCount":1}"#;
        let result = written(record, [counted(t0(), t0())]);
        assert_eq!(
            result,
            r#"{"lastUsed":"2026-11-23T11:00:00Z","lastErrorTime":"2026-11-23T11:00:00Z","errorCount":2,"lastErrorMessage":"503 busy"}"#
        );
    }

    #[test]
    fn a_late_failure_leaves_a_heavier_mark_alone() {
        let ejection = ejected(time("10:00:05"));
        // Its attempt ran beside the one that got the account ejected.
        let beside = cool_down(time("10:00:06"), time("10:00:01"), time("10:01:06"));
        let together = written_at("{}", [ejection.clone(), beside.clone()], time("10:00:06"));
        assert!(together.contains("ejected: suspended") && together.contains(r#""errorCount":10"#), "{together}");
        let first = written_at("{}", [ejection.clone()], time("10:00:06"));
        let apart = written_at(&first, [beside], time("10:00:06"));
        assert!(apart.contains("ejected: suspended") && apart.contains(r#""errorCount":11"#), "{apart}");
        // A probe that began after the ejection knows better (R47).
        let probe = cool_down(time("10:30:00"), time("10:29:59"), time("10:31:00"));
        let after = written_at(&first, [probe], time("10:30:00"));
        assert!(after.contains("cool-down until"), "{after}");
        // A counted failure never takes a standing mark's message.
        let counted = written_at(&first, [counted(time("10:30:00"), time("10:29:59"))], time("10:30:00"));
        assert!(counted.contains("ejected: suspended"), "{counted}");
    }

    #[test]
    fn a_cool_down_that_ended_meanwhile_is_only_counted_r51() {
        let late = written_at("{}", [cool_down(t0(), t0(), time("10:01:00"))], time("10:02:00"));
        assert_eq!(late, format!(r#"{{"errorCount":1,{USED}}}"#));
        assert!(written_at("{}", [ejected(t0())], time("12:00:00")).contains("ejected: "));
    }

    #[test]
    fn a_write_in_doubt_marks_again_and_counts_no_more_r22() {
        let account = Account::parse(b"{}", "a1").unwrap();
        let change = merged([success(), cool_down(t0(), t0(), time("10:01:00"))]).without_counts();
        let mut after = account.clone();
        change.apply(&mut after, t0());
        let entries = entries(&account, &after);
        assert!(entries.contains(&Entry::IsHealthy(false)));
        assert!(!entries.iter().any(|entry| matches!(entry, Entry::UsageCount(_) | Entry::ErrorCount(_))));
    }

    #[test]
    fn a_wrong_clock_elsewhere_does_not_stop_a_heal() {
        let ahead = r#"{"isHealthy":false,"lastErrorTime":"2027-11-23T10:00:00Z"}"#;
        assert!(written(ahead, [success()]).contains(r#""isHealthy":true"#));
        let near = r#"{"isHealthy":false,"lastErrorTime":"2026-11-23T10:00:01Z"}"#;
        assert!(written(near, [success()]).contains(r#""isHealthy":false"#));
    }

    #[test]
    fn a_refresh_clears_the_request_for_it() {
        let record = r#"{"needsRefresh":true,"refreshCount":2}"#;
        assert_eq!(
            written(record, [Outcome::refreshed(t0())]),
            r#"{"needsRefresh":false,"refreshCount":0,"lastHealthCheckTime":"2026-11-23T10:00:00.000Z"}"#
        );
    }

    #[test]
    fn a_use_leaves_the_message_of_the_record_unchanged() {
        let record = r#"{"lastErrorMessage":"cool-down until 2026-11-23T09:00:00Z: x","errorCount":0}"#;
        assert_eq!(
            written(record, [Outcome::used(t0())]),
            format!("{},\"usageCount\":1,{USED}}}", record.trim_end_matches('}'))
        );
    }

    /// Merging only saves writes: one merged write leaves the same record as single writes in order.
    #[test]
    fn merged_and_single_writes_leave_the_same_record() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..2000 {
            let mut at = t0();
            let outcomes: Vec<_> = (0..random.usize(1..8))
                .map(|_| {
                    at += SignedDuration::from_secs(random.i64(1..20));
                    let started_at = at - SignedDuration::from_secs(random.i64(0..60));
                    let until = at + SignedDuration::from_secs(3600);
                    match random.u8(0..7) {
                        0 => ejected(at),
                        1 => cool_down(at, started_at, until),
                        2 => Outcome::marked(at, started_at, Note::Quota { until, cause: "q".into() }),
                        3 => counted(at, started_at),
                        4 => Outcome::used(at),
                        _ => Outcome::success(at, started_at),
                    }
                })
                .collect();
            let singly =
                outcomes.iter().fold("{}".to_owned(), |record, outcome| written_at(&record, [outcome.clone()], at));
            let together = written_at("{}", outcomes.clone(), at);
            let read = |record: &str| {
                let mut account = Account::parse(record.as_bytes(), "a").unwrap();
                // An ejection sets a count; failures merged before or after it may add to it or not.
                account.standing.error_count = u64::from(account.standing.error_count > 0);
                account
            };
            assert_eq!(read(&singly), read(&together), "round {round}: {outcomes:#?}");
        }
    }
}
