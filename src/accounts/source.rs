//! Finds and reads the accounts that `accounts add` takes over (R78–R83).

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::files;
use crate::proto::record::import::{
    FoundAccount, ImportedAccount, MAX_SOURCE, Place, SQLITE, ServiceAccount, Source, inline, recognise, service_root,
};
use crate::proto::record::{Json, Method, Object, RECORD, Token, quote, short};
use crate::store::{StoreError, import, lone_registration};
use jiff::Timestamp;

/// Where the Kiro IDE keeps its token, below the home folder.
const DEFAULT_FILE: &str = ".aws/sso/cache/kiro-auth-token.json";
/// The files that are searched for in a folder, in this order (R79).
const IN_FOLDER: [&str; 5] =
    ["configs/provider_pools.json", "provider_pools.json", "kiro-auth-token.json", "data.sqlite3", "credentials.json"];

/// The error for a database where the library for it isn't built in: in the addon only.
const NO_DATABASES: &str = "is a SQLite database: only `npx kiro-messages accounts add --from` reads one";

/// The contents of a path.
#[derive(Default)]
pub struct Gathered {
    /// Its accounts, each read or with the reason why not.
    pub found: Vec<FoundAccount>,
    /// The path names one token file: messages need no names.
    pub is_single: bool,
    /// Another program goes on using these sessions (R85).
    pub is_shared: bool,
    /// Found, but not taken over.
    pub notes: Vec<String>,
}

/// Reads the accounts of a SQLite database, or says why it can't, without its path.
pub type ReadDatabase = fn(&Path) -> Result<Vec<FoundAccount>, String>;

/// How a source is read.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    /// The folder that relative paths of a pool file start from; absent: the folder above its `configs` (R83).
    pub base: Option<&'a Path>,
    /// The time now.
    pub now: Timestamp,
    /// Absent: a database is refused, since the library for it isn't here.
    pub database: Option<ReadDatabase>,
}

/// Reads the accounts at `from`, or those that Kiro left in the home folder.
///
/// # Errors
/// A sentence that begins with the path: it isn't there, or nothing of it can be taken over.
pub fn gather(from: Option<&Path>, how: Reading<'_>) -> Result<Gathered, String> {
    let Some(from) = from else { return gather_default(how) };
    let metadata = fs::metadata(from).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => of(from, "not found: name a file or folder that is there"),
        _ => of(from, &error.to_string()),
    })?;
    if metadata.is_dir() { folder(from, how) } else { file(from, how) }
}

fn gather_default(how: Reading<'_>) -> Result<Gathered, String> {
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let home = home.ok_or("there is no home folder to look in: name the token file with --from")?;
    let token = home.join(DEFAULT_FILE);
    if token.exists() {
        let mut gathered = file(&token, how)?;
        if gathered.is_single
            && let Some(FoundAccount { taken: Ok(taken), .. }) = gathered.found.first_mut()
        {
            add_profile(taken, &home);
        }
        return Ok(gathered);
    }
    let databases = databases(&home);
    match databases.iter().find(|path| path.exists()) {
        Some(path) => file(path, how),
        None => {
            let also: Vec<_> = databases.iter().map(|path| path.display().to_string()).collect();
            Err(of(&token, &format!("not found, nor {}; name a file or folder with --from", also.join(", "))))
        }
    }
}

/// Where kiro-cli and Amazon Q keep their databases.
fn databases(home: &Path) -> Vec<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = if cfg!(target_os = "macos") {
        Some(home.join("Library/Application Support"))
    } else if cfg!(windows) {
        from("LOCALAPPDATA")
    } else {
        Some(from("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")))
    };
    let named: [&str; 2] = if cfg!(windows) { ["Kiro-Cli", "amazon-q"] } else { ["kiro-cli", "amazon-q"] };
    let mut paths: Vec<_> =
        data.iter().flat_map(|data| named.map(|name| data.join(name).join("data.sqlite3"))).collect();
    if cfg!(windows) {
        paths.extend(from("APPDATA").map(|data| data.join("kiro-cli").join("data.sqlite3")));
    }
    paths
}

/// The IDE keeps the profile of an organisation's user beside its settings (R80).
fn add_profile(taken: &mut ImportedAccount, home: &Path) {
    let storage = if cfg!(target_os = "macos") {
        home.join("Library/Application Support")
    } else if cfg!(windows) {
        std::env::var_os("APPDATA").map_or_else(|| home.join("AppData/Roaming"), PathBuf::from)
    } else {
        home.join(".config")
    };
    let Ok(token) = Token::parse(&taken.token) else { return };
    if token.profile_arn.is_some() || !matches!(token.method(), Method::Idc | Method::External) {
        return;
    }
    let path = storage.join("Kiro/User/globalStorage/kiro.kiroagent/profile.json");
    let Ok(text) = files::read(&path, RECORD.bytes as u64) else { return };
    let arn = Object::parse(&text, RECORD).ok().and_then(|profile| profile.last("arn").and_then(Json::string));
    if let (Some(arn), Ok(record)) = (arn.filter(|arn| !arn.is_empty()), Object::parse(&taken.token, RECORD)) {
        taken.token = record.with([("profileArn", quote(&arn))]);
    }
}

