//! Ranking of accounts for one request.
//!
//! [`rank`] says whether an account may take the request, and in which tier; [`choose`] takes one of the best by the
//! strategy. Both go over every account of the pool, in the order of the bytes of their ids (R13), so that instances
//! with the same snapshot and the same ticket choose the same account.

use std::str::FromStr;

use jiff::Timestamp;

use super::health::HealthState;

/// How one account is taken out of several equally good ones (`KIRO_STRATEGY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Strategy {
    /// In turn, by the shared ticket (R36).
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight in this process; equals in turn.
    LeastBusy,
    /// The one that the conversation's id hashes to (rendezvous hashing): a conversation moves only when its account
    /// is away, and then only that account's conversations move.
    Sticky,
}

impl Strategy {
    /// The word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastBusy => "least-busy",
            Self::Sticky => "sticky",
        }
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        [Self::RoundRobin, Self::LeastBusy, Self::Sticky]
            .into_iter()
            .find(|strategy| strategy.as_str() == word)
            .ok_or_else(|| format!("one of round-robin, least-busy, sticky, not {word:?}"))
    }
}

/// One account as a request for an account sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The account's id.
    pub id: &'a str,
    /// Its health (R15).
    pub state: HealthState,
    /// It has an access token that lives for more than 10 s, or needs none: no blocking refresh (R38).
    pub live_token: bool,
    /// Upstream has rejected its profile ARN and the record holds no other one since (`ProfileArn`, K45).
    pub arn_rejected: bool,
    /// `notSupportedModels` names the model (R7).
    pub model_unsupported: bool,
    /// It has refused the model lately (K88).
    pub model_refused: bool,
    /// How well it fits the request, 0 the best: its catalogue has the model (K127), one of its shapes is open (K109).
    /// It never excludes an account.
    pub fit: u8,
    /// `priority` of its record, the lowest first.
    pub priority: i64,
    /// The request has tried it already.
    pub excluded: bool,
    /// Requests that it serves for this process.
    pub in_flight: u32,
    /// `concurrencyLimit` of its record (N86); 0: no limit.
    pub cap: u32,
    /// It is half-open and its one request is on the way.
    pub probing: bool,
    /// It has had its requests of this minute, and the first place is free then (K92).
    pub paced_until: Option<Timestamp>,
    /// It has just refused for its own reasons, and isn't marked yet (R105).
    pub refused_lately: bool,
    /// How often in a row it has rested, if it rests or is half-open because of a soft fault.
    pub rests_softly: Option<u32>,
}

/// The order of preference of accounts; the first is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Healthy, or half-open and free, with a live access token.
    Ready,
    /// The same, but upstream rejected its profile ARN.
    WithoutProfile,
    /// Needs a refresh soon; its token is still live.
    Stale,
    /// Needs a refresh before the request can go out: "selection takes such accounts last" (R38).
    Blocking,
    /// The same, and its record says so: only when no healthy account is left.
    StaleBlocking,
    /// Just seen to refuse: offered to nobody who can have another (R105).
    Refused,
    /// Rests for a fault that may be upstream's, or is half-open after it with its one request on the way: when nobody else
    /// may serve, rather than that nobody does. The one with the fewest rests in a row goes first.
    Resting(u32),
}

/// Why an account can't take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unselectable {
    /// The request has tried it already.
    Excluded,
    /// `notSupportedModels` names the model.
    Model,
    /// It has refused the model lately.
    SaidNo,
    /// Its state forbids it; a rest that ends says when.
    State(HealthState),
    /// It is half-open with its one request on the way.
    Probing,
    /// It is at its limit of requests in flight.
    Busy,
    /// It has had its requests of this minute (K92); the first place is free then.
    Paced(Timestamp),
}

impl Unselectable {
    /// Whether only a limit stands in the way: the account is good, but busy (R101).
    pub fn is_limit(self) -> bool {
        match self {
            Self::Busy | Self::Paced(_) => true,
            Self::Excluded | Self::Model | Self::SaidNo | Self::State(_) | Self::Probing => false,
        }
    }
}

