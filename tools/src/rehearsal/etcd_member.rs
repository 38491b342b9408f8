//! etcd in a lab: members at places of their own, for arbiters that keep their
//! registers there.
//!
//! They talk in the clear: what certificates and passwords do is tested where
//! the store is.

use std::path::Path;

use super::netns::Place;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// Debian's program, of the package `etcd-server`.
pub(super) const PROGRAM: &str = "etcd";

fn url(place: Place, port: u16) -> String {
    let address = place.replication_address().expect("members have one");
    format!("http://{address}:{port}")
}

/// Where arbiters find the member at `place`.
pub(super) fn endpoint(place: Place) -> String {
    url(place, CLIENT_PORT)
}

/// The command line of the member at `place`, one of `members`, whose data are
/// in `folder`.
pub(super) fn arguments(place: Place, members: &[Place], folder: &Path) -> Vec<String> {
    let (client, peer) = (url(place, CLIENT_PORT), url(place, PEER_PORT));
    let cluster: Vec<_> =
        members.iter().map(|member| format!("{member}={}", url(*member, PEER_PORT))).collect();
    let data = folder.join(format!("{place}.data")).display().to_string();
    let settings = [
        ("name", place.to_string()),
        ("data-dir", data),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer),
        ("initial-cluster", cluster.join(",")),
        ("initial-cluster-state", "new".to_owned()),
    ];
    settings.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}
