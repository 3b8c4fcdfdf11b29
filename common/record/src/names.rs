//! The closed sets of names that every part shares: what can be forged, what
//! became of it, what that says about a node, how a connection ended.
//!
//! Each name has one spelling, [`as_str`](Forgery::as_str), which is the name
//! on command lines, in results and in metric labels.

use std::io;

pub use canary_wire::closed::UnknownName;
use canary_wire::names;

names! {
    /// A segment to forge towards a client. `snd` is the server's next sequence
    /// number as the client last acknowledged it, `rcv` the next one that the
    /// server expects.
    #[derive(Default)]
    pub enum Forgery {
        /// A keep-alive probe with an octet that the client has had: always in order for
        /// conntrack. The positive control.
        #[default]
        Control = "control",
        /// Data at snd-100000: what the original canary forged. INVALID before Linux 6.1 alone.
        BelowWindow = "below-window",
        /// Data at snd+0x7FFFC000: INVALID for every window scale and every kernel.
        AboveWindow = "above-window",
        /// An acknowledgment of what the client never sent, rcv+0x40000000.
        AckAhead = "ack-ahead",
        /// No control bit set: conntrack's tcp_error() refuses it even when liberal.
        NoFlags = "no-flags",
        /// SYN FIN ACK: refused even when liberal, and its answer kills.
        SynFin = "syn-fin",
        /// Data a little beyond the window: conntrack keeps it as the new end (research).
        Overshoot = "overshoot",
    }
}

impl Forgery {
    /// Those that find a fault without killing a connection.
    pub const SAFE: &'static [Self] = &[Self::Control, Self::AckAhead, Self::NoFlags];
    /// Those whose leak draws an RST that the server must accept (RFC 9293, section 3.10.7.4: its
    /// sequence number is RCV.NXT).
    pub const LETHAL: &'static [Self] = &[Self::BelowWindow, Self::AboveWindow, Self::SynFin];

    /// True when Linux discards the segment without an answer even when it
    /// reaches the client's socket: silence then does not tell dropped from delivered.
    #[must_use]
    pub const fn silent_when_delivered(self) -> bool {
        // tcp_rcv_established(): neither ACK, RST nor SYN is discarded before any answer.
        matches!(self, Self::NoFlags)
    }
}

names! {
    /// What became of a forged segment.
    pub enum Outcome {
        /// It reached the client untranslated: an RST came back whose numbers only it provokes.
        Leaked = "leaked",
        /// A node on the way answered with a reset in the client's name.
        Rejected = "rejected",
        /// It reached the client's own socket, which answered with a duplicate or challenge ACK.
        Delivered = "delivered",
        /// Silence, and the connection was alive afterwards.
        Dropped = "dropped",
        /// Nothing was proved; the reason is counted.
        Unknown = "unknown",
    }
}

names! {
    /// Why an outcome is unknown.
    pub enum UnknownReason {
        /// Silence, and no proof of life afterwards either.
        NoProofOfLife = "no-proof-of-life",
        /// The client closed before an answer could be told apart.
        ClosedEarly = "closed-early",
        /// Traffic of the connection may have hidden the answer (forged in mid-stream alone).
        Busy = "busy",
        /// An RST came whose numbers also fit a cause other than the forged segment.
        AmbiguousReset = "ambiguous-reset",
        /// Answers came that something other than the forged segment explains too.
        UnclearAnswer = "unclear-answer",
        /// Another RST, not provoked by the forged segment, ended the connection.
        OtherReset = "other-reset",
        /// The 4-tuple was used again before a judgement.
        Reused = "reused",
        /// The table of connections was full.
        Evicted = "evicted",
        /// The program ended before the judgement.
        Interrupted = "interrupted",
        /// The forged segment could not be sent.
        SendFailed = "send-failed",
    }
}

