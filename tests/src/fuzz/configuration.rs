//! Configuration files. What they may name is there: `kernel`, `initrd`,
//! `disk.img`, `ca.pem`, `cert.pem` and `key.pem`, beside the file.

use romulus::config;

use super::{Verdict, scratch};

const FILES: [&str; 6] = ["kernel", "initrd", "disk.img", "ca.pem", "cert.pem", "key.pem"];

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let folder = scratch::folder();
    for name in FILES {
        std::fs::write(folder.path().join(name), [0; 512]).expect("a folder of our own");
    }
    let path = folder.path().join("file.toml");
    std::fs::write(&path, bytes).expect("a folder of our own");
    let read = config::read_any(&path);
    if let Err(error) = &read {
        assert!(!error.to_string().is_empty());
    }
    let _ = config::read_vm(&path);
    let _ = config::read_arbiter(&path);
    Verdict::of(&read)
}
