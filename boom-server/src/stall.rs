//! Connections that hang, as the kernel's own list of sockets tells.

use std::collections::HashSet;

/// Retransmissions in a row after which a connection counts as hung: with Linux's first
/// timeout of 200 ms the third comes after 1.4 s (RFC 6298, section 5.5).
const IN_VAIN: u64 = 3;
/// A retransmission timeout, in hundredths of a second, that has grown threefold: where
/// acknowledgments come only when data is sent again, it grows without end.
const GROWN: u64 = 60;
/// More are not told apart.
const MOST: usize = 100_000;

/// The connections that were seen hung so far.
#[derive(Debug, Default)]
pub(crate) struct Stalled {
    hung: HashSet<String>,
    /// Those that looked like it when last looked at.
    before: HashSet<String>,
    /// The retransmission timers that had run out by then.
    timeouts: Option<u64>,
}

impl Stalled {
    /// None so far, after so many retransmission timers that ran out.
    pub(crate) fn since(timeouts: Option<u64>) -> Self {
        Self { timeouts, ..Self::default() }
    }

    /// Whether the list of sockets, which the kernel walks for long, can say something new: a
    /// connection hangs once its retransmission timer has run out (tcp_retransmit_timer()).
    pub(crate) fn worth_a_look(&mut self, timeouts: Option<u64>) -> bool {
        let before = std::mem::replace(&mut self.timeouts, timeouts);
        timeouts.is_none() || before != timeouts || !self.before.is_empty()
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.hung.len() as u64
    }

    /// Takes note of those that wait now, each with whether it hangs by itself: see [`look`].
    pub(crate) fn note(&mut self, waiting: Vec<(String, bool)>) {
        let mut slow = HashSet::new();
        for (id, in_vain) in waiting {
            if (in_vain || self.before.contains(&id)) && self.hung.len() < MOST {
                self.hung.insert(id.clone());
            }
            slow.insert(id);
        }
        self.before = slow;
    }
}

/// The connections of this network namespace on `ports` that wait: true for an acknowledgment of
/// what was sent again and again, false longer and longer. What the kernel does not tell is left out.
pub(crate) fn look(ports: &[u16]) -> Vec<(String, bool)> {
    let files = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let text = files.map(|f| std::fs::read_to_string(f).unwrap_or_default());
    text.iter().flat_map(|t| t.lines().skip(1).filter_map(|l| waiting(l, ports))).collect()
}

/// Both addresses of a connection whose data goes unacknowledged (get_tcp4_sock()), and whether in vain.
fn waiting(line: &str, ports: &[u16]) -> Option<(String, bool)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    let unacknowledged = words.next()?.split(':').next()?;
    let timer = words.next()?.split(':').next()?;
    let again = u64::from_str_radix(words.next()?, 16).ok()?;
    let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    // uid, timeout, inode, references, address, then the retransmission timeout
    let timeout: u64 = words.nth(5)?.parse().ok()?;
    // ESTABLISHED and CLOSE_WAIT: later the data may be a FIN that nobody waits for.
    let open = matches!(state, "01" | "08") && timer == "01";
    if !open || unacknowledged.bytes().all(|b| b == b'0') || !ports.contains(&port) {
        return None;
    }
    let in_vain = again >= IN_VAIN;
    (in_vain || timeout >= GROWN).then(|| (format!("{local} {remote}"), in_vain))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list is read where a timer has run out since the last look, where something waited
    /// then, and where the kernel does not count.
    #[test]
    fn is_looked_at_where_it_can_say_something() {
        let mut stalled = Stalled::since(Some(7));
        assert!(!stalled.worth_a_look(Some(7)));
        assert!(stalled.worth_a_look(Some(8)));
        assert!(!stalled.worth_a_look(Some(8)));
        stalled.note(vec![("a".to_owned(), false)]);
        assert!(stalled.worth_a_look(Some(8)));
        stalled.note(Vec::new());
        assert!(!stalled.worth_a_look(Some(8)));
        assert!(stalled.worth_a_look(None));
    }

    /// Only what waits for an acknowledgment, and long, hangs.
    #[test]
    fn only_what_waits_in_vain_hangs() {
        for (line, hangs) in [
            ("01 00000010:00000000 01:00000032 00000003", Some(true)),
            ("08 00000010:00000000 01:00000032 00000004", Some(true)),
            ("01 00000010:00000000 01:00000032 00000002", None),
            ("01 00000000:00000000 01:00000032 00000003", None),
            ("01 00000010:00000000 02:00000032 00000003", None),
            ("04 00000010:00000000 01:00000032 00000003", None),
        ] {
            let of = |port: &str, rto: u32| {
                let at = format!("0: 1400C612:{port} 0A00C612:9C40");
                format!("   {at} {line}     0        0 4321 2 0000000000000000 {rto} 4 30 10 -1")
            };
            assert_eq!(waiting(&of("2328", 20), &[9000]).map(|w| w.1), hangs, "{line}");
            assert_eq!(waiting(&of("2329", 20), &[9000]), None);
        }
        let long = "0: 1400C612:2328 0A00C612:9C40 01 00000010:00000000 01:00000032 00000001 0 0 4321 2 0 75 4";
        assert_eq!(waiting(long, &[9000]).map(|w| w.1), Some(false));
        assert_eq!(waiting("0: 1400C612:2328 0A00C612", &[9000]), None);
    }
}
