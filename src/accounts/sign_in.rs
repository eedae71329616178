//! The calls of a sign-in. With a device code, a person opens an address on any machine while this module waits
//! (K93–K96). It also exchanges the code that [`portal`](super::portal) brings back (K97, K98).
//!
//! # Cancellation
//! Dropping [`SignInClient::begin`] or [`Begun::finish`] ends the sign-in: the code expires by itself, and nothing was
//! kept.

use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use crate::config::Config;
use crate::credentials::{CALL_WITHIN, MAX_REFRESH_ANSWER, read_up_to};
use crate::proto::address::{endpoint, origin};
use crate::proto::kiro::client_identity::DEVICE_AGENT;
use crate::proto::kiro::external::Hosts;
use crate::proto::kiro::portal::{self, Endpoints, Organisation};
use crate::proto::kiro::sign_in::{
    self, BASIC_SCOPES, DeviceCode, HOME_REGION, IDENTITY_CENTER_REGIONS, Poll, Registration, SCOPES, SOCIAL_CLIENTS,
    SignIn, SignInError, Tokens,
};
use crate::upstream::{Identity, Upstream};

/// `slow_down` adds this to the interval, for good (K95).
const SLOWER: Duration = Duration::from_secs(5);
/// The longest pause after a host that fails (K95).
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Refusals of Kiro's own host in a row that end the sign-in (K96).
const MOST_REFUSALS: u32 = 3;

/// Makes the calls of a sign-in, through `KIRO_PROXY_URL`.
pub struct SignInClient {
    http: reqwest::Client,
    identity: Identity,
    /// The address at which IdC accounts refresh, with `{region}` in it: sign-in uses the same host.
    oidc: String,
    social: String,
}

/// A code that waits for a person.
pub struct Begun {
    client: SignInClient,
    who: SignIn,
    /// Shown to the person.
    pub code: DeviceCode,
    way: DeviceFlow,
}

enum DeviceFlow {
    Aws { registration: Registration, region: String },
    Social { client: &'static str },
}

/// A sign-in that is done.
pub struct SignedIn {
    /// The token record (R88).
    pub record: Vec<u8>,
}

struct Reply {
    status: u16,
    error_type: Option<String>,
    body: bytes::Bytes,
}

impl SignInClient {
    /// # Errors
    /// The proxy's URL can't be used.
    pub fn new(upstream: &Upstream, config: &Config) -> Result<Self, SignInError> {
        let http = upstream.client(None).map_err(|fault| SignInError::new("proxy", fault.message.as_str()))?;
        let social = endpoint(&config.social_refresh_url, HOME_REGION).unwrap_or_default();
        Ok(Self {
            http,
            identity: upstream.identity().clone(),
            oidc: config.idc_refresh_url.clone(),
            social: origin(&social).to_owned(),
        })
    }

    /// Asks for a code.
    ///
    /// # Errors
    /// The host gave no code; the error says why.
    pub async fn begin(self, who: SignIn) -> Result<Begun, SignInError> {
        let (code, way) = match &who {
            SignIn::BuilderId => self.begin_aws(sign_in::BUILDER_ID_START, &[HOME_REGION]).await?,
            SignIn::IdentityCenter { start_url, region: Some(region) } => self.begin_aws(start_url, &[region]).await?,
            SignIn::IdentityCenter { start_url, region: None } => {
                self.begin_aws(start_url, &IDENTITY_CENTER_REGIONS).await?
            }
            SignIn::Google | SignIn::Github => self.begin_social(who.provider().unwrap_or_default()).await?,
        };
        Ok(Begun { client: self, who, code, way })
    }

    /// Asks in the first of these regions that knows the start URL (K94).
    async fn begin_aws(&self, start_url: &str, regions: &[&str]) -> Result<(DeviceCode, DeviceFlow), SignInError> {
        let mut error = SignInError::unreadable();
        for region in regions {
            match self.begin_in(start_url, region).await {
                Ok((code, registration)) => {
                    return Ok((code, DeviceFlow::Aws { registration, region: (*region).to_owned() }));
                }
                // "Not here": the next region may know it.
                Err((refused, true)) => error = refused,
                Err((failed, false)) => return Err(failed),
            }
        }
        Err(match regions {
            [_] => error,
            _ => SignInError::new(
                "not_found",
                "no region knows this start URL: check it, or name the region with --region",
            ),
        })
    }

