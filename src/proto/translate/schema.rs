//! Schemas of tools as upstream takes them (TR22), and combinations at their top made one object (TR64).

use crate::proto::json::tree::{JsonTree, Sink, Text, Value, ValueKind};

/// Keywords that are stripped from schemas at every depth. None by default: what third parties report as refused
/// was observed to pass (TR22).
const STRIPPED_KEYWORDS: &[&str] = &[];
/// The one key of a tool input that an older service left in pieces (TR15).
pub(super) const RAW_ARGUMENTS: &str = "raw_arguments";
/// The schema of a tool that only the history knows (TR23), and in place of a schema that isn't an object (TR22).
pub(super) const EMPTY_SCHEMA: &str = r#"{"type":"object","properties":{}}"#;
/// The schema in place of a combination that can't be made one object (TR64).
pub(super) const ANY_OBJECT: &str = r#"{"type":"object"}"#;
/// What upstream refuses at the top of a schema, for every request of the session (TR64).
const COMBINING: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];
/// The keywords beside `properties` and `items` that a refused schema keeps (TR64).
const BARE_KEYWORDS: [&str; 4] = ["type", "required", "enum", "description"];
/// Schemas that one combination may lead through, and the length of what comes of it.
const MOST_STEPS: usize = 256;
const MOST_MERGED: usize = 256 * 1024;
/// Characters of a schema that can't be merged, in the description.
const MOST_TOLD: usize = 4_000;

/// What is asked of a tool's schema.
#[derive(Default)]
pub(super) struct Schema {
    /// As it goes out, it requires something.
    pub requires_something: bool,
    /// It has a property of the name that fragments use.
    pub has_raw_arguments: bool,
    /// In place of the client's, when that combines others at its top.
    pub merged: Option<Merged>,
}

/// What goes out in place of a combination.
pub(super) enum Merged {
    /// One object, compact.
    Object(String),
    /// It can't be made one: a note for the description.
    Told(String),
}

impl Schema {
    /// A schema of ours, JSON.
    pub fn published(schema: &str) -> Self {
        JsonTree::parse(schema.as_bytes()).map_or_else(|_| Self::default(), |json| Self::of(Some(json.root())))
    }

    pub fn of(schema: Option<Value<'_, '_>>) -> Self {
        let Some(schema) = schema.filter(|schema| schema.kind() == ValueKind::Object) else { return Self::default() };
        if !COMBINING.iter().any(|name| schema.member(name).is_some_and(|member| !is_null(member))) {
            let required = schema.member("required");
            let properties = schema.member("properties");
            return Self {
                requires_something: required.is_some_and(|required| required_names(required).next().is_some()),
                has_raw_arguments: properties.is_some_and(|properties| properties.member(RAW_ARGUMENTS).is_some()),
                merged: None,
            };
        }
        let mut merging = Merging { root: schema, steps: 0 };
        let Some(object) = merging.object(schema).filter(|object| object.len() <= MOST_MERGED) else {
            let told: String = schema.raw().chars().take(MOST_TOLD).collect();
            let merged = Some(Merged::Told(format!("Its input follows this JSON schema: {told}")));
            return Self { merged, ..Self::default() };
        };
        Self {
            requires_something: !object.required.is_empty(),
            has_raw_arguments: object.properties.iter().any(|(name, _)| name == RAW_ARGUMENTS),
            merged: Some(Merged::Object(object.write(schema))),
        }
    }
}

/// An object that was put together: of each property the schemas that it may have, of which one must hold.
#[derive(Default)]
struct MergedObject {
    properties: Vec<(String, Vec<String>)>,
    required: Vec<String>,
}

struct Merging<'j, 'a> {
    /// Where `$ref` looks.
    root: Value<'j, 'a>,
    steps: usize,
}

