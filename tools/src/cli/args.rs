//! What can be typed, and its help.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use arbiter::{NodeId, VmId};
use clap::{Args, Parser, Subcommand};
use transport::identity::pki;

use crate::{
    bench::BenchCommand,
    jail::{Attempt, ThreadKind},
    telemetry::LogFormat,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the reason is on stderr (with --json: on stdout)
  2  usage: the command line or the configuration is wrong, nothing was started
  3  fenced: this node has lost the right to run the guest and may come back
     only as a backup";

/// Fault tolerance for virtual machines on KVM.
///
/// The guest runs on a primary; every few milliseconds its changed state goes
/// to a backup, and what it says to the world is held until the backup has it.
/// When the primary dies, the backup goes on, and nobody outside can tell.
#[derive(Debug, Parser)]
#[command(name = "romulus", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Args)]
pub struct Global {
    /// Answer in JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// How log lines on stderr look
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value = "human")]
    pub log: LogFormat,
    /// Log more; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the primary: run the guest and protect it
    #[command(after_help = "Example:\n  romulus run /etc/romulus/web-1.toml")]
    Run {
        /// The VM's configuration on this node
        #[arg(value_name = "VM.toml")]
        file: PathBuf,
    },
    /// Stand by for a primary, and take over when it dies
    #[command(after_help = "Example:\n  romulus backup /etc/romulus/web-1.toml")]
    Backup {
        /// The VM's configuration on this node
        #[arg(value_name = "VM.toml")]
        file: PathBuf,
    },
    /// Serve the register that says who may run
    #[command(after_help = "Example:\n  romulus arbiter /etc/romulus/arbiter.toml")]
    Arbiter {
        /// The arbiter's configuration
        #[arg(value_name = "ARBITER.toml")]
        file: PathBuf,
    },
    /// Show whether a VM is protected, or an arbiter ready, and if not, why not
    #[command(
        after_help = "Examples:\n  romulus status web-1\n  romulus status /etc/romulus/web-1.toml --json\n  romulus status /run/romulus/arbiter.sock"
    )]
    Status(StatusArgs),
    /// Show what happened to a VM
    #[command(
        after_help = "Examples:\n  romulus events web-1\n  romulus events web-1 --follow --json"
    )]
    Events(EventsArgs),
    /// Show the guest's serial console, and type there
    #[command(
        after_help = "Ctrl-] leaves the console; the guest goes on. What is shown was released: every\nin-sync backup has the state that it was said from.\n\nExamples:\n  romulus console web-1\n  echo uptime | romulus console web-1\n  romulus console web-1 --no-follow"
    )]
    Console(ConsoleArgs),
    /// On the primary: hand the guest over to a backup, by plan and without loss
    #[command(
        after_help = "On a backup this is refused without --take-over, which promotes the backup now: the primary\nis fenced if it lives, the guest goes on from the last commit, and has no backup at first.\n\nExamples:\n  romulus failover web-1\n  romulus failover web-1 --to node-b\n  romulus failover web-1 --take-over"
    )]
    Failover(FailoverArgs),
    /// Take a backup and bring it in sync while the guest runs
    #[command(
        after_help = "Examples:\n  romulus protect web-1\n  romulus protect web-1 --backup node-c --address 10.1.0.3:7700"
    )]
    Protect(ProtectArgs),
    /// Let a backup go; without one the guest runs unprotected
    #[command(after_help = "Example:\n  romulus unprotect web-1 --backup node-b")]
    Unprotect(UnprotectArgs),
    /// Compare the guest's memory on all sides
    #[command(after_help = "Example:\n  romulus verify web-1\n\nExit code 1 if they differ.")]
    Verify(VmArg),
    /// Ask the guest to shut down, as its power button does
    #[command(
        after_help = "Examples:\n  romulus shutdown web-1 --wait 60\n  romulus shutdown web-1 --force\n\nThe guest has to listen to its power button (Debian does). When it turns itself\noff, its process ends with 0 and its backups stand down."
    )]
    Shutdown(ShutdownArgs),
    /// Make and show certificates for nodes and the arbiter
    Pki {
        /// What to do
        #[command(subcommand)]
        command: PkiCommand,
    },
    /// Show what this host can do, and why not
    #[command(after_help = "Exit code 1 if something that is needed is missing.")]
    Doctor,
    /// Show all of it on this machine, in one minute
    #[command(
        after_help = "Examples:\n  romulus demo\n  romulus demo --epoch 10 --memory 1024 --dirty-rate 2000 --keep\n  romulus demo --guest linux\n\nA Linux guest needs a KVM on VMX or SVM: see `romulus doctor`."
    )]
    Demo(DemoArgs),
    /// Random faults of real processes, while clients check every answer
    ///
    /// Hosts, arbiters and clients in network namespaces, as in the demo. Hosts, arbiters and members
    /// of etcd are killed, frozen, cut off, put behind lossy links and onto full disks; memory and
    /// processors become short; the guest is handed over in the middle. Needs root, KVM and
    /// nftables.
    #[command(
        after_help = "Examples:\n  romulus soak --minutes 10\n  romulus soak --minutes 60 --seed 7 --etcd --json\n  romulus soak --minutes 10 --backups 2"
    )]
    Soak(SoakArgs),
    /// Measure what protection costs on this machine, as tables and pictures
    ///
    /// Hosts and clients run in network namespaces, as in the demo. Every benchmark measures its
    /// baseline in the same run. Needs root and KVM.
    Bench {
        /// What to measure
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// Look into an arbiter's register file, and forget a VM that no node has any more
    Register {
        /// What to do
        #[command(subcommand)]
        command: RegisterCommand,
    },
    /// Look into configuration files
    Config {
        /// What to do
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Parts that the demo and tests run in namespaces of their own
    #[command(hide = true)]
    Internal {
        /// Which part
        #[command(subcommand)]
        command: InternalCommand,
    },
}

/// Which VM.
#[derive(Debug, Args)]
pub struct VmArg {
    /// A VM.toml, a VM's name, or the path of its control socket
    #[arg(value_name = "VM")]
    pub vm: String,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// A VM.toml or ARBITER.toml, a VM's name, or the path of a control socket
    #[arg(value_name = "VM|ARBITER")]
    pub target: String,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArg,
    /// Wait for more until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only events with a higher number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub after: u64,
}

/// Arguments of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArg,
    /// Only show: leave stdin alone
    #[arg(long)]
    pub no_input: bool,
    /// Show what was said last (64 KiB at most), and end
    #[arg(long, conflicts_with = "no_input")]
    pub no_follow: bool,
}

