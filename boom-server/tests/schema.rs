//! The committed JSON Schema of the result is the types' own.

use canary_record::result::boom::BoomResult;

/// `schema/boom-server.json` says what boom-server writes. `UPDATE_GOLDEN=1` takes a new one.
#[test]
fn schema_is_as_committed() {
    let schema = schemars::schema_for!(BoomResult);
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/boom-server.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../schema")).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
}
