//! Structured output (TR62, TS37), from the client to the simulated Kiro and back.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use serde_json::{Value, json};
use world::{Reply, World, events, with};

/// The first one of Claude Code's requests of this kind.
const ASKED: &str = include_str!("reported/tr62-structured-output.json");
const TITLE: &str = r#"{"title":"Fix login button"}"#;

/// The request with these changes; each text is a conversation of its own.
fn asked(text: &str, changes: Value) -> Value {
    let mut asked: Value = serde_json::from_str(ASKED).unwrap();
    asked["messages"][0]["content"] = json!(text);
    asked["max_tokens"] = json!(1_000);
    for (key, value) in changes.as_object().unwrap() {
        asked[key] = value.clone();
    }
    asked
}

/// What upstream says, answer by answer.
fn says(world: &World, answers: Value) {
    world.simulated.control().script(json!({ "token": "s1", "scenarios": answers })).unwrap();
}

/// The text of each current message that upstream got.
fn prompts(world: &World) -> Vec<String> {
    let stats = world.simulated.control().stats_with_bodies();
    let bodies = stats["last"].as_array().unwrap().iter().filter_map(|call| call["body"].as_str());
    let bodies = bodies.filter_map(|body| serde_json::from_str::<Value>(body).ok());
    let current = |body: Value| body["conversationState"]["currentMessage"]["userInputMessage"]["content"].clone();
    bodies.map(current).filter_map(|content| content.as_str().map(str::to_owned)).collect()
}

