//! The system calls that each kind of thread may make, and what becomes of the
//! others.
//!
//! Threads of a process share memory and descriptors, so these lists do not keep
//! threads from each other. They keep what broke out of a guest, or came in by
//! the network, from the rest of the kernel. When in doubt a call that acts only
//! on what is open already is allowed: a fault-tolerant process must not fail by
//! a rare call that was overlooked.

use syscalls::{Sysno, SysnoSet};
use vmm::refusal::{Judgement, Verdict};

use super::ThreadKind;

/// `EPERM` and `ENOSYS` of errno(3).
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// What any thread needs to live: memory, waiting, telling the time, signals,
/// panics and logs; and what it does with descriptors that are open. Files can
/// be opened for reading: landlock says which.
const LIVING: SysnoSet = SysnoSet::new(&[
    // Memory.
    Sysno::brk,
    Sysno::madvise,
    Sysno::mmap,
    Sysno::mprotect,
    Sysno::mremap,
    Sysno::munmap,
    // Threads, and waiting. What may be cloned is judged apart.
    Sysno::clone,
    Sysno::clone3,
    Sysno::exit,
    Sysno::exit_group,
    Sysno::futex,
    Sysno::get_robust_list,
    Sysno::getcpu,
    Sysno::getpid,
    Sysno::gettid,
    Sysno::membarrier,
    Sysno::restart_syscall,
    Sysno::rseq,
    Sysno::sched_getaffinity,
    Sysno::sched_yield,
    Sysno::set_robust_list,
    // Time.
    Sysno::clock_getres,
    Sysno::clock_gettime,
    Sysno::clock_nanosleep,
    Sysno::gettimeofday,
    Sysno::nanosleep,
    Sysno::time,
    // Signals.
    Sysno::rt_sigaction,
    Sysno::rt_sigpending,
    Sysno::rt_sigprocmask,
    Sysno::rt_sigreturn,
    Sysno::sigaltstack,
    // Who and where it is; randomness.
    Sysno::getcwd,
    Sysno::getegid,
    Sysno::geteuid,
    Sysno::getgid,
    Sysno::getrandom,
    Sysno::getrlimit,
    Sysno::getrusage,
    Sysno::getuid,
    Sysno::sysinfo,
    Sysno::uname,
    // A further filter only takes away.
    Sysno::seccomp,
    // What is open already.
    Sysno::close,
    Sysno::dup,
    Sysno::fcntl,
    Sysno::fstat,
    Sysno::fstatfs,
    Sysno::lseek,
    Sysno::pread64,
    Sysno::preadv,
    Sysno::preadv2,
    Sysno::pwrite64,
    Sysno::pwritev,
    Sysno::pwritev2,
    Sysno::read,
    Sysno::readv,
    Sysno::write,
    Sysno::writev,
    Sysno::epoll_create1,
    Sysno::epoll_ctl,
    Sysno::epoll_pwait,
    Sysno::epoll_pwait2,
    Sysno::epoll_wait,
    Sysno::eventfd2,
    Sysno::poll,
    Sysno::ppoll,
    // Looking at files: a panic's backtrace does, and so does malloc.
    Sysno::access,
    Sysno::faccessat,
    Sysno::faccessat2,
    Sysno::lstat,
    Sysno::newfstatat,
    Sysno::readlink,
    Sysno::readlinkat,
    Sysno::stat,
    Sysno::statx,
]);

/// Writing images and logs for good.
const STORING: SysnoSet = SysnoSet::new(&[
    Sysno::copy_file_range,
    Sysno::fadvise64,
    Sysno::fallocate,
    Sysno::fdatasync,
    Sysno::flock,
    Sysno::fsync,
    Sysno::ftruncate,
    Sysno::sync_file_range,
]);

/// The console's log, which is emptied when it is full.
const EMPTYING: SysnoSet = SysnoSet::new(&[Sysno::ftruncate]);

/// Files by name. Landlock says which.
const NAMING: SysnoSet = SysnoSet::new(&[
    Sysno::chmod,
    Sysno::fchmod,
    Sysno::fchmodat,
    Sysno::getdents64,
    Sysno::mkdir,
    Sysno::mkdirat,
    Sysno::openat,
    Sysno::rename,
    Sysno::renameat,
    Sysno::renameat2,
    Sysno::rmdir,
    Sysno::unlink,
    Sysno::unlinkat,
]);

