ip netns add node1
ip netns exec node1 sysctl -qw net/ipv6/conf/default/accept_dad=0
ip netns exec node1 sysctl -qw net/ipv6/conf/default/accept_ra=0
ip netns exec node1 sysctl -qw net/ipv6/conf/default/router_solicitations=0
ip netns exec node1 sysctl -qw net/ipv4/conf/all/rp_filter=0
ip netns exec node1 sysctl -qw net/ipv4/conf/default/rp_filter=0
ip -n node1 link set lo up
ip netns add node2
ip netns exec node2 sysctl -qw net/ipv6/conf/default/accept_dad=0
ip netns exec node2 sysctl -qw net/ipv6/conf/default/accept_ra=0
ip netns exec node2 sysctl -qw net/ipv6/conf/default/router_solicitations=0
ip netns exec node2 sysctl -qw net/ipv4/conf/all/rp_filter=0
ip netns exec node2 sysctl -qw net/ipv4/conf/default/rp_filter=0
ip -n node2 link set lo up
ip netns add client
ip netns exec client sysctl -qw net/ipv6/conf/default/accept_dad=0
ip netns exec client sysctl -qw net/ipv6/conf/default/accept_ra=0
ip netns exec client sysctl -qw net/ipv6/conf/default/router_solicitations=0
ip netns exec client sysctl -qw net/ipv4/conf/all/rp_filter=0
ip netns exec client sysctl -qw net/ipv4/conf/default/rp_filter=0
ip -n client link set lo up
ip netns add server
ip netns exec server sysctl -qw net/ipv6/conf/default/accept_dad=0
ip netns exec server sysctl -qw net/ipv6/conf/default/accept_ra=0
ip netns exec server sysctl -qw net/ipv6/conf/default/router_solicitations=0
ip netns exec server sysctl -qw net/ipv4/conf/all/rp_filter=0
ip netns exec server sysctl -qw net/ipv4/conf/default/rp_filter=0
ip -n server link set lo up
ip netns exec node1 sysctl -qw net/ipv4/ip_forward=1
ip netns exec node1 sysctl -qw net/ipv6/conf/all/forwarding=1
ip netns exec node2 sysctl -qw net/ipv4/ip_forward=1
ip netns exec node2 sysctl -qw net/ipv6/conf/all/forwarding=1
ip -n node1 link add eth0 type veth peer name eth0 netns node2
ip -n node1 addr add 198.18.0.11/24 dev eth0
ip -n node1 addr add fd00::11/64 dev eth0 nodad
ip -n node1 link set eth0 up
ip -n node1 route add 198.18.66.0/24 via 198.18.0.12
ip -n node1 route add fd00:66::/64 via fd00::12
ip -n node1 route add default via 198.18.0.12
ip -n node1 route add ::/0 via fd00::12
ip -n node1 neigh add 198.18.0.1 lladdr 02:00:00:00:00:01 nud permanent dev eth0
ip -n node1 route add default via 198.18.0.1 dev eth0 table 101
ip -n node1 rule add pref 100 iif lo lookup main
ip -n node1 rule add pref 101 to 198.19.0.10 lookup 101
ip -n node1 -6 neigh add fd00::1 lladdr 02:00:00:00:00:01 nud permanent dev eth0
ip -n node1 -6 route add ::/0 via fd00::1 dev eth0 table 101
ip -n node1 -6 rule add pref 100 iif lo lookup main
ip -n node1 -6 rule add pref 101 to fd00:19::10 lookup 101
ip -n node2 addr add 198.18.0.12/24 dev eth0
ip -n node2 addr add fd00::12/64 dev eth0 nodad
ip -n node2 link set eth0 up
ip -n node2 route add 198.18.65.0/24 via 198.18.0.11
ip -n node2 route add fd00:65::/64 via fd00::11
ip -n node2 route add default via 198.18.0.11
ip -n node2 route add ::/0 via fd00::11
ip -n node2 neigh add 198.18.0.1 lladdr 02:00:00:00:00:01 nud permanent dev eth0
ip -n node2 route add default via 198.18.0.1 dev eth0 table 101
ip -n node2 rule add pref 100 iif lo lookup main
ip -n node2 rule add pref 101 to 198.19.0.10 lookup 101
ip -n node2 -6 neigh add fd00::1 lladdr 02:00:00:00:00:01 nud permanent dev eth0
ip -n node2 -6 route add ::/0 via fd00::1 dev eth0 table 101
ip -n node2 -6 rule add pref 100 iif lo lookup main
ip -n node2 -6 rule add pref 101 to fd00:19::10 lookup 101
ip -n node1 link add to-client type veth peer name eth0 netns client
ip -n node1 addr add 198.18.65.1/32 dev to-client
ip -n node1 addr add fd00:65::1/128 dev to-client nodad
ip -n node1 link set to-client up
ip -n node1 route add 198.18.65.10/32 dev to-client
ip -n node1 route add fd00:65::10/128 dev to-client
ip -n client addr add 198.18.65.10/32 dev eth0
ip -n client addr add fd00:65::10/128 dev eth0 nodad
ip -n client link set eth0 up
ip -n client route add 198.18.65.1/32 dev eth0 scope link
ip -n client route add fd00:65::1/128 dev eth0
ip -n client route add default via 198.18.65.1
ip -n client route add ::/0 via fd00:65::1
ip -n node2 link add to-server type veth peer name eth0 netns server
ip -n node2 addr add 198.18.66.1/32 dev to-server
ip -n node2 addr add fd00:66::1/128 dev to-server nodad
ip -n node2 link set to-server up
ip -n node2 route add 198.18.66.20/32 dev to-server
ip -n node2 route add fd00:66::20/128 dev to-server
ip -n server addr add 198.18.66.20/32 dev eth0
ip -n server addr add fd00:66::20/128 dev eth0 nodad
ip -n server link set eth0 up
ip -n server route add 198.18.66.1/32 dev eth0 scope link
ip -n server route add fd00:66::1/128 dev eth0
ip -n server route add default via 198.18.66.1
ip -n server route add ::/0 via fd00:66::1
