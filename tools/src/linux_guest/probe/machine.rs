//! What the kernel tells of the machine. What it does not tell counts as 0:
//! these are figures for people, not for checks.

use std::{fs, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC`, which follows kvm-clock or the TSC, in ns.
pub(super) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has the clock");
    Duration::from(now).as_nanos() as u64
}

/// Memory that the kernel has, in MiB.
pub(super) fn memory_mib() -> u64 {
    memory_kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default()) / 1024
}

/// One of `rx_packets`, `tx_packets` and the like of a network device.
pub(super) fn device_statistic(device: &str, what: &str) -> u64 {
    let path = format!("/sys/class/net/{device}/statistics/{what}");
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Interrupts of virtio devices since boot.
pub(super) fn virtio_interrupts() -> u64 {
    interrupts_of("virtio", &fs::read_to_string("/proc/interrupts").unwrap_or_default())
}

fn memory_kib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The sum over all CPUs: a line is the interrupt, a count for each CPU, and
/// words.
fn interrupts_of(device: &str, interrupts: &str) -> u64 {
    let lines = interrupts.lines().filter(|line| line.contains(device));
    let counts = |line: &str| -> u64 {
        let words = line.split_ascii_whitespace().skip(1);
        words.map_while(|word| word.parse::<u64>().ok()).sum()
    };
    lines.map(counts).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let text = "           CPU0       CPU1\n  5:         12          30   IO-APIC   5-edge      virtio0\n\
                    LOC:       1000       2000   Local timer interrupts\n";
        assert_eq!(interrupts_of("virtio", text), 42);
        assert_eq!(memory_kib("MemTotal:      2048 kB\nMemFree: 1 kB\n"), 2048);
        assert_eq!(memory_kib(""), 0);
        assert!(memory_mib() > 0 && monotonic_ns() > 0);
        assert_eq!(device_statistic("none", "rx_packets"), 0);
    }
}
