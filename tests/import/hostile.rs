//! Sources that are damaged, locked, hostile, or written by another editor: the command ends, shows no secret, steers no
//! terminal and leaves no copy.

use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant};

use super::*;

impl Place {
    /// As [`Place::add`], for sources that could hang the command.
    #[track_caller]
    #[expect(clippy::print_stderr, reason = "a scope would wait for the thread that hangs: the process ends instead")]
    fn add_soon(&self, path: &Path, code: i32) -> Said {
        let began = Instant::now();
        let (send, done) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| send.send(self.add(path, &[], code)).unwrap());
            done.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| {
                eprintln!("{} hangs since {:?}", path.display(), began.elapsed());
                std::process::abort();
            })
        })
    }

    fn copies(&self) -> usize {
        fs::read_dir(self.path("tmp/x").parent().unwrap()).unwrap().count()
    }
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_pipe_or_folder_beside_a_database_is_no_log_r82_r86() {
    let place = Place::new();
    let path = place.path("cli/data.sqlite3");
    Connection::open(&path).unwrap().execute_batch(TABLES).unwrap();
    pipe(&place.path("cli/data.sqlite3-wal"));
    fs::create_dir(place.path("cli/data.sqlite3-journal")).unwrap();
    let said = place.add_soon(&path, 1).all;
    assert!(said.contains("what belongs to it is no file"), "{said}");
    assert_eq!(place.copies(), 0);
}

#[test]
fn a_view_in_the_place_of_the_table_is_not_asked_r82_r86() {
    let place = Place::new();
    let path = place.path("data.sqlite3");
    let endless = "CREATE VIEW auth_kv AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)
                   SELECT 'kirocli:social:token' AS key, x AS value FROM n WHERE x < 0";
    Connection::open(&path).unwrap().execute_batch(endless).unwrap();
    assert!(place.add_soon(&path, 1).all.contains("no table auth_kv: is this kiro-cli's database?"));
}

#[test]
fn a_session_is_found_behind_any_number_of_other_rows_r82() {
    let place = Place::new();
    let path = place.path("data.sqlite3");
    let mut open = Connection::open(&path).unwrap();
    open.execute_batch(TABLES).unwrap();
    let filling = open.transaction().unwrap();
    for at in 0..2_000 {
        filling.execute("INSERT INTO auth_kv VALUES (?1, 'hush')", [format!("kirocli:a:{at}")]).unwrap();
    }
    let row = json!({ "access_token": secret("a"), "refresh_token": secret("r"), "provider": "google" }).to_string();
    filling.execute("INSERT INTO auth_kv VALUES ('kirocli:social:token', ?1)", [row]).unwrap();
    filling.commit().unwrap();
    place.add(&path, &[], 0);
}

#[test]
fn a_copy_that_a_killed_command_left_goes_with_the_next_one_r82() {
    let place = Place::new();
    let path = place.path("data.sqlite3");
    Connection::open(&path).unwrap().execute_batch(TABLES).unwrap();
    let left = place.path("tmp/kiro-database-1/data.sqlite3");
    fs::write(&left, secret("left")).unwrap();
    let folder = left.parent().unwrap();
    place.add(&path, &[], 1);
    assert!(folder.exists(), "it may be another command's, at work");
    let before = SystemTime::now() - Duration::from_secs(3_600);
    fs::File::open(folder).unwrap().set_modified(before).unwrap();
    place.add(&path, &[], 1);
    assert!(!folder.exists());
}

#[test]
fn names_and_paths_of_a_source_steer_no_terminal_and_hide_addresses_r78() {
    let place = Place::new();
    let evil = std::ffi::OsStr::from_bytes(b"a\x1b[31m\x07\nb.json");
    fs::create_dir(place.path("folder")).unwrap_or_default();
    let social = json!({ "refreshToken": secret("1"), "authMethod": "social" }).to_string();
    for (name, text) in [(evil, "{\"refreshToken\":\"\"}"), ("hush@example.org.json".as_ref(), &social)] {
        fs::write(place.folder.path().join("folder").join(name), text).unwrap();
    }
    let pool = json!({ "claude-kiro-oauth": [
        { "customName": "n\u{202e}\u{1b}]0;x\u{7}", "KIRO_OAUTH_CREDS_FILE_PATH": "a\u{1b}[2J\n.json" },
        { "customName": "b", "KIRO_OAUTH_CREDS_FILE_PATH": "hush@example.org/a.json" },
        { "customName": "c", "KIRO_OAUTH_CREDS_FILE_PATH": "a\u{0}b" },
        7,
    ] });
    let sources =
        [(place.path("folder"), 1), (place.write("pools.json", &pool), 1), (place.folder.path().join(evil), 1)];
    for (path, code) in sources {
        let said = place.add(&path, &[], code).all;
        let is_calm = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
        assert!(said.chars().all(is_calm), "{said:?}");
    }
}

