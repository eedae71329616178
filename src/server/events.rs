//! The numbers of the status page, by SSE.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::gateway::{AccountStatus, Gateway, GatewayStatus};

/// How often the numbers are sent.
const EVERY: Duration = Duration::from_secs(1);
/// Most accounts on the page. With more it shows those with problems first.
const MOST_ACCOUNTS: usize = 200;

/// The body of `/status/events`: a `status` event at once, then one a second, until the gateway closes or its server stops.
pub struct Events {
    gateway: Gateway,
    ticks: Interval,
    closed: Pin<Box<dyn Future<Output = ()> + Send>>,
    stopped: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    begun: bool,
}

impl Events {
    pub(super) fn new(gateway: Gateway) -> Self {
        let mut ticks = tokio::time::interval(EVERY);
        // A slow reader gets the current numbers, not those it missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let closed = Box::pin(gateway.closed());
        Self { gateway, ticks, closed, stopped: None, begun: false }
    }

    /// Ends it with the server, which would otherwise wait for ever.
    pub(super) fn until(&mut self, stop: &CancellationToken) {
        self.stopped = Some(Box::pin(stop.clone().cancelled_owned()));
    }
}

impl Stream for Events {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let stopped = self.stopped.as_mut().is_some_and(|stopped| stopped.as_mut().poll(cx).is_ready());
        if stopped || self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if self.ticks.poll_tick(cx).is_pending() {
            return Poll::Pending;
        }
        let mut event = Vec::with_capacity(2048);
        if !self.begun {
            self.begun = true;
            // After a restart the page is back soon.
            event.extend_from_slice(b"retry: 2000\n");
        }
        event.extend_from_slice(b"event: status\ndata: ");
        match serde_json::to_writer(&mut event, &StatusPage::of(self.gateway.status())) {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "the status could not be written");
                return Poll::Ready(None);
            }
        }
        event.extend_from_slice(b"\n\n");
        Poll::Ready(Some(event.into()))
    }
}

/// The data of the page.
#[derive(Serialize)]
struct StatusPage {
    #[serde(flatten)]
    status: GatewayStatus,
    /// Accounts that aren't in the list.
    accounts_hidden: usize,
}

impl StatusPage {
    fn of(mut status: GatewayStatus) -> Self {
        status.accounts.sort_by_key(|account| (trouble(account), std::cmp::Reverse(account.in_flight)));
        let accounts_hidden = status.accounts.len().saturating_sub(MOST_ACCOUNTS);
        status.accounts.truncate(MOST_ACCOUNTS);
        Self { status, accounts_hidden }
    }
}

/// The order of accounts: first those that need a person, then those that recover by themselves, then working ones,
/// then disabled ones.
fn trouble(account: &AccountStatus) -> u8 {
    match account.state {
        "ejected" | "unusable" => 0,
        "quota" => 1,
        "cooling" => 2,
        "disabled" => 4,
        _ => 3,
    }
}
