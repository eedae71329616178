//! An attempt's view of its account: addresses, region, profile, machine id.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::policy::learned::{Learned, MOST_LISTED, Variant};
use crate::proto::address::{ALLOWED, endpoint, origin};
use crate::proto::kiro::external::Hosts;
use crate::proto::kiro::profile::{
    AccountKind, BUILDER_ID_PROFILE, RUNTIME_REGIONS, SOCIAL_PROFILE, is_gov, kind_of, region_of,
};
use crate::proto::kiro::route::{DEFAULT_MANAGEMENT_URL, DEFAULT_RUNTIME_URL, DEFAULT_UPSTREAM_URL, Operation, Shape};
use crate::proto::record::{Account, DEFAULT_REGION, Method, Token, hex, is_region, short};
use crate::secret::Secret;

/// Names an account: the hash field of the pool (R13).
pub type AccountId = Arc<str>;

/// One account as an attempt sees it. No secret in it but the proxy's password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountView {
    pub(crate) id: AccountId,
    pub(crate) name: Option<String>,
    pub(crate) method: Method,
    pub(crate) machine_id: Arc<str>,
    kind: AccountKind,
    /// Never empty; the last one is [`Variant::None`].
    variants: Vec<Variant>,
    /// Where no ARN decides (K74).
    api_region: String,
    /// The records name that region.
    api_region_is_named: bool,
    /// `idcRegion`, for the order of K79.
    idc_region: Option<String>,
    /// The region in which its token is refreshed first.
    refresh_region: String,
    is_gov: bool,
    /// The other host name of GovCloud works (K81).
    fips: bool,
    urls: Arc<Urls>,
    /// The addresses of Kiro's services.
    ways: Ways,
    /// The region of the variant that goes out first.
    region: String,
    /// The chat calls of [`AccountView::region`], by [`Shape`]'s order: made once and not for each attempt.
    chats: [Arc<str>; Shape::ALL.len()],
    /// The refresh address, with `{region}` in it: its own or the configured one.
    refresh: String,
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

    /// Whose account it is (K73).
    pub fn kind(&self) -> AccountKind {
        self.kind
    }

    /// Whether it signs with an API key: no token to refresh, a header more (K51).
    pub fn is_api_key(&self) -> bool {
        self.method == Method::ApiKey
    }

    /// The header `tokentype`; none for accounts that send no such header (K14, K83).
    pub fn token_type(&self) -> Option<&'static str> {
        match self.method {
            Method::ApiKey => Some("API_KEY"),
            Method::External => Some("EXTERNAL_IDP"),
            Method::Social | Method::Idc => None,
        }
    }

    /// The variants of its profile, in the order of K77; never empty, the last one is [`Variant::None`].
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// The same for usage and models (K80): own or listed, none, and the fixed one last.
    pub fn forms(&self) -> Vec<Variant> {
        let is_fixed = |variant: &&Variant| matches!(variant, Variant::Service(_));
        let (fixed, others): (Vec<&Variant>, Vec<&Variant>) = self.variants.iter().partition(is_fixed);
        others.into_iter().chain(fixed).cloned().collect()
    }

    /// The ARN that goes out first.
    pub fn profile_arn(&self) -> Option<&str> {
        self.variants.first().and_then(Variant::arn)
    }

    /// `own`, `listed`, `service`, `none`, or `missing` where the kind needs one (R75).
    pub fn profile(&self) -> &'static str {
        match self.variants.first() {
            None | Some(Variant::None) if self.kind.has_profiles() => "missing",
            None => Variant::None.as_str(),
            Some(variant) => variant.as_str(),
        }
    }

    /// Whether the records have an ARN that isn't one of Kiro's fixed ones.
    pub fn has_own_profile(&self) -> bool {
        matches!(self.variants.first(), Some(Variant::Own(_)))
    }

    /// Whether ListAvailableProfiles must be asked before the first attempt (K77, K79).
    pub fn wants_profiles(&self) -> bool {
        self.profile() == "missing"
    }

    /// Region of the Kiro host for a call with this variant of the profile (K74): the ARN's, else the account's.
    pub fn api_region<'a>(&'a self, variant: &'a Variant) -> &'a str {
        if self.variants.first() == Some(variant) { &self.region } else { self.region_in(variant) }
    }

    fn region_in<'a>(&'a self, variant: &'a Variant) -> &'a str {
        variant.arn().and_then(region_of).unwrap_or(&self.api_region)
    }

    /// Region of the Kiro host for the variant that goes out first; valid by K11.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The API region that the records name (K74, 2).
    pub fn named_region(&self) -> Option<&str> {
        self.api_region_is_named.then_some(self.api_region.as_str())
    }

    /// The regions in which its profiles are looked for, in order (K79): the API regions of its partition.
    pub fn profile_regions(&self) -> Vec<&str> {
        let european = self.idc_region.as_deref().is_some_and(|region| region.starts_with("eu-"));
        let named = self.named_region();
        let rank = |region: &str| match region {
            _ if named == Some(region) => 0,
            "eu-central-1" if european => 1,
            _ if region == self.api_region => 2,
            _ => 3,
        };
        let regions = self.urls.api_regions.iter().map(String::as_str);
        let mut regions: Vec<&str> = regions.filter(|region| is_gov(region) == self.is_gov).collect();
        regions.sort_by_key(|region| rank(region));
        regions
    }

    /// 64 hex digits that never change (K16, R70).
    pub fn machine_id(&self) -> &str {
        &self.machine_id
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
    pub fn url(&self, shape: Shape, call: Operation, region: &str) -> String {
        let fill = |template: &str| endpoint(template, region).unwrap_or_default();
        let (chat, management) = match &self.ways {
            Ways::Pinned { url, management, .. } => {
                let chat = fill(url);
                let management = management.as_deref().filter(|_| shape == Shape::Runtime).map(fill);
                let management = management.unwrap_or_else(|| origin(&chat).to_owned());
                (chat, management)
            }
            Ways::Open(urls) if shape == Shape::Q => {
                let mut chat = fill(&urls.generate);
                if self.fips && self.may_be_fips(shape, region) {
                    chat = chat.replacen("://q.", "://q-fips.", 1);
                }
                let origin = origin(&chat).to_owned();
                (chat, origin)
            }
            Ways::Open(urls) => {
                let chat = fill(&urls.runtime);
                let is_moved = urls.runtime != DEFAULT_RUNTIME_URL && urls.management == DEFAULT_MANAGEMENT_URL;
                // Management calls move with the runtime host: none goes to Kiro's own.
                let management = if is_moved { origin(&chat).to_owned() } else { fill(&urls.management) };
                (chat, management)
            }
        };
        let management = management.trim_end_matches('/');
        match (call, shape) {
            (Operation::Chat, _) | (Operation::Mcp, Shape::Runtime) => chat,
            (Operation::Mcp, Shape::Q) => format!("{}/mcp", origin(&chat)),
            (Operation::Usage, _) => format!("{management}/getUsageLimits"),
            (Operation::Models, _) | (Operation::Profiles, Shape::Q) => format!("{management}/"),
            (Operation::Profiles, Shape::Runtime) => format!("{management}/List-Available-Profiles"),
        }
    }

    /// As [`AccountView::url`] of a chat call.
    pub fn chat_url(&self, shape: Shape, region: &str) -> Arc<str> {
        match self.chats.get(shape as usize).filter(|_| region == self.region()) {
            Some(url) => url.clone(),
            None => self.url(shape, Operation::Chat, region).into(),
        }
    }

    /// Whether GovCloud's other host name is left to be tried when this one can't be resolved (K81): then
    /// [`Lesson::FipsHost`](crate::policy::learned::Lesson::FipsHost) changes [`AccountView::url`].
    pub fn has_other_host(&self, shape: Shape, region: &str) -> bool {
        !self.fips && self.may_be_fips(shape, region)
    }

    /// The region of the ARN that goes out first, and the host's, when they differ: Kiro answers `Improperly formed
    /// request` (K78). Only an operator's own address can cause that.
    pub fn region_clash(&self) -> Option<(&str, String)> {
        let region = region_of(self.profile_arn()?)?;
        let hosts = self.shapes(region).iter().map(|shape| self.url(*shape, Operation::Chat, region));
        let other = |url: String| {
            let host = origin(&url).rsplit_once("//").map_or("", |(_, host)| host);
            let mut labels = host.split(['.', ':']);
            labels.find(|label| is_region(label) && *label != region).map(str::to_owned)
        };
        hosts.filter_map(other).next().map(|other| (region, other))
    }

    fn may_be_fips(&self, shape: Shape, region: &str) -> bool {
        let is_default = matches!(&self.ways, Ways::Open(urls) if urls.generate == DEFAULT_UPSTREAM_URL);
        is_default && shape == Shape::Q && is_gov(region)
    }

    /// The chat call of the variant and shape that are tried first; empty when the address is invalid.
    pub fn generate_url(&self) -> String {
        let region = self.region();
        let shape = self.shapes(region).first().copied().unwrap_or(Shape::Q);
        self.url(shape, Operation::Chat, region)
    }

    /// Fills in the parts that are made once and not for each attempt.
    fn prepared(mut self) -> Self {
        let first = self.variants.first().map_or(self.api_region.as_str(), |variant| self.region_in(variant));
        self.region = first.to_owned();
        self.chats = Shape::ALL.map(|shape| self.url(shape, Operation::Chat, self.region()).into());
        self
    }

    /// The address of its refresh in this region (K8, K9, K12); none for an invalid region.
    pub fn refresh_url(&self, region: &str) -> Option<String> {
        endpoint(&self.refresh, region)
    }

    /// The region in which its token is refreshed first: where that worked, else by K75.
    pub fn refresh_region(&self) -> &str {
        &self.refresh_region
    }

    /// This account's own proxy, in place of `KIRO_PROXY_URL`.
    pub fn proxy_url(&self) -> Option<&Secret> {
        self.proxy_url.as_ref()
    }
}

