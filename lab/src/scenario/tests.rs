use schemars::SchemaGenerator;
use serde_json::{Value, json};

use super::*;
use crate::document::lab::{Mend, Path, Profile, ProxyMode};
use crate::document::timeline::Finding;
use crate::scenario::cause::{Need, Step, Wait};

mod refused;

/// A file of each kind that is legal.
fn text(name: &str) -> &'static str {
    let quoted = format!("\nname = \"{name}\"");
    SHIPPED.iter().find(|t| t.contains(&quoted) || t.starts_with(quoted.trim())).unwrap()
}

fn refusal(text: &str) -> String {
    parse("x.toml", text).unwrap_err()
}

/// Every shipped file is legal, named once, and a default run leaves saturation out.
#[test]
fn shipped_files_are_legal() {
    let all = shipped().unwrap();
    let names: std::collections::BTreeSet<_> = all.iter().map(|s| &s.about.name).collect();
    assert_eq!(names.len(), SHIPPED.len());
    let default = choose(&[]).unwrap();
    assert!(default.iter().all(|s| !matches!(&s.body, Body::Saturation(_))));
    assert_eq!(all.iter().filter(|s| matches!(&s.body, Body::Saturation(_))).count(), 2);
    let left: Vec<_> =
        all.iter().filter(|s| !default.contains(s)).map(|s| &*s.about.name).collect();
    let modules = ["ipvs", "software-flowtable", "synproxy"];
    let module = |name: &str| modules.iter().any(|m| name.starts_with(m));
    let others = ["positive-control", "post", "saturation"];
    assert!(left.iter().all(|name| module(name) || others.contains(name)), "{left:?}");
    assert_eq!(choose(&[ALL.to_owned()]).unwrap().len(), all.len());
    assert!(positive_control().unwrap().matrix().unwrap().tells_generation());
}

/// A file is of the kind that it says, and of the matrix where it says none; all kinds run in
/// one order, whatever the command line's.
#[test]
fn kinds_are_told_apart() {
    let names = ["saturation", "close-unread", "cluster-ip"].map(str::to_owned);
    let kinds: Vec<_> = choose(&names).unwrap().iter().map(|s| s.about.name.clone()).collect();
    assert_eq!(kinds, ["cluster-ip", "close-unread", "saturation"]);
    let tagged = format!("kind = \"matrix\"\n{}", text("cluster-ip"));
    assert_eq!(parse("x", &tagged).unwrap(), parse("x", text("cluster-ip")).unwrap());
    for wrong in ["kind = \"moon\"", "kind = 1"] {
        assert!(refusal(wrong).contains("kind: use matrix, cause or saturation"));
    }
}

/// Longer timeouts are tried for as long as the entries would have had to expire, and not where entries go by
/// other times.
#[test]
fn longer_timeouts_are_tried_in_full() {
    let under = |text: &str| {
        let Body::Cause(cause) = parse("x", text).unwrap().body else { panic!("its kind") };
        let mends = cause.cases[0].under_mends(cause.mends_at);
        mends.into_iter().find(|(mend, _)| *mend == Mend::LongerTimeouts).map(|(_, case)| case)
    };
    let file = |more: &str| {
        format!(
            "kind = \"cause\"\nname = \"x\"\ntitle = \"x\"\nwhy = \"x\"\nsource = \"x\"\n[[case]]\n\
             title = \"x\"\n{more}\nsteps = [\"connect\", \"let-expire\", {{ transfer = \"down\" }}]\n\
             expect = {{ client = \"reset\" }}\n"
        )
    };
    let timeout = "net.netfilter.nf_conntrack_tcp_timeout_established";
    let own =
        file(&format!("host = [{{ name = \"node1\", sysctls = {{ \"{timeout}\" = \"7\" }} }}]"));
    let idle = Step::Idle(Wait(std::time::Duration::from_secs(8)));
    assert!(under(&own).unwrap().steps.contains(&idle));
    assert!(under(&file("proxy-mode = \"ipvs\"\nipvs-timeout = \"10s\"")).is_none());
    let policy = "table ip x { ct timeout short { protocol tcp; policy = { established : 5 }; } }";
    assert!(
        under(&file(&format!("host = [{{ name = \"node1\", nft = \"{policy}\" }}]"))).is_none()
    );
}

/// A case on a bridge needs br_netfilter, as a cell does.
#[test]
fn a_bridge_is_needed_by_cases_too() {
    let text =
        text("close-unread").replacen("[[case]]", "[[case]]\npath = \"same-node-bridge\"", 1);
    let Body::Cause(cause) = parse("x", &text).unwrap().body else { panic!("its kind") };
    assert!(cause.needed().eq([Need::Bridge]));
}

