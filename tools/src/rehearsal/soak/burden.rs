//! Memory and processors that others want, too.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

const PAGE_BYTES: usize = 4096;

/// Takes what it was told to until it is dropped.
#[derive(Debug)]
pub(super) struct Burden {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burden {
    /// Holds, and has written, `percent` of the memory that is available now.
    pub(super) fn memory(percent: u8) -> Self {
        let bytes = available_bytes() / 100 * usize::from(percent);
        Self::new(1, move |ended| {
            let mut taken: Vec<u8> = Vec::new();
            if taken.try_reserve_exact(bytes).is_ok() {
                while taken.len() + PAGE_BYTES <= bytes && !ended.load(Ordering::Relaxed) {
                    taken.resize(taken.len() + PAGE_BYTES, 1);
                }
            }
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
        })
    }

    /// Keeps `threads` threads busy.
    pub(super) fn processors(threads: u8) -> Self {
        Self::new(threads, |ended| {
            while !ended.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        })
    }

    fn new(count: u8, work: impl Fn(&AtomicBool) + Clone + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let spawn = |_| {
            let (work, ended) = (work.clone(), ended.clone());
            std::thread::spawn(move || work(&ended))
        };
        Self { threads: (0..count).map(spawn).collect(), ended }
    }
}

impl Drop for Burden {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn available_bytes() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}
