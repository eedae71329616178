//! Pictures that upstream may refuse for their size (TR67). Measuring and fitting them is the gateway's.

use std::collections::{BTreeMap, HashSet};

use crate::proto::messages::error::ErrorType;
use crate::proto::messages::request::{Image, Request, RequestError};

/// The pictures of a request that are large, each by the place of its data in the client's request
/// (`messages.0.content.1.source.data`); all others go out as they are.
#[derive(Debug, Default)]
pub struct Pictures(pub BTreeMap<String, LargePicture>);

/// A large picture.
#[derive(Debug)]
pub struct LargePicture {
    /// It stands in the newest user message.
    pub is_newest: bool,
    /// Pixels; 0 where it can't be read.
    pub width: u32,
    /// Pixels; 0 where it can't be read.
    pub height: u32,
    /// Characters of base64.
    pub chars: usize,
    /// A smaller JPEG in base64; none where it can't be made.
    pub fitted: Option<String>,
}

/// Width and height of a large picture, and the smaller JPEG.
pub type Measured = (u32, u32, Option<String>);

/// How large pictures go out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PictureForm {
    /// Untouched.
    #[default]
    AsTheyAre,
    /// Made smaller; those of history that can't be are left out.
    Fitted,
    /// Those of history are left out, those of the newest user message made smaller.
    HistoryLeftOut,
}

impl PictureForm {
    /// The next form to try after a refusal.
    pub const fn next(self) -> Self {
        match self {
            Self::AsTheyAre => Self::Fitted,
            Self::Fitted | Self::HistoryLeftOut => Self::HistoryLeftOut,
        }
    }
}

/// What becomes of one picture.
pub(crate) enum Fate<'p> {
    AsItIs,
    /// A JPEG in base64.
    Fitted(&'p str),
    Omitted,
}

impl Pictures {
    /// Of the images that were `sent`, those that `fit` takes for large by their base64. None is begun once `ended`.
    pub fn of(
        request: &Request<'_>,
        sent: &[String],
        ended: impl Fn() -> bool,
        mut fit: impl FnMut(&str) -> Option<Measured>,
    ) -> Self {
        let sent: HashSet<_> = sent.iter().collect();
        let images = request.images().into_iter().filter(|image| sent.contains(&image.path));
        let large = images.take_while(|_| !ended()).filter_map(|image| {
            let data = image.data.decode();
            let (width, height, fitted) = fit(&data)?;
            let is_newest = image.is_newest;
            Some((image.path.clone(), LargePicture { is_newest, width, height, chars: data.len(), fitted }))
        });
        Self(large.collect())
    }

    pub(crate) fn fate(&self, image: &Image<'_>, form: PictureForm) -> Fate<'_> {
        match self.0.get(&image.path) {
            Some(large) => large.fate(form),
            None => Fate::AsItIs,
        }
    }

    /// Whether the request has another text in this form.
    pub fn differs(&self, form: PictureForm) -> bool {
        self.0.values().any(|large| !matches!(large.fate(form), Fate::AsItIs))
    }

    /// Whether a form behind this one changes something.
    pub fn has_more(&self, form: PictureForm) -> bool {
        match form {
            PictureForm::AsTheyAre => self.differs(PictureForm::Fitted),
            PictureForm::Fitted => self.0.values().any(|large| !large.is_newest && large.fitted.is_some()),
            PictureForm::HistoryLeftOut => false,
        }
    }

    /// What the client should hear of the changes of this form (M80).
    pub fn changes(&self, form: PictureForm) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(move |(path, large)| match large.fate(form) {
            Fate::AsItIs => None,
            Fate::Fitted(_) => Some(format!("{path}:fitted")),
            Fate::Omitted => Some(format!("{path}:omitted")),
        })
    }

    /// The error when upstream refuses a picture in every form: of the largest one in the newest user message.
    pub fn refusal(&self) -> Option<RequestError> {
        let newest = self.0.iter().filter(|(_, large)| large.is_newest);
        let (path, LargePicture { width, height, chars, fitted, .. }) = newest.max_by_key(|(_, large)| large.chars)?;
        let also = if fitted.is_some() { "upstream refuses it, smaller too" } else { "upstream refuses it" };
        let size = match (width, height) {
            (0, _) | (_, 0) => "a picture that can't be read".to_owned(),
            _ => format!("{width} x {height} pixels"),
        };
        Some(RequestError {
            kind: ErrorType::InvalidRequest,
            path: path.clone(),
            sentence: format!("{size} in {chars} characters: {also}"),
            cause: None,
        })
    }
}

impl LargePicture {
    fn fate(&self, form: PictureForm) -> Fate<'_> {
        match (form, &self.fitted) {
            (PictureForm::AsTheyAre, _) => Fate::AsItIs,
            (PictureForm::HistoryLeftOut, _) if !self.is_newest => Fate::Omitted,
            (_, Some(fitted)) => Fate::Fitted(fitted),
            (_, None) if self.is_newest => Fate::AsItIs,
            (_, None) => Fate::Omitted,
        }
    }
}
