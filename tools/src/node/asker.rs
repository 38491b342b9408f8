//! Carries a machine's questions to the arbiter and the answers back.
//!
//! What the machine need not know, an operator wants to: why there was no
//! answer. It is logged when it changes, not at every repeat.

use std::sync::{Arc, Mutex, PoisonError};

use arbiter::VmId;
use checkpoint::{Answer, Question};
use tokio::runtime::Handle;
use transport::{ArbiterClient, AskError};

use super::{Host, with_causes};

/// Asks on the runtime's threads; every question gets exactly one answer.
#[derive(Debug, Clone)]
pub struct Asker {
    handle: Handle,
    client: Arc<ArbiterClient>,
    vm: VmId,
    trouble: Trouble,
}

/// What was last logged about questions in vain; empty after an answer.
#[derive(Debug, Clone, Default)]
struct Trouble(Arc<Mutex<String>>);

impl Asker {
    /// An asker about the VM of `host`.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self {
            handle: host.runtime.handle().clone(),
            client: host.arbiter.clone(),
            vm: host.config.vm.name.clone(),
            trouble: Trouble::default(),
        }
    }

    /// Asks `question`; `answered` is called once, from another thread.
    pub fn ask(&self, question: Question, answered: impl FnOnce(Answer) + Send + 'static) {
        let asker = self.clone();
        self.handle.spawn(async move { answered(asker.carry(question).await) });
    }

    async fn carry(&self, question: Question) -> Answer {
        self.ask_with_reason(question).await.0
    }

    /// Asks `question`; beside the answer, why there is none of the arbiter's.
    pub async fn ask_with_reason(&self, question: Question) -> (Answer, Option<String>) {
        let (client, vm) = (&self.client, &self.vm);
        let answer = match question {
            Question::Change(request) => client.execute(vm, &request).await.map(Answer::Outcome),
            Question::Read => client
                .load(vm)
                .await
                .map(|record| Answer::Register(record.map(|record| record.register))),
        };
        match answer {
            Ok(answer) => {
                self.trouble.is_over();
                (answer, None)
            }
            Err(error) => {
                let why = with_causes(&error);
                self.trouble.is(&why);
                (unanswered(&error, &why), Some(why))
            }
        }
    }
}

impl Trouble {
    fn is(&self, why: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == why {
            tracing::debug!(why, "the arbiter gave no answer");
        } else {
            tracing::warn!(why, "the arbiter gave no answer");
            last.replace_range(.., why);
        }
    }

    fn is_over(&self) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.is_empty() {
            tracing::info!("the arbiter answers again");
            last.clear();
        }
    }
}

fn unanswered(error: &AskError, why: &str) -> Answer {
    match error {
        AskError::Unknown { .. } => Answer::Unknown,
        AskError::Unsent { .. } | AskError::Unavailable { .. } => Answer::Unsent,
        AskError::Unsendable(_) | AskError::Foreign { .. } | AskError::Denied { .. } => {
            Answer::Refused(why.to_owned())
        }
    }
}
