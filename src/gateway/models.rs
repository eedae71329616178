//! The model table's file (`KIRO_MODELS_FILE`, TR6): read at start, and again whenever it has changed.

use std::path::Path;

use crate::error::{Code, Error};
use crate::files::{self, Watched};
use crate::proto::translate::model::Models;

/// A table's file.
pub(super) struct ModelsFile(Watched);

/// Most bytes of the file: far more than any table needs.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

impl ModelsFile {
    /// Reads the table.
    ///
    /// # Errors
    /// [`Code::Config`] with the file's name, and the row that is wrong.
    pub(super) fn open(path: &Path) -> Result<(Self, Models), Error> {
        let file = Watched::new(path);
        let models = read(path)?;
        Ok((Self(file), models))
    }

    /// The table when the file has changed since the last look and is good. The log names a bad or missing one
    /// once, and the table that was read before stays.
    pub(super) fn look(&mut self) -> Option<Models> {
        if !self.0.has_changed() {
            return None;
        }
        let path = self.0.path();
        match read(path) {
            Ok(models) => {
                tracing::info!(file = %path.display(), models = models.list().count(), "the model table was reloaded");
                Some(models)
            }
            Err(error) => {
                tracing::error!(%error, "the model table was not replaced");
                None
            }
        }
    }
}

fn read(path: &Path) -> Result<Models, Error> {
    let refuse = |what: String| Error::new(Code::Config, format!("KIRO_MODELS_FILE: {}: {what}", path.display()));
    let text = files::read(path, MOST_BYTES + 1).map_err(|error| refuse(error.to_string()))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(refuse(format!("is larger than {MOST_BYTES} bytes")));
    }
    Models::from_json(&text).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::gateway::log::Log;

    fn table(name: &str) -> String {
        format!(
            r#"[{{"kiro_id":"k","names":["{name}"],"display_name":"d","created":"2026-01-01T00:00:00Z","window":1,"max_output":1}}]"#
        )
    }

    fn first_name(models: &Models) -> String {
        models.list().next().map(|row| row.listed_name().to_owned()).unwrap_or_default()
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_one_is_logged_once_tr6() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.json");
        std::fs::write(&path, table("claude-a")).unwrap();
        let (mut file, models) = ModelsFile::open(&path).unwrap();
        assert_eq!(first_name(&models), "claude-a");

        let log = Log::listen();
        assert!(file.look().is_none(), "nothing has changed");
        // Right after the start, and with another length each time.
        std::fs::write(&path, table("claude-bb")).unwrap();
        assert_eq!(file.look().as_ref().map(first_name).as_deref(), Some("claude-bb"));
        assert_eq!(log.lines("the model table was reloaded").len(), 1);

        let told = || log.lines("the model table was not replaced");
        std::fs::write(&path, "[{}]").unwrap();
        assert!(file.look().is_none() && file.look().is_none());
        assert!(
            matches!(&told()[..], [line] if line.contains("KIRO_MODELS_FILE") && line.contains("missing field `kiro_id`")),
            "{:?}",
            told()
        );

        std::fs::remove_file(&path).unwrap();
        assert!(file.look().is_none() && file.look().is_none());
        assert_eq!(told().len(), 2);

        std::fs::write(&path, table("claude-ccc")).unwrap();
        assert_eq!(file.look().as_ref().map(first_name).as_deref(), Some("claude-ccc"));
    }

    /// `cp -p`, `rsync -t` and images keep times: a change of the same length and time is noticed too.
    #[test]
    #[cfg(unix)]
    fn a_replaced_file_is_noticed_whatever_its_time_tr6() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, model: &str| {
            std::fs::write(at(name), table(model)).unwrap();
            std::fs::File::options().write(true).open(at(name)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        write("models.json", "claude-a");
        let (mut file, _) = ModelsFile::open(&at("models.json")).unwrap();
        write("next.json", "claude-b");
        std::fs::rename(at("next.json"), at("models.json")).unwrap();
        assert_eq!(file.look().as_ref().map(first_name).as_deref(), Some("claude-b"));
        assert!(file.look().is_none(), "nothing has changed");
    }

    #[test]
    #[cfg(unix)]
    fn a_pipe_or_device_is_refused_as_a_table_tr6() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| ModelsFile::open(path).err().unwrap().to_string();
        assert!(
            refused(folder.path()).contains("is not a file")
                && refused(Path::new("/dev/zero")).contains("is not a file")
        );
        let huge = folder.path().join("huge.json");
        std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        assert!(refused(&huge).contains("is larger than"));
    }

    #[test]
    fn a_bad_file_at_start_is_an_error_that_names_it_tr6() {
        let folder = tempfile::tempdir().unwrap();
        let missing = ModelsFile::open(&folder.path().join("none.json")).err().unwrap();
        assert!(missing.to_string().contains("none.json"), "{missing}");
        assert_eq!(missing.code(), Code::Config);
    }
}
