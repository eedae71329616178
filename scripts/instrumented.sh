#!/usr/bin/env bash
# What cargo runs instead of rustc for this crate, under `npm run coverage`: dependencies are compiled as ever, and shared.
# Not sh: some of them take variables away whose names have a dash, such as CARGO_BIN_EXE_kiro-server.
exec "$@" -C instrument-coverage
