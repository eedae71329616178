//! Requests that a proxy in front might read in another way than we do: none may become two.

use std::time::Duration;

use super::world::{KEY, World};
use super::{Raw, raw};

const SMUGGLED: &str = "GET /health HTTP/1.1\r\nhost: smuggled\r\n\r\n";

/// RFC 9112: what is ambiguous is refused, or ends the connection. In no case the bytes behind it are a second request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_smuggled() {
    let world = World::new(&[]).await;
    let send = async |headers: &str, body: &str| -> Raw {
        let text = format!(
            "POST /v1/messages/count_tokens HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\n{headers}\r\n\r\n{body}{SMUGGLED}"
        );
        raw(world.listening.address(), text.as_bytes(), Duration::from_secs(5)).await
    };
    let refused = [
        ("two lengths", "content-length: 5\r\ncontent-length: 46", "hello"),
        ("a list of lengths", "content-length: 5, 46", "hello"),
        ("a length with a sign", "content-length: +5", "hello"),
        ("a negative length", "content-length: -1", "hello"),
        ("a hexadecimal length", "content-length: 0x5", "hello"),
        ("an empty length", "content-length:", "hello"),
        ("a space before the colon", "content-length : 5", "hello"),
        ("a folded line", "x-a: b\r\n c: d\r\ncontent-length: 5", "hello"),
        ("a folded length", "content-length:\r\n 5", "hello"),
        ("a carriage return alone", "x-a: b\rcontent-length: 46\r\ncontent-length: 5", "hello"),
        ("a zero byte", "x-a: b\0c\r\ncontent-length: 5", "hello"),
        ("no chunks at the end", "transfer-encoding: chunked, identity", "0\r\n\r\n"),
        ("an unknown coding", "transfer-encoding: xchunked", "0\r\n\r\n"),
        ("a coding that is taken back", "transfer-encoding: chunked\r\ntransfer-encoding: identity", "0\r\n\r\n"),
        ("a coding behind a tab", "transfer-encoding: \x0bchunked", "0\r\n\r\n"),
        ("chunks in quotes", "transfer-encoding: \"chunked\"", "0\r\n\r\n"),
        ("a chunk with a sign", "transfer-encoding: chunked", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a chunk of 0x5", "transfer-encoding: chunked", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a chunk beyond 64 bits", "transfer-encoding: chunked", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a chunk without its end", "transfer-encoding: chunked", "5\r\nhello0\r\n\r\n"),
        ("a chunk's size that a line feed ends", "transfer-encoding: chunked", "5\nhello\r\n0\r\n\r\n"),
    ];
    for (what, headers, body) in refused {
        let got = send(headers, body).await;
        assert_eq!(got.status(), Some(400), "{what}: {}", got.text);
        assert_eq!(got.answers(), 1, "{what}: {}", got.text);
        assert!(got.closed, "{what}: the connection stayed open");
    }
    // Taken by its chunks, as the RFC has it, and then the connection ends.
    for headers in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let got = send(headers, "0\r\n\r\n").await;
        assert_eq!((got.answers(), got.closed), (1, true), "{headers}: {}", got.text);
        assert!(got.text.contains("connection: close"), "{headers}: {}", got.text);
    }
    // Only 1.1 knows chunks.
    let old = format!("POST /v1/messages HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}");
    let got = raw(world.listening.address(), old.as_bytes(), Duration::from_secs(5)).await;
    assert_eq!((got.status(), got.answers(), got.closed), (Some(400), 1, true), "{}", got.text);
    // Lines that end with a line feed alone are one request to every reader: the same head either way.
    let bare = "GET /health HTTP/1.1\nhost: a\nconnection: close\n\n";
    let got = raw(world.listening.address(), bare.as_bytes(), Duration::from_secs(5)).await;
    assert!(got.answers() <= 1 && got.closed, "{}", got.text);
    // Two proper requests in a row are two, or the test would prove nothing.
    let two = format!("{SMUGGLED}{}", SMUGGLED.replace("smuggled\r\n", "b\r\nconnection: close\r\n"));
    let got = raw(world.listening.address(), two.as_bytes(), Duration::from_secs(5)).await;
    assert_eq!((got.answers(), got.closed), (2, true), "{}", got.text);
}

/// A head that can't be read is answered by hyper before there is a request, with the bare status: no `request-id` (M5), no
/// body, and the connection ends. What has a request line and headers gets an answer of ours, whatever else is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_heads_that_cannot_be_read_get_a_bare_status_m5() {
    let world = World::new(&[]).await;
    let send = async |text: &str| raw(world.listening.address(), text.as_bytes(), Duration::from_secs(10)).await;
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let bare = [
        ("no request line", "hello\r\n\r\n".to_owned(), 400),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\x01\u{7f}\x03\x03".to_owned(), 400),
        ("no version", "GET /health\r\n\r\n".to_owned(), 400),
        ("a method that is none", "G ET /health HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("a path that is none", "GET health\0 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("a header without a colon", "GET /health HTTP/1.1\r\nhost\r\n\r\n".to_owned(), 400),
        ("a header name with a space", "GET /health HTTP/1.1\r\nx a: b\r\n\r\n".to_owned(), 400),
        ("a length that is none", "GET /health HTTP/1.1\r\ncontent-length: x\r\n\r\n".to_owned(), 400),
        ("too many headers", format!("GET /health HTTP/1.1\r\n{many}\r\n"), 431),
        ("a head of more than 64 KiB", format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(65_534)), 431),
    ];
    for (what, text, status) in bare {
        let got = send(&text).await;
        assert_eq!((got.status(), got.answers(), got.closed), (Some(status), 1, true), "{what}: {}", got.text);
        let is_bare = got.text.contains("\r\ncontent-length: 0\r\n") && got.text.ends_with("\r\n\r\n");
        assert!(is_bare && !got.text.contains("request-id"), "{what}: not as the documents say: {}", got.text);
    }
    let got = send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!((got.text.as_str(), got.closed), ("", true), "HTTP/2 is hung up on");
    let ours = [
        ("an unknown method", "BREW / HTTP/1.1\r\nhost: a", "", 405),
        ("no host", "GET /health HTTP/1.1\r\nx: y", "", 400),
        ("two hosts", "GET /health HTTP/1.1\r\nhost: a\r\nhost: b", "", 400),
        ("no path", "GET * HTTP/1.1\r\nhost: a", "", 404),
        ("no path of ours", "CONNECT a:1 HTTP/1.1\r\nhost: a", "", 404),
        ("an escape that is none", "GET /v1/models/%zz HTTP/1.1\r\nhost: a", "", 404),
        ("a chunk that is none", "POST /v1/messages HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked", "x\r\n", 400),
    ];
    for (what, head, body, status) in ours {
        let got = send(&format!("{head}\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n{body}")).await;
        assert_eq!((got.status(), got.answers(), got.closed), (Some(status), 1, true), "{what}: {}", got.text);
        let has_id = got.text.contains("\r\nrequest-id: req_") && got.text.contains(r#""request_id":"req_"#);
        assert!(has_id, "{what}: {}", got.text);
    }
}
