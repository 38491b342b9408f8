//! The guest's command line. Unknown words are ignored, as a kernel does (QEMU and the VMM add
//! words of their own); a known one with a wrong value is an error that the guest prints and
//! stops on.

use core::net::Ipv4Addr;

use crate::VCPUS_MAX;
use crate::attack::{Attack, AttackError};
use crate::pattern::{Pattern, PatternError};

/// Number of vCPUs to run, 1 to 8.
pub const VCPUS: &str = "probe.vcpus";
/// Address and prefix length, `10.0.0.2/24`.
pub const IP: &str = "probe.ip";
/// Default gateway.
pub const GATEWAY: &str = "probe.gw";
/// Dirty pattern at boot, see [`Pattern`].
pub const DIRTY: &str = "probe.dirty";
/// Pages reserved for the working set.
pub const WORKING_SET_MAX: &str = "probe.wsmax";
/// The machine is attacked, see [`Attack`].
pub const ATTACK: &str = "probe.attack";
/// `1`: fill all remaining memory at boot.
pub const FILL: &str = "probe.fill";
/// Steps of the deterministic computation; the guest exits when it is done.
pub const COMPUTE: &str = "probe.compute";
/// Timer period of an idle vCPU in ms (default 50).
pub const TICK: &str = "probe.tick";
/// A virtio-mmio device as Linux spells it, `4K@0xd0000000:5` (size@base:gsi); may be repeated.
pub const VIRTIO_MMIO: &str = "virtio_mmio.device";

/// The most virtio-mmio devices that are looked at.
pub const VIRTIO_DEVICES_MAX: usize = 32;

/// Where a virtio-mmio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Physical address of its registers.
    pub base: u64,
    /// Bytes of its registers.
    pub size: u64,
    /// Global system interrupt, the number of the IOAPIC pin.
    pub gsi: u32,
}

/// The parsed command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// See [`VCPUS`].
    pub vcpus: usize,
    /// See [`IP`].
    pub ip: Option<(Ipv4Addr, u8)>,
    /// See [`GATEWAY`].
    pub gateway: Option<Ipv4Addr>,
    /// See [`DIRTY`].
    pub pattern: Pattern,
    /// See [`WORKING_SET_MAX`]; the guest chooses when absent.
    pub working_set_pages_max: Option<u64>,
    /// See [`FILL`].
    pub fill: bool,
    /// See [`ATTACK`].
    pub attack: Option<Attack>,
    /// See [`COMPUTE`].
    pub compute_steps: Option<u64>,
    /// See [`TICK`].
    pub tick_ms: u64,
    virtio: [Option<VirtioMmio>; VIRTIO_DEVICES_MAX],
}

