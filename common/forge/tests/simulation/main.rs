//! The state machine in simulated networks, at either end, against models of TCP and of
//! conntrack: no outcome may be wrong, and no verdict. `SIM_CONNECTIONS` says how many
//! connections (20,000 unless told; `make properties` runs a million, `make simulation` ten).

mod host;
mod path;
#[path = "../support/window.rs"]
mod window;
mod world;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use canary_forge::diagnose::{self, Context};
use canary_forge::drive::Done;
use canary_forge::flow::{End, Settings};
use canary_forge::tally::Tally;
use canary_record::names::{ClientClass, Diagnosis, Direction, Forgery, Verdict};
use canary_record::outcome::Fate;

use path::{NETWORKS, Network, PATHS, Path};
use world::{Peer, Random, World};

/// What is forged by turns: all that the design's table has, the default, and the safe set.
const SETS: [&[Forgery]; 3] = [
    &[
        Forgery::Control,
        Forgery::BelowWindow,
        Forgery::AboveWindow,
        Forgery::AckAhead,
        Forgery::NoFlags,
        Forgery::SynFin,
    ],
    &[Forgery::AboveWindow, Forgery::BelowWindow],
    Forgery::SAFE,
];

fn ends() -> [End; 2] {
    let (server, any) = (([198, 18, 0, 1], 9000), ([0, 0, 0, 0], 9000));
    [
        End::Client { target: SocketAddr::from(server) },
        End::Server { listen: vec![SocketAddr::from(any)], local: vec![] },
    ]
}

/// Counts of one network.
#[derive(Default)]
struct Found {
    /// Of peers that stay, on paths that leave their answers readable.
    stayed: u64,
    unknown: u64,
    /// Segments that leaked to peers which closed by FIN, and those of them that were seen.
    closed: u64,
    closed_seen: u64,
    wrong: Vec<String>,
}

/// `n` connections of one kind of path, network, end and set of forgeries; what is said of them.
fn group(
    seed: u64,
    n: u64,
    network: Network,
    path: Path,
    end: &End,
    set: &[Forgery],
    found: &mut Found,
) {
    let mut tally = Tally::default();
    for i in 0..n {
        let mut random = Random(seed << 32 | i);
        let forgeries = vec![set[random.below(set.len() as u64) as usize]];
        let delay = [0, 0, 0, 5, 100][random.below(5) as usize];
        let settings = Settings {
            forgeries,
            outcome_timeout: Duration::from_millis(400),
            forge_delay: Duration::from_millis(delay),
            capacity: 4,
            end: end.clone(),
        };
        let mut w = World::new(random.next(), network, path, end);
        w.run(settings, |action| tally.done(&Done::Noted(action.clone()), |_| ClientClass::Pod));
        if let Some(what) = w.wrong.take() {
            found.wrong.push(format!(
                "{seed} {i}: {what}, {:?}, {}, {}, {end:?}",
                w.peer, path.name, network.name
            ));
        }
        if let [forging] = w.forgings[..] {
            let unknown = matches!(forging.fate, None | Some(Fate::Unknown(_)));
            if w.peer.stays() && path.readable() {
                found.stayed += 1;
                found.unknown += u64::from(unknown);
            }
            if w.peer == Peer::Closes && forging.truth.leaked > 0 {
                found.closed += 1;
                found.closed_seen += u64::from(forging.fate.is_some_and(Fate::reset));
            }
        }
    }
    let client = matches!(end, End::Client { .. });
    let direction = if client { Direction::ClientToServer } else { Direction::ServerToClient };
    let (called_here, called_elsewhere) = if path.called_here { (n, 0) } else { (0, n) };
    let handshakes = tally.handshakes.finished;
    let context = Context { min_forged: 20, direction, called_here, called_elsewhere, handshakes };
    let harms = path.harms(set);
    for said in diagnose::paths(&tally.outcomes(), &context) {
        let verdict = match said.verdict {
            Verdict::Protected => !harms,
            Verdict::Vulnerable => harms,
            Verdict::Inconclusive => true,
        };
        let named =
            said.diagnosis == Diagnosis::Inconclusive || path.names.contains(&said.diagnosis);
        if !verdict || !named {
            let outcomes: BTreeMap<_, _> =
                tally.outcomes().into_iter().map(|o| (o.forgery, o.counts)).collect();
            found.wrong.push(format!(
                "{} {:?} of {n} on '{}', {}, {end:?}: {outcomes:?}",
                said.verdict, said.diagnosis, path.name, network.name
            ));
        }
        // A verdict is given where there is enough to see.
        let enough = n >= 400 && network.name == "clean" && path.readable();
        let lethal = set.contains(&Forgery::AboveWindow);
        if enough && (lethal || harms) && said.verdict == Verdict::Inconclusive {
            found.wrong.push(format!("no verdict on '{}' of {n}, {end:?}: {said:?}", path.name));
        }
    }
}

/// In every network, on every path and at either end no outcome is wrong, no verdict, and no
/// name; unknown are at most 1% on a clean network and 10% on the worst, of peers that stay.
#[test]
fn nothing_is_judged_wrongly() {
    let all: u64 =
        std::env::var("SIM_CONNECTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let groups = NETWORKS.len() * PATHS.len() * 2 * SETS.len();
    let each = all.div_ceil(groups as u64);
    let mut seed = 0;
    let mut wrong = Vec::new();
    for (nth, network) in NETWORKS.iter().enumerate() {
        let mut found = Found::default();
        for path in PATHS {
            for end in ends() {
                for set in SETS {
                    seed += 1;
                    group(seed, each, *network, path, &end, set, &mut found);
                }
            }
        }
        let Found { stayed, unknown, closed, closed_seen, .. } = found;
        println!(
            "{}: {stayed} stayed, {unknown} unknown ({:.3}%); {closed} leaked after FIN, {closed_seen} seen",
            network.name,
            unknown as f64 * 100.0 / stayed as f64
        );
        let most = if nth == 0 { 1 } else { 10 };
        wrong.append(&mut found.wrong);
        if unknown * 100 > stayed * most {
            wrong.push(format!("{unknown} of {stayed} unknown: {}", network.name));
        }
        if nth == 0 && closed_seen * 1000 < closed * 975 {
            wrong.push(format!("{closed_seen} of {closed} leaks seen of peers that close by FIN"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(12)]);
}
