//! tcpdump in a host, with its own count of what it lost read.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::exec::{Call, Process, Ready};
use crate::os::os;
use crate::testbed::{Testbed, TestbedError};

/// A running capture.
pub struct Tap {
    process: Process,
    file: PathBuf,
    /// Whether it was asked to end, and had by then read all that came.
    ended: Option<bool>,
}

/// How many times in a row its numbers must be the same.
const STEADY: usize = 20;

impl Tap {
    /// Starts capturing what `filter` says in a host, at `link` (`any` for all), into `file`.
    /// It is ready once [`Tap::wait_ready`] returns.
    pub fn start(
        testbed: &Testbed,
        host: &str,
        link: &str,
        filter: &str,
        file: &Path,
    ) -> Result<Self, TestbedError> {
        let name = file.display().to_string();
        let options =
            ["-Z", "root", "-n", "-i", link, "--immediate-mode", "-s", "128", "-B", "8192"];
        let options = [&options[..], &["-w", &name, filter]].concat();
        let call = Call::tool("tcpdump", &options)?;
        let log = file.with_file_name(format!("tcpdump-{host}.log"));
        let process = testbed.start(host, call, &log, Ready::Text("listening on"))?;
        Ok(Self { process, file: file.to_owned(), ended: None })
    }

    /// Waits until it captures.
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), TestbedError> {
        Ok(self.process.wait_ready(within)?)
    }

    /// Asks it to end, once it has read all that has come; [`Tap::stop`] waits for that. What comes
    /// after is not of the capture, whether it counts it or not.
    pub fn end(&mut self, within: Duration) -> Result<(), TestbedError> {
        let (end, mut caught_up) = (Instant::now() + within, false);
        while !caught_up && Instant::now() < end {
            self.process.signal(Signal::SIGUSR1);
            if self.process.ends_within(Duration::from_millis(5))? {
                break;
            }
            caught_up = has_read_all(&read(self.process.log()));
        }
        self.process.signal(Signal::SIGINT);
        self.ended = Some(caught_up);
        Ok(())
    }

    /// Ends it. Gives the capture, and what it lost, in words; None when nothing was.
    pub fn stop(mut self, within: Duration) -> Result<(Vec<u8>, Option<String>), TestbedError> {
        if self.ended.is_none() {
            self.end(within)?;
        }
        let log = self.process.log().to_owned();
        self.process.wait(within)?;
        let said = read(&log);
        let pcap =
            std::fs::read(&self.file).map_err(os(format!("read {}", self.file.display())))?;
        Ok((pcap, lost(&said, self.ended == Some(true))))
    }
}

fn read(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

/// Whether it has captured what it received, or nothing more comes: it looks for packets between any two of
/// its answers. What came before its filter was in place, it received and never captures (libpcap's
/// `pcap_setfilter_linux()`).
fn has_read_all(said: &str) -> bool {
    let mut answers = said.lines().rev().filter_map(interim);
    answers.next().is_some_and(|last @ [captured, received]| {
        let same = answers.take(STEADY - 1).filter(|before| *before == last);
        captured == received || same.count() == STEADY - 1
    })
}

/// What tcpdump has captured and received, of a line that it prints at SIGUSR1.
fn interim(line: &str) -> Option<[u64; 2]> {
    let mut parts = line.strip_prefix("tcpdump: ")?.split(", ");
    let mut number = |what: &str| {
        let (number, said) = parts.next()?.split_once(' ')?;
        said.ends_with(what).then(|| number.parse().ok())?
    };
    Some([number("captured")?, number("received by filter")?])
}

/// What tcpdump's closing words say was lost; None when nothing was. One that had caught up when it was
/// asked to end has all that had come by then.
fn lost(said: &str, caught_up: bool) -> Option<String> {
    let number =
        |what: &str| said.lines().find_map(|l| l.strip_suffix(what)?.trim().parse::<u64>().ok());
    let plural =
        |what: &str| number(&format!(" packets {what}")).or(number(&format!(" packet {what}")));
    match (plural("captured"), plural("received by filter"), plural("dropped by kernel")) {
        (Some(captured), Some(received), Some(0)) if captured == received || caught_up => None,
        (Some(captured), Some(received), Some(dropped)) => {
            Some(format!("{captured} of {received} captured, {dropped} dropped by the kernel"))
        }
        _ => Some("tcpdump did not say what it captured".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tcpdump's own count decides whether a capture may be evidence.
    #[test]
    fn a_capture_with_losses_is_no_evidence() {
        let whole = "tcpdump: listening on eth0\n12 packets captured\n12 packets received by filter\n0 packets dropped by kernel\n";
        for caught_up in [false, true] {
            assert_eq!(lost(whole, caught_up), None);
            let dropped = whole.replace("0 packets dropped", "3 packets dropped");
            assert!(lost(&dropped, caught_up).is_some());
            assert!(lost("tcpdump: killed", caught_up).is_some());
            // What came after it was asked to end is no loss.
            let unread = whole.replace("12 packets captured", "11 packets captured");
            assert_eq!(lost(&unread, caught_up).is_none(), caught_up);
        }
    }

    /// It has read all where its numbers are equal, or do not change from answer to answer.
    #[test]
    fn what_is_left_unread_is_told_from_what_is_not_of_the_capture() {
        let answer = |n: u32| {
            format!(
                "tcpdump: {n} packets captured, 65 packets received by filter, 0 packets dropped by kernel\n"
            )
        };
        let listening = "tcpdump: listening on eth0\n";
        assert!(!has_read_all(listening));
        assert!(has_read_all(&(answer(61) + &answer(65))));
        let steady = answer(61).repeat(STEADY);
        assert!(has_read_all(&(listening.to_owned() + &answer(3) + &steady)));
        assert!(!has_read_all(&answer(61).repeat(STEADY - 1)));
        assert!(!has_read_all(&(steady + &answer(62))));
    }

    /// It has caught up where it has read what it received, in its own words.
    #[test]
    fn what_it_has_read_is_told() {
        let line = "tcpdump: 1 packet captured, 74 packets received by filter, 0 packets dropped by kernel";
        assert_eq!(interim(line), Some([1, 74]));
        for other in ["12 packets captured", "tcpdump: listening on eth0, link-type EN10MB", ""] {
            assert_eq!(interim(other), None, "{other}");
        }
    }
}
