//! The second judge: what the kernel itself said on each node, by load-client's witness, against
//! what boom-server and load-client saw. A disagreement makes the cell inconclusive. Pure.

use canary_record::names::{self, Forgery};
use canary_record::result::witness::{Cause, Direction, Ended, InTable, Reason, WitnessResult};
use canary_testbed::capture::Reset;

use crate::document::lab::WitnessSaid;
use crate::observed::saturation::Heard;

/// What a witness on `node` said, as the results have it.
pub(crate) fn said(node: &str, w: &WitnessResult) -> WitnessSaid {
    let m = w.messages;
    let mut weak = Vec::new();
    if m.lost + m.forgotten + m.overruns > 0 {
        weak.push(format!(
            "the witness on {node} lost {} messages of the kernel, and forgot {}",
            m.lost, m.forgotten
        ));
    }
    weak.extend(w.unheard.iter().map(|why| format!("the witness on {node}: {why}")));
    weak.extend(deaf(node, w));
    for c in w.changed.iter().filter(|c| !c.restored) {
        weak.push(format!("the witness on {node} could not put {} back", c.key));
    }
    WitnessSaid {
        node: node.to_owned(),
        connections: w.connections.clone(),
        harmless: w.harmless,
        uncertain: w.already_closing
            + w.stray_resets
            + w.segments.get(&Reason::Ignored).unwrap_or(&0),
        services: w.services.iter().map(|hit| hit.address.clone()).collect(),
        texts: w.texts.clone(),
        weak,
    }
}

/// Why a witness could not have heard what answered the segments that it heard of: older kernels do
/// not log that.
pub(crate) fn deaf(node: &str, w: &WitnessResult) -> Option<String> {
    (!w.resets_logged && !w.unanswered.is_empty()).then(|| {
        format!("the kernel of {node} may not log the resets that answer INVALID segments")
    })
}

/// How many connections a witness names as ended by a segment that was no FIN, of those that it tells one by one.
pub(crate) fn named_alive(w: &WitnessResult) -> u64 {
    // Who sends FIN after its entry has gone has closed: no program misses that connection.
    let alive = |e: &&Ended| e.cause.ended() && !e.flags.contains("FIN");
    w.examples.iter().filter(alive).count() as u64
}

/// What keeps the witnesses on that many `nodes` and the programs from telling one story: `ended`
/// connections, all to `target`, by segments that were forged in `direction`. Where `unheard`,
/// connections may end by what conntrack calls valid.
pub(crate) fn doubts(
    witnesses: &[WitnessSaid],
    nodes: usize,
    ended: u64,
    direction: names::Direction,
    target: &str,
    unheard: bool,
) -> Vec<String> {
    // Without a whole hearing there is nothing to compare; who began none has said why.
    if witnesses.len() < nodes || witnesses.iter().any(|w| !w.weak.is_empty()) {
        return Vec::new();
    }
    let mut doubts = Vec::new();
    let all = || witnesses.iter().flat_map(|w| &w.connections);
    let named: u64 = all().filter(|c| c.cause.ended()).map(|c| c.count).sum();
    let unexplained: u64 = all().filter(|c| !c.cause.ended()).map(|c| c.count).sum();
    let uncertain: u64 = witnesses.iter().map(|w| w.uncertain).sum();
    if named > ended {
        doubts.push(format!(
            "the kernel's words name {named} connections as ended, boom-server and load-client {ended}"
        ));
    } else if named + unexplained + uncertain < ended && !unheard {
        doubts.push(format!(
            "{ended} connections were ended, the kernel's words name {named} and leave {unexplained} \
             unexplained"
        ));
    }
    let (other, whose) = match direction {
        names::Direction::ClientToServer => (Direction::ServerToClient, "server's"),
        _ => (Direction::ClientToServer, "clients'"),
    };
    let others: u64 = all().filter(|c| c.direction == other).map(|c| c.count).sum();
    if others > 0 {
        doubts.push(format!(
            "the kernel's words put {others} resets down to the {whose} segments: none was forged"
        ));
    }
    for service in witnesses.iter().flat_map(|w| &w.services).filter(|s| *s != target) {
        doubts.push(format!("the kernel's words name the Service {service}, not {target}"));
    }
    doubts
}

