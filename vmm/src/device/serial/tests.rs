//! The serial console against drivers that do what Linux's does.

use checkpoint::output::Mode;

use super::*;
use crate::device::fixture;

fn port() -> (SerialPort, Arc<Outlet>, Arc<EventFd>) {
    let outlet = fixture::outlet(Mode::Passing);
    let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    (SerialPort::new(Arc::clone(&irq), Arc::clone(&outlet)), outlet, irq)
}

fn typed(port: &SerialPort) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut register = [0];
        port.read(5, &mut register);
        if register[0] & 1 == 0 {
            return bytes;
        }
        port.read(0, &mut register);
        bytes.push(register[0]);
    }
}

#[test]
fn what_the_guest_sends_leaves_by_the_outlet() {
    let (port, outlet, _) = port();
    port.unpark();
    port.write(0, b"login: ");
    assert_eq!(outlet.console_since(0), (b"login: ".to_vec(), 7));
}

#[test]
fn more_can_be_typed_than_the_fifo_holds() {
    let (port, _, _) = port();
    port.unpark();
    let text: Vec<u8> = (0..5000).map(|n| n as u8).collect();
    let taken = port.input(&text);
    assert!((4096..5000).contains(&taken), "{taken}");
    assert_eq!(typed(&port), text[..taken]);
}

#[test]
fn nothing_moves_while_parked_and_state_survives() {
    let (port, _, irq) = port();
    port.unpark();
    port.write(1, &[1]);
    port.write(7, &[0x5a]);
    port.input(b"ab");
    assert!(irq.read().is_ok());
    port.park();
    port.input(b"cd");
    assert!(irq.read().is_err(), "an interrupt while parked");
    let section = port.save();

    let (twin, _, twin_irq) = self::port();
    let sections = Sections::new(vec![section.clone()]).unwrap();
    twin.adopt(SerialPort::decode(&sections).unwrap());
    assert!(twin_irq.read().is_err(), "an interrupt while parked");
    assert_eq!(twin.save(), section);
    twin.unpark();
    assert!(twin_irq.read().is_ok(), "the pending interrupt is lost");
    assert_eq!(typed(&twin), b"abcd");
    let mut scratch = [0];
    twin.read(7, &mut scratch);
    assert_eq!(scratch, [0x5a]);
}

#[test]
fn malformed_state_is_refused() {
    let (port, _, _) = port();
    port.input(b"xyz");
    let whole = port.save().bytes;
    let decode = |bytes: &[u8]| {
        let section = Section { name: SECTION.into(), version: VERSION, bytes: bytes.into() };
        SerialPort::decode(&Sections::new(vec![section]).unwrap()).map(|_| ())
    };
    assert_eq!(decode(&whole), Ok(()));
    for cut in 0..whole.len() {
        assert!(decode(&whole[..cut]).is_err(), "cut at {cut}");
    }
    assert!(decode(&[&whole[..], &[0]].concat()).is_err());
    let mut too_long = vec![0; 9];
    too_long.extend(65_u16.to_le_bytes());
    too_long.extend([0; 67]);
    assert!(decode(&too_long).is_err());
}

/// A port, its outlet, and what pulses on its line.
struct Wired {
    port: SerialPort,
    irq: Arc<EventFd>,
}

impl Wired {
    fn new() -> Self {
        let (port, _, irq) = port();
        port.unpark();
        Self { port, irq }
    }

    fn get(&self, register: u64) -> u8 {
        let mut data = [0];
        self.port.read(register, &mut data);
        data[0]
    }

    fn set(&self, register: u64, value: u8) {
        self.port.write(register, &[value]);
    }

    fn pulsed(&self) -> bool {
        self.irq.read().is_ok()
    }

    /// `serial8250_interrupt` and what it calls: serves until no reason is
    /// told, and takes at most 256 bytes at a time. Returns what was received
    /// and how often a reason was told.
    fn interrupt_handler(&self) -> (Vec<u8>, usize) {
        let (mut received, mut served) = (Vec::new(), 0);
        while self.get(2) & 1 == 0 {
            served += 1;
            assert!(served < 512, "too much work for irq4");
            for _ in 0..256 {
                if self.get(5) & 1 == 0 {
                    break;
                }
                received.push(self.get(0));
            }
        }
        (received, served)
    }
}

/// `autoconfig` of Linux's 8250 driver.
#[test]
fn linux_finds_a_16550a() {
    let wired = Wired::new();
    // The interrupt enable register has four bits.
    wired.set(1, 0);
    assert_eq!(wired.get(1) & 0xf, 0);
    wired.set(1, 0xf);
    assert_eq!(wired.get(1), 0xf);
    wired.set(1, 0);
    // Loopback: OUT2 and RTS come back as DCD and CTS.
    let modem_control = wired.get(4);
    wired.set(4, 0x10 | 0xa);
    assert_eq!(wired.get(6) & 0xf0, 0x90);
    wired.set(4, modem_control);
    // No enhanced features behind the divisor latch; FIFOs that work.
    for line_control in [0xbf, 0x80] {
        wired.set(3, line_control);
        assert_ne!(wired.get(2), 0);
    }
    wired.set(3, 0);
    wired.set(2, 1);
    assert_eq!(wired.get(2) >> 6, 3);
    // No 16750: a 64-byte FIFO would show in bit 5.
    wired.set(3, 0x80);
    wired.set(2, 0x21);
    assert_eq!(wired.get(2) & 0x20, 0);
    wired.set(3, 0);
    // No XScale: bit 6 of the interrupt enable register does not stay.
    wired.set(1, 0x40);
    assert_eq!(wired.get(1), 0);
    wired.set(7, 0x5a);
    assert_eq!(wired.get(7), 0x5a);
}