#[test]
fn what_editors_make_of_a_file_is_read_or_named_r79_r86() {
    let place = Place::new();
    let token = |name: &str| json!({ "refreshToken": secret(name), "authMethod": "social" }).to_string();
    let utf_16 = |text: &str| [vec![0xff, 0xfe], text.encode_utf16().flat_map(u16::to_le_bytes).collect()].concat();
    for (name, bytes, code, words) in [
        ("bom", format!("\u{feff}{}", token("1")).into_bytes(), 0, "added account"),
        ("crlf", token("2").replace(',', ",\r\n").into_bytes(), 0, "added account"),
        ("comment", format!("\u{feff}# mine\r\n\r\nksk_{HUSH}\r\n").into_bytes(), 0, "1 added"),
        ("utf-16", utf_16(&token("3")), 1, "is UTF-16: save it as UTF-8"),
        (
            "deep",
            format!("{{\"refreshToken\":\"{HUSH}\",\"x\":{}", "[".repeat(100_000)).into_bytes(),
            1,
            "line 1, column",
        ),
        (
            "key",
            json!([{ "kiroApiKey": format!("ksk_{HUSH}\n\u{1b}[31m") }]).to_string().into_bytes(),
            1,
            "kiroApiKey: fits no header",
        ),
    ] {
        fs::write(place.path(name), bytes).unwrap();
        let said = place.add(&place.path(name), &[], code).all;
        assert!(said.contains(words), "{name}: {said}");
    }
}

#[test]
fn what_is_there_but_no_file_is_not_called_missing_r86() {
    let place = Place::new();
    let link = |name: &str, to: &str| std::os::unix::fs::symlink(to, place.path(name)).unwrap();
    link("one", "two");
    link("two", "one");
    let said = place.add(&place.path("one"), &[], 1).all;
    assert!(!said.contains("not found"), "{said}");
    pipe(&place.path("pipe"));
    assert!(place.add_soon(&place.path("pipe"), 1).all.contains("is no file"));
    pipe(&place.path("folder/a.json"));
    link("folder/self", ".");
    fs::create_dir(place.path("folder/kiro-auth-token.json")).unwrap();
    assert!(place.add_soon(&place.path("folder"), 1).all.contains("holds nothing that can be taken over"));
}

#[test]
fn what_is_disabled_stays_so_in_every_spelling_r78_r11() {
    let place = Place::new();
    let token = |name: &str| json!({ "refreshToken": secret(name), "authMethod": "social" });
    place.write("a.json", &token("1"));
    let pool = json!({ "claude-kiro-oauth": [
        { "customName": "a", "isDisabled": "true", "KIRO_OAUTH_CREDS_FILE_PATH": "a.json" },
    ] });
    place.add(&place.write("provider_pools.json", &pool), &[], 0);
    let mut list = vec![token("2"), token("3"), token("4")];
    for (entry, disabled) in list.iter_mut().zip([json!(1), json!("TRUE"), json!("false")]) {
        entry["disabled"] = disabled;
    }
    place.add(&place.write("list.json", &json!(list)), &[], 0);
    let disabled: Vec<_> = place.pool().iter().map(|(account, _)| account["isDisabled"] == true).collect();
    assert_eq!(disabled, [true, true, true, false]);
}

#[test]
fn an_entry_that_names_both_regions_keeps_both_r84_k75() {
    let place = Place::new();
    let entry = json!([{
        "refreshToken": secret("1"), "authMethod": "IdC", "clientId": "c", "clientSecret": secret("s"),
        "region": "us-east-1", "idcRegion": "ap-southeast-1", "registrationExpiresAt": FAR,
    }]);
    place.add(&place.write("list.json", &entry), &[], 0);
    let kept = place.pool()[0].1.clone();
    assert_eq!((&kept["region"], &kept["idcRegion"]), (&json!("us-east-1"), &json!("ap-southeast-1")));
    assert_eq!(kept["registrationExpiresAt"], FAR);
}

