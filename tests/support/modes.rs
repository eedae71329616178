//! Who may read a file: Unix only, and true everywhere else.

use std::path::Path;

#[cfg(unix)]
pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(unix)]
#[track_caller]
pub fn assert_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
}

#[cfg(not(unix))]
pub fn set_mode(_: &Path, _: u32) {}

#[cfg(not(unix))]
pub fn assert_mode(_: &Path, _: u32) {}
