//! The guest's CPUs: one named thread each (`vcpu-0`, …), which alone enters
//! KVM and alone reads and writes that CPU's state.
//!
//! ```text
//!              Run                      kick, and a command waits
//!   Parked ───────────▶ Running ───────────────────────────────────▶ Parked
//!     │  Save, Restore,    │ event (exit, shutdown, error)
//!     └─ Boot, clocks      └────────────▶ Parked, ended: Run is ignored
//! ```
//!
//! **Kick.** A command is queued, then `immediate_exit` is set, then the
//! thread gets a signal. The thread clears `immediate_exit` only when it is
//! told to run, and looks at its queue after that and before each entry that
//! follows an interruption. So whichever of the steps it sees first, it cannot
//! be inside the guest with a command waiting: before the entry the flag stops
//! it, during the entry the signal does. (Linux
//! `Documentation/virt/kvm/api.rst`, `KVM_RUN`.)
//!
//! **Completion.** An exit for port or memory-mapped I/O is finished by KVM
//! when it is entered again: only then are registers right. Before parking, a
//! thread therefore enters KVM with `immediate_exit` set until it says
//! `EINTR`.

mod exit;
mod run_page;
mod thread;

use std::{
    io,
    os::unix::thread::JoinHandleExt,
    sync::{Arc, Once, mpsc},
    thread::JoinHandle,
};

use checkpoint::{Section, Sections};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

pub use self::exit::EXIT_PORT;
use self::{run_page::RunPage, thread::VcpuThread};
use crate::{
    boot::BootRegisters,
    device::Devices,
    dirty::DirtyLog,
    event::VmEvent,
    host::Backend,
    memory::GuestRam,
    state::{
        StateError, VcpuShape,
        clock::{Moment, Rate, Tsc, TscShift},
    },
    thread::ThreadKind,
};

/// Why vCPUs do not do what they should.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// One could not be made.
    #[error("cannot create vcpu {vcpu} ({call}); `romulus doctor` tells how many this host allows")]
    Create {
        /// Which vCPU.
        vcpu: u8,
        /// Which call failed.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread is not there any more.
    #[error("a vcpu thread has ended: the VM cannot go on, restart it")]
    Gone,
    /// Its state could not be read or set.
    #[error(transparent)]
    State(#[from] StateError),
}

enum Command {
    /// Enter the guest.
    Run,
    /// Be out of the guest, and say so.
    Park(mpsc::Sender<()>),
    Save(Moment, Rate, mpsc::Sender<Result<Vec<Section>, StateError>>),
    Restore(Arc<Sections>, TscShift, Done),
    /// Tell the TSC as it was when the host's was so much.
    TellTsc(u64, Rate, mpsc::Sender<Result<Tsc, StateError>>),
    /// Let the TSC run at so many kHz.
    SetTscKhz(u32, Done),
    /// Wind the TSC back by so many cycles.
    WindBack(u64, Rate, Done),
    Boot(Box<BootRegisters>, Done),
}

type Done = mpsc::Sender<Result<(), StateError>>;

/// What all vCPUs of a VM share.
#[derive(Clone)]
pub(crate) struct VcpuContext {
    pub(crate) devices: Arc<Devices>,
    pub(crate) dirty: Arc<DirtyLog>,
    pub(crate) shape: Arc<VcpuShape>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) backend: Backend,
    pub(crate) events: mpsc::Sender<VmEvent>,
}

/// All vCPUs of a VM. Dropping it ends and joins their threads.
pub(crate) struct Vcpus {
    handles: Vec<Handle>,
}

struct Handle {
    /// `None` only while it is being dropped: a closed queue ends the thread.
    commands: Option<mpsc::Sender<Command>>,
    page: RunPage,
    thread: Option<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a parked thread for each of `fds`.
    pub(crate) fn start(
        vm: &VmFd,
        fds: Vec<VcpuFd>,
        context: &VcpuContext,
    ) -> Result<Self, VcpuError> {
        register_kick();
        // Handles are added one by one, so that an error ends those before it.
        let mut vcpus = Self { handles: Vec::new() };
        for (index, fd) in fds.into_iter().enumerate() {
            let index = index as u8;
            let at = |call| move |source| VcpuError::Create { vcpu: index, call, source };
            let page = RunPage::map(&fd, vm.run_size()).map_err(at("mmap"))?;
            let own_page = RunPage::map(&fd, vm.run_size()).map_err(at("mmap"))?;
            let (commands, queue) = mpsc::channel();
            let vcpu = VcpuThread::new(index, fd, own_page, queue, context.clone());
            let name = format!("vcpu-{index}");
            let thread = crate::thread::spawn(ThreadKind::Vcpu, name, move || vcpu.main())
                .map_err(at("thread"))?;
            vcpus.handles.push(Handle { commands: Some(commands), page, thread: Some(thread) });
        }
        Ok(vcpus)
    }

