//! The KVM edge: boot, vCPUs, memory, dirty tracking, devices, saved state.
//!
//! [`vm::Vm`] puts the parts together; `README.md` tells where to start.

pub mod acpi;
pub mod boot;
pub mod device;
pub mod dirty;
pub mod event;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod host;
mod ioctl;
pub mod memory;
pub mod openings;
pub mod outlet;
pub mod refusal;
pub mod state;
pub mod thread;
pub mod vcpu;
pub mod vm;
