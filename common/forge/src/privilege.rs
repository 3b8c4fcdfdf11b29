//! Capabilities: needed once, for the raw sockets, and gone after that.

use caps::{CapSet, Capability};

/// What cannot be done with capabilities.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The process has no CAP_NET_RAW.
    #[error(
        "missing capability CAP_NET_RAW, which raw sockets need: run as root, add NET_RAW to the \
         container's securityContext.capabilities, or `setcap cap_net_raw+ep` the program"
    )]
    Missing,
    /// The kernel refused to tell or to take capabilities.
    #[error("cannot {operation}: {why}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        why: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Capabilities are left although they were given up.
    #[error("capabilities are left in the {0} set although they were dropped")]
    Left(&'static str),
}

fn kernel<E: std::error::Error + Send + Sync + 'static>(
    operation: &'static str,
) -> impl FnOnce(E) -> PrivilegeError {
    move |e| PrivilegeError::Kernel { operation, why: Box::new(e) }
}

/// Checks that raw sockets may be opened, and makes the capability effective
/// where it is permitted only.
pub fn check() -> Result<(), PrivilegeError> {
    let has = |set| {
        caps::has_cap(None, set, Capability::CAP_NET_RAW).map_err(kernel("read capabilities"))
    };
    if has(CapSet::Effective)? {
        return Ok(());
    }
    if has(CapSet::Permitted)? {
        return caps::raise(None, CapSet::Effective, Capability::CAP_NET_RAW)
            .map_err(kernel("raise CAP_NET_RAW"));
    }
    Err(PrivilegeError::Missing)
}

/// Gives up every capability of the calling thread for good, and those that an
/// exec could bring back. To be called before any other thread exists: threads
/// inherit what is left. False when the bounding set could not be emptied, which
/// needs CAP_SETPCAP; no_new_privs makes it without effect all the same.
pub fn drop_all() -> Result<bool, PrivilegeError> {
    nix::sys::prctl::set_no_new_privs().map_err(kernel("set no_new_privs"))?;
    let mut bounding = true;
    // CAP_SETPCAP itself must go last, hence the bounding set before the others.
    for cap in caps::all() {
        let in_bounding = caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false);
        if in_bounding && caps::drop(None, CapSet::Bounding, cap).is_err() {
            bounding = false;
        }
    }
    // A kernel before 4.3 has no ambient set.
    let _ = caps::clear(None, CapSet::Ambient);
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(kernel("drop capabilities"))?;
    }
    for (set, name) in [
        (CapSet::Effective, "effective"),
        (CapSet::Permitted, "permitted"),
        (CapSet::Inheritable, "inheritable"),
    ] {
        if !caps::read(None, set).map_err(kernel("read capabilities"))?.is_empty() {
            return Err(PrivilegeError::Left(name));
        }
    }
    Ok(bounding)
}
