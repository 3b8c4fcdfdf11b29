//! Scenario files: TOML in, a checked scenario with its expectation out.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::lab::{FrontEnd, Path, Profile, Protection, Seen};
use canary_record::names::{Forgery, OldSegments};
use canary_wire::segment::Family;
use serde::Deserialize;

/// The scenarios in the binary, in the order that `run` takes them.
const SHIPPED: &[&str] = &[
    include_str!("../scenarios/cluster-ip.toml"),
    include_str!("../scenarios/same-node.toml"),
    include_str!("../scenarios/same-node-bridge.toml"),
    include_str!("../scenarios/same-node-bridge-no-nf.toml"),
    include_str!("../scenarios/node-port-cluster.toml"),
    include_str!("../scenarios/node-port-cluster-remote.toml"),
    include_str!("../scenarios/node-port-local.toml"),
    include_str!("../scenarios/hairpin.toml"),
    include_str!("../scenarios/host-network.toml"),
    include_str!("../scenarios/host-network-remote.toml"),
    include_str!("../scenarios/snat.toml"),
    include_str!("../scenarios/pod-ip.toml"),
    include_str!("../scenarios/one-node-protected.toml"),
    include_str!("../scenarios/overshoot.toml"),
];

/// A scenario file is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not the TOML that is expected.
    #[error("scenario {file}: {}", message.trim().replace('\n', " "))]
    Toml {
        /// The file, or the shipped scenario's name.
        file: String,
        /// Where and what.
        message: String,
    },
    /// Well-formed, but it makes no sense.
    #[error("scenario {file}: {what}")]
    Senseless {
        /// The file, or the shipped scenario's name.
        file: String,
        /// What and how to mend it.
        what: String,
    },
    /// Neither shipped nor a file.
    #[error(
        "no scenario '{name}': name one that `conntrack-lab list` shows, or a file that ends in .toml"
    )]
    Unknown {
        /// As it was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("cannot read scenario {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
}

/// One claim, the cells that show it, and what they should show.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// One line on what it is.
    pub title: String,
    /// Why the expectation should hold.
    pub why: String,
    /// Where that is known from.
    pub source: String,
    /// The way from client to server.
    pub path: Path,
    /// IP families, each a cell of its own.
    pub families: Vec<Family>,
    /// Front ends, each a cell of its own.
    pub front_ends: Vec<FrontEnd>,
    /// Connections for each forgery in each cell.
    #[serde(default = "fifty")]
    pub connections: u32,
    /// What to forge, by turns.
    pub forgeries: Vec<Forgery>,
    /// The protections and what each should lead to.
    #[serde(rename = "cell")]
    pub cells: Vec<CellPlan>,
}

const fn fifty() -> u32 {
    50
}

/// One set of protections and its expectation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CellPlan {
    /// What is set; none for an unprotected path.
    #[serde(default)]
    pub protections: Vec<Protection>,
    /// What should be seen.
    pub expect: Expectation,
}

/// What should be seen of each forgery.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Expectation {
    /// A whole row by its name.
    Profile(Profile),
    /// Forgery by forgery, whatever the kernel's generation.
    Each(BTreeMap<Forgery, Seen>),
}

impl Expectation {
    /// What should be seen of `forgery`. While the kernel's generation is not
    /// known, nothing is expected of what depends on it.
    #[must_use]
    pub fn of(&self, forgery: Forgery, kernel: Option<OldSegments>) -> Option<Seen> {
        match self {
            Self::Each(map) => map.get(&forgery).copied(),
            Self::Profile(profile) => row(*profile, forgery, kernel),
        }
    }

    /// The row that is expected, where it is one.
    #[must_use]
    pub fn profile(&self) -> Option<Profile> {
        match self {
            Self::Profile(profile) => Some(*profile),
            Self::Each(_) => None,
        }
    }
}

