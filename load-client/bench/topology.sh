# The bench's hosts: a client pod, its node (DNAT as kube-proxy writes it), the
# server's node, a server pod. Runs inside namespaces of its own (the bench
# calls unshare), so that nothing of it is left when the bench ends.
set -eu
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/www
for n in client node1 node2 server; do
  ip netns add $n
  ip -n $n link set lo up
done
link() {
  ip link add "$1" netns "$2" type veth peer name "$3" netns "$4"
  ip -n "$2" link set "$1" up
  ip -n "$4" link set "$3" up
}
link eth0 client pod0 node1
link up0 node1 up0 node2
link pod0 node2 eth0 server
ip -n client addr add 198.18.1.2/24 dev eth0
ip -n node1 addr add 198.18.1.1/24 dev pod0
ip -n node1 addr add 198.18.0.1/24 dev up0
ip -n node2 addr add 198.18.0.2/24 dev up0
ip -n node2 addr add 198.18.2.1/24 dev pod0
ip -n server addr add 198.18.2.2/24 dev eth0
ip -n client route add default via 198.18.1.1
ip -n server route add default via 198.18.2.1
ip -n node1 route add 198.18.2.0/24 via 198.18.0.2
ip -n node2 route add 198.18.1.0/24 via 198.18.0.1
ip netns exec node1 nft -f - <<'N'
table ip kube-proxy {
  map services {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 198.18.100.1 . tcp . 80 : goto svc-http, 198.18.100.1 . tcp . 9000 : goto svc-tcp }
  }
  chain svc-http {
    meta l4proto tcp dnat to 198.18.2.2:80
  }
  chain svc-tcp {
    meta l4proto tcp dnat to 198.18.2.2:9000
  }
  chain services {
    ip daddr . meta l4proto . th dport vmap @services
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; jump services
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; meta mark & 0x4000 == 0x4000 masquerade
  }
  chain forward {
    type filter hook forward priority 0; ct state new counter
  }
}
N
ip netns exec node2 nft -f - <<'N'
table ip kube-proxy {
  chain forward {
    type filter hook forward priority 0; ct state new counter
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; meta mark & 0x4000 == 0x4000 masquerade
  }
}
N
# Short timeouts keep the tables of a long bench small, for every peer alike.
for n in node1 node2; do
  ip netns exec $n sysctl -qw net.ipv4.ip_forward=1 \
    net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 net.netfilter.nf_conntrack_tcp_timeout_close=1 \
    net.netfilter.nf_conntrack_tcp_timeout_last_ack=1 net.netfilter.nf_conntrack_tcp_timeout_fin_wait=1
done
# So that ports are no limit to anybody.
ip netns exec client sysctl -qw net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_tw_reuse=1 net.ipv4.tcp_max_tw_buckets=4096
ip netns exec server sysctl -qw net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65535 net.ipv4.tcp_max_tw_buckets=4096
head -c 1024 /dev/zero | tr '\0' x > /run/www/1k
cat > /run/nginx.conf <<'N'
worker_processes auto; worker_rlimit_nofile 65536; pid /run/nginx.pid; daemon off; error_log /run/nginx.err; user root;
events { worker_connections 16384; }
http {
  access_log off; open_file_cache max=16;
  client_body_temp_path /run/t1; proxy_temp_path /run/t2; fastcgi_temp_path /run/t3; uwsgi_temp_path /run/t4; scgi_temp_path /run/t5;
  server { listen 80 backlog=65535 reuseport; root /run/www; }
}
N
