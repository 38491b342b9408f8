//! Programs of the outer machine that the lab is made with, and the Debian
//! packages that bring them.

use std::{
    ffi::OsStr,
    io,
    path::PathBuf,
    process::{Command, Stdio},
};

use thiserror::Error;

/// Why a program was of no use.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("cannot run `{program}` ({source}): install it with `apt-get install {package}`")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It ran and failed.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// What was run.
        command: String,
        /// Its complaint.
        said: String,
    },
}

/// A program and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Its name in PATH.
    pub program: &'static str,
    /// Debian's package.
    pub package: &'static str,
}

/// The machines.
pub const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };
/// What ties a machine's life to ours.
pub const SETPRIV: Tool = Tool { program: "setpriv", package: "util-linux" };
pub(super) const MKSQUASHFS: Tool = Tool { program: "mksquashfs", package: "squashfs-tools" };
pub(super) const CPIO: Tool = Tool { program: "cpio", package: "cpio" };
/// What a rehearsal in a machine makes its networks with.
pub(super) const IP: Tool = Tool { program: "ip", package: "iproute2" };
pub(super) const STRIP: Tool = Tool { program: "strip", package: "binutils" };
pub(super) const DPKG_DEB: Tool = Tool { program: "dpkg-deb", package: "dpkg" };
pub(super) const APT_GET: Tool = Tool { program: "apt-get", package: "apt" };
pub(super) const APT_CACHE: Tool = Tool { program: "apt-cache", package: "apt" };

const ALL: [Tool; 9] = [QEMU, SETPRIV, MKSQUASHFS, CPIO, IP, STRIP, DPKG_DEB, APT_GET, APT_CACHE];

/// Those of the lab's programs that are not in PATH.
#[must_use]
pub fn missing() -> Vec<Tool> {
    ALL.into_iter().filter(|tool| tool.path().is_none()).collect()
}

impl Tool {
    /// Where it is.
    pub(super) fn path(self) -> Option<PathBuf> {
        let folders = std::env::var_os("PATH")?;
        let mut candidates = std::env::split_paths(&folders).map(|dir| dir.join(self.program));
        candidates.find(|candidate| candidate.is_file())
    }

    /// A command that the caller completes and hands to [`Tool::finish`].
    #[must_use]
    pub fn command(self) -> Command {
        let mut command = Command::new(self.program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it to its end. Returns what it wrote on stdout.
    ///
    /// # Errors
    ///
    /// [`ToolError`], with what it wrote on stderr.
    pub fn run(self, arguments: &[impl AsRef<OsStr>]) -> Result<Vec<u8>, ToolError> {
        self.finish(self.command().args(arguments))
    }

    /// Runs a prepared command to its end. Returns what it wrote on stdout.
    ///
    /// # Errors
    ///
    /// [`ToolError`], with what it wrote on stderr.
    pub fn finish(self, command: &mut Command) -> Result<Vec<u8>, ToolError> {
        let Self { program, package } = self;
        let output =
            command.output().map_err(|source| ToolError::Missing { program, package, source })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
        Err(ToolError::Failed {
            command: format!("{program} {}", words.collect::<Vec<_>>().join(" ")),
            said: format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let tool = Tool { program: "romulus-no-such-program", package: "no-such-package" };
        assert!(tool.path().is_none());
        let said = tool.run(&["-v"]).unwrap_err().to_string();
        assert!(said.contains("apt-get install no-such-package"), "{said}");
    }

    #[test]
    fn a_failure_tells_what_was_said() {
        let said = DPKG_DEB.run(&["--no-such-option"]).unwrap_err().to_string();
        assert!(said.contains("dpkg-deb --no-such-option") && said.contains("unknown"), "{said}");
    }
}
