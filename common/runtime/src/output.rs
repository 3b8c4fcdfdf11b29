//! How a result leaves the program: a file that is whole or absent, the last
//! line of stdout, and Kubernetes' termination message.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::logs;

/// The longest termination message that Kubernetes keeps.
pub const TERMINATION_MESSAGE_MAX: usize = 4096;
/// Where Kubernetes reads it unless the container says otherwise.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// What could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}: {source}")]
pub struct OutputError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> OutputError + 'a {
    move |source| OutputError { operation, path: path.to_owned(), source }
}

/// A result file that was shown to be writable before the run began.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    part: PathBuf,
}

impl ResultFile {
    /// Checks that `path` can be written, by creating the file beside it that
    /// becomes the result. An older result stays until the new one is whole.
    pub fn prepare(path: &Path) -> Result<Self, OutputError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        if path.is_dir() {
            return Err(failed("write", path)(io::ErrorKind::IsADirectory.into()));
        }
        File::create(&part).map_err(failed("create", &part))?;
        Ok(Self { path: path.to_owned(), part })
    }

    /// Replaces the file by `result`, whole or not at all. May be called again.
    pub fn write<T: Serialize>(&self, result: &T) -> Result<(), OutputError> {
        let mut text = serde_json::to_vec_pretty(result)
            .map_err(|e| failed("encode", &self.path)(e.into()))?;
        text.push(b'\n');
        let written = File::create(&self.part).and_then(|mut f| {
            f.write_all(&text)?;
            f.sync_all()
        });
        written.map_err(failed("write", &self.part))?;
        fs::rename(&self.part, &self.path).map_err(failed("rename to", &self.path))
    }
}

impl Drop for ResultFile {
    fn drop(&mut self) {
        // Only there when nothing was written.
        let _ = fs::remove_file(&self.part);
    }
}

/// How long a reader of stdout may take for the result.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes `result` as one line to stdout, behind everything that was logged. A
/// closed stdout and one that nobody reads are errors to report, no panic and no
/// program without an end.
pub fn print_line<T: Serialize>(result: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(result)?;
    line.push(b'\n');
    print(line)
}

/// The same with text.
pub fn print_text(text: &str) -> io::Result<()> {
    print(format!("{text}\n").into_bytes())
}

fn print(bytes: Vec<u8>) -> io::Result<()> {
    logs::end_logs();
    let (done, written) = mpsc::channel();
    thread::Builder::new().name("print".to_owned()).spawn(move || {
        let mut out = io::stdout().lock();
        let _ = done.send(out.write_all(&bytes).and_then(|()| out.flush()));
    })?;
    written.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Writes Kubernetes' termination message, cut to what Kubernetes keeps.
/// Without `path` it is written to [`TERMINATION_LOG`] if that exists, as it
/// does in a pod.
pub fn termination_message(path: Option<&Path>, message: &str) -> Result<(), OutputError> {
    let default = Path::new(TERMINATION_LOG);
    let path = match path {
        Some(path) => path,
        None if default.exists() => default,
        None => return Ok(()),
    };
    let mut end = message.len().min(TERMINATION_MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    fs::write(path, &message[..end]).map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A result replaces an older one whole; without one nothing is left behind.
    #[test]
    fn a_result_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        drop(ResultFile::prepare(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        fs::write(&path, "old").unwrap();
        let file = ResultFile::prepare(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        file.write(&[1, 2]).unwrap();
        drop(file);
        assert_eq!(serde_json::from_slice::<Vec<u8>>(&fs::read(&path).unwrap()).unwrap(), [1, 2]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// An impossible path is refused before the run, with its name.
    #[test]
    fn an_impossible_path_is_named() {
        let e = ResultFile::prepare(Path::new("/nowhere/r.json")).unwrap_err();
        assert_eq!(
            e.to_string(),
            "cannot create /nowhere/r.json.part: No such file or directory (os error 2)"
        );
        let dir = tempfile::tempdir().unwrap();
        assert!(ResultFile::prepare(dir.path()).is_err());
    }

    /// A full disk is an error, and the older result survives it.
    #[test]
    fn a_full_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        std::os::unix::fs::symlink("/dev/full", dir.path().join("r.json.part")).unwrap();
        fs::write(&path, "old").unwrap();
        let e = ResultFile::prepare(&path).unwrap().write(&1).unwrap_err();
        assert!(e.to_string().contains("No space left on device"), "{e}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    /// A long termination message is cut between characters.
    #[test]
    fn a_termination_message_fits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        termination_message(Some(&path), &"ä".repeat(3000)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ä".repeat(2048));
    }
}
