//! `tune`, from its options to its exit code.

use canary_record::names::EndedBy;

use super::session::{Job, Session};
use super::usable;
use crate::cli::TuneArgs;
use crate::each_node;
use crate::tune::{Tune, TuneResult};

/// Sets sysctls on nodes of a cluster, until the end of `--for` or a signal, and puts the old values
/// back.
pub async fn tune(job: Job<'_>, args: &TuneArgs) -> anyhow::Result<TuneResult> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, each_node::needs).await?;
    let (nodes, mut reasons) = usable(client, args.nodes.as_deref()).await?;
    let ground = session.ground().await?;
    let mut held = Tune::new(&ground, &nodes, "tune");
    let kept = args.cluster.keep;
    let mut rows = Vec::new();
    let mut by = EndedBy::Completed;
    let set = session.or(held.set(&args.sysctls, args.cluster.timeout, kept, say)).await;
    let done = match set {
        Some(Ok(set)) => {
            rows = set;
            let n = rows.iter().filter(|n| !n.changes.is_empty()).count();
            say(&format!("set and read back on {n} of {} nodes", rows.len()));
            if !kept && n > 0 {
                let until = args.hold.map(|d| tokio::time::Instant::now() + d);
                session.or(held.hold(until)).await;
                // Without a time a signal is how it is ended.
                by = session.by.filter(|_| until.is_some()).unwrap_or(by);
            }
            Ok(by)
        }
        Some(Err(e)) => Err(e),
        None => {
            reasons.push("ended before every node was set".to_owned());
            Ok(session.by.unwrap_or(by))
        }
    };
    if !kept {
        say("putting the old values back");
        match session.or(held.put_back()).await {
            Some(Ok(back)) if done.is_ok() => rows = back,
            Some(Ok(_)) => {}
            Some(Err(e)) => reasons.push(format!("not known to be put back: {e}")),
            None => reasons.push("ended before the nodes were read back".to_owned()),
        }
    }
    let record = session.close(&ground, "tune", done, |_| rows.is_empty(), &mut reasons).await?;
    Ok(TuneResult::new(record, session.job.cluster, rows, reasons, kept))
}
