//! The registers that an arbiter serves: handles for requests, and a look at
//! all of them for operators.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arbiter::{FileStore, Outcome, Record, Request, Store, StoreError, StoreId, VmId};
use etcd::{EtcdStore, MemberHealth, Settings};
use tokio::{runtime::Handle, sync::Mutex, time::timeout};

use super::ArbiterError;
use crate::config::StoreConfig;

/// Requests that wait for etcd at once.
const ETCD_HANDLES: usize = 8;

/// How long a look may take. Less than a client of the control API waits.
pub(super) const LOOK_TIME: Duration = Duration::from_secs(4);

/// An open store. Clones share it.
#[derive(Clone)]
pub(super) enum Registers {
    File { store: Arc<Mutex<FileStore>>, path: PathBuf },
    Etcd { store: EtcdStore, settings: Settings },
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Sight {
    /// Every VM's record, or why they cannot be read.
    pub(super) records: Result<Vec<(VmId, Record)>, String>,
    /// Which registers these are; `None` if nobody could tell.
    pub(super) id: Option<StoreId>,
    /// The members of etcd; of a file, none.
    pub(super) members: Vec<MemberHealth>,
}

impl Registers {
    /// Opens what is configured. etcd may answer or not: it may come later.
    pub(super) fn open(config: &StoreConfig, runtime: &Handle) -> Result<Self, ArbiterError> {
        match config {
            StoreConfig::File(path) => {
                let store = FileStore::open(path)?;
                let vms = store.list()?.len();
                tracing::info!(path = %path.display(), vms, "the register file is read");
                Ok(Self::File { store: Arc::new(Mutex::new(store)), path: path.clone() })
            }
            StoreConfig::Etcd(settings) => {
                let store = EtcdStore::new(settings, runtime.clone())?;
                let endpoints = settings.endpoints.join(", ");
                tracing::info!(endpoints, prefix = settings.prefix, "the registers are in etcd");
                Ok(Self::Etcd { store, settings: settings.clone() })
            }
        }
    }

    /// Handles for requests, as many as may be asked at once.
    pub(super) fn handles(&self) -> Vec<Box<dyn Store + Send>> {
        match self {
            Self::File { store, .. } => vec![Box::new(FileHandle(store.clone()))],
            Self::Etcd { store, .. } => {
                (0..ETCD_HANDLES).map(|_| Box::new(store.clone()) as Box<_>).collect()
            }
        }
    }

    /// Looks at everything, within [`LOOK_TIME`].
    pub(super) async fn look(&self) -> Sight {
        match self {
            Self::File { store, .. } => {
                let records = async { store.lock().await.list() };
                let records = timeout(LOOK_TIME, records).await;
                let records = records.unwrap_or_else(|_| Err(StoreError::untouched(Late)));
                let records = records.map_err(|error| error.to_string());
                Sight { records, id: Some(StoreId::Own), members: Vec::new() }
            }
            Self::Etcd { store, .. } => {
                let survey = timeout(LOOK_TIME, store.survey());
                let (survey, members) = tokio::join!(survey, store.members(LOOK_TIME));
                let survey = survey.unwrap_or_else(|_| Err(StoreError::untouched(Late)));
                let (id, records) = match survey {
                    Ok((id, records)) => (Some(id), Ok(records)),
                    Err(error) => (None, Err(error.to_string())),
                };
                Sight { records, id, members }
            }
        }
    }
}

/// Nothing came in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "the registers could not be read within {} s: check the disk, or etcd's members",
    LOOK_TIME.as_secs()
)]
struct Late;

/// A [`FileStore`] that an operator may look at between requests. Not to be
/// used by the runtime's threads.
struct FileHandle(Arc<Mutex<FileStore>>);

impl Store for FileHandle {
    fn id(&self) -> Result<StoreId, StoreError> {
        self.0.blocking_lock().id()
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        self.0.blocking_lock().load(vm)
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        self.0.blocking_lock().execute(vm, request)
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.0.blocking_lock().list()
    }
}
