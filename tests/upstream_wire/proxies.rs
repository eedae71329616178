//! Calls through proxies of every kind (K142).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use tokio::io::AsyncWrite;
use tokio_rustls::TlsAcceptor;

use super::*;

const HOST: &str = "q.kiro.localhost";
const USER: &str = "me@here";
const PASSWORD: &str = "hush:/%";
const LOGIN: &str = "me%40here:hush%3A%2F%25@";
const TUNNEL: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Kiro's host, with TLS, and a client that knows its certificate authority.
struct Place {
    url: String,
    kiro: SocketAddr,
    tls: TlsAcceptor,
    connections: Arc<AtomicUsize>,
    options: (tempfile::TempDir, String),
}

impl Place {
    /// Each connection is handed to `serve`, with its number.
    async fn new<F>(serve: impl Fn(usize, Tls) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let tls = acceptor(folder.path());
        let file = folder.path().join("ca.pem").display().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kiro = listener.local_addr().unwrap();
        let (secured, connections) = (tls.clone(), Arc::<AtomicUsize>::default());
        let (count, serve) = (connections.clone(), Arc::new(serve));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (secured, count, serve) = (secured.clone(), count.clone(), serve.clone());
                tokio::spawn(async move {
                    let Ok(socket) = secured.accept(socket).await else { return };
                    assert_eq!(socket.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                    serve(count.fetch_add(1, Ordering::Relaxed), socket).await;
                });
            }
        });
        let url = format!("https://{HOST}:{}/generateAssistantResponse", kiro.port());
        Self { url, kiro, tls, connections, options: (folder, file) }
    }

    /// It answers every request, and hears nothing of a proxy.
    async fn answering() -> Self {
        Self::new(|_, mut socket| async move {
            while let Some(request) = request_text(&mut socket).await {
                assert!(request.starts_with("POST /generateAssistantResponse HTTP/1.1\r\n"), "{request}");
                assert!(!request.contains("proxy"), "{request}");
                socket.write_all(EMPTY.as_bytes()).await.unwrap();
            }
        })
        .await
    }

    fn client(&self, options: &[(&str, &str)]) -> Upstream {
        upstream(&[options, &[("extraCaCerts", self.options.1.as_str())]].concat())
    }

    async fn proxy(&self) -> Proxy {
        self.proxy_that(|_| None).await
    }

    /// A proxy that makes no tunnel when there is something to say instead.
    async fn proxy_that(&self, refuses: impl Fn(&Asked) -> Option<Vec<u8>> + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, kiro, tls) = (Arc::<Mutex<Vec<Asked>>>::default(), self.kiro, self.tls.clone());
        let (kept, refuses) = (asked.clone(), Arc::new(refuses));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (kept, tls, refuses) = (kept.clone(), tls.clone(), refuses.clone());
                tokio::spawn(async move {
                    let mut first = [0];
                    socket.peek(&mut first).await.unwrap();
                    // What TLS begins with.
                    let mut socket: Box<dyn Io> =
                        if first == [22] { Box::new(tls.accept(socket).await.unwrap()) } else { Box::new(socket) };
                    let Some((asked, granted)) = hear(&mut socket).await else { return };
                    kept.lock().unwrap().push(asked.clone());
                    if let Some(refusal) = refuses(&asked) {
                        socket.write_all(&refusal).await.unwrap();
                        return;
                    }
                    socket.write_all(&granted).await.unwrap();
                    relay(socket, TcpStream::connect(kiro).await.unwrap()).await;
                });
            }
        });
        Proxy { port, asked }
    }
}

type Tls = tokio_rustls::server::TlsStream<TcpStream>;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Proxy {
    fn url(&self, scheme: &str, login: &str) -> String {
        format!("{scheme}://{login}127.0.0.1:{}", self.port)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// What a proxy was asked for, and by whom.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    host: String,
    login: String,
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned(), "127.0.0.1".to_owned()]).unwrap();
    std::fs::write(folder.join("ca.pem"), made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut tls = tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(tls))
}

