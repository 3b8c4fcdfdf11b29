//! Both directions across networks that are not perfect: no outcome may be wrong. `CELL` says how
//! many connections each forgery gets in each cell (10 unless told; `make network`: 1,000).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use canary_record::names::{Forgery, Outcome, Verdict};
use canary_record::outcome::Counts;
use canary_record::result::boom::OutcomeCount;
use canary_testbed::model::Path;
use canary_testbed::network::{Conditions, KINDS, Share};
use canary_testbed::test::{Bed, SOON};
use canary_wire::segment::Family;
use nix::sys::signal::Signal;

canary_testbed::tests![
    clean,
    duplicates,
    reordered,
    jitter,
    loss,
    all,
    a_duplicated_ack_is_no_answer,
];

/// A perfect network: every cell of the table, at most 1% unknown where there are enough to say.
fn clean() {
    table(0);
}

/// One segment in a hundred comes twice.
fn duplicates() {
    table(1);
}

/// One in twenty is overtaken by up to three.
fn reordered() {
    table(2);
}

/// Each waits up to 20 ms.
fn jitter() {
    table(3);
}

/// One in a hundred is lost.
fn loss() {
    table(4);
}

/// All of these at once.
fn all() {
    table(5);
}

/// Connections at once.
const BATCH: u64 = 1500;
const FORGERIES: &str = "control,below-window,above-window,ack-ahead,no-flags,syn-fin";
const PROTECTIONS: [&[&str]; 3] = [&[], &["forward-drop"], &["liberal"]];

/// The end that forges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Server,
    Client,
}

type Counted = BTreeMap<Forgery, Counts>;

fn table(kind: usize) {
    let (name, conditions) = KINDS[kind];
    let cell: u64 = std::env::var("CELL").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let rows = [End::Server, End::Client].into_iter().flat_map(|end| PROTECTIONS.map(|p| (end, p)));
    let rows: Vec<_> = rows.collect();
    // Each mostly waits, unless it is large.
    for some in rows.chunks(if cell > 100 { 1 } else { rows.len() }) {
        std::thread::scope(|s| {
            for (end, p) in some {
                s.spawn(move || println!("{}", row(name, conditions, *end, p, cell)));
            }
        });
    }
}

/// What must become of a segment that this end forges.
fn expected(end: End, protections: &[&str], forgery: Forgery) -> Outcome {
    let bad_flags = matches!(forgery, Forgery::NoFlags | Forgery::SynFin);
    match forgery {
        Forgery::Control | Forgery::BelowWindow => Outcome::Delivered,
        _ if protections == ["liberal"] && !bad_flags => Outcome::Delivered,
        // What a client sends to a node's own address does not come to FORWARD.
        _ if protections == ["forward-drop"] && end == End::Server => Outcome::Dropped,
        _ => Outcome::Leaked,
    }
}

/// `cell` connections for each forgery, under one protection; a line of the table.
fn row(name: &str, conditions: Conditions, end: End, protections: &[&str], cell: u64) -> String {
    let path = if end == End::Server { Path::ClusterIp } else { Path::NodePortLocal };
    let (bed, network) = Bed::through(path, conditions);
    bed.protect(protections);
    let (mut counted, mut left) = (Counted::new(), cell * 6);
    while left > 0 {
        let n = left.min(BATCH);
        let (outcomes, verdict) =
            if end == End::Server { server(&bed, n) } else { client(&bed, n) };
        let harmless = end == End::Server && protections == ["forward-drop"];
        let wrong = if harmless { Verdict::Vulnerable } else { Verdict::Protected };
        assert_ne!(verdict, wrong, "{name}, {end:?}, {protections:?}: {outcomes:?}");
        for o in outcomes {
            *counted.entry(o.forgery).or_default() += &o.counts;
        }
        left -= n;
    }
    network.stop().unwrap();
    let protection = protections.first().copied().unwrap_or("none");
    let mut line = format!("{name:<10} {end:?} {protection:<12}");
    let (mut judged, mut unknown) = (0, 0);
    let mut reasons = BTreeMap::new();
    for (forgery, counts) in &counted {
        let right = expected(end, protections, *forgery);
        let wrong = counts.known() - counts.of(right);
        assert_eq!(wrong, 0, "{name}, {end:?}, {protection}: {forgery} is {right}: {counts:?}");
        judged += counts.known();
        unknown += counts.of(Outcome::Unknown);
        for (reason, n) in &counts.unknown {
            *reasons.entry(reason.as_str()).or_insert(0) += n;
        }
        let _ = write!(line, " {forgery} {} {right}", counts.of(right));
    }
    assert!(judged * 10 >= cell * 6 * 9, "{judged} of {} judged: {line}", cell * 6);
    let most = if name == "clean" && cell >= 100 { 1 } else { 10 };
    assert!(unknown * 100 <= judged * most, "{unknown} unknown, {reasons:?}: {line}");
    format!("{line}; {unknown} unknown {reasons:?}")
}

fn server(bed: &Bed, n: u64) -> (Vec<OutcomeCount>, Verdict) {
    let connections = format!("--connections={n}");
    let forge = format!("--forge={FORGERIES}");
    let options =
        ["--on-reset=count", "--outcome-timeout=400ms", "--min-forged=5", &forge, &connections];
    let mut boom = bed.boom(&options);
    let target = bed.target(Family::Ipv4);
    let probe = bed.load(&format!(
        "probe --target tcp://{target} --connections {n} --pattern idle --delay 60s --timeout 30s"
    ));
    // A machine that does other work takes its time over thousands of connections.
    if !(0..4).any(|_| boom.wait_for("settled").is_ok()) {
        let result = boom.stop(SOON).unwrap().result;
        let (c, h, s) = (result.connections, result.handshakes, result.sniffer);
        panic!("{n} connections never settled: {c:?}, {h:?}, {s:?}, {:?}", result.outcomes);
    }
    probe.signal(Signal::SIGUSR1);
    probe.end(3 * SOON).unwrap();
    let result = boom.end(3 * SOON).unwrap().result;
    (result.outcomes, result.verdict)
}

fn client(bed: &Bed, n: u64) -> (Vec<OutcomeCount>, Verdict) {
    let boom = bed.boom(&["--forge=none", "--on-reset=count"]);
    let target = bed.target(Family::Ipv4);
    let probe = bed.load(&format!(
        "probe --target tcp://{target} --connections {n} --pattern idle --timeout 30s \
         --forge {FORGERIES} --min-forged 5"
    ));
    let result = probe.end(Duration::from_secs(90)).unwrap().result;
    boom.stop(SOON).unwrap();
    let record = result.forge.expect("a record of what was forged");
    (record.outcomes, record.verdict)
}

/// Where every segment comes twice, the second ACK of a handshake is no answer to the forged
/// segment: what kills is seen to kill.
fn a_duplicated_ack_is_no_answer() {
    let twice = Conditions { duplicate: Share::percent(100), ..Conditions::default() };
    let (bed, network) = Bed::through(Path::ClusterIp, twice);
    let mut boom = bed.boom(&["--forge=above-window", "--on-reset=count", "--connections=20"]);
    let held = bed.connect(bed.target(Family::Ipv4), 20);
    boom.wait_for("settled").unwrap();
    drop(held);
    let [outcome] = &boom.end(SOON).unwrap().result.outcomes[..] else { panic!("one forgery") };
    assert_eq!((outcome.forgery, outcome.counts.killed), (Forgery::AboveWindow, 20), "{outcome:?}");
    let report = network.stop().unwrap();
    assert_eq!(report.left.duplicated, report.left.packets, "{report}");
}
