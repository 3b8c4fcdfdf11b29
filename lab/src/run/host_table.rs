//! The host's own conntrack limit, which the initial network namespace alone
//! can change, and the process that puts it back.
//!
//! That process is a session of its own. It waits for its stdin to end, which
//! happens however the lab ends, because the kernel closes the lab's pipes; then
//! it restores what it changed and ends. Only SIGKILL to that very process
//! could keep it from that, which is why its values are said when they are set.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use canary_conntrack::stat;
use canary_runtime::exit::Exit;
use clap::Args;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::SigSet;

use crate::wrong::{Wrong, failed, say, usage};
use canary_testbed::evidence;
use canary_testbed::os::{OsError, os};

/// Where the lab's inner process finds the number of the pipe to that process.
pub(crate) const PIPE: &str = "LAB_HOST_TABLE_PIPE";
pub(crate) const SUBCOMMAND: &str = "host-table";
/// nf_conntrack_max below /proc/sys.
pub(crate) const MAX: &str = "net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "net/netfilter/nf_conntrack_buckets";
/// The table must have room for this many times what the host already has.
const ROOM: u64 = 4;
/// Smaller tables leave no room between the steps.
pub(crate) const SMALLEST: u64 = 2000;

/// For `map_err`: names what the system refused.
fn refused<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> Wrong {
    move |e| failed(format!("--host-table-size: {}", os(what)(e)))
}

/// Not the initial network namespace, or not root.
fn not_here(e: impl fmt::Display) -> Wrong {
    usage(format!(
        "--host-table-size: {MAX} cannot be written here ({e}): leave the option out, or run as root in the initial \
         network namespace"
    ))
}

/// `entries` are the most of any network namespace.
fn in_use(size: u64, entries: u64) -> Wrong {
    usage(format!(
        "--host-table-size {size}: {entries} entries are in use on this host already: name at least {}, or use an idle \
         host",
        entries * ROOM
    ))
}

/// Options of the hidden subcommand.
#[derive(Clone, Debug, Args)]
pub struct TableArgs {
    /// The limit to set.
    pub size: u64,
}

/// The guarding process, seen from the lab's outer process.
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts it; when this returns, the limit is set, or the process has said why not and has
    /// ended. No thread is started.
    pub(crate) fn start(size: u64) -> Result<Result<Self, ExitStatus>, Wrong> {
        let mut child = Command::new("/proc/self/exe")
            .args([SUBCOMMAND, &size.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(refused("start the process that restores the table"))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(refused("hear from that process"))?;
        }
        if line.trim() == "set" {
            return Ok(Ok(Self(child)));
        }
        Ok(Err(child.wait().map_err(refused("wait for that process"))?))
    }

    /// Lets the inner process inherit the pipe, and gives its number.
    pub(crate) fn share(&self) -> Result<i32, Wrong> {
        let pipe = self.0.stdin.as_ref().ok_or(io::ErrorKind::BrokenPipe);
        let pipe = pipe.map_err(refused("keep a pipe open"))?;
        fcntl(pipe, FcntlArg::F_SETFD(FdFlag::empty())).map_err(refused("keep a pipe open"))?;
        Ok(pipe.as_raw_fd())
    }

    /// Ends it, whose stdin is closed, and tells whether everything is as it was.
    pub(crate) fn restore(mut self) -> Result<(), Wrong> {
        let status = self.0.wait().map_err(refused("wait for the table to be restored"))?;
        if status.success() {
            return Ok(());
        }
        Err(failed("the host's conntrack table was not restored; see above"))
    }
}

/// The guarding process, seen from the lab's inner process.
pub(crate) struct Control {
    pipe: Mutex<File>,
    read: fn() -> io::Result<Size>,
}

