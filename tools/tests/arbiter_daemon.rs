//! `romulus arbiter` as a process: it serves, ends at SIGTERM, and remembers.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use arbiter::{Operation, Outcome, Record, Request, Stamp, Term, VmId};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use transport::{ArbiterClient, Endpoint, Identity, Options};

const ROMULUS: &str = env!("CARGO_BIN_EXE_romulus");

struct Daemon {
    child: Child,
    address: SocketAddr,
}

fn start(folder: &Path) -> Daemon {
    let mut child = Command::new(ROMULUS)
        .args(["arbiter", "--log", "json"])
        .arg(folder.join("arbiter.toml"))
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
    let file = |name| folder.join(name);
    let identity =
        Identity::load(&file("ca.pem"), &file("node-a.pem"), &file("node-a.key")).unwrap();
    let endpoint =
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity, &Options::default()).unwrap();
    ArbiterClient::new(Arc::new(endpoint), arbiter, "arbiter".parse().unwrap())
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
