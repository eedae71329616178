//! The lessons of one account's answers, in this process (R72): one bounded structure, written by [`Learned::learn`]
//! after a call and read before the next one. It is never written to a record.
//!
//! It is forgotten when the identity of the account changes in its records ([`Learned::belongs_to`]), and kept over
//! token refreshes and snapshots.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::proto::kiro::catalogue::{Catalogue, Listed};
use crate::proto::kiro::profile::KindEvidence;
use crate::proto::kiro::route::{Operation, Shape};
use crate::proto::kiro::usage::Usage;
use crate::proto::translate::fields::RefusedFields;

/// How long a refused variant of the profile is not sent again (K78).
const VARIANT_REFUSED: SignedDuration = SignedDuration::from_secs(600);
/// How long an account without a profile is left out (K78).
const NO_PROFILE: SignedDuration = SignedDuration::from_secs(600);
/// The same when the look-up gave no answer (K78).
const NO_PROFILE_UNKNOWN: SignedDuration = SignedDuration::from_secs(60);
/// How long an account that can't search the web isn't asked to (K135).
const NO_SEARCH: SignedDuration = SignedDuration::from_secs(600);
/// A refusal "Does not support this application", the need of the small form, and of smaller pictures (K116, K119, TR67).
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Every other lesson about a shape or a model (K88, K119, K129, K131, TR44, TR64).
const HOUR: SignedDuration = SignedDuration::from_hours(1);
/// When ListAvailableProfiles is asked again: after an answer, and after none (K79).
const PROFILES_ANSWERED: SignedDuration = SignedDuration::from_secs(600);
const PROFILES_UNANSWERED: SignedDuration = SignedDuration::from_secs(60);
/// Listed profiles that are sent, each once (K77).
pub const MOST_LISTED: usize = 4;
/// Most variants of the profile: own, service, none and four listed ones, in two shapes.
const MOST_VARIANTS: usize = 14;
/// Most models that are remembered; the one with the oldest news goes (K88).
const MOST_MODELS: usize = 64;

/// The value of `profileArn` (K77).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The ARN of the account's records.
    Own(Arc<str>),
    /// One that ListAvailableProfiles named and that isn't in the record yet.
    Listed(Arc<str>),
    /// Kiro's fixed ARN of the account's kind.
    Service(Arc<str>),
    /// The member is left out.
    None,
}

impl Variant {
    /// The ARN that is sent.
    pub fn arn(&self) -> Option<&str> {
        match self {
            Self::Own(arn) | Self::Listed(arn) | Self::Service(arn) => Some(arn),
            Self::None => None,
        }
    }

    /// The word in lists, logs and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Own(_) => "own",
            Self::Listed(_) => "listed",
            Self::Service(_) => "service",
            Self::None => "none",
        }
    }
}

/// An account's quota as Kiro named it last (K146), in credits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Credits {
    /// Used so far.
    pub used: f64,
    /// None: Kiro names none.
    pub limit: Option<f64>,
    /// When the quota starts again.
    pub resets_at: Option<Timestamp>,
    /// When Kiro said so.
    pub asked_at: Timestamp,
}

impl Credits {
    /// What is left, never below 0; none without a limit.
    pub fn left(&self) -> Option<f64> {
        self.limit.map(|limit| (limit - self.used).max(0.0))
    }
}

