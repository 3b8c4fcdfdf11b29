//! The order of steps: sockets, privileges away, engine and listeners, the end.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use canary_record::names::EndedBy;
use canary_record::result::boom::{BoomResult, Connections};
use canary_record::result::{self, Clock, seconds_between};
use canary_runtime::admin::Admin;
use canary_runtime::exit::Exit;
use canary_runtime::listen;
use canary_runtime::logs;
use canary_runtime::output::{OutputError, ResultFile, print_result, termination_message};
use canary_runtime::shutdown::Shutdown;
use canary_wire::filter::Side;
use canary_wire::segment::Family;
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::accept::{Acceptor, Counters};
use crate::config::{Config, OnReset};
use crate::engine::{Engine, PARITY, Shared};
use crate::listener;
use crate::metrics;
use crate::netstat;
use crate::page;
use crate::report::{self, Accepted};
use crate::stall::{self, Stalled};
use canary_forge::drive::Driver;
use canary_forge::flow::{End, Settings};
use canary_forge::privilege;
use canary_forge::raw::{Sender, Sniffer};

/// How often the ends of a run are looked for.
const LOOK: Duration = Duration::from_millis(20);
/// How often connections that hang are looked for.
const STALLS: Duration = Duration::from_secs(1);

/// Runs to the end and says how to exit.
pub(crate) fn run(config: Config, options: result::Config) -> anyhow::Result<Exit> {
    let clock = Clock::start();
    privilege::check()?;
    let not_bound = |option: &'static str, addr: SocketAddr| {
        move || format!("{option}: cannot listen on {addr}")
    };
    let bind =
        |option, addr| listen::bind(addr, listener::bound).with_context(not_bound(option, addr));
    let listeners = config.listen.iter().map(|addr| bind("--listen", *addr));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let admin = config.admin.0.map(|addr| bind("--admin", addr)).transpose()?;

    let addresses: Vec<SocketAddr> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
    let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
    let families = families(addresses.iter().map(SocketAddr::ip));
    let sniffers = families
        .iter()
        .map(|f| Sniffer::open(*f, Side::Destination, &ports, config.receive_buffer))
        .collect::<Result<Vec<_>, _>>()?;
    let sender = Sender::open(&families)?;
    // Before any thread: capabilities belong to threads, and are inherited.
    let bounding_empty = privilege::drop_all()?;
    // As at the end of the run: without CAP_DAC_OVERRIDE.
    let output = ResultFile::option(config.output.as_deref())?;
    logs::init_logs(config.log);

    let foreign = foreign_address(&config.local_ips(), &listen::own_addresses());
    if let Some(foreign) = &foreign {
        tracing::warn!("{foreign}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let program = Program {
        config,
        options,
        clock,
        foreign,
        shared: Arc::default(),
        counters: Arc::default(),
        embryonic: netstat::embryonic_resets(),
        repeated: netstat::syn_retransmissions(),
        ports,
        stalled: Mutex::new((Stalled::since(netstat::timeouts()), Instant::now())),
    };
    runtime.block_on(async {
        // Signals are caught before anything can be lost.
        let shutdown = Shutdown::catch().context("cannot catch signals")?;
        let program = Arc::new(program);
        let config = &program.config;
        tokio::spawn(watch(Arc::clone(&program)));
        let admin = admin.map(|listener| serve(listener, &program)).transpose()?;
        // Last: no handshake is complete before the raw sockets can see it.
        let judged = config.outcome_timeout.saturating_mul(2).saturating_add(config.forge_delay);
        for (listener, addr) in listeners.iter().zip(&addresses) {
            listener::listen(listener, judged).with_context(not_bound("--listen", *addr))?;
        }
        let counters = Arc::clone(&program.counters);
        let acceptor = Acceptor::new(listeners, counters, Handle::current())
            .context("cannot wait for connections")?;
        let end = End::Server { listen: addresses.clone(), local: config.local_ips() };
        let settings = Settings {
            forgeries: config.forge.0.clone(),
            outcome_timeout: config.outcome_timeout,
            forge_delay: config.forge_delay,
            capacity: config.max_flows as usize,
            end,
        };
        let driver = Driver::new(sniffers, sender, settings);
        program.shared.state().sniffer = driver.record();
        let engine = Engine::new(driver, acceptor, config.clone(), Arc::clone(&program.shared));
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || engine.run())
            .context("cannot start the engine's thread")?;
        if let Some(admin) = admin {
            admin.set_ready(true);
        }
        tracing::info!(
            listen = list(&addresses),
            families = list(&families),
            bounding_set_empty = bounding_empty,
            "ready"
        );
        Ok(program.to_the_end(shutdown, thread, output).await)
    })
}

