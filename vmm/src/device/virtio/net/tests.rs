//! The network device against a driver of our own, which can also misbehave.

use std::{ops::Deref, os::unix::net::UnixDatagram, time::Instant};

use checkpoint::{Epoch, Section, SectionError, Sections, output::Mode};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::device::{
    fixture::{eventually, in_new_network, ip, memory, outlet, require_tun},
    virtio::{
        device::MmioDevice,
        driver::{BUFFERS, Driver, EVENT_IDX, NEXT, SIZE, WRITE, avail, used},
        worker::Worker,
    },
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

/// A device, its worker, the host's end of its cable, and its driver.
struct Rig {
    net: Arc<Device<Net>>,
    outlet: Arc<Outlet>,
    host: UnixDatagram,
    driver: Driver,
    _worker: Worker,
}

impl Deref for Rig {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

fn rig(mode: Mode) -> Rig {
    rig_in(memory(), mode)
}

fn rig_in(memory: GuestMemory, mode: Mode) -> Rig {
    let (guest, host) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    rig_on(Tap::from_socket(guest), host, memory, mode)
}

fn rig_on(tap: Tap, host: UnixDatagram, memory: GuestMemory, mode: Mode) -> Rig {
    let outlet = outlet(mode);
    let tap = Arc::new(tap);
    outlet.attach(0, Arc::clone(&tap));
    let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let backend = Net::new(0, MAC, tap, Arc::clone(&outlet));
    let net = Device::new(0, backend, Arc::clone(&irq), memory.clone()).unwrap();
    let net = Arc::new(net);
    let worker = Worker::start(&net).unwrap();
    let device = Arc::clone(&net) as Arc<dyn MmioDevice>;
    let driver = Driver { device, memory, irq, queues: QUEUES };
    Rig { net, outlet, host, driver, _worker: worker }
}

impl Rig {
    fn start(&self, event_idx: bool) {
        self.driver.start(if event_idx { &[5, EVENT_IDX] } else { &[5] });
    }

    /// Publishes `frame` as header and body in two descriptors from `index`.
    fn send(&self, index: u16, frame: &[u8]) {
        let address = BUFFERS + 0x1000 * u64::from(index);
        self.memory.write_slice(frame, GuestAddress(address + 0x100)).unwrap();
        self.describe(TX, index, address, HEADER_BYTES as u32, NEXT, index + 1);
        self.describe(TX, index + 1, address + 0x100, frame.len() as u32, 0, 0);
        self.publish(TX, index);
        self.notify(TX);
    }

    /// Publishes a receive buffer of `len` bytes at `address`.
    fn give(&self, index: u16, address: u64, len: u32) {
        self.describe(RX, index, address, len, WRITE, 0);
        self.publish(RX, index);
        self.notify(RX);
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(len) = self.host.recv(&mut buffer) {
            heard.push(buffer[..len].to_vec());
        }
        heard
    }

    fn is_armed(&self) -> bool {
        self.net.lock().backend.armed[TX]
    }

    /// Takes over a saved state.
    fn restore(&self, section: Section) {
        let sections = Sections::new(vec![section]).unwrap();
        self.net.adopt(self.net.decode(&sections).unwrap());
    }
}

fn frame(tag: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| if n == 0 { tag } else { n as u8 }).collect()
}

#[test]
fn sent_frames_are_completed_at_once_and_held() {
    for event_idx in [false, true] {
        let rig = rig(Mode::Holding);
        rig.net.unpark();
        rig.start(event_idx);
        for tag in 0..3 {
            rig.send(2 * u16::from(tag), &frame(tag, 60));
        }
        eventually("completion", || rig.used_count(TX) == 3);
        eventually("the interrupt", || rig.irq.read().is_ok());
        assert_eq!(rig.get(0x60) & 1, 1);
        assert!(rig.heard().is_empty());
        rig.net.park();
        assert_eq!(rig.outlet.seal(Epoch::new(1)).len(), 3);
        rig.outlet.release(Epoch::new(1), Instant::now());
        assert_eq!(rig.heard(), [frame(0, 60), frame(1, 60), frame(2, 60)]);
    }
}

#[test]
fn received_frames_come_behind_their_header() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    rig.give(0, BUFFERS, 2048);
    rig.host.send(&frame(7, 1000)).unwrap();
    eventually("a frame", || rig.used_count(RX) == 1);
    assert_eq!(rig.used_len(RX, 0), 1012);
    let mut got = vec![0; 1012];
    rig.memory.read_slice(&mut got, GuestAddress(BUFFERS)).unwrap();
    assert_eq!(got[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(got[HEADER_BYTES..], frame(7, 1000));
    // Without a buffer the next frame waits on the cable.
    rig.host.send(&frame(8, 60)).unwrap();
    rig.give(1, BUFFERS + 0x1000, 2048);
    eventually("the next frame", || rig.used_count(RX) == 2);
}

#[test]
fn a_frame_larger_than_the_buffer_is_dropped_and_the_buffer_kept() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    rig.give(0, BUFFERS, 1526);
    rig.host.send(&frame(1, 1515)).unwrap();
    eventually("the drop", || rig.net.stats().rx_dropped == 1);
    rig.host.send(&frame(2, 1514)).unwrap();
    eventually("a frame that fits", || rig.used_count(RX) == 1);
    assert_eq!(rig.used_len(RX, 0), 1526);
}

#[test]
fn a_parked_device_touches_nothing_and_forgets_nothing() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    rig.give(0, BUFFERS, 2048);
    eventually("the worker to be idle", || rig.is_armed());
    rig.net.park();
    let _ = rig.irq.read();
    rig.net.lock().missed = false;
    rig.host.send(&frame(1, 60)).unwrap();
    rig.send(0, &frame(2, 60));
    eventually("the worker to notice", || rig.net.lock().missed);
    assert_eq!((rig.used_count(RX), rig.used_count(TX)), (0, 0));
    assert!(rig.irq.read().is_err());
    rig.net.unpark();
    eventually("both frames", || (rig.used_count(RX), rig.used_count(TX)) == (1, 1));
    assert_eq!(rig.heard(), [frame(2, 60)]);
}

