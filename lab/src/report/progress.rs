//! One line a cell on stderr while the lab works.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use crate::document::lab::{CellResult, Judgement};

/// Progress of a run.
pub struct Progress {
    begun: Instant,
    total: usize,
    done: usize,
    terminal: bool,
}

impl Progress {
    /// Nothing done yet.
    #[must_use]
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { begun: Instant::now(), total: 0, done: 0, terminal }
    }

    /// The number of cells to come.
    pub fn begin(&mut self, total: usize) {
        self.total = total;
        self.line(&super::markup::count(total as u64, "cell to run", "cells to run"));
    }

    /// One more cell is done.
    pub fn cell(&mut self, cell: &CellResult) {
        self.done += 1;
        let text = format!(
            "[{:>3}/{}] {:>5.1}s  {:<12} {}",
            self.done,
            self.total,
            self.begun.elapsed().as_secs_f64(),
            cell.judgement,
            cell.id
        );
        if cell.judgement == Judgement::AsExpected {
            self.line(&text);
        } else {
            let text = format!("{text}: {}", cell.reasons.join("; "));
            self.write(&text);
            self.keep();
        }
    }

    /// Everything is done.
    pub fn end(&mut self) {
        self.keep();
    }

    /// A line that the next one takes the place of: one that the terminal breaks could not be
    /// written over.
    fn line(&self, text: &str) {
        let width = terminal_size::terminal_size_of(std::io::stderr())
            .map_or(usize::MAX, |(width, _)| usize::from(width.0));
        self.write(&text.chars().take(width.saturating_sub(1)).collect::<String>());
    }

    fn write(&self, text: &str) {
        // A closed stderr must not stop the run.
        let mut err = std::io::stderr().lock();
        let _ = if self.terminal { write!(err, "\r\x1b[K{text}") } else { writeln!(err, "{text}") };
    }

    fn keep(&self) {
        if self.terminal {
            let _ = writeln!(std::io::stderr().lock());
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
