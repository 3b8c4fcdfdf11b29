//! The decoder of received segments: no bytes make it panic, and what it accepts
//! is in bounds.
#![no_main]

use std::net::{IpAddr, Ipv6Addr};

use canary_wire::checksum;
use canary_wire::segment::{MAX_OPTIONS, Segment};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (more, bytes) = input;
    let wire = bytes.len() + usize::from(more);
    let any = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let both = [Segment::parse_ipv4(bytes, wire), Segment::parse_tcp(any, any, bytes, wire)];
    for segment in both.into_iter().flatten() {
        assert!(segment.options.len() <= MAX_OPTIONS);
        let _ = segment.options();
        let _ = checksum::acceptable(&segment, bytes, wire);
    }
});
