//! Accepting callers: TLS handshakes, each in a task of its own.
//!
//! ```text
//!   packet ─▶ half of the places taken? ──yes──▶ the caller proves its address
//!                │ no, or it has
//!                ▼
//!             place free, and the address has few? ──no──▶ refused
//!                │ yes, or it is known and has one that is kept for such
//!                ▼
//!             TLS handshake, within `connect_timeout` ─▶ NodeId of its certificate
//! ```
//!
//! No caller can keep another waiting: the loop never waits for one, the number
//! of handshakes is bounded, at all and for one address, and each has its time.
//! The place is given up when the caller has been greeted. Addresses that are not
//! proved count for none: anybody can write any into a packet.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use arbiter::NodeId;
use quinn::{Connection, ConnectionError, Incoming};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    Options,
    identity::{CertificateError, node_of},
    tls_fault,
    wire::WireError,
};

/// Why a caller was not admitted. None of these concerns other callers.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// A certificate was not accepted, on either side.
    #[error("no conversation with {address}: {reason}")]
    Certificate {
        /// Where the caller is.
        address: SocketAddr,
        /// Which certificate and why, in words.
        reason: String,
    },
    /// The certificate is of this cluster, but no node's.
    #[error("the certificate of {address} is no node's: make one with `romulus pki`")]
    NoNode {
        /// Where the caller is.
        address: SocketAddr,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The caller took too long.
    #[error("caller at {address} took too long to introduce itself")]
    Silent {
        /// Where the caller is.
        address: SocketAddr,
    },
    /// The caller said something else than a Hello.
    #[error("{peer} at {address} did not say hello properly")]
    Malformed {
        /// The node that called.
        peer: NodeId,
        /// Where it is.
        address: SocketAddr,
        /// What was wrong with it.
        source: WireError,
    },
    /// The connection was lost on the way.
    #[error("caller at {address} was lost before it introduced itself")]
    Lost {
        /// Where the caller is.
        address: SocketAddr,
        /// How.
        source: ConnectionError,
    },
}

impl AcceptError {
    /// Whether the caller answered what was sent to its address.
    fn of_who_answered(&self) -> bool {
        match self {
            Self::Certificate { .. } | Self::NoNode { .. } | Self::Malformed { .. } => true,
            Self::Silent { .. } | Self::Lost { .. } => false,
        }
    }
}

/// A caller with a certificate of the cluster.
pub(crate) struct Caller {
    pub(crate) connection: Connection,
    pub(crate) peer: NodeId,
    /// Its place among the handshakes; dropped when it has been greeted.
    pub(crate) place: Place,
}

/// Addresses that refusals are counted for, each by itself.
const COUNTED_MAX: usize = 256;

/// Accepts callers until `endpoint` closes; `greet` gets each of them, or why
/// it was not admitted, in a task of its own.
pub(crate) async fn keep<Greeting>(
    endpoint: quinn::Endpoint,
    options: Arc<Options>,
    greet: impl Fn(Result<Caller, AcceptError>) -> Greeting + Clone + Send + 'static,
) where
    Greeting: Future<Output = ()> + Send,
{
    let places = Places::new(&options);
    let complaints = Arc::new(Complaints::default());
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address();
        let proved = incoming.remote_address_validated();
        if !proved && places.are_crowded() && incoming.may_retry() {
            // Costs an honest caller one round trip, and a forger everything.
            let _ = incoming.retry();
            continue;
        }
        let Some(place) = places.take(address.ip(), proved) else {
            if let Some(times) = complaints.count(proved.then_some(address.ip())) {
                tracing::warn!(%address, times, "caller refused: too many handshakes at once");
            }
            incoming.refuse();
            continue;
        };
        let (options, greet, complaints) = (options.clone(), greet.clone(), complaints.clone());
        tokio::spawn(async move {
            let admitted = admit(incoming, place, &options).await;
            if let Err(error) = &admitted {
                let proved = proved || error.of_who_answered();
                if let Some(times) = complaints.count(proved.then_some(address.ip())) {
                    tracing::warn!(%address, %error, times, "caller not admitted");
                }
            }
            greet(admitted).await;
        });
    }
}

/// The handshakes that may be under way.
#[derive(Debug, Clone)]
struct Places {
    free: Arc<Semaphore>,
    places_max: usize,
    /// For proved addresses of [`Options::callers`] when the others are taken.
    kept: Arc<Semaphore>,
    known: Arc<[IpAddr]>,
    /// Places that a proved address has.
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    each_max: usize,
}

/// One of them, until it is dropped.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    /// Whose place it is, if that is proved, and where it is counted.
    of: Option<(IpAddr, Places)>,
}

impl Places {
    fn new(options: &Options) -> Self {
        let places_max = options.handshakes_max;
        let each_max = (places_max / 8).max(1);
        let kept = if options.callers.is_empty() { 0 } else { each_max };
        Self {
            free: Arc::new(Semaphore::new(places_max)),
            places_max,
            kept: Arc::new(Semaphore::new(kept)),
            known: options.callers.clone().into(),
            taken: Arc::default(),
            each_max,
        }
    }

    fn are_crowded(&self) -> bool {
        self.free.available_permits() < self.places_max / 2
    }