names! {
    /// Where the peer address that the server sees belongs.
    pub enum ClientClass {
        /// In a pod network: the client's own address.
        Pod = "pod",
        /// A node's address: masqueraded, or a host-network client.
        Node = "node",
        /// Neither.
        Outside = "outside",
        /// No network was named, so nothing can be said.
        Unclassified = "unclassified",
    }
}

names! {
    /// What the outcomes say of the path to a class of clients.
    pub enum Diagnosis {
        /// INVALID segments leak and reset connections: Kubernetes issue #74839.
        Unprotected = "unprotected",
        /// Out-of-window segments arrive, those with bad flags leak, `no-flags` too: be_liberal
        /// alone.
        Liberal = "liberal",
        /// INVALID segments are dropped.
        Dropped = "dropped",
        /// Out-of-window segments arrive, those with bad flags are dropped: be_liberal with a
        /// drop, or a firewall that looks at flags.
        BadFlagsDropped = "bad-flags-dropped",
        /// Segments with bad flags leak; what becomes of the others does not single out why.
        Partly = "partly",
        /// Out-of-window segments arrive and `syn-fin` leaks, but not `no-flags`: a software
        /// flowtable passes what it tracks.
        Flowtable = "flowtable",
        /// A node on the way answers INVALID segments with a reset.
        Rejected = "rejected",
        /// Every segment that was tried arrives; why was not shown.
        Delivered = "delivered",
        /// Every segment arrives, those with bad flags too, though not at the address that was
        /// called: what is in between translates without conntrack's checks (IPVS, eBPF), or
        /// answers itself (a proxy).
        TranslatedUnchecked = "translated-unchecked",
        /// Every segment arrives at the address that was called: nothing translates.
        NotTranslated = "not-translated",
        /// Too little was proved.
        Inconclusive = "inconclusive",
    }
}

names! {
    /// Which way the forged segments went, and so what a verdict covers.
    #[derive(Default)]
    pub enum Direction {
        /// From the server to the client: answers, downloads.
        #[default]
        ServerToClient = "server-to-client",
        /// From the client to the server: requests, uploads.
        ClientToServer = "client-to-server",
        /// Both.
        Both = "both",
    }
}

impl Direction {
    /// Who the segments were sent to.
    #[must_use]
    pub const fn peer(self) -> &'static str {
        match self {
            Self::ServerToClient => "client",
            Self::ClientToServer => "server",
            Self::Both => "peer",
        }
    }
}

names! {
    /// What the client's kernel does with a segment below the window: the
    /// generation by behaviour, not by version number.
    #[derive(Default)]
    pub enum OldSegments {
        /// INVALID: before Linux 6.1 (commit 6e250dcbff1d) and its backports.
        Invalid = "invalid",
        /// Ignored, and so still translated: since 6.1.
        Ignored = "ignored",
        /// Not shown: not tried, or hidden by be_liberal or a drop.
        #[default]
        NotShown = "not-shown",
    }
}

names! {
    /// A run's verdict, which is its exit code.
    #[derive(Default)]
    pub enum Verdict {
        /// Protected.
        Protected = "protected",
        /// Vulnerable.
        Vulnerable = "vulnerable",
        /// The run proved nothing.
        #[default]
        Inconclusive = "inconclusive",
    }
}

impl Verdict {
    /// The worst is 0: a leak that was seen outweighs what was not proved.
    #[must_use]
    pub const fn rank(self) -> u8 {
        match self {
            Self::Vulnerable => 0,
            Self::Inconclusive => 1,
            Self::Protected => 2,
        }
    }

    /// The worst of several; inconclusive where there are none.
    #[must_use]
    pub fn worst(verdicts: impl IntoIterator<Item = Self>) -> Self {
        verdicts.into_iter().min_by_key(|v| v.rank()).unwrap_or(Self::Inconclusive)
    }
}

