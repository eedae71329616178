//! The response half over any events and any bytes (TS26): the entry of the fuzz target `pipeline` and of
//! `tests/pipeline_properties.rs`.

#[path = "../../tests/response/mod.rs"]
pub mod response;

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use kiro_messages::proto::messages::error::{ApiError, ErrorType};
use kiro_messages::proto::messages::search::{Hit, SearchCode};
use kiro_messages::proto::pipeline::{AnswerCheck, Extras, Mode, Pipeline, Settings, Step, StopSequences, UsageSplit};
use response::{
    Chunks, Ending, Frame, Input, Out, bytes_of, check_grammar, drive, fold_of_stream, in_pieces, joined, parse_sse,
};
use serde_json::Value;

/// What the client asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    pub thinking: bool,
    pub search: bool,
    /// The text of thoughts isn't wanted (TS28).
    pub omitted: bool,
    /// Some stop sequences (M82).
    pub stops: bool,
    /// A `max_tokens` that the gateway keeps (M83).
    pub limited: bool,
    /// JSON is asked for (TS37).
    pub structured: bool,
}

/// Any bytes. The first two say how to read the others: as what upstream sends, or as the recipe of a list of inputs.
pub fn run(data: &[u8]) {
    let Some((&[mode, size], rest)) = data.split_first_chunk::<2>() else { return };
    let asked = Asked {
        thinking: mode & 1 == 1,
        search: mode & 128 != 0,
        omitted: size & 16 != 0,
        structured: size & 32 != 0,
        limited: size & 64 != 0,
        stops: size & 128 != 0,
    };
    if mode & 2 == 0 {
        any_bytes(rest, asked, usize::from(size) + 1);
    } else {
        // Short lists find more.
        let rest = &rest[..rest.len().min(MAX_RECIPE)];
        let inputs = Recipe(rest).inputs();
        let plain = plain_run(&inputs, asked);
        // One comparison a run: the fuzzer's time goes into other inputs.
        let promise = PROMISES[usize::from(mode >> 2) % PROMISES.len()];
        promise(&inputs, asked, usize::from(size) + 1, &plain);
    }
}

/// Bytes that need not be frames at all.
pub fn any_bytes(wire: &[u8], asked: Asked, size: usize) {
    let feed = |size: usize| {
        let mut pipeline = machine(asked);
        let mut out = BytesMut::new();
        for piece in wire.chunks(size) {
            if pipeline.push(Bytes::copy_from_slice(piece), &mut out) == Step::NextRound {
                break;
            }
        }
        pipeline.finish(&mut out);
        pipeline.give_up(&ApiError::new(ErrorType::Overloaded, "no account"), &mut out);
        assert!(pipeline.is_ended());
        out
    };
    let whole = feed(wire.len().max(1));
    check_grammar(&parse_sse(&whole));
    assert_eq!(feed(size), whole, "in pieces of {size}");
}

/// A list of inputs, with every promise.
pub fn any_inputs(inputs: &[Input], asked: Asked, size: usize) {
    let plain = plain_run(inputs, asked);
    PROMISES.iter().for_each(|promise| promise(inputs, asked, size, &plain));
}

/// What the inputs give in one chunk.
pub struct Plain {
    outs: Vec<Out>,
    events: Vec<(String, Value)>,
    ending: Ending,
}

/// A comparison with the plain run; the number is a size of pieces or a place.
type Promise = fn(&[Input], Asked, usize, &Plain);

const PROMISES: [Promise; 5] =
    [same_at_every_split, raw_copy_is_the_slow_path, fold_is_the_same, cut_is_no_end, same_in_small_pieces];

