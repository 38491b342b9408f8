//! Waiting for a backup to come in sync, with a bar on a terminal.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use arbiter::NodeId;
use indicatif::{ProgressBar, ProgressStyle};

use super::failure::Failure;
use crate::control::{Client, PeerState, PeerStatus, Protection, Status};

const POLL: Duration = Duration::from_millis(150);
/// How long a peer may be neither seeding nor in sync.
const PATIENCE: Duration = Duration::from_secs(20);
const PAGE_BYTES: u64 = 4096;

/// Polls until `wanted` (or any backup) is in sync.
pub(super) async fn until_protected(
    client: &Client,
    wanted: Option<&NodeId>,
    json: bool,
) -> Result<Status, Failure> {
    let bar = if !json && io::stderr().is_terminal() { seed_bar() } else { ProgressBar::hidden() };
    let mut last_motion = Instant::now();
    loop {
        let status = client.status().await?;
        let ready = match wanted {
            Some(node) => status.in_sync.contains(node),
            None => !status.in_sync.is_empty(),
        };
        if ready {
            bar.finish_and_clear();
            return Ok(status);
        }
        let about = status.peers.iter().filter(|peer| wanted.is_none_or(|node| *node == peer.name));
        let peers: Vec<_> = about.collect();
        if let Some(peer) = peers.iter().find(|peer| peer.state == PeerState::Refused) {
            bar.abandon();
            let reason = format!("{} refused the session", peer.name);
            return Err(Failure::NotProtected { reason });
        }
        if peers.iter().any(|peer| show(&bar, peer)) {
            last_motion = Instant::now();
        } else if last_motion.elapsed() > PATIENCE {
            bar.abandon();
            return Err(Failure::NotProtected { reason: why_not(&status) });
        }
        tokio::time::sleep(POLL).await;
    }
}

fn why_not(status: &Status) -> String {
    match &status.protection {
        Protection::Unprotected { reason } => reason.clone(),
        Protection::Protected => "that backup does not come in sync".to_owned(),
    }
}

/// Puts a peer's seed on the bar; whether there is something under way.
fn show(bar: &ProgressBar, peer: &PeerStatus) -> bool {
    if let Some(seed) = peer.seed {
        bar.set_length(seed.total_pages * PAGE_BYTES);
        bar.set_position(seed.sent_pages * PAGE_BYTES);
        bar.set_message(format!("{}, round {}", peer.name, seed.round));
    }
    matches!(peer.state, PeerState::Seeding | PeerState::Joining)
}

fn seed_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "seeding {msg}  {wide_bar}  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta}",
    );
    let bar = ProgressBar::new(0);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
