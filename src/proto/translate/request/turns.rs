//! Turns: the client's messages grouped so that user and assistant alternate, repaired and flattened (TR7–TR18,
//! TR25–TR30).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::documents::{Base64Document, Documents, Fate};
use crate::proto::json::tree::{JsonTree, Text, Value, ValueKind};
use crate::proto::kiro::request::{
    AssistantMessage, Content, Image as KiroImage, Input, Reasoning, ToolResult as KiroResult, ToolUse as KiroUse,
    UserMessage,
};
use crate::proto::messages::request::{
    Block, Content as BlockContent, Document, DocumentSource, Image, Message, Role, SearchResult, ToolResult, ToolUse,
};
use crate::proto::messages::search::WEB_SEARCH;
use crate::proto::translate::ids::signature_id;
use crate::proto::translate::pictures::{Fate as PictureFate, PictureForm, Pictures};
use crate::proto::translate::schema::RAW_ARGUMENTS;
use crate::proto::translate::search::{self, outcome_of};
use crate::proto::translate::tools::{Declared, upstream_id, upstream_name};

/// The current message after a prefill (TR9), and the text of an emptied user message (TR13).
pub(super) const CONTINUE: Text<'static> = Text::constant("Continue");

/// The messages of one side between two of the other (TR8).
pub(super) enum Turn<'r> {
    User(UserTurn<'r>),
    Assistant(AssistantTurn<'r>),
}

/// A user's turn, flattened.
#[derive(Default)]
pub(super) struct UserTurn<'r> {
    pub parts: Vec<Part<'r>>,
    cached: bool,
}

/// A part of a user's turn, in the client's order.
pub(super) enum Part<'r> {
    /// Text on a line of its own.
    Line(Text<'r>),
    /// Text that continues the last one directly.
    Append(Text<'r>),
    Image(&'r Image<'r>),
    Document(Base64Document<'r>),
    Result(KiroResult<'r>),
}

/// An assistant's turn.
#[derive(Default)]
pub(super) struct AssistantTurn<'r> {
    /// The blocks of each message; of one that searched, those up to a search's results (TR52).
    messages: Vec<&'r [Block<'r>]>,
    /// Those that have a result (TR18), each id once (TR15).
    pub uses: Vec<Use<'r>>,
    /// Places in `uses` by the client's id.
    places: Places<'r>,
}

pub(super) struct Use<'r> {
    /// The one upstream knows.
    pub id: Cow<'r, str>,
    /// The client's name.
    pub name: &'r str,
    pub input: Input<'r>,
    /// The next message holds its result.
    answered: bool,
    /// Left out by TR16.
    left_out: bool,
}

/// How earlier thinking goes out.
pub(super) struct PastThinking<'c> {
    /// Thinking is on now; else nothing of it goes out (TR29).
    pub is_on: bool,
    /// Unsigned thinking goes out as text in tags (TR44).
    pub tags: bool,
    /// Signed thinking without text goes out (TR44).
    pub empty: bool,
    /// Whether the thought with this signature may go out (TR44, TR31).
    pub may: &'c dyn Fn(u64) -> bool,
    pub seen: Seen,
}

/// How images go out.
pub(super) struct Images<'c> {
    /// The large ones and their form (TR67).
    pub large: Option<(&'c Pictures, PictureForm)>,
    /// Paths of those that were sent.
    pub sent: Vec<String>,
}

impl Images<'_> {
    /// The image for upstream; none where a placeholder stands for it.
    fn of<'r>(&mut self, image: &'r Image<'_>) -> Option<KiroImage<'r>> {
        let format = image.format?.kiro_name();
        let sent = match self.large.map_or(PictureFate::AsItIs, |(large, form)| large.fate(image, form)) {
            PictureFate::AsItIs => KiroImage { format, data: image.data.by_ref() },
            PictureFate::Fitted(jpeg) => KiroImage { format: "jpeg", data: Text::new(jpeg.to_owned()) },
            PictureFate::Omitted => return None,
        };
        self.sent.push(image.path.clone());
        Some(sent)
    }
}

/// How signed thinking went out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub sent: bool,
    /// One without text.
    pub sent_empty: bool,
    /// It wasn't allowed.
    pub withheld: bool,
}

