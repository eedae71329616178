//! Ids for a conversation without client ids (TR48, TR49), and the key by which it keeps its account (R101).
//!
//! All are HMAC-SHA-256 under one secret (R103): without it nobody can test an id against a guessed text.

use std::fmt;

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::proto::json::tree::Text;
use crate::proto::messages::request::{Content, DocumentSource, Request, Role, is_uuid};
use crate::proto::record::hex;

/// Characters of the system text that count (TR48).
const SYSTEM_CHARACTERS: usize = 1_024;

/// The secret of all derived ids (R103). Never shown.
#[derive(Clone)]
pub struct IdSecret(Hmac<Sha256>);

impl IdSecret {
    /// 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        // A key of the block's size is taken as it is; ours is 32 bytes.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&bytes);
        Self(Hmac::new(&block.into()))
    }

    /// The SHA-256 of a text of any length, such as `KIRO_ID_SECRET`.
    pub fn of_text(text: &str) -> Self {
        Self::new(Sha256::digest(text).into())
    }
}

impl fmt::Debug for IdSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdSecret")
    }
}

/// Key of a conversation in the memory of accounts (R101).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationKey(pub [u8; 16]);

impl fmt::Display for ConversationKey {
    /// 32 hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// The client and its session, as the headers name them.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientContext<'a> {
    /// The header `x-claude-code-session-id` (M34).
    pub session: Option<&'a str>,
    /// The header `x-session-id`, which gateways in front of this one set: 8 to 128 printable ASCII characters, anything
    /// else counts as none (TR48).
    pub gateway_session: Option<&'a str>,
    /// SHA-256 of the client key that was presented.
    pub key: Option<[u8; 32]>,
}

/// The inputs of a request's ids, beside its body.
#[derive(Debug, Clone, Copy)]
pub struct IdContext<'a> {
    /// The secret of R103.
    pub secret: &'a IdSecret,
    /// The client.
    pub caller: ClientContext<'a>,
    /// `KIRO_CONVERSATION_ID=random`: two random v4 UUIDs of this client request, the conversation's and the
    /// continuation's, the same on every attempt. `None`: derived.
    pub random: Option<[&'a str; 2]>,
}

/// The ids of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// `conversationId`.
    pub conversation: String,
    /// `agentContinuationId`.
    pub continuation: String,
    /// The key under which the conversation's account is remembered.
    pub key: ConversationKey,
}

/// The ids of a request: the client's, else derived from the beginning of the conversation (TR48, TR49, R101).
pub fn ids(request: &Request<'_>, context: &IdContext<'_>) -> Ids {
    let IdContext { secret, caller, random } = context;
    let gateway_session = caller.gateway_session.filter(|id| is_session(id));
    let explicit = (request.conversation_id(caller.session))
        .or_else(|| gateway_session.filter(|id| is_uuid(id)).map(str::to_owned));

    let leading = request.messages.iter().take_while(|message| message.role == Role::System);
    let leading = leading.flat_map(|message| &message.blocks).filter_map(|block| match &block.content {
        Content::Text(text) => Some(text),
        _ => None,
    });
    let system = beginning(request.system.iter().map(|system| &system.text).chain(leading));
    let first = first_message(request);
    let client = |mac: Derivation| {
        let user_id = request.user_id.as_ref().map(Text::decode);
        mac.part(caller.key.as_ref().map_or(&[], |key| key)).part(user_id.as_deref().unwrap_or_default().as_bytes())
    };
    let conversation = match (&explicit, random, gateway_session) {
        (Some(id), ..) => id.clone(),
        (None, _, Some(session)) => client(secret.derive("conv")).part(session.as_bytes()).uuid(),
        (None, Some([conversation, _]), None) => (*conversation).to_owned(),
        (None, None, None) => client(secret.derive("conv")).part(system.as_bytes()).part(&first).uuid(),
    };
    let continuation = match random {
        Some([_, continuation]) => (*continuation).to_owned(),
        None => secret.derive("cont").part(conversation.as_bytes()).uuid(),
    };
    let session = explicit.as_deref().or(gateway_session).unwrap_or_default();
    let key = client(secret.derive("key")).part(system.as_bytes()).part(&first).part(session.as_bytes()).first_16();
    Ids { conversation, continuation, key: ConversationKey(key) }
}

