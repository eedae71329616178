//! What an attempt must know of its account: addresses, region, profile, fingerprint of the machine.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::policy::learned::Variant;
use crate::proto::kiro::route::{Call, Shape};
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
    /// Where calls of Kiro's services go.
    ways: Ways,
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

    /// The header `tokentype`, where upstream must be told what kind of token it gets.
    pub fn token_type(&self) -> Option<&'static str> {
        self.is_api_key().then_some("API_KEY")
    }

    /// The variants of the profile that may be sent, the first one first (K77).
    pub fn variants(&self) -> Vec<Variant> {
        let own = self.profile_arn.as_deref().filter(|_| !self.is_api_key()).map(|arn| Variant::Own(arn.into()));
        own.into_iter().chain([Variant::None]).collect()
    }

    /// The region of the host that a call with this variant goes to (K74).
    pub fn api_region(&self, _variant: &Variant) -> &str {
        &self.region
    }

    /// The wire shapes that may be used in an API region, the preferred one first (K117, K118).
    pub fn shapes(&self, region: &str) -> &[Shape] {
        match &self.ways {
            Ways::Pinned { shape: Shape::Q, .. } => &[Shape::Q],
            Ways::Pinned { shape: Shape::Runtime, .. } => &[Shape::Runtime],
            Ways::Open(urls) => match urls.shapes {
                [first, second] if !RUNTIME_REGIONS.contains(&region) && first != second => &[Shape::Q],
                [Shape::Q, Shape::Q] => &[Shape::Q],
                [Shape::Runtime, Shape::Runtime] => &[Shape::Runtime],
                [Shape::Q, Shape::Runtime] => &[Shape::Q, Shape::Runtime],
                [Shape::Runtime, Shape::Q] => &[Shape::Runtime, Shape::Q],
            },
        }
    }

    /// Where a call goes, without its query (K111, K12, K118).
    pub fn url(&self, shape: Shape, call: Call, region: &str) -> String {
        let fill = |template: &str| endpoint(template, region).unwrap_or_default();
        let (chat, management) = match &self.ways {
            Ways::Pinned { url, management, .. } => {
                let chat = fill(url);
                let management = management.as_deref().filter(|_| shape == Shape::Runtime).map(fill);
                let management = management.unwrap_or_else(|| origin(&chat).to_owned());
                (chat, management)
            }
            Ways::Open(urls) if shape == Shape::Q => {
                let chat = fill(&urls.generate);
                let origin = origin(&chat).to_owned();
                (chat, origin)
            }
            Ways::Open(urls) => (fill(&urls.runtime), fill(&urls.management)),
        };
        let management = management.trim_end_matches('/');
        match (call, shape) {
            (Call::Chat, _) | (Call::Mcp, Shape::Runtime) => chat,
            (Call::Mcp, Shape::Q) => format!("{}/mcp", origin(&chat)),
            (Call::Usage, _) => format!("{management}/getUsageLimits"),
            (Call::Models, _) | (Call::Profiles, Shape::Q) => format!("{management}/"),
            (Call::Profiles, Shape::Runtime) => format!("{management}/List-Available-Profiles"),
        }
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

/// Scheme and authority of a URL.
fn origin(url: &str) -> &str {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let rest = url.get(after_scheme..).unwrap_or_default();
    let end = rest.find(['/', '?', '#']).map_or(url.len(), |at| after_scheme + at);
    url.get(..end).unwrap_or(url)
}

/// Regions in which the hosts of shape `runtime` are known (K117).
const RUNTIME_REGIONS: [&str; 4] = ["us-east-1", "eu-central-1", "us-gov-east-1", "us-gov-west-1"];

/// Where calls of Kiro's services go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ways {
    /// To one address, and the shape is what its path says (K118).
    Pinned {
        shape: Shape,
        url: String,
        /// `KIRO_MANAGEMENT_URL`, when it was said.
        management: Option<String>,
    },
    /// To the hosts of the configuration.
    Open(Arc<Urls>),
}

impl Ways {
    fn pinned(url: &str, urls: &Urls) -> Self {
        let path = url.get(origin(url).len()..).unwrap_or_default();
        let shape = if matches!(path, "" | "/") { Shape::Runtime } else { Shape::Q };
        let management = (urls.management != crate::config::DEFAULT_MANAGEMENT_URL).then(|| urls.management.clone());
        Self::Pinned { shape, url: url.to_owned(), management }
    }
}

