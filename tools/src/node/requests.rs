//! What operators ask for, on its way to the core of the role that is played.

use std::{mem, sync::Arc};

use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use super::Host;
use crate::control::{ControlRequest, ControlRequests};

/// A task that passes requests on, until the role ends.
#[derive(Debug)]
pub struct Requests {
    hang_up: Arc<Notify>,
    task: JoinHandle<ControlRequests>,
}

impl Requests {
    /// Passes the requests of `host` on to `core`.
    pub fn pass(host: &mut Host, core: impl Fn(ControlRequest) + Send + 'static) -> Self {
        let (_, empty) = mpsc::channel(1);
        let requests = mem::replace(&mut host.requests, empty);
        let hang_up = Arc::new(Notify::new());
        let task = host.runtime.spawn(pass(requests, hang_up.clone(), core));
        Self { hang_up, task }
    }

    /// Gives them back to `host`, for the core of its next role. What is asked
    /// meanwhile waits.
    pub fn give_back(self, host: &mut Host) {
        self.hang_up.notify_one();
        if let Ok(requests) = host.runtime.block_on(self.task) {
            host.requests = requests;
        }
    }
}

async fn pass(
    mut requests: ControlRequests,
    hang_up: Arc<Notify>,
    core: impl Fn(ControlRequest),
) -> ControlRequests {
    loop {
        tokio::select! {
            biased;
            () = hang_up.notified() => return requests,
            request = requests.recv() => match request {
                Some(request) => core(request),
                None => return requests,
            },
        }
    }
}
