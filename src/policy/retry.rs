//! The verdict after a fault: stop, same account, next account.

//!
//! A request has a [`Budget`]: `KIRO_MAX_ATTEMPTS` accounts, and for each account one forced refresh and one profile
//! look-up. The budget remembers with which fault each account ended; [`Budget::answer`] picks the one that the client
//! is told about (K47). The table is the column "Verdict" of kiro-upstream.md §8.
//!
//! Wait before the next account: none, but after `ModelCapacity`, where every account asks the same model:
//! `d = min(200 ms · 2ⁿ, 2 s)` with n = earlier `ModelCapacity` faults of this request, and of that a random part
//! between `d/2` and `d`.

use std::time::Duration;

use crate::proto::kiro::fault::{Fault, FaultKind};

/// First wait after `ModelCapacity`.
pub const CAPACITY_WAIT: Duration = Duration::from_millis(200);
/// Longest wait after `ModelCapacity`.
pub const CAPACITY_WAIT_MAX: Duration = Duration::from_secs(2);

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
}

/// What must be done before the same account is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// One forced, single-flight refresh of the access token.
    RefreshToken,
    /// Leave `reasoningContent` out of the history.
    WithoutReasoning,
    /// Look the account's profile up (K64).
    LookUpProfile,
}

/// What was sent in the attempt that ended in a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The account signs with an API key: there is no token to refresh.
    pub api_key: bool,
    /// The body held `reasoningContent`.
    pub reasoning: bool,
    /// Content has been handed downstream: no second account, whatever happened.
    pub committed: bool,
}

/// Where a request stands among its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `KIRO_MAX_ATTEMPTS`; 1 for a pinned request (N5).
    pub accounts_max: u32,
    /// Accounts tried, this one included.
    pub accounts: u32,
    /// This account's token was refreshed for this request.
    pub token_refreshed: bool,
    /// This account's profile was looked up for this request.
    pub profile_looked_up: bool,
    /// `ModelCapacity` faults before this one.
    pub capacity_faults: u32,
}

