//! A person's questions about one account: its tokens, a refresh, its quota.

use bytes::Bytes;
use jiff::Timestamp;

use super::open::no_account;
use super::shared::Gateway;
use crate::credentials::RefreshError;
use crate::error::{Code, Error};
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::token::Refusal;
use crate::proto::record::Token;
use crate::proto::translate::fault::{PromptSize, api_error};

impl Gateway {
    /// The tokens of an account, from memory: the only call that shows secrets (N19). None: no such account, or it has none.
    pub fn credential(&self, account_id: &str) -> Option<Token> {
        let token = self.shared.credentials.credential(account_id)?;
        (token.access_token.is_some() || token.refresh_token.is_some() || token.kiro_api_key.is_some()).then_some(token)
    }

    /// A forced refresh (R38). Returns when the new access token expires; none for an API key, which has nothing to
    /// refresh. Within 30 s after a success it adopts that token.
    ///
    /// # Errors
    /// [`Code::NotFound`] for an unknown account, [`Code::AccountUnauthorized`] when there is nothing to refresh with or it
    /// was refused, [`Code::Upstream`] and [`Code::UpstreamTimeout`] when it couldn't be asked for or failed for now.
    pub async fn refresh(&self, account_id: &str) -> Result<Option<Timestamp>, Error> {
        self.open()?;
        let shared = &self.shared;
        let lease = shared.pool.visit(account_id).map_err(|none| no_account(&none).with_account(account_id))?;
        if lease.account().is_api_key() {
            return Ok(None);
        }
        drop(lease);
        shared.credentials.refresh(account_id).await.map_err(|error| of_refresh(error).with_account(account_id))
    }

    /// The JSON of upstream's getUsageLimits, as it came (K62). Refreshes an expired or rejected access token first. It
    /// changes no health field, unless upstream says that the account is suspended.
    ///
    /// # Errors
    /// As a call pinned to the account ends (N5): [`Code::NotFound`], [`Code::AccountUnauthorized`] and the like.
    pub async fn usage_limits(&self, account_id: &str) -> Result<Bytes, Error> {
        self.open()?;
        let shared = &self.shared;
        let lease = shared.pool.visit(account_id).map_err(|none| no_account(&none).with_account(account_id))?;
        let answer = shared.credentials.usage_for_person(&lease).await;
        answer.map_err(|fault| of_question(&fault, shared.pool.now()).with_account(account_id))
    }

    /// Whether an account's access token expires within `KIRO_REFRESH_THRESHOLD`; false when that isn't known.
    pub fn expires_soon(&self, account_id: &str) -> bool {
        self.shared.pool.expires_within(account_id, self.shared.config.refresh_threshold)
    }
}

fn of_question(fault: &Fault, now: Timestamp) -> Error {
    let code = Code::of_pinned_fault(fault.kind);
    let after = fault.retry_after.filter(|_| code == Code::RateLimited).map(|after| after.wait(now));
    let message = api_error(fault, PromptSize { estimate: 0, window: 0 }).message;
    Error::new(code, message).with_retry_after(after).with_fault(fault.kind)
}

fn of_refresh(error: RefreshError) -> Error {
    let (code, message) = match error {
        RefreshError::Gone => (Code::NotFound, "Unknown account"),
        RefreshError::NoCredential => (Code::AccountUnauthorized, "The account has no usable credential"),
        RefreshError::ReadOnly => {
            (Code::StoreUnavailable, "The store is read-only: a new token could not be saved; set KIRO_STATE_DIR")
        }
        RefreshError::NotRefreshable => (Code::AccountUnauthorized, "The account's access token can't be refreshed"),
        RefreshError::Rejected => (Code::AccountUnauthorized, "The refresh token was rejected; the account is ejected"),
        RefreshError::Refused(Refusal::Passing) => {
            (Code::Upstream, "The token refresh failed for now; try again later")
        }
        RefreshError::Refused(Refusal::ClientVersion) => {
            (Code::ClientRefused, "Kiro refuses this program's client version: update it, or set KIRO_CLIENT_VERSION")
        }
        RefreshError::Refused(_) => (Code::AccountUnauthorized, "The token refresh was refused"),
        RefreshError::Registration => {
            (Code::AccountUnauthorized, "The client registration is missing, expired or refused: sign in to Kiro again")
        }
        RefreshError::Unreachable => (Code::Upstream, "The token refresh could not connect"),
        RefreshError::Network => (Code::Upstream, "The token refresh broke off"),
        RefreshError::Pausing => (Code::Upstream, "The token refresh failed a moment ago; try again later"),
        RefreshError::Timeout => (Code::UpstreamTimeout, "The token refresh took too long"),
        RefreshError::StillLocked | RefreshError::Locked => {
            (Code::UpstreamTimeout, "Another process is still refreshing the token; try again later")
        }
        RefreshError::Closed => (Code::Closed, "the gateway is closed"),
    };
    Error::new(code, message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_retry_after_date_is_a_time_to_wait_too_k46() {
        let now = Timestamp::UNIX_EPOCH;
        let wait = |header| {
            of_question(&Fault::from_http(429, None, Some(header), b"{}", false, &Default::default()), now)
                .retry_after()
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Thu, 01 Jan 1970 00:00:09 GMT"), Some(Duration::from_secs(9)));
        assert_eq!(wait("soon"), None);
    }
}
