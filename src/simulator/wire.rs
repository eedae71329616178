//! The host, shape and call of a request (K111), and a host's refusals of a wrong form (K112, K113).

use http::{HeaderMap, Method};

use super::reply::HttpReply;
use crate::proto::kiro::route::{Operation, Shape};

/// The three kinds of hosts that carry Kiro's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Q,
    Runtime,
    Management,
}

impl Host {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::Runtime => "runtime",
            Self::Management => "management",
        }
    }

    pub fn shape(self) -> Shape {
        if self == Self::Q { Shape::Q } else { Shape::Runtime }
    }
}

/// The address and the call of a request.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub host: Host,
    /// The `host` header, without its port.
    pub name: String,
    /// The region in the host's name.
    pub region: Option<String>,
    /// None: unknown to Kiro.
    pub call: Option<Operation>,
    /// The call is named by a target on the root path.
    by_target: bool,
    target: Option<String>,
}

impl Wire {
    pub fn read(method: &Method, path: &str, headers: &HeaderMap) -> Self {
        let name = header(headers, "host").unwrap_or_default();
        let name = match name.rsplit_once(':') {
            Some((name, port)) if is_port(port) => name,
            _ => name,
        };
        let labels: Vec<&str> = name.split('.').collect();
        let region = labels.iter().take(2).find(|label| is_region(label)).map(|region| (*region).to_owned());
        let target = header(headers, "x-amz-target");
        let (service, operation) = target.and_then(|target| target.rsplit_once('.')).unwrap_or_default();
        let host = match labels.first().copied() {
            Some("q" | "q-fips") => Host::Q,
            Some("runtime") => Host::Runtime,
            Some("management") => Host::Management,
            _ if service == "KiroRuntimeService" => Host::Runtime,
            _ if service == "KiroControlPlaneBearerService" || path.starts_with("/List-Available-") => Host::Management,
            _ => Host::Q,
        };
        let by_target = path == "/" && target.is_some();
        let post = *method == Method::POST;
        let call = match (host, path) {
            (_, "/") if post => match (host, service, operation) {
                (Host::Q, "AmazonCodeWhispererService", "ListAvailableModels")
                | (Host::Management, "KiroControlPlaneBearerService", "ListAvailableModels") => Some(Operation::Models),
                (Host::Q, "AmazonCodeWhispererService", "ListAvailableProfiles") => Some(Operation::Profiles),
                (Host::Q, "AmazonCodeWhispererStreamingService", "GenerateAssistantResponse")
                | (Host::Runtime, "KiroRuntimeService", "GenerateAssistantResponse") => Some(Operation::Chat),
                (Host::Q | Host::Runtime, "AmazonCodeWhispererStreamingService", "InvokeMCP")
                | (Host::Runtime, "KiroRuntimeService", "InvokeMCP") => Some(Operation::Mcp),
                _ => None,
            },
            (Host::Q, "/generateAssistantResponse") if post => Some(Operation::Chat),
            (Host::Q, "/mcp") if post => Some(Operation::Mcp),
            (Host::Management, "/List-Available-Profiles") if post => Some(Operation::Profiles),
            (Host::Q, "/ListAvailableModels") | (Host::Management, "/List-Available-Models") if !post => {
                Some(Operation::Models)
            }
            (Host::Q | Host::Management, "/getUsageLimits") if !post => Some(Operation::Usage),
            _ => None,
        };
        Self { host, name: name.to_owned(), region, call, by_target, target: target.map(str::to_owned) }
    }

    /// As the Kiro of last winter took it: one host, any service in front of the operation.
    pub fn old(mut self, method: &Method, path: &str) -> Self {
        let operation = self.target.as_deref().map(|target| target.rsplit('.').next().unwrap_or_default());
        self.call = match (method, path, operation) {
            _ if self.host != Host::Q => None,
            (&Method::POST, "/generateAssistantResponse", _)
            | (&Method::POST, _, Some("GenerateAssistantResponse")) => Some(Operation::Chat),
            (&Method::GET, "/getUsageLimits", _) => Some(Operation::Usage),
            (&Method::GET, "/ListAvailableModels", _) | (&Method::POST, "/", Some("ListAvailableModels")) => {
                Some(Operation::Models)
            }
            (&Method::POST, "/", Some("ListAvailableProfiles")) => Some(Operation::Profiles),
            _ => None,
        };
        self
    }

