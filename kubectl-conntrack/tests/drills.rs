//! What goes wrong under every subcommand: the API server away, a kubelet dead, a pod deleted, a signal
//! or SIGKILL at any step. A result is never better than what was seen, and nothing is left.

mod common;

use std::cell::Cell;
use std::time::Duration;

use canary_record::names::EndedBy;
use common::world::{Done, LINES, deployed, run, world};
use common::{Fake, never};
use tokio::sync::Notify;

/// Runs `line` on `fake`, while `harm` comes over it after `seconds`.
async fn harmed(fake: &Fake, line: &str, seconds: u64, harm: impl FnOnce(&Fake) + 'static) -> Done {
    deployed(fake);
    let dir = tempfile::tempdir().unwrap();
    let harm = async {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        harm(fake);
        std::future::pending::<()>().await;
    };
    let run = run(fake, line, dir.path(), never, &|_| {});
    tokio::select! {
        done = run => done.unwrap_or_else(|e| panic!("{line}: {e}")),
        () = harm => unreachable!(),
    }
}

/// Nothing of the plugin's is left.
#[track_caller]
fn nothing_left(fake: &Fake, line: &str) {
    assert_eq!(fake.namespaces(), [] as [&str; 0], "{line}");
    let left: Vec<_> = fake.objects().into_iter().filter(|o| !o.ends_with("-x")).collect();
    assert_eq!(left, [] as [&str; 0], "{line}");
}

/// Undisturbed, each is its own control: exit code 0 and nothing left.
#[tokio::test(start_paused = true)]
async fn undisturbed_each_ends_well() {
    for line in LINES {
        let fake = world(3);
        let done = harmed(&fake, line, 3600, |_| {}).await;
        assert_eq!(
            (done.code, done.ended_by),
            (0, EndedBy::Completed),
            "{line}: {}",
            done.document
        );
        nothing_left(&fake, line);
    }
}

/// The API server away for 20 s: pods work on and what they found is read when it is back, but what
/// nodes, pods and Services did meanwhile was not seen: exit code 11, which says for how long.
#[tokio::test(start_paused = true)]
async fn the_api_server_away_is_said() {
    for line in LINES {
        let fake = world(3);
        let done = harmed(&fake, line, 15, |f| f.away(Duration::from_secs(20))).await;
        assert_eq!(done.code, 11, "{line}: {}", done.document);
        let said = (18..=24).any(|s| done.document.contains(&format!("not answer for {s} s")));
        assert!(said, "{line}: {}", done.document);
        nothing_left(&fake, line);
    }
}

/// Away for 3 s, as in a restart: no result is weaker for it.
#[tokio::test(start_paused = true)]
async fn a_short_absence_weakens_nothing() {
    for line in LINES {
        let fake = world(3);
        let done = harmed(&fake, line, 15, |f| f.away(Duration::from_secs(3))).await;
        assert_eq!(done.code, 0, "{line}: {}", done.document);
        nothing_left(&fake, line);
    }
}

/// A node's kubelet dies: exit code 11, the node or its pod's name with the reason, and the objects of
/// its pods are removed without its word.
#[tokio::test(start_paused = true)]
async fn a_dead_kubelet_is_said() {
    for line in LINES {
        let fake = world(3);
        let done = harmed(&fake, line, 10, |f| f.kill_kubelet("n0001")).await;
        assert_eq!(done.code, 11, "{line}: {}", done.document);
        assert!(done.document.contains("n0001"), "{line}: {}", done.document);
        let said = ["not ready", "not end in time", "kubelet does not answer"];
        assert!(said.iter().any(|s| done.document.contains(s)), "{line}: {}", done.document);
        nothing_left(&fake, line);
    }
}

/// A pod that somebody else deletes is missed: exit code 11, by its name or its node's.
#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_missed() {
    let pods = ["server-1", "load-client-3", "witness-1", "tune-1", "load-0-1"];
    for (line, pod) in LINES.into_iter().zip(pods) {
        let fake = world(3);
        let key = format!("pods/conntrack-{}/{pod}", line.split(' ').next().unwrap());
        let harm = move |f: &Fake| assert!(f.delete_pod(&key), "{key} of {:?}", f.objects());
        let done = harmed(&fake, line, 8, harm).await;
        assert_eq!(done.code, 11, "{line}: {}", done.document);
        let said = [pod, "n0001", "2 of 3"];
        assert!(said.iter().any(|s| done.document.contains(s)), "{line}: {}", done.document);
        nothing_left(&fake, line);
    }
}

