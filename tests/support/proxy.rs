//! A TCP proxy in front of a server that can lose replies and slow them down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

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

async fn carry(mut client: TcpStream, mut server: TcpStream, faults: &Faults) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut losing = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                let request = &up[..count];
                if request.windows(7).any(|word| word == b"EVALSHA") && faults.armed.swap(false, Ordering::SeqCst) {
                    losing = true;
                }
                if server.write_all(request).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if losing {
                    faults.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                let delay = faults.delay_millis.load(Ordering::SeqCst);
                if delay > 0 {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                }
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
