//! What stands in a certificate.

use arbiter::NodeId;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The domain under which nodes are named in certificates. `.internal` is
/// reserved for private use (ICANN, 2024).
pub const DOMAIN: &str = "romulus.internal";

/// Why a certificate tells nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// Not an X.509 certificate.
    #[error("it cannot be understood: {0}")]
    Malformed(String),
    /// It is none of a node.
    #[error("it has not exactly one DNS name of the form `<node>.{DOMAIN}`")]
    NoNode,
}

/// What an operator wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateDetails {
    /// The node that it is for; `None` for an authority's.
    pub node: Option<NodeId>,
    /// Its subject, in words.
    pub subject: String,
    /// Who signed it, in words.
    pub issuer: String,
    /// Its serial number, in hex.
    pub serial: String,
    /// From when it is valid, in words.
    pub not_before: String,
    /// Until when it is valid, in words.
    pub not_after: String,
    /// Until when it is valid, in seconds since 1970.
    pub not_after_unix_s: i64,
    /// Whether it is valid now.
    pub valid_now: bool,
    /// Whether it may sign others.
    pub is_authority: bool,
}

impl CertificateDetails {
    /// Reads a certificate in DER form. Its signature is not checked.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Malformed`].
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let validity = certificate.validity();
        Ok(Self {
            node: node_in(&certificate),
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_before: validity.not_before.to_string(),
            not_after: validity.not_after.to_string(),
            not_after_unix_s: validity.not_after.timestamp(),
            valid_now: validity.is_valid(),
            is_authority: certificate.is_ca(),
        })
    }
}

/// The node that `certificate`, which TLS has verified, is for.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeId, CertificateError> {
    node_in(&parse(certificate)?).ok_or(CertificateError::NoNode)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(CertificateError::Malformed(error.to_string())),
    }
}

fn node_in(certificate: &X509Certificate<'_>) -> Option<NodeId> {
    let names = certificate.subject_alternative_name().ok()??;
    match names.value.general_names[..] {
        [GeneralName::DNSName(name)] => name.strip_suffix(DOMAIN)?.strip_suffix('.')?.parse().ok(),
        _ => None,
    }
}
