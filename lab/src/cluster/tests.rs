use canary_record::names::{Errno, LoadVerdict, Phase};
use canary_record::result::load::{Cause, FailureCount};

use super::*;

/// What boom-server, canary-client and observe export, as kubectl conntrack experiment keeps it.
fn set(t: u32, counts: [u64; 6]) -> String {
    let [forged, killed, attempts, ok, entries, drop] = counts;
    let arrived = forged - killed;
    format!(
        "sample {t}\n\
         boom_handshakes_total {attempts}\n\
         boom_forged_total{{forgery=\"above-window\",family=\"ipv4\",class=\"unclassified\"}} {forged}\n\
         boom_forged_total{{forgery=\"control\",family=\"ipv4\",class=\"unclassified\"}} {forged}\n\
         boom_killed_total{{forgery=\"above-window\",family=\"ipv4\",class=\"unclassified\"}} {killed}\n\
         boom_outcomes_total{{forgery=\"above-window\",family=\"ipv4\",class=\"unclassified\",outcome=\"leaked\"}} {killed}\n\
         boom_outcomes_total{{forgery=\"above-window\",family=\"ipv4\",class=\"unclassified\",outcome=\"delivered\"}} {arrived}\n\
         boom_outcomes_total{{forgery=\"control\",family=\"ipv4\",class=\"unclassified\",outcome=\"delivered\"}} {forged}\n\
         load_attempts_total {attempts}\n\
         load_ok_total {ok}\n\
         load_failures_total{{phase=\"receive\",cause=\"ECONNRESET\",local=\"false\"}} {killed}\n\
         load_conntrack_entries {entries}\n\
         load_conntrack_limit {}\n\
         load_conntrack_drop_total {drop}\n",
        if drop > 0 { 20_000 } else { 262_144 }
    )
}

const JOURNAL: &str = r#"[0,{"run":["context","test"]}]
[0,{"run":["clients","0 2"]}]
[0,{"run":["hold-off-drop","1"]}]
[0,{"run":["kernel","6.18.0 on n1, kubelet v1.20.2; 6.18.0 on n2, kubelet v1.20.2"]}]
[0,{"run":["table-size","20000"]}]
[5,{"step":["load",0]}]
[10,"from"]
[20,"to"]
[20,{"note":"boom-server undisturbed."}]
[21,{"step":["load",2]}]
[25,"from"]
[35,"to"]
[36,{"accepted":[1000,1200]}]
[40,{"step":["small-table",2]}]
[45,"from"]
[45,{"change":{"what":"nf_conntrack_max","from":"262144","to":"20000"}}]
[55,"to"]
[56,{"accepted":[1200,1300]}]
[60,{"step":["liberal",2]}]
[65,"from"]
[75,"to"]
[76,{"accepted":[1300,1500]}]
[80,{"end":"completed"}]
"#;

/// The journal without the lines that begin so.
fn without(begin: &[&str]) -> String {
    let lines = JOURNAL.lines().filter(|line| !begin.iter().any(|b| line.starts_with(b)));
    lines.map(|line| line.to_owned() + "\n").collect()
}

fn samples() -> String {
    [
        set(10, [0, 0, 0, 0, 10, 0]),
        set(20, [10, 10, 40, 30, 20, 0]),
        set(25, [10, 10, 50, 40, 300, 0]),
        set(35, [15, 15, 70, 55, 900, 0]),
        set(45, [15, 15, 80, 65, 900, 0]),
        set(55, [17, 17, 90, 73, 20_000, 500]),
        set(65, [17, 17, 95, 78, 900, 500]),
        set(75, [27, 17, 130, 113, 900, 500]),
    ]
    .concat()
}

fn client(attempts: u64, failures: &[(Phase, Cause, u64)]) -> LoadResult {
    let failures: Vec<_> = failures
        .iter()
        .map(|&(phase, cause, count)| FailureCount::new(phase, cause, count))
        .collect();
    let text = serde_json::json!({
        "schema_version": SCHEMA_VERSION,
        "run": {
            "program": "load-client churn", "version": "0", "kernel": "", "host": "pod", "node": null,
            "started": "", "ended": "", "seconds": 1.0, "ended_by": "sigterm", "config": {},
        },
        "verdict": LoadVerdict::WithinThresholds, "reasons": [],
        "attempts": attempts, "begun_s": 1.0,
        "ok": attempts - failures.iter().map(|f| f.count).sum::<u64>(),
        "failures": failures, "probe": {},
        "connect_latency": canary_record::hist::Latency::default().summary(),
        "total_latency": canary_record::hist::Latency::default().summary(),
    });
    LoadResult::read(text.to_string().as_bytes()).unwrap()
}

fn results() -> Vec<Vec<LoadResult>> {
    let timeout = (Phase::Connect, Cause::Stall, 50);
    vec![
        vec![],
        vec![client(100, &[]), client(100, &[])],
        vec![client(100, &[timeout]), client(100, &[timeout])],
        vec![client(100, &[]), client(100, &[])],
    ]
}

