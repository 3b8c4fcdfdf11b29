//! One wave of `diagnose`: Services, servers and clients of some nodes, and what they found.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use canary_record::names::Verdict;
use canary_record::result::load::LoadResult;
use canary_record::result::observe::{NodeShown, ObserveResult, ProxySource};
use canary_record::result::{self, ReadError};
use canary_wire::segment::Family;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use serde::Serialize;
use tokio::time::Instant;

use super::{Allowed, unproved};
use crate::api::{PARALLEL, Stop, Watch};
use crate::cli::DiagnoseArgs;
use crate::objects::{self, Target, client_name, server_name, service_name};
use crate::plan::{self, From, Front, Member, Path};
use crate::pods::{Container, Seen};
use crate::run::{self, Folder, Ground, Refused};
use crate::verdict::{FamilyRow, Found, NodeRow, ToServer, family_row, path_row};

/// One path that will be tried, or why not.
#[derive(Debug)]
struct Try {
    path: Path,
    family: Family,
    /// The row's node, the client's and the server's, as places in the wave.
    row: usize,
    client: usize,
    server: usize,
    /// Where the client goes, and one that forges; the pod's own address is known later.
    target: Result<Option<(SocketAddr, SocketAddr)>, String>,
}

pub(super) struct Wave<'a> {
    pub(super) ground: &'a Ground,
    pub(super) args: &'a DiagnoseArgs,
    pub(super) folder: &'a Folder,
    pub(super) allowed: &'a Allowed,
    /// kube-proxy's mode by its configuration.
    pub(super) configured: Option<&'a str>,
    pub(super) families: &'a [Family],
    pub(super) members: &'a [Member],
}

pub(super) const FRONTS: [Front; 3] = [Front::ClusterIp, Front::NodePort, Front::NodePortLocal];
const CLIENTS: [From; 2] = [From::Pod, From::Host];
const NO_SERVER: &str = "cannot start its clients: no server that it could connect to was started";

