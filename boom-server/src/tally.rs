//! Counts of everything that a run's result says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use canary_record::hist::Latency;
use canary_record::names::{ClientClass, Forgery};
use canary_record::outcome::Counts;
use canary_record::result::boom::{OutcomeCount, ResetSample, Resets};
use canary_wire::segment::{Family, FourTuple};

use canary_forge::flow::{Judgement, Reset, ResetCause};

/// Unattributed resets that are kept with their numbers.
const SAMPLES: usize = 20;
/// A handshake that seems to have waited longer was measured across a clock step.
const CLOCK_STEP: Duration = Duration::from_secs(10);

/// The counts of one run.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    outcomes: BTreeMap<(Family, ClientClass, Forgery), OutcomeCount>,
    /// RSTs.
    pub resets: Resets,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Segments forged.
    pub forged: u64,
    /// Connections judged, or ended before anything was forged.
    pub settled: u64,
    /// Connections to addresses that are not judged for, and one of those.
    pub elsewhere: Option<(u64, IpAddr)>,
    /// Forged segments that could not be sent.
    pub send_errors: u64,
    /// From the kernel's receipt of the handshake to the forged segment's departure.
    pub latency: Latency,
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

    /// A segment was forged.
    pub fn forged(
        &mut self,
        tuple: &FourTuple,
        class: ClientClass,
        forgery: Forgery,
        latency: Option<Duration>,
    ) {
        self.forged += 1;
        self.row(tuple, class, forgery).forged += 1;
        // The wall clock may have been stepped in between.
        let latency = latency.filter(|l| *l < CLOCK_STEP);
        if let Some(latency) = latency {
            self.latency.record(latency);
            metrics::histogram!(crate::metrics::HANDSHAKE_TO_FORGE).record(latency);
        }
    }

    /// A forged segment was judged.
    pub fn judged(&mut self, j: &Judgement, class: ClientClass) {
        match j.replaces {
            None => self.settled += 1,
            Some(fate) => self.row(&j.tuple, class, j.forgery).counts.uncount(fate),
        }
        self.row(&j.tuple, class, j.forgery).counts.count(j.fate);
    }

    /// A connection to an address that is not judged for.
    pub fn elsewhere(&mut self, tuple: &FourTuple) {
        self.settled += 1;
        self.elsewhere.get_or_insert((0, tuple.local.ip())).0 += 1;
    }

    /// An RST came.
    pub fn reset(&mut self, r: &Reset, class: ClientClass) {
        let expected = match r.cause {
            ResetCause::Forged(_) => {
                self.resets.attributed += 1;
                return;
            }
            ResetCause::Poisoned => {
                self.resets.poisoned += 1;
                self.row(&r.tuple, class, Forgery::Overshoot).counts.killed_later += 1;
                return;
            }
            ResetCause::Other { expected } => {
                self.resets.unattributed += 1;
                Some(expected.0)
            }
            ResetCause::UnknownConnection => {
                self.resets.unknown_connection += 1;
                None
            }
        };
        if self.resets.samples.len() < SAMPLES {
            self.resets.samples.push(ResetSample {
                peer: r.tuple.remote.to_string(),
                seq: r.seq.0,
                ack: r.ack.0,
                flags: r.flags.to_string(),
                expected_seq: expected,
            });
        }
    }

    /// Every row, in order.
    #[must_use]
    pub fn outcomes(&self) -> Vec<OutcomeCount> {
        self.outcomes.values().cloned().collect()
    }
}
