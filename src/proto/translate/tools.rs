//! Tool names, descriptions and schemas (TR19–TR24).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::proto::json::tree::{JsonTree, Sink, Text, Value, ValueKind};
use crate::proto::kiro::request::Tool as KiroTool;
use crate::proto::messages::request::{Request, Tool, ToolChoice};

/// Longest tool name upstream takes (K21).
const MAX_NAME: usize = 64;
/// Characters that are kept of a name that must be changed; `_` and 8 hex digits follow.
const KEPT_NAME: usize = 55;
/// Longest description upstream takes, in characters (K21).
const MAX_DESCRIPTION: usize = 10_240;
/// Keywords that are stripped from schemas at every depth. None by default: what third parties report as refused
/// was observed to pass (TR22).
const STRIPPED_KEYWORDS: &[&str] = &[];
/// The description of a tool that only the history knows (TR23).
const STUB_DESCRIPTION: &str = "Tool used earlier in this conversation.";
/// The schema of such a tool, and in place of a schema that isn't an object (TR22).
const EMPTY_SCHEMA: &str = r#"{"type":"object","properties":{}}"#;

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

/// The name upstream knows a tool by (TR20): the client's if it is one of 1–64 characters `A-Za-z0-9_-`, else a
/// shortened one with a hash of the client's.
pub(crate) fn upstream_name(name: &str) -> Cow<'_, str> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == '-';
    if name.len() <= MAX_NAME && name.chars().all(allowed) {
        return Cow::Borrowed(name);
    }
    let mut short: String = name.chars().map(|char| if allowed(char) { char } else { '_' }).take(KEPT_NAME).collect();
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
    /// Its schema, as it goes out, requires something.
    requires_something: bool,
    /// Its schema has a property of the name that fragments use.
    takes_fragments_as_they_are: bool,
}

