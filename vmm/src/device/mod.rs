//! What the guest sees beside its CPUs and memory (skeleton: the signatures are final).

use std::sync::Arc;

use kvm_ioctls::VmFd;
use romulus_checkpoint::{Section, SectionError, Sections};
use thiserror::Error;

use crate::outlet::Outlet;

/// Guest memory whose writes by the VMM are remembered.
pub type GuestMemory = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The tap interface.
    pub tap: String,
    /// Whether to make the interface if it is not there.
    pub create: bool,
    /// The guest's MAC.
    pub mac: [u8; 6],
}

/// Which devices the guest has beside the serial console.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceConfig {
    /// Network devices.
    pub networks: Vec<NetworkConfig>,
}

/// Why devices could not be made or restored.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Saved state does not fit.
    #[error(transparent)]
    Section(#[from] SectionError),
}

/// All devices.
#[derive(Debug)]
pub struct Devices {}

impl Devices {
    /// Makes the devices, parked. `vm` must have its interrupt controllers.
    pub fn new(
        _config: &DeviceConfig,
        _vm: Arc<VmFd>,
        _memory: GuestMemory,
        _outlet: Arc<Outlet>,
    ) -> Result<Self, DeviceError> {
        Ok(Self {})
    }
    /// A vCPU reads `port`.
    pub fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// A vCPU writes `port`.
    pub fn pio_write(&self, _port: u16, _data: &[u8]) {}
    /// A vCPU reads `address`.
    pub fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// A vCPU writes `address`.
    pub fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    /// Stops every device at a request boundary.
    pub fn park(&self) {}
    /// Lets them go on.
    pub fn unpark(&self) {}
    /// The names of the sections of [`Devices::save`].
    pub fn section_names(&self) -> Vec<String> {
        Vec::new()
    }
    /// The state of all devices; parked only.
    pub fn save(&self) -> Vec<Section> {
        Vec::new()
    }
    /// Takes over the state of all devices, or of none; parked only.
    pub fn restore(&self, _sections: &Sections) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Tells the network where the guest is now.
    pub fn announce(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Types `bytes` on the console; returns how many were taken.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    /// What to append to the kernel's command line.
    pub fn cmdline(&self) -> String {
        String::new()
    }
    /// Ends all device threads.
    pub fn stop(&self) {}
}
