//! From result documents to what is said of a path, a family, a node and a cluster. Pure.

use canary_record::names::{ClientClass, Diagnosis, Forgery, ProbeEnd, Verdict};
use canary_record::result::boom::{BoomResult, OutcomeCount};
use canary_record::result::load::LoadResult;
use canary_record::result::observe::NodeShown;
use canary_wire::segment::Family;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::Path;

/// A document, or why there is none.
pub type Found<T> = Result<T, String>;

/// What is known of one path from one node in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PathRow {
    /// The path.
    pub path: Path,
    /// The IP family.
    pub family: Family,
    /// The nodes that it passes, the client's first. With two of them "protected" says that one
    /// of the two drops or translates, not which.
    pub passed: Vec<String>,
    /// The worst of both directions.
    pub verdict: Verdict,
    /// What the outcomes say of segments to the client; none where nothing was judged.
    pub diagnosis: Option<Diagnosis>,
    /// `egress` alone: whether the client's node put its own address in the client's place. Where it
    /// did not, nothing is translated on this path.
    #[serde(default)]
    pub masqueraded: Option<bool>,
    /// Segments forged to the client with a known outcome.
    pub judged: u64,
    /// Of those, leaked.
    pub leaked: u64,
    /// Each forgery that leaked.
    pub leaks: Vec<Leak>,
    /// The other direction.
    #[serde(default)]
    pub to_server: Option<ToServer>,
    /// Connections that the client's application saw reset.
    pub reset: u64,
    /// Connections that hung in the client's application.
    pub hung: u64,
    /// Why nothing is proved, or what weakens it.
    pub reasons: Vec<String>,
}

/// What is known of a client's own INVALID segments on a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToServer {
    /// The verdict on this direction.
    pub verdict: Verdict,
    /// What the outcomes say of it; none where nothing was judged.
    pub diagnosis: Option<Diagnosis>,
    /// Forged segments with a known outcome.
    pub judged: u64,
    /// Of those, leaked.
    pub leaked: u64,
    /// Each forgery that leaked.
    pub leaks: Vec<Leak>,
    /// Why nothing is proved, or what weakens it.
    pub reasons: Vec<String>,
}

/// A forgery that leaked.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Leak {
    /// What was forged.
    pub forgery: Forgery,
    /// How many leaked.
    pub leaked: u64,
    /// Of how many.
    pub forged: u64,
}

/// One family of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FamilyRow {
    /// The family.
    pub family: Family,
    /// The verdict on this node in this family.
    pub verdict: Verdict,
    /// True where bad flags alone leak: be_liberal without a drop.
    pub bad_flags_alone: bool,
    /// Why, most important first.
    pub reasons: Vec<String>,
    /// Every path.
    pub paths: Vec<PathRow>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// The kernel's release.
    pub kernel: String,
    /// Its OS image.
    pub os_image: String,
    /// The kubelet's version.
    pub kubelet: String,
    /// What the node shows of itself.
    pub shown: NodeShown,
    /// The worst of its families.
    pub verdict: Verdict,
    /// Why nothing was tried on it at all.
    pub reasons: Vec<String>,
    /// What was tried.
    pub families: Vec<FamilyRow>,
}

/// The row of `path` from its two documents. `passed` names its nodes.
#[must_use]
pub fn path_row(
    path: Path,
    family: Family,
    passed: Vec<String>,
    server: &Found<BoomResult>,
    client: &Found<LoadResult>,
) -> PathRow {
    let ends = |end| client.as_ref().map_or(0, |c| c.probe.get(&end).copied().unwrap_or(0));
    let mut row = PathRow {
        path,
        family,
        passed,
        verdict: Verdict::Inconclusive,
        diagnosis: None,
        masqueraded: None,
        judged: 0,
        leaked: 0,
        leaks: Vec::new(),
        to_server: None,
        reset: ends(ProbeEnd::Reset),
        hung: ends(ProbeEnd::Hung),
        reasons: Vec::new(),
    };
    let server = match server {
        Ok(server) => server,
        Err(why) => {
            row.reasons.push(format!("server: {why}"));
            return row;
        }
    };
    (row.judged, row.leaked, row.leaks) = counted(&server.outcomes, family);
    row.diagnosis = server.paths.iter().filter(|p| p.family == family).map(|p| p.diagnosis).max();
    row.verdict = server.verdict;
    // What leaked says why by itself.
    if row.leaks.is_empty() {
        row.reasons.extend(server.reasons.iter().cloned());
    }
    match client {
        // What the application saw would be contrary evidence, and nobody knows it.
        Err(why) if row.verdict == Verdict::Protected => {
            row.verdict = Verdict::Inconclusive;
            row.reasons.insert(0, format!("client: {why}"));
        }
        Err(why) => row.reasons.push(format!("client: {why}")),
        // Without a handshake the client's end says more than the server's silence.
        Ok(c) if row.judged == 0 => row.reasons.splice(0..0, never_connected(c)).for_each(drop),
        Ok(_) => {}
    }
    if path == Path::Egress && row.judged > 0 {
        row.masqueraded = Some(server.paths.iter().any(|p| p.class == ClientClass::Node));
    }
    // What the application saw is contrary evidence: nothing that it lost may stand beside "protected".
    if row.verdict == Verdict::Protected && row.reset + row.hung > 0 {
        row.verdict = Verdict::Inconclusive;
        row.reasons.insert(
            0,
            format!(
                "nothing leaked, but {} connections were reset and {} hung",
                row.reset, row.hung
            ),
        );
    }
    // RFC 9293, section 3.10.7.1: a RST with the forged numbers comes from a host without the
    // connection. Without a translation there is none such.
    if path == Path::PodIp && row.verdict == Verdict::Vulnerable {
        row.verdict = Verdict::Inconclusive;
        row.reasons.push(
            "leaked without a translation by conntrack: something else answers on this path"
                .to_owned(),
        );
    }
    row
}

