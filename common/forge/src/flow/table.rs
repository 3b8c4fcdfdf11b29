//! A bounded table of connections with their deadlines.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use ahash::AHashMap;
use canary_wire::segment::FourTuple;
use slab::Slab;

use super::{Flow, State};

/// A place in the table, and whose it is. Valid until the flow is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    slot: u32,
    serial: u32,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    /// The earliest deadline of this flow that the queue holds.
    queued: Duration,
    flow: Flow,
}

/// Flows by 4-tuple, and a queue of deadlines. A deadline that moves later
/// stays queued where it was and is put back when it comes up, so that the queue
/// is no longer than the table by more than a small factor.
#[derive(Debug)]
pub(super) struct Table {
    capacity: usize,
    slots: Slab<Slot>,
    /// Flows that there were, modulo 2^32.
    serial: u32,
    by_tuple: AHashMap<FourTuple, Key>,
    queue: BinaryHeap<Reverse<(Duration, Key)>>,
    /// Unanswered SYNs, oldest first: a flood of them must not push out the rest.
    half_open: VecDeque<Key>,
    /// Where the search for a judged flow goes on.
    hand: usize,
}

/// Slots that are searched for a judged flow before another must go.
const SEARCH: usize = 64;

impl Table {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            slots: Slab::new(),
            serial: 0,
            by_tuple: AHashMap::new(),
            queue: BinaryHeap::new(),
            half_open: VecDeque::new(),
            hand: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_tuple.len()
    }

    pub(super) fn find(&self, tuple: &FourTuple) -> Option<Key> {
        self.by_tuple.get(tuple).copied()
    }

    fn live(&self, key: Key) -> Option<&Flow> {
        self.slots.get(key.slot as usize).filter(|slot| slot.key == key).map(|slot| &slot.flow)
    }

    /// # Panics
    /// When the flow has been removed.
    pub(super) fn get_mut(&mut self, key: Key) -> &mut Flow {
        let slot = &mut self.slots[key.slot as usize];
        debug_assert_eq!(slot.key, key);
        &mut slot.flow
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.by_tuple.values().copied().collect()
    }

    /// Removes a flow when the table is full: the oldest unanswered SYN, else one that
    /// is judged, else the one that would be due next.
    pub(super) fn make_room(&mut self) -> Option<Flow> {
        if self.len() < self.capacity {
            return None;
        }
        while let Some(key) = self.half_open.pop_front() {
            if self.live(key).is_some_and(|f| f.state == State::HalfOpen) {
                return Some(self.remove(key));
            }
        }
        for _ in 0..SEARCH.min(self.slots.len()) {
            // Full: every place below the number of flows is taken.
            self.hand = (self.hand + 1) % self.slots.len();
            let judged = self.slots.get(self.hand).filter(|s| s.flow.state == State::Settled);
            if let Some(key) = judged.map(|s| s.key) {
                return Some(self.remove(key));
            }
        }
        while let Some(Reverse((_, key))) = self.queue.pop() {
            if self.live(key).is_some() {
                return Some(self.remove(key));
            }
        }
        None
    }

    pub(super) fn insert(&mut self, flow: Flow) -> Key {
        let deadline = flow.deadline;
        let key = Key { slot: self.slots.vacant_key() as u32, serial: self.serial };
        self.serial = self.serial.wrapping_add(1);
        self.by_tuple.insert(flow.tuple, key);
        self.slots.insert(Slot { key, queued: deadline, flow });
        self.queue.push(Reverse((deadline, key)));
        self.half_open.push_back(key);
        // Those that have grown up since are dropped from the front.
        while let Some(&front) = self.half_open.front() {
            if self.live(front).is_some_and(|f| f.state == State::HalfOpen) {
                break;
            }
            self.half_open.pop_front();
        }
        key
    }

    pub(super) fn remove(&mut self, key: Key) -> Flow {
        let flow = self.slots.remove(key.slot as usize).flow;
        self.by_tuple.remove(&flow.tuple);
        flow
    }

    pub(super) fn set_deadline(&mut self, key: Key, deadline: Duration) {
        let slot = &mut self.slots[key.slot as usize];
        slot.flow.deadline = deadline;
        if deadline < slot.queued {
            slot.queued = deadline;
            self.queue.push(Reverse((deadline, key)));
        }
    }

    /// A lower bound of the next deadline.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// A flow whose deadline has come.
    pub(super) fn due(&mut self, now: Duration) -> Option<Key> {
        while let Some(&Reverse((at, key))) = self.queue.peek() {
            if at > now {
                return None;
            }
            self.queue.pop();
            let Some(deadline) = self.live(key).map(|f| f.deadline) else { continue };
            let slot = &mut self.slots[key.slot as usize];
            // Only the entry noted last counts; others were superseded.
            if slot.queued != at {
                continue;
            }
            if deadline > now {
                slot.queued = deadline;
                self.queue.push(Reverse((deadline, key)));
                continue;
            }
            // Whoever asks must set a new deadline or remove the flow.
            slot.queued = Duration::MAX;
            return Some(key);
        }
        None
    }
}
