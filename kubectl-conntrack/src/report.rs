//! The document of a diagnosis.

use canary_record::names::Verdict;
use canary_record::result::Run;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::advice::advice;
use crate::output::{Part, Row, Sheet, Shown, Table, table};
use crate::verdict::{FamilyRow, NodeRow, PathRow, groups, whole};

/// What `kubectl conntrack diagnose` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiagnoseResult {
    /// [`canary_record::result::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how. The kernel and host are of the machine that ran this program.
    pub run: Run,
    /// The cluster.
    pub cluster: Cluster,
    /// The worst of all nodes.
    pub verdict: Verdict,
    /// What weakens it: nodes left out, a run cut short.
    pub reasons: Vec<String>,
    /// Every node, by name.
    pub nodes: Vec<NodeRow>,
    /// What to do.
    pub advice: Vec<String>,
}

/// Which cluster, as the API server calls itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cluster {
    /// The kubeconfig's context.
    pub context: String,
    /// The API server's version.
    pub version: String,
    /// The namespace that was used.
    pub namespace: String,
}

impl DiagnoseResult {
    /// Judges `nodes`. `reasons` are those that keep the whole from being protected.
    #[must_use]
    pub fn new(run: Run, cluster: Cluster, mut nodes: Vec<NodeRow>, reasons: Vec<String>) -> Self {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let verdict = whole(nodes.iter().map(|n| n.verdict), &reasons);
        let (schema_version, advice) = (canary_record::result::SCHEMA_VERSION, advice(&nodes));
        Self { schema_version, run, cluster, verdict, reasons, nodes, advice }
    }

    /// The result in one line.
    #[must_use]
    pub fn headline(&self) -> String {
        let of = |v| self.nodes.iter().filter(|n| n.verdict == v).count();
        let flags_alone = self.verdict == Verdict::Vulnerable
            && self.nodes.iter().filter(|n| n.verdict == Verdict::Vulnerable).all(|n| {
                n.families.iter().all(|f| f.verdict != Verdict::Vulnerable || f.bad_flags_alone)
            });
        let word = if flags_alone { "VULNERABLE TO BAD FLAGS ALONE" } else { word(self.verdict) };
        format!(
            "{word}: {} of {} nodes vulnerable, {} not proved, {} protected",
            of(Verdict::Vulnerable),
            self.nodes.len(),
            of(Verdict::Inconclusive),
            of(Verdict::Protected)
        )
    }
}

impl Shown for DiagnoseResult {
    fn table(&self, colour: bool) -> String {
        table::table(self, colour)
    }

    fn sheet(&self, each: bool) -> Sheet {
        let part = |n: &NodeRow, title: String, names: Vec<String>| Part {
            title,
            verdict: n.verdict,
            facts: table::facts(n),
            names,
            reasons: n.reasons.clone(),
            tables: n.families.iter().map(paths).collect(),
        };
        let parts = if each {
            self.nodes.iter().map(|n| part(n, n.name.clone(), Vec::new())).collect()
        } else {
            let all = groups(&self.nodes).into_iter();
            all.map(|g| {
                let title = format!("{}: {} nodes", word(g.like.verdict), g.names.len());
                part(g.like, title, g.names.into_iter().map(str::to_owned).collect())
            })
            .collect()
        };
        Sheet {
            command: "kubectl conntrack diagnose",
            verdict: self.verdict,
            headline: self.headline(),
            about: self.cluster.about(&self.run),
            reasons: self.reasons.clone(),
            advice: self.advice.clone(),
            parts,
        }
    }
}

fn paths(f: &FamilyRow) -> Table {
    let row = |p: &PathRow| Row {
        verdict: p.verdict,
        cells: vec![
            p.path.to_string(),
            p.verdict.to_string(),
            p.diagnosis.map_or("-".to_owned(), |d| d.to_string()),
            p.passed.join(", "),
            table::path_end(p),
        ],
    };
    let proves_nothing = f.verdict == Verdict::Inconclusive;
    Table {
        title: f.family.to_string(),
        word: table::family_word(f).to_owned(),
        columns: &[
            "Path",
            "Verdict",
            "Diagnosis",
            "Nodes passed",
            "Leaked, or why nothing is proved",
        ],
        rows: f.paths.iter().map(row).collect(),
        reasons: table::own_reasons(f).filter(|_| proves_nothing).cloned().collect(),
    }
}

impl Cluster {
    /// Which cluster, and when the run was.
    pub(crate) fn about(&self, run: &Run) -> String {
        format!("context {}, Kubernetes {}, {}", self.context, self.version, run.started)
    }
}

/// A verdict as a headline has it.
pub(crate) const fn word(v: Verdict) -> &'static str {
    match v {
        Verdict::Protected => "PROTECTED",
        Verdict::Vulnerable => "VULNERABLE",
        Verdict::Inconclusive => "NOT PROVED",
    }
}