/// Where calls of Kiro's services go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ways {
    /// To one address; its path says the shape (K118).
    Pinned {
        shape: Shape,
        url: String,
        /// `KIRO_MANAGEMENT_URL`, when it was given.
        management: Option<String>,
    },
    /// To the hosts of the configuration.
    Open(Arc<Urls>),
}

impl Ways {
    fn pinned(url: &str, urls: &Urls) -> Self {
        let path = url.get(origin(url).len()..).unwrap_or_default();
        let shape = if matches!(path, "" | "/") { Shape::Runtime } else { Shape::Q };
        let management = (urls.management != DEFAULT_MANAGEMENT_URL).then(|| urls.management.clone());
        Self::Pinned { shape, url: url.to_owned(), management }
    }
}

/// Addresses of the configuration, with `{region}` in them (K12), and the other settings of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Urls {
    /// `KIRO_UPSTREAM_URL`.
    pub(crate) generate: String,
    /// `KIRO_RUNTIME_URL`.
    pub(crate) runtime: String,
    /// `KIRO_MANAGEMENT_URL`.
    pub(crate) management: String,
    /// `KIRO_UPSTREAM_API`; twice the same: only that one.
    pub(crate) shapes: [Shape; 2],
    /// `KIRO_UPSTREAM_URL` was changed and `KIRO_RUNTIME_URL` wasn't: only that one address is used.
    pub(crate) pinned: bool,
    /// `KIRO_SOCIAL_REFRESH_URL`.
    pub(crate) social_refresh: String,
    /// `KIRO_IDC_REFRESH_URL`.
    pub(crate) idc_refresh: String,
    /// `KIRO_EXTERNAL_IDP_HOSTS`.
    pub(crate) external_hosts: Hosts,
    /// `KIRO_API_REGIONS`.
    pub(crate) api_regions: Vec<String>,
    /// `KIRO_BUILDER_ID_PROFILE_ARN`; none: not sent.
    pub(crate) builder_id_profile: Option<Arc<str>>,
    /// `KIRO_SOCIAL_PROFILE_ARN`; none: not sent.
    pub(crate) social_profile: Option<Arc<str>>,
}

