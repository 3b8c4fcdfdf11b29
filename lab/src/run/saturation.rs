//! Runs the saturation experiment. [`mod@steps`] runs the steps, [`eviction`], [`half_open`], `pace` and
//! `tables` some of them, in places that [`stage`] builds; [`streams`] are the connections that were
//! there before.

pub(crate) mod eviction;
pub(crate) mod half_open;
mod pace;
pub(crate) mod stage;
pub(crate) mod steps;
pub(crate) mod streams;
pub(crate) mod tables;

use std::path::Path;
use std::time::Instant;

use crate::document::lab::{CommandList, Path as NetPath};
use canary_testbed::topology::{Step, Topology};

use super::host_table::{self, Control};
use super::setting::{Setting, guarded};
use crate::observed::saturation::Filled;
use crate::scenario::saturation::Saturation;
use crate::wrong::say;

/// What all places of one experiment have in common.
#[derive(Clone, Copy)]
pub(crate) struct Experiment<'a> {
    pub(crate) name: &'a str,
    pub(crate) s: &'a Saturation,
    pub(crate) setting: &'a Setting,
    /// Each place's files are in a directory below.
    pub(crate) dir: &'a Path,
    /// The hosts' names begin so.
    pub(crate) prefix: &'a str,
    pub(crate) begun: Instant,
    /// The table's limit, where no step changes it.
    pub(crate) limit: u64,
}

impl Experiment<'_> {
    fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Progress: a step takes seconds, and one of them a minute.
    fn say(&self, title: &str) {
        say(format!("{:>7.1}s  {}: {title}", self.seconds(), self.name));
    }
}

/// Runs it. Without `control` the host's limit is what it is.
pub(crate) fn run(
    name: &str,
    s: &Saturation,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
    control: Option<&Control>,
) -> Filled {
    let mut filled = Filled::default();
    let (begun, dir) = (Instant::now(), &dir.join("cells").join(name));
    // What was seen before an error is kept.
    let ended = guarded(|| {
        let limit = host_table::max()?;
        let x = Experiment { name, s, setting, dir, prefix, begun, limit };
        steps::run(x, control, &mut filled)
    });
    if let Err(why) = ended {
        filled.broken = Some(why);
        if setting.interrupt.signalled().is_none() {
            filled.timeline.reasons.push("the run broke off".to_owned());
        }
    }
    filled
}

/// What to type to build its hosts.
pub(crate) fn commands() -> CommandList {
    let topology = stage::topology(Topology::new(NetPath::SameNode, ""));
    CommandList {
        title: "hosts and links; the Service's further ports are in cells/saturation".to_owned(),
        lines: topology.steps.iter().map(Step::shell).collect(),
    }
}
