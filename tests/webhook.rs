//! Notices to `KIRO_WEBHOOK_URL`, from an account that dies to the receiver.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::convert::Infallible;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use world::{World, with};

const SECRET: &str = "webhook-secret-4711";

/// What listens at the webhook's address.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    Refuses,
    /// To its own other path.
    Redirects,
    /// Takes the request, then says nothing.
    Hangs,
    /// Answers with a body without an end.
    Floods,
}

/// Path, signature, body.
type Post = (String, Option<String>, String);

struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<Post>>>,
}

impl Receiver {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook/path-secret", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<Post>>> = Arc::default();
        let (kept, place) = (got.clone(), url.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (kept, place) = (kept.clone(), place.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (kept, place) = (kept.clone(), place.clone());
                    async move {
                        let signed = request.headers().get("x-webhook-signature");
                        let signed = signed.map(|value| value.to_str().unwrap().to_owned());
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        kept.lock().unwrap().push((path, signed, String::from_utf8(body.to_vec()).unwrap()));
                        let status = match manner {
                            Manner::Takes | Manner::Floods => 204,
                            Manner::Refuses => 500,
                            Manner::Redirects => 307,
                            Manner::Hangs => std::future::pending().await,
                        };
                        let answer = Response::builder().status(status).header("location", format!("{place}/other"));
                        let filler = if manner == Manner::Floods { 8 << 20 } else { 0 };
                        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(vec![b'x'; filler]))).unwrap())
                    }
                });
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A client that goes away is the client's business.
                    let _ = connection.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { url, got }
    }

    fn notices(&self) -> Vec<Value> {
        self.got.lock().unwrap().iter().map(|(_, _, body)| serde_json::from_str(body).unwrap()).collect()
    }

    fn kinds(&self) -> Vec<String> {
        self.notices().iter().map(|notice| notice["kind"].as_str().unwrap().to_owned()).collect()
    }

    async fn heard(&self, kinds: &[&str]) {
        let began = Instant::now();
        while self.kinds() != kinds {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?} instead of {kinds:?}", self.kinds());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Requests until each account was asked.
async fn ask(world: &World, times: usize) {
    for n in 0..times {
        let text = json!([{ "role": "user", "content": format!("message {n}") }]);
        world.messages(&with(json!({ "messages": text }))).await;
    }
}

/// The gateway has looked at its state once.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(2_500)).await;
}

#[tokio::test]
async fn a_dead_account_is_told_of_once_and_signed() {
    let receiver = Receiver::start(Manner::Takes).await;
    let options = [("KIRO_WEBHOOK_URL", &*receiver.url), ("KIRO_WEBHOOK_SECRET", SECRET), ("KIRO_AFFINITY", "off")];
    let world = World::with_tokens(&["sim-suspended", "ok"], &options).await;
    settle().await;
    assert!(receiver.got.lock().unwrap().is_empty(), "nothing has happened");
    ask(&world, 4).await;
    receiver.heard(&["account_suspended"]).await;
    settle().await;
    assert_eq!(receiver.kinds(), ["account_suspended"], "once");
    let notice = &receiver.notices()[0];
    assert_eq!((&notice["account"], &notice["accounts"]), (&json!("00000000"), &json!({ "total": 2, "healthy": 1 })));
    let text = notice["text"].as_str().unwrap();
    assert!(text.starts_with("Kiro account 00000000 was suspended by Kiro: its owner must act ("), "{text}");
    let (_, signed, body) = receiver.got.lock().unwrap()[0].clone();
    let mut command = Command::new("openssl");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let hashed = command.args(["dgst", "-sha256", "-hmac", SECRET]).arg(file.path()).output();
    if let Ok(hashed) = hashed {
        let hex = String::from_utf8(hashed.stdout).unwrap();
        assert_eq!(signed.unwrap(), format!("sha256={}", hex.trim().rsplit(' ').next().unwrap()));
    }
    for secret in [SECRET, "sim-suspended", "refresh-0", "path-secret", "4000-8000"] {
        assert!(!body.contains(secret), "{secret} in {body}");
    }
    assert!(world.gateway.metrics().contains("kiro_notices_total{outcome=\"sent\"} 1\n"));
}

