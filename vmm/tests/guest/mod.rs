//! Tiny guests, assembled here, and what tests need to run them.
//!
//! They run at CPL0 in long mode on the VMM's own page tables, so they keep
//! to plain integer instructions (the PVM backend interprets them).
#![allow(dead_code, reason = "each test file uses some of it")]

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use checkpoint::{PageRun, PageSet, output::Mode};
use romulus_vmm::{
    boot::{BootConfig, BootProtocol},
    device::DeviceConfig,
    dirty::DirtyTracking,
    event::VmEvent,
    host::model::CpuConfig,
    outlet::{Outlet, OutletConfig},
    vm::{Vm, VmConfig, VmError},
};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

/// Where images lie.
pub(crate) const IMAGE: u64 = 0x10_0000;
/// Where one guest copies what CPUID tells.
pub(crate) const CPUID: u64 = 0x20_1000;
/// Where one guest has its page of kvm-clock (`struct pvclock_vcpu_time_info`).
pub(crate) const KVM_CLOCK: u64 = 0x20_1000;
/// What one guest halts by, and where one has its wall clock.
pub(crate) const WORD: u64 = 0x20_1000;
/// Where guests count.
pub(crate) const COUNTER: u64 = 0x20_0000;

/// Defines `fn $name() -> &'static [u8]`: the machine code.
macro_rules! guest_code {
    ($name:ident, $($line:literal),* $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".global ", stringify!($name), "_begin"),
            concat!(stringify!($name), "_begin:"),
            $($line,)*
            concat!(".global ", stringify!($name), "_end"),
            concat!(stringify!($name), "_end:"),
            ".popsection",
        );
        pub(crate) fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!(stringify!($name), "_begin")]
                static BEGIN: u8;
                #[link_name = concat!(stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: the two symbols delimit bytes in read-only data.
            unsafe {
                let begin = &raw const BEGIN;
                std::slice::from_raw_parts(begin, (&raw const END).offset_from(begin) as usize)
            }
        }
    };
}

// Counts in a register and in memory, and ends with 1 if they differ.
guest_code!(
    counting,
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: mov rax, [rbx]",
    "cmp rax, rcx",
    "jne 3f",
    "inc rcx",
    "mov [rbx], rcx",
    "jmp 2b",
    "3: mov eax, 1",
    "mov dx, 0xf4",
    "out dx, eax",
);

// Writes a rising number to pages chosen by a generator, 8,192 of them from
// 16 MiB on, and counts what it did.
guest_code!(
    scattering,
    "mov ebx, 0x200000",
    "mov r8d, 12345",
    "xor ecx, ecx",
    "2: imul r8, r8, 1103515245",
    "add r8, 12345",
    "mov rdi, r8",
    "shr rdi, 16",
    "and edi, 0x1fff",
    "shl rdi, 12",
    "add rdi, 0x1000000",
    "inc rcx",
    "mov [rdi], rcx",
    "mov [rbx], rcx",
    "jmp 2b",
);

// Says all bytes in turn on the serial console, reads a port where nothing
// answers, and ends with 2 if that does not read as ones.
guest_code!(
    speaking,
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: mov dx, 0x3f8",
    "mov al, cl",
    "out dx, al",
    "inc rcx",
    "mov dx, 0x5000",
    "xor eax, eax",
    "in al, dx",
    "cmp al, 0xff",
    "jne 3f",
    "mov [rbx], rcx",
    "jmp 2b",
    "3: mov eax, 2",
    "mov dx, 0xf4",
    "out dx, eax",
);

// Reads 4 KiB blocks 0 to 255 of the disk in the first slot in turn and for
// ever, by the rings that `Rig::drive_disk` sets up, and counts them. Ends with
// 3 if a block does not begin with its number.
guest_code!(
    reading_disk,
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: movzx eax, cl",
    "shl eax, 3",
    "mov edi, 0x300000",
    "mov [rdi + 8], rax",
    "mov byte ptr [rdi + 0x100], 0xaa",
    "inc rcx",
    "mov esi, 0x311000",
    "mov [rsi + 2], cx",
    "mov edx, 0xd0000050",
    "mov dword ptr [rdx], 0",
    "mov esi, 0x312000",
    "4: mov ax, [rsi + 2]",
    "cmp ax, cx",
    "jne 4b",
    "cmp byte ptr [rdi + 0x100], 0",
    "jne 3f",
    "mov esi, 0x301000",
    "mov rax, [rsi]",
    "lea rdx, [rcx - 1]",
    "and edx, 0xff",
    "cmp rax, rdx",
    "jne 3f",
    "mov [rbx], rcx",
    "jmp 2b",
    "3: mov eax, 3",
    "mov dx, 0xf4",
    "out dx, eax",
);

