//! What the subcommands share: the hosts, and the machine's description.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use canary_testbed::exec::Call;
use canary_testbed::model::{Path as NetPath, ProxyMode};
use canary_testbed::programs::{Program, Running, load_client};
use canary_testbed::testbed::Testbed;
use canary_testbed::topology::Topology;
use canary_wire::segment::Family;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The service's address, reached through the client's node.
pub(crate) const SERVICE: &str = "198.19.0.10:80";
/// How long a program may take to end.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// As many connections as the server's hosts take.
const SERVER: &str = "sysctl -qw net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65535 net.ipv4.tcp_max_tw_buckets=4096";
/// Short timeouts of a node: its table stays small.
pub(crate) const SHORT: &str = "for t in time_wait close last_ack fin_wait; do sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_$t=1; done";
/// Ports are no limit to a client.
pub(crate) const CLIENT: &str = "sysctl -qw net.ipv4.ip_local_port_range='1024 65535' net.ipv4.tcp_tw_reuse=1 net.ipv4.tcp_max_tw_buckets=4096";
/// The namespaces' own /run, which goes with them.
pub(crate) const RUN: &str = "/run";

/// The hosts of a path, with Service rules as kube-proxy writes them, and no protection.
pub(crate) fn hosts(path: NetPath) -> Result<Testbed> {
    let testbed = Testbed::build(Topology::new(path, ""))?;
    testbed.protect(ProxyMode::Nftables, Family::Ipv4, &[])?;
    testbed.sh("server", SERVER)?;
    Ok(testbed)
}

/// A client pod with 32 addresses, one tracking node, a server pod: one table, so that what is
/// filled is one table.
pub(crate) fn one_node() -> Result<Testbed> {
    let testbed = hosts(NetPath::SameNode)?;
    let add: Vec<_> = (32..64).map(|i| format!("ip addr add 198.18.65.{i}/32 dev eth0")).collect();
    testbed.sh("client", &add.join("; "))?;
    testbed.sh("node1", "ip route add 198.18.65.32/27 dev to-client")?;
    // A client beyond its TIME_WAIT limit answers the server's FIN with RST, and takes its ports
    // again: conntrack then has fewer entries than there were connections.
    testbed.sh("client", "sysctl -qw net.ipv4.tcp_max_tw_buckets=1048576")?;
    Ok(testbed)
}

/// The client's addresses in [`one_node`].
pub(crate) fn sources() -> String {
    let all: Vec<_> = (32..64).map(|i| format!("198.18.65.{i}")).collect();
    all.join(",")
}

/// load-client with these words, ending with `R`.
pub(crate) fn client<R: DeserializeOwned>(words: &str) -> Result<Program<R>> {
    let words: Vec<_> = words.split_whitespace().collect();
    Ok(load_client(&words)?.ending_with())
}

/// Starts load-client in a host and waits until it is ready.
pub(crate) fn ready<R: DeserializeOwned>(
    testbed: &Testbed,
    host: &str,
    words: &str,
) -> Result<Running<R>> {
    Ok(client(words)?.ready(testbed, host, &Path::new(RUN).join(format!("load-{host}.log")))?)
}

/// User and system time that a process has used (proc_pid_stat(5), fields 14 and 15, in hundredths
/// of a second: USER_HZ is 100 on every architecture).
pub(crate) fn processor(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold blanks.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let times = fields.get(11..13).context("/proc/PID/stat has no times")?;
    Ok(Duration::from_millis(10 * (times[0].parse::<u64>()? + times[1].parse::<u64>()?)))
}

/// What this part of the values does not exceed; between two of them as far as it lies.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() - 1) as f64 * part;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Where and when the figures were taken.
pub(crate) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let date = Call::sh("date -u +%Y-%m-%dT%H:%M:%SZ").run().unwrap_or_default();
    json!({
        "date": date.trim(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cpus": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "load_average": read("/proc/loadavg").trim(),
    })
}

/// Writes a document, if a file is named.
pub(crate) fn write(path: Option<&Path>, document: &Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, serde_json::to_string_pretty(document)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}
