//! One machine of the lab: a QEMU process that emulates a whole computer, AMD's
//! SVM included.
//!
//! ```text
//!   FOLDER/  NAME.console   all that it said on its serial line, over all its lives
//!            NAME.log       what its daemons logged
//!            NAME.qemu      what QEMU complained of
//!            NAME.control   its control port
//! ```
//!
//! Killing it is a power cut: nothing in it is told. It dies with the thread
//! that started it (`setpriv --pdeathsig`), so a machine is started by the
//! thread that owns it.

mod control;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use thiserror::Error;

use self::control::{Control, Silence};
use super::tool::{QEMU, SETPRIV};

pub use self::control::Outcome;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How much of a log is shown.
const LINES_SHOWN: usize = 60;
/// SVM for KVM inside; what TCG does not emulate of an EPYC, QEMU leaves out.
const CPU: &str = "EPYC,+svm";
/// With more than one CPU the clock would otherwise fall back to the HPET.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet tsc=reliable";

/// A network card.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The switch's socket.
    pub socket: PathBuf,
    /// Its address.
    pub mac: String,
}

/// What a machine is.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// The bzImage that it boots.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// RAM, in MiB.
    pub memory_mib: u32,
    /// CPUs.
    pub cpus: u16,
    /// A read-only disk.
    pub disk: Option<PathBuf>,
    /// Network cards, `eth0` first.
    pub nics: Vec<Nic>,
    /// Whether it obeys orders (`host-init.sh`).
    pub obeys: bool,
}

/// Why a machine does not do what it should. Each comes with the end of what it
/// said.
#[derive(Debug, Error)]
pub enum MachineError {
    /// QEMU did not start.
    #[error("cannot start {name}: {source}: are {} and {} installed?", QEMU.package, SETPRIV.package)]
    Start {
        /// Which machine.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is off.
    #[error("{0} is off: start it first")]
    Off(String),
    /// It ended, or its control port broke.
    #[error("{name} broke down while {what}: {source}\n{said}")]
    Broken {
        /// Which machine.
        name: String,
        /// What was wanted of it.
        what: String,
        /// What was seen.
        source: io::Error,
        /// The end of its console.
        said: String,
    },
    /// It took too long.
    #[error("{name}: waited {waited_s} s in vain while {what}\n{said}")]
    Patience {
        /// Which machine.
        name: String,
        /// What was wanted of it.
        what: String,
        /// How long.
        waited_s: u64,
        /// The end of its console.
        said: String,
    },
    /// A script that had to succeed failed.
    #[error("{name}: `{script}` ended with {code}: {said}")]
    Script {
        /// On which machine.
        name: String,
        /// What was run.
        script: String,
        /// Its exit code.
        code: i32,
        /// Its output.
        said: String,
    },
}

/// A machine, on or off.
#[derive(Debug)]
pub struct Machine {
    spec: Spec,
    folder: PathBuf,
    life: Option<Life>,
}

/// From a start to a power cut.
#[derive(Debug)]
struct Life {
    qemu: Child,
    control: Option<Control>,
}

impl Machine {
    /// A machine that is off, with its files in `folder`.
    #[must_use]
    pub fn new(spec: Spec, folder: &Path) -> Self {
        Self { spec, folder: folder.to_owned(), life: None }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Turns it on. It boots while the caller goes on; what it held before is
    /// gone.
    ///
    /// # Errors
    ///
    /// [`MachineError::Start`]
    pub fn start(&mut self) -> Result<(), MachineError> {
        self.kill();
        let failed = |source| MachineError::Start { name: self.spec.name.clone(), source };
        let control_path = self.file("control");
        let control = if self.spec.obeys {
            let _ = fs::remove_file(&control_path);
            Some(Control::listen(&control_path).map_err(failed)?)
        } else {
            None
        };
        let complaints = self.file("qemu");
        let complaints =
            File::options().create(true).append(true).open(complaints).map_err(failed)?;
        let mut command = SETPRIV.command();
        command.args(["--pdeathsig", "KILL", QEMU.program]);
        self.describe(&mut command);
        let qemu = command.stdout(Stdio::null()).stderr(complaints).spawn().map_err(failed)?;
        self.life = Some(Life { qemu, control });
        Ok(())
    }

    fn describe(&self, command: &mut Command) {
        let Spec { name, memory_mib, cpus, .. } = &self.spec;
        command.args(["-name", name, "-accel", "tcg,thread=multi", "-cpu", CPU]);
        command.args(["-m", &memory_mib.to_string(), "-smp", &cpus.to_string()]);
        command.args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.arg("-kernel").arg(&self.spec.kernel).arg("-initrd").arg(&self.spec.initrd);
        command.args(["-append", &format!("{CMDLINE} {}", self.spec.cmdline)]);
        let file = |ending: &str| comma_free(&self.file(ending));
        let console = format!("file,id=console,append=on,path={}", file("console"));
        command.args(["-chardev", &console, "-serial", "chardev:console"]);
        if self.spec.obeys {
            let control = format!("socket,id=control,path={}", file("control"));
            let log = format!("file,id=log,append=on,path={}", file("log"));
            command.args(["-device", "virtio-serial-pci", "-chardev", &control, "-chardev", &log]);
            for port in ["control", "log"] {
                command.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
            }
        }
        if let Some(disk) = &self.spec.disk {
            let disk = format!("if=none,id=disk,format=raw,readonly=on,file={}", comma_free(disk));
            command.args(["-drive", &disk, "-device", "virtio-blk-pci,drive=disk"]);
        }
        for (index, nic) in self.spec.nics.iter().enumerate() {
            let socket = comma_free(&nic.socket);
            let net = format!("id=net{index},server=off,addr.type=unix,addr.path={socket}");
            let card = format!("virtio-net-pci,netdev=net{index},mac={},romfile=", nic.mac);
            command.args(["-netdev", &format!("stream,{net}"), "-device", &card]);
        }
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.life.is_some()
    }

    /// QEMU's process, if it is on.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.life.as_ref().map(|life| life.qemu.id())
    }

