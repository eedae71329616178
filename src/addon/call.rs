//! One call: a task that does the work and posts its results until it is done or cancelled.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use http::{Method, Request};
use http_body::Body as _;
use napi::bindgen_prelude::spawn;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::bell::{MessageKind, OpenCall};
use super::feed::Incoming;
use super::live::LiveGateway;
use super::message;
use super::outlet::Outlet;
use crate::error::{Code, Error};
use crate::gateway::{Body, Call, LAST_WORDS};
use crate::proto::messages::request::{self, Purpose};
use crate::server::{self, Peer, SummarySlot};

/// Runs a call to its end on the process's runtime. A panic in it fails only this call (N53).
pub(crate) fn run(slot: Arc<OpenCall>, work: impl Future<Output = ()> + Send + 'static) {
    let guarded = AssertUnwindSafe(work).catch_unwind();
    spawn(async move {
        if guarded.await.is_err() {
            fail(&slot, &Error::new(Code::Internal, "a defect of kiro-messages ended this call"), None);
        }
    });
}

/// A call that ends with one text.
pub(crate) async fn once(
    slot: Arc<OpenCall>,
    request_id: Option<String>,
    work: impl Future<Output = Result<Bytes, Error>>,
) {
    match unless_cancelled(&slot, work).await {
        Some(Ok(text)) => slot.post(MessageKind::End, text),
        Some(Err(error)) => fail(&slot, &error, request_id.as_deref()),
        None => fail(&slot, &cancelled(), request_id.as_deref()),
    }
}

/// A stream: its head when the status is known, its bytes as they come, its summary at the end.
pub(crate) async fn stream(slot: Arc<OpenCall>, gateway: LiveGateway, body: Body, call: Call, cut: CancellationToken) {
    let request_id = call.request_id.clone();
    let opened = unless_cancelled(&slot, gateway.stream(body, call)).await;
    let stream = match opened {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => return fail(&slot, &error, request_id.as_deref()),
        None => return fail(&slot, &cancelled(), request_id.as_deref()),
    };
    let summary = stream.summary();
    let ignored = summary.ignored();
    let mut head = json!({
        "requestId": stream.request_id(),
        "headers": {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            "request-id": stream.request_id(),
        },
        "ignored": ignored.entries(),
    });
    if let Some(header) = ignored.header() {
        head["headers"]["x-kiro-ignored"] = json!(header);
    }
    slot.post(MessageKind::Head, message::text(&head));
    pump(&slot, stream, &cut).await;
    slot.post(MessageKind::End, message::text(&message::summary(&summary)));
}

/// An HTTP request of node:http: what the standalone server would answer (N15).
pub(crate) async fn handle(
    slot: Arc<OpenCall>,
    gateway: LiveGateway,
    request: Request<Incoming>,
    peer: Peer,
    summary: Option<SummarySlot>,
    cut: CancellationToken,
) {
    let headless = request.method() == Method::HEAD;
    let Some(response) = unless_cancelled(&slot, server::handle(&gateway, request, peer)).await else {
        return slot.post(MessageKind::End, Bytes::new());
    };
    let (parts, body) = response.into_parts();
    let mut headers: Vec<_> = parts
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?.to_owned())))
        .collect();
    if let Some(length) = body.size_hint().exact().filter(|_| !headless && parts.status != 204) {
        headers.push(("content-length", length.to_string()));
    }
    let body = body.into_stream();
    let limit = gateway.config().write_timeout;
    let head = json!({
        "status": parts.status.as_u16(),
        "headers": headers,
        "streamed": body.is_ok(),
        "writeTimeoutMs": limit.as_millis() as u64,
    });
    let head = message::text(&head);
    match body {
        Ok(stream) => match unless_cancelled(&slot, slot.way(head)).await.flatten() {
            Some(outlet) => {
                if !write(&slot, outlet, limit, stream, &cut).await {
                    return fail(&slot, &cancelled(), None);
                }
            }
            None => pump(&slot, stream, &cut).await,
        },
        Err(bytes) => {
            slot.post(MessageKind::Head, head);
            if !bytes.is_empty() {
                slot.post(MessageKind::Data, bytes);
            }
        }
    }
    let summary = summary.as_ref().and_then(|told| told.get());
    slot.post(MessageKind::End, summary.map_or(Bytes::new(), |cell| message::text(&message::summary(cell))));
}

/// Gives JavaScript the prompt of a request, for the host program's prompt log (N14). An unreadable request gives none.
pub(crate) fn hear(slot: Arc<OpenCall>) -> Arc<dyn Fn(&Bytes) + Send + Sync> {
    Arc::new(move |body| {
        if let Ok(request) = request::Request::parse(body, Purpose::Lenient) {
            let said = json!({ "system": request.system_text(), "prompt": request.prompt_text() });
            slot.post(MessageKind::Notice, message::text(&said));
        }
    })
}

/// Posts a failure as the call's last message.
pub(crate) fn fail(slot: &Arc<OpenCall>, error: &Error, request_id: Option<&str>) {
    slot.post(MessageKind::Fail, message::text(&message::fault(error, request_id)));
}

/// Posts a stream's bytes until it ends or is cancelled; cancelling drops it, and that is all it takes (K50).
///
/// `cut`: the gateway's grace time is over. Then a full queue isn't waited for, so that the stream's last event gets
/// into it: a late reader still sees how it ended.
async fn pump(slot: &Arc<OpenCall>, mut stream: impl Stream<Item = Bytes> + Unpin, cut: &CancellationToken) {
    // Cancelling is checked before each chunk: an upstream that always has bytes ready never makes this wait, so a
    // check around the whole loop would come megabytes later.
    while let Some(Some(bytes)) = unless_cancelled(slot, stream.next()).await {
        slot.post(MessageKind::Data, bytes);
        tokio::select! {
            () = slot.room() => {}
            () = cut.cancelled() => {}
            () = slot.cancelled() => {}
        }
    }
}

/// Writes a stream's bytes to the client's socket. False: the client didn't get all of them, so the answer must not get
/// a regular end.
async fn write(
    slot: &OpenCall,
    outlet: Outlet,
    limit: Duration,
    mut stream: impl Stream<Item = Bytes> + Unpin,
    cut: &CancellationToken,
) -> bool {
    let Ok(mut writer) = outlet.open(limit) else { return false };
    let late = async {
        cut.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::pin!(late);
    while let Some(Some(bytes)) = unless_cancelled(slot, stream.next()).await {
        let written = tokio::select! {
            biased;
            () = slot.cancelled() => false,
            written = writer.write(bytes) => written.is_ok(),
            () = &mut late => false,
        };
        if !written {
            return false;
        }
    }
    !slot.is_cancelled()
}

pub(crate) async fn unless_cancelled<T>(slot: &OpenCall, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = slot.cancelled() => None,
        done = work => Some(done),
    }
}

pub(crate) fn cancelled() -> Error {
    Error::new(Code::Cancelled, "the call was aborted")
}
