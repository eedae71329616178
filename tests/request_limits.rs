//! Requests at their limits and out of shape: cases that can't be written in one line of a vector file.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test code")]

use std::fmt::Write as _;

use kiro_messages::proto::kiro::fault::Fault;
use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::messages::request::{Purpose, Request, RequestError, SystemMode};
use kiro_messages::proto::translate::edits::edit as edit_messages;
use kiro_messages::proto::translate::fault::{PromptSize, api_error};
use kiro_messages::proto::translate::request::{Context, LeaveOut, Translated, translate};

#[path = "../benches/inputs/requests.rs"]
#[allow(dead_code, unused_imports, reason = "shared with benches")]
mod requests;

use requests::{IDS, context};

const Q: Form<'_> = Form::full(Shape::Q);

fn run(body: &[u8]) -> Result<Translated, RequestError> {
    translate(&Request::parse(body, Purpose::Messages)?, &context(None))
}

fn body_of(request: &Request<'_>) -> serde_json::Value {
    serde_json::from_slice(&translate(request, &context(None)).unwrap().body.render(&Q)).unwrap()
}

fn refusal(body: &[u8]) -> String {
    run(body).unwrap_err().to_string()
}

fn with(members: &str, content: &str) -> String {
    format!(
        r#"{{"model":"claude-sonnet-4-5","max_tokens":1{members},"messages":[{{"role":"user","content":{content}}}]}}"#
    )
}

