//! A Redis Cluster of the test's own.

use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterConnection};

use super::redis_server::RedisServer;

/// Three primaries, each with a third of the slots.
pub struct Cluster {
    pub nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Starts them and waits until they know each other.
    pub fn start() -> Self {
        let options =
            ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000"];
        let nodes: Vec<_> = (0..3).map(|_| RedisServer::start_with(&options)).collect();
        for (index, node) in nodes.iter().enumerate() {
            let mut redis = node.connection();
            let mut slots = redis::cmd("CLUSTER");
            slots.arg("ADDSLOTS");
            for slot in (0..16_384).filter(|slot| slot * 3 / 16_384 == index) {
                slots.arg(slot);
            }
            slots.query::<()>(&mut redis).unwrap();
            redis::cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(index + 1).query::<()>(&mut redis).unwrap();
        }
        // Each needs its epoch before it knows another.
        for other in &nodes[1..] {
            let mut redis = nodes[0].connection();
            redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(other.port()).query::<()>(&mut redis).unwrap();
        }
        let cluster = Self { nodes };
        cluster.wait_until_ok();
        cluster
    }

    /// Every node says that the cluster works.
    pub fn wait_until_ok(&self) {
        let is_ok = |node: &RedisServer| {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut node.connection()).unwrap();
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        };
        let started = std::time::Instant::now();
        while !self.nodes.iter().all(is_ok) {
            assert!(started.elapsed() < Duration::from_secs(30), "the cluster doesn't come up");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Any of the nodes is enough to find the others.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[1].port(), self.nodes[2].port())
    }

    /// A connection of the test's own.
    pub fn connection(&self) -> ClusterConnection {
        let urls: Vec<_> = self.nodes.iter().map(RedisServer::url).collect();
        ClusterClient::new(urls).unwrap().get_connection().unwrap()
    }
}
