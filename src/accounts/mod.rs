//! How accounts come into the store: a person signs in ([`sign_in`], [`portal`]), or another program's sessions are taken
//! over ([`source`], [`import`]).
//!
//! The command line and the Node.js addon are built on it: they show its results and decide nothing.

pub mod import;
pub mod keep;
pub mod portal;
pub mod sign_in;
pub mod source;

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;

use crate::config::Config;
use crate::credentials::{Credentials, LookUp};
use crate::pool::{Pool, Wanted};
use crate::program::said;
use crate::proto::kiro::profile::{KindEvidence, kind_of};
use crate::proto::record::{Method, Token};
use crate::store::Store;
use crate::upstream::Upstream;

/// The parts that bring accounts in.
#[derive(Clone, Copy)]
pub struct Intake<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The accounts go here.
    pub store: &'a Store,
    /// Sees them after a reload.
    pub pool: &'a Pool,
    /// Asks Kiro about them.
    pub credentials: &'a Credentials,
    /// The way to the sign-in's hosts.
    pub upstream: &'a Arc<Upstream>,
}

/// The state of an account's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileSource {
    /// The record names it.
    Known,
    /// An API key needs none; a Builder ID, a Google and a GitHub account use Kiro's fixed one.
    Unneeded,
    /// Upstream named it, and it is in the token record.
    Found,
    /// Upstream named none.
    None,
    /// Not asked, because the access token has expired or the caller didn't want it; or asked without an answer.
    Skipped,
}

impl ProfileSource {
    /// The state that the records alone show.
    pub fn of(token: &Token) -> Self {
        match (token.method(), &token.profile_arn) {
            (Method::ApiKey, _) => Self::Unneeded,
            (_, Some(_)) => Self::Known,
            (_, None) if !kind_of(token, false, KindEvidence::Nothing).has_profiles() => Self::Unneeded,
            (_, None) => Self::Skipped,
        }
    }

    /// What a person should know: nothing where the account can serve.
    pub fn advice(self) -> Option<Cow<'static, str>> {
        match self {
            Self::Known | Self::Unneeded | Self::Found => None,
            Self::None => Some("no profile found: the organisation's administrator must add this user to one".into()),
            Self::Skipped => Some(said("profile not looked up yet: `kiro-server accounts check` does it")),
        }
    }
}

impl Intake<'_> {
    /// Asks Kiro once for the profile of an account that needs one (K79). It never refreshes: a refresh would log out
    /// the program that shares the session.
    pub async fn look_up_profile(&self, id: &str, token: &Token, now: Timestamp) -> ProfileSource {
        let profile = ProfileSource::of(token);
        let soon = now.as_second() + 60;
        let live = token.access_token.is_some() && token.expires_at.is_some_and(|end| end.as_second() > soon);
        if profile != ProfileSource::Skipped || !live || self.pool.reload().await.is_err() {
            return profile;
        }
        let Ok(mut lease) = self.pool.select(&Wanted { only: Some(id), ..Wanted::default() }) else { return profile };
        match self.credentials.look_up_profiles(&mut lease).await {
            LookUp::Found => ProfileSource::Found,
            // The background task may have asked by now.
            LookUp::NotAsked if lease.account().has_own_profile() => ProfileSource::Found,
            LookUp::BuilderId | LookUp::NotAsked => ProfileSource::Unneeded,
            LookUp::Nothing => ProfileSource::None,
            LookUp::Unanswered => ProfileSource::Skipped,
        }
    }
}
