//! The identity of calls: every header of a call, the user agents among them (K103, K111, K113).

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use crate::proto::kiro::client_identity as client;
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::route::{Operation, Shape};
use crate::secret::Secret;

/// The client as the headers describe it (K103): constants of this process.
#[derive(Debug, Clone)]
pub struct Identity {
    pub(super) version: String,
    pub(super) agent_version: String,
    pub(super) os: String,
}

/// The account's part of a call's headers.
#[derive(Debug, Clone, Copy)]
pub struct CallAuth<'a> {
    /// The bearer token.
    pub token: &'a Secret,
    /// The header `tokentype`; none for social and IdC accounts.
    pub token_type: Option<&'a str>,
    /// The account's machine id (K16).
    pub machine_id: &'a str,
    /// The profile's ARN, which only [`Operation::Mcp`] has in a header.
    pub profile_arn: Option<&'a str>,
}

impl Identity {
    /// `user-agent` and `x-amz-user-agent` of a call with an access token (K103).
    pub fn agents(&self, shape: Shape, call: Operation, machine_id: &str) -> [String; 2] {
        let Self { version, agent_version, .. } = self;
        let (sdk, api, mode) = match (call, shape) {
            (Operation::Chat | Operation::Mcp, Shape::Q) => (client::STREAMING_SDK, "codewhispererstreaming", "E"),
            (Operation::Chat | Operation::Mcp, Shape::Runtime) => (client::SERVICE_SDK, "kiroruntime", "N"),
            (Operation::Usage, _) | (Operation::Models | Operation::Profiles, Shape::Q) => {
                (client::SERVICE_SDK, "codewhispererruntime", "N,E")
            }
            (Operation::Models | Operation::Profiles, Shape::Runtime) => {
                (client::SERVICE_SDK, "kirocontrolplanebearer", "N,E")
            }
        };
        let mut ide = ["KiroIDE-", version, "-", machine_id].concat();
        if shape == Shape::Runtime && call != Operation::Usage {
            ide.push_str("-KAS/");
            ide.push_str(agent_version);
        }
        [self.sdk_agent(sdk, api, mode, &ide), ["aws-sdk-js/", sdk, " ", &ide].concat()]
    }

    /// `user-agent` and `x-amz-user-agent` of the OIDC host (K100): no version, no machine id.
    pub fn oidc_agents(&self) -> [String; 2] {
        let sdk = client::OIDC_SDK;
        [self.sdk_agent(sdk, "sso-oidc", "E", "KiroIDE"), format!("aws-sdk-js/{sdk} KiroIDE")]
    }

    /// The headers of a call of the OIDC host, beside its content type (K100).
    pub fn oidc_headers(&self) -> [(HeaderName, String); 4] {
        let [user_agent, amz_user_agent] = self.oidc_agents();
        [
            (HeaderName::from_static("amz-sdk-invocation-id"), uuid::Uuid::new_v4().to_string()),
            (HeaderName::from_static("amz-sdk-request"), "attempt=1; max=4".to_owned()),
            (HeaderName::from_static("x-amz-user-agent"), amz_user_agent),
            (USER_AGENT, user_agent),
        ]
    }

    /// `user-agent` of social refresh (K103).
    pub fn social_user_agent(&self, machine_id: &str) -> String {
        format!("KiroIDE-{}-{machine_id}", self.version)
    }

    /// `user-agent` of a refresh at an organisation's own provider (K82): no machine id.
    pub fn provider_user_agent(&self) -> String {
        format!("KiroIDE-{}", self.version)
    }

    fn sdk_agent(&self, sdk: &str, api: &str, mode: &str, ide: &str) -> String {
        let Self { os, .. } = self;
        let (name, node) = ("aws-sdk-js/", client::NODE);
        // Made for every call, and cheaper than `format!`.
        [name, sdk, " ua/2.1 os/", os, " lang/js md/nodejs#", node, " api/", api, "#", sdk, " m/", mode, " ", ide]
            .concat()
    }

