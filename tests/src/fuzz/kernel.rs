//! Kernel images and command lines, as an operator got them from somewhere.
//!
//! ```text
//!   input := protocol:u8  initrd_bytes:u8 (in KiB)  cmdline  kernel
//!   cmdline := len:u16  text[len]
//! ```

use std::sync::{Mutex, OnceLock, PoisonError};

use vmm::{
    boot::{BootConfig, BootProtocol},
    fuzz::load_kernel,
    memory::GuestRam,
};

use super::{Verdict, scratch, script::Script};

/// The least that a guest has.
const RAM_BYTES: u64 = 64 << 20;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let mut script = Script::new(bytes);
    let protocol = match script.u8() % 4 {
        0 => BootProtocol::Auto,
        1 => BootProtocol::Linux,
        2 => BootProtocol::Pvh,
        _ => BootProtocol::LongMode,
    };
    let initrd_kib = usize::from(script.u8());
    let cmdline = String::from_utf8_lossy(script.counted()).into_owned();
    let folder = scratch::folder();
    let (kernel, initrd) = (folder.path().join("kernel"), folder.path().join("initrd"));
    std::fs::write(&kernel, script.rest()).expect("a folder of our own");
    let initrd = (initrd_kib > 0).then(|| {
        std::fs::write(&initrd, vec![0x5a; initrd_kib << 10]).expect("a folder of our own");
        initrd
    });
    let config = BootConfig { kernel, initrd, cmdline, protocol };
    let loaded = load_kernel(&ram(), &config);
    if let Err(error) = &loaded {
        assert!(!error.to_string().is_empty());
    }
    Verdict::of(&loaded)
}

/// Memory that was touched before; what lies in it decides nothing.
fn ram() -> impl std::ops::Deref<Target = GuestRam> {
    static RAM: OnceLock<Mutex<GuestRam>> = OnceLock::new();
    let ram = RAM.get_or_init(|| Mutex::new(GuestRam::new(RAM_BYTES, false).expect("64 MiB")));
    ram.lock().unwrap_or_else(PoisonError::into_inner)
}
