//! TLS on both sides.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiro_messages::simulator::Simulator;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::world::{KEY, Reply, STREAM, World, base, events, kinds};

/// A certificate for 127.0.0.1 that nobody vouches for, as PEM files.
pub struct Certificate {
    folder: tempfile::TempDir,
    made: CertifiedKey<rcgen::KeyPair>,
}

impl Certificate {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let certificate = Self { folder, made };
        certificate.write();
        certificate
    }

    /// Another certificate in the same files.
    fn renew(&mut self) {
        self.made = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        self.write();
    }

    fn write(&self) {
        std::fs::write(self.cert(), self.made.cert.pem()).unwrap();
        std::fs::write(self.key(), self.made.signing_key.serialize_pem()).unwrap();
    }

    pub fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// A client that trusts this certificate and no other.
    fn client(&self) -> reqwest::Client {
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.made.cert.der().clone()).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build().unwrap()
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `KIRO_TLS_CERT` and `KIRO_TLS_KEY`: a stream over TLS, nothing without it, and a new certificate without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_speaks_tls_and_takes_a_new_certificate() {
    let mut certificate = Certificate::new();
    let (cert, key) = (certificate.cert(), certificate.key());
    let world = World::new(&[("KIRO_TLS_CERT", text(&cert)), ("KIRO_TLS_KEY", text(&key))]).await;
    let url = world.url("/v1/messages").replace("http:", "https:");
    let ask = async |client: &reqwest::Client| {
        let mut body = base();
        body["stream"] = json!(true);
        client.post(&url).header("x-api-key", KEY).body(body.to_string()).send().await
    };
    let first = certificate.client();
    let late = certificate.client();
    let reply = Reply::read(ask(&first).await.unwrap()).await;
    assert_eq!(kinds(&events(&reply.text)).last(), Some(&"message_stop"), "{}", reply.text);
    assert!(world.http.get(world.url("/health")).send().await.is_err(), "an answer without TLS");

    certificate.renew();
    world.listening.tls().unwrap().reload().unwrap();
    let second = certificate.client();
    assert_eq!(ask(&second).await.unwrap().status(), 200);
    assert_eq!(ask(&first).await.unwrap().status(), 200, "the open connection goes on");
    assert!(ask(&late).await.is_err(), "a new connection was shown the old certificate");

    // What can't be used is said, and what is there stays.
    std::fs::write(certificate.key(), "nonsense").unwrap();
    let error = world.listening.tls().unwrap().reload().err().unwrap();
    assert!(error.message().starts_with("KIRO_TLS_KEY: "), "{}", error.message());
    assert_eq!(ask(&certificate.client()).await.unwrap().status(), 200);
}

/// Who has connected and says nothing holds up nobody's end: a probe of the port, say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_does_not_come_is_not_waited_for() {
    let certificate = Certificate::new();
    let (cert, key) = (certificate.cert(), certificate.key());
    let world = World::new(&[("KIRO_TLS_CERT", text(&cert)), ("KIRO_TLS_KEY", text(&key))]).await;
    let _silent = TcpStream::connect(world.listening.address()).await.unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while world.listening.connections() == 0 {
        assert!(std::time::Instant::now() < deadline, "the connection isn't taken");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    // A handshake may take 10 s.
    let drained = tokio::time::timeout(std::time::Duration::from_secs(5), world.listening.drain());
    assert!(drained.await.is_ok(), "it was waited for");
}

/// Behind bytes that nobody reads: what follows a request, and a body that waits for memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_gone_is_noticed_under_tls_too_m10_m90() {
    let certificate = Certificate::new();
    let (cert, key) = (certificate.cert(), certificate.key());
    let settings = [
        ("KIRO_TLS_CERT", text(&cert)),
        ("KIRO_TLS_KEY", text(&key)),
        ("KIRO_MAX_REQUEST_MEMORY", "64KiB"),
        ("KIRO_BODY_TIMEOUT", "60s"),
    ];
    let world = World::new(&settings).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls.with_root_certificates(roots).with_no_client_auth()));
    let send = async |length: usize, more: &str| {
        let stream = TcpStream::connect(world.listening.address()).await.unwrap();
        let mut stream = tls.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
        let mut body = base();
        let content = format!("{}[[sim {}]]", "x".repeat(length), json!({ "first_ms": 60_000, "text": "x" }));
        body["messages"] = json!([{ "role": "user", "content": content }]);
        let body = body.to_string();
        let head = format!("host: a\r\nx-api-key: {KEY}\r\ncontent-length: {}", body.len());
        stream.write_all(format!("POST /v1/messages HTTP/1.1\r\n{head}\r\n\r\n{body}{more}").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let becomes = async |requests: usize, connections: usize, within: u64| {
        let deadline = Instant::now() + Duration::from_millis(within);
        while (world.gateway.in_flight(), world.listening.connections()) != (requests, connections) {
            assert!(Instant::now() < deadline, "{} requests after {within} ms", world.gateway.in_flight());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let sent_more = send(10, "\r\n").await;
    becomes(1, 1, 5000).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(sent_more);
    becomes(0, 0, 1000).await;

    let _held = send(40_000, "").await;
    becomes(1, 1, 5000).await;
    let waits = send(30_000, "").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    becomes(1, 2, 0).await;
    drop(waits);
    becomes(1, 1, 1000).await;
}

/// TLS in front of the simulator, which counts handshakes.
struct Terminator {
    address: SocketAddr,
    handshakes: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
}

impl Terminator {
    async fn start(certificate: &Certificate, to: SocketAddr) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.made.signing_key.serialize_der()));
        let chain = vec![CertificateDer::from(certificate.made.cert.der().to_vec())];
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handshakes = Arc::new(AtomicUsize::new(0));
        let (acceptor, count) = (TlsAcceptor::from(Arc::new(config)), handshakes.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, count) = (acceptor.clone(), count.clone());
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut upstream = TcpStream::connect(to).await.unwrap();
                    let _ended = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                });
            }
        });
        Self { address, handshakes, tasks }
    }
}

/// Upstream's certificate is always checked: a self-signed one is refused before a byte of the token is sent, and taken
/// when the operator vouches for it. K72: 200 requests don't make 200 handshakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_certificates_are_checked_and_handshakes_are_few_k72() {
    let certificate = Certificate::new();
    let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap().spawn().unwrap();
    let terminator = Terminator::start(&certificate, simulator.addr()).await;
    let url = format!("https://{}/generateAssistantResponse", terminator.address);
    let options = [("KIRO_UPSTREAM_URL", url.as_str()), ("KIRO_MAX_ATTEMPTS", "1")];

    let doubting = World::new(&options).await;
    let reply = doubting.messages(&base()).await;
    reply.is_error("self-signed", 500, "api_error", "");
    assert_eq!(terminator.handshakes.load(Ordering::SeqCst), 0);

    let cert = certificate.cert();
    let mut trusting = options.to_vec();
    trusting.push(("NODE_EXTRA_CA_CERTS", text(&cert)));
    let world = World::new(&trusting).await;
    for n in 0..200 {
        let reply = world.scene(&json!({ "text": "x" }), STREAM()).await;
        assert_eq!(reply.status, 200, "{n}: {}", reply.text);
    }
    let handshakes = terminator.handshakes.load(Ordering::SeqCst);
    assert!((1..=5).contains(&handshakes), "{handshakes} handshakes for 200 requests");
    drop(terminator.tasks);
    simulator.shutdown().await;
}