impl Wave<'_> {
    pub(super) async fn go(
        &self,
        watch: &mut Watch,
        say: &dyn Fn(&str),
    ) -> Result<Vec<NodeRow>, Stop> {
        let deadline = Instant::now() + self.args.cluster.timeout;
        say("Services");
        let services = self.services().await?;
        let tries = self.tries(&services);
        let mut refused = Refused::new();
        say("servers");
        let pods = (0..self.members.len()).flat_map(|place| {
            [Some(self.server_pod(place, &tries)), self.host_server_pod(place, &tries)]
        });
        let mut names = self.make(&mut refused, pods.flatten().collect()).await?;
        watch.each(&names, deadline, &|_| {}, started).await?;
        say("clients");
        names.extend(self.clients(false, &mut refused, &tries, &watch.pods).await?);
        watch.each(&names, deadline, say, over).await?;
        if self.allowed.no_forge.is_none() {
            // When the first direction is done: both at once would be too much for a small node.
            say("clients that forge");
            let names = self.clients(true, &mut refused, &tries, &watch.pods).await?;
            watch.each(&names, deadline, say, over).await?;
        }
        say("results");
        Ok(self.collect(&tries, &refused, &watch.pods).await)
    }

    /// Makes pods; gives the names of those that were not refused. A refusal is the pod's own, an API
    /// server that does not come back is the run's end.
    async fn make(&self, refused: &mut Refused, pods: Vec<Pod>) -> Result<Vec<String>, Stop> {
        let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
        refused.extend(self.ground.apply_pods(pods).await?);
        Ok(names.into_iter().filter(|name| !refused.contains_key(name)).collect())
    }

    /// Makes the clients at each place, those that forge or the others; gives their pods' names.
    async fn clients(
        &self,
        forge: bool,
        refused: &mut Refused,
        tries: &[Try],
        pods: &BTreeMap<String, Seen>,
    ) -> Result<Vec<String>, Stop> {
        let mut all = Vec::new();
        for (place, on) in self.members.iter().enumerate() {
            for from in CLIENTS {
                let targets = self.targets(forge, place, from, tries, pods);
                if targets.is_empty() && (forge || from == From::Pod) {
                    refused.insert(client_name(forge, from, on.index), NO_SERVER.to_owned());
                } else {
                    let rules = self.allowed.rules;
                    all.push(self.ground.run.clients(forge, on, from, &targets, rules));
                }
            }
        }
        self.make(refused, all).await
    }

    /// The Services of every node by their names, with the addresses that they were given.
    async fn services(&self) -> Result<BTreeMap<String, Service>, Stop> {
        let size = self.members.len();
        let service = |place: usize, front: Front| {
            let here = |path: &Path| {
                (0..size).any(|r| plan::ends(*path, r, size).is_some_and(|(_, s)| s == place))
            };
            let paths: Vec<_> = Path::ALL.iter().copied().filter(here).collect();
            self.ground.run.service(front, self.members[place].index, &paths, self.families)
        };
        let all = (0..size).flat_map(|place| FRONTS.map(|front| service(place, front)));
        let made = self.ground.apply_all(all).await.into_iter();
        made.map(|(name, service)| Ok((name, service?))).collect()
    }

    fn tries(&self, services: &BTreeMap<String, Service>) -> Vec<Try> {
        let mut tries = Vec::new();
        for row in 0..self.members.len() {
            for path in Path::ALL {
                let Some((client, server)) = plan::ends(*path, row, self.members.len()) else {
                    continue;
                };
                for family in self.families {
                    let member = &self.members[server];
                    let service = services.get(&service_name(path.front(), member.index));
                    let target = if path.front() == Front::Pod {
                        Ok(None)
                    } else {
                        let node = member.node.address(*family);
                        let to = |port| objects::target(*path, *family, port, service, node, None);
                        to(path.port(*family))
                            .and_then(|server| Ok(Some((server, to(path.sink_port())?))))
                    };
                    tries.push(Try { path: *path, family: *family, row, client, server, target });
                }
            }
        }
        tries
    }

    fn server_pod(&self, place: usize, tries: &[Try]) -> Pod {
        let pods = |t: &&Try| t.server == place && t.path.front() != Front::Node;
        let here = tries.iter().filter(pods).filter(|t| t.target.is_ok());
        let paths: Vec<_> = here.clone().map(|t| (t.path, t.family)).collect();
        let hairpin: Vec<_> = here
            .filter(|t| t.path.from() == From::ServerPod)
            .filter_map(|t| t.target.as_ref().ok()?.map(|(to, sink)| (t.family, to, sink)))
            .collect();
        let forge = self.allowed.no_forge.is_none();
        self.ground.run.server(&self.members[place], &paths, &hairpin, forge)
    }

    /// The pod of servers on the node's network at `place`, where a path ends there.
    fn host_server_pod(&self, place: usize, tries: &[Try]) -> Option<Pod> {
        let here = |t: &&Try| t.server == place && t.path.front() == Front::Node;
        let here: Vec<_> = tries.iter().filter(here).filter(|t| t.target.is_ok()).collect();
        let first = here.first()?;
        let on = &self.members[place];
        let addresses: Vec<_> = here.iter().filter_map(|t| on.node.address(t.family)).collect();
        let clients = &self.members[first.client].node.addresses;
        Some(self.ground.run.host_server(on, &addresses, clients))
    }

    /// What the clients at `place` connect to: servers that run, or their sinks for those that forge.
    fn targets(
        &self,
        forge: bool,
        place: usize,
        side: From,
        tries: &[Try],
        pods: &BTreeMap<String, Seen>,
    ) -> Vec<Target> {
        let here = tries.iter().filter(|t| t.client == place && t.path.from() == side);
        here.filter_map(|t| {
            let server = pods.get(&server_name(t.path.front(), self.members[t.server].index))?;
            let own = server.addresses.iter().copied().find(|a| Family::of(*a) == t.family);
            let at = |port| objects::target(t.path, t.family, port, None, None, own).ok();
            let (to, sink) = match t.target.as_ref().ok()? {
                Some(both) => *both,
                None => (at(t.path.port(t.family))?, at(t.path.sink_port())?),
            };
            started(server).then_some((t.path, t.family, if forge { sink } else { to }))
        })
        .collect()
    }

    /// The rows of every node, from the last line of each container's log.
    async fn collect(
        &self,
        tries: &[Try],
        refused: &Refused,
        pods: &BTreeMap<String, Seen>,
    ) -> Vec<NodeRow> {
        let found = stream::iter(tries.iter().filter(|t| t.target.is_ok()).map(|t| async move {
            let (server, client) = (&self.members[t.server], &self.members[t.client]);
            let (from, path, family) = (t.path.from(), t.path, t.family);
            let name = objects::client(false, path, family);
            let up_name = objects::client(true, path, family);
            let (pod, container) =
                (server_name(path.front(), server.index), objects::server(path, family));
            let boom = self.document(&pod, &container, refused, pods, result::read).await;
            self.save(t, &format!("{name}.boom-server.json"), &boom);
            let pod = client_name(false, from, client.index);
            let plain = self.document(&pod, &name, refused, pods, LoadResult::read).await;
            self.save(t, &format!("{name}.load-client.json"), &plain);
            let pod = client_name(true, from, client.index);
            let up = match &self.allowed.no_forge {
                Some(why) => Err(format!("untried: {why}")),
                None => self.document(&pod, &up_name, refused, pods, LoadResult::read).await,
            };
            self.save(t, &format!("{up_name}.load-client.json"), &up);
            let mut passed = vec![client.node.name.clone()];
            if t.client != t.server {
                passed.push(server.node.name.clone());
            }
            let row = path_row(t.path, t.family, passed, &boom, &plain);
            (t.row, row.with(ToServer::of(t.path, t.family, &up)))
        }))
        .buffered(PARALLEL)
        .collect::<Vec<_>>()
        .await;
        let shown: Vec<NodeShown> = stream::iter(self.members.iter().map(|m| async move {
            let pod = client_name(false, From::Host, m.index);
            let read = result::read::<ObserveResult>;
            let facts = self.document(&pod, objects::FACTS, refused, pods, read).await;
            let mut shown = facts.map(|f| f.node).unwrap_or_default();
            if let Some(mode) = self.configured {
                shown.sign(ProxySource::ConfigMap, mode.to_owned());
            }
            shown
        }))
        .buffered(PARALLEL)
        .collect()
        .await;
        let mut rows = Vec::new();
        for (place, (m, shown)) in self.members.iter().zip(shown).enumerate() {
            let of = |family: &Family| -> FamilyRow {
                let paths = found.iter().filter(|(row, p)| *row == place && p.family == *family);
                let paths = paths.map(|(_, p)| p.clone()).collect();
                let not = tries.iter().filter(|t| t.row == place && t.family == *family);
                let not = not.filter_map(|t| {
                    Some(format!("{} not tried: {}", t.path, t.target.as_ref().err()?))
                });
                family_row(*family, paths, &not.collect::<Vec<_>>())
            };
            let mut node = unproved(&m.node, String::new());
            node.families = self.families.iter().map(of).collect();
            node.verdict = Verdict::worst(node.families.iter().map(|f| f.verdict));
            node.shown = shown;
            node.reasons.clear();
            let own = pods.get(&server_name(Front::Pod, m.index)).into_iter();
            let has = plan::families(own.flat_map(|p| p.addresses.iter().copied()));
            for family in has.iter().filter(|f| !self.families.contains(f)) {
                node.reasons.push(format!("pods have {family} addresses; {family} was not tried"));
                node.verdict = Verdict::worst([node.verdict, Verdict::Inconclusive]);
            }
            rows.push(node);
        }
        rows
    }

    /// A container's result: the last line of its log.
    async fn document<T>(
        &self,
        pod: &str,
        container: &str,
        refused: &Refused,
        pods: &BTreeMap<String, Seen>,
        read: fn(&[u8]) -> Result<T, ReadError>,
    ) -> Found<T> {
        if let Some(why) = refused.get(pod) {
            return Err(why.clone());
        }
        let seen = pods.get(pod).ok_or("its pod was never seen")?;
        let trouble = seen.trouble.as_ref().map(ToString::to_string);
        let code = match seen.containers.get(container) {
            Some(Container::Ended(code)) => *code,
            other => {
                let state = match other {
                    Some(Container::Running) => "it did not end in time",
                    Some(_) => "it did not start in time",
                    None => "it is not in its pod",
                };
                return Err(trouble.unwrap_or_else(|| state.to_owned()));
            }
        };
        // What was injected is measured in the node's place, however well it ended.
        if let Some(why) = trouble.filter(|w| w.contains("was injected")) {
            return Err(why);
        }
        let log = self.ground.tail(pod, container).await.map_err(|e| e.to_string())?;
        run::document(&log, read).map_err(|why| format!("it ended with status {code} and {why}"))
    }

    /// Keeps a document of a try, where it is to be kept and there.
    fn save<T: Serialize>(&self, t: &Try, file: &str, document: &Found<T>) {
        if let Ok(document) = document {
            self.folder.save(&self.members[t.row].node.name, file, document);
        }
    }

    /// Deletes the wave's pods and Services, so that node ports and the watch stay bounded.
    pub(super) async fn clear(&self) -> Result<(), Stop> {
        let pods = self.members.iter().flat_map(|m| {
            let servers = [Front::Pod, Front::Node].map(|front| server_name(front, m.index));
            let clients =
                [false, true].map(|forge| CLIENTS.map(|from| client_name(forge, from, m.index)));
            servers.into_iter().chain(clients.into_iter().flatten())
        });
        self.ground.delete::<Pod>(pods).await?;
        let services = self.members.iter().flat_map(|m| FRONTS.map(|f| service_name(f, m.index)));
        self.ground.delete::<Service>(services).await
    }
}

/// Every container has ended but the one that serves whoever comes.
fn over(pod: &Seen) -> bool {
    let served = |(name, state): (&String, &Container)| {
        name == objects::SINK || matches!(state, Container::Ended(_))
    };
    !pod.containers.is_empty() && pod.containers.iter().all(served)
}

/// Every container runs, or has ended, and the address is known; or it never will.
fn started(pod: &Seen) -> bool {
    pod.ended
        || pod.trouble.is_some()
        || (!pod.addresses.is_empty()
            && !pod.containers.is_empty()
            && pod.containers.values().all(|c| *c != Container::Waiting))
}
