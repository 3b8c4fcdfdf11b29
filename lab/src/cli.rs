//! The command line.

use std::path::{Path, PathBuf};

use crate::document::lab::{Protection, ProxyMode};
use canary_wire::segment::Family;
use clap::{Args, Parser, Subcommand};

use crate::kernels::KernelsArgs;
use crate::run::host_table::{SMALLEST, TableArgs};
use crate::run::setting::CaptureMode;

/// Reproduces Kubernetes issue #74839 on one machine, with real packets through
/// the real kernel, and judges which protections hold.
///
/// Exit codes: 0 every expectation held; 1 could not do its job; 2 wrong usage;
/// 10 something differs from its expectation; 11 the run proved nothing. What this machine cannot run is
/// skipped, said with its reason, and never passes: where that is everything that was asked for, 11.
#[derive(Debug, Parser)]
#[command(name = "conntrack-lab", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The pipe to the outer process; set by the lab itself.
    #[arg(long, hide = true, global = true)]
    pub inside: Option<i32>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says whether everything that the lab needs is here
    Check(BinArgs),
    /// Lists the scenarios
    List,
    /// Runs scenarios and judges them
    Run(RunArgs),
    /// Writes NAME.toml, a scenario of your own to begin with
    New {
        /// Its name: lower-case letters, digits and hyphens
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Opens a shell inside a host of a scenario's topology, rules loaded, no program running
    Shell(ShellArgs),
    /// Sets the host's conntrack limit until its stdin ends; started by the lab itself
    #[command(hide = true)]
    HostTable(TableArgs),
    /// Puts the results of several kernels in one table
    Kernels(KernelsArgs),
    /// Writes report.html and junit.xml again from a run's results.json
    Report {
        /// Directory that `run` wrote
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Judges what kubectl conntrack experiment collected in a cluster: results.json, report.html and junit.xml
    Cluster {
        /// Directory that `kubectl conntrack experiment` wrote
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Says which verdicts changed between two runs (exit code 10 if any did)
    Diff {
        /// Directory of the older run
        #[arg(value_name = "DIR")]
        first: PathBuf,
        /// Directory of the newer run
        #[arg(value_name = "DIR")]
        second: PathBuf,
    },
}

/// Where the programs are.
#[derive(Clone, Debug, Args)]
pub struct BinArgs {
    /// Directory of boom-server and load-client (default: that of this program)
    #[arg(long, value_name = "DIR", env = "LAB_BIN_DIR")]
    pub bin_dir: Option<PathBuf>,
}

impl BinArgs {
    /// A program of the suite: in that directory, or beside this one.
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf, String> {
        let own = || std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_owned));
        let path = self.bin_dir.clone().or_else(own).unwrap_or_default().join(name);
        path.canonicalize().map_err(|e| {
            let path = path.display();
            format!("cannot find {path}: {e}; build it or name its directory with --bin-dir")
        })
    }
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Scenarios by name, or files whose names end in .toml; `all` for every shipped one (default: those
    /// that `list` marks)
    #[arg(value_name = "SCENARIO", env = "LAB_SCENARIO", value_delimiter = ',')]
    pub scenarios: Vec<String>,
    /// Directory for the results; must not exist or be empty (default: results/TIME)
    #[arg(long, value_name = "DIR", env = "LAB_OUTPUT")]
    pub output: Option<PathBuf>,
    /// Runs everything this many times
    #[arg(long, value_name = "N", env = "LAB_REPEAT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Runs each case of a cause under each mend too: what helps, what does not, what harms
    #[arg(long, env = "LAB_MENDS")]
    pub mends: bool,
    /// Connections for each forgery in each cell (default: the scenario's own); situations have their own number
    #[arg(long, value_name = "N", env = "LAB_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub connections: Option<u32>,
    /// Which packet captures are kept; of situations none but with `all`
    #[arg(long, value_name = "WHICH", env = "LAB_CAPTURE", default_value = "one")]
    pub capture: CaptureMode,
    /// Cells at a time
    #[arg(long, value_name = "N", env = "LAB_JOBS", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Stays up afterwards until Ctrl-C and says how to enter each host
    #[arg(long, env = "LAB_KEEP")]
    pub keep: bool,
    /// Sets the host's nf_conntrack_max and buckets to this for the run, as root (default: as they are)
    #[arg(long, value_name = "N", env = "LAB_HOST_TABLE_SIZE", value_parser = clap::value_parser!(u64).range(SMALLEST..=4_000_000))]
    pub host_table_size: Option<u64>,
    /// Multiplies every wait, and with them the conntrack timeouts that a situation sets; more than 1 for an emulated or very slow machine
    #[arg(long, value_name = "X", env = "LAB_TIME_SCALE", default_value_t = 1.0, value_parser = time_scale)]
    pub time_scale: f64,
    /// Where the programs are.
    #[command(flatten)]
    pub bin: BinArgs,
}

/// Options of `shell`.
#[derive(Clone, Debug, Args)]
pub struct ShellArgs {
    /// Scenario of paths (no `kind`, or kind = "matrix") by name, or its file; the hosts of a situation stay up
    /// after `run FILE --keep`
    #[arg(value_name = "SCENARIO")]
    pub scenario: String,
    /// Host: client, server, node1, node2, or outside where the path has it
    #[arg(long = "in", value_name = "HOST")]
    pub host: String,
    /// What protects, e.g. forward-drop or liberal@client (may be repeated)
    #[arg(long, value_name = "PROTECTION", env = "LAB_PROTECTION", value_delimiter = ',')]
    pub protection: Vec<Protection>,
    /// Whose rules: nftables or iptables (default: the scenario's first)
    #[arg(long, value_name = "NAME", env = "LAB_PROXY_MODE")]
    pub proxy_mode: Option<ProxyMode>,
    /// IP family of the rules: ipv4 or ipv6 (default: the scenario's first)
    #[arg(long, value_name = "FAMILY", env = "LAB_FAMILY")]
    pub family: Option<Family>,
    /// Where the programs are.
    #[command(flatten)]
    pub bin: BinArgs,
}

fn time_scale(s: &str) -> Result<f64, String> {
    match s.parse::<f64>() {
        Ok(x) if (0.5..=100.0).contains(&x) => Ok(x),
        _ => Err(format!("'{s}' is not a factor from 0.5 to 100")),
    }
}
