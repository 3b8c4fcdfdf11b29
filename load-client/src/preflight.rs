//! What this host's limits allow, said before the start.

use std::fs;

use canary_record::result::load::Preflight;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long Linux keeps a closed connection's port (TCP_TIMEWAIT_LEN).
const TIME_WAIT_S: f64 = 60.0;
/// How long it keeps one that may be used again with tcp_tw_reuse (TCP_PAWS, since the
/// timestamp must have moved on).
const REUSE_S: f64 = 1.0;
/// Files that the program needs besides its connections.
const OWN_FILES: u64 = 64;

/// The kernel's settings, as texts or numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// First and last local port.
    pub(crate) ports: (u64, u64),
    pub(crate) tw_reuse: u64,
    pub(crate) open_files: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    /// Local addresses, at least one.
    pub(crate) sources: u64,
    /// Connections in progress or held at once.
    pub(crate) at_once: u64,
    /// Connections a second, where known.
    pub(crate) rate: Option<f64>,
    /// True when this side closes first, with FIN: the port stays in TIME_WAIT.
    pub(crate) leaves_time_wait: bool,
    /// True when the target is on loopback, where `tcp_tw_reuse=2` applies.
    pub(crate) loopback: bool,
}

/// Raises the limit of open files as far as allowed. Where that is refused it stays as it was,
/// and [`begin`] says so.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Reads the limits. What cannot be read counts as the kernel's default.
fn read() -> Limits {
    let setting = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok();
    let ports = setting("ip_local_port_range").and_then(|s| parse_range(&s));
    let tw_reuse = setting("tcp_tw_reuse").and_then(|s| s.trim().parse().ok());
    Limits {
        ports: ports.unwrap_or((32_768, 60_999)),
        tw_reuse: tw_reuse.unwrap_or(2),
        open_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
    }
}

fn parse_range(s: &str) -> Option<(u64, u64)> {
    let mut words = s.split_whitespace().map(str::parse);
    let range = (words.next()?.ok()?, words.next()?.ok()?);
    (range.0 <= range.1).then_some(range)
}

/// What `limits` allow, and where `load` goes beyond.
fn check(limits: Limits, load: Load) -> Preflight {
    let ports = limits.ports.1 - limits.ports.0 + 1;
    let reused = limits.tw_reuse == 1 || (limits.tw_reuse == 2 && load.loopback);
    let kept = if reused { REUSE_S } else { TIME_WAIT_S };
    let all_ports = ports.saturating_mul(load.sources);
    let lasting_rate = load.leaves_time_wait.then(|| all_ports as f64 / kept);
    let open_connections = all_ports.min(limits.open_files.saturating_sub(OWN_FILES));
    let mut warnings = Vec::new();
    if let (Some(most), Some(asked)) = (lasting_rate, load.rate)
        && asked > most
    {
        warnings.push(format!(
            "{asked:.0} connections a second are more than the {most:.0} that the local ports allow for long: add --source-ip, widen ip_local_port_range, set tcp_tw_reuse=1 or use --close rst"
        ));
    }
    if load.at_once > all_ports {
        warnings.push(format!(
            "{} connections at once are more than the {all_ports} local ports: add --source-ip or widen ip_local_port_range",
            load.at_once
        ));
    }
    if load.at_once > limits.open_files.saturating_sub(OWN_FILES) {
        warnings.push(format!(
            "{} connections at once are more than the limit of {} open files allows: raise it (ulimit -n)",
            load.at_once, limits.open_files
        ));
    }
    Preflight {
        ports,
        sources: load.sources,
        open_files: limits.open_files,
        tw_reuse: limits.tw_reuse,
        lasting_rate,
        open_connections,
        warnings,
    }
}

/// Raises the limit of open files, and says before the start what the limits allow `load`.
pub(crate) fn begin(load: Load) -> Preflight {
    raise_open_files();
    let p = check(read(), load);
    tracing::info!(
        ports = p.ports,
        sources = p.sources,
        open_files = p.open_files,
        tw_reuse = p.tw_reuse,
        lasting_rate = p.lasting_rate,
        open_connections = p.open_connections,
        "preflight"
    );
    for warning in &p.warnings {
        tracing::warn!("{warning}");
    }
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { ports: (32_768, 60_999), tw_reuse: 2, open_files: 1024 };
    const LOAD: Load =
        Load { sources: 1, at_once: 64, rate: None, leaves_time_wait: true, loopback: false };

    /// 28,232 ports that stay in TIME_WAIT for 60 s allow 470 connections a second.
    #[test]
    fn ports_in_time_wait_bound_the_rate() {
        let p = check(LIMITS, Load { rate: Some(1000.0), ..LOAD });
        assert_eq!(p.lasting_rate.map(f64::floor), Some(470.0));
        assert_eq!(p.warnings.len(), 1);
        assert!(p.warnings[0].starts_with("1000 connections a second are more than the 471"));
        let p = check(Limits { tw_reuse: 1, ..LIMITS }, Load { rate: Some(1000.0), ..LOAD });
        assert_eq!((p.lasting_rate, p.warnings.len()), (Some(28_232.0), 0));
        let rst = Load { rate: Some(1e6), leaves_time_wait: false, ..LOAD };
        assert_eq!(check(LIMITS, rst).lasting_rate, None);
        let loopback = Load { loopback: true, ..LOAD };
        assert_eq!(check(LIMITS, loopback).lasting_rate, Some(28_232.0));
    }

    /// Ports of all addresses, or open files, bound what can be held.
    #[test]
    fn files_and_ports_bound_what_is_held() {
        let p = check(LIMITS, Load { at_once: 15_000, ..LOAD });
        assert_eq!(p.open_connections, 960);
        assert!(p.warnings[0].contains("limit of 1024 open files"));
        let many = Limits { open_files: 1 << 20, ..LIMITS };
        let p = check(many, Load { at_once: 60_000, sources: 2, ..LOAD });
        assert_eq!(p.open_connections, 56_464);
        assert!(p.warnings[0].contains("more than the 56464 local ports"));
    }

    /// Reading changes nothing; raising goes to what is allowed, and no further.
    #[test]
    fn reading_raises_nothing() {
        let allowed = getrlimit(Resource::Nofile).maximum;
        let low = allowed.map_or(1024, |m| m - 1);
        setrlimit(Resource::Nofile, Rlimit { current: Some(low), maximum: allowed }).unwrap();
        assert_eq!(read().open_files, low);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(low));
        raise_open_files();
        assert_eq!(read().open_files, allowed.unwrap_or(u64::MAX));
    }

    /// A range is two numbers in order.
    #[test]
    fn reads_a_range() {
        assert_eq!(parse_range("1024\t65535\n"), Some((1024, 65_535)));
        for bad in ["", "1", "2 1", "a b"] {
            assert_eq!(parse_range(bad), None);
        }
    }
}
