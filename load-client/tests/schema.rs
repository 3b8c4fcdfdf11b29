//! The committed schemas are those of the records, and real output obeys them.

mod common;

use std::path::PathBuf;

use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;
use canary_record::result::serve::ServeResult;
use common::{Ns, privileged};
use serde_json::Value;

fn committed(name: &str, schema: &schemars::Schema) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../schema").join(name);
    let text = serde_json::to_string_pretty(schema).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name}: run with UPDATE_GOLDEN=1");
    serde_json::from_str(&text).unwrap()
}

fn obeys(schema: &Value, output: &str) {
    let document: Value = common::last(output);
    let validator = jsonschema::validator_for(schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
}

/// churn, hold, probe and merge write what schema/load-client.json says.
#[test]
fn load_results_obey_their_schema() {
    let schema = committed("load-client.json", &schemars::schema_for!(LoadResult));
    if !privileged("load_results_obey_their_schema") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n).display().to_string();
    let (a, b) = (path("a"), path("b"));
    for file in [&a, &b] {
        let churn = "churn --target http://127.0.0.1:8080/ --connections 10 --fail-on p99>1s";
        obeys(&schema, &ns.run(&format!("{churn} --output {file}")).text);
    }
    obeys(&schema, &ns.run(&format!("merge {a} {b}")).text);
    obeys(
        &schema,
        &ns.run(
            "hold --target tcp://127.0.0.1:8080 --connections 5 --duration 200ms --interval 50ms",
        )
        .text,
    );
    obeys(&schema, &ns.run("probe --target tcp://127.0.0.1:8081 --connections 2 --delay 0s").text);
    // The schema would notice a wrong document.
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(!validator.is_valid(&serde_json::json!({"schema_version": 1})));
}

/// Two results merged have the sums of both.
#[test]
fn merging_adds() {
    if !privileged("merging_adds") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n).display().to_string();
    let (a, b) = (path("a"), path("b"));
    ns.run(&format!("churn --target tcp://127.0.0.1:8080 --connections 100 --output {a}"));
    ns.run(&format!("churn --target tcp://127.0.0.1:8081 --connections 50 --output {b}"));
    let r = ns.run(&format!("merge {a} {b} --fail-on refused>49"));
    assert_eq!((r.code, r.result.attempts, r.result.ok, r.result.merged), (10, 150, 100, 2));
    assert_eq!(r.result.connect_latency.count, 100);
    let r = ns.run(&format!("merge {a}"));
    assert_eq!((r.code, r.result.merged), (0, 1));
    // The same result under two names would count twice.
    let out = ns.command(common::BIN).args(["merge", &a, &b, &a]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let line = format!("error: {a} and {a} are the same result: name each once\n");
    assert_eq!(String::from_utf8(out.stderr).unwrap(), line);
}

/// The time of a whole is from the first begin to the last end of its parts.
#[test]
fn merging_spans_the_parts() {
    if !privileged("merging_spans_the_parts") {
        return;
    }
    let ns = Ns::new();
    let _serve = ns.serve();
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (begin, end) in [(0, 10), (20, 30)] {
        let mut r = ns.run("churn --target tcp://127.0.0.1:8080 --connections 300").result;
        let at = |s| format!("2026-01-01T00:00:{s:02}.000Z");
        (r.run.started, r.run.ended, r.run.seconds) = (at(begin), at(end), 10.0);
        let file = dir.path().join(begin.to_string()).display().to_string();
        std::fs::write(&file, serde_json::to_vec(&r).unwrap()).unwrap();
        files.push(file);
    }
    let r = ns.run(&format!("merge {} --fail-on rate<1", files.join(" "))).result;
    assert!((r.run.seconds - 30.0).abs() < 1e-9, "{}", r.run.seconds);
    assert!((r.thresholds[0].measured - 20.0).abs() < 1e-9, "{:?}", r.thresholds);
}

/// observe writes what schema/observe.json says.
#[test]
fn observe_obeys_its_schema() {
    let schema = committed("observe.json", &schemars::schema_for!(ObserveResult));
    if !privileged("observe_obeys_its_schema") {
        return;
    }
    let ns = Ns::new();
    let out = ns
        .command(common::BIN)
        .args(["observe", "--duration", "300ms", "--interval", "50ms"])
        .output()
        .unwrap();
    assert!(out.status.success());
    obeys(&schema, &String::from_utf8(out.stdout).unwrap());
}

/// serve writes what schema/serve.json says.
#[test]
fn serve_obeys_its_schema() {
    let schema = committed("serve.json", &schemars::schema_for!(ServeResult));
    if !privileged("serve_obeys_its_schema") {
        return;
    }
    let ns = Ns::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let text = || std::fs::read_to_string(&out).unwrap();
    let mut serve = ns.start("serve --listen 127.0.0.1:8080", &out);
    common::wait_for("serve", || text().contains("\"message\":\"ready\""));
    ns.run("churn --target http://127.0.0.1:8080/ --connections 10");
    serve.signal("TERM");
    assert_eq!(serve.wait(std::time::Duration::from_secs(10)), 0);
    obeys(&schema, &text());
    let result: ServeResult = common::last(&text());
    assert_eq!((result.accepted, result.answers), (10, 10));
}
