//! Every complaint, word for word where operators read it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use tempfile::TempDir;

use checkpoint::{choice::Way, pacing::Goal};
use transport::identity::pki;

use super::*;

const SOUND: &str = r#"[vm]
name = "web-1"
memory_mib = 512
vcpus = 2
kernel = "probe"

[network]
tap = "tap0"
mac = "52:54:00:00:00:01"

[node]
name = "node-a"
listen = "10.1.0.1:7700"
state_dir = "state"
control = "web-1.sock"
ca = "ca.pem"
cert = "node.pem"
key = "node.key"

[[peers]]
name = "node-b"
address = "10.1.0.2:7700"

[arbiter]
name = "arbiter"
address = "10.1.0.9:7800"

[replication]
epoch_ms = 10
"#;

fn written(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["ca.pem", "node.pem", "node.key"] {
        fs::write(folder.path().join(name), "PEM").unwrap();
    }
    let path = folder.path().join("vm.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn complaint(text: &str) -> String {
    let (folder, path) = written(text);
    let error = read_any(&path).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn a_sound_file_and_its_defaults() {
    let (folder, path) = written(SOUND);
    let config = read_vm(&path).unwrap();
    assert_eq!(config.vm.kernel, Kernel::Probe);
    let interval = Goal::Interval(std::time::Duration::from_millis(10));
    assert_eq!(config.replication.pace.goal, interval);
    assert_eq!(config.replication.heartbeat.as_millis(), 20);
    assert_eq!(config.replication.staging_mib_max.get(), 256);
    assert_eq!(config.replication.seed_mib_per_s_max, None);
    assert_eq!(config.node.identity.key, folder.path().join("node.key"));
    assert_eq!(config.network.unwrap().mac.octets(), [0x52, 0x54, 0, 0, 0, 1]);
    assert_eq!(config.peers.len(), 1);
    assert_eq!(config.arbiters.len(), 1);
    assert_eq!(config.replication.arbiter_timeout.as_millis(), 500);
    assert_eq!(config.replication.compression, Codec::Zstd);
    assert!(config.vm.rng && config.disks.is_empty());
}

/// `SOUND`, and an arbiter's.
fn both_kinds() -> [(TempDir, PathBuf); 2] {
    [written(SOUND), written(ARBITER)]
}

#[test]
fn a_file_of_the_other_kind_is_told_apart() {
    let [(_vm, vm), (_arbiter, arbiter)] = both_kinds();
    let told = read_arbiter(&vm).unwrap_err().to_string();
    assert!(told.contains("is a VM's file: use `romulus run` or `romulus backup`"), "{told}");
    let told = read_vm(&arbiter).unwrap_err().to_string();
    assert!(told.contains("is an arbiter's file: use `romulus arbiter`"), "{told}");
}

#[test]
fn names_of_hosts_are_not_looked_up() {
    for (before, after) in [
        ("listen = \"10.1.0.1:7700\"", "listen = \"node-a:7700\""),
        ("address = \"10.1.0.2:7700\"", "address = \"node-b.example:7700\""),
        ("address = \"10.1.0.9:7800\"", "address = \"arbiter:7800\""),
    ] {
        let told = complaint(&SOUND.replace(before, after));
        assert!(told.contains("is no IP address with a port"), "{told}");
        assert!(told.contains("names are not looked up"), "{told}");
    }
}

#[test]
fn an_identity_is_the_nodes_own() {
    let (folder, path) = written(SOUND);
    let base = folder.path();
    pki::create_authority(base, 1, true).unwrap();
    let config = read_vm(&path).unwrap();
    let issue = |name: &str| {
        let made = pki::issue(base, &name.parse().unwrap(), 1, true).unwrap();
        fs::rename(made.certificate, base.join("node.pem")).unwrap();
        fs::rename(made.key, base.join("node.key")).unwrap();
    };
    let check = || config.node.identity.check(&config.node.name).map_err(|it| it.to_string());
    issue("node-a");
    assert_eq!(check(), Ok(()));
    fs::set_permissions(base.join("node.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(check().unwrap_err().contains("can be read by others"));
    issue("node-b");
    let told = check().unwrap_err();
    assert!(told.contains("node.pem is the certificate of `node-b`, not of `node-a`"), "{told}");
    issue("node-a");
    pki::create_authority(base, 1, true).unwrap();
    assert!(check().unwrap_err().contains("was not issued by"));
}

#[test]
fn compression_is_chosen_or_tried() {
    for (line, codec, leader) in [
        ("compression = \"auto\"", Codec::Auto, Way::Compressed),
        ("compression = \"zstd\"", Codec::Zstd, Way::Compressed),
        ("compression = \"off\"", Codec::Off, Way::Raw),
    ] {
        let (_folder, path) = written(&format!("{SOUND}{line}\n"));
        let found = read_vm(&path).unwrap().replication.compression;
        assert_eq!((found, found.choice().leader()), (codec, leader));
    }
}

/// A sound file with two disks that are only read.
fn with_disks(extra: &str) -> String {
    let disks = "[[disks]]\npath = \"ca.pem\"\nread_only = true\n\n\
                 [[disks]]\npath = \"node.pem\"\nread_only = true\n";
    format!("{disks}{extra}\n{SOUND}")
}

#[test]
fn disks_and_their_defaults() {
    let text = with_disks("serial = \"data\"\ndigest = \"samples\"").replacen(
        "kernel = \"probe\"",
        "kernel = \"probe\"\nrng = false",
        1,
    );
    let (folder, path) = written(&text);
    let config = read_vm(&path).unwrap();
    assert!(!config.vm.rng);
    let [first, second] = &config.disks[..] else { panic!("{:?}", config.disks) };
    assert_eq!(first.path, folder.path().join("ca.pem"));
    assert_eq!((first.serial.as_str(), first.digest), ("disk-0", DiskDigest::Auto));
    assert_eq!((second.serial.as_str(), second.digest), ("data", DiskDigest::Samples));
}

#[test]
fn a_disk_that_is_written_goes_without_peers_only() {
    let written_to = with_disks("").replacen("read_only = true\n", "", 1);
    assert_eq!(
        complaint(&written_to),
        "vm.toml:2: disks.path: is a disk that the guest may write, and writes are not replicated yet: set `read_only = true`, or remove [[peers]] and run the guest unprotected"
    );
    let peers = "[[peers]]\nname = \"node-b\"\naddress = \"10.1.0.2:7700\"\n";
    let (_folder, path) = written(&written_to.replacen(peers, "", 1));
    assert!(!read_vm(&path).unwrap().disks[0].read_only);
}

#[test]
fn what_can_be_wrong_with_disks() {
    let mut many = String::new();
    for n in 2..9 {
        many += &format!("\n[[disks]]\npath = \"node.key\"\nread_only = true\nserial = \"d{n}\"");
    }
    for (extra, expected) in [
        ("digets = \"all\"", "vm.toml:8: disks.digets: is not a setting: did you mean `digest`?"),
        (
            "digest = \"most\"",
            "vm.toml:8: disks.digest: \"most\" is no choice: use one of \"auto\", \"all\", \"samples\"",
        ),
        (
            "serial = \"disk-0\"",
            "vm.toml:8: disks.serial: disk-0 is another disk's serial: give each disk a serial of its own",
        ),
        (
            "serial = \"a disk\"",
            "vm.toml:8: disks.serial: \"a disk\": no serial, which has 1 to 20 of letters, digits, `-`, `_` and `.`: write it like serial = \"disk-0\"",
        ),
        (
            "\n[[disks]]\npath = \"gone.img\"\nread_only = true",
            "vm.toml:10: disks.path: cannot read gone.img: No such file or directory (os error 2): name a raw image, and check its permissions",
        ),
        (
            "\n[[disks]]\npath = \".\"\nread_only = true",
            "vm.toml:10: disks.path: . is neither a file nor a block device: name a raw image",
        ),
        (
            &many[..],
            "vm.toml:34: disks.path: is one disk too many, 8 are possible: join what belongs together in one image",
        ),
    ] {
        assert_eq!(complaint(&with_disks(extra)), expected);
    }
}

#[test]
fn an_image_that_is_written_is_one_disks_only() {
    let peers = "[[peers]]\nname = \"node-b\"\naddress = \"10.1.0.2:7700\"\n";
    let text = with_disks("\n[[disks]]\npath = \"ca.pem\"").replacen(peers, "", 1);
    assert_eq!(
        complaint(&text),
        "vm.toml:10: disks.path: is the image of disk disk-0, too: give each disk an image of its own, or make both read-only"
    );
}

#[test]
fn a_linux_guest_and_its_defaults() {
    let linux = "kernel = \"ca.pem\"\ninitrd = \"node.pem\"\nboot = \"linux\"";
    let (folder, path) = written(&SOUND.replacen("kernel = \"probe\"", linux, 1));
    let vm = read_vm(&path).unwrap().vm;
    assert_eq!(vm.kernel, Kernel::File(folder.path().join("ca.pem")));
    assert_eq!((vm.initrd, vm.boot), (Some(folder.path().join("node.pem")), BootProtocol::Linux));
    assert_eq!((vm.on_reboot, vm.on_triple_fault), (OnReboot::Restart, OnReboot::Restart));
    assert_eq!(vm.on_panic, OnPanic::Report);
    let (_folder, path) = written(SOUND);
    assert_eq!(read_vm(&path).unwrap().vm.on_triple_fault, OnReboot::Stop, "the probe guest");
}

/// A sound line, what is written instead, and the complaint.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "epoch_ms = 10",
        "epcoh_ms = 10",
        "vm.toml:29: replication.epcoh_ms: is not a setting: did you mean `epoch_ms`?",
    ),
    ("[network]", "[netwrk]", "vm.toml:7: netwrk: is not a setting: did you mean `network`?"),
    ("vcpus = 2", "vcpus = 65", "vm.toml:4: vm.vcpus: 65 is out of range: use 1 to 64 vCPUs"),
    ("vcpus = 2", "vcpus = -1", "vm.toml:4: vm.vcpus: -1 is out of range: use 1 to 64 vCPUs"),
    (
        "vcpus = 2",
        "vcpus = \"2\"",
        "vm.toml:4: vm.vcpus: is of the type string: it must be a whole number",
    ),
    (
        "memory_mib = 512",
        "memory_mib = 32",
        "vm.toml:3: vm.memory_mib: 32 is out of range: use 64 to 1048576 MiB",
    ),
    (
        "memory_mib = 512\n",
        "",
        "vm.toml:1: vm.memory_mib: is missing: add it, for example memory_mib = 512",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"gone.elf\"",
        "vm.toml:5: vm.kernel: cannot read gone.elf: No such file or directory (os error 2): name a readable kernel (a bzImage such as /boot/vmlinuz, or an ELF file), or \"probe\" for the guest that is built in",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"probe\"\nboot = \"bios\"",
        "vm.toml:6: vm.boot: \"bios\" is no choice: use one of \"auto\", \"linux\", \"pvh\", \"long-mode\"",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"probe\"\ninitrd = \"ca.pem\"",
        "vm.toml:6: vm.initrd: the probe guest takes none: leave it out",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"ca.pem\"\ninitrd = \"gone.img\"",
        "vm.toml:6: vm.initrd: cannot read gone.img: No such file or directory (os error 2): name a readable file, such as /boot/initrd.img",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"probe\"\non_panic = \"reboot\"",
        "vm.toml:6: vm.on_panic: \"reboot\" is no choice: use one of \"report\", \"restart\", \"stop\"",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"probe\"\ncpu = \"x86-64-v9\"",
        "vm.toml:6: vm.cpu: \"x86-64-v9\": no cpu model: use one of host, x86-64-v1, x86-64-v2, x86-64-v3, x86-64-v4, amd-zen2, amd-zen3, amd-zen4, intel-haswell, intel-skylake, intel-icelake: write it like cpu = \"x86-64-v3\"",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"probe\"\ncpu_without = [\"avx512f\",\n  \"avx9\"]",
        "vm.toml:7: vm.cpu_without: \"avx9\": no feature of this name is known: `romulus doctor` and /proc/cpuinfo have the names: write it like cpu_without = [\"avx512f\"]",
    ),
    (
        "kernel = \"probe\"",
        "kernel = \"probe\"\ncpu_without = \"avx512f\"",
        "vm.toml:6: vm.cpu_without: is of the type string: it must be a list of texts",
    ),
    (
        "name = \"web-1\"",
        "name = \"Web\"",
        "vm.toml:2: vm.name: \"Web\": `Web` is no name: use 1 to 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit: write it like name = \"web-1\"",
    ),
    (
        "52:54:00:00:00:01",
        "53:54:00:00:00:01",
        "vm.toml:9: network.mac: \"53:54:00:00:00:01\": a group's address or none, where one station's is needed: write it like mac = \"52:54:00:00:00:01\"",
    ),
    (
        "tap = \"tap0\"",
        "tap = \"a-very-long-interface\"",
        "vm.toml:8: network.tap: \"a-very-long-interface\": no interface name, which has 1 to 15 of letters, digits, `-`, `_` and `.`: write it like tap = \"tap0\"",
    ),
    (
        "listen = \"10.1.0.1:7700\"",
        "listen = \"10.1.0.1\"",
        "vm.toml:13: node.listen: \"10.1.0.1\" is no IP address with a port: write it like listen = \"10.1.0.1:7700\" (names are not looked up)",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = \"ca.pem/x\"",
        "vm.toml:14: node.state_dir: ca.pem is no folder: name a folder, or one that can be created",
    ),
    ("key = \"node.key\"", "key = \"\"", "vm.toml:18: node.key: is empty: name a path"),
    (
        "name = \"node-b\"",
        "name = \"node-a\"",
        "vm.toml:21: peers.name: node-a is this node itself: list only the other nodes",
    ),
    (
        "name = \"node-b\"",
        "name = \"arbiter\"",
        "vm.toml:21: peers.name: arbiter is the arbiter: give the arbiter and the nodes names of their own",
    ),
    (
        "[arbiter]\n",
        "[[peers]]\nname = \"node-b\"\naddress = \"10.1.0.3:1\"\n[arbiter]\n",
        "vm.toml:25: peers.name: node-b is listed twice: list every node once",
    ),
    (
        "[arbiter]\n",
        "[[arbiters]]\nname = \"arbiter-2\"\naddress = \"10.1.0.8:7800\"\n[arbiter]\n",
        "vm.toml:24: arbiters: is beside [arbiter]: list all arbiters as [[arbiters]], or only one as [arbiter]",
    ),
    (
        "[arbiter]\n",
        "[[arbiters]]\nname = \"arbiter-2\"\naddress = \"10.1.0.9:7800\"\n[[arbiters]]\n",
        "vm.toml:29: arbiters.address: 10.1.0.9:7800 is listed twice: list every arbiter once",
    ),
    (
        "[arbiter]\nname = \"arbiter\"",
        "[arbiter]\nname = \"node-a\"",
        "vm.toml:25: arbiter.name: node-a is this node itself: give the arbiter and the nodes names of their own",
    ),
    (
        "[arbiter]",
        "[arbeiter]",
        "vm.toml:1: arbiter: is missing: line 24 has `arbeiter`, did you mean that?",
    ),
    (
        "epoch_ms = 10",
        "heartbeat_ms = 60",
        "vm.toml:28: replication.detection_ms: 150 ms are less than 3 heartbeats of 60 ms: use at least 180, or a shorter heartbeat_ms",
    ),
    (
        "epoch_ms = 10",
        "epoch_ms = 150\ndrop_ms = 900",
        "vm.toml:28: replication.detection_ms: 150 ms are not more than an epoch of 150 ms: use more than 150, or a shorter epoch_ms",
    ),
    (
        "epoch_ms = 10",
        "drop_ms = 900\nlag_ms = 800",
        "vm.toml:30: replication.lag_ms: 800 ms are less than drop_ms, 900 ms: use at least 900",
    ),
    (
        "epoch_ms = 10",
        "resend_outputs = 1",
        "vm.toml:29: replication.resend_outputs: is of the type integer: it must be true or false",
    ),
    ("[vm]", "[vm", "vm.toml:1: unclosed table, expected `]`: correct the TOML syntax"),
];
#[test]
fn what_can_be_written_wrongly() {
    for (sound, wrong, expected) in MISTAKES {
        assert!(SOUND.contains(sound), "{sound}");
        assert_eq!(complaint(&SOUND.replacen(sound, wrong, 1)), *expected);
    }
}

#[test]
fn a_cpu_is_a_model_less_some_features() {
    let (_folder, path) = written(SOUND);
    let config = read_vm(&path).unwrap();
    assert_eq!((config.vm.cpu.to_string().as_str(), config.vm.cpu_without.len()), ("host", 0));
    let line = "vcpus = 2\ncpu = \"amd-zen2\"\ncpu_without = [\"smap\", \"sha_ni\"]";
    let (_folder, path) = written(&SOUND.replacen("vcpus = 2", line, 1));
    let shown = serde_json::to_value(read_vm(&path).unwrap()).unwrap();
    assert_eq!(shown["vm"]["cpu"], "amd-zen2");
    assert_eq!(shown["vm"]["cpu_without"], serde_json::json!(["smap", "sha_ni"]));
}

#[test]
fn a_long_socket_path_is_refused() {
    let long = format!("/{}.sock", "x".repeat(120));
    let told = complaint(&SOUND.replacen("web-1.sock", &long, 1));
    assert!(
        told.contains("node.control: a socket's path has at most 107 bytes, not 126"),
        "{told}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = read_vm(Path::new("/nowhere/vm.toml")).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot read /nowhere/vm.toml: No such file or directory (os error 2): name an existing, readable TOML file"
    );
}

#[test]
fn several_arbiters() {
    let text = SOUND.replacen(
        "[arbiter]\n",
        "[[arbiters]]\nname = \"arbiter-2\"\naddress = \"10.1.0.8:7800\"\n[[arbiters]]\n",
        1,
    );
    let (_folder, path) = written(&text);
    let names: Vec<_> =
        read_vm(&path).unwrap().arbiters.into_iter().map(|it| it.name.to_string()).collect();
    assert_eq!(names, ["arbiter-2", "arbiter"]);
}

const ARBITER: &str = r#"[arbiter]
name = "arbiter"
listen = "10.1.0.9:7800"
store = "register"
ca = "ca.pem"
cert = "node.pem"
key = "node.key"
"#;

fn arbiter(text: &str) -> (TempDir, ArbiterConfig) {
    let (folder, path) = written(text);
    let AnyConfig::Arbiter(config) = read_any(&path).unwrap() else { panic!("took it for a VM's") };
    (folder, *config)
}

#[test]
fn an_arbiters_file() {
    let (folder, config) = arbiter(ARBITER);
    assert_eq!(config.store, StoreConfig::File(folder.path().join("register")));
    assert_eq!(config.control, None);
    let told = complaint(&ARBITER.replace("store", "stroe"));
    let expected = "arbiter.store: is missing: line 4 has `stroe`, did you mean that?";
    assert!(told.contains(expected), "{told}");
}

const ETCD: &str = r#"[arbiter]
name = "arbiter"
listen = "10.1.0.9:7800"
ca = "ca.pem"
cert = "node.pem"
key = "node.key"

[arbiter.etcd]
endpoints = ["https://10.1.0.9:2379", "https://etcd-2:2379"]
prefix = "/site-1/"
ca = "ca.pem"
cert = "node.pem"
key = "node.key"
user = "romulus"
password_file = "node.key"
timeout_ms = 200
"#;

#[test]
fn an_arbiters_file_with_etcd() {
    let (folder, config) = arbiter(ETCD);
    let file = |name| folder.path().join(name);
    let StoreConfig::Etcd(settings) = config.store else { panic!("{:?}", config.store) };
    assert_eq!(settings.endpoints, ["https://10.1.0.9:2379", "https://etcd-2:2379"]);
    assert_eq!(settings.prefix, "/site-1/");
    assert_eq!(settings.timeout.as_millis(), 200);
    let tls = settings.tls.unwrap();
    assert_eq!(tls.identity, Some((file("node.pem"), file("node.key"))));
    assert_eq!(settings.credentials.unwrap().password_file, file("node.key"));

    let least = ETCD.split_once("prefix").unwrap().0.replace("https", "http");
    let (_folder, config) = arbiter(&least);
    let StoreConfig::Etcd(settings) = config.store else { panic!("{:?}", config.store) };
    assert_eq!(settings.prefix, "/romulus/");
    assert_eq!(settings.timeout.as_millis(), 300);
    assert_eq!((settings.tls, settings.credentials), (None, None));
}

/// As [`MISTAKES`], of [`ETCD`].
const ETCD_MISTAKES: &[(&str, &str, &str)] = &[
    (
        "listen = ",
        "store = \"register\"\nlisten = ",
        "vm.toml:3: arbiter.store: names a file, and [arbiter.etcd] is there, too: keep the registers in one place: remove either",
    ),
    (
        "endpoints = [\"https://10.1.0.9:2379\", \"https://etcd-2:2379\"]",
        "endpoints = []",
        "vm.toml:9: arbiter.etcd.endpoints: is empty: write it like endpoints = [\"https://10.1.0.9:2379\"]",
    ),
    (
        "endpoints = [\"https://10.1.0.9:2379\", \"https://etcd-2:2379\"]",
        "endpoints = \"https://10.1.0.9:2379\"",
        "vm.toml:9: arbiter.etcd.endpoints: is of the type string: it must be a list of texts in quotes",
    ),
    (
        "\"https://etcd-2:2379\"",
        "7",
        "vm.toml:9: arbiter.etcd.endpoints: is of the type integer: it must be a text in quotes",
    ),
    (
        "https://etcd-2:2379",
        "etcd-2:2379",
        "vm.toml:9: arbiter.etcd.endpoints: \"etcd-2:2379\" begins with neither https:// nor http://: write it like endpoints = [\"https://10.1.0.9:2379\"]",
    ),
    (
        "https://etcd-2:2379",
        "https://etcd-2",
        "vm.toml:9: arbiter.etcd.endpoints: \"https://etcd-2\" is no URL of a host and a port: write it like endpoints = [\"https://10.1.0.9:2379\"]",
    ),
    (
        "https://etcd-2:2379",
        "http://etcd-2:2379",
        "vm.toml:9: arbiter.etcd.endpoints: \"http://etcd-2:2379\" is not encrypted like the ones before, or the reverse: use https:// for all members",
    ),
    (
        "https://etcd-2:2379",
        "https://10.1.0.9:2379",
        "vm.toml:9: arbiter.etcd.endpoints: \"https://10.1.0.9:2379\" is listed twice: list it once",
    ),
    (
        "/site-1/",
        "/site-1",
        "vm.toml:10: arbiter.etcd.prefix: \"/site-1\" is no beginning of keys: end it with a slash, within 256 bytes",
    ),
    (
        "prefix = \"/site-1/\"\nca = \"ca.pem\"\n",
        "",
        "vm.toml:8: arbiter.etcd.ca: is missing: add it, for example ca = \"etcd-ca.pem\"",
    ),
    (
        "key = \"node.key\"\nuser",
        "user",
        "vm.toml:12: arbiter.etcd.cert: has no key: add the key `key`",
    ),
    (
        "user = \"romulus\"\n",
        "",
        "vm.toml:14: arbiter.etcd.password_file: has no user: add the key `user`",
    ),
    (
        "password_file = \"node.key\"\n",
        "",
        "vm.toml:14: arbiter.etcd.user: has no password: add the key `password_file`",
    ),
    (
        "password_file",
        "password",
        "vm.toml:14: arbiter.etcd.user: has no password: add the key `password_file`",
    ),
    (
        "timeout_ms = 200",
        "timeout_ms = 2",
        "vm.toml:16: arbiter.etcd.timeout_ms: 2 is out of range: use 10 to 60000 ms",
    ),
    (
        "timeout_ms",
        "timeuot_ms",
        "vm.toml:16: arbiter.etcd.timeuot_ms: is not a setting: did you mean `timeout_ms`?",
    ),
];

#[test]
fn what_can_be_written_wrongly_about_etcd() {
    for (sound, wrong, expected) in ETCD_MISTAKES {
        assert!(ETCD.contains(sound), "{sound}");
        assert_eq!(complaint(&ETCD.replacen(sound, wrong, 1)), *expected);
    }
    let clear = ETCD.replace("https", "http");
    let expected =
        "vm.toml:11: arbiter.etcd.ca: is for endpoints with https://: use them, or remove it";
    assert_eq!(complaint(&clear), expected);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[\\[\\]a-z_=\" \n0-9.{},-]{0,200}") {
        let files = HostFiles::beside(Path::new("/x/vm.toml"));
        let _ = vm_file::parse(&text, &files);
        let _ = arbiter_file::parse(&text, &files);
    }
}
