//! Cells into rows: repetitions are added up, IP families and proxy modes that
//! saw the same share a row. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::lab::{
    At, CellResult, ForgeryResult, Judgement, LabResult, Path, Protections, ProxyMode, Seen,
};
use canary_record::names::{Direction, Forgery, ProbeEnd};
use canary_wire::segment::Family;

use crate::observed::together;

/// Rules and IP family.
pub type Variant = (ProxyMode, Family);

/// The way from client to server, and which way segments were forged.
pub type Route = (Path, Direction);

/// A row of a scenario's table.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// Names the row among its scenario's: `forward-drop+input-drop`, `none`, `liberal~2`.
    pub id: String,
    /// The way from client to server, and which way segments were forged.
    pub route: Route,
    /// What protects, sorted.
    pub protections: Protections,
    /// The proxy modes and families that this row stands for.
    pub variants: Vec<Variant>,
    /// False when another row of the same path and protections saw something else.
    pub unanimous: bool,
    /// The worst of its cells.
    pub judgement: Judgement,
    /// The sums over its cells.
    pub forgeries: BTreeMap<Forgery, ForgeryResult>,
    /// Its cells.
    pub cells: Vec<&'a CellResult>,
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

/// The rows of one scenario's cells, in the order in which they first appear.
pub(crate) fn rows(cells: &[CellResult]) -> Vec<Row<'_>> {
    // A row for each variant first; those of the same path and protections side by side.
    let mut groups: Vec<Vec<Row<'_>>> = Vec::new();
    for cell in cells {
        let row = Row::of(cell);
        let of = |r: &Row<'_>| r.route == row.route && r.protections == row.protections;
        match groups.iter_mut().find(|group| of(&group[0])) {
            None => groups.push(vec![row]),
            Some(group) => match group.iter_mut().find(|r| r.variants == row.variants) {
                Some(same) => same.join(row),
                None => group.push(row),
            },
        }
    }
    let mut rows = Vec::new();
    for group in groups {
        let first = rows.len();
        for row in group {
            match rows[first..].iter_mut().find(|r: &&mut Row<'_>| r.alike(&row)) {
                Some(same) => same.join(row),
                None => rows.push(row),
            }
        }
        let unanimous = rows.len() - first == 1;
        rows[first..].iter_mut().for_each(|row| row.unanimous = unanimous);
    }
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for row in &mut rows {
        let name = row.protections.to_string();
        let nth = taken.entry(name.clone()).or_default();
        *nth += 1;
        row.id = if *nth == 1 { name } else { format!("{name}~{nth}") };
    }
    rows
}

impl<'a> Row<'a> {
    fn of(cell: &'a CellResult) -> Self {
        Self {
            id: String::new(),
            route: (cell.path, cell.direction),
            protections: cell.protections.sorted(),
            variants: vec![(cell.proxy_mode, cell.family)],
            unanimous: true,
            judgement: cell.judgement,
            forgeries: cell.forgeries.iter().map(|f| (f.forgery, f.clone())).collect(),
            cells: vec![cell],
        }
    }

    fn alike(&self, other: &Self) -> bool {
        let seen = |r: &Self| -> Vec<_> {
            r.forgeries.iter().map(|(f, s)| (*f, s.seen, s.expected)).collect()
        };
        self.judgement == other.judgement && seen(self) == seen(other)
    }

    fn join(&mut self, other: Self) {
        let new = |v: &Variant| !self.variants.contains(v);
        let new: Vec<_> = other.variants.into_iter().filter(new).collect();
        self.variants.extend(new);
        self.judgement = self.judgement.worse(other.judgement);
        for (forgery, sum) in other.forgeries {
            let own = self.forgeries.entry(forgery);
            own.and_modify(|own| own.add(&sum)).or_insert(sum);
        }
        self.cells.extend(other.cells);
    }
}

impl Row<'_> {
    /// What this row exposes connections to. `overshoot`, the research forgery,
    /// does not count.
    pub(crate) fn exposure(&self) -> Exposure {
        let sums = || {
            self.forgeries.iter().filter(|(f, _)| **f != Forgery::Overshoot).map(|(f, s)| (*f, s))
        };
        let killers: Vec<_> = sums().filter(|(_, s)| s.counts.killed > 0).map(|(f, _)| f).collect();
        let hung: u64 = self.cells.iter().filter_map(|c| c.client.get(&ProbeEnd::Hung)).sum();
        let overshoot = self.forgeries.contains_key(&Forgery::Overshoot);
        if !killers.is_empty() {
            Exposure::Resets(killers)
        } else if hung > 0 && !overshoot {
            Exposure::Hangs
        } else if sums().any(|(_, s)| s.counts.leaked > 0) {
            Exposure::Leaks
        } else if sums().any(|(_, s)| s.seen == Seen::NoConnection) {
            Exposure::NoConnection
        } else if sums().next().is_none()
            || matches!(self.judgement, Judgement::Inconclusive | Judgement::Skipped)
            || sums().any(|(_, s)| s.seen == Seen::Mixed)
        {
            Exposure::NotProved
        } else {
            Exposure::Safe
        }
    }
}

/// Every path by every set of protections, over all scenarios: the worst of each.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Sets of protections, the smallest first.
    pub protections: Vec<Protections>,
    /// A way, and for each set of protections what was found, if it was tried.
    pub paths: Vec<(Route, Vec<Option<Found>>)>,
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
    let mut found = Vec::new();
    for scenario in scenarios {
        for row in rows(&scenario.cells) {
            let same = row.protections.iter().all(|p| p.at == At::Both);
            if same == everywhere && row.cells.iter().any(forges) {
                let (exposure, scenario) = (row.exposure(), scenario.name.clone());
                let at = Found { exposure, scenario, row: row.id };
                found.push((row.route, (row.protections, at)));
            }
        }
    }
    // By the number of protections, so that the table reads from bare to covered.
    let sets: BTreeSet<_> = found.iter().map(|(_, (set, _))| (set.len(), set.clone())).collect();
    let protections: Vec<_> = sets.into_iter().map(|(_, set)| set).collect();
    let paths = together(found).into_iter().map(|(route, all)| {
        let of = |set| all.iter().filter(move |(own, _)| own == set);
        let worst = |set| of(set).map(|(_, found)| found.clone()).max();
        (route, protections.iter().map(worst).collect())
    });
    Overview { paths: paths.collect(), protections }
}