    /// Every header of a call but `content-length` and `amz-sdk-invocation-id` (K113).
    ///
    /// # Errors
    /// A value of the account can't stand in a header: fault `Network`.
    pub fn headers(&self, shape: Shape, call: Operation, caller: &CallAuth<'_>) -> Result<HeaderMap, Fault> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        const AWS_JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.0");
        let text = |value: &str| {
            HeaderValue::from_str(value).map_err(|_| Fault::network("a header value of the account is not printable"))
        };
        let named = HeaderName::from_static;
        let mut headers = HeaderMap::with_capacity(14);
        match (call, shape) {
            (Operation::Usage, _) => {}
            (Operation::Chat | Operation::Mcp, Shape::Q) => drop(headers.insert(CONTENT_TYPE, JSON)),
            _ => drop(headers.insert(CONTENT_TYPE, AWS_JSON)),
        }
        if shape == Shape::Q || call == Operation::Usage {
            headers.insert(ACCEPT, JSON);
        }
        let mut bearer = text(&format!("Bearer {}", caller.token.expose()))?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
        if let Some(kind) = caller.token_type {
            headers.insert(named("tokentype"), text(kind)?);
        }
        if let Some(target) = target(shape, call) {
            headers.insert(named("x-amz-target"), HeaderValue::from_static(target));
        }
        let [user_agent, amz_user_agent] = self.agents(shape, call, caller.machine_id);
        headers.insert(named("x-amz-user-agent"), text(&amz_user_agent)?);
        headers.insert(USER_AGENT, text(&user_agent)?);
        let tries =
            if shape == Shape::Runtime && call != Operation::Usage { "attempt=1; max=3" } else { "attempt=1; max=1" };
        headers.insert(named("amz-sdk-request"), HeaderValue::from_static(tries));
        match (call, shape) {
            (Operation::Chat, Shape::Q) => {
                headers.insert(named("x-amzn-kiro-agent-mode"), HeaderValue::from_static("vibe"));
            }
            (Operation::Chat, Shape::Runtime) => {
                headers.insert(named("x-kiro-attempt"), HeaderValue::from_static("1;max=3"));
                headers.insert(named("x-amzn-kiro-client-attribution"), HeaderValue::from_static("kiro-ide"));
            }
            _ => {}
        }
        if call == Operation::Mcp
            && let Some(arn) = caller.profile_arn
        {
            headers.insert(named("x-amzn-kiro-profile-arn"), text(arn)?);
        }
        Ok(headers)
    }
}

/// `x-amz-target` of the calls that go to the root path (K111).
fn target(shape: Shape, call: Operation) -> Option<&'static str> {
    match (shape, call) {
        (Shape::Q, Operation::Models) => Some("AmazonCodeWhispererService.ListAvailableModels"),
        (Shape::Q, Operation::Profiles) => Some("AmazonCodeWhispererService.ListAvailableProfiles"),
        (Shape::Runtime, Operation::Chat) => Some("KiroRuntimeService.GenerateAssistantResponse"),
        (Shape::Runtime, Operation::Mcp) => Some("KiroRuntimeService.InvokeMCP"),
        (Shape::Runtime, Operation::Models) => Some("KiroControlPlaneBearerService.ListAvailableModels"),
        (Shape::Q, Operation::Chat | Operation::Mcp)
        | (_, Operation::Usage)
        | (Shape::Runtime, Operation::Profiles) => None,
    }
}

/// A new id for each sending (K113).
pub(crate) fn add_invocation_id(headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        headers.insert(HeaderName::from_static("amz-sdk-invocation-id"), id);
    }
}

/// `linux#6.1.0`, `darwin#…`, `win32#…`: Node.js's names (`{OS}` in K103), read once at start so that it never changes
/// (K16).
pub(super) fn operating_system() -> String {
    #[cfg(unix)]
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let release = "10.0.22631".to_owned();
    let name = match std::env::consts::OS {
        "macos" => "darwin",
        "windows" => "win32",
        _ => "linux",
    };
    let printable: String = release.chars().filter(|c| c.is_ascii_graphic()).collect();
    format!("{name}#{printable}")
}

#[cfg(test)]
mod tests {
    use super::super::header;
    use super::*;