#[test]
fn a_thousand_accounts_come_in_within_seconds_r86() {
    let place = Place::new();
    let token = |at| json!({ "refreshToken": secret(&format!("{at:04}")), "authMethod": "social" });
    // The last one is there twice.
    let list = json!((0..1_000).chain([999]).map(token).collect::<Vec<_>>());
    let began = Instant::now();
    let said = place.add(&place.write("list.json", &list), &[], 0).all;
    assert!(said.ends_with("1000 added, 1 already there, 0 failed\n"), "{}", said.lines().last().unwrap());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(place.pool().len(), 1_000);
}

#[test]
fn what_the_store_does_not_take_is_told_for_each_account_r78() {
    let server = RedisServer::start_with(&["--min-replicas-to-write", "1"]);
    let mut place = Place::new();
    place.redis = Some(server.url());
    let token = |name| json!({ "refreshToken": secret(name), "authMethod": "social" });
    let path = place.write("list.json", &json!([token("1"), token("2"), { "nickname": "none" }]));
    let said = place.add(&path, &[], 1);
    assert!(said.all.contains("0 added, 0 already there, 3 failed"), "{}", said.all);
    let said: Value = serde_json::from_str(&place.add(&path, &["--json"], 1).out).unwrap();
    let errors: Vec<_> = said["accounts"].as_array().unwrap().iter().map(|one| one["error"].is_string()).collect();
    assert_eq!((errors, &said["failed"]), (vec![true; 3], &json!(3)));
}

#[test]
fn an_account_that_needs_no_profile_is_not_called_without_one_r78_k77() {
    let place = Place::new();
    let builder = json!({
        "refreshToken": secret("1"), "authMethod": "IdC", "provider": "BuilderId", "clientId": "c", "clientSecret": "s",
    });
    let enterprise = json!({
        "refreshToken": secret("2"), "authMethod": "IdC", "startUrl": "https://x.awsapps.com/start", "clientId": "c",
        "clientSecret": "s",
    });
    let list = json!([{ "refreshToken": secret("3"), "authMethod": "social" }, builder, enterprise]);
    let said = place.add(&place.write("list.json", &list), &[], 0).all;
    assert_eq!(said.matches("profile not looked up yet").count(), 1, "{said}");
}

#[test]
fn a_proxy_that_is_none_is_refused_and_direct_is_told_r84_r86() {
    let place = Place::new();
    let token = |name, proxy| json!({ "refreshToken": secret(name), "authMethod": "social", "proxyUrl": proxy });
    let list =
        json!([token("1", "direct"), token("2", "ftp//hush\n"), token("3", "socks5h://hush:1"), token("4", "http://")]);
    let said = place.add(&place.write("list.json", &list), &[], 1).all;
    assert!(said.contains("account 2: not added: proxyUrl: begins with http://"), "{said}");
    assert!(
        said.contains("not taken over: proxyUrl: direct\n") && said.contains("2 added, 0 already there, 2 failed"),
        "{said}"
    );
    let proxies: Vec<_> = place.pool().into_iter().map(|(account, _)| account["PROXY_URL"].clone()).collect();
    assert_eq!(proxies, [Value::Null, json!("socks5h://hush:1")]);
    place.write("a.json", &json!({ "refreshToken": secret("5"), "authMethod": "social" }));
    let pool = json!({ "claude-kiro-oauth": [{ "PROXY_URL": "hush:1", "KIRO_OAUTH_CREDS_FILE_PATH": "a.json" }] });
    let said = place.add(&place.write("provider_pools.json", &pool), &[], 1).all;
    assert!(said.contains("PROXY_URL: begins with"), "{said}");
}

#[test]
fn an_unknown_method_is_a_guess_that_is_told_and_written_r86_k51() {
    let place = Place::new();
    let social = json!({ "refreshToken": secret("1"), "authMethod": "\u{1b}[31mnew" });
    let idc = json!({ "refreshToken": secret("2"), "authMethod": "new", "clientId": "c", "clientSecret": secret("s") });
    let said = place.add(&place.write("one.json", &social), &[], 0).all;
    assert!(said.contains("its authMethod is not known: taken for social") && !said.contains('\u{1b}'), "{said}");
    place.add(&place.write("list.json", &json!([idc])), &[], 0);
    let methods: Vec<_> = place.pool().into_iter().map(|(_, token)| token["authMethod"].clone()).collect();
    assert_eq!(methods, ["social", "IdC"]);
}
