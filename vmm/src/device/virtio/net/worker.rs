//! The thread of a network device, `net-N`: waits for the guest, the tap and
//! its owner, and serves. It owns nothing but its epoll set; it ends when the
//! device is dropped.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Net, RX, Served, TX, signal};

/// How long a full outlet is left alone.
const STALLED_MS: i32 = 1;

/// A running worker; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Worker {
    net: Arc<Net>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(net: Arc<Net>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for event in [&net.wake, &net.kicks[RX], &net.kicks[TX]] {
            let interest = EpollEvent::new(EventSet::IN, event.as_raw_fd() as u64);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        }
        let of_thread = Arc::clone(&net);
        let thread = std::thread::Builder::new()
            .name(format!("net-{}", net.index))
            .spawn(move || run(&of_thread, &epoll))?;
        Ok(Self { net, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.net.stopping.store(true, Ordering::SeqCst);
        signal(&self.net.wake);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(net: &Net, epoll: &Epoll) {
    let mut watching_tap = false;
    let mut tap_lost = false;
    let mut served = Served::default();
    let mut events = [EpollEvent::default(); 4];
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
            for of_ours in [&net.wake, &net.kicks[RX], &net.kicks[TX]] {
                if event.fd() == of_ours.as_raw_fd() {
                    let _ = of_ours.read();
                }
            }
        }
        if net.stopping.load(Ordering::SeqCst) {
            return;
        }
        served = net.serve();
        tap_lost |= served.tap_lost;
        let wants_frames = served.wants_frames && !tap_lost;
        if wants_frames != watching_tap {
            watch(epoll, net, wants_frames);
            watching_tap = wants_frames;
        }
    }
}

/// Begins or ends waiting for frames. A descriptor that stayed in the set
/// would wake the thread for ever while nobody takes its frames.
fn watch(epoll: &Epoll, net: &Net, begin: bool) {
    let fd = net.tap.as_raw_fd();
    let operation = if begin { ControlOperation::Add } else { ControlOperation::Delete };
    if let Err(error) = epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, fd as u64)) {
        tracing::error!(tap = net.tap.name(), %error, "the tap cannot be watched");
    }
}
