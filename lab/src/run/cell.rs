//! One cell: boom-server and load-client run once through a topology that is
//! up, with the kernel's counters read before and after, and captures beside.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::document::lab::Capture;
use canary_record::names::{Direction, Forgery};
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_record::result::witness::WitnessResult;
use canary_testbed::capture::{self, Reset};
use canary_testbed::evidence;
use canary_testbed::exec::Ready;
use canary_testbed::model::At;
use canary_testbed::os::wrong;
use canary_testbed::tap::Tap;
use canary_testbed::testbed::TestbedError;
use canary_testbed::topology::POD_PORT;
use nix::sys::signal::Signal;

use super::setting::{self, CaptureMode, Place, READY, Running, io_error, write};
use crate::judge::witness;
use crate::observed::cell::{Key, Shown};
use crate::scenario::matrix::{CellPlan, Matrix};

/// How long boom-server takes to end once every connection is judged.
const JUDGED: Duration = Duration::from_millis(1600);
/// How long load-client leaves its connections idle at most. It is told to go
/// on as soon as boom-server has judged all of them.
const DELAY: Duration = Duration::from_secs(20);
/// How long load-client waits for a connect or an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer to a client's forged segment may take.
const OUTCOME: Duration = Duration::from_secs(1);
/// Octets of an upload: few beside the distances of forged segments, and more than a request.
const UPLOAD: u32 = 4096;

/// The client's local ports: so many that none is taken twice in a cell, though a port is free
/// again when its connection was reset. `__inet_hash_connect()` moves on by up to 16 ports for
/// each connection, and cells beside this one, whose addresses are the same, move it on too.
const PORTS: &str = "2000\t65000";

#[derive(Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub(crate) place: &'a Place<'a>,
    pub(crate) results: &'a Path,
    pub(crate) scenario: &'a str,
    /// Its files are under `cells/ID/`.
    pub(crate) id: &'a str,
    pub(crate) matrix: &'a Matrix,
    pub(crate) plan: &'a CellPlan,
    pub(crate) key: Key,
    pub(crate) kept: &'a Kept,
}

/// Of which scenario and forgery a connection is kept already.
pub(crate) type Kept = Mutex<BTreeSet<(String, Forgery)>>;