/// What keeps a witness' words on a step of a table that fills and what is known of it from elsewhere
/// from being one story.
pub(crate) fn in_a_table(heard: &Heard, w: &WitnessResult) -> Vec<String> {
    let mut differs = Vec::new();
    // What an older kernel does not log is no loss: there only the table is compared.
    if w.resets_logged {
        let said = said("the node", w);
        let named: u64 = w.connections.iter().filter(|c| c.cause.ended()).map(|c| c.count).sum();
        // Who sends FIN after its entry has gone has closed: no program misses that connection.
        let closed = |e: &&Ended| e.cause == Cause::NoEntry && e.flags.contains("FIN");
        let closed = w.examples.iter().filter(closed).count() as u64;
        // boom-server may not know what became of some, in a table without room.
        let ended = named.clamp(heard.killed, heard.killed + heard.unknown + closed);
        let direction = names::Direction::ServerToClient;
        differs.extend(said.weak.iter().cloned());
        differs.extend(doubts(&[said], 1, ended, direction, &heard.target, false));
    }
    let read = InTable::of(&heard.conntrack);
    for what in InTable::ALL {
        let [told, counted] = [&w.table, &read].map(|of| of.get(what).copied().unwrap_or(0));
        // It watched a little longer than the counters were read.
        if told < counted || (counted == 0 && told > 0) {
            differs.push(format!("{what}: the witness tells of {told}, the counters of {counted}"));
        }
        if told == 0 && heard.shows.contains(what) {
            differs.push(format!("{what}: connections show it, the witness does not tell of it"));
        }
    }
    if let Some(resets) = heard.resets
        && (w.half_open_resets > resets || (resets > 0) != (w.half_open_resets > 0))
    {
        differs.push(format!(
            "half-open connections: the witness tells of {} resets, {resets} reached the server",
            w.half_open_resets
        ));
    }
    differs
}

/// What the kernel said of the segment that `reset` answers: of that very one, or else of all that
/// were forged alike.
pub(crate) fn words(witnesses: &[(String, WitnessResult)], reset: Reset) -> Option<String> {
    /// What a request of the lab's clients is shorter than.
    const REQUEST: u32 = 0x1_0000;
    let about = match reset.forgery {
        Forgery::Control => return None,
        Forgery::BelowWindow => Reason::SeqUnder,
        Forgery::AboveWindow | Forgery::Overshoot => Reason::SeqOver,
        Forgery::AckAhead => Reason::AckOver,
        Forgery::NoFlags | Forgery::SynFin => Reason::BadFlags,
    };
    let fits = |text: &&String| Reason::of(text) == about;
    let this = |e: &&Ended| e.ack.wrapping_sub(reset.client_isn.0) < REQUEST;
    let results = || witnesses.iter().map(|(_, w)| w);
    let exact = results().flat_map(|w| w.examples.iter().filter(this).map(|e| &e.text)).find(fits);
    exact.or_else(|| results().flat_map(|w| w.texts.keys()).find(fits)).cloned()
}

#[cfg(test)]
pub(in crate::judge) mod tests {
    use canary_record::result::observe::ConntrackCounters;
    use canary_record::result::witness::{Cause, CauseCount};
    use canary_wire::seq::Seq;

    use super::*;

    fn witness(cause: Cause, direction: Direction, count: u64) -> WitnessSaid {
        WitnessSaid {
            node: "node1".to_owned(),
            connections: vec![CauseCount { cause, direction, count }],
            services: vec!["198.19.0.10:80".to_owned()],
            ..WitnessSaid::default()
        }
    }

    /// What a witness may have taken for less than it was: late looks, and ports used again.
    #[test]
    fn what_it_may_have_missed_is_told() {
        let mut w = silent();
        assert_eq!(said("node1", &w).uncertain, 0);
        (w.already_closing, w.stray_resets) = (1, 2);
        w.segments.insert(Reason::Ignored, 4);
        assert_eq!(said("node1", &w).uncertain, 7);
    }

    /// The result of a witness that heard nothing.
    pub(in crate::judge) fn silent() -> WitnessResult {
        serde_json::from_value(serde_json::json!({
            "schema_version": 2, "run": canary_record::result::Clock::start().run(
                "load-client witness", "0", names::EndedBy::Completed, canary_record::result::Config::new()),
            "verdict": "protected", "reasons": [], "source": "kernel", "seconds_watched": 1.0,
            "messages": { "received": 3, "foreign": 0, "unreadable": 0, "lost": 0, "overruns": 0, "forgotten": 0 },
            "segments": {}, "unanswered": {}, "texts": {}, "resets_logged": true, "stray_resets": 0,
            "connections": [], "harmless": 0, "already_closing": 0, "services": [], "clients": [],
            "servers": [], "conntrack": null, "examples": [], "changed": []
        }))
        .unwrap()
    }