/// The lesson of one call.
#[derive(Debug, Clone, PartialEq)]
pub enum Lesson {
    /// Upstream began an event stream with this variant.
    VariantProven(Shape, Variant),
    /// Upstream refused this variant; `by_400`: by a text about the ARN, and not by a 403 that may mean other things.
    VariantRefused {
        /// Where.
        shape: Shape,
        /// What was sent.
        variant: Variant,
        /// The refusal named the ARN.
        by_400: bool,
    },
    /// Every variant was refused by a 403: cool-downs take over (K78).
    VariantsForgotten,
    /// The account has no profile.
    NoProfile {
        /// ListAvailableProfiles said so; else it gave no answer.
        asked: bool,
    },
    /// Upstream doesn't serve this account in this shape, for a day (its kind of sign-in) or an hour (its body, its
    /// ARN).
    ShapeRefused {
        /// Where.
        shape: Shape,
        /// For 24 h.
        for_a_day: bool,
    },
    /// The runtime shape passed without the members of K116.
    SmallForm,
    /// A model was refused (K88).
    ModelRefused(Arc<str>),
    /// ListAvailableProfiles named these, the one to try first in front; none: the account has no profile (K79).
    Profiles(Vec<Arc<str>>),
    /// ListAvailableProfiles doesn't answer Builder IDs: the account is one (K73).
    IsBuilderId,
    /// ListAvailableProfiles gave no answer; upstream's `retry-after`, where it named one.
    ProfilesUnanswered(Option<SignedDuration>),
    /// Usage or models were answered with this variant (K80). It says nothing about conversations.
    FormWorked(Operation, Variant),
    /// Kiro named the account's usage (K63, K146).
    Usage(Usage),
    /// A refresh was granted in this region, which isn't the one of the records (K76).
    RefreshRegion(Arc<str>),
    /// GovCloud's first host name can't be resolved: the other one is used (K81).
    FipsHost,
    /// An answer of this model began.
    ModelServed(Arc<str>),
    /// The model answers to this one of its row's two ids (K123).
    ModelId {
        /// Of which model.
        kiro_id: Arc<str>,
        /// To the other one.
        other: bool,
    },
    /// Upstream named what it refuses of `additionalModelRequestFields` (K129).
    FieldsRefused {
        /// Where.
        shape: Shape,
        /// Of which model.
        kiro_id: Arc<str>,
        /// All that is known to be refused.
        refused: RefusedFields,
    },
    /// The runtime shape passed without `additionalModelRequestFields` that it refused without a word (K116).
    NoFieldsOnRuntime(Arc<str>),
    /// The account's catalogue was read (K125).
    Catalogue(Arc<Catalogue>),
    /// The account can't search the web (K135).
    NoSearch,
    /// A body passed without its cache points (K131).
    NoCachePoints(Arc<str>),
    /// A body passed without signed thoughts that have no text (TR44).
    NoEmptyThoughts(Arc<str>),
    /// A body passed with bare schemas of tools (TR64).
    BareSchemas(Arc<str>),
    /// A body passed in this shape with its pictures made smaller (TR67).
    SmallerPictures(Shape),
}

/// The lessons about a model on an account.
#[derive(Debug, Clone)]
struct ModelMarks {
    kiro_id: Arc<str>,
    seen: Timestamp,
    refused_until: Option<Timestamp>,
    served: Option<Timestamp>,
    other_id: bool,
    fields_refused: Vec<(Shape, RefusedFields, Timestamp)>,
    no_fields_until: Option<Timestamp>,
    no_cache_points_until: Option<Timestamp>,
    no_empty_thoughts_until: Option<Timestamp>,
    bare_schemas_until: Option<Timestamp>,
}

#[derive(Debug, Clone)]
struct VariantMark {
    shape: Shape,
    variant: Variant,
    /// None: proven.
    refused_until: Option<Timestamp>,
    by_400: bool,
}

/// The lessons about one account.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    /// Identifies the records that it was learned with.
    key: u64,
    // Bound: per account: variants of the profile that were tried | MOST_VARIANTS | the oldest goes
    variants: Vec<VariantMark>,
    no_profile_until: Option<Timestamp>,
    said: KindEvidence,
    // Bound: per account: listed profiles | MOST_LISTED | further ones aren't taken
    listed: Vec<Arc<str>>,
    profiles_again: Option<Timestamp>,
    profile_unknown: bool,
    usage_form: Option<Variant>,
    models_form: Option<Variant>,
    refresh_region: Option<Arc<str>>,
    fips_host: bool,
    shapes_refused: Vec<(Shape, Timestamp)>,
    small_form_until: Option<Timestamp>,
    no_search_until: Option<Timestamp>,
    smaller_pictures: Vec<(Shape, Timestamp)>,
    credits: Option<Credits>,
    // Bound: per account: models with something learned | MOST_MODELS | the one with the oldest news goes
    models: Vec<ModelMarks>,
    catalogue: Option<(Arc<Catalogue>, Timestamp)>,
}

impl Learned {
    /// Forgets everything when `key`, which stands for the fields that R72 names, is another one than before.
    pub fn belongs_to(&mut self, key: u64) {
        if self.key != key {
            *self = Self { key, ..Self::default() };
        }
    }

