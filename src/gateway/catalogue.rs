//! Which models the accounts have (K125), asked in the background, and the list of `/v1/models` (M86).

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Gateway, Shared, now};
use crate::policy::learned::Lesson;
use crate::pool::{AccountId, PoolEvent, short};
use crate::proto::kiro::catalogue::{Catalogue, Listed};
use crate::proto::kiro::fault::FaultKind;
use crate::proto::messages::request::quotable;
use crate::proto::translate::model::{FoundModel, Model, Models};

/// How often a used account is asked.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// The pause after a failure. It doubles with each further one, up to [`EVERY`].
const AGAIN: Duration = Duration::from_secs(60);
/// Accounts asked at once.
const AT_ONCE: usize = 2;

/// A model as `/v1/models` lists it (M66).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// Always `model`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The name to ask for.
    pub id: String,
    /// For people.
    pub display_name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Context window in tokens.
    pub max_input_tokens: u64,
    /// Most output tokens.
    pub max_tokens: u64,
}

/// The used accounts, for the task that asks them.
#[derive(Default)]
pub(super) struct Discovery {
    turns: Mutex<Schedule>,
    /// A new account is used.
    changed: Notify,
}

impl Discovery {
    /// The account has answered a request. Wakes the task only when that is news: once an hour for each account.
    pub(super) fn used(&self, account: &AccountId) {
        if self.turns().used(account, now()) {
            self.changed.notify_one();
        }
    }

    fn turns(&self) -> MutexGuard<'_, Schedule> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most accounts in the schedule. Beyond that, unused ones are dropped.
const MOST_TURNS: usize = 16_384;

/// Which account is asked when.
#[derive(Default)]
struct Schedule(HashMap<AccountId, ScheduledAccount>);

struct ScheduledAccount {
    due: Instant,
    /// It has answered since it was asked last.
    used: bool,
    asking: bool,
    failures: u32,
}

impl Schedule {
    /// Marks it as used; whether it wasn't before.
    fn used(&mut self, id: &AccountId, now: Instant) -> bool {
        if let Some(turn) = self.0.get_mut(id) {
            return !mem::replace(&mut turn.used, true);
        }
        if self.0.len() >= MOST_TURNS {
            self.0.retain(|_, turn| turn.used || turn.asking);
        }
        self.0.insert(id.clone(), ScheduledAccount { due: now, used: true, asking: false, failures: 0 });
        true
    }

    /// The account to be asked next, and when. None while the most are being asked. Unused accounts aren't asked,
    /// except for the early repeats after a failure.
    fn next(&self) -> Option<(Instant, AccountId)> {
        if self.0.values().filter(|turn| turn.asking).count() >= AT_ONCE {
            return None;
        }
        let repeats = |turn: &ScheduledAccount| turn.failures > 0 && pause(turn.failures) < EVERY;
        let waiting = self.0.iter().filter(|(_, turn)| !turn.asking && (turn.used || repeats(turn)));
        waiting.map(|(id, turn)| (turn.due, id.clone())).min()
    }

    fn begin(&mut self, id: &AccountId) {
        if let Some(turn) = self.0.get_mut(id) {
            (turn.asking, turn.used) = (true, false);
        }
    }

