//! Attempts on one account: the form of the request that it gets, and the lessons of its refusals and answers (K77,
//! K78, K115–K119, K128–K131).

use std::sync::{Arc, PoisonError};

use super::job::RequestJob;
use super::shapes::{UsableShape, options};
use super::translation::{Translation, Variation};
use crate::config::ImageFit;
use crate::policy::learned::{Learned, Lesson, Variant};
use crate::policy::marks::Way;
use crate::policy::retry::{Remedy, Sent};
use crate::pool::Lease;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::request::Form;
use crate::proto::kiro::route::Shape;
use crate::proto::translate::fields::{Abilities, RefusedFields, model_fields};
use crate::proto::translate::pictures::{PictureForm, Pictures};
use crate::proto::translate::request::{LeaveOut, MAX_CACHE_POINTS};
use crate::upstream::host_of;

/// Variants of the profile that one request tries on an account (K78).
const MOST_VARIANTS: u32 = 4;

/// The state of this request on its present account.
#[derive(Debug, Default)]
pub(super) struct AccountAttempts {
    /// Shapes that were used for it.
    shapes: Vec<Shape>,
    /// Repairs made since the last accepted attempt; the next accepted one makes them permanent.
    repairs: Vec<Remedy>,
    /// ListAvailableProfiles was asked for this request.
    pub(super) profiles_asked: bool,
    /// Variants of the profile that were refused.
    variants_refused: u32,
    /// The last attempt's choice.
    chosen: Option<Arc<Chosen>>,
}

/// The choices of one attempt.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) shape: Shape,
    pub(super) region: String,
    pub(super) url: Arc<str>,
    pub(super) variation: Variation,
    variant: Variant,
    variant_proven: bool,
    small: bool,
    fields: Option<String>,
    refused_fields: RefusedFields,
    /// The window that the percentage of context refers to on this account, in tokens (K126).
    pub(super) usage_window: u64,
    /// `max_tokens`, where upstream doesn't keep it (M83).
    pub(super) kept_max_tokens: Option<u64>,
}

impl Chosen {
    /// How the body is put together.
    pub(super) fn form(&self) -> Form<'_> {
        Form {
            shape: self.shape,
            small: self.small,
            model_fields: self.fields.as_deref(),
            profile_arn: self.variant.arn(),
        }
    }

    /// Its way, as the marks know it.
    pub(super) fn way(&self) -> Way<'_> {
        Way { shape: self.shape, host: host_of(&self.url), region: &self.region }
    }
}

/// The account has no variant of the profile left to send.
#[derive(Debug)]
pub(super) struct NoProfile;

impl AccountAttempts {
    /// The last attempt's choice; none before the first attempt.
    pub(super) fn chosen(&self) -> Option<&Chosen> {
        self.chosen.as_deref()
    }

    /// Chooses for the next attempt. `leave_out` is what the request leaves out for every account.
    pub(super) fn choose(
        &mut self,
        job: &RequestJob,
        lease: &Lease,
        leave_out: LeaveOut,
    ) -> Result<Arc<Chosen>, NoProfile> {
        let options = options(lease);
        let now = job.shared.pool.now();
        // An account keeps its shape until the remedy is another shape.
        let forced = match (self.repairs.contains(&Remedy::OtherShape), self.shapes.last()) {
            (true, _) => options.iter().position(|option| !self.shapes.contains(&option.shape)),
            (false, Some(last)) => options.iter().position(|option| option.shape == *last),
            (false, None) => None,
        };
        let ways: Vec<Way<'_>> = options
            .iter()
            .map(|option| Way { shape: option.shape, host: host_of(&option.url), region: option.region })
            .collect();
        let refused = |shape| options.iter().any(|option| option.shape == shape && option.refused);
        let place = forced.or_else(|| job.shared.upstream.choose(&ways, refused, now)).ok_or(NoProfile)?;
        let Some(option) = options.into_iter().nth(place) else { return Err(NoProfile) };
        let UsableShape { shape, region, url, variant, .. } = option;
        self.repairs.retain(|remedy| *remedy != Remedy::OtherShape);
        if !self.shapes.contains(&shape) {
            self.shapes.push(shape);
        }
        let id = &job.model.kiro_id;
        let repaired = |remedy| self.repairs.contains(&remedy);
        let smaller = self.repairs.iter().filter(|remedy| **remedy == Remedy::SmallerPictures).count();
        let chosen = lease.learned(|learned, now| {
            let refused_fields = learned.refused_fields(shape, id, now);
            let no_fields =
                shape == Shape::Runtime && (repaired(Remedy::WithoutFields) || learned.no_fields_on_runtime(id, now));
            let listed = learned.listed_model(id, job.model.alt.as_deref(), now);
            let abilities = Abilities::of(&job.model, listed, refused_fields);
            Chosen {
                shape,
                region: region.to_owned(),
                url: url.clone(),
                variation: Variation {
                    leave_out: LeaveOut {
                        // A thought without text was refused: this attempt goes without any thoughts (TR31).
                        reasoning: leave_out.reasoning || repaired(Remedy::WithoutEmptyThoughts),
                        empty_thoughts: leave_out.empty_thoughts || learned.no_empty_thoughts(id, now),
                        schema_keywords: repaired(Remedy::BareSchemas) || learned.bare_schemas(id, now),
                    },
                    cache_points: match repaired(Remedy::WithoutCachePoints) || learned.no_cache_points(id, now) {
                        true => 0,
                        false => abilities.cache_points.min(MAX_CACHE_POINTS),
                    },
                    other_model_id: repaired(Remedy::OtherModelId) != learned.uses_other_model_id(id),
                    pictures: {
                        let fits = match job.shared.config.image_fit {
                            ImageFit::Always => true,
                            ImageFit::Auto => learned.smaller_pictures(shape, now),
                            ImageFit::Off => false,
                        };
                        let first = if fits { PictureForm::Fitted } else { PictureForm::AsTheyAre };
                        (0..smaller).fold(first, |form, _| form.next())
                    },
                },
                variant_proven: learned.is_proven(shape, variant),
                variant: variant.clone(),
                small: shape == Shape::Runtime && (repaired(Remedy::SmallForm) || learned.uses_small_form(now)),
                fields: model_fields(&job.asked, &abilities).filter(|_| !no_fields),
                refused_fields,
                usage_window: abilities.usage_window,
                kept_max_tokens: job.asked.max_tokens.filter(|tokens| no_fields || !abilities.keeps(*tokens)),
            }
        });
        let chosen = Arc::new(chosen);
        self.chosen = Some(chosen.clone());
        Ok(chosen)
    }

