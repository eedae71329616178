//! What the accounts have left of their quotas (K146), asked in the background.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::shared::Shared;
use super::turns::{Asked, Pace};
use crate::pool::{AccountId, short};

/// The least time between two questions: a pool that comes into use at once is no burst.
const GAP: Duration = Duration::from_secs(1);

/// One account at a time, each once in `every`, which is `KIRO_USAGE_INTERVAL`.
pub(super) fn pace(every: Duration) -> Pace {
    Pace { every, at_once: 1, gap: GAP }
}

/// Asks one account for its usage. Its lease learns the answer; a failure leaves no mark.
pub(super) async fn ask(shared: Weak<Shared>, id: AccountId) -> Asked {
    let Some(shared) = shared.upgrade().filter(|shared| !shared.closing.load(Ordering::Acquire)) else {
        return Asked::Gone;
    };
    let Some(lease) = shared.pool.look_in(&id) else { return Asked::Gone };
    let shut = shared.pool.brake().is_some() || shared.upstream.gate().status().shut;
    if shut || !shared.pool.may_be_asked(&id) || shared.is_cut_off(lease.account()) {
        return Asked::Later;
    }
    let answer = tokio::select! {
        () = shared.closed.cancelled() => return Asked::Gone,
        answer = shared.credentials.usage_limits(&lease) => answer,
    };
    shared.metrics.count_usage_ask(answer.is_ok());
    match answer {
        Ok(_) => Asked::Answered,
        Err(fault) => {
            let (fault, status) = (fault.kind, fault.status);
            tracing::debug!(account = short(&id), ?fault, status, "the account's usage is not known");
            Asked::Failed
        }
    }
}
