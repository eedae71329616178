//! Background questions to the accounts that are used, each in its turn: their models (K125), their credits (K146).

use std::collections::HashMap;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outside::now;
use crate::pool::AccountId;

/// The pause after a failure. It doubles with each further one, up to [`Pace::every`].
const AGAIN: Duration = Duration::from_secs(60);
/// Most accounts in a schedule. Beyond that, unused ones are dropped.
const MOST_TURNS: usize = 16_384;

/// How often accounts are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// From an answer to the next question to the same account.
    pub every: Duration,
    /// Accounts asked at once.
    pub at_once: usize,
    /// The least time between the beginnings of two questions.
    pub gap: Duration,
}

impl Pace {
    /// The pause after `failures` in a row.
    fn pause(self, failures: u32) -> Duration {
        AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(self.every)
    }
}

/// The used accounts, for the task that asks them.
pub(super) struct Turns {
    schedule: Mutex<Schedule>,
    /// A new account is used.
    changed: Notify,
}

impl Turns {
    pub(super) fn new(pace: Pace) -> Self {
        Self { schedule: Mutex::new(Schedule::new(pace)), changed: Notify::new() }
    }

    /// The account has answered a request. Wakes the task only when that is news: once for each question.
    pub(super) fn used(&self, account: &AccountId) {
        if self.schedule().used(account, now()) {
            self.changed.notify_one();
        }
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which account is asked when.
struct Schedule {
    pace: Pace,
    // Bound: accounts to be asked for models or usage | MOST_TURNS | those that weren't used since they were asked go
    accounts: HashMap<AccountId, ScheduledAccount>,
    /// No question begins before it.
    not_before: Option<Instant>,
}

struct ScheduledAccount {
    due: Instant,
    /// It has answered since it was asked last.
    used: bool,
    asking: bool,
    failures: u32,
}

impl Schedule {
    fn new(pace: Pace) -> Self {
        Self { pace, accounts: HashMap::new(), not_before: None }
    }

    /// Marks it as used; whether it wasn't before.
    fn used(&mut self, id: &AccountId, now: Instant) -> bool {
        if let Some(turn) = self.accounts.get_mut(id) {
            return !mem::replace(&mut turn.used, true);
        }
        if self.accounts.len() >= MOST_TURNS {
            self.accounts.retain(|_, turn| turn.used || turn.asking);
        }
        self.accounts.insert(id.clone(), ScheduledAccount { due: now, used: true, asking: false, failures: 0 });
        true
    }

    /// The account to be asked next, and when. None while the most are being asked. Unused accounts aren't asked,
    /// except for the early repeats after a failure.
    fn next(&self) -> Option<(Instant, AccountId)> {
        if self.accounts.values().filter(|turn| turn.asking).count() >= self.pace.at_once {
            return None;
        }
        let repeats = |turn: &ScheduledAccount| turn.failures > 0 && self.pace.pause(turn.failures) < self.pace.every;
        let waiting = self.accounts.iter().filter(|(_, turn)| !turn.asking && (turn.used || repeats(turn)));
        let (due, id) = waiting.map(|(id, turn)| (turn.due, id)).min()?;
        Some((self.not_before.map_or(due, |at| due.max(at)), id.clone()))
    }

    fn begin(&mut self, id: &AccountId, now: Instant) {
        self.not_before = Some(now + self.pace.gap);
        if let Some(turn) = self.accounts.get_mut(id) {
            (turn.asking, turn.used) = (true, false);
        }
    }

    fn done(&mut self, id: &AccountId, answer: Asked, now: Instant) {
        if answer == Asked::Gone {
            self.accounts.remove(id);
        }
        let Some(turn) = self.accounts.get_mut(id) else { return };
        turn.asking = false;
        turn.used |= answer == Asked::Later;
        match answer {
            Asked::Answered => turn.failures = 0,
            Asked::Failed => turn.failures = turn.failures.saturating_add(1),
            Asked::Later | Asked::Gone => {}
        }
        turn.due = now
            + match answer {
                Asked::Answered => self.pace.every,
                _ => self.pace.pause(turn.failures),
            };
    }
}

/// The result of asking an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Answered,
    Failed,
    /// It was not asked: it rests, or can't be reached. It is due again in a minute.
    Later,
    /// The account has left the pool, or the gateway is closed.
    Gone,
}

/// Asks each account that is used, until `stop`.
pub(super) async fn ask_in_turn<F>(turns: Arc<Turns>, stop: CancellationToken, ask: impl Fn(AccountId) -> F)
where
    F: Future<Output = Asked> + Send + 'static,
{
    // Dropping it with this task cancels the running calls.
    let mut asking = JoinSet::<(AccountId, Asked)>::new();
    loop {
        let next = turns.schedule().next();
        tokio::select! {
            () = stop.cancelled() => return,
            () = turns.changed.notified() => {}
            Some(asked) = asking.join_next() => match asked {
                Ok((id, answer)) => turns.schedule().done(&id, answer, now()),
                Err(_) => turns.schedule().accounts.retain(|_, turn| !turn.asking),
            },
            () = sleep_until(next.as_ref().map(|(due, _)| *due)) => if let Some((_, id)) = next {
                turns.schedule().begin(&id, now());
                let answer = ask(id.clone());
                asking.spawn(async move { (id, answer.await) });
            },
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODELS: Pace = super::super::catalogue::PACE;

    /// Which account is asked when, in seconds, up to `end`; answers come at once.
    fn asked(uses: &[(u64, &str)], answer: impl Fn(usize) -> Asked, end: u64) -> Vec<(u64, String)> {
        let began = now();
        let at = |second| began + Duration::from_secs(second);
        let (mut turns, mut uses, mut asked) = (Schedule::new(MODELS), uses.iter().peekable(), Vec::new());
        loop {
            let next = turns.next();
            let due = next.as_ref().map(|(due, _)| *due);
            match (uses.peek(), next) {
                (Some((second, id)), _) if due.is_none_or(|due| at(*second) <= due) => {
                    turns.used(&(*id).into(), at(*second));
                    uses.next();
                }
                (last, Some((due, id))) => {
                    // A use may have come long after it was due.
                    let due = due.max(at(asked.last().map_or(0, |(second, _)| *second)));
                    if due > at(end) || last.is_none() && asked.len() > 100 {
                        return asked;
                    }
                    asked.push(((due - began).as_secs(), id.to_string()));
                    turns.begin(&id, due);
                    turns.done(&id, answer(asked.len()), due);
                }
                (_, None) => return asked,
            }
        }
    }

    fn seconds(asked: &[(u64, String)]) -> Vec<u64> {
        asked.iter().map(|(second, _)| *second).collect()
    }

    #[test]
    fn failures_are_repeated_after_60_s_and_120_s_a100_k125() {
        let third = |calls| if calls < 4 { Asked::Failed } else { Asked::Answered };
        assert_eq!(seconds(&asked(&[(10, "a")], third, 50_000)), [10, 70, 190, 430], "whether it is used or not");
        let used = [(10, "a"), (440, "a"), (4_000, "a")];
        assert_eq!(
            seconds(&asked(&used, third, 50_000)),
            [10, 70, 190, 430, 4_030],
            "an hour later, since it was used"
        );
        assert_eq!(asked(&[], third, 50_000), [], "nobody is asked who wasn't used");
    }

    #[test]
    fn an_account_that_never_answers_is_left_alone_until_it_is_used_k125() {
        let never = asked(&[(0, "a")], |_| Asked::Failed, 50_000);
        assert_eq!(seconds(&never), [0, 60, 180, 420, 900, 1_860, 3_780]);
        assert_eq!(asked(&[(0, "a"), (3_781, "a")], |_| Asked::Failed, 50_000).len(), 8);
        assert_eq!(asked(&[(0, "a")], |_| Asked::Gone, 50_000).len(), 1);
    }

    #[test]
    fn never_more_than_two_accounts_are_asked_at_once_k125() {
        let (mut turns, began) = (Schedule::new(MODELS), now());
        for id in ["a", "b", "c"] {
            assert!(turns.used(&id.into(), began) && !turns.used(&id.into(), began));
        }
        for id in ["a", "b"] {
            assert_eq!(turns.next().map(|(due, id)| (due, id.to_string())), Some((began, id.to_owned())));
            turns.begin(&id.into(), began);
        }
        assert_eq!(turns.next(), None);
        turns.done(&"b".into(), Asked::Answered, began);
        assert_eq!(turns.next(), Some((began, "c".into())));
    }

    #[test]
    fn accounts_that_come_and_go_are_forgotten_k125() {
        let (mut turns, began) = (Schedule::new(MODELS), now());
        for n in 0..3 * MOST_TURNS {
            let id = AccountId::from(format!("{n}"));
            turns.used(&id, began);
            turns.begin(&id, began);
            turns.done(&id, Asked::Answered, began);
        }
        assert!(turns.accounts.len() <= MOST_TURNS);
    }

    #[test]
    fn failures_double_up_to_an_hour_k125() {
        let pauses: Vec<_> = (1..=8).map(|failures| MODELS.pause(failures).as_secs()).collect();
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(MODELS.pause(u32::MAX), MODELS.every);
    }

    #[test]
    fn credits_are_asked_one_after_the_other_a_second_apart_k146() {
        let (every, began) = (Duration::from_secs(900), now());
        let mut turns = Schedule::new(super::super::credits::pace(every));
        for id in ["a", "b"] {
            turns.used(&id.into(), began);
        }
        let (due, first) = turns.next().unwrap();
        assert_eq!((due, &*first), (began, "a"));
        turns.begin(&first, began);
        assert_eq!(turns.next(), None, "one at a time");
        turns.done(&first, Asked::Answered, began);
        let (due, second) = turns.next().unwrap();
        assert_eq!((due, &*second), (began + Duration::from_secs(1), "b"));
        turns.begin(&second, due);
        turns.done(&second, Asked::Later, due);
        let again = turns.next().unwrap();
        assert_eq!((again.0, &*again.1), (due + AGAIN, "b"), "it rests: it stays due without another use");
        turns.begin(&second, again.0);
        turns.done(&second, Asked::Answered, again.0);
        assert_eq!(turns.next(), None, "nobody was used since");
        turns.used(&"a".into(), again.0);
        assert_eq!(turns.next(), Some((began + every, "a".into())));
    }
}