fn folder(path: &Path, how: Reading<'_>) -> Result<Gathered, String> {
    if let Some(found) = IN_FOLDER.iter().map(|name| path.join(name)).find(|path| path.is_file()) {
        return file(&found, how);
    }
    let listed = fs::read_dir(path).map_err(|error| of(path, &error.to_string()))?;
    let mut files: Vec<_> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "json") && path.is_file());
    files.sort();
    let mut gathered = Gathered { is_shared: true, ..Gathered::default() };
    for file in files {
        // A registration or a file of another program isn't a token file: it is skipped.
        let is_token = read(&file).is_ok_and(|text| matches!(recognise(&text), Ok(Source::TokenFile)));
        if is_token {
            let label = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let taken = token_file(&file, how.now).map_err(|why| without_address(&why, &file));
            gathered.found.push(FoundAccount { label, taken });
        }
    }
    if gathered.found.is_empty() {
        return Err(of(path, "holds nothing that can be taken over"));
    }
    Ok(gathered)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let metadata = fs::metadata(path).map_err(|error| of(path, &error.to_string()))?;
    if !metadata.is_file() {
        return Err(of(path, "is no file"));
    }
    // A database may be larger; other code reads it.
    let text = files::read(path, MAX_SOURCE as u64 + 1).map_err(|error| of(path, &error.to_string()))?;
    if text.len() > MAX_SOURCE && !text.starts_with(SQLITE) {
        return Err(of(path, "is longer than 64 MiB"));
    }
    Ok(text)
}

fn file(path: &Path, how: Reading<'_>) -> Result<Gathered, String> {
    match recognise(&read(path)?).map_err(|error| of(path, &error))? {
        Source::Pool => {
            Err(of(path, &format!("is a pool of this program: name it as the store, file:{}", path.display())))
        }
        Source::Sqlite => {
            let read = how.database.ok_or_else(|| of(path, NO_DATABASES))?;
            let found = read(path).map_err(|error| of(path, &error))?;
            if found.is_empty() {
                return Err(of(path, "holds no token: sign in again"));
            }
            Ok(Gathered { found, is_shared: true, ..Gathered::default() })
        }
        Source::TokenFile => {
            let taken = token_file(path, how.now)?;
            let found = vec![FoundAccount { label: path.display().to_string(), taken: Ok(taken) }];
            Ok(Gathered { found, is_single: true, is_shared: true, ..Gathered::default() })
        }
        Source::Service { accounts, others } => {
            let notes = (others > 0).then(|| format!("{others} accounts of other providers were left alone"));
            let root = service_root(path, how.base);
            let found = accounts.into_iter().map(|account| service(account, &root, how.now)).collect();
            Ok(Gathered { found, is_shared: true, notes: notes.into_iter().collect(), ..Gathered::default() })
        }
        Source::Credentials { found, left } => {
            let notes = (!left.is_empty()).then(|| format!("not taken over: {}", left.join(", ")));
            Ok(Gathered { found, notes: notes.into_iter().collect(), ..Gathered::default() })
        }
    }
}

fn service(account: ServiceAccount, root: &Path, now: Timestamp) -> FoundAccount {
    let token = match &account.place {
        Place::Nowhere(why) => Err(why.clone()),
        Place::Inline(json) => inline(json),
        Place::File(name) => {
            let path = root.join(name.strip_prefix("./").unwrap_or(name));
            let taken = if path.is_file() {
                token_file(&path, now).and_then(|taken| with_registration(taken.token, &path))
            } else {
                Err(format!("{} not found; is the base folder right?", path.display()))
            };
            taken.map_err(|why| without_address(&why, &path))
        }
    };
    let ServiceAccount { label, id, name, members, .. } = account;
    FoundAccount { label, taken: token.map(|token| ImportedAccount { id, name, members, token }) }
}

/// Gives an IdC login without a client the client of its folder's only other file that has one (R83).
fn with_registration(record: Vec<u8>, path: &Path) -> Result<Vec<u8>, String> {
    let token = Token::parse(&record).map_err(|error| error.to_string())?;
    if token.method() != Method::Idc || token.client_id.is_some() {
        return Ok(record);
    }
    let only = lone_registration(path)?;
    let object = Object::parse(&record, RECORD).map_err(|error| error.to_string())?;
    let client = [("clientId", &only.client_id), ("clientSecret", &only.client_secret)];
    Ok(object.with(client.map(|(name, value)| (name, quote(value.expose())))))
}

fn token_file(path: &Path, now: Timestamp) -> Result<ImportedAccount, String> {
    let imported = import(path, now).map_err(|error| of_file(&error))?;
    Ok(ImportedAccount { id: None, name: None, members: Vec::new(), token: imported.token })
}

/// A path that a source names may contain a mail address: the sentence then leaves the path out.
fn without_address(why: &str, path: &Path) -> String {
    let shown = path.display().to_string();
    if shown.contains('@') { why.replace(&shown, "its file") } else { why.to_owned() }
}

/// The error of an invalid store file, without its leading word.
fn of_file(error: &StoreError) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, detail)| detail.to_owned())
}

fn of(path: &Path, problem: &str) -> String {
    format!("{}: {problem}", path.display())
}

/// An account's name in its source, as it is shown: never an address, and only an id's first characters.
pub fn shown(label: &str, at: usize) -> String {
    if label.contains('@') {
        format!("account {}", at + 1)
    } else if uuid::Uuid::try_parse(label).is_ok() {
        short(label).to_owned()
    } else {
        label.to_owned()
    }
}
