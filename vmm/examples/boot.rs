//! Boots a guest alone, with its serial console on the terminal: for looking
//! at kernels, without replication.
//!
//! ```text
//! cargo run -p romulus-vmm --example boot -- \
//!     KERNEL INITRD|- VCPUS MEMORY_MIB TAP|- "CMDLINE" [DISK]...
//! ```
//!
//! The guest may write to a DISK whose name begins with `rw:`. A line `~.`
//! presses the power button. Restarts go on in the same VM; ends with 0 when
//! the guest turns itself off, and with 1 when it fails.

use std::{
    env,
    error::Error,
    io::{BufRead, Write},
    process::ExitCode,
    sync::{Arc, mpsc},
};

use checkpoint::output::Mode;
use romulus_vmm::{
    boot::{BootConfig, BootProtocol},
    device::{DeviceConfig, Devices, DiskConfig, NetworkConfig},
    dirty::DirtyTracking,
    event::VmEvent,
    host::model::CpuConfig,
    outlet::{Outlet, OutletConfig},
    vm::{Vm, VmConfig},
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernel, initrd, vcpus, memory_mib, tap, cmdline, disks @ ..] = &arguments[..] else {
        return Err("usage: boot KERNEL INITRD|- VCPUS MEMORY_MIB TAP|- CMDLINE [DISK]...".into());
    };
    let given = |text: &String| (text != "-").then(|| text.clone());
    let networks = given(tap).map(|tap| NetworkConfig { tap, create: false, mac: MAC });
    let config = VmConfig {
        memory_bytes: memory_mib.parse::<u64>()? << 20,
        vcpus: vcpus.parse()?,
        hugepages: false,
        dirty_tracking: DirtyTracking::Auto,
        cpu: CpuConfig::default(),
        devices: DeviceConfig {
            networks: networks.into_iter().collect(),
            disks: disks.iter().enumerate().map(disk).collect(),
            rng: true,
        },
    };
    let boot = BootConfig {
        kernel: kernel.into(),
        initrd: given(initrd).map(Into::into),
        cmdline: cmdline.clone(),
        protocol: BootProtocol::Auto,
    };
    let console = Box::new(std::io::stdout());
    let outlet = Outlet::new(OutletConfig::default(), Mode::Passing, console, Box::new(|| {}))?;
    let (sender, events) = mpsc::channel();
    let mut vm = Vm::new(&config, Arc::new(outlet), sender)?;
    eprintln!("entered by {:?}", vm.boot(&boot)?);
    type_lines(Arc::clone(vm.devices()));
    vm.resume()?;
    run(&mut vm, &boot, &events)
}

fn disk((index, argument): (usize, &String)) -> DiskConfig {
    let (path, read_only) = match argument.strip_prefix("rw:") {
        Some(path) => (path, false),
        None => (argument.as_str(), true),
    };
    DiskConfig { path: path.into(), read_only, serial: format!("disk-{index}") }
}

fn run(
    vm: &mut Vm,
    boot: &BootConfig,
    events: &mpsc::Receiver<VmEvent>,
) -> Result<ExitCode, Box<dyn Error>> {
    loop {
        let event = events.recv()?;
        eprintln!("\n[{event}]");
        match event {
            VmEvent::PowerOff { .. } => return Ok(ExitCode::SUCCESS),
            VmEvent::Reset { .. } => {
                vm.pause()?;
                vm.reset(boot)?;
                vm.resume()?;
            }
            VmEvent::Panicked { .. } => {}
            _ => return Ok(ExitCode::FAILURE),
        }
    }
}

/// Types what comes on standard input, from a thread.
fn type_lines(devices: Arc<Devices>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line == "~." {
                devices.press_power_button();
                continue;
            }
            let mut left = format!("{line}\n").into_bytes();
            while !left.is_empty() {
                left.drain(..devices.console_input(&left));
            }
            let _ = std::io::stdout().flush();
        }
    });
}
