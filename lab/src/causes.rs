//! Other causes of resets and hangs, so that nobody takes them for issue
//! #74839: scenarios with their expectation, and the judgement. [`play`] runs them.

pub mod play;

use std::collections::BTreeMap;

use crate::document::lab::Judgement;
use canary_record::names::{Diagnosis, Forgery, Outcome, ProbeEnd};
use canary_record::result::boom::BoomResult;
use serde::Deserialize;

use crate::scenario::ScenarioError;

/// One cause in several cases.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cause {
    /// `cause`.
    pub kind: Kind,
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// One line on what it is.
    pub title: String,
    /// Why the expectation should hold.
    pub why: String,
    /// Where that is known from.
    pub source: String,
    /// Connections in each case.
    #[serde(default = "twenty")]
    pub connections: u32,
    /// What is done, and what it should lead to.
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

const fn twenty() -> u32 {
    20
}

/// Tells these files from those of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A [`Cause`].
    Cause,
}

/// What connections do when something happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Idle, then the client sends first.
    Idle,
    /// The client has asked, the server answers later: the server sends first.
    SlowAnswer,
    /// A body that needs full-sized segments.
    Download,
    /// The client asks, and closes without having read the answer.
    CloseUnread,
}

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nothing: the cause removed.
    Nothing,
    /// The client's node forgets every entry.
    DeleteEntries,
    /// The server pod's address goes to another pod.
    ReplaceEndpoint,
    /// The link between the nodes takes smaller packets, and nobody says so.
    BlackHole,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// What it is, in a few words.
    pub title: String,
    /// What the connections do.
    pub pattern: Pattern,
    /// What is done to them.
    pub action: Action,
    /// nf_conntrack_tcp_loose on the client's node.
    #[serde(default = "yes")]
    pub loose: bool,
    /// What should be seen.
    pub expect: Expect,
}

const fn yes() -> bool {
    true
}

/// What should be seen, of every connection alike.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Expect {
    /// How each ended for the client; nothing where the client itself broke it off.
    pub client: Option<ProbeEnd>,
    /// Whether the server's application saw each reset.
    pub server_reset: bool,
    /// Whether entries were there and then gone.
    #[serde(default)]
    pub entries_deleted: bool,
}

/// What a case showed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Connections.
    pub connections: u64,
    /// How they ended for the client.
    pub client: BTreeMap<ProbeEnd, u64>,
    /// boom-server's result.
    pub boom: BoomResult,
    /// Entries that were there before and gone after a deletion.
    pub deleted: u64,
}

impl Seen {
    /// What became of the forged segments, whatever kind.
    #[must_use]
    pub fn outcomes(&self) -> BTreeMap<Outcome, u64> {
        outcomes(&self.boom)
    }
}

/// What became of the forged segments, whatever kind.
#[must_use]
pub fn outcomes(boom: &BoomResult) -> BTreeMap<Outcome, u64> {
    let mut all = BTreeMap::new();
    for o in &boom.outcomes {
        for (outcome, n) in [
            (Outcome::Leaked, o.counts.leaked),
            (Outcome::Delivered, o.counts.delivered),
            (Outcome::Dropped, o.counts.dropped),
            (Outcome::Unknown, o.counts.unknown.values().sum()),
        ] {
            if n > 0 {
                *all.entry(outcome).or_default() += n;
            }
        }
    }
    all
}

/// Compares a case with its expectation. boom-server's word comes first: it
/// forged on every one of these connections, so that it could have been wrong.
#[must_use]
pub fn judge(expect: &Expect, seen: &Seen) -> (Judgement, Vec<String>) {
    let (mut differs, mut doubts) = (Vec::new(), Vec::new());
    let n = seen.connections;
    let boom = &seen.boom;
    if boom.resets.attributed > 0 {
        differs.push(format!(
            "boom-server took {} of these resets for #74839",
            boom.resets.attributed
        ));
    }
    if boom.paths.iter().any(|p| matches!(p.diagnosis, Diagnosis::Unprotected | Diagnosis::Partly))
    {
        differs.push("boom-server calls this path unprotected".to_owned());
    }
    let control: u64 = boom
        .outcomes
        .iter()
        .filter(|o| matches!(o.forgery, Forgery::Control | Forgery::AboveWindow))
        .map(|o| o.counts.delivered)
        .sum();
    if control < n {
        doubts.push(format!(
            "boom-server saw {control} of {n} forged segments delivered, so it could hardly have been wrong"
        ));
    }
    if boom.sniffer.dropped > 0 {
        doubts.push(format!("boom-server's raw sockets lost {} segments", boom.sniffer.dropped));
    }
    for (end, count) in &seen.client {
        let proves_nothing =
            matches!(end, ProbeEnd::Refused | ProbeEnd::TimedOut | ProbeEnd::LocalLimit);
        if *count > 0 && proves_nothing && expect.client != Some(*end) {
            doubts.push(format!("{count} of {n} connections never came to be: {end}"));
        }
    }
    if let Some(end) = expect.client {
        let so = seen.client.get(&end).copied().unwrap_or(0);
        if so != n {
            differs.push(format!(
                "the client's connections: expected {end} {n}, saw {}",
                listed(&seen.client)
            ));
        }
    }
    let resets = boom.connections.reset_seen_by_application;
    let wanted = if expect.server_reset { n } else { 0 };
    if resets != wanted {
        differs.push(format!("the server's application: expected {wanted} resets, saw {resets}"));
    }
    // An RST that ends a connection is on the wire too.
    if expect.server_reset && boom.resets.unattributed < n && differs.is_empty() {
        doubts.push(format!(
            "boom-server's raw socket saw {} other RSTs where {n} connections were reset",
            boom.resets.unattributed
        ));
    }
    if expect.entries_deleted != (seen.deleted >= n) {
        differs.push(format!("entries deleted: {} for {n} connections", seen.deleted));
    }
    let judgement = if !doubts.is_empty() {
        Judgement::Inconclusive
    } else if differs.is_empty() {
        Judgement::AsExpected
    } else {
        Judgement::Differs
    };
    differs.extend(doubts);
    (judgement, differs)
}

/// Counts in words.
#[must_use]
pub fn listed<K: std::fmt::Display>(counts: &BTreeMap<K, u64>) -> String {
    let text: Vec<_> =
        counts.iter().filter(|(_, n)| **n > 0).map(|(k, n)| format!("{k} {n}")).collect();
    if text.is_empty() { "none".to_owned() } else { text.join(", ") }
}

/// Reads one scenario. `file` names it in errors.
pub fn parse(file: &str, text: &str) -> Result<Cause, ScenarioError> {
    let cause: Cause = toml::from_str(text)
        .map_err(|e| ScenarioError::Toml { file: file.to_owned(), message: e.to_string() })?;
    let senseless =
        |what: &str| Err(ScenarioError::Senseless { file: file.to_owned(), what: what.to_owned() });
    if !legal_name(&cause.name) {
        return senseless("name: use lower-case letters, digits and hyphens");
    }
    if cause.cases.is_empty() {
        return senseless("case: name at least one");
    }
    if !(1..=200).contains(&cause.connections) {
        return senseless("connections: use 1 to 200");
    }
    if cause.cases.iter().any(|c| c.pattern == Pattern::CloseUnread && c.expect.client.is_some()) {
        return senseless("expect: leave client out where the client itself breaks off");
    }
    Ok(cause)
}

/// Whether a name can be part of a file's name.
#[must_use]
pub fn legal_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.chars().all(legal)
}

#[cfg(test)]
mod tests;