names! {
    /// What a load makes of its thresholds, which is its exit code. It says nothing of a path:
    /// see [`Verdict`].
    #[derive(Default)]
    pub enum LoadVerdict {
        /// No `--fail-on` is true.
        WithinThresholds = "within-thresholds",
        /// A `--fail-on` is true.
        ThresholdCrossed = "threshold-crossed",
        /// The load proved nothing.
        #[default]
        Inconclusive = "inconclusive",
    }
}

names! {
    /// What a failed connection looked like to the application.
    pub enum FailureClass {
        /// The handshake was not answered in time: what a full table does.
        ConnectTimeout = "connect-timeout",
        /// ECONNRESET, or EPIPE after one: what issue #74839 does to a writer.
        Reset = "reset",
        /// Connected, and then no progress: what it does to a reader.
        Hung = "hung",
        /// Nobody listened.
        Refused = "refused",
        /// The peer closed too soon.
        EarlyEof = "early-eof",
        /// The peer answered wrongly.
        BadAnswer = "bad-answer",
        /// A limit of this host (ports, open files, memory), which says nothing of the network.
        LocalLimit = "local-limit",
        /// Cut short by the end of the run, which says nothing either.
        Interrupted = "interrupted",
        /// Anything else; the phase and errno tell.
        Other = "other",
    }
}

names! {
    /// The part of a connection's life in which it ended.
    pub enum Phase {
        /// Name look-up.
        Resolve = "resolve",
        /// Local socket and handshake.
        Connect = "connect",
        /// Writing.
        Send = "send",
        /// Reading.
        Receive = "receive",
        /// Closing.
        Close = "close",
    }
}

names! {
    /// errno as a closed set, from the number the kernel gave.
    pub enum Errno {
        /// Connection reset by peer.
        Econnreset = "ECONNRESET",
        /// Connection refused.
        Econnrefused = "ECONNREFUSED",
        /// Connection timed out, by the kernel's own timers.
        Etimedout = "ETIMEDOUT",
        /// No route to host.
        Ehostunreach = "EHOSTUNREACH",
        /// Network is unreachable.
        Enetunreach = "ENETUNREACH",
        /// Cannot assign requested address: local ports exhausted.
        Eaddrnotavail = "EADDRNOTAVAIL",
        /// Address already in use.
        Eaddrinuse = "EADDRINUSE",
        /// Too many open files in this process.
        Emfile = "EMFILE",
        /// Too many open files in the system.
        Enfile = "ENFILE",
        /// No buffer space available.
        Enobufs = "ENOBUFS",
        /// Out of memory.
        Enomem = "ENOMEM",
        /// No space: more files to wait for than this user may have (`fs.epoll.max_user_watches`).
        Enospc = "ENOSPC",
        /// Broken pipe.
        Epipe = "EPIPE",
        /// Operation not permitted: a local rule refused the packet.
        Eperm = "EPERM",
        /// Permission denied.
        Eacces = "EACCES",
        /// Connection aborted.
        Econnaborted = "ECONNABORTED",
        /// Invalid argument.
        Einval = "EINVAL",
        /// A number outside this set.
        Other = "other",
        /// An error that carried no number; never the same as no error.
        Unknown = "unknown",
    }
}

impl Errno {
    /// The class of a system error number.
    #[must_use]
    pub fn from_raw(errno: i32) -> Self {
        // Each has the kernel's own name, as nix has it.
        format!("{:?}", nix::errno::Errno::from_raw(errno)).parse().unwrap_or(Self::Other)
    }

    /// The class of an I/O error.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        error.raw_os_error().map_or(Self::Unknown, Self::from_raw)
    }

    /// True when the fault is this host's own limit and says nothing of the network.
    #[must_use]
    pub const fn is_local_limit(self) -> bool {
        matches!(
            self,
            Self::Eaddrnotavail
                | Self::Eaddrinuse
                | Self::Emfile
                | Self::Enfile
                | Self::Enobufs
                | Self::Enomem
                | Self::Enospc
        )
    }
}

