//! What this network namespace shows of how Services are handled in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use canary_conntrack::rules;
use canary_record::result::observe::{NodeShown, ProxySource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
/// The interfaces of this network namespace: `/sys` would be of the one in which it was mounted.
const INTERFACES: &str = "/proc/self/net/dev";
/// kube-proxy's `metricsBindAddress` unless it was told otherwise.
const KUBE_PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// Nobody there refuses at once; this is for whoever accepts and is silent.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer that is read.
const ANSWER: u64 = 4096;

/// Reads it; what cannot be read is none.
pub(crate) async fn read() -> NodeShown {
    let be_liberal = std::fs::read_to_string(BE_LIBERAL).ok().and_then(|s| s.trim().parse().ok());
    let answer = tokio::time::timeout(PATIENCE, ask(KUBE_PROXY)).await;
    let mut shown = NodeShown { be_liberal, ..NodeShown::default() };
    let interfaces = std::fs::read_to_string(INTERFACES).unwrap_or_default();
    let signs = [
        (ProxySource::Endpoint, answer.ok().and_then(Result::ok).and_then(|a| mode(&a))),
        (ProxySource::Rules, rules::chains().ok().and_then(|c| by_chains(&c))),
        (ProxySource::Interface, by_interfaces(&interfaces)),
    ];
    for (source, mode) in signs {
        if let Some(mode) = mode {
            shown.sign(source, mode);
        }
    }
    shown
}

/// The modes whose chains are there. In each mode kube-proxy translates for Services in chains of its own.
fn by_chains(chains: &[(String, String)]) -> Option<String> {
    let has = |is: fn(&str, &str) -> bool| chains.iter().any(|(table, chain)| is(table, chain));
    let modes = [
        ("iptables", has(|table, chain| table == "nat" && chain.starts_with("KUBE-SVC-"))),
        ("ipvs", has(|table, chain| table == "nat" && chain == "KUBE-LOAD-BALANCER")),
        ("nftables", has(|table, _| table == "kube-proxy")),
    ];
    let there: Vec<_> =
        modes.into_iter().filter(|(_, there)| *there).map(|(mode, _)| mode).collect();
    (!there.is_empty()).then(|| there.join(" and "))
}

fn by_interfaces(table: &str) -> Option<String> {
    let there = table.lines().any(|l| l.trim_start().starts_with("kube-ipvs0:"));
    there.then(|| "ipvs".to_owned())
}

async fn ask(at: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The mode in kube-proxy's answer: one short word in the body of a 200.
fn mode(answer: &[u8]) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer).ok()? else { return None };
    let word = std::str::from_utf8(&answer[length..]).ok()?.trim();
    let is_word = (1..=32).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (head.code == Some(200) && is_word).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kube-proxy's answer is its mode; any other server's, a cut one and noise are none.
    #[test]
    fn only_a_word_is_a_mode() {
        let ok = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nnftables";
        assert_eq!(mode(ok).as_deref(), Some("nftables"));
        for cut in 0..ok.len() - "nftables".len() {
            assert_eq!(mode(&ok[..cut]), None);
        }
        assert_eq!(mode(b"HTTP/1.0 404 Not Found\r\n\r\niptables"), None);
        assert_eq!(mode(b"HTTP/1.0 200 OK\r\n\r\n<html>"), None);
        assert_eq!(mode(b"HTTP/1.0 200 OK\r\n\r\n\xff\xfe"), None);
    }

    /// Chains and interfaces name the mode; those that two modes leave name both; a node without any, none.
    #[test]
    fn chains_and_interfaces_are_signs() {
        let chains = |all: &[(&str, &str)]| -> Vec<_> {
            all.iter().map(|(t, c)| ((*t).to_owned(), (*c).to_owned())).collect()
        };
        let mode = |all| by_chains(&chains(all));
        assert_eq!(mode(&[("nat", "KUBE-MARK-DROP"), ("filter", "KUBE-SVC-A")]), None);
        assert_eq!(mode(&[("nat", "KUBE-SVC-A")]).as_deref(), Some("iptables"));
        assert_eq!(mode(&[("nat", "KUBE-LOAD-BALANCER")]).as_deref(), Some("ipvs"));
        let both = mode(&[("kube-proxy", "services"), ("nat", "KUBE-SVC-A")]);
        assert_eq!(both.as_deref(), Some("iptables and nftables"));
        let head = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n";
        assert_eq!(by_interfaces(head), None);
        let ipvs = format!("{head}kube-ipvs0: 0 0\n");
        assert_eq!(by_interfaces(&ipvs).as_deref(), Some("ipvs"));
    }

    /// The mode is read from a server that answers and goes.
    #[tokio::test]
    async fn the_mode_is_asked_for() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let n = stream.read(&mut request).await.unwrap();
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\niptables").await.unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        assert_eq!(mode(&ask(at).await.unwrap()).as_deref(), Some("iptables"));
        assert!(server.await.unwrap().starts_with("GET /proxyMode HTTP/1.0\r\n"));
    }
}
