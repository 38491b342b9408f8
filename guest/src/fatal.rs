//! The end of a run that went wrong: says what happened and exits with a code of its own.

use core::panic::PanicInfo;

use crate::console::print_line_unlocked;
use crate::cpu;

/// Exit code of an unexpected exception or a panic.
pub(crate) const EXIT_FATAL: u8 = 0x7f;
/// Exit code of a command line that is wrong or a machine that is too small.
pub(crate) const EXIT_REFUSED: u8 = 0x7d;

/// What the stub saved; the layout is fixed by `stubs.s`.
#[repr(C)]
#[derive(Clone, Copy)]
struct FatalRecord {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    cr2: u64,
    cpu: u64,
    rax: u64,
}

unsafe extern "C" {
    static fatal_record: FatalRecord;
}

/// Where the exception stub goes on, at CPL3 with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn fatal_main() -> ! {
    // SAFETY: the stub wrote it before coming here and lets nobody else in.
    let record = unsafe { (&raw const fatal_record).read_volatile() };
    let FatalRecord { vector, error, rip, cs, rflags, rsp, cr2, cpu, rax } = record;
    print_line_unlocked(format_args!(
        "fatal vector={vector} error={error:#x} rip={rip:#x} cr2={cr2:#x} vcpu={cpu} cs={cs:#x} \
         rflags={rflags:#x} rsp={rsp:#x} rax={rax:#x}"
    ));
    cpu::exit(EXIT_FATAL)
}

/// Ends the run because of what the operator asked for.
pub(crate) fn refuse(reason: core::fmt::Arguments<'_>) -> ! {
    print_line_unlocked(format_args!("refused: {reason}"));
    cpu::exit(EXIT_REFUSED)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    print_line_unlocked(format_args!("fatal {info}"));
    cpu::exit(EXIT_FATAL)
}
