//! TS42, D24–D27: no client may run half a tool. Answers with one and with two tools, ended at every byte of the upstream
//! stream in every way an answer can end, streamed and folded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[allow(dead_code, reason = "part of it is for the vectors")]
mod response;

use bytes::{Bytes, BytesMut};
use kiro_messages::proto::pipeline::{Mode, Pipeline, Step};
use response::{Case, Ending, Input, check_grammar, cut, parse_sse, parse_vectors};
use serde_json::{Value, json};

/// Inputs in pieces of all kinds: none at all, one piece, many, a string that holds brackets, `stop` of its own or not.
const ANSWERS: [&str; 5] = [
    r#"A"I look." T["a","f"] T["a","f","{\"p\":"] T["a","f","\"}x\\\"\"}"] T["a","f",null,true] C1 Z"#,
    r#"T["a","f","{\"p\":\"}x\\\"\"}",true] T["b","g"] T["b","g"," {\"q\":["] T["b","g","1]"] T["b","g","}"] T["b","g",null,true] C1 Z"#,
    r#"T["a","f"] T["b","g","{\"q\":["] A"between" T["a","f","{\"p\":\"}x\\\"\""] T["b","g","1]}"] T["a","f","}",true] T["b","g",null,true] C1 Z"#,
    r#"A"x" T["a","f",{"p":"}x\""}] T["b","g",{"q":[1]},true] Z"#,
    r#"T["a","f","",true] T["b","g",null,true] C1 Z"#,
];

