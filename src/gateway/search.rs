//! Searches of the web for answers (K132, K135, K136).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::HeaderValue;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::outside::now;
use super::shapes::options;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::credentials::calls::read_up_to;
use crate::metrics::Metrics;
use crate::policy::learned::{Learned, Lesson};
use crate::policy::marks::Way;
use crate::pool::{AccountId, AccountView, Fit, Lease, Pool, Wanted};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::route::{Operation, Shape};
use crate::proto::kiro::search::{MAX_ANSWER, OLDER_TARGET, Step, body, call_id, params, read};
use crate::proto::messages::request::SearchTool;
use crate::proto::messages::search::{Hit, SearchCode, SearchOutcome};
use crate::proto::said::KnownSecrets;
use crate::proto::translate::search::filter;
use crate::secret::Secret;
use crate::upstream::{CallAuth, Upstream, add_invocation_id, host_of};

/// Searches of this process at a time (K136).
const MOST_AT_ONCE: usize = 64;
/// Hosts of which the target is remembered.
const MOST_HOSTS: usize = 64;

/// The searches of a gateway.
pub(super) struct Searches {
    pool: Pool,
    credentials: Credentials,
    upstream: Arc<Upstream>,
    /// `KIRO_WEB_SEARCH_TIMEOUT`.
    timeout: Duration,
    places: Semaphore,
    /// Hosts that know only the older target (K132).
    // Bound: hosts that take web searches in their older form only | MOST_HOSTS | a further one isn't noted
    older: Mutex<Vec<String>>,
}

impl Searches {
    pub(super) fn new(config: &Config, pool: Pool, credentials: Credentials, upstream: Arc<Upstream>) -> Self {
        Self {
            pool,
            credentials,
            upstream,
            timeout: config.web_search_timeout,
            places: Semaphore::new(MOST_AT_ONCE),
            older: Mutex::default(),
        }
    }

    /// Searches the web for a query of [`query_of_input`](crate::proto::translate::search::query_of_input): on the account
    /// that answers the message, or on another one where that account can't search, unless the request is `pinned` to it
    /// (N5). The results are those that the client's `tool` allows. It takes at most `KIRO_WEB_SEARCH_TIMEOUT`, and counts
    /// itself in `metrics`. An account's health stays as it is, but for a token that is refreshed and a suspension (K135).
    ///
    /// Dropping the future closes the connection.
    pub(super) async fn search(
        &self,
        metrics: &Metrics,
        account: &AccountId,
        query: &str,
        tool: &SearchTool,
        pinned: bool,
    ) -> SearchOutcome {
        let began = now();
        let whole = async {
            let _place = self.places.acquire().await.map_err(|_| SearchCode::Unavailable)?;
            Searching { searches: self, query, pinned, tried: Vec::new() }.run(account).await
        };
        let outcome = match self.timeout.is_zero() {
            true => whole.await,
            false => tokio::time::timeout(self.timeout, whole).await.unwrap_or(Err(SearchCode::Unavailable)),
        };
        let word = outcome.as_ref().map_or_else(|code| code.as_str(), |_| "ok");
        metrics.count_search(word, began.elapsed());
        outcome.map(|mut hits| {
            filter(&mut hits, tool);
            hits
        })
    }

    fn is_older(&self, host: &str) -> bool {
        self.older.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|older| older == host)
    }

    fn answers_older(&self, host: &str) {
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        if older.len() < MOST_HOSTS && !older.iter().any(|older| older == host) {
            older.push(host.to_owned());
        }
    }
}

/// One search over its calls.
struct Searching<'s> {
    searches: &'s Searches,
    query: &'s str,
    pinned: bool,
    tried: Vec<AccountId>,
}