/// The table of profile, forgery and outcome (nf_conntrack_proto_tcp.c:
/// tcp_in_window(), tcp_error()).
#[must_use]
pub fn row(profile: Profile, forgery: Forgery, kernel: Option<OldSegments>) -> Option<Seen> {
    use Forgery::{AboveWindow, AckAhead, BelowWindow, Control, NoFlags, Overshoot, SynFin};
    Some(match (profile, forgery) {
        (Profile::NoConnection, _) => Seen::NoConnection,
        // In order for every kernel.
        (_, Control)
        // be_liberal, or no NAT, hides the window check.
        | (
            Profile::LiberalOnly | Profile::LiberalAndDropped | Profile::NotTranslated,
            BelowWindow | AboveWindow | AckAhead | Overshoot,
        )
        | (Profile::NotTranslated, SynFin) => Seen::Delivered,
        // Since 6.1 (commit 6e250dcbff1d) what is too old is ignored, and so translated.
        (Profile::Unprotected | Profile::Dropped, BelowWindow) => match (kernel?, profile) {
            (OldSegments::Ignored, _) => Seen::Delivered,
            (OldSegments::Invalid, Profile::Unprotected) => Seen::Kills,
            (OldSegments::Invalid, _) => Seen::Dropped,
            (OldSegments::NotShown, _) => return None,
        },
        // Since 6.1 conntrack takes the overshoot for the new end of the server's data: what
        // is in order is then INVALID, which resets the connection, or is dropped for good.
        (Profile::Unprotected | Profile::Dropped, Overshoot) => match (kernel?, profile) {
            (OldSegments::Ignored, Profile::Unprotected) => Seen::KillsLater,
            (OldSegments::Ignored, _) => Seen::Hangs,
            (OldSegments::Invalid | OldSegments::NotShown, _) => return None,
        },
        (Profile::Unprotected, AboveWindow)
        | (Profile::Unprotected | Profile::LiberalOnly, SynFin) => Seen::Kills,
        (Profile::Unprotected, AckAhead)
        // tcp_error() refuses it whatever be_liberal says; its answer is no RST that kills.
        | (Profile::Unprotected | Profile::LiberalOnly, NoFlags) => Seen::Leaked,
        // Silence, which for no-flags also means delivered.
        (Profile::Dropped, AboveWindow | AckAhead | NoFlags | SynFin)
        | (Profile::LiberalAndDropped, NoFlags | SynFin)
        | (Profile::NotTranslated, NoFlags) => Seen::Dropped,
    })
}

/// Reads one scenario. `file` names it in errors.
pub fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
    let scenario: Scenario = toml::from_str(text)
        .map_err(|e| ScenarioError::Toml { file: file.to_owned(), message: e.to_string() })?;
    let senseless =
        |what: &str| Err(ScenarioError::Senseless { file: file.to_owned(), what: what.to_owned() });
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if scenario.name.is_empty() || !scenario.name.chars().all(legal) {
        return senseless("name: use lower-case letters, digits and hyphens");
    }
    for (field, empty) in [
        ("families", scenario.families.is_empty()),
        ("front-ends", scenario.front_ends.is_empty()),
        ("forgeries", scenario.forgeries.is_empty()),
        ("cell", scenario.cells.is_empty()),
    ] {
        if empty {
            return senseless(&format!("{field}: name at least one"));
        }
    }
    if !(1..=1000).contains(&scenario.connections) {
        return senseless("connections: use 1 to 1000");
    }
    let sets = scenario.cells.iter().map(|c| c.protections.iter().collect::<BTreeSet<_>>());
    for (field, twice) in [
        ("forgeries", !once(&scenario.forgeries)),
        ("families", !once(&scenario.families)),
        ("front-ends", !once(&scenario.front_ends)),
        ("cell: protections", !once(sets)),
    ] {
        if twice {
            return senseless(&format!("{field}: name each once"));
        }
    }
    for cell in &scenario.cells {
        if let Expectation::Each(map) = &cell.expect
            && (map.is_empty() || map.keys().any(|f| !scenario.forgeries.contains(f)))
        {
            return senseless("expect: name at least one forgery, and only those of this scenario");
        }
    }
    Ok(scenario)
}

/// True when no two are equal.
fn once<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.into_iter().all(|item| seen.insert(item))
}

/// The scenarios in the binary.
pub fn shipped() -> Result<Vec<Scenario>, ScenarioError> {
    SHIPPED.iter().map(|text| parse("(shipped)", text)).collect()
}

/// Its name.
pub const POSITIVE_CONTROL: &str = "positive-control";

/// The scenario that is added to a run without a positive control.
pub fn positive_control() -> Result<Scenario, ScenarioError> {
    parse("(shipped)", include_str!("../scenarios/positive-control.toml"))
}

/// The scenarios asked for: shipped ones by name, others by file; all shipped
/// ones when none is named.
pub fn choose(names: &[String]) -> Result<Vec<Scenario>, ScenarioError> {
    let shipped = shipped()?;
    if names.is_empty() {
        return Ok(shipped);
    }
    names
        .iter()
        .map(|name| {
            if std::path::Path::new(name).extension().is_some_and(|e| e == "toml") {
                let text = std::fs::read_to_string(name)
                    .map_err(|source| ScenarioError::Read { file: name.clone(), source })?;
                return parse(name, &text);
            }
            shipped
                .iter()
                .find(|s| s.name == *name)
                .cloned()
                .ok_or_else(|| ScenarioError::Unknown { name: name.clone() })
        })
        .collect()
}
