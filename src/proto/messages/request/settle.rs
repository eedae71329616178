//! What becomes of the messages as a whole once they are read: references to tools, deferred tools (TR59), empty
//! messages (TR65), summaries (TR57).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::parts::{Block, Content, Message, Role, Tool, ToolChoice};
use crate::proto::json::tree::Text;

/// In front of the summary that stands for earlier messages (TR57).
const SUMMARY: &str = "Summary of the conversation so far:\n";

/// The names that the messages refer to, each with the index of its message and in their order: tools used and tools
/// loaded (TR59).
pub(super) fn references<'a>(messages: &[Message<'a>]) -> Vec<(usize, Cow<'a, str>)> {
    let mut found = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        for block in &message.blocks {
            match &block.content {
                Content::ToolUse(tool_use) => found.push((index, tool_use.name.clone())),
                Content::ToolsFound(names) => found.extend(names.iter().map(|name| (index, name.clone()))),
                Content::ToolResult(result) => {
                    found.extend(result.content.iter().filter_map(|block| match &block.content {
                        Content::ToolReference(name) => Some((index, name.clone())),
                        _ => None,
                    }))
                }
                _ => {}
            }
        }
    }
    found
}

/// The plain tools, then the deferred ones that something refers to, in the order of their first reference, so that the
/// list grows at its end (TR59).
pub(super) fn without_unloaded<'a>(
    tools: Vec<Tool<'a>>,
    referred: Vec<(usize, Cow<'a, str>)>,
    choice: &ToolChoice<'a>,
) -> Vec<Tool<'a>> {
    let (deferred, mut declared): (Vec<_>, Vec<_>) = tools.into_iter().partition(|tool| tool.deferred);
    let mut by_name: HashMap<Cow<'a, str>, Tool<'a>> = HashMap::new();
    for tool in deferred {
        by_name.entry(tool.name.clone()).or_insert(tool);
    }
    let chosen = match choice {
        ToolChoice::Tool(name) => Some(name),
        _ => None,
    };
    for name in referred.iter().map(|(_, name)| name).chain(chosen) {
        declared.extend(by_name.remove(name));
    }
    declared
}

/// Replaces references to tools by a text for the model (TR59). `tools` are the names of all tools of the request.
pub(super) fn resolve_references<'a, 't>(messages: &mut [Message<'a>], tools: impl Iterator<Item = &'t str>) {
    let mut references = messages
        .iter_mut()
        .flat_map(|message| &mut message.blocks)
        .filter_map(|block| match &mut block.content {
            Content::ToolResult(result) => Some(&mut result.content),
            _ => None,
        })
        .flatten()
        .filter(|block| matches!(block.content, Content::ToolReference(_)))
        .peekable();
    if references.peek().is_none() {
        return;
    }
    let known: HashSet<&str> = tools.collect();
    for block in references {
        if let Content::ToolReference(name) = &block.content {
            let found = if known.contains(&**name) { "loaded" } else { "not found" };
            block.content = Content::Text(Text::new(format!("Tool {found}: {name}")));
        }
    }
}

/// Leaves out assistant messages that came empty: their neighbours are merged (TR65).
pub(super) fn leave_out_empty(messages: &mut Vec<Message<'_>>) {
    let is_blank = |block: &Block<'_>| matches!(&block.content, Content::Text(text) if text.is_blank());
    messages.retain(|message| message.role != Role::Assistant || !message.blocks.iter().all(is_blank));
}

/// Puts the last summary in place of all that stands before it, but for the system messages in front (TR57).
pub(super) fn apply_summary(messages: &mut Vec<Message<'_>>) {
    let summary = messages.iter().enumerate().rev().find_map(|(index, message)| {
        let blocks = message.blocks.iter().enumerate().rev();
        blocks.into_iter().find_map(|(place, block)| match &block.content {
            Content::Summary(text) if !text.is_blank() => Some((index, place, text.decode().into_owned())),
            _ => None,
        })
    });
    let Some((index, place, summary)) = summary else { return };
    if let Some(message) = messages.get_mut(index) {
        message.blocks.drain(..=place);
    }
    let system = messages.iter().take_while(|message| message.role == Role::System).count();
    let content = Content::Text(Text::new(format!("{SUMMARY}{summary}")));
    let summary = Message { role: Role::User, blocks: vec![Block { content, cached: false }] };
    messages.splice(system.min(index)..index, [summary]);
}