#[test]
fn what_was_in_flight_is_served_after_a_restore() {
    let old = rig(Mode::Passing);
    old.net.unpark();
    old.start(true);
    old.send(0, &frame(1, 60));
    eventually("the first frame", || old.used_count(TX) == 1);
    eventually("the interrupt", || old.irq.read().is_ok());
    old.net.park();
    old.send(2, &frame(2, 60));
    old.host.send(&frame(3, 60)).unwrap();
    let saved = old.net.save();

    let new = rig_in(old.memory_elsewhere(), Mode::Passing);
    new.host.send(&frame(9, 60)).unwrap();
    new.restore(saved.clone());
    assert_eq!(new.net.save(), saved);
    assert!(new.irq.read().is_err(), "an interrupt while parked");
    new.net.announce().unwrap();
    // As if in answer to the announcement, before the guest runs.
    new.host.send(&frame(8, 60)).unwrap();
    new.net.unpark();
    eventually("the frame in flight", || new.used_count(TX) == 2);
    eventually("the unacknowledged interrupt", || new.irq.read().is_ok());
    assert_eq!(new.heard(), [announcement(MAC).to_vec(), frame(2, 60)]);
    assert_eq!(new.net.stats().stale_dropped, 1);
    new.give(0, BUFFERS, 2048);
    eventually("the answer", || new.used_count(RX) == 1);
    let tag: u8 = new.memory.read_obj(GuestAddress(BUFFERS + HEADER_BYTES as u64)).unwrap();
    assert_eq!(tag, 8);
}

