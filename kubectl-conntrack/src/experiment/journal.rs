//! What an experiment writes down while it runs, so that nothing is lost however it ends: events
//! and samples as `conntrack_lab::cluster` reads them.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use canary_record::result::load::LoadResult;
use conntrack_lab::cluster::journal::{Event, Fact};
use tokio::time::Instant;

use crate::api::Stop;
use crate::run;

/// A run's own folder.
#[derive(Debug)]
pub(crate) struct Journal {
    raw: PathBuf,
    events: File,
    samples: File,
    began: Instant,
    steps: usize,
    /// Samples in a row that could not be read.
    gap: u32,
}

impl Journal {
    /// Begins one in `dir`, which must not hold another.
    pub(crate) fn begin(dir: &Path) -> Result<Self, Stop> {
        let raw = dir.join("raw");
        std::fs::create_dir_all(&raw).map_err(Stop::unsaved(&raw))?;
        let open = |name: &str| {
            let path = raw.join(name);
            let file = OpenOptions::new().append(true).create_new(true).open(&path);
            file.map_err(Stop::unsaved(&path))
        };
        let (events, samples) = (open("journal")?, open("samples")?);
        Ok(Self { raw, events, samples, began: Instant::now(), steps: 0, gap: 0 })
    }

    fn seconds(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// How many steps have begun, less one: the number of the last one.
    pub(crate) const fn steps(&self) -> usize {
        self.steps.saturating_sub(1)
    }

    pub(crate) fn wrote(&mut self, event: &Event) -> Result<(), Stop> {
        self.steps += usize::from(matches!(event, Event::Step(..)));
        let line = format!("{}\n", serde_json::json!([self.seconds(), event]));
        let unsaved = Stop::unsaved(&self.raw.join("journal"));
        self.events.write_all(line.as_bytes()).map_err(unsaved)
    }

    /// About the whole run.
    pub(crate) fn record(&mut self, fact: Fact, value: &dyn Display) -> Result<(), Stop> {
        self.wrote(&Event::Run(fact, value.to_string()))
    }

    /// What makes the run inconclusive.
    pub(crate) fn doubt(&mut self, why: &str) -> Result<(), Stop> {
        eprintln!("doubt: {why}");
        self.wrote(&Event::Doubt(why.to_owned()))
    }

    /// The programs' metrics at this moment; none where they could not be read.
    pub(crate) fn sample(&mut self, metrics: Option<String>) -> Result<(), Stop> {
        let Some(metrics) = metrics else {
            self.gap += 1;
            return Ok(());
        };
        if self.gap > 1 {
            let gap = std::mem::take(&mut self.gap);
            self.doubt(&format!(
                "at {} s: {gap} samples in a row could not be read (API server, node or pod away)",
                self.seconds()
            ))?;
        }
        self.gap = 0;
        let text = format!("sample {}\n{metrics}", self.seconds());
        let unsaved = Stop::unsaved(&self.raw.join("samples"));
        self.samples.write_all(text.as_bytes()).map_err(unsaved)
    }

    pub(crate) fn result(&self, step: usize, pod: &str, result: &LoadResult) -> Result<(), Stop> {
        run::save(&self.raw.join(format!("step-{step}")), &format!("{pod}.json"), result)
    }
}