    pub(in crate::judge) fn ended(ack: u32, text: &str) -> Ended {
        Ended {
            t: 0.0,
            cause: Cause::AnsweredByClient,
            direction: S2C,
            client: None,
            service: None,
            server: None,
            from: String::new(),
            to: String::new(),
            seq: 1,
            ack,
            flags: String::new(),
            reason: Reason::SeqOver,
            text: text.to_owned(),
            answered_us: 1,
            states: [None, None],
            entry_outlived: None,
            facts: Vec::new(),
        }
    }

    const FORGED: names::Direction = names::Direction::ServerToClient;
    const TARGET: &str = "198.19.0.10:80";
    const S2C: Direction = Direction::ServerToClient;

    /// The nodes' witnesses together have to name what was ended, no more and no less.
    #[test]
    fn the_sum_has_to_agree() {
        let ten = witness(Cause::AnsweredByClient, S2C, 10);
        let none = WitnessSaid { node: "node2".to_owned(), ..WitnessSaid::default() };
        assert_eq!(
            doubts(&[ten.clone(), none.clone()], 2, 10, FORGED, TARGET, false),
            Vec::<String>::new()
        );
        let late = WitnessSaid { uncertain: 1, ..ten.clone() };
        let late =
            |ended| doubts(&[late.clone(), none.clone()], 2, ended, FORGED, TARGET, false).len();
        assert_eq!([9, 10, 11, 12].map(late), [1, 0, 0, 1]);
        for ended in [9, 11] {
            assert_eq!(
                doubts(&[ten.clone(), none.clone()], 2, ended, FORGED, TARGET, false).len(),
                1,
                "{ended}"
            );
        }
        assert_eq!(doubts(&[ten.clone(), ten], 2, 10, FORGED, TARGET, false).len(), 1);
        assert_eq!(doubts(std::slice::from_ref(&none), 1, 3, FORGED, TARGET, false).len(), 1);
        assert_eq!(doubts(&[none], 1, 3, FORGED, TARGET, true), Vec::<String>::new());
    }

    /// What is unexplained may be any of those that were ended, and accuses nobody.
    #[test]
    fn what_is_unexplained_contradicts_nothing() {
        let open = witness(Cause::Unexplained, S2C, 10);
        assert_eq!(
            doubts(std::slice::from_ref(&open), 1, 10, FORGED, TARGET, false),
            Vec::<String>::new()
        );
        assert_eq!(
            doubts(std::slice::from_ref(&open), 1, 0, FORGED, TARGET, false),
            Vec::<String>::new()
        );
        assert_eq!(doubts(&[open], 1, 11, FORGED, TARGET, false).len(), 1);
    }

    /// A wrong direction or Service is a disagreement; a witness that lost something is silent.
    #[test]
    fn direction_and_service_have_to_agree() {
        let upload = witness(Cause::AnsweredByNode, Direction::ClientToServer, 5);
        assert_eq!(doubts(std::slice::from_ref(&upload), 1, 5, FORGED, TARGET, false).len(), 1);
        let forged = names::Direction::ClientToServer;
        assert_eq!(
            doubts(std::slice::from_ref(&upload), 1, 5, forged, TARGET, false),
            Vec::<String>::new()
        );
        let other = witness(Cause::AnsweredByClient, S2C, 5);
        assert_eq!(doubts(std::slice::from_ref(&other), 1, 5, forged, TARGET, false).len(), 1);
        assert_eq!(
            doubts(std::slice::from_ref(&other), 1, 5, FORGED, "198.18.0.11:30900", false).len(),
            1
        );
        let weak = WitnessSaid { weak: vec!["lost".to_owned()], ..other };
        assert_eq!(doubts(&[weak], 1, 0, FORGED, TARGET, false), Vec::<String>::new());
    }

