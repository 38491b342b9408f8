//! The guest's address, on the first network device that is not loopback.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use rtnetlink::{Handle, LinkUnspec, new_connection};

use super::ProbeError;

const DEVICES: &str = "/sys/class/net";
/// How often a device is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Waits for a device and gives it the address; returns its name.
///
/// # Errors
///
/// [`ProbeError`]
pub(super) fn bring_up(
    address: Ipv4Addr,
    prefix: u8,
    patience: Duration,
) -> Result<String, ProbeError> {
    let (device, index) = wait_for_device(patience)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        match set_address(&handle, index, address, prefix).await {
            Ok(()) => Ok(device),
            Err(source) => Err(ProbeError::Address { address, device, source }),
        }
    })
}

async fn set_address(
    handle: &Handle,
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
) -> Result<(), rtnetlink::Error> {
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await?;
    handle.address().add(index, address.into(), prefix).execute().await
}

fn wait_for_device(patience: Duration) -> Result<(String, u32), ProbeError> {
    let deadline = Instant::now() + patience;
    loop {
        match first_device() {
            Some(found) => return Ok(found),
            None if Instant::now() < deadline => thread::sleep(LOOK),
            None => return Err(ProbeError::NoDevice),
        }
    }
}

fn first_device() -> Option<(String, u32)> {
    let entries = fs::read_dir(DEVICES).ok()?.flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.into_iter().filter(|name| name != "lo").find_map(|name| {
        let index = fs::read_to_string(format!("{DEVICES}/{name}/ifindex")).ok()?;
        Some((name, index.trim().parse().ok()?))
    })
}