/// Reads what a client asks a proxy for, by its first byte, and gives the bytes that grant it.
async fn hear(io: &mut Box<dyn Io>) -> Option<(Asked, Vec<u8>)> {
    match io.read_u8().await.ok()? {
        4 => {
            let (mut port, mut address) = ([0; 3], [0; 4]);
            io.read_exact(&mut port).await.ok()?;
            io.read_exact(&mut address).await.ok()?;
            let user = until(io, b"\0").await?;
            let named = address[..3] == [0; 3];
            let host = if named { until(io, b"\0").await? } else { std::net::Ipv4Addr::from(address).to_string() };
            Some((Asked { host: host.replace('\0', ""), login: user.replace('\0', "") }, vec![0, 90, 0, 0, 0, 0, 0, 0]))
        }
        5 => {
            let method = text(io).await?.as_bytes()[0];
            io.write_all(&[5, method]).await.ok()?;
            let mut login = String::new();
            if method == 2 {
                assert_eq!(io.read_u8().await.ok()?, 1);
                login = format!("{}:{}", text(io).await?, text(io).await?);
                if login != format!("{USER}:{PASSWORD}") {
                    io.write_all(&[1, 1]).await.ok()?;
                    return None;
                }
                io.write_all(&[1, 0]).await.ok()?;
            }
            let mut command = [0; 4];
            io.read_exact(&mut command).await.ok()?;
            let host = match command {
                [5, 1, 0, 1] => std::net::Ipv4Addr::from(io.read_u32().await.ok()?).to_string(),
                [5, 1, 0, 3] => text(io).await?,
                other => panic!("{other:?}"),
            };
            io.read_u16().await.ok()?;
            Some((Asked { host, login }, vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
        }
        first => {
            let head = format!("{}{}", char::from(first), until(io, b"\r\n\r\n").await?);
            let (method, target) = head.strip_suffix("\r\n\r\n")?.split_once(' ')?;
            let target = target.split(' ').next()?;
            let (host, granted) = match method {
                "CONNECT" => (target.split(':').next()?, TUNNEL),
                _ => (target, EMPTY.as_bytes()),
            };
            let named = if method == "CONNECT" { target } else { "127.0.0.1:9" };
            assert!(head.contains(&format!("\r\nhost: {named}\r\n")), "{head}");
            let login = head.split("\r\nproxy-authorization: Basic ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let login = BASE64_STANDARD.decode(login.unwrap_or_default()).unwrap();
            Some((Asked { host: host.to_owned(), login: String::from_utf8(login).unwrap() }, granted.to_vec()))
        }
    }
}

/// Each direction goes on to its own end: what the server said before it closed still arrives.
async fn relay(client: Box<dyn Io>, mut server: TcpStream) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_server).await.unwrap_or_default();
        to_server.shutdown().await.unwrap_or_default();
    };
    let down = async {
        tokio::io::copy(&mut from_server, &mut to_client).await.unwrap_or_default();
        to_client.shutdown().await.unwrap_or_default();
    };
    tokio::join!(up, down);
}

async fn until(io: &mut Box<dyn Io>, end: &[u8]) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        read.push(io.read_u8().await.ok()?);
    }
    String::from_utf8(read).ok()
}

/// A text after its length.
async fn text(io: &mut Box<dyn Io>) -> Option<String> {
    let mut text = vec![0; usize::from(io.read_u8().await.ok()?)];
    io.read_exact(&mut text).await.ok()?;
    String::from_utf8(text).ok()
}

