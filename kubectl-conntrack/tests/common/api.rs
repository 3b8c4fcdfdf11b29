//! The API server of the cluster in memory: answers as the real one does as far as the plugin asks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};

use super::{Event, Fake};

/// The body of an answer.
type Answer = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, Infallible>;

impl Fake {
    #[allow(clippy::too_many_lines, reason = "a table of requests and their answers")]
    async fn answer(self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let body =
            body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().trim_matches('/').to_owned();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), decoded(v)))
            .collect();
        let words: Vec<&str> = path.split('/').collect();
        {
            let mut state = self.lock();
            *state.calls.entry("all".to_owned()).or_default() += 1;
            if state.away_until.is_some_and(|t| tokio::time::Instant::now() < t) {
                return failure(503, "the server is away");
            }
        }
        match (&parts.method, words.as_slice()) {
            (_, ["version"]) => ok(
                &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
            ),
            (&Method::POST, ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => {
                let a = &body["spec"]["resourceAttributes"];
                let mut right = format!(
                    "{} {}",
                    a["verb"].as_str().unwrap_or(""),
                    a["resource"].as_str().unwrap_or("")
                );
                if let Some(s) = a["subresource"].as_str() {
                    right = format!("{right}/{s}");
                }
                let mut answer = body.clone();
                answer["status"] = json!({"allowed": !self.lock().denied.contains(&right)});
                ok(&answer)
            }
            (&Method::GET, ["api", "v1", "nodes"]) => self.nodes(&query),
            (&Method::POST, ["api", "v1", "namespaces"]) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let mut state = self.lock();
                if state.namespaces.contains_key(&name) {
                    return failure(409, "namespaces already exists");
                }
                let mut ns = body.clone();
                ns["metadata"]["uid"] = format!("uid-{name}-{}", state.version).into();
                state.namespaces.insert(name, ns.clone());
                ok(&ns)
            }
            (&Method::GET, ["api", "v1", "namespaces"]) if query.contains_key("watch") => {
                Self::gone()
            }
            (&Method::GET, ["api", "v1", "namespaces"]) => {
                let state = self.lock();
                let (labels, fields) = (query.get("labelSelector"), query.get("fieldSelector"));
                let chosen = |ns: &&Value| labelled(ns, labels) && named(ns, fields);
                let items: Vec<_> = state.namespaces.values().filter(chosen).cloned().collect();
                list("NamespaceList", &items, state.version)
            }
            (&Method::GET, ["api", "v1", "namespaces", name]) => {
                match self.lock().namespaces.get(*name) {
                    Some(ns) => ok(ns),
                    None => failure(404, "namespaces not found"),
                }
            }
            (&Method::DELETE, ["api", "v1", "namespaces", name]) => {
                let wanted = body["preconditions"]["uid"].clone();
                let mut state = self.lock();
                match state.namespaces.get(*name) {
                    None => failure(404, "namespaces not found"),
                    Some(ns) if !wanted.is_null() && ns["metadata"]["uid"] != wanted => {
                        failure(409, "the UID differs")
                    }
                    Some(ns) => {
                        let mut ns = ns.clone();
                        ns["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                        state.namespaces.insert((*name).to_owned(), ns.clone());
                        let inside = format!("/{name}/");
                        let inside: Vec<_> = state
                            .objects
                            .iter()
                            .filter(|(k, _)| k.contains(&inside))
                            .map(|(k, o)| (k.clone(), o.clone()))
                            .collect();
                        drop(state);
                        for (key, object) in inside {
                            if self.dead(&object) {
                                self.tell(&key);
                            } else {
                                self.remove(&key);
                            }
                        }
                        self.end_namespaces();
                        ok(&ns)
                    }
                }
            }
            (&Method::GET, ["api", "v1", kind @ ("pods" | "services")]) => {
                let (prefix, state) = (format!("{kind}/"), self.lock());
                let items: Vec<_> = state
                    .objects
                    .iter()
                    .filter(|(k, _)| k.starts_with(&prefix))
                    .map(|(_, o)| o.clone())
                    .collect();
                list("List", &items, state.version)
            }
            (method, [.., "namespaces", ns, kind]) if *method == Method::GET => {
                if query.get("watch").is_some_and(|w| w == "true") {
                    return self.watch(kind, ns, &query);
                }
                let prefix = format!("{kind}/{ns}/");
                let state = self.lock();
                let items: Vec<_> = state
                    .objects
                    .iter()
                    .filter(|(k, o)| {
                        k.starts_with(&prefix)
                            && labelled(o, query.get("labelSelector"))
                            && named(o, query.get("fieldSelector"))
                    })
                    .map(|(_, o)| o.clone())
                    .collect();
                list("List", &items, state.version)
            }
            (&Method::GET, [.., "namespaces", ns, "configmaps", name]) => {
                match self.object(&format!("configmaps/{ns}/{name}")) {
                    Some(map) => ok(&map),
                    None => failure(404, "configmaps not found"),
                }
            }
            (&Method::PATCH, [.., "namespaces", ns, kind, name]) => {
                self.applied(kind, ns, name, body, &query)
            }
            (&Method::GET, [.., "namespaces", ns, "pods", name, "log"]) => {
                match self.object(&format!("pods/{ns}/{name}")) {
                    Some(pod) if self.dead(&pod) => failure(500, "the kubelet does not answer"),
                    Some(pod) => {
                        let container = query.get("container").map_or("", String::as_str);
                        Response::new(full((self.log)(&pod, container).into_bytes()))
                    }
                    None => failure(404, "pods not found"),
                }
            }
            (&Method::GET, [.., "pods", pod, "proxy", "metrics"]) => {
                let metrics = self.lock().metrics.clone();
                match metrics {
                    Some(of) => Response::new(full(of(pod).into_bytes())),
                    None => failure(403, "no right to pods/proxy"),
                }
            }
            (&Method::DELETE, [.., "namespaces", ns, "pods", name])
                if body["gracePeriodSeconds"] != 0
                    && self
                        .object(&format!("pods/{ns}/{name}"))
                        .is_some_and(|p| self.lock().linger || self.dead(&p)) =>
            {
                self.tell(&format!("pods/{ns}/{name}"));
                ok(&json!({"kind": "Status", "status": "Success"}))
            }
            (&Method::DELETE, [.., "namespaces", ns, kind, name]) => {
                if self.remove(&format!("{kind}/{ns}/{name}")) {
                    ok(&json!({"kind": "Status", "status": "Success"}))
                } else {
                    failure(404, "not found")
                }
            }
            (m, p) => failure(400, &format!("the mock does not know {m} {p:?}")),
        }
    }

    fn applied(
        &self,
        kind: &str,
        ns: &str,
        name: &str,
        mut object: Value,
        query: &BTreeMap<String, String>,
    ) -> Response<Answer> {
        let key = format!("{kind}/{ns}/{name}");
        {
            let mut state = self.lock();
            if !state.namespaces.contains_key(ns) {
                return failure(404, &format!("namespaces \"{ns}\" not found"));
            }
            if kind == "pods"
                && let Some((text, why)) = &state.refuse_pods
                && object.to_string().contains(text)
            {
                return failure(403, why);
            }
            if kind == "services" {
                let n = state.version;
                let v4 = format!("198.19.{}.{}", n / 250 % 250, n % 250 + 1);
                let mut ips = vec![v4.clone()];
                if state.dual {
                    ips.push(format!("fd00:1::{n:x}"));
                }
                object["spec"]["clusterIP"] = v4.into();
                object["spec"]["clusterIPs"] = ips.into();
                if object["spec"]["type"] == "NodePort" {
                    for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
                        port["nodePort"] = state.next_port.into();
                        state.next_port =
                            if state.next_port >= 32767 { 30000 } else { state.next_port + 1 };
                    }
                }
            }
        }
        if kind == "deployments" {
            object["status"] = json!({"conditions": [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]});
        }
        if query.contains_key("dryRun") {
            return ok(&object);
        }
        let new = self.object(&key).is_none();
        object["metadata"]["uid"] = key.clone().into();
        if kind == "pods" && new {
            object["spec"]["nodeName"] = self.scheduled(&object);
        }
        let stored = self.put(&key, object);
        if kind == "pods" && new {
            let client = stored["metadata"]["labels"]["app.kubernetes.io/name"] == "load-client";
            self.lock().clients += u64::from(client);
            self.live(key, &stored);
        }
        ok(&stored)
    }

    fn nodes(&self, query: &BTreeMap<String, String>) -> Response<Answer> {
        let state = self.lock();
        let from: usize = query.get("continue").and_then(|c| c.parse().ok()).unwrap_or(0);
        let limit: usize = query.get("limit").and_then(|c| c.parse().ok()).unwrap_or(usize::MAX);
        let page: Vec<_> = state.nodes.iter().skip(from).take(limit).cloned().collect();
        let mut metadata = json!({"resourceVersion": "1"});
        if from + page.len() < state.nodes.len() {
            metadata["continue"] = (from + page.len()).to_string().into();
        }
        ok(&json!({"apiVersion": "v1", "kind": "NodeList", "metadata": metadata, "items": page}))
    }

    /// A watch that says nothing.
    fn gone() -> Response<Answer> {
        Response::new(
            StreamBody::new(futures_util::stream::pending::<
                Result<http_body::Frame<bytes::Bytes>, Infallible>,
            >())
            .boxed_unsync(),
        )
    }

    fn watch(&self, kind: &str, ns: &str, query: &BTreeMap<String, String>) -> Response<Answer> {
        let mut expire = self.expire.lock().unwrap();
        if *expire > 0 {
            *expire -= 1;
            let expired = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410}});
            return Response::new(full(format!("{expired}\n").into_bytes()));
        }
        drop(expire);
        let since: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let prefix = format!("{kind}/{ns}/");
        let selector = query.get("labelSelector").cloned();
        // Subscribed before the store is read: nothing is missed, what is seen twice does no harm.
        let events = self.events.subscribe();
        let first: Vec<Event> = {
            let state = self.lock();
            let newer = |o: &Value| {
                o["metadata"]["resourceVersion"]
                    .as_str()
                    .and_then(|v| v.parse().ok())
                    .unwrap_or(0u64)
                    > since
            };
            state
                .objects
                .iter()
                .filter(|(k, o)| k.starts_with(&prefix) && newer(o))
                .map(|(k, o)| Event::new("MODIFIED", k, o))
                .collect()
        };
        let fake = self.clone();
        let stream = futures_util::stream::unfold(
            (first.into_iter(), events),
            move |(mut first, mut events)| {
                let (prefix, selector, fake) = (prefix.clone(), selector.clone(), fake.clone());
                async move {
                    loop {
                        let event = match first.next() {
                            Some(event) => event,
                            None => events.recv().await.ok()?,
                        };
                        // A connection breaks with its server.
                        if fake.lock().away_until.is_some_and(|t| tokio::time::Instant::now() < t) {
                            return None;
                        }
                        if event.key.starts_with(&prefix)
                            && labelled(&event.labels, selector.as_ref())
                        {
                            let line = bytes::Bytes::copy_from_slice(event.line.as_bytes());
                            let frame = http_body::Frame::data(line);
                            return Some((Ok::<_, Infallible>(frame), (first, events)));
                        }
                    }
                }
            },
        );
        Response::new(StreamBody::new(stream).boxed_unsync())
    }
}

impl tower_service::Service<Request<Body>> for Fake {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move { Ok(fake.answer(request).await) })
    }
}

fn labelled(object: &Value, selector: Option<&String>) -> bool {
    selector.is_none_or(|s| {
        s.split(',').all(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            object["metadata"]["labels"][key] == value
        })
    })
}

fn named(object: &Value, selector: Option<&String>) -> bool {
    selector.is_none_or(|s| {
        s.strip_prefix("metadata.name=").is_none_or(|n| object["metadata"]["name"] == n)
    })
}

fn list(kind: &str, items: &[Value], version: u64) -> Response<Answer> {
    ok(
        &json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": version.to_string()}, "items": items}),
    )
}

fn full(bytes: Vec<u8>) -> Answer {
    Full::new(bytes::Bytes::from(bytes)).boxed_unsync()
}

fn ok(value: &Value) -> Response<Answer> {
    Response::new(full(value.to_string().into_bytes()))
}

fn failure(code: u16, message: &str) -> Response<Answer> {
    let reason = match code {
        404 => "NotFound",
        409 => "AlreadyExists",
        _ => "Other",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code});
    let mut response = ok(&status);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
