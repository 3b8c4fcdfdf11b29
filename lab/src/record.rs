//! Keeps what a run tells: in the account, on the screen, and in results.json while the run goes
//! on. Whoever finds that file after a run that was cut sees that it did not end, and what was
//! not run.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use crate::document::lab::LabResult;
use canary_record::names::EndedBy;
use canary_record::result::{Clock, Config, Run};
use canary_runtime::output::{OutputError, ResultFile};
use canary_testbed::exec::Interrupt;

use crate::judge::ledger::Ledger;
use crate::report::progress::Progress;
use crate::run::Event;

#[derive(Debug)]
pub(crate) struct Record {
    file: ResultFile,
    clock: Clock,
    interrupt: Interrupt,
    config: Config,
}

impl Record {
    pub(crate) fn prepare(
        dir: &Path,
        clock: Clock,
        interrupt: Interrupt,
        config: Config,
    ) -> Result<Self, OutputError> {
        let file = ResultFile::prepare(&dir.join("results.json"))?;
        Ok(Self { file, clock, interrupt, config })
    }

    /// The run so far: an end that did not come is an error's.
    pub(crate) fn so_far(&self) -> Run {
        self.run(EndedBy::Error)
    }

    /// Listens until the run has ended.
    pub(crate) fn listen(
        &self,
        told: &Receiver<Event>,
        ledger: &mut Ledger,
        progress: &mut Progress,
    ) {
        let (mut next, mut unwritten) = (Instant::now(), false);
        loop {
            let first = if unwritten {
                told.recv_timeout(next.saturating_duration_since(Instant::now()))
            } else {
                told.recv().map_err(RecvTimeoutError::from)
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                break;
            }
            unwritten = true;
            for event in first.into_iter().chain(told.try_iter()) {
                match event {
                    Event::Cell(done) => ledger.cell(*done).iter().for_each(|c| progress.cell(c)),
                    Event::Cause(n, repetition, seen, mended) => {
                        ledger.cause(n, repetition, &seen, &mended);
                    }
                    Event::Saturation(n, repetition, filled) => {
                        ledger.saturation(n, repetition, *filled);
                    }
                }
            }
            let begun = Instant::now();
            if begun >= next {
                // What could not be written may be written with the next; that the last is counts.
                let _ = self.file.write(ledger.result(self.so_far()));
                // The whole each time: for a twentieth of the time at most.
                (next, unwritten) = (Instant::now() + begun.elapsed() * 20, false);
            }
        }
        ledger.close().iter().for_each(|c| progress.cell(c));
    }

    pub(crate) fn end<'a>(
        &self,
        ledger: &'a mut Ledger,
    ) -> (&'a LabResult, Result<(), OutputError>) {
        let result = ledger.result(self.run(EndedBy::Completed));
        (result, self.file.write(result))
    }

    fn run(&self, ended_by: EndedBy) -> Run {
        let ended_by = self.interrupt.signalled().unwrap_or(ended_by);
        let config = self.config.clone();
        self.clock.run("conntrack-lab run", env!("CARGO_PKG_VERSION"), ended_by, config)
    }
}