    /// Waits until it has booted and obeys.
    ///
    /// # Errors
    ///
    /// [`MachineError`]
    pub fn wait_ready(&mut self, patience: Duration) -> Result<(), MachineError> {
        self.with_control("it boots", patience, Control::wait_ready)
    }

    /// Runs a shell script in it, whatever comes of it.
    ///
    /// # Errors
    ///
    /// [`MachineError`] if it does not answer.
    pub fn order(&mut self, script: &str, patience: Duration) -> Result<Outcome, MachineError> {
        let what = format!("it ran `{script}`");
        self.with_control(&what, patience, |control, deadline, alive| {
            control.order(script, deadline, alive)
        })
    }

    /// Runs a shell script in it that has to succeed. Returns what it wrote on
    /// stdout.
    ///
    /// # Errors
    ///
    /// [`MachineError`]
    pub fn run(&mut self, script: &str, patience: Duration) -> Result<String, MachineError> {
        let outcome = self.order(script, patience)?;
        if outcome.code == 0 {
            return Ok(outcome.text());
        }
        Err(MachineError::Script {
            name: self.spec.name.clone(),
            script: script.to_owned(),
            code: outcome.code,
            said: format!("{}\n{}", outcome.text(), String::from_utf8_lossy(&outcome.stderr)),
        })
    }

    fn with_control<T>(
        &mut self,
        what: &str,
        patience: Duration,
        ask: impl FnOnce(
            &mut Control,
            Instant,
            &mut dyn FnMut() -> io::Result<()>,
        ) -> Result<T, Silence>,
    ) -> Result<T, MachineError> {
        let name = self.spec.name.clone();
        let Some(Life { qemu, control: Some(control) }) = &mut self.life else {
            return Err(MachineError::Off(name));
        };
        let deadline = Instant::now() + patience;
        let answer = ask(control, deadline, &mut || alive(qemu));
        answer.map_err(|silence| self.silent(what, patience, silence))
    }

