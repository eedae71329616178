//! The body of a Kiro request, ready to be sent.
//!
//! Member order is fixed (TR2), nothing is null or empty (TR3, K18), strings are spelled as TR4 says.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::proto::json::segments::Segments;
use crate::proto::json::tree::{Sink, Text, Value};
use crate::proto::kiro::route::Shape;

/// A Kiro request as bytes, serialised once, in segments: an attempt only chooses which of them go out (K121). Long
/// texts of the client's are slices of its own body. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KiroBody {
    /// The beginning, up to and including the members that the small form leaves out.
    front: Bytes,
    /// The members of `conversationState` that every form has, in consecutive pieces.
    state: Arc<[Bytes]>,
    /// The conversation id as JSON.
    conversation_id: Bytes,
}

/// What an attempt chooses (K115, K116).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form<'a> {
    /// `rootConversationId` and `agentMode` are [`Shape::Runtime`]'s only.
    pub shape: Shape,
    /// Without `agentContinuationId`, `agentTaskType`, `agentMode` and `rootConversationId` (K116).
    pub small: bool,
    /// `additionalModelRequestFields`: a JSON object, not an empty one (TR40). An empty text counts as none.
    pub model_fields: Option<&'a str>,
    /// An empty one counts as none.
    pub profile_arn: Option<&'a str>,
}

impl Form<'_> {
    /// The full form of a shape, without model fields and profile.
    pub const fn full(shape: Shape) -> Self {
        Self { shape, small: false, model_fields: None, profile_arn: None }
    }
}

/// The JSON of one attempt, in consecutive segments. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Parts {
    front: Bytes,
    state: Arc<[Bytes]>,
    tail: Bytes,
}

impl Parts {
    /// The segments.
    pub fn segments(&self) -> impl Iterator<Item = &Bytes> + Clone {
        std::iter::once(&self.front).chain(self.state.iter()).chain(std::iter::once(&self.tail))
    }

    /// The segment at a place, if there are so many.
    pub fn segment(&self, place: usize) -> Option<&Bytes> {
        match place.checked_sub(1) {
            None => Some(&self.front),
            Some(inner) if inner == self.state.len() => Some(&self.tail),
            Some(inner) => self.state.get(inner),
        }
    }

    /// Bytes of all segments.
    pub fn size(&self) -> usize {
        self.segments().map(Bytes::len).sum()
    }

    /// All of it in one piece, copied.
    pub fn concat(&self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.size());
        self.segments().for_each(|segment| whole.extend_from_slice(segment));
        whole
    }
}

/// Any consecutive segments.
impl From<Vec<Bytes>> for Parts {
    fn from(segments: Vec<Bytes>) -> Self {
        Self { front: Bytes::new(), state: segments.into(), tail: Bytes::new() }
    }
}

impl KiroBody {
    /// The JSON to send. What all attempts share is not copied; the last segment is made here.
    pub fn parts(&self, form: &Form<'_>) -> Parts {
        let full_runtime = form.shape == Shape::Runtime && !form.small;
        let mut tail = Vec::new();
        if full_runtime {
            tail.put(",\"rootConversationId\":");
            tail.extend_from_slice(&self.conversation_id);
        }
        tail.put("}");
        if let Some(fields) = form.model_fields.filter(|fields| !fields.is_empty()) {
            tail.put(",\"additionalModelRequestFields\":");
            tail.put(fields);
        }
        if full_runtime {
            tail.put(",\"agentMode\":\"vibe\"");
        }
        if let Some(arn) = form.profile_arn.filter(|arn| !arn.is_empty()) {
            tail.put(",\"profileArn\":");
            quoted(arn, &mut tail);
        }
        tail.put("}");
        let front = if form.small { Bytes::from_static(START.as_bytes()) } else { self.front.clone() };
        Parts { front, state: self.state.clone(), tail: Bytes::from(tail) }
    }

    /// Bytes that it takes beside the source: what was copied, and the list of segments.
    pub fn copied(&self, source: &Bytes) -> usize {
        let inside = source.as_ptr_range();
        let copied = self.state.iter().filter(|segment| !inside.contains(&segment.as_ptr()));
        copied.map(Bytes::len).sum::<usize>() + self.state.len() * size_of::<Bytes>()
    }

