//! What boom-server's events tell of the segments that it has forged so far.

use std::collections::BTreeMap;

use canary_record::names::{Forgery, Outcome};
use serde_json::Value;

/// The connections that it forged on, or could not: of each the forgery, and what it was judged.
#[derive(Debug, Default)]
pub(super) struct Judging(BTreeMap<[String; 2], (Option<Forgery>, Option<Outcome>)>);

impl Judging {
    /// Reads one of its events.
    pub(super) fn hear(&mut self, line: &str) {
        let Ok(event) = serde_json::from_str::<Value>(line) else { return };
        let text = |name| event[name].as_str();
        let (Some(client), Some(server)) = (text("client"), text("server")) else { return };
        let outcome = text("outcome").and_then(|name| name.parse().ok());
        // What could not be sent is judged at once. A reset of another cause says nothing.
        if outcome.is_some() || text("message") == Some("connection established") {
            let forgery = text("forgery").and_then(|name| name.parse().ok());
            self.0.insert([client, server].map(str::to_owned), (forgery, outcome));
        }
    }

    /// Whether it knows of so many connections, and each of them is judged.
    pub(super) fn done(&self, connections: u64) -> bool {
        self.0.len() as u64 >= connections && self.0.values().all(|(_, outcome)| outcome.is_some())
    }

    /// The forgeries of which nobody knows what became.
    pub(super) fn unknown(&self) -> impl Iterator<Item = Forgery> {
        let unknown = |outcome: &Option<Outcome>| outcome.is_none_or(|o| o == Outcome::Unknown);
        self.0
            .values()
            .filter(move |(_, outcome)| unknown(outcome))
            .filter_map(|(forgery, _)| *forgery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(events: &[(&str, u16, &str)]) -> Judging {
        let mut judging = Judging::default();
        for (message, port, more) in events {
            judging.hear(&format!(
                "{{\"message\":\"{message}\",\"client\":\"198.18.65.10:{port}\",\
                 \"server\":\"198.18.66.20:9000\"{more}}}\n"
            ));
        }
        judging
    }

    /// Nobody goes on before each connection has its segment, and each segment its judgement, whatever
    /// it is; another's reset is none, and a port that is used again has another segment.
    #[test]
    fn it_is_done_when_each_is_judged() {
        let forged = |port| ("connection established", port, "");
        let (dropped, sent) = (",\"outcome\":\"dropped\"", ",\"outcome\":\"unknown\"");
        let (judged, killed) = (("judged", 1, dropped), ("ERROR: the client's RST", 2, dropped));
        for (events, done) in [
            (&[][..], false),
            (&[forged(1), judged], false),
            (&[forged(1), forged(2), judged], false),
            (&[forged(1), forged(2), judged, ("reset of another cause", 2, "")], false),
            (&[forged(1), forged(2), judged, killed], true),
            (&[forged(1), judged, ("judged", 2, sent)], true),
            (&[forged(1), forged(2), judged, killed, forged(1)], false),
        ] {
            assert_eq!(heard(events).done(2), done, "{events:?}");
        }
        let mut none = heard(&[]);
        none.hear("no event");
        assert!(none.done(0), "where no connection came to be, nobody is waited for");
    }
}
