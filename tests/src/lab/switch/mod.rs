//! A learning Ethernet switch in a process: a Unix socket for every port.
//!
//! ```text
//!   QEMU ── netdev stream ──▶ socket ─▶ reader ─▶ fabric ─▶ queue ─▶ writer ─▶ socket
//!                                       (port 0)                     (port 1)
//! ```
//!
//! A frame on a socket is its length, four octets in network order, and its
//! octets (QEMU's `-netdev stream`). A machine may go and come again at the same
//! socket. Nothing here waits for a machine: what a frozen one does not take is
//! dropped when its queue is full, as a switch does.
//!
//! | thread | owns | blocks on | ends |
//! |---|---|---|---|
//! | `port-NAME` | accepting and reading | its socket | the switch is dropped |
//! | `wire-NAME` | writing | its queue, its socket | its machine is gone |

mod fabric;
mod queue;

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use romulus::rehearsal::netns::Direction;

use self::{
    fabric::{Fabric, Port},
    queue::Queue,
};

pub use self::fabric::{Counts, Impairment};

/// Octets of a frame's length on a socket.
const LENGTH_BYTES: usize = 4;
/// Longest frame that is believed. Larger ones mean that framing is lost.
const FRAME_BYTES_MAX: usize = 128 << 10;

/// A switch, which ends when it is dropped.
#[derive(Debug)]
pub struct Switch {
    shared: Arc<Shared>,
    ports: BTreeMap<String, (Port, PathBuf)>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    fabric: Mutex<Fabric>,
    sockets: Mutex<Vec<Socket>>,
    ended: AtomicBool,
}

/// Both ends of what goes to a machine.
struct Socket {
    queue: Arc<Queue>,
    connection: Option<UnixStream>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("fabric", &self.fabric).finish_non_exhaustive()
    }
}

impl Switch {
    /// A switch without ports, whose losses come from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let shared = Shared {
            fabric: Mutex::new(Fabric::new(seed)),
            sockets: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), ports: BTreeMap::new(), threads: Vec::new() }
    }

    /// Adds a port called `name` at the socket `path`, where a machine may
    /// connect from now on.
    ///
    /// # Errors
    ///
    /// If there can be no socket at `path`, or no thread.
    pub fn add_port(&mut self, name: &str, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        let port = lock(&self.shared.fabric).add_port();
        let socket = Socket { queue: Arc::new(Queue::new()), connection: None };
        lock(&self.shared.sockets).push(socket);
        let (shared, thread_name) = (self.shared.clone(), name.to_owned());
        let thread = std::thread::Builder::new()
            .name(format!("port-{name}"))
            .spawn(move || serve(&shared, port, &thread_name, &listener))?;
        self.threads.push(thread);
        self.ports.insert(name.to_owned(), (port, path.to_owned()));
        Ok(())
    }

    /// What happens from now on to frames in `direction`, as seen by the
    /// machine at the port called `name`.
    ///
    /// # Panics
    ///
    /// If there is no such port.
    pub fn impair(&self, name: &str, direction: Direction, impairment: Impairment) {
        let port = self.port(name);
        let mut fabric = lock(&self.shared.fabric);
        if matches!(direction, Direction::Outgoing | Direction::Both) {
            fabric.impair_outgoing(port, impairment);
        }
        if matches!(direction, Direction::Incoming | Direction::Both) {
            fabric.impair_incoming(port, impairment);
        }
    }

    /// Loses all frames in `direction` until [`Switch::heal`].
    ///
    /// # Panics
    ///
    /// If there is no such port.
    pub fn cut(&self, name: &str, direction: Direction) {
        self.impair(name, direction, Impairment { cut: true, ..Impairment::default() });
    }

    /// Lets frames of the port called `name` pass unharmed again.
    ///
    /// # Panics
    ///
    /// If there is no such port.
    pub fn heal(&self, name: &str) {
        self.impair(name, Direction::Both, Impairment::default());
    }

    /// What the port called `name` has seen.
    ///
    /// # Panics
    ///
    /// If there is no such port.
    #[must_use]
    pub fn counts(&self, name: &str) -> Counts {
        lock(&self.shared.fabric).counts(self.port(name))
    }

    fn port(&self, name: &str) -> Port {
        let (port, _) = self.ports.get(name).unwrap_or_else(|| panic!("no port is called {name}"));
        *port
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for socket in &*lock(&self.shared.sockets) {
            if let Some(connection) = &socket.connection {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        // A port that waits for a machine is woken by one that wants nothing.
        for (_, path) in self.ports.values() {
            let _ = UnixStream::connect(path);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One machine after the other at a port, until the switch ends.
fn serve(shared: &Arc<Shared>, port: Port, name: &str, listener: &UnixListener) {
    while let Ok((connection, _)) = listener.accept() {
        if let Err(error) = connected(shared, port, name, &connection) {
            eprintln!("lab: port {name}: {error}");
        }
        // No machine, no link.
        let _ = connection.shutdown(Shutdown::Both);
        lock(&shared.fabric).link_down(port);
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// One machine at a port, from its connection to its end.
fn connected(
    shared: &Arc<Shared>,
    port: Port,
    name: &str,
    connection: &UnixStream,
) -> io::Result<()> {
    let queue = {
        let mut sockets = lock(&shared.sockets);
        sockets[port].connection = Some(connection.try_clone()?);
        sockets[port].queue.open();
        sockets[port].queue.clone()
    };
    // The switch may have ended before the connection could be shut down.
    if shared.ended.load(Ordering::SeqCst) {
        return Ok(());
    }
    let (writes, outgoing) = (connection.try_clone()?, queue.clone());
    let writer = std::thread::Builder::new()
        .name(format!("wire-{name}"))
        .spawn(move || write_frames(writes, &outgoing))?;
    let outcome = read_frames(shared, port, connection.try_clone()?);
    queue.close();
    let _ = connection.shutdown(Shutdown::Both);
    let _ = writer.join();
    outcome
}

/// Forwards what a machine sends until it is gone. A machine that is killed in
/// the middle of a frame is no error.
fn read_frames(shared: &Shared, port: Port, connection: UnixStream) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut length = [0; LENGTH_BYTES];
        if connection.read_exact(&mut length).is_err() {
            return Ok(());
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            let words = format!("a frame of {length} octets: the machine is cut off");
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        let mut frame = vec![0; length];
        if connection.read_exact(&mut frame).is_err() {
            return Ok(());
        }
        let deliveries = lock(&shared.fabric).forward(port, &frame, Instant::now());
        let frame: Arc<[u8]> = frame.into();
        for delivery in deliveries {
            let queue = lock(&shared.sockets)[delivery.port].queue.clone();
            queue.push(delivery.due, frame.clone());
        }
    }
}

/// Hands a machine its frames when they are due, until it is gone.
fn write_frames(mut connection: UnixStream, queue: &Queue) {
    while let Some(frame) = queue.pop() {
        let length = u32::try_from(frame.len()).expect("frames are bounded").to_be_bytes();
        let bytes = [&length[..], &frame[..]].concat();
        if connection.write_all(&bytes).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