fn judged(journal: &str, samples: &str, results: &[Vec<LoadResult>]) -> LabResult {
    let journal = Journal::read(journal).unwrap();
    judge(&journal, &journal::samples(samples).unwrap(), results, vec![])
}

fn timeline(result: &LabResult) -> &Timeline {
    result.scenarios[0].timeline.as_ref().unwrap()
}

/// A whole run: every step has its own counts and no other's, and the claims follow from them.
#[test]
fn a_whole_run_is_judged() {
    let result = judged(JOURNAL, &samples(), &results());
    assert_eq!(result.reasons, Vec::<String>::new());
    assert_eq!(result.judgement, Judgement::AsExpected);
    assert_eq!(result.run.seconds.to_string(), "80");
    assert_eq!(result.positive_control, PositiveControl { held: true, forged: 10, killed: 10 });
    let t = timeline(&result);
    let titles: Vec<_> = t.steps.iter().map(|s| s.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "0 clients",
            "2 clients",
            "a table of 20000 entries, 2 clients",
            "be_liberal on every node, 2 clients"
        ]
    );
    assert_eq!(t.steps[1].boom, [(Outcome::Leaked, 5), (Outcome::Delivered, 5)].into());
    assert_eq!(t.steps[2].conntrack.drop, 500);
    assert_eq!(t.steps[2].new_failures, [(FailureClass::ConnectTimeout, 100)].into());
    assert_eq!(t.steps[2].changes[0].to, "20000");
    assert_eq!(
        t.steps[1].notes,
        [
            "2 of 2 results collected.",
            "The target accepted 200 connections.",
            "5 of 5 above-window segments reset their connection."
        ]
    );
    let (yes, no) = (Finding::Holds, Finding::DoesNotHold);
    let findings: Vec<_> = t.statements.iter().map(|s| s.finding).collect();
    // A full table times out and does not reset; the canary's resets need no load; be_liberal
    // cures them; load alone resets nothing.
    assert_eq!(findings, [yes, no, no, yes, no], "{:#?}", t.statements);
    assert_eq!(t.samples.len(), 7);
    assert_eq!(t.samples.iter().map(|s| s.attempts).sum::<u64>(), 130);
    assert_eq!(t.samples[0].failures, [(FailureClass::Reset, 10)].into());
}

/// Where the raw sockets lost segments under be_liberal, an RST may have been among them: that no reset
/// was seen is no cure.
#[test]
fn a_lost_segment_may_have_been_a_reset() {
    let lossy = samples() + "boom_sniffer_dropped_total 1\n";
    let result = judged(JOURNAL, &lossy, &results());
    let cure = &timeline(&result).statements[3];
    assert_eq!(cure.finding, Finding::NotShown, "{cure:?}");
    assert!(cure.evidence[1].contains("lost 1 segments"), "{cure:?}");
}

/// A result that is missing, a sum that does not fit and a count that could not be read each
/// make the run inconclusive, by name.
#[test]
fn what_is_missing_is_said() {
    let said = |journal: &str, results: &[Vec<LoadResult>]| {
        let result = judged(journal, &samples(), results);
        assert_eq!(result.judgement, Judgement::Inconclusive);
        result.reasons.join("; ")
    };
    let mut lost = results();
    lost[1].pop();
    assert!(said(JOURNAL, &lost).contains("2 clients: 1 of 2 results collected"));
    let fewer = JOURNAL.replace("[1000,1200]", "[1000,1199]");
    assert!(said(&fewer, &results()).contains(
        "2 clients: 200 begun and 200 succeeded by the clients' count, but the target accepted 199"
    ));
    let unread = without(&["[36,"]);
    assert!(said(&unread, &results()).contains("the target's own count could not be read"));
    let doubt = format!("[79,{{\"doubt\":\"node not ready: n2\"}}]\n{JOURNAL}");
    assert!(said(&doubt, &results()).contains("node not ready: n2"));
    let cut = without(&["[80,"]);
    assert!(said(&cut, &results()).contains("its journal has no end"));
    let unsampled = without(&["[25,", "[35,"]);
    assert!(said(&unsampled, &results()).contains("2 clients: no sample of it could be read"));
}

