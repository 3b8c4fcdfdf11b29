//! Events on stdout, alike in every program.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::FmtSpan;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Lines that wait for a reader of stdout at most. Then lines are lost, and
/// counted: whoever measures must not wait for whoever reads.
const LINES: usize = 4096;

/// ECMA-48's EL: an event takes the place of a program's live line, whose cursor stays at
/// its beginning.
const ERASE_LINE: &str = "\x1b[K";

/// Writes one event.
struct Line {
    begin: &'static str,
    to: NonBlocking,
}

impl io::Write for Line {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        // One piece, since each piece may be lost.
        self.to.write_all(&[self.begin.as_bytes(), event].concat()).map(|()| event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The thread that writes to stdout, and its count of lost lines.
static WRITER: Mutex<Option<(WorkerGuard, ErrorCounter)>> = Mutex::new(None);

/// Sends events to stdout: in the format asked for, otherwise text on a terminal
/// and JSON elsewhere. Starts the thread that writes them. To be called once, before
/// anything is logged.
pub fn init_logs(format: Option<LogFormat>) {
    let terminal = std::io::stdout().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES).finish(std::io::stdout());
    let mut slot = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    *slot = Some((guard, writer.error_counter()));
    drop(slot);
    let begin = if terminal { ERASE_LINE } else { "" };
    let logs = tracing_subscriber::fmt()
        .with_writer(move || Line { begin, to: writer.clone() })
        .with_max_level(Level::INFO)
        .with_target(false)
        .with_span_events(FmtSpan::NONE)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => logs.with_ansi(terminal).init(),
        LogFormat::Json => logs.json().flatten_event(true).with_current_span(false).init(),
    }
}

/// What to say when lines of the log were lost because nobody read stdout.
#[must_use]
pub fn lost_lines() -> Option<String> {
    let slot = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    let lost = slot.as_ref().map_or(0, |(_, counter)| counter.dropped_lines());
    (lost > 0).then(|| format!("{lost} lines of the log were lost: stdout was not read in time"))
}

/// Waits until what was logged is written, a second at most. Nothing is logged after that.
pub fn end_logs() {
    let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(writer);
}
