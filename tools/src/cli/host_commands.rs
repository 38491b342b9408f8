//! Commands about this host: configuration, certificates, its abilities.

use std::{path::Path, time::Duration};

use serde::Serialize;
use transport::identity::{CertificateDetails, pki};

use super::{
    args::{
        AttemptArgs, ConfigCommand, DemoArgs, DemoGuest, InternalCommand, PkiCommand, SoakArgs,
    },
    control_commands::{print, wait},
    failure::Failure,
    render,
};
use crate::{
    bench::{self, BenchCommand, BenchError, progress::Progress},
    config,
    doctor::{self, Verdict},
    exit::Exit,
    jail,
    linux_guest::probe::be_first_process,
    rehearsal::{
        self,
        demo::{self, DemoSettings, GuestKind},
        ending::Ending,
        soak::{self, SoakSettings},
    },
};

pub(super) fn config(command: &ConfigCommand, json: bool) -> Result<Exit, Failure> {
    let ConfigCommand::Check { file } = command;
    let understood = config::read_any(file)?;
    understood.check_identity()?;
    print(json, &understood, || {
        let shown = serde_json::to_value(&understood).unwrap_or_default();
        let mut text = format!("{} is sound; this is what was understood:\n", file.display());
        outline("", &shown, &mut text);
        text
    })
}

/// Nested settings as `section.key = value`, one a line.
fn outline(prefix: &str, value: &serde_json::Value, text: &mut String) {
    let join = |name: &str| {
        if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
    };
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                outline(&join(name), value, text);
            }
        }
        serde_json::Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                outline(&format!("{prefix}[{index}]"), value, text);
            }
        }
        serde_json::Value::Null => text.push_str(&format!("  {prefix} = none\n")),
        plain => text.push_str(&format!("  {prefix} = {plain}\n")),
    }
}

pub(super) fn doctor(json: bool) -> Result<Exit, Failure> {
    let report = doctor::examine();
    print(json, &report, || {
        let mut text = String::new();
        for finding in &report.findings {
            let (colour, word) = match finding.verdict {
                Verdict::Ok => (render::Colour::Green, "ok  "),
                Verdict::Warn => (render::Colour::Yellow, "warn"),
                Verdict::Fail => (render::Colour::Red, "fail"),
            };
            let word = render::paint(colour, word);
            text.push_str(&format!("{word}  {:24} {}\n", finding.name, finding.found));
            if !finding.remedy.is_empty() {
                text.push_str(&format!("{:30} {}\n", "", finding.remedy));
            }
        }
        text
    })?;
    Ok(if report.ready { Exit::Done } else { Exit::Failed })
}

#[derive(Debug, Serialize)]
struct Written {
    certificate: String,
    key: String,
}

#[derive(Debug, Serialize)]
struct Shown {
    path: String,
    node: Option<String>,
    subject: String,
    issuer: String,
    serial: String,
    not_before: String,
    not_after: String,
    valid_now: bool,
    is_authority: bool,
}

pub(super) fn pki(command: &PkiCommand, json: bool) -> Result<Exit, Failure> {
    match command {
        PkiCommand::Init { dir, days, force } => {
            let files = pki::create_authority(dir, *days, *force)?;
            written(&files, json, "keep the key here; copy the certificate to every node")
        }
        PkiCommand::Issue { node, dir, days, force } => {
            let files = pki::issue(dir, node, *days, *force)?;
            let next = "copy both, and ca.pem, to that host; the key to no other";
            written(&files, json, next)
        }
        PkiCommand::Show { path } => {
            let found = if path.is_dir() {
                pki::list(path)?
            } else {
                vec![(path.clone(), pki::inspect(path)?)]
            };
            let shown: Vec<_> = found.iter().map(|(path, details)| show(path, details)).collect();
            print(json, &shown, || shown.iter().map(certificate).collect())
        }
    }
}

fn written(files: &pki::Files, json: bool, next: &str) -> Result<Exit, Failure> {
    let written = Written {
        certificate: files.certificate.display().to_string(),
        key: files.key.display().to_string(),
    };
    print(json, &written, || {
        format!("certificate  {}\nkey          {}\n{next}\n", written.certificate, written.key)
    })
}