async fn probe(upstream: &Arc<Upstream>) {
    for probe in upstream.probes().collect::<Vec<_>>() {
        probe.await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_proxy_carries_calls_and_its_connection_is_used_again_k142_k72() {
    let whole = format!("{USER}:{PASSWORD}");
    for (scheme, login, host, says) in [
        ("http", "", HOST, ""),
        ("http", LOGIN, HOST, whole.as_str()),
        ("http", "me@", HOST, "me:"),
        ("https", LOGIN, HOST, whole.as_str()),
        ("socks5", "", "127.0.0.1", ""),
        ("socks5", LOGIN, "127.0.0.1", whole.as_str()),
        ("socks5h", "", HOST, ""),
        ("socks5h", LOGIN, HOST, whole.as_str()),
        ("socks4", "", "127.0.0.1", ""),
        ("socks4a", "", HOST, ""),
    ] {
        let place = Place::answering().await;
        let proxy = place.proxy().await;
        let url = proxy.url(scheme, login);
        // An account's own, and that of the configuration, which knows no SOCKS4.
        for (own, common) in [(Some(url.as_str()), None), (None, Some(("proxyUrl", url.as_str())))] {
            if own.is_none() && scheme.starts_with("socks4") {
                continue;
            }
            let upstream = place.client(common.as_slice());
            let before = (place.connections.load(Ordering::Relaxed), proxy.asked().len());
            for _ in 0..3 {
                let answer = timeout(LIMIT, ask(&upstream, &place.url, own, Bytes::new())).await.expect("an end");
                assert!(answer.is_ok(), "{url}: {answer:?}");
            }
            let after = (place.connections.load(Ordering::Relaxed), proxy.asked().len());
            assert_eq!(after, (before.0 + 1, before.1 + 1), "{url}");
            assert_eq!(upstream.connects(), 1, "{url}");
            assert_eq!(
                proxy.asked().last().unwrap(),
                &Asked { host: host.to_owned(), login: says.to_owned() },
                "{url}"
            );
        }
    }
}

/// Many proxies make tunnels to port 443 alone, so that they get such a request itself, and who sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_is_handed_to_a_web_proxy_in_absolute_form_k142() {
    let place = Place::answering().await;
    let plain = "http://127.0.0.1:9/generateAssistantResponse?of=eu-central-1";
    for scheme in ["http", "https"] {
        let proxy = place.proxy().await;
        ask(&place.client(&[]), plain, Some(&proxy.url(scheme, LOGIN)), Bytes::new()).await.unwrap();
        assert_eq!(proxy.asked(), [Asked { host: plain.to_owned(), login: format!("{USER}:{PASSWORD}") }], "{scheme}");
    }
}

/// A proxy without a scheme is one for `http`, as ever; one that can't be used is no way around it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_cannot_be_used_is_never_left_out_k142() {
    let place = Place::answering().await;
    let proxy = place.proxy().await;
    let upstream = place.client(&[]);
    ask(&upstream, &place.url, Some(&format!("{LOGIN}127.0.0.1:{}", proxy.port)), Bytes::new()).await.unwrap();
    assert_eq!(proxy.asked(), [Asked { host: HOST.to_owned(), login: format!("{USER}:{PASSWORD}") }]);
    for unusable in
        ["ftp://me:hush@127.0.0.1:1", "http://", "http://me:hush@127.0.0.1:99999", "socks9://me:hush@h:1", ""]
    {
        let fault = ask(&upstream, &place.url, Some(unusable), Bytes::new()).await.unwrap_err();
        assert_eq!((fault.kind, &*fault.message), (FaultKind::Network, "the account's PROXY_URL can't be used"));
        assert!(upstream.client(Some(unusable)).is_err(), "nor for other calls: {unusable}");
    }
    assert_eq!(place.connections.load(Ordering::Relaxed), 1);
}

/// A refusal names what the proxy said, a dead proxy what the system said, and none of them its password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_told_from_a_dead_proxy_k142_k119() {
    let refused =
        "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    for (scheme, refusal, why) in [
        ("http", refused.as_bytes(), "the proxy answered 407 Proxy Authentication Required"),
        ("https", refused.as_bytes(), "the proxy answered 407 Proxy Authentication Required"),
        ("http", b"HTTP/1.0 403 no\r\n\r\n", "the proxy answered 403 Forbidden"),
        ("http", b"HTTP/1.1 502 gone\r\ncontent-length: 3\r\n\r\nno!", "the proxy answered 502 Bad Gateway"),
        ("http", b"HTTP/1.1 302 there\r\nlocation: /\r\n\r\n", "the proxy answered 302 Found"),
        ("http", b"SSH-2.0-OpenSSH_9.9\r\n", "the proxy gave no valid HTTP answer"),
        ("http", long.as_bytes(), "the proxy gave no valid HTTP answer"),
        ("http", b"HTTP/1.1 200", "the proxy gave no valid HTTP answer"),
        ("http", b"", "the proxy closed the connection"),
        ("socks5h", &[5, 2, 0, 1, 0, 0, 0, 0, 0, 0], "connection not allowed"),
        ("socks5", &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0], "connection refused"),
        ("socks5", b"HTTP/1.1 400 Bad Request\r\n\r\n", "SOCKS error: failed parsing server response"),
        ("socks4", &[0, 91, 0, 0, 0, 0, 0, 0], "SOCKS error"),
        ("socks5h", b"", "SOCKS error: io error during SOCKS handshake"),
    ] {
        let place = Place::answering().await;
        let said = refusal.to_vec();
        let proxy = place.proxy_that(move |_| Some(said.clone())).await;
        let login = if scheme.starts_with("socks4") { "" } else { LOGIN };
        let asked = ask(&place_client(&place), &place.url, Some(&proxy.url(scheme, login)), Bytes::new()).await;
        let fault = asked.unwrap_err();
        let way = format!("{HOST}:{} through the proxy 127.0.0.1:{}: ", place.kiro.port(), proxy.port);
        assert_eq!(fault.kind, FaultKind::Unreachable, "{scheme}: {fault:?}");
        assert!(fault.message.starts_with(&way) && fault.message.contains(why), "{scheme}: {}", fault.message);
        assert!(!format!("{fault:?}").contains("hush"), "{fault:?}");
    }
    let place = Place::answering().await;
    let proxy = place.proxy().await;
    let stranger = proxy.url("socks5h", "me:hush@");
    let fault = ask(&place_client(&place), &place.url, Some(&stranger), Bytes::new()).await.unwrap_err();
    assert!(fault.message.contains("credentials not accepted"), "{}", fault.message);
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for scheme in ["http", "https", "socks5", "socks5h", "socks4"] {
        let dead = format!("{scheme}://me:hush@{free}");
        let fault = ask(&place_client(&place), &place.url, Some(&dead), Bytes::new()).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unreachable);
        assert!(fault.message.contains("efused") && !fault.message.contains("hush"), "{}", fault.message);
    }
}

