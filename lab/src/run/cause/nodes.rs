//! What the steps of a case do to its hosts: entries, endpoints, routes, rules, settings. Each tells
//! what it changed.

use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::document::lab::ProxyMode;
use crate::document::timeline::Change;
use canary_conntrack::table::{Table, TcpState, Tuple};
use canary_testbed::evidence;
use canary_testbed::exec::{Call, ExecError};
use canary_testbed::model::At;
use canary_testbed::os::{cut, os, wrong};
use canary_testbed::tap::Tap;
use canary_testbed::testbed::TestbedError;
use canary_testbed::topology::POD_PORT;
use canary_wire::segment::Family;
use nix::errno::Errno;

use super::hosts::beside;
use super::rules::{self, Line};
use super::{CLOSE, Run};
use crate::run::host_table;
use crate::run::saturation::tables::destination;
use crate::run::setting::{CaptureMode, Place, READY, count, write};
use crate::scenario::cause::{Host, Masquerade, TIMEOUT, Text};
use crate::scenario::saturation::MOST_ENTRIES;

/// How long entries may take to expire, beyond what is written in the case.
const EXPIRY: Duration = Duration::from_secs(60);
/// How long segments may be on their way that change an entry.
const SETTLED: Duration = Duration::from_secs(2);
/// Smaller than what both pods take for granted, more than forged segments need.
const BLACK_HOLE_MTU: &str = "1300";
/// The table that chooses among endpoints, and masquerades.
const ENDPOINTS: &str = "lab-endpoints";
/// Whose connections fill a table, and how long they stay.
const OTHERS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 19, 127, 1)), 1);
const STAYS: Duration = Duration::from_secs(3600);

/// A node whose table is full, one at a time: all namespaces of the machine share the buckets, and
/// chains that are too long (`chaintoolong`) would cost every one of them connections.
pub(super) struct Full<'a> {
    place: &'a Place<'a>,
    /// The limit before it was filled, and what conntrack on the node had dropped by then.
    begun: (u64, u64),
    _turn: MutexGuard<'static, ()>,
}

impl<'a> Full<'a> {
    fn of(place: &'a Place<'a>) -> Result<Self, TestbedError> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Self { place, begun: Self::state(place)?, _turn: turn })
    }

    fn state(place: &Place<'_>) -> Result<(u64, u64), TestbedError> {
        place.within("node1", || Ok((host_table::max()?, evidence::conntrack_counters()?.drop)))
    }
}

/// Why a table may not have been full all the time, of its limit and conntrack's drops before and after: the
/// limit is the whole machine's, and whoever moves it makes room, or drops what had some.
fn limit_moved(before: (u64, u64), after: (u64, u64)) -> Option<String> {
    let ((from, before), (to, after)) = (before, after);
    (from != to).then(|| {
        format!(
            "nf_conntrack_max went from {from} to {to} after fill-table, by somebody else: what the full \
             table did ({} drops) proves nothing",
            after.saturating_sub(before)
        )
    })
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        // The namespace and its entries go with the lab at the latest.
        let _ = self.place.within("node1", evidence::forget_all);
    }
}

/// What a host has of its own cannot be as the file says.
fn refused(host: &str, what: &str, line: Option<usize>, why: String) -> TestbedError {
    let place = line.map_or_else(String::new, |n| format!(" of line {n} of the file"));
    wrong(format!("give {host} the {what}{place}"))(why).into()
}

/// What to do about a setting that the initial network namespace alone can write.
fn instead(name: &str, e: &ExecError) -> &'static str {
    let table = ["nf_conntrack_max", "nf_conntrack_buckets"].iter().any(|end| name.ends_with(end));
    match e {
        ExecError::Os(e) if table && e.kind() == ErrorKind::PermissionDenied => {
            ": use --host-table-size"
        }
        _ => "",
    }
}

/// The first of them, and how many others there are.
fn some(all: &[String], others: impl Fn(usize) -> String) -> String {
    const MOST: usize = 3;
    let named = all.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MOST) {
        0 => named,
        more => format!("{named}, and {}", others(more)),
    }
}

