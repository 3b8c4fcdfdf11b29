//! The API server: calls that outlast its short absences, what is said of an absence, and a watch of a
//! run's pods. The one place where a call is repeated.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::pods::{self, Seen, Trouble};

/// How long the API server may be away before a call is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The longest single call.
const CALL: Duration = Duration::from_secs(20);
/// Calls in flight at once.
pub(crate) const PARALLEL: usize = 32;
/// How often a [`Pulse`] asks, and how long it waits for the answer.
const BEAT: Duration = Duration::from_secs(2);
/// The shortest absence that weakens a result: a connection that is made anew is none.
const AWAY: Duration = Duration::from_secs(10);

/// A call that failed for good.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {why}")]
pub struct ApiError {
    /// The operation and its object.
    pub what: String,
    /// The API server's words, or the connection's.
    pub why: String,
    /// The HTTP status, where there was an answer.
    pub code: Option<u16>,
}

impl ApiError {
    fn new(what: &dyn fmt::Display, e: &kube::Error) -> Self {
        let (why, code) = match e {
            kube::Error::Api(s) => (s.message.clone(), Some(s.code)),
            e => {
                // The outermost message of a transport error names no cause.
                let sources = std::iter::successors(e.source(), |s| Error::source(*s));
                let why = sources.map(ToString::to_string).fold(e.to_string(), |why, text| {
                    if why.contains(&text) { why } else { format!("{why}: {text}") }
                });
                (why, None)
            }
        };
        Self { what: what.to_string(), why, code }
    }

    /// Why the API server refuses what was asked for; any other failure is a run's end.
    pub fn refusal(self) -> Result<String, Stop> {
        if self.code.is_some_and(|c| c < 500) { Ok(self.to_string()) } else { Err(self.into()) }
    }
}

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// A call failed for good, or the API server did not come back.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Something that must hold before anything is measured does not: a right, an image.
    #[error("{0}")]
    Refused(String),
    /// A file of results.
    #[error("cannot write {0}: {1}")]
    Save(String, #[source] io::Error),
}

impl Stop {
    /// What a file of results that cannot be written ends with.
    pub(crate) fn unsaved(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.display().to_string();
        move |e| Self::Save(path, e)
    }
}

/// The nodes cannot have an image; how it gets to them.
fn no_image(image: &str, why: &str) -> Stop {
    let name = image.rsplit('/').next().unwrap_or(image);
    Stop::Refused(format!(
        "image {image} cannot be had: {why}\n  push it (make images REGISTRY=...) and name it: --registry REGISTRY, \
         or load it into the nodes: make load-images CLUSTER=kind|minikube ({name})"
    ))
}

