//! Flags, environment, file and old names; `--help`, `--print-config`; mistakes with their cure.

use std::process::{Command, Output};

use kiro_messages::config::{Form, Group, SETTINGS};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn printed(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let (code, out, err) = run(&[arguments, &["--print-config"]].concat(), environment);
    assert_eq!(code, 0, "{err}");
    out
}

/// `--help` lists every row with its default, group by group, in lines that fit; `-h` the first group.
#[test]
fn help_lists_every_setting() {
    let (code, out, _) = run(&["--help"], &[]);
    assert_eq!(code, 0);
    let wide: Vec<&str> = out.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(wide.is_empty(), "{wide:?}");
    let text = out.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut from = 0;
    for group in Group::ALL {
        from += text[from..].find(&format!("{}:", group.title())).unwrap();
        for setting in group.settings() {
            let name = setting.flag.map_or(String::new(), |flag| format!("--{flag}, ")) + setting.env;
            let mut row = match setting.form {
                Form::Word(words) => format!("{name}: {}", words.join(" | ")),
                _ => name,
            };
            if !setting.default.is_empty() {
                row += &format!(" [default: {}]", setting.default);
            }
            row += &format!(" {}", setting.meaning);
            from += text[from..].find(&row).unwrap_or_else(|| panic!("{row} is not in its place:\n{out}"));
        }
    }
    let (code, short, _) = run(&["-h"], &[]);
    assert_eq!(code, 0);
    assert!(Group::First.settings().all(|setting| short.contains(setting.env)), "{short}");
    assert!(!short.contains("KIRO_CLIENT_VERSION") && short.lines().count() < 60, "{short}");
}

/// Flag > environment > old name > file > default, each said by `--print-config`, secrets never.
#[test]
fn every_source_has_its_rank() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kiro.toml");
    std::fs::write(&file, "port = 4\nmax-attempts = 7\nhealth-cooldown = \"9s\"\napi-key = \"from-the-file\"\n")
        .unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let out = printed(
        &[&config[..], &["--port", "1", "--redis-url", "redis://:pass-word@h"]].concat(),
        &[("KIRO_PORT", "2"), ("GO_KIRO_PORT", "3"), ("GO_KIRO_HEALTH_COOLDOWN", "8s"), ("GO_KIRO_LOG_JSON", "true")],
    );
    for line in [
        "KIRO_PORT = \"1\"  # flag",
        "KIRO_HEALTH_COOLDOWN = \"8s\"  # environment (old name)",
        "KIRO_MAX_ATTEMPTS = \"7\"  # config file",
        "KIRO_LOG_FORMAT = \"json\"  # environment (old name)",
        "KIRO_HOST = \"127.0.0.1\"  # default",
        "KIRO_API_KEY = \"(redacted)\"  # config file",
        "REDIS_URL = \"(redacted)\"  # flag",
    ] {
        assert!(out.lines().any(|shown| shown == line), "{line} in\n{out}");
    }
    assert!(!out.contains("pass-word") && !out.contains("from-the-file"), "{out}");
    assert_eq!(out.lines().count(), SETTINGS.len());
    let proxy = printed(&["--proxy-url", "http://user:pass-word@127.0.0.1:1"], &[]);
    assert!(!proxy.contains("pass-word"), "{proxy}");
}

/// The environment is everybody's: what isn't text and not ours is left alone, a slip of the pen is pointed at.
#[cfg(unix)]
#[test]
fn the_environment_of_others_is_no_mistake() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let raw = OsStr::from_bytes(b"\xff");
    let start = |name: &OsStr| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.arg("--print-config").env_clear().env(name, raw).output().unwrap()
    };
    for name in [OsStr::new("OTHERS"), raw] {
        assert_eq!(start(name).status.code(), Some(0), "{name:?}");
    }
    let ours = start(OsStr::new("KIRO_HOST"));
    assert_eq!(ours.status.code(), Some(2));
    assert_eq!(ours.stderr, b"kiro-server: KIRO_HOST: the value is not UTF-8 text\n");

    let others = [("KIRO_APIKEY", "secret-4711"), ("KIRO_BASE_URL", "x"), ("GO_KIRO_PROT", "1"), ("PORT", "1")];
    let out = printed(&[], &others);
    let doubts: Vec<&str> = out.lines().filter(|line| line.starts_with('#')).collect();
    let wanted = [
        "# GO_KIRO_PROT is no setting: did you mean GO_KIRO_PORT?",
        "# KIRO_APIKEY is no setting: did you mean KIRO_API_KEY?",
    ];
    assert_eq!(doubts, wanted);
    assert!(!out.contains("4711"), "{out}");
}

