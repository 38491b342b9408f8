//! Tokio's UDP socket within two limits that quinn 0.11 does not mind.
//!
//! - Segmentation offload takes at most 64 KiB at once, and fails above. quinn puts up
//!   to ten packets together, whatever their size; they are sent in as few pieces as
//!   the limit allows. Packets of 1452 bytes go ten at a time, jumbo frames seven, and
//!   a loopback's one by one.
//! - Offload on the receiving side never gives more than 64 KiB at once either, while
//!   quinn makes room for 64 packets of the largest size, 32 times: 128 MiB for each
//!   endpoint. Here it is 2 MiB.

use std::{
    io,
    io::IoSliceMut,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// Largest payload that the kernel takes in one send: what an IPv4 packet carries
/// beside its headers.
const SEND_BYTES_MAX: usize = 65_535 - 28;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Limited {
    inner: Arc<dyn AsyncUdpSocket>,
}

impl Limited {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { inner }
    }
}

impl AsyncUdpSocket for Limited {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    /// If the socket is full after some of the pieces, all of them are sent again
    /// when there is room. QUIC knows packets that come twice.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        pieces(transmit).try_for_each(|piece| self.inner.try_send(&piece))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    /// Not how many packets may come at once, but how many of the largest: quinn uses
    /// it for nothing but the size of its buffer.
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// What is sent at once of `transmit`, in its order.
fn pieces<'a>(transmit: &'a Transmit<'a>) -> impl Iterator<Item = Transmit<'a>> {
    let packet = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
    let most = (SEND_BYTES_MAX / packet).max(1) * packet;
    transmit.contents.chunks(most).map(move |contents| Transmit {
        contents,
        segment_size: transmit.segment_size.filter(|_| contents.len() > packet),
        ..*transmit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(total: usize, packet: Option<usize>) -> Vec<(usize, Option<usize>)> {
        let contents = vec![0; total];
        let destination = "127.0.0.1:9".parse().unwrap();
        let transmit = Transmit {
            destination,
            ecn: None,
            contents: &contents,
            segment_size: packet,
            src_ip: None,
        };
        pieces(&transmit).map(|piece| (piece.contents.len(), piece.segment_size)).collect()
    }

    #[test]
    fn what_fits_is_sent_at_once() {
        assert_eq!(lengths(1200, None), [(1200, None)]);
        assert_eq!(lengths(14_000, Some(1452)), [(14_000, Some(1452))]);
        assert_eq!(lengths(65_000, Some(6500)), [(65_000, Some(6500))]);
    }

    #[test]
    fn what_does_not_fit_is_cut_between_packets() {
        let jumbo = [(7 * 8952, Some(8952)), (2 * 8952 + 100, Some(8952))];
        assert_eq!(lengths(9 * 8952 + 100, Some(8952)), jumbo);
        let large = [(65_000, None), (65_000, None), (77, None)];
        assert_eq!(lengths(130_077, Some(65_000)), large);
    }
}
