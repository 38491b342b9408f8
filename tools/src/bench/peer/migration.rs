//! QEMU's live migration: how long the guest stands still when it moves.
//!
//! One migration has one stop. It is the time that QEMU itself reports, with its
//! default limit of 300 ms.

use std::{path::Path, time::Duration};

use serde_json::json;

use super::qemu::{Machine, Qemu, QemuError};

/// What a migration cost.
#[derive(Debug)]
pub(super) struct Migration {
    /// How long the guest stood still, in ms.
    pub(super) downtime_ms: f64,
    /// From its begin to its end.
    pub(super) total: Duration,
}

/// Moves the guest of `machine` once.
pub(super) fn run(folder: &Path, machine: &Machine) -> Result<Migration, QemuError> {
    let socket = folder.join("migration.sock");
    let place = format!("unix:{}", socket.display());
    let mut to = Qemu::start(folder, "to", machine, &["-incoming", "defer"])?;
    let mut from = Qemu::start(folder, "from", machine, &[])?;
    from.wait_ready()?;
    to.command("migrate-incoming", json!({ "uri": place }))?;
    from.command("migrate-set-parameters", json!({ "max-bandwidth": 10_u64 << 30 }))?;
    from.command("migrate", json!({ "uri": place }))?;
    let done = from.wait_until("the guest has moved", |qemu| {
        let told = qemu.command("query-migrate", json!({}))?;
        match told["status"].as_str() {
            Some("completed") => Ok(Some(told)),
            Some("failed") => {
                let answer = told["error-desc"].as_str().unwrap_or("no reason").to_owned();
                Err(QemuError::Refused { command: "migrate".to_owned(), answer })
            }
            _ => Ok(None),
        }
    })?;
    Ok(Migration {
        downtime_ms: done["downtime"].as_f64().unwrap_or(f64::NAN),
        total: Duration::from_millis(done["total-time"].as_u64().unwrap_or(0)),
    })
}
