//! Who speaks with the guest's voice, as the network's switch sees it.
//!
//! A witness of its own, that knows nothing of terms and daemons: it counts the
//! frames that come out of each host's port of the guests' network. Nobody but
//! the guest says anything there, so a change of the port that frames come from
//! is a change of who runs the guest.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

/// How often the counters are read.
const LOOK: Duration = Duration::from_millis(2);

/// What has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Heard {
    /// The port that spoke last.
    pub(super) last: Option<u8>,
    /// How often another port spoke than the one before.
    pub(super) changes: u64,
}

/// Counts until it is dropped.
#[derive(Debug)]
pub(super) struct Voices {
    heard: Arc<Mutex<Heard>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Voices {
    /// Watches the ports `lan-1`, `lan-2` … of the switch whose namespace has
    /// the file `namespace`.
    ///
    /// # Errors
    ///
    /// If there is no such namespace, or we may not enter it.
    pub(super) fn of(namespace: &Path) -> io::Result<Self> {
        let namespace = File::open(namespace)?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let ended = Arc::new(AtomicBool::new(false));
        let (entered, is_in) = mpsc::channel();
        let (of_thread, until) = (heard.clone(), ended.clone());
        let thread = std::thread::Builder::new().name("voices".into()).spawn(move || {
            let entering = setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            let is_in = entering.is_ok();
            let _ = entered.send(entering);
            let mut counts = BTreeMap::new();
            while is_in && !until.load(Ordering::Relaxed) {
                if let Ok(text) = fs::read_to_string("/proc/thread-self/net/dev") {
                    let mut heard = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
                    listen(&mut heard, &mut counts, &text);
                }
                std::thread::sleep(LOOK);
            }
        })?;
        let voices = Self { heard, ended, thread: Some(thread) };
        is_in.recv().unwrap_or_else(|_| Err(io::Error::other("the witness fell")))?;
        Ok(voices)
    }

    pub(super) fn heard(&self) -> Heard {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Voices {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes one look, in the form of `/proc/net/dev`, into account.
fn listen(heard: &mut Heard, counts: &mut BTreeMap<u8, u64>, text: &str) {
    let mut spoke = Vec::new();
    for line in text.lines() {
        let Some((name, figures)) = line.trim().split_once(':') else { continue };
        let Some(Ok(port)) = name.strip_prefix("lan-").map(str::parse) else { continue };
        let Some(Ok(frames)) = figures.split_whitespace().nth(1).map(str::parse) else { continue };
        if counts.insert(port, frames).is_some_and(|before| before < frames) {
            spoke.push(port);
        }
    }
    // Between two looks, the one who spoke before did so first.
    spoke.sort_by_key(|port| Some(*port) != heard.last);
    for port in spoke {
        heard.changes += u64::from(heard.last.is_some_and(|last| last != port));
        heard.last = Some(port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(first: u64, second: u64) -> String {
        format!(
            "Inter-|   Receive\n face |bytes    packets\n    lo:  1 9 0 0\n lan-1: 100 {first} 0\n\
             lan-2: 77 {second} 0\nlan-cli: 5 1000 0\n"
        )
    }

    #[test]
    fn a_change_of_voice_is_counted_and_a_stray_word_is_two() {
        let (mut heard, mut counts) = (Heard::default(), BTreeMap::new());
        let mut hear = |first, second| {
            listen(&mut heard, &mut counts, &look(first, second));
            heard
        };
        assert_eq!(hear(5, 0), Heard::default(), "the first look tells nothing");
        assert_eq!(hear(6, 0), Heard { last: Some(1), changes: 0 });
        assert_eq!(hear(9, 3), Heard { last: Some(2), changes: 1 }, "one after the other");
        assert_eq!(hear(9, 4), Heard { last: Some(2), changes: 1 });
        assert_eq!(hear(10, 4), Heard { last: Some(1), changes: 2 });
        assert_eq!(hear(10, 5), Heard { last: Some(2), changes: 3 });
    }
}
