//! A disk whose power fails.
//!
//! What is written lies in the page cache until it is flushed. A process that
//! dies leaves the cache; a host that loses power leaves, of every file that
//! was not flushed, what was there before, all of it, a part or garbage, and of
//! renames that were not flushed the first few or none.
//!
//! ```text
//!   the cache   register ─▶ file 3        durable   register ─▶ file 2
//!               files: content, flushed or not
//! ```

use std::{
    cell::RefCell,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use arbiter::Disk;

use crate::simulation::{chance::Chance, witness::Durable};

#[derive(Debug, Default, Clone)]
struct File {
    cached: Vec<u8>,
    durable: Vec<u8>,
    flushed: bool,
}

/// How a step on the disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulation) enum Trouble {
    /// The system says so, and the process lives.
    Error,
    /// The process dies in the middle of it.
    Death,
}

#[derive(Debug)]
struct Platters {
    files: Vec<File>,
    /// What is in place, and what is beside it, as everybody sees it.
    cached: [Option<usize>; 2],
    durable: [Option<usize>; 2],
    /// After so many steps, once.
    trouble: Option<(u32, Trouble)>,
    dead: bool,
    habit: Habit,
}

/// How the disk does what it is told: well, or with a bug that was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulation) enum Habit {
    Sound,
    /// Flushes do nothing.
    NoFlush,
    /// Nor do flushes of the folder.
    NoFolderFlush,
    /// The new file is the old one, written over.
    InPlace,
}

/// A handle of the disk; clones are the same one.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct SimulatedDisk {
    path: PathBuf,
    platters: Rc<RefCell<Platters>>,
}

const IN_PLACE: usize = 0;
const BESIDE: usize = 1;

impl SimulatedDisk {
    pub(in crate::simulation) fn new(habit: Habit) -> Self {
        let platters = Platters {
            files: Vec::new(),
            cached: [None; 2],
            durable: [None; 2],
            trouble: None,
            dead: false,
            habit,
        };
        Self { path: "register".into(), platters: Rc::new(RefCell::new(platters)) }
    }

    /// After so many steps there will be trouble.
    pub(in crate::simulation) fn plan_trouble(&self, steps: u32, trouble: Trouble) {
        self.platters.borrow_mut().trouble = Some((steps, trouble));
    }

    /// Whether the process has died in a step, as was planned.
    pub(in crate::simulation) fn is_dead(&self) -> bool {
        self.platters.borrow().dead
    }

    /// A new process: what was cached is there.
    pub(in crate::simulation) fn revive(&self) {
        let mut platters = self.platters.borrow_mut();
        platters.dead = false;
        platters.trouble = None;
    }

    /// Somebody removes the file.
    pub(in crate::simulation) fn remove(&self) {
        let mut platters = self.platters.borrow_mut();
        platters.cached[IN_PLACE] = None;
        platters.durable[IN_PLACE] = None;
    }

    /// The host loses power and starts again.
    pub(in crate::simulation) fn lose_power(&self, chance: &mut Chance) {
        let mut platters = self.platters.borrow_mut();
        for file in &mut platters.files {
            if !file.flushed {
                file.cached = match chance.below(4) {
                    0 => file.durable.clone(),
                    1 => file.cached.clone(),
                    2 => file.cached[..chance.index(file.cached.len() + 1)].to_vec(),
                    _ => vec![0; file.cached.len()],
                };
            }
            file.durable = file.cached.clone();
            file.flushed = true;
        }
        if chance.hits(500) {
            platters.durable = platters.cached;
        }
        platters.cached = platters.durable;
    }

