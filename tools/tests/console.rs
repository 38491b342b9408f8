//! `romulus console` on a terminal of its own and on pipes, against a daemon
//! whose core is played by the test.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};
use romulus::{
    control::{
        self, ControlRequest, ControlSocket, Refused, RefusedKind, Role, Status, Surface, Typed,
    },
    telemetry::{ConsoleTail, EventLog, Metrics},
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
};

/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon that says what the test wants and remembers what was typed.
struct Daemon {
    runtime: Runtime,
    console: Arc<ConsoleTail>,
    role: Arc<Mutex<Role>>,
    typed: Arc<Mutex<Vec<u8>>>,
    /// How often it would not have what was typed.
    refused: Arc<AtomicUsize>,
    /// Bytes that the guest takes at a time.
    room: Arc<AtomicUsize>,
    shutdown: Option<oneshot::Sender<()>>,
    path: PathBuf,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let path = folder.join("web-1.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (sender, requests) = mpsc::channel(4);
        let console = Arc::new(ConsoleTail::default());
        let surface = Surface {
            requests: sender,
            events: Arc::new(EventLog::default()),
            epochs: Arc::default(),
            metrics: Arc::new(Metrics::default()),
            console: console.clone(),
        };
        let (shutdown, ended) = oneshot::channel::<()>();
        let entered = runtime.enter();
        let socket = ControlSocket::bind(&path).unwrap();
        runtime.spawn(control::serve(socket, control::routes(surface), async {
            let _ = ended.await;
        }));
        drop(entered);
        let daemon = Self {
            runtime,
            console,
            role: Arc::new(Mutex::new(Role::Primary)),
            typed: Arc::default(),
            refused: Arc::default(),
            room: Arc::new(AtomicUsize::new(usize::MAX)),
            shutdown: Some(shutdown),
            path,
        };
        daemon.answer(requests);
        daemon
    }

    fn answer(&self, mut requests: mpsc::Receiver<ControlRequest>) {
        let (role, typed, room) = (self.role.clone(), self.typed.clone(), self.room.clone());
        let refusals = self.refused.clone();
        self.runtime.spawn(async move {
            while let Some(request) = requests.recv().await {
                let role = *role.lock().unwrap();
                match request {
                    ControlRequest::Status(reply) => drop(reply.send(Ok(status(role)))),
                    ControlRequest::ConsoleInput { reply, .. } if role != Role::Primary => {
                        let refused = Refused::new(RefusedKind::State, "a backup", "ask another");
                        let _ = reply.send(Err(refused));
                        refusals.fetch_add(1, Ordering::SeqCst);
                    }
                    ControlRequest::ConsoleInput { bytes, reply } => {
                        let taken = bytes.len().min(room.load(Ordering::SeqCst));
                        typed.lock().unwrap().extend(&bytes[..taken]);
                        let _ = reply.send(Ok(Typed { taken, message: String::new() }));
                    }
                    other => panic!("nobody asked for {other:?}"),
                }
            }
        });
    }

    fn typed(&self) -> Vec<u8> {
        self.typed.lock().unwrap().clone()
    }

    fn stop(mut self) {
        drop(self.shutdown.take());
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

fn status(role: Role) -> Status {
    let peer = if role == Role::Primary { "in-sync" } else { "primary" };
    let role = serde_json::to_value(role).unwrap();
    serde_json::from_value(serde_json::json!({
        "protection": { "state": "protected" }, "vm": "web-1", "node": "node-a", "role": role,
        "guest": "running", "term": 1, "epoch": 2, "committed": 1, "applied": 1,
        "behind": { "epochs": 1, "ms": 0 }, "in_sync": ["node-b"],
        "peers": [{ "name": "node-b", "address": "10.1.0.2:7700", "state": peer, "seed": null }],
        "held_bytes": 0, "arbiter": "reachable",
        "pause_us": { "p50": 0, "p99": 0, "max": 0 }, "commit_us": { "p50": 0, "p99": 0, "max": 0 },
        "wire_bytes_per_epoch": 0, "epochs": 0,
        "refused": { "stale_frames": 0, "corrupt_chunks": 0 },
        "features": { "dirty_tracking": "bitmap", "kvm_backend": "svm",
            "jail": { "mode": "strict", "capabilities": [], "landlock": 6, "refused_calls": 0 } },
    }))
    .unwrap()
}

fn romulus(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_romulus"));
    command.arg("console").arg(&daemon.path).args(arguments);
    command
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that a thread collects from a terminal or pipe.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    fn collect(mut from: impl Read + Send + 'static) -> Self {
        let seen = Self::default();
        let all = seen.0.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other end is closed is an error to its reader.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                all.lock().unwrap().extend(&buffer[..count]);
            }
        });
        seen
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn await_text(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            assert!(Instant::now() < end, "`{text}` was not seen, but: {}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A new terminal: the end with keys and a screen, and the end for a program.
fn terminal() -> (File, File) {
    let keyboard = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&keyboard).unwrap())
        .unwrap();
    (File::from(OwnedFd::from(keyboard)), terminal)
}

/// The console on a terminal.
struct Session {
    child: Child,
    keyboard: File,
    terminal: File,
    seen: Seen,
}

impl Session {
    fn begin(daemon: &Daemon, arguments: &[&str]) -> Self {
        let (keyboard, terminal) = terminal();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let child =
            romulus(daemon, arguments).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let seen = Seen::collect(keyboard.try_clone().unwrap());
        Self { child, keyboard, terminal, seen }
    }

