//! The committed JSON Schema of the result is the types' own.

use canary_record::result::boom::BoomResult;

/// `schema/boom-server.json` says what boom-server writes.
#[test]
fn schema_is_as_committed() {
    canary_testbed::golden::schema("boom-server.json", &schemars::schema_for!(BoomResult));
}
