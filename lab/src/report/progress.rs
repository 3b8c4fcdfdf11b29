//! What stderr says while the lab works: one live line on a terminal, with what
//! is not as expected kept above it; elsewhere a line for each cell.

use indicatif::{ProgressBar, ProgressStyle};

use crate::document::lab::{CellResult, Judgement};
use crate::wrong::say;

/// Hidden where stderr is no terminal, or a dumb one: lines alone then.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new() -> Self {
        let style = ProgressStyle::with_template("[{pos:>3}/{len}] {elapsed:>4}  {wide_msg}")
            .unwrap_or_else(|e| unreachable!("the template is constant: {e}"));
        Self(ProgressBar::new(0).with_style(style))
    }

    /// The number of cells to come, and of cases, which are told of when their scenario has ended.
    pub(crate) fn begin(&mut self, total: usize, cases: usize) {
        self.0.set_length(total as u64);
        let mut text = super::words::count(total as u64, "cell", "cells");
        if cases > 0 {
            text += " and ";
            text += &super::words::count(cases as u64, "case", "cases");
        }
        text += " to run";
        if self.0.is_hidden() { say(text) } else { self.0.set_message(text) }
    }

    pub(crate) fn cell(&mut self, cell: &CellResult) {
        let Self(bar) = self;
        bar.inc(1);
        let text = format!("{:<12} {}", cell.judgement, cell.id);
        if bar.is_hidden() || cell.judgement != Judgement::AsExpected {
            let (done, all) = (bar.position(), bar.length().unwrap_or(0));
            let doubts = if cell.reasons.is_empty() { "" } else { ": " };
            let whole = format!(
                "[{done:>3}/{all}] {:>5.1}s  {text}{doubts}{}",
                bar.elapsed().as_secs_f64(),
                cell.reasons.join("; ")
            );
            bar.suspend(|| say(whole));
        }
        bar.set_message(text);
    }

    pub(crate) fn end(&mut self) {
        self.0.abandon();
    }
}
