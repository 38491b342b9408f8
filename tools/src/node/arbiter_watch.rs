//! Asks the arbiter now and then whether it answers: an operator must hear of
//! a lost arbiter before a failover needs it. What the register holds is the
//! machines' business and is not looked at here.

use std::time::Duration;

use tokio::task::AbortHandle;

use super::Host;
use crate::control::{EventKind, Severity};

/// Between two looks. A look has the client's own, shorter time limit.
const INTERVAL: Duration = Duration::from_secs(1);

/// A task that looks at the arbiter until this is dropped.
#[derive(Debug)]
pub struct ArbiterWatch {
    task: AbortHandle,
}

impl ArbiterWatch {
    /// Calls `tell` after every look with whether the arbiter answered, and
    /// records when that changes.
    pub fn start(host: &Host, tell: impl Fn(bool) + Send + 'static) -> Self {
        let (client, vm) = (host.arbiter.clone(), host.config.vm.name.clone());
        let events = host.telemetry.events.clone();
        let task = host.runtime.spawn(async move {
            let mut was = true;
            loop {
                let answer = client.load(&vm).await;
                let (is, nothing) = (answer.is_ok(), serde_json::Value::Null);
                match answer {
                    Err(error) if was => {
                        let text = format!("{error}: a failover would wait for it");
                        events.record(Severity::Warning, EventKind::ArbiterLost, text, nothing);
                    }
                    Ok(_) if !was => {
                        let text = "the arbiter answers again".to_owned();
                        events.record(Severity::Info, EventKind::ArbiterBack, text, nothing);
                    }
                    Ok(_) | Err(_) => {}
                }
                was = is;
                tell(is);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { task: task.abort_handle() }
    }
}

impl Drop for ArbiterWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
