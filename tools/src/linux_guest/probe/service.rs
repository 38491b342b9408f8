//! Answers the probe service's datagrams: see `romulus_probe::message`.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

use romulus_probe::{
    Answer, Message, Request,
    message::{MESSAGE_BYTES_MAX, StatsAnswer},
    service::{Lanes, Vitals},
};
use vmm::host::time_stamp;

use super::{
    machine,
    workers::{Workers, pin},
};

/// How long it waits for a request before it looks around.
const TICK: Duration = Duration::from_millis(50);

/// The service, on the thread of the first vCPU.
#[derive(Debug)]
pub(super) struct Service {
    lanes: Lanes,
    workers: Workers,
    /// The network device.
    device: Option<String>,
    began: Instant,
    began_tsc: u64,
}

impl Service {
    /// A service that knows nobody yet.
    pub(super) fn new(workers: Workers, device: Option<String>) -> Self {
        let (began, began_tsc) = (Instant::now(), time_stamp());
        Self { lanes: Lanes::new(), workers, device, began, began_tsc }
    }

    /// Answers what arrives at `socket` while `goes_on`.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub(super) fn serve(
        &mut self,
        socket: &UdpSocket,
        goes_on: impl Fn() -> bool,
    ) -> io::Result<()> {
        pin(0);
        socket.set_read_timeout(Some(TICK))?;
        let mut bytes = [0; MESSAGE_BYTES_MAX + 1];
        while goes_on() {
            let received = match socket.recv_from(&mut bytes) {
                Ok(received) => Some(received),
                Err(error) if is_nothing(&error) => None,
                Err(error) => return Err(error),
            };
            self.workers.count_served(received.is_none());
            let Some((length, client)) = received else { continue };
            // Noise gets no answer. One that does not go out is asked for again.
            if let Some(answer) = self.answer(&bytes[..length]) {
                let _ = socket.send_to(&answer, client);
            }
        }
        Ok(())
    }

    fn answer(&mut self, bytes: &[u8]) -> Option<Message> {
        let answer = match Request::decode(bytes).ok()? {
            Request::Ask(ask) => {
                let vitals = self.vitals();
                Answer::Ask(self.lanes.on_ask(&ask, &vitals))
            }
            Request::PatternGet => Answer::Pattern(self.workers.pattern()),
            Request::PatternSet(pattern) => {
                self.workers.set_pattern(pattern);
                Answer::Pattern(self.workers.pattern())
            }
            Request::VerifyStart { run, scope } => {
                self.workers.start_check(run, scope);
                Answer::Verify(self.workers.check())
            }
            Request::VerifyPoll => Answer::Verify(self.workers.check()),
            Request::Stats => Answer::Stats(self.stats()),
        };
        Some(answer.encode())
    }

    fn vitals(&self) -> Vitals {
        let (corrupt_pages, first_bad) = self.workers.corruption();
        Vitals {
            vcpus: self.workers.vcpus(),
            corrupt_pages,
            first_bad,
            tsc: time_stamp(),
            kvm_clock_ns: machine::monotonic_ns(),
            vcpu: self.workers.counters(),
        }
    }

    fn stats(&self) -> StatsAnswer {
        let Vitals { vcpus, corrupt_pages, tsc, kvm_clock_ns, vcpu, .. } = self.vitals();
        let frames = |what: &str| {
            self.device.as_ref().map_or(0, |device| machine::device_statistic(device, what))
        };
        let passed_us = self.began.elapsed().as_micros().max(1) as u64;
        StatsAnswer {
            vcpus,
            memory_mib: machine::memory_mib() as u32,
            written_pages: self.workers.written_pages(),
            fill_pages: 0,
            filled_pages: 0,
            corrupt_pages,
            net_interrupts: machine::virtio_interrupts(),
            rx_frames: frames("rx_packets"),
            tx_frames: frames("tx_packets"),
            tx_dropped: frames("tx_dropped"),
            tsc,
            kvm_clock_ns,
            tsc_khz: (tsc - self.began_tsc).saturating_mul(1000) / passed_us,
            vcpu,
        }
    }
}

fn is_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
