//! The calls of an account: usage (K62, K63), profiles (K79) and models (K124).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::arns::{BUILDER_ID_ARN, PROFILE_ARN, SOCIAL_ARN, is_service_arn};
use super::reply::HttpReply;
use super::wire::is_region;
use super::world::SimWorld;
use crate::proto::kiro::route::Operation;

const NOT_AUTHORIZED: &str = "User is not authorized to make this call.";
const INVALID_TOKEN: &str = "The bearer token included in the request is invalid.";
const EXPIRED_TOKEN: &str = "ExpiredToken: the security token included in the request is expired";
const BUILDER_ID: &str = "AWS Builder ID is not supported for this operation.";

/// The kind that an access token `sim-acct-KIND[-REGION][.x]` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SimKind {
    Builder,
    /// A service ARN is refused as "not authorized".
    BuilderStrict,
    /// A service ARN is refused as an invalid token.
    BuilderStrictToken,
    Social,
    Enterprise,
    /// Two profiles, the first refused.
    Enterprise2,
    External,
    /// An enterprise account that no profile was given.
    NoProfile,
    Key,
}

/// Longer names first, because some begin with a shorter one.
const KINDS: &[(&str, SimKind)] = &[
    ("builder-strict-token", SimKind::BuilderStrictToken),
    ("builder-strict", SimKind::BuilderStrict),
    ("builder", SimKind::Builder),
    ("social", SimKind::Social),
    ("enterprise2", SimKind::Enterprise2),
    ("enterprise", SimKind::Enterprise),
    ("external", SimKind::External),
    ("noprofile", SimKind::NoProfile),
    ("key", SimKind::Key),
];

/// An account of a kind, in a region.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimAccount<'a> {
    kind: SimKind,
    region: &'a str,
}

impl<'a> SimAccount<'a> {
    /// The account of an access token; none for tokens of another form.
    ///
    /// # Errors
    /// A sentence, when the form is right and the kind or the region isn't.
    pub fn of(token: &'a str) -> Result<Option<Self>, String> {
        let Some(rest) = token.strip_prefix("sim-acct-") else { return Ok(None) };
        let name = rest.split(['.', '~', '@']).next().unwrap_or(rest);
        for (word, kind) in KINDS {
            let Some(region) = name.strip_prefix(word) else { continue };
            return match region.strip_prefix('-') {
                None if region.is_empty() => Ok(Some(Self { kind: *kind, region: "us-east-1" })),
                Some(region) if is_region(region) => Ok(Some(Self { kind: *kind, region })),
                _ => continue,
            };
        }
        Err(format!("no kind of account is called `{name}`"))
    }

    /// Its profiles, and whether each lets it in.
    fn profiles(&self, world: &SimWorld) -> Vec<(String, bool)> {
        if let Some(profiles) = &world.profiles {
            let arn = |profile: &Value| profile["arn"].as_str().unwrap_or_default().to_owned();
            let is_active = |profile: &Value| profile["status"].as_str().is_none_or(|status| status == "ACTIVE");
            return profiles.iter().map(|profile| (arn(profile), is_active(profile))).collect();
        }
        match self.kind {
            SimKind::Enterprise | SimKind::External => vec![(enterprise_arn(self.region), true)],
            SimKind::Enterprise2 => {
                vec![(numbered_arn(self.region, "AAAA1"), false), (numbered_arn(self.region, "CCCC3"), true)]
            }
            _ => Vec::new(),
        }
    }

