//! Whether what was seen is what was expected: pure. `cell`, `cause` and `saturation`
//! judge what ran, `mends` compares mends, `witness` compares
//! with the kernel's own words, `ledger` keeps a run's account, [`rows`] folds cells into tables.

pub(crate) mod cause;
pub(crate) mod cell;
pub(crate) mod ledger;
pub(crate) mod mends;
pub mod rows;
pub(crate) mod saturation;
pub(crate) mod witness;

use crate::document::lab::{Judgement, Path, PositiveControl, ProxyMode, ScenarioResult};
use canary_record::names::{Direction, Forgery};

use crate::scenario::POSITIVE_CONTROL;

/// The unprotected ClusterIP cells of the run.
pub(crate) fn positive_control(scenarios: &[ScenarioResult]) -> PositiveControl {
    let mut control = PositiveControl::default();
    let cells = scenarios.iter().flat_map(|s| &s.cells);
    for cell in cells.filter(|c| {
        (c.path, c.direction) == (Path::ClusterIp, Direction::ServerToClient)
            && c.protections.is_empty()
            && c.proxy_mode != ProxyMode::Ipvs
    }) {
        for f in cell.forgeries.iter().filter(|f| f.forgery == Forgery::AboveWindow) {
            control.forged += f.forged;
            control.killed += f.counts.killed;
        }
    }
    control.held = control.forged > 0 && control.killed == control.forged;
    control
}

pub(crate) fn conclude(
    scenarios: &[ScenarioResult],
    control: &PositiveControl,
) -> (Judgement, Vec<String>) {
    let mut reasons = Vec::new();
    let mut judgement = scenarios
        .iter()
        .map(|s| s.judgement)
        .reduce(Judgement::worse)
        .unwrap_or(Judgement::Inconclusive);
    if !control.held {
        judgement = Judgement::Inconclusive;
        reasons.push(format!(
            "no positive control: on an unprotected ClusterIP path {} of {} above-window segments \
             reset their connection, so this run could not have found the fault",
            control.killed, control.forged
        ));
    }
    for s in scenarios {
        reasons.extend(s.reasons.iter().map(|r| format!("{}: {r}", s.called())));
        for c in s.cells.iter().filter(|c| c.judgement != Judgement::AsExpected) {
            reasons.extend(c.reasons.iter().map(|r| format!("{}: {r}", c.id)));
        }
    }
    // A scenario skipped with its reason does not make the rest worthless; but the control that
    // was added to it is no rest.
    let proved =
        |s: &ScenarioResult| s.judgement == Judgement::AsExpected && s.name != POSITIVE_CONTROL;
    if judgement == Judgement::Skipped && control.held && scenarios.iter().any(proved) {
        judgement = Judgement::AsExpected;
    }
    (judgement, reasons)
}