fn show(path: &Path, details: &CertificateDetails) -> Shown {
    Shown {
        path: path.display().to_string(),
        node: details.node.as_ref().map(ToString::to_string),
        subject: details.subject.clone(),
        issuer: details.issuer.clone(),
        serial: details.serial.clone(),
        not_before: details.not_before.clone(),
        not_after: details.not_after.clone(),
        valid_now: details.valid_now,
        is_authority: details.is_authority,
    }
}

fn certificate(shown: &Shown) -> String {
    let whose = match (&shown.node, shown.is_authority) {
        (_, true) => "an authority".to_owned(),
        (Some(node), false) => format!("node {node}"),
        (None, false) => "no node".to_owned(),
    };
    let validity = if shown.valid_now {
        render::paint(render::Colour::Green, "valid")
    } else {
        render::paint(render::Colour::Red, "not valid now")
    };
    format!(
        "{}\n  {whose}, {validity}\n  subject {}\n  issuer  {}\n  serial  {}\n  from    {}\n  until   {}\n",
        shown.path, shown.subject, shown.issuer, shown.serial, shown.not_before, shown.not_after
    )
}

pub(super) fn demo(arguments: &DemoArgs, json: bool) -> Result<Exit, Failure> {
    let guest = match (arguments.guest, &arguments.kernel) {
        (DemoGuest::Probe, None) => GuestKind::Probe,
        (DemoGuest::Probe, Some(_)) => return Err(Failure::KernelOfProbe),
        (DemoGuest::Linux, kernel) => GuestKind::Linux { kernel: kernel.clone() },
    };
    let settings = DemoSettings {
        guest,
        epoch_ms: arguments.epoch,
        memory_mib: arguments.memory,
        vcpus: arguments.vcpus,
        dirty_rate: arguments.dirty_rate,
        detection_ms: arguments.detection,
        drop_ms: arguments.drop,
        patience: arguments.patience.map(Duration::from_secs),
        keep: arguments.keep,
        quiet: json,
    };
    let report = ended_in_order(|| demo::play(&settings))??;
    print(json, &report, || demo::render(&report))?;
    Ok(if report.sound() { Exit::Done } else { Exit::Failed })
}

/// A signal ends what is started by `rehearse`, too.
fn ended_in_order<T>(rehearse: impl FnOnce() -> T) -> Result<T, Failure> {
    let ending = Ending::on_signals().map_err(Failure::Signals)?;
    let result = rehearse();
    ending.over();
    Ok(result)
}

pub(super) fn soak(arguments: &SoakArgs, json: bool) -> Result<Exit, Failure> {
    let settings = SoakSettings {
        length: Duration::from_secs(arguments.seconds.unwrap_or(60 * arguments.minutes)),
        seed: arguments.seed.unwrap_or_else(rand::random),
        backups: arguments.backups,
        memory_mib: arguments.memory,
        vcpus: arguments.vcpus,
        dirty_rate: arguments.dirty_rate,
        etcd: arguments.etcd,
        hostile: arguments.hostile,
        quiet: json,
    };
    let report = ended_in_order(|| soak::run(&settings))??;
    print(json, &report, || soak::render(&report))?;
    Ok(if report.sound() { Exit::Done } else { Exit::Failed })
}

pub(super) fn bench(command: &BenchCommand, json: bool) -> Result<Exit, Failure> {
    let report = ended_in_order(|| bench::run(command, &Progress::new(json)))??;
    let files = report.write(&command.options().out).map_err(BenchError::from)?;
    print(json, &report, || {
        let page = files.first().map(|page| page.display().to_string()).unwrap_or_default();
        format!("{}\nwith pictures: {page}\n", report.text())
    })
}

pub(super) fn internal(command: &InternalCommand) -> Result<Exit, Failure> {
    let sound = match command {
        InternalCommand::Attempt(AttemptArgs { kind, what }) => {
            return Ok(match jail::attempt(*kind, *what)? {
                Ok(()) => Exit::Done,
                Err(refused) => {
                    eprintln!("refused: {refused}");
                    Exit::Failed
                }
            });
        }
        InternalCommand::ProbeClient(arguments) => {
            wait(rehearsal::probe_client::run(&arguments.into(), rehearsal::print_line))??.sound()
        }
        InternalCommand::TcpClient(arguments) => {
            wait(rehearsal::tcp_client::run(&arguments.into(), rehearsal::print_line))??.sound()
        }
        InternalCommand::LinuxProbe => match be_first_process()? {},
    };
    Ok(if sound { Exit::Done } else { Exit::Failed })
}
