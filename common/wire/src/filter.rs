//! The classic BPF program that keeps everything but our ports out of the raw
//! sockets' buffers.

use crate::segment::Family;

/// One instruction: operation, jump if true, jump if false, operand (`struct sock_filter`,
/// linux/filter.h).
pub type Op = (u16, u8, u8, u32);

const LDH_ABS: u16 = 0x28;
const LDH_IND: u16 = 0x48;
const LDX_MSH: u16 = 0xb1;
const JEQ: u16 = 0x15;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;
const WHOLE: u32 = 0x0004_0000;
/// More ports than this do not fit the program's eight-bit jumps.
pub const MAX_PORTS: usize = 64;

/// Which port of a segment is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// The program for a raw TCP socket that shall see only segments with one of `ports` on this
/// side. An IPv4 raw socket filters from the IP header on, an IPv6 one from the TCP
/// header on. At most [`MAX_PORTS`] ports are taken.
#[must_use]
pub fn program(family: Family, side: Side, ports: &[u16]) -> Vec<Op> {
    // RFC 9293, section 3.1: the source port comes first.
    let at = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    let ports = &ports[..ports.len().min(MAX_PORTS)];
    let mut ops = match family {
        Family::Ipv4 => vec![
            // A fragment other than the first has no ports.
            (LDH_ABS, 0, 0, 6),
            (JSET, (ports.len() + 2) as u8, 0, 0x1fff),
            (LDX_MSH, 0, 0, 0),
            (LDH_IND, 0, 0, at),
        ],
        Family::Ipv6 => vec![(LDH_ABS, 0, 0, at)],
    };
    for (i, port) in ports.iter().enumerate() {
        let to_accept = ports.len() - i;
        ops.push((JEQ, to_accept as u8, 0, u32::from(*port)));
    }
    ops.extend([(RET, 0, 0, 0), (RET, 0, 0, WHOLE)]);
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A classic BPF machine with the six operations in use.
    fn run(ops: &[Op], packet: &[u8]) -> u32 {
        let half =
            |at: usize| packet.get(at..at + 2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1]));
        let (mut a, mut x, mut pc) = (0u32, 0u32, 0usize);
        loop {
            let (code, jt, jf, k) = ops[pc];
            pc += 1;
            // A load beyond the packet ends the program with 0.
            match code {
                LDH_ABS => match half(k as usize) {
                    Some(v) => a = v,
                    None => return 0,
                },
                LDH_IND => match half((k + x) as usize) {
                    Some(v) => a = v,
                    None => return 0,
                },
                LDX_MSH => match packet.get(k as usize) {
                    Some(v) => x = u32::from(v & 0xf) * 4,
                    None => return 0,
                },
                JEQ => pc += usize::from(if a == k { jt } else { jf }),
                JSET => pc += usize::from(if a & k != 0 { jt } else { jf }),
                RET => return k,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn ipv4(options: usize, fragment: u16, port: u16) -> Vec<u8> {
        let mut p = vec![0; 20 + options + 20];
        p[0] = 0x40 | ((20 + options) / 4) as u8;
        p[6..8].copy_from_slice(&fragment.to_be_bytes());
        p[22 + options..24 + options].copy_from_slice(&port.to_be_bytes());
        p
    }

    /// Our ports pass, others do not, whatever the IP header's length.
    #[test]
    fn passes_our_ports_alone() {
        let ops = program(Family::Ipv4, Side::Destination, &[9000, 9001]);
        for options in [0, 4, 40] {
            for port in [9000, 9001] {
                assert_eq!(run(&ops, &ipv4(options, 0x4000, port)), WHOLE);
            }
            assert_eq!(run(&ops, &ipv4(options, 0x4000, 9002)), 0);
        }
        let ops = program(Family::Ipv6, Side::Destination, &[9000]);
        assert_eq!(run(&ops, &[0, 0, 0x23, 0x28]), WHOLE);
        assert_eq!(run(&ops, &[0x23, 0x28, 0, 0]), 0);
    }

    /// Later fragments and packets too short for ports are refused.
    #[test]
    fn refuses_fragments_and_stubs() {
        let ops = program(Family::Ipv4, Side::Destination, &[9000]);
        assert_eq!(run(&ops, &ipv4(0, 1, 9000)), 0);
        assert_eq!(run(&ops, &ipv4(0, 0, 9000)[..22]), 0);
        assert_eq!(run(&program(Family::Ipv6, Side::Destination, &[9000]), &[1, 2, 3]), 0);
    }

    /// The most ports still fit the jumps.
    #[test]
    fn many_ports_fit() {
        let ports: Vec<u16> = (1..=MAX_PORTS as u16).collect();
        let ops = program(Family::Ipv4, Side::Destination, &ports);
        for port in &ports {
            assert_eq!(run(&ops, &ipv4(0, 0, *port)), WHOLE);
        }
        assert_eq!(run(&ops, &ipv4(0, 0, 0)), 0);
        assert_eq!(run(&ops, &ipv4(0, 7, 1)), 0);
    }
}