#[tokio::test]
async fn a_suspicion_is_said_once() {
    let receiver = Receiver::start(Manner::Takes).await;
    let options = [("KIRO_WEBHOOK_URL", &*receiver.url), ("KIRO_AFFINITY", "off")];
    let world = World::with_tokens(&["sim-suspicious", "ok"], &options).await;
    settle().await;
    ask(&world, 4).await;
    receiver.heard(&["account_suspicious"]).await;
    let notice = &receiver.notices()[0];
    let text = notice["text"].as_str().unwrap();
    assert!(text.starts_with("Kiro account 00000000 rests: Kiro reports suspicious activity, until 20"), "{text}");
    assert_eq!(notice["cause"], "suspicious activity (1)");
}

/// A restart at night, and the account dies with its first request.
#[tokio::test]
async fn an_account_that_dies_right_after_the_start_is_told_of() {
    let receiver = Receiver::start(Manner::Takes).await;
    let options = [("KIRO_WEBHOOK_URL", &*receiver.url), ("KIRO_AFFINITY", "off")];
    let world = World::with_tokens(&["sim-suspended", "ok"], &options).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ask(&world, 4).await;
    receiver.heard(&["account_suspended"]).await;
}

#[tokio::test]
async fn too_few_accounts_are_told_of() {
    let receiver = Receiver::start(Manner::Takes).await;
    let options = [("KIRO_WEBHOOK_URL", &*receiver.url), ("KIRO_WEBHOOK_MIN_ACCOUNTS", "2"), ("KIRO_AFFINITY", "off")];
    let world = World::with_tokens(&["sim-402", "ok"], &options).await;
    settle().await;
    ask(&world, 4).await;
    receiver.heard(&["pool_low", "account_out_of_quota"]).await;
    let notices = receiver.notices();
    assert_eq!(notices[0]["text"], "Only 1 of 2 Kiro accounts can serve; 2 are wanted.");
    assert!(notices[1]["until"].is_string(), "{}", notices[1]);
}

#[tokio::test]
async fn a_hostile_receiver_harms_nobody() {
    for (manner, outcome) in
        [(Manner::Refuses, "failed"), (Manner::Redirects, "failed"), (Manner::Hangs, ""), (Manner::Floods, "sent")]
    {
        let receiver = Receiver::start(manner).await;
        let options = [("KIRO_WEBHOOK_URL", &*receiver.url), ("KIRO_AFFINITY", "off")];
        let world = World::with_tokens(&["sim-suspended", "ok"], &options).await;
        settle().await;
        ask(&world, 4).await;
        let tries = if outcome == "failed" { 3 } else { 1 };
        receiver.heard(&vec!["account_suspended"; tries]).await;
        let notices = receiver.notices();
        assert!(notices.iter().all(|notice| notice["id"] == notices[0]["id"]), "one notice, tried again");
        assert!(receiver.got.lock().unwrap().iter().all(|(path, ..)| path == "/hook/path-secret"), "not followed");
        let began = Instant::now();
        ask(&world, 3).await;
        assert!(began.elapsed() < Duration::from_secs(3), "requests don't wait for the receiver");
        if !outcome.is_empty() {
            let counted =
                || world.gateway.metrics().contains(&format!("kiro_notices_total{{outcome=\"{outcome}\"}} 1\n"));
            while !counted() {
                assert!(began.elapsed() < Duration::from_secs(10), "{outcome}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_sends_a_test_notice() {
    let receiver = Receiver::start(Manner::Takes).await;
    let doctor = |url: Option<String>| async move {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.args(["doctor", "--webhook"]).env_clear().envs(url.map(|url| ("KIRO_WEBHOOK_URL", url)));
        let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (ended.status.code(), String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned())
    };
    let (code, said) = doctor(Some(receiver.url.clone())).await;
    assert_eq!((code, receiver.kinds()), (Some(0), vec!["test".to_owned()]), "{said}");
    let closed = Receiver::start(Manner::Refuses).await;
    for (url, words) in [
        (None, "set KIRO_WEBHOOK_URL"),
        (Some(closed.url.clone()), "status 500"),
        (Some("http://127.0.0.1:9/path-secret".to_owned()), "can't be reached"),
    ] {
        let (code, said) = doctor(url).await;
        assert!(code == Some(1) && said.contains(words) && !said.contains("path-secret"), "{said}");
    }
    let (code, said) = doctor(Some("ftp://path-secret".to_owned())).await;
    assert!(
        code == Some(2) && said.contains("KIRO_WEBHOOK_URL: must be a URL") && !said.contains("path-secret"),
        "{said}"
    );
}
