//! The store: a read, a decision, a transaction.
//!
//! A read asks the member that answered last; while that takes its time, the
//! next one is asked, too, so that a read is over, for good or bad, within
//! little more than one member's time. The transaction goes to the member whose
//! read was answered.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arbiter::{Outcome, Record, Request, Store, StoreError, StoreId, VmId};
use etcd_client::Client;
use rand::Rng;
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    Settings, SettingsError,
    fault::{EtcdError, MemberFault},
    health::MemberHealth,
    member::{Member, Value},
    spelling::{self, Keys},
};

/// How often a transaction is tried on one member. Terms rise, so a register
/// that has moved on is a mismatch, and one repeat is already one too many.
const TRANSACTIONS_MAX: usize = 4;
/// How often the whole of it is tried when a transaction went unanswered.
const ROUNDS_MAX: usize = 2;
/// How long a member's answer is waited for before the next one is asked, too,
/// as a part of a member's time.
const TURN_PART: u32 = 4;
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
    members: Vec<Arc<Member>>,
    timeout: Duration,
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
        let member = |endpoint: &String| Arc::new(Member::new(endpoint, settings, options.clone()));
        let cluster = Cluster {
            members: settings.endpoints.iter().map(member).collect(),
            timeout: settings.timeout,
            preferred: AtomicUsize::new(0),
            keys: Keys::new(&settings.prefix),
            id: OnceLock::new(),
        };
        Ok(Self { runtime, cluster: Arc::new(cluster) })
    }

    /// Which registers these are, and all of them: as [`Store::id`] and
    /// [`Store::list`], for one who may not block.
    ///
    /// # Errors
    ///
    /// [`StoreError`]
    pub async fn survey(&self) -> Result<(StoreId, Vec<(VmId, Record)>), StoreError> {
        let id = StoreId::Shared(self.cluster.id().await?);
        Ok((id, self.cluster.list().await?))
    }

    /// How each member is, in the order of the settings. One that says nothing
    /// within `time` is silent.
    pub async fn members(&self, time: Duration) -> Vec<MemberHealth> {
        let asking = |member: &Arc<Member>| tokio::spawn(member.clone().health(time));
        let asking: Vec<_> = self.cluster.members.iter().map(asking).collect();
        let mut members = Vec::with_capacity(asking.len());
        for asked in asking {
            members.push(asked.await.expect("asking does not panic"));
        }
        members
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
    /// Asks the members by turns until one answers, and tells which. `ask` must
    /// not change anything.
    async fn first_answer<T: Send + 'static, F>(
        &self,
        ask: impl Fn(Arc<Member>) -> F,
    ) -> Result<(&Arc<Member>, T), Vec<MemberFault>>
    where
        F: Future<Output = Result<T, MemberFault>> + Send + 'static,
    {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.members.len());
        let mut turns = (first..first + count).map(|turn| turn % count).peekable();
        let mut next_turn = Instant::now();
        let mut asking = JoinSet::new();
        let mut faults = Vec::new();
        while turns.peek().is_some() || !asking.is_empty() {
            tokio::select! {
                biased;
                Some(answered) = asking.join_next() => {
                    let (index, answered): (usize, Result<T, MemberFault>) =
                        answered.expect("asking does not panic");
                    match answered {
                        Ok(answer) => {
                            self.preferred.store(index, Ordering::Relaxed);
                            return Ok((&self.members[index], answer));
                        }
                        Err(fault) => faults.push(fault),
                    }
                    next_turn = Instant::now();
                }
                () = sleep_until(next_turn), if turns.peek().is_some() => {
                    let index = turns.next().expect("it was seen");
                    let asked = ask(self.members[index].clone());
                    asking.spawn(async move { (index, asked.await) });
                    next_turn = Instant::now() + self.timeout / TURN_PART;
                }
            }
        }
        Err(faults)
    }

    async fn read(&self, key: &str) -> Result<(&Arc<Member>, Value), Vec<MemberFault>> {
        self.first_answer(|member| member.read(key.to_owned())).await
    }

    async fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        let key = self.keys.of(vm);
        let (_, value) = self.read(&key).await.map_err(unanswered)?;
        understand(&key, &value).map_err(StoreError::untouched)
    }

    async fn execute(&self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        // What is illegal is so against any register.
        request.target()?;
        let mut vain = Vain::default();
        for _ in 0..ROUNDS_MAX {
            if let Some(outcome) = self.execute_once(vm, request, &mut vain).await? {
                return Ok(outcome);
            }
            if !vain.in_doubt {
                break;
            }
        }
        let faults = std::mem::take(&mut vain.faults);
        Err(vain.error(EtcdError::Members(faults)))
    }

    /// The outcome, if there is one; otherwise it adds to `vain`.
    async fn execute_once(
        &self,
        vm: &VmId,
        request: &Request,
        vain: &mut Vain,
    ) -> Result<Option<Outcome>, StoreError> {
        let key = self.keys.of(vm);
        let (member, mut value) = match self.read(&key).await {
            Ok(answered) => answered,
            Err(faults) => {
                vain.faults.extend(faults);
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
            let ask = |member: Arc<Member>| member.range(start.clone(), end.clone(), RANGE_MAX);
            let (_, found) = self.first_answer(ask).await.map_err(unanswered)?;
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

    /// The number of these registers; whoever asks first draws it.
    async fn id(&self) -> Result<u64, StoreError> {
        if let Some(id) = self.id.get() {
            return Ok(*id);
        }
        let key = self.keys.id();
        let (member, mut value) = self.read(key).await.map_err(unanswered)?;
        if value.is_none() {
            let drawn = format!("{:016x}", rand::rng().next_u64()).into_bytes();
            let fault = |fault| StoreError::unknown(EtcdError::Members(vec![fault]));
            value = match member.replace(key, &None, drawn.clone()).await.map_err(fault)? {
                Ok(()) => Some(drawn),
                Err(found) => found,
            };
        }
        let foreign = |what| StoreError::untouched(EtcdError::Foreign { key: key.into(), what });
        let id = number(&value).map_err(foreign)?;
        Ok(*self.id.get_or_init(|| id))
    }
}

fn unanswered(faults: Vec<MemberFault>) -> StoreError {
    StoreError::untouched(EtcdError::Members(faults))
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