    fn done(&mut self, id: &AccountId, answer: CatalogueAnswer, now: Instant) {
        if answer == CatalogueAnswer::Gone {
            self.0.remove(id);
        }
        if let Some(turn) = self.0.get_mut(id) {
            turn.failures = if answer == CatalogueAnswer::Read { 0 } else { turn.failures.saturating_add(1) };
            turn.due = now + if turn.failures == 0 { EVERY } else { pause(turn.failures) };
            turn.asking = false;
        }
    }
}

/// The pause after `failures` in a row.
fn pause(failures: u32) -> Duration {
    AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(EVERY)
}

/// Asks each account that is used for its models, never on a request's path.
pub(super) async fn discover(shared: Weak<Shared>, discovery: Arc<Discovery>, stop: CancellationToken) {
    // Dropping it with this task cancels the running calls.
    let mut asking = JoinSet::<(AccountId, CatalogueAnswer)>::new();
    loop {
        let next = discovery.turns().next();
        tokio::select! {
            () = stop.cancelled() => return,
            () = discovery.changed.notified() => {}
            Some(asked) = asking.join_next() => match asked {
                Ok((id, answer)) => discovery.turns().done(&id, answer, now()),
                Err(_) => discovery.turns().0.retain(|_, turn| !turn.asking),
            },
            () = sleep_until(next.as_ref().map(|(due, _)| *due)) => if let Some((_, id)) = next {
                discovery.turns().begin(&id);
                let answer = ask(shared.clone(), id.clone());
                asking.spawn(async move { (id, answer.await) });
            },
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The result of asking an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CatalogueAnswer {
    Read,
    Failed,
    /// The account has left the pool, or the gateway is closed.
    Gone,
}

async fn ask(shared: Weak<Shared>, id: AccountId) -> CatalogueAnswer {
    let Some(shared) = shared.upgrade() else { return CatalogueAnswer::Gone };
    let Some(lease) = shared.pool.look_in(&id) else { return CatalogueAnswer::Gone };
    let read = tokio::select! {
        () = shared.closed.cancelled() => return CatalogueAnswer::Gone,
        read = shared.credentials.list_models(&lease) => read,
    };
    match read {
        Ok(catalogue) => {
            tracing::debug!(account = short(&id), models = catalogue.models().len(), "the account's models are known");
            lease.learn(Lesson::Catalogue(Arc::new(catalogue)));
            shared.merge_catalogues();
            CatalogueAnswer::Read
        }
        Err(fault) => {
            tracing::debug!(account = short(&id), fault = ?fault.kind, status = fault.status, "the account's models are not known");
            if fault.kind == FaultKind::Suspended {
                lease.suspended(&fault);
            }
            CatalogueAnswer::Failed
        }
    }
}

impl Shared {
    /// Makes the table that resolves names: the file's or the embedded one, and a row for each model that only a
    /// catalogue has.
    pub(super) fn merge_catalogues(&self) {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let catalogues = self.pool.catalogues();
        let found = catalogues.iter().filter_map(|(_, catalogue)| catalogue.as_ref()).flat_map(|known| known.models());
        let merged = table.with_found(found.map(|model| FoundModel {
            kiro_id: &model.kiro_id,
            display_name: model.name.as_deref(),
            window: model.window,
            max_output: model.max_output,
        }));
        self.models.store(Arc::new(merged));
    }

    /// Whether the name passes to upstream only by rule, and was refused there lately (K89, TR36).
    pub(super) fn is_refused_name(&self, models: &Models, name: &str) -> bool {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |row: &Model| row.passed && names.is_refused(&row.kiro_id, self.pool.now());
        !names.is_none_refused() && models.resolve(name, None).is_some_and(|found| refused(&found.row))
    }

    /// Warns that an unknown name goes upstream, once a day for each name (TR36).
    pub(super) fn tell_passing(&self, row: &Model) {
        let is_new = || {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.passes(&row.kiro_id, self.pool.now())
        };
        if row.passed && is_new() {
            tracing::warn!(
                model = row.kiro_id,
                "a model that this program doesn't know was asked for: Kiro decides whether there is one"
            );
        }
    }

    /// Whether the name has a row, or passes (TR35–TR38).
    pub(super) fn is_known_name(&self, name: &str) -> bool {
        self.models.load().resolve(name, None).is_some()
    }

    /// Says that the host program's model serves an unknown name, once a day for each name (N90).
    pub(super) fn tell_replaced(&self, name: &str, row: &Model) {
        let name = quotable(name).unwrap_or_else(|| "(a long or unprintable name)".to_owned());
        let is_new = || {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.passes(&name, self.pool.now())
        };
        if is_new() {
            let instead = row.listed_name();
            tracing::warn!(model = name, instead, "a model that isn't known was asked for: another one serves it");
            self.pool.tell(PoolEvent::ModelReplaced { name, instead: instead.to_owned() });
        }
    }

    /// Replaces the table.
    pub(super) fn set_table(&self, table: Models) {
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        self.merge_catalogues();
    }
}

impl Gateway {
    /// The models of `/v1/models`, newest first; only names that begin with `claude`, unless `KIRO_MODELS_LIST=all`.
    pub fn list_models(&self) -> Vec<ModelInfo> {
        let all = self.shared.config.models_list_all;
        shown(&self.shared.models.load(), &self.shared.pool.catalogues(), all)
    }

    /// One model, under the name that was asked for: aliases resolve to themselves (M67).
    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        let found = self.shared.models.load().resolve(name, None).filter(|found| !found.row.passed)?;
        Some(shown_as(name, &found.row, &self.shared.pool.catalogues()))
    }
}

/// The listed models (M86), with the largest figures of all accounts. Once every healthy account's catalogue is known,
/// models that no account has are left out.
pub(super) fn shown(models: &Models, catalogues: &[(bool, Option<Arc<Catalogue>>)], all: bool) -> Vec<ModelInfo> {
    let known: Vec<&Catalogue> = catalogues.iter().filter_map(|(_, catalogue)| catalogue.as_deref()).collect();
    let complete = !known.is_empty() && catalogues.iter().all(|(healthy, known)| !healthy || known.is_some());
    let rows = models.list_all().filter(|row| all || row.listed_name().starts_with("claude"));
    rows.filter(|row| !complete || row.pin || entries(row, &known).next().is_some())
        .map(|row| info(row.listed_name(), row, &known))
        .collect()
}

/// One model under the name that was asked for (M67).
pub(super) fn shown_as(name: &str, row: &Model, catalogues: &[(bool, Option<Arc<Catalogue>>)]) -> ModelInfo {
    let known: Vec<&Catalogue> = catalogues.iter().filter_map(|(_, catalogue)| catalogue.as_deref()).collect();
    info(name, row, &known)
}

fn entries<'k>(row: &'k Model, known: &'k [&Catalogue]) -> impl Iterator<Item = &'k Listed> {
    known.iter().filter_map(|known| known.get(&row.kiro_id).or_else(|| known.get(row.alt.as_deref()?)))
}

fn info(name: &str, row: &Model, known: &[&Catalogue]) -> ModelInfo {
    let most = |of: fn(&Listed) -> Option<u64>| entries(row, known).filter(|_| !row.pin).filter_map(of).max();
    ModelInfo {
        kind: "model",
        id: name.to_owned(),
        display_name: row.display_name.clone(),
        created_at: row.created.clone(),
        max_input_tokens: most(|listed| listed.window).unwrap_or(row.window),
        max_tokens: most(|listed| listed.max_output).unwrap_or(row.max_output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(models: &[(&str, u64)]) -> Option<Arc<Catalogue>> {
        let model =
            |(id, window): &(&str, u64)| format!(r#"{{"modelId":"{id}","tokenLimits":{{"maxInputTokens":{window}}}}}"#);
        let models: Vec<_> = models.iter().map(model).collect();
        let mut catalogue = Catalogue::default();
        catalogue.add_page(format!(r#"{{"models":[{}]}}"#, models.join(",")).as_bytes()).unwrap();
        Some(Arc::new(catalogue))
    }

    #[test]
    fn the_list_holds_the_models_of_the_accounts_m86() {
        let some = catalogue(&[("claude-opus-5", 500_000), ("gpt-5.6-sol", 1_000_000), ("claude-opus-9.9", 2_000_000)]);
        let more = catalogue(&[("claude-opus-5", 700_000), ("CLAUDE_SONNET_4_20250514_V1_0", 1)]);
        let found = |id, window| FoundModel { kiro_id: id, display_name: None, window: Some(window), max_output: None };
        let models = Models::embedded().with_found([found("claude-opus-9.9", 2_000_000)]);
        let shown = |catalogues: &[_], all| {
            let shown = super::shown(&models, catalogues, all);
            shown.into_iter().map(|model| (model.id, model.max_input_tokens)).collect::<Vec<_>>()
        };
        let name = |id: &str, window| (id.to_owned(), window);
        // An account without a known catalogue may have all of them.
        let partly = shown(&[(true, some.clone()), (true, None)], false);
        assert_eq!(partly.len(), 16);
        assert!(
            partly.contains(&name("claude-opus-5", 500_000)) && partly.contains(&name("claude-sonnet-5", 1_000_000))
        );
        // A resting account doesn't count.
        let whole = [(true, some), (true, more), (false, None)];
        let claude = [name("claude-opus-5", 700_000), name("claude-sonnet-4", 1), name("claude-opus-9-9", 2_000_000)];
        assert_eq!(shown(&whole, false), claude);
        assert!(shown(&whole, true).contains(&name("gpt-5.6-sol", 1_000_000)));
        assert_eq!(shown(&[], false).len(), 16);
    }

    /// Which account is asked when, in seconds, up to `end`; answers come at once.
    fn asked(uses: &[(u64, &str)], answer: impl Fn(usize) -> CatalogueAnswer, end: u64) -> Vec<(u64, String)> {
        let began = now();
        let at = |second| began + Duration::from_secs(second);
        let (mut turns, mut uses, mut asked) = (Schedule::default(), uses.iter().peekable(), Vec::new());
        loop {
            let next = turns.next();
            let due = next.as_ref().map(|(due, _)| *due);
            match (uses.peek(), next) {
                (Some((second, id)), _) if due.is_none_or(|due| at(*second) <= due) => {
                    turns.used(&(*id).into(), at(*second));
                    uses.next();
                }
                (last, Some((due, id))) => {
                    // A use may have come long after it was due.
                    let due = due.max(at(asked.last().map_or(0, |(second, _)| *second)));
                    if due > at(end) || last.is_none() && asked.len() > 100 {
                        return asked;
                    }
                    asked.push(((due - began).as_secs(), id.to_string()));
                    turns.begin(&id);
                    turns.done(&id, answer(asked.len()), due);
                }
                (_, None) => return asked,
            }
        }
    }

    fn seconds(asked: &[(u64, String)]) -> Vec<u64> {
        asked.iter().map(|(second, _)| *second).collect()
    }

    #[test]
    fn failures_are_repeated_after_60_s_and_120_s_a100_k125() {
        let third = |calls| if calls < 4 { CatalogueAnswer::Failed } else { CatalogueAnswer::Read };
        assert_eq!(seconds(&asked(&[(10, "a")], third, 50_000)), [10, 70, 190, 430], "whether it is used or not");
        let used = [(10, "a"), (440, "a"), (4_000, "a")];
        assert_eq!(
            seconds(&asked(&used, third, 50_000)),
            [10, 70, 190, 430, 4_030],
            "an hour later, since it was used"
        );
        assert_eq!(asked(&[], third, 50_000), [], "nobody is asked who wasn't used");
    }

    #[test]
    fn an_account_that_never_answers_is_left_alone_until_it_is_used_k125() {
        let never = asked(&[(0, "a")], |_| CatalogueAnswer::Failed, 50_000);
        assert_eq!(seconds(&never), [0, 60, 180, 420, 900, 1_860, 3_780]);
        assert_eq!(asked(&[(0, "a"), (3_781, "a")], |_| CatalogueAnswer::Failed, 50_000).len(), 8);
        assert_eq!(asked(&[(0, "a")], |_| CatalogueAnswer::Gone, 50_000).len(), 1);
    }

    #[test]
    fn never_more_than_two_accounts_are_asked_at_once_k125() {
        let (mut turns, began) = (Schedule::default(), now());
        for id in ["a", "b", "c"] {
            assert!(turns.used(&id.into(), began) && !turns.used(&id.into(), began));
        }
        for id in ["a", "b"] {
            assert_eq!(turns.next().map(|(due, id)| (due, id.to_string())), Some((began, id.to_owned())));
            turns.begin(&id.into());
        }
        assert_eq!(turns.next(), None);
        turns.done(&"b".into(), CatalogueAnswer::Read, began);
        assert_eq!(turns.next(), Some((began, "c".into())));
    }

    #[test]
    fn accounts_that_come_and_go_are_forgotten_k125() {
        let (mut turns, began) = (Schedule::default(), now());
        for n in 0..3 * MOST_TURNS {
            let id = AccountId::from(format!("{n}"));
            turns.used(&id, began);
            turns.begin(&id);
            turns.done(&id, CatalogueAnswer::Read, began);
        }
        assert!(turns.0.len() <= MOST_TURNS);
    }

    #[test]
    fn failures_double_up_to_an_hour_k125() {
        let pauses: Vec<_> = (1..=8).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(pause(u32::MAX), EVERY);
    }
}
