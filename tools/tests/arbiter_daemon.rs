//! `romulus arbiter` as a process: it serves, ends at SIGTERM, and remembers;
//! with etcd, others remember for it.

mod machine;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use arbiter::{Operation, Outcome, Record, Request, Stamp, Term, VmId};
use machine::{Need, has};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use romulus::{
    config::JailMode,
    control::{
        ArbiterStatus, Client, EtcdMember, EtcdMemberState, Readiness, RegisterStatus,
        RegisterStore,
    },
};
use transport::{ArbiterClient, AskError, Endpoint, Identity, Options};

const ROMULUS: &str = env!("CARGO_BIN_EXE_romulus");

struct Daemon {
    child: Child,
    address: SocketAddr,
}

fn start(folder: &Path) -> Daemon {
    start_with(&folder.join("arbiter.toml"))
}

fn start_with(config: &Path) -> Daemon {
    let mut child = Command::new(ROMULUS)
        .args(["arbiter", "--log", "json"])
        .arg(config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        Some(line["address"].as_str()?.parse().unwrap())
    });
    // The rest is read, so that the daemon never blocks on its log.
    std::thread::spawn(move || lines.for_each(drop));
    Daemon { child, address: address.expect("the arbiter told no address") }
}

impl Daemon {
    fn stop(mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

fn prepare(folder: &Path) {
    let pki = |arguments: &[&str]| {
        let status = Command::new(ROMULUS)
            .arg("pki")
            .args(arguments)
            .arg("--dir")
            .arg(folder)
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    };
    pki(&["init"]);
    pki(&["issue", "arbiter"]);
    pki(&["issue", "node-a"]);
    let text = "[arbiter]\nname = \"arbiter\"\nlisten = \"127.0.0.1:0\"\nstore = \"register\"\n\
                control = \"arbiter.sock\"\nca = \"ca.pem\"\ncert = \"arbiter.pem\"\nkey = \"arbiter.key\"\n";
    fs::write(folder.join("arbiter.toml"), text).unwrap();
}

/// A claim of a VM by node-a.
fn create(stamp: u64) -> Request {
    Request {
        caller: "node-a".parse().unwrap(),
        expected: None,
        operation: Operation::Create,
        stamp: Stamp::new(stamp),
    }
}

fn client(folder: &Path, arbiter: SocketAddr) -> ArbiterClient {
    client_of(folder, &[("arbiter", arbiter)])
}

fn client_of(folder: &Path, arbiters: &[(&str, SocketAddr)]) -> ArbiterClient {
    let file = |name| folder.join(name);
    let identity =
        Identity::load(&file("ca.pem"), &file("node-a.pem"), &file("node-a.key")).unwrap();
    let endpoint =
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity, &Options::default()).unwrap();
    let arbiters = arbiters.iter().map(|(name, address)| (name.parse().unwrap(), *address));
    ArbiterClient::new(Arc::new(endpoint), arbiters.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_register_outlives_its_process() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let vm: VmId = "web-1".parse().unwrap();
    let request = create(7);

    let daemon = start(folder.path());
    let asked = client(folder.path(), daemon.address).execute(&vm, &request).await.unwrap();
    let Outcome::Set(register) = asked else { panic!("{asked:?}") };
    assert_eq!(register.term, Term::FIRST);
    assert_eq!(daemon.stop(), Some(0));

    let daemon = start(folder.path());
    let kept = client(folder.path(), daemon.address).load(&vm).await.unwrap();
    assert_eq!(kept, Some(Record { register, stamp: request.stamp }));
    assert_eq!(daemon.stop(), Some(0));
}

/// What `romulus status TARGET` prints.
fn status_of(target: &Path, json: bool) -> String {
    let mut command = Command::new(ROMULUS);
    command.arg("status").arg(target).args(json.then_some("--json"));
    let output = command.output().unwrap();
    let (told, error) =
        [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap()).into();
    assert_eq!(output.status.code(), Some(0), "{told}{error}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_registers() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let daemon = start(folder.path());
    for (vm, stamp) in [("web-1", 7), ("db-1", 8)] {
        let node = client(folder.path(), daemon.address);
        node.execute(&vm.parse().unwrap(), &create(stamp)).await.unwrap();
    }
    let socket = folder.path().join("arbiter.sock");
    let status = Client::new(&socket).arbiter_status().await.unwrap();
    assert_eq!(status.readiness, Readiness::Ready);
    assert_eq!(status.address, daemon.address);
    assert_eq!(status.store, RegisterStore::File { path: folder.path().join("register") });
    let register = |vm: &str| RegisterStatus {
        vm: vm.parse().unwrap(),
        term: 1,
        primary: "node-a".parse().unwrap(),
        in_sync: Vec::new(),
    };
    assert_eq!(status.registers, Some(vec![register("db-1"), register("web-1")]));
    // By the path of the socket and by that of the configuration.
    let json: ArbiterStatus = serde_json::from_str(&status_of(&socket, true)).unwrap();
    assert_eq!(json, status);
    let shown = status_of(&folder.path().join("arbiter.toml"), false);
    for line in ["arbiter: ready\n", "  web-1        term 1, primary node-a, in sync nobody\n"] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    let metrics = Client::new(&socket).metrics().await.unwrap();
    for line in [
        "romulus_arbiter_ready 1",
        "romulus_arbiter_registers 2",
        "romulus_arbiter_requests_total{request=\"execute\",answer=\"set\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
    // It only tells.
    let refused = Client::new(&socket).verify().await.unwrap_err();
    assert!(refused.to_string().contains("use /status or /metrics"), "{refused}");
    assert_eq!(daemon.stop(), Some(0));
    assert!(!socket.exists(), "the socket outlived its arbiter");
}

#[test]
fn an_arbiter_without_a_socket_is_told() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let file = folder.path().join("arbiter.toml");
    let text = fs::read_to_string(&file).unwrap().replace("control = \"arbiter.sock\"\n", "");
    fs::write(&file, text).unwrap();
    let output = Command::new(ROMULUS).arg("status").arg(&file).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("add the key `control`"), "{told}");
}

#[test]
fn a_certificate_of_another_node_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let file = folder.path().join("arbiter.toml");
    let text = fs::read_to_string(&file).unwrap().replace("arbiter.pem", "node-a.pem");
    fs::write(&file, text.replace("arbiter.key", "node-a.key")).unwrap();
    let output = Command::new(ROMULUS).arg("arbiter").arg(&file).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told.contains("is the certificate of `node-a`, not of `arbiter`"), "{told}");
}

