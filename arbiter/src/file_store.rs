//! Registers in one file on the arbiter's disk.
//!
//! ```text
//!   romulus-register 2 <BLAKE3 of the rest, 64 hex digits>\n
//!   { "web-1": { "register": {..}, "stamp": 7 }, .. }          JSON
//! ```
//!
//! Every change writes a whole new file beside the old one, flushes it, renames
//! it over the old one and flushes the directory; only then is the caller
//! answered. A crash leaves the old file or the new one, never a mixture. Which
//! of them it was is made durable before anything is served again. A file whose
//! digest does not match is refused, not repaired: serving an older register
//! could lower a term.
//!
//! **A disk that fails.** Until the rename nothing has happened: the change is
//! refused, and the next one may go well. From the rename on it is not known
//! which file would be found after a loss of power; and a flush that failed once
//! may well succeed the next time without having written anything (Linux forgets
//! what it could not write). So before anything is served again the file is read,
//! must hold what it held before or what was written, and is written anew. What
//! stood in doubt is decided by that, and whoever asks again is told.

mod disk;

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use disk::beside;
pub use disk::{Disk, OsDisk};

use crate::{Outcome, Record, Request, Store, StoreError, StoreId, VmId};

const MAGIC: &str = "romulus-register";
const VERSION: &str = "2";

/// Largest register file that is written and read, in bytes: some 100,000 VMs.
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
    /// The file's format is another version's.
    #[error(
        "register file {path} was written by another version of romulus (format {found}; this one reads {VERSION}): start that version, or shut all guests down and move the file away",
        path = path.display()
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        found: u32,
    },
    /// Another arbiter has the file.
    #[error("register file {path} is in use by another arbiter: stop that one first", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// There would be more in the file than is read again.
    #[error("register file {path} is full, it may have {FILE_BYTES_MAX} bytes: give some VMs an arbiter with another file", path = path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// An earlier change failed half-way, and it cannot be found out yet what
    /// became of it.
    #[error("register file {path} could not be replaced before, and its disk is not well yet: the next request tries again", path = path.display())]
    Doubtful {
        /// The file.
        path: PathBuf,
        /// What was tried to find out.
        source: Box<FileError>,
    },
}

/// A [`Store`] in one file. See the module's head for its format.
#[derive(Debug)]
pub struct FileStore<D = OsDisk> {
    /// Reading settles what a change before it left in doubt.
    state: RefCell<State<D>>,
}

type Records = BTreeMap<VmId, Record>;

#[derive(Debug)]
struct State<D> {
    disk: D,
    /// What is in force, or in doubt what was to be.
    records: Records,
    /// There may be these instead: the change to `records` failed half-way.
    doubt: Option<Records>,
}

/// A change that failed.
enum Failure {
    /// The old file is in place.
    Before(FileError),
    /// One of them is.
    Halfway(FileError),
}

impl Failure {
    fn into_error(self) -> FileError {
        match self {
            Self::Before(error) | Self::Halfway(error) => error,
        }
    }
}

impl FileStore {
    /// Opens the register file at `path`, or begins an empty one.
    ///
    /// # Errors
    ///
    /// [`FileError::Damaged`] for a torn or corrupted file,
    /// [`FileError::OtherVersion`] for one of another format,
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
            Some(bytes) => parse(&bytes).map_err(|flaw| flaw.of(&disk))?,
            None => BTreeMap::new(),
        };
        Ok(Self { state: RefCell::new(State { disk, records, doubt: None }) })
    }

    /// Removes the record of `vm`, which can be claimed then as if it had never
    /// run; returns what it was. No arbiter does this: terms begin anew, so an
    /// operator must know that no process of the VM lives.
    ///
    /// # Errors
    ///
    /// As [`Store::execute`].
    pub fn forget(&mut self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        let mut state = self.sound()?;
        let mut records = state.records.clone();
        let removed = records.remove(vm);
        if removed.is_some() {
            state.replace(records)?;
        }
        Ok(removed)
    }

    /// The state, without doubt.
    fn sound(&self) -> Result<RefMut<'_, State<D>>, StoreError> {
        let mut state = self.state.borrow_mut();
        state.settle().map_err(|source| {
            let path = state.disk.path().to_owned();
            StoreError::untouched(FileError::Doubtful { path, source: Box::new(source) })
        })?;
        Ok(state)
    }
}

impl<D: Disk> State<D> {
    /// Finds out what became of a change that failed half-way, and makes it
    /// durable.
    fn settle(&mut self) -> Result<(), FileError> {
        let Some(before) = &self.doubt else { return Ok(()) };
        let found = match read(&self.disk)? {
            Some(bytes) => parse(&bytes).map_err(|flaw| flaw.of(&self.disk))?,
            None => Records::new(),
        };
        if found != self.records && found != *before {
            let what = "it holds neither what it held nor what was written".to_owned();
            return Err(damaged(&self.disk, what));
        }
        self.persist(&found).map_err(Failure::into_error)?;
        self.records = found;
        self.doubt = None;
        Ok(())
    }

