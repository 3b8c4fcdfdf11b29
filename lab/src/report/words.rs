//! What the closed sets of names mean to a reader.

use crate::document::lab::{At, FrontEnd, Judgement, Path, Protection, ProtectionKind, Seen};
use crate::document::timeline::{FailureClass, Finding};
use canary_record::names::{Forgery, OldSegments};
use canary_wire::segment::Family;

/// A path, in a few words.
#[must_use]
pub const fn path(path: Path) -> &'static str {
    match path {
        Path::ClusterIp => "Pod to ClusterIP, other node",
        Path::SameNode => "Pod to ClusterIP, same node",
        Path::SameNodeBridge => "Same node, bridge with br_netfilter",
        Path::SameNodeBridgeNoNf => "Same node, bridge without br_netfilter",
        Path::NodePortCluster => "NodePort, policy Cluster, backend there",
        Path::NodePortClusterRemote => "NodePort, policy Cluster, backend elsewhere",
        Path::NodePortLocal => "NodePort, policy Local",
        Path::Hairpin => "Hairpin: a pod to its own Service",
        Path::HostNetwork => "Host-network client, backend on its node",
        Path::HostNetworkRemote => "Host-network client, backend elsewhere",
        Path::Snat => "Masqueraded pod to ClusterIP, other node",
        Path::PodIp => "Straight to the pod IP (no NAT)",
    }
}

/// A protection, as people call it.
#[must_use]
pub fn protection(p: Protection) -> String {
    let what = match p.kind {
        ProtectionKind::ForwardDrop => "FORWARD drop",
        ProtectionKind::InputDrop => "INPUT drop",
        ProtectionKind::PreroutingDrop => "PREROUTING drop",
        ProtectionKind::Liberal => "be_liberal",
    };
    match p.at {
        At::Both => what.to_owned(),
        At::Client => format!("{what} (client’s node)"),
        At::Server => format!("{what} (server’s node)"),
    }
}

/// A set of protections.
#[must_use]
pub fn protections(set: &[Protection]) -> String {
    if set.is_empty() {
        return "No protection".to_owned();
    }
    set.iter().map(|p| protection(*p)).collect::<Vec<_>>().join(" + ")
}

/// What a forged segment is, in a few words.
#[must_use]
pub const fn forgery(f: Forgery) -> &'static str {
    match f {
        Forgery::Control => "keep-alive, in order",
        Forgery::BelowWindow => "data far too old",
        Forgery::AboveWindow => "data far too new",
        Forgery::AckAhead => "acknowledges what was never sent",
        Forgery::NoFlags => "no flag at all",
        Forgery::SynFin => "impossible flags",
        Forgery::Overshoot => "data just past the window",
    }
}

/// A symbol and a word for what became of forged segments.
#[must_use]
pub const fn seen(s: Seen) -> (&'static str, &'static str) {
    match s {
        Seen::Delivered => ("✓", "delivered"),
        Seen::Leaked => ("△", "leaks"),
        Seen::Kills => ("✕", "kills"),
        Seen::Dropped => ("⊘", "dropped"),
        Seen::KillsLater => ("✕", "kills later"),
        Seen::Hangs => ("⧖", "hangs"),
        Seen::NoConnection => ("–", "no connection"),
        Seen::Mixed => ("≈", "mixed"),
    }
}

/// A symbol and words for a judgement.
#[must_use]
pub const fn judgement(j: Judgement) -> (&'static str, &'static str) {
    match j {
        Judgement::AsExpected => ("✓", "as expected"),
        Judgement::Differs => ("✕", "differs"),
        Judgement::Inconclusive => ("?", "inconclusive"),
        Judgement::Skipped => ("–", "skipped"),
    }
}

/// A symbol and words for what became of a claim.
#[must_use]
pub const fn finding(f: Finding) -> (&'static str, &'static str) {
    match f {
        Finding::Holds => ("✓", "holds"),
        Finding::DoesNotHold => ("✕", "does not hold"),
        Finding::NotShown => ("?", "not shown"),
    }
}

/// A class of failures.
#[must_use]
pub const fn failure(f: FailureClass) -> &'static str {
    match f {
        FailureClass::ConnectTimeout => "connect timed out",
        FailureClass::Reset => "reset",
        FailureClass::Hung => "hung",
        FailureClass::Refused => "refused",
        FailureClass::BadAnswer => "bad or early answer",
        FailureClass::LocalLimit => "limit of this host",
        FailureClass::Other => "other",
    }
}

/// An IP family.
#[must_use]
pub const fn family(f: Family) -> &'static str {
    match f {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}

/// A front end.
#[must_use]
pub const fn front_end(f: FrontEnd) -> &'static str {
    match f {
        FrontEnd::Nftables => "nftables",
        FrontEnd::Iptables => "iptables",
    }
}

/// The kernel's generation, in a sentence.
#[must_use]
pub const fn generation(old: Option<OldSegments>) -> &'static str {
    match old {
        Some(OldSegments::Ignored) => {
            "Linux 6.1 or later by its behaviour: a segment below the window is ignored by \
             conntrack and still translated"
        }
        Some(OldSegments::Invalid) => {
            "before Linux 6.1 by its behaviour: a segment below the window is INVALID"
        }
        Some(OldSegments::NotShown) | None => "not shown by this run",
    }
}
