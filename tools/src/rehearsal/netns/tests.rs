//! Labs of namespaces. They need root and /dev/net/tun; see [`require_tun`].

use super::*;

/// Whether the test can run here. With `tun` in `ROMULUS_REQUIRE` it must.
fn require_tun() -> bool {
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let missing = match (require_root(), tun) {
        (Ok(()), Ok(_)) => return true,
        (Err(error), _) => error.to_string(),
        (_, Err(error)) => format!("/dev/net/tun: {error}"),
    };
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word == "tun"), "tun is required: {missing}");
    println!("skipped: {missing}");
    false
}

fn reaches(lab: &Lab, from: Place, to: Ipv4Addr) -> bool {
    let ping = ["-c", "1", "-W", "1", "-i", "0.2", &to.to_string()].map(str::to_owned);
    let status = lab.command(from, "ping").args(ping).stdout(Stdio::null()).status();
    status.expect("ping is in iputils-ping").success()
}

#[test]
fn links_are_cut_each_way_and_healed() {
    if !require_tun() {
        return;
    }
    let lab = Lab::new("cut", 2).unwrap();
    let (one, two) = (Place::Host(1), Place::Host(2));
    let address = |place: Place| place.replication_address().unwrap();
    assert!(reaches(&lab, one, address(two)));
    assert!(reaches(&lab, one, ARBITER_ADDRESS));
    for direction in [Direction::Incoming, Direction::Outgoing, Direction::Both] {
        lab.cut(one, direction).unwrap();
        assert!(!reaches(&lab, one, address(two)), "{direction:?}");
        assert!(reaches(&lab, two, ARBITER_ADDRESS), "{direction:?}");
        lab.heal(one).unwrap();
        assert!(reaches(&lab, one, address(two)), "{direction:?}");
    }
}

#[test]
fn a_cut_in_one_direction_lets_the_other_pass() {
    if !require_tun() {
        return;
    }
    let lab = Lab::new("oneway", 2).unwrap();
    lab.cut(Place::Host(1), Direction::Incoming).unwrap();
    let received = |lab: &Lab| -> u64 {
        let path = "/sys/class/net/repl0/statistics/rx_packets";
        let output = lab.command(Place::Host(2), "cat").arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    let before = received(&lab);
    assert!(!reaches(&lab, Place::Host(1), Place::Host(2).replication_address().unwrap()));
    assert!(received(&lab) > before, "what host 1 sends does not arrive");
}

#[test]
fn a_lab_goes_with_its_owner_and_its_processes() {
    if !require_tun() {
        return;
    }
    let lab = Lab::new("drop", 1).unwrap();
    let names: Vec<_> = lab.places().map(|place| lab.namespace(place)).collect();
    let mut sleeper = lab.command(Place::Host(1), "sleep").arg("600").spawn().unwrap();
    // `ip netns exec` becomes the program when it is in the namespace.
    while output("ip", "iproute2", &["netns", "pids", &names[0]], None).unwrap().stdout.is_empty() {
        std::thread::yield_now();
    }
    drop(lab);
    assert!(!sleeper.wait().unwrap().success());
    for name in names {
        assert!(!fs::exists(format!("{NETNS_DIR}/{name}")).unwrap(), "{name} is left");
    }
}

#[test]
fn leftovers_of_the_dead_are_removed_and_those_of_the_living_not() {
    if !require_tun() {
        return;
    }
    // No process has so high a number (kernel: PID_MAX_LIMIT, 2^22).
    let dead = "rom4194305-test-host-1";
    ip(&["netns", "add", dead]).unwrap();
    let living = Lab::new("living", 1).unwrap();
    remove_leftovers().unwrap();
    assert!(!fs::exists(format!("{NETNS_DIR}/{dead}")).unwrap());
    assert!(fs::exists(format!("{NETNS_DIR}/{}", living.namespace(Place::Client))).unwrap());
}

#[test]
fn namespaces_name_their_owner() {
    assert_eq!(owner("rom123-demo-host-1"), Some(123));
    for other in ["romulus", "rom-x", "romx-1", "cni-123"] {
        assert_eq!(owner(other), None, "{other}");
    }
}

#[test]
fn shapes_that_no_lab_has() {
    if !require_tun() {
        return;
    }
    for (prefix, hosts) in [("", 1), ("a-b", 1), ("a", 0), ("a", 33), ("aaaaaaaaaaaaaaaaa", 1)] {
        assert!(matches!(Lab::new(prefix, hosts), Err(LabError::Shape)), "{prefix} {hosts}");
    }
}
