//! Commands about an arbiter's register file, while no arbiter serves it.
//!
//! Nodes are not asked here: whoever forgets a register knows that no process
//! of its VM lives, or has two live copies of a guest by his own hand.

use std::{
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
};

use arbiter::{FileError, FileStore, Record, Store, StoreError, VmId};
use serde::Serialize;
use thiserror::Error;

use super::{args::RegisterCommand, control_commands::print, failure::Failure};
use crate::{
    config::{self, StoreConfig},
    control::RegisterStatus,
    exit::Exit,
};

/// Why registers were not shown or forgotten.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// They are in etcd.
    #[error("the registers are in etcd: {remedy}")]
    InEtcd {
        /// Which commands of etcd's do the same.
        remedy: String,
    },
    /// There is no file.
    #[error("there is no register file {path}: run this on the arbiter's host, with its configuration", path = path.display())]
    Absent {
        /// Where it should be.
        path: PathBuf,
    },
    /// An arbiter serves them.
    #[error("an arbiter that runs holds {path}: stop it first (while it runs, `romulus status` shows its registers)", path = path.display())]
    Held {
        /// The register file.
        path: PathBuf,
    },
    /// The register file cannot be used.
    #[error(transparent)]
    File(FileError),
    /// The registers could not be read or changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such VM.
    #[error("{path} has no register of `{vm}`: see `romulus register show`", path = path.display())]
    Unknown {
        /// The VM.
        vm: VmId,
        /// The register file.
        path: PathBuf,
    },
    /// The operator did not type the name.
    #[error(
        "`{typed}` is not `{vm}`, nothing was changed: type the VM's name to forget its register"
    )]
    NotConfirmed {
        /// What was typed.
        typed: String,
        /// What should have been.
        vm: VmId,
    },
}

#[derive(Debug, Serialize)]
struct Forgotten {
    forgotten: RegisterStatus,
}

pub(super) fn register(command: &RegisterCommand, json: bool) -> Result<Exit, Failure> {
    match command {
        RegisterCommand::Show { file } => show(file, json),
        RegisterCommand::Forget { vm, file, yes } => forget(vm, file, *yes, json),
    }
}

fn show(file: &Path, json: bool) -> Result<Exit, Failure> {
    let (store, path) = open(file, None)?;
    let records = store.list().map_err(RegisterError::from)?;
    let registers: Vec<_> = records.into_iter().map(|(vm, record)| status(vm, record)).collect();
    print(json, &registers, || match registers.len() {
        0 => format!("{} has no registers\n", path.display()),
        _ => registers.iter().map(|register| format!("{}\n", line(register))).collect(),
    })
}

fn forget(vm: &VmId, file: &Path, yes: bool, json: bool) -> Result<Exit, Failure> {
    let (mut store, path) = open(file, Some(vm))?;
    let unknown = || RegisterError::Unknown { vm: vm.clone(), path: path.clone() };
    let record = store.load(vm).map_err(RegisterError::from)?.ok_or_else(unknown)?;
    let forgotten = status(vm.clone(), record);
    if !yes {
        confirm(&forgotten)?;
    }
    store.forget(vm).map_err(RegisterError::from)?;
    print(json, &Forgotten { forgotten }, || {
        format!(
            "the register of `{vm}` is forgotten: start the arbiter, then `romulus run` on one node and `romulus backup` on the others\n"
        )
    })
}

/// Has the operator type the VM's name.
fn confirm(register: &RegisterStatus) -> Result<(), Failure> {
    let mut prompt = io::stderr().lock();
    writeln!(prompt, "{}", line(register))?;
    writeln!(
        prompt,
        "Whoever claims this VM next boots it afresh. If a process of it lives on any node, it may run twice."
    )?;
    write!(prompt, "Type the VM's name to forget its register: ")?;
    prompt.flush()?;
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    let typed = typed.trim().to_owned();
    if typed == register.vm.as_str() {
        return Ok(());
    }
    Err(RegisterError::NotConfirmed { typed, vm: register.vm.clone() }.into())
}

/// The registers that the configuration in `file` names, for this process alone.
fn open(file: &Path, vm: Option<&VmId>) -> Result<(FileStore, PathBuf), Failure> {
    let path = match config::read_arbiter(file)?.store {
        StoreConfig::File(path) => path,
        StoreConfig::Etcd(settings) => {
            return Err(RegisterError::InEtcd { remedy: in_etcd(&settings, vm) }.into());
        }
    };
    // Opening would begin an empty one.
    if !path.exists() {
        return Err(RegisterError::Absent { path }.into());
    }
    match FileStore::open(&path) {
        Ok(store) => Ok((store, path)),
        Err(FileError::InUse { path }) => Err(RegisterError::Held { path }.into()),
        Err(error) => Err(RegisterError::File(error).into()),
    }
}

/// What does the same in etcd.
fn in_etcd(settings: &etcd::Settings, vm: Option<&VmId>) -> String {
    let mut etcdctl = format!("ETCDCTL_API=3 etcdctl --endpoints {}", settings.endpoints.join(","));
    if let Some(tls) = &settings.tls {
        etcdctl.push_str(&format!(" --cacert {}", tls.ca.display()));
        if let Some((certificate, key)) = &tls.identity {
            etcdctl.push_str(&format!(" --cert {} --key {}", certificate.display(), key.display()));
        }
    }
    if let Some(credentials) = &settings.credentials {
        etcdctl.push_str(&format!(" --user {}", credentials.user));
    }
    let prefix = &settings.prefix;
    match vm {
        None => format!("`{etcdctl} get --prefix {prefix}vm/` shows them"),
        Some(vm) => format!(
            "when no process of the VM lives on any node, `{etcdctl} del {prefix}vm/{vm}` forgets this one"
        ),
    }
}

fn status(vm: VmId, record: Record) -> RegisterStatus {
    let arbiter::Register { term, primary, in_sync } = record.register;
    RegisterStatus { vm, term: term.get(), primary, in_sync: in_sync.into_keys().collect() }
}

fn line(register: &RegisterStatus) -> String {
    let RegisterStatus { vm, term, primary, in_sync } = register;
    let in_sync: Vec<_> = in_sync.iter().map(arbiter::NodeId::as_str).collect();
    format!("{vm}: term {term}, primary {primary}, in sync {{{}}}", in_sync.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_etcdctl_has_to_do_names_the_configured_keys() {
        let tls = etcd::TlsFiles { ca: "ca.pem".into(), identity: Some(("c".into(), "k".into())) };
        let settings = etcd::Settings {
            endpoints: vec!["https://a:1".to_owned(), "https://b:1".to_owned()],
            prefix: "/x/".to_owned(),
            tls: Some(tls),
            credentials: None,
            timeout: Duration::from_millis(300),
        };
        let vm = "web-1".parse().unwrap();
        let told = in_etcd(&settings, Some(&vm));
        let command =
            "--endpoints https://a:1,https://b:1 --cacert ca.pem --cert c --key k del /x/vm/web-1";
        assert!(told.contains(command), "{told}");
        assert!(in_etcd(&settings, None).contains("get --prefix /x/vm/"));
    }
}
