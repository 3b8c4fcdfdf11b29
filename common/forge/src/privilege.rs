//! Capabilities: needed once, for the raw sockets, and gone after that.

use anyhow::{Context as _, ensure};
use caps::{CapSet, Capability};

const READ: &str = "cannot read capabilities";

/// Checks that raw sockets may be opened, and makes the capability effective
/// where it is permitted only.
pub fn check() -> anyhow::Result<()> {
    let has = |set| caps::has_cap(None, set, Capability::CAP_NET_RAW).context(READ);
    if has(CapSet::Effective)? {
        return Ok(());
    }
    ensure!(
        has(CapSet::Permitted)?,
        "missing capability CAP_NET_RAW, which raw sockets need: run as root, add NET_RAW to the \
         container's securityContext.capabilities, or `setcap cap_net_raw+ep` the program"
    );
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_RAW)
        .context("cannot raise CAP_NET_RAW")
}

/// Gives up every capability of the calling thread for good, and those that an
/// exec could bring back. To be called before any other thread exists: threads
/// inherit what is left. False when the bounding set could not be emptied, which
/// needs CAP_SETPCAP; no_new_privs makes it without effect all the same.
pub fn drop_all() -> anyhow::Result<bool> {
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")?;
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
        caps::clear(None, set).context("cannot drop capabilities")?;
    }
    for (set, name) in [
        (CapSet::Effective, "effective"),
        (CapSet::Permitted, "permitted"),
        (CapSet::Inheritable, "inheritable"),
    ] {
        let left = caps::read(None, set).context(READ)?;
        ensure!(
            left.is_empty(),
            "capabilities are left in the {name} set although they were dropped"
        );
    }
    Ok(bounding)
}
