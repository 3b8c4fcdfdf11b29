//! A topology that is up: its hosts, and the few things done in them.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::model::{At, NodeEvidence, Protection, ProtectionKind, ProxyMode};
use canary_wire::segment::Family;

use crate::evidence;
use crate::exec::{Call, ExecError, Interrupt, Output, Process, Ready};
use crate::netns::{Host, NetnsError};
use crate::os::{OsError, os, wrong};
use crate::ruleset::Ruleset;
use crate::ruleset::readback::Loaded;
use crate::topology::{Step, Topology};

/// A cell could not be run.
#[derive(Debug, thiserror::Error)]
pub enum TestbedError {
    /// A process failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A namespace failed.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A kernel value failed.
    #[error("{host}: {source}")]
    Evidence {
        /// Where.
        host: String,
        /// What.
        source: ExecError,
    },
    /// A file failed.
    #[error(transparent)]
    Os(#[from] OsError),
    /// A program's result is missing or not as agreed.
    #[error("{program} ended with {status} and no usable result: {why}")]
    Result {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// What is wrong, and what it said.
        why: String,
    },
}

/// Hosts that exist.
pub struct Testbed {
    /// What was built.
    pub topology: Topology,
    hosts: BTreeMap<&'static str, Host>,
    /// What ends each wait.
    pub(crate) interrupt: Interrupt,
    keep: bool,
}

/// What makes an `ip` command IPv6's.
const SIX: &str = "-6 ";

/// What steps that are one call have in common: the host of `ip` commands, and whether they are
/// IPv6's, for a batch takes no family of its own.
fn batch(step: &Step) -> Option<(&str, bool)> {
    match step {
        Step::Ip(host, args) => Some((host, args.starts_with(SIX))),
        Step::Add(_) | Step::Sysctl(..) => None,
    }
}

impl Testbed {
    /// Builds a topology.
    pub fn build(topology: Topology) -> Result<Self, TestbedError> {
        for step in &topology.steps {
            if let Step::Add(host) = step {
                Call::tool("ip", &["netns", "add", host])?.run()?;
            }
        }
        let hosts = topology
            .hosts
            .iter()
            .map(|host| Ok((*host, Host::open(&topology.full(host))?)))
            .collect::<Result<BTreeMap<_, _>, NetnsError>>()?;
        let testbed = Self { topology, hosts, interrupt: Interrupt::default(), keep: false };
        let alike = |a: &Step, b: &Step| batch(a).is_some() && batch(a) == batch(b);
        for steps in testbed.topology.steps.chunk_by(alike) {
            match &steps[0] {
                Step::Add(_) => {}
                Step::Sysctl(host, key, value) => testbed
                    .full_host(host)?
                    .run(|| evidence::set_sysctl(key, value))?
                    .map_err(|source| TestbedError::Evidence { host: host.clone(), source })?,
                Step::Ip(host, args) => {
                    let six = args.starts_with(SIX);
                    let lines = steps.iter().fold(String::new(), |lines, step| match step {
                        Step::Ip(_, args) => lines + args.trim_start_matches(SIX) + "\n",
                        Step::Add(_) | Step::Sysctl(..) => lines,
                    });
                    let args: &[&str] = &["-6", "-n", host, "-batch", "-"];
                    Call::tool("ip", &args[usize::from(!six)..])?.stdin(&lines).run()?;
                }
            }
        }
        Ok(testbed)
    }

    /// The same, each wait in it ended by that signal too.
    #[must_use]
    pub fn under(mut self, interrupt: &Interrupt) -> Self {
        self.interrupt = interrupt.clone();
        self
    }