impl Tier {
    /// Whether it is offered only to requests that can't have another account.
    pub fn is_last_resort(self) -> bool {
        matches!(self, Self::Refused | Self::Resting(_))
    }
}

/// Whether an account may take the request. `cap`: requests in flight per account, 0: no limit.
pub fn rank(candidate: &Candidate<'_>, cap: u32) -> Result<Tier, Unselectable> {
    if candidate.model_unsupported {
        return Err(Unselectable::Model);
    }
    if candidate.model_refused {
        return Err(Unselectable::SaidNo);
    }
    if candidate.excluded {
        return Err(Unselectable::Excluded);
    }
    let mut resting = None;
    let stale = match (candidate.state, candidate.rests_softly) {
        (HealthState::Healthy, _) => false,
        (HealthState::Stale, _) => true,
        (HealthState::HalfOpen, _) if !candidate.probing => false,
        (HealthState::HalfOpen | HealthState::Cooling { .. }, Some(rests)) => {
            resting = Some(Tier::Resting(rests));
            false
        }
        (HealthState::HalfOpen, None) => return Err(Unselectable::Probing),
        (
            HealthState::Disabled
            | HealthState::Unusable
            | HealthState::Quota { .. }
            | HealthState::Ejected
            | HealthState::NoProfile { .. }
            | HealthState::Cooling { .. },
            _,
        ) => {
            return Err(Unselectable::State(candidate.state));
        }
    };
    if [cap, candidate.cap].iter().any(|&cap| cap > 0 && candidate.in_flight >= cap) {
        return Err(Unselectable::Busy);
    }
    if let Some(until) = candidate.paced_until {
        return Err(Unselectable::Paced(until));
    }
    if let Some(resting) = resting {
        return Ok(resting);
    }
    if candidate.refused_lately {
        return Ok(Tier::Refused);
    }
    Ok(match (candidate.live_token, stale, candidate.arn_rejected) {
        (false, true, _) => Tier::StaleBlocking,
        (false, false, _) => Tier::Blocking,
        (true, true, _) => Tier::Stale,
        (true, false, true) => Tier::WithoutProfile,
        (true, false, false) => Tier::Ready,
    })
}

