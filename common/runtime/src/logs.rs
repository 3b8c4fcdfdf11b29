//! Events on stdout, alike in every program, and the text that stands below them on a terminal.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, OnceLock, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::FmtSpan;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Lines that wait for a reader of stdout at most. Then lines are lost, and
/// counted: whoever measures must not wait for whoever reads.
const LINES: usize = 4096;

/// What stands below the events, once a program on a terminal has shown something.
static STANDING: OnceLock<ProgressBar> = OnceLock::new();

/// A text below the events on a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Standing(&'static ProgressBar);

impl Standing {
    /// Where stdout and stderr are a terminal.
    #[must_use]
    pub fn begin() -> Option<Self> {
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        terminal.then(|| {
            let style = ProgressStyle::with_template("{msg}")
                .unwrap_or_else(|e| unreachable!("the template is constant: {e}"));
            let bar = STANDING.get_or_init(|| ProgressBar::new_spinner().with_style(style));
            bar.reset();
            Self(bar)
        })
    }

    /// Replaces the text. Its lines are cut where the terminal would begin another row.
    pub fn show(&self, text: &str) {
        let size = terminal_size::terminal_size_of(io::stderr());
        // A terminal that does not know its width says 0.
        let width = size.map_or(0, |(width, _)| width.0);
        self.0.set_message(fitted(text, if width == 0 { 80 } else { width.into() }));
    }

    /// Takes it away; whatever is shown afterwards is not seen.
    pub fn end(self) {
        self.0.finish_and_clear();
    }
}

fn fitted(text: &str, width: usize) -> String {
    let cut = |line: &str| line.chars().take(width - 1).collect::<String>();
    text.lines().map(cut).collect::<Vec<_>>().join("\n")
}

/// stdout, from which the standing text is away while an event is written.
struct Events(io::Stdout);

impl io::Write for Events {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match STANDING.get() {
            Some(bar) => bar.suspend(|| self.0.write(event)),
            None => self.0.write(event),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The thread that writes to stdout, and its count of lost lines.
static WRITER: Mutex<Option<(WorkerGuard, ErrorCounter)>> = Mutex::new(None);

/// Sends events to stdout: in the format asked for, otherwise text on a terminal
/// and JSON elsewhere. Starts the thread that writes them. To be called once, before
/// anything is logged.
pub fn init_logs(format: Option<LogFormat>) {
    let terminal = io::stdout().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES).finish(Events(io::stdout()));
    let mut slot = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    *slot = Some((guard, writer.error_counter()));
    drop(slot);
    let logs = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A line is cut where the terminal would begin another row.
    #[test]
    fn a_line_stays_on_one_row() {
        assert_eq!(fitted("0123456789", 11), "0123456789");
        assert_eq!(fitted("0123456789\nab", 10), "012345678\nab");
        assert_eq!(fitted("", 80), "");
    }
}
