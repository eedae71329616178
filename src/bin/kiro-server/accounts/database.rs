//! kiro-cli's and Amazon Q's SQLite database, read without touching it (R82).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiro_messages::files::Stamp;
use kiro_messages::proto::record::import::{FoundAccount, kiro_cli, kiro_cli_keys};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// Longest database, with its logs (R86).
const MAX_DATABASE: u64 = 512 << 20;
/// Longest value that is read of a row.
const MAX_VALUE: usize = 1 << 20;
/// Tries of a copy: one that was made during a write is made again.
const COPIES: usize = 3;
/// The beginning of a copy's folder name.
const COPY: &str = "kiro-database-";
/// A copy that is older than this was left by a command that was killed.
const LEFT_OVER: Duration = Duration::from_secs(600);
/// Files beside a database that belong to its content. Its `-shm` is made anew for the copy.
const LOGS: [&str; 2] = ["-wal", "-journal"];

/// The accounts in a database. It is copied with its log into a private folder and read there, so that no byte, time or
/// lock of the original changes.
///
/// # Errors
/// Why it can't be read, without its path.
pub fn read(path: &Path) -> Result<Vec<FoundAccount>, String> {
    let mut problem = String::new();
    for _ in 0..COPIES {
        let before = stamps(path);
        let copy = Copy::of(path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock => "is locked by another program".to_owned(),
            _ => error.to_string(),
        })?;
        let is_whole = before == stamps(path);
        match accounts(&copy.database()) {
            Ok(found) if is_whole => return Ok(found),
            Ok(_) => "is locked by another program".clone_into(&mut problem),
            Err(error) => problem = error,
        }
        if is_whole {
            break;
        }
    }
    Err(problem)
}

fn stamps(path: &Path) -> Vec<Option<Stamp>> {
    let stamp = |path: PathBuf| fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata));
    std::iter::once(path.to_owned()).chain(LOGS.iter().map(|log| beside(path, log))).map(stamp).collect()
}

fn beside(path: &Path, log: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(log);
    name.into()
}

/// A private folder with a copy in it, deleted when it is dropped.
struct Copy {
    folder: PathBuf,
}

impl Copy {
    fn of(path: &Path) -> io::Result<Self> {
        sweep(&std::env::temp_dir());
        let folder = std::env::temp_dir().join(format!("{COPY}{}", uuid::Uuid::new_v4()));
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder)?;
        let copy = Self { folder };
        let mut left = MAX_DATABASE;
        copy_file(path, &copy.database(), &mut left)?;
        for log in LOGS {
            match copy_file(&beside(path, log), &beside(&copy.database(), log), &mut left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(copy)
    }

    fn database(&self) -> PathBuf {
        self.folder.join("data.sqlite3")
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A folder that stays can't be opened by others.
        let _left_behind = fs::remove_dir_all(&self.folder);
    }
}

/// Removes copies that were left behind.
fn sweep(temporary: &Path) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let is_copy = entry.file_name().to_string_lossy().starts_with(COPY);
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed());
        if is_copy && age.is_ok_and(|age| age.is_ok_and(|age| age > LEFT_OVER)) {
            // Another user's folder stays.
            let _left_behind = fs::remove_dir_all(entry.path());
        }
    }
}

fn copy_file(from: &Path, to: &Path, left: &mut u64) -> io::Result<()> {
    use std::io::Read as _;
    // Opening a pipe that lies in its place would block.
    if !fs::metadata(from)?.is_file() {
        return Err(io::Error::other("what belongs to it is no file"));
    }
    let mut source = File::open(from)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let copied = io::copy(&mut (&mut source).take(*left + 1), &mut options.open(to)?)?;
    *left = left.checked_sub(copied).ok_or_else(|| io::Error::other("is longer than 512 MiB"))?;
    Ok(())
}

fn accounts(copy: &Path) -> Result<Vec<FoundAccount>, String> {
    // Opening the copy merges its log, which is a write.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(copy, flags).map_err(|error| said(&error))?;
    if !has_table(&database, "auth_kv")? {
        return Err("no table auth_kv: is this kiro-cli's database?".to_owned());
    }
    let auth = rows(&database, "auth_kv")?;
    let state = if has_table(&database, "state")? { rows(&database, "state")? } else { Vec::new() };
    Ok(kiro_cli(&auth, &state))
}

fn has_table(database: &Connection, name: &str) -> Result<bool, String> {
    // A view may be a query without an end.
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
    let count: i64 = database.query_row(sql, [name], |row| row.get(0)).map_err(|error| said(&error))?;
    Ok(count > 0)
}

fn rows(database: &Connection, table: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
    let columns = format!("SELECT count(*) FROM pragma_table_info('{table}') WHERE name IN ('key', 'value')");
    let columns: i64 = database.query_row(&columns, [], |row| row.get(0)).map_err(|error| said(&error))?;
    if columns < 2 {
        return Err(format!("table {table} has no columns key and value: is this kiro-cli's database?"));
    }
    let keys: Vec<String> = kiro_cli_keys().map(|key| format!("'{key}'")).collect();
    let keys = keys.join(", ");
    let sql =
        format!("SELECT key, value FROM {table} WHERE key IN ({keys}) AND length(value) <= {MAX_VALUE} LIMIT 100");
    let mut query = database.prepare(&sql).map_err(|error| said(&error))?;
    let row = |row: &rusqlite::Row<'_>| {
        let value = match row.get_ref(1)? {
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => Vec::new(),
        };
        Ok((row.get(0)?, value))
    };
    let rows = query.query_map([], row).map_err(|error| said(&error))?;
    rows.collect::<Result<_, _>>().map_err(|error| said(&error))
}

/// An error without the library's own text, which may quote the database.
fn said(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "is locked by another program",
        _ => "can't be read as SQLite",
    }
    .to_owned()
}
