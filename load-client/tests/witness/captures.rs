//! witness on captures of real packets, taken at each side.

use std::path::PathBuf;

use canary_record::names::Verdict;
use canary_record::result::witness::{Cause, Direction, WitnessResult};
use canary_testbed::exec::Call;
use canary_testbed::model::Path;
use canary_testbed::programs::{built, document};
use canary_testbed::tap::Tap;
use canary_testbed::test::{Bed, SOON};

use super::{ALL, both, forged, killed, only, uploads_forged};

/// Runs `job` while the TCP of these hosts is captured; gives the files.
fn captured<T>(bed: &Bed, taps: &[(&str, &str)], job: impl FnOnce() -> T) -> (T, Vec<PathBuf>) {
    let (mut running, mut files) = (Vec::new(), Vec::new());
    for (host, link) in taps {
        let file = bed.file(&format!("{host}-{link}.pcap"));
        let mut tap = Tap::start(bed.testbed(), host, link, "tcp", &file).unwrap();
        tap.wait_ready(SOON).unwrap();
        running.push(tap);
        files.push(file);
    }
    let done = job();
    for tap in running {
        tap.stop(SOON).unwrap();
    }
    (done, files)
}

fn read(bed: &Bed, files: &[PathBuf]) -> WitnessResult {
    let files: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
    let args = [&["witness", "--log=json", "--pcap"].map(str::to_owned)[..], &files].concat();
    let out = bed.run("client", &Call::new(&built("load-client").unwrap(), &args));
    assert_eq!(out.stderr, "");
    document(&out.stdout).unwrap()
}

/// A capture at the client, at its node, at the server, and all together name the connections that
/// boom-server ended; the server's side does not know the Service.
pub(crate) fn captures_of_every_side_give_the_same_answer() {
    let bed = Bed::path(Path::ClusterIp);
    let taps = [("client", "eth0"), ("node1", "any"), ("server", "eth0")];
    let (boom, files) = captured(&bed, &taps, || forged(&bed, &both(&bed), 30, ALL));
    assert_eq!(killed(&boom), 20);
    for sides in [&files[..1], &files[1..2], &files[2..], &files[..]] {
        let w = read(&bed, sides);
        assert_eq!(only(&w, Cause::AnsweredByClient, Direction::ServerToClient), 20, "{sides:?}");
        assert_eq!(w.verdict, Verdict::Vulnerable);
        let knows = sides[0] != files[2];
        assert_eq!(w.services.len(), if knows { 2 } else { 0 }, "{:?}", w.services);
    }
}

/// With a drop on the way no side's capture accuses anybody.
pub(crate) fn captures_of_a_protected_path_accuse_nobody() {
    let bed = Bed::path(Path::ClusterIp);
    bed.protect(&["prerouting-drop"]);
    let taps = [("client", "eth0"), ("node1", "any"), ("server", "eth0")];
    let (boom, files) = captured(&bed, &taps, || forged(&bed, &both(&bed), 12, ALL));
    assert_eq!(killed(&boom), 0);
    for file in files {
        let w = read(&bed, &[file]);
        assert_eq!((w.connections.len(), w.verdict), (0, Verdict::Protected), "{:?}", w.reasons);
    }
}

/// A client whose upload a node has reset can tell from its own capture.
pub(crate) fn a_clients_capture_shows_the_nodes_reset() {
    let bed = Bed::path(Path::NodePortLocal);
    let (dead, files) = captured(&bed, &[("outside", "any")], || uploads_forged(&bed, 5));
    assert_eq!(dead, 5);
    let w = read(&bed, &files);
    assert_eq!(only(&w, Cause::AnsweredByNode, Direction::ClientToServer), 5);
}

/// Connections that end by RST, refused ones, and closed ports are no findings.
pub(crate) fn ordinary_resets_in_a_capture_accuse_nobody() {
    let bed = Bed::path(Path::ClusterIp);
    let program = built("load-client").unwrap();
    let taps = [("client", "eth0"), ("node1", "any"), ("server", "eth0")];
    let ((), files) = captured(&bed, &taps, || {
        for (close, listens) in [("rst", true), ("fin", true), ("fin", false)] {
            let boom = listens.then(|| bed.boom(&["--forge=control", "--on-reset=count"]));
            let args =
                ["churn", "--target=tcp://198.19.0.10:80", "--connections=200", "--log=json"];
            let close = format!("--close={close}");
            bed.run("client", &Call::new(&program, &[&args[..], &[&close]].concat()));
            if let Some(boom) = boom {
                boom.stop(SOON).unwrap();
            }
        }
    });
    for file in files {
        let w = read(&bed, &[file]);
        let ended = w.connections.iter().filter(|c| c.cause.ended()).count();
        assert_eq!(ended, 0, "{:?} {:?}", w.connections, w.examples.first());
    }
}
