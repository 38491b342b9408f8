//! What an operator may tune about the transport, and the QUIC settings that
//! follow from it.
//!
//! Two traps of quinn 0.11 are avoided here, and a third in `socket`: an initial MTU
//! of 16 KiB or more panics, so packets begin small and grow; and packets that are
//! large for the congestion window leave room for one of them, whose acknowledgement
//! is delayed.

use std::{net::IpAddr, sync::Arc, time::Duration};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt, congestion::CubicConfig};
use thiserror::Error;

/// The smallest packet that every QUIC path carries: RFC 9000, section 14.
const MTU_BYTES_MIN: u16 = 1200;
/// The largest packet that is tried on a path of which nothing is known: Ethernet's,
/// less the headers of IPv6 and UDP.
pub(crate) const MTU_BYTES_UNKNOWN: u16 = 1452;
/// Packets above it are a loopback's or a virtual line's, which never loses any.
const MTU_BYTES_LINE_MAX: u16 = 16_000;
/// Most streams for data that a peer may open.
pub(crate) const DATA_STREAMS_MAX: usize = 16;
/// Most control or RPC streams that a peer may have open at once.
const CONTROL_STREAMS_MAX: u32 = 64;
/// What may be on its way or wait to be read on one stream, in bytes.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// What a whole connection's window has beside those of its data streams: with all
/// of them full of chunks that nobody takes, messages still get through.
const CONTROL_WINDOW_BYTES: u32 = 1 << 20;
/// So many data streams are reckoned with at least: the peer may use more than this
/// end.
const DATA_STREAMS_USUAL: usize = 4;

/// Most requests that a node may have open at once on one connection to an arbiter.
const REGISTER_STREAMS_MAX: u32 = 16;
/// The same of a whole connection to an arbiter: requests have 8 KiB at most.
const REGISTER_WINDOW_BYTES: u32 = 256 << 10;
/// As [`STREAM_WINDOW_BYTES`], at an arbiter.
const REGISTER_STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// Answers that wait on one connection for a node to read them, in bytes.
const REGISTER_SEND_WINDOW_BYTES: u64 = 1 << 20;

/// Settings of an endpoint. Both ends need not agree.
#[derive(Debug, Clone)]
pub struct Options {
    /// Largest UDP payload to try, in bytes. What the path carries is found out:
    /// 1452 on Ethernet, 8952 with jumbo frames, 65000 on loopback.
    pub mtu_bytes_max: u16,
    /// How many streams carry chunks, 1 to 16.
    pub data_streams: usize,
    /// How long a TLS handshake may take.
    pub connect_timeout: Duration,
    /// How long the peer may take to answer a Hello, and a caller to say it.
    pub answer_timeout: Duration,
    /// How long one request to the arbiter may take, repeats included.
    pub request_timeout: Duration,
    /// After how long without a packet a connection counts as lost. Failure is
    /// detected by heartbeats, sooner; this only frees what is left.
    pub idle_timeout: Duration,
    /// Size of the UDP socket's buffers that is asked for; the kernel's
    /// `net.core.rmem_max` and `wmem_max` bound it.
    pub socket_buffer_bytes: usize,
    /// Most handshakes at once, an eighth of them with one address; more callers
    /// are turned away.
    pub handshakes_max: usize,
    /// Addresses from which honest callers come: as many places as one address may
    /// have are kept for them beside [`Options::handshakes_max`].
    pub callers: Vec<IpAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mtu_bytes_max: 65000,
            data_streams: 4,
            connect_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            socket_buffer_bytes: 8 << 20,
            handshakes_max: 64,
            callers: Vec::new(),
        }
    }
}

/// An option that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidOptions {
    /// [`Options::mtu_bytes_max`] is out of range.
    #[error("mtu of {0} bytes is out of range: use 1200 to 65000, 1452 for ordinary Ethernet")]
    Mtu(u16),
    /// [`Options::data_streams`] is out of range.
    #[error("{0} data streams are out of range: use 1 to {DATA_STREAMS_MAX}")]
    DataStreams(usize),
    /// [`Options::idle_timeout`] is out of range.
    #[error("idle timeout of {0:?} is out of range: use 100 ms to 1 hour")]
    IdleTimeout(Duration),
    /// [`Options::handshakes_max`] is out of range.
    #[error("{0} handshakes at once are out of range: use 1 to 4096")]
    Handshakes(usize),
}

