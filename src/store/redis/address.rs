//! Redis's address: the forms of `REDIS_URL`, and how to connect with each.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::SingleNodeRoutingInfo;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    Pipeline, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisFuture, RedisResult, ServerErrorKind,
    TlsCertificates, Value,
};

use super::super::{StoreError, StoreErrorKind};
use super::error::{NO_ANSWER, classify};
use crate::config::RedisAddress;

/// From the first packet to the end of the handshake (R2).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One command or pipeline (R2).
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// The last time for a reply that is awaited past [`COMMAND_TIMEOUT`].
const LATE_REPLY: Duration = Duration::from_secs(3600);
/// The time for asking one Sentinel, so that a dead one doesn't use up the time for the others.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a command in a Cluster asks again for its node, 10 to 160 ms apart.
const REDIRECTS: u32 = 5;
const REDIRECT_PAUSE: Duration = Duration::from_millis(10);
/// Commands that may wait for the socket; the library's default of 50 would make callers wait in bursts.
const QUEUED_COMMANDS: usize = 1024;

/// A checked address.
pub(super) enum Address {
    /// One server.
    Single(Box<Client>),
    /// The primary that Sentinels name.
    Sentinel(Box<Sentinel>),
    /// A cluster, found through any of its nodes.
    Cluster(Box<ClusterClient>),
}

pub(super) struct Sentinel {
    sentinels: Vec<Client>,
    service: String,
    node: RedisConnectionInfo,
    tls: Option<TlsCertificates>,
}

/// One connection that carries many commands at once. Cheap to clone.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// Whether commands for several keys can share a pipeline.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// The same connection without its time limit, for commands whose callers set their own.
    pub(super) fn patient(&self) -> Self {
        let mut patient = self.clone();
        if let Self::Single(connection) = &mut patient {
            connection.set_response_timeout(LATE_REPLY);
        }
        patient
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => Box::pin(in_cluster(connection, cmd)),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipe: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipe, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipe, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// A command in a Cluster: it goes to another node when the first one redirects it. The library fetches the new map of
/// slots meanwhile.
async fn in_cluster(connection: &mut ClusterConnection, cmd: &Cmd) -> RedisResult<Value> {
    let mut pause = REDIRECT_PAUSE;
    for _ in 0..REDIRECTS {
        let error = match connection.req_packed_command(cmd).await {
            Err(error) => error,
            reply => return reply,
        };
        match (error.kind(), error.redirect_node()) {
            // This key has moved already, its slot not yet: only the other node knows, and wants `ASKING` first.
            (ErrorKind::Server(ServerErrorKind::Ask), Some((node, _))) => {
                let Some((host, port)) =
                    node.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)))
                else {
                    return Err(error);
                };
                let mut asking = Pipeline::with_capacity(2);
                asking.cmd("ASKING").add_command(cmd.clone());
                let route = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port };
                let replies = connection.route_pipeline(asking, 0, 2, route).await?;
                return replies.into_iter().next_back().unwrap_or_default().extract_error();
            }
            (ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::TryAgain), _) => {}
            _ => return Err(error),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    connection.req_packed_command(cmd).await
}

impl Address {
    /// Checks an address without connecting.
    pub(super) fn parse(server: &RedisAddress) -> Result<Self, StoreError> {
        match server {
            RedisAddress::Url(url) => Self::of_url(url.expose()),
            RedisAddress::Parts { host, port, password, db } => {
                let mut settings = RedisConnectionInfo::default().set_db(*db).set_protocol(ProtocolVersion::RESP3);
                if let Some(password) = password.as_ref().filter(|password| !password.is_empty()) {
                    settings = settings.set_password(password.expose());
                }
                let addr = ConnectionAddr::Tcp(host.clone(), *port);
                Ok(Self::Single(Box::new(client(with_settings(addr, settings)?, None)?)))
            }
        }
    }

    fn of_url(url: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(bad_url)?;
        let scheme = scheme.to_ascii_lowercase().replace('-', "+");
        let (base, kind) = match scheme.split_once('+') {
            Some((base, kind @ ("sentinel" | "cluster"))) => (base, kind),
            _ => (scheme.as_str(), "single"),
        };
        if kind == "single" {
            let node = Node::parse(url)?;
            return Ok(Self::Single(Box::new(client(node.info, node.tls)?)));
        }
        let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(at);
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let (path, query) =
            tail.split_once('?').map_or((tail, String::new()), |(path, query)| (path, format!("?{query}")));
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let node = |host: &str, db: &str| Node::parse(&format!("{base}://{user}{host}/{db}{query}"));
        if kind == "cluster" {
            let nodes = hosts.split(',').map(|host| node(host, "")).collect::<Result<Vec<_>, _>>()?;
            return Self::of_cluster(nodes);
        }
        let service = segments.next().ok_or_else(bad_url)?.to_owned();
        let db = segments.next().unwrap_or("0");
        let nodes = hosts.split(',').map(|host| node(host, db)).collect::<Result<Vec<_>, _>>()?;
        Self::of_sentinels(nodes, service)
    }

