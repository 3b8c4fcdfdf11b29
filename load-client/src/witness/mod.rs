//! Which of this node's connections an INVALID segment ended: the kernel's own words on NFLOG,
//! or captures, attributed segment by segment.
//!
//! [`reason`], [`packet`], [`attribute`] and [`core`] are pure; [`nflog`] alone listens, [`sysctl`]
//! alone changes the kernel.

pub mod attribute;
pub mod core;
pub mod nflog;
pub mod packet;
pub mod reason;
pub mod report;
pub mod run;
pub mod show;
pub mod sysctl;

use std::io::IsTerminal as _;
use std::sync::Arc;

use canary_record::names::EndedBy;
use canary_record::result::witness::{Source, WitnessResult};
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;

use crate::cli::WitnessArgs;
use crate::observe::Reader;
use crate::report::Report;

/// Watches this network namespace until the end of `--duration` or a signal.
pub async fn watch(
    args: &WitnessArgs,
    report: &Report,
    shutdown: &mut Shutdown,
    admin: Option<&Arc<Admin>>,
) -> WitnessResult {
    let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    let watch = match run::Watch::begin(&args.sysctl_dir, &args.state_dir, terminal) {
        Ok(watch) => watch,
        Err(e) => {
            eprintln!("error: cannot watch: {e}");
            let why = format!("cannot watch: {e}");
            return self::report::empty(report.run(EndedBy::Error), Source::Kernel, why);
        }
    };
    let mut reader = Reader::new();
    let before = reader.look(0.0);
    if let Some(admin) = admin {
        admin.set_ready(true);
    }
    tracing::info!("ready");
    let show = show::Show::new(admin.is_some(), terminal);
    let watched = watch.until(args.duration, args.interval, shutdown, show).await;
    let conntrack = before.zip(reader.look(0.0)).map(|(before, after)| {
        let (before, after) = (before.sample, after.sample);
        self::report::Conntrack {
            grown: after.counters.since(before.counters),
            entries: (before.entries, after.entries),
        }
    });
    let run = report.run(watched.ended_by);
    self::report::of_watch(watched, run, conntrack)
}
