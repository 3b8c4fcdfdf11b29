//! The accounts of a run, and lines of a protocol.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use canary_record::result::load::{Cause, LoadResult};
use canary_testbed::exec::Output;
use canary_testbed::programs::{Ended, Program, Running, load_client};
use canary_testbed::test::{Bed, SOON};

/// Runs load-client to its end; its accounts are right.
#[track_caller]
pub(crate) fn run(bed: &Bed, words: &str) -> Ended<LoadResult> {
    let ended = bed.loaded(words);
    check_sum(&ended.result);
    ended
}

/// Waits for the end of a run; its accounts are right.
#[track_caller]
pub(crate) fn end(running: Running<LoadResult>) -> Ended<LoadResult> {
    let ended = running.end(SOON).unwrap();
    check_sum(&ended.result);
    ended
}

/// The same for one that is asked to end, which takes at most two seconds.
#[track_caller]
pub(crate) fn stop(running: Running<LoadResult>) -> Ended<LoadResult> {
    let ended = running.stop(Duration::from_secs(2)).unwrap();
    check_sum(&ended.result);
    ended
}

/// Runs load-client with so many file descriptors.
pub(crate) fn short_of_files(bed: &Bed, files: u32, words: &str) -> Output {
    let words: Vec<_> = words.split_whitespace().collect();
    let limit = format!("--nofile={files}:{files}");
    bed.run("host", &load_client(&words).unwrap().under(&["prlimit", &limit]).call())
}

/// A program that sees `file` in the place of another.
pub(crate) fn with_file<R>(program: Program<R>, file: &Path, testbed: &str) -> Program<R>
where
    R: serde::de::DeserializeOwned,
{
    let line = format!("mount --bind {} {testbed} && exec \"$@\"", file.display());
    program.under(&["unshare", "--mount", "sh", "-c", &line, "sh"])
}

/// The law of the accounts: every attempt ended in exactly one class, and the
/// series tells the same story.
pub(crate) fn check_sum(r: &LoadResult) {
    let failed: u64 = r.failures.iter().map(|f| f.count).sum();
    assert_eq!(r.attempts, r.ok + failed, "{:?}", r.failures);
    let sum = |f: fn(&canary_record::result::load::SeriesPoint) -> u64| {
        r.series.points.iter().map(f).sum::<u64>()
    };
    assert_eq!((sum(|p| p.attempts), sum(|p| p.ok), sum(|p| p.failed)), (r.attempts, r.ok, failed));
}

/// How many failed so.
pub(crate) fn failed(r: &LoadResult, which: impl Fn(&str, Cause) -> bool) -> u64 {
    r.failures.iter().filter(|f| which(f.phase.as_str(), f.cause)).map(|f| f.count).sum()
}

/// Reads a line, its newline included.
pub(crate) fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|n| n == 1) {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    String::from_utf8(line).unwrap()
}

/// Writes everything, whatever becomes of the peer.
pub(crate) fn write(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}
