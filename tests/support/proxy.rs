//! A TCP proxy in front of a server that can lose replies and slow them down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Runs until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<Faults>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Faults {
    /// The next reply to a request that holds this word is lost, with its connection.
    armed: AtomicBool,
    lost: AtomicUsize,
    delay_millis: AtomicU64,
}

impl Proxy {
    /// In front of 127.0.0.1:`port`.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let faults = Arc::new(Faults::default());
        let shared = Arc::clone(&faults);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let faults = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                        carry(client, server, &faults).await;
                    }
                });
            }
        });
        Self { address, faults, task }
    }

    /// `redis://…`
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on the reply to the next EVALSHA is lost after the server has executed it.
    pub fn lose_next_script_reply(&self) {
        self.faults.armed.store(true, Ordering::SeqCst);
    }

    /// Replies lost so far.
    pub fn lost(&self) -> usize {
        self.faults.lost.load(Ordering::SeqCst)
    }

    /// Every reply comes so much later.
    pub fn slow_down(&self, delay: Duration) {
        self.faults.delay_millis.store(u64::try_from(delay.as_millis()).expect("a short delay"), Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Replies wait in a line of their own: a slow network delays each and holds up none.
async fn carry(client: TcpStream, server: TcpStream, faults: &Faults) {
    let _both = (client.set_nodelay(true), server.set_nodelay(true));
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let (line, mut replies) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let deliver = async move {
        while let Some((due, reply)) = replies.recv().await {
            sleep_until(due).await;
            if to_client.write_all(&reply).await.is_err() {
                return;
            }
        }
    };
    let pass = async move {
        let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut losing = false;
        loop {
            tokio::select! {
                read = from_client.read(&mut up) => {
                    let Ok(count @ 1..) = read else { return };
                    let request = &up[..count];
                    if request.windows(7).any(|word| word == b"EVALSHA") && faults.armed.swap(false, Ordering::SeqCst) {
                        losing = true;
                    }
                    if to_server.write_all(request).await.is_err() {
                        return;
                    }
                }
                read = from_server.read(&mut down) => {
                    let Ok(count @ 1..) = read else { return };
                    if losing {
                        faults.lost.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    let delay = Duration::from_millis(faults.delay_millis.load(Ordering::SeqCst));
                    if line.send((Instant::now() + delay, down[..count].to_vec())).is_err() {
                        return;
                    }
                }
            }
        }
    };
    // The side that ends first ends the connection.
    tokio::select! {
        () = deliver => {}
        () = pass => {}
    }
}