    /// Lets `look` look at the file in place as everybody sees it, and at all
    /// that could be in place after a loss of power.
    pub(in crate::simulation) fn look<T>(
        &self,
        look: impl FnOnce(Option<&[u8]>, &[Durable<'_>]) -> T,
    ) -> T {
        let platters = self.platters.borrow();
        let mut possible = Vec::new();
        let mut places = vec![platters.durable[IN_PLACE]];
        if platters.cached[IN_PLACE] != platters.durable[IN_PLACE] {
            places.push(platters.cached[IN_PLACE]);
        }
        for place in places {
            let Some(file) = place.map(|file| &platters.files[file]) else {
                possible.push(Durable { octets: None });
                continue;
            };
            possible.push(Durable { octets: Some(&file.durable) });
            if !file.flushed {
                // In the middle between the old and the new.
                possible.push(Durable { octets: Some(&file.cached[..file.cached.len() / 2]) });
                possible.push(Durable { octets: Some(&file.cached) });
            }
        }
        let seen = platters.cached[IN_PLACE].map(|file| &platters.files[file].cached[..]);
        look(seen, &possible)
    }

    /// One step; fails if there is trouble with it.
    fn step<T>(&self, step: impl FnOnce(&mut Platters, bool) -> T) -> io::Result<T> {
        let mut platters = self.platters.borrow_mut();
        let trouble = match &mut platters.trouble {
            Some((0, trouble)) => Some(*trouble),
            Some((steps, _)) => {
                *steps -= 1;
                None
            }
            None => None,
        };
        if platters.dead {
            return Err(io::Error::other("this process is dead"));
        }
        let done = step(&mut platters, trouble.is_some());
        match trouble {
            None => Ok(done),
            Some(trouble) => {
                platters.trouble = None;
                platters.dead = trouble == Trouble::Death;
                Err(io::Error::other("the disk is full"))
            }
        }
    }
}

impl Disk for SimulatedDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> io::Result<Option<u64>> {
        let platters = self.platters.borrow();
        Ok(platters.cached[IN_PLACE].map(|file| platters.files[file].cached.len() as u64))
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let platters = self.platters.borrow();
        let file = platters.cached[IN_PLACE].ok_or(io::ErrorKind::NotFound)?;
        Ok(platters.files[file].cached.clone())
    }

    fn begin_beside(&mut self) -> io::Result<()> {
        self.step(|platters, _| {
            let old = platters.cached[IN_PLACE].filter(|_| platters.habit == Habit::InPlace);
            platters.cached[BESIDE] = old.or_else(|| {
                platters.files.push(File::default());
                Some(platters.files.len() - 1)
            });
        })
    }

    fn write_beside(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.step(|platters, fails| {
            let file = platters.cached[BESIDE].expect("a file was begun");
            let written = if fails { bytes.len() / 3 } else { bytes.len() };
            platters.files[file].cached = bytes[..written].to_vec();
            platters.files[file].flushed = false;
        })
    }

    fn flush_beside(&mut self) -> io::Result<()> {
        self.step(|platters, fails| {
            let file = platters.cached[BESIDE].expect("a file was begun");
            let habit = platters.habit;
            let file = &mut platters.files[file];
            if !fails && habit != Habit::NoFlush {
                file.durable = file.cached.clone();
                file.flushed = true;
            }
        })
    }

    fn rename(&mut self) -> io::Result<()> {
        self.step(|platters, fails| {
            if !fails {
                platters.cached[IN_PLACE] = platters.cached[BESIDE].take();
            }
        })
    }

    fn flush_folder(&mut self) -> io::Result<()> {
        self.step(|platters, fails| {
            if !fails && !matches!(platters.habit, Habit::NoFlush | Habit::NoFolderFlush) {
                platters.durable = platters.cached;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use arbiter::{
        FileStore, NodeId, Operation, Outcome, Register, Request, Stamp, Store, StoreError, Term,
        VmId,
    };

    use super::*;

    fn vm() -> VmId {
        "web-1".parse().unwrap()
    }

    fn claim(store: &mut impl Store, expected: Option<Register>) -> Result<Outcome, StoreError> {
        let caller: NodeId = "a".parse().unwrap();
        let operation = if expected.is_some() { Operation::Restart } else { Operation::Create };
        let stamp = Stamp::new(expected.as_ref().map_or(0, |register| register.term.get()));
        store.execute(&vm(), &Request { caller, expected, operation, stamp })
    }

    /// Dies at every step of a change, by the loss of the process or of power:
    /// what is found is the old register or the new one, and the new one if
    /// anybody was answered.
    #[test]
    fn a_death_at_any_step_leaves_the_old_register_or_the_new() {
        for (steps, seed) in (0..6).flat_map(|steps| (0..40).map(move |seed| (steps, seed))) {
            let disk = SimulatedDisk::new(Habit::Sound);
            let mut store = FileStore::on(disk.clone()).unwrap();
            let Ok(Outcome::Set(first)) = claim(&mut store, None) else { panic!("claimed first") };
            disk.plan_trouble(steps, Trouble::Death);
            let answered = claim(&mut store, Some(first)).is_ok();
            assert_eq!(answered, steps >= 5, "five steps are a change");
            disk.revive();
            if seed > 0 {
                disk.lose_power(&mut Chance::new(seed));
            }
            let found = FileStore::on(disk.clone()).unwrap().load(&vm()).unwrap().unwrap();
            let expected = if answered { [2, 2] } else { [1, 2] }.map(Term::new);
            assert!(expected.contains(&found.register.term), "step {steps}, seed {seed}");
        }
    }

    /// Fails at every step of a change, and goes on by itself: the old register is
    /// in force or the new one, and stays so when power is lost.
    #[test]
    fn a_disk_that_failed_at_any_step_is_served_from_again() {
        for (steps, seed) in (0..5).flat_map(|steps| (0..40).map(move |seed| (steps, seed))) {
            let disk = SimulatedDisk::new(Habit::Sound);
            let mut store = FileStore::on(disk.clone()).unwrap();
            let Ok(Outcome::Set(first)) = claim(&mut store, None) else { panic!("claimed first") };
            disk.plan_trouble(steps, Trouble::Error);
            let told = claim(&mut store, Some(first.clone())).unwrap_err();
            let untouched = matches!(told, StoreError::Untouched { .. });
            assert_eq!(untouched, steps < 3, "step {steps}: {told:?}");
            // Trouble while it is found out, too.
            disk.plan_trouble(seed % 6, Trouble::Error);
            let served = store.load(&vm()).or_else(|_| store.load(&vm())).unwrap().unwrap();
            let expected = if steps < 4 { [1, 1] } else { [1, 2] }.map(Term::new);
            assert!(expected.contains(&served.register.term), "step {steps}: {served:?}");
            disk.revive();
            if seed % 2 == 0 {
                disk.lose_power(&mut Chance::new(seed.into()));
                let found = FileStore::on(disk.clone()).unwrap().load(&vm()).unwrap();
                assert_eq!(found, Some(served), "step {steps}, seed {seed}");
            } else {
                let next = claim(&mut store, Some(served.register.clone())).unwrap();
                let Outcome::Set(next) = next else { panic!("{next:?}") };
                assert_eq!(Some(next.term), served.register.term.next());
            }
        }
    }

    /// What a process served after it was started stays in force when power is
    /// lost then: the one before it may have died between the rename and the
    /// flush of the folder.
    #[test]
    fn what_is_served_after_a_start_is_durable() {
        let disk = SimulatedDisk::new(Habit::Sound);
        let mut store = FileStore::on(disk.clone()).unwrap();
        let Ok(Outcome::Set(first)) = claim(&mut store, None) else { panic!("claimed first") };
        disk.plan_trouble(4, Trouble::Death);
        claim(&mut store, Some(first)).unwrap_err();
        disk.revive();
        let served = FileStore::on(disk.clone()).unwrap().load(&vm()).unwrap();
        for seed in 0..20 {
            disk.lose_power(&mut Chance::new(seed));
            assert_eq!(FileStore::on(disk.clone()).unwrap().load(&vm()).unwrap(), served);
        }
    }
}
