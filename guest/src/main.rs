//! The probe guest: a bare-metal program that dirties memory in known patterns, answers requests
//! over UDP and checks itself. See `README.md` for boot contract, parameters and formats.
//!
//! | file | is |
//! |---|---|
//! | `boot.s`, `stubs.s`, `cpu.rs` | ways in, CPL0 stubs, and how CPL3 calls them |
//! | `platform.rs`, `memory.rs` | the loader's word, and who owns which memory |
//! | `apic.rs`, `clock.rs` | interrupts, starting vCPUs, time |
//! | `virtio.rs`, `net.rs`, `service.rs` | network device, IP stack, the probe service |
//! | `work.rs`, `verify.rs` | dirty patterns, and the check of all memory |
//! | `compute.rs` | the deterministic computation |
#![no_std]
#![no_main]

mod console;
mod cpu;
mod fatal;
mod platform;
mod runtime;

use console::say;
use platform::Platform;
use romulus_probe::Params;

/// Where the boot stubs leave every vCPU: CPL3, interrupts on, local APIC still off.
#[unsafe(no_mangle)]
extern "C" fn cpu_main(cpu: usize) -> ! {
    if cpu == 0 { main_first() } else { main_other(cpu) }
}

fn main_first() -> ! {
    console::init();
    let platform = Platform::read();
    let params = Params::parse(platform.command_line()).unwrap_or_else(|error| fatal::refuse(format_args!("{error}")));
    say!("hello {} ranges {:x?}", params.vcpus, platform.ram());
    cpu::exit(0x10)
}

fn main_other(_cpu: usize) -> ! {
    cpu::stop()
}
