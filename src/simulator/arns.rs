//! The profiles that the simulator knows.

/// The profile that the simulator knows, and gives to social refreshes.
pub const PROFILE_ARN: &str = "arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED";
/// Kiro's own profile of Builder ID accounts (K77).
pub(super) const BUILDER_ID_ARN: &str = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX";
/// Kiro's own profile of social accounts (K77).
pub(super) const SOCIAL_ARN: &str = "arn:aws:codewhisperer:us-east-1:699475941385:profile/EHGA3GRVQMUK";

/// Whether an ARN is one of Kiro's own.
pub(super) fn is_service_arn(arn: &str) -> bool {
    [BUILDER_ID_ARN, SOCIAL_ARN].contains(&arn)
}