impl Control {
    /// The pipe that was inherited, where there is one. Called once, before
    /// anything is started that could inherit it too.
    pub(crate) fn inherited() -> io::Result<Option<Self>> {
        let Some(fd) = std::env::var(PIPE).ok().and_then(|n| n.parse::<i32>().ok()) else {
            return Ok(None);
        };
        let pipe = File::options().write(true).open(format!("/proc/self/fd/{fd}"))?;
        nix::unistd::close(fd)?;
        Ok(Some(Self { pipe: Mutex::new(pipe), read: Size::read }))
    }

    /// Sets the size until the end of what it gives.
    pub(crate) fn resize(&self, size: Size) -> Result<Resized<'_>, OsError> {
        let before = (self.read)().map_err(using())?;
        // Here, so that a size which does not read back in time is put back too.
        let resized = Resized { control: self, before };
        self.set(size)?;
        Ok(resized)
    }

    /// Sets the size and waits until it reads back.
    fn set(&self, size: Size) -> Result<(), OsError> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipe, "{size}").map_err(using())?;
        let end = Instant::now() + Duration::from_secs(5);
        while !(self.read)().map_err(using())?.is_rounded(size) {
            if Instant::now() > end {
                let why = format!("{MAX} and {BUCKETS} did not become {size}");
                return Err(using()(io::Error::other(why)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn using() -> impl FnOnce(io::Error) -> OsError {
    os(format!("use sysctl {MAX}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) limit: u64,
    /// The chains that they are kept in.
    pub(crate) buckets: u64,
}

impl Size {
    /// A bucket for each entry, as the kernel has it since 5.15.
    pub(crate) const fn of(limit: u64) -> Self {
        Self { limit, buckets: limit }
    }

    /// Whether it is `asked`, whose buckets the kernel rounds up to whole pages of at most 64 KiB.
    const fn is_rounded(self, asked: Self) -> bool {
        self.limit == asked.limit
            && self.buckets >= asked.buckets
            && self.buckets - asked.buckets < (64 << 10) / 8
    }

    fn read() -> io::Result<Self> {
        Ok(Self { limit: number(MAX)?, buckets: number(BUCKETS)? })
    }

    fn parse(line: &str) -> Option<Self> {
        let (limit, buckets) = line.trim().split_once(' ')?;
        Some(Self { limit: limit.parse().ok()?, buckets: buckets.parse().ok()? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.limit, self.buckets)
    }
}

/// A size that is put back however the part ends that needed it.
pub(crate) struct Resized<'a> {
    control: &'a Control,
    pub(crate) before: Size,
}

impl Resized<'_> {
    /// Another size, until the same end.
    pub(crate) fn again(&self, size: Size) -> Result<(), OsError> {
        self.control.set(size)
    }

    /// Puts it back, and says whether that went well.
    pub(crate) fn restore(self) -> Result<(), OsError> {
        let (control, before) = (self.control, self.before);
        std::mem::forget(self);
        control.set(before)
    }
}

impl Drop for Resized<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.control.set(self.before) {
            say(format!("error: {MAX} and {BUCKETS}, which were {}: {e}", self.before));
        }
    }
}

/// The limit, which every namespace shows.
pub(crate) fn max() -> Result<u64, OsError> {
    number(MAX).map_err(using())
}

fn number(key: &str) -> io::Result<u64> {
    let text = evidence::sysctl(key).map_err(io::Error::other)?;
    text.parse().map_err(|_| io::Error::other(format!("{key} is '{text}'")))
}

fn set(key: &str, value: u64) -> io::Result<()> {
    fs::write(format!("/proc/sys/{key}"), value.to_string())
}

/// The process itself: sets the limit, waits, restores.
pub(crate) fn guard(args: &TableArgs) -> Result<Exit, Wrong> {
    // Out of reach of the terminal and of signals to the lab's group.
    nix::unistd::setsid().map_err(refused("leave the session"))?;
    SigSet::all().thread_block().map_err(refused("block signals"))?;
    Ok(hold(args.size)?.until_the_end())
}

struct Held {
    before: Size,
    /// What it was set to since.
    ours: Size,
    /// The limit of the run's beginning, for which there was room.
    begun: u64,
    /// Gone with this process, so that no second run takes our values for the host's own.
    _lock: UnixListener,
}

fn hold(size: u64) -> Result<Held, Wrong> {
    let name = SocketAddr::from_abstract_name("conntrack-canary host table");
    let name = name.map_err(refused("name a lock"))?;
    let lock = UnixListener::bind_addr(&name).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => {
            failed("--host-table-size: another run holds this host's table: wait for its end")
        }
        _ => refused("take a lock")(e),
    })?;
    let before = Size::read().map_err(not_here)?;
    // Writing what it already is changes nothing, and shows whether we may.
    set(MAX, before.limit).map_err(not_here)?;
    room(size)?;
    let mut held = Held { before, ours: before, begun: size, _lock: lock };
    if let Err(e) = held.apply(Size::of(size)) {
        held.restore();
        return Err(refused("set the table's size")(e));
    }
    Ok(held)
}

/// Whether the host's own entries have room in a table of that size.
fn room(size: u64) -> Result<(), Wrong> {
    let entries = most_entries().map_err(refused("count the entries in use"))?;
    if entries * ROOM > size { Err(in_use(size, entries)) } else { Ok(()) }
}

impl Held {
    fn apply(&mut self, size: Size) -> io::Result<()> {
        // The lab's own entries are no reason not to go back to where it began.
        if size.limit < self.begun {
            room(size.limit).map_err(io::Error::other)?;
        }
        set(MAX, size.limit)?;
        self.ours.limit = size.limit;
        set(BUCKETS, size.buckets)?;
        // The kernel rounds up to whole pages.
        self.ours.buckets = number(BUCKETS)?;
        let found = Size::read()?;
        if found.is_rounded(size) {
            return Ok(());
        }
        Err(io::Error::other(format!("was set to {size} and reads back as {found}")))
    }

    fn until_the_end(mut self) -> Exit {
        say(format!(
            "{MAX}: {} -> {}, {BUCKETS}: {} -> {}; process {} puts them back",
            self.before.limit,
            self.ours.limit,
            self.before.buckets,
            self.ours.buckets,
            std::process::id()
        ));
        // The lab may be gone, and what was set must be restored all the same.
        let _ = writeln!(io::stdout(), "set").and_then(|()| io::stdout().flush());
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if let Some(size) = Size::parse(&line)
                && let Err(e) = self.apply(size)
            {
                say(format!("error: {MAX} and {BUCKETS} to {size}: {e}"));
            }
        }
        if self.restore() { Exit::Ok } else { Exit::Failed }
    }

    /// Puts both values back and says so; what somebody else changed meanwhile is left.
    fn restore(&self) -> bool {
        let mut all = true;
        let Self { before, ours, .. } = self;
        for (key, ours, old) in
            [(BUCKETS, ours.buckets, before.buckets), (MAX, ours.limit, before.limit)]
        {
            let now = match number(key) {
                Ok(now) if now != old && now != ours => {
                    say(format!("{key} is {now}, which somebody else set: left as it is"));
                    continue;
                }
                Ok(now) if now != old => set(key, old).and_then(|()| number(key)),
                read => read,
            };
            let wrong = match now {
                Ok(now) if now == old => {
                    say(format!("{key} is {old} again"));
                    continue;
                }
                Ok(now) => format!("{key} is {now} and was {old}: write it to /proc/sys/{key}"),
                Err(e) => format!("{key}: {e}; it was {old}: write that to /proc/sys/{key}"),
            };
            say(format!("error: {wrong}"));
            all = false;
        }
        all
    }
}

