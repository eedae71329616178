//! The Node.js service of `tests/coexist`, as a process that a test drives.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kiro_messages::proto::record::Account;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The service; ends when it is dropped.
pub struct NodeService {
    child: Child,
    orders: Option<ChildStdin>,
    replies: Lines<BufReader<ChildStdout>>,
}

impl NodeService {
    /// Connected, with the pool in its memory (E1).
    pub fn start(redis_url: &str, refresh_url: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(
            root.join("node_modules/ioredis").exists(),
            "the coexistence tests need Node.js and its packages: npm ci"
        );
        let mut child = Command::new("node")
            .arg(root.join("tests/coexist/node-service.mjs"))
            .args([redis_url, refresh_url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is on the PATH");
        let orders = child.stdin.take();
        let replies = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut service = Self { child, orders, replies };
        service.order("load", json!({}));
        service
    }

    /// One order, to its end.
    #[track_caller]
    pub fn order(&mut self, what: &str, mut options: Value) -> Value {
        options["do"] = what.into();
        tokio::task::block_in_place(|| {
            writeln!(self.orders.as_mut().expect("it runs"), "{options}").expect("the Node.js service reads");
            let reply = self.replies.next().expect("the Node.js service answers").expect("in text");
            let reply: Value = serde_json::from_str(&reply).expect("in JSON");
            assert!(reply.get("error").is_none(), "{reply:#}");
            reply
        })
    }

    /// Every write that reached Redis, in order.
    pub fn journal(&mut self) -> Vec<Write> {
        let journal = self.order("journaled", json!({}))["journal"].take();
        serde_json::from_value(journal).expect("the journal's shape")
    }
}

impl Drop for NodeService {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One write of the service.
#[derive(Debug, Deserialize)]
pub struct Write {
    /// Of an account record.
    pub uuid: Option<String>,
    /// Of a token record: its key.
    pub token: Option<String>,
    /// What lay there, and what lies there now.
    pub before: Option<String>,
    pub after: Option<String>,
}

/// What the service has made of an account: how many uses it added to the count, and the record as it left it, by default
/// `seed`.
pub fn theirs<'a>(journal: &'a [Write], id: &str, seed: &'a str) -> (i64, &'a str) {
    let writes: Vec<_> = journal.iter().filter(|write| write.uuid.as_deref() == Some(id)).collect();
    let added = writes.iter().map(|write| uses(write.after.as_deref()) - uses(write.before.as_deref())).sum();
    (added, writes.iter().rev().find_map(|write| write.after.as_deref()).unwrap_or(seed))
}

/// The count in a record; none without one.
pub fn uses(record: Option<&str>) -> i64 {
    record.map_or(0, |text| i64::try_from(Account::parse(text.as_bytes(), "a").unwrap().usage_count).unwrap())
}

/// The members of a record that we never write, in order, each with its bytes.
pub fn unknown_members(record: &str) -> Vec<(String, String)> {
    const OURS: [&str; 10] = [
        "isHealthy",
        "errorCount",
        "lastErrorTime",
        "lastErrorMessage",
        "scheduledRecoveryTime",
        "usageCount",
        "lastUsed",
        "needsRefresh",
        "refreshCount",
        "lastHealthCheckTime",
    ];
    let Members(members) = serde_json::from_str(record).unwrap_or_else(|error| panic!("{error}: {record}"));
    members.into_iter().filter(|(name, _)| !OURS.contains(&name.as_str())).collect()
}

struct Members(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    members.push((name, value.get().to_owned()));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
