//! Connections that are opened before a request needs them (K143).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;

use super::Upstream;
use super::route::Route;
use crate::policy::marks::Circuit;

/// Time for one connection ahead.
const OPENED_WITHIN: Duration = Duration::from_secs(10);

impl Upstream {
    /// A request's first attempt goes to this URL through this proxy of an account: so will the next request's,
    /// probably.
    pub fn chosen(&self, url: &str, proxy: Option<&str>) {
        if let Ok((_, route)) = self.route(url, proxy) {
            self.connections.chosen(&route);
        }
    }

    /// A request is coming in. Opens a connection where the last request went, or else to this URL through this proxy,
    /// unless one idles there; [`Upstream::wanted`] resolves then.
    pub fn expects(&self, otherwise: impl FnOnce() -> Option<(String, Option<String>)>) {
        self.connections.wants(|| {
            let (url, proxy) = otherwise()?;
            Some(self.route(&url, proxy.as_deref()).ok()?.1)
        });
    }

    /// Resolves when [`Upstream::ahead`] has something to open at once.
    pub async fn wanted(&self) {
        self.connections.rung().await;
    }

    /// The connections to open now, ahead of need: run them beside each other. Ask once a second, and when one is
    /// [`Upstream::wanted`]; each ends within ten seconds.
    pub fn ahead(self: &Arc<Self>, now: Timestamp) -> Vec<impl Future<Output = ()> + Send + 'static + use<>> {
        let due = self.connections.due(|route| {
            let host = route.server.authority().map_or("", |authority| authority.as_str());
            !self.reached.rests(route) && self.marks().circuit(host, now) == Circuit::Closed
        });
        due.into_iter().map(|route| self.clone().open_ahead(route)).collect()
    }

    async fn open_ahead(self: Arc<Self>, route: Route) {
        let connecting = self.connector.connect(&route, &self.opened_ahead);
        let made = tokio::time::timeout(OPENED_WITHIN, connecting).await.ok().and_then(Result::ok);
        if made.is_none() {
            // No way rests for it: nobody needed the connection, and a request that does will say why there is none.
            self.failed_ahead.fetch_add(1, Ordering::Relaxed);
        }
        self.connections.opened(&route, made);
    }

    /// Connections since the start that no request waited for, and those that couldn't be made.
    pub fn connects_ahead(&self) -> (u64, u64) {
        (self.opened_ahead.load(Ordering::Relaxed), self.failed_ahead.load(Ordering::Relaxed))
    }

    /// Idle connections of chat calls now.
    pub fn idle_connections(&self) -> usize {
        self.connections.count()
    }
}