/// The text blocks of an answer, streamed or not.
fn texts(reply: &Reply, stream: bool) -> Vec<String> {
    if !stream {
        let message = reply.json();
        let blocks = message["content"].as_array().unwrap_or_else(|| panic!("{}", reply.text)).clone();
        return blocks.iter().filter_map(|block| block["text"].as_str().map(str::to_owned)).collect();
    }
    let deltas = events(&reply.text);
    deltas.iter().filter_map(|event| event["delta"]["text"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn the_answer_is_the_json_alone_a177_tr62_ts37() {
    let world = World::with_tokens(&["s1"], &[]).await;
    let replies = [TITLE.to_owned(), format!("```json\n{TITLE}\n```"), format!("Here it is: {TITLE}. Anything else?")];
    for (place, reply) in replies.iter().enumerate() {
        for stream in [false, true] {
            says(&world, json!([{ "text": reply, "pieces": 5 }]));
            let answer = world.messages(&asked(&format!("{place} {stream}"), json!({ "stream": stream }))).await;
            assert_eq!((answer.status, texts(&answer, stream)), (200, vec![TITLE.to_owned()]), "{}", answer.text);
            assert!(answer.text.contains("\"end_turn\""));
        }
    }
    let prompts = prompts(&world);
    assert_eq!(prompts.len(), 6);
    let sentence = "\n\nReply with a single JSON value that is valid against this JSON Schema, without any other text and \
                    without a code fence: {\"type\":\"object\",\"properties\":";
    assert!(prompts[0].starts_with(&format!("0 false{sentence}")), "{}", prompts[0]);
}

#[tokio::test]
async fn a_wrong_answer_is_asked_for_once_more_a178_ts37() {
    for stream in [false, true] {
        let world = World::with_tokens(&["s1"], &[]).await;
        let tokens = |input, output| json!({ "tokens": { "uncachedInputTokens": input, "outputTokens": output } });
        let wrong = json!({ "text": "{\"name\":1}", "usage": tokens(100, 10) });
        says(&world, json!([wrong, { "text": TITLE, "usage": tokens(150, 20) }]));
        let answer = world.messages(&asked("q", json!({ "stream": stream }))).await;
        assert_eq!((answer.status, texts(&answer, stream)), (200, vec![TITLE.to_owned()]), "{}", answer.text);
        let usage = match stream {
            false => answer.json()["usage"].clone(),
            true => {
                events(&answer.text).iter().rfind(|event| event["type"] == "message_delta").unwrap()["usage"].clone()
            }
        };
        assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(250), &json!(30)), "{usage}");
        assert!(usage.get("server_tool_use").is_none());
        let prompts = prompts(&world);
        assert_eq!(prompts.len(), 2);
        assert!(prompts[1].starts_with("Your reply can't be used: "), "{}", prompts[1]);
        assert!(prompts[1].contains("Reply with a single JSON value"), "the sentence stands in each round");
    }
}

/// The complaint is ours: what holds until the user's next message still holds.
#[tokio::test]
async fn the_instructions_of_the_turn_hold_for_the_second_reply_too_ts37_m70() {
    let world = World::with_tokens(&["s1"], &[]).await;
    says(&world, json!([{ "text": "No." }, { "text": TITLE }]));
    let passing = json!({ "role": "system", "content": "In French.", "clear_at": "next_user_message" });
    let messages = json!([{ "role": "user", "content": "q" }, passing]);
    let answer = world.messages(&asked("", json!({ "messages": messages }))).await;
    assert_eq!(texts(&answer, false), [TITLE], "{}", answer.text);
    let stats = world.simulated.control().stats_with_bodies();
    let bodies = stats["last"].as_array().unwrap().iter().filter_map(|call| call["body"].as_str());
    let chats: Vec<_> = bodies.filter(|body| body.contains("conversationState")).collect();
    assert_eq!(chats.len(), 2);
    assert!(chats.iter().all(|body| body.contains("q\\nIn French.")), "{chats:?}");
}

#[tokio::test]
async fn an_answer_that_stays_wrong_is_an_error_a179_ts37() {
    for stream in [false, true] {
        let world = World::with_tokens(&["s1"], &[]).await;
        let before = world.accounts();
        says(&world, json!([{ "text": "No." }, { "text": "Still no." }]));
        let answer = world.messages(&asked("q", json!({ "stream": stream }))).await;
        assert!(
            answer.text.contains("\"api_error\"") && answer.text.contains("output_config.format"),
            "{}",
            answer.text
        );
        assert!(!answer.text.contains("No."), "{}", answer.text);
        if !stream {
            assert_eq!(answer.status, 500);
        }
        assert_eq!(prompts(&world).len(), 2);
        let health = |records: &[Value]| [records[0]["isHealthy"].clone(), records[0]["errorCount"].clone()];
        assert_eq!(health(&before), health(&world.accounts()));
    }
}

#[tokio::test]
async fn the_presets_of_structured_output_play_a177_a178_a179() {
    for (preset, status, chats) in [("structured", 200, 1), ("structured-bad-once", 200, 2), ("structured-bad", 500, 2)]
    {
        let world = World::with_tokens(&[&format!("sim-{preset}")], &[]).await;
        let answer = world.messages(&asked("q", json!({}))).await;
        assert_eq!((answer.status, prompts(&world).len()), (status, chats), "{preset}: {}", answer.text);
        if status == 200 {
            assert_eq!(texts(&answer, false), [r#"{"title":"Simulated title"}"#], "{preset}");
        }
    }
}

#[tokio::test]
async fn a_search_behind_a_wrong_answer_forgets_nothing_ts37_ts33() {
    let world = World::with_tokens(&["s1"], &[]).await;
    let search = |id: &str| json!({ "name": "web_search", "id": format!("tooluse_{id}"), "input": { "query": id } });
    let (first, second) = (json!({ "tools": [search("A")] }), json!({ "tools": [search("B")] }));
    says(&world, json!([first, { "text": "Not so." }, second, { "text": TITLE }]));
    let tools = json!([{ "type": "web_search_20250305", "name": "web_search" }]);
    let answer = world.messages(&asked("q", json!({ "tools": tools }))).await;
    assert_eq!((answer.status, texts(&answer, false)), (200, vec![TITLE.to_owned()]), "{}", answer.text);
    let stats = world.simulated.control().stats_with_bodies();
    let last =
        stats["last"].as_array().unwrap().iter().rfind(|call| call["body"].as_str().unwrap().contains("history"));
    let body: Value = serde_json::from_str(last.unwrap()["body"].as_str().unwrap()).unwrap();
    let history = body["conversationState"]["history"].as_array().unwrap();
    let said: Vec<_> = history
        .iter()
        .map(|message| {
            let message = message.get("userInputMessage").unwrap_or_else(|| &message["assistantResponseMessage"]);
            message["content"].as_str().unwrap().split(':').next().unwrap()
        })
        .collect();
    assert_eq!(said[..1], ["q"]);
    assert!(said.contains(&"Not so.") && said.contains(&"Your reply can't be used"), "{said:?}");
    let current = &body["conversationState"]["currentMessage"]["userInputMessage"]["userInputMessageContext"];
    assert_eq!(current["toolResults"][0]["toolUseId"], "tooluse_B");
}

#[tokio::test]
async fn the_second_answer_may_be_as_long_as_the_first_ts37_m83() {
    let world = World::with_tokens(&["s1"], &[]).await;
    says(&world, json!([{ "text": "It is a nice day today. ".repeat(6) }, { "text": TITLE }]));
    let answer = world.messages(&asked("q", json!({ "max_tokens": 40 }))).await;
    assert_eq!((answer.status, texts(&answer, false)), (200, vec![TITLE.to_owned()]), "{}", answer.text);
    assert_eq!(answer.json()["stop_reason"], "end_turn");
}

#[tokio::test]
async fn an_answer_that_is_right_the_second_time_is_a_turn_of_its_conversation_ts37_ts33() {
    let world = World::with_tokens(&["s1"], &[]).await;
    says(&world, json!([{ "text": "No." }, { "text": TITLE }]));
    assert_eq!(world.messages(&asked("q", json!({}))).await.status, 200);
    let metrics = world.gateway.metrics();
    assert!(metrics.contains("kiro_affinity_total{result=\"new\"} 1"), "{metrics}");
    assert!(metrics.contains("kiro_first_content_seconds_count 1"), "{metrics}");
}

#[tokio::test]
async fn text_in_front_of_a_tool_goes_out_as_it_is_a180_ts37() {
    let world = World::with_tokens(&["s1"], &[]).await;
    for stream in [false, true] {
        says(&world, json!([{ "text": "I look.", "tools": [{ "name": "f", "input": { "x": 1 } }] }]));
        let tools = json!([{ "name": "f", "input_schema": { "type": "object" } }]);
        let answer = world.messages(&asked(&format!("{stream}"), json!({ "stream": stream, "tools": tools }))).await;
        assert_eq!((answer.status, texts(&answer, stream)), (200, vec!["I look.".to_owned()]), "{}", answer.text);
        assert!(answer.text.contains("\"tool_use\""));
    }
}

#[tokio::test]
async fn the_output_limit_ends_the_json_as_it_is_ts37() {
    let world = World::with_tokens(&["s1"], &[]).await;
    says(&world, json!([{ "text": "{\"title\":\"Fi", "usage": { "stop_reason": "MAX_TOKENS" } }]));
    let answer = world.messages(&asked("q", json!({}))).await;
    assert_eq!(texts(&answer, false), ["{\"title\":\"Fi"]);
    assert_eq!(answer.json()["stop_reason"], "max_tokens");
}

/// A text that is too long to be the JSON isn't cut where it goes out as it is.
#[tokio::test]
async fn no_text_is_too_long_to_go_out_as_it_is_ts37() {
    let world = World::with_tokens(&["s1"], &[]).await;
    let long = "word ".repeat(300_000);
    let tools = json!([{ "name": "f", "input_schema": {} }]);
    let call = json!({ "tool": { "name": "f", "id": "t1", "input": { "a": 1 } } });
    for (place, ends) in [json!({ "usage": { "stop_reason": "MAX_TOKENS" } }), call].into_iter().enumerate() {
        says(&world, json!([{ "steps": [{ "text": long, "pieces": 50 }, ends] }]));
        let changes = json!({ "tools": tools, "model": "claude-opus-5-5", "max_tokens": 128_000 });
        let answer = world.messages(&asked(&format!("{place}"), changes)).await;
        let said = texts(&answer, false);
        assert_eq!((said.len(), said[0].len(), said[0] == long), (1, long.len(), true));
    }
    says(&world, json!([{ "text": format!("{TITLE}{}", " ".repeat(1 << 20)), "pieces": 50 }, { "text": TITLE }]));
    assert_eq!(texts(&world.messages(&asked("both", json!({ "max_tokens": 128_000 }))).await, false), [TITLE]);
    assert!(prompts(&world).last().unwrap().starts_with("Your reply can't be used: it is too long. Reply again."));
}

#[tokio::test]
async fn formats_that_cant_be_kept_are_refused_a181_tr62_m65() {
    let world = World::with_tokens(&["s1"], &[]).await;
    for (format, path) in [
        (json!({ "type": "xml" }), "output_config.format.type"),
        (json!({ "type": "json_schema" }), "output_config.format.schema"),
        (json!({ "type": "json_schema", "schema": { "$ref": "#" } }), "output_config.format.schema"),
    ] {
        let answer = world.messages(&asked("q", json!({ "output_config": { "format": format } }))).await;
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (400, &json!("invalid_request_error")));
        assert!(answer.text.contains(&format!("\"{path}: ")), "{}", answer.text);
    }
    for (format, path) in [
        (json!({ "type": "xml" }), "output_format.type"),
        (json!({ "type": "json_schema", "schema": { "$ref": "#" } }), "output_format.schema"),
    ] {
        let older = with(json!({ "output_format": format }));
        let counted = world.post("/v1/messages/count_tokens", older.to_string()).await;
        for answer in [world.messages(&older).await, counted] {
            assert_eq!(answer.status, 400, "{}", answer.text);
            assert!(answer.text.contains(&format!("\"{path}: ")), "{}", answer.text);
        }
    }
    assert_eq!(prompts(&world).len(), 0);
}
