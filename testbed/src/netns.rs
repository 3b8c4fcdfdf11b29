//! Namespaces of the testbed's own: the only unshare, setns and mount.
//!
//! The outer process unshares and starts this program again inside; that inner
//! process is PID 1 of a new PID namespace. Whatever ends the outer one ends
//! the inner one, the kernel then kills everything in its PID namespace, and
//! with the last process go the mounts and the network namespaces.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use caps::CapSet;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid};

use crate::exec::{self, Interrupt};
use crate::os::{OsError, os};

/// The hidden option by which the inner process knows what it is.
pub const INSIDE: &str = "--inside";
/// Where `ip netns` keeps its names, on a tmpfs of the lab's own.
const NETNS_DIR: &str = "/run/netns";

/// The lab could not be isolated from the host.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Neither user namespaces nor root.
    #[error(
        "user namespaces are refused here ({reason}) and this is not root: {mend}, or run it as root"
    )]
    Refused {
        /// What the kernel said.
        reason: nix::errno::Errno,
        /// What would allow them.
        mend: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Os(#[from] OsError),
    /// A namespace is not the one that it should be.
    #[error("{0} is still the host's own namespace; nothing was changed")]
    NotIsolated(String),
}

/// Runs this program again inside new namespaces, with the same arguments, and
/// waits for it; `env` is added to its environment. Must be called before any
/// thread is started.
pub fn isolate(env: Option<(&str, String)>) -> Result<ExitStatus, NetnsError> {
    let in_user_namespace = enter()?;
    let (reader, writer) = io::pipe().map_err(os("make a pipe"))?;
    // The writer stays close-on-exec: this process alone holds it.
    fcntl(&reader, FcntlArg::F_SETFD(FdFlag::empty())).map_err(os("keep a pipe open"))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(INSIDE)
        .arg(reader.as_raw_fd().to_string())
        .args(std::env::args_os().skip(1))
        .env("LAB_USER_NAMESPACE", in_user_namespace.to_string())
        .envs(env);
    let status = exec::supervise(&mut command).map_err(os("start the inner process"))?;
    drop(writer);
    Ok(status)
}

/// Runs `body`, which is given the program's arguments, in this program started again inside new
/// namespaces; gives its exit code. A signal ends it, and everything in them with it. Must be
/// called before any thread is started.
pub fn contain(body: impl FnOnce(Vec<String>) -> ExitCode) -> Result<ExitCode, NetnsError> {
    let mut args: Vec<_> = std::env::args().collect();
    if args.get(1).is_none_or(|a| a != INSIDE) {
        let status = isolate(None)?;
        return Ok(ExitCode::from(status.code().map_or(1, |code| code as u8)));
    }
    args.remove(1);
    let pipe = args.remove(1).parse().map_err(io::Error::other);
    settle(pipe.map_err(os("read the number of the pipe"))?)?;
    let interrupt = Interrupt::catch().map_err(os("catch signals"))?;
    std::thread::spawn(move || {
        while interrupt.sleep(Duration::from_secs(3600)).is_ok() {}
        // As a shell says it of SIGINT.
        std::process::exit(130);
    });
    Ok(body(args))
}

/// Puts this process into mount and network namespaces of its own, and its children into a PID
/// namespace; who is not root into a user namespace too, and that is what it tells. Must be called
/// before any thread is started.
fn enter() -> Result<bool, NetnsError> {
    let before = inode("/proc/self/ns/net")?;
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        // No user namespace here: root owns the other three without one, it would keep nothing
        // apart that they do not, and root must be able to run where user namespaces are refused.
        unshare(own).map_err(os("unshare mount, PID and network namespaces"))?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | own)
            .map_err(|reason| NetnsError::Refused { reason, mend: mend() })?;
        // The user stays who they are: tcpdump as root would want to become another user,
        // for which there is no mapping. user_namespaces(7): setgroups must be denied before an unprivileged gid_map.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{uid} {uid} 1")),
            ("gid_map", format!("{gid} {gid} 1")),
        ] {
            let file = format!("/proc/self/{file}");
            if fs::write(&file, text).is_err() {
                // Ubuntu lets the unshare pass and then takes every capability away.
                return Err(NetnsError::Refused { reason: nix::errno::Errno::EPERM, mend: mend() });
            }
        }
        hand_on_capabilities().map_err(os("keep capabilities for what is started"))?;
    }
    if inode("/proc/self/ns/net")? == before {
        return Err(NetnsError::NotIsolated("the network namespace".into()));
    }
    Ok(!uid.is_root())
}

