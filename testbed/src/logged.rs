//! What a test's code logs.

use std::io::{Read as _, Seek as _};
use std::sync::Arc;

/// The lines that `job` logs in this thread.
///
/// # Panics
/// Where there is no room for a temporary file.
pub fn logged(job: impl FnOnce()) -> Vec<String> {
    let file = Arc::new(tempfile::tempfile().unwrap());
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::clone(&file)).finish();
    tracing::subscriber::with_default(subscriber, job);
    let (mut file, mut text) = (&*file, String::new());
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}
