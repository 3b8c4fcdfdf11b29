//! `experiment` on a disk that is full. Alone in its program: what a process may write is the whole
//! process' limit.

mod common;

use std::time::Duration;

use common::never;
use common::world::{deployed, run, world};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Where nothing more can be written while nodes are changed, the pods that hold the change are removed
/// all the same, and the error names the file.
#[tokio::test(start_paused = true)]
async fn a_full_disk_leaves_no_node_changed() {
    let (fake, dir) = (world(2), tempfile::tempdir().unwrap());
    deployed(&fake);
    // Caught, it leaves the write that is too long its error.
    let _caught = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).unwrap();
    let seen = fake.clone();
    let full = tokio::spawn(async move {
        while !seen.objects().iter().any(|o| o.contains("tune-liberal")) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let limit = getrlimit(Resource::Fsize);
        setrlimit(Resource::Fsize, Rlimit { current: Some(0), ..limit }).unwrap();
        limit
    });
    let line = "experiment --clients 3 --step 10s";
    let e = run(&fake, line, dir.path(), never, &|_| {}).await.unwrap_err();
    // What the test says may go to a file.
    setrlimit(Resource::Fsize, full.await.unwrap()).unwrap();
    assert!(e.starts_with("cannot write ") && e.contains("raw/journal"), "{e}");
    assert!(fake.namespaces().is_empty());
}
