//! The clients of token refresh, usage and the sign-in, by `reqwest`: one for each proxy.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tower::util::MapRequestLayer;

use super::connector::{Resolver, TCP_KEEPALIVE};
use super::route::Proxy;
use crate::proto::kiro::fault::Fault;

/// How long their connections idle: no person waits for these calls.
const POOL_IDLE: Duration = Duration::from_secs(15);
/// Most clients for accounts' proxies. Beyond that the least recently used one is dropped.
const MAX_PROXIES: usize = 1024;

/// A client for the calls of accounts without a proxy of their own, and one for each proxy of an account.
pub(super) struct Clients {
    common: reqwest::Client,
    own: Mutex<OwnClients>,
    tls: rustls::ClientConfig,
    connect_timeout: Duration,
    opened: Arc<AtomicU64>,
}

#[derive(Default)]
struct OwnClients {
    /// By the proxy's URL, each with the turn of its last use.
    // Bound: HTTP clients of accounts' own proxies | MAX_PROXIES | the one asked for longest ago goes
    by_proxy: HashMap<String, (reqwest::Client, u64)>,
    turns: u64,
}

impl OwnClients {
    /// Drops the least recently used client; its open calls go on.
    fn give_one_up(&mut self) {
        let oldest = self.by_proxy.iter().min_by_key(|(_, (_, asked))| *asked).map(|(proxy, _)| proxy.clone());
        oldest.and_then(|proxy| self.by_proxy.remove(&proxy));
    }
}

impl Clients {
    /// `opened` counts their connections. The error is that of the configuration's proxy.
    pub(super) fn new(
        tls: rustls::ClientConfig,
        connect_timeout: Duration,
        proxy: Option<&str>,
        opened: Arc<AtomicU64>,
    ) -> Result<Self, reqwest::Error> {
        let common = client(&tls, connect_timeout, proxy, &opened)?;
        Ok(Self { common, own: Mutex::default(), tls, connect_timeout, opened })
    }

    /// A client of its own without any proxy, for addresses that aren't Kiro's.
    pub(super) fn direct(&self) -> Result<reqwest::Client, reqwest::Error> {
        client(&self.tls, self.connect_timeout, None, &Arc::default())
    }

    /// The client of an account with this proxy of its own.
    pub(super) fn through(&self, proxy: Option<&str>) -> Result<reqwest::Client, Fault> {
        let Some(proxy) = proxy else { return Ok(self.common.clone()) };
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.turns += 1;
        let turn = own.turns;
        if let Some((client, asked)) = own.by_proxy.get_mut(proxy) {
            *asked = turn;
            return Ok(client.clone());
        }
        // `reqwest` ignores a proxy of a kind that it doesn't know.
        let client = Proxy::parse(proxy)
            .and_then(|_| client(&self.tls, self.connect_timeout, Some(proxy), &self.opened).ok())
            .ok_or_else(unusable_proxy)?;
        if own.by_proxy.len() >= MAX_PROXIES {
            own.give_one_up();
        }
        own.by_proxy.insert(proxy.to_owned(), (client.clone(), turn));
        Ok(client)
    }
}

/// The fault names the field, not its value.
pub(super) fn unusable_proxy() -> Fault {
    Fault::network("the account's PROXY_URL can't be used")
}

fn client(
    tls: &rustls::ClientConfig,
    connect_timeout: Duration,
    proxy: Option<&str>,
    opened: &Arc<AtomicU64>,
) -> Result<reqwest::Client, reqwest::Error> {
    let opened = opened.clone();
    let mut builder = reqwest::Client::builder()
        .http1_only()
        .tls_backend_preconfigured(tls.clone())
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .pool_idle_timeout(POOL_IDLE)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .no_proxy()
        .dns_resolver(Arc::new(Resolver::default()))
        .connector_layer(MapRequestLayer::new(move |request| {
            opened.fetch_add(1, Ordering::Relaxed);
            request
        }));
    if !connect_timeout.is_zero() {
        builder = builder.connect_timeout(connect_timeout);
    }
    if let Some(proxy) = proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy)?);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::super::tests::upstream;
    use super::*;

    /// `PROXY_URL` may change often: a pool of proxies can have a user name for each session.
    #[test]
    fn a_new_proxy_replaces_the_least_recently_used_one() {
        let upstream = upstream();
        let url = |n: usize| format!("http://session-{n}:p@127.0.0.1:3128");
        let known = |n: usize| upstream.clients.own.lock().unwrap().by_proxy.contains_key(&url(n));
        upstream.client(Some(&url(0))).unwrap();
        upstream.opened.fetch_add(7, Ordering::Relaxed);
        for n in 1..=MAX_PROXIES + 1 {
            assert!(upstream.client(Some(&url(n))).is_ok(), "{n}");
            assert!(known(0), "it is in use");
            if n <= MAX_PROXIES {
                upstream.client(Some(&url(0))).unwrap();
            }
        }
        assert_eq!(upstream.clients.own.lock().unwrap().by_proxy.len(), MAX_PROXIES);
        for n in 1..=MAX_PROXIES {
            upstream.client(Some(&url(n))).unwrap();
        }
        assert!(!known(0));
        assert_eq!(upstream.connects(), 7, "none is forgotten");
    }
}
