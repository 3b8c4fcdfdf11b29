//! The tools that the lab calls, and where this system keeps them.

use std::path::PathBuf;

use super::{Call, ExecError};
use crate::os::wrong;

/// Every tool that the lab needs, and its Debian package.
pub const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-restore", "iptables"),
    ("iptables-save", "iptables"),
    ("ip6tables-restore", "iptables"),
    ("ip6tables-save", "iptables"),
    ("tcpdump", "tcpdump"),
];

/// What a part of the lab alone calls, and its Debian package.
const SPECIAL: &[(&str, &str)] = &[("ipvsadm", "ipvsadm")];

/// Where a tool is: on PATH, or in the sbin directories, which an ordinary user's PATH lacks.
pub fn find(tool: &str) -> Result<PathBuf, ExecError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .filter(|d| d.is_absolute());
    dirs.find_map(|d| Some(d.join(tool)).filter(|f| f.is_file())).ok_or_else(|| missing(tool))
}

fn missing(tool: &str) -> ExecError {
    let known = TOOLS.iter().chain(SPECIAL).find(|(name, _)| *name == tool);
    let package = known.map_or("?", |(_, package)| package);
    let mend = format!("install the Debian package {package} (or put it on PATH)");
    wrong(format!("find {tool}"))(mend).into()
}

impl Call {
    /// A call of a tool.
    pub fn tool(name: &str, args: &[impl AsRef<str>]) -> Result<Self, ExecError> {
        Ok(Self::new(&find(name)?, args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A missing tool is named with its package; one that is there is found.
    #[test]
    fn a_missing_tool_names_its_package() {
        assert!(find("sh").is_ok() && find("moon").is_err());
        assert_eq!(
            missing("nft").to_string(),
            "cannot find nft: install the Debian package nftables (or put it on PATH)"
        );
    }
}