/// Groups, repairs and pairs the messages; the first one is a user's (M35).
pub(super) fn turns<'r>(messages: &'r [Message<'r>], json: &'r JsonTree<'r>, declared: &Declared<'r>) -> Vec<Turn<'r>> {
    let is_assistant = |message: &Message<'_>| message.role == Role::Assistant;
    let mut turns = Vec::with_capacity(messages.len());
    for group in messages.chunk_by(|a, b| is_assistant(a) == is_assistant(b)) {
        if group.first().is_some_and(is_assistant) {
            assistant_turns(group, json, declared, &mut turns);
            continue;
        }
        // Results of searches at the end of the message before come first (TR52).
        let found = match turns.pop() {
            Some(Turn::User(found)) => found,
            other => {
                turns.extend(other);
                UserTurn::default()
            }
        };
        let asking = match turns.last_mut() {
            Some(Turn::Assistant(asking)) => Some(asking),
            _ => None,
        };
        let turn = found.and(group, asking);
        turns.push(Turn::User(turn));
    }
    for turn in &mut turns {
        if let Turn::Assistant(turn) = turn {
            turn.uses.retain(|tool_use| tool_use.answered);
        }
    }
    turns
}

/// The documents of the turns; the last turn is the current one (TR27).
pub(super) fn documents<'r>(turns: &[Turn<'r>]) -> Documents<'r> {
    let documents = (turns.iter().enumerate())
        .flat_map(|(place, turn)| match turn {
            Turn::User(turn) => turn.parts.iter().map(move |part| (place, part)).collect(),
            Turn::Assistant(_) => Vec::new(),
        })
        .filter_map(|(place, part)| match part {
            Part::Document(document) => Some((place, *document)),
            _ => None,
        })
        .collect();
    Documents::of(documents, turns.len().saturating_sub(1))
}

/// An assistant's messages: one turn, or several with the results of its searches between them (TR52). The last turn is
/// a user's if results stand at the end.
fn assistant_turns<'r>(
    messages: &'r [Message<'r>],
    json: &'r JsonTree<'r>,
    declared: &Declared<'r>,
    turns: &mut Vec<Turn<'r>>,
) {
    let mut searches = Searches::of(messages);
    let mut turn = AssistantTurn::default();
    let mut found: Option<UserTurn<'r>> = None;
    for message in messages {
        let mut from = 0;
        for (place, block) in message.blocks.iter().enumerate() {
            if let BlockContent::SearchResults { id, content } = &block.content {
                if let Some(input) = searches.answered(id) {
                    let outcome = outcome_of(json.value(*content));
                    let text = Text::new(search::text(&search::query_of(input).unwrap_or_default(), &outcome));
                    let found = found.get_or_insert_default();
                    found.cached |= block.cached;
                    found.parts.push(match declared.searches() {
                        true => {
                            // Only here: others that were asked with it may have their results in a later part.
                            turn.uses.push(Use::search(id, input));
                            let (id, content) = (search::upstream_use_id(id), text.into());
                            Part::Result(KiroResult { id, content, is_error: outcome.is_err() })
                        }
                        false => Part::Line(text),
                    });
                }
                continue;
            }
            let is_search = match &block.content {
                BlockContent::SearchUse { id, .. } => searches.has(id),
                _ => false,
            };
            if (is_search || block.says_something())
                && let Some(found) = found.take()
            {
                turn.messages.push(&message.blocks[from..place]);
                from = place;
                turns.push(Turn::Assistant(std::mem::take(&mut turn)));
                turns.push(Turn::User(found));
            }
            if let BlockContent::SearchUse { id, input } = &block.content
                && is_search
            {
                searches.asked(id, input.map(|input| json.value(input)));
            }
        }
        turn.messages.push(&message.blocks[from..]);
    }
    turn.tool_uses(messages, json, declared);
    turns.push(Turn::Assistant(turn));
    turns.extend(found.map(Turn::User));
}

/// The searches of an assistant's turn that have results: the others are left out, and so are results without a search
/// (TR52).
#[derive(Default)]
struct Searches<'r> {
    answered: HashSet<&'r str>,
    /// The inputs of those whose results are still to come.
    asked: HashMap<&'r str, Option<Value<'r, 'r>>>,
}

impl<'r> Searches<'r> {
    fn of(messages: &'r [Message<'r>]) -> Self {
        let (mut asked, mut answered) = (HashSet::new(), HashSet::new());
        for block in messages.iter().flat_map(|message| &message.blocks) {
            match &block.content {
                BlockContent::SearchUse { id, .. } => drop(asked.insert(&**id)),
                BlockContent::SearchResults { id, .. } if asked.contains(&**id) => drop(answered.insert(&**id)),
                _ => {}
            }
        }
        Self { answered, asked: HashMap::new() }
    }

    /// Whether this search, which wasn't asked yet, has results.
    fn has(&self, id: &str) -> bool {
        self.answered.contains(id)
    }

    fn asked(&mut self, id: &'r str, input: Option<Value<'r, 'r>>) {
        self.answered.remove(id);
        self.asked.insert(id, input);
    }

    /// The input of the search with these results, once.
    fn answered(&mut self, id: &str) -> Option<Option<Value<'r, 'r>>> {
        self.asked.remove(id)
    }
}

