//! What an attempt must know of its account: addresses, region, profile, fingerprint of the machine.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::proto::record::{Account, DEFAULT_REGION, Method, Token, endpoint, hex, is_region};
use crate::secret::Secret;

/// Names an account: the hash field of the pool (R13).
pub type AccountId = Arc<str>;

/// One account as an attempt sees it. No secret in it but the proxy's password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountView {
    pub(super) id: AccountId,
    pub(super) name: Option<String>,
    pub(super) method: Method,
    pub(super) region: String,
    pub(super) profile_arn: Option<String>,
    pub(super) machine_id: Arc<str>,
    generate_url: String,
    refresh_url: String,
    refresh_region: String,
    proxy_url: Option<Secret>,
}

impl AccountView {
    /// The whole id. For logs and metrics there is [`AccountView::short_id`].
    pub fn id(&self) -> &AccountId {
        &self.id
    }

    /// The first 8 characters of the id: all that logs, metrics and errors may show.
    pub fn short_id(&self) -> &str {
        short(&self.id)
    }

    /// How its credential is renewed.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Whether it signs with an API key: no token to refresh, a header more (K51).
    pub fn is_api_key(&self) -> bool {
        self.method == Method::ApiKey
    }

    /// Region of the Kiro host (K10); valid by K11.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Goes into the body of each attempt of this account: from the token record, else from the account record.
    pub fn profile_arn(&self) -> Option<&str> {
        self.profile_arn.as_deref()
    }

    /// 64 hex digits that never change (K16).
    pub fn machine_id(&self) -> &str {
        &self.machine_id
    }

    /// `generateAssistantResponse` of this account (K4, K12).
    pub fn generate_url(&self) -> &str {
        &self.generate_url
    }

    /// Scheme and authority of [`AccountView::generate_url`], where K5 to K7 go.
    pub fn origin(&self) -> &str {
        let after_scheme = self.generate_url.find("://").map_or(0, |at| at + 3);
        let rest = self.generate_url.get(after_scheme..).unwrap_or_default();
        let end = rest.find(['/', '?', '#']).map_or(self.generate_url.len(), |at| after_scheme + at);
        self.generate_url.get(..end).unwrap_or(&self.generate_url)
    }

    /// Where its token is refreshed (K8, K9, K12).
    pub fn refresh_url(&self) -> &str {
        &self.refresh_url
    }

    /// The region that [`AccountView::refresh_url`] is of: the one to doubt when a refresh is refused (R41).
    pub fn refresh_region(&self) -> &str {
        &self.refresh_region
    }

    /// This account's own proxy, in place of `KIRO_PROXY_URL`.
    pub fn proxy_url(&self) -> Option<&Secret> {
        self.proxy_url.as_ref()
    }
}

/// Addresses of the configuration, with `{region}` in them (K12).
#[derive(Clone, Debug)]
pub(super) struct Urls {
    /// `KIRO_UPSTREAM_URL`.
    pub(super) generate: String,
    /// `KIRO_SOCIAL_REFRESH_URL`.
    pub(super) social_refresh: String,
    /// `KIRO_IDC_REFRESH_URL`.
    pub(super) idc_refresh: String,
}

/// Addresses of one account that come from outside its record. An empty one is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// `KIRO_BASE_URL`.
    pub generate: String,
    /// `KIRO_REFRESH_URL`.
    pub social_refresh: String,
    /// `KIRO_REFRESH_IDC_URL`.
    pub idc_refresh: String,
}

/// A view, and what was ignored on the way to it.
#[derive(Debug)]
pub(super) struct Viewed {
    pub(super) view: AccountView,
    /// Why the account can't be used, naming the field (K11).
    pub(super) problem: Option<String>,
    /// Fields that are ignored, one sentence each (§3).
    pub(super) warnings: Vec<String>,
}

