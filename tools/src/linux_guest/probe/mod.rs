//! The first process of the Linux guest: sets up what it needs and serves.
//!
//! It says on the console what the bare-metal probe guest says, `probe: ready`
//! above all, and refuses as that one does: in words on the console, and with
//! exit code 0x7d on the machine's exit port.
//!
//! | parameter of `guest/README.md` | here |
//! |---|---|
//! | `probe.vcpus`, `probe.ip`, `probe.dirty`, `probe.tick` | as there |
//! | `probe.wsmax` | the pages of `probe.dirty` by default, at least [`PAGES_MIN`] |
//! | `probe.gw`, `probe.fill`, `probe.compute` | refused |

mod machine;
mod network;
mod service;
#[cfg(test)]
mod tests;
mod workers;
mod working_set;

use std::{
    convert::Infallible,
    fs, io,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::FileExt,
    path::PathBuf,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        termios::tcdrain,
    },
    unistd::Pid,
};
use romulus_probe::{Params, SERVICE_PORT, params};
use thiserror::Error;

use self::{service::Service, workers::Workers};

/// What it says when it serves.
pub const READY: &str = "probe: ready";
/// Where the initramfs has modules, in files whose names rise as they load.
pub const MODULES: &str = "/modules";
/// Fewest pages of the working set.
const PAGES_MIN: u64 = 4096;
/// How long a network device may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(60);
/// The port by which a guest ends, and its code for "refused".
const EXIT_PORT: u64 = 0xf4;
const REFUSED: u8 = 0x7d;

/// Why the guest does not serve.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Somebody runs it on a machine that has a first process.
    #[error(
        "this is the first process of a guest, and would take this machine over: run `romulus demo --guest linux`"
    )]
    NotFirst,
    /// A file system is missing.
    #[error("cannot mount {target}: {source}: is it in this kernel?")]
    Mount {
        /// Where.
        target: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The command line has a wrong parameter.
    #[error(transparent)]
    Params(#[from] params::ParamError),
    /// A parameter that only the bare-metal guest has.
    #[error("{0} is for the bare-metal probe guest: leave it out")]
    BareMetalOnly(&'static str),
    /// More vCPUs than there are.
    #[error("there are {there} CPUs: is probe.vcpus={asked} larger than the machine?")]
    Vcpus {
        /// As the command line says.
        asked: usize,
        /// As the kernel says.
        there: usize,
    },
    /// A module does not load.
    #[error("cannot load {}: {source}: is it of this kernel?", path.display())]
    Module {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// There is no network device.
    #[error("no network device appeared within {} s: has this kernel virtio_mmio and virtio_net?", DEVICE_PATIENCE.as_secs())]
    NoDevice,
    /// The address was not set.
    #[error("cannot set {address} on {device}: {source}")]
    Address {
        /// Which.
        address: Ipv4Addr,
        /// On what.
        device: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// A thread or socket.
    #[error("cannot serve: {0}")]
    Serve(#[from] io::Error),
}

/// Serves for ever, or ends the guest. Returns only to who is no first process.
///
/// # Errors
///
/// [`ProbeError::NotFirst`]
pub fn be_first_process() -> Result<Infallible, ProbeError> {
    if Pid::this() != Pid::from_raw(1) {
        return Err(ProbeError::NotFirst);
    }
    let Err(error) = serve();
    println!("probe: refused: {error}");
    // The machine may end before the console has said it.
    let _ = tcdrain(io::stdout());
    let told = fs::OpenOptions::new()
        .write(true)
        .open("/dev/port")
        .and_then(|ports| ports.write_all_at(&[REFUSED], EXIT_PORT));
    println!("probe: cannot tell the machine ({told:?}): turning it off");
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => Ok(never),
        // Its end is a panic of the kernel, which is a report as well.
        Err(error) => panic!("the machine does not turn off: {error}"),
    }
}

fn serve() -> Result<Infallible, ProbeError> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount_file_system(kind, target)?;
    }
    let line = read("/proc/cmdline")?;
    let params = Params::parse(&line)?;
    refuse_foreign(&params)?;
    load_modules()?;
    let device = match params.ip {
        Some((address, prefix)) => Some(network::bring_up(address, prefix, DEVICE_PATIENCE)?),
        None => None,
    };
    let pages = params.working_set_pages_max.unwrap_or(params.pattern.pages.max(PAGES_MIN));
    let workers = Workers::start(params.vcpus, pages as usize, params.tick_ms)?;
    workers.set_pattern(params.pattern);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVICE_PORT))?;
    let mut service = Service::new(workers, device);
    println!("{READY} vcpus={} memory_mib={}", params.vcpus, machine::memory_mib());
    Ok(service.serve(&socket, || true).map(|()| unreachable!("it goes on"))?)
}

fn mount_file_system(kind: &'static str, target: &'static str) -> Result<(), ProbeError> {
    match mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>) {
        // The kernel may have mounted devices by itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(ProbeError::Mount { target, source }),
    }
}

fn refuse_foreign(params: &Params) -> Result<(), ProbeError> {
    let foreign = [
        (params.gateway.is_some(), params::GATEWAY),
        (params.fill, params::FILL),
        (params.compute_steps.is_some(), params::COMPUTE),
    ];
    if let Some((_, name)) = foreign.into_iter().find(|(given, _)| *given) {
        return Err(ProbeError::BareMetalOnly(name));
    }
    let there = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if params.vcpus > there {
        return Err(ProbeError::Vcpus { asked: params.vcpus, there });
    }
    Ok(())
}

fn load_modules() -> Result<(), ProbeError> {
    let error = |source| ProbeError::Read { path: MODULES.into(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(MODULES).map_err(error)? {
        files.push(entry.map_err(error)?.path());
    }
    files.sort();
    for path in files {
        let bytes =
            fs::read(&path).map_err(|source| ProbeError::Read { path: path.clone(), source })?;
        match nix::kmod::init_module(&bytes, c"") {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(source) => return Err(ProbeError::Module { path, source }),
        }
    }
    Ok(())
}

fn read(path: &str) -> Result<String, ProbeError> {
    fs::read_to_string(path).map_err(|source| ProbeError::Read { path: path.into(), source })
}
