//! What this host can do, and why not.
//!
//! Every [`Finding`] is asked of the host itself, none is guessed from names or
//! versions, and each that is not well says what to do.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    process::Command,
};

use kvm_ioctls::{Cap, Kvm};
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

/// Files that a daemon keeps open at most: sockets, eventfds and memory.
const FILES_MIN: u64 = 1024;
/// What the smallest guest and its replica need, in MiB.
const MEMORY_MIB_MIN: u64 = 512;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It can be used.
    Ok,
    /// It is missing, and Romulus works without it.
    Warn,
    /// It is missing, and Romulus does not work without it.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How well.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if it is well.
    pub remedy: String,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing that is needed is missing.
    pub ready: bool,
    /// In the order in which to mend them.
    pub findings: Vec<Finding>,
}

/// Looks at this host.
#[must_use]
pub fn examine() -> Report {
    let mut findings = vec![user()];
    findings.extend(kvm());
    findings.extend([tun(), ip_command(), userfaultfd(), memory(), cores(), files(), clock()]);
    let ready = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
    Report { ready, findings }
}

fn ok(name: &'static str, found: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
}

fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Warn, found: found.into(), remedy: remedy.into() }
}

fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Fail, found: found.into(), remedy: remedy.into() }
}

fn user() -> Finding {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return ok("user", "root");
    }
    warn(
        "user",
        format!("uid {uid}, not root"),
        "tap devices and the demo need root: use sudo, or a tap that belongs to this user",
    )
}

fn kvm() -> Vec<Finding> {
    let name = "/dev/kvm";
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let error = io::Error::from_raw_os_error(error.errno());
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "add this user to the group `kvm`, or use sudo",
                _ => {
                    "load kvm_intel or kvm_amd, and turn virtualisation on in the firmware (in a VM: nested virtualisation)"
                }
            };
            return vec![fail(name, error.to_string(), remedy)];
        }
    };
    let version = kvm.get_api_version();
    let mut findings = vec![if version == 12 {
        ok(name, "usable, API version 12")
    } else {
        fail(name, format!("API version {version}"), "use a kernel of this century: version 12")
    }];
    findings.push(ok("KVM backend", kvm_backend()));
    findings.push(bitmap(&kvm));
    findings.push(ring(&kvm));
    findings.push(saved_state(&kvm));
    findings.push(tsc(&kvm));
    let most = kvm.get_max_vcpus();
    findings.push(ok("vCPUs", format!("up to {most} in a VM, {} recommended", kvm.get_nr_vcpus())));
    findings
}

/// `vmx`, `svm`, `pvm` or `unknown`: which module KVM runs guests with.
#[must_use]
pub fn kvm_backend() -> &'static str {
    let modules = [("kvm_intel", "vmx"), ("kvm_amd", "svm"), ("kvm_pvm", "pvm")];
    let loaded = modules.iter().filter(|(module, _)| {
        // A module that is built in has a folder only if it has parameters.
        Path::new("/sys/module").join(module).exists()
    });
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
    let possible = |backend: &&str| match *backend {
        "vmx" => has("vmx"),
        "svm" => has("svm"),
        _ => true,
    };
    let backends: Vec<_> = loaded.map(|(_, backend)| *backend).filter(|it| possible(it)).collect();
    match backends[..] {
        [backend] => backend,
        [] if has("vmx") => "vmx",
        [] if has("svm") => "svm",
        // KVM works without either extension: software, as PVM does it.
        [] => "pvm",
        _ => "unknown",
    }
}

fn bitmap(kvm: &Kvm) -> Finding {
    // linux/kvm.h: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    const MANUAL_PROTECT2: u64 = 168;
    let name = "dirty bitmap";
    match kvm.check_extension_raw(MANUAL_PROTECT2) {
        flags if flags > 0 => ok(name, format!("manual protect (flags {flags:#x})")),
        _ => fail(name, "without manual protect", "use Linux 5.1 or later"),
    }
}

fn ring(kvm: &Kvm) -> Finding {
    // linux/kvm.h: KVM_CAP_DIRTY_LOG_RING and KVM_CAP_DIRTY_LOG_RING_ACQ_REL.
    const DIRTY_LOG_RING: u64 = 192;
    const DIRTY_LOG_RING_ACQ_REL: u64 = 223;
    let name = "dirty ring";
    let either = [DIRTY_LOG_RING_ACQ_REL, DIRTY_LOG_RING].map(|cap| kvm.check_extension_raw(cap));
    match either.into_iter().find(|bytes| *bytes > 0) {
        Some(bytes) => ok(name, format!("up to {} entries a vCPU", bytes / 16)),
        None => warn(name, "not there", "the bitmap is used; Linux 5.11 or later has the ring"),
    }
}

