//! Which models the accounts have (K125), asked in the background, and the list of `/v1/models` (M86).

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;

use super::shared::{Gateway, Shared};
use super::turns::{Asked, Pace};
use crate::policy::learned::Lesson;
use crate::pool::{AccountId, PoolEvent, short};
use crate::proto::kiro::catalogue::{Catalogue, Listed};
use crate::proto::kiro::fault::FaultKind;
use crate::proto::messages::request::quotable;
use crate::proto::translate::model::{FoundModel, Model, Models};

/// How often a used account is asked.
const EVERY: Duration = Duration::from_secs(60 * 60);
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

/// Each account that is used is asked for its models, never on a request's path.
pub(super) const PACE: Pace = Pace { every: EVERY, at_once: AT_ONCE, gap: Duration::ZERO };

/// Asks one account for its models.
pub(super) async fn ask(shared: Weak<Shared>, id: AccountId) -> Asked {
    let Some(shared) = shared.upgrade() else { return Asked::Gone };
    let Some(lease) = shared.pool.look_in(&id) else { return Asked::Gone };
    let read = tokio::select! {
        () = shared.closed.cancelled() => return Asked::Gone,
        read = shared.credentials.list_models(&lease) => read,
    };
    match read {
        Ok(catalogue) => {
            tracing::debug!(account = short(&id), models = catalogue.models().len(), "the account's models are known");
            lease.learn(Lesson::Catalogue(Arc::new(catalogue)));
            shared.merge_catalogues();
            Asked::Answered
        }
        Err(fault) => {
            tracing::debug!(account = short(&id), fault = ?fault.kind, status = fault.status, "the account's models are not known");
            if fault.kind == FaultKind::Suspended {
                lease.suspended(&fault);
            }
            Asked::Failed
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
}
