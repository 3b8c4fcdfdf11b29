//! What every run in a cluster begins and ends with: who it is, what it may, and how it ended.

use canary_record::names::EndedBy;
use canary_record::result::{self, Clock, Config};
use canary_runtime::shutdown::Shutdown;
use futures_util::StreamExt as _;
use futures_util::stream::{self, LocalBoxStream};
use kube::Client;

use crate::api::{Pulse, Stop};
use crate::cli::ClusterArgs;
use crate::objects::Run;
use crate::preflight::{self, Right};
use crate::report::Cluster;
use crate::run::{Folder, Ground};

/// What a subcommand is given beside its options.
pub struct Job<'a> {
    /// The API server.
    pub client: &'a Client,
    /// Which cluster.
    pub cluster: Cluster,
    /// The effective options, for the result.
    pub config: &'a Config,
    /// Signals to end, one after the other, without an end.
    pub signals: LocalBoxStream<'a, EndedBy>,
    /// Where its documents are kept.
    pub folder: Folder,
    /// Is told how far it is.
    pub say: &'a dyn Fn(&str),
}

/// SIGTERM and SIGINT, caught from here on.
pub fn signals() -> std::io::Result<LocalBoxStream<'static, EndedBy>> {
    let next = async |mut shutdown: Shutdown| Some((shutdown.signalled().await, shutdown));
    Ok(stream::unfold(Shutdown::catch()?, next).boxed_local())
}

/// A run that has every right that it needs.
pub struct Session<'a> {
    /// What it was given.
    pub job: Job<'a>,
    /// The signal that ended waiting, if one did.
    pub by: Option<EndedBy>,
    args: &'a ClusterArgs,
    clock: Clock,
    /// Whose the objects are.
    run: Run,
    pulse: Pulse,
}

impl<'a> Session<'a> {
    /// Begins a run. `needs` are its rights, in a namespace of its own or another.
    pub async fn begin(
        job: Job<'a>,
        args: &'a ClusterArgs,
        needs: fn(bool) -> Vec<Right>,
    ) -> anyhow::Result<Self> {
        let clock = Clock::start();
        // Unique, and a label's value.
        let id = format!("{}-{}", jiff::Timestamp::now().as_millisecond(), std::process::id());
        let namespace = job.cluster.namespace.clone();
        let run = Run { id, namespace, images: args.images.clone() };
        let (context, ns) = (&job.cluster.context, &run.namespace);
        (job.say)(&format!("context {context}, namespace {ns}, run {}", run.id));
        preflight::permitted(job.client, ns, &needs(args.namespace.is_none())).await?;
        let pulse = Pulse::begin(job.client);
        Ok(Self { job, by: None, args, clock, run, pulse })
    }

    /// Its namespace. What runs of other subcommands left is said, for they may be at work.
    pub async fn ground(&self) -> Result<Ground, Stop> {
        let (client, foreign) = (self.job.client, self.args.namespace.is_some());
        let ground = Ground::take(client, &self.run, foreign, self.args.replace).await?;
        for (ns, run) in preflight::left_elsewhere(client, &self.run.namespace).await {
            (self.job.say)(&format!(
                "namespace {ns} is left of run {run}, or that run is at work: kubectl delete namespace {ns} removes it"
            ));
        }
        Ok(ground)
    }

    /// Does `work`, until its end or a signal.
    pub async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            Some(by) = self.job.signals.next() => {
                self.by.get_or_insert(by);
                None
            }
        }
    }

    /// The same, and how that ended.
    pub(crate) async fn until(
        &mut self,
        work: impl Future<Output = Result<(), Stop>>,
    ) -> Result<EndedBy, Stop> {
        let done = self.or(work).await.unwrap_or(Ok(()));
        done.map(|()| self.by.unwrap_or(EndedBy::Completed))
    }

    /// The run's end, when everything is read: what the API server's absence hid by then, and what of
    /// the run is left behind.
    pub async fn end(&mut self, ground: &Ground) -> Vec<String> {
        let missed = self.pulse.missed();
        let left = ground.end(self.args.keep, &mut self.job.signals, self.job.say).await;
        missed.into_iter().chain(left).collect()
    }

    /// The same, and what the result of `subcommand` says of the run that ended `how`: in `reasons`
    /// why before its time. Where `nothing` was measured, and the mend is the user's, it is an error,
    /// with the first of what is left behind.
    pub(crate) async fn close(
        &mut self,
        ground: &Ground,
        subcommand: &str,
        how: Result<EndedBy, Stop>,
        nothing: impl FnOnce(&Stop) -> bool,
        reasons: &mut Vec<String>,
    ) -> anyhow::Result<result::Run> {
        let left = self.end(ground).await;
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
        let (program, config) = (format!("kubectl-conntrack {subcommand}"), self.job.config);
        Ok(self.clock.run(&program, env!("CARGO_PKG_VERSION"), by, config.clone()))
    }
}
