//! The API server: calls that outlast its short absences, what is said of an absence, and a watch of a
//! run's pods. The one place where a call is repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::time::Instant;

use crate::pods::{self, Seen, Trouble};

/// How long the API server may be away before a call is given up.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The longest single call.
const CALL: Duration = Duration::from_secs(20);
/// Calls in flight at once.
pub const PARALLEL: usize = 32;
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
                let mut why = e.to_string();
                let mut source = std::error::Error::source(e);
                while let Some(s) = source {
                    let text = s.to_string();
                    if !why.contains(&text) {
                        why = format!("{why}: {text}");
                    }
                    source = s.source();
                }
                (why, None)
            }
        };
        Self { what: what.to_string(), why, code }
    }
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
pub async fn call<T>(
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

/// Whether the API server is there while a run lasts, asked at intervals: a watch alone is as silent
/// when nothing happens as when nobody is there.
#[derive(Debug)]
pub struct Pulse {
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
    #[must_use]
    pub fn begin(client: &Client) -> Self {
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
    #[must_use]
    pub fn missed(&self) -> Option<String> {
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
pub struct Watch<'a> {
    events: std::pin::Pin<Box<dyn Stream<Item = watcher::Result<Event<Pod>>> + Send + 'a>>,
    /// Each pod by its name.
    pub pods: BTreeMap<String, Seen>,
    /// Pods that were there and are gone, until the list is begun anew.
    listed: Option<Vec<String>>,
    /// How often the watch had to be begun anew after an error, and the last error.
    pub broken: Option<(u32, String)>,
}

/// Why waiting ended without what was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gave {
    /// The deadline came.
    Deadline,
    /// An image that no pod can have.
    Image {
        /// Its name.
        image: String,
        /// The kubelet's words.
        why: String,
    },
}

impl Watch<'_> {
    /// Watches the pods with `labels` in `namespace`.
    #[must_use]
    pub fn begin(client: &Client, namespace: &str, labels: &str) -> Self {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        // An any-version list is served from the API server's cache; 500 pods a page bound the memory.
        let config = watcher::Config::default().labels(labels).any_semantic();
        let events = watcher(api, config).default_backoff();
        Self { events: Box::pin(events), pods: BTreeMap::new(), listed: None, broken: None }
    }

    /// Takes events until `done`, the deadline, or an image that cannot be had.
    pub async fn until(
        &mut self,
        deadline: Instant,
        mut done: impl FnMut(&BTreeMap<String, Seen>) -> bool,
    ) -> Result<(), Gave> {
        loop {
            if let Some(Trouble::Image { image, why }) = self
                .pods
                .values()
                .filter_map(|p| p.trouble.as_ref())
                .find(|t| matches!(t, Trouble::Image { .. }))
            {
                return Err(Gave::Image { image: image.clone(), why: why.clone() });
            }
            if self.listed.is_none() && done(&self.pods) {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, self.events.next()).await {
                Err(_) => return Err(Gave::Deadline),
                Ok(Some(event)) => self.take(event),
                // kube's watcher never ends; a mock's may.
                Ok(None) => tokio::time::sleep_until(deadline).await,
            }
        }
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
                for (_, gone) in self.pods.iter_mut().filter(|(n, _)| !listed.contains(n)) {
                    deleted(gone);
                }
            }
            Ok(Event::Apply(pod)) => {
                self.pods.insert(name(&pod), pods::look(&pod));
            }
            Ok(Event::Delete(pod)) => {
                let seen = self.pods.entry(name(&pod)).or_insert_with(|| pods::look(&pod));
                deleted(seen);
            }
            Err(e) => {
                let n = self.broken.as_ref().map_or(0, |(n, _)| *n);
                self.broken = Some((n + 1, e.to_string()));
            }
        }
    }
}

/// A pod that is gone keeps what was seen of it, and will not go on.
fn deleted(pod: &mut Seen) {
    pod.ended = true;
    pod.trouble.get_or_insert_with(|| Trouble::Pod("the pod was deleted".to_owned()));
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
