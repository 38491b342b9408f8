//! Registers in one file on the arbiter's disk.
//!
//! ```text
//!   romulus-register 1 <BLAKE3 of the rest, 64 hex digits>\n
//!   { "web-1": { "register": {..}, "stamp": 7 }, .. }          JSON
//! ```
//!
//! Every change writes a whole new file beside the old one, flushes it, renames
//! it over the old one and flushes the directory; only then is the caller
//! answered. A crash leaves the old file or the new one, never a mixture. Which
//! of them it was is made durable before anything is served again. A file whose
//! digest does not match is refused, not repaired: serving an older register
//! could lower a term.

mod disk;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use disk::beside;
pub use disk::{Disk, OsDisk};

use crate::{Outcome, Record, Request, Store, StoreError, StoreId, VmId};

const MAGIC: &str = "romulus-register";
const VERSION: &str = "1";

/// Largest register file that is read, in bytes: some 100,000 VMs.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Why a register file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The disk failed.
    #[error("cannot {action} {path}: check the disk and its permissions", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what a store wrote.
    #[error(
        "register file {path} is damaged ({what}): restore it from a copy that is not older, or make sure that no node of its VMs runs and delete it",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another arbiter has the file.
    #[error("register file {path} is in use by another arbiter: stop that one first", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// An earlier write failed half-way, so memory and disk may differ.
    #[error("register file {path} could not be written before: restart the arbiter when its disk is well", path = path.display())]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
}

/// A [`Store`] in one file. See the module's head for its format.
#[derive(Debug)]
pub struct FileStore<D = OsDisk> {
    disk: D,
    records: BTreeMap<VmId, Record>,
    poisoned: bool,
}

impl FileStore {
    /// Opens the register file at `path`, or begins an empty one.
    ///
    /// # Errors
    ///
    /// [`FileError::Damaged`] for a torn or corrupted file,
    /// [`FileError::InUse`] if another process holds it, [`FileError::Io`] if
    /// the disk fails.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::on(OsDisk::lock(path)?)
    }
}

impl<D: Disk> FileStore<D> {
    /// Opens the register file of `disk`, or begins an empty one.
    ///
    /// # Errors
    ///
    /// [`FileError::Damaged`] for a torn or corrupted file, [`FileError::Io`]
    /// if the disk fails.
    pub fn on(mut disk: D) -> Result<Self, FileError> {
        // The arbiter before may have died between its rename and the flush:
        // what is served must not go back when power is lost.
        disk.flush_folder().map_err(|source| FileError::Io {
            action: "flush the folder of",
            path: disk.path().to_owned(),
            source,
        })?;
        let records = match read(&disk)? {
            Some(bytes) => parse(&bytes).map_err(|what| damaged(&disk, what))?,
            None => BTreeMap::new(),
        };
        Ok(Self { disk, records, poisoned: false })
    }

    /// Whatever is asked of a store in doubt does not happen.
    fn require_sound(&self) -> Result<(), StoreError> {
        if self.poisoned {
            let path = self.disk.path().to_owned();
            return Err(StoreError::untouched(FileError::Poisoned { path }));
        }
        Ok(())
    }

    fn persist(&mut self) -> Result<(), FileError> {
        let staged = beside(self.disk.path(), "new");
        let fail = |action| {
            let path = staged.clone();
            move |source| FileError::Io { action, path, source }
        };
        self.disk.begin_beside().map_err(fail("create"))?;
        self.disk.write_beside(&render(&self.records)).map_err(fail("write"))?;
        self.disk.flush_beside().map_err(fail("flush"))?;
        self.disk.rename().map_err(fail("rename"))?;
        self.disk.flush_folder().map_err(fail("flush the folder of"))
    }
}

impl<D: Disk> Store for FileStore<D> {
    fn id(&self) -> Result<StoreId, StoreError> {
        Ok(StoreId::Own)
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        self.require_sound()?;
        Ok(self.records.get(vm).cloned())
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        self.require_sound()?;
        let current = self.records.get(vm);
        let outcome = request.decide(current)?;
        if let Outcome::Set(register) = &outcome
            && current.map(|record| &record.register) != Some(register)
        {
            let record = Record { register: register.clone(), stamp: request.stamp };
            self.records.insert(vm.clone(), record);
            // Whether a failed write reached the disk cannot be known; serve
            // nobody from a memory that may be ahead of it.
            self.persist().map_err(|error| {
                self.poisoned = true;
                StoreError::unknown(error)
            })?;
        }
        Ok(outcome)
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.require_sound()?;
        Ok(self.records.iter().map(|(vm, record)| (vm.clone(), record.clone())).collect())
    }
}