    /// Whether a call is served: the header `tokentype`, the region and the ARN fit the account.
    ///
    /// # Errors
    /// Upstream's answer, in its ambiguous words (K78).
    pub fn admits(
        &self,
        call: Operation,
        region: Option<&str>,
        arn: Option<&str>,
        token_type: Option<&str>,
        world: &SimWorld,
    ) -> Result<(), HttpReply> {
        let forbidden = |message: &str| Err(HttpReply::error(403, "AccessDeniedException", None, message));
        let invalid = |message: &str| Err(HttpReply::error(400, "ValidationException", None, message));
        let wanted = match self.kind {
            SimKind::External => Some("EXTERNAL_IDP"),
            SimKind::Key => Some("API_KEY"),
            _ => None,
        };
        if token_type != wanted {
            return forbidden(if self.kind == SimKind::External { "Invalid token" } else { INVALID_TOKEN });
        }
        if let Some(region) = region.filter(|region| *region != self.region) {
            let is_elsewhere = arn.and_then(|arn| arn.split(':').nth(3)).is_some_and(|own| own != region);
            return if is_elsewhere { invalid("Improperly formed request.") } else { forbidden(NOT_AUTHORIZED) };
        }
        let talks = matches!(call, Operation::Chat | Operation::Mcp);
        match (self.kind, arn) {
            (SimKind::Builder, Some(BUILDER_ID_ARN)) | (SimKind::Social, Some(SOCIAL_ARN)) => Ok(()),
            (SimKind::Builder | SimKind::Social, None) if talks && world.is_today => {
                invalid("profileArn is required for this request.")
            }
            (SimKind::BuilderStrict, Some(BUILDER_ID_ARN)) => forbidden(NOT_AUTHORIZED),
            (SimKind::BuilderStrictToken, Some(BUILDER_ID_ARN)) => forbidden(INVALID_TOKEN),
            (SimKind::Builder | SimKind::BuilderStrict | SimKind::BuilderStrictToken | SimKind::Social, None) => Ok(()),
            (SimKind::Builder | SimKind::BuilderStrict | SimKind::BuilderStrictToken | SimKind::Social, Some(_)) => {
                invalid("Invalid profileArn.")
            }
            (SimKind::Key, None) => Ok(()),
            (SimKind::Key, Some(_)) => forbidden(NOT_AUTHORIZED),
            (_, Some(arn)) if is_service_arn(arn) => forbidden(INVALID_TOKEN),
            (SimKind::NoProfile, _) => forbidden(NOT_AUTHORIZED),
            (_, Some(arn)) if self.profiles(world).iter().any(|(own, lets_in)| own == arn && *lets_in) => Ok(()),
            (_, None) if !talks => Ok(()),
            _ => forbidden(NOT_AUTHORIZED),
        }
    }

    /// K79, from `start` on.
    pub fn list_profiles(
        &self,
        region: Option<&str>,
        token_type: Option<&str>,
        start: usize,
        world: &SimWorld,
    ) -> HttpReply {
        match self.kind {
            SimKind::Builder | SimKind::BuilderStrict | SimKind::BuilderStrictToken => {
                return HttpReply::error(403, "AccessDeniedException", None, BUILDER_ID);
            }
            SimKind::Social | SimKind::Key => {
                return HttpReply::error(403, "AccessDeniedException", None, NOT_AUTHORIZED);
            }
            _ => {}
        }
        let is_blind = self.kind == SimKind::External && token_type != Some("EXTERNAL_IDP");
        if is_blind || region.is_some_and(|region| region != self.region) {
            return HttpReply::json(200, &json!({ "profiles": [] }));
        }
        let listed = world.profiles.clone().unwrap_or_else(|| {
            let entry = |(n, (arn, _)): (usize, (String, bool))| {
                json!({ "arn": arn, "profileName": format!("simulated {}", n + 1), "status": "ACTIVE", "profileType": "KIRO" })
            };
            self.profiles(world).into_iter().enumerate().map(entry).collect()
        });
        let page = world.profiles_page.unwrap_or(listed.len().max(1));
        paged("profiles", &listed, page, start, json!({}))
    }
}

/// One page of a list, with the number of the next one's first entry as `nextToken`.
fn paged(name: &str, all: &[Value], page: usize, start: usize, mut body: Value) -> HttpReply {
    let end = all.len().min(start.saturating_add(page));
    body[name] = all.get(start..end).unwrap_or_default().into();
    if end < all.len() {
        body["nextToken"] = end.to_string().into();
    }
    HttpReply::json(200, &body)
}

/// The profile of a simulated enterprise in a region.
fn enterprise_arn(region: &str) -> String {
    numbered_arn(region, if region == "us-east-1" { "EEEE1" } else { "EEEE2" })
}

fn numbered_arn(region: &str, name: &str) -> String {
    let partition = if region.starts_with("us-gov-") { "aws-us-gov" } else { "aws" };
    format!("arn:{partition}:codewhisperer:{region}:111122223333:profile/{name}")
}

/// The account of a token, before and after refreshes.
pub(super) fn identity(token: &str) -> &str {
    if token.starts_with("sim-acct-") {
        return token.split('~').next().unwrap_or(token);
    }
    let refreshed = token.strip_prefix("sim-ok.").and_then(|rest| rest.split_once('.'));
    match refreshed {
        Some((number, root)) if number.bytes().all(|byte| byte.is_ascii_digit()) => root,
        _ => token,
    }
}

