//! The KVM edge: boot, vCPUs, memory, dirty tracking, devices, saved state.

pub mod device;
pub mod outlet;
