//! The probe guest: a bare-metal program that dirties memory in known patterns, answers requests
//! over UDP and checks itself. See `README.md` for boot contract, parameters and formats.
//!
//! | file | is |
//! |---|---|
//! | `boot.s`, `stubs.s`, `cpu.rs` | ways in, CPL0 stubs, and how CPL3 calls them |
//! | `platform.rs`, `memory.rs` | the loader's word, and who owns which memory |
//! | `apic.rs`, `clock.rs` | interrupts, starting vCPUs, time |
//! | `virtio.rs`, `virtqueue.rs`, `net.rs`, `service.rs` | network device, IP stack, the probe service |
//! | `work.rs`, `verify.rs` | dirty patterns, and the check of all memory |
//! | `attack/` | a guest that is hostile to its machine |
//! | `compute.rs` | the deterministic computation |
#![no_std]
#![no_main]

mod apic;
mod attack;
mod clock;
mod compute;
mod console;
mod cpu;
mod fatal;
mod memory;
mod net;
mod platform;
mod runtime;
mod service;
mod set_once;
mod verify;
mod virtio;
mod virtqueue;
mod work;

use core::sync::atomic::{AtomicBool, Ordering};

use attack::Assault;
use console::say;
use memory::Memory;
use net::Net;
use platform::Platform;
use romulus_probe::{Params, VCPUS_MAX};
use service::Service;
use set_once::SetOnce;
use work::{COUNTERS, Worker};

static PARAMS: SetOnce<Params> = SetOnce::new();
static ONLINE: [AtomicBool; VCPUS_MAX] = [const { AtomicBool::new(false) }; VCPUS_MAX];

/// Where the boot stubs leave every vCPU: CPL3, interrupts on, local APIC still off.
#[unsafe(no_mangle)]
extern "C" fn cpu_main(cpu: usize) -> ! {
    if cpu == 0 { main_first() } else { main_other(cpu) }
}

fn main_first() -> ! {
    console::init();
    let platform = Platform::read();
    let parsed = Params::parse(platform.command_line());
    let params = PARAMS.set(parsed.unwrap_or_else(|error| fatal::refuse(format_args!("{error}"))));
    let memory = memory::init(&platform, params);
    apic::init();
    apic::mask_ioapic();
    clock::calibrate();
    clock::init(0);
    apic::set_timer_ms(params.tick_ms);
    start_others(params.vcpus);
    if memory.fill_pages() > 0 {
        say!("filling pages={}", memory.fill_pages());
    }
    say!(
        "clock tsc_khz={} kvm_clock={} x2apic={}",
        clock::tsc_khz(),
        clock::kvm_clock_ns(0) != 0,
        apic::uses_x2apic()
    );
    if let Some(steps) = params.compute_steps {
        say!("ready vcpus={} memory_mib={}", params.vcpus, memory.ram_mib());
        compute::run(0, params.vcpus, steps);
    }
    let net = Net::open(params);
    work::set_pattern(params.pattern);
    say!("ready vcpus={} memory_mib={}", params.vcpus, memory.ram_mib());
    serve(params, memory, net)
}

fn start_others(vcpus: usize) {
    for (cpu, online) in ONLINE.iter().enumerate().take(vcpus).skip(1) {
        if !apic::start_cpu(cpu, online) {
            fatal::refuse(format_args!(
                "vCPU {cpu} does not start; is probe.vcpus larger than the machine?"
            ));
        }
    }
    work::set_vcpus(vcpus);
}

/// vCPU 0 for ever: network, and work if nobody else does it.
fn serve(params: &Params, memory: &Memory, mut net: Option<Net>) -> ! {
    let percpu = cpu::PerCpu::of(0);
    let mut worker = (params.vcpus == 1).then(|| Worker::new(0, 1, params.tick_ms));
    let mut service = Service::new(params.vcpus);
    let mut is_filling = memory.fill_pages() > 0;
    let mut assault = params.attack.map(|attack| Assault::new(attack, params, memory));
    loop {
        let events = percpu.events();
        COUNTERS[0].progress.fetch_add(1, Ordering::Relaxed);
        clock::check_order(0);
        let mut is_busy = worker.as_mut().is_some_and(Worker::run_slice);
        if let Some(assault) = &mut assault {
            is_busy |= assault.strike(&mut net);
        }
        let is_driven = !assault.as_ref().is_some_and(Assault::has_net);
        if let Some(net) = net.as_mut().filter(|_| is_driven) {
            let counters = net.counters();
            is_busy |= net.poll(|socket| service.serve(socket, counters));
        }
        if is_filling && verify::filled_pages() == memory.fill_pages() {
            is_filling = false;
            say!("filled pages={}", memory.fill_pages());
        }
        if !is_busy {
            cpu::wait(events);
        }
    }
}

fn main_other(cpu: usize) -> ! {
    let params = PARAMS.get();
    apic::init();
    clock::init(cpu);
    apic::set_timer_ms(params.tick_ms);
    let percpu = cpu::PerCpu::of(cpu);
    let mut worker = Worker::new(cpu, params.vcpus, params.tick_ms);
    ONLINE[cpu].store(true, Ordering::Release);
    if let Some(steps) = params.compute_steps {
        compute::run(cpu, params.vcpus, steps);
    }
    loop {
        let events = percpu.events();
        COUNTERS[cpu].progress.fetch_add(1, Ordering::Relaxed);
        clock::check_order(cpu);
        if !worker.run_slice() {
            cpu::wait(events);
        }
    }
}