/// True for what passes by itself: no answer, too many requests, a server that starts or stops.
fn passes(e: &kube::Error) -> bool {
    match e {
        kube::Error::Api(s) => s.code == 429 || s.code >= 500,
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// Calls until there is an answer that will not change by itself, [`PATIENCE`] at most. `what`
/// completes "cannot ...". The call must be safe to repeat.
pub(crate) async fn call<T>(
    what: impl fmt::Display,
    mut once: impl AsyncFnMut() -> kube::Result<T>,
) -> Result<T, ApiError> {
    let until = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(200);
    loop {
        let error = match tokio::time::timeout(CALL, once()).await {
            Ok(Ok(v)) => return Ok(v),
            Ok(Err(e)) if !passes(&e) => return Err(ApiError::new(&what, &e)),
            Ok(Err(e)) => ApiError::new(&what, &e),
            Err(_) => ApiError {
                what: what.to_string(),
                why: format!("no answer within {} s", CALL.as_secs()),
                code: None,
            },
        };
        if Instant::now() + pause >= until {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Takes every object that `params` choose. In pages, which bound the memory.
pub(crate) async fn each<K>(
    api: &Api<K>,
    mut params: ListParams,
    what: &str,
    mut take: impl FnMut(&K),
) -> Result<(), ApiError>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    loop {
        let page = call(format!("list {what}"), async || api.list(&params).await).await?;
        page.items.iter().for_each(&mut take);
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

/// Whether the API server is there while a run lasts, asked at intervals: a watch alone is as silent
/// when nothing happens as when nobody is there.
#[derive(Debug)]
pub(crate) struct Pulse {
    absence: Arc<Mutex<Absence>>,
    task: tokio::task::JoinHandle<()>,
}

/// How long the API server was away.
#[derive(Debug, Default)]
struct Absence {
    /// When the first of the last calls without an answer began.
    since: Option<Instant>,
    longest: Duration,
}

impl Absence {
    /// Takes a call that began at `begun` and ended at `now`.
    fn take(&mut self, begun: Instant, now: Instant, answered: bool) {
        match self.since {
            None if !answered => self.since = Some(begun),
            Some(since) if answered => {
                self.longest = self.longest.max(now - since);
                self.since = None;
            }
            _ => {}
        }
    }

    fn longest(&self, now: Instant) -> Duration {
        self.since.map_or(self.longest, |since| self.longest.max(now - since))
    }
}

impl Pulse {
    /// Asks until it is dropped.
    pub(crate) fn begin(client: &Client) -> Self {
        let (absence, client) = (Arc::<Mutex<Absence>>::default(), client.clone());
        let seen = Arc::clone(&absence);
        let task = tokio::spawn(async move {
            loop {
                let begun = Instant::now();
                let answer = tokio::time::timeout(BEAT, client.apiserver_version()).await;
                let answered = answer.is_ok_and(|a| match a {
                    Err(kube::Error::Api(s)) => s.code < 500,
                    other => other.is_ok(),
                });
                let now = Instant::now();
                seen.lock().unwrap_or_else(PoisonError::into_inner).take(begun, now, answered);
                tokio::time::sleep(BEAT).await;
            }
        });
        Self { absence, task }
    }

    /// What is not known because the API server was away; none where it was not.
    pub(crate) fn missed(&self) -> Option<String> {
        let absence = self.absence.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = absence.longest(Instant::now());
        (longest >= AWAY).then(|| {
            format!(
                "the API server did not answer for {} s: what nodes, pods and Services did in that time was not seen",
                longest.as_secs()
            )
        })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The pods of a run, as a watch tells them. A watch that breaks or expires (410) is begun anew
/// with a list, by kube's watcher.
pub struct Watch {
    events: BoxStream<'static, watcher::Result<Event<Pod>>>,
    /// Each pod by its name.
    pub pods: BTreeMap<String, Seen>,
    /// Pods that were there and are gone, until the list is begun anew.
    listed: Option<Vec<String>>,
    /// How often the watch had to be begun anew after an error, and the last error.
    pub broken: Option<(u32, String)>,
}

impl Watch {
    /// Watches the pods with `labels` in `namespace`.
    pub fn begin(client: &Client, namespace: &str, labels: &str) -> Self {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        // An any-version list is served from the API server's cache; 500 pods a page bound the memory.
        let config = watcher::Config::default().labels(labels).any_semantic();
        let events = watcher(api, config).default_backoff();
        Self { events: events.boxed(), pods: BTreeMap::new(), listed: None, broken: None }
    }

    /// Takes events until `done` or the deadline; an image that cannot be had ends the run.
    pub async fn until(
        &mut self,
        deadline: Instant,
        mut done: impl FnMut(&BTreeMap<String, Seen>) -> bool,
    ) -> Result<(), Stop> {
        loop {
            let no_image = |pod: &Seen| match &pod.trouble {
                Some(Trouble::Image(image, why)) => Some(no_image(image, why)),
                _ => None,
            };
            if let Some(stop) = self.pods.values().find_map(no_image) {
                return Err(stop);
            }
            if self.listed.is_none() && done(&self.pods) {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, self.events.next()).await {
                Err(_) => return Ok(()),
                Ok(Some(event)) => self.take(event),
                // kube's watcher never ends; a mock's may.
                Ok(None) => tokio::time::sleep_until(deadline).await,
            }
        }
    }

    /// Waits until each of `names` has ended, is in trouble or is `done`, or for the deadline: what is
    /// there then is collected. Gives how many are.
    pub async fn each(
        &mut self,
        names: &[String],
        deadline: Instant,
        say: &dyn Fn(&str),
        done: impl Fn(&Seen) -> bool,
    ) -> Result<usize, Stop> {
        let over = |p: &Seen| p.ended || p.trouble.is_some() || done(p);
        let of = |pods: &BTreeMap<String, Seen>| {
            names.iter().filter(|n| pods.get(*n).is_some_and(over)).count()
        };
        let all = |pods: &BTreeMap<String, Seen>| {
            let left = names.len() - of(pods);
            say(&format!("{left} of {} pods at work", names.len()));
            left == 0
        };
        self.until(deadline, all).await?;
        Ok(of(&self.pods))
    }

    fn take(&mut self, event: watcher::Result<Event<Pod>>) {
        let name = |p: &Pod| p.metadata.name.clone().unwrap_or_default();
        match event {
            Ok(Event::Init) => self.listed = Some(Vec::new()),
            Ok(Event::InitApply(pod)) => {
                if let Some(listed) = &mut self.listed {
                    listed.push(name(&pod));
                }
                self.pods.insert(name(&pod), pods::look(&pod));
            }
            Ok(Event::InitDone) => {
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.pods.iter_mut().filter(|(n, _)| !listed.contains(n));
                gone.for_each(|(_, pod)| pod.gone());
            }
            Ok(Event::Apply(pod)) => {
                self.pods.insert(name(&pod), pods::look(&pod));
            }
            Ok(Event::Delete(pod)) => {
                let seen = self.pods.entry(name(&pod)).or_insert_with(|| pods::look(&pod));
                seen.gone();
            }
            Err(e) => {
                let n = self.broken.as_ref().map_or(0, |(n, _)| *n);
                self.broken = Some((n + 1, e.to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An absence goes from the first call without an answer to the next answer, or to the present.
    #[test]
    fn an_absence_is_measured_from_its_first_call() {
        let begun = Instant::now();
        let at = |s| begun + Duration::from_secs(s);
        let mut absence = Absence::default();
        absence.take(at(0), at(0), true);
        assert_eq!(absence.longest(at(100)), Duration::ZERO);
        absence.take(at(100), at(102), false);
        absence.take(at(104), at(106), false);
        assert_eq!(absence.longest(at(110)), Duration::from_secs(10));
        absence.take(at(119), at(120), true);
        assert_eq!(absence.longest(at(300)), Duration::from_secs(20));
        absence.take(at(300), at(302), false);
        absence.take(at(304), at(304), true);
        assert_eq!(absence.longest(at(400)), Duration::from_secs(20));
    }
}
