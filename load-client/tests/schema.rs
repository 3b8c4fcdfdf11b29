//! The committed schemas are those of the records.

use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;
use canary_record::result::serve::ServeResult;
use canary_testbed::golden::schema;

/// `schema/load-client.json` says what churn, hold, probe and merge write.
#[test]
fn load_schema_is_as_schema() {
    schema("load-client.json", &schemars::schema_for!(LoadResult));
}

/// `schema/observe.json` says what observe writes.
#[test]
fn observe_schema_is_as_schema() {
    schema("observe.json", &schemars::schema_for!(ObserveResult));
}

/// `schema/serve.json` says what serve writes.
#[test]
fn serve_schema_is_as_schema() {
    schema("serve.json", &schemars::schema_for!(ServeResult));
}