    fn of_cluster(nodes: Vec<Node>) -> Result<Self, StoreError> {
        let tls = nodes.iter().find_map(|node| node.tls.clone());
        let mut builder = ClusterClient::builder(nodes.into_iter().map(|node| node.info))
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(COMMAND_TIMEOUT)
            .tcp_settings(TcpSettings::default().set_nodelay(true))
            // The library would replay a command whose reply was lost, and so count twice (R22). `in_cluster` follows
            // redirections, after which nothing was done.
            .retries(0);
        if let Some(tls) = tls {
            builder = builder.certs(tls);
        }
        builder.build().map(|client| Self::Cluster(Box::new(client))).map_err(|_| bad_url())
    }

    fn of_sentinels(nodes: Vec<Node>, service: String) -> Result<Self, StoreError> {
        let first = nodes.first().ok_or_else(bad_url)?;
        let (settings, tls) = (first.info.redis_settings().clone(), first.tls.clone());
        let mut own = RedisConnectionInfo::default().set_protocol(settings.protocol());
        if let Some(user) = &first.sentinel_user {
            own = own.set_username(user);
        }
        if let Some(password) = &first.sentinel_password {
            own = own.set_password(password);
        }
        let sentinels = nodes
            .iter()
            .map(|node| client(with_settings(node.info.addr().clone(), own.clone())?, node.tls.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::Sentinel(Box::new(Sentinel { sentinels, service, node: settings, tls })))
    }

    /// Connects, authenticates, selects the database. `lost` is called when the connection breaks later on, if the
    /// server speaks RESP3 and isn't a cluster; otherwise a failing command shows it.
    pub(super) async fn connect(&self, lost: impl Fn() + Send + Sync + 'static) -> Result<Connection, StoreError> {
        match self {
            Self::Single(client) => connect(client, lost).await.map(Connection::Single),
            Self::Sentinel(sentinel) => connect(&sentinel.primary().await?, lost).await.map(Connection::Single),
            Self::Cluster(client) => {
                let connecting = tokio::time::timeout(CONNECT_TIMEOUT, client.get_async_connection());
                let connected = connecting.await.map_err(|_| StoreError::away(NO_ANSWER))?;
                connected.map(Connection::Cluster).map_err(|error| classify(&error))
            }
        }
    }
}

impl Sentinel {
    /// Asks one Sentinel after the other for the primary. The first write shows whether it really is one.
    async fn primary(&self) -> Result<Client, StoreError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(SENTINEL_TIMEOUT))
            .set_response_timeout(Some(SENTINEL_TIMEOUT));
        let mut failure = StoreError::away("no Sentinel configured");
        for sentinel in &self.sentinels {
            let found = async {
                let mut connection = sentinel.get_multiplexed_async_connection_with_config(&config).await?;
                let mut ask = redis::cmd("SENTINEL");
                ask.arg("get-master-addr-by-name").arg(&self.service);
                ask.query_async::<Option<(String, u16)>>(&mut connection).await
            };
            match found.await {
                Ok(Some((host, port))) => {
                    let addr = match &self.tls {
                        None => ConnectionAddr::Tcp(host, port),
                        Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
                    };
                    return client(with_settings(addr, self.node.clone())?, self.tls.clone());
                }
                Ok(None) => failure = StoreError::away("the Sentinels don't know this service name"),
                Err(error) => failure = classify(&error),
            }
        }
        Err(failure)
    }
}

/// One node's URL, read.
struct Node {
    info: ConnectionInfo,
    /// Present for `rediss`.
    tls: Option<TlsCertificates>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
}

impl Node {
    fn parse(url: &str) -> Result<Self, StoreError> {
        let url = redis::parse_redis_url(url).ok_or_else(bad_url)?;
        let parameter =
            |wanted: &str| url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned());
        let file = |wanted: &str| parameter(wanted).map(|path| read(wanted, &path)).transpose();
        let is_tls = matches!(url.scheme(), "rediss" | "valkeys");
        let client_tls = match (file("cert")?, file("key")?) {
            (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
            (None, None) => None,
            _ => return Err(config("REDIS_URL: cert and key belong together")),
        };
        let tls = is_tls.then_some(TlsCertificates { client_tls, root_cert: file("cacert")? });
        let (sentinel_user, sentinel_password) = (parameter("sentinel_username"), parameter("sentinel_password"));
        let has_protocol = parameter("protocol").is_some();
        let info = url.into_connection_info().map_err(|_| bad_url())?;
        let mut settings = info.redis_settings().clone();
        if !has_protocol {
            // Only with RESP3 does the library report at once that a connection broke.
            settings = settings.set_protocol(ProtocolVersion::RESP3);
        }
        let info = with_settings(info.addr().clone(), settings)?;
        Ok(Self { info, tls, sentinel_user, sentinel_password })
    }
}