impl<'r> Use<'r> {
    /// A web search that has results. It keeps them even without a query (TR16).
    fn search(id: &'r str, input: Option<Value<'r, 'r>>) -> Self {
        let input = match input.map_or(Input::Empty, Input::Client) {
            input if input.is_empty() => Input::Joined(r#"{"query":""}"#.to_owned()),
            input => input,
        };
        Self { id: search::upstream_use_id(id), name: WEB_SEARCH, input, answered: true, left_out: false }
    }
}

impl<'r> UserTurn<'r> {
    /// Adds the messages, flattened, and pairs their results with the tool uses of the turn before (TR18).
    fn and(mut self, messages: &'r [Message<'r>], mut asking: Option<&mut AssistantTurn<'r>>) -> Self {
        self.parts.reserve(messages.iter().map(|message| message.blocks.len()).sum());
        for block in messages.iter().flat_map(|message| &message.blocks) {
            self.cached |= block.is_cached();
            match &block.content {
                BlockContent::ToolResult(result) => self.result(result, asking.as_deref_mut()),
                _ => self.block(block),
            }
        }
        self
    }

    /// A block that holds no others, or a document of blocks.
    fn block(&mut self, block: &'r Block<'r>) {
        match &block.content {
            BlockContent::Text(text) => self.line(text),
            BlockContent::Image(image) => self.parts.push(Part::Image(image)),
            BlockContent::Document(document) => self.document(document),
            BlockContent::SearchResult(result) => search_result_texts(result).for_each(|text| self.line(text)),
            _ => {}
        }
    }

    fn document(&mut self, document: &'r Document<'r>) {
        match &document.source {
            DocumentSource::Base64 { format, data } => {
                let title = document.title.as_ref();
                self.parts.push(Part::Document(Base64Document { title, format: *format, data }));
            }
            DocumentSource::Text(text) => {
                self.heading(document);
                self.line(text);
            }
            DocumentSource::Content(blocks) => {
                self.heading(document);
                blocks.iter().for_each(|block| self.block(block));
            }
        }
    }

    /// The first line of a document that becomes text (TR27).
    fn heading(&mut self, document: &'r Document<'r>) {
        if let Some(title) = document.title.as_ref().filter(|title| !title.is_empty()) {
            self.parts.push(Part::Line(Text::constant("[document: ")));
            self.parts.push(Part::Append(title.by_ref()));
            self.parts.push(Part::Append(Text::constant("]")));
        }
    }

    fn line(&mut self, text: &'r Text<'r>) {
        if !text.is_empty() {
            self.parts.push(Part::Line(text.by_ref()));
        }
    }

    /// A result: with a partner, its text and the parts lifted out of it (TR17); without one, its text (TR18).
    fn result(&mut self, result: &'r ToolResult<'r>, asking: Option<&mut AssistantTurn<'r>>) {
        let asked = asking.and_then(|turn| turn.use_of(&result.id)).filter(|tool_use| !tool_use.left_out);
        let mut inside = Self::default();
        result.content.iter().for_each(|block| inside.block(block));
        let is_text = |part: &Part<'_>| matches!(part, Part::Line(_) | Part::Append(_));
        match asked {
            // Another result for the same id.
            Some(tool_use) if tool_use.answered => {}
            Some(tool_use) => {
                tool_use.answered = true;
                let mut content = Content::default();
                let (mut images, mut documents) = (false, false);
                for part in &inside.parts {
                    match part {
                        Part::Line(text) => content.line(text.clone()),
                        Part::Append(text) => content.append(text.clone()),
                        Part::Image(_) => images = true,
                        Part::Document(_) => documents = true,
                        Part::Result(_) => {}
                    }
                }
                if content.is_empty() && (images || documents) {
                    content = placeholder(images).into();
                }
                // Upstream takes no empty one (TR65).
                if content.is_blank() {
                    content = Text::constant("(no output)").into();
                }
                let id = upstream_id(&result.id);
                self.parts.push(Part::Result(KiroResult { id, content, is_error: result.is_error }));
                self.parts.extend(inside.parts.into_iter().filter(|part| !is_text(part)));
            }
            None => {
                let mut label = Some(Text::constant("[tool result] "));
                for part in inside.parts {
                    match (part, label.take()) {
                        (Part::Line(text), Some(label)) => {
                            self.parts.push(Part::Line(label));
                            self.parts.push(Part::Append(text));
                        }
                        (part, unused) => {
                            label = unused;
                            self.parts.push(part);
                        }
                    }
                }
            }
        }
    }

