//! The deterministic computation: every vCPU mixes integers, floating point, vectors and a MiB of
//! memory for a given number of steps. Its digest depends on nothing but the vCPU's number, the
//! steps and whether there is AVX: a guest that is checkpointed, or moved, must print the same one
//! as a guest that never stopped.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use romulus_probe::VCPUS_MAX;
use romulus_probe::content::Prng;
use romulus_probe::history::mix64;

use crate::clock;
use crate::console::say;
use crate::cpu::{self, PerCpu};
use crate::work::COUNTERS;

global_asm!(include_str!("compute.s"), options(att_syntax));

/// Exit code of a computation that ended.
const EXIT_DONE: u8 = 0x10;
/// Steps for which state stays in registers.
const BLOCK_STEPS: u64 = 1 << 20;
const BUFFER_WORDS: usize = 1 << 17;

/// The registers, between blocks; the layout is fixed by `compute.s`.
#[repr(C, align(32))]
struct State {
    x87: [[u8; 16]; 8],
    vectors: [[f64; 4]; 16],
    integers: [u64; 8],
}

struct Buffers(UnsafeCell<[[u64; BUFFER_WORDS]; VCPUS_MAX]>);

// SAFETY: each vCPU uses its own only.
unsafe impl Sync for Buffers {}

static BUFFERS: Buffers = Buffers(UnsafeCell::new([[0; BUFFER_WORDS]; VCPUS_MAX]));
static FINISHED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn compute_block(state: *mut State, buffer: *mut u64, steps: u64, use_avx: u64);
}

/// Runs this vCPU's part; the last one to finish ends the run.
pub(crate) fn run(cpu: usize, vcpus: usize, steps: u64) -> ! {
    let use_avx = has_avx();
    // SAFETY: this vCPU's buffer.
    let buffer = unsafe { (&raw mut (*BUFFERS.0.get())[cpu]).cast::<u64>() };
    let mut state = initial_state(cpu, buffer);
    let mut left = steps;
    while left > 0 {
        let block = left.min(BLOCK_STEPS);
        // SAFETY: the state is aligned, the buffer has the size that the block expects.
        unsafe { compute_block(&raw mut state, buffer, block, u64::from(use_avx)) };
        left -= block;
        COUNTERS[cpu].progress.fetch_add(1, Ordering::Relaxed);
        clock::check_order(cpu);
    }
    say!("digest vcpu={cpu} {:016x} avx={}", digest(&state, buffer), u8::from(use_avx));
    if FINISHED.fetch_add(1, Ordering::AcqRel) + 1 == vcpus {
        let (tsc, kvm_clock) = clock::compared();
        say!("clocks compared tsc={} kvm_clock={}", u8::from(tsc), u8::from(kvm_clock));
        say!("done steps={steps}");
        cpu::exit(EXIT_DONE);
    }
    loop {
        cpu::wait(PerCpu::of(cpu).events());
    }
}

/// OSXSAVE and AVX: the boot stub has then enabled it.
fn has_avx() -> bool {
    let features = cpu::cpuid(1, 0)[2];
    features >> 27 & 1 == 1 && features >> 28 & 1 == 1
}

fn initial_state(cpu: usize, buffer: *mut u64) -> State {
    let mut prng = Prng::new(cpu as u64 + 1);
    for at in 0..BUFFER_WORDS {
        // SAFETY: within the buffer.
        unsafe { buffer.add(at).write(prng.next_u64()) };
    }
    // Between 1 and 2: sums and halves of such numbers stay finite.
    let mut mantissa = || prng.next_u64() >> 12 | 0x3ff0_0000_0000_0000;
    let vectors = core::array::from_fn(|_| core::array::from_fn(|_| f64::from_bits(mantissa())));
    let x87 = core::array::from_fn(|_| {
        // An 80-bit number: explicit leading one, exponent of 1.0.
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(mantissa() << 11 | 1 << 63).to_le_bytes());
        bytes[8..10].copy_from_slice(&0x3fff_u16.to_le_bytes());
        bytes
    });
    State { x87, vectors, integers: core::array::from_fn(|_| prng.next_u64() | 1) }
}

fn digest(state: &State, buffer: *const u64) -> u64 {
    let mut digest = 0;
    let mut take = |word: u64| digest = mix64(digest ^ word);
    for register in &state.x87 {
        take(u64::from_le_bytes(*register.first_chunk().expect("16 bytes")));
        take(u64::from(register[8]) | u64::from(register[9]) << 8);
    }
    state.vectors.iter().flatten().for_each(|lane| take(lane.to_bits()));
    state.integers.iter().for_each(|word| take(*word));
    for at in 0..BUFFER_WORDS {
        // SAFETY: within the buffer.
        take(unsafe { buffer.add(at).read() });
    }
    digest
}