/// The first 64 bits of SHA-256 of a signature, or of the data of a redacted thought (TR44).
pub fn signature_id(signature: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(signature).into();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The [`signature_id`]s of the signed and redacted thinking of a request, in its order.
pub fn signatures(request: &Request<'_>) -> impl DoubleEndedIterator<Item = u64> {
    let assistants = request.messages.iter().filter(|message| message.role == Role::Assistant);
    assistants.flat_map(|message| &message.blocks).filter_map(|block| match &block.content {
        Content::Thinking { signature, .. } if !signature.is_empty() => Some(signature_id(&signature.decode())),
        Content::RedactedThinking { data } if !data.is_empty() => Some(signature_id(&data.decode())),
        _ => None,
    })
}

fn is_session(id: &str) -> bool {
    (8..=128).contains(&id.len()) && id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

fn beginning<'t, 'a: 't>(system: impl Iterator<Item = &'t Text<'a>>) -> String {
    let mut text = String::new();
    let mut left = SYSTEM_CHARACTERS;
    for piece in system.filter(|piece| !piece.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
            left = left.saturating_sub(1);
        }
        for char in piece.chars().take(left) {
            text.push(char);
            left -= 1;
        }
    }
    text
}

/// SHA-256 of the first user message: its texts, however they are cut into blocks, and the data of everything else.
fn first_message(request: &Request<'_>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |kind: u8, text: &Text<'_>| {
        let mut length = 0;
        text.decode_into(|piece| length += piece.len() as u64);
        hash.update([kind]);
        hash.update(length.to_be_bytes());
        text.decode_into(|piece| hash.update(piece));
    };
    let first = request.messages.iter().find(|message| message.role == Role::User);
    for block in first.iter().flat_map(|message| &message.blocks) {
        match &block.content {
            Content::Text(text) => part(0, text),
            Content::Image(image) => part(1, &image.data),
            Content::Document(document) => match &document.source {
                DocumentSource::Base64 { data, .. } => part(2, data),
                DocumentSource::Text(text) => part(2, text),
                DocumentSource::Content(_) => {}
            },
            Content::ToolResult(result) => part(3, &Text::new(&*result.id)),
            _ => {}
        }
    }
    hash.finalize().into()
}

/// An HMAC over parts, each with its length in front.
struct Derivation(Hmac<Sha256>);

impl IdSecret {
    fn derive(&self, purpose: &str) -> Derivation {
        Derivation(self.0.clone()).part(purpose.as_bytes())
    }
}