/// A VM whose guest was handed over stays, and its tap collects frames until
/// the guest comes back.
#[test]
fn a_guest_that_comes_back_is_given_no_frame_from_while_it_was_away() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    rig.give(0, BUFFERS, 2048);
    eventually("the worker to be idle", || rig.is_armed());
    rig.net.park();
    let saved = rig.net.save();
    for tag in 0..3 {
        rig.host.send(&frame(tag, 60)).unwrap();
    }
    rig.restore(saved);
    rig.net.announce().unwrap();
    rig.host.send(&frame(8, 60)).unwrap();
    rig.net.unpark();
    eventually("the answer", || rig.used_count(RX) == 1);
    let tag: u8 = rig.memory.read_obj(GuestAddress(BUFFERS + HEADER_BYTES as u64)).unwrap();
    assert_eq!((tag, rig.net.stats().stale_dropped), (8, 3));
}

#[test]
fn a_notification_that_was_consumed_elsewhere_is_made_up_for() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    eventually("the worker to be idle", || rig.is_armed());
    rig.net.park();
    rig.describe(TX, 0, BUFFERS, 72, 0, 0);
    rig.publish(TX, 0);
    rig.net.lock().missed = false;
    rig.restore(rig.net.save());
    rig.net.unpark();
    eventually("the frame", || rig.used_count(TX) == 1);
}

#[test]
fn a_reset_falls_between_requests() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    for round in 0..50 {
        rig.start(round % 2 == 0);
        (0..4).for_each(|n| rig.send(2 * n, &frame(n as u8, 60)));
        rig.set(0x70, 0);
        let done = rig.used_count(TX);
        assert_eq!((rig.get(0x70), rig.get(0x60), rig.get(0x44)), (0, 0, 0));
        rig.notify(TX);
        assert_eq!(rig.used_count(TX), done, "a queue was used after its reset");
        rig.heard();
    }
    rig.start(true);
    rig.send(0, &frame(1, 60));
    eventually("service after many resets", || rig.used_count(TX) == 1);
}

#[test]
fn hostile_chains_cost_the_guest_a_reset_and_nothing_else() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    let survived = |name: &str| {
        eventually(name, || rig.needs_reset());
        assert_eq!(rig.get(0x60) & 2, 2, "{name}: no configuration interrupt");
        assert!(rig.heard().is_empty(), "{name}");
    };
    rig.misbehave(TX, (None, 0), || rig.start(true), survived);
    rig.start(true);
    rig.describe(TX, 0, BUFFERS, 64, WRITE, 0);
    rig.publish(TX, 0);
    rig.notify(TX);
    survived("a buffer for writing");
    rig.start(true);
    rig.send(0, &frame(1, 60));
    eventually("service after it all", || rig.heard() == [frame(1, 60)]);
}

#[test]
fn other_hostility_is_survived_too() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    rig.memory.write_obj(SIZE + 1, GuestAddress(avail(TX) + 2)).unwrap();
    rig.notify(TX);
    eventually("too many available chains", || rig.needs_reset());
    rig.start(true);
    rig.give(0, BUFFERS, 100);
    rig.host.send(&frame(1, 60)).unwrap();
    eventually("a receive buffer that is too small", || rig.needs_reset());
    rig.start(true);
    // No frames, but no faults either: empty, header only, short, and long.
    rig.describe(TX, 0, BUFFERS, 0, 0, 0);
    rig.describe(TX, 1, BUFFERS, 12, 0, 0);
    rig.describe(TX, 2, BUFFERS, 25, 0, 0);
    rig.describe(TX, 3, 0, (HEADER_BYTES + FRAME_BYTES_MAX + 1) as u32, 0, 0);
    (0..4).for_each(|head| rig.publish(TX, head));
    rig.notify(TX);
    eventually("completion without a frame", || rig.used_count(TX) == 4);
    assert_eq!(rig.net.stats().tx_dropped, 4);
    assert!(!rig.needs_reset() && rig.heard().is_empty());
}

#[test]
fn what_the_device_writes_is_marked_dirty() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    rig.give(0, BUFFERS + 0x1000 - 20, 2048);
    eventually("the worker to be idle", || rig.is_armed());
    rig.net.park();
    rig.forget_dirty();
    rig.net.unpark();
    rig.host.send(&frame(1, 60)).unwrap();
    eventually("a frame", || rig.used_count(RX) == 1);
    rig.net.park();
    let (rx_used, tx_used) = (used(RX) as usize >> 12, used(TX) as usize >> 12);
    let buffer = BUFFERS as usize >> 12;
    assert_eq!(rig.dirty_pages(), [rx_used, buffer, buffer + 1]);

    rig.send(0, &frame(1, 60));
    rig.forget_dirty();
    rig.net.unpark();
    eventually("completion", || rig.used_count(TX) == 1);
    rig.net.park();
    assert_eq!(rig.dirty_pages(), [tx_used]);
}

