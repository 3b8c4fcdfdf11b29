//! The tools that the lab calls, and where this system keeps them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Call, ExecError};

/// Where every tool was found.
#[derive(Clone, Debug, Default)]
pub struct Tools(BTreeMap<&'static str, PathBuf>);

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

impl Tools {
    /// Looks for every tool on PATH and in the sbin directories, which an
    /// ordinary user's PATH lacks.
    #[must_use]
    pub fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = std::env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
            .filter(|d| d.is_absolute())
            .collect();
        let found = TOOLS.iter().chain(SPECIAL).filter_map(|(tool, _)| {
            let file = dirs.iter().map(|d| d.join(tool)).find(|f| f.is_file())?;
            Some((*tool, file))
        });
        Self(found.collect())
    }

    /// The path of a tool, or how to get it.
    pub fn path(&self, tool: &str) -> Result<&Path, ExecError> {
        self.0.get(tool).map(PathBuf::as_path).ok_or_else(|| ExecError::Missing {
            tool: tool.to_owned(),
            package: TOOLS.iter().chain(SPECIAL).find(|(t, _)| *t == tool).map_or("?", |(_, p)| p),
        })
    }

    /// A call of a tool.
    pub fn call(&self, tool: &str, args: &[&str]) -> Result<Call, ExecError> {
        Ok(Call::new(self.path(tool)?, args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A missing tool is named with its package.
    #[test]
    fn a_missing_tool_names_its_package() {
        let e = Tools::default().path("nft").unwrap_err();
        assert_eq!(
            e.to_string(),
            "nft is missing: install the Debian package nftables (or put it on PATH)"
        );
    }
}
