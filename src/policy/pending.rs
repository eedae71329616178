//! What waits to be written: when it leaves, what the end of a write means, when a change is given up (R22, R23,
//! R30, R31).
//!
//! Per account there is one entry:
//!
//! ```text
//!   record() ──▶ pending ──(due)──▶ in flight ──▶ written
//!                   ▲                  │  └─ reply lost: in doubt, asked for before anything newer leaves (R22)
//!                   └──── failed ──────┘
//! ```

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;

use super::outcome::{Outcomes, entries};
use super::waiting::{Generation, WaitingTokens};
use crate::proto::record::{self, Account};

/// How long marks wait for others, to leave together; R31 allows 50 ms.
const MARKS_WAIT: Duration = Duration::from_millis(5);
/// Counters leave at most this long after their event: a killed process loses those of 1 s (R31, R66).
pub(crate) const COUNTERS_WAIT: Duration = Duration::from_millis(800);
/// When a failed write is tried again, unless the store comes back sooner.
const RETRY: Duration = Duration::from_secs(1);
/// How long changes of a missing account are kept: the pool may be in the middle of a rewrite (R23).
const ABSENT: Duration = Duration::from_secs(10);
const ABSENT_RETRY: Duration = Duration::from_millis(250);
/// [`ABSENT`] while a caller waits for a flush: a rewrite of the pool is over by then (R55).
const FLUSH_ABSENT: Duration = Duration::from_secs(2);
/// [`RETRY`] while a caller waits for a flush.
const FLUSH_RETRY: Duration = Duration::from_millis(100);
/// How long written changes are remembered, for snapshots whose read began before (R18).
pub(crate) const REMEMBER: Duration = Duration::from_secs(60);
/// How long an account's entry is kept without a change.
const FORGET: Duration = Duration::from_secs(600);

/// Pending writes, by account id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Accounts with outcomes.
    pub accounts: Vec<String>,
    /// Accounts with tokens that upstream has rotated and the store doesn't hold.
    pub tokens: Vec<String>,
    /// After a last flush: accounts whose token nobody holds but this process. They must log in again (R33).
    pub lost: Vec<String>,
}

impl Pending {
    /// Whether nothing is waiting.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty() && self.tokens.is_empty()
    }
}

/// The outcomes and the tokens that wait, by account. Holds one entry per account, whatever the outage.
pub(crate) struct PendingWrites {
    // Bound: account changes that wait for the store | an account each, whatever the outage | they are merged
    accounts: HashMap<String, AccountWrites>,
    pub(crate) tokens: WaitingTokens,
    /// A caller waits: everything leaves now, and changes without a record are given up sooner.
    flushing: bool,
    /// Ticks of the counters are this plus a multiple of their interval, so that instances don't write at the same time
    /// (R31).
    phase: Instant,
}

#[derive(Default)]
struct AccountWrites {
    pending: Outcomes,
    /// The unsettled change: only while a batch holds it or its reply is in doubt.
    in_flight: Option<InFlight>,
    /// When `pending` or `in_flight` must leave; `None` when there is nothing to write.
    due: Option<Instant>,
    /// A batch holds it.
    busy: bool,
    /// The record as last seen, as the base of the next patch. Only a guess: the compare-and-set decides.
    known: Option<Bytes>,
    absent_since: Option<Instant>,
    /// Marks, heals and refreshes that were written lately.
    recent: Vec<(Instant, Outcomes)>,
    touched: Option<Instant>,
    /// When its last write ended, well or not.
    settled: Option<Instant>,
}

struct InFlight {
    change: Outcomes,
    /// The reply to this compare-and-set was lost.
    doubt: Option<Doubt>,
}

#[derive(Clone)]
struct Doubt {
    old: Bytes,
    new: Bytes,
}

/// One account's change on its way to the store.
pub(crate) struct WriteJob {
    pub(crate) id: String,
    change: Outcomes,
    /// The record that the change goes on; none: it must be read first.
    base: Option<Bytes>,
    doubt: Option<Doubt>,
    /// The change heals `base`, or nobody knows.
    heals: bool,
}

/// How a job ended.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum WriteEnd {
    /// The record has these bytes and holds the change.
    Written(Bytes),
    /// No record there.
    Absent,
    /// The record can't be written (R9).
    Unusable,
    /// Tried too often, or the store is away; its last reply may be in doubt.
    Failed,
}

