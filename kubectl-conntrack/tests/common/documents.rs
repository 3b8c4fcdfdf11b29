//! Result documents as the programs write them.

use std::collections::BTreeMap;

use canary_record::hist::LatencySummary;
use canary_record::names::{
    ClientClass, Diagnosis, EndedBy, Errno, Forgery, LoadVerdict, OldSegments, Phase, ProbeEnd,
    Verdict,
};
use canary_record::outcome::Counts;
use canary_record::result::boom::{
    BoomResult, Connections, OutcomeCount, PathDiagnosis, Resets, Sniffer,
};
use canary_record::result::load::{Cause, FailureCount, ForgeRecord, LoadResult};
use canary_record::result::observe::{
    ConntrackCounters, ConntrackSample, NodeShown, ObserveResult, ProxySource,
};
use canary_record::result::witness::{
    Cause as EndCause, CauseCount, Direction, Ended, Hit, Reason, Source, WitnessResult,
};
use canary_record::result::{Clock, Run, SCHEMA_VERSION};
use canary_wire::segment::Family;

/// A run of `program` that did what was asked.
pub fn run(program: &str) -> Run {
    let mut run = Clock::start().run(program, "0.1.0", EndedBy::Completed, BTreeMap::new());
    let at = "2026-01-01T00:00:00.000Z";
    (run.started, run.ended, run.seconds) = (at.to_owned(), at.to_owned(), 0.0);
    (run.kernel, run.host) = ("Linux".to_owned(), "host".to_owned());
    run
}

/// boom-server's result for a path in `family` that is `diagnosis`.
pub fn boom(family: Family, diagnosis: Diagnosis) -> BoomResult {
    let above = |counts| OutcomeCount {
        forgery: Forgery::AboveWindow,
        family,
        class: ClientClass::Unclassified,
        forged: 25,
        counts,
    };
    let syn_fin = |counts| OutcomeCount { forgery: Forgery::SynFin, ..above(counts) };
    let dropped = || Counts { dropped: 25, ..Counts::default() };
    let leaked = || Counts { leaked: 25, killed: 25, ..Counts::default() };
    let delivered = || Counts { delivered: 25, ..Counts::default() };
    let (verdict, outcomes) = match diagnosis {
        Diagnosis::Unprotected => (Verdict::Vulnerable, vec![above(leaked()), syn_fin(leaked())]),
        Diagnosis::Liberal => (Verdict::Vulnerable, vec![above(delivered()), syn_fin(leaked())]),
        Diagnosis::Inconclusive => (Verdict::Inconclusive, Vec::new()),
        Diagnosis::NotTranslated => {
            (Verdict::Protected, vec![above(delivered()), syn_fin(delivered())])
        }
        _ => (Verdict::Protected, vec![above(dropped()), syn_fin(dropped())]),
    };
    let (judged, leaked) =
        outcomes.iter().fold((0, 0), |(j, l), o| (j + o.counts.known(), l + o.counts.leaked));
    let path = PathDiagnosis {
        class: ClientClass::Unclassified,
        family,
        diagnosis,
        verdict,
        old_segments: OldSegments::NotShown,
        reasons: Vec::new(),
        judged,
        leaked,
        leak_rate_upper_95: 0.1,
    };
    BoomResult {
        schema_version: SCHEMA_VERSION,
        run: run("boom-server"),
        verdict,
        reasons: vec!["a reason".to_owned()],
        paths: if outcomes.is_empty() { Vec::new() } else { vec![path] },
        direction: canary_record::names::Direction::ServerToClient,
        connections: Connections::default(),
        handshakes: canary_record::result::boom::Handshakes::default(),
        outcomes,
        resets: Resets::default(),
        sniffer: Sniffer::default(),
        handshake_to_forge: LatencySummary::default(),
    }
}

/// A client's result, whose connections ended like that.
pub fn client(ends: &[(ProbeEnd, u64)]) -> LoadResult {
    let survived = ends.iter().filter(|(e, _)| *e == ProbeEnd::Survived).map(|(_, n)| n).sum();
    let attempts = ends.iter().map(|(_, n)| n).sum();
    let failures = match attempts - survived {
        0 => Vec::new(),
        count => vec![FailureCount {
            phase: Phase::Connect,
            cause: Cause::Errno(Errno::Econnrefused),
            local: false,
            count,
        }],
    };
    LoadResult {
        schema_version: SCHEMA_VERSION,
        run: run("load-client probe"),
        verdict: LoadVerdict::WithinThresholds,
        attempts,
        begun_s: 1.0,
        ok: survived,
        failures,
        probe: ends.iter().copied().collect(),
        merged: 1,
        ..LoadResult::default()
    }
}

