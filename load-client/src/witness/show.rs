//! What is seen while the watch goes on: metrics, a table on a terminal; [`super::page`] shows it too.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use canary_record::result::witness::{Cause, Direction, Ended, Reason};

use super::found::Found;

#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Since the watch began.
    pub(crate) elapsed: Duration,
    pub(crate) found: Found,
    /// The last connections, the latest first.
    pub(crate) latest: VecDeque<Ended>,
    /// Resets that came too many at once to be looked into.
    pub(crate) hurried: u64,
    pub(crate) look_failures: u64,
    /// What made it deaf, for a while at least.
    pub(crate) unheard: BTreeSet<String>,
    /// What keeps it from saying that nothing happened, by [`super::report::weak`].
    pub(crate) weak: Vec<String>,
}

impl View {
    /// Connections that the table shows one by one.
    pub(crate) const LATEST: usize = 5;
}

/// Every series is there from the begin, at 0: the first event is a growth too.
pub(crate) fn publish(view: &View) {
    let found = &view.found;
    for &cause in Cause::ALL {
        for &direction in Direction::ALL {
            let count = found.connections.get(&(cause, direction)).copied().unwrap_or(0);
            let (cause, direction) = (cause.as_str(), direction.as_str());
            metrics::counter!("load_witness_connections_total", "cause" => cause, "direction" => direction)
                .absolute(count);
        }
    }
    for reason in Reason::ALL {
        let (all, unanswered) = (found.segments.get(reason), found.unanswered.get(reason));
        let reason = reason.as_str();
        metrics::counter!("load_witness_segments_total", "reason" => reason)
            .absolute(all.copied().unwrap_or(0));
        metrics::counter!("load_witness_unanswered_total", "reason" => reason)
            .absolute(unanswered.copied().unwrap_or(0));
    }
    let m = &found.messages;
    for (name, n) in [
        ("load_witness_messages_total", m.received),
        ("load_witness_messages_lost_total", m.lost),
        ("load_witness_overruns_total", m.overruns),
        ("load_witness_forgotten_total", m.forgotten),
        ("load_witness_harmless_resets_total", found.harmless),
        ("load_witness_already_closing_total", found.already_closing),
        ("load_witness_stray_resets_total", found.stray_resets),
    ] {
        metrics::counter!(name).absolute(n);
    }
    metrics::gauge!("load_witness_watched_seconds").set(view.elapsed.as_secs_f64());
    let can = f64::from(u8::from(view.weak.is_empty()));
    metrics::gauge!("load_witness_can_attribute").set(can);
}

/// The table on a terminal.
pub(crate) fn table(view: &View) -> String {
    let found = &view.found;
    let m = &found.messages;
    let mut lines = vec![format!(
        "watched {} s   {} messages of the kernel, {} lost   {} resets that belong to no segment, {} harmless",
        view.elapsed.as_secs(),
        m.received,
        m.lost,
        found.stray_resets,
        found.harmless
    )];
    lines.push(format!(
        "{:<34} {:>9}   {:<24} {:>9} {:>10}",
        "CONNECTIONS", "", "SEGMENTS", "", "UNANSWERED"
    ));
    let causes: Vec<_> = found
        .causes()
        .iter()
        .map(|c| format!("{:<34} {:>9}", format!("{} ({})", c.cause, c.direction), c.count))
        .collect();
    let segments: Vec<_> = found
        .segments
        .iter()
        .map(|(r, n)| format!("{r:<24} {n:>9} {:>10}", found.unanswered.get(r).unwrap_or(&0)))
        .collect();
    for n in 0..causes.len().max(segments.len()).max(1) {
        let left = match (causes.get(n), n) {
            (Some(cause), _) => cause.as_str(),
            (None, 0) => "none ended so far",
            (None, _) => "",
        };
        lines.push(format!("{left:<44}   {}", segments.get(n).map_or("", String::as_str)));
    }
    let [services, ..] = found.most_hit();
    for hit in services.iter().take(View::LATEST) {
        lines.push(format!("{:>9}  {}", hit.count, hit.address));
    }
    for e in &view.latest {
        lines.push(format!(
            "{:>8.1} s  {} -> {}  {}: {}",
            e.t,
            e.client.as_deref().unwrap_or(&e.to),
            e.service.as_deref().unwrap_or(&e.from),
            e.cause,
            e.text
        ));
    }
    let lines: Vec<_> = lines.iter().map(|line| line.trim_end()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::found::tests::{ended, heard};
    use super::*;

    /// The table has the causes beside the reasons.
    #[test]
    fn causes_stand_beside_reasons() {
        let segments = [(Reason::SeqOver, 3), (Reason::InvalidNew, 3)];
        let mut found = heard(segments, (Reason::SeqOver, 1));
        for _ in 0..2 {
            found.add(&ended(Cause::AnsweredByClient, Direction::ServerToClient));
        }
        let view = View { elapsed: Duration::from_secs(75), found, ..View::default() };
        let table_of = |view| table(view).lines().map(str::to_owned).collect::<Vec<_>>();
        let lines = table_of(&view);
        assert!(
            lines[0].starts_with("watched 75 s   0 messages of the kernel, 0 lost"),
            "{lines:?}"
        );
        let row = "answered-by-client (server-to-client)         2   seq-over-window";
        assert!(lines[2].starts_with(row), "{lines:?}");
        assert!(lines[2].ends_with("3          1"), "{lines:?}");
        assert_eq!(lines[4], "        2  198.19.0.10:80");
        assert!(table_of(&View::default()).iter().any(|l| l == "none ended so far"));
    }
}