    pub fn shape(&self) -> Shape {
        self.host.shape()
    }

    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// The host's refusal before it checks the account. `path` is the request's.
    pub fn refusal(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<HttpReply> {
        if path != "/" && self.target.is_some() {
            return Some(invalid("x-amz-target on a path"));
        }
        if self.host == Host::Runtime && path != "/" && *method == Method::POST {
            return Some(invalid("a path on the runtime host"));
        }
        let Some(call) = self.call else {
            let message = format!("the simulator has no {method} {path} on {}", self.host.as_str());
            return Some(HttpReply::error(404, "UnknownOperationException", None, &message));
        };
        if *method == Method::POST {
            let wanted = match self.by_target || call == Operation::Profiles {
                true => "application/x-amz-json-1.0",
                false => "application/json",
            };
            let sent = header(headers, "content-type").and_then(|kind| kind.split(';').next()).unwrap_or_default();
            if sent != wanted {
                let message = format!("Unsupported media type (simulator: content-type is {wanted} here)");
                return Some(HttpReply::error(415, "UnsupportedMediaTypeException", None, &message));
            }
        }
        (self.shape() == Shape::Runtime && headers.contains_key("x-amzn-kiro-agent-mode"))
            .then(|| invalid("x-amzn-kiro-agent-mode on this host"))
    }
}

fn invalid(place: &str) -> HttpReply {
    let message = format!("Improperly formed request. (simulator: {place})");
    HttpReply::error(400, "ValidationException", Some("REQUEST_BODY_INVALID"), &message)
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `us-east-1`, `us-gov-west-1`.
pub(super) fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let letters = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    parts.len() >= 3
        && parts[0].len() == 2
        && parts[..parts.len() - 1].iter().all(letters)
        && is_port(parts[parts.len() - 1])
}

/// Three numbers, as versions of Kiro are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IdeVersion([u32; 3]);

impl IdeVersion {
    pub fn read(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| if is_port(number) { number.parse().ok() } else { None });
        let version = [numbers.next()??, numbers.next()??, numbers.next()??];
        numbers.next().is_none().then_some(Self(version))
    }
}

/// The headers `user-agent` and `x-amz-user-agent` of a call (K103): a place `{x}` is a version, but `{M}` a machine id
/// and `{O}` a system. The empty one: no such header is asked for.
type Agents = (&'static str, &'static str);

const CHAT_Q: Agents = (
    "aws-sdk-js/{S} ua/2.1 os/{O} lang/js md/nodejs#{N} api/codewhispererstreaming#{S} m/E KiroIDE-{V}-{M}",
    "aws-sdk-js/{S} KiroIDE-{V}-{M}",
);
const CHAT_RUNTIME: Agents = (
    "aws-sdk-js/{S} ua/2.1 os/{O} lang/js md/nodejs#{N} api/kiroruntime#{S} m/N KiroIDE-{V}-{M}-KAS/{G}",
    "aws-sdk-js/{S} KiroIDE-{V}-{M}-KAS/{G}",
);
const SERVICE_Q: Agents = (
    "aws-sdk-js/{S} ua/2.1 os/{O} lang/js md/nodejs#{N} api/codewhispererruntime#{S} m/N,E KiroIDE-{V}-{M}",
    "aws-sdk-js/{S} KiroIDE-{V}-{M}",
);
const SERVICE_RUNTIME: Agents = (
    "aws-sdk-js/{S} ua/2.1 os/{O} lang/js md/nodejs#{N} api/kirocontrolplanebearer#{S} m/N,E KiroIDE-{V}-{M}-KAS/{G}",
    "aws-sdk-js/{S} KiroIDE-{V}-{M}-KAS/{G}",
);
const SOCIAL: Agents = ("KiroIDE-{V}-{M}", "");
const IDC: Agents =
    ("aws-sdk-js/{S} ua/2.1 os/{O} lang/js md/nodejs#{N} api/sso-oidc#{S} m/E KiroIDE", "aws-sdk-js/{S} KiroIDE");

