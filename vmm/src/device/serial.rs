//! The serial console: a 16550 at port 0x3f8, GSI 4.
//!
//! The UART itself is vm-superio's. What the guest sends goes to the outlet,
//! which gathers bytes to lines. What is typed waits in a bounded backlog for
//! room in the UART's 64-byte FIFO; while parked it only waits there, so that
//! neither registers nor the interrupt line change.
//!
//! Section `serial`, version 1, little-endian:
//!
//! ```text
//!   dll dlh ier iir lcr lsr mcr msr scr : u8 each
//!   fifo    := count:u16 byte*      at most 64
//!   backlog := count:u16 byte*      at most 4096
//! ```

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use checkpoint::{Section, SectionError, Sections};
use vm_superio::{
    Serial, SerialState, Trigger,
    serial::{Error, NoEvents},
};
use vmm_sys_util::eventfd::EventFd;

use super::codec::Body;
use crate::outlet::Outlet;

/// The first port.
pub(crate) const PORT: u64 = 0x3f8;
/// How many ports.
pub(crate) const PORTS: u64 = 8;
/// The interrupt.
pub(crate) const GSI: u32 = 4;
/// The saved state's name.
pub(crate) const SECTION: &str = "serial";
const VERSION: u32 = 1;
/// Typed bytes that wait for the guest.
const BACKLOG_BYTES_MAX: usize = 4096;
const FIFO_BYTES_MAX: usize = 64;
/// Interrupt identification: nothing is pending.
const IIR_NONE: u8 = 1;

/// The interrupt line, mute while parked.
#[derive(Clone)]
struct Line {
    irq: Arc<EventFd>,
    mute: Arc<AtomicBool>,
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        if self.mute.load(Ordering::Relaxed) { Ok(()) } else { self.irq.write(1) }
    }
}

/// Where the UART's bytes go.
struct Transmitter(Arc<Outlet>);

impl io::Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.emit_console(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct State {
    uart: Serial<Line, NoEvents, Transmitter>,
    backlog: VecDeque<u8>,
    parked: bool,
}

/// The serial console.
pub(crate) struct SerialPort {
    state: Mutex<State>,
    line: Line,
    outlet: Arc<Outlet>,
}

/// Saved state that was found good.
pub(crate) struct Restored {
    uart: SerialState,
    backlog: VecDeque<u8>,
}

impl SerialPort {
    /// A UART as after power-on, parked; `irq` raises its interrupt.
    pub(crate) fn new(irq: Arc<EventFd>, outlet: Arc<Outlet>) -> Self {
        let line = Line { irq, mute: Arc::new(AtomicBool::new(true)) };
        let uart = Serial::new(line.clone(), Transmitter(Arc::clone(&outlet)));
        let state = State { uart, backlog: VecDeque::new(), parked: true };
        Self { state: Mutex::new(state), line, outlet }
    }

    /// A vCPU reads register `offset`, once for each byte.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        for byte in data {
            *byte = state.uart.read(offset as u8);
        }
        state.feed();
    }

    /// A vCPU writes register `offset`, once for each byte (as `rep outsb` does).
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        for byte in data {
            if let Err(error) = state.uart.write(offset as u8, *byte) {
                tracing::debug!(%error, "the serial port could not raise its interrupt");
            }
        }
        state.feed();
    }

    /// Types `bytes`; returns how many of them were taken.
    pub(crate) fn input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = bytes.len().min(BACKLOG_BYTES_MAX - state.backlog.len());
        state.backlog.extend(&bytes[..taken]);
        state.feed();
        taken
    }

    pub(crate) fn park(&self) {
        let mut state = self.lock();
        state.parked = true;
        self.line.mute.store(true, Ordering::Relaxed);
    }

    pub(crate) fn unpark(&self) {
        let mut state = self.lock();
        state.parked = false;
        self.line.mute.store(false, Ordering::Relaxed);
        state.feed();
        // The interrupt may have been raised into an interrupt controller
        // whose state was saved too early or comes from another host. One too
        // many is harmless.
        if state.uart.state().interrupt_identification & IIR_NONE == 0 {
            let _ = self.line.trigger();
        }
    }

    pub(crate) fn save(&self) -> Section {
        let state = self.lock();
        let uart = state.uart.state();
        let mut bytes = vec![
            uart.baud_divisor_low,
            uart.baud_divisor_high,
            uart.interrupt_enable,
            uart.interrupt_identification,
            uart.line_control,
            uart.line_status,
            uart.modem_control,
            uart.modem_status,
            uart.scratch,
        ];
        bytes.extend((uart.in_buffer.len() as u16).to_le_bytes());
        bytes.extend(&uart.in_buffer);
        bytes.extend((state.backlog.len() as u16).to_le_bytes());
        bytes.extend(&state.backlog);
        Section { name: SECTION.into(), version: VERSION, bytes }
    }

    /// Reads what [`SerialPort::save`] wrote, without taking it over.
    pub(crate) fn decode(sections: &Sections) -> Result<Restored, SectionError> {
        let mut body = Body::new(sections.body(SECTION, VERSION)?);
        let uart = SerialState {
            baud_divisor_low: body.u8()?,
            baud_divisor_high: body.u8()?,
            interrupt_enable: body.u8()?,
            interrupt_identification: body.u8()?,
            line_control: body.u8()?,
            line_status: body.u8()?,
            modem_control: body.u8()?,
            modem_status: body.u8()?,
            scratch: body.u8()?,
            in_buffer: body.counted()?.to_vec(),
        };
        let backlog = VecDeque::from(body.counted()?.to_vec());
        body.finish()?;
        if uart.in_buffer.len() > FIFO_BYTES_MAX || backlog.len() > BACKLOG_BYTES_MAX {
            return Err(SectionError::Malformed("more was typed than fits the serial port"));
        }
        Ok(Restored { uart, backlog })
    }

    /// Takes over decoded state; parked only.
    pub(crate) fn adopt(&self, restored: Restored) {
        let mut state = self.lock();
        let transmitter = Transmitter(Arc::clone(&self.outlet));
        state.uart = Serial::from_state(&restored.uart, self.line.clone(), NoEvents, transmitter)
            .unwrap_or_else(|error| unreachable!("checked when decoded, and mute: {error}"));
        state.backlog = restored.backlog;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl State {
    /// Moves typed bytes into the FIFO as far as there is room.
    fn feed(&mut self) {
        let count = self.uart.fifo_capacity().min(self.backlog.len());
        if self.parked || count == 0 {
            return;
        }
        let bytes: Vec<u8> = self.backlog.drain(..count).collect();
        match self.uart.enqueue_raw_bytes(&bytes) {
            // In loopback the line is cut: nothing is taken.
            Ok(0) | Err(Error::FullFifo) => {
                bytes.iter().rev().for_each(|byte| self.backlog.push_front(*byte));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "typed bytes raised no interrupt"),
        }
    }
}

#[cfg(test)]
mod tests {
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
}