impl Run<'_> {
    /// The server pod's address.
    pub(super) fn pod(&self) -> IpAddr {
        self.place.topology.service.pod.of(self.case.family)
    }

    /// That of the pod beside it.
    pub(super) fn second(&self) -> IpAddr {
        beside(&self.place.topology)[0].of(self.case.family)
    }

    pub(super) fn changed(
        &mut self,
        what: impl Into<String>,
        from: impl Display,
        to: impl Display,
    ) {
        let (from, to) = (from.to_string(), to.to_string());
        self.seen.changes.push(Change { what: what.into(), from, to });
    }

    /// The client's connections end, and no segment says so.
    pub(super) fn vanish(&mut self) -> Result<(), TestbedError> {
        let (client, table) = (self.place.topology.client, "table inet lab-vanish");
        let rules = format!(
            "{table} {{ chain output {{ type filter hook output priority 0; meta l4proto tcp drop; }}; }}"
        );
        self.place.nft(client, &rules)?;
        self.connections.vanish();
        if !self.let_go(READY)? {
            let failed = os("vanish: close the client's connections");
            return Err(failed(std::io::ErrorKind::TimedOut).into());
        }
        self.place.nft(client, &format!("delete {table}"))
    }

    /// Until the client's kernel has no socket of the connections that are closed; false where it
    /// still has some. A program that is being started has a copy of every open file until execve():
    /// as long as that is there, no segment of a close() goes out.
    pub(super) fn let_go(&self, within: Duration) -> Result<bool, TestbedError> {
        let ports = self.connections.closed();
        self.until(within, |sockets| !sockets.iter().any(|s| ports.contains(&s.port)))
    }

    /// Until all that the client sent is acknowledged, and so has passed every node; where nobody
    /// acknowledges that takes its time. A segment may wait for a processor after the call that sent
    /// it (`ksoftirqd_running()`), and what the next step does to a node would come first.
    pub(super) fn acknowledged(&self) -> Result<(), TestbedError> {
        self.until(CLOSE, |sockets| sockets.iter().all(|s| s.unacknowledged == 0)).map(drop)
    }

    /// Until the sockets of the client's host are as they should be; false where they are not in time.
    fn until(
        &self,
        within: Duration,
        done: impl Fn(&[evidence::Socket]) -> bool,
    ) -> Result<bool, TestbedError> {
        let end = Instant::now() + self.place.scaled(within);
        while !done(&self.place.within(self.place.topology.client, evidence::sockets)?) {
            if Instant::now() >= end {
                return Ok(false);
            }
            self.place.setting.interrupt.sleep(Duration::from_millis(5))?;
        }
        Ok(true)
    }

    /// How many entries connections have that were just used.
    pub(super) fn count_entries(&mut self) -> Result<(), TestbedError> {
        self.entries = self.place.within("node1", count)?;
        Ok(())
    }

    /// Entries went: gives how many there had been since connections used them, some of which may have
    /// expired before.
    fn gone(&mut self, from: u64, to: u64) -> u64 {
        self.changed("entries on the client's node", from, to);
        std::mem::take(&mut self.entries).max(from).saturating_sub(to)
    }

    pub(super) fn delete_entries(&mut self) -> Result<u64, TestbedError> {
        let (from, to) = self.place.within("node1", || {
            let from = count()?;
            evidence::forget_all()?;
            Ok((from, count()?))
        })?;
        Ok(self.gone(from, to))
    }

    /// Established connections of others, as many as there is room for.
    pub(super) fn fill_table(&mut self) -> Result<(), TestbedError> {
        let place = self.place;
        // Before the first entry, for the limit may move while they are made.
        if self.full.is_none() {
            self.full = Some(Full::of(place)?);
        }
        let interrupt = &self.place.setting.interrupt;
        let filled = self.place.within("node1", || {
            let failed = || wrong("add conntrack entries");
            let (from, mut table) = (count()?, Table::open().map_err(failed())?);
            for flow in 0..MOST_ENTRIES {
                let (source, destination) = (OTHERS, SocketAddr::V4(destination(flow)));
                match table.add(Tuple { source, destination }, STAYS) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Some((from, count()?))),
                    // Its bucket is full (`nf_conntrack_hash_check_insert()`): the next has another.
                    Err(e) if e.errno() == Some(Errno::ENOSPC as i32) => {}
                    Err(e) => return Err(failed()(e).into()),
                }
                if flow % 1000 == 0 && interrupt.signalled().is_some() {
                    break;
                }
            }
            Ok(None)
        })?;
        interrupt.check()?;
        let Some((from, to)) = filled else {
            let what = format!("fill-table: {MOST_ENTRIES} entries do not fill it");
            return Err(os(what)(std::io::ErrorKind::StorageFull).into());
        };
        self.changed("entries on the client's node", from, to);
        Ok(())
    }

    /// Until a dump, which drops what has expired (`ctnetlink_dump_table()`), shows no connection,
    /// and IPVS has none.
    pub(super) fn let_expire(&mut self) -> Result<u64, TestbedError> {
        let entries = || {
            self.place.within("node1", || {
                let all = Table::open().and_then(|mut t| t.dump());
                let all = all.map_err(wrong("list conntrack entries"))?;
                // Absent where there is no IPVS; one line of heads.
                let ipvs = fs::read_to_string("/proc/thread-self/net/ip_vs_conn");
                let ipvs = ipvs.map_or(0, |text| text.lines().count().saturating_sub(1));
                let longest = all.iter().max_by_key(|e| e.timeout).copied();
                Ok((all.len() + ipvs, longest, ipvs > 0))
            })
        };
        let (begun, mut left) = (Instant::now(), entries()?);
        // What IPVS knows goes with IPVS' own entry, whatever its time (ip_vs_conn_drop_conntrack()).
        let (from, _, ipvs) = left;
        while left.0 > 0 {
            let (waited, whole) = (begun.elapsed(), self.place.scaled(EXPIRY));
            let stays = left.1.and_then(|e| e.timeout).unwrap_or_default();
            // What is on its way may still change the state of an entry, and with it its time.
            let never = !ipvs && waited > SETTLED && waited + stays > whole;
            if never || waited > whole {
                let state = left.1.and_then(|e| e.state).map_or("?", TcpState::as_str);
                let stays = stays.as_secs();
                let what = format!("let-expire: {} of {from} entries are left on node1", left.0);
                let why = format!(
                    "the longest, {state}, stays for {stays} s more: set the \
                     net.netfilter.nf_conntrack_tcp_timeout_... of its state on node1"
                );
                return Err(wrong(what)(why).into());
            }
            self.place.setting.interrupt.sleep(Duration::from_millis(50))?;
            left = entries()?;
        }
        Ok(self.gone(from as u64, 0))
    }

    /// Each new entry takes one of the endpoints, as kube-proxy has it, and one source. Once
    /// `moved`, the other pod is the Service's one endpoint.
    pub(super) fn choose_endpoints(&self, moved: bool) -> Result<(), TestbedError> {
        let family = self.case.family;
        let (target, pod, second) = (self.place.topology.target(family), self.pod(), self.second());
        let ip = if family == Family::Ipv4 { "ip" } else { "ip6" };
        let ipvs = self.case.proxy_mode == ProxyMode::Ipvs;
        if ipvs && (moved || self.case.endpoints == 2) {
            let [service, at, other] =
                [target, SocketAddr::new(pod, POD_PORT), SocketAddr::new(second, POD_PORT)]
                    .map(|at| at.to_string());
            let ipvsadm = |options: &[&str]| self.place.tool("node1", "ipvsadm", options, "");
            ipvsadm(&["-a", "-t", &service, "-r", &other, "-m"])?;
            if moved {
                // What an endpoint that ends has until its last connection is gone.
                ipvsadm(&["-e", "-t", &service, "-r", &at, "-m", "-w", "0"])?;
            }
        }
        let to = match (moved, self.case.endpoints) {
            (true, _) => Some(second.to_string()),
            (false, 1) => None,
            (false, _) => Some(format!("numgen random mod 2 map {{ 0 : {pod}, 1 : {second} }}")),
        };
        let service = &self.place.topology.service;
        let from_outside = self.place.topology.from_outside();
        let masquerades = service.masquerade_all || (from_outside && !service.local_only);
        // kube-proxy's mark, by which its own chain masquerades.
        let mark = if masquerades { "meta mark set meta mark or 0x4000 " } else { "" };
        // Before the Service's own chains: the first NAT rule that matches decides.
        let choose = to.filter(|_| !ipvs).map_or_else(String::new, |to| {
            format!(
                "chain prerouting {{ type nat hook prerouting priority dstnat - 1; \
                 {ip} daddr {} tcp dport {} {mark}dnat to {to} : {POD_PORT}; }}\n",
                target.ip(),
                target.port()
            )
        });
        let masquerade = match self.case.masquerade {
            Masquerade::None => String::new(),
            how => format!(
                "chain postrouting {{ type nat hook postrouting priority srcnat - 1; \
                 {ip} daddr {{ {pod}, {second} }} tcp dport {POD_PORT} masquerade{}; }}\n",
                if how == Masquerade::Random { " fully-random" } else { "" }
            ),
        };
        if choose.is_empty() && masquerade.is_empty() {
            return Ok(());
        }
        let table = format!("table {ip} {ENDPOINTS}");
        let rules = format!("add {table}\ndelete {table}\n{table} {{\n{choose}{masquerade}}}\n");
        self.place.nft("node1", &rules)
    }

    /// Gives a host what it has of its own from the beginning. The Service's rules stay as they are:
    /// a case without them would be about nothing.
    pub(super) fn equip(&mut self, host: &Host) -> Result<(), TestbedError> {
        let lost = self.change(host)?;
        if lost.is_empty() {
            return Ok(());
        }
        let found = |rules: &Text| rules.line(Some(rules::takes(&rules.text, &lost)?));
        let whole = || host.rules().next()?.line(None);
        Err(refused(
            &host.name,
            "rules",
            host.rules().find_map(found).or_else(whole),
            format!(
                "they take away the Service's: {}. Leave out of them what flushes, deletes or changes \
                 these (of iptables-save a line ':CHAIN - [0:0]' of a chain of kube-proxy's, `flush` of \
                 nft), or use another proxy-mode; in a step, `change` may do it",
                some(&lost, |n| format!("of {n} others"))
            ),
        ))
    }

    /// Has a tool load a host's rules. `hint` is added to what it refuses.
    fn load(
        &self,
        host: &str,
        rules: &Text,
        (name, options): (&str, &[&str]),
        hint: &str,
    ) -> Result<(), TestbedError> {
        let text = rules::from_nought(&rules.text);
        let call = || Call::tool(name, options)?.stdin(&text).output();
        let out = self.place.within(host, call)?;
        if out.status.success() {
            return Ok(());
        }
        let (line, why) = rules::refusal(&out.stderr);
        let text = line.and_then(|n| rules.text.lines().nth(n.saturating_sub(1)));
        let text = text.map_or_else(String::new, |text| format!(" '{}'", cut(text.trim())));
        Err(refused(
            host,
            "rules",
            rules.line(line),
            format!("{name} refuses{text}: {}{hint}", cut(&why)),
        ))
    }

    /// Gives a host what it should have, and tells which of the Service's rules that took away.
    pub(super) fn change(&mut self, host: &Host) -> Result<Vec<String>, TestbedError> {
        let (place, at) = (self.place, &*host.name);
        for (name, value) in &host.sysctls {
            // A situation's waits are scaled too: the times keep their relation.
            let text = match value.text.parse().map(Duration::from_secs) {
                Ok(time) if name.starts_with(TIMEOUT) => {
                    place.scaled(time).as_secs_f64().ceil().to_string()
                }
                _ => value.text.clone(),
            };
            let change = place.set(at, &name.replace('.', "/"), &text);
            let change = change.map_err(|e| match e {
                TestbedError::Evidence { source, .. } => {
                    let why = format!("{source}{}", instead(name, &source));
                    refused(at, "sysctl", value.line(None), why)
                }
                other => other,
            })?;
            self.seen.changes.push(Change { what: format!("{name} in {at}"), ..change });
        }
        if let Some(rules) = &host.nft {
            if rules::of_the_other_family(&rules.text, self.case.family) {
                let none = format!("of {}, which they never see", self.case.family);
                self.changed(format!("nft rules of {at} in a case"), "of the other family", none);
            }
            self.load(at, rules, ("nft", &["-f", "-"]), "")?;
        }
        if let Some(rules) = &host.iptables {
            let family = self.case.family;
            let restore = match family {
                Family::Ipv4 => "iptables-restore",
                Family::Ipv6 => "ip6tables-restore",
            };
            let address = |word: &str| word.split('/').next()?.parse::<IpAddr>().ok();
            let other = |word| address(word).is_some_and(|a| Family::of(a) != family);
            let hint = if rules.text.split_whitespace().any(other) {
                format!(
                    ". It is the tool of a case of {family}: rules of the other family belong in the \
                     [[case.host]] of a case of that family"
                )
            } else {
                String::new()
            };
            self.load(at, rules, (restore, &["-w", "10", "--noflush"]), &hint)?;
        }
        if host.rules().next().is_none() {
            return Ok(Vec::new());
        }
        self.equipped.insert(host.name.clone());
        let held = self.held(at)?;
        let lost = self.service.get(at).map_or_else(Vec::new, |rules| rules::lost(rules, &held));
        if !lost.is_empty() {
            self.changed(
                format!("the Service's rules on {at}"),
                "whole",
                format!("without {}", some(&lost, |n| format!("of {n} others"))),
            );
        }
        Ok(lost)
    }

    /// What the host's kernel holds, which is kept in rules-HOST.txt.
    fn held(&self, host: &str) -> Result<Vec<(Line, Option<u64>)>, TestbedError> {
        let held = self.place.tool(host, "nft", &["list", "ruleset"], "")?;
        write(&self.dir.join(format!("rules-{host}.txt")), &held)?;
        Ok(rules::read(&held))
    }

    /// What the Service's rules are, on each node, before a host has any of its own; later, those
    /// alone that choose endpoints.
    pub(super) fn note_service(&mut self) -> Result<(), TestbedError> {
        let chooses = |line: &Line| line.table.ends_with(ENDPOINTS);
        for node in self.place.topology.nodes(At::Both) {
            let held = self.place.tool(node, "nft", &["list", "ruleset"], "")?;
            let held = rules::read(&held).into_iter().map(|(line, _)| line);
            let rules = match self.service.remove(node) {
                None => held.collect(),
                Some(before) => {
                    let others = before.into_iter().filter(|l| !chooses(l));
                    others.chain(held.filter(chooses)).collect()
                }
            };
            self.service.insert(node, rules);
        }
        Ok(())
    }

    /// Captures at the client and at each server, where everything is to be kept: HOST.pcap beside the case's
    /// other files.
    pub(super) fn capture(&self) -> Result<Vec<(&'static str, Tap)>, TestbedError> {
        if self.place.setting.capture != CaptureMode::All {
            return Ok(Vec::new());
        }
        let client = self.place.topology.client;
        let servers = self.case.servers().iter().copied().filter(|host| *host != client);
        let start = |host: &'static str| {
            let file = self.dir.join(format!("{host}.pcap"));
            // A node has several links, and so has a client with a second one.
            let mut tap = Tap::start(self.place, host, "any", "tcp or icmp or icmp6", &file)?;
            tap.wait_ready(self.place.scaled(READY))?;
            Ok((host, tap))
        };
        [client].into_iter().chain(servers).map(start).collect()
    }

    /// Doubts a table that was to be full where the limit is another in the end.
    pub(super) fn doubt_limit(&mut self) -> Result<(), TestbedError> {
        if let Some(full) = &self.full {
            let now = Full::state(self.place)?;
            self.seen.doubts.extend(limit_moved(full.begun, now));
        }
        Ok(())
    }

    /// What the rules of each host's own have counted in the end.
    pub(super) fn counted(&self) -> Result<Vec<String>, TestbedError> {
        let mut notes = Vec::new();
        for host in &self.equipped {
            let service = self.service.get(&**host).map_or(&[][..], Vec::as_slice);
            let (met, idle) = rules::counted(service, &self.held(host)?);
            if !met.is_empty() {
                notes.push(format!("Own rules on {host}: {}.", met.join("; ")));
            }
            if !idle.is_empty() {
                notes.push(format!(
                    "Own rules on {host} that met no packet: {}.",
                    some(&idle, |n| format!("{n} others"))
                ));
            }
        }
        Ok(notes)
    }

    pub(super) fn black_hole(&mut self) -> Result<(), TestbedError> {
        let rules = "table inet lab-black-hole {\n\
                     chain output { type filter hook output priority 0; \
                     icmp type destination-unreachable drop; \
                     icmpv6 type packet-too-big drop; }\n}\n";
        for node in ["node1", "node2"] {
            let smaller = ["link", "set", "eth0", "mtu", BLACK_HOLE_MTU];
            self.place.tool(node, "ip", &smaller, "")?;
            self.place.nft(node, rules)?;
        }
        self.changed("MTU between the nodes", "1500", BLACK_HOLE_MTU);
        self.changed("ICMP destination-unreachable of the nodes", "sent", "dropped");
        Ok(())
    }

    /// Another route in the place of the one that is there, told as the kernel shows it.
    pub(super) fn route(&mut self, node: &str, route: &[&str]) -> Result<(), TestbedError> {
        let to = route.iter().find(|word| word.contains('/')).copied().unwrap_or_default();
        let family = if to.contains(':') { "-6" } else { "-4" };
        let ip =
            |args: &[&str]| self.place.tool(node, "ip", &[&[family, "route"], args].concat(), "");
        let from = ip(&["show", to])?;
        ip(&[&["replace"], route].concat())?;
        let now = ip(&["show", to])?;
        self.changed(format!("route in {node}"), from.trim(), now.trim());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limit that is another in the end is told, up or down; the same one is not.
    #[test]
    fn a_limit_that_moves_is_told() {
        let moved = |before, limit| limit_moved((before, 5), (limit, 25));
        assert_eq!(moved(1000, 1000), None);
        for limit in [999, 262_144] {
            let says = format!("nf_conntrack_max went from 1000 to {limit} after fill-table");
            let said = moved(1000, limit).unwrap();
            assert!(said.starts_with(&says) && said.contains("(20 drops)"), "{said}");
        }
    }
}
