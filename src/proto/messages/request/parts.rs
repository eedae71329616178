//! The parts of a request: what a message says, and the tools.

use std::borrow::Cow;

use super::media::{DocumentFormat, ImageFormat};
use super::search::SearchTool;
use crate::proto::json::tree::{Text, ValueId};

/// A block of the system prompt.
#[derive(Debug)]
pub(crate) struct SystemText<'a> {
    pub text: Text<'a>,
    pub cached: bool,
}

#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub role: Role,
    /// String content is one text block; empty text blocks are still there.
    pub blocks: Vec<Block<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    User,
    Assistant,
    System,
}

#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub content: Content<'a>,
    /// Has `cache_control`.
    pub cached: bool,
}

#[derive(Debug)]
pub(crate) enum Content<'a> {
    Text(Text<'a>),
    Image(Image<'a>),
    Document(Document<'a>),
    SearchResult(SearchResult<'a>),
    ToolUse(ToolUse<'a>),
    ToolResult(ToolResult<'a>),
    /// `server_tool_use` of `web_search` (TR52). `input` is an object.
    SearchUse {
        id: Cow<'a, str>,
        input: Option<ValueId>,
    },
    /// `web_search_tool_result` (TR52).
    SearchResults {
        id: Cow<'a, str>,
        content: ValueId,
    },
    /// An empty signature means none.
    Thinking {
        text: Text<'a>,
        signature: Text<'a>,
    },
    RedactedThinking {
        data: Text<'a>,
    },
    /// A tool that a search has found (TR59): a text before the request is whole.
    ToolReference(Cow<'a, str>),
    /// The names of the tools that a search at Anthropic has found: nothing of it goes out.
    ToolsFound(Vec<Cow<'a, str>>),
    /// A summary of the conversation before it (TR57); an older or an empty one counts for nothing.
    Summary(Text<'a>),
    /// A block of another service's server tool (M76): accepted and dropped.
    Foreign,
}

#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// As its bytes show; none of those that upstream takes, in an earlier message (TR67).
    pub format: Option<ImageFormat>,
    /// Checked base64.
    pub data: Text<'a>,
    /// Where its data stands: `messages.0.content.1.source.data`.
    pub path: String,
    /// It stands in the user's last message.
    pub is_newest: bool,
}

#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub title: Option<Text<'a>>,
    pub source: DocumentSource<'a>,
}

#[derive(Debug)]
pub(crate) enum DocumentSource<'a> {
    /// `data` is checked base64.
    Base64 {
        format: DocumentFormat,
        data: Text<'a>,
    },
    Text(Text<'a>),
    /// Text and image blocks.
    Content(Vec<Block<'a>>),
}

#[derive(Debug)]
pub(crate) struct SearchResult<'a> {
    pub title: Text<'a>,
    pub source: Text<'a>,
    pub texts: Vec<Text<'a>>,
    /// One of the texts has `cache_control`.
    pub cached: bool,
}

#[derive(Debug)]
pub(crate) struct ToolUse<'a> {
    pub id: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// An object; `None` stands for `{}` (TR14).
    pub input: Option<ValueId>,
    /// In its place what clearing has left, a compact object (TR55).
    pub cleared: Option<String>,
}

#[derive(Debug)]
pub(crate) struct ToolResult<'a> {
    pub id: Cow<'a, str>,
    /// Texts, images, documents, search results, foreign blocks.
    pub content: Vec<Block<'a>>,
    pub is_error: bool,
}

/// A tool that the client runs (M48).
#[derive(Debug, Default)]
pub(crate) struct Tool<'a> {
    pub name: Cow<'a, str>,
    pub description: Option<Text<'a>>,
    /// An object; `None` stands for `{}`.
    pub schema: Option<ValueId>,
    /// In its place a published one, compact JSON (M73).
    pub published: Option<&'static str>,
    /// Objects (TR58).
    pub examples: Vec<ValueId>,
    /// Declared once something refers to it (TR59).
    pub deferred: bool,
    pub cached: bool,
    /// It is Anthropic's web search (M87). Its description and schema are ours.
    pub search: Option<Box<SearchTool>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice<'a> {
    Auto,
    Any,
    /// A declared client tool.
    Tool(Cow<'a, str>),
    None,
}

/// The images in blocks and in those that they hold, in order.
pub(super) fn images_of<'r, 'a>(blocks: &'r [Block<'a>], found: &mut Vec<&'r Image<'a>>) {
    for block in blocks {
        match &block.content {
            Content::Image(image) => found.push(image),
            Content::ToolResult(result) => images_of(&result.content, found),
            Content::Document(Document { source: DocumentSource::Content(blocks), .. }) => images_of(blocks, found),
            _ => {}
        }
    }
}

impl Message<'_> {
    /// Whether nothing is left once empty text blocks are gone (M36, TR7).
    pub fn is_empty(&self) -> bool {
        self.blocks.iter().all(Block::is_empty_text)
    }

    /// Whether TR9 drops it when it is the last message and an assistant's: empty, or its whole content is `{`.
    pub fn is_droppable_prefill(&self) -> bool {
        let mut blocks = self.blocks.iter().filter(|block| !block.is_empty_text());
        match (blocks.next(), blocks.next()) {
            (None, _) => true,
            (Some(Block { content: Content::Text(text), .. }), None) => text.is("{"),
            _ => false,
        }
    }
}

impl Block<'_> {
    /// Whether it or a block inside has `cache_control`.
    pub fn is_cached(&self) -> bool {
        let inside = match &self.content {
            Content::ToolResult(result) => result.content.iter().any(Block::is_cached),
            Content::Document(Document { source: DocumentSource::Content(blocks), .. }) => {
                blocks.iter().any(Block::is_cached)
            }
            Content::SearchResult(result) => result.cached,
            _ => false,
        };
        self.cached || inside
    }

    /// Whether it is more than an empty text, a block that is dropped, or a part of a search.
    pub fn says_something(&self) -> bool {
        let is_dropped =
            matches!(self.content, Content::Foreign | Content::SearchUse { .. } | Content::SearchResults { .. });
        !is_dropped && !self.is_empty_text()
    }

    pub fn is_empty_text(&self) -> bool {
        matches!(&self.content, Content::Text(text) if text.is_empty())
    }
}

/// The messages that are translated: all but a last assistant message that TR9 drops.
pub(crate) fn without_dropped_prefill<'r, 'a>(messages: &'r [Message<'a>]) -> &'r [Message<'a>] {
    match messages.split_last() {
        Some((last, before)) if last.role == Role::Assistant && last.is_droppable_prefill() => before,
        _ => messages,
    }
}
