//! boom-server across networks that are not perfect.

use canary_record::names::Forgery;
use canary_testbed::model::Path;
use canary_testbed::network::{Conditions, Share};
use canary_testbed::test::{Bed, SOON};
use canary_wire::segment::Family;

canary_testbed::tests![a_duplicated_ack_is_no_answer];

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
