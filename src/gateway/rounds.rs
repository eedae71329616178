//! The upstream answers of one message (TS31): the searches that the model has called, and the request of the next
//! answer.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;

use super::heavy::run_heavy;
use super::job::RequestJob;
use super::translation::Variation;
use crate::error::{Code, Error};
use crate::pool::AccountId;
use crate::proto::messages::request::{SearchTool, with_messages};
use crate::proto::messages::search::{SearchCode, SearchOutcome};
use crate::proto::pipeline::SearchCall;
use crate::proto::translate::search::query_of_input;

/// Searches of one message at a time (K136).
const MOST_AT_ONCE: usize = 4;
/// Searches of one message; each further one counts as over `max_uses` (TS35).
const MOST_SEARCHES: u64 = 100;

type Search = Pin<Box<dyn Future<Output = SearchOutcome> + Send>>;

/// The rounds of a message. Only messages that may have several keep one, and with it the request's bytes.
pub(super) struct Rounds {
    /// The request of the present round.
    job: Arc<RequestJob>,
    /// The client's own bytes: each round's messages hold all that was answered so far.
    client_body: Bytes,
    tool: Option<Arc<SearchTool>>,
    /// Rounds begun.
    number: u32,
    /// Searches called so far.
    uses: u64,
    running: FuturesOrdered<Search>,
    waiting: VecDeque<Search>,
    /// Of this round's searches that have ended, in order.
    outcomes: Vec<SearchOutcome>,
}

impl Rounds {
    pub(super) fn new(job: Arc<RequestJob>, tool: Option<Arc<SearchTool>>) -> Self {
        Self {
            client_body: job.client_body.clone(),
            job,
            tool,
            number: 1,
            uses: 0,
            running: FuturesOrdered::new(),
            waiting: VecDeque::new(),
            outcomes: Vec::new(),
        }
    }

    /// Another model or account has taken the request (TR36).
    pub(super) fn continues(&mut self, job: Arc<RequestJob>) {
        self.job = job;
    }

    /// Another upstream answer may follow (TS35).
    pub(super) fn may_go_on(&self) -> bool {
        self.number < self.job.shared.config.web_search_max_rounds
    }

    /// The model has called a search: it begins now, or when one of the others ends (TS30, K136).
    pub(super) fn search(&mut self, call: &SearchCall, account: &AccountId) {
        let Some(tool) = &self.tool else { return };
        self.uses += 1;
        let failed = |code| -> Search { Box::pin(std::future::ready(Err(code))) };
        self.waiting.push_back(match query_of_input(&call.input) {
            _ if self.uses > tool.max_uses.unwrap_or(MOST_SEARCHES).min(MOST_SEARCHES) => {
                failed(SearchCode::MaxUsesExceeded)
            }
            None => failed(SearchCode::InvalidToolInput),
            Some(query) => {
                let (shared, tool, account) = (self.job.shared.clone(), tool.clone(), account.clone());
                let pinned = self.job.facts.pinned;
                Box::pin(async move { shared.searches.search(&shared.metrics, &account, &query, &tool, pinned).await })
            }
        });
    }

    /// Drives the searches; ready when none is under way.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            while self.running.len() < MOST_AT_ONCE
                && let Some(search) = self.waiting.pop_front()
            {
                self.running.push_back(search);
            }
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(outcome)) => self.outcomes.push(outcome),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The outcomes of the round's searches, in order, once.
    pub(super) fn take_outcomes(&mut self) -> Vec<SearchOutcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// The request of the next round: the client's with these messages at its end (TS33), for the account that has
    /// answered so far.
    pub(super) fn next(&mut self, messages: &[u8], account: &AccountId) -> Result<Arc<RequestJob>, Error> {
        self.number += 1;
        self.job = Arc::new(self.job.with_messages(&self.client_body, messages, account)?);
        Ok(self.job.clone())
    }
}

impl RequestJob {
    fn with_messages(&self, client_body: &[u8], messages: &[u8], account: &AccountId) -> Result<Self, Error> {
        run_heavy(self.client_body.len(), || {
            let body = with_messages(client_body, messages)
                .ok_or_else(|| Error::new(Code::Internal, "the request can't be continued"))?;
            let mut job = Self {
                client_body: body.into(),
                meant: Some(account.clone()),
                has_history: true,
                estimate: OnceLock::new(),
                ..self.clone()
            };
            job.written = job.write(Variation::default(), None, Some(account))?;
            Ok(job)
        })
    }
}
