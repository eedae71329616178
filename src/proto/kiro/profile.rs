//! Whose account it is, and what an ARN of a profile says (K73, K74, K77).

use crate::proto::record::{Method, Token, is_region};

/// Kiro's fixed profile of Builder ID accounts (K77).
pub const BUILDER_ID_PROFILE: &str = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX";
/// Kiro's fixed profile of social accounts (K77).
pub const SOCIAL_PROFILE: &str = "arn:aws:codewhisperer:us-east-1:699475941385:profile/EHGA3GRVQMUK";
/// Where the hosts of shape `runtime` are known (K117).
pub const RUNTIME_REGIONS: [&str; 4] = ["us-east-1", "eu-central-1", "us-gov-east-1", "us-gov-west-1"];

/// Kind of an account (K73): what may go out as its profile follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccountKind {
    /// Signs with an API key.
    ApiKey,
    /// Of an organisation's own identity provider.
    External,
    /// Google or GitHub.
    Social,
    /// An AWS Builder ID.
    BuilderId,
    /// A user of an organisation's IAM Identity Center.
    Enterprise,
    /// One of the last two: the records don't say which.
    Unsure,
}

impl AccountKind {
    /// The word in lists, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api-key",
            Self::External => "external",
            Self::Social => "social",
            Self::BuilderId => "builder-id",
            Self::Enterprise => "enterprise",
            Self::Unsure => "unsure",
        }
    }

    /// Whether ListAvailableProfiles has an answer for it (K79).
    pub const fn has_profiles(self) -> bool {
        matches!(self, Self::Enterprise | Self::External | Self::Unsure)
    }
}

/// What ListAvailableProfiles said of an account's kind; it outweighs the records (K73).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KindEvidence {
    /// Nothing yet.
    #[default]
    Nothing,
    /// That it doesn't answer Builder IDs.
    BuilderId,
    /// It named profiles.
    Profiles,
}

/// The kind by the token record and by the evidence of ListAvailableProfiles. `has_own`: the records have an ARN that
/// isn't one of Kiro's fixed ones.
pub fn kind_of(token: &Token, has_own: bool, said: KindEvidence) -> AccountKind {
    match token.method() {
        Method::ApiKey => return AccountKind::ApiKey,
        Method::External => return AccountKind::External,
        Method::Social => return AccountKind::Social,
        Method::Idc => {}
    }
    let provider = |word: &str| token.provider.as_deref().is_some_and(|found| found.eq_ignore_ascii_case(word));
    match (said, token.start_url.as_deref()) {
        (KindEvidence::BuilderId, _) => AccountKind::BuilderId,
        (KindEvidence::Profiles, _) => AccountKind::Enterprise,
        (KindEvidence::Nothing, Some(url)) if is_builder_id_start(url) => AccountKind::BuilderId,
        (KindEvidence::Nothing, Some(_)) => AccountKind::Enterprise,
        (KindEvidence::Nothing, None) if provider("BuilderId") => AccountKind::BuilderId,
        (KindEvidence::Nothing, None) if provider("Enterprise") || has_own => AccountKind::Enterprise,
        (KindEvidence::Nothing, None) => AccountKind::Unsure,
    }
}

fn is_builder_id_start(url: &str) -> bool {
    url.trim_end_matches(['/', '#']).eq_ignore_ascii_case("https://view.awsapps.com/start")
}

/// The region in an ARN, its fourth field; none when that isn't a region's name (K11).
pub fn region_of(arn: &str) -> Option<&str> {
    let mut fields = arn.split(':');
    let is_arn = fields.next() == Some("arn");
    fields.nth(2).filter(|region| is_arn && is_region(region))
}

/// Whether a text can be the ARN of a profile of Kiro's.
pub fn is_arn(text: &str) -> bool {
    let is_kiros = text.starts_with("arn:") && text.split(':').nth(2) == Some("codewhisperer");
    is_kiros && text.len() <= 2_048 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether a region belongs to AWS GovCloud (K79, K81).
pub fn is_gov(region: &str) -> bool {
    region.starts_with("us-gov-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(record: &str, said: KindEvidence) -> AccountKind {
        let token = Token::parse(record.as_bytes()).unwrap();
        kind_of(&token, token.profile_arn.is_some(), said)
    }

    #[test]
    fn the_first_match_decides_the_kind_k73() {
        let table = [
            (r#"{"kiroApiKey":"k"}"#, AccountKind::ApiKey),
            (r#"{"authMethod":"okta"}"#, AccountKind::External),
            (r#"{"authMethod":"social","startUrl":"https://x"}"#, AccountKind::Social),
            (r#"{"authMethod":"idc","startUrl":"https://view.awsapps.com/start"}"#, AccountKind::BuilderId),
            (r#"{"authMethod":"idc","startUrl":"HTTPS://View.awsapps.com/start/#/"}"#, AccountKind::BuilderId),
            (
                r#"{"authMethod":"idc","startUrl":"https://view.awsapps.com/start#","provider":"Enterprise"}"#,
                AccountKind::BuilderId,
            ),
            (r#"{"authMethod":"idc","provider":"builderid","profileArn":"arn:x"}"#, AccountKind::BuilderId),
            (
                r#"{"authMethod":"idc","startUrl":"https://d-1.awsapps.com/start","provider":"BuilderId"}"#,
                AccountKind::Enterprise,
            ),
            (r#"{"authMethod":"idc","provider":"ENTERPRISE"}"#, AccountKind::Enterprise),
            (r#"{"authMethod":"builder-id","profileArn":"arn:x"}"#, AccountKind::Enterprise),
            (r#"{"authMethod":"builder-id"}"#, AccountKind::Unsure),
            (r#"{"authMethod":"idc","provider":"Google"}"#, AccountKind::Unsure),
        ];
        for (record, expected) in table {
            assert_eq!(kind(record, KindEvidence::Nothing), expected, "{record}");
        }
        let enterprise = r#"{"authMethod":"idc","startUrl":"https://x.awsapps.com/start"}"#;
        assert_eq!(
            kind(enterprise, KindEvidence::BuilderId),
            AccountKind::BuilderId,
            "what K79 says outweighs the record"
        );
        assert_eq!(
            kind(r#"{"authMethod":"idc","provider":"BuilderId"}"#, KindEvidence::Profiles),
            AccountKind::Enterprise
        );
        assert_eq!(kind(r#"{"authMethod":"social"}"#, KindEvidence::Profiles), AccountKind::Social);
    }

    #[test]
    fn the_region_of_an_arn_is_checked_k11_p27() {
        assert_eq!(region_of("arn:aws:codewhisperer:eu-central-1:1:profile/X"), Some("eu-central-1"));
        assert_eq!(region_of("arn:aws-us-gov:codewhisperer:us-gov-west-1:1:profile/X"), Some("us-gov-west-1"));
        for bad in ["arn:aws:codewhisperer:x/../y:1:profile/X", "arn:x", "", "a:aws:c:us-east-1:1", "arn:aws:c::1"] {
            assert_eq!(region_of(bad), None, "{bad}");
        }
        assert_eq!(region_of(BUILDER_ID_PROFILE), Some("us-east-1"));
    }
}