// Copies the first word of the command line to the exit port.
guest_code!(
    reading_start_info,
    "mov eax, [rsi]",
    "cmp eax, 0x336ec578",
    "jne 3f",
    "mov rdi, [rsi + 24]",
    "mov eax, [rdi]",
    "3: mov dx, 0xf4",
    "out dx, eax",
);

// PVH: 32-bit code that does the same with ebx.
guest_code!(
    reading_start_info_32,
    ".code32",
    "mov eax, [ebx]",
    "mov edi, [ebx + 24]",
    "mov eax, [edi]",
    "mov edx, 0xf4",
    "out dx, eax",
    ".code64",
);

// Copies its CPUID to 0x20_1000 (eight leaves of four words: 0, 1, 7, and
// 0x8000_0002 to 0x8000_0006), then counts.
guest_code!(
    reading_cpuid,
    "mov edi, 0x201000",
    "mov esp, 0x203000",
    "xor eax, eax",
    "call 5f",
    "mov eax, 1",
    "call 5f",
    "mov eax, 7",
    "call 5f",
    "mov eax, 0x80000002",
    "call 5f",
    "mov eax, 0x80000003",
    "call 5f",
    "mov eax, 0x80000004",
    "call 5f",
    "mov eax, 0x80000005",
    "call 5f",
    "mov eax, 0x80000006",
    "call 5f",
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: inc rcx",
    "mov [rbx], rcx",
    "jmp 2b",
    "5: xor ecx, ecx",
    "cpuid",
    "mov [rdi], eax",
    "mov [rdi + 4], ebx",
    "mov [rdi + 8], ecx",
    "mov [rdi + 12], edx",
    "add rdi, 16",
    "ret",
);

// Lets KVM keep its clock's page at 0x20_1000 up to date, then counts.
guest_code!(
    using_kvm_clock,
    "mov ecx, 0x4b564d01",
    "mov eax, 0x201001",
    "xor edx, edx",
    "wrmsr",
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: inc rcx",
    "mov [rbx], rcx",
    "jmp 2b",
);

// Counts until somebody writes to 0x20_1000, halts without interrupts, and goes
// on to count from a thousand million if that ended.
guest_code!(
    halting_when_told,
    "mov ebx, 0x200000",
    "mov edi, 0x201000",
    "xor ecx, ecx",
    "2: inc rcx",
    "mov [rbx], rcx",
    "cmp byte ptr [rdi], 0",
    "je 2b",
    "cli",
    "hlt",
    "mov ecx, 1000000000",
    "3: inc rcx",
    "mov [rbx], rcx",
    "jmp 3b",
);

// Writes registers that KVM does not list: a variable memory type range, the
// default memory type; then counts.
guest_code!(
    setting_memory_types,
    "mov ecx, 0x200",
    "mov eax, 0xc0000006",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0x2ff",
    "mov eax, 0xc00",
    "wrmsr",
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: inc rcx",
    "mov [rbx], rcx",
    "jmp 2b",
);

// Orders the wall clock at 0x20_1000, then counts.
guest_code!(
    ordering_the_wall_clock,
    "mov ecx, 0x4b564d00",
    "mov eax, 0x201000",
    "xor edx, edx",
    "wrmsr",
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: inc rcx",
    "mov [rbx], rcx",
    "jmp 2b",
);

guest_code!(touching_nothing, "mov rdi, 0xc8000000", "mov al, [rdi]", "mov [rdi], al", "4: jmp 4b");
guest_code!(unknown_instruction, "mov ebx, 0x200000", "ud2", "4: jmp 4b");

// An instruction that every 64-bit processor knows and KVM's emulator does not;
// then the guest is done, with code 1.
guest_code!(
    beyond_the_emulator,
    "mov ebx, 0x200000",
    "cmpxchg16b [rbx]",
    "mov al, 1",
    "mov dx, 0xf4",
    "out dx, al",
    "4: jmp 4b",
);

