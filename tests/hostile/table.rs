//! One row for each way in which an upstream, or what stands in its place, breaks HTTP or the event stream. Whatever it does:
//! the client hears a true sentence or gets a whole answer, in both modes; a stream is never ended as complete; the
//! connection is not kept; and the next request is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::upstream::{Act, Upstream, answer, event, frame, stream_head, text};
use crate::world::{World, base, events, kinds, with};

/// What the client gets.
#[derive(Clone, Copy, Debug)]
enum Gets {
    /// A whole answer with this text.
    Whole(&'static str),
    /// Nothing was handed on before: an error with this status and type, whose sentence begins so.
    Error(u16, &'static str, &'static str),
    /// The stream breaks off with an error of this type, whose sentence begins so; a message in one piece is an error with
    /// this status.
    Breaks(u16, &'static str, &'static str),
    /// This text, and then a tool that isn't whole: `max_tokens`, and no tool in a message in one piece (TS42).
    Cut(&'static str),
}
use Gets::{Breaks, Cut, Error, Whole};

struct Row {
    name: &'static str,
    acts: Vec<Act>,
    gets: Gets,
}

fn row(name: &'static str, acts: impl Into<Vec<Act>>, gets: Gets) -> Row {
    Row { name, acts: acts.into(), gets }
}

fn say(bytes: impl Into<Vec<u8>>) -> Act {
    Act::Say(bytes.into())
}

/// Events behind the head of a stream.
fn stream_of(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<Act> {
    let mut bytes = stream_head();
    parts.into_iter().for_each(|part| bytes.extend(part));
    vec![say(bytes)]
}

/// An event stream with these header lines in place of the usual ones.
fn head_with(lines: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\n{lines}\r\n").into_bytes()
}

fn event_bytes(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = |name, value| (name, kiro_messages::proto::eventstream::HeaderValue::Text(value));
    let headers = [header(":message-type", "event"), header(":event-type", "assistantResponseEvent")];
    kiro_messages::proto::eventstream::encode(&headers, payload, &mut bytes).unwrap();
    bytes
}

fn changed(mut bytes: Vec<u8>, at: usize, by: u8) -> Vec<u8> {
    bytes[at] ^= by;
    bytes
}

const LOST: &str = "The connection to Kiro failed";
const UNREADABLE: &str = "Kiro sent an answer that can't be read.";

/// What breaks HTTP.
#[rustfmt::skip]
fn of_http() -> Vec<Row> {
    let good = text("good");
    let long = good.len();
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let http = |status: &'static str| say(format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n"));
    vec![
        row("closes without a byte", [], Error(500, "api_error", LOST)),
        row("closes in the middle of the head", [say("HTTP/1.1 200 OK\r\ncontent-ty")], Error(500, "api_error", LOST)),
        row("resets", [Act::Reset], Error(500, "api_error", LOST)),
        row("speaks another protocol", [say("SSH-2.0-OpenSSH_9.6\r\n")], Error(500, "api_error", LOST)),
        row("speaks HTTP/0.9", [say("<html>hello</html>")], Error(500, "api_error", LOST)),
        row("a status that is no number", [http("2x0 OK")], Error(500, "api_error", LOST)),
        row("a head without an end", [say("HTTP/1.1 200 OK\r\n"), Act::Repeat(vec![b'a'; 65_536], 64)], Error(500, "api_error", LOST)),
        row("10,000 header lines", [say("HTTP/1.1 200 OK\r\n"), Act::Repeat(b"a: b\r\n".to_vec(), 10_000)], Error(500, "api_error", LOST)),
        row("a page in place of events", answer(200, &[("content-type", "text/html")], "<html>Log in to the network</html>"), Error(500, "api_error", UNREADABLE)),
        row("JSON in place of events", answer(200, &[("content-type", "application/json")], r#"{"message":"hello"}"#), Error(500, "api_error", UNREADABLE)),
        row("a status without a body", [http("204 No Content")], Error(500, "api_error", UNREADABLE)),
        row("leads elsewhere", answer(302, &[("location", "http://127.0.0.1:1/")], ""), Error(500, "api_error", "The address of Kiro is wrong or no longer served.")),
        row("changes the protocol", [http("101 Switching Protocols")], Error(500, "api_error", UNREADABLE)),
        row("a stream without an event", stream_of([]), Error(500, "api_error", LOST)),
        row("two informational heads first", [say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"), say(stream_head()), say(text("good"))], Whole("good")),
        row("chunks of one byte", [say(head_with("transfer-encoding: chunked\r\n")), say(good.iter().flat_map(|byte| chunk(&[*byte])).collect::<Vec<_>>()), say("0\r\n\r\n")], Whole("good")),
        row("trailers", [say(head_with("transfer-encoding: chunked\r\n")), say(chunk(&good)), say("0\r\nx-end: yes\r\n\r\n")], Whole("good")),
        row("chunks whose size is no number", [say(head_with("transfer-encoding: chunked\r\n")), say(chunk(&good)), say("zz\r\n")], Breaks(500, "api_error", LOST)),
        row("no last chunk", [say(head_with("transfer-encoding: chunked\r\n")), say(chunk(&good))], Breaks(500, "api_error", LOST)),
        row("less than its content-length", [say(head_with(&format!("content-length: {}\r\n", long + 9))), say(good.clone())], Breaks(500, "api_error", LOST)),
        row("more than its content-length", [say(head_with(&format!("content-length: {long}\r\n"))), say(good.clone()), say("HTTP/1.1 200 OK\r\n\r\nfalse")], Whole("good")),
        row("both lengths", [say(head_with(&format!("content-length: {long}\r\ntransfer-encoding: chunked\r\n"))), say(chunk(&good)), say("0\r\n\r\n")], Whole("good")),
        row("an error without an end", [say("HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\n\r\n"), Act::Repeat(vec![b' '; 65_536], 1_600)], Error(500, "api_error", "Kiro failed while it served the request.")),
        row("an error that stops in the middle", [say("HTTP/1.1 400 Oh\r\ncontent-length: 900\r\n\r\n{\"mess"), Act::Wait(Duration::from_millis(300))], Error(400, "invalid_request_error", "Kiro refused the request.")),
    ]
}

/// What breaks the event stream.
#[rustfmt::skip]
fn of_events() -> Vec<Row> {
    let good = text("good");
    let long = good.len();
    let metering = || event("meteringEvent", r#"{"unit":"credit","usage":0.5}"#);
    let tool = |id: &str, input: &str, stop: bool| {
        event("toolUseEvent", &json!({ "toolUseId": id, "name": "f", "input": input, "stop": stop }).to_string())
    };
    vec![
        row("a payload with another checksum", stream_of([good.clone(), changed(text("bad"), long - 10, 1)]), Breaks(500, "api_error", UNREADABLE)),
        row("a prelude with another checksum", stream_of([good.clone(), changed(text("bad"), 9, 1)]), Breaks(500, "api_error", UNREADABLE)),
        row("a frame of 4 GiB", stream_of([good.clone(), vec![0xff; 64]]), Breaks(500, "api_error", UNREADABLE)),
        row("a frame of no bytes", stream_of([good.clone(), vec![0; 64]]), Breaks(500, "api_error", UNREADABLE)),
        row("half a frame", stream_of([good.clone(), text("bad")[..30].to_vec()]), Breaks(500, "api_error", UNREADABLE)),
        row("a payload that is no JSON", stream_of([good.clone(), event("assistantResponseEvent", "{")]), Breaks(500, "api_error", UNREADABLE)),
        row("a payload in another encoding", stream_of([good.clone(), event_bytes(b"{\"content\":\"\xff\xfe\"}")]), Whole("good\u{fffd}\u{fffd}")),
        row("a payload that is deep", stream_of([good.clone(), event("assistantResponseEvent", &"[".repeat(100_000))]), Breaks(500, "api_error", UNREADABLE)),
        row("a text that is a number", stream_of([good.clone(), event("assistantResponseEvent", r#"{"content":7}"#)]), Breaks(500, "api_error", UNREADABLE)),
        row("half a character", stream_of([good.clone(), event("assistantResponseEvent", r#"{"content":"\ud83d"}"#)]), Whole("good\u{fffd}")),
        row("events that nobody knows", stream_of([event("newEvent", r#"{"content":"x"}"#), good.clone(), event("otherEvent", "no JSON")]), Whole("good")),
        row("a kind of message that nobody knows", stream_of([good.clone(), frame(&[(":message-type", "news")], "x")]), Breaks(500, "api_error", UNREADABLE)),
        row("no text at all", stream_of([event("newEvent", "{}"), metering()]), Whole("")),
        row("an error at once", stream_of([frame(&[(":message-type", "exception"), (":exception-type", "InternalServerException")], r#"{"message":"x"}"#)]), Error(500, "api_error", "Kiro failed while it served the request.")),
        row("an error in the middle", stream_of([good.clone(), frame(&[(":message-type", "error"), (":error-code", "500")], "")]), Breaks(500, "api_error", "Kiro failed while it served the request.")),
        row("a tool that is never whole", stream_of([good.clone(), tool("t1", "{\"a\":", false)]), Cut("good")),
        row("a tool whose input is no JSON", stream_of([good.clone(), tool("t1", "{\"a\":", true)]), Cut("good")),
        row("a tool without a name", stream_of([good.clone(), event("toolUseEvent", r#"{"toolUseId":"t","input":"{}","stop":true}"#)]), Breaks(500, "api_error", UNREADABLE)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_the_true_end_of_every_upstream_fault_k28_k30_k39_k42_ts22() {
    let told: Vec<_> =
        stream::iter(of_http().into_iter().chain(of_events())).map(tried).buffer_unordered(6).collect().await;
    let wrong: Vec<_> = told.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Runs a row in both modes; what went wrong.
async fn tried(Row { name, acts, gets }: Row) -> Vec<String> {
    let bad = Arc::new(AtomicBool::new(true));
    let is_bad = bad.clone();
    let upstream =
        Upstream::start(
            move |_| if is_bad.load(Ordering::SeqCst) { acts.clone() } else { stream_of([text("served")]) },
        )
        .await;
    let address = upstream.settings();
    // A connection that is open belongs to a call, where none is kept.
    let settings =
        [(address[0].0, address[0].1.as_str()), ("KIRO_FAILOVER_TIME", "200ms"), ("KIRO_UPSTREAM_KEEP_IDLE", "0")];
    let world = World::with_tokens(&["access-1"], &settings).await;
    let mut wrong = Vec::new();
    let mut check = |is: bool, what: String| {
        if !is {
            wrong.push(format!("{name}: {what}"));
        }
    };
    for streams in [true, false] {
        bad.store(true, Ordering::SeqCst);
        let began = Instant::now();
        let reply = world.messages(&with(json!({ "stream": streams }))).await;
        let took = began.elapsed();
        check(took < Duration::from_secs(15), format!("took {took:?}"));
        let all = if reply.text.starts_with("event:") { events(&reply.text) } else { vec![] };
        let got: String = all.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
        let said = format!("{} {got:?} {}", reply.status, reply.text.trim_end().lines().last().unwrap_or_default());
        let error = |body: &Value, kind: &str, begins: &str| {
            let message = body["error"]["message"].as_str().unwrap_or_default();
            body["error"]["type"] == kind && !message.is_empty() && message.starts_with(begins)
        };
        check(
            match gets {
                Whole(text) if streams => got == text && kinds(&all).last() == Some(&"message_stop"),
                Whole(text) => {
                    let message = reply.json();
                    message["content"][0]["text"].as_str().unwrap_or_default() == text
                        && message["stop_reason"] == "end_turn"
                }
                Cut(text) if streams => {
                    let cut = all.iter().any(|event| event["delta"]["stop_reason"] == "max_tokens");
                    got == text && cut && kinds(&all).last() == Some(&"message_stop")
                }
                Cut(text) => {
                    let message = reply.json();
                    let content = json!([{ "type": "text", "text": text }]);
                    message["content"] == content && message["stop_reason"] == "max_tokens"
                }
                Error(status, kind, begins) => reply.status == status && error(&reply.json(), kind, begins),
                Breaks(_, kind, begins) if streams => {
                    got == "good" && all.last().is_some_and(|last| error(last, kind, begins))
                }
                Breaks(status, kind, begins) => reply.status == status && error(&reply.json(), kind, begins),
            },
            format!("wanted {gets:?}, got {said}"),
        );
        bad.store(false, Ordering::SeqCst);
        let next = world.messages(&base()).await;
        check(
            next.status == 200 && next.text.contains("served"),
            format!("the next request: {} {}", next.status, next.text),
        );
    }
    let began = Instant::now();
    while upstream.open.load(Ordering::SeqCst) > 0 && began.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    check(upstream.open.load(Ordering::SeqCst) == 0, "a connection stays open".to_owned());
    wrong
}
