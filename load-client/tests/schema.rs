//! The committed schemas are those of the records.

use std::path::PathBuf;

use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;
use canary_record::result::serve::ServeResult;

fn committed(name: &str, schema: &schemars::Schema) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../schema").join(name);
    let text = serde_json::to_string_pretty(schema).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name}: run with UPDATE_GOLDEN=1");
}

/// `schema/load-client.json` says what churn, hold, probe and merge write.
#[test]
fn load_schema_is_as_committed() {
    committed("load-client.json", &schemars::schema_for!(LoadResult));
}

/// `schema/observe.json` says what observe writes.
#[test]
fn observe_schema_is_as_committed() {
    committed("observe.json", &schemars::schema_for!(ObserveResult));
}

/// `schema/serve.json` says what serve writes.
#[test]
fn serve_schema_is_as_committed() {
    committed("serve.json", &schemars::schema_for!(ServeResult));
}
