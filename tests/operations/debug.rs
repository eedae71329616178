//! `KIRO_PROFILE_ADDR`: a real CPU profile, live tasks and requests.

use std::time::Duration;

use prost::Message;
use serde_json::{Value, json};

use crate::place::{Place, Server, client};
use crate::settings::with_stream;
use crate::world::{KEY, base};

#[path = "../../src/server/debug/profile.rs"]
mod profile;

use profile::{Function, Profile};

fn debug_address(server: &Server) -> String {
    let line = server.line("where", |line| line["message"].as_str().is_some_and(|text| text.contains("/debug")));
    line["address"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cpu_profile_shows_what_works() {
    let server = Server::start(&["--profile=127.0.0.1:0"], &[]);
    let at = debug_address(&server);
    // Something to see: long answers, one after the other, on two connections.
    let busy = async {
        let mut body = with_stream(&json!({ "text": "{n} words", "count": 2000 }));
        body["max_tokens"] = json!(1_000_000);
        loop {
            server.ask("", &body).await.bytes().await.unwrap();
        }
    };
    let profiles = async {
        let get =
            async |query: &str| client().get(format!("http://{at}/debug/pprof/profile?{query}")).send().await.unwrap();
        let (first, second) = tokio::join!(get("seconds=2"), async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            get("seconds=1").await
        });
        assert_eq!(second.status(), 409, "one profile at a time");
        let svg = get("seconds=2&format=svg").await;
        assert_eq!(get("seconds=0").await.status(), 400);
        assert_eq!(get("seconds=1&format=pdf").await.status(), 400);
        (first, svg)
    };
    let (first, svg) = tokio::select! {
        done = profiles => done,
        _ = busy => unreachable!(),
    };
    assert_eq!(first.status(), 200);
    let profile = Profile::decode(first.bytes().await.unwrap()).unwrap();
    assert!(profile.duration_nanos >= 1_900_000_000 && profile.period > 0, "{}", profile.duration_nanos);
    assert_eq!(profile.string_table[0], "");
    assert!(!profile.sample.is_empty(), "nothing was sampled");
    for sample in &profile.sample {
        assert!(sample.location_id.iter().all(|id| profile.location.iter().any(|location| location.id == *id)));
        assert_eq!(sample.value.len(), 2);
    }
    let named = |function: &Function| profile.string_table[function.name as usize].contains("kiro_messages");
    assert!(profile.function.iter().any(named), "no function of ours in {:?}", profile.string_table);
    assert!(profile.function.iter().all(|function| function.id > 0));
    assert_eq!(svg.headers()["content-type"], "image/svg+xml");
    let picture = svg.text().await.unwrap();
    assert!(
        picture.starts_with("<svg ") && picture.ends_with("</svg>\n") && picture.contains("kiro_messages"),
        "{picture}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_and_open_requests_are_listed() {
    let server = Server::start(&["--profile=127.0.0.1:0"], &[]);
    let at = debug_address(&server);
    let mut held = server.ask("", &with_stream(&json!({ "text": "a", "end": "hang" }))).await;
    let id = held.headers()["request-id"].to_str().unwrap().to_owned();
    held.chunk().await.unwrap();
    let tasks: Value =
        client().get(format!("http://{at}/debug/tasks")).send().await.unwrap().text().await.unwrap().parse().unwrap();
    assert!(tasks["tasks_alive"].as_u64() > Some(2), "{tasks}");
    assert!(
        tasks["workers"].as_array().unwrap().iter().any(|worker| worker["busy_seconds"].as_f64() > Some(0.0)),
        "{tasks}"
    );
    let open = tasks["requests"].as_array().unwrap();
    assert_eq!(open.len(), 1, "{tasks}");
    assert_eq!(
        (&open[0]["request_id"], &open[0]["phase"], &open[0]["stream"]),
        (&json!(id), &json!("reading"), &json!(true))
    );
    assert_eq!(open[0]["account"].as_str().unwrap().len(), 8);
    assert_eq!(client().post(format!("http://{at}/debug/tasks")).send().await.unwrap().status(), 405);
    assert_eq!(client().get(format!("http://{at}/debug")).send().await.unwrap().status(), 404);
}

/// Who doesn't come from this machine needs the client key; a proxy on it doesn't count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_machines_need_the_key() {
    let place = Place::new(&[]).await;
    let debugging = kiro_messages::server::debug(place.gateway.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let get = async |key: &str| {
        let asked = client().get(format!("http://{}/debug/tasks", debugging.address()));
        asked.header("x-forwarded-for", "192.0.2.1").header("x-api-key", key).send().await.unwrap().status()
    };
    assert_eq!((get("wrong").await.as_u16(), get(KEY).await.as_u16()), (401, 200));
    place.ask(base()).await.unwrap();
}
