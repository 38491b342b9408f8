//! A node on the network: one UDP socket to dial peers and to accept them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arbiter::{NodeId, Term};
use checkpoint::message::{Hello, Refusal, Welcome};
use quinn::{ClientConfig, Connection, ConnectionError, SendStream, ServerConfig};
use thiserror::Error;
use tokio::{
    sync::{Mutex, mpsc},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    Options,
    doorway::{self, AcceptError, Caller},
    identity::{ALPN_ARBITER, ALPN_NODE, Identity, dns_name},
    options::MTU_BYTES_UNKNOWN,
    path,
    session::{
        BackupSession, CloseCode, FrameReader, Link, PrimarySession, ReadFault, SessionError,
        close, words_of,
    },
    socket::{self, BindError},
    tls_fault,
    wire::{self, Frame, WireError},
};

/// Callers that were heard and wait for [`Endpoint::accept`].
const KNOCKS_MAX: usize = 16;

/// Why a peer could not be talked to.
#[derive(Debug, Error)]
pub enum DialError {
    /// The peer does not take the session.
    #[error("{peer} refused: {refusal}")]
    Refused {
        /// The other node.
        peer: NodeId,
        /// The term under which it answered.
        term: Term,
        /// Why.
        refusal: Refusal,
    },
    /// Nobody answers there.
    #[error(
        "{peer} cannot be reached at {address}: check that it runs, the address and the firewall (UDP)"
    )]
    Unreachable {
        /// The other node.
        peer: NodeId,
        /// Where it should be.
        address: SocketAddr,
        /// How it failed.
        source: ConnectionError,
    },
    /// The address cannot be dialled from this socket.
    #[error(
        "{address} cannot be dialled from this node's address: use the same kind, IPv4 or IPv6"
    )]
    Address {
        /// Where the peer should be.
        address: SocketAddr,
        /// How it failed.
        source: quinn::ConnectError,
    },
    /// A certificate was not accepted, on either side.
    #[error("no conversation with {peer} at {address}: {reason}")]
    Certificate {
        /// The other node.
        peer: NodeId,
        /// Where it should be.
        address: SocketAddr,
        /// Which certificate and why, in words.
        reason: String,
    },
    /// The peer is there and does not answer.
    #[error("{peer} at {address} does not answer: it may be overloaded or stopped")]
    Silent {
        /// The other node.
        peer: NodeId,
        /// Where it is.
        address: SocketAddr,
    },
    /// The peer closed the connection instead of answering.
    #[error("{peer} at {address} hung up: {reason}")]
    Closed {
        /// The other node.
        peer: NodeId,
        /// Where it is.
        address: SocketAddr,
        /// Why, in its words.
        reason: String,
    },
    /// There is no Romulus node, or one of another kind.
    #[error(
        "{address} is not the kind of node that was expected: {peer} may be another role's address"
    )]
    OtherProtocol {
        /// The other node.
        peer: NodeId,
        /// Where it should be.
        address: SocketAddr,
    },
    /// The peer's answer is none.
    #[error("{peer} did not answer properly: are both nodes of the same version?")]
    Malformed {
        /// The other node.
        peer: NodeId,
        /// What was wrong with it.
        source: WireError,
    },
    /// Our Hello is beyond the protocol's limits.
    #[error("cannot introduce this node")]
    Unsendable(#[from] WireError),
}

/// A node's UDP socket. Must be made and used within a tokio runtime.
#[derive(Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    local: SocketAddr,
    node_client: ClientConfig,
    arbiter_client: ClientConfig,
    options: Arc<Options>,
    knocks: Mutex<mpsc::Receiver<Result<Knock, AcceptError>>>,
    door: AbortHandle,
}