impl Urls {
    /// Kiro's fixed ARN of a kind, where it has one (K77).
    fn service(&self, kind: AccountKind) -> Option<&Arc<str>> {
        match kind {
            AccountKind::BuilderId => self.builder_id_profile.as_ref(),
            AccountKind::Social => self.social_profile.as_ref(),
            AccountKind::ApiKey | AccountKind::External | AccountKind::Enterprise | AccountKind::Unsure => None,
        }
    }

    fn answers_in(&self, region: &str) -> bool {
        self.api_regions.iter().any(|known| known == region)
    }

    /// Whether it is one of Kiro's fixed ARNs: other programs write the Builder ID one into every record.
    pub(crate) fn is_service(&self, arn: &str) -> bool {
        let configured = [&self.builder_id_profile, &self.social_profile].into_iter().flatten();
        arn == BUILDER_ID_PROFILE || arn == SOCIAL_PROFILE || configured.into_iter().any(|known| **known == *arn)
    }
}

/// Addresses of one account from outside its record. An empty one counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// `KIRO_BASE_URL`.
    pub generate: String,
    /// `KIRO_REFRESH_URL`.
    pub social_refresh: String,
    /// `KIRO_REFRESH_IDC_URL`.
    pub idc_refresh: String,
}

impl Addresses {
    /// Those that are absent here, from `others`.
    pub(crate) fn or(&self, others: &Self) -> Self {
        let either = |own: &String, other: &String| if own.is_empty() { other.clone() } else { own.clone() };
        Self {
            generate: either(&self.generate, &others.generate),
            social_refresh: either(&self.social_refresh, &others.social_refresh),
            idc_refresh: either(&self.idc_refresh, &others.idc_refresh),
        }
    }
}

/// A view, with its problem and the ignored fields.
#[derive(Debug)]
pub(crate) struct Viewed {
    pub(crate) view: AccountView,
    /// Why the account can't be used, naming the field (K11).
    pub(crate) problem: Option<String>,
    /// Fields that are ignored, one sentence each (R70).
    pub(crate) warnings: Vec<String>,
}

/// The inputs of a view.
pub(crate) struct Sources<'a> {
    pub(crate) account: Option<&'a Account>,
    pub(crate) lent: &'a Addresses,
    pub(crate) token: &'a Token,
    pub(crate) learned: &'a Learned,
    pub(crate) urls: &'a Arc<Urls>,
}

/// The region that the records name for the refresh of the token (K16).
fn identity_region<'a>(token: &'a Token, named: Option<&'a str>, urls: &Urls) -> &'a str {
    let region = match token.method() {
        Method::Idc => token.idc_region.as_deref().or(named),
        _ => token.region.as_deref().filter(|region| urls.answers_in(region)),
    };
    region.filter(|region| is_region(region)).unwrap_or(DEFAULT_REGION)
}

/// The view of a token record alone: of a login that is no account yet, or an account that isn't read yet.
pub(crate) fn of_token(id: &AccountId, token: &Token, urls: &Arc<Urls>) -> AccountView {
    let (lent, learned) = (&Addresses::default(), &Learned::default());
    view(id, &Sources { account: None, lent, token, learned, urls }).view
}

