//! Frames on their way to one machine, in order, each with the moment before
//! which it must not arrive.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Most frames that wait for a machine. A delay of a second at the lab's usual
/// rate takes some thousands.
const FRAMES_MAX: usize = 16_384;

/// A bounded queue with one reader.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    frames: VecDeque<(Instant, Arc<[u8]>)>,
    open: bool,
}

impl Queue {
    /// A closed queue: what is pushed is dropped.
    pub(super) fn new() -> Self {
        let state = State { frames: VecDeque::new(), open: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn open(&self) {
        self.lock().open = true;
    }

    /// Drops what waits, and lets [`Queue::pop`] return nothing.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        state.frames.clear();
        self.changed.notify_all();
    }

    /// Drops the frame if the queue is closed or full.
    pub(super) fn push(&self, due: Instant, frame: Arc<[u8]>) {
        let mut state = self.lock();
        if state.open && state.frames.len() < FRAMES_MAX {
            state.frames.push_back((due, frame));
            self.changed.notify_all();
        }
    }

    /// The next frame, when it is due; `None` when the queue is closed.
    pub(super) fn pop(&self) -> Option<Arc<[u8]>> {
        let mut state = self.lock();
        loop {
            if !state.open {
                return None;
            }
            let now = Instant::now();
            state = match state.frames.front() {
                Some((due, _)) if *due <= now => {
                    return state.frames.pop_front().map(|(_, frame)| frame);
                }
                Some((due, _)) => {
                    let wait = *due - now;
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn frames_come_in_order_and_not_before_they_are_due() {
        let queue = Queue::new();
        queue.push(Instant::now(), Arc::new([1]));
        queue.open();
        let due = Instant::now() + Duration::from_millis(30);
        queue.push(due, Arc::new([2]));
        queue.push(due, Arc::new([3]));
        assert_eq!(queue.pop().as_deref(), Some(&[2][..]), "what came before it opened is gone");
        assert!(Instant::now() >= due);
        assert_eq!(queue.pop().as_deref(), Some(&[3][..]));
        queue.push(due, Arc::new([4]));
        queue.close();
        queue.open();
        queue.push(due, Arc::new([5]));
        assert_eq!(queue.pop().as_deref(), Some(&[5][..]));
        queue.close();
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn a_machine_that_takes_nothing_costs_bounded_memory() {
        let queue = Queue::new();
        queue.open();
        for _ in 0..FRAMES_MAX + 10 {
            queue.push(Instant::now(), Arc::new([0]));
        }
        assert_eq!(queue.lock().frames.len(), FRAMES_MAX);
    }
}
