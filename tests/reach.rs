//! One machine's own trouble is no account's: what can't be connected to rests as a way, here and nowhere else, and no
//! fault of upstream's that hits all alike, nor a soft one, lets a pool refuse (K119). Real gateways on one real Redis, the
//! simulator, real sockets.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/accounts.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod accounts;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use accounts::{POOL, add_account};
use kiro_messages::config::{Config, Face, RawConfig};
use kiro_messages::error::{Code, Error};
use kiro_messages::gateway::{Call, FoldedMessage, Gateway};
use kiro_messages::server::listen;
use kiro_messages::simulator::{self, Attached};
use redis_server::{RedisServer, free_port};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

const LIVE: &str = "2099-01-01T00:00:00.000Z";
const EXPIRED: &str = "2020-01-01T00:00:00.000Z";

struct Place {
    redis: RedisServer,
    simulated: Attached,
    config: Config,
}

impl Place {
    /// `records`: one account each, with these members.
    async fn new(records: &[Value], expires_at: &str, options: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        let mut connection = redis.connection();
        for (n, members) in records.iter().enumerate() {
            let id = id(n);
            let token = json!({
                "accessToken": format!("access-{n}"), "refreshToken": format!("refresh-{n}"), "authMethod": "social",
                "expiresAt": expires_at, "profileArn": simulator::PROFILE_ARN,
            });
            add_account(&mut connection, &id, members, &token);
        }
        let mut all = vec![
            ("REDIS_URL", redis.url()),
            ("KIRO_API_KEY", "k".to_owned()),
            ("KIRO_UPSTREAM", "simulator".to_owned()),
            ("KIRO_STORE_WAIT", "5s".to_owned()),
            ("KIRO_ACCOUNT_CACHE_TTL", "100ms".to_owned()),
            ("KIRO_AFFINITY", "off".to_owned()),
        ];
        all.extend(options.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let said = RawConfig::from_env(all.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let mut config = said.resolve(Face::Server).unwrap();
        let simulated = simulator::attach_in(&mut config, json!([])).await.unwrap();
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        Self { redis, simulated, config }
    }

    async fn gateway(&self) -> Gateway {
        Gateway::start(self.config.clone()).await.unwrap()
    }

    /// A gateway for which upstream is this port of this machine, whether somebody listens there or not.
    async fn gateway_at(&self, port: u16) -> Gateway {
        let mut config = self.config.clone();
        let upstream = self.upstream();
        let moved = |url: &str| url.replace(&format!(":{}", upstream.port()), &format!(":{port}"));
        config.upstream_url = moved(&config.upstream_url);
        config.runtime_url = moved(&config.runtime_url);
        config.management_url = moved(&config.management_url);
        config.social_refresh_url = moved(&config.social_refresh_url);
        assert!(config.upstream_url.contains(&port.to_string()), "{}", config.upstream_url);
        Gateway::start(config).await.unwrap()
    }

    fn upstream(&self) -> SocketAddr {
        self.simulated.addr()
    }

    fn marks(&self) -> Vec<String> {
        let mut command = redis::cmd("HVALS");
        let records: Vec<String> = command.arg(POOL).query(&mut self.redis.connection()).unwrap();
        let marked = |record: &String| {
            let record: Value = serde_json::from_str(record).unwrap();
            record["isHealthy"] != true
                || !record["lastErrorMessage"].is_null()
                || record["errorCount"].as_u64() > Some(0)
        };
        records.into_iter().filter(marked).collect()
    }
}

fn id(n: usize) -> String {
    format!("0000000{n}-0000-4000-8000-000000000000")
}

fn plain(count: usize) -> Vec<Value> {
    (0..count).map(|_| json!({})).collect()
}

async fn ask(gateway: &Gateway, text: &str) -> Result<FoldedMessage, Error> {
    ask_as(gateway, text, Call::default()).await
}

async fn ask_as(gateway: &Gateway, text: &str, call: Call) -> Result<FoldedMessage, Error> {
    let body = json!({
        "model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [{ "role": "user", "content": text }]
    });
    gateway.create(body.to_string().into(), call).await
}

/// The network, plugged in: a port that leads to upstream.
async fn plug_in(port: u16, to: SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut there = TcpStream::connect(to).await.unwrap();
                tokio::io::copy_bidirectional(&mut here, &mut there).await.unwrap_or_default();
            });
        }
    });
}