#[test]
fn invalid_utf8_is_refused_anywhere_a5_m18() {
    let body = with("", r#""x""#).into_bytes();
    let text = body.iter().position(|&byte| byte == b'x').unwrap();
    for (place, column) in [(text, text + 1), (0, 1), (body.len() - 1, body.len())] {
        let mut body = body.clone();
        body[place] = 0xff;
        assert_eq!(refusal(&body), format!("body: not valid JSON (line 1, column {column})"));
    }
    assert_eq!(refusal(b"{\n\"\xc3\xa9\xc3\x28\"}"), "body: not valid JSON (line 2, column 3)");
}

#[test]
fn nesting_is_bounded_a6_m12() {
    let nested = |levels: usize| with(&format!(",\"x\":{}{}", "[".repeat(levels), "]".repeat(levels)), r#""x""#);
    // The body itself is the first level.
    assert!(run(nested(127).as_bytes()).is_ok());
    assert_eq!(refusal(nested(128).as_bytes()), "body: nested too deeply");
    assert_eq!(refusal(nested(200).as_bytes()), "body: nested too deeply");
    assert_eq!(refusal("[".repeat(1_000_000).as_bytes()), "body: nested too deeply");
    assert_eq!(refusal("{\"a\":".repeat(1_000_000).as_bytes()), "body: nested too deeply");
}

#[test]
fn the_number_of_messages_is_bounded_m13() {
    let messages = |count: usize| {
        let message = r#"{"role":"user","content":"x"}"#;
        let messages = vec![message; count].join(",");
        format!(r#"{{"model":"claude-sonnet-4-5","max_tokens":1,"messages":[{messages}]}}"#)
    };
    let all = run(messages(100_000).as_bytes()).unwrap().body.render(&Q);
    assert_eq!(all.iter().filter(|&&byte| byte == b'x').count(), 100_000);
    assert_eq!(refusal(messages(100_001).as_bytes()), "messages: at most 100000");
}

/// Every place of a request that can hold a long text.
#[test]
fn long_texts_are_slices_of_the_clients_body_k121_tr4() {
    let long = |letter: &str| letter.repeat(50_000);
    // Escapes that TR4 spells in another way, far apart.
    let odd = format!(r"{}\u003c{}\/{}\n", long("a"), long("é"), long("c"));
    let input = format!(r#"{{"path" : "/x", "content":"{odd}"}}"#);
    let schema =
        format!(r#"{{"type":"object","properties":{{"p":{{"type":"string","description":"{}"}}}}}}"#, long("s"));
    let body = format!(
        r#"{{"model":"claude-sonnet-4-5","max_tokens":1,"system":"{odd}","tools":[{{"name":"f","input_schema":{schema}}}],
        "messages":[{{"role":"user","content":[{{"type":"text","text":"{odd}"}},
        {{"type":"image","source":{{"type":"base64","media_type":"image/png","data":"{image}"}}}}]}},
        {{"role":"assistant","content":[{{"type":"tool_use","id":"t1","name":"f","input":{input}}}]}},
        {{"role":"user","content":[{{"type":"tool_result","tool_use_id":"t1","content":"{odd}"}}]}}]}}"#,
        image = "iVBORw0KGgo".to_owned() + &"A".repeat(49_989),
    );
    let body = bytes::Bytes::from(body);
    let request = Request::parse(&body, Purpose::Messages).unwrap();
    let sliced = translate(&request, &context(Some(&body))).unwrap().body;
    let whole = translate(&request, &context(None)).unwrap().body;
    let form = Form { profile_arn: Some("arn"), ..Q };
    assert_eq!(sliced.render(&form), whole.render(&form), "a byte differs upstream");
    assert!(whole.copied(&body) > 700_000 && sliced.copied(&body) < 6_000, "{}", sliced.copied(&body));
    let parts = sliced.parts(&form);
    assert_eq!(parts.concat(), whole.render(&form));
    assert_eq!(parts.segments().count(), (0..).map_while(|place| parts.segment(place)).count());
}

#[test]
fn no_limit_of_our_own_on_images_and_tools_m14_m17() {
    let image = r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}"#;
    let mut tools = String::new();
    (0..500).for_each(|n| write!(tools, r#"{}{{"name":"t{n}"}}"#, if n > 0 { "," } else { "" }).unwrap());
    let body = with(&format!(r#","tools":[{tools}]"#), &format!("[{}]", vec![image; 150].join(",")));
    let current = body_of(&Request::parse(body.as_bytes(), Purpose::Messages).unwrap());
    let current = &current["conversationState"]["currentMessage"]["userInputMessage"];
    assert_eq!(current["images"].as_array().unwrap().len(), 150);
    assert_eq!(current["userInputMessageContext"]["tools"].as_array().unwrap().len(), 500);
}

#[test]
fn long_tool_names_are_shortened_up_to_a_limit_m16_tr20() {
    let tool = |name: &str| with(&format!(r#","tools":[{{"name":"{name}"}}]"#), r#""x""#);
    let longest = "é".repeat(256);
    let translated = run(tool(&longest).as_bytes()).unwrap();
    let body = translated.body.render(&Q);
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let spec = &body["conversationState"]["currentMessage"]["userInputMessage"]["userInputMessageContext"]["tools"][0];
    let upstream = spec["toolSpecification"]["name"].as_str().unwrap();
    assert_eq!(upstream.len(), 64);
    assert_eq!(translated.tool_names.client_name(upstream), longest);
    assert_eq!(refusal(tool(&"é".repeat(257)).as_bytes()), "tools.0.name: must have at most 256 characters");
    assert_eq!(refusal(tool(&"a".repeat(257)).as_bytes()), "tools.0.name: must have at most 256 characters");
}

#[test]
fn descriptions_are_cut_at_10240_characters_tv56_tr21() {
    let sent = |description: &str| {
        let body = with(&format!(r#","tools":[{{"name":"f","description":"{description}"}}]"#), r#""x""#);
        let body = body_of(&Request::parse(body.as_bytes(), Purpose::Messages).unwrap());
        let context = &body["conversationState"]["currentMessage"]["userInputMessage"]["userInputMessageContext"];
        context["tools"][0]["toolSpecification"]["description"].as_str().unwrap().to_owned()
    };
    assert_eq!(sent(&"é".repeat(10_241)), "é".repeat(10_240));
    assert_eq!(sent(&"é".repeat(10_240)), "é".repeat(10_240));
    assert_eq!(sent(&"\\u00e9".repeat(10_241)), "é".repeat(10_240));
    assert_eq!(sent(&"\\ud83d\\ude00".repeat(10_241)), "😀".repeat(10_240));
    assert_eq!(sent(&"\\n".repeat(10_241)).len(), 1, "blank: the name");
    assert_eq!(sent("  "), "f");
    assert_eq!(sent(&format!("{}\\\"", "a".repeat(10_239))), format!("{}\"", "a".repeat(10_239)));
}

#[test]
fn too_long_a_prompt_is_left_to_upstream_tv58_tr34() {
    let fault = Fault::from_http(
        400,
        None,
        None,
        br#"{"reason":"CONTENT_LENGTH_EXCEEDS_THRESHOLD"}"#,
        false,
        &Default::default(),
    );
    for (estimate, says) in [(150_000, 200_001), (250_000, 250_000)] {
        let error = api_error(&fault, PromptSize { estimate, window: 200_000 });
        assert_eq!(error.message, format!("prompt is too long: {says} tokens > 200000 maximum"));
        assert_eq!(error.status, 400);
    }
    // No limit of our own: a prompt far over the window is translated.
    let body = with("", &format!("\"{}\"", "word ".repeat(1_000_000)));
    assert!(run(body.as_bytes()).is_ok());
}

#[test]
fn ids_and_settings_reach_the_request_tr5() {
    let body = with("", r#""x""#);
    let translated = run(body.as_bytes()).unwrap();
    assert_eq!(translated.model.kiro_id, "claude-sonnet-4.5");
    assert!(!translated.thinking && !translated.sent_reasoning);
    let body: serde_json::Value =
        serde_json::from_slice(&translated.body.render(&Form { profile_arn: Some("arn"), ..Q })).unwrap();
    assert_eq!(body["conversationState"]["conversationId"], IDS.conversation);
    assert_eq!(body["conversationState"]["agentContinuationId"], IDS.continuation);
    assert_eq!(body["profileArn"], "arn");
}

/// From 20260209 on Anthropic filters results by running code; a search that is off is named as a whole.
#[test]
fn a_search_without_its_filter_is_named_m87_m80() {
    let body = with(r#","tools":[{"name":"f"},{"type":"web_search_20260209","name":"web_search"}]"#, r#""x""#);
    let mut request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
    request.without_search().unwrap();
    let named = |request: &Request<'_>| translate(request, &context(None)).unwrap().ignored.header();
    assert_eq!(named(&request).unwrap(), "tools.1.type:web_search_20260209, tools.1:web_search_20260209");
    let request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
    assert_eq!(named(&request).unwrap(), "tools.1.type:web_search_20260209");
    let body = body.replace("20260209", "20250305");
    let request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
    assert_eq!(named(&request), None);
}

#[test]
fn dropped_server_tools_are_reported_tr19_m49_m73() {
    let body = with(r#","tools":[{"name":"f"},{"type":"web_fetch_20250910"},{"type":"computer_20250124"}]"#, r#""x""#);
    assert_eq!(run(body.as_bytes()).unwrap().dropped_server_tools, ["web_fetch_20250910", "computer_20250124"]);
}

#[test]
fn the_translation_says_whether_reasoning_was_sent_tr31() {
    let body = |signature: &str| {
        format!(
            r#"{{"model":"claude-sonnet-4-5","max_tokens":1,"thinking":{{"type":"adaptive"}},"messages":[{{"role":"user","content":"a"}},{{"role":"assistant","content":[{{"type":"thinking","thinking":"T"{signature}}}]}},{{"role":"user","content":"b"}}]}}"#
        )
    };
    let signed = body(r#","signature":"S""#);
    let request = Request::parse(signed.as_bytes(), Purpose::Messages).unwrap();
    assert!(translate(&request, &context(None)).unwrap().sent_reasoning);
    let plain = translate(
        &request,
        &Context { leave_out: LeaveOut { reasoning: true, ..LeaveOut::default() }, ..context(None) },
    )
    .unwrap();
    assert!(!plain.sent_reasoning && plain.thinking);
    assert!(!String::from_utf8_lossy(&plain.body.render(&Q)).contains("reasoningContent"));
    assert!(!run(body("").as_bytes()).unwrap().sent_reasoning);
}

#[test]
fn the_operators_system_text_joins_the_clients_n13() {
    for (system, mode, expected) in [
        ("", SystemMode::Append, "OP"),
        (r#","system":"""#, SystemMode::Append, "OP"),
        (r#","system":"S""#, SystemMode::Append, "S\nOP"),
        (r#","system":[{"type":"text","text":"A"},{"type":"text","text":"B"}]"#, SystemMode::Append, "A\nB\nOP"),
        ("", SystemMode::Overwrite, "OP"),
        (r#","system":"S""#, SystemMode::Overwrite, "OP"),
        (r#","system":[{"type":"text","text":"A"}]"#, SystemMode::Overwrite, "OP"),
    ] {
        let body = with(system, r#""x""#);
        let mut request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
        request.apply_system(mode, "OP");
        let body = body_of(&request);
        assert_eq!(body["conversationState"]["history"][0]["userInputMessage"]["content"], expected, "{system}");
    }
    let body = with("", r#""x""#);
    let mut request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
    request.apply_system(SystemMode::Append, "\"q\"\n");
    let body = body_of(&request);
    assert_eq!(body["conversationState"]["history"][0]["userInputMessage"]["content"], "\"q\"\n");
}

#[test]
fn errors_carry_line_and_column_of_pretty_bodies_m18() {
    assert_eq!(
        refusal(b"{\n  \"model\": \"x\",\n  \"max_tokens\": 1,,\n}"),
        "body: not valid JSON (line 3, column 19)"
    );
    assert_eq!(refusal(b"{\n  \"a\": \"raw\nbreak\"}"), "body: not valid JSON (line 2, column 12)");
    assert_eq!(refusal(b"{\"a\":tru}"), "body: not valid JSON (line 1, column 9)");
    assert_eq!(refusal(b"{\"a\":1.}"), "body: not valid JSON (line 1, column 8)");
    assert_eq!(refusal(b"{\"a\":\"\\u12\"}"), "body: not valid JSON (line 1, column 11)");
    assert_eq!(refusal(b"\xef\xbb\xbf{}"), "body: not valid JSON (line 1, column 1)");
}

/// Would take minutes if any step compared every pair.
#[test]
fn large_and_awkward_requests_take_linear_time_tr18_m18() {
    let many = 20_000;
    let list = |item: &dyn Fn(usize) -> String| (0..many).map(item).collect::<Vec<_>>().join(",");
    let uses = list(&|n| format!(r#"{{"type":"tool_use","id":"t{n}","name":"n{}","input":{{}}}}"#, n % 5_000));
    let results = list(&|n| format!(r#"{{"type":"tool_result","tool_use_id":"t{}","content":"r"}}"#, many - n));
    let members = list(&|n| format!(r#""k{}":null"#, n / 2));
    let tools = (0..5_000).map(|n| format!(r#"{{"name":"n{n}"}}"#)).collect::<Vec<_>>().join(",");
    let body = format!(
        r#"{{"model":"claude-sonnet-4-5","max_tokens":1,{members},"tools":[{tools},{{"name":"big","input_schema":{{"properties":{{{members}}},{members}}}}}],
            "messages":[{{"role":"user","content":"a"}},{{"role":"assistant","content":[{uses}]}},{{"role":"user","content":[{results}]}}]}}"#
    );
    let request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
    let body = body_of(&request);
    let history = &body["conversationState"]["history"];
    assert_eq!(history[1]["assistantResponseMessage"]["toolUses"].as_array().unwrap().len(), many - 1);
    let current = &body["conversationState"]["currentMessage"]["userInputMessage"];
    assert_eq!(current["content"], "[tool result] r");
    assert_eq!(current["userInputMessageContext"]["tools"].as_array().unwrap().len(), 5_001);
}

/// Many deferred tools, references, names that are excluded, results, and edits.
#[test]
fn editing_and_loading_take_linear_time_tr55_tr59_m18() {
    let many = 20_000;
    let list = |item: &dyn Fn(usize) -> String| (0..many).map(item).collect::<Vec<_>>().join(",");
    let tools = list(&|n| format!(r#"{{"name":"n{n}","defer_loading":true,"input_examples":[{{"q":{n}}}]}}"#));
    let names = list(&|n| format!(r#""x{n}""#));
    let edit = format!(
        r#"{{"type":"clear_tool_uses_20250919","trigger":{{"type":"tool_uses","value":1}},"keep":{{"type":"tool_uses","value":1}},"exclude_tools":[{names}],"clear_tool_inputs":true}}"#
    );
    let edits = format!("{edit},{}", list(&|_| r#"{"type":"clear_thinking_20251015"}"#.to_owned()));
    let uses = list(&|n| format!(r#"{{"type":"tool_use","id":"t{n}","name":"n{n}","input":{{"q":1}}}}"#));
    let results = list(&|n| {
        format!(
            r#"{{"type":"tool_result","tool_use_id":"t{n}","content":[{{"type":"tool_reference","tool_name":"n{n}"}}]}}"#
        )
    });
    let body = format!(
        r#"{{"model":"claude-sonnet-4-5","max_tokens":1,"tools":[{{"name":"f"}},{tools}],"context_management":{{"edits":[{edits}]}},
            "messages":[{{"role":"user","content":"a"}},{{"role":"assistant","content":[{uses}]}},{{"role":"user","content":[{results}]}}]}}"#
    );
    let mut request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
    edit_messages(&mut request);
    let cleared = format!("\"cleared_tool_uses\":{}", many - 1);
    assert!(request.applied_edits().unwrap().contains(&cleared), "{:?}", request.applied_edits());
    let body = body_of(&request);
    let current = &body["conversationState"]["currentMessage"]["userInputMessage"]["userInputMessageContext"];
    assert_eq!(current["tools"].as_array().unwrap().len(), many + 1);
    let results = current["toolResults"].as_array().unwrap();
    assert_eq!(results[0]["content"][0]["text"], "[cleared to save context]");
    assert_eq!(results[many - 1]["content"][0]["text"], format!("Tool loaded: n{}", many - 1));
}

/// Each of many system messages' blocks names one of many tools that only Anthropic could run.
#[test]
fn offers_of_server_tools_take_linear_time_m69_m18() {
    let list = |item: &dyn Fn(usize) -> String| (0..70_000).map(item).collect::<Vec<_>>().join(",");
    let tools = list(&|n| format!(r#"{{"type":"x_1","name":"tool number {n}"}}"#));
    let offers =
        list(&|n| format!(r#"{{"type":"tool_addition","tool":{{"type":"tool_reference","name":"tool number {n}"}}}}"#));
    let body = format!(
        r#"{{"model":"claude-sonnet-4-5","max_tokens":1,"tools":[{{"name":"f"}},{tools}],
            "messages":[{{"role":"user","content":"a"}},{{"role":"system","content":[{offers}]}}]}}"#
    );
    let began = std::time::Instant::now();
    assert!(Request::parse(body.as_bytes(), Purpose::Messages).is_ok());
    // Each compared with each, it takes a multiple of that.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
}
