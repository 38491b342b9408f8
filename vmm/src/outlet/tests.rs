//! The outlet with a socket for a cable: it keeps frames apart like a tap.

use std::{
    os::unix::net::UnixDatagram,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use super::*;

struct Rig {
    outlet: Arc<Outlet>,
    host: UnixDatagram,
    stale: Arc<AtomicU64>,
}

fn rig(mode: Mode) -> Rig {
    rig_with_sink(mode, Box::new(io::sink()))
}

fn rig_with_sink(mode: Mode, sink: Box<dyn Write + Send>) -> Rig {
    let stale = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&stale);
    let report = Box::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let outlet = Arc::new(Outlet::new(OutletConfig::default(), mode, sink, report).unwrap());
    let (guest, host) = UnixDatagram::pair().unwrap();
    outlet.attach(0, Arc::new(Tap::from_socket(guest)));
    host.set_nonblocking(true).unwrap();
    Rig { outlet, host, stale }
}

fn frame(text: &str) -> Output {
    Output { channel: Channel::Network(0), payload: text.as_bytes().into() }
}

impl Rig {
    fn heard(&self) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(len) = self.host.recv(&mut buffer) {
            heard.push(String::from_utf8(buffer[..len].to_vec()).unwrap());
        }
        heard
    }
}

#[test]
fn frames_wait_for_their_epoch_and_leave_with_the_call() {
    let rig = rig(Mode::Holding);
    rig.outlet.emit(frame("a"));
    rig.outlet.emit(frame("b"));
    assert_eq!(rig.outlet.seal(Epoch::new(1)), [frame("a"), frame("b")]);
    rig.outlet.emit(frame("c"));
    assert_eq!(rig.heard(), [""; 0]);
    assert_eq!(rig.outlet.stats().held_frames, 3);
    rig.outlet.release(Epoch::new(1), Instant::now());
    assert_eq!(rig.heard(), ["a", "b"]);
    rig.outlet.pass();
    rig.outlet.inject(vec![frame("d")]);
    assert_eq!(rig.heard(), ["c", "d"]);
    let stats = rig.outlet.stats();
    assert_eq!((stats.held_frames, stats.held_bytes, stats.released_frames), (0, 0, 4));
}

#[test]
fn a_decision_that_is_too_old_needs_to_be_confirmed() {
    let rig = rig(Mode::Holding);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    rig.outlet.emit(frame("a"));
    rig.outlet.seal(Epoch::new(1));
    rig.outlet.emit(frame("b"));
    rig.outlet.seal(Epoch::new(2));
    rig.outlet.release(Epoch::new(1), long_ago);
    rig.outlet.release(Epoch::new(2), Instant::now());
    assert_eq!(rig.heard(), [""; 0]);
    assert!(rig.outlet.stats().stale);
    assert_eq!(rig.stale.load(Ordering::SeqCst), 1);
    // An answer of the arbiter that is itself old changes nothing.
    rig.outlet.confirm(long_ago);
    assert_eq!(rig.heard(), [""; 0]);
    assert_eq!(rig.stale.load(Ordering::SeqCst), 2);
    rig.outlet.confirm(Instant::now());
    assert_eq!(rig.heard(), ["a", "b"]);
    assert!(!rig.outlet.stats().stale);
}

#[test]
fn passing_needs_no_decision() {
    let rig = rig(Mode::Passing);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    rig.outlet.release(Epoch::new(1), long_ago);
    assert!(rig.outlet.seal(Epoch::new(2)).is_empty());
    rig.outlet.emit(frame("a"));
    assert_eq!(rig.heard(), ["a"]);
}

#[test]
fn a_shell_says_nothing_of_the_guest_before() {
    let rig = rig(Mode::Holding);
    rig.outlet.emit(frame("a"));
    rig.outlet.fence();
    // Who announces the guest may not have noticed yet that it has gone.
    assert_eq!(rig.outlet.speak(0, b"x"), Err(SpeakError::Fenced));
    rig.outlet.emit_console(b"gone\n");
    rig.outlet.reopen();
    assert_eq!(rig.heard(), [""; 0]);
    rig.outlet.emit(frame("b"));
    rig.outlet.emit_console(b"here\n");
    assert_eq!(rig.heard(), ["b"]);
    assert_eq!(rig.outlet.console_since(0), (b"here\n".to_vec(), 5));
    let stats = rig.outlet.stats();
    assert_eq!((stats.mode, stats.dropped_frames, stats.held_bytes), (Mode::Passing, 1, 0));
}

#[test]
fn a_stale_release_that_is_fenced_never_leaves() {
    let rig = rig(Mode::Holding);
    assert_eq!(rig.outlet.speak(0, b"x"), Ok(()), "it is held");
    rig.outlet.emit(frame("a"));
    rig.outlet.seal(Epoch::new(1));
    rig.outlet.release(Epoch::new(1), Instant::now().checked_sub(Duration::from_secs(1)).unwrap());
    rig.outlet.fence();
    rig.outlet.confirm(Instant::now());
    rig.outlet.pass();
    rig.outlet.emit(frame("b"));
    assert_eq!(rig.outlet.speak(0, b"c"), Err(SpeakError::Fenced));
    assert_eq!(rig.heard(), [""; 0]);
    assert_eq!(rig.outlet.stats().dropped_frames, 3);
}