/// A client's result that forged towards the server on a path that is `diagnosis`.
pub fn forging(family: Family, diagnosis: Diagnosis) -> LoadResult {
    let other = boom(family, diagnosis);
    let forge = ForgeRecord {
        direction: canary_record::names::Direction::ClientToServer,
        verdict: other.verdict,
        reasons: other.reasons,
        min_forged: 20,
        paths: other.paths,
        outcomes: other.outcomes,
        resets: other.resets,
        sniffer: other.sniffer,
        ..ForgeRecord::default()
    };
    LoadResult { forge: Some(forge), ..client(&[(ProbeEnd::Survived, 150)]) }
}

/// What a node shows whose kube-proxy's endpoint and rules say `mode`; none where nothing can be read.
pub fn shown(mode: Option<&str>) -> NodeShown {
    let mut shown = NodeShown { be_liberal: Some(0), ..NodeShown::default() };
    for source in [ProxySource::Endpoint, ProxySource::Rules] {
        if let Some(mode) = mode {
            shown.sign(source, mode.to_owned());
        }
    }
    shown
}

/// An observer's result on a node whose kube-proxy is in `mode`.
pub fn observed(mode: &str) -> ObserveResult {
    ObserveResult {
        schema_version: SCHEMA_VERSION,
        run: run("load-client observe"),
        reasons: Vec::new(),
        node: shown(Some(mode)),
        sources: BTreeMap::new(),
        first: ConntrackSample::default(),
        last: ConntrackSample::default(),
        difference: ConntrackCounters::default(),
        difference_by_cpu: Vec::new(),
        most_entries: 0,
        samples_taken: 1,
        series_interval_s: 1.0,
        samples: Vec::new(),
    }
}

/// A witness' result in which a forged segment of a Service ended so many connections.
pub fn witness(ended: u64) -> WitnessResult {
    let hit = |address: &str| -> Vec<Hit> {
        let hit = Hit { address: address.to_owned(), count: ended };
        (ended > 0).then_some(hit).into_iter().collect()
    };
    let (cause, direction) = (EndCause::AnsweredByClient, Direction::ServerToClient);
    let example = Ended {
        t: 1.0,
        cause,
        direction,
        client: Some("198.18.65.3:40000".to_owned()),
        service: Some("198.19.0.5:80".to_owned()),
        server: Some("198.18.66.4:8080".to_owned()),
        from: "198.18.66.4:8080".to_owned(),
        to: "198.18.65.3:40000".to_owned(),
        seq: 1,
        ack: 2,
        flags: "ACK".to_owned(),
        reason: Reason::SeqOver,
        text: "SEQ is over upper bound".to_owned(),
        answered_us: 50,
        states: [None, None],
        entry_outlived: Some(true),
        facts: Vec::new(),
    };
    WitnessResult {
        schema_version: SCHEMA_VERSION,
        run: run("load-client witness"),
        verdict: if ended > 0 { Verdict::Vulnerable } else { Verdict::Protected },
        source: Source::Kernel,
        seconds_watched: 60.0,
        resets_logged: true,
        connections: (ended > 0)
            .then_some(CauseCount { cause, direction, count: ended })
            .into_iter()
            .collect(),
        services: hit("198.19.0.5:80"),
        clients: hit("198.18.65.3"),
        servers: hit("198.18.66.4"),
        examples: (ended > 0).then_some(example).into_iter().collect(),
        ..WitnessResult::default()
    }
}

/// `document` obeys `schema/NAME.json`, which is written from its type, and is read back as itself.
pub fn obeys_its_schema<T>(document: &T, name: &str)
where
    T: schemars::JsonSchema
        + serde::Serialize
        + serde::de::DeserializeOwned
        + PartialEq
        + std::fmt::Debug,
{
    let schema = schemars::schema_for!(T);
    canary_testbed::golden::schema(&format!("{name}.json"), &schema);
    let value = serde_json::to_value(document).unwrap();
    let validator = jsonschema::validator_for(schema.as_value()).unwrap();
    let errors: Vec<_> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(&serde_json::from_value::<T>(value).unwrap(), document);
}