    /// The flag of an error: the host answered, and refused.
    async fn begin_in(&self, start_url: &str, region: &str) -> Result<(DeviceCode, Registration), (SignInError, bool)> {
        let registration = match self.register(region, &SCOPES).await {
            Err((refused, true)) if refused.word == "invalid_scope" => {
                self.register(region, &SCOPES[..BASIC_SCOPES]).await?
            }
            registered => registered?,
        };
        let reply = self.oidc(region, "/device_authorization", &sign_in::device_body(&registration, start_url)).await;
        let reply = reply.map_err(|error| (error, false))?;
        let code = sign_in::read_device(reply.status, reply.error_type.as_deref(), &reply.body);
        code.map(|code| (code, registration)).map_err(|error| (error, (400..500).contains(&reply.status)))
    }

    async fn register(&self, region: &str, scopes: &[&str]) -> Result<Registration, (SignInError, bool)> {
        let reply = self.oidc(region, "/client/register", &sign_in::register_body(scopes)).await;
        let reply = reply.map_err(|error| (error, false))?;
        let registration = sign_in::read_registration(reply.status, reply.error_type.as_deref(), &reply.body);
        registration.map_err(|error| (error, (400..500).contains(&reply.status)))
    }

    async fn begin_social(&self, provider: &str) -> Result<(DeviceCode, DeviceFlow), SignInError> {
        let mut error = SignInError::unreadable();
        for client in SOCIAL_CLIENTS {
            let body = sign_in::social_device_body(client, provider);
            let reply = self.social("/oauth/device/authorization", &body).await?;
            match sign_in::read_social_device(reply.status, &reply.body) {
                Ok(code) => return Ok((code, DeviceFlow::Social { client })),
                Err(refused) if reply.status == 400 => error = refused,
                Err(failed) => return Err(failed),
            }
        }
        Err(error)
    }

    /// The portal's code of a Google or GitHub user becomes a login (K97).
    pub(super) async fn social_exchange(self, who: &SignIn, body: &Value) -> Result<SignedIn, SignInError> {
        let reply = self.social("/oauth/token", body).await?;
        let tokens = sign_in::read_social_exchange(reply.status, &reply.body)?;
        Ok(SignedIn { record: sign_in::record(who, &tokens, None, HOME_REGION, Timestamp::now()) })
    }

    /// Reads the configuration of an organisation's provider (K98).
    pub(super) async fn discover(&self, url: &str, hosts: &Hosts) -> Result<Endpoints, SignInError> {
        let request = self.http.get(url).header(ACCEPT, "application/json");
        let reply = send(request.header(USER_AGENT, self.identity.provider_user_agent()), url).await?;
        portal::read_discovery(reply.status, &reply.body, hosts)
    }

    /// The code of an organisation's provider becomes a login (K98).
    pub(super) async fn organisation_exchange(
        self,
        organisation: &Organisation,
        endpoints: &Endpoints,
        form: String,
    ) -> Result<SignedIn, SignInError> {
        let request = self.http.post(&endpoints.token).header(ACCEPT, "application/json").body(form);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let reply = send(request.header(USER_AGENT, self.identity.provider_user_agent()), &endpoints.token).await?;
        let now = Timestamp::now();
        let grant = portal::read_exchange(reply.status, &reply.body, now)?;
        Ok(SignedIn { record: portal::organisation_record(organisation, &endpoints.token, grant, now) })
    }

    /// A call of AWS's OIDC host, with the headers of K100.
    async fn oidc(&self, region: &str, path: &str, body: &Value) -> Result<Reply, SignInError> {
        let address = endpoint(&self.oidc, region).unwrap_or_default();
        let headers = self.identity.oidc_headers();
        self.post(&format!("{}{path}", origin(&address)), headers, body).await
    }

    /// A call of Kiro's own host.
    async fn social(&self, path: &str, body: &Value) -> Result<Reply, SignInError> {
        self.post(&format!("{}{path}", self.social), [(USER_AGENT, DEVICE_AGENT.to_owned())], body).await
    }