fn with_settings(addr: ConnectionAddr, settings: RedisConnectionInfo) -> Result<ConnectionInfo, StoreError> {
    let info = addr.into_connection_info().map_err(|_| bad_url())?;
    let settings = settings.set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    Ok(info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

fn client(info: ConnectionInfo, tls: Option<TlsCertificates>) -> Result<Client, StoreError> {
    match tls {
        Some(tls) => {
            Client::build_with_tls(info, tls).map_err(|_| config("REDIS_URL: cacert, cert or key is no PEM file"))
        }
        None => Client::open(info).map_err(|_| bad_url()),
    }
}

async fn connect(
    client: &Client,
    lost: impl Fn() + Send + Sync + 'static,
) -> Result<MultiplexedConnection, StoreError> {
    // Every default of the library that matters is set: response timeout 500 ms, connect 1 s, buffer 50 (R2).
    let mut settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(COMMAND_TIMEOUT))
        .set_pipeline_buffer_size(QUEUED_COMMANDS);
    if client.get_connection_info().redis_settings().protocol() != ProtocolVersion::RESP2 {
        settings = settings.set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                lost();
            }
            Ok::<(), redis::aio::SendError>(())
        });
    }
    client.get_multiplexed_async_connection_with_config(&settings).await.map_err(|error| classify(&error))
}

fn read(parameter: &str, path: &str) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| config(format!("REDIS_URL: {parameter} {path}: {}", error.kind())))
}

fn config(detail: impl Into<String>) -> StoreError {
    StoreError::new(StoreErrorKind::Config, detail)
}

fn bad_url() -> StoreError {
    config(
        "REDIS_URL must be redis[s]://[user:password@]host[:port][/db], redis+unix:///path[?db=n], \
         redis[s]+sentinel://[user:password@]host:port,…/service[/db] or redis[s]+cluster://[user:password@]host:port,…",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn parse(url: &str) -> Result<Address, StoreError> {
        Address::parse(&RedisAddress::Url(Secret::new(url)))
    }

    fn single(url: &str) -> ConnectionInfo {
        match parse(url).unwrap() {
            Address::Single(client) => client.get_connection_info().clone(),
            _ => panic!("{url} is no single server"),
        }
    }

    #[test]
    fn single_servers() {
        let info = single("redis://user:p%40ss@example.org:6380/3");
        assert_eq!(info.addr(), &ConnectionAddr::Tcp("example.org".into(), 6380));
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("user"), Some("p@ss"), 3));
        assert_eq!(settings.protocol(), ProtocolVersion::RESP3);
        assert!(info.tcp_settings().nodelay());
        assert_eq!(single("redis://h?protocol=resp2").redis_settings().protocol(), ProtocolVersion::RESP2);
        assert!(matches!(single("rediss://h").addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
        let unix = single("redis+unix:///run/redis.sock?db=2");
        assert_eq!(unix.addr(), &ConnectionAddr::Unix("/run/redis.sock".into()));
        assert_eq!(unix.redis_settings().db(), 2);
    }

    #[test]
    fn parts() {
        let parts = |password: &str| RedisAddress::Parts {
            host: "::1".into(),
            port: 7,
            password: Some(Secret::new(password)),
            db: 1,
        };
        let Ok(Address::Single(client)) = Address::parse(&parts("pw")) else { panic!("no single server") };
        assert_eq!(client.get_connection_info().redis_settings().password(), Some("pw"));
        let Ok(Address::Single(client)) = Address::parse(&parts("")) else { panic!("no single server") };
        assert_eq!(client.get_connection_info().redis_settings().password(), None);
    }

    #[test]
    fn sentinels() {
        let url = "redis+sentinel://user:pw@h1:26379,[::1]:26380/mymaster/2?sentinel_password=s%20w";
        let Ok(Address::Sentinel(sentinel)) = parse(url) else { panic!("no sentinel") };
        assert_eq!(sentinel.service, "mymaster");
        assert_eq!((sentinel.node.password(), sentinel.node.db()), (Some("pw"), 2));
        let own: Vec<_> = sentinel.sentinels.iter().map(|client| client.get_connection_info().clone()).collect();
        assert_eq!(own[0].addr(), &ConnectionAddr::Tcp("h1".into(), 26379));
        assert_eq!(own[1].addr(), &ConnectionAddr::Tcp("::1".into(), 26380));
        let settings = own[0].redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (None, Some("s w"), 0));
        assert!(matches!(parse("rediss-sentinel://h:1/m"), Ok(Address::Sentinel(sentinel)) if sentinel.tls.is_some()));
    }

    #[test]
    fn clusters() {
        assert!(matches!(parse("redis+cluster://user:pw@h1:7000,h2:7001"), Ok(Address::Cluster(_))));
        assert!(matches!(parse("rediss-cluster://h1:7000/"), Ok(Address::Cluster(_))));
    }

    #[test]
    fn a_bad_url_is_named_without_its_password() {
        for url in [
            "",
            "localhost:6379",
            "http://h",
            "redis://",
            "redis://u:hush@h/db",
            "redis://u:hush@h?protocol=9",
            "redis+sentinel://u:hush@h:1",
            "redis+other://u:hush@h",
            "rediss://u:hush@h?cacert=/no/such/file",
            "rediss://u:hush@h?cert=/dev/null",
            "redis+cluster://u:hush@h:port",
        ] {
            let error = parse(url).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }
}