/// What lies in the store where a job goes.
pub(crate) enum Found {
    /// The job goes on with it.
    Base,
    /// As [`Found::Base`]; this many uses count as written, although nobody knows.
    BaseWithout(u64),
    /// An earlier try, whose reply was lost, had succeeded: these bytes.
    Ours(Bytes),
}

impl PendingWrites {
    pub(crate) fn new(tokens: WaitingTokens, phase: Instant) -> Self {
        Self { accounts: HashMap::new(), tokens, flushing: false, phase }
    }

    /// Takes in a change. True: it leaves sooner than what waited.
    pub(crate) fn record(&mut self, account_id: &str, change: Outcomes, now: Instant) -> bool {
        let due = match change.is_urgent() {
            _ if self.flushing => now,
            true => now + MARKS_WAIT,
            false => next_tick(self.phase, now),
        };
        let entry = self.accounts.entry(account_id.to_owned()).or_default();
        entry.pending = mem::take(&mut entry.pending).then(change);
        entry.touched = Some(now);
        let sooner = entry.due.is_none_or(|before| due < before);
        if sooner {
            entry.due = Some(due);
        }
        sooner
    }

    /// The pending writes.
    pub(crate) fn pending(&self) -> Pending {
        let working = self.accounts.iter().filter(|(_, entry)| entry.has_work());
        Pending {
            accounts: working.map(|(id, _)| id.clone()).collect(),
            tokens: self.tokens.accounts().cloned().collect(),
            lost: Vec::new(),
        }
    }

    /// How many accounts and tokens are waiting.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.accounts.values().filter(|entry| entry.has_work()).count(), self.tokens.len())
    }

    /// Whether all of `backlog` was written, given up or tried since then.
    pub(crate) fn was_tried(&self, backlog: &Pending, since: Instant) -> bool {
        let account = |id: &String| {
            let entry = self.accounts.get(id);
            entry.is_none_or(|entry| !entry.has_work() || entry.settled.is_some_and(|settled| settled >= since))
        };
        let token = |id: &String| self.tokens.was_tried(id, since);
        backlog.accounts.iter().all(account) && backlog.tokens.iter().all(token)
    }

    /// Everything that a snapshot whose read began at `since` may lack of this account, in order.
    pub(crate) fn newer_than(&self, account_id: &str, since: Instant) -> Option<Outcomes> {
        let entry = self.accounts.get(account_id)?;
        let written = entry.recent.iter().filter(|(written, _)| *written >= since).map(|(_, change)| change.clone());
        let waiting = entry.in_flight.iter().map(|in_flight| in_flight.change.clone());
        let changes = written.chain(waiting).chain((!entry.pending.is_empty()).then(|| entry.pending.clone()));
        changes.reduce(Outcomes::then)
    }

    /// When the next write is due, and which accounts and tokens are due now.
    pub(crate) fn due(&self, now: Instant) -> (Option<Instant>, Vec<String>, Vec<String>) {
        let accounts = self.accounts.iter().filter(|(_, entry)| !entry.busy);
        let accounts: Vec<_> = accounts.filter_map(|(id, entry)| Some((entry.due?, id))).collect();
        let tokens: Vec<_> = self.tokens.dues().collect();
        let next = accounts.iter().chain(&tokens).map(|(due, _)| *due).filter(|due| *due > now).min();
        let ripe = |waiting: Vec<(Instant, &String)>| -> Vec<String> {
            waiting.into_iter().filter(|(due, _)| *due <= now).map(|(_, id)| id.clone()).collect()
        };
        (next, ripe(accounts), ripe(tokens))
    }

    /// Everything that waits leaves now.
    pub(crate) fn all_due(&mut self, now: Instant) {
        for entry in self.accounts.values_mut() {
            entry.due = entry.due.map(|due| due.min(now));
        }
        self.tokens.all_due(now);
    }

    /// Whether a caller waits until everything is written.
    pub(crate) fn flush(&mut self, flushing: bool, now: Instant) {
        self.flushing = flushing;
        if flushing {
            self.all_due(now);
        }
    }

    /// Forgets accounts of which nothing was heard for long.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.accounts.retain(|_, entry| {
            entry.busy || entry.has_work() || entry.touched.is_some_and(|touched| now.duration_since(touched) < FORGET)
        });
    }

    /// The changes of these accounts, to be written now by the caller, who says with [`PendingWrites::settle`] how it
    /// went.
    pub(crate) fn take(&mut self, accounts: Vec<String>) -> Vec<WriteJob> {
        let take = |id: String| {
            let entry = self.accounts.get_mut(&id)?;
            entry.busy = true;
            entry.due = None;
            // A change in doubt leaves alone: nobody could separate it from newer counts again (R22).
            let in_flight =
                entry.in_flight.get_or_insert_with(|| InFlight { change: mem::take(&mut entry.pending), doubt: None });
            let (change, doubt) = (in_flight.change.clone(), in_flight.doubt.clone());
            let base = if doubt.is_some() { None } else { entry.known.clone() };
            Some(WriteJob { id, change, base, doubt, heals: true })
        };
        accounts.into_iter().filter_map(take).collect()
    }

    /// How a write ended. True: what waits for the account is dropped.
    pub(crate) fn settle(&mut self, job: &mut WriteJob, end: WriteEnd, now: Instant) -> bool {
        let flushing = self.flushing;
        self.accounts.get_mut(&job.id).is_some_and(|entry| entry.settle(job, end, flushing, now))
    }

    /// How the write of a token ended.
    pub(crate) fn settle_token(&mut self, id: &str, generation: Generation, answered: bool, now: Instant) {
        let retry = if self.flushing { FLUSH_RETRY } else { RETRY };
        self.tokens.settle(id, generation, answered, now, retry);
    }
}