/// Says when the message with this number came.
struct Steps {
    at: usize,
    said: Cell<usize>,
    there: Notify,
}

impl Steps {
    fn new(at: usize) -> Self {
        Self { at, said: Cell::new(0), there: Notify::new() }
    }

    fn say(&self, _: &str) {
        if self.said.get() == self.at {
            self.there.notify_one();
        }
        self.said.set(self.said.get() + 1);
    }
}

/// How many steps each has, by what it says while it runs.
async fn steps(line: &str) -> usize {
    let (fake, steps) = (world(3), Steps::new(usize::MAX));
    deployed(&fake);
    let dir = tempfile::tempdir().unwrap();
    run(&fake, line, dir.path(), never, &|s| steps.say(s)).await.unwrap();
    steps.said.get()
}

/// Ctrl-C at each step: what is known by then is told, never as proved where it was cut short, and
/// nothing is left.
#[tokio::test(start_paused = true)]
async fn an_interrupt_at_each_step_leaves_nothing() {
    for line in LINES {
        let all = steps(line).await;
        assert!(all > 4, "{line}: {all} steps");
        for at in 0..all {
            let (fake, steps) = (world(3), Steps::new(at));
            deployed(&fake);
            let dir = tempfile::tempdir().unwrap();
            let signal = async || {
                steps.there.notified().await;
                EndedBy::Sigint
            };
            // An error says that nothing was measured.
            let done = run(&fake, line, dir.path(), signal, &|s| steps.say(s)).await;
            if let Ok(done) = &done {
                let cut = done.ended_by == EndedBy::Sigint && !line.starts_with("tune");
                assert!(!cut || done.code == 11, "{line}, step {at}: {}", done.document);
            }
            assert_eq!(fake.namespaces(), [] as [&str; 0], "{line}, step {at}: {done:?}");
        }
    }
}

/// SIGKILL at each step: the next call finds what is left, names the run, and removes it when asked.
#[tokio::test(start_paused = true)]
async fn what_a_kill_leaves_is_found_and_removed() {
    for line in LINES {
        let all = steps(line).await;
        let mut found = 0;
        for at in 0..all {
            let (fake, steps) = (world(3), Steps::new(at));
            deployed(&fake);
            let dir = tempfile::tempdir().unwrap();
            let say = |s: &str| steps.say(s);
            tokio::select! {
                _ = run(&fake, line, dir.path(), never, &say) => {}
                () = steps.there.notified() => {}
            }
            if fake.namespaces().is_empty() {
                continue;
            }
            found += 1;
            deployed(&fake);
            let again = |more: &str| format!("{line} {more}");
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let e = run(&fake, line, one.path(), never, &|_| {}).await.unwrap_err();
            assert!(
                e.contains("is left of run") && e.contains("--replace"),
                "{line}, step {at}: {e}"
            );
            run(&fake, &again("--replace"), two.path(), never, &|_| {}).await.unwrap();
            assert_eq!(fake.namespaces(), [] as [&str; 0], "{line}, step {at}");
        }
        assert!(found > 2, "{line}: {found} of {all} steps left something");
    }
}

/// What a killed run of one subcommand left is said by the next call of another, too.
#[tokio::test(start_paused = true)]
async fn what_another_left_is_said() {
    let (fake, dir) = (world(3), tempfile::tempdir().unwrap());
    deployed(&fake);
    tokio::select! {
        _ = run(&fake, "load --clients 5", dir.path(), never, &|_| {}) => unreachable!(),
        () = tokio::time::sleep(Duration::from_secs(20)) => {}
    }
    let said = std::cell::RefCell::new(Vec::new());
    let say = |s: &str| said.borrow_mut().push(s.to_owned());
    run(&fake, "diagnose", dir.path(), never, &say).await.unwrap();
    let found = said.borrow().iter().any(|s| s.contains("kubectl delete namespace conntrack-load"));
    assert!(found, "{said:?}");
    assert_eq!(fake.namespaces(), ["conntrack-load"]);
}
