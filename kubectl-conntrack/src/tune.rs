//! `tune`: sysctls of conntrack on chosen nodes, set and read back by a pod on each, and put back.
//! What the pods say is read by pure functions; whether a node would lose its last protection is
//! looked at on the node, by `k8s/overlays/tune/tune.sh`.

use std::time::Duration;

use canary_record::names::{EndedBy, Verdict};
use canary_record::result::Run as Record;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::Stop;
use crate::app::{Job, Session, usable};
use crate::cli::TuneArgs;
use crate::each_node::{self, EachNode};
use crate::manifests::Set;
use crate::output::{Part, Row, Sheet, Shown, Table};
use crate::plan::Node;
use crate::report::Cluster;
use crate::run::Ground;

/// A sysctl and its value, as `NAME=NUMBER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// A file of `/proc/sys/net/netfilter`, or `nf_conntrack_buckets`.
    pub name: String,
    /// Its value.
    pub value: u64,
}

impl std::str::FromStr for Sysctl {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (name, value) = s.split_once('=').ok_or("write NAME=NUMBER")?;
        let name = name.strip_prefix("net.netfilter.").unwrap_or(name);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !name.starts_with("nf_conntrack_") || !name.chars().all(plain) {
            return Err(format!("'{name}' is no sysctl of conntrack: nf_conntrack_..."));
        }
        let value = value.parse().map_err(|_| format!("'{value}' is no whole number"))?;
        Ok(Self { name: name.to_owned(), value })
    }
}

/// What a node's pod says of one sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Which.
    pub name: String,
    /// What the node had.
    pub from: u64,
    /// What was set, and read back.
    pub to: u64,
    /// What it was put back to, and read back.
    pub restored: Option<u64>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TunedNode {
    /// Its name.
    pub name: String,
    /// Every sysctl that was set.
    pub changes: Vec<Change>,
    /// What went wrong, and what is a danger.
    pub reasons: Vec<String>,
}

/// What `kubectl conntrack tune` did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TuneResult {
    /// [`canary_record::result::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Who, where, when, how. The kernel and host are of the machine that ran this program.
    pub run: Record,
    /// The cluster.
    pub cluster: Cluster,
    /// True where every node was set, and is as before again unless it was to be kept.
    pub done: bool,
    /// True where the values were to stay.
    #[serde(default)]
    pub kept: bool,
    /// What is left behind or was cut short.
    pub reasons: Vec<String>,
    /// Every node, by name.
    pub nodes: Vec<TunedNode>,
}

/// How long a pod that put its values back stays, to be read.
const LINGER: Duration = Duration::from_secs(45);

/// The sysctls of some nodes, held while this run lasts.
pub struct Tune<'a>(EachNode<'a>);

impl<'a> Tune<'a> {
    /// Nothing is set yet. `nodes` has one at least; its pods are called `prefix-N`.
    #[must_use]
    pub fn new(ground: &'a Ground, nodes: &'a [Node], prefix: &str) -> Self {
        Self(EachNode::new(ground, nodes, Set::Tune, prefix))
    }

    /// Sets them on every node and reads what each pod says of it. Pods whose end will be asked for
    /// by hand do not wait for a reader then.
    pub async fn set(
        &mut self,
        sysctls: &[Sysctl],
        timeout: Duration,
        kept: bool,
        say: &dyn Fn(&str),
    ) -> Result<Vec<TunedNode>, Stop> {
        let values: Vec<_> = sysctls.iter().map(|s| format!("{}={}\n", s.name, s.value)).collect();
        let config = |map: &mut Value| map["data"]["values.env"] = values.concat().into();
        let linger = if kept { 0 } else { LINGER.as_secs() };
        let change = |spec: &mut Value| {
            spec["terminationGracePeriodSeconds"] = (linger + 15).into();
            spec["containers"][0]["env"] = json!([{"name": "LINGER", "value": linger.to_string()}]);
        };
        self.0.apply(config, change).await?;
        self.0.wait(Instant::now() + timeout, say, |p| p.ready).await?;
        let ready = |log: &str| {
            let begun = words(log).any(|w| w.starts_with("ready:"));
            if begun { Ok(told(log)) } else { Err(last(log).to_owned()) }
        };
        let said = self.0.words(Duration::from_secs(5), ready).await;
        Ok(self.rows(said, "not set"))
    }

