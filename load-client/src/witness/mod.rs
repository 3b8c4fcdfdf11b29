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
use std::io::{IsTerminal as _, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use canary_record::names::EndedBy;
use canary_record::result::Run;
use canary_record::result::witness::{Source, WitnessResult};
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;
use tokio::sync::watch;

use crate::cli::WitnessArgs;
use crate::live::Live;
use crate::observe::{Look, Reader};
use crate::report::Report;

use self::found::Found;
use self::report::Conntrack;
use self::show::View;

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
    let Run { kernel, host, .. } = report.run(EndedBy::Running);
    let so_far = Arc::new(SoFar::begin(watch.view.clone(), kernel));
    if let Some(admin) = admin {
        let so_far = Arc::clone(&so_far);
        admin.set_page(move || page::render(&so_far.view(), &host));
        admin.set_ready(true);
    }
    tracing::info!("ready");
    let shown = Arc::clone(&so_far);
    let live = Live::begin(args.interval, admin, move || {
        let view = shown.view();
        show::publish(&view);
        show::table(&view)
    });
    let watched = watch.until(args.duration, shutdown).await;
    drop(live);
    show::publish(&so_far.view());
    let run = report.run(watched.ended_by);
    self::report::of_watch(watched, run, so_far.conntrack())
}

/// A watch that goes on, and conntrack beside it.
struct SoFar {
    view: watch::Receiver<View>,
    kernel: String,
    reader: Mutex<Reader>,
    before: Option<Look>,
}

impl SoFar {
    fn begin(view: watch::Receiver<View>, kernel: String) -> Self {
        let mut reader = Reader::default();
        let before = reader.look(0.0);
        Self { view, kernel, reader: Mutex::new(reader), before }
    }

    fn conntrack(&self) -> Option<Conntrack> {
        // A look that panicked leaves nothing half done that the next one needs.
        let now = self.reader.lock().unwrap_or_else(PoisonError::into_inner).look(0.0)?.sample;
        let before = self.before.as_ref()?.sample;
        Some(Conntrack {
            grown: now.counters.since(before.counters),
            entries: (before.entries, now.entries),
        })
    }

    /// What was found until now, and what weakens it.
    fn view(&self) -> View {
        let mut view = self.view.borrow().clone();
        view.weak = self::report::weak(&view, &self.kernel, self.conntrack());
        view
    }
}

/// Captures that are open and have a header.
pub(crate) type Captures<R = File> = pcap::Merged<R>;

/// Opens captures; an error names the file. A FIFO opens when somebody writes to it.
pub(crate) async fn open(files: Vec<PathBuf>) -> Result<Captures, String> {
    let open = |path: &PathBuf| {
        let file = File::open(path).map_err(|e| format!("--pcap {}: {e}", path.display()))?;
        pcap::Reader::new(file).map_err(|e| format!("--pcap {}: {e}", path.display()))
    };
    let all = move || files.iter().map(open).collect::<Result<Vec<_>, _>>().map(pcap::Merged::new);
    blocking(all).await
}

/// Reads captures to their end, or to a signal.
pub(crate) async fn read<R: Read + Send + 'static>(
    mut captures: Captures<R>,
    files: &[PathBuf],
    report: &Report,
    signalled: impl Future<Output = EndedBy>,
) -> WitnessResult {
    // A pipe may have nothing to read for long: a signal takes what there is, and leaves nothing to
    // add to.
    let so_far = Arc::new(Mutex::new(Some(offline::Offline::default())));
    let theirs = Arc::clone(&so_far);
    let whole = blocking(move || {
        for packet in captures.by_ref() {
            let mut offline = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(offline) = offline.as_mut() else { break };
            offline.packet(&packet);
        }
        captures
    });
    let (ended_by, mut weak) = tokio::select! {
        captures = whole => {
            let early = |(n, why): (usize, _)| format!("{} ends early: {why}", files[n].display());
            (EndedBy::Completed, captures.damaged().map(early).collect::<Vec<_>>())
        }
        by = signalled => (by, vec![format!("{by} came before the captures were read to their end")]),
    };
    let offline = so_far.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    if offline.unknown_links > 0 {
        weak.push(format!(
            "{} packets have a link layer that is not known here (Ethernet, SLL, SLL2, raw IP and loopback are)",
            offline.unknown_links
        ));
    }
    self::report::of_captures(offline, report.run(ended_by), weak)
}

/// Does what may wait for somebody else, in a thread that ends with the program.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

#[cfg(test)]
mod tests {
    mod captures;
    mod messages;
    mod model;
}
