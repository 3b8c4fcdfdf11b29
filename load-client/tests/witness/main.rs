//! witness on real packets: what it names is what boom-server, or a client that forges, has shown
//! to be ended; what it changes is put back; and it keeps out of everybody's way.

mod captures;
mod others;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use canary_record::names::{ProbeEnd, Verdict};
use canary_record::result::boom::BoomResult;
use canary_record::result::witness::{
    Cause, CauseCount, Direction, Reason, RuleAction, WitnessResult,
};
use canary_testbed::exec::Call;
use canary_testbed::model::Path;
use canary_testbed::network::KINDS;
use canary_testbed::programs::{Ended, Program, Running, built, document};
use canary_testbed::test::{Bed, SOON, exchange, needs_root, wait_for};
use nix::sys::signal::Signal;

canary_testbed::tests![
    every_connection_that_boom_server_ended_is_named,
    the_page_shows_the_last_one,
    a_drop_leaves_nothing_to_name,
    rules_that_are_not_read_are_said,
    a_node_that_rejects_is_not_taken_for_the_client,
    the_node_answers_for_a_masqueraded_client,
    a_host_network_client_is_the_client,
    liberal_leaves_bad_flags,
    the_nodes_reset_ends_an_upload,
    a_drop_in_input_saves_the_upload,
    an_untranslated_path_has_nothing_to_name,
    a_deleted_entry_is_never_called_invalid,
    ordinary_traffic_beside_killed_connections,
    signals_put_the_kernel_back,
    the_next_one_puts_back_what_a_killed_one_left,
    a_second_listener_is_told,
    without_the_right_to_set_nothing_is_changed,
    an_ordinary_users_namespace_can_be_watched,
    one_mount_and_one_capability_are_enough,
    others::rules_of_others_work_as_before,
    others::legacy_rules_of_others_work_as_before,
    others::foreign_messages_are_told_apart,
    what_the_kernel_still_held_is_read,
    real_output_obeys_the_schema,
    captures::captures_of_every_side_give_the_same_answer,
    captures::captures_of_a_protected_path_accuse_nobody,
    captures::a_clients_capture_shows_the_nodes_reset,
    captures::ordinary_resets_in_a_capture_accuse_nobody,
];

const ALL: &str = "--forge=control,below-window,above-window,ack-ahead,no-flags,syn-fin";
const VALUES: &str =
    "cd /proc/sys/net/netfilter && cat nf_conntrack_log_invalid nf_log/2 nf_log/10";

fn options(bed: &Bed, more: &[&str]) -> Vec<String> {
    let state = format!("--state-dir={}", bed.file("").display());
    ["witness", "--log=json", &state].iter().chain(more).map(|o| (*o).to_owned()).collect()
}

fn watch(bed: &Bed, host: &str) -> Running<WitnessResult> {
    bed.start(host, Program::new("load-client", &options(bed, &[])).unwrap())
}

fn end(running: Running<WitnessResult>) -> Ended<WitnessResult> {
    running.stop(SOON).unwrap()
}

/// `n` connections to each of `targets`, forged on, and boom-server's result.
fn forged(bed: &Bed, targets: &[SocketAddr], n: usize, forge: &str) -> BoomResult {
    let total = format!("--connections={}", n * targets.len());
    let mut boom = bed.boom(&[forge, "--on-reset=count", &total]);
    let held: Vec<_> = targets.iter().flat_map(|to| bed.connect(to, n)).collect();
    boom.wait_for("settled").unwrap();
    for stream in &held {
        let _ = exchange(stream);
    }
    drop(held);
    boom.end(SOON).unwrap().result
}

fn both(bed: &Bed) -> [SocketAddr; 2] {
    use canary_wire::segment::Family::{Ipv4, Ipv6};
    [bed.target(Ipv4), bed.target(Ipv6)]
}

fn killed(boom: &BoomResult) -> u64 {
    boom.outcomes.iter().map(|o| o.counts.killed).sum()
}

fn leaked(boom: &BoomResult) -> u64 {
    boom.outcomes.iter().map(|o| o.counts.leaked).sum()
}

/// How many connections met this end; every one must have met it.
fn only(w: &WitnessResult, cause: Cause, direction: Direction) -> u64 {
    let all: u64 = w.connections.iter().map(|c| c.count).sum();
    let these = w.connections.iter().filter(|c| (c.cause, c.direction) == (cause, direction));
    let these = these.map(|c| c.count).sum();
    assert_eq!(all, these, "{:?}", w.connections);
    these
}

