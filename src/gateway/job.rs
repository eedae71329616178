//! One request before it is sent: checked, read, translated. A job stays the same over all attempts.

use std::sync::{Arc, OnceLock, PoisonError};

use bytes::Bytes;

use super::call::Leniency;
use super::heavy::run_heavy;
use super::shared::Shared;
use super::summary::loggable_kinds;
use super::trace::Trace;
use super::translation::{Translation, Variation};
use crate::error::Error;
use crate::pool::AccountId;
use crate::proto::messages::request::{Ignored, Purpose, Request, RequestError, SystemMode};
use crate::proto::translate::edits::edit;
use crate::proto::translate::estimate::request_tokens;
use crate::proto::translate::fault::PromptSize;
use crate::proto::translate::fields::Asked;
use crate::proto::translate::ids::Ids;
use crate::proto::translate::model::{Fallback, Model, Models};
use crate::proto::translate::pictures::Pictures;
use crate::proto::translate::request::{Context, Replay, Translated, translate};

/// The parts of a request that stay the same over all attempts.
#[derive(Clone)]
pub(super) struct RequestJob {
    pub(super) shared: Arc<Shared>,
    /// The client's bytes, for the one case in which they are translated again (TR31).
    pub(super) client_body: Bytes,
    pub(super) system: Option<(SystemMode, String)>,
    /// The request with the thoughts of `meant`.
    pub(super) written: Translation,
    /// The account that the reasoning is written for (TR45).
    pub(super) meant: Option<AccountId>,
    pub(super) ids: Ids,
    /// The request has an assistant message: its conversation may be known elsewhere (R102).
    pub(super) has_history: bool,
    /// For the fields of each attempt (TR40).
    pub(super) asked: Asked,
    pub(super) model: Arc<Model>,
    /// The model as the client named it, or what a name of the host program's stands for (N98).
    pub(super) client_model: String,
    pub(super) request_id: String,
    pub(super) client_request_id: Option<String>,
    /// The name of the client's key.
    pub(super) key: Option<Arc<str>>,
    /// A pinned account (N5): no selection, no failover.
    pub(super) account_id: Option<String>,
    /// Upstream has refused the name, and the model is the fallback's (TR36).
    pub(super) is_fallback: bool,
    /// What the host program lets be absent.
    pub(super) lenient: Leniency,
    pub(super) facts: Facts,
    /// Features of the request without effect (M80).
    pub(super) ignored: Ignored,
    /// The request's span, once its stream is there.
    pub(super) trace: OnceLock<Trace>,
    pub(super) trace_parent: Option<String>,
    /// The estimate of the request in tokens, once it is known (TU7).
    pub(super) estimate: OnceLock<u64>,
}

/// The facts of a request that are kept after the commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) streaming: bool,
    pub(super) pinned: bool,
    pub(super) record: bool,
    pub(super) window: u64,
}

impl Facts {
    pub(super) fn prompt_size(self, estimate: u64) -> PromptSize {
        PromptSize { estimate, window: self.window }
    }
}

impl RequestJob {
    /// The error of a pinned request names its account.
    pub(super) fn named(&self, error: Error) -> Error {
        match &self.account_id {
            Some(id) => error.with_account(id),
            None => error,
        }
    }

    /// The same request for the fallback's model, once upstream has refused a name that passed (TR36). None without one.
    pub(super) fn fallback(&self) -> Option<Arc<Self>> {
        if !self.model.passed || self.shared.fallback(&self.lenient).is_none() {
            return None;
        }
        let reading = Reading { source: &self.client_body, lenient: &self.lenient, refused: true };
        let translated = run_heavy(self.client_body.len(), || {
            let request = self.read().ok()?;
            self.shared.translate(&request, &self.ids, self.meant.as_ref(), Variation::default(), None, reading).ok()
        })?;
        self.shared.tell_replaced(&self.client_model, &translated.model);
        Some(Arc::new(Self {
            written: Translation::of(&translated),
            asked: translated.asked,
            is_fallback: true,
            facts: Facts { window: translated.model.window, ..self.facts },
            model: translated.model,
            ..self.clone()
        }))
    }

    /// No account serves this name that the table doesn't hold: it is refused at once for a while (K89, TR36).
    pub(super) fn refuse_name(&self) {
        if self.model.passed && !self.facts.pinned {
            let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.refuse(&self.model.kiro_id, self.shared.pool.now());
        }
    }

    /// The names under which an account may lack the model (R7).
    pub(super) fn model_names(&self) -> [&str; 2] {
        [self.client_model.as_str(), self.model.names.first().map_or("", String::as_str)]
    }

