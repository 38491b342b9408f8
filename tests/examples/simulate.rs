//! Runs the cluster simulation: one seed with everything that happens, or many
//! on all cores.
//!
//! ```text
//!   simulate seed 17 [MUTATION]      one seed, told; with a deliberate bug
//!   simulate mutations [SEEDS]       after how many seeds each bug is found
//!   simulate soak [--from SEED] [--seeds N] [--minutes N] [--threads N] [--keep FILE]
//! ```
//!
//! A soak ends after so many seeds or minutes, whichever comes first, keeps the
//! seeds that failed in a file, one a line with the reason, and ends with 1 if
//! there were any.

use std::{
    fs::OpenOptions,
    io::Write,
    num::NonZero,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use romulus_tests::simulation::{Mutation, Plan, Report, attempt};

const USAGE: &str = "usage: simulate seed SEED [MUTATION] | mutations [SEEDS] \
    | soak [--from SEED] [--seeds N] [--minutes N] [--threads N] [--keep FILE]";
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// Failures that are printed; all are kept.
const FAILURES_TOLD: u64 = 20;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match &words[..] {
        ["seed", seed] => parse(seed).and_then(|seed| tell(seed, None)),
        ["seed", seed, name] => {
            parse(seed).and_then(|seed| named(name).and_then(|bug| tell(seed, Some(bug))))
        }
        ["mutations"] => mutations(4_000),
        ["mutations", seeds] => parse(seeds).and_then(mutations),
        ["soak", options @ ..] => Soak::parse(options).and_then(Soak::run),
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

fn parse(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word} is no number\n{USAGE}"))
}

fn named(name: &str) -> Result<Mutation, String> {
    let found = Mutation::ALL.iter().find(|mutation| format!("{mutation:?}") == name);
    found.copied().ok_or_else(|| format!("no mutation is called {name}: {:?}", Mutation::ALL))
}

/// One seed, with what happens in it.
fn tell(seed: u64, mutation: Option<Mutation>) -> Result<bool, String> {
    println!("{:#?}", Plan::draw(seed));
    match attempt(seed, mutation, true) {
        Ok(report) => {
            println!("seed {seed}: {report}");
            Ok(true)
        }
        Err(why) => {
            println!("seed {seed} fails: {why}");
            Ok(false)
        }
    }
}

/// How many seeds it takes to find each deliberate bug.
fn mutations(seeds_max: u64) -> Result<bool, String> {
    be_quiet();
    let mut all = true;
    for mutation in Mutation::ALL {
        let find = |seed| attempt(seed, Some(*mutation), false).err().map(|why| (seed + 1, why));
        let found = (0..seeds_max).find_map(find);
        all &= found.is_some();
        match found {
            Some((seeds, why)) => println!("{mutation:?}: {mutation}: {seeds} seeds: {why}"),
            None => println!("{mutation:?}: {mutation}: NOT FOUND in {seeds_max} seeds"),
        }
    }
    Ok(all)
}

/// Panics are findings, not news for the terminal.
fn be_quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

struct Soak {
    from: u64,
    seeds: u64,
    until: Option<Instant>,
    threads: usize,
    keep: Option<String>,
    begun: Instant,
    next: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
    total: Mutex<Report>,
}

impl Soak {
    fn parse(options: &[&str]) -> Result<Self, String> {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        let mut soak = Self {
            // Another range every time.
            from: since_epoch << 24,
            seeds: u64::MAX >> 8,
            until: None,
            threads: thread::available_parallelism().map_or(1, NonZero::get),
            keep: None,
            begun: Instant::now(),
            next: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            over: AtomicBool::new(false),
            total: Mutex::default(),
        };
        let mut bounded = false;
        for pair in options.chunks(2) {
            let [option, value] = pair else { return Err(USAGE.to_owned()) };
            match *option {
                "--from" => soak.from = parse(value)?,
                "--seeds" => soak.seeds = parse(value)?,
                "--minutes" => {
                    soak.until = Some(soak.begun + Duration::from_secs(60 * parse(value)?));
                }
                "--threads" => soak.threads = parse(value)? as usize,
                "--keep" => soak.keep = Some((*value).to_owned()),
                _ => return Err(USAGE.to_owned()),
            }
            bounded |= matches!(*option, "--seeds" | "--minutes");
        }
        if bounded { Ok(soak) } else { Err(format!("how long?\n{USAGE}")) }
    }

    fn run(self) -> Result<bool, String> {
        be_quiet();
        println!("seeds from {} on {} threads", self.from, self.threads);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads).map(|_| scope.spawn(|| self.work())).collect();
            let mut told = Instant::now();
            while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(50));
                if self.until.is_some_and(|until| until <= Instant::now()) {
                    self.over.store(true, Ordering::Relaxed);
                }
                if told.elapsed() >= PROGRESS {
                    told = Instant::now();
                    println!("{}", self.progress());
                }
            }
        });
        println!("{}", self.progress());
        println!("{}", self.total.lock().expect("no holder panics"));
        Ok(self.failed.load(Ordering::Relaxed) == 0)
    }

    fn progress(&self) -> String {
        let done = self.next.load(Ordering::Relaxed).min(self.seeds);
        let seconds = self.begun.elapsed().as_secs_f64();
        let failed = self.failed.load(Ordering::Relaxed);
        let rate = done as f64 / seconds;
        format!("{done} seeds in {seconds:.0} s, {rate:.0} a second, {failed} failed")
    }

    fn work(&self) {
        let mut own = Report::default();
        while !self.over.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.seeds {
                break;
            }
            let seed = self.from + index;
            match attempt(seed, None, false) {
                Ok(report) => own += report,
                Err(why) => self.note(seed, &why),
            }
        }
        *self.total.lock().expect("no holder panics") += own;
    }

    fn note(&self, seed: u64, why: &str) {
        // One at a time, so that lines stay whole.
        let total = self.total.lock().expect("no holder panics");
        if self.failed.fetch_add(1, Ordering::Relaxed) < FAILURES_TOLD {
            println!("seed {seed} fails: {why}");
        }
        if let Some(path) = &self.keep {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let kept = file.and_then(|mut file| writeln!(file, "{seed} {why}"));
            if let Err(error) = kept {
                eprintln!("{path} does not take seed {seed}: {error}");
            }
        }
        drop(total);
    }
}
