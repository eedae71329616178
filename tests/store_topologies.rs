//! The same store in Redis Cluster, behind Sentinels and with TLS.
#![cfg(feature = "gateway")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kiro_messages::policy::outcome::Outcome;
use kiro_messages::proto::record::{Account, Fingerprint, Note};
use kiro_messages::store::{Cas, Saved, Status, Store, StoreErrorKind, TokenKey, Writer};
use redis::Commands as _;
use tokio::time::{Instant, sleep};

#[path = "support/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/redis_server.rs"]
mod redis_server;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/store.rs"]
mod support;

use cluster::Cluster;
use redis_server::{RedisServer, free_port};
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_primaries_serves_case_44_r4() {
    let cluster = Cluster::start();
    let mut redis = cluster.connection();
    let store = connect(&cluster.url()).await;
    exercise(&store, &mut redis).await;
    redis.del::<_, ()>(POOL).unwrap();

    // Case 1.
    let before = r#"{"uuid":"a1","notSupportedModels":[],"big":12345678901234567890,"usageCount":5,"note":"x\/y","z":{"keep":[1,2.5,[]]}}"#;
    redis.hset::<_, _, _, ()>(POOL, "a1", before).unwrap();
    record(&store, [success(), success(), success()]).await;
    let after = before.replace(r#""usageCount":5"#, r#""usageCount":8"#);
    assert_eq!(
        redis.hget::<_, _, String>(POOL, "a1").unwrap(),
        format!("{},{USED}}}", after.strip_suffix('}').unwrap())
    );

    // Six accounts: their tokens lie on all nodes.
    for index in 1..=6 {
        let id = format!("a{index}");
        redis.hset_nx::<_, _, _, ()>(POOL, &id, "{}").unwrap();
        redis.set::<_, _, ()>(token_key(&id), TOKEN.replace("refresh-1", &id)).unwrap();
    }
    let all = store.load().await.unwrap();
    assert_eq!(all.len(), 6);
    for raw in &all {
        let (key, token) = raw.token.as_ref().unwrap();
        assert!(key.id() == raw.id && token.windows(2).any(|word| word == raw.id.as_bytes()), "{}", raw.id);
    }

    // Case 10.
    let before = usage(&mut redis);
    run_case_10(&cluster.url());
    assert_eq!(usage(&mut redis), before + 1000);

    // Case 20: one block came already.
    assert_eq!(store.reserve_tickets(64).await.unwrap(), 64..128);

    // Case 24, the store's part: of many who ask for the lock of one token one gets it.
    let other = connect(&cluster.url()).await;
    let key = TokenKey::of("a3");
    let mut held = Vec::new();
    for store in [&store, &other, &store, &other] {
        held.extend(store.lock(&key, t0()).await.unwrap());
    }
    assert_eq!(held.len(), 1);
    let base = store.read_token(&key, t0()).await.unwrap().unwrap();
    let mut unsaved = refreshed(&key, &base);
    unsaved.replaces = vec![Fingerprint::of(&kiro_messages::secret::Secret::new("a3"))];
    assert!(matches!(store.save_token(&unsaved).await.unwrap(), Saved::Written(_)));
    assert!(
        matches!(other.save_token(&unsaved).await.unwrap(), Saved::Written(_)),
        "the same write again finds itself"
    );
    store.unlock(held.remove(0)).await.unwrap();
    assert!(other.lock(&key, t0()).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_a_node_is_away_and_comes_back() {
    let mut cluster = Cluster::start();
    cluster.connection().hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    let slot: usize = redis::cmd("CLUSTER").arg("KEYSLOT").arg(POOL).query(&mut cluster.nodes[0].connection()).unwrap();
    let home = slot * 3 / 16_384;
    let store = connect(&cluster.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    cluster.nodes[home].shutdown_save();
    let error = store.load().await.unwrap_err();
    assert!(error.is_away(), "{error}");
    wait_for(&store, |status| !status.is_connected(), Duration::from_secs(5)).await;
    writer.record("a1", &success());
    for _ in 0..100 {
        assert!(!store.status().is_connected(), "two of three nodes are no return");
        sleep(Duration::from_millis(20)).await;
    }
    cluster.nodes[home].restart();
    cluster.wait_until_ok();
    let back = Instant::now();
    wait_for(&store, Status::is_connected, Duration::from_secs(2)).await;
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    println!("cluster: written {:?} after its state was ok again", back.elapsed());
    assert_eq!(usage(&mut cluster.connection()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_to_another_node_is_followed() {
    let cluster = Cluster::start();
    cluster.connection().hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    let store = connect(&cluster.url()).await;
    record(&store, [success()]).await;
    let mut nodes: Vec<_> = cluster.nodes.iter().map(RedisServer::connection).collect();
    let mut cluster_of = |node: usize, arguments: &[&str]| -> redis::Value {
        redis::cmd("CLUSTER").arg(arguments).query(&mut nodes[node]).unwrap()
    };
    let text = |value: redis::Value| redis::from_redis_value::<String>(value).unwrap();
    let slot = text(cluster_of(0, &["KEYSLOT", POOL]));
    let from = slot.parse::<usize>().unwrap() * 3 / 16_384;
    let to = (from + 1) % 3;
    let (from_id, to_id) = (text(cluster_of(from, &["MYID"])), text(cluster_of(to, &["MYID"])));
    cluster_of(to, &["SETSLOT", &slot, "IMPORTING", &from_id]);
    cluster_of(from, &["SETSLOT", &slot, "MIGRATING", &to_id]);
    let mut migrate = redis::cmd("MIGRATE");
    migrate.arg("127.0.0.1").arg(cluster.nodes[to].port()).arg(POOL).arg(0).arg(5000);
    migrate.query::<()>(&mut cluster.nodes[from].connection()).unwrap();

    // ASK: the key has moved, its slot not yet.
    record(&store, [success()]).await;
    assert_eq!(store.load().await.unwrap().len(), 1);
    for node in [to, from] {
        cluster_of(node, &["SETSLOT", &slot, "NODE", &to_id]);
    }
    // MOVED.
    record(&store, [success()]).await;
    let mut home = cluster.nodes[to].connection();
    let there: String = home.hget(POOL, "a1").unwrap();
    assert_eq!(there, format!("{{\"usageCount\":3,{USED}}}"));
    assert_eq!(store.status(), Status::Connected);
}

/// One Sentinel that watches `primary` under the name kiro.
fn sentinel(primary: u16) -> (RedisServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "sentinel monitor kiro 127.0.0.1 {primary} 1\nsentinel down-after-milliseconds kiro 500\nsentinel failover-timeout kiro 2000\n"
    );
    std::fs::write(&file, text).unwrap();
    (RedisServer::start_sentinel(&file), folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_primary_also_after_a_failover_r61() {
    let mut primary = RedisServer::start();
    let port = primary.port().to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"]);
    primary.connection().hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    let (sentinel, _folder) = sentinel(primary.port());
    let nobody = free_port();
    let store = connect(&format!("redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{}/kiro", sentinel.port())).await;
    let writer = Writer::spawn(store.clone(), clock());
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    let started = Instant::now();
    let is_known = || {
        let known: Vec<std::collections::HashMap<String, String>> =
            redis::cmd("SENTINEL").arg("REPLICAS").arg("kiro").query(&mut sentinel.connection()).unwrap();
        let copied: Option<String> = replica.connection().hget(POOL, "a1").unwrap();
        known.iter().any(|replica| replica["flags"] == "slave")
            && copied.is_some_and(|record| record.contains("usageCount"))
    };
    while !is_known() {
        assert!(started.elapsed() < Duration::from_secs(30), "the replica doesn't come up");
        sleep(Duration::from_millis(100)).await;
    }

    primary.kill();
    let lost = Instant::now();
    wait_for(&store, |status| !status.is_connected(), Duration::from_secs(5)).await;
    let until = time("10:01:00");
    writer.record("a1", &Outcome::marked(t0(), t0(), Note::CoolDown { until, cause: "429".into() }));
    wait_for(&store, Status::is_connected, Duration::from_secs(30)).await;
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    println!("sentinel: written to the new primary {:?} after the loss", lost.elapsed());
    let record: String = replica.connection().hget(POOL, "a1").unwrap();
    let account = Account::parse(record.as_bytes(), "a1").unwrap();
    assert_eq!((account.usage_count, account.standing.healthy), (1, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_unknown_to_the_sentinels_is_reported() {
    let primary = RedisServer::start();
    let (sentinel, _folder) = sentinel(primary.port());
    let store =
        Store::connect(&config(&format!("redis+sentinel://127.0.0.1:{}/other", sentinel.port()))).await.unwrap();
    wait_for(&store, |status| matches!(status, Status::Connecting(Some(_))), Duration::from_secs(5)).await;
    let Status::Connecting(Some(error)) = store.status() else { panic!("{:?}", store.status()) };
    assert!(error.to_string().contains("service name"), "{error}");
}

fn openssl(folder: &Path, arguments: &str) {
    let arguments = arguments.split(' ');
    let ran = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let ran =
        ran.unwrap_or_else(|error| panic!("this test needs openssl on the PATH ({error}): apt-get install openssl"));
    assert!(ran.success());
}

/// A private authority and certificates of it for 127.0.0.1, in `folder`.
fn certificates(folder: &Path) {
    openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca");
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost").unwrap();
    for name in ["server", "client"] {
        openssl(folder, &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile names"
            ),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_works_with_a_private_authority_and_a_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let place = |name: &str| folder.path().join(name).display().to_string();
    let port = free_port();
    let (cert, key, ca) = (place("server.crt"), place("server.key"), place("ca.crt"));
    let server = RedisServer::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    let mut redis = server.connection();
    let client = format!("cacert={ca}&cert={}&key={}", place("client.crt"), place("client.key"));
    let store = connect(&format!("{url}?{client}")).await;
    exercise(&store, &mut redis).await;
    assert_eq!(store.compare_and_set_account("gone", b"{}", b"{}").await.unwrap(), Cas::Absent);

    // Without the client's certificate, and without the authority that signed the server's.
    for url in [format!("{url}?cacert={ca}"), url] {
        let store = Store::connect(&config(&url)).await.unwrap();
        wait_for(&store, |status| matches!(status, Status::Connecting(Some(_))), Duration::from_secs(5)).await;
        let Status::Connecting(Some(error)) = store.status() else { panic!("{:?}", store.status()) };
        assert_eq!(error.kind(), StoreErrorKind::Away, "{error}");
        assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
    }
}