fn complete(w: &WitnessResult) {
    let m = w.messages;
    assert_eq!((m.lost, m.overruns, m.forgotten, m.unreadable), (0, 0, 0, 0));
    assert!(w.changed.iter().all(|c| c.restored), "{:?}", w.changed);
}

/// On an unprotected path each connection that boom-server ended is named, IPv4 and IPv6, with the
/// Service and both ends; harmless leaks are counted apart; the server's node ended none.
fn every_connection_that_boom_server_ended_is_named() {
    let bed = Bed::path(Path::ClusterIp);
    let (near, far) = (watch(&bed, "node1"), watch(&bed, "node2"));
    let boom = forged(&bed, &both(&bed), 30, ALL);
    let Ended { status, result: w, text } = end(near);
    complete(&w);
    assert_eq!((killed(&boom), leaked(&boom)), (20, 40));
    assert_eq!(only(&w, Cause::AnsweredByClient, Direction::ServerToClient), 20);
    assert_eq!((w.harmless, w.verdict, status.code()), (20, Verdict::Vulnerable, Some(10)));
    let services: Vec<_> = w.services.iter().map(|h| (h.address.as_str(), h.count)).collect();
    assert_eq!(services, [("198.19.0.10:80", 10), ("[fd00:19::10]:80", 10)]);
    assert_eq!(w.clients.len() + w.servers.len(), 4);
    assert_eq!(text.matches("an INVALID segment ended a connection").count(), 20);
    assert!(w.examples.iter().all(|e| e.states[0].is_some()));
    let Ended { status, result: far, .. } = end(far);
    complete(&far);
    assert_eq!((far.connections.len(), status.code()), (0, Some(0)));
}

/// The admin port's page shows the watch while it goes on: the last connection with its Service, and
/// the kernel's words.
fn the_page_shows_the_last_one() {
    let bed = Bed::path(Path::ClusterIp);
    let args = options(&bed, &["--admin=127.0.0.1:9101"]);
    let near = bed.start("node1", Program::new("load-client", &args).unwrap());
    forged(&bed, &both(&bed)[..1], 3, "--forge=above-window");
    let page = || {
        bed.within("node1", || {
            let mut stream = TcpStream::connect("127.0.0.1:9101").unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).unwrap();
            page
        })
    };
    wait_for("the page to tell of three", || {
        page().contains("server-to-client</td><td class=\"num\">3</td>")
    });
    let page = page();
    for told in ["vulnerable</strong>", "→ 198.19.0.10:80", "<q>SEQ is over upper bound "] {
        assert!(page.contains(told), "{told}: {page}");
    }
    end(near);
}

/// With INVALID dropped on the way nothing is ended, and the segments are counted as unanswered.
fn a_drop_leaves_nothing_to_name() {
    let bed = Bed::path(Path::ClusterIp);
    bed.protect(&["forward-drop@client"]);
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed), 12, ALL);
    let Ended { status, result: w, .. } = end(witness);
    complete(&w);
    assert_eq!((killed(&boom), leaked(&boom), w.harmless), (0, 0, 0));
    assert_eq!((w.connections.len(), status.code()), (0, Some(0)));
    for reason in [Reason::SeqOver, Reason::AckOver, Reason::BadFlags] {
        assert!(w.unanswered[&reason] > 0, "{:?}", w.unanswered);
    }
    let dropped: u64 = w.rules.iter().filter_map(|r| r.packets).sum();
    assert!(dropped >= 12, "the rule's own counter: {:?}, {:?}", w.rules, w.reasons);
}

/// Rules that drop INVALID and cannot be read are named in the result, and nobody's counter is guessed.
fn rules_that_are_not_read_are_said() {
    let bed = Bed::path(Path::ClusterIp);
    bed.sh(
        "node1",
        "nft 'table ip own { chain forward { type filter hook forward priority 0; \
         ct state vmap { invalid : drop, established : accept }; }; }'; \
         ip6tables-legacy -A FORWARD -m conntrack --ctstate INVALID -j DROP",
    );
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed), 4, "--forge=above-window");
    let w = end(witness).result;
    complete(&w);
    assert_eq!((killed(&boom), w.rules.len(), w.verdict), (0, 0, Verdict::Protected));
    // An ordinary user is told of both families that their names are not for them.
    let [rule, legacy @ ..] = &w.unread_rules[..] else { panic!("{:?}", w.unread_rules) };
    assert!(rule.starts_with("ip own forward handle "), "{rule}");
    assert!(legacy.iter().any(|l| l.starts_with("legacy iptables' tables of ip6 (")), "{legacy:?}");
    let said = format!("rules that could not be read: {}", w.unread_rules.join(", "));
    assert!(w.reasons.contains(&said), "{:?}", w.reasons);
}

