//! What the Node.js addon needs of a build: linker flags on some platforms, and a place for its types.

use std::path::Path;
use std::{env, fs};

fn main() {
    napi_build::setup();
    if env::var_os("CARGO_FEATURE_ADDON").is_some() && env::var_os(TYPES).is_none() {
        // The compiler leaves there what scripts/build.mjs makes index.d.ts of. Told here and not in the environment of one
        // command, every cargo command means the same compilation.
        let folder = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("types");
        if fs::create_dir_all(&folder).is_ok() {
            println!("cargo::rustc-env={TYPES}={}", folder.display());
        }
    }
}

/// Read by napi-derive while it expands `#[napi]`.
const TYPES: &str = "NAPI_TYPE_DEF_TMP_FOLDER";
