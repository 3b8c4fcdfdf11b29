//! A run over time, drawn: occupancy of the table, connections a second, and
//! failures by class, on one time axis with the steps marked. Pure.

use std::ops::Range;

use maud::{Markup, html};

use crate::document::timeline::{FailureClass, TableSeries, TableSpeed, Timeline, TimelineSample};

use super::words::{self, grouped};

const WIDTH: f64 = 880.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 34.0;
const PANEL: f64 = 120.0;
const GAP: f64 = 44.0;

/// A dash pattern for each class, so that lines are told apart without colour.
const fn dashes(class: FailureClass) -> &'static str {
    match class {
        FailureClass::ConnectTimeout => "none",
        FailureClass::Reset => "7 3",
        FailureClass::Hung => "2 3",
        FailureClass::Refused => "10 3 2 3",
        FailureClass::EarlyEof => "4 2 1 2",
        FailureClass::BadAnswer => "4 6",
        FailureClass::LocalLimit => "1 5",
        FailureClass::Interrupted => "1 9",
        FailureClass::Other => "12 6",
    }
}

struct Line {
    class: String,
    name: String,
    dashes: &'static str,
    area: bool,
    values: Vec<f64>,
}

/// The drawing of a timeline, where there is enough to draw. `id` tells several on one page apart.
pub(crate) fn timeline(t: &Timeline, id: &str) -> Option<Markup> {
    let end = t.samples.last().map_or(0.0, |s| s.t);
    if t.samples.len() < 2 || end <= 0.0 {
        return None;
    }
    let panels = panels(t);
    let height = TOP + panels.len() as f64 * (PANEL + GAP);
    let summary: Vec<_> = panels
        .iter()
        .map(|(title, lines)| {
            let peak =
                |l: &Line| format!("{} at most {}", l.name, grouped(max(&l.values).round() as u64));
            format!("{title}: {}", lines.iter().map(peak).collect::<Vec<_>>().join(", "))
        })
        .collect();
    let x = |at: f64| LEFT + (at / end).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    Some(html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-labelledby={ (id) "-title " (id) "-text" } {
            title id={ (id) "-title" } { "Over time" }
            desc id={ (id) "-text" } { (summary.join(". ")) }
            (steps(t, height, &x))
            @for (n, (title, lines)) in panels.iter().enumerate() {
                (panel(t, title, lines, TOP + 16.0 + n as f64 * (PANEL + GAP), &x))
            }
        }
    })
}

/// What is drawn of each table.
type Of = fn(&TableSpeed) -> f64;

/// The drawing of a row of tables: packets and new connections a second, by what differs in the row.
pub(crate) fn tables(t: &Timeline, series: TableSeries, id: &str) -> Option<Markup> {
    let row: Vec<_> = t.tables.iter().filter(|t| t.series == series).collect();
    let (title, labels): (_, Vec<_>) = match series {
        TableSeries::Full => {
            ("as many entries as buckets", row.iter().map(|t| grouped(t.entries)).collect())
        }
        TableSeries::FewerBuckets => {
            ("entries for each bucket", row.iter().map(|t| format!("{:.1}", t.load())).collect())
        }
        TableSeries::FewEntries => return None,
    };
    let gaps = row.len().checked_sub(1).filter(|n| *n > 0)? as f64;
    // At equal distances: the numbers grow by a factor.
    let x = |n: usize| LEFT + n as f64 / gaps * (WIDTH - LEFT - RIGHT);
    let speeds: [(_, _, Of); 2] = [
        ("Packets a second", "packets", |t| t.packets_per_second),
        ("New connections a second", "connections", |t| t.connections_per_second),
    ];
    let height = TOP + speeds.len() as f64 * (PANEL + GAP);
    let summary: Vec<_> = row
        .iter()
        .zip(&labels)
        .map(|(t, label)| {
            format!(
                "{label}: {:.0} packets, {:.0} connections",
                t.packets_per_second, t.connections_per_second
            )
        })
        .collect();
    Some(html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-labelledby={ (id) "-title " (id) "-text" } {
            title id={ (id) "-title" } { "Packets and new connections a second: " (title) }
            desc id={ (id) "-text" } { (summary.join("; ")) }
            @for (n, (panel, name, of)) in speeds.into_iter().enumerate() {
                @let top = TOP + 16.0 + n as f64 * (PANEL + GAP);
                @let values: Vec<f64> = row.iter().map(|t| of(t)).collect();
                @let highest = nice(max(&values));
                @let y = |v: f64| top + PANEL - (v / highest).clamp(0.0, 1.0) * PANEL;
                (grid(&format!("{panel}, {title}"), highest, top, &y))
                @for (n, label) in labels.iter().enumerate() {
                    text.tick x=(at(x(n))) y=(at(top + PANEL + 16.0)) text-anchor="middle" { (label) }
                }
                @let points: Vec<_> =
                    values.iter().enumerate().map(|(n, v)| format!("{:.1},{:.1}", x(n), y(*v))).collect();
                polyline.line.ok points=(points.join(" ")) {}
                (legend(&[Line { class: "ok".into(), name: name.into(), dashes: "none", area: false, values }], &y, top))
            }
        }
    })
}