    /// Whether a usable shape is left.
    pub(super) fn has_way(&self, lease: &Lease) -> bool {
        !options(lease).is_empty()
    }

    /// The facts of the last attempt, and the alternatives to it, for the verdict.
    pub(super) fn sent(
        &self,
        job: &RequestJob,
        lease: &Lease,
        written: &Translation,
        pictures: Option<&Pictures>,
    ) -> Sent {
        let view = lease.account();
        let Some(chosen) = &self.chosen else {
            return Sent { refreshable: !view.is_api_key(), ..Sent::PLAIN };
        };
        let variants = view.variants();
        let other_variant =
            lease.learned(|learned, now| learned.has_other_variant(chosen.shape, variants, &chosen.variant, now));
        Sent {
            shape: chosen.shape,
            refreshable: !view.is_api_key(),
            reasoning: written.reasoning,
            empty_thoughts: written.empty_thoughts,
            fields: chosen.fields.is_some(),
            cache_points: written.cache_points > 0,
            schema_keywords: written.schema_keywords,
            // Whether one is large isn't known before a refusal.
            pictures: job.shared.config.image_fit != ImageFit::Off
                && pictures.map_or(!job.written.images.is_empty(), |large| large.has_more(chosen.variation.pictures)),
            small: chosen.small,
            variant_proven: chosen.variant_proven,
            variant_left: self.variants_refused + 1 < MOST_VARIANTS && (other_variant || self.may_ask_profiles(lease)),
            host_left: view.has_other_host(chosen.shape, &chosen.region),
            shape_left: options(lease).iter().any(|option| !self.shapes.contains(&option.shape)),
            model_id_left: job.model.alt.is_some() && !self.repairs.contains(&Remedy::OtherModelId),
            committed: false,
        }
    }

    /// Whether ListAvailableProfiles could bring another variant.
    pub(super) fn may_ask_profiles(&self, lease: &Lease) -> bool {
        !self.profiles_asked
            && lease.account().kind().has_profiles()
            && lease.learned(|learned, now| learned.may_ask_profiles(now))
    }

