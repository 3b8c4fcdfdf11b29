//! What lies between the two ends: networks that are not perfect, and what becomes of INVALID
//! segments on the way.

use canary_forge::flow::End;
use canary_record::names::{Diagnosis, Forgery};

/// What one network does to a segment, in thousandths, and its jitter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    pub(crate) name: &'static str,
    pub(crate) lost: u64,
    pub(crate) copied: u64,
    pub(crate) late: u64,
    pub(crate) jitter_us: u64,
}

const CLEAN: Network = Network { name: "clean", lost: 0, copied: 0, late: 0, jitter_us: 0 };
pub(crate) const NETWORKS: [Network; 6] = [
    CLEAN,
    Network { name: "1% copied", copied: 10, ..CLEAN },
    Network { name: "5% late by up to 3 ms", late: 50, ..CLEAN },
    Network { name: "20 ms jitter", jitter_us: 20_000, ..CLEAN },
    Network { name: "1% lost each way", lost: 10, ..CLEAN },
    Network { name: "all of these", lost: 10, copied: 10, late: 50, jitter_us: 20_000 },
];

/// What becomes of a segment that conntrack calls INVALID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It goes on untranslated, to the peer.
    Leaks,
    /// It was addressed to the node, which goes on as the peer would.
    ReachesNode,
    Dropped,
    /// The node resets it in the peer's name.
    Rejected,
    /// Nothing translates: it arrives.
    Arrives,
}

/// Who changes numbers or answers on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Middle {
    Nobody,
    /// Renumbers what conntrack tracks, blocks of SACK too; INVALID passes as it is (SYNPROXY).
    Renumbers,
    /// Renumbers every segment, but not what SACK names.
    RenumbersAll,
    /// Answers what lies outside the window itself, and lets it go no further.
    Answers,
}

/// A kind of path.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is so or not, whatever the others")]
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) invalid: Invalid,
    pub(crate) liberal: bool,
    /// Linux 6.1 or later.
    pub(crate) new: bool,
    /// conntrack sees the connection at all.
    pub(crate) tracked: bool,
    /// Segments without SYN, FIN and RST pass conntrack by.
    pub(crate) flowtable: bool,
    pub(crate) middle: Middle,
    /// The client called the server's own address.
    pub(crate) called_here: bool,
    /// What it may be called; inconclusive always.
    pub(crate) names: &'static [Diagnosis],
}

use Diagnosis as D;

const PLAIN: Path = Path {
    name: "unprotected",
    invalid: Invalid::Leaks,
    liberal: false,
    new: true,
    tracked: true,
    flowtable: false,
    middle: Middle::Nobody,
    called_here: false,
    // Where no-flags alone was tried, bad flags alone are seen to leak.
    names: &[D::Unprotected, D::Partly],
};
const DROPPED: Path =
    Path { name: "dropped", invalid: Invalid::Dropped, names: &[D::Dropped], ..PLAIN };
const DIRECT: Path = Path {
    name: "not translated",
    invalid: Invalid::Arrives,
    called_here: true,
    names: &[D::NotTranslated, D::Delivered],
    ..PLAIN
};

pub(crate) const PATHS: [Path; 15] = [
    PLAIN,
    Path { name: "unprotected, before 6.1", new: false, ..PLAIN },
    DROPPED,
    Path { name: "dropped, before 6.1", new: false, ..DROPPED },
    Path { name: "liberal", liberal: true, names: &[D::Liberal, D::Partly, D::Delivered], ..PLAIN },
    Path {
        name: "liberal and dropped",
        liberal: true,
        names: &[D::BadFlagsDropped, D::Delivered],
        ..DROPPED
    },
    Path {
        name: "flowtable",
        flowtable: true,
        names: &[D::Flowtable, D::Partly, D::Delivered],
        ..PLAIN
    },
    DIRECT,
    Path { name: "not translated, dropped", names: &[D::Dropped], ..DROPPED_DIRECT },
    Path {
        name: "translated unchecked",
        tracked: false,
        called_here: false,
        names: &[D::TranslatedUnchecked, D::Delivered],
        ..DIRECT
    },
    Path { name: "addressed to the node", invalid: Invalid::ReachesNode, ..PLAIN },
    Path { name: "rejected", invalid: Invalid::Rejected, names: &[D::Rejected], ..PLAIN },
    Path { name: "renumbered where tracked", middle: Middle::Renumbers, ..DIRECT },
    Path { name: "renumbered", middle: Middle::RenumbersAll, ..DIRECT },
    Path { name: "answered on the way", middle: Middle::Answers, names: &[], ..DIRECT },
];
const DROPPED_DIRECT: Path = Path { called_here: true, ..DROPPED };

impl Path {
    /// Nothing on the way makes answers unreadable.
    pub(crate) fn readable(&self) -> bool {
        self.middle == Middle::Nobody
    }

    /// Some forged segment of these draws a reset that nothing else draws.
    pub(crate) fn harms(&self, forgeries: &[Forgery]) -> bool {
        if matches!(self.invalid, Invalid::Dropped | Invalid::Arrives) {
            return false;
        }
        let bad = forgeries.iter().any(|f| match f {
            Forgery::SynFin => true,
            Forgery::NoFlags => !self.flowtable,
            _ => false,
        });
        let window = forgeries.iter().any(|f| match f {
            Forgery::AboveWindow | Forgery::AckAhead => true,
            Forgery::BelowWindow => !self.new,
            _ => false,
        });
        bad || window && !self.liberal && !self.flowtable
    }
}

/// Which end is the program's: by the number of its host.
pub(crate) fn number(end: &End) -> usize {
    usize::from(matches!(end, End::Server { .. }))
}
