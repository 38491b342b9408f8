//! A QEMU process with the probe guest, and its control channel (QMP: JSON lines over
//! a Unix socket; docs/interop/qmp-spec of QEMU).
//!
//! The process dies with its handle, or with this process.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thiserror::Error;

use crate::probe_guest::PROBE_GUEST;

const PROGRAM: &str = "qemu-system-x86_64";
/// What the probe guest says when it has booted.
const READY: &str = "probe: ready";
const LOOK: Duration = Duration::from_millis(20);
/// How long QEMU may take for its start and for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a QEMU cannot be compared with.
#[derive(Debug, Error)]
pub enum QemuError {
    /// There is none.
    #[error("{PROGRAM} is not installed: `apt-get install qemu-system-x86`")]
    Missing,
    /// Files, sockets or processes.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It refused a command.
    #[error("QEMU refused `{command}`: {answer}")]
    Refused {
        /// Which.
        command: String,
        /// In its words.
        answer: String,
    },
    /// Something did not come about.
    #[error("{version}: waited {} s in vain until {what}; it said: {said}", PATIENCE.as_secs())]
    Waited {
        /// Which QEMU.
        version: String,
        /// For what.
        what: &'static str,
        /// The end of its errors.
        said: String,
    },
}

fn system(action: &'static str) -> impl Fn(io::Error) -> QemuError {
    move |source| QemuError::System { action, source }
}

/// The guest and the machine around it.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) memory_mib: u32,
    pub(super) cmdline: String,
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    qmp: Qmp,
    version: String,
    files: PathBuf,
}

impl Qemu {
    /// Starts `name` in `folder`, with more `arguments`.
    pub(super) fn start(
        folder: &Path,
        name: &str,
        machine: &Machine,
        arguments: &[&str],
    ) -> Result<Self, QemuError> {
        let version = version()?;
        let files = folder.join(name);
        let file = |ending: &str| files.with_extension(ending);
        let kernel = folder.join("probe-guest");
        fs::write(&kernel, PROBE_GUEST).map_err(system("write the probe guest"))?;
        let errors = fs::File::create(file("err")).map_err(system("make a log for QEMU"))?;
        let socket = file("qmp");
        let mut command = Command::new(PROGRAM);
        command
            .args(["-machine", "pc", "-accel", "kvm", "-nodefaults", "-display", "none"])
            .args(["-m", &machine.memory_mib.to_string()])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", &machine.cmdline])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(["-serial", &format!("file:{}", file("console").display())])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let mut child = command.spawn().map_err(system("start QEMU"))?;
        match Qmp::connect(&socket) {
            Ok(qmp) => Ok(Self { child, qmp, version, files }),
            Err(source) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = last_words(&file("err"));
                tracing::debug!(%source, "no control channel");
                Err(QemuError::Waited { version, what: "it answers", said })
            }
        }
    }

    /// Carries out a command.
    pub(super) fn command(&mut self, name: &str, arguments: Value) -> Result<Value, QemuError> {
        self.qmp.command(name, &arguments)
    }

    /// What QEMU has traced, line by line, between its errors: a trace of its own file
    /// would be written a block at a time.
    pub(super) fn trace(&self) -> String {
        fs::read_to_string(self.files.with_extension("err")).unwrap_or_default()
    }

    /// Waits until the guest works.
    pub(super) fn wait_ready(&mut self) -> Result<(), QemuError> {
        let console = self.files.with_extension("console");
        self.wait_until("the guest has booted", |_| {
            Ok(fs::read_to_string(&console).unwrap_or_default().contains(READY).then_some(()))
        })
    }

    /// Waits until `look` finds something.
    pub(super) fn wait_until<T>(
        &mut self,
        what: &'static str,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, QemuError>,
    ) -> Result<T, QemuError> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            std::thread::sleep(LOOK);
        }
        let said = last_words(&self.files.with_extension("err"));
        Err(QemuError::Waited { version: self.version.clone(), what, said })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Which QEMU is installed, in its words.
pub(super) fn version() -> Result<String, QemuError> {
    let output = Command::new(PROGRAM).arg("--version").output().map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            QemuError::Missing
        } else {
            QemuError::System { action: "ask QEMU for its version", source }
        }
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("QEMU of an unknown version").to_owned())
}

fn last_words(path: &Path) -> String {
    let said = fs::read_to_string(path).unwrap_or_default();
    said.lines().last().unwrap_or("nothing").to_owned()
}

#[derive(Debug)]
struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self { lines: BufReader::new(stream) };
        qmp.line()?;
        qmp.command("qmp_capabilities", &json!({})).map_err(io::Error::other)?;
        Ok(qmp)
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn command(&mut self, name: &str, arguments: &Value) -> Result<Value, QemuError> {
        let talk = system("talk to QEMU");
        let request = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        self.lines.get_mut().write_all(request.as_bytes()).map_err(&talk)?;
        loop {
            let mut answer = self.line().map_err(&talk)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let answer = error["desc"].as_str().unwrap_or("no reason").to_owned();
                return Err(QemuError::Refused { command: name.to_owned(), answer });
            }
            // An event: nobody waits for it here.
        }
    }
}
