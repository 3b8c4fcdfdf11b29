//! A bounded table of connections with their deadlines.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use ahash::AHashMap;
use canary_wire::segment::FourTuple;

use super::{Flow, State};

/// A place in the table. Valid until the flow is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    slot: u32,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// The earliest deadline of this flow that the queue holds.
    queued: Duration,
    flow: Option<Flow>,
}

/// Flows by 4-tuple, and a queue of deadlines. A deadline that moves later
/// stays queued where it was and is put back when it comes up, so that the queue
/// is no longer than the table by more than a small factor.
#[derive(Debug)]
pub(super) struct Table {
    capacity: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_tuple: AHashMap<FourTuple, u32>,
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
            slots: Vec::new(),
            free: Vec::new(),
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
        let slot = *self.by_tuple.get(tuple)?;
        Some(Key { slot, generation: self.slots[slot as usize].generation })
    }

    fn live(&self, key: Key) -> Option<&Flow> {
        let slot = self.slots.get(key.slot as usize)?;
        slot.flow.as_ref().filter(|_| slot.generation == key.generation)
    }

    /// # Panics
    /// When the flow has been removed.
    pub(super) fn get_mut(&mut self, key: Key) -> &mut Flow {
        let slot = &mut self.slots[key.slot as usize];
        debug_assert_eq!(slot.generation, key.generation);
        slot.flow.as_mut().expect("a key of a live flow")
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.by_tuple
            .values()
            .map(|&slot| Key { slot, generation: self.slots[slot as usize].generation })
            .collect()
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
            self.hand = (self.hand + 1) % self.slots.len();
            let Slot { generation, flow, .. } = &self.slots[self.hand];
            if flow.as_ref().is_some_and(|f| f.state == State::Settled) {
                return Some(self.remove(Key { slot: self.hand as u32, generation: *generation }));
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
        let tuple = flow.tuple;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, queued: Duration::MAX, flow: None });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.flow = Some(flow);
        place.queued = deadline;
        let key = Key { slot, generation: place.generation };
        self.by_tuple.insert(tuple, slot);
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
        let slot = &mut self.slots[key.slot as usize];
        let flow = slot.flow.take().expect("a key of a live flow");
        slot.generation = slot.generation.wrapping_add(1);
        self.by_tuple.remove(&flow.tuple);
        self.free.push(key.slot);
        flow
    }

    pub(super) fn set_deadline(&mut self, key: Key, deadline: Duration) {
        let slot = &mut self.slots[key.slot as usize];
        if let Some(flow) = slot.flow.as_mut() {
            flow.deadline = deadline;
        }
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
