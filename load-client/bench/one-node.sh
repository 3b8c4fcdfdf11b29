# A client pod with 32 addresses, one tracking node (DNAT as kube-proxy writes it), a
# server pod: one table, so that what is filled is one table. Inside namespaces of its own.
set -eu
mount -t tmpfs tmpfs /run
mkdir /run/netns
for n in client node server; do
  ip netns add $n
  ip -n $n link set lo up
done
ip link add eth0 netns client type veth peer name pod0 netns node
ip link add eth0 netns server type veth peer name pod1 netns node
ip -n client link set eth0 up
ip -n server link set eth0 up
ip -n node link set pod0 up
ip -n node link set pod1 up
i=2
while [ $i -le 33 ]; do
  ip -n client addr add 198.18.1.$i/24 dev eth0
  i=$((i + 1))
done
ip -n node addr add 198.18.1.1/24 dev pod0
ip -n node addr add 198.18.2.1/24 dev pod1
ip -n server addr add 198.18.2.2/24 dev eth0
ip -n client route add default via 198.18.1.1
ip -n server route add default via 198.18.2.1
ip netns exec node nft -f - <<'N'
table ip kube-proxy {
  chain prerouting {
    type nat hook prerouting priority dstnat; ip daddr 198.18.100.1 tcp dport 9000 dnat to 198.18.2.2:9000
  }
}
N
ip netns exec node sysctl -qw net.ipv4.ip_forward=1
# A client beyond its TIME_WAIT limit answers the server's FIN with RST, and takes its ports
# again: conntrack then has fewer entries than there were connections.
ip netns exec client sysctl -qw net.ipv4.tcp_max_tw_buckets=1048576
ip netns exec server sysctl -qw net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65535 net.ipv4.tcp_max_tw_buckets=4096