/// Resolves region, addresses and profile of an account (K10–K12, K16).
pub(super) fn view(
    id: &AccountId,
    machine_id: &Arc<str>,
    account: Option<&Account>,
    lent: &Addresses,
    token: &Token,
    urls: &Urls,
) -> Viewed {
    let mut warnings = Vec::new();
    let mut problem = None;
    let own = |field: fn(&Account) -> &Option<String>| account.and_then(|account| field(account).as_deref());
    let region = token.region.as_deref().or(own(|account| &account.region)).unwrap_or(DEFAULT_REGION).to_owned();
    let idc_region = token.idc_region.clone().unwrap_or_else(|| region.clone());
    let method = token.method();
    if !is_region(&region) {
        problem = Some("region: not a region's name".to_owned());
    } else if method == Method::Idc && !is_region(&idc_region) {
        problem = Some("idcRegion: not a region's name".to_owned());
    }
    if token.has_unknown_method() {
        warnings.push(format!("authMethod: unknown, taken for {}", method.as_str()));
    }
    let addresses = [
        ("KIRO_BASE_URL", own(|account| &account.base_url), &lent.generate, &urls.generate, &region),
        ("KIRO_REFRESH_URL", own(|account| &account.refresh_url), &lent.social_refresh, &urls.social_refresh, &region),
        (
            "KIRO_REFRESH_IDC_URL",
            own(|account| &account.refresh_idc_url),
            &lent.idc_refresh,
            &urls.idc_refresh,
            &idc_region,
        ),
    ];
    let [generate_url, social_url, idc_url] = addresses.map(|(field, own, lent, configured, region)| {
        if let Some(own) = own.or(Some(lent.as_str()).filter(|lent| !lent.is_empty())) {
            match endpoint(own, region) {
                Some(url) => return url,
                None if problem.is_none() => {
                    warnings.push(format!("{field}: ignored, must be https, or http on loopback"));
                }
                None => {}
            }
        }
        endpoint(configured, region).unwrap_or_default()
    });
    let (refresh_url, refresh_region) =
        if method == Method::Idc { (idc_url, idc_region) } else { (social_url, region.clone()) };
    if problem.is_none() && (generate_url.is_empty() || refresh_url.is_empty()) {
        problem =
            Some("no usable address: KIRO_UPSTREAM_URL or a refresh URL is neither https nor loopback".to_owned());
    }
    let view = AccountView {
        id: id.clone(),
        name: own(|account| &account.custom_name).filter(|name| !name.is_empty()).map(str::to_owned),
        method,
        region,
        profile_arn: token.profile_arn.as_deref().or(own(|account| &account.profile_arn)).map(str::to_owned),
        machine_id: machine_id.clone(),
        generate_url,
        refresh_url,
        refresh_region,
        proxy_url: account.and_then(|account| account.proxy_url.clone()),
    };
    Viewed { view, problem, warnings }
}

/// The SHA-256 of the id, which no refresh, restart or failover changes (K16).
pub(super) fn machine_id(id: &str) -> Arc<str> {
    hex(&Sha256::digest(id.as_bytes())).into()
}

