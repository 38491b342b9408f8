//! How it is spelled and moved: wire format, QUIC, TLS identities.
