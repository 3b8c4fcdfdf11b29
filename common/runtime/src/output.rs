//! How a result leaves the program: a file that is whole or absent, the last
//! line of stdout, and Kubernetes' termination message. No other code of the project
//! writes what a user named.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::exit::Usage;
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

impl From<OutputError> for io::Error {
    fn from(e: OutputError) -> Self {
        e.source
    }
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> OutputError + 'a {
    move |source| OutputError { operation, path: path.to_owned(), source }
}

/// A file for a result, shown to be writable before the run began.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    to: To,
}

/// What stands under a path.
#[derive(Debug)]
enum To {
    /// A regular file, or none yet: replaced whole. Where the path's links lead to.
    Replaced(PathBuf),
    /// A device, a FIFO, or what /proc alone knows: written to.
    Opened,
    /// A socket: connected to.
    Connected,
    /// This program's own stdout or stderr under a name of its own. A second opening would have
    /// its own place in a file, and each would overwrite what the other wrote.
    Own(File),
}

impl To {
    fn find(path: &Path) -> io::Result<Self> {
        let there = match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let Some(there) = there else {
            return Ok(target(path)?.map_or(Self::Opened, Self::Replaced));
        };
        if there.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if let Some(own) = own(&there) {
            return Ok(Self::Own(own));
        }
        if there.is_file()
            && let Some(target) = target(path)?
        {
            return Ok(Self::Replaced(target));
        }
        // Opening it here would be an end of file to whoever reads a FIFO.
        faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS)?;
        Ok(if there.file_type().is_socket() { Self::Connected } else { Self::Opened })
    }
}

/// The file to replace; none where that is another's to name: a link in /proc is no path.
fn target(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut at = path.to_owned();
    // As many as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        match fs::read_link(&at) {
            Ok(_) if at.starts_with("/proc") => return Ok(None),
            Ok(next) => at = at.parent().unwrap_or(Path::new("")).join(next),
            // No link, or nothing there.
            Err(_) => return Ok(Some(at)),
        }
    }
    Err(nix::errno::Errno::ELOOP.into())
}

/// The stream of this program that `there` is.
fn own(there: &Metadata) -> Option<File> {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    [stdout.as_fd(), stderr.as_fd()].into_iter().find_map(|fd| {
        let file = File::from(fd.try_clone_to_owned().ok()?);
        let m = file.metadata().ok()?;
        ((m.dev(), m.ino()) == (there.dev(), there.ino())).then_some(file)
    })
}

/// A file beside `target`, of a name that nobody can guess and with the mode that the umask gives.
fn beside(target: &Path) -> Result<NamedTempFile, OutputError> {
    let directory = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // tempfile's own words would name a file that nobody asked for.
    faccessat(AT_FDCWD, directory, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)
        .map_err(|e| failed("create a file beside", target)(e.into()))?;
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(failed("create a file beside", target))
}

/// Replaces `target` by what `content` writes, whole or not at all.
fn replace(
    target: &Path,
    content: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), OutputError> {
    let mut new = beside(target)?;
    let file = new.as_file_mut();
    if let Ok(old) = fs::metadata(target) {
        // As if it had been written to. An owner may be another's to give.
        let _ = fchown(&*file, Some(old.uid()), Some(old.gid()));
        let _ = file.set_permissions(old.permissions());
    }
    content(file).and_then(|()| file.sync_all()).map_err(failed("write", target))?;
    match new.persist(target) {
        Ok(_) => Ok(()),
        // rename(2): it is a mount of its own, as a file that a container was given is.
        Err(e) if e.error.kind() == io::ErrorKind::ResourceBusy => {
            let mut whole = e.file.reopen().map_err(failed("read back for", target))?;
            open(target)
                .and_then(|mut to| io::copy(&mut whole, &mut to).and_then(|_| to.sync_all()))
                .map_err(failed("write", target))
        }
        Err(e) => Err(failed("replace", target)(e.error)),
    }
}

impl ResultFile {
    /// Checks that `path` can be written. A regular file is replaced when the result is whole,
    /// and stays until then; anything else is written to. Links are followed.
    pub fn prepare(path: &Path) -> Result<Self, OutputError> {
        let to = To::find(path).map_err(failed("write", path))?;
        if let To::Replaced(target) = &to {
            beside(target)?;
        }
        Ok(Self { path: path.to_owned(), to })
    }

