//! A chunk's body in two pieces, so that page content is not copied to stand
//! behind its page list.

use bytes::Bytes;

/// Octets of a chunk: those of the one piece, then those of the other.
#[derive(Debug, Clone, Default)]
pub struct Body {
    head: Bytes,
    content: Bytes,
}

impl Body {
    /// A body of two pieces.
    #[must_use]
    pub fn new(head: impl Into<Bytes>, content: impl Into<Bytes>) -> Self {
        Self { head: head.into(), content: content.into() }
    }

    /// Its length in octets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.content.len()
    }

    /// Whether it has no octet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its pieces, in order. Clones of them share the octets.
    #[must_use]
    pub fn pieces(&self) -> [&Bytes; 2] {
        [&self.head, &self.content]
    }

    /// All octets in one piece; copied only if they are in two.
    #[must_use]
    pub fn into_contiguous(self) -> Bytes {
        if self.content.is_empty() {
            self.head
        } else if self.head.is_empty() {
            self.content
        } else {
            [&self.head[..], &self.content[..]].concat().into()
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(octets: Vec<u8>) -> Self {
        Self::new(octets, Bytes::new())
    }
}

/// How the octets are cut in pieces makes no difference.
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        let octets = |body: &Self| body.clone().into_contiguous();
        self.len() == other.len() && octets(self) == octets(other)
    }
}

impl Eq for Body {}
