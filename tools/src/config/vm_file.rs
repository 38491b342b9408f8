//! `VM.toml`: one VM on one node, and the relations between its settings.

use std::{
    collections::BTreeSet,
    num::{NonZeroU16, NonZeroU32, NonZeroU64},
    path::PathBuf,
    time::Duration,
};

use super::{
    disks,
    error::Fault,
    host_files::HostFiles,
    pace,
    section::{Found, Kind, Section, Source},
    types::{
        ArbiterPeer, BootProtocol, Capture, Codec, Console, DirtyTracking, Kernel, Network, Node,
        OnPanic, OnReboot, Peer, Replication, Vm, VmConfig,
    },
};

const MEMORY_MIB_MIN: u64 = 64;
const MEMORY_MIB_MAX: u64 = 1 << 20;
const VCPUS_MAX: u64 = 64;
/// What the kernel's boot protocol leaves for a command line, in bytes.
const CMDLINE_BYTES_MAX: usize = 2047;
/// Missed heartbeats that make silence.
const HEARTBEATS_PER_DETECTION: u32 = 3;
/// By default a backup may lag for so many times `drop_ms`.
const LAG_PER_DROP: u64 = 40;
const LAG_MS_MAX: u64 = 600_000 * LAG_PER_DROP;
const STAGING_MIB_MIN: u64 = 256;
/// Faster ones save less than they cost; slower ones do not keep up.
pub const ZSTD_LEVEL: i32 = 1;

pub(super) fn parse(text: &str, files: &HostFiles) -> Result<VmConfig, Fault> {
    let mut root = Source::new(text).parse()?;
    if Kind::of(&root) == Kind::Arbiter {
        return Err(root.misplaced("this is an arbiter's file", "use `romulus arbiter`"));
    }
    let mut required = |key, example| root.section(key)?.ok_or_else(|| root.missing(key, example));
    let vm = required("vm", "[vm] with name, memory_mib, vcpus and kernel")?;
    let node = required("node", "[node] with name, listen, state_dir, control, ca, cert and key")?;
    let arbiters = arbiter_sections(&mut root)?;
    let network = root.section("network")?;
    let console = root.section("console")?;
    let disks = root.sections("disks")?;
    let replication = root.section("replication")?;
    let peers = root.sections("peers")?;
    root.finish()?;

    let vm = parse_vm(vm, files)?;
    let node = parse_node(node, files)?;
    let arbiters = parse_arbiters(arbiters, &node)?;
    let peers = parse_peers(peers, &node, &arbiters)?;
    let disks = disks::parse(disks, files, !peers.is_empty())?;
    let replication = match replication {
        Some(section) => parse_replication(section, &vm)?,
        None => parse_replication(Source::new("").parse()?, &vm)?,
    };
    Ok(VmConfig {
        network: network.map(parse_network).transpose()?,
        console: match console {
            Some(section) => parse_console(section, files)?,
            None => parse_console(Source::new("").parse()?, files)?,
        },
        disks,
        vm,
        node,
        peers,
        arbiters,
        replication,
    })
}

