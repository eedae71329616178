//! `docs/features.md`: what becomes of each feature of a request. Each row is a request; what becomes of it is found by
//! translating it, so the page can't say what isn't so (M81).

use std::fmt::Write as _;

use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::messages::request::{PASSED_TOOLS, Purpose, Request, TOOL_SEARCHES};
use kiro_messages::proto::translate::edits::edit;
use kiro_messages::proto::translate::ids::Ids;
use kiro_messages::proto::translate::model::Models;
use kiro_messages::proto::translate::request::{
    CachePoints, Context, LeaveOut, MAX_CACHE_POINTS, Replay, SystemPlace, translate,
};
use serde_json::{Map, Value, json};

use super::same;

/// Where the effect of a feature shows that is neither refused nor without effect.
#[derive(Clone, Copy, PartialEq)]
enum Effect {
    /// In what goes upstream: it differs from the same request without the feature.
    Request,
    /// In the answer, or the feature asks for what is so anyway.
    Answer,
}

struct Row {
    name: String,
    rule: &'static str,
    /// Members that ask for the feature, beside those of `base`.
    asks: Value,
    /// The same request without it.
    without: Value,
    effect: Effect,
    note: &'static str,
}

fn row(name: &str, rule: &'static str, asks: Value, without: Value, note: &'static str) -> Row {
    Row { name: name.to_owned(), rule, asks, without, effect: Effect::Request, note }
}

/// A feature that is seen in the answer.
fn answered(name: &str, rule: &'static str, asks: Value, note: &'static str) -> Row {
    Row { effect: Effect::Answer, ..row(name, rule, asks, json!({}), note) }
}

/// The body for upstream, and what the header names; or the refusal.
fn outcome(asks: &Value) -> Result<(String, Option<String>), String> {
    let mut body = json!({
        "model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": [{ "role": "user", "content": "hi" }],
    });
    let members: Map<_, _> = asks.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(members);
    let bytes = body.to_string();
    let mut request = Request::parse(bytes.as_bytes(), Purpose::Messages).map_err(|error| error.to_string())?;
    edit(&mut request);
    let translated = translate(
        &request,
        &Context {
            models: Models::embedded(),
            fallback: None,
            system_text: SystemPlace::Pair,
            cache_points: CachePoints::Off,
            cache_limit: MAX_CACHE_POINTS,
            ids: &Ids::default(),
            replay: Replay::Everything,
            source: None,
            pictures: None,
            leave_out: LeaveOut::default(),
            other_model_id: false,
        },
    )
    .map_err(|error| error.to_string())?;
    let upstream = String::from_utf8(translated.body.render(&Form::full(Shape::Q)).to_vec()).unwrap();
    Ok((upstream, translated.ignored.header()))
}

/// The verdict on a row.
fn verdict(row: &Row) -> String {
    let (upstream, ignored) = match outcome(&row.asks) {
        Err(error) => return format!("refused: 400 `{}`", error.replace('|', "\\|")),
        Ok(found) => found,
    };
    let (without, _) = outcome(&row.without).unwrap_or_else(|error| panic!("{}: {error}", row.name));
    let is_passed = row.asks["tools"].as_array().is_some_and(|tools| {
        let kinds = tools.iter().filter_map(|tool| tool["type"].as_str());
        kinds.into_iter().any(|kind| PASSED_TOOLS.iter().any(|passed| passed.kinds.contains(&kind)))
    });
    match ignored {
        Some(path) => format!("accepted, no effect; `x-kiro-ignored: {path}`"),
        None if row.effect == Effect::Request && upstream == without => {
            panic!("{}: no effect, and the header doesn't say so", row.name)
        }
        None if is_passed => "passed".to_owned(),
        None => "served".to_owned(),
    }
}

