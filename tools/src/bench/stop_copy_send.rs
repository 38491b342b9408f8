//! The baseline of `bench pause`: the naive way to take a checkpoint.
//!
//! ```text
//!   pause ── harvest, save ── copy all dirty pages ── send them, wait for "got it" ── resume
//! ```
//!
//! Everything happens while the guest stands still. What is sent goes over TCP,
//! in plain, to a thread of the same process that reads it and throws it away:
//! nothing is encoded, encrypted, verified or applied.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use checkpoint::{PAGE_BYTES, PageSet, output::Mode};
use vmm::{
    boot::{BootConfig, BootProtocol},
    device::DeviceConfig,
    dirty::DirtyTracking,
    event::VmEvent,
    host::model::CpuConfig,
    outlet::{Outlet, OutletConfig},
    vm::{Vm, VmConfig},
};

use super::BenchError;
use crate::probe_guest::PROBE_GUEST;

/// Full epochs that are not counted: buffers are touched in them.
const WARM_UP: u32 = 3;
/// How long the guest may take until it writes as much as it should.
const PATIENCE: Duration = Duration::from_secs(20);

/// One pause, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct NaivePause {
    pub(super) pages: u64,
    pub(super) pause: f64,
    pub(super) stop: f64,
    pub(super) harvest: f64,
    pub(super) save: f64,
    pub(super) copy: f64,
    pub(super) send: f64,
    pub(super) resume: f64,
}

/// Takes `count` checkpoints, `interval` apart, of a guest of its own that
/// dirties about `dirty` pages in between.
///
/// # Errors
///
/// [`BenchError`]
pub(super) fn pauses(
    memory_mib: u32,
    cmdline: &str,
    dirty: u64,
    interval: Duration,
    count: u32,
) -> Result<Vec<NaivePause>, BenchError> {
    let (mut vm, _events) = boot(memory_mib, cmdline)?;
    let mut backup = Backup::start().map_err(BenchError::Baseline)?;
    let mut pages = PageSet::new(vm.memory().layout().frame_end());
    let mut buffer = Vec::new();
    vm.start_dirty_log()?;
    vm.resume()?;
    let mut epoch = || {
        // The guest runs for an epoch.
        std::thread::sleep(interval);
        pages.clear();
        checkpoint(&mut vm, &mut pages, &mut buffer, &mut backup)
    };
    let begun = Instant::now();
    let mut full = 0;
    while full < WARM_UP {
        let pages = epoch()?.pages;
        full += u32::from(pages >= dirty / 2);
        if begun.elapsed() > PATIENCE {
            if pages == 0 {
                return Err(BenchError::Baseline(io::Error::other("its guest does not write")));
            }
            // A machine that is too busy for so many: the report tells how many it were.
            break;
        }
    }
    let found = (0..count).map(|_| epoch()).collect::<Result<Vec<_>, _>>()?;
    vm.pause()?;
    backup.end().map_err(BenchError::Baseline)?;
    Ok(found)
}

fn checkpoint(
    vm: &mut Vm,
    pages: &mut PageSet,
    buffer: &mut Vec<u8>,
    backup: &mut Backup,
) -> Result<NaivePause, BenchError> {
    let us = |duration: Duration| duration.as_secs_f64() * 1e6;
    let begun = Instant::now();
    vm.pause()?;
    let stopped = Instant::now();
    let captured = vm.capture(pages)?;
    let saved = Instant::now();
    buffer.resize(pages.len() as usize * PAGE_BYTES, 0);
    let mut filled = 0;
    for run in pages.runs(u64::MAX) {
        let bytes = run.count as usize * PAGE_BYTES;
        vm.memory().copy_out(run, &mut buffer[filled..filled + bytes]);
        filled += bytes;
    }
    let copied = Instant::now();
    backup.send(buffer).map_err(BenchError::Baseline)?;
    let sent = Instant::now();
    vm.resume()?;
    let resumed = Instant::now();
    Ok(NaivePause {
        pages: pages.len(),
        pause: us(resumed - begun),
        stop: us(stopped - begun),
        harvest: us(captured.harvest),
        save: us(captured.total.saturating_sub(captured.harvest)),
        copy: us(copied - saved),
        send: us(sent - copied),
        resume: us(resumed - sent),
    })
}

fn boot(memory_mib: u32, cmdline: &str) -> Result<(Vm, mpsc::Receiver<VmEvent>), BenchError> {
    let console = Box::new(io::sink());
    let outlet = Outlet::new(OutletConfig::default(), Mode::Passing, console, Box::new(|| {}));
    let outlet = Arc::new(outlet.map_err(BenchError::Baseline)?);
    let (events, received) = mpsc::channel();
    let config = VmConfig {
        memory_bytes: u64::from(memory_mib) << 20,
        vcpus: 2,
        hugepages: false,
        dirty_tracking: DirtyTracking::Auto,
        cpu: CpuConfig::default(),
        devices: DeviceConfig::default(),
    };
    let mut vm = Vm::new(&config, outlet, events)?;
    let kernel = Kernel::write().map_err(BenchError::Baseline)?;
    vm.boot(&BootConfig {
        kernel: kernel.0.clone(),
        initrd: None,
        cmdline: format!("probe.vcpus=2 {cmdline}"),
        protocol: BootProtocol::Auto,
    })?;
    Ok((vm, received))
}

/// The probe guest in a file, which goes when it is dropped.
struct Kernel(PathBuf);

impl Kernel {
    fn write() -> io::Result<Self> {
        let name = format!("romulus-bench-{}-probe.elf", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, PROBE_GUEST)?;
        Ok(Self(path))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Who gets the pages, and says so.
struct Backup {
    stream: TcpStream,
    thread: JoinHandle<io::Result<()>>,
}

impl Backup {
    fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let (peer, _) = listener.accept()?;
        for end in [&stream, &peer] {
            end.set_nodelay(true)?;
        }
        let named = std::thread::Builder::new().name("naive-backup".into());
        Ok(Self { stream, thread: named.spawn(move || receive(peer))? })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(&(bytes.len() as u64).to_le_bytes())?;
        self.stream.write_all(bytes)?;
        self.stream.read_exact(&mut [0])
    }

    fn end(self) -> io::Result<()> {
        drop(self.stream);
        self.thread.join().expect("receiving does not panic")
    }
}

fn receive(mut stream: TcpStream) -> io::Result<()> {
    let mut image = Vec::new();
    loop {
        let mut length = [0; 8];
        match stream.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        image.resize(u64::from_le_bytes(length) as usize, 0);
        stream.read_exact(&mut image)?;
        stream.write_all(&[1])?;
    }
}
