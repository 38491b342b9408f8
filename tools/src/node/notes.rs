//! Notes of the machines, as events for operators.

use arbiter::NodeId;
use checkpoint::Note;

use crate::{
    control::{EventKind, Severity},
    daemon::Telemetry,
};

/// Records `note` in the event log and counts what is counted.
pub fn record_note(telemetry: &Telemetry, note: &Note) {
    let metrics = &telemetry.metrics;
    match note {
        Note::StaleFrame { .. } => drop(metrics.stale_frames.inc()),
        Note::ChunkRefused { .. } | Note::EpochRefused { .. } => drop(metrics.corrupt_chunks.inc()),
        Note::BackupLost { .. } | Note::PrimaryLost { .. } => drop(metrics.sessions_lost.inc()),
        Note::GuestHeld { .. } | Note::GuestSlowed { .. } => drop(metrics.back_pressure.inc()),
        Note::Promoting { .. } => drop(metrics.promotions.inc()),
        _ => {}
    }
    let (severity, kind) = class(note);
    if let Some(peer) = repeated(note)
        && !telemetry.events.is_due(kind, peer)
    {
        return;
    }
    telemetry.events.record(severity, kind, note.to_string(), serde_json::Value::Null);
}

/// Whether a peer can cause `note` with every frame that it sends, and which one
/// that is, if it is told.
fn repeated(note: &Note) -> Option<Option<&NodeId>> {
    match note {
        Note::StaleFrame { peer, .. } => Some(Some(peer)),
        Note::ChunksResent { backup, .. } | Note::SeedResent { backup, .. } => Some(Some(backup)),
        Note::ChunkRefused { .. } | Note::EpochRefused { .. } => Some(None),
        _ => None,
    }
}

fn class(note: &Note) -> (Severity, EventKind) {
    use Severity::{Error, Info, Warning};
    match note {
        Note::BackupConnected { .. } | Note::PrimaryConnected { .. } | Note::Resumed { .. } => {
            (Info, EventKind::PeerConnected)
        }
        Note::BackupLost { .. }
        | Note::PrimaryLost { .. }
        | Note::BackupSilent { .. }
        | Note::BackupLags { .. }
        | Note::PrimarySilent { .. } => (Warning, EventKind::PeerLost),
        Note::BackupRefused { .. } | Note::PrimaryRefused { .. } => {
            (Warning, EventKind::PeerRefused)
        }
        Note::BackupOutdated { .. } | Note::SeedStuck { .. } => (Warning, EventKind::SeedStarted),
        Note::SeedBegun { .. } | Note::SeedReceiving { .. } => (Info, EventKind::SeedStarted),
        Note::Joining { .. } | Note::ImageComplete { .. } => (Info, EventKind::SeedFinished),
        Note::Admitted { .. } | Note::InSync { .. } => (Info, EventKind::BackupAdmitted),
        Note::Dropped { solo: true, .. } => (Warning, EventKind::WentSolo),
        Note::Dropped { solo: false, .. } => (Warning, EventKind::BackupDropped),
        Note::ImageBroken { .. } => (Error, EventKind::ChunkCorrupt),
        Note::SeedResent { .. }
        | Note::ChunksResent { .. }
        | Note::ChunkRefused { .. }
        | Note::EpochRefused { .. } => (Warning, EventKind::ChunkCorrupt),
        Note::StaleFrame { .. } => (Warning, EventKind::FrameStale),
        Note::Doubt { .. } | Note::CutFailed { .. } => (Warning, EventKind::GuestPaused),
        Note::DoubtResolved => (Info, EventKind::GuestResumed),
        Note::ArbiterUnreachable | Note::ArbiterRefused { .. } => (Warning, EventKind::ArbiterLost),
        Note::ArbiterForgot { .. } => (Error, EventKind::ArbiterLost),
        Note::GuestHeld { .. } | Note::GuestSlowed { .. } => (Warning, EventKind::BackPressure),
        Note::GuestFreed => (Info, EventKind::BackPressure),
        Note::HandOverBegun { .. } | Note::SuccessorOf { .. } => {
            (Info, EventKind::SwitchoverStarted)
        }
        Note::HandOverAborted { .. } | Note::HandOverRefuted { .. } => {
            (Warning, EventKind::SwitchoverFinished)
        }
        Note::HandedOver { .. } | Note::GoesOnUnder { .. } => (Info, EventKind::SwitchoverFinished),
        Note::Asking { .. } => (Warning, EventKind::PromotionAsked),
        Note::NotPromoted { .. } => (Warning, EventKind::RegisterChanged),
        Note::Promoting { .. } => (Warning, EventKind::Promoted),
        Note::StoodDown { .. } => (Info, EventKind::GuestStopped),
    }
}
