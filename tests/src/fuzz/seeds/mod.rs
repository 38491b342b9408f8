//! What the corpora begin with: sound inputs of every kind, so that mutations
//! start behind the first check; and inputs that once were bugs. Written to `fuzz/corpus` by
//! `cargo run -p romulus-tests --example fuzz-seeds`.

mod found;
mod guest;
mod machines;
mod peer;

/// An input to begin with.
#[derive(Debug)]
pub struct Seed {
    /// Of which target.
    pub target: &'static str,
    /// Its file.
    pub name: String,
    /// Itself.
    pub bytes: Vec<u8>,
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| {
        seeds.push(Seed { target, name: format!("seed-{name}"), bytes });
    };
    peer::frames(&mut add);
    peer::requests(&mut add);
    peer::chunks(&mut add);
    peer::deltas(&mut add);
    peer::sections(&mut add);
    peer::probe(&mut add);
    peer::certificates(&mut add);
    guest::devices(&mut add);
    guest::kernels(&mut add);
    guest::state(&mut add);
    guest::files(&mut add);
    guest::control(&mut add);
    machines::primary(&mut add);
    machines::backup(&mut add);
    found::all(&mut |target, name: &str, bytes: Vec<u8>| {
        seeds.push(Seed { target, name: name.to_owned(), bytes });
    });
    seeds
}

/// Takes a target, a name and an input.
type Add<'a> = dyn FnMut(&'static str, &str, Vec<u8>) + 'a;

/// Bytes with their number before them, as scripts have them.
fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}
