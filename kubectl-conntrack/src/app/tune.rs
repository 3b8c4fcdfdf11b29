//! `tune`, from its options to its exit code.

use canary_record::names::EndedBy;
use canary_record::result::Config;
use kube::Client;

use super::session::{Session, ended};
use super::usable;
use crate::cli::TuneArgs;
use crate::each_node;
use crate::report::Cluster;
use crate::tune::{Tune, TuneResult};

/// Sets sysctls on nodes of the cluster behind `client`, until the end of `--for` or until
/// `signalled`, and puts the old values back.
pub async fn tune(
    client: &Client,
    cluster: Cluster,
    args: &TuneArgs,
    config: &Config,
    mut signalled: impl AsyncFnMut() -> EndedBy,
    say: &dyn Fn(&str),
) -> anyhow::Result<TuneResult> {
    let session = Session::begin(client, &cluster, &args.cluster, each_node::needs, say).await?;
    let (nodes, unusable) = usable(client, args.nodes.as_deref()).await?;
    let ground = session.ground(client, say).await?;
    let mut held = Tune::new(&ground, &nodes, "tune");
    let mut reasons = unusable;
    let kept = args.cluster.keep;
    let set = tokio::select! {
        set = held.set(&args.sysctls, args.cluster.timeout, kept, say) => set.map(Some),
        _ = signalled() => {
            reasons.push("ended before every node was set".to_owned());
            Ok(None)
        }
    };
    let mut done = Ok(EndedBy::Completed);
    let mut rows = Vec::new();
    match set {
        Err(e) => done = Err(e),
        Ok(None) => done = Ok(EndedBy::Sigint),
        Ok(Some(set)) => {
            rows = set;
            let n = rows.iter().filter(|n| !n.changes.is_empty()).count();
            say(&format!("set and read back on {n} of {} nodes", rows.len()));
            if !kept && n > 0 {
                let until = args.hold.map(|d| tokio::time::Instant::now() + d);
                tokio::select! {
                    () = held.hold(until) => {}
                    // Without a time this is how it is ended.
                    signal = signalled() => if until.is_some() { done = Ok(signal) },
                }
            }
        }
    }
    if !kept {
        say("putting the old values back");
        tokio::select! {
            back = held.put_back() => match back {
                Ok(back) if done.is_ok() => rows = back,
                Ok(_) => {}
                Err(e) => reasons.push(format!("not known to be put back: {e}")),
            },
            _ = signalled() => reasons.push("ended before the nodes were read back".to_owned()),
        }
    }
    let left = session.end(&ground, args.cluster.keep, &mut signalled, say).await;
    let ended_by = ended(done, |_| rows.is_empty(), left, &mut reasons)?;
    let record = session.record("kubectl-conntrack tune", ended_by, config.clone());
    Ok(TuneResult::new(record, cluster, rows, reasons, kept))
}