/// Who reads only the first line of an output closes the rest: no panic.
#[cfg(unix)]
#[test]
fn an_unread_output_is_an_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
    let ended = command.arg("--print-config").env_clear().stdout(writer).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.starts_with("kiro-server: standard output: "), "{said}");
}

/// Every old name is an alias of its row.
#[test]
fn go_kiro_names_are_aliases() {
    let aliases: Vec<&str> = SETTINGS.iter().filter_map(|setting| setting.alias).collect();
    for name in [
        "PORT",
        "HOST",
        "API_KEY",
        "LOG_LEVEL",
        "REDIS_POOL_SIZE",
        "HEALTH_COOLDOWN",
        "GRACEFUL_TIMEOUT",
        "MAX_REQUEST_BODY",
    ] {
        assert!(aliases.contains(&format!("GO_KIRO_{name}").as_str()), "GO_KIRO_{name}");
    }
    let out = printed(&[], &[("GO_KIRO_MAX_REQUEST_BODY", "1MiB"), ("GO_KIRO_LOG_LEVEL", "warn")]);
    assert!(out.contains("KIRO_MAX_REQUEST_BODY = \"1MiB\"  # environment (old name)"), "{out}");
    assert!(out.contains("KIRO_LOG_LEVEL = \"warn\"  # environment (old name)"), "{out}");
}

/// The environment of the predecessor's own compose file, unchanged, limits no streams, and what has no place here is
/// said.
#[test]
fn the_predecessors_environment_works_as_it_is() {
    let vars = [
        ("GO_KIRO_HOST", "0.0.0.0"),
        ("GO_KIRO_MAX_CONNS", "100"),
        ("GO_KIRO_REDIS_POOL_SIZE", "200"),
        ("GO_KIRO_DEBUG_DUMP", "true"),
        ("GO_KIRO_WARM_UP_ALL", "1"),
        ("GO_KIRO_API_KEY", "secret-4711"),
    ];
    let out = printed(&[], &vars);
    assert!(out.contains("KIRO_MAX_CONNS = \"1000000\"  # environment (old name)"), "{out}");
    let doubts: Vec<&str> = out.lines().filter(|line| line.starts_with('#')).collect();
    let wanted = [
        "# GO_KIRO_DEBUG_DUMP isn't read: KIRO_DEBUG_DUMP_DIR is the folder for dumps of failed requests",
        "# GO_KIRO_MAX_CONNS limited connections to a host and is read as no limit: KIRO_MAX_CONNS limits requests at once",
        "# GO_KIRO_WARM_UP_ALL is no setting here; kiro-server --help has them all",
    ];
    assert_eq!(doubts, wanted);
    let both = printed(&[], &[("GO_KIRO_MAX_CONNS", "100"), ("KIRO_MAX_CONNS", "7")]);
    assert!(both.contains("KIRO_MAX_CONNS = \"7\"  # environment\n"), "{both}");
}