    /// The same for the path of an option `--output`, where it was given.
    pub fn option(path: Option<&Path>) -> Result<Option<Self>, Usage> {
        path.map(Self::prepare).transpose().map_err(|e| {
            Usage(format!("--output: {e}; name a file in a directory that can be written"))
        })
    }

    /// Writes `result` as JSON. May be called again.
    pub fn write<T: Serialize>(&self, result: &T) -> Result<(), OutputError> {
        let mut text = serde_json::to_vec_pretty(result)
            .map_err(|e| failed("encode", &self.path)(e.into()))?;
        text.push(b'\n');
        self.write_bytes(text)
    }

    /// The same with bytes.
    pub fn write_bytes(&self, bytes: impl Into<Vec<u8>>) -> Result<(), OutputError> {
        let (bytes, path) = (bytes.into(), self.path.clone());
        let written = match &self.to {
            To::Replaced(target) => return replace(target, |f| f.write_all(&bytes)),
            To::Opened => patiently(move || open(&path)?.write_all(&bytes)),
            To::Connected => patiently(move || UnixStream::connect(path)?.write_all(&bytes)),
            To::Own(file) => {
                file.try_clone().and_then(|mut file| patiently(move || file.write_all(&bytes)))
            }
        };
        written.map_err(failed("write", &self.path))
    }
}

/// [`ResultFile::prepare`] and [`ResultFile::write_bytes`] in one.
pub fn write_file(path: &Path, bytes: impl Into<Vec<u8>>) -> Result<(), OutputError> {
    ResultFile::prepare(path)?.write_bytes(bytes)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).open(path)
}