fn place_client(place: &Place) -> Upstream {
    place.client(&[("connectTimeoutMs", "5000")])
}

/// A proxy may say more than the head of its answer, in one packet with it: those bytes aren't the server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_sends_with_its_grant_is_not_taken_for_upstreams_k142() {
    let place = Place::answering().await;
    let kiro = place.kiro;
    let proxy = serve(move |_, mut socket| async move {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            socket.read_buf(&mut asked).await.unwrap();
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
        relay(Box::new(socket), TcpStream::connect(kiro).await.unwrap()).await;
    })
    .await;
    assert_eq!(ask(&place.client(&[]), &place.url, Some(&proxy), Bytes::new()).await.unwrap(), b"");
}

/// As without a proxy: a long request is answered while it is on its way, and the connection is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_refusal_of_a_long_request_is_heard_through_a_tunnel_k142() {
    let place = Place::new(|_, mut socket| async move {
        let mut some = [0; 1024];
        socket.read_exact(&mut some).await.unwrap();
        let refusal = "HTTP/1.1 413 Too Large\r\ncontent-length: 26\r\n\r\n{\"message\":\"that is long\"}";
        socket.write_all(refusal.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap_or_default();
    })
    .await;
    let proxy = place.proxy().await;
    let body = Bytes::from(vec![b'x'; 4 << 20]);
    for scheme in ["", "http", "https", "socks5h"] {
        let upstream = place.client(&[]);
        let url = (!scheme.is_empty()).then(|| proxy.url(scheme, ""));
        let mut lost = 0;
        for _ in 0..20 {
            let asked = ask(&upstream, &place.url, url.as_deref(), body.clone());
            let fault = timeout(LIMIT, asked).await.expect("an end").unwrap_err();
            lost += usize::from(fault.status != Some(413));
        }
        assert_eq!(lost, 0, "{scheme:?}: of 20");
    }
}

/// Who gives up while the proxy hasn't answered leaves nothing behind; nor does who gives up in the answer (K70).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_call_closes_its_connection_to_the_proxy_at_once_k142_k70() {
    let closed = Arc::new(Notify::new());
    let (asked, gone) = (Arc::new(Notify::new()), closed.clone());
    let heard = asked.clone();
    let silent = serve(move |_, mut socket| {
        let (heard, gone) = (heard.clone(), gone.clone());
        async move {
            let mut read = Vec::new();
            while !read.ends_with(b"\r\n\r\n") {
                assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0);
            }
            heard.notify_one();
            assert_eq!(socket.read(&mut [0]).await.unwrap_or(0), 0);
            gone.notify_one();
        }
    })
    .await;
    let (answered, cut) = (asked.clone(), closed.clone());
    let place = Place::new(move |_, mut socket| {
        let (answered, cut) = (answered.clone(), cut.clone());
        async move {
            assert!(read_request(&mut socket).await);
            let head = format!("HTTP/1.1 200 OK\r\n{KIND}\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            answered.notify_one();
            assert_eq!(socket.read(&mut [0]).await.unwrap_or(0), 0);
            cut.notify_one();
        }
    })
    .await;
    let upstream = place.client(&[]);
    let tunnels = place.proxy().await;
    for proxy in [silent, tunnels.url("http", ""), tunnels.url("https", ""), tunnels.url("socks5", "")] {
        let call = ask(&upstream, &place.url, Some(&proxy), Bytes::new());
        tokio::select! {
            _ = call => panic!("answered"),
            () = asked.notified() => {}
        }
        timeout(Duration::from_millis(500), closed.notified()).await.expect("a closed connection");
    }
}

