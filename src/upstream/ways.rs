//! Ways that can't be connected: they rest, and are probed until a connection succeeds.

use std::collections::HashMap;
use std::iter::once;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use super::connector::ConnectError;
use super::route::Route;
use super::{Upstream, host_of};
use crate::policy::reach::Reach;
use crate::proto::kiro::fault::Fault;
use crate::proto::said::Said;

/// Time for one probe. A new one begins each second, so that a lost packet of one delays none of the others.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

/// The ways that can't be connected.
pub(super) struct RestingWays {
    began: Instant,
    /// The resting ways, each with the route of its probes.
    // Bound: probes of resting ways | a resting way each | one whose way is forgotten goes
    inside: Mutex<(Reach, HashMap<String, Route>)>,
}

/// The names of a way.
pub(super) struct WayNames {
    /// The host, and host and port of the proxy before it.
    shown: String,
    /// The same with the proxy's user and password: a proxy that refuses one user may serve another.
    login: Option<String>,
}

impl WayNames {
    fn new(host: &str, proxy: Option<&str>) -> Self {
        match proxy {
            None => Self { shown: host.to_owned(), login: None },
            Some(url) => Self {
                shown: format!("{host} through the proxy {}", proxy_of(url)),
                login: Some(format!("{host} {url}")),
            },
        }
    }

    fn of(route: &Route) -> Self {
        let host = route.server.authority().map_or("", |authority| authority.as_str());
        Self::new(host, route.proxy.as_ref().map(|proxy| proxy.url.as_str()))
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        once(&self.shown).chain(&self.login).map(String::as_str)
    }
}

impl RestingWays {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), inside: Mutex::default() }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn inside(&self) -> MutexGuard<'_, (Reach, HashMap<String, Route>)> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it can't be connected, as far as is known.
    pub(super) fn rests(&self, route: &Route) -> bool {
        let inside = self.inside();
        inside.0.resting().next().is_some() && WayNames::of(route).all().any(|name| inside.0.rests(name).is_some())
    }

    /// Whether a connection may be tried, and since when.
    pub(super) fn may_try(&self, route: &Route) -> Result<Duration, Fault> {
        let (way, now) = (WayNames::of(route), self.now());
        let mut inside = self.inside();
        let tried = way.all().try_for_each(|name| inside.0.may_try(name, now));
        tried.map(|()| now).map_err(|why| no_way(&way.shown, &why))
    }

    pub(super) fn failed(&self, route: &Route, error: &ConnectError, began: Duration) -> Fault {
        let way = WayNames::of(route);
        // The text may come from a proxy or a certificate.
        let why = Said::from(error.why.as_str());
        let why = why.as_str();
        let mut name = &way.shown;
        if error.refused
            && let Some(login) = &way.login
        {
            // The proxy itself can be reached.
            self.opened(name, &way.shown);
            name = login;
        }
        let mut inside = self.inside();
        let (reach, probes) = &mut *inside;
        if reach.failed(name, why, began, self.now()) {
            // Ways are forgotten when there are too many.
            probes.retain(|name, _| reach.rests(name).is_some());
            probes.insert(name.clone(), route.clone());
            drop(inside);
            let way = &way.shown;
            tracing::warn!(way, why, "no connection can be made: requests that need one fail at once until it can");
        }
        no_way(&way.shown, why)
    }

    pub(super) fn made(&self, route: &Route) {
        let way = WayNames::of(route);
        for name in way.all() {
            self.opened(name, &way.shown);
        }
    }

    fn opened(&self, name: &str, way: &str) {
        let mut inside = self.inside();
        let away = inside.0.made(name, self.now());
        if let Some(away) = away {
            inside.1.remove(name);
            drop(inside);
            let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(way, away_ms, "connections can be made again");
        }
    }
}

impl Upstream {
    /// Whether this machine can't connect to this URL through this proxy of an account, or through the configured one:
    /// then a request on that way fails at once.
    pub fn is_cut_off(&self, url: &str, proxy: Option<&str>) -> bool {
        let way = self.way_names(host_of(url), proxy);
        let inside = self.reached.inside();
        way.all().any(|name| inside.0.rests(name).is_some())
    }

    /// Whether any way rests; nearly always none does.
    pub fn is_any_cut_off(&self) -> bool {
        self.reached.inside().0.resting().next().is_some()
    }

    /// The name of a way: the host, and the proxy before it, an account's own or that of the configuration.
    pub(crate) fn way(&self, host: &str, proxy: Option<&str>) -> String {
        self.way_names(host, proxy).shown
    }

    fn way_names(&self, host: &str, proxy: Option<&str>) -> WayNames {
        WayNames::new(host, proxy.or(self.proxy.as_ref().map(|proxy| proxy.url.as_str())))
    }

    /// Probes of the resting ways, so that a server without requests notices an open one, too. Run them once a second;
    /// each ends within five.
    pub fn probes(self: &Arc<Self>) -> impl Iterator<Item = impl Future<Output = ()> + Send + 'static> {
        let routes: Vec<Route> = self.reached.inside().1.values().cloned().collect();
        let upstream = self.clone();
        routes.into_iter().map(move |route| upstream.clone().probe(route))
    }

    async fn probe(self: Arc<Self>, route: Route) {
        let began = self.reached.now();
        let connecting = self.connector.connect(&route, &self.opened_ahead);
        match tokio::time::timeout(PROBE_WITHIN, connecting).await {
            Ok(Ok(io)) => {
                self.connections.keep(&route, io);
                self.reached.made(&route);
            }
            Ok(Err(error)) => drop(self.reached.failed(&route, &error, began)),
            Err(_) => {}
        }
    }
}

/// Nothing was sent: the fault names the way, and marks no account.
fn no_way(way: &str, why: &str) -> Fault {
    Fault::unreachable(format!("{way}: {why}"))
}

/// Only host and port of a proxy's URL.
fn proxy_of(url: &str) -> String {
    let authority = url.parse::<Uri>().ok().and_then(|uri| uri.authority().cloned());
    authority.map_or_else(
        || "of the account".to_owned(),
        |authority| match authority.port() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        },
    )
}