    /// Makes `record` that of `vm`.
    fn change(&mut self, vm: &VmId, record: Record) -> Result<(), StoreError> {
        let mut records = self.records.clone();
        records.insert(vm.clone(), record);
        self.replace(records)
    }

    /// Makes these the records.
    fn replace(&mut self, records: Records) -> Result<(), StoreError> {
        match self.persist(&records) {
            Ok(()) => {
                self.records = records;
                Ok(())
            }
            Err(Failure::Before(error)) => Err(StoreError::untouched(error)),
            Err(Failure::Halfway(error)) => {
                self.doubt = Some(std::mem::replace(&mut self.records, records));
                Err(StoreError::unknown(error))
            }
        }
    }

    fn persist(&mut self, records: &Records) -> Result<(), Failure> {
        let rendered = render(records);
        if rendered.len() as u64 > FILE_BYTES_MAX {
            return Err(Failure::Before(FileError::Full { path: self.disk.path().to_owned() }));
        }
        let staged = beside(self.disk.path(), "new");
        let fail = |action| {
            let path = staged.clone();
            move |source| FileError::Io { action, path, source }
        };
        let before = |action| {
            let fail = fail(action);
            move |source| Failure::Before(fail(source))
        };
        self.disk.begin_beside().map_err(before("create"))?;
        self.disk.write_beside(&rendered).map_err(before("write"))?;
        self.disk.flush_beside().map_err(before("flush"))?;
        let halfway = |action| {
            let fail = fail(action);
            move |source| Failure::Halfway(fail(source))
        };
        self.disk.rename().map_err(halfway("rename"))?;
        self.disk.flush_folder().map_err(halfway("flush the folder of"))
    }
}

