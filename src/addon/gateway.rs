//! `KiroGateway` for JavaScript.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use napi::bindgen_prelude::BufferSlice;
use napi::{Error as JsError, Result};
use napi_derive::napi;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::bell::{MessageKind, OpenCall};
use super::intake::{self, NativeImport, NativeLogin};
use super::listen::{self, GraceSender, NativeServer, millis};
use super::live::LiveGateway;
use super::notifier::Notifier;
use super::{Bell, call, feed, message};
use crate::config::{Config, Face, RawConfig, StoreKind, nearest};
use crate::error::{Code, Error};
use crate::gateway::{Call, Gateway, Leniency};
use crate::pool::Addresses;
use crate::proto::messages::request::{self, Purpose, SystemMode};
use crate::proto::record::rfc3339;
use crate::proto::translate::edits::edit;
use crate::proto::translate::estimate::request_tokens;
use crate::server::{Peer, Terms};

/// How long `close` waits for JavaScript to record outcomes, and for the others to be written.
const LAST_OUTCOMES: Duration = Duration::from_secs(1);

/// The way to Kiro: a pool of accounts, failover between them, and the streams that are open.
///
/// Everything happens on threads of its own; this thread gets finished bytes. A gateway belongs to the thread that
/// connected it. It doesn't keep the process alive by itself: a call that is awaited does.
///
/// ```js
/// import { KiroGateway } from 'kiro-messages'
///
/// const gateway = await KiroGateway.connect({ store: 'file:accounts.json' })
/// const stream = await gateway.streamMessages({
///   model: 'claude-sonnet-4-5',
///   max_tokens: 1024,
///   messages: [{ role: 'user', content: 'Hello' }],
/// })
/// for await (const bytes of stream) process.stdout.write(bytes)
/// await gateway.close() // TypeScript, and Node.js 24, have `await using` for it
/// ```
#[napi]
#[derive(Default)]
pub struct KiroGateway {
    connected: Arc<OnceLock<LiveGateway>>,
    /// The grace time of `close` is over.
    cut: CancellationToken,
    /// Ends the servers of `listen`.
    ending: GraceSender,
}

/// A call's options as lib/gateway.js has checked them.
/// @internal
#[napi(object, object_to_js = false)]
pub struct NativeCallOptions {
    pub request_id: Option<String>,
    pub session: Option<String>,
    pub gateway_session: Option<String>,
    pub client_key: Option<String>,
    pub account_id: Option<String>,
    pub system: Option<String>,
    /// Whether `system` takes the place of the request's.
    pub overwrite: bool,
    pub record: bool,
    /// The model for unknown names (N90).
    pub model_fallback: Option<String>,
}

/// The head of a request as node:http gives it.
/// @internal
#[napi(object, object_to_js = false)]
pub struct Head {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names and values in turn.
    pub headers: Vec<String>,
    pub loopback: bool,
    /// The key was checked by the caller.
    pub trusted: bool,
    /// The operator's system text.
    pub system: Option<String>,
    /// Whether `system` takes the place of the request's.
    pub overwrite: bool,
    /// A notice tells what the request says (N14).
    pub overheard: bool,
    /// The last message holds the summary of the answer (N84).
    pub summarized: bool,
    /// The model for unknown names (N90).
    pub model_fallback: Option<String>,
    /// `max_tokens` may be missing (N96).
    pub lenient: bool,
    /// Names of models that the surrounding program made, and what each stands for, in turn (N98).
    pub names: Vec<String>,
}

