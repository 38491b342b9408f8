//! What the machines of a lab are told: `romulus`' configurations, and the
//! scripts that set up their networks.

use std::fmt::Write as _;

use romulus::rehearsal::netns::{ARBITER_ADDRESS, CLIENT_ADDRESS, Place, TAP};

use super::cluster::Shape;

pub(super) const VM: &str = "guest";
/// Where a host keeps what the guest said.
pub const CONSOLE: &str = "/run/romulus/console";
pub(super) const GUEST_MAC: &str = "52:54:00:77:00:64";
const NODE_PORT: u16 = 7700;
const ARBITER_PORT: u16 = 7800;

/// Settings of the section `[replication]` that go with emulated hosts, which
/// stand still for a while now and then.
pub const PATIENT: &str =
    "epoch_ms = 100\nheartbeat_ms = 500\ndetection_ms = 4000\ndrop_ms = 4000\n";

/// A host's VM.toml.
pub(super) fn host(host: u8, shape: &Shape) -> String {
    let place = Place::Host(host);
    let address = |host| Place::Host(host).replication_address().expect("hosts have one");
    let mut text = format!(
        "{}\n[network]\ntap = \"{TAP}\"\nmac = \"{GUEST_MAC}\"\n\n\
             [console]\nlog = \"{CONSOLE}\"\n\n\
             [node]\nname = \"{place}\"\nlisten = \"{}:{NODE_PORT}\"\n\
             state_dir = \"/run/romulus\"\ncontrol = \"/run/romulus/{VM}.sock\"\n{}\n\
             [arbiter]\nname = \"arbiter\"\naddress = \"{ARBITER_ADDRESS}:{ARBITER_PORT}\"\n\n\
             [replication]\n{}\n",
        shape.guest.section(VM),
        address(host),
        identity(place),
        shape.replication,
    );
    for peer in (1..=shape.hosts).filter(|peer| *peer != host) {
        let (name, address) = (Place::Host(peer), address(peer));
        let _ =
            write!(text, "\n[[peers]]\nname = \"{name}\"\naddress = \"{address}:{NODE_PORT}\"\n");
    }
    text
}

fn identity(place: Place) -> String {
    format!("ca = \"pki/ca.pem\"\ncert = \"pki/{place}.pem\"\nkey = \"pki/{place}.key\"\n")
}

/// The arbiter's configuration.
pub(super) fn arbiter() -> String {
    format!(
        "[arbiter]\nname = \"arbiter\"\nlisten = \"{ARBITER_ADDRESS}:{ARBITER_PORT}\"\n\
         store = \"/run/romulus/register\"\n{}",
        identity(Place::Arbiter)
    )
}

/// A bridge with tap and uplink, which forwards at once, and the replication
/// network's address.
pub(super) fn host_networks(address: &str) -> String {
    format!(
        "set -e\n{QUIET}\n\
         brctl addbr br0; cd /sys/class/net/br0/bridge; \
         echo 0 >forward_delay; echo 0 >multicast_snooping; cd /\n\
         tunctl -t {TAP} >/dev/null\n\
         for port in eth0 {TAP}; do brctl addif br0 $port; ip link set $port up; done\n\
         ip link set br0 up\n\
         ip addr add {address}/24 dev eth1; ip link set eth1 up\n"
    )
}

/// Addresses on both networks.
pub(super) fn office_networks() -> String {
    format!(
        "set -e\n{QUIET}\n\
         ip addr add {CLIENT_ADDRESS}/24 dev eth0; ip link set eth0 up\n\
         ip addr add {ARBITER_ADDRESS}/24 dev eth1; ip link set eth1 up\n"
    )
}

/// Without it the kernel's own announcements are on every cable.
const QUIET: &str = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true";
