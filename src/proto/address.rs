//! Where a bearer token may go (K12), and the parts of an address that decide it.

use std::net::IpAddr;

/// What [`endpoint`] asks of an address, for messages.
pub const ALLOWED: &str = "an https:// URL without a user name (http:// only to a loopback address)";

/// An address with its region filled in (K12); `None` when no token may be sent there.
///
/// It must be https, or http on a loopback host, without user information; a region is letters, digits and `-`.
pub fn endpoint(template: &str, region: &str) -> Option<String> {
    if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return None;
    }
    let url = template.replace("{{region}}", region).replace("{region}", region);
    let (scheme, authority) = origin(&url).split_once("://")?;
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some((_, port)) if !port.ends_with(']') => return None,
        _ => authority,
    };
    let plain = |c: char| c.is_ascii_graphic() && c != '\\';
    let sound = !host.is_empty() && !authority.contains(['@', '{', '}']) && url.chars().all(plain);
    let allowed = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") && is_loopback(host);
    (sound && allowed).then_some(url)
}

/// Scheme, host and port of a URL, as they stand in it; empty where there is no host.
pub fn origin(url: &str) -> &str {
    let Some((scheme, rest)) = url.split_once("://") else { return "" };
    match rest.split(['/', '?', '#']).next() {
        None | Some("") => "",
        Some(authority) => url.get(..scheme.len() + 3 + authority.len()).unwrap_or_default(),
    }
}

/// Whether a host, as it stands in a URL, is this machine's name or address for itself: 127.0.0.0/8, `[::1]`, `localhost`
/// and names below it.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    is_localhost(host)
}

/// Whether a name is `localhost` or below it (RFC 6761).
pub fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

/// For a query, or a user and password: everything but unreserved characters is encoded (RFC 3986).
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_only_to_https_or_loopback_k12_case_47() {
        for (template, url) in [
            ("https://q.{{region}}.amazonaws.com/x", "https://q.eu-west-1.amazonaws.com/x"),
            ("https://q.{region}.amazonaws.com:8443", "https://q.eu-west-1.amazonaws.com:8443"),
            ("HTTPS://example.org", "HTTPS://example.org"),
            ("http://127.0.0.1:9000/a?b=c", "http://127.0.0.1:9000/a?b=c"),
            ("http://127.8.8.8/", "http://127.8.8.8/"),
            ("http://localhost:1", "http://localhost:1"),
            ("http://LocalHost/", "http://LocalHost/"),
            ("http://q.{region}.localhost:1", "http://q.eu-west-1.localhost:1"),
            ("http://[::1]:1/", "http://[::1]:1/"),
            ("http://[::1]", "http://[::1]"),
            ("http://[0:0:0:0:0:0:0:1]:1", "http://[0:0:0:0:0:0:0:1]:1"),
        ] {
            assert_eq!(endpoint(template, "eu-west-1").as_deref(), Some(url));
        }
        for template in [
            "",
            "http://example.org",
            "ftp://localhost/",
            "ftp://127.0.0.1",
            "example.org",
            "https://",
            "https:///x",
            "https://u@example.org/",
            "https://u:p@example.org/",
            "http://localhost@example.org/",
            "http://127.0.0.1@example.org/",
            "http://127.0.0.1.example.org/",
            "http://notlocalhost/",
            "http://[::2]/",
            "http://example.org#@localhost",
            "https://a b/",
            "https://{{zone}}.x/",
            "https://a:port/",
            "http://localhost\\@example.org/",
        ] {
            assert_eq!(endpoint(template, "eu-west-1"), None, "{template}");
        }
        for region in ["", "x.example.org/", "a@b", "é"] {
            assert_eq!(endpoint("https://q.{region}.amazonaws.com", region), None, "{region}");
        }
    }

    #[test]
    fn origins_end_before_the_path() {
        assert_eq!((origin("https://a:1/b?c"), origin("https://a?b")), ("https://a:1", "https://a"));
        assert_eq!((origin("https:///a"), origin("a/b")), ("", ""));
    }

    #[test]
    fn the_arn_is_percent_encoded_k62() {
        assert_eq!(percent_encoded("arn:aws:x/Ä b"), "arn%3Aaws%3Ax%2F%C3%84%20b");
    }
}