/// A rule that answers INVALID with a reset looks as the client's host does: the client is not named,
/// and the rule is, with its counter. So does one that resets whatever was not accepted before.
fn a_node_that_rejects_is_not_taken_for_the_client() {
    let bed = Bed::path(Path::ClusterIp);
    bed.sh(
        "node1",
        "nft 'table inet own { chain forward { type filter hook forward priority 0; \
         meta l4proto tcp ct state invalid counter reject with tcp reset; }; }'",
    );
    let witness = watch(&bed, "node1");
    forged(&bed, &both(&bed)[..1], 10, "--forge=above-window");
    let w = end(witness).result;
    complete(&w);
    assert_eq!(only(&w, Cause::Unexplained, Direction::ServerToClient), 10);
    let counted: Vec<_> = w.rules.iter().map(|r| (&*r.table, r.action, r.packets)).collect();
    assert!(matches!(counted[..], [("own", RuleAction::Reset, Some(n))] if n >= 10), "{counted:?}");
    bed.sh(
        "node1",
        "nft 'flush chain inet own forward; \
         add rule inet own forward ct state new,established,related accept; \
         add rule inet own forward meta l4proto tcp reject with tcp reset'",
    );
    let witness = watch(&bed, "node1");
    forged(&bed, &both(&bed)[..1], 10, "--forge=above-window");
    let w = end(witness).result;
    complete(&w);
    assert_eq!(only(&w, Cause::Unexplained, Direction::ServerToClient), 10);
    assert_eq!(w.rules, []);
}

/// On a masqueraded path the node itself answers, and a drop in FORWARD does not help.
fn the_node_answers_for_a_masqueraded_client() {
    let bed = Bed::path(Path::NodePortClusterRemote);
    bed.protect(&["forward-drop@client"]);
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed), 12, "--forge=above-window");
    let w = end(witness).result;
    complete(&w);
    assert_eq!(killed(&boom), 24);
    assert_eq!(only(&w, Cause::AnsweredByNode, Direction::ServerToClient), 24);
}

/// A client on the host network answers itself, though the address is the node's.
fn a_host_network_client_is_the_client() {
    let bed = Bed::path(Path::HostNetworkRemote);
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed), 6, "--forge=syn-fin");
    let w = end(witness).result;
    complete(&w);
    assert_eq!(killed(&boom), 12);
    assert_eq!(only(&w, Cause::AnsweredByClient, Direction::ServerToClient), 12);
}

/// be_liberal translates what lies outside the window; what has bad flags still ends connections.
fn liberal_leaves_bad_flags() {
    let bed = Bed::path(Path::SameNode);
    bed.protect(&["liberal"]);
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed), 10, "--forge=above-window,syn-fin");
    let w = end(witness).result;
    complete(&w);
    assert_eq!(killed(&boom), 10);
    assert_eq!(only(&w, Cause::AnsweredByClient, Direction::ServerToClient), 10);
    assert!(w.examples.iter().all(|e| e.reason == Reason::BadFlags));
}

/// Uploads to the node port, on each of which the *client* forges a segment far above the window.
/// Gives how many of them are reset for the client.
fn uploads_forged(bed: &Bed, n: u64) -> u64 {
    let boom = bed.boom(&["--forge=none", "--on-reset=count"]);
    let to = both(bed)[0];
    // Few octets: on a busy machine many would bring the window up to what was forged before them.
    let ran = bed.loaded(&format!(
        "probe --target tcp://{to} --connections {n} --pattern upload --body-size 4096 --forge above-window"
    ));
    boom.stop(SOON).unwrap();
    assert_eq!(ran.result.forge.unwrap().outcomes[0].forged, n);
    ran.result.probe.get(&ProbeEnd::Reset).copied().unwrap_or(0)
}

/// A client's own INVALID segment reaches the node, which ends the client's connection; the drop
/// in FORWARD does not see it.
fn the_nodes_reset_ends_an_upload() {
    let bed = Bed::path(Path::NodePortLocal);
    bed.protect(&["forward-drop"]);
    let witness = watch(&bed, "node1");
    assert_eq!(uploads_forged(&bed, 10), 10);
    let w = end(witness).result;
    complete(&w);
    assert_eq!(only(&w, Cause::AnsweredByNode, Direction::ClientToServer), 10);
    assert!(w.examples.iter().all(|e| e.service.as_deref() == Some("198.18.0.11:30900")));
}