/// The calls that the model made.
fn calls(id: &str) -> [Value; 2] {
    match id {
        "a" => [json!({ "p": "}x\"" }), json!({})],
        _ => [json!({ "q": [1] }), json!({})],
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// A reset: the answer breaks off.
    Cut,
    /// The body ends properly, after whole frames only.
    Clean,
    Shutdown,
}

fn case(answer: &str) -> Case {
    parse_vectors(&format!("# rule\nname title < {answer}\n")).remove(0)
}

/// The frames' bytes, and where each frame ends.
fn wire(case: &Case) -> (Vec<u8>, Vec<usize>) {
    let (mut wire, mut ends) = (Vec::new(), vec![0]);
    for input in &case.inputs {
        if let Input::Frame(frame) = input {
            wire.extend(frame.wire());
            ends.push(wire.len());
        }
    }
    (wire, ends)
}

fn drive(pipeline: &mut Pipeline, wire: &[u8], end: End) -> (Step, BytesMut) {
    let mut out = BytesMut::new();
    assert_eq!(pipeline.push(Bytes::copy_from_slice(wire), &mut out), Step::Continue);
    let step = match end {
        End::Cut => pipeline.abort(cut(), &mut out),
        End::Clean => pipeline.finish(&mut out),
        End::Shutdown => {
            pipeline.shutdown(&mut out);
            Step::Continue
        }
    };
    (step, out)
}

/// What clients run: as soon as a block is closed (Claude Code), as soon as the next event comes (eager runners), or when
/// the message has ended with `tool_use`; all of them only what parses, but for one that takes `{}` for whatever doesn't.
fn runs(events: &[(String, Value)]) -> Vec<(String, Value)> {
    let mut runs = Vec::new();
    let mut open: Option<(String, String)> = None;
    for (place, (name, event)) in events.iter().enumerate() {
        match name.as_str() {
            "content_block_start" if event["content_block"]["type"] == "tool_use" => {
                open = Some((event["content_block"]["id"].as_str().unwrap().to_owned(), String::new()));
            }
            "content_block_delta" => {
                if let (Some((_, input)), Some(piece)) = (&mut open, event["delta"]["partial_json"].as_str()) {
                    input.push_str(piece);
                }
            }
            "content_block_stop" => {
                if let Some((id, input)) = open.take() {
                    let ends = &events[place + 1..];
                    let reason = ends.first().and_then(|(_, event)| event["delta"]["stop_reason"].as_str());
                    match serde_json::from_str(&input) {
                        Ok(input) => runs.push((id, input)),
                        // A client that makes `{}` of it looks at the stop reason.
                        Err(_) => assert_eq!(reason, Some("max_tokens"), "half a tool was closed: {events:#?}"),
                    }
                }
            }
            _ => {}
        }
    }
    runs
}

/// Every cut, every end.
fn every_end(mut check: impl FnMut(&str, &Case, &[u8], bool, End)) {
    for answer in ANSWERS {
        let case = case(answer);
        let (wire, ends) = wire(&case);
        for at in 0..=wire.len() {
            for end in [End::Cut, End::Clean, End::Shutdown] {
                check(answer, &case, &wire[..at], ends.contains(&at), end);
            }
        }
    }
}

#[test]
fn no_half_tool_at_any_cut_ts42_d24_d25_d26_d27() {
    let mut seen = [0_u32; 4];
    every_end(|answer, case, wire, whole, end| {
        let mut pipeline = case.pipeline();
        let (step, out) = drive(&mut pipeline, wire, end);
        let events = parse_sse(&out);
        let ending = check_grammar(&events);
        for (id, input) in runs(&events) {
            assert!(calls(&id).contains(&input), "{id} {input} was run: {answer} {end:?}");
        }
        match step {
            // (a): nothing was opened, so another account may answer, and the client sees nothing of it.
            Step::Fault(_) => {
                assert!(!pipeline.is_committed() && pipeline.restart().is_ok());
                assert!(!events.iter().any(|(name, _)| name == "content_block_start"));
                seen[0] += 1;
            }
            // (b)
            Step::Failed(_) => {
                assert_eq!(ending, Ending::Failed);
                seen[1] += 1;
            }
            Step::Searches | Step::NextRound | Step::Unfit => panic!("no search is declared"),
            Step::TooLong => panic!("a stream has no bound"),
            // (c), (d)
            Step::Done => {
                assert!(end == End::Clean && whole && ending == Ending::Finished);
                seen[2] += 1;
            }
            Step::Continue => {
                assert_eq!(end, End::Shutdown);
                assert!(matches!(ending, Ending::Empty | Ending::Failed));
                seen[3] += 1;
            }
        }
    });
    assert!(seen.iter().all(|&count| count > 20), "{seen:?}");
}

/// Folded: an error at a fault; at a clean end only calls that are whole, and `max_tokens` where one is missing.
#[test]
fn folded_holds_whole_tools_only_ts42_d24_d25_d26_d27() {
    let (mut whole_ones, mut cut_ones) = (0, 0);
    every_end(|answer, case, wire, whole, end| {
        let mut pipeline = Pipeline::new(case.settings(Mode::Fold));
        let (step, out) = drive(&mut pipeline, wire, end);
        assert!(out.is_empty());
        let Some(message) = pipeline.message() else {
            return assert_ne!(step, Step::Done);
        };
        assert!(end == End::Clean && whole);
        let message: Value = serde_json::from_slice(&message).unwrap();
        let tools: Vec<&Value> =
            message["content"].as_array().unwrap().iter().filter(|block| block["type"] == "tool_use").collect();
        for tool in &tools {
            assert!(calls(tool["id"].as_str().unwrap()).contains(&tool["input"]), "{tool}: {answer}");
        }
        match message["stop_reason"].as_str().unwrap() {
            "max_tokens" => cut_ones += 1,
            "tool_use" => {
                assert!(!tools.is_empty());
                whole_ones += 1;
            }
            reason => assert!(reason == "end_turn" && tools.is_empty(), "{message}"),
        }
    });
    assert!(whole_ones > 5 && cut_ones > 5, "{whole_ones} {cut_ones}");
}

/// M53 as TS42 has it: each closed block of text stays closed before an error, so that clients can go on from it.
#[test]
fn text_and_thoughts_are_closed_before_the_error_m53_ts42() {
    for answer in [r#"A"x" K"#, r#"think R["t","s"] K"#, r#"think R["t"] A"x" K"#] {
        let case = case(answer);
        let (wire, _) = wire(&case);
        let (_, out) = drive(&mut case.pipeline(), &wire, End::Cut);
        let names: Vec<String> = parse_sse(&out).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[names.len() - 2..], ["content_block_stop", "error"], "{answer}");
    }
}
