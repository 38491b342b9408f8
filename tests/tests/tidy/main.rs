//! Holds the house style and the direction of dependencies.
//!
//! Every complaint says where, what, and what to do. Rust is read with `syn`,
//! so strings and comments are never taken for code. `TIDY_ROOT=<folder>`
//! looks at another checkout than the one that this test belongs to.
//!
//! ```text
//!   checkout ── files ──▶ style      lengths, headers, names, words, unsafe
//!        │        └─────▶ purity     what the sans-IO crates may not name
//!        └─ Cargo.toml ─▶ direction  which crate may depend on which
//! ```

#![forbid(unsafe_code)]

mod checkout;
mod direction;
mod purity;
mod style;
mod vocabulary;

use checkout::Checkout;

/// Fails with every complaint at once.
fn demand_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} found:\n  {}", complaints.len(), complaints.join("\n  "));
}

fn sources(look: impl Fn(&checkout::Source) -> Vec<String>) {
    let checkout = Checkout::read();
    assert!(checkout.sources.len() > 20, "only {} sources were found", checkout.sources.len());
    let complaints: Vec<String> = checkout.sources.iter().flat_map(look).collect();
    demand_none(&complaints);
}

#[test]
fn files_are_short() {
    sources(style::file_length);
}

#[test]
fn functions_are_short() {
    sources(style::function_lengths);
}

#[test]
fn lines_are_short() {
    sources(style::line_lengths);
}

#[test]
fn every_source_says_what_it_is_for() {
    sources(style::header);
}

#[test]
fn modules_are_named_after_nouns_of_the_field() {
    sources(style::module_name);
}

#[test]
fn unsafe_code_is_in_its_place() {
    sources(style::unsafe_code);
}

#[test]
fn the_cores_are_sans_io() {
    sources(purity::forbidden_paths);
}

#[test]
fn words_have_one_meaning() {
    let checkout = Checkout::read();
    let texts = checkout.texts.iter();
    demand_none(&texts.flat_map(vocabulary::strange_words).collect::<Vec<_>>());
}

#[test]
fn every_crate_tells_what_it_is() {
    let checkout = Checkout::read();
    let silent = checkout.crates.iter().filter(|krate| !krate.folder.join("README.md").is_file());
    let complaint = |krate: &checkout::Crate| {
        let folder = krate.folder.display();
        format!("{folder}: has no README.md: say what it is, what it may depend on, where to start")
    };
    demand_none(&silent.map(complaint).collect::<Vec<_>>());
}

#[test]
fn dependencies_point_one_way() {
    let checkout = Checkout::read();
    demand_none(&checkout.crates.iter().flat_map(direction::check).collect::<Vec<_>>());
}

#[test]
fn every_dependency_is_told_of() {
    let checkout = Checkout::read();
    let architecture = checkout.texts.iter().find(|text| text.path == "ARCHITECTURE.md");
    let architecture = architecture.expect("the checkout has an ARCHITECTURE.md");
    let untold = |krate: &checkout::Crate| direction::check_told(krate, architecture);
    demand_none(&checkout.crates.iter().flat_map(untold).collect::<Vec<_>>());
}
