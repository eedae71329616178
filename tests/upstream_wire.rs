//! The client towards upstream beside servers and proxies that behave unusually (K67–K72).
#![cfg(feature = "gateway")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "upstream_wire/kept.rs"]
mod kept;
#[path = "upstream_wire/proxies.rs"]
mod proxies;

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kiro_messages::config::{Face, RawConfig};
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::secret::Secret;
use kiro_messages::upstream::{ChatTarget, Upstream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, Notify};
use tokio::time::timeout;

const KIND: &str = "content-type: application/vnd.amazon.eventstream";
const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ncontent-length: 0\r\n\r\n";
const LIMIT: Duration = Duration::from_secs(20);

fn upstream(options: &[(&str, &str)]) -> Upstream {
    let mut raw = RawConfig::default();
    for (name, value) in options {
        raw.set_option(name, value).unwrap();
    }
    Upstream::new(&raw.resolve(Face::Server).unwrap()).unwrap()
}

/// The whole body of one answer.
async fn ask(upstream: &Upstream, url: &str, proxy: Option<&str>, body: Bytes) -> Result<Vec<u8>, Fault> {
    let target = ChatTarget {
        account: "account-1".into(),
        url: url.to_owned(),
        token: Secret::new("bearer"),
        machine_id: "m".into(),
        shape: kiro_messages::proto::kiro::route::Shape::Q,
        token_type: None,
        proxy: proxy.map(str::to_owned),
    };
    let mut answer = upstream.generate(&target, vec![body, Bytes::from_static(b"{}")].into()).await?;
    let mut read = Vec::new();
    while let Some(chunk) = poll_fn(|cx| answer.poll_chunk(cx)).await {
        read.extend_from_slice(&chunk.map_err(|_| Fault::network("cut"))?);
    }
    Ok(read)
}

/// Reads one request, which ends with `{}`; none at the end of the connection.
async fn request_text(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n{}") {
        if !matches!(socket.read_buf(&mut text).await, Ok(1..)) {
            return None;
        }
    }
    String::from_utf8(text).ok()
}

async fn read_request(socket: &mut (impl AsyncRead + Unpin)) -> bool {
    request_text(socket).await.is_some()
}

/// A server whose connections are handed to `serve`, with their number.
async fn serve<F>(serve: impl Fn(usize, TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/generateAssistantResponse", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for connection in 0.. {
            let Ok((socket, _)) = listener.accept().await else { return };
            tokio::spawn(serve(connection, socket));
        }
    });
    url
}

/// A refusal that comes while the request is still on its way, from a server that then closes: with bytes unread that is
/// a reset, which reaches a writer first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_is_read_although_the_connection_is_reset() {
    let url = serve(|_, mut socket| async move {
        let mut some = [0; 1024];
        socket.read_exact(&mut some).await.unwrap();
        let refusal = "HTTP/1.1 413 Too Large\r\ncontent-length: 26\r\n\r\n{\"message\":\"that is long\"}";
        socket.write_all(refusal.as_bytes()).await.unwrap();
    })
    .await;
    let upstream = upstream(&[]);
    let body = Bytes::from(vec![b'x'; 4 << 20]);
    let mut lost = 0;
    for _ in 0..300 {
        let fault = ask(&upstream, &url, None, body.clone()).await.unwrap_err();
        if fault.status != Some(413) {
            lost += 1;
        }
    }
    assert_eq!(lost, 0, "of 300");
}

/// One that says 200 at once and reads on gets all of the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_success_does_not_stop_the_request() {
    const LENGTH: usize = 8 << 20;
    let url = serve(|_, mut socket| async move {
        let mut piece = vec![0; 1024];
        socket.read_exact(&mut piece).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\n{KIND}\r\ntransfer-encoding: chunked\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut last = Vec::new();
        while !last.ends_with(b"{}") {
            last.clear();
            assert_ne!(socket.read_buf(&mut last).await.unwrap(), 0);
        }
        socket.write_all(b"2\r\nab\r\n0\r\n\r\n").await.unwrap();
        socket.read_buf(&mut last).await.unwrap();
    })
    .await;
    let upstream = upstream(&[]);
    for proxy in [None, Some(url.as_str())] {
        let asked = ask(&upstream, &url, proxy, Bytes::from(vec![b'x'; LENGTH]));
        assert_eq!(timeout(LIMIT, asked).await.expect("an end").unwrap(), b"ab");
    }
}