    fn silent(&self, what: &str, patience: Duration, silence: Silence) -> MachineError {
        let (name, what, said) = (self.spec.name.clone(), what.to_owned(), self.said());
        match silence {
            Silence::Patience => {
                MachineError::Patience { name, what, waited_s: patience.as_secs(), said }
            }
            Silence::Broken(source) => MachineError::Broken { name, what, source, said },
        }
    }

    /// Puts a small file into it.
    ///
    /// # Errors
    ///
    /// [`MachineError`]
    pub fn write(
        &mut self,
        path: &str,
        bytes: &[u8],
        patience: Duration,
    ) -> Result<(), MachineError> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let script = format!("base64 -d >'{path}' <<'END'\n{}\nEND", STANDARD.encode(bytes));
        self.run(&script, patience).map(drop)
    }

    /// Takes a small file out of it.
    ///
    /// # Errors
    ///
    /// [`MachineError`]
    pub fn read(&mut self, path: &str, patience: Duration) -> Result<Vec<u8>, MachineError> {
        let outcome = self.order(&format!("cat '{path}'"), patience)?;
        if outcome.code == 0 {
            return Ok(outcome.stdout);
        }
        Err(MachineError::Script {
            name: self.spec.name.clone(),
            script: format!("cat '{path}'"),
            code: outcome.code,
            said: String::from_utf8_lossy(&outcome.stderr).into_owned(),
        })
    }

    /// Waits until `words` are on its console.
    ///
    /// # Errors
    ///
    /// [`MachineError`]
    pub fn wait_console(&mut self, words: &str, patience: Duration) -> Result<(), MachineError> {
        let deadline = Instant::now() + patience;
        let what = format!("it says `{words}`");
        loop {
            if self.console().contains(words) {
                return Ok(());
            }
            let life =
                self.life.as_mut().ok_or_else(|| MachineError::Off(self.spec.name.clone()))?;
            let silence = match alive(&mut life.qemu) {
                Err(source) => Silence::Broken(source),
                Ok(()) if Instant::now() >= deadline => Silence::Patience,
                Ok(()) => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            return Err(self.silent(&what, patience, silence));
        }
    }

    /// Cuts its power: SIGKILL for QEMU.
    pub fn kill(&mut self) {
        if let Some(mut life) = self.life.take() {
            let _ = life.qemu.kill();
            let _ = life.qemu.wait();
        }
    }

    /// Freezes it: no CPU of it runs, and its clock does not see it.
    ///
    /// # Errors
    ///
    /// [`MachineError`]
    pub fn freeze(&self) -> Result<(), MachineError> {
        self.signal(Signal::SIGSTOP, "it is frozen")
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// [`MachineError`]
    pub fn thaw(&self) -> Result<(), MachineError> {
        self.signal(Signal::SIGCONT, "it is thawed")
    }

    fn signal(&self, signal: Signal, what: &str) -> Result<(), MachineError> {
        let Some(life) = &self.life else {
            return Err(MachineError::Off(self.spec.name.clone()));
        };
        let pid = Pid::from_raw(i32::try_from(life.qemu.id()).expect("a pid fits"));
        kill(pid, signal)
            .map_err(|errno| self.silent(what, Duration::ZERO, Silence::Broken(errno.into())))
    }

    /// All that it said on its serial line.
    #[must_use]
    pub fn console(&self) -> String {
        text(&self.file("console"))
    }

    /// What its daemons logged.
    #[must_use]
    pub fn log(&self) -> String {
        text(&self.file("log"))
    }

    /// The ends of its console, its log and QEMU's complaints, for a person.
    #[must_use]
    pub fn said(&self) -> String {
        let part = |ending: &str| {
            let text = text(&self.file(ending));
            let end = last_lines(&text);
            if end.is_empty() { end } else { format!("--- {}.{ending}\n{end}\n", self.spec.name) }
        };
        ["console", "log", "qemu"].map(part).concat()
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.spec.name))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn alive(qemu: &mut Child) -> io::Result<()> {
    match qemu.try_wait()? {
        None => Ok(()),
        Some(status) => Err(io::Error::other(format!("QEMU ended ({status})"))),
    }
}

/// In QEMU's options a comma is written twice.
fn comma_free(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}
