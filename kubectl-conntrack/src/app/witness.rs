//! `witness`, from its options to its exit code.

use canary_record::names::EndedBy;
use canary_record::result::Config;
use kube::Client;

use super::session::{Session, ended};
use super::usable;
use crate::api::Stop;
use crate::cli::WitnessArgs;
use crate::report::Cluster;
use crate::witness::{self, ClusterWitness, Witness};

/// A witness on every node of the cluster behind `client`, for a time or until `signalled`; what
/// each had seen by then is in the result.
pub async fn watch(
    client: &Client,
    cluster: Cluster,
    args: &WitnessArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<ClusterWitness> {
    let session = Session::begin(client, &cluster, &args.cluster, witness::needs, say).await?;
    let (nodes, mut reasons) = usable(client, args.nodes.as_deref()).await?;
    let ground = session.ground(client, say).await?;
    let mut witness = Witness::new(&ground, &nodes);
    let done = tokio::select! {
        done = witness.go(args.duration, args.cluster.timeout, say) => done.map(|()| EndedBy::Completed),
        signal = signalled() => Ok(signal),
    };
    // No pod has anything to tell.
    let found = if let Err(Stop::Image { .. } | Stop::Refused(_)) = &done {
        Ok(Vec::new())
    } else {
        say("results");
        let early = !matches!(done, Ok(EndedBy::Completed));
        tokio::select! {
            found = witness.collect(early) => found,
            _ = signalled() => Err(Stop::Refused("ended before the results were read".to_owned())),
        }
    };
    let left = session.end(&ground, args.cluster.keep, &mut signalled, say).await;
    let ended_by = ended(done, |e| !matches!(e, Stop::Api(_)), left, &mut reasons)?;
    let found = found.unwrap_or_else(|e| {
        reasons.push(format!("results could not be read: {e}"));
        Vec::new()
    });
    witness::save(args.cluster.save.as_deref(), &found)?;
    let record = session.record("kubectl-conntrack witness", ended_by, config.clone());
    Ok(ClusterWitness::new(record, cluster, &found, &witness.names, reasons))
}
