//! The response vectors of the translation rules: what Kiro sends, and what the client gets.
//!
//! `tests/golden/response/vectors.txt` holds them in their own notation. Each one is run as it stands, at every chunk
//! split and cut at every byte, and with its text in single characters; and what each gives to the byte stands in `streams.txt`
//! beside them, written again only with `KIRO_BLESS=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[allow(dead_code, reason = "part of it is for the property tests")]
mod response;
#[path = "support/rules.rs"]
#[allow(dead_code, reason = "part of it is for the request half")]
mod rules;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kiro_messages::proto::pipeline::{Mode, Pipeline};
use response::{
    Case, Chunks, Ending, Frame, Input, Out, bytes_of, check_grammar, drive, fold_of_stream, in_pieces, joined,
    notation, parse_sse, usage_notation,
};
use rules::{Half, blessing};
use serde_json::Value;

#[test]
fn every_response_vector_holds() {
    for case in Case::all() {
        let outs = drive(&mut case.pipeline(), &case.inputs, Chunks::PerFrame);
        check_grammar(&parse_sse(&bytes_of(&outs)));
        assert!(!case.expected.is_empty(), "{} expects nothing", case.name);
        for view in &case.expected {
            if view.starts_with("use ") {
                assert_eq!(usage_notation(&outs).as_deref(), Some(view.as_str()), "{} {}", case.name, case.title);
            } else if let Some(content) = view.strip_prefix("fold ") {
                let expected: Value = serde_json::from_str(content).unwrap();
                assert_eq!(folded(&case).unwrap()["content"], expected, "{} {}", case.name, case.title);
            } else {
                assert_eq!(&notation(&outs), view, "{} {}", case.name, case.title);
            }
        }
    }
}

#[test]
fn vectors_at_every_split_give_the_same_bytes_k28_m53_ts26() {
    for case in Case::all() {
        let whole = drive(&mut case.pipeline(), &case.inputs, Chunks::Whole);
        for chunks in [Chunks::PerFrame, Chunks::PerByte].into_iter().chain((1..longest_run(&case)).map(Chunks::Split))
        {
            assert_eq!(drive(&mut case.pipeline(), &case.inputs, chunks), whole, "{} {chunks:?}", case.name);
        }
    }
}

/// TS26, K39: the inputs up to any byte, then a cut, or an end of the body that leaves bytes over.
#[test]
fn vectors_cut_at_every_byte_end_as_failures_k39_m53_ts26() {
    for case in Case::all() {
        let mut checked = BTreeMap::new();
        let mut ending =
            |bytes: Vec<u8>| *checked.entry(bytes).or_insert_with_key(|bytes| check_grammar(&parse_sse(bytes)));
        for (end, (inputs, partial)) in [Input::Cut, Input::End]
            .into_iter()
            .flat_map(|end| prefixes(&case).into_iter().map(move |prefix| (end.clone(), prefix)))
        {
            let mut pipeline = case.pipeline();
            let mut outs = drive(&mut pipeline, &inputs, Chunks::Whole);
            let before = ending(bytes_of(&outs));
            let committed = pipeline.is_committed();
            let mut out = bytes::BytesMut::new();
            pipeline.push(bytes::Bytes::copy_from_slice(&partial), &mut out);
            assert_eq!(out.len(), 0, "{}: a frame that isn't whole gave something", case.name);
            outs.extend(drive(&mut pipeline, std::slice::from_ref(&end), Chunks::Whole));
            let after = ending(bytes_of(&outs));
            if outs.iter().rfind(|out| !matches!(out, Out::Bytes(_))) == Some(&Out::Searches) {
                // Upstream's body is over; what comes next is the outcome of the searches.
                continue;
            }
            let told = outs.iter().any(|out| matches!(out, Out::Fault(_) | Out::Failed(_) | Out::Done));
            assert!(told || pipeline.is_ended(), "{}: nobody was told of the end", case.name);
            let broken = end == Input::Cut || !partial.is_empty();
            match before {
                Ending::Finished | Ending::Failed => assert_eq!(after, before, "{}", case.name),
                _ if broken && committed => assert_eq!(after, Ending::Failed, "{}", case.name),
                _ if broken => assert_eq!(after, before, "{}: told before the commit", case.name),
                // A reported fault waits for a restart.
                _ => assert!(
                    after != Ending::Running || outs.iter().any(|out| matches!(out, Out::Fault(_))),
                    "{}",
                    case.name
                ),
            }
        }
    }
}

