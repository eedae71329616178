//! The calls that concern an account and not a conversation: token refresh (K8, K9), usage (K62), profiles (K79),
//! models (K124).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use serde_json::Value;

use crate::policy::learned::{Lesson, Variant};
use crate::policy::marks::Way;
use crate::pool::AccountView;
use crate::proto::address::percent_encoded;
use crate::proto::kiro::catalogue::Catalogue;
use crate::proto::kiro::external;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::route::{Operation, Shape};
use crate::proto::kiro::token::{self, Grant, Refusal};
use crate::proto::record::{Method, Token};
use crate::proto::said::KnownSecrets;
use crate::secret::Secret;
use crate::upstream::{CallAuth, add_invocation_id, host_of};

use super::{CALL_WITHIN, CallError, Inner};

/// The whole time of a usage or profile call (K68).
pub(super) const ASK_WITHIN: Duration = Duration::from_secs(20);
/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 256 * 1024;
/// The same for a refresh (K82).
pub(crate) const MAX_REFRESH_ANSWER: usize = 64 * 1024;
/// Most bytes of a page of models, and most pages (K124).
const MAX_PAGE: usize = 1024 * 1024;
const MAX_PAGES: usize = 10;

/// Makes a call's request from its shape and address.
pub(super) type Make<'a> = dyn Fn(&reqwest::Client, Shape, &str) -> reqwest::RequestBuilder + Sync + 'a;

impl Inner {
    /// One refresh call (K52–K61), or that of an external account (K82).
    pub(super) async fn call(&self, view: &AccountView, token: &Token, region: &str) -> Result<Grant, CallError> {
        if token.method() == Method::External {
            self.call_provider(view, token).await
        } else {
            self.call_kiro(view, token, region).await
        }
    }

    /// A refresh at an organisation's own provider. When the provider refuses the scope, once more without it.
    async fn call_provider(&self, view: &AccountView, token: &Token) -> Result<Grant, CallError> {
        let url = view.refresh_url(view.refresh_region()).ok_or(CallError::Network)?;
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agent = self.upstream.identity().provider_user_agent();
        headers.insert(USER_AGENT, HeaderValue::from_str(&agent).map_err(|_| CallError::Network)?);
        let client = self.upstream.client(view.proxy_url().map(Secret::expose)).map_err(|_| CallError::Network)?;
        let mut with_scope = token.scopes.is_some();
        loop {
            let form = external::refresh_form(token, with_scope).ok_or(CallError::Network)?;
            let answer = answer_of(client.post(&url).headers(headers.clone()).body(form)).await?;
            let refused = match external::read_answer(answer.status, &answer.body, self.pool.now()) {
                Ok(grant) => return Ok(grant),
                Err(refused) => refused,
            };
            if refused.without_scope && std::mem::take(&mut with_scope) {
                continue;
            }
            refresh_refused(view, answer.status, refused.refusal);
            return Err(CallError::Refused(refused.refusal, refused.code));
        }
    }

    async fn call_kiro(&self, view: &AccountView, token: &Token, region: &str) -> Result<Grant, CallError> {
        let url = view.refresh_url(region).ok_or(CallError::Network)?;
        let body = token::request_body(token).ok_or(CallError::Network)?;
        let identity = self.upstream.identity();
        let method = token.method();
        let mut headers = HeaderMap::with_capacity(5);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agents = match method {
            Method::Idc => identity.oidc_headers().to_vec(),
            Method::Social | Method::External | Method::ApiKey => {
                vec![(USER_AGENT, identity.social_user_agent(view.machine_id()))]
            }
        };
        for (name, agent) in agents {
            headers.insert(name, HeaderValue::from_str(&agent).map_err(|_| CallError::Network)?);
        }
        let client = self.upstream.client(view.proxy_url().map(Secret::expose)).map_err(|_| CallError::Network)?;
        let answer = answer_of(client.post(&url).headers(headers).body(body)).await?;
        let error_type = answer.header("x-amzn-errortype");
        let read = token::read_answer(method, answer.status, error_type, &answer.body);
        let gate = match &read {
            Ok(_) => Ok(()),
            Err(_) => {
                Err(&Fault::from_http(answer.status, error_type, None, &answer.body, false, &KnownSecrets::default()))
            }
        };
        self.upstream.gate().heard("refresh", host_of(&url), gate);
        if let Err(refusal) = read {
            refresh_refused(view, answer.status, refusal);
        }
        read.map_err(|refusal| CallError::Refused(refusal, token::told_region(&answer.body)))
    }