/// How answers are framed: what the body is, and whether the connection is used again (RFC 9112).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_every_framing_are_understood_and_what_follows_one_is_never_the_next() {
    const AB: &str = "content-length: 2\r\n\r\nab";
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{KIND}\r\n{rest}");
    let chunked = |rest: &str| ok(&format!("transfer-encoding: chunked\r\n\r\n{rest}"));
    let signature = "signature=\"0123456789abcdef;0123456789abcdef\"";
    for (answer, whole, reused) in [
        (ok(AB), true, true),
        (format!("HTTP/1.1 100 Continue\r\n\r\n{}", ok(AB)), true, true),
        (format!("HTTP/1.1 100 Continue\r\ndate: now\r\n\r\n{}", ok(AB)), true, true),
        (format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{}", ok(AB)), true, true),
        (chunked("1\r\na\r\n1\r\nb\r\n0\r\n\r\n"), true, true),
        (chunked("1;x=y\r\na\r\n1 \r\nb\r\n000\r\nsum: 1\r\nother: 2\r\n\r\n"), true, true),
        (chunked(&format!("1;{signature}\r\na\r\n1\r\nb\r\n0;{signature}\r\n\r\n")), true, true),
        (ok("content-length: 2\r\ncontent-length: 2\r\n\r\nab"), true, true),
        (ok(AB).replace("vnd.amazon", "Vnd.Amazon"), true, true),
        // Its end isn't the connection's, or more follows it.
        (ok(&format!("{AB}c")), true, false),
        (chunked("2\r\nab\r\n0\r\n\r\nH"), true, false),
        (ok(&format!("connection: close\r\n{AB}")), true, false),
        (ok(AB).replace("HTTP/1.1", "HTTP/1.0"), true, false),
        // No answer, or none that ends well.
        (ok("content-length: 2\r\ncontent-length: 3\r\n\r\nabc"), false, false),
        (chunked("2\r\nabc\r\n0\r\n\r\n"), false, false),
        (chunked(&format!("x;{signature}\r\nab\r\n0\r\n\r\n")), false, false),
        (ok("\r\n").replace("200 OK", "204 No Content"), false, true),
        (ok("\r\n").replace("200 OK", "304 Not Modified"), false, true),
        (ok("\r\n").replace("200 OK", "101 Switching Protocols"), false, false),
        (ok(&format!("content-encoding: gzip\r\n{AB}")).replace(KIND, "content-type: application/json"), false, true),
    ] {
        for each_byte in [false, true] {
            let counted = Arc::<AtomicUsize>::default();
            let (count, bytes) = (counted.clone(), answer.clone());
            let url = serve(move |connection, mut socket| {
                count.store(connection + 1, Ordering::Relaxed);
                let bytes = bytes.clone();
                async move {
                    while read_request(&mut socket).await {
                        for piece in bytes.as_bytes().chunks(if each_byte { 1 } else { usize::MAX }) {
                            if socket.write_all(piece).await.is_err() {
                                return;
                            }
                            tokio::task::yield_now().await;
                        }
                    }
                }
            })
            .await;
            let upstream = upstream(&[]);
            // What comes later than the end is seen as soon as the runtime has heard it, and here that may be too late.
            for _ in 0..if reused || !each_byte { 2 } else { 1 } {
                let got = timeout(LIMIT, ask(&upstream, &url, None, Bytes::new())).await.expect("an end");
                assert_eq!(got.ok(), whole.then(|| b"ab".to_vec()), "{answer:?}");
            }
            if reused || !each_byte {
                assert_eq!(counted.load(Ordering::Relaxed), if reused { 1 } else { 2 }, "{answer:?}");
            }
        }
    }
}

