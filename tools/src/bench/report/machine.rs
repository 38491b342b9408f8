//! Where something was measured: figures mean nothing without.

use std::{fmt, fs};

use serde::Serialize;
use vmm::host::Host;

/// A machine, as far as its figures depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's model.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// RAM.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// What KVM is built on: `vmx`, `svm`, `pvm`; `none` without KVM.
    pub kvm: String,
    /// This program's version.
    pub version: String,
    /// The commit that it was built from, if the build was told (`make bench-all` does).
    pub commit: Option<String>,
    /// Built with optimisations.
    pub release: bool,
}

impl Machine {
    /// This one; what cannot be found out is `unknown`.
    #[must_use]
    pub fn look() -> Self {
        let unknown = || "unknown".to_owned();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease");
        let kvm = Host::open().map(|host| host.capabilities().backend.name().to_owned());
        Self {
            cpu: entry("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib("MemTotal"),
            kernel: kernel.map_or_else(|_| unknown(), |release| release.trim().to_owned()),
            kvm: kvm.unwrap_or_else(|_| "none".to_owned()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("ROMULUS_COMMIT").filter(|it| !it.is_empty()).map(str::to_owned),
            release: !cfg!(debug_assertions),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, memory_mib, kernel, kvm, version, commit, release } = self;
        let gib = *memory_mib as f64 / 1024.0;
        let build = if *release { "" } else { ", built WITHOUT optimisations" };
        let commit = commit.as_deref().unwrap_or("commit unknown");
        write!(
            f,
            "{cpu}, {cores} cores, {gib:.0} GiB, Linux {kernel}, KVM on {kvm}; \
             romulus {version} ({commit}){build}"
        )
    }
}

/// A field of `/proc/meminfo`, in MiB; 0 if it is not there.
pub(in crate::bench) fn memory_mib(field: &str) -> u64 {
    let kib = entry("/proc/meminfo", field);
    let kib = kib.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// The value of the first line `field: value`.
fn entry(path: &str, field: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(field)?.trim_start().strip_prefix(':'));
    Some(line?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_a_kernel() {
        let machine = Machine::look();
        assert!(machine.memory_mib > 0 && machine.cores > 0, "{machine}");
        assert!(machine.kernel.contains('.'), "{machine}");
    }
}
