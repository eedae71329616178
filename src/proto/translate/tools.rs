//! Tools: which go out, their names, ids and descriptions (TR19–TR24, TR63).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::schema::{ANY_OBJECT, EMPTY_SCHEMA, Merged, Schema, sanitised};
use crate::proto::json::tree::{JsonTree, Text, Value, ValueId};
use crate::proto::kiro::request::Tool as KiroTool;
use crate::proto::kiro::search::{DESCRIPTION, SCHEMA};
use crate::proto::messages::request::{Request, Tool, ToolChoice};
use crate::proto::messages::search::WEB_SEARCH;

/// Longest tool name upstream takes (K21).
const MAX_NAME: usize = 64;
/// Characters that are kept of a name that must be changed; `_` and 8 hex digits follow.
const KEPT_NAME: usize = 55;
/// Longest description upstream takes, in characters (K21).
const MAX_DESCRIPTION: usize = 10_240;
/// The description of a tool that only the history knows (TR23).
const STUB_DESCRIPTION: &str = "Tool used earlier in this conversation.";

/// Upstream tool names back to the client's (TR20): holds only the names that had to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolNames {
    /// (upstream, client)
    changed: Vec<(String, String)>,
}

impl ToolNames {
    /// The client's name of a tool; a name that wasn't changed passes through.
    pub fn client_name<'a>(&'a self, upstream: &'a str) -> &'a str {
        self.changed.iter().find(|(changed, _)| changed == upstream).map_or(upstream, |(_, client)| client)
    }
}

impl<U: Into<String>, C: Into<String>> FromIterator<(U, C)> for ToolNames {
    fn from_iter<I: IntoIterator<Item = (U, C)>>(pairs: I) -> Self {
        Self { changed: pairs.into_iter().map(|(upstream, client)| (upstream.into(), client.into())).collect() }
    }
}

/// The id upstream knows a call by (TR63): the client's if it is one of 1–64 characters `A-Za-z0-9_-`, else one made of its
/// hash, the same for a use and its result.
pub(crate) fn upstream_id(id: &str) -> Cow<'_, str> {
    if is_plain(id) {
        return Cow::Borrowed(id);
    }
    // The first 22 characters are 132 of 256 bits.
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(id));
    Cow::Owned(format!("tooluse_{}", hash.get(..22).unwrap_or(&hash)))
}

/// Whether upstream takes it as a tool's name or id (K21).
fn is_plain(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(is_allowed)
}

fn is_allowed(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_' || char == '-'
}

/// The name upstream knows a tool by (TR20): the client's if it is one of 1–64 characters `A-Za-z0-9_-`, else a
/// shortened one with a hash of the client's.
pub(crate) fn upstream_name(name: &str) -> Cow<'_, str> {
    if is_plain(name) {
        return Cow::Borrowed(name);
    }
    let mut short: String =
        name.chars().map(|char| if is_allowed(char) { char } else { '_' }).take(KEPT_NAME).collect();
    short.push('_');
    for byte in Sha256::digest(name).iter().take(4) {
        short.push_str(&format!("{byte:02x}"));
    }
    Cow::Owned(short)
}

/// The tools that the client declared, each name once (TR19).
pub(crate) struct Declared<'r> {
    json: &'r JsonTree<'r>,
    /// In the client's order.
    tools: Vec<DeclaredTool<'r>>,
    by_name: HashMap<&'r str, usize>,
}

struct DeclaredTool<'r> {
    tool: &'r Tool<'r>,
    upstream_name: Cow<'r, str>,
    schema: Schema,
}

impl<'r> Declared<'r> {
    pub fn of(request: &'r Request<'_>) -> Self {
        let mut declared = Self { json: &request.json, tools: Vec::new(), by_name: HashMap::new() };
        let mut upstream_names = HashSet::new();
        for tool in &request.tools {
            let upstream_name = upstream_name(&tool.name);
            // Upstream refuses equal names (TOOL_DUPLICATE), also when only our shortening made them equal.
            if !upstream_names.insert(upstream_name.clone()) {
                continue;
            }
            let schema = match (&tool.search, tool.published) {
                (Some(_), _) => Schema { requires_something: true, ..Schema::default() },
                (None, Some(schema)) => Schema::published(schema),
                (None, None) => Schema::of(tool.schema.map(|schema| request.json.value(schema))),
            };
            declared.by_name.insert(&tool.name, declared.tools.len());
            declared.tools.push(DeclaredTool { tool, upstream_name, schema });
        }
        declared
    }

    /// Whether Anthropic's web search is among them (M87).
    pub fn searches(&self) -> bool {
        self.find(WEB_SEARCH).is_some_and(|declared| declared.tool.search.is_some())
    }

    /// Whether a tool needs input (TR16); an undeclared one doesn't.
    pub fn requires_something(&self, name: &str) -> bool {
        self.find(name).is_some_and(|declared| declared.schema.requires_something)
    }

    /// Whether a tool has a property of its own that is called like a fragment's key (TR15).
    pub fn takes_fragments_as_they_are(&self, name: &str) -> bool {
        self.find(name).is_some_and(|declared| declared.schema.has_raw_arguments)
    }

