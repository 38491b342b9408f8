//! The command line: parsing, dispatch, and how errors end.

mod args;
mod console;
mod control_commands;
mod failure;
mod host_commands;
mod progress;
mod register_commands;
mod render;
mod target;

use std::{ffi::OsString, io::Write, path::Path};

use clap::{Parser, error::ErrorKind};

pub use self::{
    args::{Cli, Command, DemoArgs, DemoGuest, ProbeClientArgs, TcpClientArgs},
    failure::Failure,
    target::{ENV_RUN_DIR, RUN_DIR},
};
use crate::{
    backup,
    config::{self, VmConfig},
    exit::Exit,
    primary, telemetry,
};

/// Runs the command line `args`, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
                _ => Exit::Usage,
            };
        }
    };
    telemetry::init(cli.global.log, cli.global.verbose);
    let json = cli.global.json;
    match dispatch(cli) {
        Ok(exit) => exit,
        Err(failure) => {
            report(&failure, json);
            failure.exit()
        }
    }
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let json = cli.global.json;
    match cli.command {
        Command::Run { file } => {
            Ok(primary::run(primary::Settings { config: vm_of_this_node(&file)? })?)
        }
        Command::Backup { file } => {
            Ok(backup::run(backup::Settings { config: vm_of_this_node(&file)? })?)
        }
        Command::Arbiter { file } => {
            let config = config::read_arbiter(&file)?;
            config.identity.check(&config.name)?;
            Ok(crate::arbiter_daemon::run(config)?)
        }
        Command::Register { command } => register_commands::register(&command, json),
        Command::Config { command } => host_commands::config(&command, json),
        Command::Doctor => host_commands::doctor(json),
        Command::Pki { command } => host_commands::pki(&command, json),
        Command::Demo(arguments) => host_commands::demo(&arguments, json),
        Command::Soak(arguments) => host_commands::soak(&arguments, json),
        Command::Bench { command } => host_commands::bench(&command, json),
        Command::Internal { command } => host_commands::internal(&command),
        Command::Status(arguments) => control_commands::status(&arguments, json),
        Command::Events(arguments) => control_commands::events(&arguments, json),
        Command::Console(arguments) => console::console(&arguments, json),
        Command::Failover(arguments) => control_commands::failover(&arguments, json),
        Command::Protect(arguments) => control_commands::protect(&arguments, json),
        Command::Unprotect(arguments) => control_commands::unprotect(&arguments, json),
        Command::Shutdown(arguments) => control_commands::shutdown(&arguments, json),
        Command::Verify(arguments) => control_commands::verify(&arguments, json),
    }
}

/// The configuration of a VM, with the certificates that it needs.
fn vm_of_this_node(file: &Path) -> Result<VmConfig, Failure> {
    let config = config::read_vm(file)?;
    config.node.identity.check(&config.node.name)?;
    Ok(config)
}

/// With `--json` the error is an object on stdout, so that scripts find it
/// where they read; people find it on stderr, with its causes.
fn report(failure: &Failure, json: bool) {
    if json {
        let body = failure.body();
        let _ = writeln!(std::io::stdout(), "{}", serde_json::to_string(&body).unwrap_or_default());
        return;
    }
    let mut told = failure.to_string();
    let mut text = format!("romulus: {told}\n");
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        let words = error.to_string();
        if !told.contains(&words) {
            text.push_str(&format!("  because {words}\n"));
        }
        told = words;
        cause = error.source();
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}
