//! A tap interface: the host's end of the guest's network cable.
//!
//! One `read` or `write` is one Ethernet frame, without a header of any kind
//! (`IFF_NO_PI`, no `IFF_VNET_HDR`: no offloads are negotiated with the guest,
//! so that header would be twelve zero bytes). See the kernel's
//! `Documentation/networking/tuntap.rst`.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use thiserror::Error;

/// Why a tap could not be opened.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name cannot be that of an interface.
    #[error("tap name `{0}` is not 1 to 15 visible bytes without `/`: choose another name")]
    Name(String),
    /// The kernel has no tun driver, or the container hides it.
    #[error(
        "/dev/net/tun is not there: load the `tun` module or pass the device into the container"
    )]
    NoTun(#[source] io::Error),
    /// Not allowed.
    #[error(
        "tap `{name}` may not be opened: run as root, or create it with `ip tuntap add {name} mode tap user $USER`"
    )]
    Permission {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It has to exist and does not.
    #[error(
        "tap `{0}` does not exist: create it with `ip tuntap add {0} mode tap` and put it on the bridge with `ip link set {0} master br0 up`"
    )]
    Missing(String),
    /// Another process has it.
    #[error("tap `{name}` is in use by another process: stop that process, or name another tap")]
    Busy {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An interface of that name is something else.
    #[error(
        "interface `{name}` is not a single-queue tap: name another, or recreate it with `ip tuntap add {name} mode tap`"
    )]
    NotATap {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("tap `{name}` could not be opened: see the cause, and `romulus doctor`")]
    Open {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The interface took it.
    Taken,
    /// The interface's queue is full; try again later.
    Blocked,
    /// It is lost: the interface is down or refuses it.
    Lost,
}

/// An open tap interface, non-blocking.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Opens the tap `name`, which must exist unless `create`.
    ///
    /// # Errors
    ///
    /// [`TapError`], saying what is missing.
    pub fn open(name: &str, create: bool) -> Result<Self, TapError> {
        let c_name = interface_name(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|source| open_error(name, source))?;
        // SAFETY: the pointer is to a terminated string that outlives the call.
        if !create && unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
            return Err(TapError::Missing(name.into()));
        }
        attach(&file, &c_name).map_err(|source| attach_error(name, source))?;
        Ok(Self { file, name: name.into() })
    }

    /// A cable end for tests: any non-blocking descriptor that keeps frames apart.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn from_socket(socket: std::os::unix::net::UnixDatagram) -> Self {
        socket.set_nonblocking(true).expect("a socket can be made non-blocking");
        Self { file: File::from(std::os::fd::OwnedFd::from(socket)), name: "test".into() }
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts `frame` on the cable.
    pub(crate) fn send(&self, frame: &[u8]) -> Sent {
        loop {
            match (&self.file).write(frame) {
                Ok(_) => return Sent::Taken,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Sent::Blocked,
                Err(error) => {
                    tracing::debug!(tap = %self.name, %error, "a frame is lost");
                    return Sent::Lost;
                }
            }
        }
    }

    /// Takes a frame from the cable into `buffer`, if one is there; returns
    /// its length.
    ///
    /// # Errors
    ///
    /// If the interface is gone.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until a frame can be sent, for `timeout_ms` at most.
    pub(crate) fn wait_writable(&self, timeout_ms: i32) {
        let mut poll =
            libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: the pointer is to one pollfd, which outlives the call.
        unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// `name` as the kernel takes it: `dev_valid_name` in `net/core/dev.c`, and no
/// `%`, which would ask for a number.
fn interface_name(name: &str) -> Result<CString, TapError> {
    let refused = || TapError::Name(name.to_owned());
    let visible = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !visible || name == "." || name == ".." {
        return Err(refused());
    }
    CString::new(name).map_err(|_| refused())
}

fn open_error(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, source },
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => TapError::NoTun(source),
        _ => TapError::Open { name, source },
    }
}

fn attach_error(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, source },
        Some(libc::EBUSY) => TapError::Busy { name, source },
        Some(libc::EINVAL) => TapError::NotATap { name, source },
        _ => TapError::Open { name, source },
    }
}

fn attach(file: &File, name: &CString) -> io::Result<()> {
    // SAFETY: an ifreq is plain integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::fixture::{in_new_network, ip, require_tun};

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", "tap%d", ".."] {
            assert!(matches!(Tap::open(name, false), Err(TapError::Name(_))), "{name}");
        }
    }

    #[test]
    fn a_tap_must_exist_unless_it_may_be_made() {
        if !require_tun() {
            return;
        }
        in_new_network(|| {
            assert!(matches!(Tap::open("tap7", false), Err(TapError::Missing(_))));
            let tap = Tap::open("tap7", true).unwrap();
            assert_eq!(tap.name(), "tap7");
            assert!(matches!(Tap::open("tap7", false), Err(TapError::Busy { .. })));
            assert!(matches!(Tap::open("lo", false), Err(TapError::NotATap { .. })));
        });
    }

    #[test]
    fn a_frame_is_lost_while_the_interface_is_down() {
        if !require_tun() {
            return;
        }
        in_new_network(|| {
            let tap = Tap::open("tap7", true).unwrap();
            assert_eq!(tap.send(&[0; 60]), Sent::Lost);
            ip("link set tap7 up");
            assert_eq!(tap.send(&[0; 60]), Sent::Taken);
        });
    }
}