impl<D: Disk> Store for FileStore<D> {
    fn id(&self) -> Result<StoreId, StoreError> {
        Ok(StoreId::Own)
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        Ok(self.sound()?.records.get(vm).cloned())
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        let mut state = self.sound()?;
        let current = state.records.get(vm);
        let outcome = request.decide(current)?;
        if let Outcome::Set(register) = &outcome
            && current.map(|record| &record.register) != Some(register)
        {
            state.change(vm, Record { register: register.clone(), stamp: request.stamp })?;
        }
        Ok(outcome)
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        let state = self.sound()?;
        Ok(state.records.iter().map(|(vm, record)| (vm.clone(), record.clone())).collect())
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

/// Why a register file is not read.
#[derive(Debug, PartialEq)]
enum Flaw {
    Damage(String),
    Version(u32),
}

impl Flaw {
    fn of(self, disk: &impl Disk) -> FileError {
        match self {
            Self::Damage(what) => damaged(disk, what),
            Self::Version(found) => FileError::OtherVersion { path: disk.path().to_owned(), found },
        }
    }
}

impl From<String> for Flaw {
    fn from(what: String) -> Self {
        Self::Damage(what)
    }
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<VmId, Record>, Flaw> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not text".to_owned())?;
    let (head, body) = text.split_once('\n').ok_or_else(|| "no first line".to_owned())?;
    let [magic, version, digest] = head.split(' ').collect::<Vec<_>>()[..] else {
        return Err("its first line is not three words".to_owned().into());
    };
    if magic != MAGIC {
        return Err(format!("it does not begin with `{MAGIC}`").into());
    }
    if version != VERSION {
        return Err(match version.parse() {
            Ok(found) => Flaw::Version(found),
            Err(_) => format!("its version {version:?} is no number").into(),
        });
    }
    let expected = blake3::Hash::from_hex(digest).map_err(|_| "its digest is none".to_owned())?;
    if blake3::hash(body.as_bytes()) != expected {
        return Err("its digest does not match".to_owned().into());
    }
    Ok(serde_json::from_str(body).map_err(|error| error.to_string())?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{ImageId, NodeId, Operation, Register, Stamp, Term};

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
    fn another_versions_file_is_not_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        claim(&path);
        let sound = fs::read_to_string(&path).unwrap();
        fs::write(&path, sound.replacen(" 2 ", " 3 ", 1)).unwrap();
        let told = FileStore::open(&path).unwrap_err();
        assert!(matches!(told, FileError::OtherVersion { found: 3, .. }), "{told:?}");
        assert!(told.to_string().contains("(format 3; this one reads 2)"), "{told}");
        fs::write(&path, sound.replacen(" 2 ", " x ", 1)).unwrap();
        assert!(matches!(FileStore::open(&path), Err(FileError::Damaged { .. })));
    }

    #[test]
    fn a_forgotten_vm_is_claimed_anew_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        let other: VmId = "web-2".parse().unwrap();
        let create = Request {
            caller: "node-b".parse().unwrap(),
            expected: None,
            ..admission(register.clone())
        };
        let create = Request { operation: Operation::Create, ..create };
        let mut store = FileStore::open(&path).unwrap();
        assert!(matches!(store.execute(&other, &create), Ok(Outcome::Set(_))));
        let Ok(Outcome::Set(admitted)) = store.execute(&vm, &admission(register)) else {
            panic!("node-b is not admitted")
        };
        let held = store.execute(&vm, &create).unwrap();
        assert_eq!(held, Outcome::Mismatch(Some(admitted.clone())));
        assert_eq!(store.forget(&vm).unwrap().unwrap().register, admitted);
        assert_eq!(store.forget(&vm).unwrap(), None);
        drop(store);
        let mut store = FileStore::open(&path).unwrap();
        assert_eq!(store.load(&vm).unwrap(), None);
        assert_eq!(store.list().unwrap().len(), 1);
        let Ok(Outcome::Set(anew)) = store.execute(&vm, &create) else {
            panic!("it is not claimed anew")
        };
        assert_eq!((anew.term, anew.primary.as_str()), (Term::FIRST, "node-b"));
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_register() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        fs::write(beside(&path, "new"), b"romulus-register 2 torn").unwrap();
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

    fn admission(register: Register) -> Request {
        Request {
            caller: register.primary.clone(),
            expected: Some(register),
            operation: Operation::Admit {
                backup: "node-b".parse().unwrap(),
                image: ImageId::new(5),
            },
            stamp: Stamp::new(2),
        }
    }

    #[test]
    fn a_disk_that_cannot_be_written_costs_changes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        let mut store = FileStore::open(&path).unwrap();
        // A folder in the way of the staged file fails its creation.
        fs::create_dir(beside(&path, "new")).unwrap();
        let request = admission(register.clone());
        let told = store.execute(&vm, &request).unwrap_err();
        assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
        assert!(told.to_string().contains("check the disk"), "{told}");
        assert_eq!(store.load(&vm).unwrap().unwrap().register, register);
        fs::remove_dir(beside(&path, "new")).unwrap();
        let Outcome::Set(admitted) = store.execute(&vm, &request).unwrap() else {
            panic!("it is not admitted")
        };
        drop(store);
        let reopened = FileStore::open(&path).unwrap();
        assert_eq!(reopened.load(&vm).unwrap().unwrap().register, admitted);
    }

    #[test]
    fn what_would_not_be_read_again_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        let mut store = FileStore::open(&path).unwrap();
        let backup = |number| (format!("{number:0>63}").parse().unwrap(), ImageId::new(u64::MAX));
        let crowd = Register { in_sync: (0..64).map(backup).collect(), ..register.clone() };
        let record = Record { register: crowd, stamp: Stamp::new(u64::MAX) };
        let named = |number: usize| format!("other-{number}").parse::<VmId>().unwrap();
        let each = render(&[(named(0), record.clone())].into()).len();
        let others = 2 * FILE_BYTES_MAX as usize / each;
        let known = store.state.get_mut().records.clone();
        store
            .state
            .get_mut()
            .records
            .extend((1..others).map(|other| (named(other), record.clone())));
        let request = admission(register.clone());
        let told = store.execute(&vm, &request).unwrap_err();
        assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
        assert!(told.to_string().contains("is full"), "{told}");
        assert_eq!(store.load(&vm).unwrap().unwrap().register, register);
        assert!(!beside(&path, "new").exists(), "nothing was begun");
        // With fewer VMs it goes on.
        store.state.get_mut().records = known;
        assert!(matches!(store.execute(&vm, &request).unwrap(), Outcome::Set(_)));
        drop(store);
        assert_eq!(FileStore::open(&path).unwrap().list().unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_put_in_place_is_in_doubt_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("register");
        let (vm, register) = claim(&path);
        let mut store = FileStore::open(&path).unwrap();
        // A folder in place of the file cannot be replaced by one.
        let aside = folder.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        let request = admission(register.clone());
        assert!(matches!(store.execute(&vm, &request), Err(StoreError::Unknown { .. })));
        for told in [store.load(&vm).unwrap_err(), store.execute(&vm, &request).unwrap_err()] {
            assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
            assert!(told.to_string().contains("the next request tries again"), "{told}");
        }
        fs::remove_dir(&path).unwrap();
        // Gone is neither what it held nor what was written.
        assert!(store.load(&vm).is_err());
        fs::rename(&aside, &path).unwrap();
        assert_eq!(store.load(&vm).unwrap().unwrap().register, register);
        assert!(store.execute(&vm, &request).is_ok());
    }
}
