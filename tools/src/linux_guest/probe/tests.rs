//! The service and its workers, as a process of this machine.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use romulus_probe::{
    Answer, Content, Pattern, Request, Write,
    message::{MESSAGE_BYTES_MAX, VerifyAnswer, VerifyScope, VerifyState},
};

use super::*;
use crate::rehearsal::{ProbeReport, ProbeSettings, probe_client};

const PATIENCE: Duration = Duration::from_secs(30);
const PAGES: usize = 512;

/// A served guest, asked from this thread.
struct Served {
    target: SocketAddr,
    client: UdpSocket,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Served {
    fn new(vcpus: usize, prepare: impl FnOnce(&Workers)) -> Self {
        let workers = Workers::start(vcpus, PAGES, 50).unwrap();
        prepare(&workers);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            let mut service = Service::new(workers, Some("lo".to_owned()));
            service.serve(&socket, || !stopped.load(Ordering::Relaxed))
        };
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(target).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { target, client, stop, thread: Some(thread::spawn(serve)) }
    }

    fn ask(&self, request: Request) -> Answer {
        self.client.send(&request.encode()).unwrap();
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let length = self.client.recv(&mut bytes).unwrap();
        Answer::decode(&bytes[..length]).unwrap()
    }

    /// Checks all memory, to the end.
    fn check(&self, run: u64, scope: VerifyScope) -> VerifyAnswer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Answer::Verify(answer) = self.ask(Request::VerifyStart { run, scope }) else {
                panic!("another kind of answer");
            };
            if answer.run == run && answer.state == VerifyState::Done {
                return answer;
            }
            assert!(Instant::now() < deadline, "{answer:?}");
        }
    }

    fn written(&self) -> u64 {
        let Answer::Stats(stats) = self.ask(Request::Stats) else { panic!("no counters") };
        assert!(stats.tsc_khz > 0 && stats.memory_mib > 0, "{stats:?}");
        stats.written_pages
    }

    fn wait_written(&self, more: u64) {
        let (wanted, deadline) = (self.written() + more, Instant::now() + PATIENCE);
        while self.written() < wanted {
            assert!(Instant::now() < deadline, "the workers do not write");
            thread::sleep(Duration::from_millis(5));
        }
    }

    async fn report(&self) -> ProbeReport {
        let settings = ProbeSettings {
            target: self.target,
            lanes: 0..4,
            rate_per_s: 0,
            retransmit: Duration::from_millis(500),
            duration: Some(Duration::from_millis(300)),
            // The service's thread may not be bound to one CPU here.
            checks_tsc: false,
        };
        probe_client::run(&settings, |_| Ok(())).await.unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let served = self.thread.take().expect("it is taken here only").join();
        if !thread::panicking() {
            served.unwrap().unwrap();
        }
    }
}

fn busy(write: Write) -> Pattern {
    Pattern { pages: 100, rate_per_s: 20_000, write, content: Content::Random }
}

/// Lets the workers write so many pages.
fn work(workers: &Workers, pattern: Pattern, pages: u64) {
    workers.set_pattern(pattern);
    let deadline = Instant::now() + PATIENCE;
    while workers.written_pages() < pages {
        assert!(Instant::now() < deadline, "the workers do not write");
        thread::yield_now();
    }
}

#[tokio::test]
async fn a_client_finds_the_guest_sound_while_it_works() {
    for vcpus in [1, 2, 3] {
        let served = Served::new(vcpus, |workers| workers.set_pattern(busy(Write::Page)));
        let report = served.report().await;
        assert!(report.sound() && report.answers > 8, "{vcpus} vCPUs: {report:?}");
        served.wait_written(500);
        let scope = VerifyScope::ALL;
        let checked = served.check(7, scope);
        assert_eq!((checked.checked_pages, checked.bad_pages, checked.scope), (100, 0, scope));
    }
}

#[tokio::test]
async fn a_page_that_went_back_is_found_by_the_next_write_and_told_to_every_client() {
    let served = Served::new(2, |workers| {
        work(workers, busy(Write::Sparse), 100);
        workers.damager()(42, 0);
    });
    served.wait_written(200);
    let report = served.report().await;
    assert_eq!((report.corrupt, report.sound()), (4, false), "{report:?}");
    // A sparse write mends the header that was damaged.
    assert_eq!(served.check(1, VerifyScope::ALL).bad_pages, 0);
}

#[test]
fn a_check_of_all_memory_finds_what_no_write_touches() {
    let mut damage = None;
    let served = Served::new(2, |workers| {
        work(workers, Pattern { pages: 10, ..busy(Write::Page) }, 10);
        workers.set_pattern(Pattern::default());
        damage = Some(workers.damager());
    });
    let Answer::Verify(idle) = served.ask(Request::VerifyPoll) else { panic!("no check") };
    assert_eq!(idle.state, VerifyState::Idle);
    let first = served.check(1, VerifyScope::ALL);
    assert_eq!((first.checked_pages, first.bad_pages), (10, 0));
    assert_eq!(served.check(2, VerifyScope::ALL).digest, first.digest, "nothing was written");
    damage.unwrap()(5, 300);
    let bad = served.check(3, VerifyScope::ALL);
    assert_eq!((bad.checked_pages, bad.bad_pages), (10, 1));
    assert!(bad.first_bad != 0 && bad.digest != first.digest, "{bad:?}");
    let nothing = VerifyScope { working_set: false, fill: true };
    assert_eq!(served.check(4, nothing).checked_pages, 0);
}

#[test]
fn patterns_are_bounded_and_noise_gets_no_answer() {
    let served = Served::new(2, |_| {});
    served.client.send(b"noise").unwrap();
    let much = Pattern { pages: 1 << 40, rate_per_s: u64::MAX, ..busy(Write::Page) };
    let Answer::Pattern(answer) = served.ask(Request::PatternSet(much)) else {
        panic!("noise was answered");
    };
    assert_eq!((answer.pattern.pages, answer.pages_max), (PAGES as u64, PAGES as u64));
    assert!(answer.pattern.rate_per_s < u64::MAX);
    assert_eq!(answer.changes, 1);
    assert_eq!(served.ask(Request::PatternGet), Answer::Pattern(answer));
}

#[test]
fn a_machine_that_has_a_first_process_is_left_alone() {
    assert!(matches!(be_first_process(), Err(ProbeError::NotFirst)));
}

#[test]
fn what_only_the_bare_metal_guest_has_is_refused() {
    for (word, name) in [
        ("probe.fill=1", "probe.fill"),
        ("probe.gw=10.0.0.1", "probe.gw"),
        ("probe.compute=5", "probe.compute"),
    ] {
        let refused = refuse_foreign(&Params::parse(word).unwrap()).unwrap_err().to_string();
        assert!(refused.starts_with(name), "{refused}");
    }
    assert!(refuse_foreign(&Params::parse("quiet probe.vcpus=1").unwrap()).is_ok());
}