/// The first 8 characters of an account's id: all of it that leaves the store.
pub fn short(id: &str) -> &str {
    id.char_indices().nth(8).map_or(id, |(end, _)| id.get(..end).unwrap_or(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls() -> Urls {
        Urls {
            generate: "https://q.{region}.amazonaws.com/generateAssistantResponse".into(),
            social_refresh: "https://prod.{region}.auth.desktop.kiro.dev/refreshToken".into(),
            idc_refresh: "https://oidc.{region}.amazonaws.com/token".into(),
        }
    }

    fn viewed(account: &str, token: &str) -> Viewed {
        let account = Account::parse(account.as_bytes(), "0123456789").unwrap();
        view(
            &"0123456789".into(),
            &machine_id("0123456789"),
            Some(&account),
            &Addresses::default(),
            &Token::parse(token.as_bytes()).unwrap(),
            &urls(),
        )
    }

    #[test]
    fn k10_k12_regions_and_default_addresses() {
        let social = viewed("{}", r#"{"authMethod":"social"}"#).view;
        assert_eq!(social.generate_url, "https://q.us-east-1.amazonaws.com/generateAssistantResponse");
        assert_eq!(social.refresh_url, "https://prod.us-east-1.auth.desktop.kiro.dev/refreshToken");
        assert_eq!(social.origin(), "https://q.us-east-1.amazonaws.com");
        let idc = viewed("{}", r#"{"authMethod":"idc","idcRegion":"us-east-2"}"#).view;
        assert_eq!(idc.generate_url, "https://q.us-east-1.amazonaws.com/generateAssistantResponse");
        assert_eq!(idc.refresh_url, "https://oidc.us-east-2.amazonaws.com/token");
        let both = viewed(r#"{"region":"eu-west-1"}"#, r#"{"authMethod":"idc","region":"ap-southeast-2"}"#).view;
        assert_eq!((both.region(), both.refresh_region()), ("ap-southeast-2", "ap-southeast-2"));
        assert_eq!(viewed(r#"{"region":"eu-west-1"}"#, "{}").view.region, "eu-west-1", "fall-back of §3");
    }

    #[test]
    fn k11_a_bad_region_makes_the_account_unusable() {
        for bad in ["evil.example.org/", "us-east", "us-east-", "us-east-123", "US-east-1", "us--1", "us-1", "u-east-1"]
        {
            let problem = viewed("{}", &format!(r#"{{"region":"{bad}"}}"#)).problem;
            assert_eq!(problem.as_deref(), Some("region: not a region's name"), "{bad}");
        }
        for good in ["us-east-1", "us-gov-west-1", "ap-southeast-12"] {
            assert_eq!(viewed("{}", &format!(r#"{{"region":"{good}"}}"#)).problem, None, "{good}");
        }
        assert!(viewed("{}", r#"{"authMethod":"idc","idcRegion":"x"}"#).problem.unwrap().starts_with("idcRegion:"));
        assert_eq!(viewed("{}", r#"{"authMethod":"social","idcRegion":"x"}"#).problem, None);
    }

    /// Acceptance case 47.
    #[test]
    fn k12_an_accounts_own_addresses() {
        let own = viewed(
            r#"{"PROXY_URL":"http://127.0.0.1:3128","KIRO_BASE_URL":"https://q.{{region}}.example.org/x",
                "KIRO_REFRESH_URL":"http://localhost:9/{region}"}"#,
            r#"{"authMethod":"social","region":"eu-west-1"}"#,
        );
        assert_eq!(own.view.generate_url, "https://q.eu-west-1.example.org/x");
        assert_eq!(own.view.refresh_url, "http://localhost:9/eu-west-1");
        assert_eq!(own.view.proxy_url, Some(Secret::new("http://127.0.0.1:3128")));
        assert!(own.warnings.is_empty());
        let bad = viewed(r#"{"KIRO_BASE_URL":"http://example.org"}"#, "{}");
        assert_eq!(bad.view.generate_url, "https://q.us-east-1.amazonaws.com/generateAssistantResponse");
        assert_eq!(bad.warnings, ["KIRO_BASE_URL: ignored, must be https, or http on loopback"]);
    }

    #[test]
    fn n4_a_lent_address_counts_where_the_record_has_none() {
        let lent = Addresses {
            generate: "https://lent.example.org/{region}".into(),
            social_refresh: "http://example.org".into(),
            idc_refresh: String::new(),
        };
        let with = |account: &str| {
            let account = Account::parse(account.as_bytes(), "0123456789").unwrap();
            let token = Token::parse(br#"{"authMethod":"social"}"#).unwrap();
            view(&"0123456789".into(), &machine_id("0123456789"), Some(&account), &lent, &token, &urls())
        };
        let bare = with("{}");
        assert_eq!(bare.view.generate_url, "https://lent.example.org/us-east-1");
        assert_eq!(bare.view.refresh_url, "https://prod.us-east-1.auth.desktop.kiro.dev/refreshToken");
        assert_eq!(bare.warnings, ["KIRO_REFRESH_URL: ignored, must be https, or http on loopback"]);
        let own = with(r#"{"KIRO_BASE_URL":"https://own.example.org/x"}"#);
        assert_eq!(own.view.generate_url, "https://own.example.org/x");
    }

    #[test]
    fn k16_trap_25_the_machine_id_depends_on_the_id_alone() {
        let one = viewed("{}", "{}").view.machine_id;
        let two = viewed(r#"{"profileArn":"arn:a","customName":"x"}"#, r#"{"clientId":"c"}"#).view.machine_id;
        assert_eq!(&*one, "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882");
        assert!(one == two && one.len() == 64 && one.bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn trap_24_the_profile_of_the_token_record_comes_first() {
        let account = r#"{"profileArn":"arn:old"}"#;
        assert_eq!(viewed(account, r#"{"profileArn":"arn:new"}"#).view.profile_arn.as_deref(), Some("arn:new"));
        assert_eq!(viewed(account, r#"{"profileArn":""}"#).view.profile_arn.as_deref(), Some("arn:old"));
    }

    #[test]
    fn ids_are_cut_for_show() {
        assert_eq!((short("0123456789"), short("abc")), ("01234567", "abc"));
    }
}