    /// The Kiro message; its documents go to the current one (TR27).
    pub fn message(
        self,
        keeps_images: bool,
        images: &mut Images<'_>,
        documents: &mut Documents<'r>,
    ) -> UserMessage<'r> {
        let mut message = UserMessage { cache_point: self.cached, ..UserMessage::default() };
        let (mut omitted_images, mut omitted_documents) = (0, 0);
        let mut has_documents = false;
        message.content.reserve(self.parts.len());
        for part in self.parts {
            match part {
                Part::Line(text) => message.content.line(text),
                Part::Append(text) => message.content.append(text),
                Part::Image(image) => match keeps_images.then(|| images.of(image)).flatten() {
                    Some(sent) => message.images.push(sent),
                    None => omitted_images += 1,
                },
                Part::Document(_) => match documents.next_fate() {
                    Fate::Current => has_documents = true,
                    Fate::Moved { name } => message.content.line(Text::new(format!("[document: {name}]"))),
                    Fate::Omitted => omitted_documents += 1,
                },
                Part::Result(result) => message.results.push(result),
            }
        }
        for (count, kind) in [(omitted_images, "image"), (omitted_documents, "document")] {
            match count {
                0 => {}
                1 => message.content.line(Text::new(format!("[1 earlier {kind} omitted]"))),
                _ => message.content.line(Text::new(format!("[{count} earlier {kind}s omitted]"))),
            }
        }
        // Upstream takes no blank message (TR13).
        if message.content.is_blank() {
            let text = match &message {
                _ if !message.results.is_empty() => Text::constant("Tool results provided."),
                _ if !message.images.is_empty() => placeholder(true),
                _ if has_documents => placeholder(false),
                _ => CONTINUE,
            };
            message.content = text.into();
        }
        message
    }
}

fn placeholder(images: bool) -> Text<'static> {
    Text::constant(if images { "Image provided." } else { "Document provided." })
}

/// TR28: title, source and texts, one a line.
fn search_result_texts<'r>(result: &'r SearchResult<'r>) -> impl Iterator<Item = &'r Text<'r>> {
    [&result.title, &result.source].into_iter().chain(&result.texts)
}

