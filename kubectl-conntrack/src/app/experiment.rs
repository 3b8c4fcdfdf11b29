//! `experiment`, from its options to its exit code.

use std::path::Path;

use anyhow::Context as _;
use canary_record::names::EndedBy;
use canary_record::result::Config;
use canary_runtime::exit::Exit;
use conntrack_lab::cluster::journal::{Event, Fact};
use conntrack_lab::document::lab::LabResult;

use super::session::{Job, Session};
use super::{confirmed, connect, kept, print, usable};
use crate::api::Stop;
use crate::cli::ExperimentArgs;
use crate::experiment::journal::Journal;
use crate::experiment::{self, Experiment};
use crate::output::Format;
use crate::plan;

/// The whole subcommand.
pub(super) async fn experimented(args: ExperimentArgs) -> anyhow::Result<Exit> {
    let place = connect(&args.cluster, "conntrack-experiment").await?;
    confirmed(Some(&args.confirm), &place.1.context)?;
    let dir = args.cluster.save.clone().unwrap_or_else(|| {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        format!("results/cluster-{now}").into()
    });
    let work = async |job: Job<'_>| Box::pin(experiment(job, &args, &dir)).await;
    let result = kept(place, &Config::new(), None, work).await?;
    print(&shown(&result, &dir, args.output)?)?;
    Ok(conntrack_lab::app::exit(&result))
}

/// The result as the lab writes it.
fn shown(result: &LabResult, dir: &Path, format: Format) -> anyhow::Result<String> {
    use conntrack_lab::report::{junit, text};
    let page = dir.join("report.html");
    Ok(match format {
        Format::Table => format!("{}\n{}", text::render(result, text::width()), page.display()),
        Format::Json => serde_json::to_string_pretty(result)?,
        Format::Junit => junit::render(result),
        Format::Html => std::fs::read_to_string(&page)
            .with_context(|| format!("cannot read {}", page.display()))?,
    })
}

/// The experiment on a cluster, judged from what it left in `dir`.
pub async fn experiment(
    job: Job<'_>,
    args: &ExperimentArgs,
    dir: &Path,
) -> anyhow::Result<LabResult> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, experiment::needs).await?;
    let (nodes, unusable) = usable(client, None).await?;
    let mut journal = Journal::begin(dir)?;
    let clients: Vec<_> = args.clients.iter().map(u32::to_string).collect();
    let kernel = |n: &plan::Node| format!("{} on {}, kubelet {}", n.kernel, n.name, n.kubelet);
    journal.record(Fact::Context, &session.job.cluster.context)?;
    journal.record(Fact::Started, &jiff::Timestamp::now())?;
    journal.record(Fact::Clients, &clients.join(" "))?;
    journal.record(Fact::Seconds, &args.step.as_secs())?;
    journal
        .record(Fact::TableSize, &args.table_size.map_or("none".to_owned(), |n| n.to_string()))?;
    journal.record(Fact::HoldOffDrop, &u8::from(args.hold_off_drop))?;
    journal.record(Fact::Kernel, &nodes.iter().map(kernel).collect::<Vec<_>>().join("; "))?;
    journal.record(Fact::Kubernetes, &session.job.cluster.version)?;
    for why in unusable {
        journal.doubt(&why)?;
    }
    let ground = session.ground().await?;
    let mut experiment = Experiment::new(&ground, &nodes, args, &mut journal, &mut session);
    let done = Box::pin(experiment.go(say)).await;
    // Nothing was measured, and the mend is the user's.
    let refused = matches!(done, Err(Stop::Image { .. } | Stop::Refused(_)));
    let ended_by = match &done {
        Ok(()) => session.by.unwrap_or(EndedBy::Completed),
        Err(e) => {
            journal.doubt(&format!("the run ended before its end: {e}"))?;
            EndedBy::Error
        }
    };
    if let Some(by) = session.by {
        journal.doubt(&format!("the run was ended by {by}"))?;
    }
    for left in session.end(&ground).await {
        journal.doubt(&left)?;
    }
    journal.record(Fact::Ended, &jiff::Timestamp::now())?;
    journal.wrote(&Event::End(ended_by))?;
    if refused {
        done?;
    }
    Ok(conntrack_lab::cluster::run(dir)?)
}