/// Puts every capability that the new user namespace gives into the ambient
/// set, by which programs of a user other than root keep it (capabilities(7)).
fn hand_on_capabilities() -> io::Result<()> {
    let all = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    for set in [CapSet::Inheritable, CapSet::Ambient] {
        caps::set(None, set, &all).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Which setting of this host refuses user namespaces.
fn mend() -> String {
    let read = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned()).ok();
    if read("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        "set sysctl kernel.unprivileged_userns_clone=1".into()
    } else if read("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        "set sysctl user.max_user_namespaces=10000".into()
    } else if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1")
    {
        "set sysctl kernel.apparmor_restrict_unprivileged_userns=0".into()
    } else {
        "allow user namespaces (sysctl kernel.unprivileged_userns_clone, \
         user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns, \
         or the container's seccomp profile)"
            .into()
    }
}

/// The inner process's first steps. `liveness` is the number of the pipe's end
/// that it inherited: at its other end is the outer process.
pub fn settle(liveness: i32) -> Result<(), NetnsError> {
    // prctl(2): the signal comes from an ancestor namespace, so PID 1 is not spared.
    set_pdeathsig(Signal::SIGKILL).map_err(os("tie the lab to the process that started it"))?;
    // The outer process may have died before that: then the pipe is at its end.
    let pipe = File::open(format!("/proc/self/fd/{liveness}")).map_err(os("open the pipe"))?;
    nix::unistd::close(liveness).map_err(os("close the inherited pipe"))?;
    std::thread::Builder::new()
        .name("liveness".into())
        .spawn(move || {
            let mut pipe = pipe;
            // Nothing is ever written: this returns when the outer process is gone.
            let _ = pipe.read(&mut [0]);
            std::process::exit(1);
        })
        .map_err(os("start a thread"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(os("make mounts private"))?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
        .map_err(os("mount a tmpfs on /run"))?;
    // Refused where a container hides parts of /proc. What the lab reads there
    // (/proc/self, /proc/thread-self, /proc/sys/net) follows the caller anyway.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("proc"), "/proc", Some("proc"), flags, none);
    Ok(())
}

/// This process's number in the PID namespace that /proc shows: before
/// [`settle`], the one outside. Empty where it cannot be told.
#[must_use]
pub fn outside_pid() -> String {
    fs::read_link("/proc/self").map(|p| p.display().to_string()).unwrap_or_default()
}

/// The names of the network namespaces that this lab has made.
#[must_use]
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn inode(path: impl AsRef<Path>) -> Result<u64, OsError> {
    let path = path.as_ref();
    fs::metadata(path).map(|m| m.ino()).map_err(os(format!("stat {}", path.display())))
}

/// A host of the topology: a network namespace, held open.
#[derive(Debug)]
pub struct Host {
    /// The namespace's name.
    pub name: String,
    namespace: File,
}

impl Host {
    /// The namespace that `ip netns add NAME` made.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        let path = Path::new(NETNS_DIR).join(name);
        let namespace = File::open(&path).map_err(os(format!("open {}", path.display())))?;
        if inode(&path)? == inode("/proc/self/ns/net")? {
            return Err(NetnsError::NotIsolated(path.display().to_string()));
        }
        Ok(Self { name: name.to_owned(), namespace })
    }

    /// Runs `job` in a thread that lives in this host, and gives its result: whatever it starts,
    /// opens or reads belongs to this namespace.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, || {
                    setns(&self.namespace, CloneFlags::CLONE_NEWNET)
                        .map_err(os(format!("enter {}", self.name)))?;
                    Ok(job())
                })
                .map_err(os(format!("start a thread for {}", self.name)))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Takes the name away: the namespace ends with the last process and socket in it.
    pub fn remove(&self) -> Result<(), OsError> {
        let path = Path::new(NETNS_DIR).join(&self.name);
        umount2(&path, MntFlags::MNT_DETACH).map_err(os(format!("unmount {}", path.display())))?;
        fs::remove_file(&path).map_err(os(format!("remove {}", path.display())))
    }
}
