//! What a person sees: help, and one line for what is wrong.

use std::path::Path;
use std::time::Duration;

use canary_testbed::exec::{Call, Output};

fn call(args: &[&str]) -> Call {
    let program = Path::new(env!("CARGO_BIN_EXE_load-client"));
    Call::new(program, args).deadline(Duration::from_secs(10))
}

fn load_client(args: &[&str]) -> Output {
    call(args).output().unwrap()
}

/// The help of every subcommand is what is committed.
#[test]
fn help_is_as_committed() {
    for sub in ["", "churn", "hold", "probe", "serve", "observe", "witness", "merge"] {
        let args: Vec<_> = [sub, "--help"].into_iter().filter(|a| !a.is_empty()).collect();
        let out = load_client(&args);
        assert!(out.status.success(), "{args:?}: {}", out.stderr);
        let text = out.stdout;
        let name = if sub.is_empty() { "main" } else { sub };
        let file = format!("help-{name}.txt");
        canary_testbed::golden::check(env!("CARGO_MANIFEST_DIR"), &file, &text);
    }
}

/// Whatever is wrong with the command line: one line, which says how to mend it,
/// exit code 2, and nothing on stdout.
#[test]
fn wrong_usage_is_one_line() {
    for (args, word) in [
        (&["churn"][..], "--target"),
        (&["churn", "--target", "nonsense"], "write tcp://HOST:PORT"),
        (&["churn", "--target", "https://a/"], "https is not supported"),
        (&["churn", "--target", "tcp://no-such-host.invalid:1"], "cannot resolve"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--rate", "0"], "above 0"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--jitter", "0.5"], "--rate"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--duration", "5"], "write 500ms"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--fail-on", "x"], "is no threshold"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--fill", "http://127.0.0.1:1"], "observe"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--fill", "tcp://127.0.0.1:1"], "HTTP"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--fill-to", "0"], "above 0"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--source-ip", "192.0.2.1"], "cannot bind"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--source-ip", "::1"], "family"),
        (&["churn", "--target", "tcp://127.0.0.1:1", "--output", "/nowhere/r"], "--output"),
        (&["hold", "--target", "http://127.0.0.1/", "--connections", "1"], "tcp://HOST:PORT"),
        (&["probe", "--target", "http://127.0.0.1/", "--connections", "1"], "tcp://HOST:PORT"),
        (&["probe", "--target", "tcp://127.0.0.1:1", "--connections", "0"], "1..="),
        (&["merge", "/nowhere/r"], "cannot read /nowhere/r"),
        (&["merge", "/dev/null"], "is no result"),
    ] {
        let out = load_client(args);
        let stderr = out.stderr;
        assert_eq!(out.status.code(), Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
        assert_eq!(out.stdout, "", "{args:?}");
    }
}

/// An option that comes from the environment alone is named by its variable where it does not
/// fit: nobody finds it on the command line.
#[test]
fn a_variable_that_does_not_fit_is_named() {
    for (args, variable, needs) in [
        ("probe --target tcp://127.0.0.1:1 --connections 1", ("LOAD_DURATION", "5m"), "--every"),
        ("churn --target tcp://127.0.0.1:1 --connections 1", ("LOAD_JITTER", "0.5"), "--rate"),
        ("serve", ("LOAD_WORKERS", "many"), "--workers"),
    ] {
        let words: Vec<_> = args.split(' ').collect();
        let out = call(&words).env(variable.0, variable.1).output().unwrap();
        let stderr = out.stderr;
        assert_eq!(out.status.code(), Some(2), "{args}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let set = format!("{}={}", variable.0, variable.1);
        assert!(stderr.contains(needs) && stderr.contains(&set), "{args}: {stderr}");
    }
}
