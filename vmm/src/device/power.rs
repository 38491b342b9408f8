//! What turns the guest off, restarts it, and asks it to shut down: the ports
//! that the ACPI tables name, and the two that PCs restart by.
//!
//! | port | is |
//! |---|---|
//! | 0x600 | ACPI sleep control: the only sleep is "off" (S5) |
//! | 0x601 | ACPI sleep status: nothing ever wakes |
//! | 0x602 | events of the power button; reading takes them. GSI 13, edge |
//! | 0xcf9 | reset control: bit 2 restarts; also the ACPI reset register |
//! | 0x64 | a keyboard controller that knows one command: pulse the reset line |
//!
//! A request (off, or restart) is part of the state: the vCPU that made it runs
//! no more, so whoever takes the guest over has to carry the request out.
//!
//! Section `power`, version 1:
//!
//! ```text
//!   events:u8    bit 0: the power button was pressed and nobody has asked
//!   request:u8   0 none, 1 off, 2 to 4 restart (see [`ResetCause`])
//! ```

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use checkpoint::{Section, SectionError, Sections};
use vmm_sys_util::eventfd::EventFd;

use super::codec::Body;

/// ACPI sleep control, and the two ports that follow it.
pub(crate) const SLEEP_CONTROL_PORT: u16 = 0x600;
pub(crate) const SLEEP_STATUS_PORT: u16 = 0x601;
pub(crate) const EVENTS_PORT: u16 = 0x602;
/// Reset control, and what restarts when it is written there.
pub(crate) const RESET_PORT: u16 = 0xcf9;
pub(crate) const RESET_VALUE: u8 = 6;
/// The keyboard controller's command and status port.
pub(crate) const KEYBOARD_PORT: u16 = 0x64;
/// All of them: first port, how many.
pub(crate) const PORTS: [(u16, u64); 3] =
    [(SLEEP_CONTROL_PORT, 3), (RESET_PORT, 1), (KEYBOARD_PORT, 1)];
/// The power button's interrupt: the line of a coprocessor that no guest has.
pub(crate) const GSI: u32 = 13;
/// The event that the power button was pressed.
pub(crate) const BUTTON_PRESSED: u8 = 1;
/// The type that `\_S5` has.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// The saved state's name.
pub(crate) const SECTION: &str = "power";
const VERSION: u32 = 1;

/// Sleep control (ACPI 6.5, table 4.21): go to sleep, and how deep.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// Reset control: restart the processor.
const RESET_CPU: u8 = 1 << 2;
/// Keyboard commands 0xf0 to 0xff pulse output lines; bit 0 clear is the reset line.
const PULSE: u8 = 0xf0;
const PULSE_NOT_RESET: u8 = 1;

/// How a guest asked to be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCause {
    /// By port 0xcf9, which is also the ACPI reset register.
    ResetPort,
    /// By the keyboard controller.
    KeyboardController,
    /// By a triple fault, on purpose or not.
    TripleFault,
}

impl fmt::Display for ResetCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResetPort => "its reset register",
            Self::KeyboardController => "the keyboard controller",
            Self::TripleFault => "a triple fault",
        })
    }
}

/// What a guest wants to be done with its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Turn it off.
    Off,
    /// Restart it.
    Reset(ResetCause),
}

impl PowerRequest {
    fn code(request: Option<Self>) -> u8 {
        match request {
            None => 0,
            Some(Self::Off) => 1,
            Some(Self::Reset(ResetCause::ResetPort)) => 2,
            Some(Self::Reset(ResetCause::KeyboardController)) => 3,
            Some(Self::Reset(ResetCause::TripleFault)) => 4,
        }
    }

    fn decode(code: u8) -> Result<Option<Self>, SectionError> {
        Ok(Some(match code {
            0 => return Ok(None),
            1 => Self::Off,
            2 => Self::Reset(ResetCause::ResetPort),
            3 => Self::Reset(ResetCause::KeyboardController),
            4 => Self::Reset(ResetCause::TripleFault),
            _ => return Err(SectionError::Malformed("an unknown power request")),
        }))
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    events: u8,
    request: Option<PowerRequest>,
}

/// The ports, and the power button.
#[derive(Debug)]
pub(crate) struct PowerControl {
    state: Mutex<State>,
    irq: Arc<EventFd>,
    /// The interrupt controllers are being saved or set.
    parked: AtomicBool,
}

impl PowerControl {
    /// As after power-on, parked; `irq` raises the power button's interrupt.
    pub(crate) fn new(irq: Arc<EventFd>) -> Self {
        Self { state: Mutex::default(), irq, parked: AtomicBool::new(true) }
    }

    /// A vCPU reads `port`.
    pub(crate) fn read(&self, port: u16) -> u8 {
        match port {
            EVENTS_PORT => std::mem::take(&mut self.lock().events),
            // Nothing woke, no reset is under way, no key waits.
            _ => 0,
        }
    }

