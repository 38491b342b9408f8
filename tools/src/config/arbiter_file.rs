//! `arbiter.toml`: one `[arbiter]` section.

use super::{error::Fault, host_files::HostFiles, section::Source, types::ArbiterConfig};

pub(super) fn parse(text: &str, files: &HostFiles) -> Result<ArbiterConfig, Fault> {
    let mut root = Source::new(text).parse()?;
    let mut section = root.section("arbiter")?.ok_or_else(|| {
        root.missing("arbiter", "[arbiter] with name, listen, store, ca, cert and key")
    })?;
    root.finish()?;
    let name = section.parsed_required("name", "name = \"arbiter\"")?.value;
    let listen = section.parsed_required("listen", "listen = \"10.1.0.9:7800\"")?.value;
    let store = section.path_required("store", "store = \"/var/lib/romulus/register\"")?;
    let control = section.path("control")?;
    let config = ArbiterConfig {
        name,
        listen,
        store: files.resolve(&store),
        control: control.map(|path| files.socket(&path)).transpose()?,
        identity: files.identity(&mut section)?,
    };
    section.finish()?;
    Ok(config)
}
