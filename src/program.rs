//! The command that a person types: what a text that advises one says (N72).

use std::borrow::Cow;
use std::sync::OnceLock;

/// The name of the server's program, and of the command in every text before [`said`].
pub const SERVER: &str = "kiro-server";
/// The command where the package for Node.js is installed.
pub const PACKAGE: &str = "npx kiro-messages";

static STARTED: OnceLock<&'static str> = OnceLock::new();

/// This process was started as that command, [`SERVER`] or [`PACKAGE`]. Only the first call counts.
pub fn started_as(command: &'static str) {
    STARTED.get_or_init(|| command);
}

/// The command as this process was started; [`SERVER`] unless [`started_as`] said otherwise.
pub fn command() -> &'static str {
    STARTED.get().copied().unwrap_or(SERVER)
}

/// A text whose `` `kiro-server …` `` are commands, with the command as this process was started.
pub fn said(text: &str) -> Cow<'_, str> {
    naming(text, command())
}

fn naming<'a>(text: &'a str, command: &str) -> Cow<'a, str> {
    if command == SERVER || !text.contains("`kiro-server ") {
        return text.into();
    }
    text.replace("`kiro-server ", &format!("`{command} ")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_the_command_that_was_started_and_leaves_other_names_n72() {
        let text = "update kiro-server, then `kiro-server doctor` and `kiro-server accounts check`";
        assert_eq!(naming(text, SERVER), text);
        assert_eq!(
            naming(text, PACKAGE),
            "update kiro-server, then `npx kiro-messages doctor` and `npx kiro-messages accounts check`"
        );
        assert_eq!(command(), SERVER);
    }
}
