//! The last connection that a forged segment ended, with the numbers that show it.

use std::time::Duration;

use canary_forge::flow::{Judgement, Reset, ResetCause};

/// Who looks at it needs no more than one in so long.
const PAUSE: Duration = Duration::from_secs(1);

/// How one connection died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    /// Of the forged segment.
    pub judged: Judgement,
    /// The RST that answered it.
    pub reset: Reset,
}

/// Watches what the engine is told.
#[derive(Debug, Default)]
pub(crate) struct LastKill {
    answered: Option<Reset>,
    found: Option<Kill>,
    not_before: Duration,
}

impl LastKill {
    /// An RST came.
    pub(crate) fn reset(&mut self, now: Duration, reset: &Reset) {
        if matches!(reset.cause, ResetCause::Forged(_)) && now >= self.not_before {
            self.answered = Some(*reset);
        }
    }

    /// A forged segment was judged.
    pub(crate) fn judged(&mut self, now: Duration, j: &Judgement) {
        let mine = self.answered.take_if(|reset| reset.tuple == j.tuple);
        if let Some(reset) = mine.filter(|_| j.fate.killed()) {
            self.found = Some(Kill { judged: *j, reset });
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
    use canary_forge::forgery::Spec;
    use canary_record::names::Forgery;
    use canary_record::outcome::Fate;
    use canary_wire::segment::{Flags, FourTuple};
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

    const DEAD: Fate = Fate::Leaked { killed: true, node: false };

    pub(crate) fn kill() -> Kill {
        Kill {
            judged: judgement(40000, 7, DEAD),
            reset: reset(40000, 7, ResetCause::Forged(Forgery::AboveWindow)),
        }
    }

    fn judgement(port: u16, ack: u32, fate: Fate) -> Judgement {
        let (forgery, after) = (Forgery::AboveWindow, Duration::from_millis(3));
        Judgement { tuple: tuple(port), forgery, spec: spec(ack), fate, after, replaces: None }
    }

    /// A connection that died is told with the numbers of its own forged segment, once.
    #[test]
    fn the_numbers_are_the_connections_own() {
        let mut last = LastKill::default();
        let forged = ResetCause::Forged(Forgery::AboveWindow);
        last.reset(Duration::ZERO, &reset(40000, 7, forged));
        last.judged(Duration::ZERO, &judgement(40001, 8, DEAD));
        assert_eq!(last.take(), None);
        last.judged(Duration::ZERO, &judgement(40000, 7, DEAD));
        assert_eq!(last.take(), Some(kill()));
        assert_eq!(last.take(), None);
    }

    /// What leaked and lived, what another cause reset, and what comes a moment after are not.
    #[test]
    fn only_a_kill_is_told() {
        let mut last = LastKill::default();
        let forged = ResetCause::Forged(Forgery::AboveWindow);
        for (cause, fate) in [
            (forged, Fate::Leaked { killed: false, node: false }),
            (ResetCause::UnknownConnection, DEAD),
        ] {
            last.reset(Duration::ZERO, &reset(40000, 7, cause));
            last.judged(Duration::ZERO, &judgement(40000, 7, fate));
            assert_eq!(last.take(), None);
        }
        for (now, told) in [(0, true), (500, false), (1000, true)] {
            let now = Duration::from_millis(now);
            last.reset(now, &reset(40000, 7, forged));
            last.judged(now, &judgement(40000, 7, DEAD));
            assert_eq!(last.take().is_some(), told, "{now:?}");
        }
    }
}