    /// One page of models. POST first; when a page is refused as an unknown call, GET from then on.
    pub(super) async fn ask_models(
        &self,
        view: &AccountView,
        bearer: &Secret,
        shape: Shape,
        variant: &Variant,
    ) -> Result<Catalogue, Fault> {
        let region = view.api_region(variant);
        let root = view.url(shape, Operation::Models, region);
        let way = Way { shape, host: host_of(&root), region };
        let heard = |outcome: Result<(), &Fault>| {
            self.upstream.heard(Operation::Models, &way, view.short_id(), outcome, self.pool.now());
        };

        let caller =
            CallAuth { token: bearer, token_type: view.token_type(), machine_id: view.machine_id(), profile_arn: None };
        let headers = self.upstream.identity().headers(shape, Operation::Models, &caller)?;
        let client = self.upstream.client(view.proxy_url().map(Secret::expose))?;
        let arn = variant.arn().filter(|arn| !arn.is_empty());
        let path = match shape {
            Shape::Q => "ListAvailableModels",
            Shape::Runtime => "List-Available-Models",
        };
        let mut catalogue = Catalogue::default();
        let (mut next, mut by_get) = (None::<String>, false);
        for _ in 0..MAX_PAGES {
            let page = loop {
                let mut headers = headers.clone();
                add_invocation_id(&mut headers);
                let request = if by_get {
                    headers.remove(CONTENT_TYPE);
                    headers.remove("x-amz-target");
                    let mut url = format!("{root}{path}?origin=AI_EDITOR&maxResults=50");
                    for (name, value) in [("profileArn", arn), ("nextToken", next.as_deref())] {
                        if let Some(value) = value {
                            url.push_str(&format!("&{name}={}", percent_encoded(value)));
                        }
                    }
                    client.get(url)
                } else {
                    let mut body = serde_json::Map::new();
                    body.insert("origin".into(), "AI_EDITOR".into());
                    body.extend(arn.map(|arn| ("profileArn".into(), arn.into())));
                    body.insert("maxResults".into(), 50.into());
                    body.extend(next.as_deref().map(|next| ("nextToken".into(), next.into())));
                    client.post(&root).body(Value::from(body).to_string())
                };
                let answer = match read_up_to(request.headers(headers), MAX_PAGE).await {
                    Ok(answer) => answer,
                    Err(error) if error.is_connect() && !error.is_timeout() && view.proxy_url().is_none() => {
                        let fault = Fault::unreachable("could not connect");
                        heard(Err(&fault));
                        return Err(fault);
                    }
                    Err(_) => return Err(Fault::network("the call broke off")),
                };
                if answer.status == 200 {
                    heard(Ok(()));
                    break answer.body;
                }
                let fault = answer.fault(view, bearer);
                if !by_get && (fault.kind == FaultKind::Endpoint || matches!(answer.status, 404 | 405)) {
                    by_get = true;
                    continue;
                }
                heard(Err(&fault));
                return Err(fault);
            };
            next = catalogue.add_page(&page).map_err(|_| Fault::protocol("models: not a JSON object"))?;
            if next.is_none() {
                break;
            }
        }
        Ok(catalogue)
    }

