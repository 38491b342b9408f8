//! What the probe's client measures, and how it is reported.

use std::{net::SocketAddr, ops::Range, time::Duration};

use hdrhistogram::Histogram;
use romulus_probe::message::AskAnswer;
use serde::{Deserialize, Serialize};

use crate::{control::Percentiles, telemetry::monotonic_us};

/// Longest latency that is told apart, in microseconds: five minutes.
const LATENCY_US_MAX: u64 = 300_000_000;
/// Verdicts that are kept in words.
const COMPLAINTS_MAX: usize = 32;
/// Gaps that are kept.
const GAPS_MAX: usize = 16;

/// What to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSettings {
    /// The guest's service.
    pub target: SocketAddr,
    /// Clients side by side, by number, within `0..romulus_probe::LANES_MAX`.
    pub lanes: Range<u32>,
    /// Requests per second and client; 0: as soon as answered.
    pub rate_per_s: u32,
    /// A request is sent again after so long.
    pub retransmit: Duration,
    /// When to end; `None`: at SIGTERM, SIGINT or the end of stdin.
    pub duration: Option<Duration>,
    /// Whether a TSC that goes back counts.
    pub checks_tsc: bool,
}

/// A time without any answer. Wall clock, milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Gap {
    /// How long, in milliseconds.
    pub ms: f64,
    /// The last answer before it.
    pub from_unix_ms: u64,
    /// The first answer after it.
    pub until_unix_ms: u64,
    /// The last answer before it, by `CLOCK_MONOTONIC`, in microseconds.
    pub from_monotonic_us: u64,
    /// The first answer after it, by the same.
    pub until_monotonic_us: u64,
}

/// A line every 100 ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Since the client began, in milliseconds.
    pub elapsed_ms: u64,
    /// New answers so far.
    pub answers: u64,
    /// Answers that contradict what was said before, so far.
    pub lost: u64,
    /// Time since the last new answer, in milliseconds.
    pub silent_ms: u64,
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// How long it ran, in milliseconds.
    pub elapsed_ms: u64,
    /// New answers.
    pub answers: u64,
    /// Requests sent, retransmissions included.
    pub sent: u64,
    /// Of these, retransmissions.
    pub retransmissions: u64,
    /// Answers that were known already: harmless.
    pub duplicates: u64,
    /// Answers once given and later forgotten. Must be 0.
    pub lost: u64,
    /// Counters and clocks that went back. Must be 0.
    pub went_back: u64,
    /// Answers that told of pages that do not hold what the guest wrote. Must be 0.
    pub corrupt: u64,
    /// Datagrams that are no answers to us.
    pub foreign: u64,
    /// From the first sending of a request to its answer.
    pub latency_us: Percentiles,
    /// Mean of the same.
    pub latency_mean_us: f64,
    /// What 999 of 1,000 of the same do not exceed.
    pub latency_p999_us: u64,
    /// What the guest's working vCPUs did per second of the guest's clock: loops
    /// and page writes; `None` without a clock or with too few answers.
    pub work_per_s: Option<f64>,
    /// The longest time without any new answer, between two answers.
    pub longest_gap: Gap,
    /// The longest of these times, the longest first; at most 16.
    pub gaps: Vec<Gap>,
    /// The first verdicts against the guest, in words.
    pub complaints: Vec<String>,
}

impl ProbeReport {
    /// Whether the guest answered and contradicted nothing that it ever said.
    #[must_use]
    pub fn sound(&self) -> bool {
        self.answers > 0 && self.lost == 0 && self.went_back == 0 && self.corrupt == 0
    }
}

/// Counts while the client runs. Time comes in as an argument, since the
/// client began.
#[derive(Debug)]
pub(super) struct Tally {
    began_unix_ms: u64,
    report: ProbeReport,
    latency_us: Histogram<u64>,
    last_answer: Option<Duration>,
    began_monotonic_us: u64,
    /// The guest's clock in ns, and what its vCPUs had done, at the first and
    /// the last answer.
    work: Option<[(u64, u64); 2]>,
}

/// One thing to count.
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
    Sent { again: bool },
    Answer { latency: Duration },
    Duplicate,
    Foreign,
}

/// One thing that must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
    Lost,
    WentBack,
    Corrupt,
}

