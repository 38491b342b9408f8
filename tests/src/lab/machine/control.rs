//! Orders for a machine over its control port, and what comes of them.
//!
//! ```text
//!   order     NUMBER SCRIPT\n              script in base64
//!   answer    NUMBER CODE STDOUT STDERR\n  output in base64, `-` if empty
//! ```
//!
//! One order at a time: an order is short, and what runs long is a daemon that
//! it starts. After an order without an answer the port is of no more use.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

/// How long one look at the port takes before the machine is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What the machine says when it obeys.
const READY: &str = "ready";

/// What came of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it wrote on stdout.
    pub stdout: Vec<u8>,
    /// What it wrote on stderr.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Its stdout as text, without white space around.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// Time is over.
    Patience,
    /// The machine is gone, or does not speak as it should.
    Broken(io::Error),
}

/// The harness's end of a control port.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    stream: Option<UnixStream>,
    received: Vec<u8>,
    number: u64,
}

impl Control {
    /// Waits at `path` for the machine that will be started.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, stream: None, received: Vec::new(), number: 0 })
    }

    /// Waits until the machine obeys. `alive` is asked again and again.
    pub(super) fn wait_ready(
        &mut self,
        deadline: Instant,
        alive: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), Silence> {
        let line = self.line(deadline, alive)?;
        if line == READY { Ok(()) } else { Err(strange(&line)) }
    }

    /// Runs `script` and waits for its end.
    pub(super) fn order(
        &mut self,
        script: &str,
        deadline: Instant,
        alive: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Outcome, Silence> {
        self.number += 1;
        let order = format!("{} {}\n", self.number, BASE64.encode(script));
        let Some(stream) = &mut self.stream else {
            return Err(Silence::Broken(io::ErrorKind::NotConnected.into()));
        };
        stream.write_all(order.as_bytes()).map_err(Silence::Broken)?;
        let line = self.line(deadline, alive)?;
        parse_answer(&line, self.number).ok_or_else(|| strange(&line))
    }

    /// The next line that the machine says.
    fn line(
        &mut self,
        deadline: Instant,
        alive: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<String, Silence> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if Instant::now() >= deadline {
                return Err(Silence::Patience);
            }
            alive().map_err(Silence::Broken)?;
            self.receive().map_err(Silence::Broken)?;
        }
    }

    /// Takes what there is, or waits a moment.
    fn receive(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return self.accept() };
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.received.extend_from_slice(&bytes[..length]);
                Ok(())
            }
            Err(error) if is_nothing_yet(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(LOOK))?;
                self.stream = Some(stream);
                Ok(())
            }
            Err(error) if is_nothing_yet(&error) => {
                std::thread::sleep(LOOK);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn strange(line: &str) -> Silence {
    let words = format!("a strange line on the control port: {line:?}");
    Silence::Broken(io::Error::new(io::ErrorKind::InvalidData, words))
}

/// An answer to the order `number`.
fn parse_answer(line: &str, number: u64) -> Option<Outcome> {
    let words: Vec<&str> = line.split(' ').collect();
    let [answered, code, stdout, stderr] = words[..] else { return None };
    let decode = |word: &str| match word {
        "-" => Some(Vec::new()),
        word => BASE64.decode(word).ok(),
    };
    let is_mine = answered.parse() == Ok(number);
    let outcome =
        Outcome { code: code.parse().ok()?, stdout: decode(stdout)?, stderr: decode(stderr)? };
    is_mine.then_some(outcome)
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A machine that obeys with `answers`, in order.
    fn machine(path: &Path, answers: &'static [&'static str]) -> std::thread::JoinHandle<()> {
        let mut stream = UnixStream::connect(path).unwrap();
        std::thread::spawn(move || {
            stream.write_all(b"ready\n").unwrap();
            let mut orders = io::BufReader::new(stream.try_clone().unwrap()).lines();
            for answer in answers {
                let order = orders.next().unwrap().unwrap();
                let (number, script) = order.split_once(' ').unwrap();
                assert_eq!(BASE64.decode(script).unwrap(), b"true");
                let answer = answer.replace('N', number);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        })
    }

    #[test]
    fn an_order_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let mut control = Control::listen(&path).unwrap();
        let machine = machine(&path, &["N 3 aGk= -\n", "N 0 - aG8=\n", "77 0 - -\n"]);
        let deadline = Instant::now() + PATIENCE;
        let alive = &mut || Ok(());
        control.wait_ready(deadline, alive).unwrap();
        let outcome = control.order("true", deadline, alive).unwrap();
        assert_eq!((outcome.code, outcome.text().as_str()), (3, "hi"));
        assert_eq!(control.order("true", deadline, alive).unwrap().stderr, b"ho");
        let wrong = control.order("true", deadline, alive);
        assert!(matches!(wrong, Err(Silence::Broken(_))), "an answer to another order");
        machine.join().unwrap();
        assert!(matches!(control.order("true", deadline, alive), Err(Silence::Broken(_))));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let mut control = Control::listen(&folder.path().join("control")).unwrap();
        let soon = Instant::now() + Duration::from_millis(60);
        assert!(matches!(control.wait_ready(soon, &mut || Ok(())), Err(Silence::Patience)));
        let dead = &mut || Err(io::ErrorKind::BrokenPipe.into());
        let later = Instant::now() + PATIENCE;
        assert!(matches!(control.wait_ready(later, dead), Err(Silence::Broken(_))));
    }
}
