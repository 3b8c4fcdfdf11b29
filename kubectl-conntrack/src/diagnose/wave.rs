//! One wave of `diagnose`: Services, servers and clients of some nodes, and what they found.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use canary_record::names::Verdict;
use canary_record::result::boom::BoomResult;
use canary_record::result::load::LoadResult;
use canary_record::result::observe::{NodeShown, ObserveResult, ProxySource};
use canary_wire::segment::Family;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{Member, Options, unproved};
use crate::api::{ApiError, PARALLEL, Watch};
use crate::objects::{self, Run};
use crate::plan::{self, From, Front, Path};
use crate::pods::{Container, Seen, Trouble};
use crate::run::{self, Stop};
use crate::verdict::{FamilyRow, Found, NodeRow, ToServer, family_row, path_row, worst};

/// What is made for one node.
#[derive(Debug, Default)]
struct Made {
    services: Vec<Service>,
    /// Why its pods could not be made.
    refused: Option<String>,
}

impl Made {
    fn service(&self, front: Front, index: usize) -> Option<&Service> {
        let name = objects::service_name(front, index);
        self.services.iter().find(|s| s.metadata.name.as_deref() == Some(&name))
    }
}

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
    pub(super) client: &'a Client,
    pub(super) run: &'a Run,
    pub(super) options: &'a Options,
    pub(super) families: &'a [Family],
    pub(super) members: &'a [Member],
}

pub(super) const FRONTS: [Front; 3] = [Front::ClusterIp, Front::NodePort, Front::NodePortLocal];
const SIDES: [From; 3] = [From::ServerPod, From::Pod, From::Host];
const FORGING: [From; 2] = [From::Pod, From::Host];

