//! The thread of a device, e.g. `net-0`: waits for the guest, the backend's
//! source and its owner, and serves. It owns its epoll set and what the backend
//! has in hand; it ends when the worker is dropped.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device::{Backend, Device, Served, signal};
use crate::thread::{self, ThreadKind};

/// How long a device that is stalled is left alone.
const STALLED_MS: i32 = 1;
/// Events that are taken at once.
const EVENTS_MAX: usize = 8;

/// A running worker; dropping it ends the thread.
pub(crate) struct Worker {
    stop: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start<B: Backend>(device: &Arc<Device<B>>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for event in device.kicks.iter().chain([&device.woken]) {
            let interest = EpollEvent::new(EventSet::IN, event.as_raw_fd() as u64);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        }
        let of_thread = Arc::clone(device);
        let run = move || run(&of_thread, &epoll);
        let thread = thread::spawn(ThreadKind::Device, device.worker_name(), run)?;
        let device = Arc::clone(device);
        let stop = Box::new(move || {
            device.stopping.store(true, Ordering::SeqCst);
            signal(&device.woken);
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        (self.stop)();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("thread", &self.thread).finish_non_exhaustive()
    }
}

fn run<B: Backend>(device: &Device<B>, epoll: &Epoll) {
    let source = device.lock().backend.source();
    let mut watching = false;
    let mut source_lost = false;
    let mut served = Served::default();
    let mut hand = B::Hand::default();
    let mut events = [EpollEvent::default(); EVENTS_MAX];
    loop {
        let timeout = match served {
            Served { more: true, .. } => 0,
            Served { stalled: true, .. } => STALLED_MS,
            _ => -1,
        };
        let count = epoll.wait(timeout, &mut events).unwrap_or_else(|error| {
            // Interrupted; anything else would be a closed descriptor of our own.
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "epoll: {error}");
            0
        });
        for event in &events[..count] {
            // The number of notifications does not matter: all queues are looked at.
            for of_ours in device.kicks.iter().chain([&device.woken]) {
                if event.fd() == of_ours.as_raw_fd() {
                    let _ = of_ours.read();
                }
            }
        }
        if device.stopping.load(Ordering::SeqCst) {
            return;
        }
        served = B::serve(device, &mut hand);
        source_lost |= served.source_lost;
        let watch = served.watch && !source_lost;
        if watch != watching
            && let Some(source) = source
        {
            set_watch(epoll, source, watch);
            watching = watch;
        }
    }
}

/// Begins or ends waiting for the source. A descriptor that stayed in the set
/// would wake the thread for ever while nobody takes what it has.
fn set_watch(epoll: &Epoll, source: RawFd, begin: bool) {
    let operation = if begin { ControlOperation::Add } else { ControlOperation::Delete };
    let interest = EpollEvent::new(EventSet::IN, source as u64);
    if let Err(error) = epoll.ctl(operation, source, interest) {
        tracing::error!(%error, "a device's source cannot be watched");
    }
}