/// `serial8250_do_startup`: whether the transmitter's interrupt comes again.
#[test]
fn linux_finds_no_bugs_at_startup() {
    let wired = Wired::new();
    assert_ne!(wired.get(5), 0xff);
    for _ in 0..2 {
        wired.set(1, 2);
        assert_eq!(wired.get(2) & 0xf, 2, "the transmitter is empty");
        assert_eq!(wired.get(2) & 0xf, 1, "it was told");
        wired.set(1, 0);
        assert_eq!(wired.get(2) & 0xf, 1, "it is not enabled");
    }
    wired.set(1, 2);
    assert!(wired.pulsed());
    let (status, reason) = (wired.get(5), wired.get(2));
    assert!(status & 0x40 != 0 && reason & 1 == 0, "a transmitter that does not interrupt");
}

#[test]
fn one_pulse_brings_all_that_is_typed() {
    for len in [1, 64, 65, 255, 256, 257, 300, 4000] {
        let wired = Wired::new();
        wired.set(1, 1 | 4);
        assert!(!wired.pulsed(), "nothing was typed");
        let text: Vec<u8> = (0..len).map(|n| n as u8).collect();
        assert_eq!(wired.port.input(&text), len);
        assert!(wired.pulsed());
        let (received, served) = wired.interrupt_handler();
        assert_eq!(received, text, "{len}");
        assert_eq!(served, len.div_ceil(256), "{len}");
        assert!(!wired.pulsed(), "a pulse although the line has not fallen");
        wired.port.input(b"x");
        assert!(wired.pulsed(), "the next byte");
    }
}

#[test]
fn a_driver_that_takes_one_byte_each_time_gets_all() {
    let wired = Wired::new();
    wired.set(1, 1);
    wired.port.input(b"abc");
    for byte in *b"abc" {
        assert_eq!(wired.get(2) & 0xf, 4);
        assert_eq!(wired.get(0), byte);
    }
    assert_eq!(wired.get(2) & 0xf, 1);
}

#[test]
fn received_data_is_told_before_an_empty_transmitter() {
    let wired = Wired::new();
    wired.set(1, 3);
    wired.port.input(b"a");
    assert_eq!(wired.get(2) & 0xf, 4);
    assert_eq!(wired.get(2) & 0xf, 4, "asking does not make it go away");
    assert_eq!(wired.get(0), b'a');
    assert_eq!(wired.get(2) & 0xf, 2);
    assert_eq!(wired.get(2) & 0xf, 1);
}

/// Linux's console masks all interrupts while it writes a message.
#[test]
fn what_is_typed_while_interrupts_are_masked_is_told_afterwards() {
    let wired = Wired::new();
    wired.set(1, 0);
    wired.port.input(b"a");
    assert!(!wired.pulsed());
    assert_eq!(wired.get(2) & 0xf, 1, "a reason that is not enabled");
    wired.set(1, 1);
    assert!(wired.pulsed());
    // Another CPU's handler looks while the mask is set again.
    wired.set(1, 0);
    assert_eq!(wired.get(2) & 0xf, 1);
    wired.set(1, 1);
    assert!(wired.pulsed(), "the reason arises with being enabled");
    assert_eq!(wired.interrupt_handler().0, b"a");
}

#[test]
fn the_receiver_can_be_cleared() {
    let wired = Wired::new();
    wired.set(1, 1);
    let text = [b'x'; 70];
    wired.port.input(&text);
    assert!(wired.pulsed());
    wired.set(2, 1 | 2);
    // What had not arrived arrives now.
    assert!(wired.pulsed());
    assert_eq!(wired.interrupt_handler().0, text[64..]);
    assert_eq!((wired.get(5) & 1, wired.get(2) & 0xf), (0, 1));
}

#[test]
fn a_reason_that_was_told_in_part_survives_a_move() {
    let wired = Wired::new();
    wired.set(1, 1);
    wired.port.input(b"abcd");
    assert!(wired.pulsed());
    assert_eq!((wired.get(2) & 0xf, wired.get(0)), (4, b'a'));
    wired.port.park();
    let sections = Sections::new(vec![wired.port.save()]).unwrap();
    let twin = Wired::new();
    twin.port.park();
    twin.port.adopt(SerialPort::decode(&sections).unwrap());
    twin.port.unpark();
    assert!(twin.pulsed());
    assert_eq!(twin.interrupt_handler().0, b"bcd");
}