/// What `new` writes is legal, whatever its legal name, and says every field that there is.
#[test]
fn a_new_scenario_is_legal() {
    let text = begun("my-node-1").unwrap();
    let Body::Cause(cause) = parse("x", &text).unwrap().body else { panic!("its kind") };
    assert_eq!(cause.hosts[0].name, "node1");
    let schema = schema();
    let fields = |name: &str| {
        schema["$defs"][name]["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let all = schema["anyOf"][1]["properties"].as_object().unwrap().keys().cloned().collect();
    for field in [all, fields("Case"), fields("Expect"), fields("Host")].concat() {
        assert!(text.contains(&field), "{field}");
    }
    for name in ["My node", "zz.toml", ""] {
        let says = format!(
            "no name for a scenario: '{name}': use lower-case letters, digits and hyphens;"
        );
        let said = begun(name).unwrap_err();
        assert!(said.starts_with(&says) && !said.contains("line"), "{said}");
    }
}

/// The JSON Schema of a scenario file, for editors.
fn schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let about = generator.root_schema_for::<About>();
    let kinds = [
        ("matrix", generator.root_schema_for::<Matrix>()),
        ("cause", generator.root_schema_for::<Cause>()),
        ("saturation", generator.root_schema_for::<Saturation>()),
    ];
    // A file has the fields of both, side by side.
    let both = |(kind, body): (&str, schemars::Schema)| {
        let mut body = body.to_value();
        for (key, value) in
            [("properties", about.get("properties")), ("required", about.get("required"))]
        {
            match (body.get_mut(key), value) {
                (Some(Value::Object(to)), Some(Value::Object(from))) => to.extend(from.clone()),
                (Some(Value::Array(to)), Some(Value::Array(from))) => to.extend(from.clone()),
                _ => {}
            }
        }
        body["properties"]["kind"] = json!({ "const": kind });
        if let (true, Some(required)) = (kind != "matrix", body["required"].as_array_mut()) {
            required.push("kind".into());
        }
        for field in ["$schema", "$defs"] {
            body.as_object_mut().map(|o| o.remove(field));
        }
        body
    };
    let kinds = kinds.map(both);
    let mut definitions = generator.definitions().clone();
    let seen = definitions["Seen"]["oneOf"].as_array_mut().unwrap();
    seen.retain(|one| one["const"] != "mixed");
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "conntrack-lab scenario",
        "anyOf": kinds,
        "$defs": definitions,
    })
}

/// The schema for editors is as committed; every shipped file is legal
/// by it too, and what the loader refuses by its fields is not.
#[test]
fn the_schema_is_as_committed() {
    let schema = schema();
    canary_testbed::golden::schema("scenario.json", &schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let value = |text: &str| {
        let table: toml::Table = text.parse().unwrap();
        serde_json::to_value(table).unwrap()
    };
    for text in SHIPPED.iter().copied().chain([&*begun("mine").unwrap()]) {
        let errors: Vec<_> = validator.iter_errors(&value(text)).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{text}: {errors:?}");
    }
    for (name, from, to) in [
        ("entry-deleted", "steps =", "setps ="),
        ("entry-deleted", "\"delete-entries\"", "\"delete-entrys\""),
        ("cluster-ip", "families =", "familys ="),
        ("saturation", "\nheld =", "\nhold ="),
        ("entry-deleted", "kind = \"cause\"", ""),
        ("own-rules", "above-window = \"kills\"", "above-window = \"mixed\""),
    ] {
        assert!(!validator.is_valid(&value(&text(name).replacen(from, to, 1))), "{to}");
    }
}

/// A name that is nearly one is answered with the one.
#[test]
fn the_nearest_scenario_is_named() {
    let e = named("cluster-pi").unwrap_err();
    assert!(e.contains("did you mean cluster-ip?"), "{e}");
    assert!(named("no-such-scenario").unwrap_err().contains("name one that"));
}

/// What a file says arrives.
#[test]
fn values_arrive() {
    let Body::Saturation(s) = named("saturation").unwrap().body else { panic!("its kind") };
    assert!(s.expect.values().any(|f| *f == Finding::DoesNotHold));
    let one = named("cluster-ip").unwrap();
    let m = one.matrix().unwrap();
    assert_eq!((m.path, m.connections, m.cells()), (Path::ClusterIp, 50, 40));
    assert_eq!(m.proxy_modes, [ProxyMode::Nftables, ProxyMode::Iptables]);
    assert_eq!(m.cells[1].expect.profile(), Some(Profile::Dropped));
}

proptest::proptest! {
    /// No text makes the loader panic, near to a scenario or far from one.
    #[test]
    fn no_file_panics(n in 0..SHIPPED.len(), at in 0_usize..4000, cut in 0_usize..9, put in ".{0,9}") {
        let mut text: Vec<char> = SHIPPED[n].chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, put.chars());
        let _ = parse("x", &text.into_iter().collect::<String>());
    }
}
