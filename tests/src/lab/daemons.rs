//! What is done in a lab with `romulus`: daemons, their status, clients.

use std::time::{Duration, Instant};

use romulus::{
    control::{Protection, Role, Status, VerifyReport},
    rehearsal::netns::{GUEST_ADDRESS, Place},
};

use super::{
    client::LoadClient,
    cluster::{Lab, LabError, ORDER},
    configuration::{CONSOLE, VM},
    guest::DISK,
    machine::Outcome,
};

const REDIS_PORT: u16 = 6379;
/// How often a state that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(200);

impl Lab {
    /// Starts the daemon `role` (`arbiter`, `run` or `backup`) at `place`.
    /// What it logs goes out of the machine at once, and outlives it.
    ///
    /// # Errors
    ///
    /// [`LabError::Machine`]
    pub fn start(&mut self, place: Place, role: &str) -> Result<(), LabError> {
        let file = format!("{DISK}/{place}.toml");
        let script = format!(
            "mkdir -p /run/romulus; rm -f /run/{place}.code\n\
             (romulus {role} {file} >/dev/null 2>&4 & echo $! >/run/{place}.pid; \
             wait $!; echo $? >/run/{place}.code) >/dev/null 2>&1 &\n"
        );
        self.run(place, &script).map(drop)
    }

    /// The exit code of the daemon at `place`, as soon as it has ended.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`] if it goes on.
    pub fn exit_code(&mut self, place: Place, patience: Duration) -> Result<i32, LabError> {
        let what = format!("the daemon at {place} ends");
        self.wait(&what, patience, |lab| {
            let code = lab.run(place, &format!("cat /run/{place}.code 2>/dev/null || true"))?;
            Ok(code.parse().map_err(|_| "it goes on".to_owned()))
        })
    }

    /// Runs a `romulus` command at `place` that answers in JSON.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn ask(&mut self, place: Place, arguments: &str) -> Result<Outcome, LabError> {
        let script = format!("romulus --json {arguments}");
        Ok(self.machine(place).order(&script, ORDER)?)
    }

    /// The status of the daemon at `place`; the inner error is what it said
    /// instead.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn status(&mut self, place: Place) -> Result<Result<Status, String>, LabError> {
        let outcome = self.ask(place, &format!("status /run/romulus/{VM}.sock"))?;
        let said = outcome.text();
        if outcome.code != 0 {
            return Ok(Err(said));
        }
        let status = serde_json::from_str(&said);
        Ok(Ok(status.map_err(|source| LabError::Answer { place, said, source })?))
    }

    /// Waits until the daemon at `place` has a status that `holds`.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_for(
        &mut self,
        place: Place,
        what: &str,
        patience: Duration,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status, LabError> {
        self.wait(&format!("{place} {what}"), patience, |lab| {
            Ok(match lab.status(place)? {
                Ok(status) if holds(&status) => Ok(status),
                Ok(status) => Err(format!("{status:?}")),
                Err(said) => Err(said),
            })
        })
    }

    /// Waits until `place` runs the guest, protected.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_protected(&mut self, place: Place, patience: Duration) -> Result<Status, LabError> {
        let protected = |status: &Status| {
            status.role == Role::Primary && status.protection == Protection::Protected
        };
        self.wait_for(place, "runs a protected guest", patience, protected)
    }

    /// Waits until `place` runs the guest.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_primary(&mut self, place: Place, patience: Duration) -> Result<Status, LabError> {
        let primary = |status: &Status| status.role == Role::Primary;
        self.wait_for(place, "runs the guest", patience, primary)
    }

    /// Waits until the guest at `place` serves, by its own word.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_serving(&mut self, place: Place, patience: Duration) -> Result<(), LabError> {
        let words = self.shape().guest.ready;
        self.wait("the guest serves", patience, |lab| {
            let found = lab.machine(place).order(&format!("grep -q '{words}' {CONSOLE}"), ORDER)?;
            if found.code == 0 {
                return Ok(Ok(()));
            }
            let last = lab.machine(place).order(&format!("tail -n 1 {CONSOLE}"), ORDER)?;
            Ok(Err(last.text()))
        })
    }

    /// Looks again and again until `look` finds what it wants; its inner error
    /// says what there is instead.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Result<T, String>, LabError>,
    ) -> Result<T, LabError> {
        let deadline = Instant::now() + patience;
        loop {
            let last = match look(self)? {
                Ok(found) => return Ok(found),
                Err(last) => last,
            };
            if Instant::now() >= deadline {
                let (what, waited_s) = (what.to_owned(), patience.as_secs());
                return Err(LabError::Waited { what, waited_s, last });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Hands the guest from `place` to `to` by plan.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn hand_over(&mut self, place: Place, to: Place) -> Result<(), LabError> {
        let command = format!("romulus failover /run/romulus/{VM}.sock --to {to}");
        self.run(place, &command).map(drop)
    }

    /// Compares the guest's memory on all sides.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn verify(&mut self, place: Place) -> Result<VerifyReport, LabError> {
        let said = self.ask(place, &format!("verify /run/romulus/{VM}.sock"))?.text();
        serde_json::from_str(&said).map_err(|source| LabError::Answer { place, said, source })
    }

    /// Starts a client in the office: `romulus internal ARGUMENTS`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn client(&mut self, name: &str, arguments: &str) -> Result<LoadClient, LabError> {
        LoadClient::start(self, name, arguments)
    }

    /// Starts a client in the office that writes to the guest's redis over one
    /// connection; it reports a `TcpReport`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn tcp_client(&mut self, name: &str) -> Result<LoadClient, LabError> {
        let target = format!("{GUEST_ADDRESS}:{REDIS_PORT}");
        self.client(name, &format!("tcp-client --target {target}"))
    }

    /// Starts a client in the office that asks the probe guest; it reports a
    /// `ProbeReport`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn probe_client(&mut self, name: &str) -> Result<LoadClient, LabError> {
        let target = format!("{GUEST_ADDRESS}:{}", romulus_probe::SERVICE_PORT);
        // TCG has no TSC scaling: hosts' counters differ.
        let options = "--lanes 4 --retransmit-ms 500 --no-tsc-check";
        self.client(name, &format!("probe-client --target {target} {options}"))
    }
}
