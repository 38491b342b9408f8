//! Trying what the jail forbids: for the tests, and for who does not believe it.

use std::{io, net::UdpSocket, os::unix::process::CommandExt, process::Command};

use super::{JailError, Needs, ThreadKind, enter, spawn};
use crate::config::JailMode;

/// Something that a thread tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Attempt {
    /// Becoming another program: the process dies.
    Program,
    /// Making a process.
    Process,
    /// Opening a socket.
    Socket,
    /// Writing a file in the temporary folder.
    Write,
    /// Reading `/etc/passwd`.
    Read,
    /// Calling a server by TCP.
    Tcp,
    /// A panic, which ends the process in good order.
    Panic,
}

/// Enters the strict jail of a daemon that needs nothing of its own, and has a thread of
/// `kind` try it. Returns what came of that, if the process lives.
///
/// # Errors
///
/// [`JailError`], if it could not be jailed.
pub fn attempt(kind: ThreadKind, what: Attempt) -> Result<io::Result<()>, JailError> {
    enter(JailMode::Strict, &Needs::of_any(0))?;
    let system = |source| JailError::System { action: "start a thread", source };
    let name = format!("{kind:?}").to_lowercase();
    let tried = spawn(kind, name, move || try_it(what)).map_err(system)?;
    Ok(tried.join().expect("a panic aborts"))
}

fn try_it(what: Attempt) -> io::Result<()> {
    match what {
        Attempt::Program => Err(Command::new("/bin/true").exec()),
        Attempt::Process => Command::new("/bin/true").status().map(drop),
        Attempt::Socket => UdpSocket::bind("127.0.0.1:0").map(drop),
        Attempt::Write => {
            let name = format!("romulus-attempt-{}", std::process::id());
            std::fs::write(std::env::temp_dir().join(name), "")
        }
        Attempt::Read => std::fs::read("/etc/passwd").map(drop),
        Attempt::Tcp => std::net::TcpStream::connect("127.0.0.1:1").map(drop),
        Attempt::Panic => panic!("it was asked for"),
    }
}
