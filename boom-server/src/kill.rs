//! The last connection that a forged segment ended, with the numbers that show it.

use std::collections::VecDeque;
use std::time::Duration;

use canary_forge::flow::{Judgement, Reset, ResetCause};
use canary_forge::forgery::Spec;
use canary_record::names::Forgery;
use canary_wire::segment::FourTuple;

/// Forged segments that are remembered; an older one's reset is shown by another's.
const RECENT: usize = 1024;
/// Who looks at it needs no more than one in so long.
const PAUSE: Duration = Duration::from_secs(1);

/// How one connection died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    /// On which connection.
    pub tuple: FourTuple,
    /// What was forged.
    pub forgery: Forgery,
    /// The forged segment.
    pub forged: Spec,
    /// The RST that answered.
    pub reset: Reset,
    /// From the forged segment's departure to the judgement.
    pub after: Duration,
}

/// Watches what the engine does and is told.
#[derive(Debug, Default)]
pub(crate) struct LastKill {
    recent: VecDeque<(FourTuple, Spec)>,
    answered: Option<(Forgery, Spec, Reset)>,
    found: Option<Kill>,
    not_before: Duration,
}

impl LastKill {
    /// A segment was forged.
    pub(crate) fn sent(&mut self, tuple: FourTuple, spec: Spec) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((tuple, spec));
    }

    /// An RST came.
    pub(crate) fn reset(&mut self, now: Duration, reset: &Reset) {
        let ResetCause::Forged(forgery) = reset.cause else { return };
        if now < self.not_before {
            return;
        }
        let sent = self.recent.iter().rev().find(|(tuple, _)| *tuple == reset.tuple);
        if let Some((_, spec)) = sent {
            self.answered = Some((forgery, *spec, *reset));
        }
    }

    /// A forged segment was judged.
    pub(crate) fn judged(&mut self, now: Duration, j: &Judgement) {
        let mine = self.answered.take_if(|(_, _, reset)| reset.tuple == j.tuple);
        if let Some((forgery, forged, reset)) = mine.filter(|_| j.fate.killed()) {
            self.found = Some(Kill { tuple: j.tuple, forgery, forged, reset, after: j.after });
            self.not_before = now + PAUSE;
        }
    }

    /// The last one, once.
    pub(crate) fn take(&mut self) -> Option<Kill> {
        self.found.take()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use canary_record::outcome::Fate;
    use canary_wire::segment::Flags;
    use canary_wire::seq::Seq;

    fn tuple(port: u16) -> FourTuple {
        let at = |last, port| std::net::SocketAddr::from(([198, 18, 0, last], port));
        FourTuple::new(at(1, 9000), at(2, port))
    }

    fn spec(ack: u32) -> Spec {
        let flags = Flags::PSH.with(Flags::ACK);
        Spec { seq: Seq(4_000_000_000), ack: Seq(ack), flags, payload: b"boom" }
    }

    fn reset(port: u16, seq: u32, cause: ResetCause) -> Reset {
        Reset { tuple: tuple(port), seq: Seq(seq), ack: Seq(0), flags: Flags::RST, cause }
    }

    pub(crate) fn kill() -> Kill {
        Kill {
            tuple: tuple(40000),
            forgery: Forgery::AboveWindow,
            forged: spec(7),
            reset: reset(40000, 7, ResetCause::Forged(Forgery::AboveWindow)),
            after: Duration::from_millis(3),
        }
    }

    fn judgement(port: u16, fate: Fate) -> Judgement {
        let after = Duration::from_millis(3);
        let forgery = Forgery::AboveWindow;
        Judgement { tuple: tuple(port), forgery, fate, after, replaces: None }
    }

    /// A connection that died is told with the numbers of its own forged segment, once.
    #[test]
    fn the_numbers_are_the_connections_own() {
        let mut last = LastKill::default();
        let forged = ResetCause::Forged(Forgery::AboveWindow);
        last.sent(tuple(40000), spec(7));
        last.sent(tuple(40001), spec(8));
        last.reset(Duration::ZERO, &reset(40000, 7, forged));
        last.judged(Duration::ZERO, &judgement(40000, Fate::Leaked { killed: true, node: false }));
        assert_eq!(last.take(), Some(kill()));
        assert_eq!(last.take(), None);
    }

    /// What leaked and lived, what another cause reset, and what comes a moment after are not.
    #[test]
    fn only_a_kill_is_told() {
        let mut last = LastKill::default();
        let forged = ResetCause::Forged(Forgery::AboveWindow);
        let dead = Fate::Leaked { killed: true, node: false };
        for (cause, fate) in [
            (forged, Fate::Leaked { killed: false, node: false }),
            (ResetCause::UnknownConnection, dead),
        ] {
            last.sent(tuple(40000), spec(7));
            last.reset(Duration::ZERO, &reset(40000, 7, cause));
            last.judged(Duration::ZERO, &judgement(40000, fate));
            assert_eq!(last.take(), None);
        }
        for (now, told) in [(0, true), (500, false), (1000, true)] {
            let now = Duration::from_millis(now);
            last.reset(now, &reset(40000, 7, forged));
            last.judged(now, &judgement(40000, dead));
            assert_eq!(last.take().is_some(), told, "{now:?}");
        }
    }

    /// However many segments are forged, so many are remembered.
    #[test]
    fn memory_is_bounded() {
        let mut last = LastKill::default();
        for port in 0..3000 {
            last.sent(tuple(port), spec(1));
        }
        assert_eq!(last.recent.len(), RECENT);
        last.reset(Duration::ZERO, &reset(0, 1, ResetCause::Forged(Forgery::AboveWindow)));
        assert_eq!(last.answered, None);
    }
}
