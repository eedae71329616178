//! The route of a connection: the server, and the proxy before it.

use std::sync::Arc;

use http::Uri;
use http::header::{HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use http::uri::{PathAndQuery, Scheme};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

/// The server at the other end of a connection, and the proxy before it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    /// Scheme, host and port.
    pub(super) server: Uri,
    pub(super) proxy: Option<Arc<Proxy>>,
}

impl Route {
    /// None: the URL is neither `http` nor `https`.
    pub(super) fn new(url: &Uri, proxy: Option<Arc<Proxy>>) -> Option<Self> {
        let mut parts = url.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        let server = Uri::from_parts(parts).ok()?;
        [&Scheme::HTTP, &Scheme::HTTPS].contains(&server.scheme()?).then_some(Self { server, proxy })
    }

    /// The proxy that takes the request itself instead of making a tunnel. Plain `http` through a web proxy goes this
    /// way, because many proxies make tunnels only to port 443 (K142).
    pub(super) fn forwarder(&self) -> Option<&Proxy> {
        self.proxy.as_deref().filter(|proxy| !is_secure(&self.server) && !proxy.is_socks())
    }
}

pub(super) fn is_secure(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}

/// A proxy, an account's own or that of the configuration.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Proxy {
    /// As it was configured: it may hold a password.
    pub(super) url: String,
    /// Scheme, host and port.
    pub(super) uri: Uri,
    basic: Option<HeaderValue>,
    /// User and password for SOCKS.
    pub(super) login: Option<(String, String)>,
}

impl Proxy {
    /// None: the URL can't be used. It is parsed as `reqwest` does, which makes the account's other calls.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut url = match text.contains("://") {
            true => Url::parse(text),
            false => Url::parse(&format!("http://{text}")),
        }
        .ok()?;
        if url.scheme().starts_with("socks") && url.port().is_none() {
            url.set_port(Some(1080)).ok()?;
        }
        let matcher = Matcher::builder().all(url.to_string()).build();
        let found = matcher.intercept(&Uri::from_static("https://any.host"))?;
        Some(Self {
            url: text.to_owned(),
            uri: found.uri().clone(),
            basic: found.basic_auth().cloned(),
            login: found.raw_auth().map(|(user, password)| (user.to_owned(), password.to_owned())),
        })
    }

    pub(super) fn is_socks(&self) -> bool {
        self.uri.scheme_str().is_some_and(|scheme| scheme.starts_with("socks"))
    }

    /// Says who we are, to a proxy that reads HTTP.
    pub(super) fn sign(&self, headers: &mut HeaderMap) {
        if let Some(basic) = &self.basic {
            headers.insert(PROXY_AUTHORIZATION, basic.clone());
        }
    }
}
