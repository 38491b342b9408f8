//! Takes checkpoints: the only thread that pauses and resumes the guest.
//!
//! ```text
//!   pause ── harvest ── seal output ── save state ── copy pages ── resume
//!   └───────────────────── the pause, measured ──────────────────────┘
//! ```
//!
//! It also restarts a guest that wants to be restarted: between two cuts, so
//! that an epoch has all of a restart or nothing of it.
//!
//! On any failure the pages go back to the ledger, the guest runs on, and the
//! core hears of it.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use checkpoint::primary::CutOrder;
use vmm::vm::{Vm, VmError};

use super::{
    capture::{BlockPool, Captured, batches},
    core::Input,
    tracker::{self, Tracker},
};
use crate::{
    config::VmConfig,
    node::{
        Audit, Guest,
        crash_point::{self, Moment},
    },
};

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Cut(CutOrder),
    Hold,
    Free,
    /// Restart the guest, if it still wants to be.
    Restart,
    /// Pause for good and end the thread.
    Stop,
}

/// How long the parts of a pause took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timings {
    pub(super) pause: Duration,
    pub(super) harvest: Duration,
    pub(super) save: Duration,
    pub(super) capture: Duration,
}

/// A handle of the thread.
#[derive(Debug)]
pub(super) struct Cutter {
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub(super) struct Tools {
    pub(super) guest: Arc<Guest>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) pool: BlockPool,
    /// Output of an epoch goes along with it.
    pub(super) send_outputs: bool,
    /// Digests are taken of every epoch.
    pub(super) audit: Arc<Audit>,
    /// What boots when the guest restarts.
    pub(super) config: VmConfig,
    pub(super) inputs: mpsc::Sender<Input>,
}

impl Cutter {
    /// Starts the thread. The guest may be running or paused.
    pub(super) fn start(tools: Tools) -> std::io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("epoch".into())
            .spawn(move || Worker { tools, held: false }.work(&received))?;
        Ok(Self { orders, thread: Some(thread) })
    }

    pub(super) fn cut(&self, order: CutOrder) {
        self.tell(Order::Cut(order));
    }

    /// Pauses the guest until [`Cutter::free`].
    pub(super) fn hold(&self) {
        self.tell(Order::Hold);
    }

    pub(super) fn free(&self) {
        self.tell(Order::Free);
    }

    /// Restarts the guest; [`Input::Restarted`] tells how that went.
    pub(super) fn restart(&self) {
        self.tell(Order::Restart);
    }

    /// Pauses the guest for good and waits until it is.
    pub(super) fn stop(&mut self) {
        self.tell(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn tell(&self, order: Order) {
        // The thread ends only by our order, or by a panic, which is reported.
        let _ = self.orders.send(order);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An error and its causes, in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(&format!(": {words}"));
        }
        cause = error.source();
    }
    text
}

struct Worker {
    tools: Tools,
    /// The guest stays paused between cuts.
    held: bool,
}

impl Worker {
    fn work(mut self, orders: &mpsc::Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            let done = match order {
                Order::Cut(order) => {
                    self.cut(order);
                    Ok(())
                }
                Order::Hold => self.hold(),
                Order::Free => self.free(),
                Order::Restart => self.restart(),
                Order::Stop => {
                    let _ = self.hold();
                    return;
                }
            };
            if let Err(error) = done {
                let _ = self.tools.inputs.send(Input::GuestLost(error.to_string()));
            }
        }
    }

    fn hold(&mut self) -> Result<(), VmError> {
        if !self.held {
            self.tools.guest.vm().pause()?;
            self.held = true;
        }
        Ok(())
    }

    fn free(&mut self) -> Result<(), VmError> {
        if self.held {
            self.tools.guest.vm().resume()?;
            self.held = false;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), VmError> {
        let Tools { guest, tracker, config, inputs, .. } = &self.tools;
        let _tracked = tracker.lock();
        if !self.held {
            guest.vm().pause()?;
        }
        let outcome = match guest.restart(config) {
            Ok(true) => Ok(()),
            Ok(false) if self.held => return Ok(()),
            Ok(false) => return guest.vm().resume(),
            Err(error) => Err(error_chain(&error)),
        };
        // A guest that did not restart has no more to do.
        let lost = outcome.is_err();
        if lost {
            self.held = true;
        } else if !self.held {
            guest.vm().resume()?;
        }
        let _ = inputs.send(Input::Restarted(outcome));
        Ok(())
    }

    fn cut(&mut self, order: CutOrder) {
        let mut timings = Timings::default();
        let input = match self.checkpoint(&order, &mut timings) {
            Ok(Ok(captured)) => Input::CutDone { captured: Box::new(captured), timings },
            Ok(Err(error)) => Input::CutFailed { epoch: order.epoch, why: error.to_string() },
            Err(error) => Input::GuestLost(error.to_string()),
        };
        let _ = self.tools.inputs.send(input);
    }

    /// The outer error means that the guest neither runs nor can be resumed.
    fn checkpoint(
        &mut self,
        order: &CutOrder,
        timings: &mut Timings,
    ) -> Result<Result<Captured, VmError>, VmError> {
        let Tools { guest, tracker, .. } = &self.tools;
        let mut tracked = tracker.lock();
        let mut vm = guest.vm();
        let begun = Instant::now();
        if !self.held {
            vm.pause()?;
        }
        let captured = self.capture(&mut tracked, &vm, order, timings);
        self.held |= order.stay_paused && captured.is_ok();
        if !self.held {
            vm.resume()?;
        }
        timings.pause = begun.elapsed();
        crash_point::reached(Moment::Resumed);
        Ok(captured)
    }

    fn capture(
        &self,
        tracked: &mut tracker::Inner,
        vm: &Vm,
        order: &CutOrder,
        timings: &mut Timings,
    ) -> Result<Captured, VmError> {
        let Tools { guest, pool, send_outputs, audit, .. } = &self.tools;
        crash_point::reached(Moment::Paused);
        let (state, pages) = tracked.cut(vm, order)?;
        timings.harvest = state.harvest;
        timings.save = state.total;
        let begun = Instant::now();
        // Nothing below can fail: from here on the epoch is sealed.
        let outputs = guest.outlet().seal(order.epoch);
        guest.outlet().hold();
        let batches = batches(&pages, guest.memory(), pool).collect();
        timings.capture = begun.elapsed();
        let digest = (order.digest || audit.wanted()).then(|| guest.digest());
        if let Some(digest) = &digest {
            audit.record("cut", order.epoch, digest);
        }
        crash_point::reached(Moment::Captured);
        Ok(Captured {
            epoch: order.epoch,
            batches,
            sections: state.sections,
            outputs: if *send_outputs { outputs } else { Vec::new() },
            digest: digest.filter(|_| order.digest),
        })
    }
}
