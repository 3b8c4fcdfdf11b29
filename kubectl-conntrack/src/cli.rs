//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use canary_runtime::cli::positive_duration;
use canary_wire::segment::Family;
use clap::{Args, Parser, Subcommand};

use crate::output::Format;

/// Is every node of this cluster protected against Kubernetes issue #74839, on every path?
///
/// Exit codes: 0 protected; 1 could not do its job; 2 wrong usage; 10 vulnerable; 11 nothing proved, or not all.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-conntrack",
    bin_name = "kubectl conntrack",
    version,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Node by node and family by family: which paths leak
    Diagnose(DiagnoseArgs),
}

/// Options of every subcommand that talks to a cluster.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// Another context of the kubeconfig than the current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// An existing namespace to use, which is never deleted (default: one of its own)
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Removes first what an earlier run left in this program's own namespace
    #[arg(long)]
    pub replace: bool,
    /// Leaves its objects for a look at them, and says how to remove them
    #[arg(long)]
    pub keep: bool,
    /// The images.
    #[command(flatten)]
    pub images: ImageArgs,
}

/// Which images.
#[derive(Clone, Debug, Args)]
pub struct ImageArgs {
    /// Where the images are, without their names
    #[arg(
        long,
        value_name = "REGISTRY",
        env = "CONNTRACK_REGISTRY",
        default_value = "conntrack-canary"
    )]
    pub registry: String,
    /// Their tag
    #[arg(long, value_name = "TAG", env = "CONNTRACK_TAG", default_value = env!("CARGO_PKG_VERSION"))]
    pub tag: String,
}

/// Options of `diagnose`.
#[derive(Clone, Debug, Args)]
pub struct DiagnoseArgs {
    /// Nodes by label, as kubectl's -l (default: every Linux node)
    #[arg(long, value_name = "SELECTOR")]
    pub nodes: Option<String>,
    /// At most this many of each group of nodes with one kernel, OS image and kubelet
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: Option<u32>,
    /// Families to try (default: all that the cluster's Services have)
    #[arg(long, value_name = "FAMILY", value_delimiter = ',', value_parser = family)]
    pub family: Vec<Family>,
    /// Nodes tried at once
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=300))]
    pub parallel: u32,
    /// The longest that these may take, their images' pull included
    #[arg(long, value_name = "D", default_value = "3m", value_parser = positive_duration)]
    pub timeout: Duration,
    /// How the result is written
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Keeps every result document in this folder
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

fn family(s: &str) -> Result<Family, String> {
    match s {
        "ipv4" => Ok(Family::Ipv4),
        "ipv6" => Ok(Family::Ipv6),
        _ => Err("write ipv4 or ipv6".to_owned()),
    }
}