#[test]
fn order_holds_with_many_threads_and_a_slow_cable() {
    const FRAMES: usize = 2000;
    let rig = rig(Mode::Passing);
    let threads: Vec<_> = ["x", "y"]
        .map(|who| {
            let outlet = Arc::clone(&rig.outlet);
            std::thread::spawn(move || {
                (0..FRAMES).for_each(|n| outlet.emit(frame(&format!("{who}{n}"))));
            })
        })
        .into();
    // The socket's buffer is far smaller, so that writes block meanwhile.
    let mut heard = Vec::new();
    while heard.len() < 2 * FRAMES {
        heard.extend(rig.heard());
        std::thread::yield_now();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for who in ["x", "y"] {
        let of_one: Vec<_> = heard.iter().filter(|frame| frame.starts_with(who)).collect();
        let expected: Vec<_> = (0..FRAMES).map(|n| format!("{who}{n}")).collect();
        assert!(of_one.into_iter().eq(expected.iter()), "{who} is out of order");
    }
}

#[test]
fn nothing_is_written_once_fence_has_returned() {
    for round in 0..20 {
        let rig = rig(Mode::Passing);
        let outlet = Arc::clone(&rig.outlet);
        let emitter = std::thread::spawn(move || {
            let mut emitted = 0_u64;
            while outlet.stats().mode != Mode::Fenced {
                outlet.emit(frame("x"));
                emitted += 1;
            }
            (0..100).for_each(|_| outlet.emit(frame("x")));
            emitted
        });
        while rig.outlet.stats().released_frames < round {
            rig.heard();
        }
        rig.outlet.fence();
        rig.heard();
        emitter.join().unwrap();
        assert_eq!(rig.heard(), [""; 0], "round {round}");
    }
}

#[test]
fn a_fence_waits_for_the_frame_that_is_being_written() {
    let rig = rig(Mode::Passing);
    let writing = lock(&rig.outlet.shared.taps);
    let outlet = Arc::clone(&rig.outlet);
    let fence = std::thread::spawn(move || outlet.fence());
    while rig.outlet.stats().mode != Mode::Fenced {
        std::thread::yield_now();
    }
    // A fence that does not wait would be done by now.
    std::thread::sleep(Duration::from_millis(20));
    assert!(!fence.is_finished());
    drop(writing);
    fence.join().unwrap();
}

#[test]
fn a_frame_that_meets_another_drain_is_not_left_behind() {
    const ROUNDS: usize = 5000;
    let rig = rig(Mode::Passing);
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let emit = |outlet: &Outlet, barrier: &std::sync::Barrier| {
        barrier.wait();
        outlet.emit(frame("x"));
        barrier.wait();
    };
    let (outlet, other) = (Arc::clone(&rig.outlet), Arc::clone(&barrier));
    let thread = std::thread::spawn(move || (0..ROUNDS).for_each(|_| emit(&outlet, &other)));
    for round in 0..ROUNDS {
        emit(&rig.outlet, &barrier);
        assert_eq!(rig.heard(), ["x", "x"], "round {round}");
    }
    thread.join().unwrap();
}

#[test]
fn console_bytes_are_gathered_to_lines_and_sealed_with_their_epoch() {
    let rig = rig(Mode::Holding);
    let console = |text: &str| Output { channel: Channel::Console, ..frame(text) };
    b"one\ntwo".iter().for_each(|byte| rig.outlet.emit_console(&[*byte]));
    let held_bytes = console("one\n").held_bytes() + "two".len();
    assert_eq!(rig.outlet.stats().held_bytes, held_bytes);
    assert_eq!(rig.outlet.seal(Epoch::new(1)), [console("one\n"), console("two")]);
    rig.outlet.emit_console(b"!");
    assert_eq!(rig.outlet.console_since(0), (vec![], 0));
    rig.outlet.release(Epoch::new(1), Instant::now());
    assert_eq!(rig.outlet.console_since(0), (b"one\ntwo".to_vec(), 7));
    rig.outlet.pass();
    assert_eq!(rig.outlet.console_since(7), (b"!".to_vec(), 8));
    assert_eq!(rig.outlet.console_since(99), (vec![], 8));
    rig.outlet.emit_console(&vec![b'.'; CONSOLE_BYTES_MAX]);
    let (bytes, end) = rig.outlet.console_since(0);
    assert_eq!((bytes.len(), end), (CONSOLE_BYTES_MAX, 8 + CONSOLE_BYTES_MAX as u64));
}

struct StuckSink(mpsc::Receiver<()>);

impl Write for StuckSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_console_delays_neither_packets_nor_a_fence() {
    let (unstick, stuck) = mpsc::channel();
    let rig = rig_with_sink(Mode::Passing, Box::new(StuckSink(stuck)));
    rig.outlet.emit_console(b"hello\n");
    rig.outlet.emit(frame("a"));
    assert_eq!(rig.heard(), ["a"]);
    assert_eq!(rig.outlet.console_since(0).0, b"hello\n");
    rig.outlet.fence();
    drop(rig);
    drop(unstick);
}
