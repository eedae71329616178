//! The options of `KiroGateway.connect` for the build: `index.d.ts` is made from the table of settings.

use napi_derive::napi;
use serde::Serialize;

use crate::config::{Form, SETTINGS};

/// JSON: one object for each setting. scripts/build.mjs reads it.
/// @internal
#[napi(catch_unwind)]
pub fn settings() -> napi::Result<String> {
    let rows: Vec<_> = SETTINGS
        .iter()
        .map(|setting| Row {
            js: setting.js(),
            env: setting.env,
            default: setting.default,
            meaning: setting.meaning,
            form: setting.form.allowed(),
            r#type: type_of(setting.form),
            group: setting.group.title(),
            overrides: setting.overrides,
        })
        .collect();
    serde_json::to_string(&rows).map_err(|error| napi::Error::from_reason(error.to_string()))
}

#[derive(Serialize)]
struct Row {
    js: String,
    env: &'static str,
    default: &'static str,
    meaning: &'static str,
    form: String,
    r#type: String,
    group: &'static str,
    overrides: Option<&'static str>,
}

fn type_of(form: Form) -> String {
    match form {
        Form::Text
        | Form::Secret
        | Form::Version
        | Form::UpstreamUrl
        | Form::Regions
        | Form::ProfileArn
        | Form::ProviderHosts
        | Form::Url(_)
        | Form::Address => "string".to_owned(),
        Form::Integer(..) | Form::Duration | Form::DurationFrom(_) => "number".to_owned(),
        // A number of bytes, or with a unit.
        Form::Bytes => "number | string".to_owned(),
        Form::Word(words) => words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" | "),
        Form::Store => "'redis' | `file:${string}` | `aiclient:${string}`".to_owned(),
        Form::Switch => "boolean".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_an_option_with_a_type_and_a_sentence() {
        let rows: Vec<serde_json::Value> = serde_json::from_str(&settings().unwrap()).unwrap();
        assert_eq!(rows.len(), SETTINGS.len());
        for row in &rows {
            assert!(row["meaning"].as_str().unwrap().ends_with('.'), "{row}");
            assert_eq!(
                row["js"].as_str().unwrap().ends_with("Ms"),
                row["form"].as_str().unwrap().contains("duration"),
                "{row}"
            );
        }
    }
}