// The first two arguments of a call are the bell and the call's number; TypeScript's types are those of lib/.
#[napi]
impl KiroGateway {
    /// Reads the configuration, connects the store, warms the upstream pool.
    ///
    /// Rejects with `KIRO_CONFIG` when an option or a variable is wrong, with `KIRO_STORE_UNAVAILABLE` when the store
    /// can't be reached within `storeWaitMs` (0: doesn't wait; calls fail with that code until the store is there).
    #[napi(catch_unwind, factory, ts_args_type = "options?: GatewayOptions", ts_return_type = "Promise<KiroGateway>")]
    pub fn connect(
        bell: &Bell,
        call: u32,
        options: Vec<String>,
        environment: Vec<String>,
        notices: u32,
        records: bool,
    ) -> Self {
        let handle = Self::default();
        let slot = bell.bell.open(call);
        let notifier = Notifier::new(bell.bell.open(notices), records);
        let config = configure(options, environment);
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                call::fail(&slot, &error, None);
                return handle;
            }
        };
        let place = handle.connected.clone();
        let start = async move {
            let connected = LiveGateway::start(config, notifier).await?;
            // Filled once: lib/ makes a new handle for each connect.
            place.get_or_init(|| connected);
            Ok(Bytes::new())
        };
        call::run(slot.clone(), call::once(slot, None, start));
        handle
    }

    /// Streams an answer. Resolves when the status is known: at the first upstream event, or after `earlyHeadersMs`.
    /// Until then it fails over silently to other accounts, and at the end rejects with a `KiroError`. `stream` in the
    /// request is taken as true.
    ///
    /// From then on nothing throws: a failure of upstream is one `event: error`, and then the stream ends, as the
    /// Messages API has it.
    #[napi(
        catch_unwind,
        ts_args_type = "request: MessagesInput, options?: CallOptions",
        ts_return_type = "Promise<MessageStream>"
    )]
    pub fn stream_messages(&self, bell: &Bell, call: u32, request: BufferSlice, how: NativeCallOptions) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let how = how.into_call(&gateway);
        match gateway.request_memory().copied(&request) {
            Ok(body) => call::run(slot.clone(), call::stream(slot, gateway, body, how, self.cut.clone())),
            Err(error) => call::fail(&slot, &error, how.request_id.as_deref()),
        }
        Ok(())
    }

    /// The whole answer as one message. Any failure rejects. `stream` in the request is taken as false.
    #[napi(
        catch_unwind,
        ts_args_type = "request: MessagesInput, options?: CallOptions",
        ts_return_type = "Promise<Message>"
    )]
    pub fn create_message(&self, bell: &Bell, call: u32, request: BufferSlice, how: NativeCallOptions) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let how = how.into_call(&gateway);
        let request_id = how.request_id.clone();
        let body = match gateway.request_memory().copied(&request) {
            Ok(body) => body,
            Err(error) => {
                call::fail(&slot, &error, request_id.as_deref());
                return Ok(());
            }
        };
        let answer = gateway.create(body, how);
        call::run(
            slot.clone(),
            call::once(slot, request_id, async move { Ok((message::folded(answer.await?), gateway).0) }),
        );
        Ok(())
    }

    /// Estimates the input tokens of a request, off this thread. Nothing is sent anywhere.
    #[napi(catch_unwind, ts_args_type = "request: CountTokensInput", ts_return_type = "Promise<TokenCount>")]
    pub fn count_tokens(&self, bell: &Bell, call: u32, request: BufferSlice) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let body = gateway.request_memory().copied(&request);
        let count = async move {
            let count = gateway.count_in_turn(&body?, &Leniency::default()).await?;
            Ok(message::text(&count.json()))
        };
        call::run(slot.clone(), call::once(slot, None, count));
        Ok(())
    }

    /// The same on this thread: about 1 ms per 100 KB.
    #[napi(catch_unwind, ts_args_type = "request: CountTokensInput", ts_return_type = "TokenCount")]
    pub fn count_tokens_sync(&self, request: BufferSlice) -> Result<String> {
        // An object with the count or a fault; lib/ throws the fault.
        let answer = match self.gateway()?.count_tokens(&request) {
            Ok(count) => count.json(),
            Err(error) => json!({ "fault": message::fault(&error, None) }),
        };
        Ok(answer.to_string())
    }

    /// The models that can be asked for, newest first.
    #[napi(catch_unwind, ts_return_type = "ModelInfo[]")]
    pub fn list_models(&self) -> Result<String> {
        let models = self.gateway()?.list_models();
        Ok(json!(models).to_string())
    }

    /// The body of `GET /health`, from memory.
    #[napi(catch_unwind, ts_return_type = "Health")]
    pub fn health(&self) -> Result<String> {
        let health = self.gateway()?.health();
        Ok(json!(health).to_string())
    }

    /// The body of `GET /metrics`: OpenMetrics text.
    #[napi(catch_unwind)]
    pub fn metrics(&self) -> Result<String> {
        Ok(self.gateway()?.metrics())
    }

    /// The accounts as this process sees them, sorted by id. From memory, without secrets.
    #[napi(catch_unwind, ts_return_type = "AccountInfo[]")]
    pub fn accounts(&self) -> Result<String> {
        let accounts = self.gateway()?.accounts();
        Ok(json!(accounts.iter().map(message::account).collect::<Vec<_>>()).to_string())
    }

    /// The tokens of an account, from memory; null when there is no such account. No other call shows a secret.
    #[napi(catch_unwind, ts_args_type = "accountId: string", ts_return_type = "Credential | null")]
    pub fn credential(&self, account_id: String) -> Result<String> {
        let credential = self.gateway()?.credential(&account_id);
        Ok(json!(credential.as_ref().map(message::credential)).to_string())
    }

    /// Refreshes the access token of an account now, and resolves with its expiry. Within 30 s after a success it
    /// returns that one's.
    ///
    /// Rejects with `KIRO_NOT_FOUND` for an unknown account, `KIRO_ACCOUNT_UNAUTHORIZED` when the refresh was refused,
    /// `KIRO_UPSTREAM` or `KIRO_UPSTREAM_TIMEOUT` when it could not be asked for.
    #[napi(catch_unwind, ts_args_type = "accountId: string", ts_return_type = "Promise<{ expiresAt: string | null }>")]
    pub fn refresh(&self, bell: &Bell, call: u32, account_id: String) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let refresh = async move {
            let expires_at = gateway.refresh(&account_id).await?;
            Ok(message::text(&json!({ "expiresAt": expires_at.map(rfc3339) })))
        };
        call::run(slot.clone(), call::once(slot, None, refresh));
        Ok(())
    }

    /// An account's usage: upstream's `getUsageLimits`, as it came. It changes nothing on the account, unless upstream
    /// says that the account is suspended.
    ///
    /// Rejects with `KIRO_NOT_FOUND` for an unknown account, else as a call pinned to the account does.
    #[napi(
        catch_unwind,
        ts_args_type = "accountId: string, options?: { signal?: AbortSignal }",
        ts_return_type = "Promise<UsageLimits>"
    )]
    pub fn usage_limits(&self, bell: &Bell, call: u32, account_id: String) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let limits = async move { gateway.usage_limits(&account_id).await };
        call::run(slot.clone(), call::once(slot, None, limits));
        Ok(())
    }

    /// Signs a person in by device code (AWS Builder ID, Google, GitHub, IAM Identity Center): `onCode` gets what he must
    /// open, on any machine, and the promise resolves when he is done and the account is in the store, serving. Looks up
    /// its profile and plan, unless `check` is false.
    ///
    /// Aborting `signal` ends the wait for the person; nothing is kept then. A login that has come already is kept all the
    /// same, so that it isn't lost. Rejects with `KIRO_ACCOUNT_UNAUTHORIZED` when it was refused, came too late, or is
    /// another user's than `replace`'s; `KIRO_UPSTREAM` when the sign-in's host can't be reached;
    /// `KIRO_STORE_UNAVAILABLE` when the store takes no writes; `KIRO_NOT_FOUND` for an unknown `replace`.
    ///
    /// Browser and other providers: `npx kiro-messages accounts login --browser`.
    ///
    /// ```js
    /// const { account } = await gateway.login({
    ///   method: 'builder-id',
    ///   onCode: ({ verificationUriComplete, userCode }) => console.log(verificationUriComplete, userCode),
    /// })
    /// ```
    #[napi(catch_unwind, ts_args_type = "options: LoginOptions", ts_return_type = "Promise<LoginResult>")]
    pub fn login(&self, bell: &Bell, call: u32, options: NativeLogin) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        call::run(slot.clone(), intake::login(slot, gateway, options));
        Ok(())
    }

    /// Takes over the sessions of other programs from a file or a folder, as `npx kiro-messages accounts add --from` does:
    /// Kiro's token files, the Node.js service's `provider_pools.json`, `credentials.json` of other gateways, API keys
    /// one a line. The source is only read. They serve at once.
    ///
    /// A bad account doesn't stop the others: look at each `outcome`. Rejects with `KIRO_INVALID_REQUEST` when the path
    /// holds nothing that can be taken over, or is kiro-cli's database, which only the command line reads;
    /// `KIRO_STORE_UNAVAILABLE` when the store can't be used.
    #[napi(
        catch_unwind,
        ts_args_type = "path: string, options?: ImportOptions",
        ts_return_type = "Promise<ImportResult>"
    )]
    pub fn import_accounts(&self, bell: &Bell, call: u32, path: String, options: NativeImport) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        call::run(slot.clone(), call::once(slot, None, intake::import(gateway, path, options)));
        Ok(())
    }

    /// Serves on an address, from threads of its own: no JavaScript runs for a request. The routes are those of
    /// {@link KiroGateway.handler}. Keeps the process alive until it is closed.
    ///
    /// Rejects with `KIRO_CONFIG` when the address can't be used, or when other machines could reach it while no client
    /// key is configured and `allowAnonymous` isn't set.
    #[napi(catch_unwind, ts_args_type = "options?: ListenOptions", ts_return_type = "Promise<GatewayServer>")]
    pub fn listen(&self, bell: &Bell, call: u32, host: Option<String>, port: Option<u16>) -> Result<NativeServer> {
        let (gateway, slot) = self.begin(bell, call)?;
        let (server, end) = NativeServer::new(gateway.config().graceful_timeout);
        let ends = [end, self.ending.subscribe()];
        call::run(slot.clone(), listen::serve(slot, gateway, (host, port), ends));
        Ok(server)
    }

    /// For lib/options.js: `; did you mean accountId?` for an unknown name, or nothing (N71).
    #[napi(catch_unwind, skip_typescript)]
    pub fn nearest(name: String, known: Vec<String>) -> String {
        nearest(&name, known.iter().map(String::as_str))
    }

    /// For kiro-messages/aiclient: the estimate of a request's tokens without a gateway, or why it can't be made.
    #[napi(catch_unwind, skip_typescript)]
    pub fn estimate_tokens(request: BufferSlice) -> String {
        let counted = request::Request::parse(&request, Purpose::CountTokens).map(|mut request| {
            edit(&mut request);
            request_tokens(&request)
        });
        let answer = match counted {
            Ok(tokens) => json!({ "input_tokens": tokens }),
            Err(error) => json!({ "fault": message::fault(&error.into(), None) }),
        };
        answer.to_string()
    }

    /// For kiro-messages/aiclient: whether an account's access token expires within `refreshThresholdMs`.
    #[napi(catch_unwind, skip_typescript)]
    pub fn expires_soon(&self, account_id: String) -> Result<bool> {
        Ok(self.gateway()?.expires_soon(&account_id))
    }

    /// For kiro-messages/aiclient: the most output tokens of a model, null for one that isn't known.
    #[napi(catch_unwind, skip_typescript)]
    pub fn max_output(&self, model: String) -> Result<Option<f64>> {
        Ok(self.gateway()?.model(&model).map(|model| model.max_tokens as f64))
    }

    /// For kiro-messages/aiclient: `modelFallback` as configured.
    #[napi(catch_unwind, skip_typescript)]
    pub fn model_fallback(&self) -> Result<Option<String>> {
        Ok(self.gateway()?.config().model_fallback.clone())
    }

    /// For kiro-messages/aiclient: addresses that the host's configuration has for an account (N4), or for all (N94).
    #[napi(catch_unwind, skip_typescript)]
    pub fn use_addresses(&self, account_id: Option<String>, addresses: Vec<String>) -> Result<()> {
        let mut addresses = addresses.into_iter();
        let mut next = || addresses.next().unwrap_or_default();
        let addresses = Addresses { generate: next(), social_refresh: next(), idc_refresh: next() };
        let connected = self.gateway()?;
        match account_id {
            Some(id) => connected.pool().lend_addresses(&id, &addresses),
            None => connected.pool().lend_addresses_to_all(&addresses),
        }
        Ok(())
    }

    /// For kiro-messages/aiclient: reads the store now, for an account that may just have been added.
    #[napi(catch_unwind, skip_typescript)]
    pub fn read_store(&self, bell: &Bell, call: u32) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let read = async move { Ok(message::text(&gateway.pool().reload().await.is_ok())) };
        call::run(slot.clone(), call::once(slot, None, read));
        Ok(())
    }

    /// For kiro-messages/aiclient: whether account records can be written; else they are the host's alone (R99).
    #[napi(catch_unwind, skip_typescript)]
    pub fn writes_accounts(&self) -> Result<bool> {
        Ok(!matches!(self.gateway()?.config().store, StoreKind::Aiclient(_)))
    }

    /// JavaScript has a `recordOutcome` from now on.
    #[napi(catch_unwind, skip_typescript)]
    pub fn record_outcomes(&self) -> Result<()> {
        self.gateway()?.notifier.record();
        Ok(())
    }

    /// The answer of `recordOutcome` to an outcome.
    #[napi(catch_unwind, skip_typescript)]
    pub fn answered(&self, number: u32, recorded: bool) -> Result<()> {
        let connected = self.gateway()?;
        connected.notifier.answered(number, recorded, connected.pool());
        Ok(())
    }

    /// One request of node:http, for `handler`. Its body is fed by the bell.
    #[napi(catch_unwind, skip_typescript)]
    pub fn handle(&self, bell: &Bell, call: u32, head: Head) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let told = slot.clone();
        let (feed, body) = feed::feed(move || told.post(MessageKind::More, Bytes::new()));
        let mut request = Request::builder().method(head.method.as_str()).uri(head.target);
        for pair in head.headers.chunks_exact(2) {
            request = request.header(&pair[0], &pair[1]);
        }
        match request.body(body) {
            Ok(mut request) => {
                let system = head.system.map(|text| (mode(head.overwrite), text));
                let hear = head.overheard.then(|| call::hear(slot.clone()));
                let summary = head.summarized.then(Arc::default);
                let model = head.model_fallback.map(Arc::from);
                let lenient = Leniency { model, max_tokens: head.lenient, names: pairs(head.names).collect() };
                request.extensions_mut().insert(Terms { system, hear, lenient, summary: summary.clone() });
                slot.feed_by(feed);
                let peer = Peer { loopback: head.loopback, keyless: head.loopback, trusted: head.trusted };
                call::run(slot.clone(), call::handle(slot, gateway, request, peer, summary, self.cut.clone()));
            }
            Err(error) => call::fail(&slot, &Error::new(Code::InvalidRequest, format!("request: {error}")), None),
        }
        Ok(())
    }

    /// No new calls from here on. Open streams may finish within `graceMs` (0: they are cut now), then each ends with
    /// `event: error`; then counters and tokens are written and connections closed. May be called again.
    #[napi(
        catch_unwind,
        ts_args_type = "options?: { /** @default gracefulTimeoutMs */ graceMs?: number }",
        ts_return_type = "Promise<void>"
    )]
    pub fn close(&self, bell: &Bell, call: u32, grace_ms: Option<f64>) -> Result<()> {
        let (gateway, slot) = self.begin(bell, call)?;
        let grace = grace_ms.map_or(gateway.config().graceful_timeout, millis);
        let cut = self.cut.clone();
        let ending = self.ending.clone();
        let close = async move {
            ending.send_replace(Some(grace));
            let unread = async {
                tokio::time::sleep(grace).await;
                cut.cancel();
                std::future::pending().await
            };
            tokio::select! {
                _ = gateway.close(grace) => {}
                () = unread => {}
            }
            // The servers end by the same time; the last of them drops the last receiver.
            ending.closed().await;
            gateway.notifier.settle(gateway.pool(), LAST_OUTCOMES).await;
            gateway.pool().flush(LAST_OUTCOMES).await;
            Ok(Bytes::new())
        };
        call::run(slot.clone(), call::once(slot, None, close));
        Ok(())
    }
}

