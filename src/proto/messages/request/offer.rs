//! Which tools the next reply may use: those of `tools`, as the system messages changed them (M69).

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::parts::{Tool, ToolChoice};
use super::value::{Path, RequestError, Result, quotable};

/// The change that a `tool_addition` or `tool_removal` block makes, from its place in the conversation on.
#[derive(Debug)]
pub(super) enum Change<'a> {
    /// A tool defined by value. It replaces one of the same name.
    Define(Tool<'a>),
    /// A tool that was declared before, by its name; `message` and `block` are the indices of the block that names it.
    Offer { name: Cow<'a, str>, message: usize, block: usize },
    /// A tool that is no longer offered.
    Withdraw(Cow<'a, str>),
}

impl<'a> Change<'a> {
    /// The tool that it defines.
    pub fn defined(&self) -> Option<&Tool<'a>> {
        match self {
            Self::Define(tool) => Some(tool),
            _ => None,
        }
    }

    /// The index of its message and the name that it offers.
    pub fn offer(&self) -> Option<(usize, Cow<'a, str>)> {
        match self {
            Self::Offer { name, message, .. } => Some((*message, name.clone())),
            _ => None,
        }
    }
}

/// A name that no tool has.
pub(super) struct Unknown<'a> {
    pub name: Cow<'a, str>,
    pub message: usize,
    pub block: usize,
}

/// Applies the changes in their order. `server_names` are the names of the tools that only Anthropic could run: they
/// may be offered and withdrawn, without effect.
///
/// # Errors
/// A name is offered that nothing before declared. Such a name may be withdrawn.
pub(super) fn offered<'a>(
    mut tools: Vec<Tool<'a>>,
    changes: Vec<Change<'a>>,
    server_names: &[Cow<'a, str>],
) -> std::result::Result<Vec<Tool<'a>>, Unknown<'a>> {
    if changes.is_empty() {
        return Ok(tools);
    }
    let server_names: HashSet<&str> = server_names.iter().map(|name| &**name).collect();
    // By name: the first tool of that name, which counts (M50), and whether it is offered.
    let mut places: HashMap<Cow<'a, str>, (usize, bool)> = HashMap::new();
    for (place, tool) in tools.iter().enumerate() {
        places.entry(tool.name.clone()).or_insert((place, true));
    }
    for change in changes {
        match change {
            Change::Define(tool) => match places.entry(tool.name.clone()) {
                Entry::Occupied(mut known) => {
                    known.get_mut().1 = true;
                    if let Some(place) = tools.get_mut(known.get().0) {
                        *place = tool;
                    }
                }
                Entry::Vacant(new) => {
                    new.insert((tools.len(), true));
                    tools.push(tool);
                }
            },
            Change::Offer { name, message, block } => match places.get_mut(&name) {
                Some((_, is_offered)) => *is_offered = true,
                None if server_names.contains(&*name) => {}
                None => return Err(Unknown { name, message, block }),
            },
            Change::Withdraw(name) => {
                if let Some((_, is_offered)) = places.get_mut(&name) {
                    *is_offered = false;
                }
            }
        }
    }
    tools.retain(|tool| places.get(&tool.name).is_some_and(|(_, is_offered)| *is_offered));
    Ok(tools)
}

/// The part of M25 that looks at the tools.
pub(super) fn check_tool_choice(choice: &ToolChoice<'_>, tools: &[Tool<'_>]) -> Result<()> {
    let at = Path::top("tool_choice");
    match choice {
        ToolChoice::Any if tools.is_empty() => Err(at.error("needs tools")),
        ToolChoice::Tool(name) if !tools.iter().any(|tool| tool.name == *name) => {
            Err(at.field("name").error(no_tool(name)))
        }
        _ => Ok(()),
    }
}

pub(super) fn no_tool(name: &str) -> String {
    quotable(name).map_or_else(|| "no tool of that name".to_owned(), |name| format!("no tool named {name}"))
}

/// The refusal of a list none of whose tools can be served (M49).
pub(super) fn only_server_tools(kind: &str) -> RequestError {
    let kind = quotable(kind).unwrap_or_else(|| "a tool of this type".to_owned());
    Path::top("tools").error(format!("{kind} can't be served through Kiro"))
}
