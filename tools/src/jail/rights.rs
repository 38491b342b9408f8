//! Capabilities, and what else a process gives up for good.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

use super::{JailError, Needs};

/// Ports below are for those who have `CAP_NET_BIND_SERVICE`
/// (`net.ipv4.ip_unprivileged_port_start`, where nobody changed it).
const PORT_FREE_MIN: u16 = 1024;

/// No core dumps and no other process that looks in: guest memory and keys are
/// in here. And no program that has more rights than this one.
pub(super) fn keep_to_itself() -> Result<(), JailError> {
    let system = |action| {
        move |error: nix::Error| JailError::System { action, source: io::Error::from(error) }
    };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(system("forbid core dumps"))?;
    prctl::set_dumpable(false).map_err(system("forbid core dumps"))?;
    prctl::set_no_new_privs().map_err(system("forbid new privileges"))
}

/// Gives up every capability that is not needed.
pub(super) fn drop_capabilities(needs: &Needs) -> Result<(), JailError> {
    let mut kept = CapsHashSet::new();
    let held = caps::read(None, CapSet::Permitted)?;
    if (1..PORT_FREE_MIN).contains(&needs.listen_port) {
        kept.insert(Capability::CAP_NET_BIND_SERVICE);
    }
    kept.retain(|capability| held.contains(capability));
    // Taking them from the bounding set takes one itself.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient)?;
    }
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

/// The capabilities in force, by name.
pub(super) fn capabilities() -> Result<Vec<String>, JailError> {
    let held = caps::read(None, CapSet::Effective)?;
    let mut names: Vec<String> = held.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}
