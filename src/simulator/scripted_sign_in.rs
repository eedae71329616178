//! How a person signs in next: what a script says of it, and where it stands.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::fields::Fields;

/// What `POST /_sim/script` says of the next sign-ins with `device`, and where they stand.
#[derive(Clone, Debug)]
pub(super) struct SimSignIn {
    /// Answers of the next polls; without one the second poll succeeds.
    pub polls: VecDeque<String>,
    /// Polls so far.
    pub polled: u64,
    /// Where the Identity Center is.
    pub region: String,
    /// Whose tokens come out: `sim-acct-…`.
    pub account: Option<String>,
    /// The longer list of scopes is refused.
    pub basic_scopes: bool,
    /// Only the older name of the client is known.
    pub old_client: bool,
    /// In place of the usual address.
    pub uri: Option<String>,
    pub interval: f64,
    pub provider: Option<String>,
}

impl Default for SimSignIn {
    fn default() -> Self {
        Self {
            polls: VecDeque::new(),
            polled: 0,
            region: "us-east-1".to_owned(),
            account: None,
            basic_scopes: false,
            old_client: false,
            uri: None,
            interval: 1.0,
            provider: None,
        }
    }
}

const POLLS: [&str; 8] = ["pending", "slow_down", "expired", "denied", "500", "drop", "ok", "no-token"];

impl SimSignIn {
    /// `{"device":["pending","ok"],"region":"eu-west-2",…}`.
    pub fn read(polls: Vec<String>, fields: &mut Fields) -> Result<Self, String> {
        if let Some(unknown) = polls.iter().find(|poll| !POLLS.contains(&poll.as_str())) {
            return Err(format!("`script.device` holds {}, not `{unknown}`", POLLS.join(", ")));
        }
        let usual = Self::default();
        Ok(Self {
            polls: polls.into(),
            polled: 0,
            region: fields.take("region")?.unwrap_or(usual.region),
            account: fields.take("account")?,
            basic_scopes: fields.take("basic_scopes")?.unwrap_or(false),
            old_client: fields.take("old_client")?.unwrap_or(false),
            uri: fields.take("uri")?,
            interval: fields.take("interval")?.unwrap_or(usual.interval),
            provider: fields.take("provider")?,
        })
    }

    /// Where the Identity Center is.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whose tokens come out, unless a script says so.
    pub fn is_usually(&mut self, account: &str) {
        self.account.get_or_insert_with(|| account.to_owned());
    }

    /// At the portal, with this provider.
    pub fn signs_in(&mut self, provider: &str) {
        self.is_usually("sim-acct-social");
        self.provider.get_or_insert_with(|| provider.to_owned());
    }

    pub fn next(&mut self) -> String {
        self.polled += 1;
        let usual = || if self.polled < 2 { "pending".to_owned() } else { "ok".to_owned() };
        self.polls.pop_front().unwrap_or_else(usual)
    }
}

pub(super) const WAYS: [&str; 6] = ["google", "github", "builderid", "awsidc", "external_idp", "denied"];

/// What the next browser sign-in chooses, and where it stands.
#[derive(Clone, Debug, Default)]
pub(super) struct SimPortal {
    /// None: Google.
    pub way: Option<String>,
    /// Its start URL, for `awsidc`.
    pub start_url: Option<String>,
    /// Of the page that was opened last, and what its exchange must repeat.
    opened: Opened,
    codes: u64,
}

#[derive(Clone, Debug, Default)]
struct Opened {
    challenge: String,
    redirect_uri: String,
    code: String,
}

impl SimPortal {
    /// `{"portal":"github","account":"sim-acct-…"}`.
    pub fn read(way: String, fields: &mut Fields) -> Result<Self, String> {
        if !WAYS.contains(&way.as_str()) {
            return Err(format!("`script.portal` is one of {}, not `{way}`", WAYS.join(", ")));
        }
        Ok(Self { way: Some(way), start_url: fields.take("start_url")?, ..Self::default() })
    }

    pub fn open(&mut self, challenge: String, redirect_uri: String) -> String {
        self.codes += 1;
        let code = format!("sim-code-{}", self.codes);
        self.opened = Opened { challenge, redirect_uri, code: code.clone() };
        code
    }

    /// A code counts once, and only with the secret of its page.
    pub fn close(&mut self, code: &str, verifier: &str, redirect_uri: &str) -> bool {
        let Opened { challenge, redirect_uri: promised, code: issued } = std::mem::take(&mut self.opened);
        !issued.is_empty()
            && issued == code
            && challenge == URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()))
            && promised == redirect_uri
    }
}