    /// A place for a caller from `address`, if there is one and it has not its
    /// share.
    fn take(&self, address: IpAddr, proved: bool) -> Option<Place> {
        let network = network_of(address);
        let mut taken = self.taken.lock().expect("no holder panics");
        let has = taken.get(&network).copied().unwrap_or_default();
        if proved && has >= self.each_max {
            return None;
        }
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if proved && self.known.contains(&address.to_canonical()) => {
                self.kept.clone().try_acquire_owned().ok()?
            }
            Err(_) => return None,
        };
        let of = proved.then(|| {
            taken.insert(network, has + 1);
            (network, self.clone())
        });
        Some(Place { _permit: permit, of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((network, places)) = &self.of else { return };
        let mut taken = places.taken.lock().expect("no holder panics");
        if let Some(count) = taken.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                taken.remove(network);
            }
        }
    }
}

/// What one owner has as a rule: an IPv4 address, or the first half of an IPv6
/// address.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
    }
}

/// How often callers were turned away: the log has the first, second, fourth,
/// eighth, … time.
#[derive(Debug, Default)]
struct Complaints(Mutex<HashMap<Option<IpAddr>, u64>>);

impl Complaints {
    /// Counts one more about `address`, if it is proved; the count, if it is to
    /// be logged.
    fn count(&self, address: Option<IpAddr>) -> Option<u64> {
        let mut counts = self.0.lock().expect("no holder panics");
        let of = address.map(network_of);
        let of = of.filter(|of| counts.len() < COUNTED_MAX || counts.contains_key(&Some(*of)));
        let count = counts.entry(of).or_default();
        *count += 1;
        count.is_power_of_two().then_some(*count)
    }
}

async fn admit(incoming: Incoming, place: Place, options: &Options) -> Result<Caller, AcceptError> {
    let address = incoming.remote_address();
    let fail = |source: ConnectionError| match tls_fault::certificate(&source) {
        Some(reason) => AcceptError::Certificate { address, reason },
        None => AcceptError::Lost { address, source },
    };
    let connecting = incoming.accept().map_err(fail)?;
    let connection = timeout(options.connect_timeout, connecting)
        .await
        .map_err(|_| AcceptError::Silent { address })?
        .map_err(fail)?;
    let peer = peer_of(&connection).map_err(|source| AcceptError::NoNode { address, source })?;
    Ok(Caller { connection, peer, place })
}

/// The node that the other side of `connection` proved to be.
pub(crate) fn peer_of(connection: &Connection) -> Result<NodeId, CertificateError> {
    let identity = connection.peer_identity().ok_or(CertificateError::NoNode)?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| CertificateError::NoNode)?;
    node_of(chain.first().ok_or(CertificateError::NoNode)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(handshakes_max: usize, callers: &[&str]) -> Places {
        let callers = callers.iter().map(|address| address.parse().unwrap()).collect();
        Places::new(&Options { handshakes_max, callers, ..Options::default() })
    }

    fn take(places: &Places, address: &str, count: usize) -> Vec<Place> {
        let address: IpAddr = address.parse().unwrap();
        (0..count).map_while(|_| places.take(address, true)).collect()
    }

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let places = places(64, &[]);
        let first = take(&places, "10.0.0.1", 64);
        assert_eq!(first.len(), 8);
        assert_eq!(take(&places, "10.0.0.2", 64).len(), 8);
        // Whoever can use an address of a network can use all of them.
        let held = take(&places, "2001:db8::1", 64);
        assert!(take(&places, "2001:db8::ffff:2", 1).is_empty() && held.len() == 8);
        assert_eq!(take(&places, "2001:db8:0:1::1", 64).len(), 8);
        assert!(take(&places, "::ffff:10.0.0.1", 1).is_empty(), "it is the first one's");
        drop(first);
        assert_eq!(take(&places, "10.0.0.1", 64).len(), 8);
        drop(held);
        assert!(places.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn addresses_that_anybody_may_have_written_cost_their_owner_nothing() {
        let places = places(64, &[]);
        let victim: IpAddr = "10.0.0.1".parse().unwrap();
        let forged: Vec<_> = (0..32).map_while(|_| places.take(victim, false)).collect();
        assert!(forged.len() == 32 && !places.are_crowded());
        assert_eq!(take(&places, "10.0.0.1", 64).len(), 8);
    }

    #[test]
    fn who_is_known_has_a_place_when_all_are_taken() {
        let places = places(8, &["10.0.0.9"]);
        let others: Vec<_> =
            (1..=8).flat_map(|last| take(&places, &format!("10.0.0.{}", 10 + last), 8)).collect();
        assert_eq!(others.len(), 8);
        assert!(take(&places, "10.0.0.30", 1).is_empty());
        assert!(places.take("10.0.0.9".parse().unwrap(), false).is_none(), "it is not proved");
        assert_eq!(take(&places, "10.0.0.9", 64).len(), 1);
    }

    #[test]
    fn callers_are_complained_of_ever_more_rarely() {
        let complaints = Complaints::default();
        let loud = |address: Option<IpAddr>, times: u32| {
            (0..times).filter(|_| complaints.count(address).is_some()).count()
        };
        let address = |last: u32| Some(IpAddr::from(std::net::Ipv4Addr::from_bits(last)));
        assert_eq!(loud(address(1), 100), 7);
        assert_eq!(loud(address(2), 1), 1, "another one is heard");
        assert_eq!(loud(None, 1000), 10);
        for last in 0..100_000 {
            complaints.count(address(last));
        }
        assert!(complaints.0.lock().unwrap().len() <= COUNTED_MAX + 1);
    }
}
