//! Writing a real-packet test: a test file with `harness = false` that names its tests.
//!
//! ```no_run
//! use canary_testbed::test::Bed;
//! use canary_testbed::topology::Topology;
//!
//! canary_testbed::tests![a_client_reaches_the_server];
//!
//! /// A client reaches the server.
//! fn a_client_reaches_the_server() {
//!     let bed = Bed::new(Topology::pair);
//!     bed.sh("client", "ping -c 1 198.18.65.20");
//! }
//! ```
//!
//! All tests of a file run inside user (unless root), mount, PID and network namespaces that are
//! entered before any thread starts, and end with the file. What fails panics, with the reason.

use std::any::Any;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_record::result::serve::ServeResult;
use canary_wire::segment::Family;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::exec::{Call, Output};
use crate::model::{Path, Protection, ProxyMode};
use crate::netns::{self, NetnsError};
use crate::network::Conditions;
use crate::network::wire::Network;
use crate::programs::{Ended, Program, Running, boom_server, load_client};
use crate::testbed::Testbed;
use crate::topology::Topology;

/// How long anything that a test waits for may take, unless it says so itself.
pub const SOON: Duration = Duration::from_secs(20);

/// A test: its name and its body.
pub type Test = (&'static str, fn());

/// The `main` of a test file, which runs these functions; those that come after `outside:` where
/// the file was started, in no namespaces of the testbed's.
#[macro_export]
macro_rules! tests {
    (outside: $($test:path),* $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::test::outside(&[$((stringify!($test), $test as fn())),*])
        }
    };
    ($($test:path),* $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::test::main(&[$((stringify!($test), $test as fn())),*])
        }
    };
}

/// Why a test cannot run here.
struct Skip(String);

/// Ends this test as one that cannot run here: said loudly, and counted as ignored.
pub fn skip(reason: impl Into<String>) -> ! {
    resume_unwind(Box::new(Skip(reason.into())))
}

/// Skips the test unless this is root of the machine.
pub fn needs_root(why: &str) {
    if !nix::unistd::geteuid().is_root() {
        skip(format!("needs root: {why}"));
    }
}

