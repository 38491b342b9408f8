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
        if let Some(reason) = refusals(&peers) {
            bar.abandon();
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

/// Who refuses and why, if nobody else may come in sync: waiting would not help.
fn refusals(peers: &[&PeerStatus]) -> Option<String> {
    let refuses = |peer: &&PeerStatus| {
        let why = peer.reason.as_deref().unwrap_or("see `romulus events`");
        (peer.state == PeerState::Refused).then(|| format!("{} refuses: {why}", peer.name))
    };
    let refusals: Vec<String> = peers.iter().filter_map(refuses).collect();
    (!peers.is_empty() && refusals.len() == peers.len()).then(|| refusals.join("; "))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_who_refuses() {
        let peer = |name: &str, state, reason: Option<&str>| PeerStatus {
            name: name.parse().unwrap(),
            address: "10.1.0.2:7700".parse().unwrap(),
            state,
            reason: reason.map(str::to_owned),
            seed: None,
        };
        let refuses = peer("node-b", PeerState::Refused, Some("vcpus differ"));
        let is_seeded = peer("node-c", PeerState::Seeding, None);
        assert_eq!(refusals(&[&refuses]).as_deref(), Some("node-b refuses: vcpus differ"));
        assert_eq!(refusals(&[&refuses, &is_seeded]), None, "the other may come in sync");
        assert_eq!(refusals(&[]), None);
    }
}
