//! `load`, from its options to its exit code.

use anyhow::Context as _;
use canary_record::names::EndedBy;
use canary_record::result::Config;
use canary_record::result::load::LoadResult;
use kube::Client;

use super::session::{Session, ended};
use crate::api::Stop;
use crate::cli::LoadArgs;
use crate::load::{self, Load};
use crate::report::Cluster;
use crate::run;

/// A load on the cluster behind `client`, until its end or until `signalled`; what it made is
/// removed either way, and what the clients had counted by then is in the result.
pub async fn load(
    client: &Client,
    cluster: Cluster,
    args: &LoadArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<LoadResult> {
    let session = Session::begin(client, &cluster, &args.cluster, load::needs, say).await?;
    let ground = session.ground(client, say).await?;
    let mut load = Load::new(&ground, args, "load-client");
    let done = tokio::select! {
        done = load.go(say) => done.map(|()| EndedBy::Completed),
        signal = signalled() => Ok(signal),
    };
    say("results");
    let early = !matches!(done, Ok(EndedBy::Completed));
    let collected = match &done {
        // No pod has anything to tell.
        Err(Stop::Image { .. } | Stop::Refused(_)) => load::Collected::default(),
        _ => load.collect(early).await,
    };
    if let Some(dir) = &args.cluster.save {
        for (pod, result) in &collected.results {
            run::save(dir, &format!("{pod}.json"), result)?;
        }
    }
    let left = session.end(&ground, args.cluster.keep, &mut signalled, say).await;
    let mut reasons = Vec::new();
    let ended_by = ended(done, |_| collected.results.is_empty(), left, &mut reasons)?;
    let why = reasons.join("; ");
    let record = session.record("kubectl-conntrack load", ended_by, config.clone());
    load::judged(collected, args, reasons, record)?
        .with_context(|| format!("no client left a result: {why}"))
}