/// The order of accounts: not resting, else fewest rests; not just seen to refuse (R105); best fit (K109, K127); lowest
/// `priority`; best tier.
fn place(candidate: &(Tier, Candidate<'_>)) -> (Tier, u8, i64, Tier) {
    let (tier, candidate) = candidate;
    (if tier.is_last_resort() { *tier } else { Tier::Ready }, candidate.fit, candidate.priority, *tier)
}

/// One of the accounts of the best place, by the strategy. `candidates` are those that [`rank`] let pass, in the order
/// of the bytes of their ids. Returns an index into it; none when it is empty.
///
/// Round-robin: `ticket mod number of accounts in the best place` (R36). Least-busy: the same among those with the
/// fewest requests in flight. Sticky: the greatest hash of (conversation, id); the ticket is ignored.
pub fn choose(
    candidates: &[(Tier, Candidate<'_>)],
    strategy: Strategy,
    ticket: u64,
    conversation: &str,
) -> Option<usize> {
    let best = candidates.iter().map(place).min()?;
    let mut in_tier = candidates.iter().enumerate().filter(|(_, candidate)| place(candidate) == best);
    match strategy {
        Strategy::RoundRobin => nth_of(ticket, in_tier),
        Strategy::LeastBusy => {
            let fewest = in_tier.clone().map(|(_, (_, candidate))| candidate.in_flight).min()?;
            nth_of(ticket, in_tier.filter(|(_, (_, candidate))| candidate.in_flight == fewest))
        }
        Strategy::Sticky => {
            let (mut index, (_, first)) = in_tier.next()?;
            let mut greatest = weight(conversation, first.id);
            for (other, (_, candidate)) in in_tier {
                let weight = weight(conversation, candidate.id);
                if weight > greatest {
                    (index, greatest) = (other, weight);
                }
            }
            Some(index)
        }
    }
}

/// The account with which a conversation stays (R101): the first of `homes` that [`rank`] let pass, that hasn't just
/// refused (R105) and doesn't rest. Returns an index into `candidates`. It comes before the strategy, and no ticket is
/// drawn.
pub fn keep(candidates: &[(Tier, Candidate<'_>)], homes: &[impl AsRef<str>]) -> Option<usize> {
    homes.iter().find_map(|home| {
        candidates.iter().position(|(tier, candidate)| !tier.is_last_resort() && candidate.id == home.as_ref())
    })
}

fn nth_of<T>(ticket: u64, items: impl Iterator<Item = (usize, T)> + Clone) -> Option<usize> {
    let count = items.clone().count() as u64;
    let nth = ticket.checked_rem(count)?;
    items.skip(usize::try_from(nth).ok()?).map(|(index, _)| index).next()
}

/// FNV-1a over `conversation NUL id`, then MurmurHash3's finaliser: the same on every instance and in every version.
fn weight(conversation: &str, id: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in conversation.bytes().chain([0]).chain(id.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn account(id: &str) -> Candidate<'_> {
        Candidate {
            id,
            state: HealthState::Healthy,
            live_token: true,
            arn_rejected: false,
            model_unsupported: false,
            model_refused: false,
            fit: 0,
            priority: 0,
            excluded: false,
            in_flight: 0,
            cap: 0,
            probing: false,
            paced_until: None,
            refused_lately: false,
            rests_softly: None,
        }
    }

    fn chosen(candidates: &[Candidate<'_>], strategy: Strategy, ticket: u64, conversation: &str) -> Option<String> {
        let ranked: Vec<_> = candidates.iter().filter_map(|c| rank(c, 0).ok().map(|tier| (tier, *c))).collect();
        choose(&ranked, strategy, ticket, conversation).map(|index| ranked[index].1.id.to_owned())
    }

    #[test]
    fn round_robin_counts_only_the_best_tier() {
        let all = [
            account("a1"),
            Candidate { state: HealthState::Stale, ..account("a2") },
            Candidate { live_token: false, ..account("a3") },
            account("a4"),
        ];
        let turns: Vec<_> = (0..4).map(|ticket| chosen(&all, Strategy::RoundRobin, ticket, "").unwrap()).collect();
        assert_eq!(turns, ["a1", "a4", "a1", "a4"]);
        assert_eq!(chosen(&all, Strategy::RoundRobin, u64::MAX, "").unwrap(), "a4");
        assert_eq!(chosen(&[], Strategy::RoundRobin, 7, ""), None);
    }

    /// R15: a stale account is taken only when no healthy one is left, also where each needs a refresh first.
    #[test]
    fn a_stale_account_comes_after_every_healthy_one_that_must_refresh_too() {
        let expired = |id| Candidate { live_token: false, ..account(id) };
        let all = [Candidate { state: HealthState::Stale, ..expired("a1") }, expired("a2")];
        assert!((0..4).all(|ticket| chosen(&all, Strategy::RoundRobin, ticket, "").unwrap() == "a2"));
        assert_eq!(chosen(&all[..1], Strategy::RoundRobin, 0, "").unwrap(), "a1");
    }

    #[test]
    fn accounts_are_taken_tier_by_tier() {
        let until = Timestamp::UNIX_EPOCH;
        let one = account("a");
        let table = [
            (one, Ok(Tier::Ready)),
            (Candidate { state: HealthState::HalfOpen, ..one }, Ok(Tier::Ready)),
            (Candidate { arn_rejected: true, ..one }, Ok(Tier::WithoutProfile)),
            (Candidate { state: HealthState::Stale, ..one }, Ok(Tier::Stale)),
            (Candidate { live_token: false, ..one }, Ok(Tier::Blocking)),
            (Candidate { state: HealthState::Stale, live_token: false, ..one }, Ok(Tier::StaleBlocking)),
            (Candidate { refused_lately: true, ..one }, Ok(Tier::Refused)),
            (Candidate { state: HealthState::Cooling { until }, rests_softly: Some(2), ..one }, Ok(Tier::Resting(2))),
            (
                Candidate { state: HealthState::Cooling { until }, rests_softly: Some(2), in_flight: 3, ..one },
                Err(Unselectable::Busy),
            ),
            (Candidate { state: HealthState::HalfOpen, rests_softly: Some(2), ..one }, Ok(Tier::Ready)),
            (
                Candidate { state: HealthState::HalfOpen, rests_softly: Some(2), probing: true, ..one },
                Ok(Tier::Resting(2)),
            ),
            (
                Candidate { state: HealthState::Quota { until }, rests_softly: Some(2), ..one },
                Err(Unselectable::State(HealthState::Quota { until })),
            ),
            (Candidate { in_flight: 2, ..one }, Ok(Tier::Ready)),
            (Candidate { in_flight: 3, ..one }, Err(Unselectable::Busy)),
            (Candidate { state: HealthState::HalfOpen, in_flight: 1, ..one }, Ok(Tier::Ready)),
            (Candidate { state: HealthState::HalfOpen, probing: true, ..one }, Err(Unselectable::Probing)),
            (Candidate { paced_until: Some(until), ..one }, Err(Unselectable::Paced(until))),
            (Candidate { paced_until: Some(until), in_flight: 3, ..one }, Err(Unselectable::Busy)),
            (Candidate { excluded: true, ..one }, Err(Unselectable::Excluded)),
            (Candidate { model_unsupported: true, ..one }, Err(Unselectable::Model)),
            (Candidate { model_refused: true, ..one }, Err(Unselectable::SaidNo)),
            (Candidate { state: HealthState::Disabled, ..one }, Err(Unselectable::State(HealthState::Disabled))),
            (Candidate { state: HealthState::Unusable, ..one }, Err(Unselectable::State(HealthState::Unusable))),
            (Candidate { state: HealthState::Ejected, ..one }, Err(Unselectable::State(HealthState::Ejected))),
            (
                Candidate { state: HealthState::Quota { until }, ..one },
                Err(Unselectable::State(HealthState::Quota { until })),
            ),
            (
                Candidate { state: HealthState::NoProfile { until }, ..one },
                Err(Unselectable::State(HealthState::NoProfile { until })),
            ),
            (
                Candidate { state: HealthState::Cooling { until }, ..one },
                Err(Unselectable::State(HealthState::Cooling { until })),
            ),
        ];
        for (candidate, expected) in table {
            assert_eq!(rank(&candidate, 3), expected, "{candidate:?}");
        }
        let order = [
            Tier::Ready,
            Tier::WithoutProfile,
            Tier::Stale,
            Tier::Blocking,
            Tier::StaleBlocking,
            Tier::Refused,
            Tier::Resting(0),
            Tier::Resting(1),
        ];
        assert!(order.is_sorted_by(|a, b| a < b));
    }

    /// R90: the lowest tier in which somebody is selectable, the strategy inside it.
    #[test]
    fn the_lowest_priority_goes_first_r90() {
        let all = [
            Candidate { priority: 5, ..account("a1") },
            Candidate { priority: -1, live_token: false, ..account("a2") },
            Candidate { priority: 5, ..account("a3") },
            account("a4"),
        ];
        let order = |mut left: Vec<Candidate<'static>>, strategy| {
            let mut taken = Vec::new();
            while let Some(id) = chosen(&left, strategy, 0, "c") {
                left.retain(|candidate| candidate.id != id);
                taken.push(id);
            }
            taken
        };
        assert_eq!(order(all.to_vec(), Strategy::RoundRobin), ["a2", "a4", "a1", "a3"]);
        for strategy in [Strategy::LeastBusy, Strategy::Sticky] {
            let taken = order(all.to_vec(), strategy);
            assert_eq!(taken[..2], ["a2", "a4"], "{strategy:?}");
        }
        let turns: Vec<_> =
            (0..4).map(|ticket| chosen(&[all[0], all[2]], Strategy::RoundRobin, ticket, "").unwrap()).collect();
        assert_eq!(turns, ["a1", "a3", "a1", "a3"]);
    }

    #[test]
    fn an_account_behind_the_others_is_not_excluded_k109_k127_r105() {
        let cooling = HealthState::Cooling { until: Timestamp::UNIX_EPOCH };
        let worse = Candidate { state: cooling, rests_softly: Some(3), ..account("a0") };
        let resting = Candidate { rests_softly: Some(1), priority: 9, fit: 3, ..worse };
        assert!((0..4).all(|ticket| chosen(&[worse, resting], Strategy::RoundRobin, ticket, "").is_some_and(|_| {
            let ranked = [(Tier::Resting(3), worse), (Tier::Resting(1), resting)];
            choose(&ranked, Strategy::RoundRobin, ticket, "") == Some(1)
        })));
        let all = [
            Candidate { refused_lately: true, ..account("a1") },
            Candidate { fit: 2, ..account("a2") },
            Candidate { fit: 1, ..account("a3") },
            Candidate { priority: 9, ..account("a4") },
        ];
        for (n, id) in [(4, "a4"), (3, "a3"), (2, "a2"), (1, "a1")] {
            assert!((0..4).all(|ticket| chosen(&all[..n], Strategy::RoundRobin, ticket, "").unwrap() == id), "{id}");
        }
    }

    #[test]
    fn a_conversation_stays_while_its_account_may_be_taken_r101() {
        let ranked = |all: &[Candidate<'static>]| -> Vec<_> {
            all.iter().filter_map(|one| rank(one, 3).ok().map(|tier| (tier, *one))).collect()
        };
        let kept = |all: &[Candidate<'static>], homes: &[&str]| {
            let ranked = ranked(all);
            keep(&ranked, homes).map(|index| ranked[index].1.id)
        };
        let all = [account("a1"), Candidate { priority: 9, fit: 2, ..account("a2") }, account("a3")];
        assert_eq!(kept(&all, &["a2", "a3"]), Some("a2"), "a home outweighs what else comes first");
        assert_eq!(kept(&all, &["gone", "a3"]), Some("a3"));
        assert_eq!(kept(&all, &[]), None);
        for away in [
            Candidate { state: HealthState::Cooling { until: Timestamp::UNIX_EPOCH }, ..account("a2") },
            Candidate { model_unsupported: true, ..account("a2") },
            Candidate { excluded: true, ..account("a2") },
            Candidate { in_flight: 3, ..account("a2") },
            Candidate { refused_lately: true, ..account("a2") },
        ] {
            assert_eq!(kept(&[account("a1"), away], &["a2"]), None, "{away:?}");
        }
    }

    #[test]
    fn least_busy_takes_the_idlest_and_turns_among_equals() {
        let all = [Candidate { in_flight: 2, ..account("a1") }, account("a2"), account("a3")];
        assert_eq!(chosen(&all, Strategy::LeastBusy, 0, "").unwrap(), "a2");
        assert_eq!(chosen(&all, Strategy::LeastBusy, 1, "").unwrap(), "a3");
    }

    #[test]
    fn sticky_moves_only_the_conversations_of_the_account_that_left() {
        let ids: Vec<String> = (0..10).map(|n| format!("account-{n}")).collect();
        let all: Vec<_> = ids.iter().map(|id| account(id)).collect();
        let fewer: Vec<_> = all.iter().copied().filter(|c| c.id != "account-3").collect();
        let mut load = std::collections::BTreeMap::<String, u32>::new();
        for n in 0..2_000 {
            let conversation = format!("conversation-{n}");
            let before = chosen(&all, Strategy::Sticky, n, &conversation).unwrap();
            assert_eq!(Some(before.clone()), chosen(&all, Strategy::Sticky, n + 1, &conversation));
            let after = chosen(&fewer, Strategy::Sticky, n, &conversation).unwrap();
            assert!(before == "account-3" || before == after);
            *load.entry(before).or_default() += 1;
        }
        assert!(load.len() == 10 && load.values().all(|n| (120..=280).contains(n)), "{load:?}");
    }

    #[test]
    fn strategies_are_read_from_their_words() {
        assert_eq!("least-busy".parse(), Ok(Strategy::LeastBusy));
        assert!("Sticky".parse::<Strategy>().is_err());
    }
}
