//! tcpdump in a host, with its own count of what it lost read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::exec::{Call, Process, Ready};
use crate::os::os;
use crate::testbed::{Testbed, TestbedError};

/// A running capture.
pub struct Tap {
    process: Process,
    file: PathBuf,
}

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
        Ok(Self { process, file: file.to_owned() })
    }

    /// Waits until it captures.
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), TestbedError> {
        Ok(self.process.wait_ready(within)?)
    }

    /// Asks it to end; [`Tap::stop`] waits for that.
    pub fn end(&self) {
        self.process.signal(Signal::SIGINT);
    }

    /// Ends it. Gives the capture, and what it lost, in words; None when nothing was.
    pub fn stop(self, within: Duration) -> Result<(Vec<u8>, Option<String>), TestbedError> {
        self.end();
        let log = self.process.log().to_owned();
        self.process.wait(within)?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let pcap =
            std::fs::read(&self.file).map_err(os(format!("read {}", self.file.display())))?;
        Ok((pcap, lost(&said)))
    }
}

/// What tcpdump's closing words say was lost; None when nothing was.
fn lost(said: &str) -> Option<String> {
    let number =
        |what: &str| said.lines().find_map(|l| l.strip_suffix(what)?.trim().parse::<u64>().ok());
    let plural =
        |what: &str| number(&format!(" packets {what}")).or(number(&format!(" packet {what}")));
    match (plural("captured"), plural("received by filter"), plural("dropped by kernel")) {
        (Some(captured), Some(received), Some(0)) if captured == received => None,
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
        assert_eq!(lost(whole), None);
        assert!(lost(&whole.replace("0 packets dropped", "3 packets dropped")).is_some());
        assert!(lost(&whole.replace("12 packets captured", "11 packets captured")).is_some());
        assert!(lost("tcpdump: killed").is_some());
    }
}