/// The same with a drop in INPUT: no client is reset, none is named.
fn a_drop_in_input_saves_the_upload() {
    let bed = Bed::path(Path::NodePortLocal);
    bed.protect(&["input-drop"]);
    let witness = watch(&bed, "node1");
    assert_eq!(uploads_forged(&bed, 5), 0);
    let w = end(witness).result;
    complete(&w);
    assert_eq!((w.connections.len(), w.verdict), (0, Verdict::Protected));
    // Five connections, five rounds on each.
    assert_eq!(w.unanswered[&Reason::SeqOver], 25);
}

/// Where nothing is translated INVALID ends nothing.
fn an_untranslated_path_has_nothing_to_name() {
    let bed = Bed::path(Path::PodIp);
    let witness = watch(&bed, "node1");
    let boom = forged(&bed, &both(&bed), 6, ALL);
    let w = end(witness).result;
    complete(&w);
    assert_eq!((killed(&boom), w.connections.len(), w.verdict), (0, 0, Verdict::Protected));
}

/// An entry that is deleted in mid-stream ends connections too, when the server speaks first: not
/// by INVALID, and the witness does not say so.
fn a_deleted_entry_is_never_called_invalid() {
    let bed = Bed::path(Path::ClusterIp);
    let boom = bed.boom(&["--forge=control", "--on-reset=count"]);
    let witness = watch(&bed, "node1");
    let held = bed.connect(both(&bed)[0], 8);
    // An answer that comes after the entry is gone.
    for mut stream in &held {
        use std::io::Write as _;
        stream.write_all(b"answer 500 10 1\n").unwrap();
    }
    bed.within("node1", || canary_conntrack::table::Table::open().unwrap().flush().unwrap());
    let dead = held.iter().filter(|stream| {
        use std::io::Read as _;
        let mut s: &TcpStream = stream;
        s.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        s.read_exact(&mut [0; 10]).is_err()
    });
    assert!(dead.count() > 0, "the cause is staged in vain");
    drop(held);
    let w = end(witness).result;
    complete(&w);
    let ended = w.connections.iter().filter(|c| c.cause.ended()).count();
    assert_eq!(ended, 0, "{:?}", w.connections);
    boom.stop(SOON).unwrap();
}

/// Beside `WITNESS_CHURN` connections of ordinary churn (3,000 unless told) that close with FIN and
/// with RST, take ports again, and lose, double and reorder segments, one in a thousand is really
/// killed: every one of these is named, and nobody else is accused; at most left unexplained.
fn ordinary_traffic_beside_killed_connections() {
    let churn = std::env::var("WITNESS_CHURN").map_or(3000, |n| n.parse::<usize>().unwrap());
    let (bed, _network) = Bed::through(Path::ClusterIp, KINDS[KINDS.len() - 1].1);
    let serve = bed.serve("0.0.0.0:9001");
    bed.sh(
        "node1",
        "nft 'table ip w { chain p { type nat hook prerouting priority -110; \
         ip daddr 198.19.0.10 tcp dport 81 dnat to 198.18.66.20:9001; }; }'",
    );
    let witness = watch(&bed, "node1");
    let churns = ["fin", "rst"].map(|close| {
        let words = format!(
            "churn --target=http://198.19.0.10:81/ --connections={} --concurrency=400 \
             --close={close} --timeout=60s",
            churn / 2
        );
        bed.load(&words)
    });
    let (mut left, mut ended, mut open) = ((churn / 1000).max(20), 0, 0);
    while left > 0 {
        let n = left.min(100);
        left -= n;
        let boom = forged(&bed, &both(&bed)[..1], n, "--forge=above-window");
        ended += killed(&boom);
        // A reset that the network lost, or that came late, was not seen at the server.
        open += boom.outcomes.iter().map(|o| o.counts.unknown.values().sum::<u64>()).sum::<u64>();
    }
    let patience = SOON + Duration::from_millis(churn as u64);
    let churned = churns.map(|c| c.end(patience).unwrap().result.attempts);
    let w = end(witness).result;
    complete(&w);
    assert_eq!(churned.iter().sum::<u64>(), churn as u64);
    let own = |c: &&CauseCount| c.cause == Cause::AnsweredByClient;
    let named: u64 = w.connections.iter().filter(own).map(|c| c.count).sum();
    let other: Vec<_> = w.connections.iter().filter(|c| !own(c)).collect();
    assert!(other.iter().all(|c| c.cause == Cause::Unexplained), "{other:?}");
    println!("{churn} beside {ended} killed and {open} unknown: {named} named, {other:?}");
    assert!(ended > 0 && (ended..=ended + open).contains(&named), "{ended}, {open}, {named}");
    let services: Vec<_> = w.services.iter().map(|s| (s.address.as_str(), s.count)).collect();
    assert_eq!(services, [("198.19.0.10:80", named)]);
    serve.signal(Signal::SIGTERM);
    serve.wait(SOON).unwrap();
}