    /// The same in one piece, copied.
    pub fn render(&self, form: &Form<'_>) -> Bytes {
        Bytes::from(self.parts(form).concat())
    }
}

const START: &str = r#"{"conversationState":{"#;

/// Everything a body is made of.
#[derive(Debug)]
pub(crate) struct Conversation<'r> {
    pub continuation_id: &'r str,
    pub conversation_id: &'r str,
    pub model_id: &'r str,
    pub history: Vec<HistoryMessage<'r>>,
    pub current: UserMessage<'r>,
    /// Of the current message.
    pub tools: Vec<Tool<'r>>,
}

#[derive(Debug)]
pub(crate) enum HistoryMessage<'r> {
    User(UserMessage<'r>),
    Assistant(AssistantMessage<'r>),
}

#[derive(Debug, Default)]
pub(crate) struct UserMessage<'r> {
    pub content: Content<'r>,
    pub images: Vec<Image<'r>>,
    pub documents: Vec<Document<'r>>,
    pub results: Vec<ToolResult<'r>>,
    pub cache_point: bool,
}

#[derive(Debug, Default)]
pub(crate) struct AssistantMessage<'r> {
    pub content: Content<'r>,
    pub tool_uses: Vec<ToolUse<'r>>,
    pub reasoning: Option<Reasoning<'r>>,
    pub cache_point: bool,
}

/// A text in pieces, which are written one after the other.
#[derive(Debug, Default, Clone)]
pub(crate) struct Content<'r> {
    pieces: Vec<Text<'r>>,
}

/// An image; `data` is base64.
#[derive(Debug)]
pub(crate) struct Image<'r> {
    pub format: &'static str,
    pub data: Text<'r>,
}

/// A document; `data` is base64.
#[derive(Debug)]
pub(crate) struct Document<'r> {
    pub name: String,
    pub format: &'static str,
    pub data: Text<'r>,
}

#[derive(Debug)]
pub(crate) struct ToolResult<'r> {
    pub id: Cow<'r, str>,
    pub content: Content<'r>,
    pub is_error: bool,
}

#[derive(Debug)]
pub(crate) struct ToolUse<'r> {
    pub id: Cow<'r, str>,
    pub name: Cow<'r, str>,
    pub input: Input<'r>,
}

/// A tool use's input: an object.
#[derive(Debug)]
pub(crate) enum Input<'r> {
    Empty,
    /// The client's own.
    Client(Value<'r, 'r>),
    /// Compact JSON that was put together (TR15).
    Joined(String),
}

#[derive(Debug)]
pub(crate) enum Reasoning<'r> {
    Text {
        text: Text<'r>,
        signature: Text<'r>,
    },
    /// Base64.
    Redacted(Text<'r>),
}

#[derive(Debug)]
pub(crate) struct Tool<'r> {
    pub name: Cow<'r, str>,
    pub description: Text<'r>,
    /// Compact JSON, an object.
    pub schema: Cow<'r, str>,
}

impl<'r> Content<'r> {
    pub fn is_empty(&self) -> bool {
        self.pieces.iter().all(Text::is_empty)
    }

    pub fn is_blank(&self) -> bool {
        self.pieces.iter().all(Text::is_blank)
    }

    /// Room for so many lines.
    pub fn reserve(&mut self, lines: usize) {
        self.pieces.reserve((2 * lines).saturating_sub(1));
    }

    /// Continues the text directly.
    pub fn append(&mut self, piece: Text<'r>) {
        self.pieces.push(piece);
    }

    /// Continues on a new line, if there is text before.
    pub fn line(&mut self, piece: Text<'r>) {
        self.separated_by(Text::LINE_BREAK, piece);
    }

    /// Continues behind a separator, if there is text before.
    pub fn separated_by(&mut self, separator: Text<'r>, piece: Text<'r>) {
        if !self.pieces.is_empty() {
            self.pieces.push(separator);
        }
        self.pieces.push(piece);
    }

    /// Continues with another text.
    pub fn extend(&mut self, other: Content<'r>) {
        self.pieces.extend(other.pieces);
    }