fn saved_state(kvm: &Kvm) -> Finding {
    let name = "saved state";
    // linux/kvm.h: KVM_CAP_XSAVE2.
    const XSAVE2: u64 = 208;
    let needed = [
        (Cap::Irqchip, "irqchip"),
        (Cap::Pit2, "PIT"),
        (Cap::AdjustClock, "kvm-clock"),
        (Cap::Xcrs, "xcrs"),
        (Cap::VcpuEvents, "vCPU events"),
        (Cap::MpState, "MP state"),
        (Cap::ImmediateExit, "immediate exit"),
        (Cap::UserMemory, "user memory"),
    ];
    let missing: Vec<_> = needed
        .into_iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, it)| it)
        .collect();
    if !missing.is_empty() {
        let found = format!("KVM lacks {}", missing.join(", "));
        return fail(name, found, "use Linux 5.10 or later on x86-64");
    }
    match kvm.check_extension_raw(XSAVE2) {
        bytes if bytes > 0 => ok(name, format!("complete, xsave {bytes} bytes")),
        _ => warn(
            name,
            "complete, xsave 4096 bytes",
            "guests may not use AMX: Linux 5.17 has xsave2",
        ),
    }
}

fn tsc(kvm: &Kvm) -> Finding {
    let name = "TSC";
    if kvm.check_extension(Cap::TscControl) {
        return ok(name, "KVM scales it");
    }
    warn(
        name,
        "KVM does not scale it",
        "use hosts of equal TSC frequency, or guests that take time from kvm-clock",
    )
}

fn tun() -> Finding {
    let name = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(name) {
        Ok(_) => ok(name, "usable"),
        Err(error) => warn(
            name,
            error.to_string(),
            "guests without a network work; for one: `modprobe tun`, and root or membership of its group",
        ),
    }
}

fn ip_command() -> Finding {
    let name = "ip";
    match Command::new("ip").arg("-Version").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            ok(name, text.lines().next().unwrap_or("there").trim().to_owned())
        }
        Err(error) => {
            warn(name, error.to_string(), "the demo needs it: `apt-get install iproute2`")
        }
    }
}

fn userfaultfd() -> Finding {
    let name = "userfaultfd";
    if File::open("/dev/userfaultfd").is_ok() {
        return ok(name, "usable by /dev/userfaultfd");
    }
    let allowed = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    match allowed {
        Ok(value) if value.trim() == "1" || nix::unistd::geteuid().is_root() => {
            ok(name, "usable by its system call")
        }
        Ok(_) => warn(
            name,
            "not for this user",
            "pages are copied during the pause instead: `sysctl vm.unprivileged_userfaultfd=1`, or root",
        ),
        Err(_) => warn(name, "not in this kernel", "pages are copied during the pause instead"),
    }
}

fn memory() -> Finding {
    let name = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map_or(0, |kib| kib / 1024)
    };
    let (total, free) = (mib("MemTotal"), mib("MemAvailable"));
    let found = format!("{free} MiB available of {total} MiB");
    if free >= MEMORY_MIB_MIN {
        ok(name, found)
    } else {
        warn(name, found, "a primary needs the guest's RAM, a backup that and staging: free some")
    }
}

fn cores() -> Finding {
    let name = "cores";
    match std::thread::available_parallelism() {
        Ok(count) if count.get() > 1 => ok(name, count.to_string()),
        Ok(_) => warn(name, "1", "replication competes with the guest: give it two"),
        Err(error) => warn(name, error.to_string(), "check the cgroup and affinity of this shell"),
    }
}

fn files() -> Finding {
    let name = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft >= FILES_MIN => ok(name, format!("up to {soft}")),
        Ok((soft, hard)) => {
            let remedy = format!("`ulimit -n {}`, or LimitNOFILE in the unit", FILES_MIN.min(hard));
            warn(name, format!("up to {soft}"), remedy)
        }
        Err(error) => warn(name, error.to_string(), "check `ulimit -n`"),
    }
}

fn clock() -> Finding {
    let name = "clock source";
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match fs::read_to_string(path) {
        Ok(source) if ["tsc", "kvm-clock"].contains(&source.trim()) => ok(name, source.trim()),
        Ok(source) => warn(
            name,
            source.trim(),
            "timers of host and guest are slow and coarse with it: see `dmesg | grep -i clocksource`",
        ),
        Err(error) => warn(name, error.to_string(), "is /sys mounted?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_well_says_what_to_do() {
        let report = examine();
        assert!(report.findings.len() >= 8, "{report:?}");
        for finding in &report.findings {
            assert_eq!(finding.verdict == Verdict::Ok, finding.remedy.is_empty(), "{finding:?}");
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
        let failing = report.findings.iter().any(|finding| finding.verdict == Verdict::Fail);
        assert_eq!(report.ready, !failing);
    }
}