/// The text of every event one or two UTF-16 units at a time: after joining a block's deltas the same stream.
#[test]
fn vectors_in_single_characters_give_the_same_stream_ts11_ts26() {
    for case in Case::all() {
        let whole = drive(&mut case.pipeline(), &case.inputs, Chunks::PerFrame);
        for size in [1, 2] {
            let cut: Vec<Input> = case.inputs.iter().flat_map(|input| in_pieces(input, size)).collect();
            let outs = drive(&mut case.pipeline(), &cut, Chunks::PerFrame);
            check_grammar(&parse_sse(&bytes_of(&outs)));
            assert_eq!(joined(&outs), joined(&whole), "{} {}, {size} at a time", case.name, case.title);
        }
    }
}

/// TS24, M51: the non-streaming answer is the fold of the stream, or nothing at all.
#[test]
fn vectors_fold_to_what_the_stream_says_ts24_m51_m52() {
    for case in Case::all() {
        let outs = drive(&mut case.pipeline(), &case.inputs, Chunks::PerFrame);
        let events = parse_sse(&bytes_of(&outs));
        let message = folded(&case);
        assert_eq!(message.is_some(), check_grammar(&events) == Ending::Finished, "{}", case.name);
        let Some(message) = message else { continue };
        assert_eq!(message["content"], Value::Array(fold_of_stream(&events)), "{}", case.name);
        let delta = &events.iter().find(|(name, _)| name == "message_delta").unwrap().1;
        assert_eq!(message["usage"], delta["usage"], "{}", case.name);
        assert_eq!(message["stop_reason"], delta["delta"]["stop_reason"], "{}", case.name);
        let start = &events[0].1["message"];
        assert_eq!(message["stop_sequence"], delta["delta"]["stop_sequence"], "{}", case.name);
        for member in ["id", "type", "role", "model"] {
            assert_eq!(message[member], start[member], "{}", case.name);
        }
        assert_eq!(message.as_object().unwrap().len(), 8);
    }
}

/// TS23: the same JSON values without the raw copy.
#[test]
fn vectors_without_the_raw_copy_give_the_same_values_ts23_ts26() {
    for case in Case::all() {
        let fast = drive(&mut case.pipeline(), &case.inputs, Chunks::PerFrame);
        let slow = drive(&mut case.pipeline().without_raw_copy(), &case.inputs, Chunks::PerFrame);
        assert_eq!(parse_sse(&bytes_of(&fast)), parse_sse(&bytes_of(&slow)), "{}", case.name);
    }
}

