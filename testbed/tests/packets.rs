//! The testbed itself, with real packets.

use canary_testbed::model::Path;
use canary_testbed::test::Bed;
use canary_testbed::topology::Topology;
use canary_wire::segment::Family;

canary_testbed::tests![a_service_is_translated, hosts_are_apart];

/// What a client sends to the Service arrives at the server pod.
fn a_service_is_translated() {
    let bed = Bed::path(Path::ClusterIp);
    for family in [Family::Ipv4, Family::Ipv6] {
        let pod = std::net::SocketAddr::new(bed.place().topology.service.pod.of(family), 9000);
        let listener = bed.within("server", || std::net::TcpListener::bind(pod).unwrap());
        let client = bed.connect(bed.target(family), 1);
        let (server, _) = listener.accept().unwrap();
        assert_eq!(server.local_addr().unwrap(), pod);
        assert_eq!(client[0].peer_addr().unwrap(), bed.target(family));
    }
}

/// A host has its own links and no others.
fn hosts_are_apart() {
    let bed = Bed::new(Topology::single);
    assert_eq!(
        bed.sh("host", "ls /sys/class/net | wc -l; ip -o link | wc -l").lines().last(),
        Some("1")
    );
}
