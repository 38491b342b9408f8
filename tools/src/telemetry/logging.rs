//! Logs on stderr, for people or as JSON lines.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Sets up logging for this process; `verbosity` is how often `-v` was given.
/// `ROMULUS_LOG` (a `tracing` filter) goes before it. A second call changes
/// nothing.
pub fn init(format: LogFormat, verbosity: u8) {
    let level = match verbosity {
        0 => "warn,romulus=info",
        1 => "info,romulus=debug",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("ROMULUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    if format == LogFormat::Json {
        vmm::refusal::tell_in_json();
    }
    let registry = tracing_subscriber::registry().with(filter);
    let outcome = match format {
        LogFormat::Human => registry
            .with(fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(coloured()))
            .try_init(),
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(io::stderr))
            .try_init(),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "logging was set up before");
    }
}

fn coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && io::stderr().is_terminal()
}
