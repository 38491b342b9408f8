//! The 16550 at 0x3f8: whole lines, polled, no interrupts.
//!
//! With its FIFO on, an empty transmitter takes 16 bytes: one status read pays for all of them,
//! which matters where a port access leaves to the VMM.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;

const BASE: u16 = 0x3f8;
const FIFO_BYTES: usize = 16;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// A transmitter that stays busy this many polls is not there, or not going to be ready.
const POLLS_MAX: usize = 100_000;

static LOCK: AtomicBool = AtomicBool::new(false);

/// Prints a line with the prefix that tells it from a boot loader's.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::console::print_line(format_args!($($argument)*))
    };
}
pub(crate) use say;

/// 115200 baud, 8 data bits, FIFO on.
pub(crate) fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        cpu::out8(BASE + register, value);
    }
}

/// A line, never interleaved with another vCPU's.
pub(crate) fn print_line(arguments: fmt::Arguments<'_>) {
    while LOCK.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    print_line_unlocked(arguments);
    LOCK.store(false, Ordering::Release);
}

/// For the fatal path: the holder of the lock may be the one that failed.
pub(crate) fn print_line_unlocked(arguments: fmt::Arguments<'_>) {
    let mut port = Port { room: 0 };
    let _ = writeln!(port, "probe: {arguments}\r");
}

struct Port {
    room: usize,
}

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.room == 0 {
                let _ = (0..POLLS_MAX).find(|_| cpu::in8(BASE + 5) & TRANSMITTER_EMPTY != 0);
                self.room = FIFO_BYTES;
            }
            cpu::out8(BASE, byte);
            self.room -= 1;
        }
        Ok(())
    }
}
