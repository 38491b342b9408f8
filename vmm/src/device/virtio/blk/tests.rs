//! The disk against a driver of our own, which can also misbehave.

use std::{ops::Deref, os::unix::fs::FileExt};

use checkpoint::{Section, Sections};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{request::Extent, *};
use crate::device::{
    fixture::{eventually, memory},
    virtio::{
        device::MmioDevice,
        driver::{BUFFERS, Driver, EVENT_IDX, INDIRECT, NEXT, WRITE, used},
        worker::Worker,
    },
};

const SECTORS: u64 = 4096;
const HEADER: u64 = 0x30000;
const STATUS: u64 = 0x30100;
const FLUSH: u32 = blk::VIRTIO_BLK_F_FLUSH;
/// What a status byte is before the device sets it.
const UNSET: u8 = 0xaa;

/// A disk, its worker, its image and its driver.
struct Rig {
    disk: Arc<Device<Disk>>,
    file: Arc<NamedTempFile>,
    driver: Driver,
    worker: Option<Worker>,
}

impl Deref for Rig {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

fn rig(read_only: bool) -> Rig {
    let file = NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS).flat_map(|n| [n as u8; 512]).collect();
    std::fs::write(file.path(), content).unwrap();
    rig_on(Arc::new(file), read_only, memory())
}

fn rig_on(file: Arc<NamedTempFile>, read_only: bool, memory: GuestMemory) -> Rig {
    let mut image = None;
    // A child process of another test may hold the lock until it has begun.
    eventually("the image", || {
        image = Image::open(file.path(), read_only).ok();
        image.is_some()
    });
    let image = Arc::new(image.expect("it was opened"));
    let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let backend = Disk::new(image, "serial-7");
    let disk = Arc::new(Device::new(0, backend, Arc::clone(&irq), memory.clone()).unwrap());
    let worker = Some(Worker::start(&disk).unwrap());
    let device = Arc::clone(&disk) as Arc<dyn MmioDevice>;
    let driver = Driver { device, memory, irq, queues: 1 };
    Rig { disk, file, driver, worker }
}

impl Rig {
    fn start(&self) {
        let write = !self.disk.image().is_read_only();
        self.driver.start(if write { &[EVENT_IDX, FLUSH] } else { &[EVENT_IDX] });
    }

    fn put_header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(UNSET, GuestAddress(STATUS)).unwrap();
    }

    /// Publishes a request with `len` bytes at [`BUFFERS`] as its data.
    fn submit(&self, kind: u32, sector: u64, len: u32, data_flags: u16) {
        self.put_header(kind, sector);
        self.describe(QUEUE, 0, HEADER, 16, NEXT, if len > 0 { 1 } else { 2 });
        self.describe(QUEUE, 1, BUFFERS, len, NEXT | data_flags, 2);
        self.describe(QUEUE, 2, STATUS, 1, WRITE, 0);
        self.publish(QUEUE, 0);
        self.notify(QUEUE);
    }

    fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// Waits for a request's end; returns its status and length.
    fn await_end(&self, before: u16) -> (u8, u32) {
        eventually("the request's end", || self.used_count(QUEUE) != before);
        (self.status(), self.used_len(QUEUE, u64::from(before % 8)))
    }

    fn request(&self, kind: u32, sector: u64, len: u32, data_flags: u16) -> (u8, u32) {
        let before = self.used_count(QUEUE);
        self.submit(kind, sector, len, data_flags);
        self.await_end(before)
    }

    fn read(&self, sector: u64, len: u32) -> (u8, u32) {
        self.request(blk::VIRTIO_BLK_T_IN, sector, len, WRITE)
    }

    fn write(&self, sector: u64, data: &[u8]) -> (u8, u32) {
        self.memory.write_slice(data, GuestAddress(BUFFERS)).unwrap();
        self.request(blk::VIRTIO_BLK_T_OUT, sector, data.len() as u32, 0)
    }

    fn on_image(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.as_file().read_exact_at(&mut bytes, 512 * sector).unwrap();
        bytes
    }

    fn restore(&self, section: Section) {
        let sections = Sections::new(vec![section]).unwrap();
        self.disk.adopt(self.disk.decode(&sections).unwrap());
    }
}

