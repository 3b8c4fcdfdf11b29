//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use canary_runtime::cli::positive_duration;
use canary_wire::segment::Family;
use clap::{Args, Parser, Subcommand};

use load_client::threshold::Threshold;

use crate::manifests::Set;
use crate::output::Format;
use crate::tune::Sysctl;

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
    /// Many load-clients against one target through its Service, and one result of all
    Load(LoadArgs),
    /// Watches every node for a while: which connections INVALID segments ended, by pod, Service and node
    Witness(WitnessArgs),
    /// Load from none to many clients, a table smaller than the load, be_liberal: what resets, and what times out
    Experiment(ExperimentArgs),
    /// Sets conntrack sysctls on nodes while it runs, reads them back, and puts the old values back
    Tune(TuneArgs),
    /// Prints manifests of k8s/, for kubectl apply or GitOps
    Manifests(ManifestsArgs),
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
    /// The longest that a step in the cluster may take, its images' pull included
    #[arg(long, value_name = "D", default_value = "3m", value_parser = positive_duration)]
    pub timeout: Duration,
    /// Keeps every result document in this folder (experiment: results/cluster-TIME if not named)
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
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

impl ImageArgs {
    /// The whole name of a program's image.
    pub(crate) fn of(&self, program: &str) -> String {
        format!("{}/{program}:{}", self.registry.trim_end_matches('/'), self.tag)
    }
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
    #[arg(long, value_name = "FAMILY", value_delimiter = ',')]
    pub family: Vec<Family>,
    /// Nodes tried at once: each takes 6 node ports meanwhile, 10 where Services have two families
    #[arg(long, value_name = "N", default_value_t = 170, value_parser = clap::value_parser!(u32).range(2..=250))]
    pub parallel: u32,
    /// How the result is written
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of `load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Pods that make connections
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// New connections a second of each
    #[arg(long, value_name = "R", default_value_t = 50.0, value_parser = rate)]
    pub rate: f64,
    /// How long each makes connections
    #[arg(long, value_name = "D", default_value = "60s", value_parser = positive_duration)]
    pub duration: Duration,
    /// Exit code 10 when this is true of the whole, e.g. reset>0, error-rate>0.01, p99>200ms
    #[arg(long, value_name = "EXPR", value_delimiter = ',')]
    pub fail_on: Vec<Threshold>,
    /// How the result is written
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// The word before a cluster's nodes are changed.
#[derive(Clone, Debug, Args)]
pub struct ConfirmArgs {
    /// The context's name, instead of typing it: this changes nodes
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<String>,
}

/// Options of `witness`.
#[derive(Clone, Debug, Args)]
pub struct WitnessArgs {
    /// How long every node watches
    #[arg(long = "for", value_name = "D", value_parser = positive_duration)]
    pub duration: Duration,
    /// Nodes by label, as kubectl's -l (default: every Linux node)
    #[arg(long, value_name = "SELECTOR")]
    pub nodes: Option<String>,
    /// How the result is written
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of `experiment`.
#[derive(Clone, Debug, Args)]
pub struct ExperimentArgs {
    /// Numbers of clients, one step each
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,10,20,50", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub clients: Vec<u32>,
    /// How long each step lasts
    #[arg(long, value_name = "D", default_value = "30s", value_parser = positive_duration)]
    pub step: Duration,
    /// The step with a table smaller than the load: nf_conntrack_max on every node. Without it that step is left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub table_size: Option<u64>,
    /// Where pods cannot write nf_conntrack_max (kind, nodes in containers): with a number as its last word it sets
    /// it, without one it prints it
    #[arg(long, value_name = "COMMAND", requires = "table_size")]
    pub table_command: Option<String>,
    /// First holds kube-proxy's drop of INVALID off, as k8s/tests/unprotect does
    #[arg(long)]
    pub hold_off_drop: bool,
    /// How the result is written; the folder has it as JSON, JUnit and page in any case
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Consent.
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of `tune`.
#[derive(Clone, Debug, Args)]
pub struct TuneArgs {
    /// Sysctls of conntrack, e.g. nf_conntrack_tcp_be_liberal=1 or nf_conntrack_max=262144
    #[arg(required = true, value_name = "NAME=NUMBER")]
    pub sysctls: Vec<Sysctl>,
    /// Nodes by label, as kubectl's -l (default: every Linux node)
    #[arg(long, value_name = "SELECTOR")]
    pub nodes: Option<String>,
    /// Puts the old values back after this time (default: at SIGINT or SIGTERM). With --keep they stay
    #[arg(long = "for", value_name = "D", value_parser = positive_duration, conflicts_with = "keep")]
    pub hold: Option<Duration>,
    /// How the result is written
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Consent.
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of `manifests`.
#[derive(Clone, Debug, Args)]
pub struct ManifestsArgs {
    /// Which
    pub set: Set,
    /// Their namespace (default: the one of each)
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The images.
    #[command(flatten)]
    pub images: ImageArgs,
}

fn rate(s: &str) -> Result<f64, String> {
    match s.parse::<f64>() {
        Ok(r) if r.is_finite() && r > 0.0 && r <= 1_000_000.0 => Ok(r),
        _ => Err("write connections a second, above 0 and at most 1000000".to_owned()),
    }
}
