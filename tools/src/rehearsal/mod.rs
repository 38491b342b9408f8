//! Rehearsing failures on one machine: hosts as network namespaces, and a
//! client that notices whatever a guest forgets.

pub mod cluster;
pub mod demo;
pub mod ending;
mod etcd_member;
mod leftovers;
pub mod netns;
mod probe_args;
pub mod probe_client;
mod probe_lane;
mod probe_report;
mod resp;
pub mod soak;
pub mod tcp_client;
mod tcp_report;

pub use self::{
    probe_client::{ProbeClientError, print_line},
    probe_report::{Gap, ProbeReport, ProbeSettings, Progress},
    tcp_client::TcpClientError,
    tcp_report::{TcpReport, TcpSettings},
};
