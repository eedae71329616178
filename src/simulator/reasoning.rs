//! Signatures of simulated thoughts, and whether a replayed one fits (K130).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::accounts::identity;
use super::check::Prompt;
use super::models::{Model, Style};
use super::reply::HttpReply;
use super::stage::Thought;
use super::world::{Bind, SimWorld};

/// The beginning of every simulated signature.
const MAGIC: &[u8; 8] = b"kiro-sim";
const TAG: usize = 8;

/// The signature of a thought, behind another one or behind none (`""`): 44 characters of base64, the last of them
/// padding.
pub(super) fn sign(token: &str, prompt: &Prompt, before: &str) -> String {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&account(token));
    bytes.extend_from_slice(&seal(token, prompt, before)[..16]);
    BASE64_STANDARD.encode(bytes)
}

/// The last signature of the history, which the first one of this answer follows.
pub(super) fn last(prompt: &Prompt) -> &str {
    prompt.thoughts.iter().rev().flatten().next().map_or("", String::as_str)
}

/// Whether the signatures of the history may be replayed here.
///
/// # Errors
/// Upstream's answer: with a reason for another account's signature, with a text for a narrower binding.
pub(super) fn judge(token: &str, prompt: &Prompt, bind: Bind) -> Result<(), HttpReply> {
    let mut before = "";
    for signature in prompt.thoughts.iter().flatten() {
        let bytes = BASE64_STANDARD.decode(signature).unwrap_or_default();
        let made_here = bytes.strip_prefix(MAGIC).filter(|rest| rest.len() == TAG + 16);
        let fits = match (bind, made_here) {
            (Bind::Off, _) | (Bind::Account, None) => true,
            (Bind::Strict, None) => false,
            (_, Some(rest)) if rest[..TAG] != account(token) => {
                let (reason, message) = ("THINKING_SIGNATURE_INVALID", "Invalid signature in thinking block.");
                return Err(HttpReply::error(400, "ValidationException", Some(reason), message));
            }
            (Bind::Account, Some(_)) => true,
            (Bind::Strict, Some(rest)) => rest[TAG..] == seal(token, prompt, before)[..16],
        };
        if !fits {
            let message = "Invalid `signature` in `thinking` block. The block is bound to a different conversation.";
            return Err(HttpReply::error(400, "ValidationException", None, message));
        }
        before = signature;
    }
    Ok(())
}

fn account(token: &str) -> [u8; TAG] {
    let hash = Sha256::digest(identity(token));
    std::array::from_fn(|n| hash[n])
}

fn seal(token: &str, prompt: &Prompt, before: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    let parts = [
        identity(token),
        prompt.conversation_id.as_deref().unwrap_or_default(),
        prompt.model.as_deref().unwrap_or_default(),
        &prompt.opening,
        before,
    ];
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// How a request wants its model to think (TR40).
pub(super) fn asked(prompt: &Prompt, world: &SimWorld) -> Thought {
    if !world.is_today {
        return Thought::None;
    }
    let model = prompt.model.as_deref().and_then(|id| world.model(id));
    let Some(Model { style, always, .. }) = model else { return Thought::None };
    let fields = prompt.fields.as_ref();
    let field = |pointer: &str| fields.and_then(|fields| fields.pointer(pointer)?.as_str());
    let omitted = field("/thinking/display") == Some("omitted");
    match style {
        Style::None => Thought::None,
        Style::Prefix if has_prefix(prompt) => Thought::Tags,
        Style::Prefix => Thought::None,
        Style::Reasoning if field("/reasoning/effort").is_some_and(|effort| effort != "none") => Thought::Encrypted,
        Style::Reasoning => Thought::None,
        Style::Fields | Style::Both => match field("/thinking/type") {
            Some("disabled") => Thought::None,
            None if !always && field("/output_config/effort").is_none() => Thought::None,
            _ => Thought::Events { omitted },
        },
    }
}

fn has_prefix(prompt: &Prompt) -> bool {
    [&prompt.opening, &prompt.content].iter().any(|text| text.contains("<thinking_mode>"))
}