    /// The tools that go out, and the map back to the client's names: the client's tools, then stubs for the other
    /// names `used` in history (TR23). With `tool_choice` `none` only those of the client's tools that are used.
    pub fn for_request(self, choice: &ToolChoice<'_>, used: &[&'r str]) -> (Vec<KiroTool<'r>>, ToolNames) {
        let none = *choice == ToolChoice::None;
        let is_used: HashSet<_> = used.iter().copied().collect();
        let mut sent = Vec::with_capacity(self.tools.len());
        let mut changed = Vec::new();
        let mut upstream_names = HashSet::new();
        for DeclaredTool { tool, upstream_name: name, schema } in self.tools {
            if none && !is_used.contains(&*tool.name) {
                continue;
            }
            upstream_names.insert(name.clone());
            if name != tool.name {
                changed.push((name.to_string(), tool.name.to_string()));
            }
            if tool.search.is_some() {
                let description = Text::constant(DESCRIPTION);
                sent.push(KiroTool { description, schema: Cow::Borrowed(SCHEMA), name });
                continue;
            }
            let own = description(tool, &name);
            let (schema, description) = match (tool.published, schema.merged) {
                (Some(schema), _) => (Cow::Borrowed(schema), own),
                (None, None) => (clean(tool.schema.map(|schema| self.json.value(schema))), own),
                (None, Some(Merged::Object(schema))) => (Cow::Owned(schema), own),
                (None, Some(Merged::Told(note))) => (Cow::Borrowed(ANY_OBJECT), described(&own, &note)),
            };
            let description = with_examples(description, &tool.examples, self.json);
            sent.push(KiroTool { description, schema, name });
        }
        for client_name in used {
            let name = upstream_name(client_name);
            if upstream_names.insert(name.clone()) {
                if name != *client_name {
                    changed.push((name.to_string(), (*client_name).to_owned()));
                }
                sent.push(KiroTool {
                    name,
                    description: Text::constant(STUB_DESCRIPTION),
                    schema: Cow::Borrowed(EMPTY_SCHEMA),
                });
            }
        }
        (sent, changed.into_iter().collect())
    }

    fn find(&self, name: &str) -> Option<&DeclaredTool<'r>> {
        self.tools.get(*self.by_name.get(name)?)
    }
}

/// A schema as it goes out (TR22); the client's own text where nothing changes.
fn clean<'r>(schema: Option<Value<'r, 'r>>) -> Cow<'r, str> {
    let clean = sanitised(schema);
    match schema.map(Value::raw) {
        Some(own) if own == clean => Cow::Borrowed(own),
        _ => Cow::Owned(clean),
    }
}

/// A description with what its schema can't say behind it (TR64).
fn described(own: &Text<'_>, note: &str) -> Text<'static> {
    let room = MAX_DESCRIPTION.saturating_sub(note.chars().count() + 1);
    Text::new(format!("{}\n{note}", own.truncated(room).decode()))
}

/// A description with as many whole examples of an input behind it as fit (TR58).
fn with_examples<'r>(own: Text<'r>, examples: &[ValueId], json: &'r JsonTree<'r>) -> Text<'r> {
    const HEAD: &str = "\n\nInput examples:";
    if examples.is_empty() {
        return own;
    }
    let mut text = own.decode().into_owned();
    let mut room = MAX_DESCRIPTION.saturating_sub(text.chars().count() + HEAD.len());
    let mut head = Some(HEAD);
    for example in examples {
        let mut line = String::from("\n");
        json.value(*example).write(&mut line);
        let length = line.chars().count();
        if length <= room {
            room -= length;
            text.push_str(head.take().unwrap_or_default());
            text.push_str(&line);
        }
    }
    if head.is_some() { own } else { Text::new(text) }
}

/// The description that goes out (TR21).
fn description<'r>(tool: &'r Tool<'r>, name: &str) -> Text<'r> {
    match &tool.description {
        Some(text) if !text.is_blank() => text.truncated(MAX_DESCRIPTION),
        _ => Text::new(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_of_the_alphabet_pass_tr20() {
        let longest = "a".repeat(64);
        for name in ["f", "WebSearch", "mcp__a-b_9", &longest] {
            assert_eq!(upstream_name(name), name);
        }
        for name in ["a b", "ns.tool/x", "会", &"a".repeat(65)] {
            let short = upstream_name(name);
            assert_ne!(short, name);
            assert!(short.len() <= MAX_NAME, "{short}");
            assert!(short.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'), "{short}");
        }
        assert_eq!(upstream_name(&"é".repeat(100)).len(), 64);
        assert_ne!(upstream_name("a.b"), upstream_name("a/b"));
    }

    #[test]
    fn ids_that_upstream_refuses_become_a_hash_tr63() {
        let longest = "a".repeat(64);
        for id in ["toolu_01", "call_x-Y", &longest] {
            assert!(matches!(upstream_id(id), Cow::Borrowed(same) if same == id));
        }
        for id in ["call_a|fc_b", "functions.x:0", "é", &"a".repeat(65)] {
            let changed = upstream_id(id);
            assert_eq!((changed.len(), &changed[..8]), (30, "tooluse_"), "{id}");
            assert!(is_plain(&changed), "{changed}");
            assert_eq!(upstream_id(id), changed);
        }
        assert_ne!(upstream_id("a|b"), upstream_id("a:b"));
    }

    #[test]
    fn upstream_names_lead_back_to_the_clients_tr20() {
        let names: ToolNames = [("get_weather_f65d4328", "get.weather")].into_iter().collect();
        assert_eq!(names.client_name("get_weather_f65d4328"), "get.weather");
        assert_eq!(names.client_name("other"), "other");
    }
}
