//! Saved state on its way in and out of bytes, in the shape of a small and of
//! a large machine.

#![forbid(unsafe_code)]

use checkpoint::{Section, Sections};
use divan::{Bencher, black_box, counter::BytesCount};

const VCPUS: [usize; 2] = [2, 8];

fn main() {
    divan::main();
}

/// Sections with the sizes of KVM's structures: registers, XSAVE area, LAPIC,
/// MSRs for every vCPU, and devices.
fn machine(vcpus: usize) -> Sections {
    let parts = [("regs", 144), ("sregs", 320), ("xsave", 4096), ("lapic", 1024), ("msrs", 664)];
    let section = |name, bytes| Section { name, version: 1, bytes: vec![0x5a; bytes] };
    let of_vcpu =
        |vcpu| parts.map(|(part, bytes)| section(format!("vcpu.{vcpu:02}.{part}"), bytes));
    let devices = [("virtio-net.0", 600), ("serial.0", 120), ("vm.irqchip", 1600)];
    let devices = devices.map(|(name, bytes)| section(name.to_owned(), bytes));
    Sections::new((0..vcpus).flat_map(of_vcpu).chain(devices).collect()).expect("sound sections")
}

#[divan::bench(args = VCPUS)]
fn encode(bencher: Bencher<'_, '_>, vcpus: usize) {
    let sections = machine(vcpus);
    bencher
        .counter(BytesCount::new(sections.encode().len()))
        .bench(|| black_box(&sections).encode());
}

#[divan::bench(args = VCPUS)]
fn decode(bencher: Bencher<'_, '_>, vcpus: usize) {
    let bytes = machine(vcpus).encode();
    bencher
        .counter(BytesCount::of_slice(&bytes))
        .bench(|| Sections::decode(black_box(&bytes)).expect("sound bytes"));
}