/// A panel's title, and its scale.
fn grid(title: &str, highest: f64, top: f64, y: &dyn Fn(f64) -> f64) -> Markup {
    html! {
        text.panel x=(LEFT) y=(at(top - 8.0)) { (title) }
        @for part in [0.0, 0.5, 1.0] {
            @let v = highest * part;
            line.grid x1=(LEFT) x2=(at(WIDTH - RIGHT)) y1=(at(y(v))) y2=(at(y(v))) {}
            text.tick x=(at(LEFT - 8.0)) y=(at(y(v) + 4.0)) text-anchor="end" {
                @if highest < 4.0 { (at(v)) } @else { (grouped(v.round() as u64)) }
            }
        }
    }
}

/// A coordinate: a tenth of a pixel is enough.
fn at(v: f64) -> String {
    format!("{v:.1}")
}

fn panels(t: &Timeline) -> Vec<(&'static str, Vec<Line>)> {
    let line =
        |class: &str, name: &str, dashes, area, value: &dyn Fn(&TimelineSample) -> f64| Line {
            class: class.to_owned(),
            name: name.to_owned(),
            dashes,
            area,
            values: t.samples.iter().map(value).collect(),
        };
    let per_second = |n: u64, s: &TimelineSample| {
        if s.interval_s > 0.0 { n as f64 / s.interval_s } else { 0.0 }
    };
    let mut panels = vec![
        (
            "Entries in the conntrack table",
            vec![
                line("limit", "limit", "6 4", false, &|s| s.limit as f64),
                line("entries", "entries", "none", true, &|s| s.entries as f64),
            ],
        ),
        (
            "New connections a second",
            vec![
                line("attempts", "attempted", "6 4", false, &TimelineSample::rate),
                line("ok", "succeeded", "none", true, &|s| per_second(s.ok, s)),
            ],
        ),
    ];
    let failures: Vec<_> = FailureClass::ALL
        .iter()
        .filter(|c| t.samples.iter().any(|s| s.failures.get(c).is_some_and(|n| *n > 0)))
        .map(|c| {
            let value = |s: &TimelineSample| per_second(s.failures.get(c).copied().unwrap_or(0), s);
            line(&format!("f-{c}"), words::failure(*c), dashes(*c), false, &value)
        })
        .collect();
    panels.push(("Failures a second, by class", failures));
    panels
}

/// Where each step begins. Marks that would lie on each other are one: `2–4`.
fn steps(t: &Timeline, height: f64, x: &dyn Fn(f64) -> f64) -> Markup {
    const APART: f64 = 24.0;
    let mut marks: Vec<(f64, usize, usize)> = Vec::new();
    for (n, step) in t.steps.iter().enumerate() {
        match marks.last_mut() {
            Some((first, _, to)) if x(step.t) - *first < APART => *to = n + 1,
            _ => marks.push((x(step.t), n + 1, n + 1)),
        }
    }
    html! {
        @for step in &t.steps {
            @let x = at(x(step.t));
            line.begin x1=(x) x2=(x) y1="24" y2=(at(height - GAP + 6.0)) {}
        }
        @for (middle, from, to) in marks {
            @let text = if from == to { from.to_string() } else { format!("{from}–{to}") };
            @let width = 13.0 + 7.0 * text.chars().count() as f64;
            g.step {
                rect x=(at(middle - width / 2.0)) y="4" width=(at(width)) height="20" rx="10" {}
                text x=(at(middle)) y="18" text-anchor="middle" { (text) }
            }
        }
    }
}

