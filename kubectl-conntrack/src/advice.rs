//! What to do about an exposed node, by what it shows of itself. Pure.

use canary_record::names::Verdict;

use crate::plan::Path;
use crate::verdict::{NodeRow, PathRow};

/// Sentences for the nodes of a result, the most urgent first.
pub(crate) fn advice(nodes: &[NodeRow]) -> Vec<String> {
    let exposed: Vec<_> = nodes.iter().filter(|n| n.verdict == Verdict::Vulnerable).collect();
    let mut said = Vec::new();
    if exposed.is_empty() {
        return said;
    }
    let leaks =
        |n: &NodeRow, pick: fn(Path) -> bool| n.paths().any(|p| p.leaked > 0 && pick(p.path));
    let forward = |p: Path| matches!(p, Path::SameNode | Path::ClusterIp | Path::NodePortLocal);
    let families =
        exposed.iter().flat_map(|n| &n.families).filter(|f| f.verdict == Verdict::Vulnerable);
    let flags_alone = families.clone().all(|f| f.bad_flags_alone);
    if flags_alone {
        said.push(
            "be_liberal is in force, Kubernetes' own cure: out-of-window segments are translated, and only segments \
             with bad flags (SYN FIN) still leak. To close that too: drop INVALID in mangle PREROUTING."
                .to_owned(),
        );
    } else {
        said.push(
            "To close every path on a node: drop INVALID in mangle PREROUTING for both families \
             (kubectl conntrack manifests drop-invalid). Not where routes are asymmetric, with DSR or an offload: \
             there conntrack sees a part of each connection, and a drop of INVALID cuts legal ones."
                .to_owned(),
        );
        let modes: std::collections::BTreeSet<_> =
            exposed.iter().map(|n| n.shown.proxy_mode.as_deref()).collect();
        for mode in modes {
            said.push(by_mode(mode));
        }
        let uploads = |p: &PathRow| p.to_server.as_ref().is_some_and(|up| up.leaked > 0);
        if exposed.iter().any(|n| n.paths().any(uploads)) {
            said.push(
                "To the server: a client's INVALID segment to a node port is addressed to the node itself, which resets \
                 the client. A drop in FORWARD does not see it; one in mangle PREROUTING or in INPUT does."
                    .to_owned(),
            );
        }
        if exposed.iter().any(|n| !leaks(n, forward) && leaks(n, |_| true)) {
            said.push(
                "On nodes where the paths through FORWARD are protected and the masqueraded ones leak, the drop of \
                 INVALID sits in FORWARD alone (kubernetes #117924): those segments go to INPUT. be_liberal takes \
                 the place of kube-proxy's drop, it does not add to it."
                    .to_owned(),
            );
        }
    }
    said
}

/// kube-proxy's own switch. `mode` is what the node shows.
fn by_mode(mode: Option<&str>) -> String {
    let switch = "kube-proxy's own cure is --conntrack-tcp-be-liberal (conntrack.tcpBeLiberal in its \
                  configuration, Kubernetes 1.29 and later), then a restart of kube-proxy";
    match mode {
        Some("nftables") => format!("kube-proxy in nftables mode drops nothing. {switch}."),
        Some("iptables") => format!(
            "kube-proxy in iptables mode drops INVALID in FORWARD unless be_liberal is set when it starts. {switch}; \
             it then leaves its drop out."
        ),
        Some("ipvs") => format!("Under IPVS the same conntrack translates. {switch}."),
        Some(other) => format!("kube-proxy says of itself mode {other}. {switch}."),
        None => format!(
            "Where Services are kube-proxy's: {switch}. Its mode is not known on these nodes."
        ),
    }
}
