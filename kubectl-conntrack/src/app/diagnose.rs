//! `diagnose`, from its options to its exit code.

use std::collections::BTreeSet;

use canary_runtime::cli::derive;

use super::session::{Job, Session};
use crate::api::Stop;
use crate::cli::DiagnoseArgs;
use crate::report::DiagnoseResult;
use crate::{diagnose, plan, preflight};

/// A diagnosis of a cluster, until its end or a signal; what it made is removed either way. An error
/// says that nothing was measured and what to mend.
pub async fn diagnosis(job: Job<'_>, args: &DiagnoseArgs) -> anyhow::Result<DiagnoseResult> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, diagnose::needs).await?;
    let nodes = super::nodes(client, args.nodes.as_deref()).await?;
    let (nodes, left_out) = plan::sampled(nodes, args.sample.map(|n| n as usize));
    let configured = preflight::proxy_mode(client).await;
    let ground = session.ground().await?;
    let mut rows = Vec::new();
    let configured = configured.as_deref();
    let work = diagnose::run(&ground, args, configured, nodes.clone(), &mut rows, say);
    let done = session.until(Box::pin(work)).await;
    let mut reasons = Vec::new();
    let nothing = |e: &Stop| rows.is_empty() && !matches!(e, Stop::Api(_));
    let mut record = session.close(&ground, "diagnose", done, nothing, &mut reasons).await?;
    let known: BTreeSet<_> = rows.iter().map(|r| r.name.clone()).collect();
    let cut = nodes.iter().filter(|n| !known.contains(&n.name));
    rows.extend(cut.map(|n| diagnose::unproved(n, "the run ended before its turn".to_owned())));
    if !left_out.is_empty() {
        derive(&mut record.config, "left-out-by-sample", &left_out.join(","));
    }
    Ok(DiagnoseResult::new(record, session.job.cluster, rows, reasons))
}
