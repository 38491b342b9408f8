//! How large packets may be towards a peer, as far as this host knows.
//!
//! The kernel knows the MTU of the interface that leads there, and what routers on
//! the way have complained of. That bounds QUIC's own search, which then finds out
//! what the whole path carries: it takes a few probes, each of which costs a round
//! trip, and three of them where a probe is lost.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use rustix::net::sockopt;

/// Octets of the headers before a UDP payload: RFC 768 with RFC 791 or RFC 8200.
const HEADERS_V4_BYTES: u32 = 20 + 8;
const HEADERS_V6_BYTES: u32 = 40 + 8;

/// The largest UDP payload, in bytes, that this host can send from `local` to `peer`
/// in one piece.
///
/// # Errors
///
/// What the system said, if it has no way to `peer`.
pub(crate) fn udp_payload_bytes_max(local: SocketAddr, peer: SocketAddr) -> io::Result<u16> {
    let probe = UdpSocket::bind(SocketAddr::new(local.ip(), 0))?;
    // Sends nothing: it makes the kernel choose the way.
    probe.connect(peer)?;
    let payload_bytes = match peer {
        SocketAddr::V4(_) => sockopt::ip_mtu(&probe)?.saturating_sub(HEADERS_V4_BYTES),
        SocketAddr::V6(_) => sockopt::ipv6_mtu(&probe)?.saturating_sub(HEADERS_V6_BYTES),
    };
    Ok(u16::try_from(payload_bytes).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_large_packets() {
        for address in ["127.0.0.1:9", "[::1]:9"] {
            let peer: SocketAddr = address.parse().unwrap();
            let local = SocketAddr::new(peer.ip(), 0);
            match udp_payload_bytes_max(local, peer) {
                Ok(bytes) => assert!(bytes >= 16_000, "{bytes} bytes to {peer}"),
                Err(error) if peer.is_ipv6() => {
                    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
                    assert!(!required.split(',').any(|need| need == "ipv6"), "{error}");
                    println!("skipped: no IPv6 here: {error}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
