//! Other causes of resets and hangs, so that nobody takes them for issue
//! #74839: what is done to connections, and what it should lead to.

use canary_record::names::ProbeEnd;
use serde::Deserialize;

use super::Checked;

/// One cause in several cases.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cause {
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

impl Checked for Cause {
    fn check(&self) -> Result<(), String> {
        if self.cases.is_empty() {
            return Err("case: name at least one".to_owned());
        }
        if !(1..=200).contains(&self.connections) {
            return Err("connections: use 1 to 200".to_owned());
        }
        let breaks_off = |c: &Case| c.pattern == Pattern::CloseUnread && c.expect.client.is_some();
        if self.cases.iter().any(breaks_off) {
            return Err("expect: leave client out where the client itself breaks off".to_owned());
        }
        Ok(())
    }
}
