//! A value that the first vCPU sets before others start, and that nobody changes afterwards.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct SetOnce<T> {
    is_set: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the value is written once, before `is_set` is released, and only read after that.
unsafe impl<T: Sync> Sync for SetOnce<T> {}

impl<T> SetOnce<T> {
    pub(crate) const fn new() -> Self {
        Self { is_set: AtomicBool::new(false), value: UnsafeCell::new(None) }
    }

    /// Sets it. Only the first vCPU calls this, once.
    pub(crate) fn set(&self, value: T) -> &T {
        assert!(!self.is_set.load(Ordering::Acquire), "set twice");
        // SAFETY: nobody reads before `is_set`, and there is one writer.
        unsafe { *self.value.get() = Some(value) };
        self.is_set.store(true, Ordering::Release);
        self.get()
    }

    pub(crate) fn get(&self) -> &T {
        assert!(self.is_set.load(Ordering::Acquire), "read before it was set");
        // SAFETY: it is set, and never written again.
        unsafe { (*self.value.get()).as_ref() }.expect("set")
    }
}
