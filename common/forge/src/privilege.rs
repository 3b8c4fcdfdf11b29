//! Capabilities: needed once, for the raw sockets, and gone after that.

use std::fmt::Display;

use caps::{CapSet, Capability};

/// What cannot be done with capabilities.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PrivilegeError(String);

fn kernel<E: Display>(operation: &'static str) -> impl FnOnce(E) -> PrivilegeError {
    move |e| PrivilegeError(format!("cannot {operation}: {e}"))
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
    Err(PrivilegeError(
        "missing capability CAP_NET_RAW, which raw sockets need: run as root, add NET_RAW to the \
         container's securityContext.capabilities, or `setcap cap_net_raw+ep` the program"
            .to_owned(),
    ))
}

/// Gives up every capability of the calling thread for good, and those that an
/// exec could bring back. To be called before any other thread exists: threads
/// inherit what is left. False when the bounding set could not be emptied, which
/// needs CAP_SETPCAP; no_new_privs makes it without effect all the same.
pub fn drop_all() -> Result<bool, PrivilegeError> {
    nix::sys::prctl::set_no_new_privs().map_err(kernel("set no_new_privs"))?;
    // CAP_SETPCAP itself must go last, hence the bounding set before the others. Without it the
    // kernel lets none go (cap_prctl_drop()).
    let bounding = caps::clear(None, CapSet::Bounding).is_ok();
    // A kernel before 4.3 has no ambient set.
    let _ = caps::clear(None, CapSet::Ambient);
    let sets = [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted];
    for set in sets {
        caps::clear(None, set).map_err(kernel("drop capabilities"))?;
    }
    for set in sets {
        if !caps::read(None, set).map_err(kernel("read capabilities"))?.is_empty() {
            let left =
                format!("capabilities are left in the {set:?} set although they were dropped");
            return Err(PrivilegeError(left.to_lowercase()));
        }
    }
    Ok(bounding)
}
