//! Usage figures: sources, split, shape (TU1–TU4, TU8).

use crate::proto::messages::event::Usage;

/// The largest figure given out: every JSON reader holds it exactly.
const MAX_TOKENS: u64 = (1 << 53) - 1;
/// Totals under this are not split (TU3).
const SPLIT_FROM: u64 = 100;

/// How an input total that wasn't measured in parts is shown (TU3, `KIRO_USAGE_SPLIT`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UsageSplit {
    /// 1 : 2 : 25 over input, cache creation and cache read. An apportioning, not a measurement.
    #[default]
    Ratio,
    /// Everything is input.
    None,
}

impl UsageSplit {
    /// An input total in its three parts, which always add up to it; output is 0 (TU8).
    pub fn split(self, total: u64) -> Usage {
        let total = total.min(MAX_TOKENS);
        if self == Self::None || total < SPLIT_FROM {
            return Usage { input_tokens: total, ..Usage::default() };
        }
        let input_tokens = total / 28;
        let cache_creation_input_tokens = total / 14;
        Usage {
            input_tokens,
            cache_creation_input_tokens,
            cache_read_input_tokens: total - input_tokens - cache_creation_input_tokens,
            output_tokens: 0,
        }
    }
}

/// Upstream's usage events so far; the last one of a kind counts (TU2).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reported {
    /// Counts of a metadataEvent that had them.
    pub counts: Option<Usage>,
    /// `contextUsagePercentage`: total tokens ÷ window × 100.
    pub percentage: Option<f64>,
}

/// Upstream's count for one answer, and its percentage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Input of all kinds and output.
    pub tokens: u64,
    /// `contextUsagePercentage`, more than 0.
    pub percentage: f64,
}

impl Reported {
    /// Both, where the answer had both.
    pub fn measured(&self) -> Option<Measured> {
        let Usage { input_tokens, cache_creation_input_tokens, cache_read_input_tokens, output_tokens } = self.counts?;
        let percentage = self.percentage.filter(|percentage| percentage.is_finite() && *percentage > 0.0)?;
        let tokens = [input_tokens, cache_creation_input_tokens, cache_read_input_tokens, output_tokens]
            .iter()
            .fold(0_u64, |sum, &count| sum.saturating_add(count));
        Some(Measured { tokens, percentage })
    }

    /// The figures of `message_delta` (TU2): upstream's count, else its percentage of the `window` (TU4), else our
    /// estimate of the request (TU7). `output` is our count of the delivered text, used unless upstream counted.
    pub fn settle(&self, window: u64, estimate: u64, output: u64, split: UsageSplit) -> Usage {
        if let Some(counts) = self.counts {
            // Only an upstream error is larger, and the sum of several must not overflow either.
            return Usage {
                input_tokens: counts.input_tokens.min(MAX_TOKENS),
                cache_creation_input_tokens: counts.cache_creation_input_tokens.min(MAX_TOKENS),
                cache_read_input_tokens: counts.cache_read_input_tokens.min(MAX_TOKENS),
                output_tokens: counts.output_tokens.min(MAX_TOKENS),
            };
        }
        let total = self.percentage.and_then(|percentage| input_total(percentage, window, output));
        Usage { output_tokens: output.min(MAX_TOKENS), ..split.split(total.unwrap_or(estimate)) }
    }
}

/// How many answers with both counts and a percentage are needed before their quotient is used.
const SAMPLES: u32 = 20;
/// At this many the older answers count half, so that a change upstream shows.
const MOST_SAMPLES: u32 = 200;
/// A quotient outside this range is an error.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 0.5..=3.0;

/// The window that a model's percentages really refer to, learnt from answers that have counts too (A187). It is kept
/// as the count divided by the percentage of the table's window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WindowQuotient {
    counted: f64,
    said: f64,
    samples: u32,
}

impl WindowQuotient {
    /// Learns from one answer; `window` is the table's. A quotient outside 0.5–3 is not used.
    pub fn learn(&mut self, measured: Measured, window: u64) {
        let (counted, said) = (measured.tokens as f64, window as f64 * measured.percentage / 100.0);
        if !PLAUSIBLE.contains(&(counted / said)) {
            return;
        }
        if self.samples == MOST_SAMPLES {
            (self.counted, self.said, self.samples) = (self.counted / 2.0, self.said / 2.0, MOST_SAMPLES / 2);
        }
        self.counted += counted;
        self.said += said;
        self.samples += 1;
    }

    /// The window to multiply percentages with: the table's until 20 answers have said otherwise.
    pub fn window(&self, window: u64) -> u64 {
        if self.samples < SAMPLES {
            return window;
        }
        (window as f64 * self.counted / self.said).round() as u64
    }
}