/// Which parameter is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// Not a number, or out of its range.
    #[error("{0} needs a decimal number in its range")]
    Number(&'static str),
    /// Not an IPv4 address (with prefix length where one belongs).
    #[error("{0} needs an IPv4 address, probe.ip with /prefix")]
    Address(&'static str),
    /// Not a dirty pattern.
    #[error("probe.dirty is wrong: {0}")]
    Pattern(#[from] PatternError),
    /// Not an attack.
    #[error("probe.attack is wrong: {0}")]
    Attack(#[from] AttackError),
    /// Not `size@base:gsi`.
    #[error("virtio_mmio.device needs size@base:gsi, as in 4K@0xd0000000:5")]
    Virtio,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            vcpus: 1,
            ip: None,
            gateway: None,
            pattern: Pattern::default(),
            working_set_pages_max: None,
            fill: false,
            attack: None,
            compute_steps: None,
            tick_ms: 50,
            virtio: [None; VIRTIO_DEVICES_MAX],
        }
    }
}

impl Params {
    /// Reads a whole command line.
    pub fn parse(line: &str) -> Result<Self, ParamError> {
        let mut params = Self::default();
        for (key, value) in line.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
            params.set(key, value)?;
        }
        Ok(params)
    }

    /// The virtio-mmio devices, in the order given.
    pub fn virtio_devices(&self) -> impl Iterator<Item = VirtioMmio> + '_ {
        self.virtio.iter().flatten().copied()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ParamError> {
        match key {
            VCPUS => self.vcpus = number(VCPUS, value, 1, VCPUS_MAX as u64)? as usize,
            IP => self.ip = Some(address_with_prefix(value)?),
            GATEWAY => {
                self.gateway = Some(value.parse().map_err(|_| ParamError::Address(GATEWAY))?)
            }
            DIRTY => self.pattern = value.parse()?,
            WORKING_SET_MAX => {
                self.working_set_pages_max = Some(number(WORKING_SET_MAX, value, 1, 1 << 24)?)
            }
            FILL => self.fill = number(FILL, value, 0, 1)? == 1,
            ATTACK => self.attack = Some(value.parse()?),
            COMPUTE => self.compute_steps = Some(number(COMPUTE, value, 1, u64::MAX)?),
            TICK => self.tick_ms = number(TICK, value, 1, 1000)?,
            VIRTIO_MMIO => {
                let device = virtio_mmio(value).ok_or(ParamError::Virtio)?;
                // More than we look at: the rest is somebody else's.
                if let Some(slot) = self.virtio.iter_mut().find(|slot| slot.is_none()) {
                    *slot = Some(device);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn number(key: &'static str, value: &str, min: u64, max: u64) -> Result<u64, ParamError> {
    value.parse().ok().filter(|number| (min..=max).contains(number)).ok_or(ParamError::Number(key))
}

fn address_with_prefix(value: &str) -> Result<(Ipv4Addr, u8), ParamError> {
    let parsed = value.split_once('/').and_then(|(address, prefix)| {
        Some((address.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?))
    });
    parsed.ok_or(ParamError::Address(IP))
}

fn virtio_mmio(value: &str) -> Option<VirtioMmio> {
    let (size, rest) = value.split_once('@')?;
    // Linux allows a trailing `:id`, which means nothing to us.
    let mut parts = rest.split(':');
    let base = number_any_base(parts.next()?)?;
    let gsi = parts.next()?.parse().ok()?;
    let (digits, unit) = match size.as_bytes().last()? {
        b'K' | b'k' => (&size[..size.len() - 1], 1024),
        b'M' | b'm' => (&size[..size.len() - 1], 1024 * 1024),
        _ => (size, 1),
    };
    Some(VirtioMmio { base, size: number_any_base(digits)?.checked_mul(unit)?, gsi })
}

fn number_any_base(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_whole_line() {
        let params = Params::parse(
            "console=ttyS0 probe.vcpus=2 probe.ip=10.0.0.2/24 probe.gw=10.0.0.1 probe.fill=1 \
             probe.dirty=pages:10,rate:5 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=512@0xfeb00e00:19:1",
        )
        .unwrap();
        assert_eq!(params.vcpus, 2);
        assert_eq!(params.ip, Some((Ipv4Addr::new(10, 0, 0, 2), 24)));
        assert_eq!(params.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert!(params.fill);
        assert_eq!(params.pattern.pages, 10);
        let devices: Vec<_> = params.virtio_devices().collect();
        assert_eq!(devices[0], VirtioMmio { base: 0xd000_0000, size: 4096, gsi: 5 });
        assert_eq!(devices[1], VirtioMmio { base: 0xfeb0_0e00, size: 512, gsi: 19 });
    }

    #[test]
    fn wrong_values_name_the_parameter() {
        assert_eq!(Params::parse("probe.vcpus=9"), Err(ParamError::Number(VCPUS)));
        assert_eq!(Params::parse("probe.ip=10.0.0.2"), Err(ParamError::Address(IP)));
        assert_eq!(Params::parse("probe.dirty=pages"), Err(ParamError::Pattern(PatternError::Key)));
        assert_eq!(Params::parse("virtio_mmio.device=4K@zz:5"), Err(ParamError::Virtio));
    }
}