impl Wave<'_> {
    pub(super) async fn go(
        &self,
        watch: &mut Watch<'_>,
        say: &dyn Fn(&str),
    ) -> Result<Vec<NodeRow>, Stop> {
        let deadline = Instant::now() + self.options.timeout;
        say("Services");
        let mut made = self.services().await?;
        let tries = self.tries(&made);
        say("servers");
        self.each(&mut made, |place| Ok(self.server_pod(place, &tries))).await?;
        let mut hosts: Vec<Made> = self.members.iter().map(|_| Made::default()).collect();
        self.each(&mut hosts, |place| self.host_server_pod(place, &tries)).await?;
        let servers: Vec<_> = self
            .running(&made, objects::server_name)
            .chain(self.running(&hosts, objects::host_server_name))
            .collect();
        let started = |pods: &BTreeMap<String, Seen>| {
            servers.iter().all(|name| pods.get(name).is_some_and(started))
        };
        self.wait(watch, deadline, started).await?;
        say("clients");
        let mut made_clients: Vec<Made> = self.members.iter().map(|_| Made::default()).collect();
        for side in [From::Pod, From::Host] {
            self.each(&mut made_clients, |place| {
                let targets = self.targets(place, side, &tries, &watch.pods);
                if targets.is_empty() && side == From::Pod {
                    return Err("no server that it could connect to was started".to_owned());
                }
                let plain: Vec<_> = targets.iter().map(|(p, f, to, _)| (*p, *f, *to)).collect();
                let m = &self.members[place];
                Ok(self.run.clients(&m.node.name, m.index, side, &plain, self.options.rules))
            })
            .await?;
        }
        let client = |side| move |index| objects::client_name(side, index);
        let expected: Vec<String> = servers
            .iter()
            .cloned()
            .chain(self.running(&made_clients, client(From::Pod)))
            .chain(self.running(&made_clients, client(From::Host)))
            .collect();
        let ended = |pods: &BTreeMap<String, Seen>| {
            let over = |n: &String| pods.get(n).is_some_and(over);
            let left = expected.iter().filter(|n| !over(n)).count();
            say(&format!("{left} of {} pods at work", expected.len()));
            left == 0
        };
        self.wait(watch, deadline, ended).await?;
        let forging = self.forge(watch, deadline, &tries, say).await?;
        say("results");
        self.collect(&tries, [&made, &hosts], &made_clients, &forging, &watch.pods).await
    }

    /// The names of the pods that were not refused.
    fn running<'b>(
        &'b self,
        made: &'b [Made],
        name: impl Fn(usize) -> String + 'b,
    ) -> impl Iterator<Item = String> + 'b {
        let all = self.members.iter().zip(made).filter(|(_, made)| made.refused.is_none());
        all.map(move |(m, _)| name(m.index))
    }

    /// Why the other direction is not tried; none where it is.
    fn untried(&self) -> Option<String> {
        self.options.no_forge.as_ref().map(|why| format!("untried: {why}"))
    }

    /// The other direction, when the first one is done: both at once would be too much for a small node.
    async fn forge(
        &self,
        watch: &mut Watch<'_>,
        deadline: Instant,
        tries: &[Try],
        say: &dyn Fn(&str),
    ) -> Result<Vec<Made>, Stop> {
        let refused = self.untried();
        let made = || Made { refused: refused.clone(), ..Made::default() };
        let mut made: Vec<Made> = self.members.iter().map(|_| made()).collect();
        if refused.is_some() {
            return Ok(made);
        }
        say("clients that forge");
        for side in FORGING {
            self.each(&mut made, |place| {
                let targets = self.targets(place, side, tries, &watch.pods);
                let sinks: Vec<_> = targets.iter().map(|(p, f, _, sink)| (*p, *f, *sink)).collect();
                if sinks.is_empty() {
                    return Err("no server that it could connect to was started".to_owned());
                }
                let m = &self.members[place];
                Ok(self.run.forging_clients(&m.node.name, m.index, side, &sinks))
            })
            .await?;
        }
        let names: Vec<_> = self
            .members
            .iter()
            .zip(&made)
            .filter(|(_, made)| made.refused.is_none())
            .flat_map(|(m, _)| FORGING.map(|side| objects::forging_client_name(side, m.index)))
            .collect();
        let ended = |pods: &BTreeMap<String, Seen>| {
            let left = names.iter().filter(|n| !pods.get(*n).is_some_and(over)).count();
            say(&format!("{left} of {} pods at work", names.len()));
            left == 0
        };
        self.wait(watch, deadline, ended).await?;
        Ok(made)
    }

    /// Waits; a deadline is no end of the run: what is there is collected.
    async fn wait(
        &self,
        watch: &mut Watch<'_>,
        deadline: Instant,
        done: impl FnMut(&BTreeMap<String, Seen>) -> bool,
    ) -> Result<(), Stop> {
        run::waited(watch.until(deadline, done).await)
    }

    /// The Services of every node, with the addresses that they were given.
    async fn services(&self) -> Result<Vec<Made>, Stop> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let size = self.members.len();
        let one = |place: usize, front: Front| {
            let api = api.clone();
            async move {
                let paths: Vec<_> = Path::ALL
                    .iter()
                    .copied()
                    .filter(|p| {
                        (0..size).any(|r| plan::ends(*p, r, size).is_some_and(|(_, s)| s == place))
                    })
                    .collect();
                let service =
                    self.run.service(front, self.members[place].index, &paths, self.families);
                run::apply(&api, &service, false).await.map(|s| (place, s))
            }
        };
        let all = (0..size).flat_map(|place| FRONTS.map(|front| (place, front)));
        let done: Vec<_> = stream::iter(all.map(|(place, front)| one(place, front)))
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut made: Vec<Made> = self.members.iter().map(|_| Made::default()).collect();
        for service in done {
            let (place, service) = service.map_err(Stop::Api)?;
            made[place].services.push(service);
        }
        Ok(made)
    }

    fn tries(&self, made: &[Made]) -> Vec<Try> {
        let mut tries = Vec::new();
        for row in 0..self.members.len() {
            for path in Path::ALL {
                let Some((client, server)) = plan::ends(*path, row, self.members.len()) else {
                    continue;
                };
                for family in self.families {
                    let member = &self.members[server];
                    let service = made[server].service(path.front(), member.index);
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
        let m = &self.members[place];
        let forge = self.options.no_forge.is_none();
        self.run.server(&m.node.name, m.index, &paths, &hairpin, forge)
    }

    /// The pod of servers on the node's network at `place`, where a path ends there.
    fn host_server_pod(&self, place: usize, tries: &[Try]) -> Result<Pod, String> {
        let here = |t: &&Try| t.server == place && t.path.front() == Front::Node;
        let here: Vec<_> = tries.iter().filter(here).filter(|t| t.target.is_ok()).collect();
        let first = here.first().ok_or("no path ends there")?;
        let node = &self.members[place].node;
        let addresses: Vec<_> = here.iter().filter_map(|t| node.address(t.family)).collect();
        let clients = &self.members[first.client].node.addresses;
        Ok(self.run.host_server(&node.name, self.members[place].index, &addresses, clients))
    }

    /// What the clients at `place` connect to: servers that run, and their sinks.
    fn targets(
        &self,
        place: usize,
        side: From,
        tries: &[Try],
        pods: &BTreeMap<String, Seen>,
    ) -> Vec<(Path, Family, SocketAddr, SocketAddr)> {
        let here = tries.iter().filter(|t| t.client == place && t.path.from() == side);
        here.filter_map(|t| {
            let server = pods.get(&objects::server_of(t.path, self.members[t.server].index))?;
            let own = server.addresses.iter().copied().find(|a| Family::of(*a) == t.family);
            let at = |port| objects::target(t.path, t.family, port, None, None, own).ok();
            let (to, sink) = match t.target.as_ref().ok()? {
                Some(both) => *both,
                None => (at(t.path.port(t.family))?, at(t.path.sink_port())?),
            };
            started(server).then_some((t.path, t.family, to, sink))
        })
        .collect()
    }

    /// Applies a pod for each place for which nothing was refused. A refusal is the node's own,
    /// an API server that does not come back is the run's end.
    async fn each(
        &self,
        made: &mut [Made],
        pod: impl Fn(usize) -> Result<Pod, String>,
    ) -> Result<(), Stop> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let todo: Vec<_> = (0..made.len()).filter(|p| made[*p].refused.is_none()).collect();
        let applied: Vec<(usize, Result<(), ApiError>)> =
            stream::iter(todo.into_iter().map(|place| {
                let (api, pod) = (api.clone(), pod(place));
                async move {
                    let done = match pod {
                        Ok(pod) => run::apply(&api, &pod, false).await.map(drop),
                        Err(why) => Err(ApiError {
                            what: "start its clients".to_owned(),
                            why,
                            code: Some(0),
                        }),
                    };
                    (place, done)
                }
            }))
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        for (place, done) in applied {
            match done {
                Ok(()) => {}
                Err(e) if e.code.is_some_and(|c| c < 500) => {
                    made[place].refused = Some(e.to_string());
                }
                Err(e) => return Err(Stop::Api(e)),
            }
        }
        Ok(())
    }

    /// The rows of every node, from the last line of each container's log.
    async fn collect(
        &self,
        tries: &[Try],
        [made, hosts]: [&[Made]; 2],
        clients: &[Made],
        forging: &[Made],
        pods: &BTreeMap<String, Seen>,
    ) -> Result<Vec<NodeRow>, Stop> {
        let found = stream::iter(tries.iter().filter(|t| t.target.is_ok()).map(|t| async move {
            let (server, client) = (&self.members[t.server], &self.members[t.client]);
            let name = objects::container(t.path, t.family);
            let ends = (
                self.document::<BoomResult>(
                    &objects::server_of(t.path, server.index),
                    &format!("server-{name}"),
                    match t.path.front() {
                        Front::Node => hosts[t.server].refused.as_deref(),
                        _ => made[t.server].refused.as_deref(),
                    },
                    pods,
                )
                .await,
                self.document::<LoadResult>(
                    &objects::client_name(t.path.from(), client.index),
                    &name,
                    clients[t.client].refused.as_deref(),
                    pods,
                )
                .await,
            );
            self.save(t, &ends)?;
            let mut passed = vec![client.node.name.clone()];
            if t.client != t.server {
                passed.push(server.node.name.clone());
            }
            let row = path_row(t.path, t.family, passed, &ends.0, &ends.1);
            let up = self.to_server(t, forging, pods).await;
            self.save_to_server(t, &up)?;
            Ok::<_, Stop>((t.row, row.with(ToServer::of(t.path, t.family, &up))))
        }))
        .buffered(PARALLEL)
        .try_collect::<Vec<_>>()
        .await?;
        let shown: Vec<NodeShown> = stream::iter(self.members.iter().map(|m| async move {
            let pod = objects::client_name(From::Host, m.index);
            let facts = self.document::<ObserveResult>(&pod, objects::FACTS, None, pods).await;
            let mut shown = facts.map(|f| f.node).unwrap_or_default();
            if let Some(mode) = &self.options.configured {
                shown.sign(ProxySource::ConfigMap, mode.clone());
            }
            shown
        }))
        .buffered(PARALLEL)
        .collect()
        .await;
        let families = self.families;
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
            node.families = families.iter().map(of).collect();
            node.verdict = worst(node.families.iter().map(|f| f.verdict));
            node.shown = shown;
            node.reasons.clear();
            let own = pods.get(&objects::server_name(m.index)).into_iter();
            let has = plan::families(own.flat_map(|p| p.addresses.iter().copied()));
            for family in has.iter().filter(|f| !families.contains(f)) {
                node.reasons.push(format!("pods have {family} addresses; {family} was not tried"));
                node.verdict = worst([node.verdict, Verdict::Inconclusive]);
            }
            rows.push(node);
        }
        Ok(rows)
    }

    /// A container's result: the last line of its log.
    async fn document<T: DeserializeOwned>(
        &self,
        pod: &str,
        container: &str,
        refused: Option<&str>,
        pods: &BTreeMap<String, Seen>,
    ) -> Found<T> {
        if let Some(why) = refused {
            return Err(why.to_owned());
        }
        let seen = pods.get(pod).ok_or("its pod was never seen")?;
        let trouble = || {
            seen.trouble.as_ref().map(|t| match t {
                Trouble::Pod(why) => why.clone(),
                Trouble::Image { image, why } => format!("{image}: {why}"),
            })
        };
        let code = match seen.containers.get(container) {
            Some(Container::Ended(code, _)) => *code,
            other => {
                let state = match other {
                    Some(Container::Running) => "it did not end in time",
                    Some(_) => "it did not start in time",
                    None => "it is not in its pod",
                };
                return Err(trouble().unwrap_or_else(|| state.to_owned()));
            }
        };
        // What was injected is measured in the node's place, however well it ended.
        if let Some(why) = trouble().filter(|w| w.contains("was injected")) {
            return Err(why);
        }
        let log = run::tail(self.client, &self.run.namespace, pod, container)
            .await
            .map_err(|e| e.to_string())?;
        run::document(&log).map_err(|why| format!("it ended with status {code} and {why}"))
    }

    /// The document of the client that forges.
    async fn to_server(
        &self,
        t: &Try,
        forging: &[Made],
        pods: &BTreeMap<String, Seen>,
    ) -> Found<LoadResult> {
        let pod = objects::forging_client_name(t.path.from(), self.members[t.client].index);
        let name = objects::to_server(t.path, t.family);
        let refused = match t.path.from() {
            From::ServerPod => self.untried(),
            _ => forging[t.client].refused.clone(),
        };
        self.document(&pod, &name, refused.as_deref(), pods).await
    }

    fn save_to_server(&self, t: &Try, up: &Found<LoadResult>) -> Result<(), Stop> {
        let (Some(dir), Ok(up)) = (&self.options.save, up) else { return Ok(()) };
        let name = objects::to_server(t.path, t.family);
        let dir = dir.join(&self.members[t.row].node.name);
        run::save(&dir, &format!("{name}.load-client.json"), up)
    }

    fn save(&self, t: &Try, ends: &(Found<BoomResult>, Found<LoadResult>)) -> Result<(), Stop> {
        let Some(dir) = &self.options.save else { return Ok(()) };
        let dir = dir.join(&self.members[t.row].node.name);
        let name = objects::container(t.path, t.family);
        if let Ok(server) = &ends.0 {
            run::save(&dir, &format!("{name}.boom-server.json"), server)?;
        }
        if let Ok(client) = &ends.1 {
            run::save(&dir, &format!("{name}.load-client.json"), client)?;
        }
        Ok(())
    }

    /// Deletes the wave's pods and Services, so that node ports and the watch stay bounded.
    pub(super) async fn clear(&self) -> Result<(), Stop> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let names =
            self.members.iter().flat_map(|m| SIDES.map(|s| objects::client_name(s, m.index)));
        let forging = self
            .members
            .iter()
            .flat_map(|m| FORGING.map(|s| objects::forging_client_name(s, m.index)));
        let hosts = self.members.iter().map(|m| objects::host_server_name(m.index));
        run::delete_all(&pods, names.chain(forging).chain(hosts)).await?;
        let names =
            self.members.iter().flat_map(|m| FRONTS.map(|f| objects::service_name(f, m.index)));
        run::delete_all(&services, names).await
    }
}

/// Every container has ended but the one that serves whoever comes; or nothing more will come.
fn over(pod: &Seen) -> bool {
    let served = |(name, state): (&String, &Container)| {
        name == objects::SINK || matches!(state, Container::Ended(..))
    };
    let all = !pod.containers.is_empty() && pod.containers.iter().all(served);
    pod.ended || pod.trouble.is_some() || all
}

/// Every container runs, or has ended, and the address is known; or it never will.
fn started(pod: &Seen) -> bool {
    pod.ended
        || pod.trouble.is_some()
        || (!pod.addresses.is_empty()
            && !pod.containers.is_empty()
            && pod.containers.values().all(|c| *c != Container::Waiting))
}