/// Tools with a type of Anthropic's, each beside a client tool and alone.
fn tools() -> Vec<Row> {
    let f = json!({ "name": "f" });
    let without = json!({ "tools": [f] });
    let mut rows = vec![row(
        "`web_search_20250305` and later",
        "M87",
        json!({ "tools": [f, { "type": "web_search_20250305", "name": "web_search" }] }),
        without.clone(),
        "searched by Kiro's own search; `KIRO_WEB_SEARCH=off`: not served",
    )];
    for passed in PASSED_TOOLS {
        for kind in passed.kinds {
            let tool = json!({ "type": kind, "name": passed.name });
            let note = "the client runs it";
            rows.push(row(&format!("`{kind}`"), "M73", json!({ "tools": [f, tool] }), without.clone(), note));
        }
    }
    let searches = TOOL_SEARCHES.map(|kind| (kind, "all deferred tools are declared"));
    let dropped = [
        ("computer_20250124", "its members are trained in, not published as a schema"),
        ("computer_toolset_20250124", ""),
        ("browser_toolset_20250124", ""),
        ("web_fetch_20250910", "a gateway that fetches what a model names is an open door into its network"),
        ("code_execution_20250825", "nothing upstream runs it"),
        ("advisor_20250825", "nothing upstream runs it"),
        ("mcp_toolset", "nothing upstream runs it"),
    ];
    for (kind, note) in dropped.into_iter().chain(searches).chain([("some_tool_20990101", "any other type")]) {
        let tool = json!({ "type": kind, "name": "t" });
        let name = format!("`{kind}`, beside other tools");
        rows.push(row(&name, "M73", json!({ "tools": [f, tool] }), without.clone(), note));
    }
    let alone = json!({ "tools": [{ "type": "code_execution_20250825", "name": "code_execution" }] });
    rows.push(row("such a tool alone", "M49", alone, json!({}), ""));
    let edit = json!({ "tools": [{ "type": "text_editor_20250728", "name": "edit" }] });
    rows.push(row("a passed tool under another name", "M74", edit, json!({}), ""));
    rows
}