/// Arguments of `failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArg,
    /// The new primary; the best in-sync backup if not given
    #[arg(long, value_name = "NODE")]
    pub to: Option<NodeId>,
    /// On a backup: promote this node now, without its primary, which is fenced if it lives
    #[arg(long)]
    pub take_over: bool,
}

/// Arguments of `protect`.
#[derive(Debug, Args)]
pub struct ProtectArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArg,
    /// The new backup; every configured peer if not given
    #[arg(long, value_name = "NODE")]
    pub backup: Option<NodeId>,
    /// Where it listens, if not where the configuration says
    #[arg(long, value_name = "ADDRESS:PORT", requires = "backup")]
    pub address: Option<SocketAddr>,
    /// Return as soon as the seeding has begun
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `unprotect`.
#[derive(Debug, Args)]
pub struct UnprotectArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArg,
    /// The backup to let go; all of them if not given
    #[arg(long, value_name = "NODE")]
    pub backup: Option<NodeId>,
}

/// Arguments of `shutdown`.
#[derive(Debug, Args)]
pub struct ShutdownArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArg,
    /// Turn it off without asking it, as by pulling its plug
    #[arg(long)]
    pub force: bool,
    /// Return when it is off; exit code 1 if it is not after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub wait: Option<u64>,
}

/// What `pki` does.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make an authority for a cluster
    #[command(after_help = "Example:\n  romulus pki init --dir /etc/romulus/pki")]
    Init {
        /// The authority's folder
        #[arg(long, value_name = "DIR", default_value = "pki")]
        dir: PathBuf,
        /// How long it is valid
        #[arg(long, default_value_t = pki::CA_DAYS)]
        days: u32,
        /// Replace what is there: all certificates of the old one are worthless then
        #[arg(long)]
        force: bool,
    },
    /// Make a certificate and a key for a node or the arbiter
    #[command(
        after_help = "Example:\n  romulus pki issue node-a --dir /etc/romulus/pki\n\nThen copy ca.pem, node-a.pem and node-a.key to that host."
    )]
    Issue {
        /// The node's name
        #[arg(value_name = "NODE")]
        node: NodeId,
        /// The authority's folder
        #[arg(long, value_name = "DIR", default_value = "pki")]
        dir: PathBuf,
        /// How long it is valid
        #[arg(long, default_value_t = pki::NODE_DAYS)]
        days: u32,
        /// Replace what is there
        #[arg(long)]
        force: bool,
    },
    /// Show whose certificates are and how long they are valid
    #[command(after_help = "Example:\n  romulus pki show /etc/romulus/pki")]
    Show {
        /// A certificate, PEM, or a folder of them
        #[arg(value_name = "PATH", default_value = "pki")]
        path: PathBuf,
    },
}

/// What `register` does.
#[derive(Debug, Subcommand)]
pub enum RegisterCommand {
    /// Show every VM with its term, its primary and who is in sync
    #[command(
        after_help = "The arbiter must be stopped. While it runs, `romulus status` shows the same.\n\nExample:\n  romulus register show /etc/romulus/arbiter.toml"
    )]
    Show {
        /// The arbiter's configuration
        #[arg(value_name = "ARBITER.toml")]
        file: PathBuf,
    },
    /// Forget a VM whose guest is lost on all nodes: it is claimed as if it had never run
    #[command(
        after_help = "The arbiter must be stopped, and no process of the VM may live on any node: it could\nrun twice. See docs/failover.md, \"All copies are lost\".\n\nExample:\n  romulus register forget web-1 /etc/romulus/arbiter.toml"
    )]
    Forget {
        /// The VM's name
        #[arg(value_name = "VM")]
        vm: VmId,
        /// The arbiter's configuration
        #[arg(value_name = "ARBITER.toml")]
        file: PathBuf,
        /// Do not ask for the VM's name
        #[arg(long)]
        yes: bool,
    },
}