impl AccountWrites {
    fn has_work(&self) -> bool {
        self.in_flight.is_some() || !self.pending.is_empty()
    }

    fn settle(&mut self, job: &mut WriteJob, end: WriteEnd, flushing: bool, now: Instant) -> bool {
        let (retry, patience) = if flushing { (FLUSH_RETRY, FLUSH_ABSENT) } else { (RETRY, ABSENT) };
        self.busy = false;
        self.in_flight = None;
        (self.touched, self.settled) = (Some(now), Some(now));
        let change = mem::take(&mut job.change);
        let absent_since = self.absent_since.take();
        match end {
            WriteEnd::Written(record) => {
                self.recent.retain(|(written, _)| now.duration_since(*written) < REMEMBER);
                self.known = Some(record);
                if job.heals || change.is_urgent() {
                    self.recent.push((now, change.without_counts()));
                }
                self.due = self.due.or((!self.pending.is_empty()).then_some(now));
            }
            WriteEnd::Absent if absent_since.is_none_or(|since| now.duration_since(since) < patience) => {
                self.known = None;
                self.absent_since = absent_since.or(Some(now));
                self.give_back(change, None, now + ABSENT_RETRY);
            }
            WriteEnd::Absent | WriteEnd::Unusable => {
                self.known = None;
                self.pending = Outcomes::default();
                self.due = None;
                return true;
            }
            WriteEnd::Failed => self.give_back(change, job.doubt.take(), now + retry),
        }
        false
    }

    /// Puts the change back in front of newer ones, to leave at `due` or when the store is back.
    fn give_back(&mut self, change: Outcomes, doubt: Option<Doubt>, due: Instant) {
        match doubt {
            Some(_) => self.in_flight = Some(InFlight { change, doubt }),
            None => self.pending = change.then(mem::take(&mut self.pending)),
        }
        self.due = Some(due);
    }
}

impl WriteJob {
    /// Whether the record must be read first: there is no guess of it, or a reply is in doubt.
    pub(crate) fn is_unread(&self) -> bool {
        self.base.is_none()
    }

    /// This record lies there, as a read or a conflict has shown.
    ///
    /// Only after a lost reply may our own bytes be there. Otherwise another process has written the same: it counted its
    /// own, ours comes on top (R60). When somebody has written after the lost reply, the record can't tell whether our
    /// counts are in it. One may be lost, none doubled (R22).
    pub(crate) fn finds(&mut self, record: Bytes) -> Found {
        let mut found = Found::Base;
        match &self.doubt {
            Some(doubt) if record == doubt.new => return Found::Ours(record),
            Some(doubt) if record != doubt.old => {
                found = Found::BaseWithout(self.change.uses());
                self.change = mem::take(&mut self.change).without_counts();
                self.doubt = None;
            }
            _ => {}
        }
        self.base = Some(record);
        found
    }

