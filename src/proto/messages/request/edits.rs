//! `context_management`: what the client wants to be cleared (TR55).

use std::collections::HashSet;

use super::value::{Path, Result, array, boolean, fields, integer_from, object, one_of, required, string};
use crate::proto::json::tree::{Text, Value, ValueKind};

/// An edit that the gateway performs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    ToolUses(ClearToolUses),
    /// `clear_thinking_20251015` with the number of turns whose thinking stays.
    Thinking {
        keep: u64,
    },
}

/// `clear_tool_uses_20250919`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClearToolUses {
    pub trigger: Trigger,
    /// How many results at the end stay.
    pub keep: u64,
    /// Tools whose results stay.
    pub exclude: HashSet<String>,
    pub inputs: Inputs,
    /// Fewer tokens than this aren't worth it.
    pub at_least: u64,
}

/// When results are cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    InputTokens(u64),
    ToolUses(u64),
}

/// Whose inputs are cleared with the results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inputs {
    None,
    All,
    Of(HashSet<String>),
}

/// The types of the edits.
pub(crate) const CLEAR_TOOL_USES: &str = "clear_tool_uses_20250919";
pub(crate) const CLEAR_THINKING: &str = "clear_thinking_20251015";
/// Each edit goes through all messages; more of them have no effect.
const MOST_EDITS: usize = 16;
const DEFAULT_TRIGGER: u64 = 100_000;
const DEFAULT_RESULTS: u64 = 3;
const DEFAULT_TURNS: u64 = 1;

/// The edits, in their order; those that change nothing are left out.
pub(super) fn read_edits(management: Value<'_, '_>, at: Path<'_>) -> Result<Vec<Edit>> {
    let [edits] = fields(object(management, at)?, ["edits"]);
    let at = at.field("edits");
    let Some(edits) = edits else { return Ok(Vec::new()) };
    let mut read = Vec::new();
    for (index, edit) in array(edits, at)?.elements().enumerate() {
        let at = at.index(index);
        let [kind] = fields(object(edit, at)?, ["type"]);
        let kind_at = at.field("type");
        match &*string(required(kind, kind_at)?, kind_at)?.into_decoded() {
            _ if read.len() == MOST_EDITS => at.ignored(),
            CLEAR_TOOL_USES => read.push(Edit::ToolUses(clear_tool_uses(edit, at)?)),
            CLEAR_THINKING => read.extend(clear_thinking(edit, at)?),
            _ => at.ignored(),
        }
    }
    Ok(read)
}

fn clear_tool_uses(edit: Value<'_, '_>, at: Path<'_>) -> Result<ClearToolUses> {
    let [trigger, keep, exclude, inputs, at_least] =
        fields(edit, ["trigger", "keep", "exclude_tools", "clear_tool_inputs", "clear_at_least"]);
    let trigger = match trigger.map(|trigger| amount(trigger, ["input_tokens", "tool_uses"], at.field("trigger"))) {
        None => Trigger::InputTokens(DEFAULT_TRIGGER),
        Some(read) => match read? {
            ("input_tokens", value) => Trigger::InputTokens(value),
            (_, value) => Trigger::ToolUses(value),
        },
    };
    let value = |given: Option<Value<'_, '_>>, kind, name, default| match given {
        None => Ok(default),
        Some(given) => amount(given, [kind], at.field(name)).map(|(_, value)| value),
    };
    let inputs_at = at.field("clear_tool_inputs");
    Ok(ClearToolUses {
        trigger,
        keep: value(keep, "tool_uses", "keep", DEFAULT_RESULTS)?,
        exclude: exclude.map_or(Ok(HashSet::new()), |exclude| names(exclude, at.field("exclude_tools")))?,
        inputs: match inputs {
            None => Inputs::None,
            Some(list) if list.kind() == ValueKind::Array => Inputs::Of(names(list, inputs_at)?),
            Some(all) if boolean(all, inputs_at)? => Inputs::All,
            Some(_) => Inputs::None,
        },
        at_least: value(at_least, "input_tokens", "clear_at_least", 0)?,
    })
}

/// None: all thinking stays.
fn clear_thinking(edit: Value<'_, '_>, at: Path<'_>) -> Result<Option<Edit>> {
    let [keep] = fields(edit, ["keep"]);
    let at = at.field("keep");
    let Some(keep) = keep else { return Ok(Some(Edit::Thinking { keep: DEFAULT_TURNS })) };
    let word = if keep.kind() == ValueKind::Object { keep.member("type") } else { Some(keep) };
    if word.and_then(Value::text).is_some_and(|word| word.is("all")) {
        return Ok(None);
    }
    let (_, keep) = amount(keep, ["thinking_turns"], at)?;
    Ok(Some(Edit::Thinking { keep }))
}

/// `{type, value}`.
fn amount<const N: usize>(given: Value<'_, '_>, kinds: [&'static str; N], at: Path<'_>) -> Result<(&'static str, u64)> {
    let [kind, value] = fields(object(given, at)?, ["type", "value"]);
    let (kind_at, value_at) = (at.field("type"), at.field("value"));
    let kind = string(required(kind, kind_at)?, kind_at)?;
    let kind = kinds.into_iter().find(|name| kind.is(name)).ok_or_else(|| kind_at.error(one_of(kinds)))?;
    Ok((kind, integer_from(0, required(value, value_at)?, value_at)?))
}

fn names(list: Value<'_, '_>, at: Path<'_>) -> Result<HashSet<String>> {
    let name = |(index, name)| string(name, at.index(index)).map(Text::into_decoded).map(Into::into);
    array(list, at)?.elements().enumerate().map(name).collect()
}