/// The call, for [`client_version`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientCall {
    Service(Shape, Operation),
    SocialRefresh,
    IdcRefresh,
}

/// The version that the user agents name; none for a caller that names none.
///
/// # Errors
/// The header that doesn't have the form of K103, with what it should look like.
pub(super) fn client_version(caller: ClientCall, headers: &HeaderMap) -> Result<Option<IdeVersion>, String> {
    let (agent, amz) = match caller {
        ClientCall::Service(Shape::Q, Operation::Chat | Operation::Mcp) => CHAT_Q,
        ClientCall::Service(Shape::Runtime, Operation::Chat | Operation::Mcp) => CHAT_RUNTIME,
        ClientCall::Service(_, Operation::Usage) | ClientCall::Service(Shape::Q, _) => SERVICE_Q,
        ClientCall::Service(Shape::Runtime, _) => SERVICE_RUNTIME,
        ClientCall::SocialRefresh => SOCIAL,
        ClientCall::IdcRefresh => IDC,
    };
    let mut version = None;
    for (name, form) in [("user-agent", agent), ("x-amz-user-agent", amz)] {
        if form.is_empty() {
            continue;
        }
        let sent = header(headers, name).unwrap_or_default();
        let mut named = None;
        if !fits(form, sent, &mut named) {
            return Err(format!("{name} is `{sent}`, not {form}"));
        }
        if version.is_some() && named != version {
            return Err(format!("{name} names another version than user-agent"));
        }
        version = named;
    }
    Ok(version)
}

/// The version in any user agent: what stands behind `KiroIDE-`.
pub(super) fn any_version(headers: &HeaderMap) -> Option<IdeVersion> {
    let (_, rest) = header(headers, "user-agent")?.split_once("KiroIDE-")?;
    IdeVersion::read(rest.split('-').next()?)
}

