//! Writes the inputs that the fuzz corpora begin with to `fuzz/corpus`.

#![forbid(unsafe_code)]

use std::fs;

use anyhow::Context;
use romulus_tests::fuzz;

fn main() -> anyhow::Result<()> {
    for seed in fuzz::seeds::all() {
        let folder = fuzz::corpus(fuzz::target(seed.target));
        fs::create_dir_all(&folder)?;
        let path = folder.join(&seed.name);
        fs::write(&path, &seed.bytes).with_context(|| path.display().to_string())?;
        let verdict = (fuzz::target(seed.target).run)(&seed.bytes);
        println!("{:>6} bytes  {verdict:?}  {}/{}", seed.bytes.len(), seed.target, seed.name);
    }
    Ok(())
}
