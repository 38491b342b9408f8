//! The serial console: a 16550 at port 0x3f8, GSI 4.
//!
//! The UART itself is vm-superio's. What the guest sends goes to the outlet,
//! which gathers bytes to lines. What is typed waits in a bounded backlog for
//! room in the UART's 64-byte FIFO; while parked it only waits there, so that
//! neither registers nor the interrupt line change.
//!
//! **Interrupts.** The line is an edge: it is pulsed when a reason arises that
//! was not there. A driver therefore has to be told of a reason until it is
//! gone. vm-superio forgets all of them when one is asked for, so this module
//! answers itself (TI's TL16C550C data sheet, table 5):
//!
//! | reason | is told while | is gone when |
//! |---|---|---|
//! | 4, received data | the FIFO is not empty | the FIFO is empty |
//! | 2, transmitter empty | no received data is told | it was told, or a byte was sent |
//!
//! A reason whose interrupt is not enabled is not told, and arises anew when it
//! is enabled. The receiver's FIFO can be cleared (FCR bit 1); what waits in
//! the backlog has not arrived by then.
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

/// Receiver and transmitter.
const DATA: u8 = 0;
/// Reading: why there is an interrupt. Writing: control of the FIFOs.
const IIR_FCR: u8 = 2;
/// Interrupt enable: received data.
const IER_RECEIVED: u8 = 1;
/// Interrupt enable: transmitter empty.
const IER_EMPTY: u8 = 2;
/// Interrupt identification: nothing is pending.
const IIR_NONE: u8 = 1;
/// Interrupt identification: transmitter empty.
const IIR_EMPTY: u8 = 2;
/// Interrupt identification: received data.
const IIR_RECEIVED: u8 = 4;
/// Interrupt identification: there are FIFOs.
const IIR_FIFOS: u8 = 0xc0;
/// FIFO control: clear the receiver's.
const FCR_CLEAR_RECEIVER: u8 = 2;
/// Line status: received data.
const LSR_RECEIVED: u8 = 1;

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
    outlet: Arc<Outlet>,
    backlog: VecDeque<u8>,
    parked: bool,
}

/// The serial console.
pub(crate) struct SerialPort {
    state: Mutex<State>,
    line: Line,
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
        let state = State { uart, outlet, backlog: VecDeque::new(), parked: true };
        Self { state: Mutex::new(state), line }
    }

    /// A vCPU reads register `offset`, once for each byte.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        for byte in data {
            *byte = match offset as u8 {
                IIR_FCR => state.identify(),
                register => state.uart.read(register),
            };
            if offset as u8 == DATA {
                state.keep_telling(&self.line);
            }
        }
        state.feed();
    }

    /// A vCPU writes register `offset`, once for each byte (as `rep outsb` does).
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        for byte in data {
            if offset as u8 == IIR_FCR && byte & FCR_CLEAR_RECEIVER != 0 {
                state.clear_receiver(&self.line);
            }
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
        state.set_registers(&restored.uart, &self.line);
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
    /// Why there is an interrupt, as the guest is told.
    fn identify(&mut self) -> u8 {
        let uart = self.uart.state();
        let pending = |reason, enabled| {
            uart.interrupt_identification & reason != 0 && uart.interrupt_enable & enabled != 0
        };
        if pending(IIR_RECEIVED, IER_RECEIVED) {
            return IIR_FIFOS | IIR_RECEIVED;
        }
        // This forgets all reasons. Those not enabled arise again with that.
        let _ = self.uart.read(IIR_FCR);
        let empty = pending(IIR_EMPTY, IER_EMPTY);
        IIR_FIFOS | if empty { IIR_EMPTY } else { IIR_NONE }
    }

    /// Received data is a reason until none is left; the line has not fallen.
    fn keep_telling(&mut self, line: &Line) {
        let mut uart = self.uart.state();
        let enabled = uart.interrupt_enable & IER_RECEIVED != 0;
        let told = uart.interrupt_identification & IIR_RECEIVED != 0;
        if !uart.in_buffer.is_empty() && enabled && !told {
            uart.interrupt_identification &= !IIR_NONE;
            uart.interrupt_identification |= IIR_RECEIVED;
            self.set_registers(&uart, line);
        }
    }

    fn clear_receiver(&mut self, line: &Line) {
        let mut uart = self.uart.state();
        uart.in_buffer.clear();
        uart.line_status &= !LSR_RECEIVED;
        uart.interrupt_identification &= !IIR_RECEIVED;
        if uart.interrupt_identification == 0 {
            uart.interrupt_identification = IIR_NONE;
        }
        self.set_registers(&uart, line);
    }

    /// Makes `uart` the registers, without a pulse.
    fn set_registers(&mut self, uart: &SerialState, line: &Line) {
        let muted = line.mute.swap(true, Ordering::Relaxed);
        let transmitter = Transmitter(Arc::clone(&self.outlet));
        self.uart = Serial::from_state(uart, line.clone(), NoEvents, transmitter)
            .unwrap_or_else(|error| unreachable!("the FIFO was looked at, and mute: {error}"));
        line.mute.store(muted, Ordering::Relaxed);
    }

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
mod tests;