/// Resolves kind, profile, regions and addresses of an account (K12, K16, K73–K77).
pub(crate) fn view(id: &AccountId, sources: &Sources<'_>) -> Viewed {
    let Sources { account, lent, token, learned, urls } = *sources;
    let own = |field: fn(&Account) -> &Option<String>| account.and_then(|account| field(account).as_deref());
    let method = token.method();
    let named_region = token.region.as_deref().or(own(|account| &account.region));
    let problem = problem_of(token, named_region, urls);
    let mut warnings = ignored_in(account, token);

    let arn = token.profile_arn.as_deref().or(own(|account| &account.profile_arn));
    let own_arn = arn.filter(|arn| !urls.is_service(arn));
    let kind = kind_of(token, own_arn.is_some(), learned.said());
    let variants = variants(kind, own_arn, learned, urls);

    let answers = |region: &&str| urls.answers_in(region);
    let own_region = own(|account| &account.region);
    let api = [token.api_region.as_deref(), token.region.as_deref(), own_region].into_iter().flatten().find(answers);
    let decided = variants.first().and_then(Variant::arn).and_then(region_of).is_some() && own_arn.is_some();
    let api_region = api.unwrap_or(DEFAULT_REGION);
    let elsewhere = [("apiRegion", token.api_region.as_deref()), ("region", named_region)];
    for (field, region) in elsewhere.into_iter().filter(|_| !decided && problem.is_none()) {
        if let Some(region) = region.filter(|region| !answers(region)) {
            warnings.push(not_there(field, region, api_region));
        }
    }
    let refresh_region = learned.refresh_region().unwrap_or_else(|| identity_region(token, named_region, urls));

    let mut address = |field: &str, own: Option<&str>, lent: &str, region: &str| {
        let own = own.or(Some(lent).filter(|lent| !lent.is_empty()))?;
        if endpoint(own, region).is_some() {
            return Some(own.to_owned());
        }
        if problem.is_none() {
            warnings.push(format!("{field}: ignored, must be {ALLOWED}"));
        }
        None
    };
    let base = address("KIRO_BASE_URL", own(|account| &account.base_url), &lent.generate, api_region);
    let social = address("KIRO_REFRESH_URL", own(|account| &account.refresh_url), &lent.social_refresh, refresh_region);
    let idc =
        address("KIRO_REFRESH_IDC_URL", own(|account| &account.refresh_idc_url), &lent.idc_refresh, refresh_region);
    let refresh = match method {
        // Its refresh token belongs to a third party: no other method's address may ever see it (K84).
        Method::External => token.token_endpoint.clone().filter(|_| problem.is_none()).unwrap_or_default(),
        Method::Idc => idc.unwrap_or_else(|| urls.idc_refresh.clone()),
        _ => social.unwrap_or_else(|| urls.social_refresh.clone()),
    };
    let has_own_address = base.is_some();
    let ways = match base {
        Some(url) => Ways::pinned(&url, urls),
        None if urls.pinned => Ways::pinned(&urls.generate, urls),
        None => Ways::Open(urls.clone()),
    };
    let named = [token.api_region.as_deref(), named_region, token.idc_region.as_deref()];
    let is_gov = named.into_iter().flatten().any(is_gov);
    let view = AccountView {
        id: id.clone(),
        name: own(|account| &account.custom_name).filter(|name| !name.is_empty()).map(str::to_owned),
        method,
        machine_id: own(|account| &account.machine_id).map_or_else(|| machine_id(id), Arc::from),
        kind,
        variants,
        api_region: api_region.to_owned(),
        api_region_is_named: api.is_some(),
        idc_region: token.idc_region.clone(),
        refresh_region: refresh_region.to_owned(),
        is_gov,
        fips: learned.uses_fips_host(),
        urls: urls.clone(),
        ways,
        region: String::new(),
        chats: Shape::ALL.map(|_| Arc::default()),
        refresh,
        proxy_url: account.and_then(|account| account.proxy_url.clone()),
    }
    .prepared();
    warnings.extend(clash_of(&view, has_own_address).filter(|_| problem.is_none()));
    let is_nowhere = view.generate_url().is_empty() || view.refresh_url(refresh_region).is_none();
    let nowhere = "no usable address: KIRO_UPSTREAM_URL or a refresh URL is neither https nor loopback";
    let problem = problem.or_else(|| is_nowhere.then(|| nowhere.to_owned()));
    Viewed { view, problem, warnings }
}

/// Why an account can't be used with this token record, naming the field (K11).
fn problem_of(token: &Token, named_region: Option<&str>, urls: &Urls) -> Option<String> {
    let is_none = |region: Option<&str>| region.is_some_and(|region| !is_region(region));
    let problem = match token.method() {
        Method::External => return urls.external_hosts.admit(token).err(),
        Method::ApiKey if token.kiro_api_key.is_none() => "kiroApiKey: missing",
        _ if is_none(named_region) => "region: not a region's name",
        Method::Idc if is_none(token.idc_region.as_deref()) => "idcRegion: not a region's name",
        _ => return None,
    };
    Some(problem.to_owned())
}

/// Fields of the records that count as absent.
fn ignored_in(account: Option<&Account>, token: &Token) -> Vec<String> {
    let ignored = token.ignored.iter().chain(account.iter().flat_map(|account| &account.ignored));
    let mut warnings: Vec<_> = ignored.map(|field| format!("{field}: ignored, too long or not of its form")).collect();
    if token.has_unknown_method() {
        warnings.push(format!("authMethod: unknown, taken for {}", token.method().as_str()));
    }
    warnings
}

fn not_there(field: &str, region: &str, asked: &str) -> String {
    // An invalid name isn't repeated: it may be anything.
    let region = if is_region(region) { region } else { "this" };
    format!("{field}: Kiro doesn't answer in {region}; {asked} is asked (KIRO_API_REGIONS)")
}

/// The warning that the address is in another region than the ARN (K78).
fn clash_of(view: &AccountView, has_own_address: bool) -> Option<String> {
    let (region, host) = view.region_clash()?;
    let setting = if has_own_address { "KIRO_BASE_URL" } else { "KIRO_UPSTREAM_URL or KIRO_RUNTIME_URL" };
    Some(format!(
        "profileArn: its region is {region}, but {setting} goes to {host}: Kiro answers that with `Improperly formed request`"
    ))
}

/// The variants of K77. `own` is the records' ARN, unless it is one of Kiro's fixed ones: those go out as such, or not
/// at all.
fn variants(kind: AccountKind, own: Option<&str>, learned: &Learned, urls: &Urls) -> Vec<Variant> {
    let mut variants = Vec::new();
    if kind != AccountKind::ApiKey {
        variants.extend(own.map(|arn| Variant::Own(arn.into())));
    }
    if kind.has_profiles() {
        let others = learned.listed().iter().filter(|arn| own != Some(&***arn)).take(MOST_LISTED);
        variants.extend(others.cloned().map(Variant::Listed));
    }
    variants.extend(urls.service(kind).cloned().map(Variant::Service));
    variants.push(Variant::None);
    variants
}