impl Cell<'_> {
    fn dir(&self) -> PathBuf {
        self.results.join("cells").join(self.id)
    }

    /// Whether the client forges.
    fn upload(&self) -> bool {
        self.matrix.direction == Direction::ClientToServer
    }

    /// What to forge, as options take it.
    fn list(&self) -> String {
        let names: Vec<_> = self.matrix.forgeries.iter().map(|f| f.as_str()).collect();
        names.join(",")
    }

    fn load_patience(&self) -> Duration {
        self.place.scaled(DELAY + TIMEOUT * 3) + READY
    }

    pub(crate) fn run(&self) -> Result<Shown, TestbedError> {
        let begun = Instant::now();
        let (place, dir) = (self.place, &self.dir());
        let (proxy_mode, family) = (self.key.proxy_mode, self.key.family);
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let rules = place.load(proxy_mode, family, &self.plan.protections)?;
        // The cells before used the same ports, and an entry of theirs would be taken up again.
        let both = place.topology.nodes(At::Both);
        for (node, rules) in both.iter().zip(&rules) {
            write(&dir.join(format!("rules-{node}.txt")), &rules.text)?;
            place.within(node, evidence::forget_all)?;
        }
        let (client, server) = (place.topology.client, place.topology.server);
        place.set(client, "net/ipv4/ip_local_port_range", PORTS)?;
        // What a program that has ended left unacknowledged is not sent again in the next cell: it would be
        // picked up from the wrong end, and a SYN on its ports be INVALID.
        place.set(server, "net/ipv4/tcp_orphan_retries", "1")?;
        let none_expected = self.plan.expect.unconnected();
        let patience = if none_expected { Duration::ZERO } else { place.scaled(READY) };
        let warm = place.warm_up(place.topology.target(family), patience)?;

        let mut notes = Vec::new();
        let witnesses = place.witnesses(both, dir, &mut notes)?;
        let captures = self.start_captures()?;
        let mut boom = self.start_boom()?;
        let before = place.counters(proxy_mode, family)?;
        before.iter().zip(&rules).try_for_each(|(held, rules)| held.has(rules))?;
        let mut load = self.start_load()?;
        // Where no connection comes to be, load-client ends first. Who forges itself knows the end.
        while !self.upload()
            && !load.process.ends_within(Duration::ZERO)?
            && !boom.process.ends_within(Duration::ZERO)?
        {
            if boom.process.says_again(Duration::from_millis(10)) {
                load.process.signal(Signal::SIGUSR1);
                break;
            }
        }
        let load: LoadResult = load.result(self.load_patience())?;
        // It ends by itself once every connection is judged; where some never came it is asked to
        // end and says so in its result.
        if !boom.process.ends_within(place.scaled(JUDGED))? {
            boom.process.signal(Signal::SIGTERM);
        }
        let boom: BoomResult = boom.result(place.scaled(READY))?;
        let after = place.counters(proxy_mode, family)?;
        let witnesses = setting::end_witnesses(witnesses)?;
        if !warm && !none_expected {
            notes.push("the target's port never answered before the cell".to_owned());
        }
        let resets = self.captured(captures, &mut notes)?;
        for counters in &after {
            write(&dir.join(format!("counters-{}.txt", counters.node)), &counters.text)?;
        }
        Ok(Shown {
            boom,
            load,
            nodes: after.iter().zip(&before).map(|(a, b)| a.since(b)).collect(),
            captures: self.keep(resets.as_deref(), &witnesses)?,
            resets,
            witnesses,
            notes,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    fn start_boom(&self) -> Result<Running, TestbedError> {
        let forge = if self.upload() { "none".to_owned() } else { self.list() };
        let connections = self.matrix.connections;
        let options = [
            format!("--connections={}", connections as usize * self.matrix.forgeries.len()),
            format!("--min-forged={}", connections.min(20)),
            // A server that ends first resets what a slow machine's client has still open.
            format!("--hold={}ms", self.load_patience().as_millis()),
        ];
        let at = (self.place.topology.server, POD_PORT);
        self.place.boom_server(at, &self.dir(), &forge, &options)
    }

    fn start_load(&self) -> Result<Running, TestbedError> {
        let (place, topology) = (self.place, &self.place.topology);
        let connections = self.matrix.connections;
        let mut options = vec![
            "probe".to_owned(),
            format!("--target=tcp://{}", topology.target(self.key.family)),
            format!("--connections={}", connections as usize * self.matrix.forgeries.len()),
            format!("--timeout={}ms", place.scaled(TIMEOUT).as_millis()),
        ];
        options.extend(if self.upload() {
            vec![
                "--pattern=upload".to_owned(),
                format!("--body-size={UPLOAD}"),
                format!("--forge={}", self.list()),
                format!("--min-forged={}", connections.min(20)),
                format!("--outcome-timeout={}ms", place.scaled(OUTCOME).as_millis()),
            ]
        } else {
            vec![
                "--pattern=request".to_owned(),
                format!("--delay={}ms", place.scaled(DELAY).as_millis()),
            ]
        });
        let at = (&*self.dir(), "load");
        place.load_client(topology.client, at, options, Ready::Event)
    }

    /// Where captures are taken: the server first.
    fn hosts(&self) -> Vec<&'static str> {
        let mut hosts = vec![self.place.topology.server, self.place.topology.client];
        hosts.dedup();
        hosts
    }

    fn start_captures(&self) -> Result<Vec<Tap>, TestbedError> {
        let (place, mut running) = (self.place, Vec::new());
        if place.setting.capture == CaptureMode::None {
            return Ok(running);
        }
        for host in self.hosts() {
            // A node has several links, a pod one.
            let link = if host.starts_with("node") { "any" } else { "eth0" };
            let file = self.dir().join(capture_file(host));
            running.push(Tap::start(place, host, link, "tcp", &file)?);
        }
        for tap in &mut running {
            tap.wait_ready(place.scaled(READY))?;
        }
        Ok(running)
    }

    /// Stops captures and gives the RSTs that answer a forged segment, unless a capture lost some.
    fn captured(
        &self,
        mut captures: Vec<Tap>,
        notes: &mut Vec<String>,
    ) -> Result<Option<Vec<Reset>>, TestbedError> {
        let (mut files, mut complete) = (Vec::new(), true);
        let within = self.place.scaled(READY);
        captures.iter_mut().try_for_each(|tap| tap.end(within))?;
        for tap in captures {
            let (pcap, loss) = tap.stop(within)?;
            if let Some(loss) = loss {
                notes.push(format!("the capture is not whole: {loss}"));
                complete = false;
            }
            files.push(pcap);
        }
        let (topology, family) = (&self.place.topology, self.key.family);
        // Where the segments are forged: the server's capture is the first, the client's the last.
        let (pcap, server) = if self.upload() {
            (files.last(), topology.target(family))
        } else {
            (files.first(), SocketAddr::new(topology.service.pod.of(family), POD_PORT))
        };
        let Some(pcap) = pcap.filter(|_| complete) else { return Ok(None) };
        let resets = capture::resets(pcap, server, self.matrix.direction);
        Ok(resets.map_err(|e| notes.push(e.to_string())).ok())
    }

    /// Keeps one connection of every kind that was reset, or everything.
    fn keep(
        &self,
        resets: Option<&[Reset]>,
        witnesses: &[(String, WitnessResult)],
    ) -> Result<Vec<Capture>, TestbedError> {
        let mut captures = Vec::new();
        if self.place.setting.capture == CaptureMode::None {
            return Ok(captures);
        }
        let (id, scenario) = (self.id, self.scenario);
        let hosts: Vec<_> = self.hosts().into_iter().rev().collect();
        let failed = || wrong(format!("keep a capture of {id}"));
        let read = |host: &str| {
            let path = self.dir().join(capture_file(host));
            fs::read(&path).map_err(io_error("read", &path))
        };
        for reset in resets.into_iter().flatten() {
            let kind = (scenario.to_owned(), reset.forgery);
            let new = self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(kind);
            if !new {
                continue;
            }
            for host in &hosts {
                let (bytes, packets) =
                    capture::connection(&read(host)?, reset.client_isn).map_err(failed())?;
                let file = format!("captures/{scenario}-{}-{host}.pcap", reset.forgery);
                let path = self.results.join(&file);
                fs::create_dir_all(self.results.join("captures"))
                    .map_err(io_error("write", &path))?;
                write(&path, &bytes)?;
                captures.push(Capture {
                    forgery: Some(reset.forgery),
                    host: (*host).to_owned(),
                    file,
                    packets,
                    kernel: witness::words(witnesses, *reset),
                });
            }
        }
        for host in &hosts {
            let path = self.dir().join(capture_file(host));
            if self.place.setting.capture == CaptureMode::All {
                let packets = capture::packets(&read(host)?).map_err(failed())?;
                let file = format!("cells/{id}/{}", capture_file(host));
                let host = (*host).to_owned();
                captures.push(Capture { forgery: None, host, file, packets, kernel: None });
            } else {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(captures)
    }
}

/// The name of a host's whole capture inside the cell's directory.
fn capture_file(host: &str) -> String {
    format!("{host}.pcap")
}
