//! What a witness found, in the kernel's messages or in captures: pure, and bounded.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ahash::AHashMap;
use canary_record::names::Verdict;
use canary_record::result::witness::{
    Cause, CauseCount, Direction, EXAMPLES, Ended, Hit, MOST_HIT, Messages, Reason,
};

/// Addresses that are counted one by one at most.
const ADDRESSES: usize = 4096;

/// Addresses by how often they were hit. Bounded: the first to come have the room.
#[derive(Clone, Debug, Default)]
struct Most(AHashMap<String, u64>);

impl Most {
    fn add(&mut self, address: Option<&String>) {
        let Some(address) = address else { return };
        if let Some(n) = self.0.get_mut(address) {
            *n += 1;
        } else if self.0.len() < ADDRESSES {
            self.0.insert(address.clone(), 1);
        }
    }

    fn top(&self) -> Vec<Hit> {
        let hit =
            |(address, count): (&String, &u64)| Hit { address: address.clone(), count: *count };
        let mut hits: Vec<_> = self.0.iter().map(hit).collect();
        hits.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.address.cmp(&b.address)));
        hits.truncate(MOST_HIT);
        hits
    }
}

/// What was found so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Messages of the kernel, or packets.
    pub(crate) messages: Messages,
    pub(crate) segments: BTreeMap<Reason, u64>,
    /// Those of which no reset came.
    pub(crate) unanswered: BTreeMap<Reason, u64>,
    pub(crate) stray_resets: u64,
    /// Of these, those that answer a SYN ACK without an entry.
    pub(crate) half_open_resets: u64,
    /// Resets that were provoked and ended nothing: their receiver could not take them, or the
    /// connection was shown to live on.
    pub(crate) harmless: u64,
    /// Those on connections that were closing anyway.
    pub(crate) already_closing: u64,
    /// Connections by what became of them.
    pub(crate) connections: BTreeMap<(Cause, Direction), u64>,
    /// The first ones.
    pub(crate) examples: Vec<Ended>,
    services: Most,
    clients: Most,
    servers: Most,
}

impl Found {
    pub(crate) fn add(&mut self, ended: &Ended) {
        *self.connections.entry((ended.cause, ended.direction)).or_default() += 1;
        if ended.cause.ended() {
            self.services.add(ended.service.as_ref());
            self.clients.add(ended.client.as_deref().map(host).as_ref());
            self.servers.add(ended.server.as_deref().map(host).as_ref());
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(ended.clone());
        }
    }

    /// Connections that were ended, and those that are unexplained.
    pub(crate) fn totals(&self) -> (u64, u64) {
        self.connections.iter().fold((0, 0), |(ended, open), ((cause, _), n)| {
            if cause.ended() { (ended + n, open) } else { (ended, open + n) }
        })
    }

    /// What can be said, where something is `weak` beside what was found or nothing is.
    pub(crate) fn verdict(&self, weak: bool) -> Verdict {
        match self.totals() {
            (1.., _) => Verdict::Vulnerable,
            (0, 0) if !weak => Verdict::Protected,
            _ => Verdict::Inconclusive,
        }
    }

    /// As the result has it.
    pub(crate) fn causes(&self) -> Vec<CauseCount> {
        let count = |(&(cause, direction), &count)| CauseCount { cause, direction, count };
        self.connections.iter().map(count).collect()
    }

    /// The most hit: Services, clients, servers.
    pub(crate) fn most_hit(&self) -> [Vec<Hit>; 3] {
        [self.services.top(), self.clients.top(), self.servers.top()]
    }
}

/// The address without its port.
fn host(address: &str) -> String {
    address.parse::<SocketAddr>().map_or_else(|_| address.to_owned(), |a| a.ip().to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A connection that met this end.
    pub(crate) fn ended(cause: Cause, direction: Direction) -> Ended {
        Ended {
            t: 12.5,
            cause,
            direction,
            client: Some("198.18.65.10:56856".to_owned()),
            service: Some("198.19.0.10:80".to_owned()),
            server: Some("198.18.66.20:9000".to_owned()),
            from: "198.18.66.20:9000".to_owned(),
            to: "198.18.65.10:56856".to_owned(),
            seq: 1_261_697_329,
            ack: 7,
            flags: "PSH ACK".to_owned(),
            reason: Reason::SeqOver,
            text: "SEQ is over upper bound 3409261874 (<b>)".to_owned(),
            answered_us: 10,
            states: [None, None],
            entry_outlived: Some(true),
            facts: vec!["the entry outlived it".to_owned()],
        }
    }

    /// Segments that were heard, and those of them that nobody answered.
    pub(crate) fn heard<const N: usize>(
        segments: [(Reason, u64); N],
        unanswered: (Reason, u64),
    ) -> Found {
        let (segments, unanswered) = (segments.into(), [unanswered].into());
        Found { segments, unanswered, ..Found::default() }
    }

    /// The Service and both ends of what was ended are counted; what is unexplained hit nobody.
    #[test]
    fn who_was_hit_is_counted() {
        let mut found = Found::default();
        for cause in [Cause::AnsweredByClient, Cause::AnsweredByNode, Cause::Unexplained] {
            found.add(&ended(cause, Direction::ServerToClient));
        }
        assert_eq!((found.totals(), found.causes().len(), found.examples.len()), ((2, 1), 3, 3));
        let hit = |address: &str| vec![Hit { address: address.to_owned(), count: 2 }];
        let expected = ["198.19.0.10:80", "198.18.65.10", "198.18.66.20"].map(hit);
        assert_eq!(found.most_hit(), expected);
    }
}