impl Endpoint {
    /// Binds `address` and accepts callers from now on.
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        options: &Options,
    ) -> Result<Self, BindError> {
        options.check()?;
        let options = Arc::new(options.clone());
        let mut server = ServerConfig::with_crypto(Arc::new(identity.server(ALPN_NODE)?));
        server.transport_config(options.acceptor());
        let node_client = ClientConfig::new(Arc::new(identity.client(ALPN_NODE)?));
        let arbiter_client = ClientConfig::new(Arc::new(identity.client(ALPN_ARBITER)?));
        let (quinn, local) = socket::bind(address, identity, &options, server)?;
        let (queue, knocks) = mpsc::channel(KNOCKS_MAX);
        let door = tokio::spawn(doorway::keep(quinn.clone(), options.clone(), {
            let options = options.clone();
            move |admitted| greet(admitted, queue.clone(), options.clone())
        }));
        Ok(Self {
            quinn,
            local,
            node_client,
            arbiter_client,
            options,
            knocks: Mutex::new(knocks),
            door: door.abort_handle(),
        })
    }

    /// Where it is bound.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Asks `peer`, which must be at `address`, for a session as its primary.
    /// Every call makes a connection of its own.
    ///
    /// # Errors
    ///
    /// [`DialError`].
    pub async fn dial(
        &self,
        address: SocketAddr,
        peer: &NodeId,
        term: Term,
        hello: &Hello,
    ) -> Result<(Welcome, PrimarySession), DialError> {
        let greeting = wire::encode(term, &Frame::Hello(hello.clone()))?;
        let connection = self.connect(&self.node_client, None, address, peer).await?;
        let dialled = Dialled { connection, peer, address };
        let Ok(asked) = timeout(self.options.answer_timeout, dialled.ask(&greeting)).await else {
            close(&dialled.connection, CloseCode::Silent, "no answer to the hello");
            return Err(DialError::Silent { peer: peer.clone(), address });
        };
        let (control, reader, (answer_term, answer)) = asked?;
        match answer {
            Frame::Welcome(welcome) => {
                if !hello.versions.contains(&welcome.version) {
                    return Err(dialled.malformed(WireError::Value("a version not offered")));
                }
                let data = dialled.open_data(self.options.data_streams).await?;
                let link = Link::new(dialled.connection, peer.clone(), Term::ZERO);
                let session = PrimarySession::start(link, answer_term, control, reader, data);
                Ok((welcome, session))
            }
            Frame::Refusal(refusal) => {
                close(&dialled.connection, CloseCode::Done, "refusal understood");
                Err(DialError::Refused { peer: peer.clone(), term: answer_term, refusal })
            }
            other => Err(dialled.malformed(WireError::Unexpected(other.kind()))),
        }
    }

    /// The next caller that has said hello, or that failed to; `None` when the
    /// endpoint is closed. May be cancelled. Failures are dropped, though
    /// logged, when nobody fetches them.
    pub async fn accept(&self) -> Option<Result<Knock, AcceptError>> {
        self.knocks.lock().await.recv().await
    }

    /// Ends all sessions of this endpoint at once and accepts no others.
    pub fn close(&self) {
        self.quinn.close((CloseCode::Done as u32).into(), b"the node is shutting down");
    }

    /// Waits until the peers have been told of [`Endpoint::close`].
    pub async fn closed(&self) {
        self.quinn.wait_idle().await;
    }

    /// A connection to the arbiter.
    pub(crate) async fn connect_arbiter(
        &self,
        address: SocketAddr,
        arbiter: &NodeId,
    ) -> Result<Connection, DialError> {
        let keep_alive = Some(self.options.idle_timeout / 3);
        self.connect(&self.arbiter_client, keep_alive, address, arbiter).await
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    async fn connect(
        &self,
        config: &ClientConfig,
        keep_alive: Option<Duration>,
        address: SocketAddr,
        peer: &NodeId,
    ) -> Result<Connection, DialError> {
        let mtu_bytes = path::udp_payload_bytes_max(self.local, address).unwrap_or_else(|error| {
            tracing::debug!(%address, %error, "the path's MTU is not known");
            MTU_BYTES_UNKNOWN
        });
        let mut config = config.clone();
        config.transport_config(self.options.dialler(mtu_bytes, keep_alive));
        let connecting = self
            .quinn
            .connect_with(config, address, &dns_name(peer))
            .map_err(|source| DialError::Address { address, source })?;
        match timeout(self.options.connect_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(source)) => Err(dial_error(peer, address, source)),
            Err(_) => Err(dial_error(peer, address, ConnectionError::TimedOut)),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.door.abort();
        self.close();
    }
}

/// The error of a connection that did not come about, or not far.
pub(crate) fn dial_error(peer: &NodeId, address: SocketAddr, source: ConnectionError) -> DialError {
    let peer = peer.clone();
    if tls_fault::is_other_protocol(&source) {
        return DialError::OtherProtocol { peer, address };
    }
    if let Some(reason) = tls_fault::certificate(&source) {
        return DialError::Certificate { peer, address, reason };
    }
    match source {
        ConnectionError::ApplicationClosed(close) => {
            DialError::Closed { peer, address, reason: words_of(&close.reason) }
        }
        source => DialError::Unreachable { peer, address, source },
    }
}

/// A connection on which the Hello is yet to be answered.
struct Dialled<'a> {
    connection: Connection,
    peer: &'a NodeId,
    address: SocketAddr,
}

