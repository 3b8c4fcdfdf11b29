//! Kernel reads, made in the host's own thread: counters, settings, versions.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;

use crate::model::ProxyMode;
use canary_conntrack::stat;
use canary_conntrack::table::Table;
use canary_record::result::observe::ConntrackCounters;
use canary_wire::segment::Family;

use crate::exec::{Call, ExecError};
use crate::os::{OsError, cut, os, wrong};
use crate::ruleset::family_name;
use crate::ruleset::ipvs;
use crate::ruleset::readback::{self, Loaded};

/// be_liberal's key below /proc/sys.
pub const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Reads a sysctl of this thread's network namespace.
pub fn sysctl(key: &str) -> Result<String, ExecError> {
    let text =
        fs::read_to_string(format!("/proc/sys/{key}")).map_err(|e| no_sysctl("read", key, &e))?;
    Ok(text.trim().to_owned())
}

/// What cannot be done to a setting, and what an errno of opening its file means.
fn no_sysctl(what: &str, key: &str, e: &io::Error) -> OsError {
    let said = match e.kind() {
        // What `ipv4_table[]` has, `init_net` alone shows.
        io::ErrorKind::NotFound => {
            "this kernel has no such setting, or in the initial network namespace alone".to_owned()
        }
        io::ErrorKind::PermissionDenied if what == "read" => {
            format!("{e}: it can only be written, and what is set must be read back")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{e}: it can only be read in this network namespace")
        }
        _ => e.to_string(),
    };
    let source = io::Error::new(e.kind(), said);
    os(format!("{what} sysctl {}", key.replace('/', ".")))(source)
}

/// Sets a sysctl of this thread's network namespace and reads it back.
pub fn set_sysctl(key: &str, value: &str) -> Result<(), ExecError> {
    let what = format!("set to '{}'", cut(value));
    let file = fs::OpenOptions::new().write(true).open(format!("/proc/sys/{key}"));
    let mut file = file.map_err(|e| no_sysctl(&what, key, &e))?;
    let written = file.write_all(value.as_bytes()).map_err(|e| match e.kind() {
        // `tcp_set_congestion_control()`: the setting is there.
        io::ErrorKind::NotFound => io::Error::other("the kernel knows no such value"),
        _ => e,
    });
    written.map_err(os(format!("{what} sysctl {}", key.replace('/', "."))))?;
    let found = sysctl(key)?;
    // The kernel separates values by tabs.
    if found.split_whitespace().eq(value.split_whitespace()) {
        Ok(())
    } else {
        Err(not_set(key, value, &found))
    }
}

fn not_set(key: &str, wanted: &str, found: &str) -> ExecError {
    wrong(format!("set {key} to {}", cut(wanted)))(format!("it reads back as {found}")).into()
}

/// The conntrack statistics of this thread's network namespace, summed over the
/// processors.
pub(crate) fn conntrack_stat() -> Result<BTreeMap<String, u64>, ExecError> {
    statistics(stat::columns).map(|cpus| stat::sum(&cpus))
}

/// The same as counters.
pub fn conntrack_counters() -> Result<ConntrackCounters, ExecError> {
    statistics(stat::counters).map(|cpus| ConntrackCounters::sum(&cpus))
}

/// (/proc/net is the process's, not the thread's.)
fn statistics<T>(read: fn(&str) -> Result<T, stat::ReadError>) -> Result<T, ExecError> {
    let path = format!("/proc/thread-self/net/{}", stat::STAT);
    let what = || format!("read {path}");
    let text = fs::read_to_string(&path).map_err(os(what()))?;
    Ok(read(&text).map_err(wrong(what()))?)
}

/// A TCP socket, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its own port.
    pub port: u16,
    /// Octets, SYN and FIN among them, that no acknowledgment has come for.
    pub unacknowledged: u32,
}

/// The TCP sockets of this thread's network namespace, but those in TIME_WAIT, which no program has
/// open.
pub fn sockets() -> Result<Vec<Socket>, ExecError> {
    let mut sockets = Vec::new();
    for file in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{file}");
        match fs::read_to_string(&path) {
            Ok(text) => sockets.extend(text.lines().skip(1).filter_map(socket)),
            // A kernel without IPv6.
            Err(e) if file == "tcp6" && e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(os(format!("read {path}"))(source).into()),
        }
    }
    Ok(sockets)
}

