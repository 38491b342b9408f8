//! QEMU's COLO in periodic mode: how long its primary's guest stands still for a
//! checkpoint.
//!
//! ```text
//!   primary ══ checkpoints, a Unix socket ══▶ secondary (which runs the guest too)
//!      └─ trace: run => stop … stop => run      └─ trace: dirty pages of each checkpoint
//! ```
//!
//! Everything of a checkpoint happens between its stop and its run. The socket is
//! QEMU's best case: over TCP it waits for delayed acknowledgements as well.

use std::{path::Path, time::Duration};

use serde_json::json;

use super::qemu::{Machine, Qemu, QemuError};

/// Events with their times.
const TRACE: [&str; 4] = ["-trace", "colo_*", "-msg", "timestamp=on"];

/// What COLO did in a while.
#[derive(Debug)]
pub(super) struct Checkpoints {
    /// How long the guest stood still, one for each checkpoint, in ms.
    pub(super) pauses_ms: Vec<f64>,
    /// Dirty pages of each checkpoint.
    pub(super) dirty_pages: Vec<f64>,
}

/// Protects the guest of `machine` with a checkpoint every `interval`, and looks for
/// so long.
pub(super) fn run(
    folder: &Path,
    machine: &Machine,
    interval: Duration,
    look: Duration,
) -> Result<Checkpoints, QemuError> {
    let socket = folder.join("colo.sock");
    let place = format!("unix:{}", socket.display());
    let incoming = [&TRACE[..], &["-incoming", "defer"]].concat();
    let mut secondary = Qemu::start(folder, "secondary", machine, &incoming)?;
    let mut primary = Qemu::start(folder, "primary", machine, &TRACE)?;
    primary.wait_ready()?;
    for side in [&mut secondary, &mut primary] {
        let colo = json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
        side.command("migrate-set-capabilities", colo)?;
    }
    secondary.command("migrate-incoming", json!({ "uri": place }))?;
    let delay = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    let parameters = json!({ "max-bandwidth": 10_u64 << 30, "x-checkpoint-delay": delay });
    primary.command("migrate-set-parameters", parameters)?;
    primary.command("migrate", json!({ "uri": place }))?;
    primary.wait_until("it is in COLO (7.2 gets there, 10.0 does not)", |qemu| {
        let status = qemu.command("query-migrate", json!({}))?;
        Ok((status["status"] == "colo").then_some(()))
    })?;
    // The first checkpoints have what the seed left over.
    std::thread::sleep(interval * 4);
    let (stops, flushes) = (pauses_ms(&primary.trace()).len(), flushed(&secondary.trace()).len());
    std::thread::sleep(look);
    let pauses_ms = pauses_ms(&primary.trace()).split_off(stops);
    let dirty_pages = flushed(&secondary.trace()).split_off(flushes);
    Ok(Checkpoints { pauses_ms, dirty_pages })
}

/// From every stop to the run that follows, in a primary's trace.
fn pauses_ms(trace: &str) -> Vec<f64> {
    let mut pauses = Vec::new();
    let mut stopped = None;
    for line in trace.lines() {
        let Some((seconds, event)) = event(line) else { continue };
        if event.ends_with("Change 'run' => 'stop'") {
            stopped = Some(seconds);
        } else if event.ends_with("Change 'stop' => 'run'")
            && let Some(stopped) = stopped.take()
        {
            pauses.push((seconds - stopped) * 1000.0);
        }
    }
    pauses
}

/// Dirty pages of every checkpoint, in a secondary's trace.
fn flushed(trace: &str) -> Vec<f64> {
    let pages = |line| event(line)?.1.strip_prefix("colo_flush_ram_cache_begin dirty_pages ");
    trace.lines().filter_map(|line| pages(line)?.trim().parse().ok()).collect()
}

/// `PID@SECONDS.MICROSECONDS:EVENT`; the last line may be half written.
fn event(line: &str) -> Option<(f64, &str)> {
    let (_, line) = line.split_once('@')?;
    let (seconds, event) = line.split_once(':')?;
    Some((seconds.parse().ok()?, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read_from_a_trace() {
        let trace = "\
9511@1795634597.302888:colo_vm_state_change Change 'stop' => 'run'
9511@1795634597.327152:colo_send_message Send 'checkpoint-request' message
9511@1795634597.500000:colo_vm_state_change Change 'run' => 'stop'
9511@1795634597.512500:colo_vm_state_change Change 'stop' => 'run'
9511@1795634597.600000:colo_vm_state_change Change 'run' => 'stop'
9511@17956345";
        let pauses = pauses_ms(trace);
        assert_eq!(pauses.len(), 1);
        assert!((pauses[0] - 12.5).abs() < 0.01, "{pauses:?}");
    }

    #[test]
    fn dirty_pages_are_read_from_a_trace() {
        let trace = "1@2.5:colo_flush_ram_cache_begin dirty_pages 1033\n\
                     1@2.6:colo_flush_ram_cache_end \n";
        assert_eq!(flushed(trace), [1033.0]);
    }
}
