//! The kernel values without which conntrack's words go nowhere: set, read back, and put back
//! however the program ends. A file remembers them over SIGKILL.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow, ensure};
use canary_record::result::witness::Changed;
use serde::{Deserialize, Serialize};

/// Which protocol's INVALID segments are logged: 0 none, 255 all.
const LOG_INVALID: &str = "nf_conntrack_log_invalid";
/// IPPROTO_TCP.
const TCP: &str = "6";
const ALL: &str = "255";
/// Who takes the messages of a family (PF_INET, PF_INET6) that have no rule of their own.
const LOGGERS: [&str; 2] = ["nf_log/2", "nf_log/10"];
const NFLOG: &str = "nfnetlink_log";

fn failed(operation: &str, path: &Path, mend: &str) -> impl FnOnce(io::Error) -> Error {
    move |e| anyhow!("cannot {operation} {}: {e}{mend}", path.display())
}

fn read(path: &Path) -> Result<String> {
    let mend = "; is nf_conntrack loaded, and is this directory the kernel's?";
    fs::read_to_string(path).map(|s| s.trim().to_owned()).map_err(failed("read", path, mend))
}

fn write(path: &Path, value: &str) -> Result<()> {
    let mend = "; it must be writable: as root of the namespace, not below a read-only /proc/sys";
    fs::write(path, value).map_err(failed("write", path, mend))?;
    let now = read(path)?;
    ensure!(now == value, "{} reads {now:?} after {value:?} was written", path.display());
    Ok(())
}

/// What a value must be for conntrack's TCP messages to come; none where it is so already.
fn wanted(key: &str, now: &str) -> Option<&'static str> {
    match (key, now) {
        (LOG_INVALID, TCP | ALL) => None,
        (LOG_INVALID, "0") => Some(TCP),
        // Somebody wants another protocol's: all give both.
        (LOG_INVALID, _) => Some(ALL),
        (_, NFLOG) => None,
        _ => Some(NFLOG),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    /// /proc/sys/kernel/random/boot_id: values do not outlive a boot.
    boot: String,
    /// The network namespace's inode.
    namespace: u64,
    changed: Vec<Changed>,
}

/// The values while they are changed. Puts them back when dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    dir: PathBuf,
    file: PathBuf,
    changed: Vec<Changed>,
    /// What an earlier witness had left and this one put back.
    pub(crate) left_behind: Vec<String>,
}

impl Watching {
    /// Puts back what an earlier witness left, then sets what is needed. `dir` is
    /// /proc/sys/net/netfilter or where it is mounted, `state` the directory of the file.
    pub(crate) fn begin(dir: &Path, state: &Path) -> Result<Self> {
        let net = Path::new("/proc/thread-self/ns/net");
        let namespace = fs::metadata(net).map(|m| m.ino()).map_err(failed("stat", net, ""))?;
        let boot = read(Path::new("/proc/sys/kernel/random/boot_id"))?;
        let file = state.join(format!("load-client-witness-{namespace}.json"));
        let left_behind = put_back(dir, &file, &boot, namespace);
        let mut plan = Vec::new();
        for key in [LOG_INVALID].iter().chain(&LOGGERS) {
            let from = read(&dir.join(key))?;
            if let Some(to) = wanted(key, &from) {
                let (key, to) = ((*key).to_owned(), to.to_owned());
                plan.push(Changed { key, from, to, restored: false });
            }
        }
        if !plan.is_empty() {
            remember(&file, &Memory { boot, namespace, changed: plan.clone() })?;
        }
        let mut watching = Self { dir: dir.to_owned(), file, changed: Vec::new(), left_behind };
        for change in plan {
            write(&watching.dir.join(&change.key), &change.to)?;
            watching.changed.push(change);
        }
        Ok(watching)
    }