/// Without a delivered control segment, or without a reset on a path that was laid bare,
/// nothing is proved.
#[test]
fn without_its_positive_control_nothing_is_proved() {
    let none: String = samples()
        .lines()
        .filter(|l| !l.contains("delivered"))
        .fold(String::new(), |text, line| text + line + "\n");
    let result = judged(JOURNAL, &none, &results());
    assert!(result.reasons[0].contains("positive control is missing"), "{:?}", result.reasons);
    let spared = samples().replace("boom_killed_total", "boom_other_total");
    let result = judged(JOURNAL, &spared, &results());
    assert!(!result.positive_control.held);
    assert!(result.reasons[0].contains("no above-window segment reset"), "{:?}", result.reasons);
    // With the drop in force that is as it should be.
    let kept = judged(&JOURNAL.replace(r#"drop","1"#, r#"drop","0"#), &spared, &results());
    assert_eq!(kept.judgement, Judgement::AsExpected);
    assert_eq!(kept.positive_control, PositiveControl::default());
}

/// On a cluster where nothing drops, the first step is the control.
#[test]
fn an_unprotected_cluster_is_its_own_control() {
    let result = judged(&JOURNAL.replace(r#"drop","1"#, r#"drop","0"#), &samples(), &results());
    assert_eq!(result.positive_control, PositiveControl { held: true, forged: 10, killed: 10 });
    let text = crate::report::text::render(&result, 100);
    assert!(text.contains("Positive control: 10 of 10 above-window segments reset"), "{text}");
    assert!(!text.contains("0 of 0 cells"), "{text}");
}

/// A run whose drop stayed in force does not claim a control, nor a command of the lab's.
#[test]
fn a_run_behind_the_drop_tells_no_control() {
    let spared = samples().replace("boom_killed_total", "boom_other_total");
    let kept = judged(&JOURNAL.replace(r#"drop","1"#, r#"drop","0"#), &spared, &results());
    let text = crate::report::text::render(&kept, 100);
    assert!(text.contains("Positive control: not tried"), "{text}");
    assert!(crate::report::junit::render(&kept).contains("<skipped"));
    let page = crate::report::html::render(&kept, &BTreeMap::new());
    assert!(page.contains("No positive control was tried") && !page.contains("conntrack-lab run"));
    assert!(!page.contains("Processors"));
}

/// A run that begins with clients has its control in its first step.
#[test]
fn the_control_needs_no_step_without_clients() {
    let clients = without(&["[5,", "[10,", "[20,"]);
    let result = judged(&clients, &samples(), &results()[1..]);
    assert_eq!(result.reasons, Vec::<String>::new());
    assert_eq!(result.positive_control, PositiveControl { held: true, forged: 5, killed: 5 });
}

/// A program that began again counts from zero, and the step has both its lives.
#[test]
fn a_restarted_program_is_counted_on() {
    let again = [
        set(10, [100, 0, 500, 500, 10, 0]),
        set(15, [3, 0, 7, 7, 10, 0]),
        set(20, [5, 0, 9, 9, 10, 0]),
    ]
    .concat();
    let journal =
        "[5,{\"step\":[\"load\",0]}]\n[10,\"from\"]\n[20,\"to\"]\n[21,{\"end\":\"completed\"}]\n";
    let journal = Journal::read(journal).unwrap();
    let result = judge(&journal, &journal::samples(&again).unwrap(), &[vec![]], vec![]);
    assert_eq!(timeline(&result).steps[0].boom[&Outcome::Delivered], 2 * 5);
    assert_eq!(timeline(&result).samples.iter().map(|s| s.attempts).collect::<Vec<_>>(), [7, 2]);
}

/// A line that was cut by the run's end is no error, a line that nobody wrote is one.
#[test]
fn cut_lines_are_left_out_and_strange_ones_refused() {
    let cut = Journal::read("[5,{\"step\":[\"load\",0]}]\n[10,\"fr").unwrap();
    assert_eq!(cut.steps[0].from, None);
    let e = Journal::read("[0,{\"run\":[\"clients\",\"0\"]}]\n[5,\"moon\"]\n").unwrap_err();
    assert_eq!(e, "journal, line 2: '[5,\"moon\"]' is no event of kubectl conntrack experiment");
    assert_eq!(journal::samples("sample 1\nload_ok_total 5\nload_fai").unwrap()[0].sample.ok, 5);
    for bad in
        ["load_ok_total 5\n", "sample soon\n", "sample 1\nload_ok_total\n", "sample 1\nx{y} 1\n"]
    {
        assert!(journal::samples(bad).is_err(), "{bad}");
    }
}

/// A client's document whose classes do not add up, or of another version, is none.
#[test]
fn damaged_results_are_none() {
    let text =
        serde_json::to_string(&client(10, &[(Phase::Receive, Cause::Errno(Errno::Econnreset), 3)]))
            .unwrap();
    assert!(LoadResult::read(text.as_bytes()).is_ok());
    assert!(
        LoadResult::read(text.replace("\"attempts\":10", "\"attempts\":11").as_bytes()).is_err()
    );
    assert!(
        LoadResult::read(
            text.replace(&format!("\"schema_version\":{SCHEMA_VERSION}"), "\"schema_version\":9")
                .as_bytes()
        )
        .is_err()
    );
    assert!(LoadResult::read(&text.as_bytes()[1..]).is_err());
}