/// round_half_up(window · percentage ÷ 100) − output, if that is more than nothing.
fn input_total(percentage: f64, window: u64, output: u64) -> Option<u64> {
    let total = (window as f64 * percentage / 100.0 + 0.5).floor();
    // A float-to-integer cast saturates, and gives 0 for NaN.
    (total as u64).min(MAX_TOKENS).checked_sub(output).filter(|&input| input > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(usage: Usage) -> [u64; 3] {
        [usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens]
    }

    #[test]
    fn a_total_is_split_without_a_remainder_tu3_tv117() {
        let ratio = |total| parts(UsageSplit::Ratio.split(total));
        assert_eq!(ratio(99), [99, 0, 0]);
        assert_eq!(ratio(100), [3, 7, 90]);
        assert_eq!(ratio(1_000), [35, 71, 894]);
        assert_eq!(ratio(172_500), [6_160, 12_321, 154_019]);
        assert_eq!(ratio(0), [0, 0, 0]);
        assert_eq!(parts(UsageSplit::None.split(1_000)), [1_000, 0, 0]);
        for total in (0..5_000).chain([MAX_TOKENS]) {
            assert_eq!(ratio(total).iter().sum::<u64>(), total);
        }
        assert_eq!(ratio(u64::MAX).iter().sum::<u64>(), MAX_TOKENS);
    }

    #[test]
    fn the_window_of_percentages_is_learnt_a187() {
        let mut quotient = WindowQuotient::default();
        let measured = |tokens, percentage| Measured { tokens, percentage };
        for _ in 0..19 {
            quotient.learn(measured(30_000, 10.0), 200_000);
        }
        assert_eq!(quotient.window(200_000), 200_000, "19 are too few");
        for wrong in [measured(9_999, 10.0), measured(60_001, 10.0), measured(0, 10.0)] {
            quotient.learn(wrong, 200_000);
        }
        assert_eq!(quotient.window(200_000), 200_000, "what can't be is not used");
        quotient.learn(measured(30_000, 10.0), 200_000);
        assert_eq!(quotient.window(200_000), 300_000);
        for _ in 0..2_000 {
            quotient.learn(measured(20_000, 10.0), 200_000);
        }
        assert!(quotient.window(200_000).abs_diff(200_000) < 200, "a change is followed");
    }

    #[test]
    fn counts_beat_the_percentage_and_both_beat_the_estimate_tu2() {
        let counts = Usage {
            input_tokens: 200,
            cache_creation_input_tokens: 93,
            cache_read_input_tokens: 700,
            output_tokens: 7,
        };
        let settle = |reported: Reported| reported.settle(172_500, 10, 1, UsageSplit::None);
        assert_eq!(settle(Reported { counts: Some(counts), percentage: Some(1.0) }), counts);
        let input = |percentage| settle(Reported { counts: None, percentage: Some(percentage) }).input_tokens;
        assert_eq!(input(1.0), 1_724);
        assert_eq!(input(2.0), 3_449);
        assert_eq!(settle(Reported::default()).input_tokens, 10);
        assert_eq!(settle(Reported::default()).output_tokens, 1);
    }

    #[test]
    fn a_percentage_that_gives_nothing_falls_back_to_the_estimate_tu2() {
        for percentage in [0.0, -5.0, f64::NAN, f64::NEG_INFINITY, 0.000_5] {
            let reported = Reported { counts: None, percentage: Some(percentage) };
            assert_eq!(reported.settle(172_500, 10, 1, UsageSplit::None).input_tokens, 10, "{percentage}");
        }
        let reported = Reported { counts: None, percentage: Some(f64::INFINITY) };
        assert_eq!(reported.settle(172_500, 10, 1, UsageSplit::None).input_tokens, MAX_TOKENS - 1);
    }

    #[test]
    fn counts_are_numbers_that_every_json_reader_holds_m59() {
        let all = |tokens| Usage {
            input_tokens: tokens,
            cache_creation_input_tokens: tokens,
            cache_read_input_tokens: tokens,
            output_tokens: tokens,
        };
        let reported = Reported { counts: Some(all(u64::MAX)), percentage: None };
        assert_eq!(reported.settle(172_500, 10, 1, UsageSplit::Ratio), all(MAX_TOKENS));
    }

    #[test]
    fn rounds_half_up_tu2() {
        // 0.001 % of 50,000 is 0.5, of 49,000 0.49.
        assert_eq!(input_total(0.001, 50_000, 0), Some(1));
        assert_eq!(input_total(0.001, 49_000, 0), None);
    }
}