/// One range of a discarding or zeroing request.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn the_guest_sees_size_limits_and_kind() {
    for read_only in [true, false] {
        let rig = rig(read_only);
        assert_eq!(rig.get(8), 2);
        let features = rig.get(0x10);
        assert_eq!(features >> blk::VIRTIO_BLK_F_RO & 1 == 1, read_only);
        assert_eq!(features >> FLUSH & 1 == 0, read_only);
        assert_eq!((rig.get(0x100), rig.get(0x104)), (SECTORS as u32, 0));
        assert_eq!((rig.get(0x10c), rig.get(0x114)), (254, 512));
    }
}

#[test]
fn sectors_are_read_in_steps_and_pieces() {
    let rig = rig(true);
    rig.disk.unpark();
    rig.start();
    assert_eq!(rig.read(3, 1024), (0, 1025));
    assert_eq!(rig.bytes_at(BUFFERS, 1024), [[3; 512], [4; 512]].concat());
    eventually("the interrupt", || rig.irq.read().is_ok());
    assert_eq!(rig.get(0x60) & 1, 1);
    // More than a step, and no multiple of it.
    let len = STEP_BYTES + 5 * 512;
    assert_eq!(rig.read(100, len as u32), (0, len as u32 + 1));
    assert_eq!(rig.bytes_at(BUFFERS, len), rig.on_image(100, len));
    // Header, data and status in buffers of odd sizes, behind an indirect table.
    let table = 0x20000;
    rig.put_header(blk::VIRTIO_BLK_T_IN, SECTORS - 1);
    let parts: [(u64, u32, u16); 5] = [
        (HEADER, 7, 0),
        (HEADER + 7, 9, 0),
        (BUFFERS, 500, WRITE),
        (BUFFERS + 500, 12, WRITE),
        (STATUS, 1, WRITE),
    ];
    for (index, (address, len, flags)) in (0..).zip(parts) {
        let more = if index < 4 { NEXT } else { 0 };
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend((flags | more).to_le_bytes());
        bytes.extend((index as u16 + 1).to_le_bytes());
        rig.memory.write_slice(&bytes, GuestAddress(table + 16 * index)).unwrap();
    }
    rig.describe(QUEUE, 0, table, 5 * 16, INDIRECT, 0);
    rig.publish(QUEUE, 0);
    rig.notify(QUEUE);
    assert_eq!(rig.await_end(2), (0, 513));
    assert_eq!(rig.bytes_at(BUFFERS, 512), [255; 512]);
    let stats = rig.disk.stats();
    assert_eq!((stats.reads, stats.read_bytes, stats.refused), (3, 1536 + len as u64, 0));
}

#[test]
fn what_is_written_is_on_the_image() {
    for features in [&[EVENT_IDX, FLUSH][..], &[]] {
        let rig = rig(false);
        rig.disk.unpark();
        rig.driver.start(features);
        let data: Vec<u8> = (0..STEP_BYTES + 1024).map(|n| (n / 3) as u8).collect();
        assert_eq!(rig.write(8, &data), (0, 1));
        assert_eq!(rig.on_image(8, data.len()), data);
        assert_eq!(rig.on_image(7, 512), [7; 512]);
        assert_eq!(rig.request(blk::VIRTIO_BLK_T_FLUSH, 0, 0, 0), (0, 1));
        let stats = rig.disk.stats();
        assert_eq!((stats.writes, stats.written_bytes, stats.flushes), (1, data.len() as u64, 1));
    }
}

