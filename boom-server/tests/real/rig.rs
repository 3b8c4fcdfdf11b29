//! Three network namespaces: a client, its node, which translates a Service's
//! address as kube-proxy does, and a server. Gone when dropped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use canary_record::result::boom::BoomResult;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

/// The Service's addresses.
pub(crate) const VIP4: &str = "198.18.100.1:9000";
pub(crate) const VIP6: &str = "[fd00:100::1]:9000";

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Rig {
    id: String,
}

pub(crate) fn sh(line: &str) {
    output(line);
}

/// What a line for the shell prints.
pub(crate) fn output(line: &str) -> String {
    let out = Command::new("sh").args(["-euc", line]).output().expect("sh");
    assert!(out.status.success(), "{line}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Rig {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let id = format!("bt{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let rig = Self { id };
        let (c, n, s) = (rig.name('c'), rig.name('n'), rig.name('s'));
        sh(&format!(
            "for x in {c} {n} {s}; do ip netns add $x; ip -n $x link set lo up; done
             ip link add e0 netns {c} type veth peer name c0 netns {n}
             ip link add e0 netns {s} type veth peer name s0 netns {n}
             ip -n {c} addr add 198.18.1.2/24 dev e0
             ip -n {n} addr add 198.18.1.1/24 dev c0
             ip -n {s} addr add 198.18.2.2/24 dev e0
             ip -n {n} addr add 198.18.2.1/24 dev s0
             ip -n {c} addr add fd00:1::2/64 dev e0 nodad
             ip -n {n} addr add fd00:1::1/64 dev c0 nodad
             ip -n {s} addr add fd00:2::2/64 dev e0 nodad
             ip -n {n} addr add fd00:2::1/64 dev s0 nodad
             ip -n {c} link set e0 up; ip -n {s} link set e0 up
             ip -n {n} link set c0 up; ip -n {n} link set s0 up
             ip -n {c} route add default via 198.18.1.1
             ip -n {s} route add default via 198.18.2.1
             ip -n {c} -6 route add default via fd00:1::1
             ip -n {s} -6 route add default via fd00:2::1
             ip netns exec {n} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip netns exec {n} nft -f - <<'EOF'
             table ip nat {{
               chain pre {{
                 type nat hook prerouting priority dstnat
                 ip daddr 198.18.100.1 tcp dport 9000 dnat to 198.18.2.2:9000
               }}
             }}
             table ip6 nat {{
               chain pre {{
                 type nat hook prerouting priority dstnat
                 ip6 daddr fd00:100::1 tcp dport 9000 dnat to [fd00:2::2]:9000
               }}
             }}
             table inet f {{
               chain fw {{
                 type filter hook forward priority filter
               }}
             }}
EOF"
        ));
        rig
    }

    pub(crate) fn name(&self, role: char) -> String {
        format!("{}{role}", self.id)
    }

    /// Sets the node's protection: INVALID dropped in FORWARD, be_liberal, or both.
    pub(crate) fn protect(&self, drop: bool, liberal: bool) {
        let n = self.name('n');
        sh(&format!("ip netns exec {n} nft flush chain inet f fw"));
        if drop {
            sh(&format!("ip netns exec {n} nft add rule inet f fw ct state invalid counter drop"));
        }
        let key = "net.netfilter.nf_conntrack_tcp_be_liberal";
        let want = u8::from(liberal);
        sh(&format!("ip netns exec {n} sysctl -qw {key}={want}"));
        sh(&format!("test \"$(ip netns exec {n} sysctl -n {key})\" = {want}"));
    }

    /// boom-server in the server's namespace, ready.
    pub(crate) fn boom(&self, args: &[&str]) -> Boom {
        self.boom_under(&[], args)
    }

    /// The same under another program, such as prlimit.
    pub(crate) fn boom_under(&self, wrap: &[&str], args: &[&str]) -> Boom {
        self.boom_unread(wrap, args).read()
    }

    /// The same, and nobody reads its stdout from there on.
    pub(crate) fn boom_unread(&self, wrap: &[&str], args: &[&str]) -> Unread {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name('s')])
            .args(wrap)
            .arg(env!("CARGO_BIN_EXE_boom-server"))
            .args(["--log", "json", "--outcome-timeout", "500ms"])
            .env("BOOM_ADMIN", "none")
            // Whatever goes wrong, it ends, and the test with it.
            .env("BOOM_DURATION", "60s")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("boom-server");
        let mut out = BufReader::new(child.stdout.take().expect("stdout"));
        let mut log = String::new();
        while !log.contains("\"message\":\"ready\"") {
            if out.read_line(&mut log).expect("stdout") == 0 {
                let mut err = String::new();
                let _ = child.stderr.take().expect("stderr").read_to_string(&mut err);
                panic!("boom-server ended before it was ready: {err}{log}");
            }
        }
        Unread { child, out, log }
    }

    /// Runs `f` in the namespace of `role`.
    pub(crate) fn within<T: Send>(&self, role: char, f: impl FnOnce() -> T + Send) -> T {
        let ns = File::open(Path::new("/run/netns").join(self.name(role))).expect("namespace");
        std::thread::scope(|s| {
            let work = s.spawn(move || {
                setns(&ns, CloneFlags::CLONE_NEWNET).expect("setns");
                f()
            });
            work.join().expect("thread")
        })
    }

    /// Connections from the client, kept open.
    pub(crate) fn connect(&self, to: &str, n: usize) -> Vec<TcpStream> {
        let to: SocketAddr = to.parse().expect("address");
        self.within('c', || (0..n).map(|_| connect(to)).collect())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for role in ['c', 'n', 's'] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(role)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A connection whose handshake is over, or was: the reset that a forged segment brings
/// about may be there before the server's TCP has it. The first exchange finds it.
fn connect(to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("socket");
    socket.set_nonblocking(true).expect("set_nonblocking");
    let begun = socket.connect(&to.into()).expect_err("EINPROGRESS").raw_os_error();
    assert_eq!(begun, Some(Errno::EINPROGRESS as i32));
    let mut done = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut done, 5_000_u16), Ok(1), "connect to {to}");
    socket.set_nonblocking(false).expect("set_nonblocking");
    socket.into()
}

