//! The sender of a request without a client key: a program on this machine, or a web page of another site.
//!
//! Without a client key every client that reaches the port would be served. Any web page can reach a loopback port
//! through its reader's browser: with a form or a `fetch` of `text/plain`, which need no permission, or with DNS
//! rebinding (a name of its own with the address 127.0.0.1), which lets it read the answers too. Three headers give
//! such a page away, because the browser sets them and no page can change them: `Origin`, `Sec-Fetch-Site` and `Host`.
//! A proxy on this machine that adds no header looks like a program: behind one a key is needed, and the log says so at
//! the start.

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Request};

use crate::proto::address::is_loopback;

/// Whether the request's host is a name of this machine for itself: 127.0.0.0/8, `[::1]`, `localhost` and names below
/// it. HTTP/1.0 has no host, but no browser speaks it.
pub(super) fn is_called_by_loopback_name<B>(request: &Request<B>) -> bool {
    let said = request.headers().get_all(HOST).iter().map(|host| Authority::try_from(host.as_bytes()).ok());
    let mut all = said.chain(request.uri().authority().cloned().map(Some));
    all.all(|name| name.is_some_and(|name| is_loopback(name.host())))
}

/// Whether a page of another site made a browser send it. Another scheme, host or port is another site, also on this
/// machine.
pub(super) fn is_of_another_site(headers: &HeaderMap) -> bool {
    let is_ours = |origin: &[u8]| {
        let mut hosts = headers.get_all(HOST).iter();
        let called = hosts.next().map(http::HeaderValue::as_bytes);
        let named = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        matches!((named, called), (Some(named), Some(called)) if named.eq_ignore_ascii_case(called))
    };
    let site = headers.get_all("sec-fetch-site").iter().any(|site| site != "same-origin" && site != "none");
    site || !headers.get_all(ORIGIN).iter().all(|origin| is_ours(origin.as_bytes()))
}

/// Whether a proxy on this machine passed the request on, or a page of another site made a browser here send it. It
/// comes from a loopback address, but anybody may stand behind it.
pub(super) fn is_from_elsewhere<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name))
        || is_of_another_site(headers)
        || !is_called_by_loopback_name(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_this_machine_for_itself_are_known() {
        let ours = [
            "localhost",
            "LocalHost:8081",
            "kiro.localhost:1",
            "localhost.",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:8081",
            "[::ffff:127.0.0.1]",
        ];
        let others = [
            "",
            "example.com",
            "localhost.example.com",
            "notlocalhost",
            "10.0.0.1:8081",
            "[::2]",
            "127.0.0.1.nip.io",
            "0.0.0.0",
            "a b",
            "localhost@example.com",
        ];
        let called = |host: &str| is_called_by_loopback_name(&Request::get("/").header(HOST, host).body(()).unwrap());
        for host in ours {
            assert!(called(host), "{host}");
        }
        for host in others {
            assert!(!called(host), "{host}");
        }
        assert!(is_called_by_loopback_name(&Request::get("/").body(()).unwrap()), "HTTP/1.0");
        let absolute = Request::get("http://example.com/").header(HOST, "localhost").body(()).unwrap();
        assert!(!is_called_by_loopback_name(&absolute), "the target's name counts (RFC 9112, 3.2.2)");
    }

    #[test]
    fn pages_of_other_sites_are_recognised() {
        let is = |name: &'static str, value: &str| {
            let request = Request::get("/").header(HOST, "localhost:8081").header(name, value).body(()).unwrap();
            is_of_another_site(request.headers())
        };
        for origin in ["http://localhost:8081", "https://LOCALHOST:8081"] {
            assert!(!is("origin", origin), "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://localhost",
            "http://localhost:3000",
            "https://example.com",
            "file://",
            "localhost:8081",
        ] {
            assert!(is("origin", origin), "{origin}");
        }
        assert!(!is("sec-fetch-site", "same-origin") && !is("sec-fetch-site", "none"));
        assert!(is("sec-fetch-site", "cross-site") && is("sec-fetch-site", "same-site"));
    }
}
