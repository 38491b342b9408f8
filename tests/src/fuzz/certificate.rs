//! Certificates in DER form: an operator's files, and what a peer shows once
//! TLS has verified it.

use transport::identity::CertificateDetails;

use super::Verdict;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let parsed = CertificateDetails::parse(bytes);
    if let Ok(details) = &parsed {
        assert!(details.node.is_none() || bytes.windows(9).any(|word| word == b".internal"));
    }
    Verdict::of(&parsed)
}
