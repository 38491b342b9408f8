//! The UDP socket of an endpoint.
//!
//! Connection ids and reset tokens are derived from the node's key and the
//! port, so that a process which was killed and started again on its address
//! recognises packets of connections that died with it, and tells the other
//! side at once (stateless reset, RFC 9000 section 10.3) instead of leaving it
//! to its timeouts. The port is part of it so that one process of a node
//! cannot be made to reset another's connections (section 21.11).

mod limited;

use std::{io, net::SocketAddr, sync::Arc};

use quinn::{
    EndpointConfig, Runtime, ServerConfig, TokioRuntime,
    crypto::{CryptoError, HmacKey},
};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use self::limited::Limited;
use crate::{InvalidOptions, Options, identity::Identity};

/// Largest UDP payload that this side takes: all of them. A sender never exceeds what
/// its peer announces.
const UDP_PAYLOAD_BYTES_MAX: u16 = 65527;

/// Why an endpoint could not be had.
#[derive(Debug, Error)]
pub enum BindError {
    /// An option is out of range.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The address cannot be used.
    #[error("cannot listen on {address}: is it this host's, and not in use by another process?")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS does not take the identity.
    #[error("the node's identity cannot be used for TLS")]
    Tls(#[from] rustls::Error),
    /// A thread for the registers could not be started.
    #[error("cannot start a thread: raise the limit of processes (`romulus doctor`)")]
    Thread(#[source] io::Error),
}

/// Binds `address` for dialling and, with `server`, accepting.
pub(crate) fn bind(
    address: SocketAddr,
    identity: &Identity,
    options: &Options,
    server: ServerConfig,
) -> Result<(quinn::Endpoint, SocketAddr), BindError> {
    let fail = |source| BindError::Socket { address, source };
    let socket = open(address, options).map_err(fail)?;
    let local = socket.local_addr().map_err(fail)?;
    let secret = identity.secret(&format!("stateless reset, port {}", local.port()));
    let id_key = u64::from_le_bytes(*secret.first_chunk().expect("a secret of 32 bytes"));
    let mut config = EndpointConfig::new(Arc::new(ResetKey(secret)));
    config
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)))
        .max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)
        .expect("QUIC allows it");
    let runtime = Arc::new(TokioRuntime);
    let socket = Arc::new(Limited::new(runtime.wrap_udp_socket(socket).map_err(fail)?));
    let endpoint = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
        .map_err(fail)?;
    Ok((endpoint, local))
}

fn open(address: SocketAddr, options: &Options) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel cuts these to its own bounds; smaller ones cost speed only.
    socket.set_recv_buffer_size(options.socket_buffer_bytes)?;
    socket.set_send_buffer_size(options.socket_buffer_bytes)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Signs connection ids, which gives their reset tokens.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // This comparison takes the same time wherever the two differ.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}
