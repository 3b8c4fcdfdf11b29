//! Cells into rows: repetitions are added up, IP families and front ends that
//! saw the same share a row. Pure.

use std::collections::BTreeMap;

use crate::document::lab::{
    At, CellResult, ForgeryResult, FrontEnd, Judgement, LabResult, Path, Protection, Seen,
};
use canary_record::names::{Forgery, ProbeEnd, UnknownReason};
use canary_wire::segment::Family;

/// Rules and IP family.
pub type Variant = (FrontEnd, Family);

/// A row of a scenario's table.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// Names the row among its scenario's: `forward-drop+input-drop`, `none`, `liberal~2`.
    pub id: String,
    /// The way from client to server.
    pub path: Path,
    /// What protects, sorted.
    pub protections: Vec<Protection>,
    /// The front ends and families that this row stands for.
    pub variants: Vec<Variant>,
    /// False when another row of the same path and protections saw something else.
    pub unanimous: bool,
    /// The worst of its cells.
    pub judgement: Judgement,
    /// The sums over its cells.
    pub forgeries: BTreeMap<Forgery, Sum>,
    /// Its cells.
    pub cells: Vec<&'a CellResult>,
}

/// What became of one forgery in all cells of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// What every cell saw; mixed where they do not agree.
    pub seen: Option<Seen>,
    /// What was expected.
    pub expected: Option<Seen>,
    /// Segments forged.
    pub forged: u64,
    /// Leaked, killed or not.
    pub leaked: u64,
    /// Leaked, and the connection reset.
    pub killed: u64,
    /// Delivered.
    pub delivered: u64,
    /// Dropped.
    pub dropped: u64,
    /// Not proved, by reason.
    pub unknown: BTreeMap<UnknownReason, u64>,
}

impl From<&ForgeryResult> for Sum {
    fn from(f: &ForgeryResult) -> Self {
        let mut sum = Self::default();
        sum.add(f);
        sum
    }
}

impl Sum {
    fn add(&mut self, f: &ForgeryResult) {
        self.seen = match self.seen {
            None => Some(f.seen),
            Some(seen) if seen == f.seen => Some(seen),
            Some(_) => Some(Seen::Mixed),
        };
        self.expected = self.expected.or(f.expected);
        self.forged += f.forged;
        self.leaked += f.leaked;
        self.killed += f.killed;
        self.delivered += f.delivered;
        self.dropped += f.dropped;
        for (reason, n) in &f.unknown {
            *self.unknown.entry(*reason).or_default() += n;
        }
    }

    /// What became of how many, in words.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("killed", self.killed),
            ("leaked, harmless", self.leaked.saturating_sub(self.killed)),
            ("delivered", self.delivered),
            ("dropped", self.dropped),
            ("not proved", self.unknown.values().sum()),
        ]
    }

    /// How many of the forged bear out what was seen.
    #[must_use]
    pub fn agreeing(&self) -> u64 {
        match self.seen {
            Some(Seen::Kills) => self.killed,
            Some(Seen::Leaked) => self.leaked,
            Some(Seen::Delivered | Seen::KillsLater | Seen::Hangs) => self.delivered,
            Some(Seen::Dropped) => self.dropped,
            Some(Seen::NoConnection | Seen::Mixed) | None => 0,
        }
    }
}

/// What a path under a protection exposes its connections to; the worst last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exposure {
    /// No forged segment leaked.
    Safe,
    /// No connection can be made.
    NoConnection,
    /// Nothing was proved.
    NotProved,
    /// Segments leak, but none that was forged can reset a connection.
    Leaks,
    /// Connections hang.
    Hangs,
    /// Connections are reset, by these.
    Resets(Vec<Forgery>),
}

/// The set of protections, in an order that makes equal sets equal.
#[must_use]
pub fn sorted(set: &[Protection]) -> Vec<Protection> {
    let mut set = set.to_vec();
    set.sort_unstable();
    set.dedup();
    set
}

/// The rows of one scenario's cells, in the order in which they first appear.
#[must_use]
pub fn rows(cells: &[CellResult]) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for (path, protections) in settings(cells.iter()) {
        let of = |c: &&CellResult| c.path == path && sorted(&c.protections) == protections;
        let cells: Vec<_> = cells.iter().filter(of).collect();
        let mut variants: Vec<Variant> = Vec::new();
        for cell in &cells {
            if !variants.contains(&(cell.front_end, cell.family)) {
                variants.push((cell.front_end, cell.family));
            }
        }
        let first = rows.len();
        for variant in variants {
            let own: Vec<_> =
                cells.iter().copied().filter(|c| (c.front_end, c.family) == variant).collect();
            let row = row(path, &protections, variant, own);
            match rows[first..].iter_mut().find(|r| alike(r, &row)) {
                Some(same) => join(same, row),
                None => rows.push(row),
            }
        }
        let unanimous = rows.len() - first == 1;
        for row in &mut rows[first..] {
            row.unanimous = unanimous;
        }
    }
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for row in &mut rows {
        let names: Vec<_> = row.protections.iter().map(ToString::to_string).collect();
        let name = if names.is_empty() { "none".to_owned() } else { names.join("+") };
        let nth = taken.entry(name.clone()).or_default();
        *nth += 1;
        row.id = if *nth == 1 { name } else { format!("{name}~{nth}") };
    }
    rows
}

