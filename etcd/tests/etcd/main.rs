//! The store against real etcd on loopback.

#![forbid(unsafe_code)]

mod cluster;
mod members;
mod trouble;