#[test]
fn a_serial_is_told() {
    let rig = rig(true);
    rig.disk.unpark();
    rig.start();
    assert_eq!(rig.request(blk::VIRTIO_BLK_T_GET_ID, 0, 20, WRITE), (0, 21));
    assert_eq!(rig.bytes_at(BUFFERS, 20), b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(rig.request(blk::VIRTIO_BLK_T_GET_ID, 0, 4, WRITE), (0, 5));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let rig = rig(false);
    rig.disk.unpark();
    rig.start();
    let clear = |kind, ranges: &[Vec<u8>]| {
        let bytes = ranges.concat();
        rig.memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
        rig.request(kind, 0, bytes.len() as u32, 0).0
    };
    let (discard, zero) = (blk::VIRTIO_BLK_T_DISCARD, blk::VIRTIO_BLK_T_WRITE_ZEROES);
    assert_eq!(clear(zero, &[range(2, 2, 0), range(9, 0, 0), range(16, 8, 1)]), 0);
    assert_eq!(rig.on_image(2, 1024), [0; 1024]);
    assert_eq!(rig.on_image(16, 4096), [0; 4096]);
    assert_eq!((rig.on_image(1, 512), rig.on_image(4, 512)), (vec![1; 512], vec![4; 512]));
    match clear(discard, &[range(64, 64, 0)]) {
        0 => assert_eq!(rig.on_image(64, 64 * 512), [0; 64 * 512]),
        status => assert_eq!(status, Status::Unsupported as u8),
    }
    let many = vec![range(0, 1, 0); RANGES_MAX + 1];
    let wrong = [
        ("a flag that discarding has not", discard, vec![range(0, 1, 1)], Status::Unsupported),
        ("an unknown flag", zero, vec![range(0, 1, 2)], Status::Unsupported),
        ("more than the disk", zero, vec![range(SECTORS - 1, 2, 0)], Status::IoError),
        ("an end beyond 2^64", zero, vec![range(u64::MAX / 512, 8, 0)], Status::IoError),
        ("too large a range", zero, vec![range(0, RANGE_SECTORS_MAX + 1, 0)], Status::IoError),
        ("too many ranges", discard, many, Status::IoError),
        ("half a range", discard, vec![vec![0; 8]], Status::IoError),
        ("no range", discard, vec![], Status::IoError),
    ];
    for (what, kind, ranges, status) in wrong {
        assert_eq!(clear(kind, &ranges), status as u8, "{what}");
    }
    assert_eq!(rig.on_image(0, 512), [0; 512], "sector 0 is zeros from the start");
    assert_eq!(rig.on_image(SECTORS - 1, 512), [255; 512], "a refused request did something");
}

#[test]
fn impossible_requests_are_refused_in_their_status() {
    let rig = rig(true);
    rig.disk.unpark();
    rig.start();
    let io_error = Status::IoError as u8;
    for (sector, len) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)]
    {
        assert_eq!(rig.read(sector, len), (io_error, 1), "{sector} {len}");
    }
    // A write to a disk that is only read.
    assert_eq!(rig.write(0, &[1; 512]), (io_error, 1));
    assert_eq!(rig.on_image(0, 512), [0; 512]);
    let zero = blk::VIRTIO_BLK_T_WRITE_ZEROES;
    rig.memory.write_slice(&range(0, 1, 0), GuestAddress(BUFFERS)).unwrap();
    assert_eq!(rig.request(zero, 0, 16, 0).0, io_error);
    assert_eq!(rig.request(99, 0, 0, 0), (Status::Unsupported as u8, 1));
    assert_eq!(rig.read(0, 0), (0, 1));
    assert_eq!(rig.disk.stats().refused, 8);
    assert!(!rig.needs_reset());
}

#[test]
fn errors_of_the_host_are_told_to_the_guest() {
    let rig = rig(true);
    rig.disk.unpark();
    rig.start();
    rig.file.as_file().set_len(512 * 10).unwrap();
    assert_eq!(rig.read(9, 1024), (Status::IoError as u8, 1));
    assert_eq!(rig.read(9, 512), (0, 513));
    assert_eq!(rig.disk.stats().errors, 1);
}