/// Sockets. `socket` itself is judged by its family.
const TALKING: SysnoSet = SysnoSet::new(&[
    Sysno::accept4,
    Sysno::bind,
    Sysno::connect,
    Sysno::getpeername,
    Sysno::getsockname,
    Sysno::getsockopt,
    Sysno::listen,
    Sysno::pipe2,
    Sysno::recvfrom,
    Sysno::recvmmsg,
    Sysno::recvmsg,
    Sysno::select,
    Sysno::pselect6,
    Sysno::sendmmsg,
    Sysno::sendmsg,
    Sysno::sendto,
    Sysno::setsockopt,
    Sysno::shutdown,
    Sysno::socketpair,
]);

/// Guest memory.
const MAKING: SysnoSet = SysnoSet::new(&[Sysno::memfd_create]);

/// Calls without which no daemon of ours ever lives, and which somebody who has
/// broken in would try first: new programs, other processes, mounts, namespaces,
/// kernel code, other users, the machine.
const TAKING_OVER: SysnoSet = SysnoSet::new(&[
    Sysno::acct,
    Sysno::add_key,
    Sysno::adjtimex,
    Sysno::bpf,
    Sysno::capset,
    Sysno::chroot,
    Sysno::clock_adjtime,
    Sysno::clock_settime,
    Sysno::delete_module,
    Sysno::execve,
    Sysno::execveat,
    Sysno::finit_module,
    Sysno::fsconfig,
    Sysno::fsmount,
    Sysno::fsopen,
    Sysno::fspick,
    Sysno::init_module,
    Sysno::ioperm,
    Sysno::iopl,
    Sysno::kexec_file_load,
    Sysno::kexec_load,
    Sysno::keyctl,
    Sysno::modify_ldt,
    Sysno::mount,
    Sysno::mount_setattr,
    Sysno::move_mount,
    Sysno::open_by_handle_at,
    Sysno::open_tree,
    Sysno::perf_event_open,
    Sysno::pidfd_getfd,
    Sysno::pivot_root,
    Sysno::process_vm_readv,
    Sysno::process_vm_writev,
    Sysno::ptrace,
    Sysno::quotactl,
    Sysno::reboot,
    Sysno::request_key,
    Sysno::setdomainname,
    Sysno::setfsgid,
    Sysno::setfsuid,
    Sysno::setgid,
    Sysno::setgroups,
    Sysno::sethostname,
    Sysno::setns,
    Sysno::setregid,
    Sysno::setresgid,
    Sysno::setresuid,
    Sysno::setreuid,
    Sysno::settimeofday,
    Sysno::setuid,
    Sysno::swapoff,
    Sysno::swapon,
    Sysno::umount2,
    Sysno::unshare,
    Sysno::uselib,
]);

/// Calls that `kind` may make whatever their arguments.
pub(super) const fn allowed(kind: ThreadKind) -> SysnoSet {
    match kind {
        ThreadKind::Vcpu => LIVING,
        ThreadKind::Output => LIVING.union(&EMPTYING),
        ThreadKind::Device | ThreadKind::Pages => LIVING.union(&STORING),
        ThreadKind::Epoch => LIVING.union(&STORING).union(&NAMING),
        ThreadKind::Network => LIVING.union(&STORING).union(&NAMING).union(&TALKING),
        ThreadKind::Process => LIVING.union(&STORING).union(&NAMING).union(&TALKING).union(&MAKING),
    }
}

/// What becomes of a call that was refused. It runs in a signal handler.
pub(super) fn judge(number: i64) -> Judgement {
    let known = usize::try_from(number).ok().and_then(Sysno::new);
    match known {
        Some(call) if TAKING_OVER.contains(call) => {
            Judgement { name: call.name(), verdict: Verdict::Ends }
        }
        Some(call) => Judgement { name: call.name(), verdict: Verdict::Fails(EPERM) },
        // Newer than this program: libraries take another way when it is not there.
        None => Judgement { name: "", verdict: Verdict::Fails(ENOSYS) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_over_is_allowed_to_nobody() {
        for kind in ThreadKind::ALL {
            let both = allowed(kind).intersection(&TAKING_OVER);
            assert!(both.is_empty(), "{kind:?}: {both:?}");
            let more = allowed(kind).difference(&allowed(ThreadKind::Process));
            assert!(more.is_empty(), "{kind:?} inherits what the process lacks: {more:?}");
        }
    }

    #[test]
    fn verdicts_are_by_harm() {
        let execve = judge(Sysno::execve as i64);
        assert_eq!((execve.name, execve.verdict), ("execve", Verdict::Ends));
        let inotify = judge(Sysno::inotify_init1 as i64);
        assert_eq!((inotify.name, inotify.verdict), ("inotify_init1", Verdict::Fails(EPERM)));
        assert_eq!(judge(9999).verdict, Verdict::Fails(ENOSYS));
        assert_eq!(judge(-1).verdict, Verdict::Fails(ENOSYS));
    }
}
