//! Signals: a request to end as a flag that every wait looks at, and the outer
//! process, which hands them on.

use std::io;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use canary_record::names::EndedBy;
use canary_runtime::shutdown::Shutdown;
use nix::sys::signal::{SigSet, Signal};

use super::ExecError;
use super::process::Guard;

/// A request to end, by SIGINT or SIGTERM. Every wait looks at it.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(pub(super) Arc<OnceLock<EndedBy>>);

impl Interrupt {
    /// Catches SIGINT and SIGTERM from here on. The outer process starts this
    /// one with signals blocked, so that none is lost before; programs inherit
    /// the mask that this leaves, which is empty, and no handler.
    pub fn catch() -> io::Result<Self> {
        let this = Self::default();
        let flag = this.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut shutdown = {
            let _inside = runtime.enter();
            Shutdown::catch()?
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            loop {
                flag.set(runtime.block_on(shutdown.signalled()));
            }
        })?;
        SigSet::all().thread_unblock()?;
        Ok(this)
    }

    /// Asks for it; the first to ask says what ended it.
    pub fn set(&self, by: EndedBy) {
        let _ = self.0.set(by);
    }

    /// The signal that came, if one did.
    #[must_use]
    pub fn signalled(&self) -> Option<EndedBy> {
        self.0.get().copied()
    }

    /// An error once a signal has come.
    pub fn check(&self) -> Result<(), ExecError> {
        self.signalled().map_or(Ok(()), |by| Err(ExecError::Interrupted(by)))
    }

    /// Waits, but not beyond a signal.
    pub fn sleep(&self, time: Duration) -> Result<(), ExecError> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

/// Starts `command`, with signals blocked, and stands in for it: passes SIGINT and SIGTERM on, and
/// returns its status. For the outer process, which has one thread alone.
pub fn supervise(command: &mut Command) -> io::Result<ExitStatus> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    // Blocked before the start, so that none is missed between the two.
    set.thread_block()?;
    let mut child = Guard(command.spawn()?);
    loop {
        match set.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = child.0.try_wait()? {
                    return Ok(status);
                }
            }
            signal => {
                let to = if signal == Signal::SIGHUP { Signal::SIGTERM } else { signal };
                child.signal(to);
            }
        }
    }
}
