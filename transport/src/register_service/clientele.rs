//! The nodes that an arbiter talks with, and what each may take of it.
//!
//! Invariant: a node has at most [`CONNECTIONS_MAX`] connections, and at most
//! [`JOBS_EACH_MAX`] jobs wait for the store in its name, however many it asks
//! for. There are as many nodes as certificates.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use arbiter::NodeId;
use quinn::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::session::{CloseCode, close};

/// Most connections of one node: each of its VMs has a process with one, and an
/// operator's tools have their own.
const CONNECTIONS_MAX: usize = 256;
/// Most jobs of one node that wait for the store; further ones wait with it.
const JOBS_EACH_MAX: usize = 8;

/// All nodes that have ever called.
#[derive(Debug, Default)]
pub(super) struct Clientele(Mutex<HashMap<NodeId, Arc<Node>>>);

#[derive(Debug)]
struct Node {
    /// The oldest first.
    connections: Mutex<VecDeque<Connection>>,
    jobs: Arc<Semaphore>,
}

/// A connection that counts until this is dropped.
#[derive(Debug)]
pub(super) struct Visit {
    node: Arc<Node>,
    connection: Connection,
}

/// The right to let the store do something, until it is done.
#[derive(Debug)]
pub(super) struct Turn(#[allow(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Clientele {
    /// Counts `connection` as one of `peer`; the oldest is closed if it has too
    /// many, because a process that is gone may have left it.
    pub(super) fn admit(&self, peer: &NodeId, connection: &Connection) -> Arc<Visit> {
        let mut nodes = self.0.lock().expect("no holder panics");
        let node = nodes.entry(peer.clone()).or_insert_with(|| {
            let jobs = Arc::new(Semaphore::new(JOBS_EACH_MAX));
            Arc::new(Node { connections: Mutex::default(), jobs })
        });
        let node = node.clone();
        drop(nodes);
        let mut connections = node.connections.lock().expect("no holder panics");
        connections.push_back(connection.clone());
        let too_many = connections.len() > CONNECTIONS_MAX;
        let oldest = if too_many { connections.pop_front() } else { None };
        drop(connections);
        if let Some(oldest) = oldest {
            tracing::warn!(%peer, "its oldest connection is closed: it has too many");
            close(&oldest, CloseCode::Busy, "this node has too many connections");
        }
        Arc::new(Visit { node, connection: connection.clone() })
    }
}

impl Visit {
    /// Waits until a job of this node may go to the store.
    pub(super) async fn turn(&self) -> Turn {
        let turn = self.node.jobs.clone().acquire_owned().await;
        Turn(turn.expect("it is never closed"))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let gone = self.connection.stable_id();
        let mut connections = self.node.connections.lock().expect("no holder panics");
        connections.retain(|connection| connection.stable_id() != gone);
    }
}
