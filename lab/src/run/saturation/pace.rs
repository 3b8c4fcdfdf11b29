//! What be_liberal costs or saves: one transfer and new connections, with be_liberal 0 and 1 by
//! turns, so that whatever else the machine does meets both alike. All of it is on one processor:
//! where the scheduler puts the two ends changes a transfer by more than be_liberal could.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use canary_testbed::evidence;
use canary_testbed::os::os;
use canary_testbed::testbed::TestbedError;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::Pid;

use super::super::setting::io_error;
use super::stage::Stage;
use crate::observed::saturation::Pace;

const OCTETS: usize = 128 << 20;
const CHUNK: usize = 1 << 20;
const CONNECTS: u32 = 1000;
/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// The pairs; each begins with the value that the one before ended with.
pub(super) fn run(stage: &Stage<'_>, pairs: u32) -> Result<Vec<[Pace; 2]>, TestbedError> {
    stage.free_ports_at_once()?;
    let before = sched_getaffinity(SELF).and_then(|before| {
        let mut here = CpuSet::new();
        here.set(sched_getcpu()?)?;
        sched_setaffinity(SELF, &here)?;
        Ok(before)
    });
    let before = before.map_err(os("stay on one processor"))?;
    // Threads that it starts stay with it.
    let rounds = rounds(stage, pairs);
    sched_setaffinity(SELF, &before).map_err(os("go back to every processor"))?;
    rounds
}

fn rounds(stage: &Stage<'_>, pairs: u32) -> Result<Vec<[Pace; 2]>, TestbedError> {
    let mut rounds = Vec::new();
    for pair in 0..pairs {
        let mut both = [Pace::default(); 2];
        let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        for liberal in order {
            stage.set(evidence::BE_LIBERAL, ["0", "1"][liberal])?;
            both[liberal] = round(stage)?;
        }
        rounds.push(both);
    }
    Ok(rounds)
}

fn round(stage: &Stage<'_>) -> Result<Pace, TestbedError> {
    let failed = |what| io_error(what, &stage.dir);
    let mut octets = 0.0;
    let mut cpu = 0.0;
    for (mut client, mut server) in stage.connect(1)? {
        let (begun, used) = (Instant::now(), used());
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || {
                let chunk = vec![0; CHUNK];
                (0..OCTETS / CHUNK).try_for_each(|_| server.write_all(&chunk))
            });
            let (mut chunk, mut left) = (vec![0; CHUNK], OCTETS);
            while left > 0 {
                match client.read(&mut chunk)? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    n => left -= n,
                }
            }
            sending.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
        })
        .map_err(failed("transfer in"))?;
        octets = OCTETS as f64 / begun.elapsed().as_secs_f64();
        cpu = self::used().saturating_sub(used).as_nanos() as f64 / OCTETS as f64;
    }
    let (begun, used) = (Instant::now(), used());
    let connected = stage.connect(CONNECTS)?.len() as f64;
    let connects = connected / begun.elapsed().as_secs_f64();
    let connect_cpu = self::used().saturating_sub(used).as_nanos() as f64 / connected;
    // Of the next round, whose table is as empty as this one's was.
    stage.place.within("node1", evidence::forget_all)?;
    Ok(Pace { octets, cpu, connects, connect_cpu })
}

/// Processor time of this process, in which the packets of its own calls are forwarded too.
fn used() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let micros = (usage.user_time() + usage.system_time()).num_microseconds();
        Duration::from_micros(micros.unsigned_abs())
    })
}