// Counts its lives in memory: restarts twice, then turns itself off.
guest_code!(
    restarting,
    "mov ebx, 0x200000",
    "mov rcx, [rbx]",
    "inc rcx",
    "mov [rbx], rcx",
    "cmp rcx, 3",
    "jae 3f",
    "mov dx, 0xcf9",
    "mov al, 6",
    "out dx, al",
    "2: jmp 2b",
    "3: mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "4: jmp 4b",
);

guest_code!(
    panicking_and_turning_off,
    "mov dx, 0x505",
    "mov al, 1",
    "out dx, al",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "4: jmp 4b",
);

// Counts until there is an event of the power button, and ends with it.
guest_code!(
    awaiting_the_button,
    "mov ebx, 0x200000",
    "xor ecx, ecx",
    "2: inc rcx",
    "mov [rbx], rcx",
    "mov dx, 0x602",
    "in al, dx",
    "test al, al",
    "jz 2b",
    "movzx eax, al",
    "mov dx, 0xf4",
    "out dx, eax",
);

/// Whether KVM is here; if not, says so, or fails if `ROMULUS_REQUIRE` has
/// `kvm` in it.
pub(crate) fn require_kvm() -> bool {
    let error = match romulus_vmm::host::Host::open() {
        Ok(_) => return true,
        Err(error) => error,
    };
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word == "kvm"), "kvm is required: {error}");
    eprintln!("skipped: {error}");
    false
}

/// Whether this KVM has the capability `name` of `Capabilities::list`; if not,
/// says so, or fails if `ROMULUS_REQUIRE` names it.
pub(crate) fn require_capability(name: &str) -> bool {
    if !require_kvm() {
        return false;
    }
    let host = romulus_vmm::host::Host::open().unwrap();
    let list = host.capabilities().list();
    let capability = list.iter().find(|capability| capability.name == name).expect(name);
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|word| word == name);
    assert!(capability.available || !required, "{name} is required: {}", capability.reason);
    if !capability.available {
        eprintln!("skipped: this KVM lacks {name}: {}", capability.reason);
    }
    capability.available
}

/// A 64-bit ELF file with `code` at 1 MiB, as its entry, and perhaps a Xen
/// note that names the same place.
pub(crate) fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    elf_at(code, IMAGE, code.len() as u64, pvh)
}

pub(crate) fn elf_at(code: &[u8], address: u64, memory_bytes: u64, pvh: bool) -> Vec<u8> {
    const NOTE: u64 = 64 + 2 * 56;
    const CODE: u64 = NOTE + 20;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let header16 = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    header16(&mut file, &[2, 62, 1, 0]);
    [address, 64, 0].iter().for_each(|value| file.extend(value.to_le_bytes()));
    header16(&mut file, &[0, 0, 64, 56, 1 + u16::from(pvh), 0, 0, 0]);
    let mut segment = |kind: u32, offset: u64, at: u64, bytes: u64, memory: u64| {
        file.extend([kind.to_le_bytes(), 7_u32.to_le_bytes()].concat());
        for value in [offset, at, at, bytes, memory, 4] {
            file.extend(value.to_le_bytes());
        }
    };
    segment(1, CODE, address, code.len() as u64, memory_bytes);
    segment(4, NOTE, 0, 20, 20);
    for word in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), address as u32] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// A VM and what listens to it.
pub(crate) struct Rig {
    pub(crate) vm: Vm,
    pub(crate) events: mpsc::Receiver<VmEvent>,
    pub(crate) outlet: Arc<Outlet>,
    directory: TempDir,
}

pub(crate) fn config(vcpus: u8, dirty_tracking: DirtyTracking) -> VmConfig {
    VmConfig {
        memory_bytes: 64 << 20,
        vcpus,
        hugepages: false,
        dirty_tracking,
        cpu: CpuConfig::default(),
        devices: DeviceConfig::default(),
    }
}

impl Rig {
    pub(crate) fn new(config: &VmConfig) -> Self {
        Self::try_new(config).unwrap()
    }

    pub(crate) fn try_new(config: &VmConfig) -> Result<Self, VmError> {
        let outlet = Outlet::new(
            OutletConfig::default(),
            Mode::Passing,
            Box::new(std::io::sink()),
            Box::new(|| {}),
        );
        Self::speaking_to(Arc::new(outlet.unwrap()), config)
    }