/// Connections are kept by proxy, user and host: nobody's call goes out through somebody else's proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_connections_belong_to_their_proxy_its_user_and_the_host_k142() {
    let place = Place::answering().await;
    let (one, two) = (place.proxy().await, place.proxy().await);
    let upstream = place.client(&[]);
    let other_host = place.url.replace(HOST, "127.0.0.1");
    let (a, b, second) = (one.url("http", "a@"), one.url("http", "b@"), two.url("http", "a@"));
    let ways = [
        (&place.url, None),
        (&place.url, Some(&a)),
        (&place.url, Some(&b)),
        (&place.url, Some(&second)),
        (&other_host, Some(&a)),
    ];
    for _ in 0..3 {
        for (url, proxy) in ways {
            ask(&upstream, url, proxy.map(String::as_str), Bytes::new()).await.unwrap();
        }
    }
    assert_eq!(place.connections.load(Ordering::Relaxed), ways.len());
    assert_eq!((one.asked().len(), two.asked().len()), (3, 1));
}

/// K69 in a tunnel: an old connection that dies is no attempt, whichever side closed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_tunnel_that_dies_is_replaced_k142_k69() {
    let place = Place::new(|connection, mut socket| async move {
        while read_request(&mut socket).await {
            socket.write_all(EMPTY.as_bytes()).await.unwrap();
            if connection % 2 == 0 {
                // It takes the next request and says nothing.
                read_request(&mut socket).await;
                return;
            }
        }
    })
    .await;
    let proxy = place.proxy().await;
    for scheme in ["http", "https", "socks5"] {
        let (upstream, url) = (place.client(&[]), proxy.url(scheme, ""));
        let before = place.connections.load(Ordering::Relaxed);
        for _ in 0..3 {
            ask(&upstream, &place.url, Some(&url), Bytes::new()).await.unwrap();
        }
        assert_eq!(place.connections.load(Ordering::Relaxed), before + 2, "{scheme}");
    }
}

/// A way is the host through that proxy. A silent proxy rests for all who use it; one that refuses rests for the user
/// whom it refuses. A look finds out when it serves again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rests_is_the_host_through_that_proxy_k142_k119() {
    let place = Place::answering().await;
    let shut = Arc::new(AtomicBool::new(true));
    let is_shut = shut.clone();
    let refusing = place
        .proxy_that(move |asked| {
            let refused = asked.login == "bad:" && is_shut.load(Ordering::Relaxed);
            refused.then(|| b"HTTP/1.1 407 who?\r\n\r\n".to_vec())
        })
        .await;
    let upstream = Arc::new(place.client(&[("connectTimeoutMs", "300")]));
    let (bad, good) = (refusing.url("http", "bad@"), refusing.url("http", "good@"));
    let rests = |proxy: Option<&str>| upstream.is_cut_off(&place.url, proxy);
    for _ in 0..3 {
        assert!(!rests(Some(&bad)));
        ask(&upstream, &place.url, Some(&bad), Bytes::new()).await.unwrap_err();
    }
    assert!(rests(Some(&bad)) && !rests(Some(&good)) && !rests(None));
    ask(&upstream, &place.url, Some(&good), Bytes::new()).await.unwrap();
    let before = refusing.asked().len();
    let fault = ask(&upstream, &place.url, Some(&bad), Bytes::new()).await.unwrap_err();
    assert!(fault.message.contains("407") && refusing.asked().len() == before, "at once: {}", fault.message);
    probe(&upstream).await;
    assert!(rests(Some(&bad)) && refusing.asked().len() == before + 1, "it still refuses");
    shut.store(false, Ordering::Relaxed);
    probe(&upstream).await;
    assert!(!rests(Some(&bad)));
    // The look's connection is used.
    let before = refusing.asked().len();
    ask(&upstream, &place.url, Some(&bad), Bytes::new()).await.unwrap();
    assert_eq!(refusing.asked().len(), before);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let (one, two) = (format!("http://one@127.0.0.1:{port}"), format!("http://two@127.0.0.1:{port}"));
    for _ in 0..3 {
        let fault = ask(&upstream, &place.url, Some(&one), Bytes::new()).await.unwrap_err();
        assert!(fault.message.contains("KIRO_CONNECT_TIMEOUT"), "{}", fault.message);
    }
    assert!(rests(Some(&one)) && rests(Some(&two)) && !rests(Some(&good)) && !rests(None));
    assert!(!upstream.is_cut_off("https://other.kiro.localhost/", Some(&one)), "another host");
    // Somebody listens, and refuses the one by whom the proxy was found dead.
    drop(silent);
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.write_all(b"HTTP/1.1 407 who?\r\n\r\n").await.unwrap_or_default();
        }
    });
    probe(&upstream).await;
    assert!(!rests(Some(&two)), "the proxy is there");
}