impl<'j, 'a> Merging<'j, 'a> {
    /// None: it isn't a schema of an object, or can't be followed.
    fn object(&mut self, schema: Value<'_, '_>) -> Option<MergedObject> {
        self.steps += 1;
        let is_object = match schema.member("type") {
            None => true,
            Some(word) if word.kind() == ValueKind::Array => {
                word.elements().any(|word| word.text().is_some_and(|word| word.is("object")))
            }
            Some(word) => is_null(word) || word.text().is_some_and(|word| word.is("object")),
        };
        if schema.kind() != ValueKind::Object || !is_object || self.steps > MOST_STEPS {
            return None;
        }
        let mut merged = MergedObject::default();
        for (key, property) in schema.member("properties").into_iter().flat_map(Value::members) {
            let name = key.decode();
            if !is_null(property) && !name.starts_with('$') {
                let mut text = String::new();
                write_schema(property, false, &mut text);
                merged.add(&name, vec![text], Join::All);
            }
        }
        for name in schema.member("required").into_iter().flat_map(required_names) {
            merged.require(&name.decode());
        }
        if let Some(name) = schema.member("$ref").filter(|name| !is_null(*name)) {
            let target = self.target(&name.text()?.decode())?;
            merged.join(self.object(target)?);
        }
        for part in schema.member("allOf").into_iter().flat_map(Value::elements).filter(|part| !is_null(*part)) {
            merged.join(self.object(part)?);
        }
        for list in ["anyOf", "oneOf"] {
            let mut either: Option<MergedObject> = None;
            for part in schema.member(list).into_iter().flat_map(Value::elements).filter(|part| !is_null(*part)) {
                let part = self.object(part)?;
                either = Some(match either {
                    None => part,
                    Some(either) => either.or(part),
                });
            }
            merged.join(either.unwrap_or_default());
        }
        Some(merged)
    }

