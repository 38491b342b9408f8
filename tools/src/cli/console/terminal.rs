//! The operator's terminal while it is the guest's: every key goes there as it
//! is typed. It is as before when the guard is dropped, by a panic, too;
//! signals that end the session are caught by the session, so that it ends in
//! good order.

use std::io::{self, Stdin, stdin};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// A terminal in raw mode.
pub(super) struct RawTerminal {
    stdin: Stdin,
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal that stdin is raw.
    ///
    /// # Errors
    ///
    /// If it is none, or hung up.
    pub(super) fn begin() -> io::Result<Self> {
        let stdin = stdin();
        let before = tcgetattr(&stdin)?;
        let terminal = Self { stdin, before };
        terminal.again()?;
        Ok(terminal)
    }

    /// Makes it raw again, after whoever stopped this process had it.
    ///
    /// # Errors
    ///
    /// If it is hung up.
    pub(super) fn again(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        Ok(tcsetattr(&self.stdin, SetArg::TCSANOW, &raw)?)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // It fails only if the terminal is gone.
        let _ = tcsetattr(&self.stdin, SetArg::TCSADRAIN, &self.before);
    }
}