/// As a log's reader expects a list.
fn list(all: &[impl ToString]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Both, for an address that stands for both.
fn families(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Family> {
    let of = |ip: IpAddr| match ip {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => vec![Family::Ipv4, Family::Ipv6],
        ip => vec![Family::of(ip.to_canonical())],
    };
    addresses.into_iter().flat_map(of).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Says so when none of the addresses that POD_IP and POD_IPS name is here:
/// then no connection will be judged.
fn foreign_address(named: &[IpAddr], own: &[IpAddr]) -> Option<String> {
    (!named.is_empty() && !own.is_empty() && !named.iter().any(|n| own.contains(n))).then(|| {
        format!(
            "POD_IP and POD_IPS name {}, and none of these is an address here ({}): correct or unset them",
            list(named),
            list(own)
        )
    })
}

/// The admin endpoint; what it shows is of the moment.
fn serve(listener: TcpListener, program: &Arc<Program>) -> anyhow::Result<Arc<Admin>> {
    listener::listen(&listener, Duration::ZERO).context("cannot serve --admin")?;
    let admin = Admin::start(listener, &[(metrics::HANDSHAKE_TO_FORGE, metrics::BOUNDS)])?;
    metrics::describe();
    let p = Arc::clone(program);
    admin.before_metrics(move || metrics::publish(&p.shared.snapshot(), p.accepted()));
    let p = Arc::clone(program);
    admin.set_page(move || page::render(&p.so_far(), p.shared.state().last_kill.as_ref()));
    let p = Arc::clone(program);
    admin.set_verdict(move || serde_json::to_string(&p.so_far()).unwrap_or_default());
    Ok(admin)
}

/// Waits until `done`, `most` at most, or for a signal.
async fn wait(shutdown: &mut Shutdown, most: Duration, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() && begun.elapsed() < most {
        tokio::select! {
            _ = shutdown.signalled() => return,
            () = sleep(LOOK) => {}
        }
    }
}

/// How many accepted connections belong to a run that saw `handshakes`: `before` were
/// accepted when its engine was told to end, `now` by now. What came after that end is
/// no part of the run; what is missing on either side stays a difference.
fn of_this_run(before: u64, now: u64, handshakes: u64) -> u64 {
    now.min(handshakes).max(before)
}

/// Looks for connections that hang, for ever. The kernel's list may be long, so it is read
/// elsewhere, and for a twentieth of the time at most.
async fn watch(program: Arc<Program>) {
    let mut pause = STALLS;
    loop {
        sleep(pause).await;
        let begun = Instant::now();
        let program = Arc::clone(&program);
        // A look that panics has seen nothing.
        let _ = tokio::task::spawn_blocking(move || program.look_for_stalls()).await;
        pause = STALLS.max(begun.elapsed() * 20);
    }
}

/// Whether something could not be written, which the result then says.
fn is_lost(written: Result<(), OutputError>, result: &mut BoomResult) -> bool {
    let Err(e) = written else { return false };
    tracing::warn!("{e}");
    result.reasons.push(e.to_string());
    true
}

/// Only the times of the handshakes' receipt depend on the wall clock.
fn step_note(wall: f64, monotonic: f64) -> Option<String> {
    let step = wall - monotonic;
    (step.abs() > 1.0).then(|| {
        format!("the wall clock was stepped by {step:.1} s: handshake_to_forge may be wrong")
    })
}

struct Program {
    config: Config,
    options: result::Config,
    clock: Clock,
    /// What is wrong with POD_IP and POD_IPS.
    foreign: Option<String>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    /// The kernel's counts when the program began.
    embryonic: u64,
    repeated: u64,
    /// The ports listened on, what hung there, and when that was looked for last.
    ports: Vec<u16>,
    stalled: Mutex<(Stalled, Instant)>,
}

impl Program {
    fn stalled(&self) -> MutexGuard<'_, (Stalled, Instant)> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for connections that hang, if any is open.
    fn look_for_stalls(&self) {
        let open = self.counters.open.load(Ordering::Relaxed) > 0;
        let worth = open && self.stalled().0.worth_a_look(netstat::timeouts());
        let waiting = worth.then(|| stall::look(&self.ports));
        let mut stalled = self.stalled();
        if let Some(waiting) = waiting {
            stalled.0.note(waiting);
        }
        stalled.1 = Instant::now();
    }

    fn accepted(&self) -> Accepted {
        let stalled = self.stalled().0.count();
        Accepted {
            connections: Connections { stalled, ..*self.counters.so_far() },
            embryonic: netstat::embryonic_resets().saturating_sub(self.embryonic),
            repeated: netstat::syn_retransmissions().saturating_sub(self.repeated),
        }
    }

    fn so_far(&self) -> BoomResult {
        self.result(EndedBy::Running, self.accepted())
    }

    fn result(&self, ended_by: EndedBy, accepted: Accepted) -> BoomResult {
        let state = self.shared.snapshot();
        let version = env!("CARGO_PKG_VERSION");
        let run = self.clock.run("boom-server", version, ended_by, self.options.clone());
        let wall = seconds_between(&run.started, &run.ended);
        let stepped = wall.and_then(|wall| step_note(wall, run.seconds));
        let notes: Vec<_> =
            self.foreign.clone().into_iter().chain(stepped).chain(logs::lost_lines()).collect();
        let families = families(self.config.local_ips());
        report::result(self.config.min_forged, run, &state, accepted, &families, &notes)
    }

    /// Waits for the first of the ends that the options name.
    async fn end(&self, shutdown: &mut Shutdown) -> EndedBy {
        let end = self.config.duration.and_then(|d| Instant::now().checked_add(d));
        loop {
            tokio::select! {
                by = shutdown.ended(end) => return by,
                () = self.shared.changed.notified() => {}
                () = sleep(LOOK) => {}
            }
            let state = self.shared.state();
            if state.sniffer.failed.is_some() {
                return EndedBy::Error;
            }
            if self.config.on_reset == OnReset::Exit && state.tally.first_leak.is_some() {
                return EndedBy::Reset;
            }
            if self.config.connections.is_some_and(|n| state.tally.settled >= n) {
                return EndedBy::Connections;
            }
        }
    }

    async fn to_the_end(
        &self,
        mut shutdown: Shutdown,
        thread: JoinHandle<()>,
        output: Option<ResultFile>,
    ) -> Exit {
        let by = self.end(&mut shutdown).await;
        let handshakes = || self.shared.state().tally.handshakes.finished;
        let accepted = || self.counters.so_far().accepted;
        if by == EndedBy::Connections {
            // Whoever holds the connections may let them go.
            tracing::info!("settled");
            // What waits to be accepted is open too.
            wait(&mut shutdown, PARITY, || accepted() >= handshakes()).await;
            let open = || self.counters.open.load(Ordering::Relaxed);
            wait(&mut shutdown, self.config.hold, || open() == 0).await;
        }
        // On a busy machine the last look may be long past; another costs as long as the
        // kernel's list is.
        let looked = self.stalled().1;
        if looked.elapsed() > STALLS * 3 {
            self.look_for_stalls();
        }
        // Of these the engine has seen the handshakes when it ends.
        let known = accepted();
        self.shared.stop();
        if thread.join().is_err() {
            self.shared.state().sniffer.failed = Some("the engine's thread panicked".to_owned());
        }
        let mut accepted = self.accepted();
        let connections = &mut accepted.connections;
        connections.accepted = of_this_run(known, connections.accepted, handshakes());
        let mut result = self.result(by, accepted);
        let line = report::one_line(&result, &self.shared.state());
        let message = termination_message(self.config.termination_log.as_deref(), &line);
        let mut lost = is_lost(message, &mut result);
        if let Some(output) = output {
            lost |= is_lost(output.write(&result), &mut result);
        }
        let printed = print_result(&result, || report::human(&result, &self.shared.state()));
        if let Err(e) = printed {
            eprintln!("cannot write the result to stdout: {e}");
            lost = true;
        }
        Exit::from(result.verdict).unless(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step of the wall clock is told in both directions, drift is not.
    #[test]
    fn a_clock_step_is_told() {
        assert_eq!(step_note(100.4, 100.0), None);
        assert!(step_note(3700.0, 100.0).is_some_and(|n| n.contains("stepped by 3600.0 s")));
        assert!(step_note(-3500.0, 100.0).is_some_and(|n| n.contains("stepped by -3600.0 s")));
    }

    /// What comes after the engine's end is left out; a handshake or an accept() that is
    /// missing stays a difference.
    #[test]
    fn only_what_is_missing_is_a_difference() {
        assert_eq!(of_this_run(10, 10, 10), 10);
        assert_eq!(of_this_run(10, 25, 12), 12);
        assert_eq!(of_this_run(10, 25, 9), 10);
        assert_eq!(of_this_run(10, 11, 12), 11);
    }

    /// POD_IP is complained about only where none of its addresses is here.
    #[test]
    fn a_foreign_address_is_one_of_nobody_here() {
        let ip = |s: &str| s.parse::<IpAddr>().expect("address");
        let own = [ip("127.0.0.1"), ip("198.18.0.1")];
        assert_eq!(foreign_address(&[], &own), None);
        assert_eq!(foreign_address(&[ip("198.18.0.1"), ip("fd00::9")], &own), None);
        let told = foreign_address(&[ip("198.18.0.9")], &own).expect("told");
        assert!(told.contains("name 198.18.0.9") && told.contains("198.18.0.1"), "{told}");
    }
}
