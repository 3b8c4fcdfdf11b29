//! What every run in a cluster begins and ends with: who it is, what it may, and how it ended.

use canary_record::names::EndedBy;
use canary_record::result::{self, Clock, Config};
use kube::Client;

use crate::api::{Pulse, Stop};
use crate::cli::ClusterArgs;
use crate::objects::Run;
use crate::preflight::{self, Right};
use crate::report::Cluster;
use crate::run::Ground;

use super::{images, run_id};

/// A run that has every right that it needs.
#[derive(Debug)]
pub(super) struct Session {
    clock: Clock,
    /// Whose the objects are.
    run: Run,
    foreign: bool,
    replace: bool,
    pulse: Pulse,
}

impl Session {
    /// Begins a run. `needs` are its rights, in a namespace of its own or another.
    pub(super) async fn begin(
        client: &Client,
        cluster: &Cluster,
        args: &ClusterArgs,
        needs: fn(bool) -> Vec<Right>,
        say: &dyn Fn(&str),
    ) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let run = Run {
            id: run_id(),
            namespace: cluster.namespace.clone(),
            images: images(&args.images),
        };
        let foreign = args.namespace.is_some();
        say(&format!("context {}, namespace {}, run {}", cluster.context, run.namespace, run.id));
        preflight::permitted(client, &run.namespace, &needs(!foreign)).await?;
        Ok(Self { clock, run, foreign, replace: args.replace, pulse: Pulse::begin(client) })
    }

    /// Its namespace. What runs of other subcommands left is said, for they may be at work.
    pub(super) async fn ground(&self, client: &Client, say: &dyn Fn(&str)) -> Result<Ground, Stop> {
        let ground = Ground::take(client, &self.run, self.foreign, self.replace).await?;
        for (ns, run) in preflight::left_elsewhere(client, &self.run.namespace).await {
            say(&format!(
                "namespace {ns} is left of run {run}, or that run is at work: kubectl delete namespace {ns} removes it"
            ));
        }
        Ok(ground)
    }

    /// The run's end, when everything is read: what the API server's absence hid by then, and what of
    /// the run is left behind.
    pub(super) async fn end(
        &self,
        ground: &Ground,
        keep: bool,
        signalled: &mut impl AsyncFnMut() -> EndedBy,
        say: &dyn Fn(&str),
    ) -> Vec<String> {
        let missed = self.pulse.missed();
        missed.into_iter().chain(ground.end(keep, signalled, say).await).collect()
    }

    /// What its result says of it.
    #[must_use]
    pub(super) fn record(&self, program: &str, ended_by: EndedBy, config: Config) -> result::Run {
        self.clock.run(program, env!("CARGO_PKG_VERSION"), ended_by, config)
    }
}

/// How a run ended, and in `reasons` why before its time. Where `nothing` was measured, and the
/// mend is the user's, it is an error, with the first of what `left` says.
pub(super) fn ended(
    how: Result<EndedBy, Stop>,
    nothing: impl FnOnce(&Stop) -> bool,
    left: Vec<String>,
    reasons: &mut Vec<String>,
) -> anyhow::Result<EndedBy> {
    let by = match how {
        Ok(by) => by,
        Err(e) if nothing(&e) => {
            return Err(match left.into_iter().next() {
                Some(left) => anyhow::Error::from(e).context(left),
                None => e.into(),
            });
        }
        Err(e) => {
            reasons.push(format!("the run ended before its end: {e}"));
            EndedBy::Error
        }
    };
    reasons.extend(left);
    if matches!(by, EndedBy::Sigint | EndedBy::Sigterm) {
        reasons.push(format!("the run was ended by {by}"));
    }
    Ok(by)
}