impl<'r> AssistantTurn<'r> {
    /// Adds the uses of the client's tools in these messages.
    fn tool_uses(&mut self, messages: &'r [Message<'r>], json: &'r JsonTree<'r>, declared: &Declared<'r>) {
        let searches = self.uses.len();
        // Fragments by place in `uses` (TR15).
        let mut fragments: HashMap<usize, String> = HashMap::new();
        for block in messages.iter().flat_map(|message| &message.blocks) {
            let BlockContent::ToolUse(tool_use) = &block.content else { continue };
            let place = match self.places.find(&tool_use.id) {
                Some(place) => searches + place,
                None => {
                    let input = match &tool_use.cleared {
                        Some(left) => Input::Joined(left.clone()),
                        None => tool_use.input.map_or(Input::Empty, |input| Input::Client(json.value(input))),
                    };
                    let (id, name) = (upstream_id(&tool_use.id), &*tool_use.name);
                    self.uses.push(Use { id, name, input, answered: false, left_out: false });
                    searches + self.places.add(&tool_use.id)
                }
            };
            if let Some(fragment) = fragment(tool_use, json)
                && !self.uses.get(place).is_some_and(|first| declared.takes_fragments_as_they_are(first.name))
            {
                fragments.entry(place).or_default().push_str(&fragment.decode());
            }
        }
        for (place, tool_use) in self.uses.iter_mut().enumerate().skip(searches) {
            if let Some(joined) = fragments.remove(&place) {
                tool_use.input = joined_input(&joined);
            }
            tool_use.left_out = tool_use.input.is_empty() && declared.requires_something(tool_use.name);
        }
    }

    /// The use of a client's tool with this id.
    fn use_of(&mut self, id: &str) -> Option<&mut Use<'r>> {
        let searches = self.uses.len() - self.places.ids.len();
        self.uses.get_mut(searches + self.places.find(id)?)
    }

    /// The Kiro message.
    pub fn message(self, past_thinking: &mut PastThinking<'_>) -> AssistantMessage<'r> {
        let (reasoning, mut content) = self.thinking(past_thinking);
        let cache_point = self.blocks().any(|block| block.cached);
        for message in self.messages {
            let texts = message.iter().filter_map(|block| match &block.content {
                BlockContent::Text(text) if !text.is_empty() => Some(text),
                _ => None,
            });
            for (place, text) in texts.enumerate() {
                match place {
                    0 => content.separated_by(Text::BLANK_LINE, text.by_ref()),
                    _ => content.append(text.by_ref()),
                }
            }
        }
        // A whole sentence in front of every tool use would teach the model to write it (TR13).
        if content.is_empty() {
            let has_parts = !self.uses.is_empty() || reasoning.is_some();
            content = Text::constant(if has_parts { " " } else { "OK" }).into();
        }
        AssistantMessage {
            content,
            tool_uses: (self.uses.into_iter())
                .map(|Use { id, name, input, .. }| KiroUse { id, name: upstream_name(name), input })
                .collect(),
            reasoning,
            cache_point,
        }
    }

    /// Its own blocks: the results of its searches are the user's.
    fn blocks(&self) -> impl Iterator<Item = &'r Block<'r>> {
        let all = self.messages.iter().copied().flatten();
        all.filter(|block| !matches!(block.content, BlockContent::SearchResults { .. }))
    }

    /// Native reasoning, or the text that stands for thinking (TR29–TR31, TR44). Only the first signed block can be
    /// replayed: a later one is valid only after it. If it may not go out, neither it nor its neighbours become text.
    fn thinking(&self, past: &mut PastThinking<'_>) -> (Option<Reasoning<'r>>, Content<'r>) {
        if !past.is_on {
            return (None, Content::default());
        }
        let mut tagged = Content::default();
        for block in self.blocks() {
            let (native, signature, is_empty) = match &block.content {
                BlockContent::Thinking { text, signature } if signature.is_empty() => {
                    if !text.is_empty() {
                        tagged.line(text.by_ref());
                    }
                    continue;
                }
                BlockContent::Thinking { text, .. } if text.is_empty() && !past.empty => continue,
                BlockContent::Thinking { text, signature } => {
                    let native = Reasoning::Text { text: text.by_ref(), signature: signature.by_ref() };
                    (native, signature, text.is_empty())
                }
                BlockContent::RedactedThinking { data } if data.is_empty() => continue,
                BlockContent::RedactedThinking { data } => (Reasoning::Redacted(data.by_ref()), data, false),
                _ => continue,
            };
            let may = (past.may)(signature_id(&signature.decode()));
            past.seen.sent |= may;
            past.seen.sent_empty |= may && is_empty;
            past.seen.withheld |= !may;
            return (may.then_some(native), Content::default());
        }
        let mut content = Content::default();
        if past.tags && !tagged.is_empty() {
            content.append(Text::constant("<thinking>"));
            content.extend(tagged);
            content.append(Text::constant("</thinking>"));
        }
        (None, content)
    }
}

/// The text of an input that is `{"raw_arguments": string}` and nothing else.
fn fragment<'r>(tool_use: &ToolUse<'_>, json: &'r JsonTree<'r>) -> Option<Text<'r>> {
    let mut members = json.value(tool_use.input?).members();
    match (members.next(), members.next()) {
        (Some((key, value)), None) if key.is(RAW_ARGUMENTS) => value.text(),
        _ => None,
    }
}

/// Fragments joined: an object, or nothing usable.
fn joined_input(joined: &str) -> Input<'static> {
    match JsonTree::parse(joined.as_bytes()) {
        Ok(json) if json.root().kind() == ValueKind::Object => {
            let mut compact = String::with_capacity(joined.len());
            json.root().write(&mut compact);
            Input::Joined(compact)
        }
        _ => Input::Empty,
    }
}

/// Places of ids in a list: a linear search while there are few, an index when there are many.
#[derive(Default)]
struct Places<'r> {
    ids: Vec<&'r str>,
    index: HashMap<&'r str, usize>,
}

impl<'r> Places<'r> {
    const FEW: usize = 16;

    fn find(&self, id: &str) -> Option<usize> {
        if self.ids.len() <= Self::FEW {
            return self.ids.iter().position(|other| *other == id);
        }
        self.index.get(id).copied()
    }

    /// Adds a new id, and returns its place.
    fn add(&mut self, id: &'r str) -> usize {
        let place = self.ids.len();
        self.ids.push(id);
        if place == Self::FEW {
            self.index = self.ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        } else if place > Self::FEW {
            self.index.insert(id, place);
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_among_few_and_many() {
        let ids: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
        let mut places = Places::default();
        for (place, id) in ids.iter().enumerate() {
            assert_eq!(places.find(id), None);
            assert_eq!(places.add(id), place);
            for (place, id) in ids.iter().enumerate().take(place + 1) {
                assert_eq!(places.find(id), Some(place));
            }
        }
    }
}