    /// The estimate of the request in tokens. It is made while upstream thinks, or here when the answer comes first.
    pub(super) fn tokens(&self) -> u64 {
        *self.estimate.get_or_init(|| {
            run_heavy(self.client_body.len(), || {
                let Ok(request) = self.read() else { return 0 };
                request_tokens(&request)
            })
        })
    }

    /// The request, with the operator's system text.
    pub(super) fn read(&self) -> Result<Request<'_>, RequestError> {
        self.shared.read_request(&self.client_body, self.system.as_ref(), &self.lenient)
    }

    /// The Kiro request in a variation, with the thoughts of this account.
    pub(super) fn write(
        &self,
        variation: Variation,
        pictures: Option<&Pictures>,
        account: Option<&AccountId>,
    ) -> Result<Translation, Error> {
        run_heavy(self.client_body.len(), || {
            let request = self.read()?;
            let shared = &self.shared;
            let reading = Reading { source: &self.client_body, lenient: &self.lenient, refused: self.is_fallback };
            let translated = shared.translate(&request, &self.ids, account, variation, pictures, reading)?;
            Ok(Translation::of(&translated))
        })
    }
}

/// What a request was read from, and how its model name is to be understood.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The bytes that the request borrows from.
    pub(super) source: &'a Bytes,
    pub(super) lenient: &'a Leniency,
    /// Upstream has refused the name (TR36).
    pub(super) refused: bool,
}

impl Shared {
    /// A client's request, with the operator's system text in it (N13) and its own edits performed (TR55).
    pub(super) fn read_request<'a>(
        &self,
        body: &'a [u8],
        system: Option<&(SystemMode, String)>,
        lenient: &Leniency,
    ) -> Result<Request<'a>, RequestError> {
        let mut request = self.parse(body, lenient, lenient.purpose())?;
        if let Some((mode, text)) = system {
            request.apply_system(*mode, text);
        }
        edit(&mut request);
        Ok(request)
    }

    /// A client's request, without the features that are off. A name of the host program's is its model from here on (N98).
    pub(super) fn parse<'a>(
        &self,
        body: &'a [u8],
        lenient: &Leniency,
        purpose: Purpose,
    ) -> Result<Request<'a>, RequestError> {
        let mut request = Request::parse(body, purpose)?;
        if let Some(model) = lenient.meant(request.model()) {
            request.set_model(model.to_owned());
        }
        if !self.config.web_search {
            request.without_search()?;
        }
        Ok(request)
    }

    /// The model for unknown names: the host program's, else `KIRO_MODEL_FALLBACK` for `claude…` names.
    pub(super) fn fallback<'a>(&'a self, lenient: &'a Leniency) -> Option<Fallback<'a>> {
        let hosts = lenient.model.as_deref().map(|name| Fallback { name, for_any: true });
        hosts.or_else(|| Some(Fallback { name: self.config.model_fallback.as_deref()?, for_any: false }))
    }

    /// The model table for a name. `refused`: upstream has refused it (TR36).
    pub(super) fn models_for(&self, name: &str, refused: bool) -> Arc<Models> {
        let models = self.models.load_full();
        match refused || self.is_refused_name(&models, name) {
            true => Arc::new(models.refusing_unknown()),
            false => models,
        }
    }

    /// Translates with the current settings and model table.
    pub(super) fn translate(
        &self,
        request: &Request<'_>,
        ids: &Ids,
        account: Option<&AccountId>,
        variation: Variation,
        pictures: Option<&Pictures>,
        reading: Reading<'_>,
    ) -> Result<Translated, Error> {
        let models = self.models_for(request.model(), reading.refused);
        let context = Context {
            models: &models,
            fallback: self.fallback(reading.lenient),
            system_text: self.config.system_text,
            cache_points: self.config.cache_points,
            cache_limit: variation.cache_points,
            ids,
            replay: Replay::Nothing,
            source: Some(reading.source),
            leave_out: variation.leave_out,
            pictures: pictures.map(|pictures| (pictures, variation.pictures)),
            other_model_id: variation.other_model_id,
        };
        let mut translated = self
            .conversations
            .with_replay(&ids.key, account, |replay| translate(request, &Context { replay, ..context }))?;
        if reading.lenient.max_tokens {
            translated.asked.max_tokens.get_or_insert(translated.model.max_output);
        }
        if !self.config.forward_max_tokens {
            translated.asked.max_tokens = None;
        }
        Ok(translated)
    }
}

/// Logs what of a request isn't served.
pub(super) fn tell_unserved(request_id: &str, translated: &Translated) {
    if !translated.dropped_server_tools.is_empty() {
        let tools = loggable_kinds(&translated.dropped_server_tools);
        tracing::warn!(tools, "tools that can't be served through Kiro were dropped (M73)");
    }
    if let Some(ignored) = translated.ignored.header() {
        tracing::debug!(request_id, ignored, "accepted without effect (M80)");
    }
}