    /// Holds them until then, or for ever.
    pub async fn hold(&mut self, until: Option<Instant>) {
        const YEARS: Duration = Duration::from_secs(30 * 365 * 86_400);
        let until = until.unwrap_or_else(|| Instant::now() + YEARS);
        // An image cannot go missing under a pod that runs.
        let _ = self.0.watch.until(until, |_| false).await;
    }

    /// Puts the old values back and reads what each pod says of it. Pods that never set anything
    /// have nothing to say.
    pub async fn put_back(&mut self) -> Result<Vec<TunedNode>, Stop> {
        self.0.dismiss().await?;
        let ended = |log: &str| {
            let over = last(log) == "restored" || last(log).starts_with("NOT RESTORED");
            if over { Ok(told(log)) } else { Err(last(log).to_owned()) }
        };
        let said = self.0.words(LINGER / 2, ended).await;
        let rows = self.rows(said, "not known to be put back");
        self.0.remove().await?;
        Ok(rows)
    }

    fn rows(&self, said: Vec<Result<TunedNode, String>>, failed: &str) -> Vec<TunedNode> {
        let row = |(node, said): (&Node, Result<TunedNode, String>)| {
            let nothing = |why| TunedNode {
                reasons: vec![format!("{failed}: {why}")],
                ..TunedNode::default()
            };
            TunedNode { name: node.name.clone(), ..said.unwrap_or_else(nothing) }
        };
        self.0.nodes.iter().zip(said).map(row).collect()
    }
}

/// Sets sysctls on nodes of a cluster, until the end of `--for` or a signal, and puts the old values
/// back.
pub async fn tune(job: Job<'_>, args: &TuneArgs) -> anyhow::Result<TuneResult> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, each_node::needs).await?;
    let (nodes, mut reasons) = usable(client, args.nodes.as_deref()).await?;
    let ground = session.ground().await?;
    let mut held = Tune::new(&ground, &nodes, "tune");
    let kept = args.cluster.keep;
    let mut rows = Vec::new();
    let mut by = EndedBy::Completed;
    let set = session.or(held.set(&args.sysctls, args.cluster.timeout, kept, say)).await;
    let done = match set {
        Some(Ok(set)) => {
            rows = set;
            let n = rows.iter().filter(|n| !n.changes.is_empty()).count();
            say(&format!("set and read back on {n} of {} nodes", rows.len()));
            if !kept && n > 0 {
                let until = args.hold.map(|d| Instant::now() + d);
                session.or(held.hold(until)).await;
                // Without a time a signal is how it is ended.
                by = session.by.filter(|_| until.is_some()).unwrap_or(by);
            }
            Ok(by)
        }
        Some(Err(e)) => Err(e),
        None => {
            reasons.push("ended before every node was set".to_owned());
            Ok(session.by.unwrap_or(by))
        }
    };
    if !kept {
        say("putting the old values back");
        match session.or(held.put_back()).await {
            Some(Ok(back)) if done.is_ok() => rows = back,
            Some(Ok(_)) => {}
            Some(Err(e)) => reasons.push(format!("not known to be put back: {e}")),
            None => reasons.push("ended before the nodes were read back".to_owned()),
        }
    }
    let record = session.close(&ground, "tune", done, |_| rows.is_empty(), &mut reasons).await?;
    Ok(TuneResult::new(record, session.job.cluster, rows, reasons, kept))
}

/// What each line of tune.sh says after its time.
fn words(log: &str) -> impl DoubleEndedIterator<Item = &str> {
    log.lines().filter_map(|l| l.split_once(' ')).map(|(_, rest)| rest)
}

fn last(log: &str) -> &str {
    words(log).next_back().unwrap_or("it says nothing")
}

/// What a pod says that it set and put back, and what it warns of.
fn told(log: &str) -> TunedNode {
    let mut node = TunedNode::default();
    for w in words(log) {
        if let Some((name, rest)) = w.split_once(" set from ")
            && let Some((from, to)) = rest.split_once(" to ")
            && let (Ok(from), Ok(to)) = (from.parse(), to.parse())
        {
            node.changes.push(Change { name: name.to_owned(), from, to, restored: None });
        } else if let Some((name, value)) = w.split_once(" restored to ") {
            for c in node.changes.iter_mut().filter(|c| c.name == name) {
                c.restored = value.parse().ok();
            }
        } else if w.starts_with("WARNING: ")
            || w.contains(" stays ")
            || w.starts_with("NOT RESTORED")
        {
            node.reasons.push(w.trim_start_matches("WARNING: ").to_owned());
        }
    }
    node
}