/// A running boom-server whose stdout waits to be read.
pub(crate) struct Unread {
    child: Child,
    out: BufReader<ChildStdout>,
    log: String,
}

impl Unread {
    fn read(self) -> Boom {
        let (send, lines) = mpsc::channel();
        let out = self.out;
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Boom { child: self.child, lines, log: self.log }
    }

    pub(crate) fn status(mut self, deadline: Duration) -> ExitStatus {
        wait(&mut self.child, deadline)
    }
}

/// A running boom-server.
pub(crate) struct Boom {
    child: Child,
    lines: mpsc::Receiver<String>,
    log: String,
}

impl Boom {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for an event. The end of the output stands in for a deadline.
    pub(crate) fn wait_for(&mut self, message: &str) {
        let wanted = format!("\"message\":\"{message}\"");
        while let Ok(line) = self.lines.recv() {
            let found = line.contains(&wanted);
            self.note(&line);
            if found {
                return;
            }
        }
        panic!("boom-server ended before '{message}': {}", self.log);
    }

    fn note(&mut self, line: &str) {
        self.log.push_str(line);
        self.log.push('\n');
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("kill");
    }

    /// Waits for the end, the result and the log.
    pub(crate) fn end(mut self, deadline: Duration) -> (ExitStatus, BoomResult, String) {
        let status = wait(&mut self.child, deadline);
        while let Ok(line) = self.lines.recv() {
            self.note(&line);
        }
        let last = self.log.lines().last().unwrap_or_default();
        let result = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
        (status, result, self.log)
    }
}

/// Waits for the end; a program that does not end is killed and the test fails.
fn wait(child: &mut Child, deadline: Duration) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if begun.elapsed() > deadline {
            let _ = child.kill();
            panic!("boom-server did not end in {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One exchange of the probe protocol; the error's kind otherwise.
pub(crate) fn exchange(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"answer 0 10 1\n")?;
    stream.read_exact(&mut [0; 10])
}
