//! `diagnose`, from its options to its exit code.

use std::collections::BTreeSet;

use canary_record::names::EndedBy;
use canary_record::result::Config;
use canary_runtime::cli::derive;
use kube::Client;

use super::session::{Session, ended};
use crate::api::Stop;
use crate::cli::DiagnoseArgs;
use crate::report::{Cluster, DiagnoseResult};
use crate::{diagnose, plan, preflight};

/// A diagnosis of the cluster behind `client`, until its end or until `signalled`; what it made is
/// removed either way. An error says that nothing was measured and what to mend.
pub async fn diagnosis(
    client: &Client,
    cluster: Cluster,
    args: &DiagnoseArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<DiagnoseResult> {
    let session = Session::begin(client, &cluster, &args.cluster, diagnose::needs, say).await?;
    let nodes = super::nodes(client, args.nodes.as_deref()).await?;
    let (nodes, left_out) = plan::sampled(nodes, args.sample.map(|n| n as usize));
    let configured = preflight::proxy_mode(client).await;
    let ground = session.ground(client, say).await?;
    let mut rows = Vec::new();
    let configured = configured.as_deref();
    let work = diagnose::run(&ground, args, configured, nodes.clone(), &mut rows, say);
    let done = tokio::select! {
        done = work => done.map(|()| EndedBy::Completed),
        signal = signalled() => Ok(signal),
    };
    let left = session.end(&ground, args.cluster.keep, &mut signalled, say).await;
    let mut reasons = Vec::new();
    let nothing = |e: &Stop| rows.is_empty() && !matches!(e, Stop::Api(_));
    let ended_by = ended(done, nothing, left, &mut reasons)?;
    let known: BTreeSet<_> = rows.iter().map(|r| r.name.clone()).collect();
    let cut = nodes.iter().filter(|n| !known.contains(&n.name));
    rows.extend(cut.map(|n| diagnose::unproved(n, "the run ended before its turn".to_owned())));
    let mut config = config.clone();
    if !left_out.is_empty() {
        derive(&mut config, "left-out-by-sample", &left_out.join(","));
    }
    let record = session.record("kubectl-conntrack diagnose", ended_by, config);
    Ok(DiagnoseResult::new(record, cluster, rows, reasons))
}
