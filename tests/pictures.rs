//! Pictures of every kind, sent through the real server to the simulated Kiro: their format, and those that are too large
//! (TR67).
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use world::{Reply, World, content, with};

impl World {
    /// What upstream answers from now on.
    fn answers(&self, scenario: &Value) {
        self.simulated
            .control()
            .script(json!({ "token": "access-1", "scenarios": [scenario], "forever": true }))
            .unwrap();
    }

    /// The images of the last conversation that upstream saw, each as (format, width, height), of its current message;
    /// and the texts of its history.
    fn seen(&self) -> (Vec<(String, u32, u32)>, Vec<String>) {
        let stats = self.simulated.control().stats_with_bodies();
        let calls = stats["last"].as_array().unwrap().iter();
        let state = calls.rev().find_map(|call| {
            let body: Value = serde_json::from_str(call["body"].as_str()?).ok()?;
            body.get("conversationState").cloned()
        });
        let state = state.unwrap();
        let images = state["currentMessage"]["userInputMessage"]["images"].as_array().into_iter().flatten();
        let images = images.map(|image| {
            let bytes = STANDARD.decode(image["source"]["bytes"].as_str().unwrap()).unwrap();
            let (width, height) =
                image::load_from_memory(&bytes).map_or((0, 0), |image| (image.width(), image.height()));
            (image["format"].as_str().unwrap().to_owned(), width, height)
        });
        let history = state["history"].as_array().into_iter().flatten();
        let texts = history.filter_map(|message| Some(message["userInputMessage"]["content"].as_str()?.to_owned()));
        (images.collect(), texts.collect())
    }
}

fn ignored(reply: &Reply) -> &str {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.headers.get("x-kiro-ignored").map_or("", |value| value.to_str().unwrap())
}

fn block(media_type: &str, data: &str) -> Value {
    json!({ "type": "image", "source": { "type": "base64", "media_type": media_type, "data": data } })
}

/// Nothing of it can be compressed.
fn noise(width: u32, height: u32) -> Value {
    let mut rng = fastrand::Rng::with_seed(u64::from(width));
    let picture = RgbImage::from_fn(width, height, |_, _| Rgb([rng.u8(..), rng.u8(..), rng.u8(..)]));
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    block("image/png", &STANDARD.encode(bytes.into_inner()))
}

/// A refusal of images with more characters than this.
fn refusing(characters: usize, reason: &str) -> Value {
    json!({
        "when": { "image_over": characters },
        "http": { "status": 400, "type": "ValidationException", "reason": reason, "message": "The image is too large." },
    })
}

/// The image in the first of two turns.
fn earlier(image: Value) -> Value {
    with(json!({ "messages": [
        { "role": "user", "content": [image, { "type": "text", "text": "look" }] },
        { "role": "assistant", "content": "I see." }, { "role": "user", "content": "And?" },
    ] }))
}

#[tokio::test]
async fn an_image_goes_out_as_what_it_is_d8_tr67_m40_a21_a22() {
    let world = World::new(&[]).await;
    let path = format!("{}/tests/reported/d08-image-of-another-type.json", env!("CARGO_MANIFEST_DIR"));
    let reported: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let reply = world.messages(&reported).await;
    assert_eq!(ignored(&reply), "messages.0.content.0.source.media_type");
    assert_eq!(world.seen().0, [("png".to_owned(), 1, 1)]);
    let png = reported["messages"][0]["content"][0]["source"]["data"].as_str().unwrap();
    for (media_type, named) in [("image/bmp", true), ("image/svg+xml", true), ("IMAGE/PNG", true), ("image/png", false)]
    {
        let reply = world.messages(&content(json!([block(media_type, png)]))).await;
        assert_eq!(!ignored(&reply).is_empty(), named, "{media_type}");
    }
    let reply = world.messages(&content(json!([block("image/jpg", "/9j/4AAQ")]))).await;
    assert_eq!((ignored(&reply), &*world.seen().0[0].0), ("", "jpeg"));
}

