//! Errors for operators: what failed, and why.

use std::error::Error;

/// An error and its causes, in one line.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(&format!(": {words}"));
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("it was not asked")]
    struct Unasked(#[source] Unreachable);

    #[derive(Debug, Error)]
    #[error("nobody is at 10.1.0.9")]
    struct Unreachable(#[source] io::Error);

    #[test]
    fn every_cause_is_told_once() {
        let error = Unasked(Unreachable(io::Error::other("timed out")));
        assert_eq!(with_causes(&error), "it was not asked: nobody is at 10.1.0.9: timed out");
        let transparent = Unasked(Unreachable(io::Error::other("nobody is at 10.1.0.9")));
        assert_eq!(with_causes(&transparent), "it was not asked: nobody is at 10.1.0.9");
    }
}
