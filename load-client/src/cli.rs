//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use canary_forge::forgery::Forgeries;
use canary_runtime::cli::{address, duration, positive_duration, size};
use canary_runtime::logs::LogFormat;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::target::Target;
use crate::threshold::Threshold;

/// Makes TCP connections at a rate, holds them open or probes them, and accounts for every one.
///
/// Exit codes: 0 within thresholds; 1 could not do its job; 2 wrong usage; 10 a threshold was
/// crossed; 11 the run proved nothing.
#[derive(Debug, Parser)]
#[command(name = "load-client", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A new connection for every request, in a closed loop or at a rate
    Churn(Sub<ChurnArgs>),
    /// Opens connections to boom-server and tells how each one ended
    Probe(Sub<ProbeArgs>),
    /// The HTTP and TCP target of churn and hold, on one port
    Serve(Sub<ServeArgs>),
    /// Keeps connections open, with keep-alive traffic, and replaces those that are lost
    Hold(Sub<HoldArgs>),
    /// Conntrack count, limit and statistics of this network namespace
    Observe(Sub<ObserveArgs>),
    /// Which connections of this network namespace an INVALID segment ended, in the kernel's own words
    Witness(Sub<WitnessArgs>),
    /// Joins the results of many churns, holds or probes into one
    Merge(Sub<MergeArgs>),
}

/// The options of one subcommand, and those of every one.
#[derive(Clone, Debug, Args)]
pub(crate) struct Sub<A: Args> {
    #[command(flatten)]
    pub(crate) own: A,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Options of every subcommand.
#[derive(Clone, Debug, Args)]
pub(crate) struct CommonArgs {
    /// Writes the result document to this file
    #[arg(long, value_name = "FILE", env = "LOAD_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
    /// Where to serve /metrics, /healthz and /readyz (default: nowhere)
    #[arg(long, value_name = "ADDR", env = "LOAD_ADMIN", value_parser = address)]
    pub(crate) admin: Option<SocketAddr>,
    /// How events are written (default: text on a terminal, otherwise json)
    #[arg(long, value_name = "FORMAT", env = "LOAD_LOG")]
    pub(crate) log: Option<LogFormat>,
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Close {
    /// With FIN, as applications do.
    Fin,
    /// With RST (linger 0): leaves no TIME_WAIT; counted as this program's own resets.
    Rst,
}

/// How `churn`, `hold` and `probe` reach their target.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReachArgs {
    /// Asks again this long while the name has no address, as a Service's just after its creation
    #[arg(long, value_name = "D", env = "LOAD_RESOLVE_TIMEOUT", default_value = "0s", value_parser = duration)]
    pub(crate) resolve_timeout: Duration,
    /// Longest time without progress in each phase: connect, send, receive
    #[arg(long, value_name = "D", env = "LOAD_TIMEOUT", default_value = "10s", value_parser = positive_duration)]
    pub(crate) timeout: Duration,
    /// Local address to connect from; several are used by turns
    #[arg(long, value_name = "IP", env = "LOAD_SOURCE_IP", value_delimiter = ',')]
    pub(crate) source_ip: Vec<IpAddr>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ChurnArgs {
    /// tcp://HOST:PORT (connect and close) or http://HOST:PORT/PATH (one request each)
    #[arg(long, value_name = "URL", env = "LOAD_TARGET")]
    pub(crate) target: Target,
    /// How the target is reached.
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Open loop: new connections a second, by a schedule computed from the start
    #[arg(long, value_name = "N", env = "LOAD_RATE", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Closed loop: connections in progress at once; with --rate the most allowed
    #[arg(long, value_name = "N", env = "LOAD_CONCURRENCY", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) concurrency: Option<u32>,
    /// Ends after this time
    #[arg(long, value_name = "D", env = "LOAD_DURATION", value_parser = positive_duration)]
    pub(crate) duration: Option<Duration>,
    /// Ends after this many connections
    #[arg(long, value_name = "N", env = "LOAD_CONNECTIONS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) connections: Option<u64>,
    /// How this side closes
    #[arg(long, env = "LOAD_CLOSE", default_value = "fin")]
    pub(crate) close: Close,
    /// Reaches the full rate or concurrency after this time, linearly
    #[arg(long, value_name = "D", env = "LOAD_RAMP", default_value = "0s", value_parser = duration)]
    pub(crate) ramp: Duration,
    /// With --rate: moves each start by up to this part of the interval, 0 to 1
    #[arg(long, value_name = "PART", env = "LOAD_JITTER", default_value = "0", requires = "rate", value_parser = part)]
    pub(crate) jitter: f64,
    /// Fills a node's conntrack table and keeps it full: a connection begins only while the table that
    /// `load-client observe --admin` sees at this address has room (with --rate: no faster than that)
    #[arg(long, value_name = "URL", env = "LOAD_FILL")]
    pub(crate) fill: Option<Target>,
    /// With --fill: the part of the table's limit to fill. At the limit itself the kernel
    /// drops SYNs and then evicts closing entries down to 95%
    #[arg(long, value_name = "PART", env = "LOAD_FILL_TO", default_value = "0.995", value_parser = some_part)]
    pub(crate) fill_to: f64,
    /// Exit code 10 when this is true, e.g. reset>0, error-rate>0.01, stall>0, p99>200ms
    #[arg(long, value_name = "EXPR", env = "LOAD_FAIL_ON", value_delimiter = ',')]
    pub(crate) fail_on: Vec<Threshold>,
    /// Ended by a signal, stays this long after its result: a pod's log can be read until then.
    /// Another signal ends it at once
    #[arg(long, value_name = "D", env = "LOAD_LINGER", default_value = "0s", value_parser = duration)]
    pub(crate) linger: Duration,
    /// Worker threads (default: one for each CPU)
    #[arg(long, value_name = "N", env = "LOAD_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct HoldArgs {
    /// load-client serve or boom-server: tcp://HOST:PORT
    #[arg(long, value_name = "URL", env = "LOAD_TARGET")]
    pub(crate) target: Target,
    /// How the target is reached.
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Connections to keep open
    #[arg(long, value_name = "N", env = "LOAD_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) connections: u32,
    /// Ends after this time (default: at SIGTERM or SIGINT)
    #[arg(long, value_name = "D", env = "LOAD_DURATION", value_parser = positive_duration)]
    pub(crate) duration: Option<Duration>,
    /// Between two lines sent on each connection
    #[arg(long, value_name = "D", env = "LOAD_INTERVAL", default_value = "10s", value_parser = positive_duration)]
    pub(crate) interval: Duration,
    /// Opens them over this time, evenly
    #[arg(long, value_name = "D", env = "LOAD_RAMP", default_value = "0s", value_parser = duration)]
    pub(crate) ramp: Duration,
    /// How this side closes at the end
    #[arg(long, env = "LOAD_CLOSE", default_value = "fin")]
    pub(crate) close: Close,
    /// Exit code 10 when this is true, e.g. reset>0
    #[arg(
        long,
        value_name = "EXPR",
        env = "LOAD_FAIL_ON",
        value_delimiter = ',',
        default_value = "lost>0"
    )]
    pub(crate) fail_on: Vec<Threshold>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct MergeArgs {
    /// Results, or logs whose last line is one
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Exit code 10 when this is true of the whole, e.g. reset>0
    #[arg(long, value_name = "EXPR", env = "LOAD_FAIL_ON", value_delimiter = ',')]
    pub(crate) fail_on: Vec<Threshold>,
}

/// What an application does with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pattern {
    /// Nothing for the delay, then one tiny request.
    Idle,
    /// One request, answered at once.
    Request,
    /// One request, answered after --answer-delay.
    SlowAnswer,
    /// A body of --body-size from the server.
    Download,
    /// A body of --body-size to the server.
    Upload,
}

