//! What upstream may make us hold, and for how long.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;

use crate::upstream::{Act, Upstream, answer, event, stream_head, text};
use crate::world::{STREAM, World, base, events, kinds, with};

async fn before(upstream: &Upstream) -> World {
    let settings = upstream.settings();
    // A connection that is open belongs to a call then.
    let none_kept = ("KIRO_UPSTREAM_KEEP_IDLE", "0");
    World::with_tokens(&["access-1"], &[(settings[0].0, settings[0].1.as_str()), none_kept]).await
}

/// The notes with which answers end.
fn notes() -> Vec<u8> {
    let metering = event("meteringEvent", r#"{"unit":"credit","usage":0.5}"#);
    [event("contextUsageEvent", r#"{"contextUsagePercentage":1.5}"#), metering].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folded_message_is_bounded_ts24_ts25() {
    let piece = text(&"x".repeat(60_000));
    let upstream = Upstream::start(move |_| vec![Act::Say(stream_head()), Act::Repeat(piece.clone(), 5_000)]).await;
    let world = before(&upstream).await;
    let reply = world.messages(&with(json!({ "max_tokens": 1_000_000_000 }))).await;
    reply.is_error("too long", 500, "api_error", "The answer is longer than 64 MiB");
    assert_eq!(reply.headers["x-should-retry"], "false");
    assert!(upstream.taken.load(Ordering::SeqCst) < 100 << 20, "upstream was read on");
    let began = Instant::now();
    while upstream.open.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < Duration::from_secs(5), "the connection stays open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(world.accounts()[0]["isHealthy"] == true && world.gateway.health().accounts.healthy == 1);
}

/// Each within its own bound: together they have one, too. Frames that aren't whole are the quickest way there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_answers_together_hold_bounded_bytes_ts25() {
    const FRAME: usize = 15 << 20;
    let mut half = text(&"x".repeat(FRAME));
    half.truncate(FRAME);
    let upstream = Upstream::start(move |_| vec![Act::Say(stream_head()), Act::Say(half.clone()), Act::Stay]).await;
    let world = before(&upstream).await;
    let (message, stream) = (base(), with(STREAM()));
    for (body, said) in
        [(&message, "The answers that are being put together"), (&stream, "The answers that are under way")]
    {
        let mut under_way: FuturesUnordered<_> = (0..40).map(|_| world.messages(body)).collect();
        let reply = under_way.next().await.unwrap();
        reply.is_error("no room", 529, "overloaded_error", said);
        assert_eq!(reply.headers["retry-after"], "5");
        drop(under_way);
        gone(&upstream).await;
    }
    assert!(world.accounts()[0]["isHealthy"] == true && world.gateway.health().accounts.healthy == 1);

    // All of it came back: there is room for as many as fit.
    let before = upstream.taken.load(Ordering::SeqCst);
    let mut under_way: FuturesUnordered<_> = (0..30).map(|_| world.messages(&message)).collect();
    let began = Instant::now();
    while upstream.taken.load(Ordering::SeqCst) - before < 30 * FRAME as u64 {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody takes what upstream says");
        let reply = tokio::time::timeout(Duration::from_millis(50), under_way.next()).await;
        assert!(reply.is_err(), "{:?}", reply.map(|reply| reply.map(|reply| reply.text)));
    }
}

async fn gone(upstream: &Upstream) {
    let began = Instant::now();
    while upstream.open.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "connections stay open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_answer_ends_without_the_end_of_its_body_k41() {
    let upstream =
        Upstream::start(|_| vec![Act::Say(stream_head()), Act::Say(text("all")), Act::Say(notes()), Act::Stay]).await;
    let world = before(&upstream).await;
    for stream in [true, false] {
        let began = Instant::now();
        let reply = world.messages(&with(json!({ "stream": stream }))).await;
        let took = began.elapsed();
        assert!((Duration::from_secs(5)..Duration::from_secs(9)).contains(&took), "{took:?}");
        assert!(reply.status == 200 && reply.text.contains("end_turn"), "{}", reply.text);
    }
    assert!(world.accounts()[0]["isHealthy"] == true);
}

/// Notes in the middle, a tool that is open, notes of one kind only: the answer may go on, and is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_may_go_on_is_not_cut_k41() {
    let tool = |stop: bool| {
        event("toolUseEvent", &json!({ "toolUseId": "t", "name": "f", "input": "{}", "stop": stop }).to_string())
    };
    let metering = event("meteringEvent", r#"{"usage":0.5}"#);
    for middle in [[notes(), text("more")].concat(), [tool(false), notes()].concat(), metering] {
        let upstream = Upstream::start(move |_| {
            let wait = Act::Wait(Duration::from_secs(7));
            vec![Act::Say(stream_head()), Act::Say(text("a")), Act::Say(middle.clone()), wait, Act::Say(text("last"))]
        })
        .await;
        let world = before(&upstream).await;
        let reply = world.messages(&with(STREAM())).await;
        assert!(reply.text.contains("last") && reply.text.contains("message_stop"), "{}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_body_that_nobody_reads_is_left_out_k42() {
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xabV\xcaM-.NLOU\xb2RP\xf2".to_vec();
    let bodies =
        [gzip, vec![0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3], "plain \u{1} text".into(), "[".repeat(60_000).into_bytes()];
    for body in bodies {
        let upstream = Upstream::start(move |_| answer(400, &[("content-encoding", "gzip")], &body)).await;
        let reply = before(&upstream).await.messages(&base()).await;
        reply.is_error("unreadable", 400, "invalid_request_error", "Kiro refused the request.");
    }
}

/// What came before a reset, and in the read that brought the end, is delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_bytes_are_delivered_k39() {
    for (end, kind) in [(None, "message_stop"), (Some(Act::Reset), "error")] {
        let upstream = Upstream::start(move |_| {
            let all = [stream_head(), text("first"), text("last")].concat();
            let wait = end.is_some().then_some(Act::Wait(Duration::from_millis(200)));
            [Some(Act::Say(all)), wait, end.clone()].into_iter().flatten().collect()
        })
        .await;
        let reply = before(&upstream).await.messages(&with(STREAM())).await;
        let events = events(&reply.text);
        assert_eq!(kinds(&events).last(), Some(&kind), "{}", reply.text);
        assert!(reply.text.contains("last"));
    }
}

/// The ids of finished tools are remembered: a long one breaks the payload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_has_an_id_of_bounded_length_ts25() {
    let tool = json!({ "toolUseId": "t".repeat(1_025), "name": "f", "input": "{}", "stop": true }).to_string();
    let upstream =
        Upstream::start(move |_| vec![Act::Say(stream_head()), Act::Say(event("toolUseEvent", &tool))]).await;
    let reply = before(&upstream).await.messages(&base()).await;
    reply.is_error("long id", 500, "api_error", "Kiro sent an answer that can't be read.");
}