/// Runs the tests of a file.
#[must_use]
pub fn main(tests: &'static [Test]) -> ExitCode {
    if std::env::args().any(|a| a == "--list") {
        return conclude(&Arguments::from_args(), tests, None);
    }
    let inside = |args: Vec<String>| conclude(&Arguments::from_iter(args), tests, None);
    match netns::contain(inside) {
        Ok(code) => code,
        Err(e @ NetnsError::Refused { .. }) => {
            conclude(&Arguments::from_args(), tests, Some(&e.to_string()))
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Runs tests of programs that make namespaces of their own.
#[must_use]
pub fn outside(tests: &'static [Test]) -> ExitCode {
    conclude(&Arguments::from_args(), tests, None)
}

fn conclude(options: &Arguments, tests: &'static [Test], refused: Option<&str>) -> ExitCode {
    let trial = |(name, body): &(&'static str, fn())| {
        let (name, body, refused) = (*name, *body, refused.map(str::to_owned));
        Trial::ignorable_test(name, move || match refused {
            Some(reason) => Ok(skipped(name, reason)),
            None => catch_unwind(AssertUnwindSafe(body)).map_or_else(
                |panic| match panic.downcast::<Skip>() {
                    Ok(reason) => Ok(skipped(name, reason.0)),
                    Err(panic) => Err(message(&*panic)),
                },
                |()| Ok(Completion::Completed),
            ),
        })
    };
    libtest_mimic::run(options, tests.iter().map(trial).collect()).exit_code()
}

fn skipped(name: &str, reason: String) -> Completion {
    eprintln!("SKIPPED {name}: {reason}");
    Completion::ignored_with(reason)
}

fn message(panic: &(dyn Any + Send)) -> Failed {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").into()
}

/// Hosts that are up, for one test. They go with it, and so does what runs in them.
pub struct Bed {
    testbed: Testbed,
    dir: TempDir,
    started: AtomicU32,
}

#[track_caller]
fn ok<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

impl Bed {
    /// Builds a topology, which is given its prefix.
    #[track_caller]
    pub fn new(topology: impl FnOnce(&str) -> Topology) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("t{}-", NEXT.fetch_add(1, Ordering::Relaxed));
        Self {
            testbed: ok(Testbed::build(topology(&prefix))),
            dir: ok(tempfile::tempdir()),
            started: AtomicU32::new(0),
        }
    }

    /// The topology of a path, with Service rules of both families and no protection.
    #[must_use]
    #[track_caller]
    pub fn path(path: Path) -> Self {
        let bed = Self::new(|prefix| Topology::new(path, prefix));
        bed.protect(&[]);
        bed
    }

    /// The same with a bad network between the nodes, or client and server where there are none. The
    /// conditions are printed; `TESTBED_SEED` is a seed to take instead of theirs.
    #[track_caller]
    #[must_use]
    pub fn through(path: Path, mut conditions: Conditions) -> (Self, Network) {
        if let Some(seed) = std::env::var("TESTBED_SEED").ok().and_then(|s| s.parse().ok()) {
            conditions.seed = seed;
        }
        eprintln!("network: {conditions} (TESTBED_SEED={} repeats it)", conditions.seed);
        let bed = Self::new(|prefix| Topology::new(path, prefix).through_a_network());
        bed.protect(&[]);
        let network = ok(Network::start(&bed.testbed, conditions));
        (bed, network)
    }

    /// The hosts.
    #[must_use]
    pub fn testbed(&self) -> &Testbed {
        &self.testbed
    }

    /// A file of this test's own.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.file(&format!("{}.log", self.started.fetch_add(1, Ordering::Relaxed)))
    }

    /// Sets these protections on every node and no others, such as `forward-drop`.
    #[track_caller]
    pub fn protect(&self, protections: &[&str]) {
        let protections: Vec<Protection> = protections.iter().map(|p| ok(p.parse())).collect();
        for family in [Family::Ipv4, Family::Ipv6] {
            ok(self.testbed.protect(ProxyMode::Nftables, family, &protections));
        }
    }

    /// Runs a line for the shell in a host, which must succeed; gives what it prints.
    #[track_caller]
    pub fn sh(&self, host: &str, line: &str) -> String {
        ok(self.testbed.sh(host, line))
    }

    /// Runs a program in a host to its end, well or badly.
    #[track_caller]
    pub fn run(&self, host: &str, call: &Call) -> Output {
        ok(self.testbed.run(host, call))
    }

    /// Runs `job` in a host.
    #[track_caller]
    pub fn within<T: Send>(&self, host: &str, job: impl FnOnce() -> T + Send) -> T {
        ok(ok(self.testbed.host(host)).run(job))
    }

    /// Starts a program in a host; ready when this returns.
    #[track_caller]
    pub fn start<R: serde::de::DeserializeOwned>(
        &self,
        host: &str,
        program: Program<R>,
    ) -> Running<R> {
        ok(program.ready(&self.testbed, host, &self.log()))
    }

    /// boom-server on the path's server, ready.
    #[track_caller]
    pub fn boom(&self, options: &[impl AsRef<str>]) -> Running<BoomResult> {
        self.start(self.testbed.topology.server, ok(boom_server(options)))
    }

    /// `load-client serve` on the path's server, ready.
    #[track_caller]
    pub fn serve(&self, listen: &str) -> Running<ServeResult> {
        let program = ok(load_client(&["serve", "--listen", listen, "--log", "json"]));
        self.start(self.testbed.topology.server, program.ending_with())
    }

    /// Starts load-client on the path's client with these words.
    #[track_caller]
    pub fn load(&self, words: &str) -> Running<LoadResult> {
        let words: Vec<_> = words.split_whitespace().collect();
        let program = ok(load_client(&words));
        ok(program.start(&self.testbed, self.testbed.topology.client, &self.log()))
    }

    /// Runs load-client to its end, which has nothing to complain about.
    ///
    /// # Panics
    /// When it has.
    #[track_caller]
    pub fn loaded(&self, words: &str) -> Ended<LoadResult> {
        let running = self.load(words);
        let said = running.log().to_owned();
        let ended = ok(running.end(3 * SOON));
        assert_eq!(std::fs::read_to_string(said).unwrap_or_default(), "", "{words}");
        ended
    }

    /// Adds a rule to a chain at the output of a host.
    #[track_caller]
    pub fn rule(&self, host: &str, rule: &str) {
        let chain = "add chain ip t out { type filter hook output priority 0; }";
        self.sh(host, &format!("nft 'add table ip t; {chain}; add rule ip t out {rule}'"));
    }

    /// The packets that the counters of these rules saw.
    #[track_caller]
    #[must_use]
    pub fn counted(&self, host: &str) -> Vec<u64> {
        let rules = self.sh(host, "nft list chain ip t out");
        let words: Vec<_> = rules.split_whitespace().collect();
        words.windows(2).filter(|w| w[0] == "packets").map(|w| ok(w[1].parse())).collect()
    }

    /// A server made of a function, on loopback, one thread for each connection.
    #[track_caller]
    pub fn server(
        &self,
        host: &str,
        port: u16,
        f: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
    ) {
        let listener = self.within(host, || ok(TcpListener::bind(("127.0.0.1", port))));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let f = f.clone();
                std::thread::spawn(move || f(stream));
            }
        });
    }

    /// What clients connect to.
    #[must_use]
    pub fn target(&self, family: Family) -> SocketAddr {
        self.testbed.topology.target(family)
    }

    /// Connections from the path's client, kept open.
    #[track_caller]
    pub fn connect(&self, to: impl ToSocketAddrs, n: usize) -> Vec<TcpStream> {
        let to: Vec<_> = ok(to.to_socket_addrs()).collect();
        self.within(self.testbed.topology.client, || (0..n).map(|_| connection(to[0])).collect())
    }
}

/// A connection whose handshake is over, or was: the reset that a forged segment brings
/// about may be there before the server's TCP has it. The first exchange finds it.
fn connection(to: SocketAddr) -> TcpStream {
    let socket = ok(Socket::new(Domain::for_address(to), Type::STREAM, None));
    ok(socket.set_nonblocking(true));
    let begun = socket.connect(&to.into()).expect_err("EINPROGRESS").raw_os_error();
    assert_eq!(begun, Some(Errno::EINPROGRESS as i32));
    let mut done = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut done, 5_000_u16), Ok(1), "connect to {to}");
    ok(socket.set_nonblocking(false));
    socket.into()
}

/// One exchange of the probe protocol with boom-server; the error otherwise.
pub fn exchange(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"answer 0 10 1\n")?;
    stream.read_exact(&mut [0; 10])
}

/// Waits for a condition.
///
/// # Panics
/// When it does not come true in time.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