    /// The compare-and-set that writes the change: old bytes and new ones. Or the job has ended.
    pub(crate) fn patch(&mut self, now: Timestamp) -> Result<(Bytes, Bytes), WriteEnd> {
        let Some(old) = self.base.clone() else { return Err(WriteEnd::Failed) };
        // In doubt, and the old bytes are still there: the same write again, so that it can't happen twice.
        if let Some(doubt) = &self.doubt {
            return Ok((old, doubt.new.clone()));
        }
        let Ok(account) = Account::parse(&old, &self.id) else { return Err(WriteEnd::Unusable) };
        let mut after = account.clone();
        self.heals = self.change.apply(&mut after, now);
        match record::patch(&old, &entries(&account, &after)) {
            Ok(Some(new)) => Ok((old, new.into())),
            Ok(None) => Err(WriteEnd::Written(old)),
            Err(_) => Err(WriteEnd::Unusable),
        }
    }

    /// No reply came to this compare-and-set, which may have been executed all the same.
    pub(crate) fn doubts(&mut self, old: Bytes, new: Bytes) {
        self.doubt = Some(Doubt { old, new });
    }
}

fn next_tick(phase: Instant, now: Instant) -> Instant {
    let Some(since) = now.checked_duration_since(phase) else { return phase };
    let ticks = since.as_micros() / COUNTERS_WAIT.as_micros() + 1;
    phase + COUNTERS_WAIT * u32::try_from(ticks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Outcome;
    use super::*;
    use crate::proto::record::Note;

    const RECORD: &[u8] = br#"{"usageCount":5}"#;
    const FOREIGN: &[u8] = br#"{"usageCount":9}"#;

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn clock() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn change(outcome: &Outcome) -> Outcomes {
        Outcomes::from(outcome)
    }

    fn used() -> Outcomes {
        change(&Outcome::success(clock(), clock()))
    }

    fn marked() -> Outcomes {
        let until = "2026-11-23T10:01:00Z".parse().unwrap();
        change(&Outcome::marked(clock(), clock(), Note::CoolDown { until, cause: "429 rate limited".into() }))
    }

    /// With `change` of account `a`, which is on its way.
    fn on_its_way(change: Outcomes, now: Instant) -> (PendingWrites, WriteJob) {
        let mut writes = PendingWrites::new(WaitingTokens::default(), now);
        writes.record("a", change, now);
        let job = writes.take(vec!["a".into()]).pop().unwrap();
        (writes, job)
    }

    /// Its bytes were sent and no reply came.
    fn in_doubt(now: Instant) -> (PendingWrites, WriteJob, Bytes) {
        let (mut writes, mut job) = on_its_way(used(), now);
        assert!(matches!(job.finds(Bytes::from_static(RECORD)), Found::Base));
        let (old, new) = job.patch(clock()).unwrap_or_else(|_| panic!("a use changes the record"));
        job.doubts(old, new.clone());
        assert!(!writes.settle(&mut job, WriteEnd::Failed, now));
        let job = writes.take(vec!["a".into()]).pop().unwrap();
        (writes, job, new)
    }

    #[test]
    fn marks_leave_at_once_and_counters_at_the_next_tick_r31() {
        let phase = start();
        for (after, change, leaves) in [
            (0, used(), 800),
            (799, used(), 800),
            (800, used(), 1600),
            (0, marked(), 5),
            (799, marked(), 804),
            (1700, used(), 2400),
        ] {
            let mut writes = PendingWrites::new(WaitingTokens::default(), phase);
            let now = phase + Duration::from_millis(after);
            assert!(writes.record("a", change.clone(), now));
            assert_eq!(writes.due(now).0, Some(phase + Duration::from_millis(leaves)), "after {after} ms");
            assert!(!writes.record("a", change, now), "it leaves with what waits");
            writes.flush(true, now);
            assert_eq!(writes.due(now).1, ["a"], "somebody waits for it");
        }
    }

    #[test]
    fn what_lies_in_the_store_tells_whether_a_lost_write_was_done_r22() {
        let (now, record) = (start(), Bytes::from_static(RECORD));
        let (_, mut job, new) = in_doubt(now);
        assert!(job.is_unread() && job.patch(clock()) == Err(WriteEnd::Failed), "the record is read first");
        assert!(matches!(job.finds(new.clone()), Found::Ours(bytes) if bytes == new));

        let (_, mut job, new) = in_doubt(now);
        assert!(matches!(job.finds(record.clone()), Found::Base));
        assert!(job.patch(clock()) == Ok((record, new.clone())), "the very same write again");

        let (_, mut job, _) = in_doubt(now);
        assert!(matches!(job.finds(Bytes::from_static(FOREIGN)), Found::BaseWithout(1)));
        let (_, patched) = job.patch(clock()).unwrap_or_else(|_| panic!("lastUsed differs"));
        assert!(patched.starts_with(br#"{"usageCount":9,"#), "{patched:?}");

        let (_, mut job) = on_its_way(used(), now);
        assert!(matches!(job.finds(new), Found::Base), "without a lost reply the same bytes are another's (R60)");
    }

    #[test]
    fn a_change_in_doubt_leaves_alone_r22() {
        let now = start();
        let (mut writes, mut job, new) = in_doubt(now);
        writes.record("a", marked(), now);
        assert_eq!(writes.due(now + RETRY).1, [""; 0], "one write of an account at a time");
        assert!(!writes.settle(&mut job, WriteEnd::Failed, now));
        let mut job = writes.take(vec!["a".into()]).pop().unwrap();
        assert!(matches!(job.finds(new.clone()), Found::Ours(_)), "without the mark");
        assert!(!writes.settle(&mut job, WriteEnd::Written(new), now));
        assert_eq!(writes.due(now).1, ["a"], "the mark leaves now");
    }

    #[test]
    fn an_end_gives_back_or_drops_r9_r23() {
        let now = start();
        let later = |seconds: f64| now + Duration::from_secs_f64(seconds);
        // Until when it is absent, whether somebody waits, and when it leaves again; none: it is dropped.
        for (end, absent_for, flushing, again) in [
            (WriteEnd::Failed, None, false, Some(1.0)),
            (WriteEnd::Failed, None, true, Some(0.1)),
            (WriteEnd::Absent, None, false, Some(0.25)),
            (WriteEnd::Absent, Some(9.9), false, Some(10.15)),
            (WriteEnd::Absent, Some(10.0), false, None),
            (WriteEnd::Absent, Some(1.9), true, Some(2.15)),
            (WriteEnd::Absent, Some(2.0), true, None),
            (WriteEnd::Unusable, None, false, None),
        ] {
            let (mut writes, mut job) = on_its_way(used(), now);
            let mut ends = now;
            if let Some(seconds) = absent_for {
                assert!(!writes.settle(&mut job, WriteEnd::Absent, now));
                job = writes.take(vec!["a".into()]).pop().unwrap();
                ends = later(seconds);
            }
            writes.flush(flushing, now);
            let case = format!("{absent_for:?}, {flushing}, {again:?}");
            assert_eq!(writes.settle(&mut job, end, ends), again.is_none(), "{case}");
            assert_eq!(writes.due(ends).0, again.map(later), "{case}");
            assert_eq!(writes.pending().is_empty(), again.is_none(), "{case}");
            let backlog = Pending { accounts: vec!["a".into()], ..Pending::default() };
            assert!(writes.was_tried(&backlog, ends), "{case}");
        }
    }

    #[test]
    fn a_snapshot_that_began_before_a_mark_or_a_heal_was_written_is_told_of_it_r18() {
        let ill = Bytes::from_static(br#"{"isHealthy":false,"lastErrorTime":"2026-11-23T09:00:00Z"}"#);
        let well = Bytes::from_static(RECORD);
        for (change, record, told) in
            [(marked(), &well, true), (used(), &ill, true), (used(), &well, false), (marked(), &ill, true)]
        {
            let now = start();
            let later = now + Duration::from_millis(1);
            let (mut writes, mut job) = on_its_way(change, now);
            assert!(writes.newer_than("a", later).is_some(), "it is on its way");
            job.finds(record.clone());
            let (_, new) = job.patch(clock()).unwrap_or_else(|_| panic!("it changes the record"));
            assert!(!writes.settle(&mut job, WriteEnd::Written(new), now));
            let newer = writes.newer_than("a", now);
            assert_eq!(newer.as_ref().map(Outcomes::uses), told.then_some(0), "no count twice");
            assert!(writes.newer_than("a", later).is_none() && writes.pending().is_empty());
        }
    }
}
