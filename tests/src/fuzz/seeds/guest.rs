//! What guests, files and operators feed.

use super::{Add, counted};
use crate::fuzz::devices::{
    CHAIN, DELIVER, MOVE, OUTSIDE, READ_PORT, READ_REGISTER, SERVE, START, WRITE_MEMORY,
    WRITE_PORT, WRITE_REGISTER,
};

const NET: u8 = 0;
const DISK: u8 = 1;
const RNG: u8 = 2;
/// Flags of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where buffers lie.
const BUFFERS: u32 = 0x40000;

/// A device and the features that its driver takes (the lower 32).
fn start(slot: u8, features: u32) -> Vec<u8> {
    [&[START, slot][..], &features.to_le_bytes()].concat()
}

fn memory(address: u32, bytes: &[u8]) -> Vec<u8> {
    [&[WRITE_MEMORY][..], &address.to_le_bytes(), &counted(bytes)].concat()
}

fn descriptor((address, len, flags, next): (u32, u32, u16, u16)) -> Vec<u8> {
    let mut bytes = u64::from(address).to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

fn chain(slot: u8, queue: u8, descriptors: &[(u32, u32, u16, u16)]) -> Vec<u8> {
    let mut step = vec![CHAIN, slot, queue, 0, descriptors.len() as u8];
    step.extend(descriptors.iter().flat_map(|one| descriptor(*one)));
    step
}

/// A request to a disk with `len` bytes of data, which the guest reads if `from_disk`.
fn disk_request(kind: u32, sector: u64, len: u32, from_disk: bool) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    let data = NEXT | if from_disk { WRITE } else { 0 };
    let (head, status) = ((BUFFERS, 16, NEXT, 1), (BUFFERS + 0x8000, 1, WRITE, 0));
    let chain = match len {
        0 => chain(DISK, 0, &[head, status]),
        len => chain(DISK, 0, &[head, (BUFFERS + 0x1000, len, data, 2), status]),
    };
    [memory(BUFFERS, &header), chain, vec![SERVE]].concat()
}