impl Tally {
    pub(super) fn new(began_unix_ms: u64) -> Self {
        let latency_us = Histogram::new_with_max(LATENCY_US_MAX, 3).expect("the bounds are sound");
        let report = ProbeReport {
            elapsed_ms: 0,
            answers: 0,
            sent: 0,
            retransmissions: 0,
            duplicates: 0,
            lost: 0,
            went_back: 0,
            corrupt: 0,
            foreign: 0,
            latency_us: Percentiles::default(),
            latency_mean_us: 0.0,
            latency_p999_us: 0,
            work_per_s: None,
            longest_gap: Gap::default(),
            gaps: Vec::new(),
            complaints: Vec::new(),
        };
        let began_monotonic_us = monotonic_us();
        Self {
            began_unix_ms,
            report,
            latency_us,
            last_answer: None,
            began_monotonic_us,
            work: None,
        }
    }

    /// Notes what a new answer tells of the guest's work. Answers overtake each
    /// other, so an older one may come later.
    pub(super) fn note_work(&mut self, answer: &AskAnswer) {
        // The first vCPU serves the network; a lone one does all.
        let serving = usize::from(answer.vcpus > 1);
        let done = answer.vcpu[serving..].iter().map(|vcpu| vcpu.progress).sum();
        let now = (answer.kvm_clock_ns, done);
        let [first, last] = self.work.unwrap_or([now, now]);
        self.work = Some([first.min(now), last.max(now)]);
    }

    pub(super) fn count(&mut self, now: Duration, what: Count) {
        let report = &mut self.report;
        match what {
            Count::Sent { again } => {
                report.sent += 1;
                report.retransmissions += u64::from(again);
            }
            Count::Duplicate => report.duplicates += 1,
            Count::Foreign => report.foreign += 1,
            Count::Answer { latency } => {
                report.answers += 1;
                let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                self.latency_us.saturating_record(us);
                self.note_gap(now);
                self.last_answer = Some(now);
            }
        }
    }

    pub(super) fn complain(&mut self, what: Complaint, words: String) {
        match what {
            Complaint::Lost => self.report.lost += 1,
            Complaint::WentBack => self.report.went_back += 1,
            Complaint::Corrupt => self.report.corrupt += 1,
        }
        if self.report.complaints.len() < COMPLAINTS_MAX {
            self.report.complaints.push(words);
        }
    }

    fn note_gap(&mut self, now: Duration) {
        let Some(last) = self.last_answer else { return };
        let ms = (now - last).as_secs_f64() * 1e3;
        let rank = self.report.gaps.partition_point(|longer| longer.ms >= ms);
        if rank == GAPS_MAX {
            return;
        }
        let gap = Gap {
            ms,
            from_unix_ms: self.unix_ms(last),
            until_unix_ms: self.unix_ms(now),
            from_monotonic_us: self.monotonic_us(last),
            until_monotonic_us: self.monotonic_us(now),
        };
        self.report.gaps.truncate(GAPS_MAX - 1);
        self.report.gaps.insert(rank, gap);
        self.report.longest_gap = self.report.gaps[0];
    }

    fn unix_ms(&self, at: Duration) -> u64 {
        self.began_unix_ms + millis(at)
    }

    fn monotonic_us(&self, at: Duration) -> u64 {
        self.began_monotonic_us + u64::try_from(at.as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn progress(&self, now: Duration) -> Progress {
        Progress {
            elapsed_ms: millis(now),
            answers: self.report.answers,
            lost: self.report.lost,
            silent_ms: millis(now - self.last_answer.unwrap_or_default()),
        }
    }

    pub(super) fn finish(mut self, now: Duration) -> ProbeReport {
        self.report.elapsed_ms = millis(now);
        self.report.latency_us = Percentiles {
            p50: self.latency_us.value_at_quantile(0.5),
            p99: self.latency_us.value_at_quantile(0.99),
            max: self.latency_us.max(),
        };
        self.report.latency_mean_us = self.latency_us.mean();
        self.report.latency_p999_us = self.latency_us.value_at_quantile(0.999);
        self.report.work_per_s = self.work.and_then(|[first, last]| {
            let seconds = last.0.checked_sub(first.0).filter(|ns| *ns > 0)? as f64 / 1e9;
            Some(last.1.saturating_sub(first.1) as f64 / seconds)
        });
        self.report
    }
}

/// What an answer says, for a complaint.
pub(super) fn in_words(client: u32, answer: Option<&AskAnswer>) -> String {
    match answer {
        Some(answer) => format!("client {client}, last answer to request {}", answer.seq),
        None => format!("client {client}, before its first answer"),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
