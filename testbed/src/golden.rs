//! Golden files and schemas of the tests. `UPDATE_GOLDEN=1 cargo test` rewrites them;
//! the difference is then for the reader of the commit.

use std::path::Path;

use serde::Serialize;

/// Compares `text` with a file committed under `tests/golden` of the package at `manifest`.
///
/// # Panics
/// When they differ, or the file cannot be read or written.
#[track_caller]
pub fn check(manifest: &str, name: &str, text: &str) {
    file(&Path::new(manifest).join("tests/golden").join(name), text);
}

/// Compares a JSON Schema with the one committed under `schema`.
///
/// # Panics
/// When they differ, or the file cannot be read or written.
#[track_caller]
pub fn schema(name: &str, schema: &impl Serialize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schema").join(name);
    file(&path, &(serde_json::to_string_pretty(schema).unwrap() + "\n"));
}

#[track_caller]
fn file(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let golden =
        std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(golden, text, "{}: UPDATE_GOLDEN=1 takes the new one", path.display());
}
