//! What the runs write obeys the committed schemas, and merging adds it up.

use std::path::Path;

use canary_testbed::programs::{document, load_client};
use canary_testbed::test::{Bed, SOON};
use canary_testbed::topology::Topology;
use serde_json::Value;

use crate::accounts::run;

fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schema").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn obeys(schema: &Value, output: &str) {
    let document: Value = document(output).unwrap();
    let validator = jsonschema::validator_for(schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
}

/// churn, hold, probe and merge write what schema/load-client.json says.
pub(crate) fn load_results_obey_their_schema() {
    let schema = schema("load-client.json");
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let path = |n: &str| bed.file(n).display().to_string();
    let (a, b) = (path("a"), path("b"));
    for file in [&a, &b] {
        let churn = "churn --target http://127.0.0.1:8080/ --connections 10 --fail-on p99>1s";
        obeys(&schema, &run(&bed, &format!("{churn} --output {file}")).text);
    }
    obeys(&schema, &run(&bed, &format!("merge {a} {b}")).text);
    obeys(
        &schema,
        &run(
            &bed,
            "hold --target tcp://127.0.0.1:8080 --connections 5 --duration 200ms --interval 50ms",
        )
        .text,
    );
    obeys(
        &schema,
        &run(&bed, "probe --target tcp://127.0.0.1:8081 --connections 2 --delay 0s").text,
    );
    // The schema would notice a wrong document.
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(!validator.is_valid(&serde_json::json!({"schema_version": 1})));
}

/// Two results merged have the sums of both.
pub(crate) fn merging_adds() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let path = |n: &str| bed.file(n).display().to_string();
    let (a, b) = (path("a"), path("b"));
    run(&bed, &format!("churn --target tcp://127.0.0.1:8080 --connections 100 --output {a}"));
    run(&bed, &format!("churn --target tcp://127.0.0.1:8081 --connections 50 --output {b}"));
    let r = run(&bed, &format!("merge {a} {b} --fail-on refused>49"));
    assert_eq!((r.code(), r.result.attempts, r.result.ok, r.result.merged), (10, 150, 100, 2));
    assert_eq!(r.result.connect_latency.count, 100);
    let r = run(&bed, &format!("merge {a}"));
    assert_eq!((r.code(), r.result.merged), (0, 1));
    // The same result under two names would count twice.
    let out = bed.run("host", &load_client(&["merge", &a, &b, &a]).unwrap().call());
    assert_eq!(out.status.code(), Some(2));
    let line = format!("error: {a} and {a} are the same result: name each once\n");
    assert_eq!(out.stderr, line);
}

/// The time of a whole is from the first begin to the last end of its parts.
pub(crate) fn merging_spans_the_parts() {
    let bed = Bed::new(Topology::single);
    let _serve = bed.serve("127.0.0.1:8080");
    let mut files = Vec::new();
    for (begin, end) in [(0, 10), (20, 30)] {
        let mut r = run(&bed, "churn --target tcp://127.0.0.1:8080 --connections 300").result;
        let at = |s| format!("2026-01-01T00:00:{s:02}.000Z");
        (r.run.started, r.run.ended, r.run.seconds) = (at(begin), at(end), 10.0);
        let file = bed.file(&begin.to_string()).display().to_string();
        std::fs::write(&file, serde_json::to_vec(&r).unwrap()).unwrap();
        files.push(file);
    }
    let r = run(&bed, &format!("merge {} --fail-on rate<1", files.join(" "))).result;
    assert!((r.run.seconds - 30.0).abs() < 1e-9, "{}", r.run.seconds);
    assert!((r.thresholds[0].measured - 20.0).abs() < 1e-9, "{:?}", r.thresholds);
}

/// observe writes what schema/observe.json says.
pub(crate) fn observe_obeys_its_schema() {
    let schema = schema("observe.json");
    let bed = Bed::new(Topology::single);
    let options = ["observe", "--duration", "300ms", "--interval", "50ms"];
    let out = bed.run("host", &load_client(&options).unwrap().call());
    assert!(out.status.success());
    obeys(&schema, &out.stdout);
}

/// serve writes what schema/serve.json says.
pub(crate) fn serve_obeys_its_schema() {
    let bed = Bed::new(Topology::single);
    let serve = bed.serve("127.0.0.1:8080");
    run(&bed, "churn --target http://127.0.0.1:8080/ --connections 10");
    let ended = serve.stop(SOON).unwrap();
    assert_eq!(ended.code(), 0);
    obeys(&schema("serve.json"), &ended.text);
    assert_eq!((ended.result.accepted, ended.result.answers), (10, 10));
}
