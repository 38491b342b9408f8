//! The baselines: one TCP connection over loopback, plain and with TLS.
//!
//! They carry the same bytes as QUIC. A thread writes and a thread reads, both
//! blocking: the quickest way to use a stream that is known here. TLS is rustls with
//! the certificates and the library of keys that QUIC has in the product.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::{
    AHEAD_BYTES, WireError,
    certificates::{Certificates, RECEIVER},
    contest::{Contender, Stage},
    meter::{Meter, Sample},
    work::Chunks,
};

/// What a reader takes at once.
const READ_BYTES: usize = 256 << 10;

/// Both baselines.
pub(super) fn contenders(
    certificates: &Certificates,
    chunks: &Chunks,
) -> Result<Vec<Contender>, WireError> {
    let tls = Tls::new(certificates)?;
    let (plain, chunks) = (chunks.clone(), chunks.clone());
    Ok(vec![
        Contender::new(Stage::Ship, "TCP", move |bytes| Ok(over(&plain, bytes, Ok, Ok)?)),
        Contender::new(Stage::Ship, TLS_OVER_TCP, move |bytes| {
            Ok(over(&chunks, bytes, |stream| tls.dial(stream), |stream| tls.accept(stream))?)
        }),
    ])
}

/// The name of the baseline that replication is held against.
pub(super) const TLS_OVER_TCP: &str = "TLS over TCP";

/// Sends `bytes` of `chunks` through a new connection, after some that do not count.
fn over<W: Write, R: Read + Send>(
    chunks: &Chunks,
    bytes: u64,
    dial: impl FnOnce(TcpStream) -> io::Result<W>,
    accept: impl FnOnce(TcpStream) -> io::Result<R> + Send,
) -> io::Result<Sample> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let meter = Meter::new(AHEAD_BYTES, bytes);
    let mut left = meter.total_bytes();
    thread::scope(|scope| {
        let reader = scope.spawn(move || -> io::Result<Sample> {
            let (stream, _) = listener.accept()?;
            drain(accept(stream)?, meter)
        });
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut writer = dial(stream)?;
        for chunk in chunks.iter().cycle() {
            for piece in chunk.body.pieces() {
                writer.write_all(piece)?;
            }
            left = left.saturating_sub(chunk.body.len() as u64);
            if left == 0 {
                break;
            }
        }
        writer.flush()?;
        reader.join().expect("reading does not panic")
    })
}

fn drain(mut stream: impl Read, mut meter: Meter) -> io::Result<Sample> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(sample) = meter.arrived(read as u64) {
            return Ok(sample);
        }
    }
}

/// TLS 1.3 with certificates both ways, as the product has it.
struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
}

impl Tls {
    fn new(certificates: &Certificates) -> Result<Self, WireError> {
        let mut roots = RootCertStore::empty();
        for authority in chain(&certificates.authority)? {
            roots.add(authority)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let (sender, receiver) = (&certificates.sender, &certificates.receiver);
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain(&sender.certificate)?, key(&sender.key)?)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain(&receiver.certificate)?, key(&receiver.key)?)?;
        let name = format!("{RECEIVER}.{}", transport::identity::DOMAIN);
        let name = ServerName::try_from(name).expect("a DNS name");
        Ok(Self { client: Arc::new(client), server: Arc::new(server), name })
    }

    fn dial(&self, stream: TcpStream) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let client = ClientConnection::new(self.client.clone(), self.name.clone());
        Ok(StreamOwned::new(client.map_err(io::Error::other)?, stream))
    }

    fn accept(&self, stream: TcpStream) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
        let server = ServerConnection::new(self.server.clone()).map_err(io::Error::other)?;
        Ok(StreamOwned::new(server, stream))
    }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, WireError> {
    Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, WireError> {
    Ok(PrivateKeyDer::from_pem_file(path)?)
}
