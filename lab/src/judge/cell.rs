//! The judgement of one cell: from the programs' results and the kernel's
//! counters. Where the evidence does not agree with itself the cell is
//! inconclusive, whatever it seems to show.

use std::collections::BTreeMap;

use crate::document::lab::{
    CellResult, ForgeryResult, Judgement, NodeEvidence, Path, Profile, ProtectionKind, Protections,
    ProxyMode, Seen, WitnessSaid,
};
use canary_record::names::{Direction, Forgery, OldSegments, ProbeEnd};
use canary_record::outcome::Counts;
use canary_record::result::boom::{BoomResult, OutcomeCount, Resets, Sniffer};
use canary_record::result::load::LoadResult;
use canary_testbed::topology::Topology;

use super::witness;
use crate::observed::cell::{Done, Key, Shown};
use crate::observed::{counted, listed, number, unheard};
use crate::scenario::matrix::{CellPlan, Expectation, Matrix, row};

#[derive(Clone, Debug)]
struct Evidence<'a> {
    matrix: &'a Matrix,
    key: Key,
    protections: &'a Protections,
    boom: &'a BoomResult,
    load: &'a LoadResult,
    nodes: &'a [NodeEvidence],
    /// RSTs in the capture that answer a forged segment, where one was taken.
    captured: Option<&'a BTreeMap<Forgery, u64>>,
    witnesses: &'a [WitnessSaid],
}

impl<'a> Evidence<'a> {
    fn of(matrix: &'a Matrix, plan: &'a CellPlan, key: Key, shown: &'a Shown) -> Self {
        let (boom, load, nodes) = (&shown.boom, &shown.load, &shown.nodes);
        let protections = &plan.protections;
        Self { matrix, key, protections, boom, load, nodes, captured: None, witnesses: &[] }
    }

    /// What became of the forged segments, by whoever forged them.
    fn outcomes(&self) -> impl Iterator<Item = &OutcomeCount> {
        let of_client = self.load.forge.iter().flat_map(|f| &f.outcomes);
        let upload = self.upload();
        let of_server = self.boom.outcomes.iter().filter(move |_| !upload);
        let all = of_server.chain(of_client.filter(move |_| upload));
        all.filter(|o| o.family == self.key.family)
    }

    /// Whether the client forged.
    fn upload(&self) -> bool {
        self.matrix.direction == Direction::ClientToServer
    }

    /// Whether IPVS translates. It passes on what is INVALID, which conntrack may then take for a
    /// connection of its own, from another port: the server answers that by RST, and nothing of it
    /// is INVALID.
    fn ipvs(&self) -> bool {
        self.key.proxy_mode == ProxyMode::Ipvs
    }

    fn count(&self) -> Vec<ForgeryResult> {
        self.matrix.forgeries.iter().map(|f| count(self, *f)).collect()
    }

    /// The raw socket that saw them, and the RSTs that it took.
    fn seen(&self) -> (&'static str, &Sniffer, &Resets) {
        match &self.load.forge {
            Some(f) if self.upload() => ("load-client", &f.sniffer, &f.resets),
            _ => ("boom-server", &self.boom.sniffer, &self.boom.resets),
        }
    }

    fn topology(&self) -> Topology {
        Topology::new(self.matrix.path, "")
    }

    /// True where conntrack translates on this path.
    fn translated(&self) -> bool {
        self.topology().translated
    }

