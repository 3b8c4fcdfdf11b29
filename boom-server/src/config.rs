//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use canary_forge::forgery::Forgeries;
use canary_record::names::ClientClass;
use canary_runtime::cli;
use canary_runtime::logs::LogFormat;
use clap::{Parser, ValueEnum};
use ipnet::IpNet;

/// Forges TCP segments that conntrack calls INVALID towards every client that
/// connects, and judges from the answers what the client's node does with them.
///
/// Exit status: 0 protected, 1 could not run, 2 wrong option, 10 vulnerable,
/// 11 nothing proved.
#[derive(Clone, Debug, Parser)]
#[command(name = "boom-server", version)]
pub struct Config {
    /// Where to accept.
    #[arg(
        long,
        help = "Address and port to accept on; [::] takes both families [may be repeated]",
        env = "BOOM_LISTEN",
        value_name = "ADDR",
        default_value = "[::]:9000",
        value_delimiter = ',',
        value_parser = cli::address
    )]
    pub listen: Vec<SocketAddr>,

    /// Address and port of / (a page), /metrics, /healthz, /readyz and /verdict; 'none' for no endpoint
    #[arg(long, env = "BOOM_ADMIN", value_name = "ADDR", default_value = "[::]:9100", value_parser = admin)]
    pub admin: Admin,

    /// What to forge, by turns over the connections: names, or the sets safe, lethal, all; none forges nothing, for clients that forge
    #[arg(long, env = "BOOM_FORGE", value_name = "LIST", default_value = "above-window,below-window", value_parser = Forgeries::from_str)]
    pub forge: Forgeries,

    /// How long after the handshake to forge; 0s is at once, more is in mid-stream
    #[arg(long, env = "BOOM_FORGE_DELAY", value_name = "D", default_value = "0s", value_parser = cli::duration)]
    pub forge_delay: Duration,

    /// What to do at the first RST that answers a forged segment
    #[arg(long, env = "BOOM_ON_RESET", value_name = "WHAT", default_value = "exit")]
    pub on_reset: OnReset,

    /// End when this many connections have been judged or ended otherwise
    #[arg(long, env = "BOOM_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub connections: Option<u64>,

    /// End after this time
    #[arg(long, env = "BOOM_DURATION", value_name = "D", value_parser = cli::positive_duration)]
    pub duration: Option<Duration>,

    /// How long an answer may take; slow paths get several round trips
    #[arg(long, env = "BOOM_OUTCOME_TIMEOUT", value_name = "D", default_value = "1s", value_parser = cli::positive_duration)]
    pub outcome_timeout: Duration,

    /// Judged above-window forgeries, on each path in use, that 'protected' needs
    #[arg(long, env = "BOOM_MIN_FORGED", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub min_forged: u64,

    /// Receive buffer of each raw socket
    #[arg(long, env = "BOOM_RECEIVE_BUFFER", value_name = "SIZE", default_value = "16MiB", value_parser = cli::size)]
    pub receive_buffer: usize,

    /// After --connections, how long to let open connections end by themselves
    #[arg(long, env = "BOOM_HOLD", value_name = "D", default_value = "10s", value_parser = cli::duration)]
    pub hold: Duration,

    /// Connections remembered at most
    #[arg(long, env = "BOOM_MAX_FLOWS", value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub max_flows: u32,

    /// Pod networks, to tell pods from other clients [may be repeated]
    #[arg(long, env = "BOOM_POD_CIDR", value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub pod_cidr: Vec<IpNet>,

    /// Addresses or networks of nodes [may be repeated]
    #[arg(long, env = "BOOM_NODE_IP", value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub node_ip: Vec<IpNet>,

    /// Write the result to this file too
    #[arg(long, env = "BOOM_OUTPUT", value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Where the one-line verdict goes [default: /dev/termination-log where it exists]
    #[arg(long, env = "BOOM_TERMINATION_LOG", value_name = "FILE")]
    pub termination_log: Option<PathBuf>,

    /// How events are written [default: text on a terminal, else json]
    #[arg(long, env = "BOOM_LOG", value_name = "FORMAT")]
    pub log: Option<LogFormat>,

    /// Events of single connections: at most 100 of each kind a second, or all
    #[arg(long, env = "BOOM_EVENTS", value_name = "WHICH", default_value = "some")]
    pub events: Events,

    /// This pod's address: where given, connections to other addresses are let alone
    #[arg(long, env = "POD_IP", value_name = "IP", value_parser = ip_or_empty, default_value = "", hide_default_value = true)]
    pub pod_ip: IpList,

    /// This pod's addresses, with commas between them
    #[arg(long, env = "POD_IPS", value_name = "IPS", value_parser = ip_or_empty, default_value = "", hide_default_value = true)]
    pub pod_ips: IpList,
}

/// `--on-reset`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnReset {
    /// End at once with status 10
    Exit,
    /// Count it and go on
    Count,
}

/// `--events`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Events {
    /// At most 100 of each kind a second; the rest is counted
    Some,
    /// Every one
    All,
}

/// `--admin`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin(pub Option<SocketAddr>);

fn admin(s: &str) -> Result<Admin, String> {
    if s == "none" {
        return Ok(Admin(None));
    }
    cli::address(s).map(|a| Admin(Some(a))).map_err(|e| format!("{e}, or none"))
}

/// Addresses; the empty text, as an unset downward API field gives it, is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpList(pub Vec<IpAddr>);

fn ip_or_empty(s: &str) -> Result<IpList, String> {
    s.split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.parse().map_err(|_| format!("'{s}' is not an IP address")))
        .collect::<Result<_, _>>()
        .map(IpList)
}

/// A network, or one address.
fn network(s: &str) -> Result<IpNet, String> {
    s.parse().or_else(|_| s.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
        format!("'{s}' is not a network: write 10.244.0.0/16, fd00::/64 or an address")
    })
}

impl Config {
    /// The class of a client; a node's address inside a pod network is a node's.
    pub(crate) fn class(&self, ip: IpAddr) -> ClientClass {
        let any = |nets: &[IpNet]| nets.iter().any(|n| n.contains(&ip));
        match (any(&self.node_ip), any(&self.pod_cidr)) {
            (true, _) => ClientClass::Node,
            (_, true) => ClientClass::Pod,
            _ if self.pod_cidr.is_empty() && self.node_ip.is_empty() => ClientClass::Unclassified,
            _ => ClientClass::Outside,
        }
    }

    /// POD_IP and POD_IPS together.
    pub(crate) fn local_ips(&self) -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for ip in self.pod_ip.0.iter().chain(&self.pod_ips.0).map(IpAddr::to_canonical) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        ips
    }
}

#[cfg(test)]
mod tests;
