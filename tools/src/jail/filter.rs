//! Seccomp filters, one for each kind of thread.
//!
//! ```text
//!   main enters the jail ── filter of the process      (every thread inherits it)
//!     └─ a thread begins ── filter of its kind, added   (both must allow a call)
//! ```
//!
//! So the process's filter allows whatever one of the kinds may do.

use std::{collections::BTreeMap, sync::OnceLock};

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use syscalls::Sysno;

use super::{ThreadKind, calls};
use crate::config::JailMode;

/// Type byte of a request's number (`_IOC_TYPE` in `asm-generic/ioctl.h`).
const IOCTL_TYPE: u64 = 0xff00;
const IOCTL_KVM: u64 = 0xae00;
const IOCTL_USERFAULTFD: u64 = 0xaa00;
/// Any flag with which opening a file is more than looking at it.
const OPEN_CHANGES: u64 =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY))
        as u64;
const NAMESPACES: [i32; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWTIME,
];
/// `PR_SET_VMA`: glibc may name memory that it allocates.
const PR_SET_VMA: i32 = 0x5356_4d41;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters in force: what a beginning thread adds.
static OF_THREADS: OnceLock<Vec<(ThreadKind, BpfProgram)>> = OnceLock::new();

/// Installs the filter of the process in this thread, and has threads that begin
/// from now on add their own.
pub(super) fn install(mode: JailMode) -> Result<(), seccompiler::Error> {
    let refuse = match mode {
        JailMode::Off => return Ok(()),
        JailMode::Log => SeccompAction::Log,
        JailMode::Strict => SeccompAction::Trap,
    };
    let of_threads: Result<Vec<_>, seccompiler::Error> = ThreadKind::ALL
        .into_iter()
        .map(|kind| Ok((kind, program(kind, refuse.clone())?)))
        .collect();
    let of_threads = of_threads?;
    if mode == JailMode::Strict {
        keep_from_cloning()?;
    }
    seccompiler::apply_filter(of(&of_threads, ThreadKind::Process))?;
    let _ = OF_THREADS.set(of_threads);
    Ok(())
}

/// Threads of this process are all that may be made: neither another process nor
/// a namespace. libc blocks all signals around these calls, and a SIGSYS that is
/// blocked kills: they fail without one.
fn keep_from_cloning() -> Result<(), seccompiler::Error> {
    // Its flags lie in memory, where no filter sees them: libc takes clone(2).
    let clone3 = Rules::from([(Sysno::clone3 as i64, Vec::new())]);
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    seccompiler::apply_filter(&compile(clone3, SeccompAction::Allow, unknown)?)?;
    let mut other = vec![masked(0, libc::CLONE_THREAD as u64, 0)?];
    for namespace in NAMESPACES {
        let bit = u64::from(namespace as u32);
        other.push(masked(0, bit, bit)?);
    }
    let clone = Rules::from([(Sysno::clone as i64, other)]);
    let forbidden = SeccompAction::Errno(libc::EPERM as u32);
    seccompiler::apply_filter(&compile(clone, SeccompAction::Allow, forbidden)?)
}

/// Adds the filter of `kind` in this thread, if the process is in a jail.
pub(super) fn narrow(kind: ThreadKind) -> Result<(), seccompiler::Error> {
    match OF_THREADS.get() {
        Some(of_threads) => seccompiler::apply_filter(of(of_threads, kind)),
        None => Ok(()),
    }
}

fn of(of_threads: &[(ThreadKind, BpfProgram)], kind: ThreadKind) -> &BpfProgram {
    let found = of_threads.iter().find(|(other, _)| *other == kind);
    &found.expect("every kind has a filter").1
}

fn program(kind: ThreadKind, refuse: SeccompAction) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: Rules =
        calls::allowed(kind).iter().map(|call| (call as i64, Vec::new())).collect();
    let mut on = |call: Sysno, conditions: Vec<SeccompRule>| {
        // Allowed whatever its arguments are.
        rules.entry(call as i64).or_insert(conditions);
    };
    on(Sysno::openat, vec![masked(2, OPEN_CHANGES, libc::O_RDONLY as u64)?]);
    on(Sysno::ioctl, requests(kind)?);
    on(Sysno::tgkill, vec![equal(0, u64::from(std::process::id()))?]);
    let prctl = [
        libc::PR_SET_NAME,
        libc::PR_GET_NAME,
        libc::PR_GET_DUMPABLE,
        libc::PR_SET_NO_NEW_PRIVS,
        libc::PR_GET_NO_NEW_PRIVS,
        PR_SET_VMA,
    ];
    on(
        Sysno::prctl,
        prctl.into_iter().map(|what| equal(0, what as u64)).collect::<Result<_, _>>()?,
    );
    // Reading a limit; the third argument is a new one.
    let no_limit = SeccompCondition::new(2, Length::Qword, Compare::Eq, 0)?;
    on(Sysno::prlimit64, vec![SeccompRule::new(vec![no_limit])?]);
    if matches!(kind, ThreadKind::Process | ThreadKind::Network) {
        let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
        let families = families.into_iter().map(|family| equal(0, family as u64));
        on(Sysno::socket, families.collect::<Result<_, _>>()?);
    }
    compile(rules, refuse, SeccompAction::Allow)
}

/// What of ioctl(2) is allowed, by request.
fn requests(kind: ThreadKind) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let plain = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD];
    let mut rules: Vec<SeccompRule> =
        plain.into_iter().map(|request| equal(1, request)).collect::<Result<_, _>>()?;
    let (kvm, userfaultfd) = match kind {
        ThreadKind::Vcpu => (true, false),
        ThreadKind::Pages | ThreadKind::Epoch | ThreadKind::Process => (true, true),
        ThreadKind::Device | ThreadKind::Output | ThreadKind::Network => (false, false),
    };
    if kvm {
        rules.push(masked(1, IOCTL_TYPE, IOCTL_KVM)?);
    }
    if userfaultfd {
        rules.push(masked(1, IOCTL_TYPE, IOCTL_USERFAULTFD)?);
    }
    Ok(rules)
}

/// A call whose argument `index` is `value`, as the 32 bits that the kernel takes.
fn equal(index: u8, value: u64) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(index, Length::Dword, Compare::Eq, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// A call whose argument `index` has `value` in the bits of `mask`.
fn masked(index: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(index, Length::Dword, Compare::MaskedEq(mask), value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let filter = SeccompFilter::new(rules, otherwise, matching, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}
