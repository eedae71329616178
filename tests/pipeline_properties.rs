//! TS26: what holds for the response half over any list of events, split anywhere and cut at any byte. The fuzz target
//! `pipeline` runs the same checks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[allow(dead_code, reason = "the vectors' part of it is for tests/golden_response.rs")]
#[path = "../fuzz/entries/pipeline.rs"]
mod pipeline;

use proptest::prelude::*;

fn asked() -> impl Strategy<Value = pipeline::Asked> {
    any::<[bool; 6]>().prop_map(|[thinking, search, omitted, structured, limited, stops]| pipeline::Asked {
        thinking,
        search,
        omitted,
        structured,
        limited,
        stops,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_inputs_give_a_valid_stream_ts26(recipe in prop::collection::vec(any::<u8>(), 0..160), asked in asked(), size in 1_usize..600) {
        pipeline::any_inputs(&pipeline::Recipe(&recipe).inputs(), asked, size);
    }

    #[test]
    fn any_bytes_give_a_valid_stream_ts26(wire in prop::collection::vec(any::<u8>(), 0..400), asked in asked(), size in 1_usize..50) {
        pipeline::any_bytes(&wire, asked, size);
    }

    /// Frames that were right once: cut, doubled, one byte changed.
    #[test]
    fn damaged_frames_end_as_failures_ts26(
        recipe in prop::collection::vec(any::<u8>(), 8..80), at: prop::sample::Index, byte: u8, asked in asked(),
    ) {
        let inputs = pipeline::Recipe(&recipe).inputs();
        let mut wire: Vec<u8> = inputs.iter().filter_map(|input| match input {
            pipeline::response::Input::Frame(frame) => Some(frame.wire()),
            _ => None,
        }).flatten().collect();
        if !wire.is_empty() {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        pipeline::any_bytes(&wire, asked, 7);
    }
}

#[test]
fn the_fuzz_entry_holds_for_fixed_seeds() {
    let mut rng = fastrand::Rng::with_seed(26);
    for _ in 0..300 {
        let data: Vec<u8> = (0..rng.usize(2..200)).map(|_| rng.u8(..)).collect();
        pipeline::run(&data);
    }
}

#[test]
fn the_fuzz_entry_holds_for_every_seed_file() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/pipeline");
    let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        pipeline::run(&std::fs::read(seed).unwrap());
    }
}

/// The recipes reach what they are for: a generator that makes nothing but faults would prove nothing.
#[test]
fn the_recipes_reach_every_ending_and_every_block() {
    use pipeline::response::{Chunks, bytes_of, drive, parse_sse};
    let mut rng = fastrand::Rng::with_seed(3);
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for round in 0..2_000 {
        let data: Vec<u8> = (0..rng.usize(2..160)).map(|_| rng.u8(..)).collect();
        let inputs = pipeline::Recipe(&data).inputs();
        let mut machine = pipeline::machine(pipeline::Asked {
            thinking: round % 2 == 0,
            search: round % 3 == 0,
            structured: round % 5 == 0,
            stops: round % 7 == 0,
            ..pipeline::Asked::default()
        });
        let outs = drive(&mut machine, &inputs, Chunks::Whole);
        for (name, json) in parse_sse(&bytes_of(&outs)) {
            let what = [&json["content_block"]["type"], &json["delta"]["type"], &json["delta"]["stop_reason"]];
            let what = what.iter().find_map(|value| value.as_str()).unwrap_or(&name).to_owned();
            *seen.entry(what).or_default() += 1;
        }
        if machine.report().ghost.is_some() {
            *seen.entry("ghost".into()).or_default() += 1;
        }
    }
    for what in [
        "text",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "text_delta",
        "thinking_delta",
        "signature_delta",
        "input_json_delta",
        "end_turn",
        "tool_use",
        "max_tokens",
        "error",
        "server_tool_use",
        "web_search_tool_result",
        "pause_turn",
        "stop_sequence",
        "ping",
        "ghost",
    ] {
        assert!(seen.get(what).is_some_and(|&count| count > 5), "{what}: {seen:?}");
    }
}
