//! Who is served without a client key: programs on this machine, no web page of another site, by whatever name it reaches
//! us.

use std::time::Duration;

use super::world::{KEY, World, base};
use super::{Raw, raw};

const ROUTES: [(&str, &str); 11] = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/status"),
    ("GET", "/status/events"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/claude-sonnet-4-5"),
    ("POST", "/v1/messages"),
    ("POST", "/claude-kiro-oauth/v1/messages/count_tokens"),
    ("POST", "/api/event_logging/batch"),
    ("OPTIONS", "/v1/messages"),
];

/// One request with these headers, `host` among them.
async fn ask(world: &World, method: &str, path: &str, headers: &str) -> Raw {
    let body = if method == "POST" { base().to_string() } else { String::new() };
    let text = format!(
        "{method} {path} HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // The events of the status page go on.
    let silence = if path.ends_with("/events") { Duration::from_millis(300) } else { Duration::from_secs(10) };
    raw(world.listening.address(), text.as_bytes(), silence).await
}

fn is_refused(got: &Raw, what: &str) {
    assert_eq!(got.status(), Some(401), "{what}: {}", got.text);
    assert!(got.text.contains("authentication_error") && got.text.contains("set KIRO_API_KEY"), "{what}: {}", got.text);
    assert!(!got.text.contains("access-control-"), "{what}: {}", got.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_no_other_site_is_served() {
    let world = World::new(&[("KIRO_API_KEY", "")]).await;
    world.gateway.key_known().await;
    let strangers = [
        ("a page of another site", "host: localhost:8081\r\norigin: https://example.com\r\n"),
        ("its form", "host: 127.0.0.1:8081\r\norigin: https://example.com\r\ncontent-type: text/plain\r\n"),
        ("a page from a file", "host: localhost:8081\r\norigin: null\r\n"),
        ("another program's page", "host: localhost:8081\r\norigin: http://localhost:3000\r\n"),
        ("a picture in a page", "host: localhost:8081\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n"),
        ("a name that was bound to us", "host: rebound.example:8081\r\n"),
        (
            "a page under such a name",
            "host: rebound.example\r\norigin: http://rebound.example\r\nsec-fetch-site: same-origin\r\n",
        ),
        ("a proxy that passes the name on", "host: kiro.example.com\r\n"),
    ];
    for (method, path) in ROUTES {
        for (what, headers) in strangers {
            is_refused(&ask(&world, method, path, headers).await, &format!("{what}: {method} {path}"));
        }
    }
    is_refused(&ask(&world, "GET", "http://rebound.example/health", "host: localhost\r\n").await, "the target's name");
    assert_eq!(world.upstream_calls(), 0);

    let friends = [
        "host: localhost:8081\r\n",
        "host: 127.0.0.1\r\n",
        "host: [::1]:8081\r\n",
        "host: kiro.localhost:8081\r\n",
        "host: localhost:8081\r\ncontent-type: text/plain\r\n",
        "host: localhost:8081\r\norigin: http://localhost:8081\r\nsec-fetch-site: same-origin\r\n",
    ];
    for (method, path) in ROUTES {
        for headers in friends {
            let got = ask(&world, method, path, headers).await;
            let wanted = if method == "OPTIONS" { 204 } else { 200 };
            assert_eq!(got.status(), Some(wanted), "{headers}{method} {path}: {}", got.text);
            assert!(!got.text.contains("access-control-"), "{headers}{method} {path}: {}", got.text);
        }
    }
    // What is refused before anybody looks at it says no more.
    let nobody = ask(&world, "GET", "/health", "").await;
    assert_eq!(nobody.status(), Some(400), "{}", nobody.text);
    assert!(!nobody.text.contains("access-control-"), "{}", nobody.text);
}

/// `--allow-anonymous` is for a server that has a name; other sites' pages aren't served there either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allow_anonymous_allows_every_host_name_and_no_foreign_page() {
    let world = World::new(&[("KIRO_API_KEY", ""), ("KIRO_ALLOW_ANONYMOUS", "true")]).await;
    world.gateway.key_known().await;
    for headers in ["host: kiro:8081\r\n", "host: kiro:8081\r\norigin: http://kiro:8081\r\n"] {
        let got = ask(&world, "POST", "/v1/messages", headers).await;
        assert_eq!(got.status(), Some(200), "{headers}: {}", got.text);
        assert!(!got.text.contains("access-control-"), "{}", got.text);
    }
    for headers in ["host: kiro:8081\r\norigin: https://example.com\r\n", "host: kiro\r\nsec-fetch-site: same-site\r\n"]
    {
        is_refused(&ask(&world, "POST", "/v1/messages", headers).await, headers);
    }
    // What tells about the server is for its own machine.
    assert_eq!(ask(&world, "GET", "/metrics", "host: kiro:8081\r\n").await.status(), Some(200), "everybody is allowed");
}

/// M7: with a key the contract stands, for every origin; only what needs no key on this machine looks at names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_key_any_site_may_ask_m7() {
    let world = World::new(&[]).await;
    let foreign = "host: rebound.example\r\norigin: https://example.com\r\nsec-fetch-site: cross-site\r\n";
    let with_key = format!("{foreign}x-api-key: {KEY}\r\n");
    for (method, path) in ROUTES {
        let got = ask(&world, method, path, &with_key).await;
        let wanted = if method == "OPTIONS" { 204 } else { 200 };
        assert_eq!(got.status(), Some(wanted), "{method} {path}: {}", got.text);
        assert!(got.text.contains("access-control-allow-origin: *"), "{method} {path}: {}", got.text);
    }
    for path in ["/metrics", "/status", "/status/events"] {
        for headers in [foreign, "host: rebound.example\r\n", "host: localhost\r\norigin: http://localhost:3000\r\n"] {
            assert_eq!(ask(&world, "GET", path, headers).await.status(), Some(401), "{headers}{path}");
        }
        assert_eq!(ask(&world, "GET", path, "host: localhost\r\n").await.status(), Some(200), "{path}");
    }
    assert_eq!(ask(&world, "GET", "/health", foreign).await.status(), Some(200));
}