fn panel(t: &Timeline, title: &str, lines: &[Line], top: f64, x: &dyn Fn(f64) -> f64) -> Markup {
    let bottom = top + PANEL;
    let highest = nice(lines.iter().map(|l| max(&l.values)).fold(0.0, f64::max));
    let y = |v: f64| bottom - (v / highest).clamp(0.0, 1.0) * PANEL;
    let end = t.samples.last().map_or(0.0, |s| s.t);
    html! {
        (grid(title, highest, top, &y))
        @for n in 0..=4 {
            @let time = end * f64::from(n) / 4.0;
            text.tick x=(at(x(time))) y=(at(bottom + 16.0)) text-anchor="middle" {
                (format!("{time:.0}")) @if n == 4 { " s" }
            }
        }
        @if lines.is_empty() {
            text.none x=(at(f64::midpoint(LEFT, WIDTH - RIGHT))) y=(at(f64::midpoint(top, bottom)))
                text-anchor="middle" { "none" }
        }
        @for line in lines { @for run in runs(&t.samples) { (drawn(t, line, run, bottom, x, &y)) } }
        (legend(lines, &y, top))
    }
}

/// A part of a line without a gap in it.
fn drawn(
    t: &Timeline,
    line: &Line,
    run: Range<usize>,
    bottom: f64,
    x: &dyn Fn(f64) -> f64,
    y: &dyn Fn(f64) -> f64,
) -> Markup {
    let (Some(samples), Some(values)) = (t.samples.get(run.clone()), line.values.get(run)) else {
        return Markup::default();
    };
    // A sample tells of the time up to it: a run begins where its first one's does.
    let begin = samples.first().map_or(0.0, |s| (s.t - s.interval_s).max(0.0));
    let last = samples.last().map_or(begin, |s| s.t);
    let times = std::iter::once(begin).chain(samples.iter().map(|s| s.t));
    let values = values.first().into_iter().chain(values);
    let points: Vec<_> =
        times.zip(values).map(|(t, v)| format!("{:.1},{:.1}", x(t), y(*v))).collect();
    let points = points.join(" ");
    html! {
        @if line.area {
            polygon.area.(line.class)
                points={ (at(x(begin))) "," (at(bottom)) " " (points) " " (at(x(last))) "," (at(bottom)) } {}
        }
        polyline.line.(line.class) stroke-dasharray=(line.dashes) points=(points) {}
    }
}

/// Samples that follow each other: where nothing was seen for longer than a sample and a second,
/// nothing is drawn.
fn runs(samples: &[TimelineSample]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut seen = f64::NEG_INFINITY;
    for (n, s) in samples.iter().enumerate() {
        let unseen = s.t - s.interval_s - seen;
        seen = s.t;
        match runs.last_mut() {
            Some(run) if unseen <= s.interval_s.max(1.0) => run.end = n + 1,
            _ => runs.push(n..n + 1),
        }
    }
    runs
}

/// Each line's name at its right end, pushed apart where they would overlap.
fn legend(lines: &[Line], y: &dyn Fn(f64) -> f64, top: f64) -> Markup {
    const LINE: f64 = 16.0;
    let mut places: Vec<(f64, &Line)> =
        lines.iter().map(|l| (y(l.values.last().copied().unwrap_or(0.0)), l)).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut above = top - LINE / 2.0;
    for place in &mut places {
        place.0 = place.0.max(above + LINE);
        above = place.0;
    }
    // What was pushed out below comes back up.
    let mut below = top + PANEL + LINE;
    for place in places.iter_mut().rev() {
        place.0 = place.0.min(below - LINE);
        below = place.0;
    }
    html! { @for (height, line) in places {
        line.line.(line.class) stroke-dasharray=(line.dashes) x1=(at(WIDTH - RIGHT + 6.0)) x2=(at(WIDTH - RIGHT + 28.0))
            y1=(at(height)) y2=(at(height)) {}
        text.name x=(at(WIDTH - RIGHT + 33.0)) y=(at(height + 4.0)) { (line.name) }
    } }
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max)
}

