//! Clients: each asks one thing after the other, again until it is answered,
//! and knows what the answer must be.

use std::time::Duration;

use crate::simulation::{
    guest::{Reply, Request, next_digest},
    happening::WorldHappening,
    witness::Rule,
    world::World,
};

const PATIENCE: std::ops::Range<u64> = 6_000..30_000;

#[derive(Debug, Clone, Copy, Default)]
struct Client {
    /// The last request that was answered, and the digest up to it.
    answered: u64,
    digest: u64,
    /// When that was.
    answered_at: Duration,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    clients: Vec<Client>,
}

impl Clients {
    pub(super) fn new(count: usize) -> Self {
        Self { clients: vec![Client::default(); count] }
    }

    /// The guest boots afresh, by right: it owes nobody anything.
    pub(super) fn forget(&mut self) {
        for client in &mut self.clients {
            (client.answered, client.digest) = (0, 0);
        }
    }

    pub(super) fn are_served_since(&self, since: Duration) -> bool {
        self.clients.iter().all(|client| client.answered_at > since)
    }

    /// A client asks (again), wherever a guest is: switches do not know which of
    /// two is the right one.
    pub(super) fn ask(&mut self, world: &mut World, client: u8) {
        let number = self.clients[usize::from(client)].answered + 1;
        let request = Request { client, number };
        for host in 0..world.machines.len() as u8 {
            if !world.machines[usize::from(host)].has_guest {
                continue;
            }
            if world.faulty && world.chance.hits(world.plan.rates.client_lost) {
                continue;
            }
            let copies = 1 + u64::from(world.chance.hits(world.plan.rates.client_doubled));
            for _ in 0..copies {
                let delay = world.latency();
                world.later(delay, WorldHappening::Request(host, request));
            }
        }
        let patience = world.chance.micros(PATIENCE);
        world.later(patience, WorldHappening::ClientAsks(client));
    }

    /// A reply has come.
    pub(super) fn hear(&mut self, world: &mut World, reply: Reply) {
        let client = &mut self.clients[usize::from(reply.client)];
        if reply.to != client.answered + 1 {
            // To a question that was answered before.
            return;
        }
        let digest = next_digest(client.digest, reply.client, reply.to);
        if reply.number != reply.to || reply.digest != digest {
            let (id, answered) = (reply.client, client.answered);
            world.witness.object(Rule::Client, || {
                format!("client {id} had answers to {answered} requests, and is told {reply:?}")
            });
            return;
        }
        (client.answered, client.digest, client.answered_at) = (reply.to, digest, world.now);
        world.report.replies += 1;
    }
}