/// The most entries that any network namespace has: the limit is for each of them.
fn most_entries() -> io::Result<u64> {
    let mut seen = Vec::new();
    let mut most = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        // Processes come and go; what is not a process has no namespace.
        let Ok(inode) = fs::metadata(path.join("ns/net")).map(|m| m.ino()) else { continue };
        let Ok(text) = fs::read_to_string(path.join("net").join(stat::STAT)) else { continue };
        if !seen.contains(&inode) {
            seen.push(inode);
            most = most.max(entries(&text)?);
        }
    }
    Ok(most)
}

/// Entries of a network namespace, from the first column of its statistics.
fn entries(text: &str) -> io::Result<u64> {
    let cpus = stat::columns(text).map_err(io::Error::other)?;
    let entries = stat::sum(&cpus).get(stat::ENTRIES).copied();
    entries.ok_or_else(|| io::Error::other(format!("{} has no number of entries", stat::STAT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another command line mends is wrong usage, and names it.
    #[test]
    fn refusals_name_the_mend() {
        let in_use = in_use(1000, 700);
        assert!(in_use.to_string().contains("name at least 2800"), "{in_use}");
        let not_here = not_here(io::Error::other("no"));
        assert!(not_here.to_string().contains("leave the option out"));
        assert_eq!([in_use.0, not_here.0], [Exit::Usage; 2]);
    }

    /// A part that fails, or panics, in a bigger table leaves the limit as it was.
    #[test]
    fn a_limit_is_put_back_however_a_part_ends() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static LIMIT: AtomicU64 = AtomicU64::new(4000);
        let (theirs, ours) = io::pipe().unwrap();
        let guard = std::thread::spawn(move || {
            for line in BufReader::new(theirs).lines() {
                LIMIT.store(Size::parse(&line.unwrap()).unwrap().limit, Ordering::SeqCst);
            }
        });
        let control = Control {
            pipe: Mutex::new(File::from(std::os::fd::OwnedFd::from(ours))),
            read: || Ok(Size::of(LIMIT.load(Ordering::SeqCst))),
        };
        let part = || -> Result<(), OsError> {
            let bigger = control.resize(Size::of(16_000))?;
            assert_eq!((bigger.before.limit, LIMIT.load(Ordering::SeqCst)), (4000, 16_000));
            bigger.again(Size::of(32_000))?;
            assert_eq!(LIMIT.load(Ordering::SeqCst), 32_000);
            Err(using()(io::Error::other("no room")))
        };
        assert!(part().is_err());
        assert_eq!(LIMIT.load(Ordering::SeqCst), 4000);
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _bigger = control.resize(Size::of(16_000)).unwrap();
            panic!("on purpose");
        }));
        assert!(panics.is_err());
        assert_eq!(LIMIT.load(Ordering::SeqCst), 4000);
        control.resize(Size::of(8000)).unwrap().restore().unwrap();
        assert_eq!(LIMIT.load(Ordering::SeqCst), 4000);
        drop(control);
        guard.join().unwrap();
    }

    /// A size crosses the pipe whole or not at all, and is itself where its buckets were rounded up.
    #[test]
    fn sizes_cross_the_pipe() {
        let size = Size { limit: 600, buckets: 700 };
        assert_eq!(Size::parse(&format!("{size}\n")), Some(size));
        for wrong in ["", "600", "600 x", "x 600", "-1 2"] {
            assert_eq!(Size::parse(wrong), None, "{wrong}");
        }
        assert!(Size { limit: 600, buckets: 1024 }.is_rounded(size));
        assert!(!Size { limit: 600, buckets: 512 }.is_rounded(size));
        assert!(!Size { limit: 601, buckets: 700 }.is_rounded(size));
        assert!(!Size { limit: 600, buckets: 262_144 }.is_rounded(size));
    }

    /// A host whose entries cannot be counted is not taken for an idle one.
    #[test]
    fn entries_that_cannot_be_read_are_no_zero() {
        assert_eq!(entries("entries found\n0000000a 1\n0000000a 2\n").unwrap(), 10);
        assert!(entries("entries found\n0000000x 1\n").is_err());
        assert!(entries("found\n1\n").is_err());
    }
}