/// The next of 1, 2, 5 times a power of ten: a scale that people read.
fn nice(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(highest.log10().floor());
    let steps = [1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|s| s * power).find(|s| *s >= highest).unwrap_or(highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::timeline::Step;

    fn series(n: u64) -> Timeline {
        let mut t = Timeline::default();
        for i in 0..n {
            t.push(TimelineSample {
                t: i as f64,
                interval_s: 1.0,
                entries: 10 * i,
                limit: 500,
                attempts: 40,
                ok: 40 - i.min(40),
                failures: [(FailureClass::ConnectTimeout, i.min(40))].into(),
                ..TimelineSample::default()
            });
        }
        t.steps.push(Step { t: 5.0, title: "more".into(), ..Step::default() });
        t
    }

    /// Every coordinate lies inside the drawing, and it is well-formed.
    #[test]
    fn nothing_is_drawn_outside() {
        let svg = timeline(&series(60), "a").unwrap().into_string();
        let doc = roxmltree::Document::parse(&svg).unwrap();
        let lines = doc.descendants().filter(|n| n.has_tag_name("polyline"));
        let mut points = 0;
        for point in lines.flat_map(|n| n.attribute("points").unwrap().split(' ')) {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{point}");
            assert!((TOP..=TOP + 3.0 * (PANEL + GAP)).contains(&y), "{point}");
            points += 1;
        }
        assert_eq!(points, 5 * 61, "five lines: limit, entries, attempted, succeeded, timed out");
    }

    /// Where nothing was seen nothing is drawn: no line from before to after a pause.
    #[test]
    fn a_pause_is_a_gap() {
        let mut t = series(20);
        for s in t.samples.iter_mut().skip(10) {
            s.t += 10.0;
        }
        assert_eq!(runs(&t.samples), [0..10, 10..20]);
        // A sample that was late is no pause.
        t.samples[3].interval_s = 4.0;
        for s in t.samples.iter_mut().skip(3) {
            s.t += 3.0;
        }
        assert_eq!(runs(&t.samples), [0..10, 10..20]);
        let svg = timeline(&t, "a").unwrap().into_string();
        let doc = roxmltree::Document::parse(&svg).unwrap();
        let lines = doc.descendants().filter(|n| n.has_tag_name("polyline")).count();
        assert_eq!(lines, 2 * 5);
    }

    /// Steps that begin at once, or nearly so, share a mark that names all of them.
    #[test]
    fn marks_do_not_cover_each_other() {
        let mut t = series(60);
        for at in [6.0, 6.0, 40.0] {
            t.steps.push(Step { t: at, ..Step::default() });
        }
        let svg = timeline(&t, "a").unwrap().into_string();
        let doc = roxmltree::Document::parse(&svg).unwrap();
        let marks: Vec<_> = doc
            .descendants()
            .filter(|n| n.attribute("class") == Some("step"))
            .filter_map(|n| n.children().find(|c| c.has_tag_name("text"))?.text())
            .collect();
        assert_eq!(marks, ["1–3", "4"]);
    }

    /// A class that never failed has no line; one that did has its name.
    #[test]
    fn failures_are_named() {
        let svg = timeline(&series(60), "a").unwrap().into_string();
        assert!(svg.contains("connect timed out") && !svg.contains("refused"), "{svg}");
    }

    /// A row of tables has a point for each in either panel; one table alone is no row.
    #[test]
    fn tables_are_drawn() {
        let speed = |n: u64| TableSpeed {
            series: TableSeries::Full,
            buckets: n,
            entries: n,
            packets_per_second: 1e6 / n as f64,
            connections_per_second: 1e5,
            memory: None,
        };
        let mut t = Timeline { tables: [10, 100, 1000].map(speed).into(), ..Timeline::default() };
        let svg = tables(&t, TableSeries::Full, "a").unwrap().into_string();
        let doc = roxmltree::Document::parse(&svg).unwrap();
        let points: Vec<_> = doc
            .descendants()
            .filter_map(|n| n.attribute("points").map(|p| p.split(' ').count()))
            .collect();
        assert_eq!(points, [3, 3]);
        assert!(svg.contains("1,000: 1000 packets"), "{svg}");
        assert!(tables(&t, TableSeries::FewerBuckets, "a").is_none());
        t.tables.truncate(1);
        assert!(tables(&t, TableSeries::Full, "a").is_none());
    }

    /// One sample is no series.
    #[test]
    fn too_little_is_not_drawn() {
        assert!(timeline(&series(1), "a").is_none());
        assert!(timeline(&Timeline::default(), "a").is_none());
    }

    /// A scale ends at or above its highest value, not far above.
    #[test]
    fn scales_are_nice() {
        for v in [0.3, 1.0, 7.2, 41.0, 99.0, 1201.0, 262_144.0] {
            assert!(nice(v) >= v && nice(v) <= 2.0 * v, "{v} {}", nice(v));
        }
    }
}