fn parse_vm(mut section: Section<'_>, files: &HostFiles) -> Result<Vm, Fault> {
    let name = section.parsed_required("name", "name = \"web-1\"")?.value;
    if !section.has("memory_mib") {
        return Err(section.missing("memory_mib", "memory_mib = 512"));
    }
    let memory = section.number("memory_mib", 0, MEMORY_MIB_MIN..=MEMORY_MIB_MAX, " MiB")?;
    let vcpus = section.number("vcpus", 1, 1..=VCPUS_MAX, " vCPUs")?;
    let kernel = parse_kernel(&mut section, files)?;
    let initrd = parse_initrd(&mut section, files, &kernel)?;
    let (on_reboot, on_triple_fault, on_panic) = parse_reactions(&mut section, &kernel)?;
    let cmdline = section.text("cmdline")?;
    if let Some(cmdline) = &cmdline
        && (cmdline.value.len() > CMDLINE_BYTES_MAX || cmdline.value.contains('\0'))
    {
        let bytes = cmdline.value.len();
        return Err(cmdline.fault(
            format!("a command line of {bytes} bytes does not fit"),
            format!("use at most {CMDLINE_BYTES_MAX} bytes and no zero byte"),
        ));
    }
    let boots = [
        ("auto", BootProtocol::Auto),
        ("linux", BootProtocol::Linux),
        ("pvh", BootProtocol::Pvh),
        ("long-mode", BootProtocol::LongMode),
    ];
    let trackings = [
        ("auto", DirtyTracking::Auto),
        ("ring", DirtyTracking::Ring),
        ("bitmap", DirtyTracking::Bitmap),
    ];
    let vm = Vm {
        name,
        memory_mib: nonzero_u32(&memory)?,
        vcpus: nonzero_u16(&vcpus)?,
        kernel,
        initrd,
        cmdline: cmdline.map(|found| found.value).unwrap_or_default(),
        cpu: section
            .parsed("cpu", "cpu = \"x86-64-v3\"")?
            .map(|found| found.value)
            .unwrap_or_default(),
        cpu_without: section.parsed_list("cpu_without", "cpu_without = [\"avx512f\"]")?,
        boot: section.choice("boot", &boots, BootProtocol::Auto)?,
        on_reboot,
        on_triple_fault,
        on_panic,
        dirty_tracking: section.choice("dirty_tracking", &trackings, DirtyTracking::Auto)?,
        hugepages: section.flag("hugepages", false)?,
        rng: section.flag("rng", true)?,
    };
    section.finish()?;
    Ok(vm)
}

fn parse_kernel(section: &mut Section<'_>, files: &HostFiles) -> Result<Kernel, Fault> {
    let found = section.path_required("kernel", "kernel = \"/boot/vmlinuz\" or \"probe\"")?;
    if found.value.as_os_str() == "probe" {
        return Ok(Kernel::Probe);
    }
    let make = "name a readable kernel (a bzImage such as /boot/vmlinuz, or an ELF file), or \"probe\" for the guest that is built in";
    Ok(Kernel::File(files.readable(&found, make)?))
}

fn parse_initrd(
    section: &mut Section<'_>,
    files: &HostFiles,
    kernel: &Kernel,
) -> Result<Option<PathBuf>, Fault> {
    let Some(found) = section.path("initrd")? else { return Ok(None) };
    if *kernel == Kernel::Probe {
        return Err(found.fault("the probe guest takes none", "leave it out"));
    }
    files.readable(&found, "name a readable file, such as /boot/initrd.img").map(Some)
}

/// What happens when the guest restarts, triple-faults, panics. The probe
/// guest never restarts on purpose: a triple fault of it is a failure.
fn parse_reactions(
    section: &mut Section<'_>,
    kernel: &Kernel,
) -> Result<(OnReboot, OnReboot, OnPanic), Fault> {
    let reboots = [("restart", OnReboot::Restart), ("stop", OnReboot::Stop)];
    let panics =
        [("report", OnPanic::Report), ("restart", OnPanic::Restart), ("stop", OnPanic::Stop)];
    let fault = if *kernel == Kernel::Probe { OnReboot::Stop } else { OnReboot::Restart };
    Ok((
        section.choice("on_reboot", &reboots, OnReboot::Restart)?,
        section.choice("on_triple_fault", &reboots, fault)?,
        section.choice("on_panic", &panics, OnPanic::Report)?,
    ))
}

fn parse_network(mut section: Section<'_>) -> Result<Network, Fault> {
    let network = Network {
        tap: section.parsed_required("tap", "tap = \"tap0\"")?.value,
        mac: section.parsed_required("mac", "mac = \"52:54:00:00:00:01\"")?.value,
    };
    section.finish()?;
    Ok(network)
}

fn parse_console(mut section: Section<'_>, files: &HostFiles) -> Result<Console, Fault> {
    let log = section.path("log")?.map(|found| files.resolve(&found));
    let log_mib_max = section.number("log_mib_max", 64, 1..=MEMORY_MIB_MAX, " MiB")?;
    let log_mib_max = nonzero_u32(&log_mib_max)?;
    section.finish()?;
    Ok(Console { log, log_mib_max })
}