    /// Values that keep conntrack's words back by now, whoever had set them as they were.
    pub(crate) fn meddled(&self) -> impl Iterator<Item = String> {
        [LOG_INVALID].into_iter().chain(LOGGERS).filter_map(|key| {
            let now = read(&self.dir.join(key)).ok()?;
            wanted(key, &now)?;
            Some(format!("{key} was set to {now} by somebody else: what came then was not heard"))
        })
    }

    /// Puts every value back and tells what was changed.
    pub(crate) fn end(mut self) -> Vec<Changed> {
        self.restore();
        std::mem::take(&mut self.changed)
    }

    fn restore(&mut self) {
        let mut all = true;
        for change in self.changed.iter_mut().rev().filter(|c| !c.restored) {
            match write(&self.dir.join(&change.key), &change.from) {
                Ok(()) => change.restored = true,
                Err(e) => {
                    all = false;
                    tracing::error!(error = %e, from = change.to, to = change.from, "not put back");
                }
            }
        }
        // What could not be put back stays remembered.
        if all {
            let _ = fs::remove_file(&self.file);
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Writes the file, whole, before anything is changed.
fn remember(file: &Path, memory: &Memory) -> Result<()> {
    let mend = "; name a writable directory with --state-dir";
    let text = serde_json::to_vec(memory).unwrap_or_default();
    // Whole or not at all, in a name that nobody can have taken; readable by its owner alone.
    tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new(".")))
        .and_then(|mut part| {
            part.write_all(&text)?;
            part.as_file().sync_all()?;
            part.persist(file).map_err(|e| e.error)
        })
        .map(drop)
        .map_err(failed("write", file, mend))
}

/// Puts back what a killed witness left in this namespace. A value that somebody has changed since
/// is theirs.
fn put_back(dir: &Path, file: &Path, boot: &str, namespace: u64) -> Vec<String> {
    let Ok(text) = fs::read(file) else { return Vec::new() };
    let memory = serde_json::from_slice::<Memory>(&text).ok();
    let memory = memory.filter(|m| m.boot == boot && m.namespace == namespace);
    let mut changed = memory.map_or_else(Vec::new, |m| m.changed);
    // The key is a file's content: only what this program changes is touched.
    let known = |key: &str| key == LOG_INVALID || LOGGERS.contains(&key);
    changed.retain(|c| known(&c.key) && read(&dir.join(&c.key)).is_ok_and(|now| now == c.to));
    let (dir, file) = (dir.to_owned(), file.to_owned());
    let changed = Watching { dir, file, changed, left_behind: Vec::new() }.end();
    let restored = changed.iter().filter(|c| c.restored);
    restored.map(|c| format!("{} from {} to {}", c.key, c.to, c.from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(values: [&str; 3]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("nf_log")).unwrap();
        for (key, value) in [LOG_INVALID].iter().chain(&LOGGERS).zip(values) {
            fs::write(dir.path().join(key), format!("{value}\n")).unwrap();
        }
        dir
    }

    fn values(dir: &Path) -> Vec<String> {
        [LOG_INVALID].iter().chain(&LOGGERS).map(|k| read(&dir.join(k)).unwrap()).collect()
    }

    /// Values are set and put back; nothing is left of the file.
    #[test]
    fn values_are_put_back() {
        let (dir, state) = (kernel(["0", "NONE", "nf_log_ipv6"]), tempfile::tempdir().unwrap());
        let watching = Watching::begin(dir.path(), state.path()).unwrap();
        assert_eq!(values(dir.path()), ["6", NFLOG, NFLOG]);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1);
        let changed = watching.end();
        assert!(changed.iter().all(|c| c.restored) && changed.len() == 3);
        assert_eq!(values(dir.path()), ["0", "NONE", "nf_log_ipv6"]);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    /// A panic puts them back too.
    #[test]
    fn a_panic_puts_them_back() {
        let (dir, state) = (kernel(["0", "NONE", "NONE"]), tempfile::tempdir().unwrap());
        let path = (dir.path().to_owned(), state.path().to_owned());
        let thread = std::thread::spawn(move || {
            let _watching = Watching::begin(&path.0, &path.1).unwrap();
            panic!("as a defect would");
        });
        assert!(thread.join().is_err());
        assert_eq!(values(dir.path()), ["0", "NONE", "NONE"]);
    }

    /// After SIGKILL the next one finds the file; what somebody changed since stays theirs.
    #[test]
    fn the_next_one_puts_back() {
        let (dir, state) = (kernel(["0", "NONE", "NONE"]), tempfile::tempdir().unwrap());
        std::mem::forget(Watching::begin(dir.path(), state.path()).unwrap());
        fs::write(dir.path().join(LOGGERS[1]), "nf_log_ipv6").unwrap();
        let next = Watching::begin(dir.path(), state.path()).unwrap();
        assert_eq!(next.left_behind.len(), 2, "{:?}", next.left_behind);
        drop(next);
        assert_eq!(values(dir.path()), ["0", "NONE", "nf_log_ipv6"]);
    }

    /// Nothing is changed where all is as wanted, and other protocols' messages are left on.
    #[test]
    fn what_is_there_already_stays() {
        for (now, then) in [("255", "255"), ("6", "6"), ("17", "255")] {
            let (dir, state) = (kernel([now, NFLOG, NFLOG]), tempfile::tempdir().unwrap());
            let watching = Watching::begin(dir.path(), state.path()).unwrap();
            assert_eq!(values(dir.path())[0], then);
            assert_eq!(watching.end().len(), usize::from(now != then));
            assert_eq!(values(dir.path())[0], now);
        }
    }

    /// A value by which the words stop is told, be it one that was changed or one that was right before;
    /// another by which they come is not.
    #[test]
    fn what_makes_it_deaf_is_told() {
        let (dir, state) = (kernel(["0", "NONE", NFLOG]), tempfile::tempdir().unwrap());
        let watching = Watching::begin(dir.path(), state.path()).unwrap();
        let told = |key: &str, value: &str| {
            let before = read(&dir.path().join(key)).unwrap();
            fs::write(dir.path().join(key), value).unwrap();
            let told: Vec<_> = watching.meddled().collect();
            fs::write(dir.path().join(key), before).unwrap();
            told.concat().contains(&format!("{key} was set to {value} by somebody else"))
        };
        assert_eq!(watching.meddled().count(), 0);
        for key in LOGGERS {
            assert!(told(key, "NONE"), "{key}");
        }
        assert_eq!(["0", "17", ALL].map(|v| told(LOG_INVALID, v)), [true, true, false]);
    }

    /// Without a place for the file nothing is changed, and the line says what to do.
    #[test]
    fn nothing_is_changed_that_could_not_be_put_back() {
        let dir = kernel(["0", "NONE", "NONE"]);
        let e = Watching::begin(dir.path(), Path::new("/nowhere")).unwrap_err().to_string();
        assert!(e.contains("/nowhere/load-client-witness-") && e.contains("--state-dir"), "{e}");
        assert_eq!(values(dir.path()), ["0", "NONE", "NONE"]);
    }

    /// A file from another boot, or of garbage, changes nothing and goes.
    #[test]
    fn another_boots_file_changes_nothing() {
        let dir = kernel(["6", "NONE", "NONE"]);
        let file = dir.path().join("state");
        let other = r#"{"boot":"x","namespace":1,"changed":[{"key":"nf_conntrack_log_invalid","from":"0","to":"6","restored":false}]}"#;
        assert!(serde_json::from_str::<Memory>(other).is_ok());
        for text in [other, "{"] {
            fs::write(&file, text).unwrap();
            assert!(put_back(dir.path(), &file, "y", 1).is_empty());
            assert!(!file.exists());
            assert_eq!(values(dir.path())[0], "6");
        }
    }
}
