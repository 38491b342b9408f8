//! The store: a read, a decision, a transaction; member after member.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use arbiter::{Outcome, Record, Request, Store, StoreError, StoreId, VmId};
use etcd_client::Client;
use rand::Rng;
use tokio::runtime::Handle;

use crate::{
    Settings, SettingsError,
    fault::{EtcdError, MemberFault},
    member::{Member, Value},
    spelling::{self, Keys},
};

/// How often a transaction is tried on one member. Terms rise, so a register
/// that has moved on is a mismatch, and one repeat is already one too many.
const TRANSACTIONS_MAX: usize = 4;
/// VMs in one answer of etcd's: some 200 bytes each, of at most 4 MiB.
const RANGE_MAX: i64 = 1000;

/// A [`Store`] in an etcd cluster. Its clones share their connections, and may
/// be used at once, each by a thread that is none of the runtime's.
#[derive(Clone)]
pub struct EtcdStore {
    runtime: Handle,
    cluster: Arc<Cluster>,
}

struct Cluster {
    members: Vec<Member>,
    /// Who answered last.
    preferred: AtomicUsize,
    keys: Keys,
    id: OnceLock<u64>,
}

/// Why there was no outcome, and whether it may have happened all the same.
#[derive(Default)]
struct Vain {
    faults: Vec<MemberFault>,
    in_doubt: bool,
}

impl Vain {
    fn into_error(self) -> StoreError {
        self.error(EtcdError::Members(self.faults.clone()))
    }

    fn error(&self, source: EtcdError) -> StoreError {
        if self.in_doubt { StoreError::unknown(source) } else { StoreError::untouched(source) }
    }
}

impl EtcdStore {
    /// A store that asks etcd from `runtime`. Connects when it is first asked.
    ///
    /// # Errors
    ///
    /// [`SettingsError`], if no etcd whatsoever could be reached so.
    pub fn new(settings: &Settings, runtime: Handle) -> Result<Self, SettingsError> {
        let options = settings.options()?;
        // Without a user nothing is sent; what is malformed shows all the same.
        let mut nameless = Settings { credentials: None, ..settings.clone() }.options()?;
        nameless = nameless.with_connect_timeout(settings.timeout);
        let connected = runtime.block_on(Client::connect(&settings.endpoints, Some(nameless)));
        connected.map_err(|error| SettingsError::Malformed { said: error.to_string() })?;
        let member = |endpoint: &String| Member::new(endpoint, settings, options.clone());
        let cluster = Cluster {
            members: settings.endpoints.iter().map(member).collect(),
            preferred: AtomicUsize::new(0),
            keys: Keys::new(&settings.prefix),
            id: OnceLock::new(),
        };
        Ok(Self { runtime, cluster: Arc::new(cluster) })
    }
}

impl Store for EtcdStore {
    fn id(&self) -> Result<StoreId, StoreError> {
        self.runtime.block_on(self.cluster.id()).map(StoreId::Shared)
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        self.runtime.block_on(self.cluster.load(vm))
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        self.runtime.block_on(self.cluster.execute(vm, request))
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.runtime.block_on(self.cluster.list())
    }
}

