//! Which of this node's connections an INVALID segment ended: the kernel's own words on NFLOG,
//! or captures, attributed segment by segment.
//!
//! [`reason`], [`attribute`], [`core`], [`found`], [`pcap`], [`offline`] and [`page`] are pure; [`nflog`] alone listens,
//! [`sysctl`] alone changes the kernel.

mod attribute;
mod core;
mod found;
mod nflog;
mod offline;
mod page;
mod pcap;
mod reason;
pub(crate) mod report;
mod run;
mod show;
mod sysctl;

use std::fs::File;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use canary_record::names::EndedBy;
use canary_record::result::witness::{Source, WitnessResult};
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;

use crate::cli::WitnessArgs;
use crate::live::Live;
use crate::observe::Reader;
use crate::report::Report;

use self::found::Found;

/// Watches this network namespace until the end of `--duration` or a signal.
pub(crate) async fn watch(
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
            let weak = vec![format!("cannot watch: {e}")];
            let (nothing, run) = (Found::default(), report.run(EndedBy::Error));
            return self::report::of(&nothing, run, Source::Kernel, weak, 0.0);
        }
    };
    let mut reader = Reader::default();
    let before = reader.look(0.0);
    if let Some(admin) = admin {
        let (view, host) = (watch.view.clone(), report.run(EndedBy::Running).host);
        admin.set_page(move || page::render(&view.borrow(), &host));
        admin.set_ready(true);
    }
    tracing::info!("ready");
    let view = watch.view.clone();
    let shown = watch.view.clone();
    let live = Live::begin(args.interval, admin, move || {
        show::publish(&shown.borrow());
        show::table(&shown.borrow())
    });
    let watched = watch.until(args.duration, shutdown).await;
    drop(live);
    show::publish(&view.borrow());
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

/// Captures that are open and have a header.
pub(crate) type Captures = pcap::Merged<File>;

/// Opens captures, where there are any; an error names the file.
pub(crate) fn open(files: &[PathBuf]) -> Result<Option<Captures>, String> {
    let open = |path: &PathBuf| {
        let file = File::open(path).map_err(|e| format!("--pcap {}: {e}", path.display()))?;
        pcap::Reader::new(file).map_err(|e| format!("--pcap {}: {e}", path.display()))
    };
    let readers = files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    Ok((!readers.is_empty()).then(|| pcap::Merged::new(readers)))
}

/// Reads captures to their end.
pub(crate) fn read(mut captures: Captures, files: &[String], report: &Report) -> WitnessResult {
    let mut offline = offline::Offline::default();
    for packet in captures.by_ref() {
        offline.packet(&packet);
    }
    let mut weak: Vec<_> =
        captures.damaged().map(|(n, why)| format!("{} ends early: {why}", files[n])).collect();
    if offline.unknown_links > 0 {
        weak.push(format!(
            "{} packets have a link layer that is not known here (Ethernet, SLL, SLL2, raw IP and loopback are)",
            offline.unknown_links
        ));
    }
    self::report::of_captures(offline, report.run(EndedBy::Completed), weak)
}

#[cfg(test)]
mod tests {
    mod captures;
    mod messages;
    mod model;
}
