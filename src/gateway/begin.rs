//! The beginning of a request: from its body to the stream of its answer.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::time::Instant;

use super::attempt::Attempts;
use super::call::Call;
use super::job::{Facts, Reading, RequestJob, tell_unserved};
use super::open_streams::Permit;
use super::outside::random_id;
use super::rounds::Rounds;
use super::shared::Gateway;
use super::stream::MessageStream;
use super::structured::check_of;
use super::summary::RefusedRequest;
use super::translation::{Translation, Variation};
use super::witness::AttemptLog;
use crate::error::{Code, Error};
use crate::proto::messages::request::{Display, Request};
use crate::proto::pipeline::{Extras, Mode, Pipeline, Settings, StopSequences};
use crate::proto::translate::model::Model;

impl Gateway {
    /// Checks and translates a request, and makes its stream; no account is asked yet.
    pub(super) fn begin<'b>(
        &self,
        body: &'b Bytes,
        call: Call,
        streaming: Option<bool>,
        request_id: String,
        arrived: Instant,
    ) -> Result<(Box<MessageStream>, Arc<RequestJob>, Request<'b>), RefusedRequest> {
        self.open()?;
        let shared = &self.shared;
        self.fits(body)?;
        let request = shared.read_request(body, call.system.as_ref(), &call.lenient)?;
        let client_model = request.model().to_owned();
        let refuse = |error: Error, model: Option<&Model>| RefusedRequest {
            error,
            client_model: Some(client_model.clone()),
            known_model: model.map(|model| model.label().to_owned()),
        };
        let streaming = streaming.unwrap_or_else(|| request.stream());
        let ids = shared.conversations.ids(&request, &call);
        let meant = shared.conversations.meant(&request, &ids, call.account_id.as_deref());
        let reading = Reading { source: body, lenient: &call.lenient, refused: false };
        let translated = shared.translate(&request, &ids, meant.as_ref(), Variation::default(), None, reading);
        let translated = translated.map_err(|error| refuse(error, None))?;
        tell_unserved(&request_id, &translated);
        shared.tell_passing(&translated.model);
        if call.lenient.model.is_some() && !shared.is_known_name(&client_model) {
            shared.tell_replaced(&client_model, &translated.model);
        }
        let Some(permit) = Permit::take(&shared.in_flight, shared.config.max_conns, call.key_place.clone()) else {
            let error = Error::new(Code::Overloaded, "too many requests in flight (KIRO_MAX_CONNS)");
            return Err(refuse(error, Some(&translated.model)));
        };
        let written = Translation::of(&translated);
        let search = request.search().cloned().map(Arc::new);
        let structured = check_of(&request)?;
        let has_rounds = search.is_some() || structured.is_some();
        let pipeline = Pipeline::new(Settings {
            message_id: random_id("msg_"),
            request_id: request_id.clone(),
            model: client_model.clone(),
            thinking: translated.thinking,
            drop_thinking_text: request.display == Some(Display::Omitted),
            tool_names: translated.tool_names,
            window: translated.model.window,
            usage_window: shared.ends.usage_window(&translated.model.kiro_id, translated.model.usage_window()),
            usage_split: shared.config.usage_split,
            input_estimate: 0,
            mode: if streaming { Mode::Stream } else { Mode::Fold },
            extras: Extras {
                search: search.is_some(),
                structured,
                stop_sequences: StopSequences::new(request.stop_sequences()),
                context_management: request.applied_edits().map(str::to_owned),
                ..Extras::default()
            },
        });
        let pinned = call.account_id.is_some();
        let job = Arc::new(RequestJob {
            shared: shared.clone(),
            client_body: body.clone(),
            system: call.system.clone(),
            written,
            meant,
            ids,
            has_history: request.has_history(),
            asked: translated.asked,
            client_model,
            request_id,
            client_request_id: call.client_request_id,
            key: call.key_place.as_ref().map(|place| place.name().clone()),
            facts: Facts { streaming, pinned, record: call.record, window: translated.model.window },
            model: translated.model,
            ignored: translated.ignored,
            account_id: call.account_id,
            is_fallback: false,
            lenient: call.lenient,
            estimate: OnceLock::new(),
            trace: OnceLock::new(),
            trace_parent: call.trace_parent,
        });
        let log = AttemptLog::new(shared.dumps.as_ref().map(|dumps| dumps.record(body)));
        let attempts = Attempts::new(&shared.config, pinned, fastrand::Rng::new(), log);
        let rounds = has_rounds.then(|| Box::new(Rounds::new(job.clone(), search)));
        let stream = MessageStream::new(shared.clone(), pipeline, job.clone(), attempts, rounds, permit, arrived);
        Ok((stream, job, request))
    }

    /// Checks the size of a whole body (M11).
    pub(super) fn fits(&self, body: &[u8]) -> Result<(), Error> {
        let limit = self.shared.config.max_request_body;
        if body.len() <= limit {
            return Ok(());
        }
        Err(Error::new(Code::RequestTooLarge, format!("request body is over {limit} bytes")))
    }
}
