//! What a person asks of one account by name: its tokens, a refresh, its quota.

use bytes::Bytes;
use jiff::Timestamp;

use super::attempt::{error_of, no_account};
use super::{Gateway, closed};
use crate::credentials::RefreshError;
use crate::error::{Code, Error};
use crate::pool::Wanted;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::record::Token;
use crate::proto::translate::fault::PromptSize;

impl Gateway {
    /// The tokens of an account, from memory: the only call that shows secrets (N19). None: no such account.
    pub fn credential(&self, account_id: &str) -> Option<Token> {
        self.shared.credentials.credential(account_id)
    }

    /// A forced refresh (R38); the answer is when the new access token expires. Within 30 s after a success it adopts that
    /// one.
    ///
    /// # Errors
    /// [`Code::NotFound`] for an unknown account, [`Code::AccountUnauthorized`] when there is nothing to refresh with or it
    /// was refused, [`Code::Upstream`] and [`Code::UpstreamTimeout`] when it couldn't be asked for.
    pub async fn refresh(&self, account_id: &str) -> Result<Option<Timestamp>, Error> {
        self.is_open_for_calls()?;
        self.shared.credentials.refresh(account_id).await.map_err(|error| of_refresh(error).with_account(account_id))
    }

    /// The JSON of upstream's getUsageLimits, as it came (K62). It changes no health field, unless upstream says that the
    /// account is suspended.
    ///
    /// # Errors
    /// As a call pinned to the account ends (N5): [`Code::NotFound`], [`Code::AccountUnauthorized`] and the like.
    pub async fn usage_limits(&self, account_id: &str) -> Result<Bytes, Error> {
        self.is_open_for_calls()?;
        let shared = &self.shared;
        let wanted = Wanted { only: Some(account_id), ..Wanted::default() };
        let lease = shared.pool.select(&wanted).map_err(|none| no_account(&none).with_account(account_id))?;
        let mut answer = shared.credentials.usage_limits(&lease).await;
        if answer.as_ref().is_err_and(|fault| fault.kind == FaultKind::TokenRejected) && !lease.account().is_api_key() {
            answer = match shared.credentials.force_refresh(&lease).await {
                Ok(_) => shared.credentials.usage_limits(&lease).await,
                Err(fault) => Err(fault),
            };
        }
        answer.map_err(|fault| {
            if fault.kind == FaultKind::Suspended {
                shared.pool.eject(account_id, fault.kind.as_str().to_owned());
            }
            self.of_pinned(&fault).with_account(account_id)
        })
    }

    fn of_pinned(&self, fault: &Fault) -> Error {
        error_of(&self.shared, fault, PromptSize { estimate: 0, window: 0 }, true)
    }

    fn is_open_for_calls(&self) -> Result<(), Error> {
        if self.shared.closing.load(std::sync::atomic::Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }
}

fn of_refresh(error: RefreshError) -> Error {
    let (code, message) = match error {
        RefreshError::Gone => (Code::NotFound, "Unknown account"),
        RefreshError::NoCredential => (Code::AccountUnauthorized, "The account has no usable credential"),
        RefreshError::NotRefreshable => (Code::AccountUnauthorized, "The account's access token can't be refreshed"),
        RefreshError::Rejected => (Code::AccountUnauthorized, "The refresh token was rejected; the account is ejected"),
        RefreshError::Refused(_) => (Code::AccountUnauthorized, "The token refresh was refused"),
        RefreshError::Registration => {
            (Code::AccountUnauthorized, "The client registration is missing, expired or refused: sign in to Kiro again")
        }
        RefreshError::Network => (Code::Upstream, "The token refresh could not connect"),
        RefreshError::Pausing => (Code::Upstream, "The token refresh failed a moment ago; try again later"),
        RefreshError::Timeout | RefreshError::Locked => (Code::UpstreamTimeout, "The token refresh took too long"),
        RefreshError::Closed => (Code::Closed, "the gateway is closed"),
    };
    Error::new(code, message)
}
