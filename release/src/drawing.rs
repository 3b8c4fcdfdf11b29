//! The drawings of the documents, as SVG that follows the reader's colour scheme.

use conntrack_lab::document::lab::LabResult;
use conntrack_lab::judge::rows::{self, Exposure};
use conntrack_lab::report::{html, words};
use maud::{Markup, html};

const RSTS: &str = "RSTs at the server";
const PACKETS: &str = "Packets a second";
/// The plots of `full-tables.md`: the file, the heading, what is counted, of how many.
pub(crate) const PLOTS: [(&str, &str, &str, u32); 4] = [
    ("full-tables-half-closed.svg", "Half-closed connections", RSTS, 60),
    ("full-tables-half-open.svg", "Half-open connections", RSTS, 400),
    ("full-tables-sizes.svg", "Packets a second by table size", PACKETS, 250_000),
    ("full-tables-buckets.svg", "Packets a second by entries", PACKETS, 250_000),
];

/// The table under a heading of a document as bars: each row's last column, of `all`.
pub(crate) fn plot(document: &str, heading: &str, what: &str, all: u32) -> String {
    const LEFT: u32 = 350;
    const WIDTH: u32 = 400;
    let section = document.split("### ").find(|s| s.starts_with(heading)).unwrap_or_default();
    let rows: Vec<(&str, u32)> = section
        .lines()
        .filter_map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            Some((*cells.first()?, cells.last()?.replace(',', "").parse().ok()?))
        })
        .collect();
    let content = html! {
        text x="10" y="20" font-weight="700" { (what) ", of " (all) }
        @for ((label, n), y) in rows.iter().zip((34..).step_by(30)) {
            "\n"
            text x="10" y=(y + 15) { (label) }
            rect.none.line x=(LEFT) y=(y) width=(WIDTH) height="20" {}
            rect.bar x=(LEFT) y=(y) width=(WIDTH * n / all) height="20" {}
            text x=(LEFT + WIDTH + 10) y=(y + 15) { (n) }
        }
    };
    drawing(LEFT + WIDTH + 90, 34 + 30 * rows.len() as u32, heading, &content)
}

const STYLE: &str = "
svg { background: #fff } text { fill: #1c2128 } .soft { fill: #57606a } .line { stroke: #d9dde2 }
.bad { fill: #fbe9e7 } .good { fill: #e9f5ee } .none { fill: none } .bar { fill: #a8201a }
text.bad { fill: #a8201a; font-weight: 700 } text.good { fill: #1b6b45; font-weight: 700 }
@media (prefers-color-scheme: dark) {
svg { background: #14171b } text { fill: #e4e7eb } .soft { fill: #9ea7b1 } .line { stroke: #343b43 }
.bad { fill: #3d1f1d } .good { fill: #17301f } .bar { fill: #ff9d94 }
text.bad { fill: #ff9d94 } text.good { fill: #7fd3a4 }
}
";

/// A drawing that follows the reader's scheme. A line for each row: a difference shows which.
fn drawing(width: u32, height: u32, title: &str, content: &Markup) -> String {
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height) } role="img"
            font-family="system-ui, sans-serif" font-size="13" {
            "\n" title { (title) }
            "\n" style { (STYLE) }
            "\n" (content)
        }
    };
    svg.into_string() + "\n"
}

/// What a cell of the overview takes.
const COLUMN: usize = 50;
const ROW: usize = 24;

/// The overview of a run as a drawing, for a light and a dark page.
#[must_use]
pub fn picture(result: &LabResult) -> String {
    const LEFT: usize = 310;
    const TOP: usize = 215;
    let overview = rows::overview(result, true);
    let (columns, lines) = (overview.protections.len(), overview.paths.len());
    let (width, height) = (LEFT + COLUMN * columns + 190, TOP + ROW * lines + 44);
    let kernel = result.run.kernel.split(' ').next().unwrap_or_default();
    let day = result.run.started.get(..10).unwrap_or_default();
    let control = &result.positive_control;
    let content = html! {
        text x="10" y="22" font-weight="700" { "Does conntrack reset connections?" }
        text.soft x="10" y="42" { "✕ resets them   ✓ nothing leaks" }
        text.soft x="10" y=(height - 14) {
            "conntrack-lab run, Linux " (kernel) ", " (day) ": " (control.killed) " of " (control.forged)
            " above-window segments reset an unprotected connection"
        }
        @for (n, set) in overview.protections.iter().enumerate() {
            "\n"
            text transform={ "translate(" (LEFT + COLUMN * n + COLUMN / 2) " " (TOP - 10) ") rotate(-40)" } {
                (words::protections(set))
            }
        }
        @for (y, (path, found)) in (TOP..).step_by(ROW).zip(&overview.paths) {
            "\n"
            path.line d={ "M10," (y) " H" (LEFT + COLUMN * columns) } {}
            text x="10" y=(y + 17) { (words::route(*path)) }
            @for (n, found) in found.iter().enumerate() {
                @if let Some(found) = found { (cell(&found.exposure, LEFT + COLUMN * n, y)) }
            }
        }
    };
    drawing(width as u32, height as u32, &html::verdict(result), &content)
}

/// What was found of one path under one set of protections, drawn with its corner at `x` and `y`.
fn cell(exposure: &Exposure, x: usize, y: usize) -> Markup {
    let (_, symbol, word) = words::exposure(exposure);
    let (field, sign) = match exposure {
        Exposure::Safe => ("good", "good"),
        Exposure::Resets(_) | Exposure::Hangs | Exposure::Leaks => ("bad", "bad"),
        Exposure::NoConnection | Exposure::NotProved => ("none", "soft"),
    };
    html! {
        rect class=(field) x=(x + 1) y=(y + 1) width=(COLUMN - 2) height=(ROW - 2) { title { (word) } }
        text class=(sign) x=(x + COLUMN / 2) y=(y + 17) text-anchor="middle" { (symbol) }
    }
}