impl Cluster {
    /// All members once, beginning with the one that answered last.
    fn turns(&self) -> impl Iterator<Item = (usize, &Member)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.members.len();
        (first..first + count).map(move |turn| (turn % count, &self.members[turn % count]))
    }

    fn prefer(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }

    async fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        let key = self.keys.of(vm);
        let value = self.read(&key).await?;
        understand(&key, &value).map_err(StoreError::untouched)
    }

    async fn read(&self, key: &str) -> Result<Value, StoreError> {
        let mut vain = Vain::default();
        for (index, member) in self.turns() {
            match member.read(key).await {
                Ok(value) => {
                    self.prefer(index);
                    return Ok(value);
                }
                Err(fault) => vain.faults.push(fault),
            }
        }
        Err(vain.into_error())
    }

    async fn execute(&self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        // What is illegal is so against any register.
        request.target()?;
        let mut vain = Vain::default();
        for (index, member) in self.turns() {
            if let Some(outcome) = self.execute_on(member, vm, request, &mut vain).await? {
                self.prefer(index);
                return Ok(outcome);
            }
        }
        Err(vain.into_error())
    }

    /// The outcome, if this member gives one; otherwise it adds to `vain`.
    async fn execute_on(
        &self,
        member: &Member,
        vm: &VmId,
        request: &Request,
        vain: &mut Vain,
    ) -> Result<Option<Outcome>, StoreError> {
        let key = self.keys.of(vm);
        let mut value = match member.read(&key).await {
            Ok(value) => value,
            Err(fault) => {
                vain.faults.push(fault);
                return Ok(None);
            }
        };
        for _ in 0..TRANSACTIONS_MAX {
            let current = understand(&key, &value).map_err(|error| vain.error(error))?;
            let outcome = request.decide(current.as_ref())?;
            let Some(record) = to_be_written(request, &outcome, current.as_ref()) else {
                return Ok(Some(outcome));
            };
            match member.replace(&key, &value, spelling::spell(&record)).await {
                Ok(Ok(())) => return Ok(Some(outcome)),
                Ok(Err(found)) => value = found,
                Err(fault) => {
                    vain.faults.push(fault);
                    vain.in_doubt = true;
                    return Ok(None);
                }
            }
        }
        Err(vain.error(EtcdError::Disturbed { vm: vm.clone() }))
    }

    async fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        let mut records: Vec<(VmId, Record)> = Vec::new();
        loop {
            let (start, end) = self.keys.range_after(records.last().map(|(vm, _)| vm));
            let found = self.range(start, end).await?;
            let is_last = i64::try_from(found.len()).is_ok_and(|count| count < RANGE_MAX);
            for pair in found {
                let key = pair.key_str().unwrap_or("that is no text").to_owned();
                let foreign = |what| StoreError::untouched(EtcdError::Foreign { key, what });
                let Some(vm) = self.keys.vm(pair.key()) else {
                    return Err(foreign("it names no VM".to_owned()));
                };
                records.push((vm, spelling::read(pair.value()).map_err(foreign)?));
            }
            if is_last {
                return Ok(records);
            }
        }
    }

    async fn range(
        &self,
        start: Vec<u8>,
        end: Vec<u8>,
    ) -> Result<Vec<etcd_client::KeyValue>, StoreError> {
        let mut vain = Vain::default();
        for (index, member) in self.turns() {
            match member.range(start.clone(), end.clone(), RANGE_MAX).await {
                Ok(found) => {
                    self.prefer(index);
                    return Ok(found);
                }
                Err(fault) => vain.faults.push(fault),
            }
        }
        Err(vain.into_error())
    }

    /// The number of these registers; whoever asks first draws it.
    async fn id(&self) -> Result<u64, StoreError> {
        if let Some(id) = self.id.get() {
            return Ok(*id);
        }
        let drawn = format!("{:016x}", rand::rng().next_u64()).into_bytes();
        let mut vain = Vain::default();
        for (index, member) in self.turns() {
            let value = match member.read(self.keys.id()).await {
                Ok(None) => member.replace(self.keys.id(), &None, drawn.clone()).await,
                known => known.map(Err),
            };
            let value = match value {
                Ok(Ok(())) => Some(drawn.clone()),
                Ok(Err(found)) => found,
                Err(fault) => {
                    vain.faults.push(fault);
                    continue;
                }
            };
            self.prefer(index);
            let id = number(&value).map_err(|what| {
                let key = self.keys.id().to_owned();
                StoreError::untouched(EtcdError::Foreign { key, what })
            })?;
            return Ok(*self.id.get_or_init(|| id));
        }
        Err(vain.into_error())
    }
}

fn understand(key: &str, value: &Value) -> Result<Option<Record>, EtcdError> {
    let read = value.as_deref().map(spelling::read).transpose();
    read.map_err(|what| EtcdError::Foreign { key: key.to_owned(), what })
}

/// The record that makes `outcome` true, unless `current` does already.
fn to_be_written(request: &Request, outcome: &Outcome, current: Option<&Record>) -> Option<Record> {
    match outcome {
        Outcome::Set(register) if current.map(|record| &record.register) != Some(register) => {
            Some(Record { register: register.clone(), stamp: request.stamp })
        }
        Outcome::Set(_) | Outcome::Mismatch(_) => None,
    }
}

fn number(value: &Value) -> Result<u64, String> {
    let text = value.as_deref().and_then(|value| std::str::from_utf8(value).ok());
    let number = text.and_then(|text| u64::from_str_radix(text, 16).ok());
    number.ok_or_else(|| "it is no number".to_owned())
}