/// The grammar, and an end that is told as what it is.
pub fn plain_run(inputs: &[Input], asked: Asked) -> Plain {
    let mut pipeline = machine(asked);
    let outs = drive(&mut pipeline, inputs, Chunks::Whole);
    let events = parse_sse(&bytes_of(&outs));
    let ending = check_grammar(&events);

    let told = outs.iter().filter(|out| matches!(out, Out::Done | Out::Failed(_))).count();
    assert!(told <= 1, "{outs:?}");
    assert_eq!(ending == Ending::Finished, outs.contains(&Out::Done), "{outs:?}");
    assert_eq!(pipeline.report().stop_reason.is_some(), ending == Ending::Finished);

    // A good end needs an end of the body, the output limit, or an exception after a complete answer.
    let may_finish = inputs.iter().any(|input| match input {
        Input::End => true,
        Input::Frame(Frame::Exception { name, .. }) => name == LIMIT,
        _ => false,
    });
    let may_end_early = asked.stops || asked.limited;
    assert!(ending != Ending::Finished || may_finish || may_end_early || pipeline.report().ghost.is_some(), "{outs:?}");
    Plain { outs, events, ending }
}

/// K28, and with header sections that are all unlike.
fn same_at_every_split(inputs: &[Input], asked: Asked, size: usize, plain: &Plain) {
    for chunks in [Chunks::PerFrame, Chunks::PerByte, Chunks::Split(size), Chunks::Unlike] {
        assert_eq!(drive(&mut machine(asked), inputs, chunks), plain.outs, "{chunks:?}");
    }
}

/// TS23.
fn raw_copy_is_the_slow_path(inputs: &[Input], asked: Asked, _: usize, plain: &Plain) {
    let slow = drive(&mut machine(asked).without_raw_copy(), inputs, Chunks::Whole);
    assert_eq!(parse_sse(&bytes_of(&slow)), plain.events, "raw copy and slow path");
}

/// TS2, TS11.
fn same_in_small_pieces(inputs: &[Input], asked: Asked, _: usize, plain: &Plain) {
    for size in [1, 2] {
        let cut: Vec<Input> = inputs.iter().flat_map(|input| in_pieces(input, size)).collect();
        // More events cost more of the queue's bound.
        if cut.len() < 2_000 {
            let outs = drive(&mut machine(asked), &cut, Chunks::PerFrame);
            assert_eq!(joined(&outs), joined(&plain.outs), "{size} at a time");
        }
    }
}

/// TS24.
fn fold_is_the_same(inputs: &[Input], asked: Asked, _: usize, plain: &Plain) {
    let Plain { events, ending, .. } = plain;
    let mut pipeline = Pipeline::new(settings(asked, Mode::Fold));
    let outs = drive(&mut pipeline, inputs, Chunks::Whole);
    assert_eq!(bytes_of(&outs), b"");
    let message = pipeline.message();
    assert_eq!(message.is_some(), *ending == Ending::Finished);
    let Some(message) = message else { return };
    // Too deep for the reader of this test, not for us.
    let Ok(message) = serde_json::from_slice::<Value>(&message) else { return };
    assert_eq!(message["content"], Value::Array(fold_of_stream(events)));
    let delta = &events.iter().find(|(name, _)| name == "message_delta").expect("it finished").1;
    assert_eq!(message["usage"], delta["usage"]);
    assert_eq!(message["stop_reason"], delta["delta"]["stop_reason"]);
}

/// The bytes up to somewhere, then a cut: a failure unless the answer had ended before.
fn cut_is_no_end(inputs: &[Input], asked: Asked, at: usize, _: &Plain) {
    let first_run: Vec<Input> = inputs.iter().take_while(|input| matches!(input, Input::Frame(_))).cloned().collect();
    let wire: Vec<u8> = first_run
        .iter()
        .flat_map(|input| if let Input::Frame(frame) = input { frame.wire() } else { vec![] })
        .collect();
    for at in [at.min(wire.len()), wire.len() / 2, wire.len()] {
        let mut pipeline = machine(asked);
        let mut out = BytesMut::new();
        let first = pipeline.push(Bytes::copy_from_slice(&wire[..at]), &mut out);
        let (before, committed) = (check_grammar(&parse_sse(&out)), pipeline.is_committed());
        let step = pipeline.abort(response::cut(), &mut out);
        let after = check_grammar(&parse_sse(&out));
        match first {
            Step::Continue if committed => assert!(matches!(step, Step::Failed(_)) && after == Ending::Failed),
            Step::Continue => assert!(matches!(step, Step::Fault(_)) && after == before),
            Step::Done => assert!(after == Ending::Finished && step == Step::Done),
            Step::Fault(_) | Step::Failed(_) | Step::Searches | Step::Unfit => {
                assert!(after == before && step == Step::Continue);
            }
            Step::NextRound => assert!(asked.structured, "no outcome was given"),
            Step::TooLong => panic!("a stream has no bound"),
        }
    }
}

