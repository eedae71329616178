//! Whether upstream takes our client version (K104–K107): every call reports here, for the log, the metrics and
//! `/health`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::proto::kiro::fault::{Fault, FaultKind};

/// The least time between two log lines about refusals.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// After this many refused chat calls in a row, none older than [`RECENT`], `/health` says that nothing is served
/// (K107).
const LAST_CALLS: usize = 20;
const RECENT: Duration = Duration::from_secs(5 * 60);
/// Hosts that are counted by name; a pool with more of them has odd addresses in its records.
const MOST_HOSTS: usize = 64;
/// The label of all further hosts.
const OTHER: &str = "other";

/// Refusals of our client version.
pub struct Gate {
    version: String,
    inside: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    /// Since when a host refuses; gone with its next success. At its bound, further ones change nothing.
    // Bound: hosts that refuse the client version | MOST_HOSTS | a further one isn't noted
    refusing: BTreeMap<String, Instant>,
    /// Refusals by host and call, since the start.
    // Bound: hosts whose refusals are counted by name | MOST_HOSTS | further ones are counted as `other`
    counts: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// When the last chat calls ended, and whether they were refused.
    // Bound: results of the last chat calls | LAST_CALLS | the oldest goes
    chats: VecDeque<(Instant, bool)>,
    told: Option<Instant>,
    /// Refusals since the last log line.
    untold: u64,
}

/// For `/health` and the metrics.
#[derive(Debug, Clone, Default)]
pub struct GateStatus {
    /// Since when some host refuses the client version; none: no host does.
    pub refused_for: Option<Duration>,
    /// Every one of the last chat calls was refused.
    pub shut: bool,
    /// Refusals by call and host.
    pub counts: Vec<(&'static str, String, u64)>,
}

impl Gate {
    pub(super) fn new(version: &str) -> Self {
        Self { version: version.to_owned(), inside: Mutex::default() }
    }

    /// A call ended: `call` is `chat`, `usage`, `refresh` and the like. Only an answer counts.
    pub fn heard(&self, call: &'static str, host: &str, outcome: Result<(), &Fault>) {
        self.heard_at(call, host, outcome, Instant::now());
    }

    fn heard_at(&self, call: &'static str, host: &str, outcome: Result<(), &Fault>, now: Instant) {
        let refused = match outcome {
            Ok(()) => false,
            Err(fault) if fault.kind == FaultKind::ClientVersion => true,
            Err(_) => return,
        };
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        // The series exists before it counts: an alert's series must not begin at 1.
        let is_told_apart = inside.counts.len() < MOST_HOSTS || inside.counts.contains_key(host);
        let counted = if is_told_apart { host } else { OTHER };
        if !inside.counts.contains_key(counted) {
            inside.counts.insert(counted.to_owned(), BTreeMap::new());
        }
        if let Some(calls) = inside.counts.get_mut(counted) {
            *calls.entry(call).or_default() += u64::from(refused);
        }
        if call == "chat" {
            if inside.chats.len() == LAST_CALLS {
                inside.chats.pop_front();
            }
            inside.chats.push_back((now, refused));
        }
        if !refused {
            if inside.refusing.remove(host).is_some() {
                tracing::info!(host, "upstream takes this client version again");
            }
            return;
        }
        if inside.refusing.len() < MOST_HOSTS {
            inside.refusing.entry(host.to_owned()).or_insert(now);
        }
        inside.untold += 1;
        if inside.told.is_none_or(|told| now - told >= TELL_EVERY) {
            let refusals = std::mem::take(&mut inside.untold);
            inside.told = Some(now);
            tracing::error!(
                version = self.version,
                call,
                host,
                refusals,
                "Kiro refuses this client version: update this program, or set KIRO_CLIENT_VERSION to a newer version of \
                 Kiro's IDE"
            );
        }
    }

    /// The state now.
    pub fn status(&self) -> GateStatus {
        self.status_at(Instant::now())
    }

    fn status_at(&self, now: Instant) -> GateStatus {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let since = inside.refusing.values().min();
        let shut = inside.chats.len() == LAST_CALLS
            && inside.chats.iter().all(|(at, refused)| *refused && now - *at <= RECENT);
        GateStatus {
            refused_for: since.map(|since| now - *since),
            shut,
            counts: (inside.counts.iter())
                .flat_map(|(host, calls)| calls.iter().map(|(call, count)| (*call, host.clone(), *count)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Fault {
        let text = br#"{"message":"This version of Kiro is no longer supported. Please update to the latest version of Kiro to continue."}"#;
        Fault::from_http(400, None, None, text, false, &Default::default())
    }

    #[test]
    fn a_refusing_host_degrades_and_twenty_refusals_shut_k107() {
        let gate = Gate::new("0.8.140");
        let mut now = Instant::now();
        let other = Fault::network("cut");
        gate.heard_at("chat", "q.a", Err(&other), now);
        assert!(gate.status_at(now).refused_for.is_none());
        for n in 1..=20 {
            assert!(!gate.status_at(now).shut, "{n}");
            gate.heard_at("chat", "q.a", Err(&refusal()), now);
            now += Duration::from_secs(1);
        }
        assert!(gate.status_at(now).shut);
        assert_eq!(gate.status_at(now).refused_for, Some(Duration::from_secs(20)));
        assert_eq!(gate.status_at(now).counts, [("chat", "q.a".to_owned(), 20)]);
        gate.heard_at("usage", "q.b", Ok(()), now);
        assert!(gate.status_at(now).refused_for.is_some(), "another host says nothing of this one");
        gate.heard_at("usage", "q.a", Ok(()), now);
        let status = gate.status_at(now);
        assert!(status.refused_for.is_none() && status.shut, "what was refused are chats");
        gate.heard_at("chat", "q.a", Ok(()), now);
        assert!(!gate.status_at(now).shut);
        for _ in 0..20 {
            gate.heard_at("chat", "q.a", Err(&refusal()), now);
        }
        now += Duration::from_secs(301);
        assert!(!gate.status_at(now).shut, "long ago");
        for n in 0..2_000 {
            gate.heard_at("chat", &format!("h{n}"), Err(&refusal()), now);
        }
        assert!(gate.status_at(now).counts.len() <= MOST_HOSTS + 2);
        // Each of them is cleared by its own success, however many there were.
        for n in 0..2_000 {
            assert!(gate.status_at(now).refused_for.is_some() || n >= MOST_HOSTS);
            gate.heard_at("chat", &format!("h{n}"), Ok(()), now);
        }
        gate.heard_at("chat", "q.a", Ok(()), now);
        assert!(gate.status_at(now).refused_for.is_none());
    }
}
