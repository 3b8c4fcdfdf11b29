//! Golden files of the unit tests. `LAB_GOLDEN=write cargo test` rewrites them;
//! the difference is then for the reader of the commit.

use std::path::Path;

/// Compares `text` with a file committed under `tests/golden` of the package at `manifest`.
///
/// # Panics
/// When they differ, or a file cannot be read or written.
pub fn check(manifest: &str, name: &str, text: &str) {
    let path = Path::new(manifest).join("tests/golden").join(name);
    if std::env::var_os("LAB_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let golden =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(golden, text, "differs from {}", path.display());
}