/// Addresses of the configuration, with `{region}` in them (K12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Urls {
    /// `KIRO_UPSTREAM_URL`.
    pub(super) generate: String,
    /// `KIRO_RUNTIME_URL`.
    pub(super) runtime: String,
    /// `KIRO_MANAGEMENT_URL`.
    pub(super) management: String,
    /// `KIRO_UPSTREAM_API`; twice the same: only that one.
    pub(super) shapes: [Shape; 2],
    /// `KIRO_UPSTREAM_URL` was changed and `KIRO_RUNTIME_URL` wasn't: the one address is all there is.
    pub(super) pinned: bool,
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

/// Why an external account doesn't serve (R71).
const NO_EXTERNAL: &str = "external identity provider: not supported yet; sign in to Kiro with a Builder ID, Google, \
                           GitHub or IAM Identity Center instead";

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
    urls: &Arc<Urls>,
) -> Viewed {
    let mut warnings = Vec::new();
    let mut problem = None;
    let own = |field: fn(&Account) -> &Option<String>| account.and_then(|account| field(account).as_deref());
    let region = token.region.as_deref().or(own(|account| &account.region)).unwrap_or(DEFAULT_REGION).to_owned();
    let idc_region = token.idc_region.clone().unwrap_or_else(|| region.clone());
    let method = token.method();
    if method == Method::External {
        // Its refresh token belongs to a third party: no other method's address may ever see it.
        problem = Some(NO_EXTERNAL.to_owned());
    } else if method == Method::ApiKey && token.kiro_api_key.is_none() {
        problem = Some("kiroApiKey: missing".to_owned());
    } else if !is_region(&region) {
        problem = Some("region: not a region's name".to_owned());
    } else if method == Method::Idc && !is_region(&idc_region) {
        problem = Some("idcRegion: not a region's name".to_owned());
    }
    let ignored = token.ignored.iter().chain(account.iter().flat_map(|account| &account.ignored));
    warnings.extend(ignored.map(|field| format!("{field}: ignored, too long or not of its form")));
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
    let own_base = own(|account| &account.base_url).or(Some(lent.generate.as_str()).filter(|lent| !lent.is_empty()));
    let ways = match own_base.filter(|url| endpoint(url, &region).is_some()) {
        Some(url) => Ways::pinned(url, urls),
        None if urls.pinned => Ways::pinned(&urls.generate, urls),
        None => Ways::Open(urls.clone()),
    };
    let view = AccountView {
        ways,
        id: id.clone(),
        name: own(|account| &account.custom_name).filter(|name| !name.is_empty()).map(str::to_owned),
        method,
        region,
        profile_arn: token.profile_arn.as_deref().or(own(|account| &account.profile_arn)).map(str::to_owned),
        machine_id: own(|account| &account.machine_id).map_or_else(|| machine_id.clone(), Arc::from),
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

    fn urls() -> Arc<Urls> {
        Arc::new(Urls {
            generate: crate::config::DEFAULT_UPSTREAM_URL.into(),
            runtime: crate::config::DEFAULT_RUNTIME_URL.into(),
            management: crate::config::DEFAULT_MANAGEMENT_URL.into(),
            shapes: [Shape::Q, Shape::Runtime],
            pinned: false,
            social_refresh: "https://prod.{region}.auth.desktop.kiro.dev/refreshToken".into(),
            idc_refresh: "https://oidc.{region}.amazonaws.com/token".into(),
        })
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
        let idc = viewed("{}", r#"{"authMethod":"idc","idcRegion":"us-east-2"}"#).view;
        assert_eq!(idc.generate_url, "https://q.us-east-1.amazonaws.com/generateAssistantResponse");
        assert_eq!(idc.refresh_url, "https://oidc.us-east-2.amazonaws.com/token");
        let both = viewed(r#"{"region":"eu-west-1"}"#, r#"{"authMethod":"idc","region":"ap-southeast-2"}"#).view;
        assert_eq!((both.region(), both.refresh_region()), ("ap-southeast-2", "ap-southeast-2"));
        assert_eq!(viewed(r#"{"region":"eu-west-1"}"#, "{}").view.region, "eu-west-1", "fall-back of §3");
    }

    #[test]
    fn k111_k117_k118_where_each_call_goes() {
        let view = viewed("{}", r#"{"authMethod":"social"}"#).view;
        let q = "https://q.us-east-1.amazonaws.com";
        let management = "https://management.us-east-1.kiro.dev";
        let table = [
            (Shape::Q, Call::Chat, format!("{q}/generateAssistantResponse")),
            (Shape::Q, Call::Mcp, format!("{q}/mcp")),
            (Shape::Q, Call::Usage, format!("{q}/getUsageLimits")),
            (Shape::Q, Call::Models, format!("{q}/")),
            (Shape::Q, Call::Profiles, format!("{q}/")),
            (Shape::Runtime, Call::Chat, "https://runtime.us-east-1.kiro.dev/".to_owned()),
            (Shape::Runtime, Call::Mcp, "https://runtime.us-east-1.kiro.dev/".to_owned()),
            (Shape::Runtime, Call::Usage, format!("{management}/getUsageLimits")),
            (Shape::Runtime, Call::Models, format!("{management}/")),
            (Shape::Runtime, Call::Profiles, format!("{management}/List-Available-Profiles")),
        ];
        for (shape, call, url) in table {
            assert_eq!(view.url(shape, call, "us-east-1"), url, "{shape} {}", call.as_str());
        }
        assert_eq!(view.shapes("us-east-1"), [Shape::Q, Shape::Runtime]);
        assert_eq!(view.shapes("ap-southeast-2"), [Shape::Q], "K117");
    }

    /// A90: the path says the shape, and nothing goes to another host.
    #[test]
    fn a90_k12_k118_an_address_of_its_own_pins_host_and_shape() {
        for (url, shape) in [
            ("http://127.0.0.1:9/", Shape::Runtime),
            ("http://127.0.0.1:9", Shape::Runtime),
            ("http://127.0.0.1:9/generateAssistantResponse", Shape::Q),
        ] {
            let view = viewed(&format!(r#"{{"KIRO_BASE_URL":"{url}"}}"#), "{}").view;
            assert_eq!(view.shapes("us-east-1"), [shape], "{url}");
            for call in [Call::Chat, Call::Mcp, Call::Usage, Call::Models, Call::Profiles] {
                assert!(
                    view.url(shape, call, "us-east-1").starts_with("http://127.0.0.1:9"),
                    "{url} {}",
                    call.as_str()
                );
            }
        }
        let pinned = Urls { pinned: true, generate: "http://127.0.0.1:8/x".into(), ..(*urls()).clone() };
        assert!(matches!(Ways::pinned(&pinned.generate, &pinned), Ways::Pinned { management: None, .. }));
        let with = Urls { management: "http://127.0.0.1:7".into(), generate: "http://127.0.0.1:8/".into(), ..pinned };
        let account = AccountView { ways: Ways::pinned(&with.generate, &with), ..viewed("{}", "{}").view };
        let usage = account.url(Shape::Runtime, Call::Usage, "us-east-1");
        assert_eq!(usage, "http://127.0.0.1:7/getUsageLimits");
        assert_eq!(account.url(Shape::Runtime, Call::Mcp, "us-east-1"), "http://127.0.0.1:8/");
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

    #[test]
    fn r71_r84_an_external_account_is_recognised_and_unusable() {
        for record in [
            r#"{"authMethod":"external_idp","refreshToken":"r","region":"westeurope"}"#,
            r#"{"authMethod":"AzureAD","accessToken":"a","clientId":"c","clientSecret":"s","refreshToken":"r"}"#,
            r#"{"tokenEndpoint":"https://login.microsoftonline.com/t","clientId":"c","refreshToken":"r"}"#,
        ] {
            let viewed = viewed("{}", record);
            assert_eq!(viewed.view.method(), Method::External);
            assert_eq!(viewed.problem.as_deref(), Some(NO_EXTERNAL), "{record}");
        }
        assert_eq!(viewed("{}", r#"{"authMethod":"api_key"}"#).problem.as_deref(), Some("kiroApiKey: missing"));
    }

    #[test]
    fn r70_r77_an_own_machine_id_and_fields_that_are_ignored() {
        let id = "ab".repeat(32);
        let own = viewed(&format!(r#"{{"machineId":"{id}"}}"#), "{}").view.machine_id;
        assert_eq!(*own, id);
        let bad = viewed(r#"{"machineId":"x"}"#, r#"{"startUrl":"https://\u00e9"}"#);
        assert_eq!(bad.view.machine_id, machine_id("0123456789"));
        let sentence = |field: &str| format!("{field}: ignored, too long or not of its form");
        assert_eq!(bad.warnings, [sentence("startUrl"), sentence("machineId")]);
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
