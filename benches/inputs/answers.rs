//! Answers of Kiro, and the pipelines that read them: the same bytes for every measurement.

use bytes::Bytes;
use kiro_messages::proto::eventstream::{HeaderValue, encode};
use kiro_messages::proto::pipeline::{Extras, Mode, Pipeline, Settings, StopSequences, UsageSplit};

/// As many and as long as they are likely to be (M82).
fn stop_sequences() -> Vec<String> {
    let starts = ["\n\nHuman:", "\n\nAssistant:", "</answer>", "```", "END", "###", "Observation:", "Question:"];
    let long = |text: &str| format!("{text:.<20}");
    starts.iter().flat_map(|start| [long(start), long(&format!("{start} more"))]).collect()
}

pub fn pipeline(thinking: bool, mode: Mode) -> Pipeline {
    Pipeline::new(settings(thinking, mode))
}

pub fn with_stops() -> Pipeline {
    let extras = Extras { stop_sequences: StopSequences::new(stop_sequences()), ..Extras::default() };
    Pipeline::new(Settings { extras, ..settings(false, Mode::Stream) })
}

fn settings(thinking: bool, mode: Mode) -> Settings {
    Settings {
        message_id: "msg_0123456789abcdefghijklmn".into(),
        request_id: "req_0123456789abcdefghijklmn".into(),
        model: "claude-sonnet-4-5".into(),
        thinking,
        drop_thinking_text: false,
        tool_names: Default::default(),
        window: 172_500,
        usage_window: 172_500,
        usage_split: UsageSplit::Ratio,
        input_estimate: 10,
        mode,
        extras: Extras::default(),
    }
}

/// A chunk of text events.
pub fn texts(count: usize) -> Bytes {
    events("assistantResponseEvent", count, |n| format!("{{\"content\":\"{}\"}}", SENTENCES[n % SENTENCES.len()]))
}

/// A chunk of pieces of a tool's input; [`opening`] comes before them.
pub fn inputs(count: usize) -> Bytes {
    events("toolUseEvent", count, |n| {
        format!(
            "{{\"toolUseId\":\"tooluse_abcdefghijklmnop\",\"name\":\"Write\",\"input\":\"{}\"}}",
            INPUTS[n % INPUTS.len()]
        )
    })
}

/// The first piece of a tool's input. The others are the inside of a string.
pub fn opening() -> Bytes {
    events("toolUseEvent", 1, |_| {
        r#"{"toolUseId":"tooluse_abcdefghijklmnop","name":"Write","input":"{\"text\":\""}"#.into()
    })
}

/// A chunk of events of one type.
pub fn events(event_type: &str, count: usize, payload: impl Fn(usize) -> String) -> Bytes {
    let headers = [
        (":message-type", HeaderValue::Text("event")),
        (":event-type", HeaderValue::Text(event_type)),
        (":content-type", HeaderValue::Text("application/json")),
    ];
    let mut wire = Vec::new();
    for n in 0..count {
        encode(&headers, payload(n).as_bytes(), &mut wire).unwrap();
    }
    Bytes::from(wire)
}

/// As JSON string literals, 24 to 36 characters.
pub const SENTENCES: [&str; 5] = [
    "The quick brown fox jumps over ",
    " the lazy dog, and then it rests",
    ".\\n\\nHere is `main.rs`, fixed:\\n",
    "    let x = \\\"a string\\\";\\n    x",
    "; which is 42 in 2026, isn't it?",
];
pub const WIDE: [&str; 3] =
    ["敏捷的棕色狐狸跳过了那只懒狗，然后休息。", "\\u4f60\\u597d\\uff0c世界！", "naïve façade — “quoted” 😀"];
pub const INPUTS: [&str; 3] =
    [r"fn main() {\\n    let x = 1;\\n", r#"    println!(\\\"{x} items\\\");\\n}"#, "// and nothing else to see here"];