fn parse_node(mut section: Section<'_>, files: &HostFiles) -> Result<Node, Fault> {
    let name = section.parsed_required("name", "name = \"node-a\"")?.value;
    let listen = section.address_required("listen", "listen = \"10.1.0.1:7700\"")?.value;
    let state = section.path_required("state_dir", "state_dir = \"/var/lib/romulus\"")?;
    let control = section.path_required("control", "control = \"/run/romulus/web-1.sock\"")?;
    let node = Node {
        name,
        listen,
        state_dir: files.folder(&state)?,
        control: files.socket(&control)?,
        jail: section.jail()?,
        identity: files.identity(&mut section)?,
    };
    section.finish()?;
    Ok(node)
}

/// `[arbiter]`, or `[[arbiters]]` for several.
fn arbiter_sections<'a>(root: &mut Section<'a>) -> Result<Vec<Section<'a>>, Fault> {
    let one = root.section("arbiter")?;
    let mut several = root.sections("arbiters")?;
    match (one, several.is_empty()) {
        (Some(one), true) => Ok(vec![one]),
        (None, false) => Ok(several),
        (None, true) => Err(root.missing("arbiter", "[arbiter] with name and address")),
        (Some(_), false) => Err(several.remove(0).misplaced(
            "is beside [arbiter]",
            "list all arbiters as [[arbiters]], or only one as [arbiter]",
        )),
    }
}

fn parse_arbiters(sections: Vec<Section<'_>>, node: &Node) -> Result<Vec<ArbiterPeer>, Fault> {
    let mut arbiters: Vec<ArbiterPeer> = Vec::new();
    for mut section in sections {
        let name: Found<arbiter::NodeId> = section.parsed_required("name", "name = \"arbiter\"")?;
        let address = section.address_required("address", "address = \"10.1.0.9:7800\"")?;
        section.finish()?;
        if name.value == node.name {
            return Err(name.fault(
                format!("{} is this node itself", name.value),
                "give the arbiter and the nodes names of their own",
            ));
        }
        if arbiters.iter().any(|other| other.address == address.value) {
            return Err(address
                .fault(format!("{} is listed twice", address.value), "list every arbiter once"));
        }
        arbiters.push(ArbiterPeer { name: name.value, address: address.value });
    }
    Ok(arbiters)
}

fn parse_peers(
    sections: Vec<Section<'_>>,
    node: &Node,
    arbiters: &[ArbiterPeer],
) -> Result<Vec<Peer>, Fault> {
    let mut seen = BTreeSet::new();
    let mut peers = Vec::new();
    for mut section in sections {
        let name: Found<arbiter::NodeId> = section.parsed_required("name", "name = \"node-b\"")?;
        let address = section.address_required("address", "address = \"10.1.0.2:7700\"")?.value;
        section.finish()?;
        if name.value == node.name {
            return Err(name.fault(
                format!("{} is this node itself", name.value),
                "list only the other nodes",
            ));
        }
        if arbiters.iter().any(|arbiter| arbiter.name == name.value) {
            return Err(name.fault(
                format!("{} is the arbiter", name.value),
                "give the arbiter and the nodes names of their own",
            ));
        }
        if !seen.insert(name.value.clone()) {
            return Err(
                name.fault(format!("{} is listed twice", name.value), "list every node once")
            );
        }
        peers.push(Peer { name: name.value, address });
    }
    Ok(peers)
}

