//! The devices of a configuration, and what of them must be equal on all nodes.

use checkpoint::message::Traits;
use vmm::device::{
    DeviceConfig, Devices, DiskConfig, NetworkConfig,
    virtio::blk::image::{Coverage, ImageError},
};

use crate::config::{DiskDigest, VmConfig};

/// What the VM is to have.
pub(super) fn device_config(config: &VmConfig) -> DeviceConfig {
    let networks = config.network.iter().map(|network| NetworkConfig {
        tap: network.tap.as_str().to_owned(),
        create: false,
        mac: network.mac.octets(),
    });
    let disks = config.disks.iter().map(|disk| DiskConfig {
        path: disk.path.clone(),
        read_only: disk.read_only,
        serial: disk.serial.to_string(),
    });
    DeviceConfig { networks: networks.collect(), disks: disks.collect(), rng: config.vm.rng }
}

/// What two nodes compare of their devices before one takes a guest from the
/// other. Reads the images of disks that the guest only reads.
///
/// # Errors
///
/// [`ImageError::Read`]
pub(super) fn device_traits(config: &VmConfig, devices: &Devices) -> Result<Traits, ImageError> {
    let mut traits = Traits::from([("devices".to_owned(), devices.inventory().into())]);
    if let Some(network) = &config.network {
        traits.insert("network mac".to_owned(), network.mac.to_string().into());
    }
    for (disk, image) in config.disks.iter().zip(devices.images()) {
        let content = if disk.read_only {
            image.digest(coverage(disk.digest))?.to_string()
        } else {
            format!("{} bytes, written by the guest", image.bytes())
        };
        traits.insert(format!("disk {}", disk.serial), content.into());
    }
    Ok(traits)
}

fn coverage(digest: DiskDigest) -> Coverage {
    match digest {
        DiskDigest::Auto => Coverage::Auto,
        DiskDigest::All => Coverage::All,
        DiskDigest::Samples => Coverage::Samples,
    }
}
