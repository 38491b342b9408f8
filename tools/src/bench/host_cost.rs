//! What a process costs its host: time of its threads, bytes on its link.

use std::{
    fs, io,
    ops::{Add, Sub},
    time::Duration,
};

/// Time on a processor since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CpuTime {
    /// Of the threads that run the guest.
    pub(super) vcpus: Duration,
    /// Of all others.
    pub(super) rest: Duration,
}

impl Add for CpuTime {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { vcpus: self.vcpus + more.vcpus, rest: self.rest + more.rest }
    }
}

impl Sub for CpuTime {
    type Output = Self;

    /// Threads that ended in between take their time along.
    fn sub(self, before: Self) -> Self {
        let vcpus = self.vcpus.saturating_sub(before.vcpus);
        Self { vcpus, rest: self.rest.saturating_sub(before.rest) }
    }
}

/// Of the threads that `pid` has now.
///
/// # Errors
///
/// If there is no such process.
pub(super) fn cpu_time(pid: u32) -> io::Result<CpuTime> {
    let mut sum = CpuTime::default();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let folder = thread?.path();
        // A thread may end while it is looked at.
        let (Ok(name), Ok(times)) =
            (fs::read_to_string(folder.join("comm")), fs::read_to_string(folder.join("schedstat")))
        else {
            continue;
        };
        let ns = times.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let spent = Duration::from_nanos(ns);
        sum = sum
            + if name.starts_with("vcpu-") {
                CpuTime { vcpus: spent, ..CpuTime::default() }
            } else {
                CpuTime { rest: spent, ..CpuTime::default() }
            };
    }
    Ok(sum)
}

/// Bytes received and sent by `device` in the network namespace of `pid`, all
/// headers included.
///
/// # Errors
///
/// If there is no such process or device.
pub(super) fn link_bytes(pid: u32, device: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    bytes_of(&text, device).ok_or_else(|| io::Error::other(format!("no device {device}")))
}

/// Resident memory of `pid` beside its guest's, in MiB. The guest's mappings are
/// known by their size: nothing else is half as large as `guest_mib`.
///
/// # Errors
///
/// If there is no such process.
pub(super) fn memory_beside_mib(pid: u32, guest_mib: u32) -> io::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(beside_kib(&text, u64::from(guest_mib) * 1024) as f64 / 1024.0)
}

/// Reads the form of `/proc/PID/smaps`: `Size:` comes before `Rss:` of a mapping.
fn beside_kib(text: &str, guest_kib: u64) -> u64 {
    let (mut sum, mut size) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (name, figure) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        match (name, figure) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Rss:"), Some(kib)) if size < guest_kib / 2 => sum += kib,
            _ => {}
        }
    }
    sum
}

/// Reads the form of `/proc/net/dev`.
fn bytes_of(text: &str, device: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))?;
    let mut figures = line.split_whitespace();
    let received: u64 = figures.next()?.parse().ok()?;
    // Of 16 figures, the first is bytes received, the ninth bytes sent.
    let sent: u64 = figures.nth(7)?.parse().ok()?;
    Some(received + sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_a_device_are_counted() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n\
                    repl01: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n \
                    repl0: 100 2 0 0 0 0 0 0 23 4 0 0 0 0 0 0\n";
        assert_eq!(bytes_of(text, "repl0"), Some(123));
        assert_eq!(bytes_of(text, "lan0"), None);
    }

    #[test]
    fn the_guest_s_mappings_do_not_count() {
        let mapping = |size: u64, rss: u64| {
            format!("7f00-7fff rw-p 00000000 00:00 0\nSize: {size} kB\nRss: {rss} kB\nPss: 1 kB\n")
        };
        let text = [mapping(132, 100), mapping(524_288, 400_000), mapping(4096, 23)].concat();
        assert_eq!(beside_kib(&text, 524_288), 123);
    }

    #[test]
    fn a_thread_named_vcpu_is_told_from_the_rest() {
        let (begin, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let before = cpu_time(std::process::id()).unwrap();
        let thread = std::thread::Builder::new().name("vcpu-0".into()).spawn(move || {
            let mut sum = 0_u64;
            for number in 0..20_000_000_u64 {
                sum = std::hint::black_box(sum ^ number);
            }
            let _ = begin.send(sum);
            let _ = ended.recv();
        });
        begun.recv().unwrap();
        let spent = cpu_time(std::process::id()).unwrap() - before;
        drop(end);
        thread.unwrap().join().unwrap();
        assert!(spent.vcpus > Duration::ZERO, "{spent:?}");
    }
}
