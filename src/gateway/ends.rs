//! Statistics of the ends of answers: whether an end without any usage is unusual (TU9), and which window the
//! percentages of a model refer to (A187). Touched once an answer.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::proto::kiro::route::Shape;
use crate::proto::pipeline::Measured;
use crate::proto::translate::usage::WindowQuotient;

/// After this many answers in a row with usage, counted by shape, one without may be a cut.
const USUAL: u32 = 20;
/// The least time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Models whose quotient is kept; beyond them the table's window holds.
const MODELS: usize = 64;

/// Statistics of the ends of answers.
#[derive(Debug, Default)]
pub(super) struct AnswerEnds(Mutex<EndStats>);

#[derive(Debug, Default)]
struct EndStats {
    /// How many answers in a row had usage, by shape.
    usual: [u32; Shape::ALL.len()],
    warned: Option<Instant>,
    // Bound: models whose window was learned | MODELS | a further one isn't learned
    quotients: Vec<(String, WindowQuotient)>,
}

impl AnswerEnds {
    /// Counts the end of a whole answer. True: it had no usage, which is worth a warning.
    pub(super) fn ended(&self, shape: Shape, without_usage: bool, now: Instant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = Shape::ALL.iter().position(|one| *one == shape) else { return false };
        let Some(usual) = known.usual.get_mut(place) else { return false };
        if !without_usage {
            *usual = usual.saturating_add(1);
            return false;
        }
        let unusual = std::mem::take(usual) >= USUAL;
        let due = known.warned.is_none_or(|warned| now.duration_since(warned) >= WARN_EVERY);
        if unusual && due {
            known.warned = Some(now);
        }
        unusual && due
    }

    /// An answer had counts and a percentage; `window` is the table's.
    pub(super) fn learn(&self, kiro_model: &str, measured: Measured, window: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.quotients.iter().position(|(model, _)| model == kiro_model);
        let place = place.unwrap_or_else(|| {
            if known.quotients.len() < MODELS {
                known.quotients.push((kiro_model.to_owned(), WindowQuotient::default()));
            }
            known.quotients.len() - 1
        });
        if let Some((model, quotient)) = known.quotients.get_mut(place)
            && model == kiro_model
        {
            quotient.learn(measured, window);
        }
    }

    /// The window that the model's percentages refer to, in tokens.
    pub(super) fn usage_window(&self, kiro_model: &str, window: u64) -> u64 {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let quotient = known.quotients.iter().find(|(model, _)| model == kiro_model);
        quotient.map_or(window, |(_, quotient)| quotient.window(window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_without_usage_is_warned_about_when_it_is_unusual_tu9() {
        let ends = AnswerEnds::default();
        let begin = Instant::now();
        let usual = |shape| (0..USUAL).for_each(|_| assert!(!ends.ended(shape, false, begin)));
        assert!(!ends.ended(Shape::Q, true, begin), "nothing is known of it yet");
        usual(Shape::Q);
        assert!(!ends.ended(Shape::Runtime, true, begin), "of that shape nothing is known");
        assert!(ends.ended(Shape::Q, true, begin));
        assert!(!ends.ended(Shape::Q, true, begin + WARN_EVERY), "it is usual by now");
        usual(Shape::Q);
        assert!(!ends.ended(Shape::Q, true, begin + WARN_EVERY / 2), "once a minute");
        usual(Shape::Q);
        assert!(ends.ended(Shape::Q, true, begin + WARN_EVERY));
    }

    #[test]
    fn each_model_learns_by_itself_and_their_number_is_bounded_a187() {
        let ends = AnswerEnds::default();
        for _ in 0..20 {
            ends.learn("a", Measured { tokens: 300, percentage: 1.0 }, 20_000);
        }
        assert_eq!((ends.usage_window("a", 20_000), ends.usage_window("b", 20_000)), (30_000, 20_000));
        for n in 0..100 {
            for _ in 0..20 {
                ends.learn(&n.to_string(), Measured { tokens: 300, percentage: 1.0 }, 20_000);
            }
        }
        assert_eq!(ends.0.lock().unwrap().quotients.len(), MODELS);
        assert_eq!((ends.usage_window("62", 20_000), ends.usage_window("63", 20_000)), (30_000, 20_000));
    }
}
