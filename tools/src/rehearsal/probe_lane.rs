//! One lane of the probe's client: when to send, and what an answer means.
//! Sans-IO: time is an argument, since the client began.

use std::time::Duration;

use romulus_probe::{
    lane::{ClientLane, Verdict},
    message::Message,
};

use super::{
    ProbeSettings,
    probe_report::{Complaint, Count, Tally, in_words},
};

/// A [`ClientLane`] with its timers.
#[derive(Debug)]
pub(super) struct TimedLane {
    client: u32,
    lane: ClientLane,
    retransmit: Duration,
    /// Between two requests; zero for a closed loop.
    interval: Duration,
    first_sent: Duration,
    due: Duration,
    /// A lane that was told a contradiction asks no more: all later answers
    /// would contradict as well.
    broken: bool,
}

impl TimedLane {
    pub(super) fn new(client: u32, seed: u64, settings: &ProbeSettings) -> Self {
        let lane = ClientLane::new(client, seed);
        let interval = match settings.rate_per_s {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        // Paced lanes take turns within an interval.
        let lanes = settings.lanes.len().max(1) as u32;
        Self {
            client,
            lane: if settings.checks_tsc { lane } else { lane.without_tsc_check() },
            retransmit: settings.retransmit,
            interval,
            first_sent: Duration::ZERO,
            due: interval / lanes * (client - settings.lanes.start),
            broken: false,
        }
    }

    /// When [`TimedLane::send`] has something, if ever.
    pub(super) fn due(&self) -> Option<Duration> {
        (!self.broken).then_some(self.due)
    }

    /// The bytes to send now, if it is time.
    pub(super) fn send(&mut self, now: Duration, tally: &mut Tally) -> Option<Message> {
        if self.broken || now < self.due {
            return None;
        }
        let again = self.lane.is_pending();
        if !again {
            self.first_sent = now;
        }
        self.due = now + self.retransmit;
        tally.count(now, Count::Sent { again });
        Some(self.lane.next_request())
    }

    /// Takes a datagram.
    pub(super) fn receive(&mut self, now: Duration, bytes: &[u8], tally: &mut Tally) {
        let before = in_words(self.client, self.lane.last_answer());
        let Ok(verdict) = self.lane.on_answer(bytes) else {
            return tally.count(now, Count::Foreign);
        };
        match verdict {
            Verdict::New(answer) => {
                tally.note_work(&answer);
                tally.count(now, Count::Answer { latency: now - self.first_sent });
                // A paced lane that fell behind does not catch up in a burst.
                self.due = now.max(self.first_sent + self.interval);
            }
            Verdict::Duplicate => tally.count(now, Count::Duplicate),
            Verdict::Foreign => tally.count(now, Count::Foreign),
            Verdict::Lost { acknowledged, guest_seq } => {
                let words = format!(
                    "{before}: acknowledged up to {acknowledged}, and now knows {guest_seq}"
                );
                self.complain(Complaint::Lost, words, tally);
            }
            Verdict::WentBack { what, was, now } => {
                let words = format!("{before}: {what:?} went back from {was} to {now}");
                self.complain(Complaint::WentBack, words, tally);
            }
            Verdict::Corrupt { pages, first_bad } => {
                let words = format!("{before}: {pages} corrupt pages, first at {first_bad:#x}");
                self.complain(Complaint::Corrupt, words, tally);
            }
        }
    }

    fn complain(&mut self, what: Complaint, words: String, tally: &mut Tally) {
        self.broken = true;
        tally.complain(what, words);
    }
}

#[cfg(test)]
mod tests {
    use romulus_probe::{
        Answer, Request,
        service::{Lanes, Vitals},
    };

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn settings(rate_per_s: u32) -> ProbeSettings {
        ProbeSettings {
            target: "10.77.0.100:7000".parse().unwrap(),
            lanes: 3..5,
            rate_per_s,
            retransmit: 20 * MS,
            duration: None,
            checks_tsc: true,
        }
    }

    fn answer(guest: &mut Lanes, request: &[u8]) -> Vec<u8> {
        let Request::Ask(ask) = Request::decode(request).unwrap() else { panic!("no ask") };
        Answer::Ask(guest.on_ask(&ask, &Vitals::default())).encode().to_vec()
    }

    #[test]
    fn a_lost_datagram_is_sent_again_and_the_gap_measured() {
        let (mut guest, mut tally) = (Lanes::new(), Tally::new(1000));
        let mut lane = TimedLane::new(3, 1, &settings(0));
        let first = lane.send(Duration::ZERO, &mut tally).unwrap();
        lane.receive(MS, &answer(&mut guest, &first), &mut tally);
        let lost = lane.send(MS, &mut tally).unwrap().to_vec();
        assert_eq!(lane.send(20 * MS, &mut tally), None);
        let again = lane.send(21 * MS, &mut tally).unwrap();
        assert_eq!(lost, again.to_vec());
        let late = answer(&mut guest, &again);
        lane.receive(31 * MS, &late, &mut tally);
        lane.receive(32 * MS, &late, &mut tally);
        lane.receive(32 * MS, b"noise", &mut tally);
        let report = tally.finish(40 * MS);
        assert_eq!((report.answers, report.sent, report.retransmissions), (2, 3, 1));
        assert_eq!((report.duplicates, report.foreign), (1, 1));
        assert!((report.longest_gap.ms - 30.0).abs() < 0.01, "{:?}", report.longest_gap);
        assert_eq!(report.longest_gap.from_unix_ms, 1001);
        assert!(report.sound());
    }

    #[test]
    fn a_guest_that_forgot_is_found_out_once() {
        let (mut guest, mut tally) = (Lanes::new(), Tally::new(0));
        let mut lane = TimedLane::new(3, 1, &settings(0));
        for _ in 0..3 {
            let request = lane.send(MS, &mut tally).unwrap();
            lane.receive(MS, &answer(&mut guest, &request), &mut tally);
        }
        let request = lane.send(2 * MS, &mut tally).unwrap();
        lane.receive(2 * MS, &answer(&mut Lanes::new(), &request), &mut tally);
        assert_eq!(lane.due(), None);
        let report = tally.finish(3 * MS);
        assert_eq!((report.lost, report.sound()), (1, false));
        assert!(report.complaints[0].contains("acknowledged up to 2"), "{:?}", report.complaints);
    }

    #[test]
    fn paced_lanes_take_turns() {
        let mut tally = Tally::new(0);
        let mut guest = Lanes::new();
        let mut lane = TimedLane::new(4, 1, &settings(10));
        assert_eq!(lane.due(), Some(50 * MS));
        let request = lane.send(50 * MS, &mut tally).unwrap();
        lane.receive(52 * MS, &answer(&mut guest, &request), &mut tally);
        assert_eq!(lane.due(), Some(150 * MS));
    }
}
