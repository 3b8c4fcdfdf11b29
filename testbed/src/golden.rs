//! Golden files of the unit tests. `UPDATE_GOLDEN=1 cargo test` rewrites them;
//! the difference is then for the reader of the commit.

use std::path::Path;

/// Compares `text` with a file committed under `tests/golden` of the package at `manifest`.
///
/// # Panics
/// When they differ, or a file cannot be read or written.
pub fn check(manifest: &str, name: &str, text: &str) {
    let path = Path::new(manifest).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let golden =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(golden, text, "differs from {}", path.display());
}
