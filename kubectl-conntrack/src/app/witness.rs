//! `witness`, from its options to its exit code.

use canary_record::names::EndedBy;

use super::session::{Job, Session};
use super::usable;
use crate::api::Stop;
use crate::cli::WitnessArgs;
use crate::run;
use crate::witness::{self, ClusterWitness, Witness};

/// A witness on every node of a cluster, for a time or until a signal; what each had seen by then is
/// in the result.
pub async fn watch(job: Job<'_>, args: &WitnessArgs) -> anyhow::Result<ClusterWitness> {
    let (client, say) = (job.client, job.say);
    let mut session = Session::begin(job, &args.cluster, witness::needs).await?;
    let (nodes, mut reasons) = usable(client, args.nodes.as_deref()).await?;
    let ground = session.ground().await?;
    let mut witness = Witness::new(&ground, &nodes);
    let done = session.until(witness.go(args.duration, args.cluster.timeout, say)).await;
    // No pod has anything to tell.
    let found = if let Err(Stop::Image { .. } | Stop::Refused(_)) = &done {
        Ok(Vec::new())
    } else {
        say("results");
        let early = !matches!(done, Ok(EndedBy::Completed));
        let ended = || Err(Stop::Refused("ended before the results were read".to_owned()));
        session.or(witness.collect(early)).await.unwrap_or_else(ended)
    };
    let nothing = |e: &Stop| !matches!(e, Stop::Api(_));
    let record = session.close(&ground, "witness", done, nothing, &mut reasons).await?;
    let found = found.unwrap_or_else(|e| {
        reasons.push(format!("results could not be read: {e}"));
        Vec::new()
    });
    if let Some(dir) = &args.cluster.save {
        let known = found.iter().filter_map(|(node, r)| Some((node, r.as_ref().ok()?)));
        for (node, result) in known {
            run::save(dir, &format!("{node}.witness.json"), result)?;
        }
    }
    let cluster = session.job.cluster;
    Ok(ClusterWitness::new(record, cluster, &found, &witness.names, reasons))
}
