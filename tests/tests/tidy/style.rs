//! Lengths, headers, names and `unsafe`.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Attribute, Block, ImplItemFn, ItemFn, Signature, TraitItemFn, spanned::Spanned, visit::Visit,
};

use crate::checkout::Source;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 110;
/// Functions that are one table: (file, function, why it is not cut up).
const TABLES: [(&str, &str, &str); 2] = [
    ("checkpoint/src/backup/machine.rs", "handle", "(phase, event) without a catch-all arm"),
    ("checkpoint/src/note.rs", "fmt", "one sentence for each variant"),
];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["common", "helper", "helpers", "manager", "misc", "util", "utils"];
/// Where `unsafe` may be: at KVM's edge, and in the freestanding guest.
const UNSAFE_PLACES: [&str; 2] = ["vmm/", "guest/src/"];

pub(crate) fn file_length(source: &Source) -> Vec<String> {
    let (path, lines) = (&source.path, source.text.lines().count());
    let long = lines > FILE_LINES_MAX;
    let complaint = || {
        format!(
            "{path}: {lines} lines, at most {FILE_LINES_MAX}: move a part to a module of its own"
        )
    };
    long.then(complaint).into_iter().collect()
}

/// Lines of comment or code. What cannot be broken is left in peace: rows of
/// tables, and string literals, so that messages can be searched for.
pub(crate) fn line_lengths(source: &Source) -> Vec<String> {
    let is_row = |line: &str| {
        let line = line.trim_start();
        line.starts_with("//! |") || line.starts_with("/// |")
    };
    let long = source.text.lines().enumerate().filter(|(_, line)| {
        line.chars().count() > LINE_COLUMNS_MAX && !line.contains('"') && !is_row(line)
    });
    long.map(|(index, line)| {
        let (path, columns) = (&source.path, line.chars().count());
        let number = index + 1;
        format!("{path}:{number}: {columns} columns, at most {LINE_COLUMNS_MAX}: break the line")
    })
    .collect()
}

pub(crate) fn header(source: &Source) -> Vec<String> {
    let path = &source.path;
    let has_header = source.syntax.attrs.iter().any(is_doc);
    let complaint =
        || format!("{path}:1: no `//!` header: say what the file is for and what always holds");
    (!has_header).then(complaint).into_iter().collect()
}

fn is_doc(attribute: &Attribute) -> bool {
    matches!(attribute.style, syn::AttrStyle::Inner(_)) && attribute.path().is_ident("doc")
}

pub(crate) fn module_name(source: &Source) -> Vec<String> {
    let path = &source.path;
    let parts = path.trim_end_matches(".rs").split('/');
    let empty = parts.filter(|part| {
        let mut words = part.split(['_', '-']);
        words.any(|word| EMPTY_NAMES.contains(&word))
    });
    empty
        .map(|name| format!("{path}: `{name}` names no thing of the field: say what is inside"))
        .collect()
}

pub(crate) fn unsafe_code(source: &Source) -> Vec<String> {
    let path = &source.path;
    if UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    find_unsafe(source.syntax.to_token_stream(), &mut found);
    let mut complaints: Vec<String> = found
        .into_iter()
        .map(|span| {
            let line = span.start().line;
            format!("{path}:{line}: `unsafe` outside vmm: use a safe crate, or move it to vmm")
        })
        .collect();
    let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if is_root && !source.text.contains("#![forbid(unsafe_code)]") {
        complaints
            .push(format!("{path}: lacks `#![forbid(unsafe_code)]`: add it below the header"));
    }
    complaints
}

fn find_unsafe(tokens: TokenStream, found: &mut Vec<Span>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) if word == "unsafe" => found.push(word.span()),
            TokenTree::Group(group) => find_unsafe(group.stream(), found),
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

pub(crate) fn function_lengths(source: &Source) -> Vec<String> {
    let mut visitor = Functions { path: &source.path, complaints: Vec::new() };
    visitor.visit_file(&source.syntax);
    visitor.complaints
}

/// Measures every function with a body, from its signature to its last brace.
struct Functions<'source> {
    path: &'source str,
    complaints: Vec<String>,
}

impl Functions<'_> {
    fn measure(&mut self, signature: &Signature, body: &Block) {
        let (first, last) = (signature.span().start().line, body.span().end().line);
        let lines = last + 1 - first;
        let (path, name) = (self.path, &signature.ident);
        let is_table = TABLES.iter().any(|(file, table, _)| *file == path && name == table);
        if lines > FUNCTION_LINES_MAX && !is_table {
            self.complaints.push(format!(
                "{path}:{first}: `{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}: \
                 give a part of it a name of its own"
            ));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.measure(&item.sig, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.measure(&item.sig, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        if let Some(body) = &item.default {
            self.measure(&item.sig, body);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}
