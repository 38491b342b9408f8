//! What the sans-IO parts may not name: clocks, sockets, threads, files.
//!
//! That is what lets the same code run in production and in the simulator, and
//! a run repeat from its seed.

use syn::{
    ItemUse, Path, UseTree,
    spanned::Spanned,
    visit::{self, Visit},
};

use crate::checkout::Source;

/// Things of the world outside: paths that begin so.
const WORLD: [&str; 11] = [
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
];

/// Where the world outside may not be named, and what may be all the same.
const PURE: [(&str, &[&str]); 6] = [
    ("checkpoint/src/", &[]),
    // The store is a file; nothing else in the crate is.
    ("arbiter/src/file_store", &["std::fs", "std::os"]),
    // Stores are raced by many threads, and asked again for a while.
    ("arbiter/src/conformance/", &["std::thread", "std::time::Instant"]),
    ("arbiter/src/", &[]),
    ("transport/src/wire/", &[]),
    ("tests/src/simulation/", &[]),
];

pub(crate) fn forbidden_paths(source: &Source) -> Vec<String> {
    let Some((_, excepted)) = PURE.iter().find(|(place, _)| source.path.starts_with(place)) else {
        return Vec::new();
    };
    let mut paths = Paths { found: Vec::new() };
    paths.visit_file(&source.syntax);
    paths.found.retain(|(path, _)| {
        let is_excepted = excepted.iter().any(|exception| begins(path, exception));
        !is_excepted && WORLD.iter().any(|place| begins(path, place))
    });
    let file = &source.path;
    let complaint = |(path, line)| {
        format!("{file}:{line}: names {path}: take it as an argument, or leave it to the shell")
    };
    paths.found.into_iter().map(complaint).collect()
}

fn begins(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Every path of a file with its line, `use` trees taken apart.
struct Paths {
    found: Vec<(String, usize)>,
}

impl Paths {
    fn leaves(&mut self, before: &str, tree: &UseTree) {
        let join = |name: &syn::Ident| {
            if before.is_empty() { name.to_string() } else { format!("{before}::{name}") }
        };
        let line = tree.span().start().line;
        match tree {
            UseTree::Path(path) => self.leaves(&join(&path.ident), &path.tree),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.leaves(before, tree);
                }
            }
            UseTree::Name(name) if name.ident == "self" => {
                self.found.push((before.to_owned(), line));
            }
            UseTree::Name(name) => self.found.push((join(&name.ident), line)),
            UseTree::Rename(rename) => self.found.push((join(&rename.ident), line)),
            UseTree::Glob(_) => self.found.push((before.to_owned(), line)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.leaves("", &item.tree);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let names: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let mut joined = names.join("::");
        // `use std::time` and then `time::Instant`: named all the same.
        if let Some(rest) = joined.strip_prefix("time::") {
            joined = format!("std::time::{rest}");
        }
        self.found.push((joined, path.span().start().line));
        visit::visit_path(self, path);
    }
}

#[test]
fn use_trees_are_taken_apart() {
    let text = "use std::{fs as f, time::{Duration, Instant}};\nfn x() { std::thread::sleep(d) }";
    let look = |path: &str| {
        let syntax = syn::parse_file(text).unwrap();
        forbidden_paths(&Source { path: path.to_owned(), text: text.to_owned(), syntax }).len()
    };
    assert_eq!(look("checkpoint/src/a.rs"), 3);
    assert_eq!(look("arbiter/src/file_store.rs"), 2);
    assert_eq!(look("tools/src/a.rs"), 0);
}