/// The answer to an expired access token.
pub(super) fn expired() -> HttpReply {
    HttpReply::error(403, "ExpiredTokenException", None, EXPIRED_TOKEN)
}

/// The answer to a request without a bearer token.
pub(super) fn no_bearer() -> HttpReply {
    HttpReply::error(403, "AccessDeniedException", None, INVALID_TOKEN)
}

/// The usage of an account (K62, K63): a little; all of it for the tokens `sim-402…` and `sim-overage…`; what was used
/// of what, in a world that counts credits. Another ARN than ours is refused.
pub(super) fn usage(token: &str, profile_arn: Option<&str>, quota: Option<(f64, f64)>) -> HttpReply {
    let is_known = |arn| arn == PROFILE_ARN || is_service_arn(arn);
    if !token.starts_with("sim-acct-") && profile_arn.is_some_and(|arn| !is_known(arn)) {
        return HttpReply::error(400, "ValidationException", None, "Invalid profileArn.");
    }
    let is_full = ["sim-402", "sim-overage"].iter().any(|prefix| token.starts_with(prefix));
    let (used, limit) = quota.unwrap_or((if is_full { 1000.0 } else { 125.5 }, 1000.0));
    let (reset, more) = match quota {
        Some(_) => (Timestamp::now().as_second() as f64 + 9.0 * 86_400.0, "EXPIRED"),
        None => (1_798_761_600.0, "ACTIVE"),
    };
    HttpReply::json(
        200,
        &json!({
            "nextDateReset": reset,
            "daysUntilReset": 9,
            "subscriptionInfo": {
                "subscriptionTitle": "KIRO PRO (simulated)", "type": "Q_DEVELOPER_STANDALONE_PRO",
                "upgradeCapability": "UPGRADE_CAPABLE", "overageCapability": "OVERAGE_CAPABLE",
            },
            "userInfo": { "email": "simulated@example.com", "userId": "d-0000000000.simulated" },
            "usageBreakdownList": [{
                "resourceType": "AGENTIC_REQUEST", "displayName": "Credit", "unit": "INVOCATIONS", "currency": "USD",
                "currentUsage": used as u64, "currentUsageWithPrecision": used,
                "usageLimit": limit as u64, "usageLimitWithPrecision": limit,
                "currentOverages": 0, "overageCap": 10_000, "overageRate": 0.04, "overageCharges": 0.0,
                "nextDateReset": reset,
                "freeTrialInfo": {
                    "freeTrialStatus": more, "freeTrialExpiry": 1_798_761_600.0,
                    "currentUsage": 10, "currentUsageWithPrecision": 10.25, "usageLimit": 500, "usageLimitWithPrecision": 500.0,
                },
                "bonuses": [
                    { "bonusCode": "SIMULATED", "status": more, "currentUsage": 5.0, "usageLimit": 50.0, "expiresAt": 1_798_761_600.0 },
                    { "bonusCode": "OVER", "status": "EXPIRED", "currentUsage": 5.0, "usageLimit": 50.0, "expiresAt": 1_700_000_000.0 },
                ],
            }],
        }),
    )
}

/// Chat's refusal of an account without credits.
pub(super) fn used_up() -> HttpReply {
    let message = "You have reached the limit.";
    HttpReply::error(402, "ServiceQuotaExceededException", Some("MONTHLY_REQUEST_COUNT"), message)
}

/// K64: one profile; none for the tokens `sim-no-profile…`, a refusal for `sim-builder-id…`.
pub(super) fn profiles(token: &str) -> HttpReply {
    if token.starts_with("sim-builder-id") {
        return HttpReply::error(403, "AccessDeniedException", None, BUILDER_ID);
    }
    let profiles = if token.starts_with("sim-no-profile") {
        json!([])
    } else {
        json!([{ "arn": PROFILE_ARN, "profileName": "simulated", "status": "ACTIVE", "profileType": "KIRO" }])
    };
    HttpReply::json(200, &json!({ "profiles": profiles }))
}

/// K124, from `start` on.
pub(super) fn models(asked: usize, start: usize, world: &SimWorld) -> HttpReply {
    let listed: Vec<Value> =
        world.models.iter().filter(|model| model.listed).map(super::models::Model::entry).collect();
    let default = listed.iter().find(|model| model["modelId"] == "claude-sonnet-4.5").or(listed.first()).cloned();
    let mut body = json!({});
    if let Some(default) = default {
        body["defaultModel"] = default;
    }
    paged("models", &listed, world.models_page.unwrap_or(asked), start, body)
}