    async fn post(
        &self,
        url: &str,
        more: impl IntoIterator<Item = (HeaderName, String)>,
        body: &Value,
    ) -> Result<Reply, SignInError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        for (name, value) in more {
            let value = HeaderValue::from_str(&value).map_err(|_| SignInError::unreadable())?;
            headers.insert(name, value);
        }
        send(self.http.post(url).headers(headers).body(body.to_string()), url).await
    }
}

async fn send(request: reqwest::RequestBuilder, url: &str) -> Result<Reply, SignInError> {
    let host = origin(url).split_once("://").map_or(url, |(_, host)| host);
    let unanswered = |what: &str| SignInError::new("network", format!("{host}: {what}"));
    match tokio::time::timeout(CALL_WITHIN, read_up_to(request, MAX_REFRESH_ANSWER)).await {
        Ok(Ok(answer)) => Ok(Reply {
            status: answer.status,
            error_type: answer.header("x-amzn-errortype").map(str::to_owned),
            body: answer.body,
        }),
        Ok(Err(error)) if error.is_connect() => Err(unanswered("could not connect")),
        Ok(Err(_)) => Err(unanswered("the call broke off")),
        Err(_) => Err(unanswered("no answer within 15 s")),
    }
}

impl Begun {
    /// Who signs in, for people.
    pub fn title(&self) -> &'static str {
        self.who.title()
    }

    /// Waits until the person is done, for at most `within` and the life of the code. A poll under way always runs to
    /// its end: its answer may be the only one that has the tokens.
    ///
    /// # Errors
    /// The sign-in was refused or came too late.
    pub async fn finish(self, within: Duration) -> Result<SignedIn, SignInError> {
        let tokens = self.poll(within.min(self.code.lifetime)).await.map_err(|error| {
            let is_early = within < self.code.lifetime && error == SignInError::expired();
            if is_early { SignInError::late() } else { error }
        })?;
        let (registration, region) = match &self.way {
            DeviceFlow::Aws { registration, region } => (Some(registration), region.as_str()),
            DeviceFlow::Social { .. } => (None, HOME_REGION),
        };
        Ok(SignedIn { record: sign_in::record(&self.who, &tokens, registration, region, Timestamp::now()) })
    }

    async fn poll(&self, within: Duration) -> Result<Tokens, SignInError> {
        let end = Instant::now() + within;
        let (mut interval, mut pause, mut refusals) = (self.code.interval, self.code.interval, 0);
        loop {
            tokio::time::sleep_until((Instant::now() + pause).min(end)).await;
            if Instant::now() >= end {
                return Err(SignInError::expired());
            }
            let polled = self.ask().await;
            refusals = if matches!(polled, Poll::Refused(_)) { refusals + 1 } else { 0 };
            pause = match polled {
                Poll::Done(tokens) => return Ok(tokens),
                Poll::Failed(error) => return Err(error),
                Poll::Refused(status) if refusals == MOST_REFUSALS => {
                    return Err(SignInError::refused(format!("status_{status}")));
                }
                Poll::Pending | Poll::Refused(_) => interval,
                Poll::SlowDown => {
                    interval += SLOWER;
                    interval
                }
                Poll::Passing => (2 * pause).min(LONGEST_PAUSE).max(interval),
            };
        }
    }

    async fn ask(&self) -> Poll {
        let (reply, is_social) = match &self.way {
            DeviceFlow::Aws { registration, region } => {
                let body = sign_in::poll_body(registration, &self.code);
                (self.client.oidc(region, "/token", &body).await, false)
            }
            DeviceFlow::Social { client } => {
                let body = sign_in::social_poll_body(client, &self.code);
                (self.client.social("/oauth/device/poll", &body).await, true)
            }
        };
        // Nothing came: treated as a failing host.
        let Ok(Reply { status, error_type, body }) = reply else { return Poll::Passing };
        if is_social {
            sign_in::read_social_poll(status, &body)
        } else {
            sign_in::read_poll(status, error_type.as_deref(), &body)
        }
    }
}
