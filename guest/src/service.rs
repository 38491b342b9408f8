//! Answers the probe service's datagrams; see `romulus_probe::message` for what they mean.

use core::sync::atomic::Ordering;

use romulus_probe::message::{MESSAGE_BYTES_MAX, PatternAnswer, StatsAnswer, VcpuCounters};
use romulus_probe::service::{Lanes, Vitals};
use romulus_probe::{Answer, Request, VCPUS_MAX};
use smoltcp::socket::udp;

use crate::cpu::{self, PerCpu};
use crate::memory::Memory;
use crate::net::NetCounters;
use crate::work::{self, COUNTERS};
use crate::{clock, verify};

/// Datagrams answered in one poll, so that a flood does not starve the vCPU's other work.
const BATCH_MAX: usize = 32;

pub(crate) struct Service {
    vcpus: usize,
    lanes: Lanes,
}

impl Service {
    pub(crate) fn new(vcpus: usize) -> Self {
        Self { vcpus, lanes: Lanes::new() }
    }

    /// Answers what has arrived, while answers find room. True if there was anything.
    pub(crate) fn serve(&mut self, socket: &mut udp::Socket<'_>, net: NetCounters) -> bool {
        let mut served = 0;
        while served < BATCH_MAX
            && socket.can_send()
            && socket.payload_send_capacity() - socket.send_queue() > MESSAGE_BYTES_MAX
        {
            let Ok((bytes, from)) = socket.recv() else { break };
            served += 1;
            // Noise gets no answer: nobody can use us to amplify it.
            if let Ok(request) = Request::decode(bytes) {
                let answer = self.answer(&request, net).encode();
                // If it does not fit after all, the client asks again and gets a repeat.
                let _ = socket.send_slice(&answer, from.endpoint);
            }
        }
        served > 0
    }

    fn answer(&mut self, request: &Request, net: NetCounters) -> Answer {
        let workers = work::workers_of(self.vcpus);
        match *request {
            Request::Ask(ask) => Answer::Ask(self.lanes.on_ask(&ask, &self.vitals())),
            Request::PatternGet => Answer::Pattern(pattern_answer()),
            Request::PatternSet(pattern) => {
                work::set_pattern(pattern);
                Answer::Pattern(pattern_answer())
            }
            Request::VerifyStart { run, scope } => {
                verify::start(run, scope, workers);
                Answer::Verify(verify::answer(workers))
            }
            Request::VerifyPoll => Answer::Verify(verify::answer(workers)),
            Request::Stats => Answer::Stats(self.stats(net)),
        }
    }

    fn vitals(&self) -> Vitals {
        let (corrupt_pages, first_bad) = work::corruption();
        Vitals {
            vcpus: self.vcpus as u32,
            corrupt_pages,
            first_bad,
            tsc: cpu::tsc(),
            kvm_clock_ns: clock::kvm_clock_ns(0),
            vcpu: vcpu_counters(),
        }
    }

    fn stats(&self, net: NetCounters) -> StatsAnswer {
        let memory = Memory::get();
        let Vitals { vcpus, corrupt_pages, tsc, kvm_clock_ns, vcpu, .. } = self.vitals();
        StatsAnswer {
            vcpus,
            memory_mib: memory.ram_mib() as u32,
            written_pages: COUNTERS
                .iter()
                .map(|counters| counters.written.load(Ordering::Relaxed))
                .sum(),
            fill_pages: memory.fill_pages(),
            filled_pages: verify::filled_pages(),
            corrupt_pages,
            net_interrupts: PerCpu::of(0).devices(),
            rx_frames: net.rx_frames,
            tx_frames: net.tx_frames,
            tx_dropped: net.tx_dropped,
            tsc,
            kvm_clock_ns,
            tsc_khz: clock::tsc_khz(),
            vcpu,
        }
    }
}

fn pattern_answer() -> PatternAnswer {
    PatternAnswer {
        pattern: work::pattern_now(),
        pages_max: Memory::get().working_set_pages(),
        changes: work::pattern_changes(),
    }
}

fn vcpu_counters() -> [VcpuCounters; VCPUS_MAX] {
    core::array::from_fn(|cpu| VcpuCounters {
        progress: COUNTERS[cpu].progress.load(Ordering::Relaxed),
        ticks: PerCpu::of(cpu).ticks(),
    })
}
