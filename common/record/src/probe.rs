//! The protocol between `load-client probe` and boom-server's listener.
//!
//! A request is one ASCII line. Bodies are generated from a seed on both sides,
//! so that a client can check every octet without having sent it.
//!
//! | request | answer |
//! |---|---|
//! | `answer DELAY_MS LENGTH SEED` | after the delay, LENGTH octets of the body of SEED |
//! | `take LENGTH SEED`, then LENGTH octets | `ok SHA256` of what arrived, in hexadecimal |
//! | anything else | the same octets back |
//!
//! A request may end with the address that the client called.

use std::fmt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The longest request line, its newline included.
pub const MAX_LINE: usize = 128;
/// The longest body.
pub const MAX_BODY: u64 = 1 << 40;
/// The longest delay of an answer.
pub const MAX_DELAY: Duration = Duration::from_secs(3600);

/// A request, and which address the client called, where it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// What is asked for.
    pub request: Request,
    /// What the client connected to: where the server sees another address, something
    /// translates between them.
    pub called: Option<SocketAddr>,
}

/// A request of the probe protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The server sends a body after a delay.
    Answer {
        /// How long the server waits, in whole milliseconds.
        delay: Duration,
        /// Octets.
        length: u64,
        /// What generates them.
        seed: u64,
    },
    /// The client sends a body, the server answers with its hash.
    Take {
        /// Octets.
        length: u64,
        /// What generates them.
        seed: u64,
    },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.request {
            Request::Answer { delay, length, seed } => {
                write!(f, "answer {} {length} {seed}", delay.as_millis())?;
            }
            Request::Take { length, seed } => write!(f, "take {length} {seed}")?,
        }
        self.called.map_or(Ok(()), |called| write!(f, " {called}"))?;
        f.write_str("\n")
    }
}

impl Line {
    /// Reads a line; none that is no request.
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        let mut words = line.trim_end_matches(['\r', '\n']).split(' ');
        let verb = words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let (request, delay, length) = match verb {
            "answer" => {
                let delay = Duration::from_millis(number()?);
                let (length, seed) = (number()?, number()?);
                (Request::Answer { delay, length, seed }, delay, length)
            }
            "take" => {
                let (length, seed) = (number()?, number()?);
                (Request::Take { length, seed }, Duration::ZERO, length)
            }
            _ => return None,
        };
        let called = words.next().map(str::parse).transpose().ok()?;
        let legal = words.next().is_none() && length <= MAX_BODY && delay <= MAX_DELAY;
        legal.then_some(Self { request, called })
    }
}

/// The octets of a seed, as a stream: SplitMix64 (Steele, Lea, Flood 2014),
/// whose values do not change with a library's version.
#[derive(Clone, Debug)]
pub struct Body {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Body {
    /// The stream of `seed` from its beginning.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed, word: [0; 8], used: 8 }
    }

    /// Fills `buf` with the next octets.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for b in buf {
            if self.used == 8 {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                self.word = (z ^ (z >> 31)).to_le_bytes();
                self.used = 0;
            }
            *b = self.word[self.used];
            self.used += 1;
        }
    }
}

/// A running hash of a body.
#[derive(Clone, Debug, Default)]
pub struct BodyHash(Sha256);

impl BodyHash {
    /// Adds octets.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash in hexadecimal.
    #[must_use]
    pub fn hex(self) -> String {
        self.0.finalize().iter().fold(String::with_capacity(64), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A body is the same however it is cut into pieces, and its hash is stable.
    #[test]
    fn bodies_do_not_depend_on_the_cut() {
        let mut whole = [0; 100];
        Body::new(7).fill(&mut whole);
        let (mut pieces, mut body) = ([0; 100], Body::new(7));
        for chunk in pieces.chunks_mut(3) {
            body.fill(chunk);
        }
        assert_eq!(whole, pieces);
        // The first value of SplitMix64 for seed 1234567, from the authors' reference code.
        let mut first = [0; 8];
        Body::new(1_234_567).fill(&mut first);
        assert_eq!(u64::from_le_bytes(first), 6_457_827_717_110_365_317);
    }

    /// What is not a request is refused, whatever it resembles.
    #[test]
    fn refuses_what_is_no_request() {
        for bad in [
            "",
            "answer",
            "answer 1 2",
            "take 1 2 3",
            "take 1 2 198.18.0.1:80 3",
            "take -1 2",
            "answer 99999999999 1 1",
            "GET / HTTP/1.1",
        ] {
            assert_eq!(Line::read(bad), None, "{bad}");
        }
    }

    proptest! {
        /// Every request is read back as it was written, and fits a line.
        #[test]
        fn requests_round_trip(
            ms in 0u64..3_600_000, length in 0..=MAX_BODY, seed: u64, ip: u128, port: u16, told: bool,
        ) {
            let called = told.then(|| SocketAddr::new(std::net::Ipv6Addr::from(ip).into(), port));
            for request in [
                Request::Answer { delay: Duration::from_millis(ms), length, seed },
                Request::Take { length, seed },
            ] {
                let line = Line { request, called };
                prop_assert!(line.to_string().len() <= MAX_LINE);
                prop_assert_eq!(Line::read(&line.to_string()), Some(line));
            }
        }
    }
}