    fn write(&self, out: &mut Segments<'_>) {
        out.put("\"");
        for piece in &self.pieces {
            piece.write(out);
        }
        out.put("\"");
    }
}

impl<'r> From<Text<'r>> for Content<'r> {
    fn from(text: Text<'r>) -> Self {
        Self { pieces: vec![text] }
    }
}

impl Input<'_> {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(value) => value.members().next().is_none(),
            Self::Joined(json) => json == "{}",
        }
    }
}

const CACHE_POINT: &str = r#""cachePoint":{"type":"default"}"#;

impl<'r> Conversation<'r> {
    /// Every place that can hold a cache point, in the order in which upstream reads them. The tools hold none (TR50).
    pub fn cache_points(&mut self) -> impl DoubleEndedIterator<Item = &mut bool> {
        let messages = self.history.iter_mut().map(|message| match message {
            HistoryMessage::User(message) => &mut message.cache_point,
            HistoryMessage::Assistant(message) => &mut message.cache_point,
        });
        messages.chain(std::iter::once(&mut self.current.cache_point))
    }

    /// The first user message, wherever it stands; history begins with one.
    pub fn first_user(&mut self) -> &mut UserMessage<'r> {
        match self.history.first_mut() {
            Some(HistoryMessage::User(message)) => message,
            _ => &mut self.current,
        }
    }

    /// Serialises it. `source`: the bytes that its texts are borrowed from. `size`: a guess at the body's length.
    pub fn body(&self, source: Option<&Bytes>, size: usize) -> KiroBody {
        let mut front = Vec::with_capacity(128);
        front.put(START);
        front.put(r#""agentContinuationId":"#);
        quoted(self.continuation_id, &mut front);
        front.put(r#","agentTaskType":"vibe","#);
        let mut conversation_id = String::with_capacity(40);
        quoted(self.conversation_id, &mut conversation_id);
        let mut out = Segments::new(source, size);
        out.put(r#""chatTriggerType":"MANUAL","conversationId":"#);
        out.put(&conversation_id);
        out.put(r#","currentMessage":"#);
        let mut model = r#","modelId":"#.to_owned();
        quoted(self.model_id, &mut model);
        model.put(r#","origin":"AI_EDITOR""#);
        self.current.write(&model, &self.tools, &mut out);
        if !self.history.is_empty() {
            out.put(r#","history":"#);
            array(&self.history, &mut out, |message, out| match message {
                HistoryMessage::User(message) => message.write(&model, &[], out),
                HistoryMessage::Assistant(message) => message.write(out),
            });
        }
        KiroBody { front: front.into(), state: out.finish().into(), conversation_id: conversation_id.into() }
    }
}

impl UserMessage<'_> {
    fn write(&self, model: &str, tools: &[Tool<'_>], out: &mut Segments<'_>) {
        out.put(r#"{"userInputMessage":{"content":"#);
        self.content.write(out);
        out.put(model);
        if !self.images.is_empty() {
            out.put(r#","images":"#);
            array(&self.images, out, |image, out| {
                out.put(r#"{"format":""#);
                out.put(image.format);
                out.put(r#"","source":{"bytes":"#);
                image.data.write_quoted(out);
                out.put("}}");
            });
        }
        if !self.documents.is_empty() {
            out.put(r#","documents":"#);
            array(&self.documents, out, |document, out| {
                out.put(r#"{"name":"#);
                quoted(&document.name, out);
                out.put(r#","format":""#);
                out.put(document.format);
                out.put(r#"","source":{"bytes":"#);
                document.data.write_quoted(out);
                out.put("}}");
            });
        }
        if !tools.is_empty() || !self.results.is_empty() {
            out.put(r#","userInputMessageContext":{"#);
            if !tools.is_empty() {
                out.put(r#""tools":"#);
                array(tools, out, Tool::write);
            }
            if !self.results.is_empty() {
                out.put(if tools.is_empty() { r#""toolResults":"# } else { r#","toolResults":"# });
                array(&self.results, out, ToolResult::write);
            }
            out.put("}");
        }
        if self.cache_point {
            out.put(",");
            out.put(CACHE_POINT);
        }
        out.put("}}");
    }
}

impl AssistantMessage<'_> {
    fn write(&self, out: &mut Segments<'_>) {
        out.put(r#"{"assistantResponseMessage":{"content":"#);
        self.content.write(out);
        if !self.tool_uses.is_empty() {
            out.put(r#","toolUses":"#);
            array(&self.tool_uses, out, ToolUse::write);
        }
        match &self.reasoning {
            Some(Reasoning::Text { text, signature }) => {
                out.put(r#","reasoningContent":{"reasoningText":{"text":"#);
                text.write_quoted(out);
                out.put(r#","signature":"#);
                signature.write_quoted(out);
                out.put("}}");
            }
            Some(Reasoning::Redacted(data)) => {
                out.put(r#","reasoningContent":{"redactedContent":"#);
                data.write_quoted(out);
                out.put("}");
            }
            None => {}
        }
        if self.cache_point {
            out.put(",");
            out.put(CACHE_POINT);
        }
        out.put("}}");
    }
}

impl ToolUse<'_> {
    fn write(&self, out: &mut Segments<'_>) {
        out.put(r#"{"toolUseId":"#);
        quoted(&self.id, out);
        out.put(r#","name":"#);
        quoted(&self.name, out);
        out.put(r#","input":"#);
        match &self.input {
            Input::Empty => out.put("{}"),
            Input::Client(value) => value.write(out),
            Input::Joined(json) => out.put(json),
        }
        out.put("}");
    }
}

impl ToolResult<'_> {
    fn write(&self, out: &mut Segments<'_>) {
        out.put(r#"{"toolUseId":"#);
        quoted(&self.id, out);
        out.put(r#","content":[{"text":"#);
        self.content.write(out);
        out.put(if self.is_error { r#"}],"status":"error"}"# } else { r#"}],"status":"success"}"# });
    }
}

impl Tool<'_> {
    fn write(&self, out: &mut Segments<'_>) {
        out.put(r#"{"toolSpecification":{"name":"#);
        quoted(&self.name, out);
        out.put(r#","description":"#);
        self.description.write_quoted(out);
        out.put(r#","inputSchema":{"json":"#);
        out.put(&self.schema);
        out.put("}}}");
    }
}

fn array<'s, T>(items: &[T], out: &mut Segments<'s>, mut write: impl FnMut(&T, &mut Segments<'s>)) {
    out.put("[");
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            out.put(",");
        }
        write(item, out);
    }
    out.put("]");
}

fn quoted(text: &str, out: &mut impl Sink) {
    Text::new(text).write_quoted(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: Form<'_> = Form::full(Shape::Q);

    fn body(current: UserMessage<'_>, tools: Vec<Tool<'_>>, history: Vec<HistoryMessage<'_>>) -> KiroBody {
        let (continuation_id, conversation_id, model_id) = ("A", "B", "M");
        Conversation { continuation_id, conversation_id, model_id, history, current, tools }.body(None, 0)
    }

    #[test]
    fn members_have_a_fixed_order_tr2() {
        let text = || Content::from(Text::new("t"));
        let body = body(
            UserMessage {
                content: text(),
                images: vec![Image { format: "png", data: Text::new("AA==") }],
                documents: vec![Document { name: "d".into(), format: "pdf", data: Text::new("AA==") }],
                results: vec![ToolResult { id: "t1".into(), content: text(), is_error: false }],
                cache_point: true,
            },
            vec![Tool { name: "f".into(), description: Text::new("d"), schema: "{}".into() }],
            vec![
                HistoryMessage::User(UserMessage { content: text(), ..UserMessage::default() }),
                HistoryMessage::Assistant(AssistantMessage {
                    content: text(),
                    tool_uses: vec![ToolUse { id: "t1".into(), name: "f".into(), input: Input::Empty }],
                    reasoning: Some(Reasoning::Redacted(Text::new("AA=="))),
                    cache_point: true,
                }),
            ],
        );
        let expected = concat!(
            r#"{"conversationState":{"agentContinuationId":"A","agentTaskType":"vibe","chatTriggerType":"MANUAL","#,
            r#""conversationId":"B","currentMessage":{"userInputMessage":{"content":"t","modelId":"M","#,
            r#""origin":"AI_EDITOR","images":[{"format":"png","source":{"bytes":"AA=="}}],"#,
            r#""documents":[{"name":"d","format":"pdf","source":{"bytes":"AA=="}}],"#,
            r#""userInputMessageContext":{"tools":[{"toolSpecification":{"name":"f","description":"d","#,
            r#""inputSchema":{"json":{}}}}],"#,
            r#""toolResults":[{"toolUseId":"t1","content":[{"text":"t"}],"status":"success"}]},"#,
            r#""cachePoint":{"type":"default"}}},"history":[{"userInputMessage":{"content":"t","modelId":"M","#,
            r#""origin":"AI_EDITOR"}},{"assistantResponseMessage":{"content":"t","#,
            r#""toolUses":[{"toolUseId":"t1","name":"f","input":{}}],"reasoningContent":{"redactedContent":"AA=="},"#,
            r#""cachePoint":{"type":"default"}}}]},"profileArn":"arn:\"x\""}"#,
        );
        assert_eq!(std::str::from_utf8(&body.render(&Form { profile_arn: Some("arn:\"x\""), ..Q })), Ok(expected));
    }

    #[test]
    fn empty_members_are_left_out_tr3() {
        let body = body(UserMessage { content: Text::new("t").into(), ..UserMessage::default() }, vec![], vec![]);
        let expected = concat!(
            r#"{"conversationState":{"agentContinuationId":"A","agentTaskType":"vibe","chatTriggerType":"MANUAL","#,
            r#""conversationId":"B","currentMessage":{"userInputMessage":{"content":"t","modelId":"M","#,
            r#""origin":"AI_EDITOR"}}}}"#,
        );
        assert_eq!(std::str::from_utf8(&body.render(&Q)), Ok(expected));
        assert_eq!(
            std::str::from_utf8(&body.render(&Form { profile_arn: Some(""), model_fields: Some(""), ..Q })),
            Ok(expected)
        );
    }

    #[test]
    fn an_attempt_chooses_among_forms_of_one_body_k115_k116_k121_tr2() {
        let current = || UserMessage { content: Text::new("t").into(), ..UserMessage::default() };
        let body = body(current(), vec![], vec![HistoryMessage::User(current())]);
        let continuation = r#""agentContinuationId":"A","agentTaskType":"vibe","#;
        let state = concat!(
            r#""chatTriggerType":"MANUAL","conversationId":"B","currentMessage":{"userInputMessage":{"content":"t","#,
            r#""modelId":"M","origin":"AI_EDITOR"}},"history":[{"userInputMessage":{"content":"t","modelId":"M","#,
            r#""origin":"AI_EDITOR"}}]"#,
        );
        let fields = r#","additionalModelRequestFields":{"max_tokens":9}"#;
        let cases = [
            (Shape::Q, false, continuation, "", ""),
            (Shape::Q, true, "", "", ""),
            (Shape::Runtime, false, continuation, r#","rootConversationId":"B""#, r#","agentMode":"vibe""#),
            (Shape::Runtime, true, "", "", ""),
        ];
        for (shape, small, continuation, root, mode) in cases {
            let form = Form { shape, small, model_fields: Some(r#"{"max_tokens":9}"#), profile_arn: Some("arn") };
            let expected =
                format!(r#"{{"conversationState":{{{continuation}{state}{root}}}{fields}{mode},"profileArn":"arn"}}"#);
            assert_eq!(std::str::from_utf8(&body.render(&form)), Ok(&*expected), "{form:?}");
            let bare = Form { model_fields: None, profile_arn: None, ..form };
            let expected = format!(r#"{{"conversationState":{{{continuation}{state}{root}}}{mode}}}"#);
            assert_eq!(std::str::from_utf8(&body.render(&bare)), Ok(&*expected), "{bare:?}");
            // Nothing that attempts share is copied.
            let (one, other) = (body.parts(&form), body.parts(&bare));
            assert_eq!(one.front.as_ptr(), other.front.as_ptr());
            assert!(Arc::ptr_eq(&one.state, &other.state));
        }
    }
}
