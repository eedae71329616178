//! The traps of contract/cases.md that lie in the response half, each by its number.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[allow(dead_code, reason = "part of it is for the vectors")]
mod response;

use bytes::{Bytes, BytesMut};
use kiro_messages::proto::kiro::fault::FaultKind;
use kiro_messages::proto::pipeline::{Mode, Pipeline, Step};
use response::{Case, Chunks, Ending, Frame, bytes_of, check_grammar, drive, notation, parse_sse, parse_vectors};

/// A case in the notation of the vectors.
fn case(input: &str) -> Case {
    parse_vectors(&format!("# rule\nname title < {input}\n")).remove(0)
}

fn run(input: &str) -> String {
    let case = case(input);
    notation(&drive(&mut case.pipeline(), &case.inputs, Chunks::Whole))
}

#[test]
fn a_bad_prelude_fails_at_byte_12_trap02() {
    for checksum in [crc32fast::hash(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), 0] {
        let mut wire = vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        wire.extend(checksum.to_be_bytes());
        let mut pipeline = case("Z").pipeline();
        let mut out = BytesMut::new();
        assert_eq!(pipeline.push(Bytes::copy_from_slice(&wire[..11]), &mut out), Step::Continue);
        let Step::Fault(fault) = pipeline.push(Bytes::copy_from_slice(&wire[11..]), &mut out) else {
            panic!("a fault")
        };
        assert_eq!(fault.kind, FaultKind::Protocol);
    }
}