impl KiroGateway {
    fn gateway(&self) -> Result<&LiveGateway> {
        // lib/ shows a gateway only when it is connected.
        self.connected.get().ok_or_else(|| JsError::from_reason("the gateway is not connected"))
    }

    fn begin(&self, bell: &Bell, call: u32) -> Result<(LiveGateway, Arc<OpenCall>)> {
        Ok((self.gateway()?.clone(), bell.bell.open(call)))
    }
}

fn mode(overwrite: bool) -> SystemMode {
    if overwrite { SystemMode::Overwrite } else { SystemMode::Append }
}

/// The object is gone in JavaScript: no outcome is answered any more (N54).
impl Drop for KiroGateway {
    fn drop(&mut self) {
        if let Some(connected) = self.connected.get() {
            connected.notifier.deafen(connected.pool());
        }
    }
}

impl NativeCallOptions {
    /// The id is chosen here, so that it is known when a call fails before it has a stream.
    fn into_call(self, gateway: &Gateway) -> Call {
        Call {
            request_id: Some(gateway.request_id(self.request_id)),
            session: self.session,
            gateway_session: self.gateway_session,
            client_key: self.client_key.as_deref().map(crate::gateway::client_key_hash),
            account_id: self.account_id,
            system: self.system.map(|text| (mode(self.overwrite), text)),
            record: self.record,
            lenient: Leniency { model: self.model_fallback.map(Arc::from), ..Leniency::default() },
            ..Call::default()
        }
    }
}

fn configure(options: Vec<String>, environment: Vec<String>) -> std::result::Result<Config, Error> {
    let mut raw = RawConfig::from_env(pairs(environment));
    for (name, value) in pairs(options) {
        raw.set_option(&name, &value)?;
    }
    Ok(raw.resolve(Face::Addon)?)
}

/// Names and values that came as one flat list.
fn pairs(flat: Vec<String>) -> impl Iterator<Item = (String, String)> {
    let mut flat = flat.into_iter();
    std::iter::from_fn(move || Some((flat.next()?, flat.next()?)))
}