/// As `get_tcp4_sock()` writes it: number, local and remote address, state, both queues.
fn socket(line: &str) -> Option<Socket> {
    const TIME_WAIT: &str = "06";
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    let sent = words.next()?.split(':').next()?;
    let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    let unacknowledged = u32::from_str_radix(sent, 16).ok()?;
    (state != TIME_WAIT).then_some(Socket { port, unacknowledged })
}

/// Makes conntrack forget every entry of this thread's network namespace.
pub fn forget_all() -> Result<(), ExecError> {
    let forgotten = Table::open().and_then(|mut table| table.flush());
    Ok(forgotten.map_err(wrong("delete conntrack entries"))?)
}

/// What grew from `before` to `after`.
#[must_use]
pub fn grown(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    after
        .iter()
        .filter(|(name, _)| *name != stat::ENTRIES)
        .map(|(name, n)| (name.clone(), n.saturating_sub(before.get(name).copied().unwrap_or(0))))
        .collect()
}

/// Loads rules in this thread's network namespace.
pub(crate) fn load_rules(
    proxy_mode: ProxyMode,
    family: Family,
    text: &str,
) -> Result<(), ExecError> {
    let iptables = format!("{}tables-restore", family_name(family));
    let call = match proxy_mode {
        ProxyMode::Nftables | ProxyMode::Ipvs => Call::tool("nft", &["-f", "-"])?,
        ProxyMode::Iptables => Call::tool(&iptables, &["-w", "10"])?,
    };
    call.stdin(text).run().map(drop)
}

/// Makes IPVS translate in this thread's network namespace, and reads its table back.
pub(crate) fn balance(host: &str, vip: IpAddr, table: &[String]) -> Result<(), ExecError> {
    let ip = |args: &str| -> Result<(), ExecError> {
        let args: Vec<_> = ["-n", host].into_iter().chain(args.split(' ')).collect();
        Call::tool("ip", &args)?.run().map(drop)
    };
    if sysctl(&format!("net/ipv4/conf/{}/forwarding", ipvs::LINK)).is_err() {
        ip(&format!("link add {} up type dummy", ipvs::LINK))?;
        let nodad = if vip.is_ipv6() { " nodad" } else { "" };
        ip(&format!("addr add {vip} dev {}{nodad}", ipvs::LINK))?;
    }
    let all = table.join("\n") + "\n";
    Call::tool("ipvsadm", &["--clear"])?.run()?;
    Call::tool("ipvsadm", &["--restore"])?.stdin(&all).run()?;
    for key in ipvs::SETTINGS {
        set_sysctl(key, "1")?;
    }
    let held = Call::tool("ipvsadm", &["--save", "--numeric"])?.run()?;
    let mut lines: Vec<_> = held.lines().map(str::trim_end).collect();
    lines.sort_unstable();
    if lines == table {
        return Ok(());
    }
    Err(not_set("the table of IPVS", &table.join(", "), &lines.join(", ")))
}

/// Connections that IPVS has begun in this thread's network namespace.
fn balanced() -> Result<u64, ExecError> {
    let path = "/proc/thread-self/net/ip_vs_stats_percpu";
    let what = || format!("read {path}");
    let text = fs::read_to_string(path).map_err(os(what()))?;
    Ok(begun(&text).ok_or(io::ErrorKind::InvalidData).map_err(os(what()))?)
}

/// The sum over the processors, in base 16 (`ip_vs_stats_percpu_show()`). The line of the sum lags
/// behind: the estimator writes it every two seconds (`estimation_timer()`).
fn begun(text: &str) -> Option<u64> {
    let cpus = text.lines().skip(2).take_while(|line| !line.trim_start().starts_with('~'));
    let mut conns = cpus.map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok());
    let first = conns.next()??;
    Some(first + conns.sum::<Option<u64>>()?)
}

