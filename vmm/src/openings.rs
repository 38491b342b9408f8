//! What a VM takes of its host that needs rights to open: `/dev/kvm` and taps.
//!
//! A process opens them once, before it gives its rights up, and makes VMs of
//! them: one at a time, as often as it wants.

use std::sync::Arc;

use crate::{
    device::{DeviceConfig, virtio::tap::Tap},
    host::Host,
    vm::VmError,
};

/// An open `/dev/kvm`, and the taps of the network devices in their order.
#[derive(Debug)]
pub struct Openings {
    host: Host,
    taps: Vec<Arc<Tap>>,
}

impl Openings {
    /// Opens what VMs with these devices need.
    ///
    /// # Errors
    ///
    /// [`VmError::Host`] or [`VmError::Device`]
    pub fn open(devices: &DeviceConfig) -> Result<Self, VmError> {
        Ok(Self { host: Host::open()?, taps: devices.open_taps()? })
    }

    /// What this host's KVM can do.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn taps(&self) -> &[Arc<Tap>] {
        &self.taps
    }
}
