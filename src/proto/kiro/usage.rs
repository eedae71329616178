//! What an account has used of its quota: the answer of getUsageLimits (K63).

use jiff::Timestamp;
use serde_json::Value;

/// Used and limit, in the units of the plan, free trial and active bonuses included.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// So far.
    pub used: f64,
    /// None: the answer names none.
    pub limit: Option<f64>,
    /// The subscription's title.
    pub plan: Option<String>,
    /// When the quota starts again.
    pub resets_at: Option<Timestamp>,
    /// Who it is.
    pub email: Option<String>,
}

impl Usage {
    /// Reads an answer, in which everything is optional. None when it is no JSON object.
    pub fn parse(answer: &[u8]) -> Option<Self> {
        let answer: Value = serde_json::from_slice(answer).ok()?;
        answer.as_object()?;
        let none = Value::Null;
        let list = answer["usageBreakdownList"].as_array();
        let entry = list.and_then(|list| {
            let of = |kind| list.iter().find(|entry| entry["resourceType"] == kind);
            of("AGENTIC_REQUEST").or_else(|| of("CREDIT")).or_else(|| list.first())
        });
        let entry = entry.unwrap_or(&none);
        let trial = Some(&entry["freeTrialInfo"]).filter(|trial| trial["freeTrialStatus"] == "ACTIVE");
        let bonuses = entry["bonuses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let active = bonuses.iter().filter(|bonus| bonus["status"] == "ACTIVE");
        let (mut used, mut limit) = (0.0, None);
        for part in [entry].into_iter().chain(trial).chain(active) {
            used += precise(part, "currentUsage").unwrap_or(0.0);
            if let Some(more) = precise(part, "usageLimit") {
                limit = Some(limit.unwrap_or(0.0) + more);
            }
        }
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let reset = entry["nextDateReset"].as_f64().or_else(|| answer["nextDateReset"].as_f64());
        Some(Self {
            used,
            limit,
            plan: text(&answer["subscriptionInfo"]["subscriptionTitle"])
                .or_else(|| text(&answer["subscriptionInfo"]["type"])),
            resets_at: reset.and_then(|seconds| Timestamp::from_second(seconds as i64).ok()),
            email: text(&answer["userInfo"]["email"]),
        })
    }

    /// Used of the limit, 0 to 1 and beyond; none without a limit.
    pub fn share(&self) -> Option<f64> {
        self.limit.filter(|limit| *limit > 0.0).map(|limit| self.used / limit)
    }
}

/// `…WithPrecision` first.
fn precise(part: &Value, name: &str) -> Option<f64> {
    let value = part[format!("{name}WithPrecision")].as_f64().or_else(|| part[name].as_f64())?;
    (value.is_finite() && value >= 0.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Usage {
        Usage::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn trial_and_active_bonuses_count_k63() {
        let usage = read(
            r#"{"nextDateReset":1798761600.5,"subscriptionInfo":{"subscriptionTitle":"KIRO PRO"},"usageBreakdownList":[
                {"resourceType":"CREDIT","currentUsage":1,"usageLimit":2},
                {"resourceType":"AGENTIC_REQUEST","currentUsage":125,"currentUsageWithPrecision":125.5,"usageLimit":1000,
                 "freeTrialInfo":{"freeTrialStatus":"ACTIVE","currentUsage":10,"usageLimit":500},
                 "bonuses":[{"status":"ACTIVE","currentUsage":5.0,"usageLimit":50},{"status":"EXPIRED","currentUsage":7,"usageLimit":70}]}]}"#,
        );
        assert_eq!((usage.used, usage.limit), (140.5, Some(1550.0)));
        assert_eq!(usage.plan.as_deref(), Some("KIRO PRO"));
        assert_eq!(usage.resets_at.map(|time| time.as_second()), Some(1_798_761_600));
    }

    #[test]
    fn credit_before_the_first_and_an_ended_trial_counts_nothing_k63() {
        let usage = read(
            r#"{"usageBreakdownList":[{"resourceType":"VIBE","currentUsage":9,"usageLimit":9},
                {"resourceType":"CREDIT","currentUsage":3,"usageLimit":4,"nextDateReset":10,
                 "freeTrialInfo":{"freeTrialStatus":"EXPIRED","currentUsage":10,"usageLimit":500}}]}"#,
        );
        assert_eq!((usage.used, usage.limit, usage.share()), (3.0, Some(4.0), Some(0.75)));
        assert_eq!(read(r#"{"usageBreakdownList":[{"currentUsage":9,"usageLimit":9}]}"#).used, 9.0);
    }

    #[test]
    fn everything_is_optional_k63() {
        let usage = read("{}");
        assert_eq!((usage.used, usage.limit, usage.share()), (0.0, None, None));
        assert_eq!(Usage::parse(b"[]"), None);
        assert_eq!(Usage::parse(b"<html>"), None);
    }
}
