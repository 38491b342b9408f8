//! What this host can do, and why not.
//!
//! Every [`Finding`] is asked of the host itself, none is guessed from names or
//! versions, and each that is not well says what to do.

mod kvm;

use std::{
    fs::{self, File, OpenOptions},
    process::Command,
};

use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use crate::jail;

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
    findings.extend(kvm::examine());
    findings.extend([tun(), ip_command(), userfaultfd(), memory(), cores(), files(), clock()]);
    findings.extend(jail());
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

/// What the jail is made of.
fn jail() -> [Finding; 2] {
    let name = "seccomp";
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let seccomp = if actions.split_whitespace().any(|action| action == "trap") {
        ok(name, "system calls can be filtered")
    } else {
        fail(name, "not in this kernel", "set jail = \"off\": daemons do not start otherwise")
    };
    let name = "landlock";
    let landlock = match jail::landlock_available() {
        0 => warn(
            name,
            "not in this kernel",
            "daemons start without it, and their files are guarded by their owners only: boot with `lsm=landlock,...`",
        ),
        version => {
            ok(name, format!("version {version} of the {} that are used", jail::LANDLOCK_MAX))
        }
    };
    [seccomp, landlock]
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