/// What `probe` forges.
#[derive(Clone, Debug, Args)]
pub(crate) struct ForgeArgs {
    /// Forges a segment towards the server on each connection, by turns: names, or the sets safe, lethal,
    /// all. Judges the direction client-to-server. Needs CAP_NET_RAW: without it the direction is untried
    #[arg(long, value_name = "LIST", env = "LOAD_FORGE", conflicts_with = "every", value_parser = Forgeries::from_str)]
    pub(crate) forge: Option<Forgeries>,
    /// With --forge: how long an answer may take; slow paths get several round trips
    #[arg(long, value_name = "D", env = "LOAD_OUTCOME_TIMEOUT", default_value = "1s", requires = "forge", value_parser = positive_duration)]
    pub(crate) outcome_timeout: Duration,
    /// With --forge: judged above-window forgeries that 'protected' needs
    #[arg(long, value_name = "N", env = "LOAD_MIN_FORGED", default_value_t = 20, requires = "forge", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) min_forged: u64,
    /// With --forge: receive buffer of the raw socket
    #[arg(long, value_name = "SIZE", env = "LOAD_RECEIVE_BUFFER", default_value = "16MiB", requires = "forge", value_parser = size)]
    pub(crate) receive_buffer: usize,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ProbeArgs {
    /// boom-server: tcp://HOST:PORT
    #[arg(long, value_name = "URL", env = "LOAD_TARGET")]
    pub(crate) target: Target,
    /// How the target is reached.
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Connects by turns to an address of each IP family that the name has (default: to the first address)
    #[arg(long, env = "LOAD_EACH_FAMILY", conflicts_with = "forge")]
    pub(crate) each_family: bool,
    /// Connects first, one by one and uncounted, until boom-server answers, this long at most: a Service's rules come later
    /// than its address, and until then kube-proxy's own socket may hold its node port
    #[arg(long, value_name = "D", env = "LOAD_AWAIT_ANSWER", default_value = "0s", value_parser = duration)]
    pub(crate) await_answer: Duration,
    /// Connections, all opened at once
    #[arg(long, value_name = "N", env = "LOAD_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: u32,
    /// Opens that many again, this often, until --duration or a signal
    #[arg(long, value_name = "D", env = "LOAD_EVERY", value_parser = positive_duration)]
    pub(crate) every: Option<Duration>,
    /// With --every: opens no more after this time (default: until SIGTERM or SIGINT)
    #[arg(long, value_name = "D", env = "LOAD_DURATION", requires = "every", value_parser = positive_duration)]
    pub(crate) duration: Option<Duration>,
    /// What is done on each
    #[arg(long, env = "LOAD_PATTERN", default_value = "request")]
    pub(crate) pattern: Pattern,
    /// What is forged on each.
    #[command(flatten)]
    pub(crate) forge: ForgeArgs,
    /// From the connect to the exchange: time for the forged segment and what follows it; SIGUSR1 ends it.
    /// With --forge it lasts until all is judged, ten times --outcome-timeout at most
    #[arg(long, value_name = "D", env = "LOAD_DELAY", default_value = "2s", value_parser = duration)]
    pub(crate) delay: Duration,
    /// How long boom-server is told to wait (slow-answer)
    #[arg(long, value_name = "D", env = "LOAD_ANSWER_DELAY", default_value = "3s", value_parser = duration)]
    pub(crate) answer_delay: Duration,
    /// Length of the body (download, upload)
    #[arg(long, value_name = "SIZE", env = "LOAD_BODY_SIZE", default_value = "1MiB", value_parser = size)]
    pub(crate) body_size: usize,
    /// Exit code 10 when this is true
    #[arg(
        long,
        value_name = "EXPR",
        env = "LOAD_FAIL_ON",
        value_delimiter = ',',
        default_value = "reset>0,stall>0,bad-answer>0,early-eof>0"
    )]
    pub(crate) fail_on: Vec<Threshold>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where to listen; may be given several times
    #[arg(
        long,
        value_name = "ADDR",
        env = "LOAD_LISTEN",
        default_value = "[::]:8080",
        value_delimiter = ',',
        value_parser = address
    )]
    pub(crate) listen: Vec<SocketAddr>,
    /// Length of the body of every HTTP answer
    #[arg(long, value_name = "SIZE", env = "LOAD_BODY_SIZE", default_value = "1KiB", value_parser = size)]
    pub(crate) body_size: usize,
    /// Worker threads (default: one for each CPU)
    #[arg(long, value_name = "N", env = "LOAD_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ObserveArgs {
    /// Between two samples
    #[arg(long, value_name = "D", env = "LOAD_INTERVAL", default_value = "1s", value_parser = positive_duration)]
    pub(crate) interval: Duration,
    /// Ends after this time (default: at SIGTERM or SIGINT)
    #[arg(long, value_name = "D", env = "LOAD_DURATION", value_parser = positive_duration)]
    pub(crate) duration: Option<Duration>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct WitnessArgs {
    /// Ends after this time (default: at SIGTERM or SIGINT)
    #[arg(long, value_name = "D", env = "LOAD_DURATION", value_parser = positive_duration)]
    pub(crate) duration: Option<Duration>,
    /// Between two updates of the metrics and of the table on a terminal
    #[arg(long, value_name = "D", env = "LOAD_INTERVAL", default_value = "1s", value_parser = positive_duration)]
    pub(crate) interval: Duration,
    /// Reads captures (pcap, pcapng) instead of listening; several places of one network together
    #[arg(long, value_name = "FILE", env = "LOAD_PCAP", num_args = 1.., value_delimiter = ',', conflicts_with = "duration")]
    pub(crate) pcap: Vec<PathBuf>,
    /// Where the kernel's netfilter values are mounted writable
    #[arg(
        long,
        value_name = "DIR",
        env = "LOAD_SYSCTL_DIR",
        default_value = "/proc/sys/net/netfilter"
    )]
    pub(crate) sysctl_dir: PathBuf,
    /// Where a file remembers the values before they are changed, for the one that comes after SIGKILL
    #[arg(long, value_name = "DIR", env = "LOAD_STATE_DIR", default_value = "/run")]
    pub(crate) state_dir: PathBuf,
    /// Ended by a signal, stays this long after its result: a pod's log can be read until then.
    /// Another signal ends it at once
    #[arg(long, value_name = "D", env = "LOAD_LINGER", default_value = "0s", value_parser = duration)]
    pub(crate) linger: Duration,
}

/// A part of one.
fn part(s: &str) -> Result<f64, String> {
    match s.parse::<f64>() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("write a number from 0 to 1".to_owned()),
    }
}

/// A part of one, and not none.
fn some_part(s: &str) -> Result<f64, String> {
    part(s)
        .and_then(|p| if p > 0.0 { Ok(p) } else { Err("write a number above 0, up to 1".into()) })
}

/// A rate above zero.
fn rate(s: &str) -> Result<f64, String> {
    match s.parse::<f64>() {
        Ok(r) if r.is_finite() && r > 0.0 && r <= 10_000_000.0 => Ok(r),
        _ => Err("write connections a second, above 0 and at most 10000000".to_owned()),
    }
}