/// Every path with its sets of protections, each once.
fn settings<'a>(cells: impl Iterator<Item = &'a CellResult>) -> Vec<(Path, Vec<Protection>)> {
    let mut found = Vec::new();
    for cell in cells {
        let setting = (cell.path, sorted(&cell.protections));
        if !found.contains(&setting) {
            found.push(setting);
        }
    }
    found
}

fn row<'a>(
    path: Path,
    protections: &[Protection],
    variant: Variant,
    cells: Vec<&'a CellResult>,
) -> Row<'a> {
    let mut forgeries: BTreeMap<Forgery, Sum> = BTreeMap::new();
    for f in cells.iter().flat_map(|c| &c.forgeries) {
        forgeries.entry(f.forgery).or_default().add(f);
    }
    let judgement = cells.iter().map(|c| c.judgement).reduce(Judgement::worse);
    Row {
        id: String::new(),
        path,
        protections: protections.to_vec(),
        variants: vec![variant],
        unanimous: true,
        judgement: judgement.unwrap_or(Judgement::Skipped),
        forgeries,
        cells,
    }
}

fn alike(a: &Row<'_>, b: &Row<'_>) -> bool {
    let seen = |r: &Row<'_>| -> Vec<_> {
        r.forgeries.iter().map(|(f, s)| (*f, s.seen, s.expected)).collect()
    };
    a.judgement == b.judgement && seen(a) == seen(b)
}

fn join<'a>(row: &mut Row<'a>, other: Row<'a>) {
    row.variants.extend(other.variants);
    for f in other.cells.iter().flat_map(|c| &c.forgeries) {
        row.forgeries.entry(f.forgery).or_default().add(f);
    }
    row.cells.extend(other.cells);
}

impl Row<'_> {
    /// What this row exposes connections to. `overshoot`, the research forgery,
    /// does not count.
    #[must_use]
    pub fn exposure(&self) -> Exposure {
        let sums = || {
            self.forgeries.iter().filter(|(f, _)| **f != Forgery::Overshoot).map(|(f, s)| (*f, s))
        };
        let killers: Vec<_> = sums().filter(|(_, s)| s.killed > 0).map(|(f, _)| f).collect();
        let hung: u64 = self.cells.iter().filter_map(|c| c.client.get(&ProbeEnd::Hung)).sum();
        let overshoot = self.forgeries.contains_key(&Forgery::Overshoot);
        if !killers.is_empty() {
            Exposure::Resets(killers)
        } else if hung > 0 && !overshoot {
            Exposure::Hangs
        } else if sums().any(|(_, s)| s.leaked > 0) {
            Exposure::Leaks
        } else if sums().any(|(_, s)| s.seen == Some(Seen::NoConnection)) {
            Exposure::NoConnection
        } else if sums().next().is_none()
            || matches!(self.judgement, Judgement::Inconclusive | Judgement::Skipped)
            || sums().any(|(_, s)| s.seen == Some(Seen::Mixed))
        {
            Exposure::NotProved
        } else {
            Exposure::Safe
        }
    }
}

/// Every path by every set of protections, over all scenarios: the worst of each.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// Sets of protections, in the order in which they first appear.
    pub protections: Vec<Vec<Protection>>,
    /// A path, and for each set of protections what was found, if it was tried.
    pub paths: Vec<(Path, Vec<Option<Found>>)>,
}

/// What a path under a set of protections exposes to, and the row that says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The worst of its rows.
    pub exposure: Exposure,
    /// The scenario of that row.
    pub scenario: String,
    /// [`Row::id`]
    pub row: String,
}

/// Folds a whole run: the protections that are the same on every node, or those
/// that one node alone has.
#[must_use]
pub fn overview(result: &LabResult, everywhere: bool) -> Overview {
    let forges = |c: &&CellResult| {
        c.forgeries.is_empty() || c.forgeries.iter().any(|f| f.forgery != Forgery::Overshoot)
    };
    let scenarios = result.scenarios.iter().filter(|s| s.timeline.is_none());
    let mut found: Vec<(Path, Vec<Protection>, Found)> = Vec::new();
    for scenario in scenarios {
        for row in rows(&scenario.cells) {
            let same = row.protections.iter().all(|p| p.at == At::Both);
            if same == everywhere && row.cells.iter().any(forges) {
                let (exposure, scenario) = (row.exposure(), scenario.name.clone());
                let at = Found { exposure, scenario, row: row.id };
                found.push((row.path, row.protections, at));
            }
        }
    }
    let mut overview = Overview::default();
    for (path, protections, _) in &found {
        if !overview.protections.contains(protections) {
            overview.protections.push(protections.clone());
        }
        if !overview.paths.iter().any(|(p, _)| p == path) {
            overview.paths.push((*path, Vec::new()));
        }
    }
    // By the number of protections, so that the table reads from bare to covered.
    overview.protections.sort_by_key(|set| (set.len(), set.clone()));
    for (path, columns) in &mut overview.paths {
        *columns = overview
            .protections
            .iter()
            .map(|set| {
                let of = |f: &&(Path, Vec<Protection>, Found)| f.0 == *path && f.1 == *set;
                found.iter().filter(of).map(|f| f.2.clone()).max()
            })
            .collect();
    }
    overview
}