/// The SHA-256 of the id: no refresh, restart or failover changes it (K16).
fn machine_id(id: &str) -> Arc<str> {
    hex(&Sha256::digest(id.as_bytes())).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::learned::Lesson;

    fn urls() -> Arc<Urls> {
        Arc::new(Urls {
            generate: DEFAULT_UPSTREAM_URL.into(),
            runtime: DEFAULT_RUNTIME_URL.into(),
            management: DEFAULT_MANAGEMENT_URL.into(),
            shapes: [Shape::Q, Shape::Runtime],
            pinned: false,
            social_refresh: "https://prod.{region}.auth.desktop.kiro.dev/refreshToken".into(),
            idc_refresh: "https://oidc.{region}.amazonaws.com/token".into(),
            external_hosts: Hosts::default(),
            api_regions: ["us-east-1", "eu-central-1", "us-gov-west-1", "us-gov-east-1"].map(str::to_owned).to_vec(),
            builder_id_profile: Some(BUILDER_ID_PROFILE.into()),
            social_profile: Some(SOCIAL_PROFILE.into()),
        })
    }

    fn viewed_with(account: &str, token: &str, learned: &Learned, urls: &Arc<Urls>) -> Viewed {
        let account = Account::parse(account.as_bytes(), "0123456789").unwrap();
        let token = Token::parse(token.as_bytes()).unwrap();
        let lent = &Addresses::default();
        view(&"0123456789".into(), &Sources { account: Some(&account), lent, token: &token, learned, urls })
    }

    fn viewed(account: &str, token: &str) -> Viewed {
        viewed_with(account, token, &Learned::default(), &urls())
    }

    const E1: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1";
    const E2: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";

    /// Kind, API region, identity region and the variants of the profile.
    fn summary(viewed: &Viewed) -> (&'static str, String, String, Vec<String>) {
        let view = &viewed.view;
        let variants = view.variants.iter().map(|variant| {
            let arn = variant.arn().map_or("-", |arn| match arn {
                BUILDER_ID_PROFILE => "B",
                SOCIAL_PROFILE => "S",
                E1 => "E1",
                E2 => "E2",
                other => other,
            });
            format!("{} {arn}", variant.as_str())
        });
        (view.kind.as_str(), view.region().to_owned(), view.refresh_region.clone(), variants.collect())
    }

    #[test]
    fn default_addresses_follow_the_region_k12_k74_k75() {
        let social = viewed("{}", r#"{"authMethod":"social"}"#).view;
        assert_eq!(social.generate_url(), "https://q.us-east-1.amazonaws.com/generateAssistantResponse");
        let refresh = social.refresh_url(social.refresh_region());
        assert_eq!(refresh.as_deref(), Some("https://prod.us-east-1.auth.desktop.kiro.dev/refreshToken"));
        let idc = viewed("{}", r#"{"authMethod":"idc","idcRegion":"us-east-2"}"#).view;
        assert_eq!(idc.generate_url(), "https://q.us-east-1.amazonaws.com/generateAssistantResponse");
        assert_eq!(
            idc.refresh_url(idc.refresh_region()).as_deref(),
            Some("https://oidc.us-east-2.amazonaws.com/token")
        );
        assert_eq!(idc.refresh_url("x/../y"), None, "K11");
        let api = |account: &str, token: &str| viewed(account, token).view.api_region;
        assert_eq!(
            api("{}", r#"{"authMethod":"idc","apiRegion":"eu-central-1","region":"us-east-1"}"#),
            "eu-central-1"
        );
        assert_eq!(api("{}", r#"{"authMethod":"idc","apiRegion":"x/../y","region":"eu-central-1"}"#), "eu-central-1");
        assert_eq!(api(r#"{"region":"eu-central-1"}"#, r#"{"region":"eu-west-1"}"#), "eu-central-1");
        let both = viewed(r#"{"region":"eu-central-1"}"#, r#"{"authMethod":"idc","region":"ap-southeast-2"}"#).view;
        assert_eq!((both.region(), both.refresh_region()), ("eu-central-1", "ap-southeast-2"));
        let european = viewed("{}", r#"{"authMethod":"social","region":"eu-central-1"}"#).view;
        assert_eq!((european.region(), european.refresh_region()), ("us-east-1", "eu-central-1"), "S decides");
    }

    #[test]
    fn each_kind_of_account_has_its_variants_p1_p4_p9_p19_p28_k77() {
        let builder = r#""authMethod":"builder-id","provider":"BuilderId""#;
        let enterprise = r#""authMethod":"IdC","startUrl":"https://d-1.awsapps.com/start""#;
        let table = [
            (format!("{{{builder}}}"), "builder-id", vec!["service B", "none -"]),
            (
                format!(r#"{{{builder},"profileArn":"{BUILDER_ID_PROFILE}"}}"#),
                "builder-id",
                vec!["service B", "none -"],
            ),
            (format!(r#"{{{builder},"profileArn":"{E1}"}}"#), "builder-id", vec!["own E1", "service B", "none -"]),
            (r#"{"authMethod":"social"}"#.to_owned(), "social", vec!["service S", "none -"]),
            (
                format!(r#"{{"authMethod":"social","profileArn":"{BUILDER_ID_PROFILE}"}}"#),
                "social",
                vec!["service S", "none -"],
            ),
            (
                format!(r#"{{"authMethod":"social","profileArn":"{E1}"}}"#),
                "social",
                vec!["own E1", "service S", "none -"],
            ),
            (format!(r#"{{{enterprise},"profileArn":"{E1}"}}"#), "enterprise", vec!["own E1", "none -"]),
            (format!(r#"{{{enterprise},"profileArn":"{BUILDER_ID_PROFILE}"}}"#), "enterprise", vec!["none -"]),
            (format!(r#"{{"authMethod":"idc","profileArn":"{E1}"}}"#), "enterprise", vec!["own E1", "none -"]),
            (r#"{"authMethod":"builder-id"}"#.to_owned(), "unsure", vec!["none -"]),
            (r#"{"authMethod":"builder-id","profileArn":""}"#.to_owned(), "unsure", vec!["none -"]),
            (r#"{"authMethod":"builder-id","profileArn":null}"#.to_owned(), "unsure", vec!["none -"]),
            (r#"{"authMethod":"builder-id","profileArn":5}"#.to_owned(), "unsure", vec!["none -"]),
            (format!(r#"{{"kiroApiKey":"ksk_1","profileArn":"{E1}"}}"#), "api-key", vec!["none -"]),
        ];
        for (record, kind, variants) in table {
            let summary = summary(&viewed("{}", &record));
            assert_eq!(
                (summary.0, summary.3),
                (kind, variants.iter().map(|text| (*text).to_owned()).collect()),
                "{record}"
            );
        }
        let key = viewed("{}", r#"{"kiroApiKey":"ksk_1"}"#).view;
        assert_eq!((key.token_type(), key.profile(), key.wants_profiles()), (Some("API_KEY"), "none", false));
        let unsure = viewed("{}", r#"{"authMethod":"idc"}"#).view;
        assert_eq!((unsure.token_type(), unsure.profile(), unsure.wants_profiles()), (None, "missing", true));
        let off = Arc::new(Urls { builder_id_profile: None, ..(*urls()).clone() });
        let record = format!(r#"{{{builder},"profileArn":"{BUILDER_ID_PROFILE}"}}"#);
        assert_eq!(summary(&viewed_with("{}", &record, &Learned::default(), &off)).3, ["none -"], "P3");
    }

    #[test]
    fn a_look_up_changes_kind_and_variants_k73_k77() {
        let mut learned = Learned::default();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let of = |learned: &Learned, token: &str| summary(&viewed_with("{}", token, learned, &urls()));
        learned.learn(Lesson::IsBuilderId, now);
        let unsure = r#"{"authMethod":"builder-id"}"#;
        assert_eq!(of(&learned, unsure).3, ["service B", "none -"], "P8");
        learned.learn(Lesson::Profiles(vec![E2.into(), E1.into()]), now);
        let found = of(&learned, unsure);
        assert_eq!(
            (found.0, found.1.as_str(), found.3),
            ("enterprise", "eu-central-1", vec!["listed E2".to_owned(), "listed E1".to_owned(), "none -".to_owned()],)
        );
        let own = of(&learned, &format!(r#"{{"authMethod":"idc","profileArn":"{E1}"}}"#));
        assert_eq!(own.3, ["own E1", "listed E2", "none -"], "each once");
        assert_eq!(of(&learned, r#"{"authMethod":"social"}"#).3, ["service S", "none -"]);
    }

    #[test]
    fn the_arn_then_the_records_name_the_region_k74_p10_p11_p12_p27() {
        let token = |more: &str| format!(r#"{{"authMethod":"IdC","startUrl":"https://d-1.awsapps.com/start"{more}}}"#);
        let p10 = viewed("{}", &token(&format!(r#","region":"ap-southeast-2","profileArn":"{E1}""#)));
        let found = summary(&p10);
        assert_eq!((found.1.as_str(), found.2.as_str(), p10.warnings.len()), ("us-east-1", "ap-southeast-2", 0));
        let p11 = viewed("{}", &token(r#","region":"ap-southeast-2""#));
        assert_eq!((p11.view.region(), p11.problem.as_deref()), ("us-east-1", None));
        assert_eq!(
            p11.warnings,
            ["region: Kiro doesn't answer in ap-southeast-2; us-east-1 is asked (KIRO_API_REGIONS)"]
        );
        let p12 = viewed("{}", &token(&format!(r#","region":"us-east-1","profileArn":"{E2}""#)));
        assert_eq!((p12.view.region(), p12.view.api_region(&Variant::None)), ("eu-central-1", "us-east-1"));
        let elsewhere = "arn:aws:codewhisperer:ap-northeast-1:1:profile/X";
        let unknown = viewed("{}", &token(&format!(r#","profileArn":"{elsewhere}""#)));
        assert_eq!(unknown.view.region(), "ap-northeast-1", "the ARN is right, the list may be old");
        let bad = viewed("{}", &token(r#","profileArn":"arn:aws:codewhisperer:x/../y:1:profile/X""#));
        assert_eq!((bad.view.region(), bad.problem), ("us-east-1", None));
        let evil = viewed("{}", &token(r#","region":"evil.org/x""#));
        assert_eq!(evil.problem.as_deref(), Some("region: not a region's name"));
    }

    const ENTRA: &str = r#""clientId":"c","tokenEndpoint":"https://login.microsoftonline.com/t/oauth2/v2.0/token""#;

    #[test]
    fn the_region_of_an_external_record_is_a_warning_p43() {
        let external = viewed("{}", &format!(r#"{{"authMethod":"azuread","region":"westeurope",{ENTRA}}}"#));
        assert_eq!((external.view.region(), external.problem), ("us-east-1", None));
        assert_eq!(external.warnings, ["region: Kiro doesn't answer in this; us-east-1 is asked (KIRO_API_REGIONS)"]);
    }

    #[test]
    fn profiles_are_looked_for_in_all_regions_of_the_partition_in_order_k79() {
        let regions = |token: &str| viewed("{}", token).view.profile_regions().join(" ");
        assert_eq!(regions(r#"{"authMethod":"idc"}"#), "us-east-1 eu-central-1");
        assert_eq!(regions(r#"{"authMethod":"idc","idcRegion":"eu-west-2"}"#), "eu-central-1 us-east-1");
        assert_eq!(
            regions(r#"{"authMethod":"idc","idcRegion":"eu-west-2","region":"us-east-1"}"#),
            "us-east-1 eu-central-1"
        );
        assert_eq!(regions(r#"{"authMethod":"idc","region":"us-gov-east-1"}"#), "us-gov-east-1 us-gov-west-1");
        assert_eq!(regions(r#"{"authMethod":"idc","idcRegion":"us-gov-west-1"}"#), "us-gov-west-1 us-gov-east-1");
    }

    /// The other host name comes into the address, and only in GovCloud's default one (P26).
    #[test]
    fn govcloud_has_another_host_to_try_k81() {
        let gov = "arn:aws-us-gov:codewhisperer:us-gov-west-1:1:profile/G";
        let token = format!(r#"{{"authMethod":"idc","profileArn":"{gov}"}}"#);
        let first = viewed("{}", &token).view;
        let region = "us-gov-west-1";
        assert_eq!(first.generate_url(), "https://q.us-gov-west-1.amazonaws.com/generateAssistantResponse");
        assert!(first.has_other_host(Shape::Q, region));
        assert!(!first.has_other_host(Shape::Runtime, region) && !first.has_other_host(Shape::Q, "us-east-1"));
        let mut learned = Learned::default();
        learned.learn(Lesson::FipsHost, jiff::Timestamp::UNIX_EPOCH);
        let second = viewed_with("{}", &token, &learned, &urls()).view;
        assert_eq!(second.generate_url(), "https://q-fips.us-gov-west-1.amazonaws.com/generateAssistantResponse");
        assert_eq!(
            second.url(Shape::Q, Operation::Usage, region),
            "https://q-fips.us-gov-west-1.amazonaws.com/getUsageLimits"
        );
        assert!(!second.has_other_host(Shape::Q, region));
        assert_eq!(second.url(Shape::Q, Operation::Models, "us-east-1"), "https://q.us-east-1.amazonaws.com/");
        let own = viewed_with(r#"{"KIRO_BASE_URL":"https://q.x.org/y"}"#, &token, &learned, &urls()).view;
        assert_eq!(own.generate_url(), "https://q.x.org/y");
    }

    #[test]
    fn forms_for_usage_have_a_fixed_order_k80() {
        let forms = |token: &str| viewed("{}", token).view.forms().iter().map(Variant::as_str).collect::<Vec<_>>();
        assert_eq!(forms(&format!(r#"{{"authMethod":"social","profileArn":"{E1}"}}"#)), ["own", "none", "service"]);
        assert_eq!(forms(r#"{"authMethod":"social"}"#), ["none", "service"]);
        assert_eq!(forms(r#"{"kiroApiKey":"k"}"#), ["none"]);
    }

    #[test]
    fn each_call_goes_to_the_address_of_its_shape_k111_k117_k118() {
        let view = viewed("{}", r#"{"authMethod":"social"}"#).view;
        let q = "https://q.us-east-1.amazonaws.com";
        let management = "https://management.us-east-1.kiro.dev";
        let table = [
            (Shape::Q, Operation::Chat, format!("{q}/generateAssistantResponse")),
            (Shape::Q, Operation::Mcp, format!("{q}/mcp")),
            (Shape::Q, Operation::Usage, format!("{q}/getUsageLimits")),
            (Shape::Q, Operation::Models, format!("{q}/")),
            (Shape::Q, Operation::Profiles, format!("{q}/")),
            (Shape::Runtime, Operation::Chat, "https://runtime.us-east-1.kiro.dev/".to_owned()),
            (Shape::Runtime, Operation::Mcp, "https://runtime.us-east-1.kiro.dev/".to_owned()),
            (Shape::Runtime, Operation::Usage, format!("{management}/getUsageLimits")),
            (Shape::Runtime, Operation::Models, format!("{management}/")),
            (Shape::Runtime, Operation::Profiles, format!("{management}/List-Available-Profiles")),
        ];
        for (shape, call, url) in table {
            assert_eq!(view.url(shape, call, "us-east-1"), url, "{shape} {}", call.as_str());
        }
        assert_eq!(view.shapes("us-east-1"), [Shape::Q, Shape::Runtime]);
        assert_eq!(view.shapes("ap-southeast-2"), [Shape::Q], "K117");
    }

    /// A90: the path says the shape, and nothing goes to another host.
    #[test]
    fn an_address_of_its_own_pins_host_and_shape_a90_k12_k118() {
        for (url, shape) in [
            ("http://127.0.0.1:9/", Shape::Runtime),
            ("http://127.0.0.1:9", Shape::Runtime),
            ("http://127.0.0.1:9/generateAssistantResponse", Shape::Q),
        ] {
            let view = viewed(&format!(r#"{{"KIRO_BASE_URL":"{url}"}}"#), "{}").view;
            assert_eq!(view.shapes("us-east-1"), [shape], "{url}");
            for call in [Operation::Chat, Operation::Mcp, Operation::Usage, Operation::Models, Operation::Profiles] {
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
        let usage = account.url(Shape::Runtime, Operation::Usage, "us-east-1");
        assert_eq!(usage, "http://127.0.0.1:7/getUsageLimits");
        assert_eq!(account.url(Shape::Runtime, Operation::Mcp, "us-east-1"), "http://127.0.0.1:8/");
    }

    #[test]
    fn a_bad_region_makes_the_account_unusable_k11() {
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
    fn an_external_account_needs_a_client_and_an_allowed_provider_r71_k84_k85_p35_p41_p42() {
        let not_https = "tokenEndpoint: must be https://HOST/… without port, user name and fragment";
        let host = |host: &str| format!("tokenEndpoint: host {host} is not allowed; add it to KIRO_EXTERNAL_IDP_HOSTS");
        let endpoint = |url: &str| format!(r#"{{"authMethod":"okta","clientId":"c","tokenEndpoint":"{url}"}}"#);
        for (record, problem) in [
            (r#"{"authMethod":"external_idp","refreshToken":"r"}"#.to_owned(), Some("clientId: missing".to_owned())),
            (
                r#"{"authMethod":"AzureAD","clientId":"c","clientSecret":"s"}"#.into(),
                Some("tokenEndpoint: missing".into()),
            ),
            (format!(r#"{{{ENTRA},"refreshToken":"r"}}"#), None),
            (endpoint("https://org.okta.com/oauth2/v1/token"), None),
            (endpoint("http://org.okta.com/t"), Some(not_https.into())),
            (endpoint("https://10.0.0.1/t"), Some(not_https.into())),
            (endpoint("https://evil-okta.com/t"), Some(host("evil-okta.com"))),
            (endpoint(&format!("https://org.okta.com/{}", "x".repeat(3_000))), Some("tokenEndpoint: missing".into())),
        ] {
            let viewed = viewed("{}", &record);
            assert_eq!(viewed.view.method(), Method::External);
            assert_eq!(viewed.problem, problem, "{record}");
        }
        assert_eq!(viewed("{}", r#"{"authMethod":"api_key"}"#).problem.as_deref(), Some("kiroApiKey: missing"));
    }

    #[test]
    fn an_own_machine_id_counts_and_bad_fields_are_ignored_r70_r77() {
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
    fn an_accounts_own_addresses_come_first_k12() {
        let own = viewed(
            r#"{"PROXY_URL":"http://127.0.0.1:3128","KIRO_BASE_URL":"https://q.{{region}}.example.org/x",
                "KIRO_REFRESH_URL":"http://localhost:9/{region}"}"#,
            r#"{"authMethod":"social","region":"eu-west-1"}"#,
        );
        assert_eq!(own.view.generate_url(), "https://q.us-east-1.example.org/x");
        assert_eq!(own.view.refresh_url("us-east-1").unwrap(), "http://localhost:9/us-east-1");
        assert_eq!(own.view.proxy_url, Some(Secret::new("http://127.0.0.1:3128")));
        let elsewhere = "region: Kiro doesn't answer in eu-west-1; us-east-1 is asked (KIRO_API_REGIONS)";
        assert_eq!(own.warnings, [elsewhere]);
        let bad = viewed(r#"{"KIRO_BASE_URL":"http://example.org"}"#, "{}");
        assert_eq!(bad.view.generate_url(), "https://q.us-east-1.amazonaws.com/generateAssistantResponse");
        assert_eq!(bad.warnings, [format!("KIRO_BASE_URL: ignored, must be {ALLOWED}")]);
    }

    /// Only an operator's own address can cause it: `{region}` and Kiro's own hosts follow the ARN.
    #[test]
    fn an_arn_and_a_host_of_different_regions_are_warned_about_once_k78() {
        let social = |account: &str, arn: &str| {
            viewed(account, &format!(r#"{{"authMethod":"social","region":"us-east-1","profileArn":"{arn}"}}"#))
        };
        let clash = "profileArn: its region is eu-central-1, but KIRO_BASE_URL goes to us-east-1: Kiro answers that with \
                     `Improperly formed request`";
        for url in [
            "https://q.us-east-1.amazonaws.com/generateAssistantResponse",
            "https://runtime.us-east-1.kiro.dev/",
            "http://us-east-1.localhost:8990/generateAssistantResponse",
        ] {
            let own = format!(r#"{{"KIRO_BASE_URL":"{url}"}}"#);
            assert_eq!(social(&own, E2).warnings, [clash], "{url}");
            assert_eq!(social(&own, E1).warnings, Vec::<String>::new(), "{url}");
        }
        for url in ["https://q.{region}.amazonaws.com/x", "https://relay.example.org/x", "http://127.0.0.1:9/"] {
            let own = format!(r#"{{"KIRO_BASE_URL":"{url}"}}"#);
            assert_eq!(social(&own, E2).warnings, Vec::<String>::new(), "{url}");
        }
        let fixed = Urls {
            generate: "https://q.us-east-1.amazonaws.com/generateAssistantResponse".into(),
            pinned: true,
            ..(*urls()).clone()
        };
        let enterprise = format!(r#"{{"authMethod":"IdC","profileArn":"{E2}"}}"#);
        let viewed = viewed_with("{}", &enterprise, &Learned::default(), &Arc::new(fixed));
        assert_eq!(viewed.warnings, [clash.replace("KIRO_BASE_URL", "KIRO_UPSTREAM_URL or KIRO_RUNTIME_URL")]);
        assert_eq!(viewed.view.region_clash(), Some(("eu-central-1", "us-east-1".to_owned())));
        assert_eq!(super::tests::viewed("{}", &enterprise).view.region_clash(), None);
    }

    #[test]
    fn a_lent_address_counts_when_the_record_has_none_n4() {
        let lent = Addresses {
            generate: "https://lent.example.org/{region}".into(),
            social_refresh: "http://example.org".into(),
            idc_refresh: String::new(),
        };
        let with = |account: &str| {
            let account = Account::parse(account.as_bytes(), "0123456789").unwrap();
            let token = Token::parse(br#"{"authMethod":"social"}"#).unwrap();
            let learned = &Learned::default();
            let sources = Sources { account: Some(&account), lent: &lent, token: &token, learned, urls: &urls() };
            view(&"0123456789".into(), &sources)
        };
        let bare = with("{}");
        assert_eq!(bare.view.generate_url(), "https://lent.example.org/us-east-1");
        assert_eq!(
            bare.view.refresh_url("us-east-1").unwrap(),
            "https://prod.us-east-1.auth.desktop.kiro.dev/refreshToken"
        );
        assert_eq!(bare.warnings, [format!("KIRO_REFRESH_URL: ignored, must be {ALLOWED}")]);
        let own = with(r#"{"KIRO_BASE_URL":"https://own.example.org/x"}"#);
        assert_eq!(own.view.generate_url(), "https://own.example.org/x");
    }

    #[test]
    fn the_machine_id_depends_on_the_id_alone_k16_trap_25() {
        let one = viewed("{}", "{}").view.machine_id;
        let two = viewed(r#"{"profileArn":"arn:a","customName":"x"}"#, r#"{"clientId":"c"}"#).view.machine_id;
        assert_eq!(&*one, "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882");
        assert!(one == two && one.len() == 64 && one.bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn the_profile_of_the_token_record_comes_first_trap_24() {
        let account = r#"{"profileArn":"arn:old"}"#;
        assert_eq!(viewed(account, r#"{"profileArn":"arn:new"}"#).view.profile_arn(), Some("arn:new"));
        assert_eq!(viewed(account, r#"{"profileArn":""}"#).view.profile_arn(), Some("arn:old"));
    }

    #[test]
    fn ids_are_cut_for_show() {
        assert_eq!((short("0123456789"), short("abc")), ("01234567", "abc"));
    }
}
