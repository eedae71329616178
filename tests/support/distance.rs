//! A server far away: TLS in front of another server, and a network with a round-trip time between it and the client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;

/// Runs until it is dropped.
pub struct Distance {
    port: u16,
    handshakes: Arc<AtomicUsize>,
    folder: tempfile::TempDir,
    _task: JoinSet<()>,
}

impl Distance {
    /// In front of a server without TLS, under this host's name.
    pub async fn start(server: SocketAddr, host: &str, round_trip: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let handshakes = Arc::<AtomicUsize>::default();
        let (count, mut task) = (handshakes.clone(), JoinSet::new());
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (tls, count) = (tls.clone(), count.clone());
                connections.spawn(async move {
                    client.set_nodelay(true).unwrap();
                    let (near, far) = duplex(1 << 20);
                    let secured = async {
                        let Ok(mut far) = tls.accept(far).await else { return };
                        count.fetch_add(1, Ordering::Relaxed);
                        let mut server = TcpStream::connect(server).await.unwrap();
                        server.set_nodelay(true).unwrap();
                        // How a connection ends is for its two ends to judge.
                        let _ended = copy_bidirectional(&mut far, &mut server).await;
                    };
                    tokio::join!(travel(client, near, round_trip), secured);
                });
            }
        });
        Self { port, handshakes, folder, _task: task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate to trust, as a PEM file.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// TLS handshakes so far.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::Relaxed)
    }
}

/// Each direction takes half of a round trip. Before that comes the round trip in which TCP connects.
async fn travel(client: TcpStream, near: tokio::io::DuplexStream, round_trip: Duration) {
    let connected = Instant::now() + round_trip;
    let (from_client, to_client) = client.into_split();
    let (from_near, to_near) = tokio::io::split(near);
    tokio::join!(
        late(from_client, to_near, connected, round_trip / 2),
        late(from_near, to_client, connected, round_trip / 2),
    );
}

async fn late(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, connected: Instant, by: Duration) {
    let (line, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let read = async move {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let due = Instant::now().max(connected) + by;
            if line.send((due, bytes[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        to.shutdown().await.unwrap_or_default();
    };
    tokio::join!(read, write);
}
