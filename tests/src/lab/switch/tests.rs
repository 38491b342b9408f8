//! The switch with sockets, and no machines.

use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_millis(100);

/// A machine that is only a cable.
struct Cable {
    stream: UnixStream,
    mac: u8,
}

impl Cable {
    fn plug(folder: &Path, name: &str, mac: u8) -> Self {
        let stream = UnixStream::connect(folder.join(name)).unwrap();
        Self { stream, mac }
    }

    fn send(&mut self, to: u8, word: &[u8]) {
        let frame = [&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, self.mac, 8, 0][..], word].concat();
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.stream.write_all(&[&length[..], &frame[..]].concat()).unwrap();
    }

    /// The next frame's payload, if one comes in time.
    fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        let mut length = [0; LENGTH_BYTES];
        self.stream.read_exact(&mut length).ok()?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame).ok()?;
        Some(frame[14..].to_vec())
    }
}

/// Two cables, both of which the switch has heard.
fn two(folder: &Path) -> (Switch, Cable, Cable) {
    let mut switch = Switch::new(1);
    for name in ["a", "b"] {
        switch.add_port(name, &folder.join(name)).unwrap();
    }
    let (mut a, mut b) = (Cable::plug(folder, "a", 1), Cable::plug(folder, "b", 2));
    meet(&mut a, &mut b);
    (switch, a, b)
}

/// Repeats until both hear each other: a port opens some time after the plug.
fn meet(a: &mut Cable, b: &mut Cable) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        a.send(2, b"hello");
        if b.receive(SILENCE).is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "b heard nothing");
    }
    b.send(1, b"hello yourself");
    assert_eq!(a.receive(PATIENCE).unwrap(), b"hello yourself");
    while b.receive(SILENCE).is_some() {}
}

#[test]
fn frames_pass_and_cuts_swallow_them() {
    let folder = tempfile::tempdir().unwrap();
    let (switch, mut a, mut b) = two(folder.path());
    switch.cut("b", Direction::Incoming);
    a.send(2, b"lost");
    assert_eq!(b.receive(SILENCE), None);
    b.send(1, b"one way");
    assert_eq!(a.receive(PATIENCE).unwrap(), b"one way");
    switch.heal("b");
    a.send(2, b"healed");
    assert_eq!(b.receive(PATIENCE).unwrap(), b"healed");
    assert_eq!(switch.counts("b").lost, 1);
}

#[test]
fn a_machine_that_goes_may_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let (_switch, mut a, b) = two(folder.path());
    drop(b);
    let mut b = Cable::plug(folder.path(), "b", 2);
    meet(&mut a, &mut b);
}

#[test]
fn a_delay_holds_frames_back() {
    let folder = tempfile::tempdir().unwrap();
    let (switch, mut a, mut b) = two(folder.path());
    let late = Impairment { delay: Duration::from_millis(300), ..Impairment::default() };
    switch.impair("a", Direction::Outgoing, late);
    let sent = Instant::now();
    a.send(2, b"late");
    assert_eq!(b.receive(PATIENCE).unwrap(), b"late");
    assert!(sent.elapsed() >= late.delay);
}

#[test]
fn a_machine_whose_framing_is_lost_is_cut_off_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_switch, mut a, mut b) = two(folder.path());
    a.stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(a.stream.read(&mut [0]).unwrap(), 0, "its link is down");
    let mut a = Cable::plug(folder.path(), "a", 1);
    meet(&mut a, &mut b);
}

#[test]
fn a_switch_that_is_dropped_leaves_no_thread_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let (switch, mut a, _) = two(folder.path());
    drop(switch);
    assert_eq!(a.stream.read(&mut [0]).unwrap(), 0);
}