/// SIGTERM and SIGINT put every kernel value back, and leave no file.
fn signals_put_the_kernel_back() {
    let bed = Bed::path(Path::SameNode);
    let before = bed.sh("node1", VALUES);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let witness = watch(&bed, "node1");
        assert_eq!(bed.sh("node1", VALUES), "6\nnfnetlink_log\nnfnetlink_log\n");
        witness.signal(signal);
        let ended = witness.end(SOON).unwrap();
        assert_eq!(bed.sh("node1", VALUES), before);
        complete(&ended.result);
        assert_eq!(state_files(&bed), Vec::<PathBuf>::new());
    }
}

fn state_files(bed: &Bed) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bed.file("")).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.display().to_string().contains("load-client-witness-")).collect()
}

/// After SIGKILL the values stand; the next witness puts them back, says so, and puts them back
/// for itself too.
fn the_next_one_puts_back_what_a_killed_one_left() {
    let bed = Bed::path(Path::SameNode);
    let before = bed.sh("node1", VALUES);
    let witness = watch(&bed, "node1");
    witness.signal(Signal::SIGKILL);
    witness.wait(SOON).unwrap();
    assert_eq!(bed.sh("node1", VALUES), "6\nnfnetlink_log\nnfnetlink_log\n");
    assert_eq!(state_files(&bed).len(), 1);
    let Ended { result, text, .. } = end(watch(&bed, "node1"));
    assert_eq!(bed.sh("node1", VALUES), before);
    assert_eq!(state_files(&bed), Vec::<PathBuf>::new());
    assert!(text.contains("put back what a witness that was killed had left"), "{text}");
    let told = result.reasons.iter().filter(|r| r.starts_with("put back for a killed witness"));
    assert_eq!(told.count(), 3, "{:?}", result.reasons);
}

/// Runs a witness that cannot watch; gives its line.
fn refused(bed: &Bed, call: &Call) -> String {
    let out = bed.run("node1", call);
    assert_eq!(out.status.code(), Some(11), "{out:?}");
    let result: WitnessResult = document(&out.stdout).unwrap();
    assert_eq!((result.verdict, result.reasons.len()), (Verdict::Inconclusive, 1));
    let line = out.stderr.trim_end().to_owned();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(line, format!("error: {}", result.reasons[0]));
    line
}

/// Two witnesses cannot listen at once: the second says so and changes nothing.
fn a_second_listener_is_told() {
    let bed = Bed::path(Path::SameNode);
    let first = watch(&bed, "node1");
    let second = Program::<WitnessResult>::new("load-client", &options(&bed, &[])).unwrap();
    let line = refused(&bed, &second.call());
    assert!(line.contains("somebody else listens on NFLOG group 0 (ulogd?"), "{line}");
    assert_eq!(bed.sh("node1", VALUES), "6\nnfnetlink_log\nnfnetlink_log\n");
    complete(&end(first).result);
}

/// Where the kernel's values cannot be written, one line says which, and nothing is changed.
fn without_the_right_to_set_nothing_is_changed() {
    let bed = Bed::path(Path::SameNode);
    let before = bed.sh("node1", VALUES);
    let program = built("load-client").unwrap();
    let args = options(&bed, &[]).join(" ");
    let shell = format!(
        "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec {} {args}",
        program.display()
    );
    let call = Call::new(std::path::Path::new("unshare"), &["-m", "sh", "-ec", &shell]);
    let line = refused(&bed, &call);
    assert!(
        line.contains("cannot write /proc/sys/net/netfilter/nf_conntrack_log_invalid"),
        "{line}"
    );
    assert_eq!(bed.sh("node1", VALUES), before);
    assert_eq!(state_files(&bed), Vec::<PathBuf>::new());
    // And without CAP_NET_ADMIN it is said what is missing.
    let none = format!(
        "exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin {} {args}",
        program.display()
    );
    let line = refused(&bed, &Call::new(std::path::Path::new("sh"), &["-ec", &none]));
    assert!(line.contains("it needs CAP_NET_ADMIN in this network namespace"), "{line}");
}

