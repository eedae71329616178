//! An account's usage (K62) and models (K124), asked for with the profile that upstream takes (K80).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::policy::learned::{Lesson, Variant};
use crate::pool::{AccountView, Lease};
use crate::proto::address::percent_encoded;
use crate::proto::kiro::catalogue::Catalogue;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::route::{Operation, Shape};
use crate::proto::kiro::usage::Usage;
use crate::proto::record::Token;

use super::Credentials;
use super::LookUp;
use super::calls::{ASK_WITHIN, is_of_the_shape};

/// Calls for one answer.
const MOST_CALLS: usize = 4;

impl Credentials {
    /// The account's usage (K62): the JSON of getUsageLimits, as it came.
    ///
    /// It asks with the profile that worked last; else with the account's own, without one, with Kiro's fixed one; and
    /// in another region when the account has no profile. Before it gives up it looks up the profiles (K80).
    ///
    /// # Errors
    /// Upstream's fault, classified (K45); the caller decides whether it counts on the account.
    pub async fn usage_limits(&self, lease: &Lease) -> Result<Bytes, Fault> {
        let bearer = self.access_token(lease).await?;
        let id = lease.account().id();
        let mut view = self.0.pool.account(id).unwrap_or_else(|| lease.account().clone());
        let mut forms = forms(lease, &view, Operation::Usage);
        let mut elsewhere = None::<String>;
        let (mut looked_up, mut moved, mut calls) = (false, false, 0);
        let mut last = Fault::protocol("usage: no form to ask in");
        while calls < MOST_CALLS
            && let Some(form) = forms.pop_front()
        {
            calls += 1;
            let region = elsewhere.take().unwrap_or_else(|| view.api_region(&form).to_owned());
            let arn = form.arn();
            let request = |client: &reqwest::Client, _: Shape, url: &str| usage_request(client, url, arn);
            match self.0.ask_somehow(&mut view, &bearer, Operation::Usage, &region, &request).await {
                Ok(answer) => {
                    // The caller parses it. The error of a broken text would quote it (N41).
                    serde_json::from_slice::<serde::de::IgnoredAny>(&answer)
                        .map_err(|_| Fault::protocol("usage: not JSON"))?;
                    lease.learn(Lesson::FormWorked(Operation::Usage, form));
                    if let Some(usage) = Usage::parse(&answer) {
                        lease.learn(Lesson::Usage(usage));
                    }
                    return Ok(answer);
                }
                Err(fault) if !is_about_the_form(&fault) => return Err(fault),
                Err(fault) => last = fault,
            }
            if form != Variant::None {
                continue;
            }
            if view.kind().has_profiles() && !std::mem::replace(&mut looked_up, true) {
                let found = self.look_up(id).await == LookUp::Found;
                view = self.0.pool.account(id).unwrap_or(view);
                if found {
                    forms.extend(view.forms().into_iter().filter(|form| *form != Variant::None));
                    continue;
                }
            }
            let knows_none = !view.variants().iter().any(|known| matches!(known, Variant::Own(_) | Variant::Listed(_)));
            if last.status == Some(403) && knows_none && !std::mem::replace(&mut moved, true) {
                let here =
                    view.url(view.shapes(&region).first().copied().unwrap_or(Shape::Q), Operation::Usage, &region);
                let next = view.profile_regions().into_iter().find(|next| {
                    let shape = view.shapes(next).first().copied().unwrap_or(Shape::Q);
                    view.url(shape, Operation::Usage, next) != here
                });
                if let Some(next) = next {
                    elsewhere = Some(next.to_owned());
                    forms.push_front(Variant::None);
                }
            }
        }
        Err(last)
    }
}

impl Credentials {
    /// The usage of a login that is in no store yet; none when Kiro gives no answer. Nothing of it is kept.
    pub async fn usage_of(&self, token: &Token) -> Option<Bytes> {
        let mut view = self.0.pool.preview(token);
        let bearer = token.access_token.clone()?;
        for form in view.forms() {
            let region = view.api_region(&form).to_owned();
            let arn = form.arn().map(str::to_owned);
            let request = |client: &reqwest::Client, _: Shape, url: &str| usage_request(client, url, arn.as_deref());
            match self.0.ask_somehow(&mut view, &bearer, Operation::Usage, &region, &request).await {
                Ok(answer) => return Some(answer),
                Err(fault) if is_about_the_form(&fault) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Every model of the account that upstream lists (K124): at most 10 pages within 20 s, asked for with the profile
    /// that worked last, else as for the usage (K80).
    ///
    /// # Errors
    /// Upstream's fault, classified (K45). It says nothing about the account's health, unless it is `Suspended`.
    pub async fn list_models(&self, lease: &Lease) -> Result<Catalogue, Fault> {
        let bearer = self.access_token(lease).await?;
        let view = self.0.pool.account(lease.account().id()).unwrap_or_else(|| lease.account().clone());
        let all = async {
            let mut last = Fault::protocol("models: no form to ask in");
            for form in forms(lease, &view, Operation::Models).into_iter().take(MOST_CALLS) {
                let mut answer = Err(Fault::unreachable("no shape to ask in"));
                for shape in view.shapes(view.api_region(&form)) {
                    answer = self.0.ask_models(&view, &bearer, *shape, &form).await;
                    if !answer.as_ref().is_err_and(is_of_the_shape) {
                        break;
                    }
                }
                match answer {
                    Ok(catalogue) => {
                        lease.learn(Lesson::FormWorked(Operation::Models, form));
                        return Ok(catalogue);
                    }
                    Err(fault) if is_about_the_form(&fault) => last = fault,
                    Err(fault) => return Err(fault),
                }
            }
            Err(last)
        };
        tokio::time::timeout(ASK_WITHIN, all).await.unwrap_or_else(|_| Err(Fault::timeout("no answer within 20 s")))
    }
}

fn usage_request(client: &reqwest::Client, url: &str, arn: Option<&str>) -> reqwest::RequestBuilder {
    let query = "isEmailRequired=true&origin=AI_EDITOR&resourceType=AGENTIC_REQUEST";
    let profile = arn.map(|arn| format!("&profileArn={}", percent_encoded(arn))).unwrap_or_default();
    client.get(format!("{url}?{query}{profile}"))
}

/// The account's forms (K80), the one that worked last in front.
fn forms(lease: &Lease, view: &AccountView, call: Operation) -> VecDeque<Variant> {
    let mut forms = VecDeque::from(view.forms());
    if let Some(worked) = lease.learned(|learned, _| learned.form(call).cloned())
        && let Some(place) = forms.iter().position(|form| form.arn() == worked.arn())
        && let Some(form) = forms.remove(place)
    {
        forms.push_front(form);
    }
    forms
}

/// Whether another form may get an answer (K80): the text is about the ARN or says nothing, or a 403 may mean the ARN.
fn is_about_the_form(fault: &Fault) -> bool {
    match fault.kind {
        FaultKind::ProfileArn | FaultKind::Forbidden => true,
        FaultKind::BadRequest => fault.message.to_ascii_lowercase().contains("improperly formed request"),
        _ => false,
    }
}