    /// The same, its hosts there until this process ends if `keep`.
    #[must_use]
    pub fn kept(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    fn full_host(&self, full: &str) -> Result<&Host, TestbedError> {
        self.hosts.values().find(|h| h.name == full).ok_or_else(|| no_host(full))
    }

    /// A host by its short name.
    pub fn host(&self, name: &str) -> Result<&Host, TestbedError> {
        self.hosts.get(name).ok_or_else(|| no_host(name))
    }

    /// Runs `job` in a host.
    pub fn within<T: Send>(
        &self,
        host: &str,
        job: impl FnOnce() -> Result<T, ExecError> + Send,
    ) -> Result<T, TestbedError> {
        self.host(host)?
            .run(job)?
            .map_err(|source| TestbedError::Evidence { host: host.to_owned(), source })
    }

    /// Starts a program in a host.
    pub fn start(
        &self,
        host: &str,
        call: Call,
        log: &Path,
        ready: Ready,
    ) -> Result<Process, TestbedError> {
        Ok(self.host(host)?.run(move || call.start(log, ready))??.under(&self.interrupt))
    }

    /// Runs a program in a host to its end.
    pub fn run(&self, host: &str, call: &Call) -> Result<Output, TestbedError> {
        Ok(self.host(host)?.run(|| call.output())??)
    }

    /// Runs a line for the shell in a host, which must succeed; gives what it prints.
    pub fn sh(&self, host: &str, line: &str) -> Result<String, TestbedError> {
        Ok(self.host(host)?.run(|| Call::sh(line).run())??)
    }

    /// Sets the protections and loads the Service rules on both nodes, reads
    /// them back and compares.
    pub fn protect(
        &self,
        proxy_mode: ProxyMode,
        family: Family,
        protections: &[Protection],
    ) -> Result<(), TestbedError> {
        let rules = self.load(proxy_mode, family, protections)?;
        self.counters(proxy_mode, family)?.iter().zip(&rules).try_for_each(|(held, r)| held.has(r))
    }

    /// The same for who reads the counters anyway: [`NodeCounters::has`] compares. Gives the rules
    /// in the order of the counters.
    pub fn load(
        &self,
        proxy_mode: ProxyMode,
        family: Family,
        protections: &[Protection],
    ) -> Result<Vec<Ruleset>, TestbedError> {
        let load = |node: &&'static str| {
            let set = self.topology.protections(node, protections);
            let rules = Ruleset::new(proxy_mode, &self.topology.service, family, &set);
            self.within(node, || {
                evidence::load_rules(proxy_mode, family, &rules.text)?;
                let liberal = u8::from(set.contains(&ProtectionKind::Liberal)).to_string();
                evidence::set_sysctl(evidence::BE_LIBERAL, &liberal)
            })?;
            if !rules.ipvs.is_empty() {
                let (host, vip) = (self.topology.full(node), self.topology.service.vip.of(family));
                self.within(node, || evidence::balance(&host, vip, &rules.ipvs))?;
            }
            Ok(rules)
        };
        self.topology.nodes(At::Both).iter().map(load).collect()
    }

    /// Connects to `target` until the refusal of the still closed port comes back: then
    /// links, routes, neighbours and rules work. False when it never does.
    pub fn warm_up(&self, target: SocketAddr, within: Duration) -> Result<bool, TestbedError> {
        let end = Instant::now() + within;
        loop {
            self.interrupt.check()?;
            let refused = self.within(self.topology.client, move || {
                let attempt = TcpStream::connect_timeout(&target, Duration::from_millis(250));
                Ok(attempt.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused))
            })?;
            if refused {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            self.interrupt.sleep(Duration::from_millis(20))?;
        }
    }

    /// What both nodes have counted so far.
    pub fn counters(
        &self,
        proxy_mode: ProxyMode,
        family: Family,
    ) -> Result<Vec<NodeCounters>, TestbedError> {
        let read = |node: &&'static str| {
            self.within(node, || {
                let (loaded, text) = evidence::read_rules(proxy_mode, family)?;
                Ok(NodeCounters {
                    node: (*node).to_owned(),
                    be_liberal: evidence::sysctl(evidence::BE_LIBERAL)? == "1",
                    conntrack: evidence::conntrack_stat()?,
                    loaded,
                    text,
                })
            })
        };
        self.topology.nodes(At::Both).iter().map(read).collect()
    }
}

/// The hosts go with it, each with the last process and socket in it. What all namespaces share, the
/// kernel's table of neighbours (`neigh_alloc()`, gc_thresh3), would fill up in a long run.
impl Drop for Testbed {
    fn drop(&mut self) {
        for host in self.hosts.values().filter(|_| !self.keep) {
            if let Err(e) = host.remove() {
                eprintln!("{e}");
            }
        }
    }
}

fn no_host(name: &str) -> TestbedError {
    os(format!("find host {name}"))(io::ErrorKind::NotFound).into()
}

/// One reading of one node.
#[derive(Clone, Debug)]
pub struct NodeCounters {
    /// The node.
    pub node: String,
    be_liberal: bool,
    conntrack: BTreeMap<String, u64>,
    loaded: Loaded,
    /// The rules with their counters, as the tool gives them.
    pub text: String,
}

impl NodeCounters {
    /// That the kernel holds these rules and no others.
    pub fn has(&self, rules: &Ruleset) -> Result<(), TestbedError> {
        let Some(what) = rules.difference(&self.loaded) else { return Ok(()) };
        let source = wrong("find the rules as they were loaded")(what).into();
        Err(TestbedError::Evidence { host: self.node.clone(), source })
    }

    /// What grew since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> NodeEvidence {
        NodeEvidence {
            node: self.node.clone(),
            be_liberal: self.be_liberal,
            drop_rules: evidence::grown(&before.loaded.drops, &self.loaded.drops),
            dnat: self.loaded.dnat.saturating_sub(before.loaded.dnat),
            conntrack: evidence::grown(&before.conntrack, &self.conntrack),
        }
    }
}
