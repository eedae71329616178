//! Context editing (TR55, TR56): clears old tool results and thinking out of a request. It depends on the client's request
//! alone, so the same history is cleared alike on the next turn.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::estimate::{Estimator, block_hundredths, request_tokens};
use super::tools::Declared;
use crate::proto::json::tree::{Text, ValueId};
use crate::proto::messages::request::{
    Block, CLEAR_THINKING, CLEAR_TOOL_USES, ClearToolUses, Content, Edit, Inputs, Message, Request, Role, Trigger,
};

/// In place of a cleared result.
const CLEARED: &str = "[cleared to save context]";
/// Models that bind each thought to the one before it: theirs stay.
const BOUND_THOUGHTS: &str = "claude-fable";

/// Performs the edits of a request, in their order, and notes for its answer which changed something (M77).
pub fn edit(request: &mut Request<'_>) {
    let Some(edits) = request.edits.take() else { return };
    let applied: Vec<Value> = (edits.iter())
        .filter_map(|edit| match edit {
            Edit::ToolUses(clear) => clear_tool_uses(request, clear),
            Edit::Thinking { keep } => clear_thinking(request, *keep),
        })
        .collect();
    request.applied_edits = Some(json!({ "applied_edits": applied }).to_string());
}

/// A block by the indices of its message and in it.
type Place = (usize, usize);

/// What is cleared.
struct Clearing {
    results: Vec<Place>,
    /// With what is left of each input, a JSON object; none: nothing.
    inputs: Vec<(Place, Option<String>)>,
    /// Tokens that are saved.
    tokens: u64,
}

fn clear_tool_uses(request: &mut Request<'_>, clear: &ClearToolUses) -> Option<Value> {
    let Clearing { results, inputs, tokens } = clearing(request, clear)?;
    for place in &results {
        if let Some(Content::ToolResult(result)) = content(request, *place) {
            result.content = vec![Block { content: Content::Text(Text::constant(CLEARED)), cached: false }];
        }
    }
    for (place, left) in inputs {
        if let Some(Content::ToolUse(tool_use)) = content(request, place) {
            tool_use.input = None;
            tool_use.cleared = left;
        }
    }
    Some(json!({
        "type": CLEAR_TOOL_USES,
        "cleared_tool_uses": results.len(),
        "cleared_input_tokens": tokens,
    }))
}

/// What is to be cleared; none: nothing, or less than it is worth.
fn clearing(request: &Request<'_>, clear: &ClearToolUses) -> Option<Clearing> {
    let mut uses = HashMap::new();
    let mut results = Vec::new();
    let mut count = 0;
    for (index, message) in request.messages.iter().enumerate() {
        for (place, block) in message.blocks.iter().enumerate() {
            match &block.content {
                Content::ToolUse(tool_use) => {
                    count += 1;
                    uses.entry(&*tool_use.id).or_insert(((index, place), tool_use));
                }
                Content::ToolResult(result) => results.push(((index, place), result)),
                _ => {}
            }
        }
    }
    let is_reached = match clear.trigger {
        Trigger::ToolUses(least) => count >= least,
        Trigger::InputTokens(least) => request_tokens(request) >= least,
    };
    let kept = usize::try_from(clear.keep).unwrap_or(usize::MAX);
    results.truncate(results.len().saturating_sub(kept));
    results.retain(|(_, result)| uses.get(&*result.id).is_none_or(|(_, of)| !clear.exclude.contains(&*of.name)));
    if !is_reached || results.is_empty() {
        return None;
    }

    let mut inputs = Vec::new();
    let cleared = text_hundredths(CLEARED);
    let (mut before, mut after) = (0, 0);
    let declared = (clear.inputs != Inputs::None).then(|| Declared::of(request));
    for (_, result) in &results {
        before += result.content.iter().map(|block| block_hundredths(block, request)).sum::<u64>();
        after += cleared;
        let Some(declared) = &declared else { continue };
        // Each input once.
        let Some((place, tool_use)) = uses.remove(&*result.id) else { continue };
        let is_meant = match &clear.inputs {
            Inputs::None => false,
            Inputs::All => true,
            Inputs::Of(names) => names.contains(&*tool_use.name),
        };
        let Some(input) = tool_use.input.filter(|_| is_meant) else { continue };
        // A use without any input would be left out where one is required (TR16).
        let left = declared.requires_something(&tool_use.name).then(|| shortest_member(request, input)).flatten();
        before += json_hundredths(request, input);
        after += text_hundredths(left.as_deref().unwrap_or("{}"));
        inputs.push((place, left));
    }
    let tokens = before.saturating_sub(after) / 100;
    let results = results.into_iter().map(|(place, _)| place).collect();
    (tokens >= clear.at_least).then_some(Clearing { results, inputs, tokens })
}

/// An object with the shortest member of an input.
fn shortest_member(request: &Request<'_>, input: ValueId) -> Option<String> {
    let (key, value) = request.json.value(input).members().min_by_key(|(_, value)| value.raw().len())?;
    let mut left = String::from("{");
    key.write_quoted(&mut left);
    left.push(':');
    value.write(&mut left);
    left.push('}');
    Some(left)
}

/// Leaves out the thinking of all turns but the last `keep` ones that have some.
fn clear_thinking(request: &mut Request<'_>, keep: u64) -> Option<Value> {
    if request.model().starts_with(BOUND_THOUGHTS) {
        return None;
    }
    // The turn of each message: it lasts until the user says something, results of tools aside.
    let mut turn = 0;
    let turns: Vec<usize> = (request.messages.iter())
        .map(|message| {
            turn += usize::from(speaks(message));
            turn
        })
        .collect();
    let thinks = |message: &Message<'_>| message.blocks.iter().any(is_thought);
    let mut thinking: Vec<usize> =
        turns.iter().zip(&request.messages).filter(|(_, message)| thinks(message)).map(|(turn, _)| *turn).collect();
    thinking.dedup();
    let kept = usize::try_from(keep).unwrap_or(usize::MAX);
    thinking.truncate(thinking.len().saturating_sub(kept));
    let last = *thinking.last()?;

    let meant = turns.iter().take_while(|turn| **turn <= last).count();
    let hundredths: u64 = (request.messages.iter().take(meant))
        .flat_map(|message| &message.blocks)
        .filter(|block| is_thought(block))
        .map(|block| block_hundredths(block, request))
        .sum();
    for message in request.messages.iter_mut().take(meant) {
        message.blocks.retain(|block| !is_thought(block));
    }
    Some(json!({
        "type": CLEAR_THINKING,
        "cleared_thinking_turns": thinking.len(),
        "cleared_input_tokens": hundredths / 100,
    }))
}

/// Whether it is a user's with anything but results of tools.
fn speaks(message: &Message<'_>) -> bool {
    message.role == Role::User && !message.blocks.iter().all(|block| matches!(block.content, Content::ToolResult(_)))
}

fn is_thought(block: &Block<'_>) -> bool {
    matches!(block.content, Content::Thinking { .. } | Content::RedactedThinking { .. })
}

fn content<'q, 'a>(request: &'q mut Request<'a>, (message, block): Place) -> Option<&'q mut Content<'a>> {
    Some(&mut request.messages.get_mut(message)?.blocks.get_mut(block)?.content)
}

fn text_hundredths(text: &str) -> u64 {
    let mut sum = Estimator::default();
    sum.text(text);
    sum.hundredths()
}

fn json_hundredths(request: &Request<'_>, value: ValueId) -> u64 {
    let mut sum = Estimator::default();
    request.json.value(value).write(&mut sum);
    sum.hundredths()
}