#[test]
fn hostile_chains_cost_the_guest_a_reset_and_nothing_else() {
    let rig = rig(true);
    rig.disk.unpark();
    let survived = |name: &str| {
        eventually(name, || rig.needs_reset());
        assert_eq!(rig.get(0x60) & 2, 2, "{name}: no configuration interrupt");
    };
    rig.put_header(blk::VIRTIO_BLK_T_IN, 0);
    for flags in [0, WRITE] {
        rig.misbehave(QUEUE, (Some((HEADER, 16)), flags), || rig.start(), survived);
    }
    let headless: [&[(u64, u32, u16)]; 4] = [
        &[(HEADER, 15, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (BUFFERS, 512, 0)],
        &[(BUFFERS, 512, WRITE), (STATUS, 1, WRITE)],
        &[(BUFFERS, 512, WRITE), (HEADER, 16, 0), (STATUS, 1, WRITE)],
    ];
    for (number, parts) in headless.into_iter().enumerate() {
        rig.start();
        for (index, (address, len, flags)) in (0..).zip(parts) {
            let more = if usize::from(index) + 1 < parts.len() { NEXT } else { 0 };
            rig.describe(QUEUE, index, *address, *len, flags | more, index + 1);
        }
        rig.publish(QUEUE, 0);
        rig.notify(QUEUE);
        survived(&format!("headless chain {number}"));
    }
    rig.start();
    assert_eq!(rig.read(1, 512), (0, 513));
}

#[test]
fn a_request_under_way_is_in_no_saved_state_and_is_done_by_whoever_goes_on() {
    let old = rig(true);
    old.disk.unpark();
    old.start();
    assert_eq!(old.read(5, 512), (0, 513));
    eventually("the interrupt", || old.irq.read().is_ok());
    old.disk.park();
    old.submit(blk::VIRTIO_BLK_T_IN, 6, 512, WRITE);
    let saved = old.disk.save();
    assert_eq!((saved.name.as_str(), saved.version), ("virtio-blk.0", 1));

    let new = rig_on(Arc::clone(&old.file), true, old.memory_elsewhere());
    new.restore(saved.clone());
    assert_eq!(new.disk.save(), saved);
    assert!(new.irq.read().is_err(), "an interrupt while parked");
    new.disk.unpark();
    assert_eq!(new.await_end(1), (0, 513));
    eventually("the unacknowledged interrupt", || new.irq.read().is_ok());
    assert_eq!(new.bytes_at(BUFFERS, 512), [6; 512]);
    // The old one, too, has forgotten nothing.
    old.disk.unpark();
    assert_eq!(old.await_end(1), (0, 513));
}

#[test]
fn a_pause_amid_a_read_delays_its_end_and_saves_it_as_not_taken() {
    let mut rig = rig(true);
    rig.disk.unpark();
    rig.start();
    // The test is the worker from here on.
    rig.worker.take();
    let before = rig.disk.save();
    rig.submit(blk::VIRTIO_BLK_T_IN, 6, 512, WRITE);
    let mut hand = Hand::default();
    let taken =
        rig.disk.enter(|state| state.backend.advance(&rig.disk, &mut state.transport, &mut hand));
    assert!(taken.more);
    let step = hand.step.take().expect("something to read");
    rig.disk.park();
    assert_eq!(rig.disk.save(), before);
    hand.outcome = Some(step.carry_out(&rig.disk.image(), &mut hand.bytes));
    assert_eq!(Disk::serve(&rig.disk, &mut hand), Served::default());
    assert_eq!((rig.used_count(QUEUE), rig.status()), (0, UNSET));
    rig.disk.unpark();
    // What was read before the pause is delivered.
    rig.file.as_file().write_at(&[77; 512], 6 * 512).unwrap();
    Disk::serve(&rig.disk, &mut hand);
    assert_eq!(rig.await_end(0), (0, 513));
    assert_eq!(rig.bytes_at(BUFFERS, 512), [6; 512]);

    // What was read before a restore is read again.
    rig.submit(blk::VIRTIO_BLK_T_IN, 6, 512, WRITE);
    Disk::serve(&rig.disk, &mut hand);
    rig.disk.park();
    rig.restore(rig.disk.save());
    rig.disk.unpark();
    rig.file.as_file().write_at(&[78; 512], 6 * 512).unwrap();
    while rig.used_count(QUEUE) == 1 {
        Disk::serve(&rig.disk, &mut hand);
    }
    assert_eq!(rig.bytes_at(BUFFERS, 512), [78; 512]);
}

/// Parks the disk between two steps of a request, which take long enough to
/// be met now and then.
#[test]
fn requests_survive_pauses_and_moves_at_any_moment() {
    let mut rig = rig(false);
    rig.disk.unpark();
    rig.start();
    let len = 2 * STEP_BYTES as u32;
    let mut expected = rig.on_image(0, 512 * SECTORS as usize);
    for turn in 0..200_u64 {
        let (sector, before) = (turn * 13 % 1024, rig.used_count(QUEUE));
        let data = vec![turn as u8 + 1; len as usize];
        let writes = turn.is_multiple_of(2);
        if writes {
            rig.memory.write_slice(&data, GuestAddress(BUFFERS)).unwrap();
            rig.submit(blk::VIRTIO_BLK_T_OUT, sector, len, 0);
        } else {
            rig.submit(blk::VIRTIO_BLK_T_IN, sector, len, WRITE);
        }
        (0..turn % 40).for_each(|_| std::thread::yield_now());
        rig.disk.park();
        let at_pause = (rig.used_count(QUEUE), rig.status());
        let image_at_pause = rig.on_image(sector, len as usize);
        std::thread::yield_now();
        assert_eq!((rig.used_count(QUEUE), rig.status()), at_pause, "turn {turn}");
        assert!(rig.on_image(sector, len as usize) == image_at_pause, "turn {turn}");
        if turn % 10 < 2 {
            let saved = rig.disk.save();
            let memory = rig.memory_elsewhere();
            let file = Arc::clone(&rig.file);
            drop(rig);
            rig = rig_on(file, false, memory);
            rig.restore(saved);
        }
        rig.disk.unpark();
        let (status, _) = rig.await_end(before);
        assert_eq!(status, 0, "turn {turn}");
        let place = 512 * sector as usize..512 * sector as usize + len as usize;
        if writes {
            expected[place].copy_from_slice(&data);
        } else {
            assert!(rig.bytes_at(BUFFERS, len as usize) == expected[place], "turn {turn}");
        }
    }
    assert!(rig.on_image(0, expected.len()) == expected);
}

#[test]
fn a_reset_forgets_the_request_under_way() {
    let rig = rig(true);
    rig.disk.unpark();
    for turn in 0..200_u32 {
        rig.start();
        rig.submit(blk::VIRTIO_BLK_T_IN, 0, 2 * STEP_BYTES as u32, WRITE);
        (0..turn % 50).for_each(|_| std::thread::yield_now());
        rig.set(0x70, 0);
        let done = rig.used_count(QUEUE);
        rig.memory.write_slice(&[9; 64], GuestAddress(BUFFERS)).unwrap();
        rig.memory.write_obj(UNSET, GuestAddress(STATUS)).unwrap();
        rig.notify(QUEUE);
        std::thread::yield_now();
        assert_eq!(rig.used_count(QUEUE), done, "turn {turn}");
        assert_eq!((rig.bytes_at(BUFFERS, 64), rig.status()), (vec![9; 64], UNSET), "turn {turn}");
    }
    rig.start();
    assert_eq!(rig.read(1, 512), (0, 513));
}

#[test]
fn what_the_disk_writes_is_marked_dirty() {
    let rig = rig(true);
    rig.disk.unpark();
    rig.start();
    assert_eq!(rig.read(1, 512), (0, 513));
    rig.disk.park();
    rig.forget_dirty();
    // The driver's writes are seen, too: here it is part of the VMM.
    rig.submit(blk::VIRTIO_BLK_T_IN, 2, 8192, WRITE);
    rig.forget_dirty();
    rig.disk.unpark();
    assert_eq!(rig.await_end(1), (0, 8193));
    rig.disk.park();
    let page = |address: u64| address as usize >> 12;
    let mut dirty = vec![page(used(QUEUE)), page(STATUS), page(BUFFERS), page(BUFFERS) + 1];
    dirty.sort_unstable();
    assert_eq!(rig.dirty_pages(), dirty);
}

#[test]
fn a_pause_waits_for_steps_that_change_the_image_only() {
    let extent = Extent { offset: 0, len: 512 };
    let changing =
        [Step::Write(extent), Step::Discard(extent), Step::Zero { extent, may_discard: true }];
    assert!(changing.iter().all(Step::changes_image));
    assert!(![Step::Read(extent), Step::Flush].iter().any(Step::changes_image));
    let rig = rig(false);
    rig.disk.unpark();
    rig.disk.lock().backend.changing = true;
    let disk = Arc::clone(&rig.disk);
    let parking = std::thread::spawn(move || disk.park());
    eventually("the wish to park", || rig.disk.is_parked());
    assert!(!parking.is_finished(), "parked amid a change of the image");
    rig.disk.settle(|disk| disk.changing = false);
    parking.join().unwrap();
}