/// A pipeline that streams.
pub fn machine(asked: Asked) -> Pipeline {
    Pipeline::new(settings(asked, Mode::Stream))
}

fn settings(asked: Asked, mode: Mode) -> Settings {
    Settings {
        message_id: "msg_1".into(),
        request_id: "req_1".into(),
        model: "claude-sonnet-4-5".into(),
        thinking: asked.thinking,
        drop_thinking_text: asked.omitted,
        tool_names: [("f_1", "f.1")].into_iter().collect(),
        window: 172_500,
        usage_window: 172_500,
        usage_split: UsageSplit::Ratio,
        input_estimate: 10,
        mode,
        extras: Extras {
            search: asked.search,
            stop_sequences: asked.stops.then(|| StopSequences::new(STOPS.map(str::to_owned).to_vec())).flatten(),
            max_tokens: asked.limited.then_some(20),
            structured: asked.structured.then(|| CHECK.clone()),
            ..Extras::default()
        },
    }
}

/// Some that begin in the middle of escapes, tags and each other.
const STOPS: [&str; 5] = ["world", "\n\n", "<thinking", "\"x\"", "é😀"];
static CHECK: LazyLock<AnswerCheck> = LazyLock::new(|| {
    AnswerCheck::new(|value| match value.is_object() {
        true => Ok(()),
        false => Err("no object".to_owned()),
    })
});

/// Bytes of a recipe.
const MAX_RECIPE: usize = 400;
const LIMIT: &str = "ContentLengthExceededException";

/// Pieces of JSON string literals, dense in what the scanner and the copy look at.
const TEXTS: [&str; 32] = [
    "a",
    "Hello, world! ",
    "é",
    "😀",
    "\\n",
    "\\n\\n",
    " ",
    "\\t",
    "<",
    "<thinking>",
    "</thinking>",
    "<think",
    "ing>",
    "</think",
    "`",
    "\\\"",
    "'",
    "\\\\",
    "\\/",
    "\\u003c",
    "\\ud83d",
    "\\ude00",
    "\\ud83d\\ude00",
    "\\u0000",
    "\u{2028}",
    "{\\\"x\\\":1}",
    "thinking>",
    ">",
    "\\u00e9",
    "\\r",
    "                                 ",
    "[Called f]",
];
/// Pieces of tool input, as the content of JSON string literals.
const PIECES: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    "\\\"",
    "\\\\",
    "a",
    ":",
    "1",
    " ",
    "\\n",
    "{\\\"a\\\":1}",
    "{}",
    "\\ud83d",
    "\\ude00",
    "\\u007b",
];
const WHOLE: [&str; 4] = ["{\"x\":[1,\"é\"]}", "[ 1 , 2 ]", "{}", "{ \"s\" : \"\\ud83d\" }"];
const EXCEPTIONS: [&str; 6] =
    ["ThrottlingException", "error", "InternalServerException", LIMIT, "AccessDeniedException", "ValidationException"];
const ACTED: [&str; 8] = [
    "assistantResponseEvent",
    "reasoningContentEvent",
    "toolUseEvent",
    "contextUsageEvent",
    "metadataEvent",
    "meteringEvent",
    "invalidStateEvent",
    "somethingNewEvent",
];

/// Reads inputs out of arbitrary bytes, until they run out.
pub struct Recipe<'a>(pub &'a [u8]);