/// K69: whose connection it was is what counts, not what others opened meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reused_connection_that_dies_is_replaced_whatever_others_connect_meanwhile_k69() {
    for through_proxy in [false, true] {
        let (held, dies, reused) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::<AtomicBool>::default());
        let (here, now, first) = (held.clone(), dies.clone(), reused.clone());
        let url = serve(move |_, mut socket| {
            let (here, now, first) = (here.clone(), now.clone(), first.clone());
            async move {
                for request in 0.. {
                    if !read_request(&mut socket).await {
                        return;
                    }
                    if request > 0 && !first.swap(true, Ordering::Relaxed) {
                        here.notify_one();
                        return now.notified().await;
                    }
                    socket.write_all(EMPTY.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let (upstream, proxy) = (upstream(&[]), through_proxy.then_some(url.as_str()));
        let one = async {
            // A connection goes back a moment after its answer.
            while !reused.load(Ordering::Relaxed) {
                let answer = ask(&upstream, &url, proxy, Bytes::new()).await;
                assert!(answer.is_ok(), "through a proxy: {through_proxy}: {answer:?}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let other = async {
            held.notified().await;
            let answer = ask(&upstream, &url, proxy, Bytes::new()).await;
            dies.notify_one();
            answer.unwrap();
        };
        timeout(LIMIT, async { tokio::join!(one, other) }).await.expect("both");
    }
}

/// K69: on a fresh connection, although another old one is at hand; and what a fresh one does counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replacement_is_fresh_and_only_one_k69() {
    for (through_proxy, recovers) in [(false, true), (true, true), (false, false), (true, false)] {
        let both = Arc::new(Barrier::new(2));
        let counted = Arc::<AtomicUsize>::default();
        let (met, count) = (both.clone(), counted.clone());
        let url = serve(move |connection, mut socket| {
            let (met, count) = (met.clone(), count.clone());
            async move {
                for request in 0.. {
                    if !read_request(&mut socket).await {
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    match (connection, request) {
                        (0 | 1, 0) => {
                            met.wait().await;
                        }
                        (2, _) if recovers => {}
                        _ => return,
                    }
                    socket.write_all(EMPTY.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let (upstream, proxy) = (upstream(&[]), through_proxy.then_some(url.as_str()));
        let asked = || timeout(LIMIT, ask(&upstream, &url, proxy, Bytes::new()));
        let (one, two) = tokio::join!(asked(), asked());
        assert!(one.unwrap().is_ok() && two.unwrap().is_ok());
        let third = asked().await.unwrap();
        assert_eq!(third.is_ok(), recovers, "through a proxy: {through_proxy}: {third:?}");
        // A connection goes back a moment after its answer: the third may have found none.
        assert!([3, 4].contains(&counted.load(Ordering::Relaxed)), "through a proxy: {through_proxy}");
    }
}

/// K69: an informational answer is a byte of an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_dies_after_an_informational_answer_has_answered_k69() {
    let url = serve(|connection, mut socket| async move {
        for request in 0.. {
            if !read_request(&mut socket).await {
                return;
            }
            if (connection, request) == (0, 1) {
                return socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            }
            socket.write_all(EMPTY.as_bytes()).await.unwrap();
        }
    })
    .await;
    let upstream = upstream(&[]);
    ask(&upstream, &url, None, Bytes::new()).await.unwrap();
    assert_eq!(ask(&upstream, &url, None, Bytes::new()).await.unwrap_err().kind, FaultKind::Network);
    ask(&upstream, &url, None, Bytes::new()).await.unwrap();
}

/// `KIRO_CONNECT_TIMEOUT=0` is no limit, through proxies too: it was none at all, so that whatever took a moment failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zero_connect_timeout_is_no_limit_k68() {
    let proxy = serve(|_, mut socket| async move {
        // SOCKS5 without a password.
        let mut greeting = [0; 3];
        socket.read_exact(&mut greeting).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        socket.write_all(&[5, 0]).await.unwrap();
        let mut wanted = [0; 10];
        socket.read_exact(&mut wanted).await.unwrap();
        for byte in [5, 0, 0, 1, 127, 0, 0, 1, 0, 80] {
            tokio::time::sleep(Duration::from_millis(5)).await;
            socket.write_all(&[byte]).await.unwrap();
        }
        while read_request(&mut socket).await {
            socket.write_all(EMPTY.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = proxy.replace("http://", "socks5://").replace("/generateAssistantResponse", "");
    for (limit, passes) in [("10000", true), ("0", true), ("20", false)] {
        let upstream = upstream(&[("connectTimeoutMs", limit)]);
        let answer = ask(&upstream, "http://127.0.0.1:80/generateAssistantResponse", Some(&proxy), Bytes::new()).await;
        match answer {
            Ok(_) => assert!(passes, "{limit}"),
            Err(fault) => assert!(!passes && fault.kind == FaultKind::Unreachable, "{limit}: {fault:?}"),
        }
    }
}

/// An address of version 6 in the URL, where there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_by_ipv6_address_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let url = format!("http://{}/generateAssistantResponse", listener.local_addr().unwrap());
    let answered = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        assert!(read_request(&mut socket).await);
        socket.write_all(EMPTY.as_bytes()).await.unwrap();
        socket
    });
    assert!(ask(&upstream(&[]), &url, None, Bytes::new()).await.is_ok());
    drop(answered.await.unwrap());
}

/// Proxies that refuse, dribble or say nothing when they are asked for a tunnel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_that_make_no_tunnel_are_faults_in_time_k68() {
    for (answer, ends) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n\r\n", false),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\n\r\nno!", true),
        ("HTTP/1.1 200", true),
        ("HTTP/1.1 200 OK\r\n\r\nnothing of TLS", true),
        ("", false),
        ("", true),
        ("HTTP/1.1 200 OK\r\nx: ", false),
    ] {
        let proxy = serve(move |_, mut socket| async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                if !matches!(socket.read_buf(&mut asked).await, Ok(1..)) {
                    return;
                }
            }
            for byte in answer.as_bytes() {
                socket.write_all(&[*byte]).await.unwrap_or_default();
                tokio::task::yield_now().await;
            }
            if !ends {
                std::future::pending::<()>().await;
            }
        })
        .await;
        let upstream = upstream(&[("connectTimeoutMs", "500")]);
        let asked = ask(&upstream, "https://127.0.0.1:9/generateAssistantResponse", Some(&proxy), Bytes::new());
        let fault = timeout(LIMIT, asked).await.expect("an end").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unreachable, "{answer:?}: {fault:?}");
    }
}