/// The verdict on one fault: a total function of its kind and of what went before.
pub fn verdict(kind: FaultKind, progress: Progress, sent: Sent, rng: &mut fastrand::Rng) -> Verdict {
    if sent.committed {
        return Verdict::Stop;
    }
    let next =
        |after| if progress.accounts < progress.accounts_max { Verdict::NextAccount { after } } else { Verdict::Stop };
    let once = |done: bool, remedy| if done { Verdict::Stop } else { Verdict::SameAccount(remedy) };
    match kind {
        FaultKind::ClientVersion
        | FaultKind::PromptTooLong
        | FaultKind::TooLarge
        | FaultKind::UnknownModel
        | FaultKind::ModelFields
        | FaultKind::BadRequest
        | FaultKind::Endpoint => Verdict::Stop,
        FaultKind::ThinkingSignature => once(!sent.reasoning, Remedy::WithoutReasoning),
        FaultKind::ProfileArn => once(progress.profile_looked_up, Remedy::LookUpProfile),
        FaultKind::TokenRejected if !progress.token_refreshed && !sent.api_key => {
            Verdict::SameAccount(Remedy::RefreshToken)
        }
        FaultKind::TokenRejected
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
        | FaultKind::Protocol => next(Duration::ZERO),
        FaultKind::ModelCapacity => next(capacity_wait(progress.capacity_faults, rng)),
    }
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Budget {
    progress: Progress,
    ended: Vec<Fault>,
}

impl Budget {
    /// A fresh budget of `accounts_max` accounts; a pinned request has one (N5).
    pub fn new(accounts_max: u32) -> Self {
        let progress = Progress {
            accounts_max,
            accounts: 0,
            token_refreshed: false,
            profile_looked_up: false,
            capacity_faults: 0,
        };
        Self { progress, ended: Vec::new() }
    }

    /// An account was selected.
    pub fn next_account(&mut self) {
        self.progress.accounts = self.progress.accounts.saturating_add(1);
        (self.progress.token_refreshed, self.progress.profile_looked_up) = (false, false);
    }

    /// Accounts tried so far.
    pub fn accounts(&self) -> u32 {
        self.progress.accounts
    }

    /// Whether the account in hand got a new token by a forced refresh: a second `TokenRejected` is then its failure.
    pub fn token_refreshed(&self) -> bool {
        self.progress.token_refreshed
    }

    /// The attempt ended in a fault. A remedy that can't be had (no ARN found, refresh refused) is a fault again:
    /// hand the same one in once more, or the refresh's own to [`Budget::account_failed`].
    pub fn fault(&mut self, fault: Fault, sent: Sent, rng: &mut fastrand::Rng) -> Verdict {
        let verdict = verdict(fault.kind, self.progress, sent, rng);
        match verdict {
            Verdict::SameAccount(Remedy::RefreshToken) => self.progress.token_refreshed = true,
            Verdict::SameAccount(Remedy::LookUpProfile) => self.progress.profile_looked_up = true,
            Verdict::SameAccount(Remedy::WithoutReasoning) => {}
            Verdict::Stop | Verdict::NextAccount { .. } => {
                if fault.kind == FaultKind::ModelCapacity {
                    self.progress.capacity_faults = self.progress.capacity_faults.saturating_add(1);
                }
                self.ended.push(fault);
            }
        }
        verdict
    }

    /// The account can't be asked at all, for want of an access token (R42): the next one, or stop.
    pub fn account_failed(&mut self, fault: Fault) -> Verdict {
        self.ended.push(fault);
        if self.progress.accounts < self.progress.accounts_max {
            Verdict::NextAccount { after: Duration::ZERO }
        } else {
            Verdict::Stop
        }
    }

    /// The fault that the client is told about when accounts or attempts have run out (K47): the last one, and among
    /// mixed causes the last that was no rate limit. When it is a rate limit, every account ended in one, and the
    /// `Retry-After` is the time until the soonest account is back. None when no account was asked.
    pub fn answer(&self) -> Option<&Fault> {
        let limited = |fault: &&Fault| matches!(fault.kind, FaultKind::RateLimited | FaultKind::Suspicious);
        self.ended.iter().rfind(|fault| !limited(fault)).or(self.ended.last())
    }
}

fn capacity_wait(earlier: u32, rng: &mut fastrand::Rng) -> Duration {
    let factor = 2_u32.checked_pow(earlier).unwrap_or(u32::MAX);
    let whole = CAPACITY_WAIT.checked_mul(factor).map_or(CAPACITY_WAIT_MAX, |wait| wait.min(CAPACITY_WAIT_MAX));
    whole.mul_f64(0.5 + rng.f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Sent = Sent { api_key: false, reasoning: false, committed: false };
    const PROGRESS: Progress =
        Progress { accounts_max: 3, accounts: 1, token_refreshed: false, profile_looked_up: false, capacity_faults: 0 };
    const NEXT: Verdict = Verdict::NextAccount { after: Duration::ZERO };

    fn rng() -> fastrand::Rng {
        fastrand::Rng::with_seed(7)
    }

    fn fault(kind: FaultKind) -> Fault {
        Fault { kind, status: None, reason: None, message: String::new(), retry_after: None }
    }

    /// The column "Verdict" of kiro-upstream.md §8, row by row: first time, and after the remedy.
    #[test]
    fn k45_trap_27_verdict_of_every_fault() {
        let table = [
            (FaultKind::ClientVersion, Verdict::Stop, Verdict::Stop),
            (FaultKind::ModelFields, Verdict::Stop, Verdict::Stop),
            (FaultKind::Unreachable, NEXT, NEXT),
            (FaultKind::PromptTooLong, Verdict::Stop, Verdict::Stop),
            (FaultKind::TooLarge, Verdict::Stop, Verdict::Stop),
            (FaultKind::UnknownModel, Verdict::Stop, Verdict::Stop),
            (FaultKind::ThinkingSignature, Verdict::SameAccount(Remedy::WithoutReasoning), Verdict::Stop),
            (FaultKind::ProfileArn, Verdict::SameAccount(Remedy::LookUpProfile), Verdict::Stop),
            (FaultKind::BadRequest, Verdict::Stop, Verdict::Stop),
            (FaultKind::TokenRejected, Verdict::SameAccount(Remedy::RefreshToken), NEXT),
            (FaultKind::Suspended, NEXT, NEXT),
            (FaultKind::Forbidden, NEXT, NEXT),
            (FaultKind::QuotaMonth, NEXT, NEXT),
            (FaultKind::QuotaDay, NEXT, NEXT),
            (FaultKind::Suspicious, NEXT, NEXT),
            (FaultKind::RateLimited, NEXT, NEXT),
            (FaultKind::ServerError, NEXT, NEXT),
            (FaultKind::Network, NEXT, NEXT),
            (FaultKind::Timeout, NEXT, NEXT),
            (FaultKind::Protocol, NEXT, NEXT),
            (FaultKind::Endpoint, Verdict::Stop, Verdict::Stop),
        ];
        for kind in FaultKind::ALL {
            let Some((_, first, second)) = table.iter().find(|row| row.0 == kind) else {
                assert_eq!(kind, FaultKind::ModelCapacity, "a row is missing");
                continue;
            };
            let with_reasoning = Sent { reasoning: true, ..SENT };
            let remedied = Progress { token_refreshed: true, profile_looked_up: true, ..PROGRESS };
            assert_eq!(verdict(kind, PROGRESS, with_reasoning, &mut rng()), *first, "{kind}");
            assert_eq!(verdict(kind, remedied, SENT, &mut rng()), *second, "{kind}, after the remedy");
        }
    }

    #[test]
    fn after_the_commit_and_after_the_last_account_there_is_no_other() {
        for kind in FaultKind::ALL {
            let committed = Sent { committed: true, reasoning: true, ..SENT };
            assert_eq!(verdict(kind, PROGRESS, committed, &mut rng()), Verdict::Stop, "{kind}");
            let last = Progress { accounts: 3, ..PROGRESS };
            assert!(!matches!(verdict(kind, last, SENT, &mut rng()), Verdict::NextAccount { .. }), "{kind}");
        }
        let api_key = Sent { api_key: true, ..SENT };
        assert_eq!(verdict(FaultKind::TokenRejected, PROGRESS, api_key, &mut rng()), NEXT);
    }

    #[test]
    fn model_capacity_waits_longer_each_time() {
        let mut rng = rng();
        for (n, whole) in [(0, 200), (1, 400), (2, 800), (3, 1600), (4, 2000), (40, 2000)] {
            let progress = Progress { capacity_faults: n, ..PROGRESS };
            for _ in 0..100 {
                let Verdict::NextAccount { after } = verdict(FaultKind::ModelCapacity, progress, SENT, &mut rng) else {
                    panic!("no next account");
                };
                assert!((whole / 2..=whole).contains(&after.as_millis()), "{n}: {after:?}");
            }
        }
    }

    #[test]
    fn the_budget_counts_accounts_and_remedies_per_account() {
        let mut rng = rng();
        let mut budget = Budget::new(2);
        assert_eq!(budget.answer(), None);
        for last in [false, true] {
            budget.next_account();
            let refresh = Verdict::SameAccount(Remedy::RefreshToken);
            assert_eq!(budget.fault(fault(FaultKind::TokenRejected), SENT, &mut rng), refresh);
            assert!(budget.token_refreshed());
            let verdict = budget.fault(fault(FaultKind::TokenRejected), SENT, &mut rng);
            assert_eq!(verdict, if last { Verdict::Stop } else { NEXT });
        }
        assert_eq!((budget.accounts(), budget.ended.len()), (2, 2), "a remedied attempt is no ended one");
        let mut pinned = Budget::new(1);
        pinned.next_account();
        assert_eq!(pinned.account_failed(fault(FaultKind::Timeout)), Verdict::Stop);
    }

    #[test]
    fn k47_which_fault_is_the_answer() {
        use FaultKind::{ModelCapacity, RateLimited, ServerError, Suspicious, Timeout};
        for (ended, answer) in [
            (vec![ServerError, Timeout], Timeout),
            (vec![Timeout, RateLimited], Timeout),
            (vec![Timeout, ModelCapacity, Suspicious, RateLimited], ModelCapacity),
            (vec![RateLimited, ServerError], ServerError),
            (vec![RateLimited, Suspicious], Suspicious),
            (vec![RateLimited], RateLimited),
        ] {
            let mut budget = Budget::new(9);
            for kind in &ended {
                budget.next_account();
                budget.fault(fault(*kind), SENT, &mut rng());
            }
            assert_eq!(budget.answer().map(|fault| fault.kind), Some(answer), "{ended:?}");
        }
    }
}