/// An ordinary user watches a namespace of their own.
fn an_ordinary_users_namespace_can_be_watched() {
    needs_root("it becomes another user first");
    let bed = Bed::path(Path::SameNode);
    let program = built("load-client").unwrap();
    // The tests' own directory is root's.
    let testbed = tempfile::Builder::new().prefix("witness-user").tempdir_in("/tmp").unwrap();
    let copy = testbed.path().join("load-client");
    std::fs::copy(program, &copy).unwrap();
    let dir = testbed.path().display();
    std::process::Command::new("chmod").args(["-R", "a+rwx"]).arg(testbed.path()).status().unwrap();
    let line = format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups unshare -rn sh -ec '{dir}/load-client \
         witness --duration=500ms --state-dir={dir} --log=json; {VALUES}'"
    );
    let out = bed.run("client", &Call::new(std::path::Path::new("sh"), &["-c", &line]));
    let result: WitnessResult = document(&out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(11), "{out:?}");
    complete(&result);
    assert_eq!(result.changed.len(), 3);
    let [nothing, unread] = &result.reasons[..] else { panic!("{:?}", result.reasons) };
    assert_eq!(nothing, "conntrack tracked nothing in this network namespace");
    // xt_proto_init() makes these files before unshare(1) has mapped the namespace's root.
    assert!(unread.starts_with("rules that could not be read: legacy iptables' tables of ip "));
}

/// As an unprivileged container has it (`k8s/overlays/witness`): a read-only /proc/sys, netfilter's
/// values mounted elsewhere, and no capability but NET_ADMIN.
fn one_mount_and_one_capability_are_enough() {
    needs_root("it gives its capabilities up");
    let bed = Bed::path(Path::SameNode);
    let before = bed.sh("node1", VALUES);
    let program = built("load-client").unwrap();
    let (mounted, state) = (bed.file("netfilter"), bed.file("state"));
    for dir in [&mounted, &state] {
        std::fs::create_dir(dir).unwrap();
    }
    let shell = format!(
        "mount --bind /proc/sys/net/netfilter {m} && mount --bind /proc/sys /proc/sys && \
         mount -o remount,ro,bind /proc/sys && exec setpriv --bounding-set=-all,+net_admin \
         --inh-caps=-all --no-new-privs {p} witness --log=json --duration=500ms --sysctl-dir={m} \
         --state-dir={s}",
        m = mounted.display(),
        p = program.display(),
        s = state.display()
    );
    let call = Call::new(std::path::Path::new("unshare"), &["-m", "sh", "-ec", &shell]);
    let out = bed.run("node1", &call);
    let result: WitnessResult = document(&out.stdout).unwrap();
    complete(&result);
    assert_eq!(result.reasons, ["conntrack tracked nothing in this network namespace"], "{out:?}");
    assert_eq!(result.changed.len(), 3);
    assert_eq!(bed.sh("node1", VALUES), before);
}

/// Messages that the kernel had collected and not sent when the watch was ended, in a hurry, are in
/// its result.
fn what_the_kernel_still_held_is_read() {
    let bed = Bed::path(Path::SameNode);
    bed.sh(
        "node1",
        "nft 'table inet o { chain p { type filter hook prerouting priority -350; \
         udp dport 9 log group 0; }; }'",
    );
    let witness = watch(&bed, "node1");
    bed.within("node1", || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        (0..40).for_each(|_| drop(socket.send_to(b"x", "127.0.0.1:9")));
    });
    witness.signal(Signal::SIGTERM);
    let w = end(witness).result;
    complete(&w);
    assert_eq!(w.messages.foreign, 40, "{:?}", w.messages);
}

/// A real document obeys schema/witness.json, which is that of the types.
fn real_output_obeys_the_schema() {
    let schema = schemars::schema_for!(WitnessResult);
    canary_testbed::golden::schema("witness.json", &schema);
    let bed = Bed::path(Path::SameNode);
    let witness = watch(&bed, "node1");
    forged(&bed, &both(&bed)[..1], 2, "--forge=above-window");
    let text = end(witness).text;
    let document = document(&text).unwrap();
    let validator = jsonschema::validator_for(&serde_json::to_value(schema).unwrap()).unwrap();
    let errors: Vec<_> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    assert!(!validator.is_valid(&serde_json::json!({"schema_version": 1})));
}