    /// A definition of the same schema: `#/$defs/NAME` and the like.
    fn target(&self, reference: &str) -> Option<Value<'j, 'a>> {
        let mut place = self.root;
        let path = reference.strip_prefix('#')?;
        for step in path.split('/').skip(1) {
            place = place.member(&step.replace("~1", "/").replace("~0", "~"))?;
        }
        Some(place)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Join {
    All,
    Any,
}

impl MergedObject {
    fn len(&self) -> usize {
        self.properties.iter().flat_map(|(_, schemas)| schemas).map(String::len).sum()
    }

    fn require(&mut self, name: &str) {
        if !self.required.iter().any(|known| known == name) {
            self.required.push(name.to_owned());
        }
    }

    fn add(&mut self, name: &str, schemas: Vec<String>, join: Join) {
        let Some((_, known)) = self.properties.iter_mut().find(|(known, _)| known == name) else {
            return self.properties.push((name.to_owned(), schemas));
        };
        match join {
            _ if *known == schemas => {}
            Join::Any => {
                for schema in schemas {
                    if !known.contains(&schema) {
                        known.push(schema);
                    }
                }
            }
            Join::All => {
                *known = vec![format!(r#"{{"allOf":[{},{}]}}"#, any_of(known), any_of(&schemas))];
            }
        }
    }

    /// Both hold.
    fn join(&mut self, other: Self) {
        for (name, schemas) in other.properties {
            self.add(&name, schemas, Join::All);
        }
        other.required.iter().for_each(|name| self.require(name));
    }

    /// One of them holds: all their properties, and only what both require.
    fn or(mut self, other: Self) -> Self {
        for (name, schemas) in other.properties {
            self.add(&name, schemas, Join::Any);
        }
        self.required.retain(|name| other.required.contains(name));
        self
    }

    /// With the other members of the schema that it comes from, each where it stands there.
    fn write(&self, schema: Value<'_, '_>) -> String {
        let mut out = String::new();
        let mut list = List::open("{", &mut out);
        let stands = |name| schema.member(name).is_some_and(|member| !is_null(member));
        if !stands("type") {
            list.next(&mut out);
            out.put(r#""type":"object""#);
        }
        for (key, value) in schema.members().filter(|(_, value)| !is_null(*value)) {
            let name = key.decode();
            match &*name {
                "properties" => self.write_properties(&mut list, &mut out),
                "required" => self.write_required(&mut list, &mut out),
                name if COMBINING.contains(&name) => {}
                name => write_member(&key, name, value, true, &mut list, &mut out),
            }
        }
        if !stands("properties") {
            self.write_properties(&mut list, &mut out);
        }
        if !stands("required") {
            self.write_required(&mut list, &mut out);
        }
        out.put("}");
        out
    }

    fn write_properties(&self, list: &mut List, out: &mut String) {
        list.next(out);
        out.put(r#""properties":{"#);
        let mut properties = List { is_first: true };
        for (name, schemas) in &self.properties {
            properties.next(out);
            Text::new(name.as_str()).write_quoted(out);
            out.put(":");
            out.put(&any_of(schemas));
        }
        out.put("}");
    }

    fn write_required(&self, list: &mut List, out: &mut String) {
        if !self.required.is_empty() {
            list.next(out);
            out.put(r#""required":"#);
            write_list(self.required.iter(), out, |name, out| Text::new(name.as_str()).write_quoted(out));
        }
    }
}

fn any_of(schemas: &[String]) -> String {
    match schemas {
        [only] => only.clone(),
        all => format!(r#"{{"anyOf":[{}]}}"#, all.join(",")),
    }
}

/// The schema that goes out (TR22), compact.
pub(super) fn sanitised(schema: Option<Value<'_, '_>>) -> String {
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
        write_member(&key, &key.decode(), value, top, &mut list, out);
    }
    out.put("}");
}

/// A keyword with its value, unless it is dropped.
fn write_member(key: &Text<'_>, name: &str, value: Value<'_, '_>, top: bool, list: &mut List, out: &mut String) {
    let is_kept_null = matches!(name, "const" | "default");
    if is_null(value) && !is_kept_null || STRIPPED_KEYWORDS.contains(&name) {
        return;
    }
    if name == "required" && required_names(value).next().is_none() {
        return;
    }
    list.next(out);
    key.write_quoted(out);
    out.put(":");
    match name {
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

/// Whether a schema that goes out holds no keywords but [`bare`]'s.
pub(super) fn is_bare(schema: &str) -> bool {
    JsonTree::parse(schema.as_bytes()).is_ok_and(|json| holds_bare_keywords(json.root()))
}

fn holds_bare_keywords(schema: Value<'_, '_>) -> bool {
    schema.kind() == ValueKind::Object
        && schema.members().all(|(key, value)| match &*key.decode() {
            "properties" => value.members().all(|(_, property)| holds_bare_keywords(property)),
            "items" => holds_bare_keywords(value),
            keyword => BARE_KEYWORDS.contains(&keyword),
        })
}

/// A schema that goes out, with no keywords but those that every upstream knows (TR64), at every depth.
pub(super) fn bare(schema: &str) -> String {
    let mut out = String::with_capacity(schema.len());
    match JsonTree::parse(schema.as_bytes()) {
        Ok(json) => write_bare(json.root(), &mut out),
        Err(_) => out.put(ANY_OBJECT),
    }
    out
}

fn write_bare(schema: Value<'_, '_>, out: &mut String) {
    let mut list = List::open("{", out);
    for (key, value) in schema.members() {
        let keyword = key.decode();
        // A list of schemas, one for each place, is a keyword of its own in newer drafts.
        let is_nested = matches!(&*keyword, "properties" | "items") && value.kind() == ValueKind::Object;
        if !is_nested && !BARE_KEYWORDS.contains(&&*keyword) {
            continue;
        }
        list.next(out);
        key.write_quoted(out);
        out.put(":");
        match &*keyword {
            "properties" => {
                let mut properties = List::open("{", out);
                for (name, property) in value.members() {
                    properties.next(out);
                    name.write_quoted(out);
                    out.put(":");
                    write_bare(property, out);
                }
                out.put("}");
            }
            "items" => write_bare(value, out),
            _ => value.write(out),
        }
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

    fn merged(client: &str) -> Option<Merged> {
        let json = JsonTree::parse(client.as_bytes()).unwrap();
        Schema::of(Some(json.root())).merged
    }

    #[test]
    fn combinations_at_the_top_become_one_object_tr64() {
        for (client, upstream) in [
            // What all alternatives require, beside its own.
            (
                r#"{"type":"object","anyOf":[{"properties":{"a":{"type":"string"}},"required":["a"]},{"properties":{"b":{"type":"string"}},"required":["b"]}]}"#,
                r#"{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"string"}}}"#,
            ),
            (
                r#"{"title":"T","properties":{"k":{}},"required":["k"],"oneOf":[{"properties":{"m":{"const":1},"x":{}},"required":["x","m"]},{"properties":{"m":{"const":2}},"required":["m"]}],"$defs":{"d":{"x":null}}}"#,
                r#"{"type":"object","title":"T","properties":{"k":{},"m":{"anyOf":[{"const":1},{"const":2}]},"x":{}},"required":["k","m"],"$defs":{"d":{}}}"#,
            ),
            (
                r#"{"anyOf":[{"required":["a"]},{"required":["b"]}],"properties":{"a":{},"b":{}}}"#,
                r#"{"type":"object","properties":{"a":{},"b":{}}}"#,
            ),
            // All of them: united.
            (
                r#"{"allOf":[{"properties":{"a":{"type":"string"}},"required":["a"]},{"properties":{"a":{"minLength":1},"b":{}},"required":["b","a"]}]}"#,
                r#"{"type":"object","properties":{"a":{"allOf":[{"type":"string"},{"minLength":1}]},"b":{}},"required":["a","b"]}"#,
            ),
            // A reference of its own, also inside of an alternative, and a name with a slash in it.
            (
                r##"{"$ref":"#/definitions/Q~1a","definitions":{"Q/a":{"type":"object","properties":{"a":{"$ref":"#/definitions/S"}},"required":["a"]},"S":{"type":"string"}}}"##,
                r##"{"type":"object","definitions":{"Q/a":{"type":"object","properties":{"a":{"$ref":"#/definitions/S"}},"required":["a"]},"S":{"type":"string"}},"properties":{"a":{"$ref":"#/definitions/S"}},"required":["a"]}"##,
            ),
            (
                r##"{"oneOf":[{"$ref":"#/$defs/A"},{"allOf":[{"$ref":"#/$defs/A"},{"properties":{"b":{}}}]}],"$defs":{"A":{"properties":{"a":{}},"required":["a"]}}}"##,
                r##"{"type":"object","$defs":{"A":{"properties":{"a":{}},"required":["a"]}},"properties":{"a":{},"b":{}},"required":["a"]}"##,
            ),
            (r#"{"anyOf":[null],"allOf":[]}"#, r#"{"type":"object","properties":{}}"#),
        ] {
            match merged(client) {
                Some(Merged::Object(schema)) => assert_eq!(schema, upstream, "{client}"),
                _ => panic!("{client}"),
            }
        }
        // Null is none, and below the top they stay.
        assert!(merged(r#"{"anyOf":null,"properties":{"a":{"anyOf":[{},{}]}}}"#).is_none());
    }

    #[test]
    fn what_cant_be_merged_is_told_in_the_description_tr64() {
        for client in [
            r#"{"anyOf":[{"type":"string"},{"type":"object"}]}"#,
            r#"{"allOf":[true]}"#,
            r#"{"$ref":"https://example.org/s.json"}"#,
            r##"{"$ref":"#/$defs/none"}"##,
            r##"{"$ref":"#"}"##,
            r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}"##,
            r#"{"$ref":5}"#,
        ] {
            match merged(client) {
                Some(Merged::Told(note)) => assert!(note.ends_with(client), "{note}"),
                _ => panic!("{client}"),
            }
        }
        let long = format!(r#"{{"anyOf":[5],"description":"{}"}}"#, "x".repeat(5_000));
        let Some(Merged::Told(note)) = merged(&long) else { panic!() };
        assert!(note.chars().count() < MOST_TOLD + 50);
        // Each alternative twice the one before: the steps are bounded.
        let mut defs = String::new();
        for n in 0..20 {
            defs +=
                &format!(r##""d{n}":{{"allOf":[{{"$ref":"#/$defs/d{m}"}},{{"$ref":"#/$defs/d{m}"}}]}},"##, m = n + 1);
        }
        let wide = format!(r##"{{"$ref":"#/$defs/d0","$defs":{{{defs}"d20":{{}}}}}}"##);
        assert!(matches!(merged(&wide), Some(Merged::Told(_))));
    }

    #[test]
    fn what_a_merged_schema_requires_counts_tr16_tr64() {
        let of = |client: &str| {
            let json = JsonTree::parse(client.as_bytes()).unwrap();
            let schema = Schema::of(Some(json.root()));
            (schema.requires_something, schema.has_raw_arguments)
        };
        assert_eq!(of(r#"{"required":["a"],"properties":{"raw_arguments":{}}}"#), (true, true));
        assert_eq!(of(r#"{"anyOf":[{"required":["a"]},{"required":["b"]}]}"#), (false, false));
        assert_eq!(of(r#"{"allOf":[{"required":["a"],"properties":{"raw_arguments":{}}}]}"#), (true, true));
        assert_eq!(of("{}"), (false, false));
    }
}