impl TuneResult {
    /// Judges `nodes`; `kept` says that the values were to stay.
    #[must_use]
    pub fn new(
        run: Record,
        cluster: Cluster,
        mut nodes: Vec<TunedNode>,
        reasons: Vec<String>,
        kept: bool,
    ) -> Self {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let schema_version = canary_record::result::SCHEMA_VERSION;
        let mut result = Self { schema_version, run, cluster, done: false, kept, reasons, nodes };
        result.done = result.reasons.is_empty() && result.nodes.iter().all(|n| result.whole(n));
        result
    }

    /// True where a node was set, and is as before again unless it was to be kept.
    fn whole(&self, n: &TunedNode) -> bool {
        let back = |c: &Change| self.kept || c.restored == Some(c.from);
        !n.changes.is_empty() && n.changes.iter().all(back)
    }

    /// What the exit code says of it.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        if self.done { Verdict::Protected } else { Verdict::Inconclusive }
    }
}

impl Change {
    fn words(&self) -> String {
        let back = self.restored.map_or(String::new(), |value| format!(", put back to {value}"));
        format!("{} -> {}{back}", self.from, self.to)
    }
}

impl Shown for TuneResult {
    fn table(&self, _: bool) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for n in &self.nodes {
            for c in &n.changes {
                let _ = writeln!(text, "{}: {} {}", n.name, c.name, c.words());
            }
            for r in &n.reasons {
                let _ = writeln!(text, "{}: {r}", n.name);
            }
        }
        for r in &self.reasons {
            let _ = writeln!(text, "{r}");
        }
        text
    }

    fn sheet(&self, _: bool) -> Sheet {
        let verdict = |done| if done { Verdict::Protected } else { Verdict::Inconclusive };
        let row = |c: &Change| Row {
            verdict: verdict(self.kept || c.restored == Some(c.from)),
            cells: vec![c.name.clone(), c.words()],
        };
        let part = |n: &TunedNode| Part {
            title: n.name.clone(),
            verdict: verdict(self.whole(n)),
            reasons: n.reasons.clone(),
            tables: vec![Table {
                columns: &["Sysctl", "From, to, and back"],
                rows: n.changes.iter().map(row).collect(),
                ..Table::default()
            }],
            ..Part::default()
        };
        let whole = self.nodes.iter().filter(|n| self.whole(n)).count();
        let word = if self.done { "DONE" } else { "NOT DONE" };
        Sheet {
            command: "kubectl conntrack tune",
            verdict: self.verdict(),
            headline: format!("{word}: {whole} of {} nodes as they should be", self.nodes.len()),
            about: self.cluster.about(&self.run),
            reasons: self.reasons.clone(),
            advice: Vec::new(),
            parts: self.nodes.iter().map(part).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only conntrack's own sysctls, each with a whole number.
    #[test]
    fn a_sysctl_is_named_with_its_value() {
        let of = |s: &str| s.parse::<Sysctl>();
        let liberal = of("net.netfilter.nf_conntrack_tcp_be_liberal=1").unwrap();
        assert_eq!((liberal.name.as_str(), liberal.value), ("nf_conntrack_tcp_be_liberal", 1));
        for bad in
            ["nf_conntrack_max", "nf_conntrack_max=many", "kernel.panic=1", "nf_conntrack_/../x=1"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    /// What was set and put back is read, and what stays with its reason.
    #[test]
    fn what_a_pod_says_is_read() {
        let log = "T nf_conntrack_max set from 262144 to 1000\nT nf_conntrack_tcp_be_liberal set from 0 to 1\nT ready: x\n\
            T nf_conntrack_max restored to 262144\nT nf_conntrack_tcp_be_liberal stays 1: kube-proxy started\n\
            T NOT RESTORED: nf_conntrack_tcp_be_liberal; see the log above\n";
        let TunedNode { changes, reasons, .. } = told(log);
        assert_eq!(
            (changes[0].from, changes[0].to, changes[0].restored),
            (262_144, 1000, Some(262_144))
        );
        assert_eq!(changes[1].restored, None);
        assert_eq!(reasons[0], "nf_conntrack_tcp_be_liberal stays 1: kube-proxy started");
        assert_eq!(last(log), "NOT RESTORED: nf_conntrack_tcp_be_liberal; see the log above");
    }
}