impl Derivation {
    fn part(mut self, bytes: &[u8]) -> Self {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    fn first_16(self) -> [u8; 16] {
        let bytes: [u8; 32] = self.0.finalize().into_bytes().into();
        let mut first = [0; 16];
        first.copy_from_slice(&bytes[..16]);
        first
    }

    /// With version and variant of a v4 UUID.
    fn uuid(self) -> String {
        let mut bytes = self.first_16();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = hex(&bytes);
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::messages::request::Purpose;

    const RANDOM: [&str; 2] = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"];

    fn of(body: &str, caller: ClientContext<'_>, random: Option<[&str; 2]>) -> Ids {
        let secret = IdSecret::of_text("a secret of the tests");
        let request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
        ids(&request, &IdContext { secret: &secret, caller, random })
    }

    fn with(system: &str, messages: &str, rest: &str) -> String {
        format!(r#"{{"model":"claude-opus-5","max_tokens":5,"system":{system},"messages":[{messages}]{rest}}}"#)
    }

    const A: &str = r#"{"role":"user","content":"a"}"#;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        // Test case 1: key of 20 bytes 0x0b, "Hi There".
        let mut block = [0; 64];
        block[..20].fill(0x0b);
        let mut mac: Hmac<Sha256> = Hmac::new(&block.into());
        mac.update(b"Hi There");
        let bytes: [u8; 32] = mac.finalize().into_bytes().into();
        assert_eq!(bytes[..8], [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53]);
    }

    #[test]
    fn equal_beginnings_give_equal_ids_tr48_tr49() {
        let none = ClientContext::default();
        let first = of(&with(r#""S""#, A, ""), none, None);
        // Blocks or a string, other spellings, other messages behind it: the same.
        for same in [
            with(r#""\u0053""#, A, ""),
            with(r#"[{"type":"text","text":"S"},{"type":"text","text":""}]"#, A, ""),
            with(r#""S""#, r#"{"role":"user","content":[{"type":"text","text":"a"}]}"#, ""),
            with(r#""S""#, &format!(r#"{A},{{"role":"assistant","content":"b"}},{{"role":"user","content":"c"}}"#), ""),
        ] {
            assert_eq!(of(&same, none, None), first, "{same}");
        }
        assert_eq!(first.conversation.len(), 36);
        for uuid in [&first.conversation, &first.continuation] {
            assert!(is_uuid(uuid) && &uuid[14..15] == "4" && "89ab".contains(&uuid[19..20]), "{uuid}");
        }
        assert_ne!(first.conversation, first.continuation);
        let keyed = ClientContext { key: Some([1; 32]), ..none };
        let image = |data| {
            format!(
                r#"{{"role":"user","content":[{{"type":"image","source":{{"type":"base64","media_type":"image/png","data":"{data}"}}}}]}}"#
            )
        };
        let others = [
            of(&with(r#""T""#, A, ""), none, None),
            of(&with(r#""S""#, r#"{"role":"user","content":"z"}"#, ""), none, None),
            of(&with(r#""S""#, A, r#","metadata":{"user_id":"u"}"#), none, None),
            of(&with(r#""S""#, A, ""), keyed, None),
            of(&with(r#""S""#, A, r#","metadata":{"user_id":"u"}"#), keyed, None),
            of(&with(r#""S""#, &image("iVBORw0KGgo="), ""), none, None),
            of(&with(r#""S""#, &image("iVBORw0KGgoA"), ""), none, None),
            // The lengths in front keep these apart.
            of(&with(r#""Sa""#, r#"{"role":"user","content":" "}"#, ""), none, None),
        ];
        let mut seen = vec![first];
        for other in others {
            for one in &seen {
                assert_ne!(one.conversation, other.conversation);
                assert_ne!(one.continuation, other.continuation);
                assert_ne!(one.key, other.key);
            }
            seen.push(other);
        }
    }

    #[test]
    fn only_the_beginning_of_the_system_text_counts_tr48() {
        let none = ClientContext::default();
        let long = |tail: &str, length: usize| with(&format!("\"{}{tail}\"", "é".repeat(length)), A, "");
        assert_eq!(of(&long("x", 1_024), none, None), of(&long("y", 1_024), none, None));
        assert_ne!(of(&long("x", 1_023), none, None).key, of(&long("y", 1_023), none, None).key);
        let blocks = |last: &str| {
            with(
                &format!(r#"[{{"type":"text","text":"{}"}},{{"type":"text","text":"{last}"}}]"#, "a".repeat(1_023)),
                A,
                "",
            )
        };
        assert_eq!(of(&blocks("x"), none, None), of(&blocks("y"), none, None));
    }

    #[test]
    fn ids_come_from_the_first_source_in_order_a183_tr48() {
        let id = "13e2a96f-2434-496b-8db1-e2c1f1306470";
        let other = "0b5e7c1a-1111-4222-8333-444455556666";
        let body = with(r#""S""#, A, "");
        let caller = |session, gateway_session| ClientContext { session, gateway_session, key: None };
        assert_eq!(of(&body, caller(Some(id), Some(other)), None).conversation, id);
        assert_eq!(of(&body, caller(Some("nope"), Some(other)), None).conversation, other);
        // No UUID: in place of the two texts, and never the text itself.
        let named = of(&body, caller(None, Some("abc-12345")), None);
        let elsewhere =
            of(&with(r#""T""#, r#"{"role":"user","content":"z"}"#, ""), caller(None, Some("abc-12345")), None);
        assert!(is_uuid(&named.conversation) && !named.conversation.contains("abc-12345"));
        assert_eq!((&named.conversation, &named.continuation), (&elsewhere.conversation, &elsewhere.continuation));
        assert_ne!(named.key, elsewhere.key);
        assert_ne!(of(&body, caller(None, Some("abc-12346")), None).conversation, named.conversation);
        // Not session ids.
        let derived = of(&body, ClientContext::default(), None);
        let long = "x".repeat(129);
        for none in ["abc-123", "", "abc-é2345", "abc\n12345", &long] {
            assert_eq!(of(&body, caller(None, Some(none)), None), derived, "{none:?}");
        }
        // One session's tasks have keys of their own.
        let tasks = ["a", "b"].map(|text| {
            of(&with(r#""S""#, &format!(r#"{{"role":"user","content":"{text}"}}"#), ""), caller(Some(id), None), None)
        });
        assert_eq!(tasks[0].conversation, tasks[1].conversation);
        assert_ne!(tasks[0].key, tasks[1].key);
        assert_ne!(tasks[0].key, of(&with(r#""S""#, A, ""), ClientContext::default(), None).key);
    }

    #[test]
    fn random_ids_are_the_callers_a125_tr49() {
        let body = with(r#""S""#, A, "");
        let random = of(&body, ClientContext::default(), Some(RANDOM));
        assert_eq!([&*random.conversation, &*random.continuation], RANDOM);
        assert_eq!(random.key, of(&body, ClientContext::default(), None).key);
    }

    #[test]
    fn the_secret_is_never_shown_r103() {
        assert_eq!(format!("{:?}", IdSecret::new([7; 32])), "IdSecret");
    }
}