names! {
    /// How a probed connection ended.
    pub enum ProbeEnd {
        /// Every exchange was answered, every body was right.
        Survived = "survived",
        /// ECONNRESET, or EPIPE after one.
        Reset = "reset",
        /// No answer within the deadline.
        Hung = "hung",
        /// Nobody listened.
        Refused = "refused",
        /// The handshake was not answered in time.
        TimedOut = "timed-out",
        /// A body arrived with a wrong hash or length.
        Corrupted = "corrupted",
        /// The server closed before the exchange was complete.
        EarlyEof = "early-eof",
        /// A limit of this host (ports, open files): says nothing of the network.
        LocalLimit = "local-limit",
        /// Any other error, or cut short; the phase and errno tell.
        Failed = "failed",
    }
}

impl From<FailureClass> for ProbeEnd {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::ConnectTimeout => Self::TimedOut,
            FailureClass::Reset => Self::Reset,
            FailureClass::Hung => Self::Hung,
            FailureClass::Refused => Self::Refused,
            FailureClass::EarlyEof => Self::EarlyEof,
            FailureClass::BadAnswer => Self::Corrupted,
            FailureClass::LocalLimit => Self::LocalLimit,
            FailureClass::Interrupted | FailureClass::Other => Self::Failed,
        }
    }
}

names! {
    /// Why a program ended.
    #[derive(Default)]
    pub enum EndedBy {
        /// It goes on.
        #[default]
        Running = "running",
        /// `--duration` ran out.
        Duration = "duration",
        /// `--connections` were done.
        Connections = "connections",
        /// An attributed reset with `--on-reset exit`.
        Reset = "reset",
        /// Everything that was asked for is done.
        Completed = "completed",
        /// SIGTERM.
        Sigterm = "sigterm",
        /// SIGINT.
        Sigint = "sigint",
        /// It could not go on; the reasons say why.
        Error = "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name parses back from its spelling, and serde spells it alike.
    #[test]
    fn names_round_trip() {
        for f in Forgery::ALL {
            assert_eq!(f.as_str().parse(), Ok(*f));
            assert_eq!(serde_json::to_value(f).unwrap(), f.as_str());
        }
        for e in Errno::ALL {
            assert_eq!(e.as_str().parse(), Ok(*e));
            assert_eq!(serde_json::to_value(e).unwrap(), e.as_str());
        }
    }

    /// A wrong name is answered with the right ones.
    #[test]
    fn a_wrong_name_lists_the_right_ones() {
        let e = "leeked".parse::<Outcome>().unwrap_err();
        assert_eq!(
            e.to_string(),
            "unknown name 'leeked': use one of leaked, rejected, delivered, dropped, unknown"
        );
    }

    /// An I/O error without a number is Unknown, a number outside the set Other.
    #[test]
    fn errno_is_never_lost() {
        assert_eq!(Errno::of(&io::Error::other("x")), Errno::Unknown);
        assert_eq!(Errno::of(&io::Error::from_raw_os_error(libc::ENOTTY)), Errno::Other);
        assert_eq!(Errno::of(&io::Error::from_raw_os_error(104)), Errno::Econnreset);
    }

    /// A leak outweighs what was not proved, and that what is protected. Nothing proves nothing.
    #[test]
    fn the_worst_verdict_wins() {
        use Verdict::{Inconclusive, Protected, Vulnerable};
        assert_eq!(Verdict::worst([Protected, Vulnerable, Inconclusive]), Vulnerable);
        assert_eq!(Verdict::worst([Protected, Inconclusive, Protected]), Inconclusive);
        assert_eq!(Verdict::worst([Protected, Protected]), Protected);
        assert_eq!(Verdict::worst([]), Inconclusive);
    }

    /// No safe forgery is lethal.
    #[test]
    fn what_is_safe_is_not_lethal() {
        assert!(Forgery::SAFE.iter().all(|f| !Forgery::LETHAL.contains(f)));
    }
}
