//! Reading one TOML table key by key, so that every complaint has a place.
//!
//! A [`Section`] hands out its values by name. What nobody asked for when it is
//! closed by [`Section::finish`] is an unknown key, and refused with the name
//! that was probably meant. Lines count from 1.

use std::{cell::RefCell, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{error::Fault, types::JailMode};

/// A text and the places of its lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a>(&'a str);

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }

    fn line(self, offset: usize) -> usize {
        let upto = &self.0.as_bytes()[..offset.min(self.0.len())];
        1 + upto.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Parses the whole text as a table.
    pub(super) fn parse(self) -> Result<Section<'a>, Fault> {
        match DeTable::parse(self.0) {
            Ok(table) => Ok(Section::new(self, String::new(), 1, table.into_inner())),
            Err(error) => Err(Fault {
                line: error.span().map_or(1, |span| self.line(span.start)),
                key: String::new(),
                problem: error.message().lines().collect::<Vec<_>>().join(", "),
                remedy: "correct the TOML syntax".to_owned(),
            }),
        }
    }
}

/// What a file is, by its sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It has `[vm]` or `[node]`.
    Vm,
    /// It has `[arbiter]`, as a VM's has, and nothing else of a VM's.
    Arbiter,
    /// It has none of them.
    Neither,
}

impl Kind {
    pub(super) fn of(root: &Section<'_>) -> Self {
        if root.has("vm") || root.has("node") {
            Self::Vm
        } else if root.has("arbiter") {
            Self::Arbiter
        } else {
            Self::Neither
        }
    }
}

/// A value that was found, and where.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) line: usize,
    pub(super) key: String,
}

