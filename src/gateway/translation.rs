//! A request as Kiro gets it, in the variations that accounts need.

use std::sync::Arc;

use crate::proto::kiro::request::KiroBody;
use crate::proto::translate::model::Model;
use crate::proto::translate::pictures::{PictureForm, Pictures};
use crate::proto::translate::request::{LeaveOut, MAX_CACHE_POINTS, Translated};

/// Which translation of the request goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variation {
    pub(super) leave_out: LeaveOut,
    /// Most cache points (TR50); none where they are refused (K131).
    pub(super) cache_points: usize,
    /// The other model id of the row (K123).
    pub(super) other_model_id: bool,
    /// How large pictures go out (TR67).
    pub(super) pictures: PictureForm,
}

impl Default for Variation {
    /// Nothing is left out.
    fn default() -> Self {
        Self {
            leave_out: LeaveOut::default(),
            cache_points: MAX_CACHE_POINTS,
            other_model_id: false,
            pictures: PictureForm::AsTheyAre,
        }
    }
}

/// One translation of the request.
#[derive(Clone)]
pub(super) struct Translation {
    pub(super) body: KiroBody,
    /// It holds `reasoningContent`.
    pub(super) reasoning: bool,
    /// It holds reasoning without text.
    pub(super) empty_thoughts: bool,
    /// Reasoning was kept back that isn't the account's (TR44).
    pub(super) withheld: bool,
    /// Cache points in it.
    pub(super) cache_points: usize,
    /// Its images, by the places of their data in the client's request.
    pub(super) images: Arc<[String]>,
    /// A tool's schema in it holds more than TR64's keywords.
    pub(super) schema_keywords: bool,
}

impl Translation {
    pub(super) fn of(translated: &Translated) -> Self {
        Self {
            body: translated.body.clone(),
            reasoning: translated.sent_reasoning,
            empty_thoughts: translated.sent_empty_thoughts,
            withheld: translated.withheld_reasoning,
            cache_points: translated.sent_cache_points,
            images: translated.sent_images.as_slice().into(),
            schema_keywords: translated.sent_schema_keywords,
        }
    }

    /// Whether this variation of the request, which asks for `model`, has another text.
    pub(super) fn differs(&self, model: &Model, variation: Variation, pictures: Option<&Pictures>) -> bool {
        (variation.leave_out.reasoning && self.reasoning)
            || (variation.leave_out.empty_thoughts && self.empty_thoughts)
            || (variation.leave_out.schema_keywords && self.schema_keywords)
            || variation.cache_points < self.cache_points
            || pictures.is_some_and(|pictures| pictures.differs(variation.pictures))
            || (variation.other_model_id && model.alt.is_some())
    }
}