    /// A81: each row of K103 and K113 exactly.
    #[test]
    fn headers_of_every_call_a81_k4_k14_k103_k111_k113_trap_22() {
        let identity = Identity { version: "V".into(), agent_version: "G".into(), os: "linux#6.1".into() };
        let token = Secret::new("t");
        let caller = CallAuth { token: &token, token_type: None, machine_id: "M", profile_arn: Some("arn") };
        let node = client::NODE;
        let agent = |sdk: &str, api: &str, mode: &str, ide: &str| {
            format!("aws-sdk-js/{sdk} ua/2.1 os/linux#6.1 lang/js md/nodejs#{node} api/{api}#{sdk} m/{mode} {ide}")
        };
        let q_chat = agent("1.0.34", "codewhispererstreaming", "E", "KiroIDE-V-M");
        let runtime_chat = agent("1.0.0", "kiroruntime", "N", "KiroIDE-V-M-KAS/G");
        let service = agent("1.0.0", "codewhispererruntime", "N,E", "KiroIDE-V-M");
        let control = agent("1.0.0", "kirocontrolplanebearer", "N,E", "KiroIDE-V-M-KAS/G");
        let (q, kas) = ("aws-sdk-js/1.0.34 KiroIDE-V-M", "aws-sdk-js/1.0.0 KiroIDE-V-M-KAS/G");
        let plain = "aws-sdk-js/1.0.0 KiroIDE-V-M";
        let (json, aws) = (Some("application/json"), Some("application/x-amz-json-1.0"));
        let one = "attempt=1; max=1";
        let three = "attempt=1; max=3";
        type Row<'a> =
            (Shape, Operation, &'a str, &'a str, Option<&'a str>, Option<&'a str>, &'a str, &'a [(&'a str, &'a str)]);
        let table: [Row<'_>; 10] = [
            (Shape::Q, Operation::Chat, &q_chat, q, json, json, one, &[("x-amzn-kiro-agent-mode", "vibe")]),
            (Shape::Q, Operation::Mcp, &q_chat, q, json, json, one, &[("x-amzn-kiro-profile-arn", "arn")]),
            (Shape::Q, Operation::Usage, &service, plain, None, json, one, &[]),
            (
                Shape::Q,
                Operation::Models,
                &service,
                plain,
                aws,
                json,
                one,
                &[("x-amz-target", "AmazonCodeWhispererService.ListAvailableModels")],
            ),
            (
                Shape::Q,
                Operation::Profiles,
                &service,
                plain,
                aws,
                json,
                one,
                &[("x-amz-target", "AmazonCodeWhispererService.ListAvailableProfiles")],
            ),
            (
                Shape::Runtime,
                Operation::Chat,
                &runtime_chat,
                kas,
                aws,
                None,
                three,
                &[
                    ("x-amz-target", "KiroRuntimeService.GenerateAssistantResponse"),
                    ("x-kiro-attempt", "1;max=3"),
                    ("x-amzn-kiro-client-attribution", "kiro-ide"),
                ],
            ),
            (
                Shape::Runtime,
                Operation::Mcp,
                &runtime_chat,
                kas,
                aws,
                None,
                three,
                &[("x-amz-target", "KiroRuntimeService.InvokeMCP"), ("x-amzn-kiro-profile-arn", "arn")],
            ),
            (Shape::Runtime, Operation::Usage, &service, plain, None, json, one, &[]),
            (
                Shape::Runtime,
                Operation::Models,
                &control,
                kas,
                aws,
                None,
                three,
                &[("x-amz-target", "KiroControlPlaneBearerService.ListAvailableModels")],
            ),
            (Shape::Runtime, Operation::Profiles, &control, kas, aws, None, three, &[]),
        ];
        for (shape, call, user_agent, amz, content_type, accept, tries, more) in table {
            let headers = identity.headers(shape, call, &caller).unwrap();
            let has = |name: &str| header(&headers, name);
            let what = format!("{shape} {}", call.as_str());
            assert_eq!((has("user-agent"), has("x-amz-user-agent")), (Some(user_agent), Some(amz)), "{what}");
            assert_eq!((has("content-type"), has("accept")), (content_type, accept), "{what}");
            assert_eq!((has("amz-sdk-request"), has("authorization")), (Some(tries), Some("Bearer t")), "{what}");
            assert!(headers["authorization"].is_sensitive());
            for (name, value) in more {
                assert_eq!(has(name), Some(*value), "{what}");
            }
            let common = 4 + usize::from(content_type.is_some()) + usize::from(accept.is_some());
            assert_eq!(headers.len(), common + more.len(), "{what}: {headers:?}");
        }
        let keyed = CallAuth { token_type: Some("API_KEY"), ..caller };
        assert_eq!(identity.headers(Shape::Q, Operation::Chat, &keyed).unwrap()["tokentype"], "API_KEY");
        let oidc = agent("3.980.0", "sso-oidc", "E", "KiroIDE");
        assert_eq!(identity.oidc_agents(), [oidc, "aws-sdk-js/3.980.0 KiroIDE".to_owned()]);
        assert_eq!(identity.social_user_agent("M"), "KiroIDE-V-M");
    }

    #[test]
    fn the_operating_system_is_the_same_at_every_reading_k16_trap_26() {
        assert_eq!(operating_system(), operating_system());
        assert!(operating_system().contains('#'));
    }
}
