//! How a command ends, as its caller sees it.

use std::process::ExitCode;

/// The exit codes of `romulus`; `docs/operations.md` documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done,
    /// It could not; the reason is on stderr.
    Failed,
    /// The command line or the configuration is wrong; nothing was started.
    Usage,
    /// This node has lost the right to run the guest, for good: it may come
    /// back only as a backup.
    Fenced,
}

impl Exit {
    /// The code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Fenced => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
