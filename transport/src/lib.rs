//! How it is spelled and moved: wire format, QUIC, TLS identities.

#![forbid(unsafe_code)]

pub mod wire;