/// The one key of a tool input that an older service left in pieces (TR15).
pub(crate) const RAW_ARGUMENTS: &str = "raw_arguments";

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
            let schema = tool.schema.map(|schema| request.json.value(schema));
            let member = |name| schema.and_then(|schema| schema.member(name));
            declared.by_name.insert(&tool.name, declared.tools.len());
            declared.tools.push(DeclaredTool {
                tool,
                upstream_name,
                requires_something: member("required")
                    .is_some_and(|required| required_names(required).next().is_some()),
                takes_fragments_as_they_are: member("properties")
                    .is_some_and(|properties| properties.member(RAW_ARGUMENTS).is_some()),
            });
        }
        declared
    }

    /// Whether a tool needs input (TR16); an undeclared one doesn't.
    pub fn requires_something(&self, name: &str) -> bool {
        self.find(name).is_some_and(|declared| declared.requires_something)
    }

    /// Whether a tool has a property of its own that is called like a fragment's key (TR15).
    pub fn takes_fragments_as_they_are(&self, name: &str) -> bool {
        self.find(name).is_some_and(|declared| declared.takes_fragments_as_they_are)
    }

    /// The tools that go out, and the map back to the client's names: the client's tools, then stubs for the other
    /// names `used` in history (TR23). With `tool_choice` `none` only those of the client's tools that are used.
    pub fn for_request(self, choice: &ToolChoice<'_>, used: &[&'r str]) -> (Vec<KiroTool<'r>>, ToolNames) {
        let none = *choice == ToolChoice::None;
        let is_used: HashSet<_> = used.iter().copied().collect();
        let mut sent = Vec::with_capacity(self.tools.len());
        let mut changed = Vec::new();
        let mut upstream_names = HashSet::new();
        for DeclaredTool { tool, upstream_name: name, .. } in self.tools {
            if none && !is_used.contains(&*tool.name) {
                continue;
            }
            upstream_names.insert(name.clone());
            if name != tool.name {
                changed.push((name.to_string(), tool.name.to_string()));
            }
            sent.push(KiroTool {
                description: description(tool, &name),
                schema: Cow::Owned(sanitised(tool.schema.map(|schema| self.json.value(schema)))),
                name,
            });
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

/// The description that goes out (TR21).
fn description<'r>(tool: &'r Tool<'r>, name: &str) -> Text<'r> {
    match &tool.description {
        Some(text) if !text.is_blank() => text.truncated(MAX_DESCRIPTION),
        _ => Text::new(name.to_owned()),
    }
}

/// The schema that goes out (TR22), compact.
fn sanitised(schema: Option<Value<'_, '_>>) -> String {
    match schema {
        Some(schema) if schema.kind() == ValueKind::Object => {
            let mut out = String::with_capacity(schema.raw().len() + 32);
            write_schema(schema, true, &mut out);
            out
        }
        _ => EMPTY_SCHEMA.to_owned(),
    }
}

fn write_schema(schema: Value<'_, '_>, top: bool, out: &mut String) {
    if schema.kind() != ValueKind::Object {
        // `true` and `false` are schemas too.
        return schema.write(out);
    }
    let mut list = List::open("{", out);
    if top && schema.member("type").is_none_or(is_null) {
        list.next(out);
        out.put(r#""type":"object""#);
    }
    for (key, value) in schema.members() {
        let name = key.decode();
        let is_kept_null = matches!(&*name, "const" | "default");
        if is_null(value) && !is_kept_null || STRIPPED_KEYWORDS.contains(&&*name) {
            continue;
        }
        if name == "required" && required_names(value).next().is_none() {
            continue;
        }
        list.next(out);
        key.write_quoted(out);
        out.put(":");
        match &*name {
            "type" if top => out.put(r#""object""#),
            "required" => write_list(required_names(value), out, |name, out| name.write_quoted(out)),
            "properties" => write_schema_map(value, |name| !name.starts_with('$'), out),
            "patternProperties" | "$defs" | "definitions" | "dependentSchemas" if value.kind() == ValueKind::Object => {
                write_schema_map(value, |_| true, out);
            }
            "items" | "prefixItems" | "anyOf" | "allOf" | "oneOf" if value.kind() == ValueKind::Array => {
                let members = value.elements().filter(|member| !is_null(*member));
                write_list(members, out, |member, out| write_schema(member, false, out));
            }
            "items"
            | "additionalItems"
            | "contains"
            | "additionalProperties"
            | "propertyNames"
            | "not"
            | "if"
            | "then"
            | "else"
            | "unevaluatedItems"
            | "unevaluatedProperties" => write_schema(value, false, out),
            _ => value.write(out),
        }
    }
    out.put("}");
}

/// Named schemas; anything but an object counts as none.
fn write_schema_map(map: Value<'_, '_>, is_kept: impl Fn(&str) -> bool, out: &mut String) {
    let mut list = List::open("{", out);
    for (key, schema) in map.members().filter(|(key, schema)| !is_null(*schema) && is_kept(&key.decode())) {
        list.next(out);
        key.write_quoted(out);
        out.put(":");
        write_schema(schema, false, out);
    }
    out.put("}");
}

fn write_list<T>(items: impl Iterator<Item = T>, out: &mut String, write: impl Fn(T, &mut String)) {
    let mut list = List::open("[", out);
    for item in items {
        list.next(out);
        write(item, out);
    }
    out.put("]");
}

/// The strings of `required`, without those that begin with `$`: such properties are dropped (TR22).
fn required_names<'j, 'a>(required: Value<'j, 'a>) -> impl Iterator<Item = Text<'a>> {
    required.elements().filter_map(Value::text).filter(|name| name.chars().next() != Some('$'))
}

fn is_null(value: Value<'_, '_>) -> bool {
    value.kind() == ValueKind::Null
}

/// Commas between the items of a list.
struct List {
    is_first: bool,
}

impl List {
    fn open(bracket: &str, out: &mut String) -> Self {
        out.put(bracket);
        Self { is_first: true }
    }

    fn next(&mut self, out: &mut String) {
        if !std::mem::take(&mut self.is_first) {
            out.put(",");
        }
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
    fn upstream_names_lead_back_to_the_clients_tr20() {
        let names: ToolNames = [("get_weather_f65d4328", "get.weather")].into_iter().collect();
        assert_eq!(names.client_name("get_weather_f65d4328"), "get.weather");
        assert_eq!(names.client_name("other"), "other");
    }

    #[test]
    fn schemas_are_sanitised_tr22() {
        for (client, upstream) in [
            // Not an object, not there.
            ("3", EMPTY_SCHEMA),
            ("[]", EMPTY_SCHEMA),
            // Top type: added in front, or set where it stands.
            ("{}", r#"{"type":"object"}"#),
            (r#"{"type":null,"title":"T"}"#, r#"{"type":"object","title":"T"}"#),
            (r#"{"title":"T","type":["object","null"]}"#, r#"{"title":"T","type":"object"}"#),
            // Nulls.
            (
                r#"{"type":"object","properties":{"a":null,"b":{"const":null,"default":null,"title":null}}}"#,
                r#"{"type":"object","properties":{"b":{"const":null,"default":null}}}"#,
            ),
            (
                r#"{"type":"object","anyOf":[null,{"not":{"x":null}},true],"items":[null,{"x":null}],"$defs":{"a":null,"b":{"x":null}}}"#,
                r#"{"type":"object","anyOf":[{"not":{}},true],"items":[{}],"$defs":{"b":{}}}"#,
            ),
            // Places that are no schemas.
            (
                r#"{"type":"object","enum":[null],"const":{"x":null},"examples":[{"properties":{"$a":1}}]}"#,
                r#"{"type":"object","enum":[null],"const":{"x":null},"examples":[{"properties":{"$a":1}}]}"#,
            ),
            // `required`.
            (r#"{"type":"object","required":true}"#, r#"{"type":"object"}"#),
            (r#"{"type":"object","required":["$a","b",null,3]}"#, r#"{"type":"object","required":["b"]}"#),
            (r#"{"type":"object","required":["$a"]}"#, r#"{"type":"object"}"#),
            // `properties` named like keywords are properties.
            (
                r#"{"type":"object","properties":{"required":{"type":"array"},"properties":{"x":null},"type":{"y":null}}}"#,
                r#"{"type":"object","properties":{"required":{"type":"array"},"properties":{},"type":{}}}"#,
            ),
            (r#"{"type":"object","properties":3}"#, r#"{"type":"object","properties":{}}"#),
            // Every place to descend into.
            (
                r#"{"type":"object","patternProperties":{"p":{"x":null}},"definitions":{"d":{"x":null}},"dependentSchemas":{"s":{"x":null}},"items":{"x":null},"prefixItems":[{"x":null}],"additionalItems":{"x":null},"contains":{"x":null},"additionalProperties":{"x":null},"propertyNames":{"x":null},"if":{"x":null},"then":{"x":null},"else":{"x":null},"unevaluatedItems":{"x":null},"unevaluatedProperties":{"x":null},"allOf":[{"x":null}],"oneOf":[{"x":null}]}"#,
                r#"{"type":"object","patternProperties":{"p":{}},"definitions":{"d":{}},"dependentSchemas":{"s":{}},"items":{},"prefixItems":[{}],"additionalItems":{},"contains":{},"additionalProperties":{},"propertyNames":{},"if":{},"then":{},"else":{},"unevaluatedItems":{},"unevaluatedProperties":{},"allOf":[{}],"oneOf":[{}]}"#,
            ),
            // Spelling: compact, TR4's escapes, the last of equal keys.
            (
                "{ \"type\" : \"object\",\n \"title\" : \"\\u003c\\/é\", \"x\": 1.0, \"x\": 1e3 }",
                r#"{"type":"object","title":"</é","x":1e3}"#,
            ),
            (
                r#"{"type":"object","prop\u0065rties":{"\u0024a":{},"b":{}}}"#,
                r#"{"type":"object","properties":{"b":{}}}"#,
            ),
        ] {
            let json = JsonTree::parse(client.as_bytes()).unwrap();
            assert_eq!(sanitised(Some(json.root())), upstream, "{client}");
        }
        assert_eq!(sanitised(None), EMPTY_SCHEMA);
    }
}