pub(super) fn devices(add: &mut Add<'_>) {
    let sent = chain(NET, 1, &[(BUFFERS, 12, NEXT, 1), (BUFFERS + 12, 60, 0, 0)]);
    let received = chain(NET, 0, &[(BUFFERS, 2048, WRITE, 0)]);
    let frame = [&[DELIVER][..], &counted(&[0xab; 60])].concat();
    let event_index = 1 << 29;
    add("devices", "sent", [start(NET, event_index), sent, vec![SERVE]].concat());
    add("devices", "received", [start(NET, 0), received, frame, vec![SERVE, MOVE]].concat());
    let disk = [
        start(DISK, 1 << 9 | 1 << 13 | 1 << 14),
        disk_request(1, 3, 1024, false),
        disk_request(0, 3, 1024, true),
        disk_request(4, 0, 0, false),
        disk_request(8, 0, 20, true),
    ];
    add("devices", "disk", disk.concat());
    let range = memory(BUFFERS + 0x1000, &[4, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    let discards = [
        start(DISK, 1 << 9 | 1 << 13 | 1 << 14),
        range,
        disk_request(11, 0, 16, false),
        vec![MOVE],
        disk_request(13, 0, 16, false),
    ];
    add("devices", "discards", discards.concat());
    let entropy = [start(RNG, 0), chain(RNG, 0, &[(BUFFERS, 64, WRITE, 0)]), vec![SERVE]];
    add("devices", "entropy", entropy.concat());
    let table = [descriptor((BUFFERS, 16, NEXT, 1)), descriptor((BUFFERS + 0x8000, 1, WRITE, 0))];
    let indirect = [
        start(DISK, 1 << 28 | 1 << 29),
        memory(BUFFERS, &[4]),
        memory(BUFFERS + 0x2000, &table.concat()),
        chain(DISK, 0, &[(BUFFERS + 0x2000, 32, INDIRECT, 0)]),
        vec![SERVE],
    ];
    add("devices", "indirect", indirect.concat());
    let ports = [
        [&[WRITE_PORT, 0][..], &counted(b"hello\n")].concat(),
        [&[OUTSIDE, 0][..], &counted(b"typed")].concat(),
        vec![READ_PORT, 0, 4, READ_PORT, 5, 1],
        [&[WRITE_PORT, 3][..], &counted(&[0x80])].concat(),
        [&[WRITE_PORT, 8][..], &counted(&[1])].concat(),
        [&[WRITE_PORT, 12][..], &counted(&[6])].concat(),
        vec![OUTSIDE, 1, READ_PORT, 11, 1, OUTSIDE, 2, MOVE],
        [&[WRITE_REGISTER, 0, 0x70, 0, 2][..], &7_u64.to_le_bytes()].concat(),
        vec![READ_REGISTER, 0, 0x70, 0, 2, READ_REGISTER, 0, 0, 1, 3],
    ];
    add("devices", "ports", ports.concat());
}

pub(super) fn kernels(add: &mut Add<'_>) {
    let input = |protocol: u8, initrd_kib: u8, kernel: Vec<u8>| {
        [vec![protocol, initrd_kib], counted(b"console=ttyS0"), kernel].concat()
    };
    add("kernel", "bzimage", input(0, 3, bzimage()));
    add("kernel", "elf", input(3, 0, elf(&[])));
    add("kernel", "pvh", input(2, 0, elf(&PVH_NOTE)));
}

/// Offsets: Linux `Documentation/arch/x86/boot.rst`.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 3 * 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &32_u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &[1, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &(16_u64 << 20).to_le_bytes());
    put(0x260, &(1_u32 << 20).to_le_bytes());
    put(0x400, &[0xf4; 512]);
    file
}

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the entry of PVH.
const PVH_NOTE: [u8; 20] =
    [4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0, 0, 0x20, 0];

/// An ELF file with 16 bytes to load at 2 MiB, and a note if it is not empty.
fn elf(note: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let content = HEADER + 2 * PROGRAM_HEADER;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for number in [2_u64 << 20, HEADER, 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 1 + u16::from(!note.is_empty()), 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let segments = [
        (1_u32, 2_u64 << 20, content, 16_u64, 64_u64),
        (4, 0, content + 16, note.len() as u64, note.len() as u64),
    ];
    for (kind, address, offset, in_file, in_memory) in segments {
        file.extend(kind.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for number in [offset, address, address, in_file, in_memory, 4] {
            file.extend(number.to_le_bytes());
        }
    }
    file.extend([0xf4; 16]);
    file.extend(note);
    file
}

pub(super) fn state(add: &mut Add<'_>) {
    add("state", "sound", Vec::new());
    // The status of the first device, as of one that is driven.
    add("state", "driven", [&[0, 3][..], &[0, 0], &counted(&[15, 1])].concat());
    add("state", "short", vec![1, 5, 3, 0]);
    add("state", "another-version", vec![3, 2, 9, 0, 0, 0]);
}

pub(super) fn files(add: &mut Add<'_>) {
    let record = r#"{"register":{"term":7,"primary":"a","in_sync":{"b":5}},"stamp":9}"#;
    let body = format!("{{\"web-1\":{record}}}");
    let digest = blake3::hash(body.as_bytes()).to_hex();
    add("register_file", "whole", format!("romulus-register 2 {digest}\n{body}").into_bytes());
    add("register_file", "body", [&[1][..], body.as_bytes()].concat());
    add("config", "vm", VM_FILE.as_bytes().to_vec());
    add("config", "vm-with-a-goal", VM_FILE.replace("epoch_ms = 10", GOAL).into_bytes());
    add("config", "arbiter", ARBITER_FILE.as_bytes().to_vec());
    add("config", "arbiter-on-etcd", ETCD_FILE.as_bytes().to_vec());
}

const VM_FILE: &str = r#"[vm]
name = "web-1"
memory_mib = 512
vcpus = 2
kernel = "kernel"
initrd = "initrd"
cmdline = "console=ttyS0"
cpu = "x86-64-v3"
cpu_without = ["avx2"]
on_reboot = "restart"
hugepages = false
rng = true

[network]
tap = "tap0"
mac = "52:54:00:00:00:01"

[console]
log = "console.log"

[[disks]]
path = "disk.img"
serial = "data"
read_only = true

[node]
name = "node-a"
listen = "10.1.0.1:7700"
state_dir = "state"
control = "web-1.sock"
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"

[[peers]]
name = "node-b"
address = "10.1.0.2:7700"

[arbiter]
name = "arbiter"
address = "10.1.0.9:7800"

[replication]
epoch_ms = 10
"#;

/// In place of a fixed interval.
const GOAL: &str = r#"latency_target_ms = 8
epoch_ms_min = 2
epoch_ms_max = 50
early_epochs = true
early_gap_ms = 3"#;

const ETCD_FILE: &str = r#"[arbiter]
name = "arbiter"
listen = "10.1.0.9:7800"
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"

[arbiter.etcd]
endpoints = ["https://10.1.0.9:2379", "https://etcd-2:2379"]
prefix = "/site-1/"
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"
user = "romulus"
password_file = "key.pem"
timeout_ms = 200
"#;

const ARBITER_FILE: &str = r#"[arbiter]
name = "arbiter"
listen = "10.1.0.9:7800"
store = "register"
control = "arbiter.sock"
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"
"#;

pub(super) fn control(add: &mut Add<'_>) {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: r\r\n\r\n").into_bytes();
    let post = |path: &str, body: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n");
        format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    add("control", "status", get("/status"));
    add("control", "events", get("/events?after=0&wait_ms=5"));
    add("control", "metrics", get("/metrics"));
    add("control", "console", [get("/console?after=3"), post("/console", "ls\n")].concat());
    add("control", "failover", post("/failover", r#"{"to":"node-b"}"#));
    let address = r#"{"backup":"node-b","address":"10.1.0.2:7700"}"#;
    add("control", "protect", post("/protect", address));
    add("control", "unprotect", post("/unprotect", r#"{"backup":"node-b"}"#));
    add("control", "verify", post("/verify", ""));
    add("control", "shutdown", post("/shutdown", r#"{"force":true}"#));
    add("control", "stop", post("/stop", ""));
    let chunked = "POST /console HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n3\r\nls\n\r\n0\r\n\r\n";
    add("control", "chunked", chunked.as_bytes().to_vec());
}