/// How long a reader of stdout, of a FIFO or of a socket may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does what may wait for somebody else, in a thread that ends with the program where nobody comes.
fn patiently(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let (done, written) = mpsc::channel();
    thread::Builder::new().name("write".to_owned()).spawn(move || done.send(work()))?;
    written.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let text = format!("nobody read it within {} seconds", PATIENCE.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// Writes `result` as one line to stdout, behind everything that was logged. A
/// closed stdout and one that nobody reads are errors to report, no panic and no
/// program without an end.
pub fn print_line<T: Serialize>(result: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(result)?;
    line.push(b'\n');
    print(line)
}

/// The same; on a terminal `text` stands there instead.
pub fn print_result<T: Serialize>(result: &T, text: impl FnOnce() -> String) -> io::Result<()> {
    if io::stdout().is_terminal() {
        print((text() + "\n").into_bytes())
    } else {
        print_line(result)
    }
}

fn print(bytes: Vec<u8>) -> io::Result<()> {
    logs::end_logs();
    patiently(move || {
        let mut out = io::stdout().lock();
        out.write_all(&bytes).and_then(|()| out.flush())
    })
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
    // In place: the kubelet looks at the file that it mounted.
    let (bytes, to) = (message.as_bytes()[..end].to_vec(), path.to_owned());
    patiently(move || open(&to)?.write_all(&bytes)).map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    /// A result replaces an older one whole; without one nothing is left behind.
    #[test]
    fn a_result_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        drop(ResultFile::prepare(&path).unwrap());
        assert_eq!(entries(dir.path()), 0);

        fs::write(&path, "old").unwrap();
        let file = ResultFile::prepare(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        file.write(&[1, 2]).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<u8>>(&fs::read(&path).unwrap()).unwrap(), [1, 2]);
        assert_eq!(entries(dir.path()), 1);
    }

    /// An impossible path is refused before the run, with its name.
    #[test]
    fn an_impossible_path_is_named() {
        let e = ResultFile::prepare(Path::new("/nowhere/r.json")).unwrap_err();
        assert_eq!(
            e.to_string(),
            "cannot create a file beside /nowhere/r.json: No such file or directory (os error 2)"
        );
        let dir = tempfile::tempdir().unwrap();
        assert!(ResultFile::prepare(dir.path()).is_err());
    }

    /// A disk that fills up in the middle is an error, the older result survives it, and nothing
    /// is left beside it.
    #[test]
    fn a_full_disk_keeps_the_older_result() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        fs::write(&path, "old").unwrap();
        let e = replace(&path, |f| {
            f.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(e.unwrap_err().to_string().starts_with("cannot write "));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(entries(dir.path()), 1);
    }

    /// A device is written to and stays what it is, and so does the link to it.
    #[test]
    fn a_device_stays_a_device() {
        let dir = tempfile::tempdir().unwrap();
        for (device, fits) in [("/dev/null", true), ("/dev/full", false)] {
            let link = dir.path().join(&device[5..]);
            std::os::unix::fs::symlink(device, &link).unwrap();
            let written = ResultFile::prepare(&link).unwrap().write(&1);
            assert_eq!(written.is_ok(), fits, "{device}: {written:?}");
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(device));
            assert!(fs::metadata(&link).unwrap().file_type().is_char_device());
        }
    }

    /// What reads a FIFO gets the result, and the FIFO stays.
    #[test]
    fn a_fifo_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let file = ResultFile::prepare(&path).unwrap();
        let reader = {
            let path = path.clone();
            thread::spawn(move || fs::read_to_string(path))
        };
        file.write(&1).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), "1\n");
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
        assert_eq!(entries(dir.path()), 1);
    }

    /// A FIFO that nobody reads is an error after a while, for a result and for a termination
    /// message, and no program without an end.
    #[test]
    fn a_fifo_without_a_reader_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let message = {
            let path = path.clone();
            thread::spawn(move || termination_message(Some(&path), "protected"))
        };
        let result = ResultFile::prepare(&path).unwrap().write(&1);
        for e in [result, message.join().unwrap()] {
            assert!(e.unwrap_err().to_string().ends_with("nobody read it within 5 seconds"));
        }
    }

    /// A socket is connected to.
    #[test]
    fn a_socket_is_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        ResultFile::prepare(&path).unwrap().write(&1).unwrap();
        assert_eq!(io::read_to_string(listener.accept().unwrap().0).unwrap(), "1\n");
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    }

    /// A link is followed, to a file that is there and to one that is not: the file is replaced
    /// or made where the link leads, and the link stays.
    #[test]
    fn a_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for before in [None, Some("old")] {
            let link = dir.path().join(format!("link-{}", before.is_some()));
            std::os::unix::fs::symlink("hop", &link).unwrap();
            let _ = fs::remove_file(dir.path().join("hop"));
            std::os::unix::fs::symlink("sub/r.json", dir.path().join("hop")).unwrap();
            let target = dir.path().join("sub/r.json");
            let _ = fs::remove_file(&target);
            if let Some(text) = before {
                fs::write(&target, text).unwrap();
            }
            ResultFile::prepare(&link).unwrap().write(&1).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), "1\n");
            assert!(fs::symlink_metadata(&target).unwrap().is_file());
            assert_eq!(fs::read_link(&link).unwrap(), Path::new("hop"));
            assert_eq!(entries(&dir.path().join("sub")), 1);
        }
        let ring = dir.path().join("ring");
        std::os::unix::fs::symlink("ring", &ring).unwrap();
        assert!(ResultFile::prepare(&ring).is_err());
    }

    /// A link that somebody put where a guesser would expect the temporary file is not followed.
    #[test]
    fn no_planted_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        for name in ["r.json.part", "r.json.tmp", ".r.json.part"] {
            std::os::unix::fs::symlink(&victim, dir.path().join(name)).unwrap();
        }
        ResultFile::prepare(&dir.path().join("r.json")).unwrap().write(&1).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }

    /// A new result has the mode that any new file has, a replaced one that of the older.
    #[test]
    fn the_mode_is_what_a_user_expects() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        let (plain, new) = (dir.path().join("plain"), dir.path().join("new"));
        fs::write(&plain, "").unwrap();
        write_file(&new, "x").unwrap();
        assert_eq!(mode(&new), mode(&plain));
        fs::set_permissions(&new, Permissions::from_mode(0o640)).unwrap();
        write_file(&new, "y").unwrap();
        assert_eq!((mode(&new), fs::read_to_string(&new).unwrap()), (0o640, "y".to_owned()));
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
