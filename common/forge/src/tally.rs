//! Counts of what the state machine told, at either end.

use std::collections::BTreeMap;
use std::net::IpAddr;

use canary_record::names::{ClientClass, Forgery};
use canary_record::outcome::Counts;
use canary_record::result::boom::{Handshakes, OutcomeCount, ResetSample, Resets, Sniffer};
use canary_wire::segment::{Family, Flags, FourTuple};

use crate::drive::Done;
use crate::flow::{Action, Judgement, Reset, ResetCause};

/// The counts of one run.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    outcomes: BTreeMap<(Family, ClientClass, Forgery), OutcomeCount>,
    /// RSTs.
    pub resets: Resets,
    /// SYNs, and what became of them.
    pub handshakes: Handshakes,
    /// Connections on which a segment was forged.
    pub forged: u64,
    /// Connections judged, or ended before anything was forged.
    pub settled: u64,
    /// Connections to addresses that are not judged for, and one of those.
    pub elsewhere: Option<(u64, IpAddr)>,
    /// Connections from addresses of this host itself, and one of those.
    pub own: Option<(u64, IpAddr)>,
    /// Segments that could not be sent.
    pub send_errors: u64,
    /// The first reset that was proven a forged segment's.
    pub first_leak: Option<Judgement>,
}

impl Tally {
    fn row(
        &mut self,
        tuple: &FourTuple,
        class: ClientClass,
        forgery: Forgery,
    ) -> &mut OutcomeCount {
        let family = tuple.family();
        self.outcomes.entry((family, class, forgery)).or_insert_with(|| OutcomeCount {
            forgery,
            family,
            class,
            forged: 0,
            counts: Counts::default(),
        })
    }

    /// Takes note of what was done. `class` is where the peer's address belongs.
    pub fn done(&mut self, done: &Done, class: impl Fn(IpAddr) -> ClientClass) {
        let (Done::Sent(action, _) | Done::Noted(action)) = done else {
            self.send_errors += 1;
            return;
        };
        match action {
            Action::Opened { again: false, .. } => self.handshakes.syns += 1,
            Action::Opened { again: true, .. } => self.handshakes.repeated_syns += 1,
            Action::Handshake(tuple) => {
                self.handshakes.finished += 1;
                let peer = tuple.remote.ip();
                if peer.is_loopback() || peer == tuple.local.ip() {
                    self.own.get_or_insert((0, peer)).0 += 1;
                }
            }
            Action::Unfinished { syns: 0 | 1, .. } => self.handshakes.ack_lost += 1,
            Action::Unfinished { .. } => self.handshakes.syn_ack_lost += 1,
            Action::NotForged => self.settled += 1,
            Action::Elsewhere(tuple) => {
                self.settled += 1;
                self.elsewhere.get_or_insert((0, tuple.local.ip())).0 += 1;
            }
            Action::Forge { tuple, forgery, .. } => {
                self.forged += 1;
                self.row(tuple, class(tuple.remote.ip()), *forgery).forged += 1;
            }
            Action::Judged(j) => {
                let counts = &mut self.row(&j.tuple, class(j.tuple.remote.ip()), j.forgery).counts;
                if let Some(fate) = j.replaces {
                    counts.uncount(fate);
                }
                counts.count(j.fate);
                self.settled += u64::from(j.replaces.is_none());
                if j.fate.reset() {
                    self.first_leak.get_or_insert(*j);
                }
            }
            Action::Reset(r) => self.reset(r, class(r.tuple.remote.ip())),
            Action::Probe { .. } => {}
        }
    }

    fn reset(&mut self, r: &Reset, class: ClientClass) {
        let mut expected_seq = None;
        match r.cause {
            ResetCause::Forged(_) => {
                self.resets.attributed += 1;
                return;
            }
            ResetCause::Poisoned => {
                self.resets.poisoned += 1;
                self.row(&r.tuple, class, Forgery::Overshoot).counts.killed_later += 1;
                return;
            }
            ResetCause::Gone => {
                self.resets.unattributed += 1;
                self.resets.gone += 1;
            }
            ResetCause::Other { expected, closed } => {
                self.resets.unattributed += 1;
                expected_seq = Some(expected.0);
                if r.seq == expected {
                    // tcp_send_active_reset() sets ACK, tcp_v4_send_reset() does not.
                    let own = r.flags.has(Flags::ACK);
                    self.resets.by_application += u64::from(own);
                    self.resets.unexplained += u64::from(!own && !closed);
                    self.resets.closing += u64::from(!own && closed);
                }
            }
            ResetCause::UnknownConnection => self.resets.unknown_connection += 1,
        }
        if self.resets.samples.len() < Resets::SAMPLES {
            self.resets.samples.push(ResetSample {
                peer: r.tuple.remote.to_string(),
                seq: r.seq.0,
                ack: r.ack.0,
                flags: r.flags.to_string(),
                expected_seq,
            });
        }
    }

    /// What was lost or could not be done, and keeps a run from being called protected.
    #[must_use]
    pub fn lost(&self, sniffer: &Sniffer, evicted: u64) -> Vec<String> {
        let mut lost = Vec::new();
        if let Some(e) = &sniffer.failed {
            lost.push(format!("the raw sockets failed: {e}"));
        }
        if sniffer.dropped > 0 {
            lost.push(format!(
                "the kernel dropped {} segments before the raw sockets (receive buffer: {} octets): raise --receive-buffer, \
                 and net.core.rmem_max or add CAP_NET_ADMIN where the kernel grants less",
                sniffer.dropped, sniffer.receive_buffer
            ));
        }
        if sniffer.control_truncated > 0 {
            lost.push(format!(
                "{} segments came without their time or destination",
                sniffer.control_truncated
            ));
        }
        if evicted > 0 {
            lost.push(format!("{evicted} connections forgotten unjudged: raise --max-flows"));
        }
        if self.send_errors > 0 {
            lost.push(format!("{} segments could not be sent", self.send_errors));
        }
        lost
    }

    /// What harms connections here whatever the outcomes say, as far as segments show it.
    #[must_use]
    pub fn contrary(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some((n, ip)) = self.own {
            found.push(format!(
                "{n} connections have {ip} at their other end, an address of this pod itself: a proxy \
                 (a mesh's sidecar) was measured, not the path to it"
            ));
        }
        if self.resets.unexplained > 0 {
            found.push(format!(
                "{} resets ended connections with the number expected and without an application's ACK \
                 bit, and no forged segment explains them",
                self.resets.unexplained
            ));
        }
        found
    }

    /// Says so where the application saw more connections reset than are explained.
    #[must_use]
    pub fn more_resets(&self, seen_by_application: u64) -> Option<String> {
        let ended: u64 =
            self.outcomes.values().map(|o| o.counts.killed + o.counts.killed_later).sum();
        let r = &self.resets;
        let explained = ended + r.by_application + r.gone + r.unexplained + r.unknown_connection;
        (seen_by_application > explained).then(|| {
            format!(
                "the application saw {seen_by_application} connections reset, of which only \
                 {explained} are explained"
            )
        })
    }

    /// Every row, in order.
    #[must_use]
    pub fn outcomes(&self) -> Vec<OutcomeCount> {
        self.outcomes.values().cloned().collect()
    }
}
