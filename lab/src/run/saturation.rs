//! Runs the saturation experiment. [`mod@steps`] runs the steps, [`eviction`], [`half_open`], `pace` and
//! `tables` some of them, in places that [`stage`] builds; [`streams`] are the connections that were
//! there before.

pub mod eviction;
pub mod half_open;
mod pace;
pub mod stage;
pub mod steps;
pub mod streams;
pub mod tables;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use crate::document::lab::{CommandList, Path as NetPath};
use canary_testbed::exec::ExecError;
use canary_testbed::testbed::TestbedError;
use canary_testbed::topology::{Step, Topology};

use super::host_table::Control;
use super::setting::{Setting, broken_off};
use crate::observed::saturation::Filled;
use crate::scenario::saturation::Saturation;
use steps::Sequence;

/// Runs it. Without `control` the host's limit is what it is.
#[must_use]
pub fn run(
    name: &str,
    s: &Saturation,
    setting: &Setting,
    dir: &Path,
    prefix: &str,
    control: Option<&Control>,
) -> Filled {
    let begun = Instant::now();
    let dir = dir.join("cells").join(name);
    let mut filled = Filled::default();
    let mut sequence = Sequence::new(name, s, setting, &dir, prefix, begun);
    // What was seen before a panic is kept, as it is before an error.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        sequence.run(control, &mut filled.timeline, &mut filled.facts)
    }));
    let told = match ended {
        Ok(Err(e)) if matches!(e, TestbedError::Exec(ExecError::Interrupted(_))) => {
            filled.broken = Some(e.to_string());
            return filled;
        }
        Ok(ended) => ended.map_err(|e| e.to_string()),
        Err(_) => broken_off(),
    };
    if let Err(why) = told {
        filled.broken = Some(why);
        filled.timeline.reasons.push("the run broke off".to_owned());
    }
    filled
}

/// What to type to build its hosts.
#[must_use]
pub fn commands() -> CommandList {
    CommandList {
        title: "hosts and links; the Service's further ports are in cells/saturation".to_owned(),
        lines: stage::topology(Topology::new(NetPath::SameNode, ""))
            .steps
            .iter()
            .map(Step::shell)
            .collect(),
    }
}