    /// A vCPU writes `value` to `port`. The request that it made with it, if
    /// it did: the vCPU must not go on.
    pub(crate) fn write(&self, port: u16, value: u8) -> Option<PowerRequest> {
        let request = match port {
            SLEEP_CONTROL_PORT
                if value & SLEEP_ENABLE != 0
                    && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF =>
            {
                PowerRequest::Off
            }
            RESET_PORT if value & RESET_CPU != 0 => PowerRequest::Reset(ResetCause::ResetPort),
            KEYBOARD_PORT if value & (PULSE | PULSE_NOT_RESET) == PULSE => {
                PowerRequest::Reset(ResetCause::KeyboardController)
            }
            _ => return None,
        };
        self.request(request);
        Some(request)
    }

    /// Notes a request that came by another way. The first one stays.
    pub(crate) fn request(&self, request: PowerRequest) {
        self.lock().request.get_or_insert(request);
    }

    /// What the guest wants and nobody has done yet.
    pub(crate) fn requested(&self) -> Option<PowerRequest> {
        self.lock().request
    }

    /// Presses the power button.
    pub(crate) fn press_button(&self) {
        self.lock().events |= BUTTON_PRESSED;
        self.interrupt();
    }

    pub(crate) fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        drop(self.lock());
    }

    /// Interrupts for events that nobody has asked for, as the interrupt may
    /// be lost; one too many is harmless.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Ordering::SeqCst);
        self.interrupt();
    }

    pub(crate) fn save(&self) -> Section {
        let State { events, request } = *self.lock();
        let bytes = vec![events, PowerRequest::code(request)];
        Section { name: SECTION.into(), version: VERSION, bytes }
    }

    /// Reads what [`PowerControl::save`] wrote, without taking it over.
    pub(crate) fn decode(sections: &Sections) -> Result<State, SectionError> {
        let mut body = Body::new(sections.body(SECTION, VERSION)?);
        let (events, request) = (body.u8()?, PowerRequest::decode(body.u8()?)?);
        body.finish()?;
        if events & !BUTTON_PRESSED != 0 {
            return Err(SectionError::Malformed("an unknown power event"));
        }
        Ok(State { events, request })
    }

    /// Takes over decoded state; parked only.
    pub(crate) fn adopt(&self, state: State) {
        *self.lock() = state;
    }

    fn interrupt(&self) {
        let state = self.lock();
        if state.events != 0 && !self.parked.load(Ordering::SeqCst) {
            // It fails only at 2^64 - 1 uncollected interrupts.
            let _ = self.irq.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power() -> (PowerControl, Arc<EventFd>) {
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        (PowerControl::new(Arc::clone(&irq)), irq)
    }

    fn restored(section: Section) -> Result<State, SectionError> {
        PowerControl::decode(&Sections::new(vec![section]).unwrap())
    }

    #[test]
    fn only_what_asks_for_it_turns_off_or_restarts() {
        use ResetCause::{KeyboardController, ResetPort};
        for (port, value, expected) in [
            (0x600, 5 << 2 | 1 << 5, Some(PowerRequest::Off)),
            (0x600, 5 << 2, None),
            (0x600, 3 << 2 | 1 << 5, None),
            (0x601, 0xff, None),
            (0x602, 0xff, None),
            (0xcf9, 2, None),
            (0xcf9, 6, Some(PowerRequest::Reset(ResetPort))),
            (0xcf9, 0xe, Some(PowerRequest::Reset(ResetPort))),
            (0x64, 0xfe, Some(PowerRequest::Reset(KeyboardController))),
            (0x64, 0xff, None),
            (0x64, 0xd1, None),
        ] {
            let (power, _) = power();
            assert_eq!(power.write(port, value), expected, "{value:#x} to {port:#x}");
            assert_eq!(power.requested(), expected);
        }
    }

    #[test]
    fn a_request_survives_and_the_first_one_counts() {
        let (power, _) = power();
        power.write(0x600, 0x34);
        power.write(0xcf9, 6);
        let (other, _) = self::power();
        other.adopt(restored(power.save()).unwrap());
        assert_eq!(other.requested(), Some(PowerRequest::Off));
        assert_eq!(other.save(), power.save());
    }

    #[test]
    fn the_button_interrupts_until_somebody_asks() {
        let (power, irq) = power();
        power.press_button();
        assert!(irq.read().is_err(), "an interrupt while parked");
        power.unpark();
        assert!(irq.read().is_ok());
        power.park();
        let (other, other_irq) = self::power();
        other.adopt(restored(power.save()).unwrap());
        other.unpark();
        assert!(other_irq.read().is_ok(), "the pressed button is lost");
        assert_eq!((other.read(0x602), other.read(0x602)), (1, 0));
        other.park();
        other.unpark();
        assert!(other_irq.read().is_err(), "an interrupt for nothing");
    }

    #[test]
    fn malformed_state_is_refused() {
        let section = |bytes: &[u8]| Section {
            name: SECTION.into(),
            version: VERSION,
            bytes: bytes.to_vec(),
        };
        assert!(restored(section(&[1, 4])).is_ok());
        for bytes in [&[][..], &[0], &[0, 0, 0], &[2, 0], &[0, 5]] {
            assert!(restored(section(bytes)).is_err(), "{bytes:?}");
        }
    }
}