    /// Lets all vCPUs enter the guest.
    pub(crate) fn run(&self) -> Result<(), VcpuError> {
        self.handles.iter().try_for_each(|handle| handle.send(Command::Run))
    }

    /// Takes all vCPUs out of the guest; returns when the last is out and its
    /// I/O is complete.
    pub(crate) fn park(&self) -> Result<(), VcpuError> {
        let (parked, acknowledged) = mpsc::channel();
        for handle in &self.handles {
            handle.send(Command::Park(parked.clone()))?;
            handle.kick();
        }
        drop(parked);
        self.await_all(&acknowledged).map(drop)
    }

    /// Asks each vCPU, on its own thread, for its state, with its TSC as it
    /// was at `moment`; vCPUs must be parked. [`SavingVcpus::finish`] waits.
    pub(crate) fn begin_save(
        &self,
        moment: Moment,
        rate: Rate,
    ) -> Result<SavingVcpus<'_>, VcpuError> {
        let (saved, states) = mpsc::channel();
        self.handles
            .iter()
            .try_for_each(|handle| handle.send(Command::Save(moment, rate, saved.clone())))?;
        Ok(SavingVcpus { vcpus: self, states })
    }

    /// Sets the state of all vCPUs, each on its own thread; they must be parked.
    pub(crate) fn restore(
        &self,
        sections: &Arc<Sections>,
        shift: TscShift,
    ) -> Result<(), VcpuError> {
        self.tell_all(|done| Command::Restore(Arc::clone(sections), shift, done))
    }

    /// vCPU 0's TSC when the host's was `host_tsc`; vCPUs must be parked.
    pub(crate) fn first_tsc(&self, host_tsc: u64, rate: Rate) -> Result<Tsc, VcpuError> {
        let (told, tsc) = mpsc::channel();
        self.handles[0].send(Command::TellTsc(host_tsc, rate, told))?;
        Ok(tsc.recv().map_err(|_| VcpuError::Gone)??)
    }

    /// Lets all TSCs run at `khz`, which KVM must scale; vCPUs must be parked.
    pub(crate) fn set_tsc_khz(&self, khz: u32) -> Result<(), VcpuError> {
        self.tell_all(|done| Command::SetTscKhz(khz, done))
    }

    /// Winds all TSCs back by `cycles`; vCPUs must be parked.
    pub(crate) fn wind_back(&self, cycles: u64, rate: Rate) -> Result<(), VcpuError> {
        self.tell_all(|done| Command::WindBack(cycles, rate, done))
    }

    /// Sets the registers that vCPU 0 starts with.
    pub(crate) fn boot(&self, registers: BootRegisters) -> Result<(), VcpuError> {
        let (done, result) = mpsc::channel();
        self.handles[0].send(Command::Boot(Box::new(registers), done))?;
        Ok(result.recv().map_err(|_| VcpuError::Gone)??)
    }

    /// Gives all vCPUs a command and waits until the last has done it.
    fn tell_all(&self, command: impl Fn(Done) -> Command) -> Result<(), VcpuError> {
        let (done, results) = mpsc::channel();
        self.handles.iter().try_for_each(|handle| handle.send(command(done.clone())))?;
        drop(done);
        self.await_all(&results)?.into_iter().try_for_each(|result| Ok(result?))
    }

    fn await_all<T>(&self, replies: &mpsc::Receiver<T>) -> Result<Vec<T>, VcpuError> {
        let all = self.handles.iter().map(|_| replies.recv().map_err(|_| VcpuError::Gone));
        all.collect()
    }
}

/// vCPUs that are saving their state.
pub(crate) struct SavingVcpus<'a> {
    vcpus: &'a Vcpus,
    states: mpsc::Receiver<Result<Vec<Section>, StateError>>,
}

impl SavingVcpus<'_> {
    /// Waits for all states.
    pub(crate) fn finish(self) -> Result<Vec<Section>, VcpuError> {
        let mut sections = Vec::new();
        for state in self.vcpus.await_all(&self.states)? {
            sections.extend(state?);
        }
        Ok(sections)
    }
}

impl Handle {
    fn send(&self, command: Command) -> Result<(), VcpuError> {
        let commands = self.commands.as_ref().ok_or(VcpuError::Gone)?;
        commands.send(command).map_err(|_| VcpuError::Gone)
    }

    fn kick(&self) {
        self.page.set_immediate_exit(true);
        if let Some(thread) = &self.thread {
            // SAFETY: the thread is not joined yet, so its id is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for handle in &mut self.handles {
            handle.commands = None;
            handle.kick();
        }
        for handle in &mut self.handles {
            if let Some(thread) = handle.thread.take() {
                // A panic of the thread has been printed already.
                let _ = thread.join();
            }
        }
    }
}

/// The signal that takes a vCPU thread out of the guest.
fn kick_signal() -> libc::c_int {
    SIGRTMIN() + 1
}

/// Installs a handler that does nothing and does not restart system calls.
fn register_kick() {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        register_signal_handler(kick_signal(), nothing).expect("SIGRTMIN+1 can be handled");
    });
}
