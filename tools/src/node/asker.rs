//! Carries a machine's questions to the arbiter and the answers back.

use std::sync::Arc;

use arbiter::VmId;
use checkpoint::{Answer, Question};
use tokio::runtime::Handle;
use transport::{ArbiterClient, AskError};

use super::Host;

/// Asks on the runtime's threads; every question gets exactly one answer.
#[derive(Debug, Clone)]
pub struct Asker {
    handle: Handle,
    client: Arc<ArbiterClient>,
    vm: VmId,
}

impl Asker {
    /// An asker about the VM of `host`.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self {
            handle: host.runtime.handle().clone(),
            client: host.arbiter.clone(),
            vm: host.config.vm.name.clone(),
        }
    }

    /// Asks `question`; `answered` is called once, from another thread.
    pub fn ask(&self, question: Question, answered: impl FnOnce(Answer) + Send + 'static) {
        let (client, vm) = (self.client.clone(), self.vm.clone());
        self.handle.spawn(async move { answered(carry(&client, &vm, question).await) });
    }

    /// Asks and waits. Not to be called from the runtime's threads.
    #[must_use]
    pub fn ask_blocking(&self, question: Question) -> Answer {
        self.handle.block_on(carry(&self.client, &self.vm, question))
    }
}

async fn carry(client: &ArbiterClient, vm: &VmId, question: Question) -> Answer {
    let answer = match question {
        Question::Change(request) => client.execute(vm, &request).await.map(Answer::Outcome),
        Question::Read => client
            .load(vm)
            .await
            .map(|record| Answer::Register(record.map(|record| record.register))),
    };
    answer.unwrap_or_else(|error| {
        tracing::debug!(%error, "the arbiter gave no answer");
        unanswered(&error)
    })
}

fn unanswered(error: &AskError) -> Answer {
    if error.may_have_happened() {
        Answer::Unknown
    } else if matches!(error, AskError::Unsent { .. }) {
        Answer::Unsent
    } else {
        Answer::Refused(error.to_string())
    }
}
