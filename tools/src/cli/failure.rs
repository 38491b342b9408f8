//! Every way in which a command can fail, and its exit code.

use std::io;

use thiserror::Error;
use transport::identity::pki::PkiError;

use super::{register_commands::RegisterError, target::TargetError};
use crate::{
    arbiter_daemon,
    bench::BenchError,
    config::ConfigError,
    control::{ClientError, ErrorBody},
    daemon::ShellError,
    exit::Exit,
    jail::JailError,
    linux_guest::probe::ProbeError,
    node::NodeError,
    rehearsal::{ProbeClientError, TcpClientError, cluster::ClusterError, demo::DemoError},
};

/// Why a command did not do what was asked.
#[derive(Debug, Error)]
pub enum Failure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The VM argument leads nowhere.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The control API refused or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon could not start or go on.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The arbiter could not go on.
    #[error(transparent)]
    Arbiter(#[from] arbiter_daemon::ArbiterError),
    /// Registers were not shown or forgotten.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// It could not be jailed.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// No threads.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// Certificates could not be made or read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The probe's client could not go on.
    #[error(transparent)]
    ProbeClient(#[from] ProbeClientError),
    /// The TCP client could not go on.
    #[error(transparent)]
    TcpClient(#[from] TcpClientError),
    /// Nobody reads what we say.
    #[error("cannot write the answer: {0}: check where stdout leads")]
    Output(#[from] io::Error),
    /// The backup did not come in sync.
    #[error("{reason}: see `romulus events`")]
    NotProtected {
        /// What the status says.
        reason: String,
    },
    /// The guest is not off.
    #[error(
        "the guest still runs after {seconds} s: does it listen to its power button? `--force` does not ask it"
    )]
    StillRuns {
        /// How long that was waited for.
        seconds: u64,
    },
    /// Nothing would end in order.
    #[error("cannot catch signals: {0}: check the limits of this process")]
    Signals(#[source] std::io::Error),
    /// The demo could not go on.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// There is nothing to soak.
    #[error(transparent)]
    Soak(#[from] ClusterError),
    /// Nothing was measured.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The probe guest was given a kernel.
    #[error("the probe guest is a kernel of its own: add `--guest linux`, or leave out --kernel")]
    KernelOfProbe,
    /// The Linux guest's first process could not be that.
    #[error(transparent)]
    LinuxProbe(#[from] ProbeError),
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Target(_) | Self::KernelOfProbe => Exit::Usage,
            Self::Client(_)
            | Self::Node(_)
            | Self::Arbiter(_)
            | Self::Register(_)
            | Self::Jail(_)
            | Self::Shell(_)
            | Self::Pki(_)
            | Self::ProbeClient(_)
            | Self::TcpClient(_)
            | Self::Output(_)
            | Self::NotProtected { .. }
            | Self::StillRuns { .. }
            | Self::Signals(_)
            | Self::Demo(_)
            | Self::Soak(_)
            | Self::Bench(_)
            | Self::LinuxProbe(_) => Exit::Failed,
        }
    }

    /// The same in JSON. Messages end with the remedy after their last colon.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        if let Self::Client(ClientError::Refused { body, .. }) = self {
            return body.clone();
        }
        let words = self.to_string();
        match words.rsplit_once(": ") {
            Some((error, remedy)) => {
                ErrorBody { error: error.to_owned(), remedy: remedy.to_owned() }
            }
            None => ErrorBody { error: words, remedy: String::new() },
        }
    }
}
