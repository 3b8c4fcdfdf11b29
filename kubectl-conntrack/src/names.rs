//! What an address is called in a cluster: a pod's, a Service's, a node's name. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;

use crate::objects::cluster_ips;
use crate::plan::Node;
use crate::pods;

/// Names by address.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pods: BTreeMap<IpAddr, BTreeSet<String>>,
    nodes: BTreeMap<IpAddr, String>,
    services: BTreeMap<IpAddr, String>,
    /// On every node's address.
    node_ports: BTreeMap<u16, String>,
}

impl Names {
    /// Adds a pod. One on the host network has its node's address, which is the node's.
    pub fn pod(&mut self, pod: &Pod) {
        if pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true)) {
            return;
        }
        for ip in pods::addresses(pod) {
            self.pods.entry(ip).or_default().insert(of("pod", pod));
        }
    }

    /// Adds a Service: its own addresses, and its ports on every node.
    pub fn service(&mut self, service: &Service) {
        let name = of("service", service);
        let Some(spec) = &service.spec else { return };
        let balancers = service
            .status
            .iter()
            .filter_map(|s| s.load_balancer.as_ref()?.ingress.as_ref())
            .flatten()
            .filter_map(|i| i.ip.as_ref());
        let outside = spec.external_ips.iter().flatten().chain(balancers);
        for ip in cluster_ips(spec).chain(outside.filter_map(|a| a.parse().ok())) {
            self.services.insert(ip, name.clone());
        }
        let ports = spec.ports.iter().flatten().filter_map(|p| p.node_port);
        for port in ports.filter_map(|p| u16::try_from(p).ok()) {
            self.node_ports.insert(port, name.clone());
        }
    }

    /// Adds a node.
    pub fn node(&mut self, node: &Node) {
        for ip in &node.addresses {
            self.nodes.insert(*ip, format!("node {}", node.name));
        }
    }

    /// What `address` is called, an IP address with a port or without. An address that two pods had
    /// one after the other may be either's.
    #[must_use]
    pub fn of(&self, address: &str) -> Option<String> {
        let (ip, port) = match address.parse::<SocketAddr>() {
            Ok(a) => (a.ip(), Some(a.port())),
            Err(_) => (address.parse().ok()?, None),
        };
        if let Some(pods) = self.pods.get(&ip) {
            return Some(pods.iter().map(String::as_str).collect::<Vec<_>>().join(" or "));
        }
        if let Some(service) = self.services.get(&ip) {
            return Some(service.clone());
        }
        let node = self.nodes.get(&ip)?;
        Some(match port.and_then(|p| self.node_ports.get(&p)) {
            Some(service) => format!("{service} by the node port on {node}"),
            None => node.clone(),
        })
    }
}

fn of(kind: &str, object: &impl ResourceExt) -> String {
    format!("{kind} {}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::typed;
    use serde_json::json;

    fn names() -> Names {
        let mut names = Names::default();
        for (name, host, ips) in [
            ("a", false, json!([{"ip": "198.18.1.1"}, {"ip": "fd00::1"}])),
            ("b", false, json!([{"ip": "198.18.1.1"}])),
            ("host", true, json!([{"ip": "198.18.0.11"}])),
        ] {
            names.pod(&typed(json!({"metadata": {"name": name, "namespace": "x"},
                "spec": {"hostNetwork": host, "containers": []}, "status": {"podIPs": ips}})));
        }
        names.service(&typed(json!({"metadata": {"name": "web", "namespace": "x"}, "spec": {
            "clusterIP": "198.19.0.5", "clusterIPs": ["198.19.0.5", "fd00:1::5"],
            "ports": [{"port": 80, "nodePort": 30080}]}})));
        names.node(&Node {
            name: "n1".to_owned(),
            addresses: vec!["198.18.0.11".parse().unwrap()],
            ..Node::default()
        });
        names
    }

    /// A pod, a Service and a node are named by their addresses, in either family and with a port.
    #[test]
    fn addresses_have_names() {
        let names = names();
        assert_eq!(names.of("[fd00::1]:4711").unwrap(), "pod x/a");
        assert_eq!(names.of("198.18.1.1").unwrap(), "pod x/a or pod x/b");
        assert_eq!(names.of("198.19.0.5:80").unwrap(), "service x/web");
        assert_eq!(names.of("[fd00:1::5]:80").unwrap(), "service x/web");
        assert_eq!(names.of("198.18.0.11:40000").unwrap(), "node n1");
        assert_eq!(
            names.of("198.18.0.11:30080").unwrap(),
            "service x/web by the node port on node n1"
        );
        assert_eq!(names.of("203.0.113.9"), None);
    }
}