impl Searching<'_> {
    async fn run(mut self, account: &AccountId) -> SearchOutcome {
        let Some(mut lease) = self.first(account) else { return Err(SearchCode::Unavailable) };
        let (mut repeated, mut refreshed, mut refresh) = (false, false, false);
        loop {
            let (step, fault) = match self.on_account(&lease, refresh).await {
                Ok(hits) => return Ok(hits),
                Err(failed) => failed,
            };
            tracing::debug!(
                account = lease.account().short_id(),
                fault = fault.as_ref().map(|fault| fault.kind.as_str()),
                status = fault.as_ref().and_then(|fault| fault.status),
                "a web search failed"
            );
            refresh = false;
            match step {
                Step::Again if !repeated => repeated = true,
                Step::Refresh if !refreshed && !lease.account().is_api_key() => (refreshed, refresh) = (true, true),
                Step::Give(_) | Step::Again => return Err(step.code()),
                Step::OtherAccount { .. } | Step::Refresh | Step::Suspended => {
                    if let Step::OtherAccount { rests: true, .. } = step {
                        lease.learn(Lesson::NoSearch);
                    }
                    if let (Step::Suspended, Some(fault)) = (step, &fault) {
                        lease.suspended(fault);
                    }
                    let braked = step.code() == SearchCode::TooManyRequests && self.searches.pool.brake().is_some();
                    // Another account is asked once.
                    let other = (self.tried.len() == 1 && !braked).then(|| self.other()).flatten();
                    lease = other.ok_or(step.code())?;
                    (repeated, refreshed) = (false, false);
                }
            }
        }
    }

    /// The account that answers the message. Another one if it has no search for a while, or lacks a profile while
    /// another one has one.
    fn first(&mut self, account: &AccountId) -> Option<Lease> {
        let own = self.searches.pool.look_in(account);
        let rank = |lease: &Lease| lease.learned(|learned, now| unfit(lease.account(), learned, now));
        let unfit = own.as_ref().map_or(RESTS, rank);
        let instead = (unfit > 0).then(|| self.other()).flatten().filter(|other| rank(other) < unfit);
        let chosen = instead.or(own).filter(|lease| self.pinned || rank(lease) < RESTS)?;
        self.tried = vec![chosen.account().id().clone()];
        Some(chosen)
    }

    /// An account that wasn't asked yet and may search. It gives up no place: a message counts once (TS33).
    fn other(&mut self) -> Option<Lease> {
        if self.pinned {
            return None;
        }
        let pool = &self.searches.pool;
        let fit = Fit::new(unfit);
        let id = pool.candidate(&Wanted { exclude: &self.tried, fit: Some(&fit), ..Wanted::default() })?;
        let lease = pool.look_in(&id)?;
        let may = lease.learned(|learned, now| !learned.has_no_search(now));
        self.tried.push(id);
        may.then_some(lease)
    }

    /// The search on one account: in the preferred shape, and in the other one when the first has no such call.
    async fn on_account(&self, lease: &Lease, refresh: bool) -> Result<Vec<Hit>, (Step, Option<Fault>)> {
        let credentials = &self.searches.credentials;
        let token = match refresh {
            true => credentials.force_refresh(lease).await,
            false => credentials.access_token(lease).await,
        };
        let no_token = |fault| (Step::OtherAccount { rests: false, code: SearchCode::Unavailable }, Some(fault));
        let token = token.map_err(no_token)?;
        let options = options(lease);
        let mut left: Vec<_> = options
            .iter()
            .map(|option| Way { shape: option.shape, host: host_of(&option.url), region: option.region })
            .collect();
        let refused = |shape| options.iter().any(|option| option.shape == shape && option.refused);
        // Without a profile to send there is no call.
        let mut failed = (Step::OtherAccount { rests: true, code: SearchCode::Unavailable }, None);
        while let Some(place) = self.searches.upstream.choose(&left, refused, self.searches.pool.now()) {
            let way = left.remove(place);
            let arn = options.iter().find(|option| option.shape == way.shape).and_then(|option| option.variant.arn());
            match self.in_shape(lease, &token, &way, arn).await {
                Ok(answer) => return read(&answer).map_err(|no| (Step::after_answer(no), None)),
                Err(fault) => {
                    let is_of_the_shape =
                        matches!(fault.kind, FaultKind::Unreachable | FaultKind::Endpoint | FaultKind::ClientVersion);
                    failed = (Step::after(&fault), Some(fault));
                    if !is_of_the_shape {
                        break;
                    }
                }
            }
        }
        Err(failed)
    }

    /// The call in one shape, and with the older target where the host doesn't know the other (K132).
    async fn in_shape(
        &self,
        lease: &Lease,
        token: &Secret,
        way: &Way<'_>,
        arn: Option<&str>,
    ) -> Result<Vec<u8>, Fault> {
        let searches = self.searches;
        let is_older = way.shape == Shape::Runtime && searches.is_older(way.host);
        let answer = self.call(lease, token, way, arn, is_older).await;
        let is_unknown = |fault: &Fault| fault.kind == FaultKind::Endpoint || matches!(fault.status, Some(404 | 405));
        if is_older || way.shape == Shape::Q || !answer.as_ref().is_err_and(is_unknown) {
            return answer;
        }
        let answer = self.call(lease, token, way, arn, true).await;
        if answer.is_ok() {
            searches.answers_older(way.host);
        }
        answer
    }

    async fn call(
        &self,
        lease: &Lease,
        token: &Secret,
        way: &Way<'_>,
        arn: Option<&str>,
        older: bool,
    ) -> Result<Vec<u8>, Fault> {
        let (view, upstream) = (lease.account(), &self.searches.upstream);
        let arn = arn.filter(|arn| !arn.is_empty());
        let caller = CallAuth { token, token_type: view.token_type(), machine_id: view.machine_id(), profile_arn: arn };
        let mut headers = upstream.identity().headers(way.shape, Operation::Mcp, &caller)?;
        if older {
            headers.insert("x-amz-target", HeaderValue::from_static(OLDER_TARGET));
        }
        add_invocation_id(&mut headers);
        let mut random = fastrand::Rng::new();
        let id = call_id(|| random.alphanumeric(), self.searches.pool.now());
        let body = body(&id, "tools/call", &params(self.query), arn.filter(|_| way.shape == Shape::Runtime));
        let client = upstream.client(view.proxy_url().map(Secret::expose))?;
        let url = view.url(way.shape, Operation::Mcp, way.region);
        let known = KnownSecrets::of_call(token, view.machine_id(), view.id());
        let answer = read_up_to(client.post(url).headers(headers).body(body), MAX_ANSWER).await;
        let answer = match answer {
            Ok(answer) if answer.status == 200 => Ok(answer.body.to_vec()),
            Ok(answer) => {
                let (kind, after) = (answer.header("x-amzn-errortype"), answer.header("retry-after"));
                Err(Fault::from_http(answer.status, kind, after, &answer.body, view.is_api_key(), &known))
            }
            Err(error) if error.is_connect() && !error.is_timeout() => Err(Fault::unreachable("could not connect")),
            Err(error) if error.is_timeout() => Err(Fault::timeout("the search took too long")),
            Err(_) => Err(Fault::network("the search broke off")),
        };
        // Whether a host knows this call says nothing about conversations on it.
        let heard = answer.as_ref().map(|_| ());
        let is_of_the_host = |fault: &Fault| match fault.kind {
            FaultKind::ClientVersion => true,
            FaultKind::Unreachable => view.proxy_url().is_none(),
            _ => false,
        };
        if heard.err().is_none_or(is_of_the_host) {
            upstream.heard(Operation::Mcp, way, view.short_id(), heard, self.searches.pool.now());
        }
        answer
    }
}

/// An account with this rank isn't asked.
const RESTS: u8 = 2;

/// How little an account fits a search: without a profile it is said to have none, and it may have refused one lately.
fn unfit(view: &AccountView, learned: &Learned, now: Timestamp) -> u8 {
    let has_profile = || {
        view.shapes(view.region()).iter().any(|shape| {
            learned.next_variant(*shape, view.variants(), now).is_some_and(|variant| variant.arn().is_some())
        })
    };
    match learned.has_no_search(now) {
        true => RESTS,
        false => u8::from(!has_profile()),
    }
}
