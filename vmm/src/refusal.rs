//! System calls that a seccomp filter refuses: told, and answered.
//!
//! A filter that refuses a call with `SECCOMP_RET_TRAP` keeps the kernel from
//! making it and sends SIGSYS to the thread that asked for it. What happens next
//! is decided here:
//!
//! ```text
//!   call ─▶ filter ─▶ SIGSYS ─▶ judge ─┬─▶ Fails: a line on stderr, the call returns the error
//!                                      └─▶ Ends: a line on stderr, the process dies of SIGSYS
//! ```
//!
//! Each call that fails is told once in a process's life, and counted always.
//! Kernel: `Documentation/userspace-api/seccomp_filter.rst`; signals: signal-safety(7).

use std::{
    ffi::{CStr, c_int, c_void},
    fmt::{self, Write},
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// What a refused call leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It returns this error, a positive number.
    Fails(i32),
    /// The process ends.
    Ends,
}

/// What is known of a system call, and what follows from it.
#[derive(Debug, Clone, Copy)]
pub struct Judgement {
    /// Its name; empty if it has none.
    pub name: &'static str,
    /// What follows.
    pub verdict: Verdict,
}

/// Decides by a call's number. It runs in a signal handler: it may neither
/// allocate nor lock.
pub type Judge = fn(i64) -> Judgement;

static JUDGE: OnceLock<Judge> = OnceLock::new();
static IN_JSON: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
/// A bit for each number that was told. Numbers beyond share the last word.
static TOLD: [AtomicU64; 9] = [const { AtomicU64::new(0) }; 9];

/// `si_code` of a SIGSYS that a filter caused (`SYS_SECCOMP` in `siginfo.h`).
const OF_FILTER: c_int = 1;

/// The head of a `siginfo_t` of SIGSYS on x86-64 (`_sigsys` in `siginfo.h`).
#[repr(C)]
struct RefusedCall {
    signal: c_int,
    errno: c_int,
    code: c_int,
    address: *mut c_void,
    number: c_int,
}

/// Has refused calls judged by `judge`, in all threads. What was set once stays.
///
/// # Errors
///
/// If SIGSYS cannot be handled.
pub fn judge_refused_calls(judge: Judge) -> io::Result<()> {
    let _ = JUDGE.set(judge);
    // SAFETY: a sigaction is plain data, for which zero is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_refused as *const () as usize;
    // SA_NODEFER: a call that the handler makes may be refused, too, and
    // ending the process takes a SIGSYS that arrives.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_NODEFER;
    // SAFETY: both pointers are to what outlives the call; the handler makes only
    // calls that signal handlers may make.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From now on what is told is a JSON object a line, for a log that is made of them.
pub fn tell_in_json() {
    IN_JSON.store(true, Ordering::Relaxed);
}

/// How many calls were refused since the process began.
#[must_use]
pub fn refused_calls() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

extern "C" fn on_refused(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a siginfo_t of SIGSYS, which is larger than its head.
    let call = unsafe { &*info.cast::<RefusedCall>() };
    // Somebody sent the signal: nothing was refused.
    if call.code != OF_FILTER {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    let number = i64::from(call.number);
    let unknown = Judgement { name: "", verdict: Verdict::Fails(libc::EPERM) };
    let judgement = JUDGE.get().map_or(unknown, |judge| judge(number));
    match judgement.verdict {
        Verdict::Ends => {
            tell(number, judgement.name, "this process ends");
            die();
        }
        Verdict::Fails(error) => {
            if first_of(number) {
                tell(number, judgement.name, "the call fails");
            }
            // SAFETY: the kernel passes the registers that the thread goes on with; the
            // call's result is expected in RAX.
            let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
            context.uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(error);
        }
    }
}

/// Whether `number` was not told before.
fn first_of(number: i64) -> bool {
    let number = number as u64;
    let word = usize::try_from(number / 64).map_or(TOLD.len(), |word| word).min(TOLD.len() - 1);
    let bit = 1 << (number % 64);
    TOLD[word].fetch_or(bit, Ordering::Relaxed) & bit == 0
}

fn tell(number: i64, name: &str, consequence: &str) {
    let mut thread = [0_u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, a terminated string.
    unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
    let thread =
        CStr::from_bytes_until_nul(&thread).map_or("?", |name| name.to_str().unwrap_or("?"));
    let name = if name.is_empty() { "unknown" } else { name };
    let mut line = Line { bytes: [0; LINE_BYTES_MAX], len: 0 };
    let _ = if IN_JSON.load(Ordering::Relaxed) {
        write_json(&mut line, unix_ms(), thread, number, name, consequence)
    } else {
        write_text(&mut line, thread, number, name, consequence)
    };
    // SAFETY: the pointer is to `len` bytes that outlive the call.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
}

fn write_text(
    line: &mut Line,
    thread: &str,
    number: i64,
    name: &str,
    consequence: &str,
) -> fmt::Result {
    writeln!(
        line,
        "romulus: thread `{thread}` asked for system call {name} ({number}), which its jail refuses: {consequence}"
    )
}

/// With the names that other lines of a JSON log have, and the time in milliseconds: a date would
/// have to be made without the library that makes theirs.
fn write_json(
    line: &mut Line,
    unix_ms: u64,
    thread: &str,
    number: i64,
    name: &str,
    consequence: &str,
) -> fmt::Result {
    write!(line, "{{\"unix_ms\":{unix_ms},\"level\":\"ERROR\",\"message\":\"thread `")?;
    // Names are ours; one with a quote shall not end the word all the same.
    let plain =
        |letter: char| if letter.is_control() || "\"\\".contains(letter) { '?' } else { letter };
    thread.chars().map(plain).try_for_each(|letter| line.write_char(letter))?;
    writeln!(
        line,
        "` asked for system call {name} ({number}), which its jail refuses: {consequence}\",\"target\":\"vmm::refusal\"}}"
    )
}

fn unix_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec; the call is one that signal handlers may make.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Ends the process as the kernel ends one whose call it does not allow.
fn die() -> ! {
    // SAFETY: plain calls that signal handlers may make.
    unsafe {
        libc::signal(libc::SIGSYS, libc::SIG_DFL);
        libc::raise(libc::SIGSYS);
        libc::abort()
    }
}

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 320;

/// A line that is made without allocating.
struct Line {
    bytes: [u8; LINE_BYTES_MAX],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let taken = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_text_or_one_json_object() {
        let mut line = Line { bytes: [0; LINE_BYTES_MAX], len: 0 };
        write_json(&mut line, 1700, "net\"-\\0\n", 42, "connect", "the call fails").unwrap();
        let told = String::from_utf8(line.bytes[..line.len].to_vec()).unwrap();
        let expected = "{\"unix_ms\":1700,\"level\":\"ERROR\",\"message\":\"thread `net?-?0?` \
                        asked for system call connect (42), which its jail refuses: the call \
                        fails\",\"target\":\"vmm::refusal\"}\n";
        assert_eq!(told, expected);
        let mut line = Line { bytes: [0; LINE_BYTES_MAX], len: 0 };
        write_text(&mut line, "net-0", 42, "connect", "the call fails").unwrap();
        assert!(line.bytes.starts_with(b"romulus: thread `net-0` asked for system call connect"));
    }
}