    /// A call in the preferred shape. In the next one when the first has no host here, or its host refuses the call or
    /// our client version.
    pub(super) async fn ask_somehow(
        &self,
        view: &mut Arc<AccountView>,
        bearer: &Secret,
        call: Operation,
        region: &str,
        request: &Make<'_>,
    ) -> Result<Bytes, Fault> {
        let mut answer = Err(Fault::unreachable("no shape to ask in"));
        for shape in view.shapes(region).to_vec() {
            answer = self.ask(view, bearer, (shape, call, region), request).await;
            let is_unreachable = |answer: &Result<Bytes, Fault>| {
                answer.as_ref().is_err_and(|fault| fault.kind == FaultKind::Unreachable)
            };
            if is_unreachable(&answer) && view.has_other_host(shape, region) {
                self.pool.learn(view.id(), Lesson::FipsHost);
                if let Some(renewed) = self.pool.account(view.id()) {
                    *view = renewed;
                }
                answer = self.ask(view, bearer, (shape, call, region), request).await;
            }
            if !answer.as_ref().is_err_and(is_of_the_shape) {
                break;
            }
        }
        answer
    }

    /// A call with the headers of K113.
    async fn ask(
        &self,
        view: &AccountView,
        bearer: &Secret,
        (shape, call, region): (Shape, Operation, &str),
        request: &Make<'_>,
    ) -> Result<Bytes, Fault> {
        let caller =
            CallAuth { token: bearer, token_type: view.token_type(), machine_id: view.machine_id(), profile_arn: None };
        let mut headers = self.upstream.identity().headers(shape, call, &caller)?;
        add_invocation_id(&mut headers);
        let client = self.upstream.client(view.proxy_url().map(Secret::expose))?;
        let url = view.url(shape, call, region);
        let way = Way { shape, host: host_of(&url), region };
        let heard = |outcome: Result<(), &Fault>| {
            self.upstream.heard(call, &way, view.short_id(), outcome, self.pool.now());
        };
        let own_proxy = view.proxy_url().is_some();
        let request = request(&client, shape, &url).headers(headers);
        let answer = match tokio::time::timeout(ASK_WITHIN, read(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.is_connect() => {
                let fault = Fault::unreachable(format!("{}: could not connect", way.host));
                // A failure of the account's own proxy says nothing about the host.
                if !own_proxy {
                    heard(Err(&fault));
                }
                return Err(fault);
            }
            Ok(Err(error)) if error.is_timeout() => return Err(Fault::timeout("the answer took too long")),
            Ok(Err(_)) => return Err(Fault::network("the call broke off")),
            Err(_) => return Err(Fault::timeout("no answer within 20 s")),
        };
        if answer.status == 200 {
            heard(Ok(()));
            return Ok(answer.body);
        }
        let fault = answer.fault(view, bearer);
        heard(Err(&fault));
        Err(fault)
    }
}

/// Whether the other shape may answer: it has another host, and a version gate may be open there (K105, K119).
pub(super) fn is_of_the_shape(fault: &Fault) -> bool {
    matches!(fault.kind, FaultKind::Unreachable | FaultKind::Endpoint | FaultKind::ClientVersion)
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    fn fault(&self, view: &AccountView, bearer: &Secret) -> Fault {
        let (kind, retry_after) = (self.header("x-amzn-errortype"), self.header("retry-after"));
        let known = KnownSecrets::of_call(bearer, view.machine_id(), view.id());
        Fault::from_http(self.status, kind, retry_after, &self.body, view.is_api_key(), &known)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

fn refresh_refused(view: &AccountView, status: u16, refusal: Refusal) {
    tracing::debug!(account = view.short_id(), status, kind = refusal.as_str(), "refresh refused");
}

/// The answer to a refresh.
async fn answer_of(request: reqwest::RequestBuilder) -> Result<Answer, CallError> {
    match tokio::time::timeout(CALL_WITHIN, read_up_to(request, MAX_REFRESH_ANSWER)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.is_connect() => Err(CallError::Unreachable),
        Ok(Err(error)) if error.is_timeout() => Err(CallError::Timeout),
        Ok(Err(_)) => Err(CallError::Network),
        Err(_) => Err(CallError::Timeout),
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    read_up_to(request, MAX_ANSWER).await
}

pub(crate) async fn read_up_to(request: reqwest::RequestBuilder, limit: usize) -> Result<Answer, reqwest::Error> {
    let mut response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() >= limit {
            break;
        }
    }
    Ok(Answer { status, headers, body: body.freeze() })
}