    /// A VM whose output goes where another's goes, too.
    pub(crate) fn speaking_to(outlet: Arc<Outlet>, config: &VmConfig) -> Result<Self, VmError> {
        let (sender, events) = mpsc::channel();
        let vm = Vm::new(config, Arc::clone(&outlet), sender)?;
        Ok(Self { vm, events, outlet, directory: TempDir::new().unwrap() })
    }

    pub(crate) fn small() -> Self {
        Self::new(&config(1, DirtyTracking::Auto))
    }

    /// Boots `image`, paused at its entry.
    pub(crate) fn boot(&mut self, image: &[u8], protocol: BootProtocol) {
        let config = self.boot_config(image, protocol);
        self.vm.boot(&config).unwrap();
    }

    pub(crate) fn boot_config(&self, image: &[u8], protocol: BootProtocol) -> BootConfig {
        let kernel: PathBuf = self.directory.path().join("guest.elf");
        std::fs::write(&kernel, image).unwrap();
        BootConfig { kernel, initrd: None, cmdline: "probe.words=1".into(), protocol }
    }

    /// Does for the guest `reading_disk` what a driver does to start a disk, and
    /// describes its one request.
    pub(crate) fn drive_disk(&self) {
        const SLOT: u64 = 0xd000_0000;
        // Reset to FEATURES_OK with VERSION_1 alone, a queue of 8, DRIVER_OK.
        let features = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];
        let addresses = [(0x80, 0x31_0000), (0x90, 0x31_1000), (0xa0, 0x31_2000)];
        let queue = [&[(0x30, 0), (0x38, 8)], &addresses[..], &[(0x44, 1), (0x70, 15)]].concat();
        for (register, value) in features.into_iter().chain(queue) {
            self.vm.devices().mmio_write(SLOT + register, &u32::to_le_bytes(value));
        }
        let memory = self.vm.memory().memory();
        let parts = [(0x30_0000_u64, 16_u32, 1_u16), (0x30_1000, 4096, 3), (0x30_0100, 1, 2)];
        for (index, (address, len, flags)) in (0_u16..).zip(parts) {
            let place = GuestAddress(0x31_0000 + 16 * u64::from(index));
            let next = [flags, index + 1].map(u16::to_le_bytes).concat();
            let descriptor = [&address.to_le_bytes()[..], &len.to_le_bytes(), &next].concat();
            memory.write_slice(&descriptor, place).unwrap();
        }
    }

    pub(crate) fn event(&self) -> VmEvent {
        self.events.recv_timeout(Duration::from_secs(20)).expect("an event within 20 seconds")
    }

    pub(crate) fn counter(&self) -> u64 {
        self.vm.memory().memory().read_obj(GuestAddress(COUNTER)).unwrap()
    }

    /// Waits, while the guest runs, until it has counted beyond `count`.
    pub(crate) fn await_count(&self, count: u64) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.counter() <= count {
            if let Ok(event) = self.events.try_recv() {
                panic!("the guest stopped: {event}");
            }
            assert!(Instant::now() < end, "the guest does not count beyond {count}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// All of RAM, by copy.
    pub(crate) fn image(&self) -> Vec<u8> {
        let ram = self.vm.memory();
        let mut image = Vec::new();
        for region in ram.layout().regions() {
            let from = image.len();
            image.resize(from + region.count as usize * 4096, 0);
            ram.copy_out(*region, &mut image[from..]);
        }
        image
    }

    /// Makes `image` the content of RAM.
    pub(crate) fn set_image(&self, image: &[u8]) {
        let mut rest = image;
        for region in self.vm.memory().layout().regions() {
            let (mine, left) = rest.split_at(region.count as usize * 4096);
            self.vm.memory().copy_in(*region, mine);
            rest = left;
        }
    }

    pub(crate) fn page_set(&self) -> PageSet {
        PageSet::new(self.vm.memory().layout().frame_end())
    }
}

/// The pages in which two images of RAM below 3 GiB differ.
pub(crate) fn differing_pages(a: &[u8], b: &[u8]) -> Vec<PageRun> {
    let pages = a.chunks(4096).zip(b.chunks(4096)).enumerate();
    pages
        .filter(|(_, (a, b))| a != b)
        .map(|(page, _)| PageRun { first: checkpoint::PageNumber::new(page as u64), count: 1 })
        .collect()
}