    fn is_raw(&self) -> bool {
        let flags = tcgetattr(self.terminal.as_fd()).unwrap().local_flags;
        !flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn await_end(&mut self) -> i32 {
        let mut code = None;
        eventually("the session's end", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code().expect("no signal ended it")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_is_the_guests_until_the_key_is_hit() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    daemon.console.push(b"login: \x1b[6n");
    let mut session = Session::begin(&daemon, &[]);
    session.seen.await_text("web-1 on node-a; Ctrl-] leaves");
    session.seen.await_text("login: ");
    assert!(session.is_raw());
    // Keys that would be signals or lines to another program.
    session.press(b"ro\x03\x1a\r");
    eventually("the keys", || daemon.typed() == b"ro\x03\x1a\r");
    daemon.console.push(b"\x1b[1mPassword\x1b[6n: ");
    session.seen.await_text("\x1b[1mPassword\x1b[6n: ");
    assert!(!session.seen.text().contains("login: \x1b[6n"), "an old question was asked again");
    session.press(b"x\x1dlost");
    assert_eq!(session.await_end(), 0);
    assert_eq!(daemon.typed(), b"ro\x03\x1a\rx");
    assert!(!session.is_raw());
}

#[test]
fn a_terminal_is_given_back_whatever_ends_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut session = Session::begin(&daemon, &[]);
        session.seen.await_text("leaves");
        eventually("raw mode", || session.is_raw());
        kill(Pid::from_raw(session.child.id() as i32), signal).unwrap();
        assert_eq!(session.await_end(), 0, "{signal}");
        assert!(!session.is_raw(), "{signal}");
    }
}

#[test]
fn what_the_guest_has_no_room_for_is_sent_again_and_does_not_keep_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    daemon.room.store(3, Ordering::SeqCst);
    let mut session = Session::begin(&daemon, &[]);
    session.seen.await_text("leaves");
    eventually("raw mode", || session.is_raw());
    session.press(b"0123456789");
    eventually("all of it", || daemon.typed() == b"0123456789");
    daemon.room.store(0, Ordering::SeqCst);
    session.press(b"no room\x1d");
    assert_eq!(session.await_end(), 0);
    assert_eq!(daemon.typed(), b"0123456789");
}

#[test]
fn the_session_outlives_processes_and_says_where_the_guest_is() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    daemon.console.push(b"said by the first, which ran for long\n");
    let mut session = Session::begin(&daemon, &[]);
    session.seen.await_text("which ran for long");
    daemon.stop();
    session.seen.await_text("nobody serves");
    // The host comes back as a backup, and then has the guest again.
    let daemon = Daemon::start(folder.path());
    *daemon.role.lock().unwrap() = Role::Backup;
    session.seen.await_text("web-1 runs on node-b: attach there");
    session.press(b"lost");
    eventually("a refusal", || daemon.refused.load(Ordering::SeqCst) > 0);
    daemon.console.push(b"after all\n");
    session.seen.await_text("after all");
    *daemon.role.lock().unwrap() = Role::Primary;
    let before = session.seen.text().matches("web-1 on node-a").count();
    eventually("the news", || session.seen.text().matches("web-1 on node-a").count() > before);
    session.press(b"ls\r\x1d");
    assert_eq!(session.await_end(), 0);
    assert_eq!(daemon.typed(), b"ls\r");
}

#[test]
fn pipes_are_passed_through_and_their_end_is_not_the_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    daemon.console.push(b"before\n");
    let mut child = romulus(&daemon, &[])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (out, told) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (seen, told) = (Seen::collect(out), Seen::collect(told));
    let piped: Vec<u8> = (0..20_000).map(|n| n as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&piped).unwrap();
    drop(stdin);
    eventually("all bytes, Ctrl-] among them", || daemon.typed() == piped);
    daemon.console.push(b"after\n");
    seen.await_text("before\nafter\n");
    told.await_text("romulus: web-1 on node-a\n");
    assert!(child.try_wait().unwrap().is_none());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_can_only_show() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    daemon.console.push(b"all that was said\n");
    let shown = romulus(&daemon, &["--no-follow"]).output().unwrap();
    assert!(shown.status.success());
    assert_eq!(shown.stdout, b"all that was said\n");
    let shown = romulus(&daemon, &["--no-follow", "--json"]).output().unwrap();
    assert_eq!(shown.stdout, b"{\"said\":\"all that was said\\n\"}\n");

    let mut session = Session::begin(&daemon, &["--no-input"]);
    session.seen.await_text("all that was said");
    assert!(!session.is_raw());
    session.press(b"ls\n");
    daemon.console.push(b"more\n");
    session.seen.await_text("more");
    kill(Pid::from_raw(session.child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(session.await_end(), 0);
    assert!(daemon.typed().is_empty());
}

#[test]
fn without_a_daemon_it_fails_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let path = daemon.path.clone();
    daemon.stop();
    let mut command = Command::new(env!("CARGO_BIN_EXE_romulus"));
    let output = command.arg("console").arg(path).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("is its process running on this host"), "{told}");
}
