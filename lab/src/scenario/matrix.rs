//! Paths under protections, each a cell with what should become of forged segments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::document::lab::{Path, Profile, Protections, ProxyMode, Seen};
use canary_record::names::{Direction, Forgery, OldSegments};
use canary_wire::segment::Family;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Checked;
use super::cause::{proves, twice};

/// The cells that show a claim, and what they should show.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Matrix {
    /// The way from client to server.
    pub path: Path,
    /// Which way segments are forged.
    #[serde(default)]
    pub direction: Direction,
    /// IP families, each a cell of its own.
    pub families: Vec<Family>,
    /// Proxy modes, each a cell of its own.
    pub proxy_modes: Vec<ProxyMode>,
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
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CellPlan {
    /// What is set; none for an unprotected path.
    #[serde(default)]
    pub protections: Protections,
    /// What should be seen.
    pub expect: Expectation,
}

/// What should be seen of each forgery.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(untagged)]
pub enum Expectation {
    /// A whole row by its name.
    Profile(Profile),
    /// Forgery by forgery, whatever the kernel's generation.
    Each(BTreeMap<Forgery, Seen>),
}

/// By hand, so that a wrong name is told as that, with its place.
impl<'de> Deserialize<'de> for Expectation {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Expectation;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row's name, or what should be seen of each forgery")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Expectation, E> {
                Profile::deserialize(name.into_deserializer()).map(Expectation::Profile)
            }
            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Expectation, M::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(map)).map(Expectation::Each)
            }
        }
        from.deserialize_any(Either)
    }
}

impl Expectation {
    /// What should be seen of `forgery`. While the kernel's generation is not
    /// known, nothing is expected of what depends on it.
    pub(crate) fn of(&self, forgery: Forgery, kernel: Option<OldSegments>) -> Option<Seen> {
        match self {
            Self::Each(map) => map.get(&forgery).copied(),
            Self::Profile(profile) => row(*profile, forgery, kernel),
        }
    }

    /// Whether what should be seen of `forgery` depends on the kernel's generation.
    pub(crate) fn depends_on_generation(&self, forgery: Forgery) -> bool {
        [OldSegments::Ignored, OldSegments::Invalid].map(|k| self.of(forgery, Some(k)))
            != [self.of(forgery, None); 2]
    }

    /// Whether no connection should come to be.
    pub(crate) fn unconnected(&self) -> bool {
        match self {
            Self::Profile(profile) => *profile == Profile::NoConnection,
            Self::Each(each) => each.values().all(|seen| *seen == Seen::NoConnection),
        }
    }

    /// The row that is expected, where it is one.
    pub(crate) fn profile(&self) -> Option<Profile> {
        match self {
            Self::Profile(profile) => Some(*profile),
            Self::Each(_) => None,
        }
    }
}

/// The table of profile, forgery and outcome (nf_conntrack_proto_tcp.c:
/// tcp_in_window(), tcp_error()).
pub(crate) fn row(profile: Profile, forgery: Forgery, kernel: Option<OldSegments>) -> Option<Seen> {
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

impl Matrix {
    /// Its cells, each proxy mode and family counted.
    pub(crate) fn cells(&self) -> usize {
        self.proxy_modes.len() * self.families.len() * self.cells.len()
    }

    /// Whether it is of what not every kernel has.
    pub(crate) fn extra(&self) -> bool {
        self.proxy_modes.contains(&ProxyMode::Ipvs)
    }

    /// Whether a cell of it is what the positive control is counted on.
    pub(crate) fn has_control(&self) -> bool {
        (self.path, self.direction) == (Path::ClusterIp, Direction::ServerToClient)
            && !self.extra()
            && self.forgeries.contains(&Forgery::AboveWindow)
            && self.cells.iter().any(|c| c.protections.is_empty())
    }

    /// Whether a cell of it can tell what this kernel does with segments below the window.
    pub(crate) fn tells_generation(&self) -> bool {
        self.has_control() && self.forgeries.contains(&Forgery::BelowWindow)
    }

    /// Whether the expectation of a cell depends on that.
    pub(crate) fn depends_on_generation(&self, cell: &CellPlan) -> bool {
        self.forgeries.iter().any(|f| cell.expect.depends_on_generation(*f))
    }
}

/// Whether a row says that out-of-window segments arrive.
const fn lets_pass(profile: Profile) -> bool {
    matches!(profile, Profile::LiberalOnly | Profile::LiberalAndDropped | Profile::NotTranslated)
}

/// A row that these forgeries cannot tell from the expected one on some kernel: a cell would show
/// either. Why out-of-window segments arrive is told apart by what is said of it.
fn alike(expected: Profile, forgeries: &[Forgery]) -> Option<Profile> {
    let same = |other: Profile| {
        [OldSegments::Ignored, OldSegments::Invalid].into_iter().any(|kernel| {
            let seen = |profile, f: &Forgery| row(profile, *f, Some(kernel));
            forgeries.iter().all(|f| seen(expected, f) == seen(other, f))
        })
    };
    let apart = |other: &Profile| *other != expected && !(lets_pass(*other) && lets_pass(expected));
    Profile::ALL.iter().copied().filter(apart).find(|other| same(*other))
}

impl Checked for Matrix {
    fn check(&self) -> Result<(), String> {
        for (field, empty) in [
            ("families", self.families.is_empty()),
            ("proxy-modes", self.proxy_modes.is_empty()),
            ("forgeries", self.forgeries.is_empty()),
            ("cell", self.cells.is_empty()),
        ] {
            if empty {
                return Err(format!("{field}: name at least one"));
            }
        }
        if self.direction == Direction::Both {
            return Err("direction: use server-to-client or client-to-server".to_owned());
        }
        if !(1..=1000).contains(&self.connections) {
            return Err("connections: use 1 to 1000".to_owned());
        }
        let sets = self.cells.iter().map(|c| c.protections.iter().collect::<BTreeSet<_>>());
        for (field, twice) in [
            ("forgeries", !once(&self.forgeries)),
            ("families", !once(&self.families)),
            ("proxy-modes", !once(&self.proxy_modes)),
            ("cell: protections", !once(sets)),
        ] {
            if twice {
                return Err(format!("{field}: name each once"));
            }
        }
        for cell in &self.cells {
            if let Some(one) = twice(&cell.protections) {
                return Err(format!(
                    "cell: protections: '{one}' is there twice on a node: name each once"
                ));
            }
            if let Some(row) = cell.expect.profile()
                && let Some(other) = alike(row, &self.forgeries)
            {
                return Err(format!(
                    "forgeries: '{row}' and '{other}' are the same of these on some kernel: add above-window, \
                     or name in expect what each comes to"
                ));
            }
            if let Expectation::Each(map) = &cell.expect {
                proves(map).map_err(|what| format!("cell: expect: {what}"))?;
            }
            if let Expectation::Each(map) = &cell.expect
                && (map.is_empty() || map.keys().any(|f| !self.forgeries.contains(f)))
            {
                return Err(
                    "expect: name at least one forgery, and only those of this scenario".to_owned()
                );
            }
        }
        Ok(())
    }
}

/// True when no two are equal.
fn once<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.into_iter().all(|item| seen.insert(item))
}