/// One member on loopback; killed when it is dropped.
struct Etcd(Child);

impl Etcd {
    fn start(folder: &Path, port: u16) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", "http://127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes the configurations of two arbiters in front of etcd at `port`. The
/// second has to look its name up, in its jail.
fn prepare_two(folder: &Path, port: u16) -> [std::path::PathBuf; 2] {
    prepare(folder);
    let text = fs::read_to_string(folder.join("arbiter.toml")).unwrap();
    [(1, "127.0.0.1"), (2, "localhost")].map(|(number, host)| {
        let section = format!("[arbiter.etcd]\nendpoints = [\"http://{host}:{port}\"]\n");
        let name = format!("arbiter-{number}");
        let issue = ["pki", "issue", &name, "--dir"];
        let issued = Command::new(ROMULUS).args(issue).arg(folder).output().unwrap();
        assert!(issued.status.success());
        let text = text
            .replace("store = \"register\"\n", "")
            .replace("name = \"arbiter\"", &format!("name = \"{name}\""))
            .replace("arbiter.sock", &format!("{name}.sock"))
            .replace("arbiter.pem", &format!("{name}.pem"))
            .replace("arbiter.key", &format!("{name}.key"));
        let path = folder.join(format!("{name}.toml"));
        fs::write(&path, text + &section).unwrap();
        path
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn arbiters_wait_for_etcd_and_share_their_registers() {
    if !has("arbiters_wait_for_etcd_and_share_their_registers", &[Need::Etcd]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configs = prepare_two(folder.path(), port);
    let [first, second] = configs.map(|config| start_with(&config));
    let arbiters = [("arbiter-1", first.address), ("arbiter-2", second.address)];
    let vm: VmId = "web-1".parse().unwrap();
    let request = create(7);

    let node = client_of(folder.path(), &arbiters);
    let told = node.execute(&vm, &request).await.unwrap_err();
    assert!(matches!(told, AskError::Unavailable { .. }), "{told:?}");
    assert!(told.to_string().contains("check that it runs"), "{told}");
    let sockets = ["arbiter-1", "arbiter-2"].map(|name| folder.path().join(format!("{name}.sock")));
    let status = Client::new(&sockets[0]).arbiter_status().await.unwrap();
    let Readiness::NotReady { reason } = &status.readiness else { panic!("{status:?}") };
    assert!(reason.contains("check that it runs"), "{reason}");
    assert_eq!(status.registers, None);
    let shown = status_of(&sockets[0], false);
    assert!(shown.starts_with("arbiter-1: not ready: etcd gave no answer"), "{shown}");

    let _etcd = Etcd::start(folder.path(), port);
    let deadline = Instant::now() + Duration::from_secs(60);
    let asked = loop {
        match node.execute(&vm, &request).await {
            Ok(outcome) => break outcome,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let Outcome::Set(register) = asked else { panic!("{asked:?}") };
    for socket in &sockets {
        let status = Client::new(socket).arbiter_status().await.unwrap();
        assert_eq!(status.readiness, Readiness::Ready);
        assert_eq!((status.jail.mode, status.jail.refused_calls), (JailMode::Strict, 0));
        let RegisterStore::Etcd { id: Some(_), members, .. } = &status.store else {
            panic!("{status:?}")
        };
        assert!(
            matches!(
                &members[..],
                [EtcdMember { state: EtcdMemberState::Answers { leads: true, .. }, .. }]
            ),
            "{members:?}"
        );
        assert_eq!(status.registers.as_deref().map(<[_]>::len), Some(1));
    }
    // Whoever is asked, and when the one that was asked is gone.
    let record = Some(Record { register, stamp: request.stamp });
    for (name, address) in arbiters {
        let alone = client_of(folder.path(), &[(name, address)]);
        assert_eq!(alone.load(&vm).await.unwrap(), record);
    }
    assert_eq!(first.stop(), Some(0));
    assert_eq!(node.load(&vm).await.unwrap(), record);
    assert_eq!(second.stop(), Some(0));
}
