//! Samples conntrack in this network namespace.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use canary_conntrack::stat;
use canary_conntrack::table::Table;
use canary_record::result::SCHEMA_VERSION;
use canary_record::result::observe::{
    ConntrackCounters, ConntrackSample, CpuCounters, ObserveResult, SourceState,
};
use canary_record::series;
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;

use crate::cli::ObserveArgs;
use crate::report::Report;

/// The most samples that the result carries.
const SERIES: usize = 1024;

/// The metrics that `churn --fill` follows.
pub(crate) const ENTRIES: &str = "load_conntrack_entries";
pub(crate) const LIMIT: &str = "load_conntrack_limit";

/// As a log's reader expects them.
fn words(sources: &BTreeMap<String, SourceState>) -> String {
    let each = sources.iter().map(|(name, state)| match state {
        SourceState::Read => format!("{name} read"),
        SourceState::Unreadable(why) => format!("{name} unreadable: {why}"),
    });
    each.collect::<Vec<_>>().join(", ")
}

/// The names of the sources in the result.
const PROCFS: &str = "procfs";
const PROCFS_STAT: &str = "procfs-stat";
const CTNETLINK: &str = "ctnetlink";

/// One look at conntrack.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Sums.
    pub(crate) sample: ConntrackSample,
    /// By CPU.
    pub(crate) cpus: Vec<CpuCounters>,
}

/// Reads conntrack, from whatever source can be read.
#[derive(Debug)]
pub(crate) struct Reader {
    netlink: Option<Table>,
    /// Which source could be read.
    pub(crate) sources: BTreeMap<String, SourceState>,
}

impl Default for Reader {
    /// Opens the netlink socket if that is allowed.
    fn default() -> Self {
        let mut sources = BTreeMap::new();
        let netlink = Table::open()
            .map_err(|e| {
                sources.insert(CTNETLINK.to_owned(), SourceState::Unreadable(e.to_string()))
            })
            .ok();
        Self { netlink, sources }
    }
}

impl Reader {
    fn note(&mut self, source: &str, failure: Option<String>) {
        // A source that failed once stays named: its numbers have a gap.
        match failure {
            Some(why) => {
                if !matches!(self.sources.get(source), Some(SourceState::Unreadable(_))) {
                    tracing::warn!(source, why, "cannot read this source");
                    self.sources.insert(source.to_owned(), SourceState::Unreadable(why));
                }
            }
            None => {
                self.sources.entry(source.to_owned()).or_insert(SourceState::Read);
            }
        }
    }

    /// One look at time `t`; none when no source gave both count and counters.
    pub(crate) fn look(&mut self, t: f64) -> Option<Look> {
        let counts = number(stat::COUNT).and_then(|c| Ok((c, number(stat::LIMIT)?)));
        self.note(PROCFS, counts.as_ref().err().cloned());
        let procfs = read(&format!("/proc/net/{}", stat::STAT), stat::counters);
        self.note(PROCFS_STAT, procfs.as_ref().err().cloned());
        let (mut usage, mut cpus) = (None, None);
        if let Some(table) = &mut self.netlink {
            let asked = table.usage().and_then(|u| Ok((u, table.counters()?)));
            self.note(CTNETLINK, asked.as_ref().err().map(ToString::to_string));
            match asked {
                Ok(((entries, limit), counters)) => {
                    usage = Some(entries).zip(limit);
                    cpus = Some(counters).filter(|c| !c.is_empty());
                }
                Err(_) => self.netlink = None,
            }
        }
        let (entries, limit) = counts.ok().or(usage)?;
        let cpus = procfs.ok().or(cpus)?;
        let counters = ConntrackCounters::sum(&cpus);
        Some(Look { sample: ConntrackSample { t, entries, limit, counters }, cpus })
    }
}

fn read<T>(path: &str, parse: fn(&str) -> Result<T, stat::ReadError>) -> Result<T, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    parse(&text).map_err(|e| format!("{path}: {e}"))
}

fn number(key: &str) -> Result<u64, String> {
    read(&format!("/proc/sys/{key}"), stat::number)
}