    /// We changed the records ourselves: the lessons stay.
    pub fn goes_on_with(&mut self, key: u64) {
        self.key = key;
    }

    /// Takes in a lesson. The only way in.
    pub fn learn(&mut self, lesson: Lesson, now: Timestamp) {
        match lesson {
            Lesson::VariantProven(shape, variant) => {
                self.no_profile_until = None;
                self.note_variant(VariantMark { shape, variant, refused_until: None, by_400: false });
            }
            Lesson::VariantRefused { shape, variant, by_400 } => {
                let refused_until = Some(now + VARIANT_REFUSED);
                self.note_variant(VariantMark { shape, variant, refused_until, by_400 });
            }
            Lesson::VariantsForgotten => self.variants.retain(|mark| mark.refused_until.is_none()),
            Lesson::NoProfile { asked } => {
                self.no_profile_until = Some(now + if asked { NO_PROFILE } else { NO_PROFILE_UNKNOWN });
            }
            Lesson::ShapeRefused { shape, for_a_day } => {
                self.shapes_refused.retain(|(refused, _)| *refused != shape);
                self.shapes_refused.push((shape, now + if for_a_day { DAY } else { HOUR }));
            }
            Lesson::Profiles(mut arns) => {
                arns.truncate(MOST_LISTED);
                if !arns.is_empty() {
                    (self.said, self.no_profile_until) = (KindEvidence::Profiles, None);
                }
                self.listed = arns;
                self.profile_unknown = false;
                self.profiles_again = Some(now + PROFILES_ANSWERED);
            }
            Lesson::IsBuilderId => {
                (self.said, self.no_profile_until) = (KindEvidence::BuilderId, None);
                self.listed.clear();
                self.profile_unknown = false;
                self.profiles_again = Some(now + PROFILES_ANSWERED);
            }
            Lesson::ProfilesUnanswered(after) => {
                let pause = after.filter(|after| after.is_positive()).unwrap_or(PROFILES_UNANSWERED);
                self.profiles_again = Some(now + pause.min(DAY));
                self.profile_unknown = self.listed.is_empty();
            }
            Lesson::FormWorked(Operation::Models, variant) => self.models_form = Some(variant),
            Lesson::FormWorked(_, variant) => self.usage_form = Some(variant),
            Lesson::Usage(usage) => {
                let resets_at = usage.resets_at.filter(|at| *at > now);
                let said = usage.limit.is_some() || usage.used > 0.0;
                self.credits =
                    said.then_some(Credits { used: usage.used, limit: usage.limit, resets_at, asked_at: now });
            }
            Lesson::RefreshRegion(region) => self.refresh_region = Some(region),
            Lesson::FipsHost => self.fips_host = true,
            Lesson::NoSearch => self.no_search_until = Some(now + NO_SEARCH),
            Lesson::SmallForm => self.small_form_until = Some(now + DAY),
            Lesson::ModelRefused(id) => self.model(id, now).refused_until = Some(now + HOUR),
            Lesson::ModelServed(id) => {
                let model = self.model(id, now);
                (model.refused_until, model.served) = (None, Some(now));
            }
            Lesson::ModelId { kiro_id, other } => self.model(kiro_id, now).other_id = other,
            Lesson::FieldsRefused { shape, kiro_id, refused } => {
                let fields = &mut self.model(kiro_id, now).fields_refused;
                fields.retain(|(of, ..)| *of != shape);
                fields.push((shape, refused, now + HOUR));
            }
            Lesson::NoFieldsOnRuntime(id) => self.model(id, now).no_fields_until = Some(now + DAY),
            Lesson::Catalogue(catalogue) => self.catalogue = Some((catalogue, now)),
            Lesson::NoCachePoints(id) => self.model(id, now).no_cache_points_until = Some(now + HOUR),
            Lesson::NoEmptyThoughts(id) => self.model(id, now).no_empty_thoughts_until = Some(now + HOUR),
            Lesson::SmallerPictures(shape) => {
                self.smaller_pictures.retain(|(of, _)| *of != shape);
                self.smaller_pictures.push((shape, now + DAY));
            }
            Lesson::BareSchemas(id) => self.model(id, now).bare_schemas_until = Some(now + HOUR),
        }
    }