    /// A node that nobody listened on leaves nothing to compare: it is no witness of silence.
    #[test]
    fn without_a_witness_on_each_node_nothing_is_compared() {
        let none = WitnessSaid { node: "node2".to_owned(), ..WitnessSaid::default() };
        let of = |nodes| doubts(std::slice::from_ref(&none), nodes, 10, FORGED, TARGET, false);
        assert_eq!(of(2), Vec::<String>::new());
        assert_eq!(of(1).len(), 1);
    }

    /// In a table that fills the witness must name what boom-server ended and no more, what the counters
    /// and the connections show of the table and nothing else, and no more half-open connections than
    /// there were resets.
    #[test]
    fn a_table_is_told_apart_or_it_is_a_doubt() {
        let five = CauseCount { cause: Cause::AnsweredByClient, direction: S2C, count: 5 };
        let w = WitnessResult {
            connections: vec![five],
            table: [(InTable::Full, 8), (InTable::EarlyDrop, 2)].into(),
            half_open_resets: 2,
            ..silent()
        };
        let conntrack =
            ConntrackCounters { drop: 7, early_drop: 2, ..ConntrackCounters::default() };
        let heard = Heard {
            place: "full".to_owned(),
            target: TARGET.to_owned(),
            witness: Ok(w.clone()),
            conntrack,
            killed: 5,
            unknown: 0,
            shows: vec![InTable::Full],
            resets: Some(2),
        };
        let of = |change: &dyn Fn(&mut Heard, &mut WitnessResult)| {
            let (mut heard, mut w) = (heard.clone(), w.clone());
            change(&mut heard, &mut w);
            in_a_table(&heard, &w).len()
        };
        assert_eq!(in_a_table(&heard, &w), Vec::<String>::new());
        assert_eq!(of(&|h, _| h.killed = 4), 1);
        assert_eq!(of(&|h, _| (h.killed, h.unknown) = (4, 1)), 0);
        assert_eq!(of(&|h, _| h.killed = 6), 1);
        assert_eq!(of(&|_, w| w.messages.lost = 1), 1);
        assert_eq!(of(&|h, w| (h.killed, w.resets_logged) = (0, false)), 0);
        assert_eq!(of(&|_, w| w.table = [(InTable::EarlyDrop, 2)].into()), 2);
        assert_eq!(of(&|_, w| w.table = [(InTable::Full, 8), (InTable::Clash, 2)].into()), 2);
        assert_eq!(of(&|h, _| h.shows.push(InTable::Clash)), 1);
        let gone = |flags: &str| {
            let flags = flags.to_owned();
            let example = Ended { cause: Cause::NoEntry, flags, ..ended(1, "invalid new") };
            move |_: &mut Heard, w: &mut WitnessResult| {
                let direction = Direction::Unknown;
                w.connections.push(CauseCount { cause: Cause::NoEntry, direction, count: 1 });
                w.examples.push(example.clone());
            }
        };
        assert_eq!(of(&gone("FIN ACK")), 0);
        assert_eq!(of(&gone("PSH ACK")), 1);
        assert_eq!(of(&|h, _| h.resets = Some(1)), 1);
        assert_eq!(of(&|h, _| h.resets = Some(0)), 1);
        assert_eq!(of(&|h, _| h.resets = None), 0);
    }

    /// The words are those of the very segment where a witness has it, else those of its kind, and
    /// never those of another forgery.
    #[test]
    fn the_words_are_of_the_segment() {
        let texts = ["SEQ is over upper bound N", "ACK is over upper bound N"];
        let w = WitnessResult {
            texts: [(texts[0].to_owned(), 2), (texts[1].to_owned(), 1)].into(),
            examples: vec![
                ended(500, "SEQ is over upper bound 7"),
                ended(9_000_100, "SEQ is over upper bound 8"),
            ],
            ..silent()
        };
        let heard = [("node1".to_owned(), w)];
        let of = |forgery, isn| words(&heard, Reset { forgery, client_isn: Seq(isn) });
        assert_eq!(
            of(Forgery::AboveWindow, 9_000_000).as_deref(),
            Some("SEQ is over upper bound 8")
        );
        assert_eq!(of(Forgery::AboveWindow, 4_000_000).as_deref(), Some(texts[0]));
        assert_eq!(of(Forgery::AckAhead, 9_000_000).as_deref(), Some(texts[1]));
        assert_eq!(of(Forgery::SynFin, 9_000_000), None);
        assert_eq!(of(Forgery::Control, 9_000_000), None);
    }
}