/// The bar: two servers on one store, one without a network. The other answers everything, no account is marked, the one
/// without says at once what is the matter, and serves within a second when its network is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_network_marks_no_account_and_serves_within_a_second_of_its_return_k119_m60() {
    for expires_at in [LIVE, EXPIRED] {
        let place = Place::new(&plain(10), expires_at, &[]).await;
        let port = free_port();
        let (here, there) = (place.gateway().await, place.gateway_at(port).await);
        let face = listen(there.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let status = async |path: &str| {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            http.get(format!("http://{}{path}", face.address())).send().await.unwrap().status().as_u16()
        };
        let over = Arc::<AtomicBool>::default();
        let load = tokio::spawn({
            let (here, over) = (here.clone(), over.clone());
            async move {
                let (mut sent, mut failed) = (0, Vec::new());
                while !over.load(Ordering::Relaxed) {
                    sent += 1;
                    failed.extend(ask(&here, &format!("here {sent}")).await.err());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                (sent, failed)
            }
        });
        for n in 0..40 {
            let began = Instant::now();
            let error = ask(&there, &format!("there {n}")).await.unwrap_err();
            assert_eq!(error.code(), Code::Upstream, "{error:?}");
            assert!(error.message().contains(&format!(":{port}: ")), "{}", error.message());
            assert!(began.elapsed() < Duration::from_secs(1), "fails fast: {:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((status("/health").await, status("/health/live").await), (503, 200), "{expires_at}");
        assert!(there.accounts().iter().all(|account| account.state.as_str() == "healthy"));
        assert_eq!(place.marks(), Vec::<String>::new(), "{expires_at}");

        plug_in(port, place.upstream()).await;
        let back = Instant::now();
        let mut n = 0;
        while let Err(error) = ask(&there, &format!("back {n}")).await {
            assert!(back.elapsed() < Duration::from_secs(5), "{error:?}");
            n += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = back.elapsed();
        assert!(took < Duration::from_millis(1_200), "{expires_at}: {took:?}");
        for n in 0..20 {
            ask(&there, &format!("well again {n}")).await.unwrap();
        }
        assert_eq!((status("/health").await, status("/health/live").await), (200, 200));
        over.store(true, Ordering::Relaxed);
        let (sent, failed) = load.await.unwrap();
        assert!(sent > 20 && failed.is_empty(), "{sent} requests beside it: {failed:?}");
        assert_eq!(place.marks(), Vec::<String>::new());
        println!("tokens until {expires_at}: served again after {took:?}; {sent} requests beside it, none failed");
        here.close(Duration::ZERO).await;
        there.close(Duration::ZERO).await;
    }
}

/// A server that gets no requests, since its `/health` is 503, finds out all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_comes_back_without_a_request_k119() {
    let place = Place::new(&plain(2), LIVE, &[]).await;
    let port = free_port();
    let gateway = place.gateway_at(port).await;
    for n in 0..4 {
        ask(&gateway, &format!("{n}")).await.unwrap_err();
    }
    assert!(!gateway.health().can_serve);
    assert_eq!(gateway.health().accounts.healthy, 0);
    plug_in(port, place.upstream()).await;
    let back = Instant::now();
    while !gateway.health().can_serve {
        assert!(back.elapsed() < Duration::from_secs(4));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ask(&gateway, "at once").await.unwrap();
}

/// Accounts whose own proxy is down come after the others, unmarked, and the sentence names the proxy without its secrets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_proxy_of_an_account_rests_that_way_only_k119() {
    let port = free_port();
    let dead = json!({ "PROXY_URL": format!("http://me:hush-proxy@127.0.0.1:{port}") });
    let place = Place::new(&[dead.clone(), dead, json!({}), json!({})], LIVE, &[]).await;
    let gateway = place.gateway().await;
    for n in 0..40 {
        ask(&gateway, &format!("{n}")).await.unwrap();
    }
    assert_eq!(place.marks(), Vec::<String>::new());
    assert_eq!(gateway.health().accounts.healthy, 2, "those that can be reached");
    let calls = place.simulated.control().stats()["calls_by_token"].clone();
    assert!(calls["access-2"].as_u64() > Some(10) && calls["access-3"].as_u64() > Some(10), "{calls}");
    let pinned = Call { account_id: Some(id(0)), ..Call::default() };
    let error = ask_as(&gateway, "pinned", pinned).await.unwrap_err();
    assert!(error.message().contains(&format!("through the proxy 127.0.0.1:{port}: ")), "{}", error.message());
    assert!(!format!("{error:?} {}", error.message()).contains("hush-proxy"));
}

/// Dead refreshes: no token can be had, so nothing would be served, whatever the records say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_503_while_no_account_gets_a_token_m60() {
    let mut place = Place::new(&plain(4), EXPIRED, &[]).await;
    place.config.social_refresh_url = format!("http://127.0.0.1:{}/refreshToken", free_port());
    let gateway = place.gateway().await;
    let began = Instant::now();
    while gateway.health().can_serve {
        ask(&gateway, &format!("{began:?}")).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(gateway.health().accounts.healthy, 0);
    assert_eq!(place.marks(), Vec::<String>::new(), "nothing of an account was sent");
}

/// The bar, for some seconds: 5 % of upstream's answers break off in the middle at 100 requests a second. Nobody rests, and
/// no more requests fail than were broken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_per_cent_broken_answers_are_five_per_cent_failures_k119() {
    let place = Place::new(&plain(10), LIVE, &[]).await;
    let gateway = place.gateway().await;
    let (broken, refused) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mut rng = fastrand::Rng::with_seed(4);
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let mut running = Vec::new();
    let (mut cut, requests) = (0, 1_000);
    for n in 0..requests {
        ticks.tick().await;
        let breaks = rng.u32(..100) < 5;
        cut += usize::from(breaks);
        let mut scene = json!({ "text": "twelve words that come one after the other", "pieces": 8, "gap_ms": 100 });
        if breaks {
            scene["end"] = json!("cut");
        }
        let (gateway, broken, refused) = (gateway.clone(), broken.clone(), refused.clone());
        running.push(tokio::spawn(async move {
            if let Err(error) = ask(&gateway, &format!("{n} [[sim {scene}]]")).await {
                let count = if error.code() == Code::NoAccount { refused } else { broken };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for request in running {
        request.await.unwrap();
    }
    let (broken, refused) = (broken.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    println!("{requests} requests, {cut} cut by upstream, {broken} failed, {refused} refused");
    assert_eq!(refused, 0, "no healthy accounts");
    assert!(broken <= requests * 6 / 100 && broken >= 20, "{broken}");
    assert!(gateway.accounts().iter().all(|account| account.state.as_str() == "healthy"));
}
