//! `romulus arbiter` as a process: it serves, ends at SIGTERM, and remembers;
//! with etcd, others remember for it.

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
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
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
                ca = \"ca.pem\"\ncert = \"arbiter.pem\"\nkey = \"arbiter.key\"\n";
    fs::write(folder.join("arbiter.toml"), text).unwrap();
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
    let request = Request {
        caller: "node-a".parse().unwrap(),
        expected: None,
        operation: Operation::Create,
        stamp: Stamp::new(7),
    };

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

#[test]
fn a_certificate_of_another_node_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let file = folder.path().join("arbiter.toml");
    let text = fs::read_to_string(&file).unwrap().replace("arbiter.pem", "node-a.pem");
    fs::write(&file, text.replace("arbiter.key", "node-a.key")).unwrap();
    let output = Command::new(ROMULUS).arg("arbiter").arg(&file).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("the certificate is that of node-a"), "{told}");
}

/// Whether etcd is here; if not, says so, or fails if `ROMULUS_REQUIRE` has
/// `etcd` in it.
fn etcd_for(test: &str) -> bool {
    let version = Command::new("etcd").arg("--version").output();
    if version.is_ok_and(|output| output.status.success()) {
        return true;
    }
    let reason = "etcd cannot be run: apt-get install etcd-server";
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|need| need == "etcd"), "{test}: {reason}");
    println!("skipped: {test}: {reason}");
    false
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

/// Writes the configurations of two arbiters in front of etcd at `port`.
fn prepare_two(folder: &Path, port: u16) -> [std::path::PathBuf; 2] {
    prepare(folder);
    let text = fs::read_to_string(folder.join("arbiter.toml")).unwrap();
    let section = format!("[arbiter.etcd]\nendpoints = [\"http://127.0.0.1:{port}\"]\n");
    [1, 2].map(|number| {
        let name = format!("arbiter-{number}");
        let issue = ["pki", "issue", &name, "--dir"];
        let issued = Command::new(ROMULUS).args(issue).arg(folder).output().unwrap();
        assert!(issued.status.success());
        let text = text
            .replace("store = \"register\"\n", "")
            .replace("name = \"arbiter\"", &format!("name = \"{name}\""))
            .replace("arbiter.pem", &format!("{name}.pem"))
            .replace("arbiter.key", &format!("{name}.key"));
        let path = folder.join(format!("{name}.toml"));
        fs::write(&path, text + &section).unwrap();
        path
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn arbiters_wait_for_etcd_and_share_their_registers() {
    if !etcd_for("arbiters_wait_for_etcd_and_share_their_registers") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configs = prepare_two(folder.path(), port);
    let [first, second] = configs.map(|config| start_with(&config));
    let arbiters = [("arbiter-1", first.address), ("arbiter-2", second.address)];
    let vm: VmId = "web-1".parse().unwrap();
    let request = Request {
        caller: "node-a".parse().unwrap(),
        expected: None,
        operation: Operation::Create,
        stamp: Stamp::new(7),
    };

    let node = client_of(folder.path(), &arbiters);
    let told = node.execute(&vm, &request).await.unwrap_err();
    assert!(matches!(told, AskError::Unavailable { .. }), "{told:?}");
    assert!(told.to_string().contains("check that it runs"), "{told}");

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
