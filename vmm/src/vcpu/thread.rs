//! The thread of one vCPU: parked, it obeys its queue; running, it is in KVM.

use std::sync::mpsc::{Receiver, TryRecvError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::unblock_signal;

use super::{Command, VcpuContext, kick_signal, run_page::RunPage};
use crate::{
    event::VmEvent,
    state::{
        self,
        clock::{self, Tsc},
    },
};

pub(super) struct VcpuThread {
    pub(super) index: u8,
    pub(super) fd: VcpuFd,
    pub(super) page: RunPage,
    pub(super) context: VcpuContext,
    queue: Receiver<Command>,
    /// KVM has to be entered once more before registers are right.
    pub(super) incomplete: bool,
    /// An event has stopped this vCPU.
    ended: bool,
}

/// What one entry into KVM led to.
pub(super) enum Entered {
    /// Go on.
    Again,
    /// A signal, or `immediate_exit`: look at the queue.
    Interrupted,
    /// The guest cannot go on.
    Ended(VmEvent),
}

impl VcpuThread {
    pub(super) fn new(
        index: u8,
        fd: VcpuFd,
        page: RunPage,
        queue: Receiver<Command>,
        context: VcpuContext,
    ) -> Self {
        Self { index, fd, page, context, queue, incomplete: false, ended: false }
    }

    /// Obeys until the queue is closed.
    pub(super) fn main(mut self) {
        unblock_signal(kick_signal()).expect("a valid signal can be unblocked");
        let mut next = self.queue.recv().ok();
        while let Some(command) = next {
            next = self.obey(command).or_else(|| self.queue.recv().ok());
        }
    }

    /// Does what `command` says; returns the command that ended a run.
    fn obey(&mut self, command: Command) -> Option<Command> {
        // A closed reply channel means that the VM is being dropped.
        match command {
            Command::Run if self.ended => {}
            Command::Run => return self.run(),
            Command::Park(parked) => drop(parked.send(())),
            Command::Save(moment, rate, saved) => {
                let shape = &self.context.shape;
                drop(saved.send(state::save_vcpu(&self.fd, self.index, shape, moment, rate)));
            }
            Command::Restore(sections, shift, restored) => {
                let shape = &self.context.shape;
                let result = state::restore_vcpu(&self.fd, self.index, shape, &sections, &shift);
                self.ended = false;
                drop(sections);
                drop(restored.send(result));
            }
            Command::TellTsc(host_tsc, rate, told) => {
                drop(told.send(Tsc::at(&self.fd, self.index, host_tsc, &rate)));
            }
            Command::SetTscKhz(khz, done) => {
                drop(done.send(clock::set_tsc_khz(&self.fd, self.index, khz)));
            }
            Command::WindBack(cycles, rate, done) => {
                drop(done.send(clock::wind_back(&self.fd, self.index, &rate, cycles)));
            }
            Command::Boot(registers, done) => {
                self.ended = false;
                drop(done.send(registers.apply(&self.fd)));
            }
        }
        None
    }

    /// Runs the guest until a command comes (which is returned) or an event
    /// ends it.
    fn run(&mut self) -> Option<Command> {
        self.page.set_immediate_exit(false);
        let mut interrupted = false;
        loop {
            match self.queue.try_recv() {
                Ok(command) => {
                    self.complete();
                    return Some(command);
                }
                // The VM is being dropped: nobody will look at the state.
                Err(TryRecvError::Disconnected) => return None,
                // No command interrupted it. That is how a stop signal or the
                // freezer of control groups ends: time has leapt for the guest.
                Err(TryRecvError::Empty) if interrupted => clock::tell_of_stop(&self.fd),
                Err(TryRecvError::Empty) => {}
            }
            interrupted = true;
            let event = loop {
                match self.enter() {
                    Entered::Again => {}
                    Entered::Interrupted => break None,
                    Entered::Ended(event) => break Some(event),
                }
            };
            if let Some(event) = event {
                self.complete();
                self.end(event);
                return None;
            }
        }
    }

    /// Lets KVM finish the I/O that the last exit began.
    fn complete(&mut self) {
        self.page.set_immediate_exit(true);
        while self.incomplete {
            if let Entered::Ended(event) = self.enter() {
                self.end(event);
            }
        }
    }

    fn end(&mut self, event: VmEvent) {
        self.ended = true;
        tracing::info!(vcpu = self.index, %event, "vcpu stopped");
        // Nobody listens while the VM is being dropped.
        let _ = self.context.events.send(event);
    }
}