/// `tests/golden/response/streams.txt`: the exact bytes that each vector gives, and what the driver reports.
#[test]
fn streams_equal_the_golden_ones() {
    let mut expected = String::from(
        "# What each vector gives: the data of each event, and `=>` what the driver is told after which input. Written by KIRO_BLESS=1 cargo test\n\
         # --test golden_response.\n",
    );
    for case in Case::all() {
        let mut pipeline = case.pipeline();
        writeln!(expected, "{}", case.name).unwrap();
        for (place, input) in case.inputs.iter().enumerate() {
            let outs = drive(&mut pipeline, std::slice::from_ref(input), Chunks::PerFrame);
            expected.extend(outs.iter().map(|out| stream_lines(out, place + 1)));
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/response/streams.txt");
    if blessing() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    for (line, (there, given)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(there, given, "streams.txt:{}; KIRO_BLESS=1 writes it", line + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "KIRO_BLESS=1 writes it");
}

/// What a pipeline gave for one input. An event's name and its lines follow from its data, and here they do.
fn stream_lines(out: &Out, input: usize) -> String {
    match out {
        Out::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes).unwrap();
            let events = text.split_inclusive("\n\n").map(|event| {
                let data = event.split_once("\ndata: ").and_then(|(_, data)| data.strip_suffix("\n\n")).unwrap();
                let kind = serde_json::from_str::<Value>(data).unwrap()["type"].as_str().unwrap().to_owned();
                assert_eq!(event, format!("event: {kind}\ndata: {data}\n\n"));
                format!("> {data}\n")
            });
            events.collect()
        }
        Out::Fault(kind) => format!("=> {input}: fault {kind}\n"),
        Out::Failed(kind) => format!("=> {input}: failed {kind}\n"),
        Out::Done => format!("=> {input}: done\n"),
        Out::Searches => format!("=> {input}: searches\n"),
        Out::NextRound => format!("=> {input}: next round\n"),
        Out::Refused => format!("=> {input}: refused\n"),
    }
}

/// The first case of each vector is a seed of the fuzzer: what fuzz/entries/pipeline.rs reads as bytes, in pieces of 17.
/// `KIRO_BLESS=1` writes them.
#[test]
fn the_seeds_equal_the_vectors() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/pipeline");
    let mut expected = BTreeMap::new();
    for case in Case::all().into_iter().filter(|case| !case.name.contains('.') && !case.search) {
        let seed = [&[u8::from(case.thinking), 16], &wire(&case.inputs)[..]].concat();
        assert!(expected.insert(seeds.join(format!("vector-{}", case.name)), seed).is_none(), "{} twice", case.name);
    }
    let paths = std::fs::read_dir(&seeds).unwrap().map(|entry| entry.unwrap().path());
    let is_ours = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("vector-");
    let found: BTreeMap<_, _> =
        paths.filter(is_ours).map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect();
    if blessing() {
        found.keys().for_each(|path| std::fs::remove_file(path).unwrap());
        expected.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        return;
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "KIRO_BLESS=1 writes them");
    for (path, bytes) in &expected {
        assert_eq!(String::from_utf8_lossy(&found[path]), String::from_utf8_lossy(bytes), "{path:?}");
    }
}

/// TV1 to the last byte.
#[test]
fn a_whole_stream_has_these_bytes_ts21_m54_tv1() {
    let case = Case::all().into_iter().find(|case| case.name == "TV1").unwrap();
    let expected = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",",
        "\"role\":\"assistant\",\"model\":\"claude-sonnet-4-5\",\"content\":[],\"stop_reason\":null,",
        "\"stop_sequence\":null,\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":0,",
        "\"cache_read_input_tokens\":0,\"output_tokens\":0}}}\n\n",
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,",
        "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,",
        "\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}\n\n",
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",",
        "\"stop_sequence\":null},\"usage\":{\"input_tokens\":61,\"cache_creation_input_tokens\":123,",
        "\"cache_read_input_tokens\":1540,\"output_tokens\":1}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );
    let outs = drive(&mut case.pipeline(), &case.inputs, Chunks::Whole);
    assert_eq!(String::from_utf8(bytes_of(&outs)).unwrap(), expected);
}

/// TS33: a round's blocks go behind the client's messages as they went to the client.
#[test]
fn the_next_round_gets_the_blocks_so_far_ts33() {
    for case in Case::all().into_iter().filter(|case| case.name == "TV132" || case.name == "TS31a") {
        let place = case.inputs.iter().position(|input| matches!(input, Input::Searched(..))).unwrap() + 1;
        for mode in [Mode::Stream, Mode::Fold] {
            let mut pipeline = Pipeline::new(case.settings(mode));
            let outs = drive(&mut pipeline, &case.inputs[..place], Chunks::PerFrame);
            assert_eq!(outs.last(), Some(&Out::NextRound));
            let messages: Value = serde_json::from_slice(&pipeline.next_messages()).unwrap();
            let outs = drive(&mut case.pipeline(), &case.inputs[..place], Chunks::PerFrame);
            let blocks = fold_of_stream(&parse_sse(&bytes_of(&outs)));
            assert_eq!(messages, serde_json::json!({ "role": "assistant", "content": blocks }), "{}", case.name);
        }
    }
}

