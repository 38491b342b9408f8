//! The file store holds what every store must.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};

use romulus_arbiter::{
    FileStore, Outcome, Record, Request, Store, StoreError, StoreId, VmId, conformance,
};

/// Handles of one file, serialised as the arbiter's server does it.
struct Handle(Arc<Mutex<FileStore>>);

impl Store for Handle {
    fn id(&self) -> Result<StoreId, StoreError> {
        self.0.lock().unwrap().id()
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        self.0.lock().unwrap().load(vm)
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        self.0.lock().unwrap().execute(vm, request)
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.0.lock().unwrap().list()
    }
}

#[test]
fn a_file_holds_what_every_store_must() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(&folder.path().join("register")).unwrap();
    let store = Arc::new(Mutex::new(store));
    conformance::all(&|| Box::new(Handle(store.clone())), 200);
}