impl Recipe<'_> {
    /// All inputs.
    pub fn inputs(mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        while let Some(kind) = self.byte() {
            match kind % 25 {
                24 => inputs.extend(self.round()),
                kind => inputs.push(self.input(kind)),
            }
        }
        inputs
    }

    /// A round with one search, which single inputs seldom give.
    fn round(&mut self) -> [Input; 3] {
        let search = r#"{"toolUseId":"s","name":"web_search","input":"{\"query\":\"x\"}","stop":true}"#;
        [Input::Frame(Frame::event("toolUseEvent", search)), Input::End, self.searched()]
    }

    fn searched(&mut self) -> Input {
        let outcome = match self.number() & 1 {
            0 => Ok(vec![Hit::default()]),
            _ => Err(SearchCode::Unavailable),
        };
        Input::Searched(vec![outcome], !self.number().is_multiple_of(4))
    }

    fn input(&mut self, kind: u8) -> Input {
        Input::Frame(match kind {
            0..=7 => {
                let text = self.pick_some(&TEXTS);
                Frame::event("assistantResponseEvent", format!("{{\"content\":\"{text}\"}}"))
            }
            8..=13 => self.tool(),
            14 | 15 => self.reasoning(),
            16 => Frame::event("contextUsageEvent", format!("{{\"contextUsagePercentage\":{}}}", self.number())),
            17 => match self.number() % 4 {
                0 => Frame::event("meteringEvent", r#"{"usage":0.5,"unit":"credit"}"#),
                1 => Frame::event("metadataEvent", r#"{"stopReason":"max_tokens"}"#),
                2 => Frame::event("metadataEvent", r#"{"tokenUsage":{"uncachedInputTokens":5,"outputTokens":0}}"#),
                _ => Frame::event("initial-response", "{}"),
            },
            18 => {
                let name = *self.pick(&EXCEPTIONS);
                Frame::Exception { name: name.into(), payload: br#"{"message":"m"}"#.to_vec() }
            }
            19 => {
                let name = *self.pick(&ACTED);
                let length = usize::from(self.number());
                Frame::event(name, self.take(length))
            }
            20 => {
                let length = usize::from(self.number());
                Frame::event("assistantResponseEvent", [b"{\"content\":\"", self.take(length), b"\"}"].concat())
            }
            21 => match self.number() % 4 {
                0 => Frame::Corrupt,
                1 => Frame::Other { message_type: "surprise".into() },
                2 => Frame::Error { code: "ServiceUnavailableException".into(), message: "m".into() },
                _ => Frame::event("invalidStateEvent", r#"{"reason":"r","message":"m"}"#),
            },
            22 => {
                let inputs = [Input::EarlyStart, Input::Ping, Input::Restart, Input::End];
                let input = inputs.into_iter().nth(usize::from(self.number() % 5));
                return input.unwrap_or_else(|| self.searched());
            }
            _ => {
                return [Input::Cut, Input::End, Input::GiveUp, Input::Shutdown][usize::from(self.number() % 4)]
                    .clone();
            }
        })
    }

    fn tool(&mut self) -> Frame {
        let id = *self.pick(&["a", "b", "c", "\\ud83d"]);
        let name = *self.pick(&["f", "g", "f_1", "web_search"]);
        let input = match self.number() % 8 {
            0 => String::new(),
            1 => ",\"input\":null".into(),
            2 => format!(",\"input\":{}", self.pick(&WHOLE)),
            _ => format!(",\"input\":\"{}\"", self.pick_some(&PIECES)),
        };
        let stop = *self.pick(&["", "", ",\"stop\":true", ",\"stop\":false"]);
        Frame::event("toolUseEvent", format!("{{\"toolUseId\":\"{id}\",\"name\":\"{name}\"{input}{stop}}}"))
    }

    fn reasoning(&mut self) -> Frame {
        let mut members = Vec::new();
        let which = self.number();
        if which & 1 == 1 {
            members.push(format!("\"text\":\"{}\"", self.pick_some(&TEXTS)));
        }
        if which & 2 == 2 {
            members.push("\"signature\":\"s+/=\"".into());
        }
        if which & 12 == 12 {
            members.push("\"redactedContent\":\"AAEC\"".into());
        }
        Frame::event("reasoningContentEvent", format!("{{{}}}", members.join(",")))
    }

    fn pick_some(&mut self, choices: &[&str]) -> String {
        let count = self.number() % 5;
        (0..count).map(|_| *self.pick(choices)).collect()
    }

    fn pick<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[usize::from(self.number()) % choices.len()]
    }

    /// 0 when the bytes have run out.
    fn number(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
