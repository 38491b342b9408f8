//! Words that have another word, and words with one narrow meaning.
//!
//! `ARCHITECTURE.md` has the vocabulary; this table holds it. Words are found
//! inside identifiers, too: `masterKey` and `master_key` both have `master`.

use crate::checkout::Text;

/// A word and what to say instead.
const STRANGE: [(&str, &str); 10] = [
    ("blacklist", "refused"),
    ("generation", "term, or epoch"),
    ("generations", "terms, or epochs"),
    ("master", "primary"),
    ("slave", "backup"),
    ("slaves", "backups"),
    ("snapshot", "checkpoint; a snapshot is a file that a user saved"),
    ("snapshots", "checkpoints; a snapshot is a file that a user saved"),
    ("views", "terms"),
    ("whitelist", "allowed"),
];

/// Places where a word is somebody else's and has no other: (beginning of the
/// path, word, why).
const ALLOWED: [(&str, &str, &str); 7] = [
    ("tests/tests/tidy/vocabulary.rs", "", "this table"),
    ("ARCHITECTURE.md", "", "it says which words not to use"),
    ("CONTRIBUTING.md", "", "it says which words not to use"),
    ("README.md", "master", "the word that `ip link` wants for a bridge"),
    ("vmm/", "master", "of the pair of 8259 interrupt controllers"),
    ("vmm/src/device/virtio/", "generation", "a register of virtio's, section 2.5.1"),
    ("tools/src/rehearsal/", "master", "the word that `ip link` wants for a bridge"),
];

/// The other one of the pair of interrupt controllers.
const INTERRUPT_CONTROLLERS: &str = "vmm/src/";

pub(crate) fn strange_words(text: &Text) -> Vec<String> {
    let mut complaints = Vec::new();
    for (index, line) in text.text.lines().enumerate() {
        for word in words(line) {
            let Some((_, instead)) = STRANGE.iter().find(|(strange, _)| *strange == word) else {
                continue;
            };
            if !is_allowed(&text.path, &word) {
                let (path, number) = (&text.path, index + 1);
                complaints.push(format!("{path}:{number}: `{word}`: say {instead}"));
            }
        }
    }
    complaints
}

fn is_allowed(path: &str, word: &str) -> bool {
    let pair = word == "slave" && path.starts_with(INTERRUPT_CONTROLLERS);
    pair || ALLOWED.iter().any(|(place, allowed, _)| {
        path.starts_with(place) && (allowed.is_empty() || *allowed == word)
    })
}

/// The words of a line in lower case, with compound identifiers taken apart.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for letter in line.chars() {
        if !letter.is_alphabetic() || letter.is_uppercase() && after_lower {
            words.push(String::new());
        }
        if letter.is_alphabetic() {
            words.last_mut().expect("never empty").extend(letter.to_lowercase());
        }
        after_lower = letter.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn words_are_found_in_identifiers() {
    assert_eq!(words("let masterKey = old_slave;"), ["let", "master", "key", "old", "slave"]);
    let text = |path: &str| Text { path: path.to_owned(), text: "fn x() {}\n// MasterKey".into() };
    assert_eq!(strange_words(&text("tools/src/a.rs")), ["tools/src/a.rs:2: `master`: say primary"]);
    assert!(strange_words(&text("vmm/src/pic.rs")).is_empty());
}