fn parse_replication(mut section: Section<'_>, vm: &Vm) -> Result<Replication, Fault> {
    let (pace, epoch) = pace::parse(&mut section)?;
    let heartbeat = section.number("heartbeat_ms", 20, 1..=10_000, " ms")?;
    let detection = section.number("detection_ms", 150, 1..=600_000, " ms")?;
    let drop = section.number("drop_ms", 120, 1..=600_000, " ms")?;
    check_timing(&epoch, &heartbeat, &detection, &drop)?;
    let lag = section.number("lag_ms", drop.value * LAG_PER_DROP, 1..=LAG_MS_MAX, " ms")?;
    if lag.value < drop.value {
        let wrong = format!("{} ms are less than drop_ms, {} ms", lag.value, drop.value);
        return Err(lag.fault(wrong, format!("use at least {}", drop.value)));
    }
    let staging_default = u64::from(vm.memory_mib.get() / 2).max(STAGING_MIB_MIN);
    let mut mib =
        |key, default| nonzero_u32(&section.number(key, default, 1..=MEMORY_MIB_MAX, " MiB")?);
    let memory_mib = u64::from(vm.memory_mib.get());
    let in_flight_mib_max = mib("in_flight_mib_max", (memory_mib / 16).clamp(32, 256))?;
    let held_output_mib_max = mib("held_output_mib_max", 64)?;
    let staging_mib_max = mib("staging_mib_max", staging_default)?;
    let delta_cache =
        section.number("delta_cache_mib", memory_mib / 20, 0..=MEMORY_MIB_MAX, " MiB")?;
    let epochs = section.number("in_flight_epochs_max", 4, 1..=1024, " epochs")?;
    let encode_threads = section.number("encode_threads", 1, 1..=64, " threads")?;
    let data_streams = section.number("data_streams", 4, 1..=16, " streams")?;
    let mtu = section.number("mtu_max", 65_000, 1200..=65_000, " bytes")?;
    let seed = section.number("seed_mib_per_s_max", 0, 0..=MEMORY_MIB_MAX, " MiB/s")?;
    let arbiter_timeout = section.number("arbiter_timeout_ms", 500, 100..=60_000, " ms")?;
    let captures = [("protect", Capture::Protect), ("copy", Capture::Copy)];
    let capture = section.choice("capture", &captures, Capture::Protect)?;
    let copy = section.number("copy_us_max", 500, 0..=1_000_000, " us")?;
    let codecs = [("auto", Codec::Auto), ("zstd", Codec::Zstd), ("off", Codec::Off)];
    let compression = section.choice("compression", &codecs, Codec::Zstd)?;
    let resend_outputs = section.flag("resend_outputs", true)?;
    let audit = section.flag("audit", false)?;
    section.finish()?;
    Ok(Replication {
        pace,
        heartbeat: Duration::from_millis(heartbeat.value),
        detection: Duration::from_millis(detection.value),
        drop: Duration::from_millis(drop.value),
        lag: Duration::from_millis(lag.value),
        in_flight_epochs_max: nonzero_u32(&epochs)?,
        in_flight_mib_max,
        held_output_mib_max,
        delta_cache_mib: delta_cache.value,
        capture,
        copy_max: Duration::from_micros(copy.value),
        compression,
        audit,
        resend_outputs,
        arbiter_timeout: Duration::from_millis(arbiter_timeout.value),
        encode_threads: nonzero_u16(&encode_threads)?,
        data_streams: nonzero_u16(&data_streams)?,
        mtu_max: nonzero_u16(&mtu)?,
        staging_mib_max,
        seed_mib_per_s_max: NonZeroU64::new(seed.value),
    })
}

fn check_timing(
    epoch: &Found<u64>,
    heartbeat: &Found<u64>,
    detection: &Found<u64>,
    drop: &Found<u64>,
) -> Result<(), Fault> {
    let least = heartbeat.value * u64::from(HEARTBEATS_PER_DETECTION);
    for silence in [detection, drop] {
        if silence.value < least {
            return Err(silence.fault(
                format!(
                    "{} ms are less than {HEARTBEATS_PER_DETECTION} heartbeats of {} ms",
                    silence.value, heartbeat.value
                ),
                format!("use at least {least}, or a shorter heartbeat_ms"),
            ));
        }
        if silence.value <= epoch.value {
            return Err(silence.fault(
                format!("{} ms are not more than an epoch of {} ms", silence.value, epoch.value),
                format!("use more than {}, or a shorter epoch_ms", epoch.value),
            ));
        }
    }
    Ok(())
}

fn nonzero_u32(found: &Found<u64>) -> Result<NonZeroU32, Fault> {
    let number = u32::try_from(found.value).ok().and_then(NonZeroU32::new);
    number.ok_or_else(|| found.fault(format!("{} is out of range", found.value), ""))
}

fn nonzero_u16(found: &Found<u64>) -> Result<NonZeroU16, Fault> {
    let number = u16::try_from(found.value).ok().and_then(NonZeroU16::new);
    number.ok_or_else(|| found.fault(format!("{} is out of range", found.value), ""))
}
