//! Drives the state machine with arbitrary segments and checks what must hold
//! whatever comes. Shared by the property test and the fuzz target.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use canary_forge::flow::{Action, Arrival, End, Flows, ResetCause, Settings};
use canary_forge::forgery::Spec;
use canary_record::names::Forgery;
use canary_record::outcome::Fate;
use canary_wire::segment::{Flags, FourTuple, Segment};
use canary_wire::seq::Seq;

const CAPACITY: usize = 4;

#[derive(Default)]
struct Seen {
    /// The segment forged last on each connection, and all that was sent there since.
    specs: HashMap<FourTuple, Vec<Spec>>,
    /// Handshakes after which nothing has been forged yet.
    waiting: u64,
    forged: u64,
    judged: u64,
    probed: u64,
    dropped: u64,
    /// Every RST that came in on a connection since something was forged there.
    rsts: HashMap<FourTuple, Vec<(Seq, Seq, Flags)>>,
    /// Where the peer closed since the segment was forged: a host that is gone does not.
    fins: HashSet<FourTuple>,
}

/// Ten octets are one step: who, time, flags, where seq and ack lie, how far off,
/// and how much data.
pub(crate) fn drive(bytes: &[u8]) -> Result<(), String> {
    let mut flows = Flows::new(Settings {
        forgeries: Forgery::ALL.to_vec(),
        outcome_timeout: Duration::from_millis(100),
        forge_delay: Duration::from_millis(u64::from(bytes.first().copied().unwrap_or(0) % 3) * 20),
        capacity: CAPACITY,
        end: End::Server {
            listen: vec![SocketAddr::from(([198, 18, 0, 1], 9000))],
            local: Vec::new(),
        },
    });
    let (mut now, mut seen, mut out) = (Duration::ZERO, Seen::default(), Vec::new());
    let steps = bytes.chunks_exact(10).map(|c| <[u8; 10]>::try_from(c).unwrap_or_default());
    for [who, time, flags, at, off0, off1, ack_off, len, window, option] in steps {
        now += Duration::from_millis(u64::from(time));
        flows.tick(now, &mut out);
        check(&mut seen, &mut out)?;

        let src = SocketAddr::from(([198, 18, 0, 2], 1000 + u16::from(who % 6)));
        let dst = SocketAddr::from(([198, 18, 0, 1], 9000));
        let tuple = FourTuple::new(dst, src);
        let isn = Seq(0xffff_ffe0 + u32::from(who >> 6));
        let spec = seen.specs.get(&tuple).and_then(|all| all.first().or(all.last())).copied();
        let off = u32::from(u16::from_be_bytes([off0, off1]));
        let seq = match at & 7 {
            0 => isn,
            1 | 2 => isn.add(1),
            3 => spec.map_or(isn, |s| s.ack),
            4 => Seq(0),
            5 => isn.add(1).add(off),
            6 => isn.sub(off),
            _ => Seq(off << 16),
        };
        let ack = match (at >> 3) & 3 {
            0 => Seq(0x8000_0000),
            1 => Seq(0x8000_0000).add(u32::from(ack_off)),
            2 => spec.map_or(Seq(0), |s| s.seq.add(s.seg_len())),
            _ => Seq(u32::from(ack_off) << 24),
        };
        let mut options = vec![1, 1, 5, 10];
        if let Some(s) = spec.filter(|_| option & 1 != 0) {
            options.extend(s.seq.0.to_be_bytes());
            options.extend(s.seq.add(s.payload.len() as u32).0.to_be_bytes());
        } else {
            options = vec![3, 3, option, 0];
        }
        let segment = Segment {
            src,
            dst,
            seq,
            ack,
            flags: Flags(flags),
            window: u16::from(window) << 8,
            options: &options,
            payload_len: u32::from(len) * 50,
        };
        if segment.flags.has(Flags::RST) {
            seen.rsts.entry(tuple).or_default().push((seq, ack, segment.flags));
        } else if segment.flags.has(Flags::FIN) {
            seen.fins.insert(tuple);
        }
        let arrival = Arrival { at: now, ttl: Some(64 + (option & 1)), class: Some(option & 4) };
        flows.segment(now, arrival, &segment, &mut out);
        check(&mut seen, &mut out)?;
        if flows.remembered() > CAPACITY {
            return Err(format!("{} connections in a table of {CAPACITY}", flows.remembered()));
        }
    }
    let pending = seen.waiting + seen.forged - seen.judged;
    if flows.finish(now, &mut out) != pending {
        return Err("the end did not judge what was left".to_owned());
    }
    check(&mut seen, &mut out)?;
    if seen.forged != seen.judged {
        return Err(format!("{} forged, {} judged", seen.forged, seen.judged));
    }
    // One that still waited is forged on, probed, judged and forgotten in turn.
    for i in 1..=40 {
        flows.tick(now + Duration::from_secs(200 * i), &mut out);
    }
    if flows.remembered() > 0 {
        return Err(format!("{} connections never expire", flows.remembered()));
    }
    Ok(())
}

fn check(seen: &mut Seen, out: &mut Vec<Action>) -> Result<(), String> {
    for action in out.drain(..) {
        match action {
            Action::Forge { tuple, spec, .. } => {
                seen.waiting -= 1;
                seen.forged += 1;
                seen.specs.insert(tuple, vec![spec]);
                seen.rsts.remove(&tuple);
                seen.fins.remove(&tuple);
            }
            Action::Probe { tuple, spec, .. } => {
                seen.probed += 1;
                seen.specs.entry(tuple).or_default().push(spec);
            }
            Action::Judged(j) => {
                // A correction judges nothing new.
                seen.judged += u64::from(j.replaces.is_none());
                if j.replaces.is_some() && j.fate == Fate::Dropped {
                    return Err(format!("{j:?} corrects to silence"));
                }
                if j.fate == Fate::Dropped {
                    seen.dropped += 1;
                    if seen.dropped * 9 > seen.probed {
                        return Err("dropped without five rounds".to_owned());
                    }
                }
                if j.fate.reset() {
                    leak(seen, j.tuple)?;
                }
            }
            Action::Reset(r) => {
                if matches!(r.cause, ResetCause::Forged(_)) {
                    leak(seen, r.tuple)?;
                }
            }
            Action::Handshake(_) => seen.waiting += 1,
            Action::NotForged | Action::Elsewhere(_) => seen.waiting -= 1,
            Action::Opened { .. } | Action::Unfinished { .. } => {}
        }
    }
    Ok(())
}

/// A leak needs an RST, on this connection, with the very numbers of RFC 9293,
/// section 3.10.7.1, written out here once more.
fn leak(seen: &Seen, tuple: FourTuple) -> Result<(), String> {
    let (Some(rsts), Some(specs)) = (seen.rsts.get(&tuple), seen.specs.get(&tuple)) else {
        return Err("a leak without an RST or without a forged segment".to_owned());
    };
    let of = |spec: &Spec| {
        rsts.iter().any(|&(seq, ack, flags)| {
            if spec.flags.has(Flags::ACK) {
                !flags.has(Flags::ACK) && seq == spec.ack
            } else {
                flags.has(Flags::ACK) && seq == Seq(0) && ack == spec.seq
            }
        })
    };
    if specs.iter().any(of) && (specs.len() > 1 || seen.fins.contains(&tuple)) {
        Ok(())
    } else {
        Err(format!("none of {rsts:?} is provoked by {specs:?}, or nothing showed life"))
    }
}