/// What `config` does.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read a file and show what was understood
    #[command(after_help = "Example:\n  romulus config check /etc/romulus/web-1.toml")]
    Check {
        /// A VM.toml or an ARBITER.toml
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// What runs: the built-in probe, or this host's Linux with the probe as its only program
    #[arg(long, value_name = "GUEST", value_enum, default_value = "probe")]
    pub guest: DemoGuest,
    /// A bzImage for the Linux guest, instead of this host's kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Run interval between two checkpoints, in ms
    #[arg(long, value_name = "MS", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub epoch: u32,
    /// The guest's memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub memory: u32,
    /// The guest's vCPUs
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub vcpus: u16,
    /// Pages that the guest dirties per second
    #[arg(long, value_name = "PAGES", default_value_t = 4000)]
    pub dirty_rate: u64,
    /// Silence after which the backup asks for promotion, in ms [default: 150, or three epochs]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=600_000))]
    pub detection: Option<u32>,
    /// Silence after which the primary asks to go on without its backup, in ms [default: 120, or
    /// three epochs]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=600_000))]
    pub drop: Option<u32>,
    /// How long anything may take before the demo gives up, in s [default: 30 and 60 epochs]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub patience: Option<u64>,
    /// Leave it running to play with
    #[arg(long)]
    pub keep: bool,
}

/// What the demo protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoGuest {
    /// The built-in bare-metal guest; every KVM runs it
    Probe,
    /// A stock Linux kernel
    Linux,
}

/// Arguments of `soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// How long; the round that has begun is ended
    #[arg(long, value_name = "MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub minutes: u64,
    /// How long, in seconds
    #[arg(long, value_name = "SECONDS", conflicts_with = "minutes", hide = true)]
    pub seconds: Option<u64>,
    /// Draws the faults; a random one if not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many backups; with two or more, two hosts may die at once
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    pub backups: u8,
    /// The guest's memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub memory: u32,
    /// The guest's vCPUs
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub vcpus: u16,
    /// Pages that the guest dirties per second
    #[arg(long, value_name = "PAGES", default_value_t = 2000)]
    pub dirty_rate: u64,
    /// Keep the registers in three members of etcd, behind two arbiters
    #[arg(long)]
    pub etcd: bool,
    /// Let the guest attack its devices all the time
    #[arg(long)]
    pub hostile: bool,
}

/// What the demo and tests run in namespaces.
#[derive(Debug, Subcommand)]
pub enum InternalCommand {
    /// Ask the probe guest, and check what it answers
    ProbeClient(ProbeClientArgs),
    /// Write to a redis in the guest over one connection, and read all of it again
    TcpClient(TcpClientArgs),
    /// Try in a strict jail what it forbids, and say what came of it
    Attempt(AttemptArgs),
    /// Be the first process of the demo's Linux guest
    LinuxProbe,
}

/// Arguments of an attempt.
#[derive(Debug, Clone, Args)]
pub struct AttemptArgs {
    /// What the thread is that tries it
    #[arg(long)]
    pub kind: ThreadKind,
    /// What it tries
    #[arg(long)]
    pub what: Attempt,
}

/// Arguments of the probe's client.
#[derive(Debug, Clone, Args)]
pub struct ProbeClientArgs {
    /// The probe guest's service
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub target: SocketAddr,
    /// Clients side by side, from --first-lane on
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub lanes: u32,
    /// Number of the first client
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=63))]
    pub first_lane: u32,
    /// Requests per second and client; 0 asks as soon as answered
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// Send a request again after so many ms
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub retransmit_ms: u64,
    /// End after so many ms; without it, at SIGTERM or when stdin closes
    #[arg(long)]
    pub duration_ms: Option<u64>,
    /// Do not compare the TSC: it may go back between hosts where KVM cannot offset it
    #[arg(long)]
    pub no_tsc_check: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json_lines: bool,
}

impl ProbeClientArgs {
    /// The wait before a request is sent again.
    #[must_use]
    pub fn retransmit(&self) -> Duration {
        Duration::from_millis(self.retransmit_ms)
    }
}

/// Arguments of the TCP client.
#[derive(Debug, Clone, Args)]
pub struct TcpClientArgs {
    /// The redis server
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub target: SocketAddr,
    /// Bytes of each value
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub value_bytes: u32,
    /// Writes per second; 0 writes as soon as the one before is acknowledged
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// End after so many ms; without it, at SIGTERM or when stdin closes
    #[arg(long)]
    pub duration_ms: Option<u64>,
}
