//! Tools with a type of Anthropic's that the client itself runs (M73).

/// A published tool: the client declares its type alone, and runs it.
#[derive(Debug)]
pub struct PassedTool {
    /// The types that declare it.
    pub kinds: &'static [&'static str],
    /// The one name that it may have (M74).
    pub name: &'static str,
    /// The description that goes out.
    pub description: &'static str,
    /// Its schema, compact JSON.
    pub schema: &'static str,
}

/// Types of tools that find others: without them all deferred tools are declared (TR59).
pub const TOOL_SEARCHES: [&str; 2] = ["tool_search_tool_regex", "tool_search_tool_bm25"];

/// All of them.
pub const PASSED_TOOLS: [PassedTool; 4] = [
    PassedTool {
        kinds: &["bash_20241022", "bash_20250124"],
        name: "bash",
        description: "Runs a command in a bash shell that keeps its state from call to call. `command` is the command; \
                      `restart` set to true starts the shell anew and needs no command.",
        schema: r#"{"type":"object","properties":{"command":{"type":"string"},"restart":{"type":"boolean"}}}"#,
    },
    PassedTool {
        kinds: &["text_editor_20241022", "text_editor_20250124"],
        name: "str_replace_editor",
        description: "Views, creates and edits text files. `view` shows a file with line numbers, or a directory; \
                      `view_range` is [first line, last line], -1 for the end. `create` writes `file_text` to a file. \
                      `str_replace` replaces `old_str`, which must occur exactly once, by `new_str`. `insert` puts \
                      `insert_text` (older: `new_str`) behind the line `insert_line`, 0 for the beginning. `undo_edit` takes the last edit of a \
                      file back. `path` is absolute.",
        schema: r#"{"type":"object","properties":{"command":{"type":"string","enum":["view","create","str_replace","insert","undo_edit"]},"path":{"type":"string"},"file_text":{"type":"string"},"old_str":{"type":"string"},"new_str":{"type":"string"},"insert_line":{"type":"integer"},"insert_text":{"type":"string"},"view_range":{"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":2}},"required":["command","path"]}"#,
    },
    PassedTool {
        kinds: &["text_editor_20250429", "text_editor_20250728"],
        name: "str_replace_based_edit_tool",
        description: "Views, creates and edits text files. `view` shows a file with line numbers, or a directory; \
                      `view_range` is [first line, last line], -1 for the end. `create` writes `file_text` to a file. \
                      `str_replace` replaces `old_str`, which must occur exactly once, by `new_str`. `insert` puts \
                      `insert_text` behind the line `insert_line`, 0 for the beginning. `path` is absolute.",
        schema: r#"{"type":"object","properties":{"command":{"type":"string","enum":["view","create","str_replace","insert"]},"path":{"type":"string"},"file_text":{"type":"string"},"old_str":{"type":"string"},"new_str":{"type":"string"},"insert_line":{"type":"integer"},"insert_text":{"type":"string"},"view_range":{"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":2}},"required":["command","path"]}"#,
    },
    PassedTool {
        kinds: &["memory_20250818"],
        name: "memory",
        description: "A directory `/memories` that lasts beyond this conversation. Look there first: `view` it before \
                      you begin, and write down what later work needs. `view` shows a directory or a file \
                      (`view_range`: [first line, last line]); `create` writes `file_text` to `path`; `str_replace` \
                      replaces `old_str` by `new_str`; `insert` puts `insert_text` behind the line `insert_line`; \
                      `delete` removes `path`; `rename` moves `old_path` to `new_path`.",
        schema: r#"{"type":"object","properties":{"command":{"type":"string","enum":["view","create","str_replace","insert","delete","rename"]},"path":{"type":"string"},"view_range":{"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":2},"file_text":{"type":"string"},"old_str":{"type":"string"},"new_str":{"type":"string"},"insert_line":{"type":"integer"},"insert_text":{"type":"string"},"old_path":{"type":"string"},"new_path":{"type":"string"}},"required":["command"]}"#,
    },
];

/// The tool that a type declares.
pub(super) fn passed_tool(kind: &str) -> Option<&'static PassedTool> {
    PASSED_TOOLS.iter().find(|tool| tool.kinds.contains(&kind))
}

/// Whether a type is a search for tools, of whatever date.
pub(super) fn is_tool_search(kind: &str) -> bool {
    TOOL_SEARCHES.iter().any(|search| kind.starts_with(search))
}
