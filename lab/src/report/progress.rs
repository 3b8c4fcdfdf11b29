//! What stderr says while the lab works: one live line on a terminal, with what
//! is not as expected kept above it; elsewhere a line for each cell.

use std::io::IsTerminal as _;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::document::lab::{CellResult, Judgement};
use crate::wrong::say;

pub(crate) struct Progress {
    begun: Instant,
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target =
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("[{pos:>3}/{len}] {elapsed:>4}  {wide_msg}")
            .unwrap_or_else(|e| unreachable!("the template is constant: {e}"));
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style);
        Self { begun: Instant::now(), bar, terminal }
    }

    /// The number of cells to come, and of cases, which are told of when their scenario has ended.
    pub(crate) fn begin(&mut self, total: usize, cases: usize) {
        self.bar.set_length(total as u64);
        let mut text = super::words::count(total as u64, "cell", "cells");
        if cases > 0 {
            text += " and ";
            text += &super::words::count(cases as u64, "case", "cases");
        }
        text += " to run";
        if self.terminal { self.bar.set_message(text) } else { say(text) }
    }

    pub(crate) fn cell(&mut self, cell: &CellResult) {
        self.bar.inc(1);
        let text = format!("{:<12} {}", cell.judgement, cell.id);
        let whole = || {
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let doubts = if cell.reasons.is_empty() { "" } else { ": " };
            format!(
                "[{done:>3}/{all}] {:>5.1}s  {text}{doubts}{}",
                self.begun.elapsed().as_secs_f64(),
                cell.reasons.join("; ")
            )
        };
        if !self.terminal {
            say(whole());
        } else if cell.judgement != Judgement::AsExpected {
            self.bar.suspend(|| say(whole()));
        }
        self.bar.set_message(text);
    }

    pub(crate) fn end(&mut self) {
        self.bar.abandon();
    }
}