impl Dialled<'_> {
    async fn ask(
        &self,
        greeting: &[u8],
    ) -> Result<(SendStream, FrameReader, (Term, Frame)), DialError> {
        let opened = self.connection.open_bi().await;
        let (mut control, recv) = opened.map_err(|error| self.lost(error))?;
        if control.write_all(greeting).await.is_err() {
            return Err(self.gone().await);
        }
        let mut reader = FrameReader::new(recv);
        match reader.frame().await {
            Ok(Some(answer)) => Ok((control, reader, answer)),
            Ok(None) => Err(self.malformed(WireError::Early)),
            Err(ReadFault::Malformed(source)) => Err(self.malformed(source)),
            Err(ReadFault::Lost) => Err(self.gone().await),
        }
    }

    async fn open_data(&self, count: usize) -> Result<Vec<SendStream>, DialError> {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            streams.push(self.connection.open_uni().await.map_err(|error| self.lost(error))?);
        }
        Ok(streams)
    }

    fn malformed(&self, source: WireError) -> DialError {
        close(&self.connection, CloseCode::Malformed, &source.to_string());
        DialError::Malformed { peer: self.peer.clone(), source }
    }

    fn lost(&self, source: ConnectionError) -> DialError {
        dial_error(self.peer, self.address, source)
    }

    /// A stream is gone, and its connection with it: a peer that lives resets
    /// none.
    async fn gone(&self) -> DialError {
        close(&self.connection, CloseCode::Malformed, "a stream was reset");
        self.lost(self.connection.closed().await)
    }
}

/// A caller that wants to be the primary of a session.
#[derive(Debug)]
pub struct Knock {
    /// Who calls, as its certificate says.
    pub peer: NodeId,
    /// The term that it claims.
    pub term: Term,
    /// What it wants.
    pub hello: Hello,
    connection: Connection,
    control: SendStream,
    reader: FrameReader,
    linger: Duration,
}

impl Knock {
    /// Where the caller is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Takes the session.
    ///
    /// # Errors
    ///
    /// [`SessionError::Unsendable`]. That the caller has gone in the meantime
    /// shows at the session.
    pub fn welcome(self, term: Term, welcome: Welcome) -> Result<BackupSession, SessionError> {
        let bytes = wire::encode(term, &Frame::Welcome(welcome))?;
        let link = Link::new(self.connection, self.peer, self.term);
        Ok(BackupSession::start(link, self.control, self.reader, bytes))
    }

    /// Does not take the session, and waits a little until the caller knows.
    pub async fn refuse(mut self, term: Term, refusal: Refusal) {
        let Ok(bytes) = wire::encode(term, &Frame::Refusal(refusal)) else {
            return close(&self.connection, CloseCode::Refused, "refused");
        };
        let told = async {
            if self.control.write_all(&bytes).await.is_ok() && self.control.finish().is_ok() {
                // The caller closes when it has understood.
                self.connection.closed().await;
            }
        };
        let _ = timeout(self.linger, told).await;
        close(&self.connection, CloseCode::Refused, "refused");
    }
}

async fn greet(
    admitted: Result<Caller, AcceptError>,
    queue: mpsc::Sender<Result<Knock, AcceptError>>,
    options: Arc<Options>,
) {
    let caller = match admitted {
        Ok(caller) => caller,
        Err(error) => return report(error, &queue),
    };
    let address = caller.connection.remote_address();
    let Ok(heard) = timeout(options.answer_timeout, hear(&caller, &options)).await else {
        close(&caller.connection, CloseCode::Silent, "no hello came");
        return report(AcceptError::Silent { address }, &queue);
    };
    let knock = match heard {
        Ok(knock) => knock,
        Err(error) => {
            tracing::warn!(peer = %caller.peer, %address, %error, "no hello");
            return report(error, &queue);
        }
    };
    let handed = timeout(options.answer_timeout, queue.send(Ok(knock))).await;
    if handed.is_err() {
        close(&caller.connection, CloseCode::Busy, "too many callers wait");
    }
    drop(caller.place);
}

/// Failures may not crowd out callers.
fn report(error: AcceptError, queue: &mpsc::Sender<Result<Knock, AcceptError>>) {
    if queue.capacity() > KNOCKS_MAX / 2 {
        let _ = queue.try_send(Err(error));
    }
}

async fn hear(caller: &Caller, options: &Options) -> Result<Knock, AcceptError> {
    let Caller { connection, peer, .. } = caller;
    let address = connection.remote_address();
    let malformed = |source: WireError| {
        close(connection, CloseCode::Malformed, &source.to_string());
        AcceptError::Malformed { peer: peer.clone(), address, source }
    };
    let lost = |source| AcceptError::Lost { address, source };
    let (control, recv) = connection.accept_bi().await.map_err(lost)?;
    let mut reader = FrameReader::new(recv);
    match reader.frame().await {
        Ok(Some((term, Frame::Hello(hello)))) => Ok(Knock {
            peer: peer.clone(),
            term,
            hello,
            connection: connection.clone(),
            control,
            reader,
            linger: options.connect_timeout,
        }),
        Ok(Some((_, other))) => Err(malformed(WireError::Unexpected(other.kind()))),
        Ok(None) => Err(malformed(WireError::Early)),
        Err(ReadFault::Malformed(source)) => Err(malformed(source)),
        Err(ReadFault::Lost) => {
            close(connection, CloseCode::Malformed, "the control stream was reset");
            Err(lost(connection.closed().await))
        }
    }
}
