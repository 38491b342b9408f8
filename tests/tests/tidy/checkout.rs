//! What lies in the checkout: crates, Rust sources, and everything to be read.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Folders that hold nothing written by hand.
const PASSED_OVER: [&str; 3] = ["target", "corpus", "artifacts"];

/// The checkout.
pub(crate) struct Checkout {
    pub(crate) crates: Vec<Crate>,
    /// Rust files.
    pub(crate) sources: Vec<Source>,
    /// Rust and Markdown files.
    pub(crate) texts: Vec<Text>,
}

/// A crate.
pub(crate) struct Crate {
    pub(crate) folder: PathBuf,
    pub(crate) manifest: toml::Table,
}

/// A file to be read.
pub(crate) struct Text {
    /// Its path below the checkout's root.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A Rust file.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
}

impl Checkout {
    /// Reads all of it.
    pub(crate) fn read() -> Self {
        let root = env::var_os("TIDY_ROOT").map_or_else(own_root, PathBuf::from);
        let mut files = Vec::new();
        walk(&root, &mut files);
        files.sort();
        let mut checkout = Self { crates: Vec::new(), sources: Vec::new(), texts: Vec::new() };
        for file in files {
            let path = file.strip_prefix(&root).expect("below the root").display().to_string();
            let text = read(&file);
            match file.extension().and_then(|ending| ending.to_str()) {
                Some("rs") => {
                    let syntax = syn::parse_file(&text)
                        .unwrap_or_else(|error| panic!("{path}: is no Rust: {error}"));
                    checkout.sources.push(Source {
                        path: path.clone(),
                        text: text.clone(),
                        syntax,
                    });
                    checkout.texts.push(Text { path, text });
                }
                Some("md") => checkout.texts.push(Text { path, text }),
                _ => checkout.crates.extend(manifest(&file, &path, &text)),
            }
        }
        checkout
    }
}

fn own_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the workspace").to_owned()
}

fn manifest(file: &Path, path: &str, text: &str) -> Option<Crate> {
    let manifest: toml::Table =
        text.parse().unwrap_or_else(|error| panic!("{path}: is no TOML: {error}"));
    let folder = file.parent().expect("a file lies in a folder").to_owned();
    manifest.contains_key("package").then_some(Crate { folder, manifest })
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("listed").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !name.starts_with('.') && !PASSED_OVER.contains(&name) {
                walk(&path, files);
            }
        } else if name.ends_with(".rs") || name.ends_with(".md") || name == "Cargo.toml" {
            files.push(path);
        }
    }
}

fn read(file: &Path) -> String {
    fs::read_to_string(file)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()))
}