#[tokio::test]
async fn bytes_that_are_no_image_are_refused_now_and_left_out_of_history_d8_tr67_m40() {
    let world = World::new(&[]).await;
    let other = || block("image/png", "AAAAAAAA");
    let sentence = "messages.0.content.0.source.data: must be a JPEG, PNG, GIF or WebP image";
    let refused = world.messages(&content(json!([other()]))).await;
    refused.is_error("newest", 400, "invalid_request_error", sentence);
    let reply = world.messages(&earlier(other())).await;
    assert_eq!(ignored(&reply), "messages.0.content.0.source.data");
    assert_eq!(world.seen().1[0], "look\n[1 earlier image omitted]");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_are_refused_go_out_smaller_and_stay_so_d8_tr67() {
    for (reason, image, limit, becomes) in [
        ("IMAGE_SIZE_EXCEEDED", noise(400, 300), 400_000, (400, 300)),
        ("IMAGE_DIMENSION_EXCEEDED", noise(1_700, 8), 40_000, (1_568, 7)),
        ("CONTENT_LENGTH_EXCEEDS_THRESHOLD", noise(400, 300), 400_000, (400, 300)),
    ] {
        let world = World::new(&[]).await;
        world.answers(&refusing(limit, reason));
        let body = content(json!([{ "type": "text", "text": "look" }, image]));
        for calls in [2, 3] {
            let reply = world.messages(&body).await;
            assert_eq!(ignored(&reply), "messages.0.content.1.source.data:fitted", "{reason}");
            assert_eq!(world.seen().0, [("jpeg".to_owned(), becomes.0, becomes.1)], "{reason}");
            assert_eq!(world.upstream_calls(), calls, "{reason}");
        }
        for account in world.gateway.status().accounts {
            assert_eq!(account.state, "healthy");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_refusal_of_a_large_body_makes_its_pictures_smaller_tr67_ts41() {
    let world = World::new(&[]).await;
    world.simulated.control().world("body-limit").unwrap();
    let reply = world.messages(&content(json!([noise(600, 480)]))).await;
    assert_eq!(ignored(&reply), "messages.0.content.0.source.data:fitted");
    assert_eq!(world.upstream_calls(), 2);
    // Without pictures it is a prompt that is too long, as ever, and asked once.
    let long = world.messages(&content(json!(" ".repeat(1_100_000) + "x"))).await;
    long.is_error("long", 400, "invalid_request_error", "prompt is too long: ");
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_stays_too_large_is_named_now_and_left_out_of_history_tr67() {
    let world = World::new(&[]).await;
    world.answers(&refusing(1_000, "IMAGE_SIZE_EXCEEDED"));
    let newest = world.messages(&content(json!([noise(1_600, 8)]))).await;
    let figures = "messages.0.content.0.source.data: 1600 x 8 pixels in ";
    newest.is_error("newest", 400, "invalid_request_error", figures);
    assert!(newest.text.contains(" characters: upstream refuses it, smaller too"), "{}", newest.text);
    assert_eq!(world.upstream_calls(), 2);
    let broken = block("image/jpeg", &format!("/9j/4AAQ{}", "A".repeat(400_000)));
    let broken = world.messages(&content(json!([broken]))).await;
    let figures =
        "messages.0.content.0.source.data: a picture that can't be read in 400008 characters: upstream refuses it";
    broken.is_error("broken", 400, "invalid_request_error", figures);
    assert_eq!(world.upstream_calls(), 3);
    // Later in the session: as it is, smaller, and without it.
    let reply = world.messages(&earlier(noise(1_600, 8))).await;
    assert_eq!(ignored(&reply), "messages.0.content.0.source.data:omitted");
    assert_eq!(world.seen().1[0], "look\n[1 earlier image omitted]");
    assert_eq!(world.upstream_calls(), 6);
    // One that isn't large: upstream's own words, after one call.
    let small = world.messages(&content(json!([noise(40, 40)]))).await;
    small.is_error("small", 400, "invalid_request_error", "The image is too large.");
    assert_eq!(world.upstream_calls(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn fitting_can_be_always_and_off_tr67() {
    let body = content(json!([noise(1_600, 8)]));
    let always = World::new(&[("KIRO_IMAGE_FIT", "always")]).await;
    assert_eq!(ignored(&always.messages(&body).await), "messages.0.content.0.source.data:fitted");
    assert_eq!((always.upstream_calls(), always.seen().0), (1, vec![("jpeg".to_owned(), 1_568, 8)]));
    let auto = World::new(&[]).await;
    assert_eq!(ignored(&auto.messages(&body).await), "");
    assert_eq!(auto.seen().0, [("png".to_owned(), 1_600, 8)]);
    let off = World::new(&[("KIRO_IMAGE_FIT", "off")]).await;
    off.answers(&refusing(1_000, "IMAGE_SIZE_EXCEEDED"));
    off.messages(&body).await.is_error("off", 400, "invalid_request_error", "The image is too large.");
    assert_eq!(off.upstream_calls(), 1);
}