#[test]
fn malformed_state_is_refused() {
    let rig = rig(Mode::Passing);
    rig.net.unpark();
    rig.start(true);
    rig.net.park();
    let saved = rig.net.save();
    let whole = &saved.bytes;
    let decode = |bytes: &[u8]| {
        let section = Section { bytes: bytes.to_vec(), ..saved.clone() };
        rig.net.decode(&Sections::new(vec![section]).unwrap()).map(|_| ())
    };
    assert_eq!(whole.len(), 2 + 12 + 8 + 8 + 1 + 2 * 33);
    for cut in 0..whole.len() {
        assert!(decode(&whole[..cut]).is_err(), "cut at {cut}");
    }
    assert!(decode(&[&whole[..], &[0]].concat()).is_err());
    let newer = Section { version: 2, ..saved.clone() };
    let refused = rig.net.decode(&Sections::new(vec![newer]).unwrap()).map(|_| ());
    assert!(matches!(refused, Err(SectionError::Version { found: 2, .. })), "{refused:?}");
    let changed = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        decode(&bytes)
    };
    assert_eq!(changed(0, whole[0]), Ok(()));
    let wrong = [
        ("status out of order", 0, 4),
        ("an unknown status", 0, 31),
        ("an unknown interrupt", 1, 4),
        ("a feature not offered", 14, 1),
        ("another mac", 24, 9),
        ("another number of queues", 30, 3),
        ("another largest queue", 32, 9),
        ("a size that is no power of two", 33, 7),
        ("unknown queue flags", 39, 7),
        ("a table that is not aligned", 40, 1),
        ("a table outside ram", 44, 1),
    ];
    for (what, at, value) in wrong {
        assert!(changed(at, value).is_err(), "{what}");
    }
    for (at, byte) in whole.iter().enumerate() {
        for bit in 0..8 {
            // Whatever comes of it, it must not panic.
            let _ = changed(at, byte ^ 1 << bit);
        }
    }
}

#[test]
fn a_real_tap_serves_as_cable() {
    if !require_tun() {
        return;
    }
    in_new_network(|| {
        let tap = Tap::open("tap0", true).unwrap();
        ip("addr add 10.9.9.1/24 brd + dev tap0");
        ip("link set tap0 up");
        let rig = rig_on(tap, UnixDatagram::unbound().unwrap(), memory(), Mode::Passing);
        rig.net.unpark();
        rig.start(true);
        (0..SIZE).for_each(|n| rig.give(n, BUFFERS + 0x1000 * u64::from(n), 2048));
        let host = std::net::UdpSocket::bind("10.9.9.1:9").unwrap();
        host.set_broadcast(true).unwrap();
        host.send_to(b"hello guest", "10.9.9.255:9").unwrap();
        let heard = |text: &[u8]| {
            (0..u64::from(rig.used_count(RX).min(SIZE))).any(|n| {
                let bytes = rig.bytes_at(BUFFERS + 0x1000 * n, 2048);
                bytes[..rig.used_len(RX, n) as usize].ends_with(text)
            })
        };
        eventually("the host's datagram", || heard(b"hello guest"));
        // The host answers an ARP request of the guest.
        let mut request = [0; 60];
        request[..6].fill(0xff);
        request[6..12].copy_from_slice(&MAC);
        request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request[22..28].copy_from_slice(&MAC);
        request[28..32].copy_from_slice(&[10, 9, 9, 2]);
        request[38..42].copy_from_slice(&[10, 9, 9, 1]);
        rig.send(0, &request);
        let answer = [&[10, 9, 9, 1], &MAC[..], &[10, 9, 9, 2]].concat();
        eventually("the answer", || heard(&answer));
    });
}