    /// The variant to send: a proven one, else the first that isn't refused. None: every one is refused.
    pub fn next_variant<'v>(&self, shape: Shape, variants: &'v [Variant], now: Timestamp) -> Option<&'v Variant> {
        let proven = variants.iter().find(|variant| self.is_proven(shape, variant));
        proven.or_else(|| variants.iter().find(|variant| !self.is_variant_refused(shape, variant, now)))
    }

    /// Whether upstream has begun an event stream with it.
    pub fn is_proven(&self, shape: Shape, variant: &Variant) -> bool {
        self.variant(shape, variant).is_some_and(|mark| mark.refused_until.is_none())
    }

    /// Whether one of the refusals that still count named the ARN.
    pub fn was_refused_by_400(&self, now: Timestamp) -> bool {
        self.variants.iter().any(|mark| mark.by_400 && mark.refused_until.is_some_and(|until| until > now))
    }

    /// Until when the account counts as one without a profile.
    pub fn no_profile_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.no_profile_until.filter(|until| *until > now)
    }

    /// The evidence of ListAvailableProfiles for the account's kind (K73).
    pub fn said(&self) -> KindEvidence {
        self.said
    }

    /// The profiles that it named, the one to try first in front; at most [`MOST_LISTED`].
    pub fn listed(&self) -> &[Arc<str>] {
        &self.listed
    }

    /// Whether ListAvailableProfiles may be asked now (K79).
    pub fn may_ask_profiles(&self, now: Timestamp) -> bool {
        self.profiles_again.is_none_or(|again| again <= now)
    }

    /// Whether it gave no answer, and had given none before (K78).
    pub fn is_profile_unknown(&self) -> bool {
        self.profile_unknown
    }

    /// The variant with which usage or models were answered last (K80).
    pub fn form(&self, call: Operation) -> Option<&Variant> {
        if call == Operation::Models { self.models_form.as_ref() } else { self.usage_form.as_ref() }
    }

    /// What the account had used when Kiro was last asked; none once the quota has started again (K146).
    pub fn credits(&self, now: Timestamp) -> Option<Credits> {
        self.credits.filter(|credits| credits.resets_at.is_none_or(|at| at > now))
    }

    /// Where a refresh worked, when that isn't the region of the records (K76).
    pub fn refresh_region(&self) -> Option<&str> {
        self.refresh_region.as_deref()
    }

    /// Whether GovCloud's other host name is used (K81).
    pub fn uses_fips_host(&self) -> bool {
        self.fips_host
    }

    /// Whether upstream doesn't serve the account in this shape.
    pub fn is_shape_refused(&self, shape: Shape, now: Timestamp) -> bool {
        self.shapes_refused.iter().any(|(refused, until)| *refused == shape && *until > now)
    }

    /// Whether the small form is sent at once (K116).
    pub fn uses_small_form(&self, now: Timestamp) -> bool {
        self.small_form_until.is_some_and(|until| until > now)
    }

    /// Whether the account isn't asked to search the web (K135).
    pub fn has_no_search(&self, now: Timestamp) -> bool {
        self.no_search_until.is_some_and(|until| until > now)
    }

    /// Whether the account has refused the model (K88).
    pub fn refuses_model(&self, kiro_id: &str, now: Timestamp) -> bool {
        self.find(kiro_id).and_then(|model| model.refused_until).is_some_and(|until| until > now)
    }

    /// When an answer of the model last began.
    pub fn served_model(&self, kiro_id: &str) -> Option<Timestamp> {
        self.find(kiro_id)?.served
    }

    /// Whether the other id of the model's row is the one that works.
    pub fn uses_other_model_id(&self, kiro_id: &str) -> bool {
        self.find(kiro_id).is_some_and(|model| model.other_id)
    }

    /// The parts of `additionalModelRequestFields` that upstream refuses.
    pub fn refused_fields(&self, shape: Shape, kiro_id: &str, now: Timestamp) -> RefusedFields {
        let known = self.find(kiro_id).and_then(|model| model.fields_refused.iter().find(|(of, ..)| *of == shape));
        known.filter(|(.., until)| *until > now).map(|(_, refused, _)| *refused).unwrap_or_default()
    }

    /// Whether another variant than the one that was sent could be.
    pub fn has_other_variant(&self, shape: Shape, variants: &[Variant], sent: &Variant, now: Timestamp) -> bool {
        variants.iter().any(|variant| variant.arn() != sent.arn() && !self.is_variant_refused(shape, variant, now))
    }

    /// Whether the runtime shape takes no `additionalModelRequestFields` of this model.
    pub fn no_fields_on_runtime(&self, kiro_id: &str, now: Timestamp) -> bool {
        self.find(kiro_id).and_then(|model| model.no_fields_until).is_some_and(|until| until > now)
    }

    /// The account's catalogue, for a day after it was read (K125), and when that was.
    pub fn catalogue(&self, now: Timestamp) -> Option<&(Arc<Catalogue>, Timestamp)> {
        self.catalogue.as_ref().filter(|(_, read)| *read + DAY > now)
    }

    /// The model's entry in the catalogue; `alt` is the other id of its row.
    pub fn listed_model(&self, kiro_id: &str, alt: Option<&str>, now: Timestamp) -> Option<&Listed> {
        let (catalogue, _) = self.catalogue(now)?;
        catalogue.get(kiro_id).or_else(|| catalogue.get(alt?))
    }

    /// Whether the account has a fresh catalogue without the model (K127): it comes after accounts that have the model.
    /// An account that has answered with the model within the day isn't put behind, because some catalogues are
    /// incomplete.
    pub fn lacks_model(&self, kiro_id: &str, alt: Option<&str>, now: Timestamp) -> bool {
        let known = self.catalogue(now).is_some_and(|(catalogue, _)| !catalogue.models().is_empty());
        let served = || self.served_model(kiro_id).is_some_and(|at| at + DAY > now);
        known && self.listed_model(kiro_id, alt, now).is_none() && !served()
    }

    /// Whether cache points are refused.
    pub fn no_cache_points(&self, kiro_id: &str, now: Timestamp) -> bool {
        self.find(kiro_id).and_then(|model| model.no_cache_points_until).is_some_and(|until| until > now)
    }

    /// Whether signed thoughts without text are refused.
    pub fn no_empty_thoughts(&self, kiro_id: &str, now: Timestamp) -> bool {
        self.find(kiro_id).and_then(|model| model.no_empty_thoughts_until).is_some_and(|until| until > now)
    }

    /// Whether schemas of tools go out bare.
    pub fn bare_schemas(&self, kiro_id: &str, now: Timestamp) -> bool {
        self.find(kiro_id).and_then(|model| model.bare_schemas_until).is_some_and(|until| until > now)
    }

    /// Whether large pictures go out smaller.
    pub fn smaller_pictures(&self, shape: Shape, now: Timestamp) -> bool {
        self.smaller_pictures.iter().any(|(of, until)| *of == shape && *until > now)
    }

    /// The lessons in words for an operator; empty for an ordinary account.
    pub fn words(&self, now: Timestamp) -> Vec<String> {
        let mut words = Vec::new();
        match (self.said, self.listed.len()) {
            (KindEvidence::BuilderId, _) => words.push("an AWS Builder ID".to_owned()),
            (_, 0) => {}
            (_, 1) => words.push("1 profile is listed".to_owned()),
            (_, more) => words.push(format!("{more} profiles are listed")),
        }
        if self.no_profile_until(now).is_some() {
            words.push("no profile".to_owned());
        }
        if let Some(region) = &self.refresh_region {
            words.push(format!("refreshes in {region}"));
        }
        if self.fips_host {
            words.push("q: by the host q-fips".to_owned());
        }
        for mark in &self.variants {
            let (shape, variant) = (mark.shape, mark.variant.as_str());
            match mark.refused_until {
                None if matches!(mark.variant, Variant::Own(_)) => {}
                None => words.push(format!("{shape}: profile {variant} works")),
                Some(until) if until > now => words.push(format!("{shape}: profile {variant} refused")),
                Some(_) => {}
            }
        }
        let refused = self.shapes_refused.iter().filter(|(_, until)| *until > now);
        words.extend(refused.map(|(shape, _)| format!("{shape}: not served")));
        let smaller = self.smaller_pictures.iter().filter(|(_, until)| *until > now);
        words.extend(smaller.map(|(shape, _)| format!("{shape}: pictures made smaller")));
        if self.uses_small_form(now) {
            words.push("runtime: small form".to_owned());
        }
        if self.has_no_search(now) {
            words.push("no web search".to_owned());
        }
        let still = |until: Option<Timestamp>| until.is_some_and(|until| until > now);
        for model in &self.models {
            let id = &model.kiro_id;
            let facts = [
                (still(model.refused_until), "not for this account"),
                (model.other_id, "under its other id"),
                (model.fields_refused.iter().any(|(.., until)| *until > now), "some fields refused"),
                (still(model.no_fields_until), "no fields on runtime"),
                (still(model.no_cache_points_until), "no cache points"),
                (still(model.no_empty_thoughts_until), "no thoughts without text"),
                (still(model.bare_schemas_until), "bare schemas"),
            ];
            words.extend(facts.iter().filter(|(holds, _)| *holds).map(|(_, fact)| format!("{id}: {fact}")));
        }
        words
    }

    fn variant(&self, shape: Shape, variant: &Variant) -> Option<&VariantMark> {
        self.variants.iter().find(|mark| mark.shape == shape && mark.variant.arn() == variant.arn())
    }

    fn is_variant_refused(&self, shape: Shape, variant: &Variant, now: Timestamp) -> bool {
        self.variant(shape, variant).and_then(|mark| mark.refused_until).is_some_and(|until| until > now)
    }

    fn note_variant(&mut self, mark: VariantMark) {
        self.variants.retain(|old| !(old.shape == mark.shape && old.variant.arn() == mark.variant.arn()));
        if self.variants.len() >= MOST_VARIANTS {
            self.variants.remove(0);
        }
        self.variants.push(mark);
    }

    fn find(&self, kiro_id: &str) -> Option<&ModelMarks> {
        self.models.iter().find(|model| &*model.kiro_id == kiro_id)
    }

    fn model(&mut self, kiro_id: Arc<str>, now: Timestamp) -> &mut ModelMarks {
        let place = match self.models.iter().position(|model| model.kiro_id == kiro_id) {
            Some(place) => place,
            None => {
                if self.models.len() >= MOST_MODELS
                    && let Some(oldest) = (0..self.models.len()).min_by_key(|place| self.models[*place].seen)
                {
                    self.models.swap_remove(oldest);
                }
                self.models.push(ModelMarks {
                    kiro_id,
                    seen: now,
                    refused_until: None,
                    served: None,
                    other_id: false,
                    fields_refused: Vec::new(),
                    no_fields_until: None,
                    no_cache_points_until: None,
                    no_empty_thoughts_until: None,
                    bare_schemas_until: None,
                });
                self.models.len() - 1
            }
        };
        self.models[place].seen = now;
        &mut self.models[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_proven_variant_comes_first_and_a_refused_one_rests_ten_minutes_k78() {
        let service = Variant::Service("arn:s".into());
        let variants = [Variant::Own("arn:o".into()), service.clone(), Variant::None];
        let mut learned = Learned::default();
        let next = |learned: &Learned, second| learned.next_variant(Shape::Q, &variants, at(second)).cloned();
        assert_eq!(next(&learned, 0), Some(variants[0].clone()));
        let refuse =
            |variant: &Variant| Lesson::VariantRefused { shape: Shape::Q, variant: variant.clone(), by_400: true };
        learned.learn(refuse(&variants[0]), at(0));
        assert_eq!(next(&learned, 0), Some(service.clone()));
        assert_eq!(learned.next_variant(Shape::Runtime, &variants, at(0)), Some(&variants[0]), "per shape");
        learned.learn(refuse(&service), at(1));
        learned.learn(refuse(&Variant::None), at(2));
        assert_eq!(next(&learned, 2), None);
        assert!(learned.was_refused_by_400(at(2)));
        assert_eq!(next(&learned, 600), Some(variants[0].clone()));
        learned.learn(Lesson::VariantProven(Shape::Q, Variant::None), at(700));
        assert_eq!(next(&learned, 700), Some(Variant::None));
        // A record's own ARN that was proven as a listed one is the same ARN.
        learned.learn(Lesson::VariantProven(Shape::Q, Variant::Listed("arn:o".into())), at(701));
        assert_eq!(next(&learned, 701), Some(variants[0].clone()));
        learned.belongs_to(1);
        assert_eq!(next(&learned, 701), Some(variants[0].clone()));
        assert!(!learned.is_proven(Shape::Q, &variants[0]), "forgotten with the record (R72)");
    }

    #[test]
    fn models_are_remembered_for_an_hour_and_bounded_k88_p48_p49() {
        let mut learned = Learned::default();
        learned.learn(Lesson::ModelRefused("m".into()), at(0));
        assert!(learned.refuses_model("m", at(3599)) && !learned.refuses_model("m", at(3600)));
        learned.learn(Lesson::ModelServed("m".into()), at(10));
        assert!(!learned.refuses_model("m", at(10)));
        assert_eq!(learned.served_model("m"), Some(at(10)));
        for n in 0..1_000 {
            learned.learn(Lesson::ModelRefused(format!("m{n}").into()), at(n));
        }
        assert_eq!(learned.models.len(), MOST_MODELS);
        assert!(learned.refuses_model("m999", at(1_000)) && !learned.refuses_model("m1", at(1_000)));
    }

    #[test]
    fn refused_fields_count_for_one_shape_and_one_hour_k129() {
        let mut learned = Learned::default();
        let fields = RefusedFields { display: true, ..RefusedFields::default() };
        let refused = |fields| Lesson::FieldsRefused { kiro_id: "m".into(), shape: Shape::Q, refused: fields };
        learned.learn(refused(RefusedFields { thinking: true, ..fields }), at(0));
        learned.learn(refused(fields), at(0));
        assert_eq!(learned.refused_fields(Shape::Q, "m", at(3_599)), fields);
        assert_eq!(learned.refused_fields(Shape::Q, "m", at(3_600)), RefusedFields::default());
        assert_eq!(learned.refused_fields(Shape::Runtime, "m", at(0)), RefusedFields::default());
    }

    #[test]
    fn an_account_lacks_the_models_that_its_fresh_catalogue_does_not_name_k127() {
        let mut learned = Learned::default();
        assert!(!learned.lacks_model("claude-opus-5", None, at(0)), "nothing is known");
        let mut catalogue = Catalogue::default();
        learned.learn(Lesson::Catalogue(Arc::new(catalogue.clone())), at(0));
        assert!(!learned.lacks_model("claude-opus-5", None, at(0)), "an empty one says nothing");
        catalogue.add_page(br#"{"models":[{"modelId":"claude-sonnet-4.5"},{"modelId":"OLD"}]}"#).unwrap();
        learned.learn(Lesson::Catalogue(Arc::new(catalogue)), at(0));
        assert!(learned.lacks_model("claude-opus-5", None, at(1)));
        assert!(!learned.lacks_model("claude-sonnet-4.5", None, at(1)));
        assert!(!learned.lacks_model("claude-sonnet-4", Some("old"), at(1)));
        assert!(!learned.lacks_model("claude-opus-5", None, at(86_400)), "too old");
        learned.learn(Lesson::ModelServed("claude-opus-5".into()), at(2));
        assert!(!learned.lacks_model("claude-opus-5", None, at(3)));
    }

    #[test]
    fn refusals_are_forgotten_after_their_time_k116_k119_k131_tr64_tr67() {
        let mut learned = Learned::default();
        learned.learn(Lesson::ShapeRefused { shape: Shape::Q, for_a_day: true }, at(0));
        learned.learn(Lesson::ShapeRefused { shape: Shape::Runtime, for_a_day: false }, at(0));
        assert!(learned.is_shape_refused(Shape::Q, at(86_399)) && !learned.is_shape_refused(Shape::Q, at(86_400)));
        assert!(
            learned.is_shape_refused(Shape::Runtime, at(3_599)) && !learned.is_shape_refused(Shape::Runtime, at(3_600))
        );
        learned.learn(Lesson::SmallForm, at(0));
        learned.learn(Lesson::NoCachePoints("m".into()), at(0));
        learned.learn(Lesson::NoFieldsOnRuntime("m".into()), at(0));
        learned.learn(Lesson::BareSchemas("m".into()), at(0));
        learned.learn(Lesson::SmallerPictures(Shape::Q), at(0));
        assert!(learned.smaller_pictures(Shape::Q, at(86_399)) && !learned.smaller_pictures(Shape::Q, at(86_400)));
        assert!(!learned.smaller_pictures(Shape::Runtime, at(0)));
        assert!(learned.bare_schemas("m", at(3_599)) && !learned.bare_schemas("m", at(3_600)));
        assert!(!learned.bare_schemas("n", at(0)));
        assert!(learned.uses_small_form(at(86_399)) && learned.no_fields_on_runtime("m", at(86_399)));
        assert!(learned.no_cache_points("m", at(3_599)) && !learned.no_cache_points("m", at(3_600)));
        assert!(!learned.no_empty_thoughts("m", at(0)) && !learned.no_cache_points("n", at(0)));
        let words = learned.words(at(0));
        assert_eq!(
            words,
            [
                "q: not served",
                "runtime: not served",
                "q: pictures made smaller",
                "runtime: small form",
                "m: no fields on runtime",
                "m: no cache points",
                "m: bare schemas"
            ]
        );
        assert!(learned.words(at(86_400)).is_empty());
    }

    #[test]
    fn a_look_up_is_remembered_and_repeated_after_its_time_k79_r72() {
        let mut learned = Learned::default();
        assert!(learned.may_ask_profiles(at(0)));
        learned.learn(Lesson::ProfilesUnanswered(None), at(0));
        assert!(!learned.may_ask_profiles(at(59)) && learned.may_ask_profiles(at(60)) && learned.is_profile_unknown());
        learned.learn(Lesson::ProfilesUnanswered(Some(SignedDuration::from_secs(7))), at(0));
        assert!(!learned.may_ask_profiles(at(6)) && learned.may_ask_profiles(at(7)));
        learned.learn(Lesson::NoProfile { asked: true }, at(0));
        learned.learn(Lesson::Profiles((0..6).map(|n| format!("arn:{n}").into()).collect()), at(0));
        assert_eq!(
            (learned.listed().len(), learned.said(), learned.no_profile_until(at(1))),
            (4, KindEvidence::Profiles, None)
        );
        assert!(!learned.may_ask_profiles(at(599)) && learned.may_ask_profiles(at(600)));
        learned.learn(Lesson::Profiles(Vec::new()), at(0));
        assert_eq!((learned.listed().len(), learned.said()), (0, KindEvidence::Profiles));
        assert!(!learned.is_profile_unknown(), "none is an answer");
        learned.learn(Lesson::IsBuilderId, at(0));
        assert_eq!(learned.said(), KindEvidence::BuilderId);
        learned.learn(Lesson::FormWorked(Operation::Usage, Variant::None), at(0));
        assert_eq!((learned.form(Operation::Usage), learned.form(Operation::Models)), (Some(&Variant::None), None));
        learned.learn(Lesson::RefreshRegion("eu-west-1".into()), at(0));
        learned.learn(Lesson::FipsHost, at(0));
        learned.learn(Lesson::NoProfile { asked: true }, at(0));
        let words = ["an AWS Builder ID", "no profile", "refreshes in eu-west-1", "q: by the host q-fips"];
        assert_eq!(learned.words(at(599)), words);
        assert_eq!(learned.words(at(600)), [words[0], words[2], words[3]]);
        learned.goes_on_with(7);
        learned.belongs_to(7);
        assert!(learned.uses_fips_host() && learned.refresh_region() == Some("eu-west-1"), "our own writes");
        learned.belongs_to(8);
        assert!(
            !learned.uses_fips_host() && learned.refresh_region().is_none() && learned.said() == KindEvidence::Nothing
        );
    }

    #[test]
    fn the_state_no_profile_ends_with_time_or_a_proof_k78() {
        let mut learned = Learned::default();
        learned.learn(Lesson::NoProfile { asked: false }, at(0));
        assert_eq!(learned.no_profile_until(at(59)), Some(at(60)));
        assert_eq!(learned.no_profile_until(at(60)), None);
        learned.learn(Lesson::NoProfile { asked: true }, at(100));
        assert_eq!(learned.no_profile_until(at(101)), Some(at(700)));
        learned.learn(Lesson::VariantProven(Shape::Q, Variant::None), at(102));
        assert_eq!(learned.no_profile_until(at(103)), None);
    }
}