impl Options {
    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] names the first that is out of range.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        if !(MTU_BYTES_MIN..=65000).contains(&self.mtu_bytes_max) {
            return Err(InvalidOptions::Mtu(self.mtu_bytes_max));
        }
        if !(1..=DATA_STREAMS_MAX).contains(&self.data_streams) {
            return Err(InvalidOptions::DataStreams(self.data_streams));
        }
        let idle_range = Duration::from_millis(100)..=Duration::from_secs(3600);
        if !idle_range.contains(&self.idle_timeout) {
            return Err(InvalidOptions::IdleTimeout(self.idle_timeout));
        }
        if !(1..=4096).contains(&self.handshakes_max) {
            return Err(InvalidOptions::Handshakes(self.handshakes_max));
        }
        Ok(())
    }

    /// The QUIC settings of a connection that this side dials, on a path which
    /// carries `path_mtu_bytes` at most; `keep_alive` for those that have no
    /// heartbeats of their own.
    pub(crate) fn dialler(
        &self,
        path_mtu_bytes: u16,
        keep_alive: Option<Duration>,
    ) -> Arc<TransportConfig> {
        let mtu_bytes_max = self.mtu_bytes_max.min(path_mtu_bytes);
        Arc::new(self.transport(mtu_bytes_max.max(MTU_BYTES_MIN), keep_alive))
    }

    /// As [`Options::dialler`], for the side that is called: it has little to say.
    pub(crate) fn acceptor(&self) -> Arc<TransportConfig> {
        Arc::new(self.transport(self.mtu_bytes_max.min(MTU_BYTES_UNKNOWN), None))
    }

    /// As [`Options::acceptor`], for an arbiter: many nodes ask little, each by a
    /// stream of its own.
    pub(crate) fn register(&self) -> Arc<TransportConfig> {
        let mut transport = self.transport(self.mtu_bytes_max.min(MTU_BYTES_UNKNOWN), None);
        transport
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_concurrent_bidi_streams(VarInt::from_u32(REGISTER_STREAMS_MAX))
            .receive_window(VarInt::from_u32(REGISTER_WINDOW_BYTES))
            .stream_receive_window(VarInt::from_u32(REGISTER_STREAM_WINDOW_BYTES))
            .send_window(REGISTER_SEND_WINDOW_BYTES);
        Arc::new(transport)
    }

    /// What may be on its way over a whole connection, or wait to be read.
    fn window_bytes(&self) -> u32 {
        let streams = self.data_streams.clamp(DATA_STREAMS_USUAL, DATA_STREAMS_MAX);
        streams as u32 * STREAM_WINDOW_BYTES + CONTROL_WINDOW_BYTES
    }

    fn transport(&self, mtu_bytes_max: u16, keep_alive: Option<Duration>) -> TransportConfig {
        let idle = IdleTimeout::try_from(self.idle_timeout).expect("options were checked");
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu_bytes_max);
        let mut cubic = CubicConfig::default();
        cubic.initial_window(initial_window_bytes(mtu_bytes_max));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_uni_streams(VarInt::from_u32(DATA_STREAMS_MAX as u32))
            .max_concurrent_bidi_streams(VarInt::from_u32(CONTROL_STREAMS_MAX))
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(keep_alive)
            .receive_window(VarInt::from_u32(self.window_bytes()))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .send_window(self.window_bytes().into())
            // Whole chunks one after the other: the first is complete sooner.
            .send_fairness(false)
            .datagram_receive_buffer_size(None)
            .congestion_controller_factory(Arc::new(cubic))
            .mtu_discovery_config(Some(discovery));
        transport
    }
}

/// How many bytes may be sent before the first acknowledgement. More than a slow line
/// carries in a moment would hold up heartbeats; but packets as large as on loopback
/// must have room for some.
fn initial_window_bytes(mtu_bytes_max: u16) -> u64 {
    if mtu_bytes_max > MTU_BYTES_LINE_MAX { 4 << 20 } else { 64 << 10 }
}