    /// True where what is not translated has a host that answers: a client's own segment to a
    /// ClusterIP has none.
    fn answered(&self) -> bool {
        !self.upload() || self.topology().from_outside()
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Judged {
    judgement: Judgement,
    reasons: Vec<String>,
    profile: Option<Profile>,
    forgeries: Vec<ForgeryResult>,
}

/// The kernel's generation, if this cell shows it.
pub(crate) fn tells_generation(matrix: &Matrix, done: &Done) -> Option<OldSegments> {
    let (shown, plan) = (done.shown.as_ref().ok()?, matrix.cells.get(done.key.plan)?);
    generation(&Evidence::of(matrix, plan, done.key, shown).count())
}

/// A cell that has ended, judged on a kernel of a known or unknown generation.
pub(crate) fn result(
    matrix: &Matrix,
    plan: &CellPlan,
    done: Done,
    kernel: Option<OldSegments>,
) -> CellResult {
    let Done { key, id, shown } = done;
    let mut cell = CellResult {
        id,
        repetition: key.repetition,
        path: matrix.path,
        direction: matrix.direction,
        family: key.family,
        proxy_mode: key.proxy_mode,
        protections: plan.protections.clone(),
        ..CellResult::default()
    };
    let shown = match shown {
        Ok(shown) => shown,
        Err(why) => {
            cell.reasons.push(why);
            return cell;
        }
    };
    let captured_resets = shown.resets.as_ref().map(|all| counted(all.iter().map(|r| r.forgery)));
    let witnesses: Vec<_> = shown.witnesses.iter().map(|(n, w)| witness::said(n, w)).collect();
    let evidence = Evidence {
        captured: captured_resets.as_ref(),
        witnesses: &witnesses,
        ..Evidence::of(matrix, plan, key, &shown)
    };
    let Judged { judgement, mut reasons, profile, forgeries } =
        judge(&evidence, &plan.expect, kernel);
    let meaning = meaning(profile, &evidence, &forgeries).to_owned();
    reasons.extend(shown.notes);
    reasons.extend(witnesses.iter().flat_map(|w| w.weak.iter().cloned()));
    let path = shown.boom.paths.iter().find(|p| p.family == key.family);
    CellResult {
        judgement,
        reasons,
        profile,
        meaning,
        advice: advice(profile, matrix.path, &plan.protections, &forgeries).to_owned(),
        forgeries,
        boom_diagnosis: path.map(|p| p.diagnosis),
        client: shown.load.probe.into_iter().filter(|(_, n)| *n > 0).collect(),
        sniffer_dropped: shown.boom.sniffer.dropped,
        nodes: shown.nodes,
        captured_resets,
        witnesses,
        captures: shown.captures,
        seconds: shown.seconds,
        ..cell
    }
}

/// Judges a cell on a kernel of a generation that is known or, in the cell that
/// shows it, not yet known.
fn judge(e: &Evidence<'_>, expect: &Expectation, kernel: Option<OldSegments>) -> Judged {
    let counted = e.count();
    let kernel = kernel.or_else(|| generation(&counted));
    let forgeries: Vec<_> = counted
        .into_iter()
        .map(|r| ForgeryResult { expected: expect.of(r.forgery, kernel), ..r })
        .collect();
    let doubts = if expect.unconnected() && e.boom.connections.handshakes == 0 {
        doubts_without(e)
    } else {
        doubts(e, &forgeries)
    };
    let differing = forgeries.iter().filter_map(|r| Some((r, difference(r)?)));
    let (unproved, differing): (Vec<_>, Vec<_>) = differing.partition(|(r, _)| known_agree(e, r));
    let told = |all: Vec<(_, String)>| all.into_iter().map(|(_, why)| why);
    let differences: Vec<_> = told(differing).collect();
    let lacking: Vec<_> =
        told(unproved).chain(without_generation(&forgeries, expect, kernel)).collect();
    // What is lacking of one forgery takes nothing from what another one showed.
    let judgement = match (doubts.is_empty(), differences.is_empty(), lacking.is_empty()) {
        (false, ..) | (true, true, false) => Judgement::Inconclusive,
        (true, false, _) => Judgement::Differs,
        (true, true, true) => Judgement::AsExpected,
    };
    let profile = profile(&forgeries, expect.profile(), kernel);
    Judged {
        judgement,
        reasons: doubts.into_iter().chain(differences).chain(lacking).collect(),
        profile,
        forgeries,
    }
}

/// The kernel's generation, from a row that shows it.
fn generation(forgeries: &[ForgeryResult]) -> Option<OldSegments> {
    let seen = |f| forgeries.iter().find(|r| r.forgery == f).map(|r| r.seen);
    // Where above-window is delivered, be_liberal hides what is too old as well.
    match (seen(Forgery::AboveWindow)?, seen(Forgery::BelowWindow)?) {
        (Seen::Kills | Seen::Dropped, Seen::Delivered) => Some(OldSegments::Ignored),
        (Seen::Kills, Seen::Kills) | (Seen::Dropped, Seen::Dropped) => Some(OldSegments::Invalid),
        _ => None,
    }
}

fn count(e: &Evidence<'_>, forgery: Forgery) -> ForgeryResult {
    let mut r = ForgeryResult::none(forgery);
    for o in e.outcomes().filter(|o| o.forgery == forgery) {
        r.forged += o.forged;
        r.counts += &o.counts;
    }
    r.seen = if e.boom.connections.handshakes == 0 && r.forged == 0 {
        Seen::NoConnection
    } else {
        in_the_end(e, forgery, r.forged, &r.counts)
    };
    r
}

/// What became of so many segments, and later of their connections.
fn in_the_end(e: &Evidence<'_>, forgery: Forgery, forged: u64, counts: &Counts) -> Seen {
    match seen_of(forged, counts) {
        Seen::Delivered => later(e, forgery, forged).unwrap_or(Seen::Delivered),
        other => other,
    }
}

/// What became of every segment of a kind, if it is the same of all.
pub(super) fn seen_of(forged: u64, counts: &Counts) -> Seen {
    if forged == 0 {
        Seen::Mixed
    } else if counts.delivered == forged {
        Seen::Delivered
    } else if counts.dropped == forged {
        Seen::Dropped
    } else if counts.rejected == forged {
        Seen::Rejected
    } else if counts.leaked == forged && counts.killed == forged {
        Seen::Kills
    } else if counts.leaked == forged && counts.killed == 0 {
        Seen::Leaked
    } else {
        Seen::Mixed
    }
}

/// What became later of connections whose forged segment was delivered: only an
/// overshoot is known to harm them, so every end that no other segment explains is its.
fn later(e: &Evidence<'_>, forgery: Forgery, forged: u64) -> Option<Seen> {
    if forgery != Forgery::Overshoot {
        return None;
    }
    let of = |end| number(&e.load.probe, end);
    let killed: u64 = e.outcomes().map(|o| o.counts.killed).sum();
    match (of(ProbeEnd::Reset).checked_sub(killed)?, of(ProbeEnd::Hung)) {
        (0, 0) => None,
        (reset, 0) if reset == forged => Some(Seen::KillsLater),
        (0, hung) if hung == forged => Some(Seen::Hangs),
        _ => Some(Seen::Mixed),
    }
}

fn difference(r: &ForgeryResult) -> Option<String> {
    let expected = r.expected?;
    (expected != r.seen).then(|| {
        let unknown: u64 = r.counts.unknown.values().sum();
        let why =
            if unknown > 0 { format!(" ({})", listed(&r.counts.unknown)) } else { String::new() };
        format!(
            "{}: expected {expected}, saw {}: of {} forged, {} leaked ({} killed), {} delivered, \
             {} dropped, {unknown} unknown{why}",
            r.forgery,
            r.seen,
            r.forged,
            r.counts.leaked,
            r.counts.killed,
            r.counts.delivered,
            r.counts.dropped
        )
    })
}

/// Whether every outcome that is known is the expected one: the others prove nothing.
fn known_agree(e: &Evidence<'_>, r: &ForgeryResult) -> bool {
    let known = r.counts.known();
    let agrees = |expected| in_the_end(e, r.forgery, known, &r.counts) == expected;
    // No segment is forged without a connection, whatever became of it.
    let connected = r.expected.filter(|expected| *expected != Seen::NoConnection);
    known < r.forged && connected.is_some_and(|expected| known == 0 || agrees(expected))
}

/// Forgeries that were not judged because the run does not show the kernel's generation.
fn without_generation(
    forgeries: &[ForgeryResult],
    expect: &Expectation,
    kernel: Option<OldSegments>,
) -> Vec<String> {
    let unjudged = |r: &&ForgeryResult| kernel.is_none() && expect.depends_on_generation(r.forgery);
    let say = |r: &ForgeryResult| {
        format!(
            "{}: saw {}; what to expect depends on the kernel's generation, which this run did not show",
            r.forgery, r.seen
        )
    };
    forgeries.iter().filter(unjudged).map(say).collect()
}

/// What keeps a cell with connections from being proof.
fn doubts(e: &Evidence<'_>, forgeries: &[ForgeryResult]) -> Vec<String> {
    let mut doubts = Vec::new();
    let connections = u64::from(e.matrix.connections);
    for r in forgeries.iter().filter(|r| r.forged != connections) {
        doubts.push(format!("{}: {} forged, not {connections}", r.forgery, r.forged));
    }
    let c = &e.boom.connections;
    if !c.add_up() {
        doubts.push(format!(
            "boom-server accepted {} connections but saw {} handshakes",
            c.accepted, c.handshakes
        ));
    }
    let (who, sniffer, _) = e.seen();
    doubts.extend(unheard(who, sniffer));
    let killed: u64 = forgeries.iter().map(|r| r.counts.killed).sum();
    let of = |end| number(&e.load.probe, end);
    let with =
        |seen| -> u64 { forgeries.iter().filter(|r| r.seen == seen).map(|r| r.forged).sum() };
    let (reset, hung) = (of(ProbeEnd::Reset), of(ProbeEnd::Hung));
    if reset != killed + with(Seen::KillsLater) {
        doubts
            .push(format!("{who} saw {killed} connections killed, the application {reset} reset"));
    }
    if hung != with(Seen::Hangs) {
        doubts.push(format!("load-client saw {hung} connections hang"));
    }
    doubts.extend(contrary(e, forgeries, killed + with(Seen::KillsLater)));
    if let Some(captured) = e.captured {
        for r in forgeries {
            let n = captured.get(&r.forgery).copied().unwrap_or(0);
            if n != r.counts.leaked {
                doubts.push(format!(
                    "{}: {who} counted {} leaked, the capture shows {n}",
                    r.forgery, r.counts.leaked
                ));
            }
        }
    }
    // An overshoot's own segment ends nothing; one of those that follow it does.
    doubts.extend(witness::doubts(
        e.witnesses,
        e.nodes.len(),
        killed + with(Seen::KillsLater),
        e.matrix.direction,
        &e.topology().target(e.key.family).to_string(),
        e.ipvs() && e.upload(),
    ));
    doubts.extend(counter_doubts(e, forgeries));
    doubts
}

/// Evidence of something else than what was forged, beside which no outcome stands.
fn contrary(e: &Evidence<'_>, forgeries: &[ForgeryResult], ended: u64) -> Vec<String> {
    let mut found = Vec::new();
    let of = |forgery| forgeries.iter().filter(move |r| r.forgery == forgery);
    let leaked: u64 = of(Forgery::Control).map(|r| r.counts.leaked).sum();
    if leaked > 0 {
        found.push(format!(
            "control: {leaked} leaked, and nothing of it is INVALID: these clients were not there"
        ));
    }
    let delivered: u64 = of(Forgery::NoFlags).map(|r| r.counts.delivered).sum();
    if delivered > 0 {
        found.push(format!(
            "no-flags: {delivered} delivered, which no Linux answers: something else did"
        ));
    }
    let resets = e.seen().2;
    // Where both close at once, the second of the client's last acknowledgments may meet a
    // server that is closed (RFC 9293, section 3.6, figure 13). A node's reset among these
    // would be in the kernel's words.
    let over = if e.upload() { resets.closing } else { 0 };
    let others = resets.unattributed.saturating_sub(over);
    if others > 0 {
        found.push(format!("{others} RSTs that no forged segment provokes: something else reset"));
    }
    let seen = e.boom.connections.reset_seen_by_application;
    if seen > ended {
        found.push(format!(
            "the server's application saw {seen} resets, where {ended} connections were killed"
        ));
    }
    found
}

/// Rules that did not count what they should have.
fn counter_doubts(e: &Evidence<'_>, forgeries: &[ForgeryResult]) -> Vec<String> {
    let mut doubts = Vec::new();
    let all = u64::from(e.matrix.connections) * e.matrix.forgeries.len() as u64;
    let dnat: u64 = e.nodes.iter().map(|n| n.dnat).sum();
    // A connection that was reset frees its port while its entry lives on: the next one with that
    // port is translated by the entry, without the rule.
    let again: u64 = forgeries.iter().map(|r| r.counts.killed).sum();
    if e.translated() && dnat < all.saturating_sub(again).max(1) {
        doubts.push(format!("the DNAT rule matched {dnat} times for {all} connections"));
    }
    if !e.translated() && dnat > 0 {
        doubts.push(format!("the DNAT rule matched {dnat} times on a path without NAT"));
    }
    // Without a rule, silence after no-flags means delivered.
    let dropped: u64 = forgeries
        .iter()
        .filter(|_| e.answered())
        .filter(|r| {
            let translated = e.translated() && !e.ipvs();
            e.protections.drop() && translated || !r.forgery.silent_when_delivered()
        })
        .map(|r| r.counts.dropped)
        .sum();
    let matched: u64 = e.nodes.iter().flat_map(|n| n.drop_rules.values()).sum();
    if matched < dropped {
        doubts.push(format!("{dropped} segments dropped, but the drop rules matched {matched}"));
    }
    doubts
}

/// What keeps "no connection came to be" from being proof.
fn doubts_without(e: &Evidence<'_>) -> Vec<String> {
    let timed_out = number(&e.load.probe, ProbeEnd::TimedOut);
    let mut doubts = Vec::new();
    if timed_out != e.load.attempts || timed_out == 0 {
        doubts.push(format!("{timed_out} of {} connects timed out", e.load.attempts));
    }
    // On a dead path nothing comes to be either.
    if e.boom.handshakes.syns == 0 {
        doubts.push("no SYN reached the server".to_owned());
    }
    doubts
}

/// The row that the observations make: the expected one where it fits.
fn profile(
    forgeries: &[ForgeryResult],
    expected: Option<Profile>,
    kernel: Option<OldSegments>,
) -> Option<Profile> {
    let makes = |p: &&Profile| {
        forgeries.iter().all(|r| row(**p, r.forgery, kernel).is_none_or(|seen| seen == r.seen))
    };
    if let Some(expected) = expected.filter(|p| makes(&p)) {
        return Some(expected);
    }
    let mut fitting = Profile::ALL.iter().filter(makes);
    let one = fitting.next()?;
    // A scenario that forges little may fit several rows: then it is none.
    fitting.next().is_none().then_some(*one)
}

/// What a row means, in one sentence, of what was forged.
fn meaning(
    profile: Option<Profile>,
    e: &Evidence<'_>,
    forgeries: &[ForgeryResult],
) -> &'static str {
    let hangs = forgeries.iter().any(|r| r.seen == Seen::Hangs);
    match profile {
        Some(Profile::Dropped) if hangs => {
            "INVALID segments are dropped and reset nothing, but after an overshoot the connection hangs."
        }
        Some(Profile::Unprotected) if e.upload() => {
            "The client's INVALID segments are addressed to the node itself, and its RST ends the connection."
        }
        Some(Profile::Dropped) if !e.answered() => {
            "The client's INVALID segments are addressed to nobody and get lost: no connection is reset."
        }
        Some(Profile::Unprotected) => {
            "INVALID segments reach the client untranslated, and its RST ends the connection."
        }
        Some(Profile::LiberalOnly | Profile::LiberalAndDropped) if !bad_flags(forgeries) => {
            "Out-of-window segments are translated and harmless; bad flags were not tried."
        }
        Some(Profile::LiberalOnly) => {
            "Out-of-window segments are translated and harmless, but bad flags still leak and reset."
        }
        Some(Profile::Dropped) => "INVALID segments are dropped, no connection is reset.",
        Some(Profile::LiberalAndDropped) => {
            "Out-of-window segments are translated, bad flags dropped: nothing leaks."
        }
        Some(Profile::NotTranslated) => {
            "Nothing is translated here, so every segment belongs to its connection."
        }
        Some(Profile::NoConnection) => "No connection can be made on this path.",
        None => "The outcomes make no known row; see each forgery.",
    }
}

fn bad_flags(forgeries: &[ForgeryResult]) -> bool {
    forgeries.iter().any(|r| matches!(r.forgery, Forgery::NoFlags | Forgery::SynFin))
}

/// What to do about a row, in one sentence; empty where nothing needs doing.
fn advice(
    profile: Option<Profile>,
    path: Path,
    protections: &Protections,
    forgeries: &[ForgeryResult],
) -> &'static str {
    if forgeries.iter().any(|r| r.seen == Seen::Hangs) {
        return "Set be_liberal=1 as well.";
    }
    let has = |kind| protections.iter().any(|p| p.kind == kind);
    match profile {
        Some(Profile::Unprotected) if has(ProtectionKind::ForwardDrop) => {
            "A drop in FORWARD misses segments addressed to the node: drop INVALID in INPUT too, or in mangle PREROUTING."
        }
        Some(Profile::Unprotected) => {
            "Drop INVALID in FORWARD and INPUT, or in mangle PREROUTING; be_liberal=1 alone leaves bad flags."
        }
        Some(Profile::LiberalOnly) => "Drop INVALID as well, in FORWARD and INPUT.",
        Some(Profile::LiberalAndDropped) if !bad_flags(forgeries) && !protections.drop() => {
            "Forge no-flags and syn-fin too: under be_liberal=1 alone they leak."
        }
        Some(Profile::NoConnection)
            if matches!(path, Path::SameNodeBridge | Path::SameNodeBridgeNoNf) =>
        {
            "Set net.bridge.bridge-nf-call-iptables=1 and bridge-nf-call-ip6tables=1 (module br_netfilter)."
        }
        Some(
            Profile::Dropped
            | Profile::LiberalAndDropped
            | Profile::NotTranslated
            | Profile::NoConnection,
        )
        | None => "",
    }
}

#[cfg(test)]
pub(super) mod tests;