/// Options of tools.
fn options() -> Vec<Row> {
    let plain = json!({ "tools": [{ "name": "f" }] });
    let f = |option: &str, value: Value| {
        let mut tool = json!({ "name": "f" });
        tool[option] = value;
        json!({ "tools": [tool] })
    };
    let two = |deferred: bool| json!({ "tools": [{ "name": "f" }, { "name": "d", "defer_loading": deferred }] });
    let loaded = |content: Value| {
        json!({
            "tools": [{ "name": "f" }, { "name": "d", "defer_loading": true }],
            "messages": [
                { "role": "user", "content": "q" },
                { "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "f", "input": { "q": 1 } }] },
                { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": content }] },
            ],
        })
    };
    let reference = json!([{ "type": "tool_reference", "tool_name": "d" }]);
    let only_code =
        json!({ "tools": [{ "name": "f" }, { "name": "g", "allowed_callers": ["code_execution_20250825"] }] });
    let eager = f("eager_input_streaming", json!(true));
    let alone = json!({ "tool_choice": { "type": "auto", "disable_parallel_tool_use": true } });
    vec![
        row(
            "`input_examples`",
            "TR58",
            f("input_examples", json!([{ "q": 1 }])),
            plain.clone(),
            "behind the description",
        ),
        row("`defer_loading`", "TR59", two(true), two(false), "declared once something refers to it"),
        row(
            "`tool_reference` in a tool result",
            "TR59",
            loaded(reference),
            loaded(json!("r")),
            "the tool is declared, the model reads that it was loaded",
        ),
        answered("`eager_input_streaming`", "TR60", eager, "input always streams"),
        row("`allowed_callers` without `direct`", "TR60", only_code, plain.clone(), "the tool isn't declared"),
        row("`strict`", "TR61", f("strict", json!(true)), plain, "upstream has no constrained decoding"),
        row("`tool_choice.disable_parallel_tool_use`", "M33", alone, json!({}), ""),
    ]
}

/// Context editing, summaries, and what else stands at the top level or in messages.
fn others() -> Vec<Row> {
    let edits = |edit: Value| json!({ "context_management": { "edits": [edit] } });
    let history = |blocks: Value| {
        json!([
            { "role": "user", "content": "a" },
            { "role": "assistant", "content": blocks },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": "r" }] },
        ])
    };
    let used = history(json!([{ "type": "tool_use", "id": "t", "name": "f", "input": { "q": 1 } }]));
    let thought =
        history(json!([{ "type": "thinking", "thinking": "T", "signature": "S" }, { "type": "text", "text": "b" }]));
    let messages = |messages: &Value| json!({ "messages": messages, "thinking": { "type": "adaptive" } });
    let with = |mut request: Value, edit: Value| {
        request["context_management"] = edits(edit)["context_management"].clone();
        request
    };
    let clear_uses = json!({
        "type": "clear_tool_uses_20250919", "trigger": { "type": "tool_uses", "value": 1 },
        "keep": { "type": "tool_uses", "value": 0 },
    });
    let clear_thinking = json!({ "type": "clear_thinking_20251015", "keep": { "type": "thinking_turns", "value": 0 } });
    let summary =
        messages(&history(json!([{ "type": "compaction", "content": "S" }, { "type": "text", "text": "b" }])));
    let no_summary = messages(&history(json!([{ "type": "text", "text": "b" }])));
    let content = |block: Value| json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "hi" }, block] }] });
    let document = |member: &str, value: Value| {
        let mut document = json!({ "type": "document", "source": { "type": "text", "data": "d" } });
        document[member] = value;
        content(document)
    };
    let elsewhere =
        |kind: &str| content(json!({ "type": kind, "source": { "type": "url", "url": "https://a.test/" } }));
    let mut rows = vec![
        row(
            "`context_management`: `clear_tool_uses_20250919`",
            "TR55",
            with(messages(&used), clear_uses),
            messages(&used),
            "reported in the answer (M77)",
        ),
        row(
            "`context_management`: `clear_thinking_20251015`",
            "TR55",
            with(messages(&thought), clear_thinking),
            messages(&thought),
            "reported in the answer (M77)",
        ),
        row(
            "`context_management`: `compact_20260112`",
            "TR55",
            edits(json!({ "type": "compact_20260112" })),
            json!({}),
            "it needs a model call of its own",
        ),
        row("`context_management`: other types", "TR55", edits(json!({ "type": "other_20990101" })), json!({}), ""),
        row("`compaction` block", "TR57", summary, no_summary, "stands for all messages before it"),
        row(
            "`output_config.format`, `output_format`",
            "TR62",
            json!({ "output_config": { "format": { "type": "json_schema", "schema": { "type": "object" } } } }),
            json!({}),
            "asked for, checked, asked for once more; recursive schemas are refused",
        ),
        answered("`stop_sequences`", "M82", json!({ "stop_sequences": ["STOP"] }), "kept by the gateway"),
        row(
            "`mcp_servers`",
            "M75",
            json!({ "mcp_servers": [{ "type": "url", "url": "https://a.test/", "name": "s" }] }),
            json!({}),
            "",
        ),
    ];
    for (member, value) in [
        ("container", json!("c")),
        ("service_tier", json!("auto")),
        ("speed", json!("fast")),
        ("inference_geo", json!("eu")),
        ("fallbacks", json!([{}])),
        ("compaction", json!({ "type": "summarize" })),
    ] {
        rows.push(row(&format!("`{member}`"), "M75", json!({ member: value }), json!({}), ""));
    }
    rows.extend([
        row(
            "`container_upload` block",
            "M76",
            content(json!({ "type": "container_upload", "file_id": "f" })),
            json!({}),
            "",
        ),
        row("`citations` of a document", "M33", document("citations", json!({ "enabled": true })), json!({}), ""),
        row("`context` of a document", "M41", document("context", json!("c")), json!({}), ""),
        row("an image at a `url`", "M40", elsewhere("image"), json!({}), ""),
        row("a document at a `url`", "M41", elsewhere("document"), json!({}), ""),
        row("`thread`", "M68", json!({ "thread": { "type": "create" } }), json!({}), ""),
    ]);
    rows
}

#[test]
fn each_feature_has_its_line_m81() {
    let mut text = String::from(
        "# Features of a request\n\n\
         <!-- Made by tests/docs/features.rs, which translates a request for each line; KIRO_BLESS=1 writes it again. -->\n\n\
         What becomes of the features of the Messages API beyond text, pictures, documents, client tools and thinking. *served*: it has its \
         effect here. *passed*: it goes to the model as a tool that the client runs. *accepted, no effect*: the request goes on without it, and \
         the header says so (M80). *refused*: 400. What isn't listed is in [contract/messages.md](contract/messages.md).\n",
    );
    for (title, rows) in
        [("Tools with a type", tools()), ("Options of tools", options()), ("Everything else", others())]
    {
        writeln!(text, "\n## {title}\n\n| feature | what becomes of it | | rule |\n|---|---|---|---|").unwrap();
        for row in rows {
            writeln!(text, "| {} | {} | {} | {} |", row.name, verdict(&row), row.note, row.rule).unwrap();
        }
    }
    same("docs/features.md", &text);
}
