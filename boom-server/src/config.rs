//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use canary_forge::forgery::Forgeries;
use canary_runtime::cli;
use canary_runtime::logs::LogFormat;
use clap::{Parser, ValueEnum};

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
    #[arg(long, env = "BOOM_POD_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub pod_cidr: Vec<Cidr>,

    /// Addresses or networks of nodes [may be repeated]
    #[arg(long, env = "BOOM_NODE_IP", value_name = "CIDR", value_delimiter = ',')]
    pub node_ip: Vec<Cidr>,

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// True when `ip` lies in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let shift = |bits: u8| u32::from(bits) - u32::from(self.prefix);
        match (self.base, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u32::from(a) ^ u32::from(b)).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (u128::from(a) ^ u128::from(b)).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{s}' is not a network: write 10.244.0.0/16, fd00::/64 or an address");
        let (base, prefix) = s.split_once('/').map_or((s, None), |(b, p)| (b, Some(p)));
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if prefix > most {
            return Err(wrong());
        }
        Ok(Self { base, prefix })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl Config {
    /// POD_IP and POD_IPS together.
    #[must_use]
    pub fn local_ips(&self) -> Vec<IpAddr> {
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
