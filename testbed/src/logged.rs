//! What a test's code logs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `job` logs in this thread.
pub fn logged(job: impl FnOnce()) -> Vec<String> {
    let written = Written::default();
    let to = written.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone()).finish();
    tracing::subscriber::with_default(subscriber, job);
    let text = written.0.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}
