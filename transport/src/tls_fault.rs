//! Failed TLS handshakes, in words for an operator.
//!
//! A side that does not accept a certificate knows why; the other side is told
//! by a TLS alert only (RFC 8446, section 6.2), which QUIC carries as an error
//! code of `0x100 + alert` (RFC 9001, section 4.8).

use quinn::ConnectionError;

const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Which certificate was not accepted and why, if that is what ended a
/// handshake.
pub(crate) fn certificate(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::TransportError(error) => {
            let alert = alert(error.code.into())?;
            let known = certificate_alert(alert).unwrap_or("it was not accepted");
            Some(format!("the peer's certificate: {known} ({})", error.reason))
        }
        ConnectionError::ConnectionClosed(close) => {
            let words = certificate_alert(alert(close.error_code.into())?)?;
            Some(format!("the peer did not accept this node's certificate: {words}"))
        }
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => None,
    }
}

/// Whether the other side speaks another protocol, e.g. is the arbiter.
pub(crate) fn is_other_protocol(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return false,
    };
    alert(code.into()) == Some(NO_APPLICATION_PROTOCOL)
}

fn alert(code: u64) -> Option<u8> {
    CRYPTO_ERRORS.contains(&code).then_some(code as u8)
}

fn certificate_alert(alert: u8) -> Option<&'static str> {
    match alert {
        42 | 43 => Some("it is for another node, or not of this cluster"),
        44 => Some("it was revoked"),
        45 => Some("it has expired, or the clocks differ"),
        46 => Some("it is not accepted"),
        48 => Some("it was issued by another cluster's authority"),
        51 => Some("its signature does not match the cluster's authority"),
        116 => Some("none was shown"),
        _ => None,
    }
}
