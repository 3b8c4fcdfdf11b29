//! The drawings of the documents, as SVG that follows the reader's colour scheme.

use std::fmt::Write as _;

use conntrack_lab::document::lab::LabResult;
use conntrack_lab::judge::rows::{self, Exposure};
use conntrack_lab::report::{html, words};

pub(crate) const RSTS: &str = "RSTs at the server";
pub(crate) const PACKETS: &str = "Packets a second";

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
    let mut out = drawing(LEFT + WIDTH + 90, 34 + 30 * rows.len() as u32, heading);
    let _ = writeln!(out, "<text x=\"10\" y=\"20\" font-weight=\"700\">{what}, of {all}</text>");
    for ((label, n), y) in rows.into_iter().zip((34..).step_by(30)) {
        let _ = writeln!(
            out,
            "<text x=\"10\" y=\"{0}\">{1}</text><rect class=\"none line\" x=\"{LEFT}\" y=\"{y}\" width=\"{WIDTH}\" \
             height=\"20\"/><rect class=\"bar\" x=\"{LEFT}\" y=\"{y}\" width=\"{2}\" height=\"20\"/><text x=\"{3}\" \
             y=\"{0}\">{n}</text>",
            y + 15,
            markup(label),
            WIDTH * n / all,
            LEFT + WIDTH + 10
        );
    }
    out + "</svg>\n"
}

/// The head of a drawing that follows the reader's scheme.
fn drawing(width: u32, height: u32, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<title>{}</title>\n<style>\n\
         svg {{ background: #fff }} text {{ fill: #1c2128 }} .soft {{ fill: #57606a }} .line {{ stroke: #d9dde2 }}\n\
         .bad {{ fill: #fbe9e7 }} .good {{ fill: #e9f5ee }} .none {{ fill: none }} .bar {{ fill: #a8201a }}\n\
         text.bad {{ fill: #a8201a; font-weight: 700 }} text.good {{ fill: #1b6b45; font-weight: 700 }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         svg {{ background: #14171b }} text {{ fill: #e4e7eb }} .soft {{ fill: #9ea7b1 }} .line {{ stroke: #343b43 }}\n\
         .bad {{ fill: #3d1f1d }} .good {{ fill: #17301f }} .bar {{ fill: #ff9d94 }}\n\
         text.bad {{ fill: #ff9d94 }} text.good {{ fill: #7fd3a4 }}\n\
         }}\n</style>\n",
        markup(title)
    )
}

/// The overview of a run as a drawing, for a light and a dark page.
#[must_use]
pub fn picture(result: &LabResult) -> String {
    const LEFT: usize = 310;
    const TOP: usize = 215;
    const COLUMN: usize = 50;
    const ROW: usize = 24;
    let overview = rows::overview(result, true);
    let (columns, lines) = (overview.protections.len(), overview.paths.len());
    let (width, height) = (LEFT + COLUMN * columns + 190, TOP + ROW * lines + 44);
    let mut out = drawing(width as u32, height as u32, &html::verdict(result));
    let kernel = result.run.kernel.split(' ').next().unwrap_or_default();
    let day = result.run.started.get(..10).unwrap_or_default();
    let _ = writeln!(
        out,
        "<text x=\"10\" y=\"22\" font-weight=\"700\">Does conntrack reset connections?</text>\n\
         <text class=\"soft\" x=\"10\" y=\"42\">✕ resets them   ✓ nothing leaks</text>\n\
         <text class=\"soft\" x=\"10\" y=\"{}\">conntrack-lab run, Linux {}, {day}: {} of {} above-window segments reset an \
         unprotected connection</text>",
        height - 14,
        markup(kernel),
        result.positive_control.killed,
        result.positive_control.forged
    );
    for (n, set) in overview.protections.iter().enumerate() {
        let x = LEFT + COLUMN * n + COLUMN / 2;
        let _ = writeln!(
            out,
            "<text transform=\"translate({x} {}) rotate(-40)\">{}</text>",
            TOP - 10,
            markup(&words::protections(set))
        );
    }
    for (n, (path, found)) in overview.paths.iter().enumerate() {
        let y = TOP + ROW * n;
        let _ = writeln!(
            out,
            "<path class=\"line\" d=\"M10,{y} H{}\"/><text x=\"10\" y=\"{}\">{}</text>",
            LEFT + COLUMN * columns,
            y + 17,
            markup(&words::route(*path))
        );
        for (n, found) in found.iter().enumerate() {
            let Some(found) = found else { continue };
            let (_, symbol, word) = words::exposure(&found.exposure);
            let class = match found.exposure {
                Exposure::Safe => "good",
                Exposure::Resets(_) | Exposure::Hangs | Exposure::Leaks => "bad",
                Exposure::NoConnection | Exposure::NotProved => "none",
            };
            let x = LEFT + COLUMN * n;
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{word}</title></rect>\
                 <text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{symbol}</text>",
                x + 1,
                y + 1,
                COLUMN - 2,
                ROW - 2,
                if class == "none" { "soft" } else { class },
                x + COLUMN / 2,
                y + 17
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

fn markup(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