/// Its flags have one dash.
#[test]
fn the_predecessors_flags_work_and_are_pointed_at() {
    let args =
        ["-port", "9001", "-host=127.0.0.2", "-redis-prefix", "x:", "-log-level", "warn", "-pprof", "-api-key=k"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
    let ended = command.args(args).arg("--print-config").env_clear().output().unwrap();
    let (out, said) = (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert_eq!(ended.status.code(), Some(0), "{said}");
    for line in ["KIRO_PORT = \"9001\"", "KIRO_HOST = \"127.0.0.2\"", "KIRO_PROFILE_ADDR = \"127.0.0.1:8082\""] {
        assert!(out.contains(&format!("{line}  # flag")), "{line} in {out}");
    }
    assert!(said.contains("kiro-server: -port is the predecessor's spelling of --port\n"), "{said}");
    assert_eq!(said.lines().count(), 6, "{said}");
}

/// Go's flag package takes a value for a switch, in one argument.
#[test]
fn the_predecessors_switch_takes_gos_spelling() {
    for (spelled, address) in [("-pprof=true", "127.0.0.1:8082"), ("-pprof=1", "127.0.0.1:8082"), ("-pprof=false", "")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        let ended = command.args([spelled, "--print-config"]).env_clear().output().unwrap();
        let (out, said) = (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
        assert_eq!(ended.status.code(), Some(0), "{said}");
        assert!(out.contains(&format!("KIRO_PROFILE_ADDR = \"{address}\"  # ")), "{spelled}: {out}");
        assert!(said.contains("-pprof is the predecessor's spelling of --profile"), "{said}");
    }
}

/// The flag alone has a value; it doesn't eat what follows.
#[test]
fn a_flag_may_stand_alone() {
    assert!(printed(&["--profile"], &[]).contains("KIRO_PROFILE_ADDR = \"127.0.0.1:8082\"  # flag"));
    assert!(printed(&["--profile", "127.0.0.1:9"], &[]).contains("KIRO_PROFILE_ADDR = \"127.0.0.1:9\"  # flag"));
    assert!(printed(&["--allow-anonymous"], &[]).contains("KIRO_ALLOW_ANONYMOUS = \"true\"  # flag"));
    assert!(printed(&[], &[]).contains("KIRO_PROFILE_ADDR = \"\"  # default"));
}

/// Each mistake: exit code 2, the name as it was said, the value, the allowed form; nothing on standard output.
/// Arguments, environment, and what the error says.
type Mistake<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn mistakes_are_named_with_their_cure() {
    let folder = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = folder.path().join("bad.toml");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let none = folder.path().join("none.toml").display().to_string();
    let cases: &[Mistake<'_>] = &[
        (&["--port", "99999"], &[], &["--port", "99999", "from 0 to 65535"]),
        (&[], &[("KIRO_PORT", "http")], &["KIRO_PORT", "\"http\"", "a whole number"]),
        (&[], &[("GO_KIRO_PORT", "http")], &["GO_KIRO_PORT", "\"http\"", "a whole number"]),
        (&[], &[("KIRO_HEALTH_COOLDOWN", "60")], &["KIRO_HEALTH_COOLDOWN", "\"60\"", "500ms, 5s or 2m"]),
        (&[], &[("KIRO_MAX_REQUEST_BODY", "lots")], &["KIRO_MAX_REQUEST_BODY", "\"lots\"", "32MiB"]),
        (&["--strategy", "random"], &[], &["--strategy", "\"random\"", "round-robin, least-busy, sticky"]),
        (&["--store", "postgres"], &[], &["--store", "\"postgres\"", "file:PATH"]),
        (&["--upstream-url", "http://example.org/x"], &[], &["--upstream-url", "https://", "loopback"]),
        (&["--proxy-url", "ftp://user:pass-word@x"], &[], &["--proxy-url", "http://, https://, socks5://"]),
        (&["--host", "example.org"], &[], &["--host", "example.org", "an IP address"]),
        (&["--profile=nowhere"], &[], &["--profile", "\"nowhere\"", "127.0.0.1:8082"]),
        (&["--allow-anonymous=maybe"], &[], &["--allow-anonymous", "\"maybe\"", "true or false"]),
        (&["--prot", "1"], &[], &["--prot", "--port"]),
        (&["--config", &none], &[], &["none.toml"]),
    ];
    for (arguments, environment, parts) in cases {
        let (code, out, err) = run(arguments, environment);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?} {environment:?}: {err}");
        for part in *parts {
            assert!(err.contains(part), "{arguments:?} {environment:?}: {part} is not in {err}");
        }
        assert!(!err.contains("pass-word"), "{err}");
    }
    for (text, parts) in [
        ("prot = 1", ["prot: unknown key", "did you mean port?"]),
        ("port = [1]", ["port: must be a whole number", "not array"]),
        ("port = ", ["bad.toml", "line 1"]),
    ] {
        let (code, _, err) = run(&["--config", &file(text)], &[]);
        assert_eq!(code, 2, "{text}: {err}");
        assert!(parts.iter().all(|part| err.contains(part)), "{text}: {err}");
    }
}
