//! `probe --forge`: the client's direction, against boom-server that forges nothing.

use std::time::Duration;

use canary_record::names::{Forgery, ProbeEnd, Verdict};
use canary_record::result::load::{ForgeRecord, LoadResult};
use canary_testbed::model::Path;
use canary_testbed::programs::{Ended, load_client};
use canary_testbed::test::{Bed, SOON};
use canary_wire::segment::Family;
use nix::sys::signal::Signal;

/// Probes the path's target with 40 connections, with `list` forged on them. What is connected before
/// them, until the answer that is awaited, is none of them.
fn probe(bed: &Bed, family: Family, list: &str) -> Ended<LoadResult> {
    let boom = bed.boom(&["--forge=none", "--on-reset=count"]);
    let target = bed.target(family);
    let ran = bed.loaded(&format!(
        "probe --target tcp://{target} --connections 40 --pattern upload --body-size 64KiB \
         --forge {list} --min-forged 10 --await-answer 10s"
    ));
    boom.stop(SOON).unwrap();
    ran
}

fn forged(ran: &Ended<LoadResult>) -> &ForgeRecord {
    ran.result.forge.as_ref().expect("a record of what was forged")
}

/// Killed, delivered, dropped, of a forgery.
fn counts(record: &ForgeRecord, forgery: Forgery) -> [u64; 3] {
    let all = record.outcomes.iter().find(|o| o.forgery == forgery).expect("it was forged");
    [all.counts.killed, all.counts.delivered, all.counts.dropped]
}

const LIST: &str = "above-window,control";

/// A drop of INVALID in FORWARD does not see what a client sends to a node's own address: above
/// the window each segment ends its upload, in both families. With a drop in INPUT none does.
pub(crate) fn uploads_through_a_node_port_need_a_drop_in_input() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let bed = Bed::path(Path::NodePortLocal);
        bed.protect(&["forward-drop"]);
        let ran = probe(&bed, family, LIST);
        let record = forged(&ran);
        assert_eq!(counts(record, Forgery::AboveWindow), [20, 0, 0], "{record:?}");
        assert_eq!(counts(record, Forgery::Control), [0, 20, 0], "{record:?}");
        assert_eq!((record.verdict, ran.code()), (Verdict::Vulnerable, 10), "{record:?}");
        let ends = [(ProbeEnd::Survived, 20), (ProbeEnd::Reset, 20)].into();
        assert_eq!(ran.result.probe, ends, "{:?}", ran.result.reasons);

        let bed = Bed::path(Path::NodePortLocal);
        bed.protect(&["forward-drop", "input-drop"]);
        let ran = probe(&bed, family, LIST);
        let record = forged(&ran);
        assert_eq!(counts(record, Forgery::AboveWindow), [0, 0, 20], "{record:?}");
        assert_eq!((record.verdict, ran.code()), (Verdict::Protected, 0), "{record:?}");
        assert_eq!(ran.result.probe, [(ProbeEnd::Survived, 40)].into());
    }
}

/// Where be_liberal lets everything pass, the server itself answers: delivered.
pub(crate) fn what_is_passed_on_is_answered_by_the_server() {
    let bed = Bed::path(Path::ClusterIp);
    bed.protect(&["liberal"]);
    let ran = probe(&bed, Family::Ipv4, LIST);
    let record = forged(&ran);
    assert_eq!(counts(record, Forgery::AboveWindow), [0, 20, 0], "{record:?}");
    assert_eq!((record.verdict, ran.code()), (Verdict::Protected, 0), "{record:?}");
}

/// What is called safe ends no connection of the client's either, however many: `LOAD_SAFE=100000`
/// for as many as that, 2,000 at once, beside a churn.
pub(crate) fn safe_segments_end_nothing() {
    let n: u64 = std::env::var("LOAD_SAFE").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let bed = Bed::path(Path::NodePortLocal);
    let ran = probe(&bed, Family::Ipv4, "above-window");
    assert_eq!(ran.result.probe, [(ProbeEnd::Reset, 40)].into(), "the positive control");

    bed.sh("client", "sysctl -qw net.ipv4.ip_local_port_range='1024 65535'");
    let target = bed.target(Family::Ipv4);
    let boom = bed.boom(&["--forge=none", "--on-reset=count", "--duration=1h"]);
    let churn = bed.load(&format!("churn --target tcp://{target} --rate 200"));
    let (mut left, mut leaked) = (n, 0);
    while left > 0 {
        let batch = left.min(2000);
        let ran = bed.load(&format!(
            "probe --target tcp://{target} --connections {batch} --pattern upload --body-size 4KiB \
             --timeout 30s --forge safe --min-forged 10"
        ));
        let ran = ran.end(Duration::from_secs(120)).unwrap();
        let record = forged(&ran);
        assert_eq!(ran.result.probe, [(ProbeEnd::Survived, batch)].into(), "{record:?}");
        assert_eq!(record.outcomes.iter().map(|o| o.counts.killed).sum::<u64>(), 0, "{record:?}");
        leaked += record.outcomes.iter().map(|o| o.counts.leaked).sum::<u64>();
        left -= batch;
    }
    churn.signal(Signal::SIGTERM);
    let churned = churn.end(SOON).unwrap().result;
    boom.stop(SOON).unwrap();
    assert!(leaked > n / 3, "{leaked} of {n} leaked");
    assert!(churned.ok > 0 && churned.failures.is_empty(), "{:?}", churned.failures);
    println!("{n} uploads, {leaked} leaks, none ended; {} beside them", churned.ok);
}

/// Without CAP_NET_RAW the direction is untried, which the result says; the connections are
/// probed all the same.
pub(crate) fn without_the_capability_the_direction_is_untried() {
    let bed = Bed::path(Path::ClusterIp);
    let boom = bed.boom(&["--forge=none", "--on-reset=count"]);
    let words = format!(
        "probe --target tcp://{} --connections 4 --delay 0s --forge above-window",
        bed.target(Family::Ipv4)
    );
    let options: Vec<_> = words.split_whitespace().collect();
    let bare = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-all", "--ambient-caps=-all"];
    let program = load_client(&options).unwrap().under(&bare);
    let ran = program.start(bed.testbed(), "client", &bed.file("bare")).unwrap();
    let ran = ran.end(SOON).unwrap();
    let record = forged(&ran);
    assert!(record.untried.as_ref().is_some_and(|why| why.contains("CAP_NET_RAW")), "{record:?}");
    assert_eq!((record.verdict, ran.code()), (Verdict::Inconclusive, 11));
    assert_eq!(ran.result.probe, [(ProbeEnd::Survived, 4)].into());
    boom.stop(SOON).unwrap();
}
