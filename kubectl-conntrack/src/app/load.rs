//! `load`, from its options to its exit code.

use anyhow::Context as _;
use canary_record::names::EndedBy;
use canary_record::result::load::LoadResult;

use super::session::{Job, Session};
use crate::api::Stop;
use crate::cli::LoadArgs;
use crate::load::{self, Load};
use crate::run;

/// A load on a cluster, until its end or a signal; what it made is removed either way, and what the
/// clients had counted by then is in the result.
pub async fn load(job: Job<'_>, args: &LoadArgs) -> anyhow::Result<LoadResult> {
    let say = job.say;
    let mut session = Session::begin(job, &args.cluster, load::needs).await?;
    let ground = session.ground().await?;
    let mut load = Load::new(&ground, args, "load-client");
    let done = session.until(load.go(say)).await;
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
    let mut reasons = Vec::new();
    let nothing = |_: &Stop| collected.results.is_empty();
    let record = session.close(&ground, "load", done, nothing, &mut reasons).await?;
    let why = reasons.join("; ");
    load::judged(collected, args, reasons, record)?
        .with_context(|| format!("no client left a result: {why}"))
}
