//! Measures what a pause costs without its pages: kick, state, harvest.
//!
//! ```text
//! cargo run --release -p romulus-vmm --example pause_latency -- GUEST.elf VCPUS MEMORY_MIB "CMDLINE"
//! ```
//!
//! Prints medians and 99th percentiles in microseconds over 400 pauses, 5 ms
//! apart, with the dirty log on.

use std::{
    env,
    error::Error,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use checkpoint::{PageSet, output::Mode};
use romulus_vmm::{
    boot::{BootConfig, BootProtocol},
    device::DeviceConfig,
    dirty::DirtyTracking,
    host::model::CpuConfig,
    outlet::{Outlet, OutletConfig},
    vm::{Vm, VmConfig},
};

const PAUSES: usize = 400;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernel, vcpus, memory_mib, cmdline] = &arguments[..] else {
        return Err("usage: pause_latency GUEST.elf VCPUS MEMORY_MIB CMDLINE".into());
    };
    let mut vm = start(kernel, vcpus.parse()?, memory_mib.parse()?, cmdline)?;
    vm.start_dirty_log()?;
    let mut pages = PageSet::new(vm.memory().layout().frame_end());
    let names = ["kick", "devices", "save alone", "harvest", "capture", "whole", "pages"];
    let mut samples = vec![Vec::new(); names.len()];
    for _ in 0..PAUSES {
        std::thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        let pause = vm.pause()?;
        let captured = vm.capture(&mut pages)?;
        let whole = start.elapsed();
        let save = Instant::now();
        vm.save()?;
        let save = save.elapsed();
        let parts = [pause.vcpus, pause.devices, save, captured.harvest, captured.total, whole];
        for (sample, part) in samples.iter_mut().zip(parts) {
            sample.push(part.as_secs_f64() * 1e6);
        }
        samples[6].push(pages.len() as f64);
        pages.clear();
        vm.resume()?;
    }
    println!("{} {}", vm.fingerprint(), vm.dirty_log().kind());
    for (name, sample) in names.iter().zip(&mut samples) {
        sample.sort_by(f64::total_cmp);
        let at = |percent: usize| sample[sample.len() * percent / 100];
        println!("{name:12} p50 {:8.1}  p99 {:8.1}", at(50), at(99));
    }
    Ok(())
}

fn start(kernel: &str, vcpus: u8, memory_mib: u64, cmdline: &str) -> Result<Vm, Box<dyn Error>> {
    let console = Box::new(std::io::stderr());
    let outlet = Outlet::new(OutletConfig::default(), Mode::Passing, console, Box::new(|| {}))?;
    let (events, _) = mpsc::channel();
    let config = VmConfig {
        memory_bytes: memory_mib << 20,
        vcpus,
        hugepages: true,
        dirty_tracking: DirtyTracking::Auto,
        cpu: CpuConfig::default(),
        devices: DeviceConfig::default(),
    };
    let begin = Instant::now();
    let mut vm = Vm::new(&config, Arc::new(outlet), events)?;
    println!("shell ready after {:?}", begin.elapsed());
    vm.memory().touch(2)?;
    let boot = BootConfig {
        kernel: kernel.into(),
        initrd: None,
        cmdline: cmdline.into(),
        protocol: BootProtocol::Auto,
    };
    vm.boot(&boot)?;
    vm.resume()?;
    std::thread::sleep(Duration::from_millis(1500));
    Ok(vm)
}
