//! `accounts profiles`, and token records that no account uses: `doctor` and `accounts restore` (K79, R106).

use redis::Commands as _;
use serde_json::{Value, json};

use super::{FAR, POOL, Place, RedisServer, long, open};

fn enterprise(place: &Place, access: &str) -> String {
    let token = json!({
        "accessToken": access, "refreshToken": long("r"), "expiresAt": FAR, "authMethod": "IdC", "clientId": "c",
        "clientSecret": "s", "startUrl": "https://d-1.awsapps.com/start",
    });
    let path = place.write("e.json", &token);
    let environment = open(place);
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let said = place.run_with(&["accounts", "add", "--from", &path, "--offline", "--json"], &environment).with_code(0);
    said.json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn the_profiles_of_an_organisations_user_are_listed_and_chosen_k79() {
    let server = RedisServer::start();
    for place in [Place::with_file(), Place::with_redis(&server)] {
        let id = enterprise(&place, "sim-acct-enterprise2-us-east-1.x");
        let said = place.run_open(&["accounts", "profiles", &id[..8]]).with_code(0);
        assert!(said.out.contains("idc (enterprise)") && said.out.contains("simulated 2"), "{}", said.out);
        assert!(said.out.contains("--set ARN chooses"), "{}", said.out);
        let list = place.run_open(&["accounts", "profiles", &id, "--json"]).with_code(0).json();
        let profiles = list["profiles"].as_array().unwrap();
        assert_eq!((profiles.len(), &profiles[0]["in_record"]), (2, &json!(false)), "{list}");
        let arn = profiles[1]["arn"].as_str().unwrap();
        let said = place.run_open(&["accounts", "profiles", &id, "--set", arn]).with_code(0);
        assert!(said.out.contains("* is in its record"), "{}", said.out);
        let list = place.run_open(&["accounts", "profiles", &id, "--json"]).with_code(0).json();
        assert_eq!(list["profiles"][1]["in_record"], true, "{list}");
        let said = place.run_open(&["accounts", "profiles", &id, "--set", "arn:aws:x"]).with_code(2);
        assert!(said.err.contains("no such profile"), "{}", said.err);
    }
}

#[test]
fn an_account_without_profiles_says_whose_it_is_k79() {
    let place = Place::with_file();
    let id = place.add(&place.social("t.json", "a", "r", FAR));
    let said = place.run(&["accounts", "profiles", &id]).with_code(1);
    assert!(said.err.contains("is social: Kiro keeps profiles for users of an organisation only"), "{}", said.err);
}

/// The Node.js service's way: the account goes, its token stays.
fn write_out(place: &Place, server: Option<&RedisServer>, id: &str) {
    if let Some(server) = server {
        return server.connection().hdel(POOL, id).unwrap();
    }
    let path = place.folder.path().join("pool.json");
    let mut pool: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    pool["accounts"].as_object_mut().unwrap().remove(id).unwrap();
    std::fs::write(&path, pool.to_string()).unwrap();
}

#[test]
fn doctor_names_token_records_that_no_account_uses_and_restore_brings_them_back_r106() {
    let server = RedisServer::start();
    for (place, server) in [(Place::with_file(), None), (Place::with_redis(&server), Some(&server))] {
        let id = place.add(&place.social("t.json", "a", "r", FAR));
        place.add(&place.social("u.json", "b", "s", FAR));
        assert!(!place.run(&["doctor"]).out.contains("have no account"));
        write_out(&place, server, &id);
        let said = place.run(&["doctor"]).out;
        assert!(said.contains(&format!("1 token records have no account ({})", &id[..8])), "{said}");
        assert!(!said.contains(&id), "{said}");
        let said = place.run(&["accounts", "restore", "abc"]).with_code(2);
        assert!(said.err.contains("at least its first 4"), "{}", said.err);
        place.run(&["accounts", "restore", &id[..8]]).with_code(0);
        assert!(place.accounts().iter().any(|account| account["id"] == id));
        assert!(!place.run(&["doctor"]).out.contains("have no account"));
        let said = place.run(&["accounts", "restore", &id]).with_code(1);
        assert!(said.err.contains("is there"), "{}", said.err);
    }
}

#[test]
fn the_end_of_a_client_registration_is_shown_two_weeks_before_k99() {
    let place = Place::with_file();
    let add = |refresh: &str, days: i64| {
        let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(days * 24 + 1);
        place.write(
            &format!("{refresh}.json"),
            &json!({ "clientId": "c", "clientSecret": "s", "expiresAt": end.to_string() }),
        );
        let token = json!({
            "accessToken": "a", "refreshToken": long(refresh), "expiresAt": FAR, "authMethod": "IdC", "clientIdHash": refresh,
        });
        place.run(&["accounts", "add", "--from", &place.write("r.json", &token), "--offline"]);
    };
    add("r1", 3);
    add("r2", 60);
    let list = place.run(&["accounts", "list"]).with_code(0).out;
    let told: Vec<_> = list.lines().filter(|line| line.contains("client registration ends in 3 days")).collect();
    assert_eq!(told.len(), 1, "{list}");
    assert!(place.accounts().iter().all(|account| account["registration_expires_at"].is_string()));
    let doctor = place.run(&["doctor"]).out;
    assert_eq!(doctor.matches("its client registration ends in 3 days: sign in again before").count(), 1, "{doctor}");
}