/// TV114, K71: the first delta leaves before the second frame has arrived.
#[test]
fn the_first_delta_does_not_wait_m56_k71_tv114() {
    let case = Case::all().into_iter().find(|case| case.name == "TV114").unwrap();
    let Input::Frame(first) = &case.inputs[0] else { panic!("a frame comes first") };
    let outs = drive(&mut case.pipeline(), &[Input::Frame(first.clone())], Chunks::PerByte);
    assert_eq!(notation(&outs), "start · +0 text · 0\"é\"");
}

/// `tests/golden/rules.response.txt`: which vectors and which tests hold each rule of the response half.
#[test]
fn every_rule_is_held_by_something() {
    const OURS: [&str; 18] = [
        "src/proto/json/literal",
        "src/proto/json/scan",
        "src/proto/kiro/event",
        "src/proto/kiro/fault",
        "src/proto/messages/error",
        "src/proto/messages/response",
        "src/proto/messages/sse",
        "src/proto/pipeline",
        "src/proto/translate/fault",
        "src/proto/translate/limit",
        "src/proto/translate/stop",
        "src/proto/translate/stream",
        "src/proto/translate/structured",
        "src/proto/translate/thinking",
        "src/proto/translate/usage",
        "tests/golden_response",
        "tests/golden_faults",
        "tests/pipeline_properties",
    ];
    let vector = |case: &Case| case.name.split('.').next().unwrap().to_owned();
    Half {
        name: "response",
        rules: own_rules().collect(),
        vectors: Case::all().into_iter().map(|case| (vector(&case), case.rules)).collect(),
        letters: &["ts", "tu", "tv", "k", "m", "trap"],
        owns: |file| OURS.contains(&file),
    }
    .check();
}

/// The rules that the response half answers for. K47, K49, K50 and the headers of errors are for who drives it.
fn own_rules() -> impl Iterator<Item = String> {
    let ranges = [
        ("TS", 1..=37),
        ("TS", 42..=42),
        ("TU", 10..=10),
        ("TU", 1..=4),
        ("TU", 6..=6),
        ("TU", 8..=8),
        ("K", 28..=46),
        ("K", 48..=48),
    ];
    let messages = [("M", 51..=59), ("M", 62..=64), ("M", 82..=83)];
    ranges
        .into_iter()
        .chain(messages)
        .flat_map(|(letters, numbers)| numbers.map(move |number| format!("{letters}{number}")))
}

/// The non-streaming answer, if there is one.
fn folded(case: &Case) -> Option<Value> {
    let mut pipeline = Pipeline::new(case.settings(Mode::Fold));
    let outs = drive(&mut pipeline, &case.inputs, Chunks::PerFrame);
    assert_eq!(bytes_of(&outs), b"", "{}: a fold writes nothing", case.name);
    let message = pipeline.message();
    assert_eq!(pipeline.message(), None, "it is given once");
    message.map(|message| serde_json::from_slice(&message).unwrap())
}

fn wire(inputs: &[Input]) -> Vec<u8> {
    inputs.iter().flat_map(|input| if let Input::Frame(frame) = input { frame.wire() } else { Vec::new() }).collect()
}

/// Bytes of the longest run of frames without another input between.
fn longest_run(case: &Case) -> usize {
    case.inputs.split(|input| !matches!(input, Input::Frame(_))).map(|run| wire(run).len()).max().unwrap_or(0)
}

/// Every beginning of the inputs: whole inputs, and the bytes of a frame that isn't whole.
fn prefixes(case: &Case) -> Vec<(Vec<Input>, Vec<u8>)> {
    let mut prefixes = Vec::new();
    for (place, input) in case.inputs.iter().enumerate() {
        let before = case.inputs[..place].to_vec();
        prefixes.push((before.clone(), Vec::new()));
        if let Input::Frame(frame) = input
            && *frame != Frame::Corrupt
        {
            let wire = frame.wire();
            prefixes.extend((1..wire.len()).map(|at| (before.clone(), wire[..at].to_vec())));
        }
    }
    prefixes
}