/// Judged and leaked in `family`, and each forgery that leaked.
fn counted(outcomes: &[OutcomeCount], family: Family) -> (u64, u64, Vec<Leak>) {
    let mut leaks: Vec<Leak> = Vec::new();
    let (mut judged, mut leaked) = (0, 0);
    for o in outcomes.iter().filter(|o| o.family == family) {
        judged += o.counts.known();
        leaked += o.counts.leaked;
        if o.counts.leaked == 0 {
            continue;
        }
        let (leaked, forged) = (o.counts.leaked, o.forged);
        match leaks.iter_mut().find(|l| l.forgery == o.forgery) {
            Some(l) => (l.leaked, l.forged) = (l.leaked + leaked, l.forged + forged),
            None => leaks.push(Leak { forgery: o.forgery, leaked, forged }),
        }
    }
    (judged, leaked, leaks)
}

impl ToServer {
    /// From the document of a client that forged on `path`.
    #[must_use]
    pub fn of(path: Path, family: Family, client: &Found<LoadResult>) -> Self {
        let nothing = |why: String| Self { reasons: vec![why], ..Self::default() };
        let result = match client {
            Ok(result) => result,
            Err(why) => return nothing(why.clone()),
        };
        let Some(forge) = &result.forge else {
            return nothing("the client forged nothing".to_owned());
        };
        if let Some(why) = &forge.untried {
            return nothing(format!("untried: {why}"));
        }
        let (judged, leaked, leaks) = counted(&forge.outcomes, family);
        let mut row = Self {
            verdict: forge.verdict,
            diagnosis: forge.paths.iter().filter(|p| p.family == family).map(|p| p.diagnosis).max(),
            judged,
            leaked,
            leaks,
            reasons: forge.reasons.clone(),
        };
        if judged == 0 {
            row.reasons.splice(0..0, never_connected(result)).for_each(drop);
        }
        if path == Path::PodIp && row.verdict == Verdict::Vulnerable {
            row.verdict = Verdict::Inconclusive;
            row.reasons.insert(0, "leaked without a translation by conntrack".to_owned());
        }
        row
    }
}

impl PathRow {
    /// The row with its other direction.
    #[must_use]
    pub fn with(mut self, to_server: ToServer) -> Self {
        if self.verdict == Verdict::Protected && to_server.verdict == Verdict::Inconclusive {
            let why = to_server.reasons.first().map_or("no reason given", String::as_str);
            self.reasons.insert(0, format!("to the server: {why}"));
        }
        self.verdict = Verdict::worst([self.verdict, to_server.verdict]);
        self.to_server = Some(to_server);
        self
    }

    /// The diagnosis of each direction in which something leaked.
    fn leaky(&self) -> impl Iterator<Item = Option<Diagnosis>> {
        let up = self.to_server.iter().filter(|t| t.leaked > 0).map(|t| t.diagnosis);
        (self.leaked > 0).then_some(self.diagnosis).into_iter().chain(up)
    }
}

/// How a client's connections ended that the server never saw.
fn never_connected(client: &LoadResult) -> Option<String> {
    let most = client.failures.iter().max_by_key(|f| f.count)?;
    Some(format!(
        "{} of {} connections: {} in {}",
        most.count,
        client.attempts,
        most.cause.words(),
        most.phase
    ))
}