/// Observes until the end; none when nothing can be read at all.
pub(crate) async fn run(
    args: &ObserveArgs,
    report: &Report,
    shutdown: &mut Shutdown,
    admin: Option<&Arc<Admin>>,
) -> Result<ObserveResult, String> {
    let start = Instant::now();
    let reader = Arc::new(Mutex::new(Reader::default()));
    // A look that panicked leaves nothing half done that the next one needs.
    let read = |t| reader.lock().unwrap_or_else(PoisonError::into_inner).look(t);
    let sources = || reader.lock().unwrap_or_else(PoisonError::into_inner).sources.clone();
    let Some(first) = read(0.0) else {
        return Err(format!("cannot read conntrack here: {}", unreadable(&sources()).join("; ")));
    };
    publish(&first.sample);
    if let Some(admin) = admin {
        // Who asks gets the table as it is now, not as it was at the last sample.
        let reader = Arc::clone(&reader);
        admin.before_metrics(move || {
            if let Some(look) = reader.lock().unwrap_or_else(PoisonError::into_inner).look(0.0) {
                publish(&look.sample);
            }
        });
        admin.set_ready(true);
    }
    tracing::info!(
        entries = first.sample.entries,
        limit = first.sample.limit,
        sources = words(&sources()),
        "ready"
    );
    let (mut samples, mut taken) = (Vec::new(), 0);
    let mut keep = |sample| {
        // Each sample stands for itself: of neighbours the first stays.
        series::push(&mut samples, taken, SERIES, sample, |_, _| {});
        taken += 1;
    };
    keep(first.sample);
    let (mut last, mut most) = (first.clone(), first.sample.entries);
    let mut reasons = Vec::new();
    let node = crate::shown::read().await;
    let mut gaps = 0u64;
    let mut ticks = tokio::time::interval_at((start + args.interval).into(), args.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let end = args.duration.and_then(|d| start.checked_add(d));
    let mut logged = start;
    let ended_by = loop {
        let ended = tokio::select! {
            biased;
            by = shutdown.ended(end) => Some(by),
            _ = ticks.tick() => None,
        };
        // One last look at the end, so that `last` is the end.
        match read(start.elapsed().as_secs_f64()) {
            Some(look) => {
                keep(look.sample);
                publish(&look.sample);
                most = most.max(look.sample.entries);
                if logged.elapsed() >= Duration::from_secs(1) {
                    logged = Instant::now();
                    log(&last, &look);
                }
                last = look;
            }
            None => gaps += 1,
        }
        if let Some(ended_by) = ended {
            break ended_by;
        }
    };
    reasons.extend(unreadable(&sources()));
    if gaps > 0 {
        reasons.push(format!("{gaps} samples could not be read"));
    }
    let difference_by_cpu: Vec<_> = last
        .cpus
        .iter()
        .filter_map(|now| {
            let then = first.cpus.iter().find(|c| c.cpu == now.cpu)?;
            Some(CpuCounters { cpu: now.cpu, counters: now.counters.since(then.counters) })
        })
        .collect();
    Ok(ObserveResult {
        schema_version: SCHEMA_VERSION,
        run: report.run(ended_by),
        reasons,
        node,
        sources: sources(),
        first: first.sample,
        last: last.sample,
        difference: ConntrackCounters::sum(&difference_by_cpu),
        difference_by_cpu,
        most_entries: most,
        samples_taken: taken,
        series_interval_s: args.interval.as_secs_f64() * series::width(taken, SERIES) as f64,
        samples,
    })
}

/// Brings the metrics to the latest sample; costs nothing without an admin port.
fn publish(s: &ConntrackSample) {
    metrics::gauge!(ENTRIES).set(s.entries as f64);
    metrics::gauge!(LIMIT).set(s.limit as f64);
    let c = s.counters;
    metrics::counter!("load_conntrack_drop_total").absolute(c.drop);
    metrics::counter!("load_conntrack_early_drop_total").absolute(c.early_drop);
    metrics::counter!("load_conntrack_insert_failed_total").absolute(c.insert_failed);
    metrics::counter!("load_conntrack_invalid_total").absolute(c.invalid);
}

/// At most one event a second, however short the interval.
fn log(before: &Look, now: &Look) {
    let (s, d) = (now.sample, now.sample.counters.since(before.sample.counters));
    tracing::info!(
        entries = s.entries,
        limit = s.limit,
        drop = s.counters.drop,
        early_drop = s.counters.early_drop,
        insert_failed = s.counters.insert_failed,
        invalid = s.counters.invalid,
        invalid_grew = d.invalid,
        drop_grew = d.drop,
        "conntrack"
    );
}

fn unreadable(sources: &BTreeMap<String, SourceState>) -> Vec<String> {
    let say = |(name, state): (&String, &SourceState)| match state {
        SourceState::Read => None,
        SourceState::Unreadable(why) => Some(format!("{name} could not be read: {why}")),
    };
    sources.iter().filter_map(say).collect()
}