/// Whether a text has a form; `version` becomes the part at `{V}`.
fn fits(form: &str, text: &str, version: &mut Option<IdeVersion>) -> bool {
    let Some((literal, rest)) = form.split_once('{') else { return form == text };
    let (Some(text), Some((place, rest))) = (text.strip_prefix(literal), rest.split_once('}')) else { return false };
    let takes = |c: char| match place {
        "O" => c != ' ',
        "M" => c.is_ascii_hexdigit(),
        _ => c.is_ascii_digit() || c == '.',
    };
    let end = text.find(|c| !takes(c)).unwrap_or(text.len());
    let (value, text) = text.split_at(end);
    let read = IdeVersion::read(value);
    let is_right = match place {
        "O" => ["linux#", "darwin#", "win32#"].iter().any(|os| value.starts_with(os) && value.len() > os.len()),
        "M" => value.len() == 64,
        _ => read.is_some(),
    };
    if place == "V" {
        *version = read;
    }
    is_right && fits(rest, text, version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn read(method: &str, host: &str, path: &str, target: &str) -> Wire {
        let mut pairs = vec![("host", host.to_owned())];
        if !target.is_empty() {
            pairs.push(("x-amz-target", target.to_owned()));
        }
        Wire::read(&method.parse().unwrap(), path, &headers(&pairs))
    }

    #[test]
    fn host_shape_and_call_are_read_from_name_or_request() {
        use {Host::*, Operation::*};
        let runtime = "KiroRuntimeService.GenerateAssistantResponse";
        let bearer = "KiroControlPlaneBearerService.ListAvailableModels";
        for (method, host, path, target, expected, region) in [
            ("POST", "q.us-east-1.localhost:8990", "/generateAssistantResponse", "", (Q, Some(Chat)), "us-east-1"),
            ("POST", "q-fips.us-gov-west-1.x", "/mcp", "", (Q, Some(Mcp)), "us-gov-west-1"),
            ("POST", "runtime.eu-central-1.localhost", "/", runtime, (Runtime, Some(Chat)), "eu-central-1"),
            ("POST", "127.0.0.1:1", "/", runtime, (Runtime, Some(Chat)), ""),
            ("POST", "q.us-east-1.localhost", "/", runtime, (Q, None), "us-east-1"),
            ("POST", "127.0.0.1", "/", "KiroRuntimeService.InvokeMCP", (Runtime, Some(Mcp)), ""),
            ("POST", "[::1]:8990", "/", bearer, (Management, Some(Models)), ""),
            ("POST", "127.0.0.1", "/List-Available-Profiles", "", (Management, Some(Profiles)), ""),
            ("GET", "management.us-east-1.kiro.dev", "/getUsageLimits", "", (Management, Some(Usage)), "us-east-1"),
            ("GET", "eu-central-1.localhost", "/getUsageLimits", "", (Q, Some(Usage)), "eu-central-1"),
            ("POST", "x", "/", "AmazonCodeWhispererService.ListAvailableProfiles", (Q, Some(Profiles)), ""),
            ("POST", "x", "/", "AmazonCodeWhispererService.Invent", (Q, None), ""),
            ("POST", "runtime.us-east-1.localhost", "/generateAssistantResponse", "", (Runtime, None), "us-east-1"),
        ] {
            let wire = read(method, host, path, target);
            assert_eq!((wire.host, wire.call), expected, "{method} {host}{path} {target}");
            assert_eq!(wire.region.as_deref().unwrap_or_default(), region, "{host}");
        }
    }

    #[test]
    fn user_agents_are_checked_and_their_version_is_read() {
        let m = "0123456789abcdef".repeat(4);
        let agent = |api: &str, m_: &str, tail: &str| {
            format!(
                "aws-sdk-js/1.0.0 ua/2.1 os/linux#6.1.0 lang/js md/nodejs#24.18.0 api/{api}#1.0.0 {m_} KiroIDE-{tail}"
            )
        };
        let v = IdeVersion::read("1.1.70");
        assert!(
            v > IdeVersion::read("0.11.133")
                && IdeVersion::read("1.2").is_none()
                && IdeVersion::read("1.2.x").is_none()
        );
        let chat = ClientCall::Service(Shape::Q, Operation::Chat);
        let pair = |agent: String, amz: String| headers(&[("user-agent", agent), ("x-amz-user-agent", amz)]);
        let good = agent("codewhispererstreaming", "m/E", &format!("1.1.70-{m}"));
        let amz = format!("aws-sdk-js/1.0.34 KiroIDE-1.1.70-{m}");
        assert_eq!(client_version(chat, &pair(good.clone(), amz.clone())), Ok(v));
        let other = amz.replace("1.1.70", "1.1.71");
        for (agent, amz) in [
            (good.replace("m/E", "m/N"), amz.clone()),
            (good.replace("linux", "macos"), amz.clone()),
            (good.replace("streaming", "runtime"), amz.clone()),
            (good.replace("1.1.70", "1.1"), amz.clone()),
            (good.replace(&m, "m"), amz.clone()),
            (format!("{good}-KAS/0.66.7"), amz.clone()),
            (good.clone(), other),
            (good.clone(), String::new()),
        ] {
            assert!(client_version(chat, &pair(agent.clone(), amz)).is_err(), "{agent}");
        }
        let runtime = agent("kiroruntime", "m/N", &format!("1.1.70-{m}-KAS/0.66.7"));
        let amz = format!("aws-sdk-js/1.0.0 KiroIDE-1.1.70-{m}-KAS/0.66.7");
        let caller = ClientCall::Service(Shape::Runtime, Operation::Mcp);
        assert_eq!(client_version(caller, &pair(runtime, amz)), Ok(v));
        let social = headers(&[("user-agent", format!("KiroIDE-1.1.70-{m}"))]);
        assert_eq!(client_version(ClientCall::SocialRefresh, &social), Ok(v));
        let idc = "aws-sdk-js/3.980.0 ua/2.1 os/win32#10.0 lang/js md/nodejs#24.18.0 api/sso-oidc#3.980.0 m/E KiroIDE";
        let idc = pair(idc.to_owned(), "aws-sdk-js/3.980.0 KiroIDE".to_owned());
        assert_eq!(client_version(ClientCall::IdcRefresh, &idc), Ok(None));
    }
}
