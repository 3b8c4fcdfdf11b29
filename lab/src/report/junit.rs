//! JUnit XML, as CI systems read it: a test case for each cell. Pure.

use crate::document::lab::{CellResult, Judgement, LabResult, ScenarioResult};

use super::fold::sorted;
use super::markup::{Esc, put};

/// What a test case is to a CI system.
#[derive(Clone, Copy, Default)]
struct Totals {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    seconds: f64,
}

impl Totals {
    fn add(&mut self, judgement: Judgement, seconds: f64) {
        self.tests += 1;
        self.seconds += seconds;
        match judgement {
            Judgement::AsExpected => {}
            Judgement::Differs => self.failures += 1,
            Judgement::Inconclusive => self.errors += 1,
            Judgement::Skipped => self.skipped += 1,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            tests: self.tests + other.tests,
            failures: self.failures + other.failures,
            errors: self.errors + other.errors,
            skipped: self.skipped + other.skipped,
            seconds: self.seconds + other.seconds,
        }
    }
}

/// The document.
#[must_use]
pub fn render(result: &LabResult) -> String {
    let mut suites = String::new();
    let mut all = control(&mut suites, result);
    for scenario in &result.scenarios {
        all = all.plus(suite(&mut suites, result, scenario));
    }
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    put!(
        &mut out,
        "<testsuites name=\"conntrack-lab\" tests=\"{}\" failures=\"{}\" errors=\"{}\" \
         skipped=\"{}\" time=\"{:.3}\">\n{suites}</testsuites>\n",
        all.tests,
        all.failures,
        all.errors,
        all.skipped,
        all.seconds
    );
    out
}

/// Without the positive control no other case means anything: it is one itself.
fn control(out: &mut String, result: &LabResult) -> Totals {
    let c = &result.positive_control;
    let judgement = match result.judgement {
        _ if c.held => Judgement::AsExpected,
        // Where the run says itself that it needs none.
        Judgement::AsExpected if c.forged == 0 => Judgement::Skipped,
        _ => Judgement::Inconclusive,
    };
    let reason = format!(
        "{} of {} above-window segments reset an unprotected ClusterIP connection",
        c.killed, c.forged
    );
    let mut totals = Totals::default();
    totals.add(judgement, 0.0);
    open(out, result, "positive-control", totals);
    case(out, "positive-control", "unprotected ClusterIP resets", 0.0, judgement, &[reason]);
    out.push_str("  </testsuite>\n");
    totals
}

fn suite(out: &mut String, result: &LabResult, s: &ScenarioResult) -> Totals {
    let mut totals = Totals::default();
    for cell in &s.cells {
        totals.add(cell.judgement, cell.seconds);
    }
    // What is wrong with the scenario and with none of its cells is a case too, and so are cells
    // that were not run beside others that differ.
    let worst = s.cells.iter().map(|c| c.judgement).reduce(Judgement::worse);
    let own = match worst {
        Some(worst) if worst == s.judgement => {
            (!s.reasons.is_empty()).then_some(Judgement::Inconclusive)
        }
        _ => Some(s.judgement),
    };
    if let Some(judgement) = own {
        totals.add(judgement, 0.0);
    }
    open(out, result, &s.name, totals);
    for cell in &s.cells {
        let class = format!("{}.{}.{}.{}", s.name, cell.path, cell.front_end, cell.family);
        case(out, &class, &name(cell), cell.seconds, cell.judgement, &cell.reasons);
    }
    if let Some(judgement) = own {
        case(out, &s.name, "the scenario as a whole", 0.0, judgement, &s.reasons);
    }
    out.push_str("  </testsuite>\n");
    totals
}

fn name(cell: &CellResult) -> String {
    let set: Vec<_> = sorted(&cell.protections).iter().map(ToString::to_string).collect();
    let set = if set.is_empty() { "none".to_owned() } else { set.join(" + ") };
    if cell.repetition > 1 { format!("{set} (repetition {})", cell.repetition) } else { set }
}

fn open(out: &mut String, result: &LabResult, name: &str, t: Totals) {
    put!(
        out,
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" \
         time=\"{:.3}\" timestamp=\"{}\" hostname=\"{}\">\n",
        Esc(name),
        t.tests,
        t.failures,
        t.errors,
        t.skipped,
        t.seconds,
        // The schema wants a time without a zone.
        Esc(result.run.started.get(..19).unwrap_or(&result.run.started)),
        Esc(&result.run.host)
    );
    put!(
        out,
        "    <properties>\n      <property name=\"kernel\" value=\"{}\"/>\n      <property \
         name=\"version\" value=\"{}\"/>\n    </properties>\n",
        Esc(&result.run.kernel),
        Esc(&result.run.version)
    );
}

fn case(
    out: &mut String,
    class: &str,
    name: &str,
    seconds: f64,
    judgement: Judgement,
    reasons: &[String],
) {
    put!(
        out,
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{seconds:.3}\"",
        Esc(class),
        Esc(name)
    );
    let element = match judgement {
        Judgement::AsExpected => {
            out.push_str("/>\n");
            return;
        }
        Judgement::Differs => "failure",
        Judgement::Inconclusive => "error",
        Judgement::Skipped => "skipped",
    };
    let first = reasons.first().map_or(judgement.as_str(), String::as_str);
    put!(out, ">\n      <{element} message=\"{}\"", Esc(first));
    if element == "skipped" {
        out.push_str("/>\n");
    } else {
        put!(out, " type=\"{judgement}\">{}</{element}>\n", Esc(reasons.join("\n")));
    }
    out.push_str("    </testcase>\n");
}