/// The verdict on a node in `family`, from its paths. A leak on any of them is the node's: on
/// each, this node is the one that should have translated. "Protected" needs every path on which
/// no other node's drop helps, and no path unproved.
#[must_use]
pub fn family_row(family: Family, paths: Vec<PathRow>, not_tried: &[String]) -> FamilyRow {
    let tested: Vec<_> = paths.iter().filter(|p| p.path != Path::PodIp).collect();
    let vulnerable: Vec<_> = tested.iter().filter(|p| p.verdict == Verdict::Vulnerable).collect();
    let unproved: Vec<_> = paths.iter().filter(|p| p.verdict == Verdict::Inconclusive).collect();
    let mut reasons: Vec<String> = Vec::new();
    let nothing_arrives = !paths.is_empty() && paths.iter().all(|p| p.judged == 0);
    if nothing_arrives {
        reasons.push(
            "no connection was judged on any path, the pod's own address included: a NetworkPolicy, \
             or pods that did not run"
                .to_owned(),
        );
    }
    for p in &unproved {
        let why = p.reasons.first().map_or("no reason given", String::as_str);
        reasons.push(format!("{}: {why}", p.path));
    }
    reasons.extend(not_tried.iter().cloned());
    let alone = tested.iter().any(|p| p.path.alone() && p.verdict == Verdict::Protected);
    let verdict = if !vulnerable.is_empty() {
        Verdict::Vulnerable
    } else if reasons.is_empty() && alone {
        Verdict::Protected
    } else {
        if reasons.is_empty() {
            reasons.push("no path was tried".to_owned());
        }
        Verdict::Inconclusive
    };
    if !tested.is_empty()
        && tested.iter().all(|p| {
            matches!(p.diagnosis, Some(Diagnosis::NotTranslated | Diagnosis::TranslatedUnchecked))
        })
    {
        reasons.push(
            "Services are not translated by conntrack here (an eBPF data path, or a proxy)"
                .to_owned(),
        );
    }
    let bad_flags_alone = !vulnerable.is_empty()
        && vulnerable.iter().flat_map(|p| p.leaky()).all(|d| {
            matches!(d, Some(Diagnosis::Liberal | Diagnosis::Partly | Diagnosis::Flowtable))
        });
    FamilyRow { family, verdict, bad_flags_alone, reasons, paths }
}

impl NodeRow {
    /// Its paths in every family.
    pub fn paths(&self) -> impl Iterator<Item = &PathRow> {
        self.families.iter().flat_map(|f| &f.paths)
    }
}

/// The worst of the verdicts on parts of a result, which is proved only where no `reasons` weaken it.
pub(crate) fn whole(parts: impl IntoIterator<Item = Verdict>, reasons: &[String]) -> Verdict {
    let parts = Verdict::worst(parts);
    if reasons.is_empty() { parts } else { Verdict::worst([parts, Verdict::Inconclusive]) }
}

/// Nodes with the same outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<'a> {
    /// One of them, which stands for all.
    pub like: &'a NodeRow,
    /// All of them.
    pub names: Vec<&'a str>,
}

/// What makes nodes one group: everything that a reader sees but names and counts.
fn outcome(n: &NodeRow) -> impl PartialEq {
    let path = |p: &PathRow| {
        let named = |leaks: &[Leak]| leaks.iter().map(|l| l.forgery).collect::<Vec<_>>();
        let up = p.to_server.as_ref().map(|t| (t.verdict, t.diagnosis, named(&t.leaks)));
        (p.path, p.passed.len(), p.verdict, p.diagnosis, named(&p.leaks), up)
    };
    let family =
        |f: &FamilyRow| (f.family, f.verdict, f.paths.iter().map(path).collect::<Vec<_>>());
    (
        (n.kernel.clone(), n.os_image.clone(), n.kubelet.clone(), n.shown.clone()),
        n.verdict,
        n.reasons.clone(),
        n.families.iter().map(family).collect::<Vec<_>>(),
    )
}

/// Nodes grouped by outcome, the exposed ones first, then the unproved; the larger group first
/// among equals.
#[must_use]
pub fn groups(nodes: &[NodeRow]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for n in nodes {
        match groups.iter_mut().find(|g| outcome(g.like) == outcome(n)) {
            Some(g) => g.names.push(&n.name),
            None => groups.push(Group { like: n, names: vec![&n.name] }),
        }
    }
    groups.sort_by_key(|g| (g.like.verdict.rank(), std::cmp::Reverse(g.names.len())));
    groups
}