#[test]
fn nothing_is_decoded_after_a_bad_frame_trap03() {
    assert_eq!(run(r#"A"x" B A"y" C1 Z"#), r#"start · +0 text · 0"x" · -0 · !api_error"#);
}

#[test]
fn frames_before_a_bad_one_in_the_same_chunk_count_trap04() {
    let case = case(r#"A"x" A"y" B"#);
    let mut pipeline = case.pipeline();
    let outs = drive(&mut pipeline, &case.inputs, Chunks::Whole);
    assert_eq!(notation(&outs), r#"start · +0 text · 0"x" · 0"y" · -0 · !api_error"#);
    assert_eq!((pipeline.report().frames, pipeline.report().crc_failures), (2, 1));
}

#[test]
fn a_character_cut_in_two_stays_whole_trap05() {
    let case = case(r#"A"é" Z"#);
    assert_eq!(
        notation(&drive(&mut case.pipeline(), &case.inputs, Chunks::PerByte)),
        r#"start · +0 text · 0"é" · -0 · =end_turn · stop"#
    );
}

#[test]
fn json_inside_of_strings_changes_nothing_trap06() {
    assert_eq!(
        run(r#"A"}{\"content\":\"no\"}" T["a","f","{\"content\":\"{\\\"content\\\":\\\"no\\\"}\"}",true] Z"#),
        r#"start · +0 text · 0"}{\"content\":\"no\"}" · -0 · +1 tool a f · 1"{\"content\":\"{\\\"content\\\":\\\"no\\\"}\"}" · -1 · =tool_use · stop"#
    );
}

#[test]
fn equal_deltas_are_kept_trap07() {
    assert_eq!(run(r#"A"ha" A"ha" Z"#), r#"start · +0 text · 0"ha" · 0"ha" · -0 · =end_turn · stop"#);
}

#[test]
fn the_frame_that_comes_with_the_end_counts_trap08() {
    let mut pipeline = case("Z").pipeline();
    let mut out = BytesMut::new();
    pipeline.push(Bytes::from(Frame::text("last").wire()), &mut out);
    assert_eq!(pipeline.finish(&mut out), Step::Done);
    assert_eq!(check_grammar(&parse_sse(&out)), Ending::Finished);
    assert!(out.windows(4).any(|four| four == b"last"));
}

#[test]
fn a_tool_input_of_2_mib_passes_trap09() {
    let input = format!("{{\"text\":\"{}\"}}", "x".repeat(2 << 20));
    let payload = serde_json::json!({ "toolUseId": "a", "name": "f", "input": input, "stop": true }).to_string();
    let wire = Frame::event("toolUseEvent", payload).wire();
    let case = case("Z");
    for mode in [Mode::Stream, Mode::Fold] {
        let mut pipeline = Pipeline::new(case.settings(mode));
        let mut out = BytesMut::new();
        for chunk in wire.chunks(8 << 10) {
            assert_eq!(pipeline.push(Bytes::copy_from_slice(chunk), &mut out), Step::Continue);
        }
        assert_eq!(pipeline.finish(&mut out), Step::Done);
        let length = match pipeline.message() {
            Some(message) => {
                let message: serde_json::Value = serde_json::from_slice(&message).unwrap();
                message["content"][0]["input"]["text"].as_str().unwrap().len() + 11
            }
            None => parse_sse(&out)[2].1["delta"]["partial_json"].as_str().unwrap().len(),
        };
        assert_eq!(length, input.len());
    }
}

#[test]
fn an_exception_in_mid_text_is_an_error_trap10() {
    assert_eq!(
        run(r#"A"Hel" X:InternalServerException{"message":"m"} A"lo" Z"#),
        r#"start · +0 text · 0"Hel" · -0 · !api_error"#
    );
}

#[test]
fn an_error_frame_in_mid_text_is_an_error_trap11() {
    assert_eq!(run(r#"A"Hel" E:ThrottlingException"m" Z"#), r#"start · +0 text · 0"Hel" · -0 · !rate_limit_error"#);
}

#[test]
fn a_ghost_exception_is_no_fault_trap12() {
    let case = case(r#"A"done" C2 X:InternalServerException{"message":"user d-1"} Z"#);
    let mut pipeline = case.pipeline();
    let outs = drive(&mut pipeline, &case.inputs, Chunks::PerFrame);
    assert!(outs.contains(&response::Out::Done));
    assert!(!outs.iter().any(|out| matches!(out, response::Out::Failed(_) | response::Out::Fault(_))));
    assert_eq!(pipeline.report().ghost.unwrap().kind, FaultKind::ServerError);
    assert!(!String::from_utf8(bytes_of(&outs)).unwrap().contains("d-1"));
}

#[test]
fn an_empty_body_is_a_fault_trap13() {
    for input in ["Z", "@start Z"] {
        let case = case(input);
        let outs = drive(&mut case.pipeline(), &case.inputs, Chunks::Whole);
        assert_eq!(outs.last(), Some(&response::Out::Fault("Network".into())));
        let mut folding = Pipeline::new(case.settings(Mode::Fold));
        drive(&mut folding, &case.inputs, Chunks::Whole);
        assert_eq!(folding.message(), None);
    }
}

#[test]
fn stop_on_the_first_piece_keeps_its_input_trap14() {
    assert_eq!(
        run(r#"T["a","f","{\"x\":1}",true] Z"#),
        r#"start · +0 tool a f · 0"{\"x\":1}" · -0 · =tool_use · stop"#
    );
}

#[test]
fn two_tools_are_two_blocks_trap15() {
    assert_eq!(
        run(r#"T["a","f","{\"x\":1}"] T["a","f",null,true] T["b","g","{\"y\":2}"] T["b","g",null,true] Z"#),
        r#"start · +0 tool a f · 0"{\"x\":1}" · -0 · +1 tool b g · 1"{\"y\":2}" · -1 · =tool_use · stop"#
    );
}

#[test]
fn the_last_piece_without_input_opens_nothing_trap16() {
    assert_eq!(
        run(r#"T["a","f","{}"] T["a","f",null,true] Z"#),
        r#"start · +0 tool a f · 0"{}" · -0 · =tool_use · stop"#
    );
}

#[test]
fn an_object_is_an_input_trap17() {
    assert_eq!(run(r#"T["a","f",{"x":1},true] Z"#), r#"start · +0 tool a f · 0"{\"x\":1}" · -0 · =tool_use · stop"#);
}

#[test]
fn half_json_is_not_finished_trap18() {
    for input in [r#"T["a","f","{\"x\":"] Z"#, r#"T["a","f","{\"x\":",true] Z"#] {
        assert_eq!(run(input), r#"start · +0 tool a f · 0"{\"x\":" · -0 · =max_tokens · stop"#);
    }
}

/// The number of the trap is its place in the list; its other half, classification, is in tests/golden_faults.rs.
#[test]
fn upstream_text_stays_out_of_the_stream_trap41() {
    for frame in [
        r#"X:ThrottlingException{"message":"user d-9067 arn:aws:x"}"#,
        r#"X:error{"message":"user d-9067 arn:aws:x","reason":"MONTHLY_REQUEST_COUNT"}"#,
        r#"E:InternalServerException"user d-9067 arn:aws:x""#,
        r#"I{"reason":"d-9067","message":"user d-9067"}"#,
    ] {
        let case = case(&format!("A\"x\" {frame}"));
        let out = bytes_of(&drive(&mut case.pipeline(), &case.inputs, Chunks::Whole));
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("event: error") && !out.contains("d-9067") && !out.contains("arn:"), "{out}");
    }
}
