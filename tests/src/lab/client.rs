//! A load client of the project's, at work in the office. It writes a line of
//! JSON on the way now and then, and its report at the end.

use std::time::Duration;

use romulus::rehearsal::netns::Place;
use serde::de::DeserializeOwned;

use super::cluster::{Lab, LabError};

/// A client. It ends when its stdin closes, which another process holds open.
#[derive(Debug)]
pub struct LoadClient {
    name: String,
}

impl LoadClient {
    pub(super) fn start(lab: &mut Lab, name: &str, arguments: &str) -> Result<Self, LabError> {
        let script = format!(
            "rm -f /run/{name}.*; mkfifo /run/{name}.stdin\n\
             (exec sleep 1000000 >/run/{name}.stdin 2>/dev/null & echo $! >/run/{name}.holder)\n\
             (romulus internal {arguments} </run/{name}.stdin >/run/{name}.jsonl 2>&4; \
             echo $? >/run/{name}.code) >/dev/null 2>&1 &\n"
        );
        lab.run(Place::Client, &script)?;
        Ok(Self { name: name.to_owned() })
    }

    fn last_line(&self, lab: &mut Lab) -> Result<serde_json::Value, LabError> {
        let script = format!("tail -n 1 /run/{}.jsonl", self.name);
        let said = lab.run(Place::Client, &script)?;
        if said.is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_str(&said).map_err(|source| answer(said, source))
    }

    /// Answers so far.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn answers(&self, lab: &mut Lab) -> Result<u64, LabError> {
        Ok(self.last_line(lab)?["progress"]["answers"].as_u64().unwrap_or(0))
    }

    /// Waits until `more` answers have come beyond those so far.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_answers(
        &self,
        lab: &mut Lab,
        more: u64,
        patience: Duration,
    ) -> Result<(), LabError> {
        let wanted = self.answers(lab)? + more;
        let what = format!("{} has {wanted} answers", self.name);
        lab.wait(&what, patience, |lab| {
            let line = self.last_line(lab)?;
            let answers = line["progress"]["answers"].as_u64().unwrap_or(0);
            Ok(if answers >= wanted { Ok(()) } else { Err(line.to_string()) })
        })
    }

    /// Ends the client and takes its report.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn finish<T: DeserializeOwned>(
        self,
        lab: &mut Lab,
        patience: Duration,
    ) -> Result<T, LabError> {
        let name = &self.name;
        lab.run(Place::Client, &format!("kill $(cat /run/{name}.holder)"))?;
        lab.wait(&format!("{name} ends"), patience, |lab| {
            let code =
                lab.run(Place::Client, &format!("cat /run/{name}.code 2>/dev/null || true"))?;
            Ok(if code.is_empty() { Err("it goes on".to_owned()) } else { Ok(()) })
        })?;
        let line = self.last_line(lab)?;
        serde_json::from_value(line["report"].clone())
            .map_err(|source| answer(line.to_string(), source))
    }
}

fn answer(said: String, source: serde_json::Error) -> LabError {
    LabError::Answer { place: Place::Client, said, source }
}
