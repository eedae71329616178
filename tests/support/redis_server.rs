//! A private `redis-server` per test: free port, own folder, no persistence unless asked for, killed on drop.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, ConnectionLike as _};

/// A running server.
pub struct RedisServer {
    child: Option<Child>,
    port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
}

/// Options for [`RedisServer::start_with`]: what it has answered to outlives a SIGKILL. By default the log's writes wait for
/// a sync that is under way, and answers don't; none is needed against the death of a process.
pub const LOGGED: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

impl RedisServer {
    /// Starts a server on 127.0.0.1.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments; `{dir}` in them is its folder.
    pub fn start_with(arguments: &[&str]) -> Self {
        for _ in 0..10 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let place = folder.path().display().to_string();
            let arguments = arguments.iter().map(|argument| argument.replace("{dir}", &place)).collect();
            let mut server = Self { child: None, port: free_port(), folder, arguments };
            // Else somebody took the port meanwhile.
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server did not start: see its output above");
    }

    /// Starts a Sentinel with its configuration, which it rewrites.
    pub fn start_sentinel(configuration: &std::path::Path) -> Self {
        Self::start_with(&[&configuration.display().to_string(), "--sentinel"])
    }

    /// The port on 127.0.0.1, which stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://…`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The unix socket's path.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running server").id()
    }

    /// A connection of the test's own, as administrator.
    pub fn connection(&self) -> Connection {
        self.client().get_connection().expect("the server takes connections")
    }

    fn client(&self) -> redis::Client {
        redis::Client::open(format!("redis+unix://{}", self.socket().display())).expect("a valid URL")
    }

    /// Saves its data and stops (SHUTDOWN SAVE).
    pub fn shutdown_save(&mut self) {
        let mut child = self.child.take().expect("a running server");
        // The connection breaks before it answers.
        let _ = redis::cmd("SHUTDOWN").arg("SAVE").query::<()>(&mut self.connection());
        child.wait().expect("the server ends");
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server is ours to kill");
            child.wait().expect("the server ends");
        }
    }

    /// Starts it again on the same port, with the data it saved.
    pub fn restart(&mut self) {
        for _ in 0..50 {
            if self.launch() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("redis-server did not start again");
    }

    /// Stops the process without ending it (SIGSTOP).
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it run on (SIGCONT).
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let done = Command::new("kill").arg(signal).arg(self.pid().to_string()).status().expect("kill runs");
        assert!(done.success());
    }

    fn launch(&mut self) -> bool {
        let socket = self.socket();
        let _ = std::fs::remove_file(&socket);
        // A configuration file comes first.
        let is_file = |argument: &&String| !argument.starts_with("--");
        let (file, options) = match self.arguments.first().filter(is_file) {
            Some(file) => (Some(file), &self.arguments[1..]),
            None => (None, &self.arguments[..]),
        };
        let spawned = Command::new("redis-server")
            .args(file)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"])
            .args(["--unixsocket", &socket.display().to_string(), "--dir", &self.folder.path().display().to_string()])
            .args(["--daemonize", "no", "--loglevel", "warning"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let mut child = spawned.unwrap_or_else(|error| {
            panic!(
                "these tests need redis-server on the PATH ({error}): \
                 apt-get install redis-server, brew install redis, or https://redis.io/download"
            )
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if child.try_wait().expect("the server can be asked").is_some() {
                return false;
            }
            if self.client().get_connection().is_ok_and(|mut connection| connection.check_connection()) {
                self.child = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().expect("the server is ours to kill");
        child.wait().expect("the server ends");
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port nobody listens on now, nor on the one 10,000 above it, which a node of a cluster takes too.
pub fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        // Below the range from which the system takes the ports of clients.
        let port = fastrand::u16(10_000..32_000);
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}
