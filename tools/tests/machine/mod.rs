//! What tests need of the machine, and the machine itself: one at a time of those
//! that run guests, as two would take each other's time.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use romulus::jail::landlock_available;

/// From this version on TCP is restricted, too.
const LANDLOCK_VERSION_MIN: u32 = 4;

static MACHINE: Mutex<()> = Mutex::new(());

/// What a machine may lack, by its name in `ROMULUS_REQUIRE`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    Kvm,
    /// Taps and network namespaces.
    Tun,
    Etcd,
    Landlock,
}

/// Guests on hosts in network namespaces.
pub(crate) const GUESTS: &[Need] = &[Need::Kvm, Need::Tun];

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tun => "tun",
            Self::Etcd => "etcd",
            Self::Landlock => "landlock",
        }
    }

    /// Why it cannot be had here.
    fn obstacle(self) -> Option<String> {
        let missing =
            |path: &str| (!Path::new(path).exists()).then(|| format!("{path} is missing"));
        match self {
            Self::Kvm => missing("/dev/kvm"),
            Self::Tun => missing("/dev/net/tun").or_else(|| {
                let is_root = nix::unistd::geteuid().is_root();
                (!is_root).then(|| "namespaces and taps need root".to_owned())
            }),
            Self::Etcd => {
                let version = Command::new("etcd").arg("--version").output();
                let runs = version.is_ok_and(|output| output.status.success());
                (!runs).then(|| "etcd cannot be run: apt-get install etcd-server".to_owned())
            }
            Self::Landlock => {
                let found = landlock_available();
                (found < LANDLOCK_VERSION_MIN).then(|| {
                    format!(
                        "this kernel's landlock is of version {found}, {LANDLOCK_VERSION_MIN} restricts TCP"
                    )
                })
            }
        }
    }
}

/// The machine, for as long as the guard lives, if it has all that `test` needs.
/// See [`has`].
pub(crate) fn machine_for(test: &str, needs: &[Need]) -> Option<MutexGuard<'static, ()>> {
    has(test, needs).then(|| MACHINE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether this machine has all that `test` needs; skips the test if not.
pub(crate) fn has(test: &str, needs: &[Need]) -> bool {
    let mut is_complete = true;
    for need in needs {
        if let Some(reason) = need.obstacle() {
            skip(test, *need, &reason);
            is_complete = false;
        }
    }
    is_complete
}

/// Says why `test` is skipped, or fails where `ROMULUS_REQUIRE` has the need's name.
pub(crate) fn skip(test: &str, need: Need, reason: &str) {
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == need.name()), "{test}: {reason}");
    println!("skipped: {test}: {reason}");
}