fn damaged(disk: &impl Disk, what: String) -> FileError {
    FileError::Damaged { path: disk.path().to_owned(), what }
}

fn read(disk: &impl Disk) -> Result<Option<Vec<u8>>, FileError> {
    let fail = |source| FileError::Io { action: "read", path: disk.path().to_owned(), source };
    let Some(bytes) = disk.bytes().map_err(fail)? else { return Ok(None) };
    if bytes > FILE_BYTES_MAX {
        let what = format!("{bytes} bytes, more than the {FILE_BYTES_MAX} that a store writes");
        return Err(damaged(disk, what));
    }
    disk.read().map(Some).map_err(fail)
}

fn render(records: &BTreeMap<VmId, Record>) -> Vec<u8> {
    let body = serde_json::to_string_pretty(records).expect("ids and numbers always render");
    let digest = blake3::hash(body.as_bytes()).to_hex();
    format!("{MAGIC} {VERSION} {digest}\n{body}").into_bytes()
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<VmId, Record>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not text".to_owned())?;
    let (head, body) = text.split_once('\n').ok_or("no first line")?;
    let [magic, version, digest] = head.split(' ').collect::<Vec<_>>()[..] else {
        return Err("its first line is not three words".to_owned());
    };
    if magic != MAGIC {
        return Err(format!("it does not begin with `{MAGIC}`"));
    }
    if version != VERSION {
        return Err(format!("it has version {version:?}, this arbiter reads {VERSION}"));
    }
    let expected = blake3::Hash::from_hex(digest).map_err(|_| "its digest is none".to_owned())?;
    if blake3::hash(body.as_bytes()) != expected {
        return Err("its digest does not match".to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{NodeId, Operation, Register, Stamp, Term};

    fn claim(path: &Path) -> (VmId, Register) {
        let vm: VmId = "web-1".parse().unwrap();
        let caller: NodeId = "node-a".parse().unwrap();
        let request =
            Request { caller, expected: None, operation: Operation::Create, stamp: Stamp::new(1) };
        let mut store = FileStore::open(path).unwrap();
        let Outcome::Set(register) = store.execute(&vm, &request).unwrap() else {
            panic!("a fresh VM could not be claimed");
        };
        (vm, register)
    }

    #[test]
    fn a_register_outlives_its_arbiter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        assert_eq!(register.term, Term::FIRST);
        let store = FileStore::open(&path).unwrap();
        assert_eq!(store.load(&vm).unwrap().unwrap().register, register);
        assert_eq!(store.list().unwrap().len(), 1);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        claim(&path);
        let sound = fs::read(&path).unwrap();
        for cut in 0..sound.len() {
            assert!(parse(&sound[..cut]).is_err(), "cut at {cut} was taken");
        }
        for bit in 0..sound.len() * 8 {
            let mut flipped = sound.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Hex digits in the other case spell the same digest.
            if !flipped.eq_ignore_ascii_case(&sound) {
                assert!(parse(&flipped).is_err(), "flip of bit {bit} was taken");
            }
        }
        fs::write(&path, &sound[..sound.len() - 1]).unwrap();
        assert!(matches!(FileStore::open(&path), Err(FileError::Damaged { .. })));
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_register() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        fs::write(beside(&path, "new"), b"romulus-register 1 torn").unwrap();
        let store = FileStore::open(&path).unwrap();
        assert_eq!(store.load(&vm).unwrap().unwrap().register, register);
    }

    #[test]
    fn two_arbiters_cannot_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let _first = FileStore::open(&path).unwrap();
        assert!(matches!(FileStore::open(&path), Err(FileError::InUse { .. })));
    }

    #[test]
    fn after_a_failed_write_nothing_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        let mut store = FileStore::open(&path).unwrap();
        // A folder in the way of the staged file fails its creation.
        fs::create_dir(beside(&path, "new")).unwrap();
        let request = Request {
            caller: register.primary.clone(),
            expected: Some(register),
            operation: Operation::Admit { backup: "node-b".parse().unwrap() },
            stamp: Stamp::new(2),
        };
        assert!(matches!(store.execute(&vm, &request), Err(StoreError::Unknown { .. })));
        let told = store.load(&vm).unwrap_err();
        assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
        assert!(told.to_string().contains("restart the arbiter"), "{told}");
    }
}