    /// The next attempt on this account changes something: notes it, and learns from the refusal.
    pub(super) fn remedy(&mut self, job: &RequestJob, lease: &Lease, remedy: Remedy, fault: &Fault) {
        let Some(chosen) = &self.chosen else { return };
        let id: Arc<str> = job.model.kiro_id.as_str().into();
        let shape = chosen.shape;
        match remedy {
            Remedy::OtherShape => {
                // The call itself marks the host (K119).
                let for_a_day = fault.kind == FaultKind::Forbidden;
                if for_a_day || matches!(fault.kind, FaultKind::ProfileArn | FaultKind::BadRequest) {
                    lease.learn(Lesson::ShapeRefused { shape, for_a_day });
                }
                self.repairs.push(remedy);
            }
            Remedy::NextVariant => {
                self.variants_refused += 1;
                let by_400 = fault.kind == FaultKind::ProfileArn;
                lease.learn(Lesson::VariantRefused { shape, variant: chosen.variant.clone(), by_400 });
            }
            Remedy::OtherFields => {
                let sent = chosen.fields.as_deref().unwrap_or_default();
                let again = self.repairs.contains(&Remedy::OtherFields);
                let (refused, member) = chosen.refused_fields.learn(&fault.message, sent, again);
                lease.learn(Lesson::FieldsRefused { shape, kiro_id: id, refused });
                job.shared.metrics.count_fields_refused(&job.model.kiro_id, member.as_str());
                tracing::warn!(
                    account = lease.account().short_id(),
                    model = job.model.kiro_id,
                    member = member.as_str(),
                    shape = shape.as_str(),
                    "upstream refuses a field of this model: left out or changed for an hour"
                );
                self.repairs.push(remedy);
            }
            Remedy::SmallForm
            | Remedy::WithoutFields
            | Remedy::WithoutCachePoints
            | Remedy::WithoutEmptyThoughts
            | Remedy::BareSchemas
            | Remedy::OtherModelId => self.repairs.push(remedy),
            Remedy::OtherHost => lease.learn(Lesson::FipsHost),
            // The last one only when a picture is large: [`Self::makes_pictures_smaller`].
            Remedy::RefreshToken | Remedy::WithoutReasoning | Remedy::SmallerPictures => {}
        }
    }

    /// The next attempt has smaller pictures. Returns false when none is left to make smaller or leave out.
    pub(super) fn makes_pictures_smaller(&mut self, pictures: Option<&Pictures>) -> bool {
        let form = self.chosen.as_ref().map(|chosen| chosen.variation.pictures).unwrap_or_default();
        let may = pictures.is_some_and(|pictures| pictures.has_more(form));
        if may {
            self.repairs.push(Remedy::SmallerPictures);
        }
        may
    }

    /// An event stream began: remembers that the account takes this form of the request.
    pub(super) fn passed(&mut self, job: &RequestJob, lease: &Lease) {
        let Some(chosen) = &self.chosen else { return };
        let id: Arc<str> = job.model.kiro_id.as_str().into();
        if !chosen.variant_proven {
            lease.learn(Lesson::VariantProven(chosen.shape, chosen.variant.clone()));
        }
        for repair in self.repairs.drain(..) {
            let lesson = match repair {
                Remedy::SmallForm => Lesson::SmallForm,
                Remedy::WithoutFields => Lesson::NoFieldsOnRuntime(id.clone()),
                Remedy::WithoutCachePoints => Lesson::NoCachePoints(id.clone()),
                Remedy::WithoutEmptyThoughts => Lesson::NoEmptyThoughts(id.clone()),
                Remedy::BareSchemas => Lesson::BareSchemas(id.clone()),
                Remedy::SmallerPictures => Lesson::SmallerPictures(chosen.shape),
                Remedy::OtherModelId => Lesson::ModelId { kiro_id: id.clone(), other: chosen.variation.other_model_id },
                _ => continue,
            };
            lease.learn(lesson);
        }
        lease.learn(Lesson::ModelServed(id));
        if job.model.passed {
            job.shared.names.lock().unwrap_or_else(PoisonError::into_inner).serves(&job.model.kiro_id);
        }
    }

    /// This request gives the account up: learns from the last refusal. Returns the fault that counts, a different one
    /// when the account lacks a profile (K78).
    pub(super) fn given_up(&self, job: &RequestJob, lease: &Lease, mut fault: Fault) -> Fault {
        let Some(chosen) = &self.chosen else { return fault };
        let refuse = |by_400| Lesson::VariantRefused { shape: chosen.shape, variant: chosen.variant.clone(), by_400 };
        match fault.kind {
            FaultKind::UnknownModel if !lease.is_pinned() => {
                lease.learn(Lesson::ModelRefused(job.model.kiro_id.as_str().into()));
            }
            FaultKind::ProfileArn => {
                lease.learn(refuse(true));
                lease.learn(Lesson::NoProfile { asked: true });
            }
            FaultKind::Forbidden if fault.says("not authorized to make this call") && !chosen.variant_proven => {
                if lease.learned(Learned::was_refused_by_400) {
                    fault.kind = FaultKind::ProfileArn;
                    lease.learn(Lesson::NoProfile { asked: true });
                } else if lease.account().kind().has_profiles()
                    && lease.learned(|learned, _| learned.is_profile_unknown())
                {
                    // Its profile is unknown, so a missing profile explains the refusal.
                    fault.kind = FaultKind::ProfileArn;
                    lease.learn(Lesson::NoProfile { asked: false });
                } else {
                    lease.learn(Lesson::VariantsForgotten);
                    tracing::warn!(
                        account = lease.account().short_id(),
                        "upstream refuses the account with every profile it has: its profile, its rights or \
                         KIRO_CLIENT_VERSION"
                    );
                }
            }
            _ => {}
        }
        fault
    }
}
