//! How the guest dirties its working set: how many pages, how fast, how much of each.
//!
//! Text form, in the command line and in tools:
//! `pages:1000,rate:40000,write:sparse,content:random`; every part may be left out.

use core::fmt;
use core::str::FromStr;

use crate::content::Content;

/// How much of a page one write changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Write {
    /// One 64-bit word.
    Sparse = 1,
    /// All 4096 bytes.
    #[default]
    Page = 2,
}

impl Write {
    /// From its number on the wire.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Sparse),
            2 => Some(Self::Page),
            _ => None,
        }
    }

    /// Its name in `probe.dirty=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sparse => "sparse",
            Self::Page => "page",
        }
    }
}

/// A dirty pattern. The default is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    /// Working set in pages; the guest bounds it by what it reserved.
    pub pages: u64,
    /// Page writes per second by all workers together; 0 is off.
    pub rate_per_s: u64,
    /// How much of a page a write changes.
    pub write: Write,
    /// What a whole-page write holds.
    pub content: Content,
}

/// Why a pattern's text was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A part without a colon, or with an unknown key.
    #[error("unknown part in the dirty pattern; known are pages:, rate:, write:, content:")]
    Key,
    /// A number that is none.
    #[error("pages and rate must be decimal numbers")]
    Number,
    /// Not a way of writing.
    #[error("write must be sparse or page")]
    Write,
    /// Not a class of content.
    #[error("content must be compressible, random, zero or same")]
    Content,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let mut pattern = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once(':').ok_or(PatternError::Key)?;
            match key {
                "pages" => pattern.pages = value.parse().map_err(|_| PatternError::Number)?,
                "rate" => pattern.rate_per_s = value.parse().map_err(|_| PatternError::Number)?,
                "write" => {
                    pattern.write = (1..=2)
                        .filter_map(Write::from_u8)
                        .find(|write| write.name() == value)
                        .ok_or(PatternError::Write)?;
                }
                "content" => {
                    pattern.content = (1..=4)
                        .filter_map(Content::from_u8)
                        .find(|content| content.name() == value)
                        .ok_or(PatternError::Content)?;
                }
                _ => return Err(PatternError::Key),
            }
        }
        Ok(pattern)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, rate_per_s, write, content } = self;
        write!(
            f,
            "pages:{pages},rate:{rate_per_s},write:{},content:{}",
            write.name(),
            content.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn text_round_trips() {
        let text = "pages:1000,rate:40000,write:sparse,content:compressible";
        assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
    }

    #[test]
    fn parts_may_be_left_out() {
        let pattern: Pattern = "rate:5".parse().unwrap();
        assert_eq!(pattern, Pattern { rate_per_s: 5, ..Pattern::default() });
    }

    #[test]
    fn wrong_parts_are_refused() {
        assert_eq!("pages".parse::<Pattern>(), Err(PatternError::Key));
        assert_eq!("rate:x".parse::<Pattern>(), Err(PatternError::Number));
        assert_eq!("write:half".parse::<Pattern>(), Err(PatternError::Write));
        assert_eq!("content:noise".parse::<Pattern>(), Err(PatternError::Content));
    }
}
