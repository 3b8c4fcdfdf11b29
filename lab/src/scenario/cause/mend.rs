//! A case under each mend that people try against resets.

use std::time::Duration;

use canary_record::names::Forgery;
use canary_testbed::topology::Topology;

use super::host::{BE_LIBERAL, TIMEOUT};
use super::{Case, Host, Step, Wait, liberal};
use crate::document::lab::{At, Mend, Protection, ProtectionKind, Protections, Seen};

impl Case {
    /// The case under each mend that changes something about it, as it is first.
    pub(crate) fn under_mends(&self, at: At) -> Vec<(Mend, Self)> {
        Mend::ALL.iter().filter_map(|mend| Some((*mend, self.mended(*mend, at)?))).collect()
    }

    /// The case under a mend; none where the mend changes nothing about it.
    fn mended(&self, mend: Mend, at: At) -> Option<Self> {
        let mut case = self.clone();
        // boom-server's own segments, where they are what the case is about: one that is delivered does
        // nothing, but for what it makes conntrack believe.
        let harmless = |(forgery, seen): (&Forgery, &Seen)| {
            matches!(seen, Seen::Delivered | Seen::NoConnection) && *forgery != Forgery::Overshoot
        };
        if self.expect.forged.iter().all(harmless) {
            case.expect.forged = [(Forgery::Control, Seen::Delivered)].into();
            // What kept them harmless is not needed, but by the client's own.
            let forges = |step: &Step| matches!(step, Step::Forge(_));
            if self.protections == liberal() && !self.steps.iter().any(forges) {
                case.protections = Protections::default();
            }
        }
        case.expect.witness = None;
        let there = |kind| Protection { kind, at };
        let add = |kinds: &[ProtectionKind]| {
            case.protections.iter().copied().chain(kinds.iter().copied().map(there)).collect()
        };
        case.protections = match mend {
            Mend::AsItIs => return Some(case),
            Mend::Liberal => add(&[ProtectionKind::Liberal]),
            Mend::ForwardDrop => add(&[ProtectionKind::ForwardDrop]),
            Mend::InputDrop => add(&[ProtectionKind::InputDrop]),
            Mend::PreroutingDrop => add(&[ProtectionKind::PreroutingDrop]),
            Mend::LiberalAndDrops => add(&[
                ProtectionKind::Liberal,
                ProtectionKind::ForwardDrop,
                ProtectionKind::InputDrop,
            ]),
            Mend::NoDrop if !case.protections.drop() => return None,
            Mend::NoDrop => {
                let kept = |p: &Protection| p.kind == ProtectionKind::Liberal;
                case.protections.iter().copied().filter(kept).collect()
            }
            // IPVS forgets by its own time, and rules may set one of their own (`ct timeout`).
            Mend::LongerTimeouts if self.times_by_itself() => return None,
            Mend::LongerTimeouts => {
                // As long as the entries would have had to expire.
                let longest = self.longest_timeout().max(1);
                for step in &mut case.steps {
                    if *step == Step::LetExpire {
                        *step = Step::Idle(Wait(Duration::from_secs(longest + 1)));
                    }
                }
                case.change_no(TIMEOUT);
                case.hosts.extend(["node1", "node2"].map(Host::longer_timeouts));
                case.protections
            }
            Mend::SymmetricRoute if !case.second_link => return None,
            Mend::SymmetricRoute => {
                case.second_link = false;
                case.protections
            }
        };
        if matches!(mend, Mend::Liberal | Mend::LiberalAndDrops) {
            // Last, after hosts that say otherwise.
            case.change_no(BE_LIBERAL);
            let nodes = Topology::new(case.path, "").nodes(at).iter();
            case.hosts.extend(nodes.map(|node| Host::set(node, [(BE_LIBERAL.to_owned(), "1")])));
        }
        Some(case)
    }

    fn changed_hosts(&self) -> impl Iterator<Item = &Host> {
        let changed = self.steps.iter().filter_map(|step| match step {
            Step::Change(host) => Some(host),
            _ => None,
        });
        self.hosts.iter().chain(changed)
    }

    /// Whether entries go by other times than those of conntrack's sysctls.
    fn times_by_itself(&self) -> bool {
        let of_rules = |host: &Host| host.rules().any(|rules| rules.text.contains("ct timeout"));
        self.ipvs_timeout.is_some() || self.changed_hosts().any(of_rules)
    }

    /// The longest of conntrack's timeouts that the case sets, in seconds.
    fn longest_timeout(&self) -> u64 {
        let all = self.changed_hosts().flat_map(|host| &host.sysctls);
        let timeouts = all.filter(|(key, _)| key.starts_with(TIMEOUT));
        timeouts.filter_map(|(_, value)| value.text.parse().ok()).max().unwrap_or_default()
    }

    /// No step changes sysctls that begin so: it would undo a mend.
    fn change_no(&mut self, sysctls: &str) {
        for step in &mut self.steps {
            if let Step::Change(host) = step {
                host.sysctls.retain(|key, _| !key.starts_with(sysctls));
            }
        }
    }
}
