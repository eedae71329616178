//! Ways that can't be connected: they rest, and are probed until a connection succeeds.

use std::collections::HashMap;
use std::iter::once;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use super::connector::ConnectError;
use super::route::Route;
use crate::policy::reach::Reach;
use crate::proto::kiro::fault::Fault;
use crate::proto::said::Said;

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
    pub(super) shown: String,
    /// The same with the proxy's user and password: a proxy that refuses one user may serve another.
    login: Option<String>,
}

impl WayNames {
    pub(super) fn new(host: &str, proxy: Option<&str>) -> Self {
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

    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        once(&self.shown).chain(&self.login).map(String::as_str)
    }
}

impl RestingWays {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), inside: Mutex::default() }
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn inside(&self) -> MutexGuard<'_, (Reach, HashMap<String, Route>)> {
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