/// Reads the rules of this thread's network namespace back: what is loaded,
/// and the text as the tool gives it.
pub(crate) fn read_rules(
    proxy_mode: ProxyMode,
    family: Family,
) -> Result<(Loaded, String), ExecError> {
    let name = family_name(family);
    if proxy_mode == ProxyMode::Iptables {
        let text = Call::tool(&format!("{name}tables-save"), &["-c"])?.run()?;
        return Ok((readback::iptables(&text, name)?, text));
    }
    let text = Call::tool("nft", &["-j", "list", "ruleset"])?.run()?;
    let mut loaded = readback::nftables(&text, name)?;
    if proxy_mode == ProxyMode::Ipvs {
        loaded.dnat = balanced()?;
    }
    Ok((loaded, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has several values is the same with blanks as with tabs; another value is another. (The
    /// setting is written back as it was.)
    #[test]
    fn several_values_are_compared_one_by_one() {
        let key = "net/ipv4/ip_local_port_range";
        let Some(was) = sysctl(key).ok().filter(|was| set_sysctl(key, was).is_ok()) else {
            eprintln!("SKIPPED: {key} cannot be written here");
            return;
        };
        set_sysctl(key, &was.replace('\t', " ")).unwrap();
        let absent = sysctl("net/ipv4/moon").unwrap_err().to_string();
        assert!(
            absent.starts_with("cannot read sysctl net.ipv4.moon: this kernel has no such setting")
        );
    }

    /// What is refused is told apart: a setting that there is not, a value that is none, what can only be
    /// written and what can only be read.
    #[test]
    fn refusals_of_settings_are_told_apart() {
        let set = |key, value| set_sysctl(key, value).unwrap_err().to_string();
        let key = "net/ipv4/tcp_congestion_control";
        if !sysctl(key).is_ok_and(|was| set_sysctl(key, &was).is_ok()) {
            eprintln!("SKIPPED: {key} cannot be written here");
            return;
        }
        let available = set("net/ipv4/tcp_available_congestion_control", "x");
        let moon = set("net/ipv4/moon", "1");
        let flush = sysctl("net/ipv4/route/flush").unwrap_err().to_string();
        for (said, says) in [
            (available, "(os error 13): it can only be read in this network namespace"),
            (moon, "this kernel has no such setting, or in the initial network namespace alone"),
            (flush, "(os error 13): it can only be written, and what is set must be read back"),
            (set(key, "nosuch"), "tcp_congestion_control: the kernel knows no such value"),
        ] {
            assert!(said.ends_with(says), "{said}");
        }
    }

    /// A port is taken for as long as anybody has a copy of the socket, whoever closed it.
    #[test]
    fn a_copy_of_a_socket_keeps_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let port = client.local_addr().unwrap().port();
        let taken = || sockets().unwrap().iter().any(|socket| socket.port == port);
        drop(server);
        let copy = client.try_clone().unwrap();
        drop(client);
        assert!(taken());
        drop(copy);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while taken() {
            assert!(std::time::Instant::now() < end, "port {port} is still taken");
            std::thread::yield_now();
        }
    }

    /// A socket is told by its port and what it waits for, of either family; TIME_WAIT is none, nor
    /// is a line cut off.
    #[test]
    fn a_socket_is_one_until_time_wait() {
        let v4 = "   0: 0A4112C6:9C41 0A0012C6:1F90 01 0000001A:00000000 00:00000000 0 0 0 1 0";
        let here = Some(Socket { port: 0x9c41, unacknowledged: 0x1a });
        assert_eq!(socket(v4), here);
        assert_eq!(socket(&v4.replace("0A4112C6", "000000FD0000000000000000000000FE")), here);
        assert_eq!(socket(&v4.replace(" 01 ", " 06 ")), None);
        assert_eq!(socket("   0: 0A4112C6:9C41 0A0012C6:1F90 01"), None);
    }

    /// Growth is of counters; the number of entries is none.
    #[test]
    fn growth_is_of_counters() {
        let at = |n| BTreeMap::from([("drop".to_owned(), n), (stat::ENTRIES.to_owned(), n)]);
        assert_eq!(grown(&at(3), &at(5)), [("drop".to_owned(), 2)].into());
    }

    /// IPVS' connections are those of every processor, in base 16; what has none is not 0.
    #[test]
    fn ipvs_counts_for_each_processor() {
        let heads = "       Total Incoming Outgoing\nCPU    Conns  Packets  Packets\n";
        let text =
            format!("{heads}  0       1F       40       40\n  1        2        4        4\n");
        let lagging =
            "  ~        0        0        0\n     Conns/s   Pkts/s\n           0        0\n";
        assert_eq!(begun(&format!("{text}{lagging}")), Some(33));
        assert_eq!(begun(heads), None);
        assert_eq!(begun(&format!("{heads}  0 what\n")), None);
    }
}