impl<T> Found<T> {
    /// A complaint about this value.
    pub(super) fn fault(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Fault {
        Fault {
            line: self.line,
            key: self.key.clone(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn with<U>(&self, value: U) -> Found<U> {
        Found { value, line: self.line, key: self.key.clone() }
    }
}

/// A table that is being read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    source: Source<'a>,
    name: String,
    line: usize,
    table: DeTable<'a>,
    /// Names that somebody asked for: what a wrong one is compared with.
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    fn new(source: Source<'a>, name: String, line: usize, table: DeTable<'a>) -> Self {
        Self { source, name, line, table, known: RefCell::default() }
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn take(&mut self, key: &'static str) -> Option<Found<DeValue<'a>>> {
        self.known.borrow_mut().push(key);
        let (_, spanned) = self.table.remove_entry(key)?;
        let line = self.source.line(spanned.span().start);
        Some(Found { value: spanned.into_inner(), line, key: self.full(key) })
    }

    /// A complaint about a key that is not there, or is there under a name
    /// that nearly fits.
    pub(super) fn missing(&self, key: &str, example: &str) -> Fault {
        let written = self.table.keys().find(|name| is_near(name.get_ref(), key));
        let remedy = match written {
            Some(name) => {
                let line = self.source.line(name.span().start);
                format!("line {line} has `{}`, did you mean that?", name.get_ref())
            }
            None => format!("add it, for example {example}"),
        };
        Fault { line: self.line, key: self.full(key), problem: "is missing".to_owned(), remedy }
    }

    /// A complaint about this table as a whole.
    pub(super) fn misplaced(&self, problem: &str, remedy: &str) -> Fault {
        Fault {
            line: self.line,
            key: self.name.clone(),
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    /// A sub-table, if it is there.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Option<Section<'a>>, Fault> {
        let Some(found) = self.take(key) else { return Ok(None) };
        match found.value {
            DeValue::Table(table) => {
                Ok(Some(Section::new(self.source, found.key, found.line, table)))
            }
            other => Err(mismatch(&found.key, found.line, "a table", other.type_str())),
        }
    }

    /// An array of tables; empty if it is not there.
    pub(super) fn sections(&mut self, key: &'static str) -> Result<Vec<Section<'a>>, Fault> {
        let Some(found) = self.take(key) else { return Ok(Vec::new()) };
        let DeValue::Array(array) = found.value else {
            let have = found.value.type_str();
            return Err(mismatch(&found.key, found.line, "an array of tables", have));
        };
        let mut sections = Vec::new();
        for spanned in array {
            let line = self.source.line(Spanned::span(&spanned).start);
            match spanned.into_inner() {
                DeValue::Table(table) => {
                    sections.push(Section::new(self.source, found.key.clone(), line, table));
                }
                other => return Err(mismatch(&found.key, line, "a table", other.type_str())),
            }
        }
        Ok(sections)
    }

    /// A text, if it is there.
    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<Found<String>>, Fault> {
        let Some(found) = self.take(key) else { return Ok(None) };
        match &found.value {
            DeValue::String(text) => Ok(Some(found.with(text.to_string()))),
            other => Err(mismatch(&found.key, found.line, "a text in quotes", other.type_str())),
        }
    }

    /// A list of texts, which must be there and not be empty.
    pub(super) fn texts_required(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Vec<Found<String>>, Fault> {
        let Some(found) = self.take(key) else { return Err(self.missing(key, example)) };
        let DeValue::Array(array) = &found.value else {
            let have = found.value.type_str();
            return Err(mismatch(&found.key, found.line, "a list of texts in quotes", have));
        };
        if array.is_empty() {
            return Err(found.fault("is empty", format!("write it like {example}")));
        }
        let text = |spanned: &Spanned<DeValue<'a>>| {
            let line = self.source.line(spanned.span().start);
            match spanned.get_ref() {
                DeValue::String(text) => {
                    Ok(Found { value: text.to_string(), line, key: found.key.clone() })
                }
                other => Err(mismatch(&found.key, line, "a text in quotes", other.type_str())),
            }
        };
        array.iter().map(text).collect()
    }

    /// A text that is parsed further, if it is there.
    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Option<Found<T>>, Fault> {
        let Some(found) = self.text(key)? else { return Ok(None) };
        match found.value.parse() {
            Ok(value) => Ok(Some(found.with(value))),
            Err(error) => Err(found.fault(
                format!("\"{}\": {error}", found.value),
                format!("write it like {example}"),
            )),
        }
    }

    /// A text that is parsed further and must be there.
    pub(super) fn parsed_required<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Found<T>, Fault> {
        self.parsed(key, example)?.ok_or_else(|| self.missing(key, example))
    }

    /// An address and port that must be there. Names are not looked up: a
    /// daemon has to start, and to find its peers, without a name server.
    pub(super) fn address_required(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Found<SocketAddr>, Fault> {
        let Some(found) = self.text(key)? else { return Err(self.missing(key, example)) };
        match found.value.parse() {
            Ok(address) => Ok(found.with(address)),
            Err(_) => Err(found.fault(
                format!("\"{}\" is no IP address with a port", found.value),
                format!("write it like {example} (names are not looked up)"),
            )),
        }
    }

    /// A list of texts that are parsed further; empty if it is not there.
    pub(super) fn parsed_list<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Vec<T>, Fault> {
        let Some(found) = self.take(key) else { return Ok(Vec::new()) };
        let DeValue::Array(array) = &found.value else {
            let have = found.value.type_str();
            return Err(mismatch(&found.key, found.line, "a list of texts", have));
        };
        let texts = array.iter().map(|spanned| {
            let item = spanned.get_ref();
            let line = self.source.line(spanned.span().start);
            let DeValue::String(text) = item else {
                return Err(mismatch(&found.key, line, "a list of texts", item.type_str()));
            };
            text.parse().map_err(|error| Fault {
                line,
                key: found.key.clone(),
                problem: format!("\"{text}\": {error}"),
                remedy: format!("write it like {example}"),
            })
        });
        texts.collect()
    }

    /// A path, which may not be empty.
    pub(super) fn path(&mut self, key: &'static str) -> Result<Option<Found<PathBuf>>, Fault> {
        let Some(found) = self.text(key)? else { return Ok(None) };
        if found.value.is_empty() {
            return Err(found.fault("is empty", "name a path"));
        }
        Ok(Some(found.with(PathBuf::from(&found.value))))
    }

    /// A path that must be there.
    pub(super) fn path_required(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Found<PathBuf>, Fault> {
        self.path(key)?.ok_or_else(|| self.missing(key, example))
    }

    /// A whole number within `range` of `unit`, or `default`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Result<Found<u64>, Fault> {
        let Some(found) = self.take(key) else {
            return Ok(Found { value: default, line: self.line, key: self.full(key) });
        };
        let DeValue::Integer(integer) = &found.value else {
            let have = found.value.type_str();
            return Err(mismatch(&found.key, found.line, "a whole number", have));
        };
        let bounds = format!("use {} to {}{unit}", range.start(), range.end());
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Ok(found.with(number)),
            _ => Err(found.fault(format!("{integer} is out of range"), bounds)),
        }
    }

    /// Whether a key is set.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// `true` or `false`, or `default`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, Fault> {
        let Some(found) = self.take(key) else { return Ok(default) };
        match found.value {
            DeValue::Boolean(flag) => Ok(flag),
            other => Err(mismatch(&found.key, found.line, "true or false", other.type_str())),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        default: T,
    ) -> Result<T, Fault> {
        let Some(found) = self.text(key)? else { return Ok(default) };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == found.value) {
            return Ok(*value);
        }
        let all: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let problem = format!("\"{}\" is no choice", found.value);
        Err(found.fault(problem, format!("use one of {}", all.join(", "))))
    }

    /// The key `jail`.
    pub(super) fn jail(&mut self) -> Result<JailMode, Fault> {
        let modes = [("strict", JailMode::Strict), ("log", JailMode::Log), ("off", JailMode::Off)];
        self.choice("jail", &modes, JailMode::Strict)
    }

    /// Closes the table: a key that nobody asked for is refused.
    pub(super) fn finish(self) -> Result<(), Fault> {
        let Some((key, _)) = self.table.iter().next() else { return Ok(()) };
        let known = self.known.borrow();
        let near = known
            .iter()
            .filter(|name| is_near(key.get_ref(), name))
            .min_by_key(|name| edit_distance(key.get_ref(), name));
        let remedy = match near {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here are {}", known.join(", ")),
        };
        Err(Fault {
            line: self.source.line(key.span().start),
            key: self.full(key.get_ref()),
            problem: "is not a setting".to_owned(),
            remedy,
        })
    }
}

fn mismatch(key: &str, line: usize, expected: &str, have: &str) -> Fault {
    Fault {
        line,
        key: key.to_owned(),
        problem: format!("is of the type {have}"),
        remedy: format!("it must be {expected}"),
    }
}

/// Whether `written` is probably a slip of the pen for `name`.
fn is_near(written: &str, name: &str) -> bool {
    edit_distance(written, name) <= 1 + name.len() / 4
}

/// Levenshtein's distance: insertions, deletions and changes of single characters.
fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, left) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, right) in other.iter().enumerate() {
            let changed = diagonal + usize::from(left != *right);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn distances_are_levenshteins() {
        for (one, other, distance) in
            [("", "", 0), ("kitten", "sitting", 3), ("epcoh_ms", "epoch_ms", 2), ("a", "", 1)]
        {
            assert_eq!(edit_distance(one, other), distance, "{one} {other}");
        }
    }
}
