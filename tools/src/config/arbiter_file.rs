//! `arbiter.toml`: one `[arbiter]` section, with the registers in a file or in
//! etcd.

use std::time::Duration;

use super::{
    error::Fault,
    host_files::HostFiles,
    section::{Found, Kind, Section, Source},
    types::{ArbiterConfig, StoreConfig},
};

const PREFIX_BYTES_MAX: usize = 256;
const ENDPOINTS_EXAMPLE: &str = "endpoints = [\"https://10.1.0.9:2379\"]";

pub(super) fn parse(text: &str, files: &HostFiles) -> Result<ArbiterConfig, Fault> {
    let mut root = Source::new(text).parse()?;
    if Kind::of(&root) == Kind::Vm {
        let remedy = "use `romulus run` or `romulus backup`";
        return Err(root.misplaced("this is a VM's file", remedy));
    }
    let mut section = root.section("arbiter")?.ok_or_else(|| {
        root.missing("arbiter", "[arbiter] with name, listen, store, ca, cert and key")
    })?;
    root.finish()?;
    let name = section.parsed_required("name", "name = \"arbiter\"")?.value;
    let listen = section.address_required("listen", "listen = \"10.1.0.9:7800\"")?.value;
    let etcd = section.section("etcd")?;
    let store = section.path("store")?;
    let store = match (store, etcd) {
        (Some(store), None) => StoreConfig::File(files.resolve(&store)),
        (None, Some(etcd)) => StoreConfig::Etcd(parse_etcd(etcd, files)?),
        (Some(store), Some(_)) => {
            return Err(store.fault(
                "names a file, and [arbiter.etcd] is there, too",
                "keep the registers in one place: remove either",
            ));
        }
        (None, None) => {
            let example = "store = \"/var/lib/romulus/register\", or a section [arbiter.etcd]";
            return Err(section.missing("store", example));
        }
    };
    let control = section.path("control")?;
    let config = ArbiterConfig {
        name,
        listen,
        store,
        control: control.map(|path| files.socket(&path)).transpose()?,
        jail: section.jail()?,
        identity: files.identity(&mut section)?,
    };
    section.finish()?;
    Ok(config)
}

fn parse_etcd(mut section: Section<'_>, files: &HostFiles) -> Result<etcd::Settings, Fault> {
    let endpoints = section.texts_required("endpoints", ENDPOINTS_EXAMPLE)?;
    let encrypted = check_endpoints(&endpoints)?;
    let timeout = section.number("timeout_ms", 300, 10..=60_000, " ms")?;
    let settings = etcd::Settings {
        prefix: parse_prefix(&mut section)?,
        tls: parse_tls(&mut section, files, encrypted)?,
        credentials: parse_credentials(&mut section, files)?,
        endpoints: endpoints.into_iter().map(|endpoint| endpoint.value).collect(),
        timeout: Duration::from_millis(timeout.value),
    };
    section.finish()?;
    Ok(settings)
}

/// Whether they are encrypted: all of them, or none.
fn check_endpoints(endpoints: &[Found<String>]) -> Result<bool, Fault> {
    let mut encrypted = None;
    for (index, endpoint) in endpoints.iter().enumerate() {
        let url = &endpoint.value;
        let (is_encrypted, address) =
            match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
                (Some(address), _) => (true, address),
                (None, Some(address)) => (false, address),
                (None, None) => {
                    let problem = format!("\"{url}\" begins with neither https:// nor http://");
                    return Err(
                        endpoint.fault(problem, format!("write it like {ENDPOINTS_EXAMPLE}"))
                    );
                }
            };
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port {
            let problem = format!("\"{url}\" is no URL of a host and a port");
            return Err(endpoint.fault(problem, format!("write it like {ENDPOINTS_EXAMPLE}")));
        }
        if endpoints[..index].iter().any(|other| other.value == *url) {
            return Err(endpoint.fault(format!("\"{url}\" is listed twice"), "list it once"));
        }
        if *encrypted.get_or_insert(is_encrypted) != is_encrypted {
            return Err(endpoint.fault(
                format!("\"{url}\" is not encrypted like the ones before, or the reverse"),
                "use https:// for all members",
            ));
        }
    }
    Ok(encrypted.unwrap_or(false))
}

fn parse_prefix(section: &mut Section<'_>) -> Result<String, Fault> {
    let Some(prefix) = section.text("prefix")? else { return Ok("/romulus/".to_owned()) };
    let shaped = prefix.value.ends_with('/') && prefix.value.len() <= PREFIX_BYTES_MAX;
    if !shaped || prefix.value.contains(|letter: char| letter.is_control()) {
        let problem = format!("\"{}\" is no beginning of keys", prefix.value);
        let remedy = format!("end it with a slash, within {PREFIX_BYTES_MAX} bytes");
        return Err(prefix.fault(problem, remedy));
    }
    Ok(prefix.value)
}

fn parse_tls(
    section: &mut Section<'_>,
    files: &HostFiles,
    encrypted: bool,
) -> Result<Option<etcd::TlsFiles>, Fault> {
    let make = "name a readable PEM file";
    let mut file = |key| -> Result<_, Fault> {
        let Some(found) = section.path(key)? else { return Ok(None) };
        if !encrypted {
            return Err(found.fault("is for endpoints with https://", "use them, or remove it"));
        }
        let path = files.readable(&found, make)?;
        Ok(Some((found, path)))
    };
    let (ca, certificate, key) = (file("ca")?, file("cert")?, file("key")?);
    let identity = match (certificate, key) {
        (Some((_, certificate)), Some((_, key))) => Some((certificate, key)),
        (None, None) => None,
        (Some((found, _)), None) => return Err(found.fault("has no key", "add the key `key`")),
        (None, Some((found, _))) => {
            return Err(found.fault("has no certificate", "add the key `cert`"));
        }
    };
    match ca {
        Some((_, ca)) => Ok(Some(etcd::TlsFiles { ca, identity })),
        None if encrypted => Err(section.missing("ca", "ca = \"etcd-ca.pem\"")),
        None => Ok(None),
    }
}

fn parse_credentials(
    section: &mut Section<'_>,
    files: &HostFiles,
) -> Result<Option<etcd::Credentials>, Fault> {
    let user = section.text("user")?;
    let password = section.path("password_file")?;
    match (user, password) {
        (Some(user), Some(password)) => {
            let make = "name a file whose first line is the password, of mode 0600";
            let password_file = files.readable(&password, make)?;
            Ok(Some(etcd::Credentials { user: user.value, password_file }))
        }
        (None, None) => Ok(None),
        (Some(user), None) => Err(user.fault("has no password", "add the key `password_file`")),
        (None, Some(password)) => Err(password.fault("has no user", "add the key `user`")),
    }
}
